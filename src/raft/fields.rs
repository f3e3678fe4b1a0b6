//! Little-endian fields of what `raft` sends and stores: a [`Reader`] that takes them off a run of
//! bytes, and the few writers that are more than one call of `bytes::BufMut`.
//!
//! It knows no message and no file. Byte fields are slices of the input, not copies.
//!
//! *Invariant*: reading arbitrary bytes never panics, and never reserves memory for more items
//! than the bytes at hand could hold.

use std::io;

use bytes::{Buf, BufMut, Bytes};

use crate::log::{LogId, Vote};

/// The bytes are not what they should be; the text names the first field that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// Takes fields off the front of a run of bytes.
#[derive(Clone, Debug)]
pub struct Reader {
    rest: Bytes,
}

impl Reader {
    /// Reads `bytes` from their beginning.
    pub fn new(bytes: Bytes) -> Reader {
        Reader { rest: bytes }
    }

    fn need(&self, bytes: usize, what: &'static str) -> Result<(), Malformed> {
        if self.rest.len() < bytes { Err(Malformed(what)) } else { Ok(()) }
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.need(1, what)?;
        Ok(self.rest.get_u8())
    }

    /// One byte that is 0 or 1.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed(what)),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.need(2, what)?;
        Ok(self.rest.get_u16_le())
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.need(4, what)?;
        Ok(self.rest.get_u32_le())
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.need(8, what)?;
        Ok(self.rest.get_u64_le())
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, what: &'static str) -> Result<u128, Malformed> {
        self.need(16, what)?;
        Ok(self.rest.get_u128_le())
    }

    /// The next `len` bytes, shared with the input.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<Bytes, Malformed> {
        self.need(len, what)?;
        Ok(self.rest.split_to(len))
    }

    /// A u32 length and that many bytes.
    pub fn sized_bytes(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        let len = self.u32(what)? as usize;
        self.bytes(len, what)
    }

    /// A u16 length and that many bytes of UTF-8.
    pub fn text(&mut self, what: &'static str) -> Result<String, Malformed> {
        let len = usize::from(self.u16(what)?);
        let bytes = self.bytes(len, what)?;
        String::from_utf8(bytes.into()).map_err(|_| Malformed(what))
    }

    /// A u32 count of items of at least `item_bytes_min` bytes each, all of which must still be
    /// there.
    pub fn count(&mut self, item_bytes_min: usize, what: &'static str) -> Result<usize, Malformed> {
        let count = self.u32(what)? as usize;
        let bytes = count.checked_mul(item_bytes_min).ok_or(Malformed(what))?;
        self.need(bytes, what)?;
        Ok(count)
    }

    /// A log id: term and index.
    pub fn log_id(&mut self, what: &'static str) -> Result<LogId, Malformed> {
        Ok(LogId { term: self.u64(what)?, index: self.u64(what)? })
    }

    /// A flag, then a log id whether or not it says that there is one.
    pub fn log_id_option(&mut self, what: &'static str) -> Result<Option<LogId>, Malformed> {
        let some = self.flag(what)?;
        let id = self.log_id(what)?;
        Ok(some.then_some(id))
    }

    /// A vote: term, node, flag.
    pub fn vote(&mut self, what: &'static str) -> Result<Vote, Malformed> {
        Ok(Vote { term: self.u64(what)?, node: self.u64(what)?, committed: self.flag(what)? })
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whatever is left.
    pub fn rest(self) -> Bytes {
        self.rest
    }

    /// There must be nothing left.
    pub fn finish(self, what: &'static str) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

/// Writes a u16 length and the text, cut at a character so that it fits.
pub fn put_text(out: &mut impl BufMut, text: &str) {
    let mut len = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.put_u16_le(len as u16);
    out.put_slice(&text.as_bytes()[..len]);
}

/// Writes what [`Reader::log_id_option`] reads.
pub fn put_log_id_option(out: &mut impl BufMut, id: Option<LogId>) {
    out.put_u8(u8::from(id.is_some()));
    put_log_id(out, id.unwrap_or(LogId { term: 0, index: 0 }));
}

/// Writes what [`Reader::log_id`] reads.
pub fn put_log_id(out: &mut impl BufMut, id: LogId) {
    out.put_u64_le(id.term);
    out.put_u64_le(id.index);
}

/// Writes what [`Reader::vote`] reads.
pub fn put_vote(out: &mut impl BufMut, vote: Vote) {
    out.put_u64_le(vote.term);
    out.put_u64_le(vote.node);
    out.put_u8(u8::from(vote.committed));
}
