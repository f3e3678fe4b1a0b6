//! The Python stack of dqlite (asyncio client, DB-API, SQLAlchemy), unmodified, against a cluster:
//! the program in `clients/python`.
//!
//! It runs with the interpreter that `QUIRE_TEST_PYTHON` names, else with `python3`. Where that is
//! older than 3.13, or has not the packages, the tests say so and are skipped.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, Options, PATIENCE, Shared};
use tokio::process::Command;
use tokio::time::timeout;

static CLUSTER: Shared = Shared::new(|| Options::new(3));

const INSTALL: &str = "python3.13 -m venv target/python && target/python/bin/pip install \
                       -r cluster-tests/clients/python/requirements.txt, then \
                       QUIRE_TEST_PYTHON=target/python/bin/python";

/// The interpreter; `None`, and a line that says why, where there is none that has what is needed.
fn python() -> Option<String> {
    let python = std::env::var("QUIRE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let check = "import sys; assert sys.version_info >= (3, 13), sys.version; \
                 import dqliteclient, dqlitedbapi, sqlalchemydqlite";
    // The tests run in this package's directory, the variable is said in the repository's.
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = std::process::Command::new(&python)
        .args(["-c", check])
        .current_dir(root)
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
    eprintln!("SKIPPED, the Python stack is not tested: {python}: {why}. To install: {INSTALL}");
    None
}

async fn run(scenario: &str) -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    run_on(&*CLUSTER.get().await?, &python, scenario).await
}

async fn run_on(cluster: &Cluster, python: &str, scenario: &str) -> Result<()> {
    let leader = cluster.wait_for_leader().await?;
    let mut addresses = cluster.addresses();
    addresses.swap(0, leader - 1);
    let output = Command::new(python)
        .arg("cluster-tests/clients/python/clients.py")
        .arg(addresses.join(","))
        .arg(scenario)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(2 * PATIENCE, output).await.context("it does not end")??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.contains(&format!("ok {scenario}")), "{said}{errors}");
    Ok(())
}

#[tokio::test]
async fn the_asyncio_client() -> Result<()> {
    run("asyncio").await
}

/// It changes the cluster, and has one of its own.
#[tokio::test]
async fn its_administration_of_members() -> Result<()> {
    let Some(python) = python() else { return Ok(()) };
    run_on(&Cluster::start_by_hand(3).await?, &python, "members").await
}

#[tokio::test]
async fn the_dbapi() -> Result<()> {
    run("dbapi").await
}

#[tokio::test]
async fn sqlalchemys_orm() -> Result<()> {
    run("orm").await
}
