//! Hints of Services with `service.kubernetes.io/topology-mode: Auto`: each zone gets endpoints in
//! proportion to the CPUs of its nodes.
//!
//! Source: `staging/src/k8s.io/endpointslice/topologycache`.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForZone};
use kube::ResourceExt;

use crate::endpoint_slice::Content;

const ZONE: &str = "topology.kubernetes.io/zone";
/// Both annotations ask for it; the older one goes before.
const MODES: [&str; 2] =
    ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"];
/// Nodes with one of these are left out.
const EXCLUDED: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may get.
const OVERLOAD: f64 = 0.2;

/// Whether the Service asks for such hints.
pub fn is_automatic(service: &Service) -> bool {
    let annotations = service.annotations();
    let mode = MODES.iter().find_map(|key| annotations.get(*key));
    mode.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto"))
}

/// The CPUs that a node offers, in thousandths; None if it does not count here.
pub fn capacity(node: &Node) -> Option<i64> {
    let labels = node.labels();
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready || EXCLUDED.iter().any(|label| labels.contains_key(*label)) {
        return None;
    }
    let cpu = status.and_then(|status| status.allocatable.as_ref()?.get("cpu"));
    Some(cpu.and_then(|text| text.0.parse::<Quantity>().ok()).map_or(0, |cpu| cpu.milli_value()))
}

/// The share of each zone in the cluster's CPUs.
#[derive(Debug, PartialEq)]
pub struct Shares(BTreeMap<String, f64>);

impl Shares {
    /// None when a node does not tell its zone or its CPUs, or there is but one zone.
    pub fn of(nodes: &[Arc<Node>]) -> Option<Self> {
        let mut by_zone = BTreeMap::<String, i64>::new();
        for node in nodes {
            let Some(milli) = capacity(node) else { continue };
            let zone = node.labels().get(ZONE).filter(|zone| !zone.is_empty())?;
            if milli == 0 {
                return None;
            }
            *by_zone.entry(zone.clone()).or_default() += milli;
        }
        let total: i64 = by_zone.values().sum();
        let share = |milli: i64| milli as f64 / total as f64;
        let shares = by_zone.into_iter().map(|(zone, milli)| (zone, share(milli)));
        let shares: BTreeMap<_, _> = shares.collect();
        (shares.len() >= 2).then_some(Self(shares))
    }

    /// How many of `count` endpoints each zone is to have.
    fn allocations(&self, count: usize) -> Result<BTreeMap<&str, Allocation>, String> {
        let told = format!("({count} endpoints, {} zones)", self.0.len());
        if self.0.len() > count {
            return Err(format!("Insufficient number of endpoints {told}"));
        }
        let mut allocations = BTreeMap::new();
        let mut least = 0;
        for (zone, share) in &self.0 {
            let desired = share * count as f64;
            let minimum = (desired / (1.0 + OVERLOAD)).ceil();
            least += minimum as usize;
            let desired = desired.max(minimum);
            let allocation = Allocation { minimum: minimum as usize, maximum: 0, desired };
            allocations.insert(zone.as_str(), allocation);
        }
        let Some(spare) = count.checked_sub(least) else {
            return Err(format!(
                "Unable to allocate minimum required endpoints to each zone without exceeding \
                 overload threshold {told}"
            ));
        };
        for allocation in allocations.values_mut() {
            allocation.maximum = allocation.minimum + spare;
        }
        Ok(allocations)
    }
}

