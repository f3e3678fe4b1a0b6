//! Tests of the parts together: pipelines and transfers over pipes, the storage test-suite, and
//! clusters in this process over real connections.

mod adapted;
mod cluster;
mod parts;
mod suite;
mod toy;
mod wires;
