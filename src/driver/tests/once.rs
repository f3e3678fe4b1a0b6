//! What goes with a request id: repeated whatever happened to it, never sent to a server that does
//! not know ids, and told of what was done before.

use super::*;
use crate::driver::once::Sending;
use crate::wire::{EXTENSION_VERSION_ONCE, Request};

const INSERT: &str = "INSERT INTO t VALUES(1)";

async fn knowing() -> Fake {
    let fake = Fake::tcp().await;
    fake.extend_to(EXTENSION_VERSION_ONCE);
    fake
}

/// The ids that a server was sent.
fn ids(fake: &Fake) -> Vec<[u8; 16]> {
    let id = |request: Request| match request {
        Request::RequestId { id, .. } => Some(id),
        _ => None,
    };
    fake.log().into_iter().filter_map(id).collect()
}

#[tokio::test]
async fn a_write_with_an_id_is_repeated_whatever_happened_to_it() {
    let lost = Response::failure(code::LEADERSHIP_LOST, code::LEADERSHIP_LOST_TEXT);
    let not_leader = Response::failure(code::NOT_LEADER, code::NOT_LEADER_TEXT);
    for reply in [Reply::Close, Reply::One(lost), Reply::One(not_leader)] {
        let fake = knowing().await;
        let client = client(&[&fake]);
        let id = client.request_id();
        fake.next(kind::EXEC_SQL, reply.clone());
        let told = client.database("db").execute_once(&id, INSERT, vec![]).await;
        assert!(told.is_ok(), "{reply:?}: {told:?}");
        assert_eq!(fake.sql(), [INSERT, INSERT], "{reply:?}");
        assert_eq!(ids(&fake), [id.bytes(), id.bytes()], "{reply:?}");
    }
}

#[tokio::test]
async fn old_servers_are_sent_nothing_that_has_an_id() {
    for version in [None, Some(EXTENSION_VERSION_ONCE - 1)] {
        let fake = Fake::tcp().await;
        if let Some(version) = version {
            fake.extend_to(version);
        }
        let client = client(&[&fake]);
        let (db, id) = (client.database("db"), client.request_id());
        let told = db.execute_once(&id, INSERT, vec![]).await.map(drop);
        let begun = db.begin_once(&id, Begin::Immediate).await.map(drop);
        for refused in [told, begun] {
            let Err(DriverError::Invalid(text)) = refused else { panic!("{refused:?}") };
            assert!(text.contains("does not know request ids; nothing was sent"), "{text}");
        }
        assert!(fake.sql().is_empty() && ids(&fake).is_empty());
    }
}

#[tokio::test]
async fn a_transaction_with_an_id_by_hand() {
    let fake = knowing().await;
    let client = client(&[&fake]);
    let (db, id) = (client.database("db"), client.request_id());
    let BeginOnce::Begun(mut tx) = db.begin_once(&id, Begin::Immediate).await.unwrap() else {
        panic!("it was not committed before");
    };
    tx.execute(INSERT, vec![]).await.unwrap();
    tx.commit_with(b"told").await.unwrap();
    assert_eq!(fake.sql(), ["BEGIN IMMEDIATE", INSERT, "COMMIT"]);
    let outcome = |request: &Request| matches!(request, Request::Outcome { outcome, .. } if outcome[..] == *b"told");
    assert_eq!(fake.log().iter().filter(|request| outcome(request)).count(), 1);
    // A repeat is told so, and nothing has begun.
    let outcome = b"told".to_vec().into();
    let before = Response::AlreadyExecuted { last_insert_id: 1, rows_affected: 1, outcome };
    fake.next(kind::EXEC_SQL, Reply::One(before));
    let begun = db.begin_once(&id, Begin::Immediate).await.unwrap();
    assert!(matches!(begun, BeginOnce::Before(told) if told == b"told"));
    assert_eq!(ids(&fake), [id.bytes(), id.bytes()]);
    assert_eq!(fake.sql().len(), 4);
}

