//! A delta: what one transaction changed, as bytes. This file is the format (drawn in
//! docs/format.md) and the arithmetic on it; it knows neither files nor Raft.
//!
//! A changed page is stored as the runs of bytes that differ from its image in the base version;
//! a page that the transaction added is stored whole.
//!
//! *Invariant*: decoding is total, and `patch(old, diff(old, new)) == new` for every pair.

use crate::base::{DatabaseId, DeltaId};
use crate::codec::{Malformed, Reader};

use super::page::PageNo;

/// Runs of changed bytes with fewer equal bytes between them than this become one run: a run
/// costs four bytes of its own.
const GAP_BYTES_MIN: usize = 8;

const KIND_RUNS: u8 = 0;
const KIND_WHOLE: u8 = 1;

/// What stands before the pages of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaHeader {
    /// Which database, by the log index of the entry that created it.
    pub database: DatabaseId,
    /// This delta's own id.
    pub id: DeltaId,
    /// The id of the delta that made the base version.
    pub parent: DeltaId,
    /// The version that this delta changes; it makes the next one.
    pub base_version: u64,
    /// Pages in the database afterwards.
    pub page_count: u32,
    /// Digest of the whole database before.
    pub digest_before: u128,
    /// Digest of the whole database after.
    pub digest_after: u128,
    /// How many pages follow.
    pub changed_count: u32,
}

impl DeltaHeader {
    /// Bytes of an encoded header.
    pub const BYTES: usize = 8 + 16 + 16 + 8 + 4 + 16 + 16 + 4;

    /// Appends the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.database.to_le_bytes());
        out.extend_from_slice(&self.id.term.to_le_bytes());
        out.extend_from_slice(&self.id.sequence.to_le_bytes());
        out.extend_from_slice(&self.parent.term.to_le_bytes());
        out.extend_from_slice(&self.parent.sequence.to_le_bytes());
        out.extend_from_slice(&self.base_version.to_le_bytes());
        out.extend_from_slice(&self.page_count.to_le_bytes());
        out.extend_from_slice(&self.digest_before.to_le_bytes());
        out.extend_from_slice(&self.digest_after.to_le_bytes());
        out.extend_from_slice(&self.changed_count.to_le_bytes());
    }

    /// Reads a header.
    pub fn decode(reader: &mut Reader<'_>) -> Result<DeltaHeader, Malformed> {
        Ok(DeltaHeader {
            database: reader.u64()?,
            id: DeltaId { term: reader.u64()?, sequence: reader.u64()? },
            parent: DeltaId { term: reader.u64()?, sequence: reader.u64()? },
            base_version: reader.u64()?,
            page_count: reader.u32()?,
            digest_before: reader.u128()?,
            digest_after: reader.u128()?,
            changed_count: reader.u32()?,
        })
    }
}

