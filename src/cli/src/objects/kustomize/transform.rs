//! What a kustomization does to all it has gathered, in kustomize's order.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Layer;
use super::entry::{Entry, Id};
use super::file::{Image, Replicas};
use super::path::{parts, visit};
use super::{patches, replacements};
use crate::objects::error::Error;

/// Kinds whose names are more than names.
const NEVER_RENAMED: [&str; 3] = ["CustomResourceDefinition", "APIService", "Namespace"];
const AFFINE: [&str; 5] = [
    "affinity/podAffinity/preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm/labelSelector/matchLabels",
    "affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/labelSelector/matchLabels",
    "affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/podAffinityTerm/labelSelector/matchLabels",
    "affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution/labelSelector/matchLabels",
    "topologySpreadConstraints/labelSelector/matchLabels",
];

/// Changes them as the kustomization says.
pub fn run(layer: &Layer, entries: &mut Vec<Entry>) -> Result<(), Error> {
    let of = &layer.kustomization;
    patches::strategic(layer, entries)?;
    patches::both(layer, &of.patches, entries)?;
    if !of.namespace.is_empty() {
        namespace(&of.namespace, entries)?;
    }
    rename(&of.name_prefix, &of.name_suffix, entries);
    labels(layer, entries);
    for entry in entries.iter_mut() {
        annotate(&of.common_annotations, entry);
    }
    patches::both(layer, &of.patches_json6902, entries)?;
    for replicas in &of.replicas {
        scale(replicas, entries)?;
    }
    for image in &of.images {
        for entry in
            entries.iter_mut().filter(|entry| entry.id().kind != "CustomResourceDefinition")
        {
            retag(&mut entry.value, image);
        }
    }
    replacements::run(layer, entries)
}

fn namespace(name: &str, entries: &mut [Entry]) -> Result<(), Error> {
    for entry in entries.iter_mut() {
        let id = entry.id();
        entry.remember();
        match (id.kind.as_str(), id.group.as_str()) {
            ("Namespace", "") => entry.rename(name.to_owned()),
            _ if id.is_namespaced() => {
                entry.metadata().insert("namespace".into(), name.into());
            }
            _ => {}
        }
        let paths: &[&[&str]] = match id.kind.as_str() {
            "APIService" => &[&["spec", "service", "namespace"]],
            "CustomResourceDefinition" => {
                &[&["spec", "conversion", "webhook", "clientConfig", "service"]]
            }
            "RoleBinding" | "ClusterRoleBinding" => &[&["subjects"]],
            _ => &[],
        };
        for path in paths {
            visit(&mut entry.value, path, false, &mut |found| match found {
                Value::String(_) => *found = name.into(),
                Value::Object(service) => {
                    service.insert("namespace".into(), name.into());
                }
                // Others of the kustomization's own accounts are found by their names, later.
                Value::Array(subjects) => {
                    let default =
                        |s: &&mut Value| s["kind"] == "ServiceAccount" && s["name"] == "default";
                    for subject in subjects.iter_mut().filter(default) {
                        subject["namespace"] = name.into();
                    }
                }
                _ => {}
            });
        }
    }
    let ids: Vec<Id> = entries.iter().map(Entry::id).collect();
    for (at, id) in ids.iter().enumerate() {
        if ids[..at].iter().any(|other| other.is(id)) {
            return Err(Error::Wrong(format!(
                "namespace transformation produces ID conflict: {id}"
            )));
        }
    }
    Ok(())
}

fn rename(prefix: &str, suffix: &str, entries: &mut [Entry]) {
    for entry in entries.iter_mut() {
        let id = entry.id();
        if prefix.is_empty() && suffix.is_empty() || NEVER_RENAMED.contains(&id.kind.as_str()) {
            continue;
        }
        entry.remember();
        entry.rename(format!("{prefix}{}{suffix}", id.name));
        for (part, all) in [(prefix, &mut entry.prefixes), (suffix, &mut entry.suffixes)] {
            if !part.is_empty() {
                all.push(part.to_owned());
            }
        }
    }
}

fn labels(layer: &Layer, entries: &mut [Entry]) {
    let of = &layer.kustomization;
    for entry in entries.iter_mut() {
        let id = entry.id();
        // As if each were a transformer of its own.
        for more in &of.labels {
            put(entry, "metadata/labels", true, &more.pairs);
            if more.include_selectors {
                select(entry, &id, &more.pairs);
            } else if more.include_templates {
                template(entry, &id, "labels", &more.pairs);
            }
            for field in &more.fields {
                let fits = |want: &str, is: &str| want.is_empty() || want == is;
                if fits(&field.kind, &id.kind)
                    && fits(&field.group, &id.group)
                    && fits(&field.version, &id.version)
                {
                    put(entry, &field.path, field.create, &more.pairs);
                }
            }
        }
        if !of.common_labels.is_empty() {
            put(entry, "metadata/labels", true, &of.common_labels);
            select(entry, &id, &of.common_labels);
        }
    }
}

fn annotate(pairs: &BTreeMap<String, String>, entry: &mut Entry) {
    if pairs.is_empty() {
        return;
    }
    let id = entry.id();
    put(entry, "metadata/annotations", true, pairs);
    template(entry, &id, "annotations", pairs);
}

