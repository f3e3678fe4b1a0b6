//! The table `nodes`, and a node's start.

use std::sync::Arc;
use std::time::Duration;

use quire::cluster::nodes::{self, NodeRow};
use quire::cluster::{
    Cluster, Database, DatabaseErrorKind, Error, Gate, Level, Local, NodeStatus, RealSleeper, Work,
    accept, config, set_config,
};

use crate::support::{On, Scripted, add_node, builder, dir, execute, migrate, select};

async fn clustered(rows: &[(&str, (u64, u64))]) -> (Cluster, Arc<dyn Database>) {
    let database: Arc<dyn Database> = Arc::new(Local::in_memory().unwrap());
    migrate(&*database).await;
    for (address, level) in rows {
        add_node(&*database, address, *level).await;
    }
    (builder().database(database.clone()).build(), database)
}

async fn ask<T, F>(cluster: &Cluster, work: impl FnMut(Work) -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, Error>>,
{
    cluster.transaction(work).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn node_operations() {
    let (cluster, database) = clustered(&[]).await;
    let add = async |name: &str, address: &str| {
        ask(&cluster, |mut tx| async move { nodes::add(&mut *tx, name, address, 2, 1).await }).await
    };
    assert_eq!(add("one", "a").await, Ok(1));
    assert_eq!(add("two", "b").await, Ok(2));
    assert_eq!(add("two", "c").await, Ok(2), "changed");
    assert_eq!(
        ask(&cluster, |mut tx| async move { nodes::nodes_count(&mut *tx).await }).await,
        Ok(2)
    );
    let two = async || {
        let found = ask(&cluster, |mut tx| async move { nodes::by_name(&mut *tx, "two").await });
        found.await
    };
    let found = two().await.unwrap();
    assert_eq!((found.id, found.address.as_str(), found.pending), (2, "c", false));
    assert_eq!(found.level, Level::pair(2, 1));
    let rename = async |old: &str, new: &str| {
        ask(&cluster, |mut tx| async move { nodes::rename(&mut *tx, old, new).await }).await
    };
    assert_eq!(rename("two", "one").await, Err("already exists".into()));
    assert_eq!(rename("none", "new").await, Err("query updated 0 rows instead of 1".into()));
    assert_eq!(rename("two", "zwei").await, Ok(()));
    assert_eq!(two().await, Err("No such object".into()));
    let pend = async |id, pending| {
        ask(&cluster, |mut tx| async move { nodes::set_pending(&mut *tx, id, pending).await }).await
    };
    assert_eq!(pend(2, true).await, Ok(()));
    assert_eq!(pend(9, true).await, Err("query updated 0 rows instead of 1".into()));
    let at = |pending: bool| {
        ask(&cluster, move |mut tx| async move {
            if pending {
                nodes::pending_by_address(&mut *tx, "c").await
            } else {
                nodes::by_address(&mut *tx, "c").await
            }
        })
    };
    assert_eq!(at(true).await.unwrap().id, 2);
    assert_eq!(at(false).await, Err("No such object".into()));
    assert_eq!(
        ask(&cluster, |mut tx| async move { nodes::nodes_count(&mut *tx).await }).await,
        Ok(1)
    );
    pend(2, false).await.unwrap();
    assert_eq!(at(false).await.unwrap().name, "zwei");
    let update = |id| {
        ask(&cluster, move |mut tx| async move { nodes::update(&mut *tx, id, "drei", "d").await })
    };
    assert_eq!(update(2).await, Ok(()));
    assert_eq!(update(9).await, Err("query updated 0 rows instead of 1".into()));
    // What hangs on a node goes with it.
    execute(&*database, "INSERT INTO operations(uuid, node_id, type) VALUES ('u', 2, 't')").await;
    let remove = |id| ask(&cluster, move |mut tx| async move { nodes::remove(&mut *tx, id).await });
    assert_eq!(remove(2).await, Ok(()));
    assert_eq!(remove(2).await, Err("query updated 0 rows instead of 1".into()));
    assert!(select(&*database, "SELECT * FROM operations").await.is_empty());
}

#[tokio::test]
async fn more_than_one_node_matches() {
    let database = Arc::new(Scripted::new());
    migrate(&*database).await;
    // Names are unique, so the table itself cannot do it: without that, two rows of one name.
    execute(
        &*database,
        "PRAGMA foreign_keys = OFF; DROP TABLE operations; DROP TABLE tasks; DROP TABLE nodes; \
         CREATE TABLE nodes(id INTEGER PRIMARY KEY, name, address, schema, api_extensions, \
         heartbeat, pending DEFAULT 0); \
         INSERT INTO nodes(name, address, schema, api_extensions) VALUES ('n', 'a', 2, 1), ('n', 'b', 2, 1)",
    )
    .await;
    let shared: Arc<dyn Database> = database;
    let cluster = builder().database(shared).build();
    let found = ask(&cluster, |mut tx| async move { nodes::by_name(&mut *tx, "n").await }).await;
    assert_eq!(found, Err("more than one node matches".into()));
}

#[tokio::test]
async fn node_is_outdated() {
    for (others, own, expected) in [
        (vec![], (2, 1), Ok(false)),
        (vec![(2, 1)], (2, 1), Ok(false)),
        (vec![(2, 1), (3, 1)], (2, 1), Ok(true)),
        (vec![(1, 1)], (2, 1), Ok(false)),
        (vec![(2, 1)], (0, 0), Err("inconsistency: local node not found".to_owned())),
    ] {
        let (cluster, database) = clustered(&[("own", own)]).await;
        for (at, level) in others.into_iter().enumerate() {
            add_node(&*database, &format!("o{at}"), level).await;
        }
        let outdated = |address| {
            ask(&cluster, move |mut tx| async move { nodes::is_outdated(&mut *tx, address).await })
        };
        assert_eq!(outdated("own").await, expected);
        let absent = "inconsistency: local node not found";
        assert_eq!(outdated("absent").await, Err(absent.to_owned()));
    }
}

#[tokio::test]
async fn heartbeats_and_thresholds() {
    let (cluster, database) = clustered(&[("a", (2, 1)), ("b", (2, 1))]).await;
    let beat = |address, at| {
        ask(&cluster, move |mut tx| async move { nodes::heartbeat(&mut *tx, address, at).await })
    };
    beat("a", 1_700_000_000).await.unwrap();
    assert_eq!(beat("x", 1).await, Err("expected to update one row and not 0".into()));
    let all = ask(&cluster, |mut tx| async move { nodes::all(&mut *tx).await }).await.unwrap();
    assert_eq!(all[0].heartbeat, 1_700_000_000);
    let shown = select(&*database, "SELECT heartbeat FROM nodes WHERE address = 'a'").await;
    assert_eq!(shown, ["2023-11-14 22:13:20"]);
    assert!(all[1].heartbeat > 1_700_000_000, "when it was added");
    // Strictly older.
    let threshold = nodes::OFFLINE_THRESHOLD;
    assert!(!all[0].is_offline(1_700_000_030, threshold));
    assert!(all[0].is_offline(1_700_000_031, threshold));
    let thresholds = || {
        ask(&cluster, |mut tx| async move {
            let nodes = nodes::offline_threshold(&mut *tx).await?;
            Ok((nodes, nodes::services_offline_threshold(&mut *tx).await?))
        })
    };
    let seconds = Duration::from_secs;
    assert_eq!(thresholds().await, Ok((seconds(30), seconds(120))));
    let set = |value: &'static str| {
        ask(&cluster, move |mut tx| async move {
            set_config(&mut *tx, "cluster.offline_threshold", value).await?;
            config(&mut *tx, "cluster.offline_threshold").await
        })
    };
    assert_eq!(set("7").await, Ok(Some("7".to_owned())));
    assert_eq!(thresholds().await, Ok((seconds(7), seconds(120))));
    assert_eq!(set("soon").await, Ok(Some("soon".to_owned())));
    let error = thresholds().await.unwrap_err();
    assert_eq!(error, "cluster.offline_threshold is \"soon\", not a number of seconds");
    assert_eq!(set("").await, Ok(None), "an empty value removes the key");
    assert!(select(&*database, "SELECT * FROM config").await.is_empty());
}

/// The join gate by hand: a row that is pending.
#[tokio::test]
async fn accepted() {
    let (cluster, database) = clustered(&[("a", (2, 1))]).await;
    let join = |level: Level| {
        let own = quire::cluster::Registration { id: 7, name: "x".into(), address: "y".into() };
        ask(&cluster, move |mut tx| {
            let (own, level) = (own.clone(), level.clone());
            async move { accept(&mut *tx, &own, &level).await }
        })
    };
    let error = join(Level::pair(3, 1)).await;
    assert_eq!(error, Err("schema version mismatch: cluster has 2, expects 3".into()));
    let error = join(Level::pair(2, 0)).await;
    assert_eq!(error, Err("api version mismatch: cluster has 1, expects 0".into()));
    join(Level::pair(2, 1)).await.unwrap();
    assert_eq!(select(&*database, "SELECT id, pending FROM nodes WHERE id = 7").await, ["7|1"]);
}

fn node(level: (u64, u64), heartbeat: i64) -> NodeRow {
    let level = Level::pair(level.0, level.1);
    NodeRow { id: 1, name: "n".into(), address: "a".into(), level, heartbeat, pending: false }
}

#[test]
fn what_an_operator_sees() {
    let now = 1000;
    let of = |levels: &[(u64, u64)]| {
        let nodes: Vec<NodeRow> = levels.iter().map(|level| node(*level, now)).collect();
        NodeStatus::of(&nodes, now, nodes::OFFLINE_THRESHOLD)
    };
    use NodeStatus::{Blocked, Broken, NeedsUpgrade, Online};
    assert_eq!(of(&[(2, 1), (2, 1)]), [Online, Online]);
    assert_eq!(of(&[(2, 1), (3, 2), (3, 2)]), [NeedsUpgrade, Blocked, Blocked]);
    assert_eq!(of(&[(3, 1), (2, 2)]), [Broken, Broken]);
    let nodes = [node((2, 1), 960), node((2, 1), now)];
    let listed = NodeStatus::of(&nodes, now, nodes::OFFLINE_THRESHOLD);
    assert_eq!(listed, [NodeStatus::Offline(Duration::from_secs(40)), Online]);
    let shown: Vec<String> =
        listed.iter().map(|status| format!("{status}: {}", status.message())).collect();
    assert_eq!(shown, ["Offline: no heartbeat since 40s", "Online: fully operational"]);
    assert_eq!(Blocked.message(), "waiting for other nodes to be upgraded");
    assert_eq!(Broken.message(), "inconsistent version");
    assert_eq!(NeedsUpgrade.to_string(), "Needs upgrade");
}

async fn starting(database: &Arc<Scripted>, address: &str) -> (Cluster, Result<u64, String>) {
    let shared: Arc<dyn Database> = database.clone();
    let cluster = builder().sleeper(Arc::new(RealSleeper)).database(shared).build();
    let started = cluster.start(address, dir(), Duration::from_secs(10)).await;
    (cluster, started.map_err(|error| error.to_string()))
}

/// A node's start: who it is, and what keeps it from it.
#[tokio::test(start_paused = true)]
async fn start() {
    // Not clustered.
    let database = Arc::new(Scripted::new());
    let (cluster, started) = starting(&database, "whatever").await;
    assert_eq!((started, cluster.node_id()), (Ok(1), Some(1)));
    assert_eq!(*cluster.gate().borrow(), Gate::Ready);
    // Clustered, by its address.
    let database = Arc::new(Scripted::new());
    migrate(&*database).await;
    add_node(&*database, "a", (2, 1)).await;
    add_node(&*database, "b", (2, 1)).await;
    assert_eq!(starting(&database, "b").await.1, Ok(2));
    // Nobody has this address: the gate says so; where a pending row has it, the search.
    let error = starting(&database, "c").await.1.unwrap_err();
    let gate = "failed to ensure schema: failed to update node version info: \
                updated 0 rows instead of 1";
    assert_eq!(error, gate);
    execute(&*database, "UPDATE nodes SET pending = 1 WHERE address = 'b'").await;
    let error = starting(&database, "b").await.1.unwrap_err();
    assert_eq!(error, "no node registered with address \"b\"");
    // Others are behind: it is open all the same.
    execute(&*database, "UPDATE nodes SET pending = 0, schema = 1 WHERE address = 'b'").await;
    let (cluster, started) = starting(&database, "a").await;
    assert_eq!(started, Err("some nodes are behind this node's version".into()));
    assert_eq!(cluster.node_id(), Some(1));
    assert_eq!(*cluster.gate().borrow(), Gate::Waiting(1));
    let beat = |mut tx: Work| async move { nodes::heartbeat(&mut *tx, "a", 5).await };
    cluster.transaction(beat).await.unwrap();
    // The gate fails.
    execute(&*database, "UPDATE nodes SET schema = 9 WHERE address = 'b'").await;
    let (cluster, started) = starting(&database, "a").await;
    let behind = "this node's version is behind, please upgrade";
    assert_eq!(started, Err(format!("failed to ensure schema: {behind}")));
    assert_eq!(*cluster.gate().borrow(), Gate::Behind);
    assert_eq!(cluster.gate().borrow().to_string(), format!("Database is not ready yet: {behind}"));
}

/// Nobody leads: it is asked every two seconds, until the patience ends. Any other error at once.
#[tokio::test(start_paused = true)]
async fn start_without_a_leader() {
    use DatabaseErrorKind::{NoLeader, Refused};
    let begun = tokio::time::Instant::now();
    let database = Arc::new(Scripted::new());
    database.fail(On::Ping, 3, NoLeader, "nobody leads");
    assert_eq!(starting(&database, "a").await.1, Ok(1));
    assert_eq!(begun.elapsed().as_secs(), 6);
    let database = Arc::new(Scripted::new());
    database.fail(On::Ping, 100, NoLeader, "nobody leads");
    let error = starting(&database, "a").await.1.unwrap_err();
    assert_eq!(error, "failed to connect to cluster database: nobody leads");
    assert_eq!(database.count("PING"), 5);
    let database = Arc::new(Scripted::new());
    database.fail(On::Ping, 1, Refused, "the door is shut");
    assert_eq!(starting(&database, "a").await.1, Err("the door is shut".into()));
}
