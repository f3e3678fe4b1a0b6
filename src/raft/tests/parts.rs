//! Deltas in parts, through the state machine: equal to whole ones, interleaved, cut off by a
//! rewind or a new term, replayed after a power cut.

use std::sync::Arc;

use openraft::EntryPayload;
use proptest::prelude::*;
use tokio::sync::Notify;

use super::super::command;
use super::super::holds::PurgeHolds;
use super::super::machine::Machine;
use super::super::types::*;
use crate::base::{DatabaseId, DatabaseName, Env, Executor, Randomness, SplitMix, limits};
use crate::disk::FakeDisk;
use crate::log::{Log, LogId, LogOptions};
use crate::pages::delta::DeltaHeader;
use crate::pages::encoded::Parts;
use crate::pages::store::{Place, Point, Resolution, Waiting};
use crate::pages::{Catalog, Freeze, Part, Store};

const PAGE: usize = 4096;

/// Pages of a transaction that goes in several parts.
const MANY: u32 = 1600;

/// One replica: its disk, its databases, its state machine.
struct Replica {
    disk: FakeDisk,
    catalog: Arc<Catalog>,
    machine: Machine,
}

impl Replica {
    fn on(disk: FakeDisk) -> Replica {
        let catalog = Arc::new(Catalog::open(Arc::new(disk.clone())).unwrap());
        // What is applied is handed over by the test; the log has a disk of its own.
        let log_disk = Arc::new(FakeDisk::unrecorded());
        let log = Log::open(log_disk, Executor::Inline, LogOptions::default()).unwrap();
        let holds = PurgeHolds::new(Env::real().clock);
        let (of, told) = (catalog.clone(), Arc::new(Notify::new()));
        let machine = Machine::new(of, log, holds, Executor::Inline, told);
        Replica { disk, catalog, machine }
    }

    fn store(&self, id: DatabaseId) -> Arc<Store> {
        self.catalog.by_id(id).unwrap()
    }

    fn apply(&self, entry: &RaftEntry) -> Vec<Outcome> {
        self.machine.apply_entry(entry).unwrap().outcomes
    }

    /// Applies what comes after the checkpoint record, as a start does.
    fn replay(&self, log: &[RaftEntry]) {
        let from = self.catalog.recorded().last.map_or(0, |last| last.index + 1);
        for entry in log.iter().filter(|entry| entry.log_id.index >= from) {
            self.apply(entry);
        }
    }
}

/// The log so far, and the term in which it goes on.
struct History {
    log: Vec<RaftEntry>,
    term: u64,
}

impl History {
    fn new() -> History {
        History { log: Vec::new(), term: 1 }
    }

    fn add(&mut self, payload: EntryPayload<Command, NodeIdOf, Peer>) -> RaftEntry {
        let id = LogId { term: self.term, index: self.log.len() as u64 };
        let entry = RaftEntry { log_id: raft_log_id(id), payload };
        self.log.push(entry.clone());
        entry
    }

    fn command(&mut self, command: Command) -> RaftEntry {
        self.add(EntryPayload::Normal(command))
    }
}

type NodeIdOf = crate::base::NodeId;

/// Two replicas with the databases 1 and 2, the first of which leads in term 1.
fn pair(history: &mut History) -> [Replica; 2] {
    let replicas = [FakeDisk::unrecorded(), FakeDisk::new()].map(Replica::on);
    let entries = [
        history.add(EntryPayload::Blank),
        history.command(command::create(&DatabaseName::new("one").unwrap(), PAGE)),
        history.command(command::create(&DatabaseName::new("two").unwrap(), PAGE)),
    ];
    for replica in &replicas {
        for entry in &entries {
            replica.apply(entry);
        }
    }
    for id in [1, 2] {
        replicas[0].store(id).open_slot(1);
    }
    replicas
}

