//! `quire bench`: how fast a cluster is, against one local SQLite file that fsyncs every commit.
//!
//! Each round measures every case once, the cluster and the local file in turn, so that whatever
//! else the machine does meets both; the medians over the rounds are the figures. Clients are
//! closed loops: each sends its next operation when the one before is answered.
//!
//! *Invariant*: the cluster and the local file are never under load at the same time.

mod measure;
mod remote;
mod report;
mod workload;
mod yardstick;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::LogArgs;
use super::local::{self, LocalCluster};
use super::serve::Stop;
use super::{Failure, logging, ports, runtime, say};
use measure::Figures;
use report::Outcome;
use workload::{Case, Level, Workload};
use yardstick::LocalFile;

/// How long a cluster of our own has to come up.
const START_MAX: Duration = Duration::from_secs(60);

/// No disk makes anything durable faster than this, in microseconds.
const SYNC_US_LEAST: f64 = 5.0;

/// `quire bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What the clients do [default: all; with --check what its bars need]
    #[arg(long, value_name = "WORKLOADS", value_delimiter = ',')]
    workload: Vec<Workload>,
    /// How many clients at once [default: 1,8,64,256]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: Vec<u16>,
    /// Read levels of `select` [default: all]
    #[arg(long, value_name = "LEVELS", value_delimiter = ',')]
    read: Vec<Level>,
    /// How long each measurement of a round takes
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// How many rounds; medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// Print a JSON object for each case, one on a line
    #[arg(long)]
    json: bool,
    /// Exit with 1 if a figure is below its bar
    #[arg(long)]
    check: bool,
    /// Members of a running cluster [default: start one, and stop it at the end]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    server: Vec<String>,
    /// Where the local file, and the cluster's data if one is started, are kept meanwhile
    /// [default: the system's directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many nodes the cluster that is started has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: u16,
    /// A key of the configuration of the nodes that are started, as in limits.overlay_bytes=1MiB;
    /// may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    if (0.05..=3600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("it must be from 0.05 to 3600".to_owned())
    }
}

/// Runs it.
pub fn run(args: &BenchArgs, log: &LogArgs) -> Result<(), Failure> {
    logging::start_client(log)?;
    local::check_settings(&args.set, log)?;
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    if !base.is_dir() {
        return Err(Failure::Usage(format!(
            "--dir {}: there is no such directory",
            base.display()
        )));
    }
    let scratch = Scratch::create(&base)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(until_stopped(args, log, &scratch.path));
    runtime.shutdown_background();
    let (outcomes, disk) = outcome?;
    if disk.p50_us < SYNC_US_LEAST {
        tracing::warn!(p50_us = disk.p50_us, dir = %base.display(), "fdatasync takes no time: is this memory, not a disk?");
    }

    if args.json {
        report::json(&outcomes, disk)?.iter().for_each(say);
    } else {
        say(report::table(&outcomes, disk));
    }
    if args.check {
        let (lines, passed) = report::check(&outcomes);
        // The figures are on stdout, for programs too; the verdict is for people.
        for line in &lines {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        if !passed {
            return Err(anyhow::anyhow!("below the bar").into());
        }
    }
    Ok(())
}

/// A directory of our own, removed at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(base: &Path) -> Result<Scratch> {
        let path = base.join(format!("quire-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Scratch { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove");
        }
    }
}

type Measured = (Vec<Outcome>, Figures);

async fn until_stopped(
    args: &BenchArgs,
    log: &LogArgs,
    scratch: &Path,
) -> Result<Measured, Failure> {
    let mut stop = Stop::listen(false)?;
    if !args.server.is_empty() {
        return tokio::select! {
            measured = measure(args, &args.server, scratch) => Ok(measured?),
            why = stop.requested() => Err(anyhow::anyhow!("interrupted by {why}").into()),
        };
    }
    let found = ports::find(args.nodes).context("no free ports")?;
    let addresses: Vec<String> =
        found.iter().map(|port| format!("{}:{port}", ports::HOST)).collect();
    let mut cluster =
        LocalCluster::start(local::plan(scratch, &addresses, &local::flags(&args.set, log)))?;
    let work = async {
        tokio::time::timeout(START_MAX, local::leader(&addresses))
            .await
            .map_err(|_| anyhow::anyhow!("no leader within {} s", START_MAX.as_secs()))?;
        measure(args, &addresses, scratch).await
    };
    let outcome = tokio::select! {
        measured = work => measured,
        error = cluster.broken() => Err(error),
        why = stop.requested() => Err(anyhow::anyhow!("interrupted by {why}")),
    };
    cluster.stop().await;
    Ok(outcome?)
}

