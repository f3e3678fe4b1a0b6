//! Values: owned ([`Value`]) for whoever keeps them, borrowed ([`ValueRef`]) on the hot paths, and
//! the tuple of parameters of a request ([`Params`]).
//!
//! A tuple's values are decoded one by one and only when a statement asks for them: a bad one is
//! an error of that statement ([`BadParameter`]), not of the frame, and one that no statement asks
//! for goes unnoticed. Its type codes are part of the frame: if they are cut short the frame is
//! malformed.
//!
//! *Invariant*: text is bytes without NUL, most often UTF-8; nothing here insists on it, since
//! SQLite does not.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::code;
use super::error::{Answer, WireError};
use super::field::{Reader, WORD, len_u64, padding, put_blob, put_text};
use crate::base::Fate;

/// Text as it travels: bytes that are UTF-8 unless somebody stored other ones. On the wire it
/// ends at its first NUL.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Vec<u8>);

impl Text {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }

    /// The text, with U+FFFD where it is not UTF-8.
    pub fn to_string_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// Its bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Whether it holds a NUL and so would be cut short on the wire.
    pub fn has_nul(&self) -> bool {
        self.0.contains(&0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string_lossy(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string_lossy())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(text.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text.into_bytes())
    }
}

impl From<Vec<u8>> for Text {
    fn from(text: Vec<u8>) -> Text {
        Text(text)
    }
}

impl From<&[u8]> for Text {
    fn from(text: &[u8]) -> Text {
        Text(text.to_vec())
    }
}

/// One value, owned.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Code 1.
    Integer(i64),
    /// Code 2.
    Float(f64),
    /// Code 3.
    Text(Text),
    /// Code 4.
    Blob(Vec<u8>),
    /// Code 5.
    Null,
    /// Code 9: seconds since 1970, of a column declared DATETIME, DATE or TIMESTAMP that holds an
    /// integer. Only in rows; as a parameter it travels as [`Value::Integer`].
    UnixTime(i64),
    /// Code 10: text of such a column.
    Iso8601(Text),
    /// Code 11: of a column declared BOOLEAN.
    Boolean(bool),
}

impl Value {
    /// The same value, borrowed.
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::Integer(value) => ValueRef::Integer(*value),
            Value::Float(value) => ValueRef::Float(*value),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
            Value::Null => ValueRef::Null,
            Value::UnixTime(seconds) => ValueRef::UnixTime(*seconds),
            Value::Iso8601(text) => ValueRef::Iso8601(text.as_bytes()),
            Value::Boolean(value) => ValueRef::Boolean(*value),
        }
    }
}

