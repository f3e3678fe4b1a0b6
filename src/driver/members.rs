//! Which servers a client knows, in the order in which they are asked, and what each did last.
//!
//! They come from the store, from the leader (its list of members replaces the store's), and from
//! nodes that name a leader. The first list is never forgotten: it is asked when nobody else
//! leads, since it may hold a name behind which members come and go.
//!
//! *Invariant*: never more than [`SERVERS_MAX`] servers, as many first ones, and
//! [`HINTS_MAX`] named ones.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::address::check;
use super::error::{Attempt, DriverError, Outcome};
use super::store::{Role, SERVERS_MAX, Server};
use crate::base::quorum::{self, Voice};
use crate::wire::NodeInfo;
use crate::wire::Status;

/// How many addresses are kept that a node named and nobody has confirmed.
const HINTS_MAX: usize = 16;

/// A member that failed a read is not picked again for this long.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Members {
    /// What the store was last seen to hold.
    stored: Vec<Server>,
    /// The members as last heard: voters first, then stand-bys, then spares.
    known: Vec<Server>,
    /// Whether a server said who they are.
    confirmed: bool,
    /// The first list.
    first: Vec<String>,
    /// Addresses that were named, newest last.
    hints: Vec<String>,
    /// What each address did last.
    attempts: Vec<Attempt>,
    /// What nodes without a leader said of it, by address.
    said: Vec<(String, Status)>,
    /// Members that failed a read, until when.
    avoided: HashMap<String, Instant>,
    /// Whose turn it is to be read from.
    turn: usize,
}

/// Only what can be dialled, voters first.
fn ordered(servers: Vec<Server>) -> Vec<Server> {
    let mut servers: Vec<Server> =
        servers.into_iter().filter(|server| check(&server.address).is_ok()).collect();
    servers.sort_by_key(|server| server.role.code());
    servers.truncate(SERVERS_MAX);
    servers
}

impl Members {
    /// Takes what the store holds, unless it is what it held before.
    pub(super) fn load(&mut self, servers: Vec<Server>) {
        let servers = ordered(servers);
        if servers == self.stored {
            return;
        }
        if self.first.is_empty() {
            self.first = servers.iter().map(|server| server.address.clone()).collect();
        }
        self.confirmed |= servers.iter().all(|server| server.id != 0);
        self.known.clone_from(&servers);
        self.stored = servers;
    }

    /// Takes the leader's list of members. What the store must be set to, if it holds another.
    pub(super) fn confirm(&mut self, nodes: &[NodeInfo]) -> Option<Vec<Server>> {
        let server = |node: &NodeInfo| {
            let role = node.role.and_then(Role::from_code).unwrap_or(Role::Voter);
            Server { id: node.id, address: node.address.to_string(), role }
        };
        let servers = ordered(nodes.iter().map(server).collect());
        if servers.is_empty() {
            return None;
        }
        self.known.clone_from(&servers);
        self.confirmed = true;
        self.hints.clear();
        let gone = |address: &str| !servers.iter().any(|server| server.address == address);
        self.attempts.retain(|attempt| !gone(&attempt.address));
        self.avoided.retain(|address, _| !gone(address));
        (self.stored != servers).then_some(servers)
    }

    /// The store was set.
    pub(super) fn note_stored(&mut self, servers: Vec<Server>) {
        self.stored = servers;
    }

    /// Whom to ask first, and whom if nobody of them leads.
    pub(super) fn candidates(&self) -> [Vec<String>; 2] {
        let mut known: Vec<String> =
            self.known.iter().map(|server| server.address.clone()).collect();
        for hint in &self.hints {
            if !known.contains(hint) {
                known.push(hint.clone());
            }
        }
        let first = self.first.iter().filter(|address| !known.contains(address)).cloned();
        let first = first.collect();
        [known, first]
    }

