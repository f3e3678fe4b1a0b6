//! Requests with ids are executed once: however often they are sent, whoever leads, whatever
//! becomes of their answers.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster_tests::raw::{Raw, Said, exec_sql, query_sql};
use cluster_tests::{Cluster, Options, PATIENCE, Shared, wait_for};
use quire::driver::{self, Client, Dial, DriverError, PlainDial, RequestId, Stream, Value};
use quire::params;
use quire::wire::{Params, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;

static CLUSTER: Shared = Shared::new(|| Options::new(1));

fn id(number: u8) -> Request {
    Request::RequestId { database: 0, id: [number; 16], age_ms: 0 }
}

/// Sends a statement with an id in one write; the answer to the statement.
async fn once(raw: &mut Raw, number: u8, statement: Request) -> Result<Said> {
    raw.send(&[id(number), statement]).await?;
    ensure!(raw.answer().await? == Said::Message(Response::Empty));
    raw.answer().await
}

async fn counters(raw: &mut Raw) -> Result<String> {
    let sql = "SELECT last_insert_rowid() || ' ' || changes() || ' ' || total_changes()";
    match raw.query(sql).await? {
        Said::Rows(rows, _) => match &rows[0][0] {
            Value::Text(text) => Ok(text.to_string()),
            other => anyhow::bail!("{other:?}"),
        },
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test]
async fn statements_with_ids() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("statements").await?;
    raw.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").await?;
    raw.run("INSERT INTO t VALUES(10, 'x')").await?;
    let insert = exec_sql("INSERT INTO t(b) VALUES('y'), ('z')");
    let first = once(&mut raw, 1, insert.clone()).await?;
    let told = Said::Message(Response::Result { last_insert_id: 12, rows_affected: 2 });
    assert_eq!(first, told);
    assert_eq!(counters(&mut raw).await?, "12 2 3", "the bookkeeping is not counted");
    let mut other = cluster.raw("statements").await?;
    assert_eq!(once(&mut other, 1, insert).await?, told, "on another connection");
    assert_eq!(counters(&mut other).await?, "12 2 2", "as if it had run here");
    // Rows are answered again as well.
    let returning = query_sql("UPDATE t SET b = hex(randomblob(8)) RETURNING a, b");
    let rows = once(&mut raw, 2, returning.clone()).await?;
    assert!(matches!(&rows, Said::Rows(rows, _) if rows.len() == 3), "{rows:?}");
    assert_eq!(once(&mut other, 2, returning).await?, rows);
    // A statement that needs a connection of its own, and one within a session that has one.
    let own = exec_sql("INSERT INTO t(a) VALUES(100 + changes())");
    raw.run("UPDATE t SET b = 1 WHERE a = 10").await?;
    for raw in [&mut raw, &mut other] {
        let told = Said::Message(Response::Result { last_insert_id: 101, rows_affected: 1 });
        assert_eq!(once(raw, 3, own.clone()).await?, told);
        raw.run("CREATE TEMP TABLE mine(x)").await?;
    }
    let last = exec_sql("INSERT INTO t(b) VALUES(last_insert_rowid())");
    let told = once(&mut raw, 4, last.clone()).await?;
    assert_eq!(once(&mut other, 4, last).await?, told);
    assert_eq!(raw.integer("SELECT b FROM t WHERE a = 102").await?, 101);
    // A read takes no id, and uses it up.
    assert_eq!(once(&mut raw, 5, query_sql("SELECT count(*) FROM t")).await?.integer(), Some(5));
    raw.run("DELETE FROM t").await?;
    assert_eq!(raw.integer("SELECT count(*) FROM _quire_requests").await?, 4);
    Ok(())
}

#[tokio::test]
async fn what_cannot_carry_an_id_is_refused_and_not_run() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("refused").await?;
    raw.run("CREATE TABLE t(a)").await?;
    for sql in [
        "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)",
        "BEGIN; INSERT INTO t VALUES(1); COMMIT",
        "SAVEPOINT s",
        "VACUUM",
    ] {
        let said = once(&mut raw, 1, exec_sql(sql)).await?;
        let (code, text) = said.failure().with_context(|| format!("{sql}: {said:?}"))?;
        assert!(code == 1 && text.contains("nothing was run"), "{sql}: {text}");
    }
    raw.run("BEGIN").await?;
    let said = once(&mut raw, 1, exec_sql("INSERT INTO t VALUES(1)")).await?;
    assert!(said.failure().is_some_and(|(_, text)| text.contains("open transaction")), "{said:?}");
    raw.run("COMMIT").await?;
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0);
    // An id is used up by the one statement behind it, also where that failed.
    once(&mut raw, 1, exec_sql("INSERT INTO nothing VALUES(1)")).await?;
    raw.run("INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)").await?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%quire%'";
    assert_eq!(raw.integer(tables).await?, 0, "nothing was remembered");
    Ok(())
}

