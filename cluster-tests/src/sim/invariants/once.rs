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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Event;

    #[test]
    fn a_request_executed_twice_or_not_at_all_is_found() {
        let told = |outcome, counters: &[(i64, i64)]| {
            let event = Event { client: 1, called: 0, returned: 1, outcome, op: 7 };
            let (once, counters) = (vec![event], counters.to_vec());
            Once.end(&[], &Histories { once, counters, ..Histories::default() })
        };
        told(Outcome::Done, &[(7, 1)]).unwrap();
        told(Outcome::Refused, &[(8, 1)]).unwrap();
        told(Outcome::Unknown, &[]).unwrap();
        for (outcome, counters) in [
            (Outcome::Done, &[(7, 2)][..]),
            (Outcome::Done, &[]),
            (Outcome::Refused, &[(7, 1)]),
            (Outcome::Unknown, &[(7, 2)]),
        ] {
            told(outcome, counters).unwrap_err();
        }
    }
}
