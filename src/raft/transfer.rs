//! The transport of a snapshot: what [`super::snapshot`]'s source has, over a connection, into its
//! sink. Drawn in docs/format.md, "Peer frames".
//!
//! The sender offers the databases, then goes through their pages a block at a time: it sends the
//! block's hashes, hears which pages the receiver lacks, and sends those in compressed chunks, of
//! which a bounded number is on its way. The hashes of the next block are sent before the pages of
//! this one, so that nobody waits for the other's answer. A transfer that breaks is begun anew;
//! the receiver then lacks only what it had not got yet.
//!
//! *Invariant*: the receiver is handed only pages that were offered, whole ones, and it hears of
//! `END` only when it got all that it lacked.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::connection::Connection;
use super::fields::{Malformed, Reader, put_log_id_option, put_text, put_vote};
use super::frames::{Frame, FrameBuilder, kind};
use super::membership::{put_stored_membership, read_stored_membership};
use super::snapshot::{
    DatabaseOffer, PageHash, PageRange, ReadySnapshot, SnapshotOffer, SnapshotSink, SnapshotSource,
};
use super::types::{RaftVote, SnapshotMeta, log_id, log_vote, raft_log_id, raft_vote};
use crate::base::{DatabaseId, Executor, limits};
use crate::pages::page::is_page_size;

/// Why a transfer ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection broke, or the other side broke the protocol.
    #[error("snapshot transfer broke: {0}")]
    Broken(#[from] io::Error),
    /// The receiver gave up, and said why.
    #[error("the receiver gave up: {0}")]
    Failed(String),
    /// This side's own databases could not be read or written.
    #[error("this side of the snapshot failed: {0}")]
    Local(io::Error),
}

impl From<Malformed> for TransferError {
    fn from(error: Malformed) -> TransferError {
        TransferError::Broken(error.into())
    }
}

fn invalid(what: &'static str) -> TransferError {
    Malformed(what).into()
}

/// Runs a call of a source or a sink where it may block.
async fn local<T: Send + 'static>(
    executor: Executor,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, TransferError> {
    let stopping = || io::Error::other("the node is stopping");
    executor.blocking(work).await.unwrap_or_else(|| Err(stopping())).map_err(TransferError::Local)
}

/// The next frame, if it comes in time.
async fn next(connection: &mut Connection) -> Result<(u8, Reader), TransferError> {
    let silence = limits::SNAPSHOT_SILENCE_MAX;
    let frame = tokio::time::timeout(silence, connection.expect()).await;
    let (frame_kind, body) = frame.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok((frame_kind, Reader::new(body)))
}

async fn put(connection: &mut Connection, frame: Frame) -> Result<(), TransferError> {
    let silence = limits::SNAPSHOT_SILENCE_MAX;
    let sent = tokio::time::timeout(silence, connection.send(frame)).await;
    Ok(sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
}

/// A block of pages whose hashes go over at a time.
#[derive(Clone, Copy, Debug)]
struct Block {
    database: DatabaseId,
    page_bytes: u32,
    pages: PageRange,
}

/// The blocks of all databases, in order.
fn blocks(databases: &[DatabaseOffer]) -> impl Iterator<Item = Block> {
    databases.iter().flat_map(|database| {
        let step = limits::SNAPSHOT_HASHES_MAX;
        (0..database.page_count.div_ceil(step)).map(move |block| {
            let before = block * step;
            let count = (database.page_count - before).min(step);
            let pages = PageRange { first: before + 1, count };
            Block { database: database.id, page_bytes: database.page_bytes, pages }
        })
    })
}

/// The sending side.
struct Sender<'a> {
    connection: &'a mut Connection,
    source: Arc<dyn SnapshotSource>,
    executor: Executor,
    in_flight: usize,
    answers: VecDeque<Vec<PageRange>>,
    installed: Option<RaftVote>,
}

/// Sends a snapshot and waits until it is installed. Returns the receiver's vote then.
pub async fn send(
    connection: &mut Connection,
    from: u64,
    vote: &RaftVote,
    meta: SnapshotMeta,
    source: Arc<dyn SnapshotSource>,
    executor: Executor,
) -> Result<RaftVote, TransferError> {
    let databases = {
        let source = source.clone();
        local(executor, move || Ok(source.databases())).await?
    };
    let offer = SnapshotOffer { from, meta, databases };
    push_offer(connection, vote, &offer);
    let mut sender = Sender {
        connection,
        source,
        executor,
        in_flight: 0,
        answers: VecDeque::new(),
        installed: None,
    };
    let mut blocks = blocks(&offer.databases);
    let mut block = blocks.next();
    if let Some(first) = block {
        sender.ask(first).await?;
    }
    while let Some(this) = block {
        let following = blocks.next();
        if let Some(following) = following {
            sender.ask(following).await?;
        }
        sender.send_missing(this).await?;
        block = following;
    }
    sender.put(FrameBuilder::new(kind::END, 0).finish()).await?;
    loop {
        if let Some(vote) = sender.installed {
            return Ok(vote);
        }
        sender.hear().await?;
    }
}

