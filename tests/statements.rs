//! Statements as such: what they answer and count, their parameters and columns, and how they end,
//! on the leader and on the follower's copy.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Replicas, fails, one, query, run, try_run};
use quire::base::Clock;
use quire::sqlite::connection::Counters;
use quire::sqlite::{
    Cancel, Columns, Connection, ConnectionOptions, RowSink, SqlError, Surplus, TimeLimit, Value,
    ValueRef, View,
};
use rusqlite::ffi;

struct Standing(Duration);

impl Clock for Standing {
    fn monotonic(&self) -> Duration {
        self.0
    }

    fn unix(&self) -> Duration {
        self.0
    }
}

/// A seed of the simulation broke something one time in thirty: what SQL wrote down as the time was
/// the machine's, and where a second ended in the middle, other bytes of a page had changed.
#[test]
fn sql_is_told_the_time_of_the_threads_clock() {
    let replicas = Replicas::new();
    let writer = replicas.writer();
    let machine: u64 = one(&writer, "SELECT unixepoch()").parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((now - 60..=now).contains(&machine), "{machine}, and it is {now}");
    quire::sqlite::set_thread_clock(Arc::new(Standing(Duration::from_millis(1_800_000_000_123))));
    assert_eq!(one(&writer, "SELECT CURRENT_TIMESTAMP"), "2027-01-15 08:00:00");
    assert_eq!(one(&writer, "SELECT unixepoch('subsec') * 1000"), "1800000000123");
}

#[test]
fn a_schema_change_under_a_prepared_statement() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    replicas.replicate();
    let readers =
        [&replicas.leader, &replicas.follower].map(|member| replicas.reader(&member.store));
    let other = replicas.deferred();
    for connection in readers.iter().chain([&other]) {
        assert_eq!(query(connection, "SELECT * FROM t"), [["1"]], "and it is in the cache now");
    }
    run(&writer, "ALTER TABLE t ADD COLUMN b DEFAULT 7; CREATE INDEX ta ON t(a)");
    run(&writer, "CREATE VIEW v AS SELECT * FROM t; INSERT INTO t VALUES(2, 8)");
    assert_eq!(query(&readers[0], "SELECT * FROM t"), [["1"]], "not committed yet");
    replicas.replicate();
    for connection in readers.iter().chain([&other]) {
        assert_eq!(query(connection, "SELECT * FROM t"), [["1", "7"], ["2", "8"]]);
        assert_eq!(one(connection, "SELECT sum(b) FROM v"), "15");
    }
    run(&writer, "DROP VIEW v; ALTER TABLE t DROP COLUMN b; ALTER TABLE t RENAME TO s");
    replicas.replicate();
    for connection in readers.iter().chain([&other]) {
        assert_eq!(fails(connection, "SELECT * FROM t").message, "no such table: t");
        assert_eq!(query(connection, "SELECT * FROM s"), [["1"], ["2"]]);
    }
}

#[test]
fn returning() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let inserted = query(&writer, "INSERT INTO t(v) VALUES('a'),('b'),('c') RETURNING id, v||v");
    assert_eq!(inserted, [["1", "aa"], ["2", "bb"], ["3", "cc"]]);
    assert_eq!(query(&writer, "UPDATE t SET v = 'z' WHERE id > 1 RETURNING id"), [["2"], ["3"]]);
    assert_eq!(query(&writer, "DELETE FROM t WHERE id = 2 RETURNING v"), [["z"]]);
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(id||v) FROM t"), "1a,3z");
}

