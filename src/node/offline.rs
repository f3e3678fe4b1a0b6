//! A data directory whose node does not run: what it holds, and how it becomes a cluster of its own
//! when the quorum of the old one is lost for good.
//!
//! [`Offline::take_over`] makes its node the only member: a membership that nobody voted for is
//! appended to the log, in a term above all that the node knows, and the cluster gets a new id, so
//! that a member of the old one that turns up again is not admitted and leads nobody astray. What
//! the log holds beyond what was known to be committed stays: an acknowledged write may be there.
//!
//! *Invariant*: [`Offline::open`] changes nothing; `take_over` changes something only after a copy
//! of what it changes is durable, and a power cut on its way leaves a directory for which it can
//! be asked again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, mpsc};

use crate::base::{DatabaseId, Executor, NodeId, Randomness};
use crate::codec::Reader;
use crate::disk::{self, Disk, RealDisk};
use crate::log::{Done, Entry, EntryKind, Log, LogError, LogId, LogOptions, LogState, Look, Vote};
use crate::pages::Catalog;
use crate::pages::delta::DeltaHeader;
use crate::raft::command::{Decoded, decode};
use crate::raft::membership::Members;

use super::identity::StoredIdentity;
use super::{NodeError, check_log_reaches, finish_install};

/// Copies of what a recovery changed are kept in directories of this name and a number.
const KEPT: &str = "before-recovery";

/// A data directory at rest.
pub struct Offline {
    disk: Arc<dyn Disk>,
    stored: StoredIdentity,
    state: LogState,
    /// Its last known membership.
    pub members: Members,
    /// The databases and their versions, all of the log applied.
    pub databases: BTreeMap<String, u64>,
}