impl Sender<'_> {
    /// Sends the hashes of a block.
    async fn ask(&mut self, block: Block) -> Result<(), TransferError> {
        let source = self.source.clone();
        let hashes =
            local(self.executor, move || source.hashes(block.database, block.pages)).await?;
        if hashes.len() != block.pages.count as usize {
            return Err(TransferError::Local(io::Error::other("not one hash for each page")));
        }
        let mut frame = FrameBuilder::new(kind::HASHES, 16 + hashes.len() * 16);
        let fields = frame.fields();
        fields.put_u64_le(block.database);
        fields.put_u32_le(block.pages.first);
        fields.put_u32_le(block.pages.count);
        for hash in hashes {
            fields.put_u128_le(hash);
        }
        self.put(frame.finish()).await
    }

    /// Waits for what the receiver lacks of a block, and sends it.
    async fn send_missing(&mut self, block: Block) -> Result<(), TransferError> {
        let missing = loop {
            match self.answers.pop_front() {
                Some(missing) => break missing,
                None => self.hear().await?,
            }
        };
        check_ranges(&missing, block.pages)?;
        let pages_max = (limits::SNAPSHOT_CHUNK_BYTES_MAX / block.page_bytes as usize) as u32;
        for range in missing {
            let end = range.first + range.count;
            for first in (range.first..end).step_by(pages_max as usize) {
                let count = pages_max.min(end - first);
                while self.in_flight >= limits::SNAPSHOT_CHUNKS_IN_FLIGHT_MAX {
                    self.hear().await?;
                }
                self.send_chunk(block, PageRange { first, count }).await?;
            }
        }
        Ok(())
    }

    async fn send_chunk(&mut self, block: Block, pages: PageRange) -> Result<(), TransferError> {
        let source = self.source.clone();
        let bytes = pages.count as usize * block.page_bytes as usize;
        let compressed = local(self.executor, move || {
            let mut raw = Vec::with_capacity(bytes);
            source.read(block.database, pages, &mut raw)?;
            if raw.len() != bytes {
                return Err(io::Error::other("not as many bytes as pages"));
            }
            Ok(Bytes::from(lz4_flex::block::compress(&raw)))
        });
        let compressed = compressed.await?;
        let mut frame = FrameBuilder::new(kind::PAGES, 16);
        let fields = frame.fields();
        fields.put_u64_le(block.database);
        fields.put_u32_le(pages.first);
        fields.put_u32_le(pages.count);
        frame.payload(&compressed);
        self.in_flight += 1;
        self.put(frame.finish()).await
    }

    /// Writes a frame, and meanwhile hears what comes: the receiver may be writing too, and then
    /// it reads nothing.
    async fn put(&mut self, frame: Frame) -> Result<(), TransferError> {
        self.connection.writer.push(frame);
        while self.connection.writer.pending() {
            let Connection { reader, writer } = &mut *self.connection;
            let frame = tokio::select! {
                biased;
                written = writer.write_some() => {
                    written?;
                    continue;
                }
                frame = reader.next() => frame?,
                () = tokio::time::sleep(limits::SNAPSHOT_SILENCE_MAX) => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
            };
            let (frame_kind, body) = frame.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
            self.heard(frame_kind, Reader::new(body))?;
        }
        Ok(())
    }

    /// Waits for something to hear.
    async fn hear(&mut self) -> Result<(), TransferError> {
        let (frame_kind, reader) = next(self.connection).await?;
        self.heard(frame_kind, reader)
    }

    fn heard(&mut self, frame_kind: u8, mut reader: Reader) -> Result<(), TransferError> {
        match frame_kind {
            kind::MISSING => {
                let mut missing = Vec::new();
                for _ in 0..reader.count(8, "missing pages")? {
                    let first = reader.u32("first missing page")?;
                    missing.push(PageRange { first, count: reader.u32("missing pages")? });
                }
                self.answers.push_back(missing);
            }
            kind::TAKEN => {
                self.in_flight =
                    self.in_flight.checked_sub(1).ok_or(Malformed("taken without pages"))?;
            }
            kind::ALIVE => {}
            kind::INSTALLED => self.installed = Some(raft_vote(reader.vote("receiver's vote")?)),
            kind::FAILED => return Err(TransferError::Failed(reader.text("failure")?)),
            _ => return Err(invalid("frame of a snapshot's receiver")),
        }
        Ok(())
    }
}

