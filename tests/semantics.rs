//! SQLite's semantics on the page store, each on the leader and on a follower's copy that only
//! applied deltas.

mod common;

use common::{Replicas, fails, numbers, one, query, run, try_run};
use quire::pages::Freeze;
use quire::sqlite::Value;
use rusqlite::ffi;

#[test]
fn rows_arrive_on_both() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v)");
    let ran = run(&writer, "INSERT INTO t(v) VALUES('a'),('b'),('c')");
    assert_eq!((ran.last_insert_rowid, ran.changes), (3, 3));
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "3", "the writer reads its own head");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(v) FROM t"), "a,b,c");
    assert_eq!(replicas.leader.store.applied().version, 3);
}

#[test]
fn savepoints() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(
        &writer,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); BEGIN; INSERT INTO t(v) VALUES('s1');
        SAVEPOINT a; INSERT INTO t(v) VALUES('s2'); SAVEPOINT b; DELETE FROM t; ROLLBACK TO b;
        RELEASE b; ROLLBACK TO a; INSERT INTO t(v) VALUES('s3'); RELEASE a; COMMIT;
        SAVEPOINT outer; INSERT INTO t(v) VALUES('s4'); SAVEPOINT inner; DELETE FROM t;
        ROLLBACK TO inner; RELEASE outer",
    );
    assert!(writer.is_autocommit());
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(v) FROM t"), "s1,s3,s4");
    assert_eq!(replicas.leader.store.applied().version, 3);
}

#[test]
fn a_statement_that_fails_in_the_middle_leaves_nothing() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE u(a INTEGER UNIQUE, b TEXT CHECK(b<>'bad'))");
    let failing = format!(
        "{} INSERT INTO u SELECT i + 10, CASE i WHEN 5000 THEN 'bad' ELSE 'g'||i END FROM c",
        numbers(6000)
    );
    for autocommit in [true, false] {
        let version = replicas.leader.store.head().version;
        if !autocommit {
            run(&writer, "BEGIN; INSERT INTO u VALUES(1,'x')");
        }
        assert_eq!(fails(&writer, &failing).code, ffi::SQLITE_CONSTRAINT_CHECK);
        assert_eq!(writer.is_autocommit(), autocommit, "a statement's failure ends no transaction");
        if !autocommit {
            run(&writer, "COMMIT");
        }
        let made = replicas.leader.store.head().version - version;
        assert_eq!(made, u64::from(!autocommit));
    }
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(b) FROM u"), "x");
}

#[test]
fn or_fail_or_ignore_or_replace() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE u(a INTEGER PRIMARY KEY, b); INSERT INTO u VALUES(3,'old')");
    let error = fails(&writer, "INSERT OR FAIL INTO u VALUES(1,'f'),(2,'f'),(3,'f'),(4,'f')");
    assert_eq!(error.primary(), ffi::SQLITE_CONSTRAINT);
    assert_eq!(writer.take_published().len(), 3, "an error that commits rows");
    run(&writer, "INSERT OR IGNORE INTO u VALUES(3,'i'),(5,'i'); REPLACE INTO u VALUES(1,'r')");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a||b) FROM u"), "1r,2f,3old,5i");
}

fn spill(end: &str) -> (Replicas, u64) {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "PRAGMA cache_size=10; CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB)");
    replicas.replicate();
    let insert =
        format!("BEGIN; {} INSERT INTO big SELECT i, randomblob(1000) FROM c", numbers(5000));
    run(&writer, &insert);
    assert_eq!(one(&writer, "SELECT count(*) FROM big"), "5000");
    assert_eq!(replicas.one("SELECT count(*) FROM big"), "0");
    run(&writer, "SAVEPOINT z; DELETE FROM big WHERE id%2; ROLLBACK TO z; RELEASE z");
    run(&writer, end);
    run(&writer, "INSERT INTO big VALUES(-1, 'after')");
    replicas.replicate();
    let version = replicas.leader.store.applied().version;
    (replicas, version)
}

#[test]
fn a_cache_that_spills_and_commits() {
    let (replicas, version) = spill("COMMIT");
    assert_eq!((replicas.one("SELECT count(*) FROM big").as_str(), version), ("5001", 3));
}

