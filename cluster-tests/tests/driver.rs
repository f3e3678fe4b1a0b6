//! The driver against real nodes: statements that are given up end at the server, reads are spread,
//! transactions outlive a leader, and errors say why there is no leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, PATIENCE, wait_for};
use quire::base::Fate;
use quire::driver::{Client, DriverError, Options, ReadFrom, ReadLevel, TransactionOptions, Value};
use quire::params;

/// A query without an end.
const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) \
                       SELECT count(*) FROM c";

/// A caller goes away in the middle of a query: the query ends at the server, and the one
/// connection of the pool serves the next caller.
#[tokio::test]
async fn a_query_that_is_given_up_ends_at_the_server() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let options = Options { connections_max: 1, cancel_timeout: PATIENCE, ..Options::default() };
    let client = Client::new(cluster.addresses(), options)?;
    let db = client.database("given_up");
    db.execute_batch("CREATE TABLE t(n)").await?;
    for late in [false, true] {
        let dials = client.metrics().dials;
        let moment = Duration::from_millis(300);
        let call_max = if late { moment } else { PATIENCE };
        let endless = db.clone().timeout(call_max);
        let call = tokio::time::timeout(PATIENCE, async {
            if late {
                let error = endless.query(ENDLESS, vec![]).await.unwrap_err();
                assert!(matches!(error, DriverError::TimedOut(_) | DriverError::NoLeader { .. }));
            } else {
                let call = tokio::time::timeout(moment, endless.query(ENDLESS, vec![]));
                assert!(call.await.is_err());
            }
        });
        call.await?;
        let rows = db.clone().timeout(PATIENCE).query("SELECT 1", vec![]).await?.rows;
        assert_eq!(rows, [[Value::Integer(1)]]);
        let probes = client.metrics().searches;
        assert!(client.metrics().dials <= dials + probes, "the connection was kept");
    }
    assert!(client.metrics().cancels >= 2);
    // A stream that is dropped in its middle.
    let sql = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c";
    let mut stream = db.query_stream(sql, vec![]).await?;
    assert!(stream.next_batch().await?.is_some());
    drop(stream);
    db.timeout(PATIENCE).query("SELECT 1", vec![]).await?;
    Ok(())
}

/// Reads of what was acknowledged, on every member in turn, while one of them is killed.
#[tokio::test]
async fn spread_reads_see_what_was_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    let db = client.database("spread");
    db.execute_batch("CREATE TABLE r(v INTEGER); INSERT INTO r VALUES (0)").await?;
    wait_for("the driver to know the members", async || {
        Ok((client.metrics().refreshes > 0).then_some(()))
    })
    .await?;
    let anywhere = db.clone().read_from(ReadFrom::Any).timeout(PATIENCE);
    let local = anywhere.clone().read_level(ReadLevel::Local);
    let leader = cluster.wait_for_leader().await?;
    for round in 1..=60_i64 {
        db.execute("UPDATE r SET v = ?", params![round]).await?;
        let read: Vec<i64> = anywhere.query_as("SELECT v FROM r", vec![]).await?;
        assert_eq!(read, [round]);
        let read: Vec<i64> = local.query_as("SELECT v FROM r", vec![]).await?;
        ensure!(read.first().context("a row")? <= &round);
        if round == 30 {
            let follower = if leader == 1 { 2 } else { 1 };
            cluster.kill(follower)?;
        }
    }
    let metrics = client.metrics();
    assert!(metrics.spread_reads >= 60, "{metrics:?}");
    assert!(metrics.spread_fallbacks >= 1, "{metrics:?}");
    Ok(())
}

