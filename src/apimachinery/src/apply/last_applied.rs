//! Client-side apply's annotation, which `kubectl apply --server-side` reads once and keeps current.
//!
//! Source: `k8s.io/apimachinery/pkg/util/managedfields/internal`: `lastappliedmanager.go`,
//! `lastappliedupdater.go`.

use serde_json::Value;

use super::{Conflict, Versions, walk};
use crate::meta;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations of an object may not be larger together.
const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

fn annotation(object: &Value) -> Option<&str> {
    meta::metadata(object)
        .get("annotations")?
        .get(ANNOTATION)?
        .as_str()
        .filter(|text| !text.is_empty())
}

/// The conflicts that are not about fields which client-side apply set and which are still as it set them.
pub(super) fn unexplained(
    versions: &dyn Versions,
    api_version: &str,
    live: &Value,
    conflicts: Vec<Conflict>,
) -> Vec<Conflict> {
    let allowed = || {
        let last: Value = serde_json::from_str(annotation(live)?).ok()?;
        if meta::api_version(&last) != api_version {
            return None;
        }
        let root = versions.root(api_version)?;
        let live = versions.convert(live, api_version)?;
        let diff = walk::compare(root, &last, &live);
        let set = walk::fields_of(root, &last)
            .difference(&diff.modified)
            .difference(&diff.added)
            .difference(&diff.removed);
        Some(set.paths())
    };
    let Some(allowed) = allowed() else { return conflicts };
    conflicts.into_iter().filter(|conflict| !allowed.contains(&conflict.path)).collect()
}

/// Writes what was applied into the annotation, if the object has it.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    meta::remove(&mut config, "managedFields");
    if let Some(annotations) =
        config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
    }
    let text = format!("{config}\n");
    let Some(annotations) =
        object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    else {
        return;
    };
    annotations.insert(ANNOTATION.into(), text.into());
    let bytes: usize =
        annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > ANNOTATIONS_MAX_BYTES {
        annotations.remove(ANNOTATION);
    }
}
