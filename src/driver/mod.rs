//! The client: finds the leader, keeps a bounded pool of connections to it, repeats only what was
//! certainly not executed, and says so when nobody can know what became of a write.
//!
//! ```no_run
//! # async fn example() -> Result<(), quire::driver::DriverError> {
//! use quire::driver::{Client, Options};
//! use quire::params;
//!
//! let members = ["10.0.0.1:9001", "10.0.0.2:9001", "10.0.0.3:9001"];
//! let client = Client::new(members, Options::default())?;
//! let shop = client.database("shop");
//! shop.execute("INSERT INTO orders(item, count) VALUES (?, ?)", params!["tea", 2]).await?;
//! let rows = shop.query("SELECT item, count FROM orders", params![]).await?;
//! # let _ = rows; Ok(())
//! # }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `address` | addresses, and the door to the network ([`Dial`]) |
//! | `connection` | one connection: a request and its answer |
//! | [`store`] | where the list of servers is kept: memory, a YAML file, an SQLite table |
//! | `members` | the servers known, and why none of them leads |
//! | `leader` | the search for the leader, one for all callers; the list kept up to date |
//! | `pool` | connections lent and returned; statements given up by their callers |
//! | `call` | a call with its retries: the rule of what may be repeated |
//! | `spread` | reads served by other members |
//! | `database`, `batch` | what callers hold: databases, statements, several at once |
//! | `session`, `transaction`, `closure` | transactions by hand, with savepoints, as closures |
//! | `once` | writes and transactions that are executed once |
//! | `rows`, `typed` | results, and rows as Rust types |
//! | `dump` | a whole database, copied out |
//! | `metrics` | what a client counts |
//! | [`sql`] | where statements end, which of them only read, their fingerprints |
//!
//! It speaks plain dqlite, to a dqlite server too; what goes beyond it (read levels, reads on a
//! follower, digests) is asked for with Hello and done without where the server does not know it.
//!
//! *Invariant*: every wait has a deadline, every queue a bound, and `driver` never imports
//! `member`.

mod address;
mod batch;
mod call;
mod closure;
mod connection;
mod database;
mod dump;
mod error;
mod leader;
mod members;
mod metrics;
mod once;
mod params;
mod pool;
mod rows;
mod session;
mod spread;
pub mod sql;
pub mod store;
#[cfg(test)]
mod tests;
mod transaction;
mod typed;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use address::{Dial, PlainDial, Stream};
pub use closure::TransactionOptions;
pub use database::{Database, Statement};
pub use dump::Dump;
pub use error::{Attempt, DriverError, Outcome};
pub use metrics::Metrics;
pub use once::{BeginOnce, RequestId};
pub use rows::{ExecResult, RowStream, Rows};
pub use session::Session;
pub use spread::ReadFrom;
pub use store::{MemoryStore, Role, Server, ServerStore, SqliteStore, YamlStore};
pub use transaction::{Begin, Savepoint, Transaction};
pub use typed::Row;

pub use crate::wire::response::{Digest, Status};
pub use crate::wire::{NodeInfo, ReadLevel, SchemaNode, SchemaStatus, Text, Value};

use crate::base::{Env, Randomness};
use crate::wire::{Request, Response};
use call::{Call, Effect, Op, Target, unexpected};
use connection::Level;
use leader::Leaders;
use metrics::Counters;
use pool::Pool;

/// The bounds of a client, and what is ambient to it.
#[derive(Clone)]
pub struct Options {
    /// How long a call may take in all, the search for a leader and its repetitions included;
    /// [`Database::timeout`] sets another bound.
    pub call_timeout: Duration,
    /// How long connecting to one address may take.
    pub dial_timeout: Duration,
    /// How long one address may take to say who leads, once connected.
    pub probe_timeout: Duration,
    /// How many connections the client has at most.
    pub connections_max: usize,
    /// How many calls wait for a connection at most; more are refused at once.
    pub waiters_max: usize,
    /// How long a statement whose caller went away may take to end once it is interrupted; then
    /// its connection is closed.
    pub cancel_timeout: Duration,
    /// How old the list of members may get before the leader is asked for it again.
    pub refresh_every: Duration,
    /// Who serves reads, unless a [`Database`] says otherwise.
    pub read_from: ReadFrom,
    /// How many bytes a collected result has at most; a stream has no bound.
    pub result_bytes_max: usize,
    /// The way to servers.
    pub dial: Arc<dyn Dial>,
    /// Every write of a [`Database`] that is one statement gets a [`RequestId`]: then it is tried
    /// again until the deadline, whatever happened to it. Off by default: an id costs a row in a
    /// table, and a server older than this driver does not know it.
    pub request_ids: bool,
    /// For jitter and ids.
    pub random: Arc<dyn Randomness>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            call_timeout: Duration::from_secs(15),
            dial_timeout: Duration::from_secs(3),
            probe_timeout: Duration::from_secs(2),
            connections_max: 16,
            waiters_max: 1024,
            cancel_timeout: Duration::from_secs(1),
            refresh_every: Duration::from_secs(30),
            read_from: ReadFrom::Leader,
            result_bytes_max: 256 << 20,
            dial: Arc::new(PlainDial),
            request_ids: false,
            random: Env::real().random,
        }
    }
}

