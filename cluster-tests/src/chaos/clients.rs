//! Clients of the other languages: programs of `clients/go` and `clients/python` that do a
//! workload and print each operation as a line of JSON, which lands in the same history.
//!
//! Where a language or its package is not there, that is said, and the run does without.
//!
//! *Invariant*: a program that fails, or prints what is no operation, fails the run.

use std::path::{Path, PathBuf};
use std::process::{Command as Blocking, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::ledger::Ledger;
use super::workload::Workload;
use crate::PATIENCE;
use crate::check::Event;

/// Where Debian puts the sources of Go packages.
const GOPATH: &str = "/usr/share/gocode";

const GO_INSTALL: &str =
    "apt-get install -y --no-install-recommends golang-go golang-github-canonical-go-dqlite-dev";

const PYTHON_INSTALL: &str = "python3.13 -m venv target/python && target/python/bin/pip install \
                              -r cluster-tests/clients/python/requirements.txt, then \
                              QUIRE_TEST_PYTHON=target/python/bin/python";

/// The directory of this package.
const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// A language that has a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// go-dqlite, by `database/sql`.
    Go,
    /// dqlite's asyncio client.
    Python,
}

/// What a program is told.
pub struct Job {
    /// Where the members are.
    pub addresses: String,
    /// For how long it works.
    pub lasting: Duration,
    /// How many clients it has.
    pub clients: u32,
    /// What its dice are cast with.
    pub seed: u64,
}

impl Language {
    /// The number of its first client: nobody of this process comes so far.
    fn first(self) -> u32 {
        match self {
            Language::Go => 100_000_000,
            Language::Python => 200_000_000,
        }
    }

    /// What is counted of it.
    pub(super) fn done(self) -> &'static str {
        match self {
            Language::Go => "done by Go",
            Language::Python => "done by Python",
        }
    }

    /// Its program; `None`, and a line that says why, where there is none.
    fn command(self) -> Result<Option<Command>> {
        match self {
            Language::Go => {
                let Some(program) = go_clients()? else { return Ok(None) };
                Ok(Some(Command::new(program)))
            }
            Language::Python => {
                let Some(python) = python() else { return Ok(None) };
                let mut command = Command::new(python);
                command.arg("cluster-tests/clients/python/workload.py");
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                Ok(Some(command))
            }
        }
    }

    /// Runs its program until it ends. Whether there is one.
    pub async fn work<W: Workload>(self, job: Job, ledger: Arc<Ledger<W::Op>>) -> Result<bool> {
        let Some(mut command) = self.command()? else { return Ok(false) };
        command.arg(&job.addresses);
        if self == Language::Go {
            command.arg("workload");
        }
        command.args([
            W::NAME.to_owned(),
            job.lasting.as_secs().max(1).to_string(),
            self.first().to_string(),
            job.clients.to_string(),
            (job.seed % 1_000_000).to_string(),
            ledger.start().to_string(),
        ]);
        ledger.count(self.done(), 0);
        let mut child = command
            .current_dir(format!("{HERE}/.."))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        listen::<W>(self, &mut child, &ledger).await.with_context(|| format!("{self:?}"))?;
        Ok(true)
    }
}

/// One line of a program.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line<Op> {
    Event(Event<Op>),
    Surprise { surprise: String },
}

async fn listen<W: Workload>(
    language: Language,
    child: &mut Child,
    ledger: &Ledger<W::Op>,
) -> Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line).with_context(|| format!("what it printed: {line}"))? {
            Line::Event(event) => {
                let event: Event<W::Op> = event;
                let writes = W::writes(&event.op);
                ledger.count(
                    language.done(),
                    u64::from(event.outcome == crate::check::Outcome::Done),
                );
                ledger.push(event, writes);
            }
            Line::Surprise { surprise } => ledger.surprise(surprise),
        }
    }
    let status = timeout(PATIENCE, child.wait()).await.context("it does not end")??;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// The Go program, built once; `None`, and a line that says why, where it cannot be.
pub fn go_clients() -> Result<Option<&'static Path>> {
    static BUILT: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_go_clients().map_err(|error| format!("{error:#}")));
    match built {
        Ok(built) => Ok(built.as_deref()),
        Err(error) => Err(anyhow!("{error}")),
    }
}

fn build_go_clients() -> Result<Option<PathBuf>> {
    let missing = |what: &str| {
        eprintln!(
            "SKIPPED, go-dqlite is not tested: {what} is not there. To install: {GO_INSTALL}"
        );
        Ok(None)
    };
    if Blocking::new("go").arg("version").output().is_err() {
        return missing("the program go");
    }
    let package = Path::new(GOPATH).join("src/github.com/canonical/go-dqlite");
    if !package.is_dir() {
        return missing(&package.display().to_string());
    }
    // Beside each test's own program: several are built at a time.
    let mut name = std::env::current_exe()?.into_os_string();
    name.push("-go-clients");
    let program = PathBuf::from(name);
    // No module and no network: what is installed is what is used.
    let output = Blocking::new("go")
        .args(["build", "-tags", "nosqlite3", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(format!("{HERE}/clients/go"))
        .envs([("GO111MODULE", "off"), ("GOPATH", GOPATH), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go build: {said}");
    Ok(Some(program))
}

/// The interpreter (`QUIRE_TEST_PYTHON`, else `python3`); `None`, and a line that says why, where
/// there is none that has what is needed.
pub fn python() -> Option<String> {
    let python = std::env::var("QUIRE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let check = "import sys; assert sys.version_info >= (3, 13), sys.version; \
                 import dqliteclient, dqlitedbapi, sqlalchemydqlite";
    // The tests run in this package's directory, the variable is said in the repository's.
    let output = Blocking::new(&python)
        .args(["-c", check])
        .current_dir(format!("{HERE}/.."))
        .stdin(Stdio::null())
        .output();
    let why = match output {
        Ok(output) if output.status.success() => return Some(python),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.lines().last().unwrap_or_default().to_owned()
        }
        Err(error) => error.to_string(),
    };
    eprintln!(
        "SKIPPED, the Python stack is not tested: {python}: {why}. To install: {PYTHON_INSTALL}"
    );
    None
}
