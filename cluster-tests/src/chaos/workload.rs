//! The workloads: what clients do, in single statements and in transactions of many, and how what
//! they were told is held against the promises.
//!
//! Keys of registers and lists change with time, so that no history of one key gets long; what is
//! written there is never written twice.
//!
//! *Invariant*: an operation's answer comes from the rows that were read, and from nothing that
//! the client believes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use quire::driver::{Begin, Database, DriverError, Rows, Transaction, Value};
use quire::params;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Chance;
use crate::check::{self, BankOp, Event, ListOp, RegisterOp, SetOp, Violation};

/// A text that creates nothing that is there already, and what it needs to be found empty.
pub type Schema = &'static [&'static str];

/// How a client does its next operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// In one statement, where it is one.
    Single,
    /// In a transaction of several statements.
    Many(Begin),
}

/// What a client draws its next operation from.
pub struct Turn<'a> {
    /// Its dice.
    pub chance: &'a Chance,
    /// Time since the run began.
    pub elapsed: Duration,
    /// A number that nobody else has.
    pub unique: i64,
    /// What it read or wrote last, and where.
    pub last: (u32, i64),
}

/// Whether an operation was done, or gave itself up and left nothing.
pub type Done = Result<bool, DriverError>;

/// One workload.
pub trait Workload: Send + Sync + 'static {
    /// An operation, with its answer.
    type Op: Clone + std::fmt::Debug + Send + Sync + Serialize + DeserializeOwned + 'static;
    /// What it is called; its database is called so, too.
    const NAME: &'static str;
    /// How many clients it has, unless told otherwise.
    const CLIENTS: usize;
    /// One in so many operations is done in a transaction of several statements.
    const MANY_ONE_IN: u64;
    /// Its tables.
    const SCHEMA: Schema;

    /// The next operation.
    fn draw(turn: &Turn<'_>) -> Self::Op;
    /// Whether it changes anything.
    fn writes(op: &Self::Op) -> bool;
    /// Does it, and fills its answer in.
    fn perform(on: &Database, op: &mut Self::Op, style: Style)
    -> impl Future<Output = Done> + Send;
    /// Where a register is and what it holds, for what the client does next.
    fn seen(_: &Self::Op) -> Option<(u32, i64)> {
        None
    }
    /// Everything there is, read by one member.
    fn read_all(on: &Database) -> impl Future<Output = Result<Vec<Self::Op>>> + Send;
    /// What is wrong with a history.
    fn check(history: &[Event<Self::Op>]) -> Result<(), Violation>;
}

fn integer(rows: &Rows) -> Option<i64> {
    match rows.rows.first()?.first()? {
        Value::Integer(value) => Some(*value),
        _ => None,
    }
}

/// The key of now: one of `keys`, others every `period_ms`.
fn key_of_now(turn: &Turn<'_>, keys: u64, period_ms: u64) -> u32 {
    let elapsed = u64::try_from(turn.elapsed.as_millis()).unwrap_or(u64::MAX);
    u32::try_from(elapsed / period_ms * keys + turn.chance.below(keys)).unwrap_or(u32::MAX)
}

/// All keys up to the last one there is, and some more: of one whose row was lost, that is read.
fn keys_to_read<'a>(found: impl DoubleEndedIterator<Item = &'a u32>) -> impl Iterator<Item = u32> {
    0..found.last().map_or(0, |last| last + 1) + KEYS_BEYOND
}

/// More than come into use while writes stand still.
const KEYS_BEYOND: u32 = 1_000;

/// Elements that are added one by one.
pub struct Set;

impl Workload for Set {
    type Op = SetOp;
    const NAME: &'static str = "set";
    const CLIENTS: usize = 64;
    const MANY_ONE_IN: u64 = 40;
    const SCHEMA: Schema = &["CREATE TABLE IF NOT EXISTS s(element INTEGER PRIMARY KEY)"];

    fn draw(turn: &Turn<'_>) -> SetOp {
        // Reading all of it is for when there is little.
        if turn.elapsed < Duration::from_secs(4) && turn.chance.one_in(500) {
            return SetOp::Read { elements: Vec::new() };
        }
        SetOp::Add { element: turn.unique }
    }

    fn writes(op: &SetOp) -> bool {
        matches!(op, SetOp::Add { .. })
    }

