//! What the daemon writes for the `container` process: `launch.json` in the bundle.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// File names in a bundle.
pub const LAUNCH: &str = "launch.json";
/// The OCI runtime spec, written by the `container` process once it knows the user.
pub const CONFIG: &str = "config.json";
/// Mount point of the root file system.
pub const ROOTFS: &str = "rootfs";
/// Mounts on their way into a container.
pub const STAGE: &str = "mounts";
/// libcontainer's own state.
pub const STATE: &str = "state";
/// The number of the container's first process, there before it runs. libcontainer writes its state anew after that,
/// and who kills it then leaves a file that nobody can read.
pub const PID: &str = "pid";

/// A container to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// Container id.
    pub id: String,
    /// OCI runtime spec without `process.user` and without `HOME`.
    pub spec: Value,
    /// Where its root file system comes from.
    pub root: Root,
    /// Images it mounts, each at [`Volume::path`] of the bundle.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Folders that the image declares as volumes, and nothing is mounted at.
    #[serde(default)]
    pub declared: Vec<PathBuf>,
    /// Whom to run as.
    pub user: UserRequest,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// Files of seccomp programs, to be installed in this order.
    pub seccomp: Vec<PathBuf>,
}

/// An image that a container mounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Its root file system.
    pub root: Root,
    /// What of it is mounted; empty for all.
    pub sub_path: String,
}

impl Volume {
    /// Where the `index`th of a container is found while it is being started.
    pub fn path(bundle: &Path, index: usize) -> PathBuf {
        bundle.join(STAGE).join(format!("image-{index}"))
    }
}

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay, uppermost lower directory first.
    Overlay { lower: Vec<PathBuf>, upper: PathBuf, work: PathBuf },
    /// A directory as it is.
    Directory(PathBuf),
}

/// Whom a container wants to run as (CRI LinuxContainerSecurityContext, OCI image config).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UserRequest {
    /// `run_as_user`.
    pub uid: Option<i64>,
    /// `run_as_group`.
    pub gid: Option<i64>,
    /// `run_as_username`.
    pub name: String,
    /// `User` of the image: `user[:group]`, names or numbers.
    pub image: String,
    /// `supplemental_groups`.
    pub groups: Vec<i64>,
    /// Whether only the groups asked for count, not those of the image's /etc/group.
    pub strict_groups: bool,
}

/// Capability sets, as names without `CAP_`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding, permitted and effective.
    pub allowed: Vec<String>,
    /// Ambient, and with it inheritable.
    pub ambient: Vec<String>,
}
