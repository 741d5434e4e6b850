//! Starting and stopping the server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::access::{self, Access};
use crate::admission::Admission;
use crate::admission::dynamic::type_check;
use crate::aggregation::{self, Aggregator};
use crate::attributes::UserInfo;
use crate::audit::Auditor;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::bootstrap;
use crate::custom;
use crate::encryption::Encryption;
use crate::flow::{self, Flow};
use crate::health::Health;
use crate::identity;
use crate::in_process::InProcess;
use crate::metrics::Metrics;
use crate::pki::{self, Pki};
use crate::registry::Registry;
use crate::serve;
use crate::served::Served;
use crate::server::Server;
use crate::strategy::service::range::Network;
use crate::strategy::service::repair;
use crate::subresources::kubelet::Kubelets;
use crate::webhook::{Dial, Webhooks};

/// The store's history is cut this often (`--etcd-compaction-interval`).
const COMPACT_EVERY: Duration = Duration::from_mins(5);

/// Where a node's kubelet answers, from the node's name and object.
pub type NodeAddress = Arc<dyn Fn(&str, &Value) -> Option<KubeletAddress> + Send + Sync>;

/// Where a kubelet answers, and how it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeletAddress {
    /// Where to connect.
    pub address: SocketAddr,
    /// Whether its certificate must be of our authority. Kubelets of elsewhere make their own, which
    /// kube-apiserver does not verify either without `--kubelet-certificate-authority`.
    pub ours: bool,
}

impl KubeletAddress {
    /// The kubelet's usual port.
    const PORT: u16 = 10250;
    /// Types of addresses in the order in which they are tried (`--kubelet-preferred-address-types`).
    const TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];

    /// What a node's status says of its kubelet.
    pub fn reported(node: &Value) -> Option<Self> {
        let status = &node["status"];
        let of_type = |kind: &str| {
            let addresses = status["addresses"].as_array()?.iter();
            let mut found = addresses.filter(|address| address["type"] == kind);
            found.find_map(|address| address["address"].as_str()?.parse().ok())
        };
        let ip: std::net::IpAddr = Self::TYPES.into_iter().find_map(of_type)?;
        let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        Some(Self { address: SocketAddr::new(ip, port.unwrap_or(Self::PORT)), ours: false })
    }
}

