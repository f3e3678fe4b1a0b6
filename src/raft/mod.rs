//! Consensus: openraft's adapters, and nothing that decides policy or knows SQL.
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | openraft's types, named; conversions to the log's types |
//! | [`membership`] | the membership in bytes |
//! | [`fields`] | little-endian fields |
//! | [`snapshot`] | the seam between the state machine and the transport of snapshots |
//!
//! *Invariant*: openraft's names appear in this module only, and nothing here blocks the
//! asynchronous runtime with a system call on a file.

pub mod fields;
pub mod frames;
pub mod membership;
pub mod snapshot;
pub mod types;
