//! Rolling upgrades of real processes: three nodes that were built for one schema are stopped one
//! after the other and started again with the next one.

mod fleet;
mod tools;
mod waiting;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::raw::{self, Raw};
use cluster_tests::{Cluster, Options, free_address, program, wait_for};
use quire::driver::Value;

use fleet::{BEHIND, Builds, DATABASE, Fleet, OPEN, WORDS, Writer, seen, waits_for};

// ---- the upgrade

/// The whole of an upgrade, as its operator and its clients see it.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_upgraded_one_at_a_time_while_a_client_writes() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.wait_all_online((2, 1)).await?;
    let mut writer = Writer::start(fleet.database()?).await?;
    writer.wait_progress().await?;

    // Node 3 waits; the other two serve.
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    let (needs, blocked) = ("Needs upgrade", "Blocked");
    let one = [seen(1, needs, (2, 1)), seen(2, needs, (2, 1)), seen(3, blocked, (3, 2))];
    fleet.wait_seen(&one).await?;
    writer.wait_progress().await?;

    // So does node 2; node 1 serves alone.
    fleet.upgrade(2, &new)?;
    fleet.wait_gate(2, &waits_for(1)).await?;
    fleet.wait_gate(3, &waits_for(1)).await?;
    let two = [seen(1, needs, (2, 1)), seen(2, blocked, (3, 2)), seen(3, blocked, (3, 2))];
    fleet.wait_seen(&two).await?;
    writer.wait_progress().await?;
    ensure!(!fleet.has_table("words").await?, "the schema has changed already");
    ensure!(fleet.cluster.leader().await == Some(1), "a node leads that lets no clients in");

    // Nobody serves until node 1 is back.
    ensure!(fleet.cluster.stop(1)? == Some(0));
    let written = writer.count();
    let leader = fleet.cluster.wait_for_leader().await?;
    let mut raw = Raw::connect(fleet.cluster.address(leader)).await?;
    let refused = raw.ask(&raw::open(DATABASE)).await?.failure();
    let (_, why) = refused.context("a node that waits let a client in")?;
    let shut = format!("node {leader} lets no clients in yet: {}", waits_for(1));
    ensure!(why == shut, "{why}");
    // One answer was on its way perhaps.
    ensure!(writer.count() <= written + 1, "rows were acknowledged by a node that waits");

    fleet.install(1, &new);
    fleet.cluster.restart(1)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 2)).await?;
    writer.wait_progress().await?;
    writer.finish(&fleet.database()?).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    fleet.check_migrated(&[2, 3]).await
}

// ---- drill (a): an old build

/// A node that is started with the old build once another has the new one gives up, and says why.
/// With the new build it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_build_gives_up() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    fleet.cluster.stop(2)?;
    fleet.cluster.restart(2)?;
    let why = fleet.gives_up(2).await?;
    assert_eq!(why, "quire: this node's version is behind, please upgrade");
    // Its row is what it was.
    let still = [
        seen(1, "Needs upgrade", (2, 1)),
        seen(2, "Needs upgrade", (2, 1)),
        seen(3, "Blocked", (3, 2)),
    ];
    fleet.wait_seen(&still).await?;

    for id in [2, 1] {
        fleet.cluster.stop(id)?;
        fleet.install(id, &new);
        fleet.cluster.restart(id)?;
    }
    fleet.wait_open(&[1, 2, 3]).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    // It never comes back to a schema that it does not know.
    let old = fleet.old.clone();
    fleet.upgrade(2, &old)?;
    let why = fleet.gives_up(2).await?;
    assert_eq!(why, "quire: this node's version is behind, please upgrade");
    Ok(())
}

/// With the other policy it stays, lets nobody in, and goes on by itself when the new build was
/// taken back; or when it is started with the new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_build_waits_where_it_is_told_to() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let (old, new) = (fleet.old.clone(), fleet.new.clone());
    fleet.cluster.flag(2, &["--when-behind", "wait"]);
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    fleet.upgrade(2, &old)?;
    fleet.wait_gate(2, BEHIND).await?;
    let refused = fleet.local(2)?.query("SELECT 1", vec![]).await.unwrap_err();
    ensure!(refused.to_string().contains(BEHIND), "{refused}");
    ensure!(fleet.last_life(2).contains("this node's version is behind, please upgrade"));
    // Node 1 serves all the while.
    fleet.database()?.execute("CREATE TABLE t(a)", vec![]).await?;

    fleet.upgrade(3, &old)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((2, 1)).await?;

    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    fleet.upgrade(2, &old)?;
    fleet.wait_gate(2, BEHIND).await?;
    fleet.upgrade(2, &new)?;
    fleet.wait_gate(2, &waits_for(1)).await?;
    fleet.upgrade(1, &new)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.check_migrated(&[2, 3]).await
}

