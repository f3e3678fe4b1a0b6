//! All databases of a node, and the node's checkpoint record: what every base file is at, and
//! the place in the log below which nothing is needed any more.
//!
//! `checkpoint` is written whole and replaced by rename. It says: log id L, the membership as of
//! L (opaque here), and for each database its id, name, page size, position, version, digest and
//! page count. At start a database is opened at what the record says (or at what its `NAME.ckpt`
//! says, if that is newer), and the log is replayed from L.
//!
//! While parts of a large delta are being gathered, L stays before the first of them, whatever the
//! databases are at: replay gathers them again, and hands each database only what lies after its
//! own position.
//!
//! *Invariant*: everything of every database that lies at or below L is in its base file, durably,
//! before the record says L; no open stage has a part at or below L.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::base::planted::{Bug, planted};
use crate::base::{DatabaseId, DatabaseName, limits};
use crate::codec::{Malformed, Reader, put_bytes_u32};
use crate::disk::{self, Disk, Room};
use crate::log::LogId;

use super::PagesError;
use super::fold::{Folded, Target, decode_folded, encode_folded, redo};
use super::incoming::Claims;
use super::install;
use super::page::is_page_size;
use super::spill::SpillSpace;
use super::store::{Place, Point, Store};
use super::view::Described;

pub(super) const MAGIC: &[u8; 8] = b"QUIRECP1";
pub(super) const RECORD_PATH: &str = "checkpoint";

/// Bytes in a page of a new database.
pub const PAGE_SIZE: usize = 4096;

/// What the state machine has applied so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last applied entry.
    pub last: Option<LogId>,
    /// The last applied membership, encoded by `raft`.
    pub membership: Vec<u8>,
}

/// All databases of a node.
pub struct Catalog {
    disk: Arc<dyn Disk>,
    pub(super) databases: RwLock<BTreeMap<DatabaseId, Arc<Store>>>,
    applied: Mutex<Applied>,
    pub(super) recorded: Mutex<Applied>,
    pub(super) checkpointing: Mutex<()>,
    claims: Arc<Claims>,
    /// An install that met an error half way.
    pub(super) unfinished: Mutex<Option<Arc<install::Plan>>>,
    /// What an interrupted install of a whole snapshot covers, finished at start.
    pub(super) installed_at_start: Mutex<Option<LogId>>,
    pub(super) spill: Arc<SpillSpace>,
}

