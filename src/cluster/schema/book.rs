//! The engine's own tables: `schema` with a row for each update of all modules, `schema_modules`
//! with how far each module is, `schema_patches` with the patches that ran. Drawn in
//! docs/format.md.
//!
//! *Invariant*: the rows of `schema` are contiguous from the first on, and the modules' versions
//! add up to the last.

use std::collections::BTreeMap;

use super::update::Module;
use crate::cluster::database::Tx;
use crate::cluster::error::{Error, Within};
use crate::cluster::query::{has_table, rows};
use crate::params;

/// Tables of the engine and the gate: no part of what is dumped.
pub(in crate::cluster) const BOOKKEEPING: [&str; 4] =
    ["schema", "schema_modules", "schema_patches", "node_levels"];

const TABLES: [(&str, &str); 3] = [
    (
        "schema",
        "CREATE TABLE schema(\
         id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, \
         version INTEGER NOT NULL, \
         updated_at DATETIME NOT NULL, \
         UNIQUE(version))",
    ),
    (
        "schema_modules",
        "CREATE TABLE schema_modules(module TEXT PRIMARY KEY NOT NULL, version INTEGER NOT NULL)",
    ),
    (
        "schema_patches",
        "CREATE TABLE schema_patches(digest TEXT PRIMARY KEY NOT NULL, run_at DATETIME NOT NULL)",
    ),
];

/// Makes the tables that are missing.
pub(super) async fn ensure_tables(tx: &mut dyn Tx) -> Result<(), Error> {
    for (name, sql) in TABLES {
        let there = has_table(tx, name).await.within("failed to check if schema table is there")?;
        if !there {
            tx.execute(sql, params![]).await.within("failed to create schema table")?;
        }
    }
    Ok(())
}

/// The version of a database: that of the last row, 0 where there is none.
pub(super) async fn current(tx: &mut dyn Tx) -> Result<u64, Error> {
    let versions: Vec<u64> =
        rows(tx, "SELECT version FROM schema ORDER BY version", params![]).await?;
    let holes = versions.iter().zip(versions.iter().skip(1));
    for (from, to) in holes {
        if *to != from + 1 {
            return Err(Error::MissingUpdates { from: *from, to: *to });
        }
    }
    Ok(versions.last().copied().unwrap_or(0))
}

/// Notes that a version was reached.
pub(super) async fn insert(tx: &mut dyn Tx, version: u64) -> Result<(), Error> {
    let sql = "INSERT INTO schema(version, updated_at) VALUES (?, strftime('%s'))";
    let version_ = i64::try_from(version).unwrap_or(i64::MAX);
    let done = tx.execute(sql, params![version_]).await;
    done.map(drop).within(format!("failed to insert version {version}"))
}

/// How far each module is.
pub(super) struct Versions {
    versions: BTreeMap<String, u64>,
    /// As they are in the table.
    stored: BTreeMap<String, u64>,
}

impl Versions {
    /// The modules' versions in a database that has `current` updates in all. Where no row tells of
    /// any: the updates that a `fresh` schema stands for are the first ones of the modules in their
    /// order; all others, of before there were modules, are the first module's.
    pub(super) async fn read(
        tx: &mut dyn Tx,
        modules: &[Module],
        current: u64,
        fresh: bool,
    ) -> Result<Versions, Error> {
        let stored: Vec<(String, u64)> =
            rows(tx, "SELECT module, version FROM schema_modules", params![]).await?;
        let stored: BTreeMap<String, u64> = stored.into_iter().collect();
        let mut versions = stored.clone();
        if stored.is_empty() {
            let mut left = current;
            for module in modules {
                let part = if fresh { left.min(module.len()) } else { left };
                versions.insert(module.name().to_owned(), part);
                left -= part;
            }
        }
        for (module, version) in &versions {
            let known = modules.iter().find(|known| known.name() == module);
            let expected = known.map_or(0, Module::len);
            if *version > expected {
                let (module, current) = (module.clone(), *version);
                return Err(Error::ModuleMoreRecent { module, current, expected });
            }
        }
        let sum: u64 = versions.values().sum();
        if sum != current {
            return Err(Error::other(format!(
                "the tables schema ({current} updates) and schema_modules ({sum}) do not agree: \
                 something else than this engine wrote to one of them"
            )));
        }
        Ok(Versions { versions, stored })
    }

    pub(super) fn of(&self, module: &str) -> u64 {
        self.versions.get(module).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, module: &str, version: u64) {
        self.versions.insert(module.to_owned(), version);
    }

    /// Writes what differs from the table.
    pub(super) async fn write(&self, tx: &mut dyn Tx) -> Result<(), Error> {
        let sql = "INSERT INTO schema_modules(module, version) VALUES (?, ?) \
                   ON CONFLICT(module) DO UPDATE SET version = excluded.version";
        for (module, version) in &self.versions {
            if self.stored.get(module) != Some(version) {
                let version = i64::try_from(*version).unwrap_or(i64::MAX);
                tx.execute(sql, params![module, version]).await?;
            }
        }
        Ok(())
    }
}
