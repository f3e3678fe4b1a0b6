//! What callers see and share with the lane, under one lock that is held for moments only: the
//! state with everything that was called, the queue to the lane, the newest entries, and where
//! the older ones are.
//!
//! *Invariant*: an entry that is not yet written is in the cache.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use super::index::{Index, Place};
use super::{Done, Entry, LogId, LogState, Vote, index_of};
use crate::disk::DiskFile;

/// What an entry in the cache costs beside its payload.
const CACHED_ENTRY_BYTES: usize = 96;

/// What the lane is asked to write.
pub(super) enum Ask {
    Append(Vec<Entry>),
    Vote(Vote),
    TruncateAfter(Option<LogId>),
    Purge(LogId),
}

/// One call, as queued.
pub(super) struct Call {
    pub ask: Ask,
    pub done: Done,
    /// Counts up from 1.
    pub number: u64,
}

/// Why the log takes no more calls.
#[derive(Clone)]
pub(super) struct Ended {
    kind: io::ErrorKind,
    text: String,
}

impl Ended {
    pub(super) fn failed(error: &io::Error) -> Ended {
        let text = format!("the Raft log takes nothing more, for a write to it failed: {error}");
        Ended { kind: error.kind(), text }
    }

    fn stopped() -> Ended {
        Ended { kind: io::ErrorKind::BrokenPipe, text: "the Raft log is stopped".to_owned() }
    }

    pub(super) fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

struct Cached {
    entry: Entry,
    /// The call that appended it.
    call: u64,
}

/// Entries of a read: places of the older ones, then the newer ones themselves.
#[derive(Default)]
pub(super) struct Found {
    pub places: Vec<(u64, Place, Arc<dyn DiskFile>)>,
    pub cached: Vec<Entry>,
}

pub(super) struct Front {
    pub state: LogState,
    pub queue: Vec<Call>,
    /// `state.committed` has not been given to the lane.
    pub committed_is_new: bool,
    pub failed: Option<Ended>,
    pub stopped: bool,
    /// The highest index that may be purged.
    pub purge_limit: Option<u64>,
    pub index: Index,
    pub segments: BTreeMap<u64, Arc<dyn DiskFile>>,
    calls: u64,
    /// Calls up to this one are written and synced.
    calls_written: u64,
    cache: VecDeque<Cached>,
    cache_bytes: usize,
    cache_bytes_max: usize,
}

impl Front {
    pub(super) fn new(
        state: LogState,
        index: Index,
        segments: BTreeMap<u64, Arc<dyn DiskFile>>,
        cache_bytes_max: usize,
    ) -> Front {
        Front {
            state,
            queue: Vec::new(),
            committed_is_new: false,
            failed: None,
            stopped: false,
            purge_limit: None,
            index,
            segments,
            calls: 0,
            calls_written: 0,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
        }
    }

    /// Why no more calls are taken, if none are.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.failed.clone().or_else(|| self.stopped.then(Ended::stopped))
    }

    /// Takes a call in, if it makes sense; otherwise gives `done` back with the reason.
    pub(super) fn call(&mut self, ask: Ask, done: Done) -> Result<(), (Done, io::Error)> {
        if let Some(ended) = self.ended() {
            return Err((done, ended.error()));
        }
        if let Err(refusal) = self.check(&ask) {
            return Err((done, io::Error::new(io::ErrorKind::InvalidInput, refusal)));
        }
        self.calls += 1;
        match &ask {
            Ask::Append(entries) => {
                self.cache.reserve(entries.len());
                for entry in entries {
                    self.cache_bytes += cached_bytes(entry);
                    self.cache.push_back(Cached { entry: entry.clone(), call: self.calls });
                }
                if let Some(last) = entries.last() {
                    self.state.last = Some(last.id);
                }
            }
            Ask::Vote(vote) => self.state.vote = Some(*vote),
            Ask::TruncateAfter(last_kept) => {
                self.state.apply(&super::record::Record::TruncateAfter(*last_kept));
                let keep = index_of(*last_kept);
                while let Some(last) = self.cache.back()
                    && Some(last.entry.id.index) > keep
                {
                    self.cache_bytes -= cached_bytes(&last.entry);
                    self.cache.pop_back();
                }
            }
            Ask::Purge(upto) => {
                self.state.apply(&super::record::Record::Purge(*upto));
                while let Some(first) = self.cache.front()
                    && first.entry.id.index <= upto.index
                {
                    self.cache_bytes -= cached_bytes(&first.entry);
                    self.cache.pop_front();
                }
            }
        }
        self.queue.push(Call { ask, done, number: self.calls });
        Ok(())
    }

