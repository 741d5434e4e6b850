//! The cgroups of containers (cgroup v2 only). Where nothing is delegated to us containers run
//! without limits, and [`Cgroups::note`] says so.

use std::path::{Path, PathBuf};

use k8s_cri::v1;
use serde_json::{Value, json};

use crate::state::SandboxRecord;

/// Where cgroup2 is mounted in the node's mount namespace.
const MOUNT: &str = "/sys/fs/cgroup";

/// The part of the cgroup tree that is ours.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: Option<PathBuf>,
    /// What can be limited there.
    controllers: Vec<String>,
    /// Whether the kernel can swap.
    swap: bool,
}

/// The cgroup of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCgroup {
    /// Absolute below the mount.
    pub path: PathBuf,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether it can be made and limited.
    pub delegated: bool,
}

impl Cgroups {
    /// `root` is the delegated cgroup, absolute below the mount; `None` when there is none.
    pub fn new(root: Option<PathBuf>) -> Self {
        let enabled = root.as_deref().map(|root| directory(root).join("cgroup.subtree_control"));
        let enabled = enabled.and_then(|file| std::fs::read_to_string(file).ok());
        let controllers =
            enabled.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let swap = root.as_deref().map(|root| directory(root).join("memory.swap.max"));
        Self { swap: swap.is_some_and(|file| file.exists()), root, controllers }
    }

