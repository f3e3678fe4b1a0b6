//! The schema engine.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quire::cluster::{
    Change, Check, Database, DatabaseErrorKind, Error, Hook, Local, Module, Schema, SchemaProvider,
    StandardSchema, Update, fresh_schema,
};
use quire::disk::{Disk, FakeDisk, Fault};

use crate::support::{On, Scripted, boom, builder, dir, execute, module, select, tables};

fn local() -> Local {
    Local::in_memory().unwrap()
}

fn schema(updates: u64) -> Schema {
    Schema::of([module("t", updates)]).unwrap()
}

async fn versions(database: &dyn Database) -> Vec<String> {
    select(database, "SELECT version FROM schema ORDER BY id").await
}

async fn fails(schema: &Schema, database: &dyn Database) -> String {
    schema.ensure(database).await.unwrap_err().to_string()
}

fn write(disk: &FakeDisk, path: &str, text: &str) {
    quire::disk::replace(disk, path, text.as_bytes()).unwrap();
}

#[tokio::test]
async fn new_from_map() {
    let update = |n: u64| (n, Update::sql("u", &format!("CREATE TABLE t{n}(x)")));
    let module = Module::numbered("m", [update(2), update(1)]).unwrap();
    let (schema, database) = (Schema::of([module]).unwrap(), local());
    assert_eq!(schema.len(), 2);
    schema.ensure(&database).await.unwrap();
    assert_eq!(versions(&database).await, ["1", "2"]);
    let missing = Module::numbered("m", [update(1), update(3)]).unwrap_err().to_string();
    assert_eq!(missing, "updates map misses version 2: u is number 3");
}

/// In a simulation a node was upgraded while links broke, an answer to its gate was lost, and the node
/// would have waited for it for an hour, which a statement of an update may take: no client was let in
/// anywhere, though all nodes ran and had a leader.
#[tokio::test]
async fn only_an_update_is_waited_for_patiently() {
    const SHORT: Duration = Duration::from_secs(60);
    let database = Scripted::new();
    schema(2).ensure(&database).await.unwrap();
    let patient = std::mem::take(&mut *database.script.patient.lock());
    let updates = patient.iter().position(|(_, limit)| *limit >= Duration::from_secs(3600));
    let before = &patient[..updates.unwrap()];
    assert!(!before.is_empty() && before.iter().all(|(_, limit)| *limit <= SHORT), "{before:?}");
    // The commit of a large change may take long, too.
    let behind = &patient[updates.unwrap()..];
    assert!(behind.iter().all(|(_, limit)| *limit > SHORT), "{behind:?}");
    // With nothing to change nothing is waited for.
    schema(2).ensure(&database).await.unwrap();
    fails(&schema(1), &database).await;
    let patient = std::mem::take(&mut *database.script.patient.lock());
    assert!(patient.iter().all(|(_, limit)| *limit <= SHORT), "{patient:?}");
}

#[tokio::test]
async fn version_more_recent_than_expected() {
    let database = local();
    schema(3).ensure(&database).await.unwrap();
    let error = fails(&schema(1), &database).await;
    assert_eq!(error, "schema version '3' is more recent than expected '1'");
    // The sums do not show it, a module does.
    let two = |a, b| Schema::of([module("a", a), module("b", b)]).unwrap();
    let database = local();
    two(2, 1).ensure(&database).await.unwrap();
    let error = fails(&two(1, 2), &database).await;
    assert_eq!(error, "schema version '2' of module a is more recent than expected '1'");
}

#[tokio::test]
async fn fresh_statement_error() {
    let (mut schema, database) = (schema(1), local());
    schema.fresh("CREATE TABLE ok(x);\nSELECT FROM");
    let error = fails(&schema, &database).await;
    let expected =
        "cannot apply fresh schema: the fresh schema: statement 2 (line 2, `SELECT FROM`): ";
    assert!(error.starts_with(expected), "{error}");
    assert!(tables(&database).await.is_empty());
}

