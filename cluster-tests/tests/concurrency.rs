//! Many sessions at once: transactions that take turns, that wait, that are left open, that are
//! interrupted, and readers that are slow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{INTERRUPT, Raw, Said, add_rows, exec_sql, query_sql};
use cluster_tests::{Cluster, Options, Shared, wait_for};
use quire::driver::{Begin, Database, DriverError, Value};
use quire::wire::{End, Params, Request, Response};
use tokio::task::JoinSet;

/// With limits so long that nothing here comes to pass by waiting for them.
static PATIENT: Shared = Shared::new(|| {
    let options = Options::new(3).set("timeouts.busy", "40s");
    options.set("timeouts.idle_writer", "30s").set("timeouts.idle_transaction", "60s")
});

/// With limits so short that a test can wait for them.
static HASTY: Shared = Shared::new(|| {
    let options = Options::new(3).set("timeouts.busy", "20s");
    let options = options.set("timeouts.statement", "1s");
    options.set("timeouts.idle_writer", "300ms").set("timeouts.idle_transaction", "600ms")
});

/// What comes to pass in less than this did not wait for [`PATIENT`]'s limits.
const AT_ONCE: Duration = Duration::from_secs(15);

const CLIENTS: i64 = 64;

/// SQLite's code for a snapshot that somebody else has overtaken.
const BUSY_SNAPSHOT: u64 = 517;

const ABORT_ROLLBACK: u64 = 516;

fn failure(code: u64, text: &str) -> Option<(u64, String)> {
    Some((code, text.to_owned()))
}

fn locked() -> Option<(u64, String)> {
    failure(5, "database is locked")
}

/// The value of the only counter.
async fn counter(database: &Database) -> Result<i64> {
    match database.query("SELECT v FROM c", vec![]).await?.rows[0][0] {
        Value::Integer(value) => Ok(value),
        ref other => anyhow::bail!("{other:?}"),
    }
}

/// Reads the counter, adds one and writes it back, in a transaction begun in this manner, until
/// that has succeeded; how many times it had to begin again.
async fn add_one(database: &Database, begin: Begin) -> Result<usize> {
    for again in 0.. {
        let mut transaction = database.begin_with(begin).await?;
        let read = transaction.query("SELECT v FROM c", vec![]).await?.rows;
        let Value::Integer(value) = read[0][0] else { anyhow::bail!("{read:?}") };
        let written =
            transaction.execute("UPDATE c SET v = ?", vec![Value::Integer(value + 1)]).await;
        match written {
            Ok(_) => {
                transaction.commit().await?;
                return Ok(again);
            }
            Err(DriverError::Sqlite { code: BUSY_SNAPSHOT, .. }) => transaction.rollback().await?,
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("never")
}

async fn add_in_parallel(name: &str, begin: Begin, each: i64) -> Result<usize> {
    let cluster = PATIENT.get().await?;
    let database = cluster.client()?.database(name);
    database.execute("CREATE TABLE c(v INTEGER); INSERT INTO c VALUES(0)", vec![]).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let database = database.clone();
        tasks.spawn(async move {
            let mut again = 0;
            for _ in 0..each {
                again += add_one(&database, begin).await?;
            }
            anyhow::Ok(again)
        });
    }
    let mut again = 0;
    while let Some(task) = tasks.join_next().await {
        again += task??;
    }
    assert_eq!(counter(&database).await?, CLIENTS * each, "an update was lost");
    Ok(again)
}

#[tokio::test]
async fn transactions_that_begin_immediate_lose_no_update_and_never_begin_again() -> Result<()> {
    let again = add_in_parallel("immediate", Begin::Immediate, 4).await?;
    assert_eq!(again, 0, "it had its turn and was refused");
    Ok(())
}

#[tokio::test]
async fn deferred_transactions_that_retry_on_517_lose_no_update() -> Result<()> {
    let again = add_in_parallel("deferred", Begin::Deferred, 2).await?;
    ensure!(again > 0, "no snapshot was ever overtaken: nothing was tested");
    Ok(())
}

#[tokio::test]
async fn a_second_begin_immediate_waits_its_turn() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut first, mut second) = (cluster.raw("turns").await?, cluster.raw("turns").await?);
    first.run("CREATE TABLE t(a)").await?;
    first.run("BEGIN IMMEDIATE").await?;
    second.send(&[exec_sql("BEGIN IMMEDIATE")]).await?;
    let waiting = tokio::spawn(async move {
        let answer = second.answer().await?;
        anyhow::Ok((second, answer, Instant::now()))
    });
    for row in 0..50 {
        first.run(&format!("INSERT INTO t VALUES({row})")).await?;
    }
    let before = Instant::now();
    first.run("COMMIT").await?;
    let (mut second, answer, begun) = waiting.await??;
    ensure!(matches!(answer, Said::Message(Response::Result { .. })), "{answer:?}");
    ensure!(begun >= before, "it did not wait for the first to commit");
    assert_eq!(second.integer("SELECT count(*) FROM t").await?, 50);
    second.run("COMMIT").await?;
    Ok(())
}

