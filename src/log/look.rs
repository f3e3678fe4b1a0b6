//! A log that is looked at and not opened: nothing is written, so nothing is made durable either,
//! and what is seen is what an opening would find.
//!
//! *Invariant*: changes nothing on the disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::index::Index;
use super::record::{Record, SEGMENT_HEADER_BYTES, decode, seal};
use super::recover::{Recovered, recover};
use super::{Entry, LogError, LogState};
use crate::disk::{Disk, DiskFile, read_exact_at};

/// A log as it would be if it were opened.
pub struct Look {
    state: LogState,
    index: Index,
    segments: BTreeMap<u64, Arc<dyn DiskFile>>,
    /// The records that an opening would write anew into a segment of this number.
    last_group: Vec<u8>,
    fresh: u64,
}

impl Look {
    /// Looks at the log of a data directory. Fails where opening it would.
    pub fn at(disk: &dyn Disk) -> Result<Look, LogError> {
        let mut recovered = recover(disk)?;
        let (fresh, start) = (recovered.next_segment, SEGMENT_HEADER_BYTES as u64);
        seal(&mut recovered.last_group, recovered.group, fresh, start);
        recovered.apply_last_group(fresh, start)?;
        let Recovered { state, index, segments, last_group, .. } = recovered;
        Ok(Look { state, index, segments: segments.into_iter().collect(), last_group, fresh })
    }

    /// What it holds, but for the entries.
    pub fn state(&self) -> LogState {
        self.state
    }

    /// The indices of the entries that are there, first and last.
    pub fn indices(&self) -> Option<(u64, u64)> {
        Some((self.index.first()?, self.state.last?.index))
    }

    /// The entry of this index; none where there is none.
    pub fn entry(&self, index: u64) -> io::Result<Option<Entry>> {
        let Some(place) = self.index.get(index) else { return Ok(None) };
        let len = usize::try_from(place.bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; len];
        if place.segment == self.fresh {
            let at = usize::try_from(place.offset).unwrap_or(usize::MAX) - SEGMENT_HEADER_BYTES;
            bytes.copy_from_slice(&self.last_group[at..at + len]);
        } else if let Some(file) = self.segments.get(&place.segment) {
            read_exact_at(&**file, &mut bytes, place.offset)?;
        }
        match decode(&bytes, place.segment, place.offset).map(|decoded| decoded.record) {
            Some(Record::Entry { id, kind, payload }) => {
                Ok(Some(Entry { id, kind, payload: Bytes::copy_from_slice(payload) }))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
