//! What goes wrong in a run: the thirteen nemeses of the long run, and a rolling upgrade.
//!
//! A [`Nemesis`] is a kind of fault; each time that it strikes, who is hit is drawn anew from the
//! run's chances, the leader more often than chance would have it. What it does stays until it is
//! healed.
//!
//! There is none that sets clocks: processes share the machine's clock, and a time namespace moves
//! the monotonic clock by a constant, which changes no length of time. Clocks that jump are the
//! simulation's.
//!
//! *Invariant*: healing takes back all that striking did: the links are whole, all members run, and
//! their disks have room.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire::driver::{Client, Options as ClientOptions};
use tokio::task::block_in_place;

use super::Chance;
use super::relay::{CLIENTS, Link, Relay};
use crate::{Cluster, Options, leader_known_to, wait_for};

/// How often the leader is hit, where one node is.
const LEADER_ONE_IN: u64 = 2;

/// What a full disk has left: less than the reserve, so that writes are refused, and enough for
/// the log to go on.
const LEFT_BYTES: u64 = 24 << 20;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nemesis {
    /// No fault.
    None,
    /// A node is killed; in a cluster of five, or now and then, more than one.
    Kill,
    /// A node is stopped in an orderly manner.
    Stop,
    /// A node is paused.
    Pause,
    /// A minority, often with the leader, is cut off from the majority.
    Majority,
    /// One member is cut off from all others.
    Member,
    /// What one member says is not heard, or what is said to it.
    OneWay,
    /// Each member sees its two neighbours only; of three, two do not see each other.
    Ring,
    /// All links are slow, stall and break, those of clients too.
    Slow,
    /// The disk of one node or of most is full.
    Full,
    /// A node joins, another leaves for good.
    Members,
    /// A node is killed while another is cut off.
    KillInPartition,
    /// A node is paused while the disk of another is full.
    PauseInFull,
    /// All nodes are stopped and started, one after the other.
    Upgrade,
}

impl Nemesis {
    /// The thirteen of the long run.
    pub const ALL: [Nemesis; 13] = [
        Nemesis::None,
        Nemesis::Kill,
        Nemesis::Stop,
        Nemesis::Pause,
        Nemesis::Majority,
        Nemesis::Member,
        Nemesis::OneWay,
        Nemesis::Ring,
        Nemesis::Slow,
        Nemesis::Full,
        Nemesis::Members,
        Nemesis::KillInPartition,
        Nemesis::PauseInFull,
    ];

    /// Its name, for people and for files.
    pub fn name(self) -> &'static str {
        match self {
            Nemesis::None => "none",
            Nemesis::Kill => "kill",
            Nemesis::Stop => "stop",
            Nemesis::Pause => "pause",
            Nemesis::Majority => "majority",
            Nemesis::Member => "member",
            Nemesis::OneWay => "one-way",
            Nemesis::Ring => "ring",
            Nemesis::Slow => "slow",
            Nemesis::Full => "full",
            Nemesis::Members => "members",
            Nemesis::KillInPartition => "kill-in-partition",
            Nemesis::PauseInFull => "pause-in-full",
            Nemesis::Upgrade => "upgrade",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Nemesis> {
        let all = Nemesis::ALL.into_iter().chain([Nemesis::Upgrade]);
        all.into_iter().find(|nemesis| nemesis.name() == name)
    }
}

/// What takes a part of a fault back.
enum Undo {
    Links,
    Restart(usize),
    Resume(usize),
    /// The budgets of these nodes are lifted.
    Room(Vec<usize>),
    /// A member that is not this one leaves, now that this one has joined.
    Shrink(usize),
}

/// A fault that has struck.
pub struct Fault {
    /// What it is, for the timeline.
    pub label: String,
    undo: Vec<Undo>,
}

/// What is struck: a cluster, the network between its nodes, its disks.
pub struct World {
    /// The processes.
    pub cluster: Cluster,
    /// The network.
    pub relay: Arc<Relay>,
    /// The nodes that should run: all that have joined and have not left.
    pub members: BTreeSet<usize>,
    /// A client for what an operator does.
    pub operator: Client,
    chance: Chance,
    /// The configuration that all nodes share, for the one key that changes.
    config: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    /// Starts a cluster behind a relay.
    pub async fn start(nodes: usize, seed: u64) -> Result<World> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("quire.toml");
        write_budget(&config, None)?;
        let relay = Arc::new(Relay::new(seed));
        // Little log is kept, so that who was away needs a snapshot now and then.
        let options = Options::new(nodes)
            .relay(&relay)
            .config(&config)
            .set("limits.log_keep_bytes", "8 MiB")
            .set("limits.overlay_bytes", "8 MiB");
        let cluster = Cluster::start_with(options).await?;
        let options =
            ClientOptions { call_timeout: Duration::from_secs(5), ..ClientOptions::default() };
        let operator = Client::new(cluster.addresses(), options)?;
        let members = (1..=nodes).collect();
        let chance = Chance::new(seed ^ 0x6e65_6d65);
        Ok(World { cluster, relay, members, operator, chance, config, _dir: dir })
    }

