//! An encoded delta on its way to Raft: whole, or, where it is larger than an entry may be, in
//! parts that lie in a file.
//!
//! Parts end between pages, so that each can be applied by itself: the first one begins with the
//! delta's header, and every one holds whole changed pages.
//!
//! *Invariant*: the parts, one after the other, are the bytes of the whole delta; a part is never
//! larger than [`limits::PART_BYTES_MAX`].

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::limits;

use super::delta::DeltaHeader;
use super::spill::{SpillFile, SpillSpace};

/// A changed page takes at most this much: a page of 65,536 bytes and what stands before it.
const CHANGED_PAGE_BYTES_MAX: usize = 65_536 + 16;

/// A part is ended when it has this much.
const PART_BYTES: usize = limits::PART_BYTES_MAX - CHANGED_PAGE_BYTES_MAX - DeltaHeader::BYTES;

/// An encoded delta.
#[derive(Clone)]
pub enum Encoded {
    /// Small enough for one entry.
    Whole(Bytes),
    /// In parts.
    Parts(Arc<Parts>),
}

impl Encoded {
    /// Its size.
    pub fn bytes(&self) -> usize {
        match self {
            Encoded::Whole(bytes) => bytes.len(),
            Encoded::Parts(parts) => usize::try_from(parts.file.bytes()).unwrap_or(usize::MAX),
        }
    }
}

/// A large encoded delta.
pub struct Parts {
    header: Vec<u8>,
    file: Arc<SpillFile>,
    /// Where each part ends in the file; the header is not there.
    ends: Vec<u64>,
}

impl Parts {
    /// How many there are.
    pub fn count(&self) -> u32 {
        // A delta of 4 billion parts does not fit any disk.
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }

    /// The encoded header, with which the first part begins.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The bytes of part `number`, counted from 0.
    pub fn read(&self, number: u32) -> io::Result<Vec<u8>> {
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let end = self.ends.get(at).copied().ok_or(io::ErrorKind::NotFound)?;
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let start = start.unwrap_or(0);
        let mut bytes = if number == 0 { self.header.clone() } else { Vec::new() };
        let from = bytes.len();
        bytes.resize(from + usize::try_from(end - start).unwrap_or(usize::MAX), 0);
        self.file.read(&mut bytes[from..], start)?;
        Ok(bytes)
    }
}

/// Takes the changed pages of a delta, and its header at the end.
pub struct Writer {
    space: Arc<SpillSpace>,
    /// Room for a header, then the pages; once there is a file, the pages since the last part.
    pending: Vec<u8>,
    /// Where parts end in the pages so far.
    ends: Vec<u64>,
    /// Bytes of pages up to the end of the last part.
    ended: u64,
    file: Option<Arc<SpillFile>>,
}

impl Writer {
    /// Nothing yet.
    pub fn new(space: &Arc<SpillSpace>) -> Writer {
        let pending = vec![0; DeltaHeader::BYTES];
        Writer { space: space.clone(), pending, ends: Vec::new(), ended: 0, file: None }
    }

    /// Where the next changed page goes; [`Writer::page_done`] is called after each.
    pub fn page(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// A changed page was appended.
    pub fn page_done(&mut self) -> io::Result<()> {
        let written = match &self.file {
            None => (self.pending.len() - DeltaHeader::BYTES) as u64,
            Some(_) => self.ended + self.pending.len() as u64,
        };
        if written - self.ended < PART_BYTES as u64 {
            return Ok(());
        }
        (self.ended, _) = (written, self.ends.push(written));
        match &self.file {
            Some(file) => {
                file.append(&self.pending)?;
                self.pending.clear();
            }
            None if self.pending.len() > limits::ENTRY_BYTES_MAX => {
                let file = SpillFile::new(&self.space)?;
                file.append(&self.pending[DeltaHeader::BYTES..])?;
                self.pending = Vec::with_capacity(limits::PART_BYTES_MAX);
                self.file = Some(file);
            }
            None => {}
        }
        Ok(())
    }

    /// All pages are there: writes what is left. What [`Ended::stamp`] still needs is the header.
    pub fn end(mut self) -> io::Result<Ended> {
        if self.file.is_none() && self.pending.len() > limits::ENTRY_BYTES_MAX {
            let file = SpillFile::new(&self.space)?;
            file.append(&self.pending[DeltaHeader::BYTES..])?;
            self.pending.clear();
            self.file = Some(file);
        }
        let Some(file) = self.file else { return Ok(Ended::Whole(self.pending)) };
        if !self.pending.is_empty() {
            file.append(&self.pending)?;
        }
        if self.ends.last() != Some(&file.bytes()) {
            self.ends.push(file.bytes());
        }
        Ok(Ended::Parts { file, ends: self.ends })
    }
}

/// The pages of a delta, which has no header yet.
pub enum Ended {
    /// Behind room for the header.
    Whole(Vec<u8>),
    /// In a file.
    Parts {
        /// The file.
        file: Arc<SpillFile>,
        /// Where each part ends.
        ends: Vec<u64>,
    },
}

impl Ended {
    /// Puts the header before the pages.
    pub fn stamp(self, header: &DeltaHeader) -> Encoded {
        let mut encoded = Vec::with_capacity(DeltaHeader::BYTES);
        header.encode(&mut encoded);
        match self {
            Ended::Whole(mut bytes) => {
                bytes[..DeltaHeader::BYTES].copy_from_slice(&encoded);
                Encoded::Whole(bytes.into())
            }
            Ended::Parts { file, ends } => {
                Encoded::Parts(Arc::new(Parts { header: encoded, file, ends }))
            }
        }
    }
}
