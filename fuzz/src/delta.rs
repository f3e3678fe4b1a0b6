//! What must hold for any delta that stands in the log: it makes the next version, whose pages can
//! all be read and add up to its digest, or it changes nothing; and nothing panics.
//!
//! The bytes make up deltas for a database of a few pages. Their digests are those that whoever
//! applies them comes to, so that what they say of pages is all that can be wrong with them; then
//! a field is changed, or bytes, or parts are left out.

use std::sync::Arc;

use quire::base::{DatabaseName, DeltaId};
use quire::codec::Reader;
use quire::disk::{Disk, FakeDisk};
use quire::pages::catalog::Applied;
use quire::pages::delta::{ChangedPage, DeltaHeader, encode_changed, encode_whole};
use quire::pages::page::page_hash;
use quire::pages::store::{ApplyOutcome, Place, Point};
use quire::pages::{PagesError, Part, Store};

use super::Input;

const PAGE_SIZE: usize = 512;

/// Applies the deltas that `data` makes up.
pub fn one(data: &[u8]) {
    check_bytes(data);
    let mut input = Input::new(data);
    check_difference(&mut input);
    let mut world = World::new();
    for _ in 0..6 {
        if input.is_empty() || !world.step(&mut input) {
            return;
        }
    }
}

/// Any bytes are a delta or none.
fn check_bytes(data: &[u8]) {
    let mut reader = Reader::new(data);
    let _ = DeltaHeader::decode(&mut reader);
    let mut reader = Reader::new(data);
    while let Ok(changed) = ChangedPage::decode(&mut reader) {
        let _ = changed.patch(&mut [0; PAGE_SIZE]);
    }
}

/// A page out of few bytes: runs of them, some at odd places.
fn page(input: &mut Input<'_>, mut content: Vec<u8>) -> Vec<u8> {
    for _ in 0..input.below(6) {
        let (at, len, byte) = (usize::from(input.u16()), input.below(40), input.u8());
        content.iter_mut().skip(at % PAGE_SIZE).take(len).for_each(|slot| *slot = byte);
    }
    content
}

/// `patch(old, diff(old, new)) == new`.
fn check_difference(input: &mut Input<'_>) {
    let old = page(input, vec![0; PAGE_SIZE]);
    let new = page(input, old.clone());
    let mut out = Vec::new();
    assert_eq!(encode_changed(3, &old, &new, &mut out), old != new);
    if old != new {
        let mut patched = old;
        let mut reader = Reader::new(&out);
        ChangedPage::decode(&mut reader).expect("a difference").patch(&mut patched).expect("fits");
        assert!(patched == new && reader.finish().is_ok());
    }
}

struct World {
    store: Arc<Store>,
    /// The applied pages.
    pages: Vec<Vec<u8>>,
    index: u64,
    /// The changed pages that were given to the store last: parts may be left out.
    given: Vec<u8>,
}

/// A delta that is being made up.
struct Made {
    header: DeltaHeader,
    /// Its changed pages, each encoded.
    changes: Vec<Vec<u8>>,
}

impl World {
    /// A database of four pages.
    fn new() -> World {
        let name = DatabaseName::new("db").expect("a name");
        let disk = Arc::new(FakeDisk::unrecorded());
        disk.create_dir("databases").expect("a directory");
        let place = Place { index: 1, ordinal: 0 };
        let store = Store::open(disk, 1, name, PAGE_SIZE, Point::default(), place).expect("opens");
        let mut world = World { store, pages: Vec::new(), index: 1, given: Vec::new() };
        let mut first = Made { header: world.header(4), changes: Vec::new() };
        for number in 1..=4_u8 {
            let mut out = Vec::new();
            encode_whole(u32::from(number), &[number; PAGE_SIZE], &mut out);
            first.changes.push(out);
        }
        world.add_up(&mut first);
        let outcome = world.apply_whole(&first.header, &first.bytes());
        assert_eq!(outcome.expect("a good delta"), ApplyOutcome::Applied);
        world.check_applied(&first);
        world
    }

