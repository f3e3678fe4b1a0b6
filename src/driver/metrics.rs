//! What a client counts: searches, retries, redirects, waits, connections, unknown outcomes.
//!
//! *Invariant*: counting never waits and never fails; a count only grows, a gauge is what is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counts of one client, kept while it runs.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)*
            /// Connections that are open.
            pub(super) open: Arc<AtomicU64>,
        }

        /// What a client counted since it was made: a snapshot.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[$doc])* pub $name: u64,)*
            /// Connections that are open now: lent, idle, and those of a search.
            pub connections_open: u64,
            /// Connections that are idle in the pool now.
            pub connections_idle: u64,
        }

        impl Counters {
            pub(super) fn snapshot(&self, idle: usize) -> Metrics {
                Metrics {
                    $($name: self.$name.get(),)*
                    connections_open: self.open.load(Ordering::Relaxed),
                    connections_idle: u64::try_from(idle).unwrap_or(u64::MAX),
                }
            }
        }
    };
}

counters! {
    /// Calls: statements and administrative requests, each counted once however often it was sent.
    calls,
    /// Attempts of a call after its first.
    retries,
    /// Searches for the leader.
    searches,
    /// Searches that ended without one.
    searches_failed,
    /// Answers of a node that named another one as the leader.
    redirects,
    /// Lists of members taken from a leader.
    refreshes,
    /// Calls that had to wait for a connection of the pool.
    pool_waits,
    /// Calls that were refused because too many waited already.
    pool_refusals,
    /// Connections dialled.
    dials,
    /// Statements that were given up by their caller and interrupted at the server.
    cancels,
    /// Reads that went to a member picked by [`ReadFrom::Any`](super::ReadFrom).
    spread_reads,
    /// ... and had to be asked again elsewhere.
    spread_fallbacks,
    /// Calls that ended with [`OutcomeUnknown`](super::DriverError::OutcomeUnknown).
    outcomes_unknown,
    /// Transactions whose closure was run again.
    transaction_retries,
}

/// A count.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Held by an open connection.
#[derive(Debug)]
pub(super) struct OpenMark(Arc<AtomicU64>);

impl OpenMark {
    pub(super) fn new(counters: &Counters) -> OpenMark {
        counters.dials.add();
        counters.open.fetch_add(1, Ordering::Relaxed);
        OpenMark(counters.open.clone())
    }
}

impl Drop for OpenMark {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
