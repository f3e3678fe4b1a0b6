//! The virtual file system that SQLite runs on: a database file is a [`Snapshot`] of a
//! [`Store`] plus the pages that the open transaction has written; every other file is temporary.
//! This is the one file of the crate with unsafe code: SQLite's C interface is pointers.
//!
//! How a commit passes through, in SQLite's order of calls: `xWrite`..., `FCNTL_SYNC` (freeze:
//! the delta is built, checked, and holds the publish permit), `xSync`, `xTruncate` (VACUUM),
//! `FCNTL_COMMIT_PHASETWO` (publish: cannot fail), `xUnlock`. An unlock without phase two drops
//! what was frozen: a rollback.
//!
//! Opening: a connection's [`Link`] is registered under a number, and the number is the file
//! name that SQLite is given; a client's text never reaches `xOpen`. No shared memory is offered,
//! so SQLite itself declines WAL.
//!
//! *Invariant*: nothing here waits while the publish permit is held; `xLock` never waits; a panic
//! never crosses into C; a main database opens only under the number of its own link, once.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rusqlite::ffi;

use crate::base::Clock;
use crate::base::planted::{Bug, planted};
use crate::pages::{Freeze, Frozen, PagesError, Snapshot};

use super::link::{Link, View};
use super::temp::TempFile;

/// The name that the VFS is registered under.
pub const VFS_NAME: &str = "quire";

/// Where the pager reads the 16 bytes that tell it whether its cache is still valid.
const PROBE_OFFSET: i64 = 24;
const PROBE_BYTES: usize = 16;

/// The Unix epoch in SQLite's time: milliseconds since noon of the first Julian day.
const EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;

thread_local! {
    static CLOCK: RefCell<Option<Arc<dyn Clock>>> = const { RefCell::new(None) };
}

/// From now on SQL on this thread is told the time of `clock`, not the machine's: for simulations.
pub fn set_thread_clock(clock: Arc<dyn Clock>) {
    CLOCK.set(Some(clock));
}

static LINKS: LazyLock<Mutex<HashMap<u64, Arc<Link>>>> = LazyLock::new(Mutex::default);
static NEXT_LINK: AtomicU64 = AtomicU64::new(1);
static REGISTERED: LazyLock<bool> = LazyLock::new(register);

/// Makes a link openable once; returns the file name to open.
pub fn announce(link: Arc<Link>) -> String {
    let id = NEXT_LINK.fetch_add(1, Ordering::Relaxed);
    LINKS.lock().insert(id, link);
    id.to_string()
}

/// Takes back what was announced, if nobody opened it.
pub fn withdraw(name: &str) {
    if let Ok(id) = name.parse::<u64>() {
        LINKS.lock().remove(&id);
    }
}

/// Registers the VFS with SQLite, once in a process. Whether that worked.
pub fn ensure_registered() -> bool {
    *REGISTERED
}

/// How many bytes of `sql` its first statement takes, with its `;`. `None` when SQLite cannot
/// compile it.
pub fn first_statement_bytes(connection: &rusqlite::Connection, sql: &[u8]) -> Option<usize> {
    let len = c_int::try_from(sql.len()).ok()?;
    let start: *const c_char = sql.as_ptr().cast();
    let mut statement = std::ptr::null_mut();
    let mut tail = std::ptr::null();
    // SAFETY: `sql` is `len` readable bytes for the whole call; the connection is open, and
    // borrowed by this thread; the statement is finalized before anything else happens, null
    // included.
    let consumed = unsafe {
        let db = connection.handle();
        let code = ffi::sqlite3_prepare_v2(db, start, len, &raw mut statement, &raw mut tail);
        ffi::sqlite3_finalize(statement);
        if code != ffi::SQLITE_OK || tail.is_null() {
            return None;
        }
        tail.offset_from(start)
    };
    usize::try_from(consumed).ok().filter(|bytes| *bytes <= sql.len())
}

/// Gives memory that nobody uses back to the machine: the allocator keeps what a large transaction
/// or a burst of page images has left in it. Takes some milliseconds. (It is not SQLite's; it is
/// here because this is the one file that calls C.)
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, is safe on any thread, and leaves what is allocated alone.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// What `last_insert_rowid()` says from now on.
pub fn set_last_insert_rowid(connection: &rusqlite::Connection, rowid: i64) {
    // SAFETY: the connection is open and borrowed by this thread.
    unsafe { ffi::sqlite3_set_last_insert_rowid(connection.handle(), rowid) }
}

