//! What must hold for any SQL that a client sends: no panic, no file, no database attached that has
//! a name, no word from a file that the node never gave; and the database stays one that SQLite
//! calls sound, on this member and on another that applies what was published.
//!
//! The bytes are SQL, or they choose statements from a grammar that knows what a guard is for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quire::base::{Clock, DatabaseName};
use quire::codec::Reader;
use quire::disk::{Disk, FakeDisk};
use quire::pages::delta::DeltaHeader;
use quire::pages::store::{ApplyOutcome, Place, Point};
use quire::pages::{PagesError, Store};
use quire::sqlite::{
    Cancel, Columns, Connection, ConnectionOptions, RowSink, SqlError, Surplus, TempSpace,
    TimeLimit, ValueRef, View, text,
};

use super::Input;

/// What stands in the file that nobody may read.
const SECRET: &str = "the words of another file";

const SCHEMA: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT UNIQUE, c);
    CREATE TABLE u(x REFERENCES t(a), y, z AS (y || x)) ;
    CREATE INDEX i ON u(y, x) WHERE y > 1;
    CREATE VIEW v AS SELECT a, b, x FROM t LEFT JOIN u ON x = a;
    CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO u(x, y) VALUES(new.a, new.b); END;
    CREATE VIRTUAL TABLE f USING fts5(words);
    INSERT INTO t VALUES(1, 'one', 1.5), (2, 'two', x'00ff'), (3, NULL, NULL);
    INSERT INTO f VALUES('some words'), ('more of the words');";

/// Runs the statements that `data` is or chooses.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    let sandbox = Sandbox::get();
    let outside = Outside::look(&sandbox);
    let mut world = World::new();
    let sql = match input.below(2) {
        0 => tame(&String::from_utf8_lossy(input.rest())),
        _ => statements(&mut input, &sandbox),
    };
    world.run(&sql, &outside, &sandbox);
    world.check(&sql);
}

/// Numbers of more than five digits would only ask for much memory.
fn tame(sql: &str) -> String {
    let (mut out, mut digits) = (String::new(), 0);
    for character in sql.chars() {
        digits = if character.is_ascii_digit() { digits + 1 } else { 0 };
        if digits < 6 {
            out.push(character);
        }
    }
    out
}

/// A clock that goes on by being looked at: a statement ends after so many steps.
#[derive(Default)]
struct Steps(AtomicU64);

impl Clock for Steps {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn unix(&self) -> Duration {
        Duration::ZERO
    }
}

/// A directory of real files that SQL is told the names of.
struct Sandbox {
    dir: PathBuf,
    _owned: tempfile::TempDir,
}

impl Sandbox {
    fn get() -> Sandbox {
        let owned = tempfile::tempdir().expect("a directory");
        let dir = owned.path().to_owned();
        let decoy = rusqlite::Connection::open(dir.join("decoy.db")).expect("a database");
        let sql = format!("PRAGMA synchronous = OFF; CREATE TABLE s AS SELECT '{SECRET}' AS w");
        decoy.execute_batch(&sql).expect("a table");
        Sandbox { dir, _owned: owned }
    }
}

/// What of the machine's files can be seen to change.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    names: BTreeSet<PathBuf>,
    open: BTreeSet<PathBuf>,
}

impl Outside {
    fn look(sandbox: &Sandbox) -> Outside {
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let mut open: BTreeSet<PathBuf> = names(Path::new("/proc/self/fd"))
            .iter()
            .filter_map(|fd| std::fs::read_link(fd).ok())
            .collect();
        // Of all others only those that SQL was told of are of interest: tests run beside.
        open.retain(|path| path.starts_with(&sandbox.dir));
        Outside { names: names(&sandbox.dir).into_iter().collect(), open }
    }
}

/// Rows, looked through for what must not be there.
struct Looked {
    rows: usize,
}

impl RowSink for Looked {
    fn columns(&mut self, columns: Columns<'_>) -> Result<(), SqlError> {
        columns.each(|_| ()).for_each(drop);
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        for value in values {
            if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = value {
                let found = bytes.windows(SECRET.len()).any(|words| words == SECRET.as_bytes());
                assert!(!found, "the words of a file");
            }
        }
        self.rows += 1;
        if self.rows < 200 { Ok(()) } else { Err(SqlError::new(9, "enough")) }
    }
}

/// Rows as text.
#[derive(Default)]
struct Rows(Vec<Vec<String>>);

