//! ReplicaSets: as many pods as asked for.
//!
//! Source: `pkg/controller/replicaset`.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use client::{Informer, Informers, Recorder};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::latest::Latest;
use crate::ownership::{self, Key};
use crate::pods::{self, Hands};
use crate::queue::{self, Failure, Next};
use crate::touched;

/// Most pods made or deleted in one go.
const BURST: usize = 500;

/// What is to be done about a ReplicaSet's pods.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: usize,
    delete: Vec<String>,
}

/// Decides. `crowds` tells how many active pods of the same Deployment are on which node: of two pods that
/// are otherwise of the same use, the one in the larger crowd goes first.
fn plan(
    set: &ReplicaSet,
    own: &[Arc<Pod>],
    crowds: impl FnOnce() -> HashMap<String, usize>,
    now: Timestamp,
) -> Plan {
    if set.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0) as usize;
    let mut active: Vec<&Arc<Pod>> = own.iter().filter(|pod| pods::is_active(pod)).collect();
    if active.len() <= wanted {
        return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
    }
    let crowds = crowds();
    let rank = |pod: &Pod| crowds.get(pods::node(pod)).copied().unwrap_or(0);
    active.sort_by(|a, b| pods::ranked_deletion_order((a, rank(a)), (b, rank(b)), now));
    let surplus = (active.len() - wanted).min(BURST);
    Plan { create: 0, delete: active[..surplus].iter().map(|pod| pod.name_any()).collect() }
}

fn status(
    set: &ReplicaSet,
    own: &[Arc<Pod>],
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let template =
        spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let count = |holds: &dyn Fn(&Pod) -> bool| {
        own.iter().filter(|pod| pods::is_active(pod) && holds(pod)).count() as i32
    };
    let some = |number: i32| (number > 0).then_some(number);
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
    }
    let terminating = own
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some() && !pods::is_finished(pod))
        .count() as i32;
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: some(count(&|pod| {
            template.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
        })),
        ready_replicas: some(count(&|pod| pods::ready_since(pod).is_some())),
        available_replicas: some(count(&|pod| pods::is_available(pod, min_ready_s, now))),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// When a ready pod will have been ready long enough.
fn next_look(set: &ReplicaSet, status: &ReplicaSetStatus) -> Next {
    let min_ready_s = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    if min_ready_s > 0 && status.ready_replicas != status.available_replicas {
        return Next::After(Duration::from_secs(1));
    }
    Next::Done
}

/// What is kept at a number of pods: a ReplicaSet, or what can be seen as one.
pub trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// It as a ReplicaSet.
    fn as_set(&self) -> ReplicaSet;
    /// It with this status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    fn as_set(&self) -> ReplicaSet {
        self.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

/// How many active pods there are on each node of the sets that have the same controller as `set`, or of
/// the set alone.
fn crowds(
    set: &ReplicaSet,
    sets: &Informer<ReplicaSet>,
    pods: &Informer<Pod>,
) -> HashMap<String, usize> {
    let deployment = ownership::controller_of(set).map(|owner| owner.uid.as_str());
    let siblings = sets.store().state_filter(|other| {
        let owner = ownership::controller_of(other).map(|owner| owner.uid.as_str());
        owner.is_some() && owner == deployment
    });
    let family: HashSet<String> =
        siblings.iter().filter_map(|other| other.uid()).chain(set.uid()).collect();
    let mut crowds = HashMap::new();
    let related = pods.store().state_filter(|pod| {
        pods::is_active(pod)
            && ownership::controller_of(pod).is_some_and(|owner| family.contains(&owner.uid))
    });
    for pod in related {
        *crowds.entry(pods::node(&pod).to_owned()).or_default() += 1;
    }
    crowds
}

