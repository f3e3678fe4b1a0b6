//! Trying again: 250 ms apart, ten times, and only what may succeed then.
//!
//! *Invariant*: an error that another attempt does not change is returned after one call.

use std::time::Duration;

use futures::future::BoxFuture;

use super::error::Error;

/// The pause between two attempts.
pub const RETRY_DELAY: Duration = Duration::from_millis(250);

/// How many attempts follow the first.
pub const RETRIES_MAX: u32 = 10;

/// How pauses are made.
pub trait Sleeper: Send + Sync + 'static {
    /// Waits.
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()>;
}

/// The runtime's timer.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealSleeper;

impl Sleeper for RealSleeper {
    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(pause))
    }
}

/// The retries of one call.
#[derive(Debug, Default)]
pub struct Retries(u32);

impl Retries {
    /// After an attempt that failed: waits, if another one may do better (`worth`) and is left.
    /// Whoever drops the future has cancelled the call, and nothing is tried again.
    ///
    /// # Errors
    ///
    /// What the call has to answer: the error itself, or [`Error::Retries`] around the last one.
    pub async fn pause(
        &mut self,
        sleeper: &dyn Sleeper,
        error: Error,
        worth: bool,
    ) -> Result<(), Error> {
        if !worth {
            return Err(error);
        }
        if self.0 == RETRIES_MAX {
            return Err(Error::Retries(Box::new(error)));
        }
        self.0 += 1;
        tracing::debug!(%error, retries = self.0, "the transaction is tried again");
        sleeper.sleep(RETRY_DELAY).await;
        Ok(())
    }
}