#[tokio::test]
async fn a_writer_that_waits_longer_than_its_busy_timeout_is_told_locked() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut first, mut second) = (cluster.raw("busy").await?, cluster.raw("busy").await?);
    first.run("CREATE TABLE t(a)").await?;
    assert_eq!(second.integer("PRAGMA busy_timeout = 300").await?, 300);
    first.run("BEGIN IMMEDIATE").await?;
    let began = Instant::now();
    for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES(1)"] {
        assert_eq!(second.exec(sql).await?.failure(), locked(), "{sql}");
    }
    let returning = second.query("INSERT INTO t VALUES(1) RETURNING a").await?;
    assert_eq!(returning.failure(), locked());
    let waited = began.elapsed();
    ensure!(waited >= Duration::from_millis(900) && waited < AT_ONCE, "{waited:?}");
    assert_eq!(second.integer("PRAGMA busy_timeout").await?, 300);
    first.run("COMMIT").await?;
    second.run("INSERT INTO t VALUES(2)").await?;
    assert_eq!(first.integer("SELECT count(*) FROM t").await?, 1);
    Ok(())
}

/// With no patience at all a free slot could still not be had: the time to hand it over was
/// counted as waiting.
#[tokio::test]
async fn a_busy_timeout_of_zero_gets_a_slot_that_is_free() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut raw = cluster.raw("zero").await?;
    raw.run("CREATE TABLE t(a)").await?;
    raw.integer("PRAGMA busy_timeout = 0").await?;
    for row in 0..50 {
        raw.run(&format!("INSERT INTO t VALUES({row})")).await?;
        raw.run("BEGIN IMMEDIATE").await?;
        raw.run("COMMIT").await?;
    }
    let mut other = cluster.raw("zero").await?;
    other.run("BEGIN IMMEDIATE").await?;
    assert_eq!(raw.exec("INSERT INTO t VALUES(1)").await?.failure(), locked());
    other.run("ROLLBACK").await?;
    Ok(())
}

fn told_lost() -> Option<(u64, String)> {
    failure(ABORT_ROLLBACK, "the transaction was idle for too long and was rolled back")
}

#[tokio::test]
async fn an_idle_transaction_that_holds_the_slot_is_rolled_back_and_told_so_once() -> Result<()> {
    let cluster = HASTY.get().await?;
    let (mut idle, mut other) = (cluster.raw("idle").await?, cluster.raw("idle").await?);
    idle.run("CREATE TABLE t(a)").await?;
    idle.run("BEGIN IMMEDIATE").await?;
    idle.run("INSERT INTO t VALUES('idle')").await?;
    other.run("INSERT INTO t VALUES('other')").await?;
    assert_eq!(idle.exec("INSERT INTO t VALUES('late')").await?.failure(), told_lost());
    idle.run("INSERT INTO t VALUES('again')").await?;
    let rows = other.query("SELECT a FROM t ORDER BY a").await?;
    assert_eq!(rows, Said::Rows(vec![vec!["again".into()], vec!["other".into()]], 1));
    Ok(())
}

