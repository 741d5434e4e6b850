//! Rules for persistent volumes, claims on them, and storage classes.
//!
//! Source: `pkg/apis/core/validation/validation.go`, `pkg/apis/storage/validation/validation.go`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::container::quantity;
use super::core::immutable;
use super::pod_update::difference;
use super::volume_source::{self, Owner};
use super::{label_selector, mistakes, one_of};
use crate::zero::Zero;

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The sources in the order in which upstream looks at them: of two, the later one is refused.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_MAX_BYTES: usize = 256 * 1024;

fn access_modes(spec: &Value, path: &Path, missing: &str, errors: &mut ErrorList) {
    let (modes, at) = (&spec["accessModes"], path.child("accessModes"));
    if modes.items().is_empty() {
        errors.push(Error::required(&at, missing));
    }
    for mode in modes.texts() {
        one_of(errors, &at, mode, &MODES);
    }
    if modes.texts().any(|m| m == "ReadWriteOncePod")
        && modes.texts().any(|m| m != "ReadWriteOncePod")
    {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(&at, detail));
    }
}

fn positive(value: &Value, path: &Path, errors: &mut ErrorList) {
    if quantity(value).is_some_and(|amount| amount.signum() <= 0) {
        errors.push(Error::invalid(path, value.clone(), "must be greater than zero"));
    }
}

fn class_and_mode(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let class = spec["storageClassName"].text();
    if !class.is_empty() {
        mistakes(errors, &path.child("storageClassName"), class, names::dns_subdomain(class));
    }
    if spec["volumeMode"].is_set() {
        let known = ["Block", "Filesystem"];
        one_of(errors, &path.child("volumeMode"), spec["volumeMode"].text(), &known);
    }
}

/// The spec of a claim, also within a template.
pub fn claim_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    access_modes(spec, path, "at least 1 access mode is required", errors);
    label_selector(errors, &path.child("selector"), &spec["selector"]);
    let (request, at) = (&spec["resources"]["requests"]["storage"], path.child("resources"));
    if request.is_null() {
        errors.push(Error::required(&at.key("storage"), ""));
    } else {
        positive(request, &at.key("storage"), errors);
    }
    class_and_mode(spec, path, errors);
    let class = spec["volumeAttributesClassName"].text();
    if !class.is_empty() {
        let at = path.child("volumeAttributesClassName");
        mistakes(errors, &at, class, names::dns_subdomain(class));
    }
    data_sources(spec, path, errors);
}

/// What a claim's volume begins with, named in the old way, in the new one, or in both alike.
fn data_sources(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (old, new) = (&spec["dataSource"], &spec["dataSourceRef"]);
    for key in ["dataSource", "dataSourceRef"] {
        if spec[key].is_set() {
            data_source(&spec[key], &path.child(key), errors);
        }
    }
    let namespace = new["namespace"].text();
    if !namespace.is_empty() {
        let at = path.child("dataSourceRef").child("namespace");
        mistakes(errors, &at, namespace, names::dns_label(namespace));
    }
    if old.is_null() || new.is_null() {
        return;
    }
    let shown = path.child("dataSource").to_string();
    let same = ["apiGroup", "kind", "name"].iter().all(|key| old[*key].text() == new[*key].text());
    if !namespace.is_empty() {
        let detail = "may not be specified when dataSourceRef.namespace is specified";
        errors.push(Error::invalid(path, shown, detail));
    } else if !same {
        errors.push(Error::invalid(path, shown, "must match dataSourceRef"));
    }
}

fn data_source(source: &Value, path: &Path, errors: &mut ErrorList) {
    for key in ["name", "kind"] {
        if source[key].text().is_empty() {
            errors.push(Error::required(&path.child(key), ""));
        }
    }
    let (group, kind) = (source["apiGroup"].text(), source["kind"].text());
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(Error::invalid(path, kind, detail));
    }
    if !group.is_empty() {
        mistakes(errors, &path.child("apiGroup"), group, names::dns_subdomain(group));
    }
}

