//! Many seeds, each in a process of its own, some at a time.
//!
//! *Invariant*: every process that is started here has ended when this returns.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::Report;

/// A seed that takes so long has got stuck: simulated time does not go on.
const SEED_MAX: Duration = Duration::from_secs(600);

/// How a seed ended.
#[derive(Debug)]
pub struct Ended {
    /// The seed.
    pub seed: u64,
    /// What it was; or what was violated, with the command that repeats it.
    pub report: Result<Report, String>,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Many<'a> {
    /// The program of this package.
    pub program: &'a Path,
    /// For how many simulated seconds there are faults.
    pub seconds: u64,
    /// How many processes at a time.
    pub at_once: usize,
    /// A planted bug.
    pub bug: Option<&'a str>,
}

impl Many<'_> {
    /// Runs the seeds, and tells of each as it ends; `told` says whether to go on.
    pub fn run(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        told: impl FnMut(Ended) -> bool + Send,
    ) {
        let left = Mutex::new(seeds.into_iter().collect::<VecDeque<u64>>());
        let told = Mutex::new(told);
        let take = || left.lock().ok().and_then(|mut left| left.pop_front());
        thread::scope(|scope| {
            for _ in 0..self.at_once {
                scope.spawn(|| {
                    while let Some(seed) = take() {
                        let ended = self.one(seed);
                        let on = told.lock().is_ok_and(|mut told| told(ended));
                        if !on && let Ok(mut left) = left.lock() {
                            left.clear();
                        }
                    }
                });
            }
        });
    }

    /// Runs one seed.
    pub fn one(&self, seed: u64) -> Ended {
        let mut command = Command::new("timeout");
        command.arg(SEED_MAX.as_secs().to_string()).arg(self.program);
        command.args(["sim", "--seed", &seed.to_string(), "--seconds", &self.seconds.to_string()]);
        command.args(self.bug.iter().flat_map(|bug| ["--bug", bug]));
        command.env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        Ended { seed, report: self.report(seed, command.output()) }
    }

    fn report(&self, seed: u64, output: io::Result<Output>) -> Result<Report, String> {
        let output = output.map_err(|error| format!("seed {seed} was not run: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success()
            && let Some(report) = said.lines().find_map(|line| serde_json::from_str(line).ok())
        {
            return Ok(report);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        let seconds = self.seconds;
        let bug = self.bug.map(|bug| format!(" --bug {bug}")).unwrap_or_default();
        Err(format!(
            "seed {seed} ended with {}\n{said}{errors}\nagain: cargo run -p cluster-tests -- sim \
             --seed {seed} --seconds {seconds}{bug}",
            output.status
        ))
    }
}
