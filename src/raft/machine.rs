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

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::Notify;

use crate::base::Executor;
use crate::codec::Reader;
use crate::log::LogId;
use crate::pages::catalog::Applied as AppliedState;
use crate::pages::delta::DeltaHeader;
use crate::pages::store::{ApplyOutcome, Place};
use crate::pages::{Catalog, PagesError, Part, Store};

use super::command::{Decoded, decode};
use super::fields;
use super::membership::{put_stored_membership, read_stored_membership};
use super::snapshot::SnapshotHandle;
use super::types::{
    Applied, Outcome, RaftEntry, RaftLogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
    log_id, raft_log_id,
};

/// An entry up to this size is applied without telling the runtime to move its other tasks away.
const QUICK_BYTES_MAX: usize = 64 << 10;

/// The state machine of one node.
#[derive(Clone)]
pub struct Machine {
    catalog: Arc<Catalog>,
    executor: Executor,
    /// Told when a delta from elsewhere has closed a write slot of this node.
    disturbed: Arc<Notify>,
}

impl Machine {
    /// Over the databases of `catalog`.
    pub fn new(catalog: Arc<Catalog>, executor: Executor, disturbed: Arc<Notify>) -> Machine {
        Machine { catalog, executor, disturbed }
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
            self.catalog.discard_stages();
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
                if let Some(store) = self.catalog.by_id(database) {
                    store.discard_stage_of(id);
                }
                Ok(vec![Outcome::Applied])
            }
        }
    }

    fn apply_delta(&self, bytes: &[u8], place: Place) -> io::Result<Outcome> {
        let header = DeltaHeader::decode(&mut Reader::new(bytes)).map_err(io::Error::other)?;
        let Some(store) = self.catalog.by_id(header.database) else { return Ok(Outcome::Missing) };
        if place <= store.place() {
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

fn io_error(error: PagesError) -> io::Error {
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
        _meta: &SnapshotMeta,
        _snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        Err(io::Error::other("snapshots are not received yet"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let recorded = self.catalog.recorded();
        if recorded.last.is_none() {
            return Ok(None);
        }
        Ok(Some(Snapshot { meta: meta_of(&recorded)?, snapshot: SnapshotHandle::Record }))
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
