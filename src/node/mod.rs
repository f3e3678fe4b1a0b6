//! One running node put together: its data directory, its log, its databases, consensus, the
//! member and the doors. Applications embed it with [`Node::start`].
//!
//! The order of a start: bind the address (an address in use must leave no trace), lock the
//! directory, recover the log (mended from peers where it is damaged), open the databases where
//! their checkpoint left them, build consensus (which applies the rest of the log), start the
//! member, run consensus, accept connections; then found a cluster or join one, if this node
//! belongs to none ([`belonging`]), and pass the schema gate, if it has one ([`gate`]).
//!
//! *Invariant*: nothing is written before the configuration is found good and the address is
//! bound; no connection is accepted before the state of before is applied.

mod belonging;
mod calls;
mod checkpoints;
pub mod config;
mod gate;
mod identity;
mod mend;
pub mod offline;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::base::{Env, limits};
use crate::cluster::Gate;
use crate::disk::{Disk, RealDisk};
use crate::log::Log;
use crate::member::roles::Targets;
use crate::member::{Member, MemberOptions, MemberParts, RoleOptions};
use crate::pages::{Catalog, PagesError};
use crate::raft::config::{Timeouts, raft_config};
use crate::raft::connection::{ConnectError, Dialer, Identity, connect};
use crate::raft::frames::Channel;
use crate::raft::holds::PurgeHolds;
use crate::raft::lease::LeaseGuard;
use crate::raft::log_store::LogStore;
use crate::raft::machine::{Machine, purge as purge_log};
use crate::raft::network::Network;
use crate::raft::peers::PeerHandler;
use crate::raft::{Core, Raft};
use crate::server::listen::{AnyDialer, Doors};
use crate::server::{self, Listener};
use crate::sqlite::TempSpace;

use belonging::Belonging;
use calls::Hooks;
use gate::{NodeGate, Parts, Program};
use identity::StoredIdentity;

pub use config::{Config, ConfigError};
pub use gate::{EXTENSIONS, MODULE, read_extensions};

/// A graceful stop hands its vote to another member within this time.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration, the environment or the data directory does not fit.
    #[error("{0}")]
    Configuration(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
}

impl NodeError {
    /// Whether the mend is with whoever started the node.
    pub fn is_configuration(&self) -> bool {
        matches!(self, NodeError::Configuration(_))
    }
}

/// What to do with a node whose data directory cannot be mended.
const ANEW: &str = "remove this member from the cluster, empty its data directory, and join it \
                    anew under another id";

