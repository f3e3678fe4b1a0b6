//! Requests that are executed once: a statement, or a transaction, together with a row in a table
//! of the node's own that says so. The table is pages like any other, so whoever has the effect
//! has the row too, on any later leader.
//!
//! ```sql
//! CREATE TABLE _quire_requests(
//!     position INTEGER PRIMARY KEY,  -- where it begins in the stream of all that were remembered
//!     id BLOB NOT NULL UNIQUE,       -- the request
//!     at INTEGER NOT NULL,           -- ms since 1970, by the leader's clock; never goes back
//!     result BLOB NOT NULL)          -- a `Stored`
//! ```
//!
//! It is made by the first request that has an id. Each that is remembered forgets the oldest
//! beyond the [`Retention`], in its own transaction. A request that may be one of the forgotten is
//! refused: it is not run a second time.
//!
//! *Invariant*: the row and what it tells of are committed by one transaction, or neither is.

use std::time::Duration;

use rusqlite::{Statement, ffi, params};
use xxhash_rust::xxh3::Xxh3;

use crate::base::planted::{Bug, planted};
use crate::base::{RequestId, limits};

use super::super::stored::{Recorder, Stored, from_malformed, replay};
use super::{Cancel, Connection, Delivery, Ran, RowSink, SqlError, Surplus, Value};

/// What the node's own statements begin with: no client's text is prepared with it.
pub(super) const MARK: &str = "/* quire */";

const BEGIN: &str = "/* quire */ BEGIN IMMEDIATE";
const COMMIT: &str = "/* quire */ COMMIT";
const CREATE: &str = "/* quire */ CREATE TABLE main._quire_requests(\
    position INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, at INTEGER NOT NULL, \
    result BLOB NOT NULL)";
const FIND: &str = "/* quire */ SELECT result FROM main._quire_requests WHERE id = ?1";
const FIRST: &str = "/* quire */ SELECT position, at FROM main._quire_requests \
    ORDER BY position LIMIT 1";
const LAST: &str = "/* quire */ SELECT position, at, length(result) FROM main._quire_requests \
    ORDER BY position DESC LIMIT 1";
const INSERT: &str = "/* quire */ INSERT INTO main._quire_requests VALUES(?1, ?2, ?3, ?4)";
const FORGET: &str = "/* quire */ DELETE FROM main._quire_requests WHERE position <= ?1";

/// So many of the oldest are looked at for their age each time: more than are added.
const AGED_AT_ONCE: usize = 4;

/// How much is remembered of requests that had an id.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Bytes together, [`limits::REQUEST_OVERHEAD_BYTES`] for each included.
    pub bytes_max: u64,
    /// For how long.
    pub kept_for: Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        let kept_for = limits::REQUESTS_KEPT_FOR;
        Retention { bytes_max: limits::REQUESTS_BYTES_MAX, kept_for }
    }
}

