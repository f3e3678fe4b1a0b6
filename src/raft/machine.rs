//! The state machine: what a committed entry does to the databases of this node.
//!
//! It decides nothing. It never asks whether this node leads, never waits for a session, and
//! evaluates nothing that another replica could see differently: the fence of
//! [`Store::apply`](crate::pages::Store::apply) looks at replicated facts only.
//!
//! *Invariant*: an entry is applied wholly or, as far as anybody can see, not yet; the same
//! entries in the same order leave the same bytes on every node.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::Notify;

use crate::base::planted::{Bug, planted};
use crate::base::{Executor, MemberInfo, limits};
use crate::codec::Reader;
use crate::log::{self, Log, LogId};
use crate::pages::catalog::Applied as AppliedState;
use crate::pages::delta::DeltaHeader;
use crate::pages::incoming::Ready;
use crate::pages::store::{ApplyOutcome, Place};
use crate::pages::{Catalog, PagesError, Part, Store};

use super::command::{Decoded, decode};
use super::core::members_of;
use super::fields;
use super::holds::PurgeHolds;
use super::membership::{put_stored_membership, read_stored_membership};
use super::snapshot::{ReadySnapshot, SnapshotHandle};
use super::types::{
    Applied, Outcome, RaftEntry, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
    log_id, raft_log_id,
};
use super::view::ViewSource;

/// An entry up to this size is applied without telling the runtime to move its other tasks away.
const QUICK_BYTES_MAX: usize = 64 << 10;

/// The state machine of one node.
#[derive(Clone)]
pub struct Machine {
    catalog: Arc<Catalog>,
    log: Log,
    holds: PurgeHolds,
    executor: Executor,
    /// Told when a delta from elsewhere has closed a write slot of this node.
    disturbed: Arc<Notify>,
    views: Arc<AtomicBool>,
}

impl Machine {
    /// Over the databases of `catalog`, whose entries are in `log`.
    pub fn new(
        catalog: Arc<Catalog>,
        log: Log,
        holds: PurgeHolds,
        executor: Executor,
        disturbed: Arc<Notify>,
    ) -> Machine {
        Machine { catalog, log, holds, executor, disturbed, views: Arc::default() }
    }

    /// Consensus is built: from now on a snapshot is a view of what is applied. (While it is being
    /// built, openraft asks for what would survive a restart.)
    pub fn open_views(&self) {
        self.views.store(true, Ordering::Release);
    }

    /// A pinned view of everything, or only the record where a database is damaged here: a damaged
    /// replica sends nothing, and openraft, told so by the network, asks again.
    fn current_snapshot(&self) -> io::Result<Option<Snapshot>> {
        let recorded = self.catalog.recorded();
        let record = |state: &AppliedState| {
            let meta = meta_of(state)?;
            Ok(state.last.map(|_| Snapshot { meta, snapshot: SnapshotHandle::Record }))
        };
        if !self.views.load(Ordering::Acquire) {
            return record(&recorded);
        }
        let view = match self.catalog.view(None) {
            Ok(view) => view,
            Err(error) => {
                tracing::warn!(%error, "this node cannot send a snapshot now");
                return record(&self.catalog.applied().clone());
            }
        };
        let Some(last) = view.applied().last else { return Ok(None) };
        let meta = meta_of(view.applied())?;
        let source = ViewSource::new(view, self.holds.hold(last.index));
        Ok(Some(Snapshot { meta, snapshot: SnapshotHandle::Source(Arc::new(source)) }))
    }

    /// Puts a received snapshot in place. Blocks.
    fn install(&self, ready: Ready) -> io::Result<()> {
        let log = &self.log;
        self.catalog.install(ready, |last| purge(log, last)).map_err(io_error)?;
        Ok(())
    }

    /// Applies to `store`, and to no other database, what the log holds of it beyond its place, up
    /// to what is applied here. Blocks.
    fn catch_up(&self, store: &Arc<Store>) -> io::Result<()> {
        if planted(Bug::RepairedTooEarly) {
            return Ok(());
        }
        let end = self.catalog.applied().last.map_or(0, |last| last.index + 1);
        let mut next = store.place().index;
        if let Some(purged) = self.log.state().purged
            && purged.index >= next.max(1)
        {
            next = purged.index + 1;
        }
        while next < end {
            let entries = self.log.read(next, end, limits::LOG_READ_BYTES_MAX)?;
            if entries.is_empty() {
                return Err(io::Error::other(format!("the log holds no entry {next}")));
            }
            for entry in entries {
                next = entry.id.index + 1;
                store.discard_stage_before(entry.id.term);
                if entry.kind == log::EntryKind::Command {
                    // The record stays where it is while a database is behind: before any part
                    // that is still to be gathered.
                    let before = self.catalog.recorded();
                    catch_up_command(store, &entry.payload, entry.id.index, &before)?;
                }
            }
        }
        Ok(())
    }

