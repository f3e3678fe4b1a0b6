//! The versioned page store: each database is a base file on disk (an ordinary SQLite file at
//! some version), an overlay of newer page images in memory, and the arithmetic of deltas,
//! hashes and digests that turns one version into the next.
//!
//! Words: *version* counts committed transactions; *base* is the version of the file; *applied*
//! is what Raft has committed and applied here; *head* is what was executed here. On a follower
//! head = applied; on the leader head runs ahead of the quorum, and a *rewind* drops everything
//! above applied.
//!
//! What is where: [`page`] and [`delta`] are values; `overlay` holds images, `base_file` the
//! file and its page hashes; [`spill`] holds what is too much for memory; [`store`] joins them
//! into one database with snapshots, publishing and rewinding; `freeze` makes a delta of what a
//! transaction wrote, [`encoded`] its form on the way to Raft, `apply` a version of a delta or of
//! its parts; `fold` is the checkpoint of one database; [`catalog`] knows all databases and the
//! node's checkpoint record; [`view`] is what another member copies, [`incoming`] what this one
//! receives, and `install` how that is put in place.
//!
//! It knows neither SQLite's calls nor Raft: a delta is bytes, a place in the log two numbers.
//!
//! *Invariant*: no page reaches the base file that was not applied; nothing is served from the
//! base file that does not match its page hash; `applied` moves only over a delta whose database,
//! base version, parent and digests all match.

mod apply;
mod base_file;
pub mod catalog;
#[cfg(test)]
mod copies;
pub mod delta;
pub mod encoded;
mod fold;
mod formats;
mod freeze;
pub mod incoming;
mod install;
mod overlay;
pub mod page;
pub mod spill;
pub mod store;
pub mod view;

use std::io;

use crate::base::Fate;

pub use apply::Part;
pub use catalog::Catalog;
pub use formats::newer_format;
pub use freeze::{Freeze, Frozen};
pub use page::PageNo;
pub use store::{Point, Snapshot, Store};

/// Why the page store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
    /// Bytes are not what their hash, digest or format says.
    #[error("database {database} is damaged on this member: {what}")]
    Damaged {
        /// The database's name.
        database: String,
        /// What does not match.
        what: String,
    },
    /// What says where the databases of the data directory are cannot be trusted: no node can start
    /// on it.
    #[error("the data directory is damaged: {0}")]
    Directory(String),
    /// A snapshot was kept open so long that its pages had to go.
    #[error("this snapshot is too old; begin a new transaction")]
    SnapshotTooOld,
    /// The snapshot stood on a version that was dropped when leadership was lost.
    #[error("leadership lost")]
    Rewound,
    /// This node does not lead (any more): nothing may be published.
    #[error("not leader")]
    NotLeader,
    /// The transaction would do what no transaction may (another page size, another format).
    #[error("{0}")]
    Refused(&'static str),
}

impl PagesError {
    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            PagesError::Io(_) | PagesError::Damaged { .. } => Fate::RetryElsewhere,
            PagesError::Directory(_) => Fate::Fatal,
            PagesError::SnapshotTooOld => Fate::RetryHere,
            PagesError::Rewound | PagesError::NotLeader => Fate::RetryElsewhere,
            PagesError::Refused(_) => Fate::Reject,
        }
    }
}
