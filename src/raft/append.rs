//! The sending side of replication to one peer: a connection on which append requests flow without
//! waiting for the answers, which come back in order.
//!
//! openraft opens a *session* (a stream of requests in, a stream of answers out) whenever it has
//! something to send, and drops it when it pleases: a heartbeat that takes longer than the
//! heartbeat interval is dropped in the middle. The connection outlives its sessions; the answers
//! to requests of a dropped session are skipped when they come. It is closed when the peer breaks
//! the protocol, leaves the oldest request unanswered for too long, or when a dropped session has
//! left much that nobody wants sent any more.
//!
//! Sending a request again or late is harmless: each says what it stands on.
//!
//! *Invariant*: an answer is handed to the session that sent its request, in the order of the
//! requests, or to nobody.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::raft::StreamAppendResult;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use super::connection::{ConnectError, Connection, Dialer, Identity, PeerAddress, connect};
use super::frames::{Channel, kind};
use super::messages::{decode_appended, encode_append};
use super::types::{AppendAnswer, AppendRequest, RaftLogId, TypeConfig};
use crate::base::limits;

/// What a dropped session may leave to be written.
const LEFTOVER_BYTES_MAX: usize = 256 << 10;

/// A queue longer than this that gets shorter is a sign of life of the peer; a shorter one goes to
/// the system's own buffer whether or not anybody reads it.
const PROGRESS_BYTES_MIN: usize = 64 << 10;

/// What the answer to one append means to openraft.
pub type Answer = StreamAppendResult<TypeConfig>;

/// A request that waits for its answer.
struct Waiting {
    sequence: u64,
    sent: Instant,
    bytes: usize,
    /// What it appended, from and to; none when its session is gone.
    range: Option<(Option<RaftLogId>, Option<RaftLogId>)>,
}

/// An open connection for appends.
struct AppendLink {
    connection: Connection,
    waiting: VecDeque<Waiting>,
    /// How many of the waiting belong to the session that runs.
    live: usize,
    /// The bytes of all that wait.
    waiting_bytes: usize,
    next_sequence: u64,
    /// When the peer last gave a sign of life.
    heard: Instant,
    alarm: Pin<Box<Sleep>>,
    room_bytes: Arc<AtomicU64>,
}

/// What happened on a link.
enum Event {
    Frame(io::Result<Option<(u8, Bytes)>>),
    Request(Option<AppendRequest>),
    Written(io::Result<()>),
    Alarm,
}

impl AppendLink {
    fn new(connection: Connection, room_bytes: Arc<AtomicU64>) -> AppendLink {
        let now = Instant::now();
        AppendLink {
            connection,
            waiting: VecDeque::new(),
            live: 0,
            waiting_bytes: 0,
            next_sequence: 0,
            heard: now,
            alarm: Box::pin(tokio::time::sleep(limits::PEER_SILENCE_MAX)),
            room_bytes,
        }
    }

    /// When the peer is taken for gone, if it stays silent.
    fn deadline(&self) -> Option<Instant> {
        let oldest = self.waiting.front()?;
        Some(oldest.sent.max(self.heard) + limits::PEER_SILENCE_MAX)
    }

    /// Forgets the session before this one. False when the link is better closed.
    fn begin_session(&mut self) -> bool {
        for waiting in &mut self.waiting {
            waiting.range = None;
        }
        self.live = 0;
        // What came since is taken now: most of all, the end of a connection that broke idle.
        while let Some(frame) = self.connection.reader.next().now_or_never() {
            if frame.and_then(|frame| self.answered(frame)).is_err() {
                return false;
            }
        }
        self.connection.writer.queued_bytes() <= LEFTOVER_BYTES_MAX
            && self.deadline().is_none_or(|deadline| Instant::now() < deadline)
    }

