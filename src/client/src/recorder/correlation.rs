//! Events that are equal become one with a count, those that differ in their message alone are combined once
//! they are many, and of one object only so many are told.
//!
//! Source: `k8s.io/client-go/tools/record` (`EventCorrelator`).

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Event, EventSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::recent::Recent;
use super::{Report, Told, metadata};

/// What is remembered of each sort.
const REMEMBERED: usize = 2048;
/// So many different messages are combined into one.
const SIMILAR_MAX: usize = 10;
/// Seconds of quiet after which that is forgotten.
const SIMILAR_WINDOW_S: i64 = 600;
/// Events that an object may have told at once.
const BURST: f64 = 25.0;
/// Seconds after which it may have told one more.
const REFILL_S: f64 = 300.0;

/// What an event is about: kind, namespace, name, uid and version of the API.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Object([String; 5]);

/// What makes events alike: the object, their type and reason.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Alike(Object, &'static str, String);

/// What makes events equal: besides, the part of the object and the message; for combined ones neither.
type Equal = (Alike, Option<(String, String)>);

struct Known {
    name: String,
    first: Timestamp,
    count: i32,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Allowance {
    left: f64,
    last: Timestamp,
}

impl Allowance {
    fn take(&mut self, now: Timestamp) -> bool {
        let passed = now.duration_since(self.last).as_secs_f64().max(0.0);
        self.left = (self.left + passed / REFILL_S).min(BURST);
        self.last = now;
        let allowed = self.left >= 1.0;
        self.left -= f64::from(u8::from(allowed));
        allowed
    }
}

/// See the module.
pub struct Correlation {
    source: EventSource,
    equal: Recent<Equal, Known>,
    similar: Recent<Alike, Similar>,
    allowances: Recent<Object, Allowance>,
}

impl Correlation {
    pub fn new(source: EventSource) -> Self {
        Self {
            source,
            equal: Recent::new(REMEMBERED),
            similar: Recent::new(REMEMBERED),
            allowances: Recent::new(REMEMBERED),
        }
    }

    /// What is told of `report`, if anything.
    pub fn observe(&mut self, report: &Report, now: Timestamp) -> Option<Told> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let about = &report.object;
        let object = Object(
            [&about.kind, &about.namespace, &about.name, &about.uid, &about.api_version].map(text),
        );
        let alike = Alike(object.clone(), report.kind, report.reason.clone());
        let combined = self.is_one_of_many(&alike, &report.message, now);
        let message = if combined {
            format!("(combined from similar events): {}", report.message)
        } else {
            report.message.clone()
        };
        let own = (!combined).then(|| (text(&about.field_path), report.message.clone()));
        let mut metadata = metadata(about, now);
        let name = || metadata.name.clone().unwrap_or_default();
        let known = self.equal.entry((alike, own), || Known { name: name(), first: now, count: 0 });
        known.count += 1;
        let (first, count) = (known.first, known.count);
        metadata.name = Some(known.name.clone());
        // What is not told counts all the same.
        let allowance = self.allowances.entry(object, || Allowance { left: BURST, last: now });
        if !allowance.take(now) {
            return None;
        }
        let again = (count > 1)
            .then(|| json!({"count": count, "lastTimestamp": Time(now), "message": message}));
        let event = Event {
            metadata,
            involved_object: about.clone(),
            reason: Some(report.reason.clone()),
            message: Some(message),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone().or(Some(String::new())),
            first_timestamp: Some(Time(first)),
            last_timestamp: Some(Time(now)),
            count: Some(count),
            type_: Some(report.kind.to_owned()),
            ..Event::default()
        };
        Some(Told { event, again })
    }

    fn is_one_of_many(&mut self, alike: &Alike, message: &str, now: Timestamp) -> bool {
        let new = || Similar { messages: HashSet::new(), last: now };
        let similar = self.similar.entry(alike.clone(), new);
        if now.duration_since(similar.last).as_secs() > SIMILAR_WINDOW_S {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(message.to_owned());
        let many = similar.messages.len() >= SIMILAR_MAX;
        if many {
            // Any one makes room for the next.
            let one = similar.messages.iter().find(|known| *known != message).cloned();
            one.map(|one| similar.messages.remove(&one));
        }
        many
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ObjectReference;
    use k8s_openapi::jiff::ToSpan;

    use super::*;

    fn report(object: &str, message: &str) -> Report {
        let object = ObjectReference { name: Some(object.into()), ..ObjectReference::default() };
        let (related, reason, message) = (None, "Reason".into(), message.into());
        Report { object, related, kind: "Normal", reason, action: "", message }
    }

    /// What is told of events at these seconds: count and message, or nothing.
    fn told(events: impl IntoIterator<Item = (i64, String)>) -> Vec<Option<(i32, String)>> {
        let mut correlation = Correlation::new(EventSource::default());
        let observe = |(second, message): (i64, String)| {
            let at = Timestamp::UNIX_EPOCH + second.seconds();
            let told = correlation.observe(&report("one", &message), at)?;
            let count = told.event.count?;
            assert_eq!(told.again.is_some(), count > 1, "{message}");
            Some((count, told.event.message?))
        };
        events.into_iter().map(observe).collect()
    }

    #[test]
    fn equal_events_are_counted() {
        let told = told((0..3).map(|second| (second, "same".to_owned())));
        assert_eq!(told, [1, 2, 3].map(|count| Some((count, "same".to_owned()))));
    }

    #[test]
    fn many_similar_events_are_combined_until_there_is_quiet() {
        let mut events: Vec<_> = (0..12).map(|n| (n, format!("message {n}"))).collect();
        events.push((12 + SIMILAR_WINDOW_S, "message 12".to_owned()));
        let combined = |n: i32| format!("(combined from similar events): message {n}");
        let mut want: Vec<_> = (0..9).map(|n| Some((1, format!("message {n}")))).collect();
        want.extend([(1, combined(9)), (2, combined(10)), (3, combined(11))].map(Some));
        want.push(Some((1, "message 12".to_owned())));
        assert_eq!(told(events), want);
    }

    #[test]
    fn an_object_has_so_many_events_told_and_one_more_every_five_minutes() {
        let mut events: Vec<_> = (0..30).map(|_| (0, "same".to_owned())).collect();
        events.extend([299, 300, 301, 900, 900, 900].map(|second| (second, "same".to_owned())));
        let told: Vec<_> = told(events).into_iter().map(|told| told.map(|(n, _)| n)).collect();
        let mut want: Vec<_> = (1..=25).map(Some).collect();
        want.extend([None; 5]);
        want.extend([None, Some(32), None, Some(34), Some(35), None]);
        assert_eq!(told, want);
    }

    #[test]
    fn objects_have_events_of_their_own() {
        let mut correlation = Correlation::new(EventSource::default());
        let now = Timestamp::UNIX_EPOCH;
        for object in ["one", "two"] {
            for _ in 0..25 {
                assert!(correlation.observe(&report(object, "same"), now).is_some(), "{object}");
            }
            assert!(correlation.observe(&report(object, "same"), now).is_none(), "{object}");
        }
    }
}
