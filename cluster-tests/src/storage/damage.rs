//! R4: bytes of a stopped node change: bits and bytes, blocks of zeros, of elsewhere and of an
//! earlier time, files that end early; in its log, its checkpoint record, checkpoint files, bases
//! and page hashes, in `node.toml`, and in what it was receiving.
//!
//! Whatever was damaged, the node refuses to start and says why, or it starts and answers every
//! read rightly or not at all. A record of the log that is damaged before a valid later one is
//! never taken for a torn tail: only where the damage reaches the very end of the log may what it
//! covers be missing, for nothing can tell that from a write that was torn.
//!
//! Four sweeps: a node by itself; one of three, which is whole again afterwards, to the byte; a
//! follower in the middle of a snapshot, likewise; and all three ([`all`]).
//!
//! *Invariant*: what is right is what the undamaged directory holds, read from a copy of it.

mod all;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire::base::{Executor, NodeId};
use quire::disk::{Disk, FakeDisk};
use quire::log::{Log, LogOptions};
use quire::node::NodeError;
use tokio::time::timeout;

use super::cuts::{self, Run};
use super::run::{self, Bounds, Found, Ledger, Reader};
use super::{Counts, Dice, Repeat, count, on_a_stopped_clock};
use crate::memory::{Trio, until};

pub use all::all_three;

/// Damages to the directories of one run; then another is recorded.
const DAMAGES_OF_A_RUN: u64 = 400;

/// The same of three nodes.
const OF_THREE_OF_A_RUN: u64 = 30;

/// A node that has been told of nothing it could do waits for a peer for ever.
const START_MAX: Duration = Duration::from_secs(30);

/// The last group of a log that was ended is no longer than this.
const LAST_GROUP_BYTES_MAX: u64 = 96;

/// A data directory at rest.
struct Image {
    disk: FakeDisk,
    /// Its log's last group is no longer than this: what nothing can tell from a torn one.
    last_group_bytes_max: u64,
    /// The same directory earlier.
    earlier: FakeDisk,
    bounds: Bounds,
}

/// What was changed.
#[derive(Clone, Debug)]
struct Damage {
    path: String,
    kind: &'static str,
    /// The first byte changed, and the first one behind.
    from: u64,
    to: u64,
}

/// A node by itself, damaged `damages` times.
pub fn alone(seed: u64, damages: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut done = 0;
    for number in 0.. {
        if done >= damages {
            break;
        }
        let seed = seed.wrapping_mul(1000) + number;
        let said = format!("R4 one node, run {seed}");
        let _repeat = Repeat(said.clone());
        let (run, images) = images(seed).context(said.clone())?;
        for nth in 0..DAMAGES_OF_A_RUN {
            if done == damages {
                break;
            }
            let dice = Dice::nth(seed, nth);
            let image = dice.pick(&images);
            let disk = image.disk.cut(quire::disk::Cut::Keep);
            let Some(damage) = inflict(&disk, &image.earlier, &dice)? else {
                count(&mut counts, "nothing changed", 1);
                continue;
            };
            let said = format!("{said}, damage {nth}: {damage:?}");
            let _repeat = Repeat(said.clone());
            let end = on_a_stopped_clock(judge(&run.ledger, image, &disk, &damage));
            count(&mut counts, end.context(said)?, 1);
            count(&mut counts, damage.kind, 1);
            count(&mut counts, "damages", 1);
            done += 1;
        }
    }
    Ok(counts)
}

