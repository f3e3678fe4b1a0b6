//! One run: a cluster, clients, a nemesis that strikes and is healed again and again, and then the
//! question whether all that the clients were told is true.
//!
//! *Invariant*: whatever is wrong is in [`Report::violations`], and its evidence is kept: the
//! history, the nodes' logs, and what their directories held.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::join_all;
use parking_lot::Mutex;
use quire::driver::{Begin, Client, Database, Options as ClientOptions, ReadFrom, ReadLevel};
use tokio::task::JoinSet;

use super::Chance;
use super::clients::{Job, Language};
use super::ledger::{Ledger, outcome_of};
use super::nemesis::{Nemesis, World};
use super::workload::{Bank, Lists, Register, Set, Style, Turn, Workload};
use crate::check::{self, Event, Outcome};
use crate::timeline::{self, Bar, Led, Timeline};
use crate::wait_for;

/// Writes must be acknowledged again this soon after a fault is healed.
pub const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// How long a client waits for one operation.
const CALL_MAX: Duration = Duration::from_secs(5);

/// How often the nodes are asked who leads.
const LOOK: Duration = Duration::from_millis(100);

/// What no node says unless there is a mistake.
const TROUBLE: [&str; 5] = [
    "panicked at",
    "this is a bug",
    "copy of the database is damaged",
    "cannot be applied",
    "part of a large transaction cannot be read",
];

/// How many operations that were done are offered for a picture.
const BARS_PLAIN: usize = 10_000;

/// Which workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "see the workloads")]
pub enum Work {
    Set,
    Register,
    Lists,
    Bank,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 4] = [Work::Set, Work::Register, Work::Lists, Work::Bank];

    /// Its name, for people and for files.
    pub fn name(self) -> &'static str {
        match self {
            Work::Set => Set::NAME,
            Work::Register => Register::NAME,
            Work::Lists => Lists::NAME,
            Work::Bank => Bank::NAME,
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes there are at first.
    pub nodes: usize,
    /// What clients do.
    pub work: Work,
    /// What goes wrong.
    pub nemesis: Nemesis,
    /// How long faults strike.
    pub lasting: Duration,
    /// A fault lasts at least and at most so long.
    pub fault: (Duration, Duration),
    /// How many clients use the driver; none: as many as the workload has.
    pub clients: Option<usize>,
    /// How many clients there are in each of the other languages.
    pub others: u32,
    /// Whether the driver's clients read whatever the next member has, which is a mistake: for a
    /// test of the checkers.
    pub stale: bool,
    /// What all dice are cast with.
    pub seed: u64,
    /// Where evidence and pictures are put.
    pub out: PathBuf,
}

impl Plan {
    /// A short one, three nodes.
    pub fn short(work: Work, nemesis: Nemesis, seed: u64) -> Plan {
        Plan {
            nodes: 3,
            work,
            nemesis,
            lasting: Duration::from_secs(6),
            fault: (Duration::from_millis(1500), Duration::from_secs(3)),
            clients: None,
            others: 2,
            stale: false,
            seed,
            out: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/chaos"),
        }
    }

