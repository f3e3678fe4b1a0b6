//! The driver against fake servers: leaders that move, connections that break at every point, and
//! what may and may not be repeated.

mod calls;
mod cluster;
mod fake;
mod once;
mod transactions;

use std::time::{Duration, Instant};

use super::*;
use crate::base::Fate;
use crate::params;
use crate::wire::request::{HELLO_FOLLOWER_READS, kind};
use crate::wire::{EXTENSION_VERSION, Response, code};
use fake::{Fake, Reply, counted};

fn options() -> Options {
    Options {
        call_timeout: Duration::from_secs(5),
        dial_timeout: Duration::from_millis(500),
        probe_timeout: Duration::from_millis(500),
        connections_max: 4,
        ..Options::default()
    }
}

fn client(fakes: &[&Fake]) -> Client {
    Client::new(fakes.iter().map(|fake| fake.address.clone()), options()).unwrap()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_follower_names_the_leader() {
    let (leader, follower) = (Fake::tcp().await, Fake::tcp().await);
    follower.follow(&leader.address);
    let client = client(&[&follower]);
    let result = client.database("db").execute("INSERT INTO t VALUES(?)", params![1]).await;
    assert_eq!(result, Ok(ExecResult { last_insert_id: 7, rows_affected: 1 }));
    assert_eq!(client.leader().await.unwrap().address, leader.address);
    assert_eq!(follower.log(), []);
    let rows = client.database("db").query("SELECT n", vec![]).await.unwrap();
    assert_eq!(rows, Rows { columns: vec!["n".to_owned()], rows: counted(1) });
    // One connection for the search, one for all calls.
    assert_eq!(leader.accepted(), 2);
}

#[tokio::test]
async fn not_leader_is_tried_again_on_the_next_leader() {
    let (old, new) = (Fake::tcp().await, Fake::tcp().await);
    new.follow(&old.address);
    let client = client(&[&old, &new]);
    let db = client.database("db");
    db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    old.follow(&new.address);
    new.follow(&new.address);
    old.fail_next(kind::EXEC_SQL, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    db.execute("INSERT INTO t VALUES(2)", vec![]).await.unwrap();
    assert_eq!(old.sql(), ["INSERT INTO t VALUES(1)", "INSERT INTO t VALUES(2)"]);
    assert_eq!(new.sql(), ["INSERT INTO t VALUES(2)"]);
}

#[tokio::test]
async fn a_database_that_the_server_dropped_is_opened_again() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    fake.fail_next(kind::EXEC_SQL, code::NOTFOUND, code::NO_DATABASE);
    db.execute("INSERT INTO t VALUES(2)", vec![]).await.unwrap();
    assert_eq!(fake.count(kind::OPEN), 2);
}

#[tokio::test]
async fn a_write_without_an_answer_is_never_repeated() {
    let lost = Response::failure(code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_TEXT);
    let half = Response::Result { last_insert_id: 1, rows_affected: 1 };
    for reply in [Reply::Close, Reply::Half(half), Reply::One(lost), Reply::Hang] {
        let fake = Fake::tcp().await;
        let db = client(&[&fake]).database("db").timeout(Duration::from_secs(1));
        fake.next(kind::EXEC_SQL, reply.clone());
        let error = db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap_err();
        assert!(matches!(error, DriverError::OutcomeUnknown { .. }), "{reply:?}: {error}");
        assert_eq!(error.fate(), Fate::OutcomeUnknown);
        assert_eq!(fake.count(kind::EXEC_SQL), 1);
        // The next call asks anew who leads and goes on.
        db.execute("INSERT INTO t VALUES(2)", vec![]).await.unwrap();
        assert_eq!(fake.count(kind::LEADER), 2);
        // A query that writes is a write.
        fake.next(kind::QUERY_SQL, reply.clone());
        let error = db.query("INSERT INTO t VALUES(1) RETURNING a", vec![]).await.unwrap_err();
        assert_eq!(error.fate(), Fate::OutcomeUnknown);
        assert_eq!(fake.count(kind::QUERY_SQL), 1);
    }
}

#[tokio::test]
async fn a_read_is_repeated_whatever_happened_to_it() {
    let lost = Response::failure(code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_TEXT);
    for reply in [Reply::Close, Reply::Half(Response::Empty), Reply::One(lost)] {
        let fake = Fake::tcp().await;
        let db = client(&[&fake]).database("db");
        fake.next(kind::QUERY_SQL, reply);
        let rows = db.query("SELECT n FROM t", vec![]).await.unwrap();
        assert_eq!(rows.rows, counted(1));
        assert_eq!(fake.count(kind::QUERY_SQL), 2);
    }
}

#[tokio::test]
async fn what_was_not_sent_yet_is_repeated() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    for kind in [kind::OPEN, kind::PREPARE] {
        fake.next(kind, Reply::Close);
        fake.fail_next(kind, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    }
    let statement = db.prepare("INSERT INTO t VALUES(?)").await.unwrap();
    statement.execute(params![1]).await.unwrap();
    assert_eq!(fake.count(kind::EXEC), 1);
}

#[tokio::test]
async fn errors_of_sqlite_are_told_at_once() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    fake.fail_next(kind::EXEC_SQL, code::BUSY, code::LOCKED);
    let error = db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap_err();
    assert!(error.is_busy());
    assert_eq!(error.fate(), Fate::RetryHere);
    fake.fail_next(kind::QUERY_SQL, 1, "no such table: t");
    let error = db.query("SELECT * FROM t", vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "no such table: t");
    assert_eq!(error.fate(), Fate::Reject);
    assert_eq!(fake.log().len(), 3);
    assert_eq!(fake.accepted(), 2);
}

