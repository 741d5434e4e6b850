//! Whether a node is heard of. What counts is when its lease or its heartbeat was seen to change, by the clock
//! here: the nodes' clocks may be wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::conditions;

/// A node that was not heard of for so long is not reachable (`--node-monitor-grace-period`).
const GRACE_S: i64 = 50;
/// A node that has never reported has so long (`--node-startup-grace-period`).
const STARTUP_GRACE_S: i64 = 60;
/// What the kubelet tells of, and nobody else.
const OF_KUBELET: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// Signs of life: when the lease was renewed, and the node's heartbeat.
type Signs = (Option<Timestamp>, Option<Timestamp>);

/// When each node was heard of last, with the signs of it.
#[derive(Default)]
pub struct Health(Mutex<BTreeMap<String, (Signs, Timestamp)>>);

impl Health {
    /// Takes note of what is known of the node; says when it was heard of last.
    pub fn heard(&self, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Timestamp {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let ready = conditions(node).iter().find(|condition| condition.type_ == "Ready");
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref());
        let signs = (renewed.map(|time| time.0), heartbeat.map(|time| time.0));
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let known = all.entry(node.name_any()).or_insert_with(|| {
            // One that has never reported is waited for from its creation on.
            let silent = ready.is_none() && renewed.is_none();
            (signs, created.filter(|_| silent).unwrap_or(now))
        });
        if known.0 != signs {
            *known = (signs, now);
        }
        known.1
    }

    /// The node is gone.
    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The conditions of a node that was heard of last at `heard`, when it has gone silent since and they do not say
/// so yet.
pub fn silenced(node: &Node, heard: Timestamp, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut changed = conditions(node).to_vec();
    let reported = changed.iter().any(|condition| condition.type_ == "Ready");
    let grace_s = if reported { GRACE_S } else { STARTUP_GRACE_S };
    if now.as_second() - heard.as_second() <= grace_s {
        return None;
    }
    let mut any = false;
    for kind in OF_KUBELET {
        let Some(known) = changed.iter_mut().find(|condition| condition.type_ == kind) else {
            any = true;
            changed.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            });
            continue;
        };
        if known.status != "Unknown" {
            any = true;
            known.status = "Unknown".into();
            known.reason = Some("NodeStatusUnknown".into());
            known.message = Some("Kubelet stopped posting node status.".into());
            known.last_transition_time = Some(Time(now));
        }
    }
    any.then_some(changed)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn node(conditions: &Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:10Z"},
            "status": {"conditions": conditions}}))
        .expect("a node")
    }

    fn lease(second: i64) -> Lease {
        let renew_time = Some(MicroTime(at(second)));
        Lease { spec: Some(LeaseSpec { renew_time, ..LeaseSpec::default() }), ..Lease::default() }
    }

    #[test]
    fn a_node_is_heard_of_when_something_of_it_changes() {
        let health = Health::default();
        let beat = |second: i64| {
            node(
                &json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": Time(at(second))}]),
            )
        };
        let never = node(&json!([]));
        assert_eq!(health.heard(&never, None, at(40)), at(10));
        // However wrong the node's clock is.
        for (node, renewed, now, want) in [
            (beat(5000), 9000, 50, 50),
            (beat(5000), 9000, 70, 50),
            (beat(5000), 9010, 80, 80),
            (beat(5000), 9010, 90, 80),
            (beat(5300), 9010, 95, 95),
        ] {
            assert_eq!(health.heard(&node, Some(&lease(renewed)), at(now)), at(want), "{now}");
        }
        health.forget("n");
        assert_eq!(health.heard(&beat(5300), Some(&lease(9010)), at(200)), at(200));
    }

    #[test]
    fn silence_is_told_once_and_only_of_what_the_kubelet_tells() {
        let told = |conditions: Value, now: i64| {
            let told = silenced(&node(&conditions), at(1000), at(now))?;
            let told = told.iter().map(|c| {
                let reason = c.reason.as_deref().unwrap_or_default();
                format!("{}={} {reason}", c.type_, c.status)
            });
            Some(told.collect::<Vec<_>>().join(", "))
        };
        let ready = json!({"type": "Ready", "status": "True"});
        let network = json!({"type": "NetworkUnavailable", "status": "False"});
        let never = "MemoryPressure=Unknown NodeStatusNeverUpdated, \
                     DiskPressure=Unknown NodeStatusNeverUpdated, \
                     PIDPressure=Unknown NodeStatusNeverUpdated";
        let first = format!("{never}, Ready=Unknown NodeStatusNeverUpdated");
        let later = format!("Ready=Unknown NodeStatusUnknown, NetworkUnavailable=False , {never}");
        let all = OF_KUBELET.map(|kind| json!({"type": kind, "status": "Unknown"}));
        for (conditions, now, want) in [
            (json!([ready]), 1050, None),
            (json!([]), 1060, None),
            (json!([]), 1061, Some(first)),
            (json!([ready, network]), 1051, Some(later)),
            (json!(all), 2000, None),
        ] {
            assert_eq!(told(conditions.clone(), now), want, "{conditions} {now}");
        }
    }
}
