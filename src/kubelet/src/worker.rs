//! One worker per pod: looks, decides, acts, looks again. Level-triggered: whatever wakes it, it
//! starts from what spec and runtime say now, so a restarted kubelet goes on where it was.
//!
//! Starting containers is in `start`, ending pods in `end`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::background::Background;
use crate::backoff::Backoffs;
use crate::context::{Admission, Context};
use crate::decide::{self, Actions, Local};
use crate::image::Pulls;
use crate::labels;
use crate::observe::{self, Observed, PodView, State};
use crate::pod;
use crate::preemption;
use crate::probe::Probes;
use crate::report::Reporter;
use crate::resize::{Allocation, Due, Progress};
use crate::restart_all;
use crate::shutdown;
use crate::start::Started;
use crate::status::{self, Waiting};
use crate::volumes::{self, Mounted};

/// How long a worker waits, at most, before it looks again without a cause.
const RESYNC: SignedDuration = SignedDuration::from_secs(60);
/// After a start that failed for a reason that may pass.
pub(crate) const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// How often a pod looks whether those have gone that make room for it.
const MAKING_ROOM: SignedDuration = SignedDuration::from_millis(250);

/// What a worker is told of its pod.
#[derive(Clone, Debug)]
pub struct Update {
    /// The pod as the API has it, or had it.
    pub pod: Arc<Pod>,
    /// It is no longer in the API.
    pub removed: bool,
    /// Of a static pod, its mirror in the API.
    pub mirror: Option<Arc<Pod>>,
}

impl Update {
    /// The pod as the API has it.
    pub fn of(pod: Arc<Pod>) -> Self {
        Self { pod, removed: false, mirror: None }
    }

    /// The pod, gone from the API.
    pub fn removed(pod: Arc<Pod>) -> Self {
        Self { removed: true, ..Self::of(pod) }
    }
}

/// Why the node ends the pod, and within how many seconds if not as usual.
type Eviction = Arc<Mutex<Option<(Waiting, Option<i64>)>>>;

/// A running worker.
pub struct Handle {
    update: watch::Sender<Update>,
    status: watch::Receiver<Option<PodStatus>>,
    wake: Arc<Notify>,
    eviction: Eviction,
    volumes: Paths,
    _task: AbortOnDropHandle<()>,
}

/// Where a pod's volumes are, by name.
type Paths = Arc<Mutex<BTreeMap<String, PathBuf>>>;

