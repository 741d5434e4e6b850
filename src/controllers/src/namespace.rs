//! Namespaces that are being deleted: their content goes, then they do.
//!
//! Source: `pkg/controller/namespace/deletion/namespaced_resources_deleter.go`.

use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Failure, Next};
use crate::{name, touched, unless_code};

/// The finalizer that stands for a namespace's content.
const FINALIZER: &str = "kubernetes";
/// How long to wait for content that needs time to go.
const WAIT: Duration = Duration::from_millis(500);

/// Whether the namespace's content is to be removed.
fn is_ending(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers.is_some_and(|finalizers| finalizers.iter().any(|name| name == FINALIZER))
}

/// What is left in a namespace after its content was asked to go.
#[derive(Debug, Default, PartialEq)]
struct Left {
    /// `pods. has 2 resource instances`, by resource.
    resources: Vec<String>,
    /// `example.com/hold in 1 resource instances`, by finalizer.
    finalizers: Vec<String>,
}

/// The conditions that tell people what a deletion waits for.
fn conditions(left: &Left, now: Timestamp) -> Value {
    let condition = |kind: &str, holds: bool, reason: (&str, &str), message: String| {
        json!({"type": kind, "status": if holds { "True" } else { "False" },
            "reason": if holds { reason.0 } else { reason.1 }, "message": message,
            "lastTransitionTime": Time(now)})
    };
    let told = |start: &str, what: &[String], none: &str| {
        if what.is_empty() { none.to_owned() } else { format!("{start}{}", what.join(", ")) }
    };
    json!([
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            ("DiscoveryFailed", "ResourcesDiscovered"),
            "All resources successfully discovered".into()
        ),
        condition(
            "NamespaceDeletionContentFailure",
            false,
            ("ContentDeletionFailed", "ContentDeleted"),
            "All content successfully deleted, may be waiting on finalization".into()
        ),
        condition(
            "NamespaceContentRemaining",
            !left.resources.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            told(
                "Some resources are remaining: ",
                &left.resources,
                "All content successfully removed"
            )
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !left.finalizers.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            told(
                "Some content in the namespace has finalizers remaining: ",
                &left.finalizers,
                "All content-preserving finalizers finished"
            )
        ),
    ])
}

/// Deletes everything of one resource in `namespace` and counts what stays for the time being.
async fn empty(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    left: &mut Left,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let listed = api.list_metadata(&ListParams::default()).await?;
    if listed.items.is_empty() {
        return Ok(());
    }
    unless_code(
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await,
        404,
    )?;
    let listed = api.list_metadata(&ListParams::default()).await?;
    if listed.items.is_empty() {
        return Ok(());
    }
    left.resources.push(format!(
        "{}.{} has {} resource instances",
        resource.plural,
        resource.group,
        listed.items.len()
    ));
    let mut finalizers: Vec<String> =
        listed.items.iter().flat_map(|item| item.finalizers().to_vec()).collect();
    finalizers.sort();
    for same in finalizers.chunk_by(|a, b| a == b) {
        left.finalizers.push(format!("{} in {} resource instances", same[0], same.len()));
    }
    Ok(())
}

async fn delete_content(client: &Client, namespace: &str) -> Result<Left, Failure> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let mut left = Left::default();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if capabilities.scope == Scope::Namespaced
                && capabilities.supports_operation(verbs::DELETE_COLLECTION)
                && capabilities.supports_operation(verbs::LIST)
            {
                empty(client, namespace, &resource, &mut left).await?;
            }
        }
    }
    Ok(left)
}

async fn finalize(client: &Client, mut namespace: Namespace) -> Result<(), Failure> {
    let name = namespace.name_any();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let parameters = PostParams::default();
    unless_code(api.replace_subresource("finalize", &name, &parameters, &namespace).await, 404)?;
    Ok(())
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let namespaces = informers.get::<Namespace>();
    let changes =
        touched(
            &namespaces,
            |namespace| {
                if is_ending(namespace) { name(namespace) } else { Vec::new() }
            },
        );
    queue::run("namespace", changes, shutdown, |key: String| {
        let found = namespaces.get("", &key).filter(|namespace| is_ending(namespace));
        let client = client.clone();
        Box::pin(async move {
            let Some(namespace) = found else { return Ok(Next::Done) };
            let left = delete_content(&client, &key).await?;
            if left == Left::default() {
                finalize(&client, Namespace::clone(&namespace)).await?;
                return Ok(Next::Done);
            }
            let api: Api<Namespace> = Api::all(client);
            let patch = json!({"status": {"conditions": conditions(&left, Timestamp::now())}});
            let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch));
            unless_code(api.patch_status(&key, &parameters, &patch).await, 404)?;
            Ok(Next::After(WAIT))
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deletion_waits_for_is_told() {
        let left =
            Left { resources: vec!["pods. has 2 resource instances".into()], ..Left::default() };
        let told = conditions(&left, Timestamp::UNIX_EPOCH);
        assert_eq!(told[2]["status"], "True");
        assert_eq!(
            told[2]["message"],
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(told[3]["reason"], "ContentHasNoFinalizers");
    }

    #[test]
    fn only_namespaces_on_their_way_out_are_emptied() {
        let namespace = |deleted: bool, finalizer: &str| -> Namespace {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"deletionTimestamp": deleted}, "spec": {"finalizers": [finalizer]}}))
            .unwrap()
        };
        assert!(is_ending(&namespace(true, FINALIZER)));
        assert!(!is_ending(&namespace(false, FINALIZER)));
        assert!(!is_ending(&namespace(true, "other")));
    }
}
