//! The program of the tests that run for longer than CI has time, and of those that need a process
//! for each of their runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster_tests::sim;
use cluster_tests::soak::{Portion, Results, Rung, soak};
use quire::base::planted::{self, Bug};

/// Where figures are kept.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/soak/results.jsonl");

#[derive(Parser)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed of the simulation: a violation is repeated by its seed alone.
    Sim(Seed),
    /// Runs a portion of a rung, and prints what it counted.
    Portion {
        /// Which.
        #[arg(long)]
        rung: Rung,
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// How many: cuts, damages, calls, seeds; seconds of a nemesis.
        #[arg(long)]
        count: u64,
        /// Plants this bug first.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Runs portions of all rungs in turn, and adds what they counted to the results.
    Soak {
        /// For how long.
        #[arg(long)]
        minutes: u64,
        /// Only these.
        #[arg(long)]
        rung: Vec<Rung>,
        /// The results.
        #[arg(long, default_value = RESULTS)]
        results: PathBuf,
    },
    /// Adds up the results of this commit.
    Totals {
        /// The results.
        #[arg(long, default_value = RESULTS)]
        results: PathBuf,
    },
}

#[derive(Args)]
struct Seed {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// For how many simulated seconds there are faults.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Print what happens.
    #[arg(long)]
    print: bool,
    /// Plant this bug.
    #[arg(long)]
    bug: Option<String>,
    /// Print the nodes' log as this filter says.
    #[arg(long)]
    log: Option<String>,
}

fn main() -> ExitCode {
    let done = match Program::parse().command {
        Command::Sim(seed) => simulate(&seed),
        Command::Portion { rung, seed, count, bug } => portion(rung, seed, count, bug.as_deref()),
        Command::Soak { minutes, rung, results } => run_long(minutes, &rung, &results),
        Command::Totals { results } => totals(&results),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn plant(bug: Option<&str>) -> Result<()> {
    let Some(name) = bug else { return Ok(()) };
    let bug = Bug::named(name).with_context(|| format!("there is no bug `{name}`"))?;
    ensure!(planted::plant(bug), "it was settled before which bug this process has");
    Ok(())
}

fn simulate(seed: &Seed) -> Result<()> {
    plant(seed.bug.as_deref())?;
    if let Some(filter) = &seed.log {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        log.without_time().init();
    }
    let Seed { seed, seconds, print, .. } = *seed;
    let begun = Instant::now();
    let report = sim::run(&sim::Options { seed, seconds, print }).map_err(anyhow::Error::msg)?;
    println!("{}", serde_json::to_string(&report)?);
    eprintln!("{:?}", begun.elapsed());
    Ok(())
}

fn portion(rung: Rung, seed: u64, count: u64, bug: Option<&str>) -> Result<()> {
    plant(bug)?;
    let program = std::env::current_exe()?;
    let counts = Portion { rung, seed, count }.run(&program, bug)?;
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}

fn run_long(minutes: u64, rungs: &[Rung], results: &std::path::Path) -> Result<()> {
    let mut results = Results::open(results)?;
    let rungs = if rungs.is_empty() { Rung::value_variants() } else { rungs };
    let lasting = Duration::from_secs(minutes * 60);
    soak(&std::env::current_exe()?, &mut results, rungs, lasting)?;
    print_totals(&results)
}

fn totals(results: &std::path::Path) -> Result<()> {
    print_totals(&Results::open(results)?)
}

fn print_totals(results: &Results) -> Result<()> {
    let (totals, violations) = results.totals();
    println!("of {}:", results.commit());
    for (rung, counts) in totals {
        println!("{rung:?}: {}", serde_json::to_string(&counts)?);
    }
    for line in &violations {
        let violation = line.violation.as_deref().unwrap_or_default();
        println!("VIOLATION of {}: {violation}", line.portion.words().join(" "));
    }
    ensure!(violations.is_empty(), "{} violations", violations.len());
    Ok(())
}
