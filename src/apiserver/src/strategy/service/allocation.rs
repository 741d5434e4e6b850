//! Cluster addresses and node ports for Services.
//!
//! Source: `pkg/registry/core/service/storage/alloc.go`, and of addresses from several ServiceCIDRs
//! `ipallocator/cidrallocator.go`. What is in use is read from the Services and the IPAddresses; a
//! request holds what it was given until its Service is stored, or for a moment if it is never heard of
//! again.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta};
use serde_json::{Value, json};

use super::addresses::is_taken;
use super::families;
use super::range::{Network, Range};
use crate::cache::Cache;
use crate::object::Object;
use crate::registry::Registry;
use crate::zero::Zero;

/// Ports of nodes that Services get (`--service-node-port-range`).
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// How long an allocation is held for a Service that is being written.
const HELD: Duration = Duration::from_secs(30);

/// A node port: number and protocol.
type Port = (u16, String);

/// Hands out cluster addresses and node ports.
pub struct Allocator {
    network: Network,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The change of the Services that `addresses` and `ports` show.
    revision: Option<u64>,
    /// What stored Services have, to their uids.
    addresses: HashMap<IpAddr, String>,
    ports: HashMap<Port, String>,
    held_addresses: HashMap<IpAddr, (String, Instant)>,
    held_ports: HashMap<Port, (String, Instant)>,
    /// The change of the ServiceCIDRs that `ranges` shows.
    ranges_revision: Option<u64>,
    /// The ranges that may be used.
    ranges: Vec<Range>,
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
        state.read_ranges(registry, self.network);
        let addresses = self.addresses(&state, registry, service, old, &uid)?;
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
        state: &State,
        registry: &Registry,
        service: &mut Value,
        old: Option<&Value>,
        uid: &str,
    ) -> Result<Vec<IpAddr>, Status> {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(Vec::new());
        }
        let first = spec["clusterIPs"].items().first().map_or("", Zero::text);
        let first = if first.is_empty() { spec["clusterIP"].text() } else { first }.to_owned();
        let second = spec["clusterIPs"].items().get(1).map_or("", Zero::text).to_owned();
        let available = (self.network.of("IPv4").is_some(), self.network.of("IPv6").is_some());
        let families = families::decide(service, &first, available)
            .map_err(|error| invalid(service, error))?;
        service["spec"]["ipFamilyPolicy"] = families.policy.into();
        service["spec"]["ipFamilies"] = json!(families.list);
        if first == "None" {
            set_addresses(service, &[first]);
            return Ok(Vec::new());
        }
        let kept = |asked: &str| {
            old.is_some_and(|old| old["spec"]["clusterIPs"].texts().any(|had| had == asked))
        };
        let mut given = Vec::new();
        for (family, asked) in families.list.iter().zip([first, second]) {
            let address = match asked.parse() {
                _ if asked.is_empty() => state.free_address(registry, family).ok_or_else(|| {
                    Status::internal("failed to allocate a serviceIP: range is full")
                })?,
                Ok(address) if kept(&asked) => address,
                Ok(address) => state
                    .reserve(registry, uid, address, family)
                    .map_err(|why| refused(service, &asked, &why))?,
                Err(_) => return Err(refused(service, &asked, OTHER_NETWORK)),
            };
            given.push(address);
        }
        set_addresses(service, &given.iter().map(ToString::to_string).collect::<Vec<_>>());
        Ok(given)
    }
}

const OTHER_NETWORK: &str = "the provided network does not match the current range";

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

/// The ranges of a ServiceCIDR, if it is ready.
fn ready_ranges(object: &Object) -> Vec<Range> {
    let value = object.value();
    let mut conditions = value["status"]["conditions"].items().iter();
    // One that nobody has looked at yet counts as ready, for where nobody does.
    let ready = conditions.find(|c| c["type"] == "Ready").is_none_or(|c| c["status"] == "True");
    if !ready || value["metadata"]["deletionTimestamp"].is_set() {
        return Vec::new();
    }
    value["spec"]["cidrs"].texts().filter_map(Range::parse).collect()
}

impl State {
    /// Takes in what has happened to Services since the last time.
    fn refresh(&mut self, registry: &Registry) {
        self.held_addresses.retain(|_, (_, since)| since.elapsed() < HELD);
        self.held_ports.retain(|_, (_, since)| since.elapsed() < HELD);
        let Some(cache) = registry.cache_of("", "services") else { return };
        let Some(Ok(changes)) = self.revision.map(|revision| cache.since(revision)) else {
            self.read_all(&cache);
            return;
        };
        for change in changes {
            if let Some(before) = &change.previous {
                self.forget(before);
            }
            if let Some(after) = &change.current {
                self.note(after);
            }
            self.revision = Some(change.revision);
        }
    }

