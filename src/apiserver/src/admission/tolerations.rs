//! DefaultTolerationSeconds: pods stay five minutes on a node that is lost. TaintNodesByCondition: a
//! new node takes no pods before it says that it is ready.

use serde_json::{Value, json};

use crate::zero::{Zero, default_to};

const SECONDS: i64 = 300;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Adds the two tolerations where the pod has none like them.
pub fn admit(pod: &mut Value) {
    let spec = &mut pod["spec"];
    for key in [NOT_READY, UNREACHABLE] {
        let has = spec["tolerations"].items().iter().any(|toleration| {
            matches!(toleration["key"].text(), "" | NOT_READY | UNREACHABLE)
                && (toleration["key"] == key || toleration["key"].text().is_empty())
                && matches!(toleration["effect"].text(), "" | "NoExecute")
        });
        if has || !spec.is_object() {
            continue;
        }
        default_to(spec, "tolerations", || json!([]));
        if let Some(list) = spec["tolerations"].as_array_mut() {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": SECONDS,
            }));
        }
    }
}

/// Adds the taint that the node controller takes away once the node is ready.
pub fn taint_new_node(node: &mut Value) {
    default_to(node, "spec", || json!({}));
    let spec = &mut node["spec"];
    let has = spec["taints"]
        .items()
        .iter()
        .any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule");
    if has || !spec.is_object() {
        return;
    }
    default_to(spec, "taints", || json!([]));
    if let Some(taints) = spec["taints"].as_array_mut() {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kubectl apply` of a file with tolerations sends these alone when it is applied again.
    #[tokio::test]
    async fn what_was_added_stays_when_a_pod_is_applied_again() {
        let f = crate::tests::Fixture::new().await;
        let account = json!({"metadata": {"name": "default"}});
        f.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        let own = json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]);
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({"metadata": {"name": "a"}, "spec": {"tolerations": own,
            "containers": [{"name": "c", "image": "i"}]}});
        let made = f.post(pods, &pod).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let again =
            json!({"spec": {"tolerations": own, "priority": null, "preemptionPolicy": null}});
        let patched = f.patch(&format!("{pods}/a"), "strategic-merge", &again).await;
        assert_eq!(patched.code, 200, "{}", patched.body);
        for key in ["tolerations", "priority", "preemptionPolicy"] {
            assert_eq!(patched.body["spec"][key], made.body["spec"][key], "{key}");
        }
        assert_eq!(patched.body["metadata"]["generation"], 1);
    }

    #[test]
    fn own_tolerations_are_respected() {
        let cases = [
            (json!([]), 2),
            (json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"}]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (json!([{"key": NOT_READY, "effect": "NoSchedule"}]), 3),
        ];
        for (tolerations, want) in cases {
            let mut pod = json!({"spec": {"tolerations": tolerations}});
            admit(&mut pod);
            assert_eq!(pod["spec"]["tolerations"].items().len(), want, "{pod}");
        }
    }
}
