//! One database: its versions, snapshots of them (`snapshot.rs`), and the four ways a version
//! changes hands: *freeze and publish* (a transaction here made a new head; `freeze.rs`), *apply*
//! (Raft committed a delta; `apply.rs`), *rewind* (everything above applied is dropped) and the
//! fold of `fold.rs` (the base moves up).
//!
//! Locks, always in this order: the stage, the publish permit, the overlay, the state. No lock is held
//! across a disk write; a reader holds none while it reads the base file.
//!
//! *Invariant*: base <= applied <= head; `pending` holds exactly the versions above applied, in
//! order; a snapshot is registered and its version read under one lock.

mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::channel::oneshot;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::base::planted::{Bug, planted};
use crate::base::{DatabaseId, DatabaseName, DeltaId, limits};
use crate::disk::{Disk, SqliteLock};

use super::PagesError;
use super::apply::Stage;
use super::base_file::BaseFile;
use super::encoded::{Encoded, Parts};
use super::fold::Folded;
use super::freeze::Frozen;
use super::overlay::Overlay;
use super::page::{Image, PageNo};
use super::spill::SpillSpace;

pub use snapshot::Snapshot;
pub(super) use snapshot::{APPLIED, Stands};

/// How many rewinds back the validity of an old snapshot can still be told.
const REWINDS_REMEMBERED: usize = 64;

/// A database at one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Transactions committed so far.
    pub version: u64,
    /// Pages in the database.
    pub page_count: u32,
    /// XOR of all page hashes.
    pub digest: u128,
    /// The delta that made this version.
    pub delta: DeltaId,
}

/// Where a delta stands in the log: its entry's index and its number within the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the entry.
    pub index: u64,
    /// Number of the delta within the entry, from 1; 0 is before the first.
    pub ordinal: u32,
}

/// What became of a delta that Raft committed. Every replica comes to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyOutcome {
    /// It made the next version.
    Applied,
    /// It is a part, and others are to follow.
    Staged,
    /// The fence refused it: it was made on a version that is not this database's last one.
    Refused,
    /// This replica is damaged and did not look: its applied version stays behind.
    Skipped,
}

/// How a wait for a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The version is applied: a quorum holds it.
    Applied,
    /// The version was dropped by a rewind. `proposed`: its delta had been handed to Raft, so
    /// nobody here can tell whether it will be committed.
    Dropped {
        /// Whether the delta had been handed to Raft.
        proposed: bool,
    },
}

/// A published delta, or a part of one, on its way to Raft.
#[derive(Clone)]
pub struct Outgoing {
    /// The delta's id; the term in it is the term it must be appended in.
    pub id: DeltaId,
    /// The whole encoded delta; empty where it goes in parts.
    pub bytes: Bytes,
    /// Its parts and which of them it is, where it goes in parts.
    pub part: Option<(Arc<Parts>, u32)>,
}

pub(super) struct PendingVersion {
    pub(super) point: Point,
    pages: Vec<PageNo>,
    proposed: bool,
    /// How many of its parts were taken, where it goes in parts.
    parts_taken: u32,
    pub(super) encoded: Encoded,
}

#[derive(Clone, Copy)]
struct Rewind {
    /// The epoch that the rewind ended.
    ended: u64,
    /// The version that survived it.
    floor: u64,
}

pub(super) struct State {
    pub(super) base: Point,
    pub(super) base_place: Place,
    pub(super) applied: Point,
    pub(super) place: Place,
    pub(super) head: Point,
    /// Counts openings and rewinds; a handle's cache is valid for one epoch only.
    epoch: u64,
    /// The term in which this node may publish; `None` while it may not.
    open: Option<u64>,
    /// Never reset, so that no two deltas of one term share an id.
    sequence: u64,
    pub(super) pending: VecDeque<PendingVersion>,
    unproposed: usize,
    pending_bytes: usize,
    rewinds: VecDeque<Rewind>,
    readers: BTreeMap<u64, u32>,
    /// Snapshots below this version were given up; nothing is kept for them.
    pub(super) oldest_readable: u64,
    waiters: BTreeMap<(u64, u64), oneshot::Sender<Resolution>>,
    waiter_count: u64,
}

