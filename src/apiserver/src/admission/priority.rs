//! Priority: a pod's class becomes its number.
//!
//! Source: `plugin/pkg/admission/priority`.

use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::Status;
use serde::Deserialize;
use serde_json::Value;

use crate::registry::Registry;
use crate::zero::Zero;

const GROUP: &str = "scheduling.k8s.io";

/// Sets `priority` and `preemptionPolicy` of a new pod.
pub fn admit(registry: &Registry, usual: &Usual, pod: &mut Value) -> Result<(), Status> {
    let name = pod["spec"]["priorityClassName"].text().to_owned();
    let class = if name.is_empty() {
        usual.class(registry)
    } else {
        let found = registry.get(GROUP, "priorityclasses", "", &name).map(|class| class.value());
        if found.is_none() {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(Status::forbidden("", "pods", pod["metadata"]["name"].text(), &why));
        }
        found
    };
    decide(pod, class.as_deref())
}

/// The class of pods that name none, as of a revision of the classes.
#[derive(Default)]
pub struct Usual(Mutex<Option<(u64, Option<Arc<Value>>)>>);

impl Usual {
    fn class(&self, registry: &Registry) -> Option<Arc<Value>> {
        let revision = registry.changed(GROUP, "priorityclasses");
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, class)) if *at == revision => class.clone(),
            _ => {
                let class = default_class(registry).map(Arc::new);
                *known = Some((revision, class.clone()));
                class
            }
        }
    }
}

fn decide(pod: &mut Value, class: Option<&Value>) -> Result<(), Status> {
    let pod_name = pod["metadata"]["name"].text().to_owned();
    let Some(spec) = pod.get_mut("spec").filter(|spec| spec.is_object()) else { return Ok(()) };
    let (name, priority, policy) = class.map_or((String::new(), 0, ""), |class| {
        (
            class["metadata"]["name"].text().to_owned(),
            class["value"].int(),
            class["preemptionPolicy"].text(),
        )
    });
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let clash = |what: &str| {
        let why = format!(
            "the {what} specified in the pod spec must not be provided, or must match the one of the PriorityClass"
        );
        Err(Status::forbidden("", "pods", &pod_name, &why))
    };
    if spec.get("priority").and_then(Value::as_i64).is_some_and(|given| given != priority) {
        let given = spec["priority"].int();
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        );
        return Err(Status::forbidden("", "pods", &pod_name, &why));
    }
    if spec.get("preemptionPolicy").and_then(Value::as_str).is_some_and(|given| given != policy) {
        return clash("string value of PreemptionPolicy");
    }
    if !name.is_empty() {
        spec["priorityClassName"] = name.into();
    }
    spec["priority"] = priority.into();
    spec["preemptionPolicy"] = policy.into();
    Ok(())
}

/// What is looked at in each class for each pod that names none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marked {
    #[serde(default)]
    global_default: bool,
}

/// The class marked `globalDefault`; of several the one with the lowest value.
fn default_class(registry: &Registry) -> Option<Value> {
    registry
        .list(GROUP, "priorityclasses", None)
        .iter()
        .filter(|class| class.parse::<Marked>().is_ok_and(|class| class.global_default))
        .map(|class| class.to_value())
        .min_by_key(|class| class["value"].int())
}

/// There is one default class at most.
pub fn validate_class(registry: &Registry, class: &Value) -> Result<(), Status> {
    let name = class["metadata"]["name"].text();
    if !class["globalDefault"].flag() {
        return Ok(());
    }
    match default_class(registry) {
        Some(other) if other["metadata"]["name"].text() != name => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other["metadata"]["name"].text()
            );
            Err(Status::forbidden(GROUP, "priorityclasses", name, &why))
        }
        _ => Ok(()),
    }
}

/// Keeps the priority that the pod was given, where a change doesn't name one.
pub fn keep(pod: &mut Value, old: &Value) {
    for key in ["priority", "preemptionPolicy"] {
        let was = &old["spec"][key];
        if pod["spec"].is_object() && !was.is_null() && pod["spec"][key].is_null() {
            pod["spec"][key] = was.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_class_decides() {
        let class = json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never"});
        let cases = [
            (json!({}), None, Ok((0, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "high"}), Some(&class), Ok((7, "Never"))),
            (json!({"priority": 7}), Some(&class), Ok((7, "Never"))),
            (json!({"priority": 8}), Some(&class), Err(403)),
            (json!({"preemptionPolicy": "PreemptLowerPriority"}), Some(&class), Err(403)),
        ];
        for (spec, class, want) in cases {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
            let got = decide(&mut pod, class)
                .map_err(|status| status.code)
                .map(|()| (pod["spec"]["priority"].int(), pod["spec"]["preemptionPolicy"].text()));
            assert_eq!(got, want, "{spec}");
        }
    }
}
