//! R5: the N-th call to a disk fails: EIO, ENOSPC, a sync, a read; once, or all from then on. The
//! node refuses what it cannot do or stops; what it acknowledges is durable: after a power cut, on
//! a disk that is whole again, it is there, and nothing that was never attempted.
//!
//! A node by itself, and a leader or a follower of three, whose others go on.
//!
//! *Invariant*: what is not acknowledged may be there or not, wholly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire::base::NodeId;
use quire::disk::{FakeDisk, Fault};
use quire::driver::Client;
use tokio::time::timeout;

use super::run::{self, Bounds, CHAINS, End, Found, Ledger, Reader};
use super::{Counts, Dice, Repeat, count, on_a_stopped_clock};
use crate::memory::Trio;

/// After the failing call so many transactions are tried still.
const MORE: u64 = 14;

/// So many are tried in all, if it is not reached.
const TRANSACTIONS_MAX: u64 = 1500;

/// Up to this call, every kind of node meets it; beyond it, one of them.
const ALL_MEET: u64 = 400;

/// A node that does nothing for so long will do nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Alone,
    Starting,
    Leader,
    Follower,
}

const ALL: [Whose; 4] = [Whose::Alone, Whose::Starting, Whose::Leader, Whose::Follower];

/// The calls that fail, how, and for how long.
#[derive(Clone, Copy, Debug)]
struct Failing {
    nth: u64,
    fault: Fault,
    /// From then on.
    stays: bool,
    reads: bool,
}

/// Each call up to the `upto`-th fails in some way: on a node by itself, on one that starts, on a
/// leader, on a follower.
pub fn calls(seed: u64, upto: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    for nth in 0..upto {
        let dice = Dice::nth(seed, nth);
        let failing = Failing {
            nth,
            fault: *dice.pick(&[Fault::Io, Fault::Full]),
            stays: dice.below(3) == 0,
            reads: dice.below(4) == 0,
        };
        let one_of_them = [ALL[nth as usize % ALL.len()]];
        for whose in if nth < ALL_MEET { &ALL[..] } else { &one_of_them } {
            let whose = *whose;
            let said = format!("R5 seed {seed}, call {nth}, {whose:?}: {failing:?}");
            let _repeat = Repeat(said.clone());
            let seed = seed.wrapping_mul(1000) + nth;
            let done = match whose {
                Whose::Starting => on_a_stopped_clock(starting(seed, nth, failing, &mut counts)),
                _ => on_a_stopped_clock(one(seed, nth, whose, failing, &mut counts)),
            };
            done.context(said)?;
        }
    }
    Ok(counts)
}

async fn one(
    seed: u64,
    cut: u64,
    whose: Whose,
    failing: Failing,
    counts: &mut Counts,
) -> Result<()> {
    let (ticks, disks) = run::disks(if whose == Whose::Alone { 1 } else { 3 });
    let ledger = Ledger::new(ticks, seed, 14, 0)?;
    let mut nodes = run::nodes(disks.clone());
    for id in disks.keys() {
        nodes.run(*id).await;
    }
    nodes.all_vote().await;
    let client = run::client(&nodes)?;
    run::make_set(&client).await?;
    let leader = run::leader(&nodes).await.id();
    let sick = match whose {
        Whose::Follower => disks.keys().copied().find(|id| *id != leader).unwrap_or(leader),
        Whose::Alone | Whose::Starting | Whose::Leader => leader,
    };
    plan(&disks[&sick], failing);
    let ended = work(&nodes, sick, &client, &ledger, failing, seed).await?;
    if whose == Whose::Follower {
        // One of three is not needed, whatever becomes of it.
        ensure!(ended.acknowledged_last, "the others do not go on");
    }
    *counts.entry("acknowledged").or_default() += ledger.acknowledged();
    count(counts, if ended.stopped { "nodes that stopped" } else { "nodes that went on" }, 1);
    count(counts, "transactions not acknowledged", ended.failed);
    count_reached(counts, ended.reached);

    // The power fails everywhere; the disk is replaced by a good one with what it holds.
    drop(nodes);
    let after = disks.iter().map(|(id, disk)| {
        disk.heal();
        (*id, disk.after_cut(u64::MAX, cut.wrapping_mul(3) + id % 3))
    });
    let nodes = run::nodes(after.collect::<Vec<_>>());
    opens(nodes, sick, &ledger, &ledger.at_end()).await
}

