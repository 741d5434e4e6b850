//! PodDisruptionBudgets: how many pods of a kind may be taken away just now.
//!
//! Source: `pkg/controller/disruption/disruption.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::labels::Selector;
use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::latest::Latest;
use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, share, touched, unless_code};

/// A pod that was evicted and is still there after this is taken to have stayed.
const EVICTION_S: i64 = 120;

/// How many pods there should be, and how many of them must be healthy.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Demand {
    expected: i32,
    healthy: i32,
}

fn demand(budget: &PodDisruptionBudget, pods: i32, scale: i32) -> Demand {
    let spec = budget.spec.clone().unwrap_or_default();
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(down), _) => {
            let down = share::of(Some(down), scale, true);
            Demand { expected: scale, healthy: (scale - down).max(0) }
        }
        (None, Some(IntOrString::Int(least))) => Demand { expected: pods, healthy: *least },
        (None, Some(least)) => {
            Demand { expected: scale, healthy: share::of(Some(least), scale, true) }
        }
        (None, None) => Demand { expected: pods, healthy: 0 },
    }
}

/// Whether the demand depends on the size of what the pods belong to.
fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    budget.spec.as_ref().is_some_and(|spec| {
        spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
    })
}

/// Evictions that were granted, as a look at them finds them.
#[derive(Debug, Default)]
struct Disrupted {
    /// Those still under way.
    pending: BTreeMap<String, Time>,
    /// Pods that have not gone in time.
    stayed: Vec<String>,
    /// When the next is given up.
    again: Option<Duration>,
}

fn disrupted(budget: &PodDisruptionBudget, pods: &[&Pod], now: Timestamp) -> Disrupted {
    let mut all =
        budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let (mut again, mut stayed) = (None, Vec::new());
    all.retain(|name, since| {
        let Some(pod) = pods.iter().find(|pod| pod.name_any() == *name) else { return false };
        let rest = EVICTION_S - now.duration_since(since.0).as_secs();
        if pod.metadata.deletion_timestamp.is_some() {
            return false;
        }
        if rest <= 0 {
            stayed.push(name.clone());
            return false;
        }
        let rest = Duration::from_secs(rest as u64);
        again = Some(again.map_or(rest, |known: Duration| known.min(rest)));
        true
    });
    Disrupted { pending: all, stayed, again }
}

fn condition(
    budget: &PodDisruptionBudget,
    allowed: i32,
    problem: Option<&str>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all =
        budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (status, reason) = match problem {
        Some(_) => ("False", "SyncFailed"),
        None if allowed > 0 => ("True", "SufficientPods"),
        None => ("False", "InsufficientPods"),
    };
    let known = all.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = known
        .filter(|known| known.status == status)
        .map(|known| known.last_transition_time.clone());
    let made = Condition {
        type_: "DisruptionAllowed".into(),
        status: status.into(),
        reason: reason.into(),
        message: problem.unwrap_or_default().into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    all.retain(|c| c.type_ != "DisruptionAllowed");
    all.push(made);
    all
}

fn status(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    scale: Result<i32, String>,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let scale = match scale {
        Ok(scale) => scale,
        Err(problem) => {
            return PodDisruptionBudgetStatus {
                conditions: Some(condition(budget, 0, Some(&problem), now)),
                observed_generation: budget.metadata.generation,
                disruptions_allowed: Some(0),
                ..budget.status.clone().unwrap_or_default()
            };
        }
    };
    let demand = demand(budget, pods.len() as i32, scale);
    let healthy = pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && !disrupted.contains_key(&pod.name_any())
            && pods::ready_since(pod).is_some()
    });
    let healthy = healthy.count() as i32;
    let allowed = if demand.expected <= 0 { 0 } else { (healthy - demand.healthy).max(0) };
    PodDisruptionBudgetStatus {
        conditions: Some(condition(budget, allowed, None, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(demand.healthy),
        disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(demand.expected),
        observed_generation: budget.metadata.generation,
    }
}

/// How long until it is clear that the pod is not disrupted after all, though something said it would be;
/// `None` where nothing did, or it goes, or only the kubelet can tell.
fn until_stale(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return None;
    }
    let told = pods::condition(pod, "DisruptionTarget").filter(|told| told.status == "True")?;
    if told.reason.as_deref() == Some("TerminationByKubelet") {
        return None;
    }
    let since = told.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let rest_s = EVICTION_S - now.duration_since(since).as_secs();
    Some(Duration::from_secs(rest_s.max(0) as u64))
}

