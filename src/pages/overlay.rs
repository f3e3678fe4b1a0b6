//! The overlay: images of pages at versions newer than the base, and older ones for as long as a
//! reader needs them.
//!
//! Of each page there is a chain: what it was at which versions, ascending. A reader sees the
//! newest entry at or below its version, and the base where there is none. One entry of a chain
//! may be a mark: *from this version on it is what the base has*; without one the base's content
//! is older than the whole chain. (Without marks, an old image kept for an old reader hid the
//! folded page from a younger one as soon as the base had moved on beyond both.)
//!
//! *Invariant*: in a chain versions ascend, the first entry is no mark, and there is at most one;
//! an image that a live snapshot resolves to is never dropped.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::page::{Image, PageNo};

/// Hashes page numbers: they are small and dense, so one multiplication spreads them well.
#[derive(Default)]
pub struct PageNoHasher(u64);

impl Hasher for PageNoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// A map keyed by page number.
pub type PageMap<T> = HashMap<PageNo, T, BuildHasherDefault<PageNoHasher>>;

/// What a page was from a version on: an image, or (the mark) what the base has.
type Chain = Vec<(u64, Option<Image>)>;

/// Images by page and version, and the version of the base that they lie on.
pub struct Overlay {
    chains: PageMap<Chain>,
    base_version: u64,
    held: Held,
    /// How many of them were at or below the base when it last moved.
    below_base: usize,
}

/// How many images are held, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In memory.
    pub heap: usize,
    /// In files.
    pub spilled: usize,
}

impl Held {
    fn of(entries: &[(u64, Option<Image>)]) -> Held {
        let mut held = Held::default();
        entries.iter().filter_map(|(_, image)| image.as_ref()).for_each(|image| held.add(image));
        held
    }

    fn add(&mut self, image: &Image) {
        if image.body.is_spilled() {
            self.spilled += 1;
        } else {
            self.heap += 1;
        }
    }

    fn sum(&mut self, more: Held) {
        self.heap += more.heap;
        self.spilled += more.spilled;
    }

    fn sub(&mut self, less: Held) {
        self.heap -= less.heap;
        self.spilled -= less.spilled;
    }

    /// In memory and in files.
    pub fn total(self) -> usize {
        self.heap + self.spilled
    }
}

impl Overlay {
    /// Nothing above a base at `base_version`.
    pub fn new(base_version: u64) -> Overlay {
        Overlay { chains: PageMap::default(), base_version, held: Held::default(), below_base: 0 }
    }

    /// How many images are held.
    pub fn held(&self) -> Held {
        self.held
    }

    /// How many images are held that only readers older than the base see.
    pub fn len_below_base(&self) -> usize {
        self.below_base
    }

    /// The image of `page` that a snapshot at `version` sees, if it is not the base's.
    pub fn find(&self, page: PageNo, version: u64) -> Option<&Image> {
        let chain = self.chains.get(&page)?;
        newest(chain, version)?.1.as_ref()
    }

    /// Adds the newest image of a page and drops those of it that nobody needs: of the versions
    /// in `keep` (ascending) each keeps the newest image at or below it, and all above the last
    /// of `keep` stay.
    pub fn push(&mut self, page: PageNo, version: u64, image: Image, keep: &[u64]) {
        self.held.add(&image);
        // Most pages have one image, and a large transaction has many pages.
        let chain = self.chains.entry(page).or_insert_with(|| Vec::with_capacity(1));
        debug_assert!(chain.last().is_none_or(|(last, _)| *last < version));
        // Up to the last of `keep`; one image alone there is needed by it.
        let prefix = keep.last().map_or(0, |last| chain.partition_point(|(at, _)| at <= last));
        if prefix > 1 {
            self.held.sub(prune(chain, prefix, keep));
        }
        chain.push((version, Some(image)));
    }

    /// Whether one of the readers at `versions` sees of `page` what the base has.
    pub fn is_base_read(&self, page: PageNo, versions: &[u64]) -> bool {
        versions.iter().any(|version| self.find(page, *version).is_none())
    }

    /// Adds what the base has of `page`, and is about to lose.
    pub fn preserve(&mut self, page: PageNo, image: Image) {
        self.held.add(&image);
        let chain = self.chains.entry(page).or_default();
        match chain.iter_mut().find(|(_, image)| image.is_none()) {
            Some((_, mark)) => *mark = Some(image),
            None => chain.insert(0, (0, Some(image))),
        }
    }

