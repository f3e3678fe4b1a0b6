//! Who leads? Asks the last known leader first, then all members at once (bounded; voters first,
//! then stand-bys, then spares), follows the address that a node names, once, and tries again with
//! growing pauses until somebody says "I".
//!
//! One search serves all callers: whoever comes while it runs waits for its result, each until its
//! own deadline. The search itself ends when it has found a leader or after
//! [`Options::call_timeout`](super::Options).
//!
//! Whoever is found is asked for the members, and again when
//! [`Options::refresh_every`](super::Options) has gone by; the store is set to what it says. So a
//! client follows a cluster whose members all move, one after the other.
//!
//! *Invariant*: at most one search and one refresh run per client; a search asks at most
//! [`PROBES_MAX`] addresses at a time, each at most once a round.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::Options;
use super::connection::Connection;
use super::error::{DriverError, Outcome};
use super::members::Members;
use super::metrics::Counters;
use super::store::ServerStore;
use crate::base::Randomness;
use crate::wire::{Request, Response};

/// How many addresses are asked at a time.
const PROBES_MAX: usize = 10;

type Search = Shared<BoxFuture<'static, Option<Arc<str>>>>;

pub(super) struct Leaders {
    options: Arc<Options>,
    store: Arc<dyn ServerStore>,
    counters: Arc<Counters>,
    state: Mutex<State>,
    /// One at a time.
    refreshing: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    members: Members,
    /// Who leads, until somebody finds out that it does not.
    current: Option<Arc<str>>,
    /// Who led last and left without anybody complaining of it.
    last: Option<Arc<str>>,
    search: Option<Search>,
    /// When a leader was last asked for the members.
    refreshed: Option<Instant>,
}

/// Pauses that grow, with jitter, so that clients do not come all at once.
pub(super) struct Backoff {
    pause: Duration,
    longest: Duration,
    random: Arc<dyn Randomness>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(1);

    /// Between two rounds of a search: an election takes about a second, and what is slept through
    /// after it is time without writes. One search serves all callers of a client.
    const LONGEST_IN_SEARCH: Duration = Duration::from_millis(150);

    pub(super) fn new(options: &Options) -> Backoff {
        let (pause, longest) = (Backoff::FIRST, Backoff::LONGEST);
        Backoff { pause, longest, random: options.random.clone() }
    }

    fn in_search(options: &Options) -> Backoff {
        Backoff { longest: Backoff::LONGEST_IN_SEARCH, ..Backoff::new(options) }
    }

    /// Waits between half of the pause and all of it; false if the deadline comes first.
    pub(super) async fn wait(&mut self, deadline: Instant) -> bool {
        let half = self.pause / 2;
        let half_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.random.next_u64() % half_us.max(1));
        self.pause = (self.pause * 2).min(self.longest);
        let until = Instant::now() + half + jitter;
        tokio::time::sleep_until(until.min(deadline)).await;
        until < deadline
    }
}

/// The one refresh that runs; it ends with its runtime, too.
struct Refreshing(Arc<Leaders>);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.refreshing.store(false, Ordering::Release);
    }
}

/// What an address answers to "who leads?".
enum Probe {
    Leads(Box<Connection>),
    Names(String, Box<Connection>),
    KnowsNone(Box<Connection>),
    Fails(Outcome),
}

/// Those who answered and do not lead: they may know why nobody does.
type Bystanders = Vec<(Arc<str>, Box<Connection>)>;

/// An address to ask, and whether the one that it names is asked as well.
type Question = (String, bool);