    fn read_all(&mut self, cache: &Cache) {
        self.addresses.clear();
        self.ports.clear();
        let snapshot = cache.snapshot();
        for (_, service) in snapshot.select("", None) {
            self.note(service);
        }
        self.revision = Some(snapshot.revision);
    }

    fn note(&mut self, service: &Object) {
        let value = service.value();
        let spec = &value["spec"];
        for address in spec["clusterIPs"].texts().filter_map(|ip| ip.parse().ok()) {
            self.addresses.insert(address, service.uid.clone());
        }
        for port in node_ports(spec) {
            self.ports.insert(port, service.uid.clone());
        }
    }

    fn forget(&mut self, service: &Object) {
        let value = service.value();
        let spec = &value["spec"];
        for address in spec["clusterIPs"].texts().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            if self.addresses.get(&address) == Some(&service.uid) {
                self.addresses.remove(&address);
            }
        }
        for port in node_ports(spec) {
            if self.ports.get(&port) == Some(&service.uid) {
                self.ports.remove(&port);
            }
        }
    }

    /// Reads the ServiceCIDRs, if they have changed. The range the server was started with stands in
    /// where there are none.
    fn read_ranges(&mut self, registry: &Registry, network: Network) {
        let revision = registry.changed(super::NETWORKING, "servicecidrs");
        if self.ranges_revision == Some(revision) {
            return;
        }
        let all = registry.list(super::NETWORKING, "servicecidrs", None);
        self.ranges = all.iter().flat_map(|object| ready_ranges(object)).collect();
        if all.is_empty() {
            self.ranges = network.four.into_iter().chain(network.six).collect();
        }
        self.ranges_revision = Some(revision);
    }

    /// Takes an address that was asked for, if it is in range and nobody else's; else tells why not.
    fn reserve(
        &self,
        registry: &Registry,
        uid: &str,
        address: IpAddr,
        family: &str,
    ) -> Result<IpAddr, String> {
        let mut ranges = self.ranges.iter().filter(|range| range.family() == family);
        let Some(range) = ranges.find(|range| range.contains(address)) else {
            return Err(OTHER_NETWORK.to_owned());
        };
        if !range.is_usable(address) {
            return Err(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
            ));
        }
        if self.is_free(registry, address, uid) {
            Ok(address)
        } else {
            Err("provided IP is already allocated".into())
        }
    }

    /// Whether nobody has the address, `uid` aside.
    fn is_free(&self, registry: &Registry, address: IpAddr, uid: &str) -> bool {
        let held = self.held_addresses.get(&address).map(|(uid, _)| uid);
        let holder = self.addresses.get(&address).or(held);
        holder.is_none_or(|holder| holder == uid) && !is_taken(registry, address)
    }

    /// A free address of any range of the family that is ready.
    fn free_address(&self, registry: &Registry, family: &str) -> Option<IpAddr> {
        let ranges = self.ranges.iter().filter(|range| range.family() == family);
        ranges
            .flat_map(|range| range.candidates())
            .find(|address| self.is_free(registry, *address, ""))
    }

    fn port_holder(&self, port: &Port) -> Option<&str> {
        let held = self.held_ports.get(port).map(|(uid, _)| uid);
        self.ports.get(port).or(held).map(String::as_str)
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
    fn addresses_are_given_once() {
        let (allocator, registry) = allocator();
        let mut seen = HashSet::new();
        for i in 0..20 {
            let mut s = service(&i.to_string(), json!({"type": "ClusterIP"}));
            allocator.allocate(&registry, &mut s, None, false).unwrap();
            let address: IpAddr = s["spec"]["clusterIP"].text().parse().unwrap();
            assert!(allocator.network.four.unwrap().is_usable(address));
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
            r#"Service "s" is invalid: spec.clusterIPs: Invalid value: ["10.43.0.10"]: failed to allocate IP 10.43.0.10: provided IP is already allocated"#
        );
        for (address, want) in [
            ("10.44.0.10", "the provided network does not match the current range"),
            ("10.43.0.0", "The range of valid IPs is 10.43.0.0/16"),
            ("10.43.255.255", "The range of valid IPs is 10.43.0.0/16"),
        ] {
            assert!(wanted("c", address).unwrap_err().ends_with(want), "{address}");
        }
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
