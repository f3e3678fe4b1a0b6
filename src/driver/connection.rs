//! One connection to one server: sends a request, reads its answer, and knows afterwards whether
//! the request can have been executed ([`Fault`]).
//!
//! It remembers what the server keeps for it (the database opened, the read level, the prepared
//! statements), so that the pool can hand out one that already has what a call needs.
//!
//! *Invariant*: between a request and the last message of its answer the connection is *busy*, and
//! a busy connection is never reused before what runs there was interrupted and its answer read
//! ([`Connection::interrupt`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::address::{Dial, Stream};
use super::error::Outcome;
use super::metrics::{Counters, OpenMark};
use super::once::Sending;
use crate::base::limits;
use crate::wire::request::HELLO_FOLLOWER_READS;
use crate::wire::{
    EXTENSION_VERSION, EXTENSION_VERSION_ONCE, Frame, FrameDecoder, Handshake, ReadLevel, Request,
    Response, Text, code,
};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server cannot have the whole request, so it did not execute it.
    NotSent(String),
    /// The whole request was handed to the network; what became of it is not known.
    Lost(String),
}

impl Fault {
    pub(super) fn cause(&self) -> &str {
        match self {
            Fault::NotSent(cause) | Fault::Lost(cause) => cause,
        }
    }
}

/// The level of a connection's reads and how old what is read may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) level: ReadLevel,
    pub(super) max_staleness_ms: u64,
}

/// A server's answer to Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    NotAsked,
    Absent,
    /// It speaks this version of our requests.
    Present(u64),
}

/// A prepared statement of this connection.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) sql: Arc<str>,
    pub(super) id: u32,
    pub(super) params: u64,
}

pub(super) struct Connection {
    address: Arc<str>,
    stream: Box<dyn Stream>,
    decoder: FrameDecoder,
    out: BytesMut,
    busy: bool,
    /// What runs is a statement that was sent whole: Interrupt ends it, and its answer is read.
    interruptible: bool,
    /// An answer did not come in time; it may still come.
    late: bool,
    in_transaction: bool,
    /// Whether it reads where nobody leads; said with Hello, once.
    follower: bool,
    database: Option<(String, u32)>,
    extension: Extension,
    level: Level,
    /// Least recently used first.
    statements: VecDeque<Prepared>,
    /// When the server was heard last.
    heard: Instant,
    _open: OpenMark,
}

/// How many statements stay prepared on a connection.
const STATEMENTS_MAX: usize = 64;

/// A server takes an id to be as old as its own last answer on the connection, which is all that it
/// knows of the time of its sending: behind one that is older than this another is asked for first.
const ID_AFTER_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Opens a stream to an address, or says why not.
pub(super) async fn open_stream(
    dial: &dyn Dial,
    address: &str,
    deadline: Instant,
) -> Result<Box<dyn Stream>, Outcome> {
    let began = Instant::now();
    match timeout_at(deadline, dial.dial(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err(Outcome::Refused)
        }
        Ok(Err(error)) => Err(Outcome::Unreachable(error.to_string())),
        Err(_) => Err(Outcome::TimedOut(deadline.saturating_duration_since(began))),
    }
}

impl Connection {
    /// Connects. The handshake leaves together with the first request.
    pub(super) async fn dial(
        dial: &dyn Dial,
        address: &Arc<str>,
        follower: bool,
        counters: &Counters,
        deadline: Instant,
    ) -> Result<Box<Connection>, Outcome> {
        let stream = open_stream(dial, address, deadline).await?;
        Ok(Box::new(Connection {
            address: address.clone(),
            stream,
            decoder: FrameDecoder::new(limits::FRAME_BYTES_MAX),
            out: BytesMut::from(&Handshake::Current.bytes()[..]),
            busy: false,
            interruptible: false,
            late: false,
            in_transaction: false,
            follower,
            database: None,
            extension: Extension::NotAsked,
            level: Level::default(),
            statements: VecDeque::new(),
            heard: Instant::now(),
            _open: OpenMark::new(counters),
        }))
    }

