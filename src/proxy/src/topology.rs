//! Which of a Service's endpoints a connection from this node goes to: by readiness, by place, and by
//! the hints that the slices carry.
//!
//! Source: `pkg/proxy/topology.go` (KEP-1669, KEP-2433, KEP-3015).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::Endpoint;

use crate::table::{Place, is_local};

/// The endpoints of one port, sorted by what they are good for.
pub(crate) struct Candidates<'a> {
    place: &'a Place,
    local: bool,
    ready: BTreeSet<SocketAddr>,
    terminating: BTreeSet<SocketAddr>,
    /// None once an endpoint came without such a hint: hints count only if all have them.
    for_node: Option<BTreeSet<SocketAddr>>,
    for_zone: Option<BTreeSet<SocketAddr>>,
}

impl<'a> Candidates<'a> {
    /// None yet. With `local` endpoints of other nodes do not count, and hints are of no meaning.
    pub fn new(place: &'a Place, local: bool) -> Self {
        Self {
            place,
            local,
            ready: BTreeSet::new(),
            terminating: BTreeSet::new(),
            for_node: Some(BTreeSet::new()),
            for_zone: Some(BTreeSet::new()),
        }
    }

    /// An endpoint of a slice, with the port that the slice has for the Service's.
    pub fn add(&mut self, endpoint: &Endpoint, port: u16) {
        if self.local && !is_local(endpoint, self.place) {
            return;
        }
        let address = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
        let Some(address) = address.map(|address| SocketAddr::new(address, port)) else { return };
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
        let serves = conditions.and_then(|c| c.serving).unwrap_or(true);
        if !ready {
            if terminating && serves {
                self.terminating.insert(address);
            }
            return;
        }
        self.ready.insert(address);
        let hints = endpoint.hints.as_ref();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
        let nodes = nodes.map(|nodes| nodes.iter().map(|node| node.name.as_str()).collect());
        hint(&mut self.for_node, nodes, Some(&self.place.node), address);
        let zones = hints.and_then(|hints| hints.for_zones.as_ref());
        let zones = zones.map(|zones| zones.iter().map(|zone| zone.name.as_str()).collect());
        hint(&mut self.for_zone, zones, self.place.zone.as_deref(), address);
    }

    /// Those that get the traffic: the ready ones, of them the nearest if hints say which; if none is
    /// ready, those that still serve while they terminate.
    pub fn chosen(self) -> Vec<SocketAddr> {
        let near = [self.for_node, self.for_zone].into_iter().flatten().find(|set| !set.is_empty());
        let chosen = match near {
            Some(near) if !self.local => near,
            _ if self.ready.is_empty() => self.terminating,
            _ => self.ready,
        };
        chosen.into_iter().collect()
    }
}

/// Notes an endpoint that is meant for `own`, or that there are endpoints without hints.
fn hint(
    all: &mut Option<BTreeSet<SocketAddr>>,
    names: Option<Vec<&str>>,
    own: Option<&str>,
    address: SocketAddr,
) {
    let names = names.unwrap_or_default();
    if names.is_empty() {
        *all = None;
    } else if let Some(all) = all
        && own.is_some_and(|own| names.contains(&own))
    {
        all.insert(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoint(last: u8, hints: &Value, ready: bool) -> Endpoint {
        let endpoint = json!({"addresses": [format!("10.42.0.{last}")], "hints": hints,
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}});
        serde_json::from_value(endpoint).unwrap()
    }

    #[test]
    fn hints_are_followed_when_all_have_them() {
        let zone = |name: &str| json!({"forZones": [{"name": name}]});
        let node = |name: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": "a"}]});
        let cases = [
            (vec![zone("a"), zone("b")], "2"),
            (vec![zone("b"), zone("b")], "2 3"),
            (vec![zone("a"), Value::Null], "2 3"),
            (vec![node("here"), node("there")], "2"),
            (vec![node("there"), node("there")], "2 3"),
            (vec![node("there"), zone("b")], "2"),
            (vec![Value::Null, Value::Null], "2 3"),
        ];
        let place = Place { node: "here".into(), addresses: Vec::new(), zone: Some("a".into()) };
        for (hints, want) in cases {
            let mut candidates = Candidates::new(&place, false);
            for (last, hints) in (2..).zip(&hints) {
                candidates.add(&endpoint(last, hints, true), 80);
            }
            // One that terminates says nothing about hints.
            candidates.add(&endpoint(9, &Value::Null, false), 80);
            let told: Vec<String> = candidates
                .chosen()
                .iter()
                .map(|a| a.ip().to_string().replace("10.42.0.", ""))
                .collect();
            assert_eq!(told.join(" "), want, "{hints:?}");
        }
    }
}
