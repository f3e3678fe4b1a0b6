//! The clients of the simulation: workers that write and read through the driver, and what they
//! have seen, as histories for the checkers.
//!
//! *Invariant*: an operation stands in a history as done only if its answer came, and as refused
//! only where the driver promises that nothing of it was kept.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quire::base::{NodeId, Randomness as _, SplitMix};
use quire::driver::{Begin, Client, Database, DriverError, Options, ReadLevel, Role, Value};
use quire::params;
use tokio::time::{Instant, sleep};

use super::place::{Outside, address};
use super::trace::Trace;
use crate::check::{BankOp, Event, ListOp, Outcome, RegisterOp, SetOp};

/// The database that the workers use.
pub const DATABASE: &str = "shop";

const KEYS: u64 = 3;
/// How many accounts there are.
pub const ACCOUNTS: u64 = 4;
/// What each has at first.
pub const BALANCE: i64 = 100;

/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(5);

/// A worker rests this long at most between two operations.
const REST_MS: u64 = 300;

const ROLES: [Role; 3] = [Role::Voter, Role::Standby, Role::Spare];

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS registers(key INTEGER PRIMARY KEY, value INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS lists(id INTEGER PRIMARY KEY, key INTEGER, value INTEGER);
    CREATE TABLE IF NOT EXISTS accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS elements(id INTEGER PRIMARY KEY, pad BLOB);
    CREATE TABLE IF NOT EXISTS counters(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    INSERT OR IGNORE INTO registers VALUES(0, 0), (1, 0), (2, 0);
    INSERT OR IGNORE INTO accounts VALUES(0, 100), (1, 100), (2, 100), (3, 100);";

/// What all clients have seen.
#[derive(Default)]
pub struct Histories {
    /// Operations on the registers.
    pub registers: Vec<Event<RegisterOp>>,
    /// Transactions on the lists.
    pub lists: Vec<Event<Vec<ListOp>>>,
    /// Transfers, and reads of all balances.
    pub bank: Vec<Event<BankOp>>,
    /// Additions to the set, and reads of it.
    pub set: Vec<Event<SetOp>>,
    /// Additions to a counter of its own each, with a request id.
    pub once: Vec<Event<i64>>,
    /// Elements of the set that a reader of whatever level on whatever member has seen.
    pub seen: BTreeSet<i64>,
    /// The counters at the end.
    pub counters: Vec<(i64, i64)>,
}

impl Histories {
    /// How many operations were acknowledged, and how many there were.
    pub fn counts(&self) -> (u64, u64) {
        fn of<Op>(events: &[Event<Op>]) -> (u64, u64) {
            let done = events.iter().filter(|event| event.outcome == Outcome::Done).count();
            (done as u64, events.len() as u64)
        }
        let all =
            [of(&self.registers), of(&self.lists), of(&self.bank), of(&self.set), of(&self.once)];
        all.iter().fold((0, 0), |(done, sum), (d, s)| (done + d, sum + s))
    }
}

/// What an operator asks of the cluster; members are named by their ids.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// Another leader.
    Transfer(NodeId),
    /// Another role: 0 voter, 1 stand-by, 2 spare.
    Assign(NodeId, u64),
    /// A member is to be none.
    Remove(NodeId),
}

impl Ask {
    /// What it is counted as.
    pub fn kind(&self) -> &'static str {
        match self {
            Ask::Transfer(_) => "transfer",
            Ask::Assign(..) => "assignment",
            Ask::Remove(_) => "removal",
        }
    }
}

/// What the controller tells the clients, and they it.
#[derive(Default)]
pub struct Shared {
    /// What the operator is to ask.
    pub asked: RefCell<VecDeque<Ask>>,
    /// Members that the cluster was asked to remove, and that it has.
    pub removed: RefCell<BTreeSet<NodeId>>,
    /// The tables are there.
    pub ready: Cell<bool>,
    /// All faults are healed; set once.
    pub healed: Cell<bool>,
    /// How many workers have had an answer since.
    pub recovered: Cell<usize>,
    /// How many workers there are.
    pub workers: Cell<usize>,
    /// The workers are to end, and the last reads to be made.
    pub stop: Cell<bool>,
    /// What was seen.
    pub histories: RefCell<Histories>,
}

struct Load {
    seed: u64,
    nodes: NodeId,
    begun: Instant,
    shared: Rc<Shared>,
    trace: Rc<Trace>,
    next: Cell<i64>,
    clients: Cell<u32>,
}

