//! EnsureSchema where its database fails, and what it says then.

use std::sync::Arc;
use std::time::Duration;

use quire::cluster::{
    Cluster, Database, DatabaseErrorKind, Error, Local, Opener, RETRIES_MAX, RETRY_DELAY, Schema,
    SchemaProvider, StandardSchema, Status, Update, count,
};
use quire::disk::{Disk, FakeDisk, Fault};
use quire::driver::{MemoryStore, Options, ServerStore, Value};
use quire::params;

use crate::support::{
    Awake, Fixed, On, Scripted, add_node, builder, dir, execute, migrate, module, nodes, tables,
};

/// A cluster at level (2, 1) over a database whose calls can be made to fail.
fn over(database: &Arc<Scripted>) -> (Cluster, Arc<Awake>) {
    let sleeper = Arc::new(Awake::default());
    let database: Arc<dyn Database> = database.clone();
    (builder().sleeper(sleeper.clone()).database(database).build(), sleeper)
}

async fn ensure(database: &Arc<Scripted>) -> Result<Status, String> {
    let ensured = over(database).0.ensure_schema("1", dir()).await;
    ensured.map_err(|error| error.to_string())
}

/// At schema 2, with one row.
async fn with_row(address: &str, level: (u64, u64)) -> Arc<Scripted> {
    let database = Arc::new(Scripted::new());
    migrate(&*database).await;
    add_node(&*database, address, level).await;
    database
}

struct Failing;

impl Opener for Failing {
    fn open(
        &self,
        _: Arc<dyn ServerStore>,
        _: Options,
        _: &str,
    ) -> Result<Arc<dyn Database>, Error> {
        Err(Error::other("boom"))
    }
}

/// Opening asks nobody, may be done again, and leaves the old handle where it fails.
#[tokio::test]
async fn open() {
    let store = || Arc::new(MemoryStore::default());
    let cluster = builder().build();
    assert!(matches!(cluster.database(), Err(Error::NotOpen)));
    assert!(matches!(cluster.ensure_schema("1", dir()).await, Err(Error::NotOpen)));
    cluster.open(store(), Options::default()).unwrap();
    let first = cluster.database().unwrap();
    cluster.open(store(), Options::default()).unwrap();
    assert!(!Arc::ptr_eq(&first, &cluster.database().unwrap()));

    let first: Arc<dyn Database> = Arc::new(Scripted::new());
    let failing = builder().opener(Arc::new(Failing)).database(first.clone()).build();
    let error = failing.open(store(), Options::default()).unwrap_err().to_string();
    assert_eq!(error, "cannot open cluster database: boom");
    assert!(Arc::ptr_eq(&first, &failing.database().unwrap()));
    let error = builder().database_name("../x").build().open(store(), Options::default());
    assert!(error.unwrap_err().to_string().starts_with("cannot open cluster database: "));
}

#[tokio::test]
async fn the_provider() {
    let schema = StandardSchema.schema().unwrap();
    assert_eq!(schema.len(), 2);
    assert_eq!(Cluster::builder().build().schema_version().unwrap(), 2);
    let with_app = Cluster::builder().module(module("app", 3)).build();
    assert_eq!(with_app.schema_version().unwrap(), 5);
    let twice = Cluster::builder().module(module("quire", 1)).build();
    assert!(twice.schema_version().is_err());
}

/// The order of what happens on a fresh database: all of the migration in one transaction, then
/// the first row in another.
#[tokio::test]
async fn the_order_of_calls() {
    let database = Arc::new(Scripted::new());
    assert_eq!(ensure(&database).await, Ok(Status::Ready));
    let calls: Vec<String> = database.calls();
    let marks = [
        "BEGIN",
        "CREATE TABLE schema(",
        "SELECT version FROM schema",
        "CREATE TABLE config",
        "INSERT INTO schema(",
        "COMMIT",
        "BEGIN",
        "INSERT INTO nodes",
        "COMMIT",
    ];
    let mut rest = calls.iter();
    for mark in marks {
        assert!(rest.any(|call| call.starts_with(mark)), "{mark} in {calls:#?}");
    }
    assert!(rest.next().is_none());
    assert_eq!(database.count("BEGIN"), 2);
    assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"]);
}