/// The cases asked for.
fn cases(args: &BenchArgs) -> Vec<Case> {
    if args.check && args.workload.is_empty() && args.clients.is_empty() {
        return report::cases_of_bars();
    }
    let or = |given: &[Workload], all: &[Workload]| {
        if given.is_empty() { all.to_vec() } else { given.to_vec() }
    };
    let workloads =
        or(&args.workload, &[Workload::Insert, Workload::Txn100, Workload::Select, Workload::Ping]);
    let clients = if args.clients.is_empty() { vec![1, 8, 64, 256] } else { args.clients.clone() };
    let levels = if args.read.is_empty() {
        vec![Level::Linearizable, Level::Lease, Level::Local]
    } else {
        args.read.clone()
    };
    let mut cases = Vec::new();
    for workload in workloads {
        let levels: Vec<Option<Level>> = match workload {
            Workload::Select => levels.iter().copied().map(Some).collect(),
            _ => vec![None],
        };
        for level in levels {
            let case = |clients: &u16| Case { workload, level, clients: usize::from(*clients) };
            cases.extend(clients.iter().map(case));
        }
    }
    cases
}

/// The figures of all rounds so far.
#[derive(Default)]
struct Rounds {
    cluster: Vec<(Case, Figures)>,
    local: Vec<(Case, Figures)>,
    disk: Vec<Figures>,
    errors: Vec<(Case, u64)>,
}

/// The case that a local measurement answers: read levels are no matter of a local file.
fn local_case(case: Case) -> Case {
    Case { level: None, ..case }
}

async fn measure(args: &BenchArgs, addresses: &[String], scratch: &Path) -> Result<Measured> {
    let cases = cases(args);
    let length = Duration::from_secs_f64(args.seconds);
    let file = Arc::new(LocalFile::create(&scratch.join("local.db"))?);
    remote::prepare(addresses).await?;
    let bar = progress(cases.len() * usize::from(args.rounds));
    let mut rounds = Rounds::default();
    for round in 1..=usize::from(args.rounds) {
        let mut done: Vec<Case> = Vec::new();
        rounds.disk.push(yardstick::fdatasync(&scratch.join("sync"))?);
        for case in &cases {
            bar.set_message(format!(
                "round {round}: {}, {} clients",
                case.workload.name(),
                case.clients
            ));
            let (figures, errors) = remote::run(addresses, *case, round, length).await?;
            rounds.cluster.push((*case, figures));
            rounds.errors.push((*case, errors));
            let local = local_case(*case);
            if case.workload != Workload::Ping && !done.contains(&local) {
                done.push(local);
                let file = file.clone();
                let work = move || file.run(local.workload, local.clients, round, length);
                rounds.local.push((local, tokio::task::spawn_blocking(work).await??));
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    rounds.outcomes(&cases)
}

impl Rounds {
    fn outcomes(&self, cases: &[Case]) -> Result<Measured> {
        let medians = |of: &[(Case, Figures)], case: Case| {
            let rounds: Vec<Figures> =
                of.iter().filter(|(c, _)| *c == case).map(|(_, figures)| *figures).collect();
            Figures::medians(&rounds)
        };
        let mut outcomes = Vec::new();
        for case in cases {
            let cluster = medians(&self.cluster, *case).context("nothing was measured")?;
            let local = medians(&self.local, local_case(*case));
            let errors = self.errors.iter().filter(|(c, _)| c == case).map(|(_, n)| n).sum();
            outcomes.push(Outcome { case: *case, cluster, local, errors });
        }
        match Figures::medians(&self.disk) {
            Some(disk) => Ok((outcomes, disk)),
            None => bail!("nothing was measured"),
        }
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(steps: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} (about {eta} more)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::{Case, Level, Workload, cases};

    fn cases_of(words: &[&str]) -> Vec<Case> {
        let words = ["quire", "bench"].iter().chain(words);
        let Command::Bench(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not bench")
        };
        cases(&args)
    }

    #[test]
    fn cases_are_what_was_asked_for() {
        let all = cases_of(&[]);
        assert_eq!(all.len(), 4 * (1 + 1 + 3 + 1));
        let one = cases_of(&["--workload", "select", "--clients", "8", "--read", "lease"]);
        let level = Some(Level::Lease);
        assert_eq!(one, [Case { workload: Workload::Select, level, clients: 8 }]);
        assert_eq!(cases_of(&["--check"]).len(), 4);
        assert_eq!(cases_of(&["--check", "--clients", "2"]).len(), 6);
    }
}