/// What a connection has changed since it was opened.
pub struct Counts {
    /// `sqlite3_last_insert_rowid`.
    pub last_insert_rowid: i64,
    /// `sqlite3_changes64`.
    pub changes: i64,
    /// `sqlite3_total_changes64`.
    pub total_changes: i64,
}

/// The counts of the connection that a function is being called on.
pub fn counts_of(context: &rusqlite::functions::Context<'_>) -> rusqlite::Result<Counts> {
    // SAFETY: the connection is only asked for its counts; nothing is prepared, run or closed.
    let connection = unsafe { context.get_connection()? };
    Ok(Counts {
        last_insert_rowid: connection.last_insert_rowid(),
        changes: i64::try_from(connection.changes()).unwrap_or(i64::MAX),
        total_changes: i64::try_from(connection.total_changes()).unwrap_or(i64::MAX),
    })
}

// ---- files

/// The database file of one connection.
struct MainFile {
    link: Arc<Link>,
    level: c_int,
    snapshot: Option<Snapshot>,
    written: Option<Freeze>,
    /// FCNTL_SYNC has passed over exactly what is in `written`.
    synced: bool,
    /// What it made of that, holding the publish permit; `None` where nothing differs.
    frozen: Option<Frozen>,
    /// The store, version and epoch that the pager's cache belongs to.
    cached: Option<CacheKey>,
    /// What the pager's probe was answered last, if it holds for `cached`.
    probed: Option<[u8; PROBE_BYTES]>,
}

type CacheKey = (usize, u64, u64);

enum File {
    Main(Box<MainFile>),
    Temp(TempFile),
}

type Code = Result<(), c_int>;

impl MainFile {
    fn new(link: Arc<Link>) -> MainFile {
        MainFile {
            link,
            level: ffi::SQLITE_LOCK_NONE,
            snapshot: None,
            written: None,
            synced: false,
            frozen: None,
            cached: None,
            probed: None,
        }
    }

