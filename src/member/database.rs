//! One database on this member: its write slot and executor, and pools of connections that
//! sessions borrow.
//!
//! *Invariant*: a connection goes back to a pool only with no transaction open, with no state of
//! a session's left on it, and in the epoch it was opened in.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::base::{Env, limits};
use crate::pages::Store;
use crate::sqlite::{Connection, ConnectionOptions, SqlError, TempSpace, TimeLimit, View};

use super::MemberOptions;
use super::write::WriteSlot;

/// One database.
pub struct Database {
    store: Arc<Store>,
    slot: WriteSlot,
    options: ConnectionOptions,
    readers: Pool,
    own: Pool,
    published: Arc<Notify>,
}

#[derive(Default)]
struct Pool {
    idle: Mutex<Vec<(u64, Connection)>>,
}

impl Pool {
    fn take(&self, epoch: u64) -> Option<Connection> {
        let mut idle = self.idle.lock();
        while let Some((of, connection)) = idle.pop() {
            if of == epoch {
                return Some(connection);
            }
        }
        None
    }

    fn put(&self, epoch: u64, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() < limits::IDLE_CONNECTIONS_MAX {
            idle.push((epoch, connection));
        }
    }
}

/// A borrowed connection, with the epoch it was opened in.
pub struct Borrowed {
    /// The connection.
    pub connection: Connection,
    /// The epoch it was opened in: it is not used in a later one.
    pub epoch: u64,
}

impl Database {
    /// Over `store`.
    pub fn new(
        store: Arc<Store>,
        env: &Env,
        options: &MemberOptions,
        space: &Arc<TempSpace>,
        published: &Arc<Notify>,
    ) -> Arc<Database> {
        let base = ConnectionOptions {
            view: View::Head,
            shared: true,
            transaction_bytes_max: options.transaction_bytes_max,
            cache_kib: limits::WRITER_CACHE_KIB,
            space: space.clone(),
            time_limit: options
                .statement_max
                .map(|max| TimeLimit { clock: env.clock.clone(), max }),
        };
        let (of, writer) = (store.clone(), base.clone());
        let connect = Box::new(move || match Connection::open(of.clone(), &writer) {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::error!(database = %of.name(), %error, "cannot open a connection");
                None
            }
        });
        Arc::new(Database {
            slot: WriteSlot::new(env.executor, store.clone(), connect),
            store,
            options: ConnectionOptions { cache_kib: limits::CACHE_KIB, ..base },
            readers: Pool::default(),
            own: Pool::default(),
            published: published.clone(),
        })
    }

    /// Its pages.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Its write slot.
    pub fn slot(&self) -> &WriteSlot {
        &self.slot
    }

    /// Tells the proposer that there is something to append.
    pub fn wake_proposer(&self) {
        self.published.notify_one();
    }

    /// Where the proposer is woken from another thread.
    pub fn proposer(&self) -> Arc<Notify> {
        self.published.clone()
    }

    /// A shared reader of the applied version.
    pub fn reader(&self) -> Result<Borrowed, SqlError> {
        // Readers see applied versions only, so every epoch is good for them.
        let options = ConnectionOptions { view: View::Applied, ..self.options.clone() };
        self.borrow(&self.readers, 0, &options)
    }

    /// A connection of a session's own, on the head.
    pub fn own(&self) -> Result<Borrowed, SqlError> {
        let options = ConnectionOptions { shared: false, ..self.options.clone() };
        self.borrow(&self.own, self.store.epoch(), &options)
    }

    fn borrow(
        &self,
        pool: &Pool,
        epoch: u64,
        options: &ConnectionOptions,
    ) -> Result<Borrowed, SqlError> {
        let connection = match pool.take(epoch) {
            Some(connection) => connection,
            None => Connection::open(self.store.clone(), options)?,
        };
        Ok(Borrowed { connection, epoch })
    }

    /// Gives a reader back.
    pub fn return_reader(&self, borrowed: Borrowed) {
        borrowed.connection.take_seen();
        self.readers.put(borrowed.epoch, borrowed.connection);
    }

    /// Gives back a connection that a session has left no state on.
    pub fn return_own(&self, borrowed: Borrowed) {
        let Borrowed { connection, epoch } = borrowed;
        connection.roll_back();
        connection.link().allow_write(false);
        if epoch == self.store.epoch() {
            self.own.put(epoch, connection);
        }
    }
}
