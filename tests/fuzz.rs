//! The fuzz targets on a stable toolchain: each body of `fuzz/src/` for a bounded number of cases
//! of random bytes. `QUIRE_TEST_FUZZ_CASES` sets how many, for a longer run; what a fuzzer found is
//! here, or beside the code that it found wrong, as a test with its story.
//!
//! The targets run one at a time: what a case takes from the allocator is counted, for all threads.

use std::alloc::System;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use quire::base::{DatabaseName, DeltaId};
use quire::cluster::{Database, Level, Local, nodes, script};
use quire::disk::{Disk, FakeDisk};
use quire::pages::catalog::Applied;
use quire::pages::delta::{DeltaHeader, encode_whole};
use quire::pages::incoming::{Incoming, Scope};
use quire::pages::page::page_hash;
use quire::pages::store::{ApplyOutcome, Place, Point};
use quire::pages::view::Described;
use quire::pages::{Catalog, Store};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unused_imports, missing_docs, reason = "a crate of its own, in one module")]
mod fuzz;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `cases` cases of up to `bytes` bytes, none of which takes more than `taken_max` bytes from
/// the allocator in all.
fn run(target: fn(&[u8]), cases: u32, bytes: usize, taken_max: usize) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let set = std::env::var("QUIRE_TEST_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::with_cases(set.unwrap_or(cases))
    };
    // Small bytes too: they are the lengths and kinds of what is decoded.
    let byte = prop_oneof![3 => any::<u8>(), 1 => 0_u8..8];
    let result = TestRunner::new(config).run(&prop::collection::vec(byte, 0..bytes), |data| {
        let region = Region::new(ALLOCATOR);
        target(&data);
        let taken = region.change().bytes_allocated;
        prop_assert!(taken <= taken_max, "{} bytes from the allocator", taken);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn peers() {
    run(fuzz::peers::one, 40_000, 300, 4 << 20);
}

#[test]
fn recovery() {
    run(fuzz::recovery::one, 3000, 300, 64 << 20);
}

#[test]
fn snapshot() {
    run(fuzz::snapshot::one, 3000, 200, 64 << 20);
}

#[test]
fn delta() {
    run(fuzz::delta::one, 10_000, 400, 64 << 20);
}

#[test]
fn record() {
    run(fuzz::record::one, 10_000, 300, 64 << 20);
}

#[test]
fn config() {
    run(fuzz::config::one, 1500, 120, 64 << 20);
}

#[test]
fn schema() {
    run(fuzz::schema::one, 3000, 150, 64 << 20);
}

#[test]
fn sql() {
    run(fuzz::sql::one, 1500, 250, 256 << 20);
}

// What the fuzzers found, but for what is in src/log/tests/damage.rs.

/// A store of two pages, and a delta for it of whole pages.
fn store_and_delta(page_count: u32, pages: &[u32]) -> (Arc<Store>, DeltaHeader, Vec<u8>) {
    let disk = FakeDisk::unrecorded();
    disk.create_dir("databases").unwrap();
    let name = DatabaseName::new("db").unwrap();
    let place = Place { index: 1, ordinal: 0 };
    let store = Store::open(Arc::new(disk), 1, name, 512, Point::default(), place).unwrap();
    let mut header = DeltaHeader {
        database: 1,
        id: DeltaId { term: 1, sequence: 1 },
        parent: DeltaId::NONE,
        base_version: 0,
        page_count: 2,
        digest_before: 0,
        digest_after: page_hash(1, &[1; 512]) ^ page_hash(2, &[1; 512]),
        changed_count: 2,
    };
    let encode = |header: &DeltaHeader, pages: &[u32], fill| {
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        pages.iter().for_each(|page| encode_whole(*page, &[fill; 512], &mut bytes));
        bytes
    };
    let place = Place { index: 2, ordinal: 1 };
    let applied = store.apply(&header, &encode(&header, &[1, 2], 1), place).unwrap();
    assert_eq!(applied, ApplyOutcome::Applied);
    header.parent = header.id;
    header.id.sequence = 2;
    header.base_version = 1;
    header.digest_before = header.digest_after;
    for page in pages {
        let old = if *page <= 2 { page_hash(*page, &[1; 512]) } else { 0 };
        header.digest_after ^= old ^ page_hash(*page, &[2; 512]);
    }
    for gone in page_count.saturating_add(1)..=2 {
        header.digest_after ^= page_hash(gone, &[1; 512]);
    }
    (header.page_count, header.changed_count) = (page_count, pages.len() as u32);
    let bytes = encode(&header, pages, 2);
    (store, header, bytes)
}

/// The digest is the XOR of all pages' hashes. A page that a delta names twice goes in and out of
/// it, and one that the database grew by and that the delta does not have is not missed: such
/// deltas were applied, and the version could not be read afterwards.
#[test]
fn a_delta_names_each_page_once_and_all_new_ones() {
    for (page_count, pages) in [(2, &[1, 1][..]), (2, &[2, 1]), (4, &[4]), (u32::MAX, &[3])] {
        let (store, header, bytes) = store_and_delta(page_count, pages);
        let before = store.applied();
        let error = store.apply(&header, &bytes, Place { index: 3, ordinal: 1 });
        assert!(error.is_err() && store.damage().is_some(), "{pages:?}");
        assert_eq!(store.applied(), before);
    }
    for (page_count, pages) in [(2, &[1, 2][..]), (1, &[1]), (4, &[2, 3, 4])] {
        let (store, header, bytes) = store_and_delta(page_count, pages);
        let applied = store.apply(&header, &bytes, Place { index: 3, ordinal: 1 }).unwrap();
        assert_eq!(applied, ApplyOutcome::Applied, "{pages:?}");
        store.verify().unwrap();
    }
}

/// What another member said of a database with its page size and its name, as it is offered.
fn described(id: u64, name: &str, page_size: usize) -> Described {
    let about = [&(name.len() as u32).to_le_bytes()[..], name.as_bytes(), &[0; 56]].concat();
    Described::decode_about(id, page_size, &about).unwrap()
}

/// Offsets were page numbers times a page size that nobody had looked at: one that no page has
/// ended the process, and so did half a page with a hash of its own. And two databases of one name
/// were received, into the same file.
#[test]
fn a_copy_has_a_page_size_and_a_name_of_its_own() {
    let catalog = Catalog::open(Arc::new(FakeDisk::unrecorded())).unwrap();
    let whole = || Scope::Whole(Applied::default());
    for page_size in [0, 1, 511, 513, 131_072, usize::MAX] {
        let offered = vec![described(1, "a", page_size)];
        assert!(Incoming::begin(&catalog, whole(), offered).is_err(), "{page_size}");
    }
    let twice = vec![described(1, "a", 512), described(2, "a", 512)];
    assert!(Incoming::begin(&catalog, whole(), twice).is_err());
    assert!(Incoming::begin(&catalog, Scope::Part, vec![described(1, "a", 512)]).is_err());
    let mut good = vec![described(1, "a", 512), described(2, "b", 65_536)];
    good[0].folded.point.page_count = 1;
    let mut incoming = Incoming::begin(&catalog, whole(), good).unwrap();
    let half = [7; 256];
    assert_eq!(incoming.missing(1, 1, &[page_hash(1, &half)]).unwrap(), [1]);
    assert!(incoming.receive(1, 1, &half).is_err());
    assert!(incoming.receive(1, u32::MAX, &[7; 512]).is_err(), "no number comes after it");
}

/// As much memory as the checkpoint record calls a page was taken, up to 4 GiB.
#[test]
fn a_record_has_page_sizes_that_pages_have() {
    for (page_size, good) in [(512_u32, true), (0, false), (1 << 31, false), (u32::MAX, false)] {
        let position = [0; 56];
        let mut bytes = [&b"QUIRECP1"[..], &[0; 21], &1_u32.to_le_bytes()].concat();
        bytes.extend([&7_u64.to_le_bytes()[..], b"\x01\0\0\0a"].concat());
        bytes.extend([&page_size.to_le_bytes()[..], &position].concat());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let disk = FakeDisk::unrecorded();
        disk.create("checkpoint").unwrap().write_at(&bytes, 0).unwrap();
        assert_eq!(Catalog::open(Arc::new(disk)).is_ok(), good, "{page_size}");
    }
}

/// Any client may write to `node_levels`. A row whose modules' versions add up to more than a
/// number holds ended every node that read it: they were added up before anything was asked.
#[tokio::test]
async fn a_level_may_add_up_to_anything() {
    let local = Local::in_memory().unwrap();
    let mut tx = local.begin().await.unwrap();
    for sql in [
        "CREATE TABLE nodes(id, name, address, schema, api_extensions, heartbeat, pending)",
        "CREATE TABLE node_levels(node_id, modules, extensions)",
        "INSERT INTO nodes VALUES(1, 'n', 'a:1', 3, 1, NULL, 0)",
        "INSERT INTO node_levels VALUES(1, '{\"a\": 18446744073709551615, \"b\": 4}', NULL)",
    ] {
        tx.execute(sql, Vec::new()).await.unwrap();
    }
    let rows = nodes::all(&mut *tx).await.unwrap();
    assert_eq!(rows[0].level, Level::pair(3, 1), "the pair counts");
}

/// An update made of two files, each with its byte order mark, hid the COMMIT behind the second mark
/// from the rule that no text of a file ends its transaction: half an update was kept.
#[tokio::test]
async fn a_byte_order_mark_hides_nothing() {
    let local = Local::in_memory().unwrap();
    let mut tx = local.begin().await.unwrap();
    let text = "\u{feff}CREATE TABLE a(x);\n\u{feff}COMMIT; CREATE TABLE b(x)";
    let error = script(&mut *tx, "0001_two.sql", text).await.unwrap_err().to_string();
    assert!(error.contains("transaction"), "{error}");
    tx.rollback().await.unwrap();
    let mut tx = local.begin().await.unwrap();
    let tables = tx.query("SELECT * FROM sqlite_master", Vec::new()).await.unwrap();
    assert!(tables.rows.is_empty(), "nothing was kept");
}

/// SQLite stops at a NUL. A script that began with one was cut into statements of no bytes, for
/// ever. (The protocol's texts end at a NUL: no client could send it.)
#[test]
fn a_statement_has_bytes() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    fuzz::sql::one(b"\0\0;\0");
    fuzz::sql::one(b"\0SELECT 1; \0 SELECT 2");
}
