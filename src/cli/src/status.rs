//! What `rootlet status` tells of a cluster, read from its API.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use kube::Client;
use serde::Serialize;
use serde_json::Value;

use crate::report::get;

/// Warnings told at most; `kubectl get events` has them all.
const WARNINGS: usize = 8;

/// What the API says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Pods by phase.
    pub pods: BTreeMap<String, usize>,
    /// What the pods use; none where nobody measures it.
    pub pod_memory_bytes: Option<u64>,
    /// What can be reached from this machine.
    pub ports: Vec<Port>,
    /// What is not well.
    pub warnings: Vec<String>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
}

/// A port of this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Where to connect to.
    pub address: IpAddr,
    /// The port there.
    pub port: u64,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// What is behind it, such as `service default/web`.
    pub target: String,
}

/// Asks the API; `publish` are the addresses at which node ports are offered.
pub async fn overview(client: &Client, publish: &[IpAddr]) -> kube::Result<Overview> {
    let nodes = get(client, "/api/v1/nodes").await?;
    let pods = get(client, "/api/v1/pods").await?;
    let services = get(client, "/api/v1/services").await?;
    let ingresses = get(client, "/apis/networking.k8s.io/v1/ingresses").await?;
    let events = get(client, "/api/v1/events?fieldSelector=type%3DWarning").await?;
    // Metrics may be another server's, or nobody's.
    let usage = get(client, "/apis/metrics.k8s.io/v1beta1/pods").await.ok();
    let mut ports = published(&services, &pods, &ingresses, publish);
    ports.sort();
    ports.dedup();
    Ok(Overview {
        nodes: items(&nodes).map(node).collect(),
        pods: phases(&pods),
        pod_memory_bytes: usage.as_ref().map(memory),
        ports,
        warnings: warnings(&nodes, &pods, &events),
    })
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn named(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
}

fn node(node: &Value) -> Node {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
    Node { name: text(&node["metadata"]["name"]).to_owned(), ready }
}

fn phases(pods: &Value) -> BTreeMap<String, usize> {
    let mut phases = BTreeMap::new();
    for pod in items(pods) {
        let phase = pod["status"]["phase"].as_str().unwrap_or("Unknown");
        *phases.entry(phase.to_owned()).or_default() += 1;
    }
    phases
}

/// The sum over all containers, which the server tells as `123Ki`, or in another unit.
fn memory(usage: &Value) -> u64 {
    let containers =
        items(usage).flat_map(|pod| pod["containers"].as_array().into_iter().flatten());
    containers.map(|container| bytes(text(&container["usage"]["memory"]))).sum()
}

fn bytes(quantity: &str) -> u64 {
    let digits = quantity.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &quantity[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return 0,
    };
    digits.parse::<u64>().unwrap_or_default().saturating_mul(unit)
}

fn published(services: &Value, pods: &Value, ingresses: &Value, publish: &[IpAddr]) -> Vec<Port> {
    let mut found = Vec::new();
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let addresses = |object: &Value| -> Vec<IpAddr> {
        let ingress = object["status"]["loadBalancer"]["ingress"].as_array();
        let addresses = ingress.into_iter().flatten().filter_map(|at| at["ip"].as_str());
        addresses.filter_map(|address| address.parse().ok()).collect()
    };
    for service in items(services) {
        let target = format!("service {}", named(service));
        for port in service["spec"]["ports"].as_array().into_iter().flatten() {
            let mut add = |address: &IpAddr, number: &Value| {
                if let Some(number) = number.as_u64().filter(|number| *number > 0) {
                    let (address, protocol) = (*address, protocol(port));
                    found.push(Port { address, port: number, protocol, target: target.clone() });
                }
            };
            for address in publish {
                add(address, &port["nodePort"]);
            }
            for address in &addresses(service) {
                add(address, &port["port"]);
            }
        }
    }
    for ingress in items(ingresses) {
        let entries = ingress["status"]["loadBalancer"]["ingress"].as_array();
        for entry in entries.into_iter().flatten() {
            let Ok(address) = text(&entry["ip"]).parse() else { continue };
            for port in entry["ports"].as_array().into_iter().flatten() {
                let Some(number) = port["port"].as_u64() else { continue };
                let target = format!("ingress {}", named(ingress));
                found.push(Port { address, port: number, protocol: protocol(port), target });
            }
        }
    }
    for pod in items(pods).filter(|pod| pod["status"]["phase"] == "Running") {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        for port in containers.flat_map(|c| c["ports"].as_array().into_iter().flatten()) {
            let Some(number) = port["hostPort"].as_u64() else { continue };
            let own: Option<IpAddr> = text(&port["hostIP"]).parse().ok();
            let at = own.filter(|ip| !ip.is_unspecified()).map_or(publish.to_vec(), |ip| vec![ip]);
            for address in at {
                let target = format!("pod {}", named(pod));
                found.push(Port { address, port: number, protocol: protocol(port), target });
            }
        }
    }
    found
}

fn warnings(nodes: &Value, pods: &Value, events: &Value) -> Vec<String> {
    let mut told = Vec::new();
    for node in items(nodes) {
        for condition in node["status"]["conditions"].as_array().into_iter().flatten() {
            let kind = text(&condition["type"]);
            let good = if kind.ends_with("Pressure") || kind == "NetworkUnavailable" {
                "False"
            } else {
                "True"
            };
            if condition["status"] != good {
                let message = text(&condition["message"]);
                told.push(format!("node {}: {kind}: {message}", text(&node["metadata"]["name"])));
            }
        }
    }
    let mut about = Vec::new();
    for pod in items(pods) {
        let statuses = ["initContainerStatuses", "containerStatuses"]
            .into_iter()
            .flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
        let held = statuses.filter_map(|status| status["state"]["waiting"]["reason"].as_str());
        let harmless = ["ContainerCreating", "PodInitializing"];
        let reason = held.into_iter().find(|reason| !harmless.contains(reason));
        let failed = (pod["status"]["phase"] == "Failed").then_some("Failed");
        if let Some(reason) = reason.or(failed) {
            let (metadata, name) = (&pod["metadata"], named(pod));
            let namespace = match text(&metadata["namespace"]) {
                "default" => String::new(),
                other => format!(" -n {other}"),
            };
            let ask = format!("rootlet why pod/{}{namespace}", text(&metadata["name"]));
            told.push(format!("pod {name}: {reason} (`{ask}` says more)"));
            about.push(name);
        }
    }
    for event in items(events) {
        let object = &event["involvedObject"];
        let name = match text(&object["namespace"]) {
            "" => text(&object["name"]).to_owned(),
            namespace => format!("{namespace}/{}", text(&object["name"])),
        };
        // What became of a pod is told above, or is over.
        if object["kind"] == "Pod" || object["kind"] == "Node" || about.contains(&name) {
            continue;
        }
        let kind = text(&object["kind"]).to_lowercase();
        told.push(format!(
            "{kind} {name}: {}: {}",
            text(&event["reason"]),
            text(&event["message"]).trim_end()
        ));
    }
    told.dedup();
    let more = told.len().saturating_sub(WARNINGS);
    told.truncate(WARNINGS);
    if more > 0 {
        told.push(format!("and {more} more: kubectl get events -A --field-selector type=Warning"));
    }
    told
}

/// The lines of a cluster that runs, below those that say where it is.
pub fn lines(overview: &Overview) -> String {
    let mut out = String::new();
    let nodes: Vec<String> = overview
        .nodes
        .iter()
        .map(|node| format!("{} {}", node.name, if node.ready { "Ready" } else { "NotReady" }))
        .collect();
    let none = |list: String| if list.is_empty() { "none".to_owned() } else { list };
    let _ = writeln!(out, "node     {}", none(nodes.join(", ")));
    let pods: Vec<String> =
        overview.pods.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    let _ = writeln!(out, "pods     {}", none(pods.join(", ")));
    for (index, port) in overview.ports.iter().enumerate() {
        let word = if index == 0 { "ports" } else { "" };
        let at = std::net::SocketAddr::new(port.address, port.port as u16);
        let protocol =
            if port.protocol == "TCP" { String::new() } else { format!("/{}", port.protocol) };
        let _ = writeln!(out, "{word:<8} {at}{protocol} to {}", port.target);
    }
    for warning in &overview.warnings {
        let _ = writeln!(out, "warning  {warning}");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_bytes() {
        for (text, want) in [("12", 12), ("3Ki", 3072), ("2M", 2_000_000), ("x", 0), ("1e3", 0)] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    #[test]
    fn ports_of_services_ingresses_and_pods_are_told() {
        let meta = |name: &str| json!({"namespace": "shop", "name": name});
        let services = json!({"items": [
            {"metadata": meta("inner"), "spec": {"ports": [{"port": 80}]}},
            {"metadata": meta("web"), "spec": {"ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.2"}]}}},
        ]});
        let pods = json!({"items": [
            {"metadata": meta("dns"), "status": {"phase": "Running"}, "spec": {"containers": [
                {"ports": [{"hostPort": 53, "protocol": "UDP"}, {"containerPort": 1}]}]}},
            {"metadata": meta("over"), "status": {"phase": "Succeeded"}, "spec": {"containers": [
                {"ports": [{"hostPort": 54}]}]}},
        ]});
        let ingresses = json!({"items": [{"metadata": meta("site"), "status": {"loadBalancer":
            {"ingress": [{"ip": "127.0.0.1", "ports": [{"port": 8080, "protocol": "TCP"}]}]}}}]});
        let ports = published(&services, &pods, &ingresses, &["127.0.0.1".parse().unwrap()]);
        let overview = Overview { ports, ..Overview::default() };
        insta::assert_snapshot!(lines(&overview), @r"
        node     none
        pods     none
        ports    127.0.0.1:30080 to service shop/web
                 127.0.0.2:80 to service shop/web
                 127.0.0.1:8080 to ingress shop/site
                 127.0.0.1:53/UDP to pod shop/dns
        ");
    }

    #[test]
    fn what_is_not_well_is_told_once() {
        let nodes = json!({"items": [{"metadata": {"name": "rootlet"}, "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"},
            {"type": "DiskPressure", "status": "True", "message": "full"},
        ]}}]});
        let pods = json!({"items": [
            {"metadata": {"namespace": "default", "name": "a"}, "status": {"phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}},
            {"metadata": {"namespace": "x", "name": "b"}, "status": {"phase": "Failed"}},
            {"metadata": {"namespace": "x", "name": "c"}, "status": {"phase": "Pending",
                "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}},
        ]});
        let event = |kind: &str, name: &str| {
            json!({"involvedObject": {"kind": kind, "namespace": "x", "name": name},
                "reason": "R", "message": "m\n"})
        };
        let mut of_none = event("IngressClass", "i");
        of_none["involvedObject"]["namespace"] = json!(null);
        let twice = event("Service", "s");
        let events = json!({"items": [event("Pod", "a"), twice.clone(), twice, of_none]});
        assert_eq!(
            warnings(&nodes, &pods, &events),
            [
                "node rootlet: DiskPressure: full",
                "pod default/a: ErrImagePull (`rootlet why pod/a` says more)",
                "pod x/b: Failed (`rootlet why pod/b -n x` says more)",
                "service x/s: R: m",
                "ingressclass i: R: m",
            ]
        );
    }
}
