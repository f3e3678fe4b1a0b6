//! What must hold for a schema's files and for what stands in the tables of the gate, whatever
//! their names and rows say (any client may write there): nothing panics, an error changes
//! nothing, no text of a file begins or ends a transaction, and what was brought up to date once
//! is up to date.

use std::sync::OnceLock;

use quire::cluster::{Database, Local, Module, Schema, Tx, Update, nodes, script};
use quire::driver::{Value, sql};

use super::Input;

/// Tables as the engine and the gate have them, but for the types: any value may stand there.
const TABLES: &str = "CREATE TABLE kept(x);
    CREATE TABLE schema(id INTEGER PRIMARY KEY, version, updated_at DEFAULT 0);
    CREATE TABLE schema_modules(module, version, UNIQUE(module));
    CREATE TABLE nodes(id INTEGER PRIMARY KEY, name, address, schema, api_extensions, heartbeat,
        pending);
    CREATE TABLE node_levels(node_id INTEGER PRIMARY KEY, modules, extensions);
    CREATE TABLE config(key, value);";

/// Reads what `data` makes up.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
    match input.below(4) {
        0 => check_text(&String::from_utf8_lossy(input.rest())),
        1 => runtime.block_on(check_script(&mut input)),
        2 => check_names(&mut input),
        _ => runtime.block_on(check_rows(&mut input)),
    }
}

/// A text is cut into its statements, which are parts of it in their order.
fn check_text(text: &str) {
    let (mut end, mut lines) = (0, 0);
    for piece in sql::pieces(text) {
        assert!(piece.start >= end && !piece.text.is_empty());
        end = piece.start + piece.text.len();
        assert_eq!(text.get(piece.start..end), Some(piece.text));
        assert!(piece.line >= lines && piece.line <= text.matches('\n').count() + 1);
        lines = piece.line;
        let read_only = sql::is_read_only(piece.text);
        assert!(!read_only || sql::control(piece.text).is_none());
        let _ = (sql::may_yield_rows(piece.text), sql::fingerprint(piece.text));
    }
    let _ = sql::is_complete(text);
}

/// Words that a file's text is made of.
fn text(input: &mut Input<'_>) -> String {
    let mut text = String::new();
    for _ in 0..input.below(12) {
        text.push_str(input.choose(&[
            "INSERT INTO kept VALUES(1);",
            "CREATE TABLE n(x);",
            "BEGIN;",
            "COMMIT;",
            "ROLLBACK;",
            "END;",
            "SAVEPOINT s;",
            "RELEASE s;",
            "ROLLBACK TO s;",
            "/* x */",
            "-- y\n",
            "\u{feff}",
            ";",
            "SELECT 1;",
            "CREATE TRIGGER g AFTER INSERT ON kept BEGIN SELECT 1; END;",
            "ROLLBACK TRANSACTION;",
            "EXPLAIN COMMIT;",
            "'",
            "\"",
            "x",
            "\0",
            "/*",
            "COMMIT",
            " ROLLBACK /* TO */;",
            "INSERT OR ROLLBACK INTO schema(id) VALUES(1), (1);",
            "PRAGMA foreign_keys = 0;",
            "END TRANSACTION",
            "\u{85}COMMIT;",
            "\u{a0}COMMIT;",
        ]));
        if input.rarely(8) {
            text.push_str(&String::from_utf8_lossy(input.take(6)));
        }
    }
    text
}

async fn prepared() -> (Local, Box<dyn Tx>) {
    let local = Local::in_memory().expect("a database");
    let mut tx = local.begin().await.expect("a transaction");
    script(&mut *tx, "tables.sql", TABLES).await.expect("the tables");
    tx.commit().await.expect("a commit");
    let tx = local.begin().await.expect("a transaction");
    (local, tx)
}

async fn number(tx: &mut dyn Tx, query: &str) -> Option<i64> {
    match tx.query(query, Vec::new()).await.ok()?.rows.first()?.first()? {
        Value::Integer(number) => Some(*number),
        _ => None,
    }
}

const KEPT: &str = "SELECT count(*) FROM kept";

const TABLES_COUNT: &str = "SELECT count(*) FROM sqlite_master";

/// Whatever the text says, all that it did goes with its transaction.
async fn check_script(input: &mut Input<'_>) {
    let (local, mut tx) = prepared().await;
    let tables = number(&mut *tx, TABLES_COUNT).await;
    let text = text(input);
    check_text(&text);
    let _ = script(&mut *tx, "0001_x.sql", &text).await;
    let _ = tx.rollback().await;
    let mut tx = local.begin().await.expect("a transaction");
    assert_eq!(number(&mut *tx, KEPT).await, Some(0), "it ended its transaction: {text:?}");
    assert_eq!(number(&mut *tx, TABLES_COUNT).await, tables, "it ended its transaction: {text:?}");
}

fn check_names(input: &mut Input<'_>) {
    let mut files = Vec::new();
    for number in 1..=input.below(6) as u32 {
        let odd = input.rarely(8);
        let number = if odd { input.odd_u32() } else { number };
        let words = String::from_utf8_lossy(input.take(4)).into_owned();
        let name = match input.below(4) {
            0 => format!("{number:04}_{words}.sql"),
            1 => format!("{number}_{words}"),
            _ => format!("{number:04}_x.sql"),
        };
        files.push((name, "SELECT 1"));
    }
    if let Ok(module) = Module::files("m", files.clone()) {
        assert_eq!(module.len(), files.len() as u64);
        files.sort();
        for (update, (name, _)) in module.updates().iter().zip(&files) {
            assert_eq!(update.name(), name);
            assert!(name.is_ascii() && !name.contains('/'));
        }
    }
}

