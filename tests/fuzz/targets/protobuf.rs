//! Protobuf messages of every built-in kind.

#![no_main]

use apimachinery::protobuf;
use apimachinery::schema::builtin;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = protobuf::decode(builtin(), data);
    let _ = protobuf::decode(builtin(), &[protobuf::MAGIC, data].concat());
    // As the bytes of a Pod within a good envelope.
    let _ = protobuf::decode(builtin(), &protobuf::envelope("v1", "Pod", data));
    if let Ok(value) = serde_json::from_slice(data) {
        let of = builtin().kind("", "v1", "Pod").expect("it is built in");
        let mut out = protobuf::Writer::default();
        if protobuf::from_value(builtin(), of, &value, &mut out).is_ok() {
            let message = protobuf::envelope("v1", "Pod", &out.into_bytes());
            protobuf::decode(builtin(), &message).expect("it was just written");
        }
    }
});
