//! Members come, go, and change their roles on somebody's word: a client's request to the leader,
//! a node that joins or has moved, one that is about to stop.
//!
//! What a leader is asked to do to itself it does not do: it hands leadership over and asks its
//! successor. So a leader can be removed like any other member.
//!
//! *Invariant*: whoever is answered "done" finds the change in the leader's membership; a node that
//! was removed leads nothing and serves nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{FuturesOrdered, StreamExt as _};
use tokio::time::Instant;

use super::diagnosis::CALL_THERE;
use super::{Failure, Member};
use crate::base::{MemberInfo, NodeId, Role};
use crate::codec::{Malformed, Reader};
use crate::raft::calls::CallError;
use crate::raft::connection::lost_its_data;
use crate::raft::machine::applied_members;
use crate::raft::messages::Refusal;
use crate::raft::{ChangeFailure, Turn};

/// The call that asks a node how it describes itself; see [`Description`].
pub const CALL_DESCRIBE: u8 = 3;

/// The call by which a member asks the leader to change what it is itself: a word, and a role.
pub const CALL_CHANGE: u8 = 4;

/// Words of [`CALL_CHANGE`].
const REMOVE: u8 = 1;
const ASSIGN: u8 = 2;
const STOPPING: u8 = 3;

/// Leadership is handed over within this time, or stays.
pub const TRANSFER_MAX: Duration = Duration::from_secs(3);

/// The new leader is known here, and ready, within this time.
const SUCCESSION_MAX: Duration = Duration::from_secs(5);

/// The leader changes a member on its own word within this time.
const CHANGE_MAX: Duration = Duration::from_secs(20);

/// How long an answer to [`CALL_DESCRIBE`] may take while a new leader is waited for.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A node is asked again after this time whether it leads yet.
const PAUSE: Duration = Duration::from_millis(5);

/// A leader that does not take changes yet is asked again after this time.
const ASK_PAUSE: Duration = Duration::from_millis(50);

/// Members that may not lead yet are asked again after this time.
const FITNESS_PAUSE: Duration = Duration::from_millis(100);

/// How a node describes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// It leads, and takes writes.
    pub leads: bool,
    /// It takes over leadership when it is asked to.
    pub may_lead: bool,
    /// It lets clients in.
    pub lets_in: bool,
    /// What it shares with others that fail together with it.
    pub failure_domain: u64,
    /// The higher, the less it is wanted as a voter.
    pub weight: u64,
}

/// Bits of the first byte of a description.
const LEADS: u8 = 1;
const MAY_LEAD: u8 = 2;
const LETS_IN: u8 = 4;

fn encode_description(description: Description) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    let Description { leads, may_lead, lets_in, .. } = description;
    let bits = [(leads, LEADS), (may_lead, MAY_LEAD), (lets_in, LETS_IN)];
    out.put_u8(bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum());
    out.put_u64_le(description.failure_domain);
    out.put_u64_le(description.weight);
    out.freeze()
}

/// Reads the answer to [`CALL_DESCRIBE`].
pub fn decode_description(bytes: &[u8]) -> Result<Description, Malformed> {
    let mut reader = Reader::new(bytes);
    let bits = reader.u8()?;
    Ok(Description {
        leads: bits & LEADS != 0,
        may_lead: bits & MAY_LEAD != 0,
        lets_in: bits & LETS_IN != 0,
        failure_domain: reader.u64()?,
        weight: reader.u64()?,
    })
}

/// A node as it asks to be a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It has a log, or a vote, and has not seen that it is a member.
    Unknown,
    /// It has neither.
    Fresh,
    /// It has neither, and was told that it is a member.
    Told,
    /// It has seen that it is a member, or was told so and has a log or a vote.
    Member,
}

/// What became of a node that asked to be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is a member, at its address.
    Member,
    /// It was one, and was removed.
    Removed,
    /// It is not: why.
    Refused(String),
}

impl Member {
    /// How this node describes itself.
    pub fn description(&self) -> Description {
        Description {
            leads: self.leading_term().is_ok(),
            may_lead: self.may_lead(),
            lets_in: self.lets_in(),
            failure_domain: self.options.failure_domain,
            weight: self.weight.load(Ordering::Relaxed),
        }
    }

    /// Sets this node's weight, until it stops.
    pub fn set_weight(&self, weight: u64) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// Whether this node was removed from its cluster.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// The leader said whether this node is a member. What is new is logged.
    pub fn note_removed(&self, removed: bool) {
        match (self.removed.swap(removed, Ordering::AcqRel), removed) {
            (false, true) => tracing::error!(
                node = self.id,
                "this node was removed from the cluster and serves nothing: stop it; to join \
                 anew it needs an empty data directory"
            ),
            (true, false) => tracing::info!(node = self.id, "this node is a member again"),
            _ => {}
        }
    }

