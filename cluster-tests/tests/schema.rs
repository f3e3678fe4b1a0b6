//! The schema gate on real processes: the leader is killed in the middle of a migration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::{Cluster, PATIENCE, wait_for};
use quire::cluster::{self, Module, Registration, Replicated, Status, Update};
use quire::params;

/// The statements of the migration.
const STEPS: u64 = 16;

/// So many more kills come around its COMMIT.
const AROUND_COMMIT: u64 = 4;

type Shared = Arc<Mutex<Option<Cluster>>>;

fn kill(cluster: &Shared, id: usize) -> Result<()> {
    let mut cluster = cluster.lock().map_err(|_| anyhow!("a test failed"))?;
    cluster.as_mut().context("a cluster")?.kill(id)
}

/// A table, and a row for each step; at `point` the leader is killed, the first time.
fn migration(shared: &Shared, leader: usize, point: u64, runs: &Arc<AtomicU64>) -> Module {
    let (shared, runs) = (shared.clone(), runs.clone());
    let mut module = Module::new("app");
    module.add(Update::function("steps", move |tx| {
        let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
        let shared = shared.clone();
        let failed = |error: anyhow::Error| cluster::Error::other(format!("{error:#}"));
        Box::pin(async move {
            tx.execute("CREATE TABLE step(n INTEGER)", vec![]).await?;
            for step in 0..STEPS {
                if first && step == point {
                    kill(&shared, leader).map_err(failed)?;
                }
                let n = i64::try_from(step).unwrap_or_default();
                tx.execute("INSERT INTO step VALUES (?)", params![n]).await?;
            }
            if first && point >= STEPS {
                // Somewhere between the last statement and the answer to the commit.
                let delay = Duration::from_millis(point - STEPS);
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    kill(&shared, leader)
                });
            }
            Ok(())
        })
    }));
    module
}

/// At twenty points of a migration its leader is killed: it happens once, wholly.
#[tokio::test]
async fn the_leader_is_killed_during_the_migration() -> Result<()> {
    let mut running = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    let mut rerun = 0;
    for point in 0..STEPS + AROUND_COMMIT {
        let leader = running.wait_for_leader().await?;
        let client = running.client()?;
        let database = Arc::new(Replicated::new(client.clone(), &format!("at_{point}")));
        let me = Registration { id: 1, name: "one".into(), address: "here".into() };
        let gate = || {
            let builder = cluster::Cluster::builder().database(database.clone());
            builder.registration(me.clone())
        };
        let before = gate().build().ensure_schema("here", dir.path()).await?;
        ensure!(before == Status::Ready);
        let shared: Shared = Arc::new(Mutex::new(Some(running)));
        let runs = Arc::default();
        let upgraded = gate().module(migration(&shared, leader, point, &runs)).build();
        let status = upgraded.ensure_schema("here", dir.path()).await;
        ensure!(status == Ok(Status::Ready), "point {point}: {status:?}");
        running = wait_for("the kill to be done", async || {
            let mut cluster = shared.lock().map_err(|_| anyhow!("a test failed"))?;
            let killed = |cluster: &mut Cluster| !cluster.running().contains(&leader);
            Ok(cluster.take_if(killed))
        })
        .await?;
        let db = client.database(&format!("at_{point}")).timeout(PATIENCE);
        let steps: Vec<u64> = db.query_as("SELECT n FROM step ORDER BY n", vec![]).await?;
        ensure!(steps == (0..STEPS).collect::<Vec<_>>(), "point {point}: {steps:?}");
        let versions: Vec<u64> = db.query_as("SELECT version FROM schema", vec![]).await?;
        ensure!(versions == [2, 3], "point {point}: {versions:?}");
        let level: Vec<(u64, u64)> =
            db.query_as("SELECT schema, pending FROM nodes", vec![]).await?;
        ensure!(level == [(3, 0)], "point {point}: {level:?}");
        rerun += u64::from(runs.load(Ordering::SeqCst) > 1);
        running.restart(leader)?;
    }
    ensure!(rerun >= STEPS, "only {rerun} migrations were interrupted");
    Ok(())
}
