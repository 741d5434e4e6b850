//! What the controllers of pods share: pods made from templates, whose they are, and how they do.
//!
//! Source: `pkg/controller/controller_utils.go`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::labels::Selector;
use client::{Change, Informer, Recorder, object_reference};
use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;

use crate::{ownership, unless_code};

/// How long the cache may take to show what was just written.
const SETTLE: Duration = Duration::from_secs(5);
/// Pods deleted at the same time.
const DELETIONS: usize = 64;

/// The labels a selector picks; one that cannot be read picks nothing.
pub fn selector(selector: &LabelSelector) -> Selector {
    let value = serde_json::to_value(selector).unwrap_or_default();
    Selector::from_label_selector(Some(&value)).unwrap_or_else(|_| Selector::nothing())
}

/// The keys of those a pod concerns: its controller when that is of `kind`, or, for an orphan, all whose
/// selector picks it.
pub fn owners<O>(
    pod: &Pod,
    kind: &str,
    owners: &Informer<O>,
    selector: impl Fn(&O) -> Option<LabelSelector>,
) -> Vec<ownership::Key>
where
    O: client::Watched,
{
    if ownership::controller_of(pod).is_some() {
        return ownership::controller_key(pod, kind).into_iter().collect();
    }
    let all = owners.store().state();
    let picking = all.iter().filter(|owner| {
        owner.namespace() == pod.namespace()
            && selector(owner).is_some_and(|s| self::selector(&s).matches(pod.labels()))
    });
    picking.map(|owner| ownership::key(owner.as_ref())).collect()
}

/// A pod as the template says, to be named by the API server from `generate_name`.
pub fn from_template(
    template: &PodTemplateSpec,
    owner: OwnerReference,
    generate_name: Option<String>,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name,
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The pod's phase; `Pending` until it is told.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the pod has run to an end.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod runs or still may: neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is asked to go and has not ended yet.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// The node the pod is on; empty until it has one.
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// The names of the claims the pod uses, its own ephemeral ones included.
pub fn claims(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name_any(), volume.name)),
    })
}