impl Leaders {
    pub(super) fn new(
        store: Arc<dyn ServerStore>,
        options: Arc<Options>,
        counters: Arc<Counters>,
    ) -> Leaders {
        let (refreshing, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Leaders { options, store, counters, state: Mutex::default(), refreshing, closed }
    }

    /// The leader's address, known or found.
    pub(super) async fn find(self: &Arc<Self>, deadline: Instant) -> Result<Arc<str>, DriverError> {
        let mut backoff = Backoff::new(&self.options);
        loop {
            let search = {
                let mut state = self.state.lock();
                if let Some(current) = state.current.clone() {
                    drop(state);
                    self.refresh_in_time(&current);
                    return Ok(current);
                }
                if self.closed.load(Ordering::Acquire) {
                    return Err(DriverError::Closed);
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
        self.state.lock().members.no_leader()
    }

    /// Notes that an address does not lead (any more), and why.
    pub(super) fn demote(&self, address: &Arc<str>, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.current.as_ref() == Some(address) {
            // Not the first to be asked next time: all are asked at once.
            state.current = None;
            state.last = None;
        }
        state.members.note(address, outcome);
    }

    /// Searches no more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// A member to read from, in turn; `None` where the leader is the one to ask. `spares` says
    /// whether members count that need not be up to date.
    pub(super) async fn pick(
        self: &Arc<Self>,
        spares: bool,
        deadline: Instant,
    ) -> Option<Arc<str>> {
        if self.state.lock().members.is_empty() {
            self.load(deadline).await;
        }
        let mut state = self.state.lock();
        if !state.members.is_confirmed() && state.current.is_none() {
            // Nobody waits for it; the members are known afterwards.
            state.search.get_or_insert_with(|| self.clone().start());
        }
        let picked = state.members.next(spares, Instant::now())?;
        let current = state.current.clone();
        drop(state);
        if let Some(current) = &current {
            self.refresh_in_time(current);
        }
        (current.as_deref() != Some(&*picked)).then(|| picked.into())
    }

    /// A member failed a read.
    pub(super) fn avoid(&self, address: &str) {
        self.state.lock().members.avoid(address, Instant::now());
    }

    fn start(self: Arc<Self>) -> Search {
        self.counters.searches.add();
        let span = tracing::debug_span!("quire.search", db.system.name = "sqlite");
        let search = async move {
            let deadline = Instant::now() + self.options.call_timeout;
            let found = self.search(deadline).await;
            let (address, connection) = match found {
                Some((address, connection)) => (Some(address), Some(connection)),
                None => (None, None),
            };
            {
                let mut state = self.state.lock();
                state.current.clone_from(&address);
                state.last.clone_from(&address);
                state.search = None;
                state.refreshed = address.is_some().then(Instant::now);
                if let Some(leader) = &address {
                    state.members.note_leader(leader);
                }
            }
            match (&address, connection) {
                (Some(leader), Some(connection)) => {
                    tracing::debug!(%leader, "found the leader");
                    self.clone().refresh(connection);
                }
                _ => self.counters.searches_failed.add(),
            }
            address
        };
        let task = tokio::spawn(search.instrument(span));
        async move { task.await.ok().flatten() }.boxed().shared()
    }

    async fn search(&self, deadline: Instant) -> Option<(Arc<str>, Box<Connection>)> {
        let mut backoff = Backoff::in_search(&self.options);
        while !self.closed.load(Ordering::Acquire) {
            let mut bystanders = Vec::new();
            let last = self.state.lock().last.take();
            if let Some(last) = last {
                let last = vec![(last.to_string(), true)];
                let found = self.ask(last, deadline, &mut bystanders).await;
                if found.is_some() {
                    return found;
                }
            }
            self.load(deadline).await;
            let phases = self.state.lock().members.candidates();
            for addresses in phases {
                let questions = addresses.into_iter().map(|address| (address, true)).collect();
                let found = self.ask(questions, deadline, &mut bystanders).await;
                if found.is_some() {
                    return found;
                }
            }
            self.ask_why(bystanders, deadline).await;
            if !backoff.wait(deadline).await {
                return None;
            }
        }
        None
    }

    /// Reads the store.
    async fn load(&self, deadline: Instant) {
        match timeout_at(deadline, self.store.get()).await {
            Ok(Ok(servers)) => self.state.lock().members.load(servers),
            Ok(Err(error)) => tracing::warn!(%error, "the list of servers cannot be read"),
            Err(_) => tracing::warn!("the list of servers was not read in time"),
        }
    }

    /// Asks addresses, and those that they name, until one leads.
    async fn ask(
        &self,
        questions: Vec<Question>,
        deadline: Instant,
        bystanders: &mut Bystanders,
    ) -> Option<(Arc<str>, Box<Connection>)> {
        let mut asked: HashSet<String> = questions.iter().map(|(to, _)| to.clone()).collect();
        let mut queue = VecDeque::from(questions);
        let mut probes = FuturesUnordered::new();
        loop {
            while probes.len() < PROBES_MAX
                && let Some((address, follow)) = queue.pop_front()
            {
                let address = Arc::<str>::from(address);
                probes.push(async move {
                    let probe = self.probe(&address, deadline).await;
                    (address, follow, probe)
                });
            }
            let (address, follow, probe) = probes.next().await?;
            let (outcome, connection) = match probe {
                Probe::Leads(connection) => return Some((address, connection)),
                Probe::Names(named, connection) => {
                    self.counters.redirects.add();
                    if follow && asked.insert(named.clone()) {
                        queue.push_front((named.clone(), false));
                    }
                    // Followed once only; in the next round it is one of the candidates.
                    self.state.lock().members.hint(&named);
                    (Outcome::Named(named), Some(connection))
                }
                Probe::KnowsNone(connection) => (Outcome::KnowsNone, Some(connection)),
                Probe::Fails(outcome) => (outcome, None),
            };
            self.state.lock().members.note(&address, outcome);
            if let Some(connection) = connection
                && bystanders.len() < PROBES_MAX
            {
                bystanders.push((address, connection));
            }
        }
    }

    /// Asks those who do not lead why nobody does. A server that does not know the question is
    /// none the worse for it.
    async fn ask_why(&self, bystanders: Bystanders, deadline: Instant) {
        let answered = deadline.min(Instant::now() + self.options.probe_timeout);
        let ask = |(address, mut connection): (Arc<str>, Box<Connection>)| async move {
            if let Ok(Response::StatusOk(status)) =
                connection.request(&Request::Status, answered).await
            {
                self.state.lock().members.note_status(&address, status);
            }
        };
        futures::future::join_all(bystanders.into_iter().map(ask)).await;
    }

    async fn probe(&self, address: &Arc<str>, deadline: Instant) -> Probe {
        let now = Instant::now();
        let dialled = deadline.min(now + self.options.dial_timeout);
        let dial = &*self.options.dial;
        let mut connection =
            match Connection::dial(dial, address, false, &self.counters, dialled).await {
                Ok(connection) => connection,
                Err(outcome) => return Probe::Fails(outcome),
            };
        let now = Instant::now();
        let answered = deadline.min(now + self.options.probe_timeout);
        match connection.request(&Request::Leader, answered).await {
            Ok(Response::Node { address: named, .. }) => match named.as_str() {
                Some("") => Probe::KnowsNone(connection),
                Some(named) if *named == **address => {
                    self.verify(address, connection, answered).await
                }
                Some(named) if super::address::check(named).is_ok() => {
                    Probe::Names(named.into(), connection)
                }
                _ => Probe::Fails(Outcome::Broke(format!("named `{named}`, which is no address"))),
            },
            Ok(_) => Probe::Fails(Outcome::Broke("an answer to another question".to_owned())),
            Err(_) if Instant::now() >= answered => {
                Probe::Fails(Outcome::TimedOut(answered.saturating_duration_since(now)))
            }
            Err(fault) => Probe::Fails(Outcome::Broke(fault.cause().to_owned())),
        }
    }

    /// A node that says it leads, and refused a call before, may have lost its quorum without
    /// having noticed: it is asked how it stands. One that does not know the question leads.
    async fn verify(
        &self,
        address: &Arc<str>,
        mut connection: Box<Connection>,
        answered: Instant,
    ) -> Probe {
        if !self.state.lock().members.has_refused(address) {
            return Probe::Leads(connection);
        }
        match connection.request(&Request::Status, answered).await {
            Ok(Response::StatusOk(status)) if !status.why.as_bytes().is_empty() => {
                self.state.lock().members.note_status(address, status);
                Probe::KnowsNone(connection)
            }
            Ok(_) => Probe::Leads(connection),
            Err(fault) => Probe::Fails(Outcome::Broke(fault.cause().to_owned())),
        }
    }

    /// Asks the leader for the members again, in a task of its own, when it is time.
    fn refresh_in_time(self: &Arc<Self>, leader: &Arc<str>) {
        {
            let mut state = self.state.lock();
            let due = |at: Instant| at.elapsed() >= self.options.refresh_every;
            if state.refreshed.is_some_and(|at| !due(at)) {
                return;
            }
            state.refreshed = Some(Instant::now());
        }
        let (leaders, leader) = (self.clone(), leader.clone());
        tokio::spawn(async move {
            let dialled = Instant::now() + leaders.options.dial_timeout;
            let dial = &*leaders.options.dial;
            let dialled = Connection::dial(dial, &leader, false, &leaders.counters, dialled).await;
            if let Ok(connection) = dialled {
                leaders.refresh(connection);
            }
        });
    }

    /// Asks a leader for the members, in a task of its own, and keeps what it says.
    fn refresh(self: Arc<Self>, mut connection: Box<Connection>) {
        if self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let alone = Refreshing(self.clone());
        tokio::spawn(async move {
            let _alone = alone;
            let answered = Instant::now() + self.options.probe_timeout;
            let answer = connection.request(&Request::Cluster { format: 1 }, answered).await;
            drop(connection);
            if let Ok(Response::Nodes { nodes }) = answer {
                self.counters.refreshes.add();
                let changed = self.state.lock().members.confirm(&nodes);
                if let Some(servers) = changed {
                    self.keep(servers).await;
                }
            }
        });
    }

    async fn keep(&self, servers: Vec<super::store::Server>) {
        let deadline = Instant::now() + self.options.call_timeout;
        match timeout_at(deadline, self.store.set(servers.clone())).await {
            Ok(Ok(())) => self.state.lock().members.note_stored(servers),
            Ok(Err(error)) => tracing::warn!(%error, "the list of servers cannot be written"),
            Err(_) => tracing::warn!("the list of servers was not written in time"),
        }
    }
}