// ---- drill (b): a node that is dead

/// A node that does not come back blocks the upgrade until it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_blocks_the_upgrade_until_it_is_removed() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.cluster.kill(2)?;
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    fleet.upgrade(1, &new)?;
    // All that live are upgraded.
    fleet.wait_gate(1, &waits_for(1)).await?;
    fleet.wait_gate(3, &waits_for(1)).await?;
    // Nobody lets clients in; whoever leads is administered all the same.
    let other = if fleet.cluster.wait_for_leader().await? == 1 { 3 } else { 1 };
    let handed = fleet.cluster.quire(&["cluster", "transfer", &other.to_string()])?;
    ensure!(handed.status.success(), "{handed:?}");
    ensure!(fleet.cluster.wait_for_leader().await? == other);
    let removed = fleet.cluster.quire(&["cluster", "remove", "2"])?;
    ensure!(removed.status.success(), "{removed:?}");
    fleet.wait_open(&[1, 3]).await?;
    let both = [seen(1, "Online", (3, 2)), seen(3, "Online", (3, 2))];
    fleet.wait_seen(&both).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    Ok(())
}

// ---- drill (c): an update that fails

/// The last node's update fails: it gives up, nothing has changed anywhere, the others go on
/// waiting. A patch file repairs the data, and the next start brings all through.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_fails_is_repaired_by_a_patch() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let db = fleet.database()?;
    db.execute_batch("CREATE TABLE note(word TEXT); INSERT INTO note VALUES ('one'), (NULL)")
        .await?;
    let update = "-- Every note has a word.\n\
        CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
        \n\
        INSERT INTO words(word)\n    SELECT word FROM note;\n";
    let updates = [("0001_words.sql", update)];
    let strict = fleet.builds.make("strict", &["base", "words"], &updates)?;
    for id in [3, 2] {
        fleet.upgrade(id, &strict)?;
        fleet.wait_gate(id, &waits_for(id - 1)).await?;
    }
    fleet.upgrade(1, &strict)?;
    let why = fleet.gives_up(1).await?;
    let expected = "quire: failed to apply update 2: 0001_words.sql: statement 2 (line 4, `INSERT \
                    INTO words(word)`): NOT NULL constraint failed: words.word";
    assert_eq!(why, expected);
    let after =
        [seen(1, "Needs upgrade", (2, 1)), seen(2, "Blocked", (3, 2)), seen(3, "Blocked", (3, 2))];
    fleet.wait_seen(&after).await?;
    for id in [2, 3] {
        fleet.wait_gate(id, &waits_for(1)).await?;
    }

    let patch = fleet.cluster.dir(1).join("patch.global.sql");
    let text = "CREATE TABLE patched(n);\nUPDATE note SET word = 'none' WHERE word IS NULL;\n";
    std::fs::write(&patch, text)?;
    fleet.cluster.restart(1)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 2)).await?;
    assert_eq!(fleet.words().await?, ["one", "none"]);
    ensure!(!patch.exists(), "the patch file is still there");
    fleet.check_migrated(&[2, 3]).await?;
    // The same text again is not run: it could not be.
    std::fs::write(&patch, text)?;
    fleet.upgrade(1, &strict)?;
    fleet.wait_open(&[1]).await?;
    ensure!(!patch.exists(), "the patch file is still there");
    Ok(())
}