struct Allocation {
    minimum: usize,
    maximum: usize,
    desired: f64,
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

fn for_zone(name: &str) -> Option<EndpointHints> {
    let for_zones = Some(vec![ForZone { name: name.to_owned() }]);
    Some(EndpointHints { for_nodes: None, for_zones })
}

/// Gives hints to the endpoints of one family; what `found` says stays where it may. An error says
/// why there are none.
pub fn assign(
    shares: Option<&Shares>,
    contents: &mut [Content],
    found: &[&EndpointSlice],
) -> Result<(), String> {
    let result = try_assign(shares, contents, found);
    if result.is_err() {
        for endpoint in contents.iter_mut().flat_map(|content| &mut content.endpoints) {
            endpoint.hints = None;
        }
    }
    result
}

fn try_assign(
    shares: Option<&Shares>,
    contents: &mut [Content],
    found: &[&EndpointSlice],
) -> Result<(), String> {
    let Some(shares) = shares else {
        return Err("Insufficient Node information: allocatable CPU or zone not specified on one \
                    or more nodes"
            .into());
    };
    let endpoints = contents.iter().flat_map(|content| &content.endpoints);
    let ready = endpoints.filter(|endpoint| is_ready(endpoint)).count();
    let allocations = shares.allocations(ready)?;
    let mut given = BTreeMap::<String, usize>::new();
    let mut open = Vec::new();
    for content in contents {
        if let Some(hints) = unchanged(content, found, &given, &allocations) {
            for zone in hints.iter().flatten().flat_map(|hints| hints.for_zones.iter().flatten()) {
                *given.entry(zone.name.clone()).or_default() += 1;
            }
            for (endpoint, hints) in content.endpoints.iter_mut().zip(hints) {
                endpoint.hints = hints;
            }
        } else {
            open.extend(content.endpoints.iter_mut());
        }
    }
    // At first everybody serves the own zone.
    for endpoint in &mut open {
        if !is_ready(endpoint) {
            endpoint.hints = None;
            continue;
        }
        let zone = endpoint.zone.clone().filter(|zone| !zone.is_empty());
        let zone = zone.ok_or("One or more endpoints do not have a zone specified")?;
        endpoint.hints = for_zone(&zone);
        *given.entry(zone).or_default() += 1;
    }
    let (mut giving, mut receiving) = exchange(&allocations, &given);
    for endpoint in open.into_iter().filter(|endpoint| is_ready(endpoint)) {
        let Some(own) = endpoint.zone.as_deref().and_then(|zone| giving.get_mut(zone)) else {
            continue;
        };
        let taker = receiving.iter_mut().find(|(_, count)| **count > 0);
        let (true, Some((zone, wanted))) = (*own > 0, taker) else { continue };
        endpoint.hints = for_zone(zone);
        *own -= 1;
        *wanted -= 1;
    }
    Ok(())
}

/// The hints of a slice that says the same but for them, if they are still good.
fn unchanged(
    content: &Content,
    found: &[&EndpointSlice],
    given: &BTreeMap<String, usize>,
    allocations: &BTreeMap<&str, Allocation>,
) -> Option<Vec<Option<EndpointHints>>> {
    let without = |endpoint: &Endpoint| Endpoint { hints: None, ..endpoint.clone() };
    let same = |slice: &&&EndpointSlice| {
        let told = slice.endpoints.as_deref().unwrap_or_default();
        slice.address_type == content.address_type
            && slice.ports.as_deref().unwrap_or_default() == content.ports
            && told.len() == content.endpoints.len()
            && told.iter().zip(&content.endpoints).all(|(a, b)| without(a) == without(b))
    };
    let slice = found.iter().find(same)?;
    let mut own = BTreeMap::<&str, usize>::new();
    let mut hints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        hints.push(endpoint.hints.clone());
        if !is_ready(endpoint) {
            continue;
        }
        let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
        for zone in zones.filter(|zones| !zones.is_empty())? {
            let (zone, _) = allocations.get_key_value(zone.name.as_str())?;
            *own.entry(*zone).or_default() += 1;
        }
    }
    let fits = |(zone, count): (&&str, &usize)| {
        count + given.get(*zone).copied().unwrap_or(0) <= allocations[*zone].maximum
    };
    own.iter().all(fits).then_some(hints)
}

