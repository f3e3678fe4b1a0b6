//! A disk in memory that can lose power, fail, fill up and rot, all of it reproducibly.
//!
//! It keeps what a real machine keeps apart: the content that readers see, and the content that is
//! durable. Writes of a file become durable by its `sync`, names by the `sync_dir` of their
//! directory. [`FakeDisk::after_cut`] gives the disk that a power cut after the n-th mutating call
//! leaves: of what was not synced, each write is lost, kept or torn into sectors of 512 bytes, and
//! each directory keeps a prefix of its unsynced changes; what was synced is always there. A sync
//! that failed loses its grip on the writes it should have made durable: a later sync that
//! succeeds says nothing about them, as on Linux.
//!
//! Every mutating call is recorded (unless made by [`FakeDisk::unrecorded`]), so that a workload
//! is run once and cut at every call. Clones share one disk.
//!
//! *Invariant*: no thread, clock or randomness but the seeds passed in; the same calls in the same
//! order give the same disk.

mod content;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use self::state::{InodeId, Op, State};
use super::{Disk, DiskFile, SqliteLock};

/// So many recorded calls are replayed at most to cut the power after one of them.
const CALLS_BETWEEN_MARKS: usize = 64;

/// What a cut does to everything that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it is lost.
    Lose,
    /// All of it is kept.
    Keep,
    /// Each write is lost, kept or torn, each directory keeps a prefix, by this seed.
    Random(u64),
}

impl Cut {
    /// Seed 0 loses all, seed 1 keeps all, every other one is random.
    pub fn from_seed(seed: u64) -> Cut {
        match seed {
            0 => Cut::Lose,
            1 => Cut::Keep,
            seed => Cut::Random(seed),
        }
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO. A write may have been done in part; a sync gives up on what it should have synced.
    Io,
    /// ENOSPC; nothing was done. A sync that meets it gives up like with `Io`.
    Full,
}

/// A disk in memory.
#[derive(Clone)]
pub struct FakeDisk {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    released: Condvar,
}

struct Inner {
    state: State,
    /// Where `history` starts from.
    initial: State,
    history: Option<Vec<Op>>,
    /// The state after every so many calls of `history`, not to replay all of it for each cut.
    marks: Vec<State>,
    /// What each call of `history` was the count's when it was made.
    ticks: Vec<u64>,
    /// Counts calls, of all disks that share it.
    count: Arc<AtomicU64>,
    /// Mutating calls so far, failed ones included.
    calls: u64,
    /// Which of them fail, and how.
    faults: BTreeMap<u64, Fault>,
    /// From this call on, all fail.
    fault_from: Option<(u64, Fault)>,
    reads: u64,
    read_faults: BTreeMap<u64, Fault>,
    bytes_max: Option<u64>,
    halted: bool,
    hold_syncs: bool,
    waiting_syncs: usize,
    foreign_locks: BTreeMap<String, SqliteLock>,
    /// How many handles each file has.
    open: BTreeMap<InodeId, usize>,
}

impl Default for FakeDisk {
    fn default() -> FakeDisk {
        FakeDisk::new()
    }
}

impl FakeDisk {
    /// An empty disk that records its calls.
    pub fn new() -> FakeDisk {
        FakeDisk::from_state(State::default(), true)
    }

    /// An empty disk for long runs: it keeps no record, so it can be cut only where it stands
    /// ([`FakeDisk::cut`]).
    pub fn unrecorded() -> FakeDisk {
        FakeDisk::from_state(State::default(), false)
    }

    /// An empty disk that records its calls on a count which it shares with other disks, so that
    /// the power can fail under all of them at one moment ([`FakeDisk::calls_before`]).
    pub fn counted_by(count: Arc<AtomicU64>) -> FakeDisk {
        let disk = FakeDisk::new();
        disk.shared.inner.lock().count = count;
        disk
    }

    /// How many of the recorded calls were made before the shared count reached `tick`.
    pub fn calls_before(&self, tick: u64) -> u64 {
        self.shared.inner.lock().ticks.partition_point(|made| *made < tick) as u64
    }

