//! What must hold in every simulation, one file each: looked at while it runs, and at its end.

mod bank;
mod committed;
mod ends;
mod gate;
mod identical;
mod lists;
mod membership;
mod once;
mod one_leader;
mod registers;
mod set;
mod uncommitted;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quire::member::Member;

use super::load::Histories;
use super::place::Place;
use crate::check::Violation;

/// What there is to see between two steps.
pub struct Look<'a> {
    /// The simulated time.
    pub now: Duration,
    /// All places.
    pub places: &'a [Rc<Place>],
    /// The nodes that run.
    pub running: Vec<Arc<Member>>,
}

/// Something that must hold.
pub trait Invariant {
    /// What it is called where it is broken.
    fn name(&self) -> &'static str;

    /// Looks at the nodes that run, between two steps.
    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        let _ = look;
        Ok(())
    }

    /// Looks at all when it is over: nodes that run and agree, clients that have ended.
    fn end(&mut self, places: &[Rc<Place>], histories: &Histories) -> Result<(), Violation> {
        let _ = (places, histories);
        Ok(())
    }
}

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(one_leader::OneLeader::default()),
        Box::new(committed::Committed::default()),
        Box::new(identical::Identical::default()),
        Box::new(registers::Registers),
        Box::new(lists::Lists),
        Box::new(bank::Bank),
        Box::new(set::Set),
        Box::new(once::Once),
        Box::new(uncommitted::Uncommitted),
        Box::new(gate::Gate::default()),
        Box::new(ends::Ends),
        Box::new(membership::Membership::default()),
    ]
}
