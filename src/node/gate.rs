//! The node's own schema gate (`schema.dir`): the node lets no clients in before all nodes of the
//! cluster have its level, and migrates the database if it is the last one to come.
//!
//! The gate is [`crate::cluster`]'s; here is what it stands on in a node: a driver whose
//! connections are let in also where clients are not (channel 4 of the peers' protocol), the watch
//! over the replica of this node, and what the leader does for all nodes: heartbeats, and taking
//! the rows of removed members away.
//!
//! *Invariant*: a node with a gate never served a client while its gate was not open.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::NodeError;
use super::config::{Config, WhenBehind};
use crate::base::{DatabaseName, NodeId};
use crate::cluster::nodes::{self, NodeRow};
use crate::cluster::{
    self, Cluster, Error, Extensions, FileSystem, Gate, Module, Notify, Registration, Replicated,
    Signal, WaitOptions,
};
use crate::disk::Disk;
use crate::driver::{Client, Dial, Options, ReadLevel, Server, ServerStore, Stream};
use crate::member::Member;
use crate::params;
use crate::raft::connection::{Dialer, Identity, connect};
use crate::raft::frames::Channel;
use crate::raft::network::Network;
use crate::server::SchemaDesk;

/// The application's updates are a module of this name.
pub const MODULE: &str = "app";

/// The file with the names of the API extensions, one on a line, beside the updates.
pub const EXTENSIONS: &str = "extensions";

/// How often the leader writes who is alive.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(4);

/// A member that was silent for longer gets no heartbeat.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// The replica's table of nodes is looked at no more often than this ...
const LOOK_MIN: Duration = Duration::from_millis(250);

/// ... and, where nothing is applied, as often as this.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// "The schema was brought up to date": a peer tells another one. No body, no answer.
pub const CALL_UPGRADED: u8 = 9;

/// A peer has this long to be told.
const TELL_MAX: Duration = Duration::from_secs(2);

/// What the directory `schema.dir` holds.
pub struct Program {
    module: Module,
    extensions: Extensions,
}

impl Program {
    /// Reads it; `None` where the node has no gate.
    pub fn read(config: &Config) -> Result<Option<Program>, NodeError> {
        let Some(dir) = &config.schema.dir else { return Ok(None) };
        let wrong = |error: &Error| {
            NodeError::Configuration(format!("schema.dir {}: {error}", dir.display()))
        };
        let module = Module::read(MODULE, dir).map_err(|error| wrong(&error))?;
        let extensions = read_extensions(&dir.join(EXTENSIONS)).map_err(|error| wrong(&error))?;
        Ok(Some(Program { module, extensions }))
    }
}

/// Reads that file; none where it is not there.
///
/// # Errors
///
/// It cannot be read, or a line is no name, or one is there twice.
pub fn read_extensions(path: &Path) -> Result<Extensions, Error> {
    let mut extensions = Extensions::new();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::File(format!("{}: {error}", path.display()))),
    };
    let names = text.lines().map(str::trim);
    extensions.register(names.filter(|line| !line.is_empty() && !line.starts_with('#')))?;
    Ok(extensions)
}

/// What the gate is built from.
pub struct Parts<'a> {
    pub config: &'a Config,
    pub program: Program,
    pub member: &'a Arc<Member>,
    pub network: &'a Network,
    pub dialer: &'a Arc<dyn Dialer>,
    pub identity: &'a Arc<Identity>,
    pub disk: &'a Arc<dyn Disk>,
}

/// The gate of a running node.
pub struct NodeGate {
    member: Arc<Member>,
    cluster: Cluster,
    client: Client,
    database: String,
    address: String,
    when_behind: cluster::WhenBehind,
    /// Told when the table of nodes has changed on this replica.
    signal: Arc<Signal>,
    failed: watch::Sender<Option<String>>,
}