impl RowSink for Rows {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        let show = |value: &ValueRef<'_>| match value {
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        };
        self.0.push(values.iter().map(show).collect());
        Ok(())
    }
}

/// A leader's copy, a follower's, and a session's connection to the leader's.
struct World {
    disk: FakeDisk,
    leader: Arc<Store>,
    follower: Arc<Store>,
    space: Arc<TempSpace>,
    writer: Connection,
    index: u64,
}

fn store(disk: &FakeDisk) -> Arc<Store> {
    disk.create_dir("databases").expect("a directory");
    let name = DatabaseName::new("db").expect("a name");
    let place = Place { index: 1, ordinal: 0 };
    Store::open(Arc::new(disk.clone()), 1, name, 1024, Point::default(), place).expect("opens")
}

fn connect(store: &Arc<Store>, space: &Arc<TempSpace>, view: View, shared: bool) -> Connection {
    let clock = Arc::new(Steps::default());
    let options = ConnectionOptions {
        view,
        shared,
        transaction_bytes_max: 1 << 20,
        cache_kib: 256,
        space: space.clone(),
        time_limit: Some(TimeLimit { clock, max: Duration::from_millis(200) }),
    };
    Connection::open(store.clone(), &options).expect("a connection")
}

impl World {
    fn new() -> World {
        let disk = FakeDisk::unrecorded();
        let (leader, follower) = (store(&disk), store(&FakeDisk::unrecorded()));
        leader.open_slot(1);
        let space = TempSpace::new(Arc::new(FakeDisk::unrecorded()), 1 << 22);
        let writer = connect(&leader, &space, View::Head, false);
        writer.link().allow_write(true);
        let mut world = World { disk, leader, follower, space, writer, index: 1 };
        world.each(SCHEMA, &mut |world, statement| {
            let mut rows = Rows::default();
            let cancel = Cancel::default();
            world
                .writer
                .run(statement, &[], Surplus::Kept, &cancel, &mut rows)
                .expect("the schema");
        });
        world.commit();
        world
    }

    /// Cuts a script as a session does.
    fn each(&mut self, sql: &str, with: &mut dyn FnMut(&mut World, &str)) {
        let mut rest = sql;
        while !text::is_blank(rest) {
            let bytes = self.writer.first_statement_bytes(rest);
            assert!(
                bytes > 0 && rest.is_char_boundary(bytes),
                "no statement of {bytes} bytes: {rest:?}"
            );
            with(self, &rest[..bytes]);
            rest = &rest[bytes..];
        }
    }

    fn run(&mut self, sql: &str, outside: &Outside, sandbox: &Sandbox) {
        let shared = connect(&self.leader, &self.space, View::Applied, true);
        let cancel = Cancel::default();
        self.each(sql, &mut |world, statement| {
            let described = shared.describe(statement);
            let mut looked = Looked { rows: 0 };
            if described
                .is_ok_and(|described| described.readonly && !described.needs_own_connection)
            {
                let _ = shared.run(statement, &[], Surplus::Kept, &cancel, &mut looked);
            }
            let mut looked = Looked { rows: 0 };
            let _ = world.writer.run(statement, &[], Surplus::Kept, &cancel, &mut looked);
            assert_eq!(Outside::look(sandbox), *outside, "a file: {statement}");
            world.check_attached(statement);
        });
        drop(shared);
    }

    /// Only nameless databases are attached.
    fn check_attached(&self, statement: &str) {
        let mut rows = Rows::default();
        let sql = "SELECT name, file FROM pragma_database_list WHERE name <> 'main'";
        let cancel = Cancel::default();
        if self.writer.run(sql, &[], Surplus::Kept, &cancel, &mut rows).is_ok() {
            for row in rows.0 {
                assert!(row[1].is_empty() || row[1] == "Null", "attached: {row:?} by {statement}");
            }
        }
    }

    /// What the leader published is applied on both.
    fn commit(&mut self) {
        while let Some(outgoing) = self.leader.take_outgoing() {
            assert!(outgoing.part.is_none(), "it is small");
            self.index += 1;
            let header = DeltaHeader::decode(&mut Reader::new(&outgoing.bytes)).expect("a header");
            let place = Place { index: self.index, ordinal: 1 };
            for store in [&self.leader, &self.follower] {
                let outcome = store.apply(&header, &outgoing.bytes, place).expect("a good delta");
                assert_eq!(outcome, ApplyOutcome::Applied);
            }
        }
    }