#[tokio::test]
async fn an_idle_transaction_that_only_read_is_rolled_back_too() -> Result<()> {
    let cluster = HASTY.get().await?;
    let leader = cluster.wait_for_leader().await?;
    let mut idle = cluster.raw("idle-reader").await?;
    idle.run("CREATE TABLE t(a)").await?;
    idle.run("BEGIN").await?;
    idle.integer("SELECT count(*) FROM t").await?;
    wait_for("the log to say so", async || {
        let log = cluster.log(leader);
        let line = |line: &&str| line.contains("idle-reader") && line.contains("idle for too long");
        Ok(log.lines().find(line).map(drop))
    })
    .await?;
    assert_eq!(idle.query("SELECT count(*) FROM t").await?.failure(), told_lost());
    assert_eq!(idle.integer("SELECT count(*) FROM t").await?, 0);
    Ok(())
}

/// A client that held the write slot and asked who leads now and then, as pools do to see whether
/// a connection is alive, was never found idle: everybody else's writes failed.
#[tokio::test]
async fn a_transaction_is_idle_whatever_its_client_asks_beside_statements() -> Result<()> {
    let cluster = HASTY.get().await?;
    let (mut idle, mut other) = (cluster.raw("pinged").await?, cluster.raw("pinged").await?);
    idle.run("CREATE TABLE t(a)").await?;
    idle.run("BEGIN IMMEDIATE").await?;
    let mut writing = tokio::spawn(async move { other.run("INSERT INTO t VALUES(1)").await });
    let deadline = Instant::now() + AT_ONCE;
    while !writing.is_finished() {
        ensure!(Instant::now() < deadline, "the slot is held by a client that only pings");
        idle.ask(&Request::Leader).await?;
        let _ = tokio::time::timeout(Duration::from_millis(20), &mut writing).await;
    }
    assert_eq!(idle.exec("INSERT INTO t VALUES(2)").await?.failure(), told_lost());
    Ok(())
}

#[tokio::test]
async fn a_reader_that_stays_open_blocks_no_writer_and_sees_one_version() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut reader, mut writer) = (cluster.raw("reader").await?, cluster.raw("reader").await?);
    writer.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await?;
    writer.run("INSERT INTO t VALUES(0, 'first')").await?;
    reader.run("BEGIN").await?;
    assert_eq!(reader.integer("SELECT count(*) FROM t").await?, 1);
    for row in 1..=500 {
        writer.run(&format!("INSERT INTO t VALUES({row}, 'row {row}')")).await?;
        writer.run(&format!("UPDATE t SET b = 'changed {row}' WHERE a = 0")).await?;
        if row % 100 == 0 {
            cluster.checkpoint("reader").await?;
            assert_eq!(reader.integer("SELECT count(*) FROM t").await?, 1);
            assert_eq!(reader.integer("SELECT count(*) FROM t WHERE b = 'first'").await?, 1);
        }
    }
    assert_eq!(reader.exec("INSERT INTO t VALUES(-1, '')").await?.failure().unwrap().0, 517);
    reader.run("COMMIT").await?;
    assert_eq!(reader.integer("SELECT count(*) FROM t").await?, 501);
    Ok(())
}

/// How much log the nodes of this test keep, and what their logs may come to: as much again
/// until a checkpoint is due, some segments, and what is written until it is done.
const LOG_KEPT: u64 = 32 << 20;
const LOG_MAX: u64 = 2 * LOG_KEPT + (160 << 20);

/// The size of the largest log directory.
fn log_bytes(cluster: &Cluster) -> Result<u64> {
    let mut most = 0;
    for id in cluster.running() {
        let mut bytes = 0;
        for entry in std::fs::read_dir(cluster.dir(id).join("log"))? {
            // One that was purged meanwhile counts no more.
            bytes += entry?.metadata().map_or(0, |data| data.len());
        }
        most = most.max(bytes);
    }
    Ok(most)
}

