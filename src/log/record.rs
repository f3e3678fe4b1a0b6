//! Records and segment headers as bytes: pure encode and decode, drawn in `docs/format.md`.
//!
//! A record is written in two steps: [`push`] appends it to a buffer when it is known, with its
//! link in the hash chain; [`seal`] completes all records of a buffer when the group is full and
//! its place is known, with the group's number, the mark on the last one and the checksums. A
//! checksum covers the place too, so that a record is valid at its own place only: a misdirected
//! block, or a client's data that looks like a record, is not taken for one.
//!
//! *Invariant*: no I/O; decoding any bytes whatsoever gives a record or `None`.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{EntryKind, LogId, LogState, Vote};

/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 48;

/// Bytes of a segment before its first record: one sector, so that it is never torn.
pub(super) const SEGMENT_HEADER_BYTES: usize = 512;

/// Records begin at multiples of this.
pub(super) const ALIGN_BYTES: usize = 8;

/// An entry's payload is at most this long.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// Indices and groups are below this: they count by ones, so no log comes near, and the next one
/// can always be told.
pub(super) const COUNT_END: u64 = 1 << 63;

const FORMAT: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"QUIRELOG";
const RECORD_MAGIC: [u8; 2] = *b"QR";
const LAST_OF_GROUP: u8 = 1;

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE_AFTER: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_COMMITTED: u8 = 5;

const HAS_VOTE: u8 = 1;
const VOTE_COMMITTED: u8 = 2;
const HAS_COMMITTED: u8 = 4;
const HAS_PURGED: u8 = 8;
const HAS_LAST: u8 = 16;

const _: () = assert!(RECORD_HEADER_BYTES.is_multiple_of(ALIGN_BYTES));
const _: () = assert!(SEGMENT_HEADER_BYTES.is_multiple_of(ALIGN_BYTES));
const _: () = assert!(crate::base::limits::ENTRY_BYTES_MAX < PAYLOAD_BYTES_MAX);

/// One record of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// An entry is appended.
    Entry { id: LogId, kind: EntryKind, payload: &'a [u8] },
    /// The node votes.
    Vote(Vote),
    /// All entries after this one are dropped.
    TruncateAfter(Option<LogId>),
    /// All entries up to this one are dropped.
    Purge(LogId),
    /// So much is committed.
    Committed(Option<LogId>),
}

/// A record read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded<'a> {
    pub record: Record<'a>,
    pub group: u64,
    pub chain: u64,
    pub last_of_group: bool,
    /// What it takes in the segment.
    pub bytes: usize,
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Its own number.
    pub segment: u64,
    /// The segment whose records come before; 0 for the first.
    pub previous: u64,
    /// How many bytes of that segment count.
    pub previous_end: u64,
    /// The group that this header was synced with.
    pub group: u64,
    /// The group of the first record.
    pub first_group: u64,
    /// The hash chain before the first record.
    pub chain: u64,
    /// The log's state before the first record.
    pub state: LogState,
}

/// Why a segment header was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Not a header, or a damaged one.
    Invalid,
    /// A header of another format.
    Format(u32),
}

/// What a payload of that length takes as a record.
pub(super) fn record_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN_BYTES)
}

/// Appends a record to `buf` and returns the chain after it. It is not valid until [`seal`].
pub(super) fn push(buf: &mut Vec<u8>, record: &Record<'_>, chain: u64) -> u64 {
    let (kind, detail, term, index, payload): (u8, u8, u64, u64, &[u8]) = match *record {
        Record::Entry { id, kind, payload } => (KIND_ENTRY, kind as u8, id.term, id.index, payload),
        Record::Vote(vote) => (KIND_VOTE, u8::from(vote.committed), vote.term, vote.node, &[]),
        Record::TruncateAfter(id) => optional(KIND_TRUNCATE_AFTER, id),
        Record::Purge(id) => (KIND_PURGE, 0, id.term, id.index, &[]),
        Record::Committed(id) => optional(KIND_COMMITTED, id),
    };
    let mut header = [0; RECORD_HEADER_BYTES];
    // Payloads are checked against PAYLOAD_BYTES_MAX at the door, so this never saturates.
    put_u32(&mut header, 4, u32::try_from(payload.len()).unwrap_or(u32::MAX));
    header[24..26].copy_from_slice(&RECORD_MAGIC);
    header[28] = kind;
    header[29] = detail;
    put_u64(&mut header, 32, term);
    put_u64(&mut header, 40, index);
    let start = buf.len();
    buf.extend_from_slice(&header);
    buf.extend_from_slice(payload);
    let chain = chain_after(&buf[start..], chain);
    put_u64(&mut buf[start..], 16, chain);
    buf.resize(start + record_bytes(payload.len()), 0);
    chain
}

