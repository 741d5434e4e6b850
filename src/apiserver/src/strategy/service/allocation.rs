//! Cluster addresses and node ports for Services.
//!
//! Source: `pkg/registry/core/service/storage/alloc.go`. What is in use is read from the Services
//! themselves; a request holds what it was given until its Service is stored, or for a moment if it is
//! never heard of again.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta};
use serde_json::{Value, json};

use super::families::{self, Network6};
use crate::registry::Registry;
use crate::zero::Zero;

/// Ports of nodes that Services get (`--service-node-port-range`).
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// How long an allocation is held for a Service that is being written.
const HELD: Duration = Duration::from_secs(30);

/// The networks of cluster addresses: of IPv4, of IPv6, or of both, of which IPv4 is the first then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    four: Option<Network4>,
    six: Option<Network6>,
}

impl Network {
    /// Reads `10.43.0.0/16`, `fd00:43::/112`, or both, separated by a comma
    /// (`--service-cluster-ip-range`).
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(',') {
            Some((first, second)) => Some(Self {
                four: Some(Network4::parse(first)?),
                six: Some(Network6::parse(second)?),
            }),
            None if text.contains(':') => {
                Some(Self { four: None, six: Some(Network6::parse(text)?) })
            }
            None => Some(Self { four: Some(Network4::parse(text)?), six: None }),
        }
    }

    /// The first address, that of the Service `kubernetes`.
    pub fn first(self) -> IpAddr {
        let six = || self.six.map(Network6::first);
        let first = self.four.map(|four| IpAddr::V4(four.at(0))).or_else(six);
        first.expect("there is a network of one family at least")
    }
}

/// A network of IPv4 cluster addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network4 {
    base: u32,
    bits: u32,
}

impl Network4 {
    fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let base = u32::from(base.parse::<Ipv4Addr>().ok()?);
        let bits = bits.parse::<u32>().ok().filter(|bits| (1..=28).contains(bits))?;
        Some(Self { base: base & (u32::MAX << (32 - bits)), bits })
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & (u32::MAX << (32 - self.bits)) == self.base
    }

    /// Usable addresses: neither the network's own nor the broadcast address.
    fn size(self) -> u32 {
        ((1_u64 << (32 - self.bits)) - 2) as u32
    }

    fn at(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1 + index)
    }

    /// Addresses that people choose are expected in the lower part (KEP-3070).
    fn static_part(self) -> u32 {
        (self.size() / 16).clamp(16, 256).min(self.size() / 2)
    }
}

impl Default for Network {
    /// `10.43.0.0/16`
    fn default() -> Self {
        let four = Network4 { base: u32::from(Ipv4Addr::new(10, 43, 0, 0)), bits: 16 };
        Self { four: Some(four), six: None }
    }
}

impl std::fmt::Display for Network4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.bits)
    }
}

/// A node port: number and protocol.
type Port = (u16, String);

/// Hands out cluster addresses and node ports.
pub struct Allocator {
    network: Network,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The change of the Services that `addresses` and `ports` were computed from.
    revision: u64,
    /// What stored Services have, to their uids.
    addresses: HashMap<IpAddr, String>,
    ports: HashMap<Port, String>,
    held_addresses: HashMap<IpAddr, (String, Instant)>,
    held_ports: HashMap<Port, (String, Instant)>,
    next: u32,
}

fn node_ports(spec: &Value) -> Vec<Port> {
    let port = |number: &Value| u16::try_from(number.int()).ok().filter(|number| *number != 0);
    spec["ports"]
        .items()
        .iter()
        .filter_map(|p| Some((port(&p["nodePort"])?, p["protocol"].text().to_owned())))
        .chain(port(&spec["healthCheckNodePort"]).map(|number| (number, "TCP".to_owned())))
        .collect()
}

pub(super) fn invalid(service: &Value, error: Error) -> Status {
    Status::invalid("", "Service", meta::name(service), &[error])
}

fn out_of_ports() -> Status {
    Status::internal("failed to allocate a nodePort: range is full")
}

impl Allocator {
    /// An allocator of addresses in `network`.
    pub fn new(network: Network) -> Self {
        Self { network, state: Mutex::default() }
    }