/// Directories of one run: as a stop left it, and as cuts while a checkpoint was made left it.
fn images(seed: u64) -> Result<(Run, Vec<Image>)> {
    let run = on_a_stopped_clock(cuts::record_alone(seed))?;
    let disk = &run.disks[&1];
    let calls = disk.calls();
    let mut wanted = vec![calls];
    let transcript = disk.transcript();
    let published = |call: &&String| call.starts_with("Rename") && call.contains(".ckpt\"");
    for (at, _) in transcript.iter().enumerate().filter(|(_, call)| published(call)) {
        // Soon after its commit point, and when its base is half written.
        wanted.extend([at as u64 + 2, (at as u64 + 6).min(calls)]);
    }
    let dice = Dice::new(seed);
    let mut images = Vec::new();
    let of_a_checkpoint = [(); 2].map(|()| (*dice.pick(&wanted), true));
    for (n, ended) in
        [(calls, false), (calls - dice.below(calls / 2), false)].into_iter().chain(of_a_checkpoint)
    {
        let after = disk.after_cut(n, 1);
        let last_group_bytes_max = if ended {
            end_the_log(&after)?;
            LAST_GROUP_BYTES_MAX
        } else {
            last_write_to_the_log(&transcript[..n as usize])
        };
        let earlier = disk.after_cut(n - dice.below(n / 3), 1);
        let reads = after.cut(quire::disk::Cut::Keep);
        let bounds = on_a_stopped_clock(what_is_there(&run.ledger, reads))?;
        images.push(Image { disk: after, last_group_bytes_max, earlier, bounds });
    }
    Ok((run, images))
}

/// How long the last write to a segment of the log was.
fn last_write_to_the_log(transcript: &[String]) -> u64 {
    let (mut segments, mut bytes) = (Vec::new(), 0);
    for (call, next) in transcript.iter().zip(transcript.iter().skip(1).chain([&String::new()])) {
        let number = |text: &str, after: &str| -> Option<u64> {
            let digits = text.split_once(after)?.1;
            digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        if call.starts_with("Create") && call.contains("log/") {
            segments.extend(number(next, "inode: "));
        } else if number(call, "write file ").is_some_and(|file| segments.contains(&file)) {
            bytes = number(call, ": ").unwrap_or(u64::MAX);
        }
    }
    bytes
}

/// Ends the log in a group of its own that says nothing new.
fn end_the_log(disk: &FakeDisk) -> Result<()> {
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let log = Log::open(Arc::new(disk.clone()), Executor::Inline, options)?;
    if let Some(vote) = log.state().vote {
        log.save_vote(vote, Box::new(drop));
    }
    log.stop();
    Ok(())
}

/// Exactly what a directory holds.
async fn what_is_there(ledger: &Ledger, disk: FakeDisk) -> Result<Bounds> {
    let mut nodes = run::nodes_again([(1, disk)]);
    nodes.try_run(1).await?;
    let member = run::leader(&nodes).await;
    let reader = Reader::linearizable(&member);
    let found = reader.compare(ledger, &ledger.at_least_nothing()).await?;
    let chains = found[..run::CHAINS.len()].iter().map(|found| match found {
        Found::Right(transactions) => (*transactions as usize, *transactions as usize),
        _ => (0, 0),
    });
    let chains = chains.collect();
    let set = reader.set().await?.unwrap_or_default();
    let below = set.last().map_or(0, |last| last + 1);
    reader.check_sound().await?;
    nodes.stop_all().await;
    Ok(Bounds { chains, set: (set, below) })
}

/// Changes something, as the dice fall. `None` where nothing is another than before.
fn inflict(disk: &FakeDisk, earlier: &FakeDisk, dice: &Dice) -> Result<Option<Damage>> {
    inflict_on(disk, earlier, dice, &choose(disk, dice))
}

/// A file.
fn choose(disk: &FakeDisk, dice: &Dice) -> String {
    let mut paths = disk.paths();
    paths.retain(|path| !path.starts_with("tmp/") && !path.ends_with(".tmp"));
    // Files of each kind alike, however many there are of it.
    let kinds = ["log/", "node.toml", "checkpoint", ".ckpt", ".db", ".sum", "incoming/", ".db"];
    let kind = *dice.pick(&kinds);
    let of_kind: Vec<&String> = paths.iter().filter(|path| path.contains(kind)).collect();
    if of_kind.is_empty() { dice.pick(&paths).clone() } else { (*dice.pick(&of_kind)).clone() }
}

fn inflict_on(
    disk: &FakeDisk,
    earlier: &FakeDisk,
    dice: &Dice,
    path: &str,
) -> Result<Option<Damage>> {
    let before = disk.bytes(path)?;
    let written = before.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
    // Mostly where something stands.
    let len = before.len() as u64;
    let within = if dice.below(20) == 0 { len } else { written };
    let at = dice.below(within.max(1));
    let block = at / 4096 * 4096;
    let kind = match dice.below(8) {
        0 | 1 => {
            disk.flip(path, at, &[1 << dice.below(8)])?;
            "one bit"
        }
        2 => {
            disk.flip(path, at, &[1 + dice.below(255) as u8])?;
            "one byte"
        }
        3 => {
            let masks = 2 + dice.below(60);
            disk.flip(path, at, &dice.bytes(masks))?;
            "several bytes"
        }
        4 => {
            disk.overwrite(path, block, &[0; 4096])?;
            "a block of zeros"
        }
        5 => {
            let mut paths = disk.paths();
            if dice.below(2) == 0 {
                paths = vec![path.to_owned()];
            }
            let from = dice.pick(&paths);
            let start = dice.below(disk.bytes(from)?.len() as u64) / 512 * 512;
            disk.misdirect((path, block), disk, (from, start), *dice.pick(&[512, 4096]))?;
            "a block of elsewhere"
        }
        6 if earlier.exists(path)? => {
            disk.misdirect((path, block), earlier, (path, block), 4096)?;
            "a block of before"
        }
        _ => {
            disk.truncate(path, at)?;
            "an early end"
        }
    };
    let after = disk.bytes(path)?;
    let differ = |at: &usize| before.get(*at) != after.get(*at);
    let Some(from) = (0..before.len()).find(differ) else { return Ok(None) };
    let to = (0..before.len()).rfind(differ).unwrap_or(from) as u64 + 1;
    Ok(Some(Damage { path: path.to_owned(), kind, from: from as u64, to }))
}

/// How it ended; an error where something wrong was served.
async fn judge(
    ledger: &Ledger,
    image: &Image,
    disk: &FakeDisk,
    damage: &Damage,
) -> Result<&'static str> {
    let mut nodes = run::nodes_again([(1, disk.clone())]);
    match timeout(START_MAX, nodes.try_run(1)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return refusal(&error),
        Err(_) => bail!("a node without peers waits for one"),
    }
    let member = run::leader(&nodes).await;
    let reader = Reader::linearizable(&member);
    let found = match reader.compare(ledger, &image.bounds).await {
        Ok(found) => found,
        Err(error) => {
            // What is left if all behind the damage is gone.
            let least = at_the_end(ledger, image, damage).await?.ok_or(error)?;
            let found = reader.compare(ledger, &least).await?;
            ensure!(!found.contains(&Found::Damaged), "lost and damaged");
            return Ok("the end of the log, lost");
        }
    };
    let sound = reader.check_sound().await;
    nodes.stop_all().await;
    if found.contains(&Found::Damaged) {
        return Ok("found by a read");
    }
    match sound {
        Ok(()) if disk.paths().iter().any(|path| path.starts_with("log/damaged/")) => {
            Ok("mended by proof")
        }
        Ok(()) => Ok("harmless"),
        Err(error) if format!("{error:#}").contains("damaged") => Ok("found by the deep digest"),
        Err(error) => Err(error),
    }
}

