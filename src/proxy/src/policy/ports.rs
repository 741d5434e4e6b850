//! On which ports a rule holds. Ports are the receiver's, and so are their names: for ingress the
//! selected pod's, for egress the peer's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netns::{PolicyRule, PortRange, Protocol};

use super::World;
use super::peers::{Peers, names};

/// The rules for what may reach `pod`.
pub(super) fn ingress(
    peers: &Peers,
    ports: Option<&[NetworkPolicyPort]>,
    pod: &Pod,
) -> Vec<PolicyRule> {
    if peers.is_empty() {
        return Vec::new();
    }
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
        return vec![peers.rule()];
    };
    let numbers = ports.iter().filter_map(|port| match name_of(port) {
        Some((name, protocol)) => {
            let number = container_port(pod, name, protocol)?;
            Some(PortRange { protocol, first: number, last: number })
        }
        None => range_of(port),
    });
    on(peers.rule(), numbers.collect()).into_iter().collect()
}

/// The rules for what may be reached.
pub(super) fn egress(
    peers: &Peers,
    ports: Option<&[NetworkPolicyPort]>,
    world: &World,
) -> Vec<PolicyRule> {
    if peers.is_empty() {
        return Vec::new();
    }
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else {
        return vec![peers.rule()];
    };
    let mut rules = Vec::new();
    rules.extend(on(peers.rule(), ports.iter().filter_map(range_of).collect()));
    // A name means another number in every pod.
    let mut by_number: BTreeMap<PortRange, Vec<&Pod>> = BTreeMap::new();
    for (name, protocol) in ports.iter().filter_map(name_of) {
        for pod in peers.named(world) {
            if let Some(number) = container_port(pod, name, protocol) {
                let range = PortRange { protocol, first: number, last: number };
                by_number.entry(range).or_default().push(pod);
            }
        }
    }
    rules.extend(by_number.into_iter().map(|(range, pods)| PolicyRule {
        members: names(pods.into_iter()),
        ports: Some(vec![range]),
        ..PolicyRule::default()
    }));
    rules
}

/// A rule on these ports; none if there are no ports.
fn on(rule: PolicyRule, mut ports: Vec<PortRange>) -> Option<PolicyRule> {
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then_some(PolicyRule { ports: Some(ports), ..rule })
}

fn protocol_of(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn name_of(port: &NetworkPolicyPort) -> Option<(&str, Protocol)> {
    match &port.port {
        Some(IntOrString::String(name)) => Some((name, protocol_of(port.protocol.as_deref())?)),
        _ => None,
    }
}

fn range_of(port: &NetworkPolicyPort) -> Option<PortRange> {
    let protocol = protocol_of(port.protocol.as_deref())?;
    let (first, last) = match &port.port {
        None => (0, u16::MAX),
        Some(IntOrString::Int(first)) => {
            let last = port.end_port.unwrap_or(*first);
            (u16::try_from(*first).ok()?, u16::try_from(last).ok()?)
        }
        Some(IntOrString::String(_)) => return None,
    };
    Some(PortRange { protocol, first, last })
}

fn container_port(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    let spec = pod.spec.as_ref()?;
    // Init containers that keep running have ports as well.
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| {
        port.name.as_deref() == Some(name)
            && protocol_of(port.protocol.as_deref()) == Some(protocol)
    })?;
    u16::try_from(port.container_port).ok()
}
