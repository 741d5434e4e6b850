//! The order in which objects come out: what others need first.

use super::entry::{Entry, Id};
use super::file::SortOptions;
use crate::objects::error::Error;

const FIRST: [&str; 22] = [
    "Namespace",
    "ResourceQuota",
    "StorageClass",
    "CustomResourceDefinition",
    "ServiceAccount",
    "PodSecurityPolicy",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "ConfigMap",
    "Secret",
    "Endpoints",
    "Service",
    "LimitRange",
    "PriorityClass",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Deployment",
    "StatefulSet",
    "CronJob",
    "PodDisruptionBudget",
];
const LAST: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// Sorts them as the kustomization asks.
pub fn arrange(entries: &mut [Entry], options: Option<&SortOptions>) -> Result<(), Error> {
    let mut first: Vec<&str> = FIRST.to_vec();
    let mut last: Vec<&str> = LAST.to_vec();
    if let Some(options) = options {
        match options.order.as_str() {
            "fifo" => return Ok(()),
            "legacy" | "" => {}
            other => {
                return Err(Error::Wrong(format!(
                    "the field 'sortOptions.order' must be one of [fifo, legacy], not {other:?}"
                )));
            }
        }
        if let Some(own) = &options.legacy_sort_options {
            first = own.order_first.iter().map(String::as_str).collect();
            last = own.order_last.iter().map(String::as_str).collect();
        }
    }
    let rank = |kind: &str| -> i64 {
        if let Some(at) = first.iter().position(|k| *k == kind) {
            return at as i64 - first.len() as i64;
        }
        last.iter().position(|k| *k == kind).map_or(0, |at| at as i64 + 1)
    };
    entries.sort_by_cached_key(|entry| {
        let id = entry.id();
        (rank(&id.kind), key(&id))
    });
    Ok(())
}

/// As kustomize compares ids; what is empty comes late.
fn key(id: &Id) -> String {
    let or =
        |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
    [
        or(&id.group, "~G"),
        or(&id.version, "~V"),
        or(&id.kind, "~K"),
        or(&id.namespace, "~X"),
        or(&id.name, "~N"),
    ]
    .join("|")
}
