//! What tells whether a history of operations is one that Quire promises: the checkers, and what a
//! history is.
//!
//! A history comes from real processes or from the simulation; a checker neither knows nor cares.
//! Times are in nanoseconds since some beginning, on one clock for the whole history. An operation
//! comes before another where it returned at an earlier time than the other was called; at the same
//! time is no order.
//!
//! | checker | of what | what it proves |
//! |---|---|---|
//! | [`adya`] | transactions that append to lists and read them | strict serializability |
//! | [`register`] | single reads, writes and swaps | linearizability of each key |
//! | [`bank`] | transfers and reads of all accounts | the sum; each read by itself, where cheap |
//! | [`set`] | adds and reads of the whole set | linearizability of the set |
//!
//! [`history`] keeps a history in a file, to be checked again.
//!
//! *Invariant*: a checker calls nothing wrong that some order of the operations explains, where an
//! operation whose outcome is unknown may have happened once at any time after its call, or never.

pub mod adya;
pub mod bank;
mod graph;
pub mod history;
pub mod register;
pub mod set;

use std::fmt;

/// What a client knows of an operation's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// It was executed, and its answer is in the operation.
    Done,
    /// It certainly was not executed, nor ever will be.
    Refused,
    /// Nobody can tell: it may take effect at any time after its call, or never.
    Unknown,
}

/// One operation of a client, with its answer filled in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event<Op> {
    /// Who called. A client has one operation under way at a time, until one is unknown.
    pub client: u32,
    /// When it was called.
    pub called: u64,
    /// When its answer was there. Means nothing where the outcome is unknown.
    pub returned: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// What was asked, and what was answered.
    pub op: Op,
}

impl<Op> Event<Op> {
    /// Whether it was over before `other` was called, so that it comes first in every order.
    pub fn precedes(&self, other: &Event<Op>) -> bool {
        self.outcome == Outcome::Done && self.returned < other.called
    }

    /// Who called when, and how it ended: the beginning of a line about this operation.
    fn heading(&self) -> String {
        let from = seconds(self.called);
        match self.outcome {
            Outcome::Done => {
                format!("client {} [{from} to {}]", self.client, seconds(self.returned))
            }
            Outcome::Refused => format!("client {} [{from}, refused]", self.client),
            Outcome::Unknown => format!("client {} [{from}, outcome unknown]", self.client),
        }
    }
}

impl<Op: fmt::Display> fmt::Display for Event<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.heading(), self.op)
    }
}

/// A time in seconds, to the microsecond.
fn seconds(nanos: u64) -> String {
    format!("{}.{:06} s", nanos / 1_000_000_000, nanos % 1_000_000_000 / 1_000)
}

/// A list for a person: where it is long, its end, and how much is left out.
fn brief(list: &[i64]) -> String {
    const SHOWN_MAX: usize = 12;
    let hidden = list.len().saturating_sub(SHOWN_MAX);
    let shown: Vec<String> = list.iter().skip(hidden).map(i64::to_string).collect();
    match hidden {
        0 => format!("[{}]", shown.join(" ")),
        hidden => format!("[{hidden} more.. {}]", shown.join(" ")),
    }
}

/// One operation on a register; each key is a register of its own, and 0 at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the variants tell their fields")]
pub enum RegisterOp {
    /// Reads; `value` means something only where it is done.
    Read { key: u32, value: i64 },
    /// Sets.
    Write { key: u32, value: i64 },
    /// Sets to `to` if it is `from`; done with `swapped` false where it was not.
    Swap { key: u32, from: i64, to: i64, swapped: bool },
}

/// A part of a transaction on lists; a transaction is a `Vec` of them, in order.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the variants tell their fields")]
pub enum ListOp {
    /// Appends a value, which no other transaction appends to that key.
    Append { key: u32, value: i64 },
    /// Reads the whole list; `list` means something only where the transaction is done.
    Read { key: u32, list: Vec<i64> },
}

/// One operation on the accounts of a bank.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the variants tell their fields")]
pub enum BankOp {
    /// Moves money, in one transaction.
    Transfer { from: u32, to: u32, amount: i64 },
    /// Reads all balances, in the order of the accounts.
    Read { balances: Vec<i64> },
}

/// One operation on a set.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the variants tell their fields")]
pub enum SetOp {
    /// Adds an element, once in a history.
    Add { element: i64 },
    /// Reads all elements.
    Read { elements: Vec<i64> },
}

impl fmt::Display for RegisterOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterOp::Read { key, value } => write!(f, "read register {key}: {value}"),
            RegisterOp::Write { key, value } => write!(f, "write {value} to register {key}"),
            RegisterOp::Swap { key, from, to, swapped } => {
                let did = if *swapped { "did" } else { "did not" };
                write!(f, "swap {from} for {to} in register {key}: {did}")
            }
        }
    }
}

impl fmt::Display for BankOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BankOp::Transfer { from, to, amount } => write!(f, "move {amount} from {from} to {to}"),
            BankOp::Read { balances } => write!(f, "read all balances: {balances:?}"),
        }
    }
}

impl fmt::Display for SetOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetOp::Add { element } => write!(f, "add {element}"),
            SetOp::Read { elements } => write!(f, "read {}", brief(elements)),
        }
    }
}

/// What is wrong with a history, for a person: the operations that no order explains, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}
