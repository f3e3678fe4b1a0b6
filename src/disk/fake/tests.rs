use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Cut, FakeDisk, Fault};
use crate::disk::{Disk, SqliteLock, read_all, replace};

const SEEDS: u64 = 50;

#[test]
fn what_was_synced_is_always_there() {
    let disk = FakeDisk::new();
    disk.create_dir("d").unwrap();
    disk.sync_dir("").unwrap();
    replace(&disk, "d/f", b"one").unwrap();
    let n = disk.calls();
    replace(&disk, "d/f", b"two").unwrap();
    for n in n..=disk.calls() {
        for seed in 0..SEEDS {
            let bytes = read_all(&disk.after_cut(n, seed), "d/f").unwrap();
            assert!(bytes == b"one" || bytes == b"two", "{bytes:?} after {n}, seed {seed}");
            assert!(n < disk.calls() || bytes == b"two");
        }
    }
}

#[test]
fn what_was_not_synced_may_be_lost_kept_or_torn() {
    let disk = FakeDisk::new();
    let file = disk.create("f").unwrap();
    file.set_len(2048).unwrap();
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    file.write_at(&[7; 2048], 0).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..SEEDS {
        let left = disk.after_cut(disk.calls(), seed);
        let bytes = read_all(&left, "f").unwrap();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(bytes.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])));
        seen.insert(sectors);
    }
    assert!(seen.contains(&vec![0; 4]) && seen.contains(&vec![7; 4]) && seen.len() > 5);
    assert_eq!(read_all(&disk.cut(Cut::Lose), "f").unwrap(), [0; 2048]);
    assert_eq!(read_all(&disk.cut(Cut::Keep), "f").unwrap(), [7; 2048]);
}

#[test]
fn names_are_lost_without_a_sync_of_their_directory() {
    let disk = FakeDisk::new();
    disk.create_dir("a/b").unwrap();
    disk.create("a/b/f").unwrap().sync().unwrap();
    disk.sync_dir("a/b").unwrap();
    assert!(!disk.cut(Cut::Lose).exists("a").unwrap());
    disk.sync_dir("").unwrap();
    assert!(!disk.cut(Cut::Lose).exists("a/b").unwrap());
    disk.sync_dir("a").unwrap();
    assert!(disk.cut(Cut::Lose).exists("a/b/f").unwrap());
    disk.remove("a/b/f").unwrap();
    assert!(!disk.exists("a/b/f").unwrap());
    assert!(disk.cut(Cut::Lose).exists("a/b/f").unwrap());
    assert!(!disk.cut(Cut::Keep).exists("a/b/f").unwrap());
}

#[test]
fn a_failed_sync_makes_no_later_one_good() {
    let disk = FakeDisk::new();
    let file = disk.create("f").unwrap();
    disk.sync_dir("").unwrap();
    file.write_at(b"lost", 0).unwrap();
    disk.fail_call(disk.calls(), Fault::Io);
    assert!(file.sync().is_err());
    file.write_at(b"kept", 4).unwrap();
    file.sync().unwrap();
    assert_eq!(read_all(&disk, "f").unwrap(), b"lostkept");
    assert_eq!(read_all(&disk.cut(Cut::Lose), "f").unwrap(), b"\0\0\0\0kept");
    assert_eq!(read_all(&disk.after_cut(disk.calls(), 0), "f").unwrap(), b"\0\0\0\0kept");
}

