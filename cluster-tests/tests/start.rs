//! A node that was killed starts again from its last checkpoint and the log after it, however
//! large its databases are.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, Options, wait_for};
use quire::driver::{Database, Value};

/// The large database.
const LARGE_BYTES: usize = 200 << 20;

/// One row of it.
const ROW_BYTES: usize = 2 << 20;

/// What a start may read beyond what it reads for a small database: segments of the log, which
/// are of a fixed size, and the sums of the pages.
const MORE_BYTES_MAX: u64 = 64 << 20;

/// Bytes that a process has read by system calls so far.
fn bytes_read(pid: u32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find(|line| line.starts_with("rchar:")).context("rchar")?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}

/// Kills the only node and starts it again; what that start has read.
async fn restart(cluster: &mut Cluster) -> Result<u64> {
    cluster.kill(1)?;
    cluster.restart(1)?;
    cluster.wait_for_leader().await?;
    bytes_read(cluster.pid(1).context("it runs")?)
}

/// The number after `name=` in the last line of the log that tells what is applied again.
fn replayed(cluster: &Cluster, name: &str) -> Result<u64> {
    let log = cluster.log(1);
    let line = log.lines().rfind(|line| line.contains("is applied again")).context("no line")?;
    let field = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    Ok(field.context("no such field")?.parse()?)
}

async fn count(database: &Database) -> Result<Value> {
    Ok(database.query("SELECT count(*) FROM t", vec![]).await?.rows[0][0].clone())
}

fn bytes_in(dir: &Path) -> Result<u64> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

#[tokio::test]
async fn a_start_replays_the_logs_tail_and_does_not_grow_with_the_database() -> Result<()> {
    let options = Options::new(1).set("limits.log_keep_bytes", "1 MiB");
    let mut cluster = Cluster::start_with(options).await?;
    let database = cluster.client()?.database("large");
    database.execute("CREATE TABLE t(a BLOB)", vec![]).await?;
    database.execute("INSERT INTO t VALUES(x'00')", vec![]).await?;
    cluster.checkpoint("large").await?;
    let small = restart(&mut cluster).await?;

    let rows = LARGE_BYTES / ROW_BYTES;
    for _ in 0..rows {
        let params = vec![Value::from(i64::try_from(ROW_BYTES)?)];
        database.execute("INSERT INTO t VALUES(randomblob(?))", params).await?;
    }
    cluster.checkpoint("large").await?;
    let dir = cluster.dir(1).to_owned();
    // The log is forgotten after a checkpoint of the node's own accord, so there is one more write.
    database.execute("INSERT INTO t VALUES(zeroblob(2000000))", vec![]).await?;
    wait_for("the log to be purged", async || {
        Ok((bytes_in(&dir.join("log"))? <= 64 << 20).then_some(()))
    })
    .await?;
    ensure!(bytes_in(&dir.join("databases"))? > LARGE_BYTES as u64);
    database.execute("INSERT INTO t VALUES(x'01')", vec![]).await?;
    let large = restart(&mut cluster).await?;
    let (entries, bytes) = (
        replayed(&cluster, "last")?.saturating_sub(replayed(&cluster, "first")?) + 1,
        replayed(&cluster, "bytes")?,
    );
    eprintln!(
        "a start reads {small} bytes with a small database, {large} with one of 200 MB; \
        {entries} entries of {bytes} bytes are applied again"
    );
    ensure!(
        large < small + MORE_BYTES_MAX,
        "a start reads {large} bytes, with a small one {small}"
    );
    assert_eq!(count(&database).await?, Value::Integer(i64::try_from(rows)? + 3));

    // What came after the last checkpoint is in the log alone.
    cluster.kill(1)?;
    cluster.restart(1)?;
    assert_eq!(count(&database).await?, Value::Integer(i64::try_from(rows)? + 3));
    ensure!(replayed(&cluster, "bytes")? > 0, "nothing was applied again");
    Ok(())
}
