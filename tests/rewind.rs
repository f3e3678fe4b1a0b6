//! Leadership lost and come back, by hand: what stood on dropped versions is gone for everybody,
//! and nothing that saw them is used again.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Member, Replicas, apply, fails, one, query, run};
use futures::FutureExt;
use quire::base::DeltaId;
use quire::codec::Reader;
use quire::disk::FakeDisk;
use quire::pages::delta::DeltaHeader;
use quire::pages::store::{ApplyOutcome, Outgoing, Place, Resolution, Waiting};
use quire::pages::{PagesError, Store};
use quire::sqlite::{Connection, View};
use rusqlite::ffi;

/// The old leader (`replicas.leader`) and the new one (`replicas.follower`), both at a version
/// with a table `t`.
fn replicas() -> (Replicas, Connection) {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)");
    replicas.replicate();
    (replicas, writer)
}

/// A connection to the new leader's head, which leads in `term`.
fn new_leader(replicas: &Replicas, term: u64) -> Connection {
    replicas.follower.store.open_slot(term);
    let writer = replicas.connect(&replicas.follower.store, View::Head, false);
    writer.link().allow_write(true);
    writer
}

fn outgoing(store: &Store) -> Vec<Outgoing> {
    std::iter::from_fn(|| store.take_outgoing()).collect()
}

/// Commits what the new leader published on both.
fn commit_foreign(replicas: &mut Replicas) -> Vec<ApplyOutcome> {
    let mut outcomes = vec![];
    for delta in outgoing(&replicas.follower.store) {
        replicas.index += 1;
        assert_eq!(replicas.follower.apply(&delta, replicas.index), ApplyOutcome::Applied);
        outcomes.push(replicas.leader.apply(&delta, replicas.index));
    }
    outcomes
}

fn now(waiting: Waiting) -> Option<Resolution> {
    waiting.resolved().now_or_never()
}

/// With the handle of the old history left usable, the INSERT went into the other table:
/// SQLite found its schema cookie unchanged and wrote by the old root page.
#[test]
fn a_connection_that_saw_a_dropped_schema_never_writes_again() {
    let (mut replicas, old) = replicas();
    run(&old, "CREATE TABLE mine(a, b)");
    assert_eq!(query(&old, "SELECT * FROM mine"), Vec::<Vec<String>>::new());
    let reader_at_head = replicas.deferred();
    assert_eq!(one(&reader_at_head, "SELECT count(*) FROM mine"), "0");
    let cookie = one(&old, "PRAGMA schema_version");
    replicas.leader.store.rewind();
    // From this moment on, not only after somebody else has written.
    for connection in [&old, &reader_at_head] {
        for sql in
            ["SELECT count(*) FROM mine", "SELECT 1", "BEGIN", "INSERT INTO mine VALUES(1,2)"]
        {
            let error = fails(connection, sql);
            assert_eq!(error.primary(), ffi::SQLITE_IOERR, "{sql}");
            assert!(
                matches!(error.cause.as_deref(), Some(PagesError::Rewound)),
                "{sql}: {error:?}"
            );
        }
        assert!(connection.describe("SELECT * FROM mine").is_err());
        assert!(connection.check_stands().is_err());
    }

    let theirs = new_leader(&replicas, 2);
    run(&theirs, "CREATE TABLE theirs(x, y)");
    assert_eq!(one(&theirs, "PRAGMA schema_version"), cookie, "SQLite sees no difference");
    assert_eq!(commit_foreign(&mut replicas), [ApplyOutcome::Applied]);

    // Leadership is back, with a head that SQLite would take for the one it knew.
    replicas.follower.store.rewind();
    replicas.leader.store.open_slot(3);
    for connection in [&old, &reader_at_head] {
        connection.link().allow_write(true);
        let error = fails(connection, "INSERT INTO mine VALUES(1, 2)");
        assert_eq!(error.primary(), ffi::SQLITE_IOERR);
    }
    let fresh = replicas.writer();
    assert_eq!(fails(&fresh, "INSERT INTO mine VALUES(1,2)").message, "no such table: mine");
    run(&fresh, "INSERT INTO theirs VALUES(3, 4)");
    replicas.replicate();
    assert_eq!(replicas.both("SELECT * FROM theirs"), [["3", "4"]]);
}

