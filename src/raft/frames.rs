//! Frames between nodes, as values: the header, the hello with which a connection begins, and the
//! queue in which frames wait to be written. Drawn in docs/format.md, "Peer frames".
//!
//! A frame is a header of 9 bytes (length of the body, kind, CRC32C of kind and body) and a body.
//! What bodies say is in [`super::messages`]; reading and writing sockets is in
//! [`super::connection`].
//!
//! *Invariant*: this module does no I/O, arbitrary bytes never make it panic, and a body is never
//! believed before its checksum.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::fields::{Malformed, Reader, put_text};
use crate::base::limits;

/// The first bytes of a connection between nodes, by which the listener tells it from clients.
pub const PREAMBLE: [u8; 8] = *b"QUIREPR1";

/// The version of everything that comes after the preamble.
pub const VERSION: u32 = 1;

/// A header's length.
pub const HEADER_BYTES: usize = 9;

/// A hello and its answer are at most this long: nobody is known yet.
pub const HELLO_BYTES_MAX: usize = 1024;

/// What kind of frame.
pub mod kind {
    /// The connecting node says who it is.
    pub const HELLO: u8 = 1;
    /// The answer: come in.
    pub const ADMITTED: u8 = 2;
    /// The answer: no, and why.
    pub const REFUSED: u8 = 3;
    /// Append entries.
    pub const APPEND: u8 = 16;
    /// The answer to an append.
    pub const APPENDED: u8 = 17;
    /// A request with an id.
    pub const REQUEST: u8 = 32;
    /// The answer to a request with that id.
    pub const ANSWER: u8 = 33;
    /// A snapshot is offered.
    pub const OFFER: u8 = 48;
    /// Hashes of some of its pages.
    pub const HASHES: u8 = 49;
    /// Which of these pages the receiver lacks.
    pub const MISSING: u8 = 50;
    /// Pages.
    pub const PAGES: u8 = 51;
    /// The pages were taken.
    pub const TAKEN: u8 = 52;
    /// There are no more pages.
    pub const END: u8 = 53;
    /// The snapshot was installed.
    pub const INSTALLED: u8 = 54;
    /// The transfer failed, and why.
    pub const FAILED: u8 = 55;
    /// One database of the offered snapshot.
    pub const DATABASE: u8 = 56;
    /// The receiver is at work.
    pub const ALIVE: u8 = 57;
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// Appends and heartbeats: answered in order, many in flight.
    Append = 1,
    /// Votes, transfers and calls: answered in any order, by id.
    Requests = 2,
    /// One snapshot at a time.
    Snapshot = 3,
    /// What clients speak, for what a member itself asks of a database (its schema gate): a member
    /// that lets no clients in yet serves it.
    Client = 4,
}

/// A header, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The body's length in bytes.
    pub body_bytes: usize,
    /// What kind of frame.
    pub kind: u8,
    crc: u32,
}

impl Header {
    /// Reads a header; a body longer than `body_bytes_max` is refused here.
    pub fn parse(bytes: &[u8; HEADER_BYTES], body_bytes_max: usize) -> Result<Header, Malformed> {
        let mut fields = &bytes[..];
        let body_bytes = fields.get_u32_le() as usize;
        if body_bytes > body_bytes_max {
            return Err(Malformed("frame length"));
        }
        let kind = fields.get_u8();
        Ok(Header { body_bytes, kind, crc: fields.get_u32_le() })
    }

    /// Whether `body` is what the header announced.
    pub fn check(&self, body: &[u8]) -> Result<(), Malformed> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[self.kind]), body);
        if body.len() == self.body_bytes && crc == self.crc {
            Ok(())
        } else {
            Err(Malformed("frame checksum"))
        }
    }
}

/// Payloads of at least this many bytes are queued as they are, smaller ones are copied.
const SHARE_BYTES_MIN: usize = 2048;

/// A frame being put together. Fixed fields are written to [`FrameBuilder::fields`].
pub struct FrameBuilder {
    kind: u8,
    parts: Vec<BytesMut>,
    shared: Vec<Bytes>,
}

impl FrameBuilder {
    /// A frame of that kind; `capacity` bytes of fields are expected.
    pub fn new(kind: u8, capacity: usize) -> FrameBuilder {
        let mut first = BytesMut::with_capacity(HEADER_BYTES + capacity);
        first.put_bytes(0, HEADER_BYTES);
        FrameBuilder { kind, parts: vec![first], shared: Vec::new() }
    }

