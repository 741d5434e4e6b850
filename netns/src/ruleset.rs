//! The fixed rules of the node network. What changes are the elements of its sets and maps, and the
//! chains that policies make.
//!
//! Packets to a pod or a service stay in the kernel. Everything else from a pod is taken over by
//! the gateway's sockets (TPROXY) and kept out of connection tracking.

use std::net::{IpAddr, Ipv4Addr};

use crate::Cidr;
use crate::family::{Family, octets};
use crate::link::Mac;
use crate::nft::expr::{Compare, Meta, R0, Register, Reject};
use crate::nft::{Batch, Chain, Data, Element, Hook, Kind, Rule, SetFlags, SetSpec};

pub(crate) const TABLE: &str = "rootlet";
/// Link address and address of every pod.
pub(crate) const PODS: &str = "pods";
/// Pairs of equal addresses: nf_tables cannot compare two fields of a packet.
pub(crate) const HAIRPIN: &str = "hairpin";
/// Address, protocol, port of a service, to the chain that picks an endpoint.
pub(crate) const SERVICES: &str = "services";
/// The same, where connections of pods go to other endpoints than those of everybody.
pub(crate) const FOR_PODS: &str = "services-for-pods";
/// Address, protocol, port of a service that is for some clients only, to the chain that drops what the others
/// begin.
pub(crate) const GUARDED: &str = "guarded";
/// Address, protocol, port of a service whose address lies outside the cluster's ranges.
pub(crate) const EXTERNAL: &str = "external";
/// Number, address, protocol, port, to address and port of an endpoint.
pub(crate) const ENDPOINTS: &str = "endpoints";
/// Client, address, protocol, port, to the endpoint that the client was given last.
pub(crate) const AFFINITY: &str = "affinity";
/// Address of a pod to the chain of what may reach it.
pub(crate) const INGRESS: &str = "policy-ingress";
/// Address of a pod to the chain of what it may reach.
pub(crate) const EGRESS: &str = "policy-egress";
/// Pods, with how much each has begun of late.
pub(crate) const BEGUN_TCP: &str = "begun-tcp";
pub(crate) const BEGUN_UDP: &str = "begun-udp";
/// Pods that have more connections waiting than is their share: what they begin is not held for a while.
pub(crate) const CROWDED: &str = "crowded";
/// Ranges of the cluster's own addresses, and single ones of pods that others attached.
pub(crate) const CLUSTER: &str = "cluster";
/// Addresses of pods that others attached.
pub(crate) const ADOPTED: &str = "adopted";
/// Addresses of clients that came in through the host's ports: what is answered to them stays in the node's
/// network.
pub(crate) const CLIENTS: &str = "clients";
/// Where new connections end until services and policies are told after a takeover. They are dropped,
/// so that their first packet is repeated, and neither refused nor let through unjudged.
pub(crate) const PENDING: &str = "pending";

/// Where connections to services end whose endpoints are not for this node.
pub(crate) const ELSEWHERE: &str = "elsewhere";

const RAW: &str = "raw-prerouting";
const RAW_OUTPUT: &str = "raw-output";
const LEAVE: &str = "leave";
const FAIR: &str = "fair";
const HOLD: &str = "hold";
const INTERCEPT: &str = "intercept";
const GUARD: &str = "guard";
const GUARD_OUTPUT: &str = "guard-output";
const NAT_PREROUTING: &str = "nat-prerouting";
const NAT_OUTPUT: &str = "nat-output";
const NAT_POSTROUTING: &str = "nat-postrouting";
const FILTER_INPUT: &str = "filter-input";
const FILTER_OUTPUT: &str = "filter-output";
const FILTER_FORWARD: &str = "filter-forward";

/// Connections, and datagrams of flows that are new, of one pod to the outside: so many a second, and so
/// many at once. The gateway carries more than the former, so that one pod leaves room for the others.
const CONNECTIONS_PER_S: u64 = 20_000;
const CONNECTIONS_BURST: u32 = 4096;
const DATAGRAMS_PER_S: u64 = 20_000;
const DATAGRAMS_BURST: u32 = 4096;
/// How long a pod's connections are not held once it had too many.
pub(crate) const CROWDED_MS: u64 = 1000;
/// How long a pod that begins nothing is remembered.
const BEGUN_MS: u64 = 10_000;

