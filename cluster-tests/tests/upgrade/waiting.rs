//! Nodes that wait: for a slow update, for room on a disk, for a row to go; and how they go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cluster_tests::{Cluster, PATIENCE, wait_for};
use quire::driver::{ReadLevel, Value};
use tokio::task::JoinHandle;

use crate::fleet::{DATABASE, Fleet, seen, waits_for};

/// A node that waits looks all the same after 30 s: who goes on within this was woken.
const WAKE_MAX: Duration = Duration::from_secs(10);

// ---- going on

/// Reads the new table on one node's own copy, again and again, until clients are let in: the
/// first answer has the new schema. When that was.
fn first_read(cluster: &Cluster, id: usize) -> Result<JoinHandle<Result<Instant>>> {
    let client = cluster.client()?.at(cluster.address(id))?;
    let db = client.database(DATABASE).read_level(ReadLevel::Local);
    let db = db.timeout(Duration::from_millis(100));
    Ok(tokio::spawn(async move {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match db.query_as::<u64>("SELECT count(*) FROM words", vec![]).await {
                Ok(words) => {
                    ensure!(words == [1], "node {id} lets clients in and reads {words:?}");
                    return Ok(Instant::now());
                }
                Err(error) if error.to_string().contains("no such table") => {
                    bail!("node {id} lets clients in to the old schema: {error}")
                }
                // Shut.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        bail!("node {id} does not let clients in")
    }))
}

/// The last node's migration wakes the others: they do not wait for their next look. Each of them
/// has the new schema itself when it lets clients in. Afterwards a node is replaced by one with
/// another id at the same address: it waits until the old one's row is gone.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_wait_are_woken_and_a_node_is_replaced_at_its_address() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    // More than a moment's work for a replica.
    let update = "CREATE TABLE ballast(b BLOB);\n\
        INSERT INTO ballast WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c \
        LIMIT 40) SELECT randomblob(200000) FROM c;\n\
        CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
        INSERT INTO words(word) VALUES ('first');\n";
    let new = fleet.builds.make("large", &["base", "words"], &[("0001_words.sql", update)])?;
    for id in [3, 2] {
        fleet.upgrade(id, &new)?;
        fleet.wait_gate(id, &waits_for(id - 1)).await?;
    }
    fleet.cluster.stop(1)?;
    fleet.install(1, &new);
    let mut reads = Vec::new();
    for id in 1..=3 {
        reads.push(first_read(&fleet.cluster, id)?);
    }
    fleet.cluster.restart(1)?;
    let migrated = wait_for("the schema to be brought up to date", async || {
        let done = (1..=3).any(|id| fleet.last_life(id).contains("was brought up to date"));
        Ok(done.then(Instant::now))
    })
    .await?;
    for (read, id) in reads.into_iter().zip(1..) {
        let open = read.await??.saturating_duration_since(migrated);
        ensure!(open < WAKE_MAX, "node {id} was not woken: open after {open:?}");
    }
    fleet.wait_all_online((3, 2)).await?;
    replaced_at_its_address(&mut fleet, &new).await
}

async fn replaced_at_its_address(fleet: &mut Fleet, build: &Path) -> Result<()> {
    let db = fleet.database()?;
    // A row of an application's is not the leader's to take away: so it stays as long as is
    // needed here.
    let rename = "UPDATE nodes SET name = ? WHERE id = 3";
    db.execute(rename, vec![Value::from("kept")]).await?;
    fleet.cluster.kill(3)?;
    let removed = fleet.cluster.quire(&["cluster", "remove", "3"])?;
    ensure!(removed.status.success(), "{removed:?}");
    let id = fleet.cluster.prepare()?;
    fleet.cluster.trade_addresses(&[3, id]);
    fleet.install(id, build);
    fleet.cluster.restart(id)?;
    wait_for("the new node to find the old row", async || {
        Ok(fleet.last_life(id).contains("the schema gate waits for that row to go").then_some(()))
    })
    .await?;
    ensure!(fleet.local(id)?.query("SELECT 1", vec![]).await.is_err(), "it lets clients in");
    db.execute(rename, vec![Value::from("node-3")]).await?;
    fleet.wait_open(&[id]).await?;
    let (node, online) = (id.try_into()?, "Online");
    fleet.wait_seen(&[1, 2, node].map(|id| seen(id, online, (3, 2)))).await?;
    ensure!(fleet.cluster.running() == [1, 2, id]);
    Ok(())
}
