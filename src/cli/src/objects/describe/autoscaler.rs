//! Horizontal pod autoscalers.

use serde_json::Value;

use super::config::head;
use super::{Page, items, or, shown, str, time};

const UNKNOWN: &str = "<unknown>";

/// Writes an autoscaler: what it looks at, how it may act, what it found.
pub fn autoscaler(page: &mut Page, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    head(page, object);
    page.field(0, "CreationTimestamp", time(&object["metadata"]["creationTimestamp"]));
    page.field(0, "Reference", format!("{}/{}", str(&target["kind"]), str(&target["name"])));
    page.field(0, "Metrics", "( current / target )");
    for (index, metric) in items(&spec["metrics"]).enumerate() {
        let current = &status["currentMetrics"][index];
        page.line(1, self::metric(metric, current));
    }
    page.field(0, "Min replicas", or(&spec["minReplicas"], "<unset>"));
    page.field(0, "Max replicas", shown(&spec["maxReplicas"]));
    if spec["behavior"].is_object() {
        page.line(0, "Behavior:");
        behavior(page, "Scale Up", &spec["behavior"]["scaleUp"]);
        behavior(page, "Scale Down", &spec["behavior"]["scaleDown"]);
    }
    let count = |field: &str| or(&status[field], "0");
    page.field(
        0,
        &format!("{} pods", str(&target["kind"])),
        format!("{} current / {} desired", count("currentReplicas"), count("desiredReplicas")),
    );
    if items(&status["conditions"]).next().is_none() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tReason\tMessage");
    page.line(1, "----\t------\t------\t-------");
    for condition in items(&status["conditions"]) {
        let text = |field: &str| str(&condition[field]);
        page.line(
            1,
            format!(
                "{}\t{}\t{}\t{}",
                text("type"),
                text("status"),
                text("reason"),
                text("message")
            ),
        );
    }
}

/// What a metric is, what it is now and what it should be.
fn metric(metric: &Value, current: &Value) -> String {
    let of = |field: &str| (&metric[field], &current[field]["current"]);
    match str(&metric["type"]) {
        "External" => {
            let (of, now) = of("external");
            format!("{:?} {}", str(&of["metric"]["name"]), value(&of["target"], now))
        }
        "Pods" => {
            let (of, now) = of("pods");
            let target = shown(&of["target"]["averageValue"]);
            format!(
                "{:?} on pods:\t{} / {target}",
                str(&of["metric"]["name"]),
                or(&now["averageValue"], UNKNOWN)
            )
        }
        "Object" => {
            let (of, now) = of("object");
            let object = &of["describedObject"];
            let name = str(&of["metric"]["name"]);
            format!(
                "\"{name}\" on {}/{} {}",
                str(&object["kind"]),
                str(&object["name"]),
                value(&of["target"], now)
            )
        }
        "Resource" => {
            let (of, now) = of("resource");
            format!("resource {} on pods{}", str(&of["name"]), share(&of["target"], now))
        }
        "ContainerResource" => {
            let (of, now) = of("containerResource");
            let (name, container) = (str(&of["name"]), str(&of["container"]));
            format!(
                "resource {name} of container {container:?} on pods{}",
                share(&of["target"], now)
            )
        }
        other => format!("<unknown metric type {other:?}>"),
    }
}

/// A value, or one for each pod.
fn value(target: &Value, now: &Value) -> String {
    if target["averageValue"].is_null() {
        format!("(target value):\t{} / {}", or(&now["value"], UNKNOWN), shown(&target["value"]))
    } else {
        format!(
            "(target average value):\t{} / {}",
            or(&now["averageValue"], UNKNOWN),
            shown(&target["averageValue"])
        )
    }
}

/// An amount for each pod, or a share of what was asked for.
fn share(target: &Value, now: &Value) -> String {
    if !target["averageValue"].is_null() {
        return format!(
            ":\t{} / {}",
            or(&now["averageValue"], UNKNOWN),
            shown(&target["averageValue"])
        );
    }
    let current = match &now["averageUtilization"] {
        Value::Null => UNKNOWN.to_owned(),
        percent => format!("{}% ({})", shown(percent), shown(&now["averageValue"])),
    };
    let wanted = match &target["averageUtilization"] {
        Value::Null => "<auto>".to_owned(),
        percent => format!("{}%", shown(percent)),
    };
    format!("  (as a percentage of request):\t{current} / {wanted}")
}

fn behavior(page: &mut Page, title: &str, rules: &Value) {
    if !rules.is_object() {
        return;
    }
    page.line(1, format!("{title}:"));
    if !rules["stabilizationWindowSeconds"].is_null() {
        page.line(
            2,
            format!(
                "Stabilization Window: {} seconds",
                shown(&rules["stabilizationWindowSeconds"])
            ),
        );
    }
    if items(&rules["policies"]).next().is_none() {
        return;
    }
    page.line(2, format!("Select Policy: {}", or(&rules["selectPolicy"], "Max")));
    page.line(2, "Policies:");
    for policy in items(&rules["policies"]) {
        let text = |field: &str| shown(&policy[field]);
        page.line(
            3,
            format!(
                "- Type: {}\tValue: {}\tPeriod: {} seconds",
                text("type"),
                text("value"),
                text("periodSeconds")
            ),
        );
    }
}
