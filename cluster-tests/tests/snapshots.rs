//! A member that was away while the log was purged: it gets a snapshot during a write load, also
//! when it is killed in the middle of the transfer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, Options, wait_for};
use quire::driver::{Client, DriverError, Options as ClientOptions};
use quire::params;
use tokio::task::JoinHandle;

/// Small bounds, so that little is written before the log is purged.
fn options() -> Options {
    Options::new(3).set("limits.log_keep_bytes", "2MiB").set("limits.overlay_bytes", "2MiB")
}

/// Writes without pause until it is dropped or stopped.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Result<Load> {
        let client = Client::new(cluster.addresses(), ClientOptions::default())?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let shop = client.database("shop");
            let sql = "INSERT INTO load(body) VALUES (randomblob(2000))";
            while !until.load(Ordering::SeqCst) {
                if shop.execute(sql, params![]).await.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(Load { stop, written, task })
    }

    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await?;
        Ok(self.written.load(Ordering::SeqCst))
    }
}

async fn fill(cluster: &Cluster, megabytes: usize) -> Result<()> {
    let shop = Client::new(cluster.addresses(), ClientOptions::default())?.database("shop");
    for _ in 0..megabytes {
        shop.execute("INSERT INTO goods(body) VALUES (randomblob(1000000))", params![]).await?;
    }
    Ok(())
}

async fn create(cluster: &Cluster) -> Result<()> {
    let client = Client::new(cluster.addresses(), ClientOptions::default())?;
    let shop = client.database("shop");
    shop.execute("CREATE TABLE goods(id INTEGER PRIMARY KEY, body)", params![]).await?;
    shop.execute("CREATE TABLE load(id INTEGER PRIMARY KEY, body)", params![]).await?;
    let other = client.database("other");
    other.execute("CREATE TABLE small(id INTEGER PRIMARY KEY)", params![]).await?;
    other.execute("INSERT INTO small VALUES (7)", params![]).await?;
    Ok(())
}

fn follower(cluster: &Cluster, leader: usize) -> usize {
    cluster.running().into_iter().find(|id| *id != leader).unwrap_or(0)
}

/// Waits until the first segment of the log is gone on the leader: what a member lacks that was
/// away from the beginning is not in the log any more.
async fn purged(cluster: &Cluster) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let first = cluster.dir(leader).join("log/0000000000000001.seg");
    wait_for("the log to be purged", async || Ok((!first.exists()).then_some(()))).await
}

