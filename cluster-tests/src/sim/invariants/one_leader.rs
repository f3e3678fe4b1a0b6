//! Of one term there is one leader.

use std::collections::BTreeMap;

use quire::base::NodeId;

use super::{Invariant, Look};
use crate::check::Violation;

/// Who was seen to lead each term.
#[derive(Default)]
pub struct OneLeader(BTreeMap<u64, NodeId>);

impl Invariant for OneLeader {
    fn name(&self) -> &'static str {
        "one leader a term"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        for member in &look.running {
            let view = member.core().view();
            if view.leads {
                self.leads(view.term, member.id())?;
            }
        }
        Ok(())
    }
}

impl OneLeader {
    fn leads(&mut self, term: u64, node: NodeId) -> Result<(), Violation> {
        let first = *self.0.entry(term).or_insert(node);
        match first == node {
            true => Ok(()),
            false => Err(Violation(format!("nodes {first} and {node} both led term {term}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_a_term_are_found() {
        let mut leaders = OneLeader::default();
        for (term, node) in [(1, 1), (2, 2), (2, 2), (3, 1)] {
            leaders.leads(term, node).unwrap();
        }
        leaders.leads(2, 3).unwrap_err();
    }
}