#[tokio::test]
async fn a_script_that_met_a_change_of_leader_has_an_unknown_outcome() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    fake.fail_next(kind::EXEC_SQL, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    let script = "INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)";
    let error = db.execute_batch(script).await.unwrap_err();
    assert_eq!(error.fate(), Fate::OutcomeUnknown);
    assert_eq!(fake.sql(), [script]);
    // A script with a transaction in it costs its connection, whatever happened.
    let before = fake.accepted();
    db.execute_batch("BEGIN; INSERT INTO t VALUES(1); COMMIT").await.unwrap();
    db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    assert_eq!(fake.accepted(), before + 3, "a search and two connections");
}

#[tokio::test]
async fn calls_that_cannot_be_right_are_refused_here() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    for sql in ["BEGIN", " commit", "SAVEPOINT a"] {
        assert_eq!(db.execute(sql, vec![]).await.unwrap_err().fate(), Fate::Reject);
        assert_eq!(db.query(sql, vec![]).await.unwrap_err().fate(), Fate::Reject);
    }
    for error in [
        db.execute("SELECT ?", params!["a\0b"]).await.unwrap_err(),
        db.execute("SELECT '\0'", vec![]).await.unwrap_err(),
        db.execute("SELECT ?", params![vec![0_u8; 64 << 20]]).await.unwrap_err(),
    ] {
        assert!(matches!(error, DriverError::Invalid(_)), "{error}");
    }
    assert_eq!(fake.log(), []);
    assert!(Client::new(Vec::<String>::new(), options()).is_err());
    assert!(Client::new(["nowhere"], options()).is_err());
}

