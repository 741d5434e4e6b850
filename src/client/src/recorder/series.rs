//! Events of which the first and the second are told, and then how often they came when they have ceased.
//!
//! Source: `k8s.io/client-go/tools/events` (`eventBroadcasterImpl`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSeries, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::recent::Recent;
use super::{Report, Told, metadata};

/// A series in which nothing came for so long is over; how often that is looked for.
pub const FINISH: Duration = Duration::from_mins(6);
/// A series that goes on is told of so often, so that the API server keeps it.
const REFRESH: Duration = Duration::from_mins(30);
/// Series that are remembered.
const REMEMBERED: usize = 4096;

/// What makes events one series. Other than upstream's they are of one message, so that none is lost which
/// comes before the change that the last one has led to.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    object: [String; 7],
    related: Option<[String; 7]>,
    kind: &'static str,
    reason: String,
    action: &'static str,
    message: String,
}

struct Known {
    event: Event,
    last: Timestamp,
    /// When it was told last.
    told: Timestamp,
}

/// See the module.
pub struct Series {
    controller: String,
    instance: String,
    known: Recent<Key, Option<Known>>,
}

fn parts(object: &ObjectReference) -> [String; 7] {
    let ObjectReference { api_version, field_path, kind, name, namespace, resource_version, uid } =
        object;
    [api_version, field_path, kind, name, namespace, resource_version, uid]
        .map(|part| part.clone().unwrap_or_default())
}

fn again(event: &Event) -> Told {
    Told { event: event.clone(), again: Some(json!({"series": event.series})) }
}

impl Series {
    pub fn new(controller: &str, host: &str) -> Self {
        Self {
            controller: controller.to_owned(),
            instance: format!("{controller}-{host}"),
            known: Recent::new(REMEMBERED),
        }
    }

    /// What is told of `report`, if anything.
    pub fn observe(&mut self, report: &Report, now: Timestamp) -> Option<Told> {
        let key = Key {
            object: parts(&report.object),
            related: report.related.as_ref().map(parts),
            kind: report.kind,
            reason: report.reason.clone(),
            action: report.action,
            message: report.message.clone(),
        };
        let known = self.known.entry(key, || None);
        let Some(known) = known else {
            let event = Event {
                metadata: metadata(&report.object, now),
                involved_object: report.object.clone(),
                related: report.related.clone(),
                reason: Some(report.reason.clone()),
                action: Some(report.action.to_owned()),
                message: Some(report.message.clone()),
                event_time: Some(MicroTime(now)),
                reporting_component: Some(self.controller.clone()),
                reporting_instance: Some(self.instance.clone()),
                type_: Some(report.kind.to_owned()),
                ..Event::default()
            };
            *known = Some(Known { event: event.clone(), last: now, told: now });
            return Some(Told { event, again: None });
        };
        known.last = now;
        let before = known.event.series.as_ref().and_then(|series| series.count);
        let count = before.unwrap_or(1) + 1;
        known.event.series =
            Some(EventSeries { count: Some(count), last_observed_time: Some(MicroTime(now)) });
        if before.is_some() {
            return None;
        }
        known.told = now;
        Some(again(&known.event))
    }

    /// What is told of series that are over, or that go on for long; the former are forgotten.
    pub fn finish(&mut self, now: Timestamp) -> Vec<Told> {
        let mut told = Vec::new();
        let since = |then: Timestamp| now.duration_since(then).unsigned_abs();
        self.known.retain(|known| {
            let Some(known) = known else { return false };
            let over = since(known.last) > FINISH;
            if known.event.series.is_some() && (over || since(known.told) >= REFRESH) {
                known.told = now;
                told.push(again(&known.event));
            }
            !over
        });
        told
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::ToSpan;

    use super::*;

    fn report(name: &str, message: &str) -> Report {
        let object = ObjectReference { name: Some(name.into()), ..ObjectReference::default() };
        let (related, reason, message) = (None, "Reason".into(), message.into());
        Report { object, related, kind: "Normal", reason, action: "Acting", message }
    }

    #[test]
    fn a_series_is_told_of_when_it_begins_and_when_it_is_over() {
        let mut series = Series::new("scheduler", "host");
        let at = |second: i64| Timestamp::UNIX_EPOCH + second.seconds();
        let count = |told: Told| {
            let counted = told.again.is_some();
            let series = told.event.series.and_then(|series| series.count);
            assert_eq!(counted, series.is_some());
            series.unwrap_or(1)
        };
        for (name, message, second, want) in [
            ("one", "a", 0, Some(1)),
            ("one", "b", 0, Some(1)),
            ("one", "a", 1, Some(2)),
            ("one", "a", 2, None),
            ("two", "a", 2, Some(1)),
            ("one", "a", 100, None),
        ] {
            let told = series.observe(&report(name, message), at(second)).map(count);
            assert_eq!(told, want, "{name} {message} {second}");
        }
        for (second, want) in [(300, vec![]), (400, vec![]), (470, vec![4]), (1000, vec![])] {
            let told: Vec<i32> = series.finish(at(second)).into_iter().map(count).collect();
            assert_eq!(told, want, "{second}");
        }
        assert_eq!(series.observe(&report("one", "a"), at(1001)).map(count), Some(1));
    }

    #[test]
    fn a_series_that_goes_on_is_told_of_now_and_then() {
        let mut series = Series::new("scheduler", "host");
        let mut told = Vec::new();
        for minute in 0..65 {
            let at = Timestamp::UNIX_EPOCH + minute.minutes();
            told.extend(series.observe(&report("one", "a"), at).map(|_| minute));
            if minute % 6 == 0 {
                told.extend(series.finish(at).iter().map(|_| minute));
            }
        }
        assert_eq!(told, [0, 1, 36]);
    }
}
