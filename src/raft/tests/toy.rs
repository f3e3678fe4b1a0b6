//! A state machine for tests: it remembers the bytes of all commands, one after the other. Its
//! snapshots go through the real transport, as one database of that content.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;

use super::super::snapshot::*;
use super::super::types::*;
use crate::base::DatabaseId;

const PAGE_BYTES: usize = 512;

#[derive(Default)]
pub struct ToyState {
    pub applied: Option<RaftLogId>,
    pub membership: StoredMembership,
    pub content: Vec<u8>,
    built: Option<SnapshotMeta>,
    pub installed: u64,
}

/// Clones share the state.
#[derive(Clone, Default)]
pub struct Toy(pub Arc<Mutex<ToyState>>);

impl RaftSnapshotBuilder<TypeConfig> for Toy {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let mut state = self.0.lock();
        let meta =
            SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        state.built = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: SnapshotHandle::Record })
    }
}

impl RaftStateMachine<TypeConfig> for Toy {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Toy;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        let state = self.0.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.0.lock();
            state.applied = Some(entry.log_id);
            let mut outcomes = Vec::new();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    state.content.extend_from_slice(&command.0);
                    outcomes.push(Outcome::Applied);
                }
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(Applied { outcomes });
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Toy {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> io::Result<()> {
        let content = match snapshot {
            SnapshotHandle::Record => panic!("a record has no data"),
            SnapshotHandle::Source(source) => {
                let mut sink = ToySink::default();
                copy(&*source, meta, &mut sink)?;
                sink.content()
            }
            SnapshotHandle::Ready(ReadySnapshot(token)) => *token.downcast().unwrap(),
        };
        let mut state = self.0.lock();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.content = content;
        state.built = Some(meta.clone());
        state.installed += 1;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let state = self.0.lock();
        if state.built.is_none() {
            return Ok(None);
        }
        let meta =
            SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        let source = Arc::new(ToySource { content: state.content.clone() });
        Ok(Some(Snapshot { meta, snapshot: SnapshotHandle::Source(source) }))
    }
}

struct ToySource {
    content: Vec<u8>,
}

impl ToySource {
    fn page(&self, number: u32) -> Vec<u8> {
        let mut page: Vec<u8> =
            self.content.chunks(PAGE_BYTES).nth(number as usize - 1).unwrap_or(&[]).to_vec();
        page.resize(PAGE_BYTES, 0);
        page
    }
}

impl SnapshotSource for ToySource {
    fn databases(&self) -> Vec<DatabaseOffer> {
        let about = Bytes::from((self.content.len() as u64).to_le_bytes().to_vec());
        let page_count = self.content.len().div_ceil(PAGE_BYTES) as u32;
        vec![DatabaseOffer { id: 1, page_bytes: PAGE_BYTES as u32, page_count, about }]
    }

    fn hashes(&self, _: DatabaseId, pages: PageRange) -> io::Result<Vec<PageHash>> {
        let numbers = pages.first..pages.first + pages.count;
        Ok(numbers.map(|number| xxhash_rust::xxh3::xxh3_128(&self.page(number))).collect())
    }

    fn read(&self, _: DatabaseId, pages: PageRange, out: &mut Vec<u8>) -> io::Result<()> {
        (pages.first..pages.first + pages.count).for_each(|number| out.extend(self.page(number)));
        Ok(())
    }
}

/// Takes every page.
#[derive(Default)]
pub struct ToySink {
    len: usize,
    pages: Vec<u8>,
}

impl ToySink {
    fn content(mut self) -> Vec<u8> {
        self.pages.truncate(self.len);
        self.pages
    }
}

impl SnapshotSink for ToySink {
    fn begin(&mut self, offer: &SnapshotOffer) -> io::Result<()> {
        self.len = u64::from_le_bytes(offer.databases[0].about[..].try_into().unwrap()) as usize;
        Ok(())
    }

    fn missing(
        &mut self,
        _: DatabaseId,
        first: u32,
        hashes: &[PageHash],
    ) -> io::Result<Vec<PageRange>> {
        Ok(vec![PageRange { first, count: hashes.len() as u32 }])
    }

    fn receive(&mut self, _: DatabaseId, first: u32, pages: &[u8]) -> io::Result<()> {
        assert_eq!(self.pages.len(), (first as usize - 1) * PAGE_BYTES);
        self.pages.extend_from_slice(pages);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<ReadySnapshot> {
        Ok(ReadySnapshot(Box::new(self.content())))
    }
}

fn copy(source: &dyn SnapshotSource, meta: &SnapshotMeta, sink: &mut ToySink) -> io::Result<()> {
    let databases = source.databases();
    let offer = SnapshotOffer { from: 0, meta: meta.clone(), databases: databases.clone() };
    sink.begin(&offer)?;
    for number in 1..=databases[0].page_count {
        let mut page = Vec::new();
        source.read(1, PageRange { first: number, count: 1 }, &mut page)?;
        sink.receive(1, number, &page)?;
    }
    Ok(())
}
