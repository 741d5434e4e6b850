//! What registries say of how to sign in.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../../images/src/registry/challenge.rs"]
mod challenge;

fuzz_target!(|text: &str| {
    let _ = challenge::parse(text);
});
