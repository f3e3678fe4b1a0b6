//! What must hold for a log whose files hold anything at all: it opens or it does not, nothing
//! panics, and every entry that it gives was written, by its kind and its bytes, at its index.
//!
//! Three kinds of files: a real log with damage in it; the same with its checksums made right
//! afterwards, so that only the hash chain is left to tell; and records that were never written by
//! a log, with checksums and chain in order, which may say what no log would.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quire::base::Executor;
use quire::disk::{Disk, FakeDisk};
use quire::log::mend::{Mend, examine, newest_membership};
use quire::log::{Entry, EntryKind, Log, LogError, LogId, LogOptions, Look, Vote, newer_format};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Input;

const OPTIONS: LogOptions = LogOptions { segment_bytes: 2048, cache_bytes_max: 512 };

const HEADER: usize = 512;

const RECORD: usize = 48;

/// Opens the log that `data` makes up.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = FakeDisk::unrecorded();
    disk.set_budget(Some(1 << 20));
    disk.create_dir("log").expect("a directory");
    let kind = input.u8();
    let written = match kind % 4 {
        0 | 1 => {
            let real = real();
            let mut files = real.files.clone();
            damage(&mut files, &mut input);
            if kind % 4 == 1 {
                files.iter_mut().for_each(|(number, bytes)| reseal(*number, bytes));
            }
            put(&disk, &files);
            Some(&real.written)
        }
        2 => {
            put(&disk, &made_up(&mut input));
            None
        }
        _ => {
            let files = (1..4).map(|number| (number, input.take(900).to_vec()));
            put(&disk, &files.collect::<Vec<_>>());
            None
        }
    };
    check(&disk, written);
}

/// What an entry is known by.
type Known = (LogId, u8, Vec<u8>);

fn known(entry: &Entry) -> Known {
    (entry.id, entry.kind as u8, entry.payload.to_vec())
}

type Files = Vec<(u64, Vec<u8>)>;

/// A log as it was written, and all entries that it ever had.
struct Real {
    files: Files,
    written: BTreeSet<Known>,
}

fn path(number: u64) -> String {
    format!("log/{number:016x}.seg")
}

fn put(disk: &FakeDisk, files: &Files) {
    for (number, bytes) in files {
        disk.create(&path(*number)).expect("a file").write_at(bytes, 0).expect("room");
    }
}

/// Some terms of a node's life: segments, groups, votes, truncations and a purge.
fn real() -> &'static Real {
    static REAL: OnceLock<Real> = OnceLock::new();
    REAL.get_or_init(|| {
        let disk = FakeDisk::unrecorded();
        let log = Log::open(Arc::new(disk.clone()), Executor::Inline, OPTIONS).expect("opens");
        let mut written = BTreeSet::new();
        let done = || Box::new(|result: std::io::Result<()>| result.expect("written"));
        for term in 1..5_u64 {
            log.save_vote(Vote { term, node: term % 3, committed: term % 2 == 0 }, done());
            for group in 0..4 {
                let next = log.state().next_index().unwrap_or(0);
                let entry = |index: u64| Entry {
                    id: LogId { term, index },
                    kind: [EntryKind::Command, EntryKind::Blank, EntryKind::Membership]
                        [(index % 3) as usize],
                    payload: Bytes::from(vec![(term * 16 + group) as u8; 20 + index as usize * 3]),
                };
                let entries: Vec<Entry> = (next..next + 1 + group).map(entry).collect();
                written.extend(entries.iter().map(known));
                log.append(entries, done());
                log.save_committed(Some(LogId { term, index: next }));
            }
            if let Some(last) = log.state().last.filter(|_| term < 4) {
                log.truncate_after(Some(LogId { term, index: last.index - 2 }), done());
            }
            if term == 3 {
                log.set_purge_limit(Some(6));
                log.purge(LogId { term: 1, index: 5 }, done());
            }
        }
        log.stop();
        let names = disk.list("log").expect("the directory");
        let number = |name: &String| u64::from_str_radix(&name[..16], 16).expect("a segment");
        let bytes = |name: &String| disk.bytes(&format!("log/{name}")).expect("a segment");
        let files = names.iter().map(|name| (number(name), bytes(name))).collect();
        Real { files, written }
    })
}

