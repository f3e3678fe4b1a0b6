//! What an operator sees: of this node's gate ([`Gate`]), and of every node ([`NodeStatus`]).
//!
//! *Invariant*: pure; the texts are the ones that documents and tests quote.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use super::error::Error;
use super::nodes::NodeRow;

/// Where this node's gate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It was not asked yet.
    Starting,
    /// It is open.
    Ready,
    /// So many nodes have a lower level.
    Waiting(usize),
    /// This node has a lower level than another.
    Behind,
    /// Levels are incomparable.
    Inconsistent,
    /// Something else failed.
    Failed(String),
}

impl Gate {
    /// What an error means for the gate.
    pub(super) fn of_error(error: &Error) -> Gate {
        match error.root() {
            Error::NodeBehind => Gate::Behind,
            Error::Inconsistent => Gate::Inconsistent,
            _ => Gate::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gate::Starting => f.write_str("Database is still starting"),
            Gate::Ready => f.write_str("Database is online"),
            Gate::Waiting(behind) => write!(
                f,
                "Database is waiting for an upgrade: {behind} cluster members have not yet \
                 received the update"
            ),
            Gate::Behind => write!(f, "Database is not ready yet: {}", Error::NodeBehind),
            Gate::Inconsistent => write!(f, "Database is not ready yet: {}", Error::Inconsistent),
            Gate::Failed(why) => write!(f, "Database is not ready yet: {why}"),
        }
    }
}

/// What a list of the nodes says of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeStatus {
    /// It works.
    Online,
    /// It was not heard of for this long.
    Offline(Duration),
    /// It is newer than the lowest and waits.
    Blocked,
    /// It is online at a level lower than another's.
    NeedsUpgrade,
    /// Its level is incomparable with another's.
    Broken,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeStatus::Online => "Online",
            NodeStatus::Offline(_) => "Offline",
            NodeStatus::Blocked => "Blocked",
            NodeStatus::NeedsUpgrade => "Needs upgrade",
            NodeStatus::Broken => "Broken",
        })
    }
}

impl NodeStatus {
    /// The status in a sentence's words.
    pub fn message(&self) -> String {
        match self {
            NodeStatus::Online => "fully operational".to_owned(),
            NodeStatus::Offline(silent) => {
                format!("no heartbeat since {}", humantime::format_duration(*silent))
            }
            NodeStatus::Blocked => "waiting for other nodes to be upgraded".to_owned(),
            NodeStatus::NeedsUpgrade => "runs an older version than other nodes".to_owned(),
            NodeStatus::Broken => "inconsistent version".to_owned(),
        }
    }

    /// The status of each node, in their order. `now`: seconds since 1970.
    pub fn of(nodes: &[NodeRow], now: i64, offline_after: Duration) -> Vec<NodeStatus> {
        let status = |node: &NodeRow| {
            if node.is_offline(now, offline_after) {
                let silent = now.saturating_sub(node.heartbeat);
                return NodeStatus::Offline(Duration::from_secs(
                    u64::try_from(silent).unwrap_or(0),
                ));
            }
            let orders: Vec<Option<Ordering>> =
                nodes.iter().map(|other| node.level.compare(&other.level)).collect();
            if orders.contains(&None) {
                NodeStatus::Broken
            } else if orders.contains(&Some(Ordering::Greater)) {
                NodeStatus::Blocked
            } else if orders.contains(&Some(Ordering::Less)) {
                NodeStatus::NeedsUpgrade
            } else {
                NodeStatus::Online
            }
        };
        nodes.iter().map(status).collect()
    }
}
