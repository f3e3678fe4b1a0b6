//! What happened, as lines with the simulated time: two runs of one seed have the same.
//!
//! *Invariant*: a line is a function of the seed alone; it has no address of memory, no real time.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// The lines so far, as a hash; the text goes to standard error where somebody reads it.
#[derive(Default)]
pub struct Trace {
    hash: RefCell<DefaultHasher>,
    now: Cell<Duration>,
    print: bool,
}

impl Trace {
    /// A trace that prints its lines, or does not.
    pub fn new(print: bool) -> Trace {
        Trace { print, ..Trace::default() }
    }

    /// It is so late.
    pub fn set_now(&self, now: Duration) {
        self.now.set(now);
    }

    /// The simulated time since the beginning.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    /// Something happened.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let what = what();
        (self.now.get(), &what).hash(&mut *self.hash.borrow_mut());
        if self.print {
            eprintln!("{:10.3} {what}", self.now.get().as_secs_f64());
        }
    }

    /// What two runs of one seed have in common.
    pub fn digest(&self) -> u64 {
        self.hash.borrow().finish()
    }
}
