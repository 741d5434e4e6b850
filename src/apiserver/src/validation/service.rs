//! Rules for Services (`ValidateService`, `ValidateServiceUpdate`).

use std::collections::HashSet;
use std::net::IpAddr;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::addresses::non_special;
use super::container::port_reference;
use super::{ip, metadata, mistakes, one_of, required_one_of};
use crate::zero::Zero;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// The older way to say who may use a load balancer.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// A Service, new (`old` is absent) or changed.
pub fn validate(service: &Value, old: Option<&Value>, errors: &mut ErrorList) {
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
        for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let set = !spec[key].items().is_empty() || !spec[key].text().is_empty();
            if set || (key == "clusterIPs" && !spec["clusterIP"].text().is_empty()) {
                let detail = "may not be set for ExternalName services";
                errors.push(Error::forbidden(&path.child(key), detail));
            }
        }
    } else {
        families(spec, &path, errors);
    }
    affinity(spec, &path, errors);
    addresses(spec, old.map_or(&Value::Null, |old| &old["spec"]), &path, errors);
    load_balancer(spec, &path, errors);
    source_ranges(service, old, &path, errors);
    traffic(spec, &path, errors);
}

/// How long a client sticks to its endpoint.
fn affinity(spec: &Value, path: &Path, errors: &mut ErrorList) {
    const SECONDS_MAX: i64 = 86_400;
    let (config, at) = (&spec["sessionAffinityConfig"], path.child("sessionAffinityConfig"));
    let seconds = &config["clientIP"]["timeoutSeconds"];
    match spec["sessionAffinity"].text() {
        "ClientIP" if seconds.is_null() => {
            errors.push(Error::required(&at, "when `sessionAffinity` is ClientIP"));
        }
        "ClientIP" if !(1..=SECONDS_MAX).contains(&seconds.int()) => {
            let at = at.child("clientIP").child("timeoutSeconds");
            let detail = format!("must be greater than 0 and less than {SECONDS_MAX}");
            errors.push(Error::invalid(&at, seconds.int(), detail));
        }
        "None" if config.is_set() => {
            let detail = "must not be set when session affinity is None";
            errors.push(Error::forbidden(&at, detail));
        }
        _ => {}
    }
}

const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";

/// Who may use a load balancer, by the field, or else by the annotation (`ValidateService`).
fn source_ranges(service: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let had = old.and_then(|old| meta::annotation(old, SOURCE_RANGES)).unwrap_or_default();
    let kept = || {
        let field = old.into_iter().flat_map(|old| old["spec"]["loadBalancerSourceRanges"].texts());
        field.chain(had.split(',')).map(str::trim)
    };
    let balanced = service["spec"]["type"] == "LoadBalancer";
    let ranges = &service["spec"]["loadBalancerSourceRanges"];
    if !ranges.items().is_empty() {
        let at = path.child("loadBalancerSourceRanges");
        if !balanced {
            errors.push(Error::forbidden(&at, ONLY));
        }
        for (index, text) in ranges.texts().enumerate() {
            ip::range(text.trim(), kept(), &at.index(index), errors);
        }
    } else if let Some(noted) = meta::annotation(service, SOURCE_RANGES) {
        let at = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !balanced {
            errors.push(Error::forbidden(&at, ONLY));
        }
        for text in noted.trim().split(',').filter(|_| !noted.trim().is_empty()) {
            ip::range(text.trim(), kept(), &at, errors);
        }
    }
}