impl Handle {
    /// Starts the worker; `done` hears the pod's uid when nothing of it is left.
    pub fn spawn(
        context: Arc<Context>,
        first: Update,
        done: mpsc::UnboundedSender<String>,
    ) -> Self {
        let (update, receiver) = watch::channel(first);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(context, receiver, wake.clone());
        let status = worker.current.subscribe();
        let (eviction, volumes) = (worker.eviction.clone(), worker.volumes.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let uid = pod::uid(&worker.pod).to_owned();
            Box::pin(worker.run()).await;
            let _ = done.send(uid);
        }));
        Self { update, status, wake, eviction, volumes, _task: task }
    }

    /// Tells the worker what the API now says.
    pub fn update(&self, update: Update) {
        self.update.send_replace(update);
    }

    /// The pod as the worker was last told of it.
    pub fn pod(&self) -> Arc<Pod> {
        self.update.borrow().pod.clone()
    }

    /// The pod with the status it now has, told to the API already or not.
    pub fn current(&self) -> Arc<Pod> {
        let of = self.pod();
        let Some(status) = self.status.borrow().clone() else { return of };
        let mut of = Pod::clone(&of);
        of.status = Some(status);
        Arc::new(of)
    }

    /// Ends the pod as failed, for the good of the node.
    pub fn evict(&self, why: Waiting, grace_seconds: Option<i64>) {
        let mut eviction = self.eviction.lock().unwrap_or_else(PoisonError::into_inner);
        *eviction = Some((why, grace_seconds));
        drop(eviction);
        self.wake.notify_one();
    }

    /// Where the pod's volumes are, by name.
    pub fn volumes(&self) -> BTreeMap<String, PathBuf> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the pod has been told to end, or has ended.
    pub fn is_ending(&self) -> bool {
        let update = self.update.borrow();
        let asked = self.eviction.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let ended = self.status.borrow().as_ref().and_then(|s| s.phase.clone());
        asked
            || update.removed
            || update.pod.metadata.deletion_timestamp.is_some()
            || matches!(ended.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// How the pod stands, for those who count.
    pub fn standing(&self) -> Standing {
        let update = self.update.borrow();
        let ended = self.status.borrow().as_ref().and_then(|s| s.phase.clone());
        let lifecycle = if matches!(ended.as_deref(), Some("Succeeded" | "Failed")) {
            "terminated"
        } else if update.removed || update.pod.metadata.deletion_timestamp.is_some() {
            "terminating"
        } else {
            "sync"
        };
        // One that only the runtime knows has no spec.
        let known = update.pod.spec.is_some();
        let (config, fixed) = match (known, update.removed) {
            (false, _) => ("runtime_only", "unknown"),
            (true, removed) => {
                let config = if removed { "orphan" } else { "desired" };
                (config, if pod::is_static(&update.pod) { "true" } else { "" })
            }
        };
        Standing { config, lifecycle, fixed, mirrored: update.mirror.is_some() }
    }

    /// Makes the worker look again.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

/// How a pod stands, in the words of the kubelet's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who wants it: `desired`, `orphan` or `runtime_only`.
    pub config: &'static str,
    /// `sync`, `terminating` or `terminated`.
    pub lifecycle: &'static str,
    /// `true` for a static pod, `unknown` if nobody knows any more, else empty.
    pub fixed: &'static str,
    /// The API has a mirror of it.
    pub mirrored: bool,
}

pub(crate) struct Stop {
    /// When the container has had its time.
    pub(crate) deadline: Timestamp,
    pub(crate) task: Background<()>,
}

/// The state of one pod's worker; none of it is needed to start again.
pub(crate) struct Worker {
    pub(crate) context: Arc<Context>,
    update: watch::Receiver<Update>,
    pub(crate) wake: Arc<Notify>,
    /// The pod with the resources it has been granted.
    pub(crate) pod: Arc<Pod>,
    /// The pod as the API has it.
    pub(crate) desired: Arc<Pod>,
    pub(crate) allocation: Option<Allocation>,
    pub(crate) resize: Progress,
    /// The limits of the pod as a whole are to be changed, and when.
    pub(crate) limits_due: Option<Due>,
    /// The pod whose status is reported: as the API has it, or its mirror there.
    in_api: Arc<Pod>,
    mirror: Option<String>,
    pub(crate) removed: bool,
    seen: SystemTime,
    admitted: bool,
    known: HashMap<String, Observed>,
    pub(crate) view: PodView,
    pub(crate) local: Local,
    pub(crate) waiting: HashMap<String, Waiting>,
    pub(crate) messages: HashMap<String, String>,
    pub(crate) backoff: Backoffs,
    /// By container name, the dead container that may be succeeded now.
    pub(crate) approved: HashMap<String, String>,
    pub(crate) retry_at: HashMap<String, Timestamp>,
    /// When it last looked, by the clock on the wall.
    looked: Timestamp,
    /// All containers are being ended, to be started anew together.
    pub(crate) restarting: bool,
    /// Containers that were removed for that, and have not been seen since.
    pub(crate) renewed: HashSet<String>,
    pub(crate) pulls: Pulls,
    probes: Probes,
    pub(crate) stops: HashMap<String, Stop>,
    pub(crate) hooks: HashMap<String, Background<bool>>,
    pub(crate) failure: Option<Waiting>,
    /// Asked for by the node.
    eviction: Eviction,
    /// How long the node leaves it, if not as long as usual.
    pub(crate) grace: Option<i64>,
    /// Why the node ended the pod, if it did.
    disrupted: Option<String>,
    pub(crate) ending_since: Option<Timestamp>,
    pub(crate) cleaned: bool,
    pub(crate) reported: PodStatus,
    current: watch::Sender<Option<PodStatus>>,
    pub(crate) reporter: Reporter,
    pub(crate) mounted: Option<Mounted>,
    /// The same for others.
    pub(crate) volumes: Paths,
    pub(crate) volume_failures: u32,
    pub(crate) sandbox_failures: u32,
    ready_told: bool,
}

impl Worker {
    fn new(context: Arc<Context>, mut update: watch::Receiver<Update>, wake: Arc<Notify>) -> Self {
        let Update { pod, removed, mirror } = update.borrow_and_update().clone();
        let in_api = mirror.clone().unwrap_or_else(|| pod.clone());
        let reported = in_api.status.clone().unwrap_or_default();
        let reporter = Reporter::new(context.clone(), &in_api, reported.clone());
        let resize = Progress::of(&reported);
        let backoff = Backoffs::up_to(context.limits.restart_pause);
        let local = Local { basis: context.basis(), ..Local::default() };
        let probes = Probes::told(&reported);
        Self {
            context,
            update,
            wake,
            desired: pod.clone(),
            pod,
            allocation: None,
            // An earlier kubelet may not have come to that.
            limits_due: resize.in_progress.then_some(Due::Last),
            resize,
            in_api,
            mirror: mirror.and_then(|m| m.metadata.uid.clone()),
            removed,
            seen: SystemTime::now(),
            admitted: false,
            known: HashMap::new(),
            view: PodView::default(),
            local,
            waiting: HashMap::new(),
            messages: HashMap::new(),
            backoff,
            approved: HashMap::new(),
            retry_at: HashMap::new(),
            looked: Timestamp::MIN,
            restarting: restart_all::told(&reported),
            renewed: HashSet::new(),
            pulls: Pulls::default(),
            probes,
            stops: HashMap::new(),
            hooks: HashMap::new(),
            failure: None,
            eviction: Eviction::default(),
            grace: None,
            disrupted: None,
            ending_since: None,
            cleaned: false,
            current: watch::channel(None).0,
            reported,
            reporter,
            mounted: None,
            volumes: Paths::default(),
            volume_failures: 0,
            sandbox_failures: 0,
            ready_told: false,
        }
    }

    async fn run(mut self) {
        apimachinery::trace::step("kubelet", pod::uid(&self.pod), self.seen, "worker started");
        loop {
            let next = self.sync().await;
            let Some(next) = next else { return };
            let at = self.context.clock.instant(next);
            let wake = self.wake.clone();
            tokio::select! {
                changed = self.update.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let update = self.update.borrow_and_update().clone();
                    self.take(update);
                }
                () = wake.notified() => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    fn take(&mut self, update: Update) {
        self.pod = update.pod.clone();
        self.desired = update.pod;
        self.removed |= update.removed;
        if let Some(mirror) = &update.mirror
            && mirror.metadata.uid != self.mirror
        {
            // Another one knows nothing of what was told to the last.
            let known = mirror.status.clone().unwrap_or_default();
            self.reporter = Reporter::new(self.context.clone(), mirror, known);
            self.mirror = mirror.metadata.uid.clone();
        }
        self.in_api = update.mirror.unwrap_or_else(|| self.desired.clone());
    }

    /// One look and one step. Returns when to look again; `None` when the pod is gone altogether.
    async fn sync(&mut self) -> Option<Timestamp> {
        let now = self.context.clock.now();
        if now < self.looked {
            tracing::info!(pod = pod::full_name(&self.pod), "the clock was set back");
            // What would be due at a time that may be hours away is due now.
            self.retry_at.clear();
        }
        self.looked = now;
        let uid = pod::uid(&self.pod).to_owned();
        if !self.cleaned {
            match observe::observe(&self.context.cri, &uid, &mut self.known).await {
                Ok(view) => {
                    self.renewed.retain(|name| view.latest(name).is_none());
                    self.view = view;
                }
                Err(error) => {
                    tracing::warn!(pod = pod::full_name(&self.pod), %error, "cannot ask the runtime");
                    return Some(now + SignedDuration::from_secs(1));
                }
            }
            self.reap();
            self.read_messages();
        }
        let mut next = now + RESYNC;
        self.allocate(now, &mut next);
        self.admit(now, &mut next).await;
        self.check_limits(now, &mut next).await;
        let ending = self.is_ending();
        if !ending && !self.admitted {
            return Some(next);
        }
        if !ending {
            self.actuate(now, &mut next).await;
        }
        self.probes.update(&self.context, &self.pod, &self.view, &self.wake, ending);
        self.local.probes = self.probes.results();
        if !ending {
            // After a step the view is stale; the worker is awake for the next look already.
            if !self.advance(now, &mut next).await {
                self.report(now, false);
            }
        }
        if self.is_ending() && self.end(now, &mut next).await {
            return None;
        }
        self.collect().await;
        Some(next)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.removed
            || self.failure.is_some()
            || self.pod.metadata.deletion_timestamp.is_some()
            || pod::is_terminal(&self.pod)
            || matches!(self.reported.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Takes note of background work that has ended.
    fn reap(&mut self) {
        self.stops.retain(|_, stop| stop.task.result().is_none());
        let mut ended: Vec<(String, bool)> = Vec::new();
        for (id, task) in &mut self.hooks {
            ended.extend(task.result().map(|result| (id.clone(), result.unwrap_or(false))));
        }
        for (id, good) in ended {
            self.hooks.remove(&id);
            if !good {
                self.post_start_failed(&id);
            }
        }
        self.local.stopping = self.stops.keys().cloned().collect();
        self.local.hooks = self.hooks.keys().cloned().collect();
    }

    fn read_messages(&mut self) {
        for observed in self.view.containers.iter().filter(|o| o.state == State::Exited) {
            if !self.messages.contains_key(&observed.id) {
                self.messages.insert(observed.id.clone(), crate::termination::message(observed));
            }
        }
        let view = &self.view;
        self.messages.retain(|id, _| view.by_id(id).is_some());
    }

    /// The first time a pod is seen, unless it runs already, the node may refuse it.
    async fn admit(&mut self, now: Timestamp, next: &mut Timestamp) {
        if std::mem::replace(&mut self.admitted, true) || self.is_ending() {
            return;
        }
        let running = !self.view.sandboxes.is_empty();
        if !running && self.was_lost() {
            self.failure = Some(Waiting {
                reason: shutdown::REASON.into(),
                message: shutdown::MESSAGE.into(),
            });
            return;
        }
        match self.context.take(&self.pod, running).await {
            Ok(Admission::Now) => {
                if let Err(refusal) = self.context.devices.allocate(&self.pod).await {
                    self.refuse(refusal);
                }
            }
            Ok(Admission::Later) => {
                self.admitted = false;
                *next = (*next).min(now + MAKING_ROOM);
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The node does not take the pod.
    fn refuse(&mut self, refusal: Waiting) {
        self.context.counters.refused(&refusal.reason);
        self.context.warning(&self.pod, None, &refusal.reason, refusal.message.clone());
        self.failure =
            Some(Waiting { message: format!("Pod was rejected: {}", refusal.message), ..refusal });
    }

    /// Whether the pod ran once, nothing is left of it, and its containers may not run twice.
    fn was_lost(&self) -> bool {
        let ran = |s: &k8s_openapi::api::core::v1::ContainerStatus| s.container_id.is_some();
        self.view.containers.is_empty()
            && pod::restart_policy(&self.pod) == pod::RestartPolicy::Never
            && self.reported.container_statuses.iter().flatten().any(ran)
    }

    /// Ends pods that have run too long or hold too much.
    async fn check_limits(&mut self, now: Timestamp, next: &mut Timestamp) {
        if self.is_ending() {
            return;
        }
        let evicted = self.eviction.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((why, grace)) = evicted {
            self.grace = grace;
            let preempted = why.reason == preemption::REASON;
            let told = if preempted { preemption::DISRUPTED } else { &why.message };
            self.disrupted = Some(told.to_owned());
            self.failure = Some(why);
            return;
        }
        let seconds = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        if let (Some(seconds), Some(start)) = (seconds, &self.reported.start_time) {
            let deadline = start.0 + SignedDuration::from_secs(seconds);
            if now >= deadline {
                let message = "Pod was active on the node longer than the specified deadline";
                self.context.normal(&self.pod, None, "DeadlineExceeded", message);
                self.failure =
                    Some(Waiting { reason: "DeadlineExceeded".into(), message: message.into() });
                return;
            }
            *next = (*next).min(deadline);
        }
        if volumes::usage::is_limited(&self.pod) {
            *next = (*next).min(now + RETRY);
            let (root, pod) = (self.context.root_dir.clone(), self.pod.clone());
            let logs = crate::sandbox::log_directory(&self.context.pod_log_dir, &pod);
            let layers = self.layers().await;
            let measured = tokio::task::spawn_blocking(move || {
                volumes::usage::over_limit(&root, &logs, &pod, &layers)
            })
            .await;
            if let Ok(Some((signal, message))) = measured {
                self.context.counters.evicted(signal);
                self.context.warning(&self.pod, None, "Evicted", message.clone());
                self.failure = Some(Waiting { reason: "Evicted".into(), message });
            }
        }
    }

    /// What each container's writable layer holds, bytes.
    async fn layers(&self) -> Vec<(String, u64)> {
        let label_selector = [(labels::POD_UID.to_owned(), pod::uid(&self.pod).to_owned())].into();
        let filter = cri::ContainerStatsFilter { label_selector, ..Default::default() };
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let listed = self.context.cri.list_container_stats(request).await;
        let of = |stats: cri::ContainerStats| {
            let name = stats.attributes?.labels.get(labels::CONTAINER_NAME)?.clone();
            Some((name, stats.writable_layer?.used_bytes?.value))
        };
        listed.map(|l| l.stats.into_iter().filter_map(of).collect()).unwrap_or_default()
    }

    /// Brings a pod that should run one step on. Returns whether a container was started.
    async fn advance(&mut self, now: Timestamp, next: &mut Timestamp) -> bool {
        if self.restart_all(now, next).await {
            return false;
        }
        let actions = decide::decide(&self.pod, &self.view, &self.local);
        if actions == Actions::default() && self.mounted.is_some() && !self.volumes_due(now) {
            return false;
        }
        if actions.kill_pod && (self.stop_everything(now, "") || actions.create_sandbox.is_none()) {
            return false;
        }
        for kill in &actions.kill {
            self.kill(kill);
        }
        self.report(now, false);
        if !self.prepare_volumes(now, next).await || !self.prepare_claims(now, next).await {
            return false;
        }
        let Some((sandbox_id, config)) = self.prepare_sandbox(&actions, now, next).await else {
            return false;
        };
        let mut started = false;
        for start in &actions.start {
            match self.start(&sandbox_id, &config, *start, now, next).await {
                Started::Running => started = true,
                Started::NotYet => {}
                Started::Bars => break,
            }
        }
        started
    }

    /// Reports what the pod is.
    pub(crate) fn report(&mut self, now: Timestamp, ending: bool) {
        if self.removed {
            return;
        }
        let host_ip = self.context.node_ip.to_string();
        let input = status::Input {
            view: &self.view,
            local: &self.local,
            old: &self.reported,
            waiting: &self.waiting,
            messages: &self.messages,
            resize: &self.resize,
            restarting: self.restarting,
            renewed: &self.renewed,
            disrupted: self.disrupted.as_deref(),
            failure: self.failure.as_ref(),
            ending,
            host_ip: &host_ip,
            runtime_name: &self.context.runtime_name,
            devices: Some(&self.context.devices),
            now,
        };
        let status = status::generate(&self.pod, &input);
        self.reported = status.clone();
        self.current.send_replace(Some(status.clone()));
        self.note_ready();
        self.reporter.report(status, self.in_api.clone());
    }

    fn note_ready(&mut self) {
        let ready = self
            .reported
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        if ready && !std::mem::replace(&mut self.ready_told, true) {
            apimachinery::trace::step("observe", pod::uid(&self.pod), self.seen, "ready");
        }
    }

    /// Removes what a container that is gone has left.
    pub(crate) fn forget_files(&self, observed: &Observed) {
        crate::logs::rotate::remove(std::path::Path::new(&observed.log_path));
        if let Some(path) = &observed.termination_log {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes dead containers that nobody will ask for: of each name the newest two are kept, the
    /// present one and that of `--previous`.
    async fn collect(&mut self) {
        if self.cleaned {
            return;
        }
        let superfluous = self.view.containers.iter().enumerate().filter(|(index, observed)| {
            let newer = self.view.containers[..*index].iter().filter(|c| c.name == observed.name);
            observed.state != State::Running && newer.count() >= 2
        });
        let superfluous: Vec<&Observed> = superfluous.map(|(_, observed)| observed).collect();
        for observed in superfluous {
            let request = cri::RemoveContainerRequest { container_id: observed.id.clone() };
            if let Err(error) = self.context.cri.remove_container(request).await {
                tracing::debug!(container = observed.id, %error, "cannot remove a dead container");
                continue;
            }
            self.forget_files(observed);
        }
        for old in self.view.sandboxes.iter().skip(1).filter(|s| !s.ready) {
            if self.view.containers.iter().any(|c| c.sandbox_id == old.id) {
                continue;
            }
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: old.id.clone() };
            if let Err(error) = self.context.cri.remove_pod_sandbox(request).await {
                tracing::debug!(sandbox = old.id, %error, "cannot remove a dead sandbox");
            }
        }
    }
}
