//! Disks that lose power, rot and fail under whole nodes: rungs R3, R4 and R5 of the ladder.
//!
//! The nodes run on one thread, on disks in memory, with a clock that stands still while anybody
//! has work ([`crate::memory`]): no real time passes, so that tens of thousands of restarts are a
//! matter of minutes. [`cuts`] fails the power at every call to the disk, [`damage`] changes bytes
//! of a stopped node, [`fails`] lets calls fail. Each is a function of a seed and of how many, that
//! returns what it counted.
//!
//! What must be there afterwards is known from a ledger ([`run`]): what was attempted and what was
//! acknowledged, at which moment, and what stock SQLite holds after each transaction ([`ops`]).
//!
//! *Invariant*: nothing here reads the machine's clock or draws randomness but from the seed; an
//! error says rung, seed and number, which repeat it.

pub mod cuts;
pub mod damage;
pub mod fails;
pub mod ops;
pub mod run;

use std::collections::BTreeMap;
use std::future::Future;

use quire::base::{Randomness, SplitMix};

/// What a sweep counted.
pub type Counts = BTreeMap<&'static str, u64>;

/// Adds what another sweep counted.
pub fn add_all(counts: &mut Counts, more: Counts) {
    for (what, count) in more {
        *counts.entry(what).or_default() += count;
    }
}

fn count(counts: &mut Counts, what: &'static str, by: u64) {
    *counts.entry(what).or_default() += by;
}

/// Runs on this thread, on a clock that moves only when nobody has anything to do.
pub fn on_a_stopped_clock<T>(future: impl Future<Output = T>) -> T {
    // So that a run is the same each time.
    quire::raft::runtime::seed_thread(1);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    #[cfg(tokio_unstable)]
    runtime
        .rng_seed(tokio::runtime::RngSeed::from_bytes(b"storage"))
        .unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime without threads").block_on(future)
}

/// Numbers drawn from a seed.
struct Dice(SplitMix);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(SplitMix::new(seed))
    }

    /// One that goes its own way for each `n`.
    fn nth(seed: u64, n: u64) -> Dice {
        let mixed = SplitMix::new(seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dice(SplitMix::new(mixed.next_u64()))
    }

    fn below(&self, n: u64) -> u64 {
        self.0.next_u64() % n.max(1)
    }

    fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn bytes(&self, len: u64) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.0.next_u64().to_le_bytes());
        words.take(len as usize).collect()
    }
}

/// Says what repeats a panic on its way out.
struct Repeat(String);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: {}", self.0);
        }
    }
}
