//! Holds on the log: while a snapshot is on its way to a follower, and for a while after, the
//! entries behind it are kept, else the follower would need another snapshot at once.
//!
//! A hold is a wish: whoever purges bounds the bytes that it honours.
//!
//! *Invariant*: a hold that was dropped ends by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::{Clock, limits};

/// All holds of a node. Clones share them.
#[derive(Clone)]
pub struct PurgeHolds {
    clock: Arc<dyn Clock>,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    count: u64,
    /// By number: the index held, and the end of the hold once it was dropped.
    holds: BTreeMap<u64, (u64, Option<Duration>)>,
}

/// Keeps the entries after an index.
pub struct PurgeHold {
    holds: PurgeHolds,
    number: u64,
}

impl PurgeHolds {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> PurgeHolds {
        PurgeHolds { clock, held: Arc::default() }
    }

    /// Asks that the entries after `index` be kept.
    pub fn hold(&self, index: u64) -> PurgeHold {
        let mut held = self.held.lock();
        held.count += 1;
        let number = held.count;
        held.holds.insert(number, (index, None));
        PurgeHold { holds: self.clone(), number }
    }

    /// The last index that may be purged as far as holds go; `None` when there is no hold.
    pub fn lowest(&self) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut held = self.held.lock();
        held.holds.retain(|_, (_, end)| end.is_none_or(|end| now < end));
        held.holds.values().map(|(index, _)| *index).min()
    }
}

impl Drop for PurgeHold {
    fn drop(&mut self) {
        let end = self.holds.clock.monotonic() + limits::LOG_HELD_AFTER_TRANSFER_MAX;
        if let Some((_, of)) = self.holds.held.lock().holds.get_mut(&self.number) {
            *of = Some(end);
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
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }

        fn unix(&self) -> Duration {
            self.monotonic()
        }
    }

    #[test]
    fn a_hold_lingers_and_ends() {
        let clock = Arc::new(Hand(AtomicU64::new(0)));
        let holds = PurgeHolds::new(clock.clone());
        assert_eq!(holds.lowest(), None);
        let (first, second) = (holds.hold(30), holds.hold(20));
        assert_eq!(holds.lowest(), Some(20));
        drop(second);
        assert_eq!(holds.lowest(), Some(20));
        clock.0.store(limits::LOG_HELD_AFTER_TRANSFER_MAX.as_secs(), Ordering::SeqCst);
        assert_eq!(holds.lowest(), Some(30));
        clock.0.store(1000, Ordering::SeqCst);
        assert_eq!(holds.lowest(), Some(30));
        drop(first);
    }
}
