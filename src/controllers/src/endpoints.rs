//! The older Endpoints of Services with a selector, which many clients still read.
//!
//! Source: `pkg/controller/endpoint/endpoints_controller.go`, `pkg/api/v1/endpoints/util.go` (packing).

use std::collections::{BTreeMap, BTreeSet};

use client::Informers;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::endpoint_slice::{self, HEADLESS, Labels, is_ready, selector, selects};
use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::{pods, touched, unless_code};

/// Most addresses of one object.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// A port: number, protocol, name, application protocol.
type Port = (i32, String, Option<String>, Option<String>);

/// The pod's address of the family in which the Service has its first.
fn ip(service: &Service, pod: &Pod) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let own = |cluster_ip: &&String| !cluster_ip.is_empty() && *cluster_ip != "None";
    let v6 = match spec.ip_families.as_deref() {
        Some([first, ..]) => first == "IPv6",
        _ => spec.cluster_ip.as_ref().filter(own).is_some_and(|ip| ip.contains(':')),
    };
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    all.filter(|ip| !ip.is_empty()).find(|ip| ip.contains(':') == v6).cloned()
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let ip = ip(service, pod)?;
    let spec = pod.spec.as_ref()?;
    let named = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    Some(EndpointAddress {
        ip,
        hostname: spec.hostname.clone().filter(|hostname| named && !hostname.is_empty()),
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

/// The subsets: addresses that have the same ports stand together.
fn subsets(service: &Service, pods: &[&Pod]) -> Vec<EndpointSubset> {
    let Some(spec) = service.spec.as_ref() else { return Vec::new() };
    let publish = spec.publish_not_ready_addresses == Some(true);
    let ports: Vec<_> = spec.ports.iter().flatten().collect();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let mut packed: BTreeMap<BTreeSet<Port>, EndpointSubset> = BTreeMap::new();
    let mut sorted: Vec<_> = pods
        .iter()
        .filter(|pod| !pods::is_finished(pod))
        .filter(|pod| publish || pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| Some((address(service, pod)?, publish || is_ready(pod), *pod)))
        .collect();
    sorted.sort_by(|(a, ..), (b, ..)| a.ip.cmp(&b.ip));
    // Ready addresses have the first claim to a place.
    sorted.sort_by_key(|(_, ready, _)| !ready);
    sorted.truncate(CAPACITY);
    for (address, ready, pod) in sorted {
        let found: BTreeSet<Port> = ports
            .iter()
            .filter_map(|port| {
                let number = endpoint_slice::target(port, pod)?;
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                let name = port.name.clone().filter(|name| !name.is_empty());
                Some((number, protocol, name, port.app_protocol.clone()))
            })
            .collect();
        if found.is_empty() && !(headless && ports.is_empty()) {
            continue;
        }
        let subset = packed.entry(found).or_default();
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let with_ports =
        |(ports, mut subset): (BTreeSet<Port>, EndpointSubset)| {
            let ports = ports.into_iter().map(|(port, protocol, name, app_protocol)| {
                EndpointPort { app_protocol, name, port, protocol: Some(protocol) }
            });
            subset.ports = Some(ports.collect::<Vec<_>>()).filter(|ports| !ports.is_empty());
            subset
        };
    packed.into_iter().map(with_ports).collect()
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Create(Endpoints),
    Replace(Endpoints),
}

fn decide(service: &Service, pods: &[&Pod], found: Option<&Endpoints>) -> Step {
    let subsets = subsets(service, pods);
    let full = pods.len() > CAPACITY;
    let mut wanted = found.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.namespace(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels(service));
    wanted.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    if full {
        wanted.annotations_mut().insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = wanted.metadata.annotations.as_mut() {
        annotations.remove(OVER_CAPACITY);
    }
    match found {
        None => Step::Create(wanted),
        Some(found) if *found == wanted => Step::Nothing,
        Some(_) => Step::Replace(wanted),
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let services = informers.get::<Service>();
    let (pods, all) = (informers.get::<Pod>(), informers.get::<Endpoints>());
    services.ready().await;
    pods.ready().await;
    all.ready().await;
    let known = services.store();
    let of_pod = move |pod: &Pod| {
        let all = known.state();
        let mine = all.iter().filter(|service| {
            service.namespace() == pod.namespace()
                && selector(service).is_some_and(|s| selects(s, pod.metadata.labels.as_ref()))
        });
        mine.map(|service| ownership::key(service.as_ref())).collect()
    };
    let changes = futures::stream::select(
        touched(&services, |service| vec![ownership::key(service)]),
        futures::stream::select(
            touched(&pods, of_pod),
            touched(&all, |endpoints| vec![ownership::key(endpoints)]),
        ),
    );
    queue::run("endpoints", changes, shutdown, |key: Key| {
        let service = services.get(&key.0, &key.1);
        let found = all.get(&key.0, &key.1);
        let step = service.as_deref().and_then(|service| {
            let selector = selector(service)?.clone();
            let chosen = pods.store().state_filter(|pod| {
                pod.namespace().as_deref() == Some(&key.0)
                    && selects(&selector, pod.metadata.labels.as_ref())
            });
            let chosen: Vec<&Pod> = chosen.iter().map(AsRef::as_ref).collect();
            Some(decide(service, &chosen, found.as_deref()))
        });
        // Only what this controller made goes with the Service.
        let ours = found.is_some_and(|found| {
            found.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
        });
        let gone = service.is_none() && ours;
        let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.0);
        Box::pin(async move {
            let parameters = PostParams::default();
            match step {
                Some(Step::Create(endpoints)) => drop(api.create(&parameters, &endpoints).await?),
                Some(Step::Replace(endpoints)) => {
                    api.replace(&key.1, &parameters, &endpoints).await?;
                }
                None if gone => {
                    unless_code(api.delete(&key.1, &DeleteParams::default()).await, 404)?;
                }
                Some(Step::Nothing) | None => {}
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": {"clusterIP": "10.43.0.9", "selector": {"a": "b"}, "ports": ports}}))
        .expect("a service")
    }

    fn pod(ip: &str, ready: &str, port: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": ip, "namespace": "n", "uid": ip},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip, "phase": "Running",
                "conditions": [{"type": "Ready", "status": ready}]}}))
        .expect("a pod")
    }

    #[test]
    fn addresses_with_equal_ports_stand_together() {
        let service = service(json!([{"port": 80, "targetPort": "web"}]));
        let pods = [
            pod("10.0.0.2", "True", 80),
            pod("10.0.0.1", "False", 80),
            pod("10.0.0.3", "True", 90),
        ];
        let pods: Vec<&Pod> = pods.iter().collect();
        let told: Vec<_> = subsets(&service, &pods)
            .into_iter()
            .map(|s| {
                let ips = |list: Option<Vec<EndpointAddress>>| {
                    list.into_iter().flatten().map(|a| a.ip).collect::<Vec<_>>().join(",")
                };
                let port = s.ports.expect("ports")[0].port;
                (port, ips(s.addresses), ips(s.not_ready_addresses))
            })
            .collect();
        let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let (first, second) = (text("10.0.0.2", "10.0.0.1"), text("10.0.0.3", ""));
        assert_eq!(told, [(80, first.0, first.1), (90, second.0, second.1)]);
    }

    #[test]
    fn addresses_are_of_the_services_first_family() {
        let mut pod = pod("10.0.0.1", "True", 80);
        let both = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        pod.status.as_mut().expect("a status").pod_ips =
            serde_json::from_value(both).expect("addresses");
        for (families, cluster_ip, want) in [
            (json!(["IPv4", "IPv6"]), "10.43.0.9", "10.0.0.1"),
            (json!(["IPv6"]), "fd01::9", "fd00::1"),
            (json!(["IPv6", "IPv4"]), "None", "fd00::1"),
            (json!(null), "fd01::9", "fd00::1"),
            (json!(null), "None", "10.0.0.1"),
        ] {
            let service = json!({"metadata": {"name": "s"},
                "spec": {"clusterIP": cluster_ip, "ipFamilies": families}});
            let service: Service = serde_json::from_value(service).expect("a service");
            assert_eq!(ip(&service, &pod).as_deref(), Some(want), "{families} {cluster_ip}");
        }
    }

    #[test]
    fn nothing_is_written_twice() {
        let service = service(json!([{"port": 80}]));
        let pod = pod("10.0.0.1", "True", 80);
        let Step::Create(made) = decide(&service, &[&pod], None) else { panic!("it is made") };
        assert_eq!(decide(&service, &[&pod], Some(&made)), Step::Nothing);
        let Step::Replace(emptied) = decide(&service, &[], Some(&made)) else {
            panic!("it is replaced")
        };
        assert_eq!(emptied.subsets, None);
    }
}
