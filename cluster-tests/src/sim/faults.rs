//! What goes wrong in a simulation: drawn from the seed, a few things at a time, each for a while.
//!
//! *Invariant*: after [`Faults::heal`] every node runs (or is starting) on the disk that it has, every
//! link is whole and every clock is right.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quire::base::{NodeId, Randomness as _, SplitMix};
use quire::disk::Disk as _;
use quire::disk::fake::{Cut, Fault};
use quire::raft::machine::applied_members;
use turmoil::Sim;

use super::load::{Ask, Shared};
use super::place::{Place, host};
use super::trace::Trace;

/// Latency of a link at most, when all is well.
pub const LATENCY: Duration = Duration::from_millis(8);

/// Between the beginnings of two faults, at most: one of these for a whole run.
const PAUSES_MS: [u64; 4] = [2_000, 4_000, 8_000, 16_000];

/// A node that stops gracefully has done so within this.
const STOP_MAX: Duration = Duration::from_secs(8);

/// Requests of an operator that wait for the one before.
const ASKED_MAX: usize = 8;

/// How long a fault lasts, at most.
const LASTS_MS: u64 = 9_000;

/// What ends a fault.
#[derive(Clone, Debug)]
enum Mend {
    /// Starts the node again.
    Start(NodeId),
    /// Joins two nodes again, in one direction.
    Link(NodeId, NodeId),
    /// Lets what was held go on.
    Release(NodeId, NodeId),
    /// The links are as fast as they were.
    Latency,
    /// There is room on the disk again.
    Room(NodeId),
    /// The clock is right again.
    Clock(NodeId),
    /// The node is stopped, to be started with the new program.
    Upgrade(NodeId),
}

/// The faults of a run.
pub struct Faults {
    places: Vec<Rc<Place>>,
    random: SplitMix,
    trace: Rc<Trace>,
    pause_ms: u64,
    next: Duration,
    mends: Vec<(Duration, Mend)>,
    shared: Rc<Shared>,
    /// A member was replaced: once in a run.
    replaced: bool,
    /// The new program is there.
    upgraded: bool,
    /// When it comes, where nodes have a gate.
    upgrade_at: Duration,
    /// How often each kind was done.
    counts: BTreeMap<&'static str, u64>,
}

impl Faults {
    /// None yet.
    pub fn new(seed: u64, places: &[Rc<Place>], shared: &Rc<Shared>, trace: &Rc<Trace>) -> Faults {
        Faults {
            shared: shared.clone(),
            replaced: false,
            upgraded: false,
            upgrade_at: Duration::from_millis(1_000 + seed % 30_000),
            places: places.to_vec(),
            pause_ms: PAUSES_MS[(seed % 4) as usize],
            random: SplitMix::new(seed),
            trace: trace.clone(),
            next: Duration::ZERO,
            mends: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// How often each kind was done.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    fn place(&self, id: NodeId) -> &Rc<Place> {
        &self.places[id as usize - 1]
    }

    fn nodes(&self) -> u64 {
        self.places.len() as u64
    }

    /// Does what is due, and starts nodes that have ended by themselves.
    pub fn step(&mut self, sim: &mut Sim<'_>) {
        let now = self.trace.now();
        self.mend_until(sim, now);
        for id in 1..=self.nodes() {
            let ended = self.place(id).ended().is_some() && !sim.is_host_running(host(id));
            let planned = self.mends.iter().any(|(_, m)| matches!(m, Mend::Start(n) if *n == id));
            if ended && !planned {
                let pause = Duration::from_millis(200 + self.below(3_000));
                self.mends.push((now + pause, Mend::Start(id)));
            }
        }
        if !self.upgraded && self.places[0].schema().is_some() && now >= self.upgrade_at {
            self.upgrade();
        }
        if now >= self.next {
            self.next = now + Duration::from_millis(self.below(self.pause_ms));
            let until = now + Duration::from_millis(100 + self.below(LASTS_MS));
            self.begin(sim, until);
        }
    }

    fn mend_until(&mut self, sim: &mut Sim<'_>, now: Duration) {
        let due;
        (due, self.mends) =
            std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| *at <= now);
        for (_, mend) in due {
            self.mend(sim, &mend);
        }
    }

    fn mend(&mut self, sim: &mut Sim<'_>, mend: &Mend) {
        self.trace.note(|| format!("mend: {mend:?}"));
        match mend {
            Mend::Start(id) if !sim.is_host_running(host(*id)) => sim.bounce(host(*id)),
            Mend::Start(id) if self.place(*id).is_stopping() => {
                // It takes its time.
                self.mends.push((self.trace.now() + Duration::from_millis(500), mend.clone()));
            }
            Mend::Start(_) => {}
            Mend::Link(a, b) => sim.repair_oneway(host(*a), host(*b)),
            Mend::Release(a, b) => sim.release(host(*a), host(*b)),
            Mend::Latency => sim.set_max_message_latency(LATENCY),
            Mend::Room(id) => self.place(*id).mend_disk(),
            Mend::Clock(id) => self.place(*id).set_clock_off(0),
            Mend::Upgrade(id) => {
                self.place(*id).upgrade();
                self.place(*id).stop();
                self.mends.push((self.trace.now() + STOP_MAX, Mend::Start(*id)));
            }
        }
    }

