//! Waiting for the other nodes to be upgraded, and waking those that wait.
//!
//! The wait is level-triggered: what is waited for is that the database has changed *since it was
//! last looked at*, as counted by a [`Watch`], so that a change between the look and the wait is
//! seen at once. Beside it there is a look every 30 s at the latest, so that even a watch that is
//! silent only costs time.
//!
//! *Invariant*: two looks are at least [`PAUSE_MIN`] apart, whatever wakes the wait.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::database::{Database, run};
use super::error::Error;
use super::nodes::NodeRow;
use super::query::rows;
use super::retry::Sleeper;
use crate::params;

/// Nobody looks less often than this.
pub const RECHECK_MAX: Duration = Duration::from_secs(30);

/// Nobody looks more often than this.
pub const PAUSE_MIN: Duration = Duration::from_millis(250);

/// A count that grows whenever the nodes' rows may have changed.
pub trait Watch: Send + Sync {
    /// The count now.
    fn version(&self) -> u64;

    /// Waits until the count is above `seen`. Dropping it ends the wait.
    fn changed(&self, seen: u64) -> BoxFuture<'_, ()>;
}

/// A watch that is told: by the apply path of a node, by the message of a peer, by a test.
#[derive(Debug)]
pub struct Signal(watch::Sender<u64>);

impl Default for Signal {
    fn default() -> Signal {
        Signal(watch::Sender::new(0))
    }
}

impl Signal {
    /// The nodes' rows may have changed.
    pub fn notify(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

impl Watch for Signal {
    fn version(&self) -> u64 {
        *self.0.borrow()
    }

    fn changed(&self, seen: u64) -> BoxFuture<'_, ()> {
        let mut receiver = self.0.subscribe();
        Box::pin(async move {
            // The sender lives as long as this borrow.
            let _ = receiver.wait_for(|count| *count > seen).await;
        })
    }
}

/// A watch that asks the database itself, for where nobody tells it anything.
pub struct Polling {
    database: Arc<dyn Database>,
    sleeper: Arc<dyn Sleeper>,
    every: Duration,
    /// The count, and the fingerprint of the rows when they were last read.
    last: Mutex<(u64, Option<u64>)>,
}

impl Polling {
    /// Asks this database that often.
    pub fn new(database: Arc<dyn Database>, sleeper: Arc<dyn Sleeper>, every: Duration) -> Polling {
        Polling { database, sleeper, every, last: Mutex::new((0, None)) }
    }

    async fn fingerprint(&self) -> Result<u64, Error> {
        run(&*self.database, |mut tx| async move {
            let sql = "SELECT id, schema, api_extensions, pending FROM nodes ORDER BY id";
            let rows: Vec<(i64, i64, i64, i64)> = rows(&mut *tx, sql, params![]).await?;
            Ok(xxh3_64(format!("{rows:?}").as_bytes()))
        })
        .await
    }
}

impl Watch for Polling {
    fn version(&self) -> u64 {
        self.last.lock().0
    }

    fn changed(&self, seen: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // What was there before the first look is not known: the first look counts as a change.
            while self.version() <= seen {
                self.sleeper.sleep(self.every).await;
                match self.fingerprint().await {
                    Ok(found) => {
                        let mut last = self.last.lock();
                        if last.1 != Some(found) {
                            *last = (last.0 + 1, Some(found));
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the nodes' rows could not be read"),
                }
            }
        })
    }
}

/// Tells other nodes that a migration is done.
pub trait Notify: Send + Sync + 'static {
    /// Tells one of them. Its error is logged, and that is all: the node finds out by itself.
    fn upgraded<'a>(&'a self, peer: &'a NodeRow) -> BoxFuture<'a, Result<(), String>>;
}

/// What a node does that has a lower level than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenBehind {
    /// It gives up: somebody must upgrade it.
    #[default]
    Exit,
    /// It waits: for the other one to be taken back, or to be upgraded itself.
    Wait,
}

/// How [`Cluster::wait_ready`](super::Cluster::wait_ready) waits.
#[derive(Clone, Debug, Default)]
pub struct WaitOptions {
    /// What to do when this node is behind.
    pub when_behind: WhenBehind,
    /// How long to wait for a change before looking all the same; none, and whatever is longer,
    /// means 30 s.
    pub recheck: Option<Duration>,
    /// Ends the wait.
    pub cancel: CancellationToken,
}

impl WaitOptions {
    pub(super) fn recheck(&self) -> Duration {
        self.recheck.unwrap_or(RECHECK_MAX).clamp(PAUSE_MIN, RECHECK_MAX)
    }
}

/// Waits for a change since `seen`, or for the time of the next look.
pub(super) async fn pause(
    watch: &dyn Watch,
    seen: u64,
    sleeper: &dyn Sleeper,
    options: &WaitOptions,
) -> Result<(), Error> {
    let next_look = async {
        sleeper.sleep(PAUSE_MIN).await;
        tokio::select! {
            biased;
            () = watch.changed(seen) => {}
            () = sleeper.sleep(options.recheck() - PAUSE_MIN) => {}
        }
    };
    tokio::select! {
        biased;
        () = options.cancel.cancelled() => Err(Error::Cancelled),
        () = next_look => Ok(()),
    }
}
