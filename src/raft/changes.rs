//! Changes of the membership: who is a member, in which role, at which address. One at a time, on
//! the leader; each is finished in a task of its own, whoever asked for it. A member that is to
//! vote is caught up before that, in nobody's way.
//!
//! openraft knows voters and learners. Stand-bys and spares are learners both; which of the two
//! one is stands beside its address. A change of the voters goes through a joint membership, and a
//! leader that finds one left by its predecessor ends it first.
//!
//! Who should have which role is decided elsewhere.
//!
//! *Invariant*: there is always a voter, and nobody becomes one who has not caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::core::Core;
use super::types::{Peer, TypeConfig, leading_term};
use crate::base::planted::{Bug, planted};
use crate::base::{Fate, MemberInfo, NodeId, Role, limits};

/// A change that is not committed in this time may or may not be.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Who may wait for the change before waits this long.
const TURN_MAX: Duration = Duration::from_secs(30);

/// A member that is being caught up and says nothing this long is given up for now.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A round of catching up that takes less is the last: the next one would as well.
const ROUND_MAX: Duration = Duration::from_millis(200);

/// Rounds of catching up: beyond it the member is too slow to vote.
const ROUNDS_MAX: usize = 100;

/// How often a member's progress is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A voter that is there answers within this time.
const ANSWERS_MAX: Duration = Duration::from_secs(2);

/// Why the membership was not changed. The texts are dqlite's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeFailure {
    /// Another node leads.
    #[error("not leader")]
    NotLeader,
    /// Leadership was lost on the way: the change may be made or not.
    #[error("server has lost leadership")]
    LeadershipLost,
    /// There is another change on its way.
    #[error("a configuration change is already in progress")]
    InProgress,
    /// The member has that role.
    #[error("server role is not valid")]
    RoleNotValid,
    /// No such member, to an assignment of a role.
    #[error("Resource not found")]
    NotFound,
    /// No such member, or none that this can be done to.
    #[error("server ID is not valid")]
    IdNotValid,
    /// A member has that id.
    #[error("server ID already in use")]
    IdInUse,
    /// A member has that address.
    #[error("server address already in use")]
    AddressInUse,
    /// There would be no voter.
    #[error("node {0} is the only voter: make another one a voter first")]
    LastVoter(NodeId),
    /// The other node did not take over leadership.
    #[error("leadership transfer failed")]
    TransferFailed,
    /// It does not answer, or too slowly.
    #[error("node {0} was not caught up and keeps its role: {1}")]
    NotCaughtUp(NodeId, &'static str),
    /// Anything else; nothing was changed.
    #[error("{0}")]
    Refused(String),
}

impl ChangeFailure {
    /// What the leader refused with.
    pub fn told(why: String) -> ChangeFailure {
        let passing =
            [ChangeFailure::NotLeader, ChangeFailure::LeadershipLost, ChangeFailure::InProgress];
        let known = passing.into_iter().find(|failure| failure.to_string() == why);
        known.unwrap_or(ChangeFailure::Refused(why))
    }

    /// Whether the same may be done a moment later.
    pub fn passes(&self) -> bool {
        self.fate() != Fate::Reject
    }

    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            ChangeFailure::NotLeader => Fate::RetryElsewhere,
            ChangeFailure::LeadershipLost => Fate::OutcomeUnknown,
            ChangeFailure::InProgress => Fate::RetryHere,
            _ => Fate::Reject,
        }
    }
}

type Change = ChangeMembers<NodeId, Peer>;
type Changed = Result<(), ChangeFailure>;

/// Whether a change waits for the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// No: it is refused then.
    Now,
    /// For a while.
    Wait,
}

impl Core {
    /// Adds a member, as a spare.
    pub async fn add(&self, id: NodeId, address: &str, turn: Turn) -> Changed {
        let address = address.to_owned();
        self.in_turn(turn, move |core| async move {
            core.check_address_free(id, &address)?;
            if core.member(id).is_some() {
                return Err(ChangeFailure::IdInUse);
            }
            let change = Change::AddNodes(BTreeMap::from([(id, Peer::spare(&address))]));
            core.change(change, true).await
        })
        .await
    }

    /// Gives a member another role; one that is to vote is caught up first, while other changes
    /// may be made.
    pub async fn assign(&self, id: NodeId, role: Role, turn: Turn) -> Changed {
        if role == Role::Voter {
            self.leading()?;
            self.member_without(role, id)?;
            self.catch_up(id).await?;
        }
        self.in_turn(turn, move |core| async move {
            let member = core.member_without(role, id)?;
            let only = BTreeSet::from([id]);
            if role == Role::Voter {
                // It waited for its turn, and a little was written meanwhile.
                core.catch_up_to(id, core.leading()?, core.progress().0, SILENCE_MAX).await?;
                return core.change(Change::AddVoterIds(only), true).await;
            }
            let peer = Peer { address: member.address.clone(), role };
            let set = Change::SetNodes(BTreeMap::from([(id, peer)]));
            if !member.votes() {
                return core.change(set, true).await;
            }
            core.check_not_last(id)?;
            core.check_rest_answers(id).await?;
            core.change(Change::Batch(vec![set, Change::RemoveVoters(only)]), true).await
        })
        .await
    }