#[test]
fn a_connection_inside_a_transaction_fails_from_the_moment_of_the_rewind() {
    let (mut replicas, _) = replicas();
    let interactive = replicas.writer();
    run(&interactive, "INSERT INTO t VALUES(2); BEGIN; INSERT INTO t VALUES(3)");
    let deferred = replicas.deferred();
    run(&deferred, "BEGIN");
    assert_eq!(one(&deferred, "SELECT count(*) FROM t"), "2");
    replicas.leader.store.rewind();
    replicas.leader.store.open_slot(1);
    for (connection, statements) in [
        (&interactive, vec!["SELECT count(*) FROM t", "INSERT INTO t VALUES(4)", "COMMIT"]),
        (&deferred, vec!["SELECT count(*) FROM t", "INSERT INTO t VALUES(5)", "COMMIT"]),
    ] {
        for sql in statements {
            assert_eq!(fails(connection, sql).primary(), ffi::SQLITE_IOERR, "{sql}");
        }
        connection.roll_back();
    }
    drop((interactive, deferred));
    run(&replicas.writer(), "INSERT INTO t VALUES(6)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,6");
}

/// A transaction that had spilled into the file is rolled back by playing pages back, on a
/// snapshot that is gone.
#[test]
fn a_spilled_transaction_survives_its_rewind_by_rolling_back() {
    let (mut replicas, writer) = replicas();
    run(&writer, "PRAGMA cache_size=10; CREATE TABLE big(a, x); BEGIN");
    let fill = format!("{} INSERT INTO big SELECT i, randomblob(900) FROM c", common::numbers(900));
    run(&writer, &fill);
    replicas.leader.store.rewind();
    replicas.leader.store.open_slot(1);
    fails(&writer, "COMMIT");
    writer.roll_back();
    drop(writer);
    run(&replicas.writer(), "INSERT INTO t VALUES(6)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,6");
}

/// Apply meets another leader's delta at our own next version before anybody has noticed that
/// leadership is lost: by the version's number alone it would have moved over our own pages.
#[test]
fn a_foreign_delta_with_our_next_version() {
    let (mut replicas, writer) = replicas();
    run(&writer, "INSERT INTO t VALUES(10); INSERT INTO t VALUES(11)");
    let published = writer.take_published();
    let ours = outgoing(&replicas.leader.store);
    let theirs = new_leader(&replicas, 2);
    run(&theirs, "INSERT INTO t VALUES(20)");
    assert_eq!(replicas.leader.store.head().version, replicas.follower.store.head().version + 1);
    assert_eq!(commit_foreign(&mut replicas), [ApplyOutcome::Applied]);
    assert_eq!(replicas.leader.store.head(), replicas.leader.store.applied());
    replicas.compare();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,20");
    for published in published.into_iter().skip(2) {
        assert_eq!(now(published.waiting), Some(Resolution::Dropped { proposed: true }));
    }
    assert_eq!(fails(&writer, "SELECT 1").primary(), ffi::SQLITE_IOERR);
    // Should ours be committed after all, every replica refuses them.
    for delta in &ours {
        for member in [&replicas.leader, &replicas.follower] {
            assert_eq!(member.apply(delta, 50), ApplyOutcome::Refused);
        }
    }
    replicas.compare();
}

#[test]
fn waiters_of_dropped_versions_are_told_whether_raft_had_them() {
    let (replicas, writer) = replicas();
    writer.take_published();
    run(&writer, "INSERT INTO t VALUES(10); INSERT INTO t VALUES(11); INSERT INTO t VALUES(12)");
    let store = &replicas.leader.store;
    let base = store.applied().version;
    let epoch = store.epoch();
    let applied = apply(store, &store.take_outgoing().unwrap(), 9);
    assert_eq!(applied, ApplyOutcome::Applied);
    store.take_outgoing().unwrap();
    let readers: Vec<Waiting> = (1..=3).map(|v| store.wait_applied(base + v, epoch)).collect();
    store.rewind();
    let expected = [
        Resolution::Applied,
        Resolution::Dropped { proposed: true },
        Resolution::Dropped { proposed: false },
    ];
    for waiting in [writer.take_published().into_iter().map(|p| p.waiting).collect(), readers] {
        let told: Vec<Resolution> = waiting.into_iter().map(|w| now(w).unwrap()).collect();
        assert_eq!(told, expected);
    }
    assert_eq!(now(store.wait_applied(base + 1, epoch)), Some(Resolution::Applied));
    let late = now(store.wait_applied(base + 2, epoch));
    assert!(matches!(late, Some(Resolution::Dropped { .. })));
    // The same version number in the next epoch is another version.
    store.open_slot(1);
    let fresh = replicas.writer();
    run(&fresh, "INSERT INTO t VALUES(13)");
    assert_eq!(now(store.wait_applied(base + 2, store.epoch())), None);
    assert!(matches!(now(store.wait_applied(base + 2, epoch)), Some(Resolution::Dropped { .. })));
}

