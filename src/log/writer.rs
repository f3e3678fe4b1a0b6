//! The lane's side: takes what is queued, writes it in sync groups, calls back.
//!
//! A group never crosses a segment: where it does not fit, it begins the next one, in one write
//! and one sync together with that segment's header. The next segment is made while the present
//! one is filling, so that a group does not wait for it and a full disk is met early.
//!
//! *Invariant*: the only writer of segment files after [`start`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::front::{Ask, Call, Ended, Front};
use super::index::{Change, Place};
use super::record::{Record, SEGMENT_HEADER_BYTES, SegmentHeader, push, record_bytes, seal};
use super::recover::{DIR, Recovered, recover, segment_path};
use super::store::{LogMetrics, LogOptions};
use super::{Done, Entry, LogError, LogId, LogState, index_of};
use crate::base::planted::{Bug, planted};
use crate::disk::{Disk, DiskFile};

/// A group is ended when it has this part of a segment, even if more is queued.
const SEGMENT_PART_PER_GROUP: u64 = 4;

/// A segment that is being filled, or is ready to be.
struct Segment {
    number: u64,
    file: Arc<dyn DiskFile>,
    /// What is allocated.
    bytes: u64,
}

/// The lane's own state.
pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    front: Arc<Mutex<Front>>,
    metrics: Arc<LogMetrics>,
    segment: Segment,
    /// Where the next group goes.
    offset: u64,
    spare: Option<Segment>,
    /// Making the next segment failed for this one, and it was said.
    spare_failed_for: u64,
    /// The number of the next group.
    group: u64,
    /// State and chain after all groups that are written: what a header at this point repeats.
    state: LogState,
    chain: u64,
    building: Group,
    /// Reused for what is taken from the queue.
    calls: Vec<Call>,
}

/// The group that is being encoded.
struct Group {
    /// Room for a segment header, then the records.
    buf: Vec<u8>,
    state: LogState,
    chain: u64,
    /// Changes of the index; offsets count from the group's start.
    changes: Vec<Change>,
    /// What to call when it is synced.
    done: Vec<Done>,
    /// The last call that is wholly in it.
    call: u64,
    purges: bool,
}

/// Recovers the log and begins a fresh segment: everything is durable when this returns.
pub(super) fn start(
    disk: Arc<dyn Disk>,
    options: LogOptions,
    metrics: Arc<LogMetrics>,
) -> Result<(Arc<Mutex<Front>>, Writer), LogError> {
    if !disk.exists(DIR)? {
        disk.create_dir(DIR)?;
    }
    disk.sync_dir("")?;
    let mut recovered = recover(&*disk)?;
    for number in &recovered.unused {
        disk.remove(&segment_path(*number))?;
    }
    let (segment, offset) = begin_fresh(&*disk, options, &mut recovered)?;
    for number in &recovered.superseded {
        disk.remove(&segment_path(*number))?;
    }
    let Recovered { state, index, chain, group, segments, .. } = recovered;
    let mut segments: std::collections::BTreeMap<_, _> = segments.into_iter().collect();
    segments.insert(segment.number, segment.file.clone());
    let front = Front::new(state, index, segments, options.cache_bytes_max);
    let front = Arc::new(Mutex::new(front));
    let mut writer = Writer {
        disk,
        options,
        front: front.clone(),
        metrics,
        segment,
        offset,
        spare: None,
        spare_failed_for: 0,
        // One for the last group, one for the header.
        group: group + 2,
        state,
        chain,
        building: Group::new(state, chain),
        calls: Vec::new(),
    };
    writer.unlink_purged();
    Ok((front, writer))
}

/// Writes the last group anew at the start of a fresh segment. Its header is written only when
/// the records are durable: until then the old copy counts, from then on this one.
fn begin_fresh(
    disk: &dyn Disk,
    options: LogOptions,
    recovered: &mut Recovered,
) -> Result<(Segment, u64), LogError> {
    let start = SEGMENT_HEADER_BYTES as u64;
    let number = recovered.next_segment;
    let header = SegmentHeader {
        segment: number,
        previous: recovered.previous,
        previous_end: recovered.previous_end,
        group: recovered.group + 1,
        first_group: recovered.group + if recovered.last_group.is_empty() { 2 } else { 0 },
        chain: recovered.chain,
        state: recovered.state,
    };
    seal(&mut recovered.last_group, recovered.group, number, start);
    recovered.apply_last_group(number, start)?;
    let end = start + recovered.last_group.len() as u64;
    let segment = create_segment(disk, number, options.segment_bytes.max(end))?;
    if !recovered.last_group.is_empty() {
        segment.file.write_at(&recovered.last_group, start)?;
        if !planted(Bug::LastGroupUnsynced) {
            segment.file.sync()?;
        }
    }
    segment.file.write_at(&header.encode(), 0)?;
    segment.file.sync()?;
    Ok((segment, end))
}

