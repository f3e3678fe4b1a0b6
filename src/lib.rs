//! Quire: replicated SQLite. Three or more nodes hold one SQLite database (and many more by
//! name); write transactions run on real SQLite at the leader, on a virtual file system of ours;
//! the bytes of the pages that they change are what Raft replicates: *the Raft log is the
//! write-ahead log*.
//!
//! The modules, bottom up (a module uses only modules above it in this list):
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | errors' fate, limits, ids, clock, randomness: what everything else must ask for |
//! | [`codec`] | bytes to values and back: checksums and primitive layouts |
//! | [`disk`] | the only door to files |
//! | [`log`] | the Raft log on disk |
//! | [`pages`] | the versioned page store |
//! | [`sqlite`] | SQLite over `pages` |
//! | [`raft`] | openraft adapters, no policy and no SQL |
//! | [`member`] | one member's core: write pipeline, reads, lifecycle |
//! | [`wire`] | the dqlite protocol as pure encode and decode |
//! | [`driver`] | the client |
//! | [`cluster`] | the gate that schemas pass: nodes, levels, updates |
//! | [`server`] | the doors: one listener, sessions, gateway, peers |
//! | [`node`] | one running node put together |
//! | [`cli`] | the subcommands of `quire` |

pub mod base;
pub mod cli;
pub mod cluster;
pub mod codec;
pub mod disk;
pub mod driver;
pub mod log;
pub mod member;
pub mod node;
pub mod pages;
pub mod raft;
pub mod server;
pub mod sqlite;
pub mod wire;
