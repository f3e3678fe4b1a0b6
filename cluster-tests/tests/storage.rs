//! Rungs R3, R4 and R5: the power fails, bytes rot and calls fail under whole nodes. The bodies are
//! in `cluster_tests::storage`; this is how much of them CI runs, with fixed seeds, in at most three
//! minutes on two cores that are busy with nothing else. `QUIRE_LONG=1` runs the long form.

use anyhow::{Result, ensure};
use cluster_tests::storage::{Counts, cuts, damage, fails};

fn long() -> bool {
    std::env::var("QUIRE_LONG").is_ok()
}

/// How many in CI, and in the long form.
fn how_many(ci: u64, in_long: u64) -> u64 {
    if long() { in_long } else { ci }
}

fn tell(what: &str, counts: Result<Counts>) -> Result<Counts> {
    let counts = counts?;
    println!("{what}: {counts:?}");
    Ok(counts)
}

fn count(counts: &Counts, what: &str) -> u64 {
    counts.get(what).copied().unwrap_or(0)
}

#[test]
fn cuts_of_one_node() -> Result<()> {
    let counts = tell("R3 one node", cuts::alone(3, how_many(380, 15_000)))?;
    ensure!(count(&counts, "acknowledged") > 300, "{counts:?}");
    Ok(())
}

#[test]
fn cuts_of_three_nodes_at_one_moment() -> Result<()> {
    tell("R3 three nodes", cuts::together(3, how_many(70, 3_000))).map(drop)
}

#[test]
fn cuts_of_a_follower_that_receives_a_snapshot() -> Result<()> {
    tell("R3 a reception", cuts::receiving(3, how_many(50, 2_000))).map(drop)
}

#[test]
fn damage_of_one_node() -> Result<()> {
    let counts = tell("R4 one node", damage::alone(4, how_many(1_900, 97_000)))?;
    for found in ["found by a read", "refused: log", "refused: node.toml", "mended by proof"] {
        ensure!(count(&counts, found) > 0, "{found}: none of {counts:?}");
    }
    Ok(())
}

#[test]
fn damage_of_one_of_three_nodes() -> Result<()> {
    let counts = tell("R4 one of three", damage::one_of_three(4, how_many(100, 3_000)))?;
    ensure!(count(&counts, "found by a read, repaired") > 0, "{counts:?}");
    Ok(())
}

#[test]
fn damage_of_all_three_nodes() -> Result<()> {
    let counts = tell("R4 all three", damage::all_three(4, how_many(60, 2_000)))?;
    for found in ["all refuse", "what is damaged is not served", "they wait for one another"] {
        ensure!(count(&counts, found) > 0, "{found}: none of {counts:?}");
    }
    Ok(())
}

#[test]
fn damage_of_what_a_follower_receives() -> Result<()> {
    let counts = tell("R4 a reception", damage::receiving(4, how_many(40, 2_000)))?;
    ensure!(count(&counts, "refused: install record") > 0, "{counts:?}");
    Ok(())
}

#[test]
fn calls_that_fail() -> Result<()> {
    let counts = tell("R5", fails::calls(5, how_many(200, 2_000)))?;
    for end in ["nodes that stopped", "nodes that went on"] {
        ensure!(count(&counts, end) > 0, "{end}: none of {counts:?}");
    }
    Ok(())
}
