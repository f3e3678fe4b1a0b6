//! A database of this machine alone, by SQLite itself: a node's own, or one in memory for
//! [`exercise_update`](super::Schema::exercise_update) and for trying a schema out.
//!
//! A transaction begins as IMMEDIATE, not EXCLUSIVE: nobody else can write either way, and a copy
//! can still be read beside it.
//!
//! *Invariant*: one transaction at a time; SQLite runs where blocking is allowed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::backup::Backup;
use rusqlite::types::Value as Stored;
use rusqlite::{Connection, OpenFlags, params_from_iter};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::database::{Answer, Database, Pieces, Tx};
use super::error::DatabaseError;
use crate::driver::{Rows, Value};
use crate::wire::code;

/// How many pages are copied at a time.
const COPY_PAGES: std::ffi::c_int = 256;

/// A database in a file, or in memory.
pub struct Local {
    path: Option<PathBuf>,
    connection: Arc<Mutex<Connection>>,
}

impl Local {
    /// The database in the file at `path`, which is made where there is none. `busy`: how long a
    /// transaction waits for another program to let go of the write lock.
    ///
    /// # Errors
    ///
    /// SQLite cannot open it.
    pub fn open(path: &Path, busy: Duration) -> Result<Local, DatabaseError> {
        Local::with(Some(path.to_owned()), Connection::open(path)?, busy)
    }

    /// An empty database in memory.
    ///
    /// # Errors
    ///
    /// SQLite has no memory.
    pub fn in_memory() -> Result<Local, DatabaseError> {
        Local::with(None, Connection::open_in_memory()?, Duration::ZERO)
    }

    fn with(
        path: Option<PathBuf>,
        connection: Connection,
        busy: Duration,
    ) -> Result<Local, DatabaseError> {
        connection.busy_timeout(busy)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(Local { path, connection: Arc::new(Mutex::new(connection)) })
    }
}

/// Runs SQLite where blocking is allowed. The work is done even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DatabaseError> + Send + 'static,
) -> Result<T, DatabaseError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(DatabaseError::refused(error.to_string())))
}

impl Database for Local {
    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn begin(&self) -> Answer<'_, Box<dyn Tx>> {
        Box::pin(async {
            let connection = self.connection.clone().lock_owned().await;
            blocking(move || {
                if !connection.is_autocommit() {
                    // Whoever began it went away in the middle of a statement.
                    connection.execute_batch("ROLLBACK")?;
                }
                connection.execute_batch("BEGIN IMMEDIATE")?;
                Ok(Box::new(LocalTx { connection: Some(connection) }) as Box<dyn Tx>)
            })
            .await
        })
    }

    fn copy(&self) -> Answer<'_, Box<dyn Pieces>> {
        Box::pin(async {
            let Some(path) = self.path.clone() else {
                return Err(DatabaseError::refused("a database in memory cannot be copied"));
            };
            let bytes = blocking(move || copy(&path)).await?;
            Ok(Box::new(Whole(Some(bytes))) as Box<dyn Pieces>)
        })
    }
}

/// The committed state of the database at `path`, read by a connection of its own.
fn copy(path: &Path) -> Result<Bytes, DatabaseError> {
    let from = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".copy");
    let beside = PathBuf::from(beside);
    let filed =
        |error: std::io::Error| DatabaseError::refused(format!("{}: {error}", beside.display()));
    {
        let mut to = Connection::open(&beside)?;
        Backup::new(&from, &mut to)?.run_to_completion(COPY_PAGES, Duration::ZERO, None)?;
    }
    let bytes = std::fs::read(&beside).map_err(filed);
    std::fs::remove_file(&beside).map_err(filed)?;
    Ok(Bytes::from(bytes?))
}

/// A copy in one piece.
struct Whole(Option<Bytes>);

impl Pieces for Whole {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(std::future::ready(Ok(self.0.take())))
    }
}

/// A transaction on the one connection.
struct LocalTx {
    /// None while a statement runs, and for good if its caller went away meanwhile.
    connection: Option<OwnedMutexGuard<Connection>>,
}

impl LocalTx {
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let Some(mut connection) = self.connection.take() else {
            return Err(DatabaseError::refused("the transaction has ended"));
        };
        let (connection, done) = blocking(move || {
            let done = work(&mut connection);
            Ok((connection, done))
        })
        .await?;
        self.connection = Some(connection);
        done
    }

    fn end(mut self: Box<Self>, sql: &'static str) -> Answer<'static, ()> {
        Box::pin(async move {
            self.with(move |connection| {
                if sql == "ROLLBACK" && connection.is_autocommit() {
                    // SQLite rolled back by itself.
                    return Ok(());
                }
                Ok(connection.execute_batch(sql)?)
            })
            .await
        })
    }
}

impl Drop for LocalTx {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection
            && !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, "a transaction could not be rolled back");
        }
    }
}

impl Tx for LocalTx {
    fn execute<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, u64> {
        let sql = sql.to_owned();
        Box::pin(self.with(move |connection| {
            if !collect(connection, &sql, params)?.rows.is_empty() {
                // As a cluster does.
                return Err(DatabaseError::refused(code::ROWS_YIELDED));
            }
            Ok(connection.changes())
        }))
    }

    fn query<'a>(&'a mut self, sql: &'a str, params: Vec<Value>) -> Answer<'a, Rows> {
        let sql = sql.to_owned();
        Box::pin(self.with(move |connection| collect(connection, &sql, params)))
    }

    fn commit(self: Box<Self>) -> Answer<'static, ()> {
        self.end("COMMIT")
    }

    fn rollback(self: Box<Self>) -> Answer<'static, ()> {
        self.end("ROLLBACK")
    }
}

fn collect(connection: &Connection, sql: &str, params: Vec<Value>) -> Result<Rows, DatabaseError> {
    let mut statement = connection.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let width = columns.len();
    let params = params.into_iter().map(stored).collect::<Result<Vec<Stored>, _>>()?;
    let mut rows = statement.query(params_from_iter(params))?;
    let mut collected = Vec::new();
    while let Some(row) = rows.next()? {
        let values = (0..width).map(|at| row.get::<_, Stored>(at).map(loaded));
        collected.push(values.collect::<Result<Vec<Value>, _>>()?);
    }
    Ok(Rows { columns, rows: collected })
}

fn stored(value: Value) -> Result<Stored, DatabaseError> {
    let text = |text: crate::driver::Text| match String::from_utf8(text.as_bytes().to_vec()) {
        Ok(text) => Ok(Stored::Text(text)),
        Err(_) => Err(DatabaseError::refused("a text parameter is not UTF-8; pass a blob")),
    };
    Ok(match value {
        Value::Integer(value) | Value::UnixTime(value) => Stored::Integer(value),
        Value::Boolean(value) => Stored::Integer(i64::from(value)),
        Value::Float(value) => Stored::Real(value),
        Value::Text(value) | Value::Iso8601(value) => text(value)?,
        Value::Blob(value) => Stored::Blob(value),
        Value::Null => Stored::Null,
    })
}

fn loaded(value: Stored) -> Value {
    match value {
        Stored::Null => Value::Null,
        Stored::Integer(value) => Value::Integer(value),
        Stored::Real(value) => Value::Float(value),
        Stored::Text(value) => Value::from(value),
        Stored::Blob(value) => Value::Blob(value),
    }
}
