//! The dqlite wire protocol as pure encode and decode, and our own requests beside it.
//!
//! A connection starts with eight bytes from the client, the [`Handshake`] word; the server
//! answers nothing to it. From then on both sides send frames: a header of eight bytes and a body
//! of whole eight-byte words ([`frame`]). A client sends one [`Request`] and reads its
//! [`Response`]; only Rows may come in several messages ([`rows`]). Everything is little-endian
//! and drawn in docs/format.md, "The client protocol".
//!
//! | file | what it holds |
//! |---|---|
//! | `code` | the codes and texts of Failure answers that clients look for |
//! | `error` | what is wrong with received bytes, and what a server answers to it |
//! | `field` | integers, texts and blobs in a body |
//! | `frame` | headers, whole frames out of a stream of bytes |
//! | `value` | values and parameters, which are decoded only when they are bound |
//! | `request`, `response` | the messages |
//! | `files` | the one message that is larger than memory: a dumped database |
//! | `rows` | result rows: the hot path, encoded without an allocation per value |
//!
//! What this module is not: it opens no socket, waits for nothing, and knows nothing of SQLite or
//! of who is the leader. Decoding never panics and never allocates more than a small multiple of
//! the bytes that really arrived, whatever lengths those bytes claim.
//!
//! *Invariant*: `wire` does no I/O and imports neither tokio nor rusqlite; within it there is no
//! `as` cast, no indexing and no `unwrap`.

#![cfg_attr(not(test), deny(clippy::as_conversions, clippy::indexing_slicing))]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod code;
pub mod error;
mod field;
pub mod files;
pub mod frame;
pub mod request;
pub mod response;
pub mod rows;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod value;

pub use error::{Answer, WireError};
pub use files::{FilesDecoder, FilesPiece};
pub use frame::{Frame, FrameDecoder, Header};
pub use request::{ReadLevel, Request};
pub use response::{Dialect, File, NodeInfo, Response, Status, StatusMember};
pub use rows::{Batch, End, RowsDecoder, RowsEncoder, Step};
pub use schema::{SchemaNode, SchemaStatus};
pub use value::{BadParameter, Declared, Params, Text, Value, ValueRef};

/// The first eight bytes of a connection, as a little-endian integer: who is calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A client of the current protocol.
    Current,
    /// A client of the protocol before its version 1; only the answer to Leader differs.
    Legacy,
    /// Another node of this cluster: what follows is not the client protocol.
    Peer,
}

impl Handshake {
    /// How many bytes the word has.
    pub const BYTES: usize = 8;

    /// The caller that says `word`; `None` means close the connection without a word.
    pub fn from_word(word: u64) -> Option<Handshake> {
        [Handshake::Current, Handshake::Legacy, Handshake::Peer]
            .into_iter()
            .find(|handshake| handshake.word() == word)
    }

    /// The word that says it.
    pub const fn word(self) -> u64 {
        match self {
            Handshake::Current => 1,
            Handshake::Legacy => 0x8610_4dd7_6043_3fe5,
            Handshake::Peer => u64::from_le_bytes(*b"QUIREPR1"),
        }
    }

    /// The bytes that say it.
    pub const fn bytes(self) -> [u8; Handshake::BYTES] {
        self.word().to_le_bytes()
    }
}

/// The version of our own requests (128 and up) that this build speaks, said in Hello.
pub const EXTENSION_VERSION: u64 = 2;

/// From this version on a server knows RequestId and Outcome.
pub const EXTENSION_VERSION_ONCE: u64 = 2;
