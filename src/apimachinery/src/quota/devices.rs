//! What claims of devices count for: devices by class, and the extended resources that classes stand for.
//!
//! Source: `pkg/quota/v1/evaluator/core/resource_claims.go`.

use std::cmp::Ordering;

use serde_json::Value;

use super::{Usage, add, one, pod, raise};
use crate::quantity::Quantity;

/// Of the devices of one class.
pub(super) const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// What stands for the devices of a class among a container's resources.
pub(super) const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// As many devices as one claim can get, for claims that take all that there are.
const DEVICES_MAX: i64 = 32;
/// Marks claims that were made for the extended resources of a pod.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";

/// What the claim of devices gets at most of each class.
pub(super) fn claim(claim: &Value) -> Usage {
    let of = |request: &Value| {
        let class = request["deviceClassName"].as_str()?;
        let count = match request["allocationMode"].as_str().unwrap_or("ExactCount") {
            "ExactCount" => request["count"].as_i64().unwrap_or(1),
            "All" => DEVICES_MAX,
            _ => return None,
        };
        Some((format!("{class}{DEVICES}"), one(count)))
    };
    let mut usage = Usage::new();
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        // Of several ways to satisfy a request the dearest counts, class by class.
        let mut dearest = Usage::new();
        let ways = request["firstAvailable"].as_array().into_iter().flatten();
        for (name, amount) in ways.chain([&request["exactly"]]).filter_map(of) {
            raise(&mut dearest, &Usage::from([(name, amount)]));
        }
        add(&mut usage, &dearest);
    }
    usage
}

/// What, besides the claim of devices, decides how much it counts for.
pub struct Surroundings<'a> {
    /// The class of devices of this name.
    pub class: &'a dyn Fn(&str) -> Option<Value>,
    /// The pod of this name in the claim's namespace.
    pub pod: &'a dyn Fn(&str) -> Option<Value>,
    /// The claims of devices in the claim's namespace.
    pub claims: &'a dyn Fn() -> Vec<Value>,
}