/// A quorum was silent for half a second, and Raft took nothing from its leader. The first writer was
/// told that its transaction was certainly not executed, and tried again; the dozens behind it had an
/// unknown outcome. But what stands on a version that never will be is let through by no fence.
#[test]
fn not_appended_is_certain_for_what_stands_on_it_too() {
    let (replicas, writer) = replicas();
    writer.take_published();
    run(&writer, "INSERT INTO t VALUES(10); INSERT INTO t VALUES(11); INSERT INTO t VALUES(12)");
    let deltas = outgoing(&replicas.leader.store);
    replicas.leader.store.rewind_not_appended(&[deltas[1].id]);
    let told: Vec<_> = writer.take_published().into_iter().map(|p| now(p.waiting)).collect();
    let dropped = |proposed| Some(Resolution::Dropped { proposed });
    assert_eq!(told, [dropped(true), dropped(false), dropped(false)]);
}

/// A delta of ours that the fence refused is certainly not applied, and drops what stood on it.
#[test]
fn a_delta_of_ours_that_the_fence_refuses() {
    let (mut replicas, writer) = replicas();
    writer.take_published();
    run(&writer, "INSERT INTO t VALUES(10); INSERT INTO t VALUES(11)");
    let deltas = outgoing(&replicas.leader.store);
    // The second is committed without the first.
    replicas.index += 1;
    for member in [&replicas.leader, &replicas.follower] {
        assert_eq!(member.apply(&deltas[1], replicas.index), ApplyOutcome::Refused);
    }
    assert_eq!(replicas.leader.store.head(), replicas.leader.store.applied());
    let told: Vec<_> = writer.take_published().into_iter().map(|p| now(p.waiting)).collect();
    assert_eq!(
        told,
        [
            Some(Resolution::Dropped { proposed: true }),
            Some(Resolution::Dropped { proposed: false })
        ]
    );
    // The first then comes too: it fits, for all alike.
    replicas.index += 1;
    for member in [&replicas.leader, &replicas.follower] {
        assert_eq!(member.apply(&deltas[0], replicas.index), ApplyOutcome::Applied);
    }
    replicas.compare();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,10");
}

#[test]
fn the_fence_goes_by_database_version_and_parent() {
    let (replicas, writer) = replicas();
    run(&writer, "INSERT INTO t VALUES(10)");
    let delta = outgoing(&replicas.leader.store).remove(0);
    let header = DeltaHeader::decode(&mut Reader::new(&delta.bytes)).unwrap();
    let wrong = [
        DeltaHeader { database: 2, ..header },
        DeltaHeader { base_version: header.base_version + 1, ..header },
        DeltaHeader { base_version: header.base_version - 1, ..header },
        DeltaHeader { parent: DeltaId { term: 1, sequence: 1 }, ..header },
        DeltaHeader { parent: DeltaId { term: 2, ..header.parent }, ..header },
    ];
    let store = &replicas.follower.store;
    for header in wrong {
        let place = Place { index: 9, ordinal: 1 };
        assert_eq!(store.apply(&header, &delta.bytes, place).unwrap(), ApplyOutcome::Refused);
    }
    assert_eq!(store.damage(), None);
    assert_eq!(apply(store, &delta, 9), ApplyOutcome::Applied);
    assert_eq!(apply(store, &delta, 10), ApplyOutcome::Refused, "not twice");
}