#[tokio::test]
async fn a_hole_is_an_error() {
    let database = local();
    schema(3).ensure(&database).await.unwrap();
    execute(&database, "DELETE FROM schema WHERE version = 2").await;
    assert_eq!(fails(&schema(3), &database).await, "missing updates: 1 -> 3");
}

#[tokio::test]
async fn zero_updates() {
    let database = local();
    assert_eq!(Schema::new().ensure(&database).await.unwrap(), 0);
    assert!(tables(&database).await.contains(&"schema".to_owned()));
    assert!(versions(&database).await.is_empty());
}

#[tokio::test]
async fn apply_all_updates_and_only_those_missing() {
    let database = local();
    assert_eq!(schema(2).ensure(&database).await.unwrap(), 0);
    assert_eq!(versions(&database).await, ["1", "2"]);
    assert_eq!(schema(3).ensure(&database).await.unwrap(), 2);
    assert_eq!(schema(3).ensure(&database).await.unwrap(), 3);
    assert_eq!(versions(&database).await, ["1", "2", "3"]);
    assert_eq!(select(&database, "SELECT x FROM t_1").await, ["1"], "once");
}

#[tokio::test]
async fn apply_after_initial_dump_creation() {
    let first = local();
    schema(2).ensure(&first).await.unwrap();
    let text = schema(2).dump(&first).await.unwrap();
    let (mut flat, database) = (schema(2), local());
    flat.fresh(text.clone());
    assert_eq!(flat.ensure(&database).await.unwrap(), 0);
    assert_eq!(versions(&database).await, ["2"], "exactly one row");
    assert_eq!(tables(&database).await, tables(&first).await);
    assert_eq!(flat.dump(&database).await.unwrap(), text);
    assert_eq!(schema(3).ensure(&database).await.unwrap(), 2);
    assert_eq!(versions(&database).await, ["2", "3"]);
    // A flattened text may be older than the updates: the rest is applied.
    let (mut flat, database) = (schema(3), local());
    flat.fresh(text);
    flat.ensure(&database).await.unwrap();
    assert_eq!(versions(&database).await, ["2", "3"]);
    assert_eq!(select(&database, "SELECT * FROM t_3").await, ["3"]);
}

#[tokio::test]
async fn failing_update() {
    let (mut schema, database) = (schema(1), local());
    schema.add(boom());
    assert_eq!(fails(&schema, &database).await, "failed to apply update 1: boom");
    assert!(tables(&database).await.is_empty());
}

/// A wrong file names itself, the statement and what SQLite says, and changes nothing.
#[tokio::test]
async fn a_wrong_file_names_the_statement() {
    let wrong =
        "-- comment; with a semicolon\nCREATE TABLE a(x);\n\n  INSERT INTO\n  b VALUES (1);";
    let app = Module::files("app", [("0001_wrong.sql", wrong)]).unwrap();
    let database = local();
    let error = Schema::of([app]).unwrap().ensure(&database).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to apply update 0: 0001_wrong.sql: statement 2 (line 4, `INSERT INTO`): \
         no such table: b"
    );
    assert!(matches!(error.root(), Error::Statement { number: 2, line: 4, .. }));
    assert!(tables(&database).await.is_empty());
    let ends = Module::files("app", [("0001_ends.sql", "CREATE TABLE a(x); COMMIT;")]).unwrap();
    let error = fails(&Schema::of([ends]).unwrap(), &database).await;
    assert!(error.contains("(line 1, `COMMIT;`): it runs in a transaction already"), "{error}");
    assert!(tables(&database).await.is_empty());
}

fn noting(seen: &Arc<Mutex<Vec<Change>>>) -> Hook {
    let seen = seen.clone();
    Arc::new(move |change, _| {
        seen.lock().push(change);
        Box::pin(async { Ok(()) })
    })
}

