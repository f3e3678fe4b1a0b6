//! Reading the stream back at start: which segments count, what they say, where the tail is torn.
//!
//! The segment with the highest number and a valid header is the *head*; the headers lead back
//! from it to the oldest one, and each says how many bytes of the one before it count. All records
//! before the head were acknowledged, so a bad one there is damage. In the head the first bad
//! record is a torn tail unless something of a later group is found behind it: further on in the
//! head, in a segment behind it whose header is bad, or the head's own header.
//!
//! What is read may be in the page cache only: the process before may have died between its write
//! and its sync, or because of a failed sync. Only the last group can be so (each was synced before
//! the next was written). So the last group is not left where it is; the caller writes it anew into
//! a fresh segment and syncs it, and the old copy no longer counts. This is also what makes a cut
//! unambiguous: the fresh segment's header says where the old one ends.
//!
//! *Invariant*: changes nothing on the disk; the same bytes give the same answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::index::{Change, Index, Place};
use super::record::{
    BadHeader, Decoded, Record, SEGMENT_HEADER_BYTES, SegmentHeader, decode, find_later,
};
use super::{LogError, LogState, index_of};
use crate::base::planted::{Bug, planted};
use crate::disk::{Disk, DiskFile};

/// The directory of the segments.
pub(super) const DIR: &str = "log";

/// The file of a segment.
pub(super) fn segment_path(number: u64) -> String {
    format!("{DIR}/{number:016x}.seg")
}

pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 16)?;
    // They count by ones: a file of a higher number is none of a log's.
    u64::from_str_radix(digits, 16).ok().filter(|number| *number < u64::from(u32::MAX))
}

/// What was found. `state`, `index` and `chain` are those before the last group.
#[derive(Default)]
pub(super) struct Recovered {
    pub state: LogState,
    pub index: Index,
    pub chain: u64,
    /// The segments that count, oldest first.
    pub segments: Vec<(u64, Arc<dyn DiskFile>)>,
    /// What the fresh segment's header must say comes before it.
    pub previous: u64,
    pub previous_end: u64,
    /// The records of the last group, to be written anew.
    pub last_group: Vec<u8>,
    /// The number of the group that they are to be.
    pub group: u64,
    /// The fresh segment's number: higher than any seen.
    pub next_segment: u64,
    /// Whether nothing had ever been in the log where the oldest segment begins.
    pub from_the_start: bool,
    /// Segments that never counted: to be removed at once.
    pub unused: Vec<u64>,
    /// Segments that no longer count once the fresh one's header is durable.
    pub superseded: Vec<u64>,
}

/// A segment with a valid header, read whole or as far as it counts.
struct Segment {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    bytes: Vec<u8>,
}

/// Reads the log's directory.
pub(super) fn recover(disk: &dyn Disk) -> Result<Recovered, LogError> {
    let numbers: BTreeSet<u64> =
        disk.list(DIR)?.iter().filter_map(|name| segment_number(name)).collect();
    let mut recovered = Recovered {
        next_segment: numbers.last().map_or(1, |last| last + 1),
        ..Recovered::default()
    };
    let mut head = None;
    for number in numbers.iter().rev() {
        let file = disk.open(&segment_path(*number))?;
        if let Some(header) = read_header(&*file, *number)? {
            head = Some(Segment { header, bytes: read(&*file, None)?, file });
            break;
        }
        recovered.unused.push(*number);
    }
    let Some(head) = head else {
        no_later_group(disk, &recovered.unused, 0, 0, None)?;
        recovered.from_the_start = true;
        return Ok(recovered);
    };
    let before = segments_before(disk, &numbers, &head)?;
    let mut replay = Replay::default();
    let oldest = before.first().map_or(&head.header, |(header, ..)| header);
    recovered.from_the_start = oldest.state.last.is_none();
    replay.state = oldest.state;
    replay.chain = oldest.chain;
    for (i, (header, file, end)) in before.iter().enumerate() {
        let next = before.get(i + 1).map_or(&head.header, |(next, ..)| next);
        let bytes = read(&**file, Some(*end))?;
        replay.whole_segment(header, &bytes, *end, next)?;
        recovered.segments.push((header.segment, file.clone()));
    }
    read_head(disk, head, &mut replay, &mut recovered)?;
    let counted: BTreeSet<u64> = recovered.segments.iter().map(|(number, _)| *number).collect();
    recovered.superseded.extend(
        numbers.iter().filter(|n| !counted.contains(n) && !recovered.unused.contains(n)).copied(),
    );
    let Replay { state, index, chain } = replay;
    Ok(Recovered { state, index, chain, ..recovered })
}

