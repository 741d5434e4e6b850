//! NodeRestriction: a kubelet changes its own node and the pods bound to it, and nothing else.
//!
//! Source: `plugin/pkg/admission/noderestriction`.

use apimachinery::{Status, meta};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::authz::node::node_name;
use crate::gate::Operation;
use crate::registry::Registry;
use crate::zero::Zero;

const MIRROR: &str = "kubernetes.io/config.mirror";
const RESTRICTED_PREFIX: &str = "node-restriction.kubernetes.io/";
/// Labels of Kubernetes' own that a kubelet may set on its node.
const OWN_LABELS: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Refuses what a node may not do; others are not looked at.
pub fn admit(
    registry: &Registry,
    ctx: &RequestContext,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(node) = node_name(&ctx.user) else { return Ok(()) };
    let refuse = |why: String| Err(Status::forbidden(&ctx.group, &ctx.plural, &ctx.name, &why));
    let why = match (ctx.group.as_str(), ctx.plural.as_str(), ctx.subresource.as_str()) {
        ("", "pods", "") => pod(registry, ctx, node, operation, object),
        ("", "pods", "status") => bound_here(
            node,
            old,
            "can only update pod status for pods with spec.nodeName set to itself",
        ),
        ("", "pods", "eviction") => {
            let pod = registry.get("", "pods", &ctx.namespace, &ctx.name).map(|pod| pod.to_value());
            bound_here(node, pod.as_ref(), "can only evict pods with spec.nodeName set to itself")
        }
        ("", "nodes", _) => own_node(ctx, node, operation, object, old),
        ("coordination.k8s.io", "leases", "") => {
            let named = object.map_or(ctx.name.as_str(), meta::name);
            (named != node)
                .then(|| format!("can only access node lease with the same name as the requesting node, {named:?}"))
        }
        ("storage.k8s.io", "csinodes", "") => {
            let named = object.map_or(ctx.name.as_str(), meta::name);
            (named != node)
                .then(|| "can only access CSINode with the same name as the requesting node".into())
        }
        ("", "serviceaccounts", "token") => token(registry, ctx, node, object),
        ("certificates.k8s.io", "podcertificaterequests", "") if operation == Operation::Create => {
            certificate(registry, ctx, node, object)
        }
        ("", "persistentvolumeclaims", _) if operation == Operation::Update => {
            claim(ctx, object, old)
        }
        ("resource.k8s.io", "resourceslices", "") => {
            let mut names =
                [object, old].into_iter().flatten().map(|o| o["spec"]["nodeName"].text());
            names.any(|named| named != node).then(|| {
                "can only access ResourceSlice with the same NodeName as the requesting node".into()
            })
        }
        _ => None,
    };
    why.map_or(Ok(()), |why| refuse(format!("node {node:?} {why}")))
}

fn bound_here(node: &str, pod: Option<&Value>, why: &str) -> Option<String> {
    let here = pod.is_some_and(|pod| pod["spec"]["nodeName"].text() == node);
    (!here).then(|| why.to_owned())
}

fn pod(
    registry: &Registry,
    ctx: &RequestContext,
    node: &str,
    operation: Operation,
    object: Option<&Value>,
) -> Option<String> {
    match operation {
        Operation::Create => {
            let pod = object?;
            if !pod["metadata"]["annotations"][MIRROR].is_string() {
                return Some(format!(
                    "pod does not have {MIRROR:?} annotation, node can only create mirror pods"
                ));
            }
            if pod["spec"]["nodeName"].text() != node {
                return Some("can only create pods with spec.nodeName set to itself".into());
            }
            owner(registry, node, pod).or_else(|| reference(pod))
        }
        Operation::Delete => {
            let pod = registry.get("", "pods", &ctx.namespace, &ctx.name)?.to_value();
            bound_here(node, Some(&pod), "can only delete pods with spec.nodeName set to itself")
        }
        Operation::Update => Some("can not update pods".into()),
        Operation::Connect => None,
    }
}

/// A mirror pod belongs to its node, or to nobody.
fn owner(registry: &Registry, node: &str, pod: &Value) -> Option<String> {
    let owner = match pod["metadata"]["ownerReferences"].items() {
        [] => return None,
        [owner] => owner,
        _ => {
            return Some("can only create pods with a single owner reference set to itself".into());
        }
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return Some("can only create pods with an owner reference set to itself".into());
    }
    if !owner["controller"].flag() {
        return Some("can only create pods with a controller owner reference set to itself".into());
    }
    if owner["blockOwnerDeletion"].flag() {
        return Some("must not set blockOwnerDeletion on an owner reference".into());
    }
    let own = registry.get("", "nodes", "", node)?;
    let uid = owner["uid"].text();
    (uid != own.uid).then(|| format!("UID mismatch: expected {} got {uid}", own.uid))
}

