//! The real disk: a directory of the machine's file system.
//!
//! One process owns a data directory at a time: an exclusive lock on the file `lock` in its root
//! is held as long as the [`RealDisk`] lives. SQLite's lock bytes are taken as open-file-description
//! locks: they conflict with the process-wide POSIX locks of a stock SQLite, and closing some other
//! descriptor of the same file does not drop them.
//!
//! A byte budget can be put on the directory so that tests of real processes meet a full disk: a
//! call that would make the sum of the file sizes exceed it fails with `StorageFull`, as the
//! machine's own disk would.
//!
//! *Invariant*: no path leaves the root (`..` and absolute paths are refused).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::retry_on_intr;

use super::{Disk, DiskFile, SqliteLock};

/// Where SQLite keeps its lock bytes in every database file.
const PENDING_BYTE: i64 = 0x4000_0000;
const RESERVED_BYTE: i64 = PENDING_BYTE + 1;
const SHARED_FIRST: i64 = PENDING_BYTE + 2;
const SHARED_BYTES: i64 = 510;

/// "No budget".
const UNLIMITED: u64 = u64::MAX;

/// A directory of the machine's file system.
pub struct RealDisk {
    root: PathBuf,
    /// Held for its lock only; none where others may use the directory as well.
    _lock: Option<File>,
    budget: Arc<Budget>,
    temp_count: AtomicU64,
}

/// Makes a directory, durably, where there is none.
fn create_root(root: &Path) -> io::Result<()> {
    if !root.exists() {
        std::fs::create_dir_all(root)?;
        if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

impl RealDisk {
    /// Opens a data directory, creating it where needed, and takes its lock. `WouldBlock` when
    /// another node holds it.
    pub fn open(root: &Path) -> io::Result<Arc<RealDisk>> {
        create_root(root)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("another node uses the data directory {}", root.display()),
            ),
            TryLockError::Error(error) => error,
        })?;
        let disk = RealDisk::at_root(root, Some(lock));
        disk.empty_tmp()?;
        Ok(Arc::new(disk))
    }

    /// Opens a directory that is no node's data directory, creating it where needed: without a
    /// lock, and what is in it stays.
    pub fn open_shared(root: &Path) -> io::Result<Arc<RealDisk>> {
        create_root(root)?;
        Ok(Arc::new(RealDisk::at_root(root, None)))
    }

    fn at_root(root: &Path, lock: Option<File>) -> RealDisk {
        RealDisk {
            root: root.to_owned(),
            _lock: lock,
            budget: Arc::new(Budget {
                root: root.to_owned(),
                bytes_max: AtomicU64::new(UNLIMITED),
                growing: Mutex::new(()),
            }),
            temp_count: AtomicU64::new(0),
        }
    }

    /// The same with a budget of `bytes` for the sum of all file sizes.
    pub fn with_budget(self: Arc<Self>, bytes: u64) -> Arc<RealDisk> {
        self.set_budget(Some(bytes));
        self
    }

    /// The directory it is rooted at.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what an earlier process may have left between creating and unlinking.
    fn empty_tmp(&self) -> io::Result<()> {
        for name in self.list("tmp")? {
            std::fs::remove_file(self.root.join("tmp").join(name))?;
        }
        Ok(())
    }

    fn at(&self, path: &str) -> io::Result<PathBuf> {
        let path = Path::new(path);
        if path.components().all(|part| matches!(part, Component::Normal(_))) {
            Ok(self.root.join(path))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "path outside of the data directory"))
        }
    }

    fn file(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(RealFile { file, budget: self.budget.clone() })
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(self.file(options.open(self.at(path)?)?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(OpenOptions::new().read(true).write(true).open(self.at(path)?)?))
    }

    fn temp(&self) -> io::Result<Arc<dyn DiskFile>> {
        let dir = self.root.join("tmp");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{}", self.temp_count.fetch_add(1, Ordering::Relaxed)));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(self.file(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.at(from)?, self.at(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.at(path)?)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.at(path)?.try_exists()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.at(dir)?) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                // A name that is not UTF-8 is none of ours.
                names.extend(entry.file_name().into_string().ok());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.at(dir)?)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.at(dir)?)?.sync_all()
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize).min(self.budget.available_bytes()?))
    }

    fn set_budget(&self, bytes_max: Option<u64>) {
        self.budget.bytes_max.store(bytes_max.unwrap_or(UNLIMITED), Ordering::SeqCst);
    }
}

