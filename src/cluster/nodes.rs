//! The table `nodes`: what may be asked and changed, each within a transaction of the caller's.
//!
//! Times are seconds since 1970, given by the caller.
//!
//! *Invariant*: what changes one row insists that it was one.

use std::cmp::Ordering;
use std::time::Duration;

use serde::Deserialize;

use super::database::Tx;
use super::error::Error;
use super::gate::{LEVEL_COLUMNS, level_of};
use super::level::Level;
use super::query::{config, count, has_table, rows, update_one};
use crate::driver::Value;
use crate::params;

/// A node is offline after this long without a heartbeat, unless `config` says otherwise.
pub const OFFLINE_THRESHOLD: Duration = Duration::from_secs(30);

/// The same, of a service.
pub const SERVICES_OFFLINE_THRESHOLD: Duration = Duration::from_secs(120);

const OFFLINE_KEY: &str = "cluster.offline_threshold";
const SERVICES_OFFLINE_KEY: &str = "discovery.offline_threshold";

/// A row of `nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its level.
    pub level: Level,
    /// When it was last heard of: seconds since 1970.
    pub heartbeat: i64,
    /// It does not count yet.
    pub pending: bool,
}

impl NodeRow {
    /// Whether its heartbeat is older than the threshold.
    pub fn is_offline(&self, now: i64, threshold: Duration) -> bool {
        let threshold = i64::try_from(threshold.as_secs()).unwrap_or(i64::MAX);
        self.heartbeat < now.saturating_sub(threshold)
    }
}

#[derive(Deserialize)]
struct Raw {
    id: i64,
    name: String,
    address: String,
    heartbeat: Option<i64>,
    pending: i64,
    schema: u64,
    api_extensions: u64,
    modules: Option<String>,
    extensions: Option<String>,
}

const FROM: &str = "nodes.name, nodes.address, nodes.pending, \
    CAST(strftime('%s', nodes.heartbeat) AS INTEGER) AS heartbeat,";

async fn select(
    tx: &mut dyn Tx,
    condition: &str,
    params: Vec<Value>,
) -> Result<Vec<NodeRow>, Error> {
    let levels = if has_table(tx, "node_levels").await? {
        LEVEL_COLUMNS
    } else {
        "nodes.id, nodes.schema, nodes.api_extensions, NULL AS modules, NULL AS extensions \
         FROM nodes"
    };
    let sql = format!("SELECT {FROM} {levels} WHERE {condition} ORDER BY nodes.id");
    let found: Vec<Raw> = rows(tx, &sql, params).await?;
    let row = |raw: Raw| NodeRow {
        id: raw.id.cast_unsigned(),
        name: raw.name,
        address: raw.address,
        level: level_of((raw.id, raw.schema, raw.api_extensions, raw.modules, raw.extensions)),
        heartbeat: raw.heartbeat.unwrap_or(0),
        pending: raw.pending != 0,
    };
    Ok(found.into_iter().map(row).collect())
}

fn single(mut found: Vec<NodeRow>) -> Result<NodeRow, Error> {
    match found.len() {
        0 | 1 => found.pop().ok_or(Error::NoSuchObject),
        _ => Err(Error::MoreThanOneNode),
    }
}

/// All nodes that are not pending, by id.
pub async fn all(tx: &mut dyn Tx) -> Result<Vec<NodeRow>, Error> {
    select(tx, "nodes.pending = 0", params![]).await
}

/// The nodes that are pending.
pub async fn pending(tx: &mut dyn Tx) -> Result<Vec<NodeRow>, Error> {
    select(tx, "nodes.pending <> 0", params![]).await
}

/// Adds a node, or changes the address and the level of the one of that name. Answers its id.
pub async fn add(
    tx: &mut dyn Tx,
    name: &str,
    address: &str,
    schema: u64,
    api_extensions: u64,
) -> Result<u64, Error> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let sql = "INSERT INTO nodes(name, address, schema, api_extensions) VALUES (?, ?, ?, ?) \
               ON CONFLICT(name) DO UPDATE SET address = excluded.address, \
               schema = excluded.schema, api_extensions = excluded.api_extensions RETURNING id";
    let params = params![name, address, number(schema), number(api_extensions)];
    let ids: Vec<i64> = rows(tx, sql, params).await?;
    ids.first().map(|id| id.cast_unsigned()).ok_or(Error::UpdatedRows(0))
}

