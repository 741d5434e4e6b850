//! Namespaces that are being deleted: their content goes, then they do.
//!
//! Source: `pkg/controller/namespace/deletion/namespaced_resources_deleter.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::core::discovery::v2::APIGroupDiscoveryList;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Failure, Next};
use crate::{name, pods, touched, unless_code};

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
    /// How many objects each finalizer holds.
    finalizers: BTreeMap<String, usize>,
    /// What went wrong with resources.
    failures: Vec<String>,
    /// Versions of groups of which is not known what they have, as their server does not answer.
    undiscovered: Vec<String>,
}

/// The conditions that tell people what a deletion waits for.
fn conditions(left: &Left, now: Timestamp) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, holds: bool, reason: (&str, &str), message: String| {
        let reason = if holds { reason.0 } else { reason.1 };
        NamespaceCondition {
            type_: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }
    };
    // In order, so that the same is told in the same words.
    let told = |start: &str, what: &[String], none: &str| {
        let mut what = what.to_vec();
        what.sort();
        if what.is_empty() { none.to_owned() } else { format!("{start}{}", what.join(", ")) }
    };
    let held = left.finalizers.iter();
    let held: Vec<String> =
        held.map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            !left.undiscovered.is_empty(),
            ("DiscoveryFailed", "ResourcesDiscovered"),
            told(
                &format!(
                    "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: ",
                    left.undiscovered.len()
                ),
                &left.undiscovered,
                "All resources successfully discovered",
            ),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            !left.failures.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            told(
                &format!(
                    "Failed to delete all resource types, {} remaining: ",
                    left.failures.len()
                ),
                &left.failures,
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        condition(
            "NamespaceContentRemaining",
            !left.resources.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            told(
                "Some resources are remaining: ",
                &left.resources,
                "All content successfully removed",
            ),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !left.finalizers.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            told(
                "Some content in the namespace has finalizers remaining: ",
                &held,
                "All content-preserving finalizers finished",
            ),
        ),
    ]
}

/// The namespace with `told` among its conditions, if that changes it.
fn telling(namespace: &Namespace, told: Vec<NamespaceCondition>) -> Option<Namespace> {
    let mut namespace = namespace.clone();
    let status = namespace.status.get_or_insert_default();
    let known = status.conditions.get_or_insert_default();
    let mut changed = false;
    for mut condition in told {
        let Some(place) = known.iter_mut().find(|old| old.type_ == condition.type_) else {
            known.push(condition);
            changed = true;
            continue;
        };
        if place.status == condition.status {
            condition.last_transition_time.clone_from(&place.last_transition_time);
        }
        changed |= *place != condition;
        *place = condition;
    }
    changed.then_some(namespace)
}

