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
            if !view.leads {
                continue;
            }
            let term = view.term;
            let first = *self.0.entry(term).or_insert(member.id());
            if first != member.id() {
                let both = format!("nodes {first} and {} both led term {term}", member.id());
                return Err(Violation(both));
            }
        }
        Ok(())
    }
}
