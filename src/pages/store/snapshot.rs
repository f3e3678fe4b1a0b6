//! Snapshots of a database: versions that stay readable while somebody holds them, and how a page
//! is read at one.
//!
//! No write passes through here, and no lock is held while a file is read.
//!
//! *Invariant*: a snapshot is registered and its version read under one lock; bytes count only if
//! the snapshot was still good after they were copied.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::pages::PagesError;
use crate::pages::base_file::BaseRead;
use crate::pages::page::{Body, PageNo, page_hash};

use super::{Point, Store};

/// Whether the version that is being read still stands.
pub(in crate::pages) type Stands<'a> = &'a dyn Fn() -> Result<(), PagesError>;

/// The applied version, as apply itself reads it: it cannot go.
pub(in crate::pages) const APPLIED: Stands<'static> = &|| Ok(());

impl Store {
    /// A snapshot of the applied version.
    pub fn snapshot_applied(self: &Arc<Store>) -> Result<Snapshot, PagesError> {
        self.check_damage()?;
        let mut state = self.state.lock();
        let (point, epoch) = (state.applied, state.epoch);
        state.pin(point.version);
        Ok(Snapshot { store: self.clone(), point, epoch, of_applied: true })
    }

    /// A snapshot of the head. What is read from it must be held back until it is applied.
    pub fn snapshot_head(self: &Arc<Store>) -> Result<Snapshot, PagesError> {
        self.check_damage()?;
        let mut state = self.state.lock();
        let (point, epoch) = (state.head, state.epoch);
        state.pin(point.version);
        let of_applied = state.pending.is_empty();
        Ok(Snapshot { store: self.clone(), point, epoch, of_applied })
    }

    /// Whether `version`, seen in `epoch`, was not dropped by a rewind since.
    pub fn stands(&self, epoch: u64, version: u64) -> bool {
        epoch == self.epoch() || self.state.lock().survives(epoch, version)
    }

    /// A page at a version that stands as long as `stands` says so, into `out` (one page long);
    /// its hash. What a version that was dropped or given up reads from the base means nothing:
    /// only then a mismatch is no damage.
    pub(in crate::pages) fn read_page(
        &self,
        page: PageNo,
        version: u64,
        stands: Stands<'_>,
        out: &mut [u8],
    ) -> Result<u128, PagesError> {
        loop {
            let before = self.fold_count.load(Ordering::Acquire);
            if let Some(found) = self.find_image(page, version, out) {
                return found;
            }
            let read = self.base.read(page, out)?;
            // A fold may have overtaken this read; then the page may be a newer one or torn.
            if self.fold_count.load(Ordering::Acquire) != before {
                continue;
            }
            return match read {
                BaseRead::Good(hash) => Ok(hash),
                BaseRead::Mismatch => {
                    stands()?;
                    Err(self.set_damaged(format!("page {page} does not match its hash")))
                }
            };
        }
    }

    /// A page of the base as it is, for the readers below a fold that is about to overwrite it.
    pub(in crate::pages) fn read_base(
        &self,
        page: PageNo,
        out: &mut [u8],
    ) -> Result<u128, PagesError> {
        match self.base.read(page, out)? {
            BaseRead::Good(hash) => Ok(hash),
            BaseRead::Mismatch => {
                Err(self.set_damaged(format!("page {page} does not match its hash")))
            }
        }
    }

    /// A page's image in the overlay, into `out`.
    fn find_image(
        &self,
        page: PageNo,
        version: u64,
        out: &mut [u8],
    ) -> Option<Result<u128, PagesError>> {
        let overlay = self.overlay.read();
        let image = overlay.find(page, version)?;
        if let Body::Heap(bytes) = &image.body {
            out.copy_from_slice(bytes);
            return Some(Ok(image.hash));
        }
        // Not to hold the lock while a file is read.
        let image = image.clone();
        drop(overlay);
        Some(match image.body.read(0, out) {
            Ok(()) if page_hash(page, out) == image.hash => Ok(image.hash),
            Ok(()) => Err(self.set_damaged(format!("the image of page {page} was changed"))),
            Err(error) => Err(error.into()),
        })
    }

    /// The hash of a page at a version, without reading the page.
    pub(in crate::pages) fn hash_of(
        &self,
        page: PageNo,
        version: u64,
        stands: Stands<'_>,
    ) -> Result<u128, PagesError> {
        loop {
            let before = self.fold_count.load(Ordering::Acquire);
            if let Some(image) = self.overlay.read().find(page, version) {
                return Ok(image.hash);
            }
            let hash = self.base.hash(page)?;
            if self.fold_count.load(Ordering::Acquire) != before {
                continue;
            }
            if hash.is_none() {
                stands()?;
            }
            return hash
                .ok_or_else(|| self.set_damaged(format!("the hash of page {page} is missing")));
        }
    }
}

/// A registered view of one version. Its pages stay readable until it is dropped.
pub struct Snapshot {
    pub(super) store: Arc<Store>,
    pub(super) point: Point,
    pub(super) epoch: u64,
    /// The version was applied when this was taken: no rewind drops it.
    pub(super) of_applied: bool,
}

impl Snapshot {
    /// The version it shows.
    pub fn point(&self) -> Point {
        self.point
    }

    /// The epoch it was taken in.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The database it is of.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Reads bytes of a page, from `offset` within it. `false` when there is no such page.
    pub fn read(&self, page: PageNo, offset: usize, out: &mut [u8]) -> Result<bool, PagesError> {
        self.check()?;
        if page == 0 || page > self.point.page_count {
            return Ok(false);
        }
        let (version, stands): (u64, Stands<'_>) = (self.point.version, &|| self.check());
        if offset == 0 && out.len() == self.store.page_size {
            self.store.read_page(page, version, stands, out)?;
        } else {
            let mut whole = vec![0; self.store.page_size];
            self.store.read_page(page, version, stands, &mut whole)?;
            let end = offset.saturating_add(out.len());
            let part = whole.get(offset..end).ok_or(PagesError::Refused("a read across pages"))?;
            out.copy_from_slice(part);
        }
        // The bytes count only if the snapshot was still good after they were copied.
        self.check()?;
        Ok(true)
    }

    /// Whether it is what a transaction that writes now must begin on.
    pub fn is_head(&self) -> bool {
        let state = self.store.state.lock();
        state.epoch == self.epoch && state.head == self.point
    }

    /// The hash of a page, without reading it. The page must exist.
    pub fn hash(&self, page: PageNo) -> Result<u128, PagesError> {
        self.store.hash_of(page, self.point.version, &|| self.check())
    }

    /// Whether its version still stands and its pages are still kept.
    pub fn check(&self) -> Result<(), PagesError> {
        if !self.of_applied && !self.store.stands(self.epoch, self.point.version) {
            return Err(PagesError::Rewound);
        }
        if self.point.version < self.store.oldest_readable.load(Ordering::Acquire) {
            return Err(PagesError::SnapshotTooOld);
        }
        Ok(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.store.state.lock().unpin(self.point.version);
    }
}
