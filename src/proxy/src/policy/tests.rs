//! One line per case: policies, and who may then reach whom.

use std::net::IpAddr;

use netns::{PortRange, Protocol};
use serde_json::{Value, json};

use super::*;

const PODS: [(&str, &str, &str, &str); 5] = [
    ("shop", "web", "app=web,tier=front", "10.42.0.2"),
    ("shop", "db", "app=db", "10.42.0.3"),
    ("shop", "job", "app=job", "10.42.0.4"),
    ("lab", "web", "app=web", "10.42.0.5"),
    ("lab", "tool", "app=tool", "10.42.0.6"),
];

fn world() -> (Vec<Arc<Pod>>, Vec<Arc<Namespace>>) {
    let pods = PODS.map(|(namespace, name, labels, ip)| {
        let labels: serde_json::Map<String, Value> = labels
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        // The same name is another number in `lab`.
        let port = if namespace == "lab" { 8080 } else { 80 };
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}], "phase": "Running"},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    });
    let namespaces = ["shop", "lab"].map(|name| {
        let labels = json!({"kubernetes.io/metadata.name": name, "team": name});
        let namespace = json!({"metadata": {"name": name, "labels": labels}});
        Arc::new(serde_json::from_value(namespace).unwrap())
    });
    (pods.to_vec(), namespaces.to_vec())
}

fn address_of(name: &str) -> IpAddr {
    let found = PODS.iter().find(|(namespace, pod, _, _)| format!("{namespace}/{pod}") == name);
    found.map_or_else(|| name.parse().unwrap(), |(_, _, _, ip)| ip.parse().unwrap())
}

/// What the node network makes of the table.
fn allows(table: &PolicyTable, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
    let passes = |profile: Option<usize>, peer: &str| {
        let Some(number) = profile else { return true };
        table.profiles[number].iter().any(|rule| {
            let address = address_of(peer);
            let is_peer = rule.any_peer
                || rule.members.iter().any(|member| member == peer)
                || rule.ranges.iter().any(|(a, b)| *a <= address && address <= *b);
            let fits = |range: &PortRange| {
                range.protocol == protocol && range.first <= port && port <= range.last
            };
            is_peer && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(fits))
        })
    };
    let member = |name: &str| table.members.get(name).cloned().unwrap_or_default();
    passes(member(from).egress, to) && passes(member(to).ingress, from)
}

fn policy(spec: &Value) -> Arc<NetworkPolicy> {
    let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
    Arc::new(serde_json::from_value(policy).unwrap())
}

/// `tcp 80 lab/tool > shop/web`
fn check(specs: &[Value], allowed: &[&str], denied: &[&str]) {
    let (pods, namespaces) = world();
    let policies: Vec<_> = specs.iter().map(policy).collect();
    let table = policy_table(&policies, &pods, &namespaces);
    for (lines, want) in [(allowed, true), (denied, false)] {
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            let [protocol, port, from, _, to] = words[..] else { panic!("{line}") };
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => Protocol::Sctp,
            };
            let port = port.parse().unwrap();
            assert_eq!(allows(&table, from, to, protocol, port), want, "{line} under {specs:?}");
        }
    }
}

#[test]
fn without_policies_everybody_is_free() {
    check(&[], &["tcp 80 lab/tool > shop/web", "udp 53 shop/web > 8.8.8.8"], &[]);
    assert!(policy_table(&[], &[], &[]).others_are_free);
}

