//! Who leads? Asks the last known leader first, then all addresses at once (bounded), follows the
//! address that a node names, and tries again with growing pauses until somebody says "I".
//!
//! One search serves all callers: whoever comes while it runs waits for its result, each until its
//! own deadline. The search itself ends when it has found a leader or after
//! [`Options::call_timeout`](super::Options).
//!
//! *Invariant*: at most one search runs per client, and it asks at most [`PROBES_MAX`] addresses at
//! a time and [`ADDRESSES_MAX`] in all.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::Options;
use super::connection::Connection;
use super::error::{Attempt, DriverError, Outcome};
use crate::base::Randomness;
use crate::wire::{Request, Response};

/// How many addresses are asked at a time.
const PROBES_MAX: usize = 10;
/// How many addresses a client knows at most, those that servers named included.
const ADDRESSES_MAX: usize = 64;

type Search = Shared<BoxFuture<'static, Option<Arc<str>>>>;

pub(super) struct Leaders {
    options: Arc<Options>,
    state: Mutex<State>,
}

struct State {
    /// The given addresses, then those learned.
    addresses: Vec<String>,
    /// Who leads, until somebody finds out that it does not.
    current: Option<Arc<str>>,
    /// Who led last and left without anybody complaining of it.
    last: Option<Arc<str>>,
    /// What each address did last.
    attempts: Vec<Attempt>,
    search: Option<Search>,
}

/// Pauses that grow, with jitter, so that clients do not come all at once.
pub(super) struct Backoff {
    pause: Duration,
    random: Arc<dyn Randomness>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(super) fn new(options: &Options) -> Backoff {
        Backoff { pause: Backoff::FIRST, random: options.random.clone() }
    }

    /// Waits between half of the pause and all of it; false if the deadline comes first.
    pub(super) async fn wait(&mut self, deadline: Instant) -> bool {
        let half = self.pause / 2;
        let half_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.random.next_u64() % half_us.max(1));
        self.pause = (self.pause * 2).min(Backoff::LONGEST);
        let until = Instant::now() + half + jitter;
        tokio::time::sleep_until(until.min(deadline)).await;
        until < deadline
    }
}

/// What an address answers to "who leads?".
enum Probe {
    Leads,
    Names(String),
    Fails(Outcome),
}

impl Leaders {
    pub(super) fn new(addresses: Vec<String>, options: Arc<Options>) -> Leaders {
        let state = State { addresses, current: None, last: None, attempts: vec![], search: None };
        Leaders { options, state: Mutex::new(state) }
    }

    /// The leader's address, known or found.
    pub(super) async fn find(self: &Arc<Self>, deadline: Instant) -> Result<Arc<str>, DriverError> {
        let mut backoff = Backoff::new(&self.options);
        loop {
            let search = {
                let mut state = self.state.lock();
                if let Some(current) = &state.current {
                    return Ok(current.clone());
                }
                state.search.get_or_insert_with(|| self.clone().start()).clone()
            };
            match timeout_at(deadline, search.clone()).await {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => self.forget(&search),
                Err(_) => return Err(self.no_leader()),
            }
            if !backoff.wait(deadline).await {
                return Err(self.no_leader());
            }
        }
    }

    /// Lets the next caller begin a new search, also where the old one ended with its runtime.
    fn forget(&self, search: &Search) {
        let mut state = self.state.lock();
        if state.search.as_ref().is_some_and(|current| current.ptr_eq(search)) {
            state.search = None;
        }
    }

    /// The error of a caller whose time is over.
    pub(super) fn no_leader(&self) -> DriverError {
        DriverError::NoLeader { attempts: self.state.lock().attempts.clone() }
    }

    /// Notes that an address does not lead (any more), and why.
    pub(super) fn demote(&self, address: &Arc<str>, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.current.as_ref() == Some(address) {
            // Not the first to be asked next time: all are asked at once.
            state.current = None;
            state.last = None;
        }
        state.note(address, outcome);
    }