/// Executes a transaction that fills `pages` pages, from `first` on, and makes the database
/// `page_count` pages long.
fn execute(store: &Arc<Store>, first: u32, pages: u32, page_count: u32, seed: u64) -> Waiting {
    let random = SplitMix::new(seed);
    let snapshot = store.snapshot_head().unwrap();
    let mut write = Freeze::new(store, snapshot.point().page_count);
    let mut content = vec![0; PAGE];
    for page in first..first + pages {
        for word in content.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next_u64().to_le_bytes());
        }
        write.write(page, &content).unwrap();
    }
    content[16..21].copy_from_slice(&[0x10, 0, 1, 1, 0]);
    content[28..32].copy_from_slice(&page_count.to_be_bytes());
    write.write(1, &content).unwrap();
    write.announce().unwrap();
    let frozen = store.freeze(&snapshot, &write).unwrap().unwrap();
    store.publish(frozen).1
}

/// The next entry of a database; `None` when there is nothing to append.
fn next_entry(history: &mut History, store: &Store) -> Option<RaftEntry> {
    let outgoing = store.take_outgoing()?;
    let command = match outgoing.part {
        None => command::deltas(&[outgoing.bytes]),
        Some((parts, number)) => {
            let (bytes, last) = (parts.read(number).unwrap(), number + 1 == parts.count());
            assert!(bytes.len() <= limits::PART_BYTES_MAX);
            let (database, id) = (store.id(), outgoing.id);
            command::part(&Part { database, id, number, last, bytes: &bytes })
        }
    };
    Some(history.command(command))
}

/// Appends and applies everything that `leader` has to propose, databases in turn.
fn commit_all(history: &mut History, replicas: &[Replica], leader: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    loop {
        let before = outcomes.len();
        for id in [1, 2] {
            if let Some(entry) = next_entry(history, &replicas[leader].store(id)) {
                outcomes.extend(apply_all(replicas, &entry));
            }
        }
        if outcomes.len() == before {
            return outcomes;
        }
    }
}

/// Applies an entry everywhere; all must come to the same.
fn apply_all(replicas: &[Replica], entry: &RaftEntry) -> Vec<Outcome> {
    let mut all = replicas.iter().map(|replica| replica.apply(entry));
    let first = all.next().unwrap();
    assert!(all.all(|outcomes| outcomes == first));
    first
}

fn assert_equal(replicas: &[Replica]) {
    for id in [1, 2] {
        let points: Vec<Point> =
            replicas.iter().map(|replica| replica.store(id).verify().unwrap()).collect();
        assert!(points.windows(2).all(|pair| pair[0] == pair[1]), "{points:?}");
    }
}

fn resolved(waiting: Waiting) -> Option<Resolution> {
    match waiting {
        Waiting::Now(resolution) => Some(resolution),
        Waiting::Later(mut receiver) => receiver.try_recv().ok().flatten(),
    }
}

fn whole(parts: &Parts) -> Vec<u8> {
    (0..parts.count()).flat_map(|number| parts.read(number).unwrap()).collect()
}

#[test]
fn a_large_delta_goes_in_parts_that_are_the_whole() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let leader = replicas[0].store(1);
    let waiting = execute(&leader, 2, MANY, MANY + 1, 7);
    assert!(leader.next_is_part());
    let Some((parts, 0)) = leader.take_outgoing().and_then(|outgoing| outgoing.part) else {
        panic!("a part")
    };
    assert!(parts.count() > 4);
    let bytes = whole(&parts);
    let header = DeltaHeader::decode(&mut crate::codec::Reader::new(&bytes)).unwrap();
    let place = Place { index: 9, ordinal: 1 };
    for replica in &replicas {
        replica.store(1).apply(&header, &bytes, place).unwrap();
    }
    assert_equal(&replicas);
    assert_eq!(resolved(waiting), Some(Resolution::Applied));
}

