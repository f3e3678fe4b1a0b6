//! The log as its users see it: calls are taken in at once and made durable by the lane.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use parking_lot::Mutex;

use super::front::{Ask, Found, Front};
use super::index::Place;
use super::record::{Record, decode};
use super::writer::start;
use super::{Done, Entry, LogError, LogId, LogState, Vote};
use crate::base::{Executor, Lane, limits};
use crate::disk::{Disk, DiskFile};

/// Records with at most this much between them are read in one go.
const READ_GAP_BYTES_MAX: u64 = 16 << 10;

/// How large things get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment is preallocated at this size (a larger one where one record needs it).
    pub segment_bytes: u64,
    /// At most this many bytes of the newest entries are held in memory, beside those on their
    /// way to the disk.
    pub cache_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            cache_bytes_max: limits::LOG_CACHE_BYTES_MAX,
        }
    }
}

/// Counts since the log was opened.
#[derive(Debug, Default)]
pub struct LogMetrics {
    /// Sync groups written: each is one write and one sync.
    pub groups: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Bytes of those records.
    pub bytes: AtomicU64,
    /// The most records that one group had.
    pub group_records_max: AtomicU64,
    /// How often the next segment could not be made ahead of its use.
    pub spare_failures: AtomicU64,
}

/// The Raft log of one node. Clones share it; it stops when the last one is dropped, or by
/// [`Log::stop`].
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    front: Arc<Mutex<Front>>,
    lane: Lane,
    metrics: Arc<LogMetrics>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn stop(&self) {
        self.front.lock().stopped = true;
        // What was queued before is written; nothing is queued any more.
        self.lane.poke();
        self.lane.stop();
    }
}

impl Log {
    /// Opens the log of a data directory, or makes an empty one. What it then holds is durable.
    pub fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        options: LogOptions,
    ) -> Result<Log, LogError> {
        let metrics = Arc::new(LogMetrics::default());
        let (front, mut writer) = start(disk, options, metrics.clone())?;
        let lane = executor.lane("log", move || writer.run());
        Ok(Log { inner: Arc::new(Inner { front, lane, metrics }) })
    }

    /// What the log holds, calls that are not yet durable included.
    pub fn state(&self) -> LogState {
        self.inner.front.lock().state
    }

    /// The error that every call meets, where the log takes no more of them.
    pub fn ended(&self) -> Option<io::Error> {
        self.inner.front.lock().ended().map(|ended| ended.error())
    }

    /// Appends entries, whose indices must go on from the last one. They can be read as soon as
    /// this returns; `done` is called when they, and everything called before, are durable.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.call(Ask::Append(entries), done);
    }

    /// Records a vote.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        self.call(Ask::Vote(vote), done);
    }

    /// Drops all entries after `last_kept` (all there are, if `None`).
    pub fn truncate_after(&self, last_kept: Option<LogId>, done: Done) {
        self.call(Ask::TruncateAfter(last_kept), done);
    }

    /// Drops all entries up to `upto`; beyond the last entry, the log goes on after it. Refused
    /// above the purge limit.
    pub fn purge(&self, upto: LogId, done: Done) {
        self.call(Ask::Purge(upto), done);
    }

    /// Notes what is committed; one beyond the last entry is not noted. It becomes durable with
    /// a later call, or when the log is stopped.
    pub fn save_committed(&self, committed: Option<LogId>) {
        let mut front = self.inner.front.lock();
        let before = front.state.committed;
        front.state.apply(&Record::Committed(committed));
        front.committed_is_new |= front.state.committed != before;
    }

    /// Entries from `from` on, consecutive, before `to_exclusive`, of about `bytes_max` bytes at
    /// most but at least one if there is an entry `from`. Purged entries, and those after the last,
    /// are not there. Blocks when they are not in memory.
    pub fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let Found { places, cached } = self.inner.front.lock().find(from, to_exclusive, bytes_max);
        if places.is_empty() {
            return Ok(cached);
        }
        let mut entries = Vec::with_capacity(places.len() + cached.len());
        let mut rest = &places[..];
        while let Some(n) = together(rest) {
            let (run, after) = rest.split_at(n);
            read_run(run, &mut entries)?;
            rest = after;
        }
        entries.extend(cached);
        Ok(entries)
    }

    /// As [`Log::read`], where all of it is in memory; `None` where the disk would have to be read.
    pub fn read_cached(
        &self,
        from: u64,
        to_exclusive: u64,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        let Found { places, cached } = self.inner.front.lock().find(from, to_exclusive, bytes_max);
        places.is_empty().then_some(cached)
    }

    /// The highest index that may be purged (that of the durable checkpoint record); none may
    /// before this is called.
    pub fn set_purge_limit(&self, index_max: Option<u64>) {
        self.inner.front.lock().purge_limit = index_max;
    }

    /// Bytes of the entries from `index` to the end, as they are on disk.
    pub fn bytes_since(&self, index: u64) -> u64 {
        self.inner.front.lock().bytes_since(index)
    }

    /// Counters for metrics.
    pub fn metrics(&self) -> &LogMetrics {
        &self.inner.metrics
    }

    /// Makes durable what was called before, then ends; every later call fails.
    pub fn stop(&self) {
        self.inner.stop();
    }

    fn call(&self, ask: Ask, done: Done) {
        let taken = self.inner.front.lock().call(ask, done);
        match taken {
            Ok(()) => self.inner.lane.poke(),
            Err((done, error)) => done(Err(error)),
        }
    }
}

/// How many of the first places are read in one go.
fn together(places: &[(u64, Place, Arc<dyn DiskFile>)]) -> Option<usize> {
    places.first()?;
    let near = |pair: &[(u64, Place, _)]| {
        let (before, after) = (pair[0].1, pair[1].1);
        let end = before.offset + before.bytes;
        before.segment == after.segment && (end..=end + READ_GAP_BYTES_MAX).contains(&after.offset)
    };
    Some(1 + places.windows(2).take_while(|pair| near(pair)).count())
}

/// Reads records that lie together in one segment.
fn read_run(run: &[(u64, Place, Arc<dyn DiskFile>)], out: &mut Vec<Entry>) -> io::Result<()> {
    let (Some((_, first, file)), Some((_, last, _))) = (run.first(), run.last()) else {
        return Ok(());
    };
    let bytes = usize::try_from(last.offset + last.bytes - first.offset)
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut buf = vec![0; bytes];
    let got = file.read_at(&mut buf, first.offset)?;
    buf.truncate(got);
    // The payloads share the buffer: one allocation for the run.
    let buf = Bytes::from(buf);
    for (index, place, _) in run {
        let at = usize::try_from(place.offset - first.offset).unwrap_or(usize::MAX);
        let decoded = buf.get(at..).and_then(|rest| decode(rest, place.segment, place.offset));
        match decoded.map(|decoded| decoded.record) {
            Some(Record::Entry { id, kind, payload }) if id.index == *index => {
                out.push(Entry { id, kind, payload: buf.slice_ref(payload) });
            }
            _ => {
                let (segment, offset) = (place.segment, place.offset);
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "entry {index} of the Raft log is damaged: segment {segment}, byte {offset}"
                    ),
                ));
            }
        }
    }
    Ok(())
}
