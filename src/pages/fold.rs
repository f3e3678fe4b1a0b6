//! The checkpoint of one database: folding the overlay's images into the base file.
//!
//! 1. pin the target (what is applied now) and reserve the base's growth;
//! 2. write `NAME.ckpt.tmp` with every page that changes and its hash; fsync;
//! 3. rename it to `NAME.ckpt`, fsync the directory: *the commit point*;
//! 4. copy the pages into the base and `NAME.sum`, set the length, fsync;
//! 5. (the caller writes the node's checkpoint record);
//! 6. unlink `NAME.ckpt`.
//!
//! After a crash a whole `NAME.ckpt` is done again from step 4: a base that was being overwritten
//! is never needed as it was.
//!
//! *Invariant*: a page is overwritten in the base only when its new image is durable in
//! `NAME.ckpt`, and after its old image was kept for the readers that still see it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::planted::{Bug, planted};
use crate::base::{DatabaseId, DeltaId, limits};
use crate::codec::Reader;
use crate::disk::{Disk, DiskFile, SqliteLock, read_exact_at};

use super::PagesError;
use super::base_file::BaseFile;
use super::page::{Image, PageNo, page_hash};
use super::spill::Spill;
use super::store::{Place, Point, Store};

pub(super) const MAGIC: &[u8; 8] = b"QUIRECK1";
const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a position: see [`encode_folded`].
const FOLDED_BYTES: usize = 8 + 4 + 16 + 16 + 8 + 4;

/// Bytes before the pages of a checkpoint file.
const HEADER_BYTES: usize = MAGIC.len() + 8 + FOLDED_BYTES + 4 + 4;

/// Bytes before each page of it: number and hash.
const PAGE_HEADER_BYTES: usize = 4 + 16;

/// What a base file is at: what the checkpoint record says of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folded {
    /// The version in the base.
    pub point: Point,
    /// Where the delta that made it stands in the log.
    pub place: Place,
}

/// A pinned target of a fold.
pub(super) struct Target {
    store: Arc<Store>,
    folded: Folded,
}

impl Target {
    /// The version to be folded up to.
    pub(super) fn version(&self) -> u64 {
        self.folded.point.version
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.store.state.lock().unpin(self.folded.point.version);
    }
}

pub(super) fn ckpt_path(name: &str) -> String {
    format!("databases/{name}.ckpt")
}

fn temporary_path(name: &str) -> String {
    format!("databases/{name}.ckpt.tmp")
}

impl Store {
    /// Pins what is applied now as the target of a fold.
    pub(super) fn fold_target(self: &Arc<Store>) -> Target {
        let mut state = self.state.lock();
        let point = if planted(Bug::FoldOfHead) { state.head } else { state.applied };
        let folded = Folded { point, place: state.place };
        state.pin(folded.point.version);
        Target { store: self.clone(), folded }
    }

    /// Folds up to a pinned target: steps 1 to 4. Returns what the base is at now.
    pub(super) fn fold(&self, target: &Target) -> Result<Folded, PagesError> {
        let _one_at_a_time = self.folding.lock();
        let point = target.folded.point;
        let (base_before, base_place) = {
            let state = self.state.lock();
            (state.base, state.base_place)
        };
        if point.version <= base_before.version || self.damage().is_some() {
            // An idle database costs nothing, a damaged one stays where it is.
            return Ok(Folded { point: base_before, place: base_place });
        }
        let mut pages = self.overlay.read().newest_up_to(point.version);
        pages.retain(|(page, _)| *page <= point.page_count);
        self.base.allocate(point.page_count)?;
        if let Err(error) = self.write_ckpt(&target.folded, &pages) {
            // Not to leave a full disk fuller.
            let _ = self.disk.remove(&temporary_path(self.name().as_str()));
            return Err(error);
        }
        let copied = self.copy_into_base(&target.folded, base_before, &pages);
        self.base.lock(SqliteLock::Reserved)?;
        copied?;
        Ok(target.folded)
    }

