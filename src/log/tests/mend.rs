//! A damaged log is made whole again where it can be proved what stood there, and only there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Model, SMALL, all, entries, entry, id, open, wait};
use crate::base::Executor;
use crate::disk::{Cut, Disk, FakeDisk};
use crate::log::mend::{KEPT_DIR, Mend, examine, newest_membership};
use crate::log::{Entry, EntryKind, Log, LogError, Vote};

fn try_open(disk: &FakeDisk) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), Executor::Inline, SMALL)
}

/// A log with every kind of record, in groups of several and of one, over several segments and
/// two lives; and every entry that ever was in it, for a peer to answer from.
fn eventful() -> (FakeDisk, Model) {
    let disk = FakeDisk::unrecorded();
    let log = open(&disk);
    let vote = |term, committed| Vote { term, node: 2, committed };
    wait(|done| log.save_vote(vote(1, false), done)).unwrap();
    wait(|done| log.save_vote(vote(1, true), done)).unwrap();
    wait(|done| log.append(vec![entry(1, 0, 0)], done)).unwrap();
    for from in 1..6 {
        log.save_committed(Some(id(1, from - 1)));
        wait(|done| log.append(entries(1, from * 3..from * 3 + 3), done)).err();
        let next = log.state().next_index().unwrap();
        wait(|done| log.append(entries(1, next..next + 3), done)).unwrap();
    }
    wait(|done| log.truncate_after(Some(id(1, 13)), done)).unwrap();
    wait(|done| log.save_vote(vote(3, false), done)).unwrap();
    wait(|done| log.append(vec![entry(3, 14, 700), entry(3, 15, 900)], done)).unwrap();
    log.set_purge_limit(Some(4));
    wait(|done| log.purge(id(1, 4), done)).unwrap();
    log.save_committed(Some(id(3, 15)));
    wait(|done| log.append(entries(3, 16..20), done)).unwrap();
    drop(log);
    let log = open(&disk);
    wait(|done| log.save_vote(vote(4, true), done)).unwrap();
    for from in 0..8 {
        log.save_committed(Some(id(3, 17)));
        wait(|done| log.append(vec![entry(4, 20 + from, 30 * from as usize)], done)).unwrap();
    }
    let model = Model::of(&log);
    drop(log);
    (disk.cut(Cut::Keep), model)
}

/// What a peer with the same entries answers.
fn peer(model: &Model, needs: std::ops::Range<u64>) -> Vec<Entry> {
    let held = needs.map_while(|index| model.entries.get(&index).cloned());
    held.collect()
}