    /// Drops the images of `page` above `version`: they never happened.
    pub fn rewind(&mut self, page: PageNo, version: u64) {
        if let Some(chain) = self.chains.get_mut(&page) {
            let kept = chain.partition_point(|(at, _)| *at <= version);
            // A mark is never above applied.
            self.held.sub(Held::of(chain.get(kept..).unwrap_or_default()));
            chain.truncate(kept);
            if chain.is_empty() {
                self.chains.remove(&page);
            }
        }
    }

    /// For each page that changed after the base and at or before `target`: its newest image.
    pub fn newest_up_to(&self, target: u64) -> Vec<(PageNo, Image)> {
        let mut pages: Vec<(PageNo, Image)> = self
            .chains
            .iter()
            .filter_map(|(page, chain)| match newest(chain, target)? {
                (at, Some(image)) if *at > self.base_version => Some((*page, image.clone())),
                _ => None,
            })
            .collect();
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages
    }

    /// The base is now at `version`, with `page_count` pages: drops what it holds, but for what
    /// the readers at the (ascending) versions in `keep` still need.
    pub fn folded(&mut self, version: u64, page_count: u32, keep: &[u64]) {
        let before = std::mem::replace(&mut self.base_version, version);
        let older = &keep[..keep.partition_point(|k| *k < version)];
        let (mut held, mut below) = (Held::default(), 0);
        self.chains.retain(|page, chain| {
            let mut prefix = chain.partition_point(|(at, _)| *at <= version);
            let folded = prefix.checked_sub(1).filter(|last| chain[*last].0 > before);
            if folded.is_some() || *page > page_count {
                // The base has another content now, or none; nobody needs the former one any more
                // who has not got it as an image.
                let former = chain.iter().position(|(_, image)| image.is_none());
                if let Some(mark) = former {
                    chain.remove(mark);
                    prefix -= 1;
                }
            }
            if folded.is_some() && *page <= page_count {
                chain[prefix - 1].1 = None;
            }
            prune(chain, prefix, older);
            held.sum(Held::of(chain));
            below += Held::of(&chain[..chain.partition_point(|(at, _)| *at <= version)]).total();
            !chain.is_empty()
        });
        if self.chains.capacity() > 4 * self.chains.len().max(1024) {
            self.chains.shrink_to_fit();
        }
        (self.held, self.below_base) = (held, below);
    }
}

fn newest(chain: &Chain, version: u64) -> Option<&(u64, Option<Image>)> {
    chain.get(chain.partition_point(|(at, _)| *at <= version).checked_sub(1)?)
}

