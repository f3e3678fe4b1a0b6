//! Random transactions, rewinds, changes of leader, checkpoints, readers and power cuts on two
//! members, against plain SQLite in memory that runs what was committed. A failure names its seed;
//! `QUIRE_SEED=n cargo test --test random` runs it again, `QUIRE_SEEDS=n` runs the first n.

mod common;

use std::collections::{BTreeMap, VecDeque};

use common::{Member, Reader, Replicas, apply, query, run, try_run};
use quire::disk::fake::Cut;
use quire::pages::store::{ApplyOutcome, Outgoing};
use quire::sqlite::Connection;

const SEEDS: u64 = 40;
const STEPS: u32 = 120;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

struct World {
    rng: Rng,
    replicas: Replicas,
    writer: Option<Connection>,
    model: rusqlite::Connection,
    /// What made the versions above applied, in order.
    pending: VecDeque<(u64, String)>,
    log: BTreeMap<u64, Outgoing>,
    readers: [Vec<Reader>; 2],
    term: u64,
    rows: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let page_size = [512, 4096, 4096, 1024][usize::try_from(seed % 4).unwrap()];
        let model = rusqlite::Connection::open_in_memory().unwrap();
        model.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        World {
            rng: Rng(seed),
            replicas: Replicas::with_page_size(page_size),
            writer: None,
            model,
            pending: VecDeque::new(),
            log: BTreeMap::new(),
            readers: [vec![], vec![]],
            term: 1,
            rows: 0,
        }
    }

    fn statement(&mut self) -> String {
        self.rows += 1;
        let (row, n) = (self.rows, self.rng.below(4));
        let (some, size) = (self.rng.below(self.rows + 1), self.rng.below(3000));
        match self.rng.below(16) {
            0 => format!("CREATE TABLE IF NOT EXISTS t{n}(id INTEGER PRIMARY KEY, a, b UNIQUE)"),
            1 => format!("CREATE INDEX IF NOT EXISTS i{n} ON t{n}(a)"),
            2 if n == 0 => format!("DROP TABLE t{}", some % 4),
            3 if n == 0 => "ALTER TABLE t1 ADD COLUMN more DEFAULT 'm'".to_owned(),
            4 => format!("DELETE FROM t{n} WHERE id % 3 = {}", some % 3),
            5 => format!("UPDATE t{n} SET a = zeroblob({size}) WHERE id > {some}"),
            6 => format!("UPDATE t{n} SET b = b + 1 WHERE id < {some}"),
            7 => format!("DELETE FROM t{n} WHERE id = {some}"),
            8 => format!("INSERT OR REPLACE INTO t{n}(id, a, b) VALUES({some}, 'r{row}', {row})"),
            9 => format!(
                "WITH RECURSIVE c(i) AS (VALUES({row}) UNION ALL SELECT i + 1 FROM c LIMIT 40) \
                 INSERT OR IGNORE INTO t{n}(a, b) SELECT hex(zeroblob(i % 90)), i * 7 FROM c"
            ),
            _ => format!("INSERT INTO t{n}(a, b) VALUES(zeroblob({size}), {})", some * 3),
        }
    }

    /// One statement by itself, or several in a transaction with savepoints.
    fn write(&mut self) {
        let writer = self.writer.take().unwrap_or_else(|| {
            let writer = self.replicas.writer();
            run(&writer, "PRAGMA cache_size = 20");
            writer
        });
        let before = self.replicas.leader.store.head().version;
        let mut script = vec![];
        let count = if self.rng.one_in(2) { 1 } else { 2 + self.rng.below(6) };
        if count == 1 {
            let vacuum = ["VACUUM", "PRAGMA auto_vacuum = FULL", "PRAGMA auto_vacuum = NONE"];
            let sql = match self.rng.below(24) {
                which @ 0..3 => vacuum[which as usize].to_owned(),
                _ => self.statement(),
            };
            let _ = try_run(&writer, &sql, &[]);
            script.push(sql);
        } else {
            script.push("BEGIN".to_owned());
            run(&writer, "BEGIN");
            for _ in 0..count {
                let sql = match self.rng.below(8) {
                    0 => "SAVEPOINT s".to_owned(),
                    1 => "ROLLBACK TO s".to_owned(),
                    2 => "RELEASE s".to_owned(),
                    _ => self.statement(),
                };
                let _ = try_run(&writer, &sql, &[]);
                script.push(sql);
            }
            let end = if self.rng.one_in(5) { "ROLLBACK" } else { "COMMIT" };
            run(&writer, end);
            script.push(end.to_owned());
        }
        assert!(writer.is_autocommit());
        let head = self.replicas.leader.store.head().version;
        assert!(head <= before + 1, "one version at most: {script:?}");
        if head > before {
            self.pending.push_back((head, script.join("\n")));
        }
        self.writer = Some(writer);
    }

    /// Commits some of what was published, on both, and in the model.
    fn commit(&mut self, at_most: u64) {
        for _ in 0..at_most {
            let Some(outgoing) = self.replicas.leader.store.take_outgoing() else { break };
            self.replicas.index += 1;
            let index = self.replicas.index;
            for member in [&self.replicas.leader, &self.replicas.follower] {
                assert_eq!(member.apply(&outgoing, index), ApplyOutcome::Applied);
            }
            self.log.insert(index, outgoing);
            let (version, script) = self.pending.pop_front().unwrap();
            assert_eq!(version, self.replicas.leader.store.applied().version);
            for sql in script.lines().filter(|sql| !sql.starts_with("PRAGMA")) {
                let _ = self.model.execute_batch(sql);
            }
            assert!(self.model.is_autocommit());
        }
    }

    fn rewind(&mut self) {
        self.replicas.leader.store.rewind();
        let writer = self.writer.take();
        if let Some(writer) = writer
            && !self.pending.is_empty()
        {
            assert!(try_run(&writer, "SELECT 1", &[]).is_err());
        }
        self.pending.clear();
        if self.rng.one_in(2) {
            std::mem::swap(&mut self.replicas.leader, &mut self.replicas.follower);
            self.readers.swap(0, 1);
        }
        self.term += u64::from(self.rng.one_in(2));
        // Another leader never leads in the same term: its ids would be those of the first.
        let last = self.log.values().next_back().map_or(0, |delta| delta.id.term);
        self.term = self.term.max(last + 1);
        self.replicas.leader.store.open_slot(self.term);
    }

    /// The power of the follower is cut; it comes back and replays its log.
    fn restart_follower(&mut self) {
        self.readers[1].clear();
        let cut = Cut::from_seed(self.rng.below(12));
        let member = Member::open(self.replicas.follower.disk.cut(cut));
        let from = member.catalog.recorded().last.unwrap().index + 1;
        for (index, outgoing) in self.log.range(from..) {
            if *index > member.store.place().index {
                assert_eq!(apply(&member.store, outgoing, *index), ApplyOutcome::Applied);
            }
            member.catalog.applied().last =
                Some(quire::log::LogId { term: outgoing.id.term, index: *index });
        }
        self.replicas.follower = member;
    }

    fn read(&mut self) {
        let which = usize::try_from(self.rng.below(2)).unwrap();
        let member = if which == 0 { &self.replicas.leader } else { &self.replicas.follower };
        let readers = &mut self.readers[which];
        readers.iter().for_each(Reader::check);
        if readers.len() > 3 || (!readers.is_empty() && self.rng.one_in(3)) {
            readers.swap_remove(usize::try_from(self.rng.below(readers.len() as u64)).unwrap());
        } else {
            readers.push(Reader::at_applied(&member.store));
        }
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..10 => self.write(),
            10..13 => {
                let some = 1 + self.rng.below(4);
                self.commit(some);
            }
            13..15 => self.read(),
            15 => self.rewind(),
            16 if self.replicas.follower.catalog.recorded().last.is_some() => {
                self.restart_follower();
            }
            17 => drop(self.replicas.leader.checkpoint()),
            _ => drop(self.replicas.follower.checkpoint()),
        }
    }

    fn compare(&mut self) {
        self.replicas.compare();
        for readers in &self.readers {
            readers.iter().for_each(Reader::check);
        }
        if self.replicas.leader.store.applied().page_count == 0 {
            return;
        }
        let schema = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let schema = self.replicas.both(schema);
        let mut queries = vec![
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL \
            ORDER BY name"
                .to_owned(),
        ];
        let tables = schema.iter().filter(|row| row[0].starts_with('t'));
        queries
            .extend(tables.map(|row| format!("SELECT *, length(a) FROM {} ORDER BY id", row[0])));
        for sql in queries {
            assert_eq!(self.replicas.both(&sql), plain(&self.model, &sql), "{sql}");
        }
    }
}

