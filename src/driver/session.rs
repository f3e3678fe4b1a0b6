//! Statements one after the other as one client: a [`Session`] takes BEGIN and COMMIT as they
//! come. A [`Transaction`](super::Transaction) is built on one.
//!
//! While a transaction is open the session keeps its connection; otherwise it takes one of the
//! pool for each statement. Within a transaction nothing is ever repeated. What is lost with its
//! connection before COMMIT was sent was rolled back, and is told so
//! ([`DriverError::TransactionLost`]); a COMMIT without an answer is
//! [`DriverError::OutcomeUnknown`].
//!
//! *Invariant*: a connection with an open transaction is never returned to the pool; dropping it
//! closes it, and the server rolls back.

use std::time::Duration;

use tokio::time::Instant;

use super::call::{Effect, Op, Setback, judge, unexpected};
use super::connection::Fault;
use super::database::{Database, Shape, encode};
use super::error::DriverError;
use super::once::RequestId;
use super::pool::Lent;
use super::rows::{ExecResult, RowStream, Rows, Source};
use super::sql::{self, Control};
use crate::wire::{Request, Response, Value};

/// What is known of a session's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// None is open.
    Closed,
    /// One was begun; SQLite may have ended it (a failure can roll back, RELEASE can commit).
    Perhaps,
    /// One is open, as long as its connection is.
    Certain,
}

impl State {
    /// The state after statements that all succeeded.
    fn after(self, sql: &str) -> State {
        sql::pieces(sql).fold(self, |state, piece| match (sql::control(piece.text), state) {
            (Some(Control::Begin), _) => State::Certain,
            (Some(Control::Commit | Control::Rollback), _) => State::Closed,
            (Some(Control::Savepoint), State::Closed) => State::Perhaps,
            (_, state) => state,
        })
    }
}

/// The connection of an open transaction.
struct Open {
    lent: Lent,
    state: State,
}

/// Statements one after the other; see the module.
pub struct Session {
    database: Database,
    open: Option<Open>,
}

impl Session {
    pub(super) fn new(database: Database) -> Session {
        Session { database, open: None }
    }