#[test]
fn counters_are_the_sessions() {
    let replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE log(r, c)");
    run(
        &writer,
        "CREATE TRIGGER tr AFTER INSERT ON t BEGIN
            INSERT INTO log VALUES(last_insert_rowid(), 'x'), (last_insert_rowid(), 'y');
            INSERT INTO log VALUES(last_insert_rowid(), changes()); END",
    );
    run(&writer, "INSERT INTO t VALUES(40, 'a')");
    // Inside a trigger the functions tell of the trigger's own statements.
    assert_eq!(query(&writer, "SELECT r, c FROM log"), [["40", "x"], ["1", "y"], ["2", "2"]]);
    let asked = "SELECT last_insert_rowid(), changes(), total_changes()";
    assert_eq!(query(&writer, asked), [["40", "1", "4"]]);

    let pinned = replicas.writer();
    pinned.seed(&Counters { last_insert_rowid: 40, changes: 3, total_changes: 100 });
    assert_eq!(query(&pinned, asked), [["40", "3", "100"]], "as the session left them");
    run(&pinned, "CREATE TEMP TABLE own(a)");
    assert_eq!(query(&pinned, asked), [["40", "3", "100"]], "DDL counts nothing");
    run(&pinned, "INSERT INTO t VALUES(50, 'b'), (60, 'c')");
    assert_eq!(query(&pinned, asked), [["60", "2", "108"]]);
}

/// An UPDATE that met no row left `changes()` at what the session had brought along: SQLite's own
/// count was 0, and 0 was taken for "nothing was run here yet". And a connection that was given
/// to a second session went on with the first one's counts.
#[test]
fn seeded_counters_end_with_the_first_statement_that_counts() {
    let replicas = Replicas::new();
    let connection = replicas.writer();
    run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let asked = "SELECT last_insert_rowid(), changes(), total_changes()";
    connection.seed(&Counters { last_insert_rowid: 7, changes: 3, total_changes: 10 });
    run(&connection, "UPDATE t SET v = 1");
    assert_eq!(query(&connection, asked), [["7", "0", "10"]]);
    run(&connection, "INSERT INTO t VALUES(5, 5)");
    assert_eq!(query(&connection, asked), [["5", "1", "11"]]);
    connection.seed(&Counters { last_insert_rowid: 70, changes: 30, total_changes: 200 });
    assert_eq!(query(&connection, asked), [["70", "30", "200"]]);
    run(&connection, "DELETE FROM t");
    assert_eq!(query(&connection, asked), [["70", "1", "201"]]);
}

#[test]
fn three_hundred_parameters_and_missing_ones() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a, b, c)");
    let rows = vec!["(?,?,?)"; 100].join(",");
    let params: Vec<Value> = (1..=300)
        .map(|i| match i % 3 {
            0 => Value::Integer(i),
            1 => Value::Text(format!("t{i}").into_bytes()),
            _ => Value::Real(i as f64 / 2.0),
        })
        .collect();
    try_run(&writer, &format!("INSERT INTO t VALUES{rows}"), &params).unwrap();
    try_run(&writer, "INSERT INTO t VALUES(?,?,?)", &params[..2]).unwrap();
    try_run(&writer, "INSERT INTO t VALUES(?,?,?)", &[]).unwrap();
    replicas.replicate();
    assert_eq!(
        replicas.both("SELECT count(*), count(a), count(c), sum(c) FROM t")[0][..3],
        ["102", "101", "100"]
    );
}

#[test]
fn a_blob_of_20_mb_and_a_statement_of_1_mb() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let blob: Vec<u8> =
        (0..20 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    try_run(&writer, "INSERT INTO t VALUES(1, ?)", &[Value::Blob(blob)]).unwrap();
    let long = "é".repeat(512 << 10);
    run(&writer, &format!("INSERT INTO t VALUES(2, '{long}')"));
    run(&writer, "UPDATE t SET x = x||'!' WHERE id = 2");
    replicas.replicate();
    let lengths = replicas.both("SELECT length(x) FROM t");
    assert_eq!(lengths, [[(20 << 20).to_string()], [((512 << 10) + 1).to_string()]]);
    assert_eq!(
        fails(&writer, &format!("SELECT '{}'", "x".repeat(17 << 20))).code,
        ffi::SQLITE_TOOBIG
    );
}

