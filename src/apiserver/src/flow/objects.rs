//! The levels and schemas that every cluster has, as upstream has them: the mandatory ones, and the
//! suggested ones, whose specs people may change.
//!
//! Source: `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`.

use serde_json::{Value, json};

use super::{GROUP, LEVELS, SCHEMAS};
use crate::registry::Registry;

/// Marks objects whose spec the server keeps up to date.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, lendable percent, queues, hand size, queue length.
type Level = (&'static str, i64, i64, i64, i64, i64);

const QUEUED: [Level; 6] = [
    ("system", 30, 33, 64, 6, 50),
    ("node-high", 40, 25, 64, 6, 50),
    ("leader-election", 10, 0, 16, 4, 50),
    ("workload-high", 40, 50, 128, 6, 50),
    ("workload-low", 100, 90, 128, 6, 50),
    ("global-default", 20, 50, 128, 6, 50),
];

/// Name, level, precedence, distinguisher, subjects, rules. A rule is `VERBS GROUPS RESOURCES [cluster]`,
/// `VERBS url PATHS`, or `*` for everything; `-` is the core group.
type Schema = (
    &'static str,
    &'static str,
    i64,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const EVERYBODY: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];

#[rustfmt::skip]
const FLOWS: [Schema; 13] = [
    ("exempt", "exempt", 1, "", &["group:system:masters"], &["*"]),
    ("probes", "exempt", 2, "", EVERYBODY, &["get url /healthz,/readyz,/livez"]),
    ("system-leader-election", "leader-election", 100, "ByUser",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "sa:*"],
        &["get,create,update coordination.k8s.io leases"]),
    ("endpoint-controller", "workload-high", 150, "ByUser",
        &["user:system:kube-controller-manager", "sa:endpoint-controller", "sa:endpointslicemirroring-controller"],
        &["get,create,update - endpoints"]),
    ("workload-leader-election", "leader-election", 200, "ByUser", &["sa:*"],
        &["get,create,update - endpoints,configmaps", "get,create,update coordination.k8s.io leases"]),
    ("system-node-high", "node-high", 400, "ByUser", &["group:system:nodes"],
        &["* - nodes,nodes/status cluster", "* coordination.k8s.io leases"]),
    ("system-nodes", "system", 500, "ByUser", &["group:system:nodes"], &["*"]),
    ("kube-controller-manager", "workload-high", 800, "ByNamespace", &["user:system:kube-controller-manager"], &["*"]),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &["user:system:kube-scheduler"], &["*"]),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["sa:*"], &["*"]),
    ("service-accounts", "workload-low", 9000, "ByUser", &["group:system:serviceaccounts"], &["*"]),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY, &["*"]),
    ("catch-all", "catch-all", 10000, "ByUser", EVERYBODY, &["*"]),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": spec,
    })
}

fn level(name: &str, spec: Value) -> (&'static str, Value) {
    (LEVELS, object("PriorityLevelConfiguration", name, spec))
}

fn subject(text: &str) -> Value {
    match text.split_once(':') {
        Some(("group", name)) => json!({"kind": "Group", "group": {"name": name}}),
        Some(("sa", name)) => json!({"kind": "ServiceAccount",
            "serviceAccount": {"namespace": "kube-system", "name": name}}),
        Some((_, name)) => json!({"kind": "User", "user": {"name": name}}),
        None => json!({"kind": "User", "user": {"name": text}}),
    }
}

fn rules(subjects: &[&str], lines: &[&str]) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for line in lines {
        let columns: Vec<Vec<&str>> =
            line.split_whitespace().map(|column| column.split(',').collect()).collect();
        match columns.as_slice() {
            [verbs, url, urls] if *url == ["url"] => {
                paths.push(json!({"verbs": verbs, "nonResourceURLs": urls}));
            }
            [verbs, groups, named, rest @ ..] => {
                let groups: Vec<&str> =
                    groups.iter().map(|group| if *group == "-" { "" } else { group }).collect();
                let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": named,
                    "namespaces": ["*"]});
                if !rest.is_empty() {
                    rule["clusterScope"] = true.into();
                }
                resources.push(rule);
            }
            _ => {
                resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                    "clusterScope": true, "namespaces": ["*"]}));
                paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
            }
        }
    }
    let mut rule = json!({"subjects": subjects.iter().map(|s| subject(s)).collect::<Vec<_>>()});
    if !resources.is_empty() {
        rule["resourceRules"] = resources.into();
    }
    if !paths.is_empty() {
        rule["nonResourceRules"] = paths.into();
    }
    json!([rule])
}

/// Whether the object's spec is the server's own to keep, whatever people write.
pub fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

/// All objects with their resource, levels first.
pub fn all() -> Vec<(&'static str, Value)> {
    let mut all = vec![
        level(
            "exempt",
            json!({"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}),
        ),
        level(
            "catch-all",
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}),
        ),
    ];
    for (name, shares, lendable, queues, hand, length) in QUEUED {
        let spec = json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {"type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}}});
        all.push(level(name, spec));
    }
    for (name, level, precedence, distinguisher, subjects, lines) in FLOWS {
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence,
            "rules": rules(subjects, lines),
        });
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        all.push((SCHEMAS, object("FlowSchema", name, spec)));
    }
    all
}

/// The objects that `registry` lacks.
pub fn missing(registry: &Registry) -> Vec<(&'static str, Value)> {
    let absent = |plural: &str, object: &Value| {
        registry.get(GROUP, plural, "", apimachinery::meta::name(object)).is_none()
    };
    all().into_iter().filter(|(plural, object)| absent(plural, object)).collect()
}
