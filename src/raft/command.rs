//! The commands of the replicated state machine, in bytes: some deltas, a part of a large one,
//! the end of an unfinished one, or a new database.
//!
//! *Invariant*: decoding is total and copies no delta.

use bytes::Bytes;

use crate::base::{DatabaseId, DatabaseName, DeltaId};
use crate::codec::{Malformed, Reader, put_bytes_u32};
use crate::pages::Part;
use crate::pages::page::is_page_size;

use super::types::Command;

const DELTAS: u8 = 1;
const CREATE: u8 = 2;
const PART: u8 = 3;
const DISCARD: u8 = 4;

/// Bytes that a delta costs in a command beyond its own.
pub const DELTA_OVERHEAD_BYTES: usize = 4;

/// A decoded command.
#[derive(Debug)]
pub enum Decoded<'a> {
    /// Deltas, each of some database, to be applied in this order.
    Deltas(Vec<&'a [u8]>),
    /// A database is created, with pages of this size.
    Create {
        /// Its name.
        name: DatabaseName,
        /// Bytes in a page.
        page_size: usize,
    },
    /// A part of a delta that is too large for an entry.
    Part(Part<'a>),
    /// The parts of this delta so far are of no use: the others will not come.
    Discard {
        /// Which database.
        database: DatabaseId,
        /// The delta's id.
        id: DeltaId,
    },
}

/// A command that carries deltas.
pub fn deltas(deltas: &[Bytes]) -> Command {
    let bytes: usize = deltas.iter().map(|delta| delta.len() + DELTA_OVERHEAD_BYTES).sum();
    let mut out = Vec::with_capacity(bytes + 5);
    out.push(DELTAS);
    // The run-ahead window bounds their number, and an entry's bound their bytes.
    out.extend_from_slice(&u32::try_from(deltas.len()).unwrap_or(u32::MAX).to_le_bytes());
    for delta in deltas {
        let fits = put_bytes_u32(&mut out, delta);
        debug_assert!(fits.is_some());
    }
    Command(out.into())
}

/// A command that creates a database.
pub fn create(name: &DatabaseName, page_size: usize) -> Command {
    let mut out = vec![CREATE];
    let fits = put_bytes_u32(&mut out, name.as_str().as_bytes());
    debug_assert!(fits.is_some());
    out.extend_from_slice(&u32::try_from(page_size).unwrap_or(0).to_le_bytes());
    Command(out.into())
}

/// A command that carries a part of a delta.
pub fn part(part: &Part<'_>) -> Command {
    let mut out = Vec::with_capacity(part.bytes.len() + 34);
    out.push(PART);
    put_delta(part.database, part.id, &mut out);
    out.extend_from_slice(&part.number.to_le_bytes());
    out.push(u8::from(part.last));
    let fits = put_bytes_u32(&mut out, part.bytes);
    debug_assert!(fits.is_some());
    Command(out.into())
}

/// A command that discards the parts of a delta whose others will not come.
pub fn discard(database: DatabaseId, id: DeltaId) -> Command {
    let mut out = vec![DISCARD];
    put_delta(database, id, &mut out);
    Command(out.into())
}

fn put_delta(database: DatabaseId, id: DeltaId, out: &mut Vec<u8>) {
    out.extend_from_slice(&database.to_le_bytes());
    out.extend_from_slice(&id.term.to_le_bytes());
    out.extend_from_slice(&id.sequence.to_le_bytes());
}

fn read_delta(reader: &mut Reader<'_>) -> Result<(DatabaseId, DeltaId), Malformed> {
    Ok((reader.u64()?, DeltaId { term: reader.u64()?, sequence: reader.u64()? }))
}

/// Reads a command.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let decoded = match reader.u8()? {
        DELTAS => {
            let count = reader.u32()?;
            let mut deltas = Vec::new();
            for _ in 0..count {
                deltas.push(reader.bytes_u32()?);
            }
            Decoded::Deltas(deltas)
        }
        CREATE => {
            let offset = reader.offset();
            let name = DatabaseName::new(reader.text_u32()?)
                .map_err(|_| Malformed { offset, what: "a database name" })?;
            let offset = reader.offset();
            let page_size = usize::try_from(reader.u32()?).unwrap_or(0);
            if !is_page_size(page_size) {
                return Err(Malformed { offset, what: "a page size" });
            }
            Decoded::Create { name, page_size }
        }
        PART => {
            let (database, id) = read_delta(&mut reader)?;
            let (number, last) = (reader.u32()?, reader.u8()? != 0);
            Decoded::Part(Part { database, id, number, last, bytes: reader.bytes_u32()? })
        }
        DISCARD => {
            let (database, id) = read_delta(&mut reader)?;
            Decoded::Discard { database, id }
        }
        _ => {
            return Err(Malformed { offset: 0, what: "a kind of command that this version knows" });
        }
    };
    reader.finish()?;
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_comes_back() {
        let Command(bytes) = deltas(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
        let Ok(Decoded::Deltas(all)) = decode(&bytes) else { panic!("deltas") };
        assert_eq!(all, [b"one", b"two"]);
        let Command(bytes) = create(&DatabaseName::new("shop").unwrap(), 4096);
        let Ok(Decoded::Create { name, page_size }) = decode(&bytes) else { panic!("create") };
        assert_eq!((name.as_str(), page_size), ("shop", 4096));
        let id = DeltaId { term: 3, sequence: 9 };
        let sent = Part { database: 7, id, number: 2, last: true, bytes: b"pages" };
        let Command(bytes) = part(&sent);
        let Ok(Decoded::Part(got)) = decode(&bytes) else { panic!("part") };
        assert_eq!(got, sent);
        let Command(bytes) = discard(7, id);
        assert!(matches!(decode(&bytes), Ok(Decoded::Discard { database: 7, id: of }) if of == id));
    }

    /// The bytes that docs/format.md draws.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let Command(bytes) = deltas(&[Bytes::from_static(b"one"), Bytes::from_static(b"four")]);
        assert_eq!(bytes, &b"\x01\x02\0\0\0\x03\0\0\0one\x04\0\0\0four"[..]);
        let Command(bytes) = create(&DatabaseName::new("shop").unwrap(), 4096);
        assert_eq!(bytes, &b"\x02\x04\0\0\0shop\0\x10\0\0"[..]);
        let id = DeltaId { term: 3, sequence: 9 };
        let drawn_id = b"\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0";
        let Command(bytes) = part(&Part { database: 7, id, number: 2, last: true, bytes: b"page" });
        let drawn = [&b"\x03"[..], drawn_id, b"\x02\0\0\0\x01\x04\0\0\0page"].concat();
        assert_eq!(bytes, drawn);
        let Command(bytes) = discard(7, id);
        assert_eq!(bytes, [&b"\x04"[..], drawn_id].concat());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