    /// Step 6, once the checkpoint record is durable. A base that was left half copied needs the
    /// file still.
    pub(super) fn forget_ckpt(&self) -> io::Result<()> {
        if self.half_copied.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.disk.remove(&ckpt_path(self.name().as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write_ckpt(&self, folded: &Folded, pages: &[(PageNo, Image)]) -> Result<(), PagesError> {
        let path = ckpt_path(self.name().as_str());
        let temporary = temporary_path(self.name().as_str());
        let file = self.disk.create(&temporary)?;
        let mut chunk = encode_header(self.id(), folded, self.page_size(), pages.len());
        let (mut offset, mut crc) = (0, 0);
        let mut flush = |chunk: &mut Vec<u8>| -> io::Result<()> {
            crc = crc32c::crc32c_append(crc, chunk);
            file.write_at(chunk, offset)?;
            offset += chunk.len() as u64;
            chunk.clear();
            Ok(())
        };
        let mut buffer = vec![0; self.page_size()];
        for (page, image) in pages {
            chunk.extend_from_slice(&page.to_le_bytes());
            chunk.extend_from_slice(&image.hash.to_le_bytes());
            chunk.extend_from_slice(image.body.load(&mut buffer)?);
            if chunk.len() >= CHUNK_BYTES {
                flush(&mut chunk)?;
            }
        }
        flush(&mut chunk)?;
        file.write_at(&crc.to_le_bytes(), offset)?;
        if !planted(Bug::CheckpointFileUnsynced) {
            file.sync()?;
        }
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_dir("databases")?;
        Ok(())
    }

    fn copy_into_base(
        &self,
        folded: &Folded,
        base_before: Point,
        pages: &[(PageNo, Image)],
    ) -> Result<(), PagesError> {
        let point = folded.point;
        self.preserve_for_readers(point, base_before, pages)?;
        self.base.lock(SqliteLock::Exclusive)?;
        self.fold_count.fetch_add(1, Ordering::AcqRel);
        let mut buffer = vec![0; self.page_size()];
        self.half_copied.store(true, Ordering::Release);
        let written = pages
            .iter()
            .try_for_each(|(page, image)| {
                self.base.write(*page, image.body.load(&mut buffer)?, image.hash)
            })
            .and_then(|()| self.base.finish(point.page_count));
        if written.is_ok() {
            let mut overlay = self.overlay.write();
            let mut state = self.state.lock();
            (state.base, state.base_place) = (point, folded.place);
            let keep = state.keep();
            overlay.folded(point.version, point.page_count, &keep);
            self.half_copied.store(false, Ordering::Release);
        }
        self.fold_count.fetch_add(1, Ordering::AcqRel);
        Ok(written?)
    }

    /// Keeps the old images of pages about to be overwritten or cut off, for the readers below
    /// the target that would read them from the base.
    fn preserve_for_readers(
        &self,
        point: Point,
        base_before: Point,
        pages: &[(PageNo, Image)],
    ) -> Result<(), PagesError> {
        if planted(Bug::FoldOverReaders) {
            return Ok(());
        }
        let mut readers = self.readers_below(point.version);
        let cut_off = point.page_count + 1..=base_before.page_count;
        let overwritten = pages.iter().map(|(page, _)| *page);
        let mut kept_bytes = (self.overlay.read().len_below_base() * self.page_size()) as u64;
        let mut spill = Spill::unbounded(self.spill(), 0);
        let mut content = vec![0; self.page_size()];
        for page in overwritten.chain(cut_off).filter(|page| *page <= base_before.page_count) {
            if readers.is_empty() {
                return Ok(());
            }
            if kept_bytes > limits::PRESERVED_BYTES_MAX {
                tracing::warn!(database = %self.name(), oldest_version = readers[0],
                    "readers are too far behind a checkpoint; their snapshots are given up");
                self.give_up_below(point.version);
                readers.clear();
                continue;
            }
            if !self.overlay.read().is_base_read(page, &readers) {
                continue;
            }
            let hash = self.read_base(page, &mut content)?;
            let image = Image { body: spill.keep_anyway(&content), hash };
            kept_bytes += content.len() as u64;
            self.overlay.write().preserve(page, image);
        }
        Ok(())
    }

    /// From now on snapshots below `version` cannot be read, and nothing is kept for them.
    fn give_up_below(&self, version: u64) {
        let mut state = self.state.lock();
        state.oldest_readable = state.oldest_readable.max(version);
        self.oldest_readable.store(state.oldest_readable, Ordering::Release);
    }

    fn readers_below(&self, version: u64) -> Vec<u64> {
        let mut keep = self.state.lock().keep();
        keep.retain(|reader| *reader < version);
        keep
    }
}

fn encode_header(id: DatabaseId, folded: &Folded, page_size: usize, count: usize) -> Vec<u8> {
    let Folded { point, place } = folded;
    let mut out = Vec::with_capacity(CHUNK_BYTES + page_size + 64);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&id.to_le_bytes());
    encode_folded(point, place, &mut out);
    out.extend_from_slice(&u32::try_from(page_size).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    out
}

/// Appends a position: version, page count, digest, delta id, place in the log.
pub(super) fn encode_folded(point: &Point, place: &Place, out: &mut Vec<u8>) {
    out.extend_from_slice(&point.version.to_le_bytes());
    out.extend_from_slice(&point.page_count.to_le_bytes());
    out.extend_from_slice(&point.digest.to_le_bytes());
    out.extend_from_slice(&point.delta.term.to_le_bytes());
    out.extend_from_slice(&point.delta.sequence.to_le_bytes());
    out.extend_from_slice(&place.index.to_le_bytes());
    out.extend_from_slice(&place.ordinal.to_le_bytes());
}

/// Reads what [`encode_folded`] wrote.
pub(super) fn decode_folded(reader: &mut Reader<'_>) -> Result<Folded, crate::codec::Malformed> {
    Ok(Folded {
        point: Point {
            version: reader.u64()?,
            page_count: reader.u32()?,
            digest: reader.u128()?,
            delta: DeltaId { term: reader.u64()?, sequence: reader.u64()? },
        },
        place: Place { index: reader.u64()?, ordinal: reader.u32()? },
    })
}

/// Does a fold again that a crash interrupted after its commit point. `None` when there is no
/// whole `NAME.ckpt` of this database, or the base is beyond it already.
pub(super) fn redo(
    disk: &dyn Disk,
    id: DatabaseId,
    name: &str,
    page_size: usize,
    recorded: &Folded,
) -> Result<Option<Folded>, PagesError> {
    let file = match disk.open(&ckpt_path(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(end) = file.len()?.checked_sub(4) else { return Ok(None) };
    if !matches_checksum(&*file, end)? {
        // It was renamed into place only after it was whole and synced.
        return Err(damaged(
            name,
            "its checkpoint file does not match its checksum, and the base file may be half written",
        ));
    }
    let mut head = vec![0; HEADER_BYTES.min(usize::try_from(end).unwrap_or(usize::MAX))];
    read_exact_at(&*file, &mut head, 0)?;
    let (of, size, folded, count) = decode_header(&head)
        .map_err(|error| damaged(name, &format!("its checkpoint file: {error}")))?;
    if usize::try_from(size) != Ok(page_size) {
        return Err(damaged(name, "its checkpoint file has another format"));
    }
    if of != id || folded.point.version < recorded.point.version {
        return Ok(None);
    }
    let record_bytes = PAGE_HEADER_BYTES + page_size;
    if end != HEADER_BYTES as u64 + u64::from(count) * record_bytes as u64 {
        return Err(damaged(name, "its checkpoint file has another length than it says"));
    }
    let base = BaseFile::open(disk, name, page_size)?;
    base.lock(SqliteLock::Exclusive)?;
    base.allocate(folded.point.page_count)?;
    let mut record = vec![0; record_bytes];
    let mut offset = HEADER_BYTES as u64;
    for _ in 0..count {
        read_exact_at(&*file, &mut record, offset)?;
        offset += record_bytes as u64;
        redo_page(&base, name, &record)?;
    }
    base.finish(folded.point.page_count)?;
    Ok(Some(folded))
}

/// Writes one page of a checkpoint file into the base.
fn redo_page(base: &BaseFile, name: &str, record: &[u8]) -> Result<(), PagesError> {
    let mut reader = Reader::new(record);
    let (Ok(page), Ok(hash)) = (reader.u32(), reader.u128()) else {
        return Err(damaged(name, "its checkpoint file is too short"));
    };
    let content = reader.rest();
    if page == 0 || page_hash(page, content) != hash {
        let what = format!("page {page} of its checkpoint file does not match its hash");
        return Err(damaged(name, &what));
    }
    Ok(base.write(page, content, hash)?)
}

/// Whether the first `end` bytes match the checksum behind them. They may be many.
pub(super) fn matches_checksum(file: &dyn DiskFile, end: u64) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut at, mut crc) = (0, 0);
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        read_exact_at(file, &mut chunk[..len], at)?;
        crc = crc32c::crc32c_append(crc, &chunk[..len]);
        at += len as u64;
    }
    let mut stored = [0; 4];
    read_exact_at(file, &mut stored, end)?;
    Ok(crc == u32::from_le_bytes(stored))
}

fn decode_header(bytes: &[u8]) -> Result<(DatabaseId, u32, Folded, u32), crate::codec::Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.take(MAGIC.len())? != MAGIC {
        return Err(crate::codec::Malformed { offset: 0, what: "a format that is known" });
    }
    let of = reader.u64()?;
    let folded = decode_folded(&mut reader)?;
    Ok((of, reader.u32()?, folded, reader.u32()?))
}

fn damaged(name: &str, what: &str) -> PagesError {
    PagesError::Damaged { database: name.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::read_all;

    /// The bytes that docs/format.md draws: header, a page, the checksum of all before it.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let point = Point {
            version: 3,
            page_count: 2,
            digest: 0x55 << 64 | 0x44,
            delta: DeltaId { term: 1, sequence: 6 },
        };
        let folded = Folded { point, place: Place { index: 11, ordinal: 7 } };
        let header = encode_header(8, &folded, 4096, 2);
        let word = |number: u64| number.to_le_bytes();
        let half = |number: u32| number.to_le_bytes();
        let expected = [
            &b"QUIRECK1"[..],
            &word(8),
            &word(3),
            &half(2),
            &word(0x44),
            &word(0x55),
            &word(1),
            &word(6),
            &word(11),
            &half(7),
            &half(4096),
            &half(2),
        ]
        .concat();
        assert_eq!((header, expected.len()), (expected, 80));
    }

    /// A file put together by hand from the drawing is one that a start redoes.
    #[test]
    fn a_start_reads_the_drawn_bytes() {
        let disk = crate::disk::FakeDisk::new();
        disk.create_dir("databases").unwrap();
        let page = [7; 512];
        let hash = page_hash(1, &page);
        let point = Point { version: 1, page_count: 1, digest: hash, delta: DeltaId::NONE };
        let folded = Folded { point, place: Place { index: 4, ordinal: 1 } };
        let mut bytes = encode_header(8, &folded, 512, 1);
        bytes.extend([&1_u32.to_le_bytes()[..], &hash.to_le_bytes(), &page].concat());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        disk.create("databases/shop.ckpt").unwrap().write_at(&bytes, 0).unwrap();
        let before = Folded { point: Point::default(), place: Place { index: 4, ordinal: 0 } };
        assert_eq!(redo(&disk, 8, "shop", 512, &before).unwrap(), Some(folded));
        assert_eq!(read_all(&disk, "databases/shop.db").unwrap(), page);
        assert_eq!(read_all(&disk, "databases/shop.sum").unwrap(), hash.to_le_bytes());
        assert_eq!(redo(&disk, 9, "shop", 512, &before).unwrap(), None, "another's file");
    }
}
