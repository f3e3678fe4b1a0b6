//! Both sides of the peer protocol over pipes in memory, with consensus played by the test.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use openraft::RaftNetworkFactory;
use openraft::network::RPCOption;
use openraft::network::v2::RaftNetworkV2;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

use super::super::append::AppendClient;
use super::super::calls::{CallClient, CallError};
use super::super::config::Timeouts;
use super::super::connection::{Connection, Dialer, Identity, PeerStream, connect};
use super::super::frames::{Channel, PREAMBLE};
use super::super::lease::LeaseGuard;
use super::super::messages::{Refusal, Request};
use super::super::network::Network;
use super::super::peers::{PeerHandler, PeerHooks, RaftDoor, Stopped, serve};
use super::super::snapshot::*;
use super::super::transfer;
use super::super::types::*;
use crate::base::{DatabaseId, Env, Executor, MemberInfo, Role};
use crate::log::{LogId, Vote};

const CLUSTER: u64 = 77;

/// Answers appends when it is told to.
#[derive(Default)]
struct Door {
    handed: Mutex<Vec<u64>>,
    held: Mutex<Option<Vec<oneshot::Sender<AppendAnswer>>>>,
    installed: Mutex<Option<Vec<u8>>>,
}

impl RaftDoor for Door {
    fn append(&self, request: AppendRequest) -> BoxFuture<'static, Result<AppendAnswer, Stopped>> {
        let index = request.entries.first().map_or(0, |entry| entry.log_id.index);
        self.handed.lock().push(index);
        match &mut *self.held.lock() {
            None => Box::pin(async { Ok(AppendAnswer::Success) }),
            Some(held) => {
                let (tell, told) = oneshot::channel();
                held.push(tell);
                Box::pin(async { told.await.map_err(|_| Stopped("test".to_owned())) })
            }
        }
    }

    fn vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>> {
        Box::pin(async move { Ok(VoteAnswer::new(request.vote, request.last_log_id, true)) })
    }

    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'static, Result<VoteAnswer, Stopped>> {
        self.vote(request)
    }

    fn transfer(&self, _: TransferRequest) -> BoxFuture<'static, Result<TransferAnswer, Stopped>> {
        Box::pin(async { Ok(Ok(())) })
    }

    fn install(
        &self,
        vote: RaftVote,
        snapshot: Snapshot,
    ) -> BoxFuture<'static, Result<RaftVote, Stopped>> {
        let SnapshotHandle::Ready(ReadySnapshot(token)) = snapshot.snapshot else { panic!() };
        *self.installed.lock() = Some(*token.downcast().unwrap());
        Box::pin(async move { Ok(vote) })
    }
}

/// What a receiver keeps between attempts.
type Incoming = Arc<Mutex<HashMap<(DatabaseId, u32), Vec<u8>>>>;

#[derive(Default)]
struct Hooks {
    incoming: Incoming,
    received: Arc<AtomicU64>,
}

impl PeerHooks for Hooks {
    fn call(&self, from: u64, kind: u8, body: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        Box::pin(async move {
            match kind {
                0 => Err(Refusal(format!("not for node {from}"))),
                ms => {
                    tokio::time::sleep(Duration::from_millis(ms.into())).await;
                    Ok(body)
                }
            }
        })
    }

    fn open_sink(&self, _: u64) -> io::Result<Box<dyn SnapshotSink>> {
        let (incoming, received) = (self.incoming.clone(), self.received.clone());
        Ok(Box::new(Sink { offer: None, incoming, received }))
    }

    fn join_cluster(&self, cluster: u64) -> io::Result<()> {
        if cluster == CLUSTER { Ok(()) } else { Err(io::Error::other("not asked to join")) }
    }

    fn room_bytes(&self) -> u64 {
        4321
    }
}

fn handler(node: u64, cluster: u64, fresh: bool) -> (Arc<PeerHandler>, Arc<Door>, Arc<Hooks>) {
    let (door, hooks) = (Arc::new(Door::default()), Arc::new(Hooks::default()));
    let lease = LeaseGuard::at_start(Env::real().clock, &Timeouts::default(), fresh);
    let handler = PeerHandler {
        raft: door.clone(),
        identity: Identity::new(node, cluster),
        lease: Arc::new(lease),
        hooks: hooks.clone(),
        executor: Executor::Threads,
        refused: Mutex::default(),
    };
    (Arc::new(handler), door, hooks)
}