/// Takes back what was said about pods that have stayed, until `shutdown`.
async fn take_back(client: Client, pods: Informer<Pod>, shutdown: CancellationToken) {
    let told = |pod: &Pod| {
        until_stale(pod, Timestamp::now()).map(|_| ownership::key(pod)).into_iter().collect()
    };
    let changes = touched(&pods, told);
    queue::run("stale_pod_disruption", changes, shutdown, |key: Key| {
        let (api, found) =
            (Api::<Pod>::namespaced(client.clone(), &key.0), pods.get(&key.0, &key.1));
        Box::pin(async move {
            let now = Timestamp::now();
            let Some(pod) = found else { return Ok(Next::Done) };
            match until_stale(&pod, now) {
                None => Ok(Next::Done),
                Some(rest) if !rest.is_zero() => Ok(Next::After(rest)),
                Some(_) => {
                    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
                        "type": "DisruptionTarget", "status": "False", "reason": null,
                        "message": null, "lastTransitionTime": Time(now)}]}});
                    let patch = Patch::Strategic(patch);
                    let told = api.patch_status(&key.1, &PatchParams::default(), &patch).await;
                    unless_code(told, 404)?;
                    Ok(Next::Done)
                }
            }
        })
    })
    .await;
}

struct Controller {
    budgets: Latest<PodDisruptionBudget>,
    client: Client,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    events: Recorder,
}

impl Controller {
    /// The size of the pods' controllers together; the error says which pod has none.
    async fn scale(&self, namespace: &str, pods: &[&Pod]) -> Result<i32, String> {
        let mut seen = BTreeSet::new();
        let mut sum = 0;
        for pod in pods {
            let Some(owner) = ownership::controller_of(*pod) else {
                // Pods without a controller count for nothing.
                continue;
            };
            let (uid, size) = self.size(namespace, owner).await?;
            if seen.insert(uid) {
                sum += size;
            }
        }
        Ok(sum)
    }

    /// Uid and size of a controller, or of what controls it in turn.
    async fn size(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), String> {
        let known = |replicas: Option<i32>| (owner.uid.clone(), replicas.unwrap_or(1));
        let (group, _) = owner.api_version.split_once('/').unwrap_or(("", ""));
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let Some(set) = self.sets.get(namespace, &owner.name) else {
                    return Ok(known(Some(0)));
                };
                let parent = ownership::controller_of(set.as_ref());
                let parent = parent.filter(|parent| parent.kind == "Deployment");
                if let Some(parent) = parent
                    && let Some(found) = self.deployments.get(namespace, &parent.name)
                {
                    let replicas = found.spec.as_ref().and_then(|spec| spec.replicas);
                    return Ok((parent.uid.clone(), replicas.unwrap_or(1)));
                }
                Ok(known(set.spec.as_ref().and_then(|spec| spec.replicas)))
            }
            ("", "ReplicationController") => {
                let found = self.controllers.get(namespace, &owner.name);
                Ok(known(found.map_or(Some(0), |found| found.spec.as_ref()?.replicas)))
            }
            ("apps", "StatefulSet") => {
                let found = self.stateful.get(namespace, &owner.name);
                Ok(known(found.map_or(Some(0), |found| found.spec.as_ref()?.replicas)))
            }
            _ => self.size_by_scale(namespace, owner).await,
        }
    }

    async fn size_by_scale(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<(String, i32), String> {
        let (group, version) =
            owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let kind = kube::core::GroupVersionKind::gvk(group, version, &owner.kind);
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<kube::core::DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let unsupported =
            |_| format!("{}.{group} does not implement the scale subresource", resource.plural);
        let scale = api.get_scale(&owner.name).await.map_err(unsupported)?;
        let size = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        Ok((owner.uid.clone(), size))
    }

    /// Tells that some of the pods belong to nobody whose size could be known.
    fn tell_of_strays(&self, budget: &PodDisruptionBudget, pods: &[&Pod]) {
        let stray = |pod: &&Pod| ownership::controller_of(*pod).is_none();
        if needs_scale(budget) && pods.iter().any(stray) {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let selector = serde_json::to_string(&selector).unwrap_or_default();
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.events.warning(object_reference(budget), "UnmanagedPods", message);
        }
    }

    async fn sync(&self, budget: &PodDisruptionBudget) -> Result<Next, Failure> {
        let (namespace, name) = ownership::key(budget);
        let picks = picks(budget);
        let found: Vec<Arc<Pod>> = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(&namespace)
                && picks.matches(pod.labels())
                && !pods::is_finished(pod)
        });
        let found: Vec<&Pod> = found.iter().map(AsRef::as_ref).collect();
        if found.is_empty() {
            self.events.normal(object_reference(budget), "NoPods", "No matching pods found");
        }
        let scale = if needs_scale(budget) { self.scale(&namespace, &found).await } else { Ok(0) };
        if let Err(problem) = &scale {
            let message = format!("Failed to calculate the number of expected pods: {problem}");
            self.events.warning(
                object_reference(budget),
                "CalculateExpectedPodCountFailed",
                message,
            );
        }
        self.tell_of_strays(budget, &found);
        let now = Timestamp::now();
        let Disrupted { pending, stayed, again } = disrupted(budget, &found, now);
        for pod in found.iter().filter(|pod| stayed.contains(&pod.name_any())) {
            let message =
                format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            self.events.warning(object_reference(*pod), "NotDeleted", message);
        }
        let status = status(budget, &found, scale, pending, now);
        if budget.status.as_ref() != Some(&status) {
            let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &namespace);
            let told = PodDisruptionBudget { status: Some(status), ..budget.clone() };
            let parameters = PostParams::default();
            self.budgets.wrote(api.replace_status(&name, &parameters, &told).await)?;
        }
        Ok(again.map_or(Next::Done, Next::After))
    }
}

