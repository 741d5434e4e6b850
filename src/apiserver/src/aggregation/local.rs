//! The APIServices that stand for this server's own groups, so that everything served is listed in one
//! place.
//!
//! Source: `kube-aggregator/pkg/controllers/autoregister` and kube-apiserver's table of priorities.

use std::collections::BTreeMap;

use apimachinery::{Status, meta};
use serde_json::{Value, json};

use super::availability::{Verdict, set_available};
use super::{GROUP, PLURAL, Remote};
use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::served::Served;

/// Says by whom the object is kept: `onstart` for built-in groups, `true` for those of definitions.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Of the groups of custom resources.
const CUSTOM: (i64, i64) = (1000, 100);

/// A group's place among the others, and a version's among the group's.
pub fn priority(group: &str, version: &str) -> (i64, i64) {
    const GROUPS: [(&str, i64); 24] = [
        ("", 18000),
        ("apps", 17800),
        ("events.k8s.io", 17750),
        ("authentication.k8s.io", 17700),
        ("authorization.k8s.io", 17600),
        ("autoscaling", 17500),
        ("batch", 17400),
        ("certificates.k8s.io", 17300),
        ("networking.k8s.io", 17200),
        ("policy", 17100),
        ("rbac.authorization.k8s.io", 17000),
        ("storage.k8s.io", 16800),
        ("apiextensions.k8s.io", 16700),
        ("admissionregistration.k8s.io", 16700),
        ("scheduling.k8s.io", 16600),
        ("coordination.k8s.io", 16500),
        ("node.k8s.io", 16300),
        ("discovery.k8s.io", 16200),
        ("flowcontrol.apiserver.k8s.io", 16100),
        ("internal.apiserver.k8s.io", 16000),
        ("resource.k8s.io", 15900),
        ("storagemigration.k8s.io", 15800),
        ("apiregistration.k8s.io", 20000),
        // As metrics-server registers it.
        ("metrics.k8s.io", 100),
    ];
    let Some((_, place)) = GROUPS.iter().find(|(name, _)| *name == group) else { return CUSTOM };
    let version = match (group, version) {
        ("", _) => 1,
        ("events.k8s.io", _) => 5,
        ("metrics.k8s.io", _) => 100,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        ("resource.k8s.io", "v1") => 21,
        (_, version) if version.contains("alpha") => 9,
        (_, version) if version.contains("beta") => 12,
        _ => 15,
    };
    (*place, version)
}

struct Wanted {
    group: String,
    version: String,
    managed: &'static str,
}

/// What is served here, by the name of its APIService.
fn wanted(served: &Served) -> BTreeMap<String, Wanted> {
    let mut all = BTreeMap::new();
    for resource in served.all() {
        // The group of APIServices themselves has none.
        if resource.group == GROUP {
            continue;
        }
        // Another server of metrics may come and go: then this one's are back at once.
        let kept = resource.custom.is_some() || resource.group == "metrics.k8s.io";
        let managed = if kept { "true" } else { "onstart" };
        let (group, version) = (resource.group.clone(), resource.version.clone());
        all.entry(format!("{version}.{group}")).or_insert(Wanted { group, version, managed });
    }
    all
}

/// Makes the missing objects, and removes those of groups that are gone. Without `all` only those of
/// custom resources and of metrics: what somebody deletes of the others stays away until the next start.
pub async fn sync(registry: &Registry, all: bool) {
    let wanted = wanted(&registry.served());
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return };
    let present: Vec<Value> =
        registry.list(GROUP, PLURAL, None).iter().map(|object| object.to_value()).collect();
    let missing = wanted.iter().filter(|(name, wanted)| {
        (all || wanted.managed == "true")
            && !present.iter().any(|object| meta::name(object) == name.as_str())
    });
    let made = missing.map(|(name, wanted)| {
        let resource = &resource;
        async move {
            let (group, version) = priority(&wanted.group, &wanted.version);
            let object = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": name, "labels": {MANAGED: wanted.managed}},
                "spec": {"group": wanted.group, "version": wanted.version,
                    "groupPriorityMinimum": group, "versionPriority": version},
            });
            let ctx = RequestContext::internal("create", resource, "", name);
            let made = registry.create(&ctx, object).await?;
            settle(registry, &made.to_value()).await
        }
    });
    for result in futures::future::join_all(made).await {
        report(result);
    }
    for object in &present {
        let name = meta::name(object);
        if Remote::parse(object).is_none() {
            report(settle(registry, object).await);
        }
        let managed = meta::labels(object).get(MANAGED).cloned();
        let ours = managed.is_some_and(|by| by == "true" || (all && by == "onstart"));
        if ours && !wanted.contains_key(name) {
            let ctx = RequestContext::internal("delete", &resource, "", name);
            report(registry.delete(&ctx).await);
        }
    }
}

/// What stands for this server is always available.
async fn settle(registry: &Registry, object: &Value) -> Result<(), Status> {
    let verdict = Verdict {
        status: "True",
        reason: "Local",
        message: "Local APIServices are always available".into(),
    };
    set_available(registry, object, &verdict).await
}

fn report(result: Result<(), Status>) {
    match result {
        Err(status) if !matches!(status.code, 404 | 409) => {
            tracing::warn!(%status, "cannot keep an APIService of this server");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_version_has_an_api_service() {
        let all = wanted(&Served::builtin());
        for name in ["v1.", "v1.apps", "v2.autoscaling", "v1.rbac.authorization.k8s.io"] {
            assert!(all.contains_key(name), "{name}");
        }
        assert!(!all.contains_key("v1.apiregistration.k8s.io"));
        for wanted in all.values() {
            assert_ne!(priority(&wanted.group, &wanted.version), CUSTOM, "{}", wanted.group);
        }
    }
}
