//! ResourceQuotas: how much of what they limit is used.
//!
//! Source: `pkg/controller/resourcequota/resource_quota_controller.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::quota::{self, Usage};
use client::{Informer, Informers};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{touched, unless_code};

/// How often a quota is counted although nothing it watches changed.
const RESYNC: Duration = Duration::from_mins(5);
/// How often a quota of resources that are only counted by asking is looked at.
const RECOUNT: Duration = Duration::from_secs(10);

/// What is used of the resources that the quota limits.
fn used(spec: &Value, objects: &BTreeMap<(String, String), Vec<Value>>) -> BTreeMap<String, Text> {
    let mut sum = Usage::new();
    for ((group, plural), objects) in objects {
        for object in objects.iter().filter(|object| quota::counts(spec, group, plural, object)) {
            quota::add(&mut sum, &quota::usage(group, plural, object));
        }
    }
    let hard = spec["hard"].as_object().into_iter().flatten();
    let nothing = Quantity::default();
    hard.map(|(name, _)| {
        let amount = sum.get(name).unwrap_or(&nothing);
        (name.clone(), Text(amount.canonical()))
    })
    .collect()
}

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
}

fn near<K>(informer: &Informer<K>, namespace: &str) -> Vec<Value>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let all = informer
        .store()
        .state_filter(|object| object.meta().namespace.as_deref() == Some(namespace));
    all.iter().map(|object| json!(object.as_ref())).collect()
}

impl Controller {
    async fn objects(
        &self,
        namespace: &str,
        (group, plural): (&str, &str),
    ) -> Result<Vec<Value>, Failure> {
        Ok(match (group, plural) {
            ("", "pods") => near(&self.pods, namespace),
            ("", "services") => near(&self.services, namespace),
            ("", "persistentvolumeclaims") => near(&self.claims, namespace),
            _ => {
                let Some(resource) = self.resource(group, plural).await? else {
                    return Ok(Vec::new());
                };
                let api: Api<DynamicObject> =
                    Api::namespaced_with(self.client.clone(), namespace, &resource);
                let found = api.list_metadata(&ListParams::default()).await?;
                found.items.iter().map(|_| json!({})).collect()
            }
        })
    }

    async fn resource(&self, group: &str, plural: &str) -> Result<Option<ApiResource>, Failure> {
        let discovery =
            Discovery::new(self.client.clone()).filter(&[group]).run_aggregated().await?;
        let found = discovery.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
        let mut found = found.filter(|(resource, capabilities)| {
            resource.plural == plural && capabilities.scope == Scope::Namespaced
        });
        Ok(found.next().map(|(resource, _)| resource))
    }

    async fn sync(&self, quota: &ResourceQuota) -> Result<Next, Failure> {
        let (namespace, name) = ownership::key(quota);
        let spec = json!(quota.spec);
        let hard = spec["hard"].as_object().into_iter().flatten();
        let kinds: BTreeSet<(&str, &str)> =
            hard.filter_map(|(name, _)| quota::counted_by(name)).collect();
        let mut objects = BTreeMap::new();
        let mut next = RESYNC;
        for (group, plural) in kinds {
            if !matches!((group, plural), ("", "pods" | "services" | "persistentvolumeclaims")) {
                next = RECOUNT;
            }
            let found = self.objects(&namespace, (group, plural)).await?;
            objects.insert((group.to_owned(), plural.to_owned()), found);
        }
        let mut status = quota.status.clone().unwrap_or_default();
        status.hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
        status.used = Some(used(&spec, &objects)).filter(|used| !used.is_empty());
        if quota.status.as_ref() != Some(&status) {
            let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &namespace);
            let told = ResourceQuota { status: Some(status), ..quota.clone() };
            unless_code(api.replace_status(&name, &PostParams::default(), &told).await, 404)?;
        }
        Ok(Next::After(next))
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let quotas = informers.get::<ResourceQuota>();
    let controller = Arc::new(Controller {
        client,
        pods: informers.get(),
        services: informers.get(),
        claims: informers.get(),
    });
    quotas.ready().await;
    controller.pods.ready().await;
    controller.services.ready().await;
    controller.claims.ready().await;
    fn of<K: kube::Resource>(quotas: &Informer<ResourceQuota>) -> impl Fn(&K) -> Vec<Key> + use<K> {
        let quotas = quotas.clone();
        move |object: &K| {
            let all = quotas.store().state();
            let near = all.iter().filter(|quota| quota.namespace() == object.namespace());
            near.map(|quota| ownership::key(quota.as_ref())).collect()
        }
    }
    let changes = futures::stream::select(
        touched(&quotas, |quota| vec![ownership::key(quota)]),
        futures::stream::select(
            touched(&controller.pods, of::<Pod>(&quotas)),
            futures::stream::select(
                touched(&controller.services, of::<Service>(&quotas)),
                touched(&controller.claims, of::<PersistentVolumeClaim>(&quotas)),
            ),
        ),
    );
    queue::run("resourcequota", changes, shutdown, |key: Key| {
        let (controller, found) = (controller.clone(), quotas.get(&key.0, &key.1));
        Box::pin(async move {
            match found {
                Some(quota) => controller.sync(&quota).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_limited_is_counted() {
        let pod = |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        let objects = BTreeMap::from([
            ((String::new(), "pods".to_owned()), vec![pod("100m"), pod("1"), json!({"spec": {}})]),
            (("apps".to_owned(), "deployments".to_owned()), vec![json!({}), json!({})]),
        ]);
        let told = |spec: Value| {
            let used = used(&spec, &objects);
            used.iter()
                .map(|(name, amount)| format!("{name}={}", amount.0))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let hard = json!({"pods": "9", "requests.cpu": "9", "count/deployments.apps": "9", "limits.memory": "1Gi"});
        assert_eq!(
            told(json!({"hard": hard})),
            "count/deployments.apps=2 limits.memory=0 pods=3 requests.cpu=1100m"
        );
        assert_eq!(told(json!({"hard": {"pods": "9"}, "scopes": ["BestEffort"]})), "pods=1");
    }
}