impl Recovered {
    /// Applies the last group, which is now at `offset` of `segment`, and checks that every entry
    /// between what is purged and the last one is there.
    pub(super) fn apply_last_group(&mut self, segment: u64, offset: u64) -> Result<(), LogError> {
        let mut replay =
            Replay { state: self.state, index: std::mem::take(&mut self.index), chain: self.chain };
        let mut at = 0;
        while at < self.last_group.len() {
            let place = offset + at as u64;
            let decoded = decode(&self.last_group[at..], segment, place)
                .filter(|decoded| replay.apply(decoded, segment, place))
                .ok_or_else(|| damaged(segment, place, replay.state, None))?;
            at += decoded.bytes;
        }
        Replay { state: self.state, index: self.index, chain: self.chain } = replay;
        let first_needed = index_of(self.state.purged).map_or(0, |purged| purged + 1);
        let last = index_of(self.state.last);
        match self.index.first() {
            Some(first) if first <= first_needed => Ok(()),
            // The first entry ever may have any index.
            Some(_) if self.from_the_start && self.state.purged.is_none() => Ok(()),
            None if last < Some(first_needed) => Ok(()),
            first => Err(LogError::Damaged {
                first_index: first_needed,
                last_index: first.map_or(last.unwrap_or(0), |first| first - 1),
                segment,
                offset: 0,
            }),
        }
    }
}

/// The segments before the head that still exist, oldest first, each with how much of it counts.
#[allow(clippy::type_complexity)]
fn segments_before(
    disk: &dyn Disk,
    numbers: &BTreeSet<u64>,
    head: &Segment,
) -> Result<Vec<(SegmentHeader, Arc<dyn DiskFile>, u64)>, LogError> {
    let mut before = Vec::new();
    let mut next = head.header;
    // A segment that is not there was purged (Recovered::apply_last_group checks that).
    while numbers.contains(&next.previous) && next.previous < next.segment {
        let file = disk.open(&segment_path(next.previous))?;
        let Some(header) = read_header(&*file, next.previous)? else {
            return Err(LogError::Damaged {
                first_index: next.state.purged.map_or(0, |purged| purged.index + 1),
                last_index: index_of(next.state.last).unwrap_or(0),
                segment: next.previous,
                offset: 0,
            });
        };
        before.push((header, file, next.previous_end));
        next = header;
    }
    before.reverse();
    Ok(before)
}

