//! Transactions drawn from a seed, and what stock SQLite holds after each of them: the content of a
//! database is right if it is that of some number of them, executed in order.
//!
//! *Invariant*: nothing in a transaction depends on time, on randomness or on who executes it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use anyhow::Result;
use quire::sqlite::{Columns, RowSink, SqlError};
use quire::wire::Value;
use rusqlite::types::ValueRef;

use super::Dice;

/// The content of a database, but for what is the node's own; `None` where there is none.
pub type Content = Option<u64>;

/// One statement with its parameters.
pub type Statement = (String, Vec<Value>);

/// One transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// A statement by itself.
    One(Statement),
    /// An interactive transaction.
    Several(Vec<Statement>),
}

/// Transactions on one database, and its content after each number of them.
pub struct Script {
    /// The transactions.
    pub ops: Vec<Op>,
    /// One more than there are transactions.
    pub states: Vec<Content>,
}

fn plain(sql: impl Into<String>) -> Statement {
    (sql.into(), Vec::new())
}

impl Script {
    /// `count` transactions; `large` of them change more than an entry of the log can carry.
    pub fn new(seed: u64, count: usize, large: usize) -> Result<Script> {
        let dice = Dice::new(seed);
        let mut ops = vec![
            Op::One(plain("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB)")),
            Op::One(plain("CREATE INDEX t_n ON t(n)")),
            Op::One(plain("CREATE TABLE told(id INTEGER, n INTEGER)")),
            Op::One(plain(
                "CREATE TRIGGER tell AFTER UPDATE OF n ON t \
                 BEGIN INSERT INTO told VALUES(new.id, new.n); END",
            )),
        ];
        let mut tables = Vec::new();
        while ops.len() < count {
            let number = ops.len();
            ops.push(match dice.below(16) {
                0..6 => Op::One(insert(&dice, number)),
                6..9 => Op::One(change(&dice, number)),
                9..13 => transaction(&dice, number),
                13 | 14 => Op::One(plain(definition(&dice, number, &mut tables))),
                _ => Op::One(plain("VACUUM")),
            });
        }
        for n in 0..large {
            // In the place of one that defines nothing.
            let from = count / 3 + n * count / (3 * large);
            let small = |op: &Op| matches!(op, Op::One((sql, _)) if sql.contains(" t SET"));
            let Some(at) = (from..ops.len()).find(|at| small(&ops[*at])) else { break };
            let blob = Value::Blob(dice.bytes(5 << 20));
            let sql = "INSERT INTO t(n, body) VALUES(?, ?)";
            ops[at] = Op::One((sql.to_owned(), vec![Value::Integer(at as i64), blob]));
        }
        let states = states(&ops)?;
        Ok(Script { ops, states })
    }

    /// How many of the transactions make this content: the most that do and are not more than
    /// `at_most`.
    pub fn prefix(&self, content: Content, at_most: usize) -> Option<usize> {
        self.states[..=at_most].iter().rposition(|state| *state == content)
    }
}

fn insert(dice: &Dice, number: usize) -> Statement {
    let rows = 1 + dice.below(4);
    let mut params = Vec::new();
    for _ in 0..rows {
        let bytes = *dice.pick(&[10, 200, 900, 2500, 6000]);
        let bytes = 1 + dice.below(bytes);
        params.extend([Value::Integer(number as i64), Value::Blob(dice.bytes(bytes))]);
    }
    let values = vec!["(?, ?)"; rows as usize].join(", ");
    (format!("INSERT INTO t(n, body) VALUES{values}"), params)
}

fn change(dice: &Dice, number: usize) -> Statement {
    let (every, rest) = (2 + dice.below(9), dice.below(2));
    let few = format!("id % {every} = {rest} AND id % 3 = {}", dice.below(3));
    match dice.below(3) {
        0 => plain(format!("UPDATE t SET n = n + {number} WHERE {few}")),
        1 => {
            let (len, sql) = (1 + dice.below(3000), "UPDATE t SET body = ?, n = n + 1 WHERE ");
            (format!("{sql}{few}"), vec![Value::Blob(dice.bytes(len))])
        }
        _ => plain(format!("DELETE FROM t WHERE {few}")),
    }
}