/// Five seconds, and with `QUIRE_LONG=1` a minute, of a reader that stays open while its rows are
/// written anew all the time: no write waits for it, checkpoints and the purging of the log go on
/// (more than the bound is written), and it sees what it saw at first.
#[tokio::test]
async fn a_reader_that_stays_long_holds_up_neither_writes_nor_the_purging_of_the_log() -> Result<()>
{
    let long = std::env::var_os("QUIRE_LONG").is_some();
    let lasts = Duration::from_secs(if long { 60 } else { 5 });
    let options = Options::new(3).set("limits.log_keep_bytes", "32 MiB");
    let cluster = Cluster::start_with(options.set("limits.overlay_bytes", "8 MiB")).await?;
    let (mut reader, mut writer) = (cluster.raw("long").await?, cluster.raw("long").await?);
    writer.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, x BLOB)").await?;
    const FILL: &str = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n \
                        WHERE i < 40) INSERT INTO t SELECT i, 0, randomblob(60000) FROM n";
    writer.run(FILL).await?;
    reader.run("BEGIN").await?;
    const SEEN: &str = "SELECT count(*) + 100 * total(v) + total(length(x)) FROM t";
    let seen = reader.query(SEEN).await?;
    let (began, mut looked) = (Instant::now(), Instant::now());
    let (mut slowest, mut most, mut writes) = (Duration::ZERO, 0, 0_u64);
    while began.elapsed() < lasts || writes * 240_000 < LOG_MAX * 3 / 2 {
        let start = Instant::now();
        let first = writes * 4 % 40 + 1;
        let sql = "UPDATE t SET v = v + 1, x = randomblob(60000) WHERE id BETWEEN";
        writer.run(&format!("{sql} {first} AND {}", first + 3)).await?;
        slowest = slowest.max(start.elapsed());
        writes += 1;
        most = most.max(log_bytes(&cluster)?);
        ensure!(most < LOG_MAX, "the log has {most} bytes");
        if looked.elapsed() > Duration::from_secs(1) {
            looked = Instant::now();
            assert_eq!(reader.query(SEEN).await?, seen);
        }
    }
    assert_eq!(reader.query(SEEN).await?, seen);
    println!(
        "{} s, {} MB written in {writes} writes, the slowest {} ms; the log at most {} MiB",
        began.elapsed().as_secs(),
        writes * 240_000 / 1_000_000,
        slowest.as_millis(),
        most >> 20,
    );
    ensure!(slowest < AT_ONCE, "a write waited {slowest:?}");
    reader.run("COMMIT").await?;
    assert_ne!(reader.query(SEEN).await?, seen);
    // A checkpoint is followed by a purge, also if nothing is written any more.
    cluster.checkpoint("long").await?;
    wait_for("the log to be purged", async || {
        Ok((log_bytes(&cluster)? <= LOG_KEPT + (48 << 20)).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn counters_belong_to_the_session() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut one, mut two) = (cluster.raw("counters").await?, cluster.raw("counters").await?);
    one.run("CREATE TABLE t(a INTEGER PRIMARY KEY)").await?;
    const COUNTERS: &str = "SELECT last_insert_rowid(), changes(), total_changes()";
    let counters =
        |a: i64, b: i64, c: i64| Said::Rows(vec![[a, b, c].map(Value::Integer).to_vec()], 1);
    assert_eq!(one.run("INSERT INTO t VALUES(10), (11), (12)").await?, (12, 3));
    assert_eq!(two.query(COUNTERS).await?, counters(0, 0, 0));
    assert_eq!(two.run("INSERT INTO t VALUES(20)").await?, (20, 1));
    assert_eq!(one.query(COUNTERS).await?, counters(12, 3, 3));
    assert_eq!(two.query(COUNTERS).await?, counters(20, 1, 1));
    one.run("BEGIN").await?;
    assert_eq!(one.run("DELETE FROM t WHERE a < 20").await?, (12, 3));
    assert_eq!(one.query(COUNTERS).await?, counters(12, 3, 6));
    one.run("COMMIT").await?;
    assert_eq!(two.run("UPDATE t SET a = a + 1 WHERE a > 100").await?, (20, 0));
    assert_eq!(two.query(COUNTERS).await?, counters(20, 0, 1));
    assert_eq!(one.query(COUNTERS).await?, counters(12, 3, 6));
    // A row whose key is that of the session's last one: the function inside an INSERT.
    assert_eq!(two.run("INSERT INTO t VALUES(last_insert_rowid() + 100)").await?, (120, 1));
    Ok(())
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_their_order() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut raw = cluster.raw("ahead").await?;
    raw.run("CREATE TABLE t(a INTEGER PRIMARY KEY)").await?;
    // More than the server reads ahead.
    let requests: Vec<Request> = (0..200)
        .flat_map(|row| {
            let insert = exec_sql(&format!("INSERT INTO t VALUES({row})"));
            [insert, query_sql("SELECT count(*) FROM t"), Request::Leader]
        })
        .collect();
    raw.send(&requests).await?;
    for row in 0..200 {
        let inserted = raw.answer().await?;
        ensure!(
            matches!(inserted, Said::Message(Response::Result { last_insert_id, .. })
                if last_insert_id == row),
            "{row}: {inserted:?}"
        );
        assert_eq!(raw.answer().await?.integer(), Some(row + 1));
        let leader = raw.answer().await?;
        ensure!(matches!(leader, Said::Message(Response::Node { .. })), "{leader:?}");
    }
    Ok(())
}

/// Counts for ever.
const ENDLESS: &str = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)";

