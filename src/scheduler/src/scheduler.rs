//! The loop: takes in what the API server tells, decides about one pod after the other, and has the
//! decisions written while it goes on. Nothing here waits for a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apimachinery::trace;
use client::{Change, Informer, Informers, Recorder, object_reference};
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::framework::{Event, Profiles};
use crate::late_binding::{self, Promise, promises, reserved};
use crate::nominator::Nominator;
use crate::plugins::late_claims;
use crate::pod::PodInfo;
use crate::preemption::{Preemption, preempt};
use crate::queue::{Queue, Waiting};
use crate::report::{self, Unscheduled};
use crate::schedule::{Failure, Placement, Rotation, Unfit, schedule};
use crate::volumes::Volumes;

/// How many decisions may be on their way to the API server at once.
const WRITES_MAX: usize = 256;
/// After so many decisions in a row other tasks get a turn.
const DECISIONS_PER_TURN: u32 = 16;
/// Longer than anything else makes the loop look again.
const IDLE: Duration = Duration::from_hours(1);

/// What the API server tells.
pub(crate) enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    /// Something about some namespace.
    Namespace,
    /// Something about some claim, volume or storage class.
    Storage,
}

/// A write that has come to an end.
enum Written {
    Bound { pod: Arc<PodInfo>, node: String, started: SystemTime, result: Result<(), Refusal> },
    Told,
}

/// Why a decision could not be carried out.
enum Refusal {
    Binding(kube::Error),
    Volumes(late_binding::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Binding(error) => write!(f, "binding rejected: {error}"),
            Self::Volumes(error) => error.fmt(f),
        }
    }
}

pub(crate) struct Scheduler {
    client: Client,
    recorder: Recorder,
    profiles: Arc<Profiles>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    budgets: Informer<PodDisruptionBudget>,
    inputs: SelectAll<BoxStream<'static, Input>>,
    writes: JoinSet<Written>,
    /// Pods whose binding is being written.
    binding: HashMap<String, Waiting>,
    queue: Queue,
    cache: Cache,
    nominator: Nominator,
    rotation: Rotation,
    /// Volumes that are set aside for claims of pods being bound, by name.
    reserved: HashMap<String, Arc<PersistentVolume>>,
}

impl Scheduler {
    pub fn new(client: Client, informers: &Informers, profiles: Profiles) -> Self {
        let pods = informers.get::<Pod>();
        let nodes = informers.get::<Node>();
        let namespaces = informers.get::<Namespace>();
        let claims = informers.get::<PersistentVolumeClaim>();
        let volumes = informers.get::<PersistentVolume>();
        let classes = informers.get::<StorageClass>();
        let mut inputs = SelectAll::new();
        inputs.push(nodes.subscribe().map(Input::Node).boxed());
        inputs.push(namespaces.subscribe().map(|_| Input::Namespace).boxed());
        inputs.push(claims.subscribe().map(|_| Input::Storage).boxed());
        inputs.push(volumes.subscribe().map(|_| Input::Storage).boxed());
        inputs.push(classes.subscribe().map(|_| Input::Storage).boxed());
        inputs.push(pods.subscribe().map(Input::Pod).boxed());
        let name = profiles.0.first().map_or("", |profile| profile.scheduler_name.as_str());
        Self {
            recorder: Recorder::new(client.clone(), name, ""),
            client,
            profiles: Arc::new(profiles),
            pods,
            nodes,
            namespaces,
            claims,
            volumes,
            classes,
            budgets: informers.get::<PodDisruptionBudget>(),
            inputs,
            writes: JoinSet::new(),
            binding: HashMap::new(),
            queue: Queue::default(),
            cache: Cache::default(),
            nominator: Nominator::default(),
            rotation: Rotation::default(),
            reserved: HashMap::new(),
        }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        // Decisions before the first complete picture would over-commit nodes.
        tokio::select! {
            () = self.ready() => {}
            () = shutdown.cancelled() => return,
        }
        let mut decisions = 0;
        while !shutdown.is_cancelled() {
            while let Some(Some(input)) = self.inputs.next().now_or_never() {
                self.take(input);
            }
            while let Some(written) = self.writes.try_join_next() {
                self.finish(written);
            }
            if self.writes.len() < WRITES_MAX
                && let Some(waiting) = self.queue.pop(&self.profiles)
            {
                self.decide(waiting);
                decisions += 1;
                if decisions % DECISIONS_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            let wake = self.queue.next_wake().unwrap_or_else(|| Instant::now() + IDLE);
            let full = self.writes.len() >= WRITES_MAX;
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(input) = self.inputs.next() => self.take(input),
                Some(written) = self.writes.join_next() => self.finish(written),
                () = sleep_until(wake), if !full => {}
            }
        }
    }

