//! The CRI configuration of a container. Pure: what it needs is resolved before.
//!
//! Source of behaviour: `kuberuntime_container.go`, `kuberuntime_container_linux.go`,
//! `pkg/kubelet/kuberuntime/security_context.go`, `pkg/securitycontext`.

use std::path::PathBuf;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use plugin::device::Edits;

use crate::resources::Basis;
use crate::{env, labels, pod, resources, sandbox};

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why a container cannot be configured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// runAsUser is root and runAsNonRoot forbids it.
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsRoot {
        /// The pod's full name.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is root and runAsNonRoot forbids it.
    #[error(
        "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})"
    )]
    ImageRunsAsRoot {
        /// The pod's full name.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image names its user by a name, which may be root.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    ImageUserUnknown {
        /// The user of the image.
        user: String,
        /// The pod's full name.
        pod: String,
        /// The container.
        container: String,
    },
}

/// The user an image runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Numeric, if it is.
    pub uid: Option<i64>,
    /// By name otherwise; may be empty.
    pub username: String,
}

/// A container with everything it refers to resolved.
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// How often it was restarted before.
    pub restart_count: u32,
    /// The image by the reference the runtime gave.
    pub image_ref: String,
    /// The user the image runs as.
    pub image_user: ImageUser,
    /// Environment in order.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<cri::Mount>,
    /// Block volumes.
    pub devices: Vec<cri::Device>,
    /// For an ephemeral container: the container whose processes it sees.
    pub target_id: Option<String>,
    /// What limits follow from.
    pub basis: Basis,
}

/// The path of the log below the pod's log directory.
pub fn log_path(name: &str, restart_count: u32) -> PathBuf {
    PathBuf::from(name).join(format!("{restart_count}.log"))
}

/// Makes the configuration.
pub fn config(input: Input<'_>) -> Result<cri::ContainerConfig, Error> {
    let Input { pod, container, restart_count, .. } = input;
    let linux = linux(&input)?;
    let lookup = |name: &str| input.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| env::expand(text, lookup)).collect()
    };
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: restart_count,
        }),
        image: Some(cri::ImageSpec {
            image: input.image_ref.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: labels::for_container(pod, container),
        annotations: labels::container_annotations(pod, container, restart_count),
        log_path: log_path(&container.name, restart_count).display().to_string(),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(linux),
        envs: input.env.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
        mounts: input.mounts,
        devices: input.devices,
        stop_signal: stop_signal(container).into(),
        ..Default::default()
    })
}

/// With what the container needs to use a device.
pub fn edited(mut config: cri::ContainerConfig, edits: Edits) -> cri::ContainerConfig {
    for (key, value) in edits.envs {
        config.envs.retain(|known| known.key != key);
        config.envs.push(cri::KeyValue { key, value });
    }
    config.mounts.extend(edits.mounts.into_iter().map(|mount| cri::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        ..cri::Mount::default()
    }));
    config.devices.extend(edits.devices.into_iter().map(|node| cri::Device {
        container_path: node.container_path,
        host_path: node.host_path,
        permissions: node.permissions,
    }));
    config.annotations.extend(edits.annotations);
    let names = edits.cdi_devices.into_iter().map(|device| cri::CdiDevice { name: device.name });
    config.cdi_devices.extend(names);
    config
}

/// The signal that stops the container; the runtime's default when it asks for none.
fn stop_signal(container: &Container) -> cri::Signal {
    let lifecycle = container.lifecycle.as_ref();
    let name = lifecycle.and_then(|lifecycle| lifecycle.stop_signal.as_deref()).unwrap_or_default();
    let name = name.replace('+', "PLUS").replace('-', "MINUS");
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

fn linux(input: &Input<'_>) -> Result<cri::LinuxContainerConfig, Error> {
    let Input { pod, container, .. } = input;
    let own = container.security_context.as_ref();
    let of_pod = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let run_as_user =
        own.and_then(|c| c.run_as_user).or_else(|| of_pod.and_then(|c| c.run_as_user));
    let run_as_group =
        own.and_then(|c| c.run_as_group).or_else(|| of_pod.and_then(|c| c.run_as_group));
    let non_root =
        own.and_then(|c| c.run_as_non_root).or_else(|| of_pod.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) {
        verify_non_root(input, run_as_user)?;
    }
    let privileged = own.and_then(|c| c.privileged).unwrap_or(false);
    let mut groups: Vec<i64> =
        of_pod.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(of_pod.and_then(|c| c.fs_group));
    let unmasked = privileged || own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() }
    };
    let profile = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or_else(|| of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    let seccomp = if privileged {
        cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Unconfined as i32,
            localhost_ref: String::new(),
        }
    } else {
        sandbox::seccomp(profile)
    };
    let mut namespaces = sandbox::namespaces(pod);
    if let Some(target) = &input.target_id {
        namespaces.pid = cri::NamespaceMode::Target as i32;
        namespaces.target_id.clone_from(target);
    }
    // An image that names no user runs as root, which has to be said where a group is.
    let root = input.image_user.username.is_empty().then_some(0);
    let user = run_as_user.or(input.image_user.uid).or(root);
    let security = cri::LinuxContainerSecurityContext {
        capabilities: own.and_then(|c| c.capabilities.as_ref()).map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_group: run_as_group.map(|value| cri::Int64Value { value }),
        run_as_username: if user.is_none() {
            input.image_user.username.clone()
        } else {
            String::new()
        },
        readonly_rootfs: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: groups,
        supplemental_groups_policy: sandbox::groups_policy(pod) as i32,
        no_new_privs: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp),
        apparmor: apparmor(input),
        ..Default::default()
    };
    Ok(cri::LinuxContainerConfig {
        resources: Some(resources::for_container(pod, container, input.basis)),
        security_context: Some(security),
    })
}

/// The AppArmor profile asked for; whether the node can give it is the runtime's to say.
fn apparmor(input: &Input<'_>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    let own = input.container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let of_pod = input.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let profile = own.or_else(|| of_pod.and_then(|c| c.app_armor_profile.as_ref()))?;
    let kind = match profile.type_.as_str() {
        "Unconfined" => ProfileType::Unconfined,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::RuntimeDefault,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref })
}

fn verify_non_root(input: &Input<'_>, run_as_user: Option<i64>) -> Result<(), Error> {
    let pod = pod::full_name(input.pod);
    let container = input.container.name.clone();
    match (run_as_user, input.image_user.uid) {
        (Some(0), _) => Err(Error::RunAsRoot { pod, container }),
        (None, Some(0)) => Err(Error::ImageRunsAsRoot { pod, container }),
        (Some(_), _) | (None, Some(_)) => Ok(()),
        (None, None) if input.image_user.username.is_empty() => {
            Err(Error::ImageRunsAsRoot { pod, container })
        }
        (None, None) => {
            Err(Error::ImageUserUnknown { user: input.image_user.username.clone(), pod, container })
        }
    }
}