#[test]
fn a_cache_that_spills_and_rolls_back() {
    let (replicas, version) = spill("ROLLBACK");
    assert_eq!((replicas.one("SELECT count(*) FROM big").as_str(), version), ("1", 2));
}

#[test]
fn vacuum_with_an_old_reader_open() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    let fill = format!("{} INSERT INTO big SELECT i, randomblob(1000) FROM c", numbers(5000));
    run(&writer, "CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB)");
    run(&writer, &fill);
    replicas.replicate();
    let sum = "SELECT count(*)||' '||sum(length(x))||' '||sum(id) FROM big";
    let readers =
        [&replicas.leader, &replicas.follower].map(|member| replicas.own_reader(&member.store));
    let before = readers.each_ref().map(|reader| {
        run(reader, "BEGIN");
        one(reader, sum)
    });
    let pages = replicas.leader.store.applied().page_count;
    run(&writer, "DELETE FROM big WHERE id > 500; VACUUM");
    replicas.replicate();
    assert!(replicas.leader.store.applied().page_count < pages / 5);
    for (reader, before) in readers.iter().zip(&before) {
        assert_eq!(&one(reader, sum), before);
        assert_eq!(one(reader, "PRAGMA integrity_check"), "ok");
        run(reader, "COMMIT");
        assert_eq!(one(reader, "SELECT count(*) FROM big"), "500");
    }
}

#[test]
fn auto_vacuum_full_and_incremental() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB); INSERT INTO big VALUES(0,'')");
    let fill = format!("{} INSERT INTO big SELECT i, randomblob(3000) FROM c", numbers(2000));
    run(&writer, "PRAGMA auto_vacuum=FULL; VACUUM");
    run(&writer, &fill);
    let full = replicas.leader.store.head().page_count;
    run(&writer, "DELETE FROM big WHERE id > 10");
    assert!(replicas.leader.store.head().page_count < full / 10, "cut at the commit");
    replicas.replicate();
    assert_eq!(one(&replicas.own_reader(&replicas.follower.store), "PRAGMA auto_vacuum"), "1");
    run(&writer, "DELETE FROM big; PRAGMA auto_vacuum=INCREMENTAL; VACUUM");
    run(&writer, &fill);
    run(&writer, "DELETE FROM big WHERE id > 10");
    let kept = replicas.leader.store.head().page_count;
    assert!(kept >= full - 10);
    query(&writer, "PRAGMA incremental_vacuum(1000)");
    assert!(replicas.leader.store.head().page_count <= kept - 1000);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM big"), "10");
}

#[test]
fn full_text_search() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE VIRTUAL TABLE f USING fts5(body)");
    let fill = "INSERT INTO f SELECT 'hello world '||i||' '||hex(randomblob(8)) FROM c";
    run(&writer, &format!("{} {fill}", numbers(3000)));
    run(&writer, "INSERT INTO f(f) VALUES('optimize'); DELETE FROM f WHERE rowid < 100");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM f WHERE f MATCH 'hello'"), "2901");
    run(&writer, "BEGIN; INSERT INTO f VALUES('gone'); ROLLBACK; INSERT INTO f VALUES('stays')");
    run(&writer, "INSERT INTO f(f) VALUES('integrity-check')");
    replicas.replicate();
    assert_eq!(
        replicas.one("SELECT group_concat(body) FROM f WHERE f MATCH 'gone OR stays'"),
        "stays"
    );
}

#[test]
fn rtree_and_without_rowid() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(
        &writer,
        "CREATE VIRTUAL TABLE rt USING rtree(id, a, b);
        CREATE TABLE wr(a TEXT PRIMARY KEY, b) WITHOUT ROWID",
    );
    run(&writer, &format!("{} INSERT INTO rt SELECT i, i, i + 1 FROM c", numbers(5000)));
    run(&writer, &format!("{} INSERT INTO wr SELECT 'k'||i, i FROM c", numbers(5000)));
    run(&writer, "DELETE FROM rt WHERE a > 4900; UPDATE wr SET b = -b WHERE a > 'k4'");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM rt WHERE a > 4000"), "900");
    assert_eq!(replicas.one("SELECT rtreecheck('rt')"), "ok");
    assert_eq!(replicas.one("SELECT b FROM wr WHERE a = 'k77'"), "-77");
}