/// Ranges must be ascending, disjoint and within `pages`.
fn check_ranges(ranges: &[PageRange], pages: PageRange) -> Result<(), TransferError> {
    let mut from = u64::from(pages.first);
    let end = from + u64::from(pages.count);
    for range in ranges {
        let first = u64::from(range.first);
        if first < from || range.count == 0 || first + u64::from(range.count) > end {
            return Err(invalid("range of missing pages"));
        }
        from = first + u64::from(range.count);
    }
    Ok(())
}

fn push_offer(connection: &mut Connection, vote: &RaftVote, offer: &SnapshotOffer) {
    let mut frame = FrameBuilder::new(kind::OFFER, 256);
    let fields = frame.fields();
    put_vote(fields, log_vote(vote));
    put_log_id_option(fields, offer.meta.last_log_id.as_ref().map(log_id));
    put_stored_membership(fields, &offer.meta.last_membership);
    fields.put_u32_le(offer.databases.len() as u32);
    connection.writer.push(frame.finish());
    for database in &offer.databases {
        let mut frame = FrameBuilder::new(kind::DATABASE, 16 + database.about.len());
        let fields = frame.fields();
        fields.put_u64_le(database.id);
        fields.put_u32_le(database.page_bytes);
        fields.put_u32_le(database.page_count);
        frame.payload(&database.about);
        connection.writer.push(frame.finish());
    }
}

async fn read_offer(
    connection: &mut Connection,
    from: u64,
) -> Result<Option<(RaftVote, SnapshotOffer)>, TransferError> {
    let mut reader = match connection.reader.next().await? {
        None => return Ok(None),
        Some((kind::OFFER, body)) => Reader::new(body),
        Some(_) => return Err(invalid("offer of a snapshot")),
    };
    let vote = raft_vote(reader.vote("sender's vote")?);
    let last_log_id = reader.log_id_option("snapshot's last entry")?.map(raft_log_id);
    let last_membership = read_stored_membership(&mut reader)?;
    let count = reader.u32("databases")?;
    reader.finish("offer")?;
    let mut databases = Vec::new();
    for _ in 0..count {
        let (kind::DATABASE, mut reader) = next(connection).await? else {
            return Err(invalid("database of an offer"));
        };
        let id = reader.u64("database id")?;
        let page_bytes = reader.u32("page size")?;
        let page_count = reader.u32("page count")?;
        let about = reader.rest();
        let sound = is_page_size(page_bytes as usize);
        // The last page number is one less than can be counted, so that ranges have an end.
        if !sound || page_count == u32::MAX || about.len() > limits::SNAPSHOT_ABOUT_BYTES_MAX {
            return Err(invalid("database of an offer"));
        }
        databases.push(DatabaseOffer { id, page_bytes, page_count, about });
    }
    let meta = SnapshotMeta { last_log_id, last_membership };
    Ok(Some((vote, SnapshotOffer { from, meta, databases })))
}

/// The receiving side.
struct Receiver<'a> {
    connection: &'a mut Connection,
    sink: Option<Box<dyn SnapshotSink>>,
    executor: Executor,
    offer: SnapshotOffer,
}

/// Receives one snapshot from node `from` into the sink that `open` makes, and hands it to
/// `install`, which answers with this node's vote. False when the other side closed instead of
/// offering one.
pub async fn receive<I, F>(
    connection: &mut Connection,
    from: u64,
    executor: Executor,
    open: impl FnOnce() -> io::Result<Box<dyn SnapshotSink>> + Send + 'static,
    install: I,
) -> Result<bool, TransferError>
where
    I: FnOnce(RaftVote, SnapshotMeta, ReadySnapshot) -> F,
    F: Future<Output = io::Result<RaftVote>>,
{
    let Some((vote, offer)) = read_offer(connection, from).await? else { return Ok(false) };
    let mut receiver = Receiver { connection, sink: None, executor, offer };
    let received = receiver.run(vote, open, install).await;
    if let Err(TransferError::Local(error)) = &received {
        let reason = error.to_string();
        let mut frame = FrameBuilder::new(kind::FAILED, reason.len() + 2);
        put_text(frame.fields(), &reason);
        put(receiver.connection, frame.finish()).await?;
        // Closing at once would throw away the reason, on its way against what the sender writes.
        let closed = async { while let Ok(Some(_)) = receiver.connection.reader.next().await {} };
        let _ = tokio::time::timeout(limits::SNAPSHOT_FAREWELL_MAX, closed).await;
    }
    received.map(|()| true)
}

