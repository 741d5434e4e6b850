//! Services and EndpointSlices, made into the node network's table of services.
//!
//! This crate decides what leads where, `netns` makes it so. The table is always computed whole and
//! applied by difference, so a missed event cannot leave a wrong rule behind. Start at [`run`].

mod table;

use std::time::Duration;

use client::Informers;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use netns::Control;
use tokio_util::sync::CancellationToken;

pub use table::table;

/// Changes come in groups: a deployment's pods, a service and its slices.
const SETTLE: Duration = Duration::from_millis(10);
/// After the node process failed to answer.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the node's services in step with the API until `shutdown`. `node_ip` is where node ports
/// are reachable in the node network.
pub async fn run(
    informers: Informers,
    control: Control,
    node_ip: std::net::IpAddr,
    shutdown: CancellationToken,
) {
    shutdown.run_until_cancelled(follow(informers, control, node_ip)).await;
}

async fn follow(informers: Informers, control: Control, node_ip: std::net::IpAddr) {
    let services = informers.get::<Service>();
    let slices = informers.get::<EndpointSlice>();
    let service_changes = services.subscribe().map(|_| ());
    let slice_changes = slices.subscribe().map(|_| ());
    let mut changes = std::pin::pin!(futures::stream::select(service_changes, slice_changes));
    services.ready().await;
    slices.ready().await;
    loop {
        let wanted = table(&services.store().state(), &slices.store().state(), node_ip);
        if let Err(error) = control.apply_services(wanted).await {
            tracing::warn!(error = error.chain(), "cannot apply the services");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        if changes.next().await.is_none() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
    }
}