/// Reads on to the one Empty that an Interrupt is answered with, and sees to it that nothing
/// follows it. What came before.
async fn until_empty(raw: &mut Raw) -> Result<Vec<Response>> {
    let mut before = Vec::new();
    loop {
        match raw.response().await? {
            Response::Empty => break,
            other => before.push(other),
        }
    }
    assert_eq!(raw.integer("SELECT 42").await?, 42, "something follows the Empty");
    Ok(before)
}

#[tokio::test]
async fn an_interrupted_query_ends_with_exactly_one_empty() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut raw = cluster.raw("interrupt").await?;
    assert_eq!(raw.ask(&INTERRUPT).await?, Said::Message(Response::Empty));
    // Its rows never come.
    raw.send(&[query_sql(&format!("{ENDLESS} SELECT count(*) FROM c"))]).await?;
    raw.send(&[INTERRUPT]).await?;
    assert_eq!(until_empty(&mut raw).await?, []);
    // Its rows never end.
    raw.send(&[query_sql(&format!("{ENDLESS} SELECT x FROM c"))]).await?;
    ensure!(matches!(raw.response().await?, Response::Rows(_)));
    raw.send(&[INTERRUPT]).await?;
    for part in until_empty(&mut raw).await? {
        let Response::Rows(body) = part else { anyhow::bail!("{part:?}") };
        assert_eq!(add_rows(&body, &mut Vec::new())?, End::Part, "an end before the end");
    }
    // In a transaction, which stays.
    raw.run("BEGIN").await?;
    raw.integer("SELECT count(*) FROM sqlite_schema").await?;
    raw.send(&[query_sql(&format!("{ENDLESS} SELECT count(*) FROM c")), INTERRUPT]).await?;
    assert_eq!(until_empty(&mut raw).await?, []);
    raw.run("COMMIT").await?;
    // One that has ended already.
    raw.send(&[query_sql("SELECT 1"), INTERRUPT]).await?;
    ensure!(until_empty(&mut raw).await?.len() <= 1);
    Ok(())
}

#[tokio::test]
async fn an_interrupted_exec_fails_changes_nothing_and_has_one_empty() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut raw = cluster.raw("interrupt-exec").await?;
    raw.run("CREATE TABLE t(a)").await?;
    let endless = format!("INSERT INTO t {ENDLESS} SELECT x FROM c");
    raw.send(&[exec_sql(&endless), INTERRUPT]).await?;
    let interrupted = [Response::failure(9, "interrupted")];
    assert_eq!(until_empty(&mut raw).await?, interrupted);
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0);
    // In a transaction, which SQLite rolls back: what follows must not commit by itself.
    raw.run("BEGIN").await?;
    raw.run("INSERT INTO t VALUES(1)").await?;
    raw.send(&[exec_sql(&endless), INTERRUPT]).await?;
    assert_eq!(until_empty(&mut raw).await?, interrupted);
    let commit = raw.exec("COMMIT").await?.failure();
    assert_eq!(commit, failure(1, "cannot commit - no transaction is active"));
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0);
    raw.run("INSERT INTO t VALUES(2)").await?;
    Ok(())
}