/// The original retried what would never succeed, eleven times, and took what might for success.
#[tokio::test]
async fn only_transient_errors_are_retried() {
    use DatabaseErrorKind::{Busy, Lost, NoLeader, OutcomeUnknown, Refused};
    for (kind, calls) in
        [(Refused, 1), (Busy, 11), (NoLeader, 11), (Lost, 11), (OutcomeUnknown, 11)]
    {
        let database = Arc::new(Scripted::new());
        database.fail(On::Begin, 100, kind, "bad");
        let (cluster, sleeper) = over(&database);
        let error = cluster.ensure_schema("1", dir()).await.unwrap_err();
        assert_eq!(error.to_string(), "failed to begin: bad");
        assert_eq!(error.is_retries(), calls > 1, "{kind:?}");
        assert_eq!(database.count("BEGIN"), calls, "{kind:?}");
        assert_eq!(sleeper.pauses(), vec![Duration::from_millis(250); calls - 1]);
    }
    assert_eq!((RETRIES_MAX, RETRY_DELAY), (10, Duration::from_millis(250)));
    // One that goes away is no error at all.
    let database = Arc::new(Scripted::new());
    database.fail(On::Sql("CREATE TABLE nodes"), 3, Lost, "the leader went away");
    database.fail(On::Commit, 2, Busy, "database is locked");
    assert_eq!(ensure(&database).await, Ok(Status::Ready));
    assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"]);
}

/// A commit whose answer is lost: whether it was executed or not, the next try finds out.
#[tokio::test]
async fn an_unknown_outcome_is_resolved() {
    for on in [On::Commit, On::Committed] {
        for after in [0, 1] {
            let database = Arc::new(Scripted::new());
            if after == 1 {
                migrate(&*database).await;
            }
            database.fail(on, 1, DatabaseErrorKind::OutcomeUnknown, "no answer");
            assert_eq!(ensure(&database).await, Ok(Status::Ready), "{on:?} {after}");
            assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"], "{on:?} {after}");
            let made = database.count("CREATE TABLE config");
            assert_eq!(made, if on == On::Commit && after == 0 { 2 } else { 1 }, "{on:?} {after}");
        }
    }
}

#[tokio::test]
async fn the_initial_row_fails() {
    for (on, expected) in
        [(On::Sql("INSERT INTO nodes"), "boom"), (On::Sql("INSERT INTO node_levels"), "boom")]
    {
        let database = Arc::new(Scripted::new());
        database.refuse(on, "boom");
        assert_eq!(ensure(&database).await, Err(expected.to_owned()));
        assert!(nodes(&*database).await.is_empty());
        // The original was stuck for good here: the schema was there, and no row.
        assert_eq!(ensure(&database).await, Ok(Status::Ready));
        assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"]);
    }
    let database = Arc::new(Scripted::new());
    database.refuse(On::Sql("INSERT INTO nodes"), "boom");
    database.refuse(On::Rollback, "worse");
    let merged = "boom; and the rollback failed: worse".to_owned();
    assert_eq!(ensure(&database).await, Err(merged));
    // The second begin, the second commit.
    for on in [On::Begin, On::Commit] {
        let database = Arc::new(Scripted::new());
        migrate(&*database).await;
        // The first transaction only looks; the fault is for the one after it.
        database.script.skip_one(on, "boom");
        assert_eq!(ensure(&database).await, Err("boom".to_owned()), "{on:?}");
        assert!(nodes(&*database).await.is_empty());
    }
}

