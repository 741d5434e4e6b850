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
        let configured = configuration(flags).unwrap_or_default();
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
            taints: configured.taints,
            max_pods: flags.max_pods.or(configured.max_pods).unwrap_or(MAX_PODS),
            pods_per_core: configured.pods_per_core,
            static_pods: flags.pod_manifest_path.or(configured.static_pods),
            pod_pids_limit: flags.pod_max_pids.or(configured.pod_pids_limit),
            system_reserved: flags.system_reserved.or(configured.system_reserved),
            kube_reserved: configured.kube_reserved,
            allowed_unsafe_sysctls: if flags.allowed_unsafe_sysctls.is_empty() {
                configured.allowed_unsafe_sysctls
            } else {
                flags.allowed_unsafe_sysctls
            },
            shutdown_periods,
            ending: self.ending,
            drivers: self.drivers,
            eviction_hard: flags.eviction_hard.or(configured.eviction_hard),
            image_credential_providers: flags
                .image_credential_provider_config
                .zip(flags.image_credential_provider_bin_dir),
            max_parallel_image_pulls: flags
                .max_parallel_image_pulls
                .or(configured.max_parallel_image_pulls),
            limits: configured.limits,
        }
    }
}

/// Upstream's default.
const MAX_PODS: u32 = 110;

/// What the files of `--kubelet-config` say; nothing where there are none.
///
/// # Errors
/// They say what cannot be, or what this kubelet does not do.
pub fn configuration(
    flags: &Kubelet,
) -> Result<kubelet::Configuration, kubelet::ConfigurationError> {
    if flags.configuration.is_null() {
        return Ok(kubelet::Configuration::default());
    }
    kubelet::Configuration::of(&flags.configuration)
}

/// How long pods have when the node ends.
///
/// # Errors
/// What the flags say is no such thing.
pub fn shutdown_periods(flags: &Kubelet) -> anyhow::Result<kubelet::Periods> {
    let own = (
        flags.shutdown_grace_period.clone(),
        flags.shutdown_grace_period_critical_pods.clone(),
        flags.shutdown_grace_period_by_pod_priority.clone(),
    );
    let (whole, critical, by_priority) = match own {
        (None, None, None) => configuration(flags).unwrap_or_default().shutdown,
        own => own,
    };
    let periods =
        kubelet::Periods::parse(whole.as_deref(), critical.as_deref(), by_priority.as_deref());
    periods.map_err(|error| anyhow::anyhow!("--shutdown-grace-period: {error}"))
}

/// Reads the files of `--kubelet-config`, and tells what of them is without effect.
fn read_configuration(flags: &mut Kubelet, unused: &[&str]) -> anyhow::Result<()> {
    let (file, folder) = (flags.kubelet_config.take(), flags.kubelet_config_dir.take());
    if file.is_none() && folder.is_none() {
        return Ok(());
    }
    flags.configuration = kubelet::read_configuration(file.as_deref(), folder.as_deref())?;
    let configured = configuration(flags)?;
    if configured.limits.fail_swap_on && kubelet::swaps() {
        anyhow::bail!(
            "failSwapOn: running with swap on is not supported, please disable swap or set failSwapOn to false"
        );
    }
    let unused = unused.iter().filter(|pointer| flags.configuration.pointer(pointer).is_some());
    let unused = unused.map(|pointer| pointer.trim_start_matches('/').replace('/', "."));
    let without_effect: Vec<String> = unused.chain(configured.without_effect).collect();
    if !without_effect.is_empty() {
        eprintln!("note: --kubelet-config: without effect here: {}", without_effect.join(", "));
    }
    Ok(())
}

/// What a kubelet's configuration says of the cluster it belongs to, which our own cluster says itself.
pub const OF_THE_CLUSTER: [&str; 3] =
    ["/authentication/x509/clientCAFile", "/clusterDNS", "/clusterDomain"];

/// The flags as a process in another folder can use them; what is mistyped is told before anything starts. `unused` are
/// places in a configuration's file that have no effect for this node.
pub fn checked(flags: &Kubelet, unused: &[&str]) -> anyhow::Result<Kubelet> {
    if let Some(thresholds) = &flags.eviction_hard {
        kubelet::check_eviction_hard(thresholds).context("--eviction-hard")?;
    }
    if let Some(reserved) = &flags.system_reserved {
        kubelet::check_system_reserved(reserved).context("--system-reserved")?;
    }
    let mut flags = flags.clone();
    read_configuration(&mut flags, unused).context("--kubelet-config")?;
    shutdown_periods(&flags)?;
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
    let of_file = configuration(&flags)?.static_pods;
    flags.pod_manifest_path = flags.pod_manifest_path.or(of_file);
    if let Some(folder) = &mut flags.pod_manifest_path {
        *folder = std::path::absolute(&folder).context("--pod-manifest-path")?;
    }
    Ok(flags)
}