/// The same failure, and no way to repair it: the upgrade is taken back, as docs/upgrades.md says.
/// Two nodes were upgraded, so that each of them finds the other one's row ahead of the old build.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_cannot_be_finished_is_taken_back() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let old = fleet.old.clone();
    let updates = [("0001_wrong.sql", "INSERT INTO absent VALUES (1);")];
    let wrong = fleet.builds.make("wrong", &["base", "words"], &updates)?;
    for id in [3, 2] {
        fleet.upgrade(id, &wrong)?;
        fleet.wait_gate(id, &waits_for(id - 1)).await?;
    }
    fleet.upgrade(1, &wrong)?;
    assert_eq!(
        fleet.gives_up(1).await?,
        "quire: failed to apply update 2: 0001_wrong.sql: statement 1 (line 1, `INSERT INTO absent \
         VALUES (1);`): no such table: absent"
    );
    // With the old build it is behind: nobody would serve.
    fleet.install(1, &old);
    fleet.cluster.restart(1)?;
    assert_eq!(fleet.gives_up(1).await?, "quire: this node's version is behind, please upgrade");
    let patch = fleet.cluster.dir(1).join("patch.global.sql");
    std::fs::write(&patch, "UPDATE nodes SET schema = 2, api_extensions = 1;\n")?;
    fleet.cluster.restart(1)?;
    fleet.wait_open(&[1]).await?;
    ensure!(!patch.exists(), "the patch file is still there");

    for id in [2, 3] {
        fleet.cluster.stop(id)?;
        let row = "UPDATE nodes SET schema = 2, api_extensions = 1 WHERE id = ?";
        fleet.database()?.execute(row, vec![Value::from(i64::try_from(id)?)]).await?;
        fleet.install(id, &old);
        fleet.cluster.flag(id, &["--when-behind", "wait"]);
        fleet.cluster.restart(id)?;
        fleet.wait_gate(id, if id == 2 { BEHIND } else { OPEN }).await?;
    }
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((2, 1)).await?;
    fleet.check_migrated(&[2]).await
}

// ---- drill (d): builds that do not belong together

/// Neither is the other's next one: the second of them gives up, and the right build goes on.
#[tokio::test(flavor = "multi_thread")]
async fn inconsistent_builds() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let updates = [("0001_words.sql", WORDS)];
    let only_updates = fleet.builds.make("updates", &["base"], &updates)?;
    let only_extensions = fleet.builds.make("extensions", &["base", "words"], &[])?;
    fleet.upgrade(3, &only_updates)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    fleet.upgrade(2, &only_extensions)?;
    assert_eq!(fleet.gives_up(2).await?, "quire: nodes have inconsistent versions");
    let view = [
        seen(1, "Needs upgrade", (2, 1)),
        seen(2, "Needs upgrade", (2, 1)),
        seen(3, "Blocked", (3, 1)),
    ];
    fleet.wait_seen(&view).await?;
    // The right build goes on.
    fleet.install(2, &only_updates);
    fleet.cluster.restart(2)?;
    fleet.wait_gate(2, &waits_for(1)).await?;
    fleet.upgrade(1, &only_updates)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 1)).await?;
    fleet.check_migrated(&[2, 3]).await
}

// ---- nodes that come together

/// Two nodes are the last, both at once: one of them migrates.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_arrive_together_migrate_once() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    for id in [1, 2] {
        fleet.cluster.stop(id)?;
        fleet.install(id, &new);
    }
    fleet.cluster.restart(1)?;
    fleet.cluster.restart(2)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 2)).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    fleet.check_migrated(&[2, 3]).await
}

/// Three nodes of a new cluster come at once: the first of them makes the schema, the others join
/// at its level.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_makes_its_schema_once() -> Result<()> {
    let builds = Builds::new()?;
    let (old, new) = (builds.old()?, builds.new_words()?);
    let options = Options::new(3).set("schema.dir", &new.display().to_string());
    let fleet = Fleet { cluster: Cluster::start_with(options).await?, builds, old, new };
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 2)).await?;
    assert_eq!(fleet.words().await?, ["first"]);
    fleet.check_migrated(&[2, 3]).await
}

/// A node that joins must have the level of all others. One that has another gives up, and is no
/// node of the table; with the right build it joins.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_has_the_level_of_the_others() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let (old, new) = (fleet.old.clone(), fleet.new.clone());
    let other = fleet.builds.make("other", &["base", "words"], &[])?;
    let id = fleet.cluster.prepare()?;
    for (build, why) in [
        (
            &new,
            "schema version mismatch: cluster has 2 (app 0, quire 2), expects 3 (app 1, quire 2)",
        ),
        (&other, "api version mismatch: cluster has 1, expects 2"),
    ] {
        fleet.install(id, build);
        fleet.cluster.restart(id)?;
        let said = fleet.gives_up(id).await?;
        assert_eq!(said, format!("quire: {why}"));
        fleet.wait_all_online((2, 1)).await?;
    }
    fleet.install(id, &old);
    fleet.cluster.restart(id)?;
    fleet.wait_open(&[id]).await
}

