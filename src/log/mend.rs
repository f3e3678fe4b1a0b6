//! Mends a damaged log where it can be proved what stood there.
//!
//! What is lost lies in a *gap*: so many bytes of one segment, behind a good record and before the
//! next good thing (a record, or the header of the segment that follows). The hash chain covers
//! every record, votes and truncations included, and what is behind the gap says what the chain
//! must be there. So records that fill the gap to the byte *and* lead the chain from one side to
//! the other are those that were written, and no others; with them in its place the segment is
//! what it was. Where they come from does not matter: from a peer (entries), from trying (a single
//! byte that changed; a record of the committed index, of which there are few to choose from). A
//! search tries [`SEARCH_BYTES_MAX`] at most, so that an accident of 64 bits is not to be feared.
//!
//! What cannot be proved is not mended: a vote that nobody remembers must not be given twice. The
//! reasons are in docs/decisions/0011-a-damaged-log-is-mended-by-proof.md.
//!
//! The segment as it was found is kept under [`KEPT_DIR`], a few of them at most.
//!
//! *Invariant*: a segment is replaced whole, by one rename, and only by one whose chain fits the
//! good records on both sides of what was lost.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::record::{
    ALIGN_BYTES, Decoded, RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES, SegmentHeader,
    chain_after, decode, find, push, record_bytes, seal, seal_one,
};
use super::recover::{DIR, read, read_header, scan, segment_number, segment_path};
use super::{Entry, EntryKind, LogError, LogId, LogState, Vote, index_of};
use crate::disk::{self, Disk};

/// Where damaged segments are kept, as they were found.
pub const KEPT_DIR: &str = "log/damaged";

/// So many of them; then the oldest goes.
const KEPT_MAX: usize = 8;

/// Up to this length, a gap is searched for a single byte that changed.
const PATCH_BYTES_MAX: usize = SEGMENT_HEADER_BYTES;

/// A search for what fills a gap hashes about this much at most.
const SEARCH_BYTES_MAX: u64 = 256 << 20;

/// ... and looks for at most so many records that no peer has.
const SHORT_RECORDS_MAX: usize = 4;

/// What can be done about a damage.
pub enum Mend {
    /// It is mended; the log is to be opened again.
    Done(Mended),
    /// Entries from a peer may mend it.
    Needs(Box<Gap>),
    /// Nothing can be proved of what stood there.
    Unprovable,
}

/// What was mended.
#[derive(Debug)]
pub struct Mended {
    /// What was put back, in words.
    pub what: String,
    /// Where the segment as it was found is kept.
    pub kept: String,
}

/// Where something is missing, and what is known on its both sides.
pub struct Gap {
    segment: u64,
    /// The whole segment, as it is.
    bytes: Vec<u8>,
    lost: Range<usize>,
    header: SegmentHeader,
    /// The log before the gap, and the group that its first record should have.
    state: LogState,
    chain: u64,
    group: u64,
    /// Entries before the gap that may have been found committed in it.
    uncommitted: Vec<LogId>,
    behind: Behind,
    /// The entry that comes behind the gap, where that is known.
    next_entry: Option<u64>,
    /// Votes that are remembered on either side.
    votes: Vec<Vote>,
}

/// The first good thing behind a gap.
enum Behind {
    Record { group: u64, chain: u64 },
    Segment(SegmentHeader),
}

/// Looks at the damage at `offset` of `segment` that [`super::Log::open`] has found, and mends it
/// if nobody has to be asked.
pub fn examine(disk: &dyn Disk, segment: u64, offset: u64) -> Result<Mend, LogError> {
    if let Some(mended) = mend_header(disk)? {
        return Ok(Mend::Done(mended));
    }
    let gap = find_gap(disk, segment, offset)?;
    if let Some(gap) = &gap {
        if let Some(bytes) = gap.patched() {
            let mended = replace(disk, segment, &bytes, "a byte that had changed")?;
            return Ok(Mend::Done(mended));
        }
        if let Some(mended) = gap.mend(disk, &[])? {
            return Ok(Mend::Done(mended));
        }
    }
    if let Some(bytes) = copied_again(disk, segment)? {
        let mended = replace(disk, segment, &bytes, "a group of which a copy was left")?;
        return Ok(Mend::Done(mended));
    }
    match gap.filter(|gap| !gap.needs().is_empty()) {
        Some(gap) => Ok(Mend::Needs(Box::new(gap))),
        None => Ok(Mend::Unprovable),
    }
}

