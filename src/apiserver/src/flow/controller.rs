//! Keeps the objects that every cluster has, says of each schema whether its level exists, and takes
//! over what the objects say.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use apimachinery::{Status, meta};
use futures::future::join_all;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::classify::Schemas;
use super::{Flow, GROUP, LEVELS, SCHEMAS, objects};
use crate::attributes::RequestContext;
use crate::registry::Registry;

/// Deleted objects are restored within this time, as upstream does it.
const MAINTAIN_EVERY: Duration = Duration::from_mins(1);

/// Works until `shutdown`.
pub async fn run(flow: Arc<Flow>, shutdown: CancellationToken) {
    let registry = &flow.registry;
    let (Some(schemas), Some(levels)) =
        (registry.resource(GROUP, SCHEMAS), registry.resource(GROUP, LEVELS))
    else {
        return;
    };
    let (Some(schemas), Some(levels)) = (registry.cache(&schemas), registry.cache(&levels)) else {
        return;
    };
    let (mut schemas, mut levels) = (schemas.subscribe(), levels.subscribe());
    let mut maintained = tokio::time::interval(MAINTAIN_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = maintained.tick() => maintain(registry).await,
            changed = schemas.changed() => if changed.is_err() { return },
            changed = levels.changed() => if changed.is_err() { return },
        }
        schemas.borrow_and_update();
        levels.borrow_and_update();
        flow.read().await;
    }
}

/// Makes what is missing, and sets right what may not be changed.
async fn maintain(registry: &Registry) {
    let made = objects::missing(registry).into_iter().map(|(plural, object)| async move {
        let Some(resource) = registry.resource(GROUP, plural) else { return Ok(()) };
        let ctx = RequestContext::internal("create", &resource, "", meta::name(&object));
        registry.create(&ctx, object).await.map(drop)
    });
    join_all(made).await.into_iter().for_each(report);
    for (plural, wanted) in objects::all() {
        let name = meta::name(&wanted);
        let Some(found) = registry.get(GROUP, plural, "", name) else { continue };
        let found = found.to_value();
        let kept = meta::annotation(&found, objects::AUTO_UPDATE) == Some("true");
        if found["spec"] == wanted["spec"] || !(kept || objects::is_mandatory(name)) {
            continue;
        }
        let Some(resource) = registry.resource(GROUP, plural) else { continue };
        let ctx = RequestContext::internal("update", &resource, "", name);
        let spec = wanted["spec"].clone();
        let change = move |object: &mut Value| {
            object["spec"] = spec.clone();
            Ok(())
        };
        report(registry.update_with(&ctx, &change).await.map(drop));
    }
}

fn report(result: Result<(), Status>) {
    match result {
        Err(status) if !matches!(status.code, 404 | 409) => {
            tracing::warn!(%status, "cannot keep an object of priority and fairness");
        }
        _ => {}
    }
}

impl Flow {
    /// Reads the objects anew.
    async fn read(&self) {
        let list = |plural: &str| -> Vec<Value> {
            self.registry.list(GROUP, plural, None).iter().map(|object| object.to_value()).collect()
        };
        let (schemas, levels) = (list(SCHEMAS), list(LEVELS));
        self.levels.configure(&levels);
        let fresh = Arc::new(Schemas::new(&schemas, &levels, &self.counts));
        *self.schemas.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        for schema in &schemas {
            report(say_dangling(&self.registry, schema, &levels).await);
        }
    }
}

/// Says in a schema's status whether its level exists.
async fn say_dangling(registry: &Registry, schema: &Value, levels: &[Value]) -> Result<(), Status> {
    let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
    let about =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level}");
    let exists = levels.iter().any(|known| known["metadata"]["name"] == *level);
    let (status, reason, message) = if exists {
        ("False", "Found", format!("{about} and it exists"))
    } else {
        ("True", "NotFound", format!("{about} but there is no such object"))
    };
    let known = crate::custom::condition(schema, "Dangling")
        .is_some_and(|known| known["status"] == status && known["reason"] == reason);
    if known {
        return Ok(());
    }
    let Some(resource) = registry.resource(GROUP, SCHEMAS) else { return Ok(()) };
    let mut ctx = RequestContext::internal("update", &resource, "", meta::name(schema));
    ctx.subresource = "status".into();
    registry
        .update_with(&ctx, &move |object| {
            crate::custom::set_condition(object, "Dangling", status, reason, &message);
            Ok(())
        })
        .await
        .map(drop)
}
