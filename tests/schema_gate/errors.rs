//! Which errors are worth another attempt.

use quire::base::Fate;
use quire::cluster::{Database, DatabaseError, DatabaseErrorKind, Error, Local};
use quire::driver::DriverError;

fn transient(error: impl Into<DatabaseError>) -> bool {
    Error::from(error.into()).within("around").is_transient()
}

fn sqlite(code: u64, message: &str) -> DriverError {
    DriverError::Sqlite { code, message: message.to_owned() }
}

/// The original looked for words in the text; here the kind decides.
#[tokio::test]
async fn which_errors_are_transient() {
    assert!(!transient(sqlite(1, "bad")), "bad");
    assert!(transient(sqlite(6, "database table is locked")), "locked");
    assert!(transient(sqlite(5, "database is locked")), "database is locked");
    assert!(transient(sqlite(517, "database is locked")), "busy snapshot");
    let cause = || "the connection broke off".to_owned();
    assert!(transient(DriverError::TransactionLost { cause: cause() }), "bad connection");
    assert!(transient(DriverError::NoLeader { why: cause(), attempts: vec![] }));
    // What dqlite called "disk I/O error" when leadership was lost.
    assert!(transient(DriverError::TransactionLost { cause: "leadership lost".to_owned() }));
    assert!(transient(sqlite(10, "disk I/O error")));
    // A node that waits is a voter: it does not stop because a disk is full, a copy damaged, or a
    // transaction was rolled back for having stood still.
    assert!(transient(sqlite(13, "database or disk is full")));
    assert!(transient(sqlite(11, "database shop is damaged on this member")));
    assert!(transient(sqlite(516, "the transaction was idle for too long")));
    for permanent in [
        sqlite(1, "text that says database is locked"),
        sqlite(19, "UNIQUE constraint failed: nodes.name"),
        DriverError::Closed,
        DriverError::Invalid("bad".to_owned()),
    ] {
        assert!(!transient(permanent));
    }
    for error in [Error::NodeBehind, Error::NoSuchObject, Error::GracefulAbort { behind: 1 }] {
        assert!(!error.is_transient(), "{error}");
    }
    let unknown = Error::from(DatabaseError::from(DriverError::OutcomeUnknown { cause: cause() }));
    assert!(unknown.is_outcome_unknown() && !unknown.is_transient());
    assert_eq!(unknown.fate(), Fate::OutcomeUnknown);
    assert_eq!(Error::SomeNodesAreBehind.fate(), Fate::RetryHere);
}

/// Two programs at one SQLite file: the second is told that it is busy.
#[tokio::test]
async fn a_file_that_another_program_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("local.db");
    let [one, other] = [0; 2].map(|_| Local::open(&path, std::time::Duration::ZERO).unwrap());
    let held = one.begin().await.unwrap();
    let error = other.begin().await.err().unwrap();
    assert_eq!(error.kind, DatabaseErrorKind::Busy);
    assert!(transient(error));
    // One that is dropped is rolled back, and lets go.
    drop(held);
    other.begin().await.unwrap().commit().await.unwrap();
}
