//! Files on a real disk: SQLite's own locks on a live file, and sparse ones beyond 1 GiB (SQLite's
//! lock-byte page) and 4 GiB (where 32-bit offsets end).

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::{Replicas, apply, fails, numbers, one, query, run};
use quire::base::{DatabaseName, DeltaId};
use quire::disk::RealDisk;
use quire::log::LogId;
use quire::pages::page::{lock_byte_page, page_hash};
use quire::pages::store::{ApplyOutcome, Point};
use quire::pages::{Catalog, Store};
use quire::sqlite::View;

const PAGE_SIZE: usize = 65_536;
const PAGES_IN_FOUR_GIB: u32 = 65_536;

/// A database of `page_count` pages under `dir`, almost all of them holes: a small one with the
/// table `t`, grown. With `freelist`, the new pages are on SQLite's free list (from the end down),
/// so that they are what it writes next; without, SQLite knows only that the file is that long.
fn sparse(dir: &Path, page_count: u32, freelist: bool) -> Point {
    let mut replicas = Replicas::with_page_size(PAGE_SIZE);
    run(
        &replicas.writer(),
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1,'a')",
    );
    replicas.replicate();
    replicas.leader.checkpoint();
    let mut first_page = replicas.leader.disk.bytes("databases/db.db").unwrap();
    let rest = first_page.split_off(PAGE_SIZE);
    let used = replicas.leader.store.applied().page_count;
    let mut pages = std::collections::BTreeMap::new();
    for (i, page) in rest.chunks(PAGE_SIZE).enumerate() {
        pages.insert(i as u32 + 2, page.to_vec());
    }
    first_page[28..32].copy_from_slice(&page_count.to_be_bytes());
    if freelist {
        let (trunk, count) = free_list(used + 1, page_count, &mut pages);
        first_page[32..36].copy_from_slice(&trunk.to_be_bytes());
        first_page[36..40].copy_from_slice(&count.to_be_bytes());
    }
    pages.insert(1, first_page);
    std::fs::create_dir_all(dir.join("databases")).unwrap();
    let file = File::create_new(dir.join("databases/db.db")).unwrap();
    file.set_len(u64::from(page_count) * PAGE_SIZE as u64).unwrap();
    let (zeros, mut sums, mut digest) = (vec![0; PAGE_SIZE], vec![], 0);
    for number in 1..=page_count {
        let content = pages.get(&number).unwrap_or(&zeros);
        let hash = page_hash(number, content);
        digest ^= hash;
        sums.extend_from_slice(&hash.to_le_bytes());
        if pages.contains_key(&number) {
            file.write_all_at(content, u64::from(number - 1) * PAGE_SIZE as u64).unwrap();
        }
    }
    std::fs::write(dir.join("databases/db.sum"), sums).unwrap();
    let delta = DeltaId { term: 1, sequence: 7 };
    let point = Point { version: 7, page_count, digest, delta };
    std::fs::write(dir.join("checkpoint"), record(&point)).unwrap();
    point
}

/// Trunk pages over the free pages `first..=last`, the highest first. The first trunk and how
/// many pages are free.
fn free_list(
    first: u32,
    last: u32,
    pages: &mut std::collections::BTreeMap<u32, Vec<u8>>,
) -> (u32, u32) {
    let free: Vec<u32> = (first..=last).filter(|n| *n != lock_byte_page(PAGE_SIZE)).collect();
    let (below, above) = free.split_at(free.partition_point(|n| *n <= PAGES_IN_FOUR_GIB));
    let mut next = 0_u32;
    // Lists are built from the far end of the chain: the first trunk has the pages above 4 GiB.
    for list in below.chunks(16_000).chain(above.chunks(16_000)) {
        let (trunk, leaves) = (list[0], &list[1..]);
        let mut page = vec![0; PAGE_SIZE];
        page[..4].copy_from_slice(&next.to_be_bytes());
        page[4..8].copy_from_slice(&(leaves.len() as u32).to_be_bytes());
        for (slot, leaf) in page[8..].chunks_mut(4).zip(leaves.iter().rev()) {
            slot.copy_from_slice(&leaf.to_be_bytes());
        }
        pages.insert(trunk, page);
        next = trunk;
    }
    (next, free.len() as u32)
}

