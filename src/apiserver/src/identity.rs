//! The Lease by which this server shows that it is there, among those of one store.
//!
//! Source: `pkg/controlplane/controller/apiserverleasegc` and `createAndStartIdentityLease` of Kubernetes.

use std::fmt::Write as _;
use std::time::Duration;

use apimachinery::{Status, meta, time};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::zero::Zero;

const GROUP: &str = "coordination.k8s.io";
const PLURAL: &str = "leases";
const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
const RENEW_EVERY: Duration = Duration::from_secs(10);
const DURATION_SECONDS: i64 = 3600;

/// The Lease's name: `apiserver-` and half the digest of the host's.
fn lease_name(host: &str) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = ring::digest::digest(&ring::digest::SHA256, host.as_bytes());
    let bits = digest.as_ref().iter().take(16).fold(String::new(), |mut bits, byte| {
        let _ = write!(bits, "{byte:08b}");
        bits
    });
    let code = bits.as_bytes().chunks(5).map(|five| {
        let value = five.iter().fold(0, |value, bit| value * 2 + usize::from(*bit == b'1'));
        char::from(DIGITS[value << (5 - five.len())])
    });
    format!("apiserver-{}", code.collect::<String>())
}

/// Keeps the Lease of the server on `host`, and removes those of servers that are long gone.
pub async fn run(registry: Registry, host: String, shutdown: CancellationToken) {
    let name = lease_name(&host);
    let holder = format!("{name}_{}", uuid::Uuid::new_v4());
    loop {
        let kept = keep(&registry, &name, &host, &holder).await;
        let swept = sweep(&registry).await;
        for status in [kept, swept].into_iter().filter_map(Result::err) {
            if !matches!(status.code, 404 | 409) {
                tracing::warn!(%status, "cannot keep this server's Lease");
            }
        }
        let renewed = tokio::time::sleep(RENEW_EVERY);
        if shutdown.run_until_cancelled(renewed).await.is_none() {
            return;
        }
    }
}

async fn keep(registry: &Registry, name: &str, host: &str, holder: &str) -> Result<(), Status> {
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return Ok(()) };
    let now = time::now_micros();
    let labels = json!({LABEL: COMPONENT, "kubernetes.io/hostname": host});
    let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": DURATION_SECONDS,
        "renewTime": now});
    let Some(old) = registry.get(GROUP, PLURAL, NAMESPACE, name) else {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": spec});
        let ctx = RequestContext::internal("create", &resource, NAMESPACE, name);
        return registry.create(&ctx, lease).await.map(drop);
    };
    let mut lease = old.to_value();
    meta::metadata_mut(&mut lease).insert("labels".into(), labels);
    lease["spec"] = spec;
    let ctx = RequestContext::internal("update", &resource, NAMESPACE, name);
    registry.update(&ctx, lease).await.map(drop)
}

/// Removes the Leases of servers that ended more than their time ago.
async fn sweep(registry: &Registry) -> Result<(), Status> {
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return Ok(()) };
    for lease in registry.list(GROUP, PLURAL, Some(NAMESPACE)) {
        let lease = lease.to_value();
        if is_ended(&lease, Timestamp::now()) {
            let ctx = RequestContext::internal("delete", &resource, NAMESPACE, meta::name(&lease));
            registry.delete(&ctx).await?;
        }
    }
    Ok(())
}

fn is_ended(lease: &Value, now: Timestamp) -> bool {
    if meta::labels(lease).get(LABEL).is_none_or(|of| of != COMPONENT) {
        return false;
    }
    let spec = &lease["spec"];
    let Ok(renewed) = spec["renewTime"].text().parse::<Timestamp>() else { return true };
    let duration = SignedDuration::from_secs(spec["leaseDurationSeconds"].int());
    renewed.checked_add(duration).is_ok_and(|end| end < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_the_host_alone() {
        let name = lease_name("a");
        assert_eq!(name, "apiserver-zklycewkdo64v6wcggzzui64ju");
        assert_ne!(lease_name("b"), name);
    }

    #[test]
    fn only_servers_that_are_long_gone_lose_their_lease() {
        let lease = |label: &str, renewed: &str| {
            json!({"metadata": {"labels": {LABEL: label}},
                "spec": {"renewTime": renewed, "leaseDurationSeconds": 3600}})
        };
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        for (lease, want) in [
            (lease(COMPONENT, "2026-01-01T10:59:59.000000Z"), true),
            (lease(COMPONENT, "2026-01-01T11:30:00.000000Z"), false),
            (lease(COMPONENT, ""), true),
            (lease("other", "2026-01-01T10:00:00.000000Z"), false),
        ] {
            assert_eq!(is_ended(&lease, now), want, "{lease}");
        }
    }
}
