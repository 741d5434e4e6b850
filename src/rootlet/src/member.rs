//! A node as a member of a cluster: what its kubelet is run with, whether the cluster is our own or another.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use cli::args::Kubelet;
use client::Informers;

use crate::paths::Paths;

/// What a kubelet is told by the cluster it belongs to; `kubelet::Config` says what each means.
pub struct Member {
    pub node_name: String,
    pub client: kube::Client,
    pub cri: kubelet::Cri,
    /// The file that the process logs to, if there is one.
    pub own_log: Option<PathBuf>,
    pub listen: TcpListener,
    pub tls: kubelet::Tls,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub node_ip: IpAddr,
    pub dialer: Arc<dyn kubelet::Dialer>,
    pub labels: BTreeMap<String, String>,
    /// Tells of the node's end.
    pub ending: kubelet::Ending,
    /// The CSI drivers of the node.
    pub drivers: Arc<plugin::Drivers>,
}

impl Member {
    /// With what the user says of the node, and where its files are.
    pub fn config(self, flags: &Kubelet, paths: &Paths) -> kubelet::Config {
        // What is mistyped was told before.
        let shutdown_periods = shutdown_periods(flags).unwrap_or_default();
        let flags = flags.clone();
        kubelet::Config {
            node_name: self.node_name,
            informers: Informers::new(self.client.clone()),
            client: self.client,
            cri: self.cri,
            root_dir: paths.data.join("kubelet"),
            pod_log_dir: paths.data.join("logs"),
            own_log: self.own_log,
            listen: self.listen,
            tls: self.tls,
            cluster_dns: self.cluster_dns,
            cluster_domain: self.cluster_domain,
            node_ip: self.node_ip,
            dialer: self.dialer,
            labels: self.labels,
            taints: Vec::new(),
            max_pods: flags.max_pods.unwrap_or(MAX_PODS),
            static_pods: flags.pod_manifest_path,
            pod_pids_limit: flags.pod_max_pids,
            system_reserved: flags.system_reserved,
            allowed_unsafe_sysctls: flags.allowed_unsafe_sysctls,
            shutdown_periods,
            ending: self.ending,
            drivers: self.drivers,
            eviction_hard: flags.eviction_hard,
            image_credential_providers: flags
                .image_credential_provider_config
                .zip(flags.image_credential_provider_bin_dir),
            max_parallel_image_pulls: flags.max_parallel_image_pulls,
        }
    }
}

/// Upstream's default.
const MAX_PODS: u32 = 110;

/// How long pods have when the node ends.
///
/// # Errors
/// What the flags say is no such thing.
pub fn shutdown_periods(flags: &Kubelet) -> anyhow::Result<kubelet::Periods> {
    let periods = kubelet::Periods::parse(
        flags.shutdown_grace_period.as_deref(),
        flags.shutdown_grace_period_critical_pods.as_deref(),
        flags.shutdown_grace_period_by_pod_priority.as_deref(),
    );
    periods.map_err(|error| anyhow::anyhow!("--shutdown-grace-period: {error}"))
}

/// The flags as a process in another folder can use them; what is mistyped is told before anything starts.
pub fn checked(flags: &Kubelet) -> anyhow::Result<Kubelet> {
    if let Some(thresholds) = &flags.eviction_hard {
        kubelet::check_eviction_hard(thresholds).context("--eviction-hard")?;
    }
    if let Some(reserved) = &flags.system_reserved {
        kubelet::check_system_reserved(reserved).context("--system-reserved")?;
    }
    shutdown_periods(flags)?;
    let mut flags = flags.clone();
    for path in
        [&mut flags.image_credential_provider_config, &mut flags.image_credential_provider_bin_dir]
            .into_iter()
            .flatten()
    {
        *path = std::path::absolute(&path).context("--image-credential-provider-config")?;
    }
    if let (Some(config), Some(folder)) =
        (&flags.image_credential_provider_config, &flags.image_credential_provider_bin_dir)
    {
        kubelet::check_image_credential_providers(config, folder)
            .context("--image-credential-provider-config")?;
    }
    if let Some(folder) = &mut flags.pod_manifest_path {
        *folder = std::path::absolute(&folder).context("--pod-manifest-path")?;
    }
    Ok(flags)
}