    /// A header for the next version.
    fn header(&self, page_count: u32) -> DeltaHeader {
        let applied = self.store.applied();
        DeltaHeader {
            database: 1,
            id: DeltaId { term: 1, sequence: applied.version + 1 },
            parent: applied.delta,
            base_version: applied.version,
            page_count,
            digest_before: applied.digest,
            digest_after: 0,
            changed_count: 0,
        }
    }

    /// One delta; false where the replica is damaged by it, and serves nothing any more.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let mut made = self.make(input);
        self.add_up(&mut made);
        spoil(&mut made, input);
        let before = self.store.applied();
        let outcome = match input.below(3) {
            0 => self.apply_parts(&made, input),
            _ => self.apply_whole(&made.header, &made.bytes()),
        };
        match outcome {
            Ok(ApplyOutcome::Applied) => self.check_applied(&made),
            Ok(ApplyOutcome::Refused | ApplyOutcome::Staged) => {
                assert_eq!(self.store.applied(), before);
            }
            Ok(ApplyOutcome::Skipped) => panic!("skipped without damage"),
            Err(_) => {
                assert!(self.store.damage().is_some(), "an error, and the next delta is refused");
                assert_eq!(self.store.applied(), before);
                return false;
            }
        }
        true
    }

    fn make(&self, input: &mut Input<'_>) -> Made {
        let have = self.pages.len() as u32;
        let page_count = match input.below(8) {
            0..4 => have,
            4 => have + 1 + input.below(3) as u32,
            5 => have.saturating_sub(1 + input.below(3) as u32),
            6 => input.below(16) as u32,
            _ => input.odd_u32(),
        };
        let mut changes = Vec::new();
        for _ in 0..input.below(5) {
            let number = match input.rarely(8) {
                true => input.odd_u32(),
                false => 1 + input.below(page_count.clamp(1, 16) as usize) as u32,
            };
            changes.push(self.change(number, input));
        }
        if input.below(2) == 0 {
            // In order, each once, and every new one: a good delta most of the time.
            let number = |change: &Vec<u8>| change.first_chunk().map(|n| u32::from_le_bytes(*n));
            for new in have + 1..=page_count.min(have + 8) {
                let mut out = Vec::new();
                encode_whole(new, &[input.u8(); PAGE_SIZE], &mut out);
                changes.insert(0, out);
            }
            changes.sort_by_key(number);
            changes.dedup_by_key(|change| number(change));
        }
        Made { header: self.header(page_count), changes }
    }

    /// A changed page.
    fn change(&self, number: u32, input: &mut Input<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let new = page(input, self.old(number));
        match input.below(8) {
            0..3 => encode_whole(number, &new, &mut out),
            3 => encode_whole(number, input.take(600), &mut out),
            4 => {
                out.extend_from_slice(&number.to_le_bytes());
                out.extend_from_slice(&[0, 1, 0]);
                out.extend_from_slice(&input.u16().to_le_bytes());
                let run = input.take(20);
                out.extend_from_slice(&(run.len() as u16).to_le_bytes());
                out.extend_from_slice(run);
            }
            _ => drop(encode_changed(number, &self.old(number), &new, &mut out)),
        }
        out
    }

    fn old(&self, number: u32) -> Vec<u8> {
        let at = (number as usize).checked_sub(1);
        at.and_then(|at| self.pages.get(at)).cloned().unwrap_or_else(|| vec![0; PAGE_SIZE])
    }

    /// The digest and the number of changes that whoever applies this one comes to.
    fn add_up(&self, made: &mut Made) {
        let mut digest = self.store.applied().digest;
        let bytes = made.changes.concat();
        let mut reader = Reader::new(&bytes);
        while let Ok(changed) = ChangedPage::decode(&mut reader) {
            made.header.changed_count += 1;
            let mut content = self.old(changed.number);
            if (1..=self.pages.len()).contains(&(changed.number as usize)) {
                digest ^= page_hash(changed.number, &content);
            }
            let _ = changed.patch(&mut content);
            digest ^= page_hash(changed.number, &content);
        }
        let gone = self.pages.iter().enumerate().skip(made.header.page_count as usize);
        for (at, content) in gone {
            digest ^= page_hash(at as u32 + 1, content);
        }
        made.header.digest_after = digest;
    }

    fn place(&mut self) -> Place {
        self.index += 1;
        Place { index: self.index, ordinal: 1 }
    }

    fn apply_whole(
        &mut self,
        header: &DeltaHeader,
        bytes: &[u8],
    ) -> Result<ApplyOutcome, PagesError> {
        let place = self.place();
        self.given = bytes[DeltaHeader::BYTES..].to_vec();
        self.store.apply(header, bytes, place)
    }

    fn apply_parts(
        &mut self,
        made: &Made,
        input: &mut Input<'_>,
    ) -> Result<ApplyOutcome, PagesError> {
        let mut parts = vec![made.encoded_header()];
        for change in &made.changes {
            if input.below(2) == 0 {
                parts.push(Vec::new());
            }
            parts.last_mut().expect("the first one").extend_from_slice(change);
        }
        if input.rarely(6) {
            parts.remove(input.below(parts.len()));
        }
        let count = parts.len();
        let mut given = Vec::new();
        let mut outcome = ApplyOutcome::Refused;
        for (number, bytes) in parts.iter().enumerate() {
            let number = number as u32 + u32::from(input.rarely(16));
            let last = number as usize + 1 == count || input.rarely(16);
            let part = Part { database: 1, id: made.header.id, number, last, bytes };
            let place = self.place();
            given.extend_from_slice(bytes);
            self.given = given.get(DeltaHeader::BYTES..).unwrap_or_default().to_vec();
            outcome = self.store.apply_part(&part, place, &Applied::default())?;
            if outcome != ApplyOutcome::Staged {
                return Ok(outcome);
            }
        }
        Ok(outcome)
    }

    /// What was applied is what the delta says: all of it can be read.
    fn check_applied(&mut self, made: &Made) {
        let header = &made.header;
        let mut pages = self.pages.clone();
        pages.resize(header.page_count.min(64) as usize, vec![0; PAGE_SIZE]);
        let mut reader = Reader::new(&self.given);
        while let Ok(changed) = ChangedPage::decode(&mut reader) {
            let content = &mut pages[changed.number as usize - 1];
            changed.patch(content).expect("it was applied");
        }
        let point = Point {
            version: header.base_version + 1,
            page_count: header.page_count,
            digest: header.digest_after,
            delta: header.id,
        };
        assert_eq!(self.store.applied(), point);
        assert_eq!(self.store.verify().expect("what was applied can be read"), point);
        let snapshot = self.store.snapshot_applied().expect("a snapshot");
        for (number, content) in (1..).zip(&pages) {
            let mut read = vec![0; PAGE_SIZE];
            assert!(snapshot.read(number, 0, &mut read).expect("a page"), "page {number}");
            assert!(read == *content, "page {number} is another one");
        }
        self.pages = pages;
    }
}

impl Made {
    fn encoded_header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.header.encode(&mut out);
        out
    }

    fn bytes(&self) -> Vec<u8> {
        [self.encoded_header(), self.changes.concat()].concat()
    }
}

/// Changes something about a delta, most of the time nothing.
fn spoil(made: &mut Made, input: &mut Input<'_>) {
    let header = &mut made.header;
    match input.below(32) {
        20 => header.database = input.odd(),
        21 => header.id = DeltaId { term: input.odd(), sequence: input.odd() },
        22 => header.parent = DeltaId { term: input.odd(), sequence: input.odd() },
        23 => header.base_version = input.odd(),
        24 => header.digest_before ^= u128::from(input.odd()),
        25 => header.digest_after ^= u128::from(input.odd()),
        26 => header.changed_count = input.odd_u32(),
        27 => header.page_count = input.odd_u32(),
        28 => made.changes.push(input.take(30).to_vec()),
        29 => drop(made.changes.pop()),
        30 => {
            if let Some(last) = made.changes.last_mut() {
                last.truncate(last.len().saturating_sub(1 + input.below(9)));
            }
        }
        _ => {}
    }
}
