//! Virtual addresses and the endpoints behind them, as elements of three maps.
//!
//! A service is one element of the verdict map: its address leads to the chain that draws a
//! number below its count of endpoints. Number and address together lead to the endpoint. So a
//! change of one service touches its own elements and nothing else; there is one chain for every
//! count of endpoints, not for every service. Where pods are led elsewhere than everybody, a second
//! verdict map says so, and both draw from one row of endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Cidr;
use crate::family::{Family, octets};
use crate::nft::expr::{R0, Register};
use crate::nft::{Batch, Element, Rule};
use crate::ruleset::{
    self, AFFINITY, ELSEWHERE, ENDPOINTS, EXTERNAL, FOR_PODS, GUARDED, SERVICES, TABLE,
};

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
    /// Those that pods are led to instead, where they are others.
    #[serde(default)]
    pub for_pods: Option<Vec<SocketAddr>>,
    /// With no endpoints here there are some on other nodes, where this node may not send connections: they
    /// are dropped, not refused.
    #[serde(default)]
    pub elsewhere: bool,
    /// A client keeps its endpoint for so long after its last connection.
    pub affinity_s: Option<u32>,
    /// Clients that may begin connections; None is everybody. What others send is dropped.
    #[serde(default)]
    pub allowed: Option<Vec<Cidr>>,
}

impl Backend {
    /// The ranges of one family, each once and in order.
    fn ranges(&self, family: Family) -> Option<Vec<Cidr>> {
        let own = self.allowed.as_ref()?.iter().filter(|c| Family::of(c.address()) == family);
        let mut own: Vec<_> = own.copied().collect();
        own.sort_unstable_by_key(Cidr::bounds);
        own.dedup();
        Some(own)
    }
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

/// A frontend's endpoints of its own family, since others cannot be reached through it: those for
/// everybody, and behind them those for pods, in one row that both overlap in.
struct Row {
    endpoints: Vec<SocketAddr>,
    everybody: Balance,
    pods: Option<Balance>,
}

impl Row {
    fn of(frontend: &Frontend, backend: &Backend) -> Self {
        let v4 = frontend.address.is_ipv4();
        let own = |all: &[SocketAddr]| -> Vec<SocketAddr> {
            all.iter().copied().filter(|endpoint| endpoint.is_ipv4() == v4).collect()
        };
        let everybody = own(&backend.endpoints);
        let balance = |first: usize, count: usize| Balance {
            family: Family::of(frontend.address),
            first: first as u32,
            endpoints: count as u32,
            affinity_s: backend.affinity_s,
        };
        let count = everybody.len();
        let Some(pods) = backend.for_pods.as_deref().map(own) else {
            return Self { endpoints: everybody, everybody: balance(0, count), pods: None };
        };
        let (shared, alone): (Vec<_>, Vec<_>) =
            everybody.into_iter().partition(|endpoint| pods.contains(endpoint));
        let rest = pods.iter().copied().filter(|endpoint| !shared.contains(endpoint));
        let first = alone.len();
        let endpoints = alone.into_iter().chain(shared.iter().copied()).chain(rest).collect();
        Self { endpoints, everybody: balance(0, count), pods: Some(balance(first, pods.len())) }
    }

    fn balances(&self) -> impl Iterator<Item = Balance> {
        let all = [Some(self.everybody), self.pods].into_iter().flatten();
        all.filter(|balance| balance.endpoints > 0)
    }
}

/// The chain for a row of endpoints, and for an affinity time if there is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Balance {
    family: Family,
    first: u32,
    endpoints: u32,
    affinity_s: Option<u32>,
}