/// Where the damage reaches the end of the log: what a log that ends before it holds, at least.
async fn at_the_end(ledger: &Ledger, image: &Image, damage: &Damage) -> Result<Option<Bounds>> {
    let cut = image.disk.cut(quire::disk::Cut::Keep);
    let Some((path, end)) = end_of_log(&cut)? else { return Ok(None) };
    if damage.path != path || damage.to + image.last_group_bytes_max + 8 < end {
        return Ok(None);
    }
    cut.overwrite(&path, damage.from, &vec![0; (end - damage.from) as usize])?;
    let mut least = what_is_there(ledger, cut).await?;
    for (least, all) in least.chains.iter_mut().zip(&image.bounds.chains) {
        least.1 = all.1;
    }
    least.set.1 = image.bounds.set.1;
    Ok(Some(least))
}

/// The segment in which a log ends, and where.
fn end_of_log(disk: &FakeDisk) -> Result<Option<(String, u64)>> {
    let mut head = None;
    for path in disk.paths().into_iter().filter(|path| path.ends_with(".seg")) {
        let bytes = disk.bytes(&path)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            head = Some((path, last as u64 + 1));
        }
    }
    Ok(head)
}

/// What a refusal to start is about; an error where it does not say that, or not what to do.
fn refusal(error: &NodeError) -> Result<&'static str> {
    let said = error.to_string();
    let about = [
        ("node.toml", "refused: node.toml"),
        ("checkpoint record", "refused: checkpoint record"),
        ("checkpoint file", "refused: checkpoint file"),
        ("install record", "refused: install record"),
        ("Raft log", "refused: log"),
        ("the log ends before", "refused: log"),
        ("the log begins after", "refused: checkpoint record"),
    ];
    let found = about.iter().find(|(text, _)| said.contains(text)).map(|(_, about)| *about);
    ensure!(said.contains("remove this member"), "it does not say what to do: {said}");
    found.with_context(|| format!("it refuses and does not say what is wrong: {said}"))
}

