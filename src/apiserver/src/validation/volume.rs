//! Rules for volumes and their mounts.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::container::{field_reference, local_path, quantity, resource_reference};
use super::{mistakes, one_of};
use crate::zero::Zero;

/// The longest key of a variable in a file.
const FILE_KEY_MAX: usize = 128;
const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
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
    /// Checks the list and remembers the names.
    pub fn validate(volumes: &Value, path: &Path, errors: &mut ErrorList) -> Self {
        let (mut known, mut empty) = (BTreeMap::new(), BTreeSet::new());
        for (index, volume) in volumes.items().iter().enumerate() {
            let path = path.index(index);
            let name = volume["name"].text();
            if volume["emptyDir"].is_set() {
                empty.insert(name.to_owned());
            }
            let before = errors.len();
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), ""));
            } else {
                mistakes(errors, &path.child("name"), name, names::dns_label(name));
            }
            if known.contains_key(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            source(volume, &path, errors);
            if errors.len() == before {
                let claim =
                    volume["persistentVolumeClaim"].is_set() || volume["ephemeral"].is_set();
                known.insert(name.to_owned(), claim);
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
        let mut points = HashSet::new();
        for (index, mount) in container["volumeMounts"].items().iter().enumerate() {
            let path = path.child("volumeMounts").index(index);
            let name = mount["name"].text();
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), ""));
            } else if !self.0.contains_key(name) {
                errors.push(Error::not_found(&path.child("name"), name));
            }
            let point = mount["mountPath"].text();
            if point.is_empty() {
                errors.push(Error::required(&path.child("mountPath"), ""));
            } else if !points.insert(point) {
                errors.push(Error::invalid(&path.child("mountPath"), point, "must be unique"));
            }
            let (sub, expression) = (mount["subPath"].text(), mount["subPathExpr"].text());
            local_path(sub, &path.child("subPath"), errors);
            if !expression.is_empty() {
                if !sub.is_empty() {
                    let detail = "subPathExpr and subPath are mutually exclusive";
                    errors.push(Error::invalid(&path.child("subPathExpr"), expression, detail));
                }
                local_path(expression, &path.child("subPathExpr"), errors);
            }
            propagation(mount, container, &path, errors);
        }
        for (index, device) in container["volumeDevices"].items().iter().enumerate() {
            let path = path.child("volumeDevices").index(index);
            let name = device["name"].text();
            match self.0.get(name) {
                _ if name.is_empty() => errors.push(Error::required(&path.child("name"), "")),
                None => errors.push(Error::not_found(&path.child("name"), name)),
                Some(false) => errors.push(Error::invalid(
                    &path.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                )),
                Some(true) => {}
            }
            if device["devicePath"].text().is_empty() {
                errors.push(Error::required(&path.child("devicePath"), ""));
            }
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

fn source(volume: &Value, path: &Path, errors: &mut ErrorList) {
    let mut given = 0;
    for (kind, source) in volume.entries().filter(|(key, value)| *key != "name" && value.is_set()) {
        let path = path.child(kind);
        if given > 0 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        given += 1;
        match kind.as_str() {
            "emptyDir" => {
                let limit = quantity(&source["sizeLimit"]);
                if limit.is_some_and(|limit| limit.signum() < 0) {
                    let detail = "SizeLimit field must be a valid resource quantity";
                    errors.push(Error::forbidden(&path.child("sizeLimit"), detail));
                }
            }
            "hostPath" => host_path(source, &path, errors),
            "secret" => {
                if source["secretName"].text().is_empty() {
                    errors.push(Error::required(&path.child("secretName"), ""));
                }
                mode(source, "defaultMode", &path, errors);
                key_paths(source, &path, errors);
            }
            "configMap" => {
                if source["name"].text().is_empty() {
                    errors.push(Error::required(&path.child("name"), ""));
                }
                mode(source, "defaultMode", &path, errors);
                key_paths(source, &path, errors);
            }
            "downwardAPI" => {
                mode(source, "defaultMode", &path, errors);
                downward_files(source, &path, errors);
            }
            "projected" => projected(source, &path, errors),
            "persistentVolumeClaim" if source["claimName"].text().is_empty() => {
                errors.push(Error::required(&path.child("claimName"), ""));
            }
            "nfs" => {
                for key in ["server", "path"] {
                    if source[key].text().is_empty() {
                        errors.push(Error::required(&path.child(key), ""));
                    }
                }
                if !source["path"].text().starts_with('/') {
                    let text = source["path"].text();
                    errors.push(Error::invalid(
                        &path.child("path"),
                        text,
                        "must be an absolute path",
                    ));
                }
            }
            "csi" if source["driver"].text().is_empty() => {
                errors.push(Error::required(&path.child("driver"), ""));
            }
            "ephemeral" if source["volumeClaimTemplate"].is_null() => {
                errors.push(Error::required(&path.child("volumeClaimTemplate"), ""));
            }
            _ => {}
        }
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a volume type"));
    }
}

fn host_path(source: &Value, path: &Path, errors: &mut ErrorList) {
    let text = source["path"].text();
    if text.is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
        return;
    }
    if text.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(&path.child("path"), text, "must not contain '..'"));
    }
    one_of(errors, &path.child("type"), source["type"].text(), &HOST_PATH_TYPES);
}

