//! The strategy of pods, their status and their partial updates.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use apimachinery::{meta, time};
use serde_json::{Value, json};

use crate::zero::Zero;

/// A new pod is pending, whatever it says.
pub fn prepare_for_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !pod["spec"]["schedulingGates"].items().is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": time::now(),
        }]);
    }
    pod["status"] = status;
}

/// A status update keeps the class of service.
pub fn prepare_status(pod: &mut Value, old: &Value) {
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if pod["status"]["qosClass"].text().is_empty() {
        let class = old["status"]["qosClass"].text();
        let class = if class.is_empty() { qos_class(old) } else { class };
        pod["status"]["qosClass"] = class.into();
    }
}

/// An update of ephemeral containers, or of containers' resources, changes nothing else.
pub fn prepare_part(subresource: &str, pod: &mut Value, old: &Value) {
    let mut new = old.clone();
    let version = meta::resource_version(pod).to_owned();
    if !version.is_empty() {
        meta::set(&mut new, "resourceVersion", version);
    }
    if subresource == "ephemeralcontainers" {
        let wanted = pod["spec"].get("ephemeralContainers").cloned();
        let spec = meta::child_mut(&mut new, "spec");
        match wanted.filter(|list| !list.items().is_empty()) {
            Some(list) => drop(spec.insert("ephemeralContainers".into(), list)),
            None => drop(spec.remove("ephemeralContainers")),
        }
    } else {
        for list in ["containers", "initContainers"] {
            let wanted = pod["spec"][list].items();
            let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let Some(other) = wanted.iter().find(|c| c["name"] == container["name"]) else {
                    continue;
                };
                for key in ["resources", "resizePolicy"] {
                    if other[key].is_set() {
                        container[key] = other[key].clone();
                    }
                }
            }
        }
    }
    *pod = new;
}

type Resources = BTreeMap<&'static str, Quantity>;

/// Adds CPU and memory of `list`; tells how many of the two it names.
fn add(total: &mut Resources, list: &Value) -> usize {
    let mut found = 0;
    for name in ["cpu", "memory"] {
        let quantity = match &list[name] {
            Value::String(text) => text.parse().ok(),
            Value::Number(number) => number.to_string().parse().ok(),
            _ => None,
        };
        let Some(quantity) = quantity.filter(|q: &Quantity| q.signum() > 0) else { continue };
        found += 1;
        let sum = total.get(name).map_or_else(|| quantity.clone(), |sum| sum.plus(&quantity));
        total.insert(name, sum);
    }
    found
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
///
/// Source: `pkg/apis/core/v1/helper/qos.ComputePodQOS`.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let (mut requests, mut limits) = (Resources::new(), Resources::new());
    let mut guaranteed = true;
    if spec["resources"].is_object() {
        add(&mut requests, &spec["resources"]["requests"]);
        guaranteed = add(&mut limits, &spec["resources"]["limits"]) == 2;
    } else {
        let containers = [&spec["containers"], &spec["initContainers"]];
        for container in containers.into_iter().flat_map(Zero::items) {
            add(&mut requests, &container["resources"]["requests"]);
            guaranteed &= add(&mut limits, &container["resources"]["limits"]) == 2;
        }
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service_is_upstreams() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let same = json!({"cpu": "1000m", "memory": "1024Mi"});
        let cases = [
            (json!([{}]), "BestEffort"),
            (json!([{"resources": {"limits": both, "requests": both}}]), "Guaranteed"),
            (json!([{"resources": {"limits": both, "requests": same}}]), "Guaranteed"),
            (json!([{"resources": {"limits": both, "requests": both}}, {}]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "0"}}}]), "BestEffort"),
            (json!([{"resources": {"requests": {"ephemeral-storage": "1Gi"}}}]), "BestEffort"),
        ];
        for (containers, want) in cases {
            let pod = json!({"spec": {"containers": containers}});
            assert_eq!(qos_class(&pod), want, "{containers}");
        }
    }

    #[test]
    fn a_resize_changes_resources_only() {
        let old = json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n", "containers": [{"name": "c", "image": "a"}]}});
        let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [{
            "name": "c", "image": "b", "resources": {"limits": {"cpu": "1"}}}]}});
        prepare_part("resize", &mut new, &old);
        assert_eq!(
            new["spec"],
            json!({"nodeName": "n", "containers": [{
                "name": "c", "image": "a", "resources": {"limits": {"cpu": "1"}}}]})
        );
    }
}