/// Opens the log, mended as often as it takes. `None` where nothing can be proved.
fn open_mended(disk: &FakeDisk, model: &Model) -> Option<Log> {
    for _ in 0..20 {
        match try_open(disk) {
            Ok(log) => return Some(log),
            Err(LogError::Damaged { segment, offset, .. }) => {
                match examine(disk, segment, offset).unwrap() {
                    Mend::Done(mended) => assert!(disk.exists(&mended.kept).unwrap()),
                    Mend::Needs(gap) => {
                        gap.mend(disk, &peer(model, gap.needs())).unwrap()?;
                    }
                    Mend::Unprovable => return None,
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it was mended again and again");
}

fn files(disk: &FakeDisk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.list("log").unwrap().into_iter();
    names.map(|name| (name.clone(), disk.bytes(&format!("log/{name}")).unwrap())).collect()
}

/// Every fifth byte of every segment, one after the other, so each field of a record in one record
/// or another: of entries, votes, truncations, purges, the committed index, headers, padding.
#[test]
fn whichever_byte_changes_the_log_is_what_it_was() {
    let (disk, model) = eventful();
    let last = model.entries.keys().next_back().copied().unwrap();
    let (mut mended, mut torn, mut refused) = (0, 0, Vec::new());
    for (name, bytes) in files(&disk) {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        for at in (0..end as u64).step_by(5).chain([bytes.len() as u64 - 1]) {
            let disk = disk.cut(Cut::Keep);
            disk.flip(&format!("log/{name}"), at, &[1 << (at % 8)]).unwrap();
            let Some(log) = open_mended(&disk, &model) else {
                refused.push((name.clone(), at));
                continue;
            };
            let got = Model::of(&log);
            if got.state.last == Some(id(4, last)) {
                assert_eq!(got, model, "{name}, byte {at}");
                mended += usize::from(!disk.list(KEPT_DIR).unwrap().is_empty());
            } else {
                // The very last group, which cannot be told from a torn one.
                torn += 1;
                assert_eq!(got.state.last, Some(id(4, last - 1)), "{name}, byte {at}");
                assert_eq!(got.state.vote, model.state.vote);
                assert!(all(&log).iter().eq(model.entries.values().take(got.entries.len())));
            }
        }
    }
    assert!(mended > 800 && torn < 80, "{mended} mended, {torn} torn");
    assert!(refused.is_empty(), "{}: {refused:?}", refused.len());
}

/// Blocks are lost whole as well. What is mended is what it was; and mostly, but not always, it
/// can be proved.
#[test]
fn a_lost_block_is_mended_or_refused() {
    let (disk, model) = eventful();
    let (mut good, mut refused) = (0, 0);
    for (name, bytes) in files(&disk) {
        for block in 0..bytes.len() / 256 {
            let disk = disk.cut(Cut::Keep);
            disk.overwrite(&format!("log/{name}"), block as u64 * 256, &[0; 256]).unwrap();
            match open_mended(&disk, &model) {
                None => refused += 1,
                Some(log) => {
                    good += 1;
                    let got = Model::of(&log);
                    assert!(got.entries.iter().eq(model.entries.iter().take(got.entries.len())));
                    assert!(got.entries.len() + 2 >= model.entries.len(), "{name} {block}");
                    assert_eq!(got.state.vote, model.state.vote, "{name} {block}");
                }
            }
        }
    }
    assert!(good > refused, "{good} good, {refused} refused");
}

/// A peer whose entries are others (of another term, of another content, or not those asked for)
/// changes nothing.
#[test]
fn what_does_not_fit_the_chain_is_not_taken() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    for index in 0..6 {
        wait(|done| log.append(vec![entry(1, index, 600)], done)).unwrap();
    }
    drop(log);
    let path = "log/0000000000000001.seg";
    let before = disk.bytes(path).unwrap();
    let at = before.windows(600).position(|window| window == &entry(1, 2, 600).payload[..]);
    disk.flip(path, at.unwrap() as u64 + 77, &[1]).unwrap();
    let Err(LogError::Damaged { segment, offset, .. }) = try_open(&disk) else { panic!("opened") };
    let Mend::Needs(gap) = examine(&disk, segment, offset).unwrap() else { panic!("not a gap") };
    assert_eq!(gap.needs(), 2..3);
    let mut other = entry(1, 2, 600);
    other.payload = vec![1; 600].into();
    for wrong in [
        vec![],
        vec![entry(2, 2, 600)],
        vec![entry(1, 3, 600)],
        vec![other],
        vec![Entry { kind: EntryKind::Blank, ..entry(1, 2, 600) }],
        vec![entry(1, 2, 592)],
    ] {
        assert!(gap.mend(&disk, &wrong).unwrap().is_none(), "{wrong:?}");
        assert!(disk.list(KEPT_DIR).unwrap().is_empty());
    }
    let mended = gap.mend(&disk, &[entry(1, 2, 600)]).unwrap().unwrap();
    assert_eq!(mended.what, "entries: 1, other records: 0");
    assert_eq!(disk.bytes(path).unwrap(), before, "byte for byte");
    assert_eq!(all(&open(&disk)).len(), 6);
}

/// The power fails at every call to the disk on the way: it is damaged as before or mended.
#[test]
fn a_power_cut_during_the_mending_costs_nothing() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    for index in 0..5 {
        wait(|done| log.append(vec![entry(1, index, 600)], done)).unwrap();
    }
    let model = Model::of(&log);
    drop(log);
    let path = "log/0000000000000001.seg";
    let bytes = disk.bytes(path).unwrap();
    let at = bytes.windows(600).position(|window| window == &entry(1, 1, 600).payload[..]).unwrap();
    disk.flip(path, at as u64, &[8]).unwrap();
    let disk = disk.cut(Cut::Keep);
    drop(open_mended(&disk, &model).unwrap());
    let calls = disk.calls();
    assert!(calls > 8);
    for n in 0..=calls {
        for seed in 0..4 {
            let disk = disk.after_cut(n, seed);
            let log = open_mended(&disk, &model).unwrap();
            assert_eq!(Model::of(&log), model, "cut after {n}, seed {seed}");
        }
    }
}

/// A start has copied the last group into a fresh segment, and nothing was written since: the copy
/// was synced, so its loss is damage; the group is still where it was before.
#[test]
fn a_copied_group_is_copied_again() {
    let disk = FakeDisk::new();
    let log = open(&disk);
    for from in 0..3 {
        wait(|done| log.append(entries(1, from * 3..from * 3 + 3), done)).unwrap();
    }
    drop(log);
    drop(open(&disk));
    let path = &format!("log/{}", disk.list("log").unwrap().pop().unwrap());
    let before = disk.bytes(path).unwrap();
    for at in [520, 700, 960] {
        let disk = disk.cut(Cut::Keep);
        disk.flip(path, at, &[9; 8]).unwrap();
        let Err(LogError::Damaged { segment, offset, .. }) = try_open(&disk) else {
            panic!("it was taken for a torn one")
        };
        assert!(matches!(examine(&disk, segment, offset).unwrap(), Mend::Done(_)));
        assert_eq!(disk.bytes(path).unwrap(), before);
        assert_eq!(all(&open(&disk)), entries(1, 0..9));
    }
    disk.flip(path, 960, &[9; 8]).unwrap();
    disk.flip("log/0000000000000001.seg", 512 + 8 * 152 + 60, &[1]).unwrap();
    let Err(LogError::Damaged { segment, offset, .. }) = try_open(&disk) else { panic!() };
    assert!(matches!(examine(&disk, segment, offset).unwrap(), Mend::Unprovable));
}

/// A node of which a whole segment was gone said "no such file or directory" and not what to do: the
/// mending looked for a group in the very file that was missing.
#[test]
fn a_segment_that_is_gone_is_refused_as_damage() {
    let (disk, _) = eventful();
    let names = disk.list("log").unwrap();
    let mut refused = 0;
    for name in names {
        let disk = disk.cut(Cut::Keep);
        disk.remove(&format!("log/{name}")).unwrap();
        if let Err(LogError::Damaged { segment, offset, .. }) = try_open(&disk) {
            refused += 1;
            assert!(matches!(examine(&disk, segment, offset), Ok(Mend::Unprovable)), "{name}");
        }
    }
    assert!(refused > 0);
}

/// What is kept aside has a bound.
#[test]
fn few_damaged_segments_are_kept() {
    let (disk, model) = eventful();
    let name = disk.list("log").unwrap().remove(0);
    for round in 0..20 {
        disk.flip(&format!("log/{name}"), 20, &[1 + round]).unwrap();
        assert!(open_mended(&disk, &model).is_some());
        if !disk.exists(&format!("log/{name}")).unwrap() {
            break;
        }
    }
    let kept = disk.list(KEPT_DIR).unwrap();
    assert!(kept.len() == 8 && kept.iter().all(|kept| name.starts_with(&kept[..16])), "{kept:?}");
}

#[test]
fn the_newest_membership_is_found_in_what_is_readable() {
    let (disk, model) = eventful();
    let kept = model.entries.values().filter(|entry| entry.kind == EntryKind::Membership);
    assert_eq!(newest_membership(&disk).unwrap().as_ref(), kept.last());
    assert_eq!(newest_membership(&FakeDisk::new()).unwrap(), None);
}