fn same_digests(cluster: &Cluster, database: &str) -> Result<()> {
    let output = cluster.quire(&["digest", "--deep", "--timeout", "60", database])?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

/// What node `id` has logged since it was `before` bytes long.
fn logged(cluster: &Cluster, id: usize, before: usize) -> String {
    cluster.log(id).split_off(before)
}

/// Waits until node `id` has logged `text`.
async fn wait_logged(cluster: &Cluster, id: usize, before: usize, text: &str) -> Result<()> {
    let waited =
        wait_for(text, async || Ok(logged(cluster, id, before).contains(text).then_some(())));
    let logs = || (1..=3).map(|id| format!("---- node {id}\n{}", cluster.log(id))).collect();
    waited.await.with_context(|| -> String { logs() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_while_the_log_was_purged_catches_up() -> Result<()> {
    let mut cluster = Cluster::start_with(options()).await?;
    create(&cluster).await?;
    fill(&cluster, 4).await?;
    let away = follower(&cluster, cluster.wait_for_leader().await?);
    cluster.kill(away)?;
    fill(&cluster, 40).await?;
    purged(&cluster).await?;
    let load = Load::start(&cluster)?;
    let before = cluster.log(away).len();
    cluster.restart(away)?;
    wait_logged(&cluster, away, before, "the snapshot is installed").await?;
    ensure!(load.end().await? > 0, "nothing was written meanwhile");
    same_digests(&cluster, "shop")?;
    same_digests(&cluster, "other")?;
    // It goes on by the log from there, and from its own disk.
    fill(&cluster, 1).await?;
    same_digests(&cluster, "shop")?;
    cluster.kill(away)?;
    cluster.restart(away)?;
    cluster.wait_for_leader().await?;
    same_digests(&cluster, "shop")?;
    let installs = logged(&cluster, away, before).matches("the snapshot is installed").count();
    ensure!(installs <= 2, "{installs} snapshots for one absence");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_after_a_kill_in_its_middle() -> Result<()> {
    let mut cluster = Cluster::start_with(options()).await?;
    create(&cluster).await?;
    let away = follower(&cluster, cluster.wait_for_leader().await?);
    cluster.kill(away)?;
    fill(&cluster, 60).await?;
    purged(&cluster).await?;
    let load = Load::start(&cluster)?;
    let before = cluster.log(away).len();
    cluster.restart(away)?;
    let incoming = cluster.dir(away).join("incoming");
    wait_for("pages to arrive", async || {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(received_bytes(&incoming).is_some_and(|bytes| bytes > 4 << 20).then_some(()))
    })
    .await?;
    cluster.kill(away)?;
    let log = logged(&cluster, away, before);
    ensure!(!log.contains("the snapshot is complete"), "it was killed too late:\n{log}");

    let before = cluster.log(away).len();
    cluster.restart(away)?;
    wait_logged(&cluster, away, before, "the snapshot is installed").await?;
    load.end().await?;
    let log = logged(&cluster, away, before);
    let complete = log.lines().find(|line| line.contains("the snapshot is complete"));
    let found = complete.and_then(|line| line.split("found=").nth(1)).unwrap_or_default();
    let found: String = found.chars().take_while(char::is_ascii_digit).collect();
    // What had come before the kill was not sent again.
    ensure!(found.parse::<u64>()? >= 512, "{complete:?}");
    same_digests(&cluster, "shop")?;
    same_digests(&cluster, "other")?;
    Ok(())
}

/// A spare that was receiving its first snapshot had applied nothing yet. Removed meanwhile, it took
/// itself for a node that was never a member, and joined again by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_spare_that_is_removed_before_its_first_snapshot_does_not_join_again() -> Result<()> {
    let mut cluster = Cluster::start_with(options()).await?;
    create(&cluster).await?;
    fill(&cluster, 60).await?;
    purged(&cluster).await?;
    let new = cluster.grow()?;
    wait_logged(&cluster, new, 0, "this node has joined the cluster").await?;
    let incoming = cluster.dir(new).join("incoming");
    wait_for("pages to arrive", async || {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(received_bytes(&incoming).is_some_and(|bytes| bytes > 1 << 20).then_some(()))
    })
    .await?;
    cluster.kill(new)?;
    let log = cluster.log(new);
    ensure!(!log.contains("the snapshot is complete"), "it was killed too late:\n{log}");
    let admin = cluster.client()?;
    wait_for("it to be removed", async || match admin.remove(new as u64).await {
        Ok(()) => Ok(Some(())),
        // Another change is on its way.
        Err(DriverError::Sqlite { code: 5, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    })
    .await?;
    let before = log.len();
    cluster.restart(new)?;
    wait_for("it to be told", async || {
        let log = logged(&cluster, new, before);
        ensure!(!log.contains("has joined"), "it came back by itself:\n{log}");
        Ok(log.contains("this node was removed from the cluster").then_some(()))
    })
    .await?;
    ensure!(admin.cluster().await?.len() == 3, "it is listed again");
    Ok(())
}

/// Bytes on disk of what is being received (the files themselves have their full length at once).
fn received_bytes(incoming: &std::path::Path) -> Option<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(incoming).ok()? {
        let path = entry.ok()?.path();
        if path.extension().is_some_and(|kind| kind == "sum") {
            // Sixteen bytes that are not zero for each page that has come.
            let sums = std::fs::read(&path).ok()?;
            let (sums, _) = sums.as_chunks::<16>();
            bytes += sums.iter().filter(|sum| **sum != [0; 16]).count() as u64 * 4096;
        }
    }
    Some(bytes)
}
