//! What the tests of upgrades stand on: builds, three nodes with a gate, a client that writes all
//! the while.
//!
//! A build is a schema directory: what `quire serve --schema` is given. The project's own module
//! has two updates, so a directory without updates and with one extension is level (2,1), and one
//! with an update and two extensions is (3,2).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use cluster_tests::{Cluster, Options, PATIENCE, wait_for};
use quire::driver::{Client, Database, Options as ClientOptions, ReadLevel, SchemaStatus, Value};
use tokio::task::JoinHandle;

/// The database that the builds are for; `schema.database` is not set.
pub const DATABASE: &str = "main";

pub const OPEN: &str = "Database is online";
pub const BEHIND: &str = "Database is not ready yet: this node's version is behind, please upgrade";

/// The gate of a node that waits.
pub fn waits_for(behind: usize) -> String {
    format!(
        "Database is waiting for an upgrade: {behind} cluster members have not yet received the \
         update"
    )
}

/// The update of the new build. It can be applied once only: the table is there then.
pub const WORDS: &str = "-- Words get a table of their own.\n\
    CREATE TABLE words(n INTEGER PRIMARY KEY, word TEXT NOT NULL);\n\
    INSERT INTO words(word) VALUES ('first');\n";

/// What is installed: schema directories, side by side.
pub struct Builds(pub tempfile::TempDir);

impl Builds {
    pub fn new() -> Result<Builds> {
        Ok(Builds(tempfile::tempdir()?))
    }

    /// Makes a build and answers its directory.
    pub fn make(
        &self,
        name: &str,
        extensions: &[&str],
        updates: &[(&str, &str)],
    ) -> Result<PathBuf> {
        let dir = self.0.path().join(name);
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("extensions"), extensions.join("\n") + "\n")?;
        for (file, sql) in updates {
            std::fs::write(dir.join(file), sql)?;
        }
        Ok(dir)
    }

    /// Level (2,1).
    pub fn old(&self) -> Result<PathBuf> {
        self.make("old", &["base"], &[])
    }

    /// Level (3,2).
    pub fn new_words(&self) -> Result<PathBuf> {
        self.make("new", &["base", "words"], &[("0001_words.sql", WORDS)])
    }
}

/// A cluster whose nodes have a gate.
pub struct Fleet {
    pub cluster: Cluster,
    pub builds: Builds,
    pub old: PathBuf,
    pub new: PathBuf,
}

/// A line of what the operator sees: id, status, level.
pub type Seen = (u64, String, (u64, u64));

pub fn seen(id: u64, status: &str, level: (u64, u64)) -> Seen {
    (id, status.to_owned(), level)
}

impl Fleet {
    /// Three nodes at the old level that let clients in; node 1 leads.
    pub async fn old() -> Result<Fleet> {
        Fleet::old_with(Options::new(3)).await
    }

