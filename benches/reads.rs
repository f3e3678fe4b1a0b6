//! Point reads through the VFS against the same reads of a plain SQLite file in WAL mode: in
//! autocommit, and inside BEGIN. One process, one thread, warm.
//!
//! `cargo bench --bench reads` prints medians of alternating rounds and their ratios, and then
//! divan's own figures. `-- --check` exits with 1 where a ratio is below its bar; a filter, as in
//! `-- quire`, has divan's figures only.
//!
//! Both sides prepare once, bind an integer key, step, and look at one text of 100 bytes. The bars
//! are for a cache that holds the whole database; the second line of each is for the cache that a
//! node gives to a reader, which holds a sixth of it.
//!
//! Rounds are measured in time of the thread on a processor, which other work on the machine does
//! not count towards: nothing here waits for a disk.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use quire::base::{DatabaseName, Randomness, SplitMix};
use quire::codec::Reader;
use quire::disk::{Disk, RealDisk};
use quire::log::LogId;
use quire::pages::delta::DeltaHeader;
use quire::pages::store::Place;
use quire::pages::{Catalog, Store};
use quire::sqlite::{
    Cancel, Columns, Connection, ConnectionOptions, RowSink, SqlError, Surplus, TempSpace, Value,
    ValueRef, View,
};

const ROWS: u64 = 100_000;
const SCHEMA: &str = "CREATE TABLE bench(id INTEGER PRIMARY KEY, v TEXT NOT NULL)";
/// Some rows at a time, so that no delta is so large that it would go in parts.
const FILL: &str = "WITH RECURSIVE c(i) AS (VALUES(?1) UNION ALL SELECT i+1 FROM c WHERE i < ?2)
     INSERT INTO bench SELECT i, hex(randomblob(50)) FROM c";
const ROWS_AT_ONCE: u64 = 5_000;
const SELECT: &str = "SELECT v FROM bench WHERE id = ?1";

/// What a node gives to a reader (and SQLite by default to a connection).
const CACHE_KIB: u32 = 2 << 10;
/// More than the database has.
const CACHE_ALL_KIB: u32 = 64 << 10;

const ROUNDS: usize = 21;
const READS_IN_ROUND: u32 = 10_000;

/// In a node's reader and inside of a transaction: at least so many times plain SQLite's rate.
const BAR_AUTOCOMMIT: f64 = 1.0;
const BAR_IN_BEGIN: f64 = 0.9;

/// Whether all reads of a round are one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Autocommit,
    InBegin,
}

/// One side of the comparison: a connection that reads a row by its key.
trait Side {
    fn begin(&self);
    fn end(&self);
    /// The length of the row's text.
    fn read(&self, key: i64) -> usize;
}

struct Plain(rusqlite::Connection);

impl Side for Plain {
    fn begin(&self) {
        self.0.execute_batch("BEGIN").expect("BEGIN");
    }

    fn end(&self) {
        self.0.execute_batch("COMMIT").expect("COMMIT");
    }

    fn read(&self, key: i64) -> usize {
        let mut statement = self.0.prepare_cached(SELECT).expect("prepare");
        let mut rows = statement.query([key]).expect("query");
        let row = rows.next().expect("step").expect("a row");
        let len = row.get_ref(0).expect("a column").as_str().expect("text").len();
        assert!(rows.next().expect("step").is_none());
        len
    }
}

struct Quire {
    /// As a node reads in autocommit: shared, on the applied version.
    reader: Connection,
    /// As a node reads inside of a transaction: the session's own.
    own: Connection,
    /// Made once: it belongs to who calls, and plain SQLite's side has nothing like it.
    cancel: Cancel,
}

#[derive(Default)]
struct Length(usize);

impl RowSink for Length {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        for value in values {
            self.0 += value.as_str().map_or(0, str::len);
        }
        Ok(())
    }
}