    /// Its name among files.
    pub fn name(&self) -> String {
        let Plan { nodes, work, nemesis, seed, .. } = self;
        format!("{}-{}-{nodes}-{seed}", work.name(), nemesis.name())
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Which run.
    pub name: String,
    /// Operations by outcome, faults, terms, what the network did.
    pub counts: BTreeMap<&'static str, u64>,
    /// What is wrong, for a person. Empty: nothing.
    pub violations: Vec<String>,
    /// From each healing to the first acknowledgement of a write that was called after it.
    pub recoveries: Vec<Duration>,
    /// The faults.
    pub faults: Vec<timeline::Fault>,
    /// Who led, and in which term.
    pub leaders: Vec<Led>,
    /// The picture of it.
    pub picture: Option<PathBuf>,
    /// Where the evidence is, if something is wrong.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// In one line.
    pub fn summary(&self) -> String {
        let mut line = self.name.clone();
        for (what, count) in &self.counts {
            let _ = write!(line, ", {count} {what}");
        }
        if let Some(longest) = self.recoveries.iter().max() {
            let _ = write!(line, "; writes back within {} ms", longest.as_millis());
        }
        line
    }

    /// An error where something is wrong.
    pub fn verdict(&self) -> Result<()> {
        if self.violations.is_empty() {
            return Ok(());
        }
        let kept = self.kept.as_ref().map_or("nowhere".to_owned(), |dir| dir.display().to_string());
        bail!("{}: {}\nkept in {kept}", self.summary(), self.violations.join("\n"))
    }
}

/// Runs a plan. An error: it could not even begin.
pub async fn run(plan: &Plan) -> Result<Report> {
    match plan.work {
        Work::Set => Run::<Set>::start(plan).await?.finish().await,
        Work::Register => Run::<Register>::start(plan).await?.finish().await,
        Work::Lists => Run::<Lists>::start(plan).await?.finish().await,
        Work::Bank => Run::<Bank>::start(plan).await?.finish().await,
    }
}

struct Run<'a, W: Workload> {
    plan: &'a Plan,
    world: World,
    ledger: Arc<Ledger<W::Op>>,
    client: Client,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
    others: JoinSet<Result<bool>>,
    watch: Arc<Watch>,
    watching: tokio::task::JoinHandle<()>,
    report: Report,
    /// When the last reads began, which are in no picture.
    settled_at: u64,
}

impl<'a, W: Workload> Run<'a, W> {
    async fn start(plan: &'a Plan) -> Result<Run<'a, W>> {
        let world = World::start(plan.nodes, plan.seed).await?;
        let options = ClientOptions {
            connections_max: 128,
            call_timeout: CALL_MAX,
            ..ClientOptions::default()
        };
        let client = Client::new(world.cluster.addresses(), options)?;
        for sql in W::SCHEMA {
            client.database(W::NAME).execute(sql, vec![]).await?;
        }
        let ledger = Arc::new(Ledger::new());
        let watch = Arc::new(Watch::default());
        watch.follow(&world);
        let watching = tokio::spawn(watch.clone().keep(ledger.start()));
        let report = Report { name: plan.name(), ..Report::default() };
        let (stop, workers, others) = (Arc::default(), JoinSet::new(), JoinSet::new());
        let settled_at = u64::MAX;
        Ok(Run {
            plan,
            world,
            ledger,
            client,
            stop,
            workers,
            others,
            watch,
            watching,
            report,
            settled_at,
        })
    }

    async fn finish(mut self) -> Result<Report> {
        if let Err(error) = self.strike_and_heal().await {
            self.violation(format!("under faults: {error:#}"));
        }
        self.stop.store(true, Ordering::Release);
        while let Some(worker) = self.workers.join_next().await {
            if let Err(error) = worker {
                self.violation(format!("a client: {error}"));
            }
        }
        while let Some(other) = self.others.join_next().await {
            match other {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    self.violation(format!("a client of another language: {error:#}"))
                }
                Err(error) => self.violation(format!("a client of another language: {error}")),
            }
        }
        if let Err(error) = self.settle().await {
            self.violation(format!("at the end: {error:#}"));
        }
        self.watching.abort();
        for surprise in self.ledger.surprises() {
            self.violation(format!("no fault explains this: {surprise}"));
        }
        self.count();
        self.read_logs();
        self.look_for_idlers();
        let history = Arc::new(self.ledger.take());
        let checked = history.clone();
        let checked = tokio::task::spawn_blocking(move || W::check(&checked)).await?;
        if let Err(violation) = checked {
            self.violation(violation.to_string());
        }
        self.draw(&history)?;
        if !self.report.violations.is_empty() {
            self.report.kept = Some(self.keep(&history)?);
        }
        Ok(self.report)
    }

    fn violation(&mut self, what: String) {
        self.report.violations.push(what);
    }

    fn count(&mut self) {
        let counts = &mut self.report.counts;
        *counts = self.ledger.counts();
        counts.extend(self.world.relay.counts());
        counts.insert("faults", self.report.faults.len() as u64);
        self.report.leaders = self.watch.leaders();
        counts.insert("leaders", self.report.leaders.len() as u64);
    }

