//! `/livez`, `/readyz`, `/healthz` and each check below them.
//!
//! Source: `k8s.io/apiserver/pkg/server/healthz`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;

use crate::body::Response;
use crate::options::Query;
use crate::registry::Registry;
use crate::respond;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the checks look at beside the registry.
#[derive(Debug)]
pub struct Health {
    started: SystemTime,
    began: Instant,
    bootstrapped: AtomicBool,
    stopping: AtomicBool,
    results: Mutex<BTreeMap<(&'static str, &'static str), Results>>,
}

/// What one check of one endpoint has found so far.
#[derive(Clone, Copy, Debug, Default)]
struct Results {
    well: bool,
    successes: u64,
    failures: u64,
}

const KMS: &str = "kms-providers";

/// One check: its name and whether readiness alone needs it.
const CHECKS: &[(&str, bool)] = &[
    ("ping", false),
    ("log", false),
    ("etcd", false),
    ("etcd-readiness", true),
    // There is no certificate of its own for the loopback: components of this process need none.
    ("loopback-serving-certificate", false),
    // Only where values are encrypted by plugins.
    (KMS, false),
    ("informer-sync", true),
    // Each is done once the server has started: its names are those that upstream has for the same.
    ("poststarthook/start-apiserver-admission-initializer", false),
    ("poststarthook/generic-apiserver-start-informers", false),
    ("poststarthook/priority-and-fairness-config-consumer", false),
    ("poststarthook/priority-and-fairness-filter", false),
    ("poststarthook/storage-object-count-tracker-hook", false),
    ("poststarthook/start-apiextensions-informers", false),
    ("poststarthook/start-apiextensions-controllers", false),
    ("poststarthook/crd-informer-synced", false),
    ("poststarthook/start-system-namespaces-controller", false),
    ("poststarthook/start-cluster-authentication-info-controller", false),
    ("poststarthook/start-kube-apiserver-identity-lease-controller", false),
    ("poststarthook/start-kube-apiserver-identity-lease-garbage-collector", false),
    ("poststarthook/start-legacy-token-tracking-controller", false),
    ("poststarthook/start-service-ip-repair-controllers", false),
    ("poststarthook/rbac/bootstrap-roles", false),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", false),
    ("poststarthook/priority-and-fairness-config-producer", false),
    ("poststarthook/bootstrap-controller", false),
    ("poststarthook/start-kubernetes-service-cidr-controller", false),
    ("poststarthook/start-kube-aggregator-informers", false),
    ("poststarthook/apiservice-registration-controller", false),
    ("poststarthook/apiservice-status-local-available-controller", false),
    ("poststarthook/apiservice-status-remote-available-controller", false),
    ("poststarthook/apiservice-discovery-controller", false),
    ("poststarthook/kube-apiserver-autoregistration", false),
    ("autoregister-completion", false),
    ("poststarthook/apiservice-openapi-controller", false),
    ("poststarthook/apiservice-openapiv3-controller", false),
    ("shutdown", true),
];

impl Default for Health {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            began: Instant::now(),
            bootstrapped: AtomicBool::default(),
            stopping: AtomicBool::default(),
            results: Mutex::default(),
        }
    }
}

impl Health {
    /// When the server started.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// For how long it has run.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The cluster's first objects are there.
    pub fn set_bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    /// The server is stopping and wants no new clients.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Checks, and takes down what was found.
    async fn check(&self, endpoint: &'static str, name: &'static str, registry: &Registry) -> bool {
        let well = self.is_well(name, registry).await;
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let found = results.entry((name, endpoint)).or_default();
        found.well = well;
        *(if well { &mut found.successes } else { &mut found.failures }) += 1;
        well
    }

    /// What the checks have found, as metrics (`/metrics/slis`).
    ///
    /// Source: `k8s.io/component-base/metrics/prometheus/slis`.
    pub fn slis(&self) -> String {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from(
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n# TYPE kubernetes_healthcheck gauge\n",
        );
        for ((name, endpoint), found) in results.iter() {
            let well = u8::from(found.well);
            text.push_str(&format!(
                "kubernetes_healthcheck{{name=\"{name}\",type=\"{endpoint}\"}} {well}\n"
            ));
        }
        text.push_str("# HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n# TYPE kubernetes_healthchecks_total counter\n");
        for ((name, endpoint), found) in results.iter() {
            for (status, count) in [("error", found.failures), ("success", found.successes)] {
                if count > 0 {
                    text.push_str(&format!(
                        "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{endpoint}\"}} {count}\n"
                    ));
                }
            }
        }
        text
    }

    async fn is_well(&self, name: &str, registry: &Registry) -> bool {
        match name {
            "etcd" | "etcd-readiness" => {
                let revision = registry.store().revision();
                matches!(tokio::time::timeout(STORE_TIMEOUT, revision).await, Ok(Ok(_)))
            }
            KMS => match registry.encryption() {
                Some(encryption) => encryption.check().await.is_ok(),
                None => true,
            },
            "informer-sync" => tokio::time::timeout(STORE_TIMEOUT, registry.sync())
                .await
                .is_ok_and(|synced| synced.is_ok()),
            "shutdown" => !self.stopping.load(Ordering::Acquire),
            name if name.starts_with("poststarthook/") || name == "autoregister-completion" => {
                self.bootstrapped.load(Ordering::Acquire)
            }
            _ => true,
        }
    }

    /// Answers `/livez`, `/readyz`, `/healthz` or one check; `None` for other paths.
    pub async fn serve(&self, path: &str, query: &Query, registry: &Registry) -> Option<Response> {
        let path = path.strip_prefix('/')?;
        let (endpoint, one) = path.split_once('/').unwrap_or((path, ""));
        let endpoint =
            ["livez", "readyz", "healthz"].into_iter().find(|known| *known == endpoint)?;
        let plugins = registry.encryption().is_some_and(|encryption| encryption.has_plugins());
        let mut checks = CHECKS.iter().filter(|(name, ready_only)| {
            (!ready_only || endpoint == "readyz") && (*name != KMS || plugins)
        });
        if !one.is_empty() {
            let (name, _) = checks.find(|(name, _)| *name == one)?;
            return Some(if self.check(endpoint, name, registry).await {
                respond::text(StatusCode::OK, "ok")
            } else {
                let text = "internal server error: reason withheld\n";
                respond::text(StatusCode::INTERNAL_SERVER_ERROR, text)
            });
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut report = String::new();
        let mut failed = false;
        let unknown: BTreeSet<&str> = excluded
            .iter()
            .copied()
            .filter(|excluded| checks.clone().all(|(name, _)| name != excluded))
            .collect();
        for (name, _) in checks {
            // Writing to a String cannot fail.
            let _ = if excluded.contains(name) {
                writeln!(report, "[+]{name} excluded: ok")
            } else if self.check(endpoint, name, registry).await {
                writeln!(report, "[+]{name} ok")
            } else {
                failed = true;
                writeln!(report, "[-]{name} failed: reason withheld")
            };
        }
        if !unknown.is_empty() {
            let unknown = unknown.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>();
            report.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {}\n",
                unknown.join(",")
            ));
        }
        Some(if failed {
            report.push_str(&format!("{endpoint} check failed\n"));
            respond::text(StatusCode::INTERNAL_SERVER_ERROR, report)
        } else if query.has("verbose") {
            report.push_str(&format!("{endpoint} check passed\n"));
            respond::text(StatusCode::OK, report)
        } else {
            respond::text(StatusCode::OK, "ok")
        })
    }
}
