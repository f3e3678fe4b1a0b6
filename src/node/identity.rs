//! Who a node is: `node.toml` in its data directory. Id and cluster are written when it founds or
//! joins a cluster and never changed afterwards, and so is that it was told that it is a member; the
//! address is that of its last start.
//!
//! *Invariant*: a data directory serves one node of one cluster, for ever.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::NodeId;
use crate::disk::{self, Disk};

use super::NodeError;

const PATH: &str = "node.toml";

/// The format of the data directory that this build reads and writes.
const FORMAT: u32 = 1;

/// What `node.toml` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredIdentity {
    /// The format of the data directory.
    pub format: u32,
    /// The node's id.
    pub id: NodeId,
    /// The cluster's id, 16 hexadecimal digits; absent until the node belongs to one.
    pub cluster: Option<String>,
    /// The address at which the node last started.
    pub address: String,
    /// A leader has said that the node is a member.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
}

impl StoredIdentity {
    /// For a node that starts for the first time.
    pub fn new(id: NodeId, address: &str) -> StoredIdentity {
        let address = address.to_owned();
        StoredIdentity { format: FORMAT, id, cluster: None, address, joined: false }
    }

    /// What the data directory says, if it was used before.
    pub fn load(disk: &dyn Disk) -> Result<Option<StoredIdentity>, NodeError> {
        let bytes = match disk::read_all(disk, PATH) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(NodeError::Failed(format!("node.toml: {error}"))),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let wrong = |what: &str| {
            let mend = "restore it from a copy, or remove this member and join it anew";
            NodeError::Configuration(format!("the data directory's node.toml {what}: {mend}"))
        };
        let text = String::from_utf8(bytes).map_err(|_| wrong("is not text"))?;
        let Format { format } =
            toml::from_str(&text).map_err(|_| wrong("does not say its format"))?;
        if format > FORMAT {
            return Err(NodeError::Configuration(format!(
                "the data directory has format {format} and this build reads up to {FORMAT}: \
                 start a newer quire"
            )));
        }
        toml::from_str(&text).map(Some).map_err(|error| wrong(error.message()))
    }

    /// The cluster's id; 0 for none.
    pub fn cluster_id(&self) -> u64 {
        let hex = self.cluster.as_deref().unwrap_or("0");
        u64::from_str_radix(hex, 16).unwrap_or(0)
    }

    /// The same in `cluster`.
    pub fn in_cluster(mut self, cluster: u64) -> StoredIdentity {
        self.cluster = Some(format!("{cluster:016x}"));
        self
    }

    /// Writes it durably.
    pub fn store(&self, disk: &dyn Disk) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        let head = "# Written by the node. It ties this directory to one node of one cluster.\n";
        disk::replace(disk, PATH, format!("{head}{text}").as_bytes())
    }
}
