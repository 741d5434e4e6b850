//! Rules for Services (`ValidateService`, `ValidateServiceUpdate`).

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::container::port_reference;
use super::{metadata, mistakes, one_of, pod, required_one_of};
use crate::zero::Zero;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// A Service, new or changed.
pub fn validate(service: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let kind = spec["type"].text();
    let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
    if spec["ports"].items().is_empty() && !headless && kind != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(Error::invalid(&path.child("clusterIPs").index(0), "None", detail));
    }
    ports(spec, &path, errors);
    metadata::labels(&spec["selector"], &path.child("selector"), errors);
    let at = path.child("sessionAffinity");
    required_one_of(errors, &at, spec["sessionAffinity"].text(), &["ClientIP", "None"]);
    required_one_of(errors, &path.child("type"), kind, &TYPES);
    if kind == "ExternalName" {
        let name = spec["externalName"].text();
        let at = path.child("externalName");
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
        } else {
            mistakes(errors, &at, name, names::dns_subdomain(name.trim_end_matches('.')));
        }
        if !spec["clusterIP"].text().is_empty() {
            let detail = "may not be set for ExternalName services";
            errors.push(Error::forbidden(&path.child("clusterIPs"), detail));
        }
    }
    addresses(spec, &path, errors);
    for policy in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        let text = spec[policy].text();
        if !text.is_empty() {
            one_of(errors, &path.child(policy), text, &["Cluster", "Local"]);
        }
    }
    let external =
        matches!(kind, "NodePort" | "LoadBalancer") || !spec["externalIPs"].items().is_empty();
    if !external && !spec["externalTrafficPolicy"].text().is_empty() {
        let text = spec["externalTrafficPolicy"].text();
        let detail = "may only be set for externally-accessible services";
        errors.push(Error::invalid(&path.child("externalTrafficPolicy"), text, detail));
    }
}

fn addresses(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, address) in spec["clusterIPs"].texts().enumerate() {
        if address != "None" {
            pod::ip(address, &path.child("clusterIPs").index(index), errors);
        }
    }
    let (first, single) = (spec["clusterIPs"][0].text(), spec["clusterIP"].text());
    if !first.is_empty() && !single.is_empty() && first != single {
        let detail = "first value must match `clusterIP`";
        errors.push(Error::invalid(&path.child("clusterIPs"), spec["clusterIPs"].clone(), detail));
    } else if first.is_empty() && !single.is_empty() && single != "None" {
        pod::ip(single, &path.child("clusterIP"), errors);
    }
    for (index, address) in spec["externalIPs"].texts().enumerate() {
        pod::ip(address, &path.child("externalIPs").index(index), errors);
    }
}

fn ports(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let list = spec["ports"].items();
    let (mut named, mut numbered) = (HashSet::new(), HashSet::new());
    let mut node_ports = HashSet::new();
    let kind = spec["type"].text();
    for (index, port) in list.iter().enumerate() {
        let path = path.child("ports").index(index);
        let name = port["name"].text();
        if name.is_empty() {
            if list.len() > 1 {
                errors.push(Error::required(&path.child("name"), ""));
            }
        } else {
            mistakes(errors, &path.child("name"), name, names::dns_label(name));
            if !named.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
        }
        let number = port["port"].int();
        errors.extend(
            names::port_number(number)
                .into_iter()
                .map(|detail| Error::invalid(&path.child("port"), number, detail)),
        );
        let protocol = port["protocol"].text();
        required_one_of(errors, &path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        port_reference(&port["targetPort"], &path.child("targetPort"), errors);
        if !numbered.insert((number, protocol)) {
            let value = serde_json::json!({"port": number, "protocol": protocol});
            errors.push(Error::duplicate(&path, value));
        }
        let node_port = port["nodePort"].int();
        if node_port != 0 {
            if matches!(kind, "ClusterIP" | "ExternalName") {
                let detail = format!("may not be used when `type` is '{kind}'");
                errors.push(Error::forbidden(&path.child("nodePort"), detail));
            } else if !node_ports.insert((node_port, protocol)) {
                errors.push(Error::duplicate(&path.child("nodePort"), node_port));
            }
        }
    }
}

/// The address of a Service stays.
pub fn validate_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let external = |service: &Value| service["spec"]["type"] == "ExternalName";
    if external(new) || external(old) {
        return;
    }
    let before = &old["spec"]["clusterIPs"];
    if !before.items().is_empty() && new["spec"]["clusterIPs"][0] != before[0] {
        let value = new["spec"]["clusterIPs"].clone();
        let detail = "may not change once set";
        errors.push(Error::invalid(&path.child("clusterIPs").index(0), value, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn services_are_checked() {
        let port = json!({"port": 80, "protocol": "TCP", "targetPort": 80});
        let cases = [
            (json!({"type": "ClusterIP", "ports": [port]}), None),
            (json!({"type": "ClusterIP"}), Some("spec.ports: Required value")),
            (
                json!({"type": "Magic", "ports": [port]}),
                Some(
                    "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ),
            ),
            (
                json!({"type": "ClusterIP", "ports": [port, port]}),
                Some("spec.ports[0].name: Required value"),
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [port]}),
                Some(
                    "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
                ),
            ),
            (json!({"type": "ExternalName"}), Some("spec.externalName: Required value")),
            (
                json!({"type": "ClusterIP", "ports": [{"port": 0, "protocol": "TCP", "targetPort": 1}]}),
                Some(
                    "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                ),
            ),
        ];
        for (mut spec, want) in cases {
            spec["sessionAffinity"] = "None".into();
            let got = told(|e| validate(&json!({"spec": spec}), e));
            assert_eq!(got.first().map(String::as_str), want, "{got:?}");
        }
    }
}