    /// What a node has noticed itself: a panic, a copy that is not as it should be.
    fn read_logs(&mut self) {
        for id in self.world.cluster.all().collect::<Vec<_>>() {
            let log = self.world.cluster.log(id);
            let told = log.lines().find(|line| TROUBLE.iter().any(|words| line.contains(words)));
            if let Some(line) = told {
                self.violation(format!("node {id} says: {line}"));
            }
        }
    }

    /// A run in which nothing struck, or in which somebody got nothing done, shows nothing.
    fn look_for_idlers(&mut self) {
        let counts = &self.report.counts;
        // What was never counted was not done; a language that is not here is not counted.
        let done = |what| counts.get(what).copied();
        let here = ["acknowledged", "reads"].map(|what| (what, done(what).unwrap_or(0)));
        let others = ["done by Go", "done by Python"].map(|what| (what, done(what).unwrap_or(1)));
        let idlers = here.into_iter().chain(others).filter(|(_, count)| *count == 0);
        let mut idle: Vec<String> = idlers.map(|(what, _)| format!("{what}: 0")).collect();
        if self.report.faults.is_empty() {
            idle.push("no fault struck".to_owned());
        }
        let mut terms: Vec<_> = self.report.leaders.iter().map(|led| led.term).collect();
        terms.sort_unstable();
        if let Some(twice) = terms.windows(2).find(|pair| pair[0] == pair[1]) {
            idle.push(format!("term {} had two leaders", twice[0]));
        }
        self.report.violations.extend(idle);
    }

    /// Starts the clients, and lets the nemesis strike until the time is over.
    async fn strike_and_heal(&mut self) -> Result<()> {
        let lasting = self.plan.lasting;
        self.start_clients();
        let end = nanos(lasting);
        let chance = Chance::new(self.plan.seed ^ 0x0072_756e);
        loop {
            let now = self.ledger.now();
            self.ledger.acknowledged_since(now, RECOVERY_MAX).await?;
            tokio::time::sleep(Duration::from_millis(200 + chance.below(600))).await;
            let from = self.ledger.now();
            if from >= end {
                return Ok(());
            }
            let fault = self.world.strike(self.plan.nemesis).await?;
            self.watch.follow(&self.world);
            let (shortest, longest) = self.plan.fault;
            let more = chance.below(nanos(longest.saturating_sub(shortest)));
            tokio::time::sleep(shortest + Duration::from_nanos(more)).await;
            let label = fault.label.clone();
            self.world.heal(fault).await.with_context(|| format!("healing: {label}"))?;
            self.watch.follow(&self.world);
            let healed = self.ledger.now();
            let none_ended = self.none_has_ended();
            let fault = timeline::Fault { from, until: healed, label: label.clone() };
            self.report.faults.push(fault);
            none_ended.with_context(|| label.clone())?;
            let again = self.ledger.acknowledged_since(healed, RECOVERY_MAX).await;
            self.report.recoveries.push(again.with_context(|| format!("after: {label}"))?);
        }
    }

    /// Nodes end when they are told to.
    fn none_has_ended(&mut self) -> Result<()> {
        for id in self.world.members.clone() {
            let ended = self.world.cluster.has_ended(id)?;
            ensure!(ended.is_none(), "node {id} has ended by itself: {ended:?}");
        }
        Ok(())
    }

    fn start_clients(&mut self) {
        let mut database = self.client.database(W::NAME).timeout(CALL_MAX);
        if self.plan.stale {
            database = database.read_level(ReadLevel::Local).read_from(ReadFrom::Any);
        }
        for number in 0..self.plan.clients.unwrap_or(W::CLIENTS) {
            let seed = self.plan.seed.wrapping_mul(1_000_003).wrapping_add(number as u64);
            let worker = Worker::<W> {
                database: database.clone(),
                ledger: self.ledger.clone(),
                stop: self.stop.clone(),
                chance: Chance::new(seed),
            };
            self.workers.spawn(worker.work());
        }
        if self.plan.others == 0 {
            return;
        }
        for language in [Language::Go, Language::Python] {
            let job = Job {
                addresses: self.world.cluster.servers(),
                lasting: self.plan.lasting,
                clients: self.plan.others,
                seed: self.plan.seed,
            };
            self.others.spawn(language.work::<W>(job, self.ledger.clone()));
        }
    }