/// Bytes that change, blocks that are zeroed, stale or elsewhere, files that are cut or gone.
fn damage(files: &mut Files, input: &mut Input<'_>) {
    for _ in 0..1 + input.below(4) {
        let which = input.below(files.len());
        let other = files[input.below(files.len())].1.clone();
        let Some((number, bytes)) = files.get_mut(which) else { return };
        let at = usize::from(input.u16()) % bytes.len().max(1);
        match input.below(8) {
            0..3 => {
                let len = 1 + input.below(8);
                let mask = input.take(len);
                bytes.iter_mut().skip(at).zip(mask).for_each(|(byte, mask)| *byte ^= mask);
            }
            3 => bytes.iter_mut().skip(at / 512 * 512).take(512).for_each(|byte| *byte = 0),
            4 => {
                let from = usize::from(input.u16()) % other.len().max(1) / 8 * 8;
                let block = other.iter().skip(from).take(512);
                bytes.iter_mut().skip(at / 8 * 8).zip(block).for_each(|(byte, new)| *byte = *new);
            }
            5 => bytes.truncate(at),
            6 => *number += u64::from(input.u8() % 4),
            _ => drop(files.remove(which)),
        }
        files.sort();
        files.dedup_by_key(|(number, _)| *number);
    }
}

fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// The checksum of a record at its place.
fn seal_record(record: &mut [u8], segment: u64, offset: usize) {
    let place = [segment.to_le_bytes(), (offset as u64).to_le_bytes()].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place), &record[4..]);
    put_u32(record, 0, crc);
}

fn seal_header(header: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..HEADER]);
    put_u32(header, 12, crc);
}

/// Makes the checksums of a segment right, as far as its records can be told apart.
fn reseal(number: u64, bytes: &mut [u8]) {
    let Some(header) = bytes.get_mut(..HEADER) else { return };
    put_u64(header, 16, number);
    seal_header(header);
    let mut at = HEADER;
    while let Some(len) = bytes.get(at + 4..at + 8) {
        let payload = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let end = at.saturating_add((RECORD + payload).next_multiple_of(8));
        let Some(record) = bytes.get_mut(at..end) else { return };
        seal_record(record, number, at);
        at = end;
    }
}

/// Segments whose checksums and chain are right, and whose records say anything.
fn made_up(input: &mut Input<'_>) -> Files {
    let mut files = Files::new();
    let (mut chain, mut group, mut index) = (0, 1, input.odd());
    let mut previous_end = 0;
    for number in 1..=1 + input.below(3) as u64 {
        let mut bytes = made_up_header([number, number - 1, previous_end, group, chain], input);
        for _ in 0..input.below(6) {
            let at = bytes.len();
            let record = made_up_record(&mut group, &mut chain, &mut index, input);
            bytes.extend_from_slice(&record);
            seal_record(&mut bytes[at..], number, at);
        }
        previous_end = bytes.len() as u64;
        bytes.resize(bytes.len() + input.below(3) * 64, 0);
        files.push((number, bytes));
    }
    files
}

/// A header, as docs/format.md draws it; its state is anything, most of the time nothing.
fn made_up_header(numbers: [u64; 5], input: &mut Input<'_>) -> Vec<u8> {
    let [number, previous, previous_end, group, chain] = numbers;
    let mut out = vec![0; HEADER];
    out[..8].copy_from_slice(b"QUIRELOG");
    put_u32(&mut out, 8, if input.rarely(32) { 2 } else { 1 });
    let previous = if input.rarely(16) { input.odd() } else { previous };
    let previous_end = if input.rarely(16) { input.odd() } else { previous_end };
    let first_group = if input.rarely(16) { input.odd() } else { group };
    let group = if input.rarely(16) { input.odd() } else { group };
    let all = [number, previous, previous_end, group, first_group, chain];
    for (at, number) in all.into_iter().enumerate() {
        put_u64(&mut out, 16 + 8 * at, number);
    }
    if input.below(2) == 0 {
        out[64] = input.u8() % 32;
        for at in 0..8 {
            put_u64(&mut out, 72 + 8 * at, input.odd());
        }
    }
    seal_header(&mut out);
    out
}