impl NodeGate {
    /// The gate, shut: from here on the member lets no clients in.
    pub fn new(parts: Parts<'_>) -> Result<Arc<NodeGate>, NodeError> {
        let Parts { config, program, member, network, dialer, identity, disk } = parts;
        let dial = PeerDial { dialer: dialer.clone(), identity: identity.clone() };
        let known = Known { member: Arc::downgrade(member), given: config.known_addresses() };
        let options = Options { dial: Arc::new(dial), ..Options::default() };
        let client = Client::with_store(Arc::new(known), options);
        let database = config.schema.database.clone();
        let address = config.address.clone();
        let registration =
            Registration { id: member.id(), name: name_of(member.id()), address: address.clone() };
        let cluster = Cluster::builder()
            .module(program.module)
            .api_extensions(Arc::new(program.extensions))
            .file_system(Arc::new(Here(disk.clone())))
            .database_name(&database)
            .database(Arc::new(Replicated::new(client.clone(), &database)))
            .registration(registration)
            .notify(Arc::new(Tell(network.clone())))
            .build();
        // Names of modules and the like: known before anything is asked.
        let level = cluster.level().map_err(|e| NodeError::Configuration(e.to_string()))?;
        tracing::info!(
            node = member.id(),
            database,
            schema = level.schema,
            api_extensions = level.api_extensions,
            "no client is let in before all nodes have this level"
        );
        let gate = NodeGate {
            member: member.clone(),
            cluster,
            client,
            database,
            address,
            when_behind: match config.schema.when_behind {
                WhenBehind::Wait => cluster::WhenBehind::Wait,
                WhenBehind::Exit => cluster::WhenBehind::Exit,
            },
            signal: Arc::default(),
            failed: watch::Sender::new(None),
        };
        gate.say(&Gate::Starting);
        Ok(Arc::new(gate))
    }

    /// What clients may be told of it.
    pub fn desk(&self) -> Arc<SchemaDesk> {
        Arc::new(SchemaDesk {
            node: self.member.id(),
            cluster: self.cluster.clone(),
            client: self.client.clone(),
            database: self.database.clone(),
            clock: self.member.env().clock.clone(),
        })
    }

    /// Where it stands.
    pub fn state(&self) -> watch::Receiver<Gate> {
        self.cluster.gate()
    }

