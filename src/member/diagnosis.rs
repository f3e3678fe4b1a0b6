//! Why there is no leader: what this node knows of it, told to clients and once to its log.
//!
//! A follower that has not heard of a leader for a while, and a leader that has not heard of a
//! quorum for a while, ask all other members once a second whether they are there. Whoever
//! answers, answers; what happened to the others is kept, and since when. While all is well
//! nobody is asked.
//!
//! *Invariant*: nothing here decides anything: it only tells. A sentence is logged when it differs
//! from the one before, not again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::base::quorum::{self, Voice};
use crate::base::{MemberInfo, NodeId, Role};
use crate::raft::CoreView;
use crate::raft::calls::CallError;

use super::Member;

/// The call by which a node asks another one whether it is there; the answer is empty.
pub const CALL_THERE: u8 = 24;

/// Nobody is diagnosed before this long a silence.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// How often it is looked whether there is a leader.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often members are asked while there is none, and how long they have to answer.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What is kept of a member that was asked.
#[derive(Clone, Debug)]
struct Contact {
    answered: Option<Instant>,
    /// What happened to the last question, if it was in vain.
    trouble: Option<String>,
}

/// What this node knows of leader and members.
#[derive(Debug)]
pub(super) struct Diagnosis {
    /// The leader that was last heard of, and when.
    heard: Mutex<Option<(NodeId, Instant)>>,
    contacts: Mutex<BTreeMap<NodeId, Contact>>,
    began: Instant,
}

impl Default for Diagnosis {
    fn default() -> Diagnosis {
        let (heard, contacts) = (Mutex::default(), Mutex::default());
        Diagnosis { heard, contacts, began: Instant::now() }
    }
}

/// What is told of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its address.
    pub address: String,
    /// Its role.
    pub role: Role,
    /// How long ago it last answered a question of this module; `None` if it never did.
    pub answered: Option<Duration>,
    /// What happened when it was last asked in vain.
    pub trouble: Option<String>,
}

/// What a node knows of leader and members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The term that it is in.
    pub term: u64,
    /// The leader that it last heard of, or itself.
    pub leader: Option<NodeId>,
    /// How long ago that was.
    pub heard: Option<Duration>,
    /// The members.
    pub members: Vec<MemberStatus>,
    /// Why there is no leader, if there is none.
    pub why: Option<String>,
}

impl Member {
    /// An append of this node as the leader was accepted here.
    pub fn heard_leader(&self, leader: NodeId) {
        *self.diagnosis.heard.lock() = Some((leader, Instant::now()));
    }

    /// What this node knows of leader and members.
    pub fn status(&self) -> ClusterStatus {
        let view = self.core.view();
        let (leader, heard) = match *self.diagnosis.heard.lock() {
            _ if view.leads => (Some(self.id), self.core.quorum_age(view.term)),
            Some((leader, at)) => (Some(leader), Some(at.elapsed())),
            None => (None, None),
        };
        let why = self.is_leaderless(&view).then(|| self.why(&view));
        let contacts = self.diagnosis.contacts.lock();
        let member = |MemberInfo { id, address, role }| {
            let contact = contacts.get(&id);
            let answered = contact.and_then(|contact| contact.answered).map(|at| at.elapsed());
            let answered = if id == self.id { Some(Duration::ZERO) } else { answered };
            let trouble = contact.and_then(|contact| contact.trouble.clone());
            MemberStatus { id, address, role, answered, trouble }
        };
        let members = view.members.into_iter().map(member).collect();
        ClusterStatus { term: view.term, leader, heard, members, why }
    }

    /// Whether nobody leads, as far as this node can tell: a leader hears no quorum, a follower no
    /// leader.
    pub(super) fn is_leaderless(&self, view: &CoreView) -> bool {
        let silence = SILENCE_MIN.max(self.options.lease * 2);
        if self.diagnosis.began.elapsed() < silence {
            return false;
        }
        if view.leads {
            let alone = view.members.iter().filter(|member| member.votes()).count() <= 1;
            return !alone && self.core.quorum_age(view.term).is_none_or(|age| age > silence);
        }
        let heard = *self.diagnosis.heard.lock();
        heard.is_none_or(|(_, at)| at.elapsed() > silence)
    }

