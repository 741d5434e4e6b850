//! Pods leave nodes with taints of effect NoExecute, at once or when their tolerations end.
//!
//! Source: `pkg/controller/tainteviction/taint_eviction.go`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, touched};

/// When the pod has to go.
#[derive(Debug, PartialEq)]
enum Fate {
    Stay,
    Leave(Duration),
}

/// When the pod was given its node.
fn came(pod: &Pod) -> Option<Timestamp> {
    let scheduled = pods::condition(pod, "PodScheduled").filter(|told| told.status == "True");
    let scheduled = scheduled.and_then(|told| told.last_transition_time.as_ref());
    scheduled.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// `seen` is when the node was first seen to have taints that the pod does not bear for ever: taints
/// need not tell when they were added.
fn fate(pod: &Pod, node: &Node, seen: Timestamp, now: Timestamp) -> Fate {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let taints: Vec<&Taint> = taints.iter().filter(|taint| taint.effect == "NoExecute").collect();
    if taints.is_empty() {
        return Fate::Stay;
    }
    let tolerations =
        pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut first: Option<Timestamp> = None;
    for taint in taints {
        // Of several that bear the taint the first counts.
        let Some(bearing) = tolerations.iter().find(|t| client::tolerates(t, taint)) else {
            return Fate::Leave(Duration::ZERO);
        };
        let Some(seconds) = bearing.toleration_seconds else { continue };
        // A pod that came after the taint bears it from then on.
        let tainted = taint.time_added.as_ref().map_or(seen, |time| time.0);
        let since = came(pod).map_or(tainted, |came| came.max(tainted));
        // Any number of seconds may be borne.
        let end = since.saturating_add(SignedDuration::from_secs(seconds.max(0)));
        let end = end.unwrap_or(Timestamp::MAX);
        first = Some(first.map_or(end, |known| known.min(end)));
    }
    first.map_or(Fate::Stay, |end| {
        let rest_ms = end.duration_since(now).as_millis().max(0);
        Fate::Leave(Duration::from_millis(rest_ms as u64))
    })
}

async fn evict(client: &Client, events: &Recorder, pod: &Pod) -> Result<(), Failure> {
    let (namespace, name) = ownership::key(pod);
    let message = format!("Marking for deletion Pod {namespace}/{name}");
    events.normal(object_reference(pod), "TaintManagerEviction", message);
    let why = "Taint manager: deleting due to NoExecute taint";
    Ok(pods::disrupt(client, pod, "DeletionByTaintManager", why).await?)
}

/// Since when pods have been on their way out, with their uids.
type Seen = Arc<Mutex<HashMap<Key, (Option<String>, Timestamp)>>>;

/// What is to become of the pod, with a note of when that began, and whether it was to leave and now may stay.
fn judge(seen: &Seen, key: &Key, pod: &Pod, node: &Node, now: Timestamp) -> (Fate, bool) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let known = seen.get(key).filter(|(uid, _)| *uid == pod.uid()).map(|(_, since)| *since);
    let since = known.unwrap_or(now);
    let fate = fate(pod, node, since, now);
    if fate == Fate::Stay {
        let spared = seen.remove(key).is_some() && known.is_some();
        return (fate, spared);
    }
    seen.insert(key.clone(), (pod.uid(), since));
    (fate, false)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (nodes, pods) = (informers.get::<Node>(), informers.get::<Pod>());
    let events = Recorder::new(client.clone(), "taint-eviction-controller", "");
    let seen = Seen::default();
    nodes.ready().await;
    pods.ready().await;
    let of_node = {
        let (pods, seen) = (pods.clone(), seen.clone());
        move |node: &Node| {
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            if !taints.into_iter().any(|taint| taint.effect == "NoExecute") {
                // Who was on the way out from here may stay.
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                return seen.keys().cloned().collect();
            }
            let name = node.name_any();
            let here = pods.store().state_filter(|pod| pods::node(pod) == name);
            here.iter().map(|pod| ownership::key(pod.as_ref())).collect()
        }
    };
    let placed = |pod: &Pod| {
        let here = !pods::node(pod).is_empty() && pods::is_active(pod);
        here.then(|| ownership::key(pod)).into_iter().collect()
    };
    let changes = futures::stream::select(touched(&nodes, of_node), touched(&pods, placed));
    queue::run("taint-eviction", changes, shutdown, |key: Key| {
        let pod = pods.get(&key.0, &key.1).filter(|pod| pods::is_active(pod));
        let node = pod.as_ref().and_then(|pod| nodes.get("", pods::node(pod)));
        let (client, events, seen) = (client.clone(), events.clone(), seen.clone());
        Box::pin(async move {
            let (Some(pod), Some(node)) = (pod, node) else {
                seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                return Ok(Next::Done);
            };
            let (fate, spared) = judge(&seen, &key, &pod, &node, Timestamp::now());
            if spared {
                let message = format!("Cancelling deletion of Pod {}/{}", key.0, key.1);
                events.normal(object_reference(pod.as_ref()), "TaintManagerEviction", message);
            }
            match fate {
                Fate::Stay => Ok(Next::Done),
                Fate::Leave(rest) if rest.is_zero() => {
                    evict(&client, &events, &pod).await?;
                    Ok(Next::Done)
                }
                Fate::Leave(rest) => Ok(Next::After(rest)),
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_bears_a_taint_from_when_it_came() {
        let node: Node = serde_json::from_value(json!({"spec": {"taints": [
            {"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]}}))
        .expect("a node");
        let pod = |created: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"creationTimestamp": created}, "spec": {
                "containers": [], "tolerations": [
                    {"key": "k", "operator": "Exists", "tolerationSeconds": 300}]}}))
            .expect("a pod")
        };
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("a time");
        for (created, want) in [
            ("2026-01-01T00:59:00Z", Duration::from_mins(4)),
            ("2025-01-01T00:00:00Z", Duration::ZERO),
        ] {
            assert_eq!(fate(&pod(created), &node, now, now), Fate::Leave(want));
        }
    }

    #[test]
    fn tolerations_end() {
        let node = |taints: Value| -> Node {
            serde_json::from_value(json!({"spec": {"taints": taints}})).expect("a node")
        };
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}}))
                .expect("a pod")
        };
        let down =
            json!([{"key": "down", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let ages = Timestamp::MAX.duration_since(now).as_millis();
        let ages = Duration::from_millis(ages.try_into().expect("some milliseconds"));
        let bears = |seconds: Option<i64>| json!([{"key": "down", "operator": "Exists", "tolerationSeconds": seconds}]);
        let both = |first: Option<i64>, second: Option<i64>| {
            json!([bears(first)[0].clone(), bears(second)[0].clone()])
        };
        for (taints, tolerations, want) in [
            (json!([]), json!([]), Fate::Stay),
            (json!([{"key": "k", "effect": "NoSchedule"}]), json!([]), Fate::Stay),
            (down.clone(), json!([]), Fate::Leave(Duration::ZERO)),
            (down.clone(), bears(None), Fate::Stay),
            (down.clone(), bears(Some(300)), Fate::Leave(Duration::from_mins(4))),
            (down.clone(), both(None, Some(30)), Fate::Stay),
            (down.clone(), both(Some(300), Some(30)), Fate::Leave(Duration::from_mins(4))),
            (down.clone(), bears(Some(i64::MAX)), Fate::Leave(ages)),
            (down, bears(Some(30)), Fate::Leave(Duration::ZERO)),
        ] {
            assert_eq!(
                fate(&pod(tolerations.clone()), &node(taints.clone()), now, now),
                want,
                "{taints} {tolerations}"
            );
        }

        // A taint that does not tell its time counts from when it was seen.
        let (seen, key) = (Seen::default(), ("n".to_owned(), "p".to_owned()));
        let (pod, untimed) =
            (pod(bears(Some(30))), json!([{"key": "down", "effect": "NoExecute"}]));
        let at = |seconds| now + SignedDuration::from_secs(seconds);
        for (seconds, taints, want) in [
            (0, untimed.clone(), Fate::Leave(Duration::from_secs(30))),
            (20, untimed.clone(), Fate::Leave(Duration::from_secs(10))),
            (21, json!([]), Fate::Stay),
            (21, json!([]), Fate::Stay),
            (22, untimed.clone(), Fate::Leave(Duration::from_secs(30))),
            (60, untimed, Fate::Leave(Duration::ZERO)),
        ] {
            // Only who was to leave is told that it may stay.
            let spared = want == Fate::Stay && !seen.lock().expect("it is free").is_empty();
            let judged = judge(&seen, &key, &pod, &node(taints), at(seconds));
            assert_eq!(judged, (want, spared), "{seconds}");
        }
    }
}