/// `enum ip_conntrack_status`: the destination was rewritten.
const STATUS_DNAT: u32 = 1 << 5;
/// `NF_CT_STATE_BIT` of established and related connections.
const STATE_KNOWN: u32 = 1 << 1 | 1 << 2;
/// `NF_CT_STATE_BIT` of new connections.
const STATE_NEW: u32 = 1 << 3;
/// `NF_CT_STATE_INVALID_BIT`.
const STATE_INVALID: u32 = 1;

/// 127.0.0.0/8
const LOOPBACK: [u8; 4] = [127, 0, 0, 0];
const LOOPBACK_MASK: [u8; 4] = [255, 0, 0, 0];

/// Loopback addresses that a service may have: on the host they are its own, and pods reach them through the
/// gateway. Away from 127.0.0.0/16, where people and distributions put addresses of their own.
pub const LOOPBACK_SERVICES: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
/// How many bits of [`LOOPBACK_SERVICES`] are the same.
pub const LOOPBACK_SERVICES_PREFIX: u8 = 10;
const LOOPBACK_SERVICES_MASK: [u8; 4] = [255, 192, 0, 0];

/// What the node process lets in from the host has this mark; pods see the node.
pub(crate) const MARK_PUBLISHED: u32 = 0x7003;
/// The same, where pods see the client.
pub(crate) const MARK_CLIENT: u32 = 0x7004;
/// The gateway's verdicts on a connection that it held, as marks of the packet.
pub(crate) const MARK_REFUSED: u32 = 0x7001;
pub(crate) const MARK_UNREACHABLE: u32 = 0x7002;
/// The queue on which connections are held.
pub(crate) const QUEUE: u16 = 1;

/// The ranges of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranges {
    pub pods: Cidr,
    pub services: Cidr,
    pub gateway: IpAddr,
}

impl Ranges {
    pub fn family(&self) -> Family {
        Family::of(self.gateway)
    }
}

/// How the kernel hands packets to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueBy {
    Expression,
    Target,
}

/// What the fixed rules depend on.
pub(crate) struct Parameters {
    pub bridge_index: u32,
    pub ranges: Vec<Ranges>,
    /// Port on loopback of the gateway's transparent sockets, TCP and UDP.
    pub gateway_port: u16,
    /// Whether, and how, connections are held until the outside has answered.
    pub hold: Option<QueueBy>,
    /// Whether pods are limited in what they begin; not every kernel can.
    pub fair: bool,
    /// Whether services and policies were known before, and are to be told again.
    pub takeover: bool,
}

/// Key of [`PODS`].
pub(crate) fn pod_element(mac: Mac, address: IpAddr) -> Element {
    let mut key = mac.to_vec();
    key.extend_from_slice(&[0, 0]);
    key.extend_from_slice(&octets(address));
    Element::Key(key)
}

/// Key of [`HAIRPIN`].
pub(crate) fn hairpin_element(address: IpAddr) -> Element {
    Element::Key([octets(address), octets(address)].concat())
}

/// The rules, complete, with every set empty. Replaces whatever was there.
pub(crate) fn base(parameters: &Parameters) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.replace_table();
    sets(&mut batch);
    chains(&mut batch);
    batch.chain(PENDING);
    batch.chain(ELSEWHERE);
    batch.rule(ELSEWHERE, &Rule::new().drop());
    if parameters.takeover {
        batch.rule(PENDING, &Rule::new().drop());
    }
    for ranges in &parameters.ranges {
        let family = ranges.family();
        let bounds = [ranges.pods, ranges.services].map(|cidr| cidr.bounds());
        let mut bounds = bounds.to_vec();
        bounds.sort_unstable();
        let elements: Vec<_> =
            bounds.into_iter().flat_map(|(first, last)| Element::interval(first, last)).collect();
        batch.add_elements(&family.name(CLUSTER), &elements);
        raw(&mut batch, parameters, family);
        leave(&mut batch, parameters, family);
        fair(&mut batch, parameters, family);
        hold(&mut batch, parameters, family);
        intercept(&mut batch, parameters, family);
        nat(&mut batch, ranges);
        filter(&mut batch, parameters, ranges);
    }
    batch
}

