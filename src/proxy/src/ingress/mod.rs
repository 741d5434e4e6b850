//! The built-in ingress controller: HTTP and HTTPS from ports of the host to Services, as Ingress v1
//! says. Gateway API is not here.
//!
//! `routes` and `certificates` are the decisions, pure; `forward` carries requests; `listen` has the
//! ports; `report` writes class, status and events. What Ingresses say is taken up by exchanging
//! tables: no connection is dropped for it.

mod certificates;
mod forward;
mod listen;
mod report;
mod routes;

use std::net::IpAddr;
use std::sync::Arc;

use client::Informers;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::{Client, ResourceExt};
use netns::Control;
use tokio_util::sync::CancellationToken;

use crate::SETTLE;
use crate::table::Place;
use certificates::Certificates;
use forward::Forwarder;
use report::Reporter;
use routes::Routes;

/// Name of the class that is made.
const CLASS: &str = "rootlet";
/// What a class names to be ours.
const CONTROLLER: &str = "rootlet.internal/ingress-controller";
/// How classes were named before there were any (KEP-1453).
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// What the ingress controller works with.
pub struct Config {
    /// The process' caches.
    pub informers: Informers,
    /// The node process, through which pods are reached.
    pub control: Control,
    /// Writes the class, the status of Ingresses and events.
    pub client: Client,
    /// This node.
    pub place: Place,
    /// Addresses of the host on which HTTP and HTTPS are offered.
    pub addresses: Vec<IpAddr>,
}

/// Serves Ingresses until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) {
    let ingresses = config.informers.get::<Ingress>();
    let classes = config.informers.get::<IngressClass>();
    let services = config.informers.get::<Service>();
    let slices = config.informers.get::<EndpointSlice>();
    let secrets = config.informers.get::<Secret>();
    let mut changes = std::pin::pin!(futures::stream::select_all([
        ingresses.subscribe().map(drop).boxed(),
        classes.subscribe().map(drop).boxed(),
        services.subscribe().map(drop).boxed(),
        slices.subscribe().map(drop).boxed(),
        secrets.subscribe().map(drop).boxed(),
    ]));
    let certificates = Arc::new(Certificates::new());
    let forwarder = Arc::new(Forwarder::new(config.control.clone()));
    let doors = listen::open(&config.addresses).await;
    let mut reporter = Reporter::new(config.client.clone(), &doors);
    let tasks = listen::serve(doors, &forwarder, &certificates, &shutdown);
    let follow = async {
        ingresses.ready().await;
        classes.ready().await;
        services.ready().await;
        slices.ready().await;
        secrets.ready().await;
        reporter.keep_class(&classes.store().state()).await;
        loop {
            let classes = classes.store().state();
            let all = ingresses.store().state();
            let ours: Vec<Arc<Ingress>> =
                all.iter().filter(|ingress| is_ours(ingress, &classes)).cloned().collect();
            let (services, slices) = (services.store().state(), slices.store().state());
            let (routes, mut problems) = Routes::new(&ours, &services, &slices, &config.place);
            forwarder.set(routes);
            problems
                .extend(certificates.set(&ours, |namespace, name| secrets.get(namespace, name)));
            reporter.tell(&all, &ours, problems).await;
            if changes.next().await.is_none() {
                return;
            }
            tokio::time::sleep(SETTLE).await;
            while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
        }
    };
    shutdown.run_until_cancelled(follow).await;
    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
}

/// Whether this controller serves an Ingress: by its class, or by the annotation of old.
fn is_ours(ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
    let spec = ingress.spec.as_ref();
    match spec.and_then(|spec| spec.ingress_class_name.as_deref()) {
        Some(name) => classes.iter().any(|class| {
            let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
            class.name_any() == name && controller == Some(CONTROLLER)
        }),
        None => ingress.annotations().get(CLASS_ANNOTATION).is_some_and(|name| name == CLASS),
    }
}

/// Something about an Ingress that keeps part of it from being served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    namespace: String,
    ingress: String,
    reason: &'static str,
    message: String,
}

impl Problem {
    fn of(ingress: &Ingress, reason: &'static str, message: String) -> Self {
        Self {
            namespace: ingress.namespace().unwrap_or_default(),
            ingress: ingress.name_any(),
            reason,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ingresses_are_served_by_class() {
        let class = |name: &str, controller: &str| {
            let class = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
            Arc::new(serde_json::from_value::<IngressClass>(class).unwrap())
        };
        let classes = [class("rootlet", CONTROLLER), class("mine", CONTROLLER), class("x", "x/y")];
        let cases = [
            (Some("rootlet"), None, true),
            (Some("mine"), None, true),
            (Some("x"), None, false),
            (Some("gone"), None, false),
            (Some("x"), Some("rootlet"), false),
            (None, Some("rootlet"), true),
            (None, Some("nginx"), false),
            (None, None, false),
        ];
        for (name, annotation, want) in cases {
            let annotations = annotation.map(|value| json!({CLASS_ANNOTATION: value}));
            let ingress = json!({"metadata": {"name": "i", "annotations": annotations},
                "spec": {"ingressClassName": name}});
            let ingress: Ingress = serde_json::from_value(ingress).unwrap();
            assert_eq!(is_ours(&ingress, &classes), want, "{name:?} {annotation:?}");
        }
    }
}