#[test]
fn an_interrupted_insert_inside_a_transaction() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a); BEGIN; INSERT INTO t VALUES(1)");
    let cancel = Cancel::default();
    let from_another_thread = cancel.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        from_another_thread.cancel();
    });
    let endless = "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c) \
        INSERT INTO t SELECT i FROM c";
    let error = writer
        .run(endless, &[], Surplus::Kept, &cancel, &mut common::Collected::default())
        .unwrap_err();
    thread.join().unwrap();
    assert_eq!(error.code, ffi::SQLITE_INTERRUPT);
    assert!(writer.is_autocommit(), "SQLite rolled the whole transaction back");
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "0");
    run(&writer, "INSERT INTO t VALUES(2)");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "2");
}

/// A clock that goes a second further each time that somebody looks.
#[derive(Default)]
struct Leaping(AtomicU64);

impl Clock for Leaping {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn unix(&self) -> Duration {
        self.monotonic()
    }
}

/// `timeouts.statement` was read from the configuration and nobody looked at it: a statement that
/// did not end ran for ever.
#[test]
fn a_statement_that_runs_for_too_long_is_stopped_and_says_why() {
    let mut replicas = Replicas::new();
    let time_limit = TimeLimit { clock: Arc::new(Leaping::default()), max: Duration::from_secs(5) };
    let options =
        ConnectionOptions { time_limit: Some(time_limit), ..replicas.options(View::Head, false) };
    let writer = Connection::open(replicas.leader.store.clone(), &options).unwrap();
    writer.link().allow_write(true);
    run(&writer, "CREATE TABLE t(a)");
    let endless = "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c)";
    let stops = |sql: &str| {
        let error = fails(&writer, &format!("{endless} {sql}"));
        assert_eq!(error.code, ffi::SQLITE_INTERRUPT);
        assert!(error.message.contains("longer than 5s"), "{error}");
        assert!(!error.is_interrupted(), "nobody asked it to stop");
    };
    stops("SELECT count(*) FROM c");
    stops("INSERT INTO t SELECT i FROM c");
    // Each has all of the time; what needs no look at the clock may take as long as it does.
    for row in 0..20 {
        run(&writer, &format!("INSERT INTO t VALUES({row})"));
    }
    // What only reads takes nothing with it.
    run(&writer, "BEGIN; INSERT INTO t VALUES(20)");
    stops("SELECT count(*) FROM c");
    run(&writer, "COMMIT");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT count(*) FROM t"), "21");
}

/// A statement from the cache was described by the columns it had before the schema changed:
/// SELECT * lost the new column.
#[test]
fn a_cached_statement_has_the_columns_of_today() {
    #[derive(Default)]
    struct Names(Vec<String>, usize);
    impl RowSink for Names {
        fn columns(&mut self, columns: Columns<'_>) -> Result<(), SqlError> {
            self.0.extend(columns.names().map(str::to_owned));
            Ok(())
        }
        fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
            assert_eq!(values.len(), self.0.len(), "columns are told before the rows");
            self.1 += 1;
            Ok(())
        }
    }
    let replicas = Replicas::new();
    let writer = replicas.writer();
    let names = |sql: &str| {
        let mut names = Names::default();
        let ran = writer.run(sql, &[], Surplus::Kept, &Cancel::default(), &mut names).unwrap();
        assert_eq!((ran.columns, ran.rows), (names.0.len(), names.1 as u64));
        (names.0.join(","), names.1)
    };
    run(&writer, "CREATE TABLE t(a)");
    assert_eq!(names("SELECT * FROM t"), ("a".to_owned(), 0));
    run(&writer, "ALTER TABLE t ADD COLUMN b; INSERT INTO t VALUES(1, 2)");
    assert_eq!(names("SELECT * FROM t"), ("a,b".to_owned(), 1));
    run(&writer, "DELETE FROM t; ALTER TABLE t ADD COLUMN c");
    assert_eq!(names("SELECT * FROM t"), ("a,b,c".to_owned(), 0));
    assert_eq!(names("INSERT INTO t VALUES(1, 2, 3)"), (String::new(), 0));
}

