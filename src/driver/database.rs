//! Handles on a database: statements in text, and prepared ones.
//!
//! Each call takes a connection of the pool for as long as it lasts, so that what belongs to a
//! connection (transactions, temporary tables, pragmas) is out of reach here: use
//! [`Database::transaction`], [`Database::begin`] or [`Database::session`]. What a handle is told
//! (read level, who serves reads, a bound on each call) is for one call where the handle is made
//! for one call: it is cheap to clone.
//!
//! *Invariant*: a statement that begins or ends a transaction is refused here, except within a
//! script, whose connection is not used again.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::Client;
use super::call::{Call, Effect, Op, unexpected};
use super::connection::Level;
use super::error::DriverError;
use super::rows::{ExecResult, RowStream, Rows, Source};
use super::session::Session;
use super::spread::ReadFrom;
use super::sql;
use super::transaction::{Begin, Transaction};
use super::typed::Row;
use crate::wire::{Params, ReadLevel, Response, Value};

/// A database of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    client: Client,
    name: Arc<str>,
    level: Level,
    from: ReadFrom,
    timeout: Duration,
}

/// What the words of a text say about it.
pub(super) struct Shape {
    pub(super) effect: Effect,
    /// Whether one of its statements begins or ends a transaction.
    pub(super) controls: bool,
}

impl Shape {
    pub(super) fn of(text: &str) -> Shape {
        let mut pieces = sql::pieces(text);
        let (first, second) = (pieces.next(), pieces.next());
        let controls = sql::pieces(text).any(|piece| sql::control(piece.text).is_some());
        let effect = match (first, second) {
            (_, Some(_)) => Effect::Script,
            (Some(piece), None) if sql::is_read_only(piece.text) => Effect::Read,
            _ => Effect::Write,
        };
        Shape { effect, controls }
    }
}

/// Encodes parameters, unless one of them would be cut short.
pub(super) fn encode(values: &[Value]) -> Result<Params, DriverError> {
    let cut = |value: &Value| matches!(value, Value::Text(t) | Value::Iso8601(t) if t.has_nul());
    if values.iter().any(cut) {
        let text = "a text parameter cannot hold a NUL; pass a blob";
        return Err(DriverError::Invalid(text.to_owned()));
    }
    Ok(Params::new(values.iter().map(Value::as_ref)))
}

