//! Services and ingresses.

use serde_json::Value;

use super::config::head;
use super::{Page, items, map, or, selector, shown, str};
use crate::objects::error::Error;
use crate::objects::selection::Query;
use crate::objects::session::Session;

/// Addresses told for one port.
const MOST: usize = 3;

/// Writes a service with where it leads.
pub async fn service(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let spec = &object["spec"];
    head(page, object);
    page.field(0, "Selector", selector(&spec["selector"], "<none>"));
    page.field(0, "Type", str(&spec["type"]));
    let joined = |value: &Value| items(value).map(str).collect::<Vec<_>>().join(",");
    for (title, field, text) in [
        ("IP Family Policy", "ipFamilyPolicy", shown(&spec["ipFamilyPolicy"])),
        ("IP Families", "ipFamilies", joined(&spec["ipFamilies"])),
    ] {
        if !spec[field].is_null() {
            page.field(0, title, text);
        }
    }
    page.field(0, "IP", str(&spec["clusterIP"]));
    match joined(&spec["clusterIPs"]) {
        all if all.is_empty() => page.field(0, "IPs", "<none>"),
        all => page.field(0, "IPs", all),
    }
    if items(&spec["externalIPs"]).next().is_some() {
        page.field(0, "External IPs", joined(&spec["externalIPs"]));
    }
    for (title, field) in
        [("Desired LoadBalancer IP", "loadBalancerIP"), ("External Name", "externalName")]
    {
        if !str(&spec[field]).is_empty() {
            page.field(0, title, str(&spec[field]));
        }
    }
    let balanced = items(&object["status"]["loadBalancer"]["ingress"]);
    let balanced: Vec<String> = balanced
        .map(|i| {
            let address = [&i["ip"], &i["hostname"]]
                .into_iter()
                .map(str)
                .find(|s| !s.is_empty())
                .unwrap_or_default();
            match str(&i["ipMode"]) {
                "" => address.to_owned(),
                mode => format!("{address} ({mode})"),
            }
        })
        .collect();
    if !balanced.is_empty() {
        page.field(0, "LoadBalancer Ingress", balanced.join(", "));
    }
    let slices = slices(session, object).await?;
    for port in items(&spec["ports"]) {
        let name = or(&port["name"], "<unset>");
        let protocol = or(&port["protocol"], "TCP");
        page.line(0, format!("Port:\t{name}\t{}/{protocol}", shown(&port["port"])));
        page.line(0, format!("TargetPort:\t{}/{protocol}", or(&port["targetPort"], "0")));
        if port["nodePort"].as_i64().is_some_and(|n| n > 0) {
            page.line(0, format!("NodePort:\t{name}\t{}/{protocol}", shown(&port["nodePort"])));
        }
        page.field(0, "Endpoints", endpoints(&slices, str(&port["name"])));
    }
    page.field(0, "Session Affinity", str(&spec["sessionAffinity"]));
    for (title, field) in [
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
        ("HealthCheck NodePort", "healthCheckNodePort"),
    ] {
        if !shown(&spec[field]).is_empty() {
            page.field(0, title, shown(&spec[field]));
        }
    }
    if items(&spec["loadBalancerSourceRanges"]).next().is_some() {
        page.field(0, "LoadBalancer Source Ranges", joined(&spec["loadBalancerSourceRanges"]));
    }
    Ok(())
}

async fn slices(session: &Session, service: &Value) -> Result<Vec<Value>, Error> {
    let meta = &service["metadata"];
    let query = Query::default()
        .with("labelSelector", &format!("kubernetes.io/service-name={}", str(&meta["name"])));
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices{}",
        str(&meta["namespace"]),
        query.text()
    );
    let list = session.api.get(&path).await?;
    Ok(items(&list["items"]).cloned().collect())
}