/// What a mirror pod must not refer to: the kubelet could read it through the pod.
fn reference(pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    let containers = || {
        ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| spec[list].items())
    };
    let from_env = |source: &str, key: &str| {
        containers().any(|container| {
            container["envFrom"].items().iter().any(|from| from[source].is_set())
                || container["env"].items().iter().any(|env| env["valueFrom"][key].is_set())
        })
    };
    let in_volume = |kinds: &[&str]| {
        spec["volumes"].items().iter().any(|volume| {
            let projected = volume["projected"]["sources"].items();
            kinds.iter().any(|kind| {
                volume[*kind].is_set() || projected.iter().any(|source| source[*kind].is_set())
            })
        })
    };
    let secrets = !spec["imagePullSecrets"].items().is_empty()
        || in_volume(&["secret"])
        || from_env("secretRef", "secretKeyRef");
    let config_maps = in_volume(&["configMap"]) || from_env("configMapRef", "configMapKeyRef");
    let checks = [
        (!spec["serviceAccountName"].text().is_empty(), "a service account"),
        (secrets, "secrets"),
        (config_maps, "configmaps"),
        (in_volume(&["persistentVolumeClaim", "ephemeral"]), "persistentvolumeclaims"),
        (in_volume(&["clusterTrustBundle"]), "clustertrustbundles"),
        (!spec["resourceClaims"].items().is_empty(), "resourceclaims"),
    ];
    let (_, what) = checks.iter().find(|(found, _)| *found)?;
    Some(format!("can not create pods that reference {what}"))
}

/// A kubelet reports the growth of a claim and nothing else.
fn claim(ctx: &RequestContext, object: Option<&Value>, old: Option<&Value>) -> Option<String> {
    if ctx.subresource != "status" {
        return Some("may only update PVC status".into());
    }
    let rest = |claim: &Value| {
        let mut rest = claim.clone();
        for key in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            rest["status"][key] = Value::Null;
        }
        for key in ["resourceVersion", "managedFields"] {
            rest["metadata"][key] = Value::Null;
        }
        rest
    };
    let (object, old) = (object?, old?);
    (rest(object) != rest(old)).then(|| {
        "is not allowed to update fields other than status.quantity and status.conditions".into()
    })
}