#[tokio::test]
async fn hooks_are_called_before_each_change() {
    let (seen, mut first) = (Arc::default(), schema(2));
    first.hook(noting(&seen));
    let database = local();
    first.ensure(&database).await.unwrap();
    assert_eq!(*seen.lock(), [Change::Update(0), Change::Update(1)]);
    first.ensure(&database).await.unwrap();
    assert_eq!(seen.lock().len(), 2, "nothing was changed");
    // The original called none before a flattened schema, so there was no backup either.
    let (seen, mut flat) = (Arc::default(), schema(1));
    flat.hook(noting(&seen));
    flat.fresh("CREATE TABLE t_1(x)");
    flat.ensure(&local()).await.unwrap();
    assert_eq!(*seen.lock(), [Change::Fresh]);
}

#[tokio::test]
async fn failing_hook() {
    let (mut schema, database) = (schema(1), local());
    schema.hook(Arc::new(|_, _| Box::pin(async { Err(Error::other("boom")) })));
    assert_eq!(fails(&schema, &database).await, "failed to execute hook (version 0): boom");
    assert!(tables(&database).await.is_empty());
}

/// A check that makes a table and then says this.
fn check(answer: Result<(), Error>) -> Check {
    Arc::new(move |_, tx| {
        let answer = answer.clone();
        Box::pin(async move {
            tx.execute("CREATE TABLE checked(x)", vec![]).await?;
            answer
        })
    })
}

#[tokio::test]
async fn checks() {
    for (answer, expected, left) in [
        (Ok(()), Ok(0), vec!["checked", "schema", "schema_modules", "schema_patches", "t_1"]),
        (
            Err(Error::GracefulAbort { behind: 1 }),
            Err("schema check gracefully aborted"),
            vec!["checked", "schema", "schema_modules", "schema_patches"],
        ),
        (Err(Error::other("boom")), Err("boom"), vec![]),
    ] {
        let (mut schema, database) = (schema(1), local());
        schema.check(check(answer));
        let told = schema.ensure(&database).await.map_err(|error| error.to_string());
        assert_eq!(told, expected.map_err(str::to_owned));
        assert_eq!(tables(&database).await, left);
    }
}

#[tokio::test]
async fn a_dump_keeps_indices_views_and_triggers() {
    let text = "CREATE TABLE a(x UNIQUE, y DEFAULT 'p, q', z);
         CREATE INDEX a_y ON a(y, z);
         CREATE VIEW seen AS SELECT x, y FROM a;
         CREATE TABLE log(x);
         CREATE TRIGGER noted AFTER INSERT ON a BEGIN INSERT INTO log VALUES (new.x); END;";
    let schema = Schema::of([Module::files("app", [("0001_a.sql", text)]).unwrap()]).unwrap();
    let database = local();
    schema.ensure(&database).await.unwrap();
    let dump = schema.dump(&database).await.unwrap();
    let expected = "CREATE TABLE a(x UNIQUE, y DEFAULT 'p, q', z);
CREATE TABLE log(x);
CREATE INDEX a_y ON a(y, z);
CREATE VIEW seen AS SELECT x, y FROM a;
CREATE TRIGGER noted AFTER INSERT ON a BEGIN INSERT INTO log VALUES (new.x); END;
INSERT INTO schema(version, updated_at) VALUES (1, strftime('%s'));
";
    assert_eq!(dump, expected);
    let (mut flat, second) = (schema.clone(), local());
    flat.fresh(dump.clone());
    flat.ensure(&second).await.unwrap();
    execute(&second, "INSERT INTO a(x) VALUES (7)").await;
    assert_eq!(select(&second, "SELECT log.x, seen.y FROM log, seen").await, ["7|p, q"]);
    assert_eq!(flat.dump(&second).await.unwrap(), dump);
}

#[tokio::test]
async fn what_cannot_be_dumped() {
    let database = local();
    let dump = async |schema: &Schema| schema.dump(&database).await.unwrap_err().to_string();
    let empty = "expected schema table to contain at least one row";
    assert_eq!(dump(&schema(1)).await, empty);
    schema(1).ensure(&database).await.unwrap();
    assert_eq!(dump(&schema(2)).await, "update level is 1, expected 2");
    schema(3).ensure(&database).await.unwrap();
    execute(&database, "DELETE FROM schema WHERE version = 2").await;
    assert_eq!(dump(&schema(3)).await, "missing updates: 1 -> 3");
}

