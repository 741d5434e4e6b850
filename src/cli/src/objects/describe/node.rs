//! Nodes.

use std::collections::BTreeMap;

use apimachinery::quantity::{Format, Quantity};
use serde_json::Value;

use super::{Page, age, items, map, or, str, time};
use crate::objects::error::Error;
use crate::objects::selection::Query;
use crate::objects::session::Session;

/// Writes a node with the pods on it.
pub async fn describe(page: &mut Page, session: &Session, node: &Value) -> Result<(), Error> {
    let (meta, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    let name = str(&meta["name"]);
    page.field(0, "Name", name);
    let roles: Vec<&str> = map(&meta["labels"])
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            None if key == "kubernetes.io/role" => Some(str(value)),
            _ => None,
        })
        .collect();
    page.field(0, "Roles", if roles.is_empty() { "<none>".into() } else { roles.join(",") });
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.field(0, "CreationTimestamp", time(&meta["creationTimestamp"]));
    let mut taints: Vec<String> = items(&spec["taints"])
        .map(|t| match str(&t["value"]) {
            "" => format!("{}:{}", str(&t["key"]), str(&t["effect"])),
            value => format!("{}={value}:{}", str(&t["key"]), str(&t["effect"])),
        })
        .collect();
    taints.sort();
    page.multiline(0, "Taints", &taints);
    page.field(0, "Unschedulable", if spec["unschedulable"] == true { "true" } else { "false" });
    let lease = session
        .api
        .get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"))
        .await;
    if let Ok(lease) = lease {
        let lease = &lease["spec"];
        page.line(0, "Lease:");
        page.field(1, "HolderIdentity", or(&lease["holderIdentity"], "<unset>"));
        page.field(1, "AcquireTime", time(&lease["acquireTime"]));
        page.field(1, "RenewTime", time(&lease["renewTime"]));
    } else {
        page.field(0, "Lease", "Failed to get lease");
    }
    conditions(page, status);
    page.line(0, "Addresses:");
    items(&status["addresses"]).for_each(|a| page.field(1, str(&a["type"]), str(&a["address"])));
    for (title, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        if map(&status[field]).next().is_some() {
            page.line(0, format!("{title}:"));
            map(&status[field]).for_each(|(name, amount)| page.field(1, name, str(amount)));
        }
    }
    page.line(0, "System Info:");
    for (title, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
        ("Kube-Proxy Version", "kubeProxyVersion"),
    ] {
        page.field(1, title, str(&status["nodeInfo"][field]));
    }
    if !str(&spec["podCIDR"]).is_empty() {
        page.field(0, "PodCIDR", str(&spec["podCIDR"]));
    }
    let ranges: Vec<&str> = items(&spec["podCIDRs"]).map(str).collect();
    if !ranges.is_empty() {
        page.field(0, "PodCIDRs", ranges.join(","));
    }
    if !str(&spec["providerID"]).is_empty() {
        page.field(0, "ProviderID", str(&spec["providerID"]));
    }
    pods(page, session, node).await
}

fn conditions(page: &mut Page, status: &Value) {
    if items(&status["conditions"]).next().is_none() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for c in items(&status["conditions"]) {
        page.line(
            1,
            format!(
                "{} \t{} \t{} \t{} \t{} \t{}",
                str(&c["type"]),
                str(&c["status"]),
                time(&c["lastHeartbeatTime"]),
                time(&c["lastTransitionTime"]),
                str(&c["reason"]),
                str(&c["message"])
            ),
        );
    }
}

type Amounts = BTreeMap<String, Quantity>;

