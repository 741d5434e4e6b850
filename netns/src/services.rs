//! Virtual addresses and the endpoints behind them, as elements of three maps.
//!
//! A service is one element of the verdict map: its address leads to the chain that draws a
//! number below its count of endpoints. Number and address together lead to the endpoint. So a
//! change of one service touches its own elements and nothing else; there is one chain for every
//! count of endpoints, not for every service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::family::{Family, octets};
use crate::nft::expr::{R0, Register};
use crate::nft::{Batch, Element, Rule};
use crate::ruleset::{self, AFFINITY, ELSEWHERE, ENDPOINTS, EXTERNAL, SERVICES, TABLE};

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP, where the kernel has it.
    Sctp,
}

impl Protocol {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
            Self::Sctp => libc::IPPROTO_SCTP as u8,
        }
    }
}

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frontend {
    /// Virtual address, or the node's for node ports.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Where connections to a [`Frontend`] go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Drawn from at random, evenly. Empty: connections are refused.
    pub endpoints: Vec<SocketAddr>,
    /// With no endpoints here there are some on other nodes, where this node may not send connections: they
    /// are dropped, not refused.
    #[serde(default)]
    pub elsewhere: bool,
    /// A client keeps its endpoint for so long after its last connection.
    pub affinity_s: Option<u32>,
}

/// All services of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceTable {
    /// By frontend; one entry each.
    #[serde(with = "entries")]
    pub services: BTreeMap<Frontend, Backend>,
}

/// What is different in one table from another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// New, or other than before.
    pub changed: Vec<(Frontend, Backend)>,
    /// There no more.
    pub gone: Vec<Frontend>,
}

impl ServiceTable {
    /// What leads from `self` to `new`.
    pub fn change_to(&self, new: &Self) -> ServiceChange {
        let changed = new.services.iter().filter(|(f, b)| self.services.get(f) != Some(*b));
        let gone = self.services.keys().filter(|frontend| !new.services.contains_key(frontend));
        ServiceChange {
            changed: changed.map(|(frontend, backend)| (*frontend, backend.clone())).collect(),
            gone: gone.copied().collect(),
        }
    }
}

/// JSON has no maps with structured keys.
mod entries {
    use super::{BTreeMap, Backend, Frontend};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        map: &BTreeMap<Frontend, Backend>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Frontend, Backend>, D::Error> {
        let entries = Vec::<(Frontend, Backend)>::deserialize(deserializer)?;
        Ok(entries.into_iter().collect())
    }
}

/// Address, protocol, port, each in registers of its own.
pub(crate) fn key(frontend: &Frontend) -> Vec<u8> {
    let mut key = octets(frontend.address);
    key.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&frontend.port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    key
}

/// The value of an endpoint in the maps.
pub(crate) fn target(endpoint: &SocketAddr) -> Vec<u8> {
    let mut value = octets(endpoint.ip());
    value.extend_from_slice(&endpoint.port().to_be_bytes());
    value.extend_from_slice(&[0, 0]);
    value
}

/// Endpoints of the frontend's family; others cannot be reached through it.
fn reachable<'a>(
    frontend: &Frontend,
    backend: &'a Backend,
) -> impl Iterator<Item = &'a SocketAddr> {
    let v4 = frontend.address.is_ipv4();
    backend.endpoints.iter().filter(move |endpoint| endpoint.is_ipv4() == v4)
}

/// The chain for a count of endpoints, and for an affinity time if there is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Balance {
    family: Family,
    endpoints: u32,
    affinity_s: Option<u32>,
}

impl Balance {
    fn of((frontend, backend): (&Frontend, &Backend)) -> Option<Self> {
        let endpoints = reachable(frontend, backend).count() as u32;
        let family = Family::of(frontend.address);
        (endpoints > 0).then_some(Self { family, endpoints, affinity_s: backend.affinity_s })
    }

    fn name(self) -> String {
        let base = self.family.name("balance");
        match self.affinity_s {
            None => format!("{base}-{}", self.endpoints),
            Some(seconds) => format!("{base}-{}-sticky-{seconds}", self.endpoints),
        }
    }

    fn create(self, batch: &mut Batch) {
        let family = self.family;
        let (endpoints, affinity) = (family.name(ENDPOINTS), family.name(AFFINITY));
        let address = family.registers();
        // The longest key is a client and a frontend; an endpoint follows it.
        let result = Register(2 * address + 2);
        let result_port = result.after(address);
        let name = self.name();
        batch.chain(&name);
        // A chain that is already there keeps its name and gets the same rules again.
        batch.flush_chain(&name);
        let drawn = Rule::new().random(self.endpoints, R0);
        let drawn = ruleset::frontend(drawn, family, Register(1)).map(&endpoints, R0, result);
        let Some(seconds) = self.affinity_s else {
            batch.rule(&name, &drawn.dnat(family, result, result_port));
            return;
        };
        let timeout_ms = u64::from(seconds) * 1000;
        let client =
            |rule: Rule| ruleset::frontend(rule.source(family, R0), family, R0.after(address));
        let known = client(Rule::new())
            .map(&affinity, R0, result)
            .update(&affinity, R0, result, timeout_ms)
            .dnat(family, result, result_port);
        batch.rule(&name, &known);
        let fresh = client(drawn).update(&affinity, R0, result, timeout_ms).dnat(
            family,
            result,
            result_port,
        );
        batch.rule(&name, &fresh);
    }
}