/// Labels of selectors, and of what they select.
fn select(entry: &mut Entry, id: &Id, pairs: &BTreeMap<String, String>) {
    template(entry, id, "labels", pairs);
    let (group, kind) = (id.group.as_str(), id.kind.as_str());
    match (group, kind) {
        ("", "Service" | "ReplicationController") if id.version == "v1" => {
            put(entry, "spec/selector", true, pairs);
        }
        (_, "Deployment" | "ReplicaSet" | "DaemonSet") | ("apps", "StatefulSet") => {
            put(entry, "spec/selector/matchLabels", true, pairs);
        }
        ("batch", "Job") | ("policy", "PodDisruptionBudget") => {
            put(entry, "spec/selector/matchLabels", false, pairs);
        }
        ("batch", "CronJob") => {
            put(entry, "spec/jobTemplate/spec/selector/matchLabels", false, pairs);
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            for path in
                ["spec/podSelector", "spec/ingress/from/podSelector", "spec/egress/to/podSelector"]
            {
                put(entry, &format!("{path}/matchLabels"), false, pairs);
            }
        }
        _ => {}
    }
    if matches!((group, kind), ("apps", "Deployment" | "StatefulSet")) {
        for path in AFFINE {
            put(entry, &format!("spec/template/spec/{path}"), false, pairs);
        }
    }
    if (group, kind) == ("apps", "StatefulSet") {
        put(entry, "spec/volumeClaimTemplates[]/metadata/labels", true, pairs);
    }
}

/// Labels or annotations of the pods that others make.
fn template(entry: &mut Entry, id: &Id, field: &str, pairs: &BTreeMap<String, String>) {
    match id.kind.as_str() {
        "ReplicationController"
        | "Deployment"
        | "ReplicaSet"
        | "DaemonSet"
        | "StatefulSet"
        | "Job" => {
            put(entry, &format!("spec/template/metadata/{field}"), true, pairs);
        }
        "CronJob" => {
            put(entry, &format!("spec/jobTemplate/metadata/{field}"), true, pairs);
            put(entry, &format!("spec/jobTemplate/spec/template/metadata/{field}"), true, pairs);
        }
        _ => {}
    }
}

fn put(entry: &mut Entry, path: &str, create: bool, pairs: &BTreeMap<String, String>) {
    if pairs.is_empty() {
        return;
    }
    let parts = parts(path, '/');
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    visit(&mut entry.value, &parts, create, &mut |found| {
        if found.is_null() {
            *found = json!({});
        }
        if let Some(map) = found.as_object_mut() {
            map.extend(pairs.iter().map(|(key, value)| (key.clone(), value.clone().into())));
        }
    });
}

fn scale(replicas: &Replicas, entries: &mut [Entry]) -> Result<(), Error> {
    const SCALED: [&str; 4] = ["Deployment", "ReplicationController", "ReplicaSet", "StatefulSet"];
    let mut found = false;
    for entry in entries.iter_mut() {
        let id = entry.id();
        let named = id.name == replicas.name
            || entry.before.iter().any(|before| before.name == replicas.name);
        if named && SCALED.contains(&id.kind.as_str()) {
            visit(&mut entry.value, &["spec", "replicas"], true, &mut |count| {
                *count = replicas.count.into();
            });
            found = true;
        }
    }
    if found {
        return Ok(());
    }
    Err(Error::Wrong(format!(
        "resource with name {} does not match a config with the following GVK [Deployment.[noVer].[noGrp], ReplicationController.[noVer].[noGrp], ReplicaSet.[noVer].[noGrp], StatefulSet.[noVer].[noGrp]]",
        replicas.name
    )))
}

/// Changes images of containers, wherever they are in the object.
fn retag(value: &mut Value, image: &Image) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                if let ("containers" | "initContainers", Value::Array(containers)) =
                    (key.as_str(), &mut *inner)
                {
                    for container in containers {
                        if let Some(text) = container.get("image").and_then(Value::as_str) {
                            let new = renamed(text, image);
                            container["image"] = new.into();
                        }
                    }
                } else {
                    retag(inner, image);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| retag(item, image)),
        _ => {}
    }
}

fn renamed(text: &str, image: &Image) -> String {
    let (rest, digest) = text.split_once('@').map_or((text, ""), |(rest, digest)| (rest, digest));
    // A colon before the last slash is of a registry's port.
    let at = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[at..].find(':') {
        Some(colon) => (&rest[..at + colon], &rest[at + colon + 1..]),
        None => (rest, ""),
    };
    if name != image.name {
        return text.to_owned();
    }
    let name = if image.new_name.is_empty() { name } else { &image.new_name };
    let (mut tag, mut digest) = (tag.to_owned(), digest.to_owned());
    if !image.new_tag.is_empty() {
        (tag, digest) = (image.new_tag.clone(), String::new());
    }
    if !image.tag_suffix.is_empty() {
        tag.push_str(&image.tag_suffix);
        digest.clear();
    }
    if !image.digest.is_empty() {
        // Of both, the digest is what says which image it is.
        digest.clone_from(&image.digest);
        tag = image.new_tag.clone();
    }
    let mut out = name.to_owned();
    if !tag.is_empty() {
        out.push_str(&format!(":{tag}"));
    }
    if !digest.is_empty() {
        out.push_str(&format!("@{digest}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_renamed() {
        let image = |new_name: &str, new_tag: &str, digest: &str| Image {
            name: "reg:5000/app".into(),
            new_name: new_name.into(),
            new_tag: new_tag.into(),
            digest: digest.into(),
            ..Image::default()
        };
        let cases = [
            ("reg:5000/app", image("", "2", ""), "reg:5000/app:2"),
            ("reg:5000/app:1", image("x/y", "", ""), "x/y:1"),
            ("reg:5000/app:1@sha256:aa", image("", "2", ""), "reg:5000/app:2"),
            ("reg:5000/app:1", image("", "", "sha256:bb"), "reg:5000/app@sha256:bb"),
            ("reg:5000/apple:1", image("", "2", ""), "reg:5000/apple:1"),
        ];
        for (text, image, want) in cases {
            assert_eq!(renamed(text, &image), want, "{text}");
        }
    }
}
