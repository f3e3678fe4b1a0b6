//! EnsureSchema: publishes this node's level, compares it with everybody's, and migrates when all
//! have the same.
//!
//! All rows are read before anything is decided: incomparable levels first, then a node that is
//! ahead of this one, then those that are behind. So the order of the rows decides nothing. Nodes
//! that are pending do not count.
//!
//! *Invariant*: the level of this node and its wait are committed together; a level is written only
//! where it differs, so that a node which looks again and again writes nothing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering as Atomic};

use super::backup;
use super::database::{Database, Tx, run};
use super::error::{Error, Within};
use super::join::{self, Registration};
use super::level::{Detail, Level};
use super::query::{count, has_table, rows};
use super::schema::{BOOKKEEPING, Change, Schema};
use crate::base::planted::{Bug, planted};
use crate::disk::Disk;
use crate::driver::Value;
use crate::params;

/// The address of a node that is not clustered: at most one row has it.
pub const UNCLUSTERED: &str = "0.0.0.0";

/// The patch file's name, in the database's directory.
pub const PATCH_FILE: &str = "patch.global.sql";

/// This node, as it stands before the gate.
pub(super) struct Own {
    pub(super) level: Level,
    /// Where it listens; not asked for where it is not clustered.
    pub(super) address: String,
    /// Where the files are.
    pub(super) dir: PathBuf,
    pub(super) registration: Option<Registration>,
}

/// What one try found.
pub(super) struct Tried {
    /// The version that the database had.
    pub(super) initial: u64,
    /// The table `nodes` has no row: a crash came between the migration and the first one.
    pub(super) no_nodes: bool,
}

/// Tries once. Everything that a try keeps in mind is made anew for it.
pub(super) async fn attempt(
    mut schema: Schema,
    own: &Arc<Own>,
    database: &Arc<dyn Database>,
    disk: &Arc<dyn Disk>,
) -> Result<Tried, Error> {
    schema.file(disk.clone(), PATCH_FILE, own.dir.join(PATCH_FILE).display().to_string());
    let (no_nodes, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (by, empty) = (own.clone(), no_nodes.clone());
    schema.check(Arc::new(move |current, tx| {
        let (own, empty) = (by.clone(), empty.clone());
        Box::pin(async move {
            empty.store(check(&own, current, tx).await?, Atomic::Relaxed);
            Ok(())
        })
    }));
    let from = (database.clone(), disk.clone());
    schema.hook(Arc::new(move |change, tx| {
        // Only the first change finds the database as it was.
        let first = !asked.swap(true, Atomic::Relaxed);
        let from = from.clone();
        Box::pin(async move { if first { back_up(change, tx, &from).await } else { Ok(()) } })
    }));
    let by = own.clone();
    schema.finish(Arc::new(move |_, tx| {
        let own = by.clone();
        Box::pin(async move {
            match &own.registration {
                Some(registration) => join::arrive(tx, registration, &own.level).await,
                None => Ok(()),
            }
        })
    }));
    let initial = schema.ensure(&**database).await?;
    Ok(Tried { initial, no_nodes: no_nodes.load(Atomic::Relaxed) })
}

/// Publishes the level and compares it with all others. Whether there are no nodes at all.
async fn check(own: &Own, current: u64, tx: &mut dyn Tx) -> Result<bool, Error> {
    if current == 0 {
        return Ok(false);
    }
    let unclustered = unclustered(tx).await?;
    ensure_levels(tx).await?;
    match &own.registration {
        Some(registration) => join::register(tx, registration, &own.level, unclustered).await?,
        None => {
            if !unclustered && count(tx, "SELECT count(*) FROM nodes", params![]).await? == 0 {
                return Ok(true);
            }
            let address = if unclustered { UNCLUSTERED } else { &own.address };
            let published = publish(tx, "address", Value::from(address), &own.level).await;
            published.within("failed to update node version info")?;
        }
    }
    let levels = levels(tx).await.within("failed to fetch current nodes versions")?;
    decide(&own.level, &levels)?;
    Ok(false)
}

/// Whether this is the database of one node that is not clustered.
async fn unclustered(tx: &mut dyn Tx) -> Result<bool, Error> {
    let sql = "SELECT count(*) FROM nodes WHERE address = ?";
    let found = count(tx, sql, params![UNCLUSTERED]).await;
    match found.within("failed to fetch unclustered nodes count")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Unclustered),
    }
}

/// What the levels of all nodes mean for one of them.
pub(super) fn decide(own: &Level, all: &[Level]) -> Result<(), Error> {
    if planted(Bug::GateAlone) {
        return Ok(());
    }
    let orders: Vec<Option<Ordering>> = all.iter().map(|level| own.compare(level)).collect();
    if orders.contains(&None) {
        return Err(Error::Inconsistent);
    }
    if orders.contains(&Some(Ordering::Less)) {
        return Err(Error::NodeBehind);
    }
    match orders.iter().filter(|order| **order == Some(Ordering::Greater)).count() {
        0 => Ok(()),
        behind => Err(Error::GracefulAbort { behind }),
    }
}

/// Makes the table that stands beside `nodes`, where it is missing.
pub(super) async fn ensure_levels(tx: &mut dyn Tx) -> Result<(), Error> {
    if !has_table(tx, "node_levels").await? {
        let sql = "CREATE TABLE node_levels(\
                   node_id INTEGER PRIMARY KEY REFERENCES nodes(id) ON DELETE CASCADE, \
                   modules TEXT NOT NULL, \
                   extensions TEXT)";
        tx.execute(sql, params![]).await?;
    }
    Ok(())
}

