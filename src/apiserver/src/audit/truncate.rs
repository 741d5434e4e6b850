//! Events that are too large lose the objects they carry.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/audit/truncate` and the flags `--audit-…-truncate-…`.

use std::borrow::Cow;
use std::io::Write;

use serde_json::{Value, json};

const ANNOTATION: &str = "audit.k8s.io/truncated";

/// How large events and batches may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// An event at most.
    pub max_event_size: u64,
    /// A batch of them at most.
    pub max_batch_size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_event_size: 100 << 10, max_batch_size: 10 << 20 }
    }
}

impl Options {
    /// The event, without its objects where it is too large; nothing where that does not help.
    pub fn cut<'e>(&self, event: &'e Value) -> Option<Cow<'e, Value>> {
        if size(event) <= self.max_event_size {
            return Some(Cow::Borrowed(event));
        }
        if matches!(event["level"].as_str(), Some("Request" | "RequestResponse")) {
            let mut smaller: serde_json::Map<String, Value> = event.as_object()?.clone();
            smaller.retain(|key, _| !matches!(key.as_str(), "requestObject" | "responseObject"));
            let annotations = smaller.entry("annotations").or_insert_with(|| json!({}));
            annotations[ANNOTATION] = "true".into();
            let smaller = Value::Object(smaller);
            if size(&smaller) <= self.max_event_size {
                return Some(Cow::Owned(smaller));
            }
        }
        tracing::error!(
            id = event["auditID"].as_str(),
            "an audit event is lost: event is too large even after truncating"
        );
        None
    }

    /// The events in batches that are not too large, or of one.
    pub fn split(&self, events: Vec<Value>) -> Vec<Vec<Value>> {
        let mut batches: Vec<Vec<Value>> = Vec::new();
        let mut total = 0;
        for event in events {
            let size = size(&event);
            match batches.last_mut() {
                Some(batch) if total + size <= self.max_batch_size => {
                    total += size;
                    batch.push(event);
                }
                _ => {
                    total = size;
                    batches.push(vec![event]);
                }
            }
        }
        batches
    }
}

/// How long an event is when it is written, with the end of its line.
fn size(event: &Value) -> u64 {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(1);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut count, event);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_events_lose_their_objects_first() {
        let options = Options { max_event_size: 200, max_batch_size: 400 };
        let event = |level: &str, uri: &str, data: &str| {
            json!({"level": level, "requestURI": uri, "requestObject": {"data": data},
                "responseObject": {"data": data}, "annotations": {"a": "b"}})
        };
        let long = "x".repeat(200);
        let small = event("Request", "/", "x");
        assert_eq!(options.cut(&small).as_deref(), Some(&small));
        let want = json!({"level": "Request", "requestURI": "/",
            "annotations": {"a": "b", "audit.k8s.io/truncated": "true"}});
        assert_eq!(options.cut(&event("Request", "/", &long)).as_deref(), Some(&want));
        assert_eq!(options.cut(&event("Request", &long, "x")), None);
        // There was nothing to take away.
        assert_eq!(options.cut(&event("Metadata", "/", &long)), None);
    }

    #[test]
    fn large_batches_are_split() {
        // Each is ten bytes long with the end of its line.
        let events = |count: usize| vec![json!("1234567"); count];
        let options = Options { max_event_size: 10, max_batch_size: 25 };
        assert_eq!(size(&events(1)[0]), 10);
        let lengths: Vec<usize> = options.split(events(5)).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 2, 1]);
        assert!(options.split(Vec::new()).is_empty());
    }
}