/// Every request that stood before an Interrupt was cancelled by it, one after the other, also
/// those that had not begun when it came. It means the one right before it.
#[tokio::test]
async fn an_interrupt_stops_the_request_before_it() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut raw = cluster.raw("interrupt-one").await?;
    raw.run("CREATE TABLE t(a)").await?;
    let endless = exec_sql(&format!("INSERT INTO t {ENDLESS} SELECT x FROM c"));
    let query = query_sql(&format!("{ENDLESS} SELECT count(*) FROM c"));
    // One that is over only after many a look at whether it is to stop.
    let long = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 99999)
        INSERT INTO t SELECT count(*) FROM c";
    let stopped = Response::failure(9, "interrupted");
    let inserted = async |raw: &mut Raw| -> Result<()> {
        let answer = raw.response().await?;
        ensure!(matches!(answer, Response::Result { rows_affected: 1, .. }), "{answer:?}");
        Ok(())
    };

    raw.send(&[exec_sql(long), endless, INTERRUPT, exec_sql(long)]).await?;
    inserted(&mut raw).await?;
    assert_eq!([raw.response().await?, raw.response().await?], [stopped, Response::Empty]);
    inserted(&mut raw).await?;

    raw.send(&[exec_sql(long), query, INTERRUPT, exec_sql(long), INTERRUPT, INTERRUPT]).await?;
    inserted(&mut raw).await?;
    assert_eq!(raw.response().await?, Response::Empty);
    // This one may be over before its Interrupt is seen, or not.
    raw.response().await?;
    assert_eq!(raw.response().await?, Response::Empty);
    assert_eq!(until_empty(&mut raw).await?, []);
    Ok(())
}

/// `timeouts.statement` reached nobody: a statement that did not end ran for ever.
#[tokio::test]
async fn a_statement_that_runs_for_too_long_is_stopped() -> Result<()> {
    let cluster = HASTY.get().await?;
    let mut raw = cluster.raw("too-long").await?;
    raw.run("CREATE TABLE t(a)").await?;
    for request in [
        query_sql(&format!("{ENDLESS} SELECT count(*) FROM c")),
        query_sql(&format!("{ENDLESS} SELECT x FROM c")),
        exec_sql(&format!("INSERT INTO t {ENDLESS} SELECT x FROM c")),
    ] {
        raw.send(&[request]).await?;
        let failure = loop {
            match raw.response().await? {
                Response::Rows(body) => {
                    assert_eq!(add_rows(&body, &mut Vec::new())?, End::Part);
                }
                other => break other,
            }
        };
        let text = "the statement was interrupted: it ran longer than 1s, which \
            timeouts.statement allows";
        assert_eq!(failure, Response::failure(9, text));
    }
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0);
    Ok(())
}

/// An Interrupt came while the writer stood in the queue for the slot, and nobody told the queue:
/// the client waited for the whole busy timeout.
#[tokio::test]
async fn an_interrupted_writer_leaves_the_queue_at_once() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut holder, mut raw) = (cluster.raw("queue").await?, cluster.raw("queue").await?);
    holder.run("CREATE TABLE t(a)").await?;
    holder.run("BEGIN IMMEDIATE").await?;
    let began = Instant::now();
    for sql in ["INSERT INTO t VALUES(1)", "BEGIN IMMEDIATE"] {
        raw.send(&[exec_sql(sql), INTERRUPT]).await?;
        let before = until_empty(&mut raw).await?;
        assert_eq!(before, [Response::failure(9, "interrupted")], "{sql}");
    }
    let waited = began.elapsed();
    ensure!(waited < AT_ONCE, "{waited:?}");
    holder.run("COMMIT").await?;
    assert_eq!(holder.integer("SELECT count(*) FROM t").await?, 0);
    raw.run("INSERT INTO t VALUES(2)").await?;
    Ok(())
}

