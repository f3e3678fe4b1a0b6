//! Closures, savepoints and batches: what is sent, what is kept, and what is tried again.

use super::fake::{Fake, Reply};
use super::{client, until};
use crate::base::Fate;
use crate::driver::*;
use crate::params;
use crate::wire::request::kind;
use crate::wire::{Response, code};

const INSERT: &str = "INSERT INTO t VALUES (?)";

/// An error of an application's.
#[derive(Debug, PartialEq)]
enum Mine {
    Enough,
    Database(Fate),
}

impl From<DriverError> for Mine {
    fn from(error: DriverError) -> Mine {
        Mine::Database(error.fate())
    }
}

#[tokio::test]
async fn a_closure_is_committed_or_rolled_back() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let done = db
        .transaction(|mut tx| async move {
            tx.execute(INSERT, params![1]).await?;
            Ok::<_, DriverError>("done")
        })
        .await;
    assert_eq!(done, Ok("done"));
    let refused: Result<(), Mine> = db
        .transaction(|mut tx| async move {
            tx.execute(INSERT, params![2]).await?;
            Err(Mine::Enough)
        })
        .await;
    assert_eq!(refused, Err(Mine::Enough));
    assert_eq!(fake.sql(), ["BEGIN", INSERT, "COMMIT", "BEGIN", INSERT, "ROLLBACK"]);
    assert_eq!(fake.accepted(), 2);
    // Given up half-way: the connection is closed, and the server rolls back.
    let hanging = db.transaction(|mut tx| async move {
        tx.execute(INSERT, params![3]).await?;
        std::future::pending::<Result<(), DriverError>>().await
    });
    let soon = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, hanging).await.is_err());
    until("the connection is closed", || fake.open() == 0).await;
    assert_eq!(fake.sql().last().map(String::as_str), Some(INSERT));
}

/// It is spawned: what a closure's future holds is `Send`.
#[tokio::test]
async fn a_closure_is_run_again_only_where_that_is_allowed_and_nothing_was_kept() {
    let busy = Response::failure(code::BUSY_SNAPSHOT, code::LOCKED);
    let not_leader = Response::failure(code::NOT_LEADER, code::NOT_LEADER_TEXT);
    let lost = Response::failure(code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_TEXT);
    let constraint = Response::failure(2067, "UNIQUE constraint failed: t.a");
    // What the statement and then the COMMIT are answered, and whether it is worth another run.
    let cases = [
        (Some(Reply::One(busy.clone())), None, true),
        (Some(Reply::Close), None, true),
        (Some(Reply::One(not_leader.clone())), None, true),
        (Some(Reply::One(lost.clone())), None, true),
        (Some(Reply::One(constraint)), None, false),
        (None, Some(Reply::One(busy)), true),
        (None, Some(Reply::One(not_leader)), true),
        (None, Some(Reply::One(lost)), false),
        (None, Some(Reply::Close), false),
    ];
    for (statement, commit, worth) in cases {
        for retries_max in [0, 2] {
            let fake = Fake::tcp().await;
            let client = client(&[&fake]);
            let db = client.database("db");
            let ok = || Reply::One(Response::Result { last_insert_id: 0, rows_affected: 0 });
            fake.next(kind::EXEC_SQL, ok());
            fake.next(kind::EXEC_SQL, statement.clone().unwrap_or_else(ok));
            if let Some(commit) = &commit {
                fake.next(kind::EXEC_SQL, commit.clone());
            }
            let options = TransactionOptions { retries_max, ..TransactionOptions::default() };
            let call = tokio::spawn(async move {
                let mut runs = 0;
                let result = db
                    .transaction_with(options, |mut tx| {
                        runs += 1;
                        async move { tx.execute(INSERT, params![runs]).await }
                    })
                    .await;
                (result, runs)
            });
            let (result, runs) = call.await.unwrap();
            let again = worth && retries_max > 0;
            assert_eq!(result.is_ok(), again, "{statement:?} {commit:?}: {result:?}");
            assert_eq!(runs, if again { 2 } else { 1 }, "{statement:?} {commit:?}: {result:?}");
            assert_eq!(client.metrics().transaction_retries, u64::from(again));
        }
    }
    // Not for ever.
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut runs = 0;
    let options = TransactionOptions { begin: Begin::Immediate, retries_max: 2 };
    let result: Result<(), Mine> = db
        .transaction_with(options, |mut tx| {
            runs += 1;
            fake.fail_next(kind::EXEC_SQL, code::BUSY, code::LOCKED);
            async move {
                tx.execute(INSERT, params![1]).await?;
                Ok(())
            }
        })
        .await;
    assert_eq!(result, Err(Mine::Database(Fate::RetryHere)));
    assert_eq!(runs, 3);
    assert_eq!(fake.sql()[0], "BEGIN IMMEDIATE");
}

