//! Rules for ingresses, their classes, network policies and endpoint slices.
//!
//! Source: `pkg/apis/networking/validation/validation.go`, `pkg/apis/discovery/validation/validation.go`.

use std::net::IpAddr;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::core::immutable;
use super::ip::cidr;
use super::{ip, label_selector, mistakes, one_of};
use crate::zero::Zero;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const CONTROLLER_MAX: usize = 250;
const ADDRESSES_MAX: usize = 100;
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;

/// An ingress, new (`old` is absent) or changed.
pub fn ingress(ingress: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&ingress["spec"], Path::new("spec"));
    if spec["rules"].items().is_empty() && spec["defaultBackend"].is_null() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(Error::invalid(&path, spec["rules"].clone(), detail));
    }
    if spec["defaultBackend"].is_set() {
        backend(&spec["defaultBackend"], &path.child("defaultBackend"), errors);
    }
    for (index, rule) in spec["rules"].items().iter().enumerate() {
        ingress_rule(rule, &path.child("rules").index(index), errors);
    }
    for (index, tls) in spec["tls"].items().iter().enumerate() {
        let at = path.child("tls").index(index);
        for (index, name) in tls["hosts"].texts().enumerate() {
            host(name, &at.child("hosts").index(index), errors);
        }
        let secret = tls["secretName"].text();
        if !secret.is_empty() {
            mistakes(errors, &at.child("secretName"), secret, names::dns_subdomain(secret));
        }
    }
    let class = spec["ingressClassName"].text();
    if spec["ingressClassName"].is_set() {
        mistakes(errors, &path.child("ingressClassName"), class, names::dns_subdomain(class));
    }
    let annotation = &ingress["metadata"]["annotations"][CLASS_ANNOTATION];
    if old.is_none()
        && annotation.is_set()
        && spec["ingressClassName"].is_set()
        && annotation != class
    {
        let at = Path::new("annotations").child(CLASS_ANNOTATION);
        let detail = "must match `ingressClassName` when both are specified";
        errors.push(Error::invalid(&at, annotation.clone(), detail));
    }
}

fn host(name: &str, path: &Path, errors: &mut ErrorList) {
    let sentences = if name.contains('*') {
        names::wildcard_dns_subdomain(name)
    } else {
        names::dns_subdomain(name)
    };
    mistakes(errors, path, name, sentences);
}

fn ingress_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let name = rule["host"].text();
    if !name.is_empty() {
        let at = path.child("host");
        if name.parse::<IpAddr>().is_ok() {
            let detail = "must be a DNS name, not an IP address";
            errors.push(Error::invalid(&at, name, detail));
        }
        host(name, &at, errors);
    }
    if rule["http"].is_null() {
        return;
    }
    let at = path.child("http").child("paths");
    if rule["http"]["paths"].items().is_empty() {
        errors.push(Error::required(&at, ""));
    }
    for (index, item) in rule["http"]["paths"].items().iter().enumerate() {
        http_path(item, &at.index(index), errors);
    }
}

fn http_path(item: &Value, path: &Path, errors: &mut ErrorList) {
    let (text, at) = (item["path"].text(), path.child("path"));
    match item["pathType"].as_str() {
        None => {
            errors.push(Error::required(&path.child("pathType"), "pathType must be specified"));
            return;
        }
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                errors.push(Error::invalid(&at, text, "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|p| text.contains(**p)) {
                errors.push(Error::invalid(&at, text, format!("must not contain '{part}'")));
            }
            for end in ["/..", "/."].iter().filter(|end| text.ends_with(**end)) {
                errors.push(Error::invalid(&at, text, format!("cannot end with '{end}'")));
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(Error::invalid(&at, text, "must be an absolute path"));
            }
        }
        Some(other) => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(Error::not_supported(&path.child("pathType"), other, &known));
        }
    }
    backend(&item["backend"], &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &Path, errors: &mut ErrorList) {
    let (resource, service) = (&backend["resource"], &backend["service"]);
    match (resource.is_set(), service.is_set()) {
        (true, true) => {
            let detail = "cannot set both resource and service backends";
            errors.push(Error::invalid(path, "", detail));
        }
        (true, false) => {
            for key in ["kind", "name"] {
                if resource[key].text().is_empty() {
                    errors.push(Error::required(&path.child("resource").child(key), ""));
                }
            }
        }
        (false, true) => service_backend(service, path, errors),
        (false, false) => {
            errors.push(Error::invalid(path, "", "resource or service backend is required"));
        }
    }
}

