//! What connections cost a node: a thousand that are idle, and ten thousand that come and go.

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{Raw, Said};
use cluster_tests::{Cluster, Options, wait_for};
use quire::wire::{Params, Request, Response};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const IDLE: usize = 1000;
const IDLE_BYTES_MAX: u64 = 100 << 20;

const COMING_AND_GOING: usize = 10_000;
const AT_A_TIME: usize = 100;

/// What the allocator may keep, and a checkpoint may have changed meanwhile.
const LEFT_BYTES_MAX: u64 = 16 << 20;

/// This program, too, holds a socket for each.
fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

fn sql(query: bool, text: &str) -> Request {
    let (database, sql, params) = (0, text.into(), Params::new([]));
    if query {
        Request::QuerySql { database, sql, params }
    } else {
        Request::ExecSql { database, sql, params }
    }
}

/// A client that has done what clients do before they idle.
async fn client(address: String) -> Result<Raw> {
    let mut raw = Raw::open(&address, "idle").await?;
    raw.ask(&Request::Client { id: 0 }).await?;
    ensure!(raw.ask(&sql(true, "SELECT count(*) FROM t")).await?.integer() == Some(1));
    let prepare = Request::Prepare { database: 0, sql: "SELECT n FROM t".into(), tail: false };
    let prepared = raw.ask(&prepare).await?;
    ensure!(matches!(prepared, Said::Message(Response::Stmt { .. })), "{prepared:?}");
    Ok(raw)
}

async fn clients(address: &str, count: usize) -> Result<Vec<Raw>> {
    let mut all = Vec::new();
    while all.len() < count {
        let now = AT_A_TIME.min(count - all.len());
        let begun: Vec<_> = (0..now).map(|_| tokio::spawn(client(address.to_owned()))).collect();
        for task in begun {
            all.push(task.await??);
        }
    }
    Ok(all)
}

fn open_files(cluster: &Cluster) -> Result<usize> {
    let pid = cluster.pid(1).context("a node that runs")?;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[tokio::test]
async fn idle_connections_are_cheap_and_closed_ones_leave_nothing() -> Result<()> {
    raise_file_limit()?;
    let cluster = Cluster::start_with(Options::new(1)).await?;
    let address = cluster.address(1).to_owned();
    let mut first = Raw::open(&address, "idle").await?;
    first.ask(&sql(false, "CREATE TABLE t(n); INSERT INTO t VALUES (1)")).await?;
    // Files of the log and the databases come and go.
    let files = open_files(&cluster)? + 16;
    // Whatever the node keeps for good, whoever comes.
    drop(clients(&address, AT_A_TIME).await?);
    let closed = async |files: usize| {
        wait_for("the node to close what its clients closed", async || {
            Ok((open_files(&cluster)? <= files).then_some(()))
        })
        .await
    };
    closed(files).await?;

    let before = cluster.memory_bytes(1, "RssAnon")?;
    let idle = clients(&address, IDLE).await?;
    ensure!(open_files(&cluster)? >= IDLE);
    let cost = cluster.memory_bytes(1, "RssAnon")?.saturating_sub(before);
    println!("{IDLE} idle clients: {} KiB", cost >> 10);
    ensure!(cost < IDLE_BYTES_MAX, "{IDLE} idle clients cost {cost} bytes");
    drop(idle);
    closed(files).await?;

    let before = cluster.memory_bytes(1, "RssAnon")?;
    for _ in 0..COMING_AND_GOING / AT_A_TIME {
        drop(clients(&address, AT_A_TIME).await?);
    }
    closed(files).await?;
    let left = cluster.memory_bytes(1, "RssAnon")?.saturating_sub(before);
    println!("{COMING_AND_GOING} that came and went: {} KiB", left >> 10);
    ensure!(left < LEFT_BYTES_MAX, "{COMING_AND_GOING} connections left {left} bytes");
    // All places are free: as many as before may connect.
    drop(clients(&address, IDLE).await?);
    first.ask(&Request::Leader).await?;
    Ok(())
}
