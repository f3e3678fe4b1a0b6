//! More than a byte of a member's log is lost while it is stopped: what stood there is fetched from
//! another member before the node takes part in anything; and a member that nobody can help says
//! what to do.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, Options, leader_known_to, program, wait_for};
use quire::params;

/// What a row is made of, so that its place in the log is found.
const MARK: &str = "a row that will be lost";

/// Three nodes with a few rows of some pages each, the middle one of which is found by [`MARK`].
async fn start(options: Options) -> Result<Cluster> {
    let cluster = Cluster::start_with(options).await?;
    let database = cluster.client()?.database("shop");
    database.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body)", params![]).await?;
    for id in 1..=5 {
        let body = if id == 3 { MARK.repeat(900) } else { "another row".repeat(2000) };
        database.execute("INSERT INTO t VALUES(?, ?)", params![id, body]).await?;
    }
    ensure!(cluster.quire(&["digest", "shop"])?.status.success());
    Ok(cluster)
}

/// Overwrites 700 bytes of the marked row in the log of a stopped node.
fn lose_some(dir: &Path) -> Result<()> {
    for (path, bytes) in files(dir)? {
        let found = bytes.windows(MARK.len()).position(|window| window == MARK.as_bytes());
        if let Some(at) = found {
            let file = std::fs::File::options().write(true).open(dir.join("log").join(path))?;
            return Ok(file.write_all_at(&[0xE5; 700], at as u64 + 100)?);
        }
    }
    anyhow::bail!("the row is not in the log")
}

/// The files of a node's log.
fn files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir.join("log"))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
            files.insert(name.to_owned(), std::fs::read(&path)?);
        }
    }
    Ok(files)
}

async fn same_digests(cluster: &Cluster) -> Result<()> {
    wait_for("deep digests to agree", async || {
        Ok(cluster.quire(&["digest", "--deep", "shop"])?.status.success().then_some(()))
    })
    .await
}

async fn logged(cluster: &Cluster, id: usize, from: usize, text: &str) -> Result<String> {
    wait_for(text, async || {
        let log = cluster.log(id);
        let mut lines = log.get(from..).unwrap_or_default().lines();
        Ok(lines.find(|line| line.contains(text)).map(ToOwned::to_owned))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_fetches_what_its_log_lost_and_catches_up() -> Result<()> {
    let mut cluster = start(Options::new(3)).await?;
    let leader = cluster.wait_for_leader().await?;
    let damaged = (1..=3).find(|id| *id != leader).context("a follower")?;
    cluster.kill(damaged)?;
    lose_some(cluster.dir(damaged))?;
    let shop = cluster.client()?.database("shop");
    shop.execute("INSERT INTO t VALUES(6, 'written meanwhile')", params![]).await?;
    let before = cluster.log(damaged).len();
    cluster.restart(damaged)?;
    let line = logged(&cluster, damaged, before, "the Raft log is mended").await?;
    ensure!(line.contains("entries: 1") && line.contains("log/damaged/"), "{line}");
    cluster.wait_for_leader().await?;
    same_digests(&cluster).await?;
    // What is in the log now is good for the next start.
    cluster.kill_all()?;
    let before = cluster.log(damaged).len();
    for id in 1..=3 {
        cluster.restart(id)?;
    }
    cluster.wait_for_leader().await?;
    let rows = shop.query("SELECT count(*), sum(length(body)) FROM t", params![]).await?;
    ensure!(format!("{rows:?}").contains('6'), "{rows:?}");
    same_digests(&cluster).await?;
    let log = cluster.log(damaged).split_off(before);
    ensure!(!log.contains("damaged"), "{log}");
    Ok(())
}

/// The nodes were all down. The damaged one comes first: it has promises to keep that it cannot
/// read, so it takes part in nothing until one of the others is there.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_peer_it_waits_and_neither_votes_nor_takes_entries() -> Result<()> {
    let mut cluster = start(Options::new(3)).await?;
    cluster.kill_all()?;
    lose_some(cluster.dir(3))?;
    let before = (cluster.log(3).len(), files(cluster.dir(3))?);
    cluster.restart(3)?;
    let line = logged(&cluster, 3, before.0, "this node waits for a peer").await?;
    for part in [cluster.address(1), cluster.address(2), "entries", "neither votes nor takes"] {
        ensure!(line.contains(part), "{part}: {line}");
    }
    // A question to it stays unanswered for two seconds, time for some more rounds of asking.
    ensure!(leader_known_to(cluster.address(3)).await.is_none());
    ensure!(files(cluster.dir(3))? == before.1, "its log has changed");
    let log = cluster.log(3).split_off(before.0);
    ensure!(log.matches("this node waits for a peer").count() == 1, "said again and again: {log}");
    cluster.restart(1)?;
    logged(&cluster, 3, before.0, "the Raft log is mended").await?;
    cluster.wait_for_leader().await?;
    let shop = cluster.client()?.database("shop");
    shop.execute("INSERT INTO t VALUES(6, 'the two of them')", params![]).await?;
    cluster.restart(2)?;
    cluster.wait_for_leader().await?;
    same_digests(&cluster).await
}

/// The others do not have it any more: the node says so in one line, with what to do, and ends
/// with the code that keeps a service manager from starting it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_peer_holds_any_more_is_refused_with_the_mend() -> Result<()> {
    let options = Options::new(3).set("limits.log_keep_bytes", "1MiB");
    let mut cluster = start(options.set("limits.overlay_bytes", "1MiB")).await?;
    let leader = cluster.wait_for_leader().await?;
    let damaged = (1..=3).find(|id| *id != leader).context("a follower")?;
    cluster.kill(damaged)?;
    lose_some(cluster.dir(damaged))?;
    let shop = cluster.client()?.database("shop");
    let peers: Vec<usize> = (1..=3).filter(|id| *id != damaged).collect();
    let first = |id: usize| cluster.dir(id).join("log/0000000000000001.seg");
    wait_for("the log to be purged", async || {
        shop.execute("INSERT INTO t(body) VALUES (randomblob(1000000))", params![]).await?;
        Ok(peers.iter().all(|id| !first(*id).exists()).then_some(()))
    })
    .await?;
    let others: Vec<&str> = peers.iter().map(|id| cluster.address(*id)).collect();
    let mut node = tokio::process::Command::new(program()?);
    node.args(["serve", "--address", cluster.address(damaged)]).arg("--dir");
    node.arg(cluster.dir(damaged)).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(cluster_tests::PATIENCE, node.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{said}");
    let line = said.lines().find(|line| line.starts_with("quire: ")).context(said.clone())?;
    for part in [others[0], others[1], "are lost", "remove this member", "another id"] {
        ensure!(line.contains(part), "{part}: {line}");
    }
    Ok(())
}
