//! Rules for what names addresses: IP addresses, ranges of Services, endpoints.
//!
//! Source: `pkg/apis/networking/validation/validation.go`, `pkg/apis/core/validation/validation.go`.

use std::net::IpAddr;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::core::immutable;
use super::ip::cidr;
use super::{ip, mistakes, required_one_of};
use crate::zero::Zero;

/// The reservation of an address, new (`old` is absent) or changed.
pub fn ip_address(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (parent, path) = (&object["spec"]["parentRef"], Path::new("spec").child("parentRef"));
    if let Some(old) = old {
        immutable(&path, parent, &old["spec"]["parentRef"], errors);
        return;
    }
    let (name, at) = (meta::name(object), Path::new("metadata").child("name"));
    match name.parse::<IpAddr>() {
        Err(_) => ip::address(name, &at, errors),
        Ok(ip) if ip.to_string() != name => {
            let detail = format!("must be in canonical form ({:?})", ip.to_string());
            errors.push(Error::invalid(&at, name, detail));
        }
        Ok(_) => {}
    }
    if parent.is_null() {
        errors.push(Error::required(&path, ""));
        return;
    }
    let group = parent["group"].text();
    if !group.is_empty() {
        mistakes(errors, &path.child("group"), group, names::dns_subdomain(group));
    }
    for (key, required) in [("resource", true), ("name", true), ("namespace", false)] {
        match parent[key].text() {
            "" if required => errors.push(Error::required(&path.child(key), "")),
            "" => {}
            text => mistakes(errors, &path.child(key), text, names::path_segment(text)),
        }
    }
}

/// A range of cluster addresses, new (`old` is absent) or changed.
pub fn service_cidr(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (list, path) = (&object["spec"]["cidrs"], Path::new("spec").child("cidrs"));
    if let Some(old) = old
        && !changed_range(list, &old["spec"]["cidrs"], &path, errors)
    {
        return;
    }
    let parsed: Vec<_> = list.texts().map(cidr).collect();
    if parsed.is_empty() {
        errors.push(Error::required(&path, "at least one CIDR required"));
    } else if parsed.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.push(Error::invalid(&path, object["spec"].clone(), detail));
    } else if let [first, Some((second, _))] = parsed.as_slice()
        && first.is_none_or(|(first, _)| first.is_ipv4() == second.is_ipv4())
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(Error::invalid(&path, object["spec"].clone(), detail));
    } else {
        let bad = list.texts().zip(parsed).enumerate().filter(|(_, (_, parsed))| parsed.is_none());
        errors.extend(bad.map(|(i, (text, _))| Error::invalid(&path.index(i), text, ip::RANGE)));
    }
}

/// A range may only gain its second family; says whether it does.
fn changed_range(list: &Value, old: &Value, path: &Path, errors: &mut ErrorList) -> bool {
    let (new, had) = (list.items(), old.items());
    let gains = (had.len(), new.len()) == (1, 2);
    if !gains && new.len() != had.len() {
        errors.push(Error::invalid(path, list.clone(), "field is immutable"));
        return false;
    }
    for (index, (new, had)) in new.iter().zip(had).enumerate() {
        immutable(&path.index(index), new, had, errors);
    }
    gains
}

/// What addresses of endpoints may not be (`ValidateNonSpecialIP`).
pub fn non_special(text: &str, path: &Path, errors: &mut ErrorList) {
    let Ok(ip) = text.parse::<IpAddr>() else { return };
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let detail = if ip.is_unspecified() {
        format!("may not be unspecified ({text})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else if link_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
    } else {
        return;
    };
    errors.push(Error::invalid(path, text, detail));
}

/// Endpoints of a Service.
pub fn endpoints(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let before = old.map_or(&[][..], |old| old["subsets"].items());
    let lists = ["addresses", "notReadyAddresses"];
    let kept = || {
        let all = before.iter().flat_map(|subset| lists.map(|list| subset[list].items()));
        all.flatten().map(|address| address["ip"].text())
    };
    let path = Path::new("subsets");
    for (index, subset) in object["subsets"].items().iter().enumerate() {
        let at = path.index(index);
        if lists.iter().all(|list| subset[*list].items().is_empty()) {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            errors.push(Error::required(&at, detail));
        }
        for list in lists {
            for (index, address) in subset[list].items().iter().enumerate() {
                endpoint_address(address, kept(), &at.child(list).index(index), errors);
            }
        }
        let ports = subset["ports"].items();
        for (index, port) in ports.iter().enumerate() {
            endpoint_port(port, ports.len() > 1, &at.child("ports").index(index), errors);
        }
    }
}

fn endpoint_address<'a>(
    address: &Value,
    kept: impl Iterator<Item = &'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    ip::new_address(address["ip"].text(), kept, &path.child("ip"), errors);
    let hostname = address["hostname"].text();
    if !hostname.is_empty() {
        mistakes(errors, &path.child("hostname"), hostname, names::dns_label(hostname));
    }
    let node = address["nodeName"].text();
    if address["nodeName"].is_set() {
        mistakes(errors, &path.child("nodeName"), node, names::dns_subdomain(node));
    }
    non_special(address["ip"].text(), &path.child("ip"), errors);
}

