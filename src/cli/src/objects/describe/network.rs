//! Endpoints, slices of them, ingress classes, ranges of services' addresses.

use serde_json::Value;

use super::config::head;
use super::{Page, items, or, shown, str, time};

fn addresses(list: &Value) -> String {
    let all: Vec<&str> = items(list).map(|address| str(&address["ip"])).collect();
    if all.is_empty() { "<none>".into() } else { all.join(",") }
}

fn ports(page: &mut Page, level: usize, list: &Value, none: &str) {
    page.line(level, "Ports:");
    page.line(level + 1, "Name\tPort\tProtocol");
    page.line(level + 1, "----\t----\t--------");
    for port in items(list) {
        let name = or(&port["name"], "<unset>");
        page.line(
            level + 1,
            format!("{name}\t{}\t{}", or(&port["port"], none), str(&port["protocol"])),
        );
    }
}

/// Writes endpoints.
pub fn endpoints(page: &mut Page, object: &Value) {
    head(page, object);
    page.line(0, "Subsets:");
    for subset in items(&object["subsets"]) {
        page.field(1, "Addresses", addresses(&subset["addresses"]));
        page.field(1, "NotReadyAddresses", addresses(&subset["notReadyAddresses"]));
        if items(&subset["ports"]).next().is_some() {
            ports(page, 1, &subset["ports"], "0");
        }
        page.line(0, "");
    }
}

/// Writes a slice of endpoints.
pub fn slice(page: &mut Page, object: &Value) {
    head(page, object);
    page.field(0, "AddressType", str(&object["addressType"]));
    if items(&object["ports"]).next().is_none() {
        page.line(0, "Ports: <unset>");
    } else {
        ports(page, 0, &object["ports"], "<all>");
    }
    if items(&object["endpoints"]).next().is_none() {
        page.line(0, "Endpoints:  <none>");
        return;
    }
    page.line(0, "Endpoints:");
    for endpoint in items(&object["endpoints"]) {
        let all: Vec<&str> = items(&endpoint["addresses"]).map(str).collect();
        page.field(1, "- Addresses", all.join(", "));
        page.line(2, "Conditions:");
        page.field(3, "Ready", or(&endpoint["conditions"]["ready"], "<unset>"));
        page.field(2, "Hostname", or(&endpoint["hostname"], "<unset>"));
        let target = &endpoint["targetRef"];
        if target.is_object() {
            page.field(
                2,
                "TargetRef",
                format!("{}/{}", str(&target["kind"]), str(&target["name"])),
            );
        }
        page.field(2, "NodeName", or(&endpoint["nodeName"], "<unset>"));
        page.field(2, "Zone", or(&endpoint["zone"], "<unset>"));
    }
}

/// Writes an ingress class.
pub fn ingress_class(page: &mut Page, object: &Value) {
    head(page, object);
    page.field(0, "Controller", str(&object["spec"]["controller"]));
    let parameters = &object["spec"]["parameters"];
    if parameters.is_null() {
        return;
    }
    page.line(0, "Parameters:");
    if !parameters["apiGroup"].is_null() {
        page.field(1, "APIGroup", str(&parameters["apiGroup"]));
    }
    page.field(1, "Kind", str(&parameters["kind"]));
    page.field(1, "Name", str(&parameters["name"]));
}

/// Writes a range of services' addresses.
pub fn service_cidr(page: &mut Page, object: &Value) {
    head(page, object);
    let ranges: Vec<&str> = items(&object["spec"]["cidrs"]).map(str).collect();
    page.field(0, "CIDRs", ranges.join(", "));
    let conditions: Vec<&Value> = items(&object["status"]["conditions"]).collect();
    if conditions.is_empty() {
        return;
    }
    page.line(0, "Status:");
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
    page.line(1, "----\t------\t------------------\t------\t-------");
    for condition in conditions {
        let text = |field: &str| shown(&condition[field]);
        page.line(
            1,
            format!(
                "{}\t{}\t{}\t{}\t{}",
                text("type"),
                text("status"),
                time(&condition["lastTransitionTime"]),
                text("reason"),
                text("message")
            ),
        );
    }
}

/// Writes an address of a service.
pub fn ip_address(page: &mut Page, object: &Value) {
    head(page, object);
    let parent = &object["spec"]["parentRef"];
    page.line(0, "Parent Reference:");
    for (title, field) in
        [("Group", "group"), ("Resource", "resource"), ("Namespace", "namespace"), ("Name", "name")]
    {
        page.field(1, title, str(&parent[field]));
    }
}