#[test]
fn default_deny_isolates_the_namespace_in_the_directions_named() {
    let ingress = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
    check(
        std::slice::from_ref(&ingress),
        &["tcp 80 shop/web > lab/web", "tcp 80 shop/web > 8.8.8.8"],
        &["tcp 80 lab/web > shop/web", "tcp 80 shop/db > shop/web"],
    );
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    check(
        &[egress],
        &["tcp 80 lab/web > shop/web"],
        &["tcp 80 shop/web > lab/web", "udp 53 shop/web > 8.8.8.8"],
    );
    // Without types: ingress always, egress only with rules for it.
    let untyped = json!({"podSelector": {}});
    check(&[untyped], &["tcp 1 shop/web > 8.8.8.8"], &["tcp 80 lab/web > shop/web"]);
    // Any other policy adds.
    let allow = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{}]});
    check(&[ingress, allow], &["udp 9 lab/web > shop/web"], &["tcp 80 lab/web > shop/db"]);
}

#[test]
fn peers_are_selected_by_pod_by_namespace_and_by_both() {
    let ingress = |from: Value| {
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": from}]})
    };
    let web = json!({"matchLabels": {"app": "web"}});
    let lab = json!({"matchLabels": {"team": "lab"}});
    check(
        &[ingress(json!([{"podSelector": web}]))],
        &["tcp 1 shop/web > shop/db"],
        &["tcp 1 lab/web > shop/db", "tcp 1 shop/job > shop/db"],
    );
    check(
        &[ingress(json!([{"namespaceSelector": lab}]))],
        &["tcp 1 lab/web > shop/db", "tcp 1 lab/tool > shop/db"],
        &["tcp 1 shop/web > shop/db"],
    );
    check(
        &[ingress(json!([{"namespaceSelector": lab, "podSelector": web}]))],
        &["tcp 1 lab/web > shop/db"],
        &["tcp 1 lab/tool > shop/db", "tcp 1 shop/web > shop/db"],
    );
    check(
        &[ingress(json!([{"namespaceSelector": lab}, {"podSelector": web}]))],
        &["tcp 1 lab/tool > shop/db", "tcp 1 shop/web > shop/db"],
        &["tcp 1 shop/job > shop/db"],
    );
    check(
        &[ingress(json!([{"namespaceSelector": {}}]))],
        &["tcp 1 shop/job > shop/db", "tcp 1 lab/tool > shop/db"],
        &["tcp 1 8.8.8.8 > shop/db"],
    );
    let expressions = json!([{"podSelector": {"matchExpressions": [
        {"key": "app", "operator": "NotIn", "values": ["job"]},
        {"key": "tier", "operator": "Exists"}]}}]);
    check(
        &[ingress(expressions)],
        &["tcp 1 shop/web > shop/db"],
        &["tcp 1 shop/job > shop/db", "tcp 1 lab/web > shop/db"],
    );
    // A peer that is nobody is not everybody.
    let nobody = json!([{"podSelector": {"matchLabels": {"app": "none"}}}]);
    check(&[ingress(nobody)], &[], &["tcp 1 shop/web > shop/db"]);
    check(&[ingress(json!([]))], &["tcp 1 8.8.8.8 > shop/db"], &[]);
}

#[test]
fn blocks_have_exceptions() {
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26"]}}]}]});
    check(
        &[egress],
        &["tcp 443 shop/web > 192.0.2.63", "udp 1 shop/web > 192.0.2.128"],
        &["tcp 443 shop/web > 192.0.2.64", "tcp 443 shop/web > 192.0.3.1"],
    );
}

