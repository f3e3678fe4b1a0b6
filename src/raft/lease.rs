//! The guard of forgotten leases. A follower that hears from the leader grants it a lease, in
//! memory: for that long it helps nobody else to become leader, and the leader answers lease reads
//! on the strength of it. A restarted node has forgotten what it granted, and openraft lets it
//! vote and campaign at once. So for the length of a lease after its start, drift included, a
//! node answers no vote, pre-vote or leader transfer, and *asks* for no vote either: its own vote
//! for itself would count as much as one given to another.
//!
//! A node that has neither log nor vote has granted nothing, and is not held up. A cluster of a
//! single voter asks nobody, and is not held up either.
//!
//! *Invariant*: whether a lease may be outstanding is decided here only; both directions of
//! [`super::network`] and [`super::peers`] ask before they pass a vote on.

use std::sync::Arc;
use std::time::Duration;

use super::config::Timeouts;
use crate::base::Clock;
use crate::base::planted::{Bug, planted};

/// Whether this node may take part in elections yet.
pub struct LeaseGuard {
    clock: Arc<dyn Clock>,
    until: Duration,
}

/// Not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("restarted a moment ago: takes no part in elections for another {} ms", left.as_millis())]
pub struct Guarded {
    /// How much longer.
    pub left: Duration,
}

impl LeaseGuard {
    /// The guard of a node that starts now. `uninitialised`: it has neither log nor vote.
    pub fn at_start(clock: Arc<dyn Clock>, timeouts: &Timeouts, uninitialised: bool) -> LeaseGuard {
        let free = uninitialised || planted(Bug::LeaseForgotten);
        let wait = if free { Duration::ZERO } else { timeouts.lease_guard() };
        let until = clock.monotonic() + wait;
        LeaseGuard { clock, until }
    }

    /// Fails while a forgotten lease may be outstanding.
    pub fn check(&self) -> Result<(), Guarded> {
        match self.until.checked_sub(self.clock.monotonic()) {
            Some(left) if !left.is_zero() => Err(Guarded { left }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::SeqCst))
        }
        fn unix(&self) -> Duration {
            self.monotonic()
        }
    }

    #[test]
    fn a_restarted_node_waits_a_lease_and_the_drift() {
        let clock = Arc::new(Hand(AtomicU64::new(5_000)));
        let timeouts = Timeouts::default();
        let guard = LeaseGuard::at_start(clock.clone(), &timeouts, false);
        assert_eq!(guard.check(), Err(Guarded { left: Duration::from_millis(495) }));
        clock.0.store(5_494, Ordering::SeqCst);
        assert!(guard.check().is_err());
        clock.0.store(5_495, Ordering::SeqCst);
        assert_eq!(guard.check(), Ok(()));
    }

    #[test]
    fn a_fresh_node_waits_for_nothing() {
        let clock = Arc::new(Hand(AtomicU64::new(0)));
        assert_eq!(LeaseGuard::at_start(clock, &Timeouts::default(), true).check(), Ok(()));
    }
}
