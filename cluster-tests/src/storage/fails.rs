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

/// Transactions of one run.
const TRANSACTIONS: usize = 60;

/// A node that does nothing for so long will do nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Alone,
    Leader,
    Follower,
}

/// The calls that fail, how, and for how long.
#[derive(Clone, Copy, Debug)]
struct Failing {
    nth: u64,
    fault: Fault,
    /// From then on.
    stays: bool,
    reads: bool,
}

/// Each call up to the `upto`-th fails once in some way: on a node by itself, on a leader, on a
/// follower.
pub fn calls(seed: u64, upto: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    for nth in 0..upto {
        let dice = Dice::nth(seed, nth);
        let failing = Failing {
            // Past what a run calls there is nothing to fail.
            nth: nth % 600,
            fault: *dice.pick(&[Fault::Io, Fault::Full]),
            stays: dice.below(3) == 0,
            reads: dice.below(4) == 0,
        };
        for whose in [Whose::Alone, Whose::Leader, Whose::Follower] {
            let said = format!("R5 seed {seed}, call {nth}, {whose:?}: {failing:?}");
            let _repeat = Repeat(said.clone());
            let seed = seed.wrapping_mul(1000) + nth;
            let done = on_a_stopped_clock(one(seed, nth, whose, failing, &mut counts));
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
        Whose::Alone | Whose::Leader => leader,
    };
    plan(&disks[&sick], failing);
    let ended = work(&nodes, sick, &client, &ledger, seed).await?;
    if whose == Whose::Follower {
        // One of three is not needed, whatever becomes of it.
        ensure!(ended.acknowledged_last, "the others do not go on");
    }
    *counts.entry("acknowledged").or_default() += ledger.acknowledged();
    count(counts, if ended.stopped { "nodes that stopped" } else { "nodes that went on" }, 1);
    count(counts, "transactions not acknowledged", ended.failed);
    count(counts, "failing calls", 1);

    // The power fails everywhere; the disk is replaced by a good one with what it holds.
    drop(nodes);
    let after = disks.iter().map(|(id, disk)| {
        disk.heal();
        (*id, disk.after_cut(u64::MAX, cut.wrapping_mul(3) + id % 3))
    });
    let nodes = run::nodes(after.collect::<Vec<_>>());
    opens(nodes, sick, &ledger, &ledger.at_end()).await
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
    failed: u64,
    acknowledged_last: bool,
}

/// Writes, checkpoints and reads, whatever fails.
async fn work(
    nodes: &Trio,
    sick: NodeId,
    client: &Client,
    ledger: &Ledger,
    seed: u64,
) -> Result<Ended> {
    let dice = Dice::new(seed);
    let (mut failed, mut acknowledged_last, mut given_up) = (0, false, 0);
    for number in 0..TRANSACTIONS {
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
        if dice.below(4) == 0 {
            tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
        }
        // A node by itself that has stopped answers nobody any more.
        if given_up > 3 && nodes.disks.len() == 1 {
            break;
        }
    }
    let fatal = timeout(Duration::from_millis(1), nodes.nodes[&sick].wait_fatal()).await;
    Ok(Ended { stopped: fatal.is_ok(), failed, acknowledged_last })
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
