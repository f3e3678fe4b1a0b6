//! R4 where nobody is whole: a file of all three nodes of a stopped cluster is damaged, at the same
//! place or at others.
//!
//! Each node refuses to start and says why, or waits for a peer to mend its log with, or starts.
//! Then a database whose copies are damaged is refused with the error that says so, or is right,
//! where one had what another lacked; the other databases are served and written, also when the
//! leader goes.
//!
//! The end of a log is left alone: nothing can tell what is lost there from a write that was torn,
//! which [`super::alone`] looks at.
//!
//! *Invariant*: what is right is what the ledger has: all that was acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures::future::join_all;
use quire::base::NodeId;
use quire::disk::{Disk, FakeDisk};
use quire::node::NodeError;
use tokio::time::{sleep, timeout};

use super::{Damage, LAST_GROUP_BYTES_MAX, START_MAX};
use super::{choose, end_of_log, end_the_log, inflict_on, refusal};
use crate::memory::Trio;
use crate::storage::cuts::{self, Run};
use crate::storage::run::{self, Bounds, CHAINS, Found, Ledger, Reader, SET};
use crate::storage::{Counts, Dice, Repeat, count, on_a_stopped_clock};

/// Damages of one recorded run; then another is recorded.
const OF_A_RUN: u64 = 30;

/// By then a repair that can be done is done, by the clock that stands still.
const REPAIRED_WITHIN: Duration = Duration::from_secs(20);

type Damages = BTreeMap<NodeId, Damage>;

/// All three nodes, damaged `damages` times.
pub fn all_three(seed: u64, damages: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut done = 0;
    for number in 0.. {
        if done >= damages {
            break;
        }
        let seed = seed.wrapping_mul(1000) + number;
        let said = format!("R4 all three nodes, run {seed}");
        let _repeat = Repeat(said.clone());
        let run = on_a_stopped_clock(cuts::record_three(seed)).context(said.clone())?;
        for nth in 0..OF_A_RUN {
            if done == damages {
                break;
            }
            let disks: BTreeMap<NodeId, FakeDisk> =
                run.disks.iter().map(|(id, disk)| (*id, disk.after_cut(u64::MAX, 1))).collect();
            let Some((hurt, how)) = inflict_on_all(&run, &disks, seed, nth)? else { continue };
            let said = format!("{said}, damage {nth} at {how}: {hurt:?}");
            let _repeat = Repeat(said.clone());
            let nodes = run::nodes_again(disks);
            let end = on_a_stopped_clock(judge(nodes, &run.ledger, &run.ledger.at_end(), &hurt));
            count(&mut counts, end.context(said)?, 1);
            count(&mut counts, how, 1);
            count(&mut counts, "damages", 1);
            done += 1;
        }
    }
    Ok(counts)
}

/// Damages one file of each. `None` where a disk has nothing else than before, or lost the end of
/// its log.
fn inflict_on_all(
    run: &Run,
    disks: &BTreeMap<NodeId, FakeDisk>,
    seed: u64,
    nth: u64,
) -> Result<Option<(Damages, &'static str)>> {
    let dice = Dice::nth(seed, nth);
    let same = dice.below(2) == 0;
    let path = choose(&disks[&1], &dice);
    let mut damages = Damages::new();
    for (id, disk) in disks {
        end_the_log(disk)?;
        let dice = Dice::nth(seed ^ if same { 0xa11 } else { 0xa11 + id }, nth);
        // Segments are not everywhere the same.
        let path = if path.starts_with("log/") || !disk.exists(&path)? {
            let mut paths = disk.paths();
            paths.retain(|path| path.starts_with("log/") && path.ends_with(".seg"));
            dice.pick(&paths).clone()
        } else {
            path.clone()
        };
        let calls = run.disks[id].calls();
        let earlier = run.disks[id].after_cut(calls - dice.below(calls / 3), 1);
        let end = end_of_log(disk)?;
        let Some(damage) = inflict_on(disk, &earlier, &dice, &path)? else { return Ok(None) };
        let at_the_end = |(segment, end): (String, u64)| {
            segment == path && damage.to + LAST_GROUP_BYTES_MAX + 8 >= end
        };
        if end.is_some_and(at_the_end) {
            return Ok(None);
        }
        damages.insert(*id, damage);
    }
    Ok(Some((damages, if same { "the same place" } else { "other places" })))
}

/// The databases that may be refused: those of the damaged files. A record of an earlier time says
/// of all of them that they were at what they are not at any more.
fn hurt_by(damages: &Damages) -> Vec<&'static str> {
    let hurts = |damage: &Damage, name: &str| {
        let of = damage.path.strip_prefix("databases/").and_then(|file| file.split('.').next());
        damage.path == "checkpoint" || of == Some(name)
    };
    let all = CHAINS.into_iter().chain([SET]);
    all.filter(|name| damages.values().any(|damage| hurts(damage, name))).collect()
}

