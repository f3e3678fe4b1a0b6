//! The quorum is lost for good: `quire cluster recover` goes on with what is left, and with nothing
//! else.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, program, wait_for};
use quire::driver::Client;
use quire::params;

/// `quire cluster recover`, without a terminal.
fn recover(arguments: &[&str], dirs: &[&Path]) -> Result<Output> {
    let mut command = Command::new(program()?);
    command.args(["cluster", "recover"]).args(arguments).args(dirs);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// It refused with one line that has all of `parts`, and exit code 2.
fn refused(output: &Output, parts: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(said.lines().count() == 1 && said.starts_with("quire: "), "{said}");
    ensure!(parts.iter().all(|part| said.contains(part)), "{said}");
    Ok(())
}

/// All files below a directory.
fn tree(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(path.display().to_string(), std::fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

async fn insert(client: &Client, ids: std::ops::Range<i64>) -> Result<()> {
    for id in ids {
        client.database("shop").execute("INSERT INTO t VALUES(?)", params![id]).await?;
    }
    Ok(())
}

/// A client that has no connection yet to a node that was killed.
async fn after_a_kill(cluster: &Cluster) -> Result<Client> {
    cluster.wait_for_leader().await?;
    cluster.client()
}

async fn count(client: &Client) -> Result<String> {
    let rows = client.database("shop").query("SELECT count(*), sum(id) FROM t", params![]).await?;
    Ok(format!("{rows:?}"))
}

async fn voters(cluster: &Cluster, id: usize, count: usize) -> Result<()> {
    wait_for("the new members to vote", async || {
        let client = cluster.client()?.at(cluster.address(id))?;
        let members = client.cluster().await.unwrap_or_default();
        Ok((members.iter().filter(|member| member.role == Some(0)).count() == count).then_some(()))
    })
    .await
}

async fn equal(cluster: &Cluster) -> Result<()> {
    wait_for("digests to agree", async || {
        Ok(cluster.quire(&["digest", "--deep", "shop"])?.status.success().then_some(()))
    })
    .await
}

async fn start() -> Result<(Cluster, Client)> {
    let cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    client.database("shop").execute("CREATE TABLE t(id INTEGER PRIMARY KEY)", params![]).await?;
    insert(&client, 0..100).await?;
    ensure!(cluster.quire(&["digest", "shop"])?.status.success());
    Ok((cluster, client))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_directory_is_left_and_the_cluster_grows_again_from_it() -> Result<()> {
    let (mut cluster, client) = start().await?;
    let before = count(&client).await?;
    cluster.kill_all()?;
    for lost in [2, 3] {
        std::fs::remove_dir_all(cluster.dir(lost))?;
    }
    let dir = cluster.dir(1).to_owned();
    let files = tree(&dir)?;
    let asked = recover(&["--timeout", "1"], &[&dir])?;
    refused(&asked, &["nothing was changed", "--yes", "node 1"])?;
    let shown = String::from_utf8_lossy(&asked.stdout).into_owned();
    for part in ["last term", "committed", "shop 101", "newest", cluster.address(1)] {
        ensure!(shown.contains(part), "{part}: {shown}");
    }
    ensure!(tree(&dir)? == files, "something was written");

    let done = recover(&["--yes", "--json"], &[&dir])?;
    ensure!(done.status.success(), "{done:?}");
    let said = String::from_utf8(done.stdout)?;
    let lines: Vec<serde_json::Value> =
        said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(lines.len() == 2 && lines[0]["databases"]["shop"] == 101, "{said}");
    ensure!(lines[1]["recovered"] == dir.display().to_string() && lines[1]["node"] == 1, "{said}");
    let kept = dir.join(lines[1]["kept"].as_str().context("kept")?);
    for (path, bytes) in files.iter().filter(|(path, _)| path.contains("/log/")) {
        let copy = kept.join(Path::new(path).strip_prefix(&dir)?);
        ensure!(std::fs::read(&copy)? == *bytes, "{copy:?}");
    }

    cluster.restart(1)?;
    ensure!(cluster.wait_for_leader().await? == 1);
    let client = cluster.client()?;
    ensure!(count(&client).await? == before, "acknowledged rows are lost");
    insert(&client, 100..110).await?;
    cluster.restart(2)?;
    cluster.restart(3)?;
    voters(&cluster, 1, 3).await?;
    cluster.wait_for_leader().await?;
    insert(&client, 110..120).await?;
    equal(&cluster).await?;
    // It is a cluster like any other.
    cluster.kill(1)?;
    insert(&after_a_kill(&cluster).await?, 120..130).await?;
    cluster.restart(1)?;
    cluster.wait_for_leader().await?;
    equal(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_directories_the_newer_one_is_taken() -> Result<()> {
    let (mut cluster, _) = start().await?;
    cluster.kill(1)?;
    let client = after_a_kill(&cluster).await?;
    insert(&client, 100..150).await?;
    let before = count(&client).await?;
    cluster.kill_all()?;
    std::fs::remove_dir_all(cluster.dir(3))?;
    let (older, newer) = (cluster.dir(1).to_owned(), cluster.dir(2).to_owned());
    let files = tree(&older)?;
    let done = recover(&["--yes", "--timeout", "1"], &[&older, &newer])?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{done:?}");
    let line = said.lines().find(|line| line.contains("newest")).context(said.clone())?;
    ensure!(line.contains(cluster.address(2)), "{said}");
    ensure!(said.contains("quire serve --dir") && said.contains("--join"), "{said}");
    ensure!(tree(&older)? == files, "the older one was changed");
    cluster.restart(2)?;
    ensure!(cluster.wait_for_leader().await? == 2);
    let client = cluster.client()?;
    ensure!(count(&client).await? == before, "acknowledged rows are lost");
    cluster.restart(3)?;
    // Of two members one votes.
    wait_for("the new member to be listed", async || {
        let members = cluster.client()?.cluster().await.unwrap_or_default();
        Ok((members.len() == 2).then_some(()))
    })
    .await?;
    voters(&cluster, 2, 1).await?;
    insert(&client, 150..160).await?;
    equal(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_while_anybody_answers_and_what_is_no_directory() -> Result<()> {
    let (mut cluster, _) = start().await?;
    let dirs: Vec<_> = (1..=3).map(|id| cluster.dir(id).to_owned()).collect();
    refused(&recover(&["--yes"], &[&dirs[0]])?, &["its node runs"])?;
    cluster.kill(3)?;
    let files = tree(&dirs[2])?;
    refused(&recover(&["--yes"], &[&dirs[2]])?, &["a quorum of the cluster is alive"])?;
    refused(&recover(&["--yes"], &[&dirs[2], &dirs[1]])?, &["its node runs"])?;
    insert(&after_a_kill(&cluster).await?, 100..101).await?;
    cluster.kill(1)?;
    let alone = [cluster.address(2), "still answer", "stop them first"];
    refused(&recover(&["--yes"], &[&dirs[2]])?, &alone)?;
    refused(&recover(&["--yes"], &[&dirs[2], &dirs[2]])?, &["named twice"])?;
    ensure!(tree(&dirs[2])? == files, "something was written");

    let empty = tempfile::tempdir()?;
    refused(&recover(&["--yes"], &[empty.path()])?, &["no data directory"])?;
    ensure!(tree(empty.path())?.is_empty());
    refused(&recover(&["--yes"], &[&empty.path().join("none")])?, &["no data directory"])?;
    ensure!(!empty.path().join("none").exists());
    refused(&recover(&["--yes"], &[])?, &["<DIR>"])?;
    refused(&recover(&["--yes", "--now"], &[&dirs[2]])?, &["--now"])?;

    cluster.restart(1)?;
    cluster.restart(3)?;
    cluster.wait_for_leader().await?;
    equal(&cluster).await
}