/// Why the databases of a data directory cannot be opened, and what to do.
fn cannot_open(error: PagesError) -> NodeError {
    match error {
        PagesError::Damaged { .. } | PagesError::Directory(_) => {
            NodeError::Configuration(format!("{error}: {ANEW}"))
        }
        error => NodeError::Failed(error.to_string()),
    }
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> NodeError {
    move |error| NodeError::Failed(format!("{what}: {error}"))
}

/// What a node runs on: the machine's own in [`Node::start`], a test's or an application's in
/// [`Node::start_on`].
pub struct Surroundings {
    /// Where connections come from, of clients and peers.
    pub listener: Listener,
    /// The way to peers.
    pub dialer: Arc<dyn Dialer>,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// Clock, randomness and threads.
    pub env: Env,
}

/// A running node.
pub struct Node {
    member: Arc<Member>,
    log: Log,
    disk: Arc<dyn Disk>,
    gate: Option<Arc<NodeGate>>,
    stopping: watch::Sender<bool>,
    serving: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    /// Starts a node on the real machine, on the runtime that this is called from.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        config.validate().map_err(|error| NodeError::Configuration(error.to_string()))?;
        Program::read(&config)?;
        let listener = Listener::bind(config.listens_at()).await.map_err(|error| {
            let key = if config.listen.is_some() { "listen" } else { "address" };
            NodeError::Configuration(format!(
                "{key} {}: {error}: choose another with --{key}",
                config.listens_at()
            ))
        })?;
        let disk = open_directory(&config)?;
        let dialer = Arc::new(AnyDialer);
        Node::start_on(config, Surroundings { listener, dialer, disk, env: Env::real() }).await
    }

    /// Starts a node on surroundings of the caller's.
    pub async fn start_on(config: Config, on: Surroundings) -> Result<Node, NodeError> {
        let Surroundings { listener, dialer, disk, env } = on;
        let program = Program::read(&config)?;
        let known = StoredIdentity::load(&*disk)?;
        refuse_newer_formats(&*disk)?;
        let stored = identify(&config, known, &env)?;
        check_same_cluster(&config, &stored, &dialer).await?;
        let log = mend::open_log(&disk, &config, &stored, &dialer, &env).await?;
        let catalog = Arc::new(Catalog::open(disk.clone()).map_err(cannot_open)?);
        finish_install(&log, &catalog)?;
        check_log_reaches(&log, &catalog)?;
        let recorded = catalog.recorded().last.map(|last| last.index);
        log.set_purge_limit(recorded);
        let first = recorded.map_or(0, |index| index + 1);
        tracing::info!(
            first,
            last = log.state().last.map_or(0, |last| last.index),
            bytes = log.bytes_since(first),
            "what the log has after the last checkpoint is applied again"
        );
        stored.store(&*disk).map_err(failed("node.toml"))?;
        let identity = Identity::new(stored.id, stored.cluster_id());
        let timeouts = timeouts_of(&config);
        let state = log.state();
        let fresh = state.vote.is_none() && state.last.is_none();
        let lease = Arc::new(LeaseGuard::at_start(env.clock.clone(), &timeouts, fresh));
        let network = Network::new(dialer.clone(), identity.clone(), lease.clone(), env.executor);
        let disturbed = Arc::new(Notify::new());
        let holds = PurgeHolds::new(env.clock.clone());
        let (of, told) = (catalog.clone(), disturbed.clone());
        let machine = Machine::new(of, log.clone(), holds.clone(), env.executor, told);
        let core = build(&stored, &timeouts, &network, &log, &machine, &env).await?;
        machine.open_views();
        let room = catalog.room().clone();
        let space = TempSpace::with_room(disk.clone(), limits::TEMP_BYTES_MAX, room);
        let options = member_options(&config, &timeouts);
        let member = Member::start(MemberParts {
            id: stored.id,
            env: env.clone(),
            core: core.clone(),
            log: log.clone(),
            network: network.clone(),
            catalog,
            space,
            options,
            disturbed,
            lease: lease.clone(),
        });
        let parts = |program| Parts {
            config: &config,
            program,
            member: &member,
            network: &network,
            dialer: &dialer,
            identity: &identity,
            disk: &disk,
        };
        let gate = program.map(|program| NodeGate::new(parts(program))).transpose()?;
        let hooks = Hooks::new(disk.clone(), log.clone(), env.executor, stored.clone());
        hooks.attach(&member, gate.as_ref());
        let peers = Arc::new(PeerHandler {
            raft: Arc::new(core.raft().clone()),
            identity: identity.clone(),
            lease,
            hooks: hooks.clone(),
            executor: env.executor,
            refused: Mutex::default(),
        });
        core.raft().run();
        let (stopping, _) = watch::channel(false);
        let doors = Doors {
            member: member.clone(),
            peers,
            schema: gate.as_ref().map(|gate| gate.desk()),
            connections_max: usize::try_from(config.limits.connections).unwrap_or(usize::MAX),
            frame_bytes_max: usize::try_from(config.limits.frame_bytes).unwrap_or(usize::MAX),
        };
        let serving = tokio::spawn(server::serve(listener, doors, stopping.subscribe()));
        let mut tasks = vec![tokio::spawn(checkpoints::keep(
            member.clone(),
            log.clone(),
            config.limits.clone(),
            holds,
            stopping.subscribe(),
        ))];
        belonging::found(&config, &core, &hooks, &identity, &env).await?;
        let belonging = Belonging {
            id: stored.id,
            address: config.address,
            join: config.join,
            member: member.clone(),
            hooks,
            network,
            log: log.clone(),
        };
        tasks.push(tokio::spawn(belonging.keep(stopping.subscribe())));
        tasks.extend(gate.iter().flat_map(NodeGate::spawn));
        Ok(Node { member, log, disk, gate, stopping, serving, tasks })
    }

    /// The member's core, for an application that embeds the node.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Changes the byte budget of the data directory, or lifts it (`None`): the node behaves as on
    /// a disk that has become fuller, or has room again.
    pub fn set_disk_budget(&self, bytes_max: Option<u64>) {
        self.disk.set_budget(bytes_max);
    }

    /// Stops it: hands leadership and role over, answers whoever still asks, closes the doors, ends
    /// consensus.
    pub async fn stop(self) {
        self.hand_over().await;
        self.stop_with_cluster().await;
    }

    /// Stops it as one of a cluster whose nodes all stop: there is nobody to hand leadership to.
    pub async fn stop_with_cluster(self) {
        self.stopping.send_replace(true);
        // Clients get their answers. An error: it ended by a panic, which was logged.
        let _ = self.serving.await;
        self.member.stop().await;
        for task in self.tasks {
            task.abort();
        }
        self.log.stop();
    }

    /// Hands leadership to another voter and the vote to another member, where there is one.
    async fn hand_over(&self) {
        let handed =
            tokio::time::timeout(limits::HANDOVER_AT_STOP_MAX, self.member.leave_leadership());
        if handed.await.is_err() {
            tracing::warn!("leadership was not taken over in time; stopping all the same");
        }
        self.member.leave_role(LEAVE_MAX).await;
    }

    /// Where its schema gate stands; `None` where it has none.
    pub fn gate(&self) -> Option<watch::Receiver<Gate>> {
        self.gate.as_ref().map(|gate| gate.state())
    }

    /// Waits until the node is to be stopped because it does not pass its schema gate, and says why.
    pub async fn wait_gate_failed(&self) -> String {
        match &self.gate {
            Some(gate) => gate.wait_failed().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the node cannot go on, and says why.
    pub async fn wait_fatal(&self) -> String {
        self.member.wait_fatal().await
    }
}

/// A node that belongs to no cluster must be told how to come to one.
const NO_PURPOSE: &str = "the data directory is new: say --bootstrap to found a cluster, --join \
                          ADDRESS to join one, or --wait to be added to one";

fn open_directory(config: &Config) -> Result<Arc<dyn Disk>, NodeError> {
    let path = config.data_dir.display();
    let purpose = config.bootstrap || config.wait || !config.join.is_empty();
    if !purpose && !config.data_dir.exists() {
        return Err(NodeError::Configuration(NO_PURPOSE.to_owned()));
    }
    let disk = RealDisk::open(&config.data_dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => NodeError::Configuration(format!(
            "data directory {path}: another node uses it: stop that one, or choose another with \
             --dir"
        )),
        _ => NodeError::Configuration(format!("data directory {path}: {error}")),
    })?;
    Ok(match config.limits.disk_budget {
        Some(bytes) => disk.with_budget(bytes),
        None => disk,
    })
}

/// Files of a newer build are refused before anything is written beside them. (Those that do not
/// say a format of their own have that of `node.toml`.)
fn refuse_newer_formats(disk: &dyn Disk) -> Result<(), NodeError> {
    let newer = match crate::log::newer_format(disk).map_err(failed("the log"))? {
        Some(what) => Some(what),
        None => crate::pages::newer_format(disk).map_err(failed("the databases"))?,
    };
    match newer {
        Some(what) => Err(NodeError::Configuration(format!(
            "the data directory was written by a newer version of quire ({what}, and this one \
             reads format 1): start that version"
        ))),
        None => Ok(()),
    }
}

/// Who this node is, from its directory and its configuration.
fn identify(
    config: &Config,
    known: Option<StoredIdentity>,
    env: &Env,
) -> Result<StoredIdentity, NodeError> {
    let wrong = |what: String| Err(NodeError::Configuration(what));
    let Some(known) = known else {
        let id = match (config.id, config.bootstrap) {
            (Some(id), _) => id,
            (None, true) => 1,
            (None, false) if config.wait || !config.join.is_empty() => {
                (env.random.next_u64() >> 1).max(2)
            }
            (None, false) => return wrong(NO_PURPOSE.to_owned()),
        };
        if !config.bootstrap && !config.wait && config.join.is_empty() {
            return wrong(NO_PURPOSE.to_owned());
        }
        return Ok(StoredIdentity::new(id, &config.address));
    };
    match config.id {
        Some(id) if id != known.id => wrong(format!(
            "the data directory belongs to node {}, not {id}: choose its own with --dir, or leave \
             --id out",
            known.id
        )),
        _ if config.address == known.address => Ok(known),
        _ if known.cluster.is_none() && config.join.is_empty() => wrong(format!(
            "this node was started at {} and has met no cluster that it could tell of {}: say \
             --join ADDRESS, or start it with --address {}",
            known.address, config.address, known.address
        )),
        _ => {
            tracing::info!(before = known.address, now = config.address, "this node has moved");
            Ok(StoredIdentity { address: config.address.clone(), ..known })
        }
    }
}

/// Tells the log of a snapshot whose install was interrupted and finished at this start.
fn finish_install(log: &Log, catalog: &Catalog) -> Result<(), NodeError> {
    let Some(last) = catalog.installed_at_start() else { return Ok(()) };
    purge_log(log, last).map_err(failed("the log"))?;
    catalog.forget_install().map_err(failed("incoming"))
}

/// A member started with addresses to join is no member of another cluster than theirs. Who does
/// not answer within a moment is not waited for: members may be starting, too.
async fn check_same_cluster(
    config: &Config,
    stored: &StoredIdentity,
    dialer: &Arc<dyn Dialer>,
) -> Result<(), NodeError> {
    if stored.cluster_id() == 0 || config.join.is_empty() {
        return Ok(());
    }
    let identity = Identity::new(stored.id, stored.cluster_id());
    let asked: FuturesUnordered<_> = config
        .join
        .iter()
        .map(|address| connect(dialer, &identity, 0, address, Channel::Requests))
        .collect();
    let wrong = asked.filter_map(|answer| async move {
        match answer {
            Err(ConnectError::WrongCluster { address }) => Some(address),
            _ => None,
        }
    });
    let mut wrong = std::pin::pin!(wrong);
    match tokio::time::timeout(limits::JOIN_CHECK_MAX, wrong.next()).await {
        Ok(Some(address)) => Err(NodeError::Configuration(format!(
            "the data directory belongs to another cluster than {address}: choose a new one with \
             --dir, or leave --join out"
        ))),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The log must begin where the checkpoint record ends, or before, and reach up to there; or
/// somebody has removed part of it, or the record is that of an earlier time.
fn check_log_reaches(log: &Log, catalog: &Catalog) -> Result<(), NodeError> {
    let state = log.state();
    let recorded = catalog.recorded().last.map(|last| last.index);
    let mend = "part of the data directory is missing; restore it whole, or remove this member and \
                join it anew";
    if let Some(purged) = state.purged.filter(|purged| recorded < Some(purged.index)) {
        let covers = recorded.map_or("nothing".to_owned(), |index| format!("entry {index}"));
        return Err(NodeError::Failed(format!(
            "the log begins after entry {}, and the checkpoint record covers {covers}: {mend}",
            purged.index
        )));
    }
    let Some(recorded) = recorded else { return Ok(()) };
    if state.last.max(state.purged).is_some_and(|last| last.index >= recorded) {
        return Ok(());
    }
    Err(NodeError::Failed(format!(
        "the log ends before entry {recorded}, which the checkpoint covers: {mend}"
    )))
}

fn timeouts_of(config: &Config) -> Timeouts {
    Timeouts {
        heartbeat: config.timeouts.heartbeat,
        election_min: config.timeouts.election_min,
        election_max: config.timeouts.election_max,
    }
}

fn member_options(config: &Config, timeouts: &Timeouts) -> MemberOptions {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    MemberOptions {
        busy_timeout: config.timeouts.busy,
        idle_transaction_max: config.timeouts.idle_transaction,
        idle_writer_max: config.timeouts.idle_writer,
        statement_max: config.timeouts.statement,
        run_ahead_transactions_max: usize::try_from(config.limits.run_ahead_transactions)
            .unwrap_or(usize::MAX),
        run_ahead_bytes_max: size(config.limits.run_ahead_bytes),
        transaction_bytes_max: config.limits.transaction_bytes,
        // A tenth is left for clocks that drift.
        lease: timeouts.lease() * 9 / 10,
        commit_timeout: limits::COMMIT_TIMEOUT,
        roles: RoleOptions {
            automatic: config.roles.automatic,
            targets: Targets {
                voters: usize::try_from(config.roles.voters).unwrap_or(usize::MAX),
                standbys: usize::try_from(config.roles.standbys).unwrap_or(usize::MAX),
            },
            offline_after: config.roles.offline_after,
        },
        failure_domain: config.member.failure_domain,
        weight: config.member.weight,
    }
}

async fn build(
    stored: &StoredIdentity,
    timeouts: &Timeouts,
    network: &Network,
    log: &Log,
    machine: &Machine,
    env: &Env,
) -> Result<Core, NodeError> {
    let config = raft_config(timeouts)
        .map_err(|error| NodeError::Configuration(format!("timeouts: {error}")))?;
    let store = LogStore::new(log.clone(), env.executor);
    let built =
        Raft::build(stored.id, Arc::new(config), network.clone(), store, machine.clone()).await;
    let raft = built.map_err(|error| NodeError::Failed(format!("consensus: {error}")))?;
    Ok(Core::new(stored.id, raft))
}
