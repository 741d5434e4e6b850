//! The fixed rules of the node network. What changes are the elements of its sets and maps.
//!
//! Packets to a pod or a service stay in the kernel. Everything else from a pod is taken over by
//! the gateway's sockets (TPROXY) and kept out of connection tracking.

use std::net::Ipv4Addr;

use crate::Cidr;
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
/// Number, address, protocol, port, to address and port of an endpoint.
pub(crate) const ENDPOINTS: &str = "endpoints";
/// Client, address, protocol, port, to the endpoint that the client was given last.
pub(crate) const AFFINITY: &str = "affinity";
const CLUSTER: &str = "cluster";

const RAW: &str = "raw-prerouting";
const RAW_OUTPUT: &str = "raw-output";
const INTERCEPT: &str = "intercept";
const NAT_PREROUTING: &str = "nat-prerouting";
const NAT_OUTPUT: &str = "nat-output";
const NAT_POSTROUTING: &str = "nat-postrouting";
const FILTER_INPUT: &str = "filter-input";
const FILTER_FORWARD: &str = "filter-forward";

/// `enum ip_conntrack_status`: the destination was rewritten.
const STATUS_DNAT: u32 = 1 << 5;

/// What the fixed rules depend on.
pub(crate) struct Parameters {
    pub bridge_index: u32,
    pub pod_cidr: Cidr,
    pub service_cidr: Cidr,
    pub gateway: Ipv4Addr,
    /// Port on 127.0.0.1 of the gateway's transparent sockets, TCP and UDP.
    pub gateway_port: u16,
}

/// Key of [`PODS`].
pub(crate) fn pod_element(mac: Mac, address: Ipv4Addr) -> Element {
    let mut key = mac.to_vec();
    key.extend_from_slice(&[0, 0]);
    key.extend_from_slice(&address.octets());
    Element::Key(key)
}

/// Key of [`HAIRPIN`].
pub(crate) fn hairpin_element(address: Ipv4Addr) -> Element {
    Element::Key([address.octets(), address.octets()].concat())
}

/// A batch that replaces whatever was there by the fixed rules with empty sets.
pub(crate) fn base(parameters: &Parameters) -> Batch {
    let mut batch = Batch::new(TABLE);
    batch.replace_table();
    sets(&mut batch, parameters);
    chains(&mut batch);
    raw(&mut batch, parameters);
    intercept(&mut batch, parameters);
    nat(&mut batch, parameters);
    filter(&mut batch, parameters);
    batch
}

fn sets(batch: &mut Batch, parameters: &Parameters) {
    let plain = SetFlags::default();
    let specs = [
        (PODS, plain, 12, Data::None, None),
        (HAIRPIN, plain, 8, Data::None, None),
        (CLUSTER, SetFlags::INTERVAL, 4, Data::None, None),
        (SERVICES, plain, 12, Data::Verdict, None),
        (ENDPOINTS, plain, 16, Data::Value { bytes: 8 }, None),
        (
            AFFINITY,
            SetFlags::TIMEOUT.and(SetFlags::EVAL),
            16,
            Data::Value { bytes: 8 },
            Some(10_800_000),
        ),
    ];
    for (id, (name, flags, key_bytes, data, timeout_ms)) in (1..).zip(specs) {
        batch.set(&SetSpec { name, id, flags, key_bytes, data, timeout_ms });
    }
    let mut bounds: Vec<_> =
        [parameters.pod_cidr, parameters.service_cidr].iter().filter_map(Cidr::v4_bounds).collect();
    bounds.sort_unstable();
    let elements: Vec<_> =
        bounds.into_iter().flat_map(|(first, last)| Element::interval(first, last)).collect();
    batch.add_elements(CLUSTER, &elements);
}

fn chains(batch: &mut Batch) {
    let chains = [
        (RAW, Kind::Filter, Hook::Prerouting, -300),
        (RAW_OUTPUT, Kind::Filter, Hook::Output, -300),
        (INTERCEPT, Kind::Filter, Hook::Prerouting, -150),
        (NAT_PREROUTING, Kind::Nat, Hook::Prerouting, -100),
        (NAT_OUTPUT, Kind::Nat, Hook::Output, -100),
        (NAT_POSTROUTING, Kind::Nat, Hook::Postrouting, 100),
        (FILTER_INPUT, Kind::Filter, Hook::Input, 0),
        (FILTER_FORWARD, Kind::Filter, Hook::Forward, 0),
    ];
    for (name, kind, hook, priority) in chains {
        batch.base_chain(&Chain { name, kind, hook, priority });
    }
}

