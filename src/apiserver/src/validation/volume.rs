//! Rules for volumes and their mounts.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::container::{field_reference, local_path, quantity, resource_reference};
use super::volume_source::{self, Owner};
use super::{metadata, mistakes, one_of, storage};
use crate::zero::Zero;

/// The longest key of a variable in a file.
const FILE_KEY_MAX: usize = 128;
const FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// The volumes of a pod by name, with whether each is a claim (which may be a block device), and those that
/// start empty.
pub struct Volumes(BTreeMap<String, bool>, BTreeSet<String>);

impl Volumes {
    /// Checks the list and remembers the names. `pod` is the name of the pod, if it is no template.
    pub fn validate(
        volumes: &Value,
        pod: Option<&str>,
        path: &Path,
        errors: &mut ErrorList,
    ) -> Self {
        let (mut known, mut empty) = (BTreeMap::new(), BTreeSet::new());
        let brought: BTreeSet<String> = volumes
            .items()
            .iter()
            .filter(|volume| volume["ephemeral"].is_set())
            .filter_map(|volume| claim_name(pod, volume))
            .collect();
        for (index, volume) in volumes.items().iter().enumerate() {
            let path = path.index(index);
            let name = volume["name"].text();
            if volume["emptyDir"].is_set() {
                empty.insert(name.to_owned());
            }
            let before = errors.len();
            source(volume, pod, &path, errors);
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), ""));
            } else {
                mistakes(errors, &path.child("name"), name, names::dns_label(name));
            }
            if known.contains_key(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            let claim = &volume["persistentVolumeClaim"];
            if errors.len() == before {
                known.insert(name.to_owned(), claim.is_set() || volume["ephemeral"].is_set());
            }
            if claim.is_set() && brought.contains(claim["claimName"].text()) {
                let at = path.child("persistentVolumeClaim").child("claimName");
                let detail = "must not reference a PVC that gets created for an ephemeral volume";
                errors.push(Error::invalid(&at, claim["claimName"].text(), detail));
            }
        }
        Self(known, empty)
    }

    /// Checks a reference to a variable in a file that a container wrote.
    pub fn validate_file_key(&self, reference: &Value, path: &Path, errors: &mut ErrorList) {
        let (key, name) = (reference["key"].text(), reference["volumeName"].text());
        let at = path.child("key");
        if key.is_empty() {
            errors.push(Error::required(&at, ""));
        } else {
            mistakes(errors, &at, key, names::env_var_name(key));
            if key.len() > FILE_KEY_MAX {
                errors.push(Error::too_long(&at, FILE_KEY_MAX));
            }
        }
        let at = path.child("volumeName");
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if !self.0.contains_key(name) {
            errors.push(Error::not_found(&at, name));
        } else if !self.1.contains(name) {
            errors.push(Error::invalid(&at, name, "referenced volume must be of type emptyDir"));
        }
        let file = reference["path"].text();
        if file.is_empty() {
            errors.push(Error::required(&path.child("path"), ""));
        } else {
            local_path(file, &path.child("path"), errors);
        }
    }

    /// Checks a container's mounts and devices.
    pub fn validate_mounts(&self, container: &Value, path: &Path, errors: &mut ErrorList) {
        self.mounts(container, &path.child("volumeMounts"), errors);
        self.devices(container, &path.child("volumeDevices"), errors);
    }

    fn mounts(&self, container: &Value, list: &Path, errors: &mut ErrorList) {
        let devices = container["volumeDevices"].items();
        let mut points = HashSet::new();
        for (index, mount) in container["volumeMounts"].items().iter().enumerate() {
            let path = list.index(index);
            let (name, at) = (mount["name"].text(), path.child("name"));
            if name.is_empty() {
                errors.push(Error::required(&at, ""));
            }
            if !self.0.contains_key(name) {
                errors.push(Error::not_found(&at, name));
            }
            let (point, place) = (mount["mountPath"].text(), path.child("mountPath"));
            if point.is_empty() {
                errors.push(Error::required(&place, ""));
            }
            if !points.insert(point) {
                errors.push(Error::invalid(&place, point, "must be unique"));
            }
            if devices.iter().any(|device| device["name"] == name) {
                let detail = "must not already exist in volumeDevices";
                errors.push(Error::invalid(&at, name, detail));
            }
            if devices.iter().any(|device| device["devicePath"] == point) {
                let detail = "must not already exist as a path in volumeDevices";
                errors.push(Error::invalid(&place, point, detail));
            }
            let (sub, expression) = (mount["subPath"].text(), mount["subPathExpr"].text());
            // Upstream names the list, not the mount, from here on.
            local_path(sub, &list.child("subPath"), errors);
            if !expression.is_empty() {
                if !sub.is_empty() {
                    let detail = "subPathExpr and subPath are mutually exclusive";
                    errors.push(Error::invalid(&path.child("subPathExpr"), expression, detail));
                }
                local_path(expression, &list.child("subPathExpr"), errors);
            }
            propagation(mount, container, list, errors);
            recursive_read_only(mount, &list.child("recursiveReadOnly"), errors);
        }
    }

    fn devices(&self, container: &Value, list: &Path, errors: &mut ErrorList) {
        let mounts = container["volumeMounts"].items();
        let (mut names, mut places) = (HashSet::new(), HashSet::new());
        for (index, device) in container["volumeDevices"].items().iter().enumerate() {
            let path = list.index(index);
            let (name, at) = (device["name"].text(), path.child("name"));
            if name.is_empty() {
                errors.push(Error::required(&at, ""));
            } else if !names.insert(name) {
                errors.push(Error::invalid(&at, name, "must be unique"));
            }
            match self.0.get(name) {
                None => errors.push(Error::not_found(&at, name)),
                Some(false) => errors.push(Error::invalid(
                    &at,
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                )),
                Some(true) => {}
            }
            let (place, point) = (path.child("devicePath"), device["devicePath"].text());
            if point.is_empty() {
                errors.push(Error::required(&place, ""));
            }
            if places.contains(point) {
                errors.push(Error::invalid(&place, point, "must be unique"));
            }
            if point.split('/').any(|part| part == "..") {
                errors.push(Error::invalid(&place, point, "can not contain backsteps ('..')"));
            } else {
                places.insert(point);
            }
            if mounts.iter().any(|mount| mount["name"] == name) {
                let detail = "must not already exist in volumeMounts";
                errors.push(Error::invalid(&at, name, detail));
            }
            if mounts.iter().any(|mount| mount["mountPath"] == point) {
                let detail = "must not already exist as a path in volumeMounts";
                errors.push(Error::invalid(&place, point, detail));
            }
        }
    }
}

