//! The cluster schema gate.

mod engine;
mod support;
#[path = "../common/trio.rs"]
mod trio;
