//! Virtual addresses and the endpoints behind them, as elements of three maps.
//!
//! A service is one element of the verdict map: its address leads to the chain that draws a
//! number below its count of endpoints. Number and address together lead to the endpoint. So a
//! change of one service touches its own elements and nothing else; there is one chain for every
//! count of endpoints, not for every service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::nft::expr::{Meta, Register};
use crate::nft::{Batch, Element, Rule};
use crate::ruleset::{AFFINITY, ENDPOINTS, SERVICES, TABLE};

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
    fn number(self) -> u8 {
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

/// Address, protocol, port, each in its own 32-bit register.
fn key(frontend: &Frontend) -> Option<Vec<u8>> {
    let mut key = v4(frontend.address)?.octets().to_vec();
    key.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&frontend.port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    Some(key)
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn target(endpoint: &SocketAddr) -> Option<Vec<u8>> {
    let mut value = v4(endpoint.ip())?.octets().to_vec();
    value.extend_from_slice(&endpoint.port().to_be_bytes());
    value.extend_from_slice(&[0, 0]);
    Some(value)
}

/// The chain for a count of endpoints, and for an affinity time if there is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Balance {
    endpoints: u32,
    affinity_s: Option<u32>,
}

impl Balance {
    fn of(backend: &Backend) -> Option<Self> {
        let endpoints = backend.endpoints.iter().filter_map(target).count() as u32;
        (endpoints > 0).then_some(Self { endpoints, affinity_s: backend.affinity_s })
    }

    fn name(self) -> String {
        match self.affinity_s {
            None => format!("balance-{}", self.endpoints),
            Some(seconds) => format!("balance-{}-sticky-{seconds}", self.endpoints),
        }
    }

    fn create(self, batch: &mut Batch) {
        const RESULT: Register = Register(8);
        const RESULT_PORT: Register = Register(9);
        let name = self.name();
        batch.chain(&name);
        // A chain that is already there keeps its name and gets the same rules again.
        batch.flush_chain(&name);
        let frontend = |rule: Rule| {
            rule.ipv4_destination(Register(1))
                .meta(Meta::TransportProtocol, Register(2))
                .destination_port(Register(3))
        };
        if let Some(seconds) = self.affinity_s {
            let timeout_ms = u64::from(seconds) * 1000;
            let known = frontend(Rule::new().ipv4_source(Register(0)))
                .map(AFFINITY, Register(0), RESULT)
                .update(AFFINITY, Register(0), RESULT, timeout_ms)
                .dnat(RESULT, RESULT_PORT);
            batch.rule(&name, &known);
            let fresh = frontend(Rule::new().random(self.endpoints, Register(0)))
                .map(ENDPOINTS, Register(0), RESULT)
                .ipv4_source(Register(0))
                .update(AFFINITY, Register(0), RESULT, timeout_ms)
                .dnat(RESULT, RESULT_PORT);
            batch.rule(&name, &fresh);
        } else {
            let drawn = frontend(Rule::new().random(self.endpoints, Register(0)))
                .map(ENDPOINTS, Register(0), RESULT)
                .dnat(RESULT, RESULT_PORT);
            batch.rule(&name, &drawn);
        }
    }
}

/// What one service contributes to the maps.
fn elements(frontend: &Frontend, backend: &Backend) -> Option<(Element, Vec<Element>)> {
    let key = key(frontend)?;
    let balance = Balance::of(backend)?;
    let endpoints = (0u32..)
        .zip(backend.endpoints.iter().filter_map(target))
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
}

/// What leads from one table to the next.
pub(crate) struct Difference {
    pub batches: Vec<Batch>,
    pub withdrawn: Vec<Withdrawn>,
}

/// The transactions that turn `old` into `new`: one, unless the change is too big for the
/// kernel's limit on a message; then no service is ever without its endpoints in between.
pub(crate) fn difference(old: &ServiceTable, new: &ServiceTable) -> Difference {
    let mut batches = vec![Batch::new(TABLE)];
    let mut withdrawn = Vec::new();
    let known: BTreeSet<_> = old.services.values().filter_map(Balance::of).collect();
    let wanted: BTreeSet<_> = new.services.values().filter_map(Balance::of).collect();
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
        withdrawn.extend(
            gone.filter(|e| !kept.contains(e))
                .map(|e| Withdrawn { frontend: *frontend, endpoint: *e }),
        );
        if last(&mut batches).len() > BATCH_BYTES {
            batches.push(Batch::new(TABLE));
        }
        let batch = last(&mut batches);
        let old_elements = before.and_then(|b| elements(frontend, b));
        let new_elements = after.and_then(|b| elements(frontend, b));
        replace(batch, old_elements, new_elements);
    }
    batches.retain(|batch| !batch.is_empty());
    Difference { batches, withdrawn }
}

fn last(batches: &mut [Batch]) -> &mut Batch {
    batches.last_mut().expect("there is always one batch")
}

fn replace(
    batch: &mut Batch,
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
    if service_changes {
        batch.delete_elements(SERVICES, &old_service.map(into_key));
    }
    batch.delete_elements(ENDPOINTS, &gone);
    batch.add_elements(ENDPOINTS, fresh);
    if service_changes {
        batch.add_elements(SERVICES, &new_service);
    }
}

fn into_key(element: Element) -> Element {
    match element {
        Element::Key(key)
        | Element::IntervalEnd(key)
        | Element::Value(key, _)
        | Element::Goto(key, _) => Element::Key(key),
    }
}