    /// Fails where this node was removed.
    pub fn check_belongs(&self) -> Result<(), Failure> {
        match self.is_removed() {
            true => Err(Failure::Stopped("this node was removed from the cluster".to_owned())),
            false => Ok(()),
        }
    }

    fn check_leads(&self) -> Result<(), ChangeFailure> {
        self.leading_term().map(drop).map_err(|_| ChangeFailure::NotLeader)
    }

    /// Adds a member, as a spare, whether or not there is a node yet.
    pub async fn add_member(&self, id: NodeId, address: &str) -> Result<(), ChangeFailure> {
        self.check_leads()?;
        if id == 0 {
            return Err(ChangeFailure::IdNotValid);
        }
        self.core.add(id, address, Turn::Now).await
    }

    /// Gives a member a role.
    pub async fn assign_role(
        self: &Arc<Member>,
        id: NodeId,
        role: Role,
    ) -> Result<(), ChangeFailure> {
        self.check_leads()?;
        if id == self.id && role != Role::Voter {
            return self.have_successor_change(ASSIGN, role).await;
        }
        self.core.assign(id, role, Turn::Now).await
    }

    /// Removes a member.
    pub async fn remove_member(self: &Arc<Member>, id: NodeId) -> Result<(), ChangeFailure> {
        self.check_leads()?;
        if id != self.id {
            return self.core.remove(id, Turn::Now).await;
        }
        self.have_successor_change(REMOVE, Role::Spare).await?;
        self.note_removed(true);
        Ok(())
    }

    /// Hands leadership to the voter `to`, 0 for any, and waits until it leads.
    pub async fn transfer_to(self: &Arc<Member>, to: NodeId) -> Result<(), ChangeFailure> {
        self.check_leads()?;
        let mut candidates = self.core.successors();
        match to {
            0 if candidates.is_empty() => return Err(ChangeFailure::NotFound),
            0 => {}
            to if candidates.contains(&to) => candidates = vec![to],
            _ => return Err(ChangeFailure::IdNotValid),
        }
        let to = self.heir(&candidates, TRANSFER_MAX).await.map_err(ChangeFailure::Refused)?;
        let handed = self.hand_over(to, TRANSFER_MAX).await;
        self.resume_writes();
        if !handed {
            return Err(ChangeFailure::TransferFailed);
        }
        self.successor_ready().await.map(drop).ok_or(ChangeFailure::TransferFailed)
    }

