//! Defaults of Services.

use serde_json::{Value, json};

use crate::zero::{Zero, default_to};

/// Fills in a Service.
pub fn set_defaults(service: &mut Value) {
    let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    default_to(spec, "sessionAffinity", || "None".into());
    match spec["sessionAffinity"].text() {
        "None" => {
            if let Some(map) = spec.as_object_mut() {
                map.remove("sessionAffinityConfig");
            }
        }
        "ClientIP" => {
            default_to(spec, "sessionAffinityConfig", || json!({}));
            default_to(&mut spec["sessionAffinityConfig"], "clientIP", || json!({}));
            default_to(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", || {
                10_800.into()
            });
        }
        _ => {}
    }
    default_to(spec, "type", || "ClusterIP".into());
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default_to(port, "protocol", || "TCP".into());
        let same = port.get("port").cloned().unwrap_or_default();
        if port.get("targetPort").is_none_or(|target| *target == json!(0)) {
            port["targetPort"] = same;
        } else {
            default_to(port, "targetPort", || same);
        }
    }
    let kind = spec["type"].text().to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !spec["externalIPs"].items().is_empty());
    if external {
        default_to(spec, "externalTrafficPolicy", || "Cluster".into());
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default_to(spec, "internalTrafficPolicy", || "Cluster".into());
    }
    if kind != "LoadBalancer" {
        return;
    }
    default_to(spec, "allocateLoadBalancerNodePorts", || true.into());
    let ingress = service.pointer_mut("/status/loadBalancer/ingress");
    for address in ingress.and_then(Value::as_array_mut).into_iter().flatten() {
        if !address["ip"].text().is_empty() {
            default_to(address, "ipMode", || "VIP".into());
        }
    }
}
