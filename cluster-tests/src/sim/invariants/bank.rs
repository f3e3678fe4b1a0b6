//! No money is made or lost.

use std::rc::Rc;

use super::Invariant;
use crate::check::Violation;
use crate::check::bank::{self, Rules};
use crate::sim::load::{ACCOUNTS, BALANCE, Histories};
use crate::sim::place::Place;

/// See the module.
pub struct Bank;

impl Invariant for Bank {
    fn name(&self) -> &'static str {
        "no money is made or lost"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        let rules = Rules { start: vec![BALANCE; ACCOUNTS as usize], may_overdraw: false };
        bank::check(&rules, &histories.bank)?.suffices()
    }
}
