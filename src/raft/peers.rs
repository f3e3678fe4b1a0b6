//! The answering side of connections between nodes: whoever listens on the node's port tells a
//! peer by its first eight bytes ([`super::frames::PREAMBLE`]) and hands the stream to [`serve`],
//! behind them.
//!
//! Appends are handed to consensus as they come, without waiting for the one before, and answered
//! in their order, each when it is on disk. Requests are answered in any order. Votes, pre-votes
//! and transfers are refused while a lease that this node forgot may be outstanding.
//!
//! *Invariant*: nothing reaches consensus from a connection that was not admitted, nor asks it for
//! a vote while this node belongs to no cluster; no connection has more than a bounded number of
//! requests at work here.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use openraft::storage::RaftStateMachine;
use parking_lot::Mutex;

use super::connection::{
    Connection, Identity, NOT_LISTED, PeerStream, admit, lost_its_data, read_hello,
};
use super::frames::{Admission, Channel, Hello, Standing, kind};
use super::lease::LeaseGuard;
use super::messages::{
    Refusal, Request, decode_append, decode_request, encode_answer, encode_appended,
    encode_transfer_answer, encode_vote_answer,
};
use super::snapshot::{SnapshotHandle, SnapshotSink};
use super::transfer::{self, TransferError};
use super::types::{
    AppendAnswer, AppendRequest, RaftOf, RaftVote, Snapshot, TransferAnswer, TransferRequest,
    TypeConfig, VoteAnswer, VoteRequest,
};
use crate::base::{Executor, NodeId, limits};

/// Consensus has stopped on this node, for good; the text says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("consensus has stopped: {0}")]
pub struct Stopped(pub String);

fn stopped(error: impl ToString) -> Stopped {
    Stopped(error.to_string())
}

