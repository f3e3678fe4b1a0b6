//! The simulation, as much of it as CI has time for: see `cluster_tests::sim`.

use std::path::Path;

use cluster_tests::sim::many::Many;

/// How many seeds: in CI, and with `QUIRE_LONG=1`.
const SEEDS: u64 = 200;
const SEEDS_LONG: u64 = 5_000;

fn many(bug: Option<&'static str>) -> Many<'static> {
    let program = Path::new(env!("CARGO_BIN_EXE_cluster-tests"));
    Many { program, seconds: 60, at_once: 2, bug }
}

#[test]
fn what_must_hold_holds_in_every_simulation() {
    let seeds = if std::env::var("QUIRE_LONG").is_ok() { SEEDS_LONG } else { SEEDS };
    let (mut done, mut acknowledged, mut simulated) = (0, 0, 0.0);
    let mut violations = Vec::new();
    many(None).run(1..=seeds, |ended| {
        match ended.report {
            Ok(report) => {
                done += 1;
                acknowledged += report.operations.0;
                simulated += report.simulated.as_secs_f64();
            }
            Err(what) => violations.push(what),
        }
        violations.len() < 3
    });
    println!("{done} seeds, {simulated:.0} simulated seconds, {acknowledged} acknowledged");
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    // An idle cluster violates nothing.
    assert!(acknowledged > seeds * 100);
}

/// Else nothing that is found could be looked at twice.
#[test]
fn a_seed_is_repeated_to_the_byte() {
    let trace = |seed| many(None).one(seed).report.map(|report| report.trace);
    // The last three begin with nodes of an older schema, which wait for one another.
    for seed in [1, 2, 3, 13, 16, 17] {
        assert_eq!(trace(seed), trace(seed));
    }
}
