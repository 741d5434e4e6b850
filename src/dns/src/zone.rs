//! The cluster's names.
//!
//! Source: Kubernetes DNS-based service discovery, specification 1.1.0.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde::{Deserialize, Serialize};

use crate::forwarding::Forwarding;

/// The version of the specification that is followed, as told under `dns-version`.
const SPECIFICATION: &str = "1.1.0";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Names that may follow each other before a chain is given up.
const CHAIN_MAX: usize = 8;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for the name.
    Cname(String),
    /// A port, and the name of the host that has it.
    Srv {
        /// Port.
        port: u16,
        /// Host.
        target: String,
    },
    /// The name of an address.
    Ptr(String),
    /// A text.
    Txt(String),
}

impl Data {
    pub(crate) fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// The kinds of questions that the zone answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// An alias.
    Cname,
    /// Ports.
    Srv,
    /// Names of an address.
    Ptr,
    /// Texts.
    Txt,
    /// Everything.
    Any,
    /// Something else, of which there is none.
    Other,
}

impl Kind {
    fn takes(self, data: &Data) -> bool {
        match data {
            Data::A(_) => matches!(self, Self::A | Self::Any),
            Data::Aaaa(_) => matches!(self, Self::Aaaa | Self::Any),
            Data::Cname(_) => matches!(self, Self::Cname | Self::Any),
            Data::Srv { .. } => matches!(self, Self::Srv | Self::Any),
            Data::Ptr(_) => matches!(self, Self::Ptr | Self::Any),
            Data::Txt(_) => matches!(self, Self::Txt | Self::Any),
        }
    }
}

/// The answer to a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Records, each with its owner. Does the chain end in a name outside the cluster, that is the
    /// target of the last one.
    Records(Vec<(String, Data)>),
    /// The name is there, without such a record.
    NoData,
    /// There is no such name.
    NxDomain,
    /// The name is not the cluster's.
    NotOurs,
}

/// All records of the cluster. Names are in lower case and without the last dot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Such as `cluster.local`.
    pub domain: String,
    /// Records by name.
    pub records: BTreeMap<String, BTreeSet<Data>>,
    /// Domains of addresses that are the cluster's alone, such as `42.10.in-addr.arpa`.
    #[serde(default)]
    pub reverse: Vec<String>,
    /// Where else names are looked up.
    #[serde(default)]
    pub forwarding: Forwarding,
    /// Names that have others below them.
    #[serde(default)]
    parents: BTreeSet<String>,
}

