//! The base: a database's file on disk, an ordinary SQLite file, and beside it `NAME.sum`, the
//! hash of each of its pages (16 bytes a page, little-endian, in order).
//!
//! *Invariant*: a page is handed out only if it matches its hash.

use std::io;
use std::sync::Arc;

use crate::base::planted::{Bug, planted};
use crate::disk::{Disk, DiskFile, SqliteLock, read_exact_at};

use super::page::{PageNo, page_hash};

const HASH_BYTES: u64 = 16;

/// One generation of a database's file and its page hashes.
pub struct BaseFile {
    pages: Arc<dyn DiskFile>,
    sums: Arc<dyn DiskFile>,
    page_size: usize,
}

/// What reading a page from the base gave.
#[derive(Debug, PartialEq, Eq)]
pub enum BaseRead {
    /// The page, and the hash it matches.
    Good(u128),
    /// The bytes do not match the hash.
    Mismatch,
}

/// Path of a database's file.
pub fn pages_path(name: &str) -> String {
    format!("databases/{name}.db")
}

/// Path of its page hashes.
pub fn sums_path(name: &str) -> String {
    format!("databases/{name}.sum")
}

impl BaseFile {
    /// Opens the files of database `name`; creates them when they are not there.
    pub fn open(disk: &dyn Disk, name: &str, page_size: usize) -> io::Result<BaseFile> {
        BaseFile::open_at(disk, "databases", &[pages_path(name), sums_path(name)], page_size)
    }

    /// Opens the files at the paths of pages and of hashes, both in `dir`; creates them when they
    /// are not there.
    pub fn open_at(
        disk: &dyn Disk,
        dir: &str,
        [pages, sums]: &[String; 2],
        page_size: usize,
    ) -> io::Result<BaseFile> {
        let open = |path: &str| match disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = disk.create(path)?;
                disk.sync_dir(dir)?;
                Ok(file)
            }
            other => other,
        };
        let (pages, sums) = (open(pages)?, open(sums)?);
        Ok(BaseFile { pages, sums, page_size })
    }

    fn offset(&self, page: PageNo) -> u64 {
        // usize is at most 64 bits, and a page size at most 65,536.
        (u64::from(page) - 1) * self.page_size as u64
    }

    /// Reads a whole page into `out` and checks it. `page` counts from 1.
    pub fn read(&self, page: PageNo, out: &mut [u8]) -> io::Result<BaseRead> {
        assert!(page > 0 && out.len() == self.page_size, "one whole page");
        let got = self.pages.read_at(out, self.offset(page))?;
        if got < out.len() {
            return Ok(BaseRead::Mismatch);
        }
        let stored = self.hash(page)?;
        let hash = page_hash(page, out);
        let good = stored == Some(hash) || planted(Bug::PageHashIgnored);
        Ok(if good { BaseRead::Good(hash) } else { BaseRead::Mismatch })
    }

    /// The hash of a page as `NAME.sum` has it.
    pub fn hash(&self, page: PageNo) -> io::Result<Option<u128>> {
        let mut bytes = [0; HASH_BYTES as usize];
        match read_exact_at(&*self.sums, &mut bytes, (u64::from(page) - 1) * HASH_BYTES) {
            Ok(()) => Ok(Some(u128::from_le_bytes(bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reserves room for `page_count` pages, so that copying cannot meet a full disk. Never
    /// shrinks.
    pub fn allocate(&self, page_count: u32) -> io::Result<()> {
        let pages = u64::from(page_count);
        if self.pages.len()? < pages * self.page_size as u64 {
            self.pages.allocate(pages * self.page_size as u64)?;
        }
        if self.sums.len()? < pages * HASH_BYTES {
            self.sums.allocate(pages * HASH_BYTES)?;
        }
        Ok(())
    }

    /// Writes a page and its hash, unsynced.
    pub fn write(&self, page: PageNo, bytes: &[u8], hash: u128) -> io::Result<()> {
        assert!(page > 0 && bytes.len() == self.page_size, "one whole page");
        self.pages.write_at(bytes, self.offset(page))?;
        self.sums.write_at(&hash.to_le_bytes(), (u64::from(page) - 1) * HASH_BYTES)
    }

    /// Sets the length to `page_count` pages and makes everything durable.
    pub fn finish(&self, page_count: u32) -> io::Result<()> {
        self.pages.set_len(u64::from(page_count) * self.page_size as u64)?;
        self.sums.set_len(u64::from(page_count) * HASH_BYTES)?;
        self.pages.sync()?;
        self.sums.sync()
    }

    /// Holds SQLite's own lock bytes of the file.
    pub fn lock(&self, level: SqliteLock) -> io::Result<()> {
        self.pages.sqlite_lock(level)
    }
}
