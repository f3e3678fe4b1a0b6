//! A Files message piece by piece: a dumped database is larger than any frame that is held in
//! memory, so one side writes head and bytes as it reads them from the database
//! ([`put_files_head`], [`put_file_head`]) and the other takes them as they arrive
//! ([`FilesDecoder`]).
//!
//! What this is not: [`super::Response::Files`], which holds a small one whole. Both have the same
//! bytes.
//!
//! *Invariant*: the decoder gives out exactly the bytes that the header announced, and holds no
//! more than it was given and did not give out yet.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::WireError;
use super::field::{Reader, WORD, len_u64, put_text};
use super::frame::Header;
use super::response::kind;
use super::value::Text;

/// A file's name may take this many bytes of a message.
const NAME_BYTES_MAX: usize = 4 << 10;

/// Header and body of the longest message there is: the length is 32 bits of words.
pub const FILES_BYTES_MAX: u64 = 32 << 30;

/// Begins a Files message that is sent piece by piece: its header and the count of files, each a
/// name and a size (a multiple of 8). For each file [`put_file_head`] and its bytes must follow.
pub fn put_files_head(out: &mut BytesMut, files: &[(&[u8], u64)]) -> Result<(), WireError> {
    let mut bytes = len_u64(WORD);
    for (name, size) in files {
        if !size.is_multiple_of(len_u64(WORD)) {
            return Err(WireError::Malformed("size of a file"));
        }
        let text = name.len() + WORD - name.len() % WORD;
        bytes = bytes.saturating_add(len_u64(text + WORD)).saturating_add(*size);
    }
    let words = u32::try_from(bytes / len_u64(WORD));
    let words = words.map_err(|_| WireError::TooLong { bytes, bytes_max: FILES_BYTES_MAX })?;
    out.put_slice(&Header { words, kind: kind::FILES, schema: 0 }.to_bytes());
    out.put_u64_le(len_u64(files.len()));
    Ok(())
}

/// Begins one file of a Files message: its name and its size. Its bytes follow, without padding.
pub fn put_file_head(out: &mut BytesMut, name: &[u8], size: u64) {
    put_text(out, name);
    out.put_u64_le(size);
}

/// What comes next in a Files message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilesPiece {
    /// A file begins.
    File {
        /// Its name.
        name: Text,
        /// Its bytes.
        size: u64,
    },
    /// Bytes of the file that began last.
    Content(Bytes),
    /// The message is over.
    End,
}

/// Reads the body of a Files message as it arrives, header already read.
#[derive(Debug)]
pub struct FilesDecoder {
    buffer: BytesMut,
    /// Bytes of the body that were not read yet, arrived or not.
    body_left: u64,
    /// Files that have not begun; `None` until the count was read.
    files_left: Option<u64>,
    /// Bytes of the present file that were not given out.
    file_left: u64,
}

impl FilesDecoder {
    /// For the message with this header.
    pub fn new(header: Header) -> Result<FilesDecoder, WireError> {
        if header.kind != kind::FILES {
            return Err(WireError::UnknownResponse(header.kind));
        }
        let body_left = u64::from(header.words) * len_u64(WORD);
        let (buffer, files_left) = (BytesMut::new(), None);
        Ok(FilesDecoder { buffer, body_left, files_left, file_left: 0 })
    }

    /// The buffer to append received bytes to.
    pub fn space(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next piece; `None` until more bytes were received.
    pub fn next_piece(&mut self) -> Result<Option<FilesPiece>, WireError> {
        if self.file_left > 0 {
            return self.content();
        }
        match self.files_left {
            None => self.count(),
            Some(0) if self.body_left == 0 => Ok(Some(FilesPiece::End)),
            Some(0) => Err(WireError::Malformed("length of a message of files")),
            Some(left) => self.file(left),
        }
    }

    fn content(&mut self) -> Result<Option<FilesPiece>, WireError> {
        let wanted = usize::try_from(self.file_left).unwrap_or(usize::MAX);
        let bytes = self.buffer.len().min(wanted);
        if bytes == 0 {
            return Ok(None);
        }
        self.file_left = self.file_left.saturating_sub(len_u64(bytes));
        self.take(bytes).map(|content| Some(FilesPiece::Content(content)))
    }

    fn count(&mut self) -> Result<Option<FilesPiece>, WireError> {
        let Some(count) = self.buffer.first_chunk().map(|word| u64::from_le_bytes(*word)) else {
            return Ok(None);
        };
        self.take(WORD)?;
        // Each has a name and a size, of a word at least.
        if count > self.body_left / len_u64(2 * WORD) {
            return Err(WireError::Truncated("a file name"));
        }
        self.files_left = Some(count);
        self.next_piece()
    }

    fn file(&mut self, left: u64) -> Result<Option<FilesPiece>, WireError> {
        let mut reader = Reader::new(&self.buffer);
        let head = reader.text("a file name").and_then(|name| {
            let name = Text::from(name);
            Ok((name, reader.u64("a file")?))
        });
        let used = self.buffer.len().saturating_sub(reader.rest().len());
        let Ok((name, size)) = head else {
            let long =
                self.buffer.len() > NAME_BYTES_MAX || self.body_left <= len_u64(self.buffer.len());
            return if long { Err(WireError::Truncated("a file name")) } else { Ok(None) };
        };
        self.take(used)?;
        if size > self.body_left || !size.is_multiple_of(len_u64(WORD)) {
            return Err(WireError::Malformed("size of a file"));
        }
        self.files_left = Some(left.saturating_sub(1));
        self.file_left = size;
        Ok(Some(FilesPiece::File { name, size }))
    }

    /// Takes bytes of the body out of the buffer.
    fn take(&mut self, bytes: usize) -> Result<Bytes, WireError> {
        let Some(left) = self.body_left.checked_sub(len_u64(bytes)) else {
            return Err(WireError::Truncated("a file"));
        };
        self.body_left = left;
        Ok(self.buffer.split_to(bytes).freeze())
    }
}
