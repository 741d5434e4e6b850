//! The controllers of kube-controller-manager: each drives one part of the world towards what the API
//! declares. They read through shared informers, write under an identity of their own, and keep nothing
//! that could not be read again. Each file is one controller: a pure decision, and a thin loop around it.

mod attach_detach;
mod bootstrap_signer;
mod certificates;
mod cluster_role_aggregation;
mod cron_job;
pub mod csi;
mod daemon_set;
mod deployment;
mod device_taint_eviction;
mod disruption;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod endpoints;
mod ephemeral_volume;
mod garbage_collector;
mod history;
mod horizontal_pod_autoscaler;
mod job;
mod latest;
mod legacy_token_cleaner;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_selector;
mod node_ttl;
mod ownership;
mod persistent_volume;
mod pod_gc;
mod pods;
mod queue;
mod replica_set;
mod replication_controller;
mod resource_claim;
mod resource_quota;
mod root_ca;
mod served;
mod service_account;
mod service_account_token;
mod service_cidr;
mod share;
mod stateful_set;
mod storage_version_migrator;
mod taint_eviction;
mod topology;
mod trust_bundle;
mod ttl_after_finished;
mod volume_expand;
mod volume_protection;

pub use certificates::{Order, Sign};
pub use queue::register as register_metrics;

use std::path::PathBuf;
use std::sync::Arc;

