//! What the clients of a run were told: a history for the checkers, and how far it has come.
//!
//! *Invariant*: what is in the history as refused was certainly not executed, and what is there as
//! done certainly was; whatever nobody can tell is unknown. An error that no fault explains is
//! kept as a surprise, and a surprise is a violation.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use parking_lot::Mutex;
use quire::driver::DriverError;
use rustix::time::{ClockId, clock_gettime};

use crate::check::{Event, Outcome};

/// SQLITE_FULL, with which a node without room refuses writes.
const FULL: u64 = 13;

/// How many surprises are kept: one is enough.
const SURPRISES_MAX: usize = 20;

/// Nanoseconds on the machine's monotonic clock, which all processes share.
pub fn now_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000_000 + nanos.unwrap_or(0)
}

/// The history of one run.
pub struct Ledger<Op> {
    start: u64,
    clients: AtomicU32,
    events: Mutex<Vec<Event<Op>>>,
    /// When the acknowledged write that was called last was called, and when it returned.
    newest: Mutex<(u64, u64)>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    surprises: Mutex<Vec<String>>,
}

/// What became of an operation, as far as an error of the driver tells.
pub fn outcome_of(error: &DriverError) -> Option<Outcome> {
    match error {
        DriverError::OutcomeUnknown { .. } => Some(Outcome::Unknown),
        DriverError::NoLeader { .. }
        | DriverError::TransactionLost { .. }
        | DriverError::Member { .. }
        | DriverError::TimedOut(_)
        | DriverError::Overloaded { .. }
        | DriverError::StreamBroken { .. } => Some(Outcome::Refused),
        DriverError::Sqlite { code: FULL, .. } => Some(Outcome::Refused),
        error if error.is_busy() => Some(Outcome::Refused),
        _ => None,
    }
}

impl<Op: Clone> Ledger<Op> {
    /// An empty one; time begins now.
    pub fn new() -> Ledger<Op> {
        Ledger {
            start: now_nanos(),
            clients: AtomicU32::new(1),
            events: Mutex::default(),
            newest: Mutex::default(),
            counts: Mutex::default(),
            surprises: Mutex::default(),
        }
    }

    /// When it began, as [`now_nanos`].
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Nanoseconds since it began.
    pub fn now(&self) -> u64 {
        now_nanos().saturating_sub(self.start)
    }

    /// A client that nobody was before.
    pub fn new_client(&self) -> u32 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds an operation that has ended.
    pub fn push(&self, event: Event<Op>, writes: bool) {
        let what = match (writes, event.outcome) {
            (false, Outcome::Done) => "reads",
            (false, _) => "reads in vain",
            (true, Outcome::Done) => "acknowledged",
            (true, Outcome::Refused) => "refused",
            (true, Outcome::Unknown) => "unknown",
        };
        self.count(what, 1);
        if writes {
            self.count("attempted", 1);
        }
        if writes && event.outcome == Outcome::Done {
            let mut newest = self.newest.lock();
            if newest.0 <= event.called {
                *newest = (event.called, event.returned);
            }
        }
        self.events.lock().push(event);
    }

    /// Adds to one of the counts.
    pub fn count(&self, what: &'static str, more: u64) {
        *self.counts.lock().entry(what).or_default() += more;
    }

    /// The counts so far.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    /// Something that no fault explains.
    pub fn surprise(&self, what: String) {
        let mut surprises = self.surprises.lock();
        if surprises.len() < SURPRISES_MAX {
            surprises.push(what);
        }
    }

    /// All of these.
    pub fn surprises(&self) -> Vec<String> {
        self.surprises.lock().clone()
    }

    /// The history so far, which is empty from then on.
    pub fn take(&self) -> Vec<Event<Op>> {
        std::mem::take(&mut *self.events.lock())
    }

    /// How long after `since` a write that was called after it was acknowledged; an error if that
    /// takes longer than `within`.
    pub async fn acknowledged_since(&self, since: u64, within: Duration) -> Result<Duration> {
        loop {
            let (called, returned) = *self.newest.lock();
            if called >= since {
                return Ok(Duration::from_nanos(returned.saturating_sub(since)));
            }
            if Duration::from_nanos(self.now().saturating_sub(since)) > within {
                bail!("no write was acknowledged within {} s", within.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl<Op: Clone> Default for Ledger<Op> {
    fn default() -> Ledger<Op> {
        Ledger::new()
    }
}
