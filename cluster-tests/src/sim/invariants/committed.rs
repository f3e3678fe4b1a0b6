//! What was committed is never lost, and never another entry: an entry that one node has applied is
//! applied by all, in its term; and whoever takes writes has applied all of them.

use std::collections::BTreeMap;

use quire::base::NodeId;

use super::{Invariant, Look};
use crate::check::Violation;

/// The last entries that nodes were seen to have applied.
#[derive(Default)]
pub struct Committed {
    /// Index and term, and who.
    entries: BTreeMap<u64, (u64, NodeId)>,
    /// In which term a node was seen to take writes.
    open: BTreeMap<NodeId, u64>,
    /// The highest index applied anywhere up to the look before this one.
    before: u64,
}

impl Invariant for Committed {
    fn name(&self) -> &'static str {
        "what was committed is never lost"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        let mut most = self.before;
        for member in &look.running {
            let (_, applied) = member.core().progress();
            let Some(applied) = applied else { continue };
            let seen = (applied.term, member.id());
            let first = *self.entries.entry(applied.index).or_insert(seen);
            if first.0 != applied.term {
                return Err(Violation(format!(
                    "entry {} is of term {} on node {} and of term {} on node {}",
                    applied.index,
                    first.0,
                    first.1,
                    applied.term,
                    member.id()
                )));
            }
            most = most.max(applied.index);
            let Ok(term) = member.leading_term() else { continue };
            if self.open.insert(member.id(), term) != Some(term) && applied.index < self.before {
                return Err(Violation(format!(
                    "node {} takes writes in term {term} having applied {} entries; {} were \
                     committed before",
                    member.id(),
                    applied.index,
                    self.before
                )));
            }
        }
        self.before = most;
        Ok(())
    }
}
