//! Rules for what volumes are made of, inline in pods and in persistent volumes.
//!
//! Source: `validateVolumeSource` and `ValidatePersistentVolumeSpec` of
//! `k8s.io/kubernetes/pkg/apis/core/validation`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::container::local_path;
use super::{csi, mistakes, one_of};
use crate::zero::Zero;

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
const PARTITIONS: &str = "must be between 1 and 255, inclusive";
const UNITS: &str = "must be between 0 and 255, inclusive";
const BYTE_MAX: i64 = 255;
/// A Quobyte tenant has fewer bytes than this.
const TENANT_BYTES: usize = 65;
/// The most bytes of a volume's name and its portal, where the initiator is named.
const PORTAL_MAX: usize = 64;

/// Where a source stands.
#[derive(Clone, Copy)]
pub enum Owner<'a> {
    /// In a volume of a pod or a template.
    Pod,
    /// In a persistent volume of this name.
    Persistent(&'a str),
}

/// What must not be empty, by source.
const REQUIRED: [(&str, &[&str]); 20] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["volume"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

/// Checks the source `kind`; those that hold files of the API's are checked by `volume`.
pub fn validate(kind: &str, source: &Value, path: &Path, owner: Owner<'_>, errors: &mut ErrorList) {
    if matches!(kind, "rbd" | "cephfs") && source["monitors"].items().is_empty() {
        errors.push(Error::required(&path.child("monitors"), ""));
    }
    if kind == "quobyte" {
        quobyte(source, path, errors);
    }
    let required = REQUIRED.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, keys)| *keys);
    for key in required.iter().filter(|key| source[**key].text().is_empty()) {
        errors.push(Error::required(&path.child(key), ""));
    }
    match kind {
        "hostPath" => host_path(source, path, errors),
        "local" => no_backsteps(source["path"].text(), &path.child("path"), errors),
        "gitRepo" => local_path(source["directory"].text(), &path.child("directory"), errors),
        "nfs" if !source["path"].text().starts_with('/') => {
            let text = source["path"].text();
            errors.push(Error::invalid(&path.child("path"), text, "must be an absolute path"));
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let (partition, at) = (source["partition"].int(), path.child("partition"));
            if !(0..=BYTE_MAX).contains(&partition) {
                errors.push(Error::invalid(&at, partition, PARTITIONS));
            }
        }
        "iscsi" => iscsi(source, path, owner, errors),
        "fc" => fibre_channel(source, path, errors),
        "flexVolume" => flex_options(source, path, errors),
        "flocker" => flocker(source, path, errors),
        "azureDisk" => azure_disk(source, path, errors),
        "storageos" => {
            for key in ["volumeName", "volumeNamespace"] {
                let text = source[key].text();
                if !text.is_empty() {
                    mistakes(errors, &path.child(key), text, names::dns_label(text));
                }
            }
        }
        "csi" => csi_source(source, path, owner, errors),
        _ => {}
    }
    let persistent = matches!(owner, Owner::Persistent(_));
    if matches!(kind, "cinder" | "storageos") || kind == "iscsi" && persistent {
        let spaced = persistent && kind != "iscsi";
        named_secret(&source["secretRef"], &path.child("secretRef"), spaced, errors);
    }
    if persistent {
        namespaces(kind, source, path, errors);
    }
}

fn named_secret(secret: &Value, path: &Path, spaced: bool, errors: &mut ErrorList) {
    if secret.is_null() {
        return;
    }
    if secret["name"].text().is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    if spaced && secret["namespace"].text().is_empty() {
        errors.push(Error::required(&path.child("namespace"), ""));
    }
}

/// The namespaces that only persistent volumes name.
fn namespaces(kind: &str, source: &Value, path: &Path, errors: &mut ErrorList) {
    let set_but_empty = |key: &str| source[key].as_str().is_some_and(str::is_empty);
    if kind == "azureFile" && set_but_empty("secretNamespace") {
        errors.push(Error::required(&path.child("secretNamespace"), ""));
    }
    if kind == "glusterfs" {
        let at = path.child("endpointsNamespace");
        if set_but_empty("endpointsNamespace") {
            let detail = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.push(Error::invalid(&at, "", detail));
        } else if let Some(namespace) = source["endpointsNamespace"].as_str() {
            mistakes(errors, &at, namespace, names::dns_label(namespace));
        }
    }
}

/// No part of the path goes back.
pub fn no_backsteps(text: &str, path: &Path, errors: &mut ErrorList) {
    if text.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, text, "must not contain '..'"));
    }
}

fn host_path(source: &Value, path: &Path, errors: &mut ErrorList) {
    let text = source["path"].text();
    if text.is_empty() {
        return;
    }
    no_backsteps(text, &path.child("path"), errors);
    one_of(errors, &path.child("type"), source["type"].text(), &HOST_PATH_TYPES);
}