/// A new segment of zeros, durable with its name.
fn create_segment(disk: &dyn Disk, number: u64, bytes: u64) -> io::Result<Segment> {
    let path = segment_path(number);
    let file = disk.create(&path)?;
    let made = file.allocate(bytes).and_then(|()| file.sync()).and_then(|()| disk.sync_dir(DIR));
    if let Err(error) = made {
        // Not to leave a full disk fuller; recovery would remove it too.
        if let Err(error) = disk.remove(&path) {
            tracing::warn!(%error, path, "cannot remove an unfinished segment");
        }
        return Err(error);
    }
    Ok(Segment { number, file, bytes })
}

impl Group {
    fn new(state: LogState, chain: u64) -> Group {
        Group {
            buf: vec![0; SEGMENT_HEADER_BYTES],
            state,
            chain,
            changes: Vec::new(),
            done: Vec::new(),
            call: 0,
            purges: false,
        }
    }

    fn bytes(&self) -> u64 {
        (self.buf.len() - SEGMENT_HEADER_BYTES) as u64
    }

    fn push(&mut self, record: &Record<'_>) {
        self.chain = push(&mut self.buf, record, self.chain);
        self.state.apply(record);
    }

    fn entry(&mut self, entry: &Entry) {
        let place = Place {
            segment: 0,
            offset: self.bytes(),
            bytes: record_bytes(entry.payload.len()) as u64,
        };
        self.changes.push(Change::Entry { index: entry.id.index, place });
        self.push(&Record::Entry { id: entry.id, kind: entry.kind, payload: &entry.payload });
    }

    fn truncate_after(&mut self, last_kept: Option<LogId>) {
        let from = index_of(last_kept).map_or(0, |index| index + 1);
        self.changes.push(Change::TruncateFrom(from));
        self.push(&Record::TruncateAfter(last_kept));
    }

    fn purge(&mut self, upto: LogId) {
        self.changes.push(Change::PurgeTo(upto.index));
        self.push(&Record::Purge(upto));
        self.purges = true;
    }
}

impl Writer {
    /// Runs until nothing is queued.
    pub(super) fn run(&mut self) {
        loop {
            let mut calls = std::mem::take(&mut self.calls);
            let (committed, failed) = {
                let mut front = self.front.lock();
                std::mem::swap(&mut calls, &mut front.queue);
                // Not worth a sync of its own, but for the last one.
                let ride = !calls.is_empty() || front.stopped;
                let committed = (ride && front.committed_is_new).then_some(front.state.committed);
                front.committed_is_new &= committed.is_none();
                (committed, front.failed.clone())
            };
            if calls.is_empty() && committed.is_none() {
                self.calls = calls;
                return;
            }
            if let Some(failed) = failed {
                calls.drain(..).for_each(|call| (call.done)(Err(failed.error())));
            } else {
                self.write(&mut calls, committed);
            }
            self.calls = calls;
        }
    }

    /// Writes what was taken from the queue, in one group or, where it is too much, in several.
    fn write(&mut self, calls: &mut Vec<Call>, committed: Option<Option<LogId>>) {
        if planted(Bug::VoteBeforeEntries) {
            calls.sort_by_key(|call| !matches!(call.ask, Ask::Vote(_)));
        }
        for Call { ask, done, number } in calls.drain(..) {
            match ask {
                Ask::Append(entries) => {
                    for entry in &entries {
                        self.make_room(record_bytes(entry.payload.len()) as u64);
                        self.building.entry(entry);
                    }
                }
                Ask::Vote(vote) => self.building.push(&Record::Vote(vote)),
                Ask::TruncateAfter(last_kept) => self.building.truncate_after(last_kept),
                Ask::Purge(upto) => self.building.purge(upto),
            }
            self.building.done.push(done);
            self.building.call = number;
            if planted(Bug::VoteBeforeEntries) {
                self.end_group();
            }
        }
        if let Some(committed) = committed {
            self.building.push(&Record::Committed(committed));
        }
        self.end_group();
    }

    /// Ends the group if a record of `bytes` would make it too large.
    fn make_room(&mut self, bytes: u64) {
        let bytes_max = self.options.segment_bytes / SEGMENT_PART_PER_GROUP;
        let have = self.building.bytes();
        if have > 0 && have + bytes > bytes_max {
            self.end_group();
        }
    }

