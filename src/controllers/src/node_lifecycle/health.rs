//! Whether a node is heard of. What counts is when its lease or its heartbeat was seen to change, by the clock
//! here: the nodes' clocks may be wrong. While this machine is suspended that clock stands still, as upstream's does:
//! what slept with it was not silent.

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

/// When each node was heard of last, in seconds of a clock that stands still in a suspension, with the signs of it.
#[derive(Default)]
pub struct Health(Mutex<BTreeMap<String, (Signs, i64)>>);

impl Health {
    /// Takes note of what is known of the node; says for how many seconds nothing was heard of it. `awake_s` is of a
    /// clock as above.
    pub fn silence_s(
        &self,
        node: &Node,
        lease: Option<&Lease>,
        now: Timestamp,
        awake_s: i64,
    ) -> i64 {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let ready = conditions(node).iter().find(|condition| condition.type_ == "Ready");
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref());
        let signs = (renewed.map(|time| time.0), heartbeat.map(|time| time.0));
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let known = all.entry(node.name_any()).or_insert_with(|| {
            // One that has never reported is waited for from its creation on.
            let silent = ready.is_none() && renewed.is_none();
            let age_s = created.map_or(0, |created| now.duration_since(created).as_secs().max(0));
            (signs, if silent { awake_s - age_s } else { awake_s })
        });
        if known.0 != signs {
            *known = (signs, awake_s);
        }
        awake_s - known.1
    }

    /// The node is gone.
    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The conditions of a node of which nothing was heard for `silence_s`, when that is too long and they do not say so
/// yet.
pub fn silenced(node: &Node, silence_s: i64, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut changed = conditions(node).to_vec();
    let reported = changed.iter().any(|condition| condition.type_ == "Ready");
    let grace_s = if reported { GRACE_S } else { STARTUP_GRACE_S };
    if silence_s <= grace_s {
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
        assert_eq!(health.silence_s(&never, None, at(40), 3), 30, "since its creation");
        // However wrong the node's clock is, and however long this machine was suspended.
        for (node, renewed, now, awake_s, want) in [
            (beat(5000), 9000, 50, 13, 0),
            (beat(5000), 9000, 70, 33, 20),
            (beat(5000), 9010, 80, 43, 0),
            (beat(5000), 9010, 90, 53, 10),
            (beat(5000), 9010, 990, 54, 11),
            (beat(5300), 9010, 995, 59, 0),
        ] {
            let silence_s = health.silence_s(&node, Some(&lease(renewed)), at(now), awake_s);
            assert_eq!(silence_s, want, "{now}");
        }
        health.forget("n");
        assert_eq!(health.silence_s(&beat(5300), Some(&lease(9010)), at(1200), 264), 0);
    }

    #[test]
    fn silence_is_told_once_and_only_of_what_the_kubelet_tells() {
        let told = |conditions: Value, silence_s: i64| {
            let told = silenced(&node(&conditions), silence_s, at(1000))?;
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
        for (conditions, silence_s, want) in [
            (json!([ready]), 50, None),
            (json!([]), 60, None),
            (json!([]), 61, Some(first)),
            (json!([ready, network]), 51, Some(later)),
            (json!(all), 1000, None),
        ] {
            assert_eq!(told(conditions.clone(), silence_s), want, "{conditions} {silence_s}");
        }
    }
}