/// The closure's COMMIT has no answer: the repeat begins, and is told that it was executed.
#[tokio::test]
async fn a_closure_whose_commit_was_executed_is_not_run_again() {
    let fake = knowing().await;
    let client = client(&[&fake]);
    let ok = || Reply::One(Response::Result { last_insert_id: 0, rows_affected: 0 });
    let outcome = b"told".to_vec().into();
    let before = Response::AlreadyExecuted { last_insert_id: 1, rows_affected: 1, outcome };
    for reply in [ok(), ok(), Reply::Close, Reply::One(before)] {
        fake.next(kind::EXEC_SQL, reply);
    }
    let (db, id) = (client.database("db"), client.request_id());
    let mut runs = 0;
    let told = db.transaction_once(&id, |mut tx| {
        runs += 1;
        async move {
            tx.execute(INSERT, vec![]).await?;
            Ok::<_, DriverError>(b"told".to_vec())
        }
    });
    assert_eq!(told.await.as_deref(), Ok(&b"told"[..]));
    assert_eq!(runs, 1);
    assert_eq!(fake.sql(), ["BEGIN IMMEDIATE", INSERT, "COMMIT", "BEGIN IMMEDIATE"]);
}

/// The first attempt sent the statement and lost the answer; the second failed before it had sent
/// anything. That erased the doubt, and the caller was told that nothing had been executed.
#[tokio::test]
async fn an_attempt_that_sends_nothing_tells_nothing_of_those_before_it() {
    let id = RequestId::given([1; 16], Duration::ZERO);
    let (lost, unsent) = (Sending::new(&id), Sending::new(&id));
    lost.note_sent();
    unsent.note_not_executed();
    assert!(id.is_in_doubt());
    let refused = Sending::new(&id);
    refused.note_sent();
    refused.note_not_executed();
    assert!(id.is_in_doubt(), "of the last one only");
    lost.note_not_executed();
    assert!(!id.is_in_doubt());

    let fake = knowing().await;
    let client = client(&[&fake]);
    let id = client.request_id();
    fake.next(kind::EXEC_SQL, Reply::Close);
    fake.next(kind::OPEN, Reply::One(Response::Db { id: 0 }));
    fake.fail_next(kind::OPEN, code::ERROR, "no");
    let told = client.database("db").execute_once(&id, INSERT, vec![]).await;
    assert!(matches!(told, Err(DriverError::OutcomeUnknown { .. })), "{told:?}");
    assert_eq!(fake.sql(), [INSERT]);
}

/// As above, of a prepared statement with an id of its own: a DROP TABLE whose answer was lost
/// cannot be prepared once more, and the caller was told that there is no such table. A repeat is
/// sent as text, which the server looks at only if it does not know the id.
#[tokio::test]
async fn a_repeat_of_a_prepared_statement_is_not_prepared_again() {
    let fake = knowing().await;
    let options = Options { request_ids: true, ..options() };
    let client = Client::new([fake.address.clone()], options).unwrap();
    let sql = "DROP TABLE t";
    let statement = client.database("db").prepare(sql).await.unwrap();
    fake.next(kind::EXEC, Reply::Close);
    let told = statement.execute(vec![]).await;
    assert!(told.is_ok(), "{told:?}");
    assert_eq!((fake.count(kind::PREPARE), fake.count(kind::EXEC)), (1, 1));
    assert_eq!(fake.sql(), [sql]);
    let ids = ids(&fake);
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    // What was refused is prepared: it was not executed.
    fake.fail_next(kind::EXEC, code::NOT_LEADER, code::NOT_LEADER_TEXT);
    statement.execute(vec![]).await.unwrap();
    assert_eq!(fake.sql(), [sql]);
}

/// A server takes an id to be as old as its own last answer on the connection: a new one on a
/// connection that had been idle looked as if it could have been forgotten.
#[tokio::test]
async fn an_id_on_an_idle_connection_goes_behind_a_fresh_answer() {
    let fake = knowing().await;
    let client = client(&[&fake]);
    let db = client.database("db");
    let once = async || {
        let told = db.execute_once(&client.request_id(), INSERT, vec![]).await;
        assert!(told.is_ok(), "{told:?}");
        fake.count(kind::LEADER)
    };
    let asked = once().await;
    assert_eq!(once().await, asked);
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(1500)).await;
    tokio::time::resume();
    assert_eq!(once().await, asked + 1);
    assert_eq!(ids(&fake).len(), 3);
}