/// The newest membership entry of those that can be read: where peers may be found.
pub fn newest_membership(disk: &dyn Disk) -> Result<Option<Entry>, LogError> {
    let mut newest: Option<Entry> = None;
    for number in segments(disk)? {
        let bytes = read(&*disk.open(&segment_path(number))?, None)?;
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some((place, decoded)) = find(&bytes, number, at, |_| true) {
            if let Record::Entry { id, kind: EntryKind::Membership, payload } = decoded.record
                && newest.as_ref().is_none_or(|newest| newest.id < id)
            {
                let payload = Bytes::copy_from_slice(payload);
                newest = Some(Entry { id, kind: EntryKind::Membership, payload });
            }
            at = place + decoded.bytes;
        }
    }
    Ok(newest)
}

fn segments(disk: &dyn Disk) -> Result<Vec<u64>, LogError> {
    Ok(disk.list(DIR)?.iter().filter_map(|name| segment_number(name)).collect())
}

/// Mends the header of a segment of which a single byte changed, if there is one.
fn mend_header(disk: &dyn Disk) -> Result<Option<Mended>, LogError> {
    for number in segments(disk)? {
        let file = disk.open(&segment_path(number))?;
        if read_header(&*file, number)?.is_some() {
            continue;
        }
        let mut bytes = read(&*file, None)?;
        if let Some(header) = patched_header(&bytes, number) {
            bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&header);
            let what = "a byte of a segment's header that had changed";
            return Ok(Some(replace(disk, number, &bytes, what)?));
        }
    }
    Ok(None)
}

/// The one header, a byte away from what is there, that fits the first record behind it.
fn patched_header(bytes: &[u8], number: u64) -> Option<[u8; SEGMENT_HEADER_BYTES]> {
    let first = bytes.get(SEGMENT_HEADER_BYTES..)?;
    let decoded = decode(first, number, SEGMENT_HEADER_BYTES as u64)?;
    let mut fits = each_patch(&bytes[..SEGMENT_HEADER_BYTES], |patched| {
        SegmentHeader::decode(patched).is_ok_and(|header| {
            header.segment == number
                && header.first_group == decoded.group
                && chain_after(first, header.chain) == decoded.chain
        })
    });
    match (fits.pop(), fits.is_empty()) {
        (Some(header), true) => header.try_into().ok(),
        _ => None,
    }
}

/// All ways to change one byte of `bytes` after which it is `good`.
fn each_patch(bytes: &[u8], good: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut work = bytes.to_vec();
    let mut found = Vec::new();
    for at in 0..work.len() {
        for change in 1..=u8::MAX {
            work[at] ^= change;
            if good(&work) {
                found.push(work.clone());
            }
            work[at] ^= change;
        }
    }
    found
}

/// A start writes the last group anew into a fresh segment. When that copy is lost and nothing was
/// written since, the one before it is still there, behind what counts of the segment before: the
/// fresh segment with the group copied once more.
fn copied_again(disk: &dyn Disk, segment: u64) -> Result<Option<Vec<u8>>, LogError> {
    if !disk.exists(&segment_path(segment))? {
        return Ok(None);
    }
    let file = disk.open(&segment_path(segment))?;
    let Some(header) = read_header(&*file, segment)? else { return Ok(None) };
    let path = segment_path(header.previous);
    if header.group <= header.first_group || !disk.exists(&path)? {
        return Ok(None);
    }
    let mut bytes = read(&*file, None)?;
    let before = read(&*disk.open(&path)?, None)?;
    let mut at = usize::try_from(header.previous_end).unwrap_or(usize::MAX);
    let (mut group, mut chain) = (Vec::new(), header.chain);
    loop {
        let decoded = before.get(at..).and_then(|rest| decode(rest, header.previous, at as u64));
        let Some(decoded) = decoded else { return Ok(None) };
        chain = push(&mut group, &decoded.record, chain);
        if chain != decoded.chain {
            return Ok(None);
        }
        at += decoded.bytes;
        if decoded.last_of_group {
            break;
        }
    }
    seal(&mut group, header.first_group, segment, SEGMENT_HEADER_BYTES as u64);
    let end = SEGMENT_HEADER_BYTES + group.len();
    if bytes.get(end..).is_none_or(|rest| rest.iter().any(|byte| *byte != 0)) {
        return Ok(None);
    }
    bytes[SEGMENT_HEADER_BYTES..end].copy_from_slice(&group);
    Ok(Some(bytes))
}