#[test]
fn a_small_delta_of_many_pages_keeps_its_images_in_a_file() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let leader = replicas[0].store(1);
    // 40 MB of zeros that growth brings, and the first page.
    let pages = 10_000;
    drop(execute(&leader, 1, 1, pages, 1));
    commit_all(&mut history, &replicas, 0);
    let heap_max = limits::TRANSACTION_HEAP_BYTES_MAX as u64;
    let (heap, spilled) = replicas[1].store(1).overlay_held();
    assert!(heap <= heap_max && heap + spilled == u64::from(pages) * PAGE as u64);
    assert_equal(&replicas);
    replicas[1].catalog.checkpoint().unwrap();
    assert_eq!(replicas[1].store(1).overlay_held(), (0, 0));
    assert_equal(&replicas);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Transactions of any size on two databases, their parts in turn, checkpoints anywhere.
    #[test]
    fn interleaved_parts_leave_equal_stores(
        steps in prop::collection::vec((1_u64..3, 1_u32..2000, 1_u32..2500, any::<bool>()), 1..5),
        seed in any::<u64>(),
    ) {
        let mut history = History::new();
        let replicas = pair(&mut history);
        for (n, (id, first, pages, checkpoint)) in (0..).zip(steps) {
            let leader = replicas[0].store(id);
            // It may also cut the database.
            drop(execute(&leader, first + 1, pages, first + pages, seed.wrapping_add(n)));
            if checkpoint {
                commit_all(&mut history, &replicas, 0);
                replicas[0].catalog.checkpoint().unwrap();
            }
        }
        commit_all(&mut history, &replicas, 0);
        assert_equal(&replicas);
        let late = Replica::on(FakeDisk::unrecorded());
        late.replay(&history.log);
        let [leader, follower] = replicas;
        assert_equal(&[leader, follower, late]);
    }
}

/// While parts are gathered the record stays before the first; the other database goes on.
#[test]
fn the_record_waits_for_the_last_part() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    drop(execute(&replicas[0].store(1), 2, MANY, MANY + 1, 7));
    let first = next_entry(&mut history, &replicas[0].store(1)).unwrap();
    apply_all(&replicas, &first);
    drop(execute(&replicas[0].store(2), 2, 3, 4, 8));
    let other = next_entry(&mut history, &replicas[0].store(2)).unwrap();
    apply_all(&replicas, &other);
    for replica in &replicas {
        let covered = replica.catalog.checkpoint().unwrap();
        assert_eq!(covered.last.unwrap().index + 1, first.log_id.index);
        assert!(!replica.store(2).is_dirty(), "it is folded all the same");
    }
    // A restart in the middle: the stage is made anew, nothing is applied twice.
    let [leader, follower] = replicas;
    let follower = Replica::on(follower.disk.cut(crate::disk::Cut::Lose));
    assert_eq!(follower.catalog.applied().last.unwrap().index + 1, first.log_id.index);
    follower.replay(&history.log);
    let replicas = [leader, follower];
    commit_all(&mut history, &replicas, 0);
    for replica in &replicas {
        let covered = replica.catalog.checkpoint().unwrap();
        assert_eq!(covered.last, replica.catalog.applied().last);
    }
    assert_equal(&replicas);
}

/// The leader has dropped it, yet all parts are in the log: it is patched from its own parts.
#[test]
fn a_rewind_in_the_middle_of_parts_that_are_committed_all_the_same() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let waiting = execute(&replicas[0].store(1), 2, MANY, MANY + 1, 7);
    let mut entries = Vec::new();
    while let Some(entry) = next_entry(&mut history, &replicas[0].store(1)) {
        entries.push(entry);
    }
    for (n, entry) in entries.iter().enumerate() {
        if n == 3 {
            replicas[0].store(1).rewind();
        }
        apply_all(&replicas, entry);
    }
    assert_eq!(resolved(waiting), Some(Resolution::Dropped { proposed: true }));
    assert_eq!(replicas[0].store(1).applied().version, 1);
    assert_equal(&replicas);
}

