//! In-place resize: which resources a pod has been given, and what becomes of a change to them.
//!
//! Spec says what is wanted; the allocation, kept beside the pod's volumes, what the node has granted;
//! the runtime what is in force. The worker sees the pod as allocated, so that everything it derives from
//! resources (admission, downward API, limits) agrees.
//!
//! Source of behaviour: `pkg/kubelet/allocation/allocation_manager.go`, `kuberuntime_manager.go`
//! (`computePodResizeAction`), KEP-1287.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::observe::{Observed, State};
use crate::pod::{self, Kind};
use crate::resources::Basis;
use crate::status::Waiting;
use crate::worker::Worker;
use crate::{quantity, resources, sandbox, volumes};

/// The condition of a resize that is not granted.
pub const PENDING: &str = "PodResizePending";
/// The condition of one that is granted and not yet in force.
pub const IN_PROGRESS: &str = "PodResizeInProgress";
/// What the node tells that it can do: give a pod as a whole other resources while it runs.
pub const FEATURE: &str = "InPlacePodLevelResourcesVerticalScaling";
/// How soon a resize that does not fit is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// The resources granted to each container, by name; those of the pod as a whole under none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation(BTreeMap<String, ResourceRequirements>);

impl Allocation {
    /// What the spec of `of` asks for.
    pub fn wanted(of: &Pod) -> Self {
        let containers = pod::init_containers(of).iter().chain(pod::containers(of));
        let containers =
            containers.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()));
        // Without any it is told as well, so that some added later are a change.
        let whole = of.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default();
        Self(containers.chain([(String::new(), whole)]).collect())
    }

    /// The allocation an earlier kubelet has left for this pod, if any. What an older one has written, before pods
    /// had resources as a whole, says nothing of these: then the spec's are granted.
    pub fn read(root: &Path, of: &Pod) -> Option<Self> {
        let bytes = std::fs::read(file(root, pod::uid(of))).ok()?;
        let Self(mut granted) = serde_json::from_slice(&bytes).ok()?;
        let whole = of.spec.as_ref().and_then(|spec| spec.resources.clone());
        granted.entry(String::new()).or_insert_with(|| whole.unwrap_or_default());
        Some(Self(granted))
    }

    fn write(&self, root: &Path, uid: &str) -> std::io::Result<()> {
        let path = file(root, uid);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, path)
    }

    /// The pod with these resources instead of those of its spec.
    pub fn apply(&self, of: &Pod) -> Pod {
        let mut out = of.clone();
        let Some(spec) = &mut out.spec else { return out };
        let given = |granted: &ResourceRequirements| {
            (*granted != ResourceRequirements::default()).then(|| granted.clone())
        };
        if let Some(granted) = self.0.get("") {
            spec.resources = given(granted);
        }
        let lists = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in lists {
            if let Some(granted) = self.0.get(&container.name) {
                container.resources = given(granted);
            }
        }
        out
    }
}

fn file(root: &Path, uid: &str) -> PathBuf {
    volumes::directory(root, uid).join("allocation.json")
}

/// Where a pod's resize stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Not granted: reason (`Deferred`, `Infeasible`) and message.
    pub pending: Option<Waiting>,
    /// Granted, and not in force yet.
    pub in_progress: bool,
    /// What keeps it from being in force.
    pub error: Option<String>,
}

