//! The bodies of the fuzz targets: plain functions of bytes that panic where something is wrong.
//!
//! Each runs twice: under libFuzzer (`fuzz_targets/`), and for a bounded number of cases under
//! proptest on a stable toolchain (`tests/fuzz.rs`, which includes this file; `tests/noise.rs` for
//! [`wire`]). The bytes are either taken as they are, or they choose what is done ([`Input`]), so
//! that random bytes come far and a small change of them is a small change of what is done.
//!
//! *Invariant*: what a body does is a function of its bytes; it touches no file but those it made.

pub mod config;
pub mod delta;
pub mod input;
pub mod peers;
pub mod record;
pub mod recovery;
pub mod schema;
pub mod snapshot;
pub mod sql;
pub mod wire;

pub use input::Input;
