//! The schema gate never lets a node serve outside of its level: where a node lets clients in, the
//! database on it has the schema that its program was built for.

use std::sync::Arc;
use std::time::Duration;

use quire::base::{DatabaseName, NodeId};
use quire::disk::FakeDisk;
use quire::member::Member;
use quire::sqlite::{
    Cancel, Columns, Connection, ConnectionOptions, RowSink, SqlError, Surplus, TempSpace,
    ValueRef, View,
};

use super::{Invariant, Look};
use crate::check::Violation;

/// How often it looks: it runs SQL.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// When it looks next.
#[derive(Default)]
pub struct Gate(Duration);

impl Invariant for Gate {
    fn name(&self) -> &'static str {
        "a node that lets clients in has its schema"
    }

    fn look(&mut self, look: &Look<'_>) -> Result<(), Violation> {
        if look.now < self.0 {
            return Ok(());
        }
        self.0 = look.now + LOOK_EVERY;
        for place in look.places {
            let (Some(member), Some(built_for)) = (place.member(), place.schema()) else {
                continue;
            };
            if !member.lets_in() {
                continue;
            }
            check(member.id(), built_for, version(&member).map_err(Violation)?)?;
        }
        Ok(())
    }
}

/// Of a node that lets clients in.
fn check(node: NodeId, built_for: u64, version: Option<u64>) -> Result<(), Violation> {
    match version == Some(built_for) {
        true => Ok(()),
        false => Err(Violation(format!(
            "node {node} was built for schema {built_for} and lets clients in; its database has \
             {version:?}"
        ))),
    }
}

/// The version of the schema as this member has applied it; 0 where there is none yet.
fn version(member: &Member) -> Result<Option<u64>, String> {
    let name = DatabaseName::new("main").map_err(|error| error.to_string())?;
    let Some(store) = member.catalog().by_name(&name) else { return Ok(None) };
    let options = ConnectionOptions {
        view: View::Applied,
        shared: false,
        transaction_bytes_max: 0,
        cache_kib: 100,
        space: TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 20),
        time_limit: None,
    };
    let mut found = Found(None);
    let connection = Connection::open(store, &options).map_err(|error| error.to_string())?;
    // One column of the first update, two after the second.
    let sql = "SELECT count(*) FROM pragma_table_info('words')";
    match connection.run(sql, &[], Surplus::Refused, &Cancel::default(), &mut found) {
        Ok(_) => Ok(found.0),
        Err(error) => Err(error.to_string()),
    }
}

/// The integer of the one row.
struct Found(Option<u64>);

impl RowSink for Found {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        if let [ValueRef::Integer(version)] = values {
            self.0 = u64::try_from(*version).ok();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_outside_of_its_level_is_found() {
        check(1, 2, Some(2)).unwrap();
        for version in [Some(1), Some(3), None] {
            check(1, 2, version).unwrap_err();
        }
    }
}
