//! What must hold while copies of databases come from another member, whatever it sends, in
//! whatever order, and wherever it or the power stops: nothing panics, and what is put in place is
//! what was described, to the page; until then, and after any start, this member has its old
//! databases or the new ones.

use std::sync::Arc;

use quire::base::{DatabaseName, DeltaId};
use quire::disk::{Cut, Disk, FakeDisk};
use quire::log::LogId;
use quire::pages::catalog::Applied;
use quire::pages::incoming::{Incoming, Scope};
use quire::pages::page::page_hash;
use quire::pages::view::Described;
use quire::pages::{Catalog, PageNo, Store};

use super::Input;

const PAGE_SIZE: usize = 512;

/// What is there at first, by id: `a` and `b`.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Receives what `data` makes up.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.incoming = None;
    world.check();
}

/// A database at the other member.
struct Offered {
    described: Described,
    pages: Vec<Vec<u8>>,
    /// How many of its pages were asked about.
    asked: usize,
    /// Those that are lacking.
    lacking: Vec<PageNo>,
}

struct World {
    disk: FakeDisk,
    catalog: Catalog,
    offered: Vec<Offered>,
    incoming: Option<Incoming>,
    /// Counts offers.
    version: u64,
    /// Whether a file under `incoming/` was damaged: no more than pages asked for again.
    whole: bool,
}

fn described(id: u64, name: &str, page_size: usize, version: u64, pages: &[Vec<u8>]) -> Described {
    let name = DatabaseName::new(name).expect("a name");
    let mut about = Vec::new();
    about.extend_from_slice(&(name.as_str().len() as u32).to_le_bytes());
    about.extend_from_slice(name.as_str().as_bytes());
    let digest = (1..).zip(pages).fold(0, |sum, (number, page)| sum ^ page_hash(number, page));
    about.extend_from_slice(&version.to_le_bytes());
    about.extend_from_slice(&(pages.len() as u32).to_le_bytes());
    about.extend_from_slice(&u128::to_le_bytes(digest));
    let delta = DeltaId { term: 1, sequence: version };
    for number in [delta.term, delta.sequence, 10 + version] {
        about.extend_from_slice(&number.to_le_bytes());
    }
    about.extend_from_slice(&1_u32.to_le_bytes());
    Described::decode_about(id, page_size, &about).expect("what docs/format.md draws")
}

fn applied(index: u64) -> Applied {
    Applied { last: Some(LogId { term: 1, index }), membership: vec![1, 2, 3] }
}