/// Dials a handler in this process. Streams can be cut after a number of bytes.
struct Pipes {
    handler: Arc<PeerHandler>,
    buffer_bytes: usize,
    down: AtomicBool,
    cut_after: Mutex<Option<u64>>,
}

impl Pipes {
    fn to(handler: &Arc<PeerHandler>) -> Arc<Pipes> {
        let handler = handler.clone();
        let (down, cut_after) = (AtomicBool::new(false), Mutex::new(None));
        Arc::new(Pipes { handler, buffer_bytes: 4096, down, cut_after })
    }
}

impl Dialer for Pipes {
    fn dial(&self, _: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        if self.down.load(Ordering::SeqCst) {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        }
        let (mut near, far) = tokio::io::duplex(self.buffer_bytes);
        let (ours, mut relay) = tokio::io::duplex(self.buffer_bytes);
        let handler = self.handler.clone();
        let cut = self.cut_after.lock().take();
        tokio::spawn(async move {
            let mut far = far;
            let mut preamble = [0; 8];
            far.read_exact(&mut preamble).await.unwrap();
            assert_eq!(preamble, PREAMBLE);
            let _ = serve(far, handler).await;
        });
        tokio::spawn(async move {
            match cut {
                None => drop(tokio::io::copy_bidirectional(&mut near, &mut relay).await),
                Some(bytes) => {
                    let (mut near_read, mut near_write) = tokio::io::split(near);
                    let (relay_read, mut relay_write) = tokio::io::split(relay);
                    let mut some = relay_read.take(bytes);
                    tokio::select! {
                        () = async {
                            let _ = tokio::io::copy(&mut some, &mut near_write).await;
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        } => {}
                        _ = tokio::io::copy(&mut near_read, &mut relay_write) => {}
                    }
                }
            }
        });
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn PeerStream>) })
    }
}

fn append_of(index: u64, payload: usize) -> AppendRequest {
    AppendRequest {
        vote: raft_vote(Vote { term: 1, node: 1, committed: true }),
        prev_log_id: Some(raft_log_id(LogId { term: 1, index: index - 1 })),
        entries: vec![RaftEntry {
            log_id: raft_log_id(LogId { term: 1, index }),
            payload: openraft::EntryPayload::Normal(Command(vec![1; payload].into())),
        }],
        leader_commit: None,
    }
}

fn client(pipes: &Arc<Pipes>) -> (AppendClient, Arc<AtomicU64>) {
    let room = Arc::new(AtomicU64::new(0));
    let identity = Identity::new(1, CLUSTER);
    let address = "pipe".to_owned();
    (AppendClient::new(pipes.clone(), identity, 2, address, room.clone()), room)
}

#[tokio::test]
async fn appends_flow_without_waiting_and_answers_come_in_order() {
    let (handler, door, _) = handler(2, CLUSTER, true);
    *door.held.lock() = Some(Vec::new());
    let pipes = Pipes::to(&handler);
    let (mut client, room) = client(&pipes);
    let input = stream::iter((1..=200u64).map(|index| append_of(index, 3000)));
    let mut answers = Box::pin(client.session(input).await.unwrap());
    let mut next = 1;
    while next <= 200 {
        // Nothing is answered until as many are under way as may be.
        let due = (next + 63).min(200) as usize;
        while door.handed.lock().len() < due {
            let _ = tokio::time::timeout(Duration::from_millis(1), answers.next()).await;
        }
        tokio::task::yield_now().await;
        assert_eq!(door.handed.lock().len(), due);
        let held: Vec<_> = door.held.lock().as_mut().unwrap().drain(..).collect();
        // The last one is told first: the answers are in order all the same.
        let count = held.len() as u64;
        for tell in held.into_iter().rev() {
            tell.send(AppendAnswer::Success).unwrap();
        }
        for _ in 0..count {
            let last = answers.next().await.unwrap().unwrap().unwrap();
            assert_eq!(last.unwrap().index, next);
            next += 1;
        }
    }
    assert!(answers.next().await.is_none());
    assert_eq!(*door.handed.lock(), (1..=200).collect::<Vec<u64>>());
    assert_eq!(room.load(Ordering::SeqCst), 4321);
}