fn recursive_read_only(mount: &Value, path: &Path, errors: &mut ErrorList) {
    if mount["recursiveReadOnly"].is_null() {
        return;
    }
    match mount["recursiveReadOnly"].text() {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount["readOnly"].flag() {
                let detail = "may only be specified when readOnly is true";
                errors.push(Error::forbidden(path, detail));
            }
            if !matches!(mount["mountPropagation"].text(), "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.push(Error::forbidden(path, detail));
            }
        }
        other => {
            let known = ["Disabled", "Enabled", "IfPossible"];
            errors.push(Error::not_supported(path, other, &known));
        }
    }
}

fn propagation(mount: &Value, container: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = mount["mountPropagation"].text();
    if kind.is_empty() {
        return;
    }
    let path = path.child("mountPropagation");
    one_of(errors, &path, kind, &["Bidirectional", "HostToContainer", "None"]);
    if kind == "Bidirectional" && !container["securityContext"]["privileged"].flag() {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(Error::forbidden(&path, detail));
    }
}

/// The sources in the order in which upstream looks at them: of two, the later one is refused.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// The name of the claim that a volume of the pod brings along.
fn claim_name(pod: Option<&str>, volume: &Value) -> Option<String> {
    let (pod, name) = (pod?, volume["name"].text());
    (!pod.is_empty() && !name.is_empty()).then(|| format!("{pod}-{name}"))
}

