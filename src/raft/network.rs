//! openraft's network: appends on pipelined connections ([`super::append`]), votes and transfers
//! on the shared request connection of each peer ([`super::calls`]), snapshots on a connection of
//! their own ([`super::transfer`]). Heartbeats have an append connection apart from replication,
//! so that a large batch on its way does not cost the lease.
//!
//! Every failure to reach a peer is `Unreachable` to openraft, which then backs off; nothing here
//! tries twice.
//!
//! *Invariant*: no vote is asked for while a lease that this node forgot may be outstanding.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2};
use openraft::raft::SnapshotResponse;
use parking_lot::Mutex;

use super::append::{Answer, AppendClient, AppendError};
use super::calls::{CallClient, CallError};
use super::connection::{Dialer, Identity, PeerAddress, connect};
use super::frames::Channel;
use super::lease::LeaseGuard;
use super::messages::{Request, decode_transfer_answer, decode_vote_answer};
use super::snapshot::SnapshotHandle;
use super::transfer;
use super::types::{
    AppendAnswer, AppendRequest, Peer, RaftVote, Snapshot, TransferAnswer, TransferRequest,
    TypeConfig, VoteAnswer, VoteRequest,
};
use crate::base::{Executor, MemberInfo, NodeId};

type RpcError = RPCError<TypeConfig>;
type Failure = StreamingError<TypeConfig>;
type Answers<'s> = BoxStream<'s, Result<Answer, RpcError>>;

/// Pauses between attempts to reach a peer, in milliseconds; the last one goes on for ever.
const PAUSES_MS: [u64; 4] = [50, 100, 200, 400];

/// What one node uses to talk to its peers. Clones share everything.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Arc<dyn Dialer>,
    identity: Arc<Identity>,
    lease: Arc<LeaseGuard>,
    executor: Executor,
    peers: Mutex<BTreeMap<NodeId, Known>>,
}

/// What is kept of a peer while openraft's clients come and go.
#[derive(Clone)]
struct Known {
    /// The address that the membership last said.
    listed: String,
    /// Where it is dialed: another one where it has told that it moved.
    address: PeerAddress,
    calls: CallClient,
    room_bytes: Arc<AtomicU64>,
}

impl Network {
    /// The network of the node that `identity` names.
    pub fn new(
        dialer: Arc<dyn Dialer>,
        identity: Arc<Identity>,
        lease: Arc<LeaseGuard>,
        executor: Executor,
    ) -> Network {
        let peers = Mutex::new(BTreeMap::new());
        Network { shared: Arc::new(Shared { dialer, identity, lease, executor, peers }) }
    }

