//! R3: the power fails after any call to a disk. What was not synced is lost, kept or torn into
//! sectors of 512 bytes; then every node opens, has all that was acknowledged and nothing that was
//! never attempted, whole transactions only, and goes on.
//!
//! Three sweeps: a node by itself, three nodes under which the power fails at one moment, and a
//! follower that is receiving a snapshot.
//!
//! *Invariant*: a run is recorded once and cut at many places; no cut changes the record.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quire::base::NodeId;
use quire::disk::FakeDisk;
use quire::driver::Client;

use super::run::{self, Bounds, CHAINS, Found, Ledger, Reader};
use super::{Counts, Dice, Repeat, count, on_a_stopped_clock};
use crate::memory::Trio;

/// Cuts of one recorded run; then another is recorded.
const CUTS_OF_A_RUN: u64 = 100;

/// Every so many runs one has transactions that go in parts.
const LARGE_EVERY: u64 = 8;

/// A recorded run.
pub(super) struct Run {
    pub(super) ledger: Ledger,
    pub(super) disks: BTreeMap<NodeId, FakeDisk>,
    /// The first moment at which it is cut, and the last one.
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Records a run, which `what` makes, and checks `cuts` cuts of it and of more of its kind.
fn sweep(
    what: &'static str,
    seed: u64,
    cuts: u64,
    record: impl Fn(u64) -> Result<Run>,
    check: impl Fn(&Run, u64, u64) -> Result<()>,
) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut done = 0;
    for number in 0.. {
        if done >= cuts {
            break;
        }
        let seed = seed.wrapping_mul(1000) + number;
        let run = {
            let _repeat = Repeat(format!("R3 {what}, run {seed}"));
            record(seed).with_context(|| format!("R3 {what}, run {seed}"))?
        };
        let of_this = CUTS_OF_A_RUN.min(cuts - done);
        for cut in 0..of_this {
            // Spread over the whole run, each with another fate of what was not synced.
            let span = run.to - run.from;
            let tick = run.from + (span * cut / of_this + Dice::nth(seed, cut).below(7)).min(span);
            let said = format!("R3 {what}, run {seed}, cut {cut} after {tick} of {}", run.to);
            let _repeat = Repeat(said.clone());
            check(&run, tick, cut).context(said)?;
        }
        count(&mut counts, "runs", 1);
        count(&mut counts, "calls", run.to - run.from);
        count(&mut counts, "acknowledged", run.ledger.acknowledged());
        count(&mut counts, what, of_this);
        done += of_this;
    }
    Ok(counts)
}

/// A node by itself, cut `cuts` times.
pub fn alone(seed: u64, cuts: u64) -> Result<Counts> {
    let record = |seed| on_a_stopped_clock(record_alone(seed));
    sweep("cuts of one node", seed, cuts, record, |run, tick, cut| {
        let disk = &run.disks[&1];
        let after = disk.after_cut(disk.calls_before(tick), cut);
        on_a_stopped_clock(opens(run::nodes([(1, after)]), &run.ledger, &run.ledger.at(tick)))
    })
}

/// Three nodes, cut together `cuts` times.
pub fn together(seed: u64, cuts: u64) -> Result<Counts> {
    let record = |seed| on_a_stopped_clock(record_three(seed));
    sweep("cuts of three nodes", seed, cuts, record, |run, tick, cut| {
        let after = run.disks.iter().map(|(id, disk)| {
            (*id, disk.after_cut(disk.calls_before(tick), cut.wrapping_mul(3) + id * (cut % 5)))
        });
        let nodes = run::nodes(after.collect::<Vec<_>>());
        on_a_stopped_clock(open_together(nodes, &run.ledger, &run.ledger.at(tick), cut))
    })
}

/// A follower that is cut `cuts` times while it receives a snapshot, and then goes on with the
/// others.
pub fn receiving(seed: u64, cuts: u64) -> Result<Counts> {
    let record = |seed| on_a_stopped_clock(record_reception(seed));
    sweep("cuts of a reception", seed, cuts, record, |run, tick, cut| {
        let after = run.disks.iter().map(|(id, disk)| match id {
            3 => (*id, disk.after_cut(disk.calls_before(tick), cut)),
            _ => (*id, disk.after_cut(u64::MAX, 2 * cut + id)),
        });
        let nodes = run::nodes(after.collect::<Vec<_>>());
        let bounds = run.ledger.at_end();
        on_a_stopped_clock(open_together(nodes, &run.ledger, &bounds, u64::MAX))
    })
}

/// All phases of a run on nodes that run, with what the operator does in between.
async fn phases(nodes: &mut Trio, ledger: &Ledger, seed: u64) -> Result<()> {
    let (all, sets) = (ledger.scripts[0].ops.len(), 30);
    let dice = Dice::new(seed ^ 0xa11);
    for phase in 1..=3 {
        let client = run::client(nodes)?;
        run::make_set(&client).await.context("the set")?;
        let upto = all * phase / 3;
        let set = sets * phase as u64 / 3;
        let working = run::phase(&client, ledger, seed + phase as u64, upto, set);
        let checkpoints = checkpoints(&client, &dice);
        futures::future::try_join(working, checkpoints).await?;
        client.close(std::time::Duration::from_secs(1)).await;
        if phase < 3 {
            // A graceful stop and a start: leadership moves, segments begin anew.
            let id = *dice.pick(&nodes.nodes.keys().copied().collect::<Vec<_>>());
            nodes.stop(id).await;
            nodes.run(id).await;
            run::leader(nodes).await;
        }
    }
    Ok(())
}

