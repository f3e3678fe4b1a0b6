//! Who a node is: `node.toml` in its data directory. Id and cluster are written when it founds or
//! joins a cluster and never changed afterwards, and so is that it was told that it is a member; the
//! address is that of its last start.
//!
//! Its last line is a checksum of all before it: a digit of an id that went bad would make the node
//! another one, which votes in its name. It is a comment, so that a build before that reads the file,
//! too; and the first line says that it is there. A file of such a build is taken without.
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

/// The first line of a file with a checksum.
const HEAD: &str =
    "# Written by the node, with a checksum. It ties this directory to one node of one cluster.\n";

/// How the last line begins.
const CHECKSUM: &str = "# checksum = ";

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
        let text = checked(&text).ok_or_else(|| wrong("does not match its checksum"))?;
        let Format { format } =
            toml::from_str(text).map_err(|_| wrong("does not say its format"))?;
        if format > FORMAT {
            return Err(NodeError::Configuration(format!(
                "the data directory has format {format} and this build reads up to {FORMAT}: \
                 start a newer quire"
            )));
        }
        toml::from_str(text).map(Some).map_err(|error| wrong(error.message()))
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
        let text = format!("{HEAD}{text}");
        let sum = crc32c::crc32c(text.as_bytes());
        disk::replace(disk, PATH, format!("{text}{CHECKSUM}{sum:08x}\n").as_bytes())
    }
}

/// The text before the checksum; all of it, where there is none and need not be one. `None` where it
/// does not match, or is gone.
fn checked(text: &str) -> Option<&str> {
    let Some((before, sum)) = text.rsplit_once(CHECKSUM) else {
        return (!text.starts_with(HEAD)).then_some(text);
    };
    let matches = sum == format!("{:08x}\n", crc32c::crc32c(before.as_bytes()));
    matches.then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FakeDisk;

    /// A bit of a digit of `node.toml` changed while its node was stopped. It started as node 3 of
    /// the same cluster, beside the true node 3: two nodes voted in one name.
    #[test]
    fn whichever_bit_changes_nobody_becomes_another_node() {
        let disk = FakeDisk::new();
        let mut identity = StoredIdentity::new(1, "127.0.0.1:9001").in_cluster(0xa5a5);
        identity.joined = true;
        identity.store(&disk).unwrap();
        let bytes = disk.bytes(PATH).unwrap();
        for at in 0..bytes.len() as u64 * 8 {
            disk.flip(PATH, at / 8, &[1 << (at % 8)]).unwrap();
            match StoredIdentity::load(&disk) {
                Ok(loaded) => panic!("bit {at}: {loaded:?}"),
                Err(error) => assert!(error.to_string().contains("restore it"), "{error}"),
            }
            disk.flip(PATH, at / 8, &[1 << (at % 8)]).unwrap();
        }
        for len in 1..bytes.len() as u64 {
            let disk = disk.cut(crate::disk::Cut::Keep);
            disk.truncate(PATH, len).unwrap();
            assert!(StoredIdentity::load(&disk).is_err(), "{len} bytes");
        }
    }

    /// The bytes that docs/format.md describes; and what an earlier build wrote.
    #[test]
    fn the_text_is_the_documented_one() {
        let disk = FakeDisk::new();
        let mut identity = StoredIdentity::new(7, "a:1").in_cluster(0x1f);
        identity.joined = true;
        identity.store(&disk).unwrap();
        let text = "# Written by the node, with a checksum. It ties this directory to one node of one \
                    cluster.\nformat = 1\nid = 7\ncluster = \"000000000000001f\"\naddress = \"a:1\"\n\
                    joined = true\n";
        let sum = crc32c::crc32c(text.as_bytes());
        let expected = format!("{text}# checksum = {sum:08x}\n");
        assert_eq!(String::from_utf8(disk.bytes(PATH).unwrap()).unwrap(), expected);
        let earlier = text.replace(", with a checksum", "");
        disk::replace(&disk, PATH, earlier.as_bytes()).unwrap();
        assert_eq!(StoredIdentity::load(&disk).unwrap(), Some(identity));
    }
}
