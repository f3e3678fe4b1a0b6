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
                self.has(member.id(), store.id(), point.version, point.digest)?;
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

impl Identical {
    fn has(
        &mut self,
        node: NodeId,
        database: u64,
        version: u64,
        digest: u128,
    ) -> Result<(), Violation> {
        let (first, on) = *self.0.entry((database, version)).or_insert((digest, node));
        match first == digest {
            true => Ok(()),
            false => Err(Violation(format!(
                "version {version} of database {database} has digest {first:032x} on node {on} and \
                 {digest:032x} on node {node}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_differ_are_found() {
        let mut replicas = Identical::default();
        for (node, database, version, digest) in
            [(1, 1, 5, 7), (2, 1, 5, 7), (1, 1, 6, 8), (2, 2, 6, 9)]
        {
            replicas.has(node, database, version, digest).unwrap();
        }
        replicas.has(2, 1, 6, 9).unwrap_err();
    }
}