    /// Removes a member.
    pub async fn remove(&self, id: NodeId, turn: Turn) -> Changed {
        self.in_turn(turn, move |core| async move {
            let member = core.member(id).ok_or(ChangeFailure::IdNotValid)?;
            let only = BTreeSet::from([id]);
            if !member.votes() {
                return core.change(Change::RemoveNodes(only), true).await;
            }
            core.check_not_last(id)?;
            core.check_rest_answers(id).await?;
            core.change(Change::RemoveVoters(only), false).await
        })
        .await
    }

    /// Writes down where a member is now. Whoever asks for it knows that the member is there, also
    /// where the address is another one's still: members may have swapped theirs.
    pub async fn set_address(&self, id: NodeId, address: &str) -> Changed {
        let address = address.to_owned();
        self.in_turn(Turn::Wait, move |core| async move {
            let role = match core.member(id).ok_or(ChangeFailure::IdNotValid)?.role {
                Role::Standby => Role::Standby,
                Role::Voter | Role::Spare => Role::Spare,
            };
            let peer = Peer { address, role };
            core.change(Change::SetNodes(BTreeMap::from([(id, peer)])), true).await
        })
        .await
    }

    /// Ends a change of the voters that a leader before this one began, if there is one.
    pub async fn finish_change(&self) -> Changed {
        if !self.is_joint() {
            return Ok(());
        }
        self.in_turn(Turn::Now, |_| async { Ok(()) }).await
    }

    /// How many entries each other member is behind this leader; one that has answered nothing
    /// yet is not in it.
    pub fn lags(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.metrics.borrow_watched();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let Some(replication) = &metrics.replication else { return BTreeMap::new() };
        let lag = |matched: u64| last.saturating_sub(matched + 1);
        replication
            .iter()
            .filter_map(|(id, matched)| Some((*id, lag(matched.as_ref()?.index))))
            .collect()
    }

    /// Runs one change when no other one is on its way, to its end.
    async fn in_turn<F>(&self, turn: Turn, change: impl FnOnce(Core) -> F) -> Changed
    where
        F: Future<Output = Changed> + Send + 'static,
    {
        let alone = self.take_turn(turn).await?;
        let core = self.clone();
        let change = change(core.clone());
        // Who asked may go away; half a change must not be left for that.
        let task = tokio::spawn(async move {
            let _alone = alone;
            if core.is_joint() {
                core.change(Change::AddVoterIds(BTreeSet::new()), true).await?;
            }
            change.await
        });
        let stopping = |_| Err(ChangeFailure::Refused("the node is stopping".to_owned()));
        task.await.unwrap_or_else(stopping)
    }

    async fn take_turn(&self, turn: Turn) -> Result<OwnedMutexGuard<()>, ChangeFailure> {
        self.leading()?;
        let changes = self.changes.clone();
        match turn {
            Turn::Now => changes.try_lock_owned().map_err(|_| ChangeFailure::InProgress),
            Turn::Wait => {
                let waited = tokio::time::timeout(TURN_MAX, changes.lock_owned()).await;
                waited.map_err(|_| ChangeFailure::InProgress)
            }
        }
    }

    /// The term that this node leads.
    fn leading(&self) -> Result<u64, ChangeFailure> {
        leading_term(&self.metrics.borrow_watched()).ok_or(ChangeFailure::NotLeader)
    }

    fn member(&self, id: NodeId) -> Option<MemberInfo> {
        self.view().members.into_iter().find(|member| member.id == id)
    }

    /// A member that is to get a role which it must not have yet.
    fn member_without(&self, role: Role, id: NodeId) -> Result<MemberInfo, ChangeFailure> {
        let member = self.member(id).ok_or(ChangeFailure::NotFound)?;
        match member.role == role {
            true => Err(ChangeFailure::RoleNotValid),
            false => Ok(member),
        }
    }

    /// Whether a change of the voters is on its way.
    pub fn is_joint(&self) -> bool {
        let server = self.server.borrow_watched();
        server.membership_config.membership().get_joint_config().len() > 1
    }