#[tokio::test]
async fn one_search_serves_all_callers() {
    let (leader, follower) = (Fake::tcp().await, Fake::tcp().await);
    follower.follow(&leader.address);
    let client = client(&[&follower, &leader]);
    let calls = (0..50).map(|n| {
        let db = client.database("db");
        tokio::spawn(async move { db.execute("INSERT INTO t VALUES(?)", params![n]).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(leader.count(kind::EXEC_SQL), 50);
    assert_eq!(leader.count(kind::LEADER), 1);
    assert!(follower.count(kind::LEADER) <= 1);
    // The pool's bound, and the connection of the search.
    assert!(leader.accepted() <= 4 + 1, "{}", leader.accepted());
}

#[tokio::test]
async fn without_a_leader_the_error_says_who_did_what() {
    let (none, follower) = (Fake::tcp().await, Fake::tcp().await);
    let silent = Fake::tcp().await;
    let gone = Fake::tcp().await.stop().await;
    none.follow("");
    follower.follow(&gone);
    for _ in 0..100 {
        silent.next(kind::LEADER, Reply::Hang);
    }
    let addresses = [&none.address, &follower.address, &silent.address];
    let client = Client::new(addresses.map(String::clone), options()).unwrap();
    let began = Instant::now();
    let db = client.database("db").timeout(Duration::from_secs(2));
    let error = db.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(4));
    assert_eq!(error.fate(), Fate::RetryElsewhere);
    let text = error.to_string();
    for part in [
        "no leader: 2 of 4 addresses answer".to_owned(),
        none.address.clone(),
        follower.address.clone(),
        format!("{} did not answer in 500 ms", silent.address),
        format!("{gone} refused the connection"),
    ] {
        assert!(text.contains(&part), "{text}\nlacks {part}");
    }
    // A leader that comes later is found within the deadline.
    let db = client.database("db");
    let call = tokio::spawn(async move { db.execute("INSERT INTO t VALUES(1)", vec![]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    none.follow(&none.address);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn rows_come_in_parts() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    fake.next(kind::QUERY_SQL, Reply::Parts(vec![5000, 1, 5000, 0]));
    let rows = db.query("SELECT n FROM t", vec![]).await.unwrap();
    assert_eq!(rows.rows, counted(10_001));

    fake.next(kind::QUERY_SQL, Reply::Parts(vec![5000, 1, 5000, 0]));
    let mut stream = db.query_stream("SELECT n FROM t", vec![]).await.unwrap();
    assert_eq!(stream.columns(), ["n"]);
    let mut sizes = Vec::new();
    while let Some(batch) = stream.next_batch().await.unwrap() {
        sizes.push(batch.len());
    }
    assert_eq!(sizes, [5000, 1, 5000]);
    drop(stream);
    assert_eq!(fake.accepted(), 2, "a stream read to its end gives its connection back");

    let small = Options { result_bytes_max: 1000, ..options() };
    let db = Client::new([fake.address.clone()], small).unwrap().database("db");
    fake.next(kind::QUERY_SQL, Reply::Parts(vec![10, 5000]));
    let error = db.query("SELECT n FROM t", vec![]).await.unwrap_err();
    assert_eq!(error, DriverError::ResultTooLarge { bytes_max: 1000 });
}

#[tokio::test]
async fn a_stream_can_be_ended_early() {
    let fake = Fake::tcp().await;
    let client = client(&[&fake]);
    let db = client.database("db");
    fake.next(kind::QUERY_SQL, Reply::Parts(vec![10; 500]));
    let mut stream = db.query_stream("SELECT n FROM t", vec![]).await.unwrap();
    assert_eq!(stream.next_batch().await.unwrap().unwrap().len(), 10);
    stream.interrupt().await.unwrap();
    db.query("SELECT 1", vec![]).await.unwrap();
    assert_eq!(fake.accepted(), 2, "interrupted: the connection is used again");

    fake.next(kind::QUERY_SQL, Reply::Parts(vec![10; 500]));
    drop(db.query_stream("SELECT n FROM t", vec![]).await.unwrap());
    until("the dropped stream is interrupted", || client.metrics().connections_idle == 1).await;
    db.query("SELECT 1", vec![]).await.unwrap();
    assert_eq!(fake.count(kind::INTERRUPT), 2);
    assert_eq!(fake.accepted(), 2, "dropped: the connection is used again");
}

#[tokio::test]
async fn unix_and_abstract_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let unique = format!("@quire-test-{}", std::process::id());
    let with_prefix = format!("unix:{}", dir.path().join("other").display());
    for address in [path.to_str().unwrap(), unique.as_str(), with_prefix.as_str()] {
        let fake = Fake::unix(address).await;
        let client = client(&[&fake]);
        client.database("db").execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
        assert_eq!(client.leader().await.unwrap().address, address);
    }
}

#[tokio::test]
async fn a_transaction_has_one_connection_to_itself() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut tx = db.begin_with(Begin::Immediate).await.unwrap();
    tx.execute("INSERT INTO t VALUES(?)", params![1]).await.unwrap();
    db.execute("INSERT INTO u VALUES(1)", vec![]).await.unwrap();
    assert_eq!(tx.query("SELECT n FROM t", vec![]).await.unwrap().rows, counted(1));
    assert_eq!(tx.execute("COMMIT", vec![]).await.unwrap_err().fate(), Fate::Reject);
    tx.commit().await.unwrap();
    let mut sql = fake.sql();
    sql.retain(|sql| !sql.contains("INTO u"));
    assert_eq!(sql, ["BEGIN IMMEDIATE", "INSERT INTO t VALUES(?)", "SELECT n FROM t", "COMMIT"]);
    assert_eq!(fake.accepted(), 3);
    // Both connections are used again.
    let tx = db.begin().await.unwrap();
    db.execute("INSERT INTO u VALUES(1)", vec![]).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(fake.accepted(), 3);
}

#[tokio::test]
async fn a_dropped_transaction_closes_its_connection() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut tx = db.begin().await.unwrap();
    tx.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    assert_eq!(fake.open(), 1);
    drop(tx);
    for _ in 0..100 {
        if fake.open() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection stays open");
}

#[tokio::test]
async fn what_is_lost_with_a_transaction() {
    let lost = Response::failure(code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_TEXT);
    let not_leader = Response::failure(code::NOT_LEADER, code::NOT_LEADER_TEXT);
    let rolled_back = [Reply::Close, Reply::One(lost.clone()), Reply::One(not_leader.clone())];
    for reply in rolled_back {
        let fake = Fake::tcp().await;
        let db = client(&[&fake]).database("db");
        let mut tx = db.begin().await.unwrap();
        fake.next(kind::EXEC_SQL, reply);
        let error = tx.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap_err();
        assert!(matches!(error, DriverError::TransactionLost { .. }), "{error}");
        assert_eq!(tx.commit().await.unwrap_err().fate(), Fate::Reject);
        assert_eq!(fake.count(kind::EXEC_SQL), 2);
    }
    let commits = [
        (Reply::Close, Fate::OutcomeUnknown),
        (Reply::One(lost), Fate::OutcomeUnknown),
        (Reply::One(not_leader), Fate::RetryElsewhere),
    ];
    for (reply, fate) in commits {
        let fake = Fake::tcp().await;
        let tx = client(&[&fake]).database("db").begin().await.unwrap();
        fake.next(kind::EXEC_SQL, reply);
        assert_eq!(tx.commit().await.unwrap_err().fate(), fate);
    }
}

#[tokio::test]
async fn after_a_failure_a_transaction_is_only_perhaps_open() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut tx = db.begin().await.unwrap();
    fake.fail_next(kind::EXEC_SQL, 13, "database or disk is full");
    assert_eq!(
        tx.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap_err().fate(),
        Fate::Reject
    );
    // SQLite may have rolled back: this statement may be on its own.
    fake.next(kind::EXEC_SQL, Reply::Close);
    let error = tx.execute("INSERT INTO t VALUES(2)", vec![]).await.unwrap_err();
    assert_eq!(error.fate(), Fate::OutcomeUnknown);
}

#[tokio::test]
async fn a_session_takes_begin_and_commit_as_they_come() {
    let fake = Fake::tcp().await;
    let mut session = client(&[&fake]).database("db").session();
    session.execute("INSERT INTO t VALUES(1)", vec![]).await.unwrap();
    session.execute("BEGIN", vec![]).await.unwrap();
    assert!(session.in_transaction());
    fake.next(kind::QUERY_SQL, Reply::Parts(vec![10; 500]));
    drop(session.query_stream("SELECT n FROM t", vec![]).await.unwrap());
    session.execute("INSERT INTO t VALUES(2)", vec![]).await.unwrap();
    assert_eq!(fake.count(kind::INTERRUPT), 1);
    session.query("COMMIT", vec![]).await.unwrap();
    assert!(!session.in_transaction());
    session.execute("BEGIN; INSERT INTO t VALUES(3)", vec![]).await.unwrap();
    assert!(session.in_transaction());
    session.execute("INSERT INTO t VALUES(4); END", vec![]).await.unwrap();
    assert!(!session.in_transaction());
    fake.next(kind::EXEC_SQL, Reply::Close);
    session.execute("BEGIN", vec![]).await.unwrap();
    assert_eq!(fake.sql().iter().filter(|sql| *sql == "BEGIN").count(), 3, "BEGIN is repeated");
    session.abandon();
    assert!(!session.in_transaction());
}

#[tokio::test]
async fn statements_are_prepared_again_on_a_new_connection() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let insert = db.prepare("INSERT INTO t VALUES(?)").await.unwrap();
    let select = db.prepare("SELECT n FROM t").await.unwrap();
    assert_eq!(insert.parameters(), 1);
    for n in 0..3 {
        insert.execute(params![n]).await.unwrap();
        assert_eq!(select.query(vec![]).await.unwrap().rows, counted(1));
    }
    assert_eq!(fake.count(kind::PREPARE), 2);
    fake.cut();
    tokio::time::sleep(Duration::from_millis(100)).await;
    insert.execute(params![4]).await.unwrap();
    assert_eq!(fake.count(kind::PREPARE), 3);
    assert_eq!(fake.count(kind::EXEC), 4, "the closed connection was noticed before its use");
    // More statements than a connection keeps.
    for n in 0..100 {
        db.prepare(&format!("SELECT {n}")).await.unwrap();
    }
    assert_eq!(fake.count(kind::FINALIZE), 100 + 1 - 64);
    insert.execute(params![5]).await.unwrap();
    assert_eq!(fake.count(kind::PREPARE), 3 + 100 + 1);
}

#[tokio::test]
async fn read_levels_are_asked_for_where_they_are_known() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db").read_level(ReadLevel::Lease);
    db.query("SELECT 1", vec![]).await.unwrap();
    assert_eq!((fake.count(kind::HELLO), fake.count(kind::READ_LEVEL)), (1, 0), "done without");
    db.query("SELECT 1", vec![]).await.unwrap();
    assert_eq!(fake.count(kind::HELLO), 1);

    fake.extend();
    let plain = client(&[&fake]);
    plain.database("db").query("SELECT 1", vec![]).await.unwrap();
    assert_eq!(fake.count(kind::HELLO), 1, "the default needs no Hello");

    let member = plain.at(&fake.address).unwrap();
    fake.follow("127.0.0.1:1");
    let db = member.database("db").read_level(ReadLevel::Local);
    db.max_staleness(Duration::from_millis(250)).query("SELECT 1", vec![]).await.unwrap();
    let log = fake.log();
    assert!(
        log.contains(&Request::Hello { version: EXTENSION_VERSION, flags: HELLO_FOLLOWER_READS })
    );
    assert!(log.contains(&Request::ReadLevel { level: 2, max_staleness_ms: 250 }));
}

#[tokio::test]
async fn one_member_alone_is_neither_searched_nor_repeated() {
    let fake = Fake::tcp().await;
    let member = client(&[&fake]).at(&fake.address).unwrap();
    fake.fail_next(kind::OPEN, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    let error = member.database("db").query("SELECT 1", vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{} does not lead", fake.address));
    assert_eq!(error.fate(), Fate::RetryElsewhere);
    let digest = Digest { member: 3, pages: 9, ..Digest::default() };
    fake.next(kind::DIGEST, Reply::One(Response::DigestOk(digest)));
    assert_eq!(member.digest("db", true).await, Ok(digest));
    let address = fake.stop().await;
    let error = member.ping().await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{address} refused the connection")), "{error}");
}

#[tokio::test]
async fn the_pool_is_bounded_and_shared_by_databases() {
    let fake = Fake::tcp().await;
    let client = client(&[&fake]);
    for n in 0..10 {
        client.database(&format!("db{n}")).query("SELECT 1", vec![]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(fake.open() <= 4, "{}", fake.open());
    // All lent: the next caller waits, but not for ever.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(client.database("db").begin().await.unwrap());
    }
    let db = client.database("db").timeout(Duration::from_millis(200));
    let error = db.query("SELECT 1", vec![]).await.unwrap_err();
    assert!(matches!(error, DriverError::TimedOut(_)), "{error}");
    held.pop();
    db.query("SELECT 1", vec![]).await.unwrap();
}

#[test]
fn a_search_that_ended_with_its_runtime_is_begun_again() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let client = Client::new(["127.0.0.1:1"], options()).unwrap();
    let db = client.database("db").timeout(Duration::from_millis(300));
    for _ in 0..2 {
        let error = runtime().block_on(db.query("SELECT 1", vec![])).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:1 refused the connection"), "{error}");
    }
}
