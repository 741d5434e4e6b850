//! Kinds whose columns come straight from their fields.

use apimachinery::meta;
use jiff::Timestamp;
use serde_json::Value;

use super::cells::{NONE, access_modes, age, containers, labels, name, selector};
use super::{Column, Printer};
use crate::validation::quantity;
use crate::zero::Zero;

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);
/// What stands for a field that may be absent.
const UNSET: &str = "<unset>";
/// Metrics of an autoscaler that are told one by one.
const METRICS: usize = 2;

/// The printer of a kind of this file.
pub fn printer(kind: (&str, &str)) -> Option<Printer> {
    let (columns, cells) = cluster(kind).or_else(|| storage(kind)).or_else(|| admission(kind))?;
    Some(Printer { columns, cells })
}

type Cells = (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>);

fn cluster(kind: (&str, &str)) -> Option<Cells> {
    Some(match kind {
        ("", "ServiceAccount") => (&[NAME, ("Secrets", "string", 0), AGE], |o, now| {
            vec![name(o), o["secrets"].items().len().into(), age(o, now)]
        }),
        ("", "PodTemplate") => (
            &[
                NAME,
                ("Containers", "string", 0),
                ("Images", "string", 0),
                ("Pod Labels", "string", 0),
            ],
            |o, _| {
                let [names, images] = containers(&o["template"]);
                vec![name(o), names, images, labels(&o["template"]["metadata"]["labels"])]
            },
        ),
        ("", "ResourceQuota") => {
            (&[NAME, ("Request", "string", 0), ("Limit", "string", 0), AGE], |o, now| {
                vec![name(o), quota(o, false), quota(o, true), age(o, now)]
            })
        }
        ("", "ComponentStatus") => (
            &[NAME, ("Status", "string", 0), ("Message", "string", 0), ("Error", "string", 0)],
            component,
        ),
        ("apiregistration.k8s.io", "APIService") => {
            (&[NAME, ("Service", "string", 0), ("Available", "string", 0), AGE], api_service)
        }
        ("apps", "ControllerRevision") => {
            (&[NAME, ("Controller", "string", 0), ("Revision", "string", 0), AGE], |o, now| {
                vec![name(o), controller(o), o["revision"].int().into(), age(o, now)]
            })
        }
        ("autoscaling", "HorizontalPodAutoscaler") => (
            &[
                NAME,
                ("Reference", "string", 0),
                ("Targets", "string", 0),
                ("MinPods", "string", 0),
                ("MaxPods", "string", 0),
                ("Replicas", "string", 0),
                AGE,
            ],
            autoscaler,
        ),
        ("metrics.k8s.io", "NodeMetrics") => (USED, |o, _| used(o, &[&o["usage"]])),
        ("metrics.k8s.io", "PodMetrics") => (USED, |o, _| {
            let containers: Vec<&Value> =
                o["containers"].items().iter().map(|container| &container["usage"]).collect();
            used(o, &containers)
        }),
        ("policy", "PodDisruptionBudget") => (
            &[
                NAME,
                ("Min Available", "string", 0),
                ("Max Unavailable", "string", 0),
                ("Allowed Disruptions", "integer", 0),
                AGE,
            ],
            |o, now| {
                let bound = |field: &str| number_or_text(&o["spec"][field]).unwrap_or("N/A".into());
                let allowed = o["status"]["disruptionsAllowed"].int();
                let (least, most) = (bound("minAvailable"), bound("maxUnavailable"));
                vec![name(o), least, most, allowed.into(), age(o, now)]
            },
        ),
        ("networking.k8s.io", "NetworkPolicy") => {
            (&[NAME, ("Pod-Selector", "string", 0), AGE], |o, now| {
                vec![name(o), selector(&o["spec"]["podSelector"]), age(o, now)]
            })
        }
        ("networking.k8s.io", "IngressClass") => {
            (&[NAME, ("Controller", "string", 0), ("Parameters", "string", 0), AGE], |o, now| {
                let of = &o["spec"]["parameters"];
                let group = match of["apiGroup"].text() {
                    "" => String::new(),
                    group => format!(".{group}"),
                };
                let parameters = match of["name"].text() {
                    "" => NONE.to_owned(),
                    given => format!("{}{group}/{given}", of["kind"].text()),
                };
                vec![name(o), text(&o["spec"]["controller"]), parameters.into(), age(o, now)]
            })
        }
        ("networking.k8s.io", "ServiceCIDR") => (&[NAME, ("CIDRs", "string", 0), AGE], |o, now| {
            let all: Vec<&str> = o["spec"]["cidrs"].texts().collect();
            vec![name(o), all.join(",").into(), age(o, now)]
        }),
        ("networking.k8s.io", "IPAddress") => {
            (&[NAME, ("ParentRef", "string", 0), AGE], |o, now| {
                vec![name(o), parent(&o["spec"]["parentRef"]), age(o, now)]
            })
        }
        ("node.k8s.io", "RuntimeClass") => (&[NAME, ("Handler", "string", 0), AGE], |o, now| {
            vec![name(o), text(&o["handler"]), age(o, now)]
        }),
        ("coordination.k8s.io", "LeaseCandidate") => (
            &[
                NAME,
                ("LeaseName", "string", 0),
                ("BinaryVersion", "string", 0),
                ("EmulationVersion", "string", 0),
                AGE,
            ],
            |o, now| {
                let of = |field: &str| text(&o["spec"][field]);
                let versions = [of("binaryVersion"), of("emulationVersion")];
                let [binary, emulation] = versions;
                vec![name(o), of("leaseName"), binary, emulation, age(o, now)]
            },
        ),
        ("certificates.k8s.io", "CertificateSigningRequest") => (
            &[
                NAME,
                AGE,
                ("SignerName", "string", 0),
                ("Requestor", "string", 0),
                ("RequestedDuration", "string", 0),
                ("Condition", "string", 0),
            ],
            signing_request,
        ),
        ("certificates.k8s.io", "ClusterTrustBundle") => {
            (&[NAME, ("SignerName", "string", 0)], |o, _| {
                vec![name(o), or(&o["spec"]["signerName"], NONE)]
            })
        }
        _ => return None,
    })
}

