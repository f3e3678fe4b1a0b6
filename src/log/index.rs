//! Where each entry is: index to segment, offset and length, 16 bytes per entry.
//!
//! *Invariant*: holds consecutive entries, and only such as were written.

use std::collections::VecDeque;

/// Where one entry's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    segment: u32,
    offset: u32,
    /// Bytes of all records pushed before it and not truncated.
    bytes_before: u64,
}

/// A change of the index by one record of the stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// An entry was written.
    Entry { index: u64, place: Place },
    /// Entries from here on are dropped.
    TruncateFrom(u64),
    /// Entries up to here are dropped.
    PurgeTo(u64),
}

/// The places of consecutive entries.
#[derive(Default)]
pub(super) struct Index {
    first: u64,
    slots: VecDeque<Slot>,
    bytes_end: u64,
}

impl Index {
    /// The first entry held, if any.
    pub(super) fn first(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    pub(super) fn change(&mut self, change: Change) {
        match change {
            Change::Entry { index, place } => self.push(index, place),
            Change::TruncateFrom(index) => self.truncate_from(index),
            Change::PurgeTo(index) => self.purge_to(index),
        }
    }

    fn push(&mut self, index: u64, place: Place) {
        if self.slots.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.first + self.slots.len() as u64);
        // Segments are numbered by the thousands and sized by the megabyte.
        let segment = u32::try_from(place.segment).unwrap_or(u32::MAX);
        let offset = u32::try_from(place.offset).unwrap_or(u32::MAX);
        self.slots.push_back(Slot { segment, offset, bytes_before: self.bytes_end });
        self.bytes_end += place.bytes;
    }

    fn truncate_from(&mut self, index: u64) {
        let keep = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(slot) = self.slots.get(keep) {
            self.bytes_end = slot.bytes_before;
            self.slots.truncate(keep);
        }
    }

    fn purge_to(&mut self, index: u64) {
        if index < self.first {
            return;
        }
        let gone = usize::try_from(index + 1 - self.first).unwrap_or(usize::MAX);
        let gone = gone.min(self.slots.len());
        self.slots.drain(..gone);
        self.first += gone as u64;
    }

    pub(super) fn get(&self, index: u64) -> Option<Place> {
        let i = usize::try_from(index.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get(i)?;
        let end = self.slots.get(i + 1).map_or(self.bytes_end, |next| next.bytes_before);
        Some(Place {
            segment: slot.segment.into(),
            offset: slot.offset.into(),
            bytes: end - slot.bytes_before,
        })
    }

    /// Bytes of the records from `index` (or the first held) to the end.
    pub(super) fn bytes_since(&self, index: u64) -> u64 {
        let i = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.slots.get(i).map_or(0, |slot| self.bytes_end - slot.bytes_before)
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Index, Place};

    #[test]
    fn places_and_sums_follow_the_changes() {
        let mut index = Index::default();
        let place = |offset: u64, bytes: u64| Place { segment: 1, offset, bytes };
        for i in 0..10 {
            index.change(Change::Entry { index: 5 + i, place: place(100 * i, 10 + i) });
        }
        assert_eq!(index.get(7), Some(place(200, 12)));
        assert_eq!((index.get(4), index.get(15)), (None, None));
        assert_eq!(index.bytes_since(13), 18 + 19);
        index.change(Change::TruncateFrom(12));
        index.change(Change::Entry { index: 12, place: place(2000, 50) });
        assert_eq!((index.get(12), index.get(13)), (Some(place(2000, 50)), None));
        index.change(Change::PurgeTo(10));
        assert_eq!((index.first(), index.get(10)), (Some(11), None));
        assert_eq!(index.bytes_since(0), 16 + 50);
        index.change(Change::PurgeTo(99));
        assert_eq!((index.first(), index.bytes_since(0)), (None, 0));
        index.change(Change::Entry { index: 100, place: place(0, 8) });
        assert_eq!(index.get(100), Some(place(0, 8)));
    }
}