/// One of three nodes, damaged `damages` times.
pub fn one_of_three(seed: u64, damages: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut done = 0;
    for number in 0.. {
        if done >= damages {
            break;
        }
        let seed = seed.wrapping_mul(1000) + number;
        let said = format!("R4 one of three nodes, run {seed}");
        let _repeat = Repeat(said.clone());
        let run = on_a_stopped_clock(cuts::record_three(seed)).context(said.clone())?;
        let bounds = run.ledger.at_end();
        for nth in 0..OF_THREE_OF_A_RUN {
            if done == damages {
                break;
            }
            let dice = Dice::nth(seed, nth);
            let disks: BTreeMap<NodeId, FakeDisk> =
                run.disks.iter().map(|(id, disk)| (*id, disk.after_cut(u64::MAX, 1))).collect();
            let hurt = 1 + dice.below(3);
            let n = run.disks[&hurt].calls();
            let earlier = run.disks[&hurt].after_cut(n - dice.below(n / 3), 1);
            let Some(damage) = inflict(&disks[&hurt], &earlier, &dice)? else { continue };
            let said = format!("{said}, damage {nth} on node {hurt}: {damage:?}");
            let _repeat = Repeat(said.clone());
            let nodes = run::nodes_again(disks);
            let end = on_a_stopped_clock(whole_again(nodes, hurt, &run.ledger, &bounds));
            count(&mut counts, end.context(said)?, 1);
            count(&mut counts, damage.kind, 1);
            count(&mut counts, "damages", 1);
            done += 1;
        }
    }
    Ok(counts)
}

/// A follower that was stopped in the middle of receiving a snapshot, damaged `damages` times in
/// what it had received of it.
pub fn receiving(seed: u64, damages: u64) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut done = 0;
    for number in 0.. {
        if done >= damages {
            break;
        }
        let seed = seed.wrapping_mul(1000) + number;
        let said = format!("R4 a reception, run {seed}");
        let _repeat = Repeat(said.clone());
        let run = on_a_stopped_clock(cuts::record_reception(seed)).context(said.clone())?;
        let bounds = run.ledger.at_end();
        let moments = of_a_reception(&run.disks[&3])?;
        for nth in 0..OF_THREE_OF_A_RUN {
            if done == damages {
                break;
            }
            let dice = Dice::nth(seed, nth);
            let at = *dice.pick(&moments);
            let stopped = |(id, disk): (&NodeId, &FakeDisk)| {
                (*id, disk.after_cut(if *id == 3 { at } else { u64::MAX }, 1))
            };
            let disks: BTreeMap<NodeId, FakeDisk> = run.disks.iter().map(stopped).collect();
            let received: Vec<String> =
                disks[&3].paths().into_iter().filter(|path| is_received(path)).collect();
            if received.is_empty() {
                continue;
            }
            let path = dice.pick(&received);
            let earlier = run.disks[&3].after_cut(at - dice.below(20).min(at), 1);
            let Some(damage) = inflict_on(&disks[&3], &earlier, &dice, path)? else { continue };
            let said = format!("{said}, damage {nth} after call {at}: {damage:?}");
            let _repeat = Repeat(said.clone());
            let nodes = run::nodes_again(disks);
            let end = on_a_stopped_clock(whole_again(nodes, 3, &run.ledger, &bounds));
            count(&mut counts, end.context(said)?, 1);
            count(&mut counts, damage.kind, 1);
            count(&mut counts, "damages", 1);
            done += 1;
        }
    }
    Ok(counts)
}

