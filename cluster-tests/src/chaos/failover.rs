//! How long writes are gone when a leader goes, and whether leaders stay while nothing is wrong:
//! measured through the driver, on three processes with the default timeouts.
//!
//! *Invariant*: what is measured is what a caller sees, from the event to an acknowledgement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use quire::driver::{Client, DriverError, Options};
use quire::params;
use tokio::task::{JoinSet, block_in_place};

use crate::{Cluster, PATIENCE, wait_for};

/// So many lines of each node's log are told where a write failed.
const LINES_TOLD: usize = 60;

/// How long after leadership was handed over the gap may still come.
const AFTERWARDS: Duration = Duration::from_millis(700);

/// Lengths of time, of which quantiles are asked.
#[derive(Clone, Debug, Default)]
pub struct Gaps(Vec<Duration>);

impl Gaps {
    fn push(&mut self, gap: Duration) {
        self.0.push(gap);
        self.0.sort();
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest that so many of a hundred do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let at = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(at).copied().unwrap_or_default()
    }

    /// For a person.
    pub fn summary(&self) -> String {
        let ms = |percent| self.percentile(percent).as_millis();
        format!("{} times: p50 {} ms, p99 {} ms, max {} ms", self.len(), ms(50), ms(99), ms(100))
    }
}

/// Writers that never stop, each with one statement under way.
struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    writers: JoinSet<()>,
}

/// What they were told.
#[derive(Default)]
struct Told {
    /// When each acknowledged write was begun, and acknowledged.
    acks: Mutex<Vec<(Instant, Instant)>>,
    failures: Mutex<Vec<DriverError>>,
}

impl Load {
    async fn start(cluster: &Cluster, writers: usize) -> Result<Load> {
        let options = Options { connections_max: writers.max(16), ..Options::default() };
        let client = Client::new(cluster.addresses(), options)?;
        let create = "CREATE TABLE IF NOT EXISTS w(id INTEGER PRIMARY KEY, at INTEGER)";
        client.database("load").execute(create, vec![]).await?;
        let mut load = Load { stop: Arc::default(), told: Arc::default(), writers: JoinSet::new() };
        for writer in 0..writers {
            let (client, stop) = (client.clone(), load.stop.clone());
            load.writers.spawn(write(client, writer, stop, load.told.clone()));
        }
        Ok(load)
    }

    /// When the first acknowledged write that was begun after `since` was acknowledged.
    async fn acknowledged_since(&self, since: Instant) -> Result<Instant> {
        wait_for("a write to be acknowledged", async || {
            let acks = self.told.acks.lock();
            let after = acks.iter().rev().take_while(|(_, acked)| *acked > since);
            Ok(after.filter(|(begun, _)| *begun >= since).map(|(_, acked)| *acked).min())
        })
        .await
    }

    /// Forgets what was acknowledged until now; how many that were.
    fn forget(&self) -> u64 {
        std::mem::take(&mut *self.told.acks.lock()).len() as u64
    }

    /// The longest time without an acknowledgement, from `from` to a while after now.
    async fn longest_gap(&self, from: Instant) -> Result<Duration> {
        tokio::time::sleep(AFTERWARDS).await;
        self.acknowledged_since(Instant::now()).await?;
        let mut acked: Vec<Instant> = self.told.acks.lock().iter().map(|(_, at)| *at).collect();
        acked.push(from);
        acked.sort();
        let gap = acked.windows(2).map(|pair| pair[1] - pair[0]).max();
        gap.context("no write was acknowledged")
    }

    async fn finish(mut self) -> Vec<DriverError> {
        self.stop.store(true, Ordering::Release);
        while self.writers.join_next().await.is_some() {}
        std::mem::take(&mut *self.told.failures.lock())
    }
}

async fn write(client: Client, writer: usize, stop: Arc<AtomicBool>, told: Arc<Told>) {
    let database = client.database("load");
    for at in 0_i64.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let id = ((writer as i64) << 40) + at;
        let begun = Instant::now();
        match database.execute("INSERT INTO w VALUES(?, ?)", params![id, at]).await {
            Ok(_) => told.acks.lock().push((begun, Instant::now())),
            Err(error) => told.failures.lock().push(error),
        }
    }
}

