//! A run of transactions on nodes whose disks record, the ledger of it, and whether a node that was
//! started afterwards holds what the ledger says that it must.
//!
//! *Invariant*: the ledger notes an acknowledgement when it has arrived and a beginning before it
//! is sent, each by the count of calls that all disks share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use parking_lot::Mutex;
use quire::base::{DatabaseName, NodeId};
use quire::disk::FakeDisk;
use quire::driver::{Client, DriverError};
use quire::member::{Member, ReadLevel, Session};
use quire::node::Config;
use quire::sqlite::Cancel;
use quire::wire::Value;
use tokio::time::sleep;

use super::Dice;
use super::ops::{Content, Digest, Op, Script, TABLES, VERSION, rows_of};
use crate::memory::{Trio, address, until};

/// The databases whose transactions come one after the other.
pub const CHAINS: [&str; 2] = ["shop", "till"];

/// The database with many writers at a time.
pub const SET: &str = "set";

const WRITERS: u64 = 3;

/// Rows of each transaction on the set.
const PARTS: u64 = 3;

/// Small, so that segments, checkpoints and purges are many.
pub fn configure(config: &mut Config) {
    config.limits.log_segment_bytes = 64 << 10;
    config.limits.log_keep_bytes = 24 << 10;
    config.limits.overlay_bytes = 128 << 10;
}

/// Nodes on these disks, which do not run yet.
pub fn nodes(disks: impl IntoIterator<Item = (NodeId, FakeDisk)>) -> Trio {
    let mut nodes = Trio::on(disks.into_iter().collect());
    nodes.configure = configure;
    nodes
}

/// The same, for nodes that know who they are from their directories alone.
pub fn nodes_again(disks: impl IntoIterator<Item = (NodeId, FakeDisk)>) -> Trio {
    let mut nodes = nodes(disks);
    nodes.configure = |config| {
        configure(config);
        (config.id, config.bootstrap, config.join) = (None, false, Vec::new());
    };
    nodes
}

/// Disks that record and share a count of their calls.
pub fn disks(count: u64) -> (Arc<AtomicU64>, BTreeMap<NodeId, FakeDisk>) {
    let ticks = Arc::new(AtomicU64::new(0));
    let disks = (1..=count).map(|id| (id, FakeDisk::counted_by(ticks.clone()))).collect();
    (ticks, disks)
}

/// A way to nodes that may not be whole: one attempt takes no longer than the others' patience.
pub fn client(nodes: &Trio) -> Result<Client> {
    Ok(Client::new(nodes.disks.keys().copied().map(address), nodes.options())?)
}

/// What became of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was acknowledged.
    Acknowledged,
    /// It was certainly not executed.
    Refused,
    /// Nobody can tell.
    Unknown,
}

fn end_of<T>(result: &Result<T, DriverError>) -> End {
    match result {
        Ok(_) => End::Acknowledged,
        Err(DriverError::NoLeader { .. }) => End::Refused,
        Err(DriverError::Sqlite { .. } | DriverError::TransactionLost { .. }) => End::Unknown,
        Err(_) => End::Unknown,
    }
}

/// When a transaction was sent, and when it was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Noted {
    begun: u64,
    acknowledged: Option<u64>,
}

/// What was attempted and what was acknowledged.
pub struct Ledger {
    ticks: Arc<AtomicU64>,
    /// The transactions of each of [`CHAINS`].
    pub scripts: Vec<Script>,
    chains: Mutex<Vec<Vec<Noted>>>,
    set: Mutex<Vec<Noted>>,
}

/// How much must, and may, be there.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Of each chain, so many transactions at least and at most.
    pub chains: Vec<(usize, usize)>,
    /// Of the set, these transactions for certain, and none from this number on.
    pub set: (Vec<u64>, u64),
}

