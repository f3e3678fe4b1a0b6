//! What a client's text must never reach, asked of SQLite itself: files, formats, other sessions.

mod common;

use common::{Member, Replicas, fails, one, query, run, try_run};
use quire::disk::Disk;
use quire::sqlite::{Connection, View};
use rusqlite::ffi;

fn refused(connection: &Connection, sql: &str) {
    let error = fails(connection, sql);
    assert_eq!((error.code, error.message.as_str()), (ffi::SQLITE_AUTH, "not authorized"), "{sql}");
    assert!(connection.notes().denied.is_some(), "{sql}");
}

#[test]
fn pragmas_that_would_change_the_file_or_the_node() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    for sql in [
        "PRAGMA journal_mode=WAL",
        "PRAGMA main.journal_mode=OFF",
        "PRAGMA journal_mode(DELETE)",
        "PRAGMA page_size=8192",
        "PRAGMA locking_mode=EXCLUSIVE",
        "PRAGMA writable_schema=ON",
        "PRAGMA schema_version=99",
        "PRAGMA synchronous=FULL",
        "PRAGMA temp_store_directory='/tmp'",
        "PRAGMA data_store_directory='/tmp'",
        "PRAGMA mmap_size=1000000",
        "PRAGMA wal_checkpoint",
        "PRAGMA trusted_schema=ON",
        "PRAGMA cell_size_check=OFF",
        "PRAGMA cache_size=-99999999",
        "PRAGMA temp_store=MEMORY",
        "PRAGMA encoding='UTF-16'",
        "PRAGMA hard_heap_limit=1",
        "PRAGMA shrink_memory",
        "PRAGMA max_page_count=1",
        "PRAGMA no_such_thing",
        "EXPLAIN PRAGMA journal_mode=WAL",
    ] {
        refused(&writer, sql);
        refused(&replicas.reader(&replicas.leader.store), sql);
    }
    assert_eq!(one(&writer, "PRAGMA journal_mode"), "delete");
    assert_eq!(one(&writer, "PRAGMA page_size"), "4096");
    run(&writer, "VACUUM; INSERT INTO t VALUES(2)");
    replicas.replicate();
    assert_eq!(replicas.one("PRAGMA page_size"), "4096");
}

#[test]
fn files_cannot_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("out.db");
    let outside = outside.to_str().unwrap();
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    for sql in [
        format!("ATTACH '{outside}' AS x"),
        format!("ATTACH 'file:{outside}' AS x"),
        format!("ATTACH 'file:'||'{outside}'||'?vfs=unix' AS x"),
        format!("ATTACH (SELECT '{outside}') AS x"),
        "ATTACH ?1 AS x".to_owned(),
        "ATTACH NULL AS x".to_owned(),
        "ATTACH '1' AS x".to_owned(),
        "ATTACH 'file::memory:?cache=shared' AS x".to_owned(),
    ] {
        refused(&writer, &sql);
    }
    for name in ["load_extension", "fts3_tokenizer"] {
        refused(&writer, &format!("SELECT {name}('/tmp/x.so')"));
    }
    for sql in [format!("VACUUM INTO '{outside}'"), format!("VACUUM INTO 'file:'||'{outside}'")] {
        fails(&writer, &sql);
    }
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "no file was made");
    replicas.replicate();
    let names = replicas.leader.disk.list("databases").unwrap();
    assert_eq!(names, ["db.db", "db.sum"]);
    assert!(replicas.leader.disk.list("").unwrap().iter().all(|name| name == "databases"));
    // Nameless databases are the connection's own and make no version.
    let version = replicas.leader.store.head().version;
    run(&writer, "ATTACH ':memory:' AS m; CREATE TABLE m.x(a); INSERT INTO m.x SELECT a FROM t");
    run(&writer, "ATTACH '' AS f; CREATE TABLE f.x(a); INSERT INTO f.x SELECT a FROM m.x");
    assert_eq!(one(&writer, "SELECT count(*) FROM f.x JOIN m.x USING(a)"), "1");
    assert_eq!(replicas.leader.store.head().version, version);
    run(&writer, "BEGIN; INSERT INTO m.x VALUES(7); INSERT INTO t VALUES(7); COMMIT; DETACH m");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,7");
}