    fn why(&self, view: &CoreView) -> String {
        let contacts = self.diagnosis.contacts.lock();
        let voice = |id: &NodeId| match contacts.get(id) {
            _ if *id == self.id => Voice::Answers,
            Some(Contact { trouble: Some(trouble), .. }) => Voice::Silent(trouble.clone()),
            Some(Contact { answered: Some(_), .. }) => Voice::Answers,
            _ => Voice::Silent("was not asked yet".to_owned()),
        };
        let voters: Vec<(String, Voice)> = view
            .members
            .iter()
            .filter(|member| member.votes())
            .map(|member| (member.address.clone(), voice(&member.id)))
            .collect();
        if voters.is_empty() {
            return "no leader: this node belongs to no cluster yet".to_owned();
        }
        quorum::no_leader(&voters, true)
    }

    /// Asks all other members at once whether they are there.
    async fn ask_around(&self, view: &CoreView) {
        let others = view.members.iter().filter(|member| member.id != self.id);
        let ask = others.map(|MemberInfo { id, address, .. }| async move {
            let asked = self.network.call(*id, address, CALL_THERE, Bytes::new(), ASK_EVERY);
            (*id, trouble(address, asked.await.err()))
        });
        let answers = futures::future::join_all(ask).await;
        let mut contacts = self.diagnosis.contacts.lock();
        // Nothing of who is no member any more.
        contacts.retain(|id, _| view.members.iter().any(|member| member.id == *id));
        for (id, trouble) in answers {
            let answered = match trouble {
                None => Some(Instant::now()),
                Some(_) => contacts.get(&id).and_then(|contact| contact.answered),
            };
            contacts.insert(id, Contact { answered, trouble });
        }
    }
}

/// What an error says of the member; a refusal is an answer.
fn trouble(address: &str, error: Option<CallError>) -> Option<String> {
    let text = match error? {
        CallError::Refused(_) => return None,
        CallError::Late | CallError::Lost => return Some("does not answer".to_owned()),
        CallError::Unreachable(text) => text,
    };
    let reason = text.strip_prefix(&format!("cannot reach {address}: ")).unwrap_or(&text);
    Some(if reason.starts_with("Connection refused") {
        "refused the connection".to_owned()
    } else if reason == "timed out" {
        "does not answer".to_owned()
    } else {
        format!("cannot be reached ({reason})")
    })
}

/// Starts the task that looks whether there is a leader.
pub(super) fn spawn(member: &Arc<Member>) -> JoinHandle<()> {
    let member = member.clone();
    tokio::spawn(async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut logged: Option<String> = None;
        loop {
            look.tick().await;
            let view = member.core.view();
            if !member.is_leaderless(&view) {
                if logged.take().is_some() {
                    let leader = member.status().leader;
                    tracing::info!(node = member.id, term = view.term, leader, "there is a leader");
                }
                continue;
            }
            member.ask_around(&view).await;
            let why = member.why(&view);
            // It may have been found meanwhile.
            if member.is_leaderless(&member.core.view()) && logged.as_ref() != Some(&why) {
                tracing::warn!(node = member.id, term = view.term, "{why}");
                logged = Some(why);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_says_of_a_member() {
        let unreachable = |text: &str| Some(CallError::Unreachable(text.to_owned()));
        let cases = [
            (None, None),
            (Some(CallError::Refused("asked for something unknown".into())), None),
            (Some(CallError::Late), Some("does not answer")),
            (
                unreachable("cannot reach a:1: Connection refused (os error 111)"),
                Some("refused the connection"),
            ),
            (unreachable("cannot reach a:1: timed out"), Some("does not answer")),
            (unreachable("a:1 refused: wrong"), Some("cannot be reached (a:1 refused: wrong)")),
        ];
        for (error, expected) in cases {
            assert_eq!(trouble("a:1", error).as_deref(), expected);
        }
    }
}
