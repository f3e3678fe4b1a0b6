//! Arguments that several commands share.
//!
//! *Invariant*: an argument of one name means the same in every command.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::node::Config;
use crate::node::config::{LogFormat, Override};

use super::Failure;

/// Where a client command looks for the cluster when it is not told.
pub const DEFAULT_SERVER: &str = "127.0.0.1:9001";

/// The configuration's whole numbers have a sign.
const ID_MAX: u64 = i64::MAX as u64;

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct LogArgs {
    /// What is logged to stderr: error, warn, info, debug, trace, or directives such as
    /// info,quire::raft=debug
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Logging")]
    pub log_level: Option<String>,
    /// How it is written
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Logging")]
    pub log_format: Option<Format>,
}

/// How log events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for people
    Text,
    /// A JSON object on a line
    Json,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> LogFormat {
        match format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        }
    }
}

/// What becomes of a node that is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// It lets no clients in until the others go back, or it is upgraded
    Wait,
    /// It stops
    Exit,
}

impl LogArgs {
    /// The same as flags of another `quire` process.
    pub fn as_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(level) = &self.log_level {
            flags.extend(["--log-level".to_owned(), level.clone()]);
        }
        if let Some(format) = self.log_format {
            let name = if format == Format::Json { "json" } else { "text" };
            flags.extend(["--log-format".to_owned(), name.to_owned()]);
        }
        flags
    }
}

/// The configuration of a node, as flags.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Configuration file (TOML); the environment (QUIRE_...) and flags win over it
    #[arg(long, value_name = "FILE", env = "QUIRE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// This node's id; without one the node that founds a cluster is 1, and others are given one
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(..=ID_MAX))]
    pub id: Option<u64>,
    /// What the others are told, and where to listen: host:port, the path of a Unix socket, @name
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Where to listen, if that is another one (behind a proxy, in a container): 0.0.0.0:9001
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Members of the cluster to join
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Found a cluster if the data directory is empty
    #[arg(long)]
    pub bootstrap: bool,
    /// Wait until a client adds this node to a cluster, if the data directory is empty
    #[arg(long)]
    pub wait: bool,
    /// What this node shares with others that fail together with it, as a number
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    pub failure_domain: Option<i64>,
    /// The higher, the less this node is wanted as a voter
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    pub weight: Option<i64>,
    /// Keep clients out until all members have the schema of this directory
    #[arg(long, value_name = "DIR")]
    pub schema: Option<String>,
    /// The database that has this schema [default: main]
    #[arg(long, value_name = "NAME")]
    pub schema_database: Option<String>,
    /// What to do where another member has a later schema [default: exit]
    #[arg(long, value_name = "POLICY")]
    pub when_behind: Option<Policy>,
    /// Allow plain text on the network
    #[arg(long)]
    pub insecure: bool,
    /// Any other key of the configuration, as in timeouts.busy=2s; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl NodeArgs {
    /// File, environment and flags put on top of each other, and checked.
    pub fn load(&self, log: &LogArgs) -> Result<Config, Failure> {
        self.load_without(&[], log)
    }

    /// The same with some variables of the environment passed over.
    pub fn load_without(&self, variables: &[&str], log: &LogArgs) -> Result<Config, Failure> {
        let environment = std::env::vars_os()
            .filter(|(name, _)| variables.iter().all(|skipped| name != skipped))
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            });
        Ok(Config::load(self.config.as_deref(), environment, &self.overrides(log)?)?)
    }

    fn overrides(&self, log: &LogArgs) -> Result<Vec<Override>, Failure> {
        let mut flags = Vec::new();
        for text in &self.set {
            flags.push(Override::parse(text)?);
        }
        if let Some(dir) = &self.dir {
            flags.push(Override::new("--dir", "data_dir", dir.clone()));
        }
        if let Some(id) = self.id {
            flags.push(Override::new("--id", "id", i64::try_from(id).unwrap_or(i64::MAX)));
        }
        if let Some(address) = &self.address {
            flags.push(Override::new("--address", "address", address.clone()));
        }
        if let Some(listen) = &self.listen {
            flags.push(Override::new("--listen", "listen", listen.clone()));
        }
        if !self.join.is_empty() {
            flags.push(Override::new("--join", "join", self.join.clone()));
        }
        if self.bootstrap {
            flags.push(Override::new("--bootstrap", "bootstrap", true));
        }
        if self.wait {
            flags.push(Override::new("--wait", "wait", true));
        }
        if let Some(domain) = self.failure_domain {
            flags.push(Override::new("--failure-domain", "member.failure_domain", domain));
        }
        if let Some(weight) = self.weight {
            flags.push(Override::new("--weight", "member.weight", weight));
        }
        if let Some(dir) = &self.schema {
            flags.push(Override::new("--schema", "schema.dir", dir.clone()));
        }
        if let Some(name) = &self.schema_database {
            flags.push(Override::new("--schema-database", "schema.database", name.clone()));
        }
        if let Some(policy) = self.when_behind {
            let name = if policy == Policy::Wait { "wait" } else { "exit" };
            flags.push(Override::new("--when-behind", "schema.when_behind", name));
        }
        if self.insecure {
            flags.push(Override::new("--insecure", "insecure", true));
        }
        if let Some(level) = &log.log_level {
            flags.push(Override::new("--log-level", "log.level", level.clone()));
        }
        if let Some(format) = log.log_format {
            let name = if format == Format::Json { "json" } else { "text" };
            flags.push(Override::new("--log-format", "log.format", name));
        }
        Ok(flags)
    }
}

/// Where a client command finds the cluster.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// Addresses of members, any of them
    #[arg(
        long,
        value_name = "ADDRESSES",
        env = "QUIRE_SERVER",
        value_delimiter = ',',
        default_value = DEFAULT_SERVER
    )]
    pub server: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{LogArgs, NodeArgs};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        node: NodeArgs,
    }

    /// Applications of other languages choose ids of 62 bits and more.
    #[test]
    fn an_id_may_be_large() {
        for id in ["1", "3297041220608546238", "9223372036854775807"] {
            let line = Line::try_parse_from(["serve", "--id", id]).unwrap();
            let config = line.node.load_without(&["QUIRE_ID"], &LogArgs::default()).unwrap();
            assert_eq!(config.id.unwrap().to_string(), id);
        }
        assert!(Line::try_parse_from(["serve", "--id", "9223372036854775808"]).is_err());
    }
}
