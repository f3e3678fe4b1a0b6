//! A whole cluster in one process and on one thread, from one seed: the real node, driver and
//! SQLite on turmoil's network and clock and on the disk that loses power ([`FakeDisk`]), with
//! faults drawn from the seed, and what must hold looked at all the while ([`invariants`]).
//!
//! A run: nodes start and found a cluster, clients make tables and work; faults come and go; then
//! all is healed, and within thirty simulated seconds every client has an answer again; then the
//! clients end, the replicas agree, and the histories are checked.
//!
//! It is repeatable to the byte: a process runs one seed, on one thread; everything ambient comes
//! from the seed; openraft draws from it, too. The digest of the trace tells.
//!
//! What it is not: a test of real disks, real networks, several threads (`chaos` has those).
//!
//! *Invariant*: the controller only looks between two steps of the network's clock, when no node
//! runs.
//!
//! [`FakeDisk`]: quire::disk::FakeDisk

// With another RUSTFLAGS in the environment turmoil would quietly do without.
#[cfg(not(tokio_unstable))]
compile_error!("the simulation needs `--cfg tokio_unstable`, which .cargo/config.toml gives");

mod faults;
mod invariants;
mod load;
pub mod many;
mod place;
mod trace;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use quire::base::{NodeId, Randomness as _, SplitMix};
use quire::member::Member;
use serde::{Deserialize, Serialize};
use turmoil::Sim;

use crate::check::Violation;
use faults::{Faults, LATENCY};
use invariants::{Invariant, Look};
use load::Shared;
use place::{Place, Program, Simulated, host};
use trace::Trace;

/// How long the cluster may take to come together.
const TOGETHER_MAX: Duration = Duration::from_secs(60);

/// How long after the last fault everybody must have an answer again.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// How long the last reads may take, and the replicas to agree.
const LAST_MAX: Duration = Duration::from_secs(60);

/// What a run is made from.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything that is drawn is drawn from this.
    pub seed: u64,
    /// For how long there are faults.
    pub seconds: u64,
    /// Whether to print the trace.
    pub print: bool,
}

/// What a run was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// How many nodes.
    pub nodes: NodeId,
    /// Operations acknowledged, and operations in all.
    pub operations: (u64, u64),
    /// How often each fault came.
    pub faults: BTreeMap<String, u64>,
    /// From the last fault's end to everybody's answer.
    pub recovery: Duration,
    /// The simulated time.
    pub simulated: Duration,
    /// What a second run of the seed must have, too.
    pub trace: u64,
}

/// Runs one seed.
///
/// # Errors
///
/// Something that must hold does not: what, and when.
pub fn run(options: &Options) -> Result<Report, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
    let programs = programs(dir.path()).map_err(|error| format!("the programs: {error}"))?;
    let mut run = Run::new(options, &programs);
    let done = run.whole(options);
    let now = run.trace.now();
    done.map_err(|what| format!("seed {} at {:.3} s: {what}", options.seed, now.as_secs_f64()))
}

/// The schemas of an old program and of a new one.
fn programs(dir: &Path) -> io::Result<Program> {
    const FIRST: &str = "CREATE TABLE words(word TEXT PRIMARY KEY);";
    const SECOND: &str = "ALTER TABLE words ADD COLUMN meaning TEXT;";
    let (old, new) = (dir.join("old"), dir.join("new"));
    for dir in [&old, &new] {
        fs::create_dir(dir)?;
        fs::write(dir.join("0001_words.sql"), FIRST)?;
    }
    fs::write(new.join("0002_meaning.sql"), SECOND)?;
    Ok(Program([old, new]))
}

struct Run {
    sim: Sim<'static>,
    places: Vec<Rc<Place>>,
    shared: Rc<Shared>,
    trace: Rc<Trace>,
    invariants: Vec<Box<dyn Invariant>>,
    faults: Faults,
}