/// One value, borrowed from the message or from SQLite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    /// See [`Value::Integer`].
    Integer(i64),
    /// See [`Value::Float`].
    Float(f64),
    /// See [`Value::Text`].
    Text(&'a [u8]),
    /// See [`Value::Blob`].
    Blob(&'a [u8]),
    /// See [`Value::Null`].
    Null,
    /// See [`Value::UnixTime`].
    UnixTime(i64),
    /// See [`Value::Iso8601`].
    Iso8601(&'a [u8]),
    /// See [`Value::Boolean`].
    Boolean(bool),
}

pub(super) const INTEGER: u8 = 1;
pub(super) const FLOAT: u8 = 2;
pub(super) const TEXT: u8 = 3;
pub(super) const BLOB: u8 = 4;
pub(super) const NULL: u8 = 5;
pub(super) const UNIXTIME: u8 = 9;
pub(super) const ISO8601: u8 = 10;
pub(super) const BOOLEAN: u8 = 11;

impl<'a> ValueRef<'a> {
    /// The same value, owned.
    pub fn to_value(self) -> Value {
        match self {
            ValueRef::Integer(value) => Value::Integer(value),
            ValueRef::Float(value) => Value::Float(value),
            ValueRef::Text(text) => Value::Text(text.into()),
            ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
            ValueRef::Null => Value::Null,
            ValueRef::UnixTime(seconds) => Value::UnixTime(seconds),
            ValueRef::Iso8601(text) => Value::Iso8601(text.into()),
            ValueRef::Boolean(value) => Value::Boolean(value),
        }
    }

    /// Its type code.
    pub fn code(self) -> u8 {
        match self {
            ValueRef::Integer(_) => INTEGER,
            ValueRef::Float(_) => FLOAT,
            ValueRef::Text(_) => TEXT,
            ValueRef::Blob(_) => BLOB,
            ValueRef::Null => NULL,
            ValueRef::UnixTime(_) => UNIXTIME,
            ValueRef::Iso8601(_) => ISO8601,
            ValueRef::Boolean(_) => BOOLEAN,
        }
    }

    /// Appends the value, whose code stands elsewhere.
    pub(super) fn put(self, out: &mut BytesMut) {
        match self {
            ValueRef::Integer(value) | ValueRef::UnixTime(value) => out.put_i64_le(value),
            ValueRef::Float(value) => out.put_f64_le(value),
            ValueRef::Text(text) | ValueRef::Iso8601(text) => put_text(out, text),
            ValueRef::Blob(blob) => put_blob(out, blob),
            ValueRef::Null => out.put_u64_le(0),
            ValueRef::Boolean(value) => out.put_u64_le(u64::from(value)),
        }
    }

    /// How many bytes [`ValueRef::put`] appends at most.
    pub(super) fn put_bytes_max(self) -> usize {
        match self {
            ValueRef::Text(text) | ValueRef::Iso8601(text) => text.len().saturating_add(WORD),
            ValueRef::Blob(blob) => blob.len().saturating_add(2 * WORD),
            _ => WORD,
        }
    }

    /// Reads a value of the given code.
    pub(super) fn get(code: u8, reader: &mut Reader<'a>) -> Result<ValueRef<'a>, WireError> {
        Ok(match code {
            INTEGER => ValueRef::Integer(reader.i64("an integer")?),
            FLOAT => ValueRef::Float(f64::from_bits(reader.u64("a float")?)),
            TEXT => ValueRef::Text(reader.text("a text value")?),
            BLOB => ValueRef::Blob(reader.blob("a blob value")?),
            NULL => {
                reader.u64("a null")?;
                ValueRef::Null
            }
            UNIXTIME => ValueRef::UnixTime(reader.i64("a time")?),
            ISO8601 => ValueRef::Iso8601(reader.text("a time text")?),
            BOOLEAN => ValueRef::Boolean(reader.u64("a boolean")? != 0),
            _ => return Err(WireError::Malformed("type code of a value")),
        })
    }
}

/// What a result column's declared type makes of its values on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Declared {
    /// Values go by their storage class alone.
    #[default]
    Plain,
    /// DATETIME, DATE or TIMESTAMP.
    Time,
    /// BOOLEAN.
    Boolean,
}

impl Declared {
    /// Compares the declared type without regard to case, and exactly: `DATETIME(6)` is plain.
    pub fn of(declared: Option<&str>) -> Declared {
        let Some(declared) = declared else { return Declared::Plain };
        if ["DATETIME", "DATE", "TIMESTAMP"].iter().any(|t| t.eq_ignore_ascii_case(declared)) {
            Declared::Time
        } else if "BOOLEAN".eq_ignore_ascii_case(declared) {
            Declared::Boolean
        } else {
            Declared::Plain
        }
    }

    /// The value as the column shows it. NULL stays NULL, and so does any storage class that the
    /// declared type has no code for.
    pub fn show(self, value: ValueRef<'_>) -> ValueRef<'_> {
        match (self, value) {
            (Declared::Time, ValueRef::Integer(seconds)) => ValueRef::UnixTime(seconds),
            (Declared::Time, ValueRef::Text(text)) => ValueRef::Iso8601(text),
            (Declared::Boolean, ValueRef::Integer(value)) => ValueRef::Boolean(value != 0),
            (_, value) => value,
        }
    }
}

/// A parameter that cannot be bound: its value is cut short, or its type is not one that
/// parameters have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bind parameters")]
pub struct BadParameter;

impl BadParameter {
    /// What a server says to it.
    pub fn answer(self) -> Answer {
        Answer::Failure { code: code::ERROR, text: code::BIND_PARAMETERS }
    }

    /// The request itself is wrong.
    pub fn fate(self) -> Fate {
        Fate::Reject
    }
}

/// The parameters of a request, still encoded. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params {
    /// The count has 32 bits: schema 1 of the request.
    wide: bool,
    codes: Bytes,
    values: Bytes,
}

impl Params {
    /// The most parameters that the narrow tuple of schema 0 carries.
    pub const NARROW_MAX: usize = 255;

    /// Encodes parameters, in the narrow tuple where it can carry them.
    pub fn new<'a>(values: impl IntoIterator<Item = ValueRef<'a>>) -> Params {
        let mut codes = BytesMut::new();
        let mut bytes = BytesMut::new();
        for value in values {
            // Servers refuse UNIXTIME as a parameter.
            let value = match value {
                ValueRef::UnixTime(seconds) => ValueRef::Integer(seconds),
                value => value,
            };
            codes.put_u8(value.code());
            value.put(&mut bytes);
        }
        let wide = codes.len() > Params::NARROW_MAX;
        Params { wide, codes: codes.freeze(), values: bytes.freeze() }
    }

    /// The same parameters in the wide tuple of schema 1.
    pub fn widened(mut self) -> Params {
        self.wide = true;
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The schema of a request that carries them.
    pub fn schema(&self) -> u8 {
        u8::from(self.wide)
    }

    /// Decodes them one by one. After a bad one there are no more: where the next would begin is
    /// not known. The statements of one ExecSQL share one such iterator, each taking its own.
    pub fn iter(&self) -> ParamsIter<'_> {
        ParamsIter { codes: self.codes.iter(), reader: Reader::new(&self.values), failed: false }
    }

    /// Reads the tuple at the end of a body: absent when the body has ended.
    pub(super) fn get(body: &Bytes, reader: Reader<'_>, wide: bool) -> Result<Params, WireError> {
        if reader.is_empty() {
            return Ok(Params { wide, ..Params::default() });
        }
        let mut reader = reader;
        let field = "the types of the parameters";
        let (count, before) = if wide {
            let count = usize::try_from(reader.u32(field)?);
            (count.map_err(|_| WireError::Truncated(field))?, 4)
        } else {
            let [count] = reader.array(field)?;
            (usize::from(count), 1)
        };
        let codes = reader.padded(count, before, field)?;
        if codes.is_empty() {
            // What follows belongs to no parameter.
            return Ok(Params { wide, ..Params::default() });
        }
        Ok(Params { wide, codes: body.slice_ref(codes), values: body.slice_ref(reader.rest()) })
    }

    /// Appends the tuple; nothing at all when there are no parameters.
    pub(super) fn put(&self, out: &mut BytesMut) -> Result<(), WireError> {
        if self.codes.is_empty() {
            return Ok(());
        }
        let too_many = |_| WireError::Malformed("number of parameters");
        let before = if self.wide {
            out.put_u32_le(u32::try_from(self.codes.len()).map_err(too_many)?);
            4
        } else {
            out.put_u8(u8::try_from(self.codes.len()).map_err(too_many)?);
            1
        };
        out.put_slice(&self.codes);
        out.put_bytes(0, padding(self.codes.len().saturating_add(before)));
        out.put_slice(&self.values);
        Ok(())
    }

    /// Bytes that they add to a request at most.
    pub fn encoded_bytes_max(&self) -> u64 {
        len_u64(self.codes.len()).saturating_add(len_u64(self.values.len())).saturating_add(16)
    }
}

impl<'a> IntoIterator for &'a Params {
    type Item = Result<ValueRef<'a>, BadParameter>;
    type IntoIter = ParamsIter<'a>;

    fn into_iter(self) -> ParamsIter<'a> {
        self.iter()
    }
}

/// See [`Params::iter`].
#[derive(Clone, Debug)]
pub struct ParamsIter<'a> {
    codes: std::slice::Iter<'a, u8>,
    reader: Reader<'a>,
    failed: bool,
}

impl ParamsIter<'_> {
    /// How many were not asked for yet: after the last statement, surplus ones.
    pub fn left(&self) -> usize {
        self.codes.len()
    }
}

impl<'a> Iterator for ParamsIter<'a> {
    type Item = Result<ValueRef<'a>, BadParameter>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let value = match *self.codes.next()? {
            UNIXTIME => Err(BadParameter),
            code => ValueRef::get(code, &mut self.reader).map_err(|_| BadParameter),
        };
        self.failed = value.is_err();
        Some(value)
    }
}
