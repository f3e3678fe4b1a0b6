//! A bounded pool of connections. A connection is for one database for good, so the pool hands
//! out the one that fits best: the same database and read level, then the same database, then one
//! without a database; the longest idle one makes room for a new one.
//!
//! Callers wait in the order in which they came, and only so many of them
//! ([`Options::waiters_max`](super::Options)).
//!
//! A connection whose caller went away in the middle of a statement is interrupted, its answer
//! read, and used again, all within [`Options::cancel_timeout`](super::Options); else it is closed.
//!
//! *Invariant*: idle, lent and interrupted connections together are never more than the bound, and
//! only a connection whose last answer was read to its end comes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::Options;
use super::connection::{Connection, Fault, Level};
use super::error::DriverError;
use super::metrics::Counters;

/// No pool is larger, whatever was asked for.
const CONNECTIONS_MAX: usize = 1 << 20;

pub(super) struct Pool {
    idle: Mutex<VecDeque<Box<Connection>>>,
    permits: Arc<Semaphore>,
    connections_max: usize,
    waiting: AtomicUsize,
    waiters_max: usize,
    cancel_timeout: Duration,
    closed: AtomicBool,
    counters: Arc<Counters>,
}

/// What a connection must be for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) address: &'a Arc<str>,
    pub(super) database: Option<&'a str>,
    pub(super) level: Level,
    /// Whether it reads where nobody leads.
    pub(super) follower: bool,
}

/// A place in the pool, with an idle connection that fits or with none.
pub(super) struct Slot {
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
    idle: Option<Box<Connection>>,
}

/// One caller that waits.
struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(options: &Options, counters: Arc<Counters>) -> Arc<Pool> {
        let connections_max = options.connections_max.clamp(1, CONNECTIONS_MAX);
        Arc::new(Pool {
            idle: Mutex::new(VecDeque::new()),
            permits: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            waiting: AtomicUsize::new(0),
            waiters_max: options.waiters_max,
            cancel_timeout: options.cancel_timeout,
            closed: AtomicBool::new(false),
            counters,
        })
    }

    /// Waits for a place, and takes the idle connection that fits best.
    pub(super) async fn slot(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<Slot, DriverError> {
        let permit = self.permit(deadline).await?;
        if self.is_closed() {
            return Err(DriverError::Closed);
        }
        let idle = self.take(wanted);
        Ok(Slot { pool: self.clone(), permit, idle })
    }

    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, DriverError> {
        if self.is_closed() {
            return Err(DriverError::Closed);
        }
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiters_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counters.pool_refusals.add();
            return Err(DriverError::Overloaded { waiters_max: self.waiters_max });
        }
        let _waiter = Waiter(&self.waiting);
        self.counters.pool_waits.add();
        let busy = |_| DriverError::TimedOut("all connections are in use".to_owned());
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        permit.map_err(busy)?.map_err(|_| DriverError::Closed)
    }

    fn take(&self, wanted: Wanted<'_>) -> Option<Box<Connection>> {
        let Wanted { address, database, level, follower } = wanted;
        let mut idle = self.idle.lock();
        loop {
            let here = |c: &Connection| c.address() == address && c.is_follower() == follower;
            let same = |c: &Connection| here(c) && (database.is_none() || c.database() == database);
            let best = idle
                .iter()
                .rposition(|c| same(c) && c.level() == level)
                .or_else(|| idle.iter().rposition(|c| same(c)))
                .or_else(|| idle.iter().rposition(|c| here(c) && c.database().is_none()));
            let Some(mut connection) = best.and_then(|at| idle.remove(at)) else { break };
            if connection.is_alive() {
                return Some(connection);
            }
        }
        // This caller opens a new one: its place must be free.
        while idle.len() > self.permits.available_permits() {
            idle.pop_front();
        }
        None
    }

    /// Closes the idle connections to an address: whoever led there does not any more.
    pub(super) fn forget(&self, address: &str) {
        self.idle.lock().retain(|connection| **connection.address() != *address);
    }

    /// How many connections are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle.lock().len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Lends no more, waits for what is lent until the deadline, and closes what is idle. Whether
    /// all came back.
    pub(super) async fn close(&self, deadline: Instant) -> bool {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().clear();
        let all = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        let all_back = timeout_at(deadline, self.permits.acquire_many(all)).await;
        // Whoever waits is told now.
        self.permits.close();
        matches!(all_back, Ok(Ok(_)))
    }

    fn give_back(&self, connection: Box<Connection>) {
        let mut idle = self.idle.lock();
        // Under the lock: `close` empties the list after it has closed the pool.
        if !self.is_closed() {
            idle.push_back(connection);
        }
    }
}

impl Slot {
    /// The idle connection, if there was one that fits.
    pub(super) fn take_idle(&mut self) -> Option<Box<Connection>> {
        self.idle.take()
    }

    /// Lends a connection in this place.
    pub(super) fn lend(self, connection: Box<Connection>) -> Lent {
        Lent { connection: Some(connection), pool: self.pool, permit: Some(self.permit) }
    }
}

/// A connection that goes back to the pool when dropped, if it can be used again.
pub(super) struct Lent {
    /// Gone only once [`Lent::discard`] was called.
    connection: Option<Box<Connection>>,
    pool: Arc<Pool>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Lent {
    /// The connection.
    pub(super) fn get(&mut self) -> Result<&mut Connection, Fault> {
        self.connection
            .as_deref_mut()
            .ok_or_else(|| Fault::NotSent("the connection is closed".into()))
    }

    /// Closes the connection.
    pub(super) fn discard(&mut self) {
        self.connection = None;
    }

    /// Closes the connection, unless what runs there can be interrupted when this is dropped.
    pub(super) fn give_up(&mut self) {
        let late = |c: &mut Box<Connection>| c.is_late() && c.is_interruptible();
        self.connection = self.connection.take_if(late);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // The permit is given back after this: the place is still this one's.
        let Some(mut connection) = self.connection.take() else { return };
        if connection.is_reusable() {
            return self.pool.give_back(connection);
        }
        let (true, Ok(runtime)) =
            (connection.is_interruptible(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (pool, permit) = (self.pool.clone(), self.permit.take());
        pool.counters.cancels.add();
        runtime.spawn(async move {
            let deadline = Instant::now() + pool.cancel_timeout;
            if connection.interrupt(deadline).await.is_ok() && connection.is_reusable() {
                pool.give_back(connection);
            }
            drop(permit);
        });
    }
}
