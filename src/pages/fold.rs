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

use crate::base::{DatabaseId, DeltaId};
use crate::codec::Reader;
use crate::disk::{Disk, SqliteLock, read_all};

use super::PagesError;
use super::base_file::BaseFile;
use super::page::{Image, PageNo, page_hash};
use super::store::{Place, Point, Store};

const MAGIC: &[u8; 8] = b"QUIRECK1";
const CHUNK_BYTES: usize = 1 << 20;

/// Old page images kept in memory for readers below the base, over all folds; beyond it those
/// readers are told that their snapshot is too old.
const PRESERVED_BYTES_MAX: usize = 64 << 20;

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

impl Drop for Target {
    fn drop(&mut self) {
        self.store.state.lock().unpin(self.folded.point.version);
    }
}

fn ckpt_path(name: &str) -> String {
    format!("databases/{name}.ckpt")
}

impl Store {
    /// Pins what is applied now as the target of a fold.
    pub(super) fn fold_target(self: &Arc<Store>) -> Target {
        let mut state = self.state.lock();
        let folded = Folded { point: state.applied, place: state.place };
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
        self.write_ckpt(&target.folded, &pages)?;
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
        let temporary = format!("{path}.tmp");
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
        for (page, image) in pages {
            chunk.extend_from_slice(&page.to_le_bytes());
            chunk.extend_from_slice(&image.hash.to_le_bytes());
            chunk.extend_from_slice(&image.bytes);
            if chunk.len() >= CHUNK_BYTES {
                flush(&mut chunk)?;
            }
        }
        flush(&mut chunk)?;
        file.write_at(&crc.to_le_bytes(), offset)?;
        file.sync()?;
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
        self.half_copied.store(true, Ordering::Release);
        let written = pages
            .iter()
            .try_for_each(|(page, image)| self.base.write(*page, &image.bytes, image.hash))
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
        let mut readers = self.readers_below(point.version);
        let cut_off = point.page_count + 1..=base_before.page_count;
        let overwritten = pages.iter().map(|(page, _)| *page);
        let mut kept_bytes = self.overlay.read().len_below_base() * self.page_size();
        let mut content = vec![0; self.page_size()];
        for page in overwritten.chain(cut_off).filter(|page| *page <= base_before.page_count) {
            if readers.is_empty() {
                return Ok(());
            }
            if kept_bytes > PRESERVED_BYTES_MAX {
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
            let image = Image { bytes: content.as_slice().into(), hash };
            kept_bytes += content.len();
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
    let bytes = match read_all(disk, &ckpt_path(name)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return Ok(None) };
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        // It was renamed into place only after it was whole and synced.
        return Err(damaged(name, "its checkpoint file does not match its checksum"));
    }
    redo_from(disk, id, name, page_size, recorded, body).map_err(|error| match error {
        RedoError::Pages(error) => error,
        RedoError::Malformed(error) => damaged(name, &format!("its checkpoint file: {error}")),
    })
}

enum RedoError {
    Pages(PagesError),
    Malformed(crate::codec::Malformed),
}

impl From<crate::codec::Malformed> for RedoError {
    fn from(error: crate::codec::Malformed) -> RedoError {
        RedoError::Malformed(error)
    }
}

impl From<io::Error> for RedoError {
    fn from(error: io::Error) -> RedoError {
        RedoError::Pages(error.into())
    }
}

fn redo_from(
    disk: &dyn Disk,
    id: DatabaseId,
    name: &str,
    page_size: usize,
    recorded: &Folded,
    body: &[u8],
) -> Result<Option<Folded>, RedoError> {
    let mut reader = Reader::new(body);
    let (magic, of) = (reader.take(MAGIC.len())?, reader.u64()?);
    let folded = decode_folded(&mut reader)?;
    let (size, count) = (reader.u32()?, reader.u32()?);
    if magic != MAGIC || usize::try_from(size) != Ok(page_size) {
        return Err(RedoError::Pages(damaged(name, "its checkpoint file has another format")));
    }
    if of != id || folded.point.version < recorded.point.version {
        return Ok(None);
    }
    let base = BaseFile::open(disk, name, page_size)?;
    base.lock(SqliteLock::Exclusive)?;
    base.allocate(folded.point.page_count)?;
    for _ in 0..count {
        let (page, hash) = (reader.u32()?, reader.u128()?);
        let content = reader.take(page_size)?;
        if page == 0 || page_hash(page, content) != hash {
            let what = format!("page {page} of its checkpoint file does not match its hash");
            return Err(RedoError::Pages(damaged(name, &what)));
        }
        base.write(page, content, hash)?;
    }
    reader.finish()?;
    base.finish(folded.point.page_count)?;
    Ok(Some(folded))
}

fn damaged(name: &str, what: &str) -> PagesError {
    PagesError::Damaged { database: name.to_owned(), what: what.to_owned() }
}