    /// Whom most of the nodes that run take for the leader.
    pub async fn leader(&self) -> Option<usize> {
        let mut known = Vec::new();
        for id in self.cluster.running() {
            if let Some(address) = leader_known_to(self.cluster.direct(id)).await {
                let leader = self.members.iter().find(|id| self.cluster.address(**id) == address);
                known.extend(leader.copied());
            }
        }
        known.iter().copied().max_by_key(|id| known.iter().filter(|other| *other == id).count())
    }

    /// Somebody to hit.
    async fn victim(&self, but: &[usize]) -> Result<usize> {
        let leader = self.leader().await.filter(|leader| !but.contains(leader));
        if let Some(leader) = leader
            && self.chance.one_in(LEADER_ONE_IN)
        {
            return Ok(leader);
        }
        let all: Vec<usize> = self.members.iter().copied().filter(|id| !but.contains(id)).collect();
        self.chance.pick(&all).copied().context("nobody is left to be hit")
    }

    async fn named(&self, id: usize) -> String {
        match self.leader().await {
            Some(leader) if leader == id => format!("{id} (leader)"),
            _ => id.to_string(),
        }
    }

    /// Strikes.
    pub async fn strike(&mut self, nemesis: Nemesis) -> Result<Fault> {
        let fault = |label: String, undo: Vec<Undo>| Fault { label, undo };
        Ok(match nemesis {
            Nemesis::None => fault("no fault".to_owned(), Vec::new()),
            Nemesis::Kill => self.kill().await?,
            Nemesis::Stop => {
                let id = self.victim(&[]).await?;
                let label = format!("stop {}", self.named(id).await);
                let code = block_in_place(|| self.cluster.stop(id))?;
                ensure!(code == Some(0), "node {id} stopped with exit code {code:?}");
                fault(label, vec![Undo::Restart(id)])
            }
            Nemesis::Pause => {
                let id = self.victim(&[]).await?;
                let label = format!("pause {}", self.named(id).await);
                block_in_place(|| self.cluster.pause(id))?;
                fault(label, vec![Undo::Resume(id)])
            }
            Nemesis::Majority => {
                let minority = self.minority().await?;
                self.cut_off(&minority);
                fault(format!("cut off {}", list(&minority)), vec![Undo::Links])
            }
            Nemesis::Member => {
                let id = self.victim(&[]).await?;
                let label = format!("cut off {}", self.named(id).await);
                self.cut_off(&[id]);
                fault(label, vec![Undo::Links])
            }
            Nemesis::OneWay => self.cut_one_way().await?,
            Nemesis::Ring => fault(self.make_ring(), vec![Undo::Links]),
            Nemesis::Slow => fault(self.slow_down(), vec![Undo::Links]),
            Nemesis::Full => {
                let first = self.victim(&[]).await?;
                let most = self.members.len() / 2 + 1;
                let count = if self.chance.one_in(2) { 1 } else { most };
                let full = self.some(count, first);
                self.fill(&full).await?;
                fault(format!("disk full {}", list(&full)), vec![Undo::Room(full)])
            }
            Nemesis::Members => self.grow().await?,
            Nemesis::KillInPartition => {
                let cut = self.victim(&[]).await?;
                let label = format!("cut off {}", self.named(cut).await);
                self.cut_off(&[cut]);
                let killed = self.victim(&[cut]).await?;
                block_in_place(|| self.cluster.kill(killed))?;
                let undo = self.either_first(Undo::Links, Undo::Restart(killed));
                fault(format!("{label}, kill {killed}"), undo)
            }
            Nemesis::PauseInFull => {
                let full = self.victim(&[]).await?;
                let label = format!("disk full {}", self.named(full).await);
                self.fill(&[full]).await?;
                let paused = self.victim(&[full]).await?;
                block_in_place(|| self.cluster.pause(paused))?;
                let undo = self.either_first(Undo::Room(vec![full]), Undo::Resume(paused));
                fault(format!("{label}, pause {paused}"), undo)
            }
            Nemesis::Upgrade => {
                self.restart_one_by_one().await?;
                fault("rolling upgrade".to_owned(), Vec::new())
            }
        })
    }

