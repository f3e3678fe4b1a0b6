//! One member's core: the write pipeline, reads at their levels, sessions and the lifecycle of
//! leadership. It has no doors: what clients and peers say arrives as calls.
//!
//! | file | what it is |
//! |---|---|
//! | [`write`] | the write slot of a database, its write executor |
//! | `propose` | the task that appends what was executed |
//! | `read` | quorum rounds and the lease |
//! | `room` | whether the disks have room for writes |
//! | `lead` | what happens when leadership comes and goes |
//! | [`membership`] | members that come, go and change, on somebody's word |
//! | [`roles`], `keeper` | which member should change its role next; what changes it |
//! | [`repair`] | a damaged copy: standing down, repairing it from another member |
//! | [`diagnosis`] | why there is no leader |
//! | `entry` | whether clients are let in |
//! | [`database`] | one database's slot, executor and pool of readers |
//! | [`session`] | one client's statements, transactions and answers |
//!
//! *Invariant*: nobody is answered, with success or error, from a version above applied; one task
//! alone appends to the log; a connection that has seen a dropped version is never used again.

pub mod database;
pub mod diagnosis;
mod entry;
mod keeper;
mod lead;
pub mod membership;
mod propose;
mod read;
pub mod repair;
pub mod roles;
mod room;
pub mod session;
pub mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::base::{DatabaseId, DatabaseName, Env, Fate, NodeId};
use crate::log::Log;
use crate::pages::{Catalog, PagesError, Store};
use crate::raft::lease::LeaseGuard;
use crate::raft::network::Network;
use crate::raft::{Command, Core, WriteFailure};
use crate::sqlite::{SqlError, TempSpace};

use database::Database;
pub use keeper::RoleOptions;
pub use lead::Leadership;
pub use session::{ReadLevel, Session};

/// The call by which a follower asks the leader for a read index; the answer is 8 bytes.
pub const CALL_READ_INDEX: u8 = 2;

/// How a member behaves.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// How long a writer waits for its turn.
    pub busy_timeout: Duration,
    /// An open transaction that is idle this long is rolled back.
    pub idle_transaction_max: Duration,
    /// ... and one that holds the write slot, after this long.
    pub idle_writer_max: Duration,
    /// A statement may run this long.
    pub statement_max: Option<Duration>,
    /// Unacknowledged transactions of a database.
    pub run_ahead_transactions_max: usize,
    /// Bytes of them.
    pub run_ahead_bytes_max: usize,
    /// Bytes of pages that one transaction may write.
    pub transaction_bytes_max: u64,
    /// How long the leader's lease lasts after a quorum's last answer, drift taken off.
    pub lease: Duration,
    /// How long a commit or a quorum round may take before its outcome is unknown.
    pub commit_timeout: Duration,
    /// How roles are kept.
    pub roles: RoleOptions,
    /// What this node shares with others that fail together with it.
    pub failure_domain: u64,
    /// The higher, the less this node is wanted as a voter.
    pub weight: u64,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// SQLite refused.
    #[error("{0}")]
    Sql(SqlError),
    /// This node does not lead; the request was certainly not executed.
    #[error("not leader")]
    NotLeader,
    /// Leadership was lost on the way; whether the request was executed is not known.
    #[error("leadership lost")]
    LeadershipLost,
    /// The write slot did not come free within the busy timeout.
    #[error("database is locked")]
    Busy,
    /// Parameters are left over.
    #[error("bind parameters")]
    BindParameters,
    /// A row came where none was expected.
    #[error("rows yielded when none expected for EXEC request")]
    RowsYielded,
    /// Text follows the one statement that was expected.
    #[error("nonempty statement tail")]
    NonemptyTail,
    /// There is no statement.
    #[error("empty statement")]
    EmptyStatement,
    /// The client asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A request id cannot go with this, or comes too late.
    #[error("{0}")]
    Once(&'static str),
    /// Instead of BEGIN: the transaction of this request id was committed before.
    #[error("the transaction of this request id was executed before")]
    AlreadyExecuted {
        /// `last_insert_rowid()` after it.
        last_insert_rowid: i64,
        /// `changes()` after it.
        changes: u64,
        /// What its client left to be told.
        outcome: Vec<u8>,
    },
    /// This member's copy of the database is damaged: it answers nothing from it.
    #[error("{0}; it is being repaired from another member: ask that one, or again")]
    Damaged(String),
    /// The node is stopping or broken.
    #[error("{0}")]
    Stopped(String),
}