/// Closures move sums between two rows while the leader is killed: each that said `Ok` is kept,
/// none is kept half.
#[tokio::test]
async fn transactions_outlive_a_leader() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let client = cluster.client()?;
    let db = client.database("bank").timeout(PATIENCE);
    db.batch([
        ("CREATE TABLE account(id INTEGER PRIMARY KEY, sum INTEGER, moves INTEGER)", vec![]),
        ("INSERT INTO account VALUES (1, 1000, 0), (2, 1000, 0)", vec![]),
    ])
    .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (kept, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (db, stop) = (db.clone(), stop.clone());
        let (kept, unknown) = (kept.clone(), unknown.clone());
        tasks.push(tokio::spawn(async move {
            let options = TransactionOptions { retries_max: 1000, ..Default::default() };
            while !stop.load(Ordering::Relaxed) {
                let moved = db
                    .transaction_with(options, |mut tx| async move {
                        let sums: Vec<(i64, i64)> =
                            tx.query_as("SELECT id, sum FROM account ORDER BY id", vec![]).await?;
                        let set = "UPDATE account SET sum = ?, moves = moves + 1 WHERE id = ?";
                        tx.execute(set, params![sums[0].1 - 1, 1]).await?;
                        let mut second = tx.savepoint().await?;
                        second.execute("DELETE FROM account", vec![]).await?;
                        second.rollback().await?;
                        tx.execute(set, params![sums[1].1 + 1, 2]).await.map(drop)
                    })
                    .await;
                match moved {
                    Ok(()) => kept.fetch_add(1, Ordering::Relaxed),
                    Err(error) if error.fate() == Fate::OutcomeUnknown => {
                        unknown.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(error) => return Err(error),
                };
            }
            Ok(())
        }));
    }
    let more = async |than: u64| {
        wait_for("transactions to go on", async || {
            Ok((kept.load(Ordering::Relaxed) > than).then_some(()))
        })
        .await
    };
    more(10).await?;
    let leader = cluster.wait_for_leader().await?;
    cluster.kill(leader)?;
    more(kept.load(Ordering::Relaxed) + 10).await?;
    cluster.restart(leader)?;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    let rows: Vec<(i64, i64, u64)> =
        db.query_as("SELECT id, sum, moves FROM account ORDER BY id", vec![]).await?;
    let [(1, first, moves), (2, second, same)] = rows[..] else { panic!("{rows:?}") };
    assert_eq!((first + second, moves), (2000, same), "no transaction was kept half");
    assert_eq!(1000 - first, i64::try_from(moves)?);
    let (kept, unknown) = (kept.load(Ordering::Relaxed), unknown.load(Ordering::Relaxed));
    ensure!((kept..=kept + unknown).contains(&moves), "{kept} kept, {unknown} unknown: {moves}");
    Ok(())
}

/// Two of three members are gone: client and node say so, with votes counted, and the node says
/// it once.
#[tokio::test]
async fn everybody_says_why_there_is_no_leader() -> Result<()> {
    for leader_stays in [false, true] {
        let mut cluster = Cluster::start(3).await?;
        let client = cluster.client()?;
        let db = client.database("why");
        db.execute_batch("CREATE TABLE t(n)").await?;
        wait_for("the driver to know the members", async || {
            Ok((client.metrics().refreshes > 0).then_some(()))
        })
        .await?;
        let leader = cluster.wait_for_leader().await?;
        let stays = if leader_stays { leader } else { 1 + leader % 3 };
        for id in (1..=3).filter(|id| *id != stays) {
            cluster.kill(id)?;
        }
        let alone = format!("1 of 3 members answers ({})", cluster.address(stays));
        let missing = "2 votes are needed, 1 more is missing";
        let error = db.clone().timeout(Duration::from_secs(25)).query("SELECT 1", vec![]).await;
        let text = error.unwrap_err().to_string();
        for part in [&alone, missing, "refused the connection"] {
            ensure!(text.contains(part), "leader stays: {leader_stays}: {text}\nlacks {part}");
        }
        let lines = || cluster.log(stays).lines().filter(|line| line.contains(&alone)).count();
        wait_for("the node's own sentence", async || Ok((lines() > 0).then_some(()))).await?;
        let status = client.at(cluster.address(stays))?.status().await?;
        ensure!(status.why.to_string().contains(missing), "{status:?}");
        ensure!(lines() == 1, "said {} times", lines());
        // It is over when it is over.
        for id in 1..=3 {
            cluster.restart(id)?;
        }
        db.timeout(PATIENCE).query("SELECT 1", vec![]).await?;
        let leader = cluster.wait_for_leader().await?;
        let status = client.at(cluster.address(leader))?.status().await?;
        ensure!(status.why.as_bytes().is_empty(), "{status:?}");
    }
    Ok(())
}