impl Ledger {
    /// A ledger of transactions drawn from `seed`, `count` on each chain.
    pub fn new(ticks: Arc<AtomicU64>, seed: u64, count: usize, large: usize) -> Result<Ledger> {
        let scripts: Result<Vec<Script>> = (0..CHAINS.len())
            .map(|n| Script::new(seed + n as u64, count, if n == 0 { large } else { 0 }))
            .collect();
        let chains = Mutex::new(vec![Vec::new(); CHAINS.len()]);
        Ok(Ledger { ticks, scripts: scripts?, chains, set: Mutex::default() })
    }

    /// Now, in calls to the disks.
    pub fn now(&self) -> u64 {
        self.ticks.load(Ordering::SeqCst)
    }

    /// How many transactions were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        let chains = self.chains.lock();
        let all = chains.iter().flatten().chain(&*self.set.lock()).copied().collect::<Vec<_>>();
        all.iter().filter(|noted| noted.acknowledged.is_some()).count() as u64
    }

    /// What must be there if only the first `tick` calls were made.
    pub fn at(&self, tick: u64) -> Bounds {
        let by = |noted: &&Noted| noted.acknowledged.is_some_and(|at| at <= tick);
        let chains = self.chains.lock();
        let bounds = chains.iter().map(|chain| {
            let acknowledged = chain.iter().rposition(|noted| by(&noted)).map_or(0, |at| at + 1);
            // One that changed nothing made no call.
            let begun = chain.iter().filter(|noted| noted.begun < tick).count();
            (acknowledged, begun.max(acknowledged))
        });
        let set = self.set.lock();
        let acknowledged = (0..).zip(&*set).filter(|(_, noted)| by(noted)).map(|(tx, _)| tx);
        Bounds { chains: bounds.collect(), set: (acknowledged.collect(), set.len() as u64) }
    }

    /// Nothing must be there, and all that was attempted may.
    pub fn at_least_nothing(&self) -> Bounds {
        let all = self.at(u64::MAX);
        let chains = all.chains.into_iter().map(|(_, most)| (0, most)).collect();
        Bounds { chains, set: (Vec::new(), all.set.1) }
    }

    /// What must be there after all of it.
    pub fn at_end(&self) -> Bounds {
        self.at(u64::MAX)
    }
}

/// The transactions of one phase, several databases and writers at a time.
pub async fn phase(
    client: &Client,
    ledger: &Ledger,
    seed: u64,
    upto: usize,
    set: u64,
) -> Result<()> {
    let pause = Dice::new(seed ^ 0x5e7);
    let chains = (0..CHAINS.len()).map(|at| chain(client, ledger, at, upto, &pause));
    let writers = (0..WRITERS).map(|_| set_writer(client, ledger, set, &pause));
    let chains = futures::future::try_join_all(chains);
    let writers = futures::future::try_join_all(writers);
    futures::future::try_join(chains, writers).await?;
    Ok(())
}

async fn chain(
    client: &Client,
    ledger: &Ledger,
    at: usize,
    upto: usize,
    pause: &Dice,
) -> Result<()> {
    let database = client.database(CHAINS[at]);
    loop {
        let number = ledger.chains.lock()[at].len();
        if number >= upto.min(ledger.scripts[at].ops.len()) {
            return Ok(());
        }
        let op = &ledger.scripts[at].ops[number];
        ledger.chains.lock()[at].push(Noted { begun: ledger.now(), acknowledged: None });
        let done = execute(&database, op).await;
        done.with_context(|| format!("{} {number}", CHAINS[at]))?;
        ledger.chains.lock()[at][number].acknowledged = Some(ledger.now());
        rest(pause).await;
    }
}

