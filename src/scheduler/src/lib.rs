//! kube-scheduler: gives every pod a node.
//!
//! A decision ([`schedule::schedule`], [`preemption::preempt`]) is a pure function of a pod and a
//! picture of the cluster ([`cluster`]). The loop (`scheduler`) keeps that picture from informers,
//! takes one pod after the other from the [`queue`], and writes the decisions while it goes on.
//! Plugins ([`plugins`]) bear upstream's names and sit at upstream's extension points
//! ([`framework`]). It speaks to the API server only, and never to the kubelet.

pub mod affinity;
pub mod allocation;
mod binding;
pub mod cache;
pub mod capacity;
pub mod cluster;
pub mod configuration;
mod device_binding;
pub mod devices;
pub mod extended_resources;
pub mod extender;
pub mod framework;
mod judgements;
pub mod late_binding;
pub mod node;
mod nominator;
pub mod owners;
mod pictures;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod queue;
mod report;
pub mod resource;
pub mod schedule;
mod scheduler;
pub mod volumes;

use tokio_util::sync::CancellationToken;

/// How to schedule.
pub struct Config {
    /// Speaks as `system:kube-scheduler`.
    pub client: kube::Client,
    /// The process' informers.
    pub informers: client::Informers,
    /// The scheduler names to serve, with their plugins, and who else is asked; pods of other schedulers are
    /// left alone.
    pub configuration: configuration::Configuration,
}

impl Config {
    /// Upstream's default configuration: the one profile `default-scheduler`.
    pub fn new(client: kube::Client, informers: client::Informers) -> Self {
        Self { client, informers, configuration: configuration::Configuration::default() }
    }
}

/// Schedules until `shutdown`. An error means that an extender's settings cannot be used.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), extender::Error> {
    // The watches end with the last clone of the informers.
    let informers = config.informers.clone();
    scheduler::Scheduler::new(config)?.run(shutdown).await;
    drop(informers);
    Ok(())
}
