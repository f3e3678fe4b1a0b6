//! No money is made or lost.

use std::rc::Rc;

use super::Invariant;
use crate::check::{Violation, bank};
use crate::sim::load::{ACCOUNTS, BALANCE, Histories};
use crate::sim::place::Place;

/// See the module.
pub struct Bank;

impl Invariant for Bank {
    fn name(&self) -> &'static str {
        "no money is made or lost"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        bank::check(&histories.bank, &[BALANCE; ACCOUNTS as usize])
    }
}
