//! Putting received databases in place: a matter of renames, however large they are.
//!
//! 1. write `incoming/install`, the install record: which databases are moved, which are dropped,
//!    and the checkpoint record as it will be; fsync: *the commit point*;
//! 2. remove the `NAME.ckpt` of databases that are replaced or dropped: it belongs to the old
//!    base;
//! 3. rename `databases/.ID.db` and `.ID.sum` to `NAME.db` and `NAME.sum`, remove the files of
//!    databases that are dropped, fsync the directory;
//! 4. write the checkpoint record;
//! 5. (a whole snapshot: the caller purges the log up to what it covers;)
//! 6. remove the install record, fsync its directory.
//!
//! A start that finds an install record does it again from step 2, before anything else is looked
//! at. Each step does nothing where it was done before.
//!
//! Stores of replaced databases live on, retired, for the readers that hold them: they keep the
//! old files open.
//!
//! *Invariant*: after a power cut at any point either the old state opens or the new one, never a
//! base with the position of another.

use std::io;
use std::sync::Arc;

use crate::base::{DatabaseId, DatabaseName};
use crate::codec::{Malformed, Reader, put_bytes_u32};
use crate::disk::{self, Disk};
use crate::log::LogId;

use super::PagesError;
use super::base_file::{pages_path, sums_path};
use super::catalog::{Catalog, RECORD_PATH, Record, decode_record, encode_record};
use super::fold::Folded;
use super::fold::ckpt_path;
use super::incoming::{DIR, Ready, Scope, staged_path, take_back_staged};
use super::store::Store;
use super::view::Described;

pub(super) const MAGIC: &[u8; 8] = b"QUIREIN1";

pub(super) fn record_path() -> String {
    format!("{DIR}/install")
}

/// What an install will do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether the whole node moves to another place in the log.
    whole: bool,
    moved: Vec<DatabaseId>,
    dropped: Vec<DatabaseName>,
    record: Record,
}

