//! The strategy of Services: what an update leaves out is kept, and what its new type does not need is
//! dropped.
//!
//! Source: `patchAllocatedValues` and `dropTypeDependentFields` of `pkg/registry/core/service`.

pub mod addresses;
pub mod allocation;
mod families;
pub mod range;
pub mod repair;
#[cfg(test)]
mod server_tests;

use serde_json::{Value, json};

use crate::zero::Zero;

/// The group of ServiceCIDRs and IPAddresses.
const NETWORKING: &str = "networking.k8s.io";

/// Completes an updated Service from the stored one.
pub fn prepare_for_update(service: &mut Value, old: &Value) {
    if !service["spec"].is_object() {
        return;
    }
    let kind = service["spec"]["type"].text().to_owned();
    let before = old["spec"]["type"].text().to_owned();
    if kind == "ExternalName" {
        drop_addresses(&mut service["spec"], &old["spec"]);
    } else if before != "ExternalName" {
        keep_addresses(&mut service["spec"], &old["spec"]);
    }
    let spec = &mut service["spec"];
    let needs_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    let health = old["spec"]["healthCheckNodePort"].clone();
    if kind == "LoadBalancer"
        && spec["externalTrafficPolicy"] == "Local"
        && spec["healthCheckNodePort"].int() == 0
        && health.int() != 0
    {
        spec["healthCheckNodePort"] = health;
    }
    if !needs_ports(&kind) && needs_ports(&before) {
        let olds = old["spec"]["ports"].items();
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if olds.iter().any(|o| o["nodePort"] == port["nodePort"]) {
                remove(port, "nodePort");
            }
        }
    }
    if !needs_ports(&kind)
        && spec["externalIPs"].items().is_empty()
        && spec["externalTrafficPolicy"] == old["spec"]["externalTrafficPolicy"]
    {
        remove(spec, "externalTrafficPolicy");
    }
    if kind != "LoadBalancer" && before == "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass", "healthCheckNodePort"] {
            if spec[key] == old["spec"][key] {
                remove(spec, key);
            }
        }
        service["status"]["loadBalancer"] = json!({});
    }
    if let Some(map) = service["spec"].as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

fn drop_addresses(spec: &mut Value, old: &Value) {
    let keys = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"];
    for key in keys {
        if spec[key] == old[key] {
            remove(spec, key);
        }
    }
}

fn keep_addresses(spec: &mut Value, old: &Value) {
    let single = spec["clusterIP"].text().to_owned();
    let many = !spec["clusterIPs"].items().is_empty();
    match (single.is_empty(), many) {
        (true, false) => {
            spec["clusterIP"] = old["clusterIP"].clone();
            spec["clusterIPs"] = old["clusterIPs"].clone();
        }
        (false, false) => spec["clusterIPs"] = json!([single]),
        (true, true) => spec["clusterIP"] = spec["clusterIPs"][0].clone(),
        (false, true) => {}
    }
    for key in ["ipFamilies", "ipFamilyPolicy"] {
        if spec[key].is_null() {
            spec[key] = old[key].clone();
        }
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_keep_what_they_do_not_name() {
        let old = json!({"spec": {
            "type": "ClusterIP", "clusterIP": "10.43.0.5", "clusterIPs": ["10.43.0.5"]}});
        let mut new = json!({"spec": {"type": "NodePort"}});
        prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.5");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.5"]));
        let old = json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30000}]}});
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["ports"], json!([{"port": 1}]));
    }
}