/// `schema/fresh.sql` is what the updates of `schema/` make. Where they differ: write the text that
/// this test shows.
#[tokio::test]
async fn the_projects_own_schema_is_flattened() {
    let (schema, database) = (StandardSchema.schema().unwrap(), local());
    let updates = Schema::of([quire::cluster::standard_module().unwrap()]).unwrap();
    assert_eq!(updates.len(), 2);
    updates.ensure(&database).await.unwrap();
    let text = updates.dump(&database).await.unwrap();
    assert_eq!(fresh_schema(), text);
    let second = local();
    schema.ensure(&second).await.unwrap();
    assert_eq!(versions(&second).await, ["2"]);
    assert_eq!(schema.dump(&second).await.unwrap(), text);
    let tables = tables(&second).await.join(" ");
    let expected = "config nodes operations schema schema_modules schema_patches services tasks";
    assert_eq!(tables, expected);
}

#[tokio::test]
async fn patch_file() {
    let (disk, database) = (FakeDisk::new(), local());
    // It runs before the updates, and is removed; one that is not there is fine.
    let mut patched = schema(1);
    patched.file(Arc::new(disk.clone()), "patch.sql", "dir/patch.sql");
    patched.ensure(&database).await.unwrap();
    write(&disk, "patch.sql", "CREATE TABLE t_2(old); DROP TABLE t_2; CREATE TABLE patched(x)");
    let (mut patched, seen) = (schema(2), Arc::default());
    patched.file(Arc::new(disk.clone()), "patch.sql", "dir/patch.sql");
    patched.hook(noting(&seen));
    patched.ensure(&database).await.unwrap();
    assert_eq!(*seen.lock(), [Change::Patch, Change::Update(1)]);
    assert!(tables(&database).await.contains(&"patched".to_owned()));
    assert!(!disk.exists("patch.sql").unwrap());
    assert_eq!(select(&database, "SELECT count(*) FROM schema_patches").await, ["1"]);
    // The same text is not run again; with another comment it is.
    write(&disk, "patch.sql", "CREATE TABLE t_2(old); DROP TABLE t_2; CREATE TABLE patched(x)");
    patched.ensure(&database).await.unwrap();
    assert!(!disk.exists("patch.sql").unwrap());
    write(&disk, "patch.sql", "DROP TABLE patched -- again");
    patched.ensure(&database).await.unwrap();
    assert!(!tables(&database).await.contains(&"patched".to_owned()));
    // An empty path is no file.
    let mut nowhere = schema(2);
    nowhere.file(Arc::new(disk), "", "");
    nowhere.ensure(&database).await.unwrap();
}

#[tokio::test]
async fn patch_file_failures() {
    let (disk, database) = (FakeDisk::new(), local());
    let with = |hook: Option<Hook>| {
        let mut patched = schema(1);
        patched.file(Arc::new(disk.clone()), "patch.sql", "dir/patch.sql");
        hook.into_iter().for_each(|hook| patched.hook(hook));
        patched
    };
    let around = "failed to execute queries from \"dir/patch.sql\": ";
    write(&disk, "patch.sql", "SELECT garbage FROM");
    let error = fails(&with(None), &database).await;
    assert!(error.starts_with(&format!("{around}patch.sql: statement 1 (line 1")), "{error}");
    let hook: Hook = Arc::new(|_, _| Box::pin(async { Err(Error::other("boom")) }));
    let error = fails(&with(Some(hook)), &database).await;
    assert_eq!(error, format!("{around}failed to execute hook: boom"));
    for (read, what) in [(0, "open"), (1, "read")] {
        let broken = disk.after_cut(disk.calls(), 1);
        broken.fail_read(read);
        let mut patched = schema(1);
        patched.file(Arc::new(broken), "patch.sql", "dir/patch.sql");
        let error = fails(&patched, &database).await;
        assert!(error.starts_with(&format!("{around}failed to {what} file: ")), "{error}");
    }
    write(&disk, "patch.sql", "\u{fffd}");
    disk.overwrite("patch.sql", 0, &[0xff]).unwrap();
    let error = fails(&with(None), &database).await;
    assert!(error.starts_with(&format!("{around}failed to read file: invalid utf-8")), "{error}");
    assert!(tables(&database).await.is_empty());
    assert!(disk.exists("patch.sql").unwrap());
    // One that cannot be removed has run, and does not run again.
    write(&disk, "patch.sql", "CREATE TABLE patched(x)");
    disk.fail_from(disk.calls(), Fault::Io);
    with(None).ensure(&database).await.unwrap();
    assert!(disk.exists("patch.sql").unwrap());
    disk.heal();
    with(None).ensure(&database).await.unwrap();
    assert!(!disk.exists("patch.sql").unwrap());
}

