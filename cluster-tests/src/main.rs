//! The program of the tests that run for longer than CI has time, and of those that need a process
//! for each of their runs.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use cluster_tests::sim;
use quire::base::planted::{self, Bug};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seeds of the simulation, each in this process: a violation is repeated by its seed alone.
    Sim {
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
        /// Print the nodes' log.
        #[arg(long)]
        log: Option<String>,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Sim { seed, seconds, print, bug, log } => {
            if let Some(bug) = bug.as_deref() {
                let Some(bug) = Bug::named(bug) else {
                    eprintln!("there is no planted bug `{bug}`");
                    return ExitCode::FAILURE;
                };
                planted::plant(bug);
            }
            if let Some(filter) = log {
                tracing_subscriber::fmt()
                    .with_env_filter(filter)
                    .with_writer(std::io::stderr)
                    .without_time()
                    .init();
            }
            let begun = Instant::now();
            match sim::run(&sim::Options { seed, seconds, print }) {
                Ok(report) => {
                    match serde_json::to_string(&report) {
                        Ok(report) => println!("{report}"),
                        Err(error) => eprintln!("{error}"),
                    }
                    eprintln!("{:?}", begun.elapsed());
                    ExitCode::SUCCESS
                }
                Err(what) => {
                    println!("{what}");
                    println!(
                        "again: cargo run -p cluster-tests -- sim --seed {seed} --seconds {seconds}"
                    );
                    ExitCode::FAILURE
                }
            }
        }
    }
}