    pub(super) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// The database opened on it.
    pub(super) fn database(&self) -> Option<&str> {
        self.database.as_ref().map(|(name, _)| name.as_str())
    }

    /// The level of its reads.
    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Whether an answer was not read to its end.
    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn database_id(&self) -> u32 {
        self.database.as_ref().map_or(0, |(_, id)| *id)
    }

    /// Notes that a transaction may be open on it.
    pub(super) fn set_in_transaction(&mut self, open: bool) {
        self.in_transaction = open;
    }

    /// Whether it reads where nobody leads.
    pub(super) fn is_follower(&self) -> bool {
        self.follower
    }

    /// Whether what runs on it can be ended by [`Connection::interrupt`], and nothing else is lost
    /// with it.
    pub(super) fn is_interruptible(&self) -> bool {
        self.busy && self.interruptible && !self.in_transaction
    }

    /// Whether an answer did not come in time.
    pub(super) fn is_late(&self) -> bool {
        self.late
    }

    /// Whether another call may use it.
    pub(super) fn is_reusable(&self) -> bool {
        !self.busy && !self.in_transaction
    }

    /// Whether the server has neither closed it nor spoken out of turn while it was idle.
    pub(super) fn is_alive(&mut self) -> bool {
        let mut buffer = [0; 1];
        self.stream.read(&mut buffer).now_or_never().is_none()
    }