#[test]
fn temp_tables_make_no_version() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a)");
    run(&writer, &format!("{} INSERT INTO t SELECT i FROM c", numbers(5000)));
    replicas.replicate();
    let version = replicas.leader.store.head().version;
    run(
        &writer,
        "CREATE TEMP TABLE tt(a, b); INSERT INTO tt SELECT a, randomblob(2000) FROM t;
        CREATE INDEX temp.ti ON tt(a); DELETE FROM tt WHERE a % 3 = 0;
        CREATE TEMP TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO tt VALUES(new.a, 'tr'); END;
        CREATE TEMP VIEW tv AS SELECT a FROM tt WHERE b = 'tr'",
    );
    assert_eq!(one(&writer, "SELECT count(*) FROM tt JOIN t USING(a)"), "3334");
    assert_eq!(replicas.leader.store.head().version, version);
    assert!(writer.take_published().len() >= 2);
    run(&writer, "BEGIN; INSERT INTO t VALUES(9999); ROLLBACK; INSERT INTO t VALUES(-7)");
    assert_eq!(query(&writer, "SELECT a FROM tv"), [["-7"]]);
    assert_eq!(replicas.leader.store.head().version, version + 1);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM sqlite_schema"), "1");
}

#[test]
fn triggers() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(
        &writer,
        "CREATE TABLE t(a); CREATE TABLE log(what, a);
        CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO log VALUES('i', new.a); END;
        CREATE TRIGGER tu BEFORE UPDATE ON t WHEN new.a > 100
            BEGIN SELECT RAISE(ROLLBACK, 'too large'); END;
        CREATE VIEW v AS SELECT a FROM t;
        CREATE TRIGGER tv INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES(new.a * 2); END;
        INSERT INTO v VALUES(1),(2)",
    );
    run(&writer, "BEGIN; INSERT INTO t VALUES(50)");
    let error = fails(&writer, "UPDATE t SET a = 101 WHERE a = 50");
    assert_eq!((error.code, error.message.as_str()), (ffi::SQLITE_CONSTRAINT_TRIGGER, "too large"));
    assert!(writer.is_autocommit(), "RAISE(ROLLBACK) ended the transaction");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(what||a) FROM log"), "i2,i4");
}

#[test]
fn deferred_foreign_keys() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(
        &writer,
        "CREATE TABLE p(id INTEGER PRIMARY KEY);
        CREATE TABLE ch(pid REFERENCES p ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
        INSERT INTO p VALUES(1),(2); INSERT INTO ch VALUES(1),(2)",
    );
    run(&writer, "BEGIN; INSERT INTO ch VALUES(9)");
    let error = fails(&writer, "COMMIT");
    assert_eq!(error.code, ffi::SQLITE_CONSTRAINT_FOREIGNKEY);
    assert!(!writer.is_autocommit(), "the transaction stays open for the mend");
    run(&writer, "INSERT INTO p VALUES(9); COMMIT; DELETE FROM p WHERE id = 1");
    assert_eq!(fails(&writer, "INSERT INTO ch VALUES(77)").primary(), ffi::SQLITE_CONSTRAINT);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(pid) FROM ch"), "2,9");
}

#[test]
fn random_and_now_are_the_same_everywhere() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(
        &writer,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, r DEFAULT(random()), b DEFAULT(randomblob(16)),
            at DEFAULT(strftime('%f', 'now')), now DEFAULT CURRENT_TIMESTAMP);
        INSERT INTO t DEFAULT VALUES;
        INSERT INTO t VALUES(2, RANDOM(), randomblob(16), julianday('now'), datetime('now'));
        CREATE TABLE drawn AS SELECT random() AS x UNION ALL SELECT random();
        UPDATE t SET r = abs(random()) WHERE id = 2",
    );
    replicas.replicate();
    let rows =
        replicas.both("SELECT r, hex(b), at, now FROM t UNION ALL SELECT x, 0, 0, 0 FROM drawn");
    assert_eq!(rows.len(), 4);
    assert_ne!(rows[2], rows[3]);
}