/// A level's columns of `nodes` and `node_levels`, from the row's second column on.
pub(super) type LevelRow = (i64, u64, u64, Option<String>, Option<String>);

pub(super) const LEVEL_COLUMNS: &str = "nodes.id, nodes.schema, nodes.api_extensions, node_levels.modules, node_levels.extensions \
     FROM nodes LEFT JOIN node_levels ON node_levels.node_id = nodes.id";

pub(super) fn level_of(row: LevelRow) -> Level {
    let (_, schema, api_extensions, modules, extensions) = row;
    // What is no JSON of this form was not written here: the pair counts.
    let detail = modules.and_then(|text| {
        let modules: BTreeMap<String, u64> = serde_json::from_str(&text).ok()?;
        let extensions = match extensions {
            Some(text) => Some(serde_json::from_str(&text).ok()?),
            None => None,
        };
        Some(Detail { modules, extensions })
    });
    Level::pair(schema, api_extensions).with_detail(detail)
}

/// The levels of all nodes that are not pending.
async fn levels(tx: &mut dyn Tx) -> Result<Vec<Level>, Error> {
    let sql = format!("SELECT {LEVEL_COLUMNS} WHERE nodes.pending = 0");
    let rows: Vec<LevelRow> = rows(tx, &sql, params![]).await?;
    Ok(rows.into_iter().map(level_of).collect())
}

/// Writes the level of the one node whose `column` has that value, if it is not there already.
pub(super) async fn publish(
    tx: &mut dyn Tx,
    column: &str,
    value: Value,
    level: &Level,
) -> Result<(), Error> {
    let sql = format!("SELECT {LEVEL_COLUMNS} WHERE nodes.{column} = ?");
    let found: Vec<LevelRow> = rows(tx, &sql, vec![value]).await?;
    let [row] = found.as_slice() else {
        return Err(Error::LevelRows(found.len() as u64));
    };
    let id = row.0;
    if level_of(row.clone()) == *level {
        return Ok(());
    }
    let (schema, api) = numbers(level);
    let sql = "UPDATE nodes SET schema = ?, api_extensions = ? WHERE id = ?";
    match tx.execute(sql, params![schema, api, id]).await? {
        1 => write_detail(tx, id, level).await,
        n => Err(Error::LevelRows(n)),
    }
}

pub(super) fn numbers(level: &Level) -> (i64, i64) {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    (number(level.schema), number(level.api_extensions))
}

/// Writes what stands beside the pair.
pub(super) async fn write_detail(tx: &mut dyn Tx, id: i64, level: &Level) -> Result<(), Error> {
    let Some(detail) = &level.detail else {
        tx.execute("DELETE FROM node_levels WHERE node_id = ?", params![id]).await?;
        return Ok(());
    };
    let text = |json: serde_json::Result<String>| {
        json.map_err(|error| Error::other(format!("a level is no JSON: {error}")))
    };
    let modules = text(serde_json::to_string(&detail.modules))?;
    let extensions = detail.extensions.as_ref();
    let extensions = extensions.map(|names| text(serde_json::to_string(names))).transpose()?;
    let sql = "INSERT INTO node_levels(node_id, modules, extensions) VALUES (?, ?, ?) \
               ON CONFLICT(node_id) DO UPDATE SET \
               modules = excluded.modules, extensions = excluded.extensions";
    tx.execute(sql, params![id, modules, extensions]).await?;
    Ok(())
}

/// Before the first change: a copy of the database, unless others have one.
async fn back_up(
    change: Change,
    tx: &mut dyn Tx,
    from: &(Arc<dyn Database>, Arc<dyn Disk>),
) -> Result<(), Error> {
    if is_clustered(tx).await? || is_empty(tx).await? {
        return Ok(());
    }
    let done = backup::write(&*from.0, &from.1, tx).await;
    done.within("failed to backup global database")?;
    tracing::info!(before = %change, file = backup::FILE, "the database was copied");
    Ok(())
}

async fn is_clustered(tx: &mut dyn Tx) -> Result<bool, Error> {
    let there = has_table(tx, "nodes").await.within("failed to check if schema table exists")?;
    if !there || unclustered(tx).await? {
        return Ok(false);
    }
    Ok(count(tx, "SELECT count(*) FROM nodes", params![]).await? > 0)
}

/// Whether nothing is there but what the engine made.
async fn is_empty(tx: &mut dyn Tx) -> Result<bool, Error> {
    let sql = "SELECT name FROM sqlite_master WHERE type = 'table' \
               AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_quire\\_%' ESCAPE '\\'";
    let tables: Vec<String> = rows(tx, sql, params![]).await?;
    Ok(tables.iter().all(|name| BOOKKEEPING.contains(&name.as_str())))
}

/// The first row of a database that is not clustered, in a transaction of its own. Fine where
/// there is a row already: an earlier try, whose answer was lost, wrote it.
pub(super) async fn initial_row(database: &dyn Database, level: &Level) -> Result<(), Error> {
    run(database, |mut tx| async move {
        let (schema, api) = numbers(level);
        let sql = "INSERT INTO nodes(id, name, address, schema, api_extensions) \
                   SELECT 1, 'none', ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM nodes)";
        let inserted = tx.execute(sql, params![UNCLUSTERED, schema, api]).await?;
        if inserted == 1 {
            ensure_levels(&mut *tx).await?;
            write_detail(&mut *tx, 1, level).await?;
        }
        Ok(())
    })
    .await
}