/// The gap at `offset` of `segment`; none where the damage is of another kind.
fn find_gap(disk: &dyn Disk, segment: u64, offset: u64) -> Result<Option<Gap>, LogError> {
    let numbers = segments(disk)?;
    if !numbers.contains(&segment) {
        return Ok(None);
    }
    let file = disk.open(&segment_path(segment))?;
    let Some(header) = read_header(&*file, segment)? else { return Ok(None) };
    let bytes = read(&*file, None)?;
    let mut next = None;
    for number in numbers.into_iter().filter(|number| *number > segment) {
        let header = read_header(&*disk.open(&segment_path(number))?, number)?;
        next = header.filter(|header| header.previous == segment).or(next);
    }
    let limit = next.map_or(u64::MAX, |next| next.previous_end);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(bytes.len());
    let (mut chain, mut ids) = (header.chain, Vec::from_iter(header.state.last));
    let scanned = scan(&header, &bytes[..limit], &mut |_, decoded| {
        chain = decoded.chain;
        match decoded.record {
            Record::Entry { id, .. } => ids.push(id),
            Record::TruncateAfter(kept) => ids.retain(|id| Some(id.index) <= index_of(kept)),
            _ => {}
        }
        true
    });
    let Ok(tail) = scanned else { return Ok(None) };
    if tail.end as u64 != offset {
        return Ok(None);
    }
    let (end, behind) = match find(&bytes[..limit], segment, tail.end + ALIGN_BYTES, |_| true) {
        Some((at, Decoded { group, chain, .. })) => (at, Behind::Record { group, chain }),
        None => match next {
            Some(next) if limit > tail.end => (limit, Behind::Segment(next)),
            _ => return Ok(None),
        },
    };
    let (next_entry, votes) = look_behind(&bytes[..limit], segment, end, next.as_ref());
    ids.retain(|id| Some(id.index) > index_of(tail.state.committed));
    Ok(Some(Gap {
        segment,
        lost: tail.end..end,
        header,
        state: tail.state,
        chain,
        group: tail.group,
        uncommitted: ids,
        behind,
        next_entry,
        votes: votes.into_iter().chain(tail.state.vote).collect(),
        bytes,
    }))
}

/// What the good records from `at` on tell of what is before them: the first entry, and votes.
fn look_behind(
    bytes: &[u8],
    segment: u64,
    mut at: usize,
    next: Option<&SegmentHeader>,
) -> (Option<u64>, Vec<Vote>) {
    let mut votes = Vec::from_iter(next.and_then(|next| next.state.vote));
    while let Some(decoded) = bytes.get(at..).and_then(|rest| decode(rest, segment, at as u64)) {
        match decoded.record {
            Record::Entry { id, .. } => return (Some(id.index), votes),
            Record::TruncateAfter(_) => return (None, votes),
            Record::Vote(vote) => votes.push(vote),
            Record::Purge(_) | Record::Committed(_) => {}
        }
        at += decoded.bytes;
    }
    let at_the_end = at == bytes.len();
    (next.filter(|_| at_the_end).map(|next| next.state.next_index().unwrap_or(0)), votes)
}

