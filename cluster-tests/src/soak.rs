//! Long runs: portions of every rung in turn, each in a process of its own, for as long as there is
//! time; what came of each goes to a results file, so that figures add up over runs of one commit.
//!
//! A portion is a rung, a seed and a count, and can be repeated by these alone ([`Portion`]). Which
//! comes next is the one whose rung has had the least of its share of the time so far; its seed is
//! the next that the file does not have for this commit.
//!
//! *Invariant*: a line of the results is written when its portion has ended, whole or not at all;
//! nothing is taken for done that the file does not have.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::chaos::{Nemesis, Plan, Work, run};
use crate::sim::many::Many;
use crate::storage::{cuts, damage, fails};

/// A rung, or one of its sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// R3: the power fails under a node.
    Cuts,
    /// R3: it fails under three nodes at one moment.
    CutsOfThree,
    /// R3: it fails under a follower that receives a snapshot.
    Receptions,
    /// R4: bytes of a stopped node change.
    Damage,
    /// R4: the same of one of three, which its peers repair.
    DamageOfThree,
    /// R4: the same of all three.
    DamageOfAll,
    /// R4: what a follower had received of a snapshot changes.
    DamageOfReceptions,
    /// R5: calls to the disk fail.
    Calls,
    /// R6: seeds of the simulation.
    Simulation,
    /// R7: real processes under a nemesis.
    Nemeses,
}

impl Rung {
    /// How much of one portion there is, and which part of the time it gets.
    fn portion(self) -> (u64, u32) {
        match self {
            Rung::Cuts => (1_000, 2),
            Rung::CutsOfThree => (150, 1),
            Rung::Receptions => (200, 1),
            Rung::Damage => (5_000, 3),
            Rung::DamageOfThree => (200, 1),
            Rung::DamageOfAll => (100, 1),
            Rung::DamageOfReceptions => (100, 1),
            Rung::Calls => (400, 2),
            Rung::Simulation => (50, 10),
            Rung::Nemeses => (30, 10),
        }
    }
}

/// A piece of work that its words alone repeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Portion {
    /// What.
    pub rung: Rung,
    /// From which seed on.
    pub seed: u64,
    /// How many: cuts, damages, calls, seeds; seconds of a nemesis.
    pub count: u64,
}

/// What was counted.
pub type Counts = BTreeMap<String, u64>;

impl Portion {
    /// Does it here, in this process. `program` is this package's.
    ///
    /// # Errors
    ///
    /// Something that must hold does not. (A panic says so, too.)
    pub fn run(&self, program: &Path, bug: Option<&str>) -> Result<Counts> {
        let Portion { seed, count, .. } = *self;
        let owned = |counts: BTreeMap<&'static str, u64>| {
            counts.into_iter().map(|(what, n)| (what.to_owned(), n)).collect()
        };
        match self.rung {
            Rung::Cuts => cuts::alone(seed, count).map(owned),
            Rung::CutsOfThree => cuts::together(seed, count).map(owned),
            Rung::Receptions => cuts::receiving(seed, count).map(owned),
            Rung::Damage => damage::alone(seed, count).map(owned),
            Rung::DamageOfThree => damage::one_of_three(seed, count).map(owned),
            Rung::DamageOfAll => damage::all_three(seed, count).map(owned),
            Rung::DamageOfReceptions => damage::receiving(seed, count).map(owned),
            Rung::Calls => fails::calls(seed, count).map(owned),
            Rung::Simulation => simulate(program, seed, count, bug),
            Rung::Nemeses => {
                ensure!(bug.is_none(), "nodes that are processes get a bug by QUIRE_PLANTED_BUG");
                nemesis(seed, count).map(owned)
            }
        }
    }

    /// The words that repeat it.
    pub fn words(&self) -> Vec<String> {
        let rung = self.rung.to_possible_value().map(|value| value.get_name().to_owned());
        let (seed, count) = (self.seed.to_string(), self.count.to_string());
        let words = ["portion".into(), "--rung".into(), rung.unwrap_or_default()];
        words.into_iter().chain(["--seed".into(), seed, "--count".into(), count]).collect()
    }
}

