//! What tells whether a history of operations is one that Quire promises: the checkers, and what a
//! history is.
//!
//! A history comes from real processes or from the simulation; a checker neither knows nor cares.
//! Times are in nanoseconds since some beginning, on one clock for the whole history.
//!
//! *Invariant*: a checker calls nothing wrong that some order of the operations explains, where an
//! operation whose outcome is unknown may have happened once at any time after its call, or never.

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

/// What is wrong with a history, for a person: the operations that no order explains, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}
