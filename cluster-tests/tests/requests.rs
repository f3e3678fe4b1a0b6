//! What a connection may name and what it may not, request by request, over the raw protocol: its
//! own database, its own statements, and nothing else; and where one request ends and the next
//! begins.

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{INTERRUPT, Raw, Said, add_rows, exec_sql, query_sql};
use cluster_tests::{Cluster, Options, Shared};
use quire::wire::{End, Handshake, Params, Request, Response, Value};

static CLUSTER: Shared = Shared::new(|| Options::new(3));

fn prepare(sql: &str, tail: bool) -> Request {
    Request::Prepare { database: 0, sql: sql.into(), tail }
}

async fn prepared(raw: &mut Raw, sql: &str) -> Result<u32> {
    match raw.ask(&prepare(sql, false)).await? {
        Said::Message(Response::Stmt { statement, .. }) => Ok(statement),
        other => anyhow::bail!("{sql}: {other:?}"),
    }
}

fn exec(statement: u32) -> Request {
    Request::Exec { database: 0, statement, params: Params::new([]) }
}

fn query(statement: u32) -> Request {
    Request::Query { database: 0, statement, params: Params::new([]) }
}

fn finalize(statement: u32) -> Request {
    Request::Finalize { database: 0, statement }
}

fn none(text: &str) -> Option<(u64, String)> {
    Some((12, text.to_owned()))
}

const NO_DATABASE: &str = "no database opened";
const NO_STATEMENT: &str = "no statement with the given id";

/// Another database's id was taken for the connection's own: a client that had mixed two up wrote to
/// the wrong one.
#[tokio::test]
async fn a_database_id_that_is_not_the_connections_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("ids").await?;
    raw.run("CREATE TABLE t(a)").await?;
    let statement = prepared(&mut raw, "INSERT INTO t VALUES(1)").await?;
    let params = || Params::new([]);
    let insert = || "INSERT INTO t VALUES(2)".into();
    for id in [1, 7, u32::MAX] {
        let wide = u64::from(id);
        for request in [
            Request::Prepare { database: wide, sql: insert(), tail: false },
            Request::Exec { database: id, statement, params: params() },
            Request::Query { database: id, statement, params: params() },
            Request::Finalize { database: id, statement },
            Request::ExecSql { database: wide, sql: insert(), params: params() },
            Request::QuerySql { database: 1 << 40 | wide, sql: insert(), params: params() },
        ] {
            assert_eq!(raw.ask(&request).await?.failure(), none(NO_DATABASE), "{request:?}");
        }
        // Nothing runs, whatever is named.
        let interrupt = Request::Interrupt { database: wide };
        assert_eq!(raw.ask(&interrupt).await?, Said::Message(Response::Empty));
    }
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 0);
    assert_eq!(prepared(&mut raw, "SELECT 1").await?, 1, "the first statement is still there");
    Ok(())
}

#[tokio::test]
async fn statements_belong_to_their_connection() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let (mut one, mut two) = (cluster.raw("own").await?, cluster.raw("own").await?);
    one.run("CREATE TABLE t(a)").await?;
    // The lowest free id is the next one's.
    for expected in 0..3 {
        assert_eq!(prepared(&mut one, "INSERT INTO t VALUES(1)").await?, expected);
    }
    for statement in 0..3 {
        for request in [exec(statement), query(statement), finalize(statement)] {
            assert_eq!(two.ask(&request).await?.failure(), none(NO_STATEMENT), "{request:?}");
        }
    }
    assert_eq!(one.ask(&finalize(1)).await?, Said::Message(Response::Empty));
    for request in [exec(1), query(1), finalize(1), exec(3), exec(u32::MAX)] {
        assert_eq!(one.ask(&request).await?.failure(), none(NO_STATEMENT), "{request:?}");
    }
    assert_eq!(prepared(&mut one, "SELECT 5").await?, 1);
    assert_eq!(one.ask(&query(1)).await?.integer(), Some(5));
    assert_eq!(two.integer("SELECT count(*) FROM t").await?, 0);
    Ok(())
}

/// Whatever needs a database says so, in this order: leader, database, statement.
#[tokio::test]
async fn without_a_database_each_request_says_so_and_a_follower_says_who_it_is_not() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let leader = cluster.wait_for_leader().await?;
    let requests = || {
        [prepare("SELECT 1", false), exec(0), query(0), exec_sql("SELECT 1"), query_sql("SELECT 1")]
    };
    let mut raw = Raw::connect(cluster.address(leader)).await?;
    for request in requests() {
        assert_eq!(raw.ask(&request).await?.failure(), none(NO_DATABASE), "{request:?}");
    }
    assert_eq!(raw.ask(&finalize(0)).await?.failure(), none(NO_DATABASE));
    let follower = if leader == 1 { 2 } else { 1 };
    let mut raw = Raw::connect(cluster.address(follower)).await?;
    let open = Request::Open { name: "x".into(), flags: 0, vfs: "".into() };
    for request in requests().into_iter().chain([open]) {
        let failure = raw.ask(&request).await?.failure();
        assert_eq!(failure, Some((10250, "not leader".to_owned())), "{request:?}");
    }
    assert_eq!(raw.ask(&finalize(0)).await?.failure(), none(NO_DATABASE));
    ensure!(matches!(raw.ask(&Request::Leader).await?, Said::Message(Response::Node { .. })));
    Ok(())
}

