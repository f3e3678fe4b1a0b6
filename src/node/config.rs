//! What a node is told at its start: [`Config`], from a TOML file, then the environment, then
//! flags, each overriding the one before.
//!
//! The names of the fields are the names of the keys: `timeouts.busy` in the file is
//! `QUIRE_TIMEOUTS__BUSY` in the environment and `--set timeouts.busy=2s` as a flag. An unknown
//! key is an error wherever it stands. `config/node.toml` shows every key at its default.
//!
//! It only reads: what the configuration names (addresses, directories) is opened by whoever
//! starts the node, after [`Config::validate`] has passed.
//!
//! *Invariant*: each error is one line that says where it stands, what is wrong, and the mend;
//! nothing here writes anything.

mod check;
mod layers;
mod text;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{Fate, NodeId, limits};

pub use layers::Override;

/// Everything a node is told at its start. Fields left out of a file keep the values of
/// [`Config::default`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the node keeps everything. Created when it does not exist. Default `data`.
    pub data_dir: PathBuf,
    /// The node's id in the cluster; in text, 0 stands for none. The node that bootstraps is 1
    /// where it is given none; one that joins without an id is given one; a node that has been a member before knows its
    /// own, and one given here must be the same. Default none.
    #[serde(with = "text::id")]
    pub id: Option<NodeId>,
    /// What stands in the membership for clients and peers, and where the node listens unless
    /// `listen` says otherwise: `host:port`, the path of a Unix socket, or `@name` for an abstract
    /// one. Default `127.0.0.1:9001`.
    pub address: String,
    /// Where the node listens, if that is not `address`: behind a proxy, a published port, or on
    /// all of the machine's addresses (`0.0.0.0:9001`). In text, empty for the same. Default none.
    #[serde(with = "text::optional")]
    pub listen: Option<String>,
    /// Addresses of members of the cluster to join, any of them. Ignored once this node is a
    /// member. Default none.
    pub join: Vec<String>,
    /// Whether a node with an empty data directory founds a cluster of its own.
    /// Does nothing once the node is a member. Default false.
    pub bootstrap: bool,
    /// Whether a node with an empty data directory waits until a client adds it to a cluster (the
    /// request Add). Does nothing once the node is a member. Default false.
    pub wait: bool,
    /// Whether plain text may leave this machine: an address off loopback is refused without it.
    /// Default false.
    pub insecure: bool,
    /// What the other members are told of this one.
    pub member: Member,
    /// Who has which role in the cluster.
    pub roles: Roles,
    /// The schema gate.
    pub schema: Schema,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How much there may be of things.
    pub limits: Limits,
    /// What is logged, and how.
    pub log: Log,
}

/// What the other members are told of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Member {
    /// What this node shares with others that fail together with it (a rack, a zone), as a
    /// number; voters are spread over them. Default 0.
    pub failure_domain: u64,
    /// The higher, the less this node is wanted as a voter. Default 0.
    pub weight: u64,
}

/// Who has which role in the cluster. The leader goes by its own; give all nodes the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Roles {
    /// Whether the leader keeps the roles as below. Without it a role changes only on request,
    /// and a node that joins stays a spare. Default true.
    pub automatic: bool,
    /// How many voters there should be: an odd number. Default 3.
    pub voters: u32,
    /// How many stand-bys. Default 3.
    pub standbys: u32,
    /// A member that has not answered for so long loses its role to another one. Default 30 s.
    #[serde(with = "text::duration")]
    pub offline_after: Duration,
}

/// The schema that this node was built for. A node that has one keeps clients out until all members
/// have the same: see docs/upgrades.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schema {
    /// The directory with its numbered updates; in text, empty for no gate. Default none.
    #[serde(with = "text::path")]
    pub dir: Option<PathBuf>,
    /// The database that has this schema. Default `main`.
    pub database: String,
    /// What becomes of a node that is older than another one. Default `exit`.
    pub when_behind: WhenBehind,
}

/// What becomes of a node whose level is behind that of another member. (One whose level is
/// inconsistent with another's exits, whatever this says.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenBehind {
    /// It lets no clients in and looks again when the members' levels change.
    Wait,
    /// It stops, with exit code 1.
    Exit,
}

/// How long things may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// How often a leader tells its followers that it lives. Default 100 ms.
    #[serde(with = "text::duration")]
    pub heartbeat: Duration,
    /// A follower that has not heard from a leader campaigns after a random time between this...
    /// Default 200 ms.
    #[serde(with = "text::duration")]
    pub election_min: Duration,
    /// ... and this, counted from the end of the leader's lease, which is as long as this.
    /// Default 450 ms.
    #[serde(with = "text::duration")]
    pub election_max: Duration,
    /// How long a writer waits for its turn before `database is locked`. Default 5 s.
    #[serde(with = "text::duration")]
    pub busy: Duration,
    /// An open transaction that is idle this long is rolled back. Default 10 s.
    #[serde(with = "text::duration")]
    pub idle_transaction: Duration,
    /// The same where the transaction holds the write slot; less than `busy`, else one idle
    /// writer fails everybody. Default 3 s.
    #[serde(with = "text::duration")]
    pub idle_writer: Duration,
    /// A statement that runs longer is interrupted; in text, `none` for no bound. Waiting for its
    /// turn does not count, the time in which its rows are taken does. Default none.
    #[serde(with = "text::optional_duration")]
    pub statement: Option<Duration>,
}

