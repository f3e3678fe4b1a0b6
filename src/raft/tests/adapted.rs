//! openraft's storage test-suite on the real state machine and the real log store, through an
//! adapter. What is adapted, and why:
//!
//! | case of the suite | what the adapter does |
//! |---|---|
//! | `snapshot_meta`, `transfer_snapshot` build a snapshot and expect it at what is applied; ours answers with the durable checkpoint record | a build is preceded by a checkpoint |
//! | `transfer_snapshot` expects no snapshot before the first build; ours is a view of whatever is applied, once consensus is built | the first build opens the views |
//! | `transfer_snapshot` hands what one machine gives straight to another; ours goes through a transport | installing a view receives it through the real sink first |
//! | `purge_logs_upto_0`, `_5`, `_20`, `append_to_log`, `try_get_log_entry`, `get_log_id`, `get_log_state`, `last_id_in_log`, `get_initial_state_log_ids`, `_re_apply_committed`, `_membership_from_log_insm_is_smaller`, `_last_log_lt_sm` purge with no checkpoint; ours refuses to purge beyond the checkpoint record | a purge is preceded by moving the limit that the record sets |
//!
//! All other cases run as they are.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use futures::Stream;
use openraft::storage::{
    EntryResponder, IOFlushed, LeaderBoundedStreamResult, LogState, RaftLogReader, RaftLogStorage,
    RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, OptionalSend, StorageError};
use tokio::sync::Notify;

use super::super::command;
use super::super::holds::PurgeHolds;
use super::super::log_store::LogStore;
use super::super::machine::{Machine, purge};
use super::super::snapshot::{PageRange, SnapshotHandle, SnapshotOffer, SnapshotSink};
use super::super::types::*;
use super::super::view::IncomingSink;
use crate::base::{DatabaseName, Env, Executor};
use crate::disk::FakeDisk;
use crate::log::{Log, LogId, LogOptions};
use crate::pages::Catalog;

/// The real machine, adapted.
#[derive(Clone)]
struct Adapted {
    machine: Machine,
    catalog: Arc<Catalog>,
}

impl RaftSnapshotBuilder<TypeConfig> for Adapted {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.catalog.checkpoint().map_err(io::Error::other)?;
        self.machine.open_views();
        self.machine.build_snapshot().await
    }
}

