//! The controllers of kube-controller-manager: each drives one part of the world towards what the API
//! declares. They read through shared informers, write under an identity of their own, and keep nothing
//! that could not be read again. Each file is one controller: a pure decision, and a thin loop around it.

mod deployment;
mod endpoint_slice;
mod garbage_collector;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_gc;
mod pods;
mod queue;
mod replica_set;
mod root_ca;
mod service_account;

use std::sync::Arc;

use client::Informers;
use futures::Stream;
use futures::StreamExt;
use kube::{Client, Resource, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the controllers need.
pub struct Config {
    /// A client that acts as service account `<name>` of kube-system.
    pub client_for: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    /// The process' caches.
    pub informers: Informers,
    /// Addresses of all pods, such as `10.42.0.0/16`.
    pub cluster_cidr: String,
    /// The cluster's CA, published to every namespace.
    pub root_ca_pem: String,
}

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's addresses are no network.
    #[error("{cidr:?} is not an IPv4 network of at least a /24, such as 10.42.0.0/16")]
    ClusterCidr {
        /// What was given.
        cidr: String,
    },
    /// A controller has a bug.
    #[error("a controller panicked")]
    Panic(#[source] tokio::task::JoinError),
}

/// Runs all controllers until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Config { client_for, informers, cluster_cidr, root_ca_pem } = config;
    let ranges = node_ipam::Ranges::parse(&cluster_cidr)?;
    let (stop, caches) = (|| shutdown.clone(), || informers.clone());
    let mut set = JoinSet::new();
    set.spawn(service_account::run(client_for("service-account-controller"), caches(), stop()));
    set.spawn(root_ca::run(client_for("root-ca-cert-publisher"), caches(), root_ca_pem, stop()));
    set.spawn(namespace::run(client_for("namespace-controller"), caches(), stop()));
    set.spawn(node_ipam::run(client_for("node-controller"), caches(), ranges, stop()));
    set.spawn(node_lifecycle::run(client_for("node-controller"), caches(), stop()));
    set.spawn(endpoint_slice::run(client_for("endpointslice-controller"), caches(), stop()));
    set.spawn(replica_set::run(client_for("replicaset-controller"), caches(), stop()));
    set.spawn(deployment::run(client_for("deployment-controller"), caches(), stop()));
    set.spawn(garbage_collector::run(client_for("generic-garbage-collector"), stop()));
    set.spawn(pod_gc::run(client_for("pod-garbage-collector"), caches(), stop()));
    while let Some(ended) = set.join_next().await {
        ended.map_err(Error::Panic)?;
    }
    Ok(())
}

/// The keys that changes of kind `K` touch: `of` names them for one object. After a resynchronisation
/// every object is told again.
fn touched<K, T, F>(
    informer: &client::Informer<K>,
    of: F,
) -> impl Stream<Item = Vec<T>> + Send + use<K, T, F>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
    F: Fn(&K) -> Vec<T> + Send,
{
    let store = informer.store();
    informer.subscribe().map(move |change| match change {
        client::Change::Applied(object) | client::Change::Deleted(object) => of(&object),
        client::Change::Synced => store.state().iter().flat_map(|object| of(object)).collect(),
    })
}

/// The object's own name as a key.
fn name<K: Resource>(object: &K) -> Vec<String> {
    vec![object.name_any()]
}

/// The object's namespace as a key.
fn namespace_of<K: Resource>(object: &K) -> Vec<String> {
    object.namespace().into_iter().collect()
}

/// Takes an answer that says "already so" for success.
fn unless_code<T>(outcome: Result<T, kube::Error>, code: u16) -> Result<(), kube::Error> {
    match outcome {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == code => Ok(()),
        Err(error) => Err(error),
    }
}
