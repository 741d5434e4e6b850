//! Nodes that do not answer: their condition, their taints, and the Ready condition of their pods.
//!
//! Source: `pkg/controller/nodelifecycle/node_lifecycle_controller.go` (grace period 50 s).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, ownership, pods, touched, unless_code};

/// A node that has not renewed its lease for this long is not reachable.
const GRACE_S: i64 = 50;
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

/// The taints the node shall have, or `None` when it has them.
fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let empty = Vec::new();
    let spec = node.spec.as_ref();
    let found = spec.and_then(|spec| spec.taints.as_ref()).unwrap_or(&empty);
    let holds = |kind: &str, status: &str| {
        conditions(node)
            .iter()
            .any(|condition| condition.type_ == kind && condition.status == status)
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, taint) in TAINTS {
        if holds(kind, status) {
            wanted.push((taint, "NoSchedule"));
            if *kind == "Ready" {
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
                time_added: (want.1 == "NoExecute").then_some(Time(now)),
                value: None,
            });
        }
    }
    (result != *found).then_some(result)
}

/// The conditions of a node that has gone silent, or `None` when it has not, or is marked already.
fn silenced(node: &Node, lease: Option<&Lease>, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let renewed = lease
        .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
        .map(|time| time.0)
        .or_else(|| node.metadata.creation_timestamp.as_ref().map(|time| time.0))?;
    if now.as_second() - renewed.as_second() <= GRACE_S {
        return None;
    }
    let mut changed = conditions(node).to_vec();
    let mut any = false;
    for condition in &mut changed {
        if condition.status != "Unknown" {
            any = true;
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(Time(now));
        }
    }
    any.then_some(changed)
}

/// The status of the node's condition Ready.
fn readiness(node: &Node) -> Option<&str> {
    let ready = conditions(node).iter().find(|condition| condition.type_ == "Ready");
    ready.map(|condition| condition.status.as_str())
}

/// Tells that the pod is not ready: nobody hears of it any more.
async fn mark_unready(client: &Client, pod: &Pod, events: &Recorder) -> Result<(), kube::Error> {
    let (namespace, name) = ownership::key(pod);
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [
        {"type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now())}]}});
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
            Some(true) if !ready => {
                let message = format!("Node {name} status is now: NodeNotReady");
                events.normal(reference(node), "NodeNotReady", message);
            }
            Some(_) => {}
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let nodes = informers.get::<Node>();
    let leases = informers.get::<Lease>();
    let all_pods = informers.get::<Pod>();
    let events = Recorder::new(client.clone(), "node-controller", "");
    let told = Told::default();
    leases.ready().await;
    all_pods.ready().await;
    let changes = touched(&nodes, name);
    queue::run("node-lifecycle", changes, shutdown, |key: String| {
        let node = nodes.get("", &key);
        let lease = leases.get(LEASES, &key);
        let api: Api<Node> = Api::all(client.clone());
        let (client, events) = (client.clone(), events.clone());
        let all_pods = all_pods.clone();
        told.tell(&key, node.as_deref(), &events);
        Box::pin(async move {
            let Some(node) = node else { return Ok(Next::Done) };
            let now = Timestamp::now();
            let parameters = PatchParams::default();
            if let Some(conditions) = silenced(&node, lease.as_deref(), now) {
                let patch = json!({"status": {"conditions": conditions}});
                api.patch_status(&key, &parameters, &Patch::Strategic(&patch)).await?;
            }
            if let Some(taints) = taints(&node, now) {
                // The list is replaced as a whole: only if it is still the one that was looked at.
                let patch = json!({
                    "metadata": {"resourceVersion": node.resource_version()},
                    "spec": {"taints": taints},
                });
                api.patch(&key, &parameters, &Patch::Merge(&patch)).await?;
            }
            if readiness(&node) == Some("Unknown") {
                let here = all_pods
                    .store()
                    .state_filter(|pod| pods::node(pod) == key && pods::ready_since(pod).is_some());
                for pod in here {
                    mark_unready(&client, &pod, &events).await?;
                }
            }
            Ok(Next::After(PERIOD))
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use serde_json::Value;

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
            taints(node, now).map(|taints| {
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
    fn silence_is_told_once() {
        let lease = |second: i64| Lease {
            spec: Some(LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::from_second(second).unwrap())),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        let now = Timestamp::from_second(1000).unwrap();
        let known = node("True", &json!([]));
        assert!(silenced(&known, Some(&lease(990)), now).is_none());
        let told = silenced(&known, Some(&lease(900)), now).unwrap();
        assert_eq!(told[0].status, "Unknown");
        assert!(silenced(&node("Unknown", &json!([])), Some(&lease(900)), now).is_none());
    }
}
