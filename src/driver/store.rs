//! Where a client keeps the addresses of its cluster: [`ServerStore`], and three of them.
//!
//! | store | where |
//! |---|---|
//! | [`MemoryStore`] | in memory: gone with the program |
//! | [`YamlStore`] | a file such as go-dqlite's `cluster.yaml` |
//! | [`SqliteStore`] | a table `servers` of an SQLite file, as go-dqlite's |
//!
//! The client reads it at each search for the leader, and writes what the leader says the members
//! are whenever that differs.
//!
//! *Invariant*: a store is replaced as a whole; a crash leaves the old list or the new one.

mod sqlite;
mod yaml;

use std::io;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use sqlite::SqliteStore;
pub use yaml::YamlStore;

pub use crate::wire::request::Role;

/// How many servers a store holds at most.
pub const SERVERS_MAX: usize = 64;

/// A server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its id; 0 where only an address is known.
    #[serde(rename = "ID", default)]
    pub id: u64,
    /// Where it listens, as clients dial it.
    #[serde(rename = "Address")]
    pub address: String,
    /// Its role.
    #[serde(rename = "Role", default = "voter", with = "role")]
    pub role: Role,
}

fn voter() -> Role {
    Role::Voter
}

/// A role by its number, as go-dqlite writes it.
mod role {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Role;

    pub(super) fn serialize<S: Serializer>(role: &Role, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(role.code())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
        let code = u64::deserialize(from)?;
        let none =
            || D::Error::custom(format!("{code} is no role: 0 votes, 1 stands by, 2 is spare"));
        Role::from_code(code).ok_or_else(none)
    }
}

impl Server {
    /// A server of which only the address is known; it is asked like a voter.
    pub fn at(address: impl Into<String>) -> Server {
        Server { id: 0, address: address.into(), role: Role::Voter }
    }
}

/// A place for the list of servers. Both calls may be made from several tasks at a time.
pub trait ServerStore: Send + Sync + 'static {
    /// The servers known, in any order; none is fine.
    ///
    /// # Errors
    ///
    /// The store cannot be read. The client goes on with what it knows.
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>>;

    /// Replaces them all, durably where the store is durable.
    ///
    /// # Errors
    ///
    /// The store cannot be written; it has the list of before. The client logs it and goes on.
    fn set(&self, servers: Vec<Server>) -> BoxFuture<'_, io::Result<()>>;
}

/// A list in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    servers: Mutex<Vec<Server>>,
}

impl MemoryStore {
    /// A store with these servers.
    pub fn new(servers: Vec<Server>) -> MemoryStore {
        MemoryStore { servers: Mutex::new(servers) }
    }
}

impl ServerStore for MemoryStore {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        let servers = self.servers.lock().clone();
        Box::pin(std::future::ready(Ok(servers)))
    }

    fn set(&self, servers: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        *self.servers.lock() = servers;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