impl Quire {
    fn run(&self, connection: &Connection, sql: &str, params: &[Value]) -> usize {
        let mut sink = Length::default();
        let ran = connection.run_quickly(sql, params, Surplus::Refused, &self.cancel, &mut sink);
        ran.expect("quick").expect(sql);
        sink.0
    }
}

impl Side for Quire {
    fn begin(&self) {
        self.run(&self.own, "BEGIN", &[]);
    }

    fn end(&self) {
        self.run(&self.own, "COMMIT", &[]);
    }

    fn read(&self, key: i64) -> usize {
        let connection = if self.own.is_autocommit() { &self.reader } else { &self.own };
        self.run(connection, SELECT, &[Value::Integer(key)])
    }
}

/// The same rows on both sides, in files of one temporary directory.
struct Fixture {
    dir: tempfile::TempDir,
    space: Arc<TempSpace>,
    store: Arc<Store>,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().expect("a directory");
        let disk: Arc<dyn Disk> = RealDisk::open(&dir.path().join("quire")).expect("a disk");
        let space = TempSpace::new(disk.clone(), 1 << 30);
        let catalog = Catalog::open(disk).expect("a catalog");
        let name = DatabaseName::new("bench").expect("a name");
        let store = catalog.create(1, name, 4096).expect("a database");
        store.open_slot(1);
        let fixture = Fixture { dir, space, store };
        let writer = fixture.connect(View::Head, false, CACHE_KIB);
        writer.link().allow_write(true);
        let run = |sql: &str, params: &[Value]| {
            let mut sink = Length::default();
            writer.run(sql, params, Surplus::Refused, &Cancel::default(), &mut sink).expect(sql);
        };
        run(SCHEMA, &[]);
        for first in (1..=ROWS).step_by(ROWS_AT_ONCE as usize) {
            let last = first + ROWS_AT_ONCE - 1;
            run(FILL, &[Value::Integer(first as i64), Value::Integer(last as i64)]);
        }
        let mut index = 1;
        while let Some(outgoing) = fixture.store.take_outgoing() {
            index += 1;
            let header = DeltaHeader::decode(&mut Reader::new(&outgoing.bytes)).expect("a header");
            let place = Place { index, ordinal: 1 };
            fixture.store.apply(&header, &outgoing.bytes, place).expect("applied");
        }
        // Into the base file, as on a node that has rested.
        catalog.applied().last = Some(LogId { term: 1, index });
        catalog.checkpoint().expect("a checkpoint");
        assert!(!fixture.store.is_dirty() && fixture.store.overlay_bytes() == 0);
        fixture.fill_plain();
        fixture
    }

    fn fill_plain(&self) {
        let plain = self.plain(CACHE_KIB).0;
        let source = self.dir.path().join("quire/databases/bench.db");
        let source = source.to_str().expect("a path");
        plain
            .execute_batch(&format!(
                "{SCHEMA}; ATTACH '{source}' AS source;
                 INSERT INTO bench SELECT * FROM source.bench; DETACH source;
                 PRAGMA wal_checkpoint(TRUNCATE)"
            ))
            .expect("filled");
    }

    fn connect(&self, view: View, shared: bool, cache_kib: u32) -> Connection {
        let space = self.space.clone();
        let options = ConnectionOptions {
            view,
            shared,
            transaction_bytes_max: 1 << 30,
            cache_kib,
            space,
            time_limit: None,
        };
        Connection::open(self.store.clone(), &options).expect("a connection")
    }

    fn plain(&self, cache_kib: u32) -> Plain {
        let connection =
            rusqlite::Connection::open(self.dir.path().join("plain.db")).expect("a connection");
        connection
            .execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA cache_size = -{cache_kib}"))
            .expect("settings");
        Plain(connection)
    }

    fn quire(&self, cache_kib: u32) -> Quire {
        Quire {
            reader: self.connect(View::Applied, true, cache_kib),
            own: self.connect(View::Head, false, cache_kib),
            cancel: Cancel::default(),
        }
    }
}