fn source(volume: &Value, pod: Option<&str>, at: &Path, errors: &mut ErrorList) {
    let mut given = 0;
    for kind in SOURCES.iter().filter(|kind| volume[**kind].is_set()) {
        let (source, path) = (&volume[*kind], at.child(kind));
        if given > 0 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        given += 1;
        match *kind {
            "emptyDir" => {
                let limit = quantity(&source["sizeLimit"]);
                if limit.is_some_and(|limit| limit.signum() < 0) {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    errors.push(Error::forbidden(&path.child("sizeLimit"), detail));
                }
            }
            "secret" | "configMap" => {
                let name = if *kind == "secret" { "secretName" } else { "name" };
                if source[name].text().is_empty() {
                    errors.push(Error::required(&path.child(name), ""));
                }
                mode(source, "defaultMode", &path, errors);
                key_paths(source, &path, errors);
            }
            "downwardAPI" => {
                mode(source, "defaultMode", &path, errors);
                downward_files(source, &path, errors);
            }
            "projected" => {
                mode(source, "defaultMode", &path, errors);
                super::projected::sources(source, &path, errors);
            }
            "ephemeral" => {
                claim_template(source, &path.child("volumeClaimTemplate"), errors);
                if let Some(claim) = claim_name(pod, volume) {
                    for told in names::dns_subdomain(&claim) {
                        let detail = format!("PVC name {claim:?}: {told}");
                        let name = volume["name"].text();
                        errors.push(Error::invalid(&at.child("name"), name, detail));
                    }
                }
            }
            "image" => {
                // A template may leave the reference to whoever fills it in.
                if pod.is_some() && source["reference"].text().is_empty() {
                    errors.push(Error::required(&path.child("reference"), ""));
                }
                if source["pullPolicy"].is_set() {
                    let policies = ["Always", "IfNotPresent", "Never"];
                    let at = path.child("pullPolicy");
                    one_of(errors, &at, source["pullPolicy"].text(), &policies);
                }
            }
            _ => volume_source::validate(kind, source, &path, Owner::Pod, errors),
        }
    }
    if given == 0 {
        errors.push(Error::required(at, "must specify a volume type"));
    }
}

/// The claim that a pod brings along; only labels and annotations are taken over from its metadata.
fn claim_template(source: &Value, path: &Path, errors: &mut ErrorList) {
    let template = &source["volumeClaimTemplate"];
    if template.is_null() {
        errors.push(Error::required(path, ""));
        return;
    }
    let (meta, at) = (&template["metadata"], path.child("metadata"));
    metadata::annotations(&meta["annotations"], &at.child("annotations"), errors);
    metadata::labels(&meta["labels"], &at.child("labels"), errors);
    for (key, value) in meta.entries() {
        let taken = matches!(key.as_str(), "annotations" | "labels" | "creationTimestamp");
        if !taken && value.is_set() {
            errors.push(Error::forbidden(&at.child(key), "cannot be set"));
        }
    }
    storage::claim_spec(&template["spec"], &path.child("spec"), errors);
}

fn mode(source: &Value, key: &str, path: &Path, errors: &mut ErrorList) {
    if source[key].is_set() && !(0..=0o777).contains(&source[key].int()) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(Error::invalid(&path.child(key), source[key].int(), detail));
    }
}

pub(super) fn file_path(text: &str, path: &Path, errors: &mut ErrorList) {
    local_path(text, path, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.push(Error::invalid(path, text, "must not start with '..'"));
    }
}

pub(super) fn key_paths(source: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, item) in source["items"].items().iter().enumerate() {
        let path = path.child("items").index(index);
        if item["key"].text().is_empty() {
            errors.push(Error::required(&path.child("key"), ""));
        }
        if item["path"].text().is_empty() {
            errors.push(Error::required(&path.child("path"), ""));
        }
        file_path(item["path"].text(), &path.child("path"), errors);
        mode(item, "mode", &path, errors);
    }
}

pub(super) fn downward_files(source: &Value, path: &Path, errors: &mut ErrorList) {
    // Upstream names the volume here, not the file.
    for item in source["items"].items() {
        if item["path"].text().is_empty() {
            errors.push(Error::required(&path.child("path"), ""));
        }
        file_path(item["path"].text(), &path.child("path"), errors);
        match (item["fieldRef"].is_set(), item["resourceFieldRef"].is_set()) {
            (true, true) => {
                let at = path.child("fieldRef");
                field_reference(&item["fieldRef"], &at, &FIELDS, errors);
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(Error::invalid(path, "resource", detail));
            }
            (true, false) => {
                field_reference(&item["fieldRef"], &path.child("fieldRef"), &FIELDS, errors);
            }
            (false, true) => {
                let at = path.child("resourceFieldRef");
                resource_reference(&item["resourceFieldRef"], &at, true, errors);
            }
            (false, false) => {
                let detail = "one of fieldRef and resourceFieldRef is required";
                errors.push(Error::required(path, detail));
            }
        }
        mode(item, "mode", path, errors);
    }
}
