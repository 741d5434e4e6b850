//! Services and EndpointSlices, made into records; and which records a change of them touches.
//!
//! Source: Kubernetes DNS-based service discovery, specification 1.1.0.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use client::{Key, Move, SliceOwners, key};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::zone::{Data, Named};

/// The version of the specification that is followed, as told under `dns-version`.
const SPECIFICATION: &str = "1.1.0";

/// What the records of one Service are made of.
#[derive(Clone, Default)]
struct Source {
    service: Option<Arc<Service>>,
    /// By name.
    slices: BTreeMap<String, Arc<EndpointSlice>>,
}

/// The names of all Services.
pub(crate) struct Names {
    domain: String,
    /// By the Service, which may not be there yet.
    sources: HashMap<Key, Source>,
    owners: SliceOwners,
    /// What the changed ones were when they were told last.
    before: HashMap<Key, Source>,
}

/// What leads from some records to others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub gone: Vec<Named>,
    pub added: Vec<Named>,
}

impl Names {
    /// No names yet.
    pub fn new(domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            sources: HashMap::new(),
            owners: SliceOwners::default(),
            before: HashMap::new(),
        }
    }

    /// Forgets all there was, for these.
    pub fn reset(&mut self, services: Vec<Arc<Service>>, slices: Vec<Arc<EndpointSlice>>) {
        *self = Self::new(&self.domain);
        for service in services {
            let key = key(&*service);
            self.sources.entry(key).or_default().service = Some(service);
        }
        for slice in slices {
            self.set_slice(key(&*slice), Some(slice));
        }
        self.before.clear();
    }

    /// Changes the source of one Service.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Source)) {
        let source = self.sources.entry(key.clone()).or_default();
        self.before.entry(key.clone()).or_insert_with(|| source.clone());
        change(source);
        if source.service.is_none() && source.slices.is_empty() {
            self.sources.remove(key);
        }
    }

    /// A Service is this now; None is gone.
    pub fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>) {
        self.change(key, |source| source.service = service);
    }

    /// An EndpointSlice is this now; None is gone.
    pub fn set_slice(&mut self, key: Key, slice: Option<Arc<EndpointSlice>>) {
        let Move { left, owner } = self.owners.set(&key, slice.as_deref());
        if let Some(left) = left {
            self.change(&left, |source| drop(source.slices.remove(&key.1)));
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.change(&owner, |source| drop(source.slices.insert(key.1, slice)));
        }
    }

    /// Every record there is.
    pub fn records(&mut self) -> Vec<Named> {
        self.before.clear();
        let version = Data::Txt(SPECIFICATION.into());
        let own = (format!("dns-version.{}", self.domain), version);
        let services = self.sources.values().flat_map(|source| records(&self.domain, source));
        [own].into_iter().chain(services).collect()
    }

    /// What is different since this, [`Names::records`] or [`Names::reset`] was called last.
    pub fn difference(&mut self) -> Difference {
        let mut all = Difference::default();
        for (key, before) in std::mem::take(&mut self.before) {
            let old = records(&self.domain, &before);
            let new = self.sources.get(&key).map(|source| records(&self.domain, source));
            let new = new.unwrap_or_default();
            all.gone.extend(old.difference(&new).cloned());
            all.added.extend(new.difference(&old).cloned());
        }
        all
    }
}

fn records(domain: &str, source: &Source) -> BTreeSet<Named> {
    let mut own = Records { domain, all: BTreeSet::new() };
    if let Some(service) = &source.service {
        own.service(service, &source.slices);
    }
    own.all
}

/// The records of one Service.
struct Records<'a> {
    domain: &'a str,
    all: BTreeSet<Named>,
}