impl State {
    /// The versions whose images must stay, ascending, ending with applied.
    pub(super) fn keep(&self) -> Vec<u64> {
        let applied = self.applied.version;
        let from = self.oldest_readable.min(applied);
        let mut keep: Vec<u64> = self.readers.range(from..applied).map(|(v, _)| *v).collect();
        keep.push(applied);
        keep
    }

    pub(super) fn pin(&mut self, version: u64) {
        *self.readers.entry(version).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, version: u64) {
        if let Some(count) = self.readers.get_mut(&version) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&version);
            }
        }
    }

    fn survives(&self, epoch: u64, version: u64) -> bool {
        if epoch == self.epoch {
            return true;
        }
        // Each epoch ends once, so the rewind that ended this one is there unless forgotten.
        match self.rewinds.iter().find(|rewind| rewind.ended >= epoch) {
            Some(rewind) => rewind.ended == epoch && version <= rewind.floor,
            None => false,
        }
    }

    /// The first delta of which `which` is true will never be applied. Nor will those on top of it,
    /// though they may be in the log: the fence lets nothing pass whose base never was. Whether there
    /// is such a delta.
    fn note_never_from(&mut self, which: impl Fn(DeltaId) -> bool) -> bool {
        let Some(at) = self.pending.iter().position(|pending| which(pending.point.delta)) else {
            return false;
        };
        self.pending.iter_mut().skip(at).for_each(|pending| pending.proposed = false);
        true
    }

    fn wait(&mut self, version: u64) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        self.waiter_count += 1;
        self.waiters.insert((version, self.waiter_count), sender);
        Waiting::Later(receiver)
    }

    fn resolve_waiters(&mut self) {
        let applied = self.applied.version;
        let later = self.waiters.split_off(&(applied + 1, 0));
        for waiter in std::mem::replace(&mut self.waiters, later).into_values() {
            // The waiter may have gone away.
            let _ = waiter.send(Resolution::Applied);
        }
    }
}

/// One database on this member.
pub struct Store {
    id: DatabaseId,
    name: DatabaseName,
    page_size: usize,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) base: BaseFile,
    pub(super) overlay: RwLock<Overlay>,
    pub(super) state: Mutex<State>,
    /// Copy of the state's epoch, to be read without its lock.
    epoch: AtomicU64,
    /// Odd while a fold copies pages into the base.
    pub(super) fold_count: AtomicU64,
    /// A fold began to copy pages into the base and has not finished.
    pub(super) half_copied: AtomicBool,
    /// Copy of the state's `oldest_readable`, to be read without its lock.
    pub(super) oldest_readable: AtomicU64,
    permit_taken: Mutex<bool>,
    permit_free: Condvar,
    damaged: AtomicBool,
    retired: AtomicBool,
    catching_up: AtomicBool,
    damage: Mutex<Option<String>>,
    pub(super) folding: Mutex<()>,
    /// Locked before the publish permit.
    pub(super) stage: Mutex<Option<Stage>>,
    spill: Arc<SpillSpace>,
    progress: AtomicU64,
}

impl Store {
    /// Opens a database whose base file is at `base`, reached by the delta at `place`.
    pub fn open(
        disk: Arc<dyn Disk>,
        id: DatabaseId,
        name: DatabaseName,
        page_size: usize,
        base: Point,
        place: Place,
    ) -> Result<Arc<Store>, PagesError> {
        let spill = SpillSpace::new(disk.clone(), Arc::default(), limits::SPILL_BYTES_MAX);
        Store::open_with(disk, spill, id, name, page_size, base, place)
    }