    /// Whether a call can follow what came before it.
    fn check(&self, ask: &Ask) -> Result<(), String> {
        match ask {
            Ask::Append(entries) => {
                let mut next = self.state.next_index();
                for entry in entries {
                    if entry.id.index >= super::record::COUNT_END {
                        return Err(format!("entry {}: no log goes so far", entry.id.index));
                    }
                    if next.is_some_and(|next| next != entry.id.index) {
                        let (got, next) = (entry.id.index, next.unwrap_or(0));
                        return Err(format!(
                            "entry {got} appended to a log that goes on at {next}"
                        ));
                    }
                    if entry.payload.len() > super::record::PAYLOAD_BYTES_MAX {
                        return Err(format!("entry {} is too large", entry.id.index));
                    }
                    next = Some(entry.id.index + 1);
                }
                Ok(())
            }
            Ask::Vote(_) => Ok(()),
            Ask::TruncateAfter(last_kept) => {
                let kept = index_of(*last_kept);
                if kept < index_of(self.state.purged) {
                    return Err(format!("the log was purged beyond entry {last_kept:?}"));
                }
                if kept > index_of(self.state.last) {
                    return Err(format!("the log ends before entry {last_kept:?}"));
                }
                Ok(())
            }
            Ask::Purge(upto) if Some(upto.index) <= index_of(self.state.purged) => Ok(()),
            Ask::Purge(upto) if Some(upto.index) > self.purge_limit => Err(format!(
                "entry {} cannot be purged: the durable checkpoint covers {}",
                upto.index,
                self.purge_limit.map_or("none".to_owned(), |max| format!("those up to {max}"))
            )),
            Ask::Purge(upto) if upto.index >= super::record::COUNT_END => {
                Err(format!("a purge up to entry {}: no log goes so far", upto.index))
            }
            Ask::Purge(_) => Ok(()),
        }
    }

    /// The lane has written and synced all calls up to this one.
    pub(super) fn written(&mut self, call: u64) {
        self.calls_written = self.calls_written.max(call);
        while self.cache_bytes > self.cache_bytes_max
            && let Some(oldest) = self.cache.front()
            && oldest.call <= self.calls_written
        {
            self.cache_bytes -= cached_bytes(&oldest.entry);
            self.cache.pop_front();
        }
    }

    /// The entries from `from` on, up to about `bytes_max`, at least one if there is one.
    pub(super) fn find(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Found {
        let mut found = Found::default();
        let purged = index_of(self.state.purged);
        let to = self.state.next_index().unwrap_or(0).min(to_exclusive);
        if Some(from) <= purged || from >= to {
            return found;
        }
        let cached_from = self.cache.front().map_or(to, |oldest| oldest.entry.id.index);
        let mut bytes = 0_usize;
        for index in from..to.min(cached_from) {
            let Some(place) = self.index.get(index) else { return found };
            let Some(file) = self.segments.get(&place.segment) else { return found };
            bytes = bytes.saturating_add(usize::try_from(place.bytes).unwrap_or(usize::MAX));
            if bytes > bytes_max && !found.places.is_empty() {
                return found;
            }
            found.places.push((index, place, file.clone()));
        }
        let skip = usize::try_from(from.saturating_sub(cached_from)).unwrap_or(usize::MAX);
        for Cached { entry, .. } in self.cache.iter().skip(skip) {
            bytes = bytes.saturating_add(super::record::record_bytes(entry.payload.len()));
            let some = !found.places.is_empty() || !found.cached.is_empty();
            if entry.id.index >= to || (bytes > bytes_max && some) {
                break;
            }
            found.cached.push(entry.clone());
        }
        found
    }

    /// Bytes of the records of the entries from `index` on.
    pub(super) fn bytes_since(&self, index: u64) -> u64 {
        // Entries on their way to the disk are few beside those that are there.
        let on_their_way = self.cache.iter().rev();
        let on_their_way = on_their_way
            .take_while(|cached| cached.call > self.calls_written && cached.entry.id.index >= index)
            .filter(|cached| self.index.get(cached.entry.id.index).is_none())
            .map(|cached| super::record::record_bytes(cached.entry.payload.len()) as u64);
        self.index.bytes_since(index) + on_their_way.sum::<u64>()
    }
}

fn cached_bytes(entry: &Entry) -> usize {
    entry.payload.len() + CACHED_ENTRY_BYTES
}
