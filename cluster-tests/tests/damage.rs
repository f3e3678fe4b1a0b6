//! A byte changes in a page of one member's base file: it is found, that member neither serves nor
//! leads, the others go on, and the page is repaired from one of them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::Raw;
use cluster_tests::{Cluster, wait_for};
use quire::driver::{Client, DriverError, Options, ReadLevel};
use quire::params;
use quire::wire::Request;

const PAGE: u64 = 4096;

async fn start() -> Result<(Cluster, Client)> {
    let cluster = Cluster::start(3).await?;
    let client = Client::new(cluster.addresses(), Options::default())?;
    let shop = client.database("shop");
    shop.execute("CREATE TABLE goods(id INTEGER PRIMARY KEY, name TEXT)", params![]).await?;
    let many = "INSERT INTO goods(name) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 \
                FROM n WHERE i < 20000) SELECT printf('a name of goods %06d', i) FROM n";
    shop.execute(many, params![]).await?;
    let other = client.database("other");
    other.execute("CREATE TABLE t(x)", params![]).await?;
    for address in cluster.addresses() {
        // Followers too: what is applied goes to the base file.
        client.at(&address)?.checkpoint("shop").await?;
    }
    Ok((cluster, client))
}

fn base(cluster: &Cluster, id: usize) -> PathBuf {
    cluster.dir(id).join("databases/shop.db")
}

/// Changes a byte in the middle of a page in the middle of the table.
fn damage(cluster: &Cluster, id: usize) -> Result<u64> {
    let path = base(cluster, id);
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    let page = file.metadata()?.len() / PAGE / 2;
    let mut byte = [0];
    let offset = page * PAGE + PAGE / 2;
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 0x40], offset)?;
    Ok(page + 1)
}

async fn repaired(cluster: &Cluster, id: usize) -> Result<()> {
    wait_for("the repair", async || {
        let log = cluster.log(id);
        Ok(log.contains("repaired and serves again").then_some(()))
    })
    .await?;
    wait_for("deep digests to agree", async || {
        let output = cluster.quire(&["digest", "--deep", "shop"])?;
        Ok(output.status.success().then_some(()))
    })
    .await?;
    let client = Client::new(cluster.addresses(), Options::default())?;
    for address in cluster.addresses() {
        client.at(&address)?.checkpoint("shop").await?;
    }
    let others = (1..=3).find(|other| *other != id).context("another member")?;
    let (repaired, good) =
        (std::fs::read(base(cluster, id))?, std::fs::read(base(cluster, others))?);
    ensure!(repaired == good, "the base files differ");
    Ok(())
}

