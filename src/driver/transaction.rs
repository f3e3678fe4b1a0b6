//! Transactions by hand: [`Transaction`] has begun, and ends by a commit, a rollback, or a drop,
//! which rolls back. [`Savepoint`]s nest within it in the same way.
//!
//! A transaction that is dropped closes its connection: the server rolls back when it sees the
//! end. A savepoint that is dropped is rolled back before the next statement of its transaction.
//!
//! *Invariant*: what was done within a savepoint that was not committed is gone before anything
//! else runs in the transaction, and before it commits.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::error::DriverError;
use super::once::{BeginOnce, RequestId};
use super::rows::{ExecResult, RowStream, Rows};
use super::session::Session;
use super::sql::{self, Control};
use super::typed::Row;
use crate::base::Fate;
use crate::wire::Value;

/// How deep savepoints nest.
const SAVEPOINTS_MAX: usize = 64;

/// How a transaction takes its locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// At its first read and its first write. A write after a read fails with SQLITE_BUSY_SNAPSHOT
    /// if somebody else committed between them.
    #[default]
    Deferred,
    /// The write lock, at once.
    Immediate,
    /// As [`Begin::Immediate`]: readers are never kept out.
    Exclusive,
}

impl Begin {
    fn sql(self) -> &'static str {
        match self {
            Begin::Deferred => "BEGIN",
            Begin::Immediate => "BEGIN IMMEDIATE",
            Begin::Exclusive => "BEGIN EXCLUSIVE",
        }
    }
}

/// Where the transaction of a closure is.
pub(super) enum Whereabouts {
    /// With the closure.
    Out,
    /// The closure has dropped it; it can be committed.
    Back(Transaction),
    /// The closure has ended it.
    Ended,
}

/// A transaction. Dropping it rolls it back.
pub struct Transaction {
    session: Session,
    /// Savepoints that are open.
    depth: usize,
    /// Roll back to before this one first: it was dropped.
    undo: Option<usize>,
    /// A statement failed in a way that another attempt of the whole may mend.
    worth_repeating: bool,
    /// Where it goes when it is dropped, if it is a closure's.
    home: Option<Arc<Mutex<Whereabouts>>>,
}

/// The name of the savepoint at a depth, which begins at 1.
fn name(depth: usize) -> String {
    format!("quire_savepoint_{depth}")
}

