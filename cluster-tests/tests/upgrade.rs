//! Rolling upgrades of real processes: three nodes that were built for one schema are stopped one
//! after the other and started again with the next one.
//!
//! A build is a schema directory: what `quire serve --schema` is given. The project's own module
//! has two updates, so a directory without updates and with one extension is level (2,1), and one
//! with an update and two extensions is (3,2).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cluster_tests::raw::{self, Raw};
use cluster_tests::{Cluster, Options, PATIENCE, free_address, program, wait_for};
use quire::driver::{Client, Database, Options as ClientOptions, ReadLevel, SchemaStatus, Value};
use tokio::task::JoinHandle;

/// The database that the builds are for; `schema.database` is not set.
const DATABASE: &str = "main";

const OPEN: &str = "Database is online";
const BEHIND: &str = "Database is not ready yet: this node's version is behind, please upgrade";

/// The gate of a node that waits.
fn waits_for(behind: usize) -> String {
    format!(
        "Database is waiting for an upgrade: {behind} cluster members have not yet received the \
         update"
    )
}

/// The update of the new build. It can be applied once only: the table is there then.
const WORDS: &str = "-- Words get a table of their own.\n\
    CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
    INSERT INTO words(word) VALUES ('first');\n";

/// What is installed: schema directories, side by side.
struct Builds(tempfile::TempDir);

impl Builds {
    fn new() -> Result<Builds> {
        Ok(Builds(tempfile::tempdir()?))
    }

    /// Makes a build and answers its directory.
    fn make(&self, name: &str, extensions: &[&str], updates: &[(&str, &str)]) -> Result<PathBuf> {
        let dir = self.0.path().join(name);
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("extensions"), extensions.join("\n") + "\n")?;
        for (file, sql) in updates {
            std::fs::write(dir.join(file), sql)?;
        }
        Ok(dir)
    }

    /// Level (2,1).
    fn old(&self) -> Result<PathBuf> {
        self.make("old", &["base"], &[])
    }

    /// Level (3,2).
    fn new_words(&self) -> Result<PathBuf> {
        self.make("new", &["base", "words"], &[("0001_words.sql", WORDS)])
    }
}

/// A cluster whose nodes have a gate.
struct Fleet {
    cluster: Cluster,
    builds: Builds,
    old: PathBuf,
    new: PathBuf,
}

/// A line of what the operator sees: id, status, level.
type Seen = (u64, String, (u64, u64));

fn seen(id: u64, status: &str, level: (u64, u64)) -> Seen {
    (id, status.to_owned(), level)
}

impl Fleet {
    /// Three nodes at the old level that let clients in; node 1 leads.
    async fn old() -> Result<Fleet> {
        let builds = Builds::new()?;
        let (old, new) = (builds.old()?, builds.new_words()?);
        let options = Options::new(3).set("schema.dir", &old.display().to_string());
        let cluster = Cluster::start_with(options).await?;
        let fleet = Fleet { cluster, builds, old, new };
        fleet.wait_open(&[1, 2, 3]).await?;
        if fleet.cluster.wait_for_leader().await? != 1 {
            fleet.client()?.transfer(Some(1)).await?;
        }
        wait_for("node 1 to lead", async || {
            Ok((fleet.cluster.leader().await == Some(1)).then_some(()))
        })
        .await?;
        Ok(fleet)
    }

    /// A client that waits as long as the tests do.
    fn client(&self) -> Result<Client> {
        let options = ClientOptions { call_timeout: PATIENCE, ..ClientOptions::default() };
        Ok(Client::new(self.cluster.addresses(), options)?)
    }

    fn database(&self) -> Result<Database> {
        Ok(self.client()?.database(DATABASE))
    }

    /// A client of one node.
    fn at(&self, id: usize) -> Result<Client> {
        let all = self.cluster.client()?;
        Ok(all.at(self.cluster.address(id))?)
    }

    /// The database as one node has it.
    fn local(&self, id: usize) -> Result<Database> {
        Ok(self.at(id)?.database(DATABASE).read_level(ReadLevel::Local))
    }

    /// Another build, from the node's next start on.
    fn install(&mut self, id: usize, build: &Path) {
        self.cluster.flag(id, &["--set", &format!("schema.dir={}", build.display())]);
    }

    /// Stops a node, gives it another build and starts it.
    fn upgrade(&mut self, id: usize, build: &Path) -> Result<()> {
        let ended = self.cluster.stop(id)?;
        ensure!(ended == Some(0), "node {id} ended with {ended:?}");
        self.install(id, build);
        self.cluster.restart(id)
    }

    /// One node after the other.
    async fn upgrade_all(&mut self, build: &Path) -> Result<()> {
        for id in [3, 2, 1] {
            self.upgrade(id, build)?;
            let gate = if id == 1 { OPEN.to_owned() } else { waits_for(id - 1) };
            self.wait_gate(id, &gate).await?;
        }
        self.wait_open(&[1, 2, 3]).await
    }

    async fn report(&self, id: usize) -> Option<SchemaStatus> {
        self.at(id).ok()?.schema().await.ok()
    }

    /// Waits until the gate of a node says this.
    async fn wait_gate(&self, id: usize, gate: &str) -> Result<()> {
        let mut last = None;
        let what = format!("the gate of node {id} to say: {gate}");
        let waited = wait_for(&what, async || {
            last = self.report(id).await;
            let found = last.as_ref().is_some_and(|report| report.gate.to_string() == gate);
            Ok(found.then_some(()))
        });
        let waited = waited.await;
        waited.with_context(|| format!("it says {:?}", last.map(|last| last.gate)))
    }

    async fn wait_open(&self, ids: &[usize]) -> Result<()> {
        for id in ids {
            self.wait_gate(*id, OPEN).await?;
        }
        Ok(())
    }