/// Consensus as peers reach it. Implemented by every [`RaftOf`].
pub trait RaftDoor: Send + Sync + 'static {
    /// Appends. The request is handed over when the future is polled first, so that requests stay
    /// in order; the answer comes when it is on disk.
    fn append(&self, request: AppendRequest) -> BoxFuture<'static, Result<AppendAnswer, Stopped>>;

    /// Votes.
    fn vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>>;

    /// Says how it would vote.
    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>>;

    /// Takes over leadership, or lets another node do so.
    fn transfer(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, Stopped>>;

    /// Puts a received snapshot in place and answers with this node's vote.
    fn install(
        &self,
        vote: RaftVote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<RaftVote, Stopped>>;
}

impl<M> RaftDoor for RaftOf<M>
where
    M: RaftStateMachine<TypeConfig, SnapshotData = SnapshotHandle>,
{
    fn append(&self, request: AppendRequest) -> BoxFuture<'static, Result<AppendAnswer, Stopped>> {
        let raft = self.clone();
        Box::pin(async move { raft.append_entries(request).await.map_err(stopped) })
    }

    fn vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>> {
        let raft = self.clone();
        Box::pin(async move { raft.vote(request).await.map_err(stopped) })
    }

    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>> {
        let raft = self.clone();
        Box::pin(async move { raft.pre_vote(request).await.map_err(stopped) })
    }

    fn transfer(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, Stopped>> {
        let raft = self.clone();
        Box::pin(async move { raft.handle_transfer_leader(request).await.map_err(stopped) })
    }

    fn install(
        &self,
        vote: RaftVote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<RaftVote, Stopped>> {
        let raft = self.clone();
        Box::pin(async move {
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            installed.map(|answer| answer.vote).map_err(stopped)
        })
    }
}

/// What the layers above add to the answering side.
pub trait PeerHooks: Send + Sync + 'static {
    /// Answers a call of node `from`; see [`super::network::Network::call`].
    fn call(
        &self,
        from: NodeId,
        kind: u8,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// A sink for a snapshot that node `from` is about to send. May block.
    fn open_sink(&self, from: NodeId) -> io::Result<Box<dyn SnapshotSink>>;

    /// Whether this node may be handed leadership: not while a database is damaged here.
    fn may_lead(&self) -> bool {
        true
    }

    /// An append of node `from` as the leader was accepted. Must be cheap.
    fn heard_leader(&self, from: NodeId) {
        let _ = from;
    }

    /// Whether this node has a log or a vote. Must be cheap.
    fn has_history(&self) -> bool {
        true
    }

    /// A member of `cluster` sends this node, which belongs to none yet, what it has: remember the
    /// cluster durably, or fail and stay outside. May block.
    fn join_cluster(&self, cluster: u64) -> io::Result<()>;

    /// Bytes that this node's disk can still take, told to the leader with each acknowledgement.
    /// Must be cheap.
    fn room_bytes(&self) -> u64;
}

/// What connections of peers are served with.
pub struct PeerHandler {
    /// Consensus.
    pub raft: Arc<dyn RaftDoor>,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// Whether it may take part in elections yet.
    pub lease: Arc<LeaseGuard>,
    /// Everything else.
    pub hooks: Arc<dyn PeerHooks>,
    /// Where blocking calls go.
    pub executor: Executor,
    /// Why a peer was last not admitted: it is said once.
    pub refused: Mutex<String>,
}

/// Serves one connection until the peer closes it (`Ok`) or something breaks. A stream on which the
/// peer is going to speak as a client is handed back.
pub async fn serve(
    stream: impl PeerStream,
    handler: Arc<PeerHandler>,
) -> Result<Option<Box<dyn PeerStream>>, TransferError> {
    let mut connection = Connection::new(Box::new(stream));
    let handshake = admit_peer(&mut connection, &handler);
    let limited = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake).await;
    let admitted = limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let Some((from, channel)) = admitted else { return Ok(None) };
    match channel {
        Channel::Append => serve_appends(connection, &handler, from).await?,
        Channel::Requests => serve_requests(connection, &handler, from).await?,
        Channel::Snapshot => serve_snapshots(connection, &handler, from).await?,
        Channel::Client => return Ok(Some(connection.into_stream()?)),
    }
    Ok(None)
}

/// Answers the hello. `None` when it was refused.
async fn admit_peer(
    connection: &mut Connection,
    handler: &PeerHandler,
) -> io::Result<Option<(NodeId, Channel)>> {
    let hello = read_hello(connection).await?;
    let identity = &handler.identity;
    match enter(handler, &hello).await {
        Ok(channel) => {
            let (cluster, node) = (identity.cluster(), identity.node());
            connection.send(Admission::Admitted { cluster, node }.encode()).await?;
            connection.admit();
            Ok(Some((hello.from, channel)))
        }
        Err(reason) => {
            handler.note_refused(hello.from, &reason);
            connection.send(Admission::Refused { reason }.encode()).await?;
            Ok(None)
        }
    }
}

impl PeerHandler {
    fn note_refused(&self, from: NodeId, reason: &str) {
        if reason == NOT_LISTED {
            return tracing::debug!(from, reason, "a peer was not admitted");
        }
        let mut last = self.refused.lock();
        if *last != reason {
            tracing::warn!(from, reason, "a peer was not admitted");
            reason.clone_into(&mut last);
        }
    }
}

async fn enter(handler: &PeerHandler, hello: &Hello) -> Result<Channel, String> {
    let channel = admit(&handler.identity, hello)?;
    if hello.standing == Standing::Votes && !handler.hooks.has_history() {
        // It knows its cluster, and no more: what it acknowledged and voted is lost.
        return Err(lost_its_data(handler.identity.node()));
    }
    if channel != Channel::Requests && handler.identity.cluster() == 0 {
        let (hooks, cluster) = (handler.hooks.clone(), hello.cluster);
        let joined = handler.executor.blocking(move || hooks.join_cluster(cluster)).await;
        match joined {
            Some(Ok(())) if handler.identity.join(cluster) => {}
            Some(Err(error)) => return Err(format!("this node joins no cluster now: {error}")),
            _ => return Err("this node joins no cluster now".to_owned()),
        }
    }
    Ok(channel)
}

/// An append at work.
enum AppendSlot {
    Done(AppendAnswer),
    Running(BoxFuture<'static, Result<AppendAnswer, Stopped>>),
}

/// Appends at work, oldest first, by their numbers, with the sizes of their frames.
#[derive(Default)]
struct Appends {
    slots: VecDeque<(u64, usize, AppendSlot)>,
    bytes: usize,
}

impl Appends {
    fn has_room(&self) -> bool {
        self.slots.len() < limits::PEER_APPENDS_IN_FLIGHT_MAX
            && self.bytes < limits::PEER_APPEND_BYTES_IN_FLIGHT_MAX
    }

    /// Hands a request to consensus, now.
    async fn push(
        &mut self,
        sequence: u64,
        bytes: usize,
        mut append: BoxFuture<'static, Result<AppendAnswer, Stopped>>,
    ) -> io::Result<()> {
        let slot = match futures::poll!(append.as_mut()) {
            Poll::Ready(answer) => AppendSlot::Done(answer.map_err(io::Error::other)?),
            Poll::Pending => AppendSlot::Running(append),
        };
        self.bytes += bytes;
        self.slots.push_back((sequence, bytes, slot));
        Ok(())
    }

    /// The answer to the oldest one; never, when there is none. May be cut off.
    async fn next(&mut self) -> io::Result<(u64, AppendAnswer)> {
        let Some((sequence, bytes, slot)) = self.slots.front_mut() else {
            return std::future::pending().await;
        };
        let answer = match slot {
            AppendSlot::Done(answer) => answer.clone(),
            AppendSlot::Running(append) => append.await.map_err(io::Error::other)?,
        };
        let answer = (*sequence, answer);
        self.bytes -= *bytes;
        self.slots.pop_front();
        Ok(answer)
    }
}

async fn serve_appends(
    mut connection: Connection,
    handler: &PeerHandler,
    from: NodeId,
) -> io::Result<()> {
    let mut appends = Appends::default();
    loop {
        let room = appends.has_room();
        // Answers first, then requests, and only then the socket: so answers share system calls.
        tokio::select! {
            biased;
            answer = appends.next() => {
                let (sequence, answer) = answer?;
                if !matches!(answer, AppendAnswer::HigherVote(_)) {
                    handler.hooks.heard_leader(from);
                }
                let room_bytes = handler.hooks.room_bytes();
                connection.writer.push(encode_appended(sequence, room_bytes, &answer));
            }
            frame = connection.reader.next(), if room => match frame? {
                Some((kind::APPEND, body)) => {
                    let bytes = body.len();
                    let (sequence, request) = decode_append(body)?;
                    appends.push(sequence, bytes, handler.raft.append(request)).await?;
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Ok(()),
            },
            written = connection.writer.write_some() => written?,
        }
    }
}

async fn serve_requests(
    mut connection: Connection,
    handler: &Arc<PeerHandler>,
    from: NodeId,
) -> io::Result<()> {
    let mut at_work = FuturesUnordered::new();
    loop {
        let room = at_work.len() < limits::PEER_REQUESTS_IN_FLIGHT_MAX
            && connection.writer.queued_bytes() < limits::PEER_QUEUE_BYTES_MAX;
        tokio::select! {
            biased;
            Some((id, answer)) = at_work.next() => {
                connection.writer.push(encode_answer(id, &answer));
            }
            frame = connection.reader.next(), if room => match frame? {
                Some((kind::REQUEST, body)) => {
                    let (id, request) = decode_request(body)?;
                    let handler = handler.clone();
                    at_work.push(async move { (id, answer(&handler, from, request).await) });
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Ok(()),
            },
            written = connection.writer.write_some() => written?,
        }
    }
}

async fn answer(handler: &PeerHandler, from: NodeId, request: Request) -> Result<Bytes, Refusal> {
    if let Request::Call { kind, body } = request {
        let answer = handler.hooks.call(from, kind, body).await?;
        if answer.len() + 64 > limits::PEER_FRAME_BYTES_MAX {
            return Err(Refusal("the answer is too large".to_owned()));
        }
        return Ok(answer);
    }
    if handler.identity.cluster() == 0 {
        return Err(Refusal("this node belongs to no cluster yet".to_owned()));
    }
    if !handler.hooks.has_history() {
        return Err(Refusal("this node has no log yet".to_owned()));
    }
    handler.lease.check().map_err(|guarded| Refusal(guarded.to_string()))?;
    let answer = match request {
        Request::Vote(vote) => handler.raft.vote(vote).await.map(|a| encode_vote_answer(&a)),
        Request::PreVote(vote) => handler.raft.pre_vote(vote).await.map(|a| encode_vote_answer(&a)),
        Request::Transfer(transfer)
            if *transfer.to_node_id() == handler.identity.node() && !handler.hooks.may_lead() =>
        {
            return Err(Refusal("a database is damaged on this node".to_owned()));
        }
        Request::Transfer(transfer) => {
            handler.raft.transfer(transfer).await.map(|a| encode_transfer_answer(&a))
        }
        Request::Call { .. } => unreachable!("answered above"),
    };
    answer.map_err(|stopped| Refusal(stopped.to_string()))
}

async fn serve_snapshots(
    mut connection: Connection,
    handler: &PeerHandler,
    from: NodeId,
) -> Result<(), TransferError> {
    loop {
        let (hooks, raft) = (handler.hooks.clone(), handler.raft.clone());
        let open = move || hooks.open_sink(from);
        let install = |vote, meta, ready| install(raft, vote, meta, ready);
        let received =
            transfer::receive(&mut connection, from, handler.executor, open, install).await?;
        if !received {
            return Ok(());
        }
    }
}

fn install(
    raft: Arc<dyn RaftDoor>,
    vote: RaftVote,
    meta: super::types::SnapshotMeta,
    ready: super::snapshot::ReadySnapshot,
) -> impl Future<Output = io::Result<RaftVote>> {
    let snapshot = Snapshot { meta, snapshot: SnapshotHandle::Ready(ready) };
    async move { raft.install(vote, snapshot).await.map_err(io::Error::other) }
}
