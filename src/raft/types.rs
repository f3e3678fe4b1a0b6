//! The types that openraft is instantiated with, and names for what it makes of them, so that
//! nobody else writes its generics; and the conversions between its entries, log ids and votes
//! and those of the log on disk ([`crate::log`]).
//!
//! openraft calls the leader of a term a `LeaderId`; ours is the standard one (one leader per
//! term), so a log id is a term and an index, nothing more.
//!
//! *Invariant*: a conversion to the log's types and back is the identity, and none of them copies
//! a command's bytes.

use std::fmt;
use std::io;

use bytes::Bytes;
use openraft::type_config::alias::{
    EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf,
};
use openraft::{EntryPayload, RaftTypeConfig, ServerState};

use super::membership::{decode_membership, encode_membership};
use super::snapshot::SnapshotHandle;
use crate::base::Role;
use crate::log;

/// A command of the state machine, encoded; what it says is known to the state machine only.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({self})")
    }
}

/// What became of one part of a command, decided from replicated facts only: equal on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The delta was applied.
    Applied,
    /// It is a part of a delta, and others are to follow.
    Staged,
    /// The delta's base version was not the database's newest: certainly not applied.
    Refused,
    /// The database was created under this id.
    Created(u64),
    /// A database of that name exists, under this id.
    Exists(u64),
    /// The database was dropped.
    Dropped,
    /// There is no such database.
    Missing,
}

/// The result of applying one entry: one outcome for each part of its command, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The outcomes; empty for an entry that carries no command.
    pub outcomes: Vec<Outcome>,
}

/// A member as the membership stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where its one port is, as `host:port`.
    pub address: String,
    /// What it is while it does not vote: stand-by or spare.
    pub role: Role,
}

impl Peer {
    /// A new member: a spare.
    pub fn spare(address: &str) -> Peer {
        Peer { address: address.to_owned(), role: Role::Spare }
    }
}

openraft::declare_raft_types!(
    /// openraft's type configuration.
    pub TypeConfig:
        D = Command,
        R = Applied,
        NodeId = u64,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = super::runtime::Runtime,
);

/// How a watched state is looked at (`borrow_watched`) and waited for (`changed`).
pub use openraft::async_runtime::watch::WatchReceiver as Watch;

/// A running consensus core over the state machine `M`.
pub type RaftOf<M> = openraft::Raft<TypeConfig, M>;
/// An entry as openraft holds it.
pub type RaftEntry = EntryOf<TypeConfig>;
/// A place in the log as openraft holds it.
pub type RaftLogId = LogIdOf<TypeConfig>;
/// A vote as openraft holds it.
pub type RaftVote = VoteOf<TypeConfig>;
/// Who leads which term.
pub type RaftLeaderId = <TypeConfig as RaftTypeConfig>::LeaderId;
/// The members of the cluster: voters, possibly of two configurations at once, and learners.
pub type Membership = openraft::Membership<u64, Peer>;
/// A membership with the place of its entry.
pub type StoredMembership = StoredMembershipOf<TypeConfig>;
/// What a snapshot says of itself: the last entry in it and the membership then.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
/// A snapshot: its meta and the handle of its data.
pub type Snapshot = SnapshotOf<TypeConfig, SnapshotHandle>;
/// The watched state of the core.
pub type Metrics = openraft::RaftMetrics<TypeConfig>;
/// The part of it that does not change with every entry.
pub type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;
/// The log as openraft's start-up reads it.
pub type RaftLogState = openraft::LogState<TypeConfig>;
/// A request to append entries.
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// The answer to one.
pub type AppendAnswer = openraft::raft::AppendEntriesResponse<TypeConfig>;
/// A request for a vote or a pre-vote.
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
/// The answer to one.
pub type VoteAnswer = openraft::raft::VoteResponse<TypeConfig>;
/// A request to take over leadership.
pub type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
/// The answer to one.
pub type TransferAnswer = openraft::raft::TransferLeaderResponse<TypeConfig>;
/// What came of a write, as its responder gets it.
pub type WriteResult = openraft::raft::ClientWriteResult<TypeConfig>;

/// The term that this node leads, as far as its watched state says. openraft's own `as_leader`
/// goes by the saved vote alone, and so names a leader that was restarted as leader still.
pub fn leading_term(metrics: &Metrics) -> Option<u64> {
    let vote = &metrics.vote;
    let ours = vote.committed && vote.leader_id.voted_for == metrics.id;
    (metrics.state == ServerState::Leader && ours).then_some(vote.leader_id.term)
}

/// A log id for openraft.
pub fn raft_log_id(id: log::LogId) -> RaftLogId {
    RaftLogId::new(id.term.into(), id.index)
}

/// A log id for the log.
pub fn log_id(id: &RaftLogId) -> log::LogId {
    log::LogId { term: id.committed_leader_id().term, index: id.index }
}

/// A vote for openraft.
pub fn raft_vote(vote: log::Vote) -> RaftVote {
    let leader_id = RaftLeaderId { term: vote.term, voted_for: vote.node };
    RaftVote { leader_id, committed: vote.committed }
}

/// A vote for the log.
pub fn log_vote(vote: &RaftVote) -> log::Vote {
    log::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// An entry for openraft. Fails with `InvalidData` where a membership is malformed.
pub fn raft_entry(entry: log::Entry) -> io::Result<RaftEntry> {
    let payload = match entry.kind {
        log::EntryKind::Blank => EntryPayload::Blank,
        log::EntryKind::Command => EntryPayload::Normal(Command(entry.payload)),
        log::EntryKind::Membership => {
            EntryPayload::Membership(decode_membership(entry.payload).map_err(io::Error::from)?)
        }
    };
    Ok(RaftEntry { log_id: raft_log_id(entry.id), payload })
}

/// An entry for the log.
pub fn log_entry(entry: RaftEntry) -> log::Entry {
    let id = log_id(&entry.log_id);
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (log::EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(command) => (log::EntryKind::Command, command.0),
        EntryPayload::Membership(membership) => {
            (log::EntryKind::Membership, encode_membership(&membership))
        }
    };
    log::Entry { id, kind, payload }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_go_to_the_log_and_back() {
        let nodes: BTreeMap<u64, Peer> =
            (1..=4).map(|id| (id, Peer::spare(&format!("host-{id}:9000")))).collect();
        let configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        let membership = Membership::new(configs, nodes).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Command(Bytes::from_static(b"delta"))),
            EntryPayload::Membership(membership),
        ] {
            let entry = RaftEntry { log_id: RaftLogId::new(7.into(), 42), payload };
            let stored = log_entry(entry.clone());
            assert_eq!(stored.id, log::LogId { term: 7, index: 42 });
            assert_eq!(raft_entry(stored).unwrap(), entry);
        }
    }

    proptest! {
        #[test]
        fn ids_and_votes_go_to_the_log_and_back(a: u64, b: u64, committed: bool) {
            let id = log::LogId { term: a, index: b };
            prop_assert_eq!(log_id(&raft_log_id(id)), id);
            let vote = log::Vote { term: a, node: b, committed };
            prop_assert_eq!(log_vote(&raft_vote(vote)), vote);
        }
    }
}