fn endpoints(slices: &[Value], port: &str) -> String {
    if slices.is_empty() {
        return "<none>".into();
    }
    let mut all: Vec<String> = Vec::new();
    for slice in slices {
        for of in items(&slice["ports"]).filter(|p| str(&p["name"]) == port) {
            for endpoint in items(&slice["endpoints"]) {
                let ready = endpoint["conditions"]["ready"] != false;
                for address in items(&endpoint["addresses"]).map(str).filter(|_| ready) {
                    let shown = shown(&of["port"]);
                    all.push(if address.contains(':') {
                        format!("[{address}]:{shown}")
                    } else {
                        format!("{address}:{shown}")
                    });
                }
            }
        }
    }
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    let text = all.join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

/// Writes an ingress with where its rules lead.
pub async fn ingress(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (meta, spec) = (&object["metadata"], &object["spec"]);
    page.field(0, "Name", str(&meta["name"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.field(0, "Namespace", str(&meta["namespace"]));
    let addresses: Vec<String> = items(&object["status"]["loadBalancer"]["ingress"])
        .map(|i| or(&i["ip"], str(&i["hostname"])))
        .collect();
    page.field(0, "Address", addresses.join(","));
    page.field(0, "Ingress Class", or(&spec["ingressClassName"], "<none>"));
    let backend = &spec["defaultBackend"];
    if backend.is_null() {
        page.field(0, "Default backend", "<default>");
    } else {
        page.field(0, "Default backend", leads(session, meta, backend).await?);
    }
    if items(&spec["tls"]).next().is_some() {
        page.line(0, "TLS:");
        for tls in items(&spec["tls"]) {
            let hosts: Vec<&str> = items(&tls["hosts"]).map(str).collect();
            match str(&tls["secretName"]) {
                "" => page.line(1, format!("SNI routes {}", hosts.join(","))),
                secret => page.line(1, format!("{secret} terminates {}", hosts.join(","))),
            }
        }
    }
    page.line(0, "Rules:");
    page.line(1, "Host\tPath\tBackends");
    page.line(1, "----\t----\t--------");
    let mut count = 0;
    for rule in items(&spec["rules"]).filter(|rule| rule["http"].is_object()) {
        count += 1;
        page.line(1, format!("{}\t", or(&rule["host"], "*")));
        for path in items(&rule["http"]["paths"]) {
            let to = leads(session, meta, &path["backend"]).await?;
            page.line(1, format!("  \t{} \t{to}", str(&path["path"])));
        }
    }
    if count == 0 {
        let to = if backend.is_null() {
            "<default>".to_owned()
        } else {
            leads(session, meta, backend).await?
        };
        page.line(1, format!("*\t*\t{to}"));
    }
    let annotations: Vec<String> = map(&meta["annotations"])
        .filter(|(key, _)| *key != "kubectl.kubernetes.io/last-applied-configuration")
        .map(|(key, value)| format!("{key}: {}", str(value)))
        .collect();
    page.multiline(0, "Annotations", &annotations);
    Ok(())
}

/// A backend and its endpoints.
async fn leads(session: &Session, meta: &Value, backend: &Value) -> Result<String, Error> {
    let service = &backend["service"];
    if service.is_null() {
        let resource = &backend["resource"];
        return Ok(format!(
            "APIGroup: {}, Kind: {}, Name: {}",
            or(&resource["apiGroup"], "<none>"),
            str(&resource["kind"]),
            str(&resource["name"])
        ));
    }
    let port = &service["port"];
    let text = format!("{}:{}", str(&service["name"]), or(&port["name"], &shown(&port["number"])));
    let path = format!(
        "/api/v1/namespaces/{}/services/{}",
        str(&meta["namespace"]),
        str(&service["name"])
    );
    match session.api.get(&path).await {
        Ok(found) => {
            let named = items(&found["spec"]["ports"]).find(|p| {
                !port["name"].is_null() && p["name"] == port["name"] || p["port"] == port["number"]
            });
            let name = named.map(|p| str(&p["name"])).unwrap_or_default();
            Ok(format!("{text} ({})", endpoints(&slices(session, &found).await?, name)))
        }
        Err(error) => Ok(format!("{text} (<error: {error}>)")),
    }
}