    /// Waits until each node that runs tells this of all nodes.
    async fn wait_seen(&self, expected: &[Seen]) -> Result<()> {
        for id in self.cluster.running() {
            let mut last = Vec::new();
            let waited = wait_for("the operator's view", async || {
                let report = self.report(id).await.unwrap_or_default();
                let line = |node: &quire::driver::SchemaNode| {
                    let level = (node.schema, node.api_extensions);
                    (node.id, node.status.to_string(), level)
                };
                last = report.nodes.iter().map(line).collect();
                Ok((last == expected).then_some(()))
            });
            let waited = waited.await;
            waited.with_context(|| format!("node {id} tells {last:?}, not {expected:?}"))?;
        }
        let output = self.cluster.quire(&["cluster", "list", "--json"])?;
        let lines = String::from_utf8(output.stdout)?;
        let mut listed = Vec::new();
        for line in lines.lines() {
            let line: serde_json::Value = serde_json::from_str(line)?;
            // A member that has no row yet has none.
            if let Some(status) = line["status"].as_str() {
                listed.push((line["id"].as_u64().context("an id")?, status.to_owned()));
            }
        }
        let told: Vec<(u64, String)> =
            expected.iter().map(|(id, status, _)| (*id, status.clone())).collect();
        ensure!(listed == told, "quire cluster list: {listed:?}");
        Ok(())
    }

    /// All three, at one level.
    async fn wait_all_online(&self, level: (u64, u64)) -> Result<()> {
        let all: Vec<Seen> = (1..=3).map(|id| seen(id, "Online", level)).collect();
        self.wait_seen(&all).await
    }

    /// The bookkeeping tells of these updates, and the nodes' copies are the same.
    async fn check_migrated(&self, versions: &[u64]) -> Result<()> {
        let db = self.database()?;
        let found: Vec<u64> =
            db.query_as("SELECT version FROM schema ORDER BY version", vec![]).await?;
        ensure!(found == versions, "bookkeeping: {found:?}");
        self.wait_digests().await
    }

    async fn wait_digests(&self) -> Result<()> {
        wait_for("the digests to agree", async || {
            let output = self.cluster.quire(&["digest", "--deep", DATABASE])?;
            Ok(output.status.success().then_some(()))
        })
        .await
    }

    /// The words of the new build's table; as many as there are updates that ran.
    async fn words(&self) -> Result<Vec<String>> {
        Ok(self.database()?.query_as("SELECT word FROM words ORDER BY n", vec![]).await?)
    }

    /// Whether the leader's database has this table. Asked through a node that lets clients in.
    async fn has_table(&self, name: &str) -> Result<bool> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
        let found: Vec<u64> = self.database()?.query_as(sql, vec![Value::from(name)]).await?;
        Ok(found == [1])
    }

    /// The last life of a node, as its log tells it.
    fn last_life(&self, id: usize) -> String {
        let log = self.cluster.log(id);
        let start = log.rfind("no client is let in before all nodes have this level");
        log.get(start.unwrap_or(0)..).unwrap_or_default().to_owned()
    }

    /// Waits until a node has given up, and answers the line that it says at the end.
    async fn gives_up(&mut self, id: usize) -> Result<String> {
        let code = self.cluster.wait_for_end(id).await?;
        let life = self.last_life(id);
        ensure!(code == Some(1), "node {id} ended with {code:?}: {life}");
        let line = life.lines().rfind(|line| line.starts_with("quire: "));
        Ok(line.with_context(|| format!("node {id} does not say why: {life}"))?.to_owned())
    }
}

/// A client that writes all the while, one row at a time.
struct Writer {
    acknowledged: Arc<Mutex<Vec<i64>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    /// Each call may take [`PATIENCE`]: an error is one that the driver did not mend by itself.
    async fn start(db: Database) -> Result<Writer> {
        db.execute("CREATE TABLE IF NOT EXISTS written(n INTEGER PRIMARY KEY)", vec![]).await?;
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (to, until) = (acknowledged.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for n in 1.. {
                if until.load(Ordering::SeqCst) {
                    break;
                }
                let row = vec![Value::from(n)];
                let written = db.execute("INSERT INTO written VALUES (?)", row).await;
                written.with_context(|| format!("row {n}"))?;
                to.lock().map_err(|_| anyhow!("a test failed"))?.push(n);
                // The pace of a client that has other things to do.
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Ok(())
        });
        Ok(Writer { acknowledged, stop, task })
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().map(|rows| rows.len()).unwrap_or_default()
    }

    /// Waits until it has written more.
    async fn wait_progress(&self) -> Result<()> {
        let before = self.count();
        let waited = wait_for("the writing client to go on", async || {
            ensure!(!self.task.is_finished(), "it has ended");
            Ok((self.count() >= before + 5).then_some(()))
        });
        waited.await
    }

    /// Ends it; every row that was acknowledged must be there.
    async fn finish(self, db: &Database) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await??;
        let there: Vec<i64> = db.query_as("SELECT n FROM written ORDER BY n", vec![]).await?;
        let acknowledged = self.acknowledged.lock().map_err(|_| anyhow!("a test failed"))?;
        ensure!(*acknowledged == there, "{} rows of {}", there.len(), acknowledged.len());
        Ok(())
    }
}

// ---- the upgrade

/// The whole of an upgrade, as its operator and its clients see it.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_are_upgraded_one_at_a_time_while_a_client_writes() -> Result<()> {
    let mut fleet = Fleet::old().await?;
    let new = fleet.new.clone();
    fleet.wait_all_online((2, 1)).await?;
    let writer = Writer::start(fleet.database()?).await?;
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
    let writer = Writer::start(fleet.database()?).await?;
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
