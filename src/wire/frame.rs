//! Frames: a header of eight bytes (u32 words, u8 type, u8 schema, u16 zero) and `8 * words` bytes
//! of body. [`FrameDecoder`] turns the bytes of a stream into whole frames.
//!
//! It holds the bytes that have arrived and nothing more: a header that announces 64 MiB costs
//! nothing until they come. The announced length is compared with the limit as soon as the header
//! is there, and the limit can change within a connection (small before authentication).
//!
//! *Invariant*: the buffer's capacity is at most twice what has arrived plus
//! [`FrameDecoder::READ_BYTES`].

use bytes::{BufMut, Bytes, BytesMut};

use super::Handshake;
use super::error::WireError;
use super::field::{Reader, WORD, len_u64};

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the body in words of eight bytes.
    pub words: u32,
    /// Request or response type, by direction.
    pub kind: u8,
    /// The revision of that type's layout.
    pub schema: u8,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 8;

    /// Reads a header; the two bytes after the schema mean nothing.
    pub fn from_bytes(bytes: [u8; Header::BYTES]) -> Header {
        let [a, b, c, d, kind, schema, _, _] = bytes;
        Header { words: u32::from_le_bytes([a, b, c, d]), kind, schema }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; Header::BYTES] {
        let [a, b, c, d] = self.words.to_le_bytes();
        [a, b, c, d, self.kind, self.schema, 0, 0]
    }

    /// Bytes of header and body together.
    pub fn frame_bytes(self) -> u64 {
        (u64::from(self.words) + 1) * len_u64(WORD)
    }

    /// Refuses a frame without a body and one longer than `bytes_max`.
    pub fn check(self, bytes_max: usize) -> Result<(), WireError> {
        if self.words == 0 {
            return Err(WireError::EmptyBody);
        }
        let (bytes, bytes_max) = (self.frame_bytes(), len_u64(bytes_max));
        if bytes > bytes_max {
            return Err(WireError::TooLong { bytes, bytes_max });
        }
        Ok(())
    }
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body, `8 * words` bytes.
    pub body: Bytes,
}

/// Collects bytes as they arrive and gives back whole frames.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl FrameDecoder {
    /// How much room [`FrameDecoder::space`] makes for the next read.
    pub const READ_BYTES: usize = 16 << 10;

    /// A decoder that refuses frames of more than `frame_bytes_max` bytes, header included.
    pub fn new(frame_bytes_max: usize) -> FrameDecoder {
        FrameDecoder { buffer: BytesMut::new(), frame_bytes_max }
    }

    /// Changes the limit for the frames that come next.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// The buffer to append received bytes to, with room for at least one of them.
    pub fn space(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < FrameDecoder::READ_BYTES / 4 {
            self.buffer.reserve(FrameDecoder::READ_BYTES);
        }
        &mut self.buffer
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.put_slice(bytes);
    }

    /// How many bytes wait that were not given out.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the word that opens a connection; `None` until it is there.
    pub fn handshake_word(&mut self) -> Option<u64> {
        let word = u64::from_le_bytes(*self.buffer.first_chunk()?);
        drop(self.buffer.split_to(Handshake::BYTES));
        Some(word)
    }

    /// All bytes not given out yet, for whoever takes the connection over.
    pub fn into_rest(self) -> BytesMut {
        self.buffer
    }

    /// The next whole frame; `None` until it is there. After an error the stream is lost.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(header) = self.buffer.first_chunk().copied() else { return Ok(None) };
        let header = Header::from_bytes(header);
        header.check(self.frame_bytes_max)?;
        let Ok(bytes) = usize::try_from(header.frame_bytes()) else {
            return Err(WireError::TooLong {
                bytes: header.frame_bytes(),
                bytes_max: len_u64(self.frame_bytes_max),
            });
        };
        if self.buffer.len() < bytes {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(bytes).freeze();
        let body = frame.split_off(Header::BYTES);
        Ok(Some(Frame { header, body }))
    }
}

impl Frame {
    /// Reads its fields from the first on.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.body)
    }
}

/// Leaves room for a header; the message's fields follow, then [`close`].
pub(super) fn open(out: &mut BytesMut) -> usize {
    let start = out.len();
    out.put_bytes(0, Header::BYTES);
    start
}

/// Fills in the header of the message begun at `start`. On error the message is gone.
pub(super) fn close(
    out: &mut BytesMut,
    start: usize,
    kind: u8,
    schema: u8,
) -> Result<(), WireError> {
    let body = out.len().saturating_sub(start).saturating_sub(Header::BYTES);
    let words = u32::try_from(body / WORD);
    let place = out.get_mut(start..).and_then(|message| message.first_chunk_mut());
    if let (Ok(words), Some(place)) = (words, place) {
        *place = Header { words, kind, schema }.to_bytes();
        return Ok(());
    }
    out.truncate(start);
    let bytes_max = (u64::from(u32::MAX) + 1) * len_u64(WORD);
    Err(WireError::TooLong { bytes: len_u64(body), bytes_max })
}