/// The pod that controls the claim: name and uid.
fn owner(claim: &Value) -> Option<(&str, &str)> {
    let owners = claim["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners.into_iter().find(|owner| owner["controller"] == true)?;
    let is_pod = owner["kind"] == "Pod" && owner["apiVersion"] == "v1";
    is_pod.then_some((owner["name"].as_str()?, owner["uid"].as_str()?))
}

fn is_for_extended(claim: &Value) -> bool {
    claim["metadata"]["annotations"][EXTENDED] == "true"
}

/// The older of two claims comes first, of two of one second the first by name.
fn age(one: &Value, other: &Value) -> Ordering {
    let key = |claim: &Value| {
        let text = |key: &str| claim["metadata"][key].as_str().unwrap_or_default().to_owned();
        // One that is not stored yet is the youngest.
        let created = claim["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        (created.is_none(), created, text("name"))
    };
    key(one).cmp(&key(other))
}

/// What the pod whose extended resources the claim is for is charged with already. Only the one claim that is the
/// pod's is spared.
fn charged(claim: &Value, around: &Surroundings<'_>) -> Usage {
    let Some((name, uid)) = owner(claim).filter(|_| is_for_extended(claim)) else {
        return Usage::new();
    };
    let Some(found) = (around.pod)(name).filter(|pod| pod["metadata"]["uid"] == uid) else {
        return Usage::new();
    };
    let named = &found["status"]["extendedResourceClaimStatus"];
    let is_the_one = if named.is_object() {
        named["resourceClaimName"] == claim["metadata"]["name"]
    } else {
        let rival = |other: &Value| {
            is_for_extended(other)
                && owner(other).is_some_and(|(_, other)| other == uid)
                && other["metadata"]["name"] != claim["metadata"]["name"]
                && age(other, claim) == Ordering::Less
        };
        !(around.claims)().iter().any(rival)
    };
    if is_the_one { pod(&found) } else { Usage::new() }
}

/// Adds to what the claim of devices counts for the extended resources that its classes stand for, as far as no pod
/// is charged with them.
pub fn add_extended(usage: &mut Usage, claim: &Value, around: &Surroundings<'_>) {
    let mut extended = Usage::new();
    for (name, amount) in usage.iter() {
        let Some(class_name) = name.strip_suffix(DEVICES).filter(|class| !class.is_empty()) else {
            continue;
        };
        let Some(class) = (around.class)(class_name) else { continue };
        let implicit = format!("requests.{IMPLICIT}{class_name}");
        let named = class["spec"]["extendedResourceName"].as_str();
        for name in named.map(|name| format!("requests.{name}")).into_iter().chain([implicit]) {
            add(&mut extended, &Usage::from([(name, amount.clone())]));
        }
    }
    if extended.is_empty() {
        return;
    }
    let charged = charged(claim, around);
    let nothing = Quantity::default();
    for (name, amount) in extended {
        let rest = amount.minus(charged.get(&name).unwrap_or(&nothing));
        if rest.signum() > 0 {
            usage.insert(name, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_count_as_extended_resources_unless_their_pod_is_charged() {
        let class = |name: &str| match name {
            "gpu" => Some(json!({"spec": {"extendedResourceName": "example.com/gpu"}})),
            "net" => Some(json!({"spec": {}})),
            _ => None,
        };
        let told = |claim: &Value, pod: &Value, claims: &[Value]| {
            let mut usage = super::claim(claim);
            let around = Surroundings {
                class: &class,
                pod: &|name| (name == "p").then(|| pod.clone()),
                claims: &|| claims.to_vec(),
            };
            add_extended(&mut usage, claim, &around);
            let all = usage.iter().filter_map(|(name, amount)| {
                Some(format!("{}={}", name.strip_prefix("requests.")?, amount.canonical()))
            });
            all.collect::<Vec<_>>().join(" ")
        };
        let claim = |name: &str, second: u8, marked: bool, classes: &[&str]| {
            let requests: Vec<Value> =
                classes.iter().map(|c| json!({"exactly": {"deviceClassName": c}})).collect();
            json!({"metadata": {"name": name, "annotations": {EXTENDED: marked.to_string()},
                    "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"),
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p",
                        "uid": "u", "controller": true}]},
                "spec": {"devices": {"requests": requests}}})
        };
        let pod = |asked: Value, status: Value| {
            json!({"metadata": {"uid": "u"}, "status": status,
                "spec": {"containers": [{"resources": {"requests": asked}}]}})
        };
        let (implicit, explicit) =
            ("deviceclass.resource.kubernetes.io/gpu=1", "example.com/gpu=1");
        let both = format!("{implicit} {explicit}");
        let one = json!({"example.com/gpu": "1"});
        let of_class = json!({"deviceclass.resource.kubernetes.io/gpu": "1"});
        let named =
            |name: &str| json!({"extendedResourceClaimStatus": {"resourceClaimName": name}});
        let own = claim("c", 5, true, &["gpu"]);
        let (older, younger) = (claim("z", 4, true, &[]), claim("a", 6, true, &[]));
        let (same, foreign) = (claim("b", 5, true, &[]), claim("a", 1, false, &[]));
        let none = json!({});
        for (claim, pod, claims, want) in [
            (&claim("c", 5, false, &["gpu"]), pod(one.clone(), none.clone()), vec![], &*both),
            (&claim("c", 5, false, &["gone"]), pod(one.clone(), none.clone()), vec![], ""),
            (
                &claim("c", 5, false, &["net"]),
                pod(none.clone(), none.clone()),
                vec![],
                "deviceclass.resource.kubernetes.io/net=1",
            ),
            (&own, pod(one.clone(), none.clone()), vec![own.clone()], implicit),
            (&own, pod(of_class, none.clone()), vec![], explicit),
            (&own, pod(one.clone(), named("c")), vec![older.clone()], implicit),
            (&own, pod(one.clone(), named("d")), vec![], &both),
            (&own, pod(one.clone(), none.clone()), vec![older], &both),
            (&own, pod(one.clone(), none.clone()), vec![same], &both),
            (&own, pod(one.clone(), none.clone()), vec![younger, foreign], implicit),
            (&own, json!({"metadata": {"uid": "other"}}), vec![], &both),
        ] {
            assert_eq!(told(claim, &pod, &claims), want, "{claim} {pod}");
        }
    }
}
