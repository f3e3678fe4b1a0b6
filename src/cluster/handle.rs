//! [`Cluster`]: the one handle that an application holds.
//!
//! *Invariant*: a failed `open` leaves the handle of before; a transaction that was given an
//! unknown outcome is never run again, but for EnsureSchema, which finds out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{OwnedRwLockWriteGuard, watch};
use tokio::time::{Instant, timeout};

use super::builder::{Builder, FileSystem, Opener, SchemaProvider};
use super::database::{Database, Work, run, run_again};
use super::error::{DatabaseErrorKind, Error, Within};
use super::gate::{Own, UNCLUSTERED, attempt, initial_row};
use super::join::Registration;
use super::level::{ApiExtensions, Level};
use super::nodes;
use super::retry::{Retries, Sleeper};
use super::schema::{Module, Schema};
use super::status::Gate;
use super::wait::{Notify, WaitOptions, Watch, WhenBehind, pause};
use crate::driver::{Options, ServerStore};

/// The pause between two pings while nobody leads.
const PING_PAUSE: Duration = Duration::from_secs(2);

/// The others have this long to be told of a migration; they see it by themselves.
const TELL_OTHERS_MAX: Duration = Duration::from_secs(5);

/// How long the exclusive lock may take.
const EXCLUSIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the gate is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The schema is the one that this program was built for.
    Ready,
    /// So many nodes have a lower level. This node's own level is published.
    Waiting(usize),
}

/// What the builder was told.
pub(super) struct Parts {
    pub(super) extensions: Arc<dyn ApiExtensions>,
    pub(super) provider: Arc<dyn SchemaProvider>,
    pub(super) modules: Vec<Module>,
    pub(super) files: Arc<dyn FileSystem>,
    pub(super) sleeper: Arc<dyn Sleeper>,
    pub(super) opener: Arc<dyn Opener>,
    pub(super) name: String,
    pub(super) registration: Option<Registration>,
    pub(super) notify: Option<Arc<dyn Notify>>,
}

/// A cluster's shared database and the gate before it. Clones are the same handle.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    database: RwLock<Option<Arc<dyn Database>>>,
    /// This node's id, once it is known.
    node: RwLock<Option<u64>>,
    gate: watch::Sender<Gate>,
    /// Held shared by transactions.
    exclusive: Arc<tokio::sync::RwLock<()>>,
}

