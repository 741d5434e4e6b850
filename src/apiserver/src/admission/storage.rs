//! StorageObjectInUseProtection: claims and volumes carry a finalizer until nothing uses them.
//! DefaultStorageClass: claims that name no class get the default one.

use serde_json::{Value, json};

use crate::registry::Registry;
use crate::zero::{Zero, default_to};

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// Adds the finalizer of a new claim or volume.
pub fn protect(plural: &str, object: &mut Value) {
    let finalizer = match plural {
        "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
        _ => "kubernetes.io/pv-protection",
    };
    let Some(metadata) = object.get_mut("metadata").filter(|m| m.is_object()) else { return };
    if metadata["finalizers"].texts().any(|other| other == finalizer) {
        return;
    }
    default_to(metadata, "finalizers", || json!([]));
    if let Some(list) = metadata["finalizers"].as_array_mut() {
        list.push(finalizer.into());
    }
}

/// Sets the class of a claim that leaves it open; an empty name means none on purpose.
pub fn default_class(registry: &Registry, claim: &mut Value) {
    let Some(spec) = claim.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if spec.get("storageClassName").is_some_and(Zero::is_set) {
        return;
    }
    let mut classes: Vec<Value> = registry
        .list("storage.k8s.io", "storageclasses", None)
        .iter()
        .map(|class| class.to_value())
        .filter(|class| {
            let annotations = &class["metadata"]["annotations"];
            [DEFAULT_CLASS, BETA_DEFAULT_CLASS].iter().any(|key| annotations[*key] == "true")
        })
        .collect();
    // The newest wins, as upstream has it since 1.26.
    let made = |class: &Value| class["metadata"]["creationTimestamp"].text().to_owned();
    classes.sort_by_key(|class| std::cmp::Reverse(made(class)));
    if let Some(class) = classes.first() {
        spec["storageClassName"] = class["metadata"]["name"].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_is_added_once() {
        let mut claim = json!({"metadata": {"name": "a"}});
        protect("persistentvolumeclaims", &mut claim);
        protect("persistentvolumeclaims", &mut claim);
        assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    }
}