    fn check(&mut self, sql: &str) {
        self.writer.roll_back();
        self.commit();
        let applied = self.leader.applied();
        assert_eq!(self.follower.applied(), applied, "{sql}");
        for store in [&self.leader, &self.follower] {
            let verified: Result<Point, PagesError> = store.verify();
            assert_eq!(verified.expect("every page is good"), applied, "{sql}");
        }
        let files = self.disk.list("databases").expect("a directory");
        assert_eq!(files, ["db.db", "db.sum"], "{sql}");
        let reader = connect(&self.follower, &self.space, View::Applied, false);
        let mut rows = Rows::default();
        let cancel = Cancel::default();
        // It may run longer than the time that is given here.
        let ran =
            reader.run("PRAGMA integrity_check", &[], Surplus::Kept, &cancel, &mut rows).map(drop);
        let bad: Vec<&str> =
            rows.0.iter().map(|row| row[0].as_str()).filter(|row| bad(row)).collect();
        assert!(bad.is_empty(), "{bad:?} {ran:?} after {sql}");
    }
}

/// Whether a line of the integrity check is of a file that is not sound. SQL itself may break rules
/// of rows (`PRAGMA ignore_check_constraints`), and what a full-text index stands for.
fn bad(line: &str) -> bool {
    line != "ok"
        && !line.starts_with("CHECK constraint failed")
        && !line.starts_with("NULL value in")
        && !line.contains("fts5")
        && !line.contains("FTS5")
        // LIKE in an index may mean something else by PRAGMA case_sensitive_like.
        && !line.contains("missing from index")
}

/// Statements by a grammar.
fn statements(input: &mut Input<'_>, sandbox: &Sandbox) -> String {
    let mut sql = String::new();
    for _ in 0..1 + input.below(8) {
        statement(&mut sql, input, &sandbox.dir);
        sql.push_str("; ");
    }
    sql
}