// ---- a node that waits

/// It lets no clients in, to read what it has either; it is administered as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_serves_no_clients() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.database()?.execute("CREATE TABLE t(a)", vec![]).await?;
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    let shut = format!("node 3 lets no clients in yet: {}", waits_for(2));
    let mut raw = Raw::connect(fleet.cluster.address(3)).await?;
    let (_, why) = raw.ask(&raw::open(DATABASE)).await?.failure().context("it was let in")?;
    assert_eq!(why, shut);
    let refused = fleet.local(3)?.query("SELECT * FROM t", vec![]).await.unwrap_err();
    ensure!(refused.to_string().contains(&shut), "{refused}");

    let at = fleet.at(3)?;
    ensure!(at.cluster().await?.len() == 3);
    ensure!(at.leader().await?.id == 1);
    at.status().await?;
    at.describe().await?;
    ensure!(fleet.cluster.quire_at(3, &["cluster", "list"])?.status.success());
    Ok(())
}

/// Leadership is given to a node that waits, by hand, while another lets clients in: it gives it
/// on, and a client that writes all the while notices nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_does_not_keep_the_leadership() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.upgrade(3, &new)?;
    fleet.wait_gate(3, &waits_for(2)).await?;
    let mut writer = Writer::start(fleet.database()?).await?;
    writer.wait_progress().await?;
    let leads = "this node leads";
    for _ in 0..3 {
        let before = fleet.last_life(3).matches(leads).count();
        // It may be given on before the answer.
        let _ = fleet.client()?.transfer(Some(3)).await;
        wait_for("node 3 to have led, and another one to lead", async || {
            let led = fleet.last_life(3).matches(leads).count() > before;
            let leader = fleet.cluster.leader().await;
            Ok((led && leader.is_some_and(|leader| leader != 3)).then_some(()))
        })
        .await?;
        writer.wait_progress().await?;
    }
    writer.finish(&fleet.database()?).await
}

// ---- expand, then contract

/// The updates of the worked example in docs/upgrades.md: each begins with its file's name.
fn worked_example() -> Result<Vec<(String, String)>> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/upgrades.md");
    let text = std::fs::read_to_string(document)?;
    let blocks = text.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let update = |block: &str| {
        let name = block.strip_prefix("-- ").and_then(|rest| rest.split([':', '\n']).next());
        Ok((name.context("a file's name")?.to_owned(), block.to_owned()))
    };
    blocks.map(update).collect()
}

/// A column gets another name in two upgrades; in between, programs of both levels work on it.
#[tokio::test(flavor = "multi_thread")]
async fn expand_then_contract() -> Result<()> {
    let example = worked_example()?;
    let files: Vec<(&str, &str)> =
        example.iter().map(|(name, sql)| (name.as_str(), sql.as_str())).collect();
    let [customer, full_name, _contract] = files[..] else { anyhow::bail!("{files:?}") };
    let mut fleet = Fleet::old().await?;
    let first = fleet.builds.make("first", &["base", "customers"], &[customer])?;
    let names = ["base", "customers", "full_names"];
    let expand = fleet.builds.make("expand", &names, &[customer, full_name])?;
    let contract = fleet.builds.make("contract", &names, &files)?;

    fleet.upgrade_all(&first).await?;
    let db = fleet.database()?;
    db.execute("INSERT INTO customer(name) VALUES ('Ada')", vec![]).await?;
    fleet.upgrade_all(&expand).await?;
    for statement in [
        "INSERT INTO customer(name) VALUES ('Grace')",
        "INSERT INTO customer(full_name) VALUES ('Barbara')",
        "UPDATE customer SET name = 'Ada L.' WHERE name = 'Ada'",
        "UPDATE customer SET full_name = 'Grace H.' WHERE full_name = 'Grace'",
    ] {
        db.execute(statement, vec![]).await?;
    }
    let both: Vec<(String, String)> =
        db.query_as("SELECT name, full_name FROM customer ORDER BY id", vec![]).await?;
    let names = ["Ada L.", "Grace H.", "Barbara"];
    assert_eq!(both, names.map(|name| (name.to_owned(), name.to_owned())));

    fleet.upgrade_all(&contract).await?;
    let left: Vec<String> =
        db.query_as("SELECT full_name FROM customer ORDER BY id", vec![]).await?;
    assert_eq!(left, names);
    ensure!(db.query("SELECT name FROM customer", vec![]).await.is_err(), "the column is there");
    fleet.check_migrated(&[2, 3, 4, 5]).await
}