/// The checkpoint record, byte by byte as the format has it.
fn record(point: &Point) -> Vec<u8> {
    let mut out = b"QUIRECP1".to_vec();
    out.push(1);
    let number = |out: &mut Vec<u8>, number: u64| out.extend_from_slice(&number.to_le_bytes());
    number(&mut out, 1); // the term and
    number(&mut out, 9); // the index of the last entry
    out.extend_from_slice(&0_u32.to_le_bytes()); // no membership
    out.extend_from_slice(&1_u32.to_le_bytes()); // one database:
    number(&mut out, 1); // its id,
    out.extend_from_slice(&2_u32.to_le_bytes());
    out.extend_from_slice(b"db");
    out.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
    number(&mut out, point.version);
    out.extend_from_slice(&point.page_count.to_le_bytes());
    out.extend_from_slice(&point.digest.to_le_bytes());
    number(&mut out, point.delta.term);
    number(&mut out, point.delta.sequence);
    number(&mut out, 9); // its place: the entry
    out.extend_from_slice(&1_u32.to_le_bytes()); // and the delta in it.
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn open(dir: &Path) -> (Catalog, Arc<Store>) {
    let catalog = Catalog::open(RealDisk::open(dir).unwrap()).unwrap();
    let store = catalog.by_id(1).unwrap();
    (catalog, store)
}

fn checkpoint(catalog: &Catalog, index: u64) {
    catalog.applied().last = Some(LogId { term: 1, index });
    catalog.checkpoint().unwrap();
}

fn commit(from: &Arc<Store>, to: &Arc<Store>) {
    while let Some(delta) = from.take_outgoing() {
        for store in [from, to] {
            assert_eq!(apply(store, &delta, 10), ApplyOutcome::Applied);
        }
    }
    assert_eq!(from.applied(), to.applied());
}

#[test]
fn pages_above_four_gib() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let page_count = PAGES_IN_FOUR_GIB + 700;
    let point = sparse(dirs[0].path(), page_count, true);
    std::fs::create_dir_all(dirs[1].path().join("databases")).unwrap();
    for name in ["databases/db.db", "databases/db.sum", "checkpoint"] {
        copy_sparse(&dirs[0].path().join(name), &dirs[1].path().join(name));
    }
    let [(catalog, leader), (_, follower)] = dirs.each_ref().map(|dir| open(dir.path()));
    assert_eq!((leader.applied(), follower.applied()), (point, point));
    leader.open_slot(1);
    let replicas = Replicas::with_page_size(PAGE_SIZE);
    let writer = replicas.connect(&leader, View::Head, false);
    writer.link().allow_write(true);
    run(&writer, &format!("{} INSERT INTO t(x) SELECT hex(randomblob(20000)) FROM c", numbers(40)));
    commit(&leader, &follower);
    // On the leader from the base, on the follower from memory.
    checkpoint(&catalog, 10);
    assert_eq!((leader.overlay_bytes(), follower.overlay_bytes() > 0), (0, true));
    for store in [&leader, &follower] {
        let reader = replicas.reader(store);
        assert_eq!(query(&reader, "SELECT count(*), sum(length(x)) FROM t"), [["41", "1600001"]]);
        assert_eq!(one(&reader, "PRAGMA integrity_check"), "ok");
        let mut page = vec![0; PAGE_SIZE];
        let snapshot = store.snapshot_applied().unwrap();
        let written = (PAGES_IN_FOUR_GIB + 1..=page_count).filter(|number| {
            assert!(snapshot.read(*number, 0, &mut page).unwrap());
            page[8..].iter().any(|byte| *byte != 0)
        });
        assert!(written.count() > 20, "the new rows lie above 4 GiB");
        assert!(!snapshot.read(page_count + 1, 0, &mut page).unwrap());
    }
    run(&writer, "DELETE FROM t WHERE id % 2");
    commit(&leader, &follower);
    assert_eq!(one(&replicas.reader(&follower), "SELECT count(*) FROM t"), "20");
}

