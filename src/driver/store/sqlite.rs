//! The list of servers in a table `servers` of an ordinary SQLite file. The table is go-dqlite's
//! (`address TEXT`, unique) with two columns more; one that go-dqlite made is used as it is, and
//! then keeps addresses only. go-dqlite reads and writes either.
//!
//! *Invariant*: the list is replaced in one transaction.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rusqlite::Connection;

use super::{Role, SERVERS_MAX, Server, ServerStore, blocking};

/// How long another program may hold the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A table of an SQLite file, made when it is not there.
pub struct SqliteStore {
    path: PathBuf,
    /// Opened when it is first used.
    open: Arc<Mutex<Option<Connection>>>,
}

impl SqliteStore {
    /// The store in the file at `path`, or `:memory:`.
    pub fn new(path: impl Into<PathBuf>) -> SqliteStore {
        SqliteStore { path: path.into(), open: Arc::default() }
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (path, open) = (self.path.clone(), self.open.clone());
        blocking(move || {
            let mut open = open.lock();
            let named = |error| io::Error::other(format!("{}: {error}", path.display()));
            if open.is_none() {
                *open = Some(prepare(&path).map_err(named)?);
            }
            match open.as_mut() {
                Some(connection) => work(connection).map_err(named),
                None => Err(io::ErrorKind::NotFound.into()),
            }
        })
        .await
    }
}

fn prepare(path: &std::path::Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS servers(address TEXT, id INTEGER, role INTEGER, \
         UNIQUE(address))",
    )?;
    Ok(connection)
}

/// Whether the table has our two columns.
fn is_ours(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM pragma_table_info('servers') WHERE name IN ('id', 'role')";
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|columns| columns == 2)
}

fn read(connection: &mut Connection) -> rusqlite::Result<Vec<Server>> {
    let columns = if is_ours(connection)? { "address, id, role" } else { "address, NULL, NULL" };
    let sql =
        format!("SELECT {columns} FROM servers WHERE address IS NOT NULL LIMIT {SERVERS_MAX}");
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        // Ids have 64 bits, SQLite's integers a sign.
        let id = row.get::<_, Option<i64>>(1)?.map_or(0, i64::cast_unsigned);
        let role = row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned);
        let role = role.and_then(Role::from_code).unwrap_or(Role::Voter);
        Ok(Server { id, address: row.get(0)?, role })
    })?;
    rows.collect()
}

fn write(connection: &mut Connection, servers: &[Server]) -> rusqlite::Result<()> {
    let ours = is_ours(connection)?;
    let transaction = connection.transaction()?;
    transaction.execute("DELETE FROM servers", [])?;
    for server in servers {
        if ours {
            let (id, role) = (server.id.cast_signed(), server.role.code().cast_signed());
            transaction.execute(
                "INSERT OR REPLACE INTO servers(address, id, role) VALUES (?, ?, ?)",
                rusqlite::params![server.address, id, role],
            )?;
        } else {
            let sql = "INSERT OR REPLACE INTO servers(address) VALUES (?)";
            transaction.execute(sql, [&server.address])?;
        }
    }
    transaction.commit()
}

impl ServerStore for SqliteStore {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        Box::pin(self.with(read))
    }

    fn set(&self, servers: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.with(move |connection| write(connection, &servers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<Server> {
        vec![
            Server { id: u64::MAX, address: "a:1".into(), role: Role::Voter },
            Server { id: 2, address: "b:2".into(), role: Role::Spare },
        ]
    }

    #[tokio::test]
    async fn a_list_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("servers.db");
        let store = SqliteStore::new(&path);
        assert_eq!(store.get().await.unwrap(), []);
        for list in [servers(), servers()[1..].to_vec()] {
            store.set(list.clone()).await.unwrap();
            assert_eq!(SqliteStore::new(&path).get().await.unwrap(), list);
        }
        // As go-dqlite reads it.
        let theirs = Connection::open(&path).unwrap();
        let address: String =
            theirs.query_row("SELECT address FROM main.servers", [], |row| row.get(0)).unwrap();
        assert_eq!(address, "b:2");
    }

    #[tokio::test]
    async fn go_dqlites_table_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("servers.db");
        let theirs = Connection::open(&path).unwrap();
        theirs
            .execute_batch(
                "CREATE TABLE servers (address TEXT, UNIQUE(address)); \
                 INSERT INTO servers(address) VALUES ('a:1'), ('b:2')",
            )
            .unwrap();
        let store = SqliteStore::new(&path);
        assert_eq!(store.get().await.unwrap(), [Server::at("a:1"), Server::at("b:2")]);
        store.set(servers()).await.unwrap();
        assert_eq!(store.get().await.unwrap(), [Server::at("a:1"), Server::at("b:2")]);
    }

    #[tokio::test]
    async fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("servers.db");
        std::fs::write(&path, "no database, but long enough to be looked at".repeat(40)).unwrap();
        let error = SqliteStore::new(&path).get().await.unwrap_err().to_string();
        assert!(error.contains("servers.db"), "{error}");
    }
}