/// What one service contributes to the maps.
fn elements(frontend: &Frontend, backend: &Backend) -> Option<(Element, Vec<Element>)> {
    let key = key(frontend);
    let Some(balance) = Balance::of((frontend, backend)) else {
        return backend.elsewhere.then(|| (Element::Goto(key, ELSEWHERE.to_owned()), Vec::new()));
    };
    let endpoints = (0u32..)
        .zip(reachable(frontend, backend).map(target))
        .map(|(number, value)| {
            let mut numbered = number.to_ne_bytes().to_vec();
            numbered.extend_from_slice(&key);
            Element::Value(numbered, value)
        })
        .collect();
    Some((Element::Goto(key, balance.name()), endpoints))
}

/// Batches stay below the smallest send buffer that a kernel grants by default (208 KiB).
const BATCH_BYTES: usize = 120 << 10;

/// An endpoint that a frontend no longer has: flows and affinities to it are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Withdrawn {
    pub frontend: Frontend,
    pub endpoint: SocketAddr,
    pub sticky: bool,
    /// It is still there, and only the affinities to it go.
    pub kept: bool,
}

/// What leads from one table to the next.
pub(crate) struct Difference {
    pub batches: Vec<Batch>,
    pub withdrawn: Vec<Withdrawn>,
    /// Frontends that have endpoints and had none: what was sent to them went astray.
    pub gained: Vec<Frontend>,
}

/// The transactions that turn `old` into `new`: one, unless the change is too big for the
/// kernel's limit on a message; then no service is ever without its endpoints in between.
///
/// `inside` says which addresses are the cluster's own; all others are kept from the gateway.
pub(crate) fn difference(
    old: &ServiceTable,
    new: &ServiceTable,
    inside: &dyn Fn(IpAddr) -> bool,
) -> Difference {
    let mut batches = vec![Batch::new(TABLE)];
    let mut withdrawn = Vec::new();
    let mut gained = Vec::new();
    let known: BTreeSet<_> = old.services.iter().filter_map(Balance::of).collect();
    let wanted: BTreeSet<_> = new.services.iter().filter_map(Balance::of).collect();
    for balance in wanted.difference(&known) {
        balance.create(last(&mut batches));
    }
    let frontends: BTreeSet<_> = old.services.keys().chain(new.services.keys()).collect();
    for frontend in frontends {
        let (before, after) = (old.services.get(frontend), new.services.get(frontend));
        if before == after {
            continue;
        }
        let gone = before.map_or(&[][..], |b| &b.endpoints).iter();
        let kept = after.map_or(&[][..], |b| &b.endpoints);
        let sticky = before.is_some_and(|b| b.affinity_s.is_some());
        // A service that is sticky no longer may become so again, with other endpoints.
        let freed = sticky && after.is_none_or(|b| b.affinity_s.is_none());
        withdrawn.extend(gone.filter(|e| freed || !kept.contains(e)).map(|e| Withdrawn {
            frontend: *frontend,
            endpoint: *e,
            sticky,
            kept: kept.contains(e),
        }));
        let served = |b: Option<&Backend>| b.is_some_and(|b| reachable(frontend, b).count() > 0);
        if served(after) && !served(before) {
            gained.push(*frontend);
        }
        if last(&mut batches).len() > BATCH_BYTES {
            batches.push(Batch::new(TABLE));
        }
        let batch = last(&mut batches);
        let family = Family::of(frontend.address);
        let old_elements = before.and_then(|b| elements(frontend, b));
        let new_elements = after.and_then(|b| elements(frontend, b));
        replace(batch, family, old_elements, new_elements);
        if !inside(frontend.address) {
            let element = [Element::Key(key(frontend))];
            let external = family.name(EXTERNAL);
            match (before, after) {
                (None, Some(_)) => batch.add_elements(&external, &element),
                (Some(_), None) => batch.delete_elements(&external, &element),
                _ => {}
            }
        }
    }
    batches.retain(|batch| !batch.is_empty());
    Difference { batches, withdrawn, gained }
}

fn last(batches: &mut [Batch]) -> &mut Batch {
    batches.last_mut().expect("there is always one batch")
}

fn replace(
    batch: &mut Batch,
    family: Family,
    old: Option<(Element, Vec<Element>)>,
    new: Option<(Element, Vec<Element>)>,
) {
    let (old_service, old_endpoints) = old.unzip();
    let (new_service, new_endpoints) = new.unzip();
    let (old_endpoints, new_endpoints) =
        (old_endpoints.unwrap_or_default(), new_endpoints.unwrap_or_default());
    let gone: Vec<_> = old_endpoints
        .iter()
        .filter(|e| !new_endpoints.contains(e))
        .cloned()
        .map(into_key)
        .collect();
    let fresh = new_endpoints.iter().filter(|e| !old_endpoints.contains(e));
    let service_changes = old_service != new_service;
    let (services, endpoints) = (family.name(SERVICES), family.name(ENDPOINTS));
    if service_changes {
        batch.delete_elements(&services, &old_service.map(into_key));
    }
    batch.delete_elements(&endpoints, &gone);
    batch.add_elements(&endpoints, fresh);
    if service_changes {
        batch.add_elements(&services, &new_service);
    }
}

fn into_key(element: Element) -> Element {
    match element {
        Element::Key(key)
        | Element::IntervalEnd(key)
        | Element::Value(key, _)
        | Element::Goto(key, _)
        | Element::Jump(key, _) => Element::Key(key),
    }
}