#[test]
fn snapshot_isolation() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    replicas.replicate();
    let readers =
        [&replicas.leader, &replicas.follower].map(|member| replicas.own_reader(&member.store));
    for reader in &readers {
        run(reader, "BEGIN");
        assert_eq!(one(reader, "SELECT count(*) FROM t"), "1");
    }
    run(&writer, "INSERT INTO t VALUES(2)");
    replicas.replicate();
    for reader in &readers {
        assert_eq!(one(reader, "SELECT count(*) FROM t"), "1");
        assert_eq!(one(reader, "SELECT count(*) FROM t WHERE a = 2"), "0");
        run(reader, "COMMIT");
        assert_eq!(one(reader, "SELECT count(*) FROM t"), "2");
    }
}

#[test]
fn readers_of_applied_do_not_see_head() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a)");
    replicas.replicate();
    run(&writer, "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)");
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "2");
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "0");
    assert_eq!(replicas.leader.store.run_ahead().0, 2);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "2");
}

#[test]
fn a_stale_transaction_that_writes_is_told_so() {
    let mut replicas = Replicas::new();
    let (writer, stale) = (replicas.writer(), replicas.deferred());
    run(&writer, "CREATE TABLE t(a)");
    run(&stale, "BEGIN");
    assert_eq!(one(&stale, "SELECT count(*) FROM t"), "0");
    run(&writer, "INSERT INTO t VALUES(1)");
    writer.link().allow_write(false);
    stale.link().allow_write(true);
    assert_eq!(fails(&stale, "INSERT INTO t VALUES(2)").code, ffi::SQLITE_BUSY_SNAPSHOT);
    assert!(!stale.is_autocommit());
    run(&stale, "ROLLBACK; INSERT INTO t VALUES(3)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,3");
}

/// Every connection had SQLite's busy handler of five seconds: who had not got the write slot
/// slept inside the VFS call, on a thread that others wait for.
#[test]
fn without_the_slot_a_writer_is_busy_at_once() {
    let mut replicas = Replicas::new();
    let (writer, other) = (replicas.writer(), replicas.deferred());
    run(&writer, "CREATE TABLE t(a); BEGIN IMMEDIATE; INSERT INTO t VALUES(1)");
    let begun = std::time::Instant::now();
    for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES(2)", "PRAGMA user_version = 3"] {
        assert_eq!(fails(&other, sql).code, ffi::SQLITE_BUSY, "{sql}");
    }
    run(&other, "PRAGMA busy_timeout = 60000");
    assert_eq!(one(&other, "PRAGMA busy_timeout"), "60000");
    assert_eq!(fails(&other, "BEGIN IMMEDIATE").code, ffi::SQLITE_BUSY);
    assert!(begun.elapsed() < std::time::Duration::from_secs(1));
    assert_eq!(one(&other, "SELECT count(*) FROM t"), "0", "and readers are not blocked");
    run(&writer, "COMMIT");
    replicas.replicate();
    let reader = replicas.own_reader(&replicas.follower.store);
    assert_eq!(fails(&reader, "INSERT INTO t VALUES(2)").primary(), ffi::SQLITE_READONLY);
}

#[test]
fn a_freeze_that_fails_rolls_back_and_the_next_write_goes_through() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    replicas.replicate();
    for (insert, commit) in
        [("INSERT INTO t VALUES(2)", ""), ("BEGIN; INSERT INTO t VALUES(2)", "COMMIT")]
    {
        let before = replicas.leader.store.head();
        if commit.is_empty() {
            replicas.leader.store.rewind();
        } else {
            run(&writer, insert);
            replicas.leader.store.rewind();
        }
        let error = fails(&writer, if commit.is_empty() { insert } else { commit });
        assert_eq!(error.primary(), ffi::SQLITE_IOERR);
        assert!(
            matches!(error.cause.as_deref(), Some(quire::pages::PagesError::NotLeader)),
            "{error:?}"
        );
        assert!(writer.is_autocommit(), "the transaction is over");
        assert_eq!(one(&writer, "SELECT group_concat(a) FROM t"), "1");
        assert_eq!(replicas.leader.store.head(), before);
        replicas.leader.store.open_slot(1);
        run(&writer, "INSERT INTO t VALUES(3); DELETE FROM t WHERE a = 3");
        replicas.replicate();
    }
}