fn sets(batch: &mut Batch) {
    let plain = SetFlags::default();
    for family in Family::BOTH {
        let address = family.bytes();
        // Protocol and port take a register each.
        let frontend = address + 8;
        let endpoint = Data::Value { bytes: address + 4 };
        let sticky = SetFlags::TIMEOUT.and(SetFlags::EVAL);
        let specs = [
            (PODS, plain, 8 + address, Data::None, None),
            (HAIRPIN, plain, 2 * address, Data::None, None),
            (CLUSTER, SetFlags::INTERVAL, address, Data::None, None),
            (ADOPTED, plain, address, Data::None, None),
            (CLIENTS, plain, address, Data::None, None),
            (SERVICES, plain, frontend, Data::Verdict, None),
            (FOR_PODS, plain, frontend, Data::Verdict, None),
            (GUARDED, plain, frontend, Data::Verdict, None),
            (EXTERNAL, plain, frontend, Data::None, None),
            (ENDPOINTS, plain, 4 + frontend, endpoint, None),
            (AFFINITY, sticky, address + frontend, endpoint, Some(10_800_000)),
            (BEGUN_TCP, sticky, address, Data::None, Some(BEGUN_MS)),
            (BEGUN_UDP, sticky, address, Data::None, Some(BEGUN_MS)),
            (CROWDED, SetFlags::TIMEOUT, address, Data::None, Some(CROWDED_MS)),
            (INGRESS, plain, address, Data::Verdict, None),
            (EGRESS, plain, address, Data::Verdict, None),
        ];
        for (name, flags, key_bytes, data, timeout_ms) in specs {
            let id = batch.next_id();
            let name = &family.name(name);
            batch.set(&SetSpec { name, id, flags, key_bytes, data, timeout_ms });
        }
    }
}

fn chains(batch: &mut Batch) {
    let chains = [
        (RAW, Kind::Filter, Hook::Prerouting, -300),
        (RAW_OUTPUT, Kind::Filter, Hook::Output, -300),
        (LEAVE, Kind::Filter, Hook::Prerouting, -170),
        (FAIR, Kind::Filter, Hook::Prerouting, -165),
        (HOLD, Kind::Filter, Hook::Prerouting, -160),
        (INTERCEPT, Kind::Filter, Hook::Prerouting, -150),
        (GUARD, Kind::Filter, Hook::Prerouting, -110),
        (GUARD_OUTPUT, Kind::Filter, Hook::Output, -110),
        (NAT_PREROUTING, Kind::Nat, Hook::Prerouting, -100),
        (NAT_OUTPUT, Kind::Nat, Hook::Output, -100),
        (NAT_POSTROUTING, Kind::Nat, Hook::Postrouting, 100),
        (FILTER_INPUT, Kind::Filter, Hook::Input, 0),
        (FILTER_OUTPUT, Kind::Filter, Hook::Output, 0),
        (FILTER_FORWARD, Kind::Filter, Hook::Forward, 0),
    ];
    for (name, kind, hook, priority) in chains {
        batch.base_chain(&Chain { name, kind, hook, priority });
    }
}

fn from_bridge(parameters: &Parameters, family: Family) -> Rule {
    let index = parameters.bridge_index.to_ne_bytes();
    let bridge = Rule::new().family(family).meta(Meta::InputIndex, R0);
    bridge.compare(R0, Compare::Equal, &index)
}

/// Address, protocol and port of the destination, from this register on.
pub(crate) fn frontend(rule: Rule, family: Family, first: Register) -> Rule {
    let protocol = first.after(family.registers());
    rule.destination(family, first)
        .meta(Meta::TransportProtocol, protocol)
        .destination_port(protocol.after(1))
}

fn to_external(family: Family) -> Rule {
    let rule = frontend(Rule::new().family(family), family, R0);
    rule.lookup(&family.name(EXTERNAL), R0, false)
}

fn to_cluster(family: Family) -> Rule {
    let rule = Rule::new().family(family).destination(family, R0);
    rule.lookup(&family.name(CLUSTER), R0, false)
}

fn to_client(rule: Rule, family: Family) -> Rule {
    rule.destination(family, R0).lookup(&family.name(CLIENTS), R0, false)
}

/// What answers a client. What a pod begins with the same address is as other traffic to the outside.
fn answers_client(family: Family) -> Rule {
    to_client(Rule::new().family(family).connection_state(STATE_KNOWN), family)
}

fn marked(rule: Rule, how: Compare, mark: u32) -> Rule {
    rule.meta(Meta::Mark, R0).compare(R0, how, &mark.to_ne_bytes())
}

