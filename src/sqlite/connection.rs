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
use std::time::Duration;

use futures::future::BoxFuture;
use rusqlite::config::DbConfig;
use rusqlite::functions::FunctionFlags;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OpenFlags, Statement, ffi};
use smallvec::SmallVec;

use crate::pages::{PagesError, Store};

mod once;

use super::guard::{Guard, Notes};
use super::link::{Link, Published, Seen, View};
use super::stop::{Cancel, STEPS_BETWEEN_LOOKS, Stop, TimeLimit};
use super::temp::TempSpace;
use super::{text, vfs};

pub use once::{Request, Retention};

/// Prepared statements that a connection keeps for the next time.
const STATEMENT_CACHE_CAPACITY: usize = 64;

/// A statement's text may be this long.
const SQL_BYTES_MAX: i32 = 16 << 20;

/// SQLite's text for a statement that was asked to stop.
const INTERRUPTED: &str = "interrupted";

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

impl Value {
    /// The same, borrowed.
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::Null => ValueRef::Null,
            Value::Integer(integer) => ValueRef::Integer(*integer),
            Value::Real(real) => ValueRef::Real(*real),
            Value::Text(text) => ValueRef::Text(text),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.as_ref()))
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
    pub cause: Option<Box<PagesError>>,
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

    /// Whether the client asked to stop: where the time was over, the text is our own.
    pub fn is_interrupted(&self) -> bool {
        self.primary() == ffi::SQLITE_INTERRUPT && self.message == INTERRUPTED
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

/// A result column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its declared type, where it is a table's column.
    pub declared: Option<&'a str>,
}

/// The result columns of a statement. SQLite is asked for their names only where somebody looks.
#[derive(Clone, Copy)]
pub struct Columns<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Statement(&'a Statement<'a>),
    /// Of a statement that ran before.
    Listed(&'a [Column<'a>]),
}

impl<'a> Columns<'a> {
    /// Columns that are known already.
    pub fn listed(columns: &'a [Column<'a>]) -> Columns<'a> {
        Columns(Source::Listed(columns))
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        let (statement, listed) = self.source();
        let names = statement.into_iter().flat_map(Statement::column_names);
        names.chain(listed.iter().map(|column| column.name))
    }

    /// Looks at them one after the other, with their declared types.
    pub fn each<T>(self, mut look: impl FnMut(Column<'_>) -> T) -> impl Iterator<Item = T> {
        let (statement, listed) = self.source();
        let (columns, listed) = (statement.into_iter().flat_map(Statement::columns), listed.iter());
        let columns = columns.map(Ok).chain(listed.map(Err));
        columns.map(move |column| match column {
            Ok(asked) => look(Column { name: asked.name(), declared: asked.decl_type() }),
            Err(listed) => look(*listed),
        })
    }

    fn source(self) -> (Option<&'a Statement<'a>>, &'a [Column<'a>]) {
        match self.0 {
            Source::Statement(statement) => (Some(statement), &[]),
            Source::Listed(listed) => (None, listed),
        }
    }
}

/// Takes the rows of a statement.
pub trait RowSink {
    /// Called once, before the first row, for a statement that has columns.
    fn columns(&mut self, columns: Columns<'_>) -> Result<(), SqlError>;

    /// One row. An error ends the statement, and undoes what it changed.
    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError>;

    /// A statement begins (again), and its rows are delivered so. Whether that can be done: rows
    /// that have left cannot be taken back.
    fn begin(&mut self, delivery: Delivery) -> bool {
        let _ = delivery;
        true
    }

    /// What has to be waited for before the first row may leave, where rows leave before the
    /// statement has ended.
    fn gate(&mut self, gate: Gate) {
        drop(gate);
    }
}

/// How the rows of a statement are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// In one batch; where that is not enough the statement is run again as `Stream`.
    Quick,
    /// In batches that leave while the statement runs; the sink may wait.
    Stream,
    /// All are held until the statement has ended.
    Hold,
}

/// See [`RowSink::gate`].
pub type Gate = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), SqlError>> + Send>;