#[test]
fn ports_have_protocols_ranges_and_names() {
    let ingress = |ports: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]});
    check(
        &[ingress(json!([{"port": 80}, {"protocol": "UDP", "port": 53}]))],
        &["tcp 80 lab/web > shop/db", "udp 53 lab/web > shop/db"],
        &["tcp 53 lab/web > shop/db", "udp 80 lab/web > shop/db"],
    );
    check(
        &[ingress(json!([{"port": 8000, "endPort": 8010}]))],
        &["tcp 8000 lab/web > shop/db", "tcp 8010 lab/web > shop/db"],
        &["tcp 7999 lab/web > shop/db", "tcp 8011 lab/web > shop/db"],
    );
    check(
        &[ingress(json!([{"protocol": "UDP"}]))],
        &["udp 1 lab/web > shop/db"],
        &["tcp 1 lab/web > shop/db"],
    );
    check(
        &[ingress(json!([{"port": "http"}]))],
        &["tcp 80 lab/web > shop/db"],
        &["tcp 8080 lab/web > shop/db"],
    );
    check(&[ingress(json!([{"port": "other"}]))], &[], &["tcp 80 lab/web > shop/db"]);
    let egress = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"ports": [{"port": "http"}, {"port": 9, "protocol": "TCP"}]}]});
    check(
        &[egress],
        &["tcp 80 shop/web > shop/db", "tcp 8080 shop/web > lab/web", "tcp 9 shop/web > 8.8.8.8"],
        &["tcp 8080 shop/web > shop/db", "tcp 80 shop/web > lab/web", "tcp 80 shop/web > 8.8.8.8"],
    );
}

/// Upstream's cases: "multiple stacked policies with overlapping podSelectors", "policies in different
/// namespaces", and ports of SCTP beside others.
#[test]
fn policies_add_up_and_protocols_are_apart() {
    let allow = |app: &str, ports: Value| {
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}],
                "ports": ports}]})
    };
    check(
        &[allow("db", json!([{"port": 80}])), allow("job", json!([{"port": 81}]))],
        &["tcp 80 shop/db > shop/web", "tcp 81 shop/job > shop/web", "tcp 80 shop/db > lab/web"],
        &["tcp 81 shop/db > shop/web", "tcp 80 shop/job > shop/web", "tcp 80 lab/tool > shop/web"],
    );
    check(
        &[allow("db", json!([{"port": 80, "protocol": "SCTP"}]))],
        &["sctp 80 shop/db > shop/web"],
        &["tcp 80 shop/db > shop/web", "udp 80 shop/db > shop/web"],
    );
    check(
        &[allow("db", json!([{"port": 80, "protocol": "SCTP"}, {"port": 80}]))],
        &["sctp 80 shop/db > shop/web", "tcp 80 shop/db > shop/web"],
        &["udp 80 shop/db > shop/web"],
    );
    // Both ends have to agree: egress of one, ingress of the other.
    let egress = json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}],
            "ports": [{"port": 80}, {"port": 81}]}]});
    check(
        &[egress, allow("db", json!([{"port": 80}, {"port": 82}]))],
        &["tcp 80 shop/db > shop/web"],
        &["tcp 81 shop/db > shop/web", "tcp 82 shop/db > shop/web", "tcp 80 shop/db > shop/job"],
    );
    // A later policy takes away what an earlier one did not say.
    let deny = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let blocks = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "10.42.0.0/24", "except": ["10.42.0.4/32"]}}]}]});
    check(
        &[deny, blocks],
        &["tcp 80 shop/web > lab/tool"],
        &["tcp 80 shop/web > shop/job", "tcp 80 shop/web > shop/db", "tcp 80 lab/web > shop/web"],
    );
}

#[test]
fn pods_in_the_nodes_network_and_finished_ones_are_no_members() {
    let (mut pods, namespaces) = world();
    let on_host = json!({"metadata": {"namespace": "shop", "name": "host"},
        "spec": {"hostNetwork": true, "containers": []}, "status": {"podIP": "10.42.0.1"}});
    let done = json!({"metadata": {"namespace": "shop", "name": "done"},
        "spec": {"containers": []}, "status": {"podIP": "10.42.0.9", "phase": "Succeeded"}});
    for pod in [on_host, done] {
        pods.push(Arc::new(serde_json::from_value(pod).unwrap()));
    }
    let all = policy(&json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    let table = policy_table(&[all], &pods, &namespaces);
    assert_eq!(table.members.len(), PODS.len());
    assert_eq!(table.profiles[0][0].members, ["shop/db", "shop/job", "shop/web"]);
    assert_eq!(table.members["lab/web"].ingress, None);
}
