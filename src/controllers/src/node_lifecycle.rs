//! Nodes that do not answer: their condition, their taints, and the Ready condition of their pods.
//!
//! Source: `pkg/controller/nodelifecycle/node_lifecycle_controller.go`.

mod health;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::health::{Health, silenced};
use self::zones::{Evictions, Zones};
use crate::queue::{self, Next};
use crate::{name, ownership, pods, touched, unless_code};

/// How often a node is looked at although nothing changed.
const PERIOD: Duration = Duration::from_secs(5);
const LEASES: &str = "kube-node-lease";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Taints that follow conditions: condition, its status, taint.
const TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

/// The node's pods are on their way out, because it does not answer or says that it is not ready.
fn is_given_up(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| {
        taint.effect == "NoExecute" && matches!(taint.key.as_str(), NOT_READY | UNREACHABLE)
    })
}

/// The taints the node shall have, or `None` when it has them. `evictions` says what becomes of its pods when it
/// is not ready.
fn taints(node: &Node, evictions: Evictions, now: Timestamp) -> Option<Vec<Taint>> {
    let empty = Vec::new();
    let spec = node.spec.as_ref();
    let found = spec.and_then(|spec| spec.taints.as_ref()).unwrap_or(&empty);
    let holds = |kind: &str, status: &str| {
        conditions(node)
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == status)
    };
    let evicts = match evictions {
        Evictions::Begin => true,
        Evictions::Wait => is_given_up(node),
        Evictions::End => false,
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, taint) in TAINTS {
        if holds(kind, status) {
            wanted.push((taint, "NoSchedule"));
            if *kind == "Ready" && evicts {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    // A node that has never reported keeps the taint it was registered with.
    if !conditions(node).iter().any(|condition| condition.type_ == "Ready") {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if spec.and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        taint.key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == taint.key)
    };
    let is =
        |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let mut result: Vec<Taint> = found
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|want| is(taint, want)))
        .cloned()
        .collect();
    for want in &wanted {
        if !result.iter().any(|taint| is(taint, want)) {
            result.push(Taint {
                key: want.0.to_owned(),
                effect: want.1.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (result != *found).then_some(result)
}

/// Labels of old, and those that have taken their place and say what is right.
const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
];

/// The labels of old that do not say what those of today do, as they should be.
fn outdated_labels(node: &Node) -> BTreeMap<&'static str, String> {
    let labels = node.labels();
    let wrong = OLD_LABELS.iter().filter_map(|(old, today)| {
        let wanted = labels.get(*today)?;
        (labels.get(*old) != Some(wanted)).then(|| (*old, wanted.clone()))
    });
    wrong.collect()
}

/// What is to be changed in the node: its taints, and its labels of old.
fn correction(node: &Node, evictions: Evictions, now: Timestamp) -> Option<Value> {
    let (taints, labels) = (taints(node, evictions, now), outdated_labels(node));
    if taints.is_none() && labels.is_empty() {
        return None;
    }
    let mut patch = json!({"metadata": {"uid": node.uid()}});
    if !labels.is_empty() {
        patch["metadata"]["labels"] = json!(labels);
    }
    if let Some(taints) = taints {
        // The list is replaced as a whole: only if it is still the one that was looked at.
        patch["metadata"]["resourceVersion"] = json!(node.resource_version());
        patch["spec"] = json!({"taints": taints});
    }
    Some(patch)
}

/// The status of the node's condition Ready.
fn readiness(node: &Node) -> Option<&str> {
    let ready = conditions(node).iter().find(|condition| condition.type_ == "Ready");
    ready.map(|condition| condition.status.as_str())
}

/// Tells that the pod is not ready: nobody hears of it any more.
async fn mark_unready(client: &Client, pod: &Pod, events: &Recorder) -> Result<(), kube::Error> {
    let (namespace, name) = ownership::key(pod);
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
        "type": "Ready", "status": "False", "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": Time(Timestamp::now())}]}});
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let patch = Patch::Strategic(patch);
    unless_code(api.patch_status(&name, &PatchParams::default(), &patch).await, 404)?;
    events.warning(object_reference(pod), "NodeNotReady", "Node is not ready");
    Ok(())
}

/// How an event names a node: by its name in place of its uid, as the kubelet and upstream do.
fn reference(node: &Node) -> ObjectReference {
    ObjectReference { uid: Some(node.name_any()), ..object_reference(node) }
}

/// What was told about nodes, so that it is told once: whether each was last known as ready.
#[derive(Default)]
struct Told(Mutex<BTreeMap<String, bool>>);

impl Told {
    /// Tells what is new about the node called `name`.
    fn tell(&self, name: &str, node: Option<&Node>, events: &Recorder) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = node else {
            if known.remove(name).is_some() {
                let about = ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(name.into()),
                    uid: Some(name.into()),
                    ..ObjectReference::default()
                };
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                events.normal(about, "RemovingNode", message);
            }
            return;
        };
        let ready = readiness(node) == Some("True");
        match known.insert(name.to_owned(), ready) {
            None => {
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                events.normal(reference(node), "RegisteredNode", message);
            }
            // The kubelet itself tells when it is not ready.
            Some(true) if readiness(node) == Some("Unknown") => {
                let message = format!("Node {name} status is now: NodeNotReady");
                events.normal(reference(node), "NodeNotReady", message);
            }
            Some(_) => {}
        }
    }
}

/// The nodes that do not answer and whose pods were told so: once, as long as that lasts.
#[derive(Default)]
struct Silent(Mutex<BTreeSet<String>>);

impl Silent {
    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pods of the node called `name` are still to be told; forgets it while it answers.
    fn is_new(&self, name: &str, answers: bool) -> bool {
        let mut told = self.locked();
        if answers {
            told.remove(name);
        }
        !answers && !told.contains(name)
    }

