//! The node's own schema gate (`schema.dir`): the node lets no clients in before all nodes of the
//! cluster have its level, and migrates the database if it is the last one to come.
//!
//! The gate is [`crate::cluster`]'s; here is what it stands on in a node: a driver whose
//! connections are let in also where clients are not (channel 4 of the peers' protocol), the watch
//! over the replica of this node, and what the leader does for all nodes: heartbeats, and taking
//! the rows of removed members away.
//!
//! *Invariant*: a node with a gate never served a client while its gate was not open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
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
use crate::member::{Leadership, Member};
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

/// Nobody counts as offline sooner, whatever the table `config` says: this long the heartbeat of a
/// node that lives may take to be renewed, also where another leader comes in between.
const OFFLINE_MIN: Duration = Duration::from_secs(10);

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
    /// The data directory: a patch file may be there.
    dir: PathBuf,
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
        let random = member.env().random.clone();
        let options = Options { dial: Arc::new(dial), random, ..Options::default() };
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
            dir: config.data_dir.clone(),
            when_behind: match config.schema.when_behind {
                WhenBehind::Wait => cluster::WhenBehind::Wait,
                WhenBehind::Exit => cluster::WhenBehind::Exit,
            },
            signal: Arc::default(),
            failed: watch::Sender::new(None),
        };
        gate.member.shut(&Gate::Starting.to_string());
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
            offline_min: OFFLINE_MIN,
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

    /// Passes the gate, whatever time that takes, and lets clients in.
    async fn pass(&self) {
        let passed = loop {
            self.wait_for_leader().await;
            let leader = self.member.leadership().leader;
            tokio::select! {
                biased;
                passed = self.try_to_pass() => break passed,
                // A statement on a leader that only stands still would be waited for.
                () = self.wait_for_other_leader(leader) => {}
            }
        };
        let node = self.member.id();
        match passed {
            Ok(()) => {
                self.member.let_in();
                tracing::info!(node, "the schema gate is open: clients are let in");
                let why = self.wait_row_lost().await;
                tracing::error!(node, "{why}");
                self.failed.send_replace(Some(why));
            }
            Err(error) => {
                tracing::error!(node, %error, "the schema gate stays shut");
                self.failed.send_replace(Some(error.to_string()));
            }
        }
    }

    async fn try_to_pass(&self) -> Result<(), Error> {
        let options = WaitOptions { when_behind: self.when_behind, ..WaitOptions::default() };
        loop {
            let passed =
                self.cluster.wait_ready(&self.address, &self.dir, &*self.signal, &options).await;
            match passed {
                Ok(()) => break,
                // Of a member that was removed: the leader takes its row away. Or of one that has
                // moved, too, and has not said so yet.
                Err(error)
                    if matches!(error.root(), Error::AddressTaken(_) | Error::NameTaken(_)) =>
                {
                    let node = self.member.id();
                    tracing::info!(node, %error, "the schema gate waits for that row to go");
                    tokio::time::sleep(HEARTBEAT_EVERY).await;
                }
                Err(error) => return Err(error),
            }
        }
        // It was decided at the leader; what is read here must be the new schema, too.
        let level = self.cluster.level()?;
        while self.version_here().await != Some(level.schema) {
            tokio::time::sleep(LOOK_MIN).await;
        }
        Ok(())
    }

    /// The version of the schema on this replica, which has caught up with the leader.
    async fn version_here(&self) -> Option<u64> {
        const SQL: &str = "SELECT coalesce(max(version), 0) FROM schema";
        let here = self.client.at(&self.address).ok()?;
        let read = here.database(&self.database).timeout(LOOK_MAX);
        read.query_as::<(u64,)>(SQL, params![]).await.ok()?.first().map(|(version,)| *version)
    }

    /// Waits until this node's row is gone, though it is a member: others may migrate past it.
    async fn wait_row_lost(&self) -> String {
        let id = self.member.id();
        loop {
            tokio::time::sleep(LOOK_MAX).await;
            let belongs = self.member.check_belongs().is_ok();
            let rows = self.nodes_here().await.filter(|_| belongs).unwrap_or_default();
            if !rows.is_empty() && rows.iter().all(|(node, ..)| node.cast_unsigned() != id) {
                return format!(
                    "node {id} has no row in nodes of database {} any more: others do not wait \
                     for it; start it again, and it gets one",
                    self.database
                );
            }
        }
    }

    /// Waits until this node knows another leader than that.
    async fn wait_for_other_leader(&self, than: Option<(NodeId, String)>) {
        let mut leadership = self.member.watch_leadership();
        let is_other = |now: &Leadership| now.leader.is_some() && now.leader != than;
        if leadership.wait_for(is_other).await.map(drop).is_err() {
            // The member is gone, and this with it.
            std::future::pending().await
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
            // Who passes lets clients in, later than this.
            if gate == Gate::Ready {
                return;
            }
            self.member.shut(&gate.to_string());
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
                && last.as_ref() != Some(&found)
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
            let now = i64::try_from(self.member.env().clock.unix().as_secs()).unwrap_or(i64::MAX);
            let written = self
                .cluster
                .transaction(|mut tx| async move {
                    // As it is now: a repetition may come much later.
                    let (alive, members) = self.alive();
                    if self.member.leading_term().is_err() {
                        return Ok(Vec::new());
                    }
                    keep_rows(&mut *tx, &alive, &members, now).await
                })
                .await;
            for id in written.iter().flatten() {
                tracing::info!(node = id, "a member was removed: its row of the nodes is, too");
            }
            if let Err(error) = written {
                tracing::debug!(%error, "the heartbeats of the nodes were not written");
            }
        }
    }

    /// The members that were heard lately; and all, with their addresses.
    fn alive(&self) -> (BTreeSet<NodeId>, BTreeMap<NodeId, String>) {
        let own = self.member.id();
        let silences = self.member.core().silences();
        let heard = |id: &NodeId| {
            let silence = silences.get(id).copied().flatten();
            *id == own || silence.is_some_and(|silence| silence <= SILENCE_MAX)
        };
        let members = self.member.leadership().members;
        let members: BTreeMap<NodeId, String> =
            members.into_iter().map(|member| (member.id, member.address)).collect();
        (members.keys().copied().filter(heard).collect(), members)
    }
}

