//! What an operator and an application's author see: `quire schema`, and which nodes are alive.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use cluster_tests::{Cluster, Options, program, wait_for};
use quire::params;

use crate::fleet::{Builds, OPEN, WORDS};

/// `quire schema` of a directory: no cluster.
fn schema(arguments: &[&str], dir: &Path) -> Result<Output> {
    let mut command = Command::new(program()?);
    command.arg("schema").args(arguments).arg("--dir").arg(dir);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// What a command printed that must succeed.
fn good(output: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The complaint of a command that must fail, with exit code 1 and nothing printed beside it.
fn bad(output: Output) -> Result<String> {
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.lines().count() == 1, "{said}");
    Ok(said.trim_end().to_owned())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[test]
fn check_says_which_statement_is_wrong() -> Result<()> {
    let builds = Builds::new()?;
    let fine = builds.new_words()?;
    let level = "1 updates on top of the node's own 2, 2 API extensions: level (3, 2)";
    let said = good(schema(&["check"], &fine)?)?;
    assert_eq!(said, format!("{}: ok: {level}\n", fine.display()));

    let wrong = "CREATE TABLE a(n);\n\nINSERT INTO\n    absent VALUES (1);\n";
    let answers = "CREATE TABLE b(n);\nSELECT 1;\n";
    let unfinished = "CREATE TABLE c(n";
    for (name, sql, place, message) in [
        ("wrong", wrong, "statement 2 (line 3, `INSERT INTO`)", "no such table: absent"),
        ("answers", answers, "statement 2 (line 2, `SELECT 1;`)", "rows"),
        ("ends", "COMMIT;", "statement 1 (line 1, `COMMIT;`)", "transaction"),
        ("unfinished", unfinished, "statement 1 (line 1, `CREATE TABLE c(n`)", "incomplete input"),
    ] {
        let updates = [("0001_words.sql", WORDS), ("0002_more.sql", sql)];
        let said = bad(schema(&["check"], &builds.make(name, &[], &updates)?)?)?;
        ensure!(said.contains(&format!("0002_more.sql: {place}: ")), "{name}: {said}");
        ensure!(said.contains(message), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn new_makes_the_next_file_and_never_overwrites_one() -> Result<()> {
    let builds = Builds::new()?;
    let dir = builds.0.path().join("app");
    for garbage in ["", " ", "a/b", "../a", "caf\u{e9}", "a;b"] {
        let said = bad(schema(&["new", garbage], &dir)?)?;
        ensure!(said.contains("letters, digits, _ - and . only"), "{garbage:?}: {said}");
        ensure!(!dir.exists(), "{garbage:?}: something was made");
    }
    let first = dir.join("0001_add_email.sql");
    assert_eq!(good(schema(&["new", "add email"], &dir)?)?, format!("{}\n", first.display()));
    std::fs::write(&first, WORDS)?;
    let second = good(schema(&["new", "add email"], &dir)?)?;
    assert_eq!(second, format!("{}\n", dir.join("0002_add_email.sql").display()));
    assert_eq!(std::fs::read_to_string(&first)?, WORDS);
    assert_eq!(names(&dir)?, ["0001_add_email.sql", "0002_add_email.sql"]);
    // What it made is an update, of no statement yet.
    ensure!(good(schema(&["check"], &dir)?)?.contains("level (4, 0)"));

    // Where there is a gap, no number is the next one.
    std::fs::remove_file(&first)?;
    let said = bad(schema(&["new", "third"], &dir)?)?;
    ensure!(said.contains("0002_add_email.sql"), "{said}");
    assert_eq!(names(&dir)?, ["0002_add_email.sql"]);
    Ok(())
}

/// The statuses of nodes 1, 2, ... as `quire schema status --json` has them.
fn statuses(cluster: &Cluster) -> Result<Vec<serde_json::Value>> {
    let said = good(cluster.quire(&["schema", "status", "--json"])?)?;
    Ok(said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn field<'a>(lines: &'a [serde_json::Value], key: &str) -> Vec<&'a str> {
    lines.iter().map(|line| line[key].as_str().unwrap_or("-")).collect()
}

/// `status` and `dump` ask a cluster; a node that is killed is told from those that live.
#[tokio::test(flavor = "multi_thread")]
async fn status_and_dump_of_another_database_and_who_is_alive() -> Result<()> {
    let builds = Builds::new()?;
    let dir = builds.new_words()?;
    let mut options = Options::new(3).set("schema.dir", &dir.display().to_string());
    options.flags.extend(["--schema-database".to_owned(), "shop".to_owned()]);
    let mut cluster = Cluster::start_with(options).await?;
    wait_for("all gates to be open", async || {
        let lines = statuses(&cluster).unwrap_or_default();
        Ok((field(&lines, "gate") == [OPEN; 3]).then_some(()))
    })
    .await?;
    let lines = statuses(&cluster)?;
    assert_eq!(field(&lines, "name"), ["node-1", "node-2", "node-3"]);
    assert_eq!(field(&lines, "address"), cluster.addresses());
    assert_eq!(field(&lines, "status"), ["Online"; 3]);
    for (line, id) in lines.iter().zip(1..) {
        let numbers = ["id", "schema", "api_extensions"].map(|key| line[key].as_u64());
        assert_eq!(numbers, [Some(id), Some(3), Some(2)]);
    }
    let table = good(cluster.quire(&["schema", "status"])?)?;
    ensure!(table.matches("Online: fully operational").count() == 3, "{table}");
    ensure!(table.matches(OPEN).count() == 3, "{table}");

    // The schema is shop's, and of no other database.
    let client = cluster.client()?;
    let shop = client.database("shop");
    assert_eq!(shop.query_as::<String>("SELECT word FROM words", params![]).await?, ["first"]);
    let none = "SELECT count(*) FROM sqlite_schema WHERE name = 'words'";
    let main = client.database("main");
    assert_eq!(main.query_as::<u64>(none, params![]).await?, [0]);
    let of_dir = good(schema(&["dump"], &dir)?)?;
    ensure!(of_dir.contains("CREATE TABLE words(n INTEGER PRIMARY KEY"), "{of_dir}");
    let dir = dir.display().to_string();
    let dump = ["schema", "dump", "--dir", &dir, "--database"];
    let of_cluster = good(cluster.quire(&[&dump[..], &["shop"]].concat())?)?;
    assert_eq!(of_dir, of_cluster);
    // An empty database has all that the text says.
    rusqlite::Connection::open_in_memory()?.execute_batch(&format!(
        "CREATE TABLE schema(id INTEGER PRIMARY KEY, version INTEGER, updated_at TEXT); {of_dir}"
    ))?;
    let said = bad(cluster.quire(&[&dump[..], &["main"]].concat())?)?;
    ensure!(said.contains("expected schema table to contain"), "{said}");

    shop.execute(
        "INSERT INTO config(key, value) VALUES ('cluster.offline_threshold', '3')",
        params![],
    )
    .await?;
    let killed = if cluster.wait_for_leader().await? == 3 { 2 } else { 3 };
    cluster.kill(killed)?;
    let mut expected = ["Online"; 3];
    expected[killed - 1] = "Offline";
    wait_for("the node that was killed to be offline", async || {
        let lines = statuses(&cluster)?;
        let told = field(&lines, "status");
        for (told, expected) in told.iter().zip(expected) {
            ensure!(expected == "Offline" || told == &expected, "a node that lives is {told}");
        }
        Ok((told == expected).then_some(()))
    })
    .await?;
    let table = good(cluster.quire(&["schema", "status"])?)?;
    let line = table.lines().find(|line| line.contains(cluster.address(killed)));
    let line = line.context("no line of that node")?;
    ensure!(line.contains("Offline") && line.contains("does not answer"), "{table}");
    cluster.restart(killed)?;
    wait_for("it to be online again", async || {
        let lines = statuses(&cluster)?;
        Ok((field(&lines, "status") == ["Online"; 3]).then_some(()))
    })
    .await
}
