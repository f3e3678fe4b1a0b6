//! Bytes that rot: detected, or harmless, but never taken for the truth.

use std::sync::Arc;

use super::{Model, SMALL, all, entries, id, open, wait};
use crate::base::{Executor, Fate, Randomness, SplitMix};
use crate::disk::{Disk, FakeDisk};
use crate::log::record::{Record, SEGMENT_HEADER_BYTES, SegmentHeader, push, seal};
use crate::log::{EntryKind, Log, LogError, LogState, Vote};

/// Ten groups of five entries, over several segments.
fn ten_groups() -> (FakeDisk, Model) {
    let disk = FakeDisk::new();
    let log = open(&disk);
    for group in 0..10 {
        wait(|done| log.append(entries(1, group * 5..group * 5 + 5), done)).unwrap();
    }
    let model = Model::of(&log);
    (disk, model)
}

fn try_open(disk: &FakeDisk) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), Executor::Inline, SMALL)
}

/// Where in which file an entry's payload is.
fn find(disk: &FakeDisk, index: u64) -> (String, u64) {
    let payload = entries(1, index..index + 1)[0].payload.clone();
    for name in disk.list("log").unwrap().into_iter().rev() {
        let path = format!("log/{name}");
        let bytes = disk.bytes(&path).unwrap();
        if let Some(at) = bytes.windows(payload.len()).position(|window| window == payload) {
            return (path, at as u64);
        }
    }
    panic!("entry {index} is not on the disk");
}

#[test]
fn a_flipped_byte_in_the_middle_is_damage() {
    let (disk, _) = ten_groups();
    let (path, at) = find(&disk, 12);
    disk.flip(&path, at + 50, &[4]).unwrap();
    let error = try_open(&disk).err().unwrap();
    assert_eq!(error.fate(), Fate::Fatal);
    assert!(error.to_string().contains("join it anew"), "{error}");
    let LogError::Damaged { first_index, last_index, segment, offset } = error else {
        panic!("{error}");
    };
    assert_eq!((first_index, last_index), (12, 14), "up to the next group: {path}");
    assert_eq!((path, offset), (format!("log/{segment:016x}.seg"), at - 48));
}

#[test]
fn a_flipped_byte_in_the_segment_that_was_being_filled_is_damage_too() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    for index in 0..6 {
        wait(|done| log.append(entries(1, index..index + 1), done)).unwrap();
    }
    assert!(find(&disk, 0).0 == find(&disk, 5).0, "one segment");
    for index in 0..6 {
        let disk = disk.cut(crate::disk::Cut::Keep);
        let (path, at) = find(&disk, index);
        disk.flip(&path, at, &[1]).unwrap();
        match try_open(&disk) {
            Err(LogError::Damaged { first_index, last_index, .. }) => {
                assert_eq!((first_index, last_index), (index, index));
                assert!(index < 5);
            }
            Ok(log) => assert_eq!((index, all(&log)), (5, entries(1, 0..5))),
            Err(error) => panic!("{error}"),
        }
    }
    // A second one, in the header, with all records valid.
    disk.flip("log/0000000000000001.seg", 100, &[1]).unwrap();
    assert!(matches!(try_open(&disk), Err(LogError::Damaged { .. })));
}

#[test]
fn a_flipped_byte_in_the_very_last_group_is_a_torn_tail() {
    let (disk, model) = ten_groups();
    let (path, at) = find(&disk, 47);
    disk.flip(&path, at + 50, &[4]).unwrap();
    let log = open(&disk);
    assert_eq!(all(&log), entries(1, 0..47), "valid records of the same group behind it are cut");
    wait(|done| log.append(entries(1, 47..48), done)).unwrap();
    drop(log);
    assert_eq!(all(&open(&disk)), entries(1, 0..48));
    assert_eq!(model.entries.len(), 50);
}

#[test]
fn a_vote_in_a_torn_tail_was_never_acknowledged() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    wait(|done| log.append(entries(1, 0..1), done)).unwrap();
    let acknowledged = Vote { term: 5, node: 2, committed: false };
    wait(|done| log.save_vote(acknowledged, done)).unwrap();
    let n = disk.calls();
    wait(|done| log.save_vote(Vote { term: 6, ..acknowledged }, done)).unwrap();
    assert_eq!(open(&disk.after_cut(n + 1, 0)).state().vote, Some(acknowledged));
    assert_eq!(open(&disk.after_cut(n + 2, 0)).state().vote.unwrap().term, 6);
}

#[test]
fn a_damaged_entry_that_is_read_later_is_named() {
    let (disk, _) = ten_groups();
    let log = open(&disk);
    let (path, at) = find(&disk, 12);
    disk.flip(&path, at + 50, &[4]).unwrap();
    let error = log.read(12, 13, 1000).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(error.to_string().contains(&format!("byte {}", at - 48)), "{error}");
    assert_eq!(log.read(11, 12, 1000).unwrap(), entries(1, 11..12));
}