// ---- what is no schema

/// A directory that is none: the command line must be mended, and nothing was written.
#[tokio::test]
async fn a_schema_directory_that_is_none() -> Result<()> {
    let builds = Builds::new()?;
    let make = |name: &str, updates: &[(&str, &str)]| builds.make(name, &["base"], updates);
    let gap = make("gap", &[("0001_a.sql", "SELECT 1"), ("0003_c.sql", "SELECT 1")])?;
    let twins = make("twins", &[("0001_a.sql", ""), ("0001_b.sql", "")])?;
    let misnamed = make("misnamed", &[("first.sql", "")])?;
    let garbage = make("garbage", &[])?;
    std::fs::write(garbage.join("0001_a.sql"), b"CREATE \xff\xfe")?;
    let extension = make("extension", &[])?;
    std::fs::write(extension.join("extensions"), "base\nBase 2\n")?;
    let absent = builds.0.path().join("absent");
    for (build, file) in [
        (&gap, "0003_c.sql"),
        (&twins, "0001_b.sql"),
        (&misnamed, "first.sql"),
        (&garbage, "0001_a.sql"),
        (&extension, "Base 2"),
        (&absent, "absent"),
    ] {
        let data = builds.0.path().join("data");
        let mut serve = Command::new(program()?);
        serve.args(["serve", "--bootstrap", "--address", &free_address()?]);
        serve.arg("--dir").arg(&data).arg("--schema").arg(build);
        let output = serve.stdin(Stdio::null()).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{build:?}: {said}");
        ensure!(said.lines().count() == 1 && said.contains(file), "{build:?}: {said}");
        ensure!(said.starts_with("quire: schema.dir "), "{said}");
        ensure!(!data.exists(), "{build:?}: something was written");
    }
    Ok(())
}

// ---- killed in the middle

/// The last node is killed in the middle of its migration, again and again, each time a little
/// later: it happens once, wholly.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_is_killed_in_the_middle_of_its_migration() -> Result<()> {
    const KILLS: u64 = 8;
    const STEPS: usize = 4;
    let mut fleet = Fleet::old().await?;
    let step = "INSERT INTO large WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c \
                LIMIT 2000000) SELECT sum(n % 7), zeroblob(100000) FROM c;\n";
    let update = format!(
        "CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
         INSERT INTO words(word) VALUES ('first');\n\
         CREATE TABLE large(n INTEGER, more BLOB);\n{}\
         INSERT INTO words(word) VALUES ('last');\n",
        step.repeat(STEPS)
    );
    let updates = [("0001_words.sql", update.as_str())];
    let slow = fleet.builds.make("slow", &["base", "words"], &updates)?;
    for id in [3, 2] {
        fleet.upgrade(id, &slow)?;
        fleet.wait_gate(id, &waits_for(id - 1)).await?;
    }
    fleet.cluster.stop(1)?;
    fleet.install(1, &slow);
    for kill in 0..KILLS {
        fleet.cluster.restart(1)?;
        wait_for("the migration to begin", async || {
            Ok(fleet.last_life(1).contains("an update is applied").then_some(()))
        })
        .await?;
        // Somewhere within it.
        tokio::time::sleep(Duration::from_millis(40 * kill)).await;
        fleet.cluster.kill(1)?;
        ensure!(!fleet.last_life(1).contains("the schema gate is open"), "it was over: more steps");
        fleet.wait_gate(2, &waits_for(1)).await?;
    }
    fleet.cluster.restart(1)?;
    fleet.wait_open(&[1, 2, 3]).await?;
    fleet.wait_all_online((3, 2)).await?;
    assert_eq!(fleet.words().await?, ["first", "last"]);
    let count: Vec<usize> =
        fleet.database()?.query_as("SELECT count(*) FROM large", vec![]).await?;
    assert_eq!(count, [STEPS]);
    fleet.check_migrated(&[2, 3]).await
}