/// One connection could keep 4,096 texts of 16 MB each in the node's memory.
#[tokio::test]
async fn the_texts_of_prepared_statements_have_a_bound() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("long").await?;
    let long = format!("SELECT length('{}')", "x".repeat(15 << 20));
    for expected in 0..2 {
        assert_eq!(prepared(&mut raw, &long).await?, expected);
    }
    let (code, text) = raw.ask(&prepare(&long, false)).await?.failure().context("a third")?;
    assert!(code == 1 && text.contains("finalize those"), "{code} {text}");
    // What is refused takes nothing away; what is finalized makes room.
    assert_eq!(raw.ask(&query(1)).await?.integer(), Some(15 << 20));
    assert_eq!(prepared(&mut raw, "SELECT 3").await?, 2);
    assert_eq!(raw.ask(&finalize(0)).await?, Said::Message(Response::Empty));
    assert_eq!(prepared(&mut raw, &long).await?, 0);
    assert_eq!(raw.ask(&query(2)).await?.integer(), Some(3));
    Ok(())
}

#[tokio::test]
async fn the_tail_of_a_text_is_counted_in_its_bytes() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("tails").await?;
    for (sql, rest) in [
        ("SELECT 1", ""),
        ("SELECT 1;", ""),
        ("SELECT 1; SELECT 2", " SELECT 2"),
        ("  -- first\n SELECT 'ä;ö'; /* then */ SELECT 2;", " /* then */ SELECT 2;"),
        ("SELECT 1;;;", ";;"),
    ] {
        match raw.ask(&prepare(sql, true)).await? {
            Said::Message(Response::Stmt { tail: Some(tail), .. }) => {
                assert_eq!(&sql[usize::try_from(tail)?..], rest, "{sql}");
            }
            other => anyhow::bail!("{sql}: {other:?}"),
        }
    }
    let tail = Some((1, "nonempty statement tail".to_owned()));
    for sql in ["SELECT 1; SELECT 2", "SELECT 1; x"] {
        assert_eq!(raw.ask(&prepare(sql, false)).await?.failure(), tail, "{sql}");
        assert_eq!(raw.ask(&query_sql(sql)).await?.failure(), tail, "{sql}");
    }
    let empty = Some((0, "empty statement".to_owned()));
    for sql in ["", " ", ";", "-- nothing", "/* nothing */ ;;"] {
        for request in [prepare(sql, false), prepare(sql, true), query_sql(sql)] {
            assert_eq!(raw.ask(&request).await?.failure(), empty, "{request:?}");
        }
        raw.run(sql).await?;
    }
    Ok(())
}

/// NUL ends a text, bytes that are no UTF-8 pass as values and not as SQL.
#[tokio::test]
async fn texts_are_bytes_and_statements_are_utf8() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("texts").await?;
    let sql = || b"SELECT '\xFF\xFE'"[..].into();
    let refused = Some((1, "the statement is not UTF-8".to_owned()));
    for request in [
        Request::ExecSql { database: 0, sql: sql(), params: Params::new([]) },
        Request::QuerySql { database: 0, sql: sql(), params: Params::new([]) },
        Request::Prepare { database: 0, sql: sql(), tail: false },
    ] {
        assert_eq!(raw.ask(&request).await?.failure(), refused, "{request:?}");
    }
    let odd = Value::Text(b"\xFF\xFE"[..].into());
    let params = Params::new([odd.as_ref()]);
    let request = Request::QuerySql { database: 0, sql: "SELECT ?, hex(?1)".into(), params };
    let Said::Rows(rows, _) = raw.ask(&request).await? else { anyhow::bail!("no rows") };
    assert_eq!(rows, [[odd, Value::from("FFFE")]]);
    Ok(())
}

