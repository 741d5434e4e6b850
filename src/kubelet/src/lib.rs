//! The kubelet: registers the node, runs the pods bound to it, tells the API what became of them,
//! and serves logs, exec and the like to the API server.
//!
//! It speaks to the API through a [`kube::Client`] and to containers through CRI, and to nothing
//! else; it makes no namespace and pulls no layer itself. Nothing it knows is needed to start
//! again: spec comes from the API, the rest from the runtime.
//!
//! Where to start: `worker` (one task per pod: look, decide, act), `decide` and `status` (the pure
//! core), `volumes`, `node`, `server`.

mod admission;
mod api;
mod background;
mod backoff;
mod certificates;
mod claims;
mod clock;
mod conditions;
mod configuration;
mod container;
mod context;
mod counters;
mod credentials;
mod cri;
mod csi;
mod decide;
mod device;
mod dns;
mod end;
mod env;
mod env_file;
mod eviction;
mod fields;
mod file;
mod hooks;
mod image;
mod labels;
mod logs;
mod node;
mod objects;
mod observe;
mod own_node;
mod pod;
mod pods;
mod preemption;
mod prepare;
mod probe;
mod quantity;
mod report;
mod resize;
mod resources;
mod restart_all;
mod sandbox;
mod server;
mod shutdown;
mod start;
mod static_pods;
mod status;
mod termination;
mod token;
mod usage;
mod volumes;
mod worker;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod loop_tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use client::{Informers, Recorder};
use k8s_openapi::api::core::v1::{Service, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use configuration::{
    Configuration, Error as ConfigurationError, Limits, read as read_configuration,
};
pub use context::Dialer;
pub use cri::{Cri, Error as CriError};
pub use file::Error as FileError;
pub use shutdown::{Ending, Periods};

use clock::Clock;
use context::Context;
use objects::Objects;
use token::Tokens;

/// The level of the API this kubelet speaks; the node tells it as its version.
pub const VERSION: &str = "v1.36.0";

/// Keys and certificates of the kubelet's server, PEM.
#[derive(Clone)]
pub struct Tls {
    /// The server's certificate chain.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
    /// The authority of client certificates.
    pub client_ca_pem: String,
}

/// Checks a list of eviction thresholds, `signal<quantity` separated by commas.
pub fn check_eviction_hard(text: &str) -> Result<(), Error> {
    eviction::threshold::parse(text).map(drop).map_err(Error::Eviction)
}

/// Checks what is to be kept from pods, `resource=quantity` separated by commas.
pub fn check_system_reserved(text: &str) -> Result<(), Error> {
    reserved(text).map(drop)
}

/// Checks the configuration of plugins that know registry credentials, and that the plugins are there.
pub fn check_image_credential_providers(config: &Path, folder: &Path) -> Result<(), Error> {
    image::provider::Providers::read(config, folder).map(drop).map_err(Error::Providers)
}

/// Whether the machine has swap (proc(5), swaps): the first line is a heading.
#[must_use]
pub fn swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn reserved(text: &str) -> Result<BTreeMap<String, Quantity>, Error> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let read = |part: &str| {
        let (name, amount) = part.split_once('=')?;
        let amount = Quantity(amount.trim().to_owned());
        quantity::milli(&amount).filter(|milli| *milli >= 0)?;
        Some((name.trim().to_owned(), amount))
    };
    parts.map(|part| read(part).ok_or_else(|| Error::Reserved(part.to_owned()))).collect()
}

