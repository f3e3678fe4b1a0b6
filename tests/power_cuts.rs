//! Power cuts under a whole node: its log, votes, checkpoints and databases on one disk that
//! records every call. After a cut at any of them, with what was not synced lost, kept or torn,
//! the node starts, has every write that was acknowledged before the cut and nothing that was
//! never attempted.
//!
//! One member is enough here: what it acknowledges rests on its own disk alone.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quire::base::Env;
use quire::disk::fake::FakeDisk;
use quire::driver::{Client, Dial, Options, PlainDial, Stream};
use quire::node::{Config, Node, Surroundings};
use quire::server::Listener;
use quire::server::listen::AnyDialer;
use quire::wire::Value;

/// How many cuts: in CI, and with `QUIRE_LONG=1`.
const CUTS: u64 = 600;
const CUTS_LONG: u64 = 5_000;

/// Nodes that recover at the same time; most of it is waiting for an election.
const AT_ONCE: usize = 8;

static NEXT: AtomicU64 = AtomicU64::new(0);

static ADDRESS: LazyLock<String> =
    LazyLock::new(|| format!("@quire-power-cuts-{}", std::process::id()));

fn config() -> Config {
    let address = ADDRESS.clone();
    let mut config = Config { id: Some(1), address, bootstrap: true, ..Config::default() };
    config.timeouts.heartbeat = Duration::from_millis(20);
    config.timeouts.election_min = Duration::from_millis(50);
    config.timeouts.election_max = Duration::from_millis(100);
    config
}

async fn start(disk: FakeDisk) -> (Node, Client) {
    // The member's address is in its log; each copy of it listens elsewhere.
    let config = config();
    let place = format!("{}-{}", *ADDRESS, NEXT.fetch_add(1, Ordering::Relaxed));
    let listener = Listener::bind(&place).await.expect("a fresh name");
    let (dialer, disk) = (Arc::new(AnyDialer), Arc::new(disk));
    let on = Surroundings { listener, dialer, disk, env: Env::real() };
    let node = Node::start_on(config, on).await;
    let options = Options { dial: Arc::new(Redirect(place)), ..Options::default() };
    let client = Client::new([ADDRESS.clone()], options).expect("an address");
    (node.expect("a node opens after every cut"), client)
}

/// Dials one place, whatever address is asked for.
struct Redirect(String);

impl Dial for Redirect {
    fn dial<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        PlainDial.dial(&self.0)
    }
}

/// What was attempted, and what was acknowledged when so many calls had been made.
#[derive(Default)]
struct Ledger {
    attempted: AtomicI64,
    acknowledged: Mutex<Vec<(i64, u64)>>,
}

async fn write_some(client: Client, disk: FakeDisk, ledger: Arc<Ledger>, rows: usize) {
    let shop = client.database("shop");
    for _ in 0..rows {
        let id = ledger.attempted.fetch_add(1, Ordering::SeqCst);
        let values = vec![Value::Integer(id), Value::Blob(vec![7; 300])];
        shop.execute("INSERT INTO t VALUES (?, ?)", values).await.expect("a healthy disk");
        ledger.acknowledged.lock().push((id, disk.calls()));
    }
}

async fn workload(disk: &FakeDisk) -> Arc<Ledger> {
    let (node, client) = start(disk.clone()).await;
    let ledger = Arc::new(Ledger::default());
    let shop = client.database("shop");
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB); CREATE INDEX tx ON t(x)";
    shop.execute_batch(table).await.expect("a healthy disk");
    let mut writers = Vec::new();
    for _ in 0..3 {
        writers.push(tokio::spawn(write_some(client.clone(), disk.clone(), ledger.clone(), 60)));
    }
    for _ in 0..6 {
        client.checkpoint("shop").await.expect("a healthy disk");
        shop.execute("UPDATE t SET x = randomblob(300) WHERE id % 3 = 0", vec![])
            .await
            .expect("a healthy disk");
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    client.checkpoint("shop").await.expect("a healthy disk");
    node.stop().await;
    ledger
}

async fn check_cut(disk: FakeDisk, n: u64, ledger: Arc<Ledger>) {
    let (node, client) = start(disk).await;
    let acknowledged: BTreeSet<i64> =
        ledger.acknowledged.lock().iter().filter(|(_, at)| *at <= n).map(|(id, _)| *id).collect();
    let attempted = ledger.attempted.load(Ordering::SeqCst);
    let shop = client.database("shop");
    let rows = match shop.query("SELECT id FROM t", vec![]).await {
        Ok(rows) => rows.rows,
        Err(error) => {
            assert!(acknowledged.is_empty(), "cut {n}: {error}");
            Vec::new()
        }
    };
    let found: BTreeSet<i64> = rows
        .iter()
        .map(|row| match row[..] {
            [Value::Integer(id)] => id,
            _ => panic!("cut {n}: a row of another kind"),
        })
        .collect();
    let lost: Vec<&i64> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "cut {n}: acknowledged, and lost: {lost:?}");
    assert!(found.iter().all(|id| (0..attempted).contains(id)), "cut {n}: never attempted");
    if !found.is_empty() {
        let verdict = shop.query("PRAGMA integrity_check", vec![]).await.expect("a check").rows;
        assert_eq!(verdict, [[Value::Text("ok".into())]], "cut {n}");
        let digest = client.digest("shop", true).await.expect("a digest");
        assert_eq!(digest.state, quire::wire::response::DIGEST_HEALTHY, "cut {n}");
    }
    // It goes on from there.
    let table = "CREATE TABLE IF NOT EXISTS after(id INTEGER)";
    shop.execute(table, vec![]).await.expect("it takes writes again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_write_survives_a_power_cut_at_any_call() {
    let disk = FakeDisk::new();
    let ledger = workload(&disk).await;
    let calls = disk.calls();
    let cuts = if std::env::var("QUIRE_LONG").is_ok() { CUTS_LONG } else { CUTS };
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut checks = tokio::task::JoinSet::new();
    for cut in 0..cuts {
        // Spread over the whole run; each with another fate of what was not synced.
        let n = (calls * cut / cuts + cut % 7).min(calls);
        let place = room.clone().acquire_owned().await.expect("never closed");
        let (disk, ledger) = (disk.clone(), ledger.clone());
        checks.spawn(async move {
            let after = disk.after_cut(n, cut);
            check_cut(after, n, ledger).await;
            drop(place);
        });
        while let Some(done) = checks.try_join_next() {
            done.expect("a cut");
        }
    }
    while let Some(done) = checks.join_next().await {
        done.expect("a cut");
    }
}
