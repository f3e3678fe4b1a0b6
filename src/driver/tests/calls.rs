//! Calls that are given up or run out of time, a pool that is full, a client that is closed, and
//! what is counted and traced.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;

use super::fake::{Fake, Reply, counted};
use super::{client, options, until};
use crate::base::Fate;
use crate::driver::*;
use crate::params;
use crate::wire::Response;
use crate::wire::request::kind;

const SOON: Duration = Duration::from_millis(200);

/// A caller that goes away, and one whose time is over: the statement is interrupted at the
/// server, and the connection used again.
#[tokio::test]
async fn a_statement_that_is_given_up_is_interrupted() {
    let interrupted = Response::failure(crate::wire::code::INTERRUPT, "interrupted");
    for late in [false, true] {
        let fake = Fake::tcp().await;
        let client = client(&[&fake]);
        let db = client.database("db").timeout(if late { SOON } else { options().call_timeout });
        fake.next(kind::QUERY_SQL, Reply::Stall(None));
        let call = tokio::time::timeout(SOON * 5, db.query("VALUES (1)", vec![])).await;
        assert_eq!(call.is_err(), !late);
        until("the query is interrupted", || fake.count(kind::INTERRUPT) == 1).await;
        until("the connection is back", || client.metrics().connections_idle == 1).await;
        fake.next(kind::EXEC_SQL, Reply::Stall(Some(interrupted.clone())));
        let call = db.execute("INSERT INTO t VALUES (1)", vec![]);
        match tokio::time::timeout(SOON * 5, call).await {
            Ok(result) => assert_eq!(result.unwrap_err().fate(), Fate::OutcomeUnknown),
            Err(_) => assert!(!late),
        }
        until("the write is interrupted", || fake.count(kind::INTERRUPT) == 2).await;
        until("the connection is back", || client.metrics().connections_idle == 1).await;
        let db = client.database("db");
        assert_eq!(db.query("SELECT n", vec![]).await.unwrap().rows, counted(1));
        assert_eq!(fake.count(kind::OPEN), 1, "one connection for all of it");
        assert_eq!(client.metrics().cancels, 2);
    }
}

#[tokio::test]
async fn what_cannot_be_interrupted_is_closed_in_time() {
    let fake = Fake::tcp().await;
    let options = Options { cancel_timeout: SOON, connections_max: 1, ..options() };
    let client = Client::new([fake.address.clone()], options).unwrap();
    let db = client.database("db");
    fake.next(kind::QUERY_SQL, Reply::Hang);
    assert!(tokio::time::timeout(SOON, db.query("VALUES (1)", vec![])).await.is_err());
    // The only place in the pool is free again.
    assert_eq!(db.query("SELECT n", vec![]).await.unwrap().rows, counted(1));
    assert_eq!(client.metrics().connections_open, 1);
    // Within a transaction the connection is closed at once: the server rolls back.
    let mut tx = db.begin().await.unwrap();
    fake.next(kind::EXEC_SQL, Reply::Stall(None));
    let call = tx.execute("INSERT INTO t VALUES (1)", vec![]);
    assert!(tokio::time::timeout(SOON, call).await.is_err());
    until("the connection is closed", || client.metrics().connections_open == 0).await;
    assert!(tx.commit().await.is_err());
    assert_eq!(fake.count(kind::INTERRUPT), 0);
}

#[tokio::test]
async fn waiting_for_a_connection_is_bounded_and_fair() {
    let fake = Fake::tcp().await;
    let options = Options { connections_max: 1, waiters_max: 3, ..options() };
    let client = Client::new([fake.address.clone()], options).unwrap();
    let db = client.database("db");
    let held = db.begin().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for n in 0_u64..3 {
        let (db, order) = (db.clone(), order.clone());
        waiting.push(tokio::spawn(async move {
            db.execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap();
            order.lock().push(n);
        }));
        until("it waits", || client.metrics().pool_waits == n + 1).await;
    }
    let error = db.execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap_err();
    assert_eq!(error, DriverError::Overloaded { waiters_max: 3 });
    assert_eq!(error.fate(), Fate::RetryHere);
    held.rollback().await.unwrap();
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*order.lock(), [0, 1, 2]);
    assert_eq!(client.metrics().pool_refusals, 1);
}

