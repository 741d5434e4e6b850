//! The node authoriser: a kubelet reads what the pods bound to its node refer to, and changes only
//! what is its own.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/node/>.

use std::sync::LazyLock;

use serde_json::Value;

use super::Decision;
use super::rules::Rule;
use crate::attributes::{RequestContext, UserInfo};
use crate::registry::Registry;

/// What every node may do, besides the resources that [`authorize`] looks into. These are also the
/// rules of the ClusterRole `system:node`.
pub const RULES: &[&str] = &[
    "create authentication.k8s.io tokenreviews",
    "create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews",
    "read - services",
    "create,get,list,watch - nodes",
    "patch,update - nodes/status",
    "patch,update - nodes",
    "create,patch,update - events",
    "create,patch,update events.k8s.io events",
    "read - pods",
    "create,delete - pods",
    "patch,update - pods/status",
    "create - pods/eviction",
    "read - configmaps,secrets",
    "get - persistentvolumeclaims,persistentvolumes",
    "get - endpoints",
    "create,get,list,watch certificates.k8s.io certificatesigningrequests",
    "create,get,list,watch certificates.k8s.io podcertificaterequests",
    "read certificates.k8s.io clustertrustbundles",
    "create,delete,get,patch,update coordination.k8s.io leases",
    "get storage.k8s.io volumeattachments",
    "get,patch,update - persistentvolumeclaims/status",
    "create - serviceaccounts/token",
    "read storage.k8s.io csidrivers",
    "create,delete,get,patch,update storage.k8s.io csinodes",
    "read node.k8s.io runtimeclasses",
    "get resource.k8s.io resourceclaims",
    "deletecollection resource.k8s.io resourceslices",
    "create,delete,get,list,patch,update,watch resource.k8s.io resourceslices",
];

static PARSED: LazyLock<Vec<Rule>> =
    LazyLock::new(|| RULES.iter().map(|line| Rule::from_line(line)).collect());

/// The node that `user` is, when it is one.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    if !user.in_group("system:nodes") {
        return None;
    }
    user.name.strip_prefix("system:node:").filter(|name| !name.is_empty())
}

fn no(reason: String) -> Decision {
    Decision::NoOpinion { reason }
}

fn yes() -> Decision {
    Decision::Allow { reason: String::new() }
}

/// Decides on requests of nodes; has no opinion on others.
pub fn authorize(registry: &Registry, ctx: &RequestContext) -> Decision {
    let Some(node) = node_name(&ctx.user) else { return no(String::new()) };
    match (ctx.group.as_str(), ctx.plural.as_str(), ctx.subresource.as_str()) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") => referenced(
            registry,
            ctx,
            node,
            &["get", "list", "watch"][..if ctx.plural == "persistentvolumeclaims" { 1 } else { 3 }],
        ),
        ("", "persistentvolumeclaims", "status") => {
            referenced(registry, ctx, node, &["get", "update", "patch"])
        }
        ("", "serviceaccounts", "token") => {
            if ctx.verb == "create" && runs_as(registry, ctx, node) {
                yes()
            } else {
                unrelated(node)
            }
        }
        ("", "serviceaccounts", "") if ctx.verb == "get" => {
            // Kubelets read the account of a pod to find image pull credentials.
            if runs_as(registry, ctx, node) { yes() } else { unrelated(node) }
        }
        ("coordination.k8s.io", "leases", _) => own(ctx, node, "kube-node-lease", "node lease"),
        ("storage.k8s.io", "csinodes", _) => own(ctx, node, "", "CSINode"),
        _ if PARSED.iter().any(|rule| rule.allows(ctx)) => yes(),
        _ => no(String::new()),
    }
}

fn unrelated(node: &str) -> Decision {
    no(format!("no relationship found between node '{node}' and this object"))
}

/// An object of the node's own name; on create the name may be unknown yet.
fn own(ctx: &RequestContext, node: &str, namespace: &str, what: &str) -> Decision {
    if !["get", "create", "update", "patch", "delete"].contains(&ctx.verb) {
        return no(format!("can only get, create, update, patch, or delete a {what}"));
    }
    if !namespace.is_empty() && ctx.namespace != namespace {
        return no(format!("can only access leases in the {namespace:?} system namespace"));
    }
    if ctx.verb != "create" && ctx.name != node {
        return no(format!("can only access {what} with the same name as the requesting node"));
    }
    yes()
}

