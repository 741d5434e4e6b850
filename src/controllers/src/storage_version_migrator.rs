//! StorageVersionMigrations: every object of a resource is written anew, so that it is stored as the API
//! server stores it now.
//!
//! Source: `pkg/controller/storageversionmigrator`.

use client::{Informers, Selection, list_watch};
use futures::StreamExt;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Discovery, Scope};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::queue::Failure;
use crate::served::served;
use crate::unless_code;

const GROUP: &str = "storagemigration.k8s.io";
const VERSION: &str = "v1beta1";
const KIND: &str = "StorageVersionMigration";
/// Objects read at a time.
const PAGE: u32 = 500;

fn migrations(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, KIND);
    Api::all_with(client.clone(), &ApiResource::from_gvk(&kind))
}

fn holds(migration: &DynamicObject, kind: &str) -> bool {
    let conditions = migration.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// The status with the condition `kind` true, and what contradicts it false.
fn told(migration: &DynamicObject, kind: &str, reason: &str, message: &str) -> Value {
    let now = apimachinery::time::now();
    let conditions = ["Running", "Succeeded", "Failed"].into_iter().filter_map(|known| {
        let truth = known == kind;
        let before = migration.data["status"]["conditions"].as_array();
        let before = before.into_iter().flatten().find(|c| c["type"] == known);
        (truth || before.is_some()).then(|| {
            let (reason, message) = if truth {
                (json!(reason), json!(message))
            } else {
                (before.map_or(json!(reason), |b| b["reason"].clone()), json!(""))
            };
            json!({"type": known, "status": if truth { "True" } else { "False" },
                "reason": reason, "message": message, "lastTransitionTime": now})
        })
    });
    let conditions: Vec<Value> = conditions.collect();
    json!({"conditions": conditions, "resourceVersion": migration.data["status"]["resourceVersion"]})
}

async fn tell(
    client: &Client,
    migration: &DynamicObject,
    kind: &str,
    reason: &str,
    message: &str,
) -> Result<(), Failure> {
    let patch = json!({"metadata": {"uid": migration.uid()},
        "status": told(migration, kind, reason, message)});
    let api = migrations(client);
    let parameters = PatchParams::default();
    unless_code(
        api.patch_status(&migration.name_any(), &parameters, &Patch::Merge(patch)).await,
        404,
    )?;
    Ok(())
}

/// Writes every object of the resource as it is.
async fn rewrite(client: &Client, group: &str, plural: &str) -> Result<(), Failure> {
    let discovery = Discovery::new(client.clone()).filter(&[group]).run_aggregated().await?;
    let mut found = client::resources(&discovery).into_iter();
    let Some((resource, capabilities)) = found.find(|(resource, _)| resource.plural == plural)
    else {
        return Err(format!("resource {plural:?} of group {group:?} is not served").into());
    };
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = all.list_metadata(&parameters).await?;
        for object in &page.items {
            let api: Api<DynamicObject> = match object.namespace() {
                Some(namespace) if capabilities.scope == Scope::Namespaced => {
                    Api::namespaced_with(client.clone(), &namespace, &resource)
                }
                _ => all.clone(),
            };
            // Nothing is said, but the object is stored anew; one that has changed meanwhile has been already.
            let patch = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {
                "uid": object.uid(), "resourceVersion": object.resource_version()}});
            let written =
                api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            if let Err(error) = written
                && !matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
            {
                return Err(error.into());
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

async fn migrate(client: &Client, migration: &DynamicObject) -> Result<(), Failure> {
    if holds(migration, "Succeeded") || holds(migration, "Failed") {
        return Ok(());
    }
    let resource = &migration.data["spec"]["resource"];
    let text = |key: &str| resource[key].as_str().unwrap_or_default();
    tell(client, migration, "Running", "StorageVersionMigrationInProgress", "").await?;
    match rewrite(client, text("group"), text("resource")).await {
        Ok(()) => {
            tell(client, migration, "Succeeded", "StorageVersionMigrationSucceeded", "").await
        }
        Err(error) => {
            let message = error.to_string();
            tell(client, migration, "Failed", "StorageVersionMigrationFailed", &message).await
        }
    }
}

/// Runs until `shutdown`, or not at all where the API server has no migrations.
pub async fn run(client: Client, _: Informers, shutdown: CancellationToken) {
    // Theirs is a beta version, which most servers do not offer.
    if !served(&client, &format!("{GROUP}/{VERSION}"), KIND, &shutdown).await {
        return;
    }
    let mut events = std::pin::pin!(list_watch(migrations(&client), Selection::default()));
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = events.next() => event,
        };
        let Some(migration) = event.applied() else { continue };
        if let Err(error) = migrate(&client, &migration).await {
            let name = migration.name_any();
            tracing::warn!(%name, %error, "a storage version migration was not told of");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_condition_holds_at_a_time() {
        let migration: DynamicObject = serde_json::from_value(json!({"metadata": {"name": "m"},
            "status": {"conditions": [{"type": "Running", "status": "True", "reason": "r"}]}}))
        .expect("a migration");
        assert!(holds(&migration, "Running") && !holds(&migration, "Succeeded"));
        let status = told(&migration, "Succeeded", "Done", "");
        let conditions: Vec<_> = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| format!("{}={}", c["type"], c["status"]))
            .collect();
        assert_eq!(conditions, ["\"Running\"=\"False\"", "\"Succeeded\"=\"True\""]);
    }
}