    /// Makes the cgroup of a pod, which the kubelet names, and those above it; limits the pod as a whole.
    pub fn make_pod(&self, sandbox: &SandboxRecord, all: &[SandboxRecord]) -> std::io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let linux = sandbox.config.linux.clone().unwrap_or_default();
        let mut path = directory(root);
        for part in linux.cgroup_parent.split('/').filter(|part| !part.is_empty()) {
            path.push(part);
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error);
                }
                _ => {}
            }
            for controller in &self.controllers {
                let _ =
                    std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        if let Some(resources) = &linux.resources {
            update(&path, &self.known(resources))?;
        }
        self.weigh_classes(root, all);
        Ok(())
    }

    /// Changes what a pod may use as a whole.
    pub fn change_pod(
        &self,
        sandbox: &SandboxRecord,
        resources: &v1::LinuxContainerResources,
    ) -> std::io::Result<()> {
        let parent = sandbox.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let (Some(root), false) = (&self.root, parent.is_empty()) else { return Ok(()) };
        let path = directory(root).join(parent.trim_start_matches('/'));
        let known = self.known(resources);
        fits(&path, "pod", known.memory_limit_in_bytes)?;
        update(&path, &known)
    }

    /// Gives the classes of service their shares of the processors: best effort the least, burstable what its
    /// pods ask for together (`pkg/kubelet/cm/qos_container_manager_linux.go`).
    fn weigh_classes(&self, root: &Path, all: &[SandboxRecord]) {
        let class = |sandbox: &SandboxRecord, class: &str| {
            let parent = sandbox.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str());
            parent.is_some_and(|parent| parent.starts_with(class))
        };
        let shares = |sandbox: &SandboxRecord| {
            let linux = sandbox.config.linux.as_ref();
            linux.and_then(|linux| linux.resources.as_ref()).map_or(0, |r| r.cpu_shares)
        };
        let burstable = "/kubepods/burstable";
        let asked = all.iter().filter(|s| s.ready && class(s, burstable)).map(shares).sum();
        for (name, shares) in [(burstable, asked), ("/kubepods/besteffort", 2)] {
            let file = directory(root).join(&name[1..]).join("cpu.weight");
            if file.exists() {
                let _ = std::fs::write(file, weight(shares).to_string());
            }
        }
    }

    /// Removes the cgroup of a pod that is gone.
    pub fn remove_pod(&self, sandbox: &SandboxRecord) {
        let parent = sandbox.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        if let (Some(root), false) = (&self.root, parent.is_empty()) {
            // Another sandbox of the pod may be in it: then it stays.
            let _ = std::fs::remove_dir(directory(root).join(parent.trim_start_matches('/')));
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// What of the request can be limited here.
    pub fn known(&self, request: &v1::LinuxContainerResources) -> v1::LinuxContainerResources {
        let mut known = request.clone();
        if !self.has("cpu") {
            (known.cpu_shares, known.cpu_quota, known.cpu_period) = (0, 0, 0);
        }
        if !self.has("memory") {
            (known.memory_limit_in_bytes, known.memory_swap_limit_in_bytes) = (0, 0);
        }
        if !self.has("cpuset") {
            known.cpuset_cpus.clear();
            known.cpuset_mems.clear();
        }
        if !self.has("hugetlb") {
            known.hugepage_limits.clear();
        }
        known.unified.retain(|file, _| {
            let controller = file.split('.').next().unwrap_or_default();
            self.has(controller) && (self.swap || !file.starts_with("memory.swap."))
        });
        known
    }

    /// Whether containers are limited.
    pub fn delegated(&self) -> bool {
        self.root.is_some()
    }

    /// A sentence about limits, for those who ask why they have no effect.
    pub fn note(&self) -> &'static str {
        if self.delegated() {
            "resource limits are enforced by cgroup v2"
        } else {
            "resource limits are not enforced: no cgroup v2 subtree is delegated to this user"
        }
    }

    /// The cgroup of a container: below its pod's, which the kubelet names.
    pub fn container(&self, sandbox: &SandboxRecord, id: &str) -> ContainerCgroup {
        let parent = sandbox.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let path = match &self.root {
            Some(root) => absolute(root).join(parent.trim_start_matches('/')).join(id),
            // libcontainer wants a name of its own for each, made or not.
            None => Path::new("/").join(format!("rootlet-{id}")),
        };
        let directory = Path::new(MOUNT).join(path.strip_prefix("/").unwrap_or(&path));
        ContainerCgroup { path, directory, delegated: self.delegated() }
    }

    /// `linux.resources` of the OCI spec.
    pub fn resources(&self, request: &v1::LinuxContainerResources) -> Value {
        let request = &self.known(request);
        let mut resources = json!({});
        let positive = |value: i64| (value > 0).then_some(value);
        let mut cpu = json!({});
        if let Some(shares) = positive(request.cpu_shares) {
            cpu["shares"] = shares.into();
        }
        if request.cpu_quota != 0 {
            cpu["quota"] = request.cpu_quota.into();
        }
        if let Some(period) = positive(request.cpu_period) {
            cpu["period"] = period.into();
        }
        for (name, value) in [("cpus", &request.cpuset_cpus), ("mems", &request.cpuset_mems)] {
            if !value.is_empty() {
                cpu[name] = value.as_str().into();
            }
        }
        if cpu != json!({}) {
            resources["cpu"] = cpu;
        }
        if let Some(limit) = positive(request.memory_limit_in_bytes) {
            resources["memory"] = json!({"limit": limit});
            // Without a swap limit of its own a container may not swap beyond its memory.
            let swap = positive(request.memory_swap_limit_in_bytes).unwrap_or(limit);
            resources["memory"]["swap"] = swap.into();
            // Out of memory, a container ends as a whole, as the kubelet has it by default.
            resources["unified"] = json!({"memory.oom.group": "1"});
        }
        for (file, value) in &request.unified {
            resources["unified"][file] = value.as_str().into();
        }
        if !request.hugepage_limits.is_empty() {
            let limits = request.hugepage_limits.iter();
            resources["hugepageLimits"] = limits
                .map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit}))
                .collect();
        }
        resources
    }
}

/// Changes the limits of a running container's cgroup (cgroup-v2: controller interface files).
/// Nothing said about a limit leaves it as it is.
pub fn update(directory: &Path, request: &v1::LinuxContainerResources) -> std::io::Result<()> {
    let write = |file: &str, value: String| std::fs::write(directory.join(file), value);
    if request.cpu_shares > 0 {
        write("cpu.weight", weight(request.cpu_shares).to_string())?;
    }
    if request.cpu_quota != 0 {
        let quota =
            if request.cpu_quota < 0 { "max".to_owned() } else { request.cpu_quota.to_string() };
        let period = if request.cpu_period > 0 { request.cpu_period } else { 100_000 };
        write("cpu.max", format!("{quota} {period}"))?;
    }
    if request.memory_limit_in_bytes < 0 {
        write("memory.max", "max".into())?;
    } else if request.memory_limit_in_bytes > 0 {
        write("memory.max", request.memory_limit_in_bytes.to_string())?;
    }
    for (file, value) in
        [("cpuset.cpus", &request.cpuset_cpus), ("cpuset.mems", &request.cpuset_mems)]
    {
        if !value.is_empty() {
            write(file, value.clone())?;
        }
    }
    request.unified.iter().try_for_each(|(file, value)| write(file, value.clone()))
}