impl Receiver<'_> {
    async fn run<I, F>(
        &mut self,
        vote: RaftVote,
        open: impl FnOnce() -> io::Result<Box<dyn SnapshotSink>> + Send + 'static,
        install: I,
    ) -> Result<(), TransferError>
    where
        I: FnOnce(RaftVote, SnapshotMeta, ReadySnapshot) -> F,
        F: Future<Output = io::Result<RaftVote>>,
    {
        let offer = self.offer.clone();
        let sink = local(self.executor, move || {
            let mut sink = open()?;
            sink.begin(&offer)?;
            Ok(sink)
        });
        self.sink = Some(sink.await?);
        loop {
            match next(self.connection).await? {
                (kind::HASHES, reader) => self.hashes(reader).await?,
                (kind::PAGES, reader) => self.pages(reader).await?,
                (kind::END, _) => break,
                _ => return Err(invalid("frame of a snapshot's sender")),
            }
        }
        let (executor, meta) = (self.executor, self.offer.meta.clone());
        let Some(sink) = self.sink.take() else { return Err(invalid("second end")) };
        let finish = async {
            let ready = local(executor, move || sink.finish()).await?;
            install(vote, meta, ready).await.map_err(TransferError::Local)
        };
        let vote = alive(self.connection, finish).await?;
        let mut frame = FrameBuilder::new(kind::INSTALLED, 24);
        put_vote(frame.fields(), log_vote(&vote));
        put(self.connection, frame.finish()).await
    }

    /// The database of that id, if `pages` are pages of it.
    fn offered(&self, id: DatabaseId, pages: PageRange) -> Result<DatabaseOffer, TransferError> {
        let database = self.offer.databases.iter().find(|database| database.id == id);
        let database = database.ok_or(Malformed("database that was not offered"))?;
        let end = u64::from(pages.first) + u64::from(pages.count);
        if pages.first == 0 || pages.count == 0 || end > u64::from(database.page_count) + 1 {
            return Err(invalid("page that was not offered"));
        }
        Ok(database.clone())
    }

    async fn hashes(&mut self, mut reader: Reader) -> Result<(), TransferError> {
        let id = reader.u64("database id")?;
        let first = reader.u32("first page")?;
        let count = reader.count(16, "hashes")?;
        let pages = PageRange { first, count: count as u32 };
        let database = self.offered(id, pages)?.id;
        let mut hashes: Vec<PageHash> = Vec::with_capacity(count);
        for _ in 0..count {
            hashes.push(reader.u128("hash")?);
        }
        let missing = self.with_sink(move |sink| sink.missing(database, first, &hashes)).await?;
        let mut frame = FrameBuilder::new(kind::MISSING, 4 + missing.len() * 8);
        let fields = frame.fields();
        fields.put_u32_le(missing.len() as u32);
        for range in missing {
            fields.put_u32_le(range.first);
            fields.put_u32_le(range.count);
        }
        put(self.connection, frame.finish()).await
    }

    async fn pages(&mut self, mut reader: Reader) -> Result<(), TransferError> {
        let id = reader.u64("database id")?;
        let first = reader.u32("first page")?;
        let count = reader.u32("pages")?;
        let database = self.offered(id, PageRange { first, count })?;
        let bytes = u64::from(count) * u64::from(database.page_bytes);
        if bytes > limits::SNAPSHOT_CHUNK_BYTES_MAX as u64 {
            return Err(invalid("size of a chunk"));
        }
        let compressed = reader.rest();
        let taken = self.with_sink(move |sink| {
            let raw = lz4_flex::block::decompress(&compressed, bytes as usize);
            match raw {
                Ok(raw) if raw.len() as u64 == bytes => sink.receive(id, first, &raw),
                _ => Err(Malformed("chunk").into()),
            }
        });
        taken.await?;
        put(self.connection, FrameBuilder::new(kind::TAKEN, 0).finish()).await
    }

    /// Runs a call of the sink where it may block.
    async fn with_sink<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut dyn SnapshotSink) -> io::Result<T> + Send + 'static,
    ) -> Result<T, TransferError> {
        let Some(mut sink) = self.sink.take() else { return Err(invalid("frame after the end")) };
        let (sink, result) = local(self.executor, move || {
            let result = work(&mut *sink);
            Ok((sink, result))
        })
        .await?;
        self.sink = Some(sink);
        result.map_err(TransferError::Local)
    }
}

/// Waits for `work`, and tells the sender now and then that there is still somebody.
async fn alive<T>(
    connection: &mut Connection,
    work: impl Future<Output = Result<T, TransferError>>,
) -> Result<T, TransferError> {
    let mut work = std::pin::pin!(work);
    let mut signs = tokio::time::interval(limits::SNAPSHOT_SILENCE_MAX / 10);
    loop {
        tokio::select! {
            biased;
            result = work.as_mut() => return result,
            _ = signs.tick() => {
                put(connection, FrameBuilder::new(kind::ALIVE, 0).finish()).await?;
            }
        }
    }
}
