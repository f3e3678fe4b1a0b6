//! What can go wrong for a caller of the driver, sorted by what the caller can do about it
//! ([`DriverError::fate`]).
//!
//! *Invariant*: an error other than [`DriverError::OutcomeUnknown`] is a promise that nothing of
//! the statement was kept.

use std::fmt;

use crate::base::Fate;
use crate::wire::code;

/// What one address did while a leader was searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The address.
    pub address: String,
    /// What it did.
    pub outcome: Outcome,
}

/// See [`Attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection; the system's reason.
    Refused(String),
    /// No connection or no answer in time.
    TimedOut,
    /// It closed the connection, or what it said made no sense.
    Broke(String),
    /// It said that another one leads.
    Named(String),
    /// It knows of no leader.
    KnowsNone,
    /// It answered a request with "not leader".
    NotLeader,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Refused(reason) => write!(f, "cannot be reached ({reason})"),
            Outcome::TimedOut => f.write_str("did not answer in time"),
            Outcome::Broke(reason) => write!(f, "broke off ({reason})"),
            Outcome::Named(leader) => write!(f, "named {leader}"),
            Outcome::KnowsNone => f.write_str("knows no leader"),
            Outcome::NotLeader => f.write_str("does not lead"),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.outcome)
    }
}

/// All attempts in one sentence's second half.
fn list(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return "there was no time to ask anybody".to_owned();
    }
    attempts.iter().map(Attempt::to_string).collect::<Vec<_>>().join(", ")
}

/// An error of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// Nobody leads, as far as the given addresses can tell. Nothing was executed.
    #[error("found no leader: {}", list(.attempts))]
    NoLeader {
        /// What each address did last.
        attempts: Vec<Attempt>,
    },
    /// SQLite, or the server, refused the statement.
    #[error("{message}")]
    Sqlite {
        /// SQLite's extended code, or one of [`code`].
        code: u64,
        /// SQLite's own text.
        message: String,
    },
    /// The statement was sent and nobody can tell whether it was executed.
    #[error("the outcome of the statement is unknown: {cause}")]
    OutcomeUnknown {
        /// What happened.
        cause: String,
    },
    /// The transaction was rolled back because its connection or its leader went away.
    #[error("the transaction was rolled back: {cause}")]
    TransactionLost {
        /// What happened.
        cause: String,
    },
    /// The one member that was asked cannot serve this. Nothing was executed.
    #[error("{attempt}")]
    Member {
        /// Who, and what it did.
        attempt: Attempt,
    },
    /// A stream of rows broke off: what came before was right, the rest is missing.
    #[error("the rows broke off: {cause}")]
    StreamBroken {
        /// What happened.
        cause: String,
    },
    /// The time was over before the statement was sent, or before a read was answered.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// The result has more bytes than a collected result may have.
    #[error("the result has more than {bytes_max} bytes; read it as a stream")]
    ResultTooLarge {
        /// The bound, from [`super::Options`].
        bytes_max: usize,
    },
    /// The call itself cannot be right.
    #[error("{0}")]
    Invalid(String),
}

impl DriverError {
    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            DriverError::NoLeader { .. }
            | DriverError::Member { .. }
            | DriverError::StreamBroken { .. }
            | DriverError::TransactionLost { .. } => Fate::RetryElsewhere,
            DriverError::Sqlite { code, .. } if code & 0xFF == code::BUSY => Fate::RetryHere,
            DriverError::TimedOut(_) => Fate::RetryHere,
            DriverError::OutcomeUnknown { .. } => Fate::OutcomeUnknown,
            DriverError::Sqlite { .. }
            | DriverError::ResultTooLarge { .. }
            | DriverError::Invalid(_) => Fate::Reject,
        }
    }

    /// Whether somebody else was writing: SQLITE_BUSY and its extended codes.
    pub fn is_busy(&self) -> bool {
        matches!(self, DriverError::Sqlite { code, .. } if code & 0xFF == code::BUSY)
    }
}
