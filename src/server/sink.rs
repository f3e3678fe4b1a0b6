//! Rows from SQLite straight into Rows messages. Small results are one message; of large ones
//! each batch leaves as soon as it is full, when the statement runs where it may wait.
//!
//! *Invariant*: no batch leaves before the statement's gate was passed.

use bytes::BytesMut;
use rusqlite::ffi;
use tokio::sync::mpsc;

use crate::sqlite::{Columns, Delivery, Gate, RowSink, SqlError, ValueRef};
use crate::wire::{self, Batch, Declared, End, RowsEncoder};

/// A result that must be held back until its transaction is committed is at most this large.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Encodes rows.
pub struct RowsSink {
    encoder: RowsEncoder,
    declared: Vec<Declared>,
    out: BytesMut,
    begun: bool,
    gate: Option<Gate>,
    parts: mpsc::Sender<BytesMut>,
    sent: bool,
    delivery: Delivery,
}

impl RowsSink {
    /// Full batches go to `parts`.
    pub fn new(parts: mpsc::Sender<BytesMut>) -> RowsSink {
        RowsSink {
            encoder: RowsEncoder::new([]),
            declared: Vec::new(),
            out: BytesMut::new(),
            begun: false,
            gate: None,
            parts,
            sent: false,
            delivery: Delivery::Hold,
        }
    }

    /// The last message: what was not sent yet.
    pub fn finish(mut self) -> Result<BytesMut, wire::WireError> {
        if !self.begun {
            self.encoder.begin(&mut self.out);
        }
        self.encoder.finish(&mut self.out, End::Done)?;
        Ok(self.out)
    }

    fn send_part(&mut self) -> Result<(), SqlError> {
        let internal = |_| SqlError::new(ffi::SQLITE_INTERNAL, "rows could not be encoded");
        self.encoder.finish(&mut self.out, End::Part).map_err(internal)?;
        let handle = tokio::runtime::Handle::current();
        if let Some(gate) = self.gate.take() {
            handle.block_on(gate())?;
        }
        let part = self.out.split();
        let gone = |_| SqlError::new(ffi::SQLITE_INTERRUPT, "interrupted");
        handle.block_on(self.parts.send(part)).map_err(gone)?;
        self.sent = true;
        self.encoder.begin(&mut self.out);
        Ok(())
    }
}

impl RowSink for RowsSink {
    fn columns(&mut self, columns: Columns<'_>) -> Result<(), SqlError> {
        self.encoder = RowsEncoder::new(columns.names().map(str::as_bytes));
        self.declared = columns.each(|column| Declared::of(column.declared)).collect();
        self.encoder.begin(&mut self.out);
        self.begun = true;
        Ok(())
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        let shown: smallvec::SmallVec<[wire::ValueRef<'_>; 16]> = values
            .iter()
            .zip(&self.declared)
            .map(|(value, declared)| declared.show(encode(*value)))
            .collect();
        match self.encoder.row(&mut self.out, &shown) {
            Ok(Batch::More) => Ok(()),
            Ok(Batch::Full) => match self.delivery {
                Delivery::Stream => self.send_part(),
                Delivery::Hold => self.begin_next(),
                Delivery::Quick => Err(SqlError::new(ffi::SQLITE_INTERRUPT, "too many rows")),
            },
            Err(_) => Err(SqlError::new(ffi::SQLITE_TOOBIG, "string or blob too big")),
        }
    }

    fn gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    fn begin(&mut self, delivery: Delivery) -> bool {
        if self.sent {
            return false;
        }
        self.out.clear();
        self.begun = false;
        self.delivery = delivery;
        true
    }
}

impl RowsSink {
    /// A batch that may not leave yet is kept, up to a bound.
    fn begin_next(&mut self) -> Result<(), SqlError> {
        if self.out.len() > HELD_BYTES_MAX {
            let what = "too many rows to be held until their transaction is committed";
            return Err(SqlError::new(ffi::SQLITE_TOOBIG, what));
        }
        let internal = |_| SqlError::new(ffi::SQLITE_INTERNAL, "rows could not be encoded");
        self.encoder.finish(&mut self.out, End::Part).map_err(internal)?;
        self.encoder.begin(&mut self.out);
        Ok(())
    }
}

fn encode(value: ValueRef<'_>) -> wire::ValueRef<'_> {
    match value {
        ValueRef::Null => wire::ValueRef::Null,
        ValueRef::Integer(integer) => wire::ValueRef::Integer(integer),
        ValueRef::Real(real) => wire::ValueRef::Float(real),
        ValueRef::Text(text) => wire::ValueRef::Text(text),
        ValueRef::Blob(blob) => wire::ValueRef::Blob(blob),
    }
}
