//! API groups that other servers serve: an APIService names the group, its version and the Service
//! behind which the server answers; requests for it are passed on with the user's name.
//!
//! Source: `k8s.io/kube-aggregator/pkg/apiserver` and
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/>.

mod availability;
mod controller;
mod discovery;
mod local;
mod openapi;
mod proxy;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use apimachinery::meta;
use serde_json::Value;

use crate::openapi::OpenApi;
use crate::pki::{self, KeyPair, Pki};
use crate::registry::Registry;
use crate::served::Served;
use crate::webhook::{self, Place, Target, bundle, service_address};
use crate::zero::Zero;

pub use controller::run;
use local::priority;
pub use openapi::merge_v2;

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";

/// An APIService of another server, as it was read last.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Name of the object.
    name: String,
    /// Group that it serves.
    pub group: String,
    /// Version that it serves.
    pub version: String,
    group_priority: i64,
    version_priority: i64,
    namespace: String,
    service: String,
    port: u64,
    ca_bundle: Value,
    insecure: bool,
    available: bool,
    described: Arc<Described>,
}

/// What another server says of itself.
#[derive(Debug, Default)]
pub struct Described {
    /// `resources` of its `APIResourceList`; nothing while it was never reached.
    resources: Option<Vec<Value>>,
    v2: Option<Value>,
    v3: Option<Value>,
}

impl Remote {
    /// Reads an APIService; nothing when it stands for this server.
    fn parse(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let service = spec.get("service").filter(|service| service.is_object())?;
        Some(Self {
            name: meta::name(object).to_owned(),
            group: spec["group"].text().to_owned(),
            version: spec["version"].text().to_owned(),
            group_priority: spec["groupPriorityMinimum"].int(),
            version_priority: spec["versionPriority"].int(),
            namespace: service["namespace"].text().to_owned(),
            service: service["name"].text().to_owned(),
            port: service["port"].as_u64().unwrap_or(443),
            ca_bundle: spec["caBundle"].clone(),
            insecure: spec["insecureSkipTLSVerify"].flag(),
            available: object["status"]["conditions"]
                .items()
                .iter()
                .any(|c| c["type"] == "Available" && c["status"] == "True"),
            described: Arc::default(),
        })
    }

    /// `/apis/GROUP/VERSION`, or `/api/v1` of the core group.
    fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Where requests for `path` go now.
    fn target(&self, registry: &Registry, path: &str) -> Result<Target, webhook::Error> {
        let external = registry
            .get("", "services", &self.namespace, &self.service)
            .map(|service| service.to_value())
            .filter(|service| service["spec"]["type"] == "ExternalName");
        let port = u16::try_from(self.port).unwrap_or_default();
        let place = match external {
            Some(service) => Place::Host(service["spec"]["externalName"].text().to_owned(), port),
            None => {
                Place::Pods(service_address(registry, &self.namespace, &self.service, self.port)?)
            }
        };
        let name = format!("{}.{}.svc", self.service, self.namespace);
        Ok(Target { place, host: format!("{name}:{port}"), name, path: path.to_owned() })
    }
}

/// Passes requests on. Shared by all requests.
pub struct Aggregator {
    registry: Registry,
    pki: Pki,
    pair: KeyPair,
    remotes: RwLock<Arc<Vec<Remote>>>,
    merged: RwLock<Option<Arc<Merged>>>,
}

/// The documents about this server's resources and the others', made when they are asked for.
struct Merged {
    served: Arc<Served>,
    remotes: Arc<Vec<Remote>>,
    documents: std::sync::OnceLock<crate::discovery::Documents>,
    openapi: OpenApi,
}

impl Aggregator {
    /// An aggregator that shows other servers a certificate of the front proxy's authority.
    pub fn new(registry: Registry, pki: Pki) -> Result<Self, pki::Error> {
        let pair = pki.issue_front_proxy()?;
        Ok(Self { registry, pki, pair, remotes: RwLock::default(), merged: RwLock::default() })
    }

    fn remotes(&self) -> Arc<Vec<Remote>> {
        self.remotes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_remotes(&self, remotes: Vec<Remote>) {
        *self.remotes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(remotes);
    }

    /// The other server that serves `path`, if one does.
    pub fn serves(&self, path: &str) -> Option<Remote> {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        remotes
            .iter()
            .find(|remote| {
                path.strip_prefix(remote.root().as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .cloned()
    }

    /// The documents while there are other servers.
    fn merged(&self, served: &Arc<Served>) -> Option<Arc<Merged>> {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        let known = self.merged.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known
            && Arc::ptr_eq(&known.served, served)
            && Arc::ptr_eq(&known.remotes, &remotes)
        {
            return Some(known);
        }
        let fresh = Arc::new(Merged {
            served: served.clone(),
            remotes,
            documents: std::sync::OnceLock::new(),
            openapi: OpenApi::default(),
        });
        *self.merged.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Some(fresh)
    }

    fn tls(&self, remote: &Remote) -> Result<rustls::ClientConfig, webhook::Error> {
        let failed = |error: pki::Error| webhook::Error::Config(error.to_string());
        if remote.insecure {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let anybody = Arc::new(pki::tls::Anybody(provider));
            return self.pki.front_proxy_config(&self.pair, anybody).map_err(failed);
        }
        self.pki.front_proxy_config(&self.pair, bundle(&remote.ca_bundle)?).map_err(failed)
    }
}