impl Gap {
    /// The entries that may have stood there.
    pub fn needs(&self) -> Range<u64> {
        let first = self.state.next_index().unwrap_or(0);
        let most = first + (self.lost.len() / RECORD_HEADER_BYTES) as u64;
        first..self.next_entry.unwrap_or(u64::MAX).min(most)
    }

    /// Bytes that are lost: entries beyond that are not needed.
    pub fn bytes_lost(&self) -> usize {
        self.lost.len()
    }

    /// Puts back what was lost, if these entries make it whole: the first is [`Gap::needs`]'s, the
    /// others follow. Whether they do.
    pub fn mend(&self, disk: &dyn Disk, entries: &[Entry]) -> io::Result<Option<Mended>> {
        let Some(records) = self.search(entries) else { return Ok(None) };
        let (count, others) = records.iter().fold((0, 0), |(entries, others), record| {
            let entry = usize::from(matches!(record, Record::Entry { .. }));
            (entries + entry, others + 1 - entry)
        });
        let Some(bytes) = self.filled(&records) else { return Ok(None) };
        let what = format!("entries: {count}, other records: {others}");
        replace(disk, self.segment, &bytes, &what).map(Some)
    }

    /// The segment with one byte changed in the gap, if that mends it.
    fn patched(&self) -> Option<Vec<u8>> {
        let Range { start, end } = self.lost;
        if self.lost.len() > PATCH_BYTES_MAX {
            return None;
        }
        let mut fits = each_patch(&self.bytes[start..end], |patched| {
            let Some(decoded) = decode(patched, self.segment, start as u64) else { return false };
            let mut state = self.state;
            state.apply(&decoded.record);
            decoded.bytes == patched.len()
                && chain_after(patched, self.chain) == decoded.chain
                && self.leads_on(decoded.chain, state)
        });
        let (Some(record), true) = (fits.pop(), fits.is_empty()) else { return None };
        Some([&self.bytes[..start], &record, &self.bytes[end..]].concat())
    }

    /// Whether what is behind the gap goes on from here.
    fn leads_on(&self, chain: u64, state: LogState) -> bool {
        match &self.behind {
            Behind::Record { chain: after, .. } => {
                chain_after(&self.bytes[self.lost.end..], chain) == *after
            }
            Behind::Segment(next) => next.chain == chain && next.state == state,
        }
    }

    /// The records that fill the gap, made of these entries and what else may have been there.
    fn search<'a>(&'a self, entries: &'a [Entry]) -> Option<Vec<Record<'a>>> {
        let first = self.needs().start;
        if entries.iter().zip(first..).any(|(entry, index)| entry.id.index != index) {
            return None;
        }
        let mut search = Search {
            gap: self,
            entries: &[],
            bytes_left: SEARCH_BYTES_MAX,
            path: Vec::new(),
            scratch: Vec::new(),
        };
        let all = self.next_entry.map(|next| next.saturating_sub(first));
        let mut room = self.lost.len();
        for used in 0..=entries.len() {
            let exact = all.is_none_or(|all| all == used as u64);
            let short = room / RECORD_HEADER_BYTES;
            if exact && room.is_multiple_of(RECORD_HEADER_BYTES) && short <= SHORT_RECORDS_MAX {
                search.entries = &entries[..used];
                if search.run(0, self.chain, self.state, short) {
                    return Some(search.path);
                }
            }
            let Some(entry) = entries.get(used) else { break };
            room = room.checked_sub(record_bytes(entry.payload.len()))?;
        }
        None
    }

