//! The *proposer*: the one task that appends published deltas to the log, and the one that sees
//! what came of them.
//!
//! Databases have their turn, one bounded entry each: small deltas go several to an entry, a
//! large one goes in parts, of which only a few are on their way at a time. So a large transaction
//! neither fills the memory nor keeps the others waiting.
//!
//! *Invariant*: one task appends; deltas of a database are appended in the order of their
//! versions, each in the term of its epoch; at most [`limits::PARTS_IN_FLIGHT_MAX`] parts are
//! proposed and not applied.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::base::{DeltaId, limits};
use crate::pages::store::Outgoing;
use crate::pages::{Part, Store};
use crate::raft::command::{self, DELTA_OVERHEAD_BYTES};
use crate::raft::{Command, WriteFailure, core::Written};

use super::Member;

/// What one entry carries.
struct Proposal {
    store: Arc<Store>,
    ids: Vec<DeltaId>,
    /// A part holds its place among those on their way.
    in_flight: Option<OwnedSemaphorePermit>,
}

type Proposed = (Result<Written, WriteFailure>, Proposal);

struct Proposer {
    member: Arc<Member>,
    sender: mpsc::Sender<Proposed>,
    parts: Arc<Semaphore>,
    /// Whose turn is first in the next round.
    turn: usize,
    /// The delta that was discarded last.
    discarded: Option<DeltaId>,
}

/// Starts the task that appends deltas, and the one that sees what came of them.
pub fn spawn_proposer(member: &Arc<Member>) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = mpsc::channel(limits::PROPOSALS_OPEN_MAX);
    let outcomes = tokio::spawn(watch_proposals(member.clone(), receiver));
    let parts = Arc::new(Semaphore::new(limits::PARTS_IN_FLIGHT_MAX));
    let mut proposer = Proposer { member: member.clone(), sender, parts, turn: 0, discarded: None };
    let appending = tokio::spawn(async move {
        loop {
            proposer.member.published.notified().await;
            while proposer.round().await {}
        }
    });
    [appending, outcomes]
}

impl Proposer {
    /// Gives every database its turn, one entry each. Whether anything was proposed.
    async fn round(&mut self) -> bool {
        let mut stores = self.member.catalog.all();
        if stores.is_empty() {
            return false;
        }
        self.turn = (self.turn + 1) % stores.len();
        stores.rotate_left(self.turn);
        let mut any = false;
        for store in stores {
            let in_flight = if store.next_is_part() {
                // Woken again when one of those on their way has arrived.
                let Ok(permit) = self.parts.clone().try_acquire_owned() else { continue };
                Some(permit)
            } else {
                None
            };
            let Some(first) = store.take_outgoing() else {
                self.discard_abandoned(&store).await;
                continue;
            };
            any = true;
            let term = first.id.term;
            let (command, ids) = self.entry(&store, first);
            let written = match command {
                Ok(command) => self.member.core.write(command, term).await,
                Err(error) => {
                    tracing::error!(database = %store.name(), %error,
                        "a part of a large transaction cannot be read; it is given up");
                    Err(WriteFailure::Unknown)
                }
            };
            let proposal = Proposal { store, ids, in_flight };
            if self.sender.send((written, proposal)).await.is_err() {
                return false;
            }
        }
        any
    }

    /// What the next entry carries.
    fn entry(
        &self,
        store: &Arc<Store>,
        first: Outgoing,
    ) -> (std::io::Result<Command>, Vec<DeltaId>) {
        match first.part {
            None => {
                let (bytes, ids) = gather(store, first);
                (Ok(command::deltas(&bytes)), ids)
            }
            Some((parts, number)) => {
                let read = self.member.env.executor.in_place(|| parts.read(number));
                let command = read.map(|bytes| {
                    let (database, last) = (store.id(), number + 1 == parts.count());
                    command::part(&Part { database, id: first.id, number, last, bytes: &bytes })
                });
                (command, vec![first.id])
            }
        }
    }

    /// Parts of a delta that was dropped here after some of them were appended would keep the log
    /// from being purged for as long as nothing else is written to the database: says that the
    /// others will not come.
    async fn discard_abandoned(&mut self, store: &Arc<Store>) {
        let Some((id, _)) = store.stage() else { return };
        let Some(term) = store.open_term() else { return };
        if store.is_pending(id) || self.discarded == Some(id) {
            return;
        }
        self.discarded = Some(id);
        let written = self.member.core.write(command::discard(store.id(), id), term).await;
        let proposal = Proposal { store: store.clone(), ids: Vec::new(), in_flight: None };
        // Whatever comes of it: a later delta or term does the same.
        let _ = self.sender.send((written, proposal)).await;
    }
}

/// As many deltas as one entry takes.
fn gather(store: &Arc<Store>, first: Outgoing) -> (Vec<Bytes>, Vec<DeltaId>) {
    let mut size = first.bytes.len() + DELTA_OVERHEAD_BYTES;
    let (mut bytes, mut ids) = (vec![first.bytes], vec![first.id]);
    while size < limits::ENTRY_GATHERED_BYTES
        && !store.next_is_part()
        && let Some(next) = store.take_outgoing()
    {
        size += next.bytes.len() + DELTA_OVERHEAD_BYTES;
        bytes.push(next.bytes);
        ids.push(next.id);
    }
    (bytes, ids)
}

/// Sees what came of each proposal, in order. Success was told by apply; a failure rewinds.
async fn watch_proposals(member: Arc<Member>, mut receiver: mpsc::Receiver<Proposed>) {
    while let Some((written, proposal)) = receiver.recv().await {
        let applied = match written {
            Ok(written) => written.applied().await.map(drop),
            Err(failure) => Err(failure),
        };
        let Proposal { store, ids, in_flight } = proposal;
        if let Some(permit) = in_flight {
            drop(permit);
            member.published.notify_one();
        }
        let Err(failure) = applied else { continue };
        // A later epoch has other deltas: only the one that failed is rewound.
        let Some(id) = ids.iter().find(|id| store.is_pending(**id)) else { continue };
        member.reconfirm(id.term);
        match failure {
            WriteFailure::NotAppended => store.rewind_not_appended(&ids),
            WriteFailure::Unknown => store.rewind(),
        }
    }
}
