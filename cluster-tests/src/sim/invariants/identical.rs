//! Replicas are byte-identical at equal versions.

use std::collections::BTreeMap;
use std::rc::Rc;

use quire::base::NodeId;

use super::{Invariant, Look};
use crate::check::Violation;
use crate::sim::load::Histories;
use crate::sim::place::Place;

/// The digests that were seen of each version of each database.
#[derive(Default)]
pub struct Identical(BTreeMap<(u64, u64), (u128, NodeId)>);

impl Invariant for Identical {
    fn name(&self) -> &'static str {
        "replicas are identical"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        for member in &look.running {
            for store in member.catalog().all() {
                let point = store.applied();
                let seen = (point.digest, member.id());
                let first = *self.0.entry((store.id(), point.version)).or_insert(seen);
                if first.0 != point.digest {
                    return Err(Violation(format!(
                        "version {} of database {} has digest {:032x} on node {} and {:032x} on \
                         node {}",
                        point.version,
                        store.name(),
                        first.0,
                        first.1,
                        point.digest,
                        member.id()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Every page is read, and its hash taken anew.
    fn end(&mut self, places: &[Rc<Place>], _: &Histories) -> Result<(), Violation> {
        for member in places.iter().filter_map(|place| place.member()) {
            for store in member.catalog().all() {
                let damaged = |what: String| {
                    Violation(format!("node {}, database {}: {what}", member.id(), store.name()))
                };
                if let Some(what) = store.damage() {
                    return Err(damaged(what));
                }
                let point = store.verify().map_err(|error| damaged(error.to_string()))?;
                if point != store.applied() {
                    return Err(damaged("its pages do not have the digest that it tells".into()));
                }
            }
        }
        Ok(())
    }
}