    fn told(&self, name: String) {
        self.locked().insert(name);
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let nodes = informers.get::<Node>();
    let leases = informers.get::<Lease>();
    let all_pods = informers.get::<Pod>();
    let events = Recorder::new(client.clone(), "node-controller", "");
    let began = Instant::now();
    let (told, health, zones) = (Told::default(), Health::default(), Zones::default());
    let silent = Arc::new(Silent::default());
    leases.ready().await;
    all_pods.ready().await;
    let changes = touched(&nodes, name);
    queue::run("node-lifecycle", changes, shutdown, |key: String| {
        let node = nodes.get("", &key);
        let lease = leases.get(LEASES, &key);
        let api: Api<Node> = Api::all(client.clone());
        let (client, events) = (client.clone(), events.clone());
        let (all_pods, silent) = (all_pods.clone(), silent.clone());
        told.tell(&key, node.as_deref(), &events);
        let now = Timestamp::now();
        let awake_s = began.elapsed().as_secs() as i64;
        let silence_s = if let Some(node) = &node {
            health.silence_s(node, lease.as_deref(), now, awake_s)
        } else {
            health.forget(&key);
            0
        };
        let mut evictions = Evictions::Begin;
        let is_silent = |node: &&Arc<Node>| readiness(node).is_some_and(|ready| ready != "True");
        if let Some(node) = node.as_ref().filter(is_silent) {
            evictions = zones.evictions(node, is_given_up(node), || nodes.store().state(), now);
        }
        Box::pin(async move {
            let Some(node) = node else {
                silent.is_new(&key, true);
                return Ok(Next::Done);
            };
            let parameters = PatchParams::default();
            if let Some(conditions) = silenced(&node, silence_s, now) {
                let patch = json!({"status": {"conditions": conditions}});
                api.patch_status(&key, &parameters, &Patch::Strategic(&patch)).await?;
            }
            if let Some(patch) = correction(&node, evictions, now) {
                api.patch(&key, &parameters, &Patch::Merge(&patch)).await?;
            }
            if silent.is_new(&key, readiness(&node) != Some("Unknown")) {
                let here = all_pods
                    .store()
                    .state_filter(|pod| pods::node(pod) == key && pods::ready_since(pod).is_some());
                for pod in here {
                    mark_unready(&client, &pod, &events).await?;
                }
                silent.told(key);
            }
            Ok(Next::After(PERIOD))
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: &Value) -> Node {
        serde_json::from_value(json!({
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn taints_follow_conditions_and_leave_the_users_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let theirs = json!({"key": "mine", "effect": "NoSchedule"});
        let registered = json!({"key": NOT_READY, "effect": "NoSchedule"});
        let keys = |node: &Node| {
            taints(node, Evictions::Begin, now).map(|taints| {
                taints
                    .iter()
                    .map(|t| format!("{}:{}", t.key, t.effect))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        assert_eq!(
            keys(&node("True", &json!([theirs, registered]))).as_deref(),
            Some("mine:NoSchedule")
        );
        assert_eq!(keys(&node("True", &json!([theirs]))), None);
        assert_eq!(
            keys(&node("Unknown", &json!([]))).as_deref(),
            Some(
                "node.kubernetes.io/unreachable:NoSchedule node.kubernetes.io/unreachable:NoExecute"
            )
        );
    }

    #[test]
    fn labels_of_old_follow_those_of_today() {
        for (labels, want) in [
            (json!({}), json!({})),
            (json!({"beta.kubernetes.io/os": "linux"}), json!({})),
            (json!({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}), json!({})),
            (json!({"kubernetes.io/os": "linux"}), json!({"beta.kubernetes.io/os": "linux"})),
            (
                json!({"kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "amd64"}),
                json!({"beta.kubernetes.io/arch": "arm64"}),
            ),
        ] {
            let node = json!({"metadata": {"labels": labels}});
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(json!(outdated_labels(&node)), want, "{labels}");
        }
    }

    #[test]
    fn pods_of_a_silent_node_are_told_once() {
        let silent = Silent::default();
        for (answers, done, want) in [
            (true, false, false),
            (false, false, true),
            // Something went wrong meanwhile.
            (false, true, true),
            (false, false, false),
            (true, false, false),
            (false, true, true),
        ] {
            assert_eq!(silent.is_new("n", answers), want);
            if done {
                silent.told("n".into());
            }
        }
    }

    #[test]
    fn pods_leave_nodes_that_are_given_up() {
        let gone = |key: &str| json!({"key": key, "effect": "NoExecute"});
        let (unready, unreachable) = (gone(NOT_READY), gone(UNREACHABLE));
        for (ready, taints_, evictions, want) in [
            ("Unknown", json!([]), Evictions::Begin, vec![UNREACHABLE]),
            ("Unknown", json!([]), Evictions::Wait, vec![]),
            ("Unknown", json!([unready]), Evictions::Wait, vec![UNREACHABLE]),
            ("False", json!([unreachable]), Evictions::Wait, vec![NOT_READY]),
            ("Unknown", json!([unreachable]), Evictions::End, vec![]),
            ("True", json!([unreachable]), Evictions::Begin, vec![]),
        ] {
            let taints = taints(&node(ready, &taints_), evictions, Timestamp::UNIX_EPOCH);
            let taints = taints.expect("something changes");
            let left = taints.iter().filter(|taint| taint.effect == "NoExecute");
            let left: Vec<&str> = left.map(|taint| taint.key.as_str()).collect();
            assert_eq!(left, want, "{ready} {taints_} {evictions:?}");
        }
    }
}