#[tokio::test]
async fn trim() {
    let mut trimmed = Schema::of([module("a", 2), module("b", 2)]).unwrap();
    trimmed.fresh("CREATE TABLE never(x)");
    let cut = trimmed.trim(3);
    assert_eq!(cut.iter().map(Update::name).collect::<Vec<_>>(), ["b/0002.sql"]);
    assert_eq!(trimmed.len(), 3);
    let database = local();
    trimmed.ensure(&database).await.unwrap();
    assert_eq!(versions(&database).await, ["1", "2", "3"]);
    assert!(!tables(&database).await.contains(&"never".to_owned()));
}

#[tokio::test]
async fn exercise_update() {
    let mut schema = schema(1);
    schema.add(Update::sql("double", "UPDATE t_1 SET x = x * 2"));
    schema.add(boom());
    let database = schema
        .exercise_update(2, |tx| {
            Box::pin(async move {
                tx.execute("INSERT INTO t_1 VALUES (5)", vec![]).await?;
                Ok(())
            })
        })
        .await
        .unwrap();
    assert_eq!(select(&database, "SELECT x FROM t_1").await, ["2", "10"]);
    assert_eq!(versions(&database).await, ["1", "2"]);
    let none = schema.exercise_update(4, |_| Box::pin(async { Ok(()) })).await;
    assert_eq!(none.err().unwrap().to_string(), "there is no update 4: there are 3");
}

/// What the engine says when its own statements fail, and that nothing is left.
#[tokio::test]
async fn the_engines_own_statements_fail() {
    for (on, expected) in [
        (On::Begin, "failed to begin: boom"),
        (On::Sql("sqlite_master"), "failed to check if schema table is there: boom"),
        (On::Sql("CREATE TABLE schema("), "failed to create schema table: boom"),
        (On::Sql("SELECT version FROM schema"), "boom"),
        (On::Sql("INSERT INTO schema("), "failed to insert version 1: boom"),
        (On::Sql("INSERT INTO schema_modules"), "boom"),
        (On::Commit, "boom"),
    ] {
        let database = Scripted::new();
        database.refuse(on, "boom");
        assert_eq!(fails(&schema(1), &database).await, expected, "{on:?}");
        assert!(tables(&database).await.is_empty(), "{on:?}");
    }
    // A rollback that fails as well is told.
    let database = Scripted::new();
    database.refuse(On::Sql("SELECT version FROM schema"), "boom");
    database.fail(On::Rollback, 1, DatabaseErrorKind::Lost, "gone");
    let error = fails(&schema(1), &database).await;
    assert_eq!(error, "boom; and the rollback failed: gone");
    assert!(tables(&database).await.is_empty());
}

