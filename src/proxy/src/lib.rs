//! Services, EndpointSlices, host ports and NetworkPolicies, made into tables of the node network;
//! and, where it is asked for, the [`ingress`] controller.
//!
//! This crate decides what leads where and who may speak with whom; `netns` makes it so. What an object
//! contributes is read anew from the store whenever it may have changed, and applied by difference. Start
//! at [`run`]; the decisions are `table`, `publish`, `policy`, all pure; `tables` keeps what they make.

mod health;
pub mod ingress;
mod policy;
mod publish;
mod services;
mod status;
mod table;
mod tables;
mod topology;

use std::net::IpAddr;
use std::time::Duration;

use client::Informers;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use netns::{Control, Forward};
use tokio_util::sync::CancellationToken;

pub use policy::policy_table;
pub use publish::{Entry, Purpose};
pub use table::Place;
pub use tables::table;

/// Changes come in groups: a deployment's pods, a service and its slices.
const SETTLE: Duration = Duration::from_millis(10);
/// After the node process failed to answer.
const RETRY: Duration = Duration::from_millis(250);

/// What the proxy works with.
pub struct Config {
    /// The process' caches.
    pub informers: Informers,
    /// The node process.
    pub control: Control,
    /// Writes the status of load balancers and events.
    pub client: Client,
    /// This node.
    pub place: Place,
    /// Addresses of the host on which node ports and host ports are offered.
    pub publish: Vec<IpAddr>,
    /// Forwards into the host that others need; the proxy adds those of health checks.
    pub forwards: Vec<Forward>,
}

/// Keeps the node's services and policies in step with the API until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) {
    let policies = Box::pin(follow_policies(config.informers.clone(), config.control.clone()));
    let services = Box::pin(services::follow(config));
    shutdown.run_until_cancelled(async { tokio::join!(policies, services) }).await;
}

async fn follow_policies(informers: Informers, control: Control) {
    let policies = informers.get::<NetworkPolicy>();
    let pods = informers.get::<Pod>();
    let namespaces = informers.get::<Namespace>();
    let mut changes = std::pin::pin!(futures::stream::select_all([
        policies.subscribe().map(drop).boxed(),
        pods.subscribe().map(drop).boxed(),
        namespaces.subscribe().map(drop).boxed(),
    ]));
    policies.ready().await;
    pods.ready().await;
    namespaces.ready().await;
    let mut applied = None;
    let mut lost = std::pin::pin!(control.until_lost());
    loop {
        let state = (policies.store().state(), pods.store().state(), namespaces.store().state());
        let wanted = policy_table(&state.0, &state.1, &state.2);
        if applied.as_ref() != Some(&wanted) {
            if let Err(error) = control.apply_policies(wanted.clone()).await {
                tracing::warn!(error = error.chain(), "cannot apply the policies");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            applied = Some(wanted);
        }
        // A pod that starts waits for this: changes are taken up at once.
        tokio::select! {
            change = changes.next() => if change.is_none() { return },
            () = &mut lost => {
                applied = None;
                lost.set(control.until_lost());
            }
        }
        while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
    }
}