    /// Gives `service` what it needs and does not have. `old` is the stored Service of an update.
    pub fn allocate(
        &self,
        registry: &Registry,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<(), Status> {
        if !service["spec"].is_object() {
            return Ok(());
        }
        let uid = meta::uid(service).to_owned();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.refresh(registry);
        let addresses = self.addresses(&mut state, service, &uid)?;
        let ports = ports(&state, service, old, &uid)?;
        if dry_run {
            return Ok(());
        }
        let now = Instant::now();
        for address in addresses {
            state.held_addresses.insert(address, (uid.clone(), now));
        }
        for port in ports {
            state.held_ports.insert(port, (uid.clone(), now));
        }
        Ok(())
    }

    /// Gives up what is held for a Service whose write is over: what it has is read from it.
    pub fn settle(&self, uid: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.held_addresses.retain(|_, (holder, _)| holder != uid);
        state.held_ports.retain(|_, (holder, _)| holder != uid);
    }

    /// Sets `clusterIP`, `clusterIPs` and the families; returns the addresses that are the Service's
    /// now.
    fn addresses(
        &self,
        state: &mut State,
        service: &mut Value,
        uid: &str,
    ) -> Result<Vec<IpAddr>, Status> {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(Vec::new());
        }
        let first = spec["clusterIPs"].items().first().map_or("", Zero::text);
        let first = if first.is_empty() { spec["clusterIP"].text() } else { first }.to_owned();
        let second = spec["clusterIPs"].items().get(1).map_or("", Zero::text).to_owned();
        let available = (self.network.four.is_some(), self.network.six.is_some());
        let families = families::decide(service, &first, available)
            .map_err(|error| invalid(service, error))?;
        service["spec"]["ipFamilyPolicy"] = families.policy.into();
        service["spec"]["ipFamilies"] = json!(families.list);
        if first == "None" {
            set_addresses(service, &[first]);
            return Ok(Vec::new());
        }
        let mut given = Vec::new();
        for (family, asked) in families.list.iter().zip([first, second]) {
            let address = match *family {
                "IPv4" => self.address4(state, service, uid, &asked)?,
                _ => self.address6(state, service, uid, &asked)?,
            };
            given.push(address);
        }
        set_addresses(service, &given.iter().map(ToString::to_string).collect::<Vec<_>>());
        Ok(given)
    }

    fn address4(
        &self,
        state: &mut State,
        service: &Value,
        uid: &str,
        asked: &str,
    ) -> Result<IpAddr, Status> {
        let Some(network) = self.network.four else {
            return Err(refused(service, asked, OTHER_FAMILY));
        };
        if asked.is_empty() {
            let free = state.free_address(network);
            return free.map(IpAddr::V4).ok_or_else(|| exhausted(&network.to_string()));
        }
        let Ok(address) = asked.parse::<Ipv4Addr>() else {
            return Err(refused(service, asked, OTHER_FAMILY));
        };
        let range = (network.contains(address), network.to_string());
        state.reserve(service, uid, address.into(), &range)
    }

    fn address6(
        &self,
        state: &mut State,
        service: &Value,
        uid: &str,
        asked: &str,
    ) -> Result<IpAddr, Status> {
        let Some(network) = self.network.six else {
            return Err(refused(service, asked, OTHER_FAMILY));
        };
        if asked.is_empty() {
            let free = network.candidates().find(|ip| state.address_holder(*ip).is_none());
            return free.ok_or_else(|| exhausted(&network.to_string()));
        }
        let Ok(IpAddr::V6(address)) = asked.parse() else {
            return Err(refused(service, asked, OTHER_FAMILY));
        };
        let range = (network.contains(address), network.to_string());
        state.reserve(service, uid, address.into(), &range)
    }
}

const OTHER_FAMILY: &str = "the provided network does not match the current range";

fn exhausted(range: &str) -> Status {
    Status::internal(format!("failed to allocate a serviceIP: range {range} is full"))
}

fn refused(service: &Value, address: &str, why: &str) -> Status {
    let path = Path::new("spec").child("clusterIPs");
    let detail = format!("failed to allocate IP {address}: {why}");
    invalid(service, Error::invalid(&path, json!([address]), detail))
}

fn set_addresses(service: &mut Value, addresses: &[String]) {
    let spec = &mut service["spec"];
    spec["clusterIP"] = addresses.first().cloned().unwrap_or_default().into();
    spec["clusterIPs"] = json!(addresses);
}

impl State {
    fn refresh(&mut self, registry: &Registry) {
        let revision = registry.changed("", "services");
        if revision != self.revision {
            self.addresses.clear();
            self.ports.clear();
            for service in registry.list("", "services", None) {
                let value = service.value();
                let spec = &value["spec"];
                for address in spec["clusterIPs"].texts().filter_map(|ip| ip.parse().ok()) {
                    self.addresses.insert(address, service.uid.clone());
                }
                for port in node_ports(spec) {
                    self.ports.insert(port, service.uid.clone());
                }
            }
            self.revision = revision;
        }
        self.held_addresses.retain(|_, (_, since)| since.elapsed() < HELD);
        self.held_ports.retain(|_, (_, since)| since.elapsed() < HELD);
    }

