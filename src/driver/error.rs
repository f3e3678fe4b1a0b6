//! What can go wrong for a caller of the driver, sorted by what the caller can do about it
//! ([`DriverError::fate`]).
//!
//! *Invariant*: an error other than [`DriverError::OutcomeUnknown`] is a promise that nothing of
//! the statement was kept; but for [`DriverError::Row`] and [`DriverError::ResultTooLarge`], which
//! are about the rows of a statement that ran.

use std::fmt;
use std::time::Duration;

use crate::base::Fate;
use crate::base::quorum::Voice;
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
    /// Nobody listens there.
    Refused,
    /// No connection; the system's reason.
    Unreachable(String),
    /// No connection or no answer within this time.
    TimedOut(Duration),
    /// It closed the connection, or what it said made no sense.
    Broke(String),
    /// It said that another one leads.
    Named(String),
    /// It knows of no leader.
    KnowsNone,
    /// It answered a request with "not leader".
    NotLeader,
    /// It lets no clients in: its schema gate is not open. What it said.
    Shut(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Refused => f.write_str("refused the connection"),
            Outcome::Unreachable(reason) => write!(f, "cannot be reached ({reason})"),
            Outcome::TimedOut(within) if within.subsec_millis() == 0 => {
                write!(f, "did not answer in {} s", within.as_secs())
            }
            Outcome::TimedOut(within) => {
                write!(f, "did not answer in {} ms", within.as_millis())
            }
            Outcome::Broke(reason) => write!(f, "broke off ({reason})"),
            Outcome::Named(leader) => write!(f, "named {leader}"),
            Outcome::KnowsNone => f.write_str("knows no leader"),
            Outcome::NotLeader => f.write_str("does not lead"),
            Outcome::Shut(text) => write!(f, "refused: {text}"),
        }
    }
}

impl Outcome {
    /// Whether it answers, whatever it says.
    pub(super) fn voice(&self) -> Voice {
        match self {
            Outcome::Named(_) | Outcome::KnowsNone | Outcome::NotLeader | Outcome::Shut(_) => {
                Voice::Answers
            }
            silent => Voice::Silent(silent.to_string()),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.outcome)
    }
}

/// An error of the driver.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// Nobody leads, as far as the known addresses can tell; or who leads lets no clients in. Nothing
    /// was executed.
    #[error("{why}")]
    NoLeader {
        /// In one sentence: who answers, who does not and how, how many votes are missing.
        why: String,
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
    /// Too many calls wait for a connection of the pool already. Nothing was executed.
    #[error(
        "{waiters_max} calls wait for a connection already; allow more connections, or send less"
    )]
    Overloaded {
        /// The bound, from [`super::Options`].
        waiters_max: usize,
    },
    /// The client was closed by [`super::Client::close`]. Nothing was executed.
    #[error("the client is closed")]
    Closed,
    /// A row does not fit the type that it was to become. The statement ran all the same.
    #[error("row {row}: {problem}")]
    Row {
        /// Which row, counted from 1.
        row: usize,
        /// Column, what was expected and what is there.
        problem: String,
    },
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
    /// Where nobody could be asked: the reason that the leader gave for letting no clients in.
    pub(super) fn because(self, shut: Option<String>) -> DriverError {
        match (self, shut) {
            (DriverError::NoLeader { attempts, .. }, Some(why)) => {
                DriverError::NoLeader { why, attempts }
            }
            (error, _) => error,
        }
    }

    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            DriverError::NoLeader { .. }
            | DriverError::Member { .. }
            | DriverError::StreamBroken { .. }
            | DriverError::TransactionLost { .. } => Fate::RetryElsewhere,
            DriverError::Sqlite { code, .. } if code & 0xFF == code::BUSY => Fate::RetryHere,
            DriverError::TimedOut(_) | DriverError::Overloaded { .. } => Fate::RetryHere,
            DriverError::OutcomeUnknown { .. } => Fate::OutcomeUnknown,
            DriverError::Sqlite { .. }
            | DriverError::ResultTooLarge { .. }
            | DriverError::Row { .. }
            | DriverError::Closed
            | DriverError::Invalid(_) => Fate::Reject,
        }
    }

    /// Whether somebody else was writing: SQLITE_BUSY and its extended codes.
    pub fn is_busy(&self) -> bool {
        matches!(self, DriverError::Sqlite { code, .. } if code & 0xFF == code::BUSY)
    }
}
