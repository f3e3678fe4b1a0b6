//! What can go wrong at the gate and in the schema engine. The texts are part of what is promised:
//! operators and tests read them.
//!
//! *Invariant*: what went wrong is told by the variant ([`Error::root`]), never by its text.

use crate::base::Fate;
use crate::driver::DriverError;
use crate::wire::code;

/// What a database did not do, as far as the gate must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseErrorKind {
    /// Somebody else was in the way: busy, locked, too slow.
    Busy,
    /// Nobody leads. Nothing was executed.
    NoLeader,
    /// The connection or the leader went away, and the transaction with it.
    Lost,
    /// The answer to a commit is missing.
    OutcomeUnknown,
    /// It was refused; another attempt changes nothing.
    Refused,
}

/// An error of a [`Database`](super::Database).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct DatabaseError {
    /// What to do about it depends on this.
    pub kind: DatabaseErrorKind,
    /// What SQLite or the driver said.
    pub text: String,
}

impl DatabaseError {
    /// One of a kind.
    pub fn new(kind: DatabaseErrorKind, text: impl Into<String>) -> DatabaseError {
        DatabaseError { kind, text: text.into() }
    }

    /// One that another attempt does not change.
    pub fn refused(text: impl Into<String>) -> DatabaseError {
        DatabaseError::new(DatabaseErrorKind::Refused, text)
    }
}

impl From<DriverError> for DatabaseError {
    fn from(error: DriverError) -> DatabaseError {
        const LOCKED: u64 = 6;
        const FULL: u64 = 13;
        const IOERR: u64 = code::IOERR;
        const CORRUPT: u64 = code::CORRUPT;
        const ABORT: u64 = 4;
        let kind = match (&error, error.fate()) {
            (DriverError::NoLeader { .. }, _) => DatabaseErrorKind::NoLeader,
            // A full disk, a damaged copy, a transaction that was rolled back because it was idle:
            // all of them pass.
            (DriverError::Sqlite { code, .. }, _) => match code & 0xFF {
                LOCKED | code::BUSY | FULL => DatabaseErrorKind::Busy,
                IOERR | CORRUPT | ABORT => DatabaseErrorKind::Lost,
                _ => DatabaseErrorKind::Refused,
            },
            (_, Fate::RetryHere) => DatabaseErrorKind::Busy,
            (_, Fate::RetryElsewhere) => DatabaseErrorKind::Lost,
            (_, Fate::OutcomeUnknown) => DatabaseErrorKind::OutcomeUnknown,
            (_, Fate::Reject | Fate::Fatal) => DatabaseErrorKind::Refused,
        };
        DatabaseError { kind, text: error.to_string() }
    }
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> DatabaseError {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
        let busy = matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked));
        let kind = if busy { DatabaseErrorKind::Busy } else { DatabaseErrorKind::Refused };
        DatabaseError { kind, text: error.to_string() }
    }
}

