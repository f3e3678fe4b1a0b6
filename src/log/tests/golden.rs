//! The bytes of `docs/format.md`, pinned. If one of these fails, earlier data directories cannot
//! be opened any more.

use std::fmt::Write;

use super::{LogState, Vote, entry, id, open, wait};
use crate::disk::FakeDisk;
use crate::log::EntryKind;
use crate::log::record::{Record, SegmentHeader, decode, push, record_bytes, seal};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Lines of 16 bytes.
fn lines(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(16).map(hex).collect()
}

const VOTE: Vote = Vote { term: 7, node: 3, committed: true };

#[test]
fn records() {
    let entry = Record::Entry { id: id(5, 6), kind: EntryKind::Command, payload: b"hello" };
    let records = [entry, Record::Vote(VOTE), Record::TruncateAfter(None), Record::Purge(id(5, 4))];
    let mut buf = Vec::new();
    let mut chain = 0;
    for record in &records {
        chain = push(&mut buf, record, chain);
    }
    assert_eq!(seal(&mut buf, 9, 2, 512), 4);
    assert_eq!(lines(&buf), GOLDEN_RECORDS);
    let mut at = 0;
    for record in records {
        let decoded = decode(&buf[at..], 2, 512 + at as u64).unwrap();
        assert_eq!((decoded.record, decoded.group), (record, 9));
        assert!(decode(&buf[at..], 3, 512 + at as u64).is_none(), "not of this segment");
        assert!(decode(&buf[at..], 2, 520 + at as u64).is_none(), "not of this place");
        at += decoded.bytes;
        assert_eq!(decoded.last_of_group, at == buf.len());
    }
    assert_eq!(record_bytes(5), 56);
}

const GOLDEN_RECORDS: &[&str] = &[
    "c3c6c382050000000900000000000000",
    "4d704b302cc04f725152000001010000",
    "05000000000000000600000000000000",
    "68656c6c6f0000002cbdc72300000000",
    "09000000000000005ad5d93051238b5b",
    "51520000020100000700000000000000",
    "03000000000000007b45b45100000000",
    "0900000000000000d3dfdb7392cd0b3d",
    "51520000030000000000000000000000",
    "00000000000000007632af0800000000",
    "09000000000000003ad83ba0becc181b",
    "51520100040000000500000000000000",
    "0400000000000000",
];

#[test]
fn the_segment_header() {
    let header = SegmentHeader {
        segment: 2,
        previous: 1,
        previous_end: 1024,
        group: 8,
        first_group: 9,
        chain: 0x1122_3344_5566_7788,
        state: LogState {
            vote: Some(VOTE),
            committed: Some(id(4, 10)),
            purged: Some(id(3, 9)),
            last: Some(id(5, 11)),
        },
    };
    let bytes = header.encode();
    assert_eq!(SegmentHeader::decode(&bytes).unwrap(), header);
    assert_eq!(lines(&bytes[..144]), GOLDEN_HEADER);
    assert_eq!(bytes[144..], [0; 368]);
    for i in 0..bytes.len() {
        let mut damaged = bytes;
        damaged[i] ^= 0x10;
        assert!(SegmentHeader::decode(&damaged).is_err(), "byte {i}");
    }
}

const GOLDEN_HEADER: &[&str] = &[
    "51554952454c4f47010000000b004474",
    "02000000000000000100000000000000",
    "00040000000000000800000000000000",
    "09000000000000008877665544332211",
    "1f000000000000000700000000000000",
    "03000000000000000400000000000000",
    "0a000000000000000300000000000000",
    "09000000000000000500000000000000",
    "0b000000000000000000000000000000",
];

/// A whole log file, by its hash: an entry, a vote, a committed index, closed and opened once.
#[test]
fn a_log() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    wait(|done| log.append(vec![entry(1, 0, 10), entry(1, 1, 0)], done)).unwrap();
    log.save_committed(Some(id(1, 0)));
    wait(|done| log.save_vote(VOTE, done)).unwrap();
    drop(log);
    let first = disk.bytes("log/0000000000000001.seg").unwrap();
    assert_eq!(first.len(), 4096);
    assert_eq!(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&first)), GOLDEN_FIRST);
    drop(open(&disk));
    let second = disk.bytes("log/0000000000000002.seg").unwrap();
    assert_eq!(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&second)), GOLDEN_SECOND);
}

const GOLDEN_FIRST: &str = "13d2a9ab7d0cb9dd";
const GOLDEN_SECOND: &str = "8f6797a10b11ab1c";

#[test]
fn every_damaged_byte_of_a_record_is_noticed() {
    let mut buf = Vec::new();
    push(&mut buf, &Record::Entry { id: id(5, 6), kind: EntryKind::Blank, payload: b"abc" }, 1);
    seal(&mut buf, 9, 2, 512);
    for i in 0..buf.len() {
        let mut damaged = buf.clone();
        damaged[i] ^= 0x20;
        assert!(decode(&damaged, 2, 512).is_none(), "byte {i}");
        assert!(decode(&buf[..i], 2, 512).is_none(), "short by {}", buf.len() - i);
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_to_something_or_nothing(
        mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        length in 0..300_u32,
    ) {
        let _ = SegmentHeader::decode(&bytes);
        let _ = decode(&bytes, 1, 512);
        if bytes.len() >= 26 {
            bytes[24..26].copy_from_slice(b"QR");
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            proptest::prop_assert!(decode(&bytes, 1, 512).is_none());
        }
    }
}