    /// Takes an address that was asked for, if it is in range and nobody else's.
    fn reserve(
        &self,
        service: &Value,
        uid: &str,
        address: IpAddr,
        (in_range, range): &(bool, String),
    ) -> Result<IpAddr, Status> {
        match self.address_holder(address) {
            Some(holder) if holder != uid => {
                Err(refused(service, &address.to_string(), "provided IP is already allocated"))
            }
            None if !in_range => {
                let why = format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
                );
                Err(refused(service, &address.to_string(), &why))
            }
            _ => Ok(address),
        }
    }

    fn address_holder(&self, address: IpAddr) -> Option<&str> {
        let held = self.held_addresses.get(&address).map(|(uid, _)| uid);
        self.addresses.get(&address).or(held).map(String::as_str)
    }

    fn port_holder(&self, port: &Port) -> Option<&str> {
        let held = self.held_ports.get(port).map(|(uid, _)| uid);
        self.ports.get(port).or(held).map(String::as_str)
    }

    /// A free address, from the upper part while there is one.
    fn free_address(&mut self, network: Network4) -> Option<Ipv4Addr> {
        let (low, size) = (network.static_part(), network.size());
        let (upper, start) = (size - low, self.next);
        let mut candidates = (0..upper).map(|i| low + (start + i) % upper).chain(0..low);
        let index = candidates.find(|i| self.address_holder(network.at(*i).into()).is_none())?;
        self.next = (index.max(low) - low + 1) % upper;
        Some(network.at(index))
    }

    fn free_port(&self, protocol: &str, taken: &HashSet<Port>) -> Option<u16> {
        let span = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
        // Spread over the range, so that a port just given back is not reused at once.
        let start = uuid::Uuid::new_v4().as_u128() as u32 % span;
        (0..span).map(|i| NODE_PORTS.start() + ((start + i) % span) as u16).find(|port| {
            let key = (*port, protocol.to_owned());
            self.port_holder(&key).is_none() && !taken.contains(&key)
        })
    }
}

/// Sets node ports; returns those that are the Service's now.
fn ports(
    state: &State,
    service: &mut Value,
    old: Option<&Value>,
    uid: &str,
) -> Result<HashSet<Port>, Status> {
    let mut mine = given_ports(state, service, uid)?;
    let spec = &service["spec"];
    let balanced = spec["type"] == "LoadBalancer";
    let allocate = spec["type"] == "NodePort"
        || (balanced && spec["allocateLoadBalancerNodePorts"].as_bool() != Some(false));
    if !allocate {
        return Ok(mine);
    }
    for index in 0..spec["ports"].items().len() {
        let port = &service["spec"]["ports"][index];
        if port["nodePort"].int() != 0 {
            continue;
        }
        let protocol = port["protocol"].text().to_owned();
        let free = |number: &u16| {
            let key = (*number, protocol.clone());
            !mine.contains(&key) && state.port_holder(&key).is_none_or(|holder| holder == uid)
        };
        let before = old.and_then(|old| kept_port(&old["spec"], port));
        // One number for both protocols of a port, as DNS has it.
        let twin = service["spec"]["ports"]
            .items()
            .iter()
            .filter(|other| other["port"] == port["port"])
            .find_map(|other| u16::try_from(other["nodePort"].int()).ok().filter(|n| *n != 0));
        let number = before
            .filter(free)
            .or(twin.filter(free))
            .or_else(|| state.free_port(&protocol, &mine))
            .ok_or_else(out_of_ports)?;
        service["spec"]["ports"][index]["nodePort"] = number.into();
        mine.insert((number, protocol));
    }
    let spec = &mut service["spec"];
    if balanced
        && spec["externalTrafficPolicy"] == "Local"
        && spec["healthCheckNodePort"].int() == 0
    {
        let number = state.free_port("TCP", &mine).ok_or_else(out_of_ports)?;
        spec["healthCheckNodePort"] = number.into();
        mine.insert((number, "TCP".into()));
    }
    Ok(mine)
}

