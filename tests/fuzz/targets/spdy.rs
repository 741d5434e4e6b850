//! Frames of SPDY/3.1, in pieces. The first byte is the length of the first piece.

#![no_main]
#![allow(dead_code)]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

#[path = "../../../src/runtime/src/streaming/spdy/frame.rs"]
mod frame;
#[path = "../../../src/runtime/src/streaming/spdy/headers.rs"]
mod headers;

fuzz_target!(|data: &[u8]| {
    let Some((cut, rest)) = data.split_first() else { return };
    let (first, second) = rest.split_at(usize::from(*cut).min(rest.len()));
    let mut decoder = frame::Decoder::new();
    let mut buffer = BytesMut::new();
    for piece in [first, second] {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
