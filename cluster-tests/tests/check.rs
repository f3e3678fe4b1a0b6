//! The checkers are checked (and the picture of a run): on anomalies planted by hand, one a test; on histories of a store that
//! is right, which they must accept; on such histories with a change, which they must not; and
//! against a search through all orders of tiny histories, with which they must agree.

#[path = "check/adya.rs"]
mod adya;
#[path = "check/bank.rs"]
mod bank;
#[path = "check/kept.rs"]
mod kept;
#[path = "check/register.rs"]
mod register;
#[path = "check/set.rs"]
mod set;
#[path = "check/support.rs"]
mod support;
#[path = "check/timeline.rs"]
mod timeline;