fn referenced(registry: &Registry, ctx: &RequestContext, node: &str, verbs: &[&str]) -> Decision {
    if !verbs.contains(&ctx.verb) {
        return no("can only read resources of this type".into());
    }
    if ctx.name.is_empty() {
        return no("No Object name found".into());
    }
    if ctx.namespace.is_empty() {
        return no("can only read namespaced object of this type".into());
    }
    let related = match ctx.plural.as_str() {
        "persistentvolumeclaims" => claims(registry, &ctx.namespace, &ctx.name, node),
        "secrets" => {
            pods_naming(registry, ctx, node).any(|pod| refers(&pod, "secrets", &ctx.name))
                || mounts_with(registry, ctx, node)
        }
        plural => pods_naming(registry, ctx, node).any(|pod| refers(&pod, plural, &ctx.name)),
    };
    if related { yes() } else { unrelated(node) }
}

/// Whether a pod on `node` has the claim for a volume. The claim of an ephemeral volume is named after pod and
/// volume, so that its name stands nowhere in the pod.
fn claims(registry: &Registry, namespace: &str, name: &str, node: &str) -> bool {
    let wanted = format!("\"{name}\"");
    let pods = registry.list("", "pods", Some(namespace));
    pods.iter()
        .filter(|pod| {
            contains(&pod.raw, wanted.as_bytes()) || contains(&pod.raw, b"\"ephemeral\":")
        })
        .map(|pod| pod.to_value())
        .any(|pod| pod["spec"]["nodeName"] == *node && refers(&pod, "persistentvolumeclaims", name))
}

/// Whether a pod on `node` has a volume whose driver is given the secret.
fn mounts_with(registry: &Registry, ctx: &RequestContext, node: &str) -> bool {
    let wanted = format!("\"{}\"", ctx.name);
    let volumes = registry.list("", "persistentvolumes", None);
    let named = volumes.iter().filter(|volume| contains(&volume.raw, wanted.as_bytes()));
    named.map(|volume| volume.to_value()).any(|volume| {
        let claim = &volume["spec"]["claimRef"];
        let (namespace, name) = (claim["namespace"].as_str(), claim["name"].as_str());
        given(&volume, &ctx.namespace, &ctx.name)
            && claims(registry, namespace.unwrap_or_default(), name.unwrap_or_default(), node)
    })
}

/// Whether the node's part of a volume's driver is given the secret.
fn given(volume: &Value, namespace: &str, name: &str) -> bool {
    let csi = &volume["spec"]["csi"];
    ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"]
        .iter()
        .any(|key| csi[key]["namespace"] == *namespace && csi[key]["name"] == *name)
}

fn runs_as(registry: &Registry, ctx: &RequestContext, node: &str) -> bool {
    pods_naming(registry, ctx, node).any(|pod| pod["spec"]["serviceAccountName"] == *ctx.name)
}