#[tokio::test]
async fn a_large_result_is_streamed_to_a_slow_reader_while_writes_go_on() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut reader, mut writer) = (cluster.raw("stream").await?, cluster.raw("stream").await?);
    writer.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)").await?;
    let rows = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 10000)";
    writer.run(&format!("INSERT INTO t {rows} SELECT x, hex(randomblob(512)) FROM c")).await?;
    reader.send(&[query_sql("SELECT a, b FROM t")]).await?;
    let mut read = Vec::new();
    let mut parts = 0;
    loop {
        let Response::Rows(body) = reader.response().await? else { anyhow::bail!("no rows") };
        parts += 1;
        if add_rows(&body, &mut read)? == End::Done {
            break;
        }
        // The socket is full meanwhile, and the statement waits with its snapshot.
        if parts % 10 == 1 {
            writer.run("INSERT INTO t(b) VALUES('new')").await?;
            writer.run("DELETE FROM t WHERE a = (SELECT max(a) FROM t WHERE b <> 'new')").await?;
        }
    }
    assert_eq!(read.len(), 10_000, "not the version that it began with");
    ensure!(parts > 10, "10 MB in {parts} parts");
    assert_eq!(reader.integer("SELECT 1").await?, 1);
    Ok(())
}

#[tokio::test]
async fn databases_are_apart_and_do_not_wait_for_each_other() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut one, mut two) = (cluster.raw("apart.one").await?, cluster.raw("apart_two").await?);
    one.run("CREATE TABLE t(a)").await?;
    one.run("BEGIN IMMEDIATE").await?;
    one.run("INSERT INTO t VALUES(1)").await?;
    let absent = two.query("SELECT * FROM t").await?.failure();
    assert_eq!(absent, failure(1, "no such table: t"));
    two.run("CREATE TABLE t(b)").await?;
    two.run("INSERT INTO t VALUES(2)").await?;
    one.run("COMMIT").await?;
    assert_eq!(
        (one.integer("SELECT a FROM t").await?, two.integer("SELECT b FROM t").await?),
        (1, 2)
    );
    let names = cluster.client()?.databases().await?;
    ensure!(["apart.one", "apart_two"].iter().all(|name| names.iter().any(|n| n == name)));
    Ok(())
}

async fn prepare(raw: &mut Raw, sql: &str) -> Result<u32> {
    let request = Request::Prepare { database: 0, sql: sql.into(), tail: false };
    match raw.ask(&request).await? {
        Said::Message(Response::Stmt { statement, .. }) => Ok(statement),
        other => anyhow::bail!("{sql}: {other:?}"),
    }
}

fn query_of(statement: u32) -> Request {
    Request::Query { database: 0, statement, params: Params::new([]) }
}

#[tokio::test]
async fn prepared_statements_follow_the_schema() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let (mut one, mut two) = (cluster.raw("schema").await?, cluster.raw("schema").await?);
    one.run("CREATE TABLE t(a); INSERT INTO t VALUES(1)").await?;
    let all = prepare(&mut one, "SELECT * FROM t").await?;
    let insert = prepare(&mut one, "INSERT INTO t VALUES(2)").await?;
    assert_eq!(one.ask(&query_of(all)).await?, Said::Rows(vec![vec![1.into()]], 1));
    two.run("ALTER TABLE t ADD COLUMN b DEFAULT 'new'").await?;
    let wider = Said::Rows(vec![vec![1.into(), "new".into()]], 1);
    assert_eq!(one.ask(&query_of(all)).await?, wider);
    let exec = Request::Exec { database: 0, statement: insert, params: Params::new([]) };
    let refused = one.ask(&exec).await?.failure().context("one value for two columns")?;
    assert_eq!(refused, (1, "table t has 2 columns but 1 values were supplied".to_owned()));
    two.run("DROP TABLE t").await?;
    assert_eq!(one.ask(&query_of(all)).await?.failure(), failure(1, "no such table: t"));
    two.run("CREATE TABLE t(a, b, c)").await?;
    assert_eq!(one.ask(&query_of(all)).await?, Said::Rows(vec![], 1));
    Ok(())
}