    fn push(&mut self, request: AppendRequest) {
        let last = request.entries.last().map(|entry| entry.log_id);
        let range = Some((request.prev_log_id, last.or(request.prev_log_id)));
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.live += 1;
        let frame = encode_append(sequence, request);
        let bytes = frame.bytes();
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting { sequence, sent: Instant::now(), bytes, range });
        self.connection.writer.push(frame);
    }

    /// Takes an answer off the connection; none when it was nobody's any more.
    fn answered(&mut self, frame: Option<(u8, Bytes)>) -> io::Result<Option<Answer>> {
        let (sequence, room_bytes, answer) = match frame {
            Some((kind::APPENDED, body)) => decode_appended(body)?,
            Some(_) => return Err(invalid("unexpected frame")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let Some(waiting) = self.waiting.pop_front() else {
            return Err(invalid("answer without a request"));
        };
        if waiting.sequence != sequence {
            return Err(invalid("answers out of order"));
        }
        self.waiting_bytes -= waiting.bytes;
        self.heard = Instant::now();
        self.room_bytes.store(room_bytes, Ordering::Relaxed);
        let Some((prev, last)) = waiting.range else { return Ok(None) };
        self.live -= 1;
        if prev.is_none() && matches!(answer, AppendAnswer::Conflict) {
            return Err(invalid("conflict with the empty log"));
        }
        Ok(Some(answer.into_stream_result(prev, last)))
    }

    /// Sends what `input` has and returns the next answer of this session; `None` when the input
    /// has ended and all of it is answered.
    async fn next_answer<S>(&mut self, input: &mut Option<S>) -> io::Result<Option<Answer>>
    where
        S: Stream<Item = AppendRequest> + Unpin,
    {
        loop {
            if input.is_none() && self.live == 0 {
                return Ok(None);
            }
            match self.event(input).await {
                Event::Frame(frame) => {
                    if let Some(answer) = self.answered(frame?)? {
                        return Ok(Some(answer));
                    }
                }
                Event::Request(Some(request)) => self.push(request),
                Event::Request(None) => *input = None,
                Event::Written(result) => result?,
                Event::Alarm => match self.deadline() {
                    Some(deadline) if deadline <= Instant::now() => {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    Some(deadline) => self.alarm.as_mut().reset(deadline),
                    None => {}
                },
            }
        }
    }

    /// Waits for whatever comes first: an answer, a request (while there is room, and before
    /// anything is written, so that requests share a system call), room to write, the alarm.
    async fn event<S>(&mut self, input: &mut Option<S>) -> Event
    where
        S: Stream<Item = AppendRequest> + Unpin,
    {
        let queued = self.connection.writer.queued_bytes();
        let room = self.waiting.len() < limits::PEER_APPENDS_IN_FLIGHT_MAX
            && self.waiting_bytes < limits::PEER_APPEND_BYTES_IN_FLIGHT_MAX
            && queued < limits::PEER_QUEUE_BYTES_MAX;
        let next_request = async {
            match input {
                Some(input) if room => input.next().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            frame = self.connection.reader.next() => Event::Frame(frame),
            request = next_request => Event::Request(request),
            written = self.connection.writer.write_some() => {
                if queued > PROGRESS_BYTES_MIN {
                    self.heard = Instant::now();
                }
                Event::Written(written)
            }
            () = self.alarm.as_mut(), if !self.waiting.is_empty() => Event::Alarm,
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

enum State {
    Closed,
    /// A task of its own, since sessions may be shorter than a dial takes.
    Dialing(JoinHandle<Result<Connection, ConnectError>>),
    Open(Box<AppendLink>),
}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("connection to the peer broke: {0}")]
    Broken(#[from] io::Error),
}

/// The append connection to one peer, opened when it is needed.
pub struct AppendClient {
    dialer: Arc<dyn Dialer>,
    identity: Arc<Identity>,
    target: u64,
    address: PeerAddress,
    room_bytes: Arc<AtomicU64>,
    state: State,
}

impl AppendClient {
    /// A client of the node `target` at `address`; `room_bytes` takes what it says of its disk.
    pub fn new(
        dialer: Arc<dyn Dialer>,
        identity: Arc<Identity>,
        target: u64,
        address: impl Into<PeerAddress>,
        room_bytes: Arc<AtomicU64>,
    ) -> AppendClient {
        let address = address.into();
        AppendClient { dialer, identity, target, address, room_bytes, state: State::Closed }
    }

    /// Opens a session. Its stream ends with the input, or after the first error or answer that
    /// is not a success.
    pub async fn session<'s, S>(
        &'s mut self,
        input: S,
    ) -> Result<impl Stream<Item = Result<Answer, AppendError>> + Send + 's, AppendError>
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 's,
    {
        self.open().await?;
        Ok(futures::stream::unfold(Some((self, Some(input))), |session| async move {
            let (client, mut input) = session?;
            let State::Open(link) = &mut client.state else { return None };
            match link.next_answer(&mut input).await {
                Ok(None) => None,
                Ok(Some(Ok(last))) => Some((Ok(Ok(last)), Some((client, input)))),
                Ok(Some(Err(refused))) => Some((Ok(Err(refused)), None)),
                Err(error) => {
                    client.state = State::Closed;
                    Some((Err(error.into()), None))
                }
            }
        }))
    }

    async fn open(&mut self) -> Result<(), ConnectError> {
        loop {
            match &mut self.state {
                State::Open(link) => {
                    if link.begin_session() {
                        return Ok(());
                    }
                    self.state = State::Closed;
                }
                State::Closed => {
                    let (to, address) = (self.target, self.address.get());
                    let dial = connect(&self.dialer, &self.identity, to, &address, Channel::Append);
                    self.state = State::Dialing(tokio::spawn(dial));
                }
                State::Dialing(dial) => {
                    let dialed = dial.await;
                    self.state = State::Closed;
                    let connection = dialed.unwrap_or_else(|error| {
                        let error = io::Error::other(error);
                        Err(ConnectError::Unreachable { address: self.address.get(), error })
                    })?;
                    let link = AppendLink::new(connection, self.room_bytes.clone());
                    self.state = State::Open(Box::new(link));
                }
            }
        }
    }
}

impl Drop for AppendClient {
    fn drop(&mut self) {
        if let State::Dialing(dial) = &self.state {
            dial.abort();
        }
    }
}