impl Catalog {
    /// Opens the databases of a data directory as its checkpoint record left them; a directory
    /// without a record holds none.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Catalog, PagesError> {
        Catalog::open_with(disk, Arc::default())
    }

    /// The same, refusing transactions while `room` says that the disk is short.
    pub fn open_with(disk: Arc<dyn Disk>, room: Arc<Room>) -> Result<Catalog, PagesError> {
        disk.create_dir("databases")?;
        let spill = SpillSpace::new(disk.clone(), room, limits::SPILL_BYTES_MAX);
        let installed = install::recover(&*disk)?;
        let record = read_record(&*disk)?;
        let mut databases = BTreeMap::new();
        for entry in record.databases {
            let Entry { id, name, page_size, folded } = entry;
            let redone = redo(&*disk, id, name.as_str(), page_size, &folded)?;
            let Folded { point, place } = redone.unwrap_or(folded);
            let (disk, spill) = (disk.clone(), spill.clone());
            let store = Store::open_with(disk, spill, id, name, page_size, point, place)?;
            databases.insert(id, store);
        }
        Ok(Catalog {
            disk,
            databases: RwLock::new(databases),
            applied: Mutex::new(record.applied.clone()),
            recorded: Mutex::new(record.applied),
            checkpointing: Mutex::new(()),
            claims: Arc::default(),
            unfinished: Mutex::new(None),
            installed_at_start: Mutex::new(installed),
            spill,
        })
    }

    /// What the checkpoint record of a data directory says, which is not opened for that: what it
    /// covers, and the databases.
    pub fn recorded_on(disk: &dyn Disk) -> Result<(Applied, Vec<Described>), PagesError> {
        let Record { applied, databases } = read_record(disk)?;
        Ok((applied, databases))
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(super) fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// What the durable checkpoint record covers.
    pub fn recorded(&self) -> Applied {
        self.recorded.lock().clone()
    }

    /// What is applied. Holding the guard keeps everybody else from seeing an entry half applied.
    pub fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock()
    }

    /// The database with this id.
    pub fn by_id(&self, id: DatabaseId) -> Option<Arc<Store>> {
        self.databases.read().get(&id).cloned()
    }

    /// The database with this name.
    pub fn by_name(&self, name: &DatabaseName) -> Option<Arc<Store>> {
        self.databases.read().values().find(|store| store.name() == name).cloned()
    }

    /// All databases, by id.
    pub fn all(&self) -> Vec<Arc<Store>> {
        self.databases.read().values().cloned().collect()
    }

    /// Creates an empty database with the id of the entry that creates it. A replay that meets a
    /// database that is there already changes nothing.
    pub fn create(
        &self,
        id: DatabaseId,
        name: DatabaseName,
        page_size: usize,
    ) -> Result<Arc<Store>, PagesError> {
        if let Some(store) = self.by_id(id) {
            return Ok(store);
        }
        let place = Place { index: id, ordinal: 0 };
        let (disk, spill) = (self.disk.clone(), self.spill.clone());
        let store = Store::open_with(disk, spill, id, name, page_size, Point::default(), place)?;
        self.databases.write().insert(id, store.clone());
        Ok(store)
    }

    /// Bytes of page images above the bases, over all databases: in memory, and in files.
    pub fn overlay_held(&self) -> (u64, u64) {
        let of_each = self.all().into_iter().map(|store| store.overlay_held());
        of_each.fold((0, 0), |sum, store| (sum.0 + store.0, sum.1 + store.1))
    }

    /// The room on the disk beyond the reserve, as last looked at.
    pub fn room(&self) -> &Arc<Room> {
        self.spill.room()
    }

    /// Looks at the room on the disk. The reserve is what it takes to go on when nothing more is
    /// accepted: two segments of the log, and a checkpoint of everything above the bases.
    pub fn look_at_room(&self) -> io::Result<()> {
        let available = self.disk.available_bytes()?;
        let reserve = 2 * limits::LOG_SEGMENT_BYTES + self.checkpoint_bytes();
        self.room().set(available, reserve);
        Ok(())
    }

    /// What a checkpoint of all that is not in the bases yet would need at most: its file, and
    /// the growth of the bases.
    fn checkpoint_bytes(&self) -> u64 {
        let (heap, _) = self.overlay_held();
        let growth: u64 = self.all().iter().map(|store| store.growth_bytes()).sum();
        heap + self.spill.used_bytes() + growth
    }

    /// The log has an entry of this term: discards the parts gathered in an earlier one. (A copy
    /// that catches up is at another place in the log.)
    pub fn discard_stages_before(&self, term: u64) {
        for store in self.all().iter().filter(|store| !store.awaits_catching_up()) {
            store.discard_stage_before(term);
        }
    }

    /// What replay would have to begin after, were everything folded that is applied: where a
    /// delta's parts are being gathered, the entry before the first of them. `applied` is what is
    /// applied now; whoever asks holds [`Catalog::applied`].
    pub fn replay_floor(&self, applied: &Applied) -> Applied {
        let mut floor = applied.clone();
        for store in self.all() {
            if let Some((_, before)) = store.stage()
                && before.last < floor.last
                && !planted(Bug::RecordPastStage)
            {
                floor = before;
            }
        }
        floor
    }

    /// Folds everything that is applied now into the base files and writes the checkpoint record.
    /// Returns what the record covers. Blocks; never called on the asynchronous runtime.
    pub fn checkpoint(&self) -> Result<Applied, PagesError> {
        self.checkpoint_behind(&|| Ok(()))
    }

    /// As [`Catalog::checkpoint`]; `log_durable` waits until everything that this node's log was
    /// given is durable. What is applied is durable on a quorum, but perhaps not here yet; and a
    /// record beyond the end of the log looks like a log that was lost.
    pub fn checkpoint_behind(
        &self,
        log_durable: &dyn Fn() -> io::Result<()>,
    ) -> Result<Applied, PagesError> {
        let _one_at_a_time = self.checkpointing.lock();
        self.finish_install()?;
        let (cut, targets, mut behind) = {
            let applied = self.applied.lock();
            let targets: Vec<(Arc<Store>, Target)> =
                self.all().into_iter().map(|store| (store.clone(), store.fold_target())).collect();
            // It has skipped what the others have applied.
            let behind = targets.iter().any(|(store, _)| store.damage().is_some());
            (self.replay_floor(&applied), targets, behind)
        };
        let dirty = targets.iter().any(|(store, _)| store.is_dirty());
        if !dirty && cut == *self.recorded.lock() {
            return Ok(cut);
        }
        if !planted(Bug::RecordAheadOfLog) {
            log_durable()?;
        }
        let mut entries = Vec::with_capacity(targets.len());
        for (store, target) in &targets {
            let folded = store.fold(target)?;
            behind |= folded.point.version < target.version();
            entries.push(Entry {
                id: store.id(),
                name: store.name().clone(),
                page_size: store.page_size(),
                folded,
            });
        }
        // The new record may claim the cut, unless a damaged database stayed behind it.
        let covered = if behind { self.recorded() } else { cut };
        let record = Record { applied: covered.clone(), databases: entries };
        disk::replace(&*self.disk, RECORD_PATH, &encode_record(&record))?;
        let covered = if planted(Bug::PurgePastRecord) { self.applied().clone() } else { covered };
        *self.recorded.lock() = covered.clone();
        for (store, _) in &targets {
            store.forget_ckpt()?;
        }
        Ok(covered)
    }
}