/// The name of a node that registers itself.
fn name_of(id: NodeId) -> String {
    format!("node-{id}")
}

/// Brings the rows of nodes that registered themselves to what the membership says. The removed.
async fn keep_rows(
    tx: &mut dyn cluster::Tx,
    alive: &BTreeSet<NodeId>,
    members: &BTreeMap<NodeId, String>,
    now: i64,
) -> Result<Vec<NodeId>, Error> {
    let mut rows = nodes::all(tx).await?;
    rows.extend(nodes::pending(tx).await?);
    // A row of another name is its application's.
    rows.retain(|row| row.name == name_of(row.id));
    let (rows, gone): (Vec<NodeRow>, Vec<NodeRow>) =
        rows.into_iter().partition(|row| members.contains_key(&row.id));
    for row in &gone {
        nodes::remove(tx, row.id).await?;
    }
    let listed = |row: &NodeRow| members.get(&row.id).cloned().unwrap_or_default();
    let moved: Vec<&NodeRow> = rows.iter().filter(|row| row.address != listed(row)).collect();
    // First out of each other's way: members may have traded addresses.
    for row in &moved {
        nodes::update(tx, row.id, &row.name, &format!("moving:{}", row.id)).await?;
    }
    for row in &moved {
        nodes::update(tx, row.id, &row.name, &listed(row)).await?;
    }
    for row in rows.iter().filter(|row| alive.contains(&row.id)) {
        nodes::heartbeat(tx, &listed(row), now).await?;
    }
    Ok(gone.into_iter().map(|row| row.id).collect())
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
            let told = self
                .0
                .call_address(peer.id, &peer.address, CALL_UPGRADED, Bytes::new(), TELL_MAX)
                .await;
            told.map(drop).map_err(|error| error.to_string())
        })
    }
}