use client::Informers;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use kube::{Client, Resource, ResourceExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Not a service account: the controllers together, `system:kube-controller-manager`.
pub const OURSELVES: &str = "";

/// What the controllers need.
pub struct Config {
    /// A client that acts as service account `<name>` of kube-system, or as [`OURSELVES`].
    pub client_for: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    /// The process' caches.
    pub informers: Informers,
    /// Addresses of all pods, such as `10.42.0.0/16`.
    pub cluster_cidr: String,
    /// The cluster's CA, published to every namespace.
    pub root_ca_pem: String,
    /// Signs certificates with the cluster's authority.
    pub sign: Arc<Sign>,
    /// Where the built-in provisioner makes its folders; on this machine, where pods run.
    pub volumes_dir: PathBuf,
    /// Which controllers run, as `--controllers` of kube-controller-manager has it: `foo` is one, `-foo`
    /// not, `*` all others. The first that names a controller decides; none at all means all of them.
    pub enabled: Vec<String>,
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
    /// A name given by the user is nobody's.
    #[error("{name:?} is not the name of a controller")]
    UnknownController {
        /// What was given.
        name: String,
    },
    /// A controller has a bug.
    #[error("a controller panicked")]
    Panic(#[source] tokio::task::JoinError),
}

/// What a controller is started with.
struct Setup {
    config: Config,
    ranges: node_ipam::Ranges,
    shutdown: CancellationToken,
}

impl Setup {
    /// A client of this service account, the caches, and the end.
    fn parts(&self, account: &str) -> (Client, Informers, CancellationToken) {
        let client = (self.config.client_for)(account);
        (client, self.config.informers.clone(), self.shutdown.clone())
    }
}

type Start = fn(&Setup) -> BoxFuture<'static, ()>;

/// Starts `$module::run` under the service account.
macro_rules! controller {
    ($name:literal, $account:literal, $module:ident) => {
        ($name, |setup: &Setup| {
            let (client, caches, stop) = setup.parts($account);
            $module::run(client, caches, stop).boxed()
        })
    };
}

/// The controllers, under the names kube-controller-manager gives them.
const CONTROLLERS: &[(&str, Start)] = &[
    controller!("serviceaccount-controller", "service-account-controller", service_account),
    ("serviceaccount-token-controller", |setup| {
        let (client, caches, stop) = setup.parts(OURSELVES);
        let root_ca = setup.config.root_ca_pem.clone();
        service_account_token::run(client, caches, root_ca, stop).boxed()
    }),
    ("root-ca-certificate-publisher-controller", |setup| {
        let (client, caches, stop) = setup.parts("root-ca-cert-publisher");
        root_ca::run(client, caches, setup.config.root_ca_pem.clone(), stop).boxed()
    }),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", |setup| {
        let (client, caches, stop) =
            setup.parts("kube-apiserver-serving-clustertrustbundle-publisher");
        trust_bundle::run(client, caches, setup.config.root_ca_pem.clone(), stop).boxed()
    }),
    controller!("namespace-controller", "namespace-controller", namespace),
    ("node-ipam-controller", |setup| {
        let (client, caches, stop) = setup.parts("node-controller");
        node_ipam::run(client, caches, setup.ranges, stop).boxed()
    }),
    controller!("node-lifecycle-controller", "node-controller", node_lifecycle),
    controller!("endpoints-controller", "endpoint-controller", endpoints),
    controller!("endpointslice-controller", "endpointslice-controller", endpoint_slice),
    controller!(
        "endpointslice-mirroring-controller",
        "endpointslicemirroring-controller",
        endpoint_slice_mirroring
    ),
    controller!("replicaset-controller", "replicaset-controller", replica_set),
    controller!(
        "replicationcontroller-controller",
        "replication-controller",
        replication_controller
    ),
    controller!("deployment-controller", "deployment-controller", deployment),
    controller!("daemonset-controller", "daemon-set-controller", daemon_set),
    controller!("statefulset-controller", "statefulset-controller", stateful_set),
    controller!("job-controller", "job-controller", job),
    controller!("cronjob-controller", "cronjob-controller", cron_job),
    controller!(
        "ttl-after-finished-controller",
        "ttl-after-finished-controller",
        ttl_after_finished
    ),
    controller!("garbage-collector-controller", "generic-garbage-collector", garbage_collector),
    controller!("pod-garbage-collector-controller", "pod-garbage-collector", pod_gc),
    controller!("taint-eviction-controller", "node-controller", taint_eviction),
    controller!(
        "device-taint-eviction-controller",
        "device-taint-eviction-controller",
        device_taint_eviction
    ),
    controller!("disruption-controller", "disruption-controller", disruption),
    controller!("resourcequota-controller", "resourcequota-controller", resource_quota),
    controller!(
        "clusterrole-aggregation-controller",
        "clusterrole-aggregation-controller",
        cluster_role_aggregation
    ),
    controller!("ttl-controller", "ttl-controller", node_ttl),
    controller!(
        "horizontal-pod-autoscaler-controller",
        "horizontal-pod-autoscaler",
        horizontal_pod_autoscaler
    ),
    controller!("service-cidr-controller", "service-cidrs-controller", service_cidr),
    ("certificatesigningrequest-approving-controller", |setup| {
        let (client, caches, stop) = setup.parts("certificate-controller");
        certificates::run_approving(client, caches, stop).boxed()
    }),
    ("certificatesigningrequest-signing-controller", |setup| {
        let (client, caches, stop) = setup.parts("certificate-controller");
        certificates::run_signing(client, caches, setup.config.sign.clone(), stop).boxed()
    }),
    ("certificatesigningrequest-cleaner-controller", |setup| {
        let (client, caches, stop) = setup.parts("certificate-controller");
        certificates::run_cleaning(client, caches, stop).boxed()
    }),
    ("persistentvolume-binder-controller", |setup| {
        let (client, caches, stop) = setup.parts("persistent-volume-binder");
        persistent_volume::run(client, caches, setup.config.volumes_dir.clone(), stop).boxed()
    }),
    ("persistentvolumeclaim-protection-controller", |setup| {
        let (client, caches, stop) = setup.parts("pvc-protection-controller");
        volume_protection::run_claims(client, caches, stop).boxed()
    }),
    ("persistentvolume-protection-controller", |setup| {
        let (client, caches, stop) = setup.parts("pv-protection-controller");
        volume_protection::run_volumes(client, caches, stop).boxed()
    }),
    ("volumeattributesclass-protection-controller", |setup| {
        let (client, caches, stop) = setup.parts("volumeattributesclass-protection-controller");
        volume_protection::run_attributes(client, caches, stop).boxed()
    }),
    controller!("ephemeral-volume-controller", "ephemeral-volume-controller", ephemeral_volume),
    controller!(
        "persistentvolume-attach-detach-controller",
        "attachdetach-controller",
        attach_detach
    ),
    controller!("persistentvolume-expander-controller", "expand-controller", volume_expand),
    controller!("resourceclaim-controller", "resource-claim-controller", resource_claim),
    controller!(
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-service-account-token-cleaner",
        legacy_token_cleaner
    ),
    controller!(
        "storage-version-migrator-controller",
        "storage-version-migrator-controller",
        storage_version_migrator
    ),
    ("bootstrap-signer-controller", |setup| {
        let (client, caches, stop) = setup.parts("bootstrap-signer");
        bootstrap_signer::run_signing(client, caches, stop).boxed()
    }),
    ("token-cleaner-controller", |setup| {
        let (client, _, stop) = setup.parts("token-cleaner");
        bootstrap_signer::run_cleaning(client, stop).boxed()
    }),
];