    /// Ends when the first complete lists are there.
    fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let (pods, nodes) = (self.pods.clone(), self.nodes.clone());
        let namespaces = self.namespaces.clone();
        let (claims, volumes) = (self.claims.clone(), self.volumes.clone());
        let classes = self.classes.clone();
        async move {
            pods.ready().await;
            nodes.ready().await;
            namespaces.ready().await;
            claims.ready().await;
            volumes.ready().await;
            classes.ready().await;
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(Change::Applied(pod)) => self.set_pod(pod),
            Input::Pod(Change::Deleted(pod)) => {
                self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            Input::Pod(Change::Synced) => self.sync_pods(),
            Input::Node(Change::Applied(node)) => self.set_node(node),
            Input::Node(Change::Deleted(node)) => {
                self.cache.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
            Input::Node(Change::Synced) => self.sync_nodes(),
            Input::Namespace => self.sync_namespaces(),
            Input::Storage => self.sync_storage(),
        }
    }

    fn sync_pods(&mut self) {
        let mut all = self.pods.store().state();
        all.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
        let known: std::collections::HashSet<&str> =
            all.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let gone: Vec<String> = self
            .cache
            .uids()
            .filter(|uid| !self.binding.contains_key(*uid))
            .chain(self.queue.uids())
            .filter(|uid| !known.contains(uid))
            .map(str::to_owned)
            .collect();
        for uid in gone {
            self.remove_pod(&uid);
        }
        for pod in all {
            self.set_pod(pod);
        }
    }

    fn sync_nodes(&mut self) {
        let all = self.nodes.store().state();
        let known: std::collections::HashSet<&str> =
            all.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
        let nodes = self.cache.cluster.nodes().iter();
        let gone: Vec<String> = nodes
            .filter(|node| !known.contains(node.name.as_str()))
            .map(|node| node.name.clone())
            .collect();
        for name in gone {
            self.cache.remove_node(&name);
        }
        for node in all {
            self.set_node(node);
        }
    }

    fn sync_namespaces(&mut self) {
        let all = self.namespaces.store().state();
        let labels = all.iter().filter_map(|namespace| {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            Some((namespace.metadata.name.clone()?, labels))
        });
        let labels = labels.collect();
        if *self.cache.cluster.namespaces != labels {
            self.cache.cluster.namespaces = Arc::new(labels);
            self.queue.wake(&self.profiles, &Event::NamespaceChanged);
        }
    }

    fn sync_storage(&mut self) {
        let claims = self.claims.store().state().into_iter().filter_map(|claim| {
            let meta = &claim.metadata;
            Some(((meta.namespace.clone()?, meta.name.clone()?), claim))
        });
        let volumes = self.volumes.store().state().into_iter();
        let volumes = volumes.filter_map(|v| Some((v.metadata.name.clone()?, v)));
        let mut volumes: HashMap<_, _> = volumes.collect();
        for (name, reserved) in &self.reserved {
            let claimed = |volume: &PersistentVolume| {
                volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some())
            };
            if let Some(known) = volumes.get_mut(name).filter(|known| !claimed(known)) {
                *known = Arc::clone(reserved);
            }
        }
        let classes = self.classes.store().state().into_iter();
        let storage = Volumes {
            claims: claims.collect(),
            volumes,
            classes: classes.filter_map(|c| Some((c.metadata.name.clone()?, c))).collect(),
        };
        self.cache.cluster.volumes = Arc::new(storage);
        self.queue.wake(&self.profiles, &Event::StorageChanged);
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let event = match self.cache.set_node(Arc::clone(&node)) {
            None => Event::NodeAdded(node),
            Some(old) if node_changed(&old, &node) => Event::NodeUpdated { old, new: node },
            // A heartbeat helps nobody.
            Some(_) => return,
        };
        self.queue.wake(&self.profiles, &event);
    }

    fn set_pod(&mut self, pod: Arc<Pod>) {
        let pod = Arc::new(PodInfo::new(pod));
        if self.is_stale(&pod) {
            return;
        }
        if pod.is_finished() {
            self.remove_pod(&pod.uid);
        } else if !pod.node_name.is_empty() {
            self.set_placed_pod(pod);
        } else if pod.is_terminating() {
            self.queue.remove(&pod.uid);
            self.nominator.remove(&pod.uid);
        } else if self.profiles.of(&pod).is_some() && !self.cache.is_assumed(&pod.uid) {
            self.nominator.set(&pod);
            self.queue.set(&self.profiles, Arc::clone(&pod));
            self.tell_gated(&pod.uid);
        }
    }