impl Run {
    fn new(options: &Options, programs: &Program) -> Run {
        let seed = options.seed;
        quire::raft::runtime::seed_thread(seed);
        quire::sqlite::set_thread_clock(Arc::new(Simulated));
        let dice = SplitMix::new(seed);
        let nodes = [3, 3, 3, 5, 5, 7][(dice.next_u64() % 6) as usize];
        let trace = Rc::new(Trace::new(options.print));
        let mut sim = turmoil::Builder::new()
            .rng_seed(dice.next_u64())
            .epoch(std::time::UNIX_EPOCH)
            .simulation_duration(Duration::MAX)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_micros(200))
            .max_message_latency(LATENCY)
            .tcp_capacity(1 << 16)
            .enable_random_order()
            .build();
        let program = dice.next_u64().is_multiple_of(4).then(|| programs.clone());
        let place = |number| Place::new(number, nodes, seed, program.clone(), &trace);
        let places: Vec<Rc<Place>> = (1..=nodes).map(place).collect();
        for place in &places {
            let place = place.clone();
            sim.host(host(place.number), move || place.clone().software());
        }
        let shared = Rc::new(Shared::default());
        let clients = load::clients(dice.next_u64(), nodes, shared.clone(), trace.clone());
        sim.client("clients", clients);
        let faults = Faults::new(dice.next_u64(), &places, &shared, &trace);
        Run { sim, places, shared, trace, invariants: invariants::all(), faults }
    }

    fn whole(&mut self, options: &Options) -> Result<Report, String> {
        self.until(TOGETHER_MAX, "the cluster to come together", Run::is_together)?;
        let end = self.trace.now() + Duration::from_secs(options.seconds);
        while self.trace.now() < end {
            self.faults.step(&mut self.sim);
            self.step()?;
        }
        self.trace.note(|| "all is healed".to_owned());
        self.faults.heal(&mut self.sim);
        let healed = self.trace.now();
        self.shared.healed.set(true);
        self.until(RECOVERY_MAX, "every client to have an answer", |run| {
            run.faults.start_all(&mut run.sim);
            run.shared.recovered.get() == run.shared.workers.get()
        })?;
        let recovery = self.trace.now() - healed;
        self.shared.stop.set(true);
        let mut ended = false;
        let deadline = self.trace.now() + LAST_MAX;
        while !(ended && self.agree()) {
            if self.trace.now() > deadline {
                return Err(format!("the clients have ended: {ended}; {}", self.versions()));
            }
            ended |= self.step()?;
            self.faults.start_all(&mut self.sim);
        }
        let histories = self.shared.histories.borrow();
        for invariant in &mut self.invariants {
            let held = invariant.end(&self.places, &histories);
            held.map_err(|Violation(what)| format!("{}: {what}", invariant.name()))?;
        }
        Ok(Report {
            nodes: self.places.len() as NodeId,
            operations: histories.counts(),
            faults: self.faults.counts().iter().map(|(k, n)| ((*k).to_owned(), *n)).collect(),
            recovery,
            simulated: self.trace.now(),
            trace: self.trace.digest(),
        })
    }

    /// One step of everybody's clock, and a look. Whether the clients have ended.
    fn step(&mut self) -> Result<bool, String> {
        let ended = self.sim.step().map_err(|error| format!("a host failed: {error}"))?;
        self.trace.set_now(self.sim.elapsed());
        let look = Look {
            now: self.trace.now(),
            places: &self.places,
            running: self.places.iter().filter_map(|place| place.member()).collect(),
        };
        for invariant in &mut self.invariants {
            let held = invariant.look(&look);
            held.map_err(|Violation(what)| format!("{}: {what}", invariant.name()))?;
        }
        Ok(ended)
    }

    fn until(
        &mut self,
        within: Duration,
        what: &str,
        done: impl Fn(&mut Run) -> bool,
    ) -> Result<(), String> {
        let deadline = self.trace.now() + within;
        while !done(self) {
            if self.trace.now() > deadline {
                return Err(format!("waited {within:?} in vain for {what}; {}", self.versions()));
            }
            self.step()?;
        }
        Ok(())
    }

    fn is_together(&mut self) -> bool {
        let votes = |member: &Arc<Member>| {
            let leadership = member.leadership();
            leadership.members.iter().filter(|member| member.votes()).count()
        };
        let leader = self.places.iter().filter_map(|place| place.member());
        let leader = leader.into_iter().find(|member| member.leading_term().is_ok());
        leader.is_some_and(|leader| votes(&leader) == self.places.len()) && self.shared.ready.get()
    }

    /// Whether all nodes run and have applied the same.
    fn agree(&self) -> bool {
        let applied = self.places.iter().map(|place| {
            let member = place.member()?;
            let stores = member.catalog().all();
            Some(stores.iter().map(|store| (store.id(), store.applied())).collect::<Vec<_>>())
        });
        let applied: Vec<_> = applied.collect();
        applied.windows(2).all(|pair| pair[0].is_some() && pair[0] == pair[1])
    }

    /// Where everybody is, for a person.
    fn versions(&self) -> String {
        let of = |place: &Rc<Place>| match place.member() {
            None => {
                format!("node {}: does not run {}", place.node(), place.ended().unwrap_or_default())
            }
            Some(member) => {
                let view = member.core().view();
                let open = member.leadership().open_term;
                format!(
                    "node {}: term {}, applied {:?}, leads {}, takes writes {open:?}",
                    place.node(),
                    view.term,
                    view.applied,
                    view.leads
                )
            }
        };
        self.places.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}