    fn fail(&self, error: PagesError) -> c_int {
        let code = match &error {
            PagesError::Damaged { .. } => ffi::SQLITE_CORRUPT,
            PagesError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                ffi::SQLITE_FULL
            }
            _ => ffi::SQLITE_IOERR,
        };
        self.link.note_error(error);
        code
    }

    fn take_snapshot(&self) -> Result<Snapshot, c_int> {
        let store = self.link.store();
        let taken = match self.link.view() {
            View::Head => store.snapshot_head(),
            View::Applied if planted(Bug::HeadServed) => store.snapshot_head(),
            View::Applied => store.snapshot_applied(),
        };
        taken.map_err(|error| self.fail(error))
    }

    /// Runs `with` on the snapshot of the open transaction, or on a passing one.
    fn with_snapshot<T>(
        &self,
        with: impl FnOnce(&Snapshot) -> Result<T, PagesError>,
    ) -> Result<T, c_int> {
        match &self.snapshot {
            Some(snapshot) => with(snapshot),
            None => with(&self.take_snapshot()?),
        }
        .map_err(|error| self.fail(error))
    }

    fn page_of(&self, offset: i64) -> Result<(u32, usize), c_int> {
        let page_size = i64::try_from(self.link.page_size()).map_err(|_| ffi::SQLITE_IOERR)?;
        let page = u32::try_from(offset / page_size + 1).map_err(|_| ffi::SQLITE_IOERR)?;
        let within = usize::try_from(offset % page_size).map_err(|_| ffi::SQLITE_IOERR)?;
        Ok((page, within))
    }

    /// Reads; `false` when the file ends before, and the buffer was filled with zeros.
    fn read(&mut self, offset: i64, out: &mut [u8]) -> Result<bool, c_int> {
        let (page, within) = self.page_of(offset)?;
        let end = within + out.len();
        if end > self.link.page_size() {
            return Err(ffi::SQLITE_IOERR_READ);
        }
        if offset == PROBE_OFFSET && out.len() == PROBE_BYTES {
            return self.probe(out);
        }
        let written = self.written.as_ref().and_then(|written| written.page(page));
        let found = match written {
            Some(body) => {
                body.read(within, out).map_err(|error| self.fail(error.into()))?;
                true
            }
            None => self.with_snapshot(|snapshot| snapshot.read(page, within, out))?,
        };
        if !found {
            out.fill(0);
        }
        Ok(found)
    }

    /// The pager asks whether its cache is valid by reading 16 bytes that every commit changes.
    /// After a rewind another history can have the same ones: so they are inverted once whenever
    /// the version or epoch is not the one the cache was filled from, which resets the cache.
    fn probe(&mut self, out: &mut [u8]) -> Result<bool, c_int> {
        let now = self.snapshot.as_ref().map(|snapshot| {
            let store = Arc::as_ptr(snapshot.store()).addr();
            (store, snapshot.point().version, snapshot.epoch())
        });
        let valid = now.is_some() && self.cached == now;
        if valid && let Some(probed) = &self.probed {
            self.with_snapshot(Snapshot::check)?;
            out.copy_from_slice(probed);
            return Ok(true);
        }
        // Asked when a transaction begins: nothing is written yet.
        let within = PROBE_OFFSET as usize;
        if !self.with_snapshot(|snapshot| snapshot.read(1, within, out))? {
            out.fill(0);
            return Ok(false);
        }
        self.probed = None;
        if valid {
            self.probed = <[u8; PROBE_BYTES]>::try_from(&*out).ok();
        } else if now.is_some() {
            out.iter_mut().for_each(|byte| *byte = !*byte);
            self.cached = now;
        }
        Ok(true)
    }

    fn write(&mut self, offset: i64, data: &[u8]) -> Code {
        let (page, within) = self.page_of(offset)?;
        if self.level < ffi::SQLITE_LOCK_RESERVED || within != 0 {
            return Err(ffi::SQLITE_IOERR_WRITE);
        }
        if data.len() != self.link.page_size() {
            return Err(self.fail(PagesError::Refused("a write that is not one whole page")));
        }
        self.thaw();
        let bytes_max = self.link.transaction_bytes_max();
        let written = self.written()?;
        let kept = written.write(page, data);
        let bytes = written.bytes();
        kept.map_err(|error| self.fail(error.into()))?;
        if bytes > bytes_max {
            return Err(ffi::SQLITE_FULL);
        }
        Ok(())
    }

    /// What the open transaction has written.
    fn written(&mut self) -> Result<&mut Freeze, c_int> {
        if self.written.is_none() {
            let page_count = self.page_count()?;
            self.written = Some(Freeze::new(self.link.store(), page_count));
        }
        self.written.as_mut().ok_or(ffi::SQLITE_INTERNAL)
    }

    fn truncate(&mut self, size: i64) -> Code {
        if self.level < ffi::SQLITE_LOCK_RESERVED {
            return Err(ffi::SQLITE_IOERR_TRUNCATE);
        }
        let (next_page, _) = self.page_of(size)?;
        let page_count = next_page - 1;
        let now = self.page_count()?;
        if self.synced && page_count == now {
            // VACUUM cuts the file between the two phases, to the size that page 1 announced.
            return Ok(());
        }
        self.thaw();
        self.written()?.truncate(page_count);
        Ok(())
    }

    /// The file changes after FCNTL_SYNC: the commit failed elsewhere (a full temporary disk) and
    /// SQLite plays the old pages back. What was frozen is not what will be published.
    fn thaw(&mut self) {
        self.synced = false;
        self.frozen = None;
    }

    fn page_count(&self) -> Result<u32, c_int> {
        match (&self.written, &self.snapshot) {
            (Some(written), _) => Ok(written.page_count()),
            (None, Some(snapshot)) => Ok(snapshot.point().page_count),
            (None, None) => Ok(self.take_snapshot()?.point().page_count),
        }
    }

    fn lock(&mut self, level: c_int) -> Code {
        if self.level == ffi::SQLITE_LOCK_NONE && level >= ffi::SQLITE_LOCK_SHARED {
            let snapshot = self.take_snapshot()?;
            // Only now: a rewind between the two would give a snapshot of the next epoch to a
            // connection that knows the schema of the one that ended, and with that noted as what
            // it holds nobody would ever see the difference again.
            if !self.link.stands() {
                return Err(self.fail(PagesError::Rewound));
            }
            self.link.note_seen(&snapshot);
            self.snapshot = Some(snapshot);
            self.level = ffi::SQLITE_LOCK_SHARED;
        }
        if level >= ffi::SQLITE_LOCK_RESERVED && self.level < ffi::SQLITE_LOCK_RESERVED {
            if self.link.view() == View::Applied {
                return Err(ffi::SQLITE_READONLY);
            }
            if !self.link.may_write() {
                return Err(ffi::SQLITE_BUSY);
            }
            let Some(snapshot) = &self.snapshot else { return Err(ffi::SQLITE_IOERR_LOCK) };
            snapshot.check().map_err(|error| self.fail(error))?;
            if !snapshot.is_head() {
                return Err(ffi::SQLITE_BUSY_SNAPSHOT);
            }
        }
        self.level = self.level.max(level);
        Ok(())
    }

    fn unlock(&mut self, level: c_int) {
        if level <= ffi::SQLITE_LOCK_SHARED && self.level >= ffi::SQLITE_LOCK_RESERVED {
            // Not published: a rollback.
            self.thaw();
            self.written = None;
        }
        if level == ffi::SQLITE_LOCK_NONE {
            self.snapshot = None;
        }
        self.level = level;
    }

    /// FCNTL_SYNC: the transaction is complete; from here on it can only be published or dropped.
    fn freeze(&mut self) -> Code {
        // A rollback syncs what it played back: the permit must be free before it is taken again.
        self.thaw();
        let (Some(written), Some(snapshot)) = (&mut self.written, &self.snapshot) else {
            return Ok(());
        };
        // VACUUM announces in page 1 the size that it will cut the file to.
        let written_count = written.page_count();
        let announced = written.announce().map_err(PagesError::from).and_then(|()| {
            if written.page_count() > written_count {
                let refused = "the page count in the header is beyond the file";
                return Err(PagesError::Refused(refused));
            }
            Ok(())
        });
        let frozen = announced.and_then(|()| snapshot.store().freeze(snapshot, written));
        self.frozen = frozen.map_err(|error| self.fail(error))?;
        self.synced = true;
        Ok(())
    }

    /// FCNTL_COMMIT_PHASETWO: cannot fail. Without FCNTL_SYNC before it there is nothing to do.
    fn publish(&mut self) {
        if self.written.is_some() && !self.synced {
            self.link.stop_node("a transaction commits what was never frozen");
        }
        (self.written, self.synced) = (None, false);
        // Pages that were written but equal to the old ones replicate nothing.
        let Some(frozen) = self.frozen.take() else { return };
        let Some(store) = self.snapshot.as_ref().map(|s| s.store().clone()) else { return };
        let (snapshot, waiting) = store.publish(frozen);
        let address = Arc::as_ptr(&store).addr();
        self.cached = Some((address, snapshot.point().version, snapshot.epoch()));
        self.probed = None;
        self.link.note_published(&snapshot, waiting);
        self.snapshot = Some(snapshot);
    }
}

