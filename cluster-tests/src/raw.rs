//! A client as bare as can be: one socket, frames and bytes, no driver in between. It says exactly
//! what a test wants said, at the moment it wants it said, also what no honest client says.
//!
//! *Invariant*: every wait for the server ends after [`PATIENCE`](crate::PATIENCE).

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use quire::wire::{
    End, Frame, FrameDecoder, Handshake, Params, Request, Response, RowsDecoder, Step, Value,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::PATIENCE;

/// A frame of the server's is at most this large here.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// One connection.
pub struct Raw {
    stream: TcpStream,
    decoder: FrameDecoder,
}

/// A whole answer: a message, or the rows of all its parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// One message that is not of rows.
    Message(Response),
    /// All rows, in how many messages.
    Rows(Vec<Vec<Value>>, usize),
}

impl Said {
    /// The code and text of a Failure.
    pub fn failure(&self) -> Option<(u64, String)> {
        match self {
            Said::Message(Response::Failure { code, message }) => {
                Some((*code, message.to_string()))
            }
            _ => None,
        }
    }

    /// The one integer of the one row.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Said::Rows(rows, _) => match rows.first()?.first()? {
                Value::Integer(integer) => Some(*integer),
                _ => None,
            },
            Said::Message(_) => None,
        }
    }
}

impl Raw {
    /// Connects and says nothing.
    pub async fn dial(address: &str) -> Result<Raw> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, decoder: FrameDecoder::new(FRAME_BYTES_MAX) })
    }

    /// Connects and says the current protocol.
    pub async fn connect(address: &str) -> Result<Raw> {
        let mut raw = Raw::dial(address).await?;
        raw.send_bytes(&Handshake::Current.bytes()).await?;
        Ok(raw)
    }

    /// Connects and opens a database.
    pub async fn open(address: &str, database: &str) -> Result<Raw> {
        let mut raw = Raw::connect(address).await?;
        match raw.ask(&open(database)).await? {
            Said::Message(Response::Db { .. }) => Ok(raw),
            other => bail!("{address} did not open {database}: {other:?}"),
        }
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.context("the socket is full")??;
        Ok(())
    }

    /// Sends requests, in one write, without waiting for anything.
    pub async fn send(&mut self, requests: &[Request]) -> Result<()> {
        let mut out = BytesMut::new();
        for request in requests {
            request.encode(&mut out)?;
        }
        self.send_bytes(&out).await
    }

    /// The next frame; `None` when the server has closed the connection.
    pub async fn frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let read = timeout(PATIENCE, self.stream.read_buf(self.decoder.space())).await;
            match read.context("no answer in time")? {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }

    /// The next message.
    pub async fn response(&mut self) -> Result<Response> {
        let frame = self.frame().await?.context("the server closed the connection")?;
        Ok(Response::decode(&frame)?)
    }

    /// The next whole answer.
    pub async fn answer(&mut self) -> Result<Said> {
        let mut rows = Vec::new();
        for messages in 1.. {
            let body = match self.response().await? {
                Response::Rows(body) => body,
                other => return Ok(Said::Message(other)),
            };
            if add_rows(&body, &mut rows)? == End::Done {
                return Ok(Said::Rows(rows, messages));
            }
        }
        bail!("an answer without an end")
    }

    /// Sends a request and reads its whole answer.
    pub async fn ask(&mut self, request: &Request) -> Result<Said> {
        self.send(std::slice::from_ref(request)).await?;
        self.answer().await
    }

    /// Runs statements for their effect.
    pub async fn exec(&mut self, sql: &str) -> Result<Said> {
        self.ask(&exec_sql(sql)).await
    }

    /// Runs statements for their effect, which must succeed.
    pub async fn run(&mut self, sql: &str) -> Result<(i64, u64)> {
        match self.exec(sql).await? {
            Said::Message(Response::Result { last_insert_id, rows_affected }) => {
                Ok((last_insert_id, rows_affected))
            }
            other => bail!("{sql}: {other:?}"),
        }
    }

    /// Runs one statement for its rows.
    pub async fn query(&mut self, sql: &str) -> Result<Said> {
        self.ask(&query_sql(sql)).await
    }

    /// The one integer that a query gives.
    pub async fn integer(&mut self, sql: &str) -> Result<i64> {
        let said = self.query(sql).await?;
        said.integer().with_context(|| format!("{sql}: {said:?}"))
    }

    /// Whether the server closes the connection, and says nothing before.
    pub async fn is_closed(&mut self) -> Result<bool> {
        Ok(self.frame().await?.is_none())
    }

    /// Closes the sending direction only.
    pub async fn finish_sending(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }
}

/// Adds a Rows message's rows.
pub fn add_rows(body: &[u8], rows: &mut Vec<Vec<Value>>) -> Result<End> {
    let mut decoder = RowsDecoder::new(body)?;
    let mut row = Vec::new();
    loop {
        match decoder.next_row(&mut row)? {
            Step::Row => rows.push(row.iter().map(|value| value.to_value()).collect()),
            Step::End(end) => return Ok(end),
        }
    }
}

/// Opens a database.
pub fn open(database: &str) -> Request {
    Request::Open { name: database.into(), flags: 0, vfs: "volatile".into() }
}

/// Statements without parameters, for their effect.
pub fn exec_sql(sql: &str) -> Request {
    Request::ExecSql { database: 0, sql: sql.into(), params: Params::new([]) }
}

/// One statement without parameters, for its rows.
pub fn query_sql(sql: &str) -> Request {
    Request::QuerySql { database: 0, sql: sql.into(), params: Params::new([]) }
}

/// Asks to stop what is running.
pub const INTERRUPT: Request = Request::Interrupt { database: 0 };