    /// All is healed: all members come to hold the same, to the byte, and each tells it.
    async fn settle(&mut self) -> Result<()> {
        self.settled_at = self.ledger.now();
        self.none_has_ended()?;
        self.world.heal_all().await?;
        self.watch.follow(&self.world);
        let now = self.ledger.now();
        let all = self.read_all(&self.client.database(W::NAME)).await.context("the leader")?;
        self.note_final(now, all);
        self.wait_for_one_state().await?;
        self.none_has_ended()?;
        for id in self.world.members.clone() {
            let at = self.client.at(self.world.cluster.direct(id))?;
            let database = at.database(W::NAME).read_level(ReadLevel::Local);
            let now = self.ledger.now();
            let all = self.read_all(&database).await.with_context(|| format!("node {id}"))?;
            self.note_final(now, all);
        }
        self.wait_for_one_file().await
    }

    async fn read_all(&self, database: &Database) -> Result<Vec<W::Op>> {
        W::read_all(&database.clone().timeout(crate::PATIENCE)).await
    }

    fn note_final(&self, called: u64, ops: Vec<W::Op>) {
        let (client, returned) = (self.ledger.new_client(), self.ledger.now());
        for op in ops {
            let event = Event { client, called, returned, outcome: Outcome::Done, op };
            self.ledger.push(event, false);
        }
    }

    /// Waits until the digests of all members, read from their pages, are of the same version at
    /// the same index, and equal.
    async fn wait_for_one_state(&self) -> Result<()> {
        let mut seen = Vec::new();
        let waited = wait_for("all members to have the same", async || {
            seen.clear();
            for id in &self.world.members {
                let at = self.client.at(self.world.cluster.direct(*id))?;
                if let Ok(digest) = at.digest(W::NAME, true).await {
                    seen.push((digest.log_index, digest.version, digest.digest, digest.state));
                }
            }
            let same = seen.windows(2).all(|pair| pair[0] == pair[1]);
            Ok((seen.len() == self.world.members.len() && same).then_some(()))
        });
        let waited = waited.await;
        waited.with_context(|| format!("their digests: {seen:?}"))
    }

    /// Folds everything, and waits until the members' files are the same to the byte.
    async fn wait_for_one_file(&self) -> Result<()> {
        wait_for("all members to have the same file", async || {
            let mut files = Vec::new();
            for id in &self.world.members {
                let at = self.client.at(self.world.cluster.direct(*id))?;
                at.checkpoint(W::NAME).await?;
                let file = format!("databases/{}.db", W::NAME);
                files.push(std::fs::read(self.world.cluster.dir(*id).join(file))?);
            }
            Ok(files.windows(2).all(|pair| pair[0] == pair[1]).then_some(()))
        })
        .await
    }

    /// Draws the run. Of many operations some are left out, the more plain ones.
    fn draw(&mut self, history: &[Event<W::Op>]) -> Result<()> {
        let every = history.len() / BARS_PLAIN + 1;
        let drawn = |(at, event): &(usize, &Event<W::Op>)| {
            let told = event.outcome != Outcome::Done || at.is_multiple_of(every);
            told && event.called < self.settled_at
        };
        let bars = history.iter().enumerate().filter(drawn).map(|(_, event)| Bar::from(event));
        let timeline = Timeline {
            title: self.report.summary(),
            operations: bars.collect(),
            leaders: self.report.leaders.clone(),
            faults: self.report.faults.clone(),
        };
        std::fs::create_dir_all(&self.plan.out)?;
        let file = self.plan.out.join(format!("{}.svg", self.report.name));
        std::fs::write(&file, timeline.svg())?;
        self.report.picture = Some(file);
        Ok(())
    }

    /// Keeps what a person needs to find out why.
    fn keep(&self, history: &[Event<W::Op>]) -> Result<PathBuf> {
        let dir = self.plan.out.join(&self.report.name);
        std::fs::create_dir_all(&dir)?;
        check::history::save(&dir.join("history.jsonl"), history)?;
        let mut about = String::new();
        let _ = writeln!(about, "{:?}\n\n{:#?}\n\nfiles:", self.plan, self.report);
        for id in self.world.cluster.all() {
            std::fs::write(dir.join(format!("{id}.log")), self.world.cluster.log(id))?;
            describe(self.world.cluster.dir(id), &mut about)?;
        }
        std::fs::write(dir.join("about.txt"), about)?;
        Ok(dir)
    }
}

