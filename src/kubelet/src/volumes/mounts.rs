//! What of a pod's volumes a container sees, and the files the kubelet itself puts there.
//!
//! Source of behaviour: `makeMounts` in `kubelet_pods.go`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::{Mounted, directory, subpath};
use crate::{env, pod};

/// Why a container's mounts cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount names a volume the pod has not.
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// `subPathExpr` names variables that are not set, or empty.
    #[error("missing value for {0}")]
    Expression(String),
    /// The sub-path cannot be used.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: subpath::Error,
    },
    /// A file of the kubelet's own could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The error with its cause, for a status message.
    pub fn text(&self) -> String {
        match self {
            Self::SubPath { source, .. } => format!("{self}: {source}"),
            Self::Write { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

/// What decides a container's mounts.
pub struct Input<'a> {
    /// The kubelet's directory.
    pub root: &'a Path,
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// The pod's volumes.
    pub mounted: &'a Mounted,
    /// The container's environment, for `subPathExpr`.
    pub env: &'a [(String, String)],
    /// Content of `/etc/hosts`.
    pub hosts: &'a str,
}

/// The container's mounts; makes sub-paths, `/etc/hosts` and the termination log.
pub fn make(input: &Input<'_>) -> Result<Vec<cri::Mount>, Error> {
    let wanted = input.container.volume_mounts.as_deref().unwrap_or_default();
    let mut out = Vec::with_capacity(wanted.len() + 2);
    for (index, mount) in wanted.iter().enumerate() {
        out.push(volume(input, index, mount)?);
    }
    let taken = |path: &str, out: &[cri::Mount]| out.iter().any(|m| m.container_path == path);
    if !taken("/etc/hosts", &out) {
        let path = directory(input.root, pod::uid(input.pod)).join("etc-hosts");
        write(&path, input.hosts.as_bytes(), 0o644)?;
        out.push(plain("/etc/hosts", &path));
    }
    let log = pod::termination_message_path(input.container);
    if !taken(log, &out) {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = directory(input.root, pod::uid(input.pod))
            .join("containers")
            .join(&input.container.name)
            .join(&name[..8]);
        write(&path, b"", 0o666)?;
        out.push(plain(log, &path));
    }
    Ok(out)
}

fn volume(input: &Input<'_>, index: usize, mount: &VolumeMount) -> Result<cri::Mount, Error> {
    let container = input.container.name.clone();
    let volumes = input.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let spec = volumes.iter().find(|v| v.name == mount.name);
    let (Some(spec), Some(path)) = (spec, input.mounted.paths.get(&mount.name)) else {
        return Err(Error::NoVolume { volume: mount.name.clone(), container });
    };
    let mut host_path = path.clone();
    let sub_path = sub_path(mount, input.env)?;
    if let Some(sub_path) = sub_path.as_ref().filter(|_| spec.image.is_none()) {
        let hold = directory(input.root, pod::uid(input.pod))
            .join("volume-subpaths")
            .join(&mount.name)
            .join(&container)
            .join(index.to_string());
        host_path = subpath::prepare(path, sub_path, &hold).map_err(|source| Error::SubPath {
            volume: mount.name.clone(),
            container,
            source,
        })?;
    }
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    // These are the API's content; a container writes to them only by mistake.
    let fixed = spec.config_map.is_some()
        || spec.secret.is_some()
        || spec.projected.is_some()
        || spec.downward_api.is_some()
        || spec.image.is_some();
    Ok(cri::Mount {
        container_path: absolute(&mount.mount_path),
        host_path: if spec.image.is_some() {
            String::new()
        } else {
            host_path.display().to_string()
        },
        readonly: mount.read_only.unwrap_or(false) || fixed,
        propagation: propagation as i32,
        recursive_read_only: matches!(
            mount.recursive_read_only.as_deref(),
            Some("Enabled" | "IfPossible")
        ),
        image: spec.image.as_ref().map(|i| cri::ImageSpec {
            image: i.reference.clone().unwrap_or_default(),
            user_specified_image: i.reference.clone().unwrap_or_default(),
            ..Default::default()
        }),
        image_sub_path: spec.image.as_ref().and(sub_path).unwrap_or_default(),
        ..Default::default()
    })
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, Error> {
    if let Some(path) = mount.sub_path.as_ref().filter(|p| !p.is_empty()) {
        return Ok(Some(path.clone()));
    }
    let Some(expression) = mount.sub_path_expr.as_ref().filter(|e| !e.is_empty()) else {
        return Ok(None);
    };
    let missing = RefCell::new(BTreeSet::new());
    let path = env::expand(expression, |name| {
        let value = env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        if value.as_ref().is_none_or(String::is_empty) {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(Some(path)) } else { Err(Error::Expression(missing.join(", "))) }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn plain(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let done = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // In place: a container that has it mounted sees the new content.
        std::fs::write(path, content)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    done().map_err(|source| Error::Write { path: path.to_owned(), source })
}