    /// Where the next fields go.
    pub fn fields(&mut self) -> &mut BytesMut {
        // There is always at least the part that begins with the header.
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    /// Adds a payload, without copying it where it is large.
    pub fn payload(&mut self, payload: &Bytes) {
        if payload.len() < SHARE_BYTES_MIN {
            self.fields().put_slice(payload);
        } else {
            self.shared.push(payload.clone());
            self.parts.push(BytesMut::with_capacity(SHARE_BYTES_MIN));
        }
    }

    /// The body's length so far.
    pub fn body_bytes(&self) -> usize {
        let parts: usize = self.parts.iter().map(BytesMut::len).sum();
        let shared: usize = self.shared.iter().map(Bytes::len).sum();
        parts + shared - HEADER_BYTES
    }

    /// Fills in the header.
    pub fn finish(mut self) -> Frame {
        let body_bytes = self.body_bytes();
        debug_assert!(body_bytes <= limits::PEER_FRAME_BYTES_MAX);
        let mut crc = crc32c::crc32c(&[self.kind]);
        let mut shared = self.shared.iter();
        for (index, part) in self.parts.iter().enumerate() {
            let from = if index == 0 { HEADER_BYTES } else { 0 };
            crc = crc32c::crc32c_append(crc, &part[from..]);
            if let Some(payload) = shared.next() {
                crc = crc32c::crc32c_append(crc, payload);
            }
        }
        let mut header = &mut self.parts[0][..HEADER_BYTES];
        header.put_u32_le(body_bytes as u32);
        header.put_u8(self.kind);
        header.put_u32_le(crc);
        let mut slices = Vec::with_capacity(self.parts.len() + self.shared.len());
        let mut shared = self.shared.into_iter();
        for part in self.parts {
            slices.push(part.freeze());
            slices.extend(shared.next());
        }
        Frame { slices }
    }
}

/// A frame ready to be written.
#[derive(Clone, Debug)]
pub struct Frame {
    slices: Vec<Bytes>,
}

impl Frame {
    /// The length, header included.
    pub fn bytes(&self) -> usize {
        self.slices.iter().map(Bytes::len).sum()
    }

    /// Header and body in one run of bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.slices.concat()
    }
}

/// Frames waiting to be written: a `bytes::Buf` that hands out many of them at once.
#[derive(Debug, Default)]
pub struct FrameQueue {
    slices: VecDeque<Bytes>,
    bytes: usize,
}

impl FrameQueue {
    /// Puts a frame behind the others.
    pub fn push(&mut self, frame: Frame) {
        for slice in frame.slices {
            if !slice.is_empty() {
                self.bytes += slice.len();
                self.slices.push_back(slice);
            }
        }
    }
}

impl Buf for FrameQueue {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.slices.front().map_or(&[], |slice| slice)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slot, slice) in dst.iter_mut().zip(&self.slices) {
            *slot = IoSlice::new(slice);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "advanced beyond the queue");
        self.bytes -= count;
        while count > 0 {
            let Some(front) = self.slices.front_mut() else { return };
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.slices.pop_front();
        }
    }
}

/// What the receiver of a hello is in its sender's membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// The sender does not know, or does not say.
    Unknown = 0,
    /// A voter.
    Votes = 1,
    /// A member that does not vote.
    DoesNotVote = 2,
}

/// Who connects, to whom, for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version that the connecting node speaks.
    pub version: u32,
    /// Its cluster; 0 while it has not joined one.
    pub cluster: u64,
    /// Its id.
    pub from: u64,
    /// The id that it expects here; 0 when it knows an address only.
    pub to: u64,
    /// What the connection is for, as [`Channel`].
    pub channel: u8,
    /// What the receiver is to the sender.
    pub standing: Standing,
}

impl Standing {
    fn of(byte: u8) -> Standing {
        match byte {
            1 => Standing::Votes,
            2 => Standing::DoesNotVote,
            _ => Standing::Unknown,
        }
    }
}

impl Hello {
    /// As a frame.
    pub fn encode(&self) -> Frame {
        let mut frame = FrameBuilder::new(kind::HELLO, 32);
        let fields = frame.fields();
        fields.put_u32_le(self.version);
        fields.put_u64_le(self.cluster);
        fields.put_u64_le(self.from);
        fields.put_u64_le(self.to);
        fields.put_u8(self.channel);
        fields.put_u8(self.standing as u8);
        frame.finish()
    }

    /// From a frame's body. Bytes beyond what this version knows are skipped, so that a later
    /// version is told that it is later; builds before the standing did not send it.
    pub fn decode(body: Bytes) -> Result<Hello, Malformed> {
        let mut reader = Reader::new(body);
        Ok(Hello {
            version: reader.u32("hello's version")?,
            cluster: reader.u64("hello's cluster")?,
            from: reader.u64("hello's sender")?,
            to: reader.u64("hello's receiver")?,
            channel: reader.u8("hello's channel")?,
            standing: match reader.is_empty() {
                true => Standing::Unknown,
                false => Standing::of(reader.u8("hello's standing")?),
            },
        })
    }

    /// The channel, where it is one that this version knows.
    pub fn channel(&self) -> Option<Channel> {
        match self.channel {
            1 => Some(Channel::Append),
            2 => Some(Channel::Requests),
            3 => Some(Channel::Snapshot),
            4 => Some(Channel::Client),
            _ => None,
        }
    }
}

/// The answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The connection stands.
    Admitted {
        /// The cluster of the node that was called; 0 while it has not joined one.
        cluster: u64,
        /// Its id.
        node: u64,
    },
    /// It does not.
    Refused {
        /// Why, for a person to read.
        reason: String,
    },
}

