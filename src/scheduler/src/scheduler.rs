//! The loop: takes in what the API server tells, decides about one pod after the other, and has the
//! decisions written while it goes on. Nothing here waits for a request.

mod preempting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apimachinery::trace;
use client::{Change, Informer, Recorder, object_reference};
use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Client;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::preempting::Preempting;
use crate::binding::{Binding, Refusal, waits_for_devices};
use crate::cache::Cache;
use crate::extended_resources::{self, Extended, IN_MEMORY};
use crate::extender::{self, EXTENDER, Extender};
use crate::framework::{Event, Point, Profile, Profiles};
use crate::late_binding::{Promise, promises, reserved};
use crate::nominator::Nominator;
use crate::pictures::{Owner, Pictures};
use crate::plugins::{Reservation, late_claims, plan};
use crate::pod::PodInfo;
use crate::queue::{Queue, Waiting};
use crate::report::{self, Unscheduled};
use crate::schedule::{Failure, Placement, Rotation, best, find, schedule};
use crate::volumes::{StorageChange, Told};

/// How many decisions may be on their way to the API server at once.
const WRITES_MAX: usize = 256;
/// After so many decisions in a row other tasks get a turn.
const DECISIONS_PER_TURN: u32 = 16;
/// The plugin that lets a pod wait until others have made way.
const PREEMPTION: &str = "DefaultPreemption";
/// Longer than anything else makes the loop look again.
const IDLE: Duration = Duration::from_hours(1);

/// What the API server tells.
pub(crate) enum Input {
    Pod(Change<Pod>),
    Node(Change<Node>),
    /// Something about some namespace.
    Namespace,
    /// Something about some claim, volume, storage class, driver or a node's limit of volumes.
    Storage(Told),
    /// Something about a claim of devices.
    DeviceClaim(Change<ResourceClaim>),
    /// Something about devices that are offered.
    Devices,
    /// Something about what pods belong to.
    Owner(Owner),
}

/// A write that has come to an end.
enum Written {
    Bound {
        pod: Arc<PodInfo>,
        node: String,
        started: SystemTime,
        result: Result<(), Refusal>,
    },
    /// Somebody was asked to make way for a pod, or could not be.
    Evicted {
        by: Arc<PodInfo>,
        failed: bool,
    },
    Told,
}

pub(crate) struct Scheduler {
    client: Client,
    /// By the scheduler's name, which is the component of its events.
    recorders: HashMap<String, Recorder>,
    profiles: Arc<Profiles>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    pictures: Pictures,
    budgets: Informer<PodDisruptionBudget>,
    inputs: SelectAll<BoxStream<'static, Input>>,
    writes: JoinSet<Written>,
    /// Bindings that wait for volumes or devices, as long as these take.
    waits: JoinSet<Written>,
    /// Pods whose binding is being written.
    binding: HashMap<String, Waiting>,
    queue: Queue,
    cache: Cache,
    nominator: Nominator,
    preempting: Preempting,
    rotation: Rotation,
    /// Volumes that are set aside for claims of pods being bound, by name.
    reserved: HashMap<String, Arc<PersistentVolume>>,
    /// Claims of devices as pods being bound will leave them.
    reserved_claims: HashMap<(String, String), Arc<ResourceClaim>>,
    extenders: Arc<Vec<Extender>>,
}

