//! What `apply --prune` removes: objects that were applied once and are in no manifest any more.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/apply/prune.go` and `pkg/util/prune/prune.go`.

use std::collections::{BTreeSet, HashSet};

use http::Method;
use serde_json::{Value, json};

use super::api::JSON;
use super::apply::{Apply, DryRun, LAST_APPLIED, removal};
use super::error::Error;
use super::kinds::Resource;
use super::selection::Query;
use super::session::Session;

/// Kinds that are looked through, by group, version and kind, unless others are named.
const DEFAULT: [&str; 16] = [
    "core/v1/ConfigMap",
    "core/v1/Endpoints",
    "core/v1/PersistentVolumeClaim",
    "core/v1/Pod",
    "core/v1/ReplicationController",
    "core/v1/Secret",
    "core/v1/Service",
    "batch/v1/Job",
    "batch/v1/CronJob",
    "networking.k8s.io/v1/Ingress",
    "apps/v1/DaemonSet",
    "apps/v1/Deployment",
    "apps/v1/ReplicaSet",
    "apps/v1/StatefulSet",
    "core/v1/Namespace",
    "core/v1/PersistentVolume",
];

/// What was applied, and therefore stays.
#[derive(Default)]
pub struct Applied {
    uids: HashSet<String>,
    namespaces: BTreeSet<String>,
}

impl Applied {
    /// Notes an object.
    pub fn note(&mut self, object: &Value) {
        let meta = &object["metadata"];
        self.uids.extend(meta["uid"].as_str().map(str::to_owned));
        self.namespaces.extend(meta["namespace"].as_str().map(str::to_owned));
    }
}

/// Says what is wrong with the flags.
pub fn check(flags: &Apply) -> Result<(), Error> {
    if flags.prune && !flags.all && flags.labels.selector.is_empty() {
        return Err(Error::wrong(
            "all resources selected for prune without explicitly passing --all. To prune all resources, pass the --all flag. If you did not mean to prune all resources, specify a label selector",
        ));
    }
    for word in &flags.prune_allowlist {
        kind(word)?;
    }
    Ok(())
}

/// Group, version and kind.
fn kind(word: &str) -> Result<(String, &str), Error> {
    let parts: Vec<&str> = word.split('/').collect();
    match parts.as_slice() {
        ["core", version, kind] => Ok(((*version).to_owned(), kind)),
        [group, version, kind] => Ok((format!("{group}/{version}"), kind)),
        _ => Err(Error::Wrong(format!(
            "invalid GroupVersionKind format: {word}, please follow <group/version/kind>"
        ))),
    }
}

/// Removes what was applied before and is not now; tells each object of it.
pub async fn run(
    session: &Session,
    flags: &Apply,
    applied: &Applied,
    mut tell: impl FnMut(&Resource, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let given: Vec<&str> = flags.prune_allowlist.iter().map(String::as_str).collect();
    let words = if given.is_empty() { &DEFAULT[..] } else { &given };
    let kinds = session.kinds().await?;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for word in words {
        let (version, kind) = kind(word)?;
        let resource = kinds.of(&version, kind).ok_or_else(|| {
            Error::Wrong(format!("no matches for kind {kind:?} in version {version:?}"))
        })?;
        if resource.namespaced { inside.push(resource) } else { outside.push(resource) }
    }
    let places = applied.namespaces.iter().map(|namespace| (Some(namespace.as_str()), &inside));
    for (namespace, resources) in places.chain([(None, &outside)]) {
        for resource in resources {
            for object in doomed(session, flags, applied, resource, namespace).await? {
                delete(session, flags, resource, &object).await?;
                tell(resource, object)?;
            }
        }
    }
    Ok(())
}

async fn doomed(
    session: &Session,
    flags: &Apply,
    applied: &Applied,
    resource: &Resource,
    namespace: Option<&str>,
) -> Result<Vec<Value>, Error> {
    let query = Query::default().with("labelSelector", &flags.labels.selector);
    let path = format!("{}{}", resource.path(namespace, ""), query.text());
    let mut list = session.api.get(&path).await?;
    let Value::Array(items) = list["items"].take() else { return Ok(Vec::new()) };
    let gone = items.into_iter().filter(|item| {
        let meta = &item["metadata"];
        let kept = meta["uid"].as_str().is_some_and(|uid| applied.uids.contains(uid));
        meta["annotations"][LAST_APPLIED].is_string() && !kept
    });
    Ok(gone
        .map(|mut item| {
            item["apiVersion"] = resource.api_version().into();
            item["kind"] = resource.kind.clone().into();
            item
        })
        .collect())
}

async fn delete(
    session: &Session,
    flags: &Apply,
    resource: &Resource,
    object: &Value,
) -> Result<(), Error> {
    if flags.dry_run == DryRun::Client {
        return Ok(());
    }
    let meta = &object["metadata"];
    let mut options = removal(flags)?;
    if flags.dry_run == DryRun::Server {
        options["dryRun"] = json!(["All"]);
    }
    let path = resource.path(meta["namespace"].as_str(), meta["name"].as_str().unwrap_or_default());
    let body = (JSON, options.to_string().into_bytes());
    match session.api.json(Method::DELETE, &path, JSON, Some(body)).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_with_group_and_version() {
        let cases = [
            ("core/v1/ConfigMap", Some("v1 ConfigMap")),
            ("apps/v1/Deployment", Some("apps/v1 Deployment")),
            ("v1/ConfigMap", None),
        ];
        for (word, want) in cases {
            let found = kind(word).ok().map(|(version, kind)| format!("{version} {kind}"));
            assert_eq!(found.as_deref(), want, "{word}");
        }
        assert!(DEFAULT.iter().all(|word| kind(word).is_ok()));
    }
}
