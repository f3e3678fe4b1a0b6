//! One node's place in the simulation: its host, its disk, its clock, and the node that runs there
//! now, if one does.
//!
//! *Invariant*: what survives a crash is what the disk kept; nothing else of a node is handed on to
//! its next start.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use quire::base::{Clock, Env, Executor, NodeId, SplitMix};
use quire::disk::fake::Cut;
use quire::disk::{Disk as _, FakeDisk};
use quire::driver::{Dial, Stream};
use quire::member::Member;
use quire::node::config::WhenBehind;
use quire::node::{Config, Node, Surroundings};
use quire::raft::connection::{Dialer, PeerStream};
use quire::server::Listener;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use turmoil::net::{TcpListener, TcpStream};

use super::trace::Trace;

const PORT: u16 = 9000;

/// Connections that wait to be accepted.
const BACKLOG: usize = 64;

/// When the simulation begins, as its clocks tell it.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

/// A member that is away for so long loses its role.
const OFFLINE_AFTER: Duration = Duration::from_secs(8);

/// The directories of the schemas of an old and a new program.
#[derive(Clone)]
pub struct Program(pub [PathBuf; 2]);

/// The name of a node's host.
pub fn host(id: NodeId) -> String {
    format!("n{id}")
}

/// Where a node listens.
pub fn address(id: NodeId) -> String {
    format!("n{id}:{PORT}")
}

/// A node's place.
pub struct Place {
    /// Its number: its host is named after it, and the first node there has it as its id.
    pub number: NodeId,
    seed: u64,
    /// How many places there are.
    places: NodeId,
    program: Option<Program>,
    /// The id of the node that lives here.
    node: Cell<NodeId>,
    /// Which schema the program of the next start has.
    schema: Cell<usize>,
    /// The same of the last start.
    runs: Cell<usize>,
    /// Since when no node runs here; none where one does.
    down: Cell<Option<Duration>>,
    disk: RefCell<FakeDisk>,
    member: RefCell<Option<Arc<Member>>>,
    stop: RefCell<Arc<Notify>>,
    /// It was asked to stop since the last start.
    stopping: Cell<bool>,
    starts: Cell<u64>,
    /// Its disk has failed or was full since the last start.
    struck: Cell<bool>,
    /// It is whole again: the next start has no excuse.
    mended: Cell<bool>,
    /// Why the node ended by itself.
    ended: RefCell<Option<String>>,
    /// By how many seconds its wall clock is off.
    off: Arc<AtomicI64>,
    trace: Rc<Trace>,
}

impl Place {
    /// A place with an empty disk. Node 1 founds the cluster, the others join it.
    pub fn new(
        number: NodeId,
        places: NodeId,
        seed: u64,
        program: Option<Program>,
        trace: &Rc<Trace>,
    ) -> Rc<Place> {
        Rc::new(Place {
            number,
            seed: seed ^ (number << 32),
            places,
            program,
            node: Cell::new(number),
            schema: Cell::new(0),
            runs: Cell::new(0),
            down: Cell::new(Some(Duration::ZERO)),
            disk: RefCell::new(FakeDisk::unrecorded()),
            member: RefCell::default(),
            stop: RefCell::default(),
            stopping: Cell::new(false),
            starts: Cell::new(0),
            struck: Cell::new(false),
            mended: Cell::new(false),
            ended: RefCell::default(),
            off: Arc::default(),
            trace: trace.clone(),
        })
    }

    /// The node that runs, once it has started.
    pub fn member(&self) -> Option<Arc<Member>> {
        self.member.borrow().clone()
    }

    /// The disk as it is now.
    pub fn disk(&self) -> FakeDisk {
        self.disk.borrow().clone()
    }

    /// The id of the node that lives here.
    pub fn node(&self) -> NodeId {
        self.node.get()
    }

    /// Since when no node runs here; none where one does.
    pub fn down_since(&self) -> Option<Duration> {
        self.down.get()
    }

    /// The schema that the node which runs here was built for; none where it has no gate.
    pub fn schema(&self) -> Option<u64> {
        self.program.as_ref().map(|_| self.runs.get() as u64 + 1)
    }

    /// Whether the program that runs here is not the one of the next start.
    pub fn is_old(&self) -> bool {
        self.runs != self.schema
    }

    /// The next start is one of the newest program.
    pub fn upgrade(&self) {
        self.schema.set(1);
    }

    /// A new node will live here, on an empty disk: it joins the others.
    pub fn replace(&self) {
        self.disk.replace(FakeDisk::unrecorded());
        self.node.set(self.node.get() + 10);
    }

    fn set_member(&self, member: Option<Arc<Member>>) {
        self.down.set(member.is_none().then(|| self.trace.now()));
        self.member.replace(member);
    }

    /// Why the node ended by itself since the last start, if it did.
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Whether its disk has failed or was full since the last start.
    pub fn is_struck(&self) -> bool {
        self.struck.get()
    }