fn found_once(cluster: &Cluster, id: usize, page: u64) -> Result<()> {
    let log = cluster.log(id);
    ensure!(log.contains(&format!("page {page} does not match its hash")), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followers_page_is_found_by_the_deep_digest_and_repaired() -> Result<()> {
    let (cluster, client) = start().await?;
    let leader = cluster.wait_for_leader().await?;
    let damaged = (1..=3).find(|id| *id != leader).context("a follower")?;
    let page = damage(&cluster, damaged)?;
    let output = cluster.quire(&["digest", "--deep", "shop"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success() && said.contains("DAMAGED"), "{said}");
    found_once(&cluster, damaged, page)?;
    // The others went on meanwhile, undisturbed.
    client.database("shop").execute("INSERT INTO goods(name) VALUES ('more')", params![]).await?;
    ensure!(cluster.wait_for_leader().await? == leader);
    repaired(&cluster, damaged).await?;
    ensure!(cluster.wait_for_leader().await? == leader, "it was not the leader that was damaged");
    let count = client
        .at(cluster.address(damaged))?
        .database("shop")
        .read_level(ReadLevel::Local)
        .query("SELECT count(*) FROM goods", params![])
        .await?;
    ensure!(format!("{count:?}").contains("20001"), "{count:?}");
    Ok(())
}

/// Writes go on all the while, so that the repaired copy has a log to follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_repaired_under_a_write_load() -> Result<()> {
    let (cluster, client) = start().await?;
    let leader = cluster.wait_for_leader().await?;
    let damaged = (1..=3).find(|id| *id != leader).context("a follower")?;
    let stop = Arc::new(AtomicBool::new(false));
    let until = stop.clone();
    let shop = client.database("shop");
    let load = tokio::spawn(async move {
        let mut written = 0;
        while !until.load(Ordering::SeqCst) {
            shop.execute("INSERT INTO goods(name) VALUES ('more')", params![]).await?;
            shop.execute("UPDATE goods SET name = 'x' WHERE id % 97 = ?", params![written % 97])
                .await?;
            written += 1;
        }
        Ok::<i64, DriverError>(written)
    });
    let page = damage(&cluster, damaged)?;
    let at = client.at(cluster.address(damaged))?;
    wait_for("the damage to be found", async || {
        let digest = at.digest("shop", true).await?;
        let log = cluster.log(damaged);
        Ok((digest.state != 0 || log.contains("is damaged")).then_some(()))
    })
    .await?;
    found_once(&cluster, damaged, page)?;
    wait_for("the repair", async || {
        Ok(cluster.log(damaged).contains("repaired and serves again").then_some(()))
    })
    .await?;
    stop.store(true, Ordering::SeqCst);
    ensure!(load.await?? > 0, "writes stopped");
    ensure!(cluster.wait_for_leader().await? == leader, "the others were disturbed");
    repaired(&cluster, damaged).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leaders_page_is_found_by_a_read_and_it_hands_over_first() -> Result<()> {
    let (mut cluster, _) = start().await?;
    // So that no page is in a cache.
    cluster.kill_all()?;
    for id in 1..=3 {
        cluster.restart(id)?;
    }
    let leader = cluster.wait_for_leader().await?;
    let page = damage(&cluster, leader)?;
    let client = Client::new(cluster.addresses(), Options::default())?;
    let all = "SELECT count(*), sum(length(name)) FROM goods";
    match client.at(cluster.address(leader))?.database("shop").query(all, params![]).await {
        Err(DriverError::Sqlite { code, message }) => {
            ensure!(code & 0xff == 11 && message.contains("damaged"), "{code} {message}");
        }
        other => anyhow::bail!("read from a damaged page: {other:?}"),
    }
    found_once(&cluster, leader, page)?;
    // Whoever leads now answers, also for writes.
    let shop = client.database("shop");
    wait_for("another member to lead", async || {
        Ok(cluster.leader().await.filter(|now| *now != leader))
    })
    .await?;
    ensure!(cluster.log(leader).contains("handing leadership over"));
    shop.execute("INSERT INTO goods(name) VALUES ('more')", params![]).await?;
    let rows = shop.query("SELECT count(*) FROM goods", params![]).await?;
    ensure!(format!("{rows:?}").contains("20001"), "{rows:?}");
    client.database("other").execute("INSERT INTO t VALUES (1)", params![]).await?;
    repaired(&cluster, leader).await?;
    Ok(())
}

/// Two of three copies were damaged while the third member was away. The leader handed over to the
/// other damaged one, which refused; nobody led any more, and all databases stood still.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_leader_leads_on_where_nobody_else_may() -> Result<()> {
    let (mut cluster, _) = start().await?;
    // So that no page is in a cache.
    cluster.kill_all()?;
    for id in 1..=3 {
        cluster.restart(id)?;
    }
    let leader = cluster.wait_for_leader().await?;
    let mut followers = (1..=3).filter(|id| *id != leader);
    let damaged = followers.next().context("a follower")?;
    let away = followers.next().context("another follower")?;
    cluster.kill(away)?;
    damage(&cluster, damaged)?;
    let page = damage(&cluster, leader)?;
    let client = Client::new(cluster.addresses(), Options::default())?;
    // The follower finds it, asks the leader for its page, and so the leader finds it, too.
    let at = client.at(cluster.address(damaged))?;
    wait_for("the damage to be found", async || {
        // An error is as good: it may be found meanwhile.
        let _ = at.digest("shop", true).await;
        Ok(cluster.log(leader).contains("a copy is damaged here").then_some(()))
    })
    .await?;
    found_once(&cluster, damaged, page)?;
    found_once(&cluster, leader, page)?;
    let text = "no voter of";
    wait_for("the leader to look for another one", async || {
        let log = cluster.log(leader);
        ensure!(!log.contains("handing leadership over"), "to whom?");
        Ok(log.contains(text).then_some(()))
    })
    .await?;
    let mut raw = Raw::connect(cluster.address(leader)).await?;
    for to in [0, damaged as u64] {
        client.database("other").execute("INSERT INTO t VALUES (1)", params![]).await?;
        let (code, refused) =
            raw.ask(&Request::Transfer { id: to }).await?.failure().context("")?;
        ensure!(code == 1 && refused.contains(text), "{code} {refused}");
    }
    client.database("other").execute("INSERT INTO t VALUES (1)", params![]).await?;
    ensure!(cluster.leader().await == Some(leader));

    // With a whole copy there again all goes on, whoever leads then.
    cluster.restart(away)?;
    repaired(&cluster, leader).await?;
    repaired(&cluster, damaged).await?;
    ensure!(!cluster.log(leader).contains("leadership was not taken over"), "by whom?");
    let shop = client.database("shop");
    shop.execute("INSERT INTO goods(name) VALUES ('more')", params![]).await?;
    Ok(())
}
