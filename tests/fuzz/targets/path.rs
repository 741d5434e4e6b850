//! Paths of requests.

#![no_main]
#![allow(dead_code)]

use libfuzzer_sys::fuzz_target;

#[path = "../../../src/apiserver/src/request_info.rs"]
mod request_info;

fuzz_target!(|path: &str| {
    for method in [http::Method::GET, http::Method::POST, http::Method::DELETE] {
        for watch in [false, true] {
            if let Ok(info) = request_info::parse(&method, path, watch) {
                assert!(path.contains(info.name) && path.contains(info.namespace));
            }
        }
    }
});