fn not_tcp(family: Family) -> Rule {
    let rule = Rule::new().family(family).meta(Meta::TransportProtocol, R0);
    rule.compare(R0, Compare::NotEqual, &[libc::IPPROTO_TCP as u8])
}

/// Where only a connection's first packet is of concern, the others take the short way.
fn begun_before(family: Family) -> Rule {
    Rule::new().family(family).tcp_later()
}

fn raw(batch: &mut Batch, parameters: &Parameters, family: Family) {
    // A pod may only speak with its own address from its own link address.
    let spoofed = from_bridge(parameters, family)
        .link_source(R0)
        .source(family, Register(2))
        .lookup(&family.name(PODS), R0, true)
        .drop();
    batch.rule(RAW, &spoofed);
    if family == Family::V4 {
        // The node's loopback is not for pods, though it leads to some; but for what are services there.
        let service = from_bridge(parameters, family).destination(family, R0);
        let service = service.mask(R0, &LOOPBACK_SERVICES_MASK);
        let service = service.compare(R0, Compare::Equal, &LOOPBACK_SERVICES.octets());
        let service = frontend(service, family, R0).lookup(&family.name(EXTERNAL), R0, false);
        batch.rule(RAW, &service.accept());
        let loopback = from_bridge(parameters, family).destination(family, R0);
        let loopback = loopback.mask(R0, &LOOPBACK_MASK).compare(R0, Compare::Equal, &LOOPBACK);
        batch.rule(RAW, &loopback.drop());
    }
    for chain in [RAW, RAW_OUTPUT] {
        batch.rule(chain, &to_external(family).accept());
        let inside = to_cluster(family).source(family, R0);
        batch.rule(chain, &inside.lookup(&family.name(CLUSTER), R0, false).accept());
        if chain == RAW_OUTPUT {
            for mark in [MARK_PUBLISHED, MARK_CLIENT] {
                let let_in = marked(Rule::new().family(family), Compare::Equal, mark);
                batch.rule(chain, &let_in.accept());
            }
        }
        // A connection's first packet is no answer.
        for answer in [begun_before(family), not_tcp(family)] {
            batch.rule(chain, &to_client(answer, family).accept());
        }
        batch.rule(chain, &Rule::new().family(family).notrack());
    }
}

/// What pods may send beyond the cluster. A connection is judged once, when it begins, as inside
/// the cluster: so it outlives a change of policy.
fn leave(batch: &mut Batch, parameters: &Parameters, family: Family) {
    batch.rule(LEAVE, &begun_before(family).accept());
    batch.rule(LEAVE, &answers_client(family).accept());
    batch.rule(LEAVE, &to_cluster(family).accept());
    batch.rule(LEAVE, &to_external(family).accept());
    let egress = |rule: Rule| rule.source(family, R0).verdict_map(&family.name(EGRESS), R0);
    let syn = || Rule::new().family(family).tcp_syn();
    if parameters.takeover {
        for rule in [syn(), not_tcp(family)] {
            batch.rule(LEAVE, &rule.jump(PENDING));
        }
    }
    batch.rule(LEAVE, &egress(syn()));
    batch.rule(LEAVE, &egress(not_tcp(family)));
}

/// All pods share the gateway's queue and its sockets for new flows. What one pod begins beyond its share
/// is dropped before it gets there, so that a flood does not drown the others.
fn fair(batch: &mut Batch, parameters: &Parameters, family: Family) {
    if !parameters.fair {
        return;
    }
    batch.rule(FAIR, &begun_before(family).accept());
    batch.rule(FAIR, &answers_client(family).accept());
    batch.rule(FAIR, &to_cluster(family).accept());
    batch.rule(FAIR, &to_external(family).accept());
    let begun = Rule::new().family(family).tcp_syn().source(family, R0);
    let set = family.name(BEGUN_TCP);
    batch.rule(FAIR, &begun.over(&set, R0, CONNECTIONS_PER_S, CONNECTIONS_BURST).drop());
    let datagram = || Rule::new().family(family).transport(libc::IPPROTO_UDP);
    // A flow that is carried already has a socket of its own.
    let carried = datagram().transparent_socket(R0).compare(R0, Compare::Equal, &[1]);
    batch.rule(FAIR, &carried.accept());
    let begun = datagram().source(family, R0);
    let set = family.name(BEGUN_UDP);
    batch.rule(FAIR, &begun.over(&set, R0, DATAGRAMS_PER_S, DATAGRAMS_BURST).drop());
}

