//! The Raft log on disk: one append-only stream of records in preallocated segments, written by
//! one lane in call order and synced in groups.
//!
//! The database's durability is this log's: it is the only write-ahead log there is. Entries,
//! votes, truncations, purges and the committed index are records of the one stream. What is called
//! is queued; the lane takes all that is queued, writes it at once and syncs it once (a *sync
//! group*), then calls back. So a [`Done`] with `Ok` says that the record it stands for, *and every
//! record before it*, is durable.
//!
//! Nothing that was written is ever overwritten. After a power cut the stream may end in a group
//! that was written in part ("a torn tail"): it is cut off, for nothing of it was acknowledged. A
//! bad record with later groups behind it was acknowledged: that is damage, [`Log::open`] refuses,
//! and [`mend`] puts back what can be proved. An error of a write or a sync ends the log's life: every later call fails, because
//! nobody can know what such a disk holds.
//!
//! It knows neither Raft nor what entries mean; it does not decide when to purge. The files are
//! drawn byte by byte in `docs/format.md`.
//!
//! *Invariant*: group n+1 is written only after group n is synced, and no `Done` is called with
//! `Ok` before the sync of its group.

mod front;
mod index;
mod look;
pub mod mend;
mod record;
mod recover;
mod store;
mod writer;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use look::Look;
pub use recover::newer_format;
pub use store::{Log, LogMetrics, LogOptions};

use crate::base::Fate;

/// Where in the log, and by the leader of which term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The entry's index; the first entry of a cluster has index 0.
    pub index: u64,
}

/// What kind of entry: what its payload means is known to `raft` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A new leader's first entry; no payload.
    Blank = 0,
    /// A command for the state machine.
    Command = 1,
    /// A membership.
    Membership = 2,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub id: LogId,
    /// What kind.
    pub kind: EntryKind,
    /// Its bytes, opaque here.
    pub payload: Bytes,
}

/// A node's vote in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// Who got the vote.
    pub node: u64,
    /// Whether a quorum granted it, as far as this node knows.
    pub committed: bool,
}

/// Called once when what was asked for is durable, or could not be made so.
pub type Done = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/// What a log holds, but for the entries themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Everything up to here has been purged.
    pub purged: Option<LogId>,
    /// The last entry; the purged one where no entry is left.
    pub last: Option<LogId>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// What is known to be committed; never beyond `last`.
    pub committed: Option<LogId>,
}

impl LogState {
    /// The index that the next entry must have; `None` while any will do (nothing was ever
    /// appended or purged).
    pub fn next_index(&self) -> Option<u64> {
        self.last.map(|last| last.index + 1)
    }

    /// The effect of one record of the stream.
    fn apply(&mut self, record: &record::Record<'_>) {
        use record::Record;
        match *record {
            Record::Entry { id, .. } => self.last = Some(id),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::TruncateAfter(last_kept) => {
                self.last = last_kept;
                if index_of(self.committed) > index_of(self.last) {
                    self.committed = self.last;
                }
            }
            Record::Purge(upto) => {
                if index_of(self.purged) < Some(upto.index) {
                    self.purged = Some(upto);
                }
                if index_of(self.last) < Some(upto.index) {
                    self.last = Some(upto);
                }
            }
            Record::Committed(committed) => {
                if index_of(committed) <= index_of(self.last) {
                    self.committed = committed;
                }
            }
        }
    }
}

fn index_of(id: Option<LogId>) -> Option<u64> {
    id.map(|id| id.index)
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A record is bad although later ones were acknowledged.
    #[error(
        "segment {segment} of the Raft log is damaged at byte {offset}, before data that was \
         acknowledged, so entries {first_index} to {last_index} and what else was recorded there \
         are lost on this node: remove this member from the cluster, empty its data directory and \
         join it anew"
    )]
    Damaged {
        /// The first entry that may be lost.
        first_index: u64,
        /// The last entry that may be lost, as far as can be told.
        last_index: u64,
        /// The segment, as in its file's name.
        segment: u64,
        /// Where in its file.
        offset: u64,
    },
    /// The log was written in a format that this version does not know.
    #[error("segment {segment} of the Raft log has format {found}, this version reads format 1")]
    Format {
        /// The segment, as in its file's name.
        segment: u64,
        /// The format it has.
        found: u32,
    },
    /// The disk failed.
    #[error("the Raft log cannot be opened: {0}")]
    Io(#[from] std::io::Error),
}

impl LogError {
    /// A node without its log must not go on.
    pub fn fate(&self) -> Fate {
        Fate::Fatal
    }
}