fn picks(budget: &PodDisruptionBudget) -> Selector {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.map_or_else(Selector::nothing, pods::selector)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let budgets = informers.get::<PodDisruptionBudget>();
    let events = Recorder::new(client.clone(), "controllermanager", "");
    let controller = Arc::new(Controller {
        budgets: Latest::new(budgets.clone()),
        pods: informers.get(),
        sets: informers.get(),
        controllers: informers.get(),
        deployments: informers.get(),
        stateful: informers.get(),
        events,
        client,
    });
    budgets.ready().await;
    controller.pods.ready().await;
    controller.sets.ready().await;
    controller.controllers.ready().await;
    controller.deployments.ready().await;
    controller.stateful.ready().await;
    let of_pod = {
        let budgets = budgets.clone();
        move |pod: &Pod| {
            let all = budgets.store().state();
            let near = all.iter().filter(|budget| {
                budget.namespace() == pod.namespace() && picks(budget).matches(pod.labels())
            });
            near.map(|budget| ownership::key(budget.as_ref())).collect()
        }
    };
    // A change of size is felt through the pods; one that makes no pod come or go is told here.
    let of_namespace = |budgets: &Informer<PodDisruptionBudget>, namespace: Option<String>| {
        let near = budgets.store().state_filter(|budget| budget.metadata.namespace == namespace);
        near.iter().map(|budget| ownership::key(budget.as_ref())).collect::<Vec<Key>>()
    };
    let (for_deployments, for_stateful) = (budgets.clone(), budgets.clone());
    let sizes = futures::stream::select(
        touched(&controller.deployments, move |d: &Deployment| {
            of_namespace(&for_deployments, d.namespace())
        }),
        touched(&controller.stateful, move |s: &StatefulSet| {
            of_namespace(&for_stateful, s.namespace())
        }),
    );
    let changes = futures::stream::select(
        touched(&budgets, |budget| vec![ownership::key(budget)]),
        futures::stream::select(touched(&controller.pods, of_pod), sizes),
    );
    let stale = take_back(controller.client.clone(), controller.pods.clone(), shutdown.clone());
    let counted = queue::run("disruption", changes, shutdown, |key: Key| {
        let controller = controller.clone();
        let found = controller.budgets.get(&key.0, &key.1);
        Box::pin(async move {
            match found {
                Some(budget) => controller.sync(&budget).await,
                None => Ok(Next::Done),
            }
        })
    });
    tokio::join!(stale, counted);
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(
            json!({"metadata": {"name": "b", "generation": 1}, "spec": spec, "status": status}),
        )
        .expect("a budget")
    }

    fn pods(states: &[bool]) -> Vec<Pod> {
        let pod = |(n, ready): (usize, &bool)| {
            let ready = if *ready { "True" } else { "False" };
            serde_json::from_value(json!({"metadata": {"name": format!("p{n}")},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a pod")
        };
        states.iter().enumerate().map(pod).collect()
    }

    #[test]
    fn budgets_allow_what_is_left_over() {
        for (spec, ready, scale, want) in [
            (json!({"minAvailable": 2}), &[true, true, true][..], 3, (1, 2, 3)),
            (json!({"minAvailable": "50%"}), &[true, true, true], 3, (1, 2, 3)),
            (json!({"maxUnavailable": 1}), &[true, true, false], 3, (0, 2, 3)),
            (json!({"maxUnavailable": "50%"}), &[true, true, true], 3, (2, 1, 3)),
            (json!({"maxUnavailable": 1}), &[true, true], 4, (0, 3, 4)),
            (json!({"minAvailable": 0}), &[], 0, (0, 0, 0)),
        ] {
            let pods = pods(ready);
            let found: Vec<&Pod> = pods.iter().collect();
            let budget = budget(spec.clone(), json!({}));
            let told = status(&budget, &found, Ok(scale), BTreeMap::new(), Timestamp::UNIX_EPOCH);
            let got = (told.disruptions_allowed, told.desired_healthy, told.expected_pods);
            assert_eq!(got, (Some(want.0), Some(want.1), Some(want.2)), "{spec}");
            let reason = &told.conditions.expect("a condition")[0].reason;
            assert_eq!(reason, if want.0 > 0 { "SufficientPods" } else { "InsufficientPods" });
        }
    }

    #[test]
    fn an_eviction_counts_until_it_is_given_up() {
        let since = json!({"disruptedPods": {"p0": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:00:00Z"}});
        let budget = budget(json!({"minAvailable": 1}), since);
        let pods = pods(&[true, true]);
        let found: Vec<&Pod> = pods.iter().collect();
        let at = |text: &str| {
            let now = text.parse().expect("a time");
            let Disrupted { pending, stayed, again } = disrupted(&budget, &found, now);
            (status(&budget, &found, Ok(2), pending, now), stayed, again)
        };
        let (early, stayed, again) = at("2026-01-01T00:01:00Z");
        assert_eq!((early.disruptions_allowed, again), (Some(0), Some(Duration::from_mins(1))));
        assert_eq!((early.disrupted_pods.map(|pods| pods.len()), stayed.len()), (Some(1), 0));
        let (late, stayed, again) = at("2026-01-01T00:03:00Z");
        assert_eq!((late.disruptions_allowed, again), (Some(1), None));
        assert_eq!(stayed, ["p0"]);
    }

    #[test]
    fn what_was_said_of_a_pod_that_stays_is_taken_back() {
        let pod = |phase: &str, status: &str, reason: &str, gone: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": gone},
                "status": {"phase": phase, "conditions": [{"type": "DisruptionTarget",
                    "status": status, "reason": reason,
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .expect("a pod")
        };
        let soon = Some(Duration::from_mins(1));
        let gone = Some("2026-01-01T00:00:00Z");
        for (pod, want) in [
            (pod("Running", "True", "EvictionByEvictionAPI", None), soon),
            (pod("Running", "False", "EvictionByEvictionAPI", None), None),
            (pod("Running", "True", "TerminationByKubelet", None), None),
            (pod("Running", "True", "EvictionByEvictionAPI", gone), None),
            (pod("Failed", "True", "EvictionByEvictionAPI", None), None),
        ] {
            assert_eq!(until_stale(&pod, "2026-01-01T00:01:00Z".parse().expect("a time")), want);
        }
        let late = pod("Running", "True", "PreemptionByScheduler", None);
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        assert_eq!(until_stale(&late, now), Some(Duration::ZERO));
    }

    #[test]
    fn without_a_size_nothing_is_allowed() {
        let told = status(
            &budget(json!({"maxUnavailable": 1}), json!({})),
            &[],
            Err("no".into()),
            BTreeMap::new(),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(told.disruptions_allowed, Some(0));
        assert_eq!(told.conditions.expect("a condition")[0].reason, "SyncFailed");
    }
}
