//! EnsureSchema on a replicated cluster of three nodes, and the same on an SQLite file: what other
//! nodes' levels mean, and how nodes get their rows.

use std::path::PathBuf;
use std::sync::Arc;

use quire::base::DatabaseName;
use quire::cluster::{
    BasicApiExtensions, Cluster, Database, Error, Extensions, Level, Local, Registration,
    Replicated, Status,
};
use quire::disk::{Disk, FakeDisk};

use crate::support::{add_node, builder, dir, execute, migrate, module, nodes, select, tables};
use crate::trio::{Trio, until};

const BEHIND: &str = "this node's version is behind, please upgrade";
const INCONSISTENT: &str = "nodes have inconsistent versions";

/// A database of the trio, and one in memory.
fn both(trio: &Trio, name: &str) -> [Arc<dyn Database>; 2] {
    let replicated = Replicated::new(trio.client(), name);
    [Arc::new(replicated), Arc::new(Local::in_memory().unwrap())]
}

async fn ensure(database: &Arc<dyn Database>, address: &str) -> Result<Status, String> {
    let cluster = builder().database(database.clone()).build();
    cluster.ensure_schema(address, dir()).await.map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn not_clustered() {
    let trio = Trio::start().await;
    for database in both(&trio, "alone") {
        assert_eq!(ensure(&database, "1.2.3.4:666").await, Ok(Status::Ready));
        assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"]);
        assert_eq!(select(&*database, "SELECT id, name, pending FROM nodes").await, ["1|none|0"]);
        assert_eq!(ensure(&database, "1.2.3.4:666").await, Ok(Status::Ready));
        assert_eq!(nodes(&*database).await, ["0.0.0.0|2|1"]);
    }
    trio.stop_all().await;
}

#[tokio::test(start_paused = true)]
async fn cluster_not_upgradable() {
    let trio = Trio::start().await;
    let behind = Err(BEHIND.to_owned());
    for (at, (other, expected)) in [
        ((2, 1), Ok(Status::Ready)),
        ((1, 1), Ok(Status::Waiting(1))),
        ((2, 0), Ok(Status::Waiting(1))),
        ((3, 1), behind.clone()),
        ((2, 2), behind),
        ((3, 0), Err(INCONSISTENT.to_owned())),
    ]
    .into_iter()
    .enumerate()
    {
        for database in both(&trio, &format!("d{at}")) {
            migrate(&*database).await;
            add_node(&*database, "1", (2, 1)).await;
            add_node(&*database, "2", other).await;
            assert_eq!(ensure(&database, "1").await, expected, "{other:?}");
        }
    }
    trio.stop_all().await;
}

/// The own level is published whether or not the gate is open, nobody else's is touched, and
/// while it is closed nothing is migrated. (The second case of the original's test never ran.)
#[tokio::test(start_paused = true)]
async fn update_node_version() {
    let trio = Trio::start().await;
    for (at, (other, expected)) in
        [((2, 1), Ok(Status::Ready)), ((1, 0), Ok(Status::Waiting(1)))].into_iter().enumerate()
    {
        for database in both(&trio, &format!("u{at}")) {
            // At schema 1 of 2.
            let mut first =
                quire::cluster::Schema::of([quire::cluster::standard_module().unwrap()]);
            first.as_mut().unwrap().trim(1);
            first.unwrap().ensure(&*database).await.unwrap();
            add_node(&*database, "1", (1, 0)).await;
            add_node(&*database, "2", other).await;
            assert_eq!(ensure(&database, "1").await, expected);
            let (schema, api) = other;
            assert_eq!(nodes(&*database).await, ["1|2|1".into(), format!("2|{schema}|{api}")]);
            let migrated = tables(&*database).await.contains(&"services".to_owned());
            assert_eq!(migrated, expected == Ok(Status::Ready));
            let versions = select(&*database, "SELECT max(version) FROM schema").await;
            assert_eq!(versions, [if migrated { "2" } else { "1" }]);
            // Again: nothing is written, or nodes that wait would wake each other.
            let before = digest(&trio, &format!("u{at}"));
            assert_eq!(ensure(&database, "1").await, expected);
            assert_eq!(digest(&trio, &format!("u{at}")), before);
        }
    }
    trio.stop_all().await;
}

/// The versions of a database, by node.
fn digest(trio: &Trio, name: &str) -> Option<u64> {
    let name = DatabaseName::new(name).unwrap();
    let applied = |node: &quire::node::Node| {
        node.member().catalog().by_name(&name).map(|store| store.applied().version)
    };
    trio.nodes.values().filter_map(applied).max()
}

/// On an error nothing of this node is written: who is behind stays as it was.
#[tokio::test]
async fn an_error_publishes_nothing() {
    let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
    migrate(&*database).await;
    add_node(&*database, "1", (1, 0)).await;
    add_node(&*database, "2", (3, 1)).await;
    assert_eq!(ensure(&database, "1").await, Err(BEHIND.to_owned()));
    assert_eq!(nodes(&*database).await, ["1|1|0", "2|3|1"]);
}

/// One behind, one ahead, one that is neither: whatever the order of the rows, and whatever
/// pending rows say.
#[tokio::test]
async fn the_order_of_rows_decides_nothing() {
    let (behind, ahead, neither) = (("b", (1, 1)), ("a", (3, 1)), ("n", (3, 0)));
    for (rows, expected) in [
        (vec![behind, ahead], BEHIND),
        (vec![ahead, behind], BEHIND),
        (vec![behind, ahead, neither], INCONSISTENT),
        (vec![neither, behind, ahead], INCONSISTENT),
        (vec![ahead, neither, behind], INCONSISTENT),
        (vec![behind, neither], INCONSISTENT),
    ] {
        for at in 0..=rows.len() {
            let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
            migrate(&*database).await;
            let mut rows = rows.clone();
            rows.insert(at, ("own", (2, 1)));
            for (address, level) in rows {
                add_node(&*database, address, level).await;
            }
            assert_eq!(ensure(&database, "own").await, Err(expected.to_owned()));
            execute(&*database, "UPDATE nodes SET pending = 1 WHERE address <> 'own'").await;
            assert_eq!(ensure(&database, "own").await, Ok(Status::Ready));
        }
    }
}

fn registered(id: u64) -> Registration {
    Registration { id, name: format!("n{id}"), address: format!("a{id}") }
}

/// A node of a cluster, with `app` updates of an application's.
fn node(database: &Arc<dyn Database>, own: Registration, app: u64) -> Cluster {
    builder().module(module("app", app)).registration(own).database(database.clone()).build()
}

async fn join(database: &Arc<dyn Database>, own: Registration, app: u64) -> Result<Status, String> {
    let cluster = node(database, own, app);
    cluster.ensure_schema("", dir()).await.map_err(|error| error.to_string())
}

async fn rows(database: &Arc<dyn Database>) -> Vec<String> {
    let sql = "SELECT id, name, address, schema, api_extensions, pending FROM nodes ORDER BY id";
    select(&**database, sql).await
}

/// A cluster from its first node to its first upgrade, node by node (A.9).
#[tokio::test(start_paused = true)]
async fn a_rolling_upgrade() {
    let trio = Trio::start().await;
    for database in both(&trio, "rolling") {
        for id in 1..=3 {
            assert_eq!(join(&database, registered(id), 0).await, Ok(Status::Ready));
        }
        let all = ["1|n1|a1|2|1|0", "2|n2|a2|2|1|0", "3|n3|a3|2|1|0"];
        assert_eq!(rows(&database).await, all);
        let version = async || select(&*database, "SELECT max(version) FROM schema").await;
        assert_eq!(join(&database, registered(3), 1).await, Ok(Status::Waiting(2)));
        assert_eq!(join(&database, registered(2), 1).await, Ok(Status::Waiting(1)));
        // An old program does not start any more.
        assert_eq!(join(&database, registered(2), 0).await, Err(BEHIND.to_owned()));
        assert_eq!(join(&database, registered(1), 0).await, Err(BEHIND.to_owned()));
        assert_eq!(version().await, ["2"]);
        assert_eq!(rows(&database).await, [all[0], "2|n2|a2|3|1|0", "3|n3|a3|3|1|0"]);
        assert_eq!(join(&database, registered(1), 1).await, Ok(Status::Ready));
        assert_eq!(version().await, ["3"]);
        for id in [2, 3] {
            assert_eq!(join(&database, registered(id), 1).await, Ok(Status::Ready));
        }
        assert_eq!(select(&*database, "SELECT x FROM app_1").await, ["1"], "once");
    }
    trio.stop_all().await;
}

/// The join gate's refusals, and a node that comes back elsewhere.
#[tokio::test]
async fn the_join_gate() {
    let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
    assert_eq!(join(&database, registered(1), 1).await, Ok(Status::Ready));
    let like = |id, name: &str, address: &str| Registration {
        id,
        name: name.to_owned(),
        address: address.to_owned(),
    };
    for (own, app, expected) in [
        (like(2, "n1", "a2"), 1, "cluster already has node with name n1"),
        (like(2, "n2", "a1"), 1, "cluster already has node with address a1"),
        (like(2, "", "a2"), 1, "node name must not be empty"),
        (like(2, "n2", ""), 1, "node address must not be empty"),
        (
            registered(2),
            2,
            "schema version mismatch: cluster has 3 (app 1, quire 2), \
             expects 4 (app 2, quire 2)",
        ),
    ] {
        assert_eq!(join(&database, own, app).await, Err(expected.to_owned()));
        assert_eq!(rows(&database).await.len(), 1);
    }
    let api = builder()
        .api_extensions(Arc::new(BasicApiExtensions(2)))
        .module(module("app", 1))
        .registration(registered(2))
        .database(database.clone())
        .build();
    let error = api.ensure_schema("", dir()).await.unwrap_err().to_string();
    assert_eq!(error, "api version mismatch: cluster has 1, expects 2");
    assert_eq!(join(&database, registered(2), 1).await, Ok(Status::Ready));
    // Another address, another name; not those of another node.
    assert_eq!(join(&database, like(2, "n2", "moved"), 1).await, Ok(Status::Ready));
    assert_eq!(join(&database, like(2, "renamed", "moved"), 1).await, Ok(Status::Ready));
    let taken = join(&database, like(2, "renamed", "a1"), 1).await;
    assert_eq!(taken, Err("cluster already has node with address a1".to_owned()));
    assert_eq!(rows(&database).await, ["1|n1|a1|3|1|0", "2|renamed|moved|3|1|0"]);
    // Pending until its gate has let it through.
    execute(&*database, "UPDATE nodes SET pending = 1 WHERE id = 2").await;
    assert_eq!(join(&database, like(2, "renamed", "moved"), 1).await, Ok(Status::Ready));
    assert_eq!(rows(&database).await[1], "2|renamed|moved|3|1|0");
}

/// A database of one node that is not clustered: others are refused, that one may give itself a
/// name and is clustered.
#[tokio::test]
async fn clustering_is_enabled_by_the_first_node() {
    let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
    assert_eq!(ensure(&database, "").await, Ok(Status::Ready));
    let refused = Err("clustering not enabled".to_owned());
    assert_eq!(join(&database, registered(2), 0).await, refused);
    assert_eq!(join(&database, registered(1), 0).await, Ok(Status::Ready));
    assert_eq!(join(&database, registered(2), 0).await, Ok(Status::Ready));
    assert_eq!(rows(&database).await, ["1|n1|a1|2|1|0", "2|n2|a2|2|1|0"]);
}

/// Two nodes arrive together, on a fresh database and at the end of an upgrade: one migrates.
#[tokio::test(start_paused = true)]
async fn two_nodes_migrate_together() {
    let trio = Trio::start().await;
    for (at, before) in [0_u64, 2].into_iter().enumerate() {
        let database: Arc<dyn Database> =
            Arc::new(Replicated::new(trio.client(), &format!("together{at}")));
        if before > 0 {
            for id in 1..=2 {
                assert_eq!(join(&database, registered(id), 0).await, Ok(Status::Ready));
            }
            // One of them has published its level already.
            assert_eq!(join(&database, registered(1), 2).await, Ok(Status::Waiting(1)));
        }
        let (one, other) =
            tokio::join!(join(&database, registered(1), 2), join(&database, registered(2), 2),);
        let late = [Ok(Status::Ready), Ok(Status::Waiting(1))];
        assert!(late.contains(&one) && other == Ok(Status::Ready), "{one:?} {other:?}");
        let versions = select(&*database, "SELECT version FROM schema").await;
        assert_eq!(versions, ["2", "3", "4"]);
        assert_eq!(select(&*database, "SELECT x FROM app_1").await, ["1"]);
        assert_eq!(rows(&database).await, ["1|n1|a1|4|1|0", "2|n2|a2|4|1|0"]);
    }
    trio.stop_all().await;
}

/// The copy of a replicated database is what it was before the migration.
#[tokio::test(start_paused = true)]
async fn backup_of_a_replicated_database() {
    let trio = Trio::start().await;
    let database: Arc<dyn Database> = Arc::new(Replicated::new(trio.client(), "backup"));
    assert_eq!(ensure(&database, "").await, Ok(Status::Ready));
    execute(&*database, "CREATE TABLE big(x); INSERT INTO big VALUES (randomblob(500000))").await;
    let mut before = Vec::new();
    let mut pieces = database.copy().await.unwrap();
    while let Some(piece) = pieces.next().await.unwrap() {
        before.extend_from_slice(&piece);
    }
    let disk = FakeDisk::new();
    let cluster = builder()
        .module(module("app", 1))
        .file_system(Arc::new(disk.clone()))
        .database(database.clone())
        .build();
    assert_eq!(cluster.ensure_schema("", dir()).await, Ok(Status::Ready));
    assert!(disk.bytes("global.bak").unwrap() == before);
    assert!(!disk.exists("global.bak.new").unwrap());
    assert!(tables(&*database).await.contains(&"app_1".to_owned()));
    trio.stop_all().await;
}

/// The defaults: files of the machine, the driver.
#[tokio::test(start_paused = true)]
async fn everything_has_a_default() {
    let trio = Trio::start().await;
    let temporary = tempfile::tempdir().unwrap();
    let dir: PathBuf = temporary.path().join("new");
    let dial = trio.options();
    let servers = (1..=3).map(|id| quire::driver::Server::at(crate::trio::address(id)));
    let store = Arc::new(quire::driver::MemoryStore::new(servers.collect()));
    let cluster = Cluster::builder().build();
    cluster.open(store.clone(), dial.clone()).unwrap();
    let id = cluster.start("ignored", &dir, std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!((id, cluster.node_id()), (1, Some(1)));
    std::fs::write(dir.join("patch.global.sql"), "CREATE TABLE patched(x)").unwrap();
    cluster.open(store, dial).unwrap();
    assert_eq!(cluster.ensure_schema("", &dir).await, Ok(Status::Ready));
    assert!(dir.join("global.bak").exists() && !dir.join("patch.global.sql").exists());
    assert!(tables(&*cluster.database().unwrap()).await.contains(&"patched".to_owned()));
    trio.stop_all().await;
}

/// The leader goes away at each statement of a migration in turn: it happens once, wholly.
#[tokio::test(start_paused = true)]
async fn the_leader_changes_during_the_migration() {
    let trio = Trio::start().await;
    for point in 0..12 {
        let name = format!("change{point}");
        let database: Arc<dyn Database> = Arc::new(Replicated::new(trio.client(), &name));
        assert_eq!(join(&database, registered(1), 0).await, Ok(Status::Ready));
        let leader = trio.leader().await;
        let net = trio.net.clone();
        let runs = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = runs.clone();
        let mut app = quire::cluster::Module::new("app");
        app.add(quire::cluster::Update::function("ten steps", move |tx| {
            let (net, first) =
                (net.clone(), count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0);
            Box::pin(async move {
                for step in 0..12 {
                    if first && step == point {
                        net.cut(&crate::trio::address(leader));
                    }
                    let sql = if step == 0 {
                        "CREATE TABLE step(n UNIQUE)".to_owned()
                    } else {
                        format!("INSERT INTO step VALUES ({step})")
                    };
                    tx.execute(&sql, vec![]).await?;
                }
                Ok(())
            })
        }));
        let cluster = builder()
            .sleeper(Arc::new(quire::cluster::RealSleeper))
            .module(app)
            .registration(registered(1))
            .database(database.clone())
            .build();
        assert_eq!(cluster.ensure_schema("", dir()).await, Ok(Status::Ready), "{point}");
        assert!(runs.load(std::sync::atomic::Ordering::SeqCst) >= 2, "{point}: it was run again");
        trio.net.heal();
        assert_eq!(select(&*database, "SELECT count(*) FROM step").await, ["11"], "{point}");
        assert_eq!(select(&*database, "SELECT max(version) FROM schema").await, ["3"]);
        until("one leader that all know", || {
            let known = trio.nodes.values().map(|node| node.member().leading_term().is_ok());
            (known.filter(|leads| *leads).count() == 1).then_some(())
        })
        .await;
    }
    trio.stop_all().await;
}

/// What a level is made of stands beside the pair; a pair that somebody changed alone counts.
#[tokio::test]
async fn side_rows() {
    let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
    let mut extensions = Extensions::new();
    extensions.register(["one", "two"]).unwrap();
    let cluster = |extensions: Extensions| {
        builder()
            .api_extensions(Arc::new(extensions))
            .module(module("app", 1))
            .registration(registered(1))
            .database(database.clone())
            .build()
    };
    let first = cluster(extensions.clone());
    assert_eq!(first.ensure_schema("", dir()).await, Ok(Status::Ready));
    let side = async || select(&*database, "SELECT * FROM node_levels").await;
    assert_eq!(side().await, [r#"1|{"app":1,"quire":2}|["one","two"]"#]);
    let rows = first
        .transaction(|mut tx| async move { quire::cluster::nodes::all(&mut *tx).await })
        .await
        .unwrap();
    assert_eq!(rows[0].level, first.level().unwrap());
    // A node that has as many, but others.
    let mut others = Extensions::new();
    others.register(["one", "three"]).unwrap();
    execute(
        &*database,
        "INSERT INTO nodes(id, name, address, schema, api_extensions) \
        VALUES (2, 'x', 'x', 3, 2)",
    )
    .await;
    execute(
        &*database,
        r#"INSERT INTO node_levels VALUES (2, '{"app":1,"quire":2}', '["one","three"]')"#,
    )
    .await;
    let told = first.ensure_schema("", dir()).await;
    assert_eq!(told, Err(Error::Inconsistent));
    execute(&*database, "UPDATE nodes SET api_extensions = 3 WHERE id = 2").await;
    assert_eq!(first.ensure_schema("", dir()).await, Err(Error::NodeBehind));
    // The side row goes with its node.
    execute(&*database, "DELETE FROM nodes WHERE id = 2").await;
    assert_eq!(side().await.len(), 1);
    assert_eq!(Level::pair(3, 2).compare(&rows[0].level), Some(std::cmp::Ordering::Equal));
    drop(others);
}