impl Database {
    pub(super) fn new(client: Client, name: &str, timeout: Duration) -> Database {
        let from = client.inner.options.read_from;
        Database { client, name: name.into(), level: Level::default(), from, timeout }
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same database, read at another level.
    pub fn read_level(mut self, level: ReadLevel) -> Database {
        self.level.level = level;
        self
    }

    /// The same database, whose reads are served by whom this says.
    pub fn read_from(mut self, from: ReadFrom) -> Database {
        self.from = from;
        self
    }

    /// The same database, whose local reads show nothing older than this (0: any age).
    pub fn max_staleness(mut self, age: Duration) -> Database {
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.level.max_staleness_ms = if age.is_zero() { 0 } else { millis.max(1) };
        self
    }

    /// The same database, with another bound on each call.
    pub fn timeout(mut self, timeout: Duration) -> Database {
        self.timeout = timeout;
        self
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn call(&self, effect: Effect, opens_transaction: bool) -> Call<'_> {
        Call {
            database: Some(&self.name),
            level: self.level,
            effect,
            from: self.from,
            opens_transaction,
            once: None,
            deadline: Instant::now() + self.timeout,
        }
    }

    /// Runs one statement for its effect. Several may stand in the text; they are no transaction,
    /// and each takes its own parameters from the list.
    pub async fn execute(&self, sql: &str, params: Vec<Value>) -> Result<ExecResult, DriverError> {
        let shape = Shape::of(sql);
        if shape.controls && shape.effect != Effect::Script {
            return Err(refuse_control());
        }
        let op = Op::Exec(sql.into(), encode(&params)?);
        let id = self.own_id(sql, shape.effect);
        let call = self.call(shape.effect, shape.controls).with_id(id.as_ref());
        let (_lent, response) = self.client.inner.run(call, &op).await?;
        ExecResult::from_response(&response)
    }

    /// Runs any number of statements, without parameters. They are no transaction unless the
    /// text says BEGIN and COMMIT: when one fails, those before it stay.
    pub async fn execute_batch(&self, sql: &str) -> Result<ExecResult, DriverError> {
        self.execute(sql, Vec::new()).await
    }

    /// Runs one statement and collects its rows.
    pub async fn query(&self, sql: &str, params: Vec<Value>) -> Result<Rows, DriverError> {
        let (call, op) = self.query_call(sql, &params)?;
        let id = self.own_id(sql, call.effect);
        self.client.inner.collect(call.with_id(id.as_ref()), &op).await
    }

    /// Runs one statement; its rows become values of a type: structs by the names of columns,
    /// tuples by their positions, single values from rows of one column. See [`Row::to`].
    ///
    /// ```no_run
    /// # async fn example(shop: quire::driver::Database) -> Result<(), quire::driver::DriverError> {
    /// #[derive(serde::Deserialize)]
    /// struct Order {
    ///     item: String,
    ///     count: u32,
    /// }
    /// let orders: Vec<Order> = shop.query_as("SELECT item, count FROM orders", vec![]).await?;
    /// let pairs: Vec<(String, u32)> = shop.query_as("SELECT item, count FROM orders", vec![]).await?;
    /// # let _ = (orders, pairs); Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`DriverError::Row`]: a row is no `T`; it says which column, and what it holds.
    pub async fn query_as<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<Vec<T>, DriverError> {
        self.query(sql, params).await?.to()
    }

    /// Runs one statement; its rows go through a function.
    pub async fn query_map<T>(
        &self,
        sql: &str,
        params: Vec<Value>,
        row: impl FnMut(Row<'_>) -> Result<T, DriverError>,
    ) -> Result<Vec<T>, DriverError> {
        self.query(sql, params).await?.map(row)
    }

    /// Runs one statement; its rows are read as they arrive, in bounded memory. Nothing is
    /// repeated once the first rows have arrived.
    pub async fn query_stream(
        &self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<RowStream<'static>, DriverError> {
        let (call, op) = self.query_call(sql, &params)?;
        let (lent, first) = self.client.inner.run(call, &op).await?;
        RowStream::new(Source::Own(lent), &first, call.effect, self.timeout)
    }

    fn query_call(&self, sql: &str, params: &[Value]) -> Result<(Call<'_>, Op), DriverError> {
        let shape = Shape::of(sql);
        if shape.controls {
            return Err(refuse_control());
        }
        let op = Op::Query(sql.into(), encode(params)?);
        Ok((self.call(shape.effect, false), op))
    }

    /// Prepares a statement, which must be one alone.
    pub async fn prepare(&self, sql: &str) -> Result<Statement, DriverError> {
        let shape = Shape::of(sql);
        if shape.controls {
            return Err(refuse_control());
        }
        let sql = Arc::<str>::from(sql);
        let call = self.call(Effect::Read, false);
        let op = Op::Prepare(sql.clone());
        match self.client.inner.run(call, &op).await? {
            (_lent, Response::Stmt { params, .. }) => {
                Ok(Statement { database: self.clone(), sql, params, effect: shape.effect })
            }
            _ => Err(unexpected("no statement")),
        }
    }

    /// Begins a transaction that takes its locks as it needs them.
    pub async fn begin(&self) -> Result<Transaction, DriverError> {
        self.begin_with(Begin::Deferred).await
    }

    /// Begins a transaction that takes its locks in the given manner.
    pub async fn begin_with(&self, begin: Begin) -> Result<Transaction, DriverError> {
        Transaction::begin(self.session(), begin).await
    }

    /// A session: statements one after the other, BEGIN and COMMIT among them.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }
}

pub(super) fn refuse_control() -> DriverError {
    let text = "BEGIN, COMMIT and the like need a begin(), a transaction() or a session()";
    DriverError::Invalid(text.to_owned())
}

/// A prepared statement. It is prepared on each connection that runs it, once, and again wherever
/// a connection or a leader was lost.
#[derive(Clone)]
pub struct Statement {
    database: Database,
    sql: Arc<str>,
    params: u64,
    effect: Effect,
}

impl Statement {
    /// Its text.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// How many parameters it has.
    pub fn parameters(&self) -> u64 {
        self.params
    }

    /// Runs it for its effect.
    pub async fn execute(&self, params: Vec<Value>) -> Result<ExecResult, DriverError> {
        let op = Op::ExecPrepared(self.sql.clone(), encode(&params)?);
        let id = self.database.own_id(&self.sql, self.effect);
        let call = self.database.call(self.effect, false).with_id(id.as_ref());
        let (_lent, response) = self.database.client.inner.run(call, &op).await?;
        ExecResult::from_response(&response)
    }

    /// Runs it and collects its rows.
    pub async fn query(&self, params: Vec<Value>) -> Result<Rows, DriverError> {
        let op = Op::QueryPrepared(self.sql.clone(), encode(&params)?);
        let id = self.database.own_id(&self.sql, self.effect);
        let call = self.database.call(self.effect, false).with_id(id.as_ref());
        self.database.client.inner.collect(call, &op).await
    }

    /// Runs it; its rows become values of a type, see [`Row::to`].
    pub async fn query_as<T: DeserializeOwned>(
        &self,
        params: Vec<Value>,
    ) -> Result<Vec<T>, DriverError> {
        self.query(params).await?.to()
    }

    /// Runs it; its rows are read as they arrive.
    pub async fn query_stream(
        &self,
        params: Vec<Value>,
    ) -> Result<RowStream<'static>, DriverError> {
        let op = Op::QueryPrepared(self.sql.clone(), encode(&params)?);
        let call = self.database.call(self.effect, false);
        let (lent, first) = self.database.client.inner.run(call, &op).await?;
        RowStream::new(Source::Own(lent), &first, self.effect, self.database.timeout)
    }
}