fn storage(kind: (&str, &str)) -> Option<Cells> {
    Some(match kind {
        ("", "PersistentVolume") => (
            &[
                NAME,
                ("Capacity", "string", 0),
                ("Access Modes", "string", 0),
                ("Reclaim Policy", "string", 0),
                ("Status", "string", 0),
                ("Claim", "string", 0),
                ("StorageClass", "string", 0),
                ("VolumeAttributesClass", "string", 0),
                ("Reason", "string", 0),
                AGE,
                ("VolumeMode", "string", 1),
            ],
            volume,
        ),
        ("storage.k8s.io", "StorageClass") => (
            &[
                NAME,
                ("Provisioner", "string", 0),
                ("ReclaimPolicy", "string", 0),
                ("VolumeBindingMode", "string", 0),
                ("AllowVolumeExpansion", "string", 0),
                AGE,
            ],
            |o, now| {
                vec![
                    default_name(o, "storageclass.kubernetes.io/is-default-class"),
                    text(&o["provisioner"]),
                    or(&o["reclaimPolicy"], "Delete"),
                    or(&o["volumeBindingMode"], "Immediate"),
                    o["allowVolumeExpansion"].flag().into(),
                    age(o, now),
                ]
            },
        ),
        ("storage.k8s.io", "VolumeAttributesClass") => {
            (&[NAME, ("DriverName", "string", 0), AGE], |o, now| {
                let name =
                    default_name(o, "storage.kubernetes.io/is-default-volume-attributes-class");
                vec![name, text(&o["driverName"]), age(o, now)]
            })
        }
        ("storage.k8s.io", "VolumeAttachment") => (
            &[
                NAME,
                ("Attacher", "string", 0),
                ("PV", "string", 0),
                ("Node", "string", 0),
                ("Attached", "boolean", 0),
                AGE,
            ],
            |o, now| {
                let spec = &o["spec"];
                vec![
                    name(o),
                    text(&spec["attacher"]),
                    text(&spec["source"]["persistentVolumeName"]),
                    text(&spec["nodeName"]),
                    o["status"]["attached"].flag().into(),
                    age(o, now),
                ]
            },
        ),
        ("storage.k8s.io", "CSINode") => (&[NAME, ("Drivers", "integer", 0), AGE], |o, now| {
            vec![name(o), o["spec"]["drivers"].items().len().into(), age(o, now)]
        }),
        ("storage.k8s.io", "CSIDriver") => (
            &[
                NAME,
                ("AttachRequired", "boolean", 0),
                ("PodInfoOnMount", "boolean", 0),
                ("StorageCapacity", "boolean", 0),
                ("TokenRequests", "string", 0),
                ("RequiresRepublish", "boolean", 0),
                ("Modes", "string", 0),
                AGE,
            ],
            driver,
        ),
        ("storage.k8s.io", "CSIStorageCapacity") => {
            (&[NAME, ("StorageClassName", "string", 0), ("Capacity", "string", 0)], |o, _| {
                vec![name(o), text(&o["storageClassName"]), text(&o["capacity"])]
            })
        }
        ("resource.k8s.io", "ResourceClaim") => (&[NAME, ("State", "string", 0), AGE], |o, now| {
            vec![name(o), claim_state(o), age(o, now)]
        }),
        ("resource.k8s.io", "ResourceClaimTemplate" | "DeviceClass") => {
            (&[NAME, AGE], |o, now| vec![name(o), age(o, now)])
        }
        ("resource.k8s.io", "ResourceSlice") => (
            &[NAME, ("Node", "string", 0), ("Driver", "string", 0), ("Pool", "string", 0), AGE],
            |o, now| {
                let spec = &o["spec"];
                let [node, driver] = [text(&spec["nodeName"]), text(&spec["driver"])];
                vec![name(o), node, driver, text(&spec["pool"]["name"]), age(o, now)]
            },
        ),
        _ => return None,
    })
}

