//! One running node put together: its data directory, its log, its databases, consensus, the
//! member and the doors. Applications embed it with [`Node::start`].
//!
//! The order of a start: bind the address (an address in use must leave no trace), lock the
//! directory, recover the log (mended from peers where it is damaged), open the databases where
//! their checkpoint left them, build consensus (which applies the rest of the log), start the
//! member, run consensus, accept connections; then found a cluster or join one, if this node
//! belongs to none.
//!
//! *Invariant*: nothing is written before the configuration is found good and the address is
//! bound; no connection is accepted before the state of before is applied.

mod calls;
mod checkpoints;
pub mod config;
mod identity;
mod mend;
pub mod offline;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::base::{Env, NodeId};
use crate::disk::{Disk, RealDisk};
use crate::log::Log;
use crate::member::{Member, MemberOptions, MemberParts};
use crate::pages::Catalog;
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

use calls::{Hooks, Joined};
use identity::StoredIdentity;

pub use config::{Config, ConfigError};

/// A quorum round or a commit that takes longer has an unknown outcome.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses between attempts to join.
const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// A member asks for no longer than this whether the addresses to join are of its cluster.
const JOIN_CHECK: Duration = Duration::from_millis(200);

/// One attempt to join takes at most this long: the leader sends what this node lacks meanwhile.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A graceful stop hands leadership over within this time, or stops all the same.
const HANDOVER_MAX: Duration = Duration::from_secs(4);

/// Temporary files of SQLite, in all.
const TEMP_BYTES_MAX: u64 = 16 << 30;

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

fn failed(what: &str) -> impl Fn(std::io::Error) -> NodeError {
    move |error| NodeError::Failed(format!("{what}: {error}"))
}

/// A running node.
pub struct Node {
    member: Arc<Member>,
    log: Log,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Node {
    /// Starts a node on the real machine, on the runtime that this is called from.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        config.validate().map_err(|error| NodeError::Configuration(error.to_string()))?;
        let listener = Listener::bind(&config.address).await.map_err(|error| {
            NodeError::Configuration(format!(
                "address {}: {error}: choose another with --address",
                config.address
            ))
        })?;
        let disk = open_directory(&config)?;
        Node::start_on(config, listener, disk, Env::real()).await
    }

    /// Starts a node on a listener, a disk and an environment of the caller's.
    pub async fn start_on(
        config: Config,
        listener: Listener,
        disk: Arc<dyn Disk>,
        env: Env,
    ) -> Result<Node, NodeError> {
        let known = StoredIdentity::load(&*disk)?;
        let stored = identify(&config, known, &env)?;
        check_same_cluster(&config, &stored).await?;
        let log = mend::open_log(&disk, &config, &stored, &env).await?;
        let catalog =
            Arc::new(Catalog::open(disk.clone()).map_err(|e| NodeError::Failed(e.to_string()))?);
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
        let network =
            Network::new(Arc::new(AnyDialer), identity.clone(), lease.clone(), env.executor);
        let disturbed = Arc::new(Notify::new());
        let holds = PurgeHolds::new(env.clock.clone());
        let (of, told) = (catalog.clone(), disturbed.clone());
        let machine = Machine::new(of, log.clone(), holds.clone(), env.executor, told);
        let core = build(&stored, &timeouts, &network, &log, &machine, &env).await?;
        machine.open_views();
        let room = catalog.room().clone();
        let space = TempSpace::with_room(disk.clone(), TEMP_BYTES_MAX, room);
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
        });
        let hooks = Hooks::new(disk, log.clone(), env.executor, stored.clone());
        hooks.attach(&member);
        let peers = Arc::new(PeerHandler {
            raft: Arc::new(core.raft().clone()),
            identity: identity.clone(),
            lease,
            hooks: hooks.clone(),
            executor: env.executor,
        });
        core.raft().run();
        let (stopping, _) = watch::channel(false);
        let doors = Doors {
            member: member.clone(),
            peers,
            connections_max: usize::try_from(config.limits.connections).unwrap_or(usize::MAX),
            frame_bytes_max: usize::try_from(config.limits.frame_bytes).unwrap_or(usize::MAX),
        };
        let mut tasks = vec![
            tokio::spawn(server::serve(listener, doors, stopping.subscribe())),
            tokio::spawn(checkpoints::keep(
                member.clone(),
                log.clone(),
                config.limits.clone(),
                holds,
                stopping.subscribe(),
            )),
        ];
        let votes = core.view().members.iter().any(|(id, _, votes)| *id == stored.id && *votes);
        if fresh || !votes {
            let entry = Entry { stored: &stored, fresh, hooks: &hooks, identity: &identity };
            tasks.extend(entry.enter(&config, &core, &network, &env).await?);
        }
        Ok(Node { member, log, stopping, tasks })
    }

    /// The member's core, for an application that embeds the node.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Stops it: hands leadership over, closes the doors, ends consensus.
    pub async fn stop(self) {
        self.hand_over().await;
        self.stopping.send_replace(true);
        self.member.stop().await;
        for task in self.tasks {
            task.abort();
        }
        self.log.stop();
    }

    /// Hands leadership to another voter, if this node leads and there is one.
    async fn hand_over(&self) {
        let leadership = self.member.leadership();
        if leadership.open_term.is_none() {
            return;
        }
        let me = self.member.id();
        let other = leadership.members.iter().find(|(id, _, votes)| *id != me && *votes);
        let Some((to, _, _)) = other else { return };
        let handed = async {
            self.member.pause_writes().await;
            self.member.core().transfer(*to).await;
            let mut watch = self.member.watch_leadership();
            let mine = |now: &crate::member::Leadership| {
                now.leader.as_ref().is_some_and(|(id, _)| *id == me)
            };
            // An error means that the member is gone, and with it the leadership.
            let _ = watch.wait_for(|now| !mine(now)).await;
        };
        if tokio::time::timeout(HANDOVER_MAX, handed).await.is_err() {
            tracing::warn!(to, "leadership was not taken over in time; stopping all the same");
        }
    }

    /// Waits until the node cannot go on, and says why.
    pub async fn wait_fatal(&self) -> String {
        self.member.wait_fatal().await
    }
}

