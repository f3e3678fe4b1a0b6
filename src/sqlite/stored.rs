//! What is remembered of a request that had an id, as bytes: the answer that a repeat gets.
//!
//! Drawn in docs/format.md.
//!
//! *Invariant*: pure; whatever [`Stored::encode`] writes, [`Stored::decode`] reads back; other
//! bytes are an error, never a panic.

use rusqlite::ffi;

use crate::base::limits;
use crate::codec::{Malformed, Reader, put_bytes_u32};

use super::connection::{Column, Columns, Ran, RowSink, SqlError};
use super::{Value, ValueRef};

/// The layout, first byte of all.
const LAYOUT: u8 = 1;

const STATEMENT: u8 = 1;
const FAILURE: u8 = 2;
const TRANSACTION: u8 = 3;

const ROW: u8 = 1;
const END: u8 = 0;

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// A statement ran.
    Statement {
        /// Of its text and parameters.
        fingerprint: u64,
        /// `last_insert_rowid()` afterwards.
        last_insert_rowid: i64,
        /// `changes()` afterwards.
        changes: u64,
        /// How much `total_changes()` grew.
        total_changes: u64,
        /// Columns and rows, as a [`Recorder`] writes them.
        rows: Vec<u8>,
    },
    /// A statement failed and kept rows all the same (`INSERT OR FAIL`).
    Failure {
        /// Of its text and parameters.
        fingerprint: u64,
        /// SQLite's extended code.
        code: i32,
        /// SQLite's message.
        message: String,
    },
    /// A transaction was committed.
    Transaction {
        /// `last_insert_rowid()` afterwards.
        last_insert_rowid: i64,
        /// `changes()` afterwards.
        changes: u64,
        /// What its client wants to be told.
        outcome: Vec<u8>,
    },
}

impl Stored {
    /// As bytes; an error where they are too many to be remembered.
    pub fn encode(&self) -> Result<Vec<u8>, SqlError> {
        let mut out = vec![LAYOUT];
        let put = match self {
            Stored::Statement { fingerprint, last_insert_rowid, changes, total_changes, rows } => {
                out.push(STATEMENT);
                out.extend_from_slice(&fingerprint.to_le_bytes());
                out.extend_from_slice(&last_insert_rowid.to_le_bytes());
                out.extend_from_slice(&changes.to_le_bytes());
                out.extend_from_slice(&total_changes.to_le_bytes());
                out.extend_from_slice(rows);
                Some(())
            }
            Stored::Failure { fingerprint, code, message } => {
                out.push(FAILURE);
                out.extend_from_slice(&fingerprint.to_le_bytes());
                out.extend_from_slice(&code.to_le_bytes());
                put_bytes_u32(&mut out, message.as_bytes())
            }
            Stored::Transaction { last_insert_rowid, changes, outcome } => {
                out.push(TRANSACTION);
                out.extend_from_slice(&last_insert_rowid.to_le_bytes());
                out.extend_from_slice(&changes.to_le_bytes());
                put_bytes_u32(&mut out, outcome)
            }
        };
        match put {
            Some(()) if out.len() <= limits::REQUEST_RESULT_BYTES_MAX => Ok(out),
            _ => Err(too_large()),
        }
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Stored, Malformed> {
        let mut reader = Reader::new(bytes);
        let (layout, kind) = (reader.u8()?, reader.u8()?);
        if layout != LAYOUT {
            return Err(Malformed { offset: 0, what: "the layout of a stored result" });
        }
        let stored = match kind {
            STATEMENT => {
                let fingerprint = reader.u64()?;
                let last_insert_rowid = i64::from_le_bytes(reader.u64()?.to_le_bytes());
                let (changes, total_changes) = (reader.u64()?, reader.u64()?);
                let rows = reader.rest().to_vec();
                return Ok(Stored::Statement {
                    fingerprint,
                    last_insert_rowid,
                    changes,
                    total_changes,
                    rows,
                });
            }
            FAILURE => Stored::Failure {
                fingerprint: reader.u64()?,
                code: i32::from_le_bytes(reader.u32()?.to_le_bytes()),
                message: reader.text_u32()?.to_owned(),
            },
            TRANSACTION => Stored::Transaction {
                last_insert_rowid: i64::from_le_bytes(reader.u64()?.to_le_bytes()),
                changes: reader.u64()?,
                outcome: reader.bytes_u32()?.to_vec(),
            },
            _ => return Err(Malformed { offset: 1, what: "the kind of a stored result" }),
        };
        reader.finish()?;
        Ok(stored)
    }
}

fn too_large() -> SqlError {
    let text = format!(
        "the result of a request with an id has at most {} bytes; nothing was kept: let it answer \
         less, or send it without an id",
        limits::REQUEST_RESULT_BYTES_MAX
    );
    SqlError::new(ffi::SQLITE_TOOBIG, &text)
}

/// Passes rows on and keeps them as bytes.
pub struct Recorder<'a> {
    sink: &'a mut dyn RowSink,
    rows: Vec<u8>,
}

