//! The running consensus core as the rest of the node sees it: append in a term, ask for a read
//! index, know who leads, change the membership.
//!
//! *Invariant*: `NotAppended` is said only of a command that is in no log.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::metrics::WaitError;
use openraft::raft::ReadPolicy;
use openraft::type_config::alias::{OneshotReceiverOf, SerdeInstantOf, WatchReceiverOf};
use openraft::{Instant as _, ServerState};

use crate::base::{MemberInfo, NodeId, Role};
use crate::log::LogId;
use crate::pages::Store;

use super::machine::Machine;
use super::types::{
    Command, Membership, Metrics, Outcome, Peer, RaftOf, ServerMetrics, TypeConfig, WriteResult,
    leading_term, log_id,
};

/// One wait for recovery.
const RECOVERY_WAIT: Duration = Duration::from_secs(5);

/// Leadership goes to a voter that was heard within this time, if there is one.
const SUCCESSOR_SILENCE_MAX: Duration = Duration::from_secs(1);

/// openraft's core over our state machine.
pub type Raft = RaftOf<Machine>;

/// Why a command was not seen to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// This node does not lead in that term (any more); the command is in no log.
    #[error("not leader")]
    NotAppended,
    /// It may be in a log; whether it is or will be committed is not known.
    #[error("leadership lost")]
    Unknown,
}

/// A command on its way: queued for the log, not yet applied.
pub struct Written(OneshotReceiverOf<TypeConfig, WriteResult>);

impl Written {
    /// Waits until it is applied here; what became of its parts.
    pub async fn applied(self) -> Result<Vec<Outcome>, WriteFailure> {
        match self.0.await {
            Ok(Ok(response)) => Ok(response.data.outcomes),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(WriteFailure::NotAppended),
            Ok(Err(_)) | Err(_) => Err(WriteFailure::Unknown),
        }
    }
}

/// Who leads, as the core last said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreView {
    /// The term that this node is in.
    pub term: u64,
    /// The leader it knows, with its address.
    pub leader: Option<(NodeId, String)>,
    /// Whether that is this node, with a vote that a quorum granted.
    pub leads: bool,
    /// Who is a member.
    pub members: Vec<MemberInfo>,
    /// Index of the last entry applied here.
    pub applied: Option<u64>,
    /// What ended the core, if something did.
    pub fatal: Option<String>,
}

/// Whether this node leads. openraft's own `as_leader` goes by the saved vote alone, and so names
/// a leader that was restarted as leader still.
fn leads(server: &ServerMetrics) -> bool {
    let ours = server.vote.committed && server.vote.leader_id.voted_for == server.id;
    ours && server.state == ServerState::Leader
}

fn age_of(acked: &SerdeInstantOf<TypeConfig>) -> Duration {
    acked.into_inner().elapsed()
}

/// The members that a membership names.
pub(super) fn members_of(membership: &Membership) -> Vec<MemberInfo> {
    let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
    let role = |id: &NodeId, peer: &Peer| if voters.contains(id) { Role::Voter } else { peer.role };
    let member = |(id, peer): (&NodeId, &Peer)| MemberInfo {
        id: *id,
        address: peer.address.clone(),
        role: role(id, peer),
    };
    membership.nodes().map(member).collect()
}

/// The core.
#[derive(Clone)]
pub struct Core {
    pub(super) id: NodeId,
    pub(super) raft: Raft,
    pub(super) metrics: WatchReceiverOf<TypeConfig, Metrics>,
    /// Changes with who leads and who is a member, not with every entry.
    pub(super) server: WatchReceiverOf<TypeConfig, ServerMetrics>,
    /// One change of the membership at a time.
    pub(super) changes: Arc<tokio::sync::Mutex<()>>,
}

impl Core {
    /// Wraps a built core.
    pub fn new(id: NodeId, raft: Raft) -> Core {
        let (metrics, server) = (raft.metrics(), raft.server_metrics());
        Core { id, raft, metrics, server, changes: Arc::default() }
    }

