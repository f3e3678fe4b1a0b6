//! A database copied out as one file, streamed: it may be larger than memory.
//!
//! A dump has a connection of its own, outside the pool: it takes long, and it is of no use
//! afterwards. Plain dqlite: any server answers it.
//!
//! *Invariant*: [`Dump::piece`] gives exactly [`Dump::bytes`] bytes before it says that it is
//! over, or an error.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::Client;
use super::address::Stream;
use super::call::{Effect, Setback, Target, judge, unexpected};
use super::error::{Attempt, DriverError, Outcome};
use super::leader::Backoff;
use crate::wire::{
    FilesDecoder, FilesPiece, FrameDecoder, Handshake, Header, Request, Response, WireError,
    response,
};

/// What is read from the socket at a time.
const READ_BYTES: usize = 64 << 10;

/// An answer other than the files is at most this large.
const FAILURE_BYTES_MAX: usize = 1 << 20;

/// A database on its way out, as of one version.
pub struct Dump {
    stream: Box<dyn Stream>,
    decoder: FilesDecoder,
    bytes: u64,
    /// How long the next bytes may take.
    patience: Duration,
}

impl Client {
    /// Copies a database out, as it is at one moment: on the leader, or on the one member that this
    /// client is of, which answers from its own copy and may be behind.
    pub async fn dump(&self, database: &str) -> Result<Dump, DriverError> {
        let options = &self.inner.options;
        let deadline = Instant::now() + options.call_timeout;
        let mut backoff = Backoff::new(options);
        loop {
            let address = match &self.inner.target {
                Target::Leader(leaders) => leaders.find(deadline).await?,
                Target::Member(address) => address.clone(),
            };
            let outcome = match self.begin(&address, database, deadline).await {
                Ok(dump) => return Ok(dump),
                Err(Setback::Fail(error)) => return Err(error),
                Err(Setback::Again(outcome)) => outcome,
            };
            let Target::Leader(leaders) = &self.inner.target else {
                let attempt = Attempt { address: address.to_string(), outcome };
                return Err(DriverError::Member { attempt });
            };
            leaders.demote(&address, outcome);
            if !backoff.wait(deadline).await {
                return Err(leaders.no_leader());
            }
        }
    }

    async fn begin(
        &self,
        address: &str,
        database: &str,
        deadline: Instant,
    ) -> Result<Dump, Setback> {
        let options = &self.inner.options;
        let dialled = deadline.min(Instant::now() + options.dial_timeout);
        let stream = match timeout_at(dialled, options.dial.dial(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Setback::Again(Outcome::Refused(error.to_string()))),
            Err(_) => return Err(Setback::Again(Outcome::TimedOut)),
        };
        let begun = timeout_at(deadline, Dump::begin(stream, database, options.call_timeout));
        begun.await.unwrap_or(Err(Setback::Again(Outcome::TimedOut)))
    }
}

impl Dump {
    /// Asks, and reads the answer up to the database's first byte.
    async fn begin(
        mut stream: Box<dyn Stream>,
        database: &str,
        patience: Duration,
    ) -> Result<Dump, Setback> {
        let broke = |error: std::io::Error| Setback::Again(Outcome::Broke(error.to_string()));
        let wrong = |_: WireError| Setback::Fail(unexpected("its files"));
        let mut out = BytesMut::from(&Handshake::Current.bytes()[..]);
        let request = Request::Dump { name: database.into() };
        request.encode(&mut out).map_err(wrong)?;
        stream.write_all(&out).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
        let mut header = [0; Header::BYTES];
        stream.read_exact(&mut header).await.map_err(broke)?;
        let header = Header::from_bytes(header);
        if header.kind != response::kind::FILES {
            return Err(refusal(&mut *stream, header).await);
        }
        let decoder = FilesDecoder::new(header).map_err(wrong)?;
        let mut dump = Dump { stream, decoder, bytes: 0, patience };
        match dump.next().await.map_err(Setback::Fail)? {
            FilesPiece::File { size, .. } => dump.bytes = size,
            _ => return Err(Setback::Fail(unexpected("no file"))),
        }
        Ok(dump)
    }

    /// How large the database is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes of the database; `None` when there are no more. What came before an error is
    /// a part of the database, and of no use.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, DriverError> {
        match self.next().await? {
            FilesPiece::Content(bytes) => Ok(Some(bytes)),
            FilesPiece::End => Ok(None),
            FilesPiece::File { size: 0, .. } => self.end().await,
            FilesPiece::File { name, .. } => {
                let what = format!(
                    "the server sent {name} beside the database: without it the copy is not whole"
                );
                Err(DriverError::Invalid(what))
            }
        }
    }

    /// After the empty log there is nothing.
    async fn end(&mut self) -> Result<Option<Bytes>, DriverError> {
        match self.next().await? {
            FilesPiece::End => Ok(None),
            _ => Err(unexpected("files that belong to no database")),
        }
    }

    async fn next(&mut self) -> Result<FilesPiece, DriverError> {
        let broken = |cause: String| DriverError::StreamBroken { cause };
        loop {
            let piece = self.decoder.next_piece().map_err(|error| broken(error.to_string()))?;
            if let Some(piece) = piece {
                return Ok(piece);
            }
            let space = self.decoder.space();
            space.reserve(READ_BYTES);
            let deadline = Instant::now() + self.patience;
            match timeout_at(deadline, self.stream.read_buf(space)).await {
                Ok(Ok(0)) => return Err(broken("the server closed the connection".to_owned())),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(broken(error.to_string())),
                Err(_) => return Err(broken("the server sends nothing more".to_owned())),
            }
        }
    }
}

/// What a server says in place of files.
async fn refusal(stream: &mut dyn Stream, header: Header) -> Setback {
    let mut decoder = FrameDecoder::new(FAILURE_BYTES_MAX);
    decoder.push(&header.to_bytes());
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => {
                return match Response::decode(&frame) {
                    Ok(Response::Failure { code, message }) => judge(Effect::Read, code, &message),
                    _ => Setback::Fail(unexpected("no files")),
                };
            }
            Ok(None) => {}
            Err(error) => return Setback::Again(Outcome::Broke(error.to_string())),
        }
        match stream.read_buf(decoder.space()).await {
            Ok(0) => return Setback::Again(Outcome::Broke("it closed the connection".to_owned())),
            Ok(_) => {}
            Err(error) => return Setback::Again(Outcome::Broke(error.to_string())),
        }
    }
}