/// The ports that the Service names, which must be in range and nobody else's.
fn given_ports(state: &State, service: &Value, uid: &str) -> Result<HashSet<Port>, Status> {
    let mut mine = HashSet::new();
    for (index, port) in service["spec"]["ports"].items().iter().enumerate() {
        let number = port["nodePort"].int();
        if number == 0 {
            continue;
        }
        let refused = |detail: String| {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            Err(invalid(service, Error::invalid(&path, number, detail)))
        };
        let in_range = u16::try_from(number).ok().filter(|number| NODE_PORTS.contains(number));
        let key = (u16::try_from(number).unwrap_or(0), port["protocol"].text().to_owned());
        match state.port_holder(&key) {
            Some(holder) if holder == uid => {}
            Some(_) => return refused("provided port is already allocated".into()),
            None if in_range.is_none() => {
                return refused(format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                ));
            }
            None => {}
        }
        mine.insert(key);
    }
    Ok(mine)
}

/// The node port that the same port had before.
fn kept_port(old: &Value, port: &Value) -> Option<u16> {
    let same =
        |other: &&Value| ["port", "protocol", "name"].iter().all(|key| other[key] == port[key]);
    let number = old["ports"].items().iter().find(same)?["nodePort"].int();
    u16::try_from(number).ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator() -> (Allocator, Registry) {
        (Allocator::new(Network::default()), Registry::default())
    }

    fn service(uid: &str, spec: Value) -> Value {
        json!({"metadata": {"name": "s", "uid": uid}, "spec": spec})
    }

    #[test]
    fn networks_are_read() {
        let network = Network::parse("10.43.0.0/16").unwrap();
        assert_eq!(network, Network::default());
        assert_eq!(network.four.unwrap().to_string(), "10.43.0.0/16");
        assert_eq!(network.first(), Ipv4Addr::new(10, 43, 0, 1));
        assert_eq!(Network::parse("fd00::/112").unwrap().first().to_string(), "fd00::1");
        for text in ["", "10.43.0.0", "10.43.0.0/0", "10.43.0.0/31", "fd00::/32"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_are_given_once() {
        let (allocator, registry) = allocator();
        let mut seen = HashSet::new();
        for i in 0..20 {
            let mut s = service(&i.to_string(), json!({"type": "ClusterIP"}));
            allocator.allocate(&registry, &mut s, None, false).unwrap();
            let address: Ipv4Addr = s["spec"]["clusterIP"].text().parse().unwrap();
            assert!(allocator.network.four.unwrap().contains(address));
            assert_eq!(s["spec"]["clusterIPs"], json!([address.to_string()]));
            assert!(seen.insert(address));
        }
        let mut headless = service("h", json!({"type": "ClusterIP", "clusterIP": "None"}));
        allocator.allocate(&registry, &mut headless, None, false).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn a_dual_stack_cluster_gives_both_families() {
        let allocator = Allocator::new(Network::parse("10.43.0.0/16,fd00:43::/112").unwrap());
        let registry = Registry::default();
        let give = |uid: &str, spec: Value| {
            let mut s = service(uid, spec);
            allocator.allocate(&registry, &mut s, None, false).map_err(|status| status.message)?;
            let families = s["spec"]["ipFamilies"].texts().collect::<Vec<_>>().join(",");
            let ips: Vec<IpAddr> =
                s["spec"]["clusterIPs"].texts().filter_map(|ip| ip.parse().ok()).collect();
            let told: Vec<_> = ips.iter().map(|ip| if ip.is_ipv4() { "4" } else { "6" }).collect();
            assert_eq!(s["spec"]["clusterIP"], s["spec"]["clusterIPs"][0]);
            Ok::<_, String>(format!("{families} {}", told.join("")))
        };
        let cases = [
            (json!({}), "IPv4 4"),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), "IPv4,IPv6 46"),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), "IPv4,IPv6 46"),
            (json!({"ipFamilies": ["IPv6"]}), "IPv6 6"),
            (json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}), "IPv6,IPv4 64"),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), "IPv6,IPv4 64"),
            (json!({"clusterIP": "fd00:43::77"}), "IPv6 6"),
            (json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}), "IPv4,IPv6 "),
            // What was dual and asks for one keeps its first.
            (
                json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"],
                    "clusterIPs": ["10.43.0.99", "fd00:43::99"]}),
                "IPv4 4",
            ),
        ];
        for (index, (spec, want)) in cases.into_iter().enumerate() {
            assert_eq!(give(&index.to_string(), spec.clone()).as_deref(), Ok(want), "{spec}");
        }
        let taken = give("other", json!({"clusterIP": "fd00:43::77"})).unwrap_err();
        assert!(taken.contains("already allocated"), "{taken}");
        let single = |spec: Value| {
            let mut s = service("x", spec);
            let (allocator, registry) = self::allocator();
            allocator.allocate(&registry, &mut s, None, false).unwrap_err().message
        };
        assert!(
            single(json!({"ipFamilyPolicy": "RequireDualStack"}))
                .ends_with("this cluster is not configured for dual-stack services")
        );
        assert!(
            single(json!({"ipFamilies": ["IPv6"]})).ends_with("not configured on this cluster")
        );
    }

    #[test]
    fn a_cluster_may_have_ipv6_alone() {
        let network = Network::parse("fd00:43::/112").unwrap();
        assert_eq!(network.first(), "fd00:43::1".parse::<IpAddr>().unwrap());
        let allocator = Allocator::new(network);
        let registry = Registry::default();
        let give = |spec: Value| {
            let mut s = service("x", spec);
            allocator.allocate(&registry, &mut s, None, false).map_err(|status| status.message)?;
            Ok::<_, String>(s["spec"]["ipFamilies"].texts().collect::<Vec<_>>().join(","))
        };
        for spec in [json!({}), json!({"ipFamilyPolicy": "PreferDualStack"})] {
            assert_eq!(give(spec.clone()).as_deref(), Ok("IPv6"), "{spec}");
        }
        for (spec, want) in [
            (json!({"ipFamilies": ["IPv4"]}), "not configured on this cluster"),
            (json!({"clusterIP": "10.43.0.7"}), "not configured on this cluster"),
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "this cluster is not configured for dual-stack services",
            ),
        ] {
            let refused = give(spec.clone()).unwrap_err();
            assert!(refused.ends_with(want), "{spec}: {refused}");
        }
    }

    #[test]
    fn a_small_network_runs_out() {
        let allocator = Allocator::new(Network::parse("10.0.0.0/28").unwrap());
        let registry = Registry::default();
        let give = |i: usize| {
            let mut s = service(&i.to_string(), json!({"type": "ClusterIP"}));
            allocator.allocate(&registry, &mut s, None, false)
        };
        assert!((0..14).all(|i| give(i).is_ok()));
        assert!(give(14).is_err());
    }

    #[test]
    fn wanted_addresses_are_reserved_or_refused() {
        let (allocator, registry) = allocator();
        let wanted = |uid: &str, ip: &str| {
            let mut s = service(uid, json!({"type": "ClusterIP", "clusterIP": ip}));
            allocator.allocate(&registry, &mut s, None, false).map_err(|status| status.message)
        };
        assert_eq!(wanted("a", "10.43.0.10"), Ok(()));
        assert_eq!(wanted("a", "10.43.0.10"), Ok(()), "its own");
        assert_eq!(
            wanted("b", "10.43.0.10").unwrap_err(),
            r#"Service "s" is invalid: spec.clusterIPs: Invalid value: []string{"10.43.0.10"}: failed to allocate IP 10.43.0.10: provided IP is already allocated"#
        );
        assert!(wanted("c", "10.44.0.10").unwrap_err().contains("not in the valid range"));
    }

    #[test]
    fn node_ports_are_given_kept_and_refused() {
        let (allocator, registry) = allocator();
        let ports = json!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let mut a = service("a", json!({"type": "NodePort", "ports": ports}));
        allocator.allocate(&registry, &mut a, None, false).unwrap();
        let port = a["spec"]["ports"][0]["nodePort"].int();
        assert!(NODE_PORTS.contains(&(port as u16)));
        assert_eq!(a["spec"]["ports"][1]["nodePort"].int(), port);
        let mut again = service("a", json!({"type": "NodePort", "ports": ports}));
        allocator.allocate(&registry, &mut again, Some(&a), false).unwrap();
        assert_eq!(again["spec"]["ports"], a["spec"]["ports"]);
        let refusal = |uid: &str, port: i64| {
            let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": port}]);
            let mut s = service(uid, json!({"type": "NodePort", "ports": ports}));
            allocator.allocate(&registry, &mut s, None, false).unwrap_err().message
        };
        assert!(refusal("b", port).ends_with("provided port is already allocated"));
        allocator.settle("a");
        let taken = json!([{"port": 80, "protocol": "TCP", "nodePort": port}]);
        let mut after = service("b", json!({"type": "NodePort", "ports": taken}));
        allocator.allocate(&registry, &mut after, None, false).unwrap();
        assert!(refusal("c", 80).ends_with("The range of valid ports is 30000-32767"));
    }
}