/// Deletes everything of one resource in `namespace` and counts what stays for the time being.
async fn empty(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    at_once: bool,
    left: &mut Left,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let listed = api.list_metadata(&ListParams::default()).await?;
    if listed.items.is_empty() {
        return Ok(());
    }
    let parameters = DeleteParams::background();
    if at_once {
        unless_code(api.delete_collection(&parameters, &ListParams::default()).await, 404)?;
    } else {
        for item in &listed.items {
            unless_code(api.delete(&item.name_any(), &parameters).await, 404)?;
        }
    }
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
    for finalizer in listed.items.iter().flat_map(ResourceExt::finalizers) {
        *left.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

/// The versions of groups whose server does not answer.
fn stale(groups: &APIGroupDiscoveryList) -> Vec<String> {
    let mut stale = Vec::new();
    for group in &groups.items {
        let name = group.metadata.as_ref().and_then(|metadata| metadata.name.as_deref());
        let versions = group.versions.iter();
        for version in versions.filter(|v| v.freshness.as_deref() == Some("Stale")) {
            let version = version.version.as_deref().unwrap_or_default();
            stale.push(format!("{}/{version}", name.unwrap_or_default()));
        }
    }
    stale
}

/// Pods go first: what they use, and the policies about them, stay until none is left.
async fn delete_content(client: &Client, namespace: &str) -> Result<Left, Failure> {
    let mut left = Left::default();
    let pods = ApiResource::erase::<Pod>(&());
    if let Err(error) = empty(client, namespace, &pods, true, &mut left).await {
        left.failures.push(pods::text(&error));
    }
    if left != Left::default() {
        return Ok(left);
    }
    let stale = stale(&client.list_api_groups_aggregated().await?);
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    for (resource, capabilities) in client::resources(&discovery) {
        let at_once = capabilities.supports_operation(verbs::DELETE_COLLECTION);
        if capabilities.scope == Scope::Namespaced
            && capabilities.supports_operation(verbs::DELETE)
            && capabilities.supports_operation(verbs::LIST)
            && !stale.contains(&resource.api_version)
            && let Err(error) = empty(client, namespace, &resource, at_once, &mut left).await
        {
            left.failures.push(pods::text(&error));
        }
    }
    let told = |version| format!("{version}: stale GroupVersion discovery: {version}");
    left.undiscovered = stale.iter().map(told).collect();
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
            // Its role lets the controller replace the status, not patch it.
            if let Some(telling) = telling(&namespace, conditions(&left, Timestamp::now())) {
                let api: Api<Namespace> = Api::all(client);
                let parameters = PostParams::default();
                unless_code(api.replace_status(&key, &parameters, &telling).await, 404)?;
            }
            if left.failures.is_empty() && left.undiscovered.is_empty() {
                return Ok(Next::After(WAIT));
            }
            Err([left.failures, left.undiscovered].concat().join(", ").into())
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_deletion_waits_for_is_told() {
        let mut left =
            Left { resources: vec!["pods. has 2 resource instances".into()], ..Left::default() };
        let summary = |left: &Left| -> Vec<(String, String)> {
            let told = conditions(left, Timestamp::UNIX_EPOCH).into_iter();
            told.map(|c| (c.reason.unwrap_or_default(), c.message.unwrap_or_default())).collect()
        };
        let told = summary(&left);
        let remaining = "Some resources are remaining: pods. has 2 resource instances";
        assert_eq!(told[2], ("SomeResourcesRemain".into(), remaining.into()));
        assert_eq!(told[3].0, "ContentHasNoFinalizers");
        left.failures.extend(["pods is forbidden".into(), "jobs are not there".into()]);
        let failed = "Failed to delete all resource types, 2 remaining: jobs are not there, pods is forbidden";
        assert_eq!(summary(&left)[1], ("ContentDeletionFailed".into(), failed.into()));
        left.finalizers.extend([("b/b".into(), 2), ("a/a".into(), 1)]);
        let held = "Some content in the namespace has finalizers remaining: a/a in 1 resource instances, b/b in 2 resource instances";
        assert_eq!(summary(&left)[3], ("SomeFinalizersRemain".into(), held.into()));
    }

    #[test]
    fn conditions_are_written_when_they_change() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + Duration::from_secs(1));
        let mut left = Left { resources: vec!["pods".into()], ..Left::default() };
        let first = telling(&Namespace::default(), conditions(&left, early)).expect("a change");
        assert_eq!(telling(&first, conditions(&left, late)), None);
        left.finalizers.insert("example.com/hold".into(), 1);
        let second = telling(&first, conditions(&left, late)).expect("a change");
        let times = second.status.expect("a status").conditions.expect("conditions");
        let times: Vec<_> = times.into_iter().map(|c| c.last_transition_time).collect();
        let [early, late] = [early, late].map(|time| Some(Time(time)));
        assert_eq!(times, [early.clone(), early.clone(), early, late]);
    }

    #[test]
    fn groups_that_do_not_answer_are_told() {
        let groups: APIGroupDiscoveryList = serde_json::from_value(serde_json::json!({"items": [
            {"metadata": {"name": "apps"},
                "versions": [{"version": "v1", "freshness": "Current", "resources": []}]},
            {"metadata": {"name": "example.com"}, "versions": [
                {"version": "v1", "freshness": "Stale", "resources": []},
                {"version": "v2", "freshness": "Current", "resources": []}]}]}))
        .unwrap();
        assert_eq!(stale(&groups), ["example.com/v1"]);
        let left = Left { undiscovered: stale(&groups), ..Left::default() };
        let told = conditions(&left, Timestamp::UNIX_EPOCH);
        let first = (told[0].reason.as_deref(), told[0].message.as_deref());
        let message = "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: example.com/v1";
        assert_eq!(first, (Some("DiscoveryFailed"), Some(message)));
    }

    #[test]
    fn only_namespaces_on_their_way_out_are_emptied() {
        let namespace = |deleted: bool, finalizer: &str| -> Namespace {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(serde_json::json!({
                "metadata": {"deletionTimestamp": deleted}, "spec": {"finalizers": [finalizer]}}))
            .unwrap()
        };
        assert!(is_ending(&namespace(true, FINALIZER)));
        assert!(!is_ending(&namespace(false, FINALIZER)));
        assert!(!is_ending(&namespace(true, "other")));
    }
}
