//! What the kubelet asks of a pod's spec, with the API's defaults filled in.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

/// Where a pod comes from: `api`, or `file` of a static one.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// What tells a static pod's manifest from others.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// On a mirror pod, the hash of the static pod it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Grace period where the spec names none.
pub const DEFAULT_GRACE_PERIOD_SECONDS: i64 = 30;

/// What happens to a container that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Started again whatever its exit code.
    Always,
    /// Started again when it failed.
    OnFailure,
    /// Left alone.
    Never,
}

/// Which list of the spec a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `spec.initContainers`
    Init,
    /// `spec.containers`
    Regular,
    /// `spec.ephemeralContainers`
    Ephemeral,
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The pod's uid.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as upstream's messages call a pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The pod's restart policy.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    parse_policy(pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()))
}

/// A restart policy's name; absent means `Always`.
pub fn parse_policy(text: Option<&str>) -> RestartPolicy {
    match text {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// Init containers, in order.
pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// Regular containers, in order.
pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// Ephemeral containers, in order.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// Every container of the pod with its kind; ephemeral ones in the shape of ordinary ones.
pub fn all_containers(pod: &Pod) -> Vec<(Kind, Container)> {
    let init = init_containers(pod).iter().cloned().map(|c| (Kind::Init, c));
    let regular = containers(pod).iter().cloned().map(|c| (Kind::Regular, c));
    let ephemeral =
        ephemeral_containers(pod).iter().map(|c| (Kind::Ephemeral, ephemeral_as_container(c)));
    init.chain(regular).chain(ephemeral).collect()
}

/// The container called `name`, of whatever kind.
pub fn find_container(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    all_containers(pod).into_iter().find(|(_, c)| c.name == name)
}

/// A sidecar: an init container that stays.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// A pod from a manifest on the node.
pub fn is_static(pod: &Pod) -> bool {
    !is_mirror(pod)
        && pod.metadata.annotations.as_ref().and_then(|a| a.get(CONFIG_SOURCE)).map(String::as_str)
            == Some("file")
}

/// The API's picture of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CONFIG_MIRROR))
}

/// `hostNetwork: true`.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// Where the container leaves its last words.
pub fn termination_message_path(container: &Container) -> &str {
    match container.termination_message_path.as_deref() {
        None | Some("") => "/dev/termination-log",
        Some(path) => path,
    }
}

/// The grace period in force: of the deletion, else of the spec.
pub fn grace_period_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(DEFAULT_GRACE_PERIOD_SECONDS)
}

/// Whether the API holds the pod as finished.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The field path of a container for events: `spec.containers{name}`.
pub fn field_path(kind: Kind, name: &str) -> String {
    let list = match kind {
        Kind::Init => "initContainers",
        Kind::Regular => "containers",
        Kind::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}

/// An ephemeral container in the shape of an ordinary one; only its target is lost.
pub fn ephemeral_as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: None,
        name: e.name,
        ports: e.ports,
        readiness_probe: None,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: None,
        restart_policy_rules: None,
        security_context: e.security_context,
        startup_probe: None,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}
