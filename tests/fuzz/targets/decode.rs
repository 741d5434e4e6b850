//! Bodies in JSON and YAML, as a kind or as anything. The first byte chooses the kind.

#![no_main]

use apimachinery::decode::{self, Validation};
use apimachinery::schema::builtin;
use libfuzzer_sys::fuzz_target;

const KINDS: [(&str, &str, &str); 5] = [
    ("", "v1", "Pod"),
    ("apps", "v1", "Deployment"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("", "v1", "Secret"),
];

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let (group, version, kind) = KINDS[usize::from(*choice) % KINDS.len()];
    let of = builtin().kind(group, version, kind).expect("it is built in");
    let _ = decode::json_to_value(body);
    let _ = decode::json_unstructured(body);
    if let Ok(decoded) = decode::from_json(builtin(), of, body, Validation::Strict) {
        // What fits is told again as it was.
        let text = serde_json::to_vec(&decoded.value).expect("plain data");
        let again = decode::from_json(builtin(), of, &text, Validation::Strict);
        assert_eq!(again.expect("it fitted").value, decoded.value);
    }
    let _ = decode::from_json(builtin(), of, body, Validation::Warn);
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = decode::yaml_unstructured(text);
        let _ = decode::from_yaml(builtin(), of, text, Validation::Strict);
    }
});