impl Plan {
    /// Steps 2 to 4.
    fn carry_out(&self, disk: &dyn Disk) -> Result<(), PagesError> {
        let moved = || self.record.databases.iter().filter(|entry| self.moved.contains(&entry.id));
        for name in moved().map(|entry| &entry.name).chain(&self.dropped) {
            remove(disk, &ckpt_path(name.as_str()))?;
        }
        for entry in moved() {
            let name = entry.name.as_str();
            put_in_place(disk, &staged_path(entry.id, "db"), &pages_path(name))?;
            put_in_place(disk, &staged_path(entry.id, "sum"), &sums_path(name))?;
        }
        for name in &self.dropped {
            remove(disk, &pages_path(name.as_str()))?;
            remove(disk, &sums_path(name.as_str()))?;
        }
        disk.sync_dir("databases")?;
        disk::replace(disk, RECORD_PATH, &encode_record(&self.record))?;
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(u8::from(self.whole));
        // Neither is there that many of anything, nor is a record that long.
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&count(self.moved.len()));
        for id in &self.moved {
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.extend_from_slice(&count(self.dropped.len()));
        for name in &self.dropped {
            let _ = put_bytes_u32(&mut out, name.as_str().as_bytes());
        }
        let _ = put_bytes_u32(&mut out, &encode_record(&self.record));
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Plan, PagesError> {
        let damaged = |what: &str| PagesError::Directory(format!("the install record {what}"));
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(damaged("is too short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("does not match its checksum"));
        }
        let body = body.strip_prefix(MAGIC).ok_or(damaged("has an unknown format"))?;
        Plan::decode_body(body).map_err(|error| match error {
            BodyError::Pages(error) => error,
            BodyError::Malformed(error) => damaged(&error.to_string()),
        })
    }

    fn decode_body(body: &[u8]) -> Result<Plan, BodyError> {
        let mut reader = Reader::new(body);
        let whole = reader.u8()? != 0;
        let mut moved = Vec::new();
        for _ in 0..reader.u32()? {
            moved.push(reader.u64()?);
        }
        let mut dropped = Vec::new();
        for _ in 0..reader.u32()? {
            let offset = reader.offset();
            let name = DatabaseName::new(reader.text_u32()?)
                .map_err(|_| Malformed { offset, what: "a database name" })?;
            dropped.push(name);
        }
        let record = decode_record(reader.bytes_u32()?)?;
        reader.finish()?;
        Ok(Plan { whole, moved, dropped, record })
    }
}

enum BodyError {
    Pages(PagesError),
    Malformed(Malformed),
}

impl From<Malformed> for BodyError {
    fn from(error: Malformed) -> BodyError {
        BodyError::Malformed(error)
    }
}

impl From<PagesError> for BodyError {
    fn from(error: PagesError) -> BodyError {
        BodyError::Pages(error)
    }
}

fn remove(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames, unless that was done before.
fn put_in_place(disk: &dyn Disk, from: &str, to: &str) -> io::Result<()> {
    if !disk.exists(from)? && disk.exists(to)? {
        return Ok(());
    }
    disk.rename(from, to)
}

fn forget(disk: &dyn Disk) -> io::Result<()> {
    remove(disk, &record_path())?;
    // Else a later cut might bring it back, and an old checkpoint record with it.
    disk.sync_dir(DIR)
}

/// At start: finishes an install that was interrupted. What the node covers then, where a whole
/// snapshot was installed and the log has yet to hear of it.
pub(super) fn recover(disk: &dyn Disk) -> Result<Option<LogId>, PagesError> {
    let plan = match disk::read_all(disk, &record_path()) {
        Ok(bytes) => Plan::decode(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            take_back_staged(disk)?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(databases = plan.moved.len(), "finishing an interrupted install");
    plan.carry_out(disk)?;
    if plan.whole {
        // The record stays until the log is known to be purged.
        return Ok(plan.record.applied.last);
    }
    forget(disk)?;
    Ok(None)
}

impl Catalog {
    /// Puts received databases in place. A whole snapshot takes effect at once, and `covered` is
    /// called in between to purge the log of what it covers. A part is not served yet: its store
    /// (returned) holds back until [`Store::heal`]. Blocks.
    pub fn install(
        &self,
        ready: Ready,
        covered: impl FnOnce(LogId) -> io::Result<()>,
    ) -> Result<Vec<Arc<Store>>, PagesError> {
        let _no_checkpoint = self.checkpointing.lock();
        self.finish_install()?;
        let plan = Arc::new(self.plan(&ready));
        disk::replace(&**self.disk(), &record_path(), &plan.encode())?;
        *self.unfinished.lock() = Some(plan.clone());
        let stores = self.carry_out(&plan, covered)?;
        *self.unfinished.lock() = None;
        Ok(stores)
    }

    /// Steps 2 to 6.
    fn carry_out(
        &self,
        plan: &Plan,
        covered: impl FnOnce(LogId) -> io::Result<()>,
    ) -> Result<Vec<Arc<Store>>, PagesError> {
        plan.carry_out(&**self.disk())?;
        let stores = self.open_moved(plan)?;
        self.enter(plan, &stores);
        if let (true, Some(last)) = (plan.whole, plan.record.applied.last) {
            covered(last)?;
        }
        forget(&**self.disk())?;
        Ok(stores)
    }

    /// Finishes an install that met an error of the disk half way: until then no checkpoint may
    /// be written, for the install record carries an older one.
    pub(super) fn finish_install(&self) -> Result<(), PagesError> {
        let Some(plan) = self.unfinished.lock().clone() else { return Ok(()) };
        if plan.whole {
            return Err(PagesError::Refused("a snapshot is half installed: the node must restart"));
        }
        self.carry_out(&plan, |_| Ok(()))?;
        *self.unfinished.lock() = None;
        Ok(())
    }

    fn plan(&self, ready: &Ready) -> Plan {
        let moved = ready.databases.iter().map(|described| described.id).collect();
        let stores = self.all();
        match &ready.scope {
            Scope::Whole(applied) => {
                let stays = |name: &DatabaseName| ready.databases.iter().any(|d| d.name == *name);
                let names = stores.iter().map(|store| store.name().clone());
                let dropped = names.filter(|name| !stays(name)).collect();
                let databases = ready.databases.clone();
                let record = Record { applied: applied.clone(), databases };
                Plan { whole: true, moved, dropped, record }
            }
            Scope::Part => {
                let replaced = |id| ready.databases.iter().find(|described| described.id == id);
                let entry = |store: &Arc<Store>| {
                    replaced(store.id()).cloned().unwrap_or_else(|| Described {
                        id: store.id(),
                        name: store.name().clone(),
                        page_size: store.page_size(),
                        folded: store.folded(),
                    })
                };
                let databases = stores.iter().map(entry).collect();
                let record = Record { applied: self.recorded(), databases };
                Plan { whole: false, moved, dropped: Vec::new(), record }
            }
        }
    }

    fn open_moved(&self, plan: &Plan) -> Result<Vec<Arc<Store>>, PagesError> {
        let moved = plan.record.databases.iter().filter(|entry| plan.moved.contains(&entry.id));
        let open = |Described { id, name, page_size, folded }: &Described| {
            let (disk, spill, name) = (self.disk().clone(), self.spill.clone(), name.clone());
            let Folded { point, place } = *folded;
            let store = Store::open_with(disk, spill, *id, name, *page_size, point, place)?;
            store.succeed(self.by_id(*id).as_deref());
            if !plan.whole {
                store.hold_back("its repaired copy is catching up");
            }
            Ok(store)
        };
        moved.map(open).collect()
    }

    /// The new stores take the place of the old ones, in one step for whoever holds the applied
    /// state.
    fn enter(&self, plan: &Plan, stores: &[Arc<Store>]) {
        let mut applied = self.applied();
        let mut databases = self.databases.write();
        let mut old = Vec::new();
        if plan.whole {
            old.extend(std::mem::take(&mut *databases).into_values());
            *applied = plan.record.applied.clone();
            *self.recorded.lock() = plan.record.applied.clone();
        }
        for store in stores {
            old.extend(databases.insert(store.id(), store.clone()));
        }
        drop((databases, applied));
        for store in old {
            store.retire();
        }
    }

    /// What an install that was interrupted before this start covers: the log must be purged of
    /// it, and then [`Catalog::forget_install`] called, before anything else.
    pub fn installed_at_start(&self) -> Option<LogId> {
        *self.installed_at_start.lock()
    }

    /// The log knows what the install covers.
    pub fn forget_install(&self) -> io::Result<()> {
        *self.installed_at_start.lock() = None;
        forget(&**self.disk())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::catalog::Applied;
    use super::*;

    /// The bytes that docs/format.md draws.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let dropped = vec![DatabaseName::new("old").unwrap()];
        let plan = Plan { whole: true, moved: vec![8, 9], dropped, record: Record::default() };
        let record = encode_record(&plan.record);
        let mut expected = [
            &b"QUIREIN1\x01"[..],
            b"\x02\0\0\0\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0",
            b"\x01\0\0\0\x03\0\0\0old",
            b"\x25\0\0\0",
            &record,
        ]
        .concat();
        expected.extend(crc32c::crc32c(&expected).to_le_bytes());
        assert_eq!((record.len(), plan.encode()), (0x25, expected.clone()));
        assert_eq!(Plan::decode(&expected).unwrap(), plan);
    }

    #[test]
    fn an_install_record_comes_back() {
        let name = |name: &str| DatabaseName::new(name).unwrap();
        let applied =
            Applied { last: Some(LogId { term: 3, index: 99 }), membership: vec![1, 2, 3] };
        let folded =
            super::super::fold::Folded { point: Default::default(), place: Default::default() };
        let entry = Described { id: 7, name: name("shop"), page_size: 4096, folded };
        let record = Record { applied, databases: vec![entry] };
        let plan = Plan { whole: true, moved: vec![7], dropped: vec![name("old")], record };
        let bytes = plan.encode();
        assert_eq!(Plan::decode(&bytes).unwrap(), plan);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Plan::decode(&bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            let _ = Plan::decode(&bytes);
            bytes.splice(0..0, *MAGIC);
            let crc = crc32c::crc32c(&bytes);
            bytes.extend(crc.to_le_bytes());
            let _ = Plan::decode(&bytes);
        }
    }
}