    /// The same with options.
    pub async fn old_with(options: Options) -> Result<Fleet> {
        let builds = Builds::new()?;
        let (old, new) = (builds.old()?, builds.new_words()?);
        let options = options.set("schema.dir", &old.display().to_string());
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

    /// A client that waits as long as the tests do, and has each write executed once, whatever
    /// becomes of its answer.
    pub fn client(&self) -> Result<Client> {
        let (call_timeout, request_ids) = (PATIENCE, true);
        let options = ClientOptions { call_timeout, request_ids, ..ClientOptions::default() };
        Ok(Client::new(self.cluster.addresses(), options)?)
    }

    pub fn database(&self) -> Result<Database> {
        Ok(self.client()?.database(DATABASE))
    }

    /// A client of one node.
    pub fn at(&self, id: usize) -> Result<Client> {
        let all = self.cluster.client()?;
        Ok(all.at(self.cluster.address(id))?)
    }

    /// The database as one node has it.
    pub fn local(&self, id: usize) -> Result<Database> {
        Ok(self.at(id)?.database(DATABASE).read_level(ReadLevel::Local))
    }

    /// Another build, from the node's next start on.
    pub fn install(&mut self, id: usize, build: &Path) {
        self.cluster.flag(id, &["--set", &format!("schema.dir={}", build.display())]);
    }

    /// Stops a node, gives it another build and starts it.
    pub fn upgrade(&mut self, id: usize, build: &Path) -> Result<()> {
        let ended = self.cluster.stop(id)?;
        ensure!(ended == Some(0), "node {id} ended with {ended:?}");
        self.install(id, build);
        self.cluster.restart(id)
    }

    /// One node after the other.
    pub async fn upgrade_all(&mut self, build: &Path) -> Result<()> {
        for id in [3, 2, 1] {
            self.upgrade(id, build)?;
            let gate = if id == 1 { OPEN.to_owned() } else { waits_for(id - 1) };
            self.wait_gate(id, &gate).await?;
        }
        self.wait_open(&[1, 2, 3]).await
    }

    pub async fn report(&self, id: usize) -> Option<SchemaStatus> {
        self.at(id).ok()?.schema().await.ok()
    }

    /// Waits until the gate of a node says this.
    pub async fn wait_gate(&self, id: usize, gate: &str) -> Result<()> {
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

    pub async fn wait_open(&self, ids: &[usize]) -> Result<()> {
        for id in ids {
            self.wait_gate(*id, OPEN).await?;
        }
        Ok(())
    }

    /// Waits until each node that runs tells this of all nodes.
    pub async fn wait_seen(&self, expected: &[Seen]) -> Result<()> {
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
    pub async fn wait_all_online(&self, level: (u64, u64)) -> Result<()> {
        let all: Vec<Seen> = (1..=3).map(|id| seen(id, "Online", level)).collect();
        self.wait_seen(&all).await
    }

    /// The bookkeeping tells of these updates, and the nodes' copies are the same.
    pub async fn check_migrated(&self, versions: &[u64]) -> Result<()> {
        let db = self.database()?;
        let found: Vec<u64> =
            db.query_as("SELECT version FROM schema ORDER BY version", vec![]).await?;
        ensure!(found == versions, "bookkeeping: {found:?}");
        self.wait_digests().await
    }

    pub async fn wait_digests(&self) -> Result<()> {
        wait_for("the digests to agree", async || {
            let output = self.cluster.quire(&["digest", "--deep", DATABASE])?;
            Ok(output.status.success().then_some(()))
        })
        .await
    }

    /// The words of the new build's table; as many as there are updates that ran.
    pub async fn words(&self) -> Result<Vec<String>> {
        Ok(self.database()?.query_as("SELECT word FROM words ORDER BY n", vec![]).await?)
    }

    /// Whether the leader's database has this table. Asked through a node that lets clients in.
    pub async fn has_table(&self, name: &str) -> Result<bool> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
        let found: Vec<u64> = self.database()?.query_as(sql, vec![Value::from(name)]).await?;
        Ok(found == [1])
    }

    /// The last life of a node, as its log tells it.
    pub fn last_life(&self, id: usize) -> String {
        let log = self.cluster.log(id);
        let start = log.rfind("no client is let in before all nodes have this level");
        log.get(start.unwrap_or(0)..).unwrap_or_default().to_owned()
    }

    /// Waits until a node has given up, and answers the line that it says at the end.
    pub async fn gives_up(&mut self, id: usize) -> Result<String> {
        let code = self.cluster.wait_for_end(id).await?;
        let life = self.last_life(id);
        ensure!(code == Some(1), "node {id} ended with {code:?}: {life}");
        let line = life.lines().rfind(|line| line.starts_with("quire: "));
        Ok(line.with_context(|| format!("node {id} does not say why: {life}"))?.to_owned())
    }
}

/// A client that writes all the while, one row at a time.
pub struct Writer {
    acknowledged: Arc<Mutex<Vec<i64>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    /// Each call may take [`PATIENCE`]: an error is one that the driver did not mend by itself.
    pub async fn start(db: Database) -> Result<Writer> {
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

    pub fn count(&self) -> usize {
        self.acknowledged.lock().map(|rows| rows.len()).unwrap_or_default()
    }

    /// Waits until it has written more.
    pub async fn wait_progress(&mut self) -> Result<()> {
        let before = self.count();
        wait_for("the writing client to go on", async || {
            if self.task.is_finished() {
                (&mut self.task).await??;
                bail!("the writing client has ended");
            }
            Ok((self.count() >= before + 5).then_some(()))
        })
        .await
    }

    /// Ends it; every row that was acknowledged must be there.
    pub async fn finish(self, db: &Database) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await??;
        let there: Vec<i64> = db.query_as("SELECT n FROM written ORDER BY n", vec![]).await?;
        let acknowledged = self.acknowledged.lock().map_err(|_| anyhow!("a test failed"))?;
        ensure!(*acknowledged == there, "{} rows of {}", there.len(), acknowledged.len());
        Ok(())
    }
}