    /// The last step of a repair, when nothing else is being applied: what is left to catch up,
    /// and then `store` is served again. Blocks.
    fn readmit(&self, store: &Arc<Store>) -> io::Result<()> {
        self.catch_up(store)?;
        store.heal();
        self.disturbed.notify_one();
        Ok(())
    }

    /// As [`Machine::catch_up`] or, where nothing else is being applied, [`Machine::readmit`], on a
    /// thread that may block.
    pub async fn follow_aside(&self, store: Arc<Store>, last_step: bool) -> io::Result<()> {
        let machine = self.clone();
        let follow = move || {
            if last_step { machine.readmit(&store) } else { machine.catch_up(&store) }
        };
        let done = self.executor.blocking(follow).await;
        done.unwrap_or_else(|| Err(io::Error::other("the node is stopping")))
    }

    /// Applies one entry.
    pub(super) fn apply_entry(&self, entry: &RaftEntry) -> io::Result<Applied> {
        let id = log_id(&entry.log_id());
        let mut applied = self.catalog.applied();
        self.end_other_terms(&applied, id);
        let outcomes = match &entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(command) => self.apply_command(&command.0, id.index, &applied)?,
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id()), membership.clone());
                applied.membership.clear();
                put_stored_membership(&mut applied.membership, &stored);
                Vec::new()
            }
        };
        applied.last = Some(id);
        Ok(Applied { outcomes })
    }

    /// The first entry of a new term ends what was executed ahead in an older one, and deltas of
    /// which only some parts came.
    fn end_other_terms(&self, applied: &AppliedState, id: LogId) {
        if applied.last.is_none_or(|last| last.term < id.term) {
            self.catalog.discard_stages_before(id.term);
            if planted(Bug::AppliedByVersion) {
                return;
            }
            for store in self.catalog.all() {
                store.rewind();
            }
        }
    }

    fn apply_command(
        &self,
        bytes: &[u8],
        index: u64,
        before: &AppliedState,
    ) -> io::Result<Vec<Outcome>> {
        match decode(bytes).map_err(io::Error::other)? {
            Decoded::Deltas(deltas) => deltas
                .into_iter()
                .zip(1..)
                .map(|(delta, ordinal)| self.apply_delta(delta, Place { index, ordinal }))
                .collect(),
            Decoded::Create { name, page_size } => {
                if let Some(store) = self.catalog.by_name(&name)
                    && store.id() != index
                {
                    return Ok(vec![Outcome::Exists(store.id())]);
                }
                let store = self.catalog.create(index, name, page_size).map_err(io_error)?;
                Ok(vec![Outcome::Created(store.id())])
            }
            Decoded::Part(part) => {
                let outcome = self.apply_part(&part, Place { index, ordinal: 1 }, before)?;
                Ok(vec![outcome])
            }
            Decoded::Discard { database, id } => {
                if let Some(store) = self.catalog.by_id(database)
                    && !store.awaits_catching_up()
                {
                    store.discard_stage_of(id);
                }
                Ok(vec![Outcome::Applied])
            }
        }
    }

    fn apply_delta(&self, bytes: &[u8], place: Place) -> io::Result<Outcome> {
        let header = DeltaHeader::decode(&mut Reader::new(bytes)).map_err(io::Error::other)?;
        let Some(store) = self.catalog.by_id(header.database) else { return Ok(Outcome::Missing) };
        if place <= store.place() && !planted(Bug::AppliedTwice) {
            // A replay meets what the base holds already: it is not looked at.
            return Ok(Outcome::Applied);
        }
        self.applied_to(&store, || store.apply(&header, bytes, place))
    }

    fn apply_part(
        &self,
        part: &Part<'_>,
        place: Place,
        before: &AppliedState,
    ) -> io::Result<Outcome> {
        let Some(store) = self.catalog.by_id(part.database) else { return Ok(Outcome::Missing) };
        if place <= store.place() {
            return Ok(Outcome::Applied);
        }
        self.applied_to(&store, || store.apply_part(part, place, before))
    }

    fn applied_to(
        &self,
        store: &Store,
        apply: impl FnOnce() -> Result<ApplyOutcome, PagesError>,
    ) -> io::Result<Outcome> {
        let open_before = store.open_term();
        let applied = apply();
        if store.open_term() != open_before {
            self.disturbed.notify_one();
        }
        outcome_of(applied)
    }
}