/// A node that belongs to no cluster must be told how to come to one.
const NO_PURPOSE: &str = "the data directory is new: say --bootstrap to found a cluster or --join \
                          ADDRESS to join one";

fn open_directory(config: &Config) -> Result<Arc<dyn Disk>, NodeError> {
    let path = config.data_dir.display();
    if !config.bootstrap && config.join.is_empty() && !config.data_dir.exists() {
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
            (None, false) if !config.join.is_empty() => (env.random.next_u64() >> 1).max(2),
            (None, false) => return wrong(NO_PURPOSE.to_owned()),
        };
        if !config.bootstrap && config.join.is_empty() {
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
        _ if config.address != known.address => wrong(format!(
            "this node is a member at {}, not {}: start it with --address {}",
            known.address, config.address, known.address
        )),
        _ => Ok(known),
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
async fn check_same_cluster(config: &Config, stored: &StoredIdentity) -> Result<(), NodeError> {
    if stored.cluster_id() == 0 || config.join.is_empty() {
        return Ok(());
    }
    let identity = Identity::new(stored.id, stored.cluster_id());
    let dialer: Arc<dyn Dialer> = Arc::new(AnyDialer);
    let asked: FuturesUnordered<_> = config
        .join
        .iter()
        .map(|address| connect(&dialer, &identity, 0, address, Channel::Requests))
        .collect();
    let wrong = asked.filter_map(|answer| async move {
        match answer {
            Err(ConnectError::WrongCluster { address }) => Some(address),
            _ => None,
        }
    });
    let mut wrong = std::pin::pin!(wrong);
    match tokio::time::timeout(JOIN_CHECK, wrong.next()).await {
        Ok(Some(address)) => Err(NodeError::Configuration(format!(
            "the data directory belongs to another cluster than {address}: choose a new one with \
             --dir, or leave --join out"
        ))),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// The log must reach up to what the checkpoint record covers, or somebody has removed it.
fn check_log_reaches(log: &Log, catalog: &Catalog) -> Result<(), NodeError> {
    let state = log.state();
    let Some(recorded) = catalog.recorded().last else { return Ok(()) };
    if state.last.max(state.purged).is_some_and(|last| last.index >= recorded.index) {
        return Ok(());
    }
    Err(NodeError::Failed(format!(
        "the log ends before entry {}, which the checkpoint covers: part of the data directory is \
         missing; restore it whole, or remove this member and join it anew",
        recorded.index
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
        run_ahead_transactions_max: usize::try_from(config.limits.run_ahead_transactions)
            .unwrap_or(usize::MAX),
        run_ahead_bytes_max: size(config.limits.run_ahead_bytes),
        transaction_bytes_max: config.limits.transaction_bytes,
        // A tenth is left for clocks that drift.
        lease: timeouts.lease() * 9 / 10,
        commit_timeout: COMMIT_TIMEOUT,
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

/// A node that does not vote yet.
struct Entry<'a> {
    stored: &'a StoredIdentity,
    /// It has neither log nor vote.
    fresh: bool,
    hooks: &'a Arc<Hooks>,
    identity: &'a Arc<Identity>,
}

impl Entry<'_> {
    /// Founds a cluster, or begins to join one.
    async fn enter(
        &self,
        config: &Config,
        core: &Core,
        network: &Network,
        env: &Env,
    ) -> Result<Option<JoinHandle<()>>, NodeError> {
        use crate::raft::peers::PeerHooks as _;
        if config.bootstrap && config.join.is_empty() {
            if self.identity.cluster() == 0 {
                let cluster = env.random.next_u64().max(1);
                self.hooks.join_cluster(cluster).map_err(failed("node.toml"))?;
                self.identity.join(cluster);
            }
            core.bootstrap(&config.address).await.map_err(NodeError::Failed)?;
            return Ok(None);
        }
        if config.join.is_empty() {
            return Ok(None);
        }
        let body = calls::encode_join(self.stored.id, self.fresh, &config.address);
        let (network, addresses) = (network.clone(), config.join.clone());
        Ok(Some(tokio::spawn(join(network, addresses, self.stored.id, body))))
    }
}

/// Asks the addresses in turn, and the leader that they name, until this node is a member.
async fn join(network: Network, addresses: Vec<String>, id: NodeId, body: Bytes) {
    let mut said = String::new();
    loop {
        let mut ask = addresses.clone();
        while let Some(next) = ask.pop() {
            let answer = network.call_address(&next, calls::JOIN, body.clone(), JOIN_TIMEOUT).await;
            let what = match answer.as_deref().map(calls::decode_joined) {
                Ok(Ok(Joined::Done)) => {
                    tracing::info!(node = id, "this node has joined the cluster");
                    return;
                }
                Ok(Ok(Joined::AskLeader(leader))) if !leader.is_empty() && leader != next => {
                    ask.push(leader);
                    continue;
                }
                Ok(Ok(Joined::AskLeader(_))) => "no leader is known there".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            if said != what {
                tracing::info!(at = next, %what, "waiting to join");
                said = what;
            }
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}