/// How much there may be of things. Sizes are in bytes; in text with a unit, as in `64 MiB`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections from clients, in all. Default 1,024.
    pub connections: u32,
    /// One frame of the client protocol, header included. Default 64 MiB.
    #[serde(with = "text::size")]
    pub frame_bytes: u64,
    /// Transactions the leader runs ahead of what the quorum has acknowledged, per database.
    /// Default 4,096.
    pub run_ahead_transactions: u32,
    /// Bytes of unacknowledged transactions the leader holds, per database. Default 64 MiB.
    #[serde(with = "text::size")]
    pub run_ahead_bytes: u64,
    /// What one transaction may change; a larger one fails with `database or disk is full`.
    /// Default 4 GiB.
    #[serde(with = "text::size")]
    pub transaction_bytes: u64,
    /// Page images kept in memory before a checkpoint folds them into the database file.
    /// Default 64 MiB.
    #[serde(with = "text::size")]
    pub overlay_bytes: u64,
    /// Bytes of log kept, although checkpointed, for followers that are behind. Default 128 MiB.
    #[serde(with = "text::size")]
    pub log_keep_bytes: u64,
    /// A file of the log is made at this size. Default, and at most, 16 MiB.
    #[serde(with = "text::size")]
    pub log_segment_bytes: u64,
    /// Bytes that the data directory may hold before the node behaves as on a full disk; in
    /// text, `none` for as many as the disk has. For tests; the one key that SIGHUP takes over
    /// while the node runs. Default none.
    #[serde(with = "text::optional_size")]
    pub disk_budget: Option<u64>,
}

/// What is logged, and how. Logs go to stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// One line of text or one JSON object for each event. Default text.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,quire::raft=debug`.
    /// Default `info`.
    pub level: String,
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object on a line.
    Json,
}

/// The configuration is wrong: one line, where it stands, what is wrong, and the mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

impl ConfigError {
    /// What to do about it: mend the configuration.
    pub fn fate(&self) -> Fate {
        Fate::Reject
    }
}

impl Config {
    /// The configuration as TOML, every key written out: what `quire config print` shows.
    pub fn to_toml(&self) -> String {
        // A struct of plain values always has a TOML form.
        toml::to_string(self).unwrap_or_default()
    }

    /// Where the node listens.
    pub fn listens_at(&self) -> &str {
        self.listen.as_deref().unwrap_or(&self.address)
    }

    /// The addresses of this node and of those it joins, without doubles.
    pub fn known_addresses(&self) -> Vec<String> {
        let mut all = vec![self.address.clone()];
        for address in &self.join {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("data"),
            id: None,
            address: "127.0.0.1:9001".to_owned(),
            listen: None,
            join: Vec::new(),
            bootstrap: false,
            wait: false,
            insecure: false,
            member: Member::default(),
            roles: Roles::default(),
            schema: Schema::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Roles {
    fn default() -> Roles {
        Roles { automatic: true, voters: 3, standbys: 3, offline_after: Duration::from_secs(30) }
    }
}

impl Default for Schema {
    fn default() -> Schema {
        Schema { dir: None, database: "main".to_owned(), when_behind: WhenBehind::Exit }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(450),
            busy: limits::BUSY_TIMEOUT,
            idle_transaction: limits::IDLE_TRANSACTION_MAX,
            idle_writer: limits::IDLE_WRITER_MAX,
            statement: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            frame_bytes: limits::FRAME_BYTES_MAX as u64,
            run_ahead_transactions: limits::RUN_AHEAD_TRANSACTIONS_MAX as u32,
            run_ahead_bytes: limits::RUN_AHEAD_BYTES_MAX as u64,
            transaction_bytes: 4 << 30,
            overlay_bytes: 64 << 20,
            log_keep_bytes: 128 << 20,
            log_segment_bytes: limits::LOG_SEGMENT_BYTES,
            disk_budget: None,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Text, level: "info".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Config, ConfigError, Override};

    fn example(path: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    }

    /// Takes the comment sign off every commented key (`#key = value`; prose is `# text`).
    fn uncommented(text: &str) -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key.to_owned(),
            _ => line.to_owned(),
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn node_toml_shows_every_key_at_its_default() {
        let text = example("node.toml");
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
        let all: toml::Table = uncommented(&text).parse().unwrap();
        let defaults: toml::Table = Config::default().to_toml().parse().unwrap();
        assert_eq!(all, defaults);
    }

    #[test]
    fn the_three_node_set_is_a_cluster() {
        let nodes: Vec<Config> = (1..=3)
            .map(|n| {
                let text = example(&format!("cluster/{n}.toml"));
                let config: Config = toml::from_str(&text).unwrap();
                config.validate().unwrap();
                config
            })
            .collect();
        assert_eq!(nodes[0].id, Some(1));
        assert!(nodes[0].bootstrap && nodes[0].join.is_empty());
        for node in &nodes[1..] {
            assert!(!node.bootstrap);
            assert!(node.join.contains(&nodes[0].address));
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert_ne!(nodes[a].address, nodes[b].address);
            assert_ne!(nodes[a].data_dir, nodes[b].data_dir);
            assert_ne!(nodes[a].id, nodes[b].id);
        }
    }

    #[test]
    fn printing_and_reading_gives_the_same() {
        let mut config = Config { id: Some(7), join: vec!["a:1".into()], ..Config::default() };
        config.listen = Some("0.0.0.0:1".into());
        config.timeouts.statement = Some(std::time::Duration::from_millis(1500));
        config.limits.disk_budget = Some(12_345_678);
        assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn an_error_is_one_line() {
        let set = Override::parse("timeouts.busy=soon").unwrap();
        let ConfigError(line) = Config::load(None, [], &[set]).unwrap_err();
        assert_eq!(
            line,
            "--set timeouts.busy: \"soon\" is not a duration: write one such as 500ms or 5s"
        );
    }
}
