//! SQLite's semantics on the page store, each on the leader and on a follower's copy that only
//! applied deltas.

use std::sync::Arc;

use quire::base::DatabaseName;
use quire::codec::Reader;
use quire::disk::Disk;
use quire::disk::fake::FakeDisk;
use quire::pages::catalog::Applied;
use quire::pages::delta::DeltaHeader;
use quire::pages::store::{ApplyOutcome, Load, Place, Point};
use quire::pages::{Part, Store};
use quire::sqlite::{
    Cancel, Column, Connection, ConnectionOptions, Ran, RowSink, SqlError, Surplus, TempSpace,
    Value, ValueRef, View,
};

struct Replicas {
    space: Arc<TempSpace>,
    leader: Arc<Store>,
    follower: Arc<Store>,
    index: u64,
}

#[derive(Default)]
struct Collected(Vec<Vec<String>>);

impl RowSink for Collected {
    fn columns(&mut self, _: &[Column<'_>]) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        self.0.push(values.iter().map(show).collect());
        Ok(())
    }
}

fn show(value: &ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        ValueRef::Real(real) => real.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(blob) => format!("{} bytes", blob.len()),
    }
}

fn store(name: &str) -> Arc<Store> {
    let disk = FakeDisk::new();
    disk.create_dir("databases").unwrap();
    let name = DatabaseName::new(name).unwrap();
    let place = Place { index: 1, ordinal: 0 };
    Store::open(Arc::new(disk), 1, name, 4096, Point::default(), place).unwrap()
}

impl Replicas {
    fn new() -> Replicas {
        let space = TempSpace::new(Arc::new(FakeDisk::new()), 1 << 30);
        let (leader, follower) = (store("leader"), store("follower"));
        leader.open_slot(1);
        Replicas { space, leader, follower, index: 1 }
    }

    fn options(&self, view: View, shared: bool) -> ConnectionOptions {
        let space = self.space.clone();
        ConnectionOptions { view, shared, transaction_bytes_max: 1 << 30, cache_kib: 2000, space }
    }

    fn writer(&self) -> Connection {
        let connection =
            Connection::open(self.leader.clone(), &self.options(View::Head, false)).unwrap();
        connection.link().allow_write(true);
        connection
    }

    fn reader(&self, store: &Arc<Store>) -> Connection {
        Connection::open(store.clone(), &self.options(View::Applied, true)).unwrap()
    }

    /// Commits what was published: applies it on the leader and on the follower.
    fn replicate(&mut self) {
        while let Some(outgoing) = self.leader.take_outgoing() {
            self.index += 1;
            let place = Place { index: self.index, ordinal: 1 };
            for store in [&self.leader, &self.follower] {
                let (outcome, last) = match &outgoing.load {
                    Load::Whole(bytes) => {
                        let header = DeltaHeader::decode(&mut Reader::new(bytes)).unwrap();
                        (store.apply(&header, bytes, place).unwrap(), true)
                    }
                    Load::Part(parts, number) => {
                        let (bytes, number) = (parts.read(*number).unwrap(), *number);
                        let last = number + 1 == parts.count();
                        let (database, id) = (store.id(), outgoing.id);
                        let part = Part { database, id, number, last, bytes: &bytes };
                        (store.apply_part(&part, place, &Applied::default()).unwrap(), last)
                    }
                };
                let expected = if last { ApplyOutcome::Applied } else { ApplyOutcome::Staged };
                assert_eq!(outcome, expected);
            }
        }
        let (leader, follower) = (self.leader.applied(), self.follower.applied());
        assert_eq!(leader, follower);
        assert_eq!(self.leader.verify().unwrap(), self.follower.verify().unwrap());
        for store in [&self.leader, &self.follower] {
            assert_eq!(query(&self.reader(store), "PRAGMA integrity_check"), [["ok"]]);
        }
    }

    /// What a query answers on both replicas, which must be the same.
    fn both(&self, sql: &str) -> Vec<Vec<String>> {
        let leader = query(&self.reader(&self.leader), sql);
        assert_eq!(leader, query(&self.reader(&self.follower), sql));
        leader
    }
}

fn try_run(
    connection: &Connection,
    sql: &str,
    params: &[Value],
) -> Result<(Ran, Collected), SqlError> {
    let mut rows = Collected::default();
    let mut rest = sql;
    let mut ran = Ran::default();
    while !quire::sqlite::text::is_blank(rest) {
        let bytes = connection.first_statement_bytes(rest);
        ran =
            connection.run(&rest[..bytes], params, Surplus::Kept, &Cancel::default(), &mut rows)?;
        rest = &rest[bytes..];
    }
    Ok((ran, rows))
}

fn run(connection: &Connection, sql: &str) -> Ran {
    try_run(connection, sql, &[]).unwrap().0
}

fn query(connection: &Connection, sql: &str) -> Vec<Vec<String>> {
    try_run(connection, sql, &[]).unwrap().1.0
}

#[test]
fn rows_arrive_on_both() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX tv ON t(v)");
    let ran = run(&writer, "INSERT INTO t(v) VALUES('a'),('b'),('c')");
    assert_eq!((ran.last_insert_rowid, ran.changes), (3, 3));
    assert_eq!(query(&writer, "SELECT count(*) FROM t"), [["3"]], "the writer reads its own head");
    replicas.replicate();
    assert_eq!(replicas.both("SELECT group_concat(v) FROM t"), [["a,b,c"]]);
    assert_eq!(replicas.leader.applied().version, 3);
}

#[test]
fn vacuum_and_spill() {
    let mut replicas = Replicas::new();
    let writer = replicas.writer();
    run(&writer, "PRAGMA cache_size=10; CREATE TABLE big(id INTEGER PRIMARY KEY, x BLOB)");
    run(
        &writer,
        "BEGIN; WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<5000)
        INSERT INTO big SELECT i, randomblob(1000) FROM c; SAVEPOINT z; DELETE FROM big WHERE id%2;
        ROLLBACK TO z; RELEASE z; COMMIT",
    );
    replicas.replicate();
    assert_eq!(replicas.both("SELECT count(*) FROM big"), [["5000"]]);
    let before = replicas.leader.applied().page_count;
    run(&writer, "DELETE FROM big WHERE id > 500; VACUUM");
    replicas.replicate();
    assert!(replicas.leader.applied().page_count < before / 5);
    assert_eq!(replicas.both("SELECT count(*) FROM big"), [["500"]]);
}
