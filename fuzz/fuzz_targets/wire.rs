//! Bytes from a client or a server: see `src/wire.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quire_fuzz::wire::check(data));
