//! The names of things: nodes, databases, deltas, requests.

use std::fmt;

/// A member of the cluster. Never 0; 1 bootstraps a cluster.
pub type NodeId = u64;

/// A member's part in the cluster. The numbers are those of the dqlite protocol, and are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Replicates and votes.
    Voter,
    /// Replicates, and is the first to become a voter.
    Standby,
    /// Replicates too, and becomes a voter or stand-by where there are too few of them.
    #[default]
    Spare,
}

impl Role {
    /// Its number.
    pub const fn code(self) -> u64 {
        match self {
            Role::Voter => 0,
            Role::Standby => 1,
            Role::Spare => 2,
        }
    }

    /// The role of that number.
    pub fn from_code(code: u64) -> Option<Role> {
        [Role::Voter, Role::Standby, Role::Spare].into_iter().find(|role| role.code() == code)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Voter => "voter",
            Role::Standby => "stand-by",
            Role::Spare => "spare",
        })
    }
}

/// A member as the membership knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: NodeId,
    /// Its address.
    pub address: String,
    /// Its role; a voter also while it becomes one or ceases to be one.
    pub role: Role,
}

impl MemberInfo {
    /// Whether it votes.
    pub fn votes(&self) -> bool {
        self.role == Role::Voter
    }
}

/// A database of this cluster: the log index of the entry that created it, so that a delta for a
/// dropped database never hits its successor of the same name.
pub type DatabaseId = u64;

/// What names one delta for ever: the term of the leader that made it and a sequence number
/// within that term. The parent of a database's first delta is [`DeltaId::NONE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeltaId {
    /// The leader's term.
    pub term: u64,
    /// Counts up from 1 within the term, for each database.
    pub sequence: u64,
}

impl DeltaId {
    /// No delta at all: the parent of the first one.
    pub const NONE: DeltaId = DeltaId { term: 0, sequence: 0 };
}

impl fmt::Display for DeltaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.sequence)
    }
}

/// What names one write, or one transaction, of a client for ever, however often it is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database's name, checked: `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`. A client's text never names a
/// file but through this type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseName(String);

/// The text was not a valid database name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid database name")]
pub struct InvalidDatabaseName;

impl DatabaseName {
    /// Checks `text` and wraps it.
    pub fn new(text: &str) -> Result<DatabaseName, InvalidDatabaseName> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first && rest && text.len() <= super::limits::DATABASE_NAME_BYTES_MAX {
            Ok(DatabaseName(text.to_owned()))
        } else {
            Err(InvalidDatabaseName)
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseName;

    #[test]
    fn names_that_are_names() {
        for good in ["a", "shop", "shop.db", "A-1_b.c", &"x".repeat(128)] {
            assert_eq!(DatabaseName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_could_reach_a_file_are_refused() {
        let long = "x".repeat(129);
        for bad in ["", ".", "..", ":memory:", "file:x?vfs=unix", "a/b", "/etc", "-x", "a b", "ä"]
        {
            assert!(DatabaseName::new(bad).is_err(), "{bad}");
        }
        assert!(DatabaseName::new(&long).is_err());
    }
}