fn service_backend(service: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("service");
    let name = service["name"].text();
    if name.is_empty() {
        errors.push(Error::required(&at.child("name"), ""));
    } else {
        mistakes(errors, &at.child("name"), name, names::dns_label(name));
    }
    let (name, number) = (service["port"]["name"].text(), service["port"]["number"].int());
    let at = at.child("port");
    match (name.is_empty(), number) {
        (true, 0) => errors.push(Error::required(path, "port name or number is required")),
        (true, number) => {
            let at = at.child("number");
            errors.extend(
                names::port_number(number).into_iter().map(|s| Error::invalid(&at, number, s)),
            );
        }
        (false, 0) => mistakes(errors, &at.child("name"), name, names::port_name(name)),
        (false, _) => {
            errors.push(Error::invalid(path, "", "cannot set both port name & port number"));
        }
    }
}

/// An ingress class, new (`old` is absent) or changed.
pub fn ingress_class(class: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&class["spec"], Path::new("spec"));
    let (controller, at) = (spec["controller"].text(), path.child("controller"));
    if let Some(old) = old {
        immutable(&at, &spec["controller"], &old["spec"]["controller"], errors);
    }
    if controller.len() > CONTROLLER_MAX {
        errors.push(Error::too_long(&at, CONTROLLER_MAX));
    }
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.push(Error::required(&at, "")),
        Some((prefix, rest)) if !prefix.is_empty() && !rest.is_empty() => {
            mistakes(errors, &at, prefix, names::dns_subdomain(prefix));
        }
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(Error::invalid(&at, controller, detail));
        }
    }
    let (parameters, at) = (&spec["parameters"], path.child("parameters"));
    if parameters.is_null() {
        return;
    }
    for key in ["kind", "name"] {
        if parameters[key].text().is_empty() {
            errors.push(Error::required(&at.child(key), ""));
        }
    }
    let namespace = parameters["namespace"].text();
    match parameters["scope"].as_str() {
        None => errors.push(Error::required(&at.child("scope"), "")),
        Some("Cluster") if parameters["namespace"].is_set() => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.push(Error::forbidden(&at.child("namespace"), detail));
        }
        Some("Namespace") if namespace.is_empty() => {
            let detail = "`parameters.scope` is set to 'Namespace'";
            errors.push(Error::required(&at.child("namespace"), detail));
        }
        Some("Cluster" | "Namespace") => {}
        Some(other) => {
            let known = ["Cluster", "Namespace"];
            errors.push(Error::not_supported(&at.child("scope"), other, &known));
        }
    }
}

/// A network policy, new (`old` is absent) or changed.
pub fn network_policy(policy: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&policy["spec"], Path::new("spec"));
    label_selector(errors, &path.child("podSelector"), &spec["podSelector"]);
    for (direction, other) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in spec[direction].items().iter().enumerate() {
            let at = path.child(direction).index(index);
            for (index, port) in rule["ports"].items().iter().enumerate() {
                policy_port(port, &at.child("ports").index(index), errors);
            }
            for (index, peer) in rule[other].items().iter().enumerate() {
                policy_peer(peer, old, &at.child(other).index(index), errors);
            }
        }
    }
    let (types, at) = (spec["policyTypes"].items(), path.child("policyTypes"));
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.push(Error::invalid(&at, spec["policyTypes"].clone(), detail));
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        one_of(errors, &at.index(index), kind.text(), &["Egress", "Ingress"]);
    }
}

