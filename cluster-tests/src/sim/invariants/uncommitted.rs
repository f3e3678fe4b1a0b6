//! No reader sees an uncommitted page: whatever anybody read of the set, at whatever level and on
//! whatever member, is there at the end.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::Invariant;
use crate::check::{SetOp, Violation};
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// See the module.
pub struct Uncommitted;

impl Invariant for Uncommitted {
    fn name(&self) -> &'static str {
        "no reader sees what is not committed"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        let last = histories.set.iter().rev().find_map(|event| match &event.op {
            SetOp::Read { elements } => Some(elements.iter().copied().collect::<BTreeSet<i64>>()),
            SetOp::Add { .. } => None,
        });
        let gone: Vec<i64> =
            histories.seen.difference(&last.unwrap_or_default()).copied().collect();
        match gone.is_empty() {
            true => Ok(()),
            false => Err(Violation(format!("seen by a reader, and gone at the end: {gone:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Event, Outcome};

    #[test]
    fn what_was_seen_and_is_gone_is_found() {
        let seen = |seen: &[i64]| {
            let op = SetOp::Read { elements: vec![1, 2] };
            let read = Event { client: 1, called: 0, returned: 1, outcome: Outcome::Done, op };
            let seen = seen.iter().copied().collect();
            Uncommitted.end(&[], &Histories { set: vec![read], seen, ..Histories::default() })
        };
        seen(&[1]).unwrap();
        seen(&[1, 3]).unwrap_err();
    }
}