    /// Its disk is to fail, or to be full.
    pub fn strike(&self) {
        self.struck.set(true);
        self.mended.set(false);
    }

    /// Its disk is whole again, and has room.
    pub fn mend_disk(&self) {
        let disk = self.disk();
        disk.set_budget(None);
        disk.heal();
        self.mended.set(true);
    }

    /// Sets the wall clock off.
    pub fn set_clock_off(&self, seconds: i64) {
        self.off.store(seconds, Ordering::Relaxed);
    }

    /// The machine is off from here on: nothing that the node still does reaches the disk. Returns
    /// once the disk is what the cut leaves; then the host may be crashed.
    pub fn cut(&self, cut: Cut) {
        self.set_member(None);
        let old = self.disk();
        old.halt();
        self.disk.replace(old.cut(cut));
        // The new one has no faults.
        self.mended.set(true);
    }

    /// Asks the node to stop gracefully.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.stop.borrow().notify_one();
    }

    /// Whether it was asked to since the last start.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    fn config(&self) -> Config {
        let founds = self.node.get() == 1;
        let others = (1..=self.places).filter(|other| *other != self.number);
        let mut config = Config {
            id: Some(self.node.get()),
            address: address(self.number),
            bootstrap: founds,
            join: if founds { Vec::new() } else { others.map(address).collect() },
            ..Config::default()
        };
        config.roles.voters = u32::try_from(self.places).unwrap_or(3);
        config.roles.offline_after = OFFLINE_AFTER;
        if let Some(program) = &self.program {
            config.schema.dir = Some(program.0[self.schema.get()].clone());
            config.schema.when_behind = WhenBehind::Wait;
        }
        // So that members that were away for some seconds need a snapshot.
        config.limits.log_keep_bytes = 64 << 10;
        config.limits.overlay_bytes = 256 << 10;
        config.limits.log_segment_bytes = 256 << 10;
        config
    }

    /// The software of the host: a node, until it is stopped or cannot go on.
    pub async fn software(self: Rc<Place>) -> turmoil::Result {
        self.starts.set(self.starts.get() + 1);
        self.runs.set(self.schema.get());
        self.ended.take();
        if self.mended.take() {
            self.struck.set(false);
        }
        let stop = Arc::new(Notify::new());
        self.stop.replace(stop.clone());
        self.stopping.set(false);
        let on = Surroundings {
            listener: listen().await?,
            dialer: Arc::new(Peers),
            disk: Arc::new(self.disk()),
            env: Env {
                clock: Arc::new(Wall { begun: Instant::now(), off: self.off.clone() }),
                random: Arc::new(SplitMix::new(self.seed ^ self.starts.get())),
                executor: Executor::Inline,
            },
        };
        let node = match Node::start_on(self.config(), on).await {
            Ok(node) => node,
            Err(error) => {
                self.end(&format!("did not start: {error}"));
                return Ok(());
            }
        };
        self.trace.note(|| format!("node {} runs", self.node.get()));
        self.set_member(Some(node.member().clone()));
        let ended = tokio::select! {
            biased;
            () = stop.notified() => None,
            why = node.wait_fatal() => Some(why),
            why = node.wait_gate_failed() => Some(why),
        };
        match ended {
            None => {
                node.stop().await;
                self.set_member(None);
                self.trace.note(|| format!("node {} has stopped", self.node.get()));
            }
            Some(why) => self.end(&why),
        }
        Ok(())
    }

    fn end(&self, why: &str) {
        self.set_member(None);
        self.trace.note(|| format!("node {} has ended: {why}", self.node.get()));
        self.ended.replace(Some(why.to_owned()));
    }
}

async fn listen() -> io::Result<Listener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream: Box<dyn PeerStream> = Box::new(stream);
            if sender.send(stream).await.is_err() {
                return;
            }
        }
    });
    Ok(Listener::Streams(receiver))
}

/// The way from a node to its peers.
struct Peers;

impl Dialer for Peers {
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn PeerStream>) }
            .boxed()
    }
}

/// The way from a client to the nodes.
pub struct Outside;

impl Dial for Outside {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Stream>) }.boxed()
    }
}

/// The time of the simulation, as SQL is told it.
pub struct Simulated;

impl Clock for Simulated {
    fn monotonic(&self) -> Duration {
        turmoil::sim_elapsed().unwrap_or_default()
    }

    fn unix(&self) -> Duration {
        BEGIN + self.monotonic()
    }
}

/// A node's clocks: the host's own, and a wall clock that may be off.
struct Wall {
    begun: Instant,
    off: Arc<AtomicI64>,
}

impl Clock for Wall {
    fn monotonic(&self) -> Duration {
        self.begun.elapsed()
    }

    fn unix(&self) -> Duration {
        let now = BEGIN + self.begun.elapsed();
        let off = self.off.load(Ordering::Relaxed);
        let seconds = Duration::from_secs(off.unsigned_abs());
        if off < 0 { now.saturating_sub(seconds) } else { now + seconds }
    }
}
