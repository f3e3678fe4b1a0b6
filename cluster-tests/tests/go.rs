//! Go's `database/sql` and go-dqlite's administration client, unmodified, against a cluster: the
//! program in `clients/go`, built without C against Debian's package.
//!
//! Where Go or the package is not there, the tests say so and are skipped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use cluster_tests::{Cluster, PATIENCE};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Where Debian puts the sources of Go packages.
const GOPATH: &str = "/usr/share/gocode";

const INSTALL: &str =
    "apt-get install -y --no-install-recommends golang-go golang-github-canonical-go-dqlite-dev";

/// The program, built once; `None`, and a line that says why, where it cannot be.
fn clients() -> Result<Option<&'static Path>> {
    static BUILT: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    match built {
        Ok(built) => Ok(built.as_deref()),
        Err(error) => bail!("{error}"),
    }
}

fn build() -> Result<Option<PathBuf>> {
    let missing = |what: &str| {
        eprintln!("SKIPPED, go-dqlite is not tested: {what} is not there. To install: {INSTALL}");
        Ok(None)
    };
    if std::process::Command::new("go").arg("version").output().is_err() {
        return missing("the program go");
    }
    let package = Path::new(GOPATH).join("src/github.com/canonical/go-dqlite");
    if !package.is_dir() {
        return missing(&package.display().to_string());
    }
    let program = std::env::current_exe()?.with_file_name("go-clients");
    // No module and no network: what is installed is what is used.
    let output = std::process::Command::new("go")
        .args(["build", "-tags", "nosqlite3", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/go"))
        .envs([("GO111MODULE", "off"), ("GOPATH", GOPATH), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go build: {said}");
    Ok(Some(program))
}

/// Runs scenarios and does what the program asks for meanwhile.
async fn run(cluster: &mut Cluster, dir: &Path, scenarios: &[&str]) -> Result<()> {
    let Some(program) = clients()? else { return Ok(()) };
    let mut child = Command::new(program)
        .arg(cluster.servers())
        .arg(dir)
        .args(scenarios)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut passed = Vec::new();
    while let Some(line) = timeout(2 * PATIENCE, lines.next_line()).await.context("silence")?? {
        println!("{line}");
        if let Some(address) = line.strip_prefix("kill ") {
            let id = (1..).zip(cluster.addresses()).find(|(_, known)| known == address);
            cluster.kill(id.context("no such node")?.0)?;
            stdin.write_all(b"done\n").await?;
        } else if let Some(name) = line.strip_prefix("ok ") {
            passed.push(name.to_owned());
        }
    }
    let status = timeout(PATIENCE, child.wait()).await.context("it does not end")??;
    ensure!(status.success() && passed == scenarios, "passed: {passed:?}");
    Ok(())
}

#[tokio::test]
async fn statements_values_transactions_and_errors() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    let scenarios = [
        "types",
        "prepared",
        "transactions",
        "parameters",
        "parts",
        "interrupt",
        "constraints",
        "busy",
    ];
    run(&mut cluster, dir.path(), &scenarios).await
}

#[tokio::test]
async fn a_dump_opens_in_sqlite() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["dump"]).await?;
    if clients()?.is_some() {
        let copy = rusqlite::Connection::open(dir.path().join("go.db"))?;
        let check: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        assert_eq!(check, "ok");
        let sum: i64 = copy.query_row("SELECT sum(n) FROM dumped", [], |row| row.get(0))?;
        assert_eq!(sum, 5000 * 5001 / 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["failover"]).await
}

#[tokio::test]
async fn members_tell_what_they_are_and_change_and_leadership_moves() -> Result<()> {
    let mut cluster = Cluster::start_by_hand(3).await?;
    let dir = tempfile::tempdir()?;
    run(&mut cluster, dir.path(), &["metadata", "transfer", "members"]).await
}
