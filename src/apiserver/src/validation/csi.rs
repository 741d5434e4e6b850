//! Rules for storage drivers, attachments and capacities.
//!
//! Source: `pkg/apis/storage/validation/validation.go`.

use std::collections::BTreeSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::container::quantity;
use super::core::immutable;
use super::{label_selector, mistakes, non_negative, one_of, storage};
use crate::zero::Zero;

const DRIVER_NAME_MAX: usize = 63;
const NODE_ID_MAX: usize = 256;
const TOKEN_SECONDS_MIN: i64 = 600;
const UPDATE_SECONDS_MIN: i64 = 10;
const ERROR_MAX_BYTES: usize = 1024;
const METADATA_MAX_BYTES: usize = 256 * 1024;

/// A driver's name, in objects of others (`ValidateCSIDriverName`).
pub fn driver_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if name.len() > DRIVER_NAME_MAX {
        errors.push(Error::too_long(path, DRIVER_NAME_MAX));
    }
    let lower = name.to_lowercase();
    mistakes(errors, path, name, names::dns_subdomain(&lower));
}

/// The attachment of a volume, new (`old` is absent) or changed.
pub fn attachment(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    driver_name(spec["attacher"].text(), &path.child("attacher"), errors);
    let (source, at) = (&spec["source"], path.child("source"));
    match (source["inlineVolumeSpec"].is_set(), source["persistentVolumeName"].is_set()) {
        (false, false) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(Error::required(&at, detail));
        }
        (true, true) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(Error::forbidden(&at, detail));
        }
        (false, true) => {
            let name = source["persistentVolumeName"].text();
            let at = at.child("persistentVolumeName");
            if name.is_empty() {
                errors.push(Error::required(&at, ""));
            } else {
                mistakes(errors, &at, name, names::dns_subdomain(name));
            }
        }
        (true, false) => {}
    }
    let node = spec["nodeName"].text();
    mistakes(errors, &path.child("nodeName"), node, names::dns_subdomain(node));
    attachment_status(object, errors);
    if let Some(old) = old {
        immutable(&path, spec, &old["spec"], errors);
    }
}

fn attachment_status(object: &Value, errors: &mut ErrorList) {
    let (status, path) = (&object["status"], Path::new("status"));
    let bytes: usize =
        status["attachmentMetadata"].entries().map(|(k, v)| k.len() + v.text().len()).sum();
    if bytes > METADATA_MAX_BYTES {
        errors.push(Error::too_long(&path.child("attachmentMetadata"), METADATA_MAX_BYTES));
    }
    for key in ["attachError", "detachError"] {
        if status[key]["message"].text().len() > ERROR_MAX_BYTES {
            errors.push(Error::too_long(&path.child(key).child("message"), METADATA_MAX_BYTES));
        }
    }
}

/// A driver, new (`old` is absent) or changed.
pub fn driver(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if old.is_none() {
        let (name, at) = (meta::name(object), Path::new("metadata").child("name"));
        if name.len() > DRIVER_NAME_MAX {
            errors.push(Error::too_long(&at, DRIVER_NAME_MAX));
        }
    }
    // Upstream spells the first of them so.
    for (key, told) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if spec[key].is_null() {
            errors.push(Error::required(&path.child(told), ""));
        }
    }
    let policy = &spec["fsGroupPolicy"];
    if policy.is_set() {
        let known = ["File", "None", "ReadWriteOnceWithFSType"];
        one_of(errors, &path.child("fsGroupPolicy"), policy.text(), &known);
    }
    token_requests(spec["tokenRequests"].items(), &path.child("tokenRequests"), errors);
    for mode in spec["volumeLifecycleModes"].texts() {
        let at = path.child("volumeLifecycleModes");
        one_of(errors, &at, mode, &["Ephemeral", "Persistent"]);
    }
    let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
    if period.is_set() && period.int() < UPDATE_SECONDS_MIN {
        let detail = "must be greater than or equal to 10 seconds";
        let at = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.push(Error::invalid(&at, period.int(), detail));
    }
    if let Some(old) = old {
        for (key, told) in [
            ("attachRequired", "attachedRequired"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            immutable(&path.child(told), &spec[key], &old["spec"][key], errors);
        }
    }
}

fn token_requests(requests: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let (at, audience) = (path.index(index), request["audience"].text());
        if !seen.insert(audience) {
            errors.push(Error::duplicate(&at.child("audience"), audience));
            continue;
        }
        let (seconds, at) = (&request["expirationSeconds"], at.child("expirationSeconds"));
        if seconds.is_set() && seconds.int() < TOKEN_SECONDS_MIN {
            let detail = "may not specify a duration less than 10 minutes";
            errors.push(Error::invalid(&at, seconds.int(), detail));
        }
        if seconds.int() > 1 << 32 {
            let detail = "may not specify a duration larger than 2^32 seconds";
            errors.push(Error::invalid(&at, seconds.int(), detail));
        }
    }
}

