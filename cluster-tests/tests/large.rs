//! Large transactions and large databases on three processes: a transaction of many rows and a
//! VACUUM go in parts while another database is read and written; memory stays below the stated
//! bound; a full disk refuses writes and nothing else.
//!
//! A tenth of the full size; `QUIRE_LONG=1` runs all of it. Figures are printed (`--nocapture`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::raw::{Raw, Said};
use cluster_tests::{Cluster, Options, wait_for};
use quire::base::limits;

/// SQLITE_FULL.
const FULL: u64 = 13;

/// The full size is ten times that of every day.
fn scale() -> u64 {
    if std::env::var_os("QUIRE_LONG").is_some() { 10 } else { 1 }
}

/// What somebody else sees meanwhile.
#[derive(Default)]
struct Others {
    stop: AtomicBool,
    writes: AtomicU64,
    reads: AtomicU64,
    write_max_us: AtomicU64,
    read_max_us: AtomicU64,
}

impl Others {
    /// Writes and reads `small` until told to stop.
    async fn work(self: Arc<Self>, mut raw: Raw) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            raw.run("INSERT INTO s(x) VALUES(hex(randomblob(20)))").await?;
            let micros = u64::try_from(start.elapsed().as_micros())?;
            self.write_max_us.fetch_max(micros, Ordering::Relaxed);
            self.writes.fetch_add(1, Ordering::Relaxed);
            let start = Instant::now();
            raw.integer("SELECT max(id) FROM s").await?;
            let micros = u64::try_from(start.elapsed().as_micros())?;
            self.read_max_us.fetch_max(micros, Ordering::Relaxed);
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Runs one large statement; the others must get on with their work meanwhile.
    async fn beside(&self, raw: &mut Raw, what: &str, sql: &str) -> Result<()> {
        self.write_max_us.store(0, Ordering::Relaxed);
        self.read_max_us.store(0, Ordering::Relaxed);
        let (writes, reads) =
            (self.writes.load(Ordering::Relaxed), self.reads.load(Ordering::Relaxed));
        let start = Instant::now();
        raw.run(sql).await.with_context(|| what.to_owned())?;
        let took = start.elapsed();
        let writes = self.writes.load(Ordering::Relaxed) - writes;
        let reads = self.reads.load(Ordering::Relaxed) - reads;
        println!(
            "{what}: {:.1} s; beside it {writes} writes, slowest {} ms, and {reads} reads, slowest \
             {} ms",
            took.as_secs_f64(),
            self.write_max_us.load(Ordering::Relaxed) / 1000,
            self.read_max_us.load(Ordering::Relaxed) / 1000,
        );
        ensure!(writes >= 5 && reads >= 5, "{what} kept the other database waiting");
        Ok(())
    }
}

