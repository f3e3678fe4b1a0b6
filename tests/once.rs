//! Requests with an id, by hand: what was executed is not executed again, on this leader or the
//! next; what was not executed leaves no trace.

mod common;

use std::time::Duration;

use common::{Collected, Replicas, apply, fails, one, query, run};
use quire::base::{RequestId, limits};
use quire::member::Failure;
use quire::pages::PagesError;
use quire::pages::store::ApplyOutcome;
use quire::sqlite::{
    Cancel, Connection, Ran, Request, Retention, SqlError, Stored, Surplus, Value, View,
};
use rusqlite::ffi;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn first(id: u8) -> Request {
    let id = RequestId([id; 16]);
    let retention = Retention::default();
    Request { id, age: Duration::ZERO, elsewhere: false, now: NOW, retention }
}

fn again(id: u8) -> Request {
    let (age, now) = (Duration::from_secs(1), NOW + Duration::from_secs(1));
    Request { age, elsewhere: true, now, ..first(id) }
}

fn once_with(
    connection: &Connection,
    request: &Request,
    sql: &str,
    params: &[Value],
) -> Result<(Ran, Collected), SqlError> {
    let mut rows = Collected::default();
    let cancel = Cancel::default();
    let ran = connection.run_once(request, sql, params, Surplus::Refused, &cancel, &mut rows)?;
    Ok((ran, rows))
}

fn once(connection: &Connection, request: &Request, sql: &str) -> Result<Ran, SqlError> {
    once_with(connection, request, sql, &[]).map(|(ran, _)| ran)
}

/// A leader with a table `t`, nothing on its way.
fn replicas() -> (Replicas, Connection) {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)");
    replicas.replicate();
    (replicas, writer)
}

#[test]
fn a_repeat_gets_the_stored_result_and_runs_nothing() {
    let (mut replicas, writer) = replicas();
    let sql = "INSERT INTO t(b) VALUES(?1), (?2) RETURNING a, b, NULL AS n, x'00ff', 1.5";
    let params = [Value::Text(b"x".to_vec()), Value::Integer(7)];
    let (ran, rows) = once_with(&writer, &first(1), sql, &params).unwrap();
    assert_eq!((ran.last_insert_rowid, ran.changes, ran.rows, ran.columns), (2, 2, 2, 5));
    replicas.replicate();
    let version = replicas.leader.store.head().version;
    run(&writer, "DELETE FROM t");
    for request in [first(1), again(1)] {
        let (repeated, the_same) = once_with(&writer, &request, sql, &params).unwrap();
        assert_eq!(Ran { parameters: 2, ..repeated }, ran);
        assert_eq!(the_same.0, rows.0);
    }
    assert_eq!(replicas.leader.store.head().version, version + 1, "only the DELETE");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "0");
    assert_eq!(replicas.one("SELECT count(*) FROM _quire_requests"), "1");
}

#[test]
fn a_statement_that_fails_leaves_no_trace_and_may_run_again() {
    let (mut replicas, writer) = replicas();
    let version = replicas.leader.store.head().version;
    run(&writer, "INSERT INTO t VALUES(1, 1)");
    for sql in [
        "INSERT INTO t VALUES(2, 2), (1, 3)",
        "INSERT INTO t VALUES(2, 2), (1, 3) RETURNING a",
        "INSERT OR ROLLBACK INTO t VALUES(2, 2), (1, 3)",
        "INSERT INTO nothing VALUES(1)",
        "no SQL",
    ] {
        once(&writer, &first(1), sql).unwrap_err();
    }
    assert_eq!(replicas.leader.store.head().version, version + 1);
    assert_eq!(once(&writer, &again(1), "INSERT INTO t VALUES(2, 2)").unwrap().changes, 1);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "1,2");
    assert_eq!(replicas.one("SELECT count(*) FROM _quire_requests"), "1");
}

