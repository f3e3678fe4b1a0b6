//! What stops a running statement: the client's wish ([`Cancel`]), a limit of time, and, where it
//! was to be quick, a budget of steps. SQLite asks from time to time, from its progress handler.
//!
//! *Invariant*: a statement that is not quick is watched from its first step to its last; one that
//! is ends by itself within its budget, so nobody need watch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::base::Clock;

/// SQLite asks after this many steps of its virtual machine.
pub const STEPS_BETWEEN_LOOKS: i32 = 1000;

/// A quick statement is asked about so many times at most: well below a millisecond.
const QUICK_LOOKS_MAX: i64 = 8;

const NOT_QUICK: i64 = i64::MAX;

/// Asks a running statement to stop. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Cancelled>);

#[derive(Debug, Default)]
struct Cancelled {
    asked: AtomicBool,
    /// Who waits for it: a statement waits in one place at a time.
    waiting: AtomicWaker,
}

impl Cancel {
    /// Stops the statement at the progress handler's next look, or where it waits for its turn;
    /// too late once it commits.
    pub fn cancel(&self) {
        self.0.asked.store(true, Ordering::Release);
        self.0.waiting.wake();
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// Waits until somebody asks. One future of it at a time is woken.
    pub async fn cancelled(&self) {
        std::future::poll_fn(|context| {
            self.0.waiting.register(context.waker());
            if self.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// How long a statement may run.
#[derive(Clone)]
pub struct TimeLimit {
    /// What measures it.
    pub clock: Arc<dyn Clock>,
    /// The longest time, that in which its rows are taken included.
    pub max: Duration,
}

/// The statement that runs.
struct Watched {
    cancel: Cancel,
    /// On the limit's clock.
    until: Duration,
}

/// What a connection and its progress handler share. One thread at a time uses both.
pub struct Stop {
    limit: Option<TimeLimit>,
    /// Looks that a quick statement has left.
    quick_looks: AtomicI64,
    watched: Mutex<Option<Watched>>,
    timed_out: AtomicBool,
}

impl Stop {
    /// For a connection whose statements may run for as long as `limit` says.
    pub fn new(limit: Option<TimeLimit>) -> Arc<Stop> {
        Arc::new(Stop {
            limit,
            quick_looks: AtomicI64::new(NOT_QUICK),
            watched: Mutex::default(),
            timed_out: AtomicBool::new(false),
        })
    }

    /// Runs a statement that `cancel` or the time may stop.
    pub fn watch<T>(&self, cancel: &Cancel, work: impl FnOnce() -> T) -> T {
        let until = self
            .limit
            .as_ref()
            .map_or(Duration::MAX, |limit| limit.clock.monotonic().saturating_add(limit.max));
        *self.watched.lock() = Some(Watched { cancel: cancel.clone(), until });
        let result = work();
        *self.watched.lock() = None;
        result
    }

    /// Runs a statement that stops when it has used up its budget.
    pub fn quickly<T>(&self, work: impl FnOnce() -> T) -> T {
        self.quick_looks.store(QUICK_LOOKS_MAX, Ordering::Relaxed);
        let result = work();
        self.quick_looks.store(NOT_QUICK, Ordering::Relaxed);
        result
    }

    /// SQLite's question: whether what runs is to stop.
    pub fn is_due(&self) -> bool {
        let left = self.quick_looks.load(Ordering::Relaxed);
        if left != NOT_QUICK {
            self.quick_looks.store(left - 1, Ordering::Relaxed);
            return left <= 0;
        }
        let watched = self.watched.lock();
        let Some(Watched { cancel, until }) = &*watched else { return false };
        if cancel.is_cancelled() {
            return true;
        }
        let late = self.limit.as_ref().is_some_and(|limit| limit.clock.monotonic() > *until);
        if late {
            self.timed_out.store(true, Ordering::Relaxed);
        }
        late
    }

    /// How long the statement that was stopped last might have run, if that was the reason; asked
    /// once.
    pub fn take_timed_out(&self) -> Option<Duration> {
        let timed_out = self.timed_out.swap(false, Ordering::Relaxed);
        self.limit.as_ref().filter(|_| timed_out).map(|limit| limit.max)
    }
}
