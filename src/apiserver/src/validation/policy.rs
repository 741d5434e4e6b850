//! Rules for what steers workloads: disruption budgets, autoscalers, limit ranges, runtime classes,
//! leases and events.
//!
//! Source: `pkg/apis/{policy,autoscaling,core,node,coordination}/validation`.

use std::collections::BTreeSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::container::{self, quantity};
use super::core::immutable;
use super::{affinity, label_selector, metadata, mistakes, non_negative, one_of};
use crate::zero::Zero;

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
const NOTE_MAX: usize = 1024;
const EVENT_TEXT_MAX: usize = 128;

/// The digits of a percentage; `None` for other text.
fn percent(text: &str) -> Option<&str> {
    let number = text.strip_suffix('%').filter(|number| !number.is_empty())?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(number)
}

/// A whole number that is not negative, or a percentage.
pub fn amount_or_percent(value: &Value, path: &Path, errors: &mut ErrorList) {
    match value.as_str() {
        None => non_negative(errors, path, value),
        Some(text) if percent(text).is_none() => {
            errors.push(Error::invalid(path, text, PERCENT));
        }
        Some(_) => {}
    }
}

/// A percentage of at most 100.
pub fn at_most_all(value: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(number) = value.as_str().and_then(percent) else { return };
    if number.parse().map_or(true, |number: u64| number > 100) {
        errors.push(Error::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// A disruption budget.
pub fn budget(budget: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&budget["spec"], Path::new("spec"));
    if spec["minAvailable"].is_set() && spec["maxUnavailable"].is_set() {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(Error::invalid(&path, spec.clone(), detail));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if spec[key].is_set() {
            amount_or_percent(&spec[key], &path.child(key), errors);
            at_most_all(&spec[key], &path.child(key), errors);
        }
    }
    label_selector(errors, &path.child("selector"), &spec["selector"]);
    let policy = &spec["unhealthyPodEvictionPolicy"];
    if policy.is_set() {
        let at = path.child("unhealthyPodEvictionPolicy");
        one_of(errors, &at, policy.text(), &["AlwaysAllow", "IfHealthyBudget"]);
    }
}

/// A horizontal pod autoscaler, as version 2 has it.
pub fn autoscaler(autoscaler: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&autoscaler["spec"], Path::new("spec"));
    let (min, max) = (spec["minReplicas"].int(), spec["maxReplicas"].int());
    if spec["minReplicas"].is_set() && min < 1 {
        let detail = "must be greater than or equal to 1";
        errors.push(Error::invalid(&path.child("minReplicas"), min, detail));
    }
    let at = path.child("maxReplicas");
    if max < 1 {
        errors.push(Error::invalid(&at, max, "must be greater than 0"));
    }
    if spec["minReplicas"].is_set() && max < min {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(Error::invalid(&at, max, detail));
    }
    let (target, at) = (&spec["scaleTargetRef"], path.child("scaleTargetRef"));
    for key in ["kind", "name"] {
        let text = target[key].text();
        if text.is_empty() {
            errors.push(Error::required(&at.child(key), ""));
        } else {
            mistakes(errors, &at.child(key), text, names::path_segment(text));
        }
    }
    reference_version(target, &at, errors);
    for (index, metric) in spec["metrics"].items().iter().enumerate() {
        metric_spec(metric, &path.child("metrics").index(index), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_set() {
            scaling_rules(rules, &path.child("behavior").child(direction), errors);
        }
    }
}

/// The version of what is referred to: `v1` or `group/version`.
fn reference_version(reference: &Value, path: &Path, errors: &mut ErrorList) {
    let version = reference["apiVersion"].text();
    if version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.push(Error::invalid(&path.child("apiVersion"), version, detail));
    }
}

/// Types of metrics and where each has its source.
const METRICS: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric_spec(metric: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = metric["type"].text();
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), "must specify a metric source type"));
    }
    let Some((_, expected)) = METRICS.iter().find(|(name, _)| *name == kind) else {
        one_of(errors, &path.child("type"), kind, &METRICS.map(|(name, _)| name));
        return;
    };
    if metric[*expected].is_null() {
        let detail = "must populate information for the given metric source";
        errors.push(Error::required(&path.child(expected), detail));
    }
    for (_, source) in METRICS.iter().filter(|(_, s)| s != expected && metric[*s].is_set()) {
        let detail = "must populate the given metric source only";
        errors.push(Error::forbidden(&path.child(source), detail));
    }
    let (source, at) = (&metric[*expected], path.child(expected));
    if source.is_null() {
        return;
    }
    if expected.ends_with("esource") {
        resource_metric(source, &at, errors);
    } else {
        metric_identifier(&source["metric"], &at.child("metric"), errors);
    }
    if *expected == "object" {
        let (described, at) = (&source["describedObject"], at.child("describedObject"));
        for key in ["kind", "name"] {
            let text = described[key].text();
            if text.is_empty() {
                errors.push(Error::required(&at.child(key), ""));
            } else {
                mistakes(errors, &at.child(key), text, names::path_segment(text));
            }
        }
        reference_version(described, &at, errors);
    }
    metric_target(&source["target"], &at.child("target"), errors);
    let (target, at) = (&source["target"], at.child("target"));
    if *expected == "pods" && target["averageValue"].is_null() {
        let detail = "must specify a positive target averageValue";
        errors.push(Error::required(&at.child("averageValue"), detail));
    }
    if matches!(*expected, "object" | "external") {
        let (value, average) = (target["value"].is_set(), target["averageValue"].is_set());
        if !value && !average {
            let detail = "must set either a target value for metric or a per-pod target";
            errors.push(Error::required(&at.child("averageValue"), detail));
        } else if *expected == "external" && value && average {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.push(Error::forbidden(&at.child("value"), detail));
        }
    }
}

