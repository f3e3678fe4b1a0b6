//! How much room a disk has beyond a reserve: looked at now and then by one task, asked by many.
//!
//! *Invariant*: asking costs no system call.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk could take beyond the reserve when it was last looked at.
pub struct Room {
    beyond_bytes: AtomicU64,
}

impl Default for Room {
    fn default() -> Room {
        Room { beyond_bytes: AtomicU64::new(Room::PLENTY) }
    }
}

impl Room {
    /// As much as one could want: until somebody looked.
    pub const PLENTY: u64 = u64::MAX - 1;

    /// Notes what was found.
    pub fn set(&self, available_bytes: u64, reserve_bytes: u64) {
        let beyond = available_bytes.saturating_sub(reserve_bytes).min(Room::PLENTY);
        self.beyond_bytes.store(beyond, Ordering::Relaxed);
    }

    /// Bytes that can be taken beyond the reserve.
    pub fn beyond_bytes(&self) -> u64 {
        self.beyond_bytes.load(Ordering::Relaxed)
    }

    /// Whether the reserve is touched.
    pub fn is_short(&self) -> bool {
        self.beyond_bytes() == 0
    }
}