    async fn perform(on: &Database, op: &mut SetOp, style: Style) -> Done {
        match op {
            SetOp::Add { element } => match style {
                Style::Single => {
                    on.execute("INSERT INTO s VALUES(?)", params![*element]).await?;
                }
                Style::Many(begin) => {
                    let mut tx = on.begin_with(begin).await?;
                    tx.execute("INSERT INTO s VALUES(?)", params![*element]).await?;
                    tx.commit().await?;
                }
            },
            SetOp::Read { elements } => *elements = all_elements(on).await?,
        }
        Ok(true)
    }

    async fn read_all(on: &Database) -> Result<Vec<SetOp>> {
        Ok(vec![SetOp::Read { elements: all_elements(on).await? }])
    }

    fn check(history: &[Event<SetOp>]) -> Result<(), Violation> {
        check::set::check(history)
    }
}

async fn all_elements(on: &Database) -> Result<Vec<i64>, DriverError> {
    on.query_as("SELECT element FROM s ORDER BY element", vec![]).await
}

/// Registers that are read, written and swapped.
pub struct Register;

/// How many registers are in use at a time, and for how long.
const REGISTERS: u64 = 16;
const REGISTERS_PERIOD_MS: u64 = 250;

const UPSERT: &str = "INSERT INTO r VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = excluded.v";
const READ: &str = "SELECT coalesce((SELECT v FROM r WHERE k = ?1), 0)";
const SWAP: &str = "INSERT INTO r SELECT ?1, ?3 \
     WHERE coalesce((SELECT v FROM r WHERE k = ?1), 0) = ?2 \
     ON CONFLICT(k) DO UPDATE SET v = excluded.v";

impl Workload for Register {
    type Op = RegisterOp;
    const NAME: &'static str = "register";
    const CLIENTS: usize = 64;
    const MANY_ONE_IN: u64 = 20;
    const SCHEMA: Schema = &["CREATE TABLE IF NOT EXISTS r(k INTEGER PRIMARY KEY, v INTEGER)"];

    fn draw(turn: &Turn<'_>) -> RegisterOp {
        let key = key_of_now(turn, REGISTERS, REGISTERS_PERIOD_MS);
        match turn.chance.below(10) {
            0..3 => RegisterOp::Read { key, value: 0 },
            // Of what was seen last, where that is still in use: else it has changed for sure.
            3..6 if u64::from(turn.last.0) / REGISTERS == u64::from(key) / REGISTERS => {
                let (key, from) = turn.last;
                RegisterOp::Swap { key, from, to: turn.unique, swapped: false }
            }
            _ => RegisterOp::Write { key, value: turn.unique },
        }
    }

    fn writes(op: &RegisterOp) -> bool {
        !matches!(op, RegisterOp::Read { .. })
    }

    fn seen(op: &RegisterOp) -> Option<(u32, i64)> {
        match *op {
            RegisterOp::Read { key, value } | RegisterOp::Write { key, value } => {
                Some((key, value))
            }
            RegisterOp::Swap { key, to, swapped, .. } => swapped.then_some((key, to)),
        }
    }

