//! Freezing: what a transaction wrote becomes a delta with an identity, ready to be published.
//!
//! *Invariant*: nothing here waits while the publish permit is held; whatever can fail has been
//! done before the permit is taken; no more than [`limits::TRANSACTION_HEAP_BYTES_MAX`] of a
//! transaction's pages and one part of its delta are in memory.

use std::io;
use std::sync::Arc;

use crate::base::{DeltaId, limits};

use super::PagesError;
use super::delta::{self, DeltaHeader};
use super::encoded::{Encoded, Ended, Writer};
use super::overlay::PageMap;
use super::page::{Body, Image, PageNo, page_hash};
use super::spill::Spill;
use super::store::{Point, Snapshot, Stands, Store};

/// Before this much more of a transaction is kept, the room on the disk is looked at.
const ROOM_LOOK_BYTES: u64 = 1 << 20;

/// What a transaction of some size still needs on the disk at most: its delta in the log, its
/// pages in a checkpoint's file, and the growth of the base.
const ROOM_FACTOR: u64 = 3;

/// What a transaction wrote: its pages and how many pages there are afterwards.
pub struct Freeze {
    pages: PageMap<Body>,
    page_count: u32,
    spill: Spill,
    store: Arc<Store>,
    bytes: u64,
}

impl Freeze {
    /// Nothing written yet, on a database of `page_count` pages.
    pub fn new(store: &Arc<Store>, page_count: u32) -> Freeze {
        let spill = Spill::new(store.spill(), store.heap_room());
        Freeze { pages: PageMap::default(), page_count, spill, store: store.clone(), bytes: 0 }
    }

    /// Pages in the database afterwards.
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Bytes of the pages written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A written page.
    pub fn page(&self, page: PageNo) -> Option<&Body> {
        self.pages.get(&page)
    }

    /// Writes a page. `StorageFull` when the disk has no room for a transaction of this size.
    pub fn write(&mut self, page: PageNo, content: &[u8]) -> io::Result<()> {
        self.page_count = self.page_count.max(page);
        match self.pages.get_mut(&page) {
            // Nobody else sees a page that is not frozen.
            Some(Body::File { file, offset }) => return file.overwrite(content, *offset),
            Some(Body::Heap(bytes)) => {
                *bytes = content.into();
                return Ok(());
            }
            None => {}
        }
        let before = self.bytes;
        self.bytes += content.len() as u64;
        if before / ROOM_LOOK_BYTES != self.bytes / ROOM_LOOK_BYTES
            && self.store.spill().room().beyond_bytes() < self.bytes * ROOM_FACTOR
        {
            let what = "the disk has no room for a transaction of this size";
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        self.pages.insert(page, self.spill.keep(content)?);
        Ok(())
    }

    /// Cuts the database to `page_count` pages.
    pub fn truncate(&mut self, page_count: u32) {
        self.page_count = page_count;
        self.pages.retain(|page, _| *page <= page_count);
    }

    /// From now on there are as many pages as page 1 announces, where it was written.
    pub fn announce(&mut self) -> io::Result<()> {
        if let Some(first) = self.pages.get(&1) {
            let mut count = [0; 4];
            first.read(28, &mut count)?;
            self.page_count = u32::from_be_bytes(count);
        }
        Ok(())
    }

    /// The pages that the delta has to look at, ascending: those written, and those that came
    /// into being by growth without being written.
    fn page_numbers(&self, page_count_before: u32) -> Vec<PageNo> {
        let mut numbers: Vec<PageNo> =
            self.pages.keys().copied().filter(|page| *page <= self.page_count).collect();
        let grown = page_count_before + 1..=self.page_count;
        numbers.extend(grown.filter(|page| !self.pages.contains_key(page)));
        numbers.sort_unstable();
        numbers
    }
}

/// What was built of a transaction before it has an identity.
struct Built {
    page_count: u32,
    digest: u128,
    pages: Ended,
    images: Vec<(PageNo, Image)>,
}

impl Store {
    /// How much of a new transaction may be kept in memory.
    pub(super) fn heap_room(&self) -> usize {
        let held = self.overlay.read().held().heap * self.page_size();
        limits::OVERLAY_HEAP_BYTES_MAX.saturating_sub(held)
    }

