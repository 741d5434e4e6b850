//! Patches of every type. A zero byte parts the object from the patch.

#![no_main]

use apimachinery::patch;
use apimachinery::schema::builtin;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some(zero) = data.iter().position(|byte| *byte == 0) else { return };
    let (object, body) = (&data[..zero], &data[zero + 1..]);
    let Ok(object) = serde_json::from_slice::<Value>(object) else { return };
    let _ = patch::json(&object, body);
    let Ok(change) = serde_json::from_slice::<Value>(body) else { return };
    let mut merged = object.clone();
    patch::merge(&mut merged, &change);
    let mut twice = merged.clone();
    patch::merge(&mut twice, &change);
    assert_eq!(twice, merged, "a merge patch is idempotent");
    let of = builtin().kind("", "v1", "Pod").expect("it is built in");
    let _ = patch::strategic(builtin(), of, object.clone(), change.clone());
    let _ = patch::three_way(builtin(), of, &object, &change, &merged);
});
