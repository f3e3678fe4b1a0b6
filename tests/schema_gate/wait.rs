//! Waiting for other nodes, by a clock that stands still while anybody has work: so how long a
//! wait took says what ended it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quire::cluster::nodes::NodeRow;
use quire::cluster::{
    Builder, Cluster, Database, DatabaseErrorKind, Error, Gate, Notify, Polling, RealSleeper,
    Replicated, Signal, Status, WaitOptions, Watch, WhenBehind,
};
use tokio::time::{Instant, sleep};

use crate::support::{
    Awake, On, Scripted, add_node, builder, dir, execute, migrate, module, nodes, select,
};
use crate::trio::Trio;

/// A pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// This node at (2, 1), another at a level of before.
async fn waiting() -> (Arc<Scripted>, Cluster) {
    let database = Arc::new(Scripted::new());
    migrate(&*database).await;
    add_node(&*database, "1", (2, 1)).await;
    add_node(&*database, "2", (1, 1)).await;
    let shared: Arc<dyn Database> = database.clone();
    (database, builder().sleeper(Arc::new(RealSleeper)).database(shared).build())
}

async fn upgrade(database: &dyn Database) {
    execute(database, "UPDATE nodes SET schema = 2 WHERE address = '2'").await;
}

/// A watch that is told of the other node's upgrade between the look and the wait: when the wait
/// begins, it is over already.
struct Between {
    signal: Signal,
    database: Arc<Scripted>,
    waits: AtomicU64,
}

impl Watch for Between {
    fn version(&self) -> u64 {
        self.signal.version()
    }

    fn changed(&self, seen: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.waits.fetch_add(1, Ordering::SeqCst) == 0 {
                upgrade(&*self.database).await;
                self.signal.notify();
            }
            self.signal.changed(seen).await;
        })
    }
}

/// The originals' notifications went through a channel without room: one that came when nobody
/// waited yet was lost, and the node slept on.
#[tokio::test(start_paused = true)]
async fn a_notification_before_the_wait_is_not_lost() {
    let (database, cluster) = waiting().await;
    let watch = Between { signal: Signal::default(), database, waits: AtomicU64::new(0) };
    let begun = Instant::now();
    cluster.wait_ready("1", dir(), &watch, &WaitOptions::default()).await.unwrap();
    assert_eq!((begun.elapsed(), watch.waits.load(Ordering::SeqCst)), (PAUSE, 1));
    assert_eq!(*cluster.gate().borrow(), Gate::Ready);
}

/// A node that was told while it looked: `Upgraded`, a notifying node unblocks a waiting one.
#[tokio::test(start_paused = true)]
async fn a_node_that_notifies_unblocks_one_that_waits() {
    let (database, cluster) = waiting().await;
    let signal = Arc::new(Signal::default());
    let (other, told) = (database.clone(), signal.clone());
    let peer = tokio::spawn(async move {
        sleep(Duration::from_secs(10)).await;
        upgrade(&*other).await;
        told.notify();
    });
    let begun = Instant::now();
    let mut gate = cluster.gate();
    let seen = tokio::spawn(async move {
        gate.wait_for(|now| *now == Gate::Waiting(1)).await.unwrap();
        gate.wait_for(|now| *now == Gate::Ready).await.unwrap();
    });
    cluster.wait_ready("1", dir(), &*signal, &WaitOptions::default()).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 10);
    peer.await.unwrap();
    seen.await.unwrap();
}

/// A watch that never tells anything.
struct Silent;

impl Watch for Silent {
    fn version(&self) -> u64 {
        0
    }

    fn changed(&self, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn it_looks_every_thirty_seconds_all_the_same() {
    let (database, cluster) = waiting().await;
    let other = database.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(65)).await;
        upgrade(&*other).await;
    });
    let begun = Instant::now();
    let options = WaitOptions { recheck: Some(Duration::from_secs(3600)), ..Default::default() };
    cluster.wait_ready("1", dir(), &Silent, &options).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 90);
    assert_eq!(database.count("UPDATE nodes"), 2, "the test's, and this node's side row");
}