/// A deferred foreign key speaks up at COMMIT only.
#[test]
fn a_commit_that_fails_leaves_no_trace() {
    let (mut replicas, writer) = replicas();
    run(&writer, "CREATE TABLE c(a REFERENCES t(a) DEFERRABLE INITIALLY DEFERRED)");
    let error = once(&writer, &first(1), "INSERT INTO c VALUES(7)").unwrap_err();
    assert_eq!(error.code, ffi::SQLITE_CONSTRAINT_FOREIGNKEY);
    assert!(writer.is_autocommit());
    run(&writer, "INSERT INTO t VALUES(7, 7)");
    once(&writer, &again(1), "INSERT INTO c VALUES(7)").unwrap();
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM c"), "1");
}

/// OR FAIL keeps the rows before the one that failed: that is an execution, and its result is
/// the error.
#[test]
fn an_error_that_keeps_rows_is_a_result() {
    let (mut replicas, writer) = replicas();
    run(&writer, "INSERT INTO t VALUES(5, 5)");
    let sql = "INSERT OR FAIL INTO t VALUES(1, 1), (5, 6), (9, 9)";
    let error = once(&writer, &first(1), sql).unwrap_err();
    run(&writer, "DELETE FROM t");
    let repeated = once(&writer, &again(1), sql).unwrap_err();
    assert_eq!((error.code, &error.message), (repeated.code, &repeated.message));
    assert_eq!(error.code, ffi::SQLITE_CONSTRAINT_PRIMARYKEY);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "0");
    let error = once(&writer, &first(2), "INSERT OR FAIL INTO t VALUES(1, 1), (1, 1)").unwrap_err();
    assert_eq!(error.code, ffi::SQLITE_CONSTRAINT_PRIMARYKEY);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "1");
}

#[test]
fn an_id_belongs_to_one_request() {
    let (replicas, writer) = replicas();
    let sql = "INSERT INTO t(b) VALUES(?1)";
    once_with(&writer, &first(1), sql, &[Value::Integer(1)]).unwrap();
    let head = replicas.leader.store.head();
    for (sql, value) in [(sql, Value::Integer(2)), ("INSERT INTO t(a) VALUES(?1)", Value::Null)] {
        let error = once_with(&writer, &first(1), sql, &[value]).err().unwrap();
        assert_eq!(error.code, ffi::SQLITE_MISUSE);
        assert!(error.message.contains("another request"), "{error}");
    }
    assert_eq!(replicas.leader.store.head(), head);
}

#[test]
fn a_result_that_is_too_large_keeps_nothing() {
    let (replicas, writer) = replicas();
    let head = replicas.leader.store.head();
    let bytes = limits::REQUEST_RESULT_BYTES_MAX;
    for (size, fits) in [(bytes, false), (bytes - 200, true)] {
        let sql = format!("INSERT INTO t(b) VALUES(1) RETURNING zeroblob({size})");
        let result = once(&writer, &first(1), &sql);
        assert_eq!(result.is_ok(), fits);
        if let Err(error) = result {
            assert_eq!(error.code, ffi::SQLITE_TOOBIG);
            assert!(error.message.contains("nothing was kept"), "{error}");
            assert_eq!(replicas.leader.store.head(), head);
        }
    }
}

/// What was executed and never committed was not executed; what was committed is known to every
/// later leader.
#[test]
fn a_later_leader_knows_and_a_rewind_drops_both() {
    let (mut replicas, writer) = replicas();
    let sql = "INSERT INTO t(b) VALUES('kept')";
    once(&writer, &first(1), sql).unwrap();
    replicas.replicate();
    once(&writer, &first(2), "INSERT INTO t(b) VALUES('dropped')").unwrap();
    replicas.leader.store.rewind();
    replicas.follower.store.open_slot(2);
    let successor = replicas.connect(&replicas.follower.store, View::Head, false);
    successor.link().allow_write(true);
    let head = replicas.follower.store.head();
    assert_eq!(once(&successor, &again(1), sql).unwrap().last_insert_rowid, 1);
    assert_eq!(replicas.follower.store.head(), head);
    once(&successor, &again(2), "INSERT INTO t(b) VALUES('dropped')").unwrap();
    let delta = replicas.follower.store.take_outgoing().unwrap();
    assert!(replicas.follower.store.take_outgoing().is_none());
    for member in [&replicas.leader, &replicas.follower] {
        assert_eq!(apply(&member.store, &delta, replicas.index + 1), ApplyOutcome::Applied);
    }
    replicas.compare();
    assert_eq!(replicas.one("SELECT group_concat(b) FROM t"), "kept,dropped");
}