/// An error of the gate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This node is open and waits: see [`Cluster::start`](super::Cluster::start).
    #[error("some nodes are behind this node's version")]
    SomeNodesAreBehind,
    /// Another node has a higher level.
    #[error("this node's version is behind, please upgrade")]
    NodeBehind,
    /// A node has a level that is neither lower nor higher nor equal.
    #[error("nodes have inconsistent versions")]
    Inconsistent,
    /// The check of a schema says: not yet. What was done so far is committed.
    #[error("schema check gracefully aborted")]
    GracefulAbort {
        /// How many nodes are behind.
        behind: usize,
    },
    /// The table `nodes` has more than one row of a node that is not clustered.
    #[error("found more than one unclustered nodes")]
    Unclustered,
    /// A statement that must change one row changed so many.
    #[error("updated {0} rows instead of 1")]
    LevelRows(u64),
    /// The same, of the operations on nodes.
    #[error("query updated {0} rows instead of 1")]
    UpdatedRows(u64),
    /// The same, of a heartbeat.
    #[error("expected to update one row and not {0}")]
    HeartbeatRows(u64),
    /// There is no such node.
    #[error("No such object")]
    NoSuchObject,
    /// A node of that name is there already.
    #[error("already exists")]
    AlreadyDefined,
    /// More nodes than one have what was asked for.
    #[error("more than one node matches")]
    MoreThanOneNode,
    /// This node's own row cannot be found.
    #[error("no node registered with address \"{0}\"")]
    NotRegistered(String),
    /// Whether this node is outdated cannot be said.
    #[error("inconsistency: local node not found")]
    LocalNodeNotFound,
    /// The rows of the table `schema` are not contiguous.
    #[error("missing updates: {from} -> {to}")]
    MissingUpdates {
        /// The row before the hole.
        from: u64,
        /// The row behind it.
        to: u64,
    },
    /// The database has updates that this program does not know.
    #[error("schema version '{current}' is more recent than expected '{expected}'")]
    MoreRecent {
        /// What the database has.
        current: u64,
        /// What this program has.
        expected: u64,
    },
    /// The same, of one module where the sums do not show it.
    #[error(
        "schema version '{current}' of module {module} is more recent than expected '{expected}'"
    )]
    ModuleMoreRecent {
        /// The module.
        module: String,
        /// What the database has.
        current: u64,
        /// What this program has.
        expected: u64,
    },
    /// Only a database that has all updates can be flattened.
    #[error("update level is {current}, expected {expected}")]
    UpdateLevel {
        /// What the database has.
        current: u64,
        /// What the schema has.
        expected: u64,
    },
    /// A statement of a file failed.
    #[error("{file}: statement {number} (line {line}, `{statement}`): {source}")]
    Statement {
        /// The file.
        file: String,
        /// Which statement, from 1.
        number: usize,
        /// Its first line, from 1.
        line: usize,
        /// What that line says.
        statement: String,
        /// What SQLite said.
        source: DatabaseError,
    },
    /// The cluster has no such level.
    #[error("schema version mismatch: cluster has {cluster}, expects {own}")]
    SchemaMismatch {
        /// The level of the nodes that are there.
        cluster: String,
        /// The level of the node that wants to join.
        own: String,
    },
    /// The same, of the API extensions.
    #[error("api version mismatch: cluster has {cluster}, expects {own}")]
    ApiMismatch {
        /// The extensions of the nodes that are there.
        cluster: String,
        /// Those of the node that wants to join.
        own: String,
    },
    /// The database is that of one node that is not clustered.
    #[error("clustering not enabled")]
    NotClustered,
    /// A name that is taken.
    #[error("cluster already has node with name {0}")]
    NameTaken(String),
    /// An address that is taken.
    #[error("cluster already has node with address {0}")]
    AddressTaken(String),
    /// The exclusive lock was not to be had.
    #[error("timeout (20s)")]
    ExclusiveTimeout,
    /// Nothing is open: [`Cluster::open`](super::Cluster::open) comes first.
    #[error("the cluster database is not open")]
    NotOpen,
    /// The wait was ended by its caller.
    #[error("the wait for other nodes was cancelled")]
    Cancelled,
    /// What failed, and why.
    #[error("{what}: {source}")]
    Context {
        /// What failed.
        what: String,
        /// Why.
        source: Box<Error>,
    },
    /// A transaction failed, and its rollback as well.
    #[error("{error}; and the rollback failed: {rollback}")]
    Rollback {
        /// Why it failed.
        error: Box<Error>,
        /// Why the rollback failed.
        rollback: DatabaseError,
    },
    /// All retries met this.
    #[error("{0}")]
    Retries(Box<Error>),
    /// The database.
    #[error("{0}")]
    Database(#[from] DatabaseError),
    /// A file.
    #[error("{0}")]
    File(String),
    /// Anything else, in a sentence; what updates, checks and hooks of an application say.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Anything, in a sentence.
    pub fn other(text: impl Into<String>) -> Error {
        Error::Other(text.into())
    }

    /// The same error, with what failed before it.
    pub fn within(self, what: impl Into<String>) -> Error {
        Error::Context { what: what.into(), source: Box::new(self) }
    }

    /// The error without what was said around it.
    pub fn root(&self) -> &Error {
        match self {
            Error::Context { source: inner, .. }
            | Error::Rollback { error: inner, .. }
            | Error::Retries(inner) => inner.root(),
            error => error,
        }
    }

    fn database(&self) -> Option<&DatabaseError> {
        match self.root() {
            Error::Database(error) | Error::Statement { source: error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether the same may succeed a little later: busy, no leader, leader or connection lost.
    pub fn is_transient(&self) -> bool {
        use DatabaseErrorKind::{Busy, Lost, NoLeader};
        self.database().is_some_and(|error| matches!(error.kind, Busy | NoLeader | Lost))
    }

    /// Whether nobody can tell if the transaction was committed.
    pub fn is_outcome_unknown(&self) -> bool {
        self.database().is_some_and(|error| error.kind == DatabaseErrorKind::OutcomeUnknown)
    }

    /// Whether it is what was left when the retries were used up.
    pub fn is_retries(&self) -> bool {
        match self {
            Error::Retries(_) => true,
            Error::Context { source: inner, .. } | Error::Rollback { error: inner, .. } => {
                inner.is_retries()
            }
            _ => false,
        }
    }

    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self.database() {
            _ if matches!(self.root(), Error::SomeNodesAreBehind) => Fate::RetryHere,
            Some(error) => match error.kind {
                DatabaseErrorKind::Busy => Fate::RetryHere,
                DatabaseErrorKind::NoLeader | DatabaseErrorKind::Lost => Fate::RetryElsewhere,
                DatabaseErrorKind::OutcomeUnknown => Fate::OutcomeUnknown,
                DatabaseErrorKind::Refused => Fate::Reject,
            },
            None => Fate::Reject,
        }
    }
}

/// Says what failed.
pub(crate) trait Within<T> {
    fn within(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Within<T> for Result<T, E> {
    fn within(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|error| error.into().within(what))
    }
}