/// A file's name, in the ways in which one is written.
fn file(input: &mut Input<'_>, dir: &Path) -> String {
    let dir = dir.display();
    match input.below(8) {
        0 => format!("'{dir}/new.db'"),
        1 => format!("'{dir}/decoy.db'"),
        2 => format!("'file:{dir}/decoy.db?mode=ro&vfs=unix'"),
        3 => format!("'file:' || '{dir}/decoy' || '.db'"),
        4 => format!("(SELECT '{dir}/decoy.db')"),
        5 => input.choose(&["''", "':memory:'", "NULL", "?1", "'file::memory:'"]).to_owned(),
        6 => format!("x'{}'", hex(format!("{dir}/decoy.db").as_bytes())),
        _ => format!("\"{dir}/decoy.db\""),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn name(input: &mut Input<'_>) -> &'static str {
    input.choose(&[
        "t",
        "u",
        "v",
        "f",
        "f_data",
        "f_config",
        "sqlite_schema",
        "sqlite_temp_schema",
        "main.t",
        "temp.t",
        "m.t",
        "w",
        "quire_requests",
        "sqlite_sequence",
        "sqlite_stat1",
        "dbstat",
        "sqlite_dbpage",
        "pragma_table_info('t')",
        "json_each('[1,2]')",
        "fts5vocab",
        "bytecode('SELECT 1')",
        "generate_series(1,3)",
        "zipfile('x')",
        "fsdir('/')",
    ])
}

fn column(input: &mut Input<'_>) -> &'static str {
    input.choose(&["a", "b", "c", "x", "y", "z", "words", "rowid", "*", "data", "sql", "rootpage"])
}

fn expression(sql: &mut String, input: &mut Input<'_>, depth: u8) {
    let leaf = depth == 0;
    match input.below(if leaf { 5 } else { 12 }) {
        0 => drop(write!(sql, "{}", input.u8())),
        1 => drop(write!(sql, "'{}'", input.choose(&["", "one", "some", "%", "1,2", "$.a"]))),
        2 => sql.push_str(input.choose(&["NULL", "?1", "x'00'", "1.5", "random()", "-1"])),
        3 => sql.push_str(column(input)),
        4 => sql.push_str(input.choose(&["changes()", "last_insert_rowid()", "total_changes()"])),
        5 => call(sql, input, depth),
        6 => {
            sql.push_str("(SELECT ");
            expression(sql, input, depth - 1);
            let _ = write!(sql, " FROM {})", name(input));
        }
        7 => {
            sql.push_str("CASE WHEN ");
            expression(sql, input, depth - 1);
            sql.push_str(" THEN ");
            expression(sql, input, depth - 1);
            sql.push_str(" END");
        }
        _ => {
            sql.push('(');
            expression(sql, input, depth - 1);
            sql.push_str(input.choose(&[
                " + ", " || ", " = ", " < ", " LIKE ", " MATCH ", " IN ", " AND ", " -> ", " GLOB ",
            ]));
            expression(sql, input, depth - 1);
            sql.push(')');
        }
    }
}

fn call(sql: &mut String, input: &mut Input<'_>, depth: u8) {
    sql.push_str(input.choose(&[
        "load_extension",
        "fts3_tokenizer",
        "writefile",
        "readfile",
        "edit",
        "hex",
        "zeroblob",
        "randomblob",
        "printf",
        "json_set",
        "sqlite_compileoption_get",
        "sqlite_version",
        "typeof",
        "snippet",
        "highlight",
        "fts5",
        "fts5_source_id",
        "sqlite_log",
        "group_concat",
        "total",
        "replace",
        "quote",
        "unistr",
        "eval",
        "sha3",
        "datetime",
        "sqlite_offset",
        "max",
        "abs",
        "likelihood",
        "json_tree",
        "sqlite_rename_table",
        "sqlite_drop_column",
        "soundex",
        "nth_value",
    ]));
    sql.push('(');
    for argument in 0..input.below(4) {
        if argument > 0 {
            sql.push_str(", ");
        }
        expression(sql, input, depth - 1);
    }
    sql.push(')');
}

fn statement(sql: &mut String, input: &mut Input<'_>, dir: &Path) {
    if input.rarely(8) {
        sql.push_str(input.choose(&["EXPLAIN ", "EXPLAIN QUERY PLAN ", "/* ; */ ", "-- x\n"]));
    }
    match input.below(20) {
        0 => drop(write!(sql, "ATTACH {} AS {}", file(input, dir), input.choose(&["m", "temp"]))),
        1 => drop(write!(sql, "VACUUM {} INTO {}", input.choose(&["", "main"]), file(input, dir))),
        2 => {
            sql.push_str(input.choose(&["VACUUM", "VACUUM temp", "REINDEX", "ANALYZE", "DETACH m"]))
        }
        3 => pragma(sql, input, dir),
        4 | 5 => {
            sql.push_str("SELECT ");
            expression(sql, input, 3);
            let _ = write!(sql, " FROM {} WHERE ", name(input));
            expression(sql, input, 2);
        }
        6 | 7 => {
            let verb = input.choose(&["INSERT", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"]);
            let _ = write!(sql, "{verb} INTO {} VALUES(", name(input));
            for value in 0..1 + input.below(3) {
                sql.push_str(if value > 0 { ", " } else { "" });
                expression(sql, input, 2);
            }
            sql.push_str(input.choose(&[")", ")", ") RETURNING *", ") ON CONFLICT DO NOTHING"]));
        }
        8 => {
            let _ = write!(sql, "UPDATE {} SET {} = ", name(input), column(input));
            expression(sql, input, 2);
            sql.push_str(input.choose(&["", " RETURNING rowid", " WHERE a = 1", " LIMIT 1"]));
        }
        9 => {
            let _ = write!(sql, "DELETE FROM {} WHERE ", name(input));
            expression(sql, input, 2);
        }
        10..13 => create(sql, input),
        13 => {
            let kind = input.choose(&["TABLE", "INDEX", "VIEW", "TRIGGER"]);
            let _ =
                write!(sql, "DROP {kind} {}", input.choose(&["t", "u", "i", "v", "r", "f", "w"]));
        }
        14 => {
            let change = input.choose(&[
                "RENAME TO w",
                "ADD COLUMN n DEFAULT 7",
                "DROP COLUMN c",
                "RENAME COLUMN b TO bb",
                "ADD COLUMN g AS (a + 1)",
                "RENAME TO quire_x",
                "RENAME TO sqlite_x",
            ]);
            let _ = write!(sql, "ALTER TABLE {} {change}", name(input));
        }
        15 | 16 => sql.push_str(input.choose(&[
            "BEGIN",
            "BEGIN IMMEDIATE",
            "BEGIN EXCLUSIVE",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "RELEASE s",
            "END",
            "SAVEPOINT quire_returning",
            "RELEASE quire_returning",
            "ROLLBACK TO quire_returning",
        ])),
        17 => {
            let command = input.choose(&[
                "'rebuild'",
                "'optimize'",
                "'delete-all'",
                "'integrity-check'",
                "'automerge', 2",
                "'pgsz', 99",
                "'merge', -16",
                "'crisismerge', 5",
                "'secure-delete', 1",
            ]);
            let columns = if command.contains(',') { "f, rank" } else { "f" };
            let _ = write!(sql, "INSERT INTO f({columns}) VALUES({command})");
        }
        18 => {
            let _ = write!(
                sql,
                "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
                 INSERT INTO u(x, y) SELECT NULL, hex(randomblob(i % 90)) FROM n",
                input.u16() % 300
            );
        }
        _ => sql.push_str(&tame(&String::from_utf8_lossy(input.take(40)))),
    }
}

fn create(sql: &mut String, input: &mut Input<'_>) {
    let temp = input.choose(&["", "", "TEMP ", "TEMPORARY "]);
    match input.below(7) {
        0 => {
            let _ = write!(sql, "CREATE {temp}TABLE {} AS SELECT ", name(input));
            expression(sql, input, 2);
        }
        1 => {
            let kind = input.choose(&["", "WITHOUT ROWID", "STRICT"]);
            let _ = write!(sql, "CREATE {temp}TABLE w(a INTEGER PRIMARY KEY, b DEFAULT (");
            expression(sql, input, 2);
            sql.push_str("), CHECK (");
            expression(sql, input, 1);
            let _ = write!(sql, ")) {kind}");
        }
        2 => {
            let _ = write!(sql, "CREATE {temp}VIEW w AS SELECT ");
            expression(sql, input, 2);
            let _ = write!(sql, " FROM {}", name(input));
        }
        3 => {
            let _ = write!(sql, "CREATE {temp}TRIGGER q AFTER INSERT ON t BEGIN SELECT ");
            expression(sql, input, 2);
            sql.push_str("; INSERT INTO u VALUES(1, 2); END");
        }
        4 => {
            let _ = write!(sql, "CREATE INDEX j ON {}(", name(input));
            expression(sql, input, 1);
            sql.push(')');
        }
        _ => {
            let module = input.choose(&[
                "fts5(x)",
                "fts5(x, content='')",
                "fts5(x, content=t)",
                "rtree(i, l, h)",
                "fts4(x)",
                "dbstat",
                "fts5vocab(f, row)",
                "csv(filename='/etc/passwd')",
                "sqlite_dbpage",
                "geopoly(a)",
                "fts5(x, content=f_data)",
                "fts5(x, prefix='1 2 3', tokenize='trigram')",
            ]);
            let _ = write!(
                sql,
                "CREATE VIRTUAL TABLE {}w USING {module}",
                input.choose(&["", "temp."])
            );
        }
    }
}

fn pragma(sql: &mut String, input: &mut Input<'_>, dir: &Path) {
    let name = input.choose(&[
        "journal_mode",
        "page_size",
        "locking_mode",
        "writable_schema",
        "temp_store_directory",
        "data_store_directory",
        "schema_version",
        "user_version",
        "application_id",
        "auto_vacuum",
        "incremental_vacuum",
        "optimize",
        "foreign_keys",
        "case_sensitive_like",
        "cache_size",
        "wal_checkpoint",
        "mmap_size",
        "encoding",
        "temp_store",
        "trusted_schema",
        "hexkey",
        "key",
        "ignore_check_constraints",
        "query_only",
        "recursive_triggers",
        "legacy_alter_table",
        "busy_timeout",
        "integrity_check",
        "table_info",
        "database_list",
        "hard_heap_limit",
        "shrink_memory",
        "defer_foreign_keys",
        "secure_delete",
        "synchronous",
        "lock_proxy_file",
    ]);
    let schema = input.choose(&["", "", "main.", "temp.", "m."]);
    let _ = write!(sql, "PRAGMA {schema}{name}");
    match input.below(6) {
        0 => {}
        1 => drop(write!(sql, "({})", input.choose(&["t", "1", "0", "'wal'", "FULL"]))),
        2 => drop(write!(sql, " = {}", file(input, dir))),
        3 => drop(write!(sql, " = {}", input.odd())),
        _ => sql.push_str(input.choose(&[" = ON", " = 0", " = WAL", " = -2000", " = 'UTF-16'"])),
    }
}