impl Progress {
    /// Where it stood when the status was told.
    pub fn of(status: &PodStatus) -> Self {
        let find = |name: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == name);
            found.filter(|c| c.status == "True")
        };
        Self {
            pending: find(PENDING).map(|c| Waiting {
                reason: c.reason.clone().unwrap_or_default(),
                message: c.message.clone().unwrap_or_default(),
            }),
            in_progress: find(IN_PROGRESS).is_some(),
            error: find(IN_PROGRESS).filter(|c| c.reason.is_some()).and_then(|c| c.message.clone()),
        }
    }

    /// The conditions that tell of it.
    pub fn conditions(&self) -> Vec<PodCondition> {
        let condition =
            |name: &str, reason: Option<String>, message: Option<String>| PodCondition {
                type_: name.into(),
                status: "True".into(),
                reason,
                message,
                ..PodCondition::default()
            };
        let pending = self.pending.clone();
        let pending = pending.map(|p| condition(PENDING, Some(p.reason), Some(p.message)));
        let in_progress = self.in_progress.then(|| {
            let reason = self.error.is_some().then(|| "Error".into());
            condition(IN_PROGRESS, reason, self.error.clone())
        });
        pending.into_iter().chain(in_progress).collect()
    }
}

/// When the limits of a pod as a whole are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Before those of its containers.
    First,
    /// After them.
    Last,
}

impl Due {
    /// Whether its memory grows counts: processes die of too little of it.
    fn between(
        before: &cri::LinuxContainerResources,
        after: &cri::LinuxContainerResources,
    ) -> Self {
        let (from, to) = (before.memory_limit_in_bytes, after.memory_limit_in_bytes);
        if to <= 0 || (from > 0 && to > from) { Self::First } else { Self::Last }
    }
}

/// What a container's change of resources needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing: what is in force is what is granted.
    Done,
    /// New limits for the running container.
    Update(Box<cri::LinuxContainerResources>),
    /// Limits of the pod as a whole, which an older kubelet did not give its containers: no resize.
    Inherit(Box<cri::LinuxContainerResources>),
    /// The container starts anew, as its resize policy asks.
    Restart,
}

/// Compares what is in force with what is granted.
pub fn step(of: &Pod, container: &Container, observed: &Observed, basis: Basis) -> Step {
    if observed.state != State::Running {
        return Step::Done;
    }
    let Some(actual) = &observed.resources else { return Step::Done };
    let granted = resources::for_container(of, container, basis);
    let cpu = |r: &cri::LinuxContainerResources| (r.cpu_shares, r.cpu_quota.max(0));
    let cpu_changed = cpu(actual) != cpu(&granted);
    let memory_changed =
        actual.memory_limit_in_bytes.max(0) != granted.memory_limit_in_bytes.max(0);
    if !cpu_changed && !memory_changed {
        return Step::Done;
    }
    let missing =
        |resource: &str, limit: i64| limit <= 0 && resources::inherits(of, container, resource);
    let cpu_inherited = missing("cpu", actual.cpu_quota);
    let memory_inherited = missing("memory", actual.memory_limit_in_bytes);
    if (!cpu_changed || cpu_inherited) && (!memory_changed || memory_inherited) {
        return Step::Inherit(Box::new(granted));
    }
    let restarts = |resource: &str| {
        container
            .resize_policy
            .iter()
            .flatten()
            .any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
    };
    if (cpu_changed && !cpu_inherited && restarts("cpu"))
        || (memory_changed && !memory_inherited && restarts("memory"))
    {
        return Step::Restart;
    }
    let mut update = granted;
    // Nothing said about a limit leaves it as it is; its absence has to be said.
    if update.cpu_quota == 0 && actual.cpu_quota > 0 {
        (update.cpu_quota, update.cpu_period) = (-1, 100_000);
    }
    if update.memory_limit_in_bytes == 0 && actual.memory_limit_in_bytes > 0 {
        update.memory_limit_in_bytes = -1;
    }
    Step::Update(Box::new(update))
}