    /// Gives the calls that follow another bound.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.database = self.database.clone().timeout(timeout);
    }

    /// Takes its transaction to another session.
    pub(super) fn take(&mut self) -> Session {
        Session { database: self.database.clone(), open: self.open.take() }
    }

    /// Whether a transaction is (or may be) open.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Rolls an open transaction back by closing its connection.
    pub fn abandon(&mut self) {
        self.open = None;
    }

    /// Runs statements for their effect.
    pub async fn execute(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<ExecResult, DriverError> {
        let op = Op::Exec(sql.into(), encode(&params)?);
        let shape = Shape::of(sql);
        let response = match self.open.take() {
            Some(open) => self.within(open, sql, &op).await?,
            None if shape.controls => self.begin(sql, shape.effect, &op).await?,
            None => {
                let call = self.database.call(shape.effect, false);
                self.database.client().inner.run(call, &op).await?.1
            }
        };
        ExecResult::from_response(&response)
    }

    /// Runs one statement and collects its rows.
    pub async fn query(&mut self, sql: &str, params: Vec<Value>) -> Result<Rows, DriverError> {
        if self.open.is_none() && sql::control(sql).is_none() {
            return self.database.query(sql, params).await;
        }
        let bytes_max = self.database.client().inner.options.result_bytes_max;
        let mut stream = self.query_stream(sql, params).await?;
        let mut rows = Rows { columns: stream.columns().to_vec(), rows: Vec::new() };
        while let Some(batch) = stream.next_batch().await? {
            rows.rows.extend(batch);
            if stream.bytes() > bytes_max {
                return Err(DriverError::ResultTooLarge { bytes_max });
            }
        }
        Ok(rows)
    }

    /// Runs one statement; its rows are read as they arrive. A stream that is dropped within a
    /// transaction before its end costs the next statement an interrupt.
    pub async fn query_stream(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<RowStream<'_>, DriverError> {
        if sql::control(sql).is_some() {
            self.execute(sql, params).await?;
            return Ok(RowStream::empty());
        }
        let Some(open) = self.open.take() else {
            return self.database.query_stream(sql, params).await;
        };
        let op = Op::Query(sql.into(), encode(&params)?);
        let first = self.within(open, sql, &op).await?;
        let timeout = self.database.call_timeout();
        let Some(open) = &mut self.open else { return Err(unexpected("no connection")) };
        RowStream::new(Source::Pinned(&mut open.lent), &first, Shape::of(sql).effect, timeout)
    }

    /// Runs statements that begin a transaction, outside of any.
    async fn begin(&mut self, sql: &str, effect: Effect, op: &Op) -> Result<Response, DriverError> {
        // BEGIN alone changes nothing: it can be repeated like a read.
        let effect = if effect == Effect::Write { Effect::Read } else { effect };
        let call = self.database.call(effect, true);
        let (lent, response) = self.database.client().inner.run(call, op).await?;
        self.keep(lent, State::Closed.after(sql));
        Ok(response)
    }

    /// Begins a transaction that is committed once; what it left to be told if it was before.
    pub(super) async fn begin_once(
        &mut self,
        sql: &str,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, DriverError> {
        let call = self.database.call(Effect::Read, true).with_id(Some(id));
        let op = Op::Exec(sql.into(), encode(&[])?);
        let (lent, response) = self.database.client().inner.run(call, &op).await?;
        let before = match response {
            Response::AlreadyExecuted { outcome, .. } => Some(outcome.to_vec()),
            _ => None,
        };
        let state = if before.is_none() { State::Closed.after(sql) } else { State::Closed };
        self.keep(lent, state);
        Ok(before)
    }

    /// Says what a repeat of the open transaction will be told.
    pub(super) async fn set_outcome(&mut self, outcome: &[u8]) -> Result<(), DriverError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let outcome = outcome.to_vec().into();
        let op = Op::Plain(Request::Outcome { database: 0, outcome });
        self.within(open, "", &op).await.map(drop)
    }

    /// Runs statements within the open transaction.
    async fn within(&mut self, open: Open, sql: &str, op: &Op) -> Result<Response, DriverError> {
        let Open { mut lent, state } = open;
        let commits = sql::pieces(sql).any(|p| sql::control(p.text) == Some(Control::Commit));
        let certain = state == State::Certain;
        let (code, message) = match self.exchange(&mut lent, op).await {
            Ok(Response::Failure { code, message }) => (code, message),
            Ok(response) => {
                self.keep(lent, state.after(sql));
                return Ok(response);
            }
            Err(Fault::NotSent(cause)) => return Err(gone(certain, cause)),
            Err(Fault::Lost(cause)) => return Err(gone(certain && !commits, cause)),
        };
        let cause = message.to_string();
        match judge(Effect::Write, code, &message) {
            // Refused: a COMMIT as well was not executed, if it was alone.
            Setback::Again(_) => {
                let alone = Shape::of(sql).effect != Effect::Script;
                Err(gone(certain && (alone || !commits), cause))
            }
            Setback::Fail(DriverError::OutcomeUnknown { cause }) => {
                Err(gone(certain && !commits, cause))
            }
            Setback::Fail(error) => {
                // A script that begins or ends a transaction may have stopped anywhere in it.
                let somewhere = state.after(sql) != state || commits;
                if !(somewhere && Shape::of(sql).effect == Effect::Script) {
                    self.keep(lent, State::Perhaps);
                }
                Err(error)
            }
        }
    }

    async fn exchange(&self, lent: &mut Lent, op: &Op) -> Result<Response, Fault> {
        let deadline = Instant::now() + self.database.call_timeout();
        let connection = lent.get()?;
        if connection.is_busy() {
            let drained = connection.interrupt(deadline).await;
            drained.map_err(|fault| Fault::NotSent(fault.cause().to_owned()))?;
        }
        op.perform(connection, None, deadline).await
    }

    /// Keeps the connection of an open transaction, returns that of a closed one.
    fn keep(&mut self, mut lent: Lent, state: State) {
        let Ok(connection) = lent.get() else { return };
        connection.set_in_transaction(state != State::Closed);
        if state != State::Closed {
            self.open = Some(Open { lent, state });
        }
    }
}

/// The error for a transaction whose connection or leader is gone.
fn gone(certain: bool, cause: String) -> DriverError {
    if certain {
        DriverError::TransactionLost { cause }
    } else {
        DriverError::OutcomeUnknown { cause }
    }
}