/// Keeps, of the first `prefix` entries in `chain`, the mark, and for each of `keep` the newest at
/// or below it; a mark with nothing before it goes. Returns what was dropped.
fn prune(chain: &mut Chain, prefix: usize, keep: &[u64]) -> Held {
    let mut before = Held::of(chain);
    let mut needed: Vec<bool> = chain[..prefix].iter().map(|(_, image)| image.is_none()).collect();
    for version in keep {
        let at = chain.partition_point(|(v, _)| v <= version).min(prefix);
        if let Some(slot) = at.checked_sub(1).and_then(|i| needed.get_mut(i)) {
            *slot = true;
        }
    }
    if needed.contains(&false) {
        let mut flags = needed.into_iter();
        chain.retain(|_| flags.next().unwrap_or(true));
    }
    if chain.first().is_some_and(|(_, image)| image.is_none()) {
        chain.remove(0);
    }
    before.sub(Held::of(chain));
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(byte: u8) -> Image {
        Image::new(1, vec![byte; 16].into())
    }

    fn seen(overlay: &Overlay, version: u64) -> Option<u8> {
        overlay.find(1, version).map(|image| {
            let mut byte = [0];
            image.body.read(0, &mut byte).unwrap();
            byte[0]
        })
    }

    #[test]
    fn each_reader_keeps_its_image_and_no_other_is_kept() {
        let mut overlay = Overlay::new(0);
        for version in 1..=100 {
            let keep = [10, version - 1].map(|v: u64| v.min(version - 1));
            overlay.push(1, version, image(version as u8), &keep);
        }
        assert_eq!((seen(&overlay, 10), seen(&overlay, 100)), (Some(10), Some(100)));
        assert_eq!(overlay.held().total(), 3);
    }

    #[test]
    fn versions_above_applied_are_all_kept_and_a_rewind_drops_them() {
        let mut overlay = Overlay::new(0);
        for version in 1..=5 {
            overlay.push(1, version, image(version as u8), &[2]);
        }
        assert_eq!(seen(&overlay, 4), Some(4));
        overlay.rewind(1, 2);
        assert_eq!((seen(&overlay, 5), overlay.held().total()), (Some(2), 1));
    }

    /// An image kept for an old reader lay below the base after a fold and hid the folded page
    /// from readers of newer versions.
    #[test]
    fn an_old_image_never_hides_the_folded_page() {
        let mut overlay = Overlay::new(0);
        overlay.push(1, 3, image(3), &[3]);
        overlay.push(1, 8, image(8), &[3]);
        overlay.folded(8, 1, &[3, 8]);
        assert_eq!(
            (seen(&overlay, 3), seen(&overlay, 8), seen(&overlay, 9)),
            (Some(3), None, None)
        );
        overlay.push(1, 10, image(10), &[3, 8]);
        assert_eq!((seen(&overlay, 9), seen(&overlay, 10)), (None, Some(10)));
        assert_eq!((overlay.held().total(), overlay.len_below_base()), (2, 1));
        overlay.folded(9, 1, &[9]);
        assert_eq!((seen(&overlay, 10), overlay.held().total()), (Some(10), 1));
    }

    #[test]
    fn what_the_base_has_is_preserved_for_readers_below_the_fold() {
        let mut overlay = Overlay::new(4);
        overlay.push(1, 6, image(6), &[5]);
        assert!(overlay.is_base_read(1, &[5]));
        overlay.preserve(1, image(4));
        overlay.folded(6, 1, &[5]);
        assert_eq!((seen(&overlay, 5), seen(&overlay, 6)), (Some(4), None));
    }
    /// One image was preserved for the oldest reader, and that lay below the base: the reader at
    /// the base did not find it, and read the base while it was being overwritten.
    #[test]
    fn the_base_is_preserved_for_readers_on_both_sides_of_it() {
        let mut overlay = Overlay::new(4);
        overlay.folded(10, 1, &[7, 10]);
        overlay.push(1, 15, image(15), &[7, 10]);
        assert!(overlay.is_base_read(1, &[10]));
        overlay.preserve(1, image(10));
        let all = |overlay: &Overlay| [5, 7, 10, 13].map(|version| seen(overlay, version));
        assert_eq!(all(&overlay), [Some(10); 4]);
        overlay.folded(20, 1, &[5, 7, 10, 13]);
        assert_eq!(all(&overlay), [Some(10); 4]);
        overlay.folded(21, 1, &[21]);
        assert_eq!(overlay.held().total(), 0);
    }

    /// The image at 3, kept for the reader at 3, hid the page that was folded at 8 from the reader
    /// at 8, once the base was at 12.
    #[test]
    fn an_old_image_does_not_hide_the_base_after_it_has_moved_on() {
        let mut overlay = Overlay::new(0);
        overlay.push(1, 3, image(3), &[3]);
        overlay.push(1, 7, image(7), &[3, 6]);
        overlay.folded(8, 1, &[3, 8]);
        overlay.folded(12, 1, &[3, 8, 12]);
        assert_eq!([3, 8, 12].map(|version| seen(&overlay, version)), [Some(3), None, None]);
        overlay.push(1, 14, image(14), &[3, 8, 12]);
        assert!(overlay.is_base_read(1, &[3, 8, 12]));
        overlay.preserve(1, image(7));
        overlay.folded(15, 1, &[3, 8, 15]);
        let all = |overlay: &Overlay| [3, 8, 12, 15].map(|version| seen(overlay, version));
        assert_eq!(all(&overlay), [Some(3), Some(7), Some(7), None]);
        assert_eq!((overlay.held().total(), overlay.len_below_base()), (2, 2));
    }

    #[test]
    fn a_page_that_was_cut_off_is_not_the_bases() {
        let mut overlay = Overlay::new(0);
        overlay.push(9, 3, image(3), &[0]);
        overlay.folded(5, 4, &[3, 5]);
        assert_eq!(
            overlay.find(9, 3).map(|image| {
                let mut byte = [0];
                image.body.read(0, &mut byte).unwrap();
                byte[0]
            }),
            Some(3)
        );
        overlay.folded(6, 4, &[6]);
        assert_eq!(overlay.held().total(), 0);
    }
}
