//! Transactions on lists are strictly serializable.

use std::rc::Rc;

use super::Invariant;
use crate::check::{Violation, adya};
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// See the module.
pub struct Lists;

impl Invariant for Lists {
    fn name(&self) -> &'static str {
        "transactions on lists are strictly serializable"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        adya::check(&histories.lists)
    }
}
