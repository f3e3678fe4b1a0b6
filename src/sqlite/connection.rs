//! A SQLite connection on the virtual file system: prepare, bind, step; errors with SQLite's own
//! codes and texts; cancelling; and what became of the transaction afterwards.
//!
//! A connection is used by one thread at a time. It is not a session: a session may have none, or
//! one of its own, and `member` decides.
//!
//! *Invariant*: a statement is stepped to its end or reset before the call returns, so that no
//! lock outlives a call unless a transaction is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::functions::FunctionFlags;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OpenFlags, ffi};

use crate::pages::{PagesError, Store};

use super::guard::{Guard, Notes};
use super::link::{Link, Published, Seen, View};
use super::temp::TempSpace;
use super::{text, vfs};

/// Prepared statements that a connection keeps for the next time.
const STATEMENT_CACHE_CAPACITY: usize = 64;

/// The progress handler looks for a cancel after this many steps of SQLite's virtual machine.
const PROGRESS_STEPS: i32 = 1000;

/// A statement's text may be this long.
const SQL_BYTES_MAX: i32 = 16 << 20;

/// So much of a script is shown to SQLite at first to find where its first statement ends.
const FIRST_PIECE_BYTES: usize = 4 << 10;

/// A value for a parameter. Text need not be UTF-8.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// Text in the database's encoding.
    Text(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

/// Why SQLite refused, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// SQLite's extended result code.
    pub code: i32,
    /// SQLite's message.
    pub message: String,
    /// What the file below it said, where that was the reason.
    pub cause: Option<PagesError>,
}

impl SqlError {
    /// An error with a code and a text.
    pub fn new(code: i32, message: &str) -> SqlError {
        SqlError { code, message: message.to_owned(), cause: None }
    }

    /// The primary result code.
    pub fn primary(&self) -> i32 {
        self.code & 0xff
    }
}

impl From<rusqlite::Error> for SqlError {
    fn from(error: rusqlite::Error) -> SqlError {
        let fallback = error.to_string();
        match error {
            rusqlite::Error::SqliteFailure(error, message) => SqlError {
                code: error.extended_code,
                message: message.unwrap_or(fallback),
                cause: None,
            },
            rusqlite::Error::SqlInputError { error, msg, .. } => {
                SqlError { code: error.extended_code, message: msg, cause: None }
            }
            _ => SqlError { code: ffi::SQLITE_ERROR, message: fallback, cause: None },
        }
    }
}

/// Asks a running statement to stop. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops the statement at the progress handler's next look; too late once it commits.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A result column.
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its declared type, where it is a table's column.
    pub declared: Option<&'a str>,
}

/// Takes the rows of a statement.
pub trait RowSink {
    /// Called once, before the first row, for a statement that has columns.
    fn columns(&mut self, columns: &[Column<'_>]) -> Result<(), SqlError>;

    /// One row. An error ends the statement.
    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError>;
}

/// What a statement left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// `last_insert_rowid()` afterwards.
    pub last_insert_rowid: i64,
    /// `changes()` afterwards.
    pub changes: u64,
    /// Result columns.
    pub columns: usize,
    /// Rows given to the sink.
    pub rows: u64,
}

/// What a statement is, before it runs.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// It changes nothing in the database.
    pub readonly: bool,
    /// EXPLAIN: it only tells what would be done.
    pub explain: bool,
    /// SQLite's highest parameter number.
    pub parameters: usize,
    /// Result columns.
    pub columns: usize,
    /// It needs a connection of the session's own, and was not prepared on this shared one.
    pub needs_own_connection: bool,
}

/// How a connection is made.
#[derive(Clone)]
pub struct ConnectionOptions {
    /// Which versions it sees.
    pub view: View,
    /// Whether sessions share it.
    pub shared: bool,
    /// A transaction may write this many bytes of pages.
    pub transaction_bytes_max: u64,
    /// Pages of the connection's cache, in KiB.
    pub cache_kib: u32,
    /// Where its temporary files go.
    pub space: Arc<TempSpace>,
}