    /// openraft's own handle, for the peers' doors.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Queues a command for the log, if this node leads in `term`. Returns when queued, so that
    /// one caller's commands are appended in the order of its calls.
    pub async fn write(&self, command: Command, term: u64) -> Result<Written, WriteFailure> {
        let (responder, completed) = ProgressResponder::complete_only();
        match self.raft.write(command).with_leader(term).responder(responder).await {
            Ok(()) => Ok(Written(completed)),
            Err(_) => Err(WriteFailure::Unknown),
        }
    }

    /// Confirms by a round to a quorum, begun now, that this node leads; then waits until
    /// everything that was committed before is applied here. The index that was waited for.
    pub async fn read_index(&self) -> Result<u64, WriteFailure> {
        let linearizer = self
            .raft
            .get_read_linearizer(ReadPolicy::ReadIndex)
            .await
            .map_err(|_| WriteFailure::NotAppended)?;
        let state =
            linearizer.await_ready(&self.raft).await.map_err(|_| WriteFailure::NotAppended)?;
        Ok(state.read_log_id().index())
    }

    /// How long ago a quorum last confirmed this node as the leader of `term`; `None` when it
    /// does not lead in it.
    pub fn quorum_age(&self, term: u64) -> Option<Duration> {
        let metrics = self.metrics.borrow_watched();
        let leads = leading_term(&metrics) == Some(term);
        let acked = metrics.last_quorum_acked.as_ref()?;
        leads.then(|| acked.into_inner().elapsed())
    }

    /// The voters that have acknowledged something of this node's within `age`; none where it does
    /// not lead.
    pub fn heard_lately(&self, age: Duration) -> Vec<NodeId> {
        let metrics = self.metrics.borrow_watched();
        let Some(heartbeat) = &metrics.heartbeat else { return Vec::new() };
        let voters = metrics.membership_config.membership().voter_ids();
        voters
            .filter(|id| {
                let acked = heartbeat.get(id).and_then(Option::as_ref);
                *id != self.id && acked.is_some_and(|at| at.into_inner().elapsed() <= age)
            })
            .collect()
    }

    /// Whether that is this node.
    pub fn is_self(&self, id: NodeId) -> bool {
        id == self.id
    }

    /// How long ago each other member last answered this node as the leader; `None` for one that
    /// never did. Nothing where this node does not lead.
    pub fn silences(&self) -> BTreeMap<NodeId, Option<Duration>> {
        let metrics = self.metrics.borrow_watched();
        let Some(heartbeat) = &metrics.heartbeat else { return BTreeMap::new() };
        let age = |acked: &Option<_>| acked.as_ref().map(age_of);
        heartbeat
            .iter()
            .filter(|(id, _)| **id != self.id)
            .map(|(id, acked)| (*id, age(acked)))
            .collect()
    }

    /// Waits until somebody else leads, the term changes, or the membership. `false` when the core
    /// has ended.
    pub async fn changed(&mut self) -> bool {
        self.server.changed().await.is_ok()
    }

    /// What the core says now.
    pub fn view(&self) -> CoreView {
        let (applied, fatal) = {
            let metrics = self.metrics.borrow_watched();
            let applied = metrics.last_applied.as_ref().map(|id| id.index);
            (applied, metrics.running_state.as_ref().err().map(ToString::to_string))
        };
        let server = self.server.borrow_watched();
        let membership = server.membership_config.membership();
        let members = members_of(membership);
        let leader = server.current_leader.and_then(|leader| {
            let found = members.iter().find(|member| member.id == leader);
            found.map(|member| (member.id, member.address.clone()))
        });
        CoreView {
            term: server.vote.leader_id.term,
            leads: leads(&server),
            leader,
            members,
            applied,
            fatal,
        }
    }

    /// Index of the last entry applied here.
    pub fn applied_index(&self) -> Option<u64> {
        self.metrics.borrow_watched().last_applied.as_ref().map(|id| id.index)
    }