/// Seeds one after the other: as many portions run as there are processors.
fn simulate(program: &Path, seed: u64, count: u64, bug: Option<&str>) -> Result<Counts> {
    let mut counts = Counts::new();
    let mut violations = Vec::new();
    let many = Many { program, seconds: 60, at_once: 1, bug };
    let first = (seed - 1) * count + 1;
    many.run(first..first + count, |ended| {
        match ended.report {
            Ok(report) => {
                let mut add = |what: &str, n: u64| *counts.entry(what.to_owned()).or_default() += n;
                add("seeds", 1);
                add("simulated seconds", report.simulated.as_secs());
                add("acknowledged", report.operations.0);
                report.faults.iter().for_each(|(what, n)| add(&format!("fault: {what}"), *n));
            }
            Err(what) => violations.push(what),
        }
        violations.is_empty()
    });
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    Ok(counts)
}

/// One run of real processes: workloads and nemeses in turn.
fn nemesis(seed: u64, seconds: u64) -> Result<BTreeMap<&'static str, u64>> {
    let pick = |of: u64, every: u64| usize::try_from(seed / every % of).unwrap_or(0);
    let kinds = Nemesis::ALL.len() as u64;
    let nemesis = Nemesis::ALL[pick(kinds, 1)];
    let work = Work::ALL[pick(Work::ALL.len() as u64, kinds)];
    let plan = Plan {
        nodes: if pick(2, kinds * Work::ALL.len() as u64) == 0 { 3 } else { 5 },
        lasting: Duration::from_secs(seconds),
        fault: (Duration::from_secs(1), Duration::from_secs(8)),
        ..Plan::short(work, nemesis, seed)
    };
    let report = tokio::runtime::Runtime::new()?.block_on(run(&plan))?;
    report.verdict()?;
    let longest = report.recoveries.iter().max().copied().unwrap_or_default();
    println!("{}; writes back within {} ms", report.name, longest.as_millis());
    Ok(report.counts)
}

/// A line of the results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// What was tested.
    pub commit: String,
    /// What was done.
    pub portion: Portion,
    /// How long it took.
    pub seconds: f64,
    /// What was counted.
    pub counts: Counts,
    /// What is wrong, if something is.
    pub violation: Option<String>,
}

/// The results so far.
pub struct Results {
    path: PathBuf,
    commit: String,
    lines: Vec<Line>,
}

impl Results {
    /// Those in a file, which need not be there, of the commit that is checked out.
    pub fn open(path: &Path) -> Result<Results> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("{}", path.display())),
        };
        let parse = |line| serde_json::from_str(line).with_context(|| path.display().to_string());
        let lines: Vec<Line> = text.lines().map(parse).collect::<Result<_>>()?;
        let commit = commit()?;
        let lines = lines.into_iter().filter(|line| line.commit == commit).collect();
        Ok(Results { path: path.to_owned(), commit, lines })
    }

    /// What is next: of the given rungs the one that had the least of its share.
    pub fn next(&self, rungs: &[Rung], under_way: &[Portion]) -> Option<Portion> {
        let spent = |rung: Rung| {
            let done: f64 =
                self.lines.iter().filter(|l| l.portion.rung == rung).map(|l| l.seconds).sum();
            // One that is under way counts as if it took a minute.
            let more = under_way.iter().filter(|portion| portion.rung == rung).count() as f64;
            (done + 60.0 * more) / f64::from(rung.portion().1)
        };
        let rung = rungs.iter().copied().min_by(|a, b| spent(*a).total_cmp(&spent(*b)))?;
        let seeds = self.lines.iter().map(|line| &line.portion).chain(under_way);
        let last = seeds.filter(|portion| portion.rung == rung).map(|portion| portion.seed).max();
        Some(Portion { rung, seed: last.unwrap_or(0) + 1, count: rung.portion().0 })
    }

    /// Adds a line, in the file too.
    pub fn add(&mut self, line: Line) -> Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut file: File = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let text = serde_json::to_string(&line)? + "\n";
        file.write_all(text.as_bytes())?;
        self.lines.push(line);
        Ok(())
    }

    /// The commit that the figures are of.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// What all portions of each rung have counted; and what is wrong.
    pub fn totals(&self) -> (BTreeMap<Rung, Counts>, Vec<&Line>) {
        let mut totals = BTreeMap::<Rung, Counts>::new();
        for line in &self.lines {
            let counts = totals.entry(line.portion.rung).or_default();
            *counts.entry("portions".to_owned()).or_default() += 1;
            for (what, n) in &line.counts {
                *counts.entry(what.clone()).or_default() += n;
            }
        }
        (totals, self.lines.iter().filter(|line| line.violation.is_some()).collect())
    }
}