fn quobyte(source: &Value, path: &Path, errors: &mut ErrorList) {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let (registry, at) = (source["registry"].text(), path.child("registry"));
    if registry.is_empty() {
        errors.push(Error::required(&at, PAIRS));
    } else if source["tenant"].text().len() >= TENANT_BYTES {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(Error::required(&path.child("tenant"), detail));
    } else {
        for pair in registry.split(',') {
            let host = pair.rsplit_once(':').map(|(host, _)| host);
            let bracketed = |host: &str| host.starts_with('[') && host.ends_with(']');
            if !host.is_some_and(|host| bracketed(host) || !host.contains(':')) {
                errors.push(Error::invalid(&at, registry, PAIRS));
            }
        }
    }
}

fn iscsi(source: &Value, path: &Path, owner: Owner<'_>, errors: &mut ErrorList) {
    let portal = source["targetPortal"].text();
    let initiator = &source["initiatorName"];
    if let Owner::Persistent(name) = owner
        && initiator.is_set()
        && name.len() + 1 + portal.len() > PORTAL_MAX
    {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        errors.push(Error::invalid(&path.child("targetportal"), portal, detail));
    }
    let iqn = source["iqn"].text();
    if !iqn.is_empty() && !is_initiator(iqn) {
        errors.push(Error::invalid(&path.child("iqn"), iqn, "must be valid format"));
    }
    if !(0..=BYTE_MAX).contains(&source["lun"].int()) {
        errors.push(Error::invalid(&path.child("lun"), source["lun"].int(), UNITS));
    }
    let authenticated = source["chapAuthDiscovery"].flag() || source["chapAuthSession"].flag();
    if authenticated && source["secretRef"].is_null() {
        errors.push(Error::required(&path.child("secretRef"), ""));
    }
    if let Some(name) = initiator.as_str() {
        let at = path.child("initiatorname");
        if !["iqn", "eui", "naa"].iter().any(|prefix| name.starts_with(prefix)) {
            let detail = "must be valid format starting with iqn, eui, or naa";
            errors.push(Error::invalid(&at, name, detail));
        } else if !is_initiator(name) {
            errors.push(Error::invalid(&at, name, "must be valid format"));
        }
    }
}

/// A name of iSCSI's: `iqn.2001-04.com.example:disk`, or `eui.` and `naa.` with their digits.
fn is_initiator(name: &str) -> bool {
    let coded = |rest: &str, count: usize| {
        let mut characters = rest.chars();
        characters.next().is_some()
            && characters.as_str().len() == count
            && characters.all(|c| c.is_ascii_alphanumeric())
    };
    if let Some(rest) = name.strip_prefix("eui") {
        return coded(rest, 16);
    }
    if let Some(rest) = name.strip_prefix("naa") {
        return coded(rest, 32);
    }
    let Some(rest) = name.strip_prefix("iqn.") else { return false };
    let Some((date, rest)) = rest.split_once('.') else { return false };
    let Some((year, month)) = date.split_once('-') else { return false };
    let Some((authority, unit)) = rest.split_once(':') else { return false };
    let digits = |text: &str, count: usize| {
        text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_authority = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let is_unit = |c: char| !",;*&$|".contains(c) && !c.is_ascii_whitespace();
    digits(year, 4)
        && digits(month, 2)
        && !authority.is_empty()
        && authority.chars().all(is_authority)
        && !unit.is_empty()
        && unit.chars().all(is_unit)
}

fn fibre_channel(source: &Value, path: &Path, errors: &mut ErrorList) {
    let (names, ids) = (source["targetWWNs"].items(), source["wwids"].items());
    let at = path.child("targetWWNs");
    if names.is_empty() && ids.is_empty() {
        let detail = "must specify either targetWWNs or wwids, but not both";
        errors.push(Error::required(&at, detail));
    }
    if !names.is_empty() && !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(Error::invalid(&at, source["targetWWNs"].clone(), detail));
    }
    if names.is_empty() {
        return;
    }
    let (lun, at) = (&source["lun"], path.child("lun"));
    if lun.is_null() {
        errors.push(Error::required(&at, "lun is required if targetWWNs is specified"));
    } else if !(0..=BYTE_MAX).contains(&lun.int()) {
        errors.push(Error::invalid(&at, lun.int(), UNITS));
    }
}

fn flex_options(source: &Value, path: &Path, errors: &mut ErrorList) {
    for (key, _) in source["options"].entries() {
        let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
        let dotted = format!(".{}", namespace.to_lowercase());
        if dotted.ends_with(".kubernetes.io") || dotted.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(Error::invalid(&path.child("options").key(key), key.clone(), detail));
        }
    }
}

fn flocker(source: &Value, path: &Path, errors: &mut ErrorList) {
    let (name, id) = (source["datasetName"].text(), source["datasetUUID"].text());
    if name.is_empty() && id.is_empty() {
        let detail = "one of datasetName and datasetUUID is required";
        errors.push(Error::required(path, detail));
    }
    if !name.is_empty() && !id.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(Error::invalid(path, "resource", detail));
    }
    if name.contains('/') {
        errors.push(Error::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
}

fn azure_disk(source: &Value, path: &Path, errors: &mut ErrorList) {
    const DISKS: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOBS: &str =
        "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    if source["cachingMode"].is_set() {
        let known = ["None", "ReadOnly", "ReadWrite"];
        one_of(errors, &path.child("cachingMode"), source["cachingMode"].text(), &known);
    }
    if source["kind"].is_null() {
        return;
    }
    let (kind, uri) = (source["kind"].text(), source["diskURI"].text());
    one_of(errors, &path.child("kind"), kind, &["Dedicated", "Managed", "Shared"]);
    let (start, form) =
        if kind == "Managed" { ("/subscriptions/", DISKS) } else { ("https://", BLOBS) };
    if !uri.starts_with(start) {
        errors.push(Error::not_supported(&path.child("diskURI"), uri, &[form]));
    }
}