#[tokio::test]
async fn a_client_is_closed() {
    let fake = Fake::tcp().await;
    let client = client(&[&fake]);
    let db = client.database("db");
    db.execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap();
    let tx = db.begin().await.unwrap();
    assert!(!client.close(SOON).await, "a transaction is open");
    assert_eq!(db.query("SELECT 1", vec![]).await.unwrap_err(), DriverError::Closed);
    drop(tx);
    assert!(!client.close(SOON).await, "it was closed before");
    until("all connections are closed", || fake.open() == 0).await;
    assert_eq!(client.metrics().connections_open, 0);

    let client = super::client(&[&fake]);
    client.database("db").execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap();
    assert!(client.close(SOON * 100).await);
    assert_eq!(client.ping().await.unwrap_err(), DriverError::Closed);
    until("all connections are closed", || fake.open() == 0).await;
}

#[tokio::test]
async fn rows_become_values_of_a_type() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct N {
        n: u8,
    }
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    for _ in 0..4 {
        fake.next(kind::QUERY_SQL, Reply::Parts(vec![2, 1]));
    }
    let sql = "SELECT n FROM t";
    assert_eq!(db.query_as::<N>(sql, vec![]).await.unwrap(), [N { n: 0 }, N { n: 1 }, N { n: 2 }]);
    assert_eq!(db.query_as::<(i64,)>(sql, vec![]).await.unwrap(), [(0,), (1,), (2,)]);
    let doubled = db.query_map(sql, vec![], |row| Ok(row.get::<i64>("n")? * 2)).await.unwrap();
    assert_eq!(doubled, [0, 2, 4]);
    let error = db.query_as::<String>(sql, vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "row 1: column `n` holds INTEGER: expected a string");
    assert_eq!(error.fate(), Fate::Reject);
}

#[tokio::test]
async fn what_happens_is_counted() {
    let (fake, follower) = (Fake::tcp().await, Fake::tcp().await);
    follower.follow(&fake.address);
    let client = client(&[&follower]);
    let db = client.database("db");
    fake.fail_next(kind::EXEC_SQL, crate::wire::code::NOT_LEADER, "not leader");
    db.execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap();
    fake.next(kind::EXEC_SQL, Reply::Close);
    db.execute("INSERT INTO t VALUES (1)", vec![]).await.unwrap_err();
    until("the searches are over", || client.metrics().connections_open == 0).await;
    let metrics = client.metrics();
    assert_eq!((metrics.calls, metrics.retries, metrics.outcomes_unknown), (2, 1, 1));
    assert_eq!((metrics.searches, metrics.redirects, metrics.searches_failed), (2, 2, 0));
    // Two searches of two addresses, and a connection for each attempt of the first call.
    assert_eq!(metrics.dials, 6);
}

/// What a subscriber wrote.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn traces_hold_fingerprints_and_no_statements() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("shop");
    let statement = "INSERT INTO account(secret) VALUES ('hidden', ?)";
    db.execute(statement, params!["password"]).await.unwrap();
    let text = String::from_utf8(written.0.lock().clone()).unwrap();
    let fingerprint = format!("{:016x}", sql::fingerprint(statement));
    for part in ["quire.call", "db.system.name=\"sqlite\"", "\"INSERT\"", "\"shop\"", &fingerprint]
    {
        assert!(text.contains(part), "{text}\nlacks {part}");
    }
    assert!(text.contains("quire.search"), "{text}");
    for part in ["account", "secret", "hidden", "password"] {
        assert!(!text.contains(part), "{text}\nholds {part}");
    }
}
