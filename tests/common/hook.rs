//! A disk that calls back before reads and writes of a database's file, so that a test can do
//! something exactly there.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;

use quire::disk::{Disk, DiskFile, FakeDisk, SqliteLock};

/// What is about to happen to a `databases/NAME.db`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Read(u64),
    Write(u64),
    SetLen,
    Sync,
}

type Call = Box<dyn FnMut(Event) + Send>;

#[derive(Clone)]
pub struct HookDisk {
    inner: FakeDisk,
    hook: Arc<Mutex<Option<Call>>>,
}

struct HookFile {
    inner: Arc<dyn DiskFile>,
    hook: Arc<Mutex<Option<Call>>>,
    watched: bool,
}

impl HookDisk {
    pub fn new(inner: FakeDisk) -> HookDisk {
        HookDisk { inner, hook: Arc::default() }
    }

    /// From now on `call` is called, but not for what it does itself.
    pub fn set(&self, call: impl FnMut(Event) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(call));
    }

    pub fn clear(&self) {
        *self.hook.lock().unwrap() = None;
    }

    fn file(&self, path: &str, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let watched = path.ends_with(".db");
        Arc::new(HookFile { inner, hook: self.hook.clone(), watched })
    }
}

impl HookFile {
    fn call(&self, event: Event) {
        if self.watched {
            let taken = self.hook.lock().unwrap().take();
            if let Some(mut call) = taken {
                call(event);
                self.hook.lock().unwrap().get_or_insert(call);
            }
        }
    }
}

impl DiskFile for HookFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.call(Event::Read(offset));
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.call(Event::Write(offset));
        self.inner.write_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.call(Event::Sync);
        self.inner.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(Event::SetLen);
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }

    fn sqlite_lock(&self, level: SqliteLock) -> io::Result<()> {
        self.inner.sqlite_lock(level)
    }
}

impl Disk for HookDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.inner.create(path)?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.inner.open(path)?))
    }

    fn temp(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.inner.temp()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.create_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn available_bytes(&self) -> io::Result<u64> {
        self.inner.available_bytes()
    }

    fn set_budget(&self, bytes_max: Option<u64>) {
        self.inner.set_budget(bytes_max);
    }
}
