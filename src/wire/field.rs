//! The fields of a body: integers, texts ended by NUL and padded to whole words, blobs with their
//! length before them. A [`Reader`] walks a borrowed body; `put_*` append to a message.
//!
//! *Invariant*: a [`Reader`] never looks beyond its bytes, and no length found in them is trusted
//! before it was compared with what is there.

use bytes::{BufMut, BytesMut};

use super::error::WireError;

/// Bytes of a word: every field begins at a multiple of it.
pub(super) const WORD: usize = 8;

/// A position in a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body }
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(super) fn i64(&mut self, field: &'static str) -> Result<i64, WireError> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next word without moving on; `None` at the end.
    pub(super) fn peek(&self) -> Option<u64> {
        self.rest.first_chunk().map(|word| u64::from_le_bytes(*word))
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], WireError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated(field))?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated(field))?;
        self.rest = rest;
        Ok(head)
    }

    /// `len` bytes and the padding that fills their last word. `before` bytes stand in front of
    /// them in the same word.
    pub(super) fn padded(
        &mut self,
        len: usize,
        before: usize,
        field: &'static str,
    ) -> Result<&'a [u8], WireError> {
        let head = self.bytes(len, field)?;
        let used = len.checked_add(before).ok_or(WireError::Truncated(field))?;
        self.bytes(padding(used), field)?;
        Ok(head)
    }

    /// A text, without its NUL.
    pub(super) fn text(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.rest.iter().position(|&b| b == 0).ok_or(WireError::Truncated(field))?;
        let text = self.bytes(len, field)?;
        // The NUL belongs to the padding, of which there is always at least one byte.
        self.bytes(WORD - len % WORD, field)?;
        Ok(text)
    }

    /// A blob.
    pub(super) fn blob(&mut self, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.u64(field)?;
        let len = usize::try_from(len).map_err(|_| WireError::Truncated(field))?;
        self.padded(len, 0, field)
    }
}

/// How many bytes are missing to a whole word.
pub(super) fn padding(len: usize) -> usize {
    len.next_multiple_of(WORD).saturating_sub(len)
}

/// A length as the protocol writes it.
pub(super) fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Appends a text. It has no length, so it ends at its first NUL, as in dqlite.
pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    out.put_slice(text);
    out.put_bytes(0, WORD - text.len() % WORD);
}

/// Appends a blob.
pub(super) fn put_blob(out: &mut BytesMut, blob: &[u8]) {
    out.put_u64_le(len_u64(blob.len()));
    out.put_slice(blob);
    out.put_bytes(0, padding(blob.len()));
}