    /// The segment with these records in the gap.
    fn filled(&self, records: &[Record<'_>]) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        let (mut at, mut chain, mut group) = (self.lost.start, self.chain, self.group);
        // How many groups end in the gap is known, where does not matter: all of it was synced.
        let next_group = |group: u64| group.max(self.header.group) + 1;
        let mut ends = match self.behind {
            Behind::Segment(_) => 1,
            Behind::Record { group: behind, .. } => {
                let mut ends = 0;
                let mut reached = group;
                while reached < behind {
                    reached = next_group(reached);
                    ends += 1;
                }
                (reached == behind).then_some(ends)?
            }
        };
        for (i, record) in records.iter().enumerate() {
            let mut buf = Vec::new();
            chain = push(&mut buf, record, chain);
            let last = records.len() - i <= ends;
            seal_one(&mut buf, group, last, self.segment, at as u64);
            bytes[at..at + buf.len()].copy_from_slice(&buf);
            at += buf.len();
            if last {
                group = next_group(group);
                ends -= 1;
            }
        }
        (ends == 0 && at == self.lost.end).then_some(bytes)
    }
}

/// Looks for records that lead the chain through a gap.
struct Search<'a> {
    gap: &'a Gap,
    /// All of these are among them.
    entries: &'a [Entry],
    bytes_left: u64,
    /// What has been tried so far.
    path: Vec<Record<'a>>,
    scratch: Vec<u8>,
}

impl<'a> Search<'a> {
    /// Goes on behind `next` entries, with `short` records without a payload still to be placed.
    fn run(&mut self, mut next: usize, mut chain: u64, mut state: LogState, short: usize) -> bool {
        let start = self.path.len();
        loop {
            if short > 0 {
                for record in self.candidates(next, state) {
                    let Some(after) = self.step(&record, chain) else { return false };
                    let mut then = state;
                    then.apply(&record);
                    self.path.push(record);
                    if self.run(next, after, then, short - 1) {
                        return true;
                    }
                    self.path.pop();
                }
            }
            let Some(Entry { id, kind, payload }) = self.entries.get(next) else { break };
            let record = Record::Entry { id: *id, kind: *kind, payload };
            let Some(after) = self.step(&record, chain) else { return false };
            chain = after;
            state.apply(&record);
            self.path.push(record);
            next += 1;
        }
        if short == 0 && self.gap.leads_on(chain, state) {
            return true;
        }
        self.path.truncate(start);
        false
    }

    /// The chain after one more record; `None` when enough was tried.
    fn step(&mut self, record: &Record<'_>, chain: u64) -> Option<u64> {
        self.scratch.clear();
        let chain = push(&mut self.scratch, record, chain);
        self.bytes_left = self.bytes_left.checked_sub(self.scratch.len() as u64)?;
        Some(chain)
    }

    /// The records without a payload that may stand behind `next` entries.
    fn candidates(&self, next: usize, state: LogState) -> Vec<Record<'a>> {
        let lost = self.entries[..next].iter().map(|entry| entry.id);
        let committed = lost.rev().chain(self.gap.uncommitted.iter().rev().copied());
        let committed = committed
            .filter(|id| Some(id.index) > index_of(state.committed))
            .map(|id| Record::Committed(Some(id)));
        let votes = self.gap.votes.iter().flat_map(|vote| {
            [false, true].map(|committed| Record::Vote(Vote { committed, ..*vote }))
        });
        votes.chain(committed).collect()
    }
}

/// Keeps the segment as it is aside, then puts `bytes` in its place.
fn replace(disk: &dyn Disk, segment: u64, bytes: &[u8], what: &str) -> io::Result<Mended> {
    let path = segment_path(segment);
    let kept = keep_aside(disk, segment, &disk::read_all(disk, &path)?)?;
    disk::replace(disk, &path, bytes)?;
    Ok(Mended { what: what.to_owned(), kept })
}

fn keep_aside(disk: &dyn Disk, segment: u64, bytes: &[u8]) -> io::Result<String> {
    disk.create_dir(KEPT_DIR)?;
    disk.sync_dir(DIR)?;
    let names = disk.list(KEPT_DIR)?;
    let gone = (names.len() + 1).saturating_sub(KEPT_MAX);
    for name in &names[..gone] {
        tracing::warn!(file = %format!("{KEPT_DIR}/{name}"), "removed the oldest damaged segment kept");
        disk.remove(&format!("{KEPT_DIR}/{name}"))?;
    }
    let name = (0..).map(|n: u32| format!("{segment:016x}-{n:08}"));
    let name = name.into_iter().find(|name| !names.contains(name)).unwrap_or_default();
    let path = format!("{KEPT_DIR}/{name}");
    disk::replace(disk, &path, bytes)?;
    Ok(path)
}