fn metric_identifier(metric: &Value, path: &Path, errors: &mut ErrorList) {
    let (name, at) = (metric["name"].text(), path.child("name"));
    if name.is_empty() {
        errors.push(Error::required(&at, "must specify a metric name"));
    } else {
        mistakes(errors, &at, name, names::path_segment(name));
    }
    label_selector(errors, &path.child("selector"), &metric["selector"]);
}

fn resource_metric(source: &Value, path: &Path, errors: &mut ErrorList) {
    if source["name"].text().is_empty() {
        errors.push(Error::required(&path.child("name"), "must specify a resource name"));
    }
    if path.as_str().ends_with(".containerResource") && source["container"].text().is_empty() {
        errors.push(Error::required(&path.child("container"), "must specify a container"));
    }
    let (target, at) = (&source["target"], path.child("target"));
    match (target["averageUtilization"].is_set(), target["averageValue"].is_set()) {
        (false, false) => {
            let detail = "must set either a target raw value or a target utilization";
            errors.push(Error::required(&at.child("averageUtilization"), detail));
        }
        (true, true) => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.push(Error::forbidden(&at.child("averageValue"), detail));
        }
        _ => {}
    }
}

fn metric_target(target: &Value, path: &Path, errors: &mut ErrorList) {
    let (kind, at) = (target["type"].text(), path.child("type"));
    if kind.is_empty() {
        errors.push(Error::required(&at, "must specify a metric target type"));
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.push(Error::invalid(&at, kind, detail));
    }
    for key in ["value", "averageValue"] {
        if quantity(&target[key]).is_some_and(|amount| amount.signum() <= 0) {
            errors.push(Error::invalid(&path.child(key), target[key].clone(), "must be positive"));
        }
    }
    let utilization = &target["averageUtilization"];
    if utilization.is_set() && utilization.int() < 1 {
        let at = path.child("averageUtilization");
        errors.push(Error::invalid(&at, utilization.int(), "must be greater than 0"));
    }
}

fn scaling_rules(rules: &Value, path: &Path, errors: &mut ErrorList) {
    const WINDOW_MAX: i64 = 3600;
    const PERIOD_MAX: i64 = 1800;
    let (window, at) =
        (&rules["stabilizationWindowSeconds"], path.child("stabilizationWindowSeconds"));
    if window.int() < 0 {
        let detail = "must be greater than or equal to zero";
        errors.push(Error::invalid(&at, window.int(), detail));
    }
    if window.int() > WINDOW_MAX {
        let detail = format!("must be less than or equal to {WINDOW_MAX}");
        errors.push(Error::invalid(&at, window.int(), detail));
    }
    if let Some(tolerance) = quantity(&rules["tolerance"])
        && tolerance.signum() < 0
    {
        let detail = "must be greater than or equal to 0";
        errors.push(Error::invalid(&path.child("tolerance"), tolerance.to_string(), detail));
    }
    if rules["selectPolicy"].is_set() {
        let at = path.child("selectPolicy");
        one_of(errors, &at, rules["selectPolicy"].text(), &["Disabled", "Max", "Min"]);
    }
    if rules["policies"].items().is_empty() {
        errors.push(Error::required(&path.child("policies"), "must specify at least one Policy"));
    }
    for (index, policy) in rules["policies"].items().iter().enumerate() {
        let at = path.child("policies").index(index);
        one_of(errors, &at.child("type"), policy["type"].text(), &["Percent", "Pods"]);
        let (value, period) = (policy["value"].int(), policy["periodSeconds"].int());
        if value <= 0 {
            errors.push(Error::invalid(&at.child("value"), value, "must be greater than zero"));
        }
        let at = at.child("periodSeconds");
        if period <= 0 {
            errors.push(Error::invalid(&at, period, "must be greater than zero"));
        } else if period > PERIOD_MAX {
            let detail = format!("must be less than or equal to {PERIOD_MAX}");
            errors.push(Error::invalid(&at, period, detail));
        }
    }
}

