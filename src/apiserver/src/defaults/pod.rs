//! Defaults of pod specs, in pods and in templates.

use serde_json::{Value, json};

use super::table::{self, CONTAINER, POD_SPEC, PROBE};
use crate::validation::pod_resources::{aggregate, of_pods};
use crate::zero::{Zero, default_to};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// Keys of a volume that are no source.
const NO_SOURCE: [&str; 1] = ["name"];

/// Fills in a pod spec; `whole_pod` when it is a pod's own and not a template's.
pub fn set_defaults(spec: &mut Value, whole_pod: bool) {
    if !spec.is_object() {
        return;
    }
    mirror_service_account(spec);
    let host_network = spec["hostNetwork"].flag();
    for list in CONTAINER_LISTS {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            set_container_defaults(container, host_network, whole_pod);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let has_source = volume
            .entries()
            .any(|(key, value)| !NO_SOURCE.contains(&key.as_str()) && value.is_set());
        if !has_source && volume.is_object() {
            volume["emptyDir"] = json!({});
        }
    }
    for (path, value) in POD_SPEC {
        table::apply(spec, path, value);
    }
    if whole_pod && spec["resources"].is_object() {
        request_what_containers_need(spec);
        request_what_is_limited(&mut spec["resources"], of_pods);
    }
}

/// A pod with limits of its own requests what its containers request together, where it doesn't say.
fn request_what_containers_need(spec: &mut Value) {
    if spec["resources"]["limits"].entries().next().is_none() {
        return;
    }
    for (name, sum) in aggregate(spec, "requests") {
        // Huge pages are not promised to more than there are for: their request is the limit.
        if matches!(name.as_str(), "cpu" | "memory") {
            let resources = &mut spec["resources"];
            default_to(resources, "requests", || json!({}));
            default_to(&mut resources["requests"], &name, || sum.canonical().into());
        }
    }
}

/// `serviceAccount` is the deprecated name of `serviceAccountName`: both are set or none.
fn mirror_service_account(spec: &mut Value) {
    let old = spec["serviceAccount"].text().to_owned();
    if !old.is_empty() {
        default_to(spec, "serviceAccountName", || old.into());
    }
    let name = spec["serviceAccountName"].text().to_owned();
    if let Some(map) = spec.as_object_mut() {
        map.retain(|key, value| {
            !(matches!(key.as_str(), "serviceAccount" | "serviceAccountName") && value.is_null())
        });
        if !name.is_empty() {
            map.insert("serviceAccount".into(), name.into());
        }
    }
}

fn set_container_defaults(container: &mut Value, host_network: bool, whole_pod: bool) {
    if !container.is_object() {
        return;
    }
    let policy = pull_policy(container["image"].text());
    default_to(container, "imagePullPolicy", || policy.into());
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            for (path, value) in PROBE {
                table::apply(probe, path, value);
            }
        }
    }
    for (path, value) in CONTAINER {
        table::apply(container, path, value);
    }
    if host_network {
        for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if port["hostPort"].int() == 0 && port.is_object() {
                port["hostPort"] = port["containerPort"].clone();
            }
        }
    }
    if whole_pod && container["resources"].is_object() {
        request_what_is_limited(&mut container["resources"], |_| true);
    }
}

/// A resource with a limit and no request is requested up to its limit.
fn request_what_is_limited(resources: &mut Value, takes: fn(&str) -> bool) {
    let limits = resources["limits"].clone();
    for (name, limit) in limits.entries().filter(|(name, _)| takes(name)) {
        default_to(resources, "requests", || json!({}));
        default_to(&mut resources["requests"], name, || limit.clone());
    }
    if let Some(map) = resources.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

/// `Always` for the tag `latest`, given or implied; an image by digest alone has no tag.
pub fn pull_policy(image: &str) -> &'static str {
    let (named, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let last = named.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
        None if digest.is_some() => "IfNotPresent",
        None => "Always",
    }
}
