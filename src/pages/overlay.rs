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
    images: usize,
    /// How many of them were at or below the base when it last moved.
    below_base: usize,
}

impl Overlay {
    /// Nothing above a base at `base_version`.
    pub fn new(base_version: u64) -> Overlay {
        Overlay { chains: PageMap::default(), base_version, images: 0, below_base: 0 }
    }

    /// How many images are held.
    pub fn len(&self) -> usize {
        self.images
    }

    /// The image of `page` that a snapshot at `version` sees, if it is not the base's.
    pub fn find(&self, page: PageNo, version: u64) -> Option<&Image> {
        let chain = self.chains.get(&page)?;
        let newest = chain.partition_point(|(at, _)| *at <= version).checked_sub(1)?;
        let (at, image) = chain.get(newest)?;
        // An older image kept for an older reader must not hide the folded page from newer ones.
        (*at > self.base_version || version < self.base_version).then_some(image)
    }

    /// Adds the newest image of a page and drops those of it that nobody needs: of the versions
    /// in `keep` (ascending) each keeps the newest image at or below it, and all above the last
    /// of `keep` stay.
    pub fn push(&mut self, page: PageNo, version: u64, image: Image, keep: &[u64]) {
        let chain = self.chains.entry(page).or_default();
        debug_assert!(chain.last().is_none_or(|(last, _)| *last < version));
        // Up to the last of `keep`; one image alone there is needed by it.
        let prefix = keep.last().map_or(0, |last| chain.partition_point(|(at, _)| at <= last));
        if prefix > 1 {
            self.images -= prune(chain, prefix, keep);
        }
        chain.push((version, image));
        self.images += 1;
    }

    /// Adds the image that the base has now as that of `version`, one of
    /// [`Overlay::readers_of_base`].
    pub fn preserve(&mut self, page: PageNo, version: u64, image: Image) {
        let chain = self.chains.entry(page).or_default();
        let at = chain.partition_point(|(v, _)| *v < version);
        debug_assert!(chain.get(at).is_none_or(|(v, _)| *v != version));
        chain.insert(at, (version, image));
        self.images += 1;
    }

    /// Drops the images of `page` above `version`: they never happened.
    pub fn rewind(&mut self, page: PageNo, version: u64) {
        if let Some(chain) = self.chains.get_mut(&page) {
            let kept = chain.partition_point(|(at, _)| *at <= version);
            self.images -= chain.len() - kept;
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
                let newest = chain.partition_point(|(at, _)| *at <= target).checked_sub(1)?;
                let (at, image) = chain.get(newest)?;
                (*at > self.base_version).then(|| (*page, image.clone()))
            })
            .collect();
        pages.sort_unstable_by_key(|(page, _)| *page);
        pages
    }

    /// Of the readers at the (ascending) `versions`, all older than the base will be, those to
    /// preserve the base's present image of `page` for, so that all who read it from the base
    /// find it here: the oldest, and the oldest of those that the base is not newer than, for an
    /// image below the base does not count for them.
    pub fn readers_of_base(&self, page: PageNo, versions: &[u64]) -> Vec<u64> {
        let reads_base = |version: &&u64| self.find(page, **version).is_none();
        let (below, above) =
            versions.split_at(versions.partition_point(|version| *version < self.base_version));
        let oldest = [below, above].map(|versions| versions.iter().find(reads_base).copied());
        oldest.into_iter().flatten().collect()
    }

    /// How many images are held that only readers older than the base see.
    pub fn len_below_base(&self) -> usize {
        self.below_base
    }

    /// The base is now at `version`: drops what it holds, but for what the readers at the
    /// (ascending) versions in `keep` still need.
    pub fn folded(&mut self, version: u64, keep: &[u64]) {
        self.base_version = version;
        let older = &keep[..keep.partition_point(|k| *k < version)];
        let (mut images, mut below) = (0, 0);
        self.chains.retain(|_, chain| {
            let prefix = chain.partition_point(|(at, _)| *at <= version);
            below += prefix - prune(chain, prefix, older);
            images += chain.len();
            !chain.is_empty()
        });
        (self.images, self.below_base) = (images, below);
    }
}

/// Keeps, of the first `prefix` images in `chain`, for each of `keep` the newest at or below it.
/// Returns how many were dropped.
fn prune(chain: &mut Chain, prefix: usize, keep: &[u64]) -> usize {
    let mut needed = vec![false; prefix];
    for version in keep {
        let at = chain.partition_point(|(v, _)| v <= version).min(prefix);
        if let Some(slot) = at.checked_sub(1).and_then(|i| needed.get_mut(i)) {
            *slot = true;
        }
    }
    let before = chain.len();
    if needed.contains(&false) {
        let mut flags = needed.into_iter();
        chain.retain(|_| flags.next().unwrap_or(true));
    }
    before - chain.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(byte: u8) -> Image {
        Image::new(1, vec![byte; 16].into())
    }

    fn seen(overlay: &Overlay, version: u64) -> Option<u8> {
        overlay.find(1, version).map(|image| image.bytes[0])
    }

    #[test]
    fn each_reader_keeps_its_image_and_no_other_is_kept() {
        let mut overlay = Overlay::new(0);
        for version in 1..=100 {
            let keep = [10, version - 1].map(|v: u64| v.min(version - 1));
            overlay.push(1, version, image(version as u8), &keep);
        }
        assert_eq!((seen(&overlay, 10), seen(&overlay, 100)), (Some(10), Some(100)));
        assert_eq!(overlay.len(), 3);
    }

    #[test]
    fn versions_above_applied_are_all_kept_and_a_rewind_drops_them() {
        let mut overlay = Overlay::new(0);
        for version in 1..=5 {
            overlay.push(1, version, image(version as u8), &[2]);
        }
        assert_eq!(seen(&overlay, 4), Some(4));
        overlay.rewind(1, 2);
        assert_eq!((seen(&overlay, 5), overlay.len()), (Some(2), 1));
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
        assert_eq!((overlay.len(), overlay.len_below_base()), (2, 1));
        overlay.folded(9, &[9]);
        assert_eq!((seen(&overlay, 10), overlay.len()), (Some(10), 1));
    }

    #[test]
    fn what_the_base_has_is_preserved_for_readers_below_the_fold() {
        let mut overlay = Overlay::new(4);
        overlay.push(1, 6, image(6), &[5]);
        assert_eq!(overlay.readers_of_base(1, &[5]), [5]);
        overlay.preserve(1, 5, image(4));
        overlay.folded(6, &[5]);
        assert_eq!((seen(&overlay, 5), seen(&overlay, 6)), (Some(4), None));
    }
    /// One image was preserved for the oldest reader, and that lay below the base: the reader
    /// above the base did not find it, and read the base while it was being overwritten.
    #[test]
    fn the_base_is_preserved_for_readers_on_both_sides_of_it() {
        let mut overlay = Overlay::new(4);
        overlay.folded(10, &[7, 10]);
        overlay.push(1, 15, image(15), &[7, 12]);
        assert_eq!(overlay.readers_of_base(1, &[5, 7, 12, 13]), [5, 12]);
        overlay.preserve(1, 5, image(10));
        overlay.preserve(1, 12, image(10));
        for version in [5, 7, 12, 13] {
            assert_eq!(seen(&overlay, version), Some(10));
        }
        overlay.folded(20, &[5, 7, 12, 13]);
        for version in [5, 7, 12, 13] {
            assert_eq!(seen(&overlay, version), Some(10));
        }
    }
}