/// A watch that never stops telling.
struct Restless(AtomicU64);

impl Watch for Restless {
    fn version(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    fn changed(&self, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test(start_paused = true)]
async fn it_does_not_look_more_often_than_it_should() {
    let (database, cluster) = waiting().await;
    let before = database.count("BEGIN");
    let options = WaitOptions::default();
    let cancel = options.cancel.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(2_600)).await;
        cancel.cancel();
    });
    let watch = Restless(AtomicU64::new(0));
    let ended = cluster.wait_ready("1", dir(), &watch, &options).await;
    assert_eq!(ended, Err(Error::Cancelled));
    assert_eq!(database.count("BEGIN") - before, 11);
    assert_eq!(database.count("UPDATE nodes"), 1, "waiting writes nothing");
}

#[tokio::test(start_paused = true)]
async fn the_wait_can_be_cancelled() {
    let (database, cluster) = waiting().await;
    let options = WaitOptions::default();
    let cancel = options.cancel.clone();
    let begun = Instant::now();
    tokio::spawn(async move {
        sleep(Duration::from_secs(2)).await;
        cancel.cancel();
    });
    let ended = cluster.wait_ready("1", dir(), &Silent, &options).await;
    assert_eq!((ended, begun.elapsed().as_secs()), (Err(Error::Cancelled), 2));
    assert_eq!(Error::Cancelled.to_string(), "the wait for other nodes was cancelled");
    // The level stays published; and a wait that is cancelled before it begins asks nobody.
    assert_eq!(nodes(&*database).await, ["1|2|1", "2|1|1"]);
    let calls = database.count("BEGIN");
    let ended = cluster.wait_ready("1", dir(), &Silent, &options).await;
    assert_eq!((ended, database.count("BEGIN")), (Err(Error::Cancelled), calls));
    // By dropping it.
    let wait = WaitOptions::default();
    let wait = cluster.wait_ready("1", dir(), &Silent, &wait);
    assert!(tokio::time::timeout(Duration::from_secs(5), wait).await.is_err());
}

/// A node that is behind gives up, or waits, as it is told; then its level is not published.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_behind() {
    let (database, cluster) = waiting().await;
    execute(&*database, "UPDATE nodes SET schema = 3 WHERE address = '2'").await;
    let options = WaitOptions::default();
    let gave_up = cluster.wait_ready("1", dir(), &Silent, &options).await;
    assert_eq!(gave_up, Err(Error::NodeBehind));
    let other = database.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(20)).await;
        // The operator takes the other one back.
        upgrade(&*other).await;
    });
    let options = WaitOptions { when_behind: WhenBehind::Wait, ..Default::default() };
    let begun = Instant::now();
    cluster.wait_ready("1", dir(), &Silent, &options).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 30);
    execute(&*database, "UPDATE nodes SET schema = 3, api_extensions = 0 WHERE address = '2'")
        .await;
    let gave_up = cluster.wait_ready("1", dir(), &Silent, &options).await;
    assert_eq!(gave_up, Err(Error::Inconsistent));
}

/// No leader for a while is no reason to give up.
#[tokio::test(start_paused = true)]
async fn trouble_while_waiting() {
    let (database, cluster) = waiting().await;
    upgrade(&*database).await;
    database.fail(On::Begin, 15, DatabaseErrorKind::NoLeader, "nobody leads");
    cluster.wait_ready("1", dir(), &Silent, &WaitOptions::default()).await.unwrap();
    database.refuse(On::Begin, "the disk is gone");
    let ended = cluster.wait_ready("1", dir(), &Silent, &WaitOptions::default()).await;
    assert_eq!(ended.unwrap_err().to_string(), "failed to begin: the disk is gone");
}

