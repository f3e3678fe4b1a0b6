//! A bounded pool of connections. A connection is for one database for good, so the pool hands
//! out the one that fits best: the same database and read level, then the same database, then one
//! without a database; the longest idle one makes room for a new one.
//!
//! *Invariant*: idle and lent connections together are never more than the bound, and only a
//! connection whose last answer was read to its end comes back.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::connection::{Connection, Fault, Level};
use super::error::DriverError;

pub(super) struct Pool {
    idle: Mutex<VecDeque<Box<Connection>>>,
    permits: Arc<Semaphore>,
}

/// A place in the pool, with an idle connection that fits or with none.
pub(super) struct Slot {
    pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
    idle: Option<Box<Connection>>,
}

impl Pool {
    pub(super) fn new(connections_max: usize) -> Arc<Pool> {
        let permits = Arc::new(Semaphore::new(connections_max.max(1)));
        Arc::new(Pool { idle: Mutex::new(VecDeque::new()), permits })
    }

    /// Waits for a place, and takes the idle connection that fits best.
    pub(super) async fn slot(
        self: &Arc<Self>,
        address: &Arc<str>,
        database: Option<&str>,
        level: Level,
        deadline: Instant,
    ) -> Result<Slot, DriverError> {
        let busy = |_| DriverError::TimedOut("all connections are in use".to_owned());
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        let Ok(permit) = permit.map_err(busy)? else {
            return Err(DriverError::Invalid("the client is closed".to_owned()));
        };
        let idle = self.take(address, database, level);
        Ok(Slot { pool: self.clone(), permit, idle })
    }

    fn take(
        &self,
        address: &Arc<str>,
        database: Option<&str>,
        level: Level,
    ) -> Option<Box<Connection>> {
        let mut idle = self.idle.lock();
        // Whoever led before is of no use.
        idle.retain(|connection| connection.address() == address);
        loop {
            let same = |c: &Connection| database.is_none() || c.database() == database;
            let best = idle
                .iter()
                .rposition(|c| same(c) && c.level() == level)
                .or_else(|| idle.iter().rposition(|c| same(c)))
                .or_else(|| idle.iter().rposition(|c| c.database().is_none()));
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
}

impl Slot {
    /// The idle connection, if there was one that fits.
    pub(super) fn take_idle(&mut self) -> Option<Box<Connection>> {
        self.idle.take()
    }

    /// Lends a connection in this place.
    pub(super) fn lend(self, connection: Box<Connection>) -> Lent {
        Lent { connection: Some(connection), pool: self.pool, _permit: self.permit }
    }
}

/// A connection that goes back to the pool when dropped, if it can be used again.
pub(super) struct Lent {
    /// Gone only once [`Lent::discard`] was called.
    connection: Option<Box<Connection>>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
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
}

impl Drop for Lent {
    fn drop(&mut self) {
        // The permit is given back after this: the place is still this one's.
        if let Some(connection) = self.connection.take()
            && connection.is_reusable()
        {
            self.pool.idle.lock().push_back(connection);
        }
    }
}
