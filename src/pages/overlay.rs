//! The overlay: images of pages at versions newer than the base, and older ones for as long as a
//! reader needs them.
//!
//! *Invariant*: in a chain versions ascend; an image that a live snapshot resolves to is never
//! dropped.

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

type Chain = Vec<(u64, Image)>;

/// Images by page and version, and the version of the base that they lie on.
pub struct Overlay {
    chains: PageMap<Chain>,
    base_version: u64,
    held: Held,
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
    fn add(&mut self, image: &Image) {
        if image.body.is_spilled() {
            self.spilled += 1;
        } else {
            self.heap += 1;
        }
    }

    fn of(chain: &[(u64, Image)]) -> Held {
        let mut held = Held::default();
        chain.iter().for_each(|(_, image)| held.add(image));
        held
    }

    fn sub(&mut self, less: Held) {
        self.heap -= less.heap;
        self.spilled -= less.spilled;
    }

    /// In memory and in files.
    #[cfg(test)]
    pub fn total(&self) -> usize {
        self.heap + self.spilled
    }
}

impl Overlay {
    /// Nothing above a base at `base_version`.
    pub fn new(base_version: u64) -> Overlay {
        Overlay { chains: PageMap::default(), base_version, held: Held::default() }
    }

    /// The version of the base file that absent images are read from.
    pub fn base_version(&self) -> u64 {
        self.base_version
    }

    /// How many images are held.
    pub fn held(&self) -> Held {
        self.held
    }

    /// The image of `page` that a snapshot at `version` sees, if it is not the base's.
    pub fn find(&self, page: PageNo, version: u64) -> Option<&Image> {
        let chain = self.chains.get(&page)?;
        let (at, image) = chain.iter().rev().find(|(at, _)| *at <= version)?;
        // An older image kept for an older reader must not hide the folded page from newer ones.
        (*at > self.base_version || version < self.base_version).then_some(image)
    }

    /// Adds the newest image of a page and drops those of it that nobody needs: of the versions
    /// in `keep` (ascending) each keeps the newest image at or below it, and all above the last
    /// of `keep` stay.
    pub fn push(&mut self, page: PageNo, version: u64, image: Image, keep: &[u64]) {
        self.held.add(&image);
        // Most pages have one image, and a large transaction has many pages.
        let chain = self.chains.entry(page).or_insert_with(|| Vec::with_capacity(1));
        debug_assert!(chain.last().is_none_or(|(last, _)| *last < version));
        self.held.sub(prune(chain, keep));
        chain.push((version, image));
    }

    /// Adds the image that the base has now, for readers at `version` and above (the oldest that
    /// reads this page from the base), below the version that is being folded over it.
    pub fn preserve(&mut self, page: PageNo, version: u64, image: Image) {
        let chain = self.chains.entry(page).or_default();
        let at = chain.partition_point(|(v, _)| *v < version);
        debug_assert!(chain.get(at).is_none_or(|(v, _)| *v != version));
        self.held.add(&image);
        chain.insert(at, (version, image));
    }

    /// Drops the images of `page` above `version`: they never happened.
    pub fn rewind(&mut self, page: PageNo, version: u64) {
        if let Some(chain) = self.chains.get_mut(&page) {
            let kept = chain.partition_point(|(at, _)| *at <= version);
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
            .filter_map(|(page, chain)| {
                let (at, image) = chain.iter().rev().find(|(at, _)| *at <= target)?;
                (*at > self.base_version).then(|| (*page, image.clone()))
            })
            .collect();
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages
    }

    /// Whether a reader at `version`, older than the base will be, would read `page` from the
    /// base as it is now.
    pub fn reads_base(&self, page: PageNo, version: u64) -> bool {
        self.find(page, version).is_none()
    }

    /// The base is now at `version`: drops what it holds, but for what the readers at the
    /// (ascending) versions in `keep` still need.
    pub fn folded(&mut self, version: u64, keep: &[u64]) {
        self.base_version = version;
        let older: Vec<u64> = keep.iter().copied().filter(|k| *k < version).collect();
        let mut held = Held::default();
        self.chains.retain(|_, chain| {
            let above = chain.partition_point(|(at, _)| *at <= version);
            let mut kept: Chain = chain.drain(above..).collect();
            prune_all(chain, &older);
            chain.append(&mut kept);
            chain.iter().for_each(|(_, image)| held.add(image));
            !chain.is_empty()
        });
        if self.chains.capacity() > 4 * self.chains.len().max(1024) {
            self.chains.shrink_to_fit();
        }
        self.held = held;
    }

    /// Drops every image below `version` that only readers older than it needed.
    pub fn evict_below(&mut self, version: u64) {
        let base = self.base_version;
        let mut held = Held::default();
        self.chains.retain(|_, chain| {
            if version <= base {
                chain.retain(|(at, _)| *at >= version || *at > base);
            }
            chain.iter().for_each(|(_, image)| held.add(image));
            !chain.is_empty()
        });
        self.held = held;
    }
}

/// Keeps, of the images in `chain`, those above the last of `keep` and for each of `keep` the
/// newest at or below it. Returns what was dropped.
fn prune(chain: &mut Chain, keep: &[u64]) -> Held {
    let mut before = Held::of(chain);
    if chain.len() < 2 {
        return Held::default();
    }
    let Some(last) = keep.last() else { return Held::default() };
    let above = chain.partition_point(|(at, _)| at <= last);
    let mut newer: Chain = chain.drain(above..).collect();
    prune_all(chain, keep);
    chain.append(&mut newer);
    before.sub(Held::of(chain));
    before
}

/// Keeps only, for each of `keep`, the newest image at or below it.
fn prune_all(chain: &mut Chain, keep: &[u64]) {
    let mut needed = vec![false; chain.len()];
    for version in keep {
        let at = chain.partition_point(|(v, _)| v <= version);
        if let Some(slot) = at.checked_sub(1).and_then(|i| needed.get_mut(i)) {
            *slot = true;
        }
    }
    let mut flags = needed.into_iter();
    chain.retain(|_| flags.next().unwrap_or(true));
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
        overlay.folded(8, &[3, 8]);
        assert_eq!(
            (seen(&overlay, 3), seen(&overlay, 8), seen(&overlay, 9)),
            (Some(3), None, None)
        );
        overlay.push(1, 10, image(10), &[3, 8]);
        assert_eq!((seen(&overlay, 9), seen(&overlay, 10)), (None, Some(10)));
        overlay.evict_below(8);
        assert_eq!((seen(&overlay, 10), overlay.held().total()), (Some(10), 1));
    }

    #[test]
    fn what_the_base_has_is_preserved_for_readers_below_the_fold() {
        let mut overlay = Overlay::new(4);
        overlay.push(1, 6, image(6), &[5]);
        assert!(overlay.reads_base(1, 5));
        overlay.preserve(1, 5, image(4));
        overlay.folded(6, &[5]);
        assert_eq!((seen(&overlay, 5), seen(&overlay, 6)), (Some(4), None));
    }
}