#[tokio::test]
async fn a_dropped_session_leaves_the_connection_usable() {
    let (handler, door, _) = handler(2, CLUSTER, true);
    let pipes = Pipes::to(&handler);
    let (mut client, _) = client(&pipes);
    for round in 0..20u64 {
        *door.held.lock() = Some(Vec::new());
        {
            let input = stream::iter((1..=3).map(|index| append_of(round * 10 + index, 10)));
            let mut answers = Box::pin(client.session(input).await.unwrap());
            let cut = Duration::from_millis(5);
            assert!(tokio::time::timeout(cut, answers.next()).await.is_err());
        }
        if let Some(held) = door.held.lock().take() {
            held.into_iter().for_each(|tell| tell.send(AppendAnswer::Conflict).unwrap());
        }
        let input = stream::iter([append_of(round * 10 + 9, 10)]);
        let answers: Vec<_> = client.session(input).await.unwrap().collect().await;
        assert_eq!(answers.len(), 1);
        let last = answers[0].as_ref().unwrap().as_ref().unwrap();
        assert_eq!(last.unwrap().index, round * 10 + 9);
        pipes.down.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_connection_that_broke_idle_is_opened_anew() {
    let (handler, ..) = handler(2, CLUSTER, true);
    let pipes = Pipes::to(&handler);
    let (mut client, _) = client(&pipes);
    for round in 1..=3u64 {
        // Preamble, hello and one append pass; a little later the pipe ends.
        *pipes.cut_after.lock() = Some(8 + 39 + 103);
        let input = stream::iter([append_of(round, 10)]);
        let answers: Vec<_> = client.session(input).await.unwrap().collect().await;
        assert!(matches!(&answers[..], [Ok(Ok(_))]), "{answers:?}");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

#[tokio::test]
async fn a_conflict_ends_the_session() {
    let (handler, door, _) = handler(2, CLUSTER, true);
    *door.held.lock() = Some(Vec::new());
    let pipes = Pipes::to(&handler);
    let (mut client, _) = client(&pipes);
    let input = stream::iter((5..=6).map(|index| append_of(index, 10)));
    let mut answers = Box::pin(client.session(input).await.unwrap());
    let cut = Duration::from_millis(5);
    assert!(tokio::time::timeout(cut, answers.next()).await.is_err());
    let tell = door.held.lock().as_mut().unwrap().remove(0);
    tell.send(AppendAnswer::Conflict).unwrap();
    assert!(answers.next().await.unwrap().unwrap().is_err());
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let (handler, door, _) = handler(2, CLUSTER, true);
    *door.held.lock() = Some(Vec::new());
    let pipes = Pipes::to(&handler);
    let (mut client, _) = client(&pipes);
    let started = tokio::time::Instant::now();
    let mut answers = Box::pin(client.session(stream::iter([append_of(1, 10)])).await.unwrap());
    assert!(answers.next().await.unwrap().is_err());
    let waited = started.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(5)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn who_is_not_admitted_hears_why() {
    for (node, cluster, to, why) in
        [(2, CLUSTER + 1, 2, "another cluster"), (3, CLUSTER, 2, "this is node 3"), (2, 0, 2, "")]
    {
        let (handler, ..) = handler(node, cluster, true);
        let dialer: Arc<dyn Dialer> = Pipes::to(&handler);
        let identity = member_knowing(2, Role::Spare);
        match connect(&dialer, &identity, to, "pipe", Channel::Append).await {
            Ok(_) => {
                assert_eq!(why, "");
                assert_eq!(handler.identity.cluster(), CLUSTER, "it has joined");
            }
            Err(error) => assert!(error.to_string().contains(why), "{error}"),
        }
    }
    let (outsider, ..) = handler(2, 0, true);
    let dialer: Arc<dyn Dialer> = Pipes::to(&outsider);
    let stranger = Identity::new(1, CLUSTER + 5);
    stranger.learn(&[listed(2, Role::Spare)]);
    let refused = connect(&dialer, &stranger, 2, "pipe", Channel::Append).await;
    assert!(refused.err().unwrap().to_string().contains("not asked to join"));
}

fn listed(id: u64, role: Role) -> MemberInfo {
    MemberInfo { id, address: "pipe".to_owned(), role }
}

/// Node 1, which knows another member.
fn member_knowing(id: u64, role: Role) -> Arc<Identity> {
    let identity = Identity::new(1, CLUSTER);
    identity.learn(&[listed(id, role)]);
    identity
}

/// A voter lost its data and came back under its id: whoever dialed it made it join the cluster,
/// and then it gave its vote a second time. Nothing but being sent the log makes a node join, and
/// nobody that is known as a voter joins.
#[tokio::test]
async fn a_node_without_a_cluster_neither_votes_nor_joins_as_a_voter() {
    let (handler, door, _) = handler(2, 0, true);
    let pipes = Pipes::to(&handler);
    let dialer: Arc<dyn Dialer> = pipes.clone();
    let voter = member_knowing(2, Role::Voter);
    for channel in [Channel::Append, Channel::Requests, Channel::Snapshot] {
        let refused = connect(&dialer, &voter, 2, "pipe", channel).await.err().unwrap();
        assert!(refused.to_string().contains("node 2 has voted in this cluster"), "{refused}");
    }
    let ignorant = Identity::new(1, CLUSTER);
    for channel in [Channel::Append, Channel::Snapshot] {
        let refused = connect(&dialer, &ignorant, 2, "pipe", channel).await.err().unwrap();
        assert!(refused.to_string().contains("not listed as a member yet"), "{refused}");
    }
    let limit = Duration::from_secs(5);
    let vote = VoteRequest::new(raft_vote(Vote { term: 1, node: 1, committed: false }), None);
    for known in [ignorant, member_knowing(2, Role::Standby)] {
        let client = CallClient::new(pipes.clone(), known, 2, "pipe".to_owned());
        for request in [Request::Vote(vote.clone()), Request::PreVote(vote.clone())] {
            let refused = client.ask(request, limit).await;
            assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
        }
        let call = Request::Call { kind: 1, body: Bytes::new() };
        assert!(client.ask(call, limit).await.is_ok(), "it is asked who it is");
    }
    assert_eq!(handler.identity.cluster(), 0, "a call made it join");
    let spare = member_knowing(2, Role::Spare);
    assert!(connect(&dialer, &spare, 2, "pipe", Channel::Append).await.is_ok());
    assert_eq!(handler.identity.cluster(), CLUSTER);
    assert!(connect(&dialer, &voter, 2, "pipe", Channel::Requests).await.is_ok(), "promoted");
    assert!(door.handed.lock().is_empty());
}

fn calls(pipes: &Arc<Pipes>) -> CallClient {
    CallClient::new(pipes.clone(), Identity::new(1, CLUSTER), 2, "pipe".to_owned())
}

#[tokio::test]
async fn calls_overtake_each_other() {
    let (handler, ..) = handler(2, CLUSTER, true);
    let pipes = Pipes::to(&handler);
    let client = calls(&pipes);
    let limit = Duration::from_secs(5);
    let ask = |ms: u8, len: usize| {
        let body = Bytes::from(vec![ms; len]);
        client.ask(Request::Call { kind: ms, body }, limit)
    };
    let slow = ask(200, 100_000);
    let quick = async {
        for _ in 0..50 {
            assert_eq!(ask(1, 10).await.unwrap(), vec![1; 10]);
        }
    };
    tokio::select! {
        biased;
        _ = slow => panic!("the slow one came first"),
        () = quick => {}
    }
    let refused = ask(0, 0).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(why) if why == "not for node 1"));
    let body = Bytes::new();
    let late = client.ask(Request::Call { kind: 200, body }, Duration::from_millis(20)).await;
    assert!(matches!(late, Err(CallError::Late)));
}

#[tokio::test]
async fn an_unreachable_peer_is_said_to_be_so_and_tried_again() {
    let (handler, ..) = handler(2, CLUSTER, true);
    let pipes = Pipes::to(&handler);
    pipes.down.store(true, Ordering::SeqCst);
    let client = calls(&pipes);
    let call = || Request::Call { kind: 1, body: Bytes::new() };
    let limit = Duration::from_secs(5);
    let error = client.ask(call(), limit).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)), "{error}");
    pipes.down.store(false, Ordering::SeqCst);
    client.ask(call(), limit).await.unwrap();
}