/// Several modules: `schema` counts all updates, `schema_modules` those of each.
#[tokio::test]
async fn modules() {
    let of = |a, b| Schema::of([module("a", a), module("b", b)]).unwrap();
    let database = local();
    of(1, 2).ensure(&database).await.unwrap();
    let parts = async || select(&database, "SELECT * FROM schema_modules ORDER BY module").await;
    assert_eq!(
        (versions(&database).await.len(), parts().await),
        (3, vec!["a|1".into(), "b|2".into()])
    );
    of(2, 3).ensure(&database).await.unwrap();
    assert_eq!(versions(&database).await, ["1", "2", "3", "4", "5"]);
    assert_eq!(parts().await, ["a|2", "b|3"]);
    assert_eq!(select(&database, "SELECT count(*) FROM b_2").await, ["1"], "once");
    // A database of before there were modules: all of it is the first one's.
    let old = local();
    Schema::of([module("a", 2)]).unwrap().ensure(&old).await.unwrap();
    execute(&old, "DELETE FROM schema_modules").await;
    of(3, 1).ensure(&old).await.unwrap();
    assert_eq!(select(&old, "SELECT * FROM schema_modules").await, ["a|3", "b|1"]);
    assert_eq!(
        Schema::of([module("a", 1), module("a", 1)]).err().unwrap().to_string(),
        "there are two modules of updates named a"
    );
    // Somebody wrote to one table and not to the other.
    execute(&old, "UPDATE schema_modules SET version = 0 WHERE module = 'b'").await;
    let error = fails(&of(3, 1), &old).await;
    assert!(error.contains("do not agree"), "{error}");
}

/// Two modules that stand anywhere and grow in any way: twelve upgrades, each of which applies what
/// is missing of each, once, and counts it there.
#[tokio::test]
async fn modules_that_grow() {
    let of = |(a, b)| Schema::of([module("a", a), module("b", b)]).unwrap();
    for start in [(1, 0), (1, 1), (2, 1), (1, 2)] {
        for (more_a, more_b) in [(0, 1), (1, 0), (1, 1)] {
            let end = (start.0 + more_a, start.1 + more_b);
            let database = local();
            of(start).ensure(&database).await.unwrap();
            assert_eq!(of(end).ensure(&database).await, Ok(start.0 + start.1), "{start:?}");
            let all: Vec<String> = (1..=end.0 + end.1).map(|n| n.to_string()).collect();
            assert_eq!(versions(&database).await, all, "{start:?} to {end:?}");
            let sql = "SELECT * FROM schema_modules WHERE version > 0 ORDER BY module";
            let mut parts = vec![format!("a|{}", end.0)];
            parts.extend((end.1 > 0).then(|| format!("b|{}", end.1)));
            assert_eq!(select(&database, sql).await, parts, "{start:?} to {end:?}");
            for (name, count) in [("a", end.0), ("b", end.1)] {
                for version in 1..=count {
                    let sql = format!("SELECT count(*) FROM {name}_{version}");
                    assert_eq!(select(&database, &sql).await, ["1"], "{name}_{version}, once");
                }
            }
        }
    }
}

/// docs/format.md draws the tables of the engine and the gate.
#[tokio::test]
async fn the_drawn_tables_are_the_codes() {
    let database = Arc::new(local());
    let shared: Arc<dyn Database> = database.clone();
    let cluster = builder().database(shared).build();
    cluster.ensure_schema("", dir()).await.unwrap();
    let text = include_str!("../../docs/format.md");
    let drawn = text.split("```sql\n").find(|block| block.starts_with("CREATE TABLE schema("));
    let drawn = drawn.and_then(|block| block.split("```").next()).unwrap();
    let plain = |sql: &str| {
        let words = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        words.replace("( ", "(").replace(" )", ")")
    };
    let names = "'schema', 'schema_modules', 'schema_patches', 'node_levels'";
    let sql = format!("SELECT sql FROM sqlite_master WHERE name IN ({names}) ORDER BY rowid");
    let made: Vec<String> = select(&*database, &sql).await.iter().map(|sql| plain(sql)).collect();
    let drawn: Vec<String> = drawn.trim().trim_end_matches(';').split(';').map(plain).collect();
    assert_eq!(made, drawn);
}