/// What a session brings along to a connection of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// `last_insert_rowid()`.
    pub last_insert_rowid: i64,
    /// `changes()`.
    pub changes: u64,
    /// `total_changes()`.
    pub total_changes: u64,
}

#[derive(Default)]
struct SeededCounters {
    changes: AtomicI64,
    /// What the connection's own count is short of the session's.
    total_changes: AtomicI64,
    /// The connection's own count when it was seeded.
    own_total_changes: AtomicI64,
    /// A statement that counts has ended since, though it may have changed no row.
    counted: AtomicBool,
}

/// A SQLite connection to one database.
pub struct Connection {
    raw: rusqlite::Connection,
    link: Arc<Link>,
    guard: Guard,
    space: Arc<TempSpace>,
    cancel: Arc<Mutex<Option<Cancel>>>,
    counters: Arc<SeededCounters>,
}

impl Connection {
    /// Opens a connection to `store`.
    pub fn open(store: Arc<Store>, options: &ConnectionOptions) -> Result<Connection, SqlError> {
        if !vfs::ensure_registered() {
            return Err(SqlError::new(ffi::SQLITE_ERROR, "the virtual file system is missing"));
        }
        let link = Link::new(store, options.view, options.transaction_bytes_max);
        let name = vfs::announce(link.clone());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = options
            .space
            .used_by(|| rusqlite::Connection::open_with_flags_and_vfs(&name, flags, vfs::VFS_NAME));
        vfs::withdraw(&name);
        let mut connection = Connection {
            raw: opened?,
            link,
            guard: Guard::new(options.shared),
            space: options.space.clone(),
            cancel: Arc::default(),
            counters: Arc::default(),
        };
        connection.configure(options)?;
        Ok(connection)
    }

