//! What a create or update may set: status apart from spec, generations, and each kind's own resets.
//!
//! Source: the strategies of `k8s.io/kubernetes/pkg/registry/*/*/strategy.go`.

pub mod pod;
pub mod service;

use apimachinery::meta;
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::custom;
use crate::resource::Resource;
use crate::zero::Zero;

/// Kinds whose `metadata.generation` counts changes of what is not metadata or status.
const COUNTED: &[(&str, &[&str])] = &[
    ("", &["pods", "podtemplates", "replicationcontrollers"]),
    ("apps", &["deployments", "replicasets", "statefulsets", "daemonsets"]),
    ("batch", &["jobs", "cronjobs"]),
    ("networking.k8s.io", &["ingresses", "networkpolicies", "ingressclasses"]),
    ("policy", &["poddisruptionbudgets"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("flowcontrol.apiserver.k8s.io", &["flowschemas", "prioritylevelconfigurations"]),
    (
        "admissionregistration.k8s.io",
        &[
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "validatingadmissionpolicies",
            "validatingadmissionpolicybindings",
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        ],
    ),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("resource.k8s.io", &["resourceslices", "deviceclasses", "devicetaintrules"]),
    ("storage.k8s.io", &["csidrivers"]),
];
/// Kinds that count, and begin at nothing.
const UNNUMBERED: [(&str, &str); 1] = [("storage.k8s.io", "csidrivers")];
/// Kinds that begin at 1 and stay there.
const CONSTANT: [(&str, &str); 1] = [("scheduling.k8s.io", "priorityclasses")];
/// Kinds that count changes of a part of their metadata too: a Deployment's annotations are copied to its
/// ReplicaSets, and consumers of slices choose by label.
const COUNTED_TOO: [(&str, &str, &str); 2] =
    [("apps", "deployments", "annotations"), ("discovery.k8s.io", "endpointslices", "labels")];

/// The phase of a new object, where its status is not simply empty.
const NEW_PHASE: &[(&str, &str, &str)] = &[
    ("", "namespaces", "Active"),
    ("", "persistentvolumes", "Pending"),
    ("", "persistentvolumeclaims", "Pending"),
];

fn counted(resource: &Resource) -> bool {
    COUNTED
        .iter()
        .any(|(group, plurals)| *group == resource.group && plurals.contains(&&*resource.plural))
}

fn has_status(resource: &Resource) -> bool {
    resource.subresource("status").is_some()
}

/// Resets what a client may not set when creating.
pub fn prepare_for_create(ctx: &RequestContext, object: &mut Value) {
    let Some(resource) = &ctx.resource else { return };
    if resource.custom.is_some() {
        custom::strategy::prepare_for_create(resource, object);
        return;
    }
    let constant = CONSTANT.iter().any(|(group, plural)| resource.is(group, plural));
    let unnumbered = UNNUMBERED.iter().any(|(group, plural)| resource.is(group, plural));
    if constant || counted(resource) && !unnumbered {
        meta::set(object, "generation", 1);
    } else {
        meta::remove(object, "generation");
    }
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    // Nodes register themselves with their status.
    if has_status(resource) && (group, plural) != ("", "nodes") {
        let phase = NEW_PHASE.iter().find(|(g, p, _)| (*g, *p) == (group, plural));
        object["status"] = phase.map_or_else(|| json!({}), |(.., phase)| json!({"phase": phase}));
    }
    match (group, plural) {
        ("", "pods") => pod::prepare_for_create(object, &ctx.warnings),
        ("", "namespaces") => namespace_finalizer(object),
        ("batch", "jobs") => job_selector(object),
        ("apps", "daemonsets") => template_generation(object, None),
        ("certificates.k8s.io", "certificatesigningrequests") => requester(ctx, object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            custom::definition::prepare_for_create(object);
        }
        _ => {}
    }
}

/// Resets what a client may not set when updating, by subresource.
pub fn prepare_for_update(ctx: &RequestContext, object: &mut Value, old: &Value) {
    let Some(resource) = &ctx.resource else { return };
    if resource.custom.is_some() {
        custom::strategy::prepare_for_update(ctx, resource, object, old);
        return;
    }
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    match ctx.subresource.as_str() {
        "status" => {
            keep_all_but(object, old, &["status"]);
            let kept: &[&str] = match (group, plural) {
                // Controllers of load balancers write their finalizer this way.
                ("", "services") => &["generation"],
                _ => &["ownerReferences", "finalizers", "generation"],
            };
            keep_metadata(object, old, kept);
            match (group, plural) {
                ("", "pods") => pod::prepare_status(object, old),
                ("apps", "deployments") => keep_metadata(object, old, &["labels"]),
                ("apps", "daemonsets") => template_generation(object, Some(old)),
                _ => {}
            }
            return;
        }
        "finalize" => {
            let finalizers = object["spec"]["finalizers"].clone();
            keep_all_but(object, old, &[]);
            keep_metadata(object, old, &["generation"]);
            object["spec"]["finalizers"] = finalizers;
            if let Some(spec) = object["spec"].as_object_mut() {
                spec.retain(|_, value| !value.is_null());
            }
            return;
        }
        "approval" => {
            let conditions = object["status"]["conditions"].clone();
            keep_all_but(object, old, &[]);
            if conditions.is_array() {
                object["status"]["conditions"] = conditions;
            }
            return;
        }
        "ephemeralcontainers" | "resize" => {
            pod::prepare_part(&ctx.subresource, object, old);
            bump(resource, object, old);
            return;
        }
        // The server's own writes, such as a binding.
        "binding" | "eviction" => {
            keep_metadata(object, old, &["generation"]);
            return;
        }
        _ => {}
    }
    if has_status(resource) {
        replace(object, old, "status");
    }
    match (group, plural) {
        ("", "namespaces") => replace(object, old, "spec"),
        ("certificates.k8s.io", "certificatesigningrequests") => replace(object, old, "spec"),
        ("", "services") => service::prepare_for_update(object, old),
        ("apps", "daemonsets") => template_generation(object, Some(old)),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            custom::definition::note_storage_version(object);
        }
        _ => {}
    }
    bump(resource, object, old);
}

/// Counts a change of anything but metadata and status.
fn bump(resource: &Resource, object: &mut Value, old: &Value) {
    if !counted(resource) {
        match meta::metadata(old).get("generation").cloned() {
            Some(generation) => meta::set(object, "generation", generation),
            None => drop(meta::remove(object, "generation")),
        }
        return;
    }
    let same = |key: &str| object.get(key) == old.get(key);
    let keys = || object.entries().chain(old.entries()).map(|(key, _)| key);
    let too = |(group, plural, key): &(&str, &str, &str)| {
        let part = |object: &Value| {
            let part = meta::metadata(object).get(*key).and_then(Value::as_object).cloned();
            part.unwrap_or_default()
        };
        resource.is(group, plural) && part(object) != part(old)
    };
    let changed = keys().any(|key| !matches!(key.as_str(), "metadata" | "status") && !same(key))
        || COUNTED_TOO.iter().any(too);
    match meta::generation(old) + i64::from(changed) {
        0 => drop(meta::remove(object, "generation")),
        generation => meta::set(object, "generation", generation),
    }
}

/// Where a DaemonSet counts changes of its template; a number for upstream, which has a field for it inside.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// A DaemonSet counts changes of its template apart, in an annotation that nobody else writes.
fn template_generation(object: &mut Value, old: Option<&Value>) {
    let told = |object: &Value| {
        meta::annotation(object, TEMPLATE_GENERATION).and_then(|text| text.parse().ok())
    };
    let count: i64 = match old {
        None => told(object).unwrap_or(0).max(1),
        Some(old) => {
            let changed = object["spec"]["template"] != old["spec"]["template"];
            told(old).unwrap_or(0_i64).wrapping_add(i64::from(changed))
        }
    };
    let annotations = meta::metadata_mut(object).entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[TEMPLATE_GENERATION] = count.to_string().into();
}

fn replace(object: &mut Value, old: &Value, key: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(key) {
        Some(value) if map.get(key) == Some(value) => {}
        Some(value) => drop(map.insert(key.to_owned(), value.clone())),
        None => drop(map.remove(key)),
    }
}

/// Everything but metadata and the named fields stays as it is stored.
fn keep_all_but(object: &mut Value, old: &Value, free: &[&str]) {
    let Some(map) = object.as_object_mut() else { return };
    map.retain(|key, _| key == "metadata" || free.contains(&key.as_str()));
    for (key, value) in old.entries() {
        if key != "metadata" && !free.contains(&key.as_str()) {
            map.insert(key.clone(), value.clone());
        }
    }
}

fn keep_metadata(object: &mut Value, old: &Value, keys: &[&str]) {
    for key in keys {
        match meta::metadata(old).get(*key).cloned() {
            Some(value) => meta::set(object, key, value),
            None => drop(meta::remove(object, key)),
        }
    }
}

fn namespace_finalizer(object: &mut Value) {
    let spec = meta::child_mut(object, "spec");
    let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|finalizer| finalizer == "kubernetes")
    {
        list.push("kubernetes".into());
    }
}