impl<'a> Recorder<'a> {
    /// Passes on to `sink`.
    pub fn new(sink: &'a mut dyn RowSink) -> Recorder<'a> {
        Recorder { sink, rows: Vec::new() }
    }

    /// What came; nothing where there were no columns.
    pub fn finish(mut self) -> Vec<u8> {
        if !self.rows.is_empty() {
            self.rows.push(END);
        }
        self.rows
    }

    fn check(&self, put: Option<()>) -> Result<(), SqlError> {
        match put {
            Some(()) if self.rows.len() <= limits::REQUEST_RESULT_BYTES_MAX => Ok(()),
            _ => Err(too_large()),
        }
    }

    fn put_column(&mut self, column: Column<'_>) -> Result<(), SqlError> {
        let name = put_bytes_u32(&mut self.rows, column.name.as_bytes());
        self.rows.push(u8::from(column.declared.is_some()));
        let declared = column.declared.map(|d| put_bytes_u32(&mut self.rows, d.as_bytes()));
        self.check(name.and(declared.unwrap_or(Some(()))))
    }

    fn put_value(&mut self, value: &ValueRef<'_>) -> Option<()> {
        match value {
            ValueRef::Integer(integer) => {
                self.rows.push(1);
                self.rows.extend_from_slice(&integer.to_le_bytes());
                Some(())
            }
            ValueRef::Real(real) => {
                self.rows.push(2);
                self.rows.extend_from_slice(&real.to_bits().to_le_bytes());
                Some(())
            }
            ValueRef::Text(text) => {
                self.rows.push(3);
                put_bytes_u32(&mut self.rows, text)
            }
            ValueRef::Blob(blob) => {
                self.rows.push(4);
                put_bytes_u32(&mut self.rows, blob)
            }
            ValueRef::Null => {
                self.rows.push(5);
                Some(())
            }
        }
    }
}

impl RowSink for Recorder<'_> {
    fn columns(&mut self, columns: Columns<'_>) -> Result<(), SqlError> {
        self.sink.columns(columns)?;
        self.rows.clear();
        let count = u32::try_from(columns.names().count()).map_err(|_| too_large())?;
        self.rows.extend_from_slice(&count.to_le_bytes());
        columns.each(|column| self.put_column(column)).collect()
    }

    fn row(&mut self, values: &[ValueRef<'_>]) -> Result<(), SqlError> {
        self.sink.row(values)?;
        self.rows.push(ROW);
        values.iter().try_for_each(|value| {
            let put = self.put_value(value);
            self.check(put)
        })
    }
}

/// Gives recorded rows to `sink`; how many columns and rows.
pub fn replay(rows: &[u8], sink: &mut dyn RowSink) -> Result<(usize, u64), SqlError> {
    if rows.is_empty() {
        return Ok((0, 0));
    }
    let mut reader = Reader::new(rows);
    let (columns, mut count) = (replay_columns(&mut reader, sink)?, 0);
    while reader.u8().map_err(from_malformed)? == ROW {
        let values: Result<Vec<Value>, SqlError> =
            (0..columns).map(|_| read_value(&mut reader)).collect();
        let values = values?;
        let shown: Vec<ValueRef<'_>> = values.iter().map(Value::as_ref).collect();
        sink.row(&shown)?;
        count += 1;
    }
    Ok((columns, count))
}

fn replay_columns(reader: &mut Reader<'_>, sink: &mut dyn RowSink) -> Result<usize, SqlError> {
    let count = reader.u32().map_err(from_malformed)?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = reader.text_u32().map_err(from_malformed)?;
        let declared = match reader.u8().map_err(from_malformed)? {
            0 => None,
            _ => Some(reader.text_u32().map_err(from_malformed)?),
        };
        columns.push(Column { name, declared });
    }
    sink.columns(Columns::listed(&columns))?;
    Ok(columns.len())
}

