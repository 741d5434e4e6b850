//! Which nodes a pod may be on: node selectors, affinity, taints and tolerations.
//!
//! Source: `k8s.io/component-helpers/scheduling/corev1`.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};
use kube::ResourceExt;

fn holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |text: &str| values.iter().any(|value| value == text);
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let found = found.and_then(|text| text.parse().ok());
        let bound = values.first().and_then(|text| text.parse().ok());
        matches!((found, bound), (Some(found), Some(bound)) if holds(&found, &bound))
    };
    match requirement.operator.as_str() {
        "In" => found.is_some_and(among),
        "NotIn" => !found.is_some_and(among),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// Whether one of the terms holds for the node; a term without conditions never does.
pub fn selects(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    let name = node.name_any();
    let label = |key: &str| node.labels().get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(name.as_str());
    terms.iter().any(|term| {
        let labels = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(|r| holds(r, label(&r.key)))
            && fields.iter().all(|r| holds(r, field(&r.key)))
    })
}

/// Whether the node has the labels the pod requires.
pub fn fits(spec: &PodSpec, node: &Node) -> bool {
    let mut wanted = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    wanted.all(|(key, value)| node.labels().get(key) == Some(value))
        && required.is_none_or(|required| selects(&required.node_selector_terms, node))
}

/// The first taint with one of `effects` that nothing tolerates.
pub fn untolerated<'a>(
    tolerations: &[Toleration],
    taints: &'a [Taint],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| client::tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_are_alternatives_of_conjunctions() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"zone": "a", "cores": "8"}}}),
        )
        .expect("a node");
        let expression = |key: &str, operator: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        let named = |name: &str| json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]);
        for (terms, want) in [
            (expression("zone", "In", &["a", "b"]), true),
            (expression("zone", "NotIn", &["a"]), false),
            (expression("disk", "NotIn", &["a"]), true),
            (expression("cores", "Gt", &["4"]), true),
            (expression("cores", "Lt", &["4"]), false),
            (expression("disk", "Exists", &[]), false),
            (named("n"), true),
            (named("m"), false),
            (json!([{}]), false),
        ] {
            let parsed: Vec<NodeSelectorTerm> =
                serde_json::from_value(terms.clone()).expect("terms");
            assert_eq!(selects(&parsed, &node), want, "{terms}");
        }
    }
}
