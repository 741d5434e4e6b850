//! EndpointSlices after Endpoints that people keep by hand, for Services without a selector.
//!
//! Source: `pkg/controller/endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::Api;
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::endpoint_slice::{
    Changes, Content, Labels, MANAGED_BY, SERVICE_NAME, reconcile, selector,
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
/// Most addresses of a subset that are mirrored, and most endpoints of a slice: a subset needs one slice for each
/// family of addresses (`--mirroring-max-endpoints-per-subset`).
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

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
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

/// What Endpoints come to: their slices, one for each family of addresses and set of ports; addresses that are none; and
/// those that are too many.
struct Mirrored {
    slices: Vec<Content>,
    invalid: usize,
    surplus: usize,
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
    });
    ports.collect()
}

fn mirrored(subsets: &[EndpointSubset]) -> Mirrored {
    let (mut invalid, mut surplus) = (0, 0);
    // By address: one that is told twice counts as it was told last.
    let mut groups: Vec<(&str, Vec<EndpointPort>, BTreeMap<IpAddr, Endpoint>)> = Vec::new();
    for subset in subsets {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut left = SUBSET_MAX;
        for (address, ready) in ready.chain(others) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                invalid += 1;
                continue;
            };
            if left == 0 {
                surplus += 1;
                continue;
            }
            left -= 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let at = groups.iter().position(|(f, p, _)| *f == family && *p == ports);
            let at = at.unwrap_or_else(|| {
                groups.push((family, ports.clone(), BTreeMap::new()));
                groups.len() - 1
            });
            groups[at].2.insert(ip, endpoint(address, ip, ready));
        }
    }
    let slices = groups.into_iter().map(|(family, ports, endpoints)| Content {
        slice: None,
        address_type: family.to_owned(),
        ports,
        endpoints: endpoints.into_values().take(SUBSET_MAX).collect(),
    });
    Mirrored { slices: slices.collect(), invalid, surplus }
}

/// Tells of addresses that are not mirrored.
fn tell(events: &Recorder, endpoints: &Endpoints, told: &Mirrored) {
    let about = || object_reference(endpoints);
    if told.invalid > 0 {
        let message = format!(
            "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
            told.invalid
        );
        events.warning(about(), "InvalidIPAddress", message);
    }
    if told.surplus > 0 {
        let message = format!(
            "A max of {SUBSET_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
            told.invalid + told.surplus
        );
        events.warning(about(), "TooManyAddressesToMirror", message);
    }
}

fn labels(endpoints: &Endpoints) -> Labels {
    let mut labels = endpoints.labels().clone();
    labels.remove(ENDPOINTS_MANAGED_BY);
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn decide(endpoints: &Endpoints, wanted: Vec<Content>, found: &[&EndpointSlice]) -> Changes {
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    reconcile(endpoints, &labels(endpoints), Some(&annotations), wanted, found)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let services = informers.get::<Service>();
    let all = informers.get::<Endpoints>();
    let slices = informers.get::<EndpointSlice>();
    let events = Recorder::new(client.clone(), "endpoint-slice-mirroring-controller", "");
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
                let wanted = mirrored(endpoints.subsets.as_deref().unwrap_or_default());
                tell(&events, &endpoints, &wanted);
                decide(&endpoints, wanted.slices, &found)
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
    fn each_family_and_set_of_ports_has_its_slice() {
        let subset = |ready: &[&str], others: &[&str], port: i32| -> EndpointSubset {
            let list = |ips: &[&str]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
            serde_json::from_value(json!({"addresses": list(ready),
                "notReadyAddresses": list(others), "ports": [{"port": port}]}))
            .expect("a subset")
        };
        let many: Vec<String> =
            (0..1200).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let told = |subsets: &[EndpointSubset]| {
            let Mirrored { slices, invalid, surplus } = mirrored(subsets);
            let slices = slices.iter().map(|c| {
                let ready = c.endpoints.iter().filter(|endpoint| {
                    endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true))
                });
                let port = c.ports[0].port.unwrap_or_default();
                format!("{}:{port} {}/{}", c.address_type, ready.count(), c.endpoints.len())
            });
            (slices.collect::<Vec<_>>().join(", "), invalid, surplus)
        };
        let some = ["192.0.2.1", "2001:DB8::1"];
        for (subsets, want) in [
            (vec![], ("", 0, 0)),
            (vec![subset(&some, &["192.0.2.2"], 80)], ("IPv4:80 1/2, IPv6:80 1/1", 0, 0)),
            (
                vec![subset(&some, &[], 80), subset(&some[..1], &[], 81)],
                ("IPv4:80 1/1, IPv6:80 1/1, IPv4:81 1/1", 0, 0),
            ),
            // The same ports share a slice, and an address is there once.
            (
                vec![subset(&["192.0.2.3"], &[], 80), subset(&some[..1], &["192.0.2.3"], 80)],
                ("IPv4:80 1/2", 0, 0),
            ),
            (vec![subset(&["here"], &some[..1], 80)], ("IPv4:80 0/1", 1, 0)),
            (vec![subset(&many[..150], &[], 80)], ("IPv4:80 150/150", 0, 0)),
            (vec![subset(&many, &[], 80)], ("IPv4:80 1000/1000", 0, 200)),
        ] {
            assert_eq!(told(&subsets), (want.0.to_owned(), want.1, want.2));
        }
        let slices = mirrored(&[subset(&some, &[], 80)]).slices;
        assert_eq!(slices[1].endpoints[0].addresses, ["2001:db8::1"]);
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

    fn decide_for(of: &Endpoints, found: &[&EndpointSlice]) -> Changes {
        decide(of, mirrored(of.subsets.as_deref().expect("subsets")).slices, found)
    }

    #[test]
    fn annotations_are_mirrored_but_for_those_of_the_endpoints_alone() {
        let mut of = endpoints(json!({}));
        of.annotations_mut().insert("mine".into(), "1".into());
        of.annotations_mut().insert(NOT_MIRRORED[0].into(), "now".into());
        let Changes { mut create, .. } = decide_for(&of, &[]);
        for (index, slice) in create.iter_mut().enumerate() {
            slice.metadata.name = Some(index.to_string());
        }
        let known: Vec<&EndpointSlice> = create.iter().collect();
        let told = known[0].annotations().keys().collect::<Vec<_>>();
        assert_eq!(told, ["mine"]);
        assert_eq!(decide_for(&of, &known), Changes::default());
        of.annotations_mut().insert("mine".into(), "2".into());
        assert_eq!(decide_for(&of, &known).update.len(), known.len());
    }
}