fn policy_port(port: &Value, path: &Path, errors: &mut ErrorList) {
    if port["protocol"].is_set() {
        one_of(errors, &path.child("protocol"), port["protocol"].text(), &PROTOCOLS);
    }
    let (number, end) = (&port["port"], &port["endPort"]);
    let at = path.child("endPort");
    match number {
        Value::Null => {
            if end.is_set() {
                let detail = "may not be specified when `port` is not specified";
                errors.push(Error::invalid(&at, end.clone(), detail));
            }
        }
        Value::String(name) => {
            if end.is_set() {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(Error::invalid(&at, end.clone(), detail));
            }
            mistakes(errors, &path.child("port"), name, names::port_name(name));
        }
        number => {
            let check = |value: &Value, path: &Path, errors: &mut ErrorList| {
                let sentences = names::port_number(value.int());
                errors.extend(sentences.into_iter().map(|s| Error::invalid(path, value.int(), s)));
            };
            check(number, &path.child("port"), errors);
            if end.is_set() {
                if end.int() < number.int() {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(Error::invalid(&at, number.int(), detail));
                }
                check(end, &at, errors);
            }
        }
    }
}

fn policy_peer(peer: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let mut selectors = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if peer[key].is_set() {
            selectors += 1;
            label_selector(errors, &path.child(key), &peer[key]);
        }
    }
    let block = &peer["ipBlock"];
    match (block.is_set(), selectors) {
        (false, 0) => errors.push(Error::required(path, "must specify a peer")),
        (true, 1..) => {
            let detail = "may not specify both ipBlock and another peer";
            errors.push(Error::forbidden(path, detail));
        }
        _ => {}
    }
    if block.is_set() {
        ip_block(block, old, &path.child("ipBlock"), errors);
    }
}

/// The address' first `bits`, and whether it is IPv6.
fn network(address: IpAddr, bits: u32) -> (bool, u128) {
    let (number, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    (width == 128, number.checked_shr(width - bits).unwrap_or(0))
}

/// All ranges of a network policy.
fn ranges(policy: &Value) -> impl Iterator<Item = &str> {
    let rules = |direction: &str, peers: &'static str| {
        let rules = policy["spec"][direction].items().iter();
        rules.flat_map(move |rule| rule[peers].items())
    };
    let peers = rules("ingress", "from").chain(rules("egress", "to"));
    let blocks = peers.map(|peer| &peer["ipBlock"]);
    blocks.flat_map(|block| std::iter::once(block["cidr"].text()).chain(block["except"].texts()))
}

fn ip_block(block: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let kept = || old.into_iter().flat_map(ranges);
    let text = block["cidr"].text();
    if text.is_empty() {
        errors.push(Error::required(&path.child("cidr"), ""));
        return;
    }
    ip::range(text, kept(), &path.child("cidr"), errors);
    let Some((whole, bits)) = cidr(text) else { return };
    for (index, text) in block["except"].texts().enumerate() {
        let at = path.child("except").index(index);
        ip::range(text, kept(), &at, errors);
        let Some((part, part_bits)) = cidr(text) else { continue };
        let inside =
            whole.is_ipv4() == part.is_ipv4() && network(whole, bits) == network(part, bits);
        if !inside || bits >= part_bits {
            errors.push(Error::invalid(&at, text, "must be a strict subset of `cidr`"));
        }
    }
}

/// An endpoint slice, new (`old` is absent) or changed.
pub fn endpoint_slice(slice: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (kind, at) = (slice["addressType"].text(), Path::new("addressType"));
    if let Some(old) = old {
        immutable(&at, &slice["addressType"], &old["addressType"], errors);
    }
    if kind.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        one_of(errors, &at, kind, &["FQDN", "IPv4", "IPv6"]);
    }
    let endpoints = Path::new("endpoints");
    if slice["endpoints"].items().len() > ENDPOINTS_MAX {
        let count = slice["endpoints"].items().len();
        errors.push(Error::too_many(&endpoints, count, ENDPOINTS_MAX));
        return;
    }
    for (index, endpoint) in slice["endpoints"].items().iter().enumerate() {
        addresses(endpoint, kind, &endpoints.index(index).child("addresses"), errors);
        let hostname = endpoint["hostname"].text();
        if !hostname.is_empty() {
            let at = endpoints.index(index).child("hostname");
            mistakes(errors, &at, hostname, names::dns_label(hostname));
        }
    }
    slice_ports(slice, errors);
}