/// The first packet of a connection to the outside waits until the outside has answered.
fn hold(batch: &mut Batch, parameters: &Parameters, family: Family) {
    let Some(by) = parameters.hold else {
        return;
    };
    batch.rule(HOLD, &begun_before(family).accept());
    batch.rule(HOLD, &to_cluster(family).accept());
    batch.rule(HOLD, &to_external(family).accept());
    let crowded = Rule::new().family(family).source(family, R0);
    batch.rule(HOLD, &crowded.lookup(&family.name(CROWDED), R0, false).accept());
    let first = from_bridge(parameters, family).tcp_syn();
    let queued = match by {
        QueueBy::Expression => first.queue(QUEUE),
        QueueBy::Target => first.queue_by_target(QUEUE),
    };
    batch.rule(HOLD, &queued);
}

fn intercept(batch: &mut Batch, parameters: &Parameters, family: Family) {
    batch.rule(INTERCEPT, &answers_client(family).accept());
    batch.rule(INTERCEPT, &to_cluster(family).accept());
    batch.rule(INTERCEPT, &to_external(family).accept());
    let to = |prefix: &[u8], mask: &[u8]| {
        let rule = Rule::new().family(family).destination(family, R0);
        rule.mask(R0, mask).compare(R0, Compare::Equal, prefix)
    };
    match family {
        Family::V4 => {
            batch.rule(INTERCEPT, &to(&LOOPBACK, &LOOPBACK_MASK).accept());
            // Multicast, the reserved range above it, and the limited broadcast.
            let multicast = Ipv4Addr::new(224, 0, 0, 0).octets();
            batch.rule(INTERCEPT, &to(&multicast, &multicast).drop());
        }
        Family::V6 => {
            let mut loopback = [0; 16];
            loopback[15] = 1;
            batch.rule(INTERCEPT, &to(&loopback, &[0xff; 16]).accept());
            // Link-local and multicast addresses are the neighbours' business.
            for (prefix, mask) in [([0xfe, 0x80], [0xff, 0xc0]), ([0xff, 0], [0xff, 0])] {
                let wide = |two: [u8; 2]| [&two[..], &[0; 14]].concat();
                batch.rule(INTERCEPT, &to(&wide(prefix), &wide(mask)).accept());
            }
        }
    }
    for (mark, reject) in
        [(MARK_REFUSED, Reject::TcpReset), (MARK_UNREACHABLE, Reject::HostUnreachable)]
    {
        let held = marked(Rule::new().family(family), Compare::Equal, mark);
        batch.rule(INTERCEPT, &held.transport(libc::IPPROTO_TCP).reject(reject));
    }
    for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
        let port = R0.after(family.registers());
        let tproxy = Rule::new()
            .family(family)
            .transport(protocol)
            .immediate(R0, &octets(family.loopback()))
            .immediate(port, &parameters.gateway_port.to_be_bytes())
            .tproxy(family, R0, port)
            .accept();
        batch.rule(INTERCEPT, &tproxy);
    }
}