fn admission(kind: (&str, &str)) -> Option<Cells> {
    const BINDING: &[Column] = &[NAME, ("PolicyName", "string", 0), ("ParamRef", "string", 0), AGE];
    Some(match kind {
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => (&[NAME, ("Webhooks", "integer", 0), AGE], |o, now| {
            vec![name(o), o["webhooks"].items().len().into(), age(o, now)]
        }),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            (&[NAME, ("Validations", "integer", 0), ("ParamKind", "string", 0), AGE], |o, now| {
                policy(o, "validations", now)
            })
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => {
            (&[NAME, ("Mutations", "integer", 0), ("ParamKind", "string", 0), AGE], |o, now| {
                policy(o, "mutations", now)
            })
        }
        (
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding",
        ) => (BINDING, policy_binding),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => (
            &[
                NAME,
                ("PriorityLevel", "string", 0),
                ("MatchingPrecedence", "string", 0),
                ("DistinguisherMethod", "string", 0),
                AGE,
                ("MissingPL", "string", 0),
            ],
            flow_schema,
        ),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => (
            &[
                NAME,
                ("Type", "string", 0),
                ("NominalConcurrencyShares", "integer", 0),
                ("Queues", "integer", 0),
                ("HandSize", "integer", 0),
                ("QueueLengthLimit", "integer", 0),
                AGE,
            ],
            priority_level,
        ),
        _ => return None,
    })
}

fn text(value: &Value) -> Value {
    value.text().into()
}

fn or(value: &Value, otherwise: &str) -> Value {
    let text = value.text();
    if text.is_empty() { otherwise.into() } else { text.into() }
}

/// An int-or-string, as text.
fn number_or_text(value: &Value) -> Option<Value> {
    match value {
        Value::Number(number) => Some(number.to_string().into()),
        Value::String(text) => Some(text.as_str().into()),
        _ => None,
    }
}

fn default_name(object: &Value, annotation: &str) -> Value {
    let marked = |key: &str| object["metadata"]["annotations"][key] == "true";
    let older = annotation.replace("storageclass.", "storageclass.beta.");
    let mark = if marked(annotation) || marked(&older) { " (default)" } else { "" };
    format!("{}{mark}", meta::name(object)).into()
}

/// Used and hard of the limits, or of everything else.
fn quota(quota: &Value, limits: bool) -> Value {
    let status = &quota["status"];
    let mut parts: Vec<String> = status["hard"]
        .entries()
        .filter(|(resource, _)| resource.starts_with("limits.") == limits)
        .map(|(resource, hard)| {
            let used = or(&status["used"][resource.as_str()], "0");
            format!("{resource}: {}/{}", used.text(), hard.text())
        })
        .collect();
    parts.sort();
    parts.join(", ").into()
}