    /// The last entry of the log and the last one applied.
    pub fn progress(&self) -> (Option<u64>, Option<LogId>) {
        let metrics = self.metrics.borrow_watched();
        (metrics.last_log_index, metrics.last_applied.as_ref().map(log_id))
    }

    /// Waits until `index` is applied here.
    pub async fn wait_applied(&self, index: u64, limit: Duration) -> bool {
        let wait = self.raft.wait(Some(limit));
        wait.applied_index_at_least(Some(index), "a read waits for its index").await.is_ok()
    }

    /// Waits a while for everything that was applied before the last stop to be applied again.
    /// Whether it is; `None` when the core has ended, and will apply nothing any more.
    pub async fn recovered(&self) -> Option<bool> {
        match self.raft.wait_for_recovery(Some(RECOVERY_WAIT)).await {
            Ok(_) => Some(true),
            Err(WaitError::Timeout(..)) => Some(false),
            Err(WaitError::ShuttingDown) => None,
        }
    }

    /// Makes this node the only member of a new cluster. Fine when it already is a member.
    pub async fn bootstrap(&self, address: &str) -> Result<(), String> {
        if self.raft.is_initialized().await.map_err(|error| error.to_string())? {
            return Ok(());
        }
        let members = BTreeMap::from([(self.id, Peer::spare(address))]);
        self.raft.initialize(members).await.map_err(|error| error.to_string())
    }

    /// Asks the core to look at the durable checkpoint record.
    pub async fn note_checkpoint(&self) {
        let _ = self.raft.trigger().snapshot().await;
    }

    /// Lets the log forget entries up to `index`.
    pub async fn purge(&self, index: u64) {
        let _ = self.raft.trigger().purge_log(index).await;
    }

    /// The other voters, the best successor first: those that answer before those that do not, then
    /// those whose logs reach furthest, as far as this node as the leader knows. None where it does
    /// not lead.
    pub fn successors(&self) -> Vec<NodeId> {
        let silences = self.silences();
        let answers = |id: &NodeId| {
            let silence = silences.get(id).copied().flatten();
            silence.is_some_and(|silence| silence <= SUCCESSOR_SILENCE_MAX)
        };
        let metrics = self.metrics.borrow_watched();
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let Some(replication) = &metrics.replication else { return Vec::new() };
        let mut others: Vec<_> = replication
            .iter()
            .filter(|(id, _)| **id != self.id && voters.contains(id))
            .map(|(id, matched)| (answers(id), matched.as_ref().map(log_id), *id))
            .collect();
        others.sort_by_key(|(answers, matched, _)| Reverse((*answers, *matched)));
        others.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Whether this node may campaign. (It votes all the same.)
    pub fn set_candidate(&self, candidate: bool) {
        self.raft.runtime_config().elect(candidate);
    }

    /// Lets a repaired copy follow the log to where the other databases are, and serve again.
    pub async fn readmit(&self, store: Arc<Store>) -> io::Result<()> {
        let stopped = |error: openraft::errors::Fatal<TypeConfig>| io::Error::other(error);
        let machine = self.raft.with_state_machine(|machine| {
            let machine = machine.clone();
            Box::pin(async move { machine })
        });
        // Most of the way while other entries are being applied, the rest while none is.
        machine.await.map_err(stopped)?.follow_aside(store.clone(), false).await?;
        let last_step = self.raft.with_state_machine(move |machine| {
            let machine = machine.clone();
            Box::pin(async move { machine.follow_aside(store, true).await })
        });
        last_step.await.map_err(stopped)?
    }

    /// Hands leadership to another voter.
    pub async fn transfer(&self, to: NodeId) {
        let _ = self.raft.trigger().transfer_leader(to).await;
    }

    /// Ends the core.
    pub async fn stop(&self) {
        let _ = self.raft.shutdown().await;
    }
}