fn read_value(reader: &mut Reader<'_>) -> Result<Value, SqlError> {
    let mut read = || {
        Ok(match reader.u8()? {
            1 => Value::Integer(i64::from_le_bytes(reader.u64()?.to_le_bytes())),
            2 => Value::Real(f64::from_bits(reader.u64()?)),
            3 => Value::Text(reader.bytes_u32()?.to_vec()),
            4 => Value::Blob(reader.bytes_u32()?.to_vec()),
            5 => Value::Null,
            _ => return Err(Malformed { offset: reader.offset(), what: "a value's code" }),
        })
    };
    read().map_err(from_malformed)
}

/// The error for a stored result that is none: nobody else writes there.
pub fn from_malformed(malformed: Malformed) -> SqlError {
    let text = format!("the stored result of a request cannot be read: {malformed}");
    SqlError::new(ffi::SQLITE_CORRUPT, &text)
}

impl Stored {
    /// What a statement left behind, for one that ran.
    pub fn statement(fingerprint: u64, ran: &Ran, rows: Vec<u8>) -> Stored {
        let Ran { last_insert_rowid, changes, total_changes, .. } = *ran;
        Stored::Statement { fingerprint, last_insert_rowid, changes, total_changes, rows }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Takes anything.
    struct Anything;

    impl RowSink for Anything {
        fn columns(&mut self, _: Columns<'_>) -> Result<(), SqlError> {
            Ok(())
        }

        fn row(&mut self, _: &[ValueRef<'_>]) -> Result<(), SqlError> {
            Ok(())
        }
    }

    fn recorded() -> Vec<u8> {
        let mut anything = Anything;
        let mut recorder = Recorder::new(&mut anything);
        let columns =
            [Column { name: "a", declared: Some("DATE") }, Column { name: "b", declared: None }];
        recorder.columns(Columns::listed(&columns)).unwrap();
        recorder.row(&[ValueRef::Integer(-2), ValueRef::Real(1.5)]).unwrap();
        recorder.row(&[ValueRef::Text(b"t"), ValueRef::Blob(&[0, 255])]).unwrap();
        recorder.row(&[ValueRef::Null, ValueRef::Null]).unwrap();
        recorder.finish()
    }

    #[test]
    fn golden_results() {
        let rows = concat!(
            "02000000",
            "0100000061",
            "01",
            "0400000044415445",
            "0100000062",
            "00",
            "01",
            "01feffffffffffffff",
            "02000000000000f83f",
            "01",
            "030100000074",
            "040200000000ff",
            "01",
            "05",
            "05",
            "00",
        );
        assert_eq!(hex(&recorded()), rows);
        let ran = Ran { last_insert_rowid: -1, changes: 2, total_changes: 3, ..Ran::default() };
        let statement = Stored::statement(0x0102_0304_0506_0708, &ran, recorded());
        let head = "01010807060504030201ffffffffffffffff02000000000000000300000000000000";
        let failure = Stored::Failure { fingerprint: 1, code: 1555, message: "UNIQUE".to_owned() };
        let transaction =
            Stored::Transaction { last_insert_rowid: 9, changes: 1, outcome: b"ok".to_vec() };
        for (stored, golden) in [
            (statement, format!("{head}{rows}")),
            (failure, "0102010000000000000013060000".to_owned() + "06000000554e49515545"),
            (transaction, "010309000000000000000100000000000000".to_owned() + "020000006f6b"),
        ] {
            let bytes = stored.encode().unwrap();
            assert_eq!(hex(&bytes), golden);
            assert_eq!(Stored::decode(&bytes).unwrap(), stored);
        }
        assert_eq!(replay(&recorded(), &mut Anything).unwrap(), (2, 3));
    }

    proptest! {
        #[test]
        fn noise_never_panics(mut bytes in prop::collection::vec(0_u8..8, 0..80)) {
            let _ = Stored::decode(&bytes);
            let _ = replay(&bytes, &mut Anything);
            bytes.splice(0..0, recorded());
            let _ = replay(&bytes, &mut Anything);
        }
    }
}