impl Balance {
    fn name(self) -> String {
        let mut name = format!("{}-{}", self.family.name("balance"), self.endpoints);
        if self.first > 0 {
            let _ = write!(name, "-from-{}", self.first);
        }
        if let Some(seconds) = self.affinity_s {
            let _ = write!(name, "-sticky-{seconds}");
        }
        name
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
        let drawn = Rule::new().random(self.first, self.endpoints, R0);
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
#[derive(Default)]
struct Elements {
    guard: Option<Element>,
    service: Option<Element>,
    for_pods: Option<Element>,
    endpoints: Vec<Element>,
}

impl Elements {
    fn of(frontend: &Frontend, backend: &Backend) -> Self {
        let (key, row) = (key(frontend), Row::of(frontend, backend));
        let led = |balance: Balance| {
            (balance.endpoints > 0).then(|| Element::Goto(key.clone(), balance.name()))
        };
        let elsewhere = || backend.elsewhere.then(|| Element::Goto(key.clone(), ELSEWHERE.into()));
        let endpoints = (0u32..)
            .zip(&row.endpoints)
            .map(|(number, endpoint)| {
                let mut numbered = number.to_ne_bytes().to_vec();
                numbered.extend_from_slice(&key);
                Element::Value(numbered, target(endpoint))
            })
            .collect();
        let guard = backend.allowed.is_some().then(|| Element::Jump(key.clone(), guard(frontend)));
        Self {
            guard,
            service: led(row.everybody).or_else(elsewhere),
            for_pods: row.pods.and_then(led),
            endpoints,
        }
    }
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
    /// Chains that the batches make.
    pub balances: Vec<Balance>,
    pub withdrawn: Vec<Withdrawn>,
    /// Frontends that have endpoints and had none: what was sent to them went astray.
    pub gained: Vec<Frontend>,
}

/// The transactions that change `old`: one, unless the change is too big for the kernel's limit on a
/// message; then no service is ever without its endpoints in between.
///
/// `made` are the chains that there are. `inside` says which addresses are the cluster's own; all others
/// are kept from the gateway.
pub(crate) fn difference(
    old: &ServiceTable,
    change: &ServiceChange,
    made: &BTreeSet<Balance>,
    inside: &dyn Fn(IpAddr) -> bool,
) -> Difference {
    let mut batches = vec![Batch::new(TABLE)];
    let (mut withdrawn, mut gained) = (Vec::new(), Vec::new());
    let wanted: BTreeSet<Balance> = change
        .changed
        .iter()
        .flat_map(|(frontend, backend)| Row::of(frontend, backend).balances().collect::<Vec<_>>())
        .collect();
    let balances: Vec<Balance> = wanted.difference(made).copied().collect();
    for balance in &balances {
        balance.create(last(&mut batches));
    }
    let changed = change.changed.iter().map(|(frontend, backend)| (frontend, Some(backend)));
    for (frontend, after) in changed.chain(change.gone.iter().map(|frontend| (frontend, None))) {
        let before = old.services.get(frontend);
        if before == after {
            continue;
        }
        withdrawn.extend(withdrawals(frontend, before, after));
        let served = |b: Option<&Backend>| {
            b.is_some_and(|backend| !Row::of(frontend, backend).endpoints.is_empty())
        };
        if served(after) && !served(before) {
            gained.push(*frontend);
        }
        if last(&mut batches).len() > BATCH_BYTES {
            batches.push(Batch::new(TABLE));
        }
        let batch = last(&mut batches);
        let family = Family::of(frontend.address);
        let ranges = |b: Option<&Backend>| b.and_then(|backend| backend.ranges(family));
        let (admitted, admits) = (ranges(before), ranges(after));
        if let Some(ranges) = admits.as_ref().filter(|_| admits != admitted) {
            admit(batch, &guard(frontend), family, ranges);
        }
        let elements = |b: Option<&Backend>| {
            b.map_or_else(Elements::default, |backend| Elements::of(frontend, backend))
        };
        replace(batch, family, elements(before), elements(after));
        if admitted.is_some() && admits.is_none() {
            batch.delete_chain(&guard(frontend));
        }
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
    Difference { batches, balances, withdrawn, gained }
}

/// The chain that drops what may not begin connections to the frontend.
fn guard(frontend: &Frontend) -> String {
    let Frontend { address, protocol, port } = frontend;
    format!("allowed-{address}-{}-{port}", protocol.number())
}

/// Has `chain` let through what comes from `ranges`, and nothing else.
fn admit(batch: &mut Batch, chain: &str, family: Family, ranges: &[Cidr]) {
    batch.chain(chain);
    batch.flush_chain(chain);
    for range in ranges {
        let (first, last) = range.bounds();
        let from = Rule::new().source(family, R0);
        batch.rule(chain, &from.range(R0, &octets(first), &octets(last)).back());
    }
    batch.rule(chain, &Rule::new().drop());
}

fn withdrawals(
    frontend: &Frontend,
    before: Option<&Backend>,
    after: Option<&Backend>,
) -> Vec<Withdrawn> {
    let all = |backend: Option<&Backend>| -> BTreeSet<SocketAddr> {
        let own = backend.into_iter().flat_map(|backend| &backend.endpoints);
        let pods = backend.into_iter().flat_map(|backend| backend.for_pods.iter().flatten());
        own.chain(pods).copied().collect()
    };
    let (gone, kept) = (all(before), all(after));
    let sticky = before.is_some_and(|b| b.affinity_s.is_some());
    // A service that is sticky no longer may become so again, with other endpoints.
    let freed = sticky && after.is_none_or(|b| b.affinity_s.is_none());
    let withdrawn = gone.into_iter().filter(|endpoint| freed || !kept.contains(endpoint));
    withdrawn
        .map(|endpoint| Withdrawn {
            frontend: *frontend,
            endpoint,
            sticky,
            kept: kept.contains(&endpoint),
        })
        .collect()
}

fn last(batches: &mut [Batch]) -> &mut Batch {
    batches.last_mut().expect("there is always one batch")
}

fn replace(batch: &mut Batch, family: Family, old: Elements, new: Elements) {
    let gone: Vec<_> = old
        .endpoints
        .iter()
        .filter(|e| !new.endpoints.contains(e))
        .cloned()
        .map(into_key)
        .collect();
    let fresh = new.endpoints.iter().filter(|e| !old.endpoints.contains(e));
    let entries = [
        (GUARDED, old.guard, new.guard),
        (SERVICES, old.service, new.service),
        (FOR_PODS, old.for_pods, new.for_pods),
    ];
    let entries = entries.map(|(map, old, new)| (family.name(map), old, new));
    let changing = || entries.iter().filter(|(_, old, new)| old != new);
    for (map, old, _) in changing() {
        batch.delete_elements(map, &old.clone().map(into_key));
    }
    let endpoints = family.name(ENDPOINTS);
    batch.delete_elements(&endpoints, &gone);
    batch.add_elements(&endpoints, fresh);
    for (map, _, new) in changing() {
        batch.add_elements(map, new);
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
