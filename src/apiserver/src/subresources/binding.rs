//! `pods/binding`: the scheduler's word on where a pod runs.
//!
//! Source: `BindingREST` of `pkg/registry/core/pod/storage`.

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta, time};
use serde_json::{Value, json};

use super::{done, read};
use crate::body::{Body, Response};
use crate::codec::Expected;
use crate::gate::Operation;
use crate::registry::Registry;
use crate::rest::Call;
use crate::zero::Zero;

const BINDING: Expected<'static> = Expected::builtin("", "v1", "Binding");
/// Labels of a node that its pods carry too (`PodTopologyLabels`).
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Assigns the pod to the node of the body.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let mut binding = read(call, body, BINDING).await?;
    if call.ctx.name.is_empty() {
        meta::name(&binding).clone_into(&mut call.ctx.name);
    }
    let name = call.ctx.name.clone();
    if !meta::name(&binding).is_empty() && meta::name(&binding) != name {
        return Err(Status::bad_request(format!(
            "name in URL does not match name in Binding object: {name:?} vs {:?}",
            meta::name(&binding)
        )));
    }
    let registry = call.server.registry.clone();
    let Some(pods) = registry.resource("", "pods") else {
        return Err(Status::internal("pods are not served"));
    };
    let mut ctx = call.ctx.clone();
    ctx.plural = "pods".into();
    ctx.subresource = "binding".into();
    ctx.resource = Some(pods);
    call.server.gate().mutate(&ctx, Operation::Create, Some(&mut binding), None).await?;
    let errors = validate(&binding);
    if !errors.is_empty() {
        return Err(Status::invalid("", "Binding", &name, &errors));
    }
    let labels = topology(&registry, binding["target"]["name"].text());
    registry.update_with(&ctx, &|pod| assign(pod, &binding, &labels)).await?;
    Ok(done(call))
}

fn validate(binding: &Value) -> Vec<Error> {
    let target = Path::new("target");
    let mut errors = Vec::new();
    let kind = binding["target"]["kind"].text();
    if !matches!(kind, "" | "Node") {
        errors.push(Error::not_supported(&target.child("kind"), kind, &["Node", "<empty>"]));
    }
    if binding["target"]["name"].text().is_empty() {
        errors.push(Error::required(&target.child("name"), ""));
    }
    errors
}

fn topology(registry: &Registry, node: &str) -> Vec<(String, Value)> {
    let Some(node) = registry.get("", "nodes", "", node) else { return Vec::new() };
    TOPOLOGY
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), node.labels.get(*key)?.clone().into())))
        .collect()
}

/// Sets the node, the binding's annotations and the condition `PodScheduled`.
fn assign(pod: &mut Value, binding: &Value, labels: &[(String, Value)]) -> Result<(), Status> {
    let name = meta::name(pod).to_owned();
    let refused = |why: String| Err(Status::conflict("", "pods/binding", &name, &why));
    let (uid, version) = (meta::uid(binding), meta::resource_version(binding));
    if !uid.is_empty() && uid != meta::uid(pod) {
        return refused(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(pod)
        ));
    }
    if !version.is_empty() && version != meta::resource_version(pod) {
        return refused(format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            meta::resource_version(pod)
        ));
    }
    if meta::deletion_timestamp(pod).is_some() {
        return refused(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let host = pod["spec"]["nodeName"].text();
    if !host.is_empty() {
        return refused(format!("pod {name} is already assigned to node {host:?}"));
    }
    if !pod["spec"]["schedulingGates"].items().is_empty() {
        return refused(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for (key, value) in binding["metadata"]["annotations"].entries() {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    for (key, value) in labels {
        pod["metadata"]["labels"][key] = value.clone();
    }
    // The status keeps what the scheduler thought of while it had no place.
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": time::now(),
    });
    let conditions = pod["status"].get("conditions").map_or(&[][..], Zero::items).to_vec();
    let mut conditions: Vec<Value> =
        conditions.into_iter().filter(|c| c["type"] != "PodScheduled").collect();
    conditions.push(scheduled);
    pod["status"]["conditions"] = conditions.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let binding = json!({"target": {"kind": "Node", "name": "n"},
            "metadata": {"annotations": {"a": "b"}}});
        let pod = || {
            json!({"metadata": {"name": "p", "uid": "u"}, "spec": {}, "status": {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False"}, {"type": "X"}]}})
        };
        let mut bound = pod();
        assign(&mut bound, &binding, &[("zone".into(), "z".into())]).unwrap();
        assert_eq!(bound["spec"]["nodeName"], "n");
        assert_eq!(bound["metadata"]["annotations"]["a"], "b");
        assert_eq!(bound["metadata"]["labels"]["zone"], "z");
        assert_eq!(bound["status"]["conditions"][1]["status"], "True");
        let error = assign(&mut bound, &binding, &[]).unwrap_err();
        assert_eq!(error.code, 409);
        assert_eq!(
            error.message,
            r#"Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n""#
        );
        let mut deleted = pod();
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(assign(&mut deleted, &binding, &[]).is_err());
        let mut gated = pod();
        gated["spec"]["schedulingGates"] = json!([{"name": "g"}]);
        assert!(assign(&mut gated, &binding, &[]).is_err());
        let stranger = json!({"target": {"name": "n"}, "metadata": {"uid": "v"}});
        assert!(assign(&mut pod(), &stranger, &[]).is_err());
    }

    #[test]
    fn bindings_name_a_node() {
        assert!(validate(&json!({"target": {"name": "n"}})).is_empty());
        assert_eq!(validate(&json!({"target": {"kind": "Pod"}})).len(), 2);
    }
}