/// Whether a file has been received and is not in its place yet, or says what is to be put there.
fn is_received(path: &str) -> bool {
    path.starts_with("incoming/") || path.starts_with("databases/.")
}

/// All moments between the first file that is received and the end of the install.
fn of_a_reception(disk: &FakeDisk) -> Result<Vec<u64>> {
    let transcript = disk.transcript();
    let of_it = |call: &String| call.contains("incoming/") || call.contains("databases/.");
    let from = transcript.iter().position(of_it).context("nothing was received")?;
    let to = transcript.iter().rposition(of_it).unwrap_or(from);
    Ok((from as u64 + 1..=to as u64).collect())
}

/// The two others serve; the damaged one refuses to start, or is the same as they are in the end.
async fn whole_again(
    mut nodes: Trio,
    hurt: NodeId,
    ledger: &Ledger,
    bounds: &Bounds,
) -> Result<&'static str> {
    for id in (1..=3).filter(|id| *id != hurt) {
        nodes.try_run(id).await.with_context(|| format!("node {id}"))?;
    }
    let started = timeout(START_MAX, nodes.try_run(hurt)).await;
    let member = run::leader(&nodes).await;
    let refused = match started {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(refusal(&error)?),
        Err(_) => bail!("node {hurt} waits, though its peers are there"),
    };
    if let Some(refused) = refused {
        Reader::linearizable(&member).compare(ledger, bounds).await?;
        nodes.stop_all().await;
        return Ok(refused);
    }
    // Nothing wrong is told by it, whatever it has noticed yet.
    let hurt_member = nodes.member(hurt).clone();
    let told = timeout(START_MAX, Reader::local(&hurt_member).compare(ledger, bounds)).await;
    let noticed = match told.context("no answer from the damaged node")? {
        Ok(found) => found.contains(&Found::Damaged),
        // It does not read before it has heard from the others.
        Err(error) if format!("{error:#}").contains("has just started") => false,
        // It may lag behind; what it tells must be of some time all the same.
        Err(_) => {
            Reader::local(&hurt_member).compare(ledger, &ledger.at_least_nothing()).await?;
            false
        }
    };
    let whole = || {
        let stores = hurt_member.catalog().all();
        // Reads every page.
        let verified: Vec<_> = stores.iter().map(|store| store.verify().is_ok()).collect();
        verified.iter().all(|sound| *sound).then_some(verified.len())
    };
    let at_once = whole().is_some();
    until("the damaged copy to be whole", whole).await;
    run::agree(&nodes).await?;
    let member = run::leader(&nodes).await;
    Reader::linearizable(&member).compare(ledger, bounds).await?;
    same_files(&nodes).await?;
    nodes.stop_all().await;
    Ok(match (noticed, at_once) {
        (true, _) => "found by a read, repaired",
        (false, false) => "found by the deep digest, repaired",
        (false, true) => "harmless",
    })
}

/// Checkpoints everywhere, and then the databases' files are the same to the byte.
async fn same_files(nodes: &Trio) -> Result<()> {
    let mut files: Vec<BTreeMap<String, Vec<u8>>> = Vec::new();
    for (id, node) in &nodes.nodes {
        node.member().checkpoint().await?;
        let disk = &nodes.disks[id];
        let stored = |path: &String| path.starts_with("databases/");
        let paths = disk.paths().into_iter().filter(stored);
        files.push(
            paths.map(|path| (path.clone(), disk.bytes(&path).unwrap_or_default())).collect(),
        );
    }
    for (id, other) in nodes.nodes.keys().zip(&files) {
        for (path, bytes) in &files[0] {
            ensure!(other.get(path) == Some(bytes), "{path} of node {id} is another");
        }
    }
    Ok(())
}