    /// Waits until the node must stop because of its gate, and says why.
    pub async fn wait_failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        let why = failed.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }

    /// A peer says that the schema was brought up to date.
    pub fn note_upgraded(&self) {
        self.signal.notify();
    }

    /// Starts what it does until the node stops.
    pub fn spawn(self: &Arc<NodeGate>) -> Vec<JoinHandle<()>> {
        let [passing, following, telling, keeping] = [(); 4].map(|()| self.clone());
        vec![
            tokio::spawn(async move { passing.pass().await }),
            tokio::spawn(async move { following.follow().await }),
            tokio::spawn(async move { telling.tell().await }),
            tokio::spawn(async move { keeping.keep_nodes().await }),
        ]
    }

    fn say(&self, gate: &Gate) {
        match gate {
            Gate::Ready => self.member.let_in(),
            gate => self.member.shut(&gate.to_string()),
        }
    }

    /// Passes the gate, whatever time that takes, and lets clients in.
    async fn pass(&self) {
        self.wait_for_leader().await;
        let options = WaitOptions { when_behind: self.when_behind, ..WaitOptions::default() };
        let passed =
            self.cluster.wait_ready(&self.address, Path::new("."), &*self.signal, &options).await;
        match passed {
            Ok(()) => {
                self.member.let_in();
                tracing::info!(
                    node = self.member.id(),
                    "the schema gate is open: clients are let in"
                );
            }
            Err(error) => {
                tracing::error!(node = self.member.id(), %error, "the schema gate stays shut");
                self.failed.send_replace(Some(error.to_string()));
            }
        }
    }

    /// Until this node belongs to a cluster that has a leader nothing can be asked.
    async fn wait_for_leader(&self) {
        let id = self.member.id();
        let mut leadership = self.member.watch_leadership();
        // The sender lives as long as the member.
        let _ = leadership
            .wait_for(|now| {
                now.leader.is_some() && now.members.iter().any(|member| member.id == id)
            })
            .await;
    }

    /// Tells clients why they are not let in, as that changes.
    async fn tell(&self) {
        let mut state = self.cluster.gate();
        loop {
            let gate = state.borrow_and_update().clone();
            if gate == Gate::Ready {
                return;
            }
            self.say(&gate);
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    /// Follows the table of nodes on this replica: what is applied here is looked at, so that no
    /// change is missed, whoever made it.
    async fn follow(&self) {
        let Ok(name) = DatabaseName::new(&self.database) else { return };
        self.wait_for_leader().await;
        let mut state = self.cluster.gate();
        let mut last = None;
        while *state.borrow_and_update() != Gate::Ready {
            let applied = self.member.catalog().by_name(&name);
            let seen = applied.as_ref().map(|store| (store.applied().version, store.epoch()));
            if let Some(found) = self.nodes_here().await
                && last != Some(&found).cloned()
            {
                last = Some(found);
                self.signal.notify();
            }
            tokio::time::sleep(LOOK_MIN).await;
            let next = async {
                if let (Some(store), Some((version, epoch))) = (applied, seen) {
                    store.wait_applied(version + 1, epoch).resolved().await;
                }
            };
            // Whatever became of it: it is looked at again.
            let _ = tokio::time::timeout(LOOK_MAX, next).await;
        }
    }

    /// The rows of the nodes as this replica has them.
    async fn nodes_here(&self) -> Option<Vec<(i64, i64, i64, i64)>> {
        const SQL: &str = "SELECT id, schema, api_extensions, pending FROM nodes ORDER BY id";
        let here = self.client.at(&self.address).ok()?;
        let database = here.database(&self.database).read_level(ReadLevel::Local);
        let rows = database.timeout(LOOK_MAX).query_as(SQL, params![]).await;
        rows.ok()
    }

    /// What the leader does for all: writes who is alive, and takes removed members' rows away.
    async fn keep_nodes(&self) {
        let mut every = tokio::time::interval(HEARTBEAT_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let asked = *self.cluster.gate().borrow() != Gate::Starting;
            if !asked || self.member.leading_term().is_err() {
                continue;
            }
            let (alive, members) = self.alive();
            let now = i64::try_from(self.member.env().clock.unix().as_secs()).unwrap_or(i64::MAX);
            let written = self
                .cluster
                .transaction(|mut tx| {
                    let (alive, members) = (alive.clone(), members.clone());
                    async move { keep_rows(&mut *tx, &alive, &members, now).await }
                })
                .await;
            if let Err(error) = written {
                tracing::debug!(%error, "the heartbeats of the nodes were not written");
            }
        }
    }

    /// The members that were heard lately, and all.
    fn alive(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let own = self.member.id();
        let silences = self.member.core().silences();
        let heard = |id: &NodeId| {
            let silence = silences.get(id).copied().flatten();
            *id == own || silence.is_some_and(|silence| silence <= SILENCE_MAX)
        };
        let members = self.member.leadership().members;
        let members: BTreeSet<NodeId> = members.iter().map(|member| member.id).collect();
        (members.iter().copied().filter(heard).collect(), members)
    }
}

/// The name of a node that registers itself.
fn name_of(id: NodeId) -> String {
    format!("node-{id}")
}

async fn keep_rows(
    tx: &mut dyn cluster::Tx,
    alive: &BTreeSet<NodeId>,
    members: &BTreeSet<NodeId>,
    now: i64,
) -> Result<(), Error> {
    let mut rows = nodes::all(tx).await?;
    rows.extend(nodes::pending(tx).await?);
    for row in rows {
        // A row of another name is its application's.
        if row.name == name_of(row.id) && !members.contains(&row.id) {
            nodes::remove(tx, row.id).await?;
            tracing::info!(node = row.id, "a member was removed: its row of the nodes is, too");
        } else if alive.contains(&row.id) {
            nodes::heartbeat(tx, &row.address, now).await?;
        }
    }
    Ok(())
}

/// The way to members' databases that lets a gate in where clients are not.
struct PeerDial {
    dialer: Arc<dyn Dialer>,
    identity: Arc<Identity>,
}

impl Dial for PeerDial {
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Stream>>> {
        let connecting = connect(&self.dialer, &self.identity, 0, address, Channel::Client);
        Box::pin(async move {
            let connection = connecting.await.map_err(io::Error::other)?;
            Ok(Box::new(connection.into_stream()?) as Box<dyn Stream>)
        })
    }
}

/// The addresses of the members, as this one knows them, and those that it was given.
struct Known {
    member: Weak<Member>,
    given: Vec<String>,
}

impl ServerStore for Known {
    fn get(&self) -> BoxFuture<'_, io::Result<Vec<Server>>> {
        let members = self.member.upgrade().map(|member| member.leadership().members);
        let members = members.unwrap_or_default().into_iter().map(|member| member.address);
        let mut all: Vec<String> = members.collect();
        let given = self.given.iter().filter(|given| !all.contains(given));
        let given: Vec<String> = given.cloned().collect();
        all.extend(given);
        Box::pin(std::future::ready(Ok(all.into_iter().map(Server::at).collect())))
    }

    fn set(&self, _: Vec<Server>) -> BoxFuture<'_, io::Result<()>> {
        // The membership itself knows.
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The data directory, whatever directory is asked for.
struct Here(Arc<dyn Disk>);

impl FileSystem for Here {
    fn open(&self, _: &Path) -> io::Result<Arc<dyn Disk>> {
        Ok(self.0.clone())
    }
}

/// Tells the other members of a migration.
struct Tell(Network);

impl Notify for Tell {
    fn upgraded<'a>(&'a self, peer: &'a NodeRow) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let told =
                self.0.call(peer.id, &peer.address, CALL_UPGRADED, Bytes::new(), TELL_MAX).await;
            told.map(drop).map_err(|error| error.to_string())
        })
    }
}