/// A limit range.
pub fn limit_range(range: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("limits");
    let mut seen = BTreeSet::new();
    for (index, limit) in range["spec"]["limits"].items().iter().enumerate() {
        let (kind, at) = (limit["type"].text(), path.index(index));
        mistakes(errors, &at.child("type"), kind, names::qualified_name(kind));
        if !seen.insert(kind) {
            errors.push(Error::duplicate(&at.child("type"), kind));
        }
        if kind == "Pod" {
            for key in ["default", "defaultRequest"] {
                if limit[key].entries().next().is_some() {
                    let detail = "may not be specified when `type` is 'Pod'";
                    errors.push(Error::forbidden(&at.child(key), detail));
                }
            }
        }
        let storage = |key: &str| limit[key]["storage"].is_set();
        if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let detail =
                "either minimum or maximum storage value is required, but neither was provided";
            errors.push(Error::required(&at.child("limits"), detail));
        }
        limit_order(limit, &at, errors);
    }
}

/// Pairs that must be in order: the smaller, the greater, which of them is at fault, and the words.
const ORDER: [(&str, &str, &str, &str); 6] = [
    ("min", "max", "min", "min value {} is greater than max value {}"),
    (
        "min",
        "defaultRequest",
        "defaultRequest",
        "min value {} is greater than default request value {}",
    ),
    (
        "defaultRequest",
        "max",
        "defaultRequest",
        "default request value {} is greater than max value {}",
    ),
    (
        "defaultRequest",
        "default",
        "defaultRequest",
        "default request value {} is greater than default limit value {}",
    ),
    ("min", "default", "default", "min value {} is greater than default value {}"),
    ("default", "max", "default", "default value {} is greater than max value {}"),
];

fn limit_order(limit: &Value, path: &Path, errors: &mut ErrorList) {
    let keys = ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"];
    let names: BTreeSet<&String> =
        keys.iter().flat_map(|key| limit[*key].entries().map(|(name, _)| name)).collect();
    for name in names {
        for (small, great, fault, words) in ORDER {
            let (Some(a), Some(b)) = (quantity(&limit[small][name]), quantity(&limit[great][name]))
            else {
                continue;
            };
            if a > b {
                let detail =
                    words.replacen("{}", &a.to_string(), 1).replacen("{}", &b.to_string(), 1);
                let value = if fault == small { a.to_string() } else { b.to_string() };
                errors.push(Error::invalid(&path.child(fault).key(name), value, detail));
            }
        }
        let ratio = &limit["maxLimitRequestRatio"][name];
        if let Some(amount) = quantity(ratio).filter(|amount| amount.milli_value() < 1000) {
            let detail = format!("ratio {amount} is less than 1");
            let at = path.child("maxLimitRequestRatio").key(name);
            errors.push(Error::invalid(&at, amount.to_string(), detail));
        }
    }
}

/// A runtime class, new (`old` is absent) or changed.
pub fn runtime_class(class: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (handler, at) = (class["handler"].text(), Path::new("handler"));
    mistakes(errors, &at, handler, names::dns_label(handler));
    if let Some(old) = old {
        immutable(&at, &class["handler"], &old["handler"], errors);
    }
    if class["overhead"].is_set() {
        let limits = serde_json::json!({"limits": class["overhead"]["podFixed"]});
        container::resources(&limits, &Path::new("overhead"), errors);
    }
    let (scheduling, at) = (&class["scheduling"], Path::new("scheduling"));
    metadata::labels(&scheduling["nodeSelector"], &at.child("nodeSelector"), errors);
    let (tolerations, at) = (scheduling["tolerations"].items(), at.child("tolerations"));
    affinity::tolerations(tolerations, &at, errors);
    let mut seen = BTreeSet::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let same = ["key", "operator", "value", "effect"].map(|key| toleration[key].text());
        if !seen.insert(same) {
            errors.push(Error::duplicate(&at.index(index), toleration.clone()));
        }
    }
}

/// A lease.
pub fn lease(lease: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&lease["spec"], Path::new("spec"));
    let duration = &spec["leaseDurationSeconds"];
    if duration.is_set() && duration.int() <= 0 {
        let at = path.child("leaseDurationSeconds");
        errors.push(Error::invalid(&at, duration.int(), "must be greater than 0"));
    }
    non_negative(errors, &path.child("leaseTransitions"), &spec["leaseTransitions"]);
    if !spec["preferredHolder"].text().is_empty() && spec["strategy"].text().is_empty() {
        let detail = "may only be specified when `strategy` is defined";
        errors.push(Error::forbidden(&path.child("preferredHolder"), detail));
    }
}