/// Executes the next transaction of a chain on which one may fail: from the first on that was not
/// acknowledged nothing more is sent, and it may be there or not.
pub async fn chain_step(client: &Client, ledger: &Ledger, at: usize) -> Result<(), DriverError> {
    let number = {
        let mut chains = ledger.chains.lock();
        let number = chains[at].len();
        let broken = chains[at].last().is_some_and(|noted| noted.acknowledged.is_none());
        if broken || number == ledger.scripts[at].ops.len() {
            return Ok(());
        }
        chains[at].push(Noted { begun: ledger.now(), acknowledged: None });
        number
    };
    execute(&client.database(CHAINS[at]), &ledger.scripts[at].ops[number]).await?;
    ledger.chains.lock()[at][number].acknowledged = Some(ledger.now());
    Ok(())
}

/// Executes one transaction.
pub async fn execute(database: &quire::driver::Database, op: &Op) -> Result<(), DriverError> {
    match op {
        Op::One((sql, params)) => database.execute(sql, params.clone()).await.map(drop),
        Op::Several(statements) => {
            let mut transaction = database.begin().await?;
            for (sql, params) in statements {
                transaction.execute(sql, params.clone()).await?;
            }
            transaction.commit().await
        }
    }
}

async fn rest(pause: &Dice) {
    match pause.below(8) {
        0 => sleep(Duration::from_millis(20 + pause.below(400))).await,
        1..4 => sleep(Duration::from_millis(1)).await,
        _ => {}
    }
}

/// Makes the set's tables.
pub async fn make_set(client: &Client) -> Result<(), DriverError> {
    let set = client.database(SET);
    let table = "CREATE TABLE IF NOT EXISTS s(tx INTEGER, part INTEGER, body BLOB, \
                 PRIMARY KEY(tx, part)); \
                 CREATE TABLE IF NOT EXISTS total(n INTEGER); \
                 INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total); \
                 CREATE TRIGGER IF NOT EXISTS adds AFTER INSERT ON s \
                 BEGIN UPDATE total SET n = n + 1; END";
    set.execute_batch(table).await.map(drop)
}

async fn set_writer(client: &Client, ledger: &Ledger, upto: u64, pause: &Dice) -> Result<()> {
    while (ledger.set.lock().len() as u64) < upto {
        let (_, end) = add_to_set(client, ledger).await;
        end?;
        rest(pause).await;
    }
    Ok(())
}

/// Adds the next transaction to the set; notes it if it is acknowledged.
pub async fn add_to_set(client: &Client, ledger: &Ledger) -> (End, Result<(), DriverError>) {
    let tx = {
        let mut set = ledger.set.lock();
        set.push(Noted { begun: ledger.now(), acknowledged: None });
        set.len() as u64 - 1
    };
    let sql = "INSERT INTO s VALUES(?, 0, ?), (?, 1, ?), (?, 2, ?)";
    let params = (0..PARTS).flat_map(|part| {
        let body = Dice::nth(tx, part).bytes(40 + tx * 37 % 700);
        [Value::Integer(tx as i64), Value::Blob(body)]
    });
    let result = client.database(SET).execute(sql, params.collect()).await.map(drop);
    if result.is_ok() {
        ledger.set.lock()[tx as usize].acknowledged = Some(ledger.now());
    }
    (end_of(&result), result)
}

/// Something is there that must not be, or is not there that must.
#[derive(Debug)]
struct Wrong(String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// Whether an error of a comparison says that an answer was wrong; else there was none.
pub fn is_wrong(error: &anyhow::Error) -> bool {
    error.is::<Wrong>()
}

/// Fails as wrong unless it is so.
macro_rules! must {
    ($so:expr, $($said:tt)*) => {
        if !$so {
            return Err(Wrong(format!($($said)*)).into());
        }
    };
}

/// Where reads of everything come from.
pub struct Reader<'a> {
    member: &'a Arc<Member>,
    level: ReadLevel,
}

/// What a read of everything gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It was answered, and right: so many transactions are there.
    Right(u64),
    /// It was refused with an error that says that the copy is damaged.
    Damaged,
    /// There is no such database.
    Absent,
}

