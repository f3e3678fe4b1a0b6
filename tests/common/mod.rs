//! Two members without a network: what one publishes is applied on both, in order, as Raft would
//! have it. Tests take leadership away, hold deltas back, cut the power and look at both copies.
#![allow(dead_code)]

pub mod hook;

use std::sync::Arc;

use quire::base::DatabaseName;
use quire::codec;
use quire::disk::{Disk, FakeDisk};
use quire::log::LogId;
use quire::pages::catalog::Applied;
use quire::pages::delta::DeltaHeader;
use quire::pages::store::{ApplyOutcome, Outgoing, Place};
use quire::pages::{Catalog, PagesError, Part, Snapshot, Store};
use quire::sqlite::{
    Cancel, Columns, Connection, ConnectionOptions, Ran, RowSink, SqlError, Surplus, TempSpace,
    Value, ValueRef, View,
};

/// The database of most tests.
pub const NAME: &str = "db";

/// One member's data directory and what is opened from it.
pub struct Member {
    pub disk: FakeDisk,
    pub catalog: Catalog,
    pub store: Arc<Store>,
}

impl Member {
    /// A member with one empty database.
    pub fn new(disk: FakeDisk, page_size: usize) -> Member {
        Member::on(disk.clone(), Arc::new(disk), page_size)
    }

    /// As [`Member::new`], its files opened through a hook.
    pub fn hooked(page_size: usize) -> (Member, hook::HookDisk) {
        let disk = FakeDisk::unrecorded();
        let hooked = hook::HookDisk::new(disk.clone());
        (Member::on(disk, Arc::new(hooked.clone()), page_size), hooked)
    }

    fn on(disk: FakeDisk, through: Arc<dyn Disk>, page_size: usize) -> Member {
        let catalog = Catalog::open(through).unwrap();
        let name = DatabaseName::new(NAME).unwrap();
        let store = catalog.create(1, name, page_size).unwrap();
        catalog.applied().last = Some(LogId { term: 1, index: 1 });
        Member { disk, catalog, store }
    }

    /// What a new process finds on the disk.
    pub fn open(disk: FakeDisk) -> Member {
        let catalog = Catalog::open(Arc::new(disk.clone())).unwrap();
        let store = catalog.by_id(1).unwrap();
        Member { disk, catalog, store }
    }

    /// Applies a committed delta as entry `index`.
    pub fn apply(&self, outgoing: &Outgoing, index: u64) -> ApplyOutcome {
        let mut applied = self.catalog.applied();
        let outcome = apply(&self.store, outgoing, index);
        applied.last = Some(LogId { term: outgoing.id.term, index });
        outcome
    }

    /// What a checkpoint covers.
    pub fn checkpoint(&self) -> Applied {
        self.catalog.checkpoint().unwrap()
    }
}

/// Applies a delta to a store.
pub fn apply(store: &Store, outgoing: &Outgoing, index: u64) -> ApplyOutcome {
    let place = Place { index, ordinal: 1 };
    let Some((parts, number)) = &outgoing.part else {
        let header = DeltaHeader::decode(&mut codec::Reader::new(&outgoing.bytes)).unwrap();
        return store.apply(&header, &outgoing.bytes, place).unwrap();
    };
    let (bytes, last) = (parts.read(*number).unwrap(), number + 1 == parts.count());
    let (database, id, number) = (store.id(), outgoing.id, *number);
    let part = Part { database, id, number, last, bytes: &bytes };
    store.apply_part(&part, place, &Applied::default()).unwrap()
}

/// A leader and a follower that only applies deltas.
pub struct Replicas {
    pub space: Arc<TempSpace>,
    pub leader: Member,
    pub follower: Member,
    /// The last entry.
    pub index: u64,
    pub transaction_bytes_max: u64,
}

impl Replicas {
    pub fn new() -> Replicas {
        Replicas::with_page_size(4096)
    }

