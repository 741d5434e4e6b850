//! Prometheus metrics under the stock server's names.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/metrics`.

mod collected;
mod observed;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use store::Store;

use crate::caches::Caches;

pub use text::CONTENT_TYPE;

/// Buckets of the request durations, in seconds.
const SECONDS: [f64; 16] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 60.0];

/// What a request was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct About {
    /// `LIST`, `GET`, `POST`, …
    pub verb: &'static str,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Resource.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// `cluster`, `namespace` or `resource`.
    pub scope: &'static str,
    /// Always `apiserver`.
    pub component: &'static str,
}

/// A request as it is told where dry runs are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// What it was about.
    #[prometheus(flatten)]
    pub about: About,
    /// `All` for a dry run.
    pub dry_run: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    #[prometheus(flatten)]
    labels: Labels,
    code: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Terminated {
    #[prometheus(flatten)]
    about: About,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Found {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InFlight {
    request_kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hashed {
    hash: String,
}

/// A configuration that is read anew when its file changes.
#[derive(Clone, Default)]
struct Configuration {
    reloads: Family<Outcome, Counter<u64, AtomicU64>>,
    last: Family<Outcome, Gauge<f64, AtomicU64>>,
    info: Family<Hashed, Gauge<i64, AtomicI64>>,
}

impl Configuration {
    fn new(registry: &mut Registry, what: &str) -> Self {
        let made = Self::default();
        let name = format!("apiserver_{what}_config_controller_");
        registry.register(
            format!("{name}automatic_reloads"),
            format!("Total number of automatic reloads of {what} configuration split by status"),
            made.reloads.clone(),
        );
        registry.register(
            format!("{name}automatic_reload_last_timestamp_seconds"),
            format!(
                "Timestamp of the last automatic reload of {what} configuration split by status"
            ),
            made.last.clone(),
        );
        registry.register(
            format!("{name}last_config_info"),
            format!("Information about the last applied {what} configuration with hash as label"),
            made.info.clone(),
        );
        made
    }
}

#[derive(Clone)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The server's metrics.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter<u64, AtomicU64>>,
    durations: Family<Labels, Histogram, Buckets>,
    long_running: Family<About, Gauge<i64, AtomicI64>>,
    terminated: Family<Terminated, Counter<u64, AtomicU64>>,
    authenticated: Family<Found, Counter<u64, AtomicU64>>,
    authorized: Family<Found, Counter<u64, AtomicU64>>,
    in_flight: Family<InFlight, Gauge<i64, AtomicI64>>,
    authentication: Configuration,
    authorization: Configuration,
    encryption: Configuration,
    sli: Family<About, Histogram, Buckets>,
    store: observed::Durations,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations = Family::new_with_constructor(Buckets);
        let long_running = Family::default();
        let terminated = Family::default();
        let (authenticated, authorized) = (Family::default(), Family::default());
        let in_flight = Family::default();
        registry.register(
            "apiserver_request",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component",
            durations.clone(),
        );
        let sli = Family::new_with_constructor(Buckets);
        registry.register(
            "apiserver_request_sli_duration_seconds",
            "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component",
            sli.clone(),
        );
        // The name that dashboards of before 1.27 look for.
        registry.register(
            "apiserver_request_slo_duration_seconds",
            "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component",
            sli.clone(),
        );
        let store = observed::Durations::new_with_constructor(observed::Buckets);
        registry.register(
            "etcd_request_duration_seconds",
            "Etcd request latency in seconds for each operation and object type",
            store.clone(),
        );
        registry.register_collector(Box::new(collected::Process));
        registry.register(
            "apiserver_longrunning_requests",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way",
            long_running.clone(),
        );
        registry.register(
            "apiserver_request_terminations",
            "Number of requests which apiserver terminated in self-defense",
            terminated.clone(),
        );
        registry.register(
            "authentication_attempts",
            "Counter of authenticated attempts",
            authenticated.clone(),
        );
        registry.register(
            "authorization_attempts",
            "Counter of authorization attempts broken down by result. It can be either 'allowed', 'denied', 'no-opinion' or 'error'",
            authorized.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests in flight, by kind",
            in_flight.clone(),
        );
        let authentication = Configuration::new(&mut registry, "authentication");
        let authorization = Configuration::new(&mut registry, "authorization");
        let encryption = Configuration::new(&mut registry, "encryption");
        Self {
            registry,
            requests,
            durations,
            long_running,
            terminated,
            authenticated,
            authorized,
            in_flight,
            authentication,
            authorization,
            encryption,
            sli,
            store,
        }
    }
}

/// Counts down when a request or watch is over.
pub struct Guard(Gauge<i64, AtomicI64>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Times what is done with `store`.
    pub fn observe(&self, store: Store) -> Store {
        observed::observed(store, self.store.clone())
    }

    /// Adds what others tell.
    pub fn add(&mut self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry);
    }

    /// Counts the objects of `caches`.
    pub fn count(&mut self, caches: &Arc<Caches>) {
        self.registry.register_collector(Box::new(collected::Objects(caches.clone())));
    }

    /// A request was answered after it had `waited` for its turn; watches are not timed.
    pub fn answered(&self, labels: Labels, code: u16, took: Duration, waited: Duration) {
        if labels.about.verb != "WATCH" {
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
            let own = took.saturating_sub(waited);
            self.sli.get_or_create(&labels.about).observe(own.as_secs_f64());
        }
        self.requests.get_or_create(&Answered { labels, code }).inc();
    }

    /// The server ended a request in its own defence.
    pub fn terminated(&self, labels: &Labels, code: u16) {
        let about = labels.about.clone();
        self.terminated.get_or_create(&Terminated { about, code }).inc();
    }

    /// A request was found to be somebody's, or was not.
    pub fn authenticated(&self, success: bool) {
        let result = if success { "success" } else { "failure" };
        self.authenticated.get_or_create(&Found { result }).inc();
    }

    /// It was decided whether a request may be done.
    pub fn authorized(&self, result: &'static str) {
        self.authorized.get_or_create(&Found { result }).inc();
    }

    /// A watch or another request that lasts begins; it ends when the guard is dropped.
    pub fn lasting(&self, labels: &Labels) -> Guard {
        let gauge = self.long_running.get_or_create(&labels.about).clone();
        gauge.inc();
        Guard(gauge)
    }

    /// A request begins.
    pub fn in_flight(&self, mutating: bool) -> Guard {
        let request_kind = if mutating { "mutating" } else { "readOnly" };
        let gauge = self.in_flight.get_or_create(&InFlight { request_kind }).clone();
        gauge.inc();
        Guard(gauge)
    }

    fn configuration(&self, what: &str) -> &Configuration {
        match what {
            "authentication" => &self.authentication,
            "encryption" => &self.encryption,
            _ => &self.authorization,
        }
    }

    /// The text of a configuration is in force; there may be none.
    pub fn configured(&self, what: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        let info = &self.configuration(what).info;
        info.clear();
        let digest = Sha256::digest(text);
        let hash =
            digest.iter().fold("sha256:".to_owned(), |hash, byte| format!("{hash}{byte:02x}"));
        info.get_or_create(&Hashed { hash }).set(1);
    }

    /// A changed configuration was read, and is in force or not.
    pub fn reloaded(&self, what: &str, success: bool) {
        let outcome = Outcome { status: if success { "success" } else { "failure" } };
        let configuration = self.configuration(what);
        configuration.reloads.get_or_create(&outcome).inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        configuration.last.get_or_create(&outcome).set(now.as_secs_f64());
    }

    /// The metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text::plain(&text)
    }
}

/// The verb as metrics spell it.
pub fn verb(verb: &'static str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "connect" => "CONNECT",
        _ => "OTHER",
    }
}
