//! Go's `database/sql` and go-dqlite's administration client, unmodified, against a cluster: the
//! program in `clients/go`, built without C against Debian's package.
//!
//! Where Go or the package is not there, the tests say so and are skipped.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cluster_tests::chaos::clients::go_clients;
use cluster_tests::{Cluster, PATIENCE};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Runs scenarios and does what the program asks for meanwhile.
async fn run(cluster: &mut Cluster, dir: &Path, scenarios: &[&str]) -> Result<()> {
    let Some(program) = go_clients()? else { return Ok(()) };
    let mut child = Command::new(program)
        .arg(cluster.servers())
        .arg(dir)
        .args(scenarios)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut passed = Vec::new();
    while let Some(line) = timeout(2 * PATIENCE, lines.next_line()).await.context("silence")?? {
        println!("{line}");
        if let Some(address) = line.strip_prefix("kill ") {
            let id = (1..).zip(cluster.addresses()).find(|(_, known)| known == address);
            cluster.kill(id.context("no such node")?.0)?;
            stdin.write_all(b"done\n").await?;
        } else if let Some(name) = line.strip_prefix("ok ") {
            passed.push(name.to_owned());
        }
    }
    let status = timeout(PATIENCE, child.wait()).await.context("it does not end")??;
    ensure!(status.success() && passed == scenarios, "passed: {passed:?}");
    Ok(())
}

#[tokio::test]
async fn statements_values_transactions_and_errors() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    let scenarios = [
        "types",
        "prepared",
        "transactions",
        "parameters",
        "parts",
        "interrupt",
        "constraints",
        "busy",
    ];
    run(&mut cluster, dir.path(), &scenarios).await
}

#[tokio::test]
async fn a_dump_opens_in_sqlite() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["dump"]).await?;
    if go_clients()?.is_some() {
        let copy = rusqlite::Connection::open(dir.path().join("go.db"))?;
        let check: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        assert_eq!(check, "ok");
        let sum: i64 = copy.query_row("SELECT sum(n) FROM dumped", [], |row| row.get(0))?;
        assert_eq!(sum, 5000 * 5001 / 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["failover"]).await
}

#[tokio::test]
async fn members_tell_what_they_are_and_change_and_leadership_moves() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["metadata", "transfer", "members"]).await
}