fn outcome_of(applied: Result<ApplyOutcome, PagesError>) -> io::Result<Outcome> {
    match applied {
        Ok(ApplyOutcome::Applied) => Ok(Outcome::Applied),
        Ok(ApplyOutcome::Staged) => Ok(Outcome::Staged),
        Ok(ApplyOutcome::Refused) => Ok(Outcome::Refused),
        // What a damaged replica finds out about itself is nobody else's business: the log
        // goes on, and the store answers for nothing any more.
        Ok(ApplyOutcome::Skipped) | Err(PagesError::Damaged { .. }) => Ok(Outcome::Applied),
        Err(error) => Err(io_error(error)),
    }
}

/// Applies to `store` what a command holds of it.
fn catch_up_command(
    store: &Arc<Store>,
    bytes: &[u8],
    index: u64,
    before: &AppliedState,
) -> io::Result<()> {
    match decode(bytes).map_err(io::Error::other)? {
        Decoded::Deltas(deltas) => {
            for (delta, ordinal) in deltas.into_iter().zip(1..) {
                let header =
                    DeltaHeader::decode(&mut Reader::new(delta)).map_err(io::Error::other)?;
                let place = Place { index, ordinal };
                if header.database == store.id() && place > store.place() {
                    store.catch_up(&header, delta, place).map_err(io_error)?;
                }
            }
        }
        Decoded::Part(part) => {
            let place = Place { index, ordinal: 1 };
            if part.database == store.id() && place > store.place() {
                store.catch_up_part(&part, place, before).map_err(io_error)?;
            }
        }
        Decoded::Discard { database, id } if database == store.id() => store.discard_stage_of(id),
        Decoded::Discard { .. } | Decoded::Create { .. } => {}
    }
    Ok(())
}

/// Purges the log up to `last`, which a durable checkpoint record covers, and waits until that is
/// durable.
pub fn purge(log: &Log, last: LogId) -> io::Result<()> {
    log.set_purge_limit(Some(last.index));
    let (tell, told) = mpsc::sync_channel(1);
    let done = Box::new(move |result| drop(tell.send(result)));
    log.purge(last, done);
    told.recv().unwrap_or_else(|_| Err(io::Error::other("the log has stopped")))
}

pub(super) fn io_error(error: PagesError) -> io::Error {
    match error {
        PagesError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// The membership of the checkpoint record; nothing is that of a node without a log.
fn stored_membership(bytes: &[u8]) -> io::Result<StoredMembership> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let mut reader = fields::Reader::new(Bytes::copy_from_slice(bytes));
    Ok(read_stored_membership(&mut reader)?)
}

/// Who is a member, as far as it is applied here.
pub fn applied_members(catalog: &Catalog) -> Vec<MemberInfo> {
    let bytes = catalog.applied().membership.clone();
    // What was applied could be read.
    stored_membership(&bytes).map(|stored| members_of(stored.membership())).unwrap_or_default()
}

/// What the state machine has applied once the snapshot of `meta` is installed.
pub(super) fn applied_of(meta: &SnapshotMeta) -> AppliedState {
    let mut membership = Vec::new();
    put_stored_membership(&mut membership, &meta.last_membership);
    AppliedState { last: meta.last_log_id.as_ref().map(log_id), membership }
}

fn meta_of(state: &AppliedState) -> io::Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: state.last.map(raft_log_id),
        last_membership: stored_membership(&state.membership)?,
    })
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let applied = self.catalog.applied().clone();
        Ok((applied.last.map(raft_log_id), stored_membership(&applied.membership)?))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let large = matches!(&entry.payload,
                EntryPayload::Normal(command) if command.0.len() > QUICK_BYTES_MAX);
            let result = if large {
                self.executor.in_place(|| self.apply_entry(&entry))
            } else {
                self.apply_entry(&entry)
            };
            let applied = match result {
                Ok(applied) => applied,
                Err(error) => {
                    tracing::error!(index = entry.index(), %error,
                        "a committed entry cannot be applied; the node stops");
                    return Err(error);
                }
            };
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        let SnapshotHandle::Ready(ReadySnapshot(token)) = snapshot else {
            return Err(io::Error::other("a snapshot that was not received"));
        };
        let wrong = |_| io::Error::other("a snapshot that was received by somebody else");
        let ready: Box<Ready> = token.downcast().map_err(wrong)?;
        let machine = self.clone();
        let installed = self.executor.blocking(move || machine.install(*ready)).await;
        installed.unwrap_or_else(|| Err(io::Error::other("the node is stopping")))?;
        let index = meta.last_log_id.as_ref().map(|id| id.index);
        tracing::info!(index, "the snapshot is installed; this node goes on from there");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.current_snapshot()
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotHandle;

    /// Moves no data: it names what the durable checkpoint record covers, for openraft purges the
    /// log up to what this answers.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let meta = meta_of(&self.catalog.recorded())?;
        Ok(Snapshot { meta, snapshot: SnapshotHandle::Record })
    }
}