// ---- SQLite's interface

/// What SQLite allocates for an open file; the first field is SQLite's own.
#[repr(C)]
struct RawFile {
    base: ffi::sqlite3_file,
    file: *mut File,
}

/// The file behind SQLite's pointer.
///
/// # Safety
/// `raw` must be a file that [`x_open`] opened and [`x_close`] has not closed; SQLite calls the
/// methods of one file from one thread at a time.
unsafe fn file<'a>(raw: *mut ffi::sqlite3_file) -> &'a mut File {
    // SAFETY: by the contract above `file` points to the box that x_open leaked.
    unsafe { &mut *(*raw.cast::<RawFile>()).file }
}

fn guard(call: impl FnOnce() -> Code) -> c_int {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => ffi::SQLITE_OK,
        Ok(Err(code)) => code,
        Err(_) => {
            tracing::error!("a panic in the virtual file system; the statement fails");
            ffi::SQLITE_INTERNAL
        }
    }
}

unsafe extern "C" fn x_open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    raw: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over szOsFile bytes for `raw`, a null or NUL-terminated `name`, and a
    // null or valid `flags_out`. A null pMethods tells it not to close a file that did not open.
    unsafe { (*raw).pMethods = std::ptr::null() };
    guard(|| {
        let opened = if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && !name.is_null() {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(name) };
            let id = name.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            let link = id.and_then(|id| LINKS.lock().remove(&id));
            File::Main(Box::new(MainFile::new(link.ok_or(ffi::SQLITE_CANTOPEN)?)))
        } else if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 {
            // A rollback journal too: it is of use to its own connection only.
            File::Temp(TempFile::new())
        } else {
            return Err(ffi::SQLITE_CANTOPEN);
        };
        // SAFETY: as above; the box is given back in x_close.
        unsafe {
            (*raw.cast::<RawFile>()).file = Box::into_raw(Box::new(opened));
            (*raw).pMethods = &raw const METHODS;
            if !flags_out.is_null() {
                *flags_out = flags;
            }
        }
        Ok(())
    })
}

