//! Rules for the resources that a pod asks for as a whole.
//!
//! Source: `validatePodResources` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::collections::BTreeMap;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::container::{amounts, any_resource_name, quantity};
use crate::zero::Zero;

/// Checks `spec.resources` by itself, and against what the containers say.
pub fn validate(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let resources = &spec["resources"];
    if resources.is_null() {
        return;
    }
    if !resources["claims"].is_null() {
        let detail = "claims cannot be set for Resources at pod-level";
        errors.push(Error::forbidden(&path.child("claims"), detail));
    }
    amounts(resources, path, name, errors);
    for (kind, huge_only) in [("requests", false), ("limits", true)] {
        for (name, sum) in aggregate(spec, kind) {
            let Some(given) = quantity(&resources[kind][&name]) else { continue };
            if sum > given && (!huge_only || name.starts_with("hugepages-")) {
                let detail = format!(
                    "must be greater than or equal to aggregate container {kind} of {}",
                    sum.canonical()
                );
                let at = path.child(kind).key(&name);
                errors.push(Error::invalid(&at, given.canonical(), detail));
            }
        }
    }
    for (index, container) in spec["containers"].items().iter().enumerate() {
        for (name, limit) in container["resources"]["limits"].entries() {
            let (limit, given) = (quantity(limit), quantity(&resources["limits"][name]));
            let (Some(limit), Some(given)) = (limit, given) else { continue };
            if limit > given {
                // Upstream begins this path at the pod's resources.
                let at = path.child("containers").index(index).key(name).child("limits");
                let detail =
                    format!("must be less than or equal to pod limits of {}", given.canonical());
                errors.push(Error::invalid(&at, limit.canonical(), detail));
            }
        }
    }
}

/// Whether pods as a whole can ask for the resource.
pub fn of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn name(name: &str, path: &Path, errors: &mut ErrorList) {
    let before = errors.len();
    any_resource_name(name, path, errors);
    if errors.len() == before && !of_pods(name) {
        errors.push(Error::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
    }
}

/// What the containers need at once of what `kind` (`requests`, `limits`) names: all that run together, or an init container beside the sidecars before it.
pub fn aggregate(spec: &Value, kind: &str) -> BTreeMap<String, Quantity> {
    let mut together = BTreeMap::new();
    for container in spec["containers"].items() {
        add(&mut together, container, kind);
    }
    let (mut sidecars, mut starting) = (BTreeMap::new(), BTreeMap::new());
    for container in spec["initContainers"].items() {
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, container, kind);
            add(&mut together, container, kind);
            larger(&mut starting, &sidecars);
        } else {
            let mut now = sidecars.clone();
            add(&mut now, container, kind);
            larger(&mut starting, &now);
        }
    }
    larger(&mut together, &starting);
    together
}

fn add(sums: &mut BTreeMap<String, Quantity>, container: &Value, kind: &str) {
    for (name, value) in container["resources"][kind].entries() {
        let Some(amount) = quantity(value) else { continue };
        let sum = sums.get(name).map_or_else(|| amount.clone(), |sum| sum.plus(&amount));
        sums.insert(name.clone(), sum);
    }
}

fn larger(most: &mut BTreeMap<String, Quantity>, now: &BTreeMap<String, Quantity>) {
    for (name, amount) in now {
        if most.get(name).is_none_or(|known| amount > known) {
            most.insert(name.clone(), amount.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_as_a_whole_ask_for_what_their_containers_need() {
        let of =
            |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let mut sidecar = of("2");
        sidecar["restartPolicy"] = "Always".into();
        for (spec, want) in [
            (json!({"containers": [of("4")]}), ""),
            (
                json!({"resources": {"limits": {"cpu": "4", "memory": "1Gi", "hugepages-2Mi": "2Mi"}}}),
                "",
            ),
            (
                json!({"resources": {"limits": {"ephemeral-storage": "1Gi"}}}),
                "resources.limits[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \"cpu\", \"hugepages-\", \"memory\"",
            ),
            (
                json!({"resources": {"limits": {"pids": "2048"}}}),
                "resources.limits[pids]: Invalid value: \"pids\": must be a standard resource type or fully qualified",
            ),
            (
                json!({"resources": {"claims": [{"name": "gpu"}]}}),
                "resources.claims: Forbidden: claims cannot be set for Resources at pod-level",
            ),
            (
                json!({"resources": {"requests": {"cpu": "1"}}, "containers": [of("1"), of("500m")]}),
                "resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 1500m",
            ),
            (
                json!({"resources": {"requests": {"cpu": "4"}}, "containers": [of("1")],
                    "initContainers": [sidecar.clone(), of("3")]}),
                "resources.requests[cpu]: Invalid value: \"4\": must be greater than or equal to aggregate container requests of 5",
            ),
            (
                json!({"resources": {"limits": {"cpu": "1"}}, "containers": [of("1"), of("2")]}),
                "resources.containers[1][cpu].limits: Invalid value: \"2\": must be less than or equal to pod limits of 1",
            ),
            (
                json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
                "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
        ] {
            let mut errors = ErrorList::new();
            validate(&spec, &Path::new("resources"), &mut errors);
            let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(told.join("; "), want, "{spec}");
        }
    }
}