/// The resources in force, as the API tells them: as they were asked for, where that is what was made of it.
pub fn in_force(
    of: &Pod,
    container: &Container,
    observed: &Observed,
    basis: Basis,
) -> Option<ResourceRequirements> {
    let mut out = container.resources.clone();
    let Some(actual) = observed.resources.as_ref().filter(|_| observed.state == State::Running)
    else {
        return out;
    };
    let granted = resources::for_container(of, container, basis);
    let resources = out.get_or_insert_default();
    let limits = resources.limits.get_or_insert_default();
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => drop(limits.insert(name.to_owned(), Quantity(value))),
        None => drop(limits.remove(name)),
    };
    if actual.cpu_quota.max(0) != granted.cpu_quota {
        let milli = |quota: i64| quota * 1_000 / actual.cpu_period.max(1);
        set("cpu", (actual.cpu_quota > 0).then(|| format!("{}m", milli(actual.cpu_quota))));
    }
    if actual.memory_limit_in_bytes.max(0) != granted.memory_limit_in_bytes {
        let bytes = actual.memory_limit_in_bytes;
        set("memory", (bytes > 0).then(|| bytes.to_string()));
    }
    if limits.is_empty() {
        resources.limits = None;
    }
    if actual.cpu_shares != granted.cpu_shares
        && let Some(request) = resources.requests.as_mut().and_then(|r| r.get_mut("cpu"))
    {
        request.0 = format!("{}m", (actual.cpu_shares * 1_000 + 1_023) / 1_024);
    }
    (*resources != ResourceRequirements::default()).then(|| resources.clone())
}

/// Whether `of` is too large for an empty node of `allocatable`.
fn infeasible(of: &Pod, allocatable: &BTreeMap<String, Quantity>) -> Option<Waiting> {
    for (resource, unit) in [("memory", 1_000), ("cpu", 1)] {
        let Some(capacity) = allocatable.get(resource).and_then(quantity::milli) else { continue };
        let wanted = resources::pod_request_milli(of, resource);
        if wanted > capacity {
            return Some(Waiting {
                reason: "Infeasible".into(),
                message: format!(
                    "Node didn't have enough capacity: {resource}, requested: {}, capacity: {}",
                    wanted / unit,
                    capacity / unit
                ),
            });
        }
    }
    None
}

/// What the events about a resize tell.
fn told(of: &Pod, error: Option<&str>) -> String {
    let list = |containers: &[Container]| {
        let told = containers.iter().map(|c| json!({"name": c.name, "resources": c.resources}));
        told.collect::<Vec<_>>()
    };
    let mut out =
        json!({"containers": list(pod::containers(of)), "generation": of.metadata.generation});
    let sidecars = list(pod::init_containers(of));
    if !sidecars.is_empty() {
        out["initContainers"] = sidecars.into();
    }
    if let Some(error) = error {
        out["error"] = error.into();
    }
    out.to_string()
}

impl Worker {
    /// Sees the pod of the API as its allocation has it; a change that fits the node is granted.
    pub(crate) fn allocate(&mut self, now: Timestamp, next: &mut Timestamp) {
        let uid = pod::uid(&self.desired).to_owned();
        let wanted = Allocation::wanted(&self.desired);
        let root = self.context.root_dir.clone();
        let granted = self.allocation.take();
        let granted = granted
            .or_else(|| Allocation::read(&root, &self.desired))
            .unwrap_or_else(|| wanted.clone());
        self.allocation = Some(granted.clone());
        if granted == wanted || self.is_ending() {
            self.pod = if granted == wanted {
                self.desired.clone()
            } else {
                Arc::new(granted.apply(&self.desired))
            };
            self.resize.pending = None;
            return;
        }
        if let Some(refusal) = self.refusal() {
            if self.resize.pending.as_ref() != Some(&refusal) {
                // For the next kubelet, which would take the spec for granted.
                if let Err(error) = granted.write(&root, &uid) {
                    tracing::warn!(pod = pod::full_name(&self.desired), %error, "allocation not written");
                }
                let reason = refusal.reason.clone();
                let detail = told(&self.desired, Some(&refusal.message));
                let text = format!("Pod resize {reason}: {detail}");
                self.context.warning(&self.desired, None, &format!("Resize{reason}"), text);
            }
            self.pod = Arc::new(granted.apply(&self.desired));
            self.resize.pending = Some(refusal);
            *next = (*next).min(now + RETRY);
            return;
        }
        if let Err(error) = wanted.write(&root, &uid) {
            tracing::warn!(pod = pod::full_name(&self.desired), %error, "allocation not written");
            *next = (*next).min(now + RETRY);
            return;
        }
        self.allocation = Some(wanted);
        self.pod = Arc::new(granted.apply(&self.desired));
        let before = self.sandbox_limits();
        self.pod = self.desired.clone();
        self.limits_due = Some(Due::between(&before, &self.sandbox_limits()));
        self.resize.pending = None;
        self.resize.in_progress = true;
        self.resize.error = None;
        let text = format!("Pod resize started: {}", told(&self.pod, None));
        self.context.normal(&self.pod, None, "ResizeStarted", text);
    }