/// Changes the limits of a running container's cgroup. Those of its pod are the kubelet's, who tells them apart.
pub fn change(
    container: &Path,
    old: &v1::LinuxContainerResources,
    new: &v1::LinuxContainerResources,
) -> std::io::Result<()> {
    let (from, to) = (old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    if to > 0 && (from <= 0 || to < from) {
        fits(container, "container", to)?;
    }
    update(container, new)
}

/// Refuses a limit of memory that is used up already: the kernel would kill what does not fit.
fn fits(directory: &Path, what: &str, limit: i64) -> std::io::Result<()> {
    let current = std::fs::read_to_string(directory.join("memory.current")).unwrap_or_default();
    match current.trim().parse::<i64>() {
        Ok(current) if limit > 0 && current > limit => Err(std::io::Error::other(format!(
            "attempting to set {what} memory limit ({limit}) below current usage ({current})"
        ))),
        _ => Ok(()),
    }
}

/// The directory of a cgroup that is absolute below the mount.
fn directory(path: &Path) -> PathBuf {
    Path::new(MOUNT).join(path.strip_prefix("/").unwrap_or(path))
}

/// Takes over into `limits` what `change` says; what it does not say stays.
pub fn merge(limits: &mut v1::LinuxContainerResources, change: &v1::LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut limits.cpu_period, change.cpu_period);
    number(&mut limits.cpu_quota, change.cpu_quota);
    number(&mut limits.cpu_shares, change.cpu_shares);
    number(&mut limits.memory_limit_in_bytes, change.memory_limit_in_bytes);
    number(&mut limits.memory_swap_limit_in_bytes, change.memory_swap_limit_in_bytes);
    number(&mut limits.oom_score_adj, change.oom_score_adj);
    for (old, new) in [
        (&mut limits.cpuset_cpus, &change.cpuset_cpus),
        (&mut limits.cpuset_mems, &change.cpuset_mems),
    ] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    if !change.hugepage_limits.is_empty() {
        limits.hugepage_limits.clone_from(&change.hugepage_limits);
    }
    let unified = change.unified.iter().map(|(file, value)| (file.clone(), value.clone()));
    limits.unified.extend(unified);
}

/// cpu.weight for cpu.shares, as runc since 1.3.2 and crun since 1.23 convert them: 2 is 1, 1024 is the default of 100,
/// 262144 is 10000.
fn weight(shares: i64) -> i64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as i64).clamp(1, 10_000)
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in
            [(0, 1), (2, 1), (102, 17), (1024, 100), (2048, 174), (262_144, 10_000)]
        {
            assert_eq!(weight(shares), expected);
        }
    }

    #[test]
    fn what_a_change_does_not_say_stays() {
        let mut limits = v1::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let change = v1::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 21,
            ..Default::default()
        };
        merge(&mut limits, &change);
        let expected = v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 21,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn requests_become_oci_resources() {
        let controllers = ["cpu", "memory"].map(str::to_owned).to_vec();
        let cgroups =
            Cgroups { root: Some("/user.slice/rootlet".into()), controllers, swap: false };
        let request = v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let expected = json!({"cpu": {"shares": 512, "quota": 50000, "period": 100_000},
            "memory": {"limit": 1 << 20, "swap": 1 << 20}, "unified": {"memory.oom.group": "1"}});
        assert_eq!(cgroups.resources(&request), expected);
        assert_eq!(cgroups.resources(&v1::LinuxContainerResources::default()), json!({}));
    }
}
