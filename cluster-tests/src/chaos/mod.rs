//! Chaos: real processes under faults, with clients whose every operation is written down and held
//! against what Quire promises.
//!
//! | module | what it is |
//! |---|---|
//! | [`relay`] | the network between nodes, and its faults |
//! | [`nemesis`] | what goes wrong |
//! | [`workload`] | what clients do |
//! | [`clients`] | clients in Go and Python |
//! | [`ledger`] | what they were told |
//! | [`run`] | all of it together: a run, and its report |
//! | [`failover`] | how long writes are gone when a leader goes |
//!
//! *Invariant*: nothing here is excused by a fault: a fault may make an operation fail or its
//! outcome unknown, never its history wrong.

pub mod clients;
pub mod failover;
pub mod ledger;
pub mod nemesis;
pub mod relay;
pub mod run;
pub mod workload;

use quire::base::{Randomness, SplitMix};

pub use nemesis::Nemesis;
pub use run::{Plan, Report, Work, run};

/// Dice, cast with a seed.
pub struct Chance(SplitMix);

impl Chance {
    /// Dice whose throws are a function of `seed`.
    pub fn new(seed: u64) -> Chance {
        Chance(SplitMix::new(seed))
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&self, end: u64) -> u64 {
        self.0.next_u64() % end.max(1)
    }

    /// True once in so many times.
    pub fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of them.
    pub fn pick<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        of.get(usize::try_from(self.below(of.len() as u64)).unwrap_or(0))
    }
}
