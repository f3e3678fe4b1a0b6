//! Power cuts at every call of a run, against a ledger of what was acknowledged; calls that fail.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Model, entries, entry, id, ignore, open, wait};
use crate::base::{Executor, Randomness, SplitMix};
use crate::disk::{Cut, Disk, FakeDisk, Fault};
use crate::log::{Done, Log, LogId, Vote, index_of};

/// A random run: every state the log went through, one for each record written, and for each
/// batch of calls the states it began and ended with, and the disk's call count at its end.
struct Run {
    log: Option<Log>,
    disk: FakeDisk,
    random: SplitMix,
    states: Vec<Model>,
    /// (disk calls when it began, when it was acknowledged, states then).
    batches: Vec<(u64, u64, usize)>,
    committed: Vec<Option<LogId>>,
}

type Planned = Box<dyn FnOnce(&Log, Done) + Send>;

impl Run {
    fn new(disk: FakeDisk, seed: u64) -> Run {
        Run {
            log: None,
            disk,
            random: SplitMix::new(seed),
            states: vec![Model::default()],
            batches: Vec::new(),
            committed: vec![None],
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    /// Plans one call and notes the states it leads to.
    fn plan(&mut self) -> Planned {
        let mut model = self.states.last().unwrap().clone();
        let last = index_of(model.state.last).unwrap_or(0);
        let term = self.states.len() as u64;
        let kept = last.saturating_sub(self.below(8));
        let kept = model.entries.get(&kept).map(|entry| entry.id);
        match (self.below(10), kept) {
            (0, _) => {
                let vote = Vote { term, node: self.below(5), committed: self.below(2) == 0 };
                model.state.vote = Some(vote);
                self.states.push(model);
                Box::new(move |log, done| log.save_vote(vote, done))
            }
            (1, Some(kept)) => {
                model.truncate_after(Some(kept));
                self.states.push(model);
                Box::new(move |log, done| log.truncate_after(Some(kept), done))
            }
            (2, Some(upto)) => {
                model.purge(upto);
                self.states.push(model);
                Box::new(move |log, done| log.purge(upto, done))
            }
            (3, _) if self.below(4) == 0 => {
                model.purge(id(term, last + 3));
                self.states.push(model);
                Box::new(move |log, done| log.purge(id(term, last + 3), done))
            }
            (4, Some(committed)) => {
                self.committed.push(Some(committed));
                Box::new(move |log, done| {
                    log.save_committed(Some(committed));
                    log.append(Vec::new(), done);
                })
            }
            _ => {
                let next = model.state.next_index().unwrap_or(0);
                let (count, bytes) = (1 + self.below(5), self.below(700) as usize);
                let new: Vec<_> = (next..next + count).map(|i| entry(term, i, bytes)).collect();
                for entry in &new {
                    model.append(entry.clone());
                    self.states.push(model.clone());
                }
                Box::new(move |log, done| log.append(new, done))
            }
        }
    }

    /// Makes several calls at once: from within a callback they are only queued.
    fn batch(&mut self) -> Result<(), String> {
        let began = self.disk.calls();
        let calls: Vec<_> = (0..1 + self.below(4)).map(|_| self.plan()).collect();
        let n = calls.len();
        let results = Arc::new(Mutex::new(Vec::new()));
        let log = self.log.clone().unwrap();
        let (again, told) = (log.clone(), results.clone());
        log.append(
            Vec::new(),
            Box::new(move |_| {
                for call in calls {
                    let told = told.clone();
                    call(&again, Box::new(move |result| told.lock().push(result)));
                }
            }),
        );
        let results = std::mem::take(&mut *results.lock());
        assert_eq!(results.len(), n);
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return Err(error.to_string());
        }
        self.batches.push((began, self.disk.calls(), self.states.len() - 1));
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        self.log = None;
        let log = Log::open(Arc::new(self.disk.clone()), Executor::Inline, super::SMALL)
            .map_err(|error| error.to_string())?;
        log.set_purge_limit(Some(u64::MAX));
        self.log = Some(log);
        Ok(())
    }

    /// Runs to the end or to the first error.
    fn go(&mut self, batches: usize) -> Result<(), String> {
        self.open()?;
        for _ in 0..batches {
            if self.below(12) == 0 {
                // A crash of the process alone: no stop, nothing synced.
                self.open()?;
            }
            self.batch()?;
        }
        Ok(())
    }

    /// The states that a disk cut after `n` calls may show.
    fn allowed(&self, n: u64) -> &[Model] {
        let acknowledged = self.batches.iter().rev().find(|batch| batch.1 <= n);
        let issued = self.batches.iter().find(|batch| batch.1 > n).filter(|batch| batch.0 < n);
        let from = acknowledged.map_or(0, |batch| batch.2);
        &self.states[from..=issued.map_or(from, |batch| batch.2)]
    }

    fn check(&self, log: &Log, allowed: &[Model], context: &str) {
        let mut got = Model::of(log);
        let committed = got.state.committed.take();
        assert!(index_of(committed) <= index_of(got.state.last), "{context}");
        let fits = allowed.iter().any(|model| {
            let mut model = model.clone();
            model.state.committed = None;
            model == got
        });
        assert!(fits, "{context}: {:?} with {:?}", got.state, got.entries.keys());
        // Clamped by a truncation, it is the entry truncated to.
        let known = self.committed.contains(&committed)
            || self.states.iter().any(|model| model.state.last == committed);
        assert!(known, "{context}");
    }
}

/// Cuts a run after each of its calls, opens what is left, goes on a little, and cuts again.
fn cut_everywhere(seed: u64, batches: usize, policies: u64) -> u64 {
    let mut run = Run::new(FakeDisk::new(), seed);
    run.go(batches).unwrap();
    let mut cuts = 0;
    for n in 0..=run.disk.calls() {
        for policy in 0..policies {
            let context = format!("run {seed} cut after call {n}, policy {policy}");
            let policy = if policy < 2 { policy } else { policy + 1000 * n + seed };
            let disk = run.disk.after_cut(n, policy);
            let log = match Log::open(Arc::new(disk.clone()), Executor::Inline, super::SMALL) {
                Ok(log) => log,
                Err(error) => panic!("{context}: {error}\n{}", run.disk.transcript().join("\n")),
            };
            run.check(&log, run.allowed(n), &context);
            let mut after = Model::of(&log);
            let opened = disk.calls();
            let next = after.state.next_index().unwrap_or(0);
            let new = entry(1 << 40, next, 300);
            wait(|done| log.append(vec![new.clone()], done)).unwrap();
            let before = after.clone();
            after.append(new);
            let appended = disk.calls();
            for n in 0..=appended {
                let log = open(&disk.after_cut(n, policy + n));
                let both = [before.clone(), after.clone()];
                let allowed = if n == appended {
                    &both[1..]
                } else if n <= opened {
                    &both[..1]
                } else {
                    &both[..]
                };
                run.check(&log, allowed, &format!("{context}, then after {n}"));
                cuts += 1;
            }
        }
    }
    cuts
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_and_invents_nothing() {
    let mut cuts = 0;
    for seed in 0..4 {
        cuts += cut_everywhere(seed, 25, 4);
    }
    assert!(cuts > 300, "{cuts}");
}

/// `cargo test --release -- --ignored many_power_cuts`
#[test]
#[ignore = "a longer run"]
fn many_power_cuts() {
    let cuts: u64 = (100..140).map(|seed| cut_everywhere(seed, 40, 8)).sum();
    assert!(cuts > 20_000, "{cuts}");
}

#[test]
fn a_failed_call_ends_the_log_and_loses_nothing_acknowledged() {
    let calls = {
        let mut run = Run::new(FakeDisk::new(), 5);
        run.go(25).unwrap();
        run.disk.calls()
    };
    for n in 0..calls {
        for fault in [Fault::Io, Fault::Full] {
            for sticky in [false, true] {
                let mut run = Run::new(FakeDisk::new(), 5);
                if sticky {
                    run.disk.fail_from(n, fault);
                } else {
                    run.disk.fail_call(n, fault);
                }
                let ended = run.go(25);
                let context = format!("{fault:?} at call {n}, sticky {sticky}: {ended:?}");
                assert!(ended.is_err() || !sticky, "{context}");
                if ended.is_err()
                    && let Some(log) = &run.log
                {
                    let vote = Vote { term: 1, node: 1, committed: false };
                    let more = wait(|done| log.save_vote(vote, done));
                    assert!(more.is_err(), "{context}");
                }
                run.disk.heal();
                let acknowledged = run.batches.last().map_or(0, |batch| batch.2);
                for cut in [Cut::Lose, Cut::Keep, Cut::Random(n + 1)] {
                    // Started anew on the same machine, then the power is cut.
                    let log = open(&run.disk);
                    run.check(&log, &run.states[acknowledged..], &context);
                    let now = Model::of(&log);
                    drop(log);
                    let log = open(&run.disk.cut(cut));
                    run.check(&log, &[now], &format!("{context}, then {cut:?}"));
                }
            }
        }
    }
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    wait(|done| log.append(entries(1, 0..3), done)).unwrap();
    disk.fail_call(disk.calls() + 1, Fault::Io);
    assert!(wait(|done| log.append(entries(1, 3..4), done)).is_err());
    let calls = disk.calls();
    for _ in 0..3 {
        let error = wait(|done| log.append(entries(1, 4..5), done)).unwrap_err();
        assert!(error.to_string().contains("planned"), "{error}");
        let vote = Vote { term: 9, node: 1, committed: false };
        assert!(wait(|done| log.save_vote(vote, done)).is_err());
    }
    assert_eq!(disk.calls(), calls, "no call to the disk any more");
    assert_eq!(open(&disk.cut(Cut::Lose)).state().last, Some(id(1, 2)));
}

#[test]
fn a_full_disk_is_named() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    disk.set_budget(Some(3 * 4096));
    let mut next = 0;
    let error = loop {
        match wait(|done| log.append(entries(1, next..next + 1), done)) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(log.metrics().spare_failures.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert!(next > 60, "{next}");
    disk.set_budget(None);
    drop(log);
    assert_eq!(super::all(&open(&disk)), entries(1, 0..next));
}

#[test]
fn the_committed_index_is_never_synced_by_itself() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    wait(|done| log.append(entries(1, 0..3), done)).unwrap();
    let calls = disk.calls();
    log.save_committed(Some(id(1, 1)));
    assert_eq!(disk.calls(), calls);
    assert_eq!(open(&disk.cut(Cut::Keep)).state().committed, None);
    log.append(entries(1, 3..4), ignore());
    assert_eq!(open(&disk.cut(Cut::Lose)).state().committed, Some(id(1, 1)));
    log.save_committed(Some(id(1, 2)));
    log.stop();
    assert_eq!(open(&disk.cut(Cut::Lose)).state().committed, Some(id(1, 2)));
    assert!(disk.exists("log").unwrap());
}

#[test]
fn a_cut_under_a_threaded_log_loses_nothing_acknowledged() {
    for seed in 0..30 {
        let disk = FakeDisk::unrecorded();
        let log = Log::open(Arc::new(disk.clone()), Executor::Threads, super::SMALL).unwrap();
        let acknowledged = Arc::new(Mutex::new(None));
        let mut cut = None;
        for index in 0..300 {
            let acknowledged = acknowledged.clone();
            let (now, at) = (acknowledged.clone(), 100 + seed * 5);
            log.append(
                vec![entry(1, index, 200)],
                Box::new(move |result| *acknowledged.lock() = result.ok().map(|()| index)),
            );
            if index == at {
                // First what was acknowledged, then the cut.
                cut = Some((*now.lock(), disk.cut(Cut::Random(seed))));
            }
        }
        log.stop();
        assert_eq!(*acknowledged.lock(), Some(299));
        let (acknowledged, disk) = cut.unwrap();
        let log = open(&disk);
        assert!(index_of(log.state().last) >= acknowledged, "seed {seed}");
        let last = index_of(log.state().last).map_or(0, |last| last + 1);
        let expected: Vec<_> = (0..last).map(|index| entry(1, index, 200)).collect();
        assert_eq!(super::all(&log), expected, "seed {seed}");
    }
}