/// What a pod asks for: the sum of its containers', or of one of those that start it, and its overhead.
fn amounts(pod: &Value, field: &str) -> Amounts {
    let read = |resources: &Value| -> Amounts {
        let pairs = map(&resources[field])
            .filter_map(|(name, amount)| Some((name.clone(), str(amount).parse().ok()?)));
        pairs.collect()
    };
    let add = |sum: &mut Amounts, more: &Amounts| {
        for (name, amount) in more {
            let entry =
                sum.entry(name.clone()).or_insert_with(|| Quantity::new(0, amount.format()));
            *entry = entry.plus(amount);
        }
    };
    let spec = &pod["spec"];
    let (mut sum, mut side, mut most) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in items(&spec["containers"]) {
        add(&mut sum, &read(&container["resources"]));
    }
    for container in items(&spec["initContainers"]) {
        let mut own = read(&container["resources"]);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut side, &own);
            own = side.clone();
        } else {
            add(&mut own, &side);
        }
        for (name, amount) in own {
            let known = most.entry(name).or_insert_with(|| amount.clone());
            if *known < amount {
                *known = amount;
            }
        }
    }
    for (name, amount) in most {
        let known = sum.entry(name).or_insert_with(|| amount.clone());
        if *known < amount {
            *known = amount;
        }
    }
    // A pod's own figures count before those of its containers.
    for (name, amount) in read(&spec["resources"]) {
        sum.insert(name, amount);
    }
    let overhead =
        read(&serde_json::json!({"requests": spec["overhead"], "limits": spec["overhead"]}));
    if field == "requests" || !sum.is_empty() {
        for (name, amount) in overhead {
            if let Some(known) = sum.get_mut(&name) {
                *known = known.plus(&amount);
            } else if field == "requests" {
                sum.insert(name, amount);
            }
        }
    }
    sum
}

async fn pods(page: &mut Page, session: &Session, node: &Value) -> Result<(), Error> {
    let name = str(&node["metadata"]["name"]);
    let query = Query::default().with(
        "fieldSelector",
        &format!("spec.nodeName={name},status.phase!=Failed,status.phase!=Succeeded"),
    );
    let list = match session.api.get(&format!("/api/v1/pods{}", query.text())).await {
        Ok(list) => list,
        Err(Error::Refused { refusal, .. }) if refusal.code == 403 => {
            page.field(0, "Pods", "not authorized");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let allocatable = &node["status"]
        [if node["status"]["allocatable"].is_object() { "allocatable" } else { "capacity" }];
    let whole =
        |resource: &str| -> Quantity { str(&allocatable[resource]).parse().unwrap_or_default() };
    let share = |amount: &Quantity, resource: &str| {
        let (part, all) = if resource == "cpu" {
            (amount.milli_value(), whole(resource).milli_value())
        } else {
            (amount.value(), whole(resource).value())
        };
        let percent = if all == 0 { 0 } else { (part as f64 / all as f64 * 100.0) as i64 };
        format!("{} ({percent}%)", amount.canonical())
    };
    let none = || Quantity::new(0, Format::DecimalSi);
    let pods: Vec<&Value> = items(&list["items"]).collect();
    page.line(0, format!("Non-terminated Pods:\t({} in total)", pods.len()));
    page.line(
        1,
        "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge",
    );
    page.line(
        1,
        "---------\t----\t\t------------\t----------\t---------------\t-------------\t---",
    );
    let mut sums = [Amounts::new(), Amounts::new()];
    for pod in pods {
        let own = ["requests", "limits"].map(|field| amounts(pod, field));
        let cell = |which: usize, resource: &str| {
            share(own[which].get(resource).unwrap_or(&none()), resource)
        };
        page.line(
            1,
            format!(
                "{}\t{}\t\t{}\t{}\t{}\t{}\t{}",
                str(&pod["metadata"]["namespace"]),
                str(&pod["metadata"]["name"]),
                cell(0, "cpu"),
                cell(1, "cpu"),
                cell(0, "memory"),
                cell(1, "memory"),
                age(&pod["metadata"]["creationTimestamp"])
            ),
        );
        for (sum, own) in sums.iter_mut().zip(own) {
            for (resource, amount) in own {
                let known = sum.entry(resource).or_insert_with(none);
                *known = if known.is_zero() { amount } else { known.plus(&amount) };
            }
        }
    }
    page.line(0, "Allocated resources:");
    page.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    let amount =
        |which: usize, resource: &str| sums[which].get(resource).cloned().unwrap_or_else(none);
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let cells = [0, 1].map(|which| share(&amount(which, resource), resource));
        page.line(1, format!("{resource}\t{}\t{}", cells[0], cells[1]));
    }
    for (resource, _) in map(allocatable) {
        let plain = !matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage" | "pods");
        if plain {
            let cells = [0, 1].map(|which| {
                let amount = amount(which, resource);
                if resource.starts_with("hugepages-") {
                    share(&amount, resource)
                } else {
                    amount.canonical()
                }
            });
            page.line(1, format!("{resource}\t{}\t{}", cells[0], cells[1]));
        }
    }
    Ok(())
}
