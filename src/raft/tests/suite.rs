//! openraft's storage test-suite on the log store. The suite purges without any checkpoint, so
//! the log's purge limit is lifted for it; nothing else is adapted.

use std::sync::Arc;

use futures::StreamExt;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, StorageError};

use super::super::log_store::LogStore;
use super::super::types::*;
use super::toy::Toy;
use crate::base::Executor;
use crate::disk::FakeDisk;
use crate::disk::fake::Fault;
use crate::log::{Log, LogId, LogOptions, Vote};

struct Builder(Executor, LogOptions);

impl StoreBuilder<TypeConfig, LogStore, Toy> for Builder {
    async fn build(&self) -> Result<((), LogStore, Toy), StorageError<TypeConfig>> {
        let log = Log::open(Arc::new(FakeDisk::unrecorded()), self.0, self.1).unwrap();
        log.set_purge_limit(Some(u64::MAX));
        Ok(((), LogStore::new(log, self.0), Toy::default()))
    }
}

/// With threads and without, and where nothing is held in memory.
#[tokio::test]
async fn the_storage_test_suite_passes() {
    let uncached = LogOptions { segment_bytes: 64 << 10, cache_bytes_max: 0 };
    let (threads, inline, disk) = tokio::join!(
        Suite::test_all(Builder(Executor::Threads, LogOptions::default())),
        Suite::test_all(Builder(Executor::Inline, LogOptions::default())),
        Suite::test_all(Builder(Executor::Threads, uncached)),
    );
    threads.unwrap();
    inline.unwrap();
    disk.unwrap();
}

fn entries(from: u64, count: u64, payload: usize) -> Vec<RaftEntry> {
    let entry = |index| RaftEntry {
        log_id: raft_log_id(LogId { term: 1, index }),
        payload: EntryPayload::Normal(Command(vec![index as u8; payload].into())),
    };
    (from..from + count).map(entry).collect()
}

async fn append(store: &mut LogStore, entries: Vec<RaftEntry>) {
    let (tell, told) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(tell)).await.unwrap();
    told.await.unwrap().unwrap();
}

/// Reads are bounded by bytes, and streams go on from page to page.
#[tokio::test]
async fn big_entries_are_read_in_pages() {
    let executor = Executor::Threads;
    let log = Log::open(Arc::new(FakeDisk::unrecorded()), executor, LogOptions::default()).unwrap();
    let mut store = LogStore::new(log, executor);
    let (count, payload) = (30, 1 << 20);
    for index in 0..count {
        append(&mut store, entries(index, 1, payload)).await;
    }
    let limited = store.limited_get_log_entries(0, count).await.unwrap();
    assert!((1..12).contains(&limited.len()), "{}", limited.len());
    assert_eq!(store.try_get_log_entries(..).await.unwrap().len() as u64, count);
    let streamed: Vec<_> = store.entries_stream(3..).await.collect().await;
    let indices: Vec<u64> = streamed.into_iter().map(|e| e.unwrap().log_id.index).collect();
    assert_eq!(indices, (3..count).collect::<Vec<_>>());
}

/// The log of a follower could not be written any more, and the entries that came after that were
/// refused. The cluster committed them meanwhile, and openraft had the state machine apply them: the
/// stream was empty, and they counted as applied, which a read that waited for them went by.
#[tokio::test]
async fn what_a_failed_log_refused_is_not_streamed_as_if_it_were_nothing() {
    let disk = FakeDisk::unrecorded();
    let log = Log::open(Arc::new(disk.clone()), Executor::Inline, LogOptions::default()).unwrap();
    let mut store = LogStore::new(log, Executor::Inline);
    append(&mut store, entries(0, 3, 10)).await;
    disk.fail_from(disk.calls(), Fault::Io);
    for index in 3..5 {
        let (tell, told) = TypeConfig::oneshot();
        store.append(entries(index, 1, 10), IOFlushed::signal(tell)).await.unwrap();
        assert!(told.await.unwrap().is_err());
    }
    let streamed: Vec<_> = store.entries_stream(2..5).await.collect().await;
    assert!(streamed.last().unwrap().is_err(), "{} entries and no error", streamed.len());
    let whole: Vec<_> = store.entries_stream(0..3).await.collect().await;
    assert_eq!(whole.into_iter().filter(|entry| entry.is_ok()).count(), 3);
}

/// A stream bounded by a leader ends when there is another vote.
#[tokio::test]
async fn a_new_vote_ends_a_stream_of_the_old_leader() {
    let executor = Executor::Threads;
    let log = Log::open(Arc::new(FakeDisk::unrecorded()), executor, LogOptions::default()).unwrap();
    let mut store = LogStore::new(log, executor);
    append(&mut store, entries(0, 20, 1 << 20)).await;
    let vote = |term, committed| raft_vote(Vote { term, node: 1, committed });
    store.save_vote(&vote(1, true)).await.unwrap();
    let leader = vote(1, true).leader_id;
    let mut reader = store.get_log_reader().await;
    let mut stream = Box::pin(reader.leader_bounded_stream(leader, 0..20).await);
    assert_eq!(stream.next().await.unwrap().unwrap().log_id.index, 0);
    store.save_vote(&vote(2, false)).await.unwrap();
    let rest: Vec<_> = stream.collect().await;
    assert!(rest.len() < 19);
    assert!(rest.last().unwrap().is_err());
}