/// A client sent two queries and then an Interrupt: it ended the first of them too, which was then
/// never answered.
#[tokio::test]
async fn an_interrupt_means_the_request_right_before_it() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("interrupts").await?;
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                   SELECT max(i) FROM n";
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) \
                SELECT count(*) FROM n";
    raw.send(&[query_sql(slow), query_sql(endless), INTERRUPT, query_sql("SELECT 7")]).await?;
    assert_eq!(raw.answer().await?.integer(), Some(300_000));
    assert_eq!(raw.answer().await?, Said::Message(Response::Empty), "one for both");
    assert_eq!(raw.answer().await?.integer(), Some(7));
    // Nothing runs: one Empty each.
    raw.send(&[INTERRUPT, INTERRUPT, query_sql("SELECT 8")]).await?;
    assert_eq!(raw.answer().await?, Said::Message(Response::Empty));
    assert_eq!(raw.answer().await?, Said::Message(Response::Empty));
    assert_eq!(raw.answer().await?.integer(), Some(8));
    Ok(())
}

/// dqlite's nodes open their conversation with Connect; here it is refused, and the connection stays
/// a client's.
#[tokio::test]
async fn connect_is_refused() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let mut raw = cluster.raw("connect").await?;
    let request = Request::Connect { id: 9, address: "127.0.0.1:1".into() };
    let failure = raw.ask(&request).await?.failure();
    assert_eq!(failure, Some((1005, "unrecognized request type".to_owned())));
    assert_eq!(raw.integer("SELECT 1").await?, 1);
    Ok(())
}

/// What a connection had is gone with the leadership: Finalize, which a follower answers, says so;
/// it said Empty. The rest says that the node does not lead.
#[tokio::test]
async fn statements_are_gone_when_leadership_was_lost() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let mut raw = cluster.raw("lost").await?;
    raw.run("CREATE TABLE t(a)").await?;
    prepared(&mut raw, "SELECT 1").await?;
    cluster.pause(leader)?;
    cluster.wait_for_leader().await?;
    cluster.resume(leader)?;
    cluster_tests::wait_for("the old leader to follow", async || {
        let mut probe = Raw::connect(cluster.address(leader)).await?;
        let failure = probe.ask(&query_sql("SELECT 1")).await?.failure();
        Ok(failure.filter(|(code, _)| *code == 10250))
    })
    .await?;
    assert_eq!(raw.ask(&finalize(0)).await?.failure(), none(NO_DATABASE));
    let failure = raw.ask(&query_sql("SELECT 1")).await?.failure().context("it answers")?;
    assert_eq!(failure, (10250, "not leader".to_owned()));
    Ok(())
}

/// The first statement of a script was applied, then the leadership was lost, and a later statement
/// could not run. "Not leader" was the answer, which says that nothing was executed: clients sent the
/// script once more, and its first statement was executed twice.
#[tokio::test]
async fn leadership_that_is_lost_within_a_script_leaves_its_outcome_open() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let (mut raw, mut other) = (cluster.raw("script").await?, cluster.raw("script").await?);
    raw.run("CREATE TABLE t(a)").await?;
    let script = "INSERT INTO t VALUES(1); \
                  INSERT INTO t SELECT x FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL \
                  SELECT i + 1 FROM n WHERE i < 20000000) SELECT max(i) AS x FROM n) WHERE x < 0; \
                  INSERT INTO t VALUES(2)";
    raw.send(&[exec_sql(script)]).await?;
    cluster_tests::wait_for("the first statement to be applied", async || {
        Ok((other.integer("SELECT count(*) FROM t").await? == 1).then_some(()))
    })
    .await?;
    cluster.pause(leader)?;
    cluster.wait_for_leader().await?;
    cluster.resume(leader)?;
    let failure = raw.answer().await?.failure().context("it was executed")?;
    assert_eq!(failure, (10506, "leadership lost".to_owned()));
    let mut raw = cluster.raw("script").await?;
    assert_eq!(raw.integer("SELECT count(*) FROM t").await?, 1);
    // Where nothing was executed, it is said.
    let mut old = Raw::connect(cluster.address(leader)).await?;
    let failure = old.ask(&exec_sql(script)).await?.failure();
    assert_eq!(failure, Some((10250, "not leader".to_owned())));
    Ok(())
}

/// A client whose node lost the leadership and won it again on the same connection begins anew: no
/// database is open, and what it prepares is numbered from 0.
#[tokio::test]
async fn leadership_that_comes_back_finds_an_empty_connection() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let other = cluster.running().into_iter().find(|id| *id != leader).context("a follower")?;
    let mut raw = cluster.raw("regained").await?;
    raw.run("CREATE TABLE t(a)").await?;
    for expected in 0..2 {
        assert_eq!(prepared(&mut raw, "INSERT INTO t VALUES(1)").await?, expected);
    }
    raw.run("BEGIN").await?;
    raw.run("INSERT INTO t VALUES(2)").await?;
    for (at, to) in [(leader, other), (other, leader)] {
        cluster_tests::wait_for("the leadership to move", async || {
            let request = Request::Transfer { id: u64::try_from(to)? };
            let said = Raw::connect(cluster.address(at)).await?.ask(&request).await?;
            Ok((said == Said::Message(Response::Empty)).then_some(()))
        })
        .await?;
    }
    for request in [exec(0), query(1), finalize(0), exec_sql("COMMIT"), prepare("SELECT 1", false)]
    {
        assert_eq!(raw.ask(&request).await?.failure(), none(NO_DATABASE), "{request:?}");
    }
    let open = Request::Open { name: "regained".into(), flags: 0, vfs: "".into() };
    assert_eq!(raw.ask(&open).await?, Said::Message(Response::Db { id: 0 }));
    assert_eq!(raw.ask(&exec(0)).await?.failure(), none(NO_STATEMENT));
    assert_eq!(prepared(&mut raw, "SELECT count(*) FROM t").await?, 0);
    assert_eq!(raw.ask(&query(0)).await?.integer(), Some(0), "the transaction was rolled back");
    raw.run("INSERT INTO t VALUES(3)").await?;
    Ok(())
}