/// The pods of the request's namespace on `node` whose text has the requested name; a look at the
/// bytes spares parsing the others.
fn pods_naming<'a>(
    registry: &Registry,
    ctx: &'a RequestContext,
    node: &'a str,
) -> impl Iterator<Item = Value> + 'a {
    let wanted = format!("\"{}\"", ctx.name);
    let pods = registry.list("", "pods", Some(&ctx.namespace));
    pods.into_iter()
        .filter(move |pod| contains(&pod.raw, wanted.as_bytes()))
        .map(|pod| pod.to_value())
        .filter(move |pod| pod["spec"]["nodeName"] == *node)
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether the pod refers to the object `name` of `plural`.
///
/// The one place where a reference may stand elsewhere than in a `name` field is told by kind:
/// volumes have `secretName` and `claimName`.
pub fn refers(pod: &Value, plural: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if plural == "persistentvolumeclaims" {
        return items(&spec["volumes"]).iter().any(|volume| {
            volume["persistentVolumeClaim"]["claimName"] == *name
                || (volume["ephemeral"].is_object()
                    && format!(
                        "{}-{}",
                        pod["metadata"]["name"].as_str().unwrap_or_default(),
                        volume["name"].as_str().unwrap_or_default()
                    ) == name)
        });
    }
    let secret = plural == "secrets";
    let in_volume = |volume: &Value| {
        let projected = items(&volume["projected"]["sources"]);
        if secret {
            volume["secret"]["secretName"] == *name
                || projected.iter().any(|source| source["secret"]["name"] == *name)
                || volume.as_object().is_some_and(|v| {
                    v.values().any(|kind| {
                        kind["secretRef"]["name"] == *name
                            || kind["nodePublishSecretRef"]["name"] == *name
                    })
                })
        } else {
            volume["configMap"]["name"] == *name
                || projected.iter().any(|source| source["configMap"]["name"] == *name)
        }
    };
    let in_container = |container: &Value| {
        let (from, key) = if secret {
            ("secretRef", "secretKeyRef")
        } else {
            ("configMapRef", "configMapKeyRef")
        };
        items(&container["envFrom"]).iter().any(|source| source[from]["name"] == *name)
            || items(&container["env"]).iter().any(|env| env["valueFrom"][key]["name"] == *name)
    };
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    (secret && items(&spec["imagePullSecrets"]).iter().any(|s| s["name"] == *name))
        || items(&spec["volumes"]).iter().any(in_volume)
        || containers.iter().any(|list| items(&spec[*list]).iter().any(in_container))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_they_stand() {
        let cases = [
            (json!({"volumes": [{"secret": {"secretName": "x"}}]}), "secrets", true),
            (json!({"volumes": [{"configMap": {"name": "x"}}]}), "configmaps", true),
            (json!({"volumes": [{"configMap": {"name": "x"}}]}), "secrets", false),
            (json!({"imagePullSecrets": [{"name": "x"}]}), "secrets", true),
            (
                json!({"initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "x"}}}]}]}),
                "secrets",
                true,
            ),
            (
                json!({"containers": [{"envFrom": [{"configMapRef": {"name": "x"}}]}]}),
                "configmaps",
                true,
            ),
            (
                json!({"volumes": [{"projected": {"sources": [{"configMap": {"name": "x"}}]}}]}),
                "configmaps",
                true,
            ),
            (
                json!({"volumes": [{"csi": {"nodePublishSecretRef": {"name": "x"}}}]}),
                "secrets",
                true,
            ),
            (
                json!({"volumes": [{"persistentVolumeClaim": {"claimName": "x"}}]}),
                "persistentvolumeclaims",
                true,
            ),
            (json!({"containers": [{"name": "x"}]}), "secrets", false),
        ];
        for (spec, plural, want) in cases {
            assert_eq!(refers(&json!({"spec": spec}), plural, "x"), want, "{spec} {plural}");
        }
    }

    #[tokio::test]
    async fn nodes_see_what_their_pods_mount() {
        use http::StatusCode;
        let f = crate::tests::Fixture::new().await;
        let pods = "/api/v1/namespaces/default/pods";
        let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
        let made = |answer: crate::tests::Answer| {
            assert_eq!(answer.code, StatusCode::CREATED, "{}", answer.body);
        };
        made(
            f.post(
                "/api/v1/namespaces/default/serviceaccounts",
                &json!({"metadata": {"name": "default"}}),
            )
            .await,
        );
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for name in ["p-scratch", "other", "held"] {
            made(f.post(claims, &json!({"metadata": {"name": name}, "spec": spec})).await);
        }
        for name in ["staged", "unused"] {
            let secret = json!({"metadata": {"name": name}});
            made(f.post("/api/v1/namespaces/default/secrets", &secret).await);
        }
        made(
            f.post(
                "/api/v1/persistentvolumes",
                &json!({"metadata": {"name": "v"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "default", "name": "held"},
            "csi": {"driver": "d.example.com", "volumeHandle": "h",
                "nodeStageSecretRef": {"namespace": "default", "name": "staged"}}}}),
            )
            .await,
        );
        made(
            f.post(
                pods,
                &json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a",
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}},
                {"name": "held", "persistentVolumeClaim": {"claimName": "held"}}]}}),
            )
            .await,
        );
        let f =
            f.seen_by(UserInfo::new("system:node:a", &["system:nodes", "system:authenticated"]));
        for (path, want) in [
            ("persistentvolumeclaims/p-scratch", StatusCode::OK),
            ("persistentvolumeclaims/held", StatusCode::OK),
            ("persistentvolumeclaims/other", StatusCode::FORBIDDEN),
            ("secrets/staged", StatusCode::OK),
            ("secrets/unused", StatusCode::FORBIDDEN),
        ] {
            let answer = f.get(&format!("/api/v1/namespaces/default/{path}")).await;
            assert_eq!(answer.code, want, "{path}: {}", answer.body);
        }
    }

    #[test]
    fn only_members_of_system_nodes_are_nodes() {
        let node = UserInfo::new("system:node:a", &["system:nodes"]);
        assert_eq!(node_name(&node), Some("a"));
        assert_eq!(node_name(&UserInfo::new("system:node:a", &[])), None);
        assert_eq!(node_name(&UserInfo::new("a", &["system:nodes"])), None);
    }
}