#[test]
fn transactions_that_change_nothing_make_no_version() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 1)");
    replicas.replicate();
    let version = replicas.leader.store.head().version;
    run(&writer, "BEGIN IMMEDIATE; COMMIT; BEGIN; COMMIT; BEGIN EXCLUSIVE; SELECT * FROM t; END");
    run(&writer, "UPDATE t SET b = 2 WHERE a = 99; BEGIN; INSERT INTO t VALUES(2, 2); ROLLBACK");
    run(&writer, "SAVEPOINT s; INSERT INTO t VALUES(2, 2); ROLLBACK TO s; RELEASE s");
    assert!(replicas.leader.store.head().version <= version + 1);
    run(&writer, "INSERT INTO t VALUES(3, 3)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,3");
}

#[test]
fn a_transaction_over_the_limit_is_full_and_nothing_else() {
    let mut replicas = Replicas::new();
    replicas.transaction_bytes_max = 1 << 20;
    let writer = replicas.writer();
    run(&writer, "PRAGMA cache_size=10; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    run(&writer, "INSERT INTO t VALUES(0, 'first')");
    let much = format!("{} INSERT INTO t SELECT i, randomblob(1000) FROM c", numbers(3000));
    assert_eq!(fails(&writer, &much).code, ffi::SQLITE_FULL);
    assert!(writer.is_autocommit());
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "1");
    run(&writer, "BEGIN; INSERT INTO t VALUES(-1, 'in a transaction')");
    assert_eq!(fails(&writer, &much).code, ffi::SQLITE_FULL);
    if !writer.is_autocommit() {
        run(&writer, "ROLLBACK");
    }
    run(&writer, "INSERT INTO t VALUES(-2, 'after')");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(id) FROM (SELECT id FROM t ORDER BY id)"), "-2,0");
    // Many updates of few rows are no large transaction.
    let again = "UPDATE t SET x = randomblob(2000)";
    run(&writer, &format!("BEGIN; {}; COMMIT", vec![again; 2000].join(";")));
    // Exactly at the limit, pages that are only touched by a rollback count too.
    let fill = format!("{} INSERT INTO t SELECT i, randomblob(1000) FROM c", numbers(200));
    run(&writer, &fill);
    run(&writer, "BEGIN; UPDATE t SET x = randomblob(900)");
    assert_eq!(
        fails(&writer, &much.replace("SELECT i,", "SELECT i + 1000,")).code,
        ffi::SQLITE_FULL
    );
    if !writer.is_autocommit() {
        run(&writer, "ROLLBACK");
    }
    run(&writer, "DELETE FROM t WHERE id > 0");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "2");
}

#[test]
fn cells_of_all_sizes() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE INDEX tx ON t(x)");
    // Around what fits a page, what overflows by a byte, and what fills overflow pages exactly.
    let mut sizes: Vec<usize> = (0..40).collect();
    for around in [1002, 2036, 4061, 4092, 4096, 8184, 12276, 65535] {
        sizes.extend(around - 4..=around + 4);
    }
    run(&writer, "BEGIN");
    for size in &sizes {
        let blob = Value::Blob(vec![(size % 251) as u8; *size]);
        try_run(&writer, "INSERT INTO t(x) VALUES(?)", &[blob]).unwrap();
    }
    run(&writer, "COMMIT; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET x = x||x WHERE id % 3 = 1");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), (sizes.len() - sizes.len() / 3).to_string());
}