fn component(object: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = object["conditions"].items().iter().find(|c| c["type"] == "Healthy");
    let status = match healthy {
        Some(condition) if condition["status"] == "True" => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    let of = |field: &str| healthy.map_or_else(|| "".into(), |condition| text(&condition[field]));
    vec![name(object), status.into(), of("message"), of("error")]
}

fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = &object["spec"]["service"];
    let served_by = if service.is_object() {
        format!("{}/{}", service["namespace"].text(), service["name"].text())
    } else {
        "Local".to_owned()
    };
    let conditions = object["status"]["conditions"].items();
    let available = match conditions.iter().find(|c| c["type"] == "Available") {
        None => "Unknown".to_owned(),
        Some(condition) if condition["status"] == "True" => "True".to_owned(),
        Some(condition) => {
            format!("{} ({})", condition["status"].text(), condition["reason"].text())
        }
    };
    vec![name(object), served_by.into(), available.into(), age(object, now)]
}

fn controller(object: &Value) -> Value {
    let owners = object["metadata"]["ownerReferences"].items();
    let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) else {
        return NONE.into();
    };
    let group = match owner["apiVersion"].text().split_once('/') {
        Some((group, _)) => format!(".{group}"),
        None => String::new(),
    };
    let kind = owner["kind"].text().to_lowercase();
    format!("{kind}{group}/{}", owner["name"].text()).into()
}

/// What is used, as metrics-server prints it.
const USED: &[Column] =
    &[NAME, ("cpu", "string", 0), ("memory", "string", 0), ("Window", "string", 0)];

fn used(object: &Value, usages: &[&Value]) -> Vec<Value> {
    let sum = |resource: &str| -> Value {
        let amounts = usages.iter().filter_map(|usage| quantity(&usage[resource]));
        amounts
            .reduce(|sum, amount| sum.plus(&amount))
            .map_or(Value::Null, |s| s.to_string().into())
    };
    vec![name(object), sum("cpu"), sum("memory"), text(&object["window"])]
}

fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    let current = status["currentMetrics"].items();
    let metrics = spec["metrics"].items();
    let mut told: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, current.get(index).unwrap_or(&Value::Null)))
        .collect();
    let more = told.len().saturating_sub(METRICS);
    told.truncate(METRICS);
    let mut targets = if told.is_empty() { NONE.to_owned() } else { told.join(", ") };
    if more > 0 {
        targets.push_str(&format!(" + {more} more..."));
    }
    vec![
        name(object),
        format!("{}/{}", target["kind"].text(), target["name"].text()).into(),
        targets.into(),
        number_or_text(&spec["minReplicas"]).unwrap_or(UNSET.into()),
        spec["maxReplicas"].int().into(),
        status["currentReplicas"].int().into(),
        age(object, now),
    ]
}

/// What a metric is and should be.
fn metric(spec: &Value, status: &Value) -> String {
    let kind = spec["type"].text();
    let field = match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (&spec[field]["target"], &status[field]["current"]);
    let shown = |value: &Value, mark: &str| match number_or_text(value) {
        Some(text) => format!("{}{mark}", text.text()),
        None => "<unknown>".to_owned(),
    };
    let average = !target["averageValue"].text().is_empty();
    match kind {
        "Resource" | "ContainerResource" => {
            let resource = spec[field]["name"].text();
            if average {
                let current = shown(&current["averageValue"], "");
                return format!("{resource}: {current}/{}", target["averageValue"].text());
            }
            let wanted = match target["averageUtilization"].as_i64() {
                Some(percent) => format!("{percent}%"),
                None => "<auto>".to_owned(),
            };
            format!("{resource}: {}/{wanted}", shown(&current["averageUtilization"], "%"))
        }
        "Pods" => {
            format!("{}/{}", shown(&current["averageValue"], ""), target["averageValue"].text())
        }
        _ if average => {
            let current = shown(&current["averageValue"], "");
            format!("{current}/{} (avg)", target["averageValue"].text())
        }
        _ => format!("{}/{}", shown(&current["value"], ""), target["value"].text()),
    }
}

