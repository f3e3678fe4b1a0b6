//! The log as its users see it. Power cuts, damage and faults are in `cuts`, random operations
//! against a model in `random`.

mod cuts;
mod damage;
mod golden;
mod mend;
mod random;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Done, Entry, EntryKind, Log, LogId, LogOptions, LogState, Vote, index_of};
use crate::base::Executor;
use crate::disk::{Disk, FakeDisk, RealDisk};

/// Segments of a few records and hardly any cache, so that a short test meets everything.
const SMALL: LogOptions = LogOptions { segment_bytes: 4096, cache_bytes_max: 1000 };

fn open(disk: &FakeDisk) -> Log {
    Log::open(Arc::new(disk.clone()), Executor::Inline, SMALL).unwrap()
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let kind = match index % 3 {
        0 => EntryKind::Blank,
        1 => EntryKind::Command,
        _ => EntryKind::Membership,
    };
    let payload: Vec<u8> = (0..bytes).map(|i| (term * 31 + index * 7 + i as u64) as u8).collect();
    Entry { id: id(term, index), kind, payload: Bytes::from(payload) }
}

fn entries(term: u64, indices: std::ops::Range<u64>) -> Vec<Entry> {
    indices.map(|index| entry(term, index, 100)).collect()
}

fn ignore() -> Done {
    Box::new(|_| {})
}

/// Makes a call and waits for its `Done`.
fn wait(call: impl FnOnce(Done)) -> io::Result<()> {
    let (tell, told) = mpsc::channel();
    call(Box::new(move |result| tell.send(result).unwrap()));
    told.recv().unwrap()
}

fn all(log: &Log) -> Vec<Entry> {
    let mut from = index_of(log.state().purged).map_or(0, |purged| purged + 1);
    let mut all = Vec::new();
    // A log that began elsewhere than at 0.
    while log.read(from, u64::MAX, 1).unwrap().is_empty() && from < 2000 {
        from += 1;
    }
    loop {
        let some = log.read(from, u64::MAX, 700).unwrap();
        let Some(last) = some.last() else { return all };
        from = last.id.index + 1;
        all.extend(some);
    }
}

/// What a log should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    state: LogState,
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    fn append(&mut self, entry: Entry) {
        self.state.last = Some(entry.id);
        self.entries.insert(entry.id.index, entry);
    }

    fn truncate_after(&mut self, last_kept: Option<LogId>) {
        self.entries.retain(|index, _| Some(*index) <= index_of(last_kept));
        self.state.last = last_kept;
        if index_of(self.state.committed) > index_of(last_kept) {
            self.state.committed = last_kept;
        }
    }

    fn purge(&mut self, upto: LogId) {
        self.entries.retain(|index, _| *index > upto.index);
        self.state.purged = self.state.purged.max(Some(upto));
        if index_of(self.state.last) < Some(upto.index) {
            self.state.last = Some(upto);
        }
    }

    fn of(log: &Log) -> Model {
        let entries = all(log).into_iter().map(|entry| (entry.id.index, entry)).collect();
        Model { state: log.state(), entries }
    }
}

#[test]
fn what_was_written_is_read_back_after_reopening() {
    for executor in [Executor::Threads, Executor::Inline] {
        let dir = tempfile::tempdir().unwrap();
        let vote = Vote { term: 3, node: 7, committed: true };
        let disk = RealDisk::open(dir.path()).unwrap();
        let log = Log::open(disk.clone(), executor, SMALL).unwrap();
        assert_eq!(log.state(), LogState::default());
        wait(|done| log.append(entries(1, 0..100), done)).unwrap();
        wait(|done| log.truncate_after(Some(id(1, 49)), done)).unwrap();
        wait(|done| log.append(entries(2, 50..80), done)).unwrap();
        wait(|done| log.save_vote(vote, done)).unwrap();
        log.save_committed(Some(id(2, 60)));
        log.set_purge_limit(Some(20));
        wait(|done| log.purge(id(1, 20), done)).unwrap();
        let before = Model::of(&log);
        assert_eq!(before.entries.len(), 59);
        assert_eq!(log.metrics().groups.load(Ordering::Relaxed), 25);
        assert!(log.bytes_since(70) == 10 * 152 && log.bytes_since(80) == 0);
        log.stop();
        drop(log);
        let log = Log::open(disk, executor, SMALL).unwrap();
        assert_eq!(Model::of(&log), before);
        let expected = LogState {
            purged: Some(id(1, 20)),
            last: Some(id(2, 79)),
            vote: Some(vote),
            committed: Some(id(2, 60)),
        };
        assert_eq!(log.state(), expected);
        assert_eq!(log.bytes_since(70), 10 * 152);
    }
}