impl Failure {
    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            Failure::NotLeader => Fate::RetryElsewhere,
            Failure::LeadershipLost => Fate::OutcomeUnknown,
            Failure::Busy => Fate::RetryHere,
            Failure::Damaged(_) | Failure::Stopped(_) => Fate::RetryElsewhere,
            _ => Fate::Reject,
        }
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Failure {
        match error.cause.as_deref() {
            Some(PagesError::NotLeader | PagesError::Rewound) => Failure::NotLeader,
            Some(damaged @ PagesError::Damaged { .. }) => Failure::Damaged(damaged.to_string()),
            _ if error.is_interrupted() => Failure::Interrupted,
            _ => Failure::Sql(error),
        }
    }
}

impl From<PagesError> for Failure {
    fn from(error: PagesError) -> Failure {
        match error {
            PagesError::NotLeader | PagesError::Rewound => Failure::NotLeader,
            PagesError::Damaged { .. } => Failure::Damaged(error.to_string()),
            other => Failure::Stopped(other.to_string()),
        }
    }
}

/// Waits until everything that the log was given is durable: an append of nothing is told so when
/// all before it is.
fn wait_durable(log: &Log) -> std::io::Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let told = move |result| {
        // Only this function waits for it.
        let _ = sender.send(result);
    };
    log.append(Vec::new(), Box::new(told));
    receiver.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
}

