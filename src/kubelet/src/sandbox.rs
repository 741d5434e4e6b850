//! The CRI configuration of a pod's sandbox. Pure.
//!
//! Source of behaviour: `kuberuntime_sandbox.go`, `kuberuntime_sandbox_linux.go`.

use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Pod, SeccompProfile};

use crate::admission::sysctl_name;
use crate::dns::{self, Cluster, ResolvConf};
use crate::resources::{self, Basis};
use crate::{labels, pod};

/// Where the pod's logs are: `<logs>/<namespace>_<name>_<uid>`.
pub fn log_directory(logs: &Path, pod: &Pod) -> PathBuf {
    logs.join(format!("{}_{}_{}", pod::namespace(pod), pod::name(pod), pod::uid(pod)))
}

/// The sandbox's configuration, being the `attempt`th.
pub fn config(
    pod: &Pod,
    attempt: u32,
    logs: &Path,
    host: &ResolvConf,
    cluster: &Cluster<'_>,
) -> cri::PodSandboxConfig {
    let hostname = if pod::host_network(pod) {
        String::new()
    } else {
        dns::kernel_hostname(pod, cluster.domain)
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod::name(pod).into(),
            uid: pod::uid(pod).into(),
            namespace: pod::namespace(pod).into(),
            attempt,
        }),
        hostname,
        log_directory: log_directory(logs, pod).display().to_string(),
        dns_config: Some(dns::config(pod, host, cluster)),
        port_mappings: port_mappings(pod),
        labels: labels::for_sandbox(pod),
        annotations: labels::sandbox_annotations(pod),
        linux: Some(linux(pod)),
    }
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let ports = pod::all_containers(pod).into_iter().flat_map(|(_, c)| c.ports.unwrap_or_default());
    ports
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.unwrap_or_default(),
        })
        .collect()
}

/// The namespaces the pod shares with the node, or its containers with each other.
pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod as PodMode};

    let spec = pod.spec.as_ref();
    let mode = |on: Option<bool>, yes: cri::NamespaceMode, no: cri::NamespaceMode| {
        (if on.unwrap_or(false) { yes } else { no }) as i32
    };
    let pid = if spec.and_then(|s| s.host_pid).unwrap_or(false) {
        Node as i32
    } else {
        mode(spec.and_then(|s| s.share_process_namespace), PodMode, Container)
    };
    let user = spec.and_then(|s| s.host_users) == Some(false);
    cri::NamespaceOption {
        network: mode(spec.and_then(|s| s.host_network), Node, PodMode),
        pid,
        ipc: mode(spec.and_then(|s| s.host_ipc), Node, PodMode),
        target_id: String::new(),
        userns_options: user
            .then(|| cri::UserNamespace { mode: PodMode as i32, ..Default::default() }),
    }
}

fn linux(pod: &Pod) -> cri::LinuxPodSandboxConfig {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let privileged = pod::all_containers(pod)
        .iter()
        .any(|(_, c)| c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false));
    let value = |v: Option<i64>| v.map(|value| cri::Int64Value { value });
    let mut groups: Vec<i64> = context.and_then(|c| c.fs_group).into_iter().collect();
    groups.extend(context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default());
    let sysctls = context.and_then(|c| c.sysctls.as_deref()).unwrap_or_default();
    cri::LinuxPodSandboxConfig {
        cgroup_parent: cgroup_parent(pod),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod)),
            run_as_user: value(context.and_then(|c| c.run_as_user)),
            run_as_group: value(context.and_then(|c| c.run_as_group)),
            supplemental_groups: groups,
            supplemental_groups_policy: groups_policy(pod) as i32,
            privileged,
            seccomp: Some(seccomp(context.and_then(|c| c.seccomp_profile.as_ref()))),
            ..Default::default()
        }),
        sysctls: sysctls.iter().map(|s| (sysctl_name(&s.name), s.value.clone())).collect(),
        overhead: None,
        resources: None,
    }
}

/// What all of the pod may use, and how many processes it may have.
pub fn limits(of: &Pod, basis: Basis, processes: Option<u32>) -> cri::LinuxContainerResources {
    let mut resources = resources::for_sandbox(of, basis);
    if let Some(processes) = processes {
        resources.unified.insert("pids.max".into(), processes.to_string());
    }
    resources
}

/// How groups of the image's own files count.
pub fn groups_policy(pod: &Pod) -> cri::SupplementalGroupsPolicy {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    match context.and_then(|c| c.supplemental_groups_policy.as_deref()) {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    }
}

/// A seccomp profile for CRI; without one, the runtime's default.
pub fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile.map(|p| p.type_.as_str()) {
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => (
            ProfileType::Localhost,
            profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default(),
        ),
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

fn cgroup_parent(pod: &Pod) -> String {
    let uid = pod::uid(pod);
    match resources::qos_class(pod) {
        "Guaranteed" => format!("/kubepods/pod{uid}"),
        "Burstable" => format!("/kubepods/burstable/pod{uid}"),
        _ => format!("/kubepods/besteffort/pod{uid}"),
    }
}