fn nat(batch: &mut Batch, ranges: &Ranges) {
    let family = ranges.family();
    for chain in [GUARD, GUARD_OUTPUT] {
        let new = Rule::new().family(family).connection_state(STATE_NEW);
        let guarded = frontend(new, family, R0).verdict_map(&family.name(GUARDED), R0);
        batch.rule(chain, &guarded);
    }
    // What the node process lets in from the host begins in this namespace, as does what pods on the node's
    // network begin.
    let any = || Rule::new().family(family);
    let from_pod = marked(any(), Compare::NotEqual, MARK_PUBLISHED);
    let from_pod = marked(from_pod, Compare::NotEqual, MARK_CLIENT);
    for (chain, rule, map) in [
        (NAT_PREROUTING, any(), FOR_PODS),
        (NAT_PREROUTING, any(), SERVICES),
        (NAT_OUTPUT, from_pod, FOR_PODS),
        (NAT_OUTPUT, any(), SERVICES),
    ] {
        let service = frontend(rule, family, R0);
        batch.rule(chain, &service.verdict_map(&family.name(map), R0));
    }
    // Which client it is was of concern for the choice of an endpoint alone.
    let let_in = marked(any(), Compare::Equal, MARK_PUBLISHED).source(family, R0);
    let let_in = let_in.lookup(&family.name(CLUSTER), R0, true);
    let let_in = let_in.immediate(R0, &octets(ranges.gateway)).snat(family, R0);
    batch.rule(NAT_POSTROUTING, &let_in);
    let translated = || {
        let status = Rule::new().family(family).connection_status(R0);
        status.mask(R0, &STATUS_DNAT.to_ne_bytes()).compare(R0, Compare::NotEqual, &[0; 4])
    };
    if family == Family::V4 {
        // No answer finds its way back to a loopback address.
        let local = translated().source(family, R0).mask(R0, &LOOPBACK_MASK);
        let local = local.compare(R0, Compare::Equal, &LOOPBACK);
        let local = local.immediate(R0, &octets(ranges.gateway)).snat(family, R0);
        batch.rule(NAT_POSTROUTING, &local);
    }
    // Pods that others attached may be neighbours, whose answers would not come back here.
    let second = R0.after(family.registers());
    let neighbours = translated()
        .source(family, R0)
        .lookup(&family.name(ADOPTED), R0, false)
        .destination(family, second)
        .lookup(&family.name(ADOPTED), second, false)
        .immediate(R0, &octets(ranges.gateway))
        .snat(family, R0);
    batch.rule(NAT_POSTROUTING, &neighbours);
    // A pod that reaches itself through a service must see another source than itself.
    let hairpin = translated()
        .source(family, R0)
        .destination(family, R0.after(family.registers()))
        .lookup(&family.name(HAIRPIN), R0, false)
        .immediate(R0, &octets(ranges.gateway))
        .snat(family, R0);
    batch.rule(NAT_POSTROUTING, &hairpin);
}

fn filter(batch: &mut Batch, parameters: &Parameters, ranges: &Ranges) {
    let family = ranges.family();
    let (first, last) = ranges.services.bounds();
    let (first, last) = (octets(first), octets(last));
    // The bits in which first and last address agree are the prefix.
    let mask: Vec<u8> = first.iter().zip(&last).map(|(a, b)| !(a ^ b)).collect();
    // What was let through once may go on; what fits no connection would confuse the receiver, who
    // resets what it does not know (kube-proxy drops it likewise).
    let state = |states| Rule::new().family(family).connection_state(states);
    batch.rule(FILTER_FORWARD, &state(STATE_KNOWN).accept());
    batch.rule(FILTER_FORWARD, &state(STATE_INVALID).drop());
    if parameters.takeover {
        batch.rule(FILTER_FORWARD, &Rule::new().family(family).jump(PENDING));
    }
    for chain in [FILTER_INPUT, FILTER_FORWARD] {
        // What still has a service's address here is not served: no such service, or no endpoint.
        let own = || {
            let rule = Rule::new().family(family).destination(family, R0).mask(R0, &mask);
            rule.compare(R0, Compare::Equal, &first)
        };
        if parameters.takeover {
            batch.rule(chain, &own().jump(PENDING));
        }
        let external = || to_external(family);
        let both: [&dyn Fn() -> Rule; 2] = [&own, &external];
        for unserved in both {
            let tcp = unserved().transport(libc::IPPROTO_TCP);
            batch.rule(chain, &tcp.reject(Reject::TcpReset));
            batch.rule(chain, &unserved().reject(Reject::PortUnreachable));
        }
    }
    // Policies: a pod may always reach itself.
    let second = R0.after(family.registers());
    let itself = Rule::new().family(family).source(family, R0).destination(family, second);
    let itself = itself.lookup(&family.name(HAIRPIN), R0, false);
    batch.rule(FILTER_FORWARD, &itself.accept());
    let from = Rule::new().family(family).source(family, R0);
    batch.rule(FILTER_FORWARD, &from.verdict_map(&family.name(EGRESS), R0));
    let to = || Rule::new().family(family).destination(family, R0);
    batch.rule(FILTER_FORWARD, &to().verdict_map(&family.name(INGRESS), R0));
    // The node itself may reach every pod; a client from outside is not the node.
    let own = marked(Rule::new().family(family), Compare::NotEqual, MARK_CLIENT);
    batch.rule(FILTER_OUTPUT, &own.accept());
    batch.rule(FILTER_OUTPUT, &state(STATE_KNOWN).accept());
    if parameters.takeover {
        batch.rule(FILTER_OUTPUT, &Rule::new().family(family).jump(PENDING));
    }
    batch.rule(FILTER_OUTPUT, &to().verdict_map(&family.name(INGRESS), R0));
}
