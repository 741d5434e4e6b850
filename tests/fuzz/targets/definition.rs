//! Schemas of custom resources, with their rules.

#![no_main]

use apimachinery::field::Path;
use apimachinery::{cel, structural};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let path = Path::new("schema");
    if !structural::check(&value, &path).is_empty() {
        return;
    }
    let schema = structural::Structural::parse(&value);
    cel::rules::check(&schema, &path);
});
