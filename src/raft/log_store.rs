//! openraft's log storage over [`crate::log::Log`], which keeps every promise that openraft asks
//! for: this module only translates, pages and waits.
//!
//! An append returns at once, its entries readable; openraft hears of it when it is durable. A
//! vote, a truncation and a purge are awaited until they are durable, for openraft does not go on
//! without them. The committed index is noted, and never waited for.
//!
//! Reads are bounded by bytes, and go to a thread of their own where the entries are not in
//! memory.
//!
//! *Invariant*: no system call on a file is made on the asynchronous runtime, and no read holds
//! more than one page of entries beyond what it was asked to return at once.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::stream::{self, Stream};
use openraft::OptionalSend;
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogReader,
    RaftLogStorage,
};
use tokio::sync::oneshot;

use super::types::{
    RaftEntry, RaftLeaderId, RaftLogId, RaftVote, TypeConfig, log_entry, log_id, log_vote,
    raft_entry, raft_log_id, raft_vote,
};
use crate::base::{Executor, limits};
use crate::log::{Done, Log, LogId};

/// The log as openraft uses it. Clones share the log.
#[derive(Clone)]
pub struct LogStore {
    log: Log,
    executor: Executor,
}

impl LogStore {
    /// A store over `log`, with `executor` for reads that go to the disk.
    pub fn new(log: Log, executor: Executor) -> LogStore {
        LogStore { log, executor }
    }

    /// Some of the entries from `from` on, before `to`: at least one, if there is one.
    async fn page(&self, from: u64, to: u64) -> io::Result<Vec<RaftEntry>> {
        let bytes_max = limits::LOG_READ_BYTES_MAX;
        let entries = match self.log.read_cached(from, to, bytes_max) {
            Some(entries) => entries,
            None => {
                let log = self.log.clone();
                let read = self.executor.blocking(move || log.read(from, to, bytes_max)).await;
                read.unwrap_or_else(|| Err(io::Error::other("the node is stopping")))?
            }
        };
        entries.into_iter().map(raft_entry).collect()
    }

    /// The part of `range` that the log has: first index, and the one after the last.
    fn clamp(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let state = self.log.state();
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = end_of(range);
        let first = match state.purged {
            Some(purged) => purged.index + 1,
            // A cluster's log begins at 0; one that was filled otherwise (the storage test-suite
            // does so) begins at 1.
            None => {
                let zero = self.log.read_cached(0, 1, 0);
                u64::from(zero.is_some_and(|entries| entries.is_empty()))
            }
        };
        (from.max(first), to.min(state.last.map_or(0, |id| id.index + 1)))
    }

    /// Calls the log and waits until it is durable.
    async fn durable(&self, call: impl FnOnce(&Log, Done)) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        call(&self.log, Box::new(move |result| drop(tell.send(result))));
        told.await.unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
    }

    /// The error to give when `leader` is not the leader that the last vote is for.
    fn check_leader(&self, leader: &RaftLeaderId) -> Result<(), LeaderChanged<TypeConfig>> {
        let vote = self.log.state().vote.map(raft_vote);
        match vote {
            Some(vote) if vote.committed && vote.leader_id == *leader => Ok(()),
            vote => Err(LeaderChanged::new(*leader, vote)),
        }
    }
}

/// The index after the last of a range.
fn end_of(range: &impl RangeBounds<u64>) -> u64 {
    match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    }
}

/// Where a stream of entries stands.
struct Cursor {
    store: LogStore,
    page: std::vec::IntoIter<RaftEntry>,
    next: u64,
    end: u64,
}

impl Cursor {
    fn new(store: &LogStore, range: &impl RangeBounds<u64>) -> Cursor {
        let (next, end) = store.clamp(range);
        Cursor { store: store.clone(), page: Vec::new().into_iter(), next, end }
    }

    /// The next entry; none at the end of the range, or of the log where that comes first.
    /// `leader`: it must still lead, before and after entries are read from the log.
    async fn advance(
        &mut self,
        leader: Option<&RaftLeaderId>,
    ) -> Result<Option<RaftEntry>, LeaderBoundedStreamError<TypeConfig>> {
        if let Some(entry) = self.page.next() {
            return Ok(Some(entry));
        }
        if self.next >= self.end {
            return Ok(None);
        }
        let check = || leader.map_or(Ok(()), |leader| self.store.check_leader(leader));
        check()?;
        let page = self.store.page(self.next, self.end).await?;
        check()?;
        self.next += page.len() as u64;
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: RaftLeaderId,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let cursor = Cursor::new(self, &range);
        Box::pin(stream::unfold(Some((cursor, leader)), |at| async move {
            let (mut cursor, leader) = at?;
            match cursor.advance(Some(&leader)).await {
                Ok(entry) => Some((Ok(entry?), Some((cursor, leader)))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let cursor = Cursor::new(self, &range);
        let end = end_of(&range);
        Box::pin(stream::unfold(Some(cursor), move |cursor| async move {
            let mut cursor = cursor?;
            match cursor.advance(None).await {
                Ok(Some(entry)) => Some((Ok(entry), Some(cursor))),
                // What is missing was committed; here it was refused, for the log has failed. The
                // range must not count as applied.
                Ok(None) if cursor.next < end => Some((Err(cursor.store.log.ended()?), None)),
                Ok(None) => None,
                Err(LeaderBoundedStreamError::IoError(error)) => Some((Err(error), None)),
                Err(error) => Some((Err(io::Error::other(error.to_string())), None)),
            }
        }))
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut next, end) = self.clamp(&range);
        let mut entries = Vec::new();
        while next < end {
            let page = self.page(next, end).await?;
            if page.is_empty() {
                break;
            }
            next += page.len() as u64;
            entries.extend(page);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.state().vote.map(raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        self.page(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(raft_log_id),
            last_log_id: state.last.map(raft_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let vote = log_vote(vote);
        self.durable(|log, done| log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        Ok(self.log.state().committed.map(raft_log_id))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(log_entry).collect();
        self.log.append(entries, Box::new(move |result| flushed.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> io::Result<()> {
        let last_kept = last_kept.as_ref().map(log_id);
        let index = |id: Option<LogId>| id.map(|id| id.index);
        if index(last_kept) >= index(self.log.state().last) {
            return Ok(());
        }
        self.durable(|log, done| log.truncate_after(last_kept, done)).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let upto = log_id(&upto);
        self.durable(|log, done| log.purge(upto, done)).await
    }
}
