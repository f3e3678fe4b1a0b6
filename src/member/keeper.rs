//! The keeper of roles: a task that, on the leader, finds out which members answer and how they
//! describe themselves, asks [`super::roles`] what should be changed, and changes it: one role at a
//! time.
//!
//! A member that has just joined is promoted as soon as it has caught up. Everything else waits
//! until it has been wanted for some seconds, so that whoever adds a member and gives it a role by
//! hand is not overtaken.
//!
//! *Invariant*: nothing is changed but by the leader, and nothing while `roles.automatic` is off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::membership::Description;
use super::roles::{Known, Parting, Targets, next_change, parting};
use super::{Member, membership};
use crate::base::{MemberInfo, NodeId, Role};
use crate::raft::{ChangeFailure, Turn};

/// How often the members are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// ... and while one that has joined is to be promoted.
const LOOK_AT_JOINED: Duration = Duration::from_millis(50);

/// A change is made when it has been wanted this long, and no other was made meanwhile.
const SETTLE: Duration = Duration::from_secs(5);

/// A member that was heard within this time can be promoted ...
const READY_SILENCE_MAX: Duration = Duration::from_secs(2);

/// ... if it is not further behind than this many entries.
const READY_LAG_MAX: u64 = 5000;

/// One that did not catch up is not asked to again for this long.
const STALLED_FOR: Duration = Duration::from_secs(60);

/// How roles are kept.
#[derive(Clone, Debug)]
pub struct RoleOptions {
    /// Whether they are.
    pub automatic: bool,
    /// How many voters and stand-bys there should be.
    pub targets: Targets,
    /// A member that has not answered this long is taken for gone.
    pub offline_after: Duration,
}

/// What the keeper is told.
#[derive(Default)]
pub struct Keeper {
    /// Members that joined and may be waiting for a role.
    joined: Mutex<BTreeSet<NodeId>>,
    /// How each member last described itself: one that does not answer for once is what it was.
    described: Mutex<BTreeMap<NodeId, Traits>>,
    wake: Notify,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traits {
    failure_domain: u64,
    weight: u64,
}

/// What the keeper remembers between two looks.
#[derive(Default)]
struct Memory {
    /// The term it leads in, and since when.
    leads: Option<(u64, Duration)>,
    /// The members as they were, and since when.
    members: (Vec<MemberInfo>, Duration),
    /// What is wanted, and since when.
    wanted: Option<((NodeId, Role), Duration)>,
    /// What went wrong last.
    said: Option<String>,
    /// Members that did not catch up, and when that was seen: others come first for a while.
    stalled: BTreeMap<NodeId, Duration>,
}

/// Starts the keeper.
pub fn spawn(member: &Arc<Member>) -> JoinHandle<()> {
    let member = Arc::downgrade(member);
    tokio::spawn(async move {
        let mut memory = Memory::default();
        loop {
            let Some(member) = member.upgrade() else { return };
            memory.look(&member).await;
            let soon = !member.keeper.joined.lock().is_empty();
            let pause = if soon { LOOK_AT_JOINED } else { LOOK };
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = member.keeper.wake.notified() => {}
            }
        }
    })
}

impl Memory {
    async fn look(&mut self, member: &Arc<Member>) {
        let Ok(term) = member.leading_term() else {
            *self = Memory::default();
            member.keeper.joined.lock().clear();
            return;
        };
        let now = member.env.clock.monotonic();
        if self.leads.is_none_or(|(of, _)| of != term) {
            *self = Memory { leads: Some((term, now)), ..Memory::default() };
        }
        if let Err(failure) = member.core.finish_change().await {
            return self.say(&failure);
        }
        if member.pass_leadership_on().await {
            return;
        }
        if !member.options.roles.automatic {
            return member.keeper.joined.lock().clear();
        }
        let members = member.leadership().members;
        if self.members.0 != members {
            self.members = (members, now);
        }
        let mut known = member.survey(self.led_for(now)).await;
        self.stalled.retain(|_, at| now.saturating_sub(*at) < STALLED_FOR);
        known.iter_mut().for_each(|of| of.ready &= !self.stalled.contains_key(&of.id));
        let wanted = next_change(member.id, &known, member.options.roles.targets);
        self.note(wanted, now);
        let Some((id, role)) = wanted else { return member.keeper.forget(&known) };
        let prompt = role != Role::Spare && !member.keeper.joined.lock().is_empty();
        if prompt || self.is_settled(now, &member.options.roles) {
            self.carry_out(member, id, role).await;
        }
    }

