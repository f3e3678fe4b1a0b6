//! Results: collected ([`Rows`]), or message by message ([`RowStream`]), which holds one message
//! at a time whatever the size of the result.
//!
//! *Invariant*: a stream that is dropped before its end closes its connection;
//! [`RowStream::interrupt`] keeps it.

use std::time::Duration;

use tokio::time::Instant;

use super::call::{Effect, Setback, judge, judge_fault, unexpected};
use super::connection::{Connection, Fault};
use super::error::DriverError;
use super::pool::Lent;
use crate::wire::{End, Response, RowsDecoder, Step, Text, Value};

/// A whole result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
}

/// What a statement did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecResult {
    /// The last row id that the connection inserted.
    pub last_insert_id: i64,
    /// How many rows the last changing statement changed.
    pub rows_affected: u64,
}

impl ExecResult {
    pub(super) fn from_response(response: &Response) -> Result<ExecResult, DriverError> {
        match *response {
            Response::Result { last_insert_id, rows_affected } => {
                Ok(ExecResult { last_insert_id, rows_affected })
            }
            _ => Err(unexpected("no result")),
        }
    }
}

/// Puts the messages of a result together.
pub(super) struct Collector {
    rows: Rows,
    bytes: usize,
    bytes_max: usize,
}

impl Collector {
    pub(super) fn new(bytes_max: usize) -> Collector {
        Collector { rows: Rows::default(), bytes: 0, bytes_max }
    }

    /// Adds a message; true if it was the last.
    pub(super) fn add(&mut self, body: &[u8]) -> Result<bool, DriverError> {
        self.bytes = self.bytes.saturating_add(body.len());
        if self.bytes > self.bytes_max {
            return Err(DriverError::ResultTooLarge { bytes_max: self.bytes_max });
        }
        let broken = |error: crate::wire::WireError| unexpected(&error.to_string());
        let mut decoder = RowsDecoder::new(body).map_err(broken)?;
        if self.rows.columns.is_empty() {
            self.rows.columns =
                decoder.names().iter().map(|name| Text::from(*name).to_string()).collect();
        }
        let mut row = Vec::new();
        loop {
            match decoder.next_row(&mut row).map_err(broken)? {
                Step::Row => {
                    self.rows.rows.push(row.iter().map(|value| value.to_value()).collect());
                }
                Step::End(end) => return Ok(end == End::Done),
            }
        }
    }

    pub(super) fn into_rows(self) -> Rows {
        self.rows
    }
}

/// The connection of a stream: its own, or that of a transaction.
pub(super) enum Source<'a> {
    Own(Lent),
    Pinned(&'a mut Lent),
    /// Of a result that is complete.
    Nowhere,
}

impl Source<'_> {
    fn get(&mut self) -> Result<&mut Connection, Fault> {
        match self {
            Source::Own(lent) => lent.get(),
            Source::Pinned(lent) => lent.get(),
            Source::Nowhere => Err(Fault::NotSent("no connection".to_owned())),
        }
    }

    fn discard(&mut self) {
        match self {
            Source::Own(lent) => lent.discard(),
            Source::Pinned(lent) => lent.discard(),
            Source::Nowhere => {}
        }
    }
}

/// A result that is read as it arrives.
pub struct RowStream<'a> {
    source: Source<'a>,
    effect: Effect,
    timeout: Duration,
    columns: Vec<String>,
    /// The rows of the first message.
    first: Option<Vec<Vec<Value>>>,
    /// Bytes of the messages read so far.
    bytes: usize,
    done: bool,
}

impl<'a> RowStream<'a> {
    pub(super) fn new(
        source: Source<'a>,
        first: &Response,
        effect: Effect,
        timeout: Duration,
    ) -> Result<RowStream<'a>, DriverError> {
        let Response::Rows(body) = first else { return Err(unexpected("no rows")) };
        let mut collector = Collector::new(usize::MAX);
        let done = collector.add(body)?;
        let Rows { columns, rows } = collector.into_rows();
        let (first, bytes) = (Some(rows), body.len());
        let mut stream = RowStream { source, effect, timeout, columns, first, bytes, done };
        stream.settle();
        Ok(stream)
    }

    /// A stream without columns or rows.
    pub(super) fn empty() -> RowStream<'a> {
        RowStream {
            source: Source::Nowhere,
            effect: Effect::Read,
            timeout: Duration::ZERO,
            columns: Vec::new(),
            first: None,
            bytes: 0,
            done: true,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The rows of the next message, never an empty list; `None` at the end.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<Vec<Value>>>, DriverError> {
        if let Some(first) = self.first.take()
            && !first.is_empty()
        {
            return Ok(Some(first));
        }
        while !self.done {
            let rows = self.read().await?;
            if !rows.is_empty() {
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<Vec<Vec<Value>>, DriverError> {
        let deadline = Instant::now() + self.timeout;
        let effect = self.effect;
        // Whatever happens next, there is nothing to read after it unless a message says so.
        self.done = true;
        let tell = |setback| match setback {
            Setback::Fail(error) => error,
            Setback::Again(outcome) => DriverError::StreamBroken { cause: outcome.to_string() },
        };
        let connection = match self.source.get() {
            Ok(connection) => connection,
            Err(fault) => return Err(tell(judge_fault(effect, &fault))),
        };
        match connection.response(deadline).await {
            Ok(Response::Rows(body)) => {
                let mut collector = Collector::new(usize::MAX);
                self.done = collector.add(&body)?;
                self.bytes = self.bytes.saturating_add(body.len());
                self.settle();
                Ok(collector.into_rows().rows)
            }
            Ok(Response::Failure { code, message }) => {
                connection.set_idle();
                Err(tell(judge(effect, code, &message)))
            }
            Ok(_) => Err(unexpected("no rows")),
            Err(fault) => Err(tell(judge_fault(effect, &fault))),
        }
    }

    fn settle(&mut self) {
        if self.done
            && let Ok(connection) = self.source.get()
        {
            connection.set_idle();
        }
    }

    /// Ends the stream before its end: the server stops, and the connection can be used again.
    pub async fn interrupt(mut self) -> Result<(), DriverError> {
        if self.done {
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        self.done = true;
        let result = match self.source.get() {
            Ok(connection) => connection.interrupt(deadline).await,
            Err(fault) => Err(fault),
        };
        result.map_err(|fault| {
            self.source.discard();
            DriverError::TimedOut(format!("interrupting the stream: {}", fault.cause()))
        })
    }
}
