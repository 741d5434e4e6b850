//! DaemonSets: a pod on every node that fits.
//!
//! Source: `pkg/controller/daemon`.

mod decide;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::decide::{decide, pin, status};
use crate::history::{self, HASH, Outcome};
use crate::latest::Latest;
use crate::ownership::{self, Key};
use crate::pods::{self, Hands};
use crate::queue::{self, Failure, Next};
use crate::touched;

/// Counts changes of the template for clients that know nothing of revisions.
const GENERATION: &str = "pod-template-generation";
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
/// Delay before a failed daemon is replaced; it doubles with each failure on the node.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_mins(15);

/// When failed daemons may be replaced: by set and node, the failures and the last replacement.
#[derive(Default)]
struct Backoff(Mutex<HashMap<(String, String), (u32, Instant)>>);

impl Backoff {
    /// How long to wait before the next replacement; counts one when that is now.
    fn delay(&self, set: &str, node: &str) -> Option<Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|_, (_, last)| now.duration_since(*last) < 2 * BACKOFF_MAX);
        let known = all.entry((set.to_owned(), node.to_owned()));
        let (failures, last) = known.or_insert((0, now));
        if *failures > 0 {
            let delay = BACKOFF_MIN.saturating_mul(1 << (*failures - 1).min(20)).min(BACKOFF_MAX);
            let passed = now.duration_since(*last);
            if passed < delay {
                return Some(delay.checked_sub(passed).unwrap());
            }
        }
        (*failures, *last) = (*failures + 1, now);
        None
    }
}

struct Controller {
    client: Client,
    sets: Latest<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    events: Recorder,
    backoff: Backoff,
}

/// The daemon for one node.
fn pod(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let prefix = format!("{}-", set.name_any());
    let owner = ownership::owner_reference(set);
    let mut pod = pods::from_template(&template, owner, Some(prefix));
    pod.labels_mut().insert(HASH.into(), hash.to_owned());
    if let Some(generation) = set.annotations().get(GENERATION_ANNOTATION) {
        pod.labels_mut().insert(GENERATION.into(), generation.clone());
    }
    pin(pod.spec.get_or_insert_default(), node);
    pod
}

impl Controller {
    async fn sync(&self, set: &DaemonSet) -> Result<Next, Failure> {
        let Some(spec) = set.spec.as_ref() else { return Ok(Next::Done) };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let picks = pods::selector(&spec.selector);
        let collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let known =
            history::sync(&self.client, &self.revisions, set, &picks, &spec.template, collisions);
        let history = match known.await? {
            Outcome::Known(history) => history,
            Outcome::Collision => {
                let mut told = set.status.clone().unwrap_or_default();
                told.collision_count = Some(collisions + 1);
                return self.tell(set, told).await;
            }
        };
        let hash = history::hash_of(&history.current);
        let hands = Hands { client: &self.client, pods: &self.pods, events: &self.events };
        let own = hands.claim(set, &picks).await?;
        let own: Vec<&Pod> = own.iter().map(AsRef::as_ref).collect();
        let nodes = self.nodes.store().state();
        let mut plan = decide(set, &nodes, &own, &hash, Timestamp::now());
        let mut again = None;
        for (name, node, failed) in std::mem::take(&mut plan.ended) {
            let about = object_reference(set);
            let told = format!("{}/{name} on node {node}", set.namespace().unwrap_or_default());
            if failed {
                if let Some(delay) = self.backoff.delay(&set.uid().unwrap_or_default(), &node) {
                    again = Some(again.map_or(delay, |known: Duration| known.min(delay)));
                    continue;
                }
                let message = format!("Found failed daemon pod {told}, will try to kill it");
                self.events.warning(about, "FailedDaemonPod", message);
            } else {
                let message = format!("Found succeeded daemon pod {told}, will try to delete it");
                self.events.normal(about, "SucceededDaemonPod", message);
            }
            plan.delete.insert(name);
        }
        let wanted = plan.create.iter().map(|node| pod(set, node, &hash)).collect();
        let unwanted: Vec<&Pod> =
            own.iter().copied().filter(|pod| plan.delete.contains(&pod.name_any())).collect();
        let (_, outcome) = hands.change(set, wanted, &unwanted).await;
        let own = self.pods.store().state_filter(|pod| ownership::is_controlled_by(pod, set));
        let own: Vec<&Pod> = own.iter().map(AsRef::as_ref).collect();
        let now = Timestamp::now();
        let mut told = status(set, &nodes, &own, &hash, now);
        if outcome.is_err() {
            // What is wanted now has not been seen to.
            told.observed_generation = set.status.as_ref().and_then(|s| s.observed_generation);
        }
        let settling = told.number_ready > told.number_available.unwrap_or(0);
        if settling && spec.min_ready_seconds.unwrap_or(0) > 0 {
            again = Some(Duration::from_secs(1));
        }
        self.tell(set, told).await?;
        outcome?;
        let live: HashSet<String> =
            own.iter().filter_map(|pod| pod.labels().get(HASH).cloned()).collect();
        let limit = spec.revision_history_limit.unwrap_or(10);
        let namespace = set.namespace().unwrap_or_default();
        history::truncate(&self.client, &namespace, &history, limit, &live).await?;
        Ok(again.map_or(Next::Done, Next::After))
    }

    async fn tell(
        &self,
        set: &DaemonSet,
        status: k8s_openapi::api::apps::v1::DaemonSetStatus,
    ) -> Result<Next, Failure> {
        if set.status.as_ref() != Some(&status) {
            let mut told = set.clone();
            told.status = Some(status);
            let namespace = set.namespace().unwrap_or_default();
            let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &namespace);
            let parameters = PostParams::default();
            self.sets.wrote(api.replace_status(&set.name_any(), &parameters, &told).await)?;
        }
        Ok(Next::Done)
    }
}

/// Whether a daemon's fate may hang on the change.
fn concerns(old: &Node, new: &Node) -> bool {
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let sets = informers.get::<DaemonSet>();
    let (pods, nodes) = (informers.get::<Pod>(), informers.get::<Node>());
    let revisions = informers.get::<ControllerRevision>();
    let events = Recorder::new(client.clone(), "daemonset-controller", "");
    sets.ready().await;
    pods.ready().await;
    nodes.ready().await;
    revisions.ready().await;
    let of_pod = {
        let sets = sets.clone();
        move |pod: &Pod| {
            pods::owners(pod, "DaemonSet", &sets, |set| {
                set.spec.as_ref().map(|s| s.selector.clone())
            })
        }
    };
    let of_node = {
        let sets = sets.clone();
        let seen: Mutex<HashMap<String, Node>> = Mutex::default();
        move |node: &Node| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let before = seen.insert(node.name_any(), node.clone());
            // Heartbeats concern nobody.
            if before.is_some_and(|old| old.uid() == node.uid() && !concerns(&old, node)) {
                return Vec::new();
            }
            sets.store().state().iter().map(|set| ownership::key(set.as_ref())).collect()
        }
    };
    let changes = futures::stream::select(
        touched(&sets, |set| vec![ownership::key(set)]),
        futures::stream::select(touched(&pods, of_pod), touched(&nodes, of_node)),
    );
    let backoff = Backoff::default();
    let sets = Latest::new(sets);
    let controller = Controller { client, sets, pods, nodes, revisions, events, backoff };
    let controller = Arc::new(controller);
    queue::run("daemonset", changes, shutdown, |key: Key| {
        let (controller, found) = (controller.clone(), controller.sets.get(&key.0, &key.1));
        Box::pin(async move {
            match found {
                Some(set) => controller.sync(&set).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}