#[test]
fn page_sizes_of_512_and_65536() {
    for page_size in [512, 1024, 65_536] {
        let mut replicas = Replicas::with_page_size(page_size);
        let (early, writer) = (replicas.reader(&replicas.follower.store), replicas.writer());
        assert_eq!(query(&early, "SELECT * FROM sqlite_schema"), Vec::<Vec<String>>::new());
        run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE INDEX tx ON t(x)");
        run(
            &writer,
            &format!("{} INSERT INTO t SELECT i, hex(randomblob(20)) FROM c", numbers(3000)),
        );
        run(
            &writer,
            "DELETE FROM t WHERE id % 2; UPDATE t SET x = 'y'||x WHERE id % 5 = 0; VACUUM",
        );
        replicas.replicate();
        assert_eq!(replicas.one("PRAGMA page_size"), page_size.to_string());
        assert_eq!(one(&early, "SELECT count(*) FROM t"), "1500");
        for member in [&replicas.leader, &replicas.follower] {
            member.checkpoint();
        }
        replicas.compare();
        run(&writer, "INSERT INTO t VALUES(-1, zeroblob(200000)); DELETE FROM t WHERE id > 100");
        replicas.replicate();
        assert_eq!(replicas.one("SELECT count(*) FROM t"), "51");
    }
}

/// With temp tables in the transaction SQLite freezes the main database and only then meets the
/// full temporary disk: it rolls back, plays the old pages back and syncs them. That froze a
/// second time and waited for the permit that it held itself; or, where the file was cut to its
/// old size after FCNTL_SYNC, it was taken for a bug, and the node stopped.
#[test]
fn a_full_temporary_disk_between_the_two_phases() {
    let mut replicas = Replicas::new();
    let disk = std::sync::Arc::new(quire::disk::FakeDisk::unrecorded());
    replicas.space = quire::sqlite::TempSpace::new(disk, 600 << 10);
    run(&replicas.writer(), "CREATE TABLE t(a, x); INSERT INTO t VALUES(0, '')");
    let mut failures = 0;
    for rows in (20..60).map(|i| i * 7) {
        let writer = replicas.writer();
        run(&writer, "PRAGMA temp.cache_size = 100; CREATE TEMP TABLE tt(a, x)");
        run(&writer, &format!("{} INSERT INTO tt SELECT i, randomblob(1000) FROM c", numbers(300)));
        run(&writer, "BEGIN");
        run(&writer, &format!("{} INSERT INTO t SELECT i, randomblob(900) FROM c", numbers(300)));
        let temp = format!("{} INSERT INTO tt SELECT i, randomblob(900) FROM c", numbers(rows));
        let version = replicas.leader.store.head().version;
        let inserted = try_run(&writer, &temp, &[]);
        let reached_commit = inserted.is_ok();
        let ended = inserted.and_then(|_| try_run(&writer, "COMMIT", &[]));
        if let Err(error) = ended {
            assert_eq!(error.primary(), ffi::SQLITE_FULL, "{error:?}");
            failures += u32::from(reached_commit);
            writer.roll_back();
            assert_eq!(replicas.leader.store.head().version, version, "it failed: no version");
            assert_eq!(one(&writer, "SELECT count(*) FROM t"), "1");
        }
        // The rollback journal counts too: first give the temp table's room back.
        drop(writer);
        run(&replicas.writer(), "DELETE FROM t WHERE a > 0");
        replicas.replicate();
    }
    assert!(failures > 0, "some meet the full disk at COMMIT only");
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "1");
}

/// A page cache is valid for one version, whatever SQLite's change counter says: here it says that
/// nothing has changed.
#[test]
fn a_change_that_leaves_the_change_counter_alone_is_seen() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES('before')");
    replicas.replicate();
    let reader = replicas.reader(&replicas.follower.store);
    for connection in [&reader, &reader, &writer, &writer] {
        assert_eq!(one(connection, "SELECT a FROM t"), "before");
    }
    let store = &replicas.leader.store;
    let snapshot = store.snapshot_head().unwrap();
    let mut page = vec![0; 4096];
    assert!(snapshot.read(2, 0, &mut page).unwrap());
    let at = page.windows(6).position(|bytes| bytes == b"before").unwrap();
    page[at..at + 6].copy_from_slice(b"behind");
    let mut write = Freeze::new(store, snapshot.point().page_count);
    write.write(2, &page).unwrap();
    let frozen = store.freeze(&snapshot, &write).unwrap().unwrap();
    store.publish(frozen);
    replicas.replicate();
    for connection in [&reader, &writer] {
        assert_eq!(one(connection, "SELECT a FROM t"), "behind");
    }
}