/// The commit that is checked out; its tree must be what was built.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let output = Command::new("git").args(args).current_dir(dir).output().context("git")?;
        ensure!(output.status.success(), "git {args:?} failed");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    Ok(if changed.is_empty() { commit } else { format!("{commit} and changes") })
}

/// Runs portions until the time is over; those under way then are waited for.
///
/// # Errors
///
/// Portions could not be run, or the results not be written. Violations are in the results.
pub fn soak(
    program: &Path,
    results: &mut Results,
    rungs: &[Rung],
    lasting: Duration,
) -> Result<()> {
    let end = Instant::now() + lasting;
    let at_once = std::thread::available_parallelism().map_or(2, usize::from);
    let mut under_way: Vec<Running> = Vec::new();
    while Instant::now() < end || !under_way.is_empty() {
        while Instant::now() < end && under_way.len() < at_once {
            let portions: Vec<_> =
                under_way.iter().map(|running| running.portion.clone()).collect();
            let Some(portion) = results.next(rungs, &portions) else {
                bail!("there is no rung to run")
            };
            under_way.push(Running::start(program, portion, &results.path)?);
        }
        std::thread::sleep(Duration::from_millis(50));
        let (ended, going) = under_way.into_iter().partition(Running::has_ended);
        under_way = going;
        for running in ended {
            let line = running.line(results.commit())?;
            let wrong = if line.violation.is_some() { "VIOLATION" } else { "ok" };
            println!(
                "{wrong}: {} {:.0} s {:?}",
                line.portion.words().join(" "),
                line.seconds,
                line.counts
            );
            results.add(line)?;
        }
    }
    Ok(())
}

/// A portion in a process of its own.
struct Running {
    portion: Portion,
    begun: Instant,
    waiter: std::thread::JoinHandle<std::io::Result<std::process::Output>>,
}

impl Running {
    fn start(program: &Path, portion: Portion, results: &Path) -> Result<Running> {
        let mut command = Command::new(program);
        command.args(portion.words()).stdin(Stdio::null()).env("RUST_BACKTRACE", "0");
        if let Some(dir) = results.parent() {
            fs::create_dir_all(dir)?;
        }
        let waiter = std::thread::spawn(move || command.output());
        Ok(Running { portion, begun: Instant::now(), waiter })
    }

    fn has_ended(&self) -> bool {
        self.waiter.is_finished()
    }

    fn line(self, commit: &str) -> Result<Line> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let output = self.waiter.join().map_err(|_| anyhow::anyhow!("a waiter panicked"))??;
        let said = String::from_utf8_lossy(&output.stdout);
        let counts = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let violation = (!output.status.success() || counts.is_none()).then(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            format!("{}: {said}{errors}", output.status)
        });
        let (commit, portion) = (commit.to_owned(), self.portion);
        Ok(Line { commit, portion, seconds, counts: counts.unwrap_or_default(), violation })
    }
}