fn parent(parent: &Value) -> Value {
    let mut path = parent["resource"].text().to_lowercase();
    if path.is_empty() {
        return NONE.into();
    }
    if !parent["group"].text().is_empty() {
        path.push_str(&format!(".{}", parent["group"].text()));
    }
    for part in ["namespace", "name"] {
        if !parent[part].text().is_empty() {
            path.push_str(&format!("/{}", parent[part].text()));
        }
    }
    path.into()
}

fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let has = |kind: &str| status["conditions"].items().iter().any(|c| c["type"] == kind);
    let mut condition = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !status["certificate"].text().is_empty() {
        condition.push_str(",Issued");
    }
    let duration = match spec["expirationSeconds"].as_u64() {
        Some(seconds) => apimachinery::time::human(std::time::Duration::from_secs(seconds)).into(),
        None => NONE.into(),
    };
    vec![
        name(object),
        age(object, now),
        or(&spec["signerName"], NONE),
        text(&spec["username"]),
        duration,
        condition.into(),
    ]
}

fn volume(volume: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let claim = &spec["claimRef"];
    let claim = match claim["name"].text() {
        "" => String::new(),
        name => format!("{}/{name}", claim["namespace"].text()),
    };
    let terminating = volume["metadata"]["deletionTimestamp"].is_set();
    vec![
        name(volume),
        text(&spec["capacity"]["storage"]),
        access_modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]),
        if terminating { "Terminating".into() } else { text(&status["phase"]) },
        claim.into(),
        text(&spec["storageClassName"]),
        or(&spec["volumeAttributesClassName"], UNSET),
        text(&status["reason"]),
        age(volume, now),
        or(&spec["volumeMode"], UNSET),
    ]
}

fn driver(driver: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let audiences: Vec<&str> =
        spec["tokenRequests"].items().iter().map(|request| request["audience"].text()).collect();
    let modes: Vec<&str> = spec["volumeLifecycleModes"].texts().collect();
    let joined = |all: Vec<&str>, none: &str| -> Value {
        if all.is_empty() { none.into() } else { all.join(",").into() }
    };
    vec![
        name(driver),
        (spec["attachRequired"] != false).into(),
        spec["podInfoOnMount"].flag().into(),
        spec["storageCapacity"].flag().into(),
        joined(audiences, UNSET),
        spec["requiresRepublish"].flag().into(),
        joined(modes, NONE),
        age(driver, now),
    ]
}

fn claim_state(claim: &Value) -> Value {
    let deleted = claim["metadata"]["deletionTimestamp"].is_set();
    let allocated = claim["status"]["allocation"].is_object();
    let reserved = allocated && !claim["status"]["reservedFor"].items().is_empty();
    let states = [
        (deleted, "deleted"),
        (!deleted && !allocated, "pending"),
        (allocated, "allocated"),
        (reserved, "reserved"),
    ];
    let states: Vec<&str> = states.iter().filter(|(holds, _)| *holds).map(|(_, s)| *s).collect();
    states.join(",").into()
}

fn policy(policy: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = &policy["spec"]["paramKind"];
    let kind = match kind["kind"].text() {
        "" => UNSET.to_owned(),
        name => format!("{}/{name}", kind["apiVersion"].text()),
    };
    vec![name(policy), policy["spec"][rules].items().len().into(), kind.into(), age(policy, now)]
}

fn policy_binding(binding: &Value, now: Timestamp) -> Vec<Value> {
    let of = &binding["spec"]["paramRef"];
    let parameters = match (of["namespace"].text(), of["name"].text()) {
        ("", "") if of["selector"].is_object() => "<selector>".to_owned(),
        (_, "") => UNSET.to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(binding), text(&binding["spec"]["policyName"]), parameters.into(), age(binding, now)]
}

fn flow_schema(schema: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &schema["spec"];
    let dangling = schema["status"]["conditions"].items().iter().find(|c| c["type"] == "Dangling");
    vec![
        name(schema),
        text(&spec["priorityLevelConfiguration"]["name"]),
        spec["matchingPrecedence"].int().into(),
        or(&spec["distinguisherMethod"]["type"], NONE),
        age(schema, now),
        dangling.map_or_else(|| "?".into(), |condition| text(&condition["status"])),
    ]
}