/// What only Services of type `LoadBalancer` have.
fn load_balancer(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = spec["type"].text();
    let at = path.child("allocateLoadBalancerNodePorts");
    match (kind == "LoadBalancer", spec["allocateLoadBalancerNodePorts"].is_set()) {
        (false, true) => errors.push(Error::forbidden(&at, ONLY)),
        (true, false) => {
            errors.push(Error::required(&at, "field is required when type is LoadBalancer"));
        }
        _ => {}
    }
    let (class, at) = (&spec["loadBalancerClass"], path.child("loadBalancerClass"));
    if class.is_set() && kind != "LoadBalancer" {
        errors.push(Error::forbidden(&at, ONLY));
    } else if class.is_set() {
        mistakes(errors, &at, class.text(), names::qualified_name(class.text()));
    }
    let kubelet = 10_250;
    for (index, port) in spec["ports"].items().iter().enumerate() {
        if kind == "LoadBalancer" && port["port"].int() == kubelet {
            let at = path.child("ports").index(index);
            let detail =
                format!("may not expose port {kubelet} externally since it is used by kubelet");
            errors.push(Error::invalid(&at, kubelet, detail));
        }
    }
}

fn traffic(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = spec["type"].text();
    let external = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !spec["externalIPs"].items().is_empty());
    let (policy, at) = (spec["externalTrafficPolicy"].text(), path.child("externalTrafficPolicy"));
    match (external, policy) {
        (_, "Cluster" | "Local" | "") => {}
        (_, other) => one_of(errors, &at, other, &["Cluster", "Local"]),
    }
    if external && policy.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !external && !policy.is_empty() {
        let detail = "may only be set for externally-accessible services";
        errors.push(Error::invalid(&at, policy, detail));
    }
    let (inside, at) = (spec["internalTrafficPolicy"].text(), path.child("internalTrafficPolicy"));
    if !inside.is_empty() {
        one_of(errors, &at, inside, &["Cluster", "Local"]);
    } else if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        errors.push(Error::required(&at, ""));
    }
    let (port, at) = (spec["healthCheckNodePort"].int(), path.child("healthCheckNodePort"));
    if port < 0 {
        errors.push(Error::invalid(&at, port, "must be greater than or equal to 0"));
    }
    if port != 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let detail =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(Error::invalid(&at, port, detail));
    }
    if spec["trafficDistribution"].is_set() {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        let text = spec["trafficDistribution"].text();
        one_of(errors, &path.child("trafficDistribution"), text, &known);
    }
}

/// Families, the policy on them, and whether the addresses are of them.
fn families(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("ipFamilies");
    let mut seen = HashSet::new();
    for (index, family) in spec["ipFamilies"].texts().enumerate() {
        one_of(errors, &at.index(index), family, &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errors.push(Error::duplicate(&at.index(index), family));
        }
    }
    if spec["ipFamilyPolicy"].is_set() {
        let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        one_of(errors, &path.child("ipFamilyPolicy"), spec["ipFamilyPolicy"].text(), &known);
    }
    let (list, at) = (&spec["clusterIPs"], path.child("clusterIPs"));
    let count = list.items().len();
    if count > 1 && list[0] == "None" {
        let detail = "'None' must be the first and only value";
        errors.push(Error::invalid(&at, list.clone(), detail));
    }
    if count > 2 {
        errors.push(Error::invalid(&at, list.clone(), "may only hold up to 2 values"));
    }
    let parsed: Vec<Option<IpAddr>> = list.texts().map(|text| text.parse().ok()).collect();
    if let [Some(first), Some(second)] = parsed.as_slice()
        && first.is_ipv4() == second.is_ipv4()
    {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(Error::invalid(&at, list.clone(), detail));
    }
    for (index, (address, family)) in parsed.iter().zip(spec["ipFamilies"].texts()).enumerate() {
        let Some(address) = address else { continue };
        let expected = if family == "IPv6" { "an IPv6" } else { "an IPv4" };
        if address.is_ipv6() != (family == "IPv6") {
            let detail = format!("expected {expected} value as indicated by `ipFamilies[{index}]`");
            errors.push(Error::invalid(&at.index(index), address.to_string(), detail));
        }
    }
}