    /// Sends a request and reads the first message of its answer. Only Rows have more.
    pub(super) async fn request(
        &mut self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Fault> {
        self.busy = true;
        self.interruptible = false;
        let encoded = request.encode(&mut self.out);
        encoded.map_err(|error| Fault::NotSent(error.to_string()))?;
        // A server executes whole frames only: until the last byte is handed over, nothing.
        match timeout_at(deadline, self.stream.write_all(&self.out)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fault::NotSent(error.to_string())),
            Err(_) => return Err(Fault::NotSent("the server takes no bytes".to_owned())),
        }
        self.out.clear();
        // A stream that wraps another may still hold bytes.
        match timeout_at(deadline, self.stream.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Fault::Lost(error.to_string())),
            Err(_) => return Err(Fault::Lost("the server takes no bytes".to_owned())),
        }
        // The answers to others may be Empty themselves, as the one to Interrupt is.
        self.interruptible = matches!(
            request,
            Request::Exec { .. }
                | Request::ExecSql { .. }
                | Request::Query { .. }
                | Request::QuerySql { .. }
                | Request::Prepare { .. }
        );
        let response = self.response(deadline).await?;
        self.busy = matches!(response, Response::Rows(_));
        Ok(response)
    }

    /// As [`Connection::request`], of a statement that is executed once: its id leaves with it.
    pub(super) async fn request_once(
        &mut self,
        sending: &Sending<'_>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Fault> {
        if self.heard.elapsed() > ID_AFTER_ANSWER_MAX {
            let asked = self.request(&Request::Leader, deadline).await;
            asked.map_err(|fault| Fault::NotSent(fault.cause().to_owned()))?;
        }
        let (database, age_ms) = (u64::from(self.database_id()), sending.note_sent());
        let named = Request::RequestId { database, id: sending.bytes(), age_ms };
        named.encode(&mut self.out).map_err(|error| Fault::NotSent(error.to_string()))?;
        let armed = self.request(request, deadline).await?;
        self.busy = true;
        if armed != Response::Empty {
            return Err(Fault::Lost("the server broke the protocol: an id refused".to_owned()));
        }
        let response = self.response(deadline).await?;
        self.busy = matches!(response, Response::Rows(_));
        Ok(response)
    }

    /// Whether the server has said that it knows ids.
    pub(super) fn knows_ids(&self) -> bool {
        matches!(self.extension, Extension::Present(version) if version >= EXTENSION_VERSION_ONCE)
    }

    /// Reads one more message.
    pub(super) async fn response(&mut self, deadline: Instant) -> Result<Response, Fault> {
        let decoded = match self.frame(deadline).await {
            Ok(frame) => Response::decode(&frame).map_err(|error| Fault::Lost(error.to_string())),
            Err(fault) => Err(fault),
        };
        self.heard = Instant::now();
        // After a wrong answer there is none to be read; after a late one there may be.
        self.interruptible &= decoded.is_ok() || self.late;
        decoded
    }

    /// The answer is complete: the last Rows message was read.
    pub(super) fn set_idle(&mut self) {
        self.busy = false;
    }

    async fn frame(&mut self, deadline: Instant) -> Result<Frame, Fault> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(Fault::Lost(error.to_string())),
            }
            match timeout_at(deadline, self.stream.read_buf(self.decoder.space())).await {
                Ok(Ok(0)) => return Err(Fault::Lost("the server closed the connection".into())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(Fault::Lost(error.to_string())),
                Err(_) => {
                    self.late = true;
                    return Err(Fault::Lost("no answer in time".into()));
                }
            }
        }
    }

    /// Asks the server to stop what runs and reads what it still sends.
    pub(super) async fn interrupt(&mut self, deadline: Instant) -> Result<(), Fault> {
        let database = u64::from(self.database_id());
        let mut response = self.request(&Request::Interrupt { database }, deadline).await?;
        self.busy = true;
        while response != Response::Empty {
            response = self.response(deadline).await?;
        }
        self.busy = false;
        self.late = false;
        Ok(())
    }

    /// Brings the connection to what a call needs. Answers with what the server said if it is not what was hoped for.
    pub(super) async fn prepare_for(
        &mut self,
        database: Option<&str>,
        level: Level,
        once: bool,
        deadline: Instant,
    ) -> Result<Option<Response>, Fault> {
        let follower = self.follower;
        let asks = follower || once || level != self.level;
        if self.extension == Extension::NotAsked && asks {
            let flags = if follower { HELLO_FOLLOWER_READS } else { 0 };
            let hello = Request::Hello { version: EXTENSION_VERSION, flags };
            self.extension = match self.request(&hello, deadline).await? {
                Response::HelloOk { version, .. } => Extension::Present(version),
                Response::Failure { code: code::PARSE, .. } => Extension::Absent,
                other => return Ok(Some(other)),
            };
        }
        if level != self.level && matches!(self.extension, Extension::Present(_)) {
            let Level { level: wanted, max_staleness_ms } = level;
            let request = Request::ReadLevel { level: wanted.code(), max_staleness_ms };
            match self.request(&request, deadline).await? {
                Response::Empty => self.level = level,
                other => return Ok(Some(other)),
            }
        }
        if let (Some(name), None) = (database, &self.database) {
            let open = Request::Open { name: name.into(), flags: 0, vfs: Text::default() };
            match self.request(&open, deadline).await? {
                Response::Db { id } => self.database = Some((name.to_owned(), id)),
                other => return Ok(Some(other)),
            }
        }
        Ok(None)
    }

    /// The statement prepared on this connection, now or earlier.
    pub(super) async fn prepare(
        &mut self,
        sql: &Arc<str>,
        deadline: Instant,
    ) -> Result<Result<Prepared, Response>, Fault> {
        let known = self.statements.iter().position(|prepared| prepared.sql == *sql);
        if let Some(prepared) = known.and_then(|at| self.statements.remove(at)) {
            self.statements.push_back(prepared.clone());
            return Ok(Ok(prepared));
        }
        let database = self.database_id();
        if self.statements.len() >= STATEMENTS_MAX
            && let Some(oldest) = self.statements.pop_front()
        {
            let finalize = Request::Finalize { database, statement: oldest.id };
            match self.request(&finalize, deadline).await? {
                Response::Empty => {}
                other => return Ok(Err(other)),
            }
        }
        let request =
            Request::Prepare { database: u64::from(database), sql: (&**sql).into(), tail: false };
        match self.request(&request, deadline).await? {
            Response::Stmt { statement, params, .. } => {
                let prepared = Prepared { sql: sql.clone(), id: statement, params };
                self.statements.push_back(prepared.clone());
                Ok(Ok(prepared))
            }
            other => Ok(Err(other)),
        }
    }
}
