//! The cluster schema gate.

mod check;
mod crash;
mod engine;
mod nodes;
mod real;
mod support;
mod tables;
#[path = "../common/trio.rs"]
mod trio;
mod wait;