impl Zone {
    /// The zone of these Services and EndpointSlices.
    pub fn build(domain: &str, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Self {
        let mut zone = Self { domain: domain.to_owned(), ..Self::default() };
        zone.add(&format!("dns-version.{domain}"), Some(Data::Txt(SPECIFICATION.into())));
        let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let name = labels.and_then(|labels| labels.get(SERVICE_NAME));
            if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name) {
                by_service.entry((namespace, name)).or_default().push(slice);
            }
        }
        for service in services {
            zone.service(service, &by_service);
        }
        zone
    }

    fn add(&mut self, name: &str, data: Option<Data>) {
        let name = name.to_lowercase();
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            if !parent.ends_with(&self.domain) || !self.parents.insert(parent.to_owned()) {
                break;
            }
            rest = parent;
        }
        if let Some(data) = data {
            self.records.entry(name).or_default().insert(data);
        }
    }

    fn service(&mut self, service: &Service, slices: &HashMap<(&str, &str), Vec<&EndpointSlice>>) {
        let (Some(name), Some(namespace), Some(spec)) =
            (&service.metadata.name, &service.metadata.namespace, &service.spec)
        else {
            return;
        };
        let own = format!("{name}.{namespace}.svc.{}", self.domain);
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = &spec.external_name {
                let target = target.trim_end_matches('.').to_lowercase();
                self.add(&own, Some(Data::Cname(target)));
            }
            return;
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            for slice in slices.get(&(namespace.as_str(), name.as_str())).into_iter().flatten() {
                self.headless(&own, slice);
            }
            return;
        }
        let addresses = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
        let addresses: BTreeSet<IpAddr> =
            addresses.filter_map(|address| address.parse().ok()).collect();
        for address in addresses {
            self.add(&own, Some(Data::address(address)));
            self.add(&reverse(address), Some(Data::Ptr(own.clone())));
        }
        // Beyond the specification, as CoreDNS has it: pods that have a name have one here too.
        for slice in slices.get(&(namespace.as_str(), name.as_str())).into_iter().flatten() {
            for (hostname, address) in slice.endpoints.iter().flatten().flat_map(named) {
                self.add(&format!("{hostname}.{own}"), Some(Data::address(address)));
            }
        }
        for port in spec.ports.iter().flatten() {
            let number = u16::try_from(port.port).unwrap_or_default();
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            self.srv(&own, port.name.as_deref(), protocol, number, own.clone());
        }
    }

    fn headless(&mut self, own: &str, slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
            if ready == Some(false) {
                continue;
            }
            for address in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                let label = match &endpoint.hostname {
                    Some(hostname) if !hostname.is_empty() => hostname.clone(),
                    _ => dashed(address),
                };
                let host = format!("{label}.{own}");
                self.add(own, Some(Data::address(address)));
                self.add(&host, Some(Data::address(address)));
                self.add(&reverse(address), Some(Data::Ptr(host.clone())));
                for port in slice.ports.iter().flatten() {
                    let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else {
                        continue;
                    };
                    let protocol = port.protocol.as_deref().unwrap_or("TCP");
                    self.srv(own, port.name.as_deref(), protocol, number, host.clone());
                }
            }
        }
    }

    fn srv(&mut self, own: &str, name: Option<&str>, protocol: &str, port: u16, target: String) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            let owner = format!("_{name}._{}.{own}", protocol.to_lowercase());
            self.add(&owner, Some(Data::Srv { port, target }));
        }
    }

    /// The answer to a question about `name`, which is in lower case and without the last dot.
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        if self.domain.is_empty() || !is_below(name, &self.domain) {
            // Addresses of the cluster have names here; all other addresses are the host's to name.
            let reverse = name.rsplit('.').next() == Some("arpa");
            let Some(records) = self.records.get(name).filter(|_| reverse) else {
                let within = |domain: &String| is_below(name, domain);
                let own = reverse && self.reverse.iter().any(within);
                return if own { Answer::NxDomain } else { Answer::NotOurs };
            };
            return found(records.iter().filter(|data| kind.takes(data)).map(|d| (name, d)));
        }
        if let Some(address) = self.pod(name) {
            let data = Data::address(address);
            return found([(name, &data)].into_iter().filter(|(_, data)| kind.takes(data)));
        }
        let Some(records) = self.records.get(name) else {
            let there = name == self.domain || self.parents.contains(name);
            return if there { Answer::NoData } else { Answer::NxDomain };
        };
        let mut out: Vec<(&str, &Data)> = Vec::new();
        let mut owner = name;
        let mut records = Some(records);
        for _ in 0..CHAIN_MAX {
            let Some(here) = records else { break };
            let fitting = here.iter().filter(|data| kind.takes(data));
            out.extend(fitting.map(|data| (owner, data)));
            let alias = here.iter().find_map(|data| match data {
                Data::Cname(target) if !kind.takes(data) => Some((data, target)),
                _ => None,
            });
            let Some((data, target)) = alias else { break };
            out.push((owner, data));
            owner = target;
            records = self.records.get(target.as_str());
        }
        found(out.into_iter())
    }

    /// The address in a pod's name, such as `10-42-0-5.default.pod.cluster.local`.
    fn pod(&self, name: &str) -> Option<IpAddr> {
        let rest = name.strip_suffix(&self.domain)?.strip_suffix(".pod.")?;
        let (label, namespace) = rest.split_once('.')?;
        if namespace.is_empty() || namespace.contains('.') {
            return None;
        }
        label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
    }
}

fn found<'a>(records: impl Iterator<Item = (&'a str, &'a Data)>) -> Answer {
    let records: Vec<(String, Data)> =
        records.map(|(name, data)| (name.to_owned(), data.clone())).collect();
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

