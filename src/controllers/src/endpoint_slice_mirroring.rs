//! EndpointSlices after Endpoints that people keep by hand, for Services without a selector.
//!
//! Source: `pkg/controller/endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use client::Informers;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::Api;
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::endpoint_slice::{
    Changes, Content, Labels, MANAGED_BY, PER_SLICE, SERVICE_NAME, reconcile, selector,
};
use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::touched;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What speaks of the Endpoints alone.
const NOT_MIRRORED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Most addresses of a subset that are mirrored.
const SUBSET_MAX: usize = 1000;

/// Whether the Endpoints are to be mirrored.
fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skipped = endpoints.labels().get(SKIP).is_some_and(|value| value == "true")
        || endpoints.annotations().contains_key(LEADER)
        || endpoints.metadata.deletion_timestamp.is_some();
    !skipped
        && service.is_some_and(|service| {
            selector(service).is_none() && service.metadata.deletion_timestamp.is_none()
        })
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// The slices of one subset: one address family and at most a hundred endpoints each.
fn mirrored(subset: &EndpointSubset) -> Vec<Content> {
    let ports: Vec<EndpointPort> = subset
        .ports
        .iter()
        .flatten()
        .map(|port| EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        })
        .collect();
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
    let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
    for (address, ready) in ready.chain(others).take(SUBSET_MAX) {
        let family = match address.ip.parse() {
            Ok(IpAddr::V4(_)) => "IPv4",
            Ok(IpAddr::V6(_)) => "IPv6",
            Err(_) => continue,
        };
        families.entry(family).or_default().push(endpoint(address, ready));
    }
    let mut slices = Vec::new();
    for (family, mut endpoints) in families {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        slices.extend(endpoints.chunks(PER_SLICE).map(|chunk| Content {
            slice: None,
            address_type: family.to_owned(),
            ports: ports.clone(),
            endpoints: chunk.to_vec(),
        }));
    }
    slices
}

fn labels(endpoints: &Endpoints) -> Labels {
    let mut labels = endpoints.labels().clone();
    labels.remove(ENDPOINTS_MANAGED_BY);
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn decide(endpoints: &Endpoints, found: &[&EndpointSlice]) -> Changes {
    let wanted = endpoints.subsets.iter().flatten().flat_map(mirrored).collect();
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    reconcile(endpoints, &labels(endpoints), Some(&annotations), wanted, found)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let services = informers.get::<Service>();
    let all = informers.get::<Endpoints>();
    let slices = informers.get::<EndpointSlice>();
    services.ready().await;
    all.ready().await;
    slices.ready().await;
    let of_slice = |slice: &EndpointSlice| {
        let ours = slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
        let service = slice.labels().get(SERVICE_NAME).filter(|_| ours).cloned();
        service.map(|name| (slice.namespace().unwrap_or_default(), name)).into_iter().collect()
    };
    let changes = futures::stream::select(
        touched(&services, |service| vec![ownership::key(service)]),
        futures::stream::select(
            touched(&all, |endpoints| vec![ownership::key(endpoints)]),
            touched(&slices, of_slice),
        ),
    );
    queue::run("endpointslice-mirroring", changes, shutdown, |key: Key| {
        let service = services.get(&key.0, &key.1);
        let found: Vec<_> = slices.store().state_filter(|slice| {
            slice.namespace().as_deref() == Some(&key.0)
                && slice.labels().get(SERVICE_NAME) == Some(&key.1)
                && slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
        });
        let found: Vec<&EndpointSlice> = found.iter().map(AsRef::as_ref).collect();
        let changes = match all.get(&key.0, &key.1) {
            Some(endpoints) if is_mirrored(&endpoints, service.as_deref()) => {
                decide(&endpoints, &found)
            }
            _ => Changes::none_left(&found),
        };
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.0);
        Box::pin(async move {
            changes.write(&api).await?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(labels: serde_json::Value) -> Endpoints {
        serde_json::from_value(
            json!({"metadata": {"name": "s", "namespace": "n", "labels": labels},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 80}]}]}),
        )
        .expect("endpoints")
    }

    #[test]
    fn each_family_has_its_slice() {
        let told: Vec<_> = mirrored(&endpoints(json!({})).subsets.expect("subsets")[0])
            .into_iter()
            .map(|c| (c.address_type, c.endpoints.len(), c.ports[0].port))
            .collect();
        assert_eq!(told, [("IPv4".to_owned(), 2, Some(80)), ("IPv6".to_owned(), 1, Some(80))]);
    }

    #[test]
    fn only_services_without_selector_are_mirrored() {
        let service = |selector: serde_json::Value| -> Service {
            serde_json::from_value(json!({"spec": {"selector": selector}})).expect("a service")
        };
        let (plain, skipped) = (endpoints(json!({})), endpoints(json!({SKIP: "true"})));
        assert!(is_mirrored(&plain, Some(&service(json!(null)))));
        assert!(!is_mirrored(&plain, Some(&service(json!({"a": "b"})))));
        assert!(!is_mirrored(&skipped, Some(&service(json!(null)))) && !is_mirrored(&plain, None));
    }

    #[test]
    fn annotations_are_mirrored_but_for_those_of_the_endpoints_alone() {
        let mut of = endpoints(json!({}));
        of.annotations_mut().insert("mine".into(), "1".into());
        of.annotations_mut().insert(NOT_MIRRORED[0].into(), "now".into());
        let Changes { mut create, .. } = decide(&of, &[]);
        for (index, slice) in create.iter_mut().enumerate() {
            slice.metadata.name = Some(index.to_string());
        }
        let known: Vec<&EndpointSlice> = create.iter().collect();
        let told = known[0].annotations().keys().collect::<Vec<_>>();
        assert_eq!(told, ["mine"]);
        assert_eq!(decide(&of, &known), Changes::default());
        of.annotations_mut().insert("mine".into(), "2".into());
        assert_eq!(decide(&of, &known).update.len(), known.len());
    }
}