/// How many endpoints each zone gives away, and how many each gets.
fn exchange(
    allocations: &BTreeMap<&str, Allocation>,
    given: &BTreeMap<String, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let (mut spare, mut lacking) = (BTreeMap::new(), BTreeMap::new());
    for (zone, allocation) in allocations {
        let difference = given.get(*zone).copied().unwrap_or(0) as f64 - allocation.desired;
        if difference > 0.0 {
            spare.insert(*zone, difference);
        } else if difference < 0.0 {
            lacking.insert(*zone, -difference);
        }
    }
    let most = |zones: &BTreeMap<&str, f64>| {
        let most = zones.iter().max_by(|a, b| a.1.total_cmp(b.1));
        most.map_or((String::new(), 0.0), |(zone, count)| ((*zone).to_owned(), *count))
    };
    let (mut giving, mut receiving) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let ((giver, left), (taker, wanted)) = (most(&spare), most(&lacking));
        // A whole endpoint goes over when at least one side has one, and the other half a one.
        if left.max(wanted) < 1.0 || left < 0.5 || wanted < 0.5 {
            return (giving, receiving);
        }
        for (rest, zone) in [(&mut spare, &giver), (&mut lacking, &taker)] {
            if let Some(count) = rest.get_mut(zone.as_str()) {
                *count -= 1.0;
            }
        }
        *giving.entry(giver).or_default() += 1;
        *receiving.entry(taker).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, zone: &str, cpu: &str, more: &Value) -> Arc<Node> {
        let mut node = json!({"metadata": {"name": name, "labels": {ZONE: zone}},
            "status": {"allocatable": {"cpu": cpu},
                "conditions": [{"type": "Ready", "status": "True"}]}});
        if let Some(more) = more.as_object() {
            node["metadata"]["labels"].as_object_mut().unwrap().extend(more.clone());
        }
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn zones_have_the_share_of_their_cpus() {
        let none = Value::Null;
        let of = |nodes: &[Arc<Node>]| {
            let shares = Shares::of(nodes)?.0;
            Some(shares.iter().map(|(z, share)| format!("{z} {share:.2}")).collect::<Vec<_>>())
        };
        let two = [node("a", "z1", "3", &none), node("b", "z2", "1000m", &none)];
        assert_eq!(of(&two).unwrap(), ["z1 0.75", "z2 0.25"]);
        let plane = json!({"node-role.kubernetes.io/control-plane": ""});
        let cases = [
            vec![node("a", "z1", "1", &none)],
            vec![node("a", "z1", "1", &none), node("b", "", "1", &none)],
            vec![node("a", "z1", "1", &none), node("b", "z2", "0", &none)],
            vec![node("a", "z1", "1", &none), node("b", "z2", "1", &plane)],
        ];
        for nodes in cases {
            assert_eq!(of(&nodes), None, "{nodes:?}");
        }
    }

    fn content(zones: &str) -> Content {
        let endpoints = zones.split(' ').enumerate().map(|(number, zone)| {
            let zone = zone.trim_end_matches('!');
            let ready = !zones.split(' ').nth(number).unwrap().ends_with('!');
            let endpoint = json!({"addresses": [format!("10.0.0.{number}")], "zone": zone,
                "conditions": {"ready": ready}});
            serde_json::from_value(endpoint).unwrap()
        });
        Content {
            slice: None,
            address_type: "IPv4".into(),
            ports: Vec::new(),
            endpoints: endpoints.collect(),
        }
    }

    fn told(content: &Content) -> String {
        let hint = |endpoint: &Endpoint| {
            let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
            zones.map_or("-".to_owned(), |zones| zones[0].name.clone())
        };
        content.endpoints.iter().map(hint).collect::<Vec<_>>().join(" ")
    }

    /// Upstream's cases: `TestAddHints`, `Test_getGivingAndReceivingZones`.
    #[test]
    fn endpoints_are_dealt_out_by_share() {
        let cases = [
            ("a 1,b 1", "a b", Ok("a b")),
            ("a 1,b 1,c 1", "a b c a b c", Ok("a b c a b c")),
            // One zone has none: another gives.
            ("a 1,b 1", "a a", Ok("b a")),
            ("a 1,b 1,c 1", "a b c a", Err("Unable to allocate")),
            ("a 1,b 1", "a a a a a a", Ok("b b b a a a")),
            ("a 4,b 4", "a a a b a! b!", Ok("b a a b - -")),
            ("a 2,b 2,c 2", "a a a b b c", Ok("c a a b b c")),
            ("a 1,b 1,c 1", "a b", Err("Insufficient number of endpoints (2 endpoints, 3 zones)")),
            ("a 1", "a a", Err("Insufficient Node information")),
            ("a 1,b 1", "a b  b", Err("do not have a zone")),
        ];
        for (nodes, zones, want) in cases {
            let nodes: Vec<_> = nodes
                .split(',')
                .map(|text| text.split_once(' ').unwrap())
                .map(|(zone, cpu)| node(zone, zone, cpu, &Value::Null))
                .collect();
            let mut contents = [content(zones)];
            let got = assign(Shares::of(&nodes).as_ref(), &mut contents, &[]);
            match (got, want) {
                (Ok(()), Ok(want)) => assert_eq!(told(&contents[0]), want, "{zones}"),
                (Err(got), Err(want)) => {
                    assert!(got.contains(want), "{got}");
                    assert!(!told(&contents[0]).contains(|c: char| c.is_alphabetic()));
                }
                (got, want) => panic!("{zones}: {got:?}, not {want:?}: {}", told(&contents[0])),
            }
        }
    }

    #[test]
    fn good_hints_stay() {
        let nodes = [node("a", "a", "1", &Value::Null), node("b", "b", "1", &Value::Null)];
        let shares = Shares::of(&nodes);
        let mut before = content("a a b b");
        for (endpoint, zone) in before.endpoints.iter_mut().zip(["b", "a", "a", "b"]) {
            endpoint.hints = for_zone(zone);
        }
        let slice = |content: &Content| EndpointSlice {
            address_type: content.address_type.clone(),
            endpoints: Some(content.endpoints.clone()),
            ports: Some(content.ports.clone()),
            ..EndpointSlice::default()
        };
        let mut now = [content("a a b b")];
        assign(shares.as_ref(), &mut now, &[&slice(&before)]).unwrap();
        assert_eq!(told(&now[0]), "b a a b", "as before");
        for endpoint in &mut before.endpoints {
            endpoint.hints = for_zone("b");
        }
        assign(shares.as_ref(), &mut now, &[&slice(&before)]).unwrap();
        assert_eq!(told(&now[0]), "a a b b", "too much for one zone");
        let other = Service { metadata: kube::api::ObjectMeta::default(), ..Service::default() };
        assert!(!is_automatic(&other));
    }
}
