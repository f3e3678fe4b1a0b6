//! The Python stack of dqlite (asyncio client, DB-API, SQLAlchemy), unmodified, against a cluster:
//! the program in `clients/python`.
//!
//! It runs with the interpreter that `QUIRE_TEST_PYTHON` names, else with `python3`. Where that is
//! older than 3.13, or has not the packages, the tests say so and are skipped.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cluster_tests::chaos::clients::python;
use cluster_tests::{Cluster, Options, PATIENCE, Shared};
use tokio::process::Command;
use tokio::time::timeout;

static CLUSTER: Shared = Shared::new(|| Options::new(3));

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