/// Who was told, and what it did then.
struct Bell(Mutex<Vec<String>>, Option<&'static str>);

impl Notify for Bell {
    fn upgraded<'a>(&'a self, peer: &'a NodeRow) -> BoxFuture<'a, Result<(), String>> {
        self.0.lock().push(peer.address.clone());
        Box::pin(async { self.1.map_or(Ok(()), |text| Err(text.to_owned())) })
    }
}

fn with_bell(builder: Builder, answer: Option<&'static str>) -> (Arc<Bell>, Builder) {
    let bell = Arc::new(Bell(Mutex::default(), answer));
    (bell.clone(), builder.notify(bell))
}

/// After a migration all others are told, whatever they answer; and not without one.
#[tokio::test]
async fn the_others_are_told_of_a_migration() {
    let database = Arc::new(Scripted::new());
    migrate(&*database).await;
    for (address, level) in [("1", (2, 1)), ("2", (3, 1)), ("3", (3, 1)), ("4", (3, 1))] {
        add_node(&*database, address, level).await;
    }
    execute(&*database, "UPDATE nodes SET pending = 1 WHERE address = '4'").await;
    let shared: Arc<dyn Database> = database.clone();
    let made = builder().module(module("app", 1)).database(shared);
    let (bell, made) = with_bell(made, Some("not at home"));
    let cluster = made.build();
    assert_eq!(cluster.ensure_schema("1", dir()).await, Ok(Status::Ready));
    assert_eq!(*bell.0.lock(), ["2", "3"]);
    assert_eq!(cluster.ensure_schema("1", dir()).await, Ok(Status::Ready));
    assert_eq!(bell.0.lock().len(), 2);
    // A wait is no migration.
    execute(&*database, "UPDATE nodes SET schema = 2 WHERE address = '2'").await;
    assert_eq!(cluster.ensure_schema("1", dir()).await, Ok(Status::Waiting(1)));
    assert_eq!(bell.0.lock().len(), 2);
}

/// Without anybody who tells it, a node asks the replicated database itself.
#[tokio::test(start_paused = true)]
async fn polling() {
    let trio = Trio::start().await;
    let database: Arc<dyn Database> = Arc::new(Replicated::new(trio.client(), "polled"));
    migrate(&*database).await;
    add_node(&*database, "1", (2, 1)).await;
    add_node(&*database, "2", (1, 1)).await;
    let sleeper = Arc::new(RealSleeper);
    let watch = Polling::new(database.clone(), sleeper.clone(), Duration::from_secs(1));
    let cluster = builder().sleeper(sleeper).database(database.clone()).build();
    let other = database.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(7_600)).await;
        upgrade(&*other).await;
    });
    let begun = Instant::now();
    cluster.wait_ready("1", dir(), &watch, &WaitOptions::default()).await.unwrap();
    let seconds = begun.elapsed().as_secs();
    assert!((7..11).contains(&seconds), "{seconds}");
    assert_eq!(select(&*database, "SELECT schema FROM nodes").await, ["2", "2"]);
    trio.stop_all().await;
}

/// The futures can be spawned.
#[tokio::test]
async fn everything_can_be_spawned() {
    let (database, _) = waiting().await;
    upgrade(&*database).await;
    let shared: Arc<dyn Database> = database;
    let cluster = builder().sleeper(Arc::new(Awake::default())).database(shared).build();
    let spawned = tokio::spawn(async move {
        cluster.wait_ready("1", dir(), &Signal::default(), &WaitOptions::default()).await?;
        cluster.start("1", dir(), PAUSE).await?;
        let all = |mut tx| async move { quire::cluster::nodes::all(unmoved(&mut tx)).await };
        cluster.transaction(all).await
    });
    assert_eq!(spawned.await.unwrap().unwrap().len(), 2);
}

fn unmoved(tx: &mut quire::cluster::Work) -> &mut dyn quire::cluster::Tx {
    &mut **tx
}