#[tokio::test]
async fn a_closure_may_end_its_transaction_and_must_not_keep_it() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let ended: Result<(), DriverError> = db.transaction(|tx| tx.commit()).await;
    assert_eq!(ended, Ok(()));
    let mut kept = None;
    let result: Result<(), DriverError> = db
        .transaction(|tx| {
            kept = Some(tx);
            async { Ok(()) }
        })
        .await;
    assert_eq!(result.unwrap_err().fate(), Fate::Reject);
    kept.unwrap().rollback().await.unwrap();
    assert_eq!(fake.sql(), ["BEGIN", "COMMIT", "BEGIN", "ROLLBACK"]);
}

#[tokio::test]
async fn savepoints_nest() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut tx = db.begin().await.unwrap();
    let mut outer = tx.savepoint().await.unwrap();
    outer.execute(INSERT, params![1]).await.unwrap();
    let mut inner = outer.savepoint().await.unwrap();
    inner.execute(INSERT, params![2]).await.unwrap();
    inner.rollback().await.unwrap();
    outer.commit().await.unwrap();
    let again = tx.savepoint().await.unwrap();
    again.commit().await.unwrap();
    tx.commit().await.unwrap();
    let undo = |n: usize| format!("ROLLBACK TO quire_savepoint_{n}; RELEASE quire_savepoint_{n}");
    let expected = [
        "BEGIN",
        "SAVEPOINT quire_savepoint_1",
        INSERT,
        "SAVEPOINT quire_savepoint_2",
        INSERT,
        &undo(2),
        "RELEASE quire_savepoint_1",
        "SAVEPOINT quire_savepoint_1",
        "RELEASE quire_savepoint_1",
        "COMMIT",
    ];
    assert_eq!(fake.sql(), expected);
    assert_eq!(fake.accepted(), 2);
}

/// A savepoint that is only dropped is undone before anything else happens, the commit included.
#[tokio::test]
async fn a_dropped_savepoint_is_undone_first() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let mut tx = db.begin().await.unwrap();
    let mut outer = tx.savepoint().await.unwrap();
    let mut inner = outer.savepoint().await.unwrap();
    inner.execute(INSERT, params![1]).await.unwrap();
    drop(inner);
    drop(outer);
    let mut next = tx.savepoint().await.unwrap();
    next.execute(INSERT, params![2]).await.unwrap();
    drop(next);
    tx.commit().await.unwrap();
    let undo = "ROLLBACK TO quire_savepoint_1; RELEASE quire_savepoint_1";
    let sql = fake.sql();
    assert_eq!(sql[4..], [undo, "SAVEPOINT quire_savepoint_1", INSERT, undo, "COMMIT"]);
}

#[tokio::test]
async fn a_batch_is_one_message_and_one_transaction() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    let statements = [(INSERT, params![1]), ("DELETE FROM t; -- all", params![])];
    assert_eq!(db.batch(statements.clone()).await.unwrap().rows_affected, 1);
    let text = format!("BEGIN IMMEDIATE;\n{INSERT}\n;\nDELETE FROM t;\nCOMMIT");
    assert_eq!(fake.sql(), std::slice::from_ref(&text));
    // Not executed: repeated as a whole. Its connection is used again.
    fake.fail_next(kind::EXEC_SQL, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    db.batch(statements.clone()).await.unwrap();
    db.batch(statements.clone()).await.unwrap();
    assert_eq!(fake.sql(), [&*text, &text, &text, &text]);
    assert_eq!(fake.accepted(), 4, "two searches, a connection for each leadership");
    // Failed in the middle: the transaction is open, so its connection is closed.
    fake.fail_next(kind::EXEC_SQL, 2067, "UNIQUE constraint failed: t.a");
    let error = db.batch(statements.clone()).await.unwrap_err();
    assert_eq!(error.fate(), Fate::Reject);
    until("the connection is closed", || fake.open() == 0).await;
    fake.next(kind::EXEC_SQL, Reply::Close);
    assert_eq!(db.batch(statements).await.unwrap_err().fate(), Fate::OutcomeUnknown);
}

#[tokio::test]
async fn batches_that_cannot_be_right_are_refused_here() {
    let fake = Fake::tcp().await;
    let db = client(&[&fake]).database("db");
    for (sql, why) in [
        ("", "is not one statement"),
        ("SELECT 1; SELECT 2", "is not one statement"),
        ("COMMIT", "begins or ends a transaction"),
        ("SAVEPOINT a", "begins or ends a transaction"),
        (INSERT, "has 1 parameters, not 0"),
        ("SELECT 'a", "has no end"),
        ("SELECT 1 /* a", "has no end"),
    ] {
        let error = db.batch([(sql, vec![])]).await.unwrap_err();
        assert_eq!(error.fate(), Fate::Reject);
        assert!(error.to_string().contains(why), "{sql}: {error}");
    }
    assert_eq!(db.batch(Vec::<(&str, Vec<Value>)>::new()).await, Ok(ExecResult::default()));
    assert_eq!(fake.log(), []);
}