#[test]
fn planned_faults_and_the_budget() {
    let disk = FakeDisk::new();
    let file = disk.create("f").unwrap();
    disk.fail_call(1, Fault::Full);
    assert_eq!(file.write_at(b"x", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(b"x", 0).unwrap();
    disk.fail_from(disk.calls(), Fault::Io);
    assert!(file.sync().is_err() && file.sync().is_err());
    disk.heal();
    disk.set_budget(Some(10));
    file.write_at(&[1; 10], 0).unwrap();
    assert_eq!(file.write_at(&[1; 11], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.available_bytes().unwrap(), 0);
    disk.remove("f").unwrap();
    disk.sync_dir("").unwrap();
    drop(file);
    assert_eq!(disk.available_bytes().unwrap(), 10);
    disk.halt();
    assert!(disk.create("g").is_err() && disk.exists("g").is_err());
}

#[test]
fn damage_locks_and_temporary_files() {
    let disk = FakeDisk::new();
    let file = disk.create("f").unwrap();
    file.write_at(b"abc", 0).unwrap();
    disk.flip("f", 1, &[1]).unwrap();
    assert_eq!(disk.bytes("f").unwrap(), b"acc");
    disk.overwrite("f", 2, b"xyz").unwrap();
    assert_eq!(disk.bytes("f").unwrap(), b"acx");
    disk.set_foreign_lock("f", SqliteLock::Reserved);
    assert!(file.sqlite_lock(SqliteLock::Reserved).is_err());
    disk.set_foreign_lock("f", SqliteLock::Unlocked);
    file.sqlite_lock(SqliteLock::Exclusive).unwrap();
    let temp = disk.temp().unwrap();
    temp.write_at(b"x", 0).unwrap();
    assert_eq!(disk.list("tmp").unwrap(), [""; 0]);
    assert_eq!(disk.transcript().len() as u64, disk.calls());
}

#[test]
fn a_held_sync_waits() {
    let disk = FakeDisk::new();
    let file = disk.create("f").unwrap();
    disk.hold_syncs();
    let thread = std::thread::spawn(move || file.sync());
    while disk.waiting_syncs() == 0 {
        std::thread::yield_now();
    }
    disk.release_syncs();
    thread.join().unwrap().unwrap();
}

#[test]
fn blocks_of_elsewhere_and_files_that_end_early() {
    let disk = FakeDisk::new();
    disk.create_dir("d").unwrap();
    let file = disk.create("d/f").unwrap();
    file.write_at(&[1; 6000], 0).unwrap();
    file.sync().unwrap();
    disk.create("e").unwrap().write_at(b"other", 0).unwrap();
    assert_eq!(disk.paths(), ["e", "d/f"]);
    let earlier = disk.cut(Cut::Keep);
    file.write_at(&[2; 6000], 0).unwrap();
    file.sync().unwrap();
    disk.misdirect(("d/f", 4096), &disk, ("e", 1), 512).unwrap();
    assert_eq!(disk.bytes("d/f").unwrap()[4095..4101], *b"\x02ther\x02");
    disk.misdirect(("d/f", 5800), &earlier, ("d/f", 5800), 512).unwrap();
    assert_eq!(disk.bytes("d/f").unwrap()[5799..], [&[2][..], &[1; 200]].concat());
    disk.truncate("d/f", 5999).unwrap();
    assert_eq!(file.len().unwrap(), 5999);
    assert_eq!(disk.cut(Cut::Lose).bytes("e").unwrap_or_default(), b"", "a name that was lost");
    assert_eq!(disk.cut(Cut::Keep).bytes("d/f").unwrap().len(), 5999);
}

/// Two disks under which the power fails at one moment; and however long the record is, what a cut
/// leaves is what the calls before it made.
#[test]
fn disks_that_share_a_count_are_cut_at_one_moment() {
    let count = Arc::new(AtomicU64::new(0));
    let disks = [(); 2].map(|()| FakeDisk::counted_by(count.clone()));
    let files = disks.each_ref().map(|disk| disk.create("f").unwrap());
    disks.iter().for_each(|disk| disk.sync_dir("").unwrap());
    for round in 0..200_u8 {
        files[usize::from(round % 3 == 0)].write_at(&[round; 2000], 0).unwrap();
    }
    assert_eq!(count.load(Ordering::SeqCst), 204);
    for tick in 4..=204 {
        let calls = disks.each_ref().map(|disk| disk.calls_before(tick));
        assert_eq!(calls.iter().sum::<u64>(), tick);
        for (disk, n) in disks.iter().zip(calls).filter(|(_, n)| *n > 2) {
            let last = read_all(&disk.after_cut(n, 1), "f").unwrap()[0];
            let write = n - 3;
            let round = [write / 2 * 3 + 1 + write % 2, write * 3][usize::from(n == calls[1])];
            assert!(calls[0] == calls[1] || u64::from(last) == round, "{tick}");
        }
    }
}