/// One member of the cluster.
pub struct Member {
    id: NodeId,
    env: Env,
    core: Core,
    log: Log,
    network: Network,
    catalog: Arc<Catalog>,
    options: MemberOptions,
    space: Arc<TempSpace>,
    databases: Mutex<BTreeMap<DatabaseId, Arc<Database>>>,
    /// Wakes the proposer.
    published: Arc<Notify>,
    leadership: watch::Sender<Leadership>,
    /// Wakes the task that follows the core.
    reconfirmation: Arc<Notify>,
    fatal: watch::Sender<Option<String>>,
    /// Leadership is being handed over: the slots stay closed.
    paused: AtomicBool,
    /// This disk, or on the leader that of a voter, has nothing beyond its reserve.
    short_of_room: AtomicBool,
    /// The node is being stopped on purpose.
    stopping: AtomicBool,
    reads: read::Rounds,
    repairs: repair::Repairs,
    diagnosis: diagnosis::Diagnosis,
    keeper: keeper::Keeper,
    entry: entry::Entry,
    weight: AtomicU64,
    /// Whether this node may take part in elections yet.
    lease: Arc<LeaseGuard>,
    /// The leader says that this node is no member any more.
    removed: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What a member is put together from.
pub struct MemberParts {
    /// This node's id.
    pub id: NodeId,
    /// What is ambient.
    pub env: Env,
    /// The consensus core.
    pub core: Core,
    /// The log under it.
    pub log: Log,
    /// The way to the other members.
    pub network: Network,
    /// All databases.
    pub catalog: Arc<Catalog>,
    /// Room for SQLite's temporary files.
    pub space: Arc<TempSpace>,
    /// How it behaves.
    pub options: MemberOptions,
    /// What the state machine tells when apply has closed a write slot.
    pub disturbed: Arc<Notify>,
    /// Whether this node may take part in elections yet.
    pub lease: Arc<LeaseGuard>,
}

impl Member {
    /// Puts a member together; its tasks run on the runtime that this is called from.
    pub fn start(parts: MemberParts) -> Arc<Member> {
        let MemberParts { id, env, core, log, network, catalog, space, .. } = parts;
        let MemberParts { options, disturbed, lease, .. } = parts;
        let weight = AtomicU64::new(options.weight);
        let member = Arc::new(Member {
            id,
            env,
            core,
            log,
            network,
            catalog,
            options,
            space,
            databases: Mutex::default(),
            published: Arc::new(Notify::new()),
            leadership: watch::Sender::new(Leadership::default()),
            reconfirmation: disturbed,
            fatal: watch::Sender::new(None),
            paused: AtomicBool::new(false),
            short_of_room: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            reads: read::Rounds::default(),
            repairs: repair::Repairs::default(),
            diagnosis: diagnosis::Diagnosis::default(),
            keeper: keeper::Keeper::default(),
            entry: entry::Entry::default(),
            weight,
            lease,
            removed: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        let [proposer, outcomes] = propose::spawn_proposer(&member);
        let recovery = read::spawn_recovery(&member);
        let room = room::spawn_room_keeper(&member);
        let reads = read::spawn_rounds(&member);
        let tasks = [lead::spawn(&member), proposer, outcomes, reads, recovery, room];
        member.tasks.lock().extend(tasks);
        let others = [repair::spawn(&member), keeper::spawn(&member), diagnosis::spawn(&member)];
        member.tasks.lock().extend(others);
        member
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What is ambient.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// How it behaves.
    pub fn options(&self) -> &MemberOptions {
        &self.options
    }

    /// The consensus core.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// All databases.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Who leads, as far as this node knows.
    pub fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    /// Follows who leads.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Waits until the consensus core has ended, and says why.
    pub async fn wait_fatal(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the member is gone".to_owned(),
        }
    }

    /// The term in which this node may execute writes; `NotLeader` while it may not.
    pub fn leading_term(&self) -> Result<u64, Failure> {
        self.leadership.borrow().open_term.ok_or(Failure::NotLeader)
    }

    /// The database of this name, if there is one here.
    pub fn find_database(&self, name: &DatabaseName) -> Option<Arc<Database>> {
        let store = self.catalog.by_name(name)?;
        let mut databases = self.databases.lock();
        if let Some(known) = databases.get(&store.id())
            && Arc::ptr_eq(known.store(), &store)
        {
            return Some(known.clone());
        }
        let (id, env) = (store.id(), &self.env);
        let database = Database::new(store, env, &self.options, &self.space, &self.published);
        if let Some(replaced) = databases.insert(id, database.clone()) {
            // Another copy has taken its store's place; its connections go with their sessions.
            let executor = env.executor;
            tokio::spawn(async move { executor.blocking(move || replaced.slot().stop()).await });
        }
        Some(database)
    }

    /// The database of this name on the leader, created by a replicated entry when there is none.
    pub async fn open_database(&self, name: &DatabaseName) -> Result<Arc<Database>, Failure> {
        let term = self.leading_term()?;
        if self.catalog.by_name(name).is_none() {
            let command = crate::raft::command::create(name, crate::pages::catalog::PAGE_SIZE);
            self.propose(command, term).await?;
        }
        let database = self.find_database(name).ok_or(Failure::NotLeader)?;
        database.store().open_new(term);
        match self.closed_again(std::slice::from_ref(database.store())) {
            true => Err(Failure::NotLeader),
            false => Ok(database),
        }
    }

    /// Ends the consensus core, on purpose.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.core.stop().await;
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        let databases = std::mem::take(&mut *self.databases.lock());
        let stop = move || databases.values().for_each(|database| database.slot().stop());
        self.env.executor.blocking(stop).await;
    }

    /// Stops executing writes for good and waits until what was executed is applied: leadership is
    /// about to be handed over. A transaction that commits meanwhile is told that it was not.
    pub async fn pause_writes(&self) {
        self.paused.store(true, Ordering::Release);
        self.leadership.send_modify(|now| now.open_term = None);
        let stores = self.catalog.all();
        self.closed_again(&stores);
        for store in stores {
            if store.damage().is_some() {
                // It applies nothing; what it executed ahead is dropped with the leadership.
                continue;
            }
            let head = store.head();
            let waiting = store.wait_applied(head.version, store.epoch());
            waiting.resolved().await;
        }
    }

    /// Closes the slots of `stores` where writes are paused: whoever opens slots asks afterwards, since
    /// the pause may have come in between.
    fn closed_again(&self, stores: &[Arc<Store>]) -> bool {
        let paused = self.paused.load(Ordering::Acquire);
        if paused {
            stores.iter().for_each(|store| store.close_slot());
        }
        paused
    }

    /// Takes back [`Member::pause_writes`]: where this member still leads, its slots open again.
    pub(crate) fn resume_writes(&self) {
        self.paused.store(false, Ordering::Release);
        self.reconfirmation.notify_one();
    }

    /// Folds what is applied into the base files now, and tells the core.
    pub async fn checkpoint(&self) -> Result<Option<u64>, Failure> {
        let (catalog, log) = (self.catalog.clone(), self.log.clone());
        let checkpoint = move || catalog.checkpoint_behind(&|| wait_durable(&log));
        let done = self.env.executor.blocking(checkpoint).await;
        let covered = match done {
            Some(Ok(covered)) => covered,
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Failure::Stopped("the node is stopping".to_owned())),
        };
        let index = covered.last.map(|last| last.index);
        self.log.set_purge_limit(index);
        self.core.note_checkpoint().await;
        Ok(index)
    }

    /// Appends a command that is not a delta and waits until it is applied.
    async fn propose(&self, command: Command, term: u64) -> Result<(), Failure> {
        let written = self.core.write(command, term).await;
        let applied = async { written?.applied().await };
        match tokio::time::timeout(self.options.commit_timeout, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(WriteFailure::NotAppended)) => Err(Failure::NotLeader),
            Ok(Err(WriteFailure::Unknown)) | Err(_) => Err(Failure::LeadershipLost),
        }
    }
}
