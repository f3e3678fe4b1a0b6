//! Transactions as closures: committed when the closure says `Ok`, rolled back when it says `Err`
//! or is dropped half-way, and, where the caller allows it, run again when nothing was kept.
//!
//! *Invariant*: a closure is run again only after a failure that says that nothing of its
//! transaction was kept; never after [`DriverError::OutcomeUnknown`].

use super::database::Database;
use super::error::DriverError;
use super::leader::Backoff;
use super::transaction::{Begin, Transaction};
use tokio::time::Instant;

/// How [`Database::transaction_with`] runs its closure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// How the transaction takes its locks.
    pub begin: Begin,
    /// How often the closure may be run again when somebody else was in the way (SQLITE_BUSY,
    /// SQLITE_BUSY_SNAPSHOT) or the leader went away before the commit. What the closure does
    /// outside the database is then done again as well. 0, the default: never.
    pub retries_max: u32,
}

impl Database {
    /// Runs a closure in a transaction: commits if it says `Ok`, rolls back if it says `Err`.
    ///
    /// ```no_run
    /// # async fn example(shop: quire::driver::Database) -> Result<(), quire::driver::DriverError> {
    /// use quire::params;
    ///
    /// shop.transaction(async |tx| {
    ///     tx.execute("UPDATE account SET sum = sum - 5 WHERE id = ?", params![1]).await?;
    ///     tx.execute("UPDATE account SET sum = sum + 5 WHERE id = ?", params![2]).await
    /// })
    /// .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's, after a rollback. [`DriverError::OutcomeUnknown`]: nobody can tell whether
    /// the commit happened. Any other error of the driver: it did not.
    pub async fn transaction<T, E: From<DriverError>>(
        &self,
        work: impl AsyncFnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.begin().await?;
        match work(&mut transaction).await {
            Ok(value) => {
                transaction.commit().await?;
                Ok(value)
            }
            Err(error) => {
                roll_back(transaction).await;
                Err(error)
            }
        }
    }

    /// The same with options: another manner of locking, and how often the closure may be run
    /// again.
    ///
    /// # Errors
    ///
    /// As [`Database::transaction`], of the last run.
    pub async fn transaction_with<T, E: From<DriverError>>(
        &self,
        options: TransactionOptions,
        mut work: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let inner = &self.client().inner;
        let mut backoff = Backoff::new(&inner.options);
        let mut runs = 0;
        loop {
            let mut transaction = self.begin_with(options.begin).await?;
            let failed = match work(&mut transaction).await {
                Ok(value) => match transaction.end("COMMIT").await {
                    Ok(()) => return Ok(value),
                    Err(error) => E::from(error),
                },
                Err(error) => error,
            };
            let again = transaction.is_worth_repeating() && runs < options.retries_max;
            roll_back(transaction).await;
            if !again {
                return Err(failed);
            }
            runs += 1;
            inner.counters.transaction_retries.add();
            tracing::debug!(runs, "a transaction is tried again");
            if !backoff.wait(Instant::now() + self.call_timeout()).await {
                return Err(failed);
            }
        }
    }
}

/// What cannot be rolled back in an orderly manner is rolled back by closing its connection.
async fn roll_back(transaction: Transaction) {
    if let Err(error) = transaction.rollback().await {
        tracing::debug!(%error, "a transaction was ended by closing its connection");
    }
}