async fn checkpoints(client: &Client, dice: &Dice) -> Result<()> {
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(50 + dice.below(600))).await;
        // There may be nothing to fold yet, nor a database of that name.
        let _ = client.checkpoint(CHAINS[0]).await;
    }
    Ok(())
}

pub(super) async fn record_alone(seed: u64) -> Result<Run> {
    let (ticks, disks) = run::disks(1);
    let large = usize::from(seed % LARGE_EVERY == LARGE_EVERY - 1);
    let ledger = Ledger::new(ticks, seed, 42, large)?;
    let mut nodes = run::nodes(disks.clone());
    nodes.run(1).await;
    run::leader(&nodes).await;
    phases(&mut nodes, &ledger, seed).await?;
    nodes.stop_all().await;
    let to = ledger.now();
    Ok(Run { ledger, disks, from: 0, to })
}

/// Three nodes that all vote.
async fn start_three(disks: &BTreeMap<NodeId, FakeDisk>) -> Trio {
    let mut nodes = run::nodes(disks.clone());
    for id in 1..=3 {
        nodes.run(id).await;
    }
    nodes.all_vote().await;
    nodes
}

pub(super) async fn record_three(seed: u64) -> Result<Run> {
    let (ticks, disks) = run::disks(3);
    let large = usize::from(seed % LARGE_EVERY == LARGE_EVERY - 1);
    let ledger = Ledger::new(ticks, seed, 36, large)?;
    let mut nodes = start_three(&disks).await;
    let from = ledger.now();
    phases(&mut nodes, &ledger, seed).await?;
    nodes.stop_all().await;
    let to = ledger.now();
    Ok(Run { ledger, disks, from, to })
}

/// Node 3 is away until the others have purged what it lacks.
pub(super) async fn record_reception(seed: u64) -> Result<Run> {
    let (ticks, disks) = run::disks(3);
    let ledger = Ledger::new(ticks, seed, 36, 0)?;
    let mut nodes = start_three(&disks).await;
    let client = run::client(&nodes)?;
    run::make_set(&client).await?;
    run::phase(&client, &ledger, seed, 12, 6).await?;
    run::agree(&nodes).await?;
    let has = nodes.member(3).catalog().applied().last.map_or(0, |last| last.index);
    nodes.stop(3).await;
    // A restart begins a segment; a purge forgets whole ones.
    for (upto, set, again) in [(24, 18, 1), (36, 30, 2)] {
        run::phase(&client, &ledger, seed, upto, set).await?;
        nodes.stop(again).await;
        nodes.run(again).await;
        run::leader(&nodes).await;
    }
    for id in [1, 2] {
        nodes.member(id).checkpoint().await?;
        let upto = nodes.member(id).catalog().recorded().last.map_or(0, |last| last.index);
        nodes.member(id).core().purge(upto).await;
    }
    let from = ledger.now();
    nodes.run(3).await;
    run::agree(&nodes).await?;
    // Until the install record is gone and a checkpoint is made.
    nodes.member(3).checkpoint().await?;
    let installed =
        nodes.disks[&3].transcript().iter().any(|call| call.contains("incoming/install"));
    ensure!(installed, "node 3 was at {has} and got no snapshot");
    let to = ledger.now();
    nodes.stop_all().await;
    Ok(Run { ledger, disks, from, to })
}

/// The node opens and holds what it must; then it goes on.
async fn opens(mut nodes: Trio, ledger: &Ledger, bounds: &Bounds) -> Result<()> {
    nodes.try_run(1).await.context("the node does not open")?;
    let member = run::leader(&nodes).await;
    healthy(&member, ledger, bounds).await?;
    let client = run::client(&nodes)?;
    let after = "CREATE TABLE IF NOT EXISTS later(id INTEGER)";
    client.database(CHAINS[0]).execute(after, vec![]).await.context("it takes no writes")?;
    nodes.stop_all().await;
    Ok(())
}

/// All that is there is right and sound.
async fn healthy(
    member: &Arc<quire::member::Member>,
    ledger: &Ledger,
    bounds: &Bounds,
) -> Result<()> {
    let reader = Reader::linearizable(member);
    let found = reader.compare(ledger, bounds).await?;
    ensure!(!found.contains(&Found::Damaged), "a copy is damaged: {found:?}");
    reader.check_sound().await
}

/// Two of the nodes open first, which ones `cut` says; they hold what they must, for any two are a
/// quorum. Then the third comes, and all are the same.
async fn open_together(mut nodes: Trio, ledger: &Ledger, bounds: &Bounds, cut: u64) -> Result<()> {
    let last = if cut == u64::MAX { 3 } else { 1 + cut % 3 };
    for id in (1..=3).filter(|id| *id != last) {
        nodes.try_run(id).await.with_context(|| format!("node {id} does not open"))?;
    }
    let member = run::leader(&nodes).await;
    healthy(&member, ledger, bounds).await?;
    nodes.try_run(last).await.with_context(|| format!("node {last} does not open"))?;
    let client = run::client(&nodes)?;
    let after = "CREATE TABLE IF NOT EXISTS later(id INTEGER)";
    client.database(CHAINS[0]).execute(after, vec![]).await.context("they take no writes")?;
    run::agree(&nodes).await?;
    nodes.stop_all().await;
    Ok(())
}
