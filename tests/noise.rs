//! Bytes that nobody meant, for the codec of the client protocol: the function that `fuzz/` runs
//! under libFuzzer, here under proptest, on noise and on golden messages with mistakes in them; and
//! how much memory decoding takes, counted at the allocator.

use std::alloc::System;

use bytes::Bytes;
use proptest::prelude::*;
use quire::wire::{Dialect, Frame, FrameDecoder, Header, Request, Response, RowsDecoder, Step};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[path = "../fuzz/src/wire.rs"]
mod wire;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The golden messages.
fn messages() -> Vec<Vec<u8>> {
    let lines = include_str!("../src/wire/testdata/messages.txt").lines();
    let lines = lines.filter(|line| !line.starts_with('#'));
    let hex = lines.filter_map(|line| line.split_once(": ")).map(|(_, hex)| hex.replace(' ', ""));
    hex.map(|hex| {
        let digits = hex.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    })
    .collect()
}

/// A golden message in which some bytes are others.
fn mistaken() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0_u8), Just(0xFF), Just(0xEE), 0_u8..20, any::<u8>()];
    let mistakes = prop::collection::vec((any::<prop::sample::Index>(), byte), 0..6);
    (prop::sample::select(messages()), mistakes).prop_map(|(mut message, mistakes)| {
        for (at, byte) in mistakes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        message
    })
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let frames = prop::collection::vec(mistaken(), 1..4).prop_map(|frames| frames.concat());
    let noise = prop::collection::vec(any::<u8>(), 0..300);
    (any::<u8>(), prop_oneof![3 => frames, 1 => noise])
        .prop_map(|(cut, bytes)| [&[cut], &bytes[..]].concat())
}

/// Cases of each property; `QUIRE_TEST_NOISE_CASES` sets more for a longer run.
fn cases() -> ProptestConfig {
    let cases = std::env::var("QUIRE_TEST_NOISE_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(2_000))
}

fn golden_messages_pass() {
    let messages = messages();
    assert!(messages.len() > 50, "only {}", messages.len());
    for message in &messages {
        wire::check(&[&[7], &message[..]].concat());
    }
    let words: Vec<u8> = messages.concat();
    wire::check(&[&[255], &words[..]].concat());
}

/// Bytes that decoding `frame` in every way takes from the allocator in all, also those that it
/// gives back.
fn taken(frame: &Frame) -> usize {
    let mut most = 0;
    let mut count = |decode: &dyn Fn()| {
        let region = Region::new(ALLOCATOR);
        decode();
        most = most.max(region.change().bytes_allocated);
    };
    count(&|| {
        if let Ok(
            Request::Exec { params, .. }
            | Request::Query { params, .. }
            | Request::ExecSql { params, .. }
            | Request::QuerySql { params, .. },
        ) = Request::decode(frame)
        {
            let _ = params.iter().filter_map(Result::ok).count();
        }
    });
    for (legacy, roles) in [(false, false), (false, true), (true, true)] {
        count(&|| drop(Response::decode_as(frame, Dialect { legacy, roles })));
    }
    count(&|| {
        let Ok(mut decoder) = RowsDecoder::new(&frame.body) else { return };
        let mut row = Vec::new();
        while let Ok(Step::Row) = decoder.next_row(&mut row) {}
    });
    most
}

/// Whatever lengths and counts a message claims, decoding takes a small multiple of its bytes.
fn check_taken(bytes: &[u8]) {
    let mut decoder = FrameDecoder::new(64 << 10);
    decoder.push(bytes);
    while let Ok(Some(frame)) = decoder.next_frame() {
        let (taken, arrived) = (taken(&frame), frame.body.len());
        assert!(taken <= 16 * arrived + 1024, "{taken} bytes for {arrived}: {frame:?}");
    }
}

/// The one test here: the allocator counts for all threads.
#[test]
fn decoding_never_panics_and_takes_no_more_than_what_arrived() {
    golden_messages_pass();
    let config = ProptestConfig { failure_persistence: None, ..cases() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&stream(), |bytes| {
            wire::check(&bytes);
            Ok(())
        })
        .unwrap();
    runner
        .run(&stream(), |bytes| {
            check_taken(&bytes[1..]);
            Ok(())
        })
        .unwrap();
    // Counts that would take everything, in every message that has one.
    for kind in 0..=255 {
        for schema in 0..2 {
            for word in [u64::MAX, 1 << 40, 0x00FF_FFFF_FFFF_FFFF, 0xF0F0_F0F0_F0F0_F0F0] {
                let body: Vec<u8> = [word; 64].iter().flat_map(|word| word.to_le_bytes()).collect();
                let header = Header { words: 64, kind, schema };
                let frame = Frame { header, body: Bytes::from(body) };
                let (taken, arrived) = (taken(&frame), frame.body.len());
                assert!(taken <= 16 * arrived + 1024, "{taken} bytes for {arrived}: {kind}");
            }
        }
    }
}