    fn check_address_free(&self, id: NodeId, address: &str) -> Changed {
        let taken = |member: &MemberInfo| member.id != id && member.address == address;
        match self.view().members.iter().any(taken) {
            true => Err(ChangeFailure::AddressInUse),
            false => Ok(()),
        }
    }

    fn check_not_last(&self, id: NodeId) -> Changed {
        let others = |member: &MemberInfo| member.id != id && member.votes();
        match self.view().members.iter().any(others) {
            true => Ok(()),
            false => Err(ChangeFailure::LastVoter(id)),
        }
    }

    /// Without `id` the voters must still have a majority that answers: a change that takes the
    /// last one away can never be committed, nor taken back.
    async fn check_rest_answers(&self, id: NodeId) -> Changed {
        if planted(Bug::MajorityUnchecked) {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            let silences = self.silences();
            // To something that was sent since: who was there a moment ago may be gone.
            let answers = |member: &MemberInfo| {
                let silence = silences.get(&member.id).copied().flatten();
                let heard = silence.is_some_and(|silence| silence < began.elapsed());
                self.is_self(member.id) || heard
            };
            let members = self.view().members;
            let rest: Vec<_> =
                members.iter().filter(|member| member.votes() && member.id != id).collect();
            let answering = rest.iter().filter(|member| answers(member)).count();
            if answering * 2 > rest.len() {
                return Ok(());
            }
            if began.elapsed() >= ANSWERS_MAX {
                return Err(ChangeFailure::Refused(format!(
                    "without node {id} only {answering} of {} voters answer, and no change could \
                     be committed any more: start the others, or remove those that are gone first",
                    rest.len()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Appends a change and waits until it is committed.
    async fn change(&self, change: Change, retain: bool) -> Changed {
        let term = self.leading()?;
        let changing = self.raft.change_membership(change, retain);
        let changed = tokio::select! {
            biased;
            changed = changing => changed,
            () = self.deposed(term) => return Err(ChangeFailure::LeadershipLost),
            () = tokio::time::sleep(COMMIT_MAX) => return Err(ChangeFailure::LeadershipLost),
        };
        changed.map(drop).map_err(|error| failure_of(&error))
    }

    /// Waits until this node does not lead in `term`.
    async fn deposed(&self, term: u64) {
        let mut metrics = self.metrics.clone();
        while leading_term(&metrics.borrow_watched()) == Some(term) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until a member has about all that this leader has.
    async fn catch_up(&self, id: NodeId) -> Changed {
        let term = self.leading()?;
        for _ in 0..ROUNDS_MAX {
            let began = Instant::now();
            let last = self.progress().0;
            self.catch_up_to(id, term, last, limits::CATCH_UP_STALL_MAX).await?;
            if began.elapsed() < ROUND_MAX {
                return Ok(());
            }
        }
        Err(ChangeFailure::NotCaughtUp(id, "it is too slow for what is written"))
    }

    /// Waits until a member has the entry `target`; no longer than `stall_max` while it gets
    /// nothing new at all.
    async fn catch_up_to(
        &self,
        id: NodeId,
        term: u64,
        target: Option<u64>,
        stall_max: Duration,
    ) -> Changed {
        let began = Instant::now();
        let (mut most, mut moved) = (self.matched(id), began);
        loop {
            if self.leading() != Ok(term) {
                return Err(ChangeFailure::LeadershipLost);
            }
            if self.member(id).is_none() {
                return Err(ChangeFailure::NotFound);
            }
            let matched = self.matched(id);
            if matched >= target {
                return Ok(());
            }
            if matched > most {
                (most, moved) = (matched, Instant::now());
            }
            if moved.elapsed() > stall_max {
                return Err(ChangeFailure::NotCaughtUp(
                    id,
                    "it answers, and has got nothing new for too long: its log says whether it \
                     is still receiving a snapshot, or has no room for one; try again then",
                ));
            }
            let silence = self.silences().get(&id).copied().flatten();
            if began.elapsed().min(silence.unwrap_or(Duration::MAX)) > SILENCE_MAX {
                return Err(ChangeFailure::NotCaughtUp(id, "it does not answer"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The last entry that a member is known to have.
    fn matched(&self, id: NodeId) -> Option<u64> {
        let metrics = self.metrics.borrow_watched();
        metrics.replication.as_ref()?.get(&id)?.as_ref().map(|matched| matched.index)
    }
}

fn failure_of(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeFailure {
    let RaftError::APIError(error) = error else { return ChangeFailure::LeadershipLost };
    match error {
        ClientWriteError::ForwardToLeader(_) => ChangeFailure::NotLeader,
        ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
            ChangeFailure::InProgress
        }
        ClientWriteError::ChangeMembershipError(error) => ChangeFailure::Refused(error.to_string()),
        _ => ChangeFailure::LeadershipLost,
    }
}
