//! How a node comes to its cluster and stays known to it: it founds one, joins one, waits to be
//! added to one; and, for as long as it runs, sees to it that the leader lists it, and at the
//! address where it is.
//!
//! Anybody may be asked who leads: the addresses it was given and those of the members it knows. So
//! a node that comes back at another address tells the others, also where all of them have moved.
//!
//! *Invariant*: a node that was removed does not come back by itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::{Env, NodeId, limits};
use crate::log::Log;
use crate::member::Member;
use crate::member::membership::{Admission, Past};
use crate::raft::Core;
use crate::raft::connection::Identity;
use crate::raft::machine::applied_members;
use crate::raft::network::Network;
use crate::raft::peers::PeerHooks as _;

use super::calls::{self, Hooks, Joined};
use super::config::Config;
use super::{NodeError, failed};

/// A member that is listed asks again after this time whether it still is.
const LOOK: Duration = Duration::from_secs(10);

/// Founds a cluster, where that was asked for and the node belongs to none.
pub async fn found(
    config: &Config,
    core: &Core,
    hooks: &Hooks,
    identity: &Identity,
    env: &Env,
) -> Result<(), NodeError> {
    if !config.bootstrap || !config.join.is_empty() {
        return Ok(());
    }
    if identity.cluster() == 0 {
        let cluster = env.random.next_u64().max(1);
        hooks.join_cluster(cluster).map_err(failed("node.toml"))?;
        identity.join(cluster);
    }
    core.bootstrap(&config.address).await.map_err(NodeError::Failed)
}

/// A node that sees to it that it is listed.
pub struct Belonging {
    pub id: NodeId,
    pub address: String,
    /// Addresses that it was given.
    pub join: Vec<String>,
    pub member: Arc<Member>,
    pub hooks: Arc<Hooks>,
    pub network: Network,
    pub log: Log,
}

impl Belonging {
    /// Runs until the node stops.
    pub async fn keep(self, mut stopping: watch::Receiver<bool>) {
        let mut said = String::new();
        let mut listed = self.past() == Past::Member;
        loop {
            let pause = match self.attempt().await {
                Ok(()) => {
                    if !listed {
                        tracing::info!(node = self.id, "this node has joined the cluster");
                    }
                    (listed, said) = (true, String::new());
                    LOOK
                }
                Err(what) => {
                    if said != what {
                        match listed {
                            true => {
                                tracing::info!(%what, "waiting for a leader that lists this node")
                            }
                            false => tracing::info!(%what, "waiting to join"),
                        }
                        said = what;
                    }
                    if self.member.is_removed() { LOOK } else { limits::JOIN_PAUSE }
                }
            };
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether the leader lists this node; or why that is not known.
    async fn attempt(&self) -> Result<(), String> {
        if self.member.leading_term().is_ok() {
            return self.list_self().await;
        }
        let mut what = "nobody has added this node yet".to_owned();
        let mut ask = self.addresses();
        let mut redirects = ask.len();
        while let Some(next) = ask.pop() {
            let body = calls::encode_join(self.id, self.past(), &self.address);
            let answer =
                self.network.call_address(0, &next, calls::JOIN, body, limits::JOIN_TIMEOUT).await;
            what = match answer.as_deref().map(calls::decode_joined) {
                Ok(Ok(Joined::AskLeader(leader))) if leader != next && redirects > 0 => {
                    redirects -= 1;
                    if !leader.is_empty() {
                        ask.push(leader);
                        continue;
                    }
                    format!("{next} knows no leader")
                }
                Ok(Ok(Joined::AskLeader(_))) => format!("{next} knows no leader"),
                Ok(Ok(Joined::Answered(answer))) => return self.told(answer).await,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
        }
        Err(what)
    }

    async fn told(&self, answer: Admission) -> Result<(), String> {
        match answer {
            Admission::Member => {
                self.member.note_removed(false);
                let kept = self.hooks.remember_joined().await;
                kept.map_err(|error| format!("this node is a member, but node.toml: {error}"))
            }
            Admission::Removed => {
                self.member.note_removed(true);
                Err("this node was removed from the cluster".to_owned())
            }
            Admission::Refused(why) => Err(why),
        }
    }

    /// This node leads: it lists itself.
    async fn list_self(&self) -> Result<(), String> {
        let members = self.member.leadership().members;
        let here = |address: &str| address == self.address;
        if members.iter().any(|member| member.id == self.id && !here(&member.address)) {
            let moved = self.member.move_self(&self.address).await;
            moved.map_err(|failure| failure.to_string())?;
            tracing::info!(address = self.address, "this node is listed at its new address");
        }
        let kept = self.hooks.remember_joined().await;
        kept.map_err(|error| format!("this node leads, but node.toml: {error}"))
    }

    /// Whom to ask, the best last.
    fn addresses(&self) -> Vec<String> {
        let leadership = self.member.leadership();
        // Those that have told that they moved are asked where they are now.
        let now = |id, listed| self.network.address_of(id).unwrap_or(listed);
        let leader = leadership.leader.map(|(id, listed)| now(id, listed));
        let members = leadership.members.into_iter().filter(|member| member.id != self.id);
        let mut all: Vec<String> = members.map(|member| now(member.id, member.address)).collect();
        all.extend(self.join.iter().cloned());
        all.extend(leader);
        all.retain(|address| *address != self.address);
        let mut seen = std::collections::BTreeSet::new();
        all.reverse();
        all.retain(|address| seen.insert(address.clone()));
        all.reverse();
        all
    }

    fn past(&self) -> Past {
        let applied = applied_members(self.member.catalog());
        let state = self.log.state();
        let seen = applied.iter().any(|member| member.id == self.id);
        let empty = state.vote.is_none() && state.last.is_none();
        match (seen, self.hooks.has_joined(), empty) {
            (false, false, true) => Past::Fresh,
            (false, false, false) => Past::Unknown,
            // It may be receiving its first snapshot still.
            (false, true, true) => Past::Told,
            (true, _, _) | (false, true, false) => Past::Member,
        }
    }
}