impl Transaction {
    /// Gives the calls that follow another bound; see [`Database::timeout`](super::Database::timeout).
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.session.set_timeout(timeout);
    }

    pub(super) async fn begin(
        mut session: Session,
        begin: Begin,
    ) -> Result<Transaction, DriverError> {
        session.execute(begin.sql(), Vec::new()).await?;
        Ok(Transaction::of(session))
    }

    pub(super) async fn begin_once(
        mut session: Session,
        begin: Begin,
        id: &RequestId,
    ) -> Result<BeginOnce, DriverError> {
        Ok(match session.begin_once(begin.sql(), id).await? {
            Some(outcome) => BeginOnce::Before(outcome),
            None => BeginOnce::Begun(Transaction::of(session)),
        })
    }

    fn of(session: Session) -> Transaction {
        Transaction { session, depth: 0, undo: None, worth_repeating: false, home: None }
    }

    /// For a closure: when it is dropped, it is found in its home.
    pub(super) fn with_home(mut self) -> (Transaction, Arc<Mutex<Whereabouts>>) {
        let home = Arc::new(Mutex::new(Whereabouts::Out));
        self.home = Some(home.clone());
        (self, home)
    }

    /// It ends here, and does not go home.
    fn leave_home(&mut self) {
        if let Some(home) = self.home.take() {
            *home.lock() = Whereabouts::Ended;
        }
    }

    /// Whether all of it may be tried again: it failed, nothing of it was kept, and what stood in
    /// its way may be gone.
    pub(super) fn is_worth_repeating(&self) -> bool {
        self.worth_repeating
    }

    /// Runs statements for their effect.
    pub async fn execute(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<ExecResult, DriverError> {
        self.ready(sql).await?;
        let result = self.session.execute(sql, params).await;
        self.noted(result)
    }

    /// Runs one statement and collects its rows.
    pub async fn query(&mut self, sql: &str, params: Vec<Value>) -> Result<Rows, DriverError> {
        self.ready(sql).await?;
        let result = self.session.query(sql, params).await;
        self.noted(result)
    }

    /// Runs one statement; its rows become values of a type, see [`Row::to`].
    pub async fn query_as<T: DeserializeOwned>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Vec<T>, DriverError> {
        self.query(sql, params).await?.to()
    }

    /// Runs one statement; its rows go through a function.
    pub async fn query_map<T>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        row: impl FnMut(Row<'_>) -> Result<T, DriverError>,
    ) -> Result<Vec<T>, DriverError> {
        self.query(sql, params).await?.map(row)
    }

    /// Runs one statement; its rows are read as they arrive.
    pub async fn query_stream(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<RowStream<'_>, DriverError> {
        self.ready(sql).await?;
        self.session.query_stream(sql, params).await
    }

    /// A savepoint: what is done in it can be undone without the rest. While it is there, the
    /// transaction is used through it.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, DriverError> {
        self.open_savepoint().await?;
        let depth = self.depth;
        Ok(Savepoint { transaction: self, depth, ended: false })
    }

    async fn open_savepoint(&mut self) -> Result<(), DriverError> {
        if self.depth >= SAVEPOINTS_MAX {
            let text = format!("savepoints nest at most {SAVEPOINTS_MAX} deep");
            return Err(DriverError::Invalid(text));
        }
        self.control(&format!("SAVEPOINT {}", name(self.depth + 1))).await?;
        self.depth += 1;
        Ok(())
    }

    /// Commits.
    ///
    /// # Errors
    ///
    /// [`DriverError::OutcomeUnknown`]: nobody can tell whether it was committed. Any other:
    /// it was not.
    pub async fn commit(mut self) -> Result<(), DriverError> {
        self.leave_home();
        self.end().await
    }

    /// Commits, and lets the caller look at the transaction afterwards.
    pub(super) async fn end(&mut self) -> Result<(), DriverError> {
        self.control("COMMIT").await
    }

    /// Commits a transaction that has an id ([`super::Database::begin_once`]), and leaves what a
    /// repeat of it is told: some less than 64 KiB.
    ///
    /// # Errors
    ///
    /// [`DriverError::OutcomeUnknown`]: begin it once more with the same id. Any other: it was not
    /// committed.
    pub async fn commit_with(mut self, outcome: &[u8]) -> Result<(), DriverError> {
        self.leave_home();
        self.end_with(outcome).await
    }

    pub(super) async fn end_with(&mut self, outcome: &[u8]) -> Result<(), DriverError> {
        self.undo_dropped().await?;
        self.alive()?;
        if !outcome.is_empty() {
            let result = self.session.set_outcome(outcome).await;
            self.noted(result)?;
        }
        self.end().await
    }

    /// Rolls back.
    pub async fn rollback(mut self) -> Result<(), DriverError> {
        self.leave_home();
        if self.session.in_transaction() {
            self.session.execute("ROLLBACK", Vec::new()).await?;
        }
        Ok(())
    }

    /// Before each statement: it must not end the transaction, which ends by
    /// [`Transaction::commit`], [`Transaction::rollback`] or a drop; and nothing runs once it is
    /// lost.
    async fn ready(&mut self, sql: &str) -> Result<(), DriverError> {
        let ends = |piece: sql::Piece<'_>| {
            matches!(
                sql::control(piece.text),
                Some(Control::Begin | Control::Commit | Control::Rollback)
            )
        };
        if sql::pieces(sql).any(ends) {
            let text = "a transaction ends by commit(), rollback() or a drop";
            return Err(DriverError::Invalid(text.to_owned()));
        }
        self.undo_dropped().await?;
        self.alive()
    }

    async fn control(&mut self, sql: &str) -> Result<(), DriverError> {
        self.undo_dropped().await?;
        self.alive()?;
        let result = self.session.execute(sql, Vec::new()).await.map(drop);
        self.noted(result)
    }

    /// Rolls back to before the outermost savepoint that was dropped.
    async fn undo_dropped(&mut self) -> Result<(), DriverError> {
        let Some(depth) = self.undo else { return Ok(()) };
        self.alive()?;
        self.session.execute(&undo(depth), Vec::new()).await?;
        // Only now: should this be given up half-way, the next one does it.
        self.undo = None;
        Ok(())
    }

    fn noted<T>(&mut self, result: Result<T, DriverError>) -> Result<T, DriverError> {
        if let Err(error) = &result {
            self.worth_repeating = matches!(error.fate(), Fate::RetryHere | Fate::RetryElsewhere);
        }
        result
    }

    fn alive(&self) -> Result<(), DriverError> {
        if self.session.in_transaction() {
            return Ok(());
        }
        Err(DriverError::Invalid("the transaction was lost by an earlier error".to_owned()))
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let (session, undo) = (self.session.take(), self.undo);
        let (depth, worth_repeating) = (self.depth, self.worth_repeating);
        let back = Transaction { session, depth, undo, worth_repeating, home: None };
        *home.lock() = Whereabouts::Back(back);
    }
}

/// Undoes what was done since the savepoint at `depth`, and forgets it.
fn undo(depth: usize) -> String {
    let name = name(depth);
    format!("ROLLBACK TO {name}; RELEASE {name}")
}

/// A part of a transaction that can be undone alone. Dropping it undoes it.
pub struct Savepoint<'t> {
    transaction: &'t mut Transaction,
    depth: usize,
    ended: bool,
}

impl Savepoint<'_> {
    /// Runs statements for their effect.
    pub async fn execute(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<ExecResult, DriverError> {
        self.transaction.execute(sql, params).await
    }

    /// Runs one statement and collects its rows.
    pub async fn query(&mut self, sql: &str, params: Vec<Value>) -> Result<Rows, DriverError> {
        self.transaction.query(sql, params).await
    }

    /// Runs one statement; its rows become values of a type, see [`Row::to`].
    pub async fn query_as<T: DeserializeOwned>(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Vec<T>, DriverError> {
        self.transaction.query_as(sql, params).await
    }

    /// Runs one statement; its rows are read as they arrive.
    pub async fn query_stream(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<RowStream<'_>, DriverError> {
        self.transaction.query_stream(sql, params).await
    }

    /// A savepoint within this one.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, DriverError> {
        self.transaction.open_savepoint().await?;
        let depth = self.transaction.depth;
        Ok(Savepoint { transaction: self.transaction, depth, ended: false })
    }

    /// Keeps what was done in it, as far as the transaction is kept.
    pub async fn commit(mut self) -> Result<(), DriverError> {
        self.transaction.control(&format!("RELEASE {}", name(self.depth))).await?;
        self.ended = true;
        Ok(())
    }

    /// Undoes what was done in it.
    pub async fn rollback(mut self) -> Result<(), DriverError> {
        self.transaction.control(&undo(self.depth)).await?;
        self.ended = true;
        Ok(())
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        let transaction = &mut *self.transaction;
        transaction.depth = self.depth.saturating_sub(1);
        if !self.ended {
            // Inner ones are dropped first: the outermost counts.
            transaction.undo = Some(self.depth);
        }
    }
}
