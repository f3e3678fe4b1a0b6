//! What a connection and its database file share: which store, which view of it, whether the
//! connection holds the write slot, and what the file has seen and published.
//!
//! *Invariant*: every version that a connection read or made is noted here before SQLite can
//! return a row of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::base::planted::{Bug, planted};
use crate::pages::store::Waiting;
use crate::pages::{PagesError, Point, Snapshot, Store};

/// Which version a connection's transactions begin on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The head: the leader's own executed, perhaps uncommitted version. May write.
    Head,
    /// The applied version. Never writes.
    Applied,
}

/// A version seen in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The version.
    pub version: u64,
    /// The epoch it was seen in.
    pub epoch: u64,
}

/// A delta that a connection published.
pub struct Published {
    /// The version it made.
    pub point: Point,
    /// In which epoch.
    pub epoch: u64,
    /// Where its end will be told.
    pub waiting: Waiting,
}

#[derive(Default)]
struct Notes {
    seen: Option<Seen>,
    /// The last version that the connection held, for as long as it lives.
    held: Option<Seen>,
    published: Vec<Published>,
    error: Option<PagesError>,
}

/// The link between a connection and its database file.
pub struct Link {
    store: Arc<Store>,
    view: View,
    may_write: AtomicBool,
    transaction_bytes_max: u64,
    notes: Mutex<Notes>,
    /// The epoch of the version that the connection holds, as in the notes: looked at before each
    /// statement. None is 0.
    held_epoch: AtomicU64,
    /// Whether the notes have an error.
    failed: AtomicBool,
    /// The statement that runs has published.
    committed: AtomicBool,
}

impl Link {
    /// A link to `store`. It may write only after [`Link::allow_write`].
    pub fn new(store: Arc<Store>, view: View, transaction_bytes_max: u64) -> Arc<Link> {
        Arc::new(Link {
            store,
            view,
            may_write: AtomicBool::new(false),
            transaction_bytes_max,
            notes: Mutex::default(),
            held_epoch: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            committed: AtomicBool::new(false),
        })
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The view.
    pub fn view(&self) -> View {
        self.view
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> usize {
        self.store.page_size()
    }

    /// A transaction may write this many bytes of pages.
    pub fn transaction_bytes_max(&self) -> u64 {
        self.transaction_bytes_max
    }

    /// Whether the connection holds the write slot now.
    pub fn may_write(&self) -> bool {
        self.may_write.load(Ordering::Acquire)
    }

    /// The connection has got (or gives back) the write slot.
    pub fn allow_write(&self, allowed: bool) {
        self.may_write.store(allowed, Ordering::Release);
    }

    /// A transaction began on this snapshot.
    pub fn note_seen(&self, snapshot: &Snapshot) {
        let seen = Seen { version: snapshot.point().version, epoch: snapshot.epoch() };
        self.hold(&mut self.notes.lock(), seen);
    }

    /// A transaction was published.
    pub fn note_published(&self, snapshot: &Snapshot, waiting: Waiting) {
        let (point, epoch) = (snapshot.point(), snapshot.epoch());
        let mut notes = self.notes.lock();
        self.hold(&mut notes, Seen { version: point.version, epoch });
        notes.published.push(Published { point, epoch, waiting });
        self.committed.store(true, Ordering::Relaxed);
    }

    /// Whether the statement that runs has committed: it is not to be stopped any more.
    pub fn has_committed(&self) -> bool {
        self.committed.load(Ordering::Relaxed)
    }

    fn hold(&self, notes: &mut Notes, seen: Seen) {
        (notes.seen, notes.held) = (Some(seen), Some(seen));
        self.held_epoch.store(seen.epoch, Ordering::Relaxed);
    }

    /// Whether nothing that the connection has held was dropped by a rewind. If not, it is of no
    /// use any more, for ever: SQLite checks its schema, statements and virtual tables by the
    /// schema cookie alone, and another leader's history reaches the same cookie.
    #[inline]
    pub fn stands(&self) -> bool {
        // What was applied is never dropped, nor is anything of the epoch that still is.
        self.view == View::Applied
            || self.held_epoch.load(Ordering::Relaxed) == self.store.epoch()
            || self.held_stands()
            || planted(Bug::ConnectionReused)
    }

    fn held_stands(&self) -> bool {
        let held = self.notes.lock().held;
        held.is_none_or(|held| self.store.stands(held.epoch, held.version))
    }

    /// Why the file refused; SQLite itself only learns a code.
    pub fn note_error(&self, error: PagesError) {
        self.notes.lock().error = Some(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// The last version that was seen, if nobody took it.
    pub fn seen(&self) -> Option<Seen> {
        self.notes.lock().seen
    }

    /// The last version that was seen since this was last asked.
    pub fn take_seen(&self) -> Option<Seen> {
        self.notes.lock().seen.take()
    }

    /// The last version that the connection held: what it knows of the schema is of this one, or of
    /// one that this one stands on.
    pub fn held(&self) -> Option<Seen> {
        self.notes.lock().held
    }

    /// What was published since this was last asked.
    pub fn take_published(&self) -> Vec<Published> {
        std::mem::take(&mut self.notes.lock().published)
    }

    /// Why the file refused last, since this was last asked.
    pub fn take_error(&self) -> Option<PagesError> {
        self.failed.store(false, Ordering::Relaxed);
        self.notes.lock().error.take()
    }

    /// What was not asked for until now is not asked for any more.
    #[inline]
    pub fn begin_statement(&self) {
        self.committed.store(false, Ordering::Relaxed);
        if self.failed.load(Ordering::Relaxed) {
            self.take_error();
        }
    }

    /// Something happened that must not be possible: going on could lose or corrupt data.
    pub fn stop_node(&self, what: &str) {
        tracing::error!(database = %self.store.name(), what,
            "this is a bug; the node stops to keep the data as it is");
        std::process::abort();
    }
}