/// Rows of plain SQLite, shown as those of a connection of ours.
fn plain(model: &rusqlite::Connection, sql: &str) -> Vec<Vec<String>> {
    use rusqlite::types::Value;
    let mut statement = model.prepare(sql).unwrap();
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..columns)
            .map(|column| {
                Ok(match row.get(column)? {
                    Value::Null => "NULL".to_owned(),
                    Value::Integer(integer) => integer.to_string(),
                    Value::Real(real) => real.to_string(),
                    Value::Text(text) => text,
                    Value::Blob(blob) => format!("{} bytes", blob.len()),
                })
            })
            .collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn run_seed(seed: u64) {
    println!("QUIRE_SEED={seed} cargo test --test random");
    let mut world = World::new(seed);
    for table in 0..4 {
        let sql = format!("CREATE TABLE t{table}(id INTEGER PRIMARY KEY, a, b UNIQUE)");
        let writer = world.replicas.writer();
        run(&writer, &sql);
        world.pending.push_back((world.replicas.leader.store.head().version, sql));
    }
    for step in 0..STEPS {
        world.step();
        if step % 30 == 29 {
            world.compare();
        }
    }
    world.commit(u64::MAX);
    world.compare();
    world.readers = [vec![], vec![]];
    for member in [&world.replicas.leader, &world.replicas.follower] {
        member.checkpoint();
    }
    let [one, two] = [&world.replicas.leader, &world.replicas.follower]
        .map(|member| member.disk.bytes("databases/db.db").unwrap());
    assert!(one == two, "byte-identical files");
    let reader = world.replicas.reader(&world.replicas.leader.store);
    assert_eq!(query(&reader, "PRAGMA integrity_check"), [["ok"]]);
}

#[test]
fn random_histories() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("QUIRE_SEED") {
        Some(seed) => run_seed(seed),
        None => (0..number("QUIRE_SEEDS").unwrap_or(SEEDS)).for_each(run_seed),
    }
}