fn addresses(endpoint: &Value, kind: &str, path: &Path, errors: &mut ErrorList) {
    let count = endpoint["addresses"].items().len();
    if count == 0 {
        errors.push(Error::required(path, "must contain at least 1 address"));
    } else if count > ADDRESSES_MAX {
        errors.push(Error::too_many(path, count, ADDRESSES_MAX));
    }
    for (index, text) in endpoint["addresses"].texts().enumerate() {
        let at = path.index(index);
        match (kind, text.parse::<IpAddr>()) {
            ("IPv4" | "IPv6", Err(_)) => ip::address(text, &at, errors),
            ("IPv4", Ok(IpAddr::V6(_))) => {
                errors.push(Error::invalid(&at, text, "must be an IPv4 address"));
            }
            ("IPv6", Ok(IpAddr::V4(_))) => {
                errors.push(Error::invalid(&at, text, "must be an IPv6 address"));
            }
            ("IPv6", Ok(IpAddr::V6(six))) if six.to_ipv4_mapped().is_some() => {
                errors.push(Error::invalid(&at, text, "must be an IPv6 address"));
            }
            ("FQDN", _) => mistakes(errors, &at, text, names::dns_subdomain(text)),
            _ => {}
        }
    }
}

fn slice_ports(slice: &Value, errors: &mut ErrorList) {
    let path = Path::new("ports");
    let ports = slice["ports"].items();
    if ports.len() > PORTS_MAX {
        errors.push(Error::too_many(&path, ports.len(), PORTS_MAX));
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let (name, at) = (port["name"].text(), path.index(index));
        if !name.is_empty() {
            mistakes(errors, &at.child("name"), name, names::dns_label(name));
        }
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        if port["protocol"].is_null() {
            errors.push(Error::required(&at.child("protocol"), ""));
        } else {
            one_of(errors, &at.child("protocol"), port["protocol"].text(), &PROTOCOLS);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    /// Upstream's words for each ingress.
    #[test]
    fn ingresses_are_checked() {
        let path = |extra: Value| {
            let mut item = json!({"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "s", "port": {"number": 80}}}});
            for (key, value) in extra.as_object().unwrap() {
                item[key] = value.clone();
            }
            json!({"spec": {"rules": [{"host": "a.b", "http": {"paths": [item]}}]}})
        };
        let at = "spec.rules[0].http.paths[0]";
        for (object, want) in [
            (path(json!({})), String::new()),
            (json!({"spec": {}}), "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified".into()),
            (json!({"spec": {"rules": [{"host": "1.2.3.4"}]}}), "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address".into()),
            (path(json!({"pathType": null})), format!("{at}.pathType: Required value: pathType must be specified")),
            (path(json!({"pathType": "Any"})), format!("{at}.pathType: Unsupported value: \"Any\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"")),
            (path(json!({"path": "a"})), format!("{at}.path: Invalid value: \"a\": must be an absolute path")),
            (path(json!({"path": "/a//b"})), format!("{at}.path: Invalid value: \"/a//b\": must not contain '//'")),
            (path(json!({"path": "/a/.."})), format!("{at}.path: Invalid value: \"/a/..\": cannot end with '/..'")),
            (path(json!({"backend": {}})), format!("{at}.backend: Invalid value: \"\": resource or service backend is required")),
            (path(json!({"backend": {"service": {"name": "s"}}})), format!("{at}.backend: Required value: port name or number is required")),
            (path(json!({"backend": {"service": {"port": {"number": 1}}}})), format!("{at}.backend.service.name: Required value")),
            (path(json!({"backend": {"service": {"name": "s", "port": {"number": 1, "name": "n"}}}})), format!("{at}.backend: Invalid value: \"\": cannot set both port name & port number")),
            (json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "a"}}, "spec": {"ingressClassName": "b",
                "defaultBackend": {"resource": {"kind": "K", "name": "n"}}}}),
                "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified".into()),
        ] {
            assert_eq!(told(|e| ingress(&object, None, e)).join("; "), want);
        }
    }

    #[test]
    fn classes_keep_their_controller() {
        let class = |controller: &str| json!({"spec": {"controller": controller}});
        for (new, old, want) in [
            ("a.b/c", None, ""),
            ("", None, "spec.controller: Required value"),
            (
                "c",
                None,
                "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                "a.b/c",
                Some("a.b/d"),
                "spec.controller: Invalid value: \"a.b/c\": field is immutable",
            ),
        ] {
            let old = old.map(class);
            assert_eq!(told(|e| ingress_class(&class(new), old.as_ref(), e)).join("; "), want);
        }
    }

    #[test]
    fn network_policies_are_checked() {
        let port = |port: Value| json!({"spec": {"ingress": [{"ports": [port]}]}});
        let peer = |peer: Value| json!({"spec": {"egress": [{"to": [peer]}]}});
        let (port_at, peer_at) = ("spec.ingress[0].ports[0]", "spec.egress[0].to[0]");
        for (object, want) in [
            (port(json!({"protocol": "TCP", "port": 80, "endPort": 90})), String::new()),
            (port(json!({"protocol": "ICMP"})), format!("{port_at}.protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"")),
            (port(json!({"port": 0})), format!("{port_at}.port: Invalid value: 0: must be between 1 and 65535, inclusive")),
            (port(json!({"port": 80, "endPort": 70})), format!("{port_at}.endPort: Invalid value: 80: must be greater than or equal to `port`")),
            (port(json!({"endPort": 70})), format!("{port_at}.endPort: Invalid value: 70: may not be specified when `port` is not specified")),
            (port(json!({"port": "http", "endPort": 70})), format!("{port_at}.endPort: Invalid value: 70: may not be specified when `port` is non-numeric")),
            (peer(json!({})), format!("{peer_at}: Required value: must specify a peer")),
            (peer(json!({"podSelector": {}, "ipBlock": {"cidr": "1.2.3.0/24"}})), format!("{peer_at}: Forbidden: may not specify both ipBlock and another peer")),
            (peer(json!({"ipBlock": {}})), format!("{peer_at}.ipBlock.cidr: Required value")),
            (peer(json!({"ipBlock": {"cidr": "1.2.3"}})), format!("{peer_at}.ipBlock.cidr: Invalid value: \"1.2.3\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")),
            (peer(json!({"ipBlock": {"cidr": "1.2.3.4/24"}})), format!("{peer_at}.ipBlock.cidr: Invalid value: \"1.2.3.4/24\": must not have bits set beyond the prefix length")),
            (peer(json!({"ipBlock": {"cidr": "1.2.3.0/24", "except": ["1.2.3.0/28"]}})), String::new()),
            (peer(json!({"ipBlock": {"cidr": "1.2.3.0/24", "except": ["1.2.3.0/24"]}})), format!("{peer_at}.ipBlock.except[0]: Invalid value: \"1.2.3.0/24\": must be a strict subset of `cidr`")),
            (peer(json!({"ipBlock": {"cidr": "1.2.3.0/24", "except": ["1.2.4.0/28"]}})), format!("{peer_at}.ipBlock.except[0]: Invalid value: \"1.2.4.0/28\": must be a strict subset of `cidr`")),
            (json!({"spec": {"policyTypes": ["Both"]}}), "spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\"".into()),
        ] {
            assert_eq!(told(|e| network_policy(&object, None, e)).join("; "), want);
        }
        let old = peer(json!({"ipBlock": {"cidr": "1.2.3.4/24", "except": ["1.2.3.5/28"]}}));
        assert_eq!(told(|e| network_policy(&old, Some(&old), e)), [""; 0], "it was there before");
    }

    #[test]
    fn slices_are_of_one_family() {
        let slice = |kind: &str, address: &str| json!({"addressType": kind, "endpoints": [{"addresses": [address]}], "ports": [{"name": "", "protocol": "TCP"}]});
        for (object, want) in [
            (slice("IPv4", "1.2.3.4"), ""),
            (
                slice("IPv4", "x"),
                "endpoints[0].addresses[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                slice("IPv6", "1.2.3.4"),
                "endpoints[0].addresses[0]: Invalid value: \"1.2.3.4\": must be an IPv6 address",
            ),
            (
                slice("IP", "1.2.3.4"),
                "addressType: Unsupported value: \"IP\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
            ),
            (
                json!({"addressType": "IPv4", "endpoints": [{}]}),
                "endpoints[0].addresses: Required value: must contain at least 1 address",
            ),
        ] {
            assert_eq!(told(|e| endpoint_slice(&object, None, e)).join("; "), want);
        }
        let got =
            told(|e| endpoint_slice(&slice("IPv4", "1.2.3.4"), Some(&slice("IPv6", "::1")), e));
        assert_eq!(got, ["addressType: Invalid value: \"IPv4\": field is immutable"]);
    }
}
