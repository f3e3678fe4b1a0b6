//! Bytes to values and back: the primitive layouts that the formats of this crate share. All
//! numbers are little-endian. A [`Reader`] never reads beyond its slice and never allocates more
//! than the slice holds, whatever the bytes say.
//!
//! *Invariant*: no I/O; decoding arbitrary bytes yields a value or [`Malformed`], never a panic.

/// The bytes are not what the format says they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed bytes at offset {offset}: {what}")]
pub struct Malformed {
    /// Where reading stopped.
    pub offset: usize,
    /// What was expected there.
    pub what: &'static str,
}

/// Reads primitive values off a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! read_number {
    ($name:ident, $type:ty, $doc:literal) => {
        #[doc = $doc]
        pub fn $name(&mut self) -> Result<$type, Malformed> {
            let (head, _) = self
                .rest()
                .split_first_chunk()
                .ok_or(Malformed { offset: self.at, what: stringify!($type) })?;
            self.at += size_of::<$type>();
            Ok(<$type>::from_le_bytes(*head))
        }
    };
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// How many bytes were read so far.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    read_number!(u8, u8, "One byte.");
    read_number!(u16, u16, "Two bytes.");
    read_number!(u32, u32, "Four bytes.");
    read_number!(u64, u64, "Eight bytes.");
    read_number!(u128, u128, "Sixteen bytes.");

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let malformed = Malformed { offset: self.at, what: "bytes" };
        let taken = self.rest().get(..len).ok_or(malformed)?;
        self.at += len;
        Ok(taken)
    }

    /// Bytes behind a `u32` that says how many.
    pub fn bytes_u32(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// UTF-8 text behind a `u32` that says how many bytes.
    pub fn text_u32(&mut self) -> Result<&'a str, Malformed> {
        let offset = self.at;
        let bytes = self.bytes_u32()?;
        std::str::from_utf8(bytes).map_err(|_| Malformed { offset, what: "UTF-8 text" })
    }

    /// Fails unless everything was read.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.rest().is_empty() {
            Ok(())
        } else {
            Err(Malformed { offset: self.at, what: "the end" })
        }
    }
}

/// Appends bytes behind a `u32` that says how many. `None` when there are 4 GiB or more.
#[must_use]
pub fn put_bytes_u32(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    out.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
    out.extend_from_slice(bytes);
    Some(())
}