    fn refusal(&self) -> Option<Waiting> {
        if pod::is_static(&self.desired) {
            return Some(Waiting {
                reason: "Infeasible".into(),
                message: "In-place resize of static-pods is not supported".into(),
            });
        }
        let allocatable = self.context.allocatable();
        infeasible(&self.desired, &allocatable).or_else(|| {
            let refusal = self.context.grant(&self.desired).err()?;
            Some(Waiting { reason: "Deferred".into(), message: refusal.message })
        })
    }

    /// Brings the resources of running containers, and of all of them together, in line with the allocation.
    pub(crate) async fn actuate(&mut self, now: Timestamp, next: &mut Timestamp) {
        let mut behind = false;
        // The pod has to hold what its containers may use: it grows before them and shrinks after them.
        let mut problem = self.limit_sandbox(Due::First).await;
        let blocked = problem.is_some();
        for (kind, container) in pod::all_containers(&self.pod) {
            if kind == Kind::Ephemeral || blocked {
                continue;
            }
            let Some(observed) = self.view.latest(&container.name).cloned() else { continue };
            match step(&self.pod, &container, &observed, self.context.basis()) {
                Step::Done => {}
                // The decision core stops it.
                Step::Restart => behind = true,
                Step::Update(update) => {
                    behind = true;
                    problem = self.limit(&container, &observed, *update).await.or(problem);
                    self.limits_due.get_or_insert(Due::Last);
                }
                Step::Inherit(update) => {
                    behind |= self.resize.in_progress;
                    let error = self.limit(&container, &observed, *update).await;
                    self.limits_due.get_or_insert(Due::Last);
                    if self.resize.in_progress {
                        problem = error.or(problem);
                    } else if let Some(error) = error {
                        tracing::warn!(pod = pod::full_name(&self.pod), error, "not limited");
                        *next = (*next).min(now + RETRY);
                    }
                }
            }
        }
        if !behind && problem.is_none() {
            problem = self.limit_sandbox(Due::Last).await;
        }
        behind |= problem.is_some();
        let before = std::mem::replace(&mut self.resize.in_progress, behind);
        if let Some(problem) = &problem {
            *next = (*next).min(now + RETRY);
            if self.resize.error.as_ref() != Some(problem) {
                let text = format!("Pod resize error: {}", told(&self.pod, Some(problem)));
                self.context.warning(&self.pod, None, "ResizeError", text);
            }
        }
        self.resize.error = problem;
        if before && !behind {
            let text = format!("Pod resize completed: {}", told(&self.pod, None));
            self.context.normal(&self.pod, None, "ResizeCompleted", text);
        }
    }
}

impl Worker {
    /// What all of the pod may use.
    pub(crate) fn sandbox_limits(&self) -> cri::LinuxContainerResources {
        sandbox::limits(&self.pod, self.context.basis(), self.context.pod_pids_limit)
    }

