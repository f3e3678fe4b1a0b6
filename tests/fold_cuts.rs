//! The power is cut at every call of a run of checkpoints; what was not synced is lost, kept or
//! torn. Every cut opens, at the last durable record or above, and the log does the rest.

mod common;

use std::collections::BTreeMap;

use common::{Member, Replicas, apply, numbers, query, run};
use quire::disk::FakeDisk;
use quire::pages::Catalog;
use quire::pages::store::{ApplyOutcome, Outgoing};

/// The calls of the disk up to which a record was durable, and the version in it.
struct Run {
    disk: FakeDisk,
    records: Vec<(u64, u64)>,
    /// The deltas by the index of their entry: the log.
    log: BTreeMap<u64, Outgoing>,
    digests: Vec<u128>,
}

fn run_checkpoints() -> Run {
    let mut replicas = Replicas::new();
    let disk = FakeDisk::new();
    replicas.follower = Member::new(disk.clone(), 4096);
    let writer = replicas.writer();
    let (mut records, mut log, mut digests) = (vec![], BTreeMap::new(), vec![0]);
    let steps = [
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x)".to_owned(),
        format!("{} INSERT INTO t SELECT i, randomblob(700) FROM c", numbers(60)),
        "UPDATE t SET x = randomblob(10) WHERE id % 5 = 0".to_owned(),
        "DELETE FROM t WHERE id > 30; VACUUM".to_owned(),
        "INSERT INTO t(x) VALUES(zeroblob(50000)); CREATE INDEX tx ON t(x)".to_owned(),
        "DELETE FROM t WHERE id % 2; UPDATE t SET x = 'small'; VACUUM".to_owned(),
        format!("{} INSERT INTO t(x) SELECT randomblob(300) FROM c", numbers(80)),
    ];
    for step in &steps {
        run(&writer, step);
        while let Some(outgoing) = replicas.leader.store.take_outgoing() {
            replicas.index += 1;
            for member in [&replicas.leader, &replicas.follower] {
                assert_eq!(member.apply(&outgoing, replicas.index), ApplyOutcome::Applied);
            }
            digests.push(replicas.leader.store.applied().digest);
            log.insert(replicas.index, outgoing);
        }
        replicas.follower.checkpoint();
        records.push((disk.calls(), replicas.follower.store.applied().version));
    }
    Run { disk, records, log, digests }
}

fn check_cut(run: &Run, calls: u64, seed: u64) {
    let what = format!("cut after {calls} calls, seed {seed}");
    let disk = run.disk.after_cut(calls, seed);
    let catalog = Catalog::open(std::sync::Arc::new(disk.clone())).expect(&what);
    let durable = run.records.iter().rev().find(|(at, _)| *at <= calls).map_or(0, |(_, v)| *v);
    let Some(store) = catalog.by_id(1) else {
        assert_eq!(durable, 0, "{what}: the database is gone");
        return;
    };
    let point = store.verify().expect(&what);
    assert!(point.version >= durable, "{what}: at {} below {durable}", point.version);
    assert_eq!(point.digest, run.digests[point.version as usize], "{what}");
    let recorded = catalog.recorded().last.expect(&what).index;
    assert!(recorded <= store.place().index.max(1), "{what}: the record claims too much");
    // The log is replayed from the record; what lies at or below the place is skipped.
    for (index, outgoing) in run.log.range(recorded + 1..) {
        if *index > store.place().index {
            assert_eq!(apply(&store, outgoing, *index), ApplyOutcome::Applied, "{what}");
        }
    }
    assert_eq!(store.verify().expect(&what).digest, run.digests[run.digests.len() - 1]);
    // And the next checkpoint leaves an ordinary file.
    catalog.applied().last = None;
    catalog.checkpoint().expect(&what);
    drop((store, catalog));
    let again = Member::open(disk.cut(quire::disk::fake::Cut::Lose));
    assert_eq!(again.store.verify().expect(&what).digest, run.digests[run.digests.len() - 1]);
}

#[test]
fn every_cut_opens_and_nothing_that_was_recorded_is_lost() {
    let run = run_checkpoints();
    let calls = run.disk.calls();
    let mut cuts = 0;
    for n in 0..=calls {
        // Lose all, keep all, or something in between, another one at every call.
        for seed in [n % 2, 2 + n, 1000 + n] {
            check_cut(&run, n, seed);
            cuts += 1;
        }
    }
    assert!(cuts >= 300, "only {cuts} cuts");
    let replicas = Replicas::new();
    let last = Member::open(run.disk.after_cut(calls, 0));
    let count = query(&replicas.reader(&last.store), "SELECT count(*) FROM t");
    assert_ne!(count, [["0"]]);
}

/// A cut in the redo of a cut: the second start does it again.
#[test]
fn a_cut_while_a_cut_is_being_mended() {
    let run = run_checkpoints();
    let calls = run.disk.calls();
    let mut redone = 0;
    for n in (0..=calls).step_by(3) {
        let disk = run.disk.after_cut(n, 2 + n);
        let before = disk.calls();
        let Ok(catalog) = Catalog::open(std::sync::Arc::new(disk.clone())) else { panic!("{n}") };
        drop(catalog);
        if disk.calls() < before + 8 {
            continue;
        }
        redone += 1;
        for second in before..=disk.calls() {
            let again = disk.after_cut(second, 7 + second);
            let catalog = Catalog::open(std::sync::Arc::new(again)).unwrap();
            if let Some(store) = catalog.by_id(1) {
                let point = store.verify().unwrap();
                assert_eq!(point.digest, run.digests[point.version as usize]);
            }
        }
    }
    assert!(redone > 5, "{redone}");
}
