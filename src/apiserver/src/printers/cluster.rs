//! Nodes, namespaces, and what is configured in them.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{NONE, access_modes, age, condition, count, joined, name, or_none};
use super::{Column, Printer, pods};
use crate::zero::Zero;

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);

/// The printer of a kind of this file.
pub fn printer(kind: (&str, &str)) -> Option<Printer> {
    let (columns, cells): (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>) = match kind {
        ("", "Node") => (
            &[
                NAME,
                ("Status", "string", 0),
                ("Roles", "string", 0),
                AGE,
                ("Version", "string", 0),
                ("Internal-IP", "string", 1),
                ("External-IP", "string", 1),
                ("OS-Image", "string", 1),
                ("Kernel-Version", "string", 1),
                ("Container-Runtime", "string", 1),
            ],
            node,
        ),
        ("", "Namespace") => (&[NAME, ("Status", "string", 0), AGE], |object, now| {
            vec![name(object), object["status"]["phase"].text().into(), age(object, now)]
        }),
        ("", "ConfigMap") => (&[NAME, ("Data", "integer", 0), AGE], |object, now| {
            let entries = count(&object["data"]) + count(&object["binaryData"]);
            vec![name(object), entries.into(), age(object, now)]
        }),
        ("", "Secret") => {
            (&[NAME, ("Type", "string", 0), ("Data", "integer", 0), AGE], |object, now| {
                let entries = count(&object["data"]);
                vec![name(object), object["type"].clone(), entries.into(), age(object, now)]
            })
        }
        ("" | "events.k8s.io", "Event") => (
            &[
                ("Last Seen", "string", 0),
                ("Type", "string", 0),
                ("Reason", "string", 0),
                ("Object", "string", 0),
                ("Subobject", "string", 1),
                ("Source", "string", 1),
                ("Message", "string", 0),
                ("First Seen", "string", 1),
                ("Count", "integer", 1),
                ("Name", "string", 1),
            ],
            pods::event,
        ),
        ("coordination.k8s.io", "Lease") => {
            (&[NAME, ("Holder", "string", 0), AGE], |object, now| {
                vec![name(object), object["spec"]["holderIdentity"].text().into(), age(object, now)]
            })
        }
        ("scheduling.k8s.io", "PriorityClass") => (
            &[
                NAME,
                ("Value", "integer", 0),
                ("Global-Default", "boolean", 0),
                AGE,
                ("PreemptionPolicy", "string", 0),
            ],
            |object, now| {
                vec![
                    name(object),
                    object["value"].int().into(),
                    object["globalDefault"].flag().into(),
                    age(object, now),
                    object["preemptionPolicy"].text().into(),
                ]
            },
        ),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => (
            &[
                NAME,
                ("Role", "string", 0),
                AGE,
                ("Users", "string", 1),
                ("Groups", "string", 1),
                ("ServiceAccounts", "string", 1),
            ],
            binding,
        ),
        ("", "PersistentVolumeClaim") => (
            &[
                NAME,
                ("Status", "string", 0),
                ("Volume", "string", 0),
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                AGE,
                ("VolumeMode", "string", 1),
            ],
            claim,
        ),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    node["status"]["addresses"]
        .items()
        .iter()
        .find(|address| address["type"] == kind)
        .map_or(NONE, |address| address["address"].text())
}

fn node(node: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(node, "Ready") {
        "True" => "Ready".to_owned(),
        "" => "Unknown".to_owned(),
        _ => "NotReady".to_owned(),
    };
    if node["spec"]["unschedulable"].flag() {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .entries()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => Some(value.text()),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let info = &node["status"]["nodeInfo"];
    let known = |value: &Value| -> Value {
        if value.text().is_empty() { "<unknown>".into() } else { value.clone() }
    };
    vec![
        name(node),
        status.into(),
        joined(roles.into_iter()),
        age(node, now),
        info["kubeletVersion"].text().into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        known(&info["osImage"]),
        known(&info["kernelVersion"]),
        known(&info["containerRuntimeVersion"]),
    ]
}

fn binding(binding: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &str| -> Value {
        let names: Vec<String> = binding["subjects"]
            .items()
            .iter()
            .filter(|subject| subject["kind"] == kind)
            .map(|subject| match subject["namespace"].text() {
                "" => subject["name"].text().to_owned(),
                namespace => format!("{namespace}/{}", subject["name"].text()),
            })
            .collect();
        names.join(", ").into()
    };
    let role = &binding["roleRef"];
    vec![
        name(binding),
        format!("{}/{}", role["kind"].text(), role["name"].text()).into(),
        age(binding, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

fn claim(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let bound = !spec["volumeName"].text().is_empty();
    let phase = if claim["metadata"]["deletionTimestamp"].is_set() {
        "Terminating"
    } else {
        status["phase"].text()
    };
    let unset = |value: &Value| -> Value {
        if value.text().is_empty() { "<unset>".into() } else { value.clone() }
    };
    vec![
        name(claim),
        phase.into(),
        spec["volumeName"].text().into(),
        if bound { status["capacity"]["storage"].text().into() } else { "".into() },
        if bound { access_modes(&status["accessModes"]).into() } else { "".into() },
        spec["storageClassName"].text().into(),
        unset(&spec["volumeAttributesClassName"]),
        age(claim, now),
        or_none(&spec["volumeMode"]),
    ]
}
