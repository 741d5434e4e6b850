//! `/livez`, `/readyz`, `/healthz` and each check below them.
//!
//! Source: `k8s.io/apiserver/pkg/server/healthz`.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;

use crate::body::Response;
use crate::options::Query;
use crate::registry::Registry;
use crate::respond;

const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the checks look at beside the registry.
#[derive(Debug, Default)]
pub struct Health {
    bootstrapped: AtomicBool,
    stopping: AtomicBool,
}

const KMS: &str = "kms-providers";

/// One check: its name and whether readiness alone needs it.
const CHECKS: &[(&str, bool)] = &[
    ("ping", false),
    ("log", false),
    ("etcd", false),
    // Only where values are encrypted by plugins.
    (KMS, false),
    ("informer-sync", true),
    // Each is done once the server has started: its names are those that upstream has for the same.
    ("poststarthook/start-apiserver-admission-initializer", false),
    ("poststarthook/generic-apiserver-start-informers", false),
    ("poststarthook/priority-and-fairness-config-consumer", false),
    ("poststarthook/start-apiextensions-informers", false),
    ("poststarthook/start-apiextensions-controllers", false),
    ("poststarthook/crd-informer-synced", false),
    ("poststarthook/start-system-namespaces-controller", false),
    ("poststarthook/start-cluster-authentication-info-controller", false),
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

impl Health {
    /// The cluster's first objects are there.
    pub fn set_bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    /// The server is stopping and wants no new clients.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    async fn check(&self, name: &str, registry: &Registry) -> bool {
        match name {
            "etcd" => {
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
        if !matches!(endpoint, "livez" | "readyz" | "healthz") {
            return None;
        }
        let plugins = registry.encryption().is_some_and(|encryption| encryption.has_plugins());
        let mut checks = CHECKS.iter().filter(|(name, ready_only)| {
            (!ready_only || endpoint == "readyz") && (*name != KMS || plugins)
        });
        if !one.is_empty() {
            let (name, _) = checks.find(|(name, _)| *name == one)?;
            return Some(if self.check(name, registry).await {
                respond::text(StatusCode::OK, "ok")
            } else {
                let text = "internal server error: reason withheld\n";
                respond::text(StatusCode::INTERNAL_SERVER_ERROR, text)
            });
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut report = String::new();
        let mut failed = false;
        for (name, _) in checks {
            // Writing to a String cannot fail.
            let _ = if excluded.contains(name) {
                writeln!(report, "[+]{name} excluded: ok")
            } else if self.check(name, registry).await {
                writeln!(report, "[+]{name} ok")
            } else {
                failed = true;
                writeln!(report, "[-]{name} failed: reason withheld")
            };
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
