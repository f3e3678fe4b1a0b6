//! A request with an id is executed once, however often it was sent.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Invariant;
use crate::check::{Outcome, Violation};
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// See the module.
pub struct Once;

impl Invariant for Once {
    fn name(&self) -> &'static str {
        "a request with an id is executed once"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        let counters: BTreeMap<i64, i64> = histories.counters.iter().copied().collect();
        for event in &histories.once {
            let n = counters.get(&event.op).copied().unwrap_or(0);
            let good = match event.outcome {
                Outcome::Done => n == 1,
                Outcome::Refused => n == 0,
                Outcome::Unknown => n <= 1,
            };
            if !good {
                let (id, outcome) = (event.op, event.outcome);
                return Err(Violation(format!("request {id} is {outcome:?}; executed: {n} times")));
            }
        }
        Ok(())
    }
}