unsafe extern "C" fn x_close(raw: *mut ffi::sqlite3_file) -> c_int {
    guard(|| {
        // SAFETY: the box of x_open, given back exactly once.
        unsafe {
            drop(Box::from_raw((*raw.cast::<RawFile>()).file));
            (*raw).pMethods = std::ptr::null();
        }
        Ok(())
    })
}

unsafe extern "C" fn x_read(
    raw: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    guard(|| {
        let len = usize::try_from(amount).map_err(|_| ffi::SQLITE_IOERR_READ)?;
        // SAFETY: SQLite's buffer has `amount` bytes; the file is open.
        let (out, file) =
            unsafe { (std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len), file(raw)) };
        let whole = match file {
            File::Main(main) => main.read(offset, out)?,
            File::Temp(temp) => temp.read(offset, out)?,
        };
        if whole { Ok(()) } else { Err(ffi::SQLITE_IOERR_SHORT_READ) }
    })
}

unsafe extern "C" fn x_write(
    raw: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    guard(|| {
        let len = usize::try_from(amount).map_err(|_| ffi::SQLITE_IOERR_WRITE)?;
        // SAFETY: SQLite's buffer has `amount` bytes; the file is open.
        let (data, file) =
            unsafe { (std::slice::from_raw_parts(buffer.cast::<u8>(), len), file(raw)) };
        match file {
            File::Main(main) => main.write(offset, data),
            File::Temp(temp) => temp.write(offset, data),
        }
    })
}

unsafe extern "C" fn x_truncate(raw: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: the file is open.
    guard(|| match unsafe { file(raw) } {
        File::Main(main) => main.truncate(size),
        File::Temp(temp) => temp.truncate(size),
    })
}