fn own_node(
    ctx: &RequestContext,
    node: &str,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Option<String> {
    let named = object.map_or(ctx.name.as_str(), meta::name);
    if named != node {
        return Some(format!("is not allowed to modify node {named:?}"));
    }
    if operation == Operation::Delete {
        return Some("is not allowed to delete nodes".into());
    }
    let object = object?;
    let before = old.map(|old| &old["metadata"]["labels"]);
    let changed: Vec<&str> = object["metadata"]["labels"]
        .entries()
        .filter(|(key, value)| before.is_none_or(|b| b.get(key) != Some(value)))
        .map(|(key, _)| key.as_str())
        .chain(
            before
                .into_iter()
                .flat_map(Zero::entries)
                .map(|(key, _)| key.as_str())
                .filter(|key| object["metadata"]["labels"].get(key).is_none()),
        )
        .filter(|key| !may_label(key))
        .collect();
    if !changed.is_empty() {
        return Some(format!("is not allowed to modify labels: {}", changed.join(", ")));
    }
    let owners = |object: &Value| object["metadata"]["ownerReferences"].clone();
    if old.is_some_and(|old| owners(old) != owners(object)) {
        return Some("is not allowed to modify ownerReferences".into());
    }
    let taints = |object: &Value| object["spec"]["taints"].clone();
    if old.is_some_and(|old| taints(old) != taints(object)) {
        return Some("is not allowed to modify taints".into());
    }
    None
}

/// Labels outside Kubernetes' own names are free, save those that are kept from nodes.
fn may_label(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return true };
    if key.starts_with(RESTRICTED_PREFIX) || prefix.ends_with(".node-restriction.kubernetes.io") {
        return false;
    }
    let own = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if !own("kubernetes.io") && !own("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&key)
        || prefix == "node.kubernetes.io"
        || prefix.ends_with(".node.kubernetes.io")
        || prefix == "kubelet.kubernetes.io"
        || prefix.ends_with(".kubelet.kubernetes.io")
}

fn token(
    registry: &Registry,
    ctx: &RequestContext,
    node: &str,
    object: Option<&Value>,
) -> Option<String> {
    let reference = &object?["spec"]["boundObjectRef"];
    if reference["kind"] != "Pod" || reference["name"].text().is_empty() {
        return Some("requested token not bound to a pod".into());
    }
    if reference["uid"].text().is_empty() {
        return Some("requested token with a pod binding without a uid".into());
    }
    let pod = registry.get("", "pods", &ctx.namespace, reference["name"].text())?;
    if pod.uid != reference["uid"].text() {
        return Some(format!(
            "the UID in the bound object reference ({}) does not match the UID in record",
            reference["uid"].text()
        ));
    }
    let here = pod.value()["spec"]["nodeName"].text() == node;
    (!here).then(|| "requested token bound to a pod scheduled on a different node".into())
}

/// A kubelet asks for certificates of pods that it runs, in the name of their accounts.
fn certificate(
    registry: &Registry,
    ctx: &RequestContext,
    node: &str,
    object: Option<&Value>,
) -> Option<String> {
    let spec = &object?["spec"];
    let own = registry.get("", "nodes", "", node).map(|own| own.uid.clone()).unwrap_or_default();
    if spec["nodeName"].text() != node || spec["nodeUID"].text() != own {
        return Some("can only request certificates for pods on itself".into());
    }
    let name = spec["podName"].text();
    let Some(pod) = registry.get("", "pods", &ctx.namespace, name) else {
        return Some(format!("requested a certificate for pod {name:?}, which is not there"));
    };
    let of = pod.to_value();
    let account = of["spec"]["serviceAccountName"].text();
    let accounts = registry.get("", "serviceaccounts", &ctx.namespace, account);
    let checks = [
        (spec["podUID"].text() == pod.uid, "with another UID than that in record"),
        (of["spec"]["nodeName"].text() == node, "that is scheduled on a different node"),
        (!of["metadata"]["annotations"][MIRROR].is_set(), "that is a mirror of a static one"),
        (spec["serviceAccountName"].text() == account, "in the name of another account"),
        (
            accounts.is_some_and(|found| found.uid == spec["serviceAccountUID"].text()),
            "with another UID of its account than that in record",
        ),
    ];
    let (_, what) = checks.iter().find(|(holds, _)| !holds)?;
    Some(format!("requested a certificate for pod {name:?} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::UserInfo;
    use serde_json::json;

    #[test]
    fn mirror_pods_refer_to_nothing() {
        let cases = [
            (json!({"containers": [{"name": "c"}], "volumes": [{"hostPath": {}}]}), None),
            (json!({"serviceAccountName": "a"}), Some("a service account")),
            (
                json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {}}}]}]}),
                Some("secrets"),
            ),
            (
                json!({"volumes": [{"projected": {"sources": [{"configMap": {}}]}}]}),
                Some("configmaps"),
            ),
            (json!({"resourceClaims": [{}]}), Some("resourceclaims")),
        ];
        for (spec, want) in cases {
            let want = want.map(|what| format!("can not create pods that reference {what}"));
            assert_eq!(reference(&json!({"spec": spec})), want, "{spec}");
        }
        let owned = |owner: Value| json!({"metadata": {"ownerReferences": [owner]}});
        let registry = Registry::default();
        let other = owned(json!({"apiVersion": "v1", "kind": "Node", "name": "b"}));
        assert!(owner(&registry, "a", &other).is_some());
        let own = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "controller": true});
        assert_eq!(owner(&registry, "a", &owned(own)), None);
    }

    #[test]
    fn nodes_keep_to_themselves() {
        let registry = Registry::default();
        let ctx = |plural: &str, subresource: &str, name: &str| RequestContext {
            user: std::sync::Arc::new(UserInfo::new("system:node:a", &["system:nodes"])),
            verb: "update",
            plural: plural.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..RequestContext::default()
        };
        let admitted = |ctx: &RequestContext, operation, object: Value, old: Option<Value>| {
            admit(&registry, ctx, operation, Some(&object), old.as_ref()).is_ok()
        };
        let node =
            |name: &str, label: &str| json!({"metadata": {"name": name, "labels": {label: "x"}}});
        let cases = [
            (
                ctx("nodes", "", "a"),
                Operation::Create,
                node("a", "kubernetes.io/hostname"),
                None,
                true,
            ),
            (ctx("nodes", "", "a"), Operation::Create, node("a", "x.io/y"), None, true),
            (ctx("nodes", "", "b"), Operation::Create, node("b", "x"), None, false),
            (
                ctx("nodes", "", "a"),
                Operation::Update,
                node("a", "node-restriction.kubernetes.io/x"),
                Some(json!({})),
                false,
            ),
            (
                ctx("nodes", "", "a"),
                Operation::Update,
                node("a", "node-role.kubernetes.io/x"),
                Some(json!({})),
                false,
            ),
            (
                ctx("pods", "status", "p"),
                Operation::Update,
                json!({}),
                Some(json!({"spec": {"nodeName": "a"}})),
                true,
            ),
            (
                ctx("pods", "status", "p"),
                Operation::Update,
                json!({}),
                Some(json!({"spec": {"nodeName": "b"}})),
                false,
            ),
            (
                ctx("pods", "", "p"),
                Operation::Create,
                json!({"spec": {"nodeName": "a"}}),
                None,
                false,
            ),
            (
                ctx("pods", "", "p"),
                Operation::Create,
                json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "a"}}),
                None,
                true,
            ),
        ];
        for (ctx, operation, object, old, want) in cases {
            assert_eq!(admitted(&ctx, operation, object.clone(), old), want, "{ctx:?} {object}");
        }
    }
}