/// An event in its stored form; `strict` are the rules of `events.k8s.io/v1`.
pub fn event(event: &Value, strict: bool, errors: &mut ErrorList) {
    let (own, involved) = (meta::namespace(event), event["involvedObject"]["namespace"].text());
    let about_cluster = involved.is_empty() && matches!(own, "" | "default");
    // What the cluster has is told in the namespace default, or, as of old, in that of the system.
    if !about_cluster && own != involved && !(involved.is_empty() && strict && own == "kube-system")
    {
        let at = Path::new("involvedObject").child("namespace");
        errors.push(Error::invalid(&at, involved, "does not match event.namespace"));
    }
    if !strict {
        return;
    }
    if event["eventTime"].is_null() {
        errors.push(Error::required(&Path::new("eventTime"), ""));
    }
    let at = Path::new("reportingController");
    let controller = event["reportingComponent"].text();
    if controller.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        mistakes(errors, &at, controller, names::qualified_name(controller));
    }
    for key in ["reportingInstance", "action", "reason"] {
        let (text, at) = (event[key].text(), Path::new(key));
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if text.len() > EVENT_TEXT_MAX {
            let detail = format!("can have at most {EVENT_TEXT_MAX} characters");
            errors.push(Error::invalid(&at, "", detail));
        }
    }
    let kind = event["type"].text();
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(Error::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
    }
    if event["message"].text().len() > NOTE_MAX {
        let detail = format!("can have at most {NOTE_MAX} characters");
        errors.push(Error::invalid(&Path::new("message"), "", detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn budgets_are_checked() {
        for (spec, want) in [
            (json!({"minAvailable": 1}), String::new()),
            (json!({"minAvailable": "50%"}), String::new()),
            (json!({"minAvailable": -1}), "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0".into()),
            (json!({"maxUnavailable": "half"}), format!("spec.maxUnavailable: Invalid value: \"half\": {PERCENT}")),
            (json!({"maxUnavailable": "101%"}), "spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%".into()),
            (json!({"unhealthyPodEvictionPolicy": "X"}), "spec.unhealthyPodEvictionPolicy: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"".into()),
        ] {
            assert_eq!(told(|e| budget(&json!({"spec": spec}), e)).join("; "), want);
        }
    }

    #[test]
    fn autoscalers_are_checked() {
        let spec = |extra: Value| {
            let mut spec =
                json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"spec": spec})
        };
        let metric = |metric: Value| spec(json!({"metrics": [metric]}));
        for (object, want) in [
            (spec(json!({})), ""),
            (
                spec(json!({"minReplicas": 0})),
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
            ),
            (
                spec(json!({"minReplicas": 5})),
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
            ),
            (
                spec(json!({"scaleTargetRef": {"kind": "D"}})),
                "spec.scaleTargetRef.name: Required value",
            ),
            (
                metric(
                    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}),
                ),
                "",
            ),
            (
                metric(json!({"type": "Pods"})),
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ),
            (
                metric(
                    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}),
                ),
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ),
            (
                metric(
                    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}),
                ),
                "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
            ),
            (
                spec(
                    json!({"behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 0, "periodSeconds": 15}]}}}),
                ),
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
            ),
        ] {
            assert_eq!(told(|e| autoscaler(&object, e)).join("; "), want);
        }
    }

    #[test]
    fn limits_are_in_order() {
        let range = |limit: Value| json!({"spec": {"limits": [limit]}});
        for (object, want) in [
            (range(json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}})), ""),
            (
                range(json!({"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}})),
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
            ),
            (
                range(json!({"type": "Pod", "default": {"cpu": "1"}})),
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                range(json!({"type": "PersistentVolumeClaim"})),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
        ] {
            assert_eq!(told(|e| limit_range(&object, e)).join("; "), want);
        }
    }

    #[test]
    fn leases_classes_and_events_are_checked() {
        for (spec, want) in [
            (json!({"leaseDurationSeconds": 15, "leaseTransitions": 0}), ""),
            (
                json!({"leaseDurationSeconds": 0}),
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
            ),
            (
                json!({"leaseTransitions": -1}),
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"preferredHolder": "x"}),
                "spec.preferredHolder: Forbidden: may only be specified when `strategy` is defined",
            ),
        ] {
            assert_eq!(told(|e| lease(&json!({"spec": spec}), e)).join("; "), want);
        }
        let class = |handler: &str| json!({"handler": handler});
        assert_eq!(
            told(|e| runtime_class(&class("b"), Some(&class("a")), e)),
            ["handler: Invalid value: \"b\": field is immutable"]
        );
        let about = |own: &str, other: &str| json!({"metadata": {"namespace": own}, "involvedObject": {"namespace": other}});
        assert_eq!(told(|e| event(&about("default", ""), false, e)), Vec::<String>::new());
        assert_eq!(
            told(|e| event(&about("a", "b"), false, e)),
            ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
        );
    }
}