/// Reads the head: all but its last group into `replay`, the last group aside.
fn read_head(
    disk: &dyn Disk,
    head: Segment,
    replay: &mut Replay,
    recovered: &mut Recovered,
) -> Result<(), LogError> {
    let Segment { header, file, bytes } = head;
    replay.check_header(&header)?;
    let tail = scan(&header, &bytes, &mut |_, _| true)?;
    let kept_end = tail.last_group_start;
    let mut bad = None;
    scan(&header, &bytes[..kept_end], &mut |at, decoded| {
        let fits = replay.apply(decoded, header.segment, at as u64);
        if !fits {
            bad = Some(at as u64);
        }
        fits
    })?;
    if let Some(at) = bad {
        return Err(damaged(header.segment, at, replay.state, None));
    }
    let later = find_later(&bytes, header.segment, tail.end, tail.group);
    let damage = later.is_some() || header.group > tail.group;
    if damage && !planted(Bug::DamageAsTornTail) {
        return Err(damaged(header.segment, tail.end as u64, tail.state, later));
    }
    let at = Some((header.segment, tail.end as u64));
    no_later_group(disk, &recovered.unused, tail.group, next_index(tail.state), at)?;
    recovered.last_group = bytes[kept_end..tail.end].to_vec();
    recovered.group = tail.group;
    if kept_end == SEGMENT_HEADER_BYTES {
        // Nothing of the head remains, and its header may be in the page cache only.
        recovered.previous = header.previous;
        recovered.previous_end = header.previous_end;
    } else {
        recovered.previous = header.segment;
        recovered.previous_end = kept_end as u64;
        recovered.segments.push((header.segment, file));
    }
    Ok(())
}

/// Fails if one of these segments, whose headers are bad, holds a record of a later group.
fn no_later_group(
    disk: &dyn Disk,
    segments: &[u64],
    group: u64,
    first_index: u64,
    bad: Option<(u64, u64)>,
) -> Result<(), LogError> {
    for number in segments.iter().rev() {
        let bytes = read(&*disk.open(&segment_path(*number))?, None)?;
        if let Some(later) = find_later(&bytes, *number, SEGMENT_HEADER_BYTES, group) {
            let (segment, offset) = bad.unwrap_or((*number, 0));
            let last_index = last_lost(&later).unwrap_or(first_index).max(first_index);
            return Err(LogError::Damaged { first_index, last_index, segment, offset });
        }
    }
    Ok(())
}

/// Which segment was written by a newer build, if one was. Only reads.
pub fn newer_format(disk: &dyn Disk) -> std::io::Result<Option<String>> {
    for number in disk.list(DIR)?.iter().filter_map(|name| segment_number(name)) {
        let file = disk.open(&segment_path(number))?;
        match read_header(&*file, number) {
            Err(LogError::Format { segment, found }) => {
                return Ok(Some(format!("{} has format {found}", segment_path(segment))));
            }
            Err(LogError::Io(error)) => return Err(error),
            Ok(_) | Err(LogError::Damaged { .. }) => {}
        }
    }
    Ok(None)
}

pub(super) fn read_header(
    file: &dyn DiskFile,
    number: u64,
) -> Result<Option<SegmentHeader>, LogError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let got = file.read_at(&mut bytes, 0)?;
    match SegmentHeader::decode(&bytes[..got]) {
        Ok(header) => Ok((header.segment == number).then_some(header)),
        Err(BadHeader::Invalid) => Ok(None),
        Err(BadHeader::Format(found)) => Err(LogError::Format { segment: number, found }),
    }
}

/// The first `len` bytes of a file (fewer if there are not so many), or all of them.
pub(super) fn read(file: &dyn DiskFile, len: Option<u64>) -> Result<Vec<u8>, LogError> {
    let have = file.len()?;
    let len = usize::try_from(len.map_or(have, |len| len.min(have)))
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    let got = file.read_at(&mut bytes, 0)?;
    bytes.truncate(got);
    Ok(bytes)
}

fn next_index(state: LogState) -> u64 {
    state.next_index().unwrap_or(0)
}

fn last_lost(later: &Decoded<'_>) -> Option<u64> {
    match later.record {
        Record::Entry { id, .. } => Some(id.index.saturating_sub(1)),
        _ => None,
    }
}

fn damaged(segment: u64, offset: u64, state: LogState, later: Option<Decoded<'_>>) -> LogError {
    let first_index = next_index(state);
    let last_index = later.as_ref().and_then(last_lost).unwrap_or(first_index).max(first_index);
    LogError::Damaged { first_index, last_index, segment, offset }
}