/// Everything a kubelet needs.
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// The API, as this node.
    pub client: Client,
    /// The process's shared watches; of these the kubelet reads services.
    pub informers: Informers,
    /// The runtime.
    pub cri: Cri,
    /// Where volumes and the like are kept.
    pub root_dir: PathBuf,
    /// Where pod logs are kept.
    pub pod_log_dir: PathBuf,
    /// The file that holds what the kubelet itself logs, if there is one.
    pub own_log: Option<PathBuf>,
    /// The folder of static pods' manifests.
    pub static_pods: Option<PathBuf>,
    /// Where the kubelet's server listens.
    pub listen: std::net::TcpListener,
    /// The server's identity.
    pub tls: Tls,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// Connections to pods.
    pub dialer: Arc<dyn Dialer>,
    /// Labels of the node beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints the node registers with.
    pub taints: Vec<Taint>,
    /// Most pods; upstream's default is 110.
    pub max_pods: u32,
    /// Most processes of a pod, as upstream's `--pod-max-pids`; none for no limit.
    pub pod_pids_limit: Option<u32>,
    /// What of the node is kept from pods, as upstream's `--system-reserved`: `cpu=500m,memory=1Gi`.
    pub system_reserved: Option<String>,
    /// The same for Kubernetes' own programs, as upstream's `kubeReserved`.
    pub kube_reserved: Option<String>,
    /// Sysctls that pods may set beside the safe ones, as upstream's `--allowed-unsafe-sysctls`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Below what the node is under pressure, as upstream's `--eviction-hard`; none for the defaults.
    pub eviction_hard: Option<String>,
    /// Plugins that know registry credentials, as upstream's `--image-credential-provider-config` and
    /// `--image-credential-provider-bin-dir`.
    pub image_credential_providers: Option<(PathBuf, PathBuf)>,
    /// Images pulled at the same time, as upstream's `maxParallelImagePulls`; none for no limit.
    pub max_parallel_image_pulls: Option<u32>,
    /// Most pods for each processor, as upstream's `podsPerCore`.
    pub pods_per_core: Option<u32>,
    /// Bounds that have defaults.
    pub limits: Limits,
    /// Where CSI drivers that have registered are written down.
    pub drivers: Arc<plugin::Drivers>,
    /// How long pods have when the node ends.
    pub shutdown_periods: Periods,
    /// Tells of the node's end.
    pub ending: Ending,
}

