//! LimitRanger: a namespace's defaults and bounds for what pods and claims ask for.
//!
//! Source: `plugin/pkg/admission/limitranger`.

use std::collections::BTreeMap;

use apimachinery::Status;
use apimachinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::zero::{Zero, default_to};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";
const CLAIM: &str = "PersistentVolumeClaim";

fn limits(registry: &Registry, namespace: &str) -> Vec<Value> {
    registry
        .list("", "limitranges", Some(namespace))
        .iter()
        .flat_map(|range| range.value()["spec"]["limits"].items().to_vec())
        .collect()
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Fills in default requests and limits.
pub fn mutate(registry: &Registry, ctx: &RequestContext, pod: &mut Value) {
    let limits = limits(registry, &ctx.namespace);
    let defaults: Vec<&Value> =
        limits.iter().filter(|limit| limit["type"] == "Container").collect();
    if defaults.is_empty() || !pod["spec"].is_object() {
        return;
    }
    let mut told = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            for (target, source) in [("requests", "defaultRequest"), ("limits", "default")] {
                let set = fill(container, target, defaults.iter().map(|limit| &limit[source]));
                if !set.is_empty() {
                    let verb = if target == "requests" { "request" } else { "limit" };
                    let name = container["name"].text();
                    told.push(format!("{} {verb} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() && pod["metadata"].is_object() {
        let text = format!("LimitRanger plugin set: {}", told.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

fn fill<'a>(
    container: &mut Value,
    target: &str,
    sources: impl Iterator<Item = &'a Value>,
) -> Vec<String> {
    let mut set = Vec::new();
    for (name, value) in sources.flat_map(Zero::entries) {
        default_to(container, "resources", || json!({}));
        default_to(&mut container["resources"], target, || json!({}));
        if container["resources"][target].get(name).is_none() {
            container["resources"][target][name] = value.clone();
            set.push(name.clone());
        }
    }
    set
}

/// Refuses what is out of bounds.
pub fn validate(registry: &Registry, ctx: &RequestContext, object: &Value) -> Result<(), Status> {
    let limits = limits(registry, &ctx.namespace);
    let mut wrong = Vec::new();
    for limit in &limits {
        match (limit["type"].text(), ctx.plural.as_str()) {
            ("Container", "pods") => {
                for list in ["containers", "initContainers"] {
                    for container in object["spec"][list].items() {
                        check(limit, "Container", &container["resources"], &mut wrong);
                    }
                }
            }
            ("Pod", "pods") => check(limit, "Pod", &sum(object), &mut wrong),
            ("PersistentVolumeClaim", "persistentvolumeclaims") => {
                check_claim(limit, &object["spec"]["resources"]["requests"], &mut wrong);
            }
            _ => {}
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].text();
    let why = if wrong.len() == 1 { wrong.remove(0) } else { format!("[{}]", wrong.join(", ")) };
    Err(Status::forbidden("", &ctx.plural, name, &why))
}

/// Claims only request; both bounds are for that.
fn check_claim(limit: &Value, requests: &Value, wrong: &mut Vec<String>) {
    for (name, bound) in limit["min"].entries() {
        check(&json!({"min": {name: bound}}), CLAIM, &json!({"requests": requests}), wrong);
    }
    for (name, bound) in limit["max"].entries() {
        let Some(maximum) = quantity(bound) else { continue };
        match quantity(&requests[name]) {
            None => wrong.push(format!(
                "maximum {name} usage per {CLAIM} is {maximum}.  No request is specified"
            )),
            Some(request) if request > maximum => wrong.push(format!(
                "maximum {name} usage per {CLAIM} is {maximum}, but request is {request}"
            )),
            Some(_) => {}
        }
    }
}

/// What a pod needs at once, as a `resources`: all containers together, or one that runs before them if
/// it needs more.
fn sum(pod: &Value) -> Value {
    let mut total: BTreeMap<(&str, &String), Quantity> = BTreeMap::new();
    let containers = pod["spec"]["containers"].items().iter();
    let init = || pod["spec"]["initContainers"].items().iter();
    let beside = init().filter(|container| container["restartPolicy"] == "Always");
    for container in containers.chain(beside) {
        for kind in ["requests", "limits"] {
            for (name, value) in container["resources"][kind].entries() {
                let Some(value) = quantity(value) else { continue };
                let sum =
                    total.get(&(kind, name)).map_or_else(|| value.clone(), |t| t.plus(&value));
                total.insert((kind, name), sum);
            }
        }
    }
    for container in init().filter(|container| container["restartPolicy"] != "Always") {
        for kind in ["requests", "limits"] {
            for (name, value) in container["resources"][kind].entries() {
                let Some(value) = quantity(value) else { continue };
                if total.get(&(kind, name)).is_none_or(|sum| *sum < value) {
                    total.insert((kind, name), value);
                }
            }
        }
    }
    let mut resources = json!({});
    for ((kind, name), value) in total {
        resources[kind][name] = value.to_string().into();
    }
    resources
}

fn check(limit: &Value, kind: &str, resources: &Value, wrong: &mut Vec<String>) {
    for (name, bound) in limit["min"].entries() {
        let Some(minimum) = quantity(bound) else { continue };
        match quantity(&resources["requests"][name]) {
            None => wrong.push(format!(
                "minimum {name} usage per {kind} is {minimum}.  No request is specified"
            )),
            Some(request) if request < minimum => wrong.push(format!(
                "minimum {name} usage per {kind} is {minimum}, but request is {request}"
            )),
            Some(_) => {
                if let Some(limit) = quantity(&resources["limits"][name]).filter(|l| *l < minimum) {
                    wrong.push(format!(
                        "minimum {name} usage per {kind} is {minimum}, but limit is {limit}"
                    ));
                }
            }
        }
    }
    for (name, bound) in limit["max"].entries() {
        let Some(maximum) = quantity(bound) else { continue };
        match quantity(&resources["limits"][name]) {
            None => wrong.push(format!(
                "maximum {name} usage per {kind} is {maximum}.  No limit is specified"
            )),
            Some(limit) if limit > maximum => wrong.push(format!(
                "maximum {name} usage per {kind} is {maximum}, but limit is {limit}"
            )),
            Some(_) => {
                if let Some(asked) = quantity(&resources["requests"][name]).filter(|r| *r > maximum)
                {
                    wrong.push(format!(
                        "maximum {name} usage per {kind} is {maximum}, but request is {asked}"
                    ));
                }
            }
        }
    }
    for (name, bound) in limit["maxLimitRequestRatio"].entries() {
        let Some(ratio) = quantity(bound) else { continue };
        let (request, limit) =
            (quantity(&resources["requests"][name]), quantity(&resources["limits"][name]));
        let positive = |quantity: &Quantity| quantity.to_f64() > 0.0;
        let mut lacks = |what: &str| {
            wrong.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but no {what} is specified or {what} is 0"
            ));
        };
        let Some(request) = request.filter(positive) else {
            lacks("request");
            continue;
        };
        let Some(limit) = limit.filter(positive) else {
            lacks("limit");
            continue;
        };
        let actual = limit.to_f64() / request.to_f64();
        if actual > ratio.to_f64() {
            wrong.push(format!(
                "{name} max limit to request ratio per {kind} is {ratio}, but provided ratio is {actual:.6}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kept() {
        let limit = json!({"min": {"cpu": "100m"}, "max": {"cpu": "1"}});
        let told = |resources: Value| {
            let mut wrong = Vec::new();
            check(&limit, "Container", &resources, &mut wrong);
            wrong
        };
        assert!(told(json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}})).is_empty());
        assert_eq!(
            told(json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "2"}})),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum cpu usage per Container is 1, but limit is 2",
            ]
        );
        assert_eq!(told(json!({})).len(), 2);
    }

    #[test]
    fn claims_and_ratios_have_bounds_too() {
        let limit = json!({"max": {"storage": "2Gi"}, "min": {"storage": "1Gi"}});
        let claim = |requests: Value| {
            let mut wrong = Vec::new();
            check_claim(&limit, &requests, &mut wrong);
            wrong.join("; ")
        };
        let cases = [
            (json!({"storage": "1Gi"}), ""),
            (
                json!({"storage": "3Gi"}),
                "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi",
            ),
            (
                json!({"storage": "1"}),
                "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1",
            ),
        ];
        for (requests, want) in cases {
            assert_eq!(claim(requests.clone()), want, "{requests}");
        }
        let mut wrong = Vec::new();
        let ratio = json!({"maxLimitRequestRatio": {"cpu": "2"}});
        let resources = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "300m"}});
        check(&ratio, "Pod", &resources, &mut wrong);
        check(&ratio, "Pod", &json!({"requests": {"cpu": "1"}}), &mut wrong);
        assert_eq!(
            wrong,
            [
                "cpu max limit to request ratio per Pod is 2, but provided ratio is 3.000000",
                "cpu max limit to request ratio per Pod is 2, but no limit is specified or limit is 0",
            ]
        );
        let pod = json!({"spec": {
            "initContainers": [{"resources": {"requests": {"cpu": "3"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(sum(&pod), json!({"requests": {"cpu": "3"}}));
    }

    #[test]
    fn defaults_fill_what_is_absent() {
        let mut container = json!({"resources": {"limits": {"cpu": "2"}}});
        let default = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(fill(&mut container, "limits", std::iter::once(&default)), ["memory"]);
        assert_eq!(container["resources"]["limits"], json!({"cpu": "2", "memory": "1Gi"}));
    }
}
