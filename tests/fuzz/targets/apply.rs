//! Server-side apply of one object over another, which may have any managed fields. A zero byte parts them.

#![no_main]

use std::borrow::Cow;

use apimachinery::apply::{self, Operation, Set, Typed, Versions};
use apimachinery::decode::{self, Validation};
use apimachinery::schema::{TypeId, builtin};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

struct Pods(TypeId);

impl Versions for Pods {
    fn root(&self, _: &str) -> Option<Typed<'_>> {
        Some(Typed::kind(builtin(), self.0))
    }

    fn convert<'v>(&self, object: &'v Value, _: &str) -> Option<Cow<'v, Value>> {
        Some(Cow::Borrowed(object))
    }

    fn ignored(&self, _: &str) -> Option<&Set> {
        None
    }
}

fuzz_target!(|data: &[u8]| {
    let Some(zero) = data.iter().position(|byte| *byte == 0) else { return };
    let of = builtin().kind("", "v1", "Pod").expect("it is built in");
    // As the server has them: decoded, and of one kind.
    let read = |part: &[u8]| {
        let mut pod = decode::from_json(builtin(), of, part, Validation::Ignore).ok()?.value;
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        Some(pod)
    };
    let (Some(live), Some(config)) = (read(&data[..zero]), read(&data[zero + 1..])) else { return };
    let pods = Pods(of);
    let operation = Operation {
        manager: "fuzz",
        subresource: "",
        api_version: "v1",
        now: "2026-01-01T00:00:00Z",
    };
    let _ = apply::apply(&pods, operation, &live, &config, false);
    if let Ok(applied) = apply::apply(&pods, operation, &live, &config, true) {
        // The same once more changes nothing.
        let again = apply::apply(&pods, operation, &applied, &config, false);
        assert_eq!(again.expect("it was just applied"), applied);
    }
    let mut new = config.clone();
    apply::update(&pods, operation, &live, &mut new);
});