fn addresses(spec: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let of_cluster = || old["clusterIPs"].texts();
    for (index, address) in spec["clusterIPs"].texts().enumerate() {
        if address != "None" {
            let at = path.child("clusterIPs").index(index);
            ip::new_address(address, of_cluster(), &at, errors);
        }
    }
    if spec["clusterIP"].text().is_empty() && !spec["clusterIPs"].items().is_empty() {
        let detail = "must be empty when `clusterIP` is not specified";
        errors.push(Error::invalid(&path.child("clusterIPs"), spec["clusterIPs"].clone(), detail));
    }
    let (first, single) = (spec["clusterIPs"][0].text(), spec["clusterIP"].text());
    if !first.is_empty() && !single.is_empty() && first != single {
        let detail = "first value must match `clusterIP`";
        errors.push(Error::invalid(&path.child("clusterIPs"), spec["clusterIPs"].clone(), detail));
    } else if first.is_empty() && !single.is_empty() && single != "None" {
        ip::new_address(single, of_cluster(), &path.child("clusterIP"), errors);
    }
    for (index, address) in spec["externalIPs"].texts().enumerate() {
        let at = path.child("externalIPs").index(index);
        ip::new_address(address, old["externalIPs"].texts(), &at, errors);
        non_special(address, &at, errors);
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

/// The addresses and families of a Service stay; a second one may come, or go when it is said so.
pub fn validate_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    let (new, old, path) = (&new["spec"], &old["spec"], Path::new("spec"));
    let balancer = |spec: &Value| spec["type"] == "LoadBalancer";
    if balancer(new) && balancer(old) && new["loadBalancerClass"] != old["loadBalancerClass"] {
        let at = path.child("loadBalancerClass");
        let value = new["loadBalancerClass"].clone();
        errors.push(Error::invalid(&at, value, "may not change once set"));
    }
    let needs_check = |spec: &Value| balancer(spec) && spec["externalTrafficPolicy"] == "Local";
    if needs_check(new)
        && needs_check(old)
        && old["healthCheckNodePort"].int() != 0
        && new["healthCheckNodePort"] != old["healthCheckNodePort"]
    {
        let at = path.child("healthCheckNodePort");
        let value = new["healthCheckNodePort"].clone();
        errors.push(Error::invalid(&at, value, "field is immutable"));
    }
    let external = |spec: &Value| spec["type"] == "ExternalName";
    if external(new) || external(old) {
        return;
    }
    let headless = |spec: &Value| spec["clusterIPs"][0] == "None";
    if !(headless(new) && headless(old)) {
        kept(new, old, "clusterIPs", "clusterIP", &path, errors);
    }
    if !headless(new) && !headless(old) {
        kept(new, old, "ipFamilies", "ipFamily", &path, errors);
    }
}

fn kept(new: &Value, old: &Value, key: &str, one: &str, path: &Path, errors: &mut ErrorList) {
    let (list, before) = (new[key].items(), old[key].items());
    let mut changed = |index: usize, detail: &str| {
        errors.push(Error::invalid(&path.child(key).index(index), new[key].clone(), detail));
    };
    if list.is_empty() && !before.is_empty() {
        changed(0, &format!("primary {one} can not be unset"));
    }
    for (index, _) in list.iter().zip(before).enumerate().filter(|(_, (a, b))| a != b) {
        // Only the first is looked at when there are more or fewer than before.
        if index == 0 || list.len() == before.len() {
            changed(index, "may not change once set");
        }
    }
    if list.len() == 1 && before.len() > 1 && new["ipFamilyPolicy"] != "SingleStack" {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        let at = path.child("ipFamilyPolicy");
        errors.push(Error::invalid(&at, new["ipFamilyPolicy"].clone(), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn what_a_type_does_not_have_is_refused() {
        let made = |extra: Value| {
            let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"spec": spec})
        };
        for (extra, want) in [
            (json!({}), ""),
            (
                json!({"loadBalancerClass": "a.b/c"}),
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": true, "healthCheckNodePort": 30000}),
                "",
            ),
            (
                json!({"healthCheckNodePort": 30000}),
                "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
            ),
            (
                json!({"externalIPs": ["127.0.0.1"], "externalTrafficPolicy": "Cluster"}),
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            (
                json!({"ipFamilies": ["IPv4", "IPv4"]}),
                "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
            ),
            (
                json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}),
                "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
            ),
            (
                json!({"trafficDistribution": "Far"}),
                "spec.trafficDistribution: Unsupported value: \"Far\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
            ),
        ] {
            assert_eq!(told(|e| validate(&made(extra.clone()), None, e)).join("; "), want);
        }
    }

    #[test]
    fn source_ranges_are_ranges_unless_they_were_there_before() {
        let by_field = |kind: &str, range: &str| json!({"spec": {"type": kind, "loadBalancerSourceRanges": [range]}});
        let by_note = |kind: &str, ranges: &str| json!({"metadata": {"annotations": {SOURCE_RANGES: ranges}}, "spec": {"type": kind}});
        let (field, note) =
            ("spec.loadBalancerSourceRanges", format!("metadata.annotations[{SOURCE_RANGES}]"));
        let beyond =
            "Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length";
        let balanced = "LoadBalancer";
        for (service, old, want) in [
            (by_field(balanced, " 10.0.0.0/8 "), None, String::new()),
            (by_field(balanced, "10.0.0.1/8"), None, format!("{field}[0]: {beyond}")),
            (
                by_field(balanced, "10.0.0.1/8"),
                Some(by_field(balanced, "10.0.0.1/8")),
                String::new(),
            ),
            (by_field("NodePort", "10.0.0.0/8"), None, format!("{field}: Forbidden: {ONLY}")),
            (by_note(balanced, "10.0.0.0/8, 192.0.2.0/24"), None, String::new()),
            (by_note(balanced, " "), None, String::new()),
            (by_note(balanced, "fd00::/8,10.0.0.1/8"), None, format!("{note}: {beyond}")),
            (
                by_note(balanced, "10.0.0.1/8"),
                Some(by_note(balanced, "fd00::/8,10.0.0.1/8")),
                String::new(),
            ),
            (by_note("ClusterIP", "10.0.0.0/8"), None, format!("{note}: Forbidden: {ONLY}")),
        ] {
            let path = Path::new("spec");
            let got = told(|e| source_ranges(&service, old.as_ref(), &path, e)).join("; ");
            assert_eq!(got, want);
        }
    }

    #[test]
    fn addresses_stay() {
        let spec = |ips: Value, policy: &str| json!({"spec": {"type": "ClusterIP", "clusterIPs": ips, "ipFamilyPolicy": policy}});
        let told = |new: Value, old: Value| told(|e| validate_update(&new, &old, e)).join("; ");
        let both = spec(json!(["10.0.0.1", "fd00::1"]), "PreferDualStack");
        let one = spec(json!(["10.0.0.1"]), "SingleStack");
        assert_eq!(told(both.clone(), one.clone()), "");
        assert_eq!(told(one.clone(), both.clone()), "");
        assert_eq!(
            told(spec(json!(["10.0.0.1"]), "PreferDualStack"), both),
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP"
        );
        assert_eq!(
            told(spec(json!(["10.0.0.2"]), "SingleStack"), one),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"
        );
    }

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
            for (key, kinds) in [
                ("internalTrafficPolicy", &["ClusterIP", "NodePort", "LoadBalancer"][..]),
                ("externalTrafficPolicy", &["NodePort", "LoadBalancer"]),
            ] {
                if kinds.contains(&spec["type"].text()) {
                    spec[key] = "Cluster".into();
                }
            }
            let got = told(|e| validate(&json!({"spec": spec}), None, e));
            assert_eq!(got.first().map(String::as_str), want, "{got:?}");
        }
    }
}
