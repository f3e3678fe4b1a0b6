//! What was added to the set is in it, and nothing else.

use std::rc::Rc;

use super::Invariant;
use crate::check::{Violation, set};
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// See the module.
pub struct Set;

impl Invariant for Set {
    fn name(&self) -> &'static str {
        "what was added is in the set"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        set::check(&histories.set)
    }
}