    /// Gives a running container its limits. Returns what went wrong.
    async fn limit(
        &self,
        container: &Container,
        observed: &Observed,
        limits: cri::LinuxContainerResources,
    ) -> Option<String> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: observed.id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        match self.context.cri.update_container_resources(request).await {
            Ok(_) => {
                self.wake.notify_one();
                None
            }
            Err(error) => Some(format!("failed to resize container {:?}: {error}", container.name)),
        }
    }

    /// Brings the limits of the pod as a whole in line with the allocation, where that is due now. Returns what went
    /// wrong.
    async fn limit_sandbox(&mut self, due: Due) -> Option<String> {
        let sandbox = self.view.ready_sandbox().filter(|_| self.limits_due == Some(due))?;
        let mut resources = self.sandbox_limits();
        // Nothing said about a limit leaves it as it is; its absence has to be said.
        if resources.cpu_quota == 0 {
            (resources.cpu_quota, resources.cpu_period) = (-1, 100_000);
        }
        if resources.memory_limit_in_bytes == 0 {
            resources.memory_limit_in_bytes = -1;
        }
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: sandbox.id.clone(),
            overhead: None,
            resources: Some(resources),
        };
        match self.context.cri.update_pod_sandbox_resources(request).await {
            Err(error) if !error.is_unimplemented() => {
                Some(format!("failed to resize the pod: {error}"))
            }
            // A runtime that cannot has no limits of pods to change.
            _ => {
                self.limits_due = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::observe::testing;
    use crate::resources::Terms;

    fn with(resources: &serde_json::Value, policy: &str) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources,
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}]}]}}))
        .unwrap()
    }

    const BASIS: Basis = Basis {
        memory_bytes: 1 << 33,
        swap_bytes: 0,
        swap_limits: true,
        terms: Terms {
            cpu_quotas: true,
            cpu_period_us: 100_000,
            swap: false,
            single_process_ends: false,
        },
    };

    fn running(of: &Pod) -> Observed {
        let resources = resources::for_container(of, &pod::containers(of)[0], BASIS);
        Observed { resources: Some(resources), ..testing::container("c", State::Running) }
    }

    #[test]
    fn steps() {
        let small =
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
        let more_cpu =
            json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "300m", "memory": "64Mi"}});
        let more_memory =
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "128Mi"}});
        let none = json!({"requests": {"cpu": "100m"}});
        let before = running(&with(&small, "NotRequired"));
        let after = |resources, policy| {
            let of = with(resources, policy);
            step(&of, &pod::containers(&of)[0], &before, BASIS)
        };
        let update = |step| match step {
            Step::Update(r) => (r.cpu_shares, r.cpu_quota, r.memory_limit_in_bytes),
            other => panic!("{other:?}"),
        };
        assert_eq!(after(&small, "NotRequired"), Step::Done);
        assert_eq!(update(after(&more_cpu, "RestartContainer")), (204, 30_000, 64 << 20));
        assert_eq!(update(after(&more_memory, "NotRequired")), (102, 20_000, 128 << 20));
        assert_eq!(after(&more_memory, "RestartContainer"), Step::Restart);
        assert_eq!(update(after(&none, "NotRequired")), (102, -1, -1));
    }

    #[test]
    fn what_is_in_force_is_told_as_it_was_asked_for_or_as_it_is() {
        let small = with(
            &json!({"requests": {"cpu": "0.1"}, "limits": {"cpu": "0.2", "memory": "64Mi"}}),
            "",
        );
        let large = with(
            &json!({"requests": {"cpu": "0.5"}, "limits": {"cpu": "1", "memory": "128Mi"}}),
            "",
        );
        let told = |granted: &Pod, actual: &Pod| {
            let told = in_force(granted, &pod::containers(granted)[0], &running(actual), BASIS);
            serde_json::to_value(told).unwrap()
        };
        assert_eq!(
            told(&small, &small),
            json!({"requests": {"cpu": "0.1"}, "limits": {"cpu": "0.2", "memory": "64Mi"}})
        );
        assert_eq!(
            told(&large, &small),
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "67108864"}})
        );
    }

    #[test]
    fn what_the_pod_as_a_whole_was_given_is_kept() {
        let of = |cpu: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"resources": {"limits": {"cpu": cpu}},
                "containers": [{"name": "c"}]}}))
            .unwrap()
        };
        let granted = Allocation::wanted(&of("1"));
        assert_ne!(granted, Allocation::wanted(&of("2")));
        assert_eq!(granted.apply(&of("2")), of("1"));
        // The container is limited with it; what it asked for itself, nothing, is told.
        let one = of("1");
        let container = &pod::containers(&one)[0];
        let observed = running(&one);
        assert_eq!(observed.resources.as_ref().unwrap().cpu_quota, 100_000);
        assert_eq!(in_force(&one, container, &observed, BASIS), None);
        assert!(matches!(step(&of("2"), container, &observed, BASIS), Step::Update(_)));
    }

    #[test]
    fn what_is_added_for_the_pod_as_a_whole_is_a_change() {
        let of = |whole: &Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"uid": "u"},
                "spec": {"resources": whole, "containers": [{"name": "c"}]}}))
            .unwrap()
        };
        let (none, some) = (of(&Value::Null), of(&json!({"limits": {"cpu": "1"}})));
        let granted = Allocation::wanted(&none);
        assert_ne!(granted, Allocation::wanted(&some));
        assert_eq!(granted.apply(&some), none);
        let root = tempfile::tempdir().unwrap();
        granted.write(root.path(), "u").unwrap();
        assert_eq!(Allocation::read(root.path(), &some), Some(granted.clone()));
        // An older kubelet's says nothing of it.
        let older =
            Allocation(granted.0.into_iter().filter(|(name, _)| !name.is_empty()).collect());
        older.write(root.path(), "u").unwrap();
        assert_eq!(Allocation::read(root.path(), &some), Some(Allocation::wanted(&some)));
    }

    #[test]
    fn limits_that_an_older_kubelet_did_not_hand_down_are_no_resize() {
        let of = |own: &Value| -> Pod {
            serde_json::from_value(
                json!({"spec": {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "containers": [{"name": "c", "resources": own, "resizePolicy": [
                    {"resourceName": "cpu", "restartPolicy": "RestartContainer"},
                    {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]}}),
            )
            .unwrap()
        };
        let bare = Observed {
            resources: Some(cri::LinuxContainerResources { cpu_shares: 2, ..Default::default() }),
            ..testing::container("c", State::Running)
        };
        let of_bare = |own: Value| {
            let of = of(&own);
            step(&of, &pod::containers(&of)[0], &bare, BASIS)
        };
        let Step::Inherit(limits) = of_bare(Value::Null) else { panic!("no limits") };
        assert_eq!((limits.cpu_quota, limits.memory_limit_in_bytes), (100_000, 1 << 30));
        assert_eq!(of_bare(json!({"limits": {"memory": "1Gi"}})), Step::Restart, "its own");
    }

    #[test]
    fn a_pod_grows_before_its_containers_and_shrinks_after_them() {
        for (from, to, expected) in [
            (2, 4, Due::First),
            (4, 2, Due::Last),
            (4, 0, Due::First),
            (0, 4, Due::Last),
            (4, 4, Due::Last),
        ] {
            let limit = |bytes| cri::LinuxContainerResources {
                memory_limit_in_bytes: bytes,
                ..Default::default()
            };
            assert_eq!(Due::between(&limit(from), &limit(to)), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_pod_larger_than_the_node_is_infeasible() {
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("2".into()))]);
        let large = with(&json!({"requests": {"cpu": "3"}}), "");
        let message = infeasible(&large, &allocatable).unwrap().message;
        assert_eq!(
            message,
            "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000"
        );
        assert_eq!(infeasible(&with(&json!({"requests": {"cpu": "2"}}), ""), &allocatable), None);
    }
}