/// A request that is to be executed once.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its id.
    pub id: RequestId,
    /// It was sent for the first time so long ago at most, the way here included.
    pub age: Duration,
    /// Another leader, with another clock, may have executed it.
    pub elsewhere: bool,
    /// When it arrived, since the Unix epoch, by this node's clock.
    pub now: Duration,
    /// How much is remembered.
    pub retention: Retention,
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Tells a statement from another, to refuse an id that was used for something else.
fn fingerprint(sql: &str, params: &[Value]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(sql.as_bytes());
    for value in params {
        let (code, bytes): (u8, &[u8]) = match value {
            Value::Integer(integer) => (1, &integer.to_le_bytes()),
            Value::Real(real) => (2, &real.to_bits().to_le_bytes()),
            Value::Text(text) => (3, text),
            Value::Blob(blob) => (4, blob),
            Value::Null => (5, &[]),
        };
        hash.update(&[code]);
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.digest()
}

fn reused() -> SqlError {
    let text = "this request id was used for another request; nothing was done: give each request \
                an id of its own";
    SqlError::new(ffi::SQLITE_MISUSE, text)
}

/// What a statement under an id comes to.
enum Done {
    Fresh(Result<Ran, SqlError>),
    Before(Stored),
}

impl Connection {
    /// Runs `sql`, one statement outside of any transaction, unless the request was executed
    /// before: then `sink` and the caller get what it answered. An error that kept rows
    /// (`INSERT OR FAIL`) counts as executed; any other error kept nothing.
    ///
    /// The counters of the connection itself are the node's afterwards: see [`Connection::seed`].
    pub fn run_once(
        &self,
        request: &Request,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        cancel: &Cancel,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        let ran = self.stop.watch(cancel, || self.once(request, sql, params, surplus, sink));
        self.within_time(ran)
    }

    /// As [`Connection::run_once`], given up after a bounded number of steps, or when the rows
    /// exceed one batch: `None`, and nothing has happened.
    pub fn run_once_quickly(
        &self,
        request: &Request,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        cancel: &Cancel,
        sink: &mut dyn RowSink,
    ) -> Option<Result<Ran, SqlError>> {
        if !sink.begin(Delivery::Quick) {
            return None;
        }
        self.quickly(cancel, || self.once(request, sql, params, surplus, sink))
    }

    fn once(
        &self,
        request: &Request,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        self.space.enter();
        let ran = self.find_or_run(request, sql, params, surplus, sink);
        ran.map_err(|error| self.explain(error))
    }

    fn find_or_run(
        &self,
        request: &Request,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        self.link.begin_statement();
        self.guard.begin();
        self.check_stands()?;
        let fingerprint = fingerprint(sql, params);
        self.ours(BEGIN, execute)?;
        let done = match self.find(request) {
            Ok(Some(stored)) => Ok(Done::Before(stored)),
            Ok(None) => self
                .once_within(request, fingerprint, sql, params, surplus, sink)
                .and_then(|ran| self.ours(COMMIT, execute).map(|()| Done::Fresh(ran))),
            Err(error) => Err(error),
        };
        self.roll_back();
        match done? {
            Done::Fresh(ran) => ran,
            Done::Before(stored) => answer_again(stored, fingerprint, sink),
        }
    }

    /// The statement, and the row that tells of it. The outer error kept nothing.
    fn once_within(
        &self,
        request: &Request,
        fingerprint: u64,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        sink: &mut dyn RowSink,
    ) -> Result<Result<Ran, SqlError>, SqlError> {
        let before = self.raw.total_changes();
        let mut recorder = Recorder::new(sink);
        let mut undoes = false;
        let result = self.with_prepared(sql, |statement| {
            undoes = statement.column_count() > 0 && !statement.readonly();
            self.step(sql, statement, params, surplus, &mut recorder)
        });
        let stored = match &result {
            Ok(ran) => Stored::statement(fingerprint, ran, recorder.finish()),
            // A constraint with OR FAIL keeps the rows before the one that failed.
            Err(error)
                if error.primary() == ffi::SQLITE_CONSTRAINT
                    && !undoes
                    && !self.raw.is_autocommit()
                    && self.raw.total_changes() > before =>
            {
                let (code, message) = (error.code, error.message.clone());
                Stored::Failure { fingerprint, code, message }
            }
            Err(_) => return result.map(Ok),
        };
        self.remember(request, &stored)?;
        Ok(result)
    }

    /// Within a transaction that has just begun: what the request came to when it was executed
    /// before. An error where nobody can know that any more.
    pub fn find_request(&self, request: &Request) -> Result<Option<Stored>, SqlError> {
        self.space.enter();
        self.link.begin_statement();
        self.guard.begin();
        self.find(request).map_err(|error| self.explain(error))
    }

    fn find(&self, request: &Request) -> Result<Option<Stored>, SqlError> {
        let found = self.ours(FIND, |statement| {
            let mut rows = statement.query([request.id.0.as_slice()])?;
            rows.next()?.map(|row| row.get::<_, Vec<u8>>(0)).transpose()
        });
        match found {
            Ok(Some(result)) => Stored::decode(&result).map(Some).map_err(from_malformed),
            Ok(None) => self.check_not_forgotten(request).map(|()| None),
            Err(error) if is_no_table(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a request that is not there was never executed: what was forgotten is older. Also of
    /// one that is sent for the first time: it may have been on its way for so long that a repeat
    /// overtook it.
    fn check_not_forgotten(&self, request: &Request) -> Result<(), SqlError> {
        let Some((position, oldest)) = self.ours(FIRST, first)? else { return Ok(()) };
        let apart = Some(limits::REQUEST_CLOCKS_APART_MAX).filter(|_| request.elsewhere);
        // By the clock that stamps the rows: it does not go back with that of a new leader.
        let now = request.now.max(self.last_stamp()?);
        let begun = now.saturating_sub(request.age + apart.unwrap_or_default());
        if position == 0 || millis(begun) > oldest {
            return Ok(());
        }
        let text = "this request is older than what is remembered: whether it was executed is not \
                    known, and it was not executed now";
        Err(SqlError::new(Request::FORGOTTEN, text))
    }

    /// When the last request was remembered.
    fn last_stamp(&self) -> Result<Duration, SqlError> {
        let at = self.ours(LAST, |statement| {
            let mut rows = statement.query([])?;
            rows.next()?.map(|row| row.get::<_, i64>(1)).transpose()
        })?;
        Ok(Duration::from_millis(u64::try_from(at.unwrap_or(0)).unwrap_or(0)))
    }

    /// Remembers, within the open transaction, what `request` came to, and forgets the oldest.
    pub fn remember(&self, request: &Request, stored: &Stored) -> Result<(), SqlError> {
        if planted(Bug::RequestForgotten) {
            return Ok(());
        }
        let result = stored.encode()?;
        let last = self.ours(LAST, |statement| {
            let mut rows = statement.query([])?;
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            rows.next()?.map(read).transpose()
        });
        let last: Option<(i64, i64, i64)> = match last {
            Err(error) if is_no_table(&error) => {
                self.ours(CREATE, execute)?;
                None
            }
            last => last?,
        };
        let overhead = i64::try_from(limits::REQUEST_OVERHEAD_BYTES).unwrap_or(i64::MAX);
        let now = millis(request.now);
        let (position, at) = match last {
            None => (0, now),
            Some((position, at, bytes)) => {
                (position.saturating_add(overhead).saturating_add(bytes), at.max(now))
            }
        };
        self.ours(INSERT, |statement| {
            statement.execute(params![position, request.id.0.as_slice(), at, result])
        })?;
        let bytes = i64::try_from(result.len()).unwrap_or(i64::MAX);
        let end = position.saturating_add(overhead).saturating_add(bytes);
        let bytes_max = i64::try_from(request.retention.bytes_max).unwrap_or(i64::MAX);
        self.forget(position.min(end.saturating_sub(bytes_max)) - 1)?;
        let aged = at.saturating_sub(millis(request.retention.kept_for));
        for _ in 0..AGED_AT_ONCE {
            match self.ours(FIRST, first)? {
                Some((oldest, at)) if at < aged && oldest < position => self.forget(oldest)?,
                _ => break,
            }
        }
        Ok(())
    }

    /// Forgets all up to a position.
    fn forget(&self, position: i64) -> Result<(), SqlError> {
        if position >= 0 {
            self.ours(FORGET, |statement| statement.execute([position]))?;
        }
        Ok(())
    }

    /// Remembers a transaction that is about to be committed by its client's statement. An error
    /// leaves the transaction as it was.
    pub fn remember_transaction(&self, request: &Request, stored: &Stored) -> Result<(), SqlError> {
        self.space.enter();
        self.link.begin_statement();
        self.guard.begin();
        self.check_stands()?;
        let saved = self.internally("SAVEPOINT quire_request");
        let remembered = saved.and_then(|()| {
            let remembered = self.remember(request, stored);
            if remembered.is_err() {
                self.forget_transaction();
            }
            remembered
        });
        remembered.map_err(|error| self.explain(error))
    }

    /// Takes [`Connection::remember_transaction`] back: the transaction was not committed.
    pub fn forget_transaction(&self) {
        self.space.enter();
        let undo = "ROLLBACK TO quire_request; RELEASE quire_request";
        if !self.is_autocommit()
            && let Err(error) = self.internally(undo)
        {
            tracing::debug!(%error, "rollback");
            self.roll_back();
        }
    }

    /// Runs a statement of the node's own, from the cache of statements.
    fn ours<T>(
        &self,
        sql: &str,
        with: impl FnOnce(&mut Statement<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, SqlError> {
        debug_assert!(sql.starts_with(MARK));
        // Also while it is stepped: SQLite prepares it again where the schema has changed.
        self.guard.set_internal(true);
        let done = self.raw.prepare_cached(sql).and_then(|mut statement| with(&mut statement));
        self.guard.set_internal(false);
        Ok(done?)
    }
}

impl Request {
    /// The code of the error that tells that a repeat came too late.
    pub const FORGOTTEN: i32 = 1101;
}

fn execute(statement: &mut Statement<'_>) -> rusqlite::Result<()> {
    statement.execute([]).map(drop)
}

fn first(statement: &mut Statement<'_>) -> rusqlite::Result<Option<(i64, i64)>> {
    let mut rows = statement.query([])?;
    rows.next()?.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
}

fn is_no_table(error: &SqlError) -> bool {
    error.code == ffi::SQLITE_ERROR && error.message.starts_with("no such table:")
}

/// Gives a repeat what the request answered.
fn answer_again(stored: Stored, fingerprint: u64, sink: &mut dyn RowSink) -> Result<Ran, SqlError> {
    match stored {
        Stored::Statement {
            fingerprint: of,
            last_insert_rowid,
            changes,
            total_changes,
            rows: recorded,
        } if of == fingerprint => {
            let (columns, rows) = replay(&recorded, sink)?;
            let (wrote, parameters) = (true, 0);
            Ok(Ran { wrote, last_insert_rowid, changes, total_changes, parameters, columns, rows })
        }
        Stored::Failure { fingerprint: of, code, message } if of == fingerprint => {
            Err(SqlError { code, message, cause: None })
        }
        _ => Err(reused()),
    }
}
