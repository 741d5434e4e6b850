//! Volumes, claims and storage classes.

use serde_json::Value;

use super::{Page, items, map, or, shown, str};
use crate::objects::error::Error;
use crate::objects::session::Session;

/// Access modes in short.
/// Access modes, in kubectl's order.
fn modes(list: &Value) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let there = SHORT.iter().filter(|(mode, _)| items(list).any(|m| m == mode));
    there.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> String {
    let phase = str(&object["status"]["phase"]);
    if object["metadata"]["deletionTimestamp"].is_string() {
        return format!(
            "Terminating (lasts {})",
            super::age(&object["metadata"]["deletionTimestamp"])
        );
    }
    phase.to_owned()
}

/// Writes a claim with the pods that use it.
pub async fn claim(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    page.field(0, "StorageClass", str(&spec["storageClassName"]));
    page.field(0, "Status", phase(object));
    page.field(0, "Volume", str(&spec["volumeName"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    let finalizers: Vec<&str> = items(&meta["finalizers"]).map(str).collect();
    page.field(0, "Finalizers", format!("[{}]", finalizers.join(" ")));
    let bound = !str(&spec["volumeName"]).is_empty();
    page.field(
        0,
        "Capacity",
        if bound { shown(&status["capacity"]["storage"]) } else { String::new() },
    );
    page.field(
        0,
        "Access Modes",
        if bound { modes(&status["accessModes"]) } else { String::new() },
    );
    if !spec["volumeMode"].is_null() {
        page.field(0, "VolumeMode", str(&spec["volumeMode"]));
    }
    let source = &spec["dataSource"];
    if source.is_object() {
        page.line(0, "DataSource:");
        page.field(1, "APIGroup", str(&source["apiGroup"]));
        page.field(1, "Kind", str(&source["kind"]));
        page.field(1, "Name", str(&source["name"]));
    }
    let path = format!("/api/v1/namespaces/{}/pods", str(&meta["namespace"]));
    let pods = session.api.get(&path).await?;
    let uses = |pod: &&Value| {
        items(&pod["spec"]["volumes"])
            .any(|volume| volume["persistentVolumeClaim"]["claimName"] == meta["name"])
    };
    let users: Vec<String> = items(&pods["items"])
        .filter(uses)
        .map(|pod| str(&pod["metadata"]["name"]).to_owned())
        .collect();
    page.multiline(0, "Used By", &users);
    if items(&status["conditions"]).next().is_some() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tLastProbeTime\tLastTransitionTime\tReason\tMessage");
        page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
        for c in items(&status["conditions"]) {
            let when = |field: &str| {
                if c[field].is_string() {
                    super::time(&c[field])
                } else {
                    "Mon, 01 Jan 0001 00:00:00 +0000".into()
                }
            };
            page.line(
                1,
                format!(
                    "{} \t{} \t{} \t{} \t{} \t{} ",
                    str(&c["type"]),
                    str(&c["status"]),
                    when("lastProbeTime"),
                    when("lastTransitionTime"),
                    str(&c["reason"]),
                    str(&c["message"])
                ),
            );
        }
    }
    Ok(())
}

/// Writes a volume.
pub fn volume(page: &mut Page, object: &Value) {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", str(&meta["name"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    let finalizers: Vec<&str> = items(&meta["finalizers"]).map(str).collect();
    page.field(0, "Finalizers", format!("[{}]", finalizers.join(" ")));
    page.field(0, "StorageClass", str(&spec["storageClassName"]));
    page.field(0, "Status", phase(object));
    let claim = &spec["claimRef"];
    page.field(
        0,
        "Claim",
        if claim.is_object() {
            format!("{}/{}", str(&claim["namespace"]), str(&claim["name"]))
        } else {
            String::new()
        },
    );
    page.field(0, "Reclaim Policy", str(&spec["persistentVolumeReclaimPolicy"]));
    page.field(0, "Access Modes", modes(&spec["accessModes"]));
    if !spec["volumeMode"].is_null() {
        page.field(0, "VolumeMode", str(&spec["volumeMode"]));
    }
    page.field(0, "Capacity", shown(&spec["capacity"]["storage"]));
    affinity(page, &spec["nodeAffinity"]["required"]);
    page.field(0, "Message", str(&status["message"]));
    page.line(0, "Source:");
    for (field, what, told) in [
        (
            "hostPath",
            "HostPath (bare host directory volume)",
            vec![("Path", "path"), ("HostPathType", "type")],
        ),
        (
            "local",
            "LocalVolume (a persistent volume backed by local storage on a node)",
            vec![("Path", "path")],
        ),
        (
            "nfs",
            "NFS (an NFS mount that lasts the lifetime of a pod)",
            vec![("Server", "server"), ("Path", "path"), ("ReadOnly", "readOnly")],
        ),
        (
            "csi",
            "CSI (a Container Storage Interface (CSI) volume source)",
            vec![
                ("Driver", "driver"),
                ("FSType", "fsType"),
                ("VolumeHandle", "volumeHandle"),
                ("ReadOnly", "readOnly"),
            ],
        ),
    ] {
        if !spec[field].is_object() {
            continue;
        }
        page.field(1, "  Type", what);
        for (title, name) in told {
            let otherwise = if name == "readOnly" { "false" } else { "" };
            page.field(2, title, or(&spec[field][name], otherwise));
        }
        if field == "csi" {
            let attributes: Vec<String> = map(&spec[field]["volumeAttributes"])
                .map(|(k, v)| format!("{k}={}", str(v)))
                .collect();
            if attributes.is_empty() {
                page.field(2, "VolumeAttributes", "<none>");
            }
            // kubectl indents each part anew.
            for (index, attribute) in attributes.iter().enumerate() {
                let lead = if index == 0 { "VolumeAttributes:" } else { "    " };
                page.line(2, format!("{lead}\t    {attribute}"));
            }
        }
    }
}

fn affinity(page: &mut Page, required: &Value) {
    if required.is_null() {
        page.field(0, "Node Affinity", "<none>");
        return;
    }
    page.field(0, "Node Affinity", "");
    page.field(1, "Required Terms", "");
    for (index, term) in items(&required["nodeSelectorTerms"]).enumerate() {
        let title = format!("Term {index}");
        let texts: Vec<String> = items(&term["matchExpressions"])
            .map(|e| {
                let values: Vec<&str> = items(&e["values"]).map(str).collect();
                let list = if values.is_empty() {
                    String::new()
                } else {
                    format!(" [{}]", values.join(", "))
                };
                format!("{} {}{list}", str(&e["key"]), str(&e["operator"]).to_lowercase())
            })
            .collect();
        page.multiline(2, &title, &texts);
    }
}

/// Writes a storage class.
pub fn class(page: &mut Page, object: &Value) {
    let annotations = &object["metadata"]["annotations"];
    page.field(0, "Name", str(&object["metadata"]["name"]));
    let default = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|key| annotations[*key] == "true");
    page.field(0, "IsDefaultClass", if default { "Yes" } else { "No" });
    page.field(0, "Annotations", joined(annotations));
    page.field(0, "Provisioner", str(&object["provisioner"]));
    page.field(0, "Parameters", joined(&object["parameters"]));
    page.field(
        0,
        "AllowVolumeExpansion",
        match object["allowVolumeExpansion"].as_bool() {
            None => "<unset>",
            Some(true) => "True",
            Some(false) => "False",
        },
    );
    let options: Vec<String> = items(&object["mountOptions"]).map(|o| str(o).to_owned()).collect();
    if options.is_empty() {
        page.field(0, "MountOptions", "<none>");
    } else {
        page.line(0, "MountOptions:");
        for option in options {
            page.line(1, option);
        }
    }
    page.field(0, "ReclaimPolicy", or(&object["reclaimPolicy"], "<unset>"));
    page.field(0, "VolumeBindingMode", or(&object["volumeBindingMode"], "<unset>"));
    if items(&object["allowedTopologies"]).next().is_some() {
        page.field(0, "AllowedTopologies", "");
        for (index, term) in items(&object["allowedTopologies"]).enumerate() {
            let texts: Vec<String> = items(&term["matchLabelExpressions"])
                .map(|e| {
                    let values: Vec<&str> = items(&e["values"]).map(str).collect();
                    format!("{} in [{}]", str(&e["key"]), values.join(", "))
                })
                .collect();
            page.multiline(1, &format!("Term {index}"), &texts);
        }
    }
}

/// Pairs in one line.
pub fn joined(pairs: &Value) -> String {
    let pairs: Vec<String> = map(pairs).map(|(k, v)| format!("{k}={}", str(v))).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// Writes the drivers of a node.
pub fn csi_node(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", str(&meta["name"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.field(0, "CreationTimestamp", super::time(&meta["creationTimestamp"]));
    page.line(0, "Spec:");
    if items(&object["spec"]["drivers"]).next().is_some() {
        page.line(1, "Drivers:");
    }
    for driver in items(&object["spec"]["drivers"]) {
        page.line(2, format!("{}:", str(&driver["name"])));
        page.field(3, "Node ID", str(&driver["nodeID"]));
        if !driver["allocatable"]["count"].is_null() {
            page.line(3, "Allocatables:");
            page.field(4, "Count", shown(&driver["allocatable"]["count"]));
        }
        if driver["topologyKeys"].is_array() {
            let keys: Vec<&str> = items(&driver["topologyKeys"]).map(str).collect();
            page.field(3, "Topology Keys", format!("[{}]", keys.join(" ")));
        }
    }
}
