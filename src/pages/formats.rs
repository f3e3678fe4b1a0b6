//! Which of a node's files say a format of their own: the checkpoint record, the checkpoint files
//! and the install record, by the last byte of their magic number.
//!
//! *Invariant*: it only reads.

use std::io;

use crate::disk::{Disk, DiskFile};

use super::{catalog, fold, install};

/// What of the databases' files was written by a newer build, if something was.
pub fn newer_format(disk: &dyn Disk) -> io::Result<Option<String>> {
    let mut files = vec![
        (catalog::RECORD_PATH.to_owned(), catalog::MAGIC),
        (install::record_path(), install::MAGIC),
    ];
    for name in disk.list("databases")? {
        if name.ends_with(".ckpt") {
            files.push((format!("databases/{name}"), fold::MAGIC));
        }
    }
    for (path, magic) in files {
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Some(format) = newer_than(&*file, magic)? {
            return Ok(Some(format!("{path} has format {format}")));
        }
    }
    Ok(None)
}

/// The format that the file says, where it is a later one than that of `magic`. A byte that only
/// went bad is no format: the checksum, at the end in every format, must agree.
fn newer_than(file: &dyn DiskFile, magic: &[u8; 8]) -> io::Result<Option<char>> {
    let mut head = [0; 8];
    let got = file.read_at(&mut head, 0)?;
    let ([kind @ .., format], [ours @ .., known]) = (&head, magic);
    if got < head.len() || kind != ours || format <= known || !format.is_ascii_graphic() {
        return Ok(None);
    }
    let Some(end) = file.len()?.checked_sub(4) else { return Ok(None) };
    Ok(fold::matches_checksum(file, end)?.then(|| char::from(*format)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::newer_format;
    use crate::disk::{Disk, FakeDisk, replace};
    use crate::pages::Catalog;

    fn with_checksum(content: &[u8]) -> Vec<u8> {
        [content, &crc32c::crc32c(content).to_le_bytes()].concat()
    }

    #[test]
    fn a_later_number_is_newer_and_a_bad_byte_is_not() {
        let disk = FakeDisk::new();
        Catalog::open(Arc::new(disk.clone())).unwrap().checkpoint().unwrap();
        disk.create_dir("incoming").unwrap();
        assert_eq!(newer_format(&disk).unwrap(), None);
        for (path, magic) in [
            ("checkpoint", b"QUIRECP2"),
            ("databases/shop.ckpt", b"QUIRECK2"),
            ("incoming/install", b"QUIREIN9"),
        ] {
            let before = disk.bytes(path);
            let newer = [&magic[..], b"whatever it may be"].concat();
            replace(&disk, path, &newer).unwrap();
            assert_eq!(newer_format(&disk).unwrap(), None, "{path}: a byte that went bad");
            replace(&disk, path, &with_checksum(&newer)).unwrap();
            let expected = format!("{path} has format {}", char::from(magic[7]));
            assert_eq!(newer_format(&disk).unwrap(), Some(expected));
            match before {
                Ok(bytes) => replace(&disk, path, &bytes).unwrap(),
                Err(_) => disk.remove(path).unwrap(),
            }
        }
        assert_eq!(newer_format(&disk).unwrap(), None);
    }
}