    /// Writes and syncs the group, then calls back. After a failure it only calls back.
    fn end_group(&mut self) {
        let mut ended = self.front.lock().failed.clone();
        if ended.is_none()
            && let Err(error) = self.write_group()
        {
            tracing::error!(%error, "the Raft log cannot be written");
            ended = Some(Ended::failed(&error));
            self.front.lock().failed.clone_from(&ended);
        }
        let purges = std::mem::take(&mut self.building.purges);
        self.building.buf.truncate(SEGMENT_HEADER_BYTES);
        self.building.changes.clear();
        for done in self.building.done.drain(..) {
            match &ended {
                None => done(Ok(())),
                Some(ended) => done(Err(ended.error())),
            }
        }
        if ended.is_none() {
            if purges {
                self.unlink_purged();
            }
            self.make_spare();
        }
    }

    fn write_group(&mut self) -> io::Result<()> {
        let bytes = self.building.bytes();
        if bytes > 0 {
            if self.offset + bytes > self.segment.bytes {
                self.begin_segment(bytes)?;
            } else {
                let buf = &mut self.building.buf[SEGMENT_HEADER_BYTES..];
                let records = seal(buf, self.group, self.segment.number, self.offset);
                self.segment.file.write_at(buf, self.offset)?;
                self.sync_group(records)?;
            }
        }
        let Group { state, chain, .. } = self.building;
        (self.state, self.chain) = (state, chain);
        let mut front = self.front.lock();
        for mut change in self.building.changes.drain(..) {
            if let Change::Entry { place, .. } = &mut change {
                place.segment = self.segment.number;
                place.offset += self.offset;
            }
            front.index.change(change);
        }
        front.written(self.building.call);
        self.offset += bytes;
        Ok(())
    }

    /// Makes the spare segment the present one and writes the group there behind its header.
    fn begin_segment(&mut self, group_bytes: u64) -> io::Result<()> {
        let start = SEGMENT_HEADER_BYTES as u64;
        let bytes = self.options.segment_bytes.max(start + group_bytes);
        let mut next = match self.spare.take() {
            Some(spare) => spare,
            None => create_segment(&*self.disk, self.segment.number + 1, bytes)?,
        };
        if next.bytes < bytes {
            next.file.allocate(bytes)?;
            next.bytes = bytes;
        }
        let header = SegmentHeader {
            segment: next.number,
            previous: self.segment.number,
            previous_end: self.offset,
            group: self.group,
            first_group: self.group,
            chain: self.chain,
            state: self.state,
        };
        self.building.buf[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
        let buf = &mut self.building.buf[SEGMENT_HEADER_BYTES..];
        let records = seal(buf, self.group, next.number, start);
        next.file.write_at(&self.building.buf, 0)?;
        self.front.lock().segments.insert(next.number, next.file.clone());
        self.segment = next;
        self.offset = start;
        self.sync_group(records)
    }

    fn sync_group(&mut self, records: u64) -> io::Result<()> {
        let unsynced = planted(Bug::AckBeforeSync)
            || planted(Bug::VoteNotSynced) && self.building.changes.is_empty();
        if !unsynced
            && let Err(error) = self.segment.file.sync()
            && !planted(Bug::SyncErrorIgnored)
        {
            return Err(error);
        }
        self.group += 1;
        let metrics = &self.metrics;
        metrics.groups.fetch_add(1, Ordering::Relaxed);
        metrics.records.fetch_add(records, Ordering::Relaxed);
        metrics.bytes.fetch_add(self.building.bytes(), Ordering::Relaxed);
        metrics.group_records_max.fetch_max(records, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the next segment when the present one is near to half full. A full disk is no
    /// failure yet: it is tried again with each group, until the segment is needed.
    fn make_spare(&mut self) {
        // A group may take a quarter, so that this is before the half is written.
        if self.spare.is_some() || self.offset < self.segment.bytes / SEGMENT_PART_PER_GROUP {
            return;
        }
        let number = self.segment.number + 1;
        match create_segment(&*self.disk, number, self.options.segment_bytes) {
            Ok(spare) => self.spare = Some(spare),
            Err(error) => {
                self.metrics.spare_failures.fetch_add(1, Ordering::Relaxed);
                if self.spare_failed_for != number {
                    tracing::warn!(%error, "cannot make the next segment of the Raft log yet");
                    self.spare_failed_for = number;
                }
            }
        }
    }

    /// Removes segments before the first entry that is kept. The purge is durable.
    fn unlink_purged(&mut self) {
        let mut front = self.front.lock();
        let first = front.index.first().and_then(|index| front.index.get(index));
        let needed = first.map_or(self.segment.number, |place| place.segment);
        let kept = front.segments.split_off(&needed);
        let gone = std::mem::replace(&mut front.segments, kept);
        drop(front);
        for number in gone.keys() {
            if let Err(error) = self.disk.remove(&segment_path(*number)) {
                // It is tried again at the next start.
                tracing::warn!(%error, segment = number, "cannot remove a purged segment");
            }
        }
    }
}