impl Scheduler {
    pub fn new(config: crate::Config) -> Result<Self, extender::Error> {
        let crate::Config { client, informers, configuration } = config;
        let extenders: Result<Vec<Extender>, _> =
            configuration.extenders.iter().map(Extender::new).collect();
        let profiles = Profiles(configuration.profiles);
        let pods = informers.get::<Pod>();
        let nodes = informers.get::<Node>();
        let pictures = Pictures::new(&informers);
        let mut inputs = SelectAll::new();
        inputs.push(nodes.subscribe().map(Input::Node).boxed());
        pictures.subscribe(&mut inputs);
        inputs.push(pods.subscribe().map(Input::Pod).boxed());
        let recorder = |profile: &Profile| {
            let name = profile.scheduler_name.clone();
            (name.clone(), Recorder::of_series(client.clone(), &name))
        };
        Ok(Self {
            recorders: profiles.0.iter().map(recorder).collect(),
            client,
            profiles: Arc::new(profiles),
            pods,
            nodes,
            pictures,
            budgets: informers.get::<PodDisruptionBudget>(),
            inputs,
            writes: JoinSet::new(),
            waits: JoinSet::new(),
            binding: HashMap::new(),
            queue: Queue::new(configuration.backoff),
            cache: Cache::default(),
            nominator: Nominator::default(),
            preempting: Preempting::default(),
            rotation: Rotation::default(),
            reserved: HashMap::new(),
            reserved_claims: HashMap::new(),
            extenders: Arc::new(extenders?),
        })
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
            while let Some(written) =
                self.writes.try_join_next().or_else(|| self.waits.try_join_next())
            {
                self.finish(written);
            }
            if self.writes.len() < WRITES_MAX
                && let Some(waiting) = self.queue.pop(&self.profiles)
            {
                self.decide(waiting).await;
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
                Some(written) = self.waits.join_next() => self.finish(written),
                () = sleep_until(wake), if !full => {}
            }
        }
    }

    /// Ends when the first complete lists are there.
    fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let (pods, nodes) = (self.pods.clone(), self.nodes.clone());
        let others = self.pictures.ready();
        async move {
            pods.ready().await;
            nodes.ready().await;
            others.await;
        }
    }

    fn recorder(&self, pod: &PodInfo) -> Option<&Recorder> {
        self.recorders.get(pod.scheduler_name())
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
                self.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
            Input::Node(Change::Synced) => self.sync_nodes(),
            Input::Namespace => self.sync_namespaces(),
            Input::Storage(told) => self.set_storage(told),
            Input::DeviceClaim(Change::Synced) | Input::Devices => self.sync_devices(),
            Input::DeviceClaim(change) => self.set_device_claim(change),
            Input::Owner(change) => self.set_owner(change),
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
            self.remove_node(&name);
        }
        for node in all {
            self.set_node(node);
        }
    }

    fn sync_namespaces(&mut self) {
        let labels = self.pictures.namespaces();
        if *self.cache.cluster.namespaces != labels {
            self.cache.cluster.namespaces = Arc::new(labels);
            self.queue.wake(&self.profiles, &Event::NamespaceChanged);
        }
    }

    fn set_storage(&mut self, told: Told) {
        let event = if told.is_resync() {
            self.cache.cluster.volumes = Arc::new(self.pictures.storage(&self.reserved));
            Some(StorageChange::Any)
        } else {
            Arc::make_mut(&mut self.cache.cluster.volumes).follow(told, &self.reserved)
        };
        if let Some(event) = event {
            self.queue.wake(&self.profiles, &Event::StorageChanged(event));
        }
    }

    fn set_device_claim(&mut self, change: Change<ResourceClaim>) {
        let devices = Arc::make_mut(&mut self.cache.cluster.devices);
        if let Some(event) = devices.follow(change, &self.reserved_claims) {
            self.queue.wake(&self.profiles, &event);
        }
    }

    fn sync_devices(&mut self) {
        self.cache.cluster.devices = Arc::new(self.pictures.devices(&self.reserved_claims));
        self.queue.wake(&self.profiles, &Event::DevicesChanged);
    }

    fn set_owner(&mut self, change: Owner) {
        let owners = &mut self.cache.cluster.owners;
        match change {
            Owner::Service(key, labels) => Arc::make_mut(owners).set_service(key, labels),
            Owner::Set(kind, key, selector) => Arc::make_mut(owners).set(kind, key, selector),
            Owner::All => *owners = Arc::new(self.pictures.owners()),
        }
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

    fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.cache.remove_node(name) {
            self.queue.wake(&self.profiles, &Event::NodeRemoved(node));
        }
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
    async fn decide(&mut self, mut waiting: Waiting) {
        if self.preempting.holds(&waiting.pod.uid) {
            // That was no attempt.
            waiting.attempts -= 1;
            self.queue.give_back(waiting, BTreeSet::from([PREEMPTION]));
            return;
        }
        let profiles = Arc::clone(&self.profiles);
        let Some(profile) = profiles.of(&waiting.pod) else { return };
        let extenders = Arc::clone(&self.extenders);
        let interested: Vec<&Extender> =
            extenders.iter().filter(|extender| extender.is_interested(&waiting.pod)).collect();
        let decided = if interested.is_empty() {
            let (cluster, nominated) = (&self.cache.cluster, self.nominator.nominated());
            Ok(schedule(profile, &waiting.pod, cluster, nominated, &mut self.rotation))
        } else {
            self.decide_with(profile, &waiting.pod, &interested).await
        };
        match decided {
            Ok(Ok(placement)) => {
                let binder = interested.iter().find(|extender| extender.binds());
                self.bind(waiting, placement, binder.copied().cloned());
            }
            Ok(Err(Failure::NoNodes)) => {
                self.nominator.remove(&waiting.pod.uid);
                self.reject(waiting, Failure::NoNodes, None);
            }
            Ok(Err(Failure::Unfit(unfit))) => self.preempt(waiting, unfit, &interested).await,
            Err(error) => self.give_up(waiting, &error.to_string()),
        }
    }

    /// Decides with the help of extenders. An error is one of an extender that cannot be ignored.
    async fn decide_with(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        extenders: &[&Extender],
    ) -> Result<Result<Placement, Failure>, extender::Error> {
        let cluster = self.cache.cluster.clone();
        let nominated = self.nominator.nominated();
        let mut found = match find(profile, pod, &cluster, nominated, &mut self.rotation) {
            Ok(found) => found,
            Err(failure) => return Ok(Err(failure)),
        };
        for extender in extenders {
            if found.feasible.is_empty() {
                break;
            }
            match extender.filter(pod, &found.feasible).await {
                Ok(filtered) => {
                    found.feasible.retain(|node| filtered.left.contains(&node.name));
                    if !filtered.failed.is_empty() {
                        found.unfit.plugins.insert(EXTENDER);
                    }
                    found.unfit.rejections.extend(filtered.failed);
                }
                Err(error) if extender.is_ignorable() => {
                    tracing::warn!(%error, "an extender that can be ignored has failed");
                }
                Err(error) => return Err(error),
            }
        }
        let mut scores = BTreeMap::new();
        if found.feasible.len() > 1 {
            for extender in extenders {
                // Without its scores the others decide, as upstream has it.
                match extender.prioritize(pod, &found.feasible).await {
                    Ok(own) => {
                        for (node, score) in own {
                            *scores.entry(node).or_insert(0) += score;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "an extender did not rate nodes"),
                }
            }
        }
        let chosen = best(profile, pod, &cluster, &found.feasible, &scores, &mut self.rotation);
        let Some(node) = chosen else { return Ok(Err(Failure::Unfit(found.unfit))) };
        let (evaluated, feasible) = (found.evaluated, found.feasible.len());
        Ok(Ok(Placement { node: node.name.clone(), evaluated, feasible }))
    }

    fn bind(&mut self, waiting: Waiting, placement: Placement, binder: Option<Extender>) {
        let Placement { node, evaluated, feasible } = placement;
        let pod = Arc::clone(&waiting.pod);
        let profiles = Arc::clone(&self.profiles);
        let Some(profile) = profiles.of(&pod) else { return };
        let arrived = SystemTime::now()
            .checked_sub(waiting.since.elapsed())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let detail =
            format!("{node}: {feasible} of {evaluated} nodes fit, attempt {}", waiting.attempts);
        trace::step("schedule", &pod.uid, arrived, &detail);
        let promised = self.reserve(&pod, &node);
        let devices = self.reserve_devices(&pod, &node);
        self.cache.assume(Arc::new(pod.on(&node)));
        self.nominator.remove(&pod.uid);
        self.binding.insert(pod.uid.clone(), waiting);
        let started = SystemTime::now();
        let binding = Binding {
            client: self.client.clone(),
            claims: self.pictures.claims.clone(),
            device_claims: self.pictures.device_claims.clone(),
            volume_timeout: profile.volume_timeout,
            device_timeout: profile.device_timeout,
            binder,
            pod,
            node,
        };
        let slow = !promised.is_empty() || waits_for_devices(&devices);
        // What takes long keeps no other decision from being written.
        let tasks = if slow { &mut self.waits } else { &mut self.writes };
        tasks.spawn(async move {
            let result = binding.carry_out(&promised, devices).await;
            let Binding { pod, node, .. } = binding;
            Written::Bound { pod, node, started, result }
        });
    }

    /// Sets aside the devices that the pod's claims get; says how the claims will be.
    fn reserve_devices(&mut self, pod: &PodInfo, node: &str) -> Reservation {
        let asked = self
            .profiles
            .of(pod)
            .is_some_and(|profile| profile.asks(Point::Reserve, "DynamicResources"));
        let Some(node) = self.cache.cluster.node(node).cloned().filter(|_| asked) else {
            return Reservation::default();
        };
        let planned = plan(pod, &self.cache.cluster, &node);
        let own = planned.extended.iter().map(|Extended { claim, .. }| Arc::new(claim.clone()));
        for claim in planned.claims.iter().cloned().chain(own) {
            let key = claim_key(&claim);
            let devices = Arc::make_mut(&mut self.cache.cluster.devices);
            devices.claims.insert(key.clone(), Arc::clone(&claim));
            self.reserved_claims.insert(key, claim);
        }
        planned
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

    /// What was set aside for the pod is its own now, or free again if it is not `bound` after all. What is its own
    /// stays as it was set aside until the API server tells of it: nobody else gets it meanwhile.
    fn unreserve(&mut self, pod: &PodInfo, bound: bool) {
        if self.reserved.is_empty() && self.reserved_claims.is_empty() {
            return;
        }
        let is_own = |claim: &ResourceClaim| {
            let users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            users.into_iter().any(|user| user.uid == pod.uid)
        };
        let claims: Vec<_> = self.reserved_claims.extract_if(|_, claim| is_own(claim)).collect();
        for (key, _) in &claims {
            // One that was only thought of is another by now.
            if bound && !key.1.starts_with(IN_MEMORY) {
                continue;
            }
            let devices = Arc::make_mut(&mut self.cache.cluster.devices);
            match self.pictures.device_claims.get(&key.0, &key.1) {
                Some(known) => drop(devices.claims.insert(key.clone(), known)),
                None => drop(devices.claims.remove(key)),
            }
        }
        let names: Vec<String> = crate::plugins::claim_names(pod).map(|(name, _)| name).collect();
        let is_own = |volume: &PersistentVolume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            claim.is_some_and(|claim| {
                claim.namespace.as_deref() == Some(&pod.namespace)
                    && claim.name.as_ref().is_some_and(|name| names.contains(name))
            })
        };
        let volumes: Vec<_> = self.reserved.extract_if(|_, volume| is_own(volume)).collect();
        if bound {
            return;
        }
        for (name, _) in &volumes {
            let storage = Arc::make_mut(&mut self.cache.cluster.volumes);
            match self.pictures.volumes.get("", name) {
                Some(known) => drop(storage.volumes.insert(name.clone(), known)),
                None => drop(storage.volumes.remove(name)),
            }
        }
        if !claims.is_empty() {
            self.queue.wake(&self.profiles, &Event::DevicesChanged);
        }
        if !volumes.is_empty() {
            self.queue.wake(&self.profiles, &Event::StorageChanged(StorageChange::Any));
        }
    }

    fn finish(&mut self, written: Result<Written, tokio::task::JoinError>) {
        let (pod, node, started, result) = match written {
            Ok(Written::Bound { pod, node, started, result }) => (pod, node, started, result),
            Ok(Written::Evicted { by, failed }) => return self.finish_eviction(&by, failed),
            Ok(Written::Told) | Err(_) => return,
        };
        self.unreserve(&pod, result.is_ok());
        let Some(mut waiting) = self.binding.remove(&pod.uid) else { return };
        let Err(refusal) = result else {
            trace::step("bind", &pod.uid, started, &node);
            let message = format!("Successfully assigned {} to {node}", pod.key());
            if let Some(recorder) = self.recorder(&pod) {
                let object = object_reference(pod.pod.as_ref());
                recorder.action(object, None, "Normal", ("Scheduled", "Binding"), message);
            }
            return;
        };
        if let Some(gone) = self.cache.forget(&pod.uid) {
            // Others may have been refused because of it.
            self.queue.wake(&self.profiles, &Event::AssignedPodRemoved(gone));
        }
        let latest = self.pods.get(&pod.namespace, &pod.name);
        let latest = latest.filter(|latest| latest.metadata.uid.as_deref() == Some(&pod.uid));
        let Some(latest) = latest.map(|pod| Arc::new(PodInfo::new(pod))) else { return };
        if !latest.node_name.is_empty() || latest.is_terminating() {
            return;
        }
        waiting.pod = Arc::clone(&latest);
        if matches!(&refusal, Refusal::Binding(error) if report::is_settled(error)) {
            self.queue.give_back_errored(&self.profiles, waiting);
            return;
        }
        self.give_up(waiting, &refusal.to_string());
    }

    fn record_failure(&self, pod: &PodInfo, message: &str) {
        let Some(recorder) = self.recorder(pod) else { return };
        let (object, reason) = (object_reference(&*pod.pod), ("FailedScheduling", "Scheduling"));
        recorder.action(object, None, "Warning", reason, report::note(message));
    }

    /// Something other than the lack of a node went wrong: the pod is tried again after its back-off.
    fn give_up(&mut self, waiting: Waiting, message: &str) {
        let pod = Arc::clone(&waiting.pod);
        self.queue.give_back_errored(&self.profiles, waiting);
        self.record_failure(&pod, message);
        let message = message.to_owned();
        self.tell(pod, Unscheduled { reason: "SchedulerError", message }, None);
    }

    /// Has a claim give its devices back.
    fn deallocate(&mut self, claim: Arc<ResourceClaim>) {
        let client = self.client.clone();
        self.writes.spawn(async move {
            if let Err(error) = report::deallocate(client, &claim).await {
                let name = claim.metadata.name.as_deref();
                tracing::warn!(name, %error, "a claim does not give its devices back");
            }
            Written::Told
        });
    }

    /// Tells a pod that the place promised to it is another's now.
    fn clear_nomination(&mut self, pod: Arc<PodInfo>) {
        let client = self.client.clone();
        self.writes.spawn(async move {
            if let Err(error) = report::clear_nomination(client, &pod).await
                && !report::is_settled(&error)
            {
                tracing::warn!(pod = pod.key(), %error, "could not take back a nomination");
            }
            Written::Told
        });
    }

    /// Gives the pod back to the queue and says why it has no node.
    fn reject(&mut self, waiting: Waiting, failure: Failure, nominated: Option<String>) {
        let message = failure.to_string();
        let pod = Arc::clone(&waiting.pod);
        let plugins = match failure {
            Failure::NoNodes => BTreeSet::new(),
            Failure::Unfit(unfit) => unfit.plugins,
        };
        if plugins.contains("DynamicResources") {
            self.remove_stale_claim(&pod);
        }
        self.queue.give_back(waiting, plugins);
        self.record_failure(&pod, &message);
        self.tell(pod, Unscheduled { reason: "Unschedulable", message }, nominated);
    }

    /// Removes the claim for extended resources that an attempt has left which came to no end.
    fn remove_stale_claim(&mut self, pod: &PodInfo) {
        let Some(claim) = extended_resources::stale(pod, &self.cache.cluster.devices) else {
            return;
        };
        let (client, namespace) = (self.client.clone(), pod.namespace.clone());
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.writes.spawn(async move {
            if let Err(error) = report::release(client, &namespace, &name).await {
                tracing::warn!(name, %error, "a claim for extended resources is left");
            }
            Written::Told
        });
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

/// Namespace and name.
fn claim_key(claim: &ResourceClaim) -> (String, String) {
    let meta = &claim.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Something changed that a decision looks at.
fn node_changed(old: &Node, new: &Node) -> bool {
    let status = |node: &Node| {
        let status = node.status.as_ref();
        status.map(|status| (status.allocatable.clone(), status.declared_features.clone()))
    };
    old.metadata.labels != new.metadata.labels || old.spec != new.spec || status(old) != status(new)
}