    fn from_state(state: State, recording: bool) -> FakeDisk {
        let inner = Inner {
            initial: if recording { state.clone() } else { State::default() },
            state,
            history: recording.then(Vec::new),
            marks: Vec::new(),
            ticks: Vec::new(),
            count: Arc::default(),
            calls: 0,
            faults: BTreeMap::new(),
            fault_from: None,
            reads: 0,
            read_faults: BTreeMap::new(),
            bytes_max: None,
            halted: false,
            hold_syncs: false,
            waiting_syncs: 0,
            foreign_locks: BTreeMap::new(),
            open: BTreeMap::new(),
        };
        FakeDisk { shared: Arc::new(Shared { inner: Mutex::new(inner), released: Condvar::new() }) }
    }

    /// How many mutating calls were made (the n of [`FakeDisk::after_cut`] and of the faults).
    pub fn calls(&self) -> u64 {
        self.shared.inner.lock().calls
    }

    /// How many reads were made (the n of [`FakeDisk::fail_read`]).
    pub fn reads(&self) -> u64 {
        self.shared.inner.lock().reads
    }

    /// The recorded calls as text, one line each, for reading.
    pub fn transcript(&self) -> Vec<String> {
        let inner = self.shared.inner.lock();
        inner.history.iter().flatten().map(ToString::to_string).collect()
    }

    /// The disk that a power cut after the first `n` mutating calls leaves; `seed` as in
    /// [`Cut::from_seed`]. It records anew, starting from what is left. A disk that keeps no
    /// record is cut where it stands.
    pub fn after_cut(&self, n: u64, seed: u64) -> FakeDisk {
        let inner = self.shared.inner.lock();
        let Some(history) = &inner.history else {
            return FakeDisk::from_state(inner.state.after_cut(Cut::from_seed(seed)), false);
        };
        let n = usize::try_from(n).unwrap_or(usize::MAX).min(history.len());
        let mark = (n / CALLS_BETWEEN_MARKS).min(inner.marks.len());
        let last = mark.checked_sub(1).and_then(|last| inner.marks.get(last));
        let mut state = last.unwrap_or(&inner.initial).clone();
        for op in &history[mark * CALLS_BETWEEN_MARKS..n] {
            state.apply(op);
        }
        FakeDisk::from_state(state.after_cut(Cut::from_seed(seed)), true)
    }

    /// The disk that a power cut leaves now.
    pub fn cut(&self, cut: Cut) -> FakeDisk {
        let inner = self.shared.inner.lock();
        FakeDisk::from_state(inner.state.after_cut(cut), inner.history.is_some())
    }

    /// From now on every call fails, as for a process whose machine is off.
    pub fn halt(&self) {
        self.shared.inner.lock().halted = true;
        self.release_syncs();
    }

    /// The `n`-th mutating call (counted from 0) fails.
    pub fn fail_call(&self, n: u64, fault: Fault) {
        self.shared.inner.lock().faults.insert(n, fault);
    }

    /// The `n`-th mutating call and all later ones fail.
    pub fn fail_from(&self, n: u64, fault: Fault) {
        self.shared.inner.lock().fault_from = Some((n, fault));
    }

    /// The `n`-th read (counted from 0) fails with EIO.
    pub fn fail_read(&self, n: u64) {
        self.shared.inner.lock().read_faults.insert(n, Fault::Io);
    }

    /// Lifts all faults.
    pub fn heal(&self) {
        let mut inner = self.shared.inner.lock();
        inner.faults.clear();
        inner.fault_from = None;
        inner.read_faults.clear();
    }

    /// From now on `sync` of a file waits for [`FakeDisk::release_syncs`]. Only with
    /// `Executor::Threads`: inline, nobody is left to release it.
    pub fn hold_syncs(&self) {
        self.shared.inner.lock().hold_syncs = true;
    }

    /// Lets the waiting syncs, and all later ones, go on.
    pub fn release_syncs(&self) {
        self.shared.inner.lock().hold_syncs = false;
        self.shared.released.notify_all();
    }

    /// How many syncs are being held.
    pub fn waiting_syncs(&self) -> usize {
        self.shared.inner.lock().waiting_syncs
    }

    /// Damages a file, durably and without a call: each byte from `offset` on is XORed with one of
    /// `mask`. `NotFound` when there is no such file; bytes beyond its end are left out.
    pub fn flip(&self, path: &str, offset: u64, mask: &[u8]) -> io::Result<()> {
        self.damage(path, &|bytes| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            for (byte, mask) in bytes[start..].iter_mut().zip(mask) {
                *byte ^= mask;
            }
        })
    }

