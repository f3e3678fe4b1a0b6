//! Nodes that wait: for a slow update, for room on a disk, for a row to go; and how they go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, Options, PATIENCE, wait_for};
use quire::driver::{ReadLevel, Value};
use tokio::task::JoinHandle;

use crate::fleet::{DATABASE, Fleet, OPEN, seen, waits_for};

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
    // Node 1 leads all the while, so that only the changed row can have woken node 3.
    let published = Instant::now();
    fleet.wait_gate(3, &waits_for(1)).await?;
    ensure!(published.elapsed() < WAKE_MAX, "node 3 was not woken by node 2's new level");
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

// ---- what is in the way

/// Two voters have no room: nothing can be written, not even a level. The node that was upgraded
/// last goes on trying, the one that waits goes on waiting, and when there is room they go on by
/// themselves. Then the one that was not upgraded, the leader, is removed while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_the_old_leader_is_removed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("quire.toml");
    let budget =
        |size: &str| std::fs::write(&file, format!("[limits]\ndisk_budget = \"{size}\"\n"));
    budget("400 MiB")?;
    let mut fleet = Fleet::old_with(Options::new(3).config(&file)).await?;
    let new = fleet.new.clone();
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;

    budget("1 MiB")?;
    for id in [1, 3] {
        fleet.cluster.reload(id)?;
    }
    let db = fleet.database()?;
    wait_for("writes to be refused", async || {
        let written = db.execute("DELETE FROM config", vec![]).await;
        Ok(written.err().filter(|error| error.to_string().contains("full")))
    })
    .await?;
    let room = "limits.disk_budget=400MiB";
    fleet.cluster.flag(2, &["--set", room]);
    fleet.upgrade(2, &new)?;
    let not_yet = "the gate is not open; it will be tried again";
    wait_for("node 2 to find no room for its level", async || {
        let life = fleet.last_life(2);
        let said = life.lines().find(|line| line.contains(not_yet));
        Ok(said.filter(|line| line.contains("full")).map(drop))
    })
    .await?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    let pids = [1, 2, 3].map(|id| fleet.cluster.pid(id));
    budget("400 MiB")?;
    for id in [1, 3] {
        fleet.cluster.reload(id)?;
    }
    for id in [2, 3] {
        fleet.wait_gate(id, &waits_for(1)).await?;
    }

    // Should another have come to lead, it does not stay so: it waits.
    wait_for(
        "node 1 to lead",
        async || Ok((fleet.cluster.leader().await == Some(1)).then_some(())),
    )
    .await?;
    let removed = fleet.cluster.quire(&["cluster", "remove", "1"])?;
    ensure!(removed.status.success(), "{removed:?}");
    for id in [2, 3] {
        fleet.wait_gate(id, OPEN).await?;
    }
    let db = fleet.at(2)?.database(DATABASE);
    let ids: Vec<u64> = db.query_as("SELECT id FROM nodes ORDER BY id", vec![]).await?;
    assert_eq!(ids, [2, 3]);
    let words: Vec<String> = db.query_as("SELECT word FROM words", vec![]).await?;
    assert_eq!(words, ["first"]);
    // Nobody has ended.
    ensure!(pids == [1, 2, 3].map(|id| fleet.cluster.pid(id)), "a node was started again");
    for id in [1, 2, 3] {
        fleet
            .cluster
            .memory_bytes(id, "RssAnon")
            .with_context(|| format!("node {id} has ended"))?;
    }
    Ok(())
}

// ---- a slow update

/// How many rounds of counting take SQLite about this long here.
fn rounds(time: Duration) -> Result<u64> {
    const SAMPLE: u64 = 2_000_000;
    let sqlite = rusqlite::Connection::open_in_memory()?;
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let _: i64 = sqlite.query_row(&count(SAMPLE), [], |row| row.get(0))?;
        fastest = fastest.min(begun.elapsed());
    }
    let times = time.as_micros() / fastest.as_micros().max(1);
    Ok(SAMPLE * u64::try_from(times)?.max(1))
}

fn count(rounds: u64) -> String {
    format!(
        "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c LIMIT {rounds}) \
         SELECT sum(n % 7) FROM c"
    )
}

/// One statement takes longer than any other call of the driver may: it runs once, and the cluster
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_update_runs_once() -> Result<()> {
    let call = quire::driver::Options::default().call_timeout;
    let mut fleet = Fleet::old().await?;
    let slow = count(rounds(call + call / 5)?);
    let update = format!(
        "CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
         CREATE TABLE counted(n INTEGER);\nINSERT INTO counted {slow};\n\
         INSERT INTO words(word) VALUES ('first');\n"
    );
    let build =
        fleet.builds.make("slow", &["base", "words"], &[("0001_words.sql", update.as_str())])?;
    for id in [3, 2] {
        fleet.upgrade(id, &build)?;
        fleet.wait_gate(id, &waits_for(id - 1)).await?;
    }
    fleet.upgrade(1, &build)?;
    let applied = "an update is applied";
    wait_for("the update to begin", async || {
        Ok(fleet.last_life(1).contains(applied).then_some(()))
    })
    .await?;
    let begun = Instant::now();
    fleet.wait_open(&[1, 2, 3]).await?;
    println!("the update took {:?}, a call may take {call:?}", begun.elapsed());
    let tries: usize = (1..=3).map(|id| fleet.last_life(id).matches(applied).count()).sum();
    ensure!(tries == 1, "it was tried {tries} times");
    fleet.wait_all_online((3, 2)).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    let counted: Vec<u64> =
        fleet.database()?.query_as("SELECT count(*) FROM counted", vec![]).await?;
    assert_eq!(counted, [1]);
    fleet.database()?.execute("INSERT INTO words(word) VALUES ('second')", vec![]).await?;
    fleet.check_migrated(&[2, 3]).await
}
