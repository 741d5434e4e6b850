//! `pods/binding`: the scheduler's word on where a pod runs.
//!
//! Source: `BindingREST` of `pkg/registry/core/pod/storage`.

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta, time};
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::{done, read};
use crate::body::{Body, Response};
use crate::codec::Expected;
use crate::gate::Operation;
use crate::members::Members;
use crate::object::Object;
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
    call.server.gate().validate(&ctx, Operation::Create, Some(&binding), None).await?;
    let labels = labels(&registry, &binding);
    registry.rewrite(&ctx, &|pod| assign(pod, &binding, &labels)).await?;
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

/// The binding's labels, which the pod gets too, with those that say where the node is.
fn labels(registry: &Registry, binding: &Value) -> Map<String, Value> {
    let mut labels = binding["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if let Some(node) = registry.get("", "nodes", "", binding["target"]["name"].text()) {
        for key in TOPOLOGY {
            labels.extend(node.labels.get(key).map(|value| (key.to_owned(), Value::from(value))));
        }
    }
    labels
}

/// Why the binding does not hold for the pod.
fn refusal(
    pod: &Object,
    metadata: &Members<'_>,
    spec: &Members<'_>,
    binding: &Value,
) -> Option<String> {
    let (uid, version) = (meta::uid(binding), meta::resource_version(binding));
    let name = &pod.name;
    if !uid.is_empty() && uid != pod.uid {
        return Some(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            pod.uid
        ));
    }
    if !version.is_empty() && version != pod.revision.to_string() {
        return Some(format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            pod.revision
        ));
    }
    if metadata.read::<IgnoredAny>("deletionTimestamp").is_some() {
        return Some(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let host = spec.text("nodeName");
    if !host.is_empty() {
        return Some(format!("pod {name} is already assigned to node {host:?}"));
    }
    let gates = spec.read::<Vec<IgnoredAny>>("schedulingGates");
    let gated = gates.is_some_and(|gates| !gates.is_empty());
    gated.then(|| format!("pod {name} has non-empty .spec.schedulingGates"))
}

/// The conditions with `PodScheduled` true, which takes the place of what the scheduler thought of the pod while
/// it had no node.
fn scheduled(status: &Members<'_>) -> Value {
    let mut conditions: Vec<Value> = status.read("conditions").unwrap_or_default();
    let mut condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": time::now(),
    });
    match conditions.iter_mut().find(|known| known["type"] == "PodScheduled") {
        Some(known) => {
            if known["status"] == "True" {
                condition["lastTransitionTime"] = known["lastTransitionTime"].take();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
    conditions.into()
}

/// The pod as it is stored once it has its node: with the binding's annotations, `labels` and the condition
/// `PodScheduled`, and without the node that it was promised. The rest of it is not even read.
fn assign(pod: &Object, binding: &Value, labels: &Map<String, Value>) -> Result<Bytes, Status> {
    let text = std::str::from_utf8(&pod.raw).map_err(Status::internal)?;
    let mut members = Members::parse(text).map_err(Status::internal)?;
    let part = |name: &str| members.child(name).map_err(Status::internal);
    let (mut metadata, mut spec, mut status) = (part("metadata")?, part("spec")?, part("status")?);
    if let Some(why) = refusal(pod, &metadata, &spec, binding) {
        return Err(Status::conflict("", "pods/binding", &pod.name, &why));
    }
    spec.set("nodeName", binding["target"]["name"].to_string());
    let annotations = binding["metadata"]["annotations"].as_object();
    for (key, more) in [("annotations", annotations), ("labels", Some(labels))] {
        let Some(more) = more.filter(|more| !more.is_empty()) else { continue };
        let mut all: Map<String, Value> = metadata.read(key).unwrap_or_default();
        all.extend(more.clone());
        metadata.set(key, Value::from(all).to_string());
    }
    status.remove("nominatedNodeName");
    status.set("conditions", scheduled(&status).to_string());
    for (name, part) in [("metadata", metadata), ("spec", spec), ("status", status)] {
        members.set(name, part.to_string());
    }
    Ok(members.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let binding = json!({"target": {"kind": "Node", "name": "n"},
            "metadata": {"annotations": {"a": "b"}}});
        let zone = json!({"zone": "z"}).as_object().cloned().unwrap();
        let none = Map::new();
        let stored = |more: Value| {
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u",
                "annotations": {"x": "y"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Always"},
                "status": {"phase": "Pending", "nominatedNodeName": "other", "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}, {"type": "X"}]}});
            apimachinery::patch::merge(&mut pod, &more);
            Object::from_stored(crate::object::encode(&pod).0, 7, &[]).unwrap()
        };
        let bound = assign(&stored(json!({})), &binding, &zone).unwrap();
        let value: Value = serde_json::from_slice(&bound).unwrap();
        assert_eq!(crate::object::encode(&value).0, bound, "in the order in which it is stored");
        let spec =
            json!({"containers": [{"name": "c"}], "nodeName": "n", "restartPolicy": "Always"});
        assert_eq!(value["spec"], spec);
        assert_eq!(value["metadata"]["annotations"], json!({"a": "b", "x": "y"}));
        assert_eq!(value["metadata"]["labels"], json!({"zone": "z"}));
        let conditions = &value["status"]["conditions"];
        let told = (&conditions[0]["status"], &conditions[0]["reason"], &conditions[1]["type"]);
        assert_eq!(told, (&json!("True"), &Value::Null, &json!("X")));
        assert_eq!(value["status"]["nominatedNodeName"], Value::Null);

        for (more, about, why) in [
            (
                json!({"spec": {"nodeName": "n"}}),
                json!({}),
                r#"pod p is already assigned to node "n""#,
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                json!({}),
                "pod p is being deleted, cannot be assigned to a host",
            ),
            (
                json!({"spec": {"schedulingGates": [{"name": "g"}]}}),
                json!({}),
                "pod p has non-empty .spec.schedulingGates",
            ),
            (
                json!({}),
                json!({"metadata": {"uid": "v"}}),
                "Precondition failed: UID in precondition: v, UID in object meta: u",
            ),
            (
                json!({}),
                json!({"metadata": {"resourceVersion": "6"}}),
                "Precondition failed: ResourceVersion in precondition: 6, ResourceVersion in object meta: 7",
            ),
        ] {
            let mut binding = binding.clone();
            apimachinery::patch::merge(&mut binding, &about);
            let error = assign(&stored(more), &binding, &none).unwrap_err();
            let want = format!(r#"Operation cannot be fulfilled on pods/binding "p": {why}"#);
            assert_eq!((error.code, error.message), (409, want));
        }
        let first = stored(json!({"spec": {"schedulingGates": []}, "status": null}));
        let first = assign(&first, &binding, &none).unwrap();
        assert!(String::from_utf8_lossy(&first).contains("PodScheduled"));
    }

    #[test]
    fn bindings_name_a_node() {
        assert!(validate(&json!({"target": {"name": "n"}})).is_empty());
        assert_eq!(validate(&json!({"target": {"kind": "Pod"}})).len(), 2);
    }
}