/// A job finds its pods by its own uid, unless it says that it knows better.
fn job_selector(object: &mut Value) {
    if object["spec"]["manualSelector"].flag() || !object["spec"]["template"].is_object() {
        return;
    }
    let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
    let template = &mut object["spec"]["template"];
    let labels = meta::child_mut(meta_of(template), "labels");
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.insert(format!("{prefix}controller-uid"), uid.clone().into());
        labels.insert(format!("{prefix}job-name"), name.clone().into());
    }
    let spec = &mut object["spec"];
    if !spec["selector"].is_object() {
        spec["selector"] = json!({});
    }
    if !spec["selector"]["matchLabels"].is_object() {
        spec["selector"]["matchLabels"] = json!({});
    }
    spec["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.into();
    // Upstream defaults them whenever it reads a job.
    let labels = spec["template"]["metadata"]["labels"].clone();
    let own = meta::child_mut(object, "metadata").entry("labels").or_insert_with(|| json!({}));
    if own.entries().next().is_none() {
        *own = labels;
    }
}

fn meta_of(template: &mut Value) -> &mut Value {
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    &mut template["metadata"]
}

/// A certificate request is its sender's.
fn requester(ctx: &RequestContext, object: &mut Value) {
    let user = &ctx.user;
    let spec = meta::child_mut(object, "spec");
    spec.insert("username".into(), user.name.clone().into());
    spec.insert("groups".into(), user.groups.clone().into());
    for (key, empty) in [("uid", user.uid.is_empty()), ("extra", user.extra.is_empty())] {
        if empty {
            spec.remove(key);
        }
    }
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.clone().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn ctx(group: &str, plural: &str, subresource: &str) -> RequestContext {
        let resource = Registry::default().resource(group, plural).unwrap();
        let mut ctx = RequestContext::internal("update", &resource, "default", "a");
        ctx.subresource = subresource.into();
        ctx
    }

    fn updated(ctx: &RequestContext, mut object: Value, old: &Value) -> Value {
        prepare_for_update(ctx, &mut object, old);
        object
    }

    #[test]
    fn spec_and_status_are_written_apart() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {"b": 1}});
        let new = json!({"metadata": {"generation": 9}, "spec": {"a": 2}, "status": {"b": 2}});
        let got = updated(&ctx("apps", "deployments", ""), new.clone(), &old);
        let want = json!({"metadata": {"generation": 4}, "spec": {"a": 2}, "status": {"b": 1}});
        assert_eq!(got, want);
        let got = updated(&ctx("apps", "deployments", "status"), new, &old);
        let want = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {"b": 2}});
        assert_eq!(got, want);
        let finalized = json!({"metadata": {"finalizers": ["f"]}, "spec": {"a": 1}});
        let got = updated(&ctx("", "services", "status"), finalized.clone(), &old);
        assert_eq!(got["metadata"]["finalizers"], json!(["f"]));
        let got = updated(&ctx("apps", "replicasets", "status"), finalized, &old);
        assert_eq!(got["metadata"].get("finalizers"), None);
        let labelled =
            json!({"metadata": {"labels": {"x": "y"}}, "spec": {"a": 1}, "status": {"b": 1}});
        let got = updated(&ctx("apps", "deployments", "status"), labelled.clone(), &old);
        assert_eq!(got["metadata"].get("labels"), None);
        let got = updated(&ctx("apps", "replicasets", "status"), labelled.clone(), &old);
        assert_eq!(got["metadata"]["labels"], json!({"x": "y"}));
        let got = updated(&ctx("apps", "deployments", ""), labelled, &old);
        assert_eq!(got["metadata"]["generation"], 3);
    }

    #[test]
    fn new_objects_start_clean() {
        let cases = [
            (
                ("", "namespaces"),
                json!({"status": {"phase": "Terminating"}}),
                json!({
                "metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
            ),
            (
                ("apps", "replicasets"),
                json!({"status": {"replicas": 4}}),
                json!({
                "metadata": {"generation": 1}, "status": {}}),
            ),
            (("", "configmaps"), json!({"metadata": {"generation": 4}}), json!({"metadata": {}})),
        ];
        for ((group, plural), mut object, want) in cases {
            prepare_for_create(&ctx(group, plural, ""), &mut object);
            if object.get("metadata").is_none() {
                object["metadata"] = json!({});
            }
            assert_eq!(object, want);
        }
    }

    #[test]
    fn generations_count_what_upstream_counts() {
        let old = |generation: i64| json!({"metadata": {"generation": generation, "labels": {"a": "b"}}, "spec": {"a": 1}, "value": 1});
        let spec = json!({"spec": {"a": 2}});
        let value = json!({"value": 2});
        let labels = json!({"metadata": {"labels": {"a": "c"}}});
        let annotations = json!({"metadata": {"annotations": {"a": "c"}}});
        let nothing = json!({"metadata": {"annotations": {}}});
        for (group, plural, change, before, want) in [
            ("apps", "deployments", &spec, 1, 2),
            ("apps", "deployments", &annotations, 1, 2),
            ("apps", "deployments", &nothing, 1, 1),
            ("apps", "deployments", &labels, 1, 1),
            ("apps", "statefulsets", &annotations, 1, 1),
            ("apps", "daemonsets", &annotations, 1, 1),
            ("apps", "daemonsets", &spec, 1, 2),
            ("apps", "controllerrevisions", &value, 0, 0),
            ("batch", "jobs", &annotations, 1, 1),
            ("discovery.k8s.io", "endpointslices", &labels, 1, 2),
            ("discovery.k8s.io", "endpointslices", &annotations, 1, 1),
            ("discovery.k8s.io", "endpointslices", &value, 1, 2),
            ("scheduling.k8s.io", "priorityclasses", &value, 1, 1),
            ("storage.k8s.io", "csidrivers", &spec, 0, 1),
            ("storage.k8s.io", "csidrivers", &labels, 0, 0),
            ("apiregistration.k8s.io", "apiservices", &spec, 0, 0),
            ("autoscaling", "horizontalpodautoscalers", &spec, 0, 0),
            ("", "podtemplates", &value, 1, 2),
            ("", "services", &spec, 0, 0),
            ("", "pods", &annotations, 1, 1),
        ] {
            let (old, mut new) = (old(before), old(9));
            apimachinery::patch::merge(&mut new, change);
            let got = updated(&ctx(group, plural, ""), new, &old);
            assert_eq!(meta::generation(&got), want, "{plural} {change}");
        }
        let first = |group: &str, plural: &str| {
            let mut object = old(7);
            prepare_for_create(&ctx(group, plural, ""), &mut object);
            meta::generation(&object)
        };
        for (group, plural, want) in [
            ("apps", "deployments", 1),
            ("scheduling.k8s.io", "priorityclasses", 1),
            ("storage.k8s.io", "csidrivers", 0),
            ("apiregistration.k8s.io", "apiservices", 0),
            ("", "podtemplates", 1),
        ] {
            assert_eq!(first(group, plural), want, "{plural}");
        }
    }

    #[test]
    fn templates_of_daemon_sets_are_counted_apart() {
        const KEY: &str = TEMPLATE_GENERATION;
        let ctx = ctx("apps", "daemonsets", "");
        let mut set = json!({"metadata": {}, "spec": {"template": {"a": 1}}});
        prepare_for_create(&ctx, &mut set);
        assert_eq!(meta::annotation(&set, KEY), Some("1"));
        for (change, want) in [
            (json!({"metadata": {"annotations": {KEY: "9"}}}), "1"),
            (json!({"metadata": {"annotations": null}, "spec": {"b": 1}}), "1"),
            (json!({"spec": {"template": {"a": 2}}}), "2"),
        ] {
            let mut new = set.clone();
            apimachinery::patch::merge(&mut new, &change);
            assert_eq!(meta::annotation(&updated(&ctx, new, &set), KEY), Some(want), "{change}");
        }
    }

    #[test]
    fn finalize_changes_nothing_else() {
        let old = json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
        let new = json!({"metadata": {}, "spec": {"finalizers": []}, "status": {}});
        let got = updated(&ctx("", "namespaces", "finalize"), new, &old);
        assert_eq!(got["spec"], json!({"finalizers": []}));
        assert_eq!(got["status"], json!({"phase": "Terminating"}));
    }

    #[test]
    fn jobs_select_by_uid() {
        let mut job = json!({"metadata": {"uid": "u", "name": "j"}, "spec": {"template": {}}});
        prepare_for_create(&ctx("batch", "jobs", ""), &mut job);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]);
    }
}
