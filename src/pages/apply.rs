//! Every replica's side: a committed delta, whole or in parts, moves applied.
//!
//! A delta of this node's own making, still pending, is only recognised; its bytes are not looked
//! at. Any other is patched into new images. Parts are patched as they come and gathered in the
//! database's *stage*, which is state-machine state: it follows from the log alone, is made anew
//! by replay, and is discarded by whatever the log has for this database that is not the next
//! part.
//!
//! *Invariant*: `applied` moves only over a delta whose database, base version, parent and digests
//! all match; a stage is seen by nobody before its last part.

use std::sync::Arc;

use crate::base::planted::{Bug, planted};
use crate::base::{DatabaseId, DeltaId, limits};
use crate::codec::Reader;

use super::PagesError;
use super::catalog::Applied;
use super::delta::{ChangedPage, DeltaHeader};
use super::encoded::{Encoded, Parts};
use super::page::{Image, PageNo, page_hash};
use super::spill::Spill;
use super::store::{APPLIED, ApplyOutcome, Place, Point, State, Store};

/// One part of a delta, as an entry carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// Which database.
    pub database: DatabaseId,
    /// The delta's own id.
    pub id: DeltaId,
    /// The part's number, from 0.
    pub number: u32,
    /// Whether it is the last one, which publishes the delta.
    pub last: bool,
    /// The delta's header (first part only) and whole changed pages.
    pub bytes: &'a [u8],
}

/// The parts of one delta so far.
pub(super) struct Stage {
    id: DeltaId,
    next: u32,
    /// What was applied before the first part: replay must begin there.
    before: Applied,
    gathered: Gathered,
}

enum Gathered {
    /// This node made it and still has it pending.
    Own(Arc<Parts>),
    /// New images, of which nobody knows yet.
    Foreign(Box<Patch>),
}

/// The new images of a delta, being made.
struct Patch {
    header: DeltaHeader,
    before: Point,
    digest: u128,
    /// The last page that was changed: they come in order.
    last: PageNo,
    images: Vec<(PageNo, Image)>,
    spill: Spill,
}

impl Store {
    /// Applies a committed delta that stands at `place`. `bytes` is the whole encoded delta, of
    /// which `header` was decoded.
    pub fn apply(
        &self,
        header: &DeltaHeader,
        bytes: &[u8],
        place: Place,
    ) -> Result<ApplyOutcome, PagesError> {
        if self.is_skipping() {
            return Ok(ApplyOutcome::Skipped);
        }
        self.catch_up(header, bytes, place)
    }

    /// As [`Store::apply`], also where this store holds back: its repaired copy follows the log.
    pub fn catch_up(
        &self,
        header: &DeltaHeader,
        bytes: &[u8],
        place: Place,
    ) -> Result<ApplyOutcome, PagesError> {
        *self.stage.lock() = None;
        if !self.fence(header) {
            return Ok(ApplyOutcome::Refused);
        }
        if self.advance_own(header.id, header.digest_after, place) {
            return Ok(ApplyOutcome::Applied);
        }
        self.rewind();
        let patched = || -> Result<(), PagesError> {
            let mut patch = self.begin_patch(header, limits::TRANSACTION_HEAP_BYTES_MAX)?;
            self.patch(&mut patch, bytes.get(DeltaHeader::BYTES..).unwrap_or_default())?;
            self.finish_patch(patch, place)
        };
        patched().map_err(|error| self.left_behind(error))?;
        Ok(ApplyOutcome::Applied)
    }

    /// Applied stays behind after a failure: what follows must be skipped, not refused by the
    /// fence.
    fn left_behind(&self, error: PagesError) -> PagesError {
        match error {
            PagesError::Io(error) => self.set_damaged(format!("cannot apply a delta: {error}")),
            other => other,
        }
    }

    /// Applies one part of a committed delta. `before` is what was applied before its entry.
    pub fn apply_part(
        &self,
        part: &Part<'_>,
        place: Place,
        before: &Applied,
    ) -> Result<ApplyOutcome, PagesError> {
        if self.is_skipping() {
            return Ok(ApplyOutcome::Skipped);
        }
        self.catch_up_part(part, place, before)
    }

    /// As [`Store::apply_part`], also where this store holds back.
    pub fn catch_up_part(
        &self,
        part: &Part<'_>,
        place: Place,
        before: &Applied,
    ) -> Result<ApplyOutcome, PagesError> {
        self.stage_part(part, place, before).map_err(|error| self.left_behind(error))
    }