async fn sync<R: Replicated>(
    owner: &R,
    latest: &Latest<R>,
    sets: &Informer<ReplicaSet>,
    hands: &Hands<'_>,
) -> Result<Next, Failure> {
    let set = owner.as_set();
    let Some(spec) = set.spec.as_ref() else { return Ok(Next::Done) };
    let picks = pods::selector(&spec.selector);
    let own = hands.claim(owner, &picks).await?;
    let plan = plan(&set, &own, || crowds(&set, sets, hands.pods), Timestamp::now());
    let template = spec.template.clone().unwrap_or_default();
    let pod = pods::from_template(
        &template,
        ownership::owner_reference(owner),
        Some(format!("{}-", set.name_any())),
    );
    let unwanted: Vec<&Pod> =
        own.iter().filter(|p| plan.delete.contains(&p.name_any())).map(AsRef::as_ref).collect();
    let more = plan.create;
    let (_, outcome) = hands.change(owner, vec![pod; more], &unwanted).await;
    let failure = outcome.as_ref().err().map(pods::text);
    let reason = if more > 0 { "FailedCreate" } else { "FailedDelete" };
    let own = hands.pods.store().state_filter(|pod| ownership::is_controlled_by(pod, owner));
    let status =
        status(&set, &own, failure.as_deref().map(|text| (reason, text)), Timestamp::now());
    let mut next = next_look(&set, &status);
    if more == BURST {
        // There is more to make than one go allows.
        next = Next::After(Duration::ZERO);
    }
    if owner.with_status(status.clone()).as_set().status != set.status {
        let (namespace, name) = ownership::key(owner);
        let api: Api<R> = Api::namespaced(hands.client.clone(), &namespace);
        // While pods were made the owner may have changed: what is told of the version looked at stays true.
        let now = latest.get(&namespace, &name).filter(|now| now.meta().uid == owner.meta().uid);
        let told = now.as_deref().unwrap_or(owner).with_status(status);
        latest.wrote(api.replace_status(&name, &PostParams::default(), &told).await)?;
    }
    outcome?;
    Ok(next)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    run_for::<ReplicaSet>("replicaset-controller", client, informers, shutdown).await;
}

/// Looks after everything of kind `R`, its events in the name of `component`, until `shutdown`.
pub async fn run_for<R: Replicated>(
    component: &'static str,
    client: Client,
    informers: Informers,
    shutdown: CancellationToken,
) {
    let sets = informers.get::<R>();
    let (pods, siblings) = (informers.get::<Pod>(), informers.get::<ReplicaSet>());
    let events = Recorder::new(client.clone(), component, "");
    sets.ready().await;
    pods.ready().await;
    siblings.ready().await;
    let of_pod = {
        let sets = sets.clone();
        move |pod: &Pod| {
            pods::owners(pod, &R::kind(&()), &sets, |set| Some(set.as_set().spec?.selector))
        }
    };
    let changes = futures::stream::select(
        touched(&sets, |set: &R| vec![ownership::key(set)]),
        touched(&pods, of_pod),
    );
    let latest = Latest::new(sets);
    queue::run(component, changes, shutdown, |key: Key| {
        let set = latest.get(&key.0, &key.1);
        let latest = latest.clone();
        let (client, pods, events) = (client.clone(), pods.clone(), events.clone());
        let siblings = siblings.clone();
        Box::pin(async move {
            let Some(set) = set else { return Ok(Next::Done) };
            let hands = Hands { client: &client, pods: &pods, events: &events };
            sync(set.as_ref(), &latest, &siblings, &hands).await
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "generation": 2},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}}}}))
        .expect("a set")
    }

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"a": "b"}},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn the_number_of_pods_is_kept() {
        let pods =
            [pod("a", "Running", true), pod("b", "Pending", false), pod("c", "Failed", false)];
        for (replicas, create, delete) in
            [(2, 0, &[][..]), (5, 3, &[]), (1, 0, &["b"]), (0, 0, &["b", "a"])]
        {
            let plan = plan(&set(replicas), &pods, HashMap::new, Timestamp::UNIX_EPOCH);
            assert_eq!(
                (plan.create, plan.delete),
                (create, delete.iter().map(|s| (*s).into()).collect())
            );
        }
    }

    #[test]
    fn crowded_nodes_are_thinned_out_first() {
        let on = |name: &str, node: &str| {
            let mut pod = Pod::clone(&pod(name, "Running", true));
            pod.spec.get_or_insert_default().node_name = Some(node.into());
            Arc::new(pod)
        };
        let pods = [on("a", "n1"), on("b", "n2"), on("c", "n2")];
        let crowds = || HashMap::from([("n1".to_owned(), 1), ("n2".to_owned(), 2)]);
        let plan = plan(&set(1), &pods, crowds, Timestamp::UNIX_EPOCH);
        assert!(!plan.delete.contains(&"a".to_owned()), "{plan:?}");
    }

    #[test]
    fn the_status_counts_active_pods() {
        let pods =
            [pod("a", "Running", true), pod("b", "Pending", false), pod("c", "Failed", false)];
        let status = status(&set(2), &pods, Some(("FailedCreate", "no")), Timestamp::UNIX_EPOCH);
        assert_eq!((status.replicas, status.ready_replicas), (2, Some(1)));
        assert_eq!((status.available_replicas, status.observed_generation), (Some(1), Some(2)));
        assert_eq!(status.conditions.expect("a failure")[0].message.as_deref(), Some("no"));
    }
}
