//! SQLite over the page store: the virtual file system, connections on it, what a client's SQL
//! may do, and errors with SQLite's own codes and texts.
//!
//! It knows neither Raft nor sockets. A connection's commits become deltas of a
//! [`Store`](crate::pages::Store); who may commit, and when the answer may leave the node, is
//! decided by `member`.
//!
//! *Invariant*: unsafe code stands in `vfs` only; a client's text never names a file.

pub mod connection;
mod guard;
pub mod link;
mod stop;
mod stored;
mod temp;
pub mod text;
mod vfs;

pub use connection::{
    Columns, Connection, ConnectionOptions, Delivery, Gate, Ran, Request, Retention, RowSink,
    SqlError, Surplus, Value,
};
pub use link::{Published, Seen, View};
pub use rusqlite::types::ValueRef;
pub use stop::{Cancel, TimeLimit};
pub use stored::Stored;
pub use temp::TempSpace;
pub use vfs::{give_back_memory, set_thread_clock};