/// A query that was refused before it ran kept its id for whatever came next: a script, which was
/// refused for it, or a statement that was remembered under another one's id.
#[tokio::test]
async fn a_query_that_is_refused_leaves_its_id_to_nobody() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("left").await?;
    raw.run("CREATE TABLE t(a)").await?;
    let unknown = Request::Query { database: 0, statement: 77, params: Params::new([]) };
    let elsewhere = Request::QuerySql {
        database: 5,
        sql: "INSERT INTO t VALUES(0)".into(),
        params: Params::new([]),
    };
    let refused = [
        query_sql("INSERT INTO t VALUES(0); INSERT INTO t VALUES(0)"),
        query_sql(""),
        query_sql("INSERT INTO nothing VALUES(0)"),
        query_sql("SAVEPOINT s"),
        unknown,
        elsewhere,
    ];
    for (number, query) in (1..).zip(refused) {
        let said = once(&mut raw, number, query.clone()).await?;
        ensure!(said.failure().is_some(), "{query:?}: {said:?}");
        raw.run("INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)").await?;
        let written = once(&mut raw, number, exec_sql("DELETE FROM t")).await?;
        let Said::Message(Response::Result { rows_affected, .. }) = written else {
            anyhow::bail!("{query:?}: {written:?}");
        };
        assert_eq!(rows_affected, 2, "{query:?}: another one had used its id");
    }
    Ok(())
}

#[tokio::test]
async fn transactions_with_ids() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("transactions").await?;
    raw.run("CREATE TABLE t(a INTEGER PRIMARY KEY)").await?;
    for begin in ["BEGIN IMMEDIATE", "BEGIN"] {
        let number = begin.len() as u8;
        // Rolled back: it did not happen.
        once(&mut raw, number, exec_sql(begin)).await?;
        raw.run("INSERT INTO t(a) VALUES(NULL); ROLLBACK").await?;
        let begun = once(&mut raw, number, exec_sql(begin)).await?;
        assert!(matches!(begun, Said::Message(Response::Result { .. })), "{begun:?}");
        let (row, _) = raw.run("INSERT INTO t(a) VALUES(NULL)").await?;
        let outcome = Request::Outcome { database: 0, outcome: format!("row {row}").into() };
        assert_eq!(raw.ask(&outcome).await?, Said::Message(Response::Empty));
        assert_eq!(raw.run("COMMIT").await?, (row, 1));
        assert_eq!(counters(&mut raw).await?, format!("{row} 1 {}", row * 2));
        let mut other = cluster.raw("transactions").await?;
        let before = once(&mut other, number, exec_sql(begin)).await?;
        let outcome = format!("row {row}").into();
        let told = Response::AlreadyExecuted { last_insert_id: row, rows_affected: 1, outcome };
        assert_eq!(before, Said::Message(told));
        // Nothing has begun.
        let said = other.exec("COMMIT").await?;
        assert!(said.failure().is_some_and(|(_, text)| text.contains("no transaction")));
    }
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 2);
    // An outcome that is too large keeps the transaction from being committed.
    once(&mut raw, 9, exec_sql("BEGIN IMMEDIATE")).await?;
    raw.run("INSERT INTO t(a) VALUES(NULL)").await?;
    let outcome = vec![7; quire::base::limits::REQUEST_RESULT_BYTES_MAX].into();
    raw.ask(&Request::Outcome { database: 0, outcome }).await?;
    let said = raw.exec("COMMIT").await?;
    assert!(said.failure().is_some_and(|(_, text)| text.contains("not committed")), "{said:?}");
    raw.run("ROLLBACK").await?;
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 2);
    Ok(())
}

/// The same id on two connections at once: one runs, the other waits and gets its answer.
#[tokio::test]
async fn a_repeat_while_the_first_still_runs() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("both").await?;
    raw.run("CREATE TABLE t(a)").await?;
    let slow = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200000) \
                INSERT INTO t SELECT sum(i) FROM n";
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let mut raw = cluster.raw("both").await?;
        tasks.spawn(async move { once(&mut raw, 1, exec_sql(slow)).await });
    }
    while let Some(said) = tasks.join_next().await {
        let told = Response::Result { last_insert_id: 1, rows_affected: 1 };
        assert_eq!(said??, Said::Message(told));
    }
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 1);
    Ok(())
}