impl<'a> Reader<'a> {
    /// Reads as a client that asks the leader.
    pub fn linearizable(member: &'a Arc<Member>) -> Reader<'a> {
        Reader { member, level: ReadLevel::Linearizable }
    }

    /// Reads what this member has applied.
    pub fn local(member: &'a Arc<Member>) -> Reader<'a> {
        Reader { member, level: ReadLevel::Local { staleness_max: None } }
    }

    async fn query(&self, session: &mut Session, sql: &str, digest: Digest) -> Result<Digest> {
        let (ran, digest) = session.query(sql, vec![], &Cancel::default(), digest).await;
        ran.with_context(|| sql.to_owned())?;
        digest.ok_or_else(|| anyhow!("the rows went nowhere"))
    }

    fn session(&self, name: &str) -> Result<Option<Session>> {
        let name = DatabaseName::new(name).map_err(|_| anyhow!("a name"))?;
        let Some(database) = self.member.find_database(&name) else { return Ok(None) };
        let mut session = Session::new(self.member.clone(), database);
        session.set_level(self.level);
        Ok(Some(session))
    }

    /// Everything in a database.
    pub async fn content(&self, name: &str) -> Result<Content> {
        let Some(mut session) = self.session(name)? else { return Ok(None) };
        let session = &mut session;
        let mut digest = self.query(session, TABLES, Digest::default()).await?;
        if digest.rows == 0 {
            // Nothing was ever committed to it.
            return Ok(None);
        }
        digest = self.query(session, VERSION, digest).await?;
        for table in digest.tables.clone() {
            digest = self.query(session, &rows_of(&table), digest).await?;
        }
        Ok(Some(digest.finish()))
    }

    /// The transactions that are in the set, each whole and as it was sent.
    pub async fn set(&self) -> Result<Option<Vec<u64>>> {
        let Some(mut session) = self.session(SET)? else { return Ok(None) };
        let tables = self.query(&mut session, TABLES, Digest::default()).await?;
        if tables.tables.len() < 2 {
            return Ok(None);
        }
        let sql = "SELECT tx, part, body FROM s ORDER BY tx, part";
        let rows = self.rows(&mut session, sql).await?;
        let mut found = Vec::new();
        for parts in rows.chunks(PARTS as usize) {
            for (part, row) in (0..).zip(parts) {
                let (tx, number, body) = row;
                let right = Dice::nth(*tx as u64, part).bytes(40 + *tx as u64 * 37 % 700);
                must!(*number == part as i64 && *body == right, "half of transaction {tx}");
            }
            must!(parts.len() as u64 == PARTS, "a part of a transaction");
            found.push(parts[0].0 as u64);
        }
        let total = self.rows(&mut session, "SELECT n, 0, x'' FROM total").await?;
        if let Some((total, ..)) = total.first() {
            must!(*total == rows.len() as i64, "the trigger counted {total} of {}", rows.len());
        }
        Ok(Some(found))
    }

    async fn rows(&self, session: &mut Session, sql: &str) -> Result<Vec<(i64, i64, Vec<u8>)>> {
        let rows = Rows::default();
        let (ran, rows) = session.query(sql, vec![], &Cancel::default(), rows).await;
        ran.with_context(|| sql.to_owned())?;
        Ok(rows.map(|rows| rows.0).unwrap_or_default())
    }

    /// Reads everything and compares it with the ledger. What was found of each database, chains
    /// first; an error where something is there that must not be, or is not there that must.
    pub async fn compare(&self, ledger: &Ledger, bounds: &Bounds) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for (at, name) in CHAINS.iter().enumerate() {
            let content = match self.content(name).await {
                Ok(content) => content,
                Err(error) if is_wrong(&error) => return Err(error),
                Err(error) => {
                    found.push(damaged(name, error)?);
                    continue;
                }
            };
            let (least, most) = bounds.chains[at];
            let Some(prefix) = ledger.scripts[at].prefix(content, most) else {
                let between = format!("between {least} and {most} transactions");
                return Err(Wrong(format!("{name} is what it never was ({between})")).into());
            };
            must!(prefix >= least, "{name}: {least} acknowledged, and lost from {prefix} on");
            found.push(content.map_or(Found::Absent, |_| Found::Right(prefix as u64)));
        }
        let set = match self.set().await {
            Ok(set) => set,
            Err(error) if is_wrong(&error) => return Err(error),
            Err(error) => {
                found.push(damaged(SET, error)?);
                return Ok(found);
            }
        };
        let (must, below) = &bounds.set;
        let there = set.clone().unwrap_or_default();
        let lost: Vec<&u64> = must.iter().filter(|tx| there.binary_search(tx).is_err()).collect();
        must!(lost.is_empty(), "{SET}: acknowledged, and lost: {lost:?}");
        must!(there.iter().all(|tx| tx < below), "{SET}: one that was never attempted");
        found.push(set.map_or(Found::Absent, |set| Found::Right(set.len() as u64)));
        Ok(found)
    }

    /// SQLite and the digests find nothing wrong in any database.
    pub async fn check_sound(&self) -> Result<()> {
        for store in self.member.catalog().all() {
            let name = store.name().to_string();
            let store_verified = store.verify();
            store_verified.with_context(|| format!("the deep digest of {name}"))?;
            let Some(mut session) = self.session(&name)? else { continue };
            if store.applied().page_count == 0 {
                continue;
            }
            let sql = "SELECT 0, 0, CAST(integrity_check AS BLOB) FROM pragma_integrity_check";
            let verdict = self.rows(&mut session, sql).await?;
            must!(verdict == [(0, 0, b"ok".to_vec())], "{name}: {verdict:?}");
        }
        Ok(())
    }
}

/// A refusal to read: only one that says that the copy is damaged will do.
fn damaged(name: &str, error: anyhow::Error) -> Result<Found> {
    let said = format!("{error:#}");
    ensure!(said.contains("damaged"), "{name} is refused without saying why: {said}");
    Ok(Found::Damaged)
}

/// Rows of two integers and some bytes.
#[derive(Default)]
struct Rows(Vec<(i64, i64, Vec<u8>)>);

impl quire::sqlite::RowSink for Rows {
    fn columns(&mut self, _: quire::sqlite::Columns<'_>) -> Result<(), quire::sqlite::SqlError> {
        Ok(())
    }

