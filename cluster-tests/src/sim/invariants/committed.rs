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
            self.applied(member.id(), applied.term, applied.index)?;
            most = most.max(applied.index);
            if let Ok(term) = member.leading_term() {
                self.takes_writes(member.id(), term, applied.index)?;
            }
        }
        self.before = most;
        Ok(())
    }
}

impl Committed {
    fn applied(&mut self, node: NodeId, term: u64, index: u64) -> Result<(), Violation> {
        let (first, on) = *self.entries.entry(index).or_insert((term, node));
        match first == term {
            true => Ok(()),
            false => Err(Violation(format!(
                "entry {index} is of term {first} on node {on} and of term {term} on node {node}"
            ))),
        }
    }

    /// A node that takes writes in `term` has applied up to `index`.
    fn takes_writes(&mut self, node: NodeId, term: u64, index: u64) -> Result<(), Violation> {
        if self.open.insert(node, term) != Some(term) && index < self.before {
            return Err(Violation(format!(
                "node {node} takes writes in term {term} having applied {index} entries; {} were \
                 committed before",
                self.before
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_changed_entries_are_found() {
        let mut committed = Committed::default();
        for (node, term, index) in [(1, 1, 5), (2, 1, 5), (1, 2, 6)] {
            committed.applied(node, term, index).unwrap();
        }
        committed.applied(2, 1, 6).unwrap_err();
        committed.before = 6;
        committed.takes_writes(1, 2, 6).unwrap();
        // It was seen in this term already; others have applied more since.
        committed.before = 7;
        committed.takes_writes(1, 2, 6).unwrap();
        committed.takes_writes(2, 3, 6).unwrap_err();
    }
}