    /// Calls the peer `target` at `address`: `kind` and the bytes are the business of the layers
    /// above, on both sides. Must be called on the asynchronous runtime.
    pub async fn call(
        &self,
        target: NodeId,
        address: &str,
        kind: u8,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, CallError> {
        let known = self.shared.known(target, address);
        known.calls.ask(Request::Call { kind, body }, limit).await
    }

    /// Calls the node `target` at `address` and nowhere else; with 0 whoever is there, as a node
    /// does that joins and knows no ids yet.
    pub async fn call_address(
        &self,
        target: NodeId,
        address: &str,
        kind: u8,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, CallError> {
        let (dialer, identity) = (self.shared.dialer.clone(), self.shared.identity.clone());
        let calls = CallClient::new(dialer, identity, target, address.to_owned());
        calls.ask(Request::Call { kind, body }, limit).await
    }

    /// Takes over what the membership says: where members are, and who is one no more.
    pub fn learn(&self, members: &[MemberInfo]) {
        self.shared.identity.learn(members);
        self.shared.peers.lock().retain(|id, _| members.iter().any(|member| member.id == *id));
        for member in members.iter().filter(|member| member.id != self.shared.identity.node()) {
            self.shared.known(member.id, &member.address);
        }
    }

    /// The member `target`, listed at another address, has told that it is at `address`: it is
    /// dialed there until the membership says something new.
    pub fn moved(&self, target: NodeId, listed: &str, address: &str) {
        self.shared.known(target, listed).address.set(address);
    }

    /// Where the member `target` is dialed.
    pub fn address_of(&self, target: NodeId) -> Option<String> {
        self.shared.peers.lock().get(&target).map(|known| known.address.get())
    }

    /// The bytes that `target`'s disk could still take when it last acknowledged an append;
    /// `None` while it has acknowledged none.
    pub fn room_bytes(&self, target: NodeId) -> Option<u64> {
        let room = self.shared.peers.lock().get(&target)?.room_bytes.load(Ordering::Relaxed);
        (room != u64::MAX).then_some(room)
    }
}

impl Shared {
    fn known(&self, target: NodeId, listed: &str) -> Known {
        let mut peers = self.peers.lock();
        let known = peers.entry(target).or_insert_with(|| {
            let (dialer, identity) = (self.dialer.clone(), self.identity.clone());
            let address = PeerAddress::from(listed.to_owned());
            Known {
                listed: listed.to_owned(),
                calls: CallClient::new(dialer, identity, target, address.clone()),
                address,
                room_bytes: Arc::new(AtomicU64::new(u64::MAX)),
            }
        });
        if known.listed != listed {
            known.listed = listed.to_owned();
            known.address.set(listed);
        }
        known.clone()
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, peer: &Peer) -> PeerClient {
        let known = self.shared.known(target, &peer.address);
        let append = AppendClient::new(
            self.shared.dialer.clone(),
            self.shared.identity.clone(),
            target,
            known.address.clone(),
            known.room_bytes.clone(),
        );
        PeerClient { shared: self.shared.clone(), target, known, append, failures: 0 }
    }
}

/// openraft's client of one peer.
pub struct PeerClient {
    shared: Arc<Shared>,
    target: NodeId,
    known: Known,
    append: AppendClient,
    /// Replication streams that did not begin, since one did.
    failures: usize,
}

/// The pause after a replication stream did not begin, when so many did not before it.
fn pause_after(failures: usize) -> Duration {
    let last = PAUSES_MS[PAUSES_MS.len() - 1];
    Duration::from_millis(PAUSES_MS.get(failures).copied().unwrap_or(last))
}

fn unreachable(error: impl ToString) -> Unreachable<TypeConfig> {
    Unreachable::from_string(error)
}

fn append_error(error: AppendError) -> RpcError {
    unreachable(error).into()
}

impl PeerClient {
    /// Asks for something of an election.
    async fn ask(&self, request: Request, option: &RPCOption) -> Result<Bytes, RpcError> {
        self.shared.lease.check().map_err(NetworkError::from_string)?;
        self.known.calls.ask(request, option.soft_ttl()).await.map_err(|error| match error {
            CallError::Unreachable(_) => unreachable(error).into(),
            other => NetworkError::from_string(other).into(),
        })
    }

    async fn send_snapshot(
        &self,
        vote: RaftVote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        let SnapshotHandle::Source(source) = snapshot.snapshot else {
            return Err(unreachable("there is no view to send").into());
        };
        let Shared { dialer, identity, executor, .. } = &*self.shared;
        let address = self.known.address.get();
        let dial = connect(dialer, identity, self.target, &address, Channel::Snapshot);
        let mut connection = dial.await.map_err(unreachable)?;
        let from = identity.node();
        let sent =
            transfer::send(&mut connection, from, &vote, snapshot.meta, source, *executor).await;
        Ok(SnapshotResponse::new(sent.map_err(unreachable)?))
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        _option: RPCOption,
    ) -> Result<AppendAnswer, RpcError> {
        let input = futures::stream::iter([request]);
        let mut answers = Box::pin(self.append.session(input).await.map_err(append_error)?);
        match answers.next().await {
            Some(answer) => Ok(answer.map_err(append_error)?.into()),
            None => Err(unreachable("no answer").into()),
        }
    }

    /// The time allowed by `option` is a heartbeat's; whether a replication stream makes progress
    /// is judged by [`super::append`], since an acknowledgement waits for the peer's disk.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<Answers<'s>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let failures = self.failures;
            match self.append.session(input).await {
                Ok(answers) => {
                    self.failures = 0;
                    Ok(answers.map(|answer| answer.map_err(append_error)).boxed())
                }
                Err(error) => {
                    // openraft's own pause is in the stream of requests, which nobody has read.
                    self.failures = failures.saturating_add(1);
                    tokio::time::sleep(pause_after(failures)).await;
                    Err(append_error(error))
                }
            }
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteAnswer, RpcError> {
        let answer = self.ask(Request::Vote(request), &option).await?;
        Ok(decode_vote_answer(answer).map_err(NetworkError::from_string)?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteAnswer, RpcError> {
        let answer = self.ask(Request::PreVote(request), &option).await?;
        Ok(decode_vote_answer(answer).map_err(NetworkError::from_string)?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferAnswer, RpcError> {
        let answer = self.ask(Request::Transfer(request), &option).await?;
        Ok(decode_transfer_answer(answer).map_err(NetworkError::from_string)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, Failure> {
        tokio::select! {
            biased;
            sent = self.send_snapshot(vote, snapshot) => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let last = PAUSES_MS[PAUSES_MS.len() - 1];
        let pauses = PAUSES_MS.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(pauses.map(Duration::from_millis)))
    }
}