    fn configure(&mut self, options: &ConnectionOptions) -> Result<(), SqlError> {
        let raw = &mut self.raw;
        let page_size = self.link.page_size();
        raw.execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = MEMORY; \
             PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON; PRAGMA cell_size_check = ON; \
             PRAGMA cache_size = -{};",
            options.cache_kib
        ))?;
        raw.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        raw.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        raw.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX)?;
        raw.set_prepared_statement_cache_capacity(STATEMENT_CACHE_CAPACITY);
        let guard = self.guard.clone();
        raw.authorizer(Some(move |context: rusqlite::hooks::AuthContext<'_>| {
            guard.authorize(&context)
        }))?;
        let cancel = self.cancel.clone();
        raw.progress_handler(
            PROGRESS_STEPS,
            Some(move || cancel.lock().as_ref().is_some_and(Cancel::is_cancelled)),
        )?;
        if !options.shared {
            self.override_counters()?;
        }
        Ok(())
    }

    /// `last_insert_rowid()`, `changes()` and `total_changes()` answer for the session: what it
    /// brought along until this connection itself changed something, and then what SQLite says.
    fn override_counters(&mut self) -> Result<(), SqlError> {
        type Answer = fn(&SeededCounters, &vfs::Counts) -> i64;
        let functions: [(&str, Answer); 3] = [
            ("last_insert_rowid", |_, own| own.last_insert_rowid),
            ("changes", |seed, own| {
                let counted = seed.counted.load(Ordering::Relaxed);
                if counted || own.total_changes != seed.own_total_changes.load(Ordering::Relaxed) {
                    own.changes
                } else {
                    seed.changes.load(Ordering::Relaxed)
                }
            }),
            ("total_changes", |seed, own| {
                seed.total_changes.load(Ordering::Relaxed).saturating_add(own.total_changes)
            }),
        ];
        for (name, answer) in functions {
            let counters = self.counters.clone();
            let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
            self.raw.create_scalar_function(name, 0, flags, move |context| {
                Ok(answer(&counters, &vfs::counts_of(context)?))
            })?;
        }
        Ok(())
    }

    /// The session's counters so far, for a connection that becomes its own.
    pub fn seed(&self, counters: &Counters) {
        let as_i64 = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        vfs::set_last_insert_rowid(&self.raw, counters.last_insert_rowid);
        let own = as_i64(self.raw.total_changes());
        let total = as_i64(counters.total_changes).saturating_sub(own);
        self.counters.changes.store(as_i64(counters.changes), Ordering::Relaxed);
        self.counters.total_changes.store(total, Ordering::Relaxed);
        self.counters.own_total_changes.store(own, Ordering::Relaxed);
        self.counters.counted.store(false, Ordering::Relaxed);
    }

    /// What it shares with its file.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Whether no transaction is open.
    pub fn is_autocommit(&self) -> bool {
        self.raw.is_autocommit()
    }

    /// `total_changes()` of this connection itself.
    pub fn total_changes(&self) -> u64 {
        self.raw.total_changes()
    }

    /// What the authorizer noted about the last statement.
    pub fn notes(&self) -> Notes {
        self.guard.notes()
    }

    /// The last version seen since this was last asked.
    pub fn take_seen(&self) -> Option<Seen> {
        self.link.take_seen()
    }

    /// What was published since this was last asked.
    pub fn take_published(&self) -> Vec<Published> {
        self.link.take_published()
    }

    /// How many bytes the first statement of `sql` takes: all of it where it is the only one.
    pub fn first_statement_bytes(&self, sql: &str) -> usize {
        if text::is_surely_single(sql) {
            return sql.len();
        }
        // SQLite copies what it is given: a script is shown to it piece by piece, until a
        // statement ends inside of the piece.
        let mut piece = sql.len().min(FIRST_PIECE_BYTES);
        loop {
            let part = &sql.as_bytes()[..piece];
            match self.space.used_by(|| vfs::first_statement_bytes(&self.raw, part)) {
                Some(bytes) if bytes < piece => return bytes,
                // What does not compile says so when it is prepared.
                _ if piece == sql.len() => return sql.len(),
                _ => piece = sql.len().min(piece * 2),
            }
        }
    }

    /// Prepares `sql` and uses the statement. It goes back to the cache, unless it acts when it is
    /// prepared (most PRAGMAs), so that it must be prepared each time.
    fn with_prepared<T>(
        &self,
        sql: &str,
        with: impl FnOnce(&mut rusqlite::Statement<'_>) -> Result<T, SqlError>,
    ) -> Result<T, SqlError> {
        // What an earlier statement met is no reason of this one.
        self.link.take_error();
        self.guard.begin();
        self.check_stands()?;
        let mut statement = self.raw.prepare_cached(sql)?;
        let cached = !self.guard.notes().keeps_connection;
        let result = with(&mut statement);
        if !cached {
            statement.discard();
        }
        result
    }

    /// Whether nothing that this connection has seen was dropped by a rewind. When it fails the
    /// connection is of no use any more: every statement answers SQLITE_IOERR.
    pub fn check_stands(&self) -> Result<(), SqlError> {
        self.link.check_stands().map_err(|error| SqlError {
            code: ffi::SQLITE_IOERR,
            message: error.to_string(),
            cause: Some(error),
        })
    }

    /// Prepares `sql`, one statement, and tells what it is.
    pub fn describe(&self, sql: &str) -> Result<Described, SqlError> {
        let described = self.space.used_by(|| {
            self.with_prepared(sql, |statement| {
                Ok(Described {
                    readonly: statement.readonly(),
                    explain: statement.is_explain() != 0,
                    parameters: statement.parameter_count(),
                    columns: statement.column_count(),
                    needs_own_connection: self.guard.notes().needs_own_connection,
                })
            })
        });
        described.or_else(|error| {
            let notes = self.guard.notes();
            let needs_own_connection = notes.needs_own_connection;
            // A function that is refused has another code than an action that is.
            if self.guard.is_shared() && needs_own_connection && notes.denied.is_none() {
                return Ok(Described { needs_own_connection, ..Described::default() });
            }
            Err(self.explain(error))
        })
    }

    /// Runs `sql`, one statement, to its end. Missing parameters are NULL; surplus ones are the
    /// caller's to refuse.
    pub fn run(
        &self,
        sql: &str,
        params: &[Value],
        cancel: &Cancel,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        *self.cancel.lock() = Some(cancel.clone());
        let ran = self.space.used_by(|| {
            self.with_prepared(sql, |statement| self.step(sql, statement, params, sink))
        });
        *self.cancel.lock() = None;
        ran.map_err(|error| self.explain(error))
    }

    fn step(
        &self,
        sql: &str,
        statement: &mut rusqlite::Statement<'_>,
        params: &[Value],
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        for (number, value) in params.iter().take(statement.parameter_count()).enumerate() {
            statement.raw_bind_parameter(number + 1, value)?;
        }
        let counting = !statement.readonly() && text::counts_changes(sql);
        let stepped = self.step_to_end(statement, sink);
        if counting {
            self.counters.counted.store(true, Ordering::Relaxed);
        }
        let (columns, rows) = stepped?;
        Ok(Ran {
            last_insert_rowid: self.raw.last_insert_rowid(),
            changes: self.raw.changes(),
            columns,
            rows,
        })
    }

    /// Gives all rows to the sink; how many columns and rows there were.
    fn step_to_end(
        &self,
        statement: &mut rusqlite::Statement<'_>,
        sink: &mut dyn RowSink,
    ) -> Result<(usize, u64), SqlError> {
        let readonly = statement.readonly();
        // The columns are known after the first step: it prepares a statement of the cache anew
        // when the schema has changed.
        let (mut columns, mut count) = (None, 0);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let taken = match columns {
                Some(columns) => give_row(row, columns, sink),
                None => give_columns(row.as_ref(), sink).and_then(|known| {
                    columns = Some(known);
                    give_row(row, known, sink)
                }),
            };
            if let Err(error) = taken {
                if !readonly {
                    // Merely reset, it would commit.
                    self.raw.get_interrupt_handle().interrupt();
                    while let Ok(Some(_)) = rows.next() {}
                }
                return Err(error);
            }
            count += 1;
        }
        drop(rows);
        match columns {
            Some(columns) => Ok((columns, count)),
            None => Ok((give_columns(statement, sink)?, count)),
        }
    }

    /// Ends an open transaction without its changes.
    pub fn roll_back(&self) {
        if !self.raw.is_autocommit()
            && let Err(error) = self.space.used_by(|| self.raw.execute_batch("ROLLBACK"))
        {
            tracing::debug!(%error, "rollback");
        }
    }

    /// Adds what the file below knows about an error.
    fn explain(&self, mut error: SqlError) -> SqlError {
        error.cause = self.link.take_error().or(error.cause);
        if let Some(cause @ (PagesError::Refused(_) | PagesError::SnapshotTooOld)) = &error.cause {
            error.message = cause.to_string();
        }
        if let Some(what) = self.guard.notes().denied {
            tracing::warn!(database = %self.link.store().name(), refused = %what,
                "a statement was refused: not authorized");
        }
        error
    }
}

/// Tells the sink the columns of a statement, if it has any; how many.
fn give_columns(
    statement: &rusqlite::Statement<'_>,
    sink: &mut dyn RowSink,
) -> Result<usize, SqlError> {
    let columns: Vec<rusqlite::Column<'_>> = statement.columns().collect();
    let described: Vec<Column<'_>> = columns
        .iter()
        .map(|column| Column { name: column.name(), declared: column.decl_type() })
        .collect();
    if !described.is_empty() {
        sink.columns(&described)?;
    }
    Ok(described.len())
}

fn give_row(
    row: &rusqlite::Row<'_>,
    columns: usize,
    sink: &mut dyn RowSink,
) -> Result<(), SqlError> {
    let mut values = Vec::with_capacity(columns);
    for column in 0..columns {
        values.push(row.get_ref(column)?);
    }
    sink.row(&values)
}
