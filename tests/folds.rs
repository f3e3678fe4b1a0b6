//! The checkpoint of a database: the base moves up under readers old and new, and what lies on
//! the disk afterwards is an ordinary SQLite file.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::hook::Event;
use common::{Member, Reader, Replicas, apply, numbers, one, query, run};
use quire::disk::fake::Fault;
use quire::disk::{Disk, FakeDisk};
use quire::pages::PagesError;
use quire::pages::store::ApplyOutcome;
use quire::sqlite::{Connection, View};
use rusqlite::ffi;

fn fill(writer: &Connection, rows: usize) {
    run(writer, "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x)");
    let insert = "INSERT OR REPLACE INTO t SELECT i, randomblob(900) FROM c";
    run(writer, &format!("{} {insert}", numbers(rows)));
}

/// Changes that touch old pages, new ones, and cut the file.
fn step(writer: &Connection, step: usize) {
    match step % 5 {
        0 => fill(writer, 40 + step),
        1 => drop(run(writer, "UPDATE t SET x = randomblob(100) WHERE id % 7 = 0")),
        2 => drop(run(writer, "DELETE FROM t WHERE id > 20; VACUUM")),
        3 => drop(run(writer, "INSERT INTO t(x) VALUES(zeroblob(30000))")),
        _ => drop(run(writer, "UPDATE t SET x = 1 WHERE id < 3")),
    }
}

