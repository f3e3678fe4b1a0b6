//! Transactions as closures: committed when the closure says `Ok`, rolled back when it says `Err`
//! or is dropped half-way, and, where the caller allows it, run again when nothing was kept.
//!
//! A closure is given its [`Transaction`] as its own, not a reference: so its future can be
//! spawned, and holds what it likes. When the closure lets it go, it comes back here.
//!
//! *Invariant*: a closure is run again only after a failure that says that nothing of its
//! transaction was kept; never after [`DriverError::OutcomeUnknown`].

use parking_lot::Mutex;
use tokio::time::Instant;

use super::database::Database;
use super::error::DriverError;
use super::leader::Backoff;
use super::transaction::{Begin, Transaction, Whereabouts};

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
    /// Runs a closure in a transaction: commits if it says `Ok`, rolls back if it says `Err`, and
    /// if the future is dropped half-way. The closure may also end the transaction itself.
    ///
    /// ```no_run
    /// # async fn example(shop: quire::driver::Database) -> Result<(), quire::driver::DriverError> {
    /// use quire::params;
    ///
    /// shop.transaction(|mut tx| async move {
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
    pub async fn transaction<T, E, F>(&self, work: impl FnOnce(Transaction) -> F) -> Result<T, E>
    where
        E: From<DriverError>,
        F: Future<Output = Result<T, E>>,
    {
        let (result, _) = self.run_once(Begin::Deferred, work).await;
        result
    }

    /// The same with options: another manner of locking, and how often the closure may be run
    /// again.
    ///
    /// # Errors
    ///
    /// As [`Database::transaction`], of the last run.
    pub async fn transaction_with<T, E, F>(
        &self,
        options: TransactionOptions,
        mut work: impl FnMut(Transaction) -> F,
    ) -> Result<T, E>
    where
        E: From<DriverError>,
        F: Future<Output = Result<T, E>>,
    {
        let inner = &self.client().inner;
        let mut backoff = Backoff::new(&inner.options);
        let mut runs = 0;
        loop {
            let (result, worth_repeating) = self.run_once(options.begin, &mut work).await;
            if result.is_ok() || !worth_repeating || runs >= options.retries_max {
                return result;
            }
            runs += 1;
            if !backoff.wait(Instant::now() + self.call_timeout()).await {
                return result;
            }
            inner.counters.transaction_retries.add();
            tracing::debug!(runs, "a transaction is tried again");
        }
    }

    /// Runs a closure once; what came of it, and whether another run may do better.
    async fn run_once<T, E, F>(
        &self,
        begin: Begin,
        work: impl FnOnce(Transaction) -> F,
    ) -> (Result<T, E>, bool)
    where
        E: From<DriverError>,
        F: Future<Output = Result<T, E>>,
    {
        let (transaction, home) = match self.begin_with(begin).await {
            Ok(transaction) => transaction.with_home(),
            Err(error) => return (Err(error.into()), false),
        };
        let done = work(transaction).await;
        let mut transaction = match take(&home) {
            Whereabouts::Back(transaction) => transaction,
            Whereabouts::Ended => return (done, false),
            Whereabouts::Out => {
                let text = "a closure returned and kept its transaction, which is not committed";
                let kept = |_| Err(DriverError::Invalid(text.to_owned()).into());
                return (done.and_then(kept), false);
            }
        };
        let failed = match done {
            Ok(value) => match transaction.end().await {
                Ok(()) => return (Ok(value), false),
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        let worth_repeating = transaction.is_worth_repeating();
        // What cannot be rolled back in an orderly manner is rolled back by its connection's end.
        if let Err(error) = transaction.rollback().await {
            tracing::debug!(%error, "a transaction was ended by closing its connection");
        }
        (Err(failed), worth_repeating)
    }
}

pub(super) fn take(home: &Mutex<Whereabouts>) -> Whereabouts {
    std::mem::replace(&mut *home.lock(), Whereabouts::Out)
}