#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) applied: Applied,
    pub(super) databases: Vec<Entry>,
}

pub(super) type Entry = Described;

fn read_record(disk: &dyn Disk) -> Result<Record, PagesError> {
    match disk::read_all(disk, RECORD_PATH) {
        Ok(bytes) => decode_record(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn encode_record(record: &Record) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    match record.applied.last {
        Some(last) => {
            out.push(1);
            out.extend_from_slice(&last.term.to_le_bytes());
            out.extend_from_slice(&last.index.to_le_bytes());
        }
        None => out.extend_from_slice(&[0; 17]),
    }
    // Neither a membership nor a name comes near 4 GiB, nor are there that many databases.
    let _ = put_bytes_u32(&mut out, &record.applied.membership);
    let count = u32::try_from(record.databases.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    for entry in &record.databases {
        out.extend_from_slice(&entry.id.to_le_bytes());
        let _ = put_bytes_u32(&mut out, entry.name.as_str().as_bytes());
        out.extend_from_slice(&u32::try_from(entry.page_size).unwrap_or(0).to_le_bytes());
        encode_folded(&entry.folded.point, &entry.folded.place, &mut out);
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

pub(super) fn decode_record(bytes: &[u8]) -> Result<Record, PagesError> {
    let damaged = |what: &str| PagesError::Directory(format!("the checkpoint record {what}"));
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(damaged("is too short"));
    };
    if !body.starts_with(MAGIC) {
        return Err(damaged("has a format that this version does not know"));
    }
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged("does not match its checksum"));
    }
    decode_record_body(&body[MAGIC.len()..])
        .map_err(|error| damaged(&format!("cannot be read: {error}")))
}

fn decode_record_body(body: &[u8]) -> Result<Record, Malformed> {
    let mut reader = Reader::new(body);
    let present = reader.u8()? != 0;
    let id = LogId { term: reader.u64()?, index: reader.u64()? };
    let membership = reader.bytes_u32()?.to_vec();
    let mut databases = Vec::new();
    for _ in 0..reader.u32()? {
        let id = reader.u64()?;
        let offset = reader.offset();
        let name = DatabaseName::new(reader.text_u32()?)
            .map_err(|_| Malformed { offset, what: "a database name" })?;
        let offset = reader.offset();
        let page_size = usize::try_from(reader.u32()?).unwrap_or(0);
        if !is_page_size(page_size) {
            return Err(Malformed { offset, what: "a page size" });
        }
        databases.push(Entry { id, name, page_size, folded: decode_folded(&mut reader)? });
    }
    reader.finish()?;
    Ok(Record { applied: Applied { last: present.then_some(id), membership }, databases })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeltaId;

    /// The bytes that docs/format.md draws: nothing but their layout is asserted here.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let point = Point {
            version: 3,
            page_count: 2,
            digest: 0x55 << 64 | 0x44,
            delta: DeltaId { term: 1, sequence: 6 },
        };
        let folded = Folded { point, place: Place { index: 11, ordinal: 7 } };
        let name = DatabaseName::new("shop").unwrap();
        let last = Some(LogId { term: 1, index: 11 });
        let record = Record {
            applied: Applied { last, membership: vec![0xee; 3] },
            databases: vec![Entry { id: 8, name, page_size: 4096, folded }],
        };
        let word = |number: u64| number.to_le_bytes();
        let half = |number: u32| number.to_le_bytes();
        let position = [
            &word(3)[..],
            &half(2),
            &word(0x44),
            &word(0x55),
            &word(1),
            &word(6),
            &word(11),
            &half(7),
        ]
        .concat();
        assert_eq!(position.len(), 56);
        let mut expected = [
            &b"QUIRECP1\x01"[..],
            &word(1),
            &word(11),
            b"\x03\0\0\0\xee\xee\xee",
            &half(1),
            &word(8),
            b"\x04\0\0\0shop",
            &half(4096),
            &position,
        ]
        .concat();
        expected.extend(crc32c::crc32c(&expected).to_le_bytes());
        assert_eq!(encode_record(&record), expected);
        assert_eq!(decode_record(&expected).unwrap(), record);

        let empty = encode_record(&Record::default());
        assert_eq!(empty[..33], [&b"QUIRECP1"[..], &[0; 25]].concat());
        assert_eq!((empty.len(), decode_record(&empty).unwrap()), (37, Record::default()));
    }
}