/// Where the valid records of a segment end.
pub(super) struct Tail {
    /// The first byte that is not a valid record.
    pub(super) end: usize,
    /// Where the last group begins (`end` if there is none).
    last_group_start: usize,
    /// The group of the record that should be at `end`.
    pub(super) group: u64,
    /// The log's state there.
    pub(super) state: LogState,
}

/// Walks over the valid records of a segment, until `visit` says no. A record that is valid but
/// does not continue the one before it is damage.
pub(super) fn scan(
    header: &SegmentHeader,
    bytes: &[u8],
    visit: &mut dyn FnMut(usize, &Decoded<'_>) -> bool,
) -> Result<Tail, LogError> {
    let mut tail = Tail {
        end: SEGMENT_HEADER_BYTES,
        last_group_start: SEGMENT_HEADER_BYTES,
        group: header.first_group,
        state: header.state,
    };
    let mut chain = header.chain;
    let mut begins = true;
    while let Some(decoded) =
        bytes.get(tail.end..).and_then(|rest| decode(rest, header.segment, tail.end as u64))
    {
        chain = super::record::chain_after(&bytes[tail.end..], chain);
        if decoded.chain != chain || decoded.group != tail.group {
            let at = tail.end as u64;
            return Err(damaged(header.segment, at, tail.state, Some(decoded)));
        }
        if begins {
            tail.last_group_start = tail.end;
        }
        if !visit(tail.end, &decoded) {
            break;
        }
        tail.end += decoded.bytes;
        tail.state.apply(&decoded.record);
        begins = decoded.last_of_group;
        if begins {
            tail.group = tail.group.max(header.group) + 1;
        }
    }
    Ok(tail)
}

/// The log as far as it was read.
#[derive(Default)]
struct Replay {
    state: LogState,
    index: Index,
    chain: u64,
}

impl Replay {
    /// Takes in one record; `false` if it cannot follow what came before it.
    fn apply(&mut self, decoded: &Decoded<'_>, segment: u64, offset: u64) -> bool {
        match decoded.record {
            Record::Entry { id, .. } => {
                if self.state.next_index().is_some_and(|next| next != id.index) {
                    return false;
                }
                let place = Place { segment, offset, bytes: decoded.bytes as u64 };
                self.index.change(Change::Entry { index: id.index, place });
            }
            Record::TruncateAfter(last_kept) => {
                let kept = index_of(last_kept);
                if kept < index_of(self.state.purged) || kept > index_of(self.state.last) {
                    return false;
                }
                let from = index_of(last_kept).map_or(0, |index| index + 1);
                self.index.change(Change::TruncateFrom(from));
            }
            Record::Purge(upto) => self.index.change(Change::PurgeTo(upto.index)),
            Record::Vote(_) | Record::Committed(_) => {}
        }
        self.state.apply(&decoded.record);
        self.chain = decoded.chain;
        true
    }

    /// A header repeats what the records before it said.
    fn check_header(&self, header: &SegmentHeader) -> Result<(), LogError> {
        if header.state == self.state && header.chain == self.chain {
            Ok(())
        } else {
            Err(damaged(header.segment, 0, self.state, None))
        }
    }

    /// A segment before the head: it must be valid up to the `end` that `next` says.
    fn whole_segment(
        &mut self,
        header: &SegmentHeader,
        bytes: &[u8],
        end: u64,
        next: &SegmentHeader,
    ) -> Result<(), LogError> {
        self.check_header(header)?;
        let tail =
            scan(header, bytes, &mut |at, decoded| self.apply(decoded, header.segment, at as u64))?;
        if tail.end as u64 == end {
            return Ok(());
        }
        let later = find_later(bytes, header.segment, tail.end, tail.group);
        let first_index = next_index(self.state);
        let last_index = later
            .as_ref()
            .and_then(last_lost)
            .or(index_of(next.state.last))
            .unwrap_or(first_index)
            .max(first_index);
        let (segment, offset) = (header.segment, tail.end as u64);
        Err(LogError::Damaged { first_index, last_index, segment, offset })
    }
}
