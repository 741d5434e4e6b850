//! The strategy of pods, their status and their partial updates.

use std::collections::BTreeMap;

use apimachinery::field::{ErrorList, Path};
use apimachinery::quantity::Quantity;
use apimachinery::{meta, time};
use serde_json::{Value, json};

use crate::attributes::Warnings;
use crate::validation::pod_annotations::{APPARMOR, LOCALHOST};
use crate::validation::security;
use crate::zero::Zero;

/// A new pod is pending, whatever it says.
pub fn prepare_for_create(pod: &mut Value, warnings: &Warnings) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !pod["spec"]["schedulingGates"].items().is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": time::now(),
        }]);
    }
    pod["status"] = status;
    merge_label_keys(pod);
    read_app_armor(pod, warnings);
}

/// Gives containers the AppArmor profile that only a deprecated annotation names, unless the pod's is the same, and
/// tells so.
///
/// Source: `applyAppArmorVersionSkew` of `pkg/registry/core/pod/strategy.go`.
fn read_app_armor(pod: &mut Value, warnings: &Warnings) {
    let annotations = pod["metadata"]["annotations"].clone();
    if pod["spec"]["os"]["name"] == "windows" || !annotations.is_object() {
        return;
    }
    let own = pod["spec"]["securityContext"]["appArmorProfile"].clone();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let key = format!("{APPARMOR}{}", container["name"].text());
            let Some(annotation) = annotations[&key].as_str() else { continue };
            if container["securityContext"]["appArmorProfile"].is_set() {
                continue;
            }
            let profile = app_armor_profile(annotation);
            if profile.as_ref() == Some(&own) {
                continue;
            }
            if let Some(profile) = profile {
                let context = meta::child_mut(container, "securityContext");
                context.insert("appArmorProfile".into(), profile);
            }
            warnings.add(format!(
                "metadata.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
    }
}

/// The field that means the same as the annotation, if that is a valid one.
fn app_armor_profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => {
            let name = annotation.strip_prefix(LOCALHOST)?;
            let profile = json!({"type": "Localhost", "localhostProfile": name});
            let mut mistakes = ErrorList::new();
            security::app_armor(&profile, &Path::default(), &mut mistakes);
            mistakes.is_empty().then_some(profile)
        }
    }
}

/// Puts what `matchLabelKeys` and `mismatchLabelKeys` mean for this pod into the selectors beside them, so
/// that nobody who reads the selectors need know of them.
///
/// Source: `applyMatchLabelKeysAndMismatchLabelKeys` of `pkg/registry/core/pod/strategy.go`.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|all| all.get_mut(kind)) else {
            continue;
        };
        let required = affinity.get_mut("requiredDuringSchedulingIgnoredDuringExecution");
        for term in required.and_then(Value::as_array_mut).into_iter().flatten() {
            merge_keys(term, &labels);
        }
        let preferred = affinity.get_mut("preferredDuringSchedulingIgnoredDuringExecution");
        for wish in preferred.and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(term) = wish.get_mut("podAffinityTerm") {
                merge_keys(term, &labels);
            }
        }
    }
    let constraints = spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut);
    for constraint in constraints.into_iter().flatten() {
        merge_keys(constraint, &labels);
    }
}

/// Does so for one selector. Without one there is nothing to narrow; keys that the pod lacks mean nothing.
fn merge_keys(term: &mut Value, labels: &Value) {
    if !term["labelSelector"].is_object() {
        return;
    }
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys: Vec<String> = term[keys].texts().map(str::to_owned).collect();
        for key in keys {
            let Some(value) = labels[&key].as_str() else { continue };
            let made = json!({"key": key, "operator": operator, "values": [value]});
            let selector = meta::child_mut(term, "labelSelector");
            let list = selector.entry("matchExpressions").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.contains(&made)
            {
                list.push(made);
            }
        }
    }
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
        if pod["spec"]["resources"].is_set() {
            new["spec"]["resources"] = pod["spec"]["resources"].clone();
        }
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
    fn label_keys_become_part_of_the_selectors() {
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}},
            "matchLabelKeys": ["hash", "absent"], "mismatchLabelKeys": ["tenant"]});
        let spread =
            json!({"topologyKey": "zone", "labelSelector": {}, "matchLabelKeys": ["hash"]});
        let mut pod = json!({"metadata": {"labels": {"hash": "1", "tenant": "t"}}, "spec": {
            "affinity": {
                "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "matchLabelKeys": ["hash"]}}]}},
            "topologySpreadConstraints": [spread]}});
        prepare_for_create(&mut pod, &Warnings::default());
        let affinity = &pod["spec"]["affinity"];
        let required = &affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let hash = json!({"key": "hash", "operator": "In", "values": ["1"]});
        assert_eq!(
            required[0]["labelSelector"],
            json!({"matchLabels": {"a": "b"}, "matchExpressions": [
                hash, {"key": "tenant", "operator": "NotIn", "values": ["t"]}]})
        );
        let preferred =
            &affinity["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
        assert!(preferred[0]["podAffinityTerm"]["labelSelector"].is_null());
        let constraint = &pod["spec"]["topologySpreadConstraints"][0];
        assert_eq!(constraint["labelSelector"]["matchExpressions"], json!([hash]));
    }

    #[test]
    fn profiles_of_annotations_become_fields() {
        const WARNING: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
        let typed = |kind: &str| json!({"type": kind});
        for (annotation, own, before, want, warned) in [
            ("unconfined", json!(null), json!(null), typed("Unconfined"), true),
            ("runtime/default", json!(null), json!(null), typed("RuntimeDefault"), true),
            (
                "localhost/a",
                json!(null),
                json!(null),
                json!({"type": "Localhost", "localhostProfile": "a"}),
                true,
            ),
            ("localhost/", json!(null), json!(null), json!(null), true),
            ("what", json!(null), json!(null), json!(null), true),
            ("unconfined", typed("Unconfined"), json!(null), json!(null), false),
            ("unconfined", typed("RuntimeDefault"), json!(null), typed("Unconfined"), true),
            ("unconfined", json!(null), typed("RuntimeDefault"), typed("RuntimeDefault"), false),
        ] {
            let key = format!("{APPARMOR}c");
            let mut pod = json!({"metadata": {"annotations": {key.as_str(): annotation}}, "spec": {
                "securityContext": {"appArmorProfile": own},
                "containers": [{"name": "c", "securityContext": {"appArmorProfile": before}}]}});
            let warnings = Warnings::default();
            prepare_for_create(&mut pod, &warnings);
            let got = &pod["spec"]["containers"][0]["securityContext"]["appArmorProfile"];
            assert_eq!(got, &want, "{annotation}");
            let told = format!("metadata.annotations[{key}]: {WARNING}");
            assert_eq!(warnings.list(), if warned { vec![told] } else { vec![] }, "{annotation}");
        }
    }

    #[test]
    fn a_resize_changes_resources_only() {
        let old = json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n", "containers": [{"name": "c", "image": "a"}]}});
        let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [{
            "name": "c", "image": "b", "resources": {"limits": {"cpu": "1"}}}],
            "resources": {"limits": {"cpu": "2"}}}});
        prepare_part("resize", &mut new, &old);
        assert_eq!(
            new["spec"],
            json!({"nodeName": "n", "resources": {"limits": {"cpu": "2"}}, "containers": [{
                "name": "c", "image": "a", "resources": {"limits": {"cpu": "1"}}}]})
        );
    }
}