/// How it ended; an error where something wrong was served, or something whole was not.
async fn judge(
    mut nodes: Trio,
    ledger: &Ledger,
    bounds: &Bounds,
    damages: &Damages,
) -> Result<&'static str> {
    let starts = damages.keys().map(|id| {
        let start = nodes.start_of(*id);
        async move { (*id, timeout(START_MAX, start).await) }
    });
    let (mut refused, mut wait) = (Vec::new(), 0);
    for (id, started) in join_all(starts).await {
        match started {
            Ok(Ok(node)) => drop(nodes.nodes.insert(id, node)),
            Ok(Err(error)) => refused.push(names_what(&error, &damages[&id])?),
            Err(_) => {
                let of = &damages[&id].path;
                ensure!(of.starts_with("log/"), "node {id} waits, and {of} is damaged");
                wait += 1;
            }
        }
    }
    for node in nodes.nodes.values() {
        told(&Reader::local(node.member()), ledger).await?;
    }
    if nodes.nodes.len() < 2 {
        nodes.stop_all().await;
        return Ok(match (refused.len(), wait) {
            (3, _) => "all refuse",
            (_, 0) => "too few start",
            _ => "they wait for one another",
        });
    }
    let all_started = nodes.nodes.len() == damages.len();
    served(nodes, ledger, bounds, &hurt_by(damages), all_started).await
}

/// A refusal says what is wrong, and it is what was damaged.
fn names_what(error: &NodeError, damage: &Damage) -> Result<&'static str> {
    let what = refusal(error)?;
    let of = [
        ("log/", "refused: log"),
        ("node.toml", "refused: node.toml"),
        ("checkpoint", "refused: checkpoint record"),
        ("checkpoint", "refused: log"),
        ("databases/", "refused: checkpoint file"),
    ];
    let fits = of.iter().any(|(path, about)| damage.path.starts_with(path) && *about == what);
    ensure!(fits, "{} is damaged, and it says: {error}", damage.path);
    Ok(what)
}

/// Whatever a member tells was true at some time; it may tell nothing.
async fn told(reader: &Reader<'_>, ledger: &Ledger) -> Result<bool> {
    match reader.compare(ledger, &ledger.at_least_nothing()).await {
        Ok(found) => Ok(found.contains(&Found::Damaged)),
        Err(error) if run::is_wrong(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

/// Enough nodes run: all databases but `hurt` are served, and that one rightly or not at all.
async fn served(
    mut nodes: Trio,
    ledger: &Ledger,
    bounds: &Bounds,
    hurt: &[&str],
    all: bool,
) -> Result<&'static str> {
    compare(&nodes, ledger, bounds, hurt).await?;
    let mut noticed = false;
    for node in nodes.nodes.values() {
        for store in node.member().catalog().all() {
            // Reads every page.
            noticed |= store.verify().is_err();
        }
        noticed |= told(&Reader::local(node.member()), ledger).await?;
    }
    sleep(REPAIRED_WITHIN).await;
    let found = compare(&nodes, ledger, bounds, hurt).await?;
    write(&nodes, hurt).await?;
    let lost = found.contains(&Found::Damaged);
    if !lost && all {
        run::agree(&nodes).await?;
    }
    if all {
        let leader = run::leader(&nodes).await.id();
        nodes.stop(leader).await;
        write(&nodes, hurt).await.context("the leader went")?;
        compare(&nodes, ledger, bounds, hurt).await.context("the leader went")?;
    }
    nodes.stop_all().await;
    Ok(match (lost, noticed) {
        (true, _) => "what is damaged is not served",
        (false, true) => "whole from what the others had",
        (false, false) if all => "harmless",
        (false, false) => "enough start",
    })
}

/// Reads everything from the leader.
async fn compare(
    nodes: &Trio,
    ledger: &Ledger,
    bounds: &Bounds,
    hurt: &[&str],
) -> Result<Vec<Found>> {
    let mut why = anyhow!("it was not asked");
    for _ in 0..100 {
        // Leadership may be on its way to somebody whose copy is better.
        let member = run::leader(nodes).await;
        match Reader::linearizable(&member).compare(ledger, bounds).await {
            Ok(found) => {
                for (name, found) in CHAINS.iter().chain([&SET]).zip(&found) {
                    let served = matches!(found, Found::Right(_)) || hurt.contains(name);
                    ensure!(served, "{name} is whole and not served: {found:?}");
                }
                return Ok(found);
            }
            Err(error) if run::is_wrong(&error) => return Err(error),
            Err(error) => why = error,
        }
        sleep(Duration::from_millis(100)).await;
    }
    Err(why.context("nobody answers"))
}

/// Writes to a database that is whole, nothing that the ledger looks at.
async fn write(nodes: &Trio, hurt: &[&str]) -> Result<()> {
    let whole = if hurt.contains(&SET) { "later" } else { SET };
    let client = run::client(nodes)?;
    let sql = "CREATE TABLE IF NOT EXISTS later(id INTEGER)";
    client.database(whole).execute(sql, vec![]).await.context("they take no writes")?;
    Ok(())
}