/// Neither changes anything when the number is none that is known, on whatever node; and a weight
/// is any number.
#[tokio::test]
async fn formats_that_are_not_known_are_refused_everywhere() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    for id in cluster.running() {
        let mut raw = Raw::connect(cluster.address(id)).await?;
        for format in [2, u64::MAX] {
            let failure = raw.ask(&Request::Cluster { format }).await?.failure();
            assert_eq!(failure, Some((1005, "unrecognized cluster format".to_owned())));
            let failure = raw.ask(&Request::Describe { format }).await?.failure();
            assert_eq!(failure, Some((15, "bad format version".to_owned())));
        }
        for weight in [u64::MAX, 0] {
            assert_eq!(raw.ask(&Request::Weight { weight }).await?, Said::Message(Response::Empty));
            let Said::Message(Response::Metadata { weight: kept, .. }) =
                raw.ask(&Request::Describe { format: 0 }).await?
            else {
                anyhow::bail!("no metadata")
            };
            assert_eq!(kept, weight);
        }
    }
    Ok(())
}

/// The older handshake differs in one answer only.
#[tokio::test]
async fn the_older_handshake_is_served() -> Result<()> {
    let cluster = CLUSTER.get().await?;
    let leader = cluster.wait_for_leader().await?;
    let mut raw = Raw::dial(cluster.address(leader)).await?;
    raw.send_bytes(&Handshake::Legacy.bytes()).await?;
    raw.send(&[Request::Leader]).await?;
    let frame = raw.frame().await?.context("an answer")?;
    ensure!(frame.header.kind == 1 && frame.body.starts_with(cluster.address(leader).as_bytes()));
    let open = Request::Open { name: "legacy".into(), flags: 0, vfs: "".into() };
    ensure!(matches!(raw.ask(&open).await?, Said::Message(Response::Db { id: 0 })));
    assert_eq!(raw.integer("SELECT 4").await?, 4);
    Ok(())
}

/// A transaction's rows that leave in parts told SQLite's own 10 where the leadership was lost before
/// the first of them: the client did not look for another leader. Of a result that was on its way
/// already the end may be told as well; whatever is told is never a bare 10.
#[tokio::test]
async fn rows_in_parts_say_not_leader_when_leadership_is_lost() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let leader = cluster.wait_for_leader().await?;
    let followers: Vec<usize> = cluster.running().into_iter().filter(|id| *id != leader).collect();
    let mut writer = cluster.raw("parts").await?;
    writer.run("CREATE TABLE t(a)").await?;
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) \
                INSERT INTO t SELECT randomblob(1000) FROM n";
    writer.run(rows).await?;
    let (mut early, mut late) = (cluster.raw("parts").await?, cluster.raw("parts").await?);
    for raw in [&mut early, &mut late] {
        raw.run("BEGIN").await?;
    }
    // Its first rows have come; the rest waits for its client.
    early.send(&[query_sql("SELECT a FROM t")]).await?;
    ensure!(matches!(early.response().await?, Response::Rows(_)));
    for id in &followers {
        cluster.pause(*id)?;
    }
    // Nobody confirms any more that this node leads, nor what it executes now.
    writer.send(&[exec_sql("INSERT INTO t VALUES(1)")]).await?;
    late.send(&[query_sql("SELECT a FROM t")]).await?;
    cluster.pause(leader)?;
    for id in &followers {
        cluster.resume(*id)?;
    }
    cluster.wait_for_leader().await?;
    cluster.resume(leader)?;
    assert_eq!(late.answer().await?.failure(), Some((10250, "not leader".to_owned())));
    loop {
        let Some(frame) = early.frame().await? else { break };
        match Response::decode(&frame)? {
            Response::Rows(body) if add_rows(&body, &mut Vec::new())? == End::Done => break,
            Response::Rows(_) => {}
            Response::Failure { code, message } => {
                assert_eq!((code, message.to_string()), (10250, "not leader".to_owned()));
                break;
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(())
}
