//! `pods/eviction`: deletion that a PodDisruptionBudget may refuse.
//!
//! Source: `EvictionREST` of `pkg/registry/core/pod/storage`.

use std::sync::Arc;

use apimachinery::labels::Selector;
use apimachinery::status::Cause;
use apimachinery::{Status, meta, time};
use serde_json::{Value, json};

use super::{done, read};
use crate::attributes::RequestContext;
use crate::body::{Body, Response};
use crate::codec::Expected;
use crate::gate::Operation;
use crate::object::Object;
use crate::options::{DeleteOptions, Query};
use crate::registry::Registry;
use crate::rest::Call;
use crate::zero::Zero;

/// Evictions that may wait for the controller to take note of them.
const DISRUPTED_MAX: usize = 2000;
const EVICTION: Expected<'static> = Expected::builtin("policy", "v1", "Eviction");

/// Deletes the pod, if its budget has room.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let eviction = read(call, body, EVICTION).await?;
    let (name, namespace) = (call.ctx.name.clone(), call.ctx.namespace.clone());
    if !meta::name(&eviction).is_empty() && meta::name(&eviction) != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions::parse(&Query::default(), Some(&eviction["deleteOptions"]))?;
    options.dry_run |= call.ctx.dry_run;
    call.ctx.dry_run = options.dry_run;
    let registry = call.server.registry.clone();
    registry.sync().await?;
    let Some(pod) = registry.get("", "pods", &namespace, &name) else {
        return Err(Status::not_found("", "pods", &name));
    };
    let gate = call.server.gate();
    gate.validate(&call.ctx, Operation::Create, Some(&eviction), None).await?;
    if needs_budget(&pod.to_value()) {
        if let Some(budget) = budget_of(&registry, &pod)?
            && !is_free(&budget.value(), &pod.value())
        {
            take(call, &registry, &budget, &name).await?;
        }
        options.uid.get_or_insert_with(|| pod.uid.clone());
    }
    mark(call, &registry, &pod).await?;
    let mut ctx = call.ctx.clone();
    ctx.subresource = String::new();
    registry.delete_through(&ctx, &options, call.server.gate()).await?;
    Ok(done(call))
}

/// Pods that do not run disturb nobody by going.
fn needs_budget(pod: &Value) -> bool {
    !matches!(pod["status"]["phase"].text(), "Succeeded" | "Failed" | "Pending")
        && meta::deletion_timestamp(pod).is_none()
}

/// Whether the pod may go without a disruption being taken from its budget: it is not ready, so that the
/// budget does not count it, and the budget's policy says so.
fn is_free(budget: &Value, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].items().iter();
    let ready = conditions
        .filter(|condition| condition["type"].text() == "Ready")
        .any(|condition| condition["status"].text() == "True");
    if ready {
        return false;
    }
    let status = &budget["status"];
    let (healthy, wanted) = (status["currentHealthy"].int(), status["desiredHealthy"].int());
    budget["spec"]["unhealthyPodEvictionPolicy"].text() == "AlwaysAllow"
        || (healthy >= wanted && wanted > 0)
}

