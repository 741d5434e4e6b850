//! What a create or update of a custom resource may set.
//!
//! Source: `pkg/registry/customresource/strategy.go` and `status_strategy.go`.

use apimachinery::meta;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::resource::Resource;
use crate::zero::Zero;

fn has_status(resource: &Resource) -> bool {
    resource.custom.as_ref().is_some_and(|custom| custom.status)
}

/// A new object starts at generation 1, and without a status that somebody else is to write.
pub fn prepare_for_create(resource: &Resource, object: &mut Value) {
    meta::set(object, "generation", 1);
    if has_status(resource)
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
}

/// The status changes through its own subresource alone, and nothing else changes there.
pub fn prepare_for_update(
    ctx: &RequestContext,
    resource: &Resource,
    object: &mut Value,
    old: &Value,
) {
    if ctx.subresource == "status" {
        let status = object.get("status").cloned();
        let version = meta::metadata(object).get("resourceVersion").cloned();
        let managed = meta::metadata(object).get("managedFields").cloned();
        *object = old.clone();
        for (key, value) in [("resourceVersion", version), ("managedFields", managed)] {
            if let Some(value) = value {
                meta::set(object, key, value);
            }
        }
        if let Some(map) = object.as_object_mut() {
            match status {
                Some(status) => drop(map.insert("status".into(), status)),
                None => drop(map.remove("status")),
            }
        }
        return;
    }
    if has_status(resource)
        && let Some(map) = object.as_object_mut()
    {
        match old.get("status") {
            Some(status) => drop(map.insert("status".into(), status.clone())),
            None => drop(map.remove("status")),
        }
    }
    let changed = object
        .entries()
        .chain(old.entries())
        .any(|(key, _)| key != "metadata" && object.get(key) != old.get(key));
    meta::set(object, "generation", meta::generation(old) + i64::from(changed));
}