impl Offline {
    /// Looks at the data directory at `path`. Fails if it is none, if its node runs, and where its
    /// node would not start.
    pub fn open(path: &Path) -> Result<Offline, NodeError> {
        let wrong = |what: String| NodeError::Configuration(format!("{}: {what}", path.display()));
        if !path.join("node.toml").is_file() {
            return Err(wrong("is no data directory (it has no node.toml)".to_owned()));
        }
        let disk = RealDisk::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => {
                wrong("its node runs: stop it first, if the quorum is lost".to_owned())
            }
            _ => wrong(error.to_string()),
        })?;
        Offline::look_at(disk).map_err(|error| wrong(error.to_string()))
    }

    /// The same on a disk of the caller's.
    pub fn look_at(disk: Arc<dyn Disk>) -> Result<Offline, NodeError> {
        let stored = StoredIdentity::load(&*disk)?.unwrap_or(StoredIdentity::new(0, ""));
        if stored.cluster_id() == 0 {
            return Err(failed("it has never been a member of a cluster"));
        }
        let look = Look::at(&*disk).map_err(|error| match error {
            LogError::Damaged { segment, offset, .. } => failed(format!(
                "segment {segment:016x} of its Raft log is damaged at byte {offset}: start its \
                 node, which mends what it can prove, stop it, and ask again"
            )),
            error => failed(error),
        })?;
        let (recorded, described) = Catalog::recorded_on(&*disk).map_err(failed)?;
        let (_, mut members) = Members::of_record(recorded.membership.into()).map_err(failed)?;
        let mut versions = Versions::default();
        versions.known.extend(
            described
                .into_iter()
                .map(|it| (it.id, (it.name.as_str().to_owned(), it.folded.point.version))),
        );
        let (first, last) = look.indices().unwrap_or((1, 0));
        for index in first..=last {
            let entry = look.entry(index).map_err(failed)?;
            let Some(Entry { kind, payload, .. }) = entry else { continue };
            match kind {
                EntryKind::Blank => {}
                EntryKind::Membership => members = Members::of_entry(payload).map_err(failed)?,
                EntryKind::Command => versions.note(index, &payload),
            }
        }
        let databases = versions.known.into_values().collect();
        Ok(Offline { disk, stored, state: look.state(), members, databases })
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.stored.id
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.stored.address
    }

    /// Its cluster.
    pub fn cluster(&self) -> u64 {
        self.stored.cluster_id()
    }

    /// The last entry of its log.
    pub fn last(&self) -> Option<LogId> {
        self.state.last
    }

    /// The last entry that it knows to be committed.
    pub fn committed(&self) -> Option<LogId> {
        self.state.committed
    }

    /// Makes the node the only member of a cluster that goes on from here. Where the copy of what
    /// this changed is kept.
    pub fn take_over(self, random: &dyn Randomness) -> Result<String, NodeError> {
        let alone = Members::alone(self.stored.id, &self.stored.address);
        let payload = alone.encode().ok_or_else(|| failed("a membership without an address"))?;
        let kept = self.keep_a_copy().map_err(failed)?;
        let Offline { disk, stored, .. } = self;
        let log = Log::open(disk.clone(), Executor::Inline, LogOptions::default());
        let log = log.map_err(failed)?;
        // As at a start: a snapshot that was being installed may be newer than the log.
        let catalog = Catalog::open(disk.clone()).map_err(failed)?;
        finish_install(&log, &catalog)?;
        check_log_reaches(&log, &catalog)?;
        let (id, cluster) = (stored.id, random.next_u64().max(1));
        // First: without a quorum the old membership does nothing under the new id.
        stored.in_cluster(cluster).store(&*disk).map_err(failed)?;
        let LogState { vote, last, .. } = log.state();
        let term = vote.map_or(0, |vote| vote.term).max(last.map_or(0, |last| last.term)) + 1;
        let index = last.map_or(0, |last| last.index + 1);
        let entry = Entry { id: LogId { term, index }, kind: EntryKind::Membership, payload };
        // As if it had led in that term: nobody else has.
        durable(|done| log.save_vote(Vote { term, node: id, committed: true }, done))?;
        durable(|done| log.append(vec![entry], done))?;
        log.stop();
        Ok(kept)
    }

    /// Copies the log, `node.toml` and the checkpoint record into a new directory.
    fn keep_a_copy(&self) -> std::io::Result<String> {
        let disk = &*self.disk;
        let name = |n: u32| format!("{KEPT}-{n}");
        let mut number = 1;
        while disk.exists(&name(number))? {
            number += 1;
        }
        let kept = name(number);
        disk.create_dir(&format!("{kept}/log"))?;
        let mut paths: Vec<String> =
            disk.list("log")?.into_iter().map(|name| format!("log/{name}")).collect();
        paths.extend(["node.toml".to_owned(), "checkpoint".to_owned()]);
        for path in paths {
            if disk.exists(&path)? {
                let file = disk.create(&format!("{kept}/{path}"))?;
                file.write_at(&disk::read_all(disk, &path)?, 0)?;
                file.sync()?;
            }
        }
        for dir in [&format!("{kept}/log"), &kept, ""] {
            disk.sync_dir(dir)?;
        }
        Ok(kept)
    }
}

/// The databases and their versions, as the log makes them.
#[derive(Default)]
struct Versions {
    known: BTreeMap<DatabaseId, (String, u64)>,
    /// The versions that parts of deltas will make, with their last ones.
    staged: BTreeMap<DatabaseId, u64>,
}

impl Versions {
    /// Takes in a command.
    fn note(&mut self, index: u64, command: &[u8]) {
        let header = |bytes| DeltaHeader::decode(&mut Reader::new(bytes)).ok();
        match decode(command) {
            Ok(Decoded::Deltas(deltas)) => {
                for header in deltas.into_iter().filter_map(header) {
                    self.made(header.database, header.base_version + 1);
                }
            }
            Ok(Decoded::Part(part)) => {
                if part.number == 0
                    && let Some(header) = header(part.bytes)
                {
                    self.staged.insert(part.database, header.base_version + 1);
                }
                if part.last
                    && let Some(version) = self.staged.remove(&part.database)
                {
                    self.made(part.database, version);
                }
            }
            Ok(Decoded::Create { name, .. }) => {
                let name = name.as_str().to_owned();
                if self.known.values().all(|(other, _)| *other != name) {
                    self.known.insert(index, (name, 0));
                }
            }
            Ok(Decoded::Discard { .. }) | Err(_) => {}
        }
    }