    pub fn with_page_size(page_size: usize) -> Replicas {
        let member = || Member::new(FakeDisk::unrecorded(), page_size);
        let (leader, follower) = (member(), member());
        leader.store.open_slot(1);
        let space = TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 30);
        Replicas { space, leader, follower, index: 1, transaction_bytes_max: 1 << 30 }
    }

    pub fn options(&self, view: View, shared: bool) -> ConnectionOptions {
        ConnectionOptions {
            view,
            shared,
            transaction_bytes_max: self.transaction_bytes_max,
            cache_kib: 2000,
            space: self.space.clone(),
            time_limit: None,
        }
    }

    /// A session's own connection to the leader's head, holding the write slot.
    pub fn writer(&self) -> Connection {
        let connection = self.connect(&self.leader.store, View::Head, false);
        connection.link().allow_write(true);
        connection
    }

    /// A session's own connection to the leader's head, without the write slot.
    pub fn deferred(&self) -> Connection {
        self.connect(&self.leader.store, View::Head, false)
    }

    /// A connection that sessions share, at the applied version.
    pub fn reader(&self, store: &Arc<Store>) -> Connection {
        self.connect(store, View::Applied, true)
    }

    /// A session's own connection at the applied version.
    pub fn own_reader(&self, store: &Arc<Store>) -> Connection {
        self.connect(store, View::Applied, false)
    }

    pub fn connect(&self, store: &Arc<Store>, view: View, shared: bool) -> Connection {
        Connection::open(store.clone(), &self.options(view, shared)).unwrap()
    }

    /// Commits what the leader published, on both, and compares them.
    pub fn replicate(&mut self) {
        self.commit();
        self.compare();
    }

    /// Commits what the leader published, on both.
    pub fn commit(&mut self) {
        while let Some(outgoing) = self.leader.store.take_outgoing() {
            self.index += 1;
            for member in [&self.leader, &self.follower] {
                let outcome = member.apply(&outgoing, self.index);
                let parts = outgoing.part.is_some() && outcome == ApplyOutcome::Staged;
                assert!(outcome == ApplyOutcome::Applied || parts);
            }
        }
    }

    /// Both members hold the same, and it is sound.
    pub fn compare(&self) {
        let (leader, follower) = (&self.leader.store, &self.follower.store);
        assert_eq!(leader.applied(), follower.applied());
        assert_eq!(leader.verify().unwrap(), follower.verify().unwrap());
        for store in [leader, follower] {
            if store.applied().page_count > 0 {
                assert_eq!(query(&self.reader(store), "PRAGMA integrity_check"), [["ok"]]);
            }
        }
    }

    /// What a query answers on both members, which must be the same.
    pub fn both(&self, sql: &str) -> Vec<Vec<String>> {
        let leader = query(&self.reader(&self.leader.store), sql);
        assert_eq!(leader, query(&self.reader(&self.follower.store), sql));
        leader
    }

    /// The first value that a query answers, on both members.
    pub fn one(&self, sql: &str) -> String {
        self.both(sql).swap_remove(0).swap_remove(0)
    }
}

/// A snapshot and what it must show for as long as it lives.
pub struct Reader {
    pub snapshot: Snapshot,
    pub pages: Vec<Vec<u8>>,
}

impl Reader {
    pub fn at_applied(store: &Arc<Store>) -> Reader {
        let snapshot = store.snapshot_applied().unwrap();
        let pages = contents(&snapshot).unwrap();
        Reader { snapshot, pages }
    }

    pub fn check(&self) {
        assert!(contents(&self.snapshot).unwrap() == self.pages, "{:?}", self.snapshot.point());
    }
}

fn contents(snapshot: &Snapshot) -> Result<Vec<Vec<u8>>, PagesError> {
    let mut pages = vec![];
    for page in 1..=snapshot.point().page_count {
        let mut bytes = vec![0; snapshot.store().page_size()];
        assert!(snapshot.read(page, 0, &mut bytes)?);
        pages.push(bytes);
    }
    Ok(pages)
}

/// Rows as text.
#[derive(Default)]
pub struct Collected(pub Vec<Vec<String>>);

impl RowSink for Collected {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
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

/// Runs each statement of `sql`.
pub fn try_run(
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

pub fn run(connection: &Connection, sql: &str) -> Ran {
    try_run(connection, sql, &[]).unwrap().0
}

pub fn query(connection: &Connection, sql: &str) -> Vec<Vec<String>> {
    try_run(connection, sql, &[]).unwrap().1.0
}

/// The first value of the first row.
pub fn one(connection: &Connection, sql: &str) -> String {
    query(connection, sql).swap_remove(0).swap_remove(0)
}

/// The error of a statement that must fail.
pub fn fails(connection: &Connection, sql: &str) -> SqlError {
    match try_run(connection, sql, &[]) {
        Ok(_) => panic!("this must fail: {sql}"),
        Err(error) => error,
    }
}

/// Numbers 1 to `count` in a column `i` of a table expression `c`.
pub fn numbers(count: usize) -> String {
    format!("WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM c WHERE i<{count}) ")
}

/// What lies in a file of a disk.
pub fn file(disk: &FakeDisk, path: &str) -> Vec<u8> {
    assert!(disk.exists(path).unwrap(), "{path}");
    disk.bytes(path).unwrap()
}