    /// The first of `candidates` that says that it may lead, and lets clients in if one of them does;
    /// where there is none, why not. Asked to lead, one that may not does nothing, and nobody led
    /// until the next election. One that answers is asked again until `limit` has passed: it may have
    /// started a moment ago.
    pub(super) async fn heir(
        &self,
        candidates: &[NodeId],
        limit: Duration,
    ) -> Result<NodeId, String> {
        let deadline = Instant::now() + limit;
        loop {
            let ask = |id: &NodeId| self.ask_fitness(*id);
            let mut answers: FuturesOrdered<_> = candidates.iter().map(ask).collect();
            let (mut silent, mut fit) = (Vec::new(), None);
            while let Some((id, answer)) = answers.next().await {
                match answer {
                    Some(Description { may_lead: true, lets_in: true, .. }) => return Ok(id),
                    Some(Description { may_lead: true, .. }) => fit = fit.or(Some(id)),
                    Some(_) => {}
                    None => silent.push(id),
                }
            }
            if let Some(fit) = fit {
                return Ok(fit);
            }
            if silent.len() == candidates.len() {
                return Err(format!("no voter of {candidates:?} answers: leadership stays here"));
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "no voter of {candidates:?} may lead now: one that does not answer, has a \
                     damaged database or has just started takes nothing over"
                ));
            }
            tokio::time::sleep(FITNESS_PAUSE).await;
        }
    }

    /// What a member says of itself; `None` where it does not answer.
    pub(super) async fn ask_fitness(&self, id: NodeId) -> (NodeId, Option<Description>) {
        let members = self.core.view().members;
        let listed = members.into_iter().find(|member| member.id == id);
        let Some(MemberInfo { address, .. }) = listed else { return (id, None) };
        let asked = self.network.call(id, &address, CALL_DESCRIBE, Bytes::new(), ANSWER_MAX);
        (id, asked.await.ok().and_then(|answer| decode_description(&answer).ok()))
    }

    /// Waits until another node leads and takes writes, as it says itself.
    async fn successor_ready(&self) -> Option<(NodeId, String)> {
        let ready = async {
            let mut leadership = self.watch_leadership();
            loop {
                let other = |leader: &Option<(NodeId, String)>| {
                    leader.as_ref().is_some_and(|(id, _)| *id != self.id)
                };
                let leader =
                    leadership.wait_for(|now| other(&now.leader)).await.ok()?.leader.clone();
                let (id, address) = leader?;
                let asked =
                    self.network.call(id, &address, CALL_DESCRIBE, Bytes::new(), ANSWER_MAX);
                let described = asked.await.ok().and_then(|bytes| decode_description(&bytes).ok());
                if described.is_some_and(|described| described.leads) {
                    return Some((id, address));
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(SUCCESSION_MAX, ready).await.ok().flatten()
    }

    /// Hands leadership over and has the next leader change this member.
    async fn have_successor_change(
        self: &Arc<Member>,
        word: u8,
        role: Role,
    ) -> Result<(), ChangeFailure> {
        let voters = self.leadership().members.into_iter().filter(MemberInfo::votes);
        if voters.filter(|voter| voter.id != self.id).count() == 0 {
            return Err(ChangeFailure::LastVoter(self.id));
        }
        self.transfer_to(0).await?;
        self.ask_leader(word, role, CHANGE_MAX).await
    }

    /// Asks the leader to change this member.
    async fn ask_leader(&self, word: u8, role: Role, limit: Duration) -> Result<(), ChangeFailure> {
        let leader = self.leadership().leader.filter(|(id, _)| *id != self.id);
        let (id, address) = leader.ok_or(ChangeFailure::NotLeader)?;
        let role = u8::try_from(role.code()).unwrap_or_default();
        let body = Bytes::copy_from_slice(&[word, role]);
        match self.network.call(id, &address, CALL_CHANGE, body, limit).await {
            Ok(_) => Ok(()),
            Err(CallError::Unreachable(_)) => Err(ChangeFailure::NotLeader),
            Err(CallError::Refused(why)) => Err(ChangeFailure::told(why)),
            Err(CallError::Lost | CallError::Late) => Err(ChangeFailure::LeadershipLost),
        }
    }

    /// Before a stop: hands leadership over, where there is anybody to hand it to.
    pub async fn leave_leadership(self: &Arc<Member>) {
        if self.leading_term().is_err() {
            return;
        }
        if self.core.successors().is_empty()
            && let Err(failure) = self.replace(self.id).await
        {
            tracing::info!(why = %failure, "nobody else was made a voter");
        }
        let candidates = self.core.successors();
        if candidates.is_empty() {
            return;
        }
        let to = match self.heir(&candidates, TRANSFER_MAX).await {
            Ok(to) => to,
            Err(why) => return tracing::warn!(why, "leadership is handed to nobody; stopping"),
        };
        if self.hand_over(to, TRANSFER_MAX).await {
            // The new leader need not be ready, only known: the role is to be handed over next.
            let mut leadership = self.watch_leadership();
            let other = |leader: &Option<(NodeId, String)>| {
                leader.as_ref().is_some_and(|(id, _)| *id != self.id)
            };
            // An error means that the member is gone.
            let _ = leadership.wait_for(|now| other(&now.leader)).await;
        } else {
            tracing::warn!(to, "leadership was not taken over in time; stopping all the same");
        }
    }

    /// Before a stop: lets somebody else vote instead of this member, if there is somebody, or
    /// gives up its vote, where the others have a majority more easily without it.
    pub async fn leave_role(&self, limit: Duration) {
        let leadership = self.leadership();
        let own = leadership.members.iter().find(|member| member.id == self.id);
        if !own.is_some_and(MemberInfo::votes) || leadership.open_term.is_some() {
            return;
        }
        let voters = leadership.members.iter().filter(|member| member.votes()).count();
        let heirs = voters < leadership.members.len();
        if !heirs && !voters.is_multiple_of(2) {
            return;
        }
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask_leader(STOPPING, Role::Spare, left).await {
                Ok(()) => return,
                // It was handed leadership a moment ago, and does not take changes yet.
                Err(failure) if failure.passes() && Instant::now() + ASK_PAUSE < deadline => {
                    tokio::time::sleep(ASK_PAUSE).await;
                }
                Err(failure) => {
                    tracing::info!(why = %failure, "this member's role was not handed over");
                    return;
                }
            }
        }
    }

    /// Answers a member that asks the leader to change it.
    pub async fn answer_change(
        self: &Arc<Member>,
        from: NodeId,
        body: &[u8],
    ) -> Result<Bytes, Refusal> {
        let mut reader = Reader::new(body);
        let malformed = |error: Malformed| Refusal(error.to_string());
        let (word, role) = (reader.u8().map_err(malformed)?, reader.u8().map_err(malformed)?);
        let role = Role::from_code(u64::from(role));
        let done = match (word, role) {
            (REMOVE, _) => self.core.remove(from, Turn::Wait).await,
            (ASSIGN, Some(role)) => self.core.assign(from, role, Turn::Wait).await,
            // To its end, also when the one that asks has gone by then.
            (STOPPING, _) => {
                let member = self.clone();
                let replaced = tokio::spawn(async move { member.replace(from).await }).await;
                replaced.unwrap_or(Err(ChangeFailure::LeadershipLost))
            }
            _ => return Err(Refusal("an unknown change".to_owned())),
        };
        done.map(|()| Bytes::new()).map_err(|failure| Refusal(failure.to_string()))
    }

    /// Answers a node that asks how this one describes itself.
    pub fn answer_describe(&self) -> Bytes {
        encode_description(self.description())
    }

    /// On the leader: lets a node in, or writes down where it is now. Nothing where this leader
    /// cannot tell: what it answers is what a quorum holds.
    pub async fn admit_node(&self, id: NodeId, past: Past, address: &str) -> Option<Admission> {
        let members = self.leadership().members;
        let changed = match members.iter().find(|member| member.id == id) {
            None if matches!(past, Past::Member | Past::Told) => {
                return self.is_gone(id).await.then_some(Admission::Removed);
            }
            None => match self.core.add(id, address, Turn::Wait).await {
                Ok(()) => {
                    tracing::info!(node = id, address, "a node has joined");
                    self.note_joined(id);
                    Ok(())
                }
                // It asked twice at the same moment.
                Err(ChangeFailure::IdInUse) => Ok(()),
                Err(failure) => Err(failure),
            },
            Some(known) if known.votes() && matches!(past, Past::Fresh | Past::Told) => {
                // It had caught up before it was let vote: what it acknowledged and voted is lost.
                return Some(Admission::Refused(lost_its_data(id)));
            }
            Some(known) if known.address != address => {
                self.move_member(&members, known, address).await
            }
            Some(_) => Ok(()),
        };
        match changed {
            // It may have asked before, of a leader that could not add it.
            Ok(()) => self.has_applied(id).then_some(Admission::Member),
            Err(ChangeFailure::AddressInUse) => Some(Admission::Refused(format!(
                "another member has the address {address}, and node {id} does not answer there: \
                 give node {id} another one, or remove that member first"
            ))),
            Err(failure) => Some(Admission::Refused(failure.to_string())),
        }
    }

    /// Writes down where a member is now. One that answers at another member's address is there,
    /// and the other is not: both may have moved at once, each to where the other was.
    async fn move_member(
        &self,
        members: &[MemberInfo],
        known: &MemberInfo,
        to: &str,
    ) -> Result<(), ChangeFailure> {
        let id = known.id;
        let taken = members.iter().find(|member| member.id != id && member.address == to);
        if taken.is_some() {
            let asked =
                self.network.call_address(id, to, CALL_THERE, Bytes::new(), ANSWER_MAX).await;
            asked.map_err(|_| ChangeFailure::AddressInUse)?;
        }
        let of = taken.map(|member| member.id);
        tracing::info!(node = id, before = known.address, now = to, of, "a member moves");
        self.core.set_address(id, to).await
    }

    /// Whether the applied membership names that node: it was a member, for good, at one time.
    fn has_applied(&self, id: NodeId) -> bool {
        applied_members(&self.catalog).iter().any(|member| member.id == id)
    }

    /// On the leader: whether that node is certainly no member. A quorum must have confirmed this
    /// leader: one that leads no more knows old members. A removal on its way may fail.
    async fn is_gone(&self, id: NodeId) -> bool {
        let confirmed = self.confirm_by_quorum().await.is_ok();
        let named = self.core.view().members.iter().any(|member| member.id == id);
        confirmed && !named && !self.has_applied(id)
    }

    /// This node, listed as a member, is at `address`. Tells whether the membership says so; a
    /// leader sees to it.
    pub async fn move_self(&self, address: &str) -> Result<(), ChangeFailure> {
        self.core.set_address(self.id, address).await
    }

    /// A member listed elsewhere says that it is at `address`: it is dialed there at once.
    pub fn note_moved(&self, id: NodeId, address: &str) {
        let members = self.core.view().members;
        let Some(listed) = members.iter().find(|member| member.id == id) else { return };
        if listed.address != address {
            self.network.moved(id, &listed.address, address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that docs/format.md draws.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let (leads, may_lead, lets_in) = (false, true, false);
        let described = Description { leads, may_lead, lets_in, failure_domain: 2, weight: 3 };
        let leader = Description { leads: true, may_lead: false, lets_in: true, ..described };
        assert_eq!(encode_description(leader)[0], 5);
        assert_eq!(decode_description(&encode_description(leader)), Ok(leader));
        let bytes = encode_description(described);
        assert_eq!(bytes, &b"\x02\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"[..]);
        assert_eq!(decode_description(&bytes), Ok(described));
        assert!(decode_description(&bytes[1..]).is_err());
    }
}