/// A first sending was on its way for so long that a repeat, sent after it on another connection, was
/// executed and forgotten before it came; it was executed a second time. What a connection sends is
/// taken to be as old as the last answer on it.
#[tokio::test]
async fn a_first_sending_that_a_repeat_has_overtaken_is_not_run_again() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let (mut late, mut raw) = (cluster.raw("late").await?, cluster.raw("late").await?);
    raw.run("CREATE TABLE t(a)").await?;
    let insert = exec_sql("INSERT INTO t VALUES(1)");
    let again = Request::RequestId { database: 0, id: [1; 16], age_ms: 1 };
    raw.send(&[again, insert.clone()]).await?;
    ensure!(raw.answer().await? == Said::Message(Response::Empty));
    ensure!(raw.answer().await?.failure().is_none());
    // So much that it is forgotten.
    let large = query_sql("INSERT INTO t VALUES(2) RETURNING zeroblob(65000)");
    for number in 0..600_u128 {
        let id = (number << 8 | 2).to_le_bytes();
        raw.send(&[Request::RequestId { database: 0, id, age_ms: 0 }, large.clone()]).await?;
        ensure!(raw.answer().await? == Said::Message(Response::Empty));
        let said = raw.answer().await?;
        ensure!(matches!(said, Said::Rows(..)), "{number}: {said:?}");
    }
    let said = once(&mut late, 1, insert.clone()).await?;
    let (code, text) = said.failure().with_context(|| format!("{said:?}"))?;
    assert!(code == 1101 && text.contains("not executed now"), "{code} {text}");
    assert_eq!(raw.integer("SELECT count(*) FROM t WHERE a = 1").await?, 1);
    // That was its answer: what it sends now is younger.
    let told = once(&mut late, 3, insert).await?;
    assert_eq!(told.failure(), None);
    Ok(())
}

#[tokio::test]
async fn the_shell_does_not_show_the_table_of_requests() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let database = cluster.client()?.database("shown");
    database.execute("CREATE TABLE seen(a)", vec![]).await?;
    let id = cluster.client()?.request_id();
    database.execute_once(&id, "INSERT INTO seen VALUES(1)", vec![]).await?;
    for command in [".tables", ".schema"] {
        let output = cluster.quire(&["sql", "shown", command])?;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.contains("seen") && !shown.contains("_quire"), "{command}: {output:?}");
    }
    Ok(())
}

// ---- leaders move and answers are lost

/// Connections that lose the answer to every so many-th request with an id: the server has
/// executed it by then.
#[derive(Default)]
struct Losing {
    sent: AtomicUsize,
    lost: AtomicUsize,
}

const LOSE_EVERY: usize = 7;

struct LosingDial(Arc<Losing>);

struct LosingStream {
    inner: Box<dyn Stream>,
    losing: Arc<Losing>,
    armed: bool,
}

type Dialled<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

