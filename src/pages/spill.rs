//! Page images and encoded deltas that are too many for memory: they lie in unlinked temporary
//! files, each shared by those who still need a part of it, and gone with the last of them.
//!
//! It is not durable and knows no format: whatever lies here is in the log or can be made anew.
//!
//! *Invariant*: the files of a node hold at most what its [`SpillSpace`] has given out; bytes are
//! given back when their file goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::limits;
use crate::disk::{Disk, DiskFile, Room, read_exact_at};

use super::page::Body;

/// The room for spilled images and deltas of one node.
pub struct SpillSpace {
    disk: Arc<dyn Disk>,
    room: Arc<Room>,
    used_bytes: AtomicU64,
    bytes_max: u64,
}

impl SpillSpace {
    /// Room for `bytes_max` bytes on `disk`, as long as `room` says that the disk has them.
    pub fn new(disk: Arc<dyn Disk>, room: Arc<Room>, bytes_max: u64) -> Arc<SpillSpace> {
        Arc::new(SpillSpace { disk, room, used_bytes: AtomicU64::new(0), bytes_max })
    }

    /// What is left on the disk, for the checks of a transaction.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// `bounded`: within the limit, and only while the disk's reserve is not touched.
    fn take(&self, bytes: u64, bounded: bool) -> io::Result<()> {
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if bounded && (used + bytes > self.bytes_max || self.room.is_short()) {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            let what = "the room for large transactions is used up";
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        Ok(())
    }
}

/// An unlinked file that only grows.
pub struct SpillFile {
    file: Arc<dyn DiskFile>,
    space: Arc<SpillSpace>,
    bytes: AtomicU64,
    bounded: bool,
}

impl SpillFile {
    /// An empty file of a transaction that can still be refused.
    pub fn new(space: &Arc<SpillSpace>) -> io::Result<Arc<SpillFile>> {
        SpillFile::with(space, true)
    }

    fn with(space: &Arc<SpillSpace>, bounded: bool) -> io::Result<Arc<SpillFile>> {
        let (file, bytes) = (space.disk.temp()?, AtomicU64::new(0));
        Ok(Arc::new(SpillFile { file, space: space.clone(), bytes, bounded }))
    }

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Adds bytes at its end; where they lie. One writer at a time.
    pub fn append(&self, data: &[u8]) -> io::Result<u64> {
        self.space.take(data.len() as u64, self.bounded)?;
        let offset = self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_at(data, offset)?;
        Ok(offset)
    }

    /// Overwrites bytes that only the caller reads.
    pub fn overwrite(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(data, offset)
    }

    /// Reads exactly `out.len()` bytes.
    pub fn read(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&*self.file, out, offset)
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.space.used_bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Keeps the pages of one transaction: the first ones on the heap, the others in a file.
pub struct Spill {
    space: Arc<SpillSpace>,
    file: Option<Arc<SpillFile>>,
    heap_left: usize,
    bounded: bool,
}

impl Spill {
    /// For a transaction that can still be refused: up to `heap_bytes` on the heap, the rest in
    /// `space`.
    pub fn new(space: &Arc<SpillSpace>, heap_bytes: usize) -> Spill {
        let heap_left = heap_bytes.min(limits::TRANSACTION_HEAP_BYTES_MAX);
        Spill { space: space.clone(), file: None, heap_left, bounded: true }
    }

    /// For what is committed, or must be kept for another reason: no limit applies.
    pub fn unbounded(space: &Arc<SpillSpace>, heap_bytes: usize) -> Spill {
        Spill { bounded: false, ..Spill::new(space, heap_bytes) }
    }

    /// Keeps a page.
    pub fn keep(&mut self, content: &[u8]) -> io::Result<Body> {
        if self.heap_left >= content.len() {
            self.heap_left -= content.len();
            return Ok(Body::Heap(content.into()));
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = SpillFile::with(&self.space, self.bounded)?;
                self.file = Some(file.clone());
                file
            }
        };
        let offset = file.append(content)?;
        Ok(Body::File { file, offset })
    }

    /// Keeps a page come what may: where no file takes it, on the heap. For what is committed
    /// and has to be applied.
    pub fn keep_anyway(&mut self, content: &[u8]) -> Body {
        self.keep(content).unwrap_or_else(|_| Body::Heap(content.into()))
    }
}