    /// An older state of a pod than the one known: it was told late, after a newer one was read.
    fn is_stale(&self, pod: &PodInfo) -> bool {
        let queued = self.queue.get(&pod.uid).map(|waiting| &waiting.pod);
        let known = self.cache.seen(&pod.uid).or(queued);
        known.is_some_and(|known| known.version() > pod.version())
    }

    fn set_placed_pod(&mut self, pod: Arc<PodInfo>) {
        self.queue.remove(&pod.uid);
        self.nominator.remove(&pod.uid);
        let event = match self.cache.set_pod(pod) {
            crate::cache::Change::Added(pod) => Event::PodAssigned(pod),
            crate::cache::Change::Updated { old, new } => {
                if old.labels == new.labels && old.requests == new.requests {
                    return;
                }
                Event::AssignedPodUpdated { old, new }
            }
        };
        self.queue.wake(&self.profiles, &event);
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.nominator.remove(uid);
        if let Some(pod) = self.cache.remove(uid) {
            self.queue.wake(&self.profiles, &Event::AssignedPodRemoved(pod));
        }
    }

    fn tell_gated(&mut self, uid: &str) {
        let Some(waiting) = self.queue.get(uid).filter(|waiting| waiting.gated) else { return };
        let unscheduled = Unscheduled {
            reason: "SchedulingGated",
            message: "Scheduling is blocked due to non-empty scheduling gates".into(),
        };
        let pod = Arc::clone(&waiting.pod);
        self.tell(pod, unscheduled, None);
    }

    /// Decides about one pod.
    fn decide(&mut self, waiting: Waiting) {
        let profiles = Arc::clone(&self.profiles);
        let Some(profile) = profiles.of(&waiting.pod) else { return };
        let (cluster, nominated) = (&self.cache.cluster, self.nominator.nominated());
        let decided = schedule(profile, &waiting.pod, cluster, nominated, &mut self.rotation);
        match decided {
            Ok(placement) => self.bind(waiting, placement),
            Err(Failure::NoNodes) => {
                self.nominator.remove(&waiting.pod.uid);
                self.reject(waiting, Failure::NoNodes, None);
            }
            Err(Failure::Unfit(unfit)) => self.preempt(waiting, unfit),
        }
    }

    fn bind(&mut self, waiting: Waiting, placement: Placement) {
        let Placement { node, evaluated, feasible } = placement;
        let pod = Arc::clone(&waiting.pod);
        let arrived = SystemTime::now()
            .checked_sub(waiting.since.elapsed())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let detail =
            format!("{node}: {feasible} of {evaluated} nodes fit, attempt {}", waiting.attempts);
        trace::step("schedule", &pod.uid, arrived, &detail);
        let promised = self.reserve(&pod, &node);
        self.cache.assume(Arc::new(pod.on(&node)));
        self.nominator.remove(&pod.uid);
        self.binding.insert(pod.uid.clone(), waiting);
        let (client, claims) = (self.client.clone(), self.claims.clone());
        let started = SystemTime::now();
        self.writes.spawn(async move {
            let kept = match promised.as_slice() {
                [] => Ok(()),
                promised => late_binding::keep(client.clone(), &claims, promised, &node).await,
            };
            let result = match kept {
                Ok(()) => {
                    report::bind(client, Arc::clone(&pod), &node).await.map_err(Refusal::Binding)
                }
                Err(error) => Err(Refusal::Volumes(error)),
            };
            Written::Bound { pod, node, started, result }
        });
    }

    /// Sets aside what the pod's claims are to be bound to (Reserve).
    fn reserve(&mut self, pod: &PodInfo, node: &str) -> Vec<Promise> {
        let claims = late_claims(pod, &self.cache.cluster);
        if claims.is_empty() {
            return Vec::new();
        }
        let Some(place) = self.cache.cluster.node(node).cloned() else { return Vec::new() };
        let promised = promises(&claims, &self.cache.cluster.volumes, &place).unwrap_or_default();
        for Promise { claim, volume } in &promised {
            let Some(volume) = volume else { continue };
            let name = volume.metadata.name.clone().unwrap_or_default();
            let kept = Arc::new(reserved(volume, claim));
            let storage = Arc::make_mut(&mut self.cache.cluster.volumes);
            storage.volumes.insert(name.clone(), Arc::clone(&kept));
            self.reserved.insert(name, kept);
        }
        promised
    }

