//! One page of a database: its image and its hash.

use std::fmt;
use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::spill::SpillFile;

/// Number of a page, from 1 as in SQLite.
pub type PageNo = u32;

/// Whether a page can have so many bytes.
pub fn is_page_size(bytes: usize) -> bool {
    bytes.is_power_of_two() && (512..=65_536).contains(&bytes)
}

/// The page that SQLite never uses: it holds the lock bytes at 1 GiB.
pub fn lock_byte_page(page_size: usize) -> PageNo {
    // Page sizes are 512 to 65,536, so the quotient always fits.
    u32::try_from(0x4000_0000 / page_size.max(512)).unwrap_or(0) + 1
}

/// The hash of a page: 128 bits over its content, seeded by its number.
pub fn page_hash(number: PageNo, content: &[u8]) -> u128 {
    xxh3_128_with_seed(content, u64::from(number))
}

/// The content of a page: in memory, or in a file of its transaction.
#[derive(Clone)]
pub enum Body {
    /// In memory.
    Heap(Arc<[u8]>),
    /// In a shared unlinked file.
    File {
        /// The file.
        file: Arc<SpillFile>,
        /// Where in it.
        offset: u64,
    },
}

impl Body {
    /// Whether it lies in a file.
    pub fn is_spilled(&self) -> bool {
        matches!(self, Body::File { .. })
    }

    /// Reads from `within` the page.
    pub fn read(&self, within: usize, out: &mut [u8]) -> io::Result<()> {
        match self {
            Body::Heap(bytes) => {
                let part = bytes.get(within..within + out.len());
                out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Body::File { file, offset } => file.read(out, offset + within as u64),
        }
    }

    /// The content: where it lies in memory, or read into `buffer` (one page long).
    pub fn load<'a>(&'a self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self {
            Body::Heap(bytes) => Ok(bytes),
            Body::File { file, offset } => {
                file.read(buffer, *offset)?;
                Ok(buffer)
            }
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Heap(bytes) => write!(f, "{} bytes in memory", bytes.len()),
            Body::File { offset, .. } => write!(f, "at {offset} of a file"),
        }
    }
}

/// An immutable image of a page with its hash.
#[derive(Clone, Debug)]
pub struct Image {
    /// The content, one page long.
    pub body: Body,
    /// [`page_hash`] of it.
    pub hash: u128,
}

impl Image {
    /// Hashes `bytes` as page `number`.
    pub fn new(number: PageNo, bytes: Arc<[u8]>) -> Image {
        let hash = page_hash(number, &bytes);
        Image { body: Body::Heap(bytes), hash }
    }
}

#[cfg(test)]
mod tests {
    use super::page_hash;

    /// Base files and deltas of earlier builds hold these.
    #[test]
    fn hashes_stay_what_they_are() {
        assert_eq!(page_hash(1, &[0; 4096]), 0x0d50_bb48_e798_74b4_eca1_fdaf_b7b0_bd2a);
        assert_ne!(page_hash(2, &[0; 4096]), page_hash(1, &[0; 4096]));
    }
}
