//! Small questions to a transaction, and the table `config`.
//!
//! *Invariant*: an answer of another shape than expected is an error, never a guess.

use serde::de::DeserializeOwned;

use super::database::Tx;
use super::error::{DatabaseError, Error};
use crate::driver::Value;
use crate::params;

/// The one number that a query answers: `SELECT count(*) ..`.
///
/// # Errors
///
/// The database's; or the answer is not one row of one number.
pub async fn count(tx: &mut dyn Tx, sql: &str, params: Vec<Value>) -> Result<u64, Error> {
    let rows = tx.query(sql, params).await?.rows;
    match rows.as_slice() {
        [] => Err(Error::other("no rows returned")),
        [row] => match row.as_slice() {
            [Value::Integer(count)] => {
                u64::try_from(*count).map_err(|_| Error::other("failed to scan count column"))
            }
            _ => Err(Error::other("failed to scan count column")),
        },
        _ => Err(Error::other("more than one row returned")),
    }
}

/// The rows of a query as values of a type; see [`crate::driver::Row::to`].
pub(super) async fn rows<T: DeserializeOwned>(
    tx: &mut dyn Tx,
    sql: &str,
    params: Vec<Value>,
) -> Result<Vec<T>, Error> {
    let rows = tx.query(sql, params).await?;
    Ok(rows.to().map_err(DatabaseError::from)?)
}

/// Whether there is a table of that name.
pub(super) async fn has_table(tx: &mut dyn Tx, name: &str) -> Result<bool, Error> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?";
    Ok(count(tx, sql, params![name]).await? > 0)
}

/// Changes what must be one row.
pub(super) async fn update_one(
    tx: &mut dyn Tx,
    sql: &str,
    params: Vec<Value>,
) -> Result<(), Error> {
    match tx.execute(sql, params).await? {
        1 => Ok(()),
        n => Err(Error::UpdatedRows(n)),
    }
}

/// The value of a key of the table `config`, if it has one.
///
/// # Errors
///
/// The database's.
pub async fn config(tx: &mut dyn Tx, key: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT value FROM config WHERE key = ? AND value IS NOT NULL";
    Ok(rows::<String>(tx, sql, params![key]).await?.pop())
}

/// Sets a key of the table `config`; an empty value removes it.
///
/// # Errors
///
/// The database's.
pub async fn set_config(tx: &mut dyn Tx, key: &str, value: &str) -> Result<(), Error> {
    if value.is_empty() {
        tx.execute("DELETE FROM config WHERE key = ?", params![key]).await?;
        return Ok(());
    }
    let sql = "INSERT INTO config(key, value) VALUES (?, ?) \
               ON CONFLICT(key) DO UPDATE SET value = excluded.value";
    tx.execute(sql, params![key, value]).await?;
    Ok(())
}