#[test]
fn rewound_in_the_same_term_no_delta_id_comes_twice() {
    let (mut replicas, _) = replicas();
    let mut ids = vec![];
    for round in 0..5 {
        let writer = replicas.writer();
        run(&writer, &format!("INSERT INTO t VALUES({})", 100 + round));
        run(&writer, &format!("INSERT INTO t VALUES({})", 200 + round));
        let deltas = outgoing(&replicas.leader.store);
        ids.extend(deltas.iter().map(|delta| delta.id));
        if round % 2 == 0 {
            let epoch = replicas.leader.store.epoch();
            replicas.leader.store.rewind();
            assert_eq!(replicas.leader.store.open_slot(1), epoch + 2);
        } else {
            for delta in deltas {
                replicas.index += 1;
                for member in [&replicas.leader, &replicas.follower] {
                    assert_eq!(member.apply(&delta, replicas.index), ApplyOutcome::Applied);
                }
            }
        }
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    replicas.compare();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,101,103,201,203");
}

/// The reasons of old rewinds are forgotten after a while; what was applied stands for ever.
#[test]
fn readers_of_applied_survive_rewinds() {
    let (mut replicas, _) = replicas();
    let reader = replicas.own_reader(&replicas.leader.store);
    let shared = replicas.reader(&replicas.leader.store);
    run(&reader, "BEGIN");
    for connection in [&reader, &shared] {
        assert_eq!(one(connection, "SELECT group_concat(a) FROM t"), "1");
    }
    for round in 0..100 {
        let writer = replicas.writer();
        run(&writer, &format!("INSERT INTO t VALUES({})", 100 + round));
        if round % 10 == 0 {
            replicas.replicate();
        }
        run(&writer, &format!("INSERT INTO t VALUES({})", 1000 + round));
        replicas.leader.store.rewind();
        replicas.leader.store.open_slot(1);
        assert_eq!(one(&reader, "SELECT group_concat(a) FROM t"), "1");
    }
    assert_eq!(one(&reader, "PRAGMA integrity_check"), "ok");
    run(&reader, "COMMIT");
    for connection in [&reader, &shared] {
        assert_eq!(one(connection, "SELECT count(*) FROM t"), "11");
    }
}

/// A transaction that began at applied, with nothing ahead, may go on after a rewind; to write it
/// must begin again.
#[test]
fn a_deferred_transaction_at_applied_survives_and_is_stale() {
    let (mut replicas, _) = replicas();
    let deferred = replicas.deferred();
    run(&deferred, "BEGIN");
    assert_eq!(one(&deferred, "SELECT count(*) FROM t"), "1");
    replicas.leader.store.rewind();
    replicas.leader.store.open_slot(1);
    deferred.link().allow_write(true);
    assert_eq!(one(&deferred, "SELECT count(*) FROM t"), "1");
    assert_eq!(fails(&deferred, "INSERT INTO t VALUES(2)").code, ffi::SQLITE_BUSY_SNAPSHOT);
    run(&deferred, "ROLLBACK; INSERT INTO t VALUES(3)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,3");
}

#[test]
fn a_digest_that_is_not_ours_means_this_replica_is_damaged() {
    for after in [false, true] {
        let (replicas, writer) = replicas();
        run(&writer, "INSERT INTO t VALUES(10); INSERT INTO t VALUES(11)");
        let deltas = outgoing(&replicas.leader.store);
        let mut wrong = deltas[0].clone();
        let mut bytes = wrong.bytes.to_vec();
        // In the header: database, id, parent, version, page count, digest before, digest after.
        let at = 8 + 16 + 16 + 8 + 4 + if after { 16 } else { 0 };
        bytes[at] ^= 1;
        wrong.bytes = bytes.into();
        let store = &replicas.follower.store;
        let reader = replicas.own_reader(store);
        run(&reader, "BEGIN");
        assert_eq!(one(&reader, "SELECT count(*) FROM t"), "1");
        let before = store.applied();
        let header = DeltaHeader::decode(&mut Reader::new(&wrong.bytes)).unwrap();
        let place = Place { index: 9, ordinal: 1 };
        let error = store.apply(&header, &wrong.bytes, place).unwrap_err();
        assert!(matches!(error, PagesError::Damaged { .. }), "it never refuses by a digest");
        assert!(store.damage().is_some());
        assert_eq!(store.apply(&header, &wrong.bytes, place).unwrap(), ApplyOutcome::Skipped);
        assert_eq!(apply(store, &deltas[0], 9), ApplyOutcome::Skipped);
        assert_eq!(store.applied(), before);
        assert!(store.snapshot_applied().is_err() && store.snapshot_head().is_err());
        assert!(store.verify().is_err());
        run(&reader, "COMMIT");
        assert_eq!(fails(&reader, "SELECT count(*) FROM t").primary(), ffi::SQLITE_CORRUPT);
        // The checkpoint leaves it where it is.
        replicas.follower.catalog.applied().last = None;
        replicas.follower.checkpoint();
        assert_eq!(replicas.follower.store.applied(), before);
    }
}

/// A disk error while a delta was applied left applied behind, and the next delta was *refused*:
/// on this replica alone.
#[test]
fn a_disk_error_in_apply_is_damage_not_refusal() {
    let disk = FakeDisk::unrecorded();
    let mut replicas = Replicas::new();
    replicas.follower = Member::new(disk.clone(), 4096);
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 1)");
    replicas.replicate();
    replicas.follower.checkpoint();
    run(&writer, "UPDATE t SET b = 2; UPDATE t SET b = 3");
    let deltas = outgoing(&replicas.leader.store);
    // Reads are counted from the disk's first one on; the next hundreds of them fail.
    (0..10_000).for_each(|read| disk.fail_read(read));
    let store: &Arc<Store> = &replicas.follower.store;
    let header = DeltaHeader::decode(&mut Reader::new(&deltas[0].bytes)).unwrap();
    let place = Place { index: 9, ordinal: 1 };
    assert!(store.apply(&header, &deltas[0].bytes, place).is_err());
    disk.heal();
    assert_eq!(apply(store, &deltas[1], 10), ApplyOutcome::Skipped);
}

