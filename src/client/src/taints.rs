//! Which taints tolerations bear: those of nodes and those of devices.
//!
//! Sources: `Toleration.ToleratesTaint` of `k8s.io/api/core/v1`, `ToleratesTaint` of
//! `k8s.io/dynamic-resource-allocation/resourceclaim`.

use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration};

/// Key, value and effect.
type Marks<'a> = (&'a str, &'a str, &'a str);

fn text(field: Option<&String>) -> &str {
    field.map_or("", String::as_str)
}

fn bears(operator: &str, wanted: Marks<'_>, found: Marks<'_>) -> bool {
    let ((key, value, effect), (found_key, found_value, found_effect)) = (wanted, found);
    if !(effect.is_empty() || effect == found_effect) || !(key.is_empty() || key == found_key) {
        return false;
    }
    let numbers = || Some((found_value.parse::<i64>().ok()?, value.parse::<i64>().ok()?));
    match operator {
        "" | "Equal" => value == found_value,
        "Exists" => true,
        "Lt" => numbers().is_some_and(|(found, wanted)| found < wanted),
        "Gt" => numbers().is_some_and(|(found, wanted)| found > wanted),
        _ => false,
    }
}

/// Whether the toleration bears the taint of a node.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let wanted = (
        text(toleration.key.as_ref()),
        text(toleration.value.as_ref()),
        text(toleration.effect.as_ref()),
    );
    let found = (taint.key.as_str(), text(taint.value.as_ref()), taint.effect.as_str());
    bears(text(toleration.operator.as_ref()), wanted, found)
}

/// Whether the toleration bears the taint of a device.
pub fn tolerates_device(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let wanted = (
        text(toleration.key.as_ref()),
        text(toleration.value.as_ref()),
        text(toleration.effect.as_ref()),
    );
    let found = (taint.key.as_str(), text(taint.value.as_ref()), taint.effect.as_str());
    bears(text(toleration.operator.as_ref()), wanted, found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let taint = json!({"key": "k", "value": "950", "effect": "NoSchedule"});
        for (toleration, want) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "l", "operator": "Exists"}), false),
            (json!({"key": "k", "value": "950"}), true),
            (json!({"key": "k", "value": "950", "operator": "Equal"}), true),
            (json!({"key": "k", "value": "951"}), false),
            (json!({"key": "k", "value": "950", "effect": "NoSchedule"}), true),
            (json!({"key": "k", "value": "950", "effect": "NoExecute"}), false),
            (json!({"key": "k", "value": "951", "operator": "Lt"}), true),
            (json!({"key": "k", "value": "950", "operator": "Lt"}), false),
            (json!({"key": "k", "value": "949", "operator": "Gt"}), true),
            (json!({"key": "k", "value": "950", "operator": "Gt"}), false),
            (json!({"key": "k", "value": "x", "operator": "Gt"}), false),
            (json!({"key": "k", "value": "950", "operator": "Other"}), false),
        ] {
            let of_node = tolerates(
                &serde_json::from_value(toleration.clone()).expect("a toleration"),
                &serde_json::from_value(taint.clone()).expect("a taint"),
            );
            let of_device = tolerates_device(
                &serde_json::from_value(toleration.clone()).expect("a toleration"),
                &serde_json::from_value(taint.clone()).expect("a taint"),
            );
            assert_eq!((of_node, of_device), (want, want), "{toleration}");
        }
    }
}