fn transaction(dice: &Dice, number: usize) -> Op {
    let mut statements = vec![insert(dice, number)];
    for _ in 0..1 + dice.below(3) {
        match dice.below(5) {
            0 | 1 => statements.push(change(dice, number)),
            2 => {
                statements.push(plain("SAVEPOINT s"));
                statements.push(change(dice, number));
                statements.push(plain("ROLLBACK TO s"));
                statements.push(plain("RELEASE s"));
            }
            _ => statements.push(insert(dice, number)),
        }
    }
    statements.push(plain(format!("PRAGMA user_version = {number}")));
    Op::Several(statements)
}

fn definition(dice: &Dice, number: usize, tables: &mut Vec<String>) -> String {
    let choice = dice.below(4);
    if choice == 0 && tables.len() > 1 {
        return format!("DROP TABLE {}", tables.remove(0));
    }
    if choice == 1 && !tables.is_empty() {
        return format!("ALTER TABLE {} ADD COLUMN c{number} DEFAULT {number}", dice.pick(tables));
    }
    let name = format!("t{number}");
    tables.push(name.clone());
    format!("CREATE TABLE {name} AS SELECT id, n FROM t WHERE id % 2 = 0")
}

/// What stock SQLite holds after each number of transactions.
fn states(ops: &[Op]) -> Result<Vec<Content>> {
    let connection = rusqlite::Connection::open_in_memory()?;
    let mut states = vec![None];
    let run = |(sql, params): &Statement| -> Result<()> {
        let params: Vec<rusqlite::types::Value> = params
            .iter()
            .map(|value| match value {
                Value::Integer(integer) => (*integer).into(),
                Value::Blob(blob) => blob.clone().into(),
                other => panic!("no transaction has such a parameter: {other:?}"),
            })
            .collect();
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        while rows.next()?.is_some() {}
        Ok(())
    };
    for op in ops {
        match op {
            Op::One(statement) => run(statement)?,
            Op::Several(statements) => {
                run(&plain("BEGIN IMMEDIATE"))?;
                statements.iter().try_for_each(run)?;
                run(&plain("COMMIT"))?;
            }
        }
        states.push(Some(content_of_sqlite(&connection)?));
    }
    Ok(states)
}

fn content_of_sqlite(connection: &rusqlite::Connection) -> Result<u64> {
    let mut digest = Digest::default();
    take_all(connection, TABLES, &mut digest)?;
    take_all(connection, VERSION, &mut digest)?;
    for table in digest.tables.clone() {
        take_all(connection, &rows_of(&table), &mut digest)?;
    }
    Ok(digest.finish())
}

fn take_all(connection: &rusqlite::Connection, sql: &str, digest: &mut Digest) -> Result<()> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let values: Result<Vec<_>, _> = (0..columns).map(|at| row.get_ref(at)).collect();
        digest.take(&values?);
    }
    Ok(())
}

/// What is defined in a database.
pub const TABLES: &str = "SELECT type, name, sql FROM sqlite_schema \
                          WHERE name NOT LIKE '\\_quire%' ESCAPE '\\' ORDER BY type, name";

/// Another part of its content.
pub const VERSION: &str = "PRAGMA user_version";

/// All rows of a table.
pub fn rows_of(table: &str) -> String {
    format!("SELECT rowid, * FROM \"{table}\" ORDER BY rowid")
}

/// Takes rows in; the first of them are those of [`TABLES`].
#[derive(Default)]
pub struct Digest {
    hasher: DefaultHasher,
    /// The tables seen.
    pub tables: Vec<String>,
    /// Rows so far.
    pub rows: u64,
}

impl Digest {
    /// Takes a row in.
    pub fn take(&mut self, values: &[ValueRef<'_>]) {
        if let [ValueRef::Text(b"table"), ValueRef::Text(name), ValueRef::Text(sql)] = values
            && sql.starts_with(b"CREATE TABLE")
        {
            self.tables.push(String::from_utf8_lossy(name).into_owned());
        }
        self.rows += 1;
        values.len().hash(&mut self.hasher);
        for value in values {
            match value {
                ValueRef::Null => 0.hash(&mut self.hasher),
                ValueRef::Integer(integer) => integer.hash(&mut self.hasher),
                ValueRef::Real(real) => real.to_bits().hash(&mut self.hasher),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.hash(&mut self.hasher),
            }
        }
    }

    /// Of all rows so far.
    pub fn finish(&self) -> u64 {
        self.hasher.finish()
    }
}

impl RowSink for Digest {
    fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        self.take(values);
        Ok(())
    }
}