    /// Notes what an address did.
    pub(super) fn note(&mut self, address: &str, outcome: Outcome) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.address == address) {
            attempt.outcome = outcome;
        } else if self.attempts.len() < 2 * SERVERS_MAX {
            self.attempts.push(Attempt { address: address.to_owned(), outcome });
        }
    }

    /// Notes an address that a node named.
    pub(super) fn hint(&mut self, address: &str) {
        let known = self.known.iter().any(|server| server.address == address);
        if known || self.hints.iter().any(|hint| hint == address) {
            return;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.remove(0);
        }
        self.hints.push(address.to_owned());
    }

    /// Notes why a node knows no leader. Its members are asked in the next round.
    pub(super) fn note_status(&mut self, address: &str, status: Status) {
        for member in &status.members {
            let of = member.address.to_string();
            if check(&of).is_ok() {
                self.hint(&of);
            }
        }
        self.said.retain(|(by, _)| by != address);
        if self.said.len() < SERVERS_MAX {
            self.said.push((address.to_owned(), status));
        }
    }

    /// A leader was found: what it did before, and what others said, is of no interest.
    pub(super) fn note_leader(&mut self, address: &str) {
        self.said.clear();
        self.attempts.retain(|attempt| attempt.address != address);
    }

    /// Whether an address was taken for the leader and then refused a call.
    pub(super) fn has_refused(&self, address: &str) -> bool {
        let refused = |attempt: &Attempt| {
            attempt.address == address
                && matches!(attempt.outcome, Outcome::NotLeader | Outcome::KnowsNone)
        };
        self.attempts.iter().any(refused)
    }

    /// The error of a caller who waited for a leader in vain.
    pub(super) fn no_leader(&self) -> DriverError {
        let voters = self.voters();
        let asked = |address: String| {
            let attempt = self.attempts.iter().find(|attempt| attempt.address == address);
            let voice = match attempt {
                Some(attempt) => attempt.outcome.voice(),
                None => Voice::Silent("was not asked".to_owned()),
            };
            (address, voice)
        };
        let known = !voters.is_empty();
        let addresses = if known { voters } else { self.candidates().concat() };
        let asked: Vec<(String, Voice)> = addresses.into_iter().map(asked).collect();
        let mut why = quorum::no_leader(&asked, known);
        let answering = asked.iter().filter(|(_, voice)| *voice == Voice::Answers).count();
        // Where this client sees no reason, the nodes may.
        let enough = !known || answering >= quorum::votes_needed(asked.len());
        for (address, status) in self.said.iter().filter(|_| enough) {
            if let Some(said) = status.why.as_str().filter(|said| !said.is_empty()) {
                why.push_str(&format!("; {address} says: {said}"));
            }
        }
        DriverError::NoLeader { why, attempts: self.attempts.clone() }
    }

    /// The addresses of the voters, if a server has said who they are.
    fn voters(&self) -> Vec<String> {
        if self.confirmed {
            let voters = self.known.iter().filter(|server| server.role == Role::Voter);
            return voters.map(|server| server.address.clone()).collect();
        }
        // The member that is furthest knows best.
        let latest = self.said.iter().max_by_key(|(_, status)| status.term);
        let members = latest.map(|(_, status)| status.members.as_slice()).unwrap_or_default();
        let voters = members.iter().filter(|member| member.role == Role::Voter.code());
        voters.map(|member| member.address.to_string()).collect()
    }

    /// Whether nothing is known of any server.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether a server has said who the members are.
    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// The next member to read from in turn: any, or those who replicate.
    pub(super) fn next(&mut self, spares: bool, now: Instant) -> Option<String> {
        self.avoided.retain(|_, until| *until > now);
        let count = self.known.len();
        for step in 1..=count {
            let at = (self.turn + step) % count;
            let Some(server) = self.known.get(at) else { continue };
            let may = spares || server.role != Role::Spare;
            if may && !self.avoided.contains_key(&server.address) {
                self.turn = at;
                return Some(server.address.clone());
            }
        }
        None
    }

    /// A member failed a read: it is not picked for a while.
    pub(super) fn avoid(&mut self, address: &str, now: Instant) {
        if self.known.iter().any(|server| server.address == address) {
            self.avoided.insert(address.to_owned(), now + AVOIDED_FOR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: u64, address: &str, role: Role) -> Server {
        Server { id, address: address.to_owned(), role }
    }

    #[test]
    fn voters_are_asked_first_and_the_first_list_last() {
        let mut members = Members::default();
        members.load(vec![Server::at("seed:1"), Server::at("no address")]);
        assert_eq!(members.candidates(), [vec!["seed:1".to_owned()], vec![]]);
        members.load(vec![
            server(1, "a:1", Role::Spare),
            server(2, "b:1", Role::Standby),
            server(3, "c:1", Role::Voter),
        ]);
        members.hint("d:1");
        members.hint("c:1");
        let [known, first] = members.candidates();
        assert_eq!(known, ["c:1", "b:1", "a:1", "d:1"]);
        assert_eq!(first, ["seed:1"]);
        for n in 0..100 {
            members.hint(&format!("h:{n}"));
        }
        assert_eq!(members.candidates()[0].len(), 3 + HINTS_MAX);
    }

    #[test]
    fn members_are_picked_in_turn_and_left_out_for_a_while() {
        let mut members = Members::default();
        members.load(vec![server(1, "a:1", Role::Voter), server(2, "b:1", Role::Spare)]);
        let now = Instant::now();
        let pick = |members: &mut Members, spares, now| members.next(spares, now).unwrap();
        assert_eq!(pick(&mut members, true, now), "b:1");
        assert_eq!(pick(&mut members, true, now), "a:1");
        assert_eq!(pick(&mut members, false, now), "a:1");
        members.avoid("a:1", now);
        assert_eq!(pick(&mut members, true, now), "b:1");
        assert_eq!(members.next(false, now), None);
        assert_eq!(pick(&mut members, false, now + AVOIDED_FOR), "a:1");
    }
}