unsafe extern "C" fn x_sync(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // Durability is the Raft log's.
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_file_size(raw: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    guard(|| {
        // SAFETY: the file is open.
        let size = match unsafe { file(raw) } {
            File::Main(main) => {
                let page_size = i64::try_from(main.link.page_size()).unwrap_or(0);
                i64::from(main.page_count()?) * page_size
            }
            File::Temp(temp) => temp.size(),
        };
        // SAFETY: SQLite's pointer is valid.
        unsafe { *out = size };
        Ok(())
    })
}

unsafe extern "C" fn x_lock(raw: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: the file is open.
    guard(|| match unsafe { file(raw) } {
        File::Main(main) => main.lock(level),
        File::Temp(_) => Ok(()),
    })
}

unsafe extern "C" fn x_unlock(raw: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    guard(|| {
        // SAFETY: the file is open.
        if let File::Main(main) = unsafe { file(raw) } {
            main.unlock(level);
        }
        Ok(())
    })
}

unsafe extern "C" fn x_check_reserved_lock(raw: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    guard(|| {
        // A hot journal is what SQLite would look for; there is none, ever.
        // SAFETY: the file is open and SQLite's pointer is valid.
        unsafe {
            *out = match file(raw) {
                File::Main(main) => c_int::from(main.level >= ffi::SQLITE_LOCK_RESERVED),
                File::Temp(_) => 0,
            };
        }
        Ok(())
    })
}

unsafe extern "C" fn x_file_control(
    raw: *mut ffi::sqlite3_file,
    operation: c_int,
    _: *mut c_void,
) -> c_int {
    guard(|| {
        // SAFETY: the file is open.
        let File::Main(main) = (unsafe { file(raw) }) else {
            return Err(ffi::SQLITE_NOTFOUND);
        };
        match operation {
            ffi::SQLITE_FCNTL_SYNC => main.freeze(),
            ffi::SQLITE_FCNTL_COMMIT_PHASETWO => {
                let link = main.link.clone();
                if catch_unwind(AssertUnwindSafe(|| main.publish())).is_err() {
                    // SQLite has committed in its cache; nobody knows whether the store has.
                    link.stop_node("publishing a transaction panicked");
                }
                Ok(())
            }
            _ => Err(ffi::SQLITE_NOTFOUND),
        }
    })
}

unsafe extern "C" fn x_sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn x_device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_ATOMIC
        | ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | ffi::SQLITE_IOCAP_SAFE_APPEND
        | ffi::SQLITE_IOCAP_SEQUENTIAL
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn x_delete(_: *mut ffi::sqlite3_vfs, _: *const c_char, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_access(
    _: *mut ffi::sqlite3_vfs,
    _: *const c_char,
    _: c_int,
    out: *mut c_int,
) -> c_int {
    // No journal, no WAL: nothing lies beside a database.
    // SAFETY: SQLite's pointer is valid.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_full_pathname(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    guard(|| {
        let size = usize::try_from(size).map_err(|_| ffi::SQLITE_CANTOPEN)?;
        // SAFETY: `name` is NUL-terminated and `out` has `size` bytes.
        unsafe {
            let bytes = CStr::from_ptr(name).to_bytes_with_nul();
            if bytes.len() > size {
                return Err(ffi::SQLITE_CANTOPEN);
            }
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
        }
        Ok(())
    })
}

/// SQLite's busy handler sleeps between its attempts to lock a file. Nothing here waits: who has
/// not got the write slot is told so at once, and waits for it outside of SQLite.
unsafe extern "C" fn x_sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

/// What CURRENT_TIMESTAMP and its like are made from.
unsafe extern "C" fn x_current_time_int64(
    _: *mut ffi::sqlite3_vfs,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    guard(|| {
        let machine = || SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let unix: Duration =
            CLOCK.with_borrow(|clock| clock.as_ref().map_or_else(machine, |clock| clock.unix()));
        let since_epoch = i64::try_from(unix.as_millis()).unwrap_or_default();
        // SAFETY: SQLite hands over a valid place for the time.
        unsafe { *out = EPOCH_JULIAN_MS + since_epoch };
        Ok(())
    })
}

/// Registers the VFS, with randomness from SQLite's own.
fn register() -> bool {
    // SAFETY: sqlite3_vfs_find returns null or a VFS that lives as long as the process; the
    // structure that is registered is leaked, so it does too.
    unsafe {
        let own = ffi::sqlite3_vfs_find(std::ptr::null());
        if own.is_null() {
            return false;
        }
        let Ok(name) = CString::new(VFS_NAME) else { return false };
        let mut vfs: ffi::sqlite3_vfs = std::mem::zeroed();
        vfs.iVersion = 2;
        vfs.szOsFile = c_int::try_from(size_of::<RawFile>()).unwrap_or(c_int::MAX);
        vfs.mxPathname = 64;
        vfs.zName = name.into_raw();
        vfs.xOpen = Some(x_open);
        vfs.xDelete = Some(x_delete);
        vfs.xAccess = Some(x_access);
        vfs.xFullPathname = Some(x_full_pathname);
        vfs.xRandomness = (*own).xRandomness;
        vfs.xSleep = Some(x_sleep);
        vfs.xCurrentTime = (*own).xCurrentTime;
        // The one that SQLite asks, of a VFS that has both.
        vfs.xCurrentTimeInt64 = Some(x_current_time_int64);
        vfs.xGetLastError = (*own).xGetLastError;
        let leaked = Box::into_raw(Box::new(vfs));
        ffi::sqlite3_vfs_register(leaked, 0) == ffi::SQLITE_OK
    }
}