/// One worker: its way to the cluster, its dice, and its name in the histories.
struct Worker {
    load: Rc<Load>,
    cluster: Client,
    shop: Database,
    random: SplitMix,
    client: Cell<u32>,
    recovered: Cell<bool>,
}

/// The software of the clients' host: everything from the tables to the last reads.
pub async fn clients(
    seed: u64,
    nodes: NodeId,
    shared: Rc<Shared>,
    trace: Rc<Trace>,
) -> turmoil::Result {
    let load = Rc::new(Load {
        seed,
        nodes,
        begun: Instant::now(),
        shared: shared.clone(),
        trace,
        next: Cell::new(1),
        clients: Cell::new(0),
    });
    let first = load.worker(0, false)?;
    while let Err(error) = first.shop.execute_batch(TABLES).await {
        load.trace.note(|| format!("no tables yet: {error}"));
        sleep(Duration::from_millis(200)).await;
    }
    shared.ready.set(true);
    let operator = load.worker(100, false)?;
    let operating = tokio::task::spawn_local(async move { operator.operate().await });
    let mut tasks = Vec::new();
    for (number, kind) in [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6].into_iter().enumerate() {
        let worker = load.worker(number as u64 + 1, kind == 4)?;
        tasks.push(tokio::task::spawn_local(worker.run(kind)));
    }
    shared.workers.set(tasks.len());
    for task in tasks {
        task.await?;
    }
    operating.abort();
    load.last_reads(&first).await;
    Ok(())
}

impl Load {
    fn worker(self: &Rc<Load>, number: u64, request_ids: bool) -> Result<Worker, DriverError> {
        let random = |salt: u64| SplitMix::new(self.seed ^ (number << 8 | salt));
        let options = Options {
            dial: Arc::new(Outside),
            random: Arc::new(random(1)),
            request_ids,
            connections_max: 4,
            ..Options::default()
        };
        let client = Client::new((1..=self.nodes).map(address), options)?;
        let shop = client.database(DATABASE).timeout(CALL_MAX);
        let worker = Worker {
            load: self.clone(),
            cluster: client,
            shop,
            random: random(2),
            client: Cell::new(self.name()),
            recovered: Cell::new(false),
        };
        Ok(worker)
    }

    fn name(&self) -> u32 {
        self.clients.set(self.clients.get() + 1);
        self.clients.get()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A value that nobody else writes.
    fn fresh(&self) -> i64 {
        let value = self.next.get();
        self.next.set(value + 1);
        value
    }

    /// What there is when all is over.
    async fn last_reads(&self, worker: &Worker) {
        for key in 0..KEYS {
            while !worker.read_register(key).await {}
        }
        let reads = (0..KEYS).map(|key| ListOp::Read { key: key as u32, list: Vec::new() });
        let reads: Vec<ListOp> = reads.collect();
        while worker.list(reads.clone()).await != Outcome::Done {}
        while !worker.read_bank().await {}
        while !worker.read_set(ReadLevel::Linearizable).await {}
        let counters = loop {
            let sql = "SELECT id, n FROM counters";
            if let Ok(rows) = worker.shop.query_as::<(i64, i64)>(sql, params![]).await {
                break rows;
            }
        };
        self.shared.histories.borrow_mut().counters = counters;
    }
}

impl Worker {
    fn below(&self, bound: u64) -> u64 {
        self.random.next_u64() % bound
    }

    async fn run(self, kind: u64) {
        while !self.load.shared.stop.get() {
            let done = match kind {
                0 => self.register().await,
                1 => self.lists().await == Outcome::Done,
                2 => self.bank().await,
                3 => self.set().await,
                4 => self.once().await,
                5 => self.look().await,
                _ => self.read_register(self.below(KEYS)).await,
            };
            if done && self.load.shared.healed.get() && !self.recovered.replace(true) {
                let recovered = &self.load.shared.recovered;
                recovered.set(recovered.get() + 1);
            }
            sleep(Duration::from_millis(self.below(REST_MS))).await;
        }
    }

    /// Does what an operator is asked to do: a removal until it is done, all else once.
    async fn operate(&self) {
        loop {
            sleep(Duration::from_millis(100)).await;
            let Some(ask) = self.load.shared.asked.borrow_mut().pop_front() else { continue };
            let done = match ask {
                Ask::Transfer(to) => self.cluster.transfer(Some(to)).await,
                Ask::Assign(id, role) => self.cluster.assign(id, ROLES[role as usize]).await,
                Ask::Remove(id) => self.cluster.remove(id).await,
            };
            self.load.trace.note(|| format!("{ask:?}: {done:?}"));
            match (ask, done) {
                (Ask::Remove(id), Ok(())) => {
                    self.load.shared.removed.borrow_mut().insert(id);
                }
                (Ask::Remove(_), Err(_)) => self.load.shared.asked.borrow_mut().push_back(ask),
                _ => {}
            }
        }
    }