fn optional(kind: u8, id: Option<LogId>) -> (u8, u8, u64, u64, &'static [u8]) {
    let LogId { term, index } = id.unwrap_or(LogId { term: 0, index: 0 });
    (kind, u8::from(id.is_some()), term, index, &[])
}

/// Completes the records of a whole group that is to be written at `offset` of `segment`.
/// Returns how many they are.
pub(super) fn seal(buf: &mut [u8], group: u64, segment: u64, offset: u64) -> u64 {
    let mut at = 0;
    let mut records = 0;
    while at < buf.len() {
        let bytes = record_bytes(get_u32(buf, at + 4) as usize);
        let end = (at + bytes).min(buf.len());
        let last = end == buf.len();
        seal_one(&mut buf[at..end], group, last, segment, offset + at as u64);
        at = end;
        records += 1;
    }
    records
}

/// Completes one record, `last` or not of its group, that is to be at `offset` of `segment`.
pub(super) fn seal_one(record: &mut [u8], group: u64, last: bool, segment: u64, offset: u64) {
    put_u64(record, 8, group);
    record[26] = if last { LAST_OF_GROUP } else { 0 };
    let crc = record_crc(record, segment, offset);
    put_u32(record, 0, crc);
}

fn record_crc(record: &[u8], segment: u64, offset: u64) -> u32 {
    let mut place = [0; 16];
    put_u64(&mut place, 0, segment);
    put_u64(&mut place, 8, offset);
    crc32c::crc32c_append(crc32c::crc32c(&place), &record[4..])
}

/// The record at the start of `bytes`, which are at `offset` of `segment`.
pub(super) fn decode(bytes: &[u8], segment: u64, offset: u64) -> Option<Decoded<'_>> {
    let header = bytes.get(..RECORD_HEADER_BYTES)?;
    if header[24..26] != RECORD_MAGIC {
        return None;
    }
    let payload_bytes = get_u32(header, 4) as usize;
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return None;
    }
    let record = bytes.get(..record_bytes(payload_bytes))?;
    if get_u32(record, 0) != record_crc(record, segment, offset) {
        return None;
    }
    let payload = &record[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload_bytes];
    Some(Decoded {
        record: decode_checked(header, payload)?,
        group: Some(get_u64(header, 8)).filter(|group| *group < COUNT_END)?,
        chain: get_u64(header, 16),
        last_of_group: header[26] & LAST_OF_GROUP != 0,
        bytes: record.len(),
    })
}

fn decode_checked<'a>(header: &[u8], payload: &'a [u8]) -> Option<Record<'a>> {
    let (detail, term, index) = (header[29], get_u64(header, 32), get_u64(header, 40));
    let id = LogId { term, index };
    if header[28] != KIND_VOTE && index >= COUNT_END {
        return None;
    }
    let record = match (header[28], detail) {
        (KIND_ENTRY, 0) => Record::Entry { id, kind: EntryKind::Blank, payload },
        (KIND_ENTRY, 1) => Record::Entry { id, kind: EntryKind::Command, payload },
        (KIND_ENTRY, 2) => Record::Entry { id, kind: EntryKind::Membership, payload },
        (KIND_VOTE, 0 | 1) => Record::Vote(Vote { term, node: index, committed: detail == 1 }),
        (KIND_TRUNCATE_AFTER, 0 | 1) => Record::TruncateAfter((detail == 1).then_some(id)),
        (KIND_PURGE, 0) => Record::Purge(id),
        (KIND_COMMITTED, 0 | 1) => Record::Committed((detail == 1).then_some(id)),
        _ => return None,
    };
    Some(record)
}

