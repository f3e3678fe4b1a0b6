//! Temporary files of SQLite: sorters, temp tables, statement journals, the copy that VACUUM
//! makes. Small ones stay in memory; larger ones move to an unlinked file in the data directory.
//! Their total over a node is bounded.
//!
//! SQLite opens them without a name, so whose they are is told by the thread: a connection says
//! whose statement it runs with [`TempSpace::enter`]. (No statement of another node runs inside of
//! it, so nobody need say when it has ended.)
//!
//! *Invariant*: a temporary file has no name, and its bytes are given back when it is closed.

use std::cell::RefCell;
use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rusqlite::ffi;

use crate::base::limits;
use crate::disk::{Disk, DiskFile, Room};

thread_local! {
    static CURRENT: RefCell<Weak<TempSpace>> = const { RefCell::new(Weak::new()) };
}

/// The room for temporary files of one node.
pub struct TempSpace {
    disk: Arc<dyn Disk>,
    used_bytes: AtomicU64,
    bytes_max: u64,
    room: Arc<Room>,
}

impl TempSpace {
    /// Room for `bytes_max` bytes of temporary files on `disk`.
    pub fn new(disk: Arc<dyn Disk>, bytes_max: u64) -> Arc<TempSpace> {
        TempSpace::with_room(disk, bytes_max, Arc::default())
    }

    /// The same, as long as `room` says that the disk has them.
    pub fn with_room(disk: Arc<dyn Disk>, bytes_max: u64, room: Arc<Room>) -> Arc<TempSpace> {
        Arc::new(TempSpace { disk, used_bytes: AtomicU64::new(0), bytes_max, room })
    }

    /// Temporary files that SQLite opens on this thread from now on are this node's.
    #[inline]
    pub fn enter(self: &Arc<TempSpace>) {
        CURRENT.with_borrow_mut(|current| {
            // Nearly always the same one as before.
            if current.as_ptr() != Arc::as_ptr(self) {
                *current = Arc::downgrade(self);
            }
        });
    }

    fn take(&self, bytes: u64) -> Result<(), c_int> {
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if used + bytes > self.bytes_max {
            self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ffi::SQLITE_FULL);
        }
        Ok(())
    }

    fn file(&self) -> Result<Arc<dyn DiskFile>, c_int> {
        if self.room.is_short() {
            return Err(ffi::SQLITE_FULL);
        }
        self.disk.temp().map_err(|error| code_of(&error))
    }
}

/// One temporary file.
pub struct TempFile {
    space: Option<Arc<TempSpace>>,
    content: Content,
    size: u64,
}

enum Content {
    Heap(Vec<u8>),
    File(Arc<dyn DiskFile>),
}

impl TempFile {
    /// An empty one, of the node whose statement this thread runs (or ran last).
    pub fn new() -> TempFile {
        let space = CURRENT.with_borrow(Weak::upgrade);
        TempFile { space, content: Content::Heap(Vec::new()), size: 0 }
    }

    /// Its size in bytes.
    pub fn size(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX)
    }

    /// Reads; `false` when the file ends before, the rest filled with zeros.
    pub fn read(&self, offset: i64, out: &mut [u8]) -> Result<bool, c_int> {
        let offset = u64::try_from(offset).map_err(|_| ffi::SQLITE_IOERR_READ)?;
        let got = match &self.content {
            Content::Heap(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let got = out.len().min(bytes.len() - start);
                out[..got].copy_from_slice(&bytes[start..start + got]);
                got
            }
            Content::File(file) => file.read_at(out, offset).map_err(|_| ffi::SQLITE_IOERR_READ)?,
        };
        out[got..].fill(0);
        Ok(got == out.len())
    }

    /// Writes, growing the file where needed.
    pub fn write(&mut self, offset: i64, data: &[u8]) -> Result<(), c_int> {
        let offset = u64::try_from(offset).map_err(|_| ffi::SQLITE_IOERR_WRITE)?;
        let end = offset + data.len() as u64;
        if end > self.size {
            match &self.space {
                Some(space) => space.take(end - self.size)?,
                None if end > limits::TEMP_HEAP_BYTES_MAX as u64 => return Err(ffi::SQLITE_FULL),
                None => {}
            }
            self.size = end;
        }
        self.move_to_disk_if_large()?;
        match &mut self.content {
            Content::Heap(bytes) => {
                // Small: it would be on disk otherwise.
                let (start, end) = (offset as usize, end as usize);
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(data);
                Ok(())
            }
            Content::File(_) if self.space.as_ref().is_some_and(|space| space.room.is_short()) => {
                Err(ffi::SQLITE_FULL)
            }
            Content::File(file) => file.write_at(data, offset).map_err(|error| code_of(&error)),
        }
    }

    fn move_to_disk_if_large(&mut self) -> Result<(), c_int> {
        let (Content::Heap(bytes), Some(space)) = (&self.content, &self.space) else {
            return Ok(());
        };
        if self.size <= limits::TEMP_HEAP_BYTES_MAX as u64 {
            return Ok(());
        }
        let file = space.file()?;
        file.write_at(bytes, 0).map_err(|error| code_of(&error))?;
        self.content = Content::File(file);
        Ok(())
    }

    /// Cuts the file.
    pub fn truncate(&mut self, size: i64) -> Result<(), c_int> {
        let size = u64::try_from(size).map_err(|_| ffi::SQLITE_IOERR_TRUNCATE)?;
        if size >= self.size {
            return Ok(());
        }
        match &mut self.content {
            Content::Heap(bytes) => bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX)),
            Content::File(file) => {
                file.set_len(size).map_err(|_| ffi::SQLITE_IOERR_TRUNCATE)?;
            }
        }
        self.give_back(self.size - size);
        self.size = size;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        if let Some(space) = &self.space {
            space.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

fn code_of(error: &std::io::Error) -> c_int {
    match error.kind() {
        std::io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        _ => ffi::SQLITE_IOERR_WRITE,
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        self.give_back(self.size);
    }
}