/// Whoever takes the rows of INSERT ... RETURNING may have had enough after the first. The
/// statement was reset then, and a reset of a statement that has returned rows commits them all.
#[test]
fn a_writing_statement_that_is_not_read_to_its_end_is_rolled_back() {
    struct Enough;
    impl RowSink for Enough {
        fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
            Ok(())
        }
        fn row(&mut self, _: &[ValueRef<'_>]) -> Result<(), SqlError> {
            Err(SqlError::new(ffi::SQLITE_TOOBIG, "enough"))
        }
    }
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a)");
    for (begin, end, left) in [("", "", "0"), ("BEGIN; INSERT INTO t VALUES(0)", "ROLLBACK", "1")] {
        run(&writer, begin);
        let insert = "INSERT INTO t VALUES(1),(2),(3) RETURNING a";
        let error =
            writer.run(insert, &[], Surplus::Kept, &Cancel::default(), &mut Enough).unwrap_err();
        assert_eq!(error.message, "enough");
        assert_eq!(writer.is_autocommit(), begin.is_empty(), "the transaction goes on");
        assert_eq!(one(&writer, "SELECT count(*) FROM t"), left, "only the statement is undone");
        run(&writer, end);
    }
    let select = "SELECT * FROM sqlite_schema";
    run(&writer, "BEGIN; INSERT INTO t VALUES(5)");
    writer.run(select, &[], Surplus::Kept, &Cancel::default(), &mut Enough).unwrap_err();
    assert!(!writer.is_autocommit(), "a query that is not read to its end changes nothing");
    run(&writer, "COMMIT");
    replicas.replicate();
    assert_eq!(replicas.one("SELECT group_concat(a) FROM t"), "5");
}

/// For each statement SQLite was given, and copied, the whole rest of the script.
#[test]
fn a_script_is_cut_into_statements_without_reading_it_over_and_over() {
    let replicas = Replicas::new();
    let writer = replicas.writer();
    let trigger = "CREATE TRIGGER tr AFTER INSERT ON t BEGIN SELECT ';'; DELETE FROM u; END;";
    let long = format!("INSERT INTO t VALUES('{};é');", "é;".repeat(20_000));
    let mut script = "CREATE TABLE t(a); CREATE TABLE u(a); -- ; \n".to_owned();
    for _ in 0..3000 {
        script += "INSERT INTO t VALUES('it''s ; one'); /* ; */ SELECT 1;\n";
        script += &"-".repeat(120);
        script += "\n";
    }
    script += trigger;
    script += &long;
    script += &"SELECT 1; ".repeat(1000);
    assert!(script.len() > 500_000);
    let begun = std::time::Instant::now();
    run(&writer, &script);
    assert!(begun.elapsed().as_secs() < 5);
    assert_eq!(one(&writer, "SELECT count(*) FROM t"), "3001");
    let big = format!("SELECT 1; {}", "SELECT 2; ".repeat(2 << 20));
    assert_eq!(writer.first_statement_bytes(&big), "SELECT 1;".len());
    assert_eq!(writer.first_statement_bytes("SELEC 1; SELECT 2"), "SELEC 1; SELECT 2".len());
}

/// A quick UPDATE had committed, and then SQLite asked once more whether it was to stop: its budget
/// was used up by its last steps. It was called given up, "and nothing has happened", and was run a
/// second time.
#[test]
fn a_statement_that_has_committed_is_not_given_up() {
    let replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(a)");
    run(&writer, &format!("{} INSERT INTO t SELECT i FROM c", common::numbers(600)));
    let (mut given_up, mut done) = (0, 0);
    for _ in 600..1200 {
        run(&writer, "INSERT INTO t VALUES(0)");
        for _ in 0..60 {
            writer.take_published();
            let before = replicas.leader.store.head().version;
            let (none, mut rows) = (Cancel::default(), common::Collected::default());
            let update = "UPDATE t SET a = a + 1";
            let ran = writer.run_quickly(update, &[], Surplus::Refused, &none, &mut rows);
            let committed = replicas.leader.store.head().version > before;
            assert_eq!(committed, ran.as_ref().is_some_and(Result::is_ok), "{ran:?}");
            (given_up, done) = (given_up + u32::from(ran.is_none()), done + u32::from(committed));
        }
    }
    assert!(given_up > 0 && done > 0, "the budget ends within the sweep");
}