fn mode(source: &Value, key: &str, path: &Path, errors: &mut ErrorList) {
    if source[key].is_set() && !(0..=0o777).contains(&source[key].int()) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(Error::invalid(&path.child(key), source[key].int(), detail));
    }
}

fn file_path(text: &str, path: &Path, errors: &mut ErrorList) {
    local_path(text, path, errors);
    if text.starts_with("..") && !text.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, text, "must not start with '..'"));
    }
}

fn key_paths(source: &Value, path: &Path, errors: &mut ErrorList) {
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

fn downward_files(source: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, item) in source["items"].items().iter().enumerate() {
        let path = path.child("items").index(index);
        if item["path"].text().is_empty() {
            errors.push(Error::required(&path.child("path"), ""));
        }
        file_path(item["path"].text(), &path.child("path"), errors);
        match (item["fieldRef"].is_set(), item["resourceFieldRef"].is_set()) {
            (true, true) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(Error::invalid(&path, "resource", detail));
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
                errors.push(Error::required(&path.child("fieldRef"), detail));
            }
        }
        mode(item, "mode", &path, errors);
    }
}

fn projected(source: &Value, path: &Path, errors: &mut ErrorList) {
    mode(source, "defaultMode", path, errors);
    for (index, source) in source["sources"].items().iter().enumerate() {
        let path = path.child("sources").index(index);
        for (kind, part) in source.entries().filter(|(_, part)| part.is_set()) {
            let path = path.child(kind);
            match kind.as_str() {
                "secret" | "configMap" => {
                    if part["name"].text().is_empty() {
                        errors.push(Error::required(&path.child("name"), ""));
                    }
                    key_paths(part, &path, errors);
                }
                "downwardAPI" => downward_files(part, &path, errors),
                "serviceAccountToken" => {
                    let seconds = part["expirationSeconds"].int();
                    let at = path.child("expirationSeconds");
                    if seconds < 600 {
                        let detail = "may not specify a duration less than 10 minutes";
                        errors.push(Error::invalid(&at, seconds, detail));
                    } else if seconds > 1 << 32 {
                        let detail = "may not specify a duration larger than 2^32 seconds";
                        errors.push(Error::invalid(&at, seconds, detail));
                    }
                    if part["path"].text().is_empty() {
                        errors.push(Error::required(&path.child("path"), ""));
                    } else {
                        file_path(part["path"].text(), &path.child("path"), errors);
                    }
                }
                _ => {}
            }
        }
        if source.entries().filter(|(_, part)| part.is_set()).count() > 1 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
        }
    }
}