#[tokio::test]
async fn the_check_fails() {
    let unclustered = "WHERE address = ?";
    let count = "failed to fetch unclustered nodes count: ";
    let (update, versions) =
        ("failed to update node version info: ", "failed to fetch current nodes versions: ");
    let failing: [(On, String); 4] = [
        (On::Sql(unclustered), format!("{count}boom")),
        (On::Sql("WHERE nodes.address = ?"), format!("{update}boom")),
        (On::Sql("UPDATE nodes SET schema"), format!("{update}boom")),
        (On::Sql("WHERE nodes.pending = 0"), format!("{versions}boom")),
    ];
    for (on, expected) in failing {
        let database = with_row("1", (1, 0)).await;
        database.refuse(on, "boom");
        assert_eq!(ensure(&database).await, Err(expected));
        assert_eq!(nodes(&*database).await, ["1|1|0"], "rolled back");
    }
    let int = |n: i64| vec![Value::Integer(n)];
    let text = || vec![Value::from("x")];
    let telling: [(&'static str, Vec<Vec<Value>>, String); 8] = [
        (unclustered, vec![], format!("{count}no rows returned")),
        (unclustered, vec![text()], format!("{count}failed to scan count column")),
        (unclustered, vec![int(-1)], format!("{count}failed to scan count column")),
        (unclustered, vec![int(0), int(0)], format!("{count}more than one row returned")),
        (unclustered, vec![int(2)], "found more than one unclustered nodes".to_owned()),
        (
            "UPDATE nodes SET schema",
            vec![int(0), int(0)],
            format!("{update}updated 2 rows instead of 1"),
        ),
        ("UPDATE nodes SET schema", vec![], format!("{update}updated 0 rows instead of 1")),
        ("WHERE nodes.address = ?", vec![], format!("{update}updated 0 rows instead of 1")),
    ];
    for (sql, rows, expected) in telling {
        let database = with_row("1", (1, 0)).await;
        database.answer(sql, rows);
        assert_eq!(ensure(&database).await, Err(expected));
        assert_eq!(nodes(&*database).await, ["1|1|0"], "rolled back");
    }
    // A row that is no level.
    let database = with_row("1", (2, 1)).await;
    database.answer("WHERE nodes.pending = 0", vec![text()]);
    assert!(ensure(&database).await.unwrap_err().starts_with(versions));
    // This address is nobody's.
    let database = with_row("2", (2, 1)).await;
    assert_eq!(ensure(&database).await, Err(format!("{update}updated 0 rows instead of 1")));
}

#[tokio::test]
async fn check_with_current_equal_zero() {
    let database = Arc::new(Scripted::new());
    ensure(&database).await.unwrap();
    let before_commit: Vec<String> =
        database.calls().into_iter().take_while(|call| call != "COMMIT").collect();
    let asks = |call: &&String| call.contains("FROM nodes") || call.contains("UPDATE nodes");
    assert_eq!(before_commit.iter().find(asks), None, "nobody is asked");
}

/// A database of one node that is not clustered, in a file, with a table of its own.
struct Alone {
    _dir: tempfile::TempDir,
    database: Arc<Scripted>,
    disk: FakeDisk,
    path: std::path::PathBuf,
}

async fn alone() -> Alone {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("global.db");
    let local = Local::open(&path, Duration::ZERO).unwrap();
    migrate(&local).await;
    add_node(&local, "0.0.0.0", (2, 1)).await;
    execute(&local, "CREATE TABLE precious(x); INSERT INTO precious VALUES ('kept')").await;
    let database = Arc::new(Scripted::over(Arc::new(local)));
    Alone { _dir: dir, database, disk: FakeDisk::new(), path }
}

impl Alone {
    async fn ensure(&self, updates: u64) -> Result<Status, String> {
        let mut schema = StandardSchema.schema().unwrap();
        for at in 0..updates {
            schema.add(Update::sql("more", &format!("CREATE TABLE more_{at}(x)")));
        }
        let database: Arc<dyn Database> = self.database.clone();
        let cluster = builder()
            .schema_provider(Arc::new(Fixed(schema)))
            .file_system(Arc::new(self.disk.clone()))
            .database(database)
            .build();
        cluster.ensure_schema("1", dir()).await.map_err(|error| error.to_string())
    }

    /// The tables of the copy.
    fn copied(&self) -> Vec<String> {
        let path = self.path.with_extension("copied");
        std::fs::write(&path, self.disk.bytes("global.bak").unwrap()).unwrap();
        let copy = rusqlite::Connection::open(&path).unwrap();
        let check: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                   ORDER BY name";
        let mut tables = copy.prepare(sql).unwrap();
        tables.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }
}

/// The copy is the database of before; an older copy is replaced; nothing is copied
/// where nothing changes.
#[tokio::test]
async fn backup() {
    let alone = alone().await;
    assert_eq!(alone.ensure(0).await, Ok(Status::Ready));
    let before = std::fs::read(&alone.path).unwrap();
    assert!(!alone.disk.exists("global.bak").unwrap());
    assert_eq!(alone.ensure(2).await, Ok(Status::Ready));
    // But for SQLite's own counters in the header.
    let copy = alone.disk.bytes("global.bak").unwrap();
    assert!(copy.len() == before.len() && copy[100..] == before[100..]);
    assert_eq!(alone.database.count("COPY"), 1, "once for both updates");
    assert!(!alone.copied().contains(&"more_0".to_owned()), "of before");
    assert!(alone.copied().contains(&"precious".to_owned()));
    assert_eq!(alone.ensure(3).await, Ok(Status::Ready));
    assert!(alone.copied().contains(&"more_1".to_owned()), "replaced");
    assert!(!alone.disk.exists("global.bak.new").unwrap());
}

#[tokio::test]
async fn backup_before_a_patch_and_before_a_fresh_schema() {
    let mut alone = alone().await;
    quire::disk::replace(&alone.disk, "patch.global.sql", b"DROP TABLE precious").unwrap();
    assert_eq!(alone.ensure(0).await, Ok(Status::Ready));
    assert!(alone.copied().contains(&"precious".to_owned()));
    assert!(!tables(&*alone.database).await.contains(&"precious".to_owned()));
    // An application's database of before the gate.
    let path = alone.path.with_extension("old");
    let old = Local::open(&path, Duration::ZERO).unwrap();
    execute(&old, "CREATE TABLE older(x)").await;
    (alone.database, alone.disk) = (Arc::new(Scripted::over(Arc::new(old))), FakeDisk::new());
    assert_eq!(alone.ensure(0).await, Ok(Status::Ready));
    assert_eq!(alone.copied(), ["older"]);
}

#[tokio::test]
async fn nothing_is_copied_where_it_is_fresh_or_clustered() {
    let fresh = Arc::new(Scripted::new());
    ensure(&fresh).await.unwrap();
    assert_eq!(fresh.count("COPY"), 0);
    let clustered = with_row("1", (2, 1)).await;
    let database: Arc<dyn Database> = clustered.clone();
    let more = builder().module(module("app", 1)).database(database).build();
    assert_eq!(more.ensure_schema("1", dir()).await, Ok(Status::Ready));
    assert_eq!(clustered.count("COPY"), 0);
}

#[tokio::test]
async fn the_hook_fails() {
    let failed = "failed to execute hook (version 2): ";
    let count = format!("{failed}failed to fetch unclustered nodes count: ");
    for (sql, rows, expected) in [
        ("WHERE address = ?", vec![], format!("{count}no rows returned")),
        ("WHERE address = ?", vec![params!["x"]], format!("{count}failed to scan count column")),
        (
            "WHERE address = ?",
            vec![params![1], params![1]],
            format!("{count}more than one row returned"),
        ),
        (
            "WHERE address = ?",
            vec![params![2]],
            format!("{failed}found more than one unclustered nodes"),
        ),
    ] {
        let alone = alone().await;
        // The check asks the same before: its answer is the true one.
        alone.database.script.skip_one_answer(sql, rows);
        assert_eq!(alone.ensure(1).await, Err(expected));
        assert!(!tables(&*alone.database).await.contains(&"more_0".to_owned()));
    }
    let fetch = alone().await;
    fetch.database.script.skip_one(On::Sql("WHERE address = ?"), "boom");
    assert_eq!(fetch.ensure(1).await, Err(format!("{count}boom")));
    let backup = format!("{failed}failed to backup global database: ");
    let copy = alone().await;
    copy.database.refuse(On::Copy, "boom");
    assert_eq!(copy.ensure(1).await, Err(format!("{backup}boom")));
    assert!(!tables(&*copy.database).await.contains(&"more_0".to_owned()));
    // Each call to the disk fails once: no change without a copy.
    for call in 0..5 {
        let alone = alone().await;
        alone.disk.fail_call(call, Fault::Io);
        let error = alone.ensure(1).await.unwrap_err();
        assert!(error.starts_with(&backup), "call {call}: {error}");
        assert!(!tables(&*alone.database).await.contains(&"more_0".to_owned()));
        assert_eq!(alone.ensure(1).await, Ok(Status::Ready));
    }
    let plain = alone().await;
    plain.ensure(1).await.unwrap();
    assert_eq!(plain.disk.calls(), 5, "{:?}", plain.disk.transcript());
}

/// Transactions: committed, rolled back, and their errors.
#[tokio::test]
async fn transactions() {
    use DatabaseErrorKind::{Busy, OutcomeUnknown};
    let database = with_row("1", (2, 1)).await;
    let (cluster, sleeper) = over(&database);
    let insert = "INSERT INTO config(key, value) VALUES ('k', 'v')";
    let keys = async || crate::support::select(&*database, "SELECT key FROM config").await.len();
    let put = async || {
        let work =
            |mut tx: quire::cluster::Work| async move { Ok(tx.execute(insert, vec![]).await?) };
        cluster.transaction(work).await.map_err(|error| error.to_string())
    };
    for (on, text) in [(On::Begin, "begin"), (On::Sql(insert), "func"), (On::Commit, "commit")] {
        database.refuse(on, text);
        assert_eq!(put().await, Err(text.to_owned()));
        assert_eq!((keys().await, sleeper.pauses().len()), (0, 0));
    }
    database.refuse(On::Sql(insert), "func");
    database.refuse(On::Rollback, "rollback");
    assert_eq!(put().await, Err("func; and the rollback failed: rollback".to_owned()));
    database.fail(On::Commit, 1, Busy, "database is locked");
    assert_eq!(put().await, Ok(1));
    assert_eq!((keys().await, sleeper.pauses().len()), (1, 1));
    execute(&*database, "DELETE FROM config").await;
    // Nobody knows what the closure does: it is not run again.
    database.fail(On::Committed, 1, OutcomeUnknown, "no answer");
    assert_eq!(put().await, Err("no answer".to_owned()));
    assert_eq!((keys().await, sleeper.pauses().len()), (1, 1));
    // A closure that keeps its transaction has not committed it.
    let kept = Arc::new(parking_lot::Mutex::new(None));
    let keep = |tx| {
        *kept.lock() = Some(tx);
        async { Ok(()) }
    };
    let error = cluster.transaction(keep).await.unwrap_err().to_string();
    assert!(error.starts_with("a closure returned and kept its transaction"), "{error}");
    kept.lock().take();
}

/// Dropped in the middle of a pause, nothing is tried again.
#[tokio::test(start_paused = true)]
async fn what_is_cancelled_is_not_retried() {
    let database = Arc::new(Scripted::new());
    database.fail(On::Begin, 100, DatabaseErrorKind::Busy, "busy");
    let shared: Arc<dyn Database> = database.clone();
    let cluster = builder().sleeper(Arc::new(quire::cluster::RealSleeper)).database(shared).build();
    let ensure = cluster.ensure_schema("1", dir());
    assert!(tokio::time::timeout(Duration::from_millis(600), ensure).await.is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(database.count("BEGIN"), 3);
}

#[tokio::test]
async fn the_exclusive_lock() {
    let database = with_row("1", (2, 1)).await;
    let cluster = over(&database).0;
    let exclusive = cluster.enter_exclusive().await.unwrap();
    let other = cluster.clone();
    let waits = tokio::spawn(async move { other.transaction(|_| async { Ok(()) }).await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waits.is_finished());
    let rows = exclusive
        .exit(|mut tx| async move { count(&mut *tx, "SELECT count(*) FROM nodes", vec![]).await })
        .await;
    assert_eq!(rows, Ok(1));
    waits.await.unwrap().unwrap();
}

/// The original's lock was taken after all by whoever had given up waiting for it, for ever.
#[tokio::test(start_paused = true)]
async fn the_exclusive_lock_in_vain() {
    let database = with_row("1", (2, 1)).await;
    let cluster = over(&database).0;
    let (other, (held, release)) = (cluster.clone(), tokio::sync::oneshot::channel::<()>());
    let release = Arc::new(parking_lot::Mutex::new(Some(release)));
    let busy = tokio::spawn(async move {
        let work = |_| {
            let release = release.lock().take();
            async move {
                if let Some(release) = release {
                    let _ = release.await;
                }
                Ok(())
            }
        };
        other.transaction(work).await
    });
    while database.count("BEGIN") < 3 {
        tokio::task::yield_now().await;
    }
    let error = cluster.enter_exclusive().await.err().unwrap();
    assert_eq!(error.to_string(), "timeout (20s)");
    held.send(()).unwrap();
    busy.await.unwrap().unwrap();
    cluster.transaction(|_| async { Ok(()) }).await.unwrap();
}

/// A schema without the table `nodes` cannot stand behind the gate.
#[tokio::test]
async fn a_schema_without_nodes() {
    let database = Arc::new(Scripted::new());
    let schema = Schema::of([module("app", 1)]).unwrap();
    schema.ensure(&*database).await.unwrap();
    let shared: Arc<dyn Database> = database.clone();
    let cluster = builder().schema_provider(Arc::new(Fixed(schema))).database(shared).build();
    let error = cluster.ensure_schema("1", dir()).await.unwrap_err().to_string();
    assert_eq!(error, "failed to fetch unclustered nodes count: no such table: nodes");
}
