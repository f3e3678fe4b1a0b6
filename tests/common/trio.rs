//! Three whole nodes in this process and on this one thread: no lane and no pool has a thread of
//! its own, connections are pipes in memory that can be cut, disks are recording ones, and the
//! clock stands still for as long as anybody has something to do.

// Each test uses a part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use quire::base::{Clock, DatabaseName, Env, Executor, NodeId, SplitMix};
use quire::disk::FakeDisk;
use quire::driver::{Client, Dial, Options, Stream};
use quire::member::Member;
use quire::node::{Config, Node, NodeError, Surroundings};
use quire::pages::Store;
use quire::raft::connection::{Dialer, PeerStream};
use quire::server::Listener;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const PIPE_BYTES: usize = 64 << 10;

/// How long anything may take, by the clock that stands still.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clock of the runtime, which a test has stopped.
pub struct Stopped(pub Instant);

impl Clock for Stopped {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The pipes between nodes, and from clients to nodes.
#[derive(Default)]
pub struct Net {
    doors: Mutex<BTreeMap<String, mpsc::Sender<Box<dyn PeerStream>>>>,
    /// Nodes that their peers cannot reach, nor they them.
    cut: Mutex<BTreeSet<String>>,
    /// Between peers.
    pipes: Mutex<Vec<(String, String, JoinHandle<()>)>>,
}

impl Net {
    pub fn listen(&self, address: &str) -> Listener {
        let (sender, receiver) = mpsc::channel(64);
        self.doors.lock().insert(address.to_owned(), sender);
        Listener::Streams(receiver)
    }

    pub fn connect(&self, from: Option<&str>, to: &str) -> io::Result<DuplexStream> {
        let (near, mut a) = duplex(PIPE_BYTES);
        let (mut b, far) = duplex(PIPE_BYTES);
        let cut = self.cut.lock();
        if let Some(from) = from
            && (cut.contains(from) || cut.contains(to))
        {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let door = self.doors.lock().get(to).cloned().ok_or_else(refused)?;
        door.try_send(Box::new(far)).map_err(|_| refused())?;
        let pipe = tokio::spawn(async move {
            // Ends with either side.
            let _ = copy_bidirectional(&mut a, &mut b).await;
        });
        if let Some(from) = from {
            self.pipes.lock().push((from.to_owned(), to.to_owned(), pipe));
        }
        Ok(near)
    }

    /// Cuts a node off from its peers; clients still reach it.
    pub fn cut(&self, address: &str) {
        self.cut.lock().insert(address.to_owned());
        self.pipes.lock().retain(|(from, to, pipe)| {
            let through = from == address || to == address;
            if through {
                pipe.abort();
            }
            !through
        });
    }

    pub fn heal(&self) {
        self.cut.lock().clear();
    }
}

/// The way from one node to its peers.
pub struct From(Arc<Net>, String);

impl Dialer for From {
    fn dial(&self, to: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let stream = self.0.connect(Some(&self.1), &to);
        async move { Ok(Box::new(stream?) as Box<dyn PeerStream>) }.boxed()
    }
}

/// The way from a client.
pub struct Outside(pub Arc<Net>);

impl Dial for Outside {
    fn dial<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        async move { Ok(Box::new(self.0.connect(None, to)?) as Box<dyn Stream>) }.boxed()
    }
}

/// Three nodes, or as many as there are disks.
pub struct Trio {
    pub net: Arc<Net>,
    pub clock: Arc<Stopped>,
    pub disks: BTreeMap<NodeId, FakeDisk>,
    pub nodes: BTreeMap<NodeId, Node>,
    /// What is not as by default in each node's configuration.
    pub configure: fn(&mut Config),
}

pub fn address(id: NodeId) -> String {
    format!("node:{id}")
}

impl Trio {
    pub async fn start() -> Trio {
        let mut trio = Trio::on((1..=3).map(|id| (id, FakeDisk::new())).collect());
        for id in 1..=3 {
            trio.run(id).await;
        }
        trio.all_vote().await;
        trio
    }

    /// Nodes that do not run yet, by their disks.
    pub fn on(disks: BTreeMap<NodeId, FakeDisk>) -> Trio {
        let clock = Arc::new(Stopped(Instant::now()));
        let (net, nodes) = (Arc::default(), BTreeMap::new());
        Trio { net, clock, disks, nodes, configure: |_| {} }
    }