/// A side with the keys that it is asked for.
struct Load {
    side: Box<dyn Side>,
    keys: SplitMix,
}

impl Load {
    /// Reads every row once, so that caches hold what they can.
    fn warm(side: Box<dyn Side>) -> Load {
        for mode in [Mode::Autocommit, Mode::InBegin] {
            within(&*side, mode, || {
                for key in (1..=ROWS).step_by(7) {
                    side.read(key as i64);
                }
            });
        }
        Load { side, keys: SplitMix::new(1) }
    }

    fn read(&self) -> usize {
        let key = 1 + self.keys.next_u64() % ROWS;
        black_box(self.side.read(key as i64))
    }

    /// Nanoseconds for one read, over one round.
    fn round(&self, mode: Mode) -> f64 {
        within(&*self.side, mode, || {
            let start = processor_time();
            for _ in 0..READS_IN_ROUND {
                assert_eq!(self.read(), 100);
            }
            (processor_time() - start).as_nanos() as f64 / f64::from(READS_IN_ROUND)
        })
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a time")
}

fn within<T>(side: &dyn Side, mode: Mode, work: impl FnOnce() -> T) -> T {
    if mode == Mode::InBegin {
        side.begin();
    }
    let result = work();
    if mode == Mode::InBegin {
        side.end();
    }
    result
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Alternating rounds; the medians of both sides, and how many times the rate of plain SQLite.
fn compare(fixture: &Fixture, cache_kib: u32, mode: Mode) -> f64 {
    let quire = Load::warm(Box::new(fixture.quire(cache_kib)));
    let plain = Load::warm(Box::new(fixture.plain(cache_kib)));
    let (mut of_quire, mut of_plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        of_quire.push(quire.round(mode));
        of_plain.push(plain.round(mode));
    }
    let (quire, plain) = (median(of_quire), median(of_plain));
    let ratio = plain / quire;
    let name = format!("{mode:?}");
    println!("{name:<12} {cache_kib:>9} KiB {quire:>8.0} ns {plain:>8.0} ns {ratio:>7.2}");
    ratio
}

fn main() -> ExitCode {
    let given = |flag: &str| std::env::args().any(|argument| argument == flag);
    let filtered = std::env::args().skip(1).any(|argument| !argument.starts_with('-'));
    if filtered || given("--list") || given("--test") {
        divan::main();
        return ExitCode::SUCCESS;
    }
    let fixture = Fixture::new();
    println!("{:<12} {:>13} {:>11} {:>11} {:>7}", "reads", "cache", "quire", "plain WAL", "ratio");
    let mut passed = true;
    for (mode, bar) in [(Mode::Autocommit, BAR_AUTOCOMMIT), (Mode::InBegin, BAR_IN_BEGIN)] {
        passed &= compare(&fixture, CACHE_ALL_KIB, mode) >= bar;
        compare(&fixture, CACHE_KIB, mode);
    }
    drop(fixture);
    if given("--check") {
        return if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    divan::main();
    ExitCode::SUCCESS
}

fn measure(bencher: divan::Bencher<'_, '_>, mode: Mode, side: fn(&Fixture) -> Box<dyn Side>) {
    let fixture = Fixture::new();
    let load = Load::warm(side(&fixture));
    within(&*load.side, mode, || bencher.bench_local(|| load.read()));
}

#[divan::bench(args = [Mode::Autocommit, Mode::InBegin])]
fn quire(bencher: divan::Bencher<'_, '_>, mode: Mode) {
    measure(bencher, mode, |fixture| Box::new(fixture.quire(CACHE_ALL_KIB)));
}

#[divan::bench(args = [Mode::Autocommit, Mode::InBegin])]
fn plain(bencher: divan::Bencher<'_, '_>, mode: Mode) {
    measure(bencher, mode, |fixture| Box::new(fixture.plain(CACHE_ALL_KIB)));
}
