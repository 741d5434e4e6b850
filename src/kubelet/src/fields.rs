//! Downward API: fields of the pod and resources of its containers as text. Pure.
//!
//! Source of behaviour: `pkg/fieldpath`, `pkg/api/v1/resource/helpers.go`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{pod, quantity, resources};

/// A field or resource that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The path names nothing the downward API offers.
    #[error("unsupported fieldPath: {0}")]
    UnsupportedField(String),
    /// The container named by the selector is not in the pod.
    #[error("container {0} not found")]
    ContainerNotFound(String),
    /// The resource is none the downward API offers.
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
}

/// What only the kubelet knows of a pod: addresses and what the node can give.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// What stands in for a limit that is not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The value of `path`.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Error> {
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => pod.metadata.labels.as_ref(),
            "metadata.annotations" => pod.metadata.annotations.as_ref(),
            _ => return Err(Error::UnsupportedField(path.into())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).into(),
        "metadata.namespace" => pod::namespace(pod).into(),
        "metadata.uid" => pod::uid(pod).into(),
        "metadata.labels" => lines(pod.metadata.labels.as_ref()),
        "metadata.annotations" => lines(pod.metadata.annotations.as_ref()),
        // The second is an old name of it.
        "spec.nodeName" | "spec.host" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(Error::UnsupportedField(path.into())),
    })
}

/// The value of a resource field of `default_container` or the container the selector names.
pub fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    default_container: &str,
    facts: &Facts,
) -> Result<String, Error> {
    let name =
        selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(default_container);
    let (_, container) =
        pod::find_container(pod, name).ok_or_else(|| Error::ContainerNotFound(name.into()))?;
    let unsupported = || Error::UnsupportedResource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage")
        || resource.starts_with("hugepages-");
    if !known {
        return Err(unsupported());
    }
    let amount = match list {
        "limits" => resources::limit_milli(&container, resource)
            .or_else(|| facts.allocatable.get(resource).and_then(quantity::milli)),
        "requests" => resources::request_milli(&container, resource),
        _ => return Err(unsupported()),
    };
    let divisor =
        selector.divisor.as_ref().and_then(quantity::milli).filter(|d| *d > 0).unwrap_or(1_000);
    let amount = amount.unwrap_or(0);
    Ok(((amount + divisor - 1) / divisor).to_string())
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    Some((map, rest.strip_suffix(']')?.trim_matches(['\'', '"'])))
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (key, value) in map.into_iter().flatten() {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = write!(out, "{key}={value:?}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u",
                "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k/z": "v"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "resources": {
                "limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]}}))
        .unwrap()
    }

    #[test]
    fn fields_read() {
        let facts = Facts { pod_ips: vec!["10.42.0.2".into()], ..Facts::default() };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['k/z']", "v"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("status.podIP", "10.42.0.2"),
            ("spec.nodeName", "n"),
        ] {
            assert_eq!(field(&pod(), path, &facts).unwrap(), expected, "{path}");
        }
        assert!(field(&pod(), "spec.containers", &facts).is_err());
    }

    #[test]
    fn resources_read() {
        let facts = Facts {
            allocatable: [("memory".to_owned(), Quantity("1Gi".into()))].into(),
            ..Facts::default()
        };
        for (name, divisor, expected) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.memory", Some("1Mi"), "100"),
            ("limits.memory", Some("1Mi"), "1024"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: divisor.map(|d| Quantity(d.into())),
                resource: name.into(),
            };
            assert_eq!(resource(&pod(), &selector, "c", &facts).unwrap(), expected, "{name}");
        }
    }
}