#[tokio::test]
async fn a_restarted_node_takes_no_part_in_elections() {
    let vote = raft_vote(Vote { term: 1, node: 1, committed: false });
    for (fresh, granted) in [(true, true), (false, false)] {
        let (handler, ..) = handler(2, CLUSTER, fresh);
        let client = calls(&Pipes::to(&handler));
        for request in [
            Request::Vote(VoteRequest::new(vote, None)),
            Request::PreVote(VoteRequest::new(vote, None)),
            Request::Transfer(TransferRequest::new(vote, 2, None)),
        ] {
            let answer = client.ask(request, Duration::from_secs(5)).await;
            assert_eq!(answer.is_ok(), granted, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_restarted_node_asks_for_no_vote() {
    let vote = VoteRequest::new(raft_vote(Vote { term: 1, node: 1, committed: false }), None);
    let (handler, ..) = handler(2, CLUSTER, true);
    for (fresh, asked) in [(true, true), (false, false)] {
        let lease = LeaseGuard::at_start(Env::real().clock, &Timeouts::default(), fresh);
        let identity = Identity::new(1, CLUSTER);
        let dialer = Pipes::to(&handler);
        let mut network = Network::new(dialer, identity, Arc::new(lease), Executor::Threads);
        let peer = Peer::spare("pipe");
        let mut client = network.new_client(2, &peer).await;
        let option = RPCOption::new(Duration::from_secs(5));
        assert_eq!(client.vote(vote.clone(), option.clone()).await.is_ok(), asked);
        assert_eq!(client.pre_vote(vote.clone(), option).await.is_ok(), asked);
    }
}

/// Pages that are a function of database and number, but for some that changed.
struct Source {
    databases: Vec<DatabaseOffer>,
    reads: AtomicU64,
}

fn page(database: DatabaseId, number: u32, page_bytes: u32) -> Vec<u8> {
    let mut state = database.wrapping_mul(31).wrapping_add(u64::from(number));
    (0..page_bytes)
        .map(|byte| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Half of each page compresses.
            if byte % 2 == 0 { (state >> 33) as u8 } else { 0 }
        })
        .collect()
}

fn hash(number: u32, content: &[u8]) -> PageHash {
    xxhash_rust::xxh3::xxh3_128_with_seed(content, u64::from(number))
}

impl Source {
    fn page_bytes(&self, database: DatabaseId) -> u32 {
        self.databases.iter().find(|offer| offer.id == database).unwrap().page_bytes
    }
}

impl SnapshotSource for Source {
    fn databases(&self) -> Vec<DatabaseOffer> {
        self.databases.clone()
    }

    fn hashes(&self, database: DatabaseId, pages: PageRange) -> io::Result<Vec<PageHash>> {
        let size = self.page_bytes(database);
        let numbers = pages.first..pages.first + pages.count;
        Ok(numbers.map(|number| hash(number, &page(database, number, size))).collect())
    }

    fn read(&self, database: DatabaseId, pages: PageRange, out: &mut Vec<u8>) -> io::Result<()> {
        self.reads.fetch_add(u64::from(pages.count), Ordering::SeqCst);
        let size = self.page_bytes(database);
        let numbers = pages.first..pages.first + pages.count;
        numbers.for_each(|number| out.extend(page(database, number, size)));
        Ok(())
    }
}

struct Sink {
    offer: Option<SnapshotOffer>,
    incoming: Incoming,
    received: Arc<AtomicU64>,
}

impl SnapshotSink for Sink {
    fn begin(&mut self, offer: &SnapshotOffer) -> io::Result<()> {
        if offer.databases.iter().any(|database| &database.about[..] == b"refuse me") {
            return Err(io::Error::other("this disk is too small"));
        }
        self.offer = Some(offer.clone());
        Ok(())
    }

    fn missing(
        &mut self,
        database: DatabaseId,
        first: u32,
        hashes: &[PageHash],
    ) -> io::Result<Vec<PageRange>> {
        let incoming = self.incoming.lock();
        let mut missing: Vec<PageRange> = Vec::new();
        for (number, wanted) in (first..).zip(hashes) {
            let have = incoming.get(&(database, number));
            if have.is_some_and(|content| hash(number, content) == *wanted) {
                continue;
            }
            match missing.last_mut() {
                Some(range) if range.first + range.count == number => range.count += 1,
                _ => missing.push(PageRange { first: number, count: 1 }),
            }
        }
        Ok(missing)
    }

    fn receive(&mut self, database: DatabaseId, first: u32, pages: &[u8]) -> io::Result<()> {
        let offer = self.offer.as_ref().unwrap();
        let database = offer.databases.iter().find(|offer| offer.id == database).unwrap();
        let mut incoming = self.incoming.lock();
        for (number, page) in (first..).zip(pages.chunks(database.page_bytes as usize)) {
            self.received.fetch_add(1, Ordering::SeqCst);
            incoming.insert((database.id, number), page.to_vec());
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<ReadySnapshot> {
        let incoming = self.incoming.lock();
        let mut all: Vec<u8> = Vec::new();
        for database in &self.offer.as_ref().unwrap().databases {
            for number in 1..=database.page_count {
                all.extend(incoming.get(&(database.id, number)).unwrap());
            }
        }
        Ok(ReadySnapshot(Box::new(all)))
    }
}

fn source(about: &'static [u8]) -> Arc<Source> {
    let offer = |id, page_bytes, page_count| DatabaseOffer {
        id,
        page_bytes,
        page_count,
        about: Bytes::from_static(about),
    };
    let databases = vec![offer(3, 1024, 9001), offer(4, 65_536, 40), offer(9, 512, 0)];
    Arc::new(Source { databases, reads: AtomicU64::new(0) })
}

async fn transfer(pipes: &Arc<Pipes>, source: &Arc<Source>) -> Result<RaftVote, String> {
    let dialer: Arc<dyn Dialer> = pipes.clone();
    let identity = Identity::new(1, CLUSTER);
    let dial = connect(&dialer, &identity, 2, "pipe", Channel::Snapshot);
    let mut connection: Connection = dial.await.map_err(|error| error.to_string())?;
    let vote = raft_vote(Vote { term: 5, node: 1, committed: true });
    let meta = SnapshotMeta {
        last_log_id: Some(raft_log_id(LogId { term: 5, index: 99 })),
        ..Default::default()
    };
    let source = source.clone();
    let sent = transfer::send(&mut connection, 1, &vote, meta, source, Executor::Threads).await;
    sent.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_snapshot_goes_over_and_goes_on_after_a_cut() {
    let (handler, door, hooks) = handler(2, CLUSTER, true);
    let pipes = Pipes::to(&handler);
    let source = source(b"about");
    *pipes.cut_after.lock() = Some(3 << 20);
    assert!(transfer(&pipes, &source).await.is_err(), "cut in the middle");
    assert!(door.installed.lock().is_none());
    let first = hooks.received.load(Ordering::SeqCst);
    assert!((1000..9041).contains(&first), "{first}");

    let vote = transfer(&pipes, &source).await.unwrap();
    assert_eq!(vote.leader_id.term, 5);
    let received = hooks.received.load(Ordering::SeqCst);
    // What was on its way when the first transfer was cut may come twice, no more.
    assert!(received <= 9041 + 8 * 1024, "{received}");
    assert!(received < 9041 + first, "{received}");
    let mut expected = Vec::new();
    for database in &source.databases {
        for number in 1..=database.page_count {
            expected.extend(page(database.id, number, database.page_bytes));
        }
    }
    assert!(door.installed.lock().take().unwrap() == expected);

    // A follower that has it all gets no page at all.
    let before = source.reads.load(Ordering::SeqCst);
    transfer(&pipes, &source).await.unwrap();
    assert_eq!(source.reads.load(Ordering::SeqCst), before);
    assert!(door.installed.lock().take().unwrap() == expected);
}

#[tokio::test]
async fn a_receiver_that_refuses_says_why() {
    let (handler, ..) = handler(2, CLUSTER, true);
    let error = transfer(&Pipes::to(&handler), &source(b"refuse me")).await.unwrap_err();
    assert!(error.contains("this disk is too small"), "{error}");
}
