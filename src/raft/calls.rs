//! The asking side of the request channel to one peer: votes, leader transfers, and the calls of
//! the layers above. Many tasks share one connection; answers come in any order, by id.
//!
//! A task of its own holds the connection and opens it when there is something to ask. It makes
//! one attempt: when that fails, whatever waits is told so, and the next request is the next
//! attempt.
//!
//! *Invariant*: each request gets one answer or one error, and after an error other than
//! `Unreachable` or `Refused` the peer may or may not have acted on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::connection::{ConnectError, Connection, Dialer, Identity, PeerAddress, connect};
use super::frames::{Channel, kind};
use super::messages::{Refusal, Request, decode_answer, encode_request};
use crate::base::{Fate, limits};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The peer was not reached: certainly nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// The peer said no: certainly nothing was done.
    #[error("refused: {0}")]
    Refused(String),
    /// The connection broke while the answer was awaited.
    #[error("connection lost")]
    Lost,
    /// No answer came in time.
    #[error("no answer in time")]
    Late,
}

impl CallError {
    /// What to do about it.
    pub fn fate(&self) -> Fate {
        match self {
            CallError::Unreachable(_) => Fate::RetryElsewhere,
            CallError::Refused(_) => Fate::Reject,
            CallError::Lost | CallError::Late => Fate::OutcomeUnknown,
        }
    }
}

struct Asked {
    request: Request,
    answer: Waiting,
}

struct Waiting {
    tell: oneshot::Sender<Result<Bytes, CallError>>,
    deadline: Instant,
}

impl Waiting {
    fn tell(self, result: Result<Bytes, CallError>) {
        // The asker may have given up; then nobody wants to know.
        let _ = self.tell.send(result);
    }
}

/// The request connection to one peer, opened when it is needed. Clones share it; it ends with
/// the last of them.
#[derive(Clone)]
pub struct CallClient {
    asked: mpsc::Sender<Asked>,
}

impl CallClient {
    /// A client of the node `target` (0: whoever is there) at `address`. Must be called on the
    /// asynchronous runtime.
    pub fn new(
        dialer: Arc<dyn Dialer>,
        identity: Arc<Identity>,
        target: u64,
        address: impl Into<PeerAddress>,
    ) -> CallClient {
        let address = address.into();
        let (asked, questions) = mpsc::channel(limits::PEER_REQUESTS_IN_FLIGHT_MAX);
        tokio::spawn(async move {
            let mut questions = questions;
            while let Some(first) = questions.recv().await {
                let to = connect(&dialer, &identity, target, &address.get(), Channel::Requests);
                match to.await {
                    Ok(connection) => ask(connection, first, &mut questions).await,
                    Err(error) => fail(&error, first, &mut questions),
                }
            }
        });
        CallClient { asked }
    }

    /// Asks, and waits for the answer no longer than `limit`.
    pub async fn ask(&self, request: Request, limit: Duration) -> Result<Bytes, CallError> {
        let deadline = Instant::now() + limit;
        let (tell, told) = oneshot::channel();
        let asked = Asked { request, answer: Waiting { tell, deadline } };
        let answer = async {
            if self.asked.send(asked).await.is_err() {
                return Err(CallError::Unreachable("this node is stopping".to_owned()));
            }
            told.await.unwrap_or(Err(CallError::Lost))
        };
        tokio::time::timeout_at(deadline, answer).await.unwrap_or(Err(CallError::Late))
    }
}

/// Tells everybody who waits that the peer was not reached.
fn fail(error: &ConnectError, first: Asked, questions: &mut mpsc::Receiver<Asked>) {
    let mut next = Some(first);
    while let Some(asked) = next {
        asked.answer.tell(Err(CallError::Unreachable(error.to_string())));
        next = questions.try_recv().ok();
    }
}

/// Asks over a connection until it breaks or nobody can ask any more.
async fn ask(connection: Connection, first: Asked, questions: &mut mpsc::Receiver<Asked>) {
    let mut waiting = BTreeMap::new();
    if let Err(error) = exchange(connection, first, questions, &mut waiting).await {
        tracing::debug!(%error, "request connection to a peer ended");
    }
    for (_, answer) in waiting {
        let answer: Waiting = answer;
        answer.tell(Err(CallError::Lost));
    }
}

async fn exchange(
    mut connection: Connection,
    first: Asked,
    questions: &mut mpsc::Receiver<Asked>,
    waiting: &mut BTreeMap<u64, Waiting>,
) -> io::Result<()> {
    let mut next_id = 0;
    let mut heard = Instant::now();
    let mut alarm = tokio::time::interval(limits::PEER_SILENCE_MAX / 3);
    let mut next = Some(first);
    loop {
        if let Some(Asked { request, answer }) = next.take() {
            connection.writer.push(encode_request(next_id, &request));
            waiting.insert(next_id, answer);
            next_id += 1;
        }
        let room = waiting.len() < limits::PEER_REQUESTS_IN_FLIGHT_MAX
            && connection.writer.queued_bytes() < limits::PEER_QUEUE_BYTES_MAX;
        tokio::select! {
            biased;
            frame = connection.reader.next() => {
                heard = Instant::now();
                let (id, answer) = match frame? {
                    Some((kind::ANSWER, body)) => decode_answer(body)?,
                    Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                };
                if let Some(waiting) = waiting.remove(&id) {
                    waiting.tell(answer.map_err(|Refusal(reason)| CallError::Refused(reason)));
                }
            }
            asked = questions.recv(), if room => match asked {
                Some(asked) => next = Some(asked),
                None => return Ok(()),
            },
            written = connection.writer.write_some() => written?,
            now = alarm.tick() => {
                let late = waiting.values().any(|waiting| waiting.deadline <= now);
                waiting.retain(|_, waiting| waiting.deadline > now);
                if late && heard + limits::PEER_SILENCE_MAX <= now {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
    }
}