    fn made(&mut self, database: DatabaseId, made: u64) {
        if let Some((_, version)) = self.known.get_mut(&database) {
            *version = made.max(*version);
        }
    }
}

fn durable(call: impl FnOnce(Done)) -> Result<(), NodeError> {
    let (tell, told) = mpsc::sync_channel(1);
    call(Box::new(move |result| drop(tell.send(result))));
    told.recv().map_err(failed)?.map_err(failed)
}

fn failed(error: impl ToString) -> NodeError {
    NodeError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{DatabaseName, SplitMix};
    use crate::disk::FakeDisk;
    use crate::raft::command::create;

    /// Node 2 of a cluster of three, with a vote, a database and a tail that nobody committed.
    fn survivor() -> FakeDisk {
        let disk = FakeDisk::new();
        let stored = StoredIdentity::new(2, "b:2").in_cluster(77);
        stored.store(&disk).unwrap();
        let log = Log::open(Arc::new(disk.clone()), Executor::Inline, LogOptions::default());
        let log = log.unwrap();
        let addresses = [(1, "a:1"), (2, "b:2"), (3, "c:3")];
        let addresses = addresses.map(|(id, address)| (id, address.to_owned())).into();
        let members = Members { addresses, voters: vec![[1, 2, 3].into()] };
        let name = DatabaseName::new("shop").unwrap();
        let entry = |index, kind, payload| Entry { id: LogId { term: 4, index }, kind, payload };
        let entries = vec![
            entry(0, EntryKind::Membership, members.encode().unwrap()),
            entry(1, EntryKind::Command, create(&name, 4096).0),
            entry(2, EntryKind::Blank, bytes::Bytes::new()),
        ];
        durable(|done| log.append(entries, done)).unwrap();
        durable(|done| log.save_vote(Vote { term: 9, node: 3, committed: false }, done)).unwrap();
        disk
    }

    fn look(disk: &FakeDisk) -> Offline {
        Offline::look_at(Arc::new(disk.clone())).unwrap()
    }

    #[test]
    fn the_survivor_goes_on_alone_in_a_cluster_of_its_own() {
        let disk = survivor();
        let before = look(&disk);
        assert_eq!((before.node(), before.address(), before.cluster()), (2, "b:2", 77));
        assert_eq!(before.last(), Some(LogId { term: 4, index: 2 }));
        assert_eq!(before.members.voters, [[1, 2, 3].into()]);
        assert_eq!(before.databases, [("shop".to_owned(), 0)].into());
        let log = disk.list("log").unwrap();
        assert_eq!(before.take_over(&SplitMix::new(5)).unwrap(), "before-recovery-1");
        assert_eq!(disk.list("before-recovery-1/log").unwrap(), log);
        let after = look(&disk);
        assert_eq!(after.members, Members::alone(2, "b:2"));
        assert_eq!(after.last(), Some(LogId { term: 10, index: 3 }), "above every vote");
        assert_eq!(after.state.vote, Some(Vote { term: 10, node: 2, committed: true }));
        assert!(after.cluster() != 77 && after.cluster() != 0);
        assert_eq!(after.databases, [("shop".to_owned(), 0)].into());
    }

    /// At whichever call to the disk the power fails: all that the log held is there, and asking
    /// again does it.
    #[test]
    fn a_power_cut_on_the_way_leaves_a_directory_to_be_asked_again() {
        let disk = survivor().cut(crate::disk::Cut::Keep);
        look(&disk).take_over(&SplitMix::new(5)).unwrap();
        let calls = disk.calls();
        for n in 0..=calls {
            for seed in 0..4 {
                let disk = disk.after_cut(n, seed);
                let found = look(&disk);
                assert!(found.last() >= Some(LogId { term: 4, index: 2 }), "cut after {n}");
                if found.members != Members::alone(2, "b:2") {
                    assert!(found.members.voters == [[1, 2, 3].into()], "cut after {n}");
                }
                found.take_over(&SplitMix::new(6)).unwrap();
                let done = look(&disk);
                assert_eq!(done.members, Members::alone(2, "b:2"), "cut after {n}, seed {seed}");
                assert_eq!(done.databases, [("shop".to_owned(), 0)].into());
            }
        }
    }
}
