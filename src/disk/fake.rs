//! x
pub struct FakeDisk;
