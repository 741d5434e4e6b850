//! The node's lease: the sign of life the node controller watches.
//!
//! Source of behaviour: `k8s.io/component-helpers/apimachinery/lease`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";
const RENEW: Duration = Duration::from_secs(10);
const DURATION_SECONDS: i32 = 40;

/// Renews the lease until `shutdown`.
pub async fn run(context: Arc<Context>, node_uid: Option<String>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(RENEW);
    let mut held: Option<Lease> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // A second try, with what the API now has, mends a conflict.
        for _ in 0..2 {
            match renew(&context, node_uid.as_deref(), held.take()).await {
                Ok(lease) => {
                    held = Some(lease);
                    break;
                }
                Err(error) => tracing::debug!(%error, "lease not renewed"),
            }
        }
    }
}

async fn renew(
    context: &Context,
    node_uid: Option<&str>,
    held: Option<Lease>,
) -> Result<Lease, kube::Error> {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), NAMESPACE);
    let name = &context.node_name;
    let held = match held {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let now = MicroTime(context.clock.now());
    if let Some(mut lease) = held {
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = Some(DURATION_SECONDS);
        spec.renew_time = Some(now);
        return api.replace(name, &PostParams::default(), &lease).await;
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.into()),
            owner_references: node_uid.map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Node".into(),
                    name: name.clone(),
                    uid: uid.to_owned(),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await
}
