//! What must hold for a data directory whose checkpoint record, install record or checkpoint file
//! says anything at all, its checksum included: it opens or it does not, and what opens can be
//! looked at and written again; nothing panics and nothing is reserved that is only claimed.

use std::sync::Arc;

use quire::disk::{Disk, FakeDisk};
use quire::pages::{Catalog, newer_format};

use super::Input;

/// The disk is no larger: what does not fit is a full disk.
const DISK_BYTES: u64 = 1 << 20;

/// Opens the directory that `data` makes up.
pub fn one(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = FakeDisk::unrecorded();
    disk.set_budget(Some(DISK_BYTES));
    for dir in ["databases", "incoming"] {
        disk.create_dir(dir).expect("a directory");
    }
    let which = input.u8();
    if which & 1 == 1 {
        write(&disk, "databases/a.ckpt", &checkpoint_file(&mut input));
    }
    for (bit, path) in [(2, "databases/a.db"), (4, "databases/a.sum"), (8, "databases/.7.db")] {
        if which & bit == bit {
            write(&disk, path, &[bit; 700]);
        }
    }
    if which & 16 == 16 {
        write(&disk, "incoming/install", &install_record(&mut input));
    }
    let record = record(&mut input);
    write(&disk, "checkpoint", &record);
    check(&disk);
}

fn write(disk: &FakeDisk, path: &str, bytes: &[u8]) {
    disk.create(path).expect("a file").write_at(bytes, 0).expect("room");
}

/// Opens it twice.
fn check(disk: &FakeDisk) {
    let _ = newer_format(disk);
    let recorded = Catalog::recorded_on(disk);
    let Ok(catalog) = Catalog::open(Arc::new(disk.clone())) else { return };
    let whole = catalog.installed_at_start().is_some();
    assert!(recorded.is_ok() || disk.exists("incoming/install").is_ok(), "it was read once");
    let mut bad = false;
    for store in catalog.all() {
        let point = store.applied();
        match store.verify() {
            Ok(verified) => assert_eq!(verified, point),
            Err(_) => bad = true,
        }
    }
    if whole {
        catalog.forget_install().expect("a disk that works");
    }
    let at = catalog.recorded();
    let written = catalog.checkpoint();
    drop(catalog);
    if written.is_err() {
        return;
    }
    let again = Catalog::open(Arc::new(disk.clone())).expect("it was opened once");
    assert_eq!(again.recorded(), at);
    for store in again.all() {
        assert!(bad || store.verify().is_ok(), "it was good before");
    }
}

/// With its checksum, most of the time.
fn sealed(mut bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    if input.rarely(8) && !bytes.is_empty() {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] ^= input.u8();
    }
    if input.rarely(8) {
        bytes.truncate(usize::from(input.u16()));
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    if input.rarely(16) {
        bytes.extend_from_slice(input.take(9));
    }
    bytes
}

fn put_text(out: &mut Vec<u8>, text: &[u8], input: &mut Input<'_>) {
    let len = if input.rarely(16) { input.odd_u32() } else { text.len() as u32 };
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text);
}

fn put_count(out: &mut Vec<u8>, count: usize, input: &mut Input<'_>) {
    let count = if input.rarely(16) { input.odd_u32() } else { count as u32 };
    out.extend_from_slice(&count.to_le_bytes());
}

fn name(input: &mut Input<'_>) -> &'static [u8] {
    input.choose(&[b"a".as_slice(), b"a", b"b", b"c", b"../x", b"", b"\xff\xfe", b".7", b"x/y"])
}

fn id(input: &mut Input<'_>) -> u64 {
    if input.rarely(6) { input.odd() } else { input.choose(&[7, 8, 9]) }
}

fn page_size(input: &mut Input<'_>) -> u32 {
    if input.rarely(4) { input.odd_u32() } else { 512 }
}

/// A position: version, page count, digest, delta, place.
fn put_folded(out: &mut Vec<u8>, input: &mut Input<'_>) {
    out.extend_from_slice(&input.odd().to_le_bytes());
    let pages = if input.rarely(3) { input.odd_u32() } else { input.below(3) as u32 };
    out.extend_from_slice(&pages.to_le_bytes());
    let digest = if input.below(2) == 0 { 0 } else { u128::from(input.u64()) };
    out.extend_from_slice(&digest.to_le_bytes());
    for _ in 0..3 {
        out.extend_from_slice(&input.odd().to_le_bytes());
    }
    out.extend_from_slice(&input.odd_u32().to_le_bytes());
}

/// A checkpoint record, as docs/format.md draws it.
fn record(input: &mut Input<'_>) -> Vec<u8> {
    if input.rarely(8) {
        let bytes = input.take(200).to_vec();
        return sealed(bytes, input);
    }
    let mut out = b"QUIRECP1".to_vec();
    out.push(input.below(2) as u8);
    out.extend_from_slice(&input.odd().to_le_bytes());
    out.extend_from_slice(&input.odd().to_le_bytes());
    let membership = input.below(20);
    let membership = input.take(membership);
    put_text(&mut out, membership, input);
    let databases = input.below(4);
    put_count(&mut out, databases, input);
    for _ in 0..databases {
        out.extend_from_slice(&id(input).to_le_bytes());
        let name = name(input);
        put_text(&mut out, name, input);
        out.extend_from_slice(&page_size(input).to_le_bytes());
        put_folded(&mut out, input);
    }
    sealed(out, input)
}

fn install_record(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = b"QUIREIN1".to_vec();
    out.push(input.below(2) as u8);
    let moved = input.below(3);
    put_count(&mut out, moved, input);
    for _ in 0..moved {
        out.extend_from_slice(&id(input).to_le_bytes());
    }
    let dropped = input.below(3);
    put_count(&mut out, dropped, input);
    for _ in 0..dropped {
        let name = name(input);
        put_text(&mut out, name, input);
    }
    let record = record(input);
    put_text(&mut out, &record, input);
    sealed(out, input)
}

fn checkpoint_file(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = b"QUIRECK1".to_vec();
    out.extend_from_slice(&id(input).to_le_bytes());
    put_folded(&mut out, input);
    out.extend_from_slice(&page_size(input).to_le_bytes());
    let pages = input.below(3);
    put_count(&mut out, pages, input);
    for at in 0..pages {
        let number = if input.rarely(4) { input.odd_u32() } else { at as u32 + 1 };
        let content = [input.u8(); 512];
        out.extend_from_slice(&number.to_le_bytes());
        let hash = quire::pages::page::page_hash(number, &content);
        out.extend_from_slice(&hash.to_le_bytes());
        out.extend_from_slice(&content);
    }
    sealed(out, input)
}