/// The largest RssAnon of any node so far, seen by looking often.
async fn watch_memory(pids: Vec<u32>, peak: Arc<AtomicU64>, stop: Arc<Others>) {
    while !stop.stop.load(Ordering::Relaxed) {
        for pid in &pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            peak.fetch_max(kib.unwrap_or(0) << 10, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn agree(cluster: &Cluster, database: &str) -> Result<()> {
    let output = cluster.quire(&["digest", database, "--deep"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// Rows of about a thousandth of a MiB each, numbered from `from`.
fn rows(from: u64, count: u64, bytes: u64) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n \
         WHERE i + 1 < {from} + {count}) INSERT INTO t SELECT i, randomblob({bytes}) FROM n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_and_a_vacuum_beside_another_database() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let (mut big, mut small) = (cluster.raw("big").await?, cluster.raw("small").await?);
    small.run("CREATE TABLE s(id INTEGER PRIMARY KEY, x)").await?;
    big.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)").await?;
    let (others, peak) = (Arc::new(Others::default()), Arc::new(AtomicU64::new(0)));
    let pids = cluster.running().into_iter().filter_map(|id| cluster.pid(id)).collect();
    let watching = tokio::spawn(watch_memory(pids, peak.clone(), others.clone()));
    let working = tokio::spawn(others.clone().work(small));

    let count = 100_000 * scale();
    others.beside(&mut big, &format!("{count} rows at once"), &rows(1, count, 200)).await?;
    ensure!(big.integer("SELECT count(*) FROM t").await? == i64::try_from(count)?);
    // What is left after the DELETE is more than 50 MB (500), and scattered: all of it moves.
    let more = 40 * scale();
    for n in 0..more {
        big.run(&rows(count + 1 + n * 1000, 1000, 1000)).await?;
    }
    big.run("DELETE FROM t WHERE id % 10 = 3").await?;
    others.beside(&mut big, "VACUUM", "VACUUM").await?;
    let kept = u64::try_from(big.integer("PRAGMA page_count").await?)? * 4096;
    ensure!(kept >= 50_000_000 * scale(), "a VACUUM of {kept} bytes only");
    others.stop.store(true, Ordering::Relaxed);
    working.await??;
    watching.await?;

    agree(&cluster, "big")?;
    agree(&cluster, "small")?;
    let pages = u64::try_from(big.integer("PRAGMA page_count").await?)?;
    let bound = limits::memory_bytes_max(2, 2 * pages);
    let mut high = 0;
    for id in cluster.running() {
        high = high.max(cluster.memory_bytes(id, "VmHWM")?);
    }
    let seen = peak.load(Ordering::Relaxed);
    println!(
        "{pages} pages, {} MiB; peak RssAnon {} MiB, VmHWM {} MiB, bound {} MiB",
        mib(pages * 4096),
        mib(seen),
        mib(high),
        mib(bound)
    );
    ensure!(seen < bound && high < bound, "more memory than stated");
    ensure!(big.integer("SELECT count(*) FROM pragma_integrity_check").await? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_database_costs_little_memory_when_idle() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let mut raw = cluster.raw("big").await?;
    raw.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)").await?;
    let batches = 20 * scale();
    for n in 0..batches {
        raw.run(&rows(1 + n * 10_000, 10_000, 1000)).await?;
    }
    agree(&cluster, "big")?;
    cluster.checkpoint("big").await?;
    let most = wait_for("the nodes to be small", async || {
        let mut most = 0;
        for id in cluster.running() {
            most = most.max(cluster.memory_bytes(id, "RssAnon")?);
        }
        Ok((most < 300 << 20).then_some(most))
    })
    .await?;
    let pages = u64::try_from(raw.integer("PRAGMA page_count").await?)?;
    println!("a database of {} MiB; idle RssAnon {} MiB", mib(pages * 4096), mib(most));
    ensure!(raw.integer("SELECT length(x) FROM t WHERE id = 77777").await? == 1000);
    Ok(())
}

/// Inserts until the disk is full for good: what the log can give back has been given back.
async fn fill(raw: &mut Raw) -> Result<u64> {
    let (mut acknowledged, mut refused) = (0, 0);
    while refused < 20 {
        let said = raw.exec("INSERT INTO t(x) VALUES(randomblob(100000))").await?;
        match said.failure() {
            None => (acknowledged, refused) = (acknowledged + 1, 0),
            Some((FULL, text)) => {
                ensure!(text == "database or disk is full", "{text}");
                refused += 1;
                // Checkpoints have their turn.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Some((code, text)) => bail!("{code}: {text}"),
        }
        ensure!(acknowledged < 10_000, "the budget does nothing");
    }
    Ok(acknowledged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("quire.toml");
    let budget =
        |size: &str| std::fs::write(&file, format!("[limits]\ndisk_budget = \"{size}\"\n"));
    budget("160 MiB")?;
    let options = Options::new(3)
        .config(&file)
        .set("limits.log_keep_bytes", "32 MiB")
        .set("limits.overlay_bytes", "8 MiB");
    let cluster = Cluster::start_with(options).await?;
    let mut raw = cluster.raw("shop").await?;
    raw.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)").await?;
    let acknowledged = fill(&mut raw).await?;
    println!("{acknowledged} rows of 100 kB fit");
    ensure!(acknowledged > 50);

    // A transaction that would not fit is refused too, reads go on, nobody has died.
    let said = raw.exec(&rows(1_000_000, 1_000, 1000)).await?;
    ensure!(matches!(said.failure(), Some((FULL, _))), "{said:?}");
    ensure!(raw.integer("SELECT count(*) FROM t").await? == i64::try_from(acknowledged)?);
    ensure!(matches!(raw.query("SELECT sum(length(x)) FROM t").await?, Said::Rows(..)));
    for id in [1, 2, 3] {
        cluster.memory_bytes(id, "RssAnon").with_context(|| format!("node {id} has died"))?;
        ensure!(!cluster.log(id).contains("the Raft log cannot be written"));
    }
    agree(&cluster, "shop")?;

    // A configuration that is wrong changes nothing.
    let pids = [1, 2, 3].map(|id| cluster.pid(id));
    budget("much")?;
    cluster.reload(1)?;
    wait_for("node 1 to refuse it", async || {
        let log = cluster.log(1);
        Ok((log.contains("SIGHUP") && log.contains("\"much\" is not a size")).then_some(()))
    })
    .await?;
    ensure!(matches!(raw.exec("INSERT INTO t(x) VALUES(1)").await?.failure(), Some((FULL, _))));

    // There is room again, on nodes that go on running. With two of them short still, none of
    // the three takes writes.
    budget("400 MiB")?;
    for id in [1, 2, 3] {
        cluster.reload(id)?;
    }
    let insert = "INSERT INTO t(x) VALUES(randomblob(100000))";
    wait_for("writes to be accepted", async || {
        Ok(raw.exec(insert).await?.failure().is_none().then_some(()))
    })
    .await?;
    ensure!(raw.integer("SELECT count(*) FROM t").await? == i64::try_from(acknowledged)? + 1);
    ensure!(pids == [1, 2, 3].map(|id| cluster.pid(id)), "a node was started again");
    agree(&cluster, "shop")
}
