//! Tokens in Secrets that service accounts name, and that nobody has used for a year: they are marked as
//! invalid, and after another year they go.
//!
//! Source: `pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go`. When tokens began to be
//! watched is in a ConfigMap of kube-system; without it nothing is touched.

use std::collections::BTreeSet;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::Failure;
use crate::{ownership, unless_code};

/// How often tokens are looked at.
const PERIOD: Duration = Duration::from_hours(24);
/// How long a token may go unused (`--legacy-service-account-token-clean-up-period`).
const UNUSED_DAYS: i64 = 365;
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TOKEN: &str = "kubernetes.io/service-account-token";

/// What becomes of a token.
#[derive(Debug, PartialEq)]
enum Fate {
    Stays,
    Invalid,
    Goes,
}

fn day(text: Option<&String>) -> Option<Date> {
    text?.parse().ok()
}

fn is_long_ago(day: Date, today: Date) -> bool {
    today.since(day).is_ok_and(|span| i64::from(span.get_days()) > UNUSED_DAYS)
}

fn fate(secret: &Secret, watched_since: Date, today: Date) -> Fate {
    let created = secret.metadata.creation_timestamp.as_ref();
    let created = created.map_or(today, |time| time.0.to_zoned(TimeZone::UTC).date());
    // When it was used last may not be readable: then it is not touched either.
    let unused = |used: &String| day(Some(used)).is_some_and(|used| is_long_ago(used, today));
    if !is_long_ago(created, today)
        || !is_long_ago(watched_since, today)
        || !secret.labels().get(LAST_USED).is_none_or(unused)
        || secret.metadata.deletion_timestamp.is_some()
    {
        return Fate::Stays;
    }
    match day(secret.labels().get(INVALID_SINCE)) {
        None => Fate::Invalid,
        Some(since) if is_long_ago(since, today) => Fate::Goes,
        Some(_) => Fate::Stays,
    }
}

/// The Secrets that pods name, by namespace and name: in volumes, for variables, and to pull images with.
fn named_by(pods: &[std::sync::Arc<Pod>]) -> BTreeSet<ownership::Key> {
    let mut all = BTreeSet::new();
    for pod in pods {
        let (namespace, Some(spec)) = (pod.namespace().unwrap_or_default(), pod.spec.as_ref())
        else {
            continue;
        };
        let volumes = spec.volumes.iter().flatten();
        let mounted =
            volumes.clone().filter_map(|volume| volume.secret.as_ref()?.secret_name.clone());
        let sources = volumes.filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
        let projected = sources.flatten().filter_map(|s| s.secret.as_ref().map(|s| s.name.clone()));
        let pulling = spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone());
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let variables = containers.flat_map(|container| {
            let one = container.env.iter().flatten().filter_map(|variable| {
                let source = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
                Some(source.name.clone())
            });
            let from = container.env_from.iter().flatten();
            one.chain(from.filter_map(|source| source.secret_ref.as_ref().map(|s| s.name.clone())))
        });
        let names = mounted.chain(projected).chain(pulling).chain(variables);
        all.extend(names.map(|name| (namespace.clone(), name)));
    }
    all
}

async fn clean(client: &Client, informers: &Informers) -> Result<(), Failure> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let tracking = maps.get_opt(TRACKING).await?;
    let since = tracking.as_ref().and_then(|map| map.data.as_ref()?.get("since"));
    let Some(since) = day(since) else { return Ok(()) };
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    if !is_long_ago(since, today) {
        return Ok(());
    }
    let (accounts, pods) = (informers.get::<ServiceAccount>(), informers.get::<Pod>());
    accounts.ready().await;
    pods.ready().await;
    let named: BTreeSet<ownership::Key> = accounts
        .store()
        .state()
        .iter()
        .flat_map(|account| {
            let namespace = account.namespace().unwrap_or_default();
            let secrets = account.secrets.iter().flatten().filter_map(|s| s.name.clone());
            secrets.map(move |name| (namespace.clone(), name)).collect::<Vec<_>>()
        })
        .collect();
    let needed = named_by(&pods.store().state());
    let secrets = informers.get::<Secret>();
    secrets.ready().await;
    for secret in secrets.store().state_filter(|secret| secret.type_.as_deref() == Some(TOKEN)) {
        let key = ownership::key(secret.as_ref());
        if !named.contains(&key) || needed.contains(&key) {
            continue;
        }
        let api: Api<Secret> = Api::namespaced(client.clone(), &key.0);
        match fate(&secret, since, today) {
            Fate::Stays => {}
            Fate::Invalid => {
                let patch = json!({"metadata": {"uid": secret.uid(),
                    "resourceVersion": secret.resource_version(),
                    "labels": {INVALID_SINCE: today.to_string()}}});
                let patch = Patch::Merge(patch);
                unless_code(api.patch(&key.1, &PatchParams::default(), &patch).await, 404)?;
            }
            Fate::Goes => {
                let preconditions = Preconditions {
                    uid: secret.uid(),
                    resource_version: secret.resource_version(),
                };
                let parameters = DeleteParams::default().preconditions(preconditions);
                unless_code(api.delete(&key.1, &parameters).await, 404)?;
            }
        }
    }
    Ok(())
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        if let Err(error) = clean(&client, &informers).await {
            tracing::debug!(%error, "legacy tokens are looked at again tomorrow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_marked_before_it_goes() {
        let day = |text: &str| text.parse::<Date>().expect("a day");
        let secret = |created: &str, labels: serde_json::Value| -> Secret {
            serde_json::from_value(
                json!({"metadata": {"creationTimestamp": created, "labels": labels}}),
            )
            .expect("a secret")
        };
        let old = "2023-01-01T00:00:00Z";
        for (secret, since, want) in [
            (secret(old, json!({})), "2023-01-01", Fate::Invalid),
            (secret(old, json!({})), "2025-12-01", Fate::Stays),
            (secret("2025-12-01T00:00:00Z", json!({})), "2023-01-01", Fate::Stays),
            (secret(old, json!({LAST_USED: "2025-12-30"})), "2023-01-01", Fate::Stays),
            (secret(old, json!({LAST_USED: "2024-01-01"})), "2023-01-01", Fate::Invalid),
            (secret(old, json!({LAST_USED: "?"})), "2023-01-01", Fate::Stays),
            (secret(old, json!({INVALID_SINCE: "?"})), "2023-01-01", Fate::Invalid),
            (secret(old, json!({INVALID_SINCE: "2025-12-01"})), "2023-01-01", Fate::Stays),
            (secret(old, json!({INVALID_SINCE: "2024-12-01"})), "2023-01-01", Fate::Goes),
        ] {
            assert_eq!(fate(&secret, day(since), day("2026-01-01")), want);
        }
    }

    #[test]
    fn what_pods_name_is_needed() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"imagePullSecrets": [{"name": "pull"}],
                "volumes": [{"name": "a", "secret": {"secretName": "volume"}},
                    {"name": "b", "projected": {"sources": [{"secret": {"name": "projected"}}]}}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "from"}}]}],
                "containers": [{"name": "c", "env": [{"name": "X", "valueFrom":
                    {"secretKeyRef": {"name": "variable", "key": "k"}}}]}]}}))
        .expect("a pod");
        let found = named_by(&[pod.into()]);
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["from", "projected", "pull", "variable", "volume"]);
    }
}