/// A start after a power cut meets the failing call; the next one is on a good disk.
async fn starting(seed: u64, nth: u64, failing: Failing, counts: &mut Counts) -> Result<()> {
    let run = super::cuts::record_alone(seed % 64).await?;
    let tick = Dice::nth(seed, 1).below(run.to);
    let disk = &run.disks[&1];
    let start = disk.after_cut(disk.calls_before(tick), nth);
    // A start makes few calls.
    let failing = Failing { nth: nth % 40, ..failing };
    let at = failing.made(&start) + failing.nth;
    plan(&start, failing);
    let mut nodes = run::nodes([(1, start.clone())]);
    let started = timeout(PATIENCE, nodes.try_run(1)).await.context("it hangs")?;
    let bounds = run.ledger.at(tick);
    match &started {
        Err(error) => ensure!(!error.to_string().is_empty(), "it does not say why"),
        Ok(()) => {
            // What it answers is right of some time, or it answers nothing.
            let member = nodes.member(1).clone();
            let (local, any) = (Reader::local(&member), run.ledger.at_least_nothing());
            let told = timeout(PATIENCE, local.compare(&run.ledger, &any)).await;
            if let Ok(Err(error)) = told {
                ensure!(!run::is_wrong(&error), "it tells what never was: {error:#}");
            }
        }
    }
    let what = if started.is_ok() { "starts that went on" } else { "starts that were refused" };
    count(counts, what, 1);
    count_reached(counts, failing.made(&start) > at);
    drop(nodes);
    start.heal();
    let after = start.after_cut(u64::MAX, nth.wrapping_mul(7) % 5);
    opens(run::nodes([(1, after)]), 1, &run.ledger, &bounds).await
}

/// A call that was never made did not fail.
fn count_reached(counts: &mut Counts, reached: bool) {
    count(counts, if reached { "failing calls" } else { "calls that were not reached" }, 1);
}

impl Failing {
    /// How many calls of its kind there were.
    fn made(&self, disk: &FakeDisk) -> u64 {
        if self.reads { disk.reads() } else { disk.calls() }
    }
}

fn plan(disk: &FakeDisk, failing: Failing) {
    let Failing { nth, fault, stays, reads } = failing;
    match (reads, stays) {
        (true, false) => disk.fail_read(disk.reads() + nth),
        (true, true) => (0..1000).for_each(|more| disk.fail_read(disk.reads() + nth + more)),
        (false, true) => disk.fail_from(disk.calls() + nth, fault),
        (false, false) => disk.fail_call(disk.calls() + nth, fault),
    }
}

/// How a run ended.
struct Ended {
    stopped: bool,
    /// Whether the failing call was made.
    reached: bool,
    failed: u64,
    acknowledged_last: bool,
}

/// Writes, checkpoints and reads, whatever fails.
async fn work(
    nodes: &Trio,
    sick: NodeId,
    client: &Client,
    ledger: &Ledger,
    failing: Failing,
    seed: u64,
) -> Result<Ended> {
    let dice = Dice::new(seed);
    let (mut failed, mut acknowledged_last, mut given_up) = (0, false, 0);
    let disk = &nodes.disks[&sick];
    let (at, mut more) = (failing.made(disk) + failing.nth, 0);
    for number in 0..TRANSACTIONS_MAX {
        more += u64::from(failing.made(disk) > at);
        // Reads are few where nothing is looked for on the disk.
        if more > MORE || failing.reads && number > 40 {
            break;
        }
        if number % 7 == 3 {
            // A checkpoint may fail; it is tried again.
            let at = client.at(&crate::memory::address(sick))?;
            let _ = timeout(PATIENCE, at.checkpoint(CHAINS[0])).await;
        }
        if number % 5 == 0 {
            let _ = timeout(PATIENCE, run::chain_step(client, ledger, 0)).await;
        }
        let answered = timeout(PATIENCE, run::add_to_set(client, ledger)).await;
        acknowledged_last = matches!(answered, Ok((End::Acknowledged, _)));
        if !acknowledged_last {
            failed += 1;
            given_up += 1;
        }
        if dice.below(6) == 0 {
            tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
        }
        // A node by itself that has stopped answers nobody any more.
        if given_up > 3 && nodes.disks.len() == 1 {
            break;
        }
    }
    let fatal = timeout(Duration::from_millis(1), nodes.nodes[&sick].wait_fatal()).await;
    let reached = failing.made(disk) > at;
    Ok(Ended { stopped: fatal.is_ok(), reached, failed, acknowledged_last })
}

async fn opens(mut nodes: Trio, sick: NodeId, ledger: &Ledger, bounds: &Bounds) -> Result<()> {
    for id in nodes.disks.keys().copied().filter(|id| *id != sick).collect::<Vec<_>>() {
        nodes.try_run(id).await.with_context(|| format!("node {id} does not open"))?;
    }
    let opened = timeout(PATIENCE, nodes.try_run(sick)).await;
    opened.context("it does not open in time")?.context("it does not open")?;
    let member = run::leader(&nodes).await;
    let reader = Reader::linearizable(&member);
    let found = reader.compare(ledger, bounds).await?;
    ensure!(!found.contains(&Found::Damaged), "a copy is damaged: {found:?}");
    reader.check_sound().await?;
    let client = run::client(&nodes)?;
    let after = "CREATE TABLE IF NOT EXISTS later(id INTEGER)";
    client.database(CHAINS[0]).execute(after, vec![]).await.context("it takes no writes")?;
    run::agree(&nodes).await?;
    nodes.stop_all().await;
    Ok(())
}