/// A new leader's first entry discards what was gathered; so does a delta that comes between.
#[test]
fn parts_that_nobody_finishes_are_discarded_by_all() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let leader = replicas[0].store(1);
    let waiting = execute(&leader, 2, MANY, MANY + 1, 7);
    for _ in 0..3 {
        let entry = next_entry(&mut history, &leader).unwrap();
        assert_eq!(apply_all(&replicas, &entry), [Outcome::Staged]);
    }
    let rest = next_entry(&mut History::new(), &leader).unwrap();
    history.term = 2;
    let blank = history.add(EntryPayload::Blank);
    apply_all(&replicas, &blank);
    assert!(replicas.iter().all(|replica| replica.store(1).stage().is_none()));
    assert_eq!(resolved(waiting), Some(Resolution::Dropped { proposed: true }));

    // The other one leads: its delta begins, a stray part of the old one comes between.
    replicas[1].store(1).open_slot(2);
    let waiting = execute(&replicas[1].store(1), 2, MANY, MANY + 1, 9);
    let first = next_entry(&mut history, &replicas[1].store(1)).unwrap();
    assert_eq!(apply_all(&replicas, &first), [Outcome::Staged]);
    let EntryPayload::Normal(stray) = rest.payload else { panic!("a part") };
    let stray = history.command(stray);
    assert_eq!(apply_all(&replicas, &stray), [Outcome::Refused]);
    assert!(replicas.iter().all(|replica| replica.store(1).stage().is_none()));
    let next = next_entry(&mut history, &replicas[1].store(1)).unwrap();
    assert_eq!(apply_all(&replicas, &next), [Outcome::Refused]);
    assert!(matches!(resolved(waiting), Some(Resolution::Dropped { .. })));

    // And again, from the start.
    replicas[1].store(1).open_slot(2);
    drop(execute(&replicas[1].store(1), 2, MANY, MANY + 1, 9));
    let outcomes = commit_all(&mut history, &replicas, 1);
    assert_eq!(outcomes.last(), Some(&Outcome::Applied));
    assert_equal(&replicas);
    let late = Replica::on(FakeDisk::unrecorded());
    late.replay(&history.log);
    assert_eq!(late.store(1).verify().unwrap(), replicas[0].store(1).applied());
}

/// Said by the leader when it will not send the others.
#[test]
fn a_discarded_delta_holds_back_no_record() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let leader = replicas[0].store(1);
    drop(execute(&leader, 2, MANY, MANY + 1, 7));
    let id = leader.head().delta;
    let first = next_entry(&mut history, &leader).unwrap();
    apply_all(&replicas, &first);
    leader.rewind();
    let discard = history.command(command::discard(1, id));
    apply_all(&replicas, &discard);
    for replica in &replicas {
        assert!(replica.store(1).stage().is_none());
        assert_eq!(replica.catalog.checkpoint().unwrap().last, replica.catalog.applied().last);
    }
}

/// Power cuts while parts are gathered, folded and replayed: every one opens and comes to the
/// same, from what its record says.
#[test]
fn power_cuts_over_staging_and_checkpoints() {
    let mut history = History::new();
    let replicas = pair(&mut history);
    let [leader, follower] = &replicas;
    drop(execute(&leader.store(2), 2, 3, 4, 1));
    commit_all(&mut history, &replicas, 0);
    drop(execute(&leader.store(1), 2, MANY, MANY + 1, 2));
    drop(execute(&leader.store(1), 2, 5, MANY + 1, 3));
    let mut n = 0;
    loop {
        n += 1;
        drop(execute(&leader.store(2), n, 2, 2 * n + 8, u64::from(n)));
        let before = history.log.len();
        for id in [1, 2] {
            if let Some(entry) = next_entry(&mut history, &leader.store(id)) {
                apply_all(&replicas, &entry);
            }
        }
        if n % 3 == 0 {
            follower.catalog.checkpoint().unwrap();
        }
        if history.log.len() - before < 2 {
            break;
        }
    }
    follower.catalog.checkpoint().unwrap();
    assert_equal(&replicas);

    let calls = follower.disk.calls();
    let random = SplitMix::new(1);
    for seed in 0..40 {
        let cut = follower.disk.after_cut(random.next_u64() % (calls + 1), seed);
        let again = Replica::on(cut);
        let log = &history.log;
        // Cut again while it replays.
        let half = again.disk.calls();
        again.replay(&log[..log.len() - 2]);
        again.catalog.checkpoint().unwrap();
        let calls = again.disk.calls() - half;
        let again = Replica::on(again.disk.after_cut(half + random.next_u64() % (calls + 1), seed));
        again.replay(log);
        for id in [1, 2] {
            let point = again.store(id).verify().unwrap();
            assert_eq!(point, leader.store(id).applied(), "seed {seed}, database {id}");
        }
    }
}