/// A changed claim: only its size and attributes class change, and its volume once.
pub fn claim_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    const STORAGE: &str = "/spec/resources/requests/storage";
    let (mut fixed, before) = (new["spec"].clone(), &old["spec"]);
    let mut was = before.clone();
    let take = |key: &str, from: &Value, to: &mut Value| match from.get(key) {
        Some(value) => to[key] = value.clone(),
        None => drop(to.as_object_mut().and_then(|map| map.remove(key))),
    };
    if before["volumeName"].text().is_empty() {
        take("volumeName", &fixed.clone(), &mut was);
    }
    // A class may be given to a claim that never had one.
    if before["storageClassName"].is_null() {
        take("storageClassName", &fixed.clone(), &mut was);
    }
    take("volumeAttributesClassName", &was.clone(), &mut fixed);
    let (size, size_before) = (new.pointer(STORAGE), old.pointer(STORAGE));
    if new["status"]["phase"] == "Bound"
        && let (Some(wanted), Some(old)) =
            (fixed.pointer_mut("/resources/requests/storage"), size_before)
    {
        *wanted = old.clone();
    }
    if fixed != was {
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
            difference(&was, &fixed).join("\n")
        );
        errors.push(Error::forbidden(&Path::new("spec"), detail));
    }
    let amount = |value: Option<&Value>| value.and_then(quantity);
    let actual = amount(new.pointer("/status/capacity/storage"));
    if let (Some(size), Some(before)) = (amount(size), amount(size_before))
        && size < before
        && actual.is_some_and(|actual| size <= actual)
    {
        let at = Path::new("spec").child("resources").child("requests").child("storage");
        errors.push(Error::forbidden(&at, "field can not be less than status.capacity"));
    }
    let class = "volumeAttributesClassName";
    if before[class].is_set() && new["spec"][class].is_null() {
        let detail = "update from non-nil value to nil is forbidden";
        errors.push(Error::forbidden(&Path::new("spec").child(class), detail));
    }
    let mode = Path::new("volumeMode");
    immutable(&mode, &new["spec"]["volumeMode"], &before["volumeMode"], errors);
}