/// What the nodes say of it, where a write failed.
fn explain(cluster: &Cluster, failures: &[DriverError]) {
    for id in cluster.all().filter(|_| !failures.is_empty()) {
        let log = cluster.log(id);
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LINES_TOLD);
        eprintln!("node {id}, the end of its log:\n{}", lines[from..].join("\n"));
    }
}

/// Kills the leader so many times: from each kill to the first acknowledgement of a write that was
/// begun when it was dead.
pub async fn leader_kills(kills: usize) -> Result<Gaps> {
    let mut cluster = Cluster::start(3).await?;
    let load = Load::start(&cluster, 8).await?;
    let mut gaps = Gaps::default();
    for _ in 0..kills {
        load.acknowledged_since(Instant::now()).await?;
        let leader = cluster.wait_for_leader().await?;
        load.forget();
        let killed = Instant::now();
        block_in_place(|| cluster.kill(leader))?;
        // One that was begun before it was dead may have been acknowledged by the dying.
        gaps.push(load.acknowledged_since(Instant::now()).await? - killed);
        cluster.restart(leader)?;
    }
    for failure in load.finish().await {
        match failure {
            DriverError::OutcomeUnknown { .. } => {}
            other => bail!("a write failed for another reason than that its leader went: {other}"),
        }
    }
    Ok(gaps)
}

/// Hands leadership over so many times: the longest time without an acknowledgement around each
/// of them, and the writes that failed.
pub async fn transfers(times: usize) -> Result<(Gaps, Vec<DriverError>)> {
    let cluster = Cluster::start(3).await?;
    let load = Load::start(&cluster, 8).await?;
    let operator = cluster.client()?;
    let mut gaps = Gaps::default();
    for _ in 0..times {
        let leader = cluster.wait_for_leader().await?;
        load.acknowledged_since(Instant::now()).await?;
        load.forget();
        let from = Instant::now();
        let to = cluster.running().into_iter().find(|id| *id != leader).context("a follower")?;
        operator.transfer(Some(to as u64)).await?;
        gaps.push(load.longest_gap(from).await?);
    }
    let failures = load.finish().await;
    explain(&cluster, &failures);
    Ok((gaps, failures))
}

/// Stops the leader in an orderly manner so many times: the longest time without an acknowledgement
/// around each of them, and the writes that failed.
pub async fn stops(times: usize) -> Result<(Gaps, Vec<DriverError>)> {
    let mut cluster = Cluster::start(3).await?;
    let load = Load::start(&cluster, 64).await?;
    let mut gaps = Gaps::default();
    for _ in 0..times {
        let leader = cluster.wait_for_leader().await?;
        load.acknowledged_since(Instant::now()).await?;
        load.forget();
        let from = Instant::now();
        let code = block_in_place(|| cluster.stop(leader))?;
        ensure!(code == Some(0), "node {leader} stopped with exit code {code:?}");
        gaps.push(load.longest_gap(from).await?);
        cluster.restart(leader)?;
        cluster.wait_for_leader().await?;
    }
    let failures = load.finish().await;
    explain(&cluster, &failures);
    Ok((gaps, failures))
}

/// What happened while nothing was wrong.
#[derive(Clone, Debug, Default)]
pub struct Quiet {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Writes that failed.
    pub failures: Vec<DriverError>,
    /// Each term that there was. More than one: an election that nothing called for.
    pub terms: Vec<u64>,
}

/// Full load, default timeouts, no fault.
pub async fn quiet(lasting: Duration) -> Result<Quiet> {
    let cluster = Cluster::start(3).await?;
    cluster.wait_for_leader().await?;
    let load = Load::start(&cluster, 64).await?;
    let mut quiet = Quiet::default();
    let start = Instant::now();
    loop {
        for id in cluster.running() {
            let client = cluster.client()?.at(cluster.address(id))?;
            let asked = tokio::time::timeout(PATIENCE, client.status());
            let status = asked.await.context("no status")??;
            if !quiet.terms.contains(&status.term) {
                quiet.terms.push(status.term);
            }
        }
        quiet.writes += load.forget();
        if start.elapsed() >= lasting {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1).min(lasting)).await;
    }
    quiet.failures = load.finish().await;
    explain(&cluster, &quiet.failures);
    Ok(quiet)
}