fn value(input: &mut Input<'_>) -> Value {
    match input.below(10) {
        0..4 => Value::Integer(i64::from(input.u8() % 4)),
        4 => Value::Integer(input.odd() as i64),
        5 => Value::Null,
        6 => Value::Float(f64::from_bits(input.odd())),
        7 => Value::Blob(input.take(6).to_vec()),
        _ => Value::from(name(input)),
    }
}

/// A number of updates or extensions, mostly.
fn number_of(input: &mut Input<'_>) -> Value {
    if input.rarely(8) { value(input) } else { Value::Integer(i64::from(input.u8() % 4)) }
}

fn name(input: &mut Input<'_>) -> String {
    match input.below(4) {
        0 => String::from_utf8_lossy(input.take(6)).into_owned(),
        _ => input.choose(&["app", "quire", "n1", "a:1", "2026-01-01", ""]).to_owned(),
    }
}

/// What stands in `node_levels`.
fn json(input: &mut Input<'_>) -> Value {
    let text = match input.below(8) {
        0 => return value(input),
        1 => String::from_utf8_lossy(input.take(20)).into_owned(),
        2 => format!("[{:?}, {:?}]", name(input), name(input)),
        3 => "[".repeat(usize::from(input.u16() % 5000)),
        4 => format!("{{{:?}: {}}}", name(input), input.odd()),
        _ => format!("{{{:?}: {}, \"b\": {}}}", name(input), input.odd(), input.odd()),
    };
    Value::from(text)
}

async fn fill(tx: &mut dyn Tx, input: &mut Input<'_>) {
    for _ in 0..input.below(12) {
        let (table, values) = match input.below(6) {
            0 | 1 => ("schema(version)", vec![value(input)]),
            2 => ("schema_modules(module, version)", vec![value(input), value(input)]),
            3 => {
                let columns = "nodes(name, address, schema, api_extensions, heartbeat, pending)";
                let name = Value::from(name(input));
                let (schema, api) = (number_of(input), number_of(input));
                let mut values = vec![name, Value::from("a:1"), schema, api];
                let pending = Value::Integer(i64::from(input.rarely(3)));
                values.extend([value(input), pending]);
                (columns, values)
            }
            4 => {
                let id = Value::Integer(i64::from(input.u8() % 4));
                let extensions = if input.below(2) == 0 { Value::Null } else { json(input) };
                ("node_levels", vec![id, json(input), extensions])
            }
            _ => {
                let key = input
                    .choose(&["cluster.offline_threshold", "cluster.services_offline_threshold"]);
                ("config", vec![Value::from(key), value(input)])
            }
        };
        let marks = vec!["?"; values.len()].join(", ");
        let sql = format!("INSERT OR IGNORE INTO {table} VALUES({marks})");
        tx.execute(&sql, values).await.expect("a row");
    }
}

async fn check_rows(input: &mut Input<'_>) {
    let (local, mut tx) = prepared().await;
    fill(&mut *tx, input).await;
    let tables = number(&mut *tx, TABLES_COUNT).await;
    tx.commit().await.expect("a commit");
    let mut tx = local.begin().await.expect("a transaction");
    check_nodes(&mut *tx).await;
    tx.rollback().await.expect("a rollback");
    let mut schema = Schema::new();
    for module in ["app", "quire"] {
        let updates = (1..=input.below(4) as u64).map(|number| {
            let text = match input.rarely(6) {
                true => text(input),
                false => "INSERT INTO kept VALUES(1)".to_owned(),
            };
            (number, Update::sql(&format!("{number:04}_x.sql"), &text))
        });
        let module = Module::numbered(module, updates.collect::<Vec<_>>()).expect("numbered");
        schema.add_module(module).expect("two modules");
    }
    let done = schema.ensure(&local).await;
    let mut tx = local.begin().await.expect("a transaction");
    let (kept, now) = (number(&mut *tx, KEPT).await, number(&mut *tx, TABLES_COUNT).await);
    tx.rollback().await.expect("a rollback");
    match done {
        Ok(_) => {
            let again = schema.ensure(&local).await.expect("it is up to date");
            assert_eq!(again, schema.len());
            let mut tx = local.begin().await.expect("a transaction");
            assert_eq!(number(&mut *tx, KEPT).await, kept, "an update ran twice");
        }
        Err(_) => assert_eq!((kept, now), (Some(0), tables), "an error changed something"),
    }
}

/// The gate's questions.
async fn check_nodes(tx: &mut dyn Tx) {
    let all = nodes::all(tx).await.unwrap_or_default();
    for row in &all {
        for other in &all {
            let order = row.level.compare(&other.level);
            assert_eq!(order, other.level.compare(&row.level).map(std::cmp::Ordering::reverse));
        }
        let _ = row.is_offline(i64::MIN, std::time::Duration::MAX);
        let _ = nodes::by_id(tx, row.id).await;
    }
    let _ = nodes::pending(tx).await;
    let _ = nodes::by_name(tx, "n1").await;
    let _ = nodes::is_outdated(tx, "a:1").await;
    let _ = nodes::offline_threshold(tx).await;
    let _ = nodes::services_offline_threshold(tx).await;
    let _ = nodes::nodes_count(tx).await;
    let _ = nodes::heartbeat(tx, "a:1", i64::MAX).await;
}
