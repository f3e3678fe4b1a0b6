//! See `src/snapshot.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::snapshot::one(data));
