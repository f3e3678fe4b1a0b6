//! The Raft log on disk: one append-only stream of records in preallocated segments, written by
//! one lane in call order and fsynced in groups. (Being built: `Log` goes here.)

use bytes::Bytes;

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
