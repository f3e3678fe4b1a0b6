//! The database that the gate stands before, as a seam: [`Database`] and its transactions ([`Tx`]),
//! over the driver ([`Replicated`]) or over an SQLite file of this machine
//! ([`Local`](super::Local)). A test puts a scripted one here.
//!
//! *Invariant*: a transaction holds the write lock from its first moment, so that what it reads
//! cannot change before it commits; one that is dropped is rolled back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::error::{DatabaseError, Error};
use super::retry::{Retries, Sleeper};
use crate::driver::{Begin, Client, Dump, Rows, Transaction, Value};

/// An answer that comes later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, DatabaseError>>;

/// A database that all nodes share, or one of this node alone.
pub trait Database: Send + Sync + 'static {
    /// Whether it can be reached.
    fn ping(&self) -> Answer<'_, ()>;

    /// Begins a transaction that holds the write lock.
    fn begin(&self) -> Answer<'_, Box<dyn Tx>>;

    /// A copy of it as it is, without what an open transaction did.
    fn copy(&self) -> Answer<'_, Box<dyn Pieces>>;
}

/// A transaction. Foreign keys are enforced.
pub trait Tx: Send {
    /// Runs one statement; answers how many rows it changed.
    fn execute<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, u64>;

    /// Runs one statement and collects its rows.
    fn query<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, Rows>;

    /// From here on each statement may take this long, where there is a bound at all.
    fn set_patience(&mut self, limit: Duration) {
        let _ = limit;
    }

    /// Commits.
    fn commit(self: Box<Self>) -> Answer<'static, ()>;

    /// Rolls back.
    fn rollback(self: Box<Self>) -> Answer<'static, ()>;
}

/// A database's file, piece by piece.
pub trait Pieces: Send {
    /// The next bytes; `None` when there are no more.
    fn next(&mut self) -> Answer<'_, Option<Bytes>>;
}

/// A database of a cluster, by the driver.
pub struct Replicated {
    client: Client,
    name: String,
}

impl Replicated {
    /// The database of that name.
    pub fn new(client: Client, name: &str) -> Replicated {
        Replicated { client, name: name.to_owned() }
    }
}

impl Database for Replicated {
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(self.client.ping().await?) })
    }

    fn begin(&self) -> Answer<'_, Box<dyn Tx>> {
        Box::pin(async {
            let database = self.client.database(&self.name);
            let transaction = database.begin_with(Begin::Immediate).await?;
            Ok(Box::new(transaction) as Box<dyn Tx>)
        })
    }

    fn copy(&self) -> Answer<'_, Box<dyn Pieces>> {
        Box::pin(async { Ok(Box::new(self.client.dump(&self.name).await?) as Box<dyn Pieces>) })
    }
}

impl Tx for Transaction {
    fn execute<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, u64> {
        Box::pin(async move { Ok(Transaction::execute(self, sql, params).await?.rows_affected) })
    }

    fn query<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, Rows> {
        Box::pin(async move { Ok(Transaction::query(self, sql, params).await?) })
    }

    fn set_patience(&mut self, limit: Duration) {
        self.set_timeout(limit);
    }

    fn commit(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(async move { Ok(Transaction::commit(*self).await?) })
    }

    fn rollback(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(async move { Ok(Transaction::rollback(*self).await?) })
    }
}

impl Pieces for Dump {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move { Ok(self.piece().await?) })
    }
}

/// Where a closure's transaction comes back to.
type Home = Arc<Mutex<Option<Box<dyn Tx>>>>;

/// A transaction in the hands of a closure ([`Cluster::transaction`](super::Cluster::transaction)):
/// the closure has it as its own, and when it lets it go, it is committed or rolled back.
pub struct Work {
    tx: Box<dyn Tx>,
    home: Home,
}

impl Work {
    fn new(tx: Box<dyn Tx>) -> (Work, Home) {
        let home = Home::default();
        (Work { tx, home: Arc::clone(&home) }, home)
    }
}

impl std::ops::Deref for Work {
    type Target = dyn Tx;

    fn deref(&self) -> &(dyn Tx + 'static) {
        &*self.tx
    }
}

impl std::ops::DerefMut for Work {
    fn deref_mut(&mut self) -> &mut (dyn Tx + 'static) {
        &mut *self.tx
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let tx = std::mem::replace(&mut self.tx, Box::new(Gone));
        *self.home.lock() = Some(tx);
    }
}

/// Stands where a transaction was.
struct Gone;

fn gone<T: Send + 'static>() -> Answer<'static, T> {
    Box::pin(std::future::ready(Err(DatabaseError::refused("the transaction has ended"))))
}

impl Tx for Gone {
    fn execute<'a>(&'a mut self, _: &'a str, _: Vec<Value>) -> Answer<'a, u64> {
        gone()
    }

    fn query<'a>(&'a mut self, _: &'a str, _: Vec<Value>) -> Answer<'a, Rows> {
        gone()
    }

    fn commit(self: Box<Self>) -> Answer<'static, ()> {
        gone()
    }

    fn rollback(self: Box<Self>) -> Answer<'static, ()> {
        gone()
    }
}

/// Runs a closure in a transaction, once.
pub(super) async fn run<T, F>(
    database: &dyn Database,
    work: impl FnOnce(Work) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let (given, home) = Work::new(database.begin().await?);
    let done = work(given).await;
    let Some(tx) = home.lock().take() else {
        let text = "a closure returned and kept its transaction, which is not committed";
        return Err(done.err().unwrap_or_else(|| Error::other(text)));
    };
    end(tx, done).await
}

/// Runs a closure in a transaction, again where nothing was kept and another attempt may succeed.
/// A commit without an answer is not tried again: nobody knows what the closure does.
pub(super) async fn run_again<T, F>(
    database: &dyn Database,
    sleeper: &dyn Sleeper,
    mut work: impl FnMut(Work) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut retries = Retries::default();
    loop {
        match run(database, &mut work).await {
            Err(error) => {
                let worth = error.is_transient();
                retries.pause(sleeper, error, worth).await?;
            }
            done => return done,
        }
    }
}

/// Commits what went well and rolls back what did not.
pub(super) async fn end<T>(tx: Box<dyn Tx>, done: Result<T, Error>) -> Result<T, Error> {
    match done {
        Ok(value) => {
            tx.commit().await?;
            Ok(value)
        }
        Err(error) => match tx.rollback().await {
            Ok(()) => Err(error),
            Err(rollback) => Err(Error::Rollback { error: Box::new(error), rollback }),
        },
    }
}
