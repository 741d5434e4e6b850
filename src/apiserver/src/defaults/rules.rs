//! Defaults of policies: limit ranges, network policies, role bindings.

use serde_json::{Value, json};

use crate::zero::{Zero, default_to};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Limits of containers follow from one another: the default from the maximum, the default request from
/// the default or the minimum.
pub fn limit_range(object: &mut Value) {
    let limits = object.pointer_mut("/spec/limits").and_then(Value::as_array_mut);
    for limit in limits.into_iter().flatten().filter(|limit| limit["type"] == "Container") {
        for (target, sources) in [
            ("default", &["max"][..]),
            ("defaultRequest", &["default"]),
            ("defaultRequest", &["min"]),
        ] {
            for source in sources {
                let values = limit[*source].clone();
                for (name, value) in values.entries() {
                    default_to(limit, target, || json!({}));
                    default_to(&mut limit[target], name, || value.clone());
                }
            }
        }
        if let Some(map) = limit.as_object_mut() {
            map.retain(|_, value| !value.is_null());
        }
    }
}

/// A request for devices wants one of them, in a claim at `pointer`.
pub fn device_claim(object: &mut Value, pointer: &str) {
    let requests = object.pointer_mut(pointer).and_then(Value::as_array_mut);
    for request in requests.into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly") {
            wanted_devices(exactly);
        }
        let alternatives = request.get_mut("firstAvailable").and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(wanted_devices);
    }
}

fn wanted_devices(request: &mut Value) {
    default_to(request, "allocationMode", || "ExactCount".into());
    if request["allocationMode"] == "ExactCount" && request["count"].int() == 0 {
        request["count"] = 1.into();
    }
    let tolerations = request.get_mut("tolerations").and_then(Value::as_array_mut);
    for toleration in tolerations.into_iter().flatten() {
        default_to(toleration, "operator", || "Equal".into());
    }
}

/// Taints count from when they were added: from now on, where they do not say.
pub fn device_taints(slice: &mut Value) {
    let devices = slice.pointer_mut("/spec/devices").and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten() {
            default_to(taint, "timeAdded", || apimachinery::time::now().into());
        }
    }
}

/// Schemas that say nothing come after all that do.
pub fn flow_schema(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) {
        or_number(spec, "matchingPrecedence", 1000);
    }
}

/// A number that is no pointer in Go: zero says as little as its absence.
fn or_number(object: &mut Value, key: &str, number: i64) {
    if object[key].as_i64().unwrap_or(0) == 0 {
        object[key] = number.into();
    }
}

/// An exempt priority level lends and is given nothing unless it says so.
pub fn priority_level(object: &mut Value) {
    let queuing = object.pointer_mut("/spec/limited/limitResponse/queuing");
    if let Some(queuing) = queuing.filter(|queuing| queuing.is_object()) {
        for (key, number) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
            or_number(queuing, key, number);
        }
    }
    let Some(spec) = object.get_mut("spec").filter(|spec| spec["type"] == "Exempt") else { return };
    default_to(spec, "exempt", || json!({}));
    for key in ["nominalConcurrencyShares", "lendablePercent"] {
        default_to(&mut spec["exempt"], key, || 0.into());
    }
}

/// A policy is about ingress, and about egress when it has rules for it.
pub fn network_policy(object: &mut Value) {
    default_to(object, "spec", || json!({}));
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if spec["policyTypes"].items().is_empty() {
        let egress = !spec["egress"].items().is_empty();
        spec["policyTypes"] =
            if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

/// Roles, users and groups belong to the RBAC group.
pub fn binding(object: &mut Value) {
    if let Some(role) = object.get_mut("roleRef") {
        default_to(role, "apiGroup", || RBAC.into());
    }
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        if matches!(subject["kind"].text(), "User" | "Group") {
            default_to(subject, "apiGroup", || RBAC.into());
        }
    }
}
