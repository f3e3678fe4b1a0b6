//! The ambient things that everything else must ask for: ids, limits, the clock, randomness,
//! the executor that owns threads, and what is to be done about an error ([`Fate`]).
//!
//! Nothing here does I/O, and nothing here knows of SQLite or Raft.
//!
//! *Invariant*: outside this module nobody reads the machine's clock, draws randomness or starts
//! a thread; a test (and the simulation) passes in its own [`Env`].

pub mod address;
pub mod exec;
pub mod ids;
pub mod limits;
pub mod planted;
pub mod quorum;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

pub use exec::{Executor, Lane};
pub use ids::{DatabaseId, DatabaseName, DeltaId, MemberInfo, NodeId, RequestId, Role};

/// What the holder of an error should do about it. Each layer's error enum answers its `fate()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The same request may succeed here a little later (busy, too old a snapshot).
    RetryHere,
    /// The request was certainly not executed; another node (the leader) can serve it.
    RetryElsewhere,
    /// The request itself is wrong or refused; repeating it changes nothing.
    Reject,
    /// Nobody can tell whether the request was executed.
    OutcomeUnknown,
    /// This node must not go on.
    Fatal,
}

/// The machine's clocks, as an argument.
pub trait Clock: Send + Sync + 'static {
    /// Time since an arbitrary start that never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since the Unix epoch; may jump.
    fn unix(&self) -> Duration;
}

/// A source of random numbers, as an argument. Not for secrets.
pub trait Randomness: Send + Sync + 'static {
    /// The next 64 random bits.
    fn next_u64(&self) -> u64;
}

/// Everything ambient that a node needs, passed in once at its start.
#[derive(Clone)]
pub struct Env {
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Randomness>,
    /// Threads, or none of them under simulation.
    pub executor: Executor,
}

impl Env {
    /// The real machine: its clocks, randomness seeded from the system, real threads.
    pub fn real() -> Env {
        Env {
            clock: Arc::new(RealClock { start: Instant::now() }),
            random: Arc::new(SplitMix::new(system_seed())),
            executor: Executor::Threads,
        }
    }
}

struct RealClock {
    start: Instant,
}

impl Clock for RealClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn unix(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// A small seeded generator (SplitMix64): reproducible, and good enough for ids and jitter.
pub struct SplitMix {
    state: AtomicU64,
}

impl SplitMix {
    /// A generator whose sequence is a function of `seed` alone.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix { state: AtomicU64::new(seed) }
    }
}

impl Randomness for SplitMix {
    fn next_u64(&self) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15_u64;
        let mut z = self.state.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn system_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // RandomState is seeded by the operating system once per process.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}