impl Dial for LosingDial {
    fn dial<'a>(&'a self, address: &'a str) -> Dialled<'a> {
        Box::pin(async move {
            let inner = PlainDial.dial(address).await?;
            let stream = LosingStream { inner, losing: self.0.clone(), armed: false };
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

impl AsyncRead for LosingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if self.armed {
            buffer.set_filled(before);
            self.armed = false;
            self.losing.lost.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LosingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        if bytes.get(4) == Some(&quire::wire::request::kind::REQUEST_ID) {
            let sent = self.losing.sent.fetch_add(1, Ordering::Relaxed);
            self.armed = sent % LOSE_EVERY == LOSE_EVERY - 1;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// How often the leader moves. (A variable that a node took for one of its own keys stopped it.)
fn moves() -> usize {
    let asked = std::env::var("QUIRE_TEST_MOVES").ok().and_then(|count| count.parse().ok());
    let long = std::env::var_os("QUIRE_LONG").is_some();
    asked.unwrap_or(if long { 1000 } else { 50 })
}

const WRITERS: i64 = 6;

/// How many requests are acknowledged between two moves at least.
const BETWEEN_MOVES: usize = 6;

const COUNT: &str = "INSERT INTO done VALUES(?, 1) ON CONFLICT(id) DO UPDATE SET n = n + 1";

/// What one request does.
#[derive(Clone, Copy)]
enum Kind {
    Statement,
    Returning,
    /// A transaction of two rows.
    Transaction,
}

/// A request, which counts in its own rows how often it is executed.
struct Counted {
    kind: Kind,
    row: i64,
    id: RequestId,
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    /// Calls that nobody knew the outcome of, made once more with the same id.
    unknown: AtomicUsize,
    /// Calls made once more after they were acknowledged.
    late: AtomicUsize,
}

impl Counted {
    fn rows(&self) -> Vec<i64> {
        match self.kind {
            Kind::Statement | Kind::Returning => vec![self.row],
            Kind::Transaction => vec![self.row, self.row + 1],
        }
    }

    /// Makes the call again and again until it is acknowledged, with the right answer.
    async fn run(&self, database: &driver::Database, load: &Load) -> Result<()> {
        loop {
            match self.call(database).await {
                Ok(()) => return Ok(()),
                Err(DriverError::OutcomeUnknown { .. }) => {
                    load.unknown.fetch_add(1, Ordering::Relaxed);
                }
                Err(
                    DriverError::NoLeader { .. }
                    | DriverError::TimedOut(_)
                    | DriverError::TransactionLost { .. },
                ) => {}
                Err(error) if error.is_busy() => {}
                Err(error) => return Err(error).with_context(|| format!("request {}", self.row)),
            }
        }
    }

    async fn call(&self, database: &driver::Database) -> Result<(), DriverError> {
        let Counted { kind, row, ref id } = *self;
        match kind {
            Kind::Statement => {
                let told = database.execute_once(id, COUNT, params![row]).await?;
                assert_eq!((told.last_insert_id, told.rows_affected), (row, 1));
            }
            Kind::Returning => {
                let sql = format!("{COUNT} RETURNING id, n");
                let told = database.query_once(id, &sql, params![row]).await?;
                assert_eq!(told.rows, [[row, 1].map(Value::Integer)]);
            }
            Kind::Transaction => {
                let work = |mut transaction: driver::Transaction| async move {
                    transaction.execute(COUNT, params![row]).await?;
                    transaction.execute(COUNT, params![row + 1]).await?;
                    Ok::<_, DriverError>(row.to_le_bytes().to_vec())
                };
                let outcome = database.transaction_once(id, work).await?;
                assert_eq!(outcome, row.to_le_bytes(), "the outcome of another transaction");
            }
        }
        Ok(())
    }
}

/// Runs one request after the other, each under an id of its own, and every so many-th once more
/// when others were between; the rows of all.
async fn count(client: Client, load: Arc<Load>, writer: i64) -> Result<Vec<i64>> {
    // Short, so that calls to a leader that is paused are made again while it still is.
    let database = client.database("once").timeout(Duration::from_secs(2));
    let kind = match writer % 3 {
        0 => Kind::Statement,
        1 => Kind::Returning,
        _ => Kind::Transaction,
    };
    let mut requests = Vec::new();
    let mut kept: Option<Counted> = None;
    for number in 0.. {
        if load.stop.load(Ordering::Acquire) {
            break;
        }
        let row = writer * 1_000_000 + number * 2;
        let counted = Counted { kind, row, id: client.request_id() };
        counted.run(&database, &load).await?;
        requests.extend(counted.rows());
        load.acknowledged.fetch_add(1, Ordering::Release);
        if number % 10 == 0
            && let Some(earlier) = kept.replace(counted)
        {
            earlier.run(&database, &load).await?;
            load.late.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(requests)
}

/// How the leader is made to leave.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    /// It hands over to another.
    Transfer,
    /// It is killed, and started again when another leads.
    Kill,
    /// It is paused, and goes on when another leads and has executed requests that were sent to
    /// the paused one as well.
    Pause,
}

impl Move {
    fn number(number: usize) -> Move {
        match number % 20 {
            9 => Move::Kill,
            19 => Move::Pause,
            _ => Move::Transfer,
        }
    }

    /// Makes the leader leave; it has when this returns.
    async fn make(self, cluster: &mut Cluster, load: &Load) -> Result<()> {
        let old = cluster.wait_for_leader().await?;
        match self {
            Move::Transfer => hand_over(cluster, old).await?,
            Move::Kill => {
                cluster.kill(old)?;
                cluster.wait_for_leader().await?;
                cluster.restart(old)?;
            }
            Move::Pause => {
                cluster.pause(old)?;
                cluster.wait_for_leader().await?;
                more_acknowledged(load, BETWEEN_MOVES).await?;
                cluster.resume(old)?;
            }
        }
        Ok(())
    }
}

/// Hands leadership to the voter behind `old`.
async fn hand_over(cluster: &Cluster, old: usize) -> Result<()> {
    let to = u64::try_from(old % 3 + 1)?;
    let at = cluster.client()?.at(cluster.address(old))?;
    wait_for("leadership to be handed over", async || {
        match at.transfer(Some(to)).await {
            // Not yet: that voter is still behind, after a restart.
            Err(DriverError::Sqlite { .. }) => {}
            // It leads no more, so it has moved already.
            Ok(()) | Err(DriverError::Member { .. } | DriverError::OutcomeUnknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(cluster.leader().await.filter(|leader| *leader != old).map(drop))
    })
    .await
}

async fn more_acknowledged(load: &Load, count: usize) -> Result<()> {
    let before = load.acknowledged.load(Ordering::Acquire);
    wait_for("requests to be acknowledged", async || {
        let now = load.acknowledged.load(Ordering::Acquire);
        Ok((now >= before + count).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_executed_once_while_leaders_move() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let losing = Arc::new(Losing::default());
    let dial = Arc::new(LosingDial(losing.clone()));
    let options = driver::Options { dial, ..driver::Options::default() };
    let client = Client::new(cluster.addresses(), options)?;
    let create = "CREATE TABLE done(id INTEGER PRIMARY KEY, n INTEGER)";
    cluster.client()?.database("once").execute(create, vec![]).await?;
    let load = Arc::new(Load::default());
    let mut writers = JoinSet::new();
    for writer in 1..=WRITERS {
        writers.spawn(count(client.clone(), load.clone(), writer));
    }
    let started = Instant::now();
    for number in 0..moves() {
        let made = Move::number(number);
        let (before, at) = (load.acknowledged.load(Ordering::Acquire), Instant::now());
        more_acknowledged(&load, BETWEEN_MOVES).await?;
        let waited = at.elapsed();
        made.make(&mut cluster, &load).await.with_context(|| format!("{made:?} {number}"))?;
        let acknowledged = load.acknowledged.load(Ordering::Acquire) - before;
        let took = at.elapsed() - waited;
        println!("{number} {made:?}: {acknowledged} acknowledged, {waited:?} before, {took:?}");
    }
    load.stop.store(true, Ordering::Release);
    let mut requests = Vec::new();
    let all = async {
        while let Some(writer) = writers.join_next().await {
            requests.extend(writer??);
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(PATIENCE * 2, all).await.context("the writers do not end")??;
    let [lost, unknown, late, acknowledged] =
        [&losing.lost, &load.unknown, &load.late, &load.acknowledged]
            .map(|count| count.load(Ordering::Relaxed));
    println!(
        "{} moves in {:?}; {acknowledged} requests; {lost} answers lost, {unknown} calls that \
         nobody knew the outcome of, {late} late repeats",
        moves(),
        started.elapsed(),
    );
    let sql = "SELECT count(*), sum(n), max(n), sum(id) FROM done";
    let rows = cluster.client()?.database("once").query(sql, vec![]).await?.rows;
    let expected = i64::try_from(requests.len())?;
    let sum: i64 = requests.iter().sum();
    assert_eq!(rows[0][..], [expected, expected, 1, sum].map(Value::Integer), "{rows:?}");
    ensure!(lost > 0 && late > 0, "no request was ever sent twice");
    wait_for("all members to have the same", async || {
        let digest = cluster.quire(&["digest", "once", "--deep"])?;
        Ok(digest.status.success().then_some(()))
    })
    .await
}

/// The driver's own ids: with the option, an ordinary call survives what else nobody could know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_ids_of_its_own_the_driver_repeats_writes() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let losing = Arc::new(Losing::default());
    let dial = Arc::new(LosingDial(losing.clone()));
    let call_timeout = Duration::from_secs(60);
    let options =
        driver::Options { dial, call_timeout, request_ids: true, ..driver::Options::default() };
    let database = Client::new(cluster.addresses(), options)?.database("own");
    database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY)", vec![]).await?;
    for row in 1..=50 {
        let result = database.execute("INSERT INTO t(a) VALUES(NULL)", vec![]).await?;
        assert_eq!((result.last_insert_id, result.rows_affected), (row, 1));
    }
    let rows = database.query("DELETE FROM t WHERE a <= 9 RETURNING a", vec![]).await?.rows;
    assert_eq!(rows.len(), 9);
    assert!(losing.lost.load(Ordering::Relaxed) >= 50 / LOSE_EVERY);
    Ok(())
}
