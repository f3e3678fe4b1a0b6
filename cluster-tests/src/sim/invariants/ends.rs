//! A node ends by itself, does not start, or finds its copy damaged, only where its disk has failed or
//! was full: a power cut is no reason. Or where its program is refused: a node that has not been let in
//! yet, and is of another schema than the members, ends and says so.

use quire::base::NodeId;

use super::{Invariant, Look};
use crate::check::Violation;

/// How the refusal of a program begins.
const REFUSED: &str = "schema version mismatch";

/// See the module.
pub struct Ends;

impl Invariant for Ends {
    fn name(&self) -> &'static str {
        "a node ends, and a copy is damaged, for a reason only"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        for place in look.places.iter().filter(|place| !place.is_struck()) {
            let node = place.node();
            if let Some(why) = place.ended() {
                check(node, place.schema().is_some(), &why)?;
            }
            let Some(member) = place.member() else { continue };
            for store in member.catalog().all() {
                if let Some(what) = store.damage() {
                    let name = store.name();
                    return Err(Violation(format!("node {node}, database {name}: {what}")));
                }
            }
        }
        Ok(())
    }
}

/// Why a node has ended whose disk is whole.
fn check(node: NodeId, gated: bool, why: &str) -> Result<(), Violation> {
    match gated && why.starts_with(REFUSED) {
        true => Ok(()),
        false => Err(Violation(format!("node {node} has ended: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_without_a_reason_is_found() {
        let refused = format!("{REFUSED}: this node has 2");
        check(1, true, &refused).unwrap();
        check(1, false, &refused).unwrap_err();
        check(1, true, "the log cannot be read").unwrap_err();
    }
}