    /// The same, with large transactions in `spill`.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        spill: Arc<SpillSpace>,
        id: DatabaseId,
        name: DatabaseName,
        page_size: usize,
        base: Point,
        place: Place,
    ) -> Result<Arc<Store>, PagesError> {
        let file = BaseFile::open(&*disk, name.as_str(), page_size)?;
        // For as long as it is open here, a stock SQLite may read the file but not write it.
        file.lock(SqliteLock::Reserved)?;
        Ok(Arc::new(Store {
            id,
            name,
            page_size,
            disk,
            base: file,
            overlay: RwLock::new(Overlay::new(base.version)),
            state: Mutex::new(State {
                base,
                base_place: place,
                applied: base,
                place,
                head: base,
                epoch: 0,
                open: None,
                sequence: 0,
                pending: VecDeque::new(),
                unproposed: 0,
                pending_bytes: 0,
                rewinds: VecDeque::new(),
                readers: BTreeMap::new(),
                oldest_readable: 0,
                waiters: BTreeMap::new(),
                waiter_count: 0,
            }),
            epoch: AtomicU64::new(0),
            fold_count: AtomicU64::new(0),
            half_copied: AtomicBool::new(false),
            oldest_readable: AtomicU64::new(0),
            permit_taken: Mutex::new(false),
            permit_free: Condvar::new(),
            damaged: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            catching_up: AtomicBool::new(false),
            damage: Mutex::new(None),
            folding: Mutex::new(()),
            stage: Mutex::new(None),
            spill,
            progress: AtomicU64::new(0),
        }))
    }

    /// Its id.
    pub fn id(&self) -> DatabaseId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &DatabaseName {
        &self.name
    }

    /// Bytes in a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The last version that is committed and applied here.
    pub fn applied(&self) -> Point {
        self.state.lock().applied
    }

    /// The last version that was executed here.
    pub fn head(&self) -> Point {
        self.state.lock().head
    }

    /// Where the delta that made the applied version stands in the log.
    pub fn place(&self) -> Place {
        self.state.lock().place
    }

    /// The epoch: a handle's view of the head is good for one of them.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Versions and bytes of deltas above applied.
    pub fn run_ahead(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.pending.len(), state.pending_bytes)
    }

    /// Bytes of page images above the base, and of older ones for readers.
    pub fn overlay_bytes(&self) -> u64 {
        let (heap, spilled) = self.overlay_held();
        heap + spilled
    }

    /// The same: in memory, and in files.
    pub fn overlay_held(&self) -> (u64, u64) {
        let held = self.overlay.read().held();
        let bytes = |images: usize| (images * self.page_size) as u64;
        (bytes(held.heap), bytes(held.spilled))
    }

    /// By how much the base would grow if it were at the head.
    pub(super) fn growth_bytes(&self) -> u64 {
        let state = self.state.lock();
        let pages = state.head.page_count.max(state.applied.page_count);
        u64::from(pages.saturating_sub(state.base.page_count)) * (self.page_size as u64 + 16)
    }

    /// Where images and deltas go that are too many for memory.
    pub(super) fn spill(&self) -> &Arc<SpillSpace> {
        &self.spill
    }

    /// Whether folding would move the base.
    pub fn is_dirty(&self) -> bool {
        let state = self.state.lock();
        state.base.version != state.applied.version
    }

    /// What is damaged here, if anything is.
    pub fn damage(&self) -> Option<String> {
        if !self.damaged.load(Ordering::Acquire) {
            return None;
        }
        self.damage.lock().clone()
    }

    /// Notes that this replica is damaged: from now on it serves nothing and applies nothing.
    pub fn set_damaged(&self, what: String) -> PagesError {
        // A repaired copy that turns out to be damaged too is repaired again from the start.
        let was_catching_up = self.catching_up.swap(false, Ordering::AcqRel);
        let mut damage = self.damage.lock();
        if damage.is_none() || was_catching_up {
            tracing::error!(database = %self.name, %what,
                "this member's copy of the database is damaged; it stops serving it");
            *damage = Some(what.clone());
        }
        self.damaged.store(true, Ordering::Release);
        PagesError::Damaged { database: self.name.to_string(), what }
    }

    /// Serves and applies nothing until [`Store::heal`], though nothing is wrong.
    pub(super) fn hold_back(&self, why: &str) {
        self.catching_up.store(true, Ordering::Release);
        *self.damage.lock() = Some(why.to_owned());
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether it is a repaired copy that has yet to follow the log.
    pub fn awaits_catching_up(&self) -> bool {
        self.catching_up.load(Ordering::Acquire)
    }

    /// Ends what [`Store::hold_back`] began: the repaired copy has caught up.
    pub fn heal(&self) {
        self.catching_up.store(false, Ordering::Release);
        *self.damage.lock() = None;
        self.damaged.store(false, Ordering::Release);
    }

    /// Takes the place of `old`: no id of a delta is used again, and the slot opens only by a
    /// confirmation, for deltas of `old` may still be on their way.
    pub(super) fn succeed(&self, old: Option<&Store>) {
        let _permit = self.take_permit();
        self.rewind_locked(None);
        let used = old.map_or(0, |old| old.state.lock().sequence);
        self.state.lock().sequence = used;
    }

    /// Another store has taken this one's place: it lives on for the readers that it has.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        let _permit = self.take_permit();
        self.rewind_locked(None);
    }

    /// Whether another store has taken this one's place (or the database was dropped).
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// What the base file is at.
    pub(super) fn folded(&self) -> Folded {
        let state = self.state.lock();
        Folded { point: state.base, place: state.base_place }
    }

    pub(super) fn check_damage(&self) -> Result<(), PagesError> {
        if self.is_retired() {
            return Err(PagesError::Rewound);
        }
        match self.damage() {
            None => Ok(()),
            Some(what) => Err(PagesError::Damaged { database: self.name.to_string(), what }),
        }
    }

    // ---- the leader's side: open, freeze, publish, propose

    /// This node leads in `term` and everything before is applied: transactions may publish.
    /// Returns the new epoch.
    pub fn open_slot(&self, term: u64) -> u64 {
        let _permit = self.take_permit();
        self.rewind_locked(Some(term))
    }

    /// Forbids publishing until the slot is opened again. What is published goes on its way.
    pub fn close_slot(&self) {
        // What has been frozen is published before the permit is free.
        let _permit = self.take_permit();
        self.state.lock().open = None;
    }

    /// Drops everything above applied and forbids publishing until the slot is opened again.
    pub fn rewind(&self) {
        let _permit = self.take_permit();
        let ahead = {
            let state = self.state.lock();
            if state.open.is_none() && state.pending.is_empty() {
                return;
            }
            state.pending.len()
        };
        self.rewind_locked(None);
        if ahead > 0 {
            tracing::warn!(database = %self.name, versions = ahead,
                "leadership was lost: dropped the transactions that were not committed yet");
        }
    }

    /// As [`Store::rewind`], after Raft said that it did not append the deltas `ids`.
    pub fn rewind_not_appended(&self, ids: &[DeltaId]) {
        self.state.lock().note_never_from(|id| ids.contains(&id));
        self.rewind();
    }

    /// Whether the delta `id` is above applied here.
    pub fn is_pending(&self, id: DeltaId) -> bool {
        self.state.lock().pending.iter().any(|pending| pending.point.delta == id)
    }

    /// The term in which transactions may publish; `None` while they may not.
    pub fn open_term(&self) -> Option<u64> {
        self.state.lock().open
    }

    /// Opens the slot of a database that was created in `term`, the first time: nothing was ever
    /// executed here that could have been dropped. Whether it is open in `term` now.
    pub fn open_new(&self, term: u64) -> bool {
        let _permit = self.take_permit();
        let (open, epoch) = {
            let state = self.state.lock();
            (state.open, state.epoch)
        };
        if open.is_none() && epoch == 0 {
            self.rewind_locked(Some(term));
            return true;
        }
        open == Some(term)
    }

    /// With the permit held: drops what is above applied and begins a new epoch.
    fn rewind_locked(&self, open: Option<u64>) -> u64 {
        let mut overlay = self.overlay.write();
        let mut state = self.state.lock();
        let floor = state.applied.version;
        let mut proposed = BTreeMap::new();
        for pending in std::mem::take(&mut state.pending) {
            for page in pending.pages.iter().filter(|_| !planted(Bug::SpeculationKept)) {
                overlay.rewind(*page, floor);
            }
            proposed.insert(pending.point.version, pending.proposed);
        }
        (state.unproposed, state.pending_bytes) = (0, 0);
        let ended = state.epoch;
        state.rewinds.push_back(Rewind { ended, floor });
        if state.rewinds.len() > REWINDS_REMEMBERED {
            state.rewinds.pop_front();
        }
        state.epoch += 1;
        state.open = open;
        state.head = state.applied;
        self.epoch.store(state.epoch, Ordering::Release);
        for ((version, _), waiter) in std::mem::take(&mut state.waiters) {
            let proposed = proposed.get(&version).copied().unwrap_or(false);
            let _ = waiter.send(Resolution::Dropped { proposed });
        }
        state.epoch
    }

    pub(super) fn take_permit(&self) -> PermitGuard<'_> {
        let mut taken = self.permit_taken.lock();
        while *taken {
            self.permit_free.wait(&mut taken);
        }
        *taken = true;
        PermitGuard { store: self }
    }

    pub(super) fn release_permit(&self) {
        *self.permit_taken.lock() = false;
        self.permit_free.notify_one();
    }

    /// With the permit held: the identity of the delta that a transaction on `snapshot` makes, if
    /// it may be published.
    pub(super) fn identify(&self, snapshot: &Snapshot) -> Result<(u64, u64), PagesError> {
        let mut state = self.state.lock();
        let Some(term) = state.open else { return Err(PagesError::NotLeader) };
        if state.epoch != snapshot.epoch {
            return Err(PagesError::Rewound);
        }
        if state.head != snapshot.point {
            return Err(PagesError::Refused("a second writer without the write slot"));
        }
        state.sequence += 1;
        Ok((term, state.sequence))
    }

    /// Links a frozen delta into the overlay as the new head; cannot fail. Returns the head's
    /// snapshot for the handle that published it, and where its author will be told its end.
    pub fn publish(self: &Arc<Store>, frozen: Frozen) -> (Snapshot, Waiting) {
        let Frozen { permit, point, images, encoded } = frozen;
        let mut overlay = self.overlay.write();
        let mut state = self.state.lock();
        let keep = state.keep();
        let mut pages = Vec::with_capacity(images.len());
        for (page, image) in images {
            overlay.push(page, point.version, image, &keep);
            pages.push(page);
        }
        assert_eq!(state.head.version + 1, point.version, "the permit guards the head");
        state.head = point;
        state.pending_bytes += encoded.bytes();
        state.unproposed += 1;
        let (proposed, parts_taken) = (false, 0);
        state.pending.push_back(PendingVersion { point, pages, proposed, parts_taken, encoded });
        state.pin(point.version);
        let epoch = state.epoch;
        let waiting = state.wait(point.version);
        drop((state, overlay));
        drop(permit);
        let snapshot = Snapshot { store: self.clone(), point, epoch, of_applied: false };
        (snapshot, waiting)
    }

    /// The next published delta, or part of one, that Raft has not been given yet.
    pub fn take_outgoing(&self) -> Option<Outgoing> {
        let mut state = self.state.lock();
        let at = state.pending.len().checked_sub(state.unproposed)?;
        let pending = state.pending.get_mut(at)?;
        pending.proposed = true;
        let (bytes, part, done) = match &pending.encoded {
            Encoded::Whole(bytes) => (bytes.clone(), None, true),
            Encoded::Parts(parts) => {
                let number = pending.parts_taken;
                pending.parts_taken += 1;
                let done = pending.parts_taken == parts.count();
                (Bytes::new(), Some((parts.clone(), number)), done)
            }
        };
        let outgoing = Outgoing { id: pending.point.delta, bytes, part };
        if done {
            state.unproposed -= 1;
        }
        Some(outgoing)
    }

    /// Whether what [`Store::take_outgoing`] would answer is a part.
    pub fn next_is_part(&self) -> bool {
        let state = self.state.lock();
        let at = state.pending.len().checked_sub(state.unproposed);
        let next = at.and_then(|at| state.pending.get(at));
        next.is_some_and(|pending| matches!(pending.encoded, Encoded::Parts(_)))
    }

    /// Waits until `version`, seen in `epoch`, is applied or dropped. (Its author was given a wait
    /// of its own when it published.)
    pub fn wait_applied(&self, version: u64, epoch: u64) -> Waiting {
        let mut state = self.state.lock();
        if !state.survives(epoch, version) {
            return Waiting::Now(Resolution::Dropped { proposed: true });
        }
        if version <= state.applied.version {
            return Waiting::Now(Resolution::Applied);
        }
        state.wait(version)
    }

    // ---- every replica's side: apply

    /// If the delta is the oldest pending version: moves applied over it.
    pub(super) fn advance_own(&self, id: DeltaId, digest: u128, place: Place) -> bool {
        let mut state = self.state.lock();
        let own = |front: &PendingVersion| {
            planted(Bug::AppliedByVersion)
                || front.point.delta == id && front.point.digest == digest
        };
        if !state.pending.front().is_some_and(own) {
            return false;
        }
        let Some(pending) = state.pending.pop_front() else { return false };
        state.pending_bytes -= pending.encoded.bytes();
        state.unproposed = state.unproposed.min(state.pending.len());
        state.applied = pending.point;
        state.place = place;
        state.resolve_waiters();
        drop(state);
        self.note_progress();
        true
    }

    /// A delta that the fence refused is certainly not applied: if it is one of ours, what was
    /// executed on it is dropped.
    pub(super) fn rewind_refused(&self, id: DeltaId) {
        let own = self.state.lock().note_never_from(|pending| pending == id);
        if own {
            self.rewind();
        }
    }

    /// Moves applied to a version that was made from a foreign delta.
    pub(super) fn link_applied(&self, point: Point, images: Vec<(PageNo, Image)>, place: Place) {
        let mut overlay = self.overlay.write();
        let mut state = self.state.lock();
        let keep = state.keep();
        for (page, image) in images {
            overlay.push(page, point.version, image, &keep);
        }
        (state.applied, state.head, state.place) = (point, point, place);
        state.resolve_waiters();
        drop((state, overlay));
        self.note_progress();
    }

    pub(super) fn with_state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.state.lock())
    }

    pub(super) fn note_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts deltas and parts of deltas that were applied: while it moves, a wait is not in vain.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Reads every page of the applied version and compares hashes and digest. The digest it
    /// computed; an error (and a damaged replica) when a page or the sum does not match.
    pub fn verify(self: &Arc<Store>) -> Result<Point, PagesError> {
        let snapshot = self.snapshot_applied()?;
        let mut page_bytes = vec![0; self.page_size];
        let mut digest = 0;
        for page in 1..=snapshot.point.page_count {
            let (version, stands): (u64, Stands<'_>) =
                (snapshot.point.version, &|| snapshot.check());
            digest ^= self.read_page(page, version, stands, &mut page_bytes)?;
            // The page of a snapshot that was given up meanwhile is another version's.
            snapshot.check()?;
        }
        if digest != snapshot.point.digest {
            return Err(self.set_damaged("the digest of its pages is not the recorded one".into()));
        }
        Ok(snapshot.point)
    }
}

pub(super) struct PermitGuard<'a> {
    store: &'a Store,
}

impl Drop for PermitGuard<'_> {
    fn drop(&mut self) {
        self.store.release_permit();
    }
}

/// The end of a wait, or where it will be told.
pub enum Waiting {
    /// It has ended already.
    Now(Resolution),
    /// It will end here.
    Later(oneshot::Receiver<Resolution>),
}

impl Waiting {
    /// Waits for the end.
    pub async fn resolved(self) -> Resolution {
        match self {
            Waiting::Now(resolution) => resolution,
            // The store resolves every waiter before it goes.
            Waiting::Later(receiver) => {
                receiver.await.unwrap_or(Resolution::Dropped { proposed: true })
            }
        }
    }
}
