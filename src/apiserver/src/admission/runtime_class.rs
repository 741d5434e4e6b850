//! RuntimeClass: a pod's class must exist; its overhead and scheduling become the pod's.

use apimachinery::Status;
use serde_json::{Value, json};

use crate::registry::Registry;
use crate::zero::{Zero, default_to};

/// Completes a new pod.
pub fn admit(registry: &Registry, pod: &mut Value) -> Result<(), Status> {
    let name = pod["spec"]["runtimeClassName"].text().to_owned();
    if name.is_empty() {
        return Ok(());
    }
    let refused =
        |why: String| Err(Status::forbidden("", "pods", pod["metadata"]["name"].text(), &why));
    let Some(class) = registry.get("node.k8s.io", "runtimeclasses", "", &name) else {
        return refused(format!("pod rejected: RuntimeClass {name:?} not found"));
    };
    let class = class.to_value();
    let overhead = &class["overhead"]["podFixed"];
    if overhead.is_set() {
        let given = &pod["spec"]["overhead"];
        if given.is_set() && given != overhead {
            return refused(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            );
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].entries() {
        let conflict = pod["spec"]["nodeSelector"].get(key).is_some_and(|other| other != value);
        if conflict {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.text(),
                pod["spec"]["nodeSelector"][key].text()
            );
            return Err(Status::forbidden("", "pods", pod["metadata"]["name"].text(), &why));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let tolerations = class["scheduling"]["tolerations"].items().to_vec();
    if !tolerations.is_empty() {
        default_to(&mut pod["spec"], "tolerations", || json!([]));
        if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
            list.extend(tolerations);
        }
    }
    Ok(())
}
