//! Consensus: openraft's adapters, and nothing that decides policy or knows SQL.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | openraft's types, named; conversions to the log's types |
//! | [`command`] | what an entry's bytes say |
//! | [`core`] | the running core, as the rest of the node sees it |
//! | [`machine`] | the state machine |
//! | [`membership`] | the membership in bytes |
//! | [`fields`] | little-endian fields |
//! | [`snapshot`] | the seam between the state machine and the transport of snapshots |
//!
//! *Invariant*: openraft's names appear in this module only, and nothing here blocks the
//! asynchronous runtime with a system call on a file.

pub mod command;
pub mod core;
pub mod fields;
pub mod frames;
pub mod machine;
pub mod membership;
pub mod snapshot;
pub mod types;

pub use self::core::{Core, CoreView, Raft, WriteFailure};
pub use types::{Command, Outcome};