    /// Takes a fault back.
    pub async fn heal(&mut self, fault: Fault) -> Result<()> {
        for undo in fault.undo {
            match undo {
                Undo::Links => {
                    if self.chance.one_in(2) {
                        self.reset_all();
                    }
                    self.relay.heal();
                }
                Undo::Restart(id) => self.cluster.restart(id)?,
                Undo::Resume(id) => self.cluster.resume(id)?,
                Undo::Room(ids) => self.set_budgets(&ids, None).await?,
                Undo::Shrink(new) => self.shrink(new).await?,
            }
        }
        Ok(())
    }

    /// Heals all that could be wrong at the end, whatever happened.
    pub async fn heal_all(&mut self) -> Result<()> {
        self.relay.heal();
        for id in self.members.clone() {
            self.cluster.resume(id)?;
            self.cluster.restart(id)?;
        }
        self.cluster.wait_for_leader().await.map(drop)
    }

    async fn kill(&mut self) -> Result<Fault> {
        let first = self.victim(&[]).await?;
        let most = match self.members.len() {
            // All at once, now and then.
            len if self.chance.one_in(6) => len,
            len => 1 + self.chance.below((len as u64 - 1) / 2) as usize,
        };
        let label = format!("kill {}", self.named(first).await);
        let ids = self.some(most, first);
        for id in &ids {
            block_in_place(|| self.cluster.kill(*id))?;
        }
        let others = &ids[1..];
        let label = match others {
            [] => label,
            others => format!("{label}, {}", list(others)),
        };
        Ok(Fault { label, undo: ids.into_iter().map(Undo::Restart).collect() })
    }

    /// `count` members, `first` the first of them.
    fn some(&self, count: usize, first: usize) -> Vec<usize> {
        let mut rest: Vec<usize> = self.members.iter().copied().filter(|id| *id != first).collect();
        let mut some = vec![first];
        while some.len() < count && !rest.is_empty() {
            let at = self.chance.below(rest.len() as u64) as usize;
            some.push(rest.swap_remove(at));
        }
        some
    }

    async fn minority(&self) -> Result<Vec<usize>> {
        let first = self.victim(&[]).await?;
        Ok(self.some((self.members.len() - 1) / 2, first))
    }

    /// Nothing goes between these and the other members. Clients reach all of them.
    fn cut_off(&self, these: &[usize]) {
        let others = self.members.iter().filter(|id| !these.contains(id));
        for other in others {
            for this in these {
                self.relay.set_both(*this, *other, Link::CUT);
            }
        }
        if self.chance.one_in(3) {
            self.reset_all();
        }
    }

    async fn cut_one_way(&self) -> Result<Fault> {
        let id = self.victim(&[]).await?;
        let named = self.named(id).await;
        let says = self.chance.one_in(2);
        for other in self.members.iter().filter(|other| **other != id) {
            let (from, to) = if says { (id, *other) } else { (*other, id) };
            self.relay.set(from, to, Link::CUT);
        }
        let label = if says { "nobody hears" } else { "not told to" };
        Ok(Fault { label: format!("{label} {named}"), undo: vec![Undo::Links] })
    }

    fn make_ring(&self) -> String {
        let mut order: Vec<usize> = self.members.iter().copied().collect();
        for at in (1..order.len()).rev() {
            order.swap(at, self.chance.below(at as u64 + 1) as usize);
        }
        let len = order.len();
        for (at, a) in order.iter().enumerate() {
            for (other, b) in order.iter().enumerate().skip(at + 1) {
                let apart = other - at;
                // Of three all would be neighbours: there the ends of the row do not meet.
                let closed = len > 3 && apart == len - 1;
                if apart > 1 && !closed {
                    self.relay.set_both(*a, *b, Link::CUT);
                }
            }
        }
        format!("ring {}", list(&order))
    }

