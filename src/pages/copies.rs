//! Copies of databases between members, tested: views, receptions, installs, and power cuts at
//! every call of the disk.

use std::sync::Arc;

use super::catalog::Catalog;
use super::delta::DeltaHeader;
use super::incoming::{Incoming, Ready, Scope};
use super::page::PageNo;
use super::store::{ApplyOutcome, Place, Point, Store};
use super::view::View;
use super::*;
use crate::base::DatabaseName;
use crate::codec::Reader;
use crate::disk::{Disk, FakeDisk, Fault};
use crate::log::LogId;

const PAGE: usize = 512;

/// A member: a disk and its catalog, fed with the same entries as the others.
struct Member {
    disk: FakeDisk,
    catalog: Catalog,
}

impl Member {
    fn new(disk: FakeDisk) -> Member {
        let catalog = Catalog::open(Arc::new(disk.clone())).unwrap();
        Member { disk, catalog }
    }

    fn store(&self, name: &str) -> Arc<Store> {
        self.catalog.by_name(&DatabaseName::new(name).unwrap()).unwrap()
    }

    fn create(&self, index: u64, name: &str) {
        let mut applied = self.catalog.applied();
        self.catalog.create(index, DatabaseName::new(name).unwrap(), PAGE).unwrap();
        applied.last = Some(LogId { term: 1, index });
    }

    fn apply(&self, index: u64, bytes: &[u8]) {
        let mut applied = self.catalog.applied();
        let header = DeltaHeader::decode(&mut Reader::new(bytes)).unwrap();
        if let Some(store) = self.catalog.by_id(header.database) {
            let place = Place { index, ordinal: 1 };
            if place > store.place() {
                let skips = store.damage().is_some();
                let outcome = store.apply(&header, bytes, place).unwrap();
                let expected = if skips { ApplyOutcome::Skipped } else { ApplyOutcome::Applied };
                assert_eq!(outcome, expected);
            }
        }
        applied.last = Some(LogId { term: 1, index });
    }

    /// Everything that a reader could see, verified.
    fn state(&self) -> Vec<(String, Point)> {
        let state = |store: &Arc<Store>| (store.name().to_string(), store.verify().unwrap());
        self.catalog.all().iter().map(state).collect()
    }
}

fn page(number: PageNo, fill: u8, page_count: u32) -> Arc<[u8]> {
    let mut page = vec![fill; PAGE];
    page[4..8].copy_from_slice(&number.to_be_bytes());
    if number == 1 {
        page[16..21].copy_from_slice(&[2, 0, 1, 1, 0]);
        page[28..32].copy_from_slice(&page_count.to_be_bytes());
    }
    page.into()
}

/// A transaction on `leader` that writes `pages`; its delta, not yet applied.
fn write(leader: &Member, name: &str, pages: &[(PageNo, u8)], page_count: u32) -> Vec<u8> {
    let store = leader.store(name);
    if store.open_term().is_none() {
        store.open_slot(1);
    }
    let snapshot = store.snapshot_head().unwrap();
    let mut freeze = Freeze::new(&store, snapshot.point().page_count);
    freeze.write(1, &page(1, 0, page_count)).unwrap();
    for (number, fill) in pages {
        freeze.write(*number, &page(*number, *fill, page_count)).unwrap();
    }
    freeze.announce().unwrap();
    let frozen = store.freeze(&snapshot, &freeze).unwrap().unwrap();
    let _ = store.publish(frozen);
    store.take_outgoing().unwrap().bytes.to_vec()
}

/// The entries that make the leader, one after the other; the follower gets the first few.
struct Script {
    leader: Member,
    entries: Vec<Entry>,
}

enum Entry {
    Create(&'static str),
    Delta(Vec<u8>),
}

impl Script {
    fn new() -> Script {
        Script { leader: Member::new(FakeDisk::unrecorded()), entries: Vec::new() }
    }

    fn create(&mut self, name: &'static str) {
        self.leader.create(self.entries.len() as u64 + 1, name);
        self.entries.push(Entry::Create(name));
    }

    fn write(&mut self, name: &str, pages: &[(PageNo, u8)], page_count: u32) {
        let delta = write(&self.leader, name, pages, page_count);
        self.leader.apply(self.entries.len() as u64 + 1, &delta);
        self.entries.push(Entry::Delta(delta));
    }