/// Leadership comes and goes in one thread while another commits: whoever holds the publish permit
/// gives it back, and the follower, who only sees what was committed, ends with the same.
#[test]
fn rewinds_while_another_thread_commits() {
    let (mut replicas, writer) = replicas();
    drop(writer);
    let (leader, follower) = (&replicas.leader.store, &replicas.follower.store);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut index = 100;
    let (mut applied, mut rewinds, mut rewound_at) = (0, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut row = 1000;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let writer = replicas.writer();
                let mut failed = false;
                while !failed && !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    row += 1;
                    let sql = match row % 3 {
                        0 => format!("BEGIN; INSERT INTO t VALUES({row}); COMMIT"),
                        1 => format!("INSERT INTO t VALUES({row})"),
                        _ => "DELETE FROM t WHERE a > 1000 AND a % 2".to_owned(),
                    };
                    failed = common::try_run(&writer, &sql, &[]).is_err();
                }
            }
        });
        let begun = std::time::Instant::now();
        let enough = |applied, rewinds| applied > 3000 && rewinds > 300;
        let deadline = std::time::Duration::from_secs(60);
        while !enough(applied, rewinds) && begun.elapsed() < deadline {
            std::thread::yield_now();
            for _ in 0..20 {
                let Some(delta) = leader.take_outgoing() else { break };
                index += 1;
                let outcome = apply(leader, &delta, index);
                assert_eq!(apply(follower, &delta, index), outcome);
                applied += u32::from(outcome == ApplyOutcome::Applied);
            }
            // Not again before the other thread has got something through.
            if applied >= rewound_at + 7 {
                leader.rewind();
                leader.open_slot(1);
                (rewinds, rewound_at) = (rewinds + 1, applied);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(applied > 3000 && rewinds > 300, "{applied} {rewinds}");
    leader.rewind();
    leader.open_slot(1);
    replicas.index = index;
    run(&replicas.writer(), "INSERT INTO t VALUES(5)");
    replicas.replicate();
}

/// A connection looked whether what it held still stands, then leadership was lost and came back,
/// and then it took its snapshot: of the new history, which was noted as what it holds. From then
/// on it was believed for ever, with the schema of the old one.
#[test]
fn a_rewind_between_the_look_and_the_snapshot() {
    let (replicas, writer) = replicas();
    drop(writer);
    let store = &replicas.leader.store;
    for round in 0..50 {
        // So much that dropping it takes a while, in which others wait for their snapshots.
        let writer = replicas.writer();
        let table = format!("CREATE TABLE mine{round}(a, b)");
        let fill = format!(
            "{} INSERT INTO mine{round} SELECT i, randomblob(3000) FROM c",
            common::numbers(1000)
        );
        run(&writer, &table);
        run(&writer, &fill);
        let old = replicas.deferred();
        let sql = format!("SELECT count(*) FROM sqlite_schema WHERE name = 'mine{round}'");
        assert_eq!(one(&old, &sql), "1");
        let (reading, rewound) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !reading.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                store.rewind();
                store.open_slot(1);
                rewound.store(true, Ordering::Release);
            });
            while !rewound.load(Ordering::Acquire) {
                // It may fail already.
                let _ = common::try_run(&old, &sql, &[]);
                reading.store(true, Ordering::Release);
            }
        });
        let error = fails(&old, &sql);
        assert!(
            matches!(error.cause.as_deref(), Some(PagesError::Rewound)),
            "round {round}: {error:?}"
        );
        assert!(old.check_stands().is_err());
    }
}