    async fn perform(on: &Database, op: &mut RegisterOp, style: Style) -> Done {
        let Style::Many(begin) = style else { return register_at_once(on, op).await };
        let mut tx = on.begin_with(begin).await?;
        let key = match *op {
            RegisterOp::Read { key, .. }
            | RegisterOp::Write { key, .. }
            | RegisterOp::Swap { key, .. } => key,
        };
        let found = integer(&tx.query(READ, params![i64::from(key)]).await?).unwrap_or(-1);
        let set = match op {
            RegisterOp::Read { value, .. } => {
                *value = found;
                None
            }
            RegisterOp::Write { value, .. } => Some(*value),
            RegisterOp::Swap { from, to, swapped, .. } => {
                *swapped = found == *from;
                swapped.then_some(*to)
            }
        };
        if let Some(value) = set {
            tx.execute(UPSERT, params![i64::from(key), value]).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn read_all(on: &Database) -> Result<Vec<RegisterOp>> {
        let rows: Vec<(u32, i64)> = on.query_as("SELECT k, v FROM r", vec![]).await?;
        let found: BTreeMap<u32, i64> = rows.into_iter().collect();
        let read = |key| RegisterOp::Read { key, value: found.get(&key).copied().unwrap_or(0) };
        Ok(keys_to_read(found.keys()).map(read).collect())
    }

    fn check(history: &[Event<RegisterOp>]) -> Result<(), Violation> {
        check::register::check(history)
    }
}

async fn register_at_once(on: &Database, op: &mut RegisterOp) -> Done {
    match op {
        RegisterOp::Read { key, value } => {
            *value = integer(&on.query(READ, params![i64::from(*key)]).await?).unwrap_or(-1);
        }
        RegisterOp::Write { key, value } => {
            on.execute(UPSERT, params![i64::from(*key), *value]).await?;
        }
        RegisterOp::Swap { key, from, to, swapped } => {
            let done = on.execute(SWAP, params![i64::from(*key), *from, *to]).await?;
            *swapped = done.rows_affected == 1;
        }
    }
    Ok(true)
}

/// Lists that transactions read and append to.
pub struct Lists;

const LISTS: u64 = 6;
const LISTS_PERIOD_MS: u64 = 500;

const APPEND: &str =
    "INSERT INTO l VALUES(?1, ?2) ON CONFLICT(k) DO UPDATE SET v = v || ' ' || excluded.v";
const LIST: &str = "SELECT v FROM l WHERE k = ?";

impl Workload for Lists {
    type Op = Vec<ListOp>;
    const NAME: &'static str = "lists";
    const CLIENTS: usize = 12;
    const MANY_ONE_IN: u64 = 2;
    const SCHEMA: Schema = &["CREATE TABLE IF NOT EXISTS l(k INTEGER PRIMARY KEY, v TEXT)"];

    fn draw(turn: &Turn<'_>) -> Vec<ListOp> {
        let parts = 1 + i64::try_from(turn.chance.below(4)).unwrap_or(0);
        let part = |at: i64| {
            let key = key_of_now(turn, LISTS, LISTS_PERIOD_MS);
            match turn.chance.one_in(2) {
                true => ListOp::Read { key, list: Vec::new() },
                false => ListOp::Append { key, value: turn.unique * 4 + at },
            }
        };
        (0..parts).map(part).collect()
    }

    fn writes(op: &Vec<ListOp>) -> bool {
        op.iter().any(|part| matches!(part, ListOp::Append { .. }))
    }

    async fn perform(on: &Database, op: &mut Vec<ListOp>, style: Style) -> Done {
        if let ([part], Style::Single) = (&mut op[..], style) {
            match part {
                ListOp::Append { key, value } => {
                    on.execute(APPEND, params![i64::from(*key), value.to_string()]).await?;
                }
                ListOp::Read { key, list } => {
                    *list = list_of(&on.query(LIST, params![i64::from(*key)]).await?);
                }
            }
            return Ok(true);
        }
        let begin = if let Style::Many(begin) = style { begin } else { Begin::Deferred };
        let mut tx = on.begin_with(begin).await?;
        for part in op {
            match part {
                ListOp::Append { key, value } => {
                    tx.execute(APPEND, params![i64::from(*key), value.to_string()]).await?;
                }
                ListOp::Read { key, list } => {
                    *list = list_of(&tx.query(LIST, params![i64::from(*key)]).await?);
                }
            }
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn read_all(on: &Database) -> Result<Vec<Vec<ListOp>>> {
        let rows = on.query("SELECT v, k FROM l ORDER BY k", vec![]).await?;
        let read = |row: Vec<Value>| {
            let key = match row.get(1) {
                Some(Value::Integer(key)) => u32::try_from(*key)?,
                other => anyhow::bail!("a key that is none: {other:?}"),
            };
            Ok((key, list_of(&Rows { columns: Vec::new(), rows: vec![row] })))
        };
        let mut found: BTreeMap<u32, Vec<i64>> =
            rows.rows.into_iter().map(read).collect::<Result<_>>()?;
        let keys: Vec<u32> = keys_to_read(found.keys()).collect();
        let read = |key| ListOp::Read { key, list: found.remove(&key).unwrap_or_default() };
        Ok(vec![keys.into_iter().map(read).collect()])
    }

    fn check(history: &[Event<Vec<ListOp>>]) -> Result<(), Violation> {
        check::adya::check(history)
    }
}

/// The numbers in the first value of the first row. What is no number is -1, which nobody wrote.
fn list_of(rows: &Rows) -> Vec<i64> {
    let text = match rows.rows.first().and_then(|row| row.first()) {
        Some(Value::Text(text)) => text.to_string(),
        // SQLite has made a number of the only one.
        Some(Value::Integer(value)) => value.to_string(),
        _ => return Vec::new(),
    };
    text.split(' ').map(|number| number.parse().unwrap_or(-1)).collect()
}

/// Accounts between which money moves.
pub struct Bank;

/// How many accounts, and what each has at first.
pub const ACCOUNTS: u32 = 8;
/// See [`ACCOUNTS`].
pub const BALANCE: i64 = 100;

impl Workload for Bank {
    type Op = BankOp;
    const NAME: &'static str = "bank";
    const CLIENTS: usize = 12;
    const MANY_ONE_IN: u64 = 2;
    const SCHEMA: Schema = &[
        "CREATE TABLE IF NOT EXISTS a(id INTEGER PRIMARY KEY, b INTEGER)",
        "INSERT INTO a VALUES(0, 100), (1, 100), (2, 100), (3, 100), (4, 100), (5, 100), (6, 100), \
         (7, 100) ON CONFLICT DO NOTHING",
    ];

    fn draw(turn: &Turn<'_>) -> BankOp {
        if turn.chance.one_in(3) {
            return BankOp::Read { balances: Vec::new() };
        }
        let accounts = u64::from(ACCOUNTS);
        let from = turn.chance.below(accounts);
        let to = (from + 1 + turn.chance.below(accounts - 1)) % accounts;
        let account = |at: u64| u32::try_from(at).unwrap_or(0);
        let amount = 1 + i64::try_from(turn.chance.below(5)).unwrap_or(0);
        BankOp::Transfer { from: account(from), to: account(to), amount }
    }

    fn writes(op: &BankOp) -> bool {
        matches!(op, BankOp::Transfer { .. })
    }

    async fn perform(on: &Database, op: &mut BankOp, style: Style) -> Done {
        match op {
            BankOp::Read { balances } => {
                *balances = match style {
                    Style::Single => on.query_as(BALANCES, vec![]).await?,
                    Style::Many(begin) => balances_in_parts(on, begin).await?,
                };
                Ok(true)
            }
            BankOp::Transfer { from, to, amount } => {
                let begin = if let Style::Many(begin) = style { begin } else { Begin::Immediate };
                let tx = on.begin_with(begin).await?;
                transfer(tx, i64::from(*from), i64::from(*to), *amount).await
            }
        }
    }

    async fn read_all(on: &Database) -> Result<Vec<BankOp>> {
        let balances = on.query_as(BALANCES, vec![]).await.context("the balances")?;
        Ok(vec![BankOp::Read { balances }])
    }

    fn check(history: &[Event<BankOp>]) -> Result<(), Violation> {
        let start = vec![BALANCE; ACCOUNTS as usize];
        let rules = check::bank::Rules { start, may_overdraw: false };
        check::bank::check(&rules, history)?.suffices()
    }
}

const BALANCES: &str = "SELECT b FROM a ORDER BY id";

async fn balances_in_parts(on: &Database, begin: Begin) -> Result<Vec<i64>, DriverError> {
    let mut tx = on.begin_with(begin).await?;
    let half = i64::from(ACCOUNTS / 2);
    let first = "SELECT b FROM a WHERE id < ? ORDER BY id";
    let mut balances: Vec<i64> = tx.query_as(first, params![half]).await?;
    let second = "SELECT b FROM a WHERE id >= ? ORDER BY id";
    balances.extend(tx.query_as::<i64>(second, params![half]).await?);
    tx.commit().await?;
    Ok(balances)
}

/// Reads both balances and sets both, as a program does that trusts its transaction: an update that
/// was lost would show in the sum.
async fn transfer(mut tx: Transaction, from: i64, to: i64, amount: i64) -> Done {
    const BALANCE_OF: &str = "SELECT b FROM a WHERE id = ?";
    const SET: &str = "UPDATE a SET b = ?2 WHERE id = ?1";
    let rich = integer(&tx.query(BALANCE_OF, params![from]).await?).unwrap_or(0);
    if rich < amount {
        tx.rollback().await?;
        return Ok(false);
    }
    let poor = integer(&tx.query(BALANCE_OF, params![to]).await?).unwrap_or(0);
    tx.execute(SET, params![from, rich - amount]).await?;
    tx.execute(SET, params![to, poor + amount]).await?;
    tx.commit().await?;
    Ok(true)
}
