//! Rows messages: the column count and names, then rows, then a marker word that says whether
//! more messages follow. A row is its type codes, four bits each, in whole words, and then its
//! values.
//!
//! [`RowsEncoder`] writes values straight from where SQLite holds them into the connection's
//! buffer; [`RowsDecoder`] reads them as borrowed values. Neither allocates per value or per row.
//! The names are repeated in every message and each message that says "more" has at least one
//! row: clients rely on both.
//!
//! *Invariant*: between [`RowsEncoder::begin`] and [`RowsEncoder::finish`] the buffer ends with an
//! unfinished message, which only the encoder may touch; [`RowsEncoder::abandon`] takes it away
//! without a trace, so that a Failure can stand in its place.

use bytes::{BufMut, BytesMut};

use super::code;
use super::error::{Answer, WireError};
use super::field::{Reader, WORD, len_u64, padding, put_text};
use super::frame;
use super::response::kind;
use super::value::ValueRef;

/// The marker word: nothing follows.
const DONE: u64 = u64::MAX;
/// The marker word: another Rows message follows.
const PART: u64 = 0xEEEE_EEEE_EEEE_EEEE;

/// How a Rows message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// These were the last rows.
    Done,
    /// Another Rows message follows.
    Part,
}

/// Whether a message takes more rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// It does.
    More,
    /// It has its size: finish it with [`End::Part`] and begin the next one.
    Full,
}

/// Writes the Rows messages of one result.
#[derive(Clone, Debug)]
pub struct RowsEncoder {
    /// Column count and names, encoded once.
    head: Vec<u8>,
    columns: usize,
    batch_bytes: usize,
    message_bytes_max: usize,
    /// Where the unfinished message begins.
    start: usize,
    rows: usize,
}

impl RowsEncoder {
    /// A message is full when it has this many bytes, unless said otherwise.
    pub const BATCH_BYTES: usize = 64 << 10;

    /// For a result with these columns.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> RowsEncoder {
        let mut head = BytesMut::new();
        head.put_u64_le(0);
        let mut columns = 0;
        for name in names {
            put_text(&mut head, name);
            columns += 1;
        }
        if let Some(count) = head.first_chunk_mut() {
            *count = len_u64(columns).to_le_bytes();
        }
        RowsEncoder {
            head: head.to_vec(),
            columns,
            batch_bytes: RowsEncoder::BATCH_BYTES,
            message_bytes_max: crate::base::limits::FRAME_BYTES_MAX,
            start: 0,
            rows: 0,
        }
    }

    /// Sets after how many bytes a message is full, and how many it must never exceed (more than
    /// the former by the largest row wanted).
    pub fn with_limits(mut self, batch_bytes: usize, message_bytes_max: usize) -> RowsEncoder {
        self.batch_bytes = batch_bytes;
        self.message_bytes_max = message_bytes_max;
        self
    }

    /// How many columns each row has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How many rows the unfinished message has.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Begins a message at the end of `out`.
    pub fn begin(&mut self, out: &mut BytesMut) {
        self.start = frame::open(out);
        self.rows = 0;
        out.put_slice(&self.head);
    }

    /// Appends a row of as many values as there are columns. One that does not fit into a batch
    /// makes the message longer than that; one with which a message that is almost full would
    /// exceed its limit is [`WireError::TooLong`], wherever it stands. On error the message is as
    /// before.
    pub fn row(&mut self, out: &mut BytesMut, values: &[ValueRef<'_>]) -> Result<Batch, WireError> {
        if values.len() != self.columns || self.columns == 0 {
            return Err(WireError::Malformed("number of values in a row"));
        }
        let begin = out.len();
        let codes = values.len().div_ceil(2);
        let room = values
            .iter()
            .map(|value| value.put_bytes_max())
            .fold(codes + padding(codes), usize::saturating_add);
        let around = self.head.len().saturating_add(self.batch_bytes).saturating_add(2 * WORD);
        let bytes = room.saturating_add(around);
        if bytes > self.message_bytes_max {
            let (bytes, bytes_max) = (len_u64(bytes), len_u64(self.message_bytes_max));
            return Err(WireError::TooLong { bytes, bytes_max });
        }
        out.reserve(room);
        for pair in values.chunks(2) {
            let code = |value: Option<&ValueRef<'_>>| value.map_or(0, |value| value.code());
            out.put_u8(code(pair.first()) | code(pair.get(1)) << 4);
        }
        out.put_bytes(0, padding(codes));
        for value in values {
            value.put(out);
        }
        debug_assert!(out.len() - begin <= room);
        self.rows += 1;
        let full = out.len().saturating_sub(self.start) >= self.batch_bytes;
        Ok(if full { Batch::Full } else { Batch::More })
    }

    /// Ends the message. A message without rows must not end with [`End::Part`].
    pub fn finish(&mut self, out: &mut BytesMut, end: End) -> Result<(), WireError> {
        if end == End::Part && self.rows == 0 {
            return Err(WireError::Malformed("part without rows"));
        }
        out.put_u64_le(if end == End::Done { DONE } else { PART });
        frame::close(out, self.start, kind::ROWS, 0)
    }

    /// Takes the unfinished message away.
    pub fn abandon(&mut self, out: &mut BytesMut) {
        out.truncate(self.start);
        self.rows = 0;
    }

    /// What a server answers when [`RowsEncoder::row`] says that a row is too long.
    pub fn too_long() -> Answer {
        Answer::Failure { code: code::TOOBIG, text: code::TOO_BIG_TEXT }
    }
}

/// What [`RowsDecoder::next_row`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A row.
    Row,
    /// The message's end.
    End(End),
}

/// Reads one Rows message.
#[derive(Clone, Debug)]
pub struct RowsDecoder<'a> {
    names: Vec<&'a [u8]>,
    reader: Reader<'a>,
}

impl<'a> RowsDecoder<'a> {
    /// Reads the columns of a message's body.
    pub fn new(body: &'a [u8]) -> Result<RowsDecoder<'a>, WireError> {
        let mut reader = Reader::new(body);
        let count = reader.u64("a count of columns")?;
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(reader.text("a column name")?);
        }
        Ok(RowsDecoder { names, reader })
    }

    /// The columns' names.
    pub fn names(&self) -> &[&'a [u8]] {
        &self.names
    }

    /// How many bytes of the message were not read yet.
    pub fn rest_bytes(&self) -> usize {
        self.reader.rest().len()
    }

    /// Reads the next row into `row`, whose content it replaces.
    pub fn next_row(&mut self, row: &mut Vec<ValueRef<'a>>) -> Result<Step, WireError> {
        row.clear();
        match self.reader.peek() {
            Some(DONE) => return Ok(Step::End(End::Done)),
            Some(PART) => return Ok(Step::End(End::Part)),
            Some(_) if !self.names.is_empty() => {}
            Some(_) => return Err(WireError::Malformed("row without columns")),
            None => return Err(WireError::Truncated("a row")),
        }
        let columns = self.names.len();
        let codes = self.reader.padded(columns.div_ceil(2), 0, "the types of a row")?;
        let codes = codes.iter().flat_map(|pair| [pair & 0x0F, pair >> 4]).take(columns);
        row.reserve(columns);
        for code in codes {
            row.push(ValueRef::get(code, &mut self.reader)?);
        }
        Ok(Step::Row)
    }
}