/// The drivers of a node, new (`old` is absent) or changed.
pub fn node(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let path = Path::new("spec").child("drivers");
    let mut seen = BTreeSet::new();
    for (index, driver) in object["spec"]["drivers"].items().iter().enumerate() {
        let (at, name) = (path.index(index), driver["name"].text());
        driver_name(name, &at.child("name"), errors);
        match driver["nodeID"].text() {
            "" => errors.push(Error::required(&at.child("nodeID"), "")),
            id if id.len() > NODE_ID_MAX => {
                let detail = format!("must be {NODE_ID_MAX} characters or less");
                errors.push(Error::invalid(&at.child("nodeID"), id, detail));
            }
            _ => {}
        }
        let count = at.child("allocatable").child("count");
        non_negative(errors, &count, &driver["allocatable"]["count"]);
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        let mut keys = BTreeSet::new();
        for key in driver["topologyKeys"].texts() {
            if key.is_empty() {
                errors.push(Error::required(&at, ""));
            }
            if !keys.insert(key) {
                errors.push(Error::duplicate(&at, key));
            }
            mistakes(errors, &at, key, names::qualified_name(key));
        }
    }
    let fixed = |driver: &Value| {
        let mut driver = driver.clone();
        driver.as_object_mut().map(|map| map.remove("allocatable"));
        driver
    };
    let before = old.map_or(&[][..], |old| old["spec"]["drivers"].items());
    for driver in object["spec"]["drivers"].items() {
        for before in before.iter().filter(|before| before["name"] == driver["name"]) {
            immutable(&path, &fixed(driver), &fixed(before), errors);
        }
    }
}

/// What is left of a class in a segment, new (`old` is absent) or changed.
pub fn capacity(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let class = Path::new("storageClassName");
    if let Some(old) = old {
        for key in ["nodeTopology", "storageClassName"] {
            immutable(&Path::new(key), &object[key], &old[key], errors);
        }
        return;
    }
    label_selector(errors, &Path::new("nodeTopology"), &object["nodeTopology"]);
    let name = object["storageClassName"].text();
    mistakes(errors, &class, name, names::dns_subdomain(name));
    if quantity(&object["capacity"]).is_some_and(|amount| amount.signum() < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(Error::invalid(&Path::new("capacity"), object["capacity"].clone(), detail));
    }
}

/// A class of volume attributes, new (`old` is absent) or changed.
pub fn attributes_class(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    if let Some(old) = old {
        for key in ["driverName", "parameters"] {
            if object[key] != old[key] {
                let detail = format!("updates to {key} are forbidden.");
                errors.push(Error::forbidden(&Path::new(key), detail));
            }
        }
    }
    storage::provisioner(object["driverName"].text(), &Path::new("driverName"), errors);
    let parameters = Path::new("parameters");
    if object["parameters"].entries().next().is_none() {
        errors.push(Error::required(&parameters, "must contain at least one key/value pair"));
    }
    storage::parameters(&object["parameters"], &parameters, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn attachments_are_checked() {
        let made =
            |source: Value| json!({"spec": {"attacher": "a.b", "nodeName": "n", "source": source}});
        let good = made(json!({"persistentVolumeName": "v"}));
        assert_eq!(told(|e| attachment(&good, None, e)), Vec::<String>::new());
        assert_eq!(
            told(|e| attachment(&made(json!({})), None, e)),
            [
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"
            ]
        );
        let mut other = good.clone();
        other["spec"]["nodeName"] = "m".into();
        let got = told(|e| attachment(&other, Some(&good), e));
        assert!(
            got[0].starts_with("spec: Invalid value") && got[0].ends_with("field is immutable")
        );
    }

    #[test]
    fn drivers_and_nodes_are_checked() {
        let made = |extra: Value| {
            let mut spec =
                json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"metadata": {"name": "a.b"}, "spec": spec})
        };
        for (extra, want) in [
            (json!({}), ""),
            (json!({"attachRequired": null}), "spec.attachedRequired: Required value"),
            (
                json!({"fsGroupPolicy": "x"}),
                "spec.fsGroupPolicy: Unsupported value: \"x\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
            ),
            (
                json!({"tokenRequests": [{"audience": "a", "expirationSeconds": 1}]}),
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
            ),
        ] {
            assert_eq!(told(|e| driver(&made(extra.clone()), None, e)).join("; "), want);
        }
        let drivers = |id: &str| json!({"spec": {"drivers": [{"name": "a.b", "nodeID": id}]}});
        assert_eq!(
            told(|e| node(&drivers(""), None, e)),
            ["spec.drivers[0].nodeID: Required value"]
        );
        assert_eq!(told(|e| node(&drivers("x"), Some(&drivers("y")), e)).len(), 1);
    }

    #[test]
    fn attribute_classes_stay() {
        let class = |iops: &str| json!({"driverName": "a.b", "parameters": {"iops": iops}});
        assert_eq!(told(|e| attributes_class(&class("1"), None, e)), Vec::<String>::new());
        assert_eq!(
            told(|e| attributes_class(&class("1"), Some(&class("2")), e)),
            ["parameters: Forbidden: updates to parameters are forbidden."]
        );
    }
}
