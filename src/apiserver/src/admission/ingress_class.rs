//! DefaultIngressClass: ingresses that name no class get the default one.
//!
//! Source: `plugin/pkg/admission/network/defaultingressclass`.

use serde_json::Value;

use crate::registry::Registry;
use crate::zero::Zero;

const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// The way of old to name a class.
const ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Sets the class of a new ingress that leaves it open.
pub fn admit(registry: &Registry, ingress: &mut Value) {
    let named = ingress["spec"]["ingressClassName"].is_set()
        || ingress["metadata"]["annotations"][ANNOTATION].is_set();
    if named || !ingress["spec"].is_object() {
        return;
    }
    let classes: Vec<Value> = registry
        .list("networking.k8s.io", "ingressclasses", None)
        .iter()
        .map(|class| class.to_value())
        .collect();
    if let Some(name) = default_of(&classes) {
        ingress["spec"]["ingressClassName"] = name.into();
    }
}

/// The default class: the newest of several, the first by name of those made at once.
fn default_of(classes: &[Value]) -> Option<&str> {
    let key = |class: &&Value| {
        let metadata = &class["metadata"];
        (
            std::cmp::Reverse(metadata["creationTimestamp"].text().to_owned()),
            metadata["name"].text().to_owned(),
        )
    };
    classes
        .iter()
        .filter(|class| class["metadata"]["annotations"][DEFAULT] == "true")
        .min_by_key(key)
        .map(|class| class["metadata"]["name"].text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_wins() {
        let class = |name: &str, default: &str, made: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": made,
                "annotations": {DEFAULT: default}}})
        };
        let old = class("old", "true", "2026-01-01T00:00:00Z");
        let new = class("new", "true", "2026-01-02T00:00:00Z");
        let alike = class("alike", "true", "2026-01-02T00:00:00Z");
        let other = class("other", "false", "2026-01-03T00:00:00Z");
        let cases = [
            (vec![old.clone(), new.clone(), other.clone()], Some("new")),
            (vec![old, new, alike], Some("alike")),
            (vec![other], None),
        ];
        for (classes, want) in cases {
            assert_eq!(default_of(&classes), want, "{classes:?}");
        }
    }
}