fn endpoint_port(port: &Value, named: bool, path: &Path, errors: &mut ErrorList) {
    let name = port["name"].text();
    if !name.is_empty() {
        mistakes(errors, &path.child("name"), name, names::dns_label(name));
    } else if named {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let number = port["port"].int();
    let sentences = names::port_number(number).into_iter();
    errors.extend(sentences.map(|detail| Error::invalid(&path.child("port"), number, detail)));
    let known = ["SCTP", "TCP", "UDP"];
    required_one_of(errors, &path.child("protocol"), port["protocol"].text(), &known);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn addresses_and_ranges_are_checked() {
        let address = |name: &str, parent: Value| json!({"metadata": {"name": name}, "spec": {"parentRef": parent}});
        let parent = json!({"resource": "services", "name": "s", "namespace": "n"});
        for (object, want) in [
            (address("10.0.0.1", parent.clone()), ""),
            (
                address("10.0.0.x", parent.clone()),
                "metadata.name: Invalid value: \"10.0.0.x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
            (
                address("2001:0db8::1", parent),
                "metadata.name: Invalid value: \"2001:0db8::1\": must be in canonical form (\"2001:db8::1\")",
            ),
            (address("10.0.0.1", Value::Null), "spec.parentRef: Required value"),
            (address("10.0.0.1", json!({"name": "s"})), "spec.parentRef.resource: Required value"),
        ] {
            assert_eq!(told(|e| ip_address(&object, None, e)).join("; "), want);
        }
        let range = |cidrs: Value| json!({"spec": {"cidrs": cidrs}});
        for (object, want) in [
            (range(json!(["10.0.0.0/24", "fd00::/112"])), ""),
            (range(json!([])), "spec.cidrs: Required value: at least one CIDR required"),
            (
                range(json!(["10.0.0.0"])),
                "spec.cidrs[0]: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
            (
                range(json!(["10.0.0.0/24", "10.0.1.0/24"])),
                "spec.cidrs: Invalid value: {\"cidrs\":[\"10.0.0.0/24\",\"10.0.1.0/24\"]}: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ),
        ] {
            assert_eq!(told(|e| service_cidr(&object, None, e)).join("; "), want);
        }
        let immutable = |at: &str, value: &str| {
            format!("spec.{at}: Invalid value: {value}: field is immutable")
        };
        for (old, new, want) in [
            (json!(["10.0.0.0/24"]), json!(["10.0.0.0/24"]), String::new()),
            (json!(["10.0.0.0/24"]), json!(["10.0.0.0/24", "fd00::/112"]), String::new()),
            (
                json!(["10.0.0.0/24"]),
                json!(["10.1.0.0/24"]),
                immutable("cidrs[0]", "\"10.1.0.0/24\""),
            ),
            (
                json!(["10.0.0.0/24", "fd00::/112"]),
                json!(["10.0.0.0/24"]),
                immutable("cidrs", "[\"10.0.0.0/24\"]"),
            ),
        ] {
            let (old, new) = (range(old), range(new));
            assert_eq!(told(|e| service_cidr(&new, Some(&old), e)).join("; "), want, "{new}");
        }
    }

    #[test]
    fn endpoints_are_checked() {
        let subset = |subset: Value| json!({"subsets": [subset]});
        for (object, want) in [
            (
                subset(
                    json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "protocol": "TCP"}]}),
                ),
                "",
            ),
            (
                subset(json!({})),
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            ),
            (
                subset(json!({"addresses": [{"ip": "127.0.0.1"}]})),
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                subset(
                    json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 0, "protocol": "TCP"}]}),
                ),
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
        ] {
            assert_eq!(told(|e| endpoints(&object, None, e)).join("; "), want);
        }
    }
}