/// The way to a cluster, or to one member of it. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<Options>,
    target: Target,
    pool: Arc<Pool>,
    counters: Arc<Counters>,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The node.
    pub id: u64,
    /// Its address.
    pub address: String,
}

/// How a member describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// What it shares with others that fail together with it.
    pub failure_domain: u64,
    /// The higher, the less it is wanted as a voter.
    pub weight: u64,
}

impl Client {
    /// A client of the cluster that has (some of) its members at these addresses, which it keeps in
    /// memory. Nobody is asked before the first call. Must live within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`DriverError::Invalid`]: there is no address, or one that is none.
    pub fn new<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: Options,
    ) -> Result<Client, DriverError> {
        let addresses: Vec<String> = addresses.into_iter().map(A::into).collect();
        if addresses.is_empty() {
            return Err(DriverError::Invalid("no address given".to_owned()));
        }
        addresses.iter().try_for_each(|address| address::check(address))?;
        let servers = addresses.into_iter().map(Server::at).collect();
        Ok(Client::with_store(Arc::new(MemoryStore::new(servers)), options))
    }

    /// A client of the cluster whose servers are in a store, which is kept up to date as members
    /// come and go. Nobody is asked before the first call. Must live within a tokio runtime.
    pub fn with_store(store: Arc<dyn ServerStore>, options: Options) -> Client {
        let (options, counters) = (Arc::new(options), Arc::new(Counters::default()));
        let leaders = Leaders::new(store, options.clone(), counters.clone());
        Client::with_target(options, Target::Leader(Arc::new(leaders)), counters)
    }

    fn with_target(options: Arc<Options>, target: Target, counters: Arc<Counters>) -> Client {
        let pool = Pool::new(&options, counters.clone());
        Client { inner: Arc::new(Inner { options, target, pool, counters }) }
    }

    /// A client of one member, leader or not: for local reads, digests and administration. It
    /// never asks who leads and follows nobody. It has connections and counts of its own.
    ///
    /// # Errors
    ///
    /// [`DriverError::Invalid`]: that is no address.
    pub fn at(&self, address: &str) -> Result<Client, DriverError> {
        address::check(address)?;
        let target = Target::Member(address.into());
        Ok(Client::with_target(self.inner.options.clone(), target, Arc::default()))
    }

    /// Closes the client, and all its clones: new calls are refused
    /// ([`DriverError::Closed`]), those under way have `within` to end, and the connections are
    /// closed. Whether all calls ended. Without it, dropping the last clone closes what is idle,
    /// and each call's connection ends with the call.
    pub async fn close(&self, within: Duration) -> bool {
        if let Target::Leader(leaders) = &self.inner.target {
            leaders.close();
        }
        self.inner.pool.close(Instant::now() + within).await
    }

    /// What this client, its clones included, counted so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.counters.snapshot(self.inner.pool.idle())
    }

    /// A handle on a database. It is opened when it is first used.
    pub fn database(&self, name: &str) -> Database {
        Database::new(self.clone(), name, self.inner.options.call_timeout)
    }

    /// Who leads, according to the leader itself (or to the one member that this client is of).
    pub async fn leader(&self) -> Result<Leader, DriverError> {
        match self.request(Request::Leader).await? {
            Response::Node { id, address } => Ok(Leader { id, address: address.to_string() }),
            _ => Err(unexpected("no leader")),
        }
    }

    /// The members, with their roles.
    pub async fn cluster(&self) -> Result<Vec<NodeInfo>, DriverError> {
        match self.request(Request::Cluster { format: 1 }).await? {
            Response::Nodes { nodes } => Ok(nodes),
            _ => Err(unexpected("no nodes")),
        }
    }

    /// Whether there is a leader that answers (or whether the one member does).
    pub async fn ping(&self) -> Result<(), DriverError> {
        self.leader().await.map(drop)
    }

    /// Adds a member, as a spare. There need not be a node yet.
    pub async fn add(&self, id: u64, address: &str) -> Result<(), DriverError> {
        self.request(Request::Add { id, address: address.into() }).await.map(drop)
    }

    /// Gives a member a role. One that is to vote is caught up first, which may take long: see
    /// [`Options::call_timeout`].
    pub async fn assign(&self, id: u64, role: Role) -> Result<(), DriverError> {
        self.request(Request::Assign { id, role: Some(role.code()) }).await.map(drop)
    }

    /// Removes a member.
    pub async fn remove(&self, id: u64) -> Result<(), DriverError> {
        self.request(Request::Remove { id }).await.map(drop)
    }

    /// Hands leadership to the voter `to`, or to any.
    pub async fn transfer(&self, to: Option<u64>) -> Result<(), DriverError> {
        self.request(Request::Transfer { id: to.unwrap_or(0) }).await.map(drop)
    }

    /// How the leader, or the one member that this client is of, describes itself: its failure
    /// domain and its weight.
    pub async fn describe(&self) -> Result<Description, DriverError> {
        match self.request(Request::Describe { format: 0 }).await? {
            Response::Metadata { failure_domain, weight } => {
                Ok(Description { failure_domain, weight })
            }
            _ => Err(unexpected("no description")),
        }
    }

    /// Sets the weight of the leader, or of the one member that this client is of, until it stops.
    pub async fn set_weight(&self, weight: u64) -> Result<(), DriverError> {
        self.request(Request::Weight { weight }).await.map(drop)
    }

    /// The digest of a database on the leader, or on the one member that this client is of.
    /// `deep` reads the pages themselves.
    pub async fn digest(&self, database: &str, deep: bool) -> Result<Digest, DriverError> {
        let flags = if deep { crate::wire::request::DIGEST_DEEP } else { 0 };
        match self.request(Request::Digest { database: database.into(), flags }).await? {
            Response::DigestOk(digest) => Ok(digest),
            _ => Err(unexpected("no digest")),
        }
    }

    /// The names of the databases.
    pub async fn databases(&self) -> Result<Vec<String>, DriverError> {
        match self.request(Request::Databases).await? {
            Response::DatabasesOk { names } => Ok(names.iter().map(Text::to_string).collect()),
            _ => Err(unexpected("no databases")),
        }
    }

    /// Folds a database's overlay into its base file, on the leader or on the one member.
    pub async fn checkpoint(&self, database: &str) -> Result<(), DriverError> {
        self.request(Request::Checkpoint { database: database.into() }).await.map(drop)
    }

    /// What the leader, or the one member, knows of the cluster: its term, when it last heard of a
    /// leader, which members it reaches, and why there is no leader.
    pub async fn status(&self) -> Result<Status, DriverError> {
        match self.request(Request::Status).await? {
            Response::StatusOk(status) => Ok(status),
            _ => Err(unexpected("no status")),
        }
    }

    /// What the leader, or the one member, knows of the schema gate, and of the nodes that stand
    /// before it.
    ///
    /// # Errors
    ///
    /// [`DriverError::Sqlite`] with code 1: that node has no schema gate.
    pub async fn schema(&self) -> Result<SchemaStatus, DriverError> {
        match self.request(Request::Schema).await? {
            Response::SchemaOk(status) => Ok(status),
            _ => Err(unexpected("no schema")),
        }
    }

    /// Sends any request that needs no open database: administration. Requests that only ask are
    /// repeated like reads, all others like writes.
    pub async fn request(&self, request: Request) -> Result<Response, DriverError> {
        let effect = match &request {
            Request::Leader
            | Request::Cluster { .. }
            | Request::Describe { .. }
            | Request::Digest { .. }
            | Request::Databases
            | Request::Status
            | Request::Schema
            | Request::Checkpoint { .. }
            | Request::Dump { .. } => Effect::Read,
            Request::Client { .. }
            | Request::Add { .. }
            | Request::Assign { .. }
            | Request::Remove { .. }
            | Request::Transfer { .. }
            | Request::Weight { .. } => Effect::Write,
            _ => return Err(DriverError::Invalid("that request needs a database".to_owned())),
        };
        let call = Call {
            database: None,
            level: Level::default(),
            effect,
            from: ReadFrom::Leader,
            opens_transaction: false,
            once: None,
            deadline: Instant::now() + self.inner.options.call_timeout,
        };
        let (_lent, response) = self.inner.run(call, &Op::Plain(request)).await?;
        Ok(response)
    }
}