/// Says whether a node counts yet.
pub async fn set_pending(tx: &mut dyn Tx, id: u64, pending: bool) -> Result<(), Error> {
    let sql = "UPDATE nodes SET pending = ? WHERE id = ?";
    update_one(tx, sql, params![i64::from(pending), id.cast_signed()]).await
}

/// Gives a node another name and address.
pub async fn update(tx: &mut dyn Tx, id: u64, name: &str, address: &str) -> Result<(), Error> {
    let sql = "UPDATE nodes SET name = ?, address = ? WHERE id = ?";
    update_one(tx, sql, params![name, address, id.cast_signed()]).await
}

/// Removes a node, with its operations and tasks.
pub async fn remove(tx: &mut dyn Tx, id: u64) -> Result<(), Error> {
    update_one(tx, "DELETE FROM nodes WHERE id = ?", params![id.cast_signed()]).await
}

/// The node of that id, pending or not.
pub async fn by_id(tx: &mut dyn Tx, id: u64) -> Result<NodeRow, Error> {
    single(select(tx, "nodes.id = ?", params![id.cast_signed()]).await?)
}

/// The node of that name.
pub async fn by_name(tx: &mut dyn Tx, name: &str) -> Result<NodeRow, Error> {
    single(select(tx, "nodes.name = ? AND nodes.pending = 0", params![name]).await?)
}

/// The node of that address.
pub async fn by_address(tx: &mut dyn Tx, address: &str) -> Result<NodeRow, Error> {
    single(select(tx, "nodes.address = ? AND nodes.pending = 0", params![address]).await?)
}

/// The pending node of that address.
pub async fn pending_by_address(tx: &mut dyn Tx, address: &str) -> Result<NodeRow, Error> {
    single(select(tx, "nodes.address = ? AND nodes.pending <> 0", params![address]).await?)
}

/// Gives a node another name.
///
/// # Errors
///
/// [`Error::AlreadyDefined`]: the new one is taken.
pub async fn rename(tx: &mut dyn Tx, old: &str, new: &str) -> Result<(), Error> {
    let sql = "SELECT count(*) FROM nodes WHERE name = ?";
    if count(tx, sql, params![new]).await? > 0 {
        return Err(Error::AlreadyDefined);
    }
    update_one(tx, "UPDATE nodes SET name = ? WHERE name = ?", params![new, old]).await
}

/// How many nodes are not pending.
pub async fn nodes_count(tx: &mut dyn Tx) -> Result<u64, Error> {
    count(tx, "SELECT count(*) FROM nodes WHERE pending = 0", params![]).await
}

/// Whether another node has a higher level than the one at this address.
///
/// # Errors
///
/// [`Error::LocalNodeNotFound`]: there is no such node, or it has no level.
pub async fn is_outdated(tx: &mut dyn Tx, address: &str) -> Result<bool, Error> {
    let nodes = all(tx).await?;
    let own = nodes.iter().find(|node| node.address == address);
    let has_level = |node: &&NodeRow| (node.level.schema, node.level.api_extensions) != (0, 0);
    let own = own.filter(has_level).ok_or(Error::LocalNodeNotFound)?;
    let ahead = |node: &NodeRow| own.level.compare(&node.level) == Some(Ordering::Less);
    Ok(nodes.iter().any(ahead))
}

/// Notes that a node was heard of.
///
/// # Errors
///
/// [`Error::HeartbeatRows`]: there is no node at this address.
pub async fn heartbeat(tx: &mut dyn Tx, address: &str, at: i64) -> Result<(), Error> {
    let sql = "UPDATE nodes SET heartbeat = datetime(?, 'unixepoch') WHERE address = ?";
    match tx.execute(sql, params![at, address]).await? {
        1 => Ok(()),
        n => Err(Error::HeartbeatRows(n)),
    }
}

/// How long a node may be silent before it counts as offline.
pub async fn offline_threshold(tx: &mut dyn Tx) -> Result<Duration, Error> {
    threshold(tx, OFFLINE_KEY, OFFLINE_THRESHOLD).await
}

/// The same, of a service.
pub async fn services_offline_threshold(tx: &mut dyn Tx) -> Result<Duration, Error> {
    threshold(tx, SERVICES_OFFLINE_KEY, SERVICES_OFFLINE_THRESHOLD).await
}

async fn threshold(tx: &mut dyn Tx, key: &str, default: Duration) -> Result<Duration, Error> {
    match config(tx, key).await? {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => Err(Error::other(format!("{key} is \"{text}\", not a number of seconds"))),
        },
    }
}
