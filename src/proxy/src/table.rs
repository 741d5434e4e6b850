//! The decision: which frontends there are and which endpoints they have.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use netns::{Backend, Frontend, Protocol, ServiceTable};

/// The label by which a slice names its service (EndpointSlice API reference).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The table for these objects. Endpoints that are not ready are left out; if a service has none
/// that is ready, those that still serve while they terminate are used, as upstream does.
pub fn table(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    node_ip: IpAddr,
) -> ServiceTable {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let namespace = slice.metadata.namespace.as_deref();
        if let (Some(namespace), Some(name)) = (namespace, labels.and_then(|l| l.get(SERVICE_NAME)))
        {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut table = ServiceTable::default();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (&service.metadata.namespace, &service.metadata.name, &service.spec)
        else {
            continue;
        };
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        for port in spec.ports.iter().flatten() {
            let backend =
                Backend { endpoints: endpoints(slices, port), affinity_s: affinity(spec) };
            for frontend in frontends(spec, port, node_ip) {
                table.services.insert(frontend, backend.clone());
            }
        }
    }
    table
}

fn frontends(spec: &ServiceSpec, port: &ServicePort, node_ip: IpAddr) -> Vec<Frontend> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return Vec::new(),
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let own = spec.cluster_ips.clone().unwrap_or_default();
    let own = if own.is_empty() { Vec::from_iter(spec.cluster_ip.clone()) } else { own };
    // A headless service has "None" here, which is no address.
    let addresses = own.iter().chain(spec.external_ips.iter().flatten());
    let virtual_ones = addresses
        .filter_map(|text| text.parse().ok())
        .filter_map(|address| Some((address, u16::try_from(port.port).ok()?)));
    let node_port = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    virtual_ones
        .chain(node_port.map(|n| (node_ip, n)))
        .map(|(address, port)| Frontend { address, protocol, port })
        .collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(10_800);
    u32::try_from(seconds).ok()
}

fn endpoints(slices: &[&EndpointSlice], port: &ServicePort) -> Vec<SocketAddr> {
    let mut ready = Vec::new();
    let mut terminating = Vec::new();
    for slice in slices {
        let wanted = port.name.as_deref().unwrap_or_default();
        let target = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| p.name.as_deref().unwrap_or_default() == wanted)
            .find_map(|p| p.port.and_then(|n| u16::try_from(n).ok()));
        let Some(target) = target else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let is_terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let serves = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            let addresses = endpoint.addresses.iter().take(1).filter_map(|a| a.parse().ok());
            let addresses = addresses.map(|a: IpAddr| SocketAddr::new(a, target));
            if is_ready {
                ready.extend(addresses);
            } else if is_terminating && serves {
                terminating.extend(addresses);
            }
        }
    }
    let mut chosen = if ready.is_empty() { terminating } else { ready };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn objects(endpoints: serde_json::Value) -> (Vec<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
        let service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}
        });
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints
        });
        let service = serde_json::from_value(service).unwrap();
        let slice = serde_json::from_value(slice).unwrap();
        (vec![Arc::new(service)], vec![Arc::new(slice)])
    }

    fn targets(endpoints: serde_json::Value) -> Vec<String> {
        let (services, slices) = objects(endpoints);
        let table = table(&services, &slices, "10.42.0.1".parse().unwrap());
        let frontend =
            Frontend { address: "10.43.0.9".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        let node_port = Frontend { address: "10.42.0.1".parse().unwrap(), port: 30080, ..frontend };
        assert_eq!(table.services[&frontend], table.services[&node_port]);
        table.services[&frontend].endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ready_endpoints_are_used_and_serving_ones_as_a_last_resort() {
        let ready = json!({"addresses": ["10.42.0.2"], "conditions": {"ready": true}});
        let unready = json!({"addresses": ["10.42.0.3"], "conditions": {"ready": false}});
        let ending = json!({"addresses": ["10.42.0.4"],
            "conditions": {"ready": false, "serving": true, "terminating": true}});
        assert_eq!(targets(json!([ready, unready, ending])), ["10.42.0.2:8080"]);
        assert_eq!(targets(json!([unready, ending])), ["10.42.0.4:8080"]);
        assert!(targets(json!([unready])).is_empty());
    }
}