/// What becomes of parameters beyond those that a statement takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// They are for the statements after it.
    Kept,
    /// They are a mistake: the statement is not run.
    Refused,
}

/// What a statement left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Whether it could write. If not, it left the next three as they were, and here they are 0.
    pub wrote: bool,
    /// `last_insert_rowid()` afterwards.
    pub last_insert_rowid: i64,
    /// `changes()` afterwards.
    pub changes: u64,
    /// How much `total_changes()` grew.
    pub total_changes: u64,
    /// Parameters that it took.
    pub parameters: usize,
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
    /// How long a statement may run; for ever where there is none.
    pub time_limit: Option<TimeLimit>,
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
    stop: Arc<Stop>,
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
        options.space.enter();
        let opened = rusqlite::Connection::open_with_flags_and_vfs(&name, flags, vfs::VFS_NAME);
        vfs::withdraw(&name);
        // SQLite reads the file's header already here.
        let raw = opened.map_err(|error| because(&link, error.into()))?;
        let mut connection = Connection {
            raw,
            link,
            guard: Guard::new(options.shared),
            space: options.space.clone(),
            stop: Stop::new(options.time_limit.clone()),
            counters: Arc::default(),
        };
        let configured = connection.configure(options);
        configured.map_err(|error| because(&connection.link, error))?;
        Ok(connection)
    }

    fn configure(&mut self, options: &ConnectionOptions) -> Result<(), SqlError> {
        let raw = &mut self.raw;
        let page_size = self.link.page_size();
        raw.execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA journal_mode = DELETE; \
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
        let (stop, link) = (self.stop.clone(), self.link.clone());
        // SQLite asks once more after a statement has committed, and would call it interrupted.
        let is_due = move || !link.has_committed() && stop.is_due();
        raw.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_due))?;
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
    #[inline]
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
        if let Some(bytes) = text::single_bytes(sql) {
            return bytes;
        }
        // SQLite copies what it is given: a script is shown to it piece by piece, until a
        // statement ends inside of the piece.
        let mut piece = sql.len().min(FIRST_PIECE_BYTES);
        self.space.enter();
        loop {
            let part = &sql.as_bytes()[..piece];
            match vfs::first_statement_bytes(&self.raw, part) {
                Some(bytes) if (1..piece).contains(&bytes) => return bytes,
                // What does not compile says so when it is prepared; nor is there a statement before
                // a NUL, where SQLite stops.
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
        with: impl FnOnce(&mut Statement<'_>) -> Result<T, SqlError>,
    ) -> Result<T, SqlError> {
        self.space.enter();
        // What an earlier statement met is no reason of this one.
        self.link.begin_statement();
        self.guard.begin();
        if !self.link.stands() {
            return Err(rewound());
        }
        let sql = if text::begins_as_read(sql) { sql } else { self.judge_text(sql)? };
        let mut statement = self.raw.prepare_cached(sql)?;
        let acts_when_prepared = self.guard.keeps_connection();
        let result = with(&mut statement);
        if acts_when_prepared {
            statement.discard();
        }
        result
    }

    /// Refuses what is refused by its text alone; the text as it may be prepared.
    fn judge_text<'a>(&self, mut sql: &'a str) -> Result<&'a str, SqlError> {
        if text::defines_reserved(sql) {
            self.guard.note_denied("a definition with a name of the node's own");
            return Err(SqlError::new(ffi::SQLITE_AUTH, "not authorized"));
        }
        // What the node prepares for itself is in the same cache, and was not judged.
        while sql.trim_start().starts_with(once::MARK) {
            sql = text::skip_blank(sql.trim_start());
        }
        Ok(sql)
    }

    /// Whether nothing that this connection has seen was dropped by a rewind. When it fails the
    /// connection is of no use any more: every statement answers SQLITE_IOERR.
    pub fn check_stands(&self) -> Result<(), SqlError> {
        if self.link.stands() { Ok(()) } else { Err(rewound()) }
    }

    /// Prepares `sql`, one statement, and tells what it is.
    pub fn describe(&self, sql: &str) -> Result<Described, SqlError> {
        let described = self.with_prepared(sql, |statement| {
            Ok(Described {
                readonly: statement.readonly(),
                explain: statement.is_explain() != 0,
                parameters: statement.parameter_count(),
                columns: statement.column_count(),
                needs_own_connection: self.guard.notes().needs_own_connection,
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

    /// What `last_insert_rowid()` says from now on.
    pub fn set_last_insert_rowid(&self, rowid: i64) {
        vfs::set_last_insert_rowid(&self.raw, rowid);
    }

    /// Runs `sql`, one statement, to its end. Missing parameters are NULL.
    pub fn run(
        &self,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        cancel: &Cancel,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        let ran = self.stop.watch(cancel, || self.prepare_and_step(sql, params, surplus, sink));
        self.within_time(ran)
    }

    /// Says so where the limit of time was the reason of an error.
    fn within_time(&self, ran: Result<Ran, SqlError>) -> Result<Ran, SqlError> {
        match self.stop.take_timed_out() {
            Some(max) => ran.map_err(|error| timed_out(error, max)),
            None => ran,
        }
    }

    /// As [`Connection::run`] outside of a transaction that wrote, given up after a bounded number
    /// of steps, or when its rows exceed one batch: `None`, and nothing has happened.
    pub fn run_quickly(
        &self,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        cancel: &Cancel,
        sink: &mut dyn RowSink,
    ) -> Option<Result<Ran, SqlError>> {
        if !sink.begin(Delivery::Quick) {
            return None;
        }
        let work = || self.prepare_and_step(sql, params, surplus, sink);
        self.quickly(cancel, work)
    }

    /// Runs `work` within a budget of steps; `None` when it was given up.
    fn quickly(
        &self,
        cancel: &Cancel,
        work: impl FnOnce() -> Result<Ran, SqlError>,
    ) -> Option<Result<Ran, SqlError>> {
        match self.stop.quickly(work) {
            Err(error) if error.primary() == ffi::SQLITE_INTERRUPT => cancel
                .is_cancelled()
                .then(|| Err(SqlError::new(ffi::SQLITE_INTERRUPT, INTERRUPTED))),
            ran => Some(ran),
        }
    }

    fn prepare_and_step(
        &self,
        sql: &str,
        params: &[Value],
        surplus: Surplus,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        let step = |statement: &mut Statement<'_>| self.step(sql, statement, params, surplus, sink);
        match self.with_prepared(sql, step) {
            Ok(ran) => Ok(ran),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn step(
        &self,
        sql: &str,
        statement: &mut Statement<'_>,
        params: &[Value],
        surplus: Surplus,
        sink: &mut dyn RowSink,
    ) -> Result<Ran, SqlError> {
        let parameters = statement.parameter_count();
        if surplus == Surplus::Refused && params.len() > parameters {
            return Err(SqlError::new(ffi::SQLITE_ERROR, "bind parameters"));
        }
        for (number, value) in params.iter().take(parameters).enumerate() {
            statement.raw_bind_parameter(number + 1, value)?;
        }
        let taken = parameters.min(params.len());
        if statement.readonly() {
            let (columns, rows) = step_all(statement, sink)?;
            return Ok(Ran { parameters: taken, columns, rows, ..Ran::default() });
        }
        let before = self.raw.total_changes();
        let returning = statement.column_count() > 0;
        let stepped =
            if returning { self.step_undoing(statement, sink) } else { step_all(statement, sink) };
        let interrupted =
            |error: &SqlError| error.primary() == ffi::SQLITE_INTERRUPT && !self.is_autocommit();
        if stepped.as_ref().is_err_and(interrupted) {
            // Stopped on its way, SQLite has done so; after its last step its changes are there.
            self.roll_back();
        }
        if text::counts_changes(sql) {
            self.counters.counted.store(true, Ordering::Relaxed);
        }
        let (columns, rows) = stepped?;
        Ok(Ran {
            wrote: true,
            last_insert_rowid: self.raw.last_insert_rowid(),
            changes: self.raw.changes(),
            total_changes: self.raw.total_changes() - before,
            parameters: taken,
            columns,
            rows,
        })
    }

    /// Steps a statement that writes and answers rows. SQLite commits what it changed even where
    /// it is reset after its first row; so it runs in a savepoint, and a sink that refuses a row
    /// undoes it.
    fn step_undoing(
        &self,
        statement: &mut Statement<'_>,
        sink: &mut dyn RowSink,
    ) -> Result<(usize, u64), SqlError> {
        self.internally("SAVEPOINT quire_returning")?;
        let stepped = step_all(statement, sink);
        if self.raw.is_autocommit() {
            // An error ended the whole transaction.
            return stepped;
        }
        if stepped.is_err() {
            self.internally("ROLLBACK TO quire_returning")?;
        }
        self.internally("RELEASE quire_returning")?;
        stepped
    }

    /// Runs a statement of our own, which the guard does not judge.
    fn internally(&self, sql: &str) -> Result<(), SqlError> {
        self.space.enter();
        self.guard.set_internal(true);
        let done = self.raw.execute_batch(sql);
        self.guard.set_internal(false);
        Ok(done?)
    }

    /// Ends an open transaction without its changes.
    pub fn roll_back(&self) {
        if !self.raw.is_autocommit()
            && let Err(error) = self.internally("ROLLBACK")
        {
            tracing::debug!(%error, "rollback");
        }
    }

    /// Adds what the file below knows about an error.
    fn explain(&self, error: SqlError) -> SqlError {
        let mut error = because(&self.link, error);
        if let Some(cause @ (PagesError::Refused(_) | PagesError::SnapshotTooOld)) =
            error.cause.as_deref()
        {
            error.message = cause.to_string();
        }
        if let Some(what) = self.guard.notes().denied {
            // SQLite has another code and text for functions.
            (error.code, error.message) = (ffi::SQLITE_AUTH, "not authorized".to_owned());
            tracing::warn!(database = %self.link.store().name(), refused = %what,
                "a statement was refused: not authorized");
        }
        error
    }
}

/// An error, with what the file below knows of its cause.
fn because(link: &Link, error: SqlError) -> SqlError {
    let cause = link.take_error().map(Box::new).or(error.cause);
    SqlError { cause, ..error }
}

/// The error of every statement on a connection that has held a version that was dropped.
fn rewound() -> SqlError {
    let error = PagesError::Rewound;
    SqlError { code: ffi::SQLITE_IOERR, message: error.to_string(), cause: Some(Box::new(error)) }
}

/// The error of a statement that was stopped because it ran for too long.
fn timed_out(error: SqlError, max: Duration) -> SqlError {
    if error.primary() != ffi::SQLITE_INTERRUPT {
        return error;
    }
    let message = format!(
        "the statement was interrupted: it ran longer than {max:?}, which timeouts.statement allows"
    );
    SqlError { message, ..error }
}

/// Steps a statement to its end; its columns and rows.
///
/// The columns are those after the first step: it prepares the statement again, with other
/// columns perhaps, where the schema has changed.
fn step_all(
    statement: &mut Statement<'_>,
    sink: &mut dyn RowSink,
) -> Result<(usize, u64), SqlError> {
    let mut columns = None;
    let mut count = 0;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let columns = match columns {
            Some(columns) => columns,
            None => *columns.insert(tell_columns(row.as_ref(), sink)?),
        };
        // In place: what is collected is moved.
        let mut values = SmallVec::<[ValueRef<'_>; 16]>::new();
        for column in 0..columns {
            values.push(row.get_ref(column)?);
        }
        sink.row(&values)?;
        count += 1;
    }
    drop(rows);
    match columns {
        Some(columns) => Ok((columns, count)),
        None => Ok((tell_columns(statement, sink)?, count)),
    }
}

/// Tells the sink about the columns, if there are any; how many.
fn tell_columns(statement: &Statement<'_>, sink: &mut dyn RowSink) -> Result<usize, SqlError> {
    let count = statement.column_count();
    if count > 0 {
        sink.columns(Columns(Source::Statement(statement)))?;
    }
    Ok(count)
}