    /// Writes an operation down; a client whose operation is unknown is never heard of again.
    fn event<Op: std::fmt::Debug>(&self, called: u64, outcome: Outcome, op: Op) -> Event<Op> {
        let client = self.client.get();
        self.load.trace.note(|| format!("client {client}: {outcome:?} {op:?}"));
        if outcome == Outcome::Unknown {
            self.client.set(self.load.name());
        }
        Event { client, called, returned: self.load.now(), outcome, op }
    }

    async fn register(&self) -> bool {
        let key = self.below(KEYS);
        match self.below(3) {
            0 => self.read_register(key).await,
            1 => self.write_register(key).await,
            _ => self.swap_register(key).await,
        }
    }

    async fn read_register(&self, key: u64) -> bool {
        let called = self.load.now();
        let sql = "SELECT value FROM registers WHERE key = ?";
        let read = self.shop.query_as::<(i64,)>(sql, params![key as i64]).await;
        let Some(value) = read.ok().and_then(|rows| rows.first().map(|(value,)| *value)) else {
            return false;
        };
        let event = self.event(called, Outcome::Done, RegisterOp::Read { key: key as u32, value });
        self.load.shared.histories.borrow_mut().registers.push(event);
        true
    }

    async fn write_register(&self, key: u64) -> bool {
        let (called, value) = (self.load.now(), self.load.fresh());
        let sql = "UPDATE registers SET value = ? WHERE key = ?";
        let outcome = outcome(&self.shop.execute(sql, params![value, key as i64]).await);
        let event = self.event(called, outcome, RegisterOp::Write { key: key as u32, value });
        self.load.shared.histories.borrow_mut().registers.push(event);
        outcome == Outcome::Done
    }

    async fn swap_register(&self, key: u64) -> bool {
        let sql = "SELECT value FROM registers WHERE key = ?";
        let shop = self.shop.clone().read_level(ReadLevel::Local);
        let read = shop.query_as::<(i64,)>(sql, params![key as i64]).await;
        let Some(from) = read.ok().and_then(|rows| rows.first().map(|(value,)| *value)) else {
            return false;
        };
        let (called, to) = (self.load.now(), self.load.fresh());
        let sql = "UPDATE registers SET value = ? WHERE key = ? AND value = ?";
        let done = self.shop.execute(sql, params![to, key as i64, from]).await;
        let outcome = outcome(&done);
        let swapped = done.is_ok_and(|done| done.rows_affected == 1);
        let op = RegisterOp::Swap { key: key as u32, from, to, swapped };
        let event = self.event(called, outcome, op);
        self.load.shared.histories.borrow_mut().registers.push(event);
        outcome == Outcome::Done
    }

    async fn lists(&self) -> Outcome {
        let ops = (0..1 + self.below(4)).map(|_| {
            let key = self.below(KEYS) as u32;
            match self.below(2) {
                0 => ListOp::Append { key, value: self.load.fresh() },
                _ => ListOp::Read { key, list: Vec::new() },
            }
        });
        self.list(ops.collect()).await
    }

    async fn list(&self, mut ops: Vec<ListOp>) -> Outcome {
        let called = self.load.now();
        let outcome = outcome(&self.list_transaction(&mut ops).await);
        let event = self.event(called, outcome, ops);
        self.load.shared.histories.borrow_mut().lists.push(event);
        outcome
    }

    async fn list_transaction(&self, ops: &mut [ListOp]) -> Result<(), DriverError> {
        let only_reads = ops.iter().all(|op| matches!(op, ListOp::Read { .. }));
        let begin = if only_reads { Begin::Deferred } else { Begin::Immediate };
        let mut transaction = self.shop.begin_with(begin).await?;
        for op in ops {
            match op {
                ListOp::Append { key, value } => {
                    let sql = "INSERT INTO lists(key, value) VALUES(?, ?)";
                    transaction.execute(sql, params![i64::from(*key), *value]).await?;
                }
                ListOp::Read { key, list } => {
                    let sql = "SELECT value FROM lists WHERE key = ? ORDER BY id";
                    let rows =
                        transaction.query_as::<(i64,)>(sql, params![i64::from(*key)]).await?;
                    *list = rows.into_iter().map(|(value,)| value).collect();
                }
            }
            sleep(Duration::from_millis(self.below(20))).await;
        }
        transaction.commit().await
    }