    fn start(self: Arc<Self>) -> Search {
        let task = tokio::spawn(async move {
            let deadline = Instant::now() + self.options.call_timeout;
            let found = self.search(deadline).await;
            let mut state = self.state.lock();
            state.current = found.clone();
            state.last = found.clone();
            state.search = None;
            found
        });
        async move { task.await.ok().flatten() }.boxed().shared()
    }

    async fn search(&self, deadline: Instant) -> Option<Arc<str>> {
        let mut backoff = Backoff::new(&self.options);
        loop {
            let last = self.state.lock().last.take();
            if let Some(last) = last
                && let Some(found) = self.ask(VecDeque::from([last.to_string()]), deadline).await
            {
                return Some(found);
            }
            let all = self.state.lock().addresses.iter().cloned().collect();
            if let Some(found) = self.ask(all, deadline).await {
                return Some(found);
            }
            if !backoff.wait(deadline).await {
                return None;
            }
        }
    }

    /// Asks addresses, and those that they name, until one leads.
    async fn ask(&self, mut queue: VecDeque<String>, deadline: Instant) -> Option<Arc<str>> {
        let mut asked: HashSet<String> = queue.iter().cloned().collect();
        let mut probes = FuturesUnordered::new();
        loop {
            while probes.len() < PROBES_MAX
                && let Some(address) = queue.pop_front()
            {
                let address = Arc::<str>::from(address);
                probes.push(async move {
                    let probe = self.probe(&address, deadline).await;
                    (address, probe)
                });
            }
            let (address, probe) = probes.next().await?;
            match probe {
                Probe::Leads => {
                    self.state.lock().learn(&address);
                    return Some(address);
                }
                Probe::Names(named) => {
                    if asked.len() < ADDRESSES_MAX && asked.insert(named.clone()) {
                        queue.push_front(named.clone());
                    }
                    self.state.lock().note(&address, Outcome::Named(named));
                }
                Probe::Fails(outcome) => self.state.lock().note(&address, outcome),
            }
        }
    }

    async fn probe(&self, address: &Arc<str>, deadline: Instant) -> Probe {
        let now = Instant::now();
        let dialled = deadline.min(now + self.options.dial_timeout);
        let answered = deadline.min(now + self.options.dial_timeout + self.options.probe_timeout);
        let mut connection = match Connection::dial(&*self.options.dial, address, dialled).await {
            Ok(connection) => connection,
            Err(outcome) => return Probe::Fails(outcome),
        };
        match connection.request(&Request::Leader, answered).await {
            Ok(Response::Node { address: named, .. }) => match named.as_str() {
                Some("") => Probe::Fails(Outcome::KnowsNone),
                Some(named) if *named == **address => Probe::Leads,
                Some(named) if super::address::check(named).is_ok() => Probe::Names(named.into()),
                _ => Probe::Fails(Outcome::Broke(format!("named `{named}`, which is no address"))),
            },
            Ok(_) => Probe::Fails(Outcome::Broke("an answer to another question".to_owned())),
            Err(_) if Instant::now() >= answered => Probe::Fails(Outcome::TimedOut),
            Err(fault) => Probe::Fails(Outcome::Broke(fault.cause().to_owned())),
        }
    }
}

impl State {
    fn note(&mut self, address: &str, outcome: Outcome) {
        if let Some(attempt) = self.attempts.iter_mut().find(|a| a.address == address) {
            attempt.outcome = outcome;
        } else if self.attempts.len() < ADDRESSES_MAX {
            self.attempts.push(Attempt { address: address.to_owned(), outcome });
        }
    }

    fn learn(&mut self, address: &str) {
        if self.addresses.len() < ADDRESSES_MAX && !self.addresses.iter().any(|a| a == address) {
            self.addresses.push(address.to_owned());
        }
    }
}