    /// Whether a damaged replica does not look at what is applied. A repaired copy that catches up
    /// keeps what it gathers; it is at another place in the log.
    fn is_skipping(&self) -> bool {
        let skips = self.damage().is_some();
        if skips && !self.awaits_catching_up() {
            *self.stage.lock() = None;
        }
        skips
    }

    fn stage_part(
        &self,
        part: &Part<'_>,
        place: Place,
        before: &Applied,
    ) -> Result<ApplyOutcome, PagesError> {
        let taken = self.stage.lock().take();
        let stage = match taken {
            _ if part.number == 0 => self.begin_stage(part, before)?,
            Some(stage) if stage.id == part.id && stage.next == part.number => Some(stage),
            _ => None,
        };
        let Some(mut stage) = stage else {
            self.rewind_refused(part.id);
            return Ok(ApplyOutcome::Refused);
        };
        stage.next += 1;
        self.gather(&mut stage, part)?;
        self.note_progress();
        if !part.last {
            *self.stage.lock() = Some(stage);
            return Ok(ApplyOutcome::Staged);
        }
        let Stage { gathered, .. } = stage;
        match gathered {
            Gathered::Foreign(patch) if !self.fence(&patch.header) => {
                return Ok(ApplyOutcome::Refused);
            }
            Gathered::Foreign(patch) => self.finish_patch(*patch, place)?,
            Gathered::Own(parts) => {
                let header = self.header_of(&parts)?;
                let advanced = self.advance_own(header.id, header.digest_after, place);
                debug_assert!(advanced, "gather found it pending");
            }
        }
        Ok(ApplyOutcome::Applied)
    }

    /// The delta whose parts are being gathered, and what was applied before the first of them.
    pub fn stage(&self) -> Option<(DeltaId, Applied)> {
        self.stage.lock().as_ref().map(|stage| (stage.id, stage.before.clone()))
    }

    /// The log has an entry of this term: what was gathered in an earlier one is forgotten.
    pub fn discard_stage_before(&self, term: u64) {
        let mut stage = self.stage.lock();
        if stage.as_ref().is_some_and(|stage| stage.id.term < term) {
            *stage = None;
        }
    }

    /// Forgets the parts of the delta `id`, if they are what is being gathered.
    pub fn discard_stage_of(&self, id: DeltaId) {
        let mut stage = self.stage.lock();
        if stage.as_ref().is_some_and(|stage| stage.id == id) {
            *stage = None;
        }
    }

    /// The first part: `None` when the fence refuses it.
    fn begin_stage(&self, part: &Part<'_>, before: &Applied) -> Result<Option<Stage>, PagesError> {
        let header = DeltaHeader::decode(&mut Reader::new(part.bytes))
            .map_err(|error| self.set_damaged(format!("a committed delta is {error}")))?;
        if header.id != part.id || !self.fence(&header) {
            return Ok(None);
        }
        let own = self.with_state(|state| own_parts(state, &header));
        let gathered = match own {
            Some(parts) => Gathered::Own(parts),
            None => {
                self.rewind();
                Gathered::Foreign(Box::new(self.begin_patch(&header, 0)?))
            }
        };
        Ok(Some(Stage { id: part.id, next: 0, before: before.clone(), gathered }))
    }

    fn gather(&self, stage: &mut Stage, part: &Part<'_>) -> Result<(), PagesError> {
        if let Gathered::Own(parts) = &stage.gathered {
            if self.with_state(|state| is_front(state, part.id)) {
                return Ok(());
            }
            // It was rewound meanwhile: what was only recognised so far has to be patched.
            let parts = parts.clone();
            let mut patch = self.begin_patch(&self.header_of(&parts)?, 0)?;
            for number in 0..part.number {
                let bytes = parts.read(number)?;
                self.patch(&mut patch, pages_of(number, &bytes))?;
            }
            stage.gathered = Gathered::Foreign(Box::new(patch));
        }
        match &mut stage.gathered {
            Gathered::Own(_) => Ok(()),
            Gathered::Foreign(patch) => self.patch(patch, pages_of(part.number, part.bytes)),
        }
    }

    fn header_of(&self, parts: &Parts) -> Result<DeltaHeader, PagesError> {
        DeltaHeader::decode(&mut Reader::new(parts.header()))
            .map_err(|error| self.set_damaged(format!("a delta of this node's own is {error}")))
    }