    fn slow_down(&self) -> String {
        let ms = |ms: u64| Duration::from_millis(ms);
        let link = Link {
            latency: ms(1 + self.chance.below(25)),
            jitter: ms(1 + self.chance.below(25)),
            stalls: 1 + self.chance.below(8),
            resets: 1 + self.chance.below(10),
            ..Link::QUICK
        };
        let parties: Vec<usize> = [CLIENTS].into_iter().chain(self.members.clone()).collect();
        for (at, a) in parties.iter().enumerate() {
            for b in &parties[at + 1..] {
                self.relay.set_both(*a, *b, link);
            }
        }
        let Link { latency, stalls, .. } = link;
        format!("slow {} ms, {stalls}/1000 stalled", latency.as_millis())
    }

    fn reset_all(&self) {
        for a in &self.members {
            for b in self.members.range(a + 1..) {
                self.relay.reset(*a, *b);
            }
        }
    }

    fn either_first(&self, one: Undo, other: Undo) -> Vec<Undo> {
        if self.chance.one_in(2) { vec![one, other] } else { vec![other, one] }
    }

    async fn fill(&self, ids: &[usize]) -> Result<()> {
        self.set_budgets(ids, Some(LEFT_BYTES)).await
    }

    /// Leaves these nodes so much room, or as much as there is.
    async fn set_budgets(&self, ids: &[usize], left: Option<u64>) -> Result<()> {
        const READ: &str = "SIGHUP: the configuration was read";
        for id in ids {
            let budget = match left {
                Some(left) => Some(bytes_in(self.cluster.dir(*id))? + left),
                None => None,
            };
            write_budget(&self.config, budget)?;
            let before = self.cluster.log(*id).matches(READ).count();
            self.cluster.reload(*id)?;
            wait_for("a node to read its configuration", async || {
                Ok((self.cluster.log(*id).matches(READ).count() > before).then_some(()))
            })
            .await?;
        }
        write_budget(&self.config, None)
    }

    async fn grow(&mut self) -> Result<Fault> {
        let new = self.cluster.grow()?;
        self.members.insert(new);
        self.wait_listed(new).await?;
        if self.chance.one_in(2) {
            // Refused while the roles change, and then nothing is lost but a chance.
            let _ = self.operator.transfer(None).await;
        }
        Ok(Fault { label: format!("join {new}"), undo: vec![Undo::Shrink(new)] })
    }

    /// Somebody leaves. Node 1 never does: clients that know the first addresses only find it.
    async fn shrink(&mut self, new: usize) -> Result<()> {
        let old = self.victim(&[1, new]).await?;
        wait_for("a member to be removed", async || {
            if self.leader().await == Some(old) {
                // Refused while a change is under way; whoever leads then is asked again.
                let _ = self.operator.transfer(None).await;
            } else if let Ok(()) = self.operator.remove(old as u64).await {
                return Ok(Some(()));
            }
            let gone = self.operator.cluster().await;
            Ok(gone.ok().filter(|all| all.iter().all(|of| of.id != old as u64)).map(drop))
        })
        .await?;
        self.members.remove(&old);
        block_in_place(|| self.cluster.kill(old))
    }

    async fn wait_listed(&self, id: usize) -> Result<()> {
        wait_for("a node to be listed", async || {
            let all = self.operator.cluster().await.unwrap_or_default();
            Ok(all.iter().any(|of| of.id == id as u64).then_some(()))
        })
        .await
    }

    async fn restart_one_by_one(&mut self) -> Result<()> {
        for id in self.members.clone() {
            let code = block_in_place(|| self.cluster.stop(id))?;
            ensure!(code == Some(0), "node {id} stopped with exit code {code:?}");
            self.cluster.restart(id)?;
            self.cluster.wait_for_leader().await?;
        }
        Ok(())
    }
}

fn list(ids: &[usize]) -> String {
    ids.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

fn write_budget(config: &Path, bytes: Option<u64>) -> Result<()> {
    let text = bytes.map_or("none".to_owned(), |bytes| bytes.to_string());
    // Whoever reads it meanwhile reads one or the other.
    let next = config.with_extension("next");
    std::fs::write(&next, format!("[limits]\ndisk_budget = \"{text}\"\n"))?;
    Ok(std::fs::rename(next, config)?)
}

/// What the files below a directory hold.
fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // One that is gone meanwhile holds nothing.
        let Ok(about) = entry.metadata() else { continue };
        bytes += if about.is_dir() { bytes_in(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}