impl RaftStateMachine<TypeConfig> for Adapted {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Adapted;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        self.machine.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        self.machine.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> Adapted {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> io::Result<()> {
        let snapshot = match snapshot {
            SnapshotHandle::Source(source) => {
                let mut sink = Box::new(IncomingSink::new(self.catalog.clone()));
                let databases = source.databases();
                sink.begin(&SnapshotOffer { from: 1, meta: meta.clone(), databases })?;
                for database in source.databases() {
                    for first in 1..=database.page_count {
                        let pages = PageRange { first, count: 1 };
                        let hashes = source.hashes(database.id, pages)?;
                        if !sink.missing(database.id, first, &hashes)?.is_empty() {
                            let mut bytes = Vec::new();
                            source.read(database.id, pages, &mut bytes)?;
                            sink.receive(database.id, first, &bytes)?;
                        }
                    }
                }
                SnapshotHandle::Ready(sink.finish()?)
            }
            other => other,
        };
        self.machine.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.machine.get_current_snapshot().await
    }
}

/// The real log store, adapted.
#[derive(Clone)]
struct AdaptedLog {
    store: LogStore,
    log: Log,
}

impl RaftLogReader<TypeConfig> for AdaptedLog {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: RaftLeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.store.leader_bounded_stream(leader, range).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.store.entries_stream(range).await
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.store.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        self.store.read_vote().await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        self.store.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for AdaptedLog {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.store.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        self.store.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.store.append(entries, flushed).await
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> io::Result<()> {
        self.store.truncate_after(last_kept).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        self.log.set_purge_limit(Some(upto.index));
        self.store.purge(upto).await
    }
}

struct Builder(Executor);

impl StoreBuilder<TypeConfig, AdaptedLog, Adapted> for Builder {
    async fn build(&self) -> Result<((), AdaptedLog, Adapted), StorageError<TypeConfig>> {
        let disk = Arc::new(FakeDisk::unrecorded());
        let log = Log::open(disk.clone(), self.0, LogOptions::default()).unwrap();
        let catalog = Arc::new(Catalog::open(disk).unwrap());
        let holds = PurgeHolds::new(Env::real().clock);
        let disturbed = Arc::new(Notify::new());
        let machine = Machine::new(catalog.clone(), log.clone(), holds, self.0, disturbed);
        let store = AdaptedLog { store: LogStore::new(log.clone(), self.0), log };
        Ok(((), store, Adapted { machine, catalog }))
    }
}

fn machine_on(disk: &FakeDisk) -> (Adapted, Log) {
    let log = Log::open(Arc::new(disk.clone()), Executor::Inline, LogOptions::default()).unwrap();
    let catalog = Arc::new(Catalog::open(Arc::new(disk.clone())).unwrap());
    let holds = PurgeHolds::new(Env::real().clock);
    let machine =
        Machine::new(catalog.clone(), log.clone(), holds, Executor::Inline, Arc::default());
    (Adapted { machine, catalog }, log)
}

/// Entries that create databases, from 1 on.
fn entries(names: &[&str]) -> Vec<RaftEntry> {
    let entry = |(index, name): (u64, &&str)| RaftEntry {
        log_id: raft_log_id(LogId { term: 1, index }),
        payload: EntryPayload::Normal(command::create(&DatabaseName::new(name).unwrap(), 4096)),
    };
    (1..).zip(names).map(entry).collect()
}

async fn apply(machine: &mut Adapted, entries: Vec<RaftEntry>) {
    let items = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

/// Power is cut at every call of an install, the log's included: log and checkpoint record fit
/// together at the next start, whatever is left.
#[tokio::test]
async fn a_cut_install_leaves_log_and_checkpoint_that_fit() {
    let names = ["one", "two", "three", "four", "five"];
    let (mut leader, _log) = machine_on(&FakeDisk::unrecorded());
    apply(&mut leader, entries(&names)).await;
    leader.machine.open_views();
    let disk = FakeDisk::new();
    let (mut follower, log) = machine_on(&disk);
    let (tell, told) = TypeConfig::oneshot();
    let mut store = LogStore::new(log.clone(), Executor::Inline);
    store.append(entries(&names[..2]), IOFlushed::signal(tell)).await.unwrap();
    told.await.unwrap().unwrap();
    apply(&mut follower, entries(&names[..2])).await;
    follower.catalog.checkpoint().unwrap();
    let first = disk.calls();
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    assert!(matches!(snapshot.snapshot, SnapshotHandle::Source(_)));
    follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(follower.catalog.all().len(), 5);
    let (mut old, mut new, mut pending) = (0, 0, 0);
    for call in first..=disk.calls() {
        for seed in [0, 1, 100 + call] {
            let (machine, log) = machine_on(&disk.after_cut(call, seed));
            if let Some(last) = machine.catalog.installed_at_start() {
                pending += 1;
                purge(&log, last).unwrap();
                machine.catalog.forget_install().unwrap();
            }
            let recorded = machine.catalog.recorded().last.unwrap();
            let state = log.state();
            assert!(state.last.max(state.purged) >= Some(recorded), "call {call} seed {seed}");
            match (recorded.index, machine.catalog.all().len()) {
                (2, 2) => old += 1,
                (5, 5) => new += 1,
                other => panic!("call {call} seed {seed}: {other:?}"),
            }
        }
    }
    assert!(old > 10 && new > 10 && pending > 5, "{old} old, {new} new, {pending} pending");
}

#[tokio::test]
async fn the_storage_test_suite_passes_on_the_real_machine() {
    let (threads, inline) = tokio::join!(
        Suite::test_all(Builder(Executor::Threads)),
        Suite::test_all(Builder(Executor::Inline))
    );
    threads.unwrap();
    inline.unwrap();
}