    /// Turns what a transaction wrote on top of `snapshot` into a delta, with the publish permit
    /// held: from now on nothing can refuse it, and nothing may wait, until it is published or
    /// dropped. `None` when nothing differs.
    pub fn freeze(
        &self,
        snapshot: &Snapshot,
        write: &Freeze,
    ) -> Result<Option<Frozen>, PagesError> {
        self.check_damage()?;
        let before = snapshot.point();
        let stands: Stands<'_> = &|| snapshot.check();
        let page_count = write.page_count;
        let numbers = write.page_numbers(before.page_count);
        let mut out = Writer::new(self.spill());
        let mut images = Vec::with_capacity(numbers.len());
        let mut digest = before.digest;
        let mut buffers = (vec![0; self.page_size()], Vec::new());
        let mut zeros: Option<Body> = None;
        for page in numbers {
            let body = match write.pages.get(&page) {
                Some(body) => body,
                None => zeros.get_or_insert_with(|| Body::Heap(vec![0; self.page_size()].into())),
            };
            let (old, new_buffer) = &mut buffers;
            if body.is_spilled() {
                new_buffer.resize(self.page_size(), 0);
            }
            let new = body.load(new_buffer)?;
            if page == 1 {
                self.check_first_page(new, page_count)?;
            }
            if page <= before.page_count {
                let old_hash = self.read_page(page, before.version, stands, old)?;
                if !delta::encode_changed(page, old, new, out.page()) {
                    continue;
                }
                digest ^= old_hash;
            } else {
                delta::encode_whole(page, new, out.page());
            }
            out.page_done()?;
            let hash = page_hash(page, new);
            digest ^= hash;
            images.push((page, Image { body: body.clone(), hash }));
        }
        for page in page_count + 1..=before.page_count {
            digest ^= self.hash_of(page, before.version, stands)?;
        }
        if images.is_empty() && page_count == before.page_count {
            return Ok(None);
        }
        let pages = out.end()?;
        self.stamp(snapshot, Built { page_count, digest, pages, images }).map(Some)
    }

    /// Takes the publish permit, checks that the snapshot is still the head of an open epoch and
    /// gives the delta its identity.
    fn stamp(&self, snapshot: &Snapshot, built: Built) -> Result<Frozen, PagesError> {
        let Built { page_count, digest, pages, images } = built;
        let changed_count = u32::try_from(images.len())
            .map_err(|_| PagesError::Refused("too many pages in one transaction"))?;
        let permit = self.take_permit();
        let (term, sequence) = self.identify(snapshot)?;
        let id = DeltaId { term, sequence };
        let before = snapshot.point();
        let header = DeltaHeader {
            database: self.id(),
            id,
            parent: before.delta,
            base_version: before.version,
            page_count,
            digest_before: before.digest,
            digest_after: digest,
            changed_count,
        };
        let point = Point { version: before.version + 1, page_count, digest, delta: id };
        // The permit outlives this borrow: it is given back by publish or by dropping `Frozen`.
        std::mem::forget(permit);
        let permit = Permit { store: snapshot.store().clone() };
        Ok(Frozen { permit, point, images, encoded: pages.stamp(&header) })
    }

    fn check_first_page(&self, page: &[u8], page_count: u32) -> Result<(), PagesError> {
        let [.., high, low, write_version, read_version, reserved] = &page[..21] else {
            return Err(PagesError::Refused("the first page is too short"));
        };
        // The value 1 in the header stands for 65,536.
        let header_size = match u16::from_be_bytes([*high, *low]) {
            1 => 65_536,
            size => usize::from(size),
        };
        if header_size != self.page_size() {
            return Err(PagesError::Refused("the page size of a database cannot be changed"));
        }
        if (*write_version, *read_version) != (1, 1) || *reserved != 0 {
            return Err(PagesError::Refused("the file format of a database cannot be changed"));
        }
        let mut count = [0; 4];
        count.copy_from_slice(&page[28..32]);
        if u32::from_be_bytes(count) != page_count {
            return Err(PagesError::Refused("the page count in the header is not the file's"));
        }
        Ok(())
    }
}

/// The publish permit, held between freezing and publishing.
pub(super) struct Permit {
    store: Arc<Store>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.store.release_permit();
    }
}

/// A delta that is ready to be published. Dropping it instead is a rollback.
pub struct Frozen {
    pub(super) permit: Permit,
    pub(super) point: Point,
    pub(super) images: Vec<(PageNo, Image)>,
    pub(super) encoded: Encoded,
}

impl Frozen {
    /// The version it will make.
    pub fn point(&self) -> Point {
        self.point
    }
}