impl Admission {
    /// As a frame.
    pub fn encode(&self) -> Frame {
        match self {
            Admission::Admitted { cluster, node } => {
                let mut frame = FrameBuilder::new(kind::ADMITTED, 16);
                frame.fields().put_u64_le(*cluster);
                frame.fields().put_u64_le(*node);
                frame.finish()
            }
            Admission::Refused { reason } => {
                let mut frame = FrameBuilder::new(kind::REFUSED, reason.len() + 2);
                put_text(frame.fields(), reason);
                frame.finish()
            }
        }
    }

    /// From a frame's kind and body.
    pub fn decode(frame_kind: u8, body: Bytes) -> Result<Admission, Malformed> {
        let mut reader = Reader::new(body);
        match frame_kind {
            kind::ADMITTED => Ok(Admission::Admitted {
                cluster: reader.u64("admission's cluster")?,
                node: reader.u64("admission's node")?,
            }),
            kind::REFUSED => Ok(Admission::Refused { reason: reader.text("refusal")? }),
            _ => Err(Malformed("answer to a hello")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<(u8, Bytes), Malformed> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(Malformed("short header"))?;
        let header = Header::parse(header, limits::PEER_FRAME_BYTES_MAX)?;
        let body = bytes[HEADER_BYTES..].to_vec();
        header.check(&body)?;
        Ok((header.kind, body.into()))
    }

    #[test]
    fn a_hello_and_its_answers_go_over() {
        for standing in [Standing::Unknown, Standing::Votes, Standing::DoesNotVote] {
            let hello =
                Hello { version: VERSION, cluster: 7, from: 2, to: 3, channel: 1, standing };
            let (frame_kind, body) = parse(&hello.encode().to_bytes()).unwrap();
            assert_eq!(frame_kind, kind::HELLO);
            assert_eq!(Hello::decode(body.clone()).unwrap(), hello);
            assert_eq!(hello.channel(), Some(Channel::Append));
            // As builds before the standing sent it.
            let before = Hello::decode(body.slice(..body.len() - 1)).unwrap();
            assert_eq!(before, Hello { standing: Standing::Unknown, ..hello });
        }
        for answer in [
            Admission::Admitted { cluster: 9, node: 3 },
            Admission::Refused { reason: "wrong cluster".to_owned() },
        ] {
            let (frame_kind, body) = parse(&answer.encode().to_bytes()).unwrap();
            assert_eq!(Admission::decode(frame_kind, body).unwrap(), answer);
        }
    }

    /// The golden bytes of docs/format.md.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let hello = Hello {
            version: 1,
            cluster: 0x0807_0605_0403_0201,
            from: 2,
            to: 3,
            channel: 2,
            standing: Standing::Votes,
        };
        let mut expected = vec![30, 0, 0, 0, kind::HELLO];
        let mut body = vec![1, 0, 0, 0];
        body.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        body.extend([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind::HELLO]), &body);
        expected.extend(crc.to_le_bytes());
        expected.extend(body);
        assert_eq!(hello.encode().to_bytes(), expected);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_header() {
        let header = [0xff, 0xff, 0xff, 0xff, kind::APPEND, 0, 0, 0, 0];
        assert!(Header::parse(&header, limits::PEER_FRAME_BYTES_MAX).is_err());
    }

    proptest! {
        #[test]
        fn frames_go_over_whatever_the_sizes(
            pieces in proptest::collection::vec((any::<u8>(), 0usize..6000), 0..8),
            steps in proptest::collection::vec(1usize..5000, 1..200),
        ) {
            let mut frame = FrameBuilder::new(kind::APPEND, 16);
            let mut body = Vec::new();
            for (fill, len) in pieces {
                frame.fields().put_u8(fill);
                frame.payload(&Bytes::from(vec![fill; len]));
                body.push(fill);
                body.extend(std::iter::repeat_n(fill, len));
            }
            prop_assert_eq!(frame.body_bytes(), body.len());
            let mut queue = FrameQueue::default();
            queue.push(frame.finish());
            let mut written = Vec::new();
            let mut steps = steps.into_iter().cycle();
            while queue.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = queue.chunks_vectored(&mut slices);
                let all: Vec<u8> =
                    slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                let step = steps.next().unwrap().min(all.len());
                written.extend(&all[..step]);
                queue.advance(step);
            }
            prop_assert_eq!(parse(&written).unwrap(), (kind::APPEND, Bytes::from(body)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, frame_kind: u8) {
            let _ = parse(&bytes);
            let _ = Hello::decode(bytes.clone().into());
            let _ = Admission::decode(frame_kind, bytes.into());
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0usize..39, bit in 0u8..8) {
            let standing = Standing::Votes;
            let hello =
                Hello { version: VERSION, cluster: 7, from: 2, to: 3, channel: 1, standing };
            let mut bytes = hello.encode().to_bytes();
            bytes[at] ^= 1 << bit;
            prop_assert!(parse(&bytes).is_err());
        }
    }
}