fn priority_level(level: &Value, now: Timestamp) -> Vec<Value> {
    let limited = &level["spec"]["limited"];
    let queuing = &limited["limitResponse"]["queuing"];
    let cell = |value: &Value| if value.is_number() { value.clone() } else { NONE.into() };
    vec![
        name(level),
        text(&level["spec"]["type"]),
        cell(&limited["nominalConcurrencyShares"]),
        cell(&queuing["queues"]),
        cell(&queuing["handSize"]),
        cell(&queuing["queueLengthLimit"]),
        age(level, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The cells between name and age, as text.
    fn cells(kind: (&str, &str), object: Value) -> String {
        let printer = printer(kind).unwrap();
        let cells = (printer.cells)(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), printer.columns.len());
        let shown: Vec<String> = cells
            .iter()
            .zip(printer.columns)
            .filter(|(_, (name, ..))| !matches!(*name, "Name" | "Age"))
            .map(|(cell, _)| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
            .collect();
        shown.join(" | ")
    }

    #[test]
    fn what_containers_use_is_added_up() {
        let pod = json!({"metadata": {"name": "p"}, "window": "10s", "containers": [
            {"usage": {"cpu": "100m", "memory": "1Mi"}}, {"usage": {"cpu": "1", "memory": "1Mi"}}]});
        let (_, cells) = cluster(("metrics.k8s.io", "PodMetrics")).unwrap();
        assert_eq!(cells(&pod, Timestamp::UNIX_EPOCH), ["p", "1100m", "2Mi", "10s"]);
    }

    #[test]
    fn cells_are_those_of_upstream() {
        let scale = |metrics: Value, current: Value| json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 4, "minReplicas": 1, "metrics": metrics}, "status": {"currentReplicas": 2, "currentMetrics": current}});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "1Gi"}}});
        let outside = json!({"type": "External", "external": {"target": {"averageValue": "3"}}});
        for (kind, object, want) in [
            (
                ("autoscaling", "HorizontalPodAutoscaler"),
                scale(json!([cpu]), json!([])),
                "Deployment/web | cpu: <unknown>/50% | 1 | 4 | 2",
            ),
            (
                ("autoscaling", "HorizontalPodAutoscaler"),
                scale(
                    json!([cpu, memory, outside]),
                    json!([{"resource": {"current": {"averageUtilization": 7}}}, {"resource": {"current": {"averageValue": "5Mi"}}}]),
                ),
                "Deployment/web | cpu: 7%/50%, memory: 5Mi/1Gi + 1 more... | 1 | 4 | 2",
            ),
            (
                ("policy", "PodDisruptionBudget"),
                json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}),
                "50% | N/A | 1",
            ),
            (
                ("", "ResourceQuota"),
                json!({"status": {"hard": {"pods": "2", "limits.cpu": "1", "configmaps": "9"}, "used": {"pods": "1"}}}),
                "configmaps: 0/9, pods: 1/2 | limits.cpu: 0/1",
            ),
            (
                ("storage.k8s.io", "StorageClass"),
                json!({"provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"}),
                "p | Delete | WaitForFirstConsumer | false",
            ),
            (
                ("", "PersistentVolume"),
                json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "s", "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}}),
                "1Gi | RWO | Delete | Bound | n/c | s | <unset> |  | Filesystem",
            ),
            (
                ("certificates.k8s.io", "CertificateSigningRequest"),
                json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 86400}, "status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}),
                "s | u | 24h | Approved,Issued",
            ),
            (
                ("apiregistration.k8s.io", "APIService"),
                json!({"spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}}),
                "n/s | False (MissingEndpoints)",
            ),
            (
                ("apps", "ControllerRevision"),
                json!({"metadata": {"ownerReferences": [{"controller": true, "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d"}]}, "revision": 2}),
                "daemonset.apps/d | 2",
            ),
            (
                ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
                json!({"spec": {"policyName": "p", "paramRef": {"name": "a", "namespace": "n"}}}),
                "p | n/a",
            ),
        ] {
            assert_eq!(cells(kind, object), want, "{kind:?}");
        }
        let class = json!({"metadata": {"name": "s", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        assert_eq!(
            default_name(&class, "storageclass.kubernetes.io/is-default-class"),
            "s (default)"
        );
    }
}
