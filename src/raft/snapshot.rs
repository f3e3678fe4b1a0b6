//! The seam between the state machine, which knows databases and pages, and the transport of a
//! snapshot ([`super::transfer`]), which knows frames and flow control.
//!
//! A follower that is too far behind gets a *view*: every database as of one place in the log,
//! pinned in one call. The sender's side of a view is a [`SnapshotSource`]. The receiver's side is
//! a [`SnapshotSink`]: it hears what is offered, says which pages it lacks (what it holds with the
//! same hash, in its own base or from a broken transfer, is skipped), takes pages in chunks, and
//! at the end, having verified and synced everything, gives out a [`ReadySnapshot`]. Only that
//! token goes through openraft: installing it is a matter of renames, not of moving data, for
//! openraft does nothing else on that node meanwhile.
//!
//! All calls may block: the transport makes them on [`Executor::blocking`], one at a time for a
//! sink. A source is dropped when its transfer is over, whatever came of it, and a sink likewise
//! unless it was finished: what it received so far is its own to keep for the next attempt.
//!
//! *Invariant*: no page reaches a base file before [`SnapshotSink::finish`] has verified all of
//! them, and a source answers the same bytes for the same question as long as it lives.
//!
//! [`Executor::blocking`]: crate::base::Executor::blocking

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::types::SnapshotMeta;
use crate::base::DatabaseId;

/// The hash of one page's number and content, as the page store computes it.
pub type PageHash = u128;

/// Consecutive pages of one database. Page numbers begin at 1, as SQLite's do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first page.
    pub first: u32,
    /// How many; never 0.
    pub count: u32,
}

/// One database of an offered snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseOffer {
    /// Which database.
    pub id: DatabaseId,
    /// Its page size in bytes: a power of two from 512 to 65,536.
    pub page_bytes: u32,
    /// How many pages it has.
    pub page_count: u32,
    /// What else the state machine wants to know of it (name, position, version, digest):
    /// opaque to the transport, at most [`limits::SNAPSHOT_ABOUT_BYTES_MAX`] long.
    ///
    /// [`limits::SNAPSHOT_ABOUT_BYTES_MAX`]: crate::base::limits::SNAPSHOT_ABOUT_BYTES_MAX
    pub about: Bytes,
}

/// What a receiver hears first: everything but pages.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotOffer {
    /// The node that sends it.
    pub from: u64,
    /// The place in the log and the membership.
    pub meta: SnapshotMeta,
    /// Every database, in the order in which they will come.
    pub databases: Vec<DatabaseOffer>,
}

/// The sender's side: a pinned view of every database.
pub trait SnapshotSource: Send + Sync + 'static {
    /// The databases of the view, in the order in which they will be sent.
    fn databases(&self) -> Vec<DatabaseOffer>;

    /// The hashes of `pages` (all of which exist), in page order.
    fn hashes(&self, database: DatabaseId, pages: PageRange) -> io::Result<Vec<PageHash>>;

    /// Appends the bytes of `pages` (all of which exist) to `out`, in page order.
    fn read(&self, database: DatabaseId, pages: PageRange, out: &mut Vec<u8>) -> io::Result<()>;
}

/// The receiver's side of one transfer. An error ends the transfer; the next attempt is a new sink.
pub trait SnapshotSink: Send + 'static {
    /// Hears what will come. An error refuses the snapshot.
    fn begin(&mut self, offer: &SnapshotOffer) -> io::Result<()>;

    /// Which of the pages `first`, `first + 1`, ... with these hashes it lacks: disjoint ranges in
    /// ascending order. Pages that it holds with the same hash it keeps by itself.
    fn missing(
        &mut self,
        database: DatabaseId,
        first: u32,
        hashes: &[PageHash],
    ) -> io::Result<Vec<PageRange>>;

    /// Takes pages that it said it lacked: whole pages, from `first` on.
    fn receive(&mut self, database: DatabaseId, first: u32, pages: &[u8]) -> io::Result<()>;

    /// Everything has come: verify digests, make all of it durable, and give out the token.
    fn finish(self: Box<Self>) -> io::Result<ReadySnapshot>;
}

/// A received snapshot, verified and durable, not yet in place: the state machine's own token.
pub struct ReadySnapshot(pub Box<dyn Any + Send>);

/// What openraft carries as a snapshot's data.
pub enum SnapshotHandle {
    /// No data: the answer of a build, which only names the durable checkpoint.
    Record,
    /// A pinned view, to be sent.
    Source(Arc<dyn SnapshotSource>),
    /// A received snapshot, to be installed.
    Ready(ReadySnapshot),
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotHandle::Record => "Record",
            SnapshotHandle::Source(_) => "Source",
            SnapshotHandle::Ready(_) => "Ready",
        })
    }
}