    fn begin(&mut self, sim: &mut Sim<'_>, until: Duration) {
        let id = self.pick();
        let kind = match self.below(17) {
            0..=2 => self.crash(sim, id, until),
            3 => self.crash_all(sim, until),
            4 => self.stop(id, until),
            5 | 6 => self.partition(sim, until),
            7 => self.one_way(sim, id, until),
            8 => self.ring(sim, until),
            9 => self.hold(sim, id, until),
            10 => self.slow(sim, until),
            11 => self.fill(id, until),
            12 => self.fail(id, until),
            13 => self.ask(Ask::Transfer(1 + self.below(self.nodes()))),
            // Of three voters two are left then, and none may be lost for good.
            14 if self.nodes() > 3 => {
                self.ask(Ask::Assign(1 + self.below(self.nodes()), self.below(3)))
            }
            15 => self.replace(sim, id, until),
            _ => self.clock(id, until),
        };
        *self.counts.entry(kind).or_default() += 1;
    }

    /// Somebody; often the leader.
    fn pick(&self) -> NodeId {
        let leads =
            |place: &&Rc<Place>| place.member().is_some_and(|member| member.leading_term().is_ok());
        let leader = self.places.iter().find(leads).map(|place| place.number);
        match leader {
            Some(leader) if self.below(2) == 0 => leader,
            _ => 1 + self.below(self.nodes()),
        }
    }

    fn cut(&self) -> Cut {
        Cut::from_seed(self.below(50))
    }

