//! Random operations against a model, reopening at random.

use proptest::prelude::*;

use super::{Model, entry, id, ignore, open, wait};
use crate::disk::{Cut, FakeDisk};
use crate::log::{LogId, Vote, index_of};

#[derive(Clone, Debug)]
enum Step {
    Append { count: u64, bytes: usize },
    Vote,
    Truncate { back: u64 },
    Purge { part: u64 },
    PurgeBeyond,
    Committed { back: u64 },
    Reopen,
    CrashLosing,
    Read { from: u64, count: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..20_u64, 0..600_usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => Just(Step::Append { count: 1, bytes: 9000 }),
        2 => Just(Step::Vote),
        2 => (0..30_u64).prop_map(|back| Step::Truncate { back }),
        2 => (1..8_u64).prop_map(|part| Step::Purge { part }),
        1 => Just(Step::PurgeBeyond),
        2 => (0..10_u64).prop_map(|back| Step::Committed { back }),
        2 => Just(Step::Reopen),
        1 => Just(Step::CrashLosing),
        3 => (0..100_u64, 0..50_u64).prop_map(|(from, count)| Step::Read { from, count }),
    ]
}

/// The id of an entry, or of the one that was purged last.
fn id_at(model: &Model, index: u64) -> Option<LogId> {
    let purged = model.state.purged.filter(|purged| purged.index == index);
    model.entries.get(&index).map(|entry| entry.id).or(purged)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_the_model_is(steps in prop::collection::vec(step(), 1..60)) {
        let mut disk = FakeDisk::new();
        let mut log = open(&disk);
        log.set_purge_limit(Some(u64::MAX));
        let mut model = Model::default();
        for (term, step) in steps.into_iter().enumerate() {
            let term = term as u64;
            let next = model.state.next_index().unwrap_or(0);
            let last = index_of(model.state.last).unwrap_or(0);
            match step {
                Step::Append { count, bytes } => {
                    let entries: Vec<_> =
                        (next..next + count).map(|index| entry(term, index, bytes)).collect();
                    entries.iter().cloned().for_each(|entry| model.append(entry));
                    wait(|done| log.append(entries, done)).unwrap();
                }
                Step::Vote => {
                    let vote = Vote { term, node: 3, committed: term.is_multiple_of(2) };
                    model.state.vote = Some(vote);
                    wait(|done| log.save_vote(vote, done)).unwrap();
                }
                Step::Truncate { back } => {
                    let kept = last.checked_sub(back).and_then(|index| id_at(&model, index));
                    if index_of(kept) >= index_of(model.state.purged) {
                        model.truncate_after(kept);
                        wait(|done| log.truncate_after(kept, done)).unwrap();
                    }
                }
                Step::Purge { part } => {
                    let first = model.entries.keys().next().copied().unwrap_or(last);
                    if let Some(upto) = id_at(&model, first + (last - first.min(last)) / part) {
                        model.purge(upto);
                        wait(|done| log.purge(upto, done)).unwrap();
                    }
                }
                Step::PurgeBeyond => {
                    model.purge(id(term, last + 5));
                    wait(|done| log.purge(id(term, last + 5), done)).unwrap();
                }
                Step::Committed { back } => {
                    let committed = last.checked_sub(back).and_then(|index| id_at(&model, index));
                    if committed.is_some() {
                        model.state.committed = committed;
                        log.save_committed(committed);
                        // Rides with this.
                        wait(|done| log.append(Vec::new(), done)).unwrap();
                    }
                }
                Step::Reopen => {
                    drop(log);
                    log = open(&disk);
                    log.set_purge_limit(Some(u64::MAX));
                }
                Step::CrashLosing => {
                    disk = disk.cut(Cut::Lose);
                    log = open(&disk);
                    log.set_purge_limit(Some(u64::MAX));
                }
                Step::Read { from, count } => {
                    let first = model.entries.keys().next().copied().unwrap_or(0);
                    let got = log.read(first + from, first + from + count, usize::MAX).unwrap();
                    let range = model.entries.range(first + from..first + from + count);
                    prop_assert_eq!(got, range.map(|(_, e)| e.clone()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(log.state(), model.state);
        }
        prop_assert_eq!(&Model::of(&log), &model);
        log.append(Vec::new(), ignore());
        drop(log);
        prop_assert_eq!(&Model::of(&open(&disk)), &model);
    }
}