/// Whether a name is a domain's or lies in it.
pub(crate) fn is_below(name: &str, domain: &str) -> bool {
    name == domain || name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// The name that an endpoint that can be used was given, with each of its addresses.
fn named(endpoint: &Endpoint) -> impl Iterator<Item = (&str, IpAddr)> {
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
    let hostname = endpoint.hostname.as_deref().filter(|name| !name.is_empty());
    let hostname = hostname.filter(|_| ready != Some(false));
    let addresses = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
    addresses.filter_map(move |address| Some((hostname?, address)))
}

fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The name under which an address is looked up.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().into_iter().rev();
            let digits = digits.map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            format!("{}ip6.arpa", digits.collect::<String>())
        }
    }
}

#[cfg(test)]
impl Zone {
    /// A zone of records made by hand.
    pub fn of(domain: &str, records: impl IntoIterator<Item = (String, Data)>) -> Self {
        let mut zone = Self { domain: domain.to_owned(), ..Self::default() };
        for (name, data) in records {
            zone.add(&name, Some(data));
        }
        zone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn zone() -> Zone {
        let service = |value| Arc::new(serde_json::from_value::<Service>(value).unwrap());
        let services = [
            service(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
                "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443}]}})),
            service(json!({"metadata": {"name": "db", "namespace": "shop"},
                "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}})),
            service(json!({"metadata": {"name": "out", "namespace": "shop"},
                "spec": {"type": "ExternalName", "externalName": "example.org."}})),
            service(json!({"metadata": {"name": "alias", "namespace": "shop"},
                "spec": {"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"}})),
        ];
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "db-1", "namespace": "shop", "labels": {SERVICE_NAME: "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
            "endpoints": [{"addresses": ["10.42.0.7"], "hostname": "db-0"},
                {"addresses": ["10.42.0.8"], "conditions": {"ready": false}}]}))
        .unwrap();
        let mut zone = Zone::build("cluster.local", &services, &[Arc::new(slice)]);
        zone.reverse = vec!["43.10.in-addr.arpa".into()];
        zone
    }

    fn told(name: &str, kind: Kind) -> String {
        match zone().answer(name, kind) {
            Answer::Records(records) => {
                let lines: Vec<String> =
                    records.iter().map(|(name, data)| format!("{name} {data:?}")).collect();
                lines.join("; ")
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_follow_the_specification() {
        let cases = [
            (
                "kubernetes.default.svc.cluster.local",
                Kind::A,
                "kubernetes.default.svc.cluster.local A(10.43.0.1)",
            ),
            ("kubernetes.default.svc.cluster.local", Kind::Aaaa, "NoData"),
            (
                "_https._tcp.kubernetes.default.svc.cluster.local",
                Kind::Srv,
                "_https._tcp.kubernetes.default.svc.cluster.local Srv { port: 443, target: \"kubernetes.default.svc.cluster.local\" }",
            ),
            (
                "1.0.43.10.in-addr.arpa",
                Kind::Ptr,
                "1.0.43.10.in-addr.arpa Ptr(\"kubernetes.default.svc.cluster.local\")",
            ),
            ("9.9.9.9.in-addr.arpa", Kind::Ptr, "NotOurs"),
            ("9.0.43.10.in-addr.arpa", Kind::Ptr, "NxDomain"),
            ("9.0.143.10.in-addr.arpa", Kind::Ptr, "NotOurs"),
            ("dns-version.cluster.local", Kind::Txt, "dns-version.cluster.local Txt(\"1.1.0\")"),
            ("db-0.db.shop.svc.cluster.local", Kind::Aaaa, "NoData"),
            (
                "_sql._tcp.db.shop.svc.cluster.local",
                Kind::Srv,
                "_sql._tcp.db.shop.svc.cluster.local Srv { port: 5432, target: \"db-0.db.shop.svc.cluster.local\" }",
            ),
            (
                "7.0.42.10.in-addr.arpa",
                Kind::Ptr,
                "7.0.42.10.in-addr.arpa Ptr(\"db-0.db.shop.svc.cluster.local\")",
            ),
            (
                "out.shop.svc.cluster.local",
                Kind::Cname,
                "out.shop.svc.cluster.local Cname(\"example.org\")",
            ),
            ("db.shop.svc.cluster.local", Kind::A, "db.shop.svc.cluster.local A(10.42.0.7)"),
            (
                "db-0.db.shop.svc.cluster.local",
                Kind::A,
                "db-0.db.shop.svc.cluster.local A(10.42.0.7)",
            ),
            (
                "out.shop.svc.cluster.local",
                Kind::A,
                "out.shop.svc.cluster.local Cname(\"example.org\")",
            ),
            (
                "alias.shop.svc.cluster.local",
                Kind::A,
                "alias.shop.svc.cluster.local Cname(\"kubernetes.default.svc.cluster.local\"); kubernetes.default.svc.cluster.local A(10.43.0.1)",
            ),
            (
                "10-42-0-5.default.pod.cluster.local",
                Kind::A,
                "10-42-0-5.default.pod.cluster.local A(10.42.0.5)",
            ),
            ("default.svc.cluster.local", Kind::A, "NoData"),
            ("nothing.default.svc.cluster.local", Kind::A, "NxDomain"),
            ("cluster.local", Kind::A, "NoData"),
            ("example.org", Kind::A, "NotOurs"),
            ("notcluster.local", Kind::A, "NotOurs"),
        ];
        for (name, kind, want) in cases {
            assert_eq!(told(name, kind), want, "{name}");
        }
    }

    /// Specification 1.1.0, section by section: a question, and the answers in any order.
    #[test]
    fn every_record_of_the_specification_is_there() {
        let service = |value| Arc::new(serde_json::from_value::<Service>(value).unwrap());
        let services = [
            service(json!({"metadata": {"name": "web", "namespace": "ns"},
                "spec": {"clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5", "fd00:10:43::5"],
                    "ports": [{"name": "http", "port": 80}, {"port": 81, "protocol": "TCP"},
                        {"name": "dns", "port": 53, "protocol": "UDP"}]}})),
            service(json!({"metadata": {"name": "set", "namespace": "ns"},
                "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [
                    {"name": "sql", "port": 5432}]}})),
            service(json!({"metadata": {"name": "none", "namespace": "ns"},
                "spec": {"clusterIP": "None"}})),
            service(json!({"metadata": {"name": "out", "namespace": "ns"},
                "spec": {"type": "ExternalName", "externalName": "Example.COM"}})),
        ];
        let slice_of = |service: &str, family: &str, endpoints: serde_json::Value| {
            let slice = json!({"metadata": {"name": family, "namespace": "ns",
                    "labels": {SERVICE_NAME: service}}, "addressType": family,
                "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
                "endpoints": endpoints});
            Arc::new(serde_json::from_value::<EndpointSlice>(slice).unwrap())
        };
        let slice = |family: &str, endpoints| slice_of("set", family, endpoints);
        let slices = [
            slice(
                "IPv4",
                json!([{"addresses": ["10.42.0.7"], "hostname": "one"},
                {"addresses": ["10.42.0.8"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.9"], "conditions": {"ready": false}}]),
            ),
            slice("IPv6", json!([{"addresses": ["fd00:10:42::7"], "hostname": "one"}])),
            slice_of(
                "web",
                "IPv4",
                json!([{"addresses": ["10.42.0.5"], "hostname": "first"},
                    {"addresses": ["10.42.0.6"]},
                    {"addresses": ["10.42.0.4"], "hostname": "late", "conditions": {"ready": false}}]),
            ),
        ];
        let mut zone = Zone::build("cluster.local", &services, &slices);
        zone.reverse = vec!["10.in-addr.arpa".into(), "d.f.ip6.arpa".into()];
        let told = |name: &str, kind| match zone.answer(name, kind) {
            Answer::Records(records) => {
                let mut lines: Vec<String> = records
                    .iter()
                    .map(|(_, data)| match data {
                        Data::A(address) => address.to_string(),
                        Data::Aaaa(address) => address.to_string(),
                        Data::Srv { port, target } => format!("{port} {target}"),
                        Data::Cname(name) | Data::Ptr(name) | Data::Txt(name) => name.clone(),
                    })
                    .map(|line| line.replace(".svc.cluster.local", "~"))
                    .collect();
                lines.sort_unstable();
                lines.join(", ")
            }
            other => format!("{other:?}"),
        };
        use Kind::{A, Aaaa, Cname, Ptr, Srv, Txt};
        let cases = [
            // 2.2: the schema's version.
            ("dns-version", Txt, "1.1.0"),
            // 2.3.1: a Service's addresses.
            ("web.ns.svc", A, "10.43.0.5"),
            ("web.ns.svc", Aaaa, "fd00:10:43::5"),
            ("absent.ns.svc", A, "NxDomain"),
            // 2.3.2: its ports, those with a name.
            ("_http._tcp.web.ns.svc", Srv, "80 web.ns~"),
            ("_dns._udp.web.ns.svc", Srv, "53 web.ns~"),
            ("_dns._tcp.web.ns.svc", Srv, "NxDomain"),
            ("_81._tcp.web.ns.svc", Srv, "NxDomain"),
            // As CoreDNS has it: pods by name below any Service.
            ("first.web.ns.svc", A, "10.42.0.5"),
            ("late.web.ns.svc", A, "NxDomain"),
            // 2.3.3: its name.
            ("5.0.43.10.in-addr.arpa", Ptr, "web.ns~"),
            (
                "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
                Ptr,
                "web.ns~",
            ),
            ("6.0.43.10.in-addr.arpa", Ptr, "NxDomain"),
            // 2.4.1: a headless Service's ready endpoints, and each by its name.
            ("set.ns.svc", A, "10.42.0.7, 10.42.0.8"),
            ("set.ns.svc", Aaaa, "fd00:10:42::7"),
            ("one.set.ns.svc", A, "10.42.0.7"),
            ("one.set.ns.svc", Aaaa, "fd00:10:42::7"),
            ("10-42-0-8.set.ns.svc", A, "10.42.0.8"),
            ("10-42-0-9.set.ns.svc", A, "NxDomain"),
            ("none.ns.svc", A, "NxDomain"),
            // 2.4.2: their ports.
            ("_sql._tcp.set.ns.svc", Srv, "5432 10-42-0-8.set.ns~, 5432 one.set.ns~"),
            // 2.4.3: their names.
            ("7.0.42.10.in-addr.arpa", Ptr, "one.set.ns~"),
            ("9.0.42.10.in-addr.arpa", Ptr, "NxDomain"),
            // 2.5: a name elsewhere.
            ("out.ns.svc", Cname, "example.com"),
            ("out.ns.svc", A, "example.com"),
            ("out.ns.svc", Aaaa, "example.com"),
            // 2.6, deprecated but served: pods by address.
            ("10-42-0-9.ns.pod", A, "10.42.0.9"),
            ("10-42-0-9.ns.pod", Aaaa, "NoData"),
            ("fd00-10-42--9.ns.pod", Aaaa, "fd00:10:42::9"),
            ("what.ns.pod", A, "NxDomain"),
            // Names with something below them are there.
            ("ns.svc", A, "NoData"),
            ("svc", A, "NoData"),
            ("other.svc", A, "NxDomain"),
        ];
        for (name, kind, want) in cases {
            let absolute = name.ends_with("arpa");
            let name = if absolute { name.to_owned() } else { format!("{name}.cluster.local") };
            assert_eq!(told(&name, kind), want, "{name} {kind:?}");
        }
    }

    #[test]
    fn a_zone_survives_its_way_to_the_node_process() {
        let zone = zone();
        let text = serde_json::to_string(&zone).unwrap();
        assert_eq!(serde_json::from_str::<Zone>(&text).unwrap(), zone);
    }

    proptest! {
        #[test]
        fn no_name_confuses_the_zone(name in "[-_.a-z0-9]{0,80}") {
            let _ = zone().answer(&name, Kind::Any);
            let below = format!("{name}.cluster.local");
            prop_assert!(zone().answer(&below, Kind::A) != Answer::NotOurs);
        }
    }
}