impl World {
    fn new() -> World {
        let disk = FakeDisk::unrecorded();
        disk.set_budget(Some(1 << 20));
        let catalog = Catalog::open(Arc::new(disk.clone())).expect("an empty directory");
        for (id, name) in (1..=2).zip(NAMES) {
            let name = DatabaseName::new(name).expect("a name");
            catalog.create(id, name, PAGE_SIZE).expect("a database");
        }
        *catalog.applied() = applied(9);
        catalog.checkpoint().expect("a checkpoint");
        World { disk, catalog, offered: Vec::new(), incoming: None, version: 0, whole: true }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..2 => self.begin(input),
            2..5 => self.ask(input),
            5..8 => self.send(input),
            8..12 => self.all(input),
            12 => self.incoming = None,
            13 => self.restart(input),
            14 => self.damage(input),
            _ => self.finish(),
        }
    }

    /// Some databases are offered, mistakes among them.
    fn begin(&mut self, input: &mut Input<'_>) {
        self.version += 1;
        let mut offered = Vec::new();
        let count = input.below(4);
        for (usual, own) in (1_u64..).zip(NAMES).take(count) {
            let pages: Vec<Vec<u8>> =
                (0..input.below(5)).map(|_| vec![input.u8() % 4; PAGE_SIZE]).collect();
            let id = if input.rarely(8) { input.odd() } else { usual };
            let name = if input.rarely(8) { input.choose(&NAMES) } else { own };
            let size = if input.rarely(16) { input.odd() as usize } else { PAGE_SIZE };
            let mut described = described(id, name, size, self.version, &pages);
            match input.below(24) {
                21 => described.folded.point.page_count = input.odd_u32(),
                22 => described.folded.point.digest ^= u128::from(input.odd()),
                23 => described.folded.point.version = input.odd(),
                _ => {}
            }
            offered.push(Offered { described, pages, asked: 0, lacking: Vec::new() });
        }
        let scope = match input.below(4) {
            0 => Scope::Part,
            _ => Scope::Whole(applied(10 + self.version)),
        };
        let databases = offered.iter().map(|offered| offered.described.clone()).collect();
        match Incoming::begin(&self.catalog, scope, databases) {
            Ok(incoming) => {
                self.incoming = Some(incoming);
                self.offered = offered;
                self.whole = true;
            }
            // Another one takes it from this one only where it gets so far.
            Err(_) => self.incoming = None,
        }
    }

    /// Hashes of pages, the next ones or any.
    fn ask(&mut self, input: &mut Input<'_>) {
        let Some(incoming) = &mut self.incoming else { return };
        let count = 1 + input.below(4);
        if self.offered.is_empty() || input.rarely(6) {
            let hashes = vec![u128::from(input.u64()); count];
            self.whole &= incoming.missing(input.odd(), input.odd_u32(), &hashes).is_err();
            return;
        }
        let at = input.below(self.offered.len());
        let offered = &mut self.offered[at];
        let first = offered.asked as u32 + 1;
        let hashes: Vec<u128> = (first..)
            .zip(offered.pages.iter().skip(offered.asked).take(count))
            .map(|(number, page)| page_hash(number, page))
            .collect();
        if let Ok(lacking) = incoming.missing(offered.described.id, first, &hashes) {
            offered.asked += hashes.len();
            offered.lacking.extend(lacking);
        }
    }

    /// Pages, those that are lacking or any.
    fn send(&mut self, input: &mut Input<'_>) {
        let Some(incoming) = &mut self.incoming else { return };
        if self.offered.is_empty() || input.rarely(6) {
            let id = if input.below(2) == 0 { input.odd() } else { 1 + input.below(4) as u64 };
            let len = input.below(3) * PAGE_SIZE + input.below(9);
            let first = if input.below(2) == 0 { input.odd_u32() } else { input.below(9) as u32 };
            // What nobody asked for is refused.
            let _ = incoming.receive(id, first, &vec![input.u8(); len]);
            return;
        }
        let at = input.below(self.offered.len());
        let offered = &mut self.offered[at];
        let Some(page) = offered.lacking.first().copied() else { return };
        let mut content = offered.pages[page as usize - 1].clone();
        if input.rarely(6) {
            content[input.below(256)] ^= input.u8();
        }
        let good = content == offered.pages[page as usize - 1];
        if incoming.receive(offered.described.id, page, &content).is_ok() {
            assert!(good, "a page that is another one was taken");
            offered.lacking.remove(0);
        }
    }

    /// All that is not here yet.
    fn all(&mut self, input: &mut Input<'_>) {
        for at in 0..self.offered.len() {
            let rounds = self.offered[at].pages.len() * 2;
            for _ in 0..rounds {
                let at = [at as u8];
                // A question about four pages at `at`, then a page of it.
                self.ask(&mut Input::new(&[&[3, 0], &at[..]].concat()));
                self.send(&mut Input::new(&[&[0], &at[..]].concat()));
            }
        }
        if input.below(2) == 0 {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(incoming) = self.incoming.take() else { return };
        let Ok(ready) = incoming.finish() else { return };
        let stores = self.catalog.install(ready, |_| Ok(()));
        let Ok(stores) = stores else { return };
        for store in &stores {
            self.check_installed(store);
        }
        self.check();
    }

    fn check_installed(&self, store: &Arc<Store>) {
        let mut offered = self.offered.iter();
        let offered = offered.find(|offered| offered.described.id == store.id());
        let offered = offered.expect("it was offered");
        assert_eq!(*store.name(), offered.described.name);
        store.heal();
        let point = offered.described.folded.point;
        assert_eq!(store.verify().expect("what was installed can be read"), point);
        let snapshot = store.snapshot_applied().expect("a snapshot");
        for (number, content) in (1..).zip(&offered.pages) {
            let mut read = vec![0; PAGE_SIZE];
            assert!(snapshot.read(number, 0, &mut read).expect("a page"));
            // Other pages were described where hashes of nobody's pages were sent.
            assert!(!self.whole || read == *content, "page {number} is another one");
        }
    }

    /// A process ends, or the power.
    fn restart(&mut self, input: &mut Input<'_>) {
        self.incoming = None;
        self.disk = self.disk.cut(Cut::from_seed(u64::from(input.u8())));
        self.disk.set_budget(Some(1 << 20));
        self.catalog = Catalog::open(Arc::new(self.disk.clone())).expect("a start");
        if self.catalog.installed_at_start().is_some() {
            self.catalog.forget_install().expect("a disk that works");
        }
        self.check();
    }

    /// Bytes rot in what was received.
    fn damage(&mut self, input: &mut Input<'_>) {
        let names = self.disk.list("incoming").unwrap_or_default();
        if let Some(name) = names.get(input.below(names.len())) {
            let path = format!("incoming/{name}");
            let at = u64::from(input.u16()) % 4096;
            let _ = self.disk.flip(&path, at, &[input.u8()]);
            // Where it was received already, a start or a reader finds out.
            self.incoming = None;
        }
    }

    /// What this member has is sound.
    fn check(&self) {
        let mut names = Vec::new();
        for store in self.catalog.all() {
            let point = store.applied();
            store.heal();
            assert_eq!(store.verify().expect("sound"), point, "{}", store.name());
            names.push(store.name().clone());
        }
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "two databases of one name");
    }
}
