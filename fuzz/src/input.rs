//! Bytes that make decisions: what a body asks of them is the next of them, and zeros at the end.

/// The bytes that are left.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input { rest: data }
    }

    /// Whether every byte has made its decision.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end.max(1)
    }

    /// One of several.
    pub fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// True once in `many` times; never where the bytes are used up.
    pub fn rarely(&mut self, many: usize) -> bool {
        self.below(many) == many - 1
    }

    /// A number as mistakes have it: small, at an edge, or any.
    pub fn odd(&mut self) -> u64 {
        match self.u8() {
            0..100 => u64::from(self.u8()),
            100..120 => u64::MAX,
            120..130 => u64::MAX - u64::from(self.u8()),
            130..160 => u64::from(u32::MAX) - u64::from(self.u8()),
            160..180 => 1 << (self.u8() % 64),
            _ => self.u64(),
        }
    }

    /// The lower half of [`Input::odd`].
    pub fn odd_u32(&mut self) -> u32 {
        // The lower half of MAX is MAX.
        self.odd() as u32
    }
}