    fn led_for(&self, now: Duration) -> Duration {
        self.leads.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since))
    }

    fn note(&mut self, wanted: Option<(NodeId, Role)>, now: Duration) {
        if self.wanted.map(|(change, _)| change) != wanted {
            self.wanted = wanted.map(|change| (change, now));
        }
    }

    fn is_settled(&self, now: Duration, options: &RoleOptions) -> bool {
        let settle = SETTLE.min(options.offline_after);
        let wanted = self.wanted.is_some_and(|(_, since)| now.saturating_sub(since) >= settle);
        wanted && now.saturating_sub(self.members.1) >= settle
    }

    async fn carry_out(&mut self, member: &Arc<Member>, id: NodeId, role: Role) {
        match member.core.assign(id, role, Turn::Now).await {
            Ok(()) => {
                self.said = None;
                tracing::info!(node = id, %role, "a member has another role now");
            }
            Err(failure) => {
                if let ChangeFailure::NotCaughtUp(id, _) = failure {
                    self.stalled.insert(id, member.env.clock.monotonic());
                }
                self.say(&failure);
            }
        }
    }

    fn say(&mut self, failure: &ChangeFailure) {
        let text = failure.to_string();
        if *failure != ChangeFailure::InProgress && self.said.as_ref() != Some(&text) {
            tracing::warn!(why = text, "a member's role was not changed; it will be tried again");
            self.said = Some(text);
        }
    }
}

impl Traits {
    fn of(described: &Description) -> Traits {
        Traits { failure_domain: described.failure_domain, weight: described.weight }
    }
}

impl Keeper {
    /// A member has joined: it is promoted as soon as it has caught up, if it is needed.
    pub fn joined(&self, id: NodeId) {
        self.joined.lock().insert(id);
        self.wake.notify_one();
    }

    /// Some of `members` have described themselves just now. What is known of all of them.
    fn note_described(
        &self,
        members: &[MemberInfo],
        now: &BTreeMap<NodeId, Traits>,
    ) -> BTreeMap<NodeId, Traits> {
        let mut described = self.described.lock();
        described.extend(now);
        described.retain(|id, _| members.iter().any(|member| member.id == *id));
        described.clone()
    }

    /// Nobody is to be promoted: those that have caught up wait for nothing.
    fn forget(&self, known: &[Known]) {
        let waits = |id: &NodeId| known.iter().any(|known| known.id == *id && !known.ready);
        self.joined.lock().retain(waits);
    }
}

impl Member {
    /// A member has joined.
    pub fn note_joined(&self, id: NodeId) {
        self.keeper.joined(id);
    }

    /// What this leader knows of the members now.
    async fn survey(&self, led_for: Duration) -> Vec<Known> {
        let (silences, lags) = (self.core.silences(), self.core.lags());
        // As the core knows them: a new leader may not have told of them yet.
        let members = self.core.view().members;
        let descriptions = self.descriptions(&members, &silences).await;
        let remembered = self.keeper.note_described(&members, &descriptions);
        let offline_after = self.options.roles.offline_after;
        let known = |member: &MemberInfo| {
            let silence = match member.id == self.id {
                true => Some(Duration::ZERO),
                false => silences.get(&member.id).copied().flatten(),
            };
            let lag = if member.id == self.id { Some(&0) } else { lags.get(&member.id) };
            let answers = silence.is_some_and(|silence| silence <= READY_SILENCE_MAX);
            let described = descriptions.contains_key(&member.id);
            let traits = remembered.get(&member.id);
            Known {
                id: member.id,
                role: member.role,
                online: match silence {
                    Some(silence) => silence <= offline_after,
                    // A new leader gives those that vote the time to answer.
                    None => member.votes() && led_for <= offline_after,
                },
                // Who does not describe itself may have just stopped.
                ready: answers && described && lag.is_some_and(|lag| *lag <= READY_LAG_MAX),
                failure_domain: traits.map(|traits| traits.failure_domain),
                weight: traits.map_or(0, |traits| traits.weight),
            }
        };
        members.iter().map(known).collect()
    }