/// Why a kubelet does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made.
    #[error("create the kubelet's directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runtime does not answer.
    #[error("ask the container runtime for its version")]
    Runtime(#[source] CriError),
    /// A reservation is none.
    #[error("system reservation: {0:?} is not resource=quantity")]
    Reserved(String),
    /// The plugins for registry credentials cannot be used.
    #[error("image credential providers")]
    Providers(#[from] file::Error),
    /// A threshold is not one.
    #[error("eviction thresholds: {0}")]
    Eviction(String),
    /// The server cannot be started.
    #[error(transparent)]
    Server(#[from] server::Error),
}

fn thresholds(config: &Config) -> Result<eviction::Rules, Error> {
    use eviction::threshold::{Thresholds, defaults, parse};
    let hard = match &config.eviction_hard {
        None => defaults(),
        Some(text) => {
            let limits = &config.limits;
            let mut all = if limits.merge_thresholds { defaults() } else { Thresholds::new() };
            all.extend(parse(text).map_err(Error::Eviction)?);
            all
        }
    };
    Ok(eviction::Rules { hard, soft: config.limits.soft.clone() })
}

/// What goes to single tasks of the kubelet, and not to all.
struct Parts {
    settings: node::Settings,
    listen: server::Listen,
    periods: Periods,
    workers: pods::Workers,
    /// Its informers end with it.
    informers: Informers,
}

/// Runs the kubelet until `shutdown`. Containers are left running; the next kubelet finds them.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (context, parts) = context(config).await?;
    let Parts { settings, listen, periods, workers, informers } = parts;
    tokio::join!(
        node::run(context.clone(), settings, shutdown.clone()),
        pods::run(context.clone(), workers.clone(), shutdown.clone()),
        logs::rotate::run(context.clone(), shutdown.clone()),
        csi::run(context.clone(), shutdown.clone()),
        device::run(context.clone(), shutdown.clone()),
        eviction::run(context.clone(), workers.clone(), shutdown.clone()),
        server::run(context.clone(), workers.clone(), listen, shutdown.clone()),
        shutdown::run(context, workers, periods, shutdown.clone()),
    );
    drop(informers);
    Ok(())
}

/// Makes what of the kubelet is on the disk.
fn folders(config: &Config) -> Result<(), Error> {
    let links = logs::links::folder(&config.root_dir);
    for path in [&config.root_dir, &config.pod_log_dir, &links] {
        std::fs::create_dir_all(path)
            .map_err(|source| Error::Directory { path: path.clone(), source })?;
    }
    Ok(())
}

fn kept(config: &Config) -> Result<Vec<(String, Quantity)>, Error> {
    let mut kept = Vec::new();
    for text in [&config.system_reserved, &config.kube_reserved] {
        kept.extend(reserved(text.as_deref().unwrap_or_default())?);
    }
    Ok(kept)
}

fn images(config: &Config) -> Result<image::Getting, Error> {
    let providers = match &config.image_credential_providers {
        Some((file, folder)) => image::provider::Providers::read(file, folder)?,
        None => image::provider::Providers::default(),
    };
    let most = config.max_parallel_image_pulls;
    Ok(image::Getting::new(&config.root_dir, providers, most, &config.limits))
}

async fn context(config: Config) -> Result<(Arc<Context>, Parts), Error> {
    folders(&config)?;
    let (thresholds, reserved, images) = (thresholds(&config)?, kept(&config)?, images(&config)?);
    let version = k8s_cri::v1::VersionRequest { version: "v1".into() };
    let runtime_name = config.cri.version(version).await.map_err(Error::Runtime)?.runtime_name;
    let listen = server::Listen::new(config.listen, &config.tls)?;
    let machine = node::machine::read();
    let of_cores = config.pods_per_core.map(|pods| pods.saturating_mul(machine.cpus as u32));
    let max_pods = of_cores.map_or(config.max_pods, |most| most.min(config.max_pods));
    let settings = node::Settings {
        taints: config.taints,
        port: listen.port(),
        max_pods,
        kubelet_version: VERSION.into(),
    };
    let mut node_labels = node::well_known_labels(&config.node_name);
    node_labels.extend(config.labels);
    let workers = pods::Workers::default();
    let woken = workers.clone();
    let capacity = node::machine::capacity(&machine, &config.root_dir, max_pods);
    let context = Context {
        recorder: Recorder::new(config.client.clone(), "kubelet", &config.node_name),
        objects: Objects::new(&config.client, Arc::new(move |uid: &str| woken.wake(uid))),
        tokens: Tokens::new(config.client.clone()),
        certificates: certificates::Certificates::new(config.client.clone()),
        services: config.informers.get::<Service>(),
        devices: device::Devices::new(&config.root_dir),
        claims: claims::InUse::new(&config.root_dir),
        own_node: own_node::OwnNode::watch(&config.client, &config.node_name),
        node_name: config.node_name,
        node_ip: config.node_ip,
        root_dir: config.root_dir,
        pod_log_dir: config.pod_log_dir,
        own_log: config.own_log,
        static_pods: config.static_pods,
        cluster_dns: config.cluster_dns,
        cluster_domain: config.cluster_domain,
        client: config.client,
        cri: config.cri,
        runtime_name,
        dialer: config.dialer,
        machine,
        pod_pids_limit: config.pod_pids_limit,
        reserved,
        security: admission::Security {
            sysctls: config.allowed_unsafe_sysctls,
            apparmor: node::machine::line("/sys/module/apparmor/parameters/enabled") == "Y",
        },
        images,
        drivers: config.drivers,
        node_changed: tokio::sync::Notify::new(),
        staging: tokio::sync::Mutex::default(),
        thresholds,
        pressure: eviction::Pressure::lasting(config.limits.pressure),
        limits: config.limits,
        usage: usage::Sampler::default(),
        counters: counters::Counters::default(),
        allocatable: RwLock::new(capacity),
        node_labels,
        workers: workers.clone(),
        admitted: Mutex::new(HashMap::new()),
        ending: config.ending,
        clock: Clock::System,
    };
    let informers = config.informers;
    let parts = Parts { settings, listen, periods: config.shutdown_periods, workers, informers };
    Ok((Arc::new(context), parts))
}