fn csi_source(source: &Value, path: &Path, owner: Owner<'_>, errors: &mut ErrorList) {
    csi::driver_name(source["driver"].text(), &path.child("driver"), errors);
    if let Owner::Pod = owner {
        let secret = &source["nodePublishSecretRef"];
        let name = secret["name"].text();
        if secret.is_set() && name.is_empty() {
            let at = path.child("nodePublishSecretRef").child("name");
            errors.push(Error::required(&at, ""));
        } else if secret.is_set() {
            mistakes(errors, &path.child("name"), name, names::dns_subdomain(name));
        }
        return;
    }
    if source["volumeHandle"].text().is_empty() {
        errors.push(Error::required(&path.child("volumeHandle"), ""));
    }
    for key in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        if source[key].is_set() {
            spaced_secret(&source[key], &path.child(key), errors);
        }
    }
}

fn spaced_secret(secret: &Value, path: &Path, errors: &mut ErrorList) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 2] =
        [("name", names::dns_subdomain), ("namespace", names::dns_label)];
    for (key, rule) in rules {
        let (text, at) = (secret[key].text(), path.child(key));
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
        } else {
            mistakes(errors, &at, text, rule(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn sources_are_checked() {
        let pod = |kind: &str, source: Value| {
            told(|errors| validate(kind, &source, &Path::new("v"), Owner::Pod, errors))
        };
        let unit = "v.lun: Invalid value: 256: must be between 0 and 255, inclusive";
        for (kind, source, want) in [
            ("hostPath", json!({}), "v.path: Required value"),
            (
                "local",
                json!({"path": "/a/.."}),
                "v.path: Invalid value: \"/a/..\": must not contain '..'",
            ),
            (
                "gitRepo",
                json!({"repository": "r", "directory": "/a"}),
                "v.directory: Invalid value: \"/a\": must be a relative path",
            ),
            (
                "nfs",
                json!({"server": "s", "path": "a"}),
                "v.path: Invalid value: \"a\": must be an absolute path",
            ),
            (
                "gcePersistentDisk",
                json!({"pdName": "a", "partition": 256}),
                "v.partition: Invalid value: 256: must be between 1 and 255, inclusive",
            ),
            (
                "iscsi",
                json!({"targetPortal": "p", "iqn": "x"}),
                "v.iqn: Invalid value: \"x\": must be valid format",
            ),
            (
                "iscsi",
                json!({"targetPortal": "p", "iqn": "iqn.2001-04.com.example:a", "lun": 256}),
                unit,
            ),
            (
                "iscsi",
                json!({"targetPortal": "p", "iqn": "eui.0123456789ABCDEF", "chapAuthSession": true}),
                "v.secretRef: Required value",
            ),
            (
                "fc",
                json!({}),
                "v.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both",
            ),
            ("fc", json!({"targetWWNs": ["a"], "lun": 256}), unit),
            (
                "flexVolume",
                json!({"driver": "d", "options": {"a.k8s.io/b": ""}}),
                "v.options[a.k8s.io/b]: Invalid value: \"a.k8s.io/b\": kubernetes.io and k8s.io namespaces are reserved",
            ),
            (
                "quobyte",
                json!({"registry": "a", "volume": "v"}),
                "v.registry: Invalid value: \"a\": must be a host:port pair",
            ),
            ("cephfs", json!({}), "v.monitors: Required value"),
            (
                "azureDisk",
                json!({"diskName": "a", "diskURI": "b", "kind": "Managed"}),
                "v.diskURI: Unsupported value: \"b\": supported values: \"/subscriptions/{sub-id}",
            ),
            ("csi", json!({}), "v.driver: Required value"),
            ("scaleIO", json!({"system": "s", "volumeName": "v"}), "v.gateway: Required value"),
        ] {
            let got = pod(kind, source);
            assert!(got.first().is_some_and(|text| text.starts_with(want)), "{want}: {got:?}");
        }
        let good = json!({"targetPortal": "p", "iqn": "iqn.2001-04.com.example:a"});
        assert_eq!(pod("iscsi", good), Vec::<String>::new());
    }

    #[test]
    fn persistent_sources_name_their_secrets_namespaces() {
        let source =
            json!({"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "s"}});
        let got = told(|errors| {
            validate("csi", &source, &Path::new("spec.csi"), Owner::Persistent("p"), errors);
        });
        assert_eq!(got, ["spec.csi.nodePublishSecretRef.namespace: Required value"]);
    }
}