    fn replay(&self, to: &Member, entries: std::ops::Range<usize>) {
        for at in entries {
            match &self.entries[at] {
                Entry::Create(name) => to.create(at as u64 + 1, name),
                Entry::Delta(delta) => to.apply(at as u64 + 1, delta),
            }
        }
    }
}

/// What went over the wire.
#[derive(Default)]
struct Traffic {
    pages: u64,
}

/// Receives `view` page by page; `None` when it was cut after `pages_max` pages.
fn receive(
    view: &View,
    to: &Catalog,
    scope: Scope,
    pages_max: u64,
    traffic: &mut Traffic,
) -> Result<Option<Ready>, PagesError> {
    let described = view.databases().iter().map(|viewed| viewed.described().clone()).collect();
    let mut incoming = Incoming::begin(to, scope, described)?;
    for viewed in view.databases() {
        let (id, count) = (viewed.described().id, viewed.described().folded.point.page_count);
        for first in (1..=count).step_by(5) {
            let hashes = viewed.hashes(first, (count + 1 - first).min(5))?;
            for page in incoming.missing(id, first, &hashes)? {
                if traffic.pages == pages_max {
                    return Ok(None);
                }
                let mut bytes = Vec::new();
                viewed.read(page, 1, &mut bytes)?;
                incoming.receive(id, page, &bytes)?;
                traffic.pages += 1;
            }
        }
    }
    incoming.finish().map(Some)
}

fn whole(view: &View) -> Scope {
    Scope::Whole(view.applied().clone())
}

/// A leader and a follower that heard of the first entries only: one database is equal, one
/// changed, one new, one dropped, and one name belongs to another database now.
fn script() -> (Script, usize) {
    let mut script = Script::new();
    for name in ["equal", "changed", "gone", "renamed"] {
        script.create(name);
        script.write(name, &[(1, 1), (2, 2), (3, 3), (7, 7)], 9);
    }
    let known = script.entries.len();
    script.create("new");
    script.write("new", &[(2, 20), (4, 40)], 4);
    script.write("changed", &[(2, 99), (12, 12)], 12);
    script.write("changed", &[(3, 98)], 11);
    (script, known)
}

fn follower_of(script: &Script, known: usize, disk: FakeDisk) -> Member {
    let follower = Member::new(disk);
    script.replay(&follower, 0..known);
    follower.catalog.checkpoint().unwrap();
    follower
}

fn install(follower: &Member, ready: Ready) {
    let mut covered = None;
    let done = follower.catalog.install(ready, |last| {
        covered = Some(last);
        Ok(())
    });
    done.unwrap();
    assert_eq!(covered, follower.catalog.recorded().last);
}

/// As if databases had been dropped on the leader: the view is without them.
fn without(leader: &Member, names: &[&str]) -> View {
    for name in names {
        let id = leader.store(name).id();
        leader.catalog.databases.write().remove(&id);
    }
    leader.catalog.view(None).unwrap()
}

#[test]
fn a_late_follower_becomes_what_the_leader_was() {
    let (script, known) = script();
    let follower = follower_of(&script, known, FakeDisk::new());
    let old = follower.store("changed");
    let reader = old.snapshot_applied().unwrap();
    let view = without(&script.leader, &["gone"]);
    let mut traffic = Traffic::default();
    let ready = receive(&view, &follower.catalog, whole(&view), u64::MAX, &mut traffic);
    install(&follower, ready.unwrap().unwrap());
    assert_eq!(follower.state(), script.leader.state());
    assert_eq!(*follower.catalog.applied(), *script.leader.catalog.applied());
    assert!(!follower.disk.exists("databases/gone.db").unwrap());
    // Only what differs went over: the new database, and the pages that changed.
    assert_eq!(traffic.pages, 4 + 5);

    // Who reads the old generation goes on reading it; nobody begins to.
    let mut bytes = vec![0; PAGE];
    assert!(reader.read(2, 0, &mut bytes).unwrap());
    assert_eq!(bytes, *page(2, 2, 9));
    assert!(old.is_retired() && old.snapshot_applied().is_err());
    assert!(!Arc::ptr_eq(&old, &follower.store("changed")));

    // It goes on from there, also after a restart.
    let again = Member::new(follower.disk.clone());
    assert_eq!(again.state(), script.leader.state());
    let delta = write(&script.leader, "new", &[(3, 33)], 4);
    for member in [&script.leader, &follower, &again] {
        member.apply(script.entries.len() as u64 + 1, &delta);
    }
    assert_eq!(follower.state(), script.leader.state());
    assert_eq!(again.state(), script.leader.state());
}

#[test]
fn a_cut_transfer_goes_on_where_it_was() {
    let (script, _) = script();
    let view = script.leader.catalog.view(None).unwrap();
    let pages: u64 =
        view.databases().iter().map(|v| u64::from(v.described().folded.point.page_count)).sum();
    for cut in 0..pages {
        let follower = Member::new(FakeDisk::unrecorded());
        let mut traffic = Traffic::default();
        let ready = receive(&view, &follower.catalog, whole(&view), cut, &mut traffic).unwrap();
        assert!(ready.is_none());
        // The process is killed and started again.
        let follower = Member::new(follower.disk);
        let ready = receive(&view, &follower.catalog, whole(&view), u64::MAX, &mut traffic);
        assert_eq!(traffic.pages, pages, "no page twice");
        install(&follower, ready.unwrap().unwrap());
        assert_eq!(follower.state(), script.leader.state());
    }
}

#[test]
fn what_is_wrong_is_not_taken() {
    let (script, known) = script();
    let view = script.leader.catalog.view(None).unwrap();
    let follower = follower_of(&script, known, FakeDisk::unrecorded());
    let before = follower.state();
    let described: Vec<_> = view.databases().iter().map(|v| v.described().clone()).collect();
    let begin = || Incoming::begin(&follower.catalog, whole(&view), described.clone()).unwrap();
    let viewed = view.by_id(script.leader.store("changed").id()).unwrap();
    let (id, hashes) = (viewed.described().id, viewed.hashes(1, 11).unwrap());

    let mut incoming = begin();
    assert!(incoming.missing(id, 2, &hashes).is_err(), "not from the first page on");
    assert_eq!(incoming.missing(id, 1, &hashes).unwrap(), [1, 2, 3, 10, 11]);
    assert!(incoming.missing(id, 1, &hashes).is_err(), "twice");
    assert!(incoming.missing(id, 12, &[1]).is_err(), "beyond the end");
    assert!(incoming.receive(id, 4, &page(4, 0, 11)).is_err(), "not asked for");
    assert!(incoming.receive(id, 2, &page(2, 98, 11)).is_err(), "another page");
    incoming.receive(id, 2, &page(2, 99, 11)).unwrap();
    assert!(incoming.missing(99, 1, &hashes).is_err(), "another database");
    assert!(incoming.finish().is_err(), "not all pages");

    // Hashes that do not add up to the digest.
    let mut incoming = begin();
    for viewed in view.databases() {
        let id = viewed.described().id;
        let count = viewed.described().folded.point.page_count;
        for number in 1..=count {
            let content = page(number, 77, count);
            let hash = page::page_hash(number, &content);
            assert_eq!(incoming.missing(id, number, &[hash]).unwrap(), [number]);
            incoming.receive(id, number, &content).unwrap();
        }
    }
    assert!(incoming.finish().is_err());
    assert_eq!(follower.state(), before);
    assert_eq!(Member::new(follower.disk.clone()).state(), before);
}

#[test]
fn the_newest_transfer_takes_over_and_a_complete_one_is_left_alone() {
    let (script, known) = script();
    let view = script.leader.catalog.view(None).unwrap();
    let follower = follower_of(&script, known, FakeDisk::unrecorded());
    let described: Vec<_> = view.databases().iter().map(|v| v.described().clone()).collect();
    let id = described[0].id;
    let mut old = Incoming::begin(&follower.catalog, whole(&view), described.clone()).unwrap();
    assert!(Incoming::begin(&follower.catalog, Scope::Part, described.clone()).is_err());
    let mut traffic = Traffic::default();
    let ready = receive(&view, &follower.catalog, whole(&view), u64::MAX, &mut traffic);
    let ready = ready.unwrap().unwrap();
    assert!(old.missing(id, 1, &[0]).is_err());
    drop(old);
    assert!(Incoming::begin(&follower.catalog, whole(&view), described.clone()).is_err());
    install(&follower, ready);
    assert!(Incoming::begin(&follower.catalog, whole(&view), described).is_ok());
}

/// Power is cut at every call that changes the disk, from the first one of the reception to the
/// last one of the install: the old state or the new one, and from both of them the transfer can
/// be done again.
#[test]
fn a_power_cut_leaves_the_old_state_or_the_new_one() {
    let (script, known) = script();
    let disk = FakeDisk::new();
    let follower = follower_of(&script, known, disk.clone());
    leave_a_checkpoint_file(&script, &follower);
    let old = Member::new(disk.after_cut(disk.calls(), 1)).state();
    let view = without(&script.leader, &["gone"]);
    let new = script.leader.state();
    let first = disk.calls();
    let mut traffic = Traffic::default();
    let ready = receive(&view, &follower.catalog, whole(&view), u64::MAX, &mut traffic);
    install(&follower, ready.unwrap().unwrap());
    let (mut cuts, mut olds, mut news) = (0, 0, 0);
    for call in first..=disk.calls() {
        for seed in [0, 1, 2 + call, 1000 + call] {
            let member = Member::new(disk.after_cut(call, seed));
            let state = member.state();
            assert!(state == old || state == new, "call {call} seed {seed}");
            cuts += 1;
            olds += usize::from(state == old);
            news += usize::from(state == new);
            if member.catalog.installed_at_start().is_some() {
                assert_eq!(state, new);
                member.catalog.forget_install().unwrap();
            }
            assert!(call < disk.calls() || state == new, "a finished install is durable");
            if seed > 999 {
                let ready = receive(
                    &view,
                    &member.catalog,
                    whole(&view),
                    u64::MAX,
                    &mut Traffic::default(),
                );
                install(&member, ready.unwrap().unwrap());
                assert_eq!(member.state(), new);
                assert_eq!(Member::new(member.disk.clone()).state(), new);
            }
        }
    }
    assert!(cuts >= 300 && olds > 20 && news > 20, "{cuts} cuts, {olds} old, {news} new");
}

/// A checkpoint of the follower fails after its commit point: `NAME.ckpt` stays behind.
fn leave_a_checkpoint_file(script: &Script, follower: &Member) {
    let at = script.entries.len() as u64;
    let other = Member::new(FakeDisk::unrecorded());
    script.replay(&other, 0..8);
    let delta = write(&other, "renamed", &[(5, 55)], 9);
    follower.apply(at + 1, &delta);
    let path = "databases/renamed.ckpt";
    for skip in 0.. {
        follower.disk.fail_from(follower.disk.calls() + skip, Fault::Io);
        assert!(follower.catalog.checkpoint().is_err());
        follower.disk.heal();
        if follower.disk.exists(path).unwrap() {
            follower.disk.sync_dir("databases").unwrap();
            return;
        }
    }
}

/// The disk fails at every call of the reception and install of one database: what is left is
/// finished by the next attempt or the next checkpoint, and never undone by a restart.
#[test]
fn a_part_survives_errors_of_the_disk() {
    let (script, _) = script();
    let all = script.entries.len();
    let mut healed = 0;
    for skip in 0..200 {
        let follower = follower_of(&script, all, FakeDisk::unrecorded());
        let damaged = follower.store("changed");
        let _ = damaged.set_damaged("for a test".to_owned());
        let view = script.leader.catalog.view(Some(damaged.id())).unwrap();
        follower.disk.fail_from(follower.disk.calls() + skip, Fault::Io);
        let mut traffic = Traffic::default();
        let ready = receive(&view, &follower.catalog, Scope::Part, u64::MAX, &mut traffic)
            .map(Option::unwrap);
        let failed = match ready {
            Ok(ready) => follower.catalog.install(ready, |_| Ok(())).is_err(),
            Err(_) => true,
        };
        follower.disk.heal();
        assert_eq!(traffic.pages, 0, "nothing was damaged after all");
        // The next checkpoint finishes what was begun, and claims no more than before.
        let recorded = follower.catalog.recorded();
        assert_eq!(follower.catalog.checkpoint().unwrap(), recorded);
        let again = Member::new(follower.disk.clone());
        assert_eq!(again.state(), script.leader.state());
        if !failed {
            healed += 1;
            break;
        }
    }
    assert_eq!(healed, 1);
}

/// A byte of a base file changes: the copy is repaired, from one page of a peer.
#[test]
fn a_damaged_page_is_repaired_from_a_peer() {
    let (script, known) = script();
    let follower = follower_of(&script, known, FakeDisk::new());
    let store = follower.store("changed");
    let file = follower.disk.open("databases/changed.db").unwrap();
    file.write_at(&[0xEE], 6 * PAGE as u64 + 100).unwrap();
    assert!(store.verify().is_err());
    assert!(store.damage().unwrap().contains("page 7"));
    // Entries come meanwhile: this database skips them, and the record claims none of them.
    let recorded = follower.catalog.recorded();
    script.replay(&follower, known..script.entries.len());
    assert_eq!(follower.catalog.checkpoint().unwrap(), recorded);
    // Nobody gets anything of it from here.
    assert!(follower.catalog.view(None).is_err());

    let view = script.leader.catalog.view(Some(store.id())).unwrap();
    let mut traffic = Traffic::default();
    let ready = receive(&view, &follower.catalog, Scope::Part, u64::MAX, &mut traffic);
    let ready = ready.unwrap().unwrap();
    assert_eq!(traffic.pages, 1 + 5, "the damaged page, and those that changed since");
    let repaired = follower.catalog.install(ready, |_| panic!("the log is not concerned")).unwrap();
    let [repaired] = &repaired[..] else { panic!("one database") };
    assert!(repaired.snapshot_applied().is_err(), "not before it has caught up");
    assert_eq!(follower.catalog.checkpoint().unwrap(), recorded);
    repaired.heal();
    assert_eq!(follower.state(), script.leader.state());
    let covered = follower.catalog.checkpoint().unwrap();
    assert_eq!(covered, *script.leader.catalog.applied());
    assert_eq!(Member::new(follower.disk.clone()).state(), script.leader.state());
}