/// Says at the pod why it goes. A pod that has gone meanwhile is met by the deletion.
async fn mark(call: &Call, registry: &Registry, pod: &Object) -> Result<(), Status> {
    let Some(resource) = registry.resource("", "pods") else { return Ok(()) };
    let mut ctx = RequestContext::internal("update", &resource, &pod.namespace, &pod.name);
    ctx.subresource = "status".into();
    ctx.dry_run = call.ctx.dry_run;
    let uid = pod.uid.clone();
    let change = |pod: &mut Value| {
        if meta::uid(pod) == uid && meta::deletion_timestamp(pod).is_none() {
            disrupt(pod);
        }
        Ok(())
    };
    match registry.update_with(&ctx, &change).await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// Sets the condition `DisruptionTarget`.
fn disrupt(pod: &mut Value) {
    const TYPE: &str = "DisruptionTarget";
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let known = conditions.iter().find(|condition| condition["type"].text() == TYPE);
    let since = known
        .filter(|known| known["status"].text() == "True")
        .map(|known| known["lastTransitionTime"].clone());
    conditions.retain(|condition| condition["type"].text() != TYPE);
    conditions.push(json!({
        "type": TYPE,
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastProbeTime": null,
        "lastTransitionTime": since.unwrap_or_else(|| time::now().into()),
    }));
    pod["status"]["conditions"] = conditions.into();
}

fn budget_of(registry: &Registry, pod: &Object) -> Result<Option<Arc<Object>>, Status> {
    let mut matching = registry
        .list("policy", "poddisruptionbudgets", Some(&pod.namespace))
        .into_iter()
        .filter(|budget| {
            let value = budget.value();
            Selector::from_label_selector(value["spec"].get("selector"))
                .is_ok_and(|selector| selector.matches_by(|key| pod.labels.get(key)))
        });
    let first = matching.next();
    if matching.next().is_some() {
        return Err(Status::failure(
            500,
            "InternalError",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    Ok(first)
}

/// Takes one disruption from the budget.
async fn take(call: &Call, registry: &Registry, budget: &Object, pod: &str) -> Result<(), Status> {
    let Some(resource) = registry.resource("policy", "poddisruptionbudgets") else {
        return Ok(());
    };
    let mut ctx = RequestContext::internal("update", &resource, &budget.namespace, &budget.name);
    ctx.subresource = "status".into();
    ctx.dry_run = call.ctx.dry_run;
    registry.update_with(&ctx, &|budget| decrement(budget, pod)).await.map(drop)
}

fn decrement(budget: &mut Value, pod: &str) -> Result<(), Status> {
    let name = meta::name(budget).to_owned();
    let refuse = |message: String, retry_s| {
        let mut refusal = Status::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            retry_s,
        );
        if let Some(details) = &mut refusal.details {
            details.causes.push(Cause {
                reason: "DisruptionBudget".into(),
                message,
                field: String::new(),
            });
        }
        Err(refusal)
    };
    if budget["status"]["observedGeneration"].int() < budget["metadata"]["generation"].int() {
        let message =
            format!("The disruption budget {name} is still being processed by the server.");
        return refuse(message, 10);
    }
    if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > DISRUPTED_MAX)
    {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudgets", &name, why));
    }
    let status = &mut budget["status"];
    let allowed = status["disruptionsAllowed"].int();
    if allowed <= 0 {
        let conditions = status["conditions"].items().iter();
        let unsynced = conditions
            .filter(|condition| condition["type"].text() == "DisruptionAllowed")
            .find(|condition| condition["reason"].text() == "SyncFailed");
        let message = match unsynced {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                condition["message"].text()
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                status["desiredHealthy"].int(),
                status["currentHealthy"].int()
            ),
        };
        return refuse(message, 0);
    }
    status["disruptionsAllowed"] = (allowed - 1).into();
    status["disruptedPods"][pod] = time::now().into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_budget_does_not_count_may_go() {
        let pod =
            |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let budget = |policy: &str, healthy: i64| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": healthy, "desiredHealthy": 2}})
        };
        for (budget, ready, want) in [
            (budget("", 2), "False", true),
            (budget("", 1), "False", false),
            (budget("IfHealthyBudget", 1), "False", false),
            (budget("AlwaysAllow", 1), "False", true),
            (budget("AlwaysAllow", 2), "True", false),
        ] {
            assert_eq!(is_free(&budget, &pod(ready)), want, "{budget} {ready}");
        }
    }

    #[test]
    fn the_condition_says_why_and_keeps_its_time() {
        let mut pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        disrupt(&mut pod);
        pod["status"]["conditions"][1]["lastTransitionTime"] = json!("then");
        disrupt(&mut pod);
        let conditions = &pod["status"]["conditions"];
        assert_eq!(conditions[1]["reason"], "EvictionByEvictionAPI");
        assert_eq!(conditions[1]["lastTransitionTime"], "then");
        assert!(conditions[2].is_null());
    }

    #[test]
    fn a_budget_is_spent_and_then_refuses() {
        let mut budget = json!({"metadata": {"name": "b", "generation": 1}, "status": {
            "observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 2,
            "currentHealthy": 3}});
        decrement(&mut budget, "p").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
        assert!(budget["status"]["disruptedPods"]["p"].is_string());
        let refusal = decrement(&mut budget, "q").unwrap_err();
        assert_eq!(refusal.code, 429);
        let cause = &refusal.details.unwrap().causes[0];
        assert_eq!(cause.reason, "DisruptionBudget");
        assert_eq!(
            cause.message,
            "The disruption budget b needs 2 healthy pods and has 3 currently"
        );
        budget["metadata"]["generation"] = 2.into();
        assert_eq!(decrement(&mut budget, "q").unwrap_err().code, 429);
    }
}