/// A reader above the old base and one below it: the image preserved for the lower one did not
/// count for the upper one, which read the base while it was being overwritten, and found the
/// new page or, worse, a damaged one.
#[test]
fn every_reader_sees_its_version_at_every_step_of_every_fold() {
    let mut replicas = Replicas::new();
    let (member, hook) = Member::hooked(4096);
    replicas.follower = member;
    let writer = replicas.writer();
    let readers: Arc<std::sync::Mutex<Vec<Reader>>> = Arc::default();
    let checked = Arc::new(AtomicU32::new(0));
    for round in 0..40_usize {
        step(&writer, round);
        replicas.commit();
        let store = replicas.follower.store.clone();
        {
            let mut readers = readers.lock().unwrap();
            readers.push(Reader::at_applied(&store));
            if readers.len() > 6 {
                // Not always the oldest goes.
                readers.remove(round * 7 % 6);
            }
        }
        if round % 3 == 2 {
            let (in_hook, counted) = (readers.clone(), checked.clone());
            hook.set(move |event| {
                if matches!(event, Event::Write(_) | Event::SetLen | Event::Sync) {
                    in_hook.lock().unwrap().iter().for_each(Reader::check);
                    Reader::at_applied(&store).check();
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
            replicas.follower.checkpoint();
            hook.clear();
        }
        readers.lock().unwrap().iter().for_each(Reader::check);
        assert_eq!(replicas.follower.store.damage(), None);
    }
    let checked = checked.load(Ordering::Relaxed);
    assert!(checked > 100, "{checked}");
    replicas.compare();
    readers.lock().unwrap().clear();
    run(&writer, "UPDATE t SET x = 2 WHERE id = 1");
    replicas.replicate();
    replicas.follower.checkpoint();
    assert_eq!(replicas.follower.store.overlay_bytes(), 0, "nothing is kept for nobody");
}

#[test]
fn readers_and_folds_in_threads() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, balance INT, pad)");
    run(&writer, &format!("{} INSERT INTO t SELECT i, 100, randomblob(500) FROM c", numbers(400)));
    replicas.replicate();
    let stop = AtomicBool::new(false);
    let reads = AtomicU32::new(0);
    let stores = [replicas.leader.store.clone(), replicas.follower.store.clone()];
    std::thread::scope(|scope| {
        for store in &stores {
            let (shared, own) = (replicas.reader(store), replicas.own_reader(store));
            let (stop, reads) = (&stop, &reads);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    run(&own, "BEGIN");
                    for connection in [&own, &shared, &own] {
                        assert_eq!(one(connection, "SELECT sum(balance) FROM t"), "40000");
                    }
                    assert_eq!(one(&own, "PRAGMA integrity_check"), "ok");
                    run(&own, "COMMIT");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (leader, follower) = (&replicas.leader, &replicas.follower);
        let flag = &stop;
        scope.spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                leader.checkpoint();
                follower.checkpoint();
            }
        });
        let mut index = replicas.index;
        let begun = std::time::Instant::now();
        let mut round = 0;
        while begun.elapsed() < std::time::Duration::from_secs(2) {
            round += 1;
            let (from, to) = (round % 400 + 1, round * 7 % 400 + 1);
            run(&writer, "BEGIN");
            run(&writer, &format!("UPDATE t SET balance = balance - 1 WHERE id = {from}"));
            run(&writer, &format!("UPDATE t SET balance = balance + 1 WHERE id = {to}"));
            if round % 50 == 0 {
                run(&writer, "UPDATE t SET pad = randomblob(300 + abs(random() % 300))");
            }
            run(&writer, "COMMIT");
            if round % 97 == 0 {
                run(&writer, "VACUUM");
            }
            while let Some(delta) = leader.store.take_outgoing() {
                index += 1;
                for member in [leader, follower] {
                    assert_eq!(member.apply(&delta, index), ApplyOutcome::Applied);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(reads.load(Ordering::Relaxed) > 10);
    replicas.compare();
}

/// What the follower of a leader with `page_size` has on disk after a checkpoint, and the leader.
#[test]
fn after_a_checkpoint_both_have_the_same_ordinary_sqlite_file() {
    for page_size in [512, 4096, 65_536] {
        let mut replicas = Replicas::with_page_size(page_size);
        let writer = replicas.writer();
        for round in 0..8 {
            step(&writer, round);
            replicas.replicate();
            // The leader folds more often than the follower: the end is the same.
            replicas.leader.checkpoint();
        }
        run(&writer, "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('quire')");
        replicas.replicate();
        for member in [&replicas.leader, &replicas.follower] {
            member.checkpoint();
        }
        let file = |member: &Member, path: &str| member.disk.bytes(path).unwrap();
        for path in ["databases/db.db", "databases/db.sum"] {
            assert!(file(&replicas.leader, path) == file(&replicas.follower, path), "{path}");
        }
        assert_eq!(replicas.leader.disk.list("databases").unwrap(), ["db.db", "db.sum"]);
        let point = replicas.leader.store.applied();
        let bytes = file(&replicas.leader, "databases/db.db");
        assert_eq!(bytes.len(), point.page_count as usize * page_size);
        assert_eq!(
            file(&replicas.leader, "databases/db.sum").len(),
            point.page_count as usize * 16
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy.db");
        std::fs::write(&path, bytes).unwrap();
        let sqlite = rusqlite::Connection::open(&path).unwrap();
        let text = |sql: &str| sqlite.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(text("PRAGMA integrity_check"), "ok");
        assert_eq!(text("SELECT x FROM f WHERE f MATCH 'quire'"), "quire");
        assert_eq!(text("SELECT count(*)||'' FROM t"), replicas.one("SELECT count(*) FROM t"));
        sqlite.execute_batch("INSERT INTO t(x) VALUES('it is a file like any other')").unwrap();
    }
}

#[test]
fn a_catalog_opened_again_is_where_it_was() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    fill(&writer, 50);
    replicas.replicate();
    let covered = replicas.leader.checkpoint();
    let point = replicas.leader.store.applied();
    fill(&writer, 60);
    replicas.replicate();
    let again = Member::open(replicas.leader.disk.clone());
    assert_eq!((again.store.applied(), again.store.head()), (point, point));
    assert_eq!(again.store.place().index, replicas.index - 1, "the entry of the folded delta");
    assert_eq!(
        (again.catalog.recorded(), again.catalog.applied().clone()),
        (covered.clone(), covered)
    );
    assert_eq!(again.store.verify().unwrap(), point);
    assert_eq!(again.store.page_size(), 4096);
    assert_eq!(one(&replicas.reader(&again.store), "SELECT count(*) FROM t"), "50");
}

/// Every call of a checkpoint fails in turn; then it is repeated, or the process ends there.
#[test]
fn a_disk_error_at_any_call_of_a_checkpoint_loses_nothing() {
    for fault in [Fault::Io, Fault::Full] {
        for call in 0.. {
            let mut replicas = Replicas::new();
            let disk = FakeDisk::new();
            replicas.follower = Member::new(disk.clone(), 4096);
            let writer = replicas.writer();
            fill(&writer, 20);
            replicas.replicate();
            replicas.follower.checkpoint();
            let before = replicas.follower.store.applied();
            let reader = Reader::at_applied(&replicas.follower.store);
            run(
                &writer,
                "UPDATE t SET x = 'new' WHERE id % 3 = 0; DELETE FROM t WHERE id > 15; VACUUM",
            );
            replicas.replicate();
            let calls = disk.calls();
            disk.fail_call(calls + call, fault);
            let failed = replicas.follower.catalog.checkpoint().is_err();
            let met = disk.calls() > calls + call;
            disk.heal();
            reader.check();
            replicas.compare();
            // The process ends here ...
            let at = Member::open(disk.cut(quire::disk::fake::Cut::Random(call + 2)));
            let opened = at.store.verify().unwrap();
            assert!(opened == before || opened == replicas.leader.store.applied());
            // ... or goes on, with more to fold.
            run(&writer, "INSERT INTO t(x) VALUES('more')");
            replicas.replicate();
            replicas.follower.checkpoint();
            reader.check();
            replicas.compare();
            let at = Member::open(disk.cut(quire::disk::fake::Cut::Lose));
            assert_eq!(at.store.verify().unwrap(), replicas.leader.store.applied());
            assert_eq!(at.store.applied(), replicas.follower.store.applied());
            if !met {
                assert!(!failed && call > 20);
                break;
            }
        }
    }
}

/// A fold that was broken off by a disk error and a damage that was found afterwards: the next
/// checkpoint forgot the NAME.ckpt that the half-copied base needs.
#[test]
fn a_half_copied_base_keeps_its_checkpoint_file() {
    let mut replicas = Replicas::new();
    let disk = FakeDisk::new();
    replicas.follower = Member::new(disk.clone(), 4096);
    let writer = replicas.writer();
    fill(&writer, 20);
    replicas.replicate();
    replicas.follower.checkpoint();
    fill(&writer, 21);
    replicas.replicate();
    let target = replicas.follower.store.applied();
    let calls = disk.calls();
    // create, write, write, sync, rename, sync of the directory, and then the pages.
    disk.fail_from(calls + 10, Fault::Io);
    assert!(replicas.follower.catalog.checkpoint().is_err());
    disk.heal();
    replicas.follower.store.set_damaged("found by somebody".to_owned());
    replicas.follower.checkpoint();
    let again = Member::open(disk.cut(quire::disk::fake::Cut::Keep));
    assert_eq!(again.store.verify().unwrap(), target);
}

#[test]
fn a_flipped_byte_in_the_base_is_found_at_the_next_read() {
    for page in [1, 2, 9, 12] {
        let mut replicas = Replicas::new();
        let writer = replicas.writer();
        fill(&writer, 50);
        replicas.replicate();
        let follower = &replicas.follower;
        follower.checkpoint();
        let reader = replicas.reader(&follower.store);
        assert_eq!(one(&reader, "SELECT count(x) FROM t"), "50");
        let offset = (page - 1) * 4096 + 1000;
        follower.disk.flip("databases/db.db", offset, &[0x10]).unwrap();
        let mut bytes = vec![0; 4096];
        let snapshot = follower.store.snapshot_applied().unwrap();
        let other = if page == 2 { 3 } else { 2 };
        assert!(snapshot.read(other, 0, &mut bytes).unwrap(), "another page is as good as ever");
        if page == 9 {
            assert!(matches!(follower.store.verify(), Err(PagesError::Damaged { .. })));
        } else {
            let options = replicas.options(View::Applied, true);
            let error = Connection::open(follower.store.clone(), &options)
                .map(|fresh| common::fails(&fresh, "SELECT sum(length(x)) FROM t"));
            assert_eq!(error.unwrap_or_else(|error| error).primary(), ffi::SQLITE_CORRUPT);
        }
        assert!(follower.store.damage().unwrap().contains(&format!("page {page}")));
        assert!(follower.store.snapshot_applied().is_err());
    }
}

#[test]
fn a_flipped_hash_and_a_file_cut_short() {
    for damage in 0..3 {
        let mut replicas = Replicas::new();
        fill(&replicas.writer(), 50);
        replicas.replicate();
        let Member { disk, catalog, store } = &replicas.follower;
        catalog.checkpoint().unwrap();
        match damage {
            0 => disk.flip("databases/db.sum", 5 * 16 + 3, &[1]).unwrap(),
            1 => disk.open("databases/db.db").unwrap().set_len(10 * 4096 + 5).unwrap(),
            _ => disk.open("databases/db.sum").unwrap().set_len(10 * 16 + 5).unwrap(),
        }
        assert!(store.verify().is_err());
        let page = if damage == 0 { 6 } else { 11 };
        assert!(store.damage().unwrap().contains(&format!("page {page} ")));
    }
}

/// A database of large pages, past what is kept for readers below a fold.
fn large() -> (Replicas, Connection, common::hook::HookDisk) {
    let mut replicas = Replicas::with_page_size(65_536);
    let (member, hook) = Member::hooked(65_536);
    replicas.leader = member;
    replicas.leader.store.open_slot(1);
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    run(&writer, &format!("{} INSERT INTO t SELECT i, zeroblob(65000) FROM c", numbers(1300)));
    replicas.commit();
    replicas.leader.checkpoint();
    (replicas, writer, hook)
}

/// For a reader once given up images went on to be kept, fold after fold.
#[test]
fn a_reader_that_is_too_old_is_told_so_and_costs_nothing_more() {
    let (mut replicas, writer, hook) = large();
    let store = replicas.leader.store.clone();
    let (old, other) = (replicas.own_reader(&store), store.snapshot_applied().unwrap());
    let held = store.snapshot_applied().unwrap();
    run(&old, "BEGIN");
    assert_eq!(one(&old, "SELECT count(*) FROM t"), "1300");
    run(&writer, "UPDATE t SET x = zeroblob(64000); DELETE FROM t WHERE id > 1200; VACUUM");
    replicas.commit();
    let young = Reader::at_applied(&store);
    let told = Arc::new(AtomicU32::new(0));
    let (counted, last_page) = (told.clone(), other.point().page_count);
    hook.set(move |event| {
        if matches!(event, Event::Write(_) | Event::SetLen | Event::Sync) {
            for page in [1, 2, 700, last_page] {
                let mut bytes = vec![0; 65_536];
                match other.read(page, 0, &mut bytes) {
                    Err(PagesError::SnapshotTooOld) => counted.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other:?}"),
                };
            }
        }
    });
    replicas.leader.checkpoint();
    hook.clear();
    assert!(told.load(Ordering::Relaxed) > 1000);
    assert_eq!(store.damage(), None);
    let error = common::fails(&old, "SELECT sum(length(x)) FROM t");
    assert!(matches!(error.cause.as_deref(), Some(PagesError::SnapshotTooOld)), "{error:?}");
    assert!(error.message.contains("too old"));
    young.check();
    drop(young);
    for round in 0..3 {
        run(&writer, &format!("UPDATE t SET x = zeroblob(63000 - {round}) WHERE id < 500"));
        replicas.commit();
        replicas.leader.checkpoint();
        assert_eq!(store.overlay_bytes(), 0, "nothing is kept for a reader that was given up");
        assert!(matches!(held.check(), Err(PagesError::SnapshotTooOld)));
    }
    old.roll_back();
    assert_eq!(one(&old, "SELECT count(*) FROM t"), "1200");
    assert_eq!(store.damage(), None);
}

/// A reader that was given up while it was reading read past the end of the file, which had become
/// shorter. That was taken for damage, and the whole replica stopped serving.
#[test]
fn a_reader_given_up_in_the_middle_of_a_read_is_no_damage() {
    let (mut replicas, writer, hook) = large();
    let store = replicas.leader.store.clone();
    let old = store.snapshot_applied().unwrap();
    run(&writer, "UPDATE t SET x = zeroblob(64000); DELETE FROM t WHERE id > 1200; VACUUM");
    replicas.commit();
    let last_page = old.point().page_count;
    let catalog = Arc::new(replicas.leader.catalog);
    let mut once = Some(catalog.clone());
    hook.set(move |_| {
        if let Some(catalog) = once.take() {
            catalog.checkpoint().unwrap();
        }
    });
    let mut bytes = vec![0; 65_536];
    let read = old.read(last_page, 0, &mut bytes);
    hook.clear();
    assert!(matches!(read, Err(PagesError::SnapshotTooOld)), "{read:?}");
    assert_eq!(store.damage(), None);
    assert_eq!(store.verify().unwrap(), store.applied());
}

/// A snapshot of the head is dropped by a rewind while it reads the base; another leader's
/// history makes the file shorter. What it reads then says nothing about the file.
#[test]
fn a_dropped_snapshot_that_reads_past_the_end_is_no_damage() {
    let mut replicas = Replicas::new();
    let (member, hook) = Member::hooked(4096);
    replicas.leader = member;
    replicas.leader.store.open_slot(1);
    let writer = replicas.writer();
    fill(&writer, 200);
    replicas.replicate();
    replicas.leader.checkpoint();
    // The new leader cuts the file, at the version that our head has too.
    replicas.follower.store.open_slot(2);
    let theirs = replicas.connect(&replicas.follower.store, View::Head, false);
    theirs.link().allow_write(true);
    run(&theirs, "BEGIN; DELETE FROM t WHERE id > 3; COMMIT; VACUUM");
    run(&writer, "UPDATE t SET x = 'ours' WHERE id = 1; UPDATE t SET x = 'ours' WHERE id = 2");
    let store = replicas.leader.store.clone();
    let snapshot = store.snapshot_head().unwrap();
    let last_page = snapshot.point().page_count;
    let mut deltas = vec![];
    while let Some(delta) = replicas.follower.store.take_outgoing() {
        apply(&replicas.follower.store, &delta, 100);
        deltas.push(delta);
    }
    let mut bytes = vec![0; 4096];
    let reader = replicas.reader(&store);
    let catalog = Arc::new(replicas.leader.catalog);
    let (in_hook, folding) = (store.clone(), catalog.clone());
    hook.set(move |_| {
        for (i, delta) in deltas.drain(..).enumerate() {
            assert_eq!(apply(&in_hook, &delta, 100 + i as u64), ApplyOutcome::Applied);
        }
        folding.applied().last = None;
        folding.checkpoint().unwrap();
    });
    let read = snapshot.read(last_page, 0, &mut bytes);
    hook.clear();
    assert!(matches!(read, Err(PagesError::Rewound)), "{read:?}");
    assert_eq!(store.damage(), None);
    assert_eq!(store.verify().unwrap(), replicas.follower.store.applied());
    assert_eq!(query(&reader, "SELECT count(*) FROM t"), [["3"]]);
}

/// Between not finding an image and reading the base a whole fold can pass: the page that is read
/// then is sound, and of another version.
#[test]
fn a_fold_that_overtakes_a_read() {
    for page in 1..=12 {
        let mut replicas = Replicas::new();
        let (member, hook) = Member::hooked(4096);
        replicas.follower = member;
        let writer = replicas.writer();
        fill(&writer, 50);
        replicas.replicate();
        replicas.follower.checkpoint();
        let store = replicas.follower.store.clone();
        let reader = Reader::at_applied(&store);
        run(&writer, "UPDATE t SET x = randomblob(850)");
        let delta = replicas.leader.store.take_outgoing().unwrap();
        let catalog = Arc::new(replicas.follower.catalog);
        let (folding, mut folded) = (catalog.clone(), false);
        hook.set(move |event| {
            if matches!(event, Event::Read(_)) && !std::mem::replace(&mut folded, true) {
                assert_eq!(apply(&store, &delta, 100), ApplyOutcome::Applied);
                folding.applied().last = None;
                folding.checkpoint().unwrap();
            }
        });
        let mut bytes = vec![0; 4096];
        assert!(reader.snapshot.read(page, 0, &mut bytes).unwrap());
        assert!(bytes == reader.pages[page as usize - 1]);
        hook.clear();
        reader.check();
    }
}

/// With one old reader open and nothing pruned, thousands of one-row updates kept two images each.
#[test]
fn an_old_reader_keeps_its_own_images_and_no_others() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    fill(&writer, 50);
    replicas.replicate();
    let readers = [&replicas.leader, &replicas.follower].map(|m| Reader::at_applied(&m.store));
    let before = replicas.leader.store.overlay_bytes();
    for _ in 0..300 {
        for id in 1..=10 {
            run(&writer, &format!("UPDATE t SET x = randomblob(900) WHERE id = {id}"));
        }
        replicas.commit();
    }
    for member in [&replicas.leader, &replicas.follower] {
        // The reader's, the applied ones, and what the last few transactions added.
        assert!(member.store.overlay_bytes() <= 2 * before + 20 * 4096);
    }
    readers.iter().for_each(Reader::check);
    drop(readers);
    replicas.compare();
}
