//! The doors of a node: one listener for clients and peers alike, told apart by the first eight
//! bytes; and the gateway, which speaks the dqlite protocol with one client.
//!
//! | file | what it is |
//! |---|---|
//! | [`listen`] | addresses, sockets, the accept loop |
//! | [`gateway`] | one client's connection: requests in, answers out |
//! | `request` | what each request does |
//! | `statements` | the texts of what a client has prepared |
//! | `sink` | rows, from SQLite straight into messages |
//! | `dump` | a whole database, from a snapshot straight into a message |
//! | `schema` | what is told of the schema gate |
//!
//! *Invariant*: no door decides what is true; it asks `member` and says what it was told. Memory
//! for a connection is bounded by what it sent, by the texts that it prepared, by one batch of
//! rows, and by a few pieces of a dump.

mod dump;
pub mod gateway;
pub mod listen;
mod request;
mod schema;
mod sink;
mod statements;

pub use listen::{Listener, serve};
pub use schema::SchemaDesk;