#[tokio::test]
async fn a_socket_that_closes_within_a_transaction_frees_the_slot_at_once() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut other = cluster.raw("closed").await?;
    other.run("CREATE TABLE t(a)").await?;
    let began = Instant::now();
    for _ in 0..5 {
        let mut gone = cluster.raw("closed").await?;
        gone.run("BEGIN IMMEDIATE").await?;
        gone.run("INSERT INTO t VALUES('gone')").await?;
        drop(gone);
        other.run("INSERT INTO t VALUES('other')").await?;
        // ... and one that leaves while its statement runs.
        let mut gone = cluster.raw("closed").await?;
        gone.run("BEGIN IMMEDIATE").await?;
        gone.send(&[exec_sql(&format!("INSERT INTO t {ENDLESS} SELECT x FROM c"))]).await?;
        drop(gone);
        other.run("INSERT INTO t VALUES('other')").await?;
        // ... and one that leaves while it waits for its turn.
        let mut holder = cluster.raw("closed").await?;
        holder.run("BEGIN IMMEDIATE").await?;
        let mut gone = cluster.raw("closed").await?;
        gone.send(&[exec_sql("BEGIN IMMEDIATE")]).await?;
        drop(gone);
        holder.run("COMMIT").await?;
        other.run("INSERT INTO t VALUES('other')").await?;
    }
    ensure!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(other.integer("SELECT count(*) FROM t WHERE a <> 'other'").await?, 0);
    assert_eq!(other.integer("SELECT count(*) FROM t").await?, 15);
    Ok(())
}

/// A database that had just been created was taken for one that apply had rewound: writes stopped
/// in *all* databases until leadership was confirmed anew, and open transactions were lost.
#[tokio::test]
async fn creating_databases_disturbs_nobody_elses_transaction() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut open = cluster.raw("undisturbed").await?;
    open.run("CREATE TABLE t(a)").await?;
    for at in 0..20 {
        open.run("BEGIN IMMEDIATE").await?;
        open.run("INSERT INTO t VALUES(1)").await?;
        cluster.raw(&format!("fresh{at}")).await?.run("CREATE TABLE t(a)").await?;
        open.run("COMMIT").await?;
    }
    assert_eq!(open.integer("SELECT count(*) FROM t").await?, 20);
    Ok(())
}

/// A PRAGMA that a connection had prepared before came from its cache of statements, where the
/// guard is not asked: nobody noted that the connection's state had changed, and it went back to
/// the pool as it was, for the next session.
#[tokio::test]
async fn what_a_session_sets_is_its_own() -> Result<()> {
    let cluster = PATIENT.get().await?;
    let mut setup = cluster.raw("pragmas").await?;
    setup.run("CREATE TABLE p(a INTEGER PRIMARY KEY)").await?;
    setup.run("CREATE TABLE c(a REFERENCES p(a))").await?;
    const ON: &str = "PRAGMA foreign_keys";
    for round in 0..4 {
        let mut one = cluster.raw("pragmas").await?;
        one.run("PRAGMA foreign_keys = OFF").await?;
        assert_eq!(one.integer(ON).await?, 0, "round {round}");
        one.run("BEGIN; INSERT INTO c VALUES(7); ROLLBACK").await?;
        assert_eq!(one.integer(ON).await?, 0, "round {round}: it forgot");
        let mut two = cluster.raw("pragmas").await?;
        assert_eq!(two.integer(ON).await?, 1, "round {round}: it is another's");
        two.run("BEGIN").await?;
        let refused = two.exec("INSERT INTO c VALUES(7)").await?.failure();
        assert_eq!(refused, failure(787, "FOREIGN KEY constraint failed"), "round {round}");
        two.run("ROLLBACK").await?;
        two.run("CREATE TEMP TABLE mine(a)").await?;
        two.run("INSERT INTO mine VALUES(1)").await?;
        assert_eq!(two.integer("SELECT count(*) FROM mine").await?, 1);
        let absent = one.query("SELECT count(*) FROM mine").await?.failure();
        assert_eq!(absent, failure(1, "no such table: mine"), "round {round}");
        let changed = two.exec("PRAGMA case_sensitive_like = ON").await?.failure();
        assert_eq!(changed, None, "round {round}");
        drop((one, two));
    }
    Ok(())
}
