//! How a node gets its row: the join gate, and a node that came back under another address.
//!
//! *Invariant*: names and addresses are one node's each; a node joins only at the level that all
//! the others have.

use std::cmp::Ordering;

use serde::Deserialize;

use super::database::Tx;
use super::error::{Error, Within};
use super::gate::{
    LEVEL_COLUMNS, LevelRow, UNCLUSTERED, ensure_levels, level_of, numbers, publish, write_detail,
};
use super::level::Level;
use super::query::{count, rows, update_one};
use crate::driver::Value;
use crate::params;

/// Who this node is: with it the gate keeps the node's own row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its id in the cluster.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
}

impl Registration {
    fn id(&self) -> i64 {
        self.id.cast_signed()
    }
}

#[derive(Deserialize)]
struct Row {
    name: String,
    address: String,
}

/// Finds the own row, or gets one through the join gate, and publishes the level there.
pub(super) async fn register(
    tx: &mut dyn Tx,
    own: &Registration,
    level: &Level,
    unclustered: bool,
) -> Result<(), Error> {
    let sql = "SELECT name, address FROM nodes WHERE id = ?";
    let Some(row) = rows::<Row>(tx, sql, params![own.id()]).await?.pop() else {
        if unclustered {
            return Err(Error::NotClustered);
        }
        return accept(tx, own, level).await;
    };
    if row.name != own.name || row.address != own.address {
        check_names(tx, own).await?;
        let sql = "UPDATE nodes SET name = ?, address = ? WHERE id = ?";
        let params = params![&own.name, &own.address, own.id()];
        update_one(tx, sql, params).await.within("failed to update node")?;
    }
    let published = publish(tx, "id", Value::from(own.id()), level).await;
    published.within("failed to update node version info")
}

/// The join gate: a new node, pending until its gate has let it through.
///
/// # Errors
///
/// [`Error::NotClustered`], [`Error::NameTaken`], [`Error::AddressTaken`],
/// [`Error::SchemaMismatch`], [`Error::ApiMismatch`]; an empty name or address.
pub async fn accept(tx: &mut dyn Tx, own: &Registration, level: &Level) -> Result<(), Error> {
    if own.name.is_empty() || own.address.is_empty() {
        let what = if own.name.is_empty() { "name" } else { "address" };
        return Err(Error::other(format!("node {what} must not be empty")));
    }
    let sql = "SELECT count(*) FROM nodes WHERE address = ?";
    if count(tx, sql, params![UNCLUSTERED]).await? > 0 {
        return Err(Error::NotClustered);
    }
    check_names(tx, own).await?;
    ensure_levels(tx).await?;
    let sql = format!("SELECT {LEVEL_COLUMNS} WHERE nodes.pending = 0");
    for row in rows::<LevelRow>(tx, &sql, params![]).await? {
        check_equal(&level_of(row), level)?;
    }
    insert(tx, own, level, true).await
}

/// Whether name and address are free, or this node's.
async fn check_names(tx: &mut dyn Tx, own: &Registration) -> Result<(), Error> {
    for (column, value) in [("name", &own.name), ("address", &own.address)] {
        let sql = format!("SELECT count(*) FROM nodes WHERE {column} = ? AND id <> ?");
        if count(tx, &sql, params![value, own.id()]).await? > 0 {
            return Err(match column {
                "name" => Error::NameTaken(value.clone()),
                _ => Error::AddressTaken(value.clone()),
            });
        }
    }
    Ok(())
}

/// Whether a node of the cluster has the level of the one that wants to join.
fn check_equal(cluster: &Level, own: &Level) -> Result<(), Error> {
    if cluster.compare(own) == Some(Ordering::Equal) {
        return Ok(());
    }
    let parts = |level: &Level| level.detail.as_ref().map(|detail| detail.modules.clone());
    let same_modules = match (parts(cluster), parts(own)) {
        (Some(cluster), Some(own)) => cluster == own,
        _ => true,
    };
    if cluster.schema != own.schema || !same_modules {
        let (cluster, own) = (cluster.schema_text(), own.schema_text());
        return Err(Error::SchemaMismatch { cluster, own });
    }
    let api = |level: &Level| level.api_extensions.to_string();
    Err(Error::ApiMismatch { cluster: api(cluster), own: api(own) })
}

async fn insert(
    tx: &mut dyn Tx,
    own: &Registration,
    level: &Level,
    pending: bool,
) -> Result<(), Error> {
    let (schema, api) = numbers(level);
    let sql = "INSERT INTO nodes(id, name, address, schema, api_extensions, pending) \
               VALUES (?, ?, ?, ?, ?, ?)";
    let params = params![own.id(), &own.name, &own.address, schema, api, i64::from(pending)];
    tx.execute(sql, params).await?;
    write_detail(tx, own.id(), level).await
}

/// At the end of a migration, in its transaction: the first row of a fresh database, or the own
/// row, which is pending no more. A node that did not get here is not seen at all.
pub(super) async fn arrive(
    tx: &mut dyn Tx,
    own: &Registration,
    level: &Level,
) -> Result<(), Error> {
    let sql = "SELECT count(*) FROM nodes WHERE id = ?";
    if count(tx, sql, params![own.id()]).await? == 0 {
        ensure_levels(tx).await?;
        return insert(tx, own, level, false).await;
    }
    // It is there: nobody need wait for a heartbeat to see that.
    let sql = "UPDATE nodes SET pending = 0, heartbeat = CURRENT_TIMESTAMP WHERE id = ?";
    tx.execute(sql, params![own.id()]).await?;
    Ok(())
}