/// A persistent volume.
pub fn volume(volume: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    access_modes(spec, &path, "", errors);
    let (capacity, at) = (&spec["capacity"], path.child("capacity"));
    if capacity.entries().next().is_none() {
        errors.push(Error::required(&at, ""));
    }
    if capacity["storage"].is_null() || capacity.entries().count() > 1 {
        errors.push(Error::not_supported(&at, capacity.clone(), &["storage"]));
    }
    for (name, value) in capacity.entries() {
        positive(value, &at.key(name), errors);
    }
    let (policy, at) =
        (spec["persistentVolumeReclaimPolicy"].text(), path.child("persistentVolumeReclaimPolicy"));
    if !policy.is_empty() {
        one_of(errors, &at, policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = &spec["nodeAffinity"];
    if affinity.is_set() {
        let at = path.child("nodeAffinity").child("required");
        if affinity["required"].is_null() {
            errors.push(Error::required(&at, "must specify required node constraints"));
        } else {
            super::affinity::node_selector(&affinity["required"], &at, errors);
        }
    }
    sources(spec, meta::name(volume), &path, errors);
    let root = spec["hostPath"]["path"].text();
    if spec["hostPath"].is_set() && policy == "Recycle" && root.trim_end_matches('/').is_empty() {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(Error::forbidden(&at, detail));
    }
    class_and_mode(spec, &path, errors);
    if let Some(class) = spec["volumeAttributesClassName"].as_str() {
        let at = path.child("volumeAttributesClassName");
        if class.is_empty() {
            errors.push(Error::required(&at, "an empty string is disallowed"));
        } else {
            mistakes(errors, &at, class, names::dns_subdomain(class));
        }
        if spec["csi"].is_null() {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.push(Error::required(&path.child("csi"), detail));
        }
    }
}

fn sources(spec: &Value, name: &str, path: &Path, errors: &mut ErrorList) {
    let mut count = 0;
    for kind in SOURCES.iter().filter(|kind| spec[**kind].is_set()) {
        if count > 0 {
            let detail = "may not specify more than 1 volume type";
            errors.push(Error::forbidden(&path.child(kind), detail));
            continue;
        }
        count += 1;
        // Upstream calls this one so.
        let shown = if *kind == "gcePersistentDisk" { "persistentDisk" } else { kind };
        let (source, at) = (&spec[*kind], path.child(shown));
        volume_source::validate(kind, source, &at, Owner::Persistent(name), errors);
        if *kind == "local" && spec["nodeAffinity"].is_null() {
            let detail = "Local volume requires node affinity";
            errors.push(Error::required(&path.child("nodeAffinity"), detail));
        }
    }
    if count == 0 {
        errors.push(Error::required(path, "must specify a volume type"));
    }
}

/// A changed persistent volume.
pub fn volume_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    let source = |volume: &Value| -> Value {
        let fields = volume["spec"].entries().filter(|(key, _)| SOURCES.contains(&key.as_str()));
        fields
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let (now, before) = (source(new), source(old));
    if now != before {
        let detail = format!(
            "spec.persistentvolumesource is immutable after creation\n{}",
            difference(&before, &now).join("\n")
        );
        errors.push(Error::forbidden(&Path::new("spec").child("persistentvolumesource"), detail));
    }
    immutable(
        &Path::new("volumeMode"),
        &new["spec"]["volumeMode"],
        &old["spec"]["volumeMode"],
        errors,
    );
    let affinity = &old["spec"]["nodeAffinity"];
    if affinity.is_set() {
        let at = Path::new("spec").child("nodeAffinity");
        immutable(&at, &new["spec"]["nodeAffinity"], affinity, errors);
    }
}

/// The driver that makes volumes of a class.
pub fn provisioner(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    } else {
        mistakes(errors, path, name, names::qualified_name(&name.to_lowercase()));
    }
}

/// What a class tells its driver.
pub fn parameters(parameters: &Value, path: &Path, errors: &mut ErrorList) {
    if parameters.entries().count() > PARAMETERS_MAX {
        errors.push(Error::too_long(path, PARAMETERS_MAX));
    }
    if parameters.entries().any(|(key, _)| key.is_empty()) {
        errors.push(Error::invalid(path, "", "field can not be empty."));
    }
    let bytes: usize =
        parameters.entries().map(|(key, value)| key.len() + value.text().len()).sum();
    if bytes > PARAMETERS_MAX_BYTES {
        errors.push(Error::too_long(path, PARAMETERS_MAX_BYTES));
    }
}

fn topologies(terms: &[Value], path: &Path, errors: &mut ErrorList) {
    for (index, term) in terms.iter().enumerate() {
        let mut seen = std::collections::BTreeSet::new();
        let expressions = term["matchLabelExpressions"].items();
        for (number, expression) in expressions.iter().enumerate() {
            let at = path.index(index).child("matchLabelExpressions").index(number);
            let key = expression["key"].text();
            mistakes(errors, &at.child("key"), key, names::qualified_name(key));
            if expression["values"].items().is_empty() {
                errors.push(Error::required(&at.child("values"), ""));
            }
            let mut values = std::collections::BTreeSet::new();
            for (index, value) in expression["values"].texts().enumerate() {
                if !values.insert(value) {
                    errors.push(Error::duplicate(&at.child("values").index(index), value));
                }
            }
            if !seen.insert(key) {
                errors.push(Error::duplicate(&at.child("key"), key));
            }
        }
    }
}

/// A storage class.
pub fn class(class: &Value, errors: &mut ErrorList) {
    provisioner(class["provisioner"].text(), &Path::new("provisioner"), errors);
    parameters(&class["parameters"], &Path::new("parameters"), errors);
    topologies(class["allowedTopologies"].items(), &Path::new("allowedTopologies"), errors);
    if class["reclaimPolicy"].is_set() {
        let at = Path::new("reclaimPolicy");
        one_of(errors, &at, class["reclaimPolicy"].text(), &["Delete", "Retain"]);
    }
    let (mode, at) = (&class["volumeBindingMode"], Path::new("volumeBindingMode"));
    if mode.is_null() {
        errors.push(Error::required(&at, ""));
    } else {
        one_of(errors, &at, mode.text(), &["Immediate", "WaitForFirstConsumer"]);
    }
}

/// A changed storage class: hardly anything may change.
pub fn class_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if new[key] != old[key] {
            let detail = format!("updates to {key} are forbidden.");
            errors.push(Error::forbidden(&Path::new(key), detail));
        }
    }
    let key = "volumeBindingMode";
    immutable(&Path::new(key), &new[key], &old[key], errors);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn claims_are_checked() {
        let spec = |extra: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            spec
        };
        for (spec, want) in [
            (spec(json!({})), ""),
            (
                spec(json!({"accessModes": []})),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (
                spec(json!({"accessModes": ["X"]})),
                "spec.accessModes: Unsupported value: \"X\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            (
                spec(json!({"accessModes": ["ReadWriteOnce", "ReadWriteOncePod"]})),
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (spec(json!({"resources": {}})), "spec.resources[storage]: Required value"),
            (
                spec(json!({"resources": {"requests": {"storage": "0"}}})),
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                spec(json!({"volumeMode": "Disk"})),
                "spec.volumeMode: Unsupported value: \"Disk\": supported values: \"Block\", \"Filesystem\"",
            ),
        ] {
            assert_eq!(told(|e| claim_spec(&spec, &Path::new("spec"), e)).join("; "), want);
        }
    }

    #[test]
    fn bound_claims_only_grow() {
        let claim = |size: &str, name: &str, phase: &str| {
            json!({"spec": {"volumeName": name, "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase, "capacity": {"storage": "2Gi"}}})
        };
        let update = |new: &Value, old: &Value| told(|e| claim_update(new, old, e)).join("; ");
        // The volume is set once; a bound claim may ask for more.
        assert_eq!(update(&claim("2Gi", "v", "Pending"), &claim("2Gi", "", "Pending")), "");
        assert_eq!(update(&claim("3Gi", "v", "Bound"), &claim("2Gi", "v", "Bound")), "");
        let got = update(&claim("3Gi", "v", "Pending"), &claim("2Gi", "v", "Pending"));
        assert!(got.starts_with("spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n"), "{got}");
        assert_eq!(
            update(&claim("1Gi", "v", "Bound"), &claim("3Gi", "v", "Bound")),
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
        );
    }

    #[test]
    fn volumes_are_of_one_type() {
        let volume_of = |extra: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"spec": spec})
        };
        for (object, want) in [
            (volume_of(json!({})), ""),
            (
                volume_of(json!({"hostPath": null})),
                "spec: Required value: must specify a volume type",
            ),
            (
                volume_of(json!({"nfs": {"server": "s", "path": "/"}})),
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ),
            (
                volume_of(json!({"hostPath": null, "local": {"path": "/x"}})),
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (
                volume_of(json!({"capacity": {}})),
                "spec.capacity: Required value; spec.capacity: Unsupported value: {}: supported values: \"storage\"",
            ),
            (
                volume_of(
                    json!({"persistentVolumeReclaimPolicy": "Recycle", "hostPath": {"path": "/"}}),
                ),
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ),
        ] {
            assert_eq!(told(|e| volume(&object, e)).join("; "), want);
        }
        let got = told(|e| {
            volume_update(
                &volume_of(json!({"hostPath": {"path": "/y"}})),
                &volume_of(json!({})),
                e,
            );
        });
        assert!(got[0].starts_with("spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n"), "{got:?}");
    }

    #[test]
    fn classes_hardly_change() {
        let old = json!({"provisioner": "a/b", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
        assert_eq!(told(|e| class(&old, e)), Vec::<String>::new());
        assert_eq!(
            told(|e| class(&json!({"reclaimPolicy": "Keep"}), e)),
            [
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Retain\"",
                "volumeBindingMode: Required value"
            ]
        );
        let new = json!({"provisioner": "a/c", "parameters": {"x": "y"}, "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer"});
        assert_eq!(
            told(|e| class_update(&new, &old, e)),
            [
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"
            ]
        );
    }
}
