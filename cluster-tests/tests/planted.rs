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
const FOUND: &[(&str, Rung, u64, u64)] = &[
    ("ack-before-sync", Rung::Cuts, 1, 1_000),
    ("vote-not-synced", Rung::Cuts, 1, 1_000),
    ("rename-not-synced", Rung::Cuts, 1, 1_000),
    ("checkpoint-file-unsynced", Rung::Cuts, 1, 1_000),
    ("applied-twice", Rung::Cuts, 1, 1_000),
    ("snapshot-mixed", Rung::Receptions, 1, 60),
    ("damage-as-torn-tail", Rung::Damage, 1, 300),
    ("page-hash-ignored", Rung::Damage, 1, 300),
    ("sync-error-ignored", Rung::Calls, 1, 60),
    // The first of so many seeds that finds it, so that a change elsewhere may shift it a little.
    ("fold-of-head", Rung::Simulation, 1, 30),
    ("answer-before-debt", Rung::Simulation, 1, 30),
    ("head-served", Rung::Simulation, 1, 30),
    ("speculation-kept", Rung::Simulation, 1, 30),
    ("request-forgotten", Rung::Simulation, 1, 30),
    ("stale-read", Rung::Simulation, 1, 30),
    ("gate-alone", Rung::Simulation, 1, 30),
];

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
        // And not by something else that went wrong.
        let repeats = ["R3 ", "R4 ", "R5 ", "seed "].iter().any(|rung| said.contains(rung));
        ensure!(repeats, "{bug}: {said}");
        let mut lines = said.lines().filter(|line| !line.trim().is_empty());
        let line = lines.nth(usize::from(*rung == Rung::Simulation)).unwrap_or_default();
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
    // Of the simulation its own test runs these seeds.
    let others = FOUND.iter().filter(|(_, rung, ..)| *rung != Rung::Simulation);
    let portions: BTreeSet<_> = others.map(|(_, rung, seed, count)| (rung, seed, count)).collect();
    for (rung, seed, count) in portions {
        let (good, said) = portion("", *rung, *seed, *count)?;
        ensure!(good, "{rung:?}, seed {seed}, count {count}: {said}");
    }
    Ok(())
}