    /// Whether a delta was made on the last version here: from replicated facts only. One of our
    /// own that is refused ends what was executed ahead.
    fn fence(&self, header: &DeltaHeader) -> bool {
        let passes = self.with_state(|state| {
            let applied = state.applied;
            if planted(Bug::AppliedTwice) {
                return true;
            }
            header.database == self.id()
                && header.base_version == applied.version
                && header.parent == applied.delta
        });
        if !passes {
            self.rewind_refused(header.id);
        }
        passes
    }

    /// Begins to patch a delta that passed the fence.
    fn begin_patch(&self, header: &DeltaHeader, heap_bytes: usize) -> Result<Patch, PagesError> {
        let before = self.applied();
        if header.digest_before != before.digest {
            return Err(self.set_damaged(format!(
                "version {} has another digest than the leader's",
                before.version
            )));
        }
        let heap_bytes = heap_bytes.min(self.heap_room());
        let spill = Spill::unbounded(self.spill(), heap_bytes);
        Ok(Patch {
            header: *header,
            before,
            digest: before.digest,
            last: 0,
            images: Vec::new(),
            spill,
        })
    }

    /// Makes the new images of the changed pages in `bytes`.
    fn patch(&self, patch: &mut Patch, bytes: &[u8]) -> Result<(), PagesError> {
        let malformed = |error| self.set_damaged(format!("a committed delta is {error}"));
        let mut reader = Reader::new(bytes);
        let mut content = vec![0; self.page_size()];
        while !reader.rest().is_empty() {
            let changed = ChangedPage::decode(&mut reader).map_err(malformed)?;
            let page = changed.number;
            let after = patch.last;
            if page <= after || page > patch.header.page_count {
                let what = format!("a committed delta names page {page} after page {after}");
                return Err(self.set_damaged(what));
            }
            patch.last = page;
            if page <= patch.before.page_count {
                patch.digest ^= if changed.is_whole() {
                    self.hash_of(page, patch.before.version, APPLIED)?
                } else {
                    self.read_page(page, patch.before.version, APPLIED, &mut content)?
                };
            } else {
                content.fill(0);
            }
            changed.patch(&mut content).map_err(malformed)?;
            let hash = page_hash(page, &content);
            patch.digest ^= hash;
            patch.images.push((page, Image { body: patch.spill.keep_anyway(&content), hash }));
        }
        Ok(())
    }

    /// Checks the new version and moves applied to it.
    fn finish_patch(&self, patch: Patch, place: Place) -> Result<(), PagesError> {
        let Patch { header, before, mut digest, images, .. } = patch;
        if u32::try_from(images.len()) != Ok(header.changed_count) {
            let found = images.len();
            return Err(self.set_damaged(format!("a committed delta has {found} pages")));
        }
        // They come in order, each once: so many new ones are all of them.
        let new = images.iter().rev().take_while(|(page, _)| *page > before.page_count).count();
        if u32::try_from(new) != Ok(header.page_count.saturating_sub(before.page_count)) {
            return Err(self.set_damaged(format!("a committed delta has {new} new pages")));
        }
        for page in header.page_count.saturating_add(1)..=before.page_count {
            digest ^= self.hash_of(page, before.version, APPLIED)?;
        }
        if digest != header.digest_after {
            return Err(self.set_damaged(format!(
                "version {} came out with another digest than the leader's",
                before.version + 1
            )));
        }
        // Parts came before; something may have been executed here meanwhile.
        self.rewind();
        let point = Point {
            version: before.version + 1,
            page_count: header.page_count,
            digest,
            delta: header.id,
        };
        self.link_applied(point, images, place);
        Ok(())
    }
}

/// The parts of the oldest pending version, if this is its delta.
fn own_parts(state: &mut State, header: &DeltaHeader) -> Option<Arc<Parts>> {
    let front = state.pending.front()?;
    let own = front.point.delta == header.id && front.point.digest == header.digest_after;
    match &front.encoded {
        Encoded::Parts(parts) if own => Some(parts.clone()),
        _ => None,
    }
}

fn is_front(state: &mut State, id: DeltaId) -> bool {
    state.pending.front().is_some_and(|pending| pending.point.delta == id)
}

fn pages_of(number: u32, bytes: &[u8]) -> &[u8] {
    let from = if number == 0 { DeltaHeader::BYTES } else { 0 };
    bytes.get(from..).unwrap_or_default()
}
