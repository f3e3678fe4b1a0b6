//! Rung R9: known mistakes, planted one at a time, are each found by the rung and the seed that
//! stand here. What is not found by anything here is said in docs/reliability.md.
//!
//! A bug is planted for the life of a process, so each runs in one of its own.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use cluster_tests::soak::{Portion, Rung};
use quire::base::planted::Bug;

/// Which bug is found by what.
const FOUND: &[(&str, Rung, u64, u64)] = &[("ack-before-sync", Rung::Cuts, 3, 100)];

fn portion(bug: &str, rung: Rung, seed: u64, count: u64) -> Result<(bool, String)> {
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_cluster-tests")));
    command.args(Portion { rung, seed, count }.words());
    if !bug.is_empty() {
        command.args(["--bug", bug]);
    }
    let output = command.stdin(Stdio::null()).env("RUST_BACKTRACE", "0").output()?;
    let streams = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    Ok((output.status.success(), streams.concat()))
}

#[test]
fn each_planted_bug_is_found() -> Result<()> {
    for (bug, rung, seed, count) in FOUND {
        let (good, said) = portion(bug, *rung, *seed, *count)?;
        ensure!(!good, "{bug} was not found by {rung:?}, seed {seed}, count {count}");
        let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        println!("{bug}: found by {rung:?}, seed {seed}: {line}");
    }
    let names: BTreeSet<&str> = FOUND.iter().map(|(bug, ..)| *bug).collect();
    ensure!(names.len() == FOUND.len() && names.len() >= 12);
    ensure!(names.iter().all(|name| Bug::named(name).is_some()));
    Ok(())
}

/// The same portions without a bug find nothing, or finding one would mean nothing.
#[test]
fn nothing_is_found_where_nothing_is_planted() -> Result<()> {
    let portions: BTreeSet<_> =
        FOUND.iter().map(|(_, rung, seed, count)| (rung, seed, count)).collect();
    for (rung, seed, count) in portions {
        let (good, said) = portion("", *rung, *seed, *count)?;
        ensure!(good, "{rung:?}, seed {seed}, count {count}: {said}");
    }
    Ok(())
}