/// What the chain is after the (valid) record at the start of `bytes`, if it is `chain` before.
pub(super) fn chain_after(bytes: &[u8], chain: u64) -> u64 {
    let payload_bytes = get_u32(bytes, 4) as usize;
    let end = (RECORD_HEADER_BYTES + payload_bytes).min(bytes.len());
    xxh3_64_with_seed(&bytes[28..end], chain)
}

/// The first valid record of a group later than `group` in `bytes`, from byte `from` on; `bytes`
/// are a whole segment. Looks at every place where a record could begin.
pub(super) fn find_later(
    bytes: &[u8],
    segment: u64,
    from: usize,
    group: u64,
) -> Option<Decoded<'_>> {
    find(bytes, segment, from, |decoded| decoded.group > group).map(|(_, decoded)| decoded)
}

/// As [`find_later`], the first valid record that `fits`, and where it is.
pub(super) fn find<'a>(
    bytes: &'a [u8],
    segment: u64,
    from: usize,
    fits: impl Fn(&Decoded<'a>) -> bool,
) -> Option<(usize, Decoded<'a>)> {
    let mut at = from.next_multiple_of(ALIGN_BYTES);
    while let Some(magic) = bytes.get(at + 24..at + 26) {
        if magic == RECORD_MAGIC
            && let Some(decoded) = decode(&bytes[at..], segment, at as u64)
            && fits(&decoded)
        {
            return Some((at, decoded));
        }
        at += ALIGN_BYTES;
    }
    None
}

impl SegmentHeader {
    /// As bytes.
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        put_u32(&mut out, 8, FORMAT);
        let numbers = [
            self.segment,
            self.previous,
            self.previous_end,
            self.group,
            self.first_group,
            self.chain,
        ];
        for (i, number) in numbers.into_iter().enumerate() {
            put_u64(&mut out, 16 + 8 * i, number);
        }
        let LogState { purged, last, vote, committed } = self.state;
        if let Some(vote) = vote {
            out[64] |= HAS_VOTE | if vote.committed { VOTE_COMMITTED } else { 0 };
            put_u64(&mut out, 72, vote.term);
            put_u64(&mut out, 80, vote.node);
        }
        let ids = [(HAS_COMMITTED, committed), (HAS_PURGED, purged), (HAS_LAST, last)];
        for (i, (flag, id)) in ids.into_iter().enumerate() {
            if let Some(id) = id {
                out[64] |= flag;
                put_u64(&mut out, 88 + 16 * i, id.term);
                put_u64(&mut out, 96 + 16 * i, id.index);
            }
        }
        let crc = header_crc(&out);
        put_u32(&mut out, 12, crc);
        out
    }

    /// From the first bytes of a segment file.
    pub(super) fn decode(bytes: &[u8]) -> Result<SegmentHeader, BadHeader> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(BadHeader::Invalid)?;
        if bytes[..8] != SEGMENT_MAGIC || get_u32(bytes, 12) != header_crc(bytes) {
            return Err(BadHeader::Invalid);
        }
        let format = get_u32(bytes, 8);
        if format != FORMAT {
            return Err(BadHeader::Format(format));
        }
        let flags = bytes[64];
        let id = |flag: u8, at: usize| {
            let id = LogId { term: get_u64(bytes, at), index: get_u64(bytes, at + 8) };
            (flags & flag != 0).then_some(id)
        };
        // The groups, and the indices of the three ids.
        if [40, 48, 96, 112, 128].iter().any(|at| get_u64(bytes, *at) >= COUNT_END) {
            return Err(BadHeader::Invalid);
        }
        let vote = Vote {
            term: get_u64(bytes, 72),
            node: get_u64(bytes, 80),
            committed: flags & VOTE_COMMITTED != 0,
        };
        Ok(SegmentHeader {
            segment: get_u64(bytes, 16),
            previous: get_u64(bytes, 24),
            previous_end: get_u64(bytes, 32),
            group: get_u64(bytes, 40),
            first_group: get_u64(bytes, 48),
            chain: get_u64(bytes, 56),
            state: LogState {
                vote: (flags & HAS_VOTE != 0).then_some(vote),
                committed: id(HAS_COMMITTED, 88),
                purged: id(HAS_PURGED, 104),
                last: id(HAS_LAST, 120),
            },
        })
    }
}

fn header_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..SEGMENT_HEADER_BYTES])
}

fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}
