//! Registers are linearizable.

use std::rc::Rc;

use super::Invariant;
use crate::check::{Violation, register};
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// See the module.
pub struct Registers;

impl Invariant for Registers {
    fn name(&self) -> &'static str {
        "registers are linearizable"
    }

    fn end(&mut self, _: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        register::check(&histories.registers)
    }
}
