//! Several statements as one transaction, in one round trip.
//!
//! They travel as one text, BEGIN before them and COMMIT behind, each with parameters of its own.
//! When one fails, the connection is closed with the transaction open, and nothing is kept.
//!
//! *Invariant*: all of a batch is kept, or nothing; and, since it is, it is repeated like one
//! statement that writes.

use super::call::{Effect, Op};
use super::database::{Database, encode};
use super::error::DriverError;
use super::rows::ExecResult;
use super::sql;
use crate::wire::Value;

/// The transaction around a batch. It takes its lock at once: a batch cannot be repeated from its
/// middle.
const BEGIN: &str = "BEGIN IMMEDIATE;\n";
const COMMIT: &str = "COMMIT";

/// The statements as one text, and their parameters in order.
fn join<S: AsRef<str>>(
    statements: impl IntoIterator<Item = (S, Vec<Value>)>,
) -> Result<(String, Vec<Value>), DriverError> {
    let invalid = |text: String| Err(DriverError::Invalid(text));
    let (mut text, mut params) = (BEGIN.to_owned(), Vec::new());
    for (at, (statement, values)) in (1..).zip(statements) {
        let mut pieces = sql::pieces(statement.as_ref());
        let (Some(piece), None) = (pieces.next(), pieces.next()) else {
            return invalid(format!("statement {at} of the batch is not one statement"));
        };
        if sql::control(piece.text).is_some() {
            return invalid(format!("statement {at} of the batch begins or ends a transaction"));
        }
        let (wanted, given) = (sql::parameters(piece.text), values.len());
        if wanted != given {
            let text = format!("statement {at} of the batch has {wanted} parameters, not {given}");
            return invalid(text);
        }
        text.push_str(piece.text);
        // Behind a comment that a line's end closes, too.
        text.push_str(if piece.complete { "\n" } else { "\n;\n" });
        params.extend(values);
    }
    text.push_str(COMMIT);
    // A quote or comment without its end would swallow what follows.
    if sql::pieces(&text).last().is_none_or(|piece| piece.text != COMMIT) {
        return invalid("a quote or comment of the batch has no end".to_owned());
    }
    Ok((text, params))
}

impl Database {
    /// Runs statements for their effect as one transaction, in one round trip: all are kept, or
    /// none. Answers with what the last of them did.
    ///
    /// ```no_run
    /// # async fn example(shop: quire::driver::Database) -> Result<(), quire::driver::DriverError> {
    /// use quire::params;
    ///
    /// let sold = "INSERT INTO sold(item, count) VALUES (?, ?)";
    /// shop.batch([(sold, params!["tea", 2]), (sold, params!["salt", 1])]).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`DriverError::Invalid`]: one of them is not one statement, controls transactions, or has
    /// other parameters than given. Nothing was sent. [`DriverError::Sqlite`]: one of them
    /// failed, and nothing was kept.
    pub async fn batch<S: AsRef<str>>(
        &self,
        statements: impl IntoIterator<Item = (S, Vec<Value>)>,
    ) -> Result<ExecResult, DriverError> {
        let (text, params) = join(statements)?;
        if text.len() == BEGIN.len() + COMMIT.len() {
            return Ok(ExecResult::default());
        }
        let op = Op::Exec(text.as_str().into(), encode(&params)?);
        let call = self.call(Effect::Write, true);
        let (mut lent, response) = self.client().inner.run(call, &op).await?;
        if let Ok(connection) = lent.get() {
            // All of it ran, COMMIT as well.
            connection.set_in_transaction(false);
        }
        ExecResult::from_response(&response)
    }
}