/// What an API server needs.
pub struct Config {
    /// Where objects are kept.
    pub store: Store,
    /// Whether other servers may work on that store: then all have the same authority and keys.
    pub shared: bool,
    /// `pki` lies below it.
    pub data_dir: PathBuf,
    /// Bound sockets to serve HTTPS on.
    pub listen: Vec<std::net::TcpListener>,
    /// Addresses of Services.
    pub service_cidr: String,
    /// The endpoint of the `kubernetes` Service.
    pub advertise: SocketAddr,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Further names and addresses in the serving certificate.
    pub extra_sans: Vec<String>,
    /// Where to dial a node's kubelet.
    pub node_address: NodeAddress,
    /// Connects to webhooks and to what is proxied.
    pub dial: Dial,
    /// The files that say who may come in, and who may do what.
    pub access: Access,
    /// `--runtime-config`: versions to serve that are off as they come, `group/version` each.
    pub runtime_config: Vec<String>,
    /// Parts of the control plane that are tasks of this process: `scheduler`, `controller-manager`.
    pub in_process: Vec<String>,
    /// Adds what other parts of this process tell of themselves to the metrics.
    pub metrics: Box<dyn FnOnce(&mut prometheus_client::registry::Registry) + Send>,
    /// Stops the server.
    pub shutdown: CancellationToken,
}

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be read.
    #[error("cannot load the cluster's objects from the store")]
    Store(#[from] store::Error),
    /// Keys and certificates cannot be had.
    #[error("cannot set up the cluster's certificates")]
    Pki(#[from] pki::Error),
    /// The servers on one store cannot have the same keys.
    #[error(transparent)]
    Shared(#[from] pki::shared::Disagreement),
    /// A listening socket cannot be used.
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
    /// The service addresses are no network.
    #[error("{cidr:?} is not a network for Services, such as 10.43.0.0/16")]
    ServiceCidr {
        /// What was given.
        cidr: String,
    },
    /// No such version can be turned on.
    #[error("--runtime-config: {0}")]
    RuntimeConfig(String),
    /// The files about access cannot be used.
    #[error("cannot set up access to the API")]
    Access(#[from] access::Error),
    /// The objects every cluster has cannot be made.
    #[error("cannot create the cluster's first objects: {0}")]
    Bootstrap(#[source] apimachinery::Status),
}

/// A running API server. Clones are handles to the same one.
#[derive(Clone)]
pub struct ApiServer {
    server: Arc<Server>,
    pki: Pki,
    tasks: Arc<Mutex<Option<JoinSet<()>>>>,
}

impl ApiServer {
    /// Loads everything, creates what every cluster has, and serves.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let network = Network::parse(&config.service_cidr)
            .ok_or_else(|| Error::ServiceCidr { cidr: config.service_cidr.clone() })?;
        let service_ip = network.first();
        let access = &config.access;
        let encryption = access
            .encryption()?
            .map(|configuration| Arc::new(Encryption::new(configuration, config.store.clone())));
        if let Some(encryption) = &encryption {
            encryption.prime().await;
        }
        let mut metrics = Metrics::default();
        metrics.add(config.metrics);
        let store = encryption.as_ref().map_or_else(|| config.store.clone(), Encryption::store);
        let store = metrics.observe(store);
        let keys = config.data_dir.join("pki");
        if config.shared {
            pki::shared::agree(&store, &keys).await?;
            if let Some(encryption) = &encryption {
                pki::shared::refresh(&store, encryption).await?;
            }
        }
        let pki = Pki::load_or_create(&keys)?;
        let registry = Registry::load(
            store,
            Served::enabling(&config.runtime_config).map_err(Error::RuntimeConfig)?,
            network,
            Webhooks::new(config.dial),
            encryption,
        )
        .await?;
        metrics.count(registry.caches());
        custom::controller::publish(&registry).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(registry.caches().clone().follow(config.shutdown.clone()));
        let authorizer = Authorizer::with_chain(registry.clone(), access.authorization()?);
        let authenticator = Authenticator::new(
            pki.clone(),
            registry.clone(),
            access.static_tokens()?,
            access.authentication()?,
        );
        let auditor = Auditor::open(&access.audit, &registry).map_err(access::Error::from)?;
        let auditor = auditor.map(Arc::new);
        if let Some(auditor) = &auditor {
            tasks.spawn(auditor.clone().run(config.shutdown.clone()));
        }
        let options = bootstrap::Options {
            service_cidr: config.service_cidr.clone(),
            service_ip,
            advertise: config.advertise,
            ca_pem: pki.ca_pem().to_owned(),
            front_proxy_ca_pem: pki.front_proxy_ca_pem().to_owned(),
        };
        bootstrap::run(&registry, &options).await.map_err(Error::Bootstrap)?;
        repair::once(&registry).await.map_err(Error::Bootstrap)?;
        let kubelets = Kubelets::new(
            pki.clone(),
            registry.clone(),
            config.node_address,
            config.shutdown.clone(),
        )?;
        let aggregator = Arc::new(Aggregator::new(registry.clone(), pki.clone())?);
        let flow = Arc::new(Flow::new(registry.clone()));
        metrics.add(|registry| flow.register(registry));
        let server = Arc::new(Server {
            kubelets,
            flow: flow.clone(),
            aggregator: aggregator.clone(),
            auditor,
            in_process: config.in_process,
            admission: Admission::new(registry.clone(), authorizer.clone()),
            registry,
            authenticator,
            authorizer,
            metrics,
            health: Health::default(),
            advertise: config.advertise.to_string(),
            jwks: pki.tokens().jwks(),
            stopping: config.shutdown.clone(),
        });
        let advertise = config.advertise.ip();
        let sans =
            pki::serving_sans(service_ip, advertise, &config.cluster_domain, &config.extra_sans);
        let tls = TlsAcceptor::from(Arc::new(pki.server_config(&pki.serving(&sans)?)?));
        for listener in config.listen {
            listener.set_nonblocking(true).map_err(Error::Listen)?;
            let listener = TcpListener::from_std(listener).map_err(Error::Listen)?;
            tasks.spawn(serve::listen(
                listener,
                tls.clone(),
                server.clone(),
                config.shutdown.clone(),
            ));
        }
        tasks.spawn(custom::controller::run(server.registry.clone(), config.shutdown.clone()));
        tasks.spawn(repair::run(server.registry.clone(), options, config.shutdown.clone()));
        tasks.spawn(type_check::run(server.registry.clone(), config.shutdown.clone()));
        if let Some(encryption) = server.registry.encryption() {
            let shutdown = config.shutdown.clone();
            tasks.spawn(async move { encryption.keep(shutdown).await });
        }
        let reload = config.access.encryption_reload;
        tasks.spawn(access::follow(server.clone(), reload, config.shutdown.clone()));
        tasks.spawn(flow::run(flow, config.shutdown.clone()));
        tasks.spawn(aggregation::run(aggregator, config.shutdown.clone()));
        // Servers on one store are told apart by the name that each has for itself.
        if let Some(host) = config.extra_sans.into_iter().next() {
            let registry = server.registry.clone();
            tasks.spawn(identity::run(registry, host, config.shutdown.clone()));
        }
        tasks.spawn(compact(server.registry.clone(), config.shutdown));
        server.health.set_bootstrapped();
        Ok(Self { server, pki, tasks: Arc::new(Mutex::new(Some(tasks))) })
    }

    /// The cluster's certificates and keys.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The API as `user` sees it, in process.
    pub fn as_user(&self, user: UserInfo) -> InProcess {
        InProcess::new(self.server.clone(), user)
    }

    /// Where its objects are.
    #[cfg(test)]
    pub fn registry(&self) -> &Registry {
        &self.server.registry
    }

    /// Waits until reads show everything that was stored before the start.
    pub async fn ready(&self) {
        let _ = self.server.registry.sync().await;
    }

    /// Stops: watches end, open requests get a moment to finish.
    pub async fn shutdown(&self) {
        self.server.health.set_stopping();
        self.server.stopping.cancel();
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks {
            tasks.join_all().await;
        }
    }
}

/// Forgets the store's history of more than an interval ago.
async fn compact(registry: Registry, shutdown: CancellationToken) {
    let mut before = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(COMPACT_EVERY) => {}
        }
        if let Some(revision) = before
            && let Err(error) = registry.compact(revision).await
        {
            tracing::warn!(%error, "cannot compact the store");
        }
        before = registry.store().revision().await.ok();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kubelets_are_where_their_nodes_say() {
        let node = |addresses: Value, port: Value| {
            json!({"status": {"addresses": addresses,
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}})
        };
        let internal = json!([{"type": "Hostname", "address": "n"},
            {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "10.0.0.7"}]);
        let cases = [
            (node(internal.clone(), json!(10255)), Some("10.0.0.7:10255")),
            (node(internal, json!(null)), Some("10.0.0.7:10250")),
            (node(json!([{"type": "Hostname", "address": "n"}]), json!(1)), None),
            (json!({}), None),
        ];
        for (node, want) in cases {
            let found = KubeletAddress::reported(&node).map(|found| found.address.to_string());
            assert_eq!(found.as_deref(), want, "{node}");
        }
    }
}