impl Records<'_> {
    fn add(&mut self, name: &str, data: Data) {
        self.all.insert((name.to_lowercase(), data));
    }

    fn service(&mut self, service: &Service, slices: &BTreeMap<String, Arc<EndpointSlice>>) {
        let (Some(name), Some(namespace), Some(spec)) =
            (&service.metadata.name, &service.metadata.namespace, &service.spec)
        else {
            return;
        };
        let own = format!("{name}.{namespace}.svc.{}", self.domain);
        if spec.type_.as_deref() == Some("ExternalName") {
            if let Some(target) = &spec.external_name {
                let target = target.trim_end_matches('.').to_lowercase();
                self.add(&own, Data::Cname(target));
            }
            return;
        }
        if spec.cluster_ip.as_deref() == Some("None") {
            for slice in slices.values() {
                self.headless(&own, slice);
            }
            return;
        }
        let addresses = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
        let addresses: BTreeSet<IpAddr> =
            addresses.filter_map(|address| address.parse().ok()).collect();
        for address in addresses {
            self.add(&own, Data::address(address));
            self.add(&reverse(address), Data::Ptr(own.clone()));
        }
        // Beyond the specification, as CoreDNS has it: pods that have a name have one here too.
        for slice in slices.values() {
            for (hostname, address) in slice.endpoints.iter().flatten().flat_map(named) {
                self.add(&format!("{hostname}.{own}"), Data::address(address));
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
                self.add(own, Data::address(address));
                self.add(&host, Data::address(address));
                self.add(&reverse(address), Data::Ptr(host.clone()));
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
            self.add(&owner, Data::Srv { port, target });
        }
    }
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
mod tests {
    use client::SERVICE_NAME;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::zone::{Answer, Kind, Zone};

    fn zone_of(
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
        reverse: &[&str],
    ) -> Zone {
        let mut names = Names::new("cluster.local");
        names.reset(services, slices);
        let reverse = reverse.iter().map(ToString::to_string).collect();
        let mut zone = Zone::new("cluster.local", reverse);
        names.records().into_iter().for_each(|record| zone.add(record));
        zone
    }

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
        zone_of(services.into(), vec![Arc::new(slice)], &["43.10.in-addr.arpa"])
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
            let slice = json!({"metadata": {"name": format!("{service}-{family}"), "namespace": "ns",
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
        let zone = zone_of(services.into(), slices.into(), &["10.in-addr.arpa", "d.f.ip6.arpa"]);
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

    /// A Service with one port, or a headless one, and a slice of one endpoint; or that they are gone.
    fn changed(names: &mut Names, (kind, number, gone, endpoint): (u8, u8, bool, u8)) {
        let name = format!("s{number}");
        let key: Key = ("ns".into(), name.clone());
        let object = |value| serde_json::from_value(value).unwrap();
        match kind {
            0 | 1 => {
                let ip = if kind == 0 { format!("10.43.0.{number}") } else { "None".into() };
                let spec = json!({"clusterIP": ip, "ports": [{"name": "p", "port": 1 + endpoint}]});
                let value = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
                names.set_service(&key, (!gone).then(|| Arc::new(object(value))));
            }
            _ => {
                // Slices change what they belong to, too.
                let owner = format!("s{}", (number + endpoint) % 3);
                let value = json!({"metadata": {"name": name, "namespace": "ns",
                        "labels": {SERVICE_NAME: owner}}, "addressType": "IPv4",
                    "endpoints": [{"addresses": [format!("10.42.0.{endpoint}")]}]});
                let slice = (!gone).then(|| Arc::new(serde_json::from_value(value).unwrap()));
                names.set_slice(key, slice);
            }
        }
    }

    proptest! {
            #[test]
            fn differences_lead_to_what_there_is(
                changes in proptest::collection::vec((0..3u8, 0..3u8, any::<bool>(), 1..4u8), 0..30),
                told in 1..5usize,
            ) {
                let mut names = Names::new("cluster.local");
                let mut zone = Zone::new("cluster.local", Vec::new());
                names.records().into_iter().for_each(|record| zone.add(record));
                for some in changes.chunks(told) {
                    for change in some {
     changed(&mut names, *change);
    }
                    let Difference { gone, added } = names.difference();
                    for record in &gone {
     zone.remove(record);
    }
                    for record in added {
     zone.add(record);
    }
                }
                prop_assert_eq!(zone, Zone::of("cluster.local", names.records()));
                prop_assert_eq!(names.difference(), Difference::default());
            }

            #[test]
            fn no_name_confuses_the_zone(name in "[-_.a-z0-9]{0,80}") {
                let _ = zone().answer(&name, Kind::Any);
                let below = format!("{name}.cluster.local");
                prop_assert!(zone().answer(&below, Kind::A) != Answer::NotOurs);
            }
        }
}
