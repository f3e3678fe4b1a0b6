//! What can be wrong with received bytes, and what a server does about it: most often it closes
//! the connection without an answer, because after a malformed body nothing tells where the next
//! request begins to make sense.
//!
//! *Invariant*: every error answers both [`WireError::answer`] (for a server) and
//! [`WireError::fate`] (for everybody).

use super::code;
use crate::base::Fate;

/// What a server does about a request that it could not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Close the connection and say nothing.
    Close,
    /// Send a Failure and go on with the connection.
    Failure {
        /// The code of the Failure.
        code: u64,
        /// Its text.
        text: &'static str,
    },
}

/// What is wrong with bytes that arrived, or with a message that should leave.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame announces (or would have) more bytes than the limit in force.
    #[error("a frame of {bytes} bytes, more than the {bytes_max} allowed")]
    TooLong {
        /// Header and body together.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A frame without a body.
    #[error("a frame without a body")]
    EmptyBody,
    /// The body ends before the field does.
    #[error("the body ends within {0}")]
    Truncated(&'static str),
    /// A field that cannot be what it says.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// A request type that this build does not know.
    #[error("unknown request type {0}")]
    UnknownRequest(u8),
    /// A known request type in a schema that this build does not know.
    #[error("unknown schema {schema} of request type {kind}")]
    UnknownSchema {
        /// The request type.
        kind: u8,
        /// The schema.
        schema: u8,
        /// Whether the type takes parameters or SQL in two schemas: its Failure has another code.
        two_schemas: bool,
    },
    /// A response type that this build does not know.
    #[error("unknown response type {0}")]
    UnknownResponse(u8),
}

impl WireError {
    /// What a server does about it.
    pub fn answer(&self) -> Answer {
        match self {
            WireError::UnknownRequest(_) => {
                Answer::Failure { code: code::PARSE, text: code::UNKNOWN_REQUEST }
            }
            WireError::UnknownSchema { two_schemas, .. } => Answer::Failure {
                code: if *two_schemas { code::ERROR } else { code::PARSE },
                text: code::UNKNOWN_SCHEMA,
            },
            WireError::TooLong { .. }
            | WireError::EmptyBody
            | WireError::Truncated(_)
            | WireError::Malformed(_)
            | WireError::UnknownResponse(_) => Answer::Close,
        }
    }

    /// Such bytes are wrong wherever they are sent.
    pub fn fate(&self) -> Fate {
        Fate::Reject
    }
}
