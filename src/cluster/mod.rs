//! The cluster's schema gate: all nodes of an application share one database, are upgraded one at a
//! time, and none of them ever sees a schema that it was not built for.
//!
//! Each node's row says which updates and API extensions its program has: its *level*. A node
//! that starts publishes its level, and migrates only when every other node has published the
//! same; until then it waits. One with a lower level than another refuses to go on. So the last
//! node to arrive migrates, for all, once, in one transaction.
//!
//! ```no_run
//! # async fn example() -> Result<(), quire::cluster::Error> {
//! use std::path::Path;
//! use std::sync::Arc;
//! use quire::cluster::{Cluster, Module, Registration, Status};
//! use quire::driver::{MemoryStore, Options, Server};
//!
//! let me = Registration { id: 1, name: "one".into(), address: "10.0.0.1:9001".into() };
//! let cluster = Cluster::builder()
//!     .module(Module::read("app", Path::new("schema"))?)
//!     .registration(me)
//!     .build();
//! let servers = MemoryStore::new(vec![Server::at("10.0.0.1:9001")]);
//! cluster.open(Arc::new(servers), Options::default())?;
//! match cluster.ensure_schema("10.0.0.1:9001", Path::new("/var/lib/app")).await? {
//!     Status::Ready => println!("on to work"),
//!     Status::Waiting(behind) => println!("{behind} nodes have not been upgraded yet"),
//! }
//! # Ok(()) }
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `builder` | what a [`Cluster`] is made of; the defaults of each |
//! | `handle` | what callers hold: open, ensure, transactions, the exclusive lock |
//! | `gate` | EnsureSchema: publish, compare, decide, migrate |
//! | `join` | how a node gets its row |
//! | `wait` | waiting for the others, and waking them |
//! | [`nodes`] | the table `nodes` |
//! | `status` | what an operator sees of a node |
//! | `level` | levels and how they compare |
//! | `schema` | the engine of updates |
//! | `database`, `local` | the seam to a database; over the driver, over an SQLite file |
//! | `backup` | the copy before the first change |
//! | `query`, `retry`, `error` | small questions, trying again, what goes wrong |
//!
//! *Invariant*: a migration is committed only in a transaction that has seen the same level in
//! every node's row; nothing outside of a transaction of the database decides who migrates.

mod backup;
mod builder;
mod database;
mod error;
mod gate;
mod handle;
mod join;
mod level;
mod local;
pub mod nodes;
mod query;
mod retry;
mod schema;
mod status;
mod wait;

pub use backup::FILE as BACKUP_FILE;
pub use builder::{
    Builder, FileSystem, LocalFileSystem, Opener, ReplicatedOpener, SchemaProvider, StandardSchema,
    fresh_schema, standard_module,
};
pub use database::{Answer, Database, Pieces, Replicated, Tx, Work};
pub use error::{DatabaseError, DatabaseErrorKind, Error};
pub use gate::{PATCH_FILE, UNCLUSTERED};
pub use handle::{Cluster, Exclusive, Status};
pub use join::{Registration, accept};
pub use level::{ApiExtensions, BasicApiExtensions, Detail, Extensions, Level};
pub use local::Local;
pub use query::{config, count, set_config};
pub use retry::{RETRIES_MAX, RETRY_DELAY, RealSleeper, Retries, Sleeper};
pub use schema::{Change, Check, Finish, Hook, Module, Schema, Update, script};
pub use status::{Gate, NodeStatus};
pub use wait::{Notify, Polling, Signal, WaitOptions, Watch, WhenBehind};