struct RealFile {
    file: File,
    budget: Arc<Budget>,
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut got = 0;
        while got < buf.len() {
            match self.file.read_at(&mut buf[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.budget.growing_to(&self.file, offset.saturating_add(data.len() as u64), || {
            self.file.write_all_at(data, offset)
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.file))?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.budget.growing_to(&self.file, len, || self.file.set_len(len))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.budget.growing_to(&self.file, len, || allocate(&self.file, len))
    }

    fn sqlite_lock(&self, level: SqliteLock) -> io::Result<()> {
        match level {
            SqliteLock::Unlocked => self.lock_bytes(libc::F_UNLCK, PENDING_BYTE, SHARED_BYTES + 2),
            SqliteLock::Reserved => {
                self.lock_bytes(libc::F_WRLCK, RESERVED_BYTE, 1)?;
                self.lock_bytes(libc::F_UNLCK, PENDING_BYTE, 1)?;
                self.lock_bytes(libc::F_UNLCK, SHARED_FIRST, SHARED_BYTES)
            }
            SqliteLock::Exclusive => {
                // PENDING first: it keeps new readers out, so that the present ones drain; it stays
                // where the last call fails, and asking for Reserved gives it back.
                self.lock_bytes(libc::F_WRLCK, RESERVED_BYTE, 1)?;
                self.lock_bytes(libc::F_WRLCK, PENDING_BYTE, 1)?;
                self.lock_bytes(libc::F_WRLCK, SHARED_FIRST, SHARED_BYTES)
            }
        }
    }
}

impl RealFile {
    fn lock_bytes(&self, kind: i32, start: i64, len: i64) -> io::Result<()> {
        let lock = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start,
            l_len: len,
            l_pid: 0,
        };
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EACCES | nix::errno::Errno::EAGAIN) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process holds SQLite's lock on a database file",
            )),
            Err(error) => Err(error.into()),
        }
    }
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            // No such call on this file system: write the zeros.
            let zeros = vec![0; 64 << 10];
            let mut at = file.metadata()?.len();
            while at < len {
                let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeros.len());
                file.write_all_at(&zeros[..n], at)?;
                at += n as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The bound on the sum of the sizes of all files under `root`.
struct Budget {
    root: PathBuf,
    bytes_max: AtomicU64,
    /// Held while a file grows under a budget.
    growing: Mutex<()>,
}

impl Budget {
    /// Runs `grow`, which makes `file` at least `len` long, if the budget allows it.
    fn growing_to(
        &self,
        file: &File,
        len: u64,
        grow: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let bytes_max = self.bytes_max.load(Ordering::SeqCst);
        if bytes_max == UNLIMITED {
            return grow();
        }
        let _growing = self.growing.lock();
        let growth = len.saturating_sub(file.metadata()?.len());
        if growth > 0 && tree_bytes(&self.root)?.saturating_add(growth) > bytes_max {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the byte budget is used up"));
        }
        grow()
    }

    fn available_bytes(&self) -> io::Result<u64> {
        match self.bytes_max.load(Ordering::SeqCst) {
            UNLIMITED => Ok(UNLIMITED),
            bytes_max => Ok(bytes_max.saturating_sub(tree_bytes(&self.root)?)),
        }
    }
}

/// The sum of the sizes of the files in a directory and those below it.
fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let mut sum = 0_u64;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => sum += tree_bytes(&entry.path())?,
            Ok(meta) => sum += meta.len(),
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Disk, RealDisk, SqliteLock};
    use crate::disk::{read_all, replace};

    #[test]
    fn a_second_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = RealDisk::open(dir.path()).unwrap();
        let error = RealDisk::open(dir.path()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("another node"), "{error}");
        drop(first);
        RealDisk::open(dir.path()).unwrap();
    }

    #[test]
    fn files_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(&dir.path().join("new/er")).unwrap();
        disk.create_dir("a/b").unwrap();
        replace(&*disk, "a/b/c", b"hello").unwrap();
        replace(&*disk, "a/b/c", b"world").unwrap();
        assert_eq!(read_all(&*disk, "a/b/c").unwrap(), b"world");
        assert_eq!(disk.list("a/b").unwrap(), ["c"]);
        assert_eq!(disk.list("a").unwrap(), [""; 0]);
        assert_eq!(disk.list("nowhere").unwrap(), [""; 0]);
        let file = disk.open("a/b/c").unwrap();
        file.allocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 4096);
        let mut buf = [1; 8];
        assert_eq!(file.read_at(&mut buf, 4092).unwrap(), 4);
        assert_eq!(disk.open("none").err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.remove("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.create("../x").is_err() && disk.create("/x").is_err());
        let temp = disk.temp().unwrap();
        temp.write_at(b"x", 10).unwrap();
        assert_eq!((temp.len().unwrap(), disk.list("tmp").unwrap().len()), (11, 0));
        disk.sync_dir("").unwrap();
        assert!(disk.available_bytes().unwrap() > 0);
    }

    #[test]
    fn the_budget_is_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap().with_budget(1000);
        let file = disk.create("f").unwrap();
        file.allocate(800).unwrap();
        assert_eq!(disk.available_bytes().unwrap(), 200);
        file.write_at(&[1; 100], 700).unwrap();
        let error = file.write_at(&[1; 300], 790).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.set_budget(None);
        file.write_at(&[1; 300], 790).unwrap();
    }

    #[test]
    fn sqlite_itself_meets_the_lock_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let sqlite = rusqlite::Connection::open(dir.path().join("x.db")).unwrap();
        sqlite.busy_timeout(std::time::Duration::ZERO).unwrap();
        sqlite.execute_batch("create table t(a)").unwrap();
        let count = || sqlite.query_row("select count(*) from t", [], |r| r.get::<_, i64>(0));
        let file = disk.open("x.db").unwrap();
        file.sqlite_lock(SqliteLock::Reserved).unwrap();
        assert!(sqlite.execute_batch("insert into t values(1)").is_err());
        assert_eq!(count().unwrap(), 0);
        file.sqlite_lock(SqliteLock::Exclusive).unwrap();
        assert!(count().is_err());
        file.sqlite_lock(SqliteLock::Reserved).unwrap();
        assert_eq!(count().unwrap(), 0);
        file.sqlite_lock(SqliteLock::Unlocked).unwrap();
        sqlite.execute_batch("begin immediate; insert into t values(1)").unwrap();
        let error = file.sqlite_lock(SqliteLock::Reserved).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