/// A repeat that finds the first on the head has seen the head: its answer waits for that.
#[test]
fn a_repeat_has_seen_what_it_was_answered_from() {
    let (replicas, writer) = replicas();
    once(&writer, &first(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    writer.take_published();
    let shared = replicas.connect(&replicas.leader.store, View::Head, true);
    shared.link().allow_write(true);
    once(&shared, &again(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    let head = replicas.leader.store.head().version;
    assert!(replicas.leader.store.applied().version < head);
    assert_eq!(shared.take_seen().unwrap().version, head);
    assert!(shared.take_published().is_empty());
}

fn commit_once(connection: &Connection, request: &Request, outcome: &[u8]) {
    let outcome = outcome.to_vec();
    let stored = Stored::Transaction { last_insert_rowid: 4, changes: 2, outcome };
    connection.remember_transaction(request, &stored).unwrap();
    run(connection, "COMMIT");
}

#[test]
fn a_transaction_is_remembered_by_its_commit() {
    let (mut replicas, writer) = replicas();
    run(&writer, "BEGIN IMMEDIATE");
    assert_eq!(writer.find_request(&first(1)).unwrap(), None);
    run(&writer, "INSERT INTO t(b) VALUES(1)");
    // A transaction that is rolled back, or whose COMMIT fails, is not.
    run(&writer, "ROLLBACK; BEGIN IMMEDIATE");
    assert_eq!(writer.find_request(&again(1)).unwrap(), None);
    run(&writer, "PRAGMA defer_foreign_keys = ON; CREATE TABLE c(a REFERENCES t(a))");
    run(&writer, "INSERT INTO c VALUES(3)");
    let stored = Stored::Transaction { last_insert_rowid: 0, changes: 0, outcome: vec![] };
    writer.remember_transaction(&first(1), &stored).unwrap();
    fails(&writer, "COMMIT");
    writer.forget_transaction();
    run(&writer, "INSERT INTO t VALUES(3, 3)");
    commit_once(&writer, &first(1), b"fine");
    replicas.replicate();
    run(&writer, "BEGIN");
    let outcome = b"fine".to_vec();
    let stored = Stored::Transaction { last_insert_rowid: 4, changes: 2, outcome };
    assert_eq!(writer.find_request(&again(1)).unwrap(), Some(stored));
    run(&writer, "COMMIT");
    let error = once(&writer, &again(1), "INSERT INTO t VALUES(9, 9)").unwrap_err();
    assert_eq!(error.code, ffi::SQLITE_MISUSE);
    assert_eq!(replicas.one("SELECT count(*) FROM c"), "1");
}

/// The newest are remembered, in so many bytes, for so long.
#[test]
fn what_is_remembered_has_a_bound() {
    let (mut replicas, writer) = replicas();
    let each = limits::REQUEST_OVERHEAD_BYTES + 34;
    let kept_for = Duration::from_secs(3600);
    let retention = Retention { bytes_max: each * 10, kept_for };
    let at = |id: u8, second: u64| {
        let now = NOW + Duration::from_millis(second * 1000 + u64::from(id));
        Request { retention, now, ..first(id) }
    };
    for id in 0..100 {
        once(&writer, &at(id, 0), "INSERT INTO t(b) VALUES(1) ON CONFLICT DO NOTHING").unwrap();
    }
    let ids = "SELECT hex(substr(id, 1, 1)) FROM _quire_requests ORDER BY position";
    let kept = query(&writer, ids);
    assert_eq!((kept.len(), kept[0][0].as_str(), kept[9][0].as_str()), (10, "5A", "63"));
    // A large result takes the place of many.
    let large = "INSERT INTO t(b) VALUES(2) RETURNING zeroblob(800)";
    once(&writer, &at(100, 0), large).unwrap();
    assert_eq!(query(&writer, ids).len(), 4);
    // An hour later the old ones go.
    for (id, left) in [(101, 1), (102, 2), (103, 3)] {
        once(&writer, &at(id, 3601), "DELETE FROM t WHERE 0").unwrap();
        assert_eq!(query(&writer, ids).len(), left);
    }
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM _quire_requests"), "3");
}

/// A repeat of what may have been forgotten is not run a second time: nobody can know.
#[test]
fn a_repeat_that_comes_too_late_is_refused() {
    let (replicas, writer) = replicas();
    let retention = Retention { bytes_max: 400, ..Retention::default() };
    let at = |id: u8, second: u64, age: u64| Request {
        retention,
        now: NOW + Duration::from_millis(second * 1000 + u64::from(id)),
        age: Duration::from_secs(age),
        elsewhere: age > 0,
        ..first(id)
    };
    let sql = "INSERT INTO t(b) VALUES(NULL)";
    once(&writer, &at(1, 0, 0), sql).unwrap();
    // Nothing was forgotten yet: what is not there was not executed.
    once(&writer, &at(2, 1, 3600), sql).unwrap();
    for id in 3..10 {
        once(&writer, &at(id, 100, 0), sql).unwrap();
    }
    let head = replicas.leader.store.head();
    for (now, age) in [(101, 101), (130, 25)] {
        let error = once(&writer, &at(1, now, age), sql).unwrap_err();
        assert_eq!(error.code, Request::FORGOTTEN);
        assert!(error.message.contains("not known"), "{error}");
    }
    assert_eq!(replicas.leader.store.head(), head);
    // One that was first sent after all that was forgotten was not executed.
    once(&writer, &at(11, 200, 60), sql).unwrap();
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "10");
}

/// What was sent for the first time was always run: also where it came so late that a repeat, sent
/// after it, had overtaken it and was forgotten already.
#[test]
fn a_first_sending_that_comes_too_late_is_refused() {
    let (replicas, writer) = replicas();
    let retention = Retention { bytes_max: 400, ..Retention::default() };
    let at = |id: u8, second: u64| Request {
        retention,
        now: NOW + Duration::from_secs(second),
        ..first(id)
    };
    let sql = "INSERT INTO t(b) VALUES(NULL)";
    for id in 1..10 {
        once(&writer, &at(id, u64::from(id)), sql).unwrap();
    }
    let head = replicas.leader.store.head();
    let late = |id: u8, seconds: u64| Request { age: Duration::from_secs(seconds), ..at(id, 20) };
    let error = once(&writer, &late(1, 19), sql).unwrap_err();
    assert_eq!(error.code, Request::FORGOTTEN);
    assert_eq!(replicas.leader.store.head(), head);
    // One clock only, and nothing is said of the others': the five seconds are not needed.
    once(&writer, &late(10, 10), sql).unwrap();
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "10");
}

#[test]
fn the_clock_of_what_is_remembered_never_goes_back() {
    let (_replicas, writer) = replicas();
    for (id, second) in [(1, 50), (2, 10), (3, 60)] {
        let now = NOW + Duration::from_secs(second);
        once(&writer, &Request { now, ..first(id) }, "INSERT INTO t(b) VALUES(NULL)").unwrap();
    }
    let ats =
        query(&writer, "SELECT at / 1000 - 1800000000 FROM _quire_requests ORDER BY position");
    assert_eq!(ats, [["50"], ["50"], ["60"]]);
}

/// A leader's clock was two hours ahead; another one, with the right time, took over. Every request
/// that was sent to it for the first time seemed older than what had been forgotten, and was refused
/// until the two hours were over.
#[test]
fn a_leader_whose_clock_is_behind_takes_new_requests() {
    let (_replicas, writer) = replicas();
    let retention = Retention { bytes_max: 2000, ..Retention::default() };
    let at = |id: u8, second: u64| Request {
        retention,
        now: NOW + Duration::from_secs(second),
        ..first(id)
    };
    let sql = "INSERT INTO t(b) VALUES(NULL)";
    for id in 1..30 {
        once(&writer, &at(id, 7200 + u64::from(id)), sql).unwrap();
    }
    once(&writer, &at(30, 0), sql).unwrap();
    once(&writer, &at(31, 1), sql).unwrap();
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "31");
    // What was forgotten stays so.
    let late = Request { age: Duration::from_secs(30), elsewhere: true, ..at(1, 2) };
    assert_eq!(once(&writer, &late, sql).unwrap_err().code, Request::FORGOTTEN);
}

/// The table is the node's own, whatever a client's text tries.
#[test]
fn no_client_writes_the_table_of_requests() {
    let (mut replicas, writer) = replicas();
    once(&writer, &first(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    for sql in [
        "INSERT INTO _quire_requests VALUES(1, x'00', 1, x'00')",
        "UPDATE _QUIRE_requests SET at = 0",
        "DELETE FROM main._quire_requests",
        "REPLACE INTO \"_quire_requests\" VALUES(1, x'00', 1, x'00')",
        "DROP TABLE _quire_requests",
        "DROP TABLE IF EXISTS main.[_quire_requests]",
        "ALTER TABLE _quire_requests ADD COLUMN x",
        "ALTER TABLE _quire_requests RENAME TO mine",
        "ALTER TABLE t RENAME TO _quire_mine",
        "CREATE INDEX i ON _quire_requests(at)",
        "CREATE TRIGGER r AFTER INSERT ON _quire_requests BEGIN SELECT 1; END",
        "CREATE TEMP TRIGGER r AFTER INSERT ON _quire_requests BEGIN SELECT 1; END",
        "CREATE TABLE c(id REFERENCES _quire_requests(id))",
        "CREATE TABLE _quire_other(a)",
        "CREATE TEMP TABLE _quire_requests(a)",
        "/* quire */ INSERT INTO main._quire_requests VALUES(?1, ?2, ?3, ?4)",
        " /* quire */ DELETE FROM main._quire_requests WHERE position <= ?1",
        "/* quire *//* quire */ DELETE FROM main._quire_requests WHERE position <= ?1",
    ] {
        let error = fails(&writer, sql);
        let what = (error.code, error.message.as_str());
        assert_eq!(what, (ffi::SQLITE_AUTH, "not authorized"), "{sql}");
        assert!(writer.notes().denied.is_some(), "{sql}");
    }
    // Also where another statement does it for the client.
    run(&writer, "CREATE TABLE c(a)");
    let rogue = "CREATE TRIGGER r AFTER INSERT ON c BEGIN DELETE FROM _quire_requests; END";
    assert_eq!(fails(&writer, rogue).code, ffi::SQLITE_AUTH);
    // Reading it does no harm.
    assert_eq!(one(&writer, "SELECT length(id) FROM _quire_requests"), "16");
    run(&writer, "VACUUM; REINDEX; ANALYZE; PRAGMA optimize");
    once(&writer, &again(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "1");
    assert_eq!(replicas.one("PRAGMA integrity_check"), "ok");
}

/// On a connection that sessions share the node's own text must not be had from the cache.
#[test]
fn the_nodes_own_statements_are_not_in_reach_of_clients() {
    let (replicas, _) = replicas();
    let shared = replicas.connect(&replicas.leader.store, View::Head, true);
    shared.link().allow_write(true);
    once(&shared, &first(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    for sql in [
        "/* quire */ BEGIN IMMEDIATE",
        "\u{a0}/* quire */ BEGIN IMMEDIATE",
        "\u{a0}/* quire */ \u{a0}/* quire */ BEGIN IMMEDIATE",
    ] {
        fails(&shared, sql);
        assert!(shared.is_autocommit());
    }
}

/// A session counts its own changes, not the node's.
#[test]
fn the_nodes_bookkeeping_is_not_counted() {
    let (_replicas, writer) = replicas();
    let counters = "SELECT last_insert_rowid() || ' ' || changes() || ' ' || total_changes()";
    run(&writer, "INSERT INTO t VALUES(40, 1)");
    let before =
        quire::sqlite::connection::Counters { last_insert_rowid: 40, changes: 1, total_changes: 1 };
    let ran = once(&writer, &first(1), "INSERT INTO t VALUES(50, 2), (51, 3)").unwrap();
    assert_eq!((ran.last_insert_rowid, ran.changes, ran.total_changes), (51, 2, 2));
    let (last_insert_rowid, changes) = (ran.last_insert_rowid, ran.changes);
    let total_changes = before.total_changes + ran.total_changes;
    let counted = quire::sqlite::connection::Counters { last_insert_rowid, changes, total_changes };
    writer.seed(&counted);
    assert_eq!(one(&writer, counters), "51 2 3");
    run(&writer, "UPDATE t SET b = b + 100 WHERE a = 50");
    assert_eq!(one(&writer, counters), "51 1 4");
}

/// Statements that change the schema, write by a PRAGMA or through a trigger are as good as others.
#[test]
fn any_statement_that_writes() {
    let (mut replicas, writer) = replicas();
    for (id, sql) in [
        (1, "CREATE TABLE u(x)"),
        (2, "CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO u VALUES(new.a); END"),
        (3, "INSERT INTO t(b) VALUES(random()), (random())"),
        (4, "PRAGMA user_version = 7"),
        (5, "WITH n(x) AS (VALUES(10)) INSERT INTO u SELECT x FROM n"),
        (6, "CREATE VIRTUAL TABLE f USING fts5(x)"),
        (7, "INSERT INTO f VALUES('tea')"),
        (8, "ALTER TABLE u RENAME TO v"),
    ] {
        for request in [first(id), again(id)] {
            once(&writer, &request, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM v"), "3");
    assert_eq!(replicas.one("PRAGMA user_version"), "7");
    assert_eq!(replicas.one("SELECT count(*) FROM f('tea')"), "1");
}

/// Where leadership was lost between a BEGIN with an id and the look-up of the id, or a COMMIT met a
/// disk that failed, SQLite's own code 10 was all that was told: the client did not look for another
/// node.
#[test]
fn what_the_file_says_is_known_of_the_nodes_own_statements_too() {
    let (mut replicas, writer) = replicas();
    once(&writer, &first(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    run(&writer, "BEGIN");
    replicas.leader.store.rewind();
    replicas.leader.store.open_slot(1);
    let error = writer.find_request(&again(1)).unwrap_err();
    assert!(matches!(error.cause.as_deref(), Some(PagesError::Rewound)), "{error:?}");
    assert!(matches!(Failure::from(error), Failure::NotLeader));
    drop(writer);

    let writer = replicas.writer();
    once(&writer, &first(1), "INSERT INTO t(b) VALUES(1)").unwrap();
    replicas.replicate();
    replicas.leader.checkpoint();
    let writer = replicas.writer();
    run(&writer, "BEGIN IMMEDIATE; INSERT INTO t(b) VALUES(2)");
    (0..10_000).for_each(|read| replicas.leader.disk.fail_read(read));
    let stored = Stored::Transaction { last_insert_rowid: 0, changes: 0, outcome: vec![] };
    let error = writer.remember_transaction(&first(2), &stored).unwrap_err();
    replicas.leader.disk.heal();
    assert!(matches!(error.cause.as_deref(), Some(PagesError::Io(_))), "{error:?}");
    assert!(writer.is_autocommit(), "SQLite ends a transaction whose pages cannot be read");
    assert_eq!(replicas.one("SELECT count(*) FROM _quire_requests"), "1");
}