    /// Damages a file, durably and without a call: overwrites its bytes from `offset` on. Bytes
    /// beyond its end are left out.
    pub fn overwrite(&self, path: &str, offset: u64, with: &[u8]) -> io::Result<()> {
        self.damage(path, &|bytes| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            for (byte, with) in bytes[start..].iter_mut().zip(with) {
                *byte = *with;
            }
        })
    }

    /// Damages a file, durably and without a call: nothing is left of it from `len` on.
    pub fn truncate(&self, path: &str, len: u64) -> io::Result<()> {
        self.damage(path, &|bytes| bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    /// Damages a file, durably and without a call: its bytes from `offset` on are those that are
    /// in `of` there, as many as `len` or as there are (`from.1` on, of the file `from.0`): a
    /// block of another place, or of an earlier time.
    pub fn misdirect(
        &self,
        (path, offset): (&str, u64),
        of: &FakeDisk,
        (from, start): (&str, u64),
        len: usize,
    ) -> io::Result<()> {
        let source = of.bytes(from)?;
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(source.len());
        self.overwrite(path, offset, &source[start..source.len().min(start + len)])
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<String> {
        self.shared.inner.lock().state.paths()
    }

    fn damage(&self, path: &str, change: &dyn Fn(&mut Vec<u8>)) -> io::Result<()> {
        let mut inner = self.shared.inner.lock();
        let inode = inner.state.lookup(path)?;
        inner.state.damage(inode, change);
        let Inner { initial, history, marks, .. } = &mut *inner;
        marks.clear();
        if history.is_some()
            && let Ok(inode) = initial.lookup(path)
        {
            initial.damage(inode, change);
        }
        Ok(())
    }

    /// The bytes of a file as a reader sees them.
    pub fn bytes(&self, path: &str) -> io::Result<Vec<u8>> {
        let inner = self.shared.inner.lock();
        let inode = inner.state.lookup(path)?;
        Ok(inner.state.content(inode).to_vec())
    }

    /// Pretends that another process holds SQLite's lock bytes of a database file: nothing, up to
    /// RESERVED, or EXCLUSIVE.
    pub fn set_foreign_lock(&self, path: &str, level: SqliteLock) {
        self.shared.inner.lock().foreign_locks.insert(path.to_owned(), level);
    }

    /// One mutating call: counted, failed if so planned, else recorded and done.
    fn call(&self, op: Op) -> io::Result<Option<InodeId>> {
        let mut inner = self.shared.inner.lock();
        if matches!(op, Op::Sync { .. }) {
            inner.waiting_syncs += 1;
            while inner.hold_syncs {
                self.shared.released.wait(&mut inner);
            }
            inner.waiting_syncs -= 1;
        }
        inner.refuse_if_halted()?;
        let n = inner.calls;
        inner.calls += 1;
        let sticky = inner.fault_from.filter(|(from, _)| n >= *from).map(|(_, fault)| fault);
        if let Some(fault) = inner.faults.remove(&n).or(sticky) {
            inner.record_failed(op, fault);
            return Err(fault.error());
        }
        if let Err(error) = inner.check(&op) {
            // A call that changes nothing still counts, so that the n's of a record agree.
            inner.record(Op::Nothing);
            return Err(error);
        }
        let inode = inner.state.apply(&op);
        if let Some(inode) = inode {
            *inner.open.entry(inode).or_default() += 1;
        }
        if matches!(op, Op::Remove { .. } | Op::Rename { .. } | Op::SyncDir { .. }) {
            inner.collect();
        }
        inner.record(op);
        Ok(inode)
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.shared.inner.lock();
        inner.refuse_if_halted()?;
        let n = inner.reads;
        inner.reads += 1;
        if let Some(fault) = inner.read_faults.remove(&n) {
            return Err(fault.error());
        }
        read(&inner.state)
    }

    fn file(&self, inode: InodeId, path: &str) -> Arc<dyn DiskFile> {
        Arc::new(FakeFile { disk: self.clone(), inode, path: path.to_owned() })
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Fault::Io => io::Error::other("input/output error (planned)"),
            Fault::Full => io::Error::new(io::ErrorKind::StorageFull, "disk full (planned)"),
        }
    }
}

impl Inner {
    fn refuse_if_halted(&self) -> io::Result<()> {
        if self.halted { Err(io::Error::other("the machine is off")) } else { Ok(()) }
    }

    fn collect(&mut self) {
        self.state.collect(&self.open);
    }

    /// Records a call that is done.
    fn record(&mut self, op: Op) {
        let tick = self.count.fetch_add(1, Ordering::SeqCst);
        let Some(history) = &mut self.history else { return };
        history.push(op);
        self.ticks.push(tick);
        if history.len() == (self.marks.len() + 1) * CALLS_BETWEEN_MARKS {
            self.marks.push(self.state.clone());
        }
    }

    /// What a failed call leaves behind.
    fn record_failed(&mut self, op: Op, fault: Fault) {
        let left = match (op, fault) {
            (Op::Sync { inode }, _) => Op::SyncFailed { inode },
            (Op::Write { inode, offset, data }, Fault::Io) => {
                Op::Write { inode, offset, data: data[..data.len() / 2].into() }
            }
            _ => Op::Nothing,
        };
        self.state.apply(&left);
        self.record(left);
    }

    /// Whether a call can be done at all.
    fn check(&self, op: &Op) -> io::Result<()> {
        match op {
            Op::Rename { from, .. } => self.state.lookup(from).map(drop)?,
            Op::Remove { path } => self.state.lookup(path).map(drop)?,
            _ => {}
        }
        self.state.check_parent(op)?;
        let growth = self.state.growth(op);
        if let Some(bytes_max) = self.bytes_max
            && growth > 0
            && self.state.bytes_total().saturating_add(growth) > bytes_max
        {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the byte budget is used up"));
        }
        Ok(())
    }
}

impl Disk for FakeDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.call(Op::Create { path: path.to_owned() })?;
        Ok(self.file(inode.ok_or(io::ErrorKind::NotFound)?, path))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.read(|state| state.lookup(path))?;
        *self.shared.inner.lock().open.entry(inode).or_default() += 1;
        Ok(self.file(inode, path))
    }

    fn temp(&self) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.call(Op::Temp)?;
        Ok(self.file(inode.ok_or(io::ErrorKind::NotFound)?, "tmp/?"))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(Op::Rename { from: from.to_owned(), to: to.to_owned() }).map(drop)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.call(Op::Remove { path: path.to_owned() }).map(drop)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.read(|state| Ok(state.lookup(path).is_ok() || state.is_dir(path)))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.read(|state| Ok(state.list(dir)))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.call(Op::CreateDir { dir: dir.to_owned() }).map(drop)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.call(Op::SyncDir { dir: dir.to_owned() }).map(drop)
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let inner = self.shared.inner.lock();
        let bytes_max = inner.bytes_max.unwrap_or(u64::MAX);
        Ok(bytes_max.saturating_sub(inner.state.bytes_total()))
    }

    fn set_budget(&self, bytes_max: Option<u64>) {
        self.shared.inner.lock().bytes_max = bytes_max;
    }
}

struct FakeFile {
    disk: FakeDisk,
    inode: InodeId,
    path: String,
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        let mut inner = self.disk.shared.inner.lock();
        let last = match inner.open.get_mut(&self.inode) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => true,
        };
        if last {
            inner.open.remove(&self.inode);
            inner.collect();
        }
    }
}

impl DiskFile for FakeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.read(|state| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            Ok(state.content(self.inode).read(start, buf))
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::Write { inode: self.inode, offset, data: data.into() };
        self.disk.call(op).map(drop)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call(Op::Sync { inode: self.inode }).map(drop)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.call(Op::SetLen { inode: self.inode, len, grow_only: false }).map(drop)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.read(|state| Ok(state.content(self.inode).len() as u64))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.call(Op::SetLen { inode: self.inode, len, grow_only: true }).map(drop)
    }

    fn sqlite_lock(&self, level: SqliteLock) -> io::Result<()> {
        let inner = self.disk.shared.inner.lock();
        inner.refuse_if_halted()?;
        let foreign = inner.foreign_locks.get(&self.path);
        match (level, foreign) {
            (SqliteLock::Unlocked, _) | (_, None | Some(SqliteLock::Unlocked)) => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests;