    /// How those that answer describe themselves.
    async fn descriptions(
        &self,
        members: &[MemberInfo],
        silences: &BTreeMap<NodeId, Option<Duration>>,
    ) -> BTreeMap<NodeId, Traits> {
        let answers = |id: &NodeId| {
            let silence = silences.get(id).copied().flatten();
            silence.is_some_and(|silence| silence <= READY_SILENCE_MAX)
        };
        let one = async |member: &MemberInfo| {
            let (id, kind, limit) = (member.id, membership::CALL_DESCRIBE, LOOK);
            let asked = self.network.call(id, &member.address, kind, Bytes::new(), limit).await;
            let described = membership::decode_description(&asked.ok()?).ok()?;
            Some((id, Traits::of(&described)))
        };
        let asked = members.iter().filter(|member| answers(&member.id)).map(one);
        let mut all: BTreeMap<_, _> =
            futures::future::join_all(asked).await.into_iter().flatten().collect();
        all.insert(self.id, Traits::of(&self.description()));
        all
    }

    /// On the leader: lets somebody else vote instead of `leaver`, which is about to stop, if
    /// there is somebody; else, where that leaves an odd number, nobody.
    pub(super) async fn replace(&self, leaver: NodeId) -> Result<(), ChangeFailure> {
        if !self.options.roles.automatic {
            return Ok(());
        }
        let known = self.survey(Duration::ZERO).await;
        match parting(leaver, &known) {
            Parting::Keeps => return Ok(()),
            Parting::HandsOver(heir) => {
                let voters = known.iter().filter(|known| known.role == Role::Voter).count();
                if voters.is_multiple_of(2) && leaver != self.id {
                    // First: the others have a majority more easily without it, heir or not.
                    self.core.assign(leaver, Role::Spare, Turn::Wait).await?;
                }
                self.core.assign(heir, Role::Voter, Turn::Wait).await?;
                let what = "a member votes instead of one that stops";
                tracing::info!(node = heir, instead_of = leaver, "{what}");
            }
            Parting::GivesUp => {
                tracing::info!(node = leaver, "a voter that stops gives up its vote");
            }
        }
        // A leader is not demoted: it asks its successor for that.
        let is_voter = self.core.view().members.iter().any(|of| of.id == leaver && of.votes());
        if leaver == self.id || !is_voter {
            return Ok(());
        }
        self.core.assign(leaver, Role::Spare, Turn::Wait).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member of failure domain 2 did not answer one question in time. It was taken for one of
    /// domain 0, another one was made a voter for the sake of domain 2, and the next answer undid it.
    #[test]
    fn a_member_that_does_not_answer_for_once_is_what_it_was() {
        let member = |id| MemberInfo { id, address: format!("a:{id}"), role: Role::Voter };
        let traits = |failure_domain| Traits { failure_domain, weight: 7 };
        let keeper = Keeper::default();
        let both = [member(1), member(2)];
        let first = BTreeMap::from([(1, traits(1)), (2, traits(2))]);
        assert_eq!(keeper.note_described(&both, &first), first);
        let now = BTreeMap::from([(1, traits(5))]);
        let known = BTreeMap::from([(1, traits(5)), (2, traits(2))]);
        assert_eq!(keeper.note_described(&both, &now), known);
        // Nothing of one that is gone.
        assert_eq!(keeper.note_described(&both[..1], &now), now);
        assert_eq!(keeper.note_described(&both, &now), now);
    }
}
