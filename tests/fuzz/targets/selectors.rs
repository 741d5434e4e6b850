//! Label selectors, field selectors and JSON paths.

#![no_main]

use apimachinery::json_path::JsonPath;
use apimachinery::{fields, labels};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &str| {
    if let Ok(selector) = labels::Selector::parse(text) {
        // What was read can be written and read again, and selects the same.
        let again = labels::Selector::parse(&selector.to_string()).expect("it was just written");
        assert_eq!(again.to_string(), selector.to_string());
        for value in [None, Some("a"), Some("1")] {
            assert_eq!(selector.matches_by(|_| value), again.matches_by(|_| value), "{text}");
        }
    }
    if let Ok(selector) = fields::Selector::parse(text) {
        selector.matches(|_| "a");
    }
    if let Ok(path) = JsonPath::parse(text) {
        path.find(&json!({"a": [{"b": 1}, {"b": "x"}], "c": {"d": null}}));
    }
});
