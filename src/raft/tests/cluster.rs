//! Three nodes in this process, talking over real connections: log, network and consensus are the
//! real ones, the disk and the state machine are toys.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::ServerState;
use openraft::impls::ProgressResponder;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::config::{Timeouts, raft_config};
use super::super::connection::{Dialer, Identity, PeerStream, TcpDialer, prepare_tcp};
use super::super::frames::PREAMBLE;
use super::super::lease::LeaseGuard;
use super::super::log_store::LogStore;
use super::super::messages::Refusal;
use super::super::network::Network;
use super::super::peers::{PeerHandler, PeerHooks, serve};
use super::super::snapshot::SnapshotSink;
use super::super::types::*;
use super::toy::{Toy, ToySink};
use crate::base::{Env, Executor};
use crate::disk::FakeDisk;
use crate::log::{Log, LogOptions};

const CLUSTER: u64 = 0xC0FFEE;
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts how often a node dials.
#[derive(Default)]
struct CountingDialer(AtomicU64);

impl Dialer for CountingDialer {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        TcpDialer.dial(address)
    }
}

struct Hooks;

impl PeerHooks for Hooks {
    fn call(&self, _: u64, _: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(async { Ok(body) })
    }

    fn open_sink(&self, _: u64) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(ToySink::default()))
    }

    fn join_cluster(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn room_bytes(&self) -> u64 {
        1 << 30
    }
}

struct Running {
    raft: RaftOf<Toy>,
    toy: Toy,
    log: Log,
    network: Network,
    dialer: Arc<CountingDialer>,
    serving: JoinSet<()>,
}

struct Node {
    id: u64,
    address: SocketAddr,
    disk: FakeDisk,
    running: Option<Running>,
}

impl Node {
    /// Starts the node from what its disk holds. The toy state machine is rebuilt from the log.
    async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let env = Env::real();
        let log = Log::open(Arc::new(self.disk.clone()), env.executor, LogOptions::default());
        let log = log.unwrap();
        log.set_purge_limit(Some(u64::MAX));
        let timeouts = Timeouts::default();
        let state = log.state();
        let fresh = state.last.is_none() && state.vote.is_none();
        let lease = Arc::new(LeaseGuard::at_start(env.clock.clone(), &timeouts, fresh));
        let identity = Identity::new(self.id, if fresh { 0 } else { CLUSTER });
        identity.join(CLUSTER);
        let dialer = Arc::new(CountingDialer::default());
        let network = Network::new(dialer.clone(), identity.clone(), lease.clone(), env.executor);
        let toy = Toy::default();
        let config = Arc::new(raft_config(&timeouts).unwrap());
        let store = LogStore::new(log.clone(), env.executor);
        let raft = RaftOf::<Toy>::new(self.id, config, network.clone(), store, toy.clone());
        let raft = raft.await.unwrap();
        let handler = Arc::new(PeerHandler {
            raft: Arc::new(raft.clone()),
            identity,
            lease,
            hooks: Arc::new(Hooks),
            executor: Executor::Threads,
            refused: Mutex::default(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                prepare_tcp(&stream).unwrap();
                let handler = handler.clone();
                connections.spawn(async move {
                    let mut preamble = [0; 8];
                    if stream.read_exact(&mut preamble).await.is_ok() {
                        assert_eq!(preamble, PREAMBLE);
                        let _ = serve(stream, handler).await;
                    }
                });
            }
        });
        self.running = Some(Running { raft, toy, log, network, dialer, serving });
    }

    fn raft(&self) -> &RaftOf<Toy> {
        &self.running.as_ref().unwrap().raft
    }

    fn content(&self) -> Vec<u8> {
        self.running.as_ref().unwrap().toy.0.lock().content.clone()
    }

    /// Ends the node without a word to the others.
    async fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        running.serving.shutdown().await;
        running.raft.shutdown().await.unwrap();
        running.log.stop();
    }
}

struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    async fn start() -> Cluster {
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let disk = FakeDisk::unrecorded();
            let mut node = Node { id, address, disk, running: None };
            node.start().await;
            nodes.push(node);
        }
        let peer = |node: &Node| (node.id, Peer::spare(&node.address.to_string()));
        let members: BTreeMap<u64, Peer> = nodes.iter().map(peer).collect();
        nodes[0].raft().initialize(members).await.unwrap();
        Cluster { nodes }
    }

    /// The index of the node that leads, as soon as one does and takes writes.
    async fn leader(&self) -> usize {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            for (index, node) in self.nodes.iter().enumerate() {
                if let Some(running) = &node.running
                    && leading_term(&running.raft.metrics().borrow_watched()).is_some()
                    && running.raft.write_blank().await.is_ok()
                {
                    return index;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader");
    }

    /// Writes numbered commands, without waiting for one before the next; all must succeed.
    async fn write(&self, leader: usize, numbers: std::ops::Range<u64>) {
        let raft = self.nodes[leader].raft();
        let term = leading_term(&raft.metrics().borrow_watched()).unwrap();
        let mut written = Vec::new();
        for number in numbers {
            let (responder, done) = ProgressResponder::complete_only();
            let command = Command(number.to_le_bytes().to_vec().into());
            raft.write(command).with_leader(term).responder(responder).await.unwrap();
            written.push(done);
        }
        for done in written {
            let result: WriteResult = done.await.unwrap();
            assert_eq!(result.unwrap().data.outcomes, [Outcome::Applied]);
        }
    }

    /// Waits until all running nodes have applied the same as `index`.
    async fn settle(&self, index: usize) {
        let expected = self.nodes[index].content();
        let started = Instant::now();
        for node in self.nodes.iter().filter(|node| node.running.is_some()) {
            while node.content() != expected {
                assert!(started.elapsed() < PATIENCE, "node {} is behind", node.id);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn stop(mut self) {
        for node in &mut self.nodes {
            if node.running.is_some() {
                node.kill().await;
            }
        }
    }
}

fn numbers(to: u64) -> Vec<u8> {
    (0..to).flat_map(u64::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_a_follower_which_catches_up() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let started = Instant::now();
    cluster.write(leader, 0..2000).await;
    println!("2,000 writes: {:?}", started.elapsed());
    cluster.settle(leader).await;
    let follower = (leader + 1) % 3;
    cluster.nodes[follower].kill().await;
    cluster.write(leader, 2000..3000).await;
    cluster.nodes[follower].start().await;
    cluster.write(leader, 3000..3100).await;
    cluster.settle(leader).await;
    assert_eq!(cluster.nodes[follower].content(), numbers(3100));
    let network = &cluster.nodes[leader].running.as_ref().unwrap().network;
    let id = cluster.nodes[follower].id;
    assert_eq!(network.room_bytes(id), Some(1 << 30));
    let address = cluster.nodes[follower].address.to_string();
    let body = Bytes::from_static(b"hello");
    let answer = network.call(id, &address, 1, body.clone(), PATIENCE).await.unwrap();
    assert_eq!(answer, body);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_come_back_after_the_leader_is_killed() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.write(leader, 0..500).await;
    cluster.nodes[leader].kill().await;
    let killed = Instant::now();
    let next = cluster.leader().await;
    println!("writes came back after {:?}", killed.elapsed());
    assert_ne!(next, leader);
    cluster.write(next, 500..1000).await;
    // The old leader comes back at once, as an upstart would; it does not lead its old term.
    cluster.nodes[leader].start().await;
    assert_eq!(leading_term(&cluster.nodes[leader].raft().metrics().borrow_watched()), None);
    cluster.write(next, 1000..1100).await;
    cluster.settle(next).await;
    assert_eq!(cluster.nodes[leader].content(), numbers(1100));
    cluster.stop().await;
}

/// What [`leading_term`] is for: a leader that restarts before anybody else leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_go_on_in_its_term() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let before = leading_term(&cluster.nodes[leader].raft().metrics().borrow_watched()).unwrap();
    cluster.nodes[leader].kill().await;
    cluster.nodes[leader].start().await;
    let raft = cluster.nodes[leader].raft();
    raft.wait(Some(PATIENCE)).metrics(|watched| watched.vote.committed, "started").await.unwrap();
    assert_eq!(leading_term(&raft.metrics().borrow_watched()), None);
    assert_eq!(raft.as_leader().map(|leader| leader.term()).ok(), Some(before), "the trap");
    let next = cluster.leader().await;
    let after = leading_term(&cluster.nodes[next].raft().metrics().borrow_watched()).unwrap();
    assert!(after > before);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.write(leader, 0..200).await;
    cluster.settle(leader).await;
    let target = (leader + 2) % 3;
    let to = cluster.nodes[target].id;
    let started = Instant::now();
    cluster.nodes[leader].raft().trigger().transfer_leader(to).await.unwrap();
    let wait = cluster.nodes[target].raft().wait(Some(PATIENCE));
    wait.state(ServerState::Leader, "handed over").await.unwrap();
    println!("handed over in {:?}", started.elapsed());
    // It takes writes when a quorum has heard of it.
    assert_eq!(cluster.leader().await, target);
    println!("writes in {:?}", started.elapsed());
    cluster.write(target, 200..400).await;
    cluster.settle(target).await;
    assert_eq!(cluster.nodes[leader].content(), numbers(400));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_log_gets_a_snapshot() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.write(leader, 0..100).await;
    let follower = (leader + 1) % 3;
    cluster.nodes[follower].kill().await;
    cluster.write(leader, 100..5000).await;
    let raft = cluster.nodes[leader].raft();
    let wait = || raft.wait(Some(PATIENCE));
    let applied = cluster.nodes[leader].running.as_ref().unwrap().toy.0.lock().applied.unwrap();
    wait().applied_index(Some(applied.index), "applied").await.unwrap();
    raft.trigger().snapshot().await.unwrap();
    wait().snapshot(applied, "snapshot").await.unwrap();
    raft.trigger().purge_log(applied.index).await.unwrap();
    wait().purged(Some(applied), "purge").await.unwrap();
    cluster.nodes[follower].start().await;
    cluster.write(leader, 5000..5100).await;
    cluster.settle(leader).await;
    let toy = &cluster.nodes[follower].running.as_ref().unwrap().toy;
    assert_eq!(toy.0.lock().installed, 1);
    assert_eq!(cluster.nodes[follower].content(), numbers(5100));
    cluster.stop().await;
}

/// A leader whose followers were both gone used a whole processor and more: where a connection is
/// refused at once, openraft begins a replication stream anew at once, for its own pause is in the
/// stream of requests, which nobody has read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_followers_dials_them_now_and_then() {
    /// Pauses end at 400 ms, and heartbeats come every 100 ms: less than 15 a second to each of
    /// two. Without a pause there were thousands.
    const DIALS_MAX: u64 = 60;
    let mut cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    cluster.write(leader, 0..100).await;
    for other in [(leader + 1) % 3, (leader + 2) % 3] {
        cluster.nodes[other].kill().await;
    }
    let dialed = &cluster.nodes[leader].running.as_ref().unwrap().dialer.0;
    // Both streams have failed.
    let started = Instant::now();
    let before = dialed.load(Ordering::Relaxed);
    while dialed.load(Ordering::Relaxed) < before + 4 {
        assert!(started.elapsed() < PATIENCE, "nobody was dialed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (before, started) = (dialed.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let seconds = started.elapsed().as_secs() + 1;
    let dials = dialed.load(Ordering::Relaxed) - before;
    println!("{dials} dials in {seconds} s");
    assert!(dials < DIALS_MAX * seconds, "{dials} dials in {seconds} s");
    cluster.stop().await;
}

/// Prints what replication costs here, without a disk: `cargo test --release -- --ignored`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_replication() {
    let cluster = Cluster::start().await;
    let leader = cluster.leader().await;
    let raft = cluster.nodes[leader].raft();
    let term = leading_term(&raft.metrics().borrow_watched()).unwrap();
    for (window, count) in [(1, 3000u64), (16, 30_000), (256, 60_000)] {
        let room = Arc::new(tokio::sync::Semaphore::new(window));
        let started = Instant::now();
        let mut acks = JoinSet::new();
        for _ in 0..count {
            let permit = room.clone().acquire_owned().await.unwrap();
            let (responder, done) = ProgressResponder::complete_only();
            let command = Command(vec![7; 341].into());
            raft.write(command).with_leader(term).responder(responder).await.unwrap();
            let sent = Instant::now();
            acks.spawn(async move {
                let result: WriteResult = done.await.unwrap();
                result.unwrap();
                drop(permit);
                sent.elapsed()
            });
        }
        let mut waits = acks.join_all().await;
        let rate = count as f64 / started.elapsed().as_secs_f64();
        waits.sort();
        let (p50, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
        println!("{window} in flight: {rate:.0} entries/s, p50 {p50:?}, p99 {p99:?}");
    }
    cluster.settle(leader).await;
    cluster.stop().await;
}
