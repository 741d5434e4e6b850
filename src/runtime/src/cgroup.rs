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
        Self { root }
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
        }
        if !request.unified.is_empty() {
            resources["unified"] = json!(request.unified);
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
    if request.memory_limit_in_bytes > 0 {
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

/// cpu.weight for cpu.shares, as runc converts them: 2..=262144 onto 1..=10000.
fn weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1)] {
            assert_eq!(weight(shares), expected);
        }
    }

    #[test]
    fn requests_become_oci_resources() {
        let cgroups = Cgroups::new(Some("/user.slice/rootlet".into()));
        let request = v1::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let expected = json!({"cpu": {"shares": 512, "quota": 50000, "period": 100_000},
            "memory": {"limit": 1 << 20, "swap": 1 << 20}});
        assert_eq!(cgroups.resources(&request), expected);
        assert_eq!(cgroups.resources(&v1::LinuxContainerResources::default()), json!({}));
    }
}