/// Names that controllers had before 1.28 and still go by (`GetAliases` of kube-controller-manager).
const OLD_NAMES: &[(&str, &str)] = &[
    ("attachdetach", "persistentvolume-attach-detach-controller"),
    ("bootstrapsigner", "bootstrap-signer-controller"),
    ("clusterrole-aggregation", "clusterrole-aggregation-controller"),
    ("cronjob", "cronjob-controller"),
    ("csrapproving", "certificatesigningrequest-approving-controller"),
    ("csrcleaner", "certificatesigningrequest-cleaner-controller"),
    ("csrsigning", "certificatesigningrequest-signing-controller"),
    ("daemonset", "daemonset-controller"),
    ("deployment", "deployment-controller"),
    ("disruption", "disruption-controller"),
    ("endpoint", "endpoints-controller"),
    ("endpointslice", "endpointslice-controller"),
    ("endpointslicemirroring", "endpointslice-mirroring-controller"),
    ("ephemeral-volume", "ephemeral-volume-controller"),
    ("garbagecollector", "garbage-collector-controller"),
    ("horizontalpodautoscaling", "horizontal-pod-autoscaler-controller"),
    ("job", "job-controller"),
    ("legacy-service-account-token-cleaner", "legacy-serviceaccount-token-cleaner-controller"),
    ("namespace", "namespace-controller"),
    ("nodeipam", "node-ipam-controller"),
    ("nodelifecycle", "node-lifecycle-controller"),
    ("persistentvolume-binder", "persistentvolume-binder-controller"),
    ("persistentvolume-expander", "persistentvolume-expander-controller"),
    ("podgc", "pod-garbage-collector-controller"),
    ("pv-protection", "persistentvolume-protection-controller"),
    ("pvc-protection", "persistentvolumeclaim-protection-controller"),
    ("replicaset", "replicaset-controller"),
    ("replicationcontroller", "replicationcontroller-controller"),
    ("resource-claim-controller", "resourceclaim-controller"),
    ("resourcequota", "resourcequota-controller"),
    ("root-ca-cert-publisher", "root-ca-certificate-publisher-controller"),
    ("serviceaccount", "serviceaccount-controller"),
    ("serviceaccount-token", "serviceaccount-token-controller"),
    ("statefulset", "statefulset-controller"),
    ("tokencleaner", "token-cleaner-controller"),
    ("ttl", "ttl-controller"),
    ("ttl-after-finished", "ttl-after-finished-controller"),
];

/// The present name of a controller.
fn present_name(name: &str) -> &str {
    OLD_NAMES.iter().find(|(old, _)| *old == name).map_or(name, |(_, present)| present)
}

/// The names that [`Config::enabled`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, _)| *name)
}

/// Whether `choice` names only controllers that there are.
pub fn check(choice: &[String]) -> Result<(), Error> {
    let unknown = choice.iter().find(|word| {
        let name = present_name(word.strip_prefix('-').unwrap_or(word));
        name != "*" && !names().any(|known| known == name)
    });
    match unknown {
        Some(name) => Err(Error::UnknownController { name: name.clone() }),
        None => Ok(()),
    }
}

fn is_enabled(choice: &[String], name: &str) -> bool {
    for word in choice {
        match word.strip_prefix('-') {
            Some(left_out) if present_name(left_out) == name => return false,
            None if present_name(word) == name => return true,
            _ => {}
        }
    }
    choice.is_empty() || choice.iter().any(|word| word == "*")
}

/// Runs the controllers until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let ranges = node_ipam::Ranges::parse(&config.cluster_cidr)?;
    check(&config.enabled)?;
    let setup = Setup { config, ranges, shutdown };
    let mut set = JoinSet::new();
    for (name, start) in CONTROLLERS {
        if is_enabled(&setup.config.enabled, name) {
            set.spawn(start(&setup));
        }
    }
    if set.is_empty() {
        setup.shutdown.cancelled().await;
    }
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
    K: client::Watched,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_chosen_by_name() {
        let choice = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (text, name, want) in [
            ("*", "job-controller", true),
            ("*,-job-controller", "job-controller", false),
            ("*,-job-controller", "cronjob-controller", true),
            ("job-controller", "job-controller", true),
            ("job-controller", "cronjob-controller", false),
            ("*,-job", "job-controller", false),
            ("endpointslice", "endpointslice-controller", true),
        ] {
            assert_eq!(is_enabled(&choice(text), name), want, "{text} {name}");
        }
        assert!(OLD_NAMES.iter().all(|(_, present)| names().any(|name| name == *present)));
        assert!(
            check(&choice("*,-job-controller,podgc")).is_ok() && check(&choice("*,-jobs")).is_err()
        );
    }
}
