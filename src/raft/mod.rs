//! Consensus: openraft's adapters, and nothing that decides policy or knows SQL.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | openraft's types, named; conversions to the log's types |
//! | [`command`] | what an entry's bytes say |
//! | [`core`] | the running core, as the rest of the node sees it |
//! | [`changes`] | changes of the membership |
//! | [`machine`] | the state machine |
//! | [`config`] | openraft's settings, and its timing explained |
//! | [`lease`] | the guard of leases that a restarted node forgot |
//! | [`log_store`] | openraft's log storage over the log on disk |
//! | [`network`] | openraft's network: the asking side of every peer connection |
//! | [`peers`] | the answering side |
//! | [`snapshot`] | the seam between the state machine and the transport of snapshots |
//! | [`transfer`] | that transport |
//! | [`view`] | the page store's views and receptions as its source and sink |
//! | [`holds`] | what keeps the log from being purged while a snapshot is on its way |
//! | [`append`], [`calls`] | the two kinds of client under `network` |
//! | [`connection`] | frames on a stream, the hello |
//! | [`frames`], [`messages`] | the same as values: frames and what they say |
//! | [`membership`], [`fields`] | the membership in bytes; little-endian fields |
//!
//! *Invariant*: openraft's names appear in this module only, and nothing here blocks the
//! asynchronous runtime with a system call on a file.

pub mod append;
pub mod calls;
pub mod changes;
pub mod command;
pub mod config;
pub mod connection;
pub mod core;
pub mod fields;
pub mod frames;
pub mod holds;
pub mod lease;
pub mod log_store;
pub mod machine;
pub mod membership;
pub mod messages;
pub mod network;
pub mod peers;
pub mod runtime;
pub mod snapshot;
pub mod transfer;
pub mod types;
pub mod view;

pub use self::changes::{ChangeFailure, Turn};
pub use self::core::{Core, CoreView, Raft, WriteFailure};
pub use types::{Command, Outcome};
#[cfg(test)]
mod tests;
