//! Chaos: real processes under faults, with clients whose every operation is written down and held
//! against what Quire promises.
//!
//! | module | what it is |
//! |---|---|
//! | [`relay`] | the network between nodes, and its faults |
//!
//! *Invariant*: nothing here is excused by a fault: a fault may make an operation fail or its
//! outcome unknown, never its history wrong.

pub mod relay;
