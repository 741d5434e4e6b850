//! Services and their endpoints.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{NONE, age, joined, labels, name};
use super::{Column, Printer};
use crate::zero::Zero;

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);
/// Endpoints that are named one by one.
const SHOWN: usize = 3;

/// The printer of a kind of this file.
pub fn printer(kind: (&str, &str)) -> Option<Printer> {
    let (columns, cells): (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>) = match kind {
        ("", "Service") => (
            &[
                NAME,
                ("Type", "string", 0),
                ("Cluster-IP", "string", 0),
                ("External-IP", "string", 0),
                ("Port(s)", "string", 0),
                AGE,
                ("Selector", "string", 1),
            ],
            service,
        ),
        ("", "Endpoints") => (&[NAME, ("Endpoints", "string", 0), AGE], |object, now| {
            let all: Vec<String> = object["subsets"].items().iter().flat_map(subset).collect();
            vec![name(object), shortened(&all).into(), age(object, now)]
        }),
        ("discovery.k8s.io", "EndpointSlice") => (
            &[
                NAME,
                ("AddressType", "string", 0),
                ("Ports", "string", 0),
                ("Endpoints", "string", 0),
                AGE,
            ],
            slice,
        ),
        ("networking.k8s.io", "Ingress") => (
            &[
                NAME,
                ("Class", "string", 0),
                ("Hosts", "string", 0),
                ("Address", "string", 0),
                ("Ports", "string", 0),
                AGE,
            ],
            ingress,
        ),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

fn subset(subset: &Value) -> Vec<String> {
    let addresses = subset["addresses"].items().iter().map(|address| address["ip"].text());
    let ports = subset["ports"].items();
    if ports.is_empty() {
        return addresses.map(str::to_owned).collect();
    }
    let addresses: Vec<&str> = addresses.collect();
    ports
        .iter()
        .flat_map(|port| addresses.iter().map(move |ip| format!("{ip}:{}", port["port"].int())))
        .collect()
}

fn shortened(all: &[String]) -> String {
    match all.len() {
        0 => NONE.to_owned(),
        count if count > SHOWN => {
            format!("{} + {} more...", all[..SHOWN].join(","), count - SHOWN)
        }
        _ => all.join(","),
    }
}

fn ports(service: &Value) -> Value {
    let all: Vec<String> = service["spec"]["ports"]
        .items()
        .iter()
        .map(|port| {
            let protocol = match port["protocol"].text() {
                "" => "TCP",
                protocol => protocol,
            };
            match port["nodePort"].int() {
                0 => format!("{}/{protocol}", port["port"].int()),
                node => format!("{}:{node}/{protocol}", port["port"].int()),
            }
        })
        .collect();
    joined(all.iter().map(String::as_str))
}

fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let own: Vec<&str> = spec["externalIPs"].texts().collect();
    match spec["type"].text() {
        "ExternalName" => spec["externalName"].text().to_owned(),
        "LoadBalancer" => {
            let given = service["status"]["loadBalancer"]["ingress"].items().iter();
            let mut all: Vec<&str> = given
                .map(|point| match point["ip"].text() {
                    "" => point["hostname"].text(),
                    ip => ip,
                })
                .collect();
            all.extend(own);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ if own.is_empty() => NONE.into(),
        _ => own.join(","),
    }
}

fn service(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let address = match (spec["type"].text(), spec["clusterIP"].text()) {
        ("ExternalName", _) | (_, "") => NONE,
        (_, address) => address,
    };
    vec![
        name(service),
        spec["type"].text().into(),
        address.into(),
        external(service).into(),
        ports(service),
        age(service, now),
        labels(&spec["selector"]),
    ]
}

fn slice(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> =
        slice["ports"].items().iter().map(|port| port["port"].int().to_string()).collect();
    let ports = if ports.is_empty() { "<unset>".to_owned() } else { shortened(&ports) };
    let addresses: Vec<String> = slice["endpoints"]
        .items()
        .iter()
        .flat_map(|endpoint| endpoint["addresses"].texts().map(str::to_owned))
        .collect();
    let addresses = if addresses.is_empty() { "<unset>".to_owned() } else { shortened(&addresses) };
    vec![name(slice), slice["addressType"].clone(), ports.into(), addresses.into(), age(slice, now)]
}

fn ingress(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    let hosts: Vec<&str> = spec["rules"]
        .items()
        .iter()
        .map(|rule| rule["host"].text())
        .filter(|host| !host.is_empty())
        .collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") };
    let points = ingress["status"]["loadBalancer"]["ingress"].items().iter();
    let addresses: Vec<&str> = points
        .map(|point| match point["ip"].text() {
            "" => point["hostname"].text(),
            ip => ip,
        })
        .collect();
    let class = match spec["ingressClassName"].text() {
        "" => NONE,
        class => class,
    };
    let ports = if spec["tls"].items().is_empty() { "80" } else { "80, 443" };
    vec![
        name(ingress),
        class.into(),
        hosts.into(),
        addresses.join(",").into(),
        ports.into(),
        age(ingress, now),
    ]
}