    /// Waits until as many vote as there are disks.
    pub async fn all_vote(&self) {
        until("all to vote", || {
            let member = self.nodes.values().find(|node| node.member().leading_term().is_ok())?;
            let leadership = member.member().leadership();
            let voters = leadership.members.iter().filter(|member| member.votes()).count();
            (voters == self.disks.len()).then_some(())
        })
        .await;
    }

    /// Starts a node on what its disk has.
    pub async fn run(&mut self, id: NodeId) {
        self.try_run(id).await.unwrap();
    }

    /// The same; why it did not start, if it did not.
    pub async fn try_run(&mut self, id: NodeId) -> Result<(), NodeError> {
        let started = self.start_of(id).await?;
        self.nodes.insert(id, started);
        Ok(())
    }

    /// A node that starts, beside others.
    pub fn start_of(&self, id: NodeId) -> BoxFuture<'static, Result<Node, NodeError>> {
        let join = if id == 1 { vec![] } else { (1..=3).map(address).collect() };
        let mut config = Config {
            id: Some(id),
            address: address(id),
            bootstrap: id == 1,
            join,
            ..Config::default()
        };
        (self.configure)(&mut config);
        let on = Surroundings {
            listener: self.net.listen(&address(id)),
            dialer: Arc::new(From(self.net.clone(), address(id))),
            disk: Arc::new(self.disks[&id].clone()),
            env: Env {
                clock: self.clock.clone(),
                random: Arc::new(SplitMix::new(id)),
                executor: Executor::Inline,
            },
        };
        Node::start_on(config, on).boxed()
    }

    pub async fn stop(&mut self, id: NodeId) {
        self.net.doors.lock().remove(&address(id));
        self.nodes.remove(&id).unwrap().stop().await;
    }

    pub async fn stop_all(self) {
        for node in self.nodes.into_values() {
            node.stop_with_cluster().await;
        }
    }

    pub fn client(&self) -> Client {
        Client::new((1..=3).map(address), self.options()).unwrap()
    }

    /// A client's options, with the way to these nodes.
    pub fn options(&self) -> Options {
        let dial = Arc::new(Outside(self.net.clone()));
        Options { dial, random: Arc::new(SplitMix::new(7)), ..Options::default() }
    }

    pub fn member(&self, id: NodeId) -> &Arc<Member> {
        self.nodes[&id].member()
    }

    /// The node that takes writes.
    pub async fn leader(&self) -> NodeId {
        until("a leader", || {
            let leads = |node: &&Node| node.member().leading_term().is_ok();
            self.nodes.values().find(leads).map(|node| node.member().id())
        })
        .await
    }

    pub fn store(&self, id: NodeId) -> Arc<Store> {
        self.member(id).catalog().by_name(&shop()).unwrap()
    }

    /// Waits until all have applied the same version, and it is the same to the byte.
    pub async fn agree(&self) {
        until("all to have applied the same", || {
            let mut points = self.nodes.keys().map(|id| {
                let store = self.member(*id).catalog().by_name(&shop())?;
                Some(store.applied())
            });
            let first = points.next()??;
            points.all(|point| point == Some(first)).then_some(())
        })
        .await;
        let digests: BTreeSet<u128> =
            self.nodes.keys().map(|id| self.store(*id).verify().unwrap().digest).collect();
        assert_eq!(digests.len(), 1);
    }

    /// Cuts the leader off, nobody else campaigning, until its lease has run out. It still leads.
    pub async fn without_a_lease(&self, leader: NodeId) -> u64 {
        let term = self.member(leader).leading_term().unwrap();
        for id in self.nodes.keys().filter(|id| **id != leader) {
            self.member(*id).core().set_candidate(false);
        }
        self.net.cut(&address(leader));
        sleep(Duration::from_secs(3)).await;
        assert!(self.member(leader).core().view().leads);
        assert_eq!(self.member(leader).leading_term().ok(), Some(term), "nothing was refused yet");
        term
    }
}

pub fn shop() -> DatabaseName {
    DatabaseName::new("shop").unwrap()
}

pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
