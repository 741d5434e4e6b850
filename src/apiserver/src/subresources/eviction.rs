//! `pods/eviction`: deletion that a PodDisruptionBudget may refuse.
//!
//! Source: `EvictionREST` of `pkg/registry/core/pod/storage`.

use std::sync::Arc;

use apimachinery::labels::Selector;
use apimachinery::status::Cause;
use apimachinery::{Status, meta, time};
use serde_json::Value;

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
        if let Some(budget) = budget_of(&registry, &pod)? {
            take(call, &registry, &budget, &name).await?;
        }
        options.uid.get_or_insert_with(|| pod.uid.clone());
    }
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

fn budget_of(registry: &Registry, pod: &Object) -> Result<Option<Arc<Object>>, Status> {
    let mut matching = registry
        .list("policy", "poddisruptionbudgets", Some(&pod.namespace))
        .into_iter()
        .filter(|budget| {
            let value = budget.value();
            Selector::from_label_selector(value["spec"].get("selector"))
                .is_ok_and(|selector| selector.matches(&pod.labels))
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
    let status = &mut budget["status"];
    let refuse = |message: String| {
        let mut refusal = Status::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            0,
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
    if status["observedGeneration"].int() < budget["metadata"]["generation"].int() {
        return refuse(format!(
            "The disruption budget {name} is still being processed by the server."
        ));
    }
    let status = &mut budget["status"];
    let allowed = status["disruptionsAllowed"].int();
    if allowed <= 0 {
        return refuse(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status["desiredHealthy"].int(),
            status["currentHealthy"].int()
        ));
    }
    status["disruptionsAllowed"] = (allowed - 1).into();
    status["disruptedPods"][pod] = time::now().into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