fn nanos(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

/// The files below a directory: lengths and checksums.
fn describe(dir: &Path, into: &mut String) -> Result<()> {
    let mut entries: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?,
        Err(_) => return Ok(()),
    };
    entries.sort();
    for path in entries {
        if path.is_dir() {
            describe(&path, into)?;
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let (len, crc) = (bytes.len(), crc32c::crc32c(&bytes));
            let _ = writeln!(into, "{len:>12} {crc:08x} {}", path.display());
        }
    }
    Ok(())
}

/// One client that uses the driver.
struct Worker<W: Workload> {
    database: Database,
    ledger: Arc<Ledger<W::Op>>,
    stop: Arc<AtomicBool>,
    chance: Chance,
}

impl<W: Workload> Worker<W> {
    async fn work(self) {
        let first = self.ledger.new_client();
        let (mut client, mut last) = (first, (0, 0));
        for count in 1.. {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let called = self.ledger.now();
            let mut op = W::draw(&Turn {
                chance: &self.chance,
                elapsed: Duration::from_nanos(called),
                unique: (i64::from(first) << 32) + count,
                last,
            });
            let style = self.style();
            let done = W::perform(&self.database, &mut op, style).await;
            let returned = self.ledger.now();
            let outcome = match &done {
                Ok(true) => Outcome::Done,
                Ok(false) => Outcome::Refused,
                Err(error) => outcome_of(error).unwrap_or_else(|| {
                    self.ledger.surprise(format!("client {client}: {op:?}: {error:?}"));
                    Outcome::Unknown
                }),
            };
            if outcome == Outcome::Done {
                last = W::seen(&op).unwrap_or(last);
            }
            let writes = W::writes(&op);
            self.ledger.push(Event { client, called, returned, outcome, op }, writes);
            if outcome == Outcome::Unknown {
                client = self.ledger.new_client();
            }
            if done.is_err() {
                // What is refused at once would be asked a thousand times a second.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn style(&self) -> Style {
        if !self.chance.one_in(W::MANY_ONE_IN) {
            return Style::Single;
        }
        let immediate = self.chance.one_in(2);
        Style::Many(if immediate { Begin::Immediate } else { Begin::Deferred })
    }
}

/// Looks who leads, all the time.
#[derive(Default)]
struct Watch {
    addresses: Mutex<BTreeMap<usize, String>>,
    leaders: Mutex<Vec<Led>>,
}

impl Watch {
    fn follow(&self, world: &World) {
        let address = |id: &usize| (*id, world.cluster.direct(*id).to_owned());
        *self.addresses.lock() = world.members.iter().map(address).collect();
    }

    async fn keep(self: Arc<Watch>, start: u64) {
        let options = ClientOptions {
            call_timeout: Duration::from_millis(500),
            connections_max: 1,
            ..ClientOptions::default()
        };
        let mut clients: BTreeMap<String, Client> = BTreeMap::new();
        loop {
            let addresses = self.addresses.lock().clone();
            for address in addresses.values() {
                if !clients.contains_key(address)
                    && let Ok(client) = Client::new([address.clone()], options.clone())
                    && let Ok(client) = client.at(address)
                {
                    clients.insert(address.clone(), client);
                }
            }
            let asked = addresses.values().filter_map(|address| clients.get(address));
            let told = join_all(asked.map(|client| client.status())).await;
            let now = super::ledger::now_nanos().saturating_sub(start);
            for status in told.into_iter().flatten() {
                if status.leader == status.node {
                    self.saw(now, status.node, status.term);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn saw(&self, now: u64, node: u64, term: u64) {
        let mut leaders = self.leaders.lock();
        match leaders.iter_mut().find(|led| (led.node, led.term) == (node, term)) {
            Some(led) => led.until = now,
            None => leaders.push(Led { node, term, from: now, until: now }),
        }
    }

    fn leaders(&self) -> Vec<Led> {
        self.leaders.lock().clone()
    }
}
