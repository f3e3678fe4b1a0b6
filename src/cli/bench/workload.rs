//! What the load consists of; the same for the cluster and for the local file.
//!
//! *Invariant*: both sides run the same statements on the same schema with the same data.

use clap::ValueEnum;

use crate::base::{Randomness, SplitMix};
use crate::wire::ReadLevel;

/// The table and its one index.
pub const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS bench(id INTEGER PRIMARY KEY, v TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS bench_v ON bench(v)",
];

/// The statement of `insert` and `txn100`.
pub const INSERT: &str = "INSERT INTO bench(v) VALUES(?1)";

/// The statement of `select`.
pub const SELECT: &str = "SELECT v FROM bench WHERE id = ?1";

/// Rows that are there before the load begins; `select` asks for one of them.
pub const ROWS_BEFORE: i64 = 10_000;

/// Rows of one transaction of `txn100`.
pub const TRANSACTION_ROWS: usize = 100;

/// The length of the text of a row.
const TEXT_BYTES: usize = 100;

/// What a client does, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Durable single-row INSERTs: integer key, 100-byte text, one index
    Insert,
    /// Transactions of 100 such rows
    Txn100,
    /// SELECTs of one row by its key
    Select,
    /// Empty requests (Leader)
    Ping,
}

impl Workload {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Insert => "insert",
            Workload::Txn100 => "txn100",
            Workload::Select => "select",
            Workload::Ping => "ping",
        }
    }
}

/// What must hold before a read, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// A quorum confirmed the leader after the read arrived
    Linearizable,
    /// The leader's lease holds
    Lease,
    /// Nothing
    Local,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Linearizable => "linearizable",
            Level::Lease => "lease",
            Level::Local => "local",
        }
    }
}

impl From<Level> for ReadLevel {
    fn from(level: Level) -> ReadLevel {
        match level {
            Level::Linearizable => ReadLevel::Linearizable,
            Level::Lease => ReadLevel::Lease,
            Level::Local => ReadLevel::Local,
        }
    }
}

/// One measurement: a workload, for `select` a read level, a number of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What each client does.
    pub workload: Workload,
    /// For `select`.
    pub level: Option<Level>,
    /// How many do it at once.
    pub clients: usize,
}

/// The data of one client: reproducible from its number and the round.
pub struct Data(SplitMix);

impl Data {
    /// For client number `client` in round number `round`.
    pub fn new(client: usize, round: usize) -> Data {
        Data(SplitMix::new(((round as u64) << 32) | client as u64))
    }

    /// The text of a new row.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(TEXT_BYTES + 16);
        while text.len() < TEXT_BYTES {
            text.push_str(&format!("{:016x}", self.0.next_u64()));
        }
        text.truncate(TEXT_BYTES);
        text
    }

    /// The key of a row that is there.
    pub fn key(&self) -> i64 {
        let rows = ROWS_BEFORE.unsigned_abs();
        i64::try_from(self.0.next_u64() % rows).unwrap_or_default() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::{Data, ROWS_BEFORE};

    #[test]
    fn data_is_as_promised() {
        let data = Data::new(1, 2);
        assert_eq!(data.text().len(), 100);
        assert_ne!(data.text(), data.text());
        assert_eq!(Data::new(1, 2).text(), Data::new(1, 2).text());
        assert_ne!(Data::new(1, 2).text(), Data::new(2, 2).text());
        assert!((0..1000).all(|_| (1..=ROWS_BEFORE).contains(&data.key())));
    }
}