fn copy_sparse(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(status.unwrap().success());
}

/// A file that grows over the lock-byte page: SQLite never writes that page, and a delta must
/// carry it as zeros. Checkpointed, opened again, and read by SQLite itself.
#[test]
fn growing_over_the_lock_byte_page_at_one_gib() {
    let dir = tempfile::tempdir().unwrap();
    let lock_byte = lock_byte_page(PAGE_SIZE);
    let point = sparse(dir.path(), lock_byte - 3, false);
    let (catalog, leader) = open(dir.path());
    assert_eq!(leader.applied(), point);
    leader.open_slot(1);
    let replicas = Replicas::with_page_size(PAGE_SIZE);
    let writer = replicas.connect(&leader, View::Head, false);
    writer.link().allow_write(true);
    run(&writer, "BEGIN");
    run(&writer, &format!("{} INSERT INTO t(x) SELECT zeroblob(60000) FROM c", numbers(20)));
    run(&writer, "COMMIT");
    let delta = leader.take_outgoing().unwrap();
    assert_eq!(apply(&leader, &delta, 10), ApplyOutcome::Applied);
    assert!(leader.applied().page_count > lock_byte + 10);
    let snapshot = leader.snapshot_applied().unwrap();
    let mut page = vec![1; PAGE_SIZE];
    assert!(snapshot.read(lock_byte, 0, &mut page).unwrap());
    assert!(page.iter().all(|byte| *byte == 0));
    checkpoint(&catalog, 10);
    let applied = leader.applied();
    drop((snapshot, writer, leader, catalog));
    let (_, again) = open(dir.path());
    assert_eq!((again.applied(), again.verify().unwrap()), (applied, applied));
    let sum = "SELECT sum(length(x)) FROM t";
    assert_eq!(one(&replicas.reader(&again), sum), "1200001");
    let stock = rusqlite::Connection::open(dir.path().join("databases/db.db")).unwrap();
    assert_eq!(stock.query_row(sum, [], |row| row.get::<_, i64>(0)).unwrap(), 1_200_001);
}

/// RESERVED was held during a checkpoint only: between two of them a stock sqlite3 could write.
#[test]
fn a_stock_sqlite_reads_the_live_file_and_cannot_write_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let catalog = Catalog::open(disk.clone()).unwrap();
    let store = catalog.create(1, DatabaseName::new("db").unwrap(), 4096).unwrap();
    store.open_slot(1);
    let replicas = Replicas::new();
    let writer = replicas.connect(&store, View::Head, false);
    writer.link().allow_write(true);
    let commit = |index: u64| {
        while let Some(delta) = store.take_outgoing() {
            assert_eq!(apply(&store, &delta, index), ApplyOutcome::Applied);
        }
        catalog.applied().last = Some(LogId { term: 1, index });
        catalog.checkpoint()
    };
    run(&writer, "CREATE TABLE t(a); INSERT INTO t VALUES(1)");
    commit(2).unwrap();
    let path = dir.path().join("databases/db.db");
    let stock = rusqlite::Connection::open(&path).unwrap();
    stock.busy_timeout(std::time::Duration::ZERO).unwrap();
    let count = || stock.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    assert_eq!(count().unwrap(), 1);
    stock.execute_batch("INSERT INTO t VALUES(2)").unwrap_err();
    run(&writer, "INSERT INTO t VALUES(3)");
    // While it reads, the pages cannot be copied; nothing is lost, and the next one does it.
    stock.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    commit(3).unwrap_err();
    assert_eq!(count().unwrap(), 1);
    stock.execute_batch("COMMIT").unwrap();
    commit(4).unwrap();
    assert_eq!(count().unwrap(), 2);
    stock.execute_batch("INSERT INTO t VALUES(2)").unwrap_err();
    drop((writer, store, catalog));
    let catalog = Catalog::open(disk).unwrap();
    let reader = replicas.reader(&catalog.by_id(1).unwrap());
    assert_eq!(one(&reader, "SELECT group_concat(a) FROM t"), "1,3");
    fails(&reader, "INSERT INTO t VALUES(4)");
}