/// Flipped bits, zeroed blocks, a block of another place: whatever opens must show what was
/// written, and may miss at most the last group (or what one block at the very end covers).
#[test]
fn random_damage_is_detected_or_harmless() {
    let (disk, model) = ten_groups();
    let last = index_span(&model);
    let mut detected = 0;
    for seed in 0..2000 {
        let random = SplitMix::new(seed);
        let below = |n: u64| random.next_u64() % n;
        let disk = disk.cut(crate::disk::Cut::Keep);
        let names = disk.list("log").unwrap();
        let name = &names[below(names.len() as u64) as usize];
        let path = format!("log/{name}");
        let len = disk.bytes(&path).unwrap().len() as u64;
        let kind = below(3);
        match kind {
            0 => disk.flip(&path, below(len), &[1 << below(8)]).unwrap(),
            1 => disk.overwrite(&path, below(len) / 512 * 512, &[0; 1024]).unwrap(),
            _ => {
                let from = format!("log/{}", names[below(names.len() as u64) as usize]);
                let start = (below(len) / 512 * 512) as usize;
                let block = disk.bytes(&from).unwrap()[start..].to_vec();
                let block = &block[..block.len().min(512)];
                disk.overwrite(&path, below(len) / 512 * 512, block).unwrap();
            }
        }
        match try_open(&disk) {
            Err(LogError::Damaged { .. }) => detected += 1,
            Err(error) => panic!("damage {seed} in {path}: {error}"),
            Ok(log) => {
                let got = Model::of(&log);
                let n = index_span(&got);
                // A block may cover two groups of 760 bytes to the very end.
                let missing_max = if kind == 0 { 5 } else { 10 };
                assert!(
                    n + missing_max >= last,
                    "damage {seed}, kind {kind}, in {path}: {n} entries left"
                );
                assert!(model.entries.iter().take(got.entries.len()).eq(got.entries.iter()));
                assert_eq!(got.state.last, Some(id(1, got.entries.len() as u64 - 1)));
            }
        }
    }
    assert!(detected > 500, "{detected}");
}

fn index_span(model: &Model) -> u64 {
    model.entries.len() as u64
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, _) = ten_groups();
    let names = disk.list("log").unwrap();
    for name in &names[..names.len() - 2] {
        let disk = disk.cut(crate::disk::Cut::Keep);
        disk.remove(&format!("log/{name}")).unwrap();
        assert!(matches!(try_open(&disk), Err(LogError::Damaged { .. })), "{name}");
    }
}

#[test]
fn a_log_of_a_later_format_is_refused() {
    let (disk, _) = ten_groups();
    let mut header = disk.bytes("log/0000000000000001.seg").unwrap()[..512].to_vec();
    header[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..]);
    header[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.overwrite("log/0000000000000001.seg", 0, &header).unwrap();
    assert!(matches!(try_open(&disk), Err(LogError::Format { segment: 1, found: 2 })));
}

/// A fuzzer made records that no log writes, with their checksums and the chain in order. An index
/// with none after it ended the process at each of its starts, by an overflow; after a truncation
/// to where the log had not been, entries stood under the indices of others.
#[test]
fn records_that_no_log_writes_are_not_taken() {
    let entry = |index| Record::Entry { id: id(1, index), kind: EntryKind::Blank, payload: &[] };
    for (record, next) in [
        (Record::Purge(id(1, u64::MAX)), 1),
        (Record::Committed(Some(id(1, u64::MAX))), 1),
        (Record::TruncateAfter(Some(id(1, u64::MAX))), 1),
        (Record::TruncateAfter(Some(id(1, 7))), 8),
    ] {
        let (mut records, mut chain) = (Vec::new(), 0);
        for record in [entry(0), record, entry(next)] {
            chain = push(&mut records, &record, chain);
        }
        seal(&mut records, 1, 1, SEGMENT_HEADER_BYTES as u64);
        let header = SegmentHeader {
            segment: 1,
            previous: 0,
            previous_end: 0,
            group: 1,
            first_group: 1,
            chain: 0,
            state: LogState::default(),
        };
        let disk = FakeDisk::new();
        disk.create_dir("log").unwrap();
        let file = disk.create("log/0000000000000001.seg").unwrap();
        file.write_at(&[&header.encode()[..], &records].concat(), 0).unwrap();
        match try_open(&disk) {
            Ok(log) => assert_eq!(log.state().last, Some(id(1, 0)), "{record:?}"),
            Err(LogError::Damaged { .. }) => {}
            Err(error) => panic!("{record:?}: {error}"),
        }
    }
}