impl Cluster {
    /// A builder, with a default for everything.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn of(parts: Parts, database: Option<Arc<dyn Database>>) -> Cluster {
        let node = parts.registration.as_ref().map(|registration| registration.id);
        Cluster {
            inner: Arc::new(Inner {
                parts,
                database: RwLock::new(database),
                node: RwLock::new(node),
                gate: watch::Sender::new(Gate::Starting),
                exclusive: Arc::default(),
            }),
        }
    }

    /// Opens the shared database; in place of the one that is open, where there is one. Nobody is
    /// asked over the network.
    ///
    /// # Errors
    ///
    /// It cannot be opened; what was open stays open.
    pub fn open(&self, store: Arc<dyn ServerStore>, options: Options) -> Result<(), Error> {
        let Parts { opener, name, .. } = &self.inner.parts;
        let opened = opener.open(store, options, name);
        let opened = opened.within("cannot open cluster database")?;
        *self.inner.database.write() = Some(opened);
        Ok(())
    }

    /// The database that is open.
    ///
    /// # Errors
    ///
    /// [`Error::NotOpen`].
    pub fn database(&self) -> Result<Arc<dyn Database>, Error> {
        self.inner.database.read().clone().ok_or(Error::NotOpen)
    }

    /// The schema of this program, all its modules.
    ///
    /// # Errors
    ///
    /// The provider's; or two modules have one name.
    pub fn schema(&self) -> Result<Schema, Error> {
        let mut schema = self.inner.parts.provider.schema()?;
        for module in &self.inner.parts.modules {
            schema.add_module(module.clone())?;
        }
        Ok(schema)
    }

    /// How many updates this program has.
    ///
    /// # Errors
    ///
    /// As [`Cluster::schema`].
    pub fn schema_version(&self) -> Result<u64, Error> {
        Ok(self.schema()?.len())
    }

    /// The level of this program.
    ///
    /// # Errors
    ///
    /// As [`Cluster::schema`].
    pub fn level(&self) -> Result<Level, Error> {
        Ok(Level::of(self.schema()?.versions(), &*self.inner.parts.extensions))
    }

    /// This node's id, once it is known.
    pub fn node_id(&self) -> Option<u64> {
        *self.inner.node.read()
    }

    /// Where the gate stands, and what becomes of it.
    pub fn gate(&self) -> watch::Receiver<Gate> {
        self.inner.gate.subscribe()
    }

    /// Publishes this node's level and brings the schema up to date, unless other nodes have to be
    /// upgraded first. `address`: where this node listens (not asked for where it is not
    /// clustered). `dir`: where the patch file may be, and the copy of the database goes.
    ///
    /// # Errors
    ///
    /// [`Error::NodeBehind`], [`Error::Inconsistent`] and those of the join gate; of the schema
    /// engine. Nothing has changed then.
    pub async fn ensure_schema(&self, address: &str, dir: &Path) -> Result<Status, Error> {
        let done = self.ensure(address, dir).await;
        let (done, migrated) = match done {
            Ok((status, own)) => (Ok(status), own),
            Err(error) => (Err(error), None),
        };
        self.inner.gate.send_replace(match &done {
            Ok(Status::Ready) => Gate::Ready,
            Ok(Status::Waiting(behind)) => Gate::Waiting(*behind),
            Err(error) => Gate::of_error(error),
        });
        if let Some(own) = migrated
            && timeout(TELL_OTHERS_MAX, self.tell_others(&own)).await.is_err()
        {
            tracing::warn!("the other nodes were not told of the migration in time");
        }
        done
    }

    /// The status, and who migrated if this node has.
    async fn ensure(&self, address: &str, dir: &Path) -> Result<(Status, Option<Arc<Own>>), Error> {
        let database = self.database()?;
        let Parts { files, sleeper, registration, .. } = &self.inner.parts;
        let failed = |error| Error::File(format!("{}: {error}", dir.display()));
        let disk = files.open(dir).map_err(failed)?;
        let level = self.level()?;
        let (address, registration) = (address.to_owned(), registration.clone());
        let own = Arc::new(Own { level, address, dir: dir.to_owned(), registration });
        // A commit whose answer was lost: the next try reads the version before anything else, and
        // applies what is missing, which is nothing if it was committed. So it may be tried again.
        let mut in_doubt = false;
        let mut retries = Retries::default();
        let tried = loop {
            let error = match attempt(self.schema()?, &own, &database, &disk).await {
                Ok(tried) => break tried,
                Err(Error::GracefulAbort { behind }) => return Ok((Status::Waiting(behind), None)),
                Err(error) => error,
            };
            in_doubt |= error.is_outcome_unknown();
            let worth = error.is_transient() || error.is_outcome_unknown();
            retries.pause(&**sleeper, error, worth).await?;
        };
        if own.registration.is_none() && (tried.initial == 0 || tried.no_nodes || in_doubt) {
            self.write_initial_row(&*database, &own.level).await?;
        }
        if tried.initial < own.level.schema || in_doubt {
            let (from, to) = (tried.initial, own.level.schema);
            tracing::info!(from, to, "the schema was brought up to date");
            return Ok((Status::Ready, Some(own)));
        }
        Ok((Status::Ready, None))
    }

    /// The first row, by the same rule: it is written only where there is none.
    async fn write_initial_row(&self, database: &dyn Database, level: &Level) -> Result<(), Error> {
        let mut retries = Retries::default();
        while let Err(error) = initial_row(database, level).await {
            let worth = error.is_transient() || error.is_outcome_unknown();
            retries.pause(&*self.inner.parts.sleeper, error, worth).await?;
        }
        Ok(())
    }

    /// Tells the other nodes of a migration.
    async fn tell_others(&self, own: &Own) {
        let Some(notify) = &self.inner.parts.notify else { return };
        let read = async {
            // Not [`Cluster::transaction`]: whoever holds the exclusive lock may have migrated.
            let database = self.database()?;
            run(&*database, |mut tx| async move { nodes::all(&mut *tx).await }).await
        };
        let peers = read.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the other nodes could not be told of the migration");
            Vec::new()
        });
        let is_other = |peer: &&nodes::NodeRow| match &own.registration {
            Some(own) => peer.id != own.id,
            None => peer.address != own.address && peer.address != UNCLUSTERED,
        };
        let tell = async |peer: &nodes::NodeRow| {
            if let Err(error) = notify.upgraded(peer).await {
                tracing::warn!(peer = peer.address, error, "a node was not told of the migration");
            }
        };
        futures::future::join_all(peers.iter().filter(is_other).map(tell)).await;
    }

    /// Waits until the gate is open: as [`Cluster::ensure_schema`], again and again, whenever the
    /// watch says that something may have changed, and every 30 s.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; and those of [`Cluster::ensure_schema`] that waiting does not mend.
    pub async fn wait_ready(
        &self,
        address: &str,
        dir: &Path,
        watch: &dyn Watch,
        options: &WaitOptions,
    ) -> Result<(), Error> {
        // What the log was told last.
        let mut said = String::new();
        loop {
            // Before the look: what changes from here on is seen.
            let seen = watch.version();
            let done = tokio::select! {
                biased;
                () = options.cancel.cancelled() => return Err(Error::Cancelled),
                done = self.ensure_schema(address, dir) => done,
            };
            match done {
                Ok(Status::Ready) => return Ok(()),
                Ok(Status::Waiting(behind)) => {
                    if said != behind.to_string() {
                        tracing::info!(behind, "waiting for other nodes to be upgraded");
                        said = behind.to_string();
                    }
                }
                Err(error) if self.worth_waiting(&error, options) => {
                    if said != error.to_string() {
                        tracing::warn!(%error, "the gate is not open; it will be tried again");
                        said = error.to_string();
                    }
                }
                Err(error) => return Err(error),
            }
            pause(watch, seen, &*self.inner.parts.sleeper, options).await?;
        }
    }

    fn worth_waiting(&self, error: &Error, options: &WaitOptions) -> bool {
        let behind = matches!(error.root(), Error::NodeBehind);
        behind && options.when_behind == WhenBehind::Wait
            || error.is_transient()
            || error.is_outcome_unknown()
    }

    /// Everything that a node does when it starts: waits until somebody leads, at most `patience`,
    /// passes the gate, finds its own row. Answers this node's id.
    ///
    /// # Errors
    ///
    /// [`Error::SomeNodesAreBehind`]: the gate is closed; the database is open all the same, so
    /// that heartbeats go on. [`Error::NotRegistered`]; and those of [`Cluster::ensure_schema`].
    pub async fn start(&self, address: &str, dir: &Path, patience: Duration) -> Result<u64, Error> {
        self.connect(patience).await?;
        let status = self.ensure_schema(address, dir).await.within("failed to ensure schema")?;
        let id = match self.node_id() {
            Some(id) => id,
            None => {
                self.transaction(|mut tx| async move { own_id(&mut tx, address).await }).await?
            }
        };
        *self.inner.node.write() = Some(id);
        match status {
            Status::Ready => Ok(id),
            Status::Waiting(_) => Err(Error::SomeNodesAreBehind),
        }
    }

    /// Waits until somebody leads.
    ///
    /// # Errors
    ///
    /// Nobody does, for as long as `patience`; or the ping fails for another reason.
    pub async fn connect(&self, patience: Duration) -> Result<(), Error> {
        let database = self.database()?;
        let begun = Instant::now();
        for attempt in 0_u64.. {
            let error = match database.ping().await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == DatabaseErrorKind::NoLeader => error,
                Err(error) => return Err(error.into()),
            };
            match attempt {
                0..=5 => tracing::debug!(attempt, %error, "the cluster database does not answer"),
                6..=15 => tracing::warn!(attempt, %error, "the cluster database does not answer"),
                more if more.is_multiple_of(5) => {
                    tracing::warn!(attempt, %error, "the cluster database does not answer");
                }
                _ => {}
            }
            self.inner.parts.sleeper.sleep(PING_PAUSE).await;
            if begun.elapsed() >= patience {
                return Err(Error::from(error).within("failed to connect to cluster database"));
            }
        }
        Ok(())
    }

    /// Runs a closure in a transaction: commits if it says `Ok`, rolls back if it says `Err`. It
    /// is run again, ten times at most, where nothing was kept and another attempt may succeed.
    ///
    /// ```no_run
    /// # async fn example(cluster: quire::cluster::Cluster) -> Result<(), quire::cluster::Error> {
    /// use quire::cluster::nodes;
    ///
    /// let node = cluster
    ///     .transaction(|mut tx| async move { nodes::by_name(&mut *tx, "one").await })
    ///     .await?;
    /// # let _ = node; Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's, and the database's. One whose outcome is unknown
    /// ([`Error::is_outcome_unknown`]) is not run again.
    pub async fn transaction<T, F>(&self, mut work: impl FnMut(Work) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let database = self.database()?;
        let _shared = self.inner.exclusive.read().await;
        let sleeper = &*self.inner.parts.sleeper;
        run_again(&*database, sleeper, &mut work).await
    }

    /// Keeps all other transactions of this handle out.
    ///
    /// # Errors
    ///
    /// [`Error::ExclusiveTimeout`]: those that run did not end in 20 s. Then nothing is held.
    pub async fn enter_exclusive(&self) -> Result<Exclusive, Error> {
        let lock = self.inner.exclusive.clone().write_owned();
        let guard = timeout(EXCLUSIVE_TIMEOUT, lock).await;
        let guard = guard.map_err(|_| Error::ExclusiveTimeout)?;
        Ok(Exclusive { cluster: self.clone(), guard })
    }
}

/// The exclusive lock. Dropping it lets the others in.
pub struct Exclusive {
    cluster: Cluster,
    guard: OwnedRwLockWriteGuard<()>,
}

impl Exclusive {
    /// Runs a closure in a transaction, as [`Cluster::transaction`], and lets the others in.
    ///
    /// # Errors
    ///
    /// As [`Cluster::transaction`].
    pub async fn exit<T, F>(self, mut work: impl FnMut(Work) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let database = self.cluster.database()?;
        let sleeper = &*self.cluster.inner.parts.sleeper;
        let done = run_again(&*database, sleeper, &mut work).await;
        drop(self.guard);
        done
    }
}

/// The id of the row of this node: the one row of a database that is not clustered, else the one
/// with its address.
async fn own_id(tx: &mut Work, address: &str) -> Result<u64, Error> {
    let all = nodes::all(&mut **tx).await?;
    let own = match all.as_slice() {
        [only] if only.address == UNCLUSTERED => Some(only.id),
        all => all.iter().find(|node| node.address == address).map(|node| node.id),
    };
    own.ok_or_else(|| Error::NotRegistered(address.to_owned()))
}