    fn crash(&mut self, sim: &mut Sim<'_>, id: NodeId, until: Duration) -> &'static str {
        let cut = self.cut();
        self.trace.note(|| format!("crash of node {id}: {cut:?}"));
        self.place(id).cut(cut);
        sim.crash(host(id));
        self.mends.push((until, Mend::Start(id)));
        "crash"
    }

    fn crash_all(&mut self, sim: &mut Sim<'_>, until: Duration) -> &'static str {
        for id in 1..=self.nodes() {
            let until = until + Duration::from_millis(self.below(1_000));
            self.crash(sim, id, until);
        }
        "crash of all"
    }

    fn stop(&mut self, id: NodeId, until: Duration) -> &'static str {
        self.trace.note(|| format!("stop of node {id}"));
        self.place(id).stop();
        self.mends.push((until + STOP_MAX, Mend::Start(id)));
        "graceful stop"
    }

    fn sever(&mut self, sim: &mut Sim<'_>, a: NodeId, b: NodeId, until: Duration) {
        sim.partition_oneway(host(a), host(b));
        self.mends.push((until, Mend::Link(a, b)));
    }

    /// A random part of the nodes is cut off from the rest.
    fn partition(&mut self, sim: &mut Sim<'_>, until: Duration) -> &'static str {
        let side = self.random.next_u64();
        self.trace.note(|| format!("partition {side:b}"));
        for a in 1..=self.nodes() {
            for b in 1..=self.nodes() {
                if a != b && (side >> a & 1) != (side >> b & 1) {
                    self.sever(sim, a, b, until);
                }
            }
        }
        "partition"
    }

    /// Nobody hears a node, or it hears nobody.
    fn one_way(&mut self, sim: &mut Sim<'_>, id: NodeId, until: Duration) -> &'static str {
        let deaf = self.below(2) == 0;
        self.trace.note(|| format!("node {id} is {}", if deaf { "deaf" } else { "dumb" }));
        for other in (1..=self.nodes()).filter(|other| *other != id) {
            let (from, to) = if deaf { (other, id) } else { (id, other) };
            self.sever(sim, from, to, until);
        }
        "one-way cut"
    }

    /// Each node reaches its two neighbours only (of three: all but one link).
    fn ring(&mut self, sim: &mut Sim<'_>, until: Duration) -> &'static str {
        let nodes = self.nodes();
        let first = 1 + self.below(nodes);
        self.trace.note(|| format!("ring from {first}"));
        for a in 1..=nodes {
            for b in a + 1..=nodes {
                let apart = (b - a).min(nodes - (b - a));
                if apart > 1 || (nodes == 3 && a != first && b != first) {
                    self.sever(sim, a, b, until);
                    self.sever(sim, b, a, until);
                }
            }
        }
        "ring"
    }

    /// What goes between two nodes arrives late, all at once.
    fn hold(&mut self, sim: &mut Sim<'_>, id: NodeId, until: Duration) -> &'static str {
        let other = 1 + (id + self.below(self.nodes() - 1)) % self.nodes();
        let cut = |mend: &Mend| matches!(mend, Mend::Link(..) | Mend::Release(..));
        if other == id || self.mends.iter().any(|(_, mend)| cut(mend)) {
            // The network does not do both.
            return "nothing";
        }
        self.trace.note(|| format!("hold between {id} and {other}"));
        sim.hold(host(id), host(other));
        self.mends.push((until, Mend::Release(id, other)));
        "hold"
    }

    fn slow(&mut self, sim: &mut Sim<'_>, until: Duration) -> &'static str {
        let most = Duration::from_millis(20 + self.below(400));
        self.trace.note(|| format!("latency up to {most:?}"));
        sim.set_max_message_latency(most);
        self.mends.push((until, Mend::Latency));
        "slow links"
    }

    fn fill(&mut self, id: NodeId, until: Duration) -> &'static str {
        let disk = self.place(id).disk();
        if self.mends.iter().any(|(_, mend)| matches!(mend, Mend::Room(of) if *of == id)) {
            return "nothing";
        }
        let used = u64::MAX - disk.available_bytes().unwrap_or(u64::MAX);
        let room = self.below(4 << 20);
        self.trace.note(|| format!("disk of node {id} has {room} bytes left"));
        disk.set_budget(Some(used + room));
        self.place(id).strike();
        self.mends.push((until, Mend::Room(id)));
        "full disk"
    }

    fn fail(&mut self, id: NodeId, until: Duration) -> &'static str {
        let disk = self.place(id).disk();
        let at = disk.calls() + self.below(200);
        self.trace.note(|| format!("disk of node {id} fails at call {at}"));
        disk.fail_call(at, Fault::Io);
        self.place(id).strike();
        self.mends.push((until, Mend::Room(id)));
        "failing disk"
    }

    fn clock(&mut self, id: NodeId, until: Duration) -> &'static str {
        let off = self.below(7_200).cast_signed() - 3_600;
        self.trace.note(|| format!("clock of node {id} is {off} s off"));
        self.place(id).set_clock_off(off);
        self.mends.push((until, Mend::Clock(id)));
        "clock"
    }

    fn ask(&mut self, ask: Ask) -> &'static str {
        self.trace.note(|| format!("asked: {ask:?}"));
        let kind = ask.kind();
        let mut asked = self.shared.asked.borrow_mut();
        if asked.len() < ASKED_MAX {
            asked.push_back(ask);
        }
        kind
    }

    /// A member is gone for good, and a new one with another id takes its place.
    fn replace(&mut self, sim: &mut Sim<'_>, id: NodeId, until: Duration) -> &'static str {
        // Only where all vote and no change is on its way, so that the rest still is a majority.
        let logs = self.places.iter().map(|place| {
            let member = place.member()?;
            let (last, applied) = member.core().progress();
            let voters = applied_members(member.catalog()).iter().filter(|m| m.votes()).count();
            let settled = last == applied.map(|applied| applied.index) && !member.core().is_joint();
            (settled && voters == self.places.len()).then_some(last)
        });
        let logs: Vec<_> = logs.collect();
        if self.replaced || logs[0].is_none() || logs.iter().any(|last| *last != logs[0]) {
            return "nothing";
        }
        self.replaced = true;
        let gone = self.place(id).node();
        self.trace.note(|| format!("node {gone} is gone for good"));
        self.crash(sim, id, until);
        self.place(id).replace();
        self.shared.asked.borrow_mut().push_back(Ask::Remove(gone));
        "replacement"
    }

    /// All nodes are stopped and started again with the new program, one after the other.
    fn upgrade(&mut self) {
        self.upgraded = true;
        *self.counts.entry("upgrade").or_default() += 1;
        self.trace.note(|| "upgrade".to_owned());
        for number in 1..=self.nodes() {
            let at = self.trace.now() + Duration::from_secs(5 * number);
            self.mends.push((at, Mend::Upgrade(number)));
        }
    }

    /// Starts what does not run: a node may have been asked to stop just before all was healed.
    pub fn start_all(&self, sim: &mut Sim<'_>) {
        for id in 1..=self.nodes() {
            if !sim.is_host_running(host(id)) {
                sim.bounce(host(id));
            }
        }
    }

    /// Ends all faults.
    pub fn heal(&mut self, sim: &mut Sim<'_>) {
        for due in [Duration::MAX; 2] {
            // An upgrade has a start to come.
            self.mend_until(sim, due);
        }
        if self.upgraded {
            self.places.iter().for_each(|place| place.upgrade());
        }
        for id in 1..=self.nodes() {
            if self.place(id).is_old() && sim.is_host_running(host(id)) {
                self.place(id).cut(Cut::Keep);
                sim.crash(host(id));
            }
        }
        self.mends.clear();
        self.start_all(sim);
    }
}