#[test]
fn reads_are_bounded_but_give_at_least_one() {
    let log = open(&FakeDisk::new());
    log.append(entries(1, 0..50), ignore());
    assert_eq!(log.read(3, 9, usize::MAX).unwrap(), entries(1, 3..9));
    assert_eq!(log.read(3, 9, 0).unwrap(), entries(1, 3..4));
    assert_eq!(log.read(49, 99, 0).unwrap(), entries(1, 49..50));
    assert_eq!(log.read(3, 99, 152 * 4).unwrap(), entries(1, 3..7));
    assert_eq!(log.read(40, 99, 152 * 9).unwrap(), entries(1, 40..49));
    assert_eq!(log.read(50, 99, 1000).unwrap(), []);
    assert_eq!(log.read(5, 5, 1000).unwrap(), []);
    log.set_purge_limit(Some(10));
    log.purge(id(1, 10), ignore());
    assert_eq!(log.read(10, 20, 1000).unwrap(), []);
    assert_eq!(log.read(11, 13, 1000).unwrap(), entries(1, 11..13));
}

#[test]
fn calls_that_make_no_sense_are_refused_and_change_nothing() {
    let log = open(&FakeDisk::new());
    wait(|done| log.append(entries(1, 0..10), done)).unwrap();
    let before = log.state();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(wait(|d| log.append(entries(1, 11..12), d))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(wait(|d| log.append(entries(1, 9..12), d))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(wait(|d| log.truncate_after(Some(id(1, 10)), d))), io::ErrorKind::InvalidInput);
    assert_eq!(kind(wait(|d| log.purge(id(1, 0), d))), io::ErrorKind::InvalidInput);
    log.set_purge_limit(Some(5));
    let error = wait(|d| log.purge(id(1, 6), d)).unwrap_err();
    assert!(error.to_string().contains("up to 5"), "{error}");
    log.save_committed(Some(id(1, 10)));
    assert_eq!(log.state(), before);
    wait(|d| log.purge(id(1, 5), d)).unwrap();
    assert_eq!(kind(wait(|d| log.truncate_after(Some(id(1, 4)), d))), io::ErrorKind::InvalidInput);
    wait(|d| log.append(Vec::new(), d)).unwrap();
    log.stop();
    assert_eq!(kind(wait(|d| log.append(entries(1, 10..11), d))), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_purge_beyond_the_end_goes_on_after_it() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    log.append(entries(1, 0..10), ignore());
    log.set_purge_limit(Some(1000));
    wait(|done| log.purge(id(3, 500), done)).unwrap();
    assert_eq!(log.state().last, Some(id(3, 500)));
    assert_eq!(all(&log), []);
    drop(log);
    let log = open(&disk);
    assert_eq!((log.state().purged, log.state().last), (Some(id(3, 500)), Some(id(3, 500))));
    wait(|done| log.append(entries(3, 501..520), done)).unwrap();
    drop(log);
    assert_eq!(all(&open(&disk)), entries(3, 501..520));
}

#[test]
fn a_log_may_begin_anywhere() {
    let disk = FakeDisk::new();
    wait(|done| open(&disk).append(entries(1, 3..200), done)).unwrap();
    assert_eq!(all(&open(&disk)), entries(1, 3..200));
}

#[test]
fn purged_segments_are_removed() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    log.append(entries(1, 0..1000), ignore());
    let before = disk.list("log").unwrap().len();
    log.set_purge_limit(Some(999));
    wait(|done| log.purge(id(1, 989), done)).unwrap();
    let after = disk.list("log").unwrap().len();
    assert!(before > 30 && after <= 3, "{before} {after}");
    assert_eq!(all(&log), entries(1, 990..1000));
    for _ in 0..10 {
        assert_eq!(all(&open(&disk)), entries(1, 990..1000));
    }
    assert!(disk.list("log").unwrap().len() <= 3, "reopening does not pile up segments");
}

#[test]
fn an_entry_larger_than_a_segment_gets_a_larger_one() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    let large = vec![entry(1, 0, 100), entry(1, 1, 50_000), entry(1, 2, 9_000), entry(1, 3, 1)];
    wait(|done| log.append(large.clone(), done)).unwrap();
    assert_eq!(all(&log), large);
    drop(log);
    assert_eq!(all(&open(&disk)), large);
    assert_eq!(all(&open(&disk)), large);
}