fn made_up_record(
    group: &mut u64,
    chain: &mut u64,
    index: &mut u64,
    input: &mut Input<'_>,
) -> Vec<u8> {
    let payload = input.below(40);
    let payload = input.take(payload);
    let mut record = vec![0; RECORD];
    put_u32(&mut record, 4, payload.len() as u32);
    put_u64(&mut record, 8, *group);
    record[24..26].copy_from_slice(b"QR");
    let kind = input.choose(&[1, 1, 1, 1, 2, 3, 4, 5]);
    record[28] = kind;
    record[29] = input.below(2) as u8;
    put_u64(&mut record, 32, input.odd());
    let number = match kind {
        1 => std::mem::replace(index, index.wrapping_add(1)),
        2 => input.odd(),
        _ if input.below(2) == 0 => index.wrapping_sub(u64::from(input.u8() % 4)),
        _ => input.odd(),
    };
    if kind != 1 && kind != 2 && input.below(2) == 0 {
        *index = number.wrapping_add(1);
    }
    put_u64(&mut record, 40, number);
    record.extend_from_slice(payload);
    *chain = xxh3_64_with_seed(&record[28..], *chain);
    put_u64(&mut record, 16, *chain);
    record.resize(record.len().next_multiple_of(8), 0);
    if input.below(2) == 0 {
        record[26] = 1;
        *group = if input.rarely(16) { input.odd() } else { group.wrapping_add(1) };
    }
    record
}

/// Looks at the log and opens it, mends it where it is damaged, and opens it again.
fn check(disk: &FakeDisk, written: Option<&BTreeSet<Known>>) {
    let _ = newer_format(disk);
    let _ = newest_membership(disk);
    let looked = Look::at(disk).map(|look| (look.state(), look.indices()));
    let opened = Log::open(Arc::new(disk.clone()), Executor::Inline, OPTIONS);
    assert_eq!(looked.is_ok(), opened.is_ok(), "looking and opening find the same");
    let log = match opened {
        Ok(log) => log,
        Err(LogError::Damaged { segment, offset, .. }) => {
            check_mended(disk, segment, offset, written);
            return;
        }
        Err(_) => return,
    };
    let state = log.state();
    assert_eq!(looked.ok().map(|(state, _)| state), Some(state));
    let entries = entries(&log);
    check_entries(&entries, written);
    drop(log);
    let again = match Log::open(Arc::new(disk.clone()), Executor::Inline, OPTIONS) {
        Ok(again) => again,
        // A first header may say of the log before it what no log says: then it is refused as soon
        // as another header must repeat it.
        Err(LogError::Damaged { .. }) if written.is_none() => return,
        Err(error) => panic!("it was opened once: {error}"),
    };
    assert_eq!(again.state(), state);
    assert!(self::entries(&again) == entries, "the same entries");
}

fn check_mended(disk: &FakeDisk, segment: u64, offset: u64, written: Option<&BTreeSet<Known>>) {
    match examine(disk, segment, offset) {
        Ok(Mend::Done(_)) => {
            if let Ok(log) = Log::open(Arc::new(disk.clone()), Executor::Inline, OPTIONS) {
                check_entries(&entries(&log), written);
            }
        }
        Ok(Mend::Needs(gap)) => assert!(!gap.needs().is_empty()),
        Ok(Mend::Unprovable) | Err(_) => {}
    }
}

fn entries(log: &Log) -> Vec<Entry> {
    let state = log.state();
    let Some(last) = state.last else { return Vec::new() };
    let mut all: Vec<Entry> = Vec::new();
    let Some(mut from) = state.purged.map_or(Some(0), |purged| purged.index.checked_add(1)) else {
        return all;
    };
    // The first entry of all may have any index.
    if state.purged.is_none()
        && log.read(from, from.saturating_add(1), 1).expect("reads").is_empty()
    {
        from = last.index.saturating_sub(64);
        while from < last.index && log.read(from, from + 1, 1).expect("reads").is_empty() {
            from += 1;
        }
    }
    loop {
        let some = log.read(from, u64::MAX, 300).expect("what was read at the start");
        let Some(last) = some.last() else { return all };
        let next = last.id.index.checked_add(1);
        all.extend(some);
        match next {
            Some(next) => from = next,
            None => return all,
        }
    }
}

fn check_entries(entries: &[Entry], written: Option<&BTreeSet<Known>>) {
    for pair in entries.windows(2) {
        assert_eq!(pair[0].id.index + 1, pair[1].id.index, "consecutive");
    }
    let Some(written) = written else { return };
    for entry in entries {
        assert!(written.contains(&known(entry)), "never written: {:?}", entry.id);
    }
}