    async fn bank(&self) -> bool {
        if self.below(3) == 0 {
            return self.read_bank().await;
        }
        let (from, amount) = (self.below(ACCOUNTS), 1 + self.below(20) as i64);
        let to = (from + 1 + self.below(ACCOUNTS - 1)) % ACCOUNTS;
        let called = self.load.now();
        let outcome = match self.transfer(from as i64, to as i64, amount).await {
            Ok(true) => Outcome::Done,
            Ok(false) => Outcome::Refused,
            Err(error) => outcome(&Err::<(), _>(error)),
        };
        let op = BankOp::Transfer { from: from as u32, to: to as u32, amount };
        let event = self.event(called, outcome, op);
        self.load.shared.histories.borrow_mut().bank.push(event);
        outcome == Outcome::Done
    }

    async fn transfer(&self, from: i64, to: i64, amount: i64) -> Result<bool, DriverError> {
        let mut transaction = self.shop.begin_with(Begin::Immediate).await?;
        let sql = "SELECT balance FROM accounts WHERE id = ?";
        let has = transaction.query_as::<(i64,)>(sql, params![from]).await?;
        if has.first().is_none_or(|(has,)| *has < amount) {
            transaction.rollback().await?;
            return Ok(false);
        }
        sleep(Duration::from_millis(self.below(20))).await;
        let sql = "UPDATE accounts SET balance = balance + ? WHERE id = ?";
        transaction.execute(sql, params![-amount, from]).await?;
        transaction.execute(sql, params![amount, to]).await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn read_bank(&self) -> bool {
        let called = self.load.now();
        let sql = "SELECT balance FROM accounts ORDER BY id";
        let Ok(rows) = self.shop.query_as::<(i64,)>(sql, params![]).await else { return false };
        let balances = rows.into_iter().map(|(balance,)| balance).collect();
        let event = self.event(called, Outcome::Done, BankOp::Read { balances });
        self.load.shared.histories.borrow_mut().bank.push(event);
        true
    }

    async fn set(&self) -> bool {
        if self.below(10) == 0 {
            return self.read_set(ReadLevel::Linearizable).await;
        }
        let (called, element) = (self.load.now(), self.load.fresh());
        let pad = vec![0x5A; self.below(3000) as usize];
        let sql = "INSERT INTO elements VALUES(?, ?)";
        let done = self.shop.execute(sql, params![element, Value::Blob(pad)]).await;
        let outcome = outcome(&done);
        let event = self.event(called, outcome, SetOp::Add { element });
        self.load.shared.histories.borrow_mut().set.push(event);
        outcome == Outcome::Done
    }

    async fn read_set(&self, level: ReadLevel) -> bool {
        let called = self.load.now();
        let shop = self.shop.clone().read_level(level);
        let Ok(elements) = elements(&shop).await else { return false };
        let event = self.event(called, Outcome::Done, SetOp::Read { elements });
        self.load.shared.histories.borrow_mut().set.push(event);
        true
    }

    async fn once(&self) -> bool {
        let (called, id) = (self.load.now(), self.load.fresh());
        let sql = "INSERT INTO counters VALUES(?, 1) ON CONFLICT(id) DO UPDATE SET n = n + 1";
        let outcome = outcome(&self.shop.execute(sql, params![id]).await);
        let event = self.event(called, outcome, id);
        self.load.shared.histories.borrow_mut().once.push(event);
        outcome == Outcome::Done
    }

    /// Reads on any member whatever it has applied.
    async fn look(&self) -> bool {
        let at = address(1 + self.below(self.load.nodes));
        let options = Options {
            dial: Arc::new(Outside),
            random: Arc::new(SplitMix::new(self.random.next_u64())),
            ..Options::default()
        };
        let client = Client::new([at.clone()], options).and_then(|client| client.at(&at));
        let Ok(client) = client else { return false };
        let shop = client.database(DATABASE).timeout(CALL_MAX).read_level(ReadLevel::Local);
        let Ok(elements) = elements(&shop).await else { return false };
        self.load.shared.histories.borrow_mut().seen.extend(elements);
        true
    }
}

async fn elements(shop: &Database) -> Result<Vec<i64>, DriverError> {
    let rows = shop.query_as::<(i64,)>("SELECT id FROM elements", params![]).await?;
    Ok(rows.into_iter().map(|(element,)| element).collect())
}

/// What the driver promises of a call.
fn outcome<T>(result: &Result<T, DriverError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(DriverError::OutcomeUnknown { .. }) => Outcome::Unknown,
        Err(_) => Outcome::Refused,
    }
}