    /// What was set aside for the pod is bound, or free again.
    fn unreserve(&mut self, pod: &PodInfo) {
        let before = self.reserved.len();
        if before == 0 {
            return;
        }
        let names: Vec<String> = crate::plugins::claim_names(pod).map(|(name, _)| name).collect();
        self.reserved.retain(|_, volume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            claim.is_none_or(|claim| {
                claim.namespace.as_deref() != Some(&pod.namespace)
                    || claim.name.as_ref().is_none_or(|name| !names.contains(name))
            })
        });
        if self.reserved.len() < before {
            self.sync_storage();
        }
    }

    fn finish(&mut self, written: Result<Written, tokio::task::JoinError>) {
        let Ok(Written::Bound { pod, node, started, result }) = written else { return };
        self.unreserve(&pod);
        let Some(mut waiting) = self.binding.remove(&pod.uid) else { return };
        let Err(refusal) = result else {
            trace::step("bind", &pod.uid, started, &node);
            let message = format!("Successfully assigned {} to {node}", pod.key());
            self.recorder.normal(object_reference(pod.pod.as_ref()), "Scheduled", message);
            return;
        };
        self.cache.forget(&pod.uid);
        let latest = self.pods.get(&pod.namespace, &pod.name);
        let latest = latest.filter(|latest| latest.metadata.uid.as_deref() == Some(&pod.uid));
        let Some(latest) = latest.map(|pod| Arc::new(PodInfo::new(pod))) else { return };
        if !latest.node_name.is_empty() || latest.is_terminating() {
            return;
        }
        waiting.pod = Arc::clone(&latest);
        self.queue.give_back_errored(&self.profiles, waiting);
        if matches!(&refusal, Refusal::Binding(error) if report::is_settled(error)) {
            return;
        }
        let message = refusal.to_string();
        self.recorder.warning(object_reference(latest.pod.as_ref()), "FailedScheduling", &*message);
        self.tell(latest, Unscheduled { reason: "SchedulerError", message }, None);
    }

    fn preempt(&mut self, waiting: Waiting, mut unfit: Unfit) {
        let profiles = Arc::clone(&self.profiles);
        let Some(profile) = profiles.of(&waiting.pod) else { return };
        let budgets = self.budgets.store().state();
        let outcome = preempt(profile, &waiting.pod, &self.cache.cluster, &budgets, &unfit);
        let nominated = match outcome {
            Preemption::Helpless(message) => {
                unfit.post_filter = message;
                None
            }
            Preemption::Nominate { node, victims } => {
                self.nominator.nominate(Arc::clone(&waiting.pod), &node);
                self.evict(&waiting.pod, &node, victims);
                Some(node)
            }
        };
        self.reject(waiting, Failure::Unfit(unfit), nominated);
    }

    fn evict(&mut self, pod: &PodInfo, node: &str, victims: Vec<Arc<PodInfo>>) {
        for victim in victims.into_iter().filter(|victim| !victim.is_terminating()) {
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            self.recorder.normal(object_reference(victim.pod.as_ref()), "Preempted", message);
            let (client, scheduler) = (self.client.clone(), pod.scheduler_name().to_owned());
            self.writes.spawn(async move {
                if let Err(error) = report::evict(client, &victim, &scheduler).await {
                    tracing::warn!(pod = victim.key(), %error, "a preempted pod could not be removed");
                }
                Written::Told
            });
        }
    }

    /// Gives the pod back to the queue and says why it has no node.
    fn reject(&mut self, waiting: Waiting, failure: Failure, nominated: Option<String>) {
        let message = failure.to_string();
        let pod = Arc::clone(&waiting.pod);
        let plugins = match failure {
            Failure::NoNodes => std::collections::BTreeSet::new(),
            Failure::Unfit(unfit) => unfit.plugins,
        };
        self.queue.give_back(waiting, plugins);
        self.recorder.warning(object_reference(pod.pod.as_ref()), "FailedScheduling", &*message);
        self.tell(pod, Unscheduled { reason: "Unschedulable", message }, nominated);
    }

    fn tell(&mut self, pod: Arc<PodInfo>, unscheduled: Unscheduled, nominated: Option<String>) {
        if nominated.is_none() && report::is_told(&pod, &unscheduled) {
            return;
        }
        let client = self.client.clone();
        self.writes.spawn(async move {
            let key = pod.key();
            if let Err(error) = report::tell_unscheduled(client, pod, unscheduled, nominated).await
                && !report::is_settled(&error)
            {
                tracing::warn!(pod = key, %error, "could not say why a pod is not scheduled");
            }
            Written::Told
        });
    }
}

/// Something changed that a decision looks at.
fn node_changed(old: &Node, new: &Node) -> bool {
    let allocatable =
        |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    old.metadata.labels != new.metadata.labels
        || old.spec != new.spec
        || allocatable(old) != allocatable(new)
}