/// `CREATE TABLE temp.t` passed as an ordinary table, and on the connection that sessions share
/// all of them had the one's temporary table from then on.
#[test]
fn what_needs_an_own_connection_is_noted_on_a_shared_one() {
    let replicas = Replicas::new();
    run(&replicas.writer(), "CREATE TABLE t(a)");
    let shared = replicas.connect(&replicas.leader.store, View::Head, true);
    shared.link().allow_write(true);
    for sql in [
        "BEGIN",
        "COMMIT",
        "SAVEPOINT s",
        "PRAGMA foreign_keys=OFF",
        "PRAGMA busy_timeout=100",
        "PRAGMA foreign_keys",
        "ATTACH ':memory:' AS m",
        "CREATE TEMP TABLE tt(a)",
        "CREATE TABLE temp.tt(a)",
        "CREATE TEMP VIEW tv AS SELECT 1",
        "CREATE TEMP TRIGGER tr AFTER INSERT ON t BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE temp.f USING fts5(x)",
        "SELECT changes()",
        "INSERT INTO t VALUES(last_insert_rowid())",
        "VACUUM",
    ] {
        let described = shared.describe(sql);
        if sql == "VACUUM" {
            // It is not asked about before it runs.
            assert_eq!(fails(&shared, sql).code, ffi::SQLITE_AUTH);
            assert!(shared.notes().needs_own_connection);
            continue;
        }
        assert!(described.unwrap().needs_own_connection, "{sql}");
        assert_eq!(shared.notes().denied, None, "{sql}");
    }
    assert_eq!(shared.notes().busy_timeout_ms, None);
    shared.describe("PRAGMA busy_timeout=100").unwrap();
    assert_eq!(shared.notes().busy_timeout_ms, Some(100));
    run(&shared, "CREATE TABLE fk(a REFERENCES t(a)); PRAGMA user_version=5; PRAGMA table_info(t)");
    assert!(shared.is_autocommit());
    assert_eq!(query(&shared, "SELECT name FROM pragma_table_info('t')"), [["a"]]);
}

/// A PRAGMA acts when it is prepared. The second time it came from the statement cache, and did
/// nothing.
#[test]
fn pragmas_act_every_time() {
    let replicas = Replicas::new();
    let own = replicas.writer();
    for _ in 0..3 {
        // By itself: setting a flag below has every cached statement prepared again.
        for size in ["10", "-500", "10", "-500"] {
            run(&own, &format!("PRAGMA cache_size={size}"));
            assert!(own.notes().keeps_connection);
            assert_eq!(one(&own, "PRAGMA cache_size"), size);
            run(&own, &format!("PRAGMA busy_timeout={}", size.trim_start_matches('-')));
            assert!(own.notes().busy_timeout_ms.is_some());
        }
        run(&own, "PRAGMA case_sensitive_like=ON");
        assert_eq!(one(&own, "SELECT 'a' LIKE 'A'"), "0");
        run(&own, "PRAGMA case_sensitive_like=OFF");
        assert_eq!(one(&own, "SELECT 'a' LIKE 'A'"), "1");
        for value in ["0", "1"] {
            run(&own, &format!("PRAGMA foreign_keys={value}"));
            assert_eq!(one(&own, "PRAGMA foreign_keys"), value);
        }
    }
}

#[test]
fn one_session_does_not_see_the_others_pragmas() {
    let replicas = Replicas::new();
    let (own, other) = (replicas.writer(), replicas.deferred());
    let shared = replicas.reader(&replicas.leader.store);
    run(&own, "PRAGMA foreign_keys=OFF; PRAGMA recursive_triggers=ON; PRAGMA query_only=ON");
    assert_eq!(fails(&own, "CREATE TABLE t(a)").primary(), ffi::SQLITE_READONLY);
    assert_eq!(one(&other, "PRAGMA foreign_keys"), "1");
    assert_eq!(one(&other, "PRAGMA query_only"), "0");
    assert_eq!(fails(&shared, "PRAGMA foreign_keys=OFF").code, ffi::SQLITE_AUTH);
}

#[test]
fn a_write_to_the_schema_table_or_a_shadow_table() {
    let replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE VIRTUAL TABLE f USING fts5(x); CREATE TABLE t(a)");
    for sql in [
        "UPDATE sqlite_schema SET sql = 'x'",
        "INSERT INTO sqlite_schema VALUES('table', 'x', 'x', 0, 'CREATE TABLE x(a)')",
        "DELETE FROM f_data",
        "DROP TABLE f_content",
    ] {
        assert!(try_run(&writer, sql, &[]).is_err(), "{sql}");
    }
    run(&writer, "INSERT INTO f VALUES('fine')");
}

#[test]
fn a_name_that_sqlite_is_given_opens_once_and_for_its_own_connection_only() {
    let member = Member::new(quire::disk::FakeDisk::new(), 4096);
    drop(member);
    // The VFS is registered by the first connection; by then no number is left to open.
    let replicas = Replicas::new();
    let _connection = replicas.writer();
    for name in ["1", "2", "db", "file:1?vfs=quire", ""] {
        let flags = rusqlite::OpenFlags::default();
        let opened = rusqlite::Connection::open_with_flags_and_vfs(name, flags, "quire");
        let wrote = opened.and_then(|sqlite| sqlite.execute_batch("CREATE TABLE main.t(a)"));
        assert!(name.is_empty() || wrote.is_err(), "{name}");
    }
}
