//! The only door to files. Everything a node keeps goes through a [`Disk`], rooted at the node's
//! data directory, so that power cuts, damage and full disks can be tested at each call.
//!
//! Paths are relative to the data directory, `/`-separated, made by this crate and never by a
//! client's text. What a real power cut keeps is what the fake one keeps: bytes of a file after
//! [`DiskFile::sync`], names after [`Disk::sync_dir`] of their directory.
//!
//! *Invariant*: no other module opens, renames or removes a file of the data directory.

pub mod fake;
pub mod real;
mod room;

use std::io;
use std::sync::Arc;

pub use fake::{Cut, FakeDisk, Fault};
pub use real::RealDisk;
pub use room::Room;

use crate::base::planted::{Bug, planted};

/// A data directory.
pub trait Disk: Send + Sync + 'static {
    /// Creates an empty file for reading and writing; an existing one is emptied.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing; `NotFound` when there is none.
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// A file without a name under `tmp/`, for reading and writing, gone when it is dropped.
    /// Never synced: it does not survive anything.
    fn temp(&self) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames within the data directory, replacing `to`. Durable after `sync_dir` of the
    /// directories of both.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; `NotFound` when there is none. Durable after `sync_dir`.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Whether a file or directory of that name exists.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// Names (not paths) of the files in a directory, sorted; empty when there is no directory.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; fine when it exists. "" is the data directory itself.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Makes the names in a directory durable. "" is the data directory itself.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Bytes that can still be written before the disk is full.
    fn available_bytes(&self) -> io::Result<u64>;

    /// Changes the budget of bytes beyond which the disk behaves as a full one, or lifts it
    /// (`None`). What is there already stays, even beyond it.
    fn set_budget(&self, bytes_max: Option<u64>);
}

/// An open file. All calls are positioned, so that a file can be shared between threads.
pub trait DiskFile: Send + Sync + 'static {
    /// Reads into `buf` from `offset`; returns how much was there (short only at the end).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, growing the file where needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the file's bytes and length durable (fdatasync).
    fn sync(&self) -> io::Result<()>;

    /// Sets the length; growth reads as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reserves space for the first `len` bytes so that writing them cannot meet a full disk;
    /// the length grows to `len` if it was less (new bytes read as zeros).
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Takes SQLite's own lock bytes of a database file for a checkpoint, so that a stock SQLite
    /// on the live file neither writes nor sees a torn page: `Reserved` all the time, `Exclusive`
    /// while pages are copied. Non-blocking; `WouldBlock` when another process holds them.
    fn sqlite_lock(&self, level: SqliteLock) -> io::Result<()>;
}

/// Levels of [`DiskFile::sqlite_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqliteLock {
    /// None of the lock bytes are held.
    Unlocked,
    /// RESERVED: other processes may read, none may write.
    Reserved,
    /// EXCLUSIVE: no other process reads or writes.
    Exclusive,
}

/// Reads exactly `buf.len()` bytes or fails with `UnexpectedEof`.
pub fn read_exact_at(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let got = file.read_at(buf, offset)?;
    if got < buf.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The whole content of a file.
pub fn read_all(disk: &dyn Disk, path: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    read_exact_at(&*file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Replaces a small file whole and durably: new file, fsync, rename, fsync of the directory.
pub fn replace(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{path}.new");
    let file = disk.create(&new)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&new, path)?;
    if planted(Bug::RenameNotSynced) {
        return Ok(());
    }
    disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir))
}