fn from_bridge(parameters: &Parameters) -> Rule {
    let index = parameters.bridge_index.to_ne_bytes();
    Rule::new().ipv4().meta(Meta::InputIndex, R0).compare(R0, Compare::Equal, &index)
}

fn raw(batch: &mut Batch, parameters: &Parameters) {
    // A pod may only speak with its own address from its own link address.
    let spoofed = from_bridge(parameters)
        .link_source(R0)
        .ipv4_source(Register(2))
        .lookup(PODS, R0, true)
        .drop();
    batch.rule(RAW, &spoofed);
    for chain in [RAW, RAW_OUTPUT] {
        let inside = Rule::new()
            .ipv4()
            .ipv4_source(R0)
            .lookup(CLUSTER, R0, false)
            .ipv4_destination(R0)
            .lookup(CLUSTER, R0, false)
            .accept();
        batch.rule(chain, &inside);
        batch.rule(chain, &Rule::new().notrack());
    }
}

fn intercept(batch: &mut Batch, parameters: &Parameters) {
    let to = |prefix: Ipv4Addr, mask: [u8; 4]| {
        Rule::new().ipv4().ipv4_destination(R0).mask(R0, &mask).compare(
            R0,
            Compare::Equal,
            &prefix.octets(),
        )
    };
    let inside = Rule::new().ipv4().ipv4_destination(R0).lookup(CLUSTER, R0, false).accept();
    batch.rule(INTERCEPT, &inside);
    let loopback = to(Ipv4Addr::new(127, 0, 0, 0), [255, 0, 0, 0]).accept();
    batch.rule(INTERCEPT, &loopback);
    // Multicast, the reserved range above it, and the limited broadcast.
    let multicast = to(Ipv4Addr::new(224, 0, 0, 0), [224, 0, 0, 0]).drop();
    batch.rule(INTERCEPT, &multicast);
    for protocol in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
        let tproxy = Rule::new()
            .ipv4()
            .transport(protocol)
            .immediate(R0, &Ipv4Addr::LOCALHOST.octets())
            .immediate(Register(1), &parameters.gateway_port.to_be_bytes())
            .tproxy(R0, Register(1))
            .accept();
        batch.rule(INTERCEPT, &tproxy);
    }
}

fn nat(batch: &mut Batch, parameters: &Parameters) {
    for chain in [NAT_PREROUTING, NAT_OUTPUT] {
        let service = Rule::new()
            .ipv4()
            .ipv4_destination(R0)
            .meta(Meta::TransportProtocol, Register(1))
            .destination_port(Register(2))
            .verdict_map(SERVICES, R0);
        batch.rule(chain, &service);
    }
    // A pod that reaches itself through a service must see another source than itself.
    let hairpin = Rule::new()
        .ipv4()
        .connection_status(R0)
        .mask(R0, &STATUS_DNAT.to_ne_bytes())
        .compare(R0, Compare::NotEqual, &[0; 4])
        .ipv4_source(R0)
        .ipv4_destination(Register(1))
        .lookup(HAIRPIN, R0, false)
        .immediate(R0, &parameters.gateway.octets())
        .snat(R0);
    batch.rule(NAT_POSTROUTING, &hairpin);
}

fn filter(batch: &mut Batch, parameters: &Parameters) {
    // What still has a service's address here is not served: no such service, or no endpoint.
    let Some((first, last)) = parameters.service_cidr.v4_bounds() else {
        return;
    };
    let mask = (!(first ^ last)).to_be_bytes();
    for chain in [FILTER_INPUT, FILTER_FORWARD] {
        let unserved = || {
            Rule::new().ipv4().ipv4_destination(R0).mask(R0, &mask).compare(
                R0,
                Compare::Equal,
                &first.to_be_bytes(),
            )
        };
        let tcp = unserved().transport(libc::IPPROTO_TCP).reject(Reject::TcpReset);
        batch.rule(chain, &tcp);
        let udp = unserved().transport(libc::IPPROTO_UDP).reject(Reject::PortUnreachable);
        batch.rule(chain, &udp);
    }
}
