//! ResourceQuotas: how much of what they limit is used.
//!
//! Admission takes from a quota before an object is stored, so objects that are merely new are no reason
//! to count: a count would give back what is taken for those on their way.
//!
//! Source: `pkg/controller/resourcequota/resource_quota_controller.go`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::quota::{self, DEVICE_CLAIMS, Surroundings, Usage};
use client::{Change, Informer, Informers};
use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, touched, unless_code};

/// How often a quota is counted although nothing it watches changed.
const RESYNC: Duration = Duration::from_mins(5);
/// How often a quota of resources that are only counted by asking is looked at.
const RECOUNT: Duration = Duration::from_secs(10);

/// Objects by group and plural.
type Objects = BTreeMap<(String, String), Vec<Value>>;

/// What is used of the resources that the quota limits. `classes` are those of devices.
fn used(spec: &Value, objects: &Objects, classes: &[DeviceClass]) -> BTreeMap<String, Text> {
    let mut sum = Usage::new();
    let of = |(group, plural): (&str, &str)| {
        objects.get(&(group.to_owned(), plural.to_owned())).map_or(&[][..], Vec::as_slice)
    };
    let around = Surroundings {
        class: &|name| classes.iter().find(|class| class.name_any() == name).map(|c| json!(c)),
        pod: &|name| of(("", "pods")).iter().find(|pod| pod["metadata"]["name"] == name).cloned(),
        claims: &|| of(DEVICE_CLAIMS).to_vec(),
    };
    for ((group, plural), objects) in objects {
        for object in objects.iter().filter(|object| quota::counts(spec, group, plural, object)) {
            let mut usage = quota::usage(group, plural, object);
            if (group.as_str(), plural.as_str()) == DEVICE_CLAIMS {
                quota::add_extended(&mut usage, object, &around);
            }
            quota::add(&mut sum, &usage);
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
}

impl Controller {
    /// All of them at this moment: what was taken for them is in the quota that was read before.
    async fn listed<K>(&self, namespace: &str) -> Result<Vec<Value>, Failure>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let found = api.list(&ListParams::default()).await?;
        Ok(found.items.iter().map(|object| json!(object)).collect())
    }

    async fn objects(
        &self,
        namespace: &str,
        (group, plural): (&str, &str),
    ) -> Result<Vec<Value>, Failure> {
        Ok(match (group, plural) {
            ("", "pods") => self.listed::<Pod>(namespace).await?,
            ("", "services") => self.listed::<Service>(namespace).await?,
            ("", "persistentvolumeclaims") => {
                self.listed::<PersistentVolumeClaim>(namespace).await?
            }
            DEVICE_CLAIMS => self.listed::<ResourceClaim>(namespace).await?,
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
        let mut found =
            client::resources(&discovery).into_iter().filter(|(resource, capabilities)| {
                resource.plural == plural && capabilities.scope == Scope::Namespaced
            });
        Ok(found.next().map(|(resource, _)| resource))
    }

    async fn sync(&self, quota: &ResourceQuota) -> Result<Next, Failure> {
        let (namespace, name) = ownership::key(quota);
        let spec = json!(quota.spec);
        let hard = spec["hard"].as_object().into_iter().flatten();
        let kinds: BTreeSet<(&str, &str)> =
            hard.flat_map(|(name, _)| quota::counted_by(name)).collect();
        let mut objects = BTreeMap::new();
        let mut next = RESYNC;
        for (group, plural) in kinds {
            if !matches!((group, plural), ("", "pods" | "services" | "persistentvolumeclaims")) {
                next = RECOUNT;
            }
            let found = self.objects(&namespace, (group, plural)).await?;
            objects.insert((group.to_owned(), plural.to_owned()), found);
        }
        let has_device_claims = objects.iter().any(|((group, plural), found)| {
            (&**group, &**plural) == DEVICE_CLAIMS && !found.is_empty()
        });
        let classes = if has_device_claims {
            let api: Api<DeviceClass> = Api::all(self.client.clone());
            api.list(&ListParams::default()).await?.items
        } else {
            Vec::new()
        };
        let mut status = quota.status.clone().unwrap_or_default();
        status.hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
        status.used = Some(used(&spec, &objects, &classes)).filter(|used| !used.is_empty());
        if quota.status.as_ref() != Some(&status) {
            let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &namespace);
            let told = ResourceQuota { status: Some(status), ..quota.clone() };
            unless_code(api.replace_status(&name, &PostParams::default(), &told).await, 404)?;
        }
        Ok(Next::After(next))
    }
}

/// Whether the status does not speak about all that the quota limits now.
fn is_uncounted(quota: &ResourceQuota) -> bool {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let status = quota.status.as_ref();
    let used = status.and_then(|status| status.used.as_ref());
    status.and_then(|status| status.hard.as_ref()) != hard
        || hard.is_some_and(|hard| hard.keys().any(|n| used.is_none_or(|u| !u.contains_key(n))))
}

/// What decides how much an object uses; quotas are counted when it changes.
#[derive(Debug, PartialEq)]
enum Use {
    Pod(bool, Option<i64>),
    Service(Option<String>, usize),
    Claim(Option<Text>, Option<Text>, Vec<String>),
}

fn of_pod(pod: &Pod) -> Use {
    Use::Pod(pods::is_finished(pod), pod.metadata.generation)
}

fn of_service(service: &Service) -> Use {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_ref()).map_or(0, Vec::len);
    Use::Service(spec.and_then(|spec| spec.type_.clone()), ports)
}

fn of_claim(claim: &PersistentVolumeClaim) -> Use {
    let storage = |list: &BTreeMap<String, Text>| list.get("storage").cloned();
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let given = claim.status.as_ref().and_then(|status| status.allocated_resources.as_ref());
    let classes = quota::attributes_classes(&json!(claim)).into_iter().map(str::to_owned).collect();
    Use::Claim(requests.and_then(storage), given.and_then(storage), classes)
}

/// The quotas of namespaces in which an object is gone or uses another amount than before.
fn freed<K>(
    informer: &Informer<K>,
    quotas: &Informer<ResourceQuota>,
    of: impl Fn(&K) -> Use + Send,
) -> impl Stream<Item = Vec<Key>> + Send
where
    K: client::Watched,
{
    let (store, quotas) = (informer.store(), quotas.store());
    let mut known: HashMap<String, Use> = HashMap::new();
    let uid = |object: &K| object.uid().unwrap_or_default();
    informer.subscribe().map(move |change| {
        let near = |object: &K| {
            let near = quotas.state_filter(|quota| quota.namespace() == object.namespace());
            near.iter().map(|quota| ownership::key(quota.as_ref())).collect()
        };
        match change {
            Change::Applied(object) => {
                let now = of(&object);
                let changed = known.get(&uid(&object)).is_some_and(|before| *before != now);
                known.insert(uid(&object), now);
                if changed { near(&object) } else { Vec::new() }
            }
            Change::Deleted(object) => {
                known.remove(&uid(&object));
                near(&object)
            }
            Change::Synced => {
                known = store.state().iter().map(|object| (uid(object), of(object))).collect();
                quotas.state().iter().map(|quota| ownership::key(quota.as_ref())).collect()
            }
        }
    })
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let quotas = informers.get::<ResourceQuota>();
    let (pods, services) = (informers.get::<Pod>(), informers.get::<Service>());
    let claims = informers.get::<PersistentVolumeClaim>();
    let controller = Arc::new(Controller { client });
    quotas.ready().await;
    let own = touched(&quotas, |quota| {
        if is_uncounted(quota) { vec![ownership::key(quota)] } else { Vec::new() }
    });
    let objects = futures::stream::select(
        freed(&pods, &quotas, of_pod),
        futures::stream::select(
            freed(&services, &quotas, of_service),
            freed(&claims, &quotas, of_claim),
        ),
    );
    let changes = futures::stream::select(own, objects);
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
    fn only_what_is_not_counted_yet_is_counted() {
        for (status, want) in [
            (json!({}), true),
            (json!({"hard": {"pods": "2"}}), true),
            (json!({"hard": {"pods": "1"}, "used": {"pods": "0"}}), true),
            (json!({"hard": {"pods": "2"}, "used": {"pods": "1"}}), false),
        ] {
            let quota = json!({"spec": {"hard": {"pods": "2"}}, "status": status});
            let quota: ResourceQuota = serde_json::from_value(quota).expect("a quota");
            assert_eq!(is_uncounted(&quota), want, "{status}");
        }
    }

    #[test]
    fn a_pod_that_has_finished_uses_less() {
        let pod = |phase: &str| -> Pod {
            let pod = json!({"metadata": {"generation": 1}, "status": {"phase": phase}});
            serde_json::from_value(pod).expect("a pod")
        };
        assert_eq!(of_pod(&pod("Pending")), of_pod(&pod("Running")));
        assert_ne!(of_pod(&pod("Running")), of_pod(&pod("Succeeded")));
    }

    #[test]
    fn what_is_limited_is_counted() {
        let pod = |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}});
        let objects = BTreeMap::from([
            ((String::new(), "pods".to_owned()), vec![pod("100m"), pod("1"), json!({"spec": {}})]),
            (("apps".to_owned(), "deployments".to_owned()), vec![json!({}), json!({})]),
        ]);
        let told = |spec: Value| {
            let used = used(&spec, &objects, &[]);
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