    fn row(
        &mut self,
        values: &[rusqlite::types::ValueRef<'_>],
    ) -> Result<(), quire::sqlite::SqlError> {
        let integer = |at: usize| values[at].as_i64().unwrap_or(i64::MIN);
        let bytes = values[2].as_bytes_or_null().ok().flatten().unwrap_or_default();
        self.0.push((integer(0), integer(1), bytes.to_vec()));
        Ok(())
    }
}

/// Waits until one of the nodes takes writes.
pub async fn leader(nodes: &Trio) -> Arc<Member> {
    let leads = |member: &&Arc<Member>| member.leading_term().is_ok();
    let look = || nodes.nodes.values().map(|node| node.member()).find(leads).cloned();
    until("a leader", look).await
}

/// Waits until all nodes have applied the same, and it is the same to the byte.
pub async fn agree(nodes: &Trio) -> Result<()> {
    let points = |member: &Arc<Member>| {
        let all = member.catalog().all().into_iter();
        all.map(|store| (store.id(), store.applied())).collect::<BTreeMap<_, _>>()
    };
    let same = || {
        let mut members = nodes.nodes.values().map(|node| points(node.member()));
        let first = members.next()?;
        members.all(|other| other == first).then_some(())
    };
    until("all to have applied the same", same).await;
    for node in nodes.nodes.values() {
        for store in node.member().catalog().all() {
            store.verify().with_context(|| format!("node {}", node.member().id()))?;
        }
    }
    Ok(())
}