/// One changed page of a delta, still encoded.
#[derive(Clone, Copy, Debug)]
pub struct ChangedPage<'a> {
    /// Its number.
    pub number: PageNo,
    change: Change<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    Runs { count: u16, bytes: &'a [u8] },
    Whole(&'a [u8]),
}

impl<'a> ChangedPage<'a> {
    /// Whether the page is given whole, so that its old image does not matter.
    pub fn is_whole(&self) -> bool {
        matches!(self.change, Change::Whole(_))
    }

    /// Reads the next changed page.
    pub fn decode(reader: &mut Reader<'a>) -> Result<ChangedPage<'a>, Malformed> {
        let number = reader.u32()?;
        let offset = reader.offset();
        let change = match reader.u8()? {
            KIND_RUNS => {
                let count = reader.u16()?;
                let start = reader.rest();
                let before = reader.offset();
                for _ in 0..count {
                    reader.u16()?;
                    let len = reader.u16()?;
                    reader.take(usize::from(len))?;
                }
                Change::Runs { count, bytes: &start[..reader.offset() - before] }
            }
            KIND_WHOLE => Change::Whole(reader.bytes_u32()?),
            _ => return Err(Malformed { offset, what: "kind of a changed page" }),
        };
        Ok(ChangedPage { number, change })
    }

    /// Turns the old image in `page` into the new one. `page` is one page long; for a page given
    /// whole its old content does not matter.
    pub fn patch(&self, page: &mut [u8]) -> Result<(), Malformed> {
        match self.change {
            Change::Whole(bytes) if bytes.len() == page.len() => page.copy_from_slice(bytes),
            Change::Whole(_) => return Err(Malformed { offset: 0, what: "a page of this size" }),
            Change::Runs { count, bytes } => {
                let mut reader = Reader::new(bytes);
                for _ in 0..count {
                    let start = usize::from(reader.u16()?);
                    let run = usize::from(reader.u16()?);
                    let new = reader.take(run)?;
                    let malformed = Malformed { offset: start, what: "a run inside the page" };
                    let target = page.get_mut(start..start + run).ok_or(malformed)?;
                    target.copy_from_slice(new);
                }
            }
        }
        Ok(())
    }
}

/// Appends a page that is given whole.
pub fn encode_whole(number: PageNo, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_le_bytes());
    out.push(KIND_WHOLE);
    // A page is at most 65,536 bytes.
    out.extend_from_slice(&u32::try_from(content.len()).unwrap_or(0).to_le_bytes());
    out.extend_from_slice(content);
}

/// Appends a changed page as the runs of bytes in which `new` differs from `old`, or whole where
/// that is no larger. Both are one page long. Returns whether anything differed.
pub fn encode_changed(number: PageNo, old: &[u8], new: &[u8], out: &mut Vec<u8>) -> bool {
    debug_assert_eq!(old.len(), new.len());
    let start = out.len();
    out.extend_from_slice(&number.to_le_bytes());
    out.push(KIND_RUNS);
    let count_at = out.len();
    out.extend_from_slice(&[0, 0]);
    let mut count = 0_u16;
    let mut from = 0;
    while let Some((run_start, run_end)) = next_run(old, new, from) {
        let run = &new[run_start..run_end];
        // Starts are below 65,536; a run that long, or a page of mostly runs, goes whole.
        match (u16::try_from(run_start), u16::try_from(run.len())) {
            (Ok(at), Ok(len)) if out.len() - start + 4 + run.len() < new.len() => {
                out.extend_from_slice(&at.to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(run);
            }
            _ => {
                out.truncate(start);
                encode_whole(number, new, out);
                return true;
            }
        }
        count += 1;
        from = run_end;
    }
    if count == 0 {
        out.truncate(start);
        return false;
    }
    out[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
    true
}

/// The next run of differing bytes at or after `from`: its start and its end (exclusive). It ends
/// where at least [`GAP_BYTES_MIN`] equal bytes follow.
fn next_run(old: &[u8], new: &[u8], from: usize) -> Option<(usize, usize)> {
    let start = first_difference(old, new, from)?;
    let mut end = start + 1;
    loop {
        match first_difference(old, new, end) {
            Some(next) if next - end < GAP_BYTES_MIN => end = next + 1,
            _ => return Some((start, end)),
        }
    }
}

/// The first index at or after `from` in which the two differ. Compares eight bytes at a time:
/// most of a changed page is equal.
fn first_difference(old: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let (old_rest, new_rest) = (old.get(from..)?, new.get(from..)?);
    let mut at = from;
    let ((old_words, old_tail), (new_words, new_tail)) =
        (old_rest.as_chunks::<8>(), new_rest.as_chunks::<8>());
    for (o, n) in old_words.iter().zip(new_words) {
        let difference = u64::from_le_bytes(*o) ^ u64::from_le_bytes(*n);
        if difference != 0 {
            // The number of the first byte that differs: at most 7.
            return Some(at + (difference.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    old_tail.iter().zip(new_tail).position(|(x, y)| x != y).map(|within| at + within)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(old: &[u8], new: &[u8]) -> usize {
        let mut out = vec![];
        let changed = encode_changed(7, old, new, &mut out);
        assert_eq!(changed, old != new);
        if changed {
            let mut reader = Reader::new(&out);
            let page = ChangedPage::decode(&mut reader).unwrap();
            reader.finish().unwrap();
            assert_eq!(page.number, 7);
            let mut patched = old.to_vec();
            page.patch(&mut patched).unwrap();
            assert_eq!(patched, new);
        }
        out.len()
    }

    #[test]
    fn nothing_changed_is_nothing() {
        assert_eq!(round_trip(&[3; 4096], &[3; 4096]), 0);
    }

    #[test]
    fn one_byte_costs_one_run() {
        let old = [0; 4096];
        let mut new = old;
        new[4095] = 1;
        assert_eq!(round_trip(&old, &new), 4 + 1 + 2 + 4 + 1);
    }

    #[test]
    fn near_changes_share_a_run_and_far_ones_do_not() {
        let old = [0; 4096];
        let mut new = old;
        (new[10], new[17]) = (1, 1);
        assert_eq!(round_trip(&old, &new), 7 + 4 + 8);
        new[200] = 1;
        assert_eq!(round_trip(&old, &new), 7 + 4 + 8 + 4 + 1);
    }

    #[test]
    fn a_page_all_new_goes_whole() {
        assert_eq!(round_trip(&[0; 4096], &[1; 4096]), 4 + 1 + 4 + 4096);
        round_trip(&[0; 65536], &[1; 65536]);
    }

    /// The bytes that docs/format.md draws.
    #[test]
    fn the_bytes_are_the_drawn_ones() {
        let header = DeltaHeader {
            database: 0x11,
            id: DeltaId { term: 0x22, sequence: 0x33 },
            parent: DeltaId { term: 0x44, sequence: 0x55 },
            base_version: 0x66,
            page_count: 0x77,
            digest_before: 0x88 << 64 | 0x99,
            digest_after: 0xaa << 64 | 0xbb,
            changed_count: 2,
        };
        let mut out = vec![];
        header.encode(&mut out);
        let (words, rest) = out.as_chunks::<8>();
        let word = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
        let mut expected: Vec<[u8; 8]> = (1..=6).map(|n| word(n * 0x11, 0)).collect();
        // From the page count on, numbers are not at multiples of their size.
        expected.extend([
            word(0x77, 0x99),
            word(0, 0x88),
            word(0, 0xbb),
            word(0, 0xaa),
            word(0, 2),
        ]);
        assert_eq!((words, rest), (&expected[..], &[][..]));
        assert_eq!(out.len(), DeltaHeader::BYTES);
        let mut reader = Reader::new(&out);
        assert_eq!(DeltaHeader::decode(&mut reader).unwrap(), header);

        let mut new = [0; 64];
        (new[2], new[3], new[60]) = (7, 8, 9);
        let mut out = vec![];
        assert!(encode_changed(5, &[0; 64], &new, &mut out));
        assert_eq!(out, [5, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0, 7, 8, 60, 0, 1, 0, 9]);
        out.clear();
        encode_whole(6, &[1, 2, 3, 4], &mut out);
        assert_eq!(out, [6, 0, 0, 0, 1, 4, 0, 0, 0, 1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn patch_undoes_diff(edits in prop::collection::vec((0_usize..4096, 1_usize..300, any::<u8>()), 0..40)) {
            let old: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(31) >> 3).to_le_bytes()[0]).collect();
            let mut new = old.clone();
            for (at, len, byte) in edits {
                for slot in new.iter_mut().skip(at).take(len) { *slot = byte; }
            }
            round_trip(&old, &new);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            let _ = DeltaHeader::decode(&mut reader);
            let mut reader = Reader::new(&bytes);
            if let Ok(page) = ChangedPage::decode(&mut reader) {
                let _ = page.patch(&mut [0; 512]);
            }
        }
    }
}