/// The pod's condition of this type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// When all containers had ended. Where that is not known, when the pod ceased to be ready, was asked to go, or
/// was made.
pub fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let ends: Option<Vec<Timestamp>> = statuses
        .into_iter()
        .flatten()
        .map(|s| Some(s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .collect();
    let ceased = || {
        let ready = condition(pod, "Ready").filter(|ready| ready.status == "False")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    };
    let asked = || {
        let end = pod.metadata.deletion_timestamp.as_ref()?.0;
        let grace_s = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        end.checked_sub(SignedDuration::from_secs(grace_s)).ok()
    };
    let ended = ends.and_then(|ends| ends.into_iter().max());
    ended.or_else(ceased).or_else(asked).or_else(|| created(pod))
}

/// Since when the pod has been ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Whether the pod has been ready for `min_ready_s` seconds.
pub fn is_available(pod: &Pod, min_ready_s: i32, now: Timestamp) -> bool {
    ready_since(pod)
        .is_some_and(|since| now.duration_since(since).as_secs() >= i64::from(min_ready_s))
}

/// What makes a pod of use, in the order in which it counts: a node, its phase, that it is ready.
fn use_of(pod: &Pod) -> (bool, u8, bool) {
    let stage = match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    (!node(pod).is_empty(), stage, ready_since(pod).is_some())
}

/// How often the container was restarted that was most often, and the sidecar that was.
fn restarts(pod: &Pod) -> (i32, i32) {
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: HashSet<&str> = inits
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .map(|container| container.name.as_str())
        .collect();
    let Some(status) = pod.status.as_ref() else { return (0, 0) };
    let regular = status.container_statuses.iter().flatten().map(|s| s.restart_count).max();
    let inits = status.init_container_statuses.iter().flatten();
    let inits = inits.filter(|s| sidecars.contains(s.name.as_str())).map(|s| s.restart_count);
    (regular.unwrap_or(0), inits.max().unwrap_or(0))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Which of two pods goes first when there are too many: the one that is less use (`ActivePods`).
pub fn deletion_order(a: &Pod, b: &Pod) -> Ordering {
    (use_of(a).cmp(&use_of(b)))
        .then_with(|| ready_since(b).cmp(&ready_since(a)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| created(b).cmp(&created(a)))
        .then_with(|| b.name_any().cmp(&a.name_any()))
}

/// As [`deletion_order`], for pods of which each is as good as another: what their deletion is said to cost
/// counts, and the crowds they are in; and age only by its order of magnitude (`ActivePodsWithRanks`).
pub fn ranked_deletion_order(
    (a, crowd_a): (&Pod, usize),
    (b, crowd_b): (&Pod, usize),
    now: Timestamp,
) -> Ordering {
    let cost = |pod: &Pod| -> i32 {
        let text = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost");
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let age = |since: Option<Timestamp>| {
        let age_ns = since.map_or(0, |since| now.duration_since(since).as_nanos());
        u128::try_from(age_ns).ok().and_then(u128::checked_ilog2).map_or(-1, i64::from)
    };
    (use_of(a).cmp(&use_of(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(|| age(ready_since(a)).cmp(&age(ready_since(b))))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(created(a)).cmp(&age(created(b))))
        // Of about the same age any may go, so that it is not always the oldest that stays.
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// Waits until the cache shows what was written: `created` objects, and `deleted` ones gone or going.
/// Without this the next decision would be made on yesterday's world and do the work twice.
pub async fn settle<K>(
    informer: &Informer<K>,
    changes: impl Stream<Item = Change<K>>,
    created: Vec<String>,
    deleted: Vec<String>,
) where
    K: client::Watched,
{
    let mut created: HashSet<String> = created.into_iter().collect();
    let mut deleted: HashSet<String> = deleted.into_iter().collect();
    let mut changes = std::pin::pin!(changes);
    let wait = async {
        while !(created.is_empty() && deleted.is_empty()) {
            match changes.next().await {
                Some(Change::Applied(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    created.remove(&uid);
                    if object.meta().deletion_timestamp.is_some() {
                        deleted.remove(&uid);
                    }
                }
                Some(Change::Deleted(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    created.remove(&uid);
                    deleted.remove(&uid);
                }
                Some(Change::Synced) => {
                    let mut going = HashSet::new();
                    for object in informer.store().state() {
                        let uid = object.uid().unwrap_or_default();
                        created.remove(&uid);
                        if object.meta().deletion_timestamp.is_none() {
                            going.insert(uid);
                        }
                    }
                    deleted.retain(|uid| going.contains(uid));
                }
                None => return,
            }
        }
    };
    if tokio::time::timeout(SETTLE, wait).await.is_err() {
        tracing::debug!(kind = %K::kind(&()), "the cache lags behind what was written");
    }
}

/// Makes and deletes pods for one owner, telling its events, and waits for the cache.
pub struct Hands<'a> {
    /// The controller's client.
    pub client: &'a Client,
    /// The pods as the controllers see them.
    pub pods: &'a Informer<Pod>,
    /// Where events go.
    pub events: &'a Recorder,
}

impl Hands<'_> {
    /// Creates `wanted` (1, then 2, then 4, … at a time, so that a refusal is met once) and deletes
    /// `unwanted`. Returns how many were made; the first refusal ends the work.
    pub async fn change<O: Resource<DynamicType = ()>>(
        &self,
        owner: &O,
        wanted: Vec<Pod>,
        unwanted: &[&Pod],
    ) -> (usize, Result<(), kube::Error>) {
        let namespace = owner.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let about = object_reference(owner);
        let changes = self.pods.subscribe();
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        let (mut left, mut batch) = (wanted.into_iter(), 1);
        while outcome.is_ok() && left.len() > 0 {
            let parameters = PostParams::default();
            let some: Vec<Pod> = left.by_ref().take(batch).collect();
            let made = some.iter().map(|pod| api.create(&parameters, pod));
            for made in futures::future::join_all(made).await {
                match made {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.name_any());
                        self.events.normal(about.clone(), "SuccessfulCreate", message);
                        created.push(pod.uid().unwrap_or_default());
                    }
                    // The end of a namespace is no failure of anybody's, but the end of the work.
                    Err(error) if is_ending(&error) => left = Vec::new().into_iter(),
                    Err(error) => {
                        let message = format!("Error creating: {}", text(&error));
                        self.events.warning(about.clone(), "FailedCreate", message);
                        outcome = Err(error);
                    }
                }
            }
            batch *= 2;
        }
        // Many at a time, so that the API server writes them together.
        for some in unwanted.chunks(DELETIONS) {
            let removals = some.iter().map(|pod| remove(&api, pod));
            for (name, uid, removed) in futures::future::join_all(removals).await {
                match removed {
                    Ok(()) => {
                        let message = format!("Deleted pod: {name}");
                        self.events.normal(about.clone(), "SuccessfulDelete", message);
                        deleted.push(uid);
                    }
                    // Gone already, or another pod has taken the name.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => {
                        let message = format!("Error deleting: {}", text(&error));
                        self.events.warning(about.clone(), "FailedDelete", message);
                        outcome = outcome.and(Err(error));
                    }
                }
            }
        }
        let made = created.len();
        settle(self.pods, changes, created, deleted).await;
        (made, outcome)
    }

    /// The pods that `owner` controls; orphans that its selector picks are adopted while they are of use.
    pub async fn claim<O>(&self, owner: &O, picks: &Selector) -> Result<Vec<Arc<Pod>>, kube::Error>
    where
        O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + serde::de::DeserializeOwned,
    {
        let all = self.pods.store().state();
        let picks = |pod: &Pod| picks.matches(pod.labels());
        ownership::claim(self.client, owner, all, picks, is_active, None).await
    }
}

/// Deletes the pod, if it is still the same; returns its name and uid with the outcome.
async fn remove(api: &Api<Pod>, pod: &Pod) -> (String, String, Result<(), kube::Error>) {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let preconditions = Preconditions { uid: Some(uid.clone()), ..Preconditions::default() };
    let parameters = DeleteParams::default().preconditions(preconditions);
    let removed = api.delete(&name, &parameters).await.map(drop);
    (name, uid, removed)
}

/// Deletes the pod on behalf of somebody else than its owner: with the condition DisruptionTarget, so that those who
/// count failures know. One that is gone is fine.
pub async fn disrupt(
    client: &Client,
    pod: &Pod,
    reason: &str,
    message: &str,
) -> Result<(), kube::Error> {
    let (namespace, name) = ownership::key(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": Time(Timestamp::now())}]}});
    let told = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    unless_code(told, 404)?;
    let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
    let parameters = DeleteParams::default().preconditions(preconditions);
    unless_code(api.delete(&name, &parameters).await, 404)
}

/// Whether something was refused because its namespace is being deleted.
pub fn is_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The API's own words for a failure.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let ready = |name: &str, since: &str| {
            pod(json!({"metadata": {"name": name}, "spec": {"containers": [], "nodeName": "n"},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": since}]}}))
        };
        let mut all = [
            ready("old", "2026-01-01T00:00:00Z"),
            ready("new", "2026-01-02T00:00:00Z"),
            pod(
                json!({"metadata": {"name": "unready"}, "spec": {"containers": [], "nodeName": "n"},
                "status": {"phase": "Running"}}),
            ),
            pod(json!({"metadata": {"name": "unassigned"}})),
        ];
        all.sort_by(deletion_order);
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["unassigned", "unready", "new", "old"]);
    }

    #[test]
    fn cost_crowds_and_orders_of_magnitude_decide_between_equals() {
        let now = "2026-01-02T00:00:00Z".parse().expect("a time");
        let ready = |uid: &str, since: &str, cost: i32| {
            pod(json!({"metadata": {"name": uid, "uid": uid,
                    "annotations": {"controller.kubernetes.io/pod-deletion-cost": cost.to_string()}},
                "spec": {"containers": [], "nodeName": "n"},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": since}]}}))
        };
        let (old, older, new) =
            ("2026-01-01T01:00:00Z", "2026-01-01T00:00:00Z", "2026-01-01T23:59:50Z");
        let cases = vec![
            ((ready("a", new, 5), 1), (ready("b", old, 0), 1), Ordering::Greater),
            ((ready("a", old, 0), 2), (ready("b", new, 0), 1), Ordering::Less),
            ((ready("b", new, 0), 1), (ready("a", old, 0), 1), Ordering::Less),
            ((ready("b", old, 0), 1), (ready("a", older, 0), 1), Ordering::Greater),
        ];
        for (a, b, want) in cases {
            assert_eq!(ranked_deletion_order((&a.0, a.1), (&b.0, b.1), now), want);
        }
        // Sorting many that differ a little works: the order is one.
        let mut many: Vec<Pod> = (0..200)
            .map(|n| {
                ready(&format!("{:03}", n * 37 % 200), if n % 3 == 0 { old } else { older }, 0)
            })
            .collect();
        many.sort_by(|a, b| ranked_deletion_order((a, 1), (b, 1), now));
        assert_eq!(many[0].metadata.uid.as_deref(), Some("000"));
    }

    #[test]
    fn what_was_restarted_more_goes_first() {
        let restarted = |name: &str, regular: i32, sidecar: i32, init: i32| {
            pod(json!({"metadata": {"name": name, "uid": name},
                "spec": {"containers": [], "nodeName": "n", "initContainers": [
                    {"name": "side", "restartPolicy": "Always"}, {"name": "init"}]},
                "status": {"phase": "Running",
                    "containerStatuses": [{"name": "c", "restartCount": regular}],
                    "initContainerStatuses": [{"name": "side", "restartCount": sidecar},
                        {"name": "init", "restartCount": init}]}}))
        };
        let now = Timestamp::UNIX_EPOCH;
        for (a, b, want) in [
            (restarted("a", 2, 0, 0), restarted("b", 1, 5, 5), Ordering::Less),
            (restarted("a", 1, 2, 0), restarted("b", 1, 3, 0), Ordering::Greater),
            (restarted("a", 1, 2, 0), restarted("b", 1, 2, 9), Ordering::Less),
        ] {
            assert_eq!(ranked_deletion_order((&a, 1), (&b, 1), now), want);
        }
    }

    #[test]
    fn availability_needs_time() {
        let since = "2026-01-01T00:00:00Z";
        let ready = pod(json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": since}]}}));
        let at: Timestamp = "2026-01-01T00:00:05Z".parse().expect("a time");
        assert!(is_available(&ready, 5, at) && !is_available(&ready, 6, at));
        assert!(!is_available(&pod(json!({})), 0, at));
    }
}
