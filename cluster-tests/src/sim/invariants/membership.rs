//! A cluster does not lose its quorum by what it does itself: where the voters change, most of the
//! new ones are there, if most of the old ones are.
//!
//! Who is there is judged with patience: a node that went down a moment ago still counts as there,
//! as nobody could know.

use std::collections::BTreeSet;
use std::time::Duration;

use quire::base::NodeId;

use super::{Invariant, Look};
use crate::check::Violation;

/// Who is down for less is not known to be down.
const KNOWN_AFTER: Duration = Duration::from_secs(5);

/// The voters that the leader of the newest term last had.
#[derive(Default)]
pub struct Membership {
    term: u64,
    voters: BTreeSet<NodeId>,
}

impl Invariant for Membership {
    fn name(&self) -> &'static str {
        "the cluster does not give its quorum away"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        for member in &look.running {
            let Ok(term) = member.leading_term() else { continue };
            if term < self.term {
                continue;
            }
            let members = member.leadership().members;
            let voters: BTreeSet<NodeId> =
                members.iter().filter(|member| member.votes()).map(|member| member.id).collect();
            if voters == self.voters {
                continue;
            }
            self.became(term, voters, &self.missing(look).collect())?;
        }
        Ok(())
    }
}

impl Membership {
    fn became(
        &mut self,
        term: u64,
        voters: BTreeSet<NodeId>,
        missing: &BTreeSet<NodeId>,
    ) -> Result<(), Violation> {
        let most = |of: &BTreeSet<NodeId>| of.difference(missing).count() * 2 > of.len();
        let before = std::mem::replace(&mut self.voters, voters);
        let known_before = self.term != 0;
        self.term = term;
        if known_before && most(&before) && !most(&self.voters) {
            return Err(Violation(format!(
                "voters {before:?} became {:?} while {missing:?} were away",
                self.voters
            )));
        }
        Ok(())
    }

    /// The ids that no running node has, or whose node is down for long.
    fn missing(&self, look: &Look<'_>) -> impl Iterator<Item = NodeId> {
        let there: BTreeSet<NodeId> = look
            .places
            .iter()
            .filter(|place| place.down_since().is_none_or(|since| look.now < since + KNOWN_AFTER))
            .map(|place| place.node())
            .collect();
        (1..=100).filter(move |id| !there.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_given_away_is_found() {
        let ids = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<NodeId>>();
        let mut members = Membership::default();
        members.became(1, ids(&[1, 2, 3]), &ids(&[3])).unwrap();
        members.became(1, ids(&[1, 2, 4]), &ids(&[3])).unwrap();
        // What was lost before is nobody's doing.
        members.became(2, ids(&[2, 4, 5]), &ids(&[1, 2])).unwrap();
        members.became(2, ids(&[2, 4, 3, 6, 7]), &ids(&[3, 6, 7])).unwrap_err();
    }
}