#[test]
fn many_threads_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let log = Log::open(disk, Executor::Threads, LogOptions::default()).unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    for index in 0..5000 {
        let done = done.clone();
        log.append(
            vec![entry(1, index, 200)],
            Box::new(move |result| {
                result.unwrap();
                done.lock().push(index);
            }),
        );
    }
    log.stop();
    assert_eq!(*done.lock(), (0..5000).collect::<Vec<_>>(), "in call order");
    let groups = log.metrics().groups.load(Ordering::Relaxed);
    assert!(groups < 2500, "{groups}");
    assert_eq!(log.metrics().records.load(Ordering::Relaxed), 5000);
}

#[test]
fn a_vote_is_not_reported_before_the_entries_written_before_it() {
    let disk = FakeDisk::new();
    let log = Log::open(Arc::new(disk.clone()), Executor::Threads, SMALL).unwrap();
    disk.hold_syncs();
    let (tell, told) = mpsc::channel();
    let say = |what: &'static str| -> Done {
        let tell = tell.clone();
        Box::new(move |result| tell.send((what, result.is_ok())).unwrap())
    };
    log.append(entries(1, 0..1), say("append"));
    while disk.waiting_syncs() == 0 {
        std::thread::yield_now();
    }
    log.save_vote(Vote { term: 2, node: 1, committed: false }, say("vote"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(told.try_recv().is_err(), "nothing is durable while the sync is held");
    assert_eq!(log.read(0, 1, 0).unwrap().len(), 1, "but it can be read");
    disk.release_syncs();
    assert_eq!(told.recv().unwrap(), ("append", true));
    assert_eq!(told.recv().unwrap(), ("vote", true));
}

#[test]
fn a_callback_may_call_again() {
    let log = open(&FakeDisk::new());
    let again = log.clone();
    log.append(entries(1, 0..1), Box::new(move |_| again.append(entries(1, 1..2), ignore())));
    assert_eq!(all(&log), entries(1, 0..2));
}

/// `cargo test --release -- --ignored --nocapture log_speed`: entries per second, by how many
/// are under way at once.
#[test]
#[ignore = "a measurement"]
fn log_speed() {
    for under_way in [1, 16, 256, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let log = Log::open(disk, Executor::Threads, LogOptions::default()).unwrap();
        let (tell, told) = mpsc::sync_channel(under_way);
        (0..under_way).for_each(|_| tell.send(()).unwrap());
        let start = std::time::Instant::now();
        let mut index = 0;
        while start.elapsed().as_secs_f64() < 3.0 {
            told.recv().unwrap();
            let tell = tell.clone();
            let done: Done = Box::new(move |result| {
                result.unwrap();
                let _ = tell.try_send(());
            });
            log.append(vec![entry(1, index, 300)], done);
            index += 1;
        }
        let seconds = start.elapsed().as_secs_f64();
        log.stop();
        let metrics = log.metrics();
        println!(
            "{under_way:>5} under way: {:>8.0} entries/s, {:>6.0} syncs/s",
            index as f64 / seconds,
            metrics.groups.load(Ordering::Relaxed) as f64 / seconds,
        );
        drop(log);
        let start = std::time::Instant::now();
        let disk = RealDisk::open(dir.path()).unwrap();
        let log = Log::open(disk, Executor::Threads, LogOptions::default()).unwrap();
        let bytes = log.bytes_since(0);
        println!("      reopening {} MiB took {:?}", bytes >> 20, start.elapsed());
    }
}
