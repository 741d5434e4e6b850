//! What a cluster is started with; kept beside its data so that the next start finds the same ports.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use cli::access::Access;
use cli::args::{Component, Kubelet};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// Handed from `up` to the processes it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The folders.
    pub paths: Paths,
    /// State in memory only.
    pub ephemeral: bool,
    /// The store elsewhere that has the state.
    #[serde(default)]
    pub store: Option<StoreAddress>,
    /// The API server's port on loopback: asked for, or used the last time.
    pub api_port: Option<u16>,
    /// Whether the user named that port, so that no other will do.
    pub api_port_fixed: bool,
    /// The kubelet's port on loopback, used the last time.
    pub kubelet_port: Option<u16>,
    /// Whether pods and services have IPv6 addresses as well, where the kernel allows it.
    #[serde(default)]
    pub dual_stack: bool,
    /// Whether the cluster knows IPv6 addresses alone; then pods have IPv4 ones for the way out.
    #[serde(default)]
    pub ipv6_only: bool,
    /// Addresses of the host on which node ports and host ports are offered.
    #[serde(default = "loopback")]
    pub publish: Vec<IpAddr>,
    /// Flags of the kubelet.
    #[serde(default)]
    pub kubelet: Kubelet,
    /// Of a runtime alone: pods that want the host's network get the node's.
    #[serde(default)]
    pub host_network_within: bool,
    /// Where the configuration of CNI plugins is, if pods get their network by them.
    #[serde(default)]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the plugins are.
    #[serde(default)]
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Whether Ingresses are served.
    #[serde(default)]
    pub ingress: bool,
    /// The folder of manifests that is kept applied.
    #[serde(default)]
    pub manifests: Option<PathBuf>,
    /// The CRI socket of somebody else's runtime, instead of our own.
    #[serde(default)]
    pub runtime_endpoint: Option<PathBuf>,
    /// `registries.yaml`.
    pub registries: Option<PathBuf>,
    /// The scheduler's KubeSchedulerConfiguration.
    #[serde(default)]
    pub scheduler_config: Option<PathBuf>,
    /// Whether the scheduler and the controllers hold Leases while they work.
    #[serde(default)]
    pub leader_elect: bool,
    /// Which controllers run, as `--controllers` says.
    #[serde(default = "all_controllers")]
    pub controllers: Vec<String>,
    /// Components that somebody else runs.
    #[serde(default)]
    pub disabled: Vec<Component>,
    /// Files that say who may come in and who may do what.
    #[serde(default)]
    pub access: Access,
    /// Where the user's own kubeconfig has this cluster's context, if it was added.
    pub merged_into: Option<PathBuf>,
    /// What was not there before that: the kubeconfig, or a folder that it is in.
    #[serde(default)]
    pub created: Option<PathBuf>,
}

/// A store that is not the cluster's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreAddress {
    /// Such as `etcd://127.0.0.1:2379`.
    pub address: String,
    /// Authorities, in PEM.
    pub ca: Option<PathBuf>,
    /// The client's certificate, in PEM.
    pub cert: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
}

/// Only programs on the host itself.
pub fn loopback() -> Vec<IpAddr> {
    vec![Ipv4Addr::LOCALHOST.into()]
}

fn all_controllers() -> Vec<String> {
    vec!["*".to_owned()]
}

impl Settings {
    /// Whether `component` is ours to run.
    pub fn runs(&self, component: Component) -> bool {
        !self.disabled.contains(&component)
    }

    /// Whether the pods are to be run by our own runtime.
    pub fn own_runtime(&self) -> bool {
        self.runs(Component::Kubelet) && self.runtime_endpoint.is_none()
    }

    /// Reads settings. `None` when there are none.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} is damaged; remove it to start with defaults", path.display())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes them, all or nothing.
    pub fn write(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("settings are plain data")?;
        cli::kubeconfig::write(&self.paths.settings(), &text)?;
        Ok(())
    }
}
