//! The IPAddress of each cluster address. It is made and removed in the transaction that gives the
//! address to a Service or takes it away, so that neither is ever there without the other.
//!
//! Source: `pkg/registry/core/service/ipallocator/ipallocator.go`.

use std::net::IpAddr;

use apimachinery::meta;
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Compare, Op, Txn};

use super::NETWORKING;
use crate::metadata;
use crate::object::{self, Object};
use crate::registry::Registry;
use crate::resource::Resource;
use crate::zero::Zero;

/// Marks IPAddresses that the server keeps.
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Who keeps them.
pub(super) const MANAGER: &str = "ipallocator.k8s.io";
/// Says which family the address is of.
pub(super) const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";

/// The addresses of a Service; `None` is no address.
pub(super) fn of(service: &Value) -> Vec<IpAddr> {
    service["spec"]["clusterIPs"].texts().filter_map(|text| text.parse().ok()).collect()
}

/// `IPv4` or `IPv6`.
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// Whether there is an IPAddress of that name.
pub(super) fn is_taken(registry: &Registry, address: IpAddr) -> bool {
    registry.get(NETWORKING, "ipaddresses", "", &address.to_string()).is_some()
}

/// Whether the IPAddress is that of a Service, whichever.
pub(super) fn is_of_services(address: &Value) -> bool {
    let parent = &address["spec"]["parentRef"];
    parent["group"].text().is_empty() && parent["resource"] == "services"
}

/// Whether the IPAddress says that the Service has it.
pub(super) fn refers_to(address: &Value, service: &Value) -> bool {
    let parent = &address["spec"]["parentRef"];
    is_of_services(address)
        && parent["namespace"].text() == meta::namespace(service)
        && parent["name"].text() == meta::name(service)
}

/// A new IPAddress for an address of `service`.
pub(super) fn new(address: IpAddr, service: &Value) -> Value {
    let mut made = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {FAMILY: family(address), MANAGED_BY: MANAGER},
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": meta::namespace(service),
            "name": meta::name(service),
        }},
    });
    metadata::fill_system_fields(&mut made);
    made
}

/// Lets the IPAddresses of a Service follow it from `before` to `after` in its transaction.
pub fn along(
    registry: &Registry,
    txn: &mut Txn,
    resource: &Resource,
    before: Option<&Object>,
    after: Option<&Value>,
) {
    if !resource.is("", "services") {
        return;
    }
    let Some(kind) = registry.resource(NETWORKING, "ipaddresses") else { return };
    let before = before.map(Object::value);
    let had = before.as_deref().map(of).unwrap_or_default();
    let has = after.map(of).unwrap_or_default();
    let key = |address: &IpAddr| Bytes::from(kind.key("", &address.to_string()));
    for address in had.iter().filter(|address| !has.contains(address)) {
        let known = registry.get(NETWORKING, "ipaddresses", "", &address.to_string());
        let own = |known: &Object| before.as_deref().is_some_and(|b| refers_to(&known.value(), b));
        if known.is_none_or(|known| own(&known)) {
            txn.ops.push(Op::Delete { key: key(address) });
        }
    }
    let Some(service) = after else { return };
    for address in has.iter().filter(|address| !had.contains(address)) {
        let (value, _) = object::encode(&new(*address, service));
        let key = key(address);
        txn.compares.push(Compare { key: key.clone(), mod_revision: 0 });
        txn.ops.push(Op::Put { key, value, lease: None });
    }
}
