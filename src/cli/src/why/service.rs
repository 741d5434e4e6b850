//! Follows a service to its pods.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Verdict;

/// Values of a label that are told at most.
const VALUES: usize = 5;

/// What keeps a service from answering, apart from its pods themselves; `pods` are those of its namespace, `slices`
/// its endpoint slices. `None` where it is as it should be.
pub fn explain(service: &Value, pods: &[Value], slices: &[Value]) -> Option<Verdict> {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return None;
    }
    let selector = spec["selector"].as_object().filter(|selector| !selector.is_empty());
    let Some(selector) = selector else {
        let served = slices.iter().any(|slice| !slice["endpoints"][0].is_null());
        return (!served).then(|| {
            Verdict::new("service", "it selects no pods, and nobody has given it endpoints.")
                .because("It has no spec.selector")
                .mend("set spec.selector to the labels of its pods, or create an EndpointSlice with the label kubernetes.io/service-name")
        });
    };
    let mine = selected(service, pods);
    if mine.is_empty() {
        let wanted: Vec<String> =
            selector.iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
        let finding = format!("no pod has the labels that it selects, {}.", wanted.join(","));
        return Some(Verdict::new("service", finding).because(have(selector.keys(), pods)).mend(
            "make spec.selector the labels of the pods' template: kubectl get pods --show-labels",
        ));
    }
    spec["ports"].as_array().into_iter().flatten().find_map(|port| {
        let name = port["targetPort"].as_str()?;
        let has = mine.iter().any(|pod| ports(pod).any(|p| p["name"] == name));
        (!has).then(|| {
            let names: BTreeSet<&str> =
                mine.iter().flat_map(|pod| ports(pod)).filter_map(|p| p["name"].as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            let known = match names.as_slice() {
                [] => "They name none".to_owned(),
                names => format!("They have {}", names.join(", ")),
            };
            Verdict::new(
                "service",
                format!("its pods have no port named {name:?}, its targetPort."),
            )
            .because(known)
            .mend("make targetPort a number, or give a container's port that name")
        })
    })
}

/// The pods that a service selects.
pub fn selected<'p>(service: &Value, pods: &'p [Value]) -> Vec<&'p Value> {
    let selector = service["spec"]["selector"].as_object();
    let fits = |pod: &&Value| {
        selector.is_some_and(|selector| {
            !selector.is_empty()
                && selector.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value)
        })
    };
    pods.iter().filter(fits).collect()
}

/// Of a service whose pods are all well.
pub fn well(service: &Value, pods: &[&Value]) -> Verdict {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        let name = text(&spec["externalName"]);
        return Verdict::new("", format!("nothing holds it: its name stands for {name}."));
    }
    let verdict = Verdict::new(
        "",
        match pods.len() {
            0 => "nothing holds it: others give it endpoints.".to_owned(),
            1 => "nothing holds it: its pod is Ready.".to_owned(),
            count => format!("nothing holds it: its {count} pods are Ready."),
        },
    );
    // Containers may serve ports that they do not declare; most do declare them.
    let declared: BTreeSet<i64> = pods
        .iter()
        .flat_map(|pod| ports(pod))
        .filter_map(|p| p["containerPort"].as_i64())
        .collect();
    let other = spec["ports"].as_array().into_iter().flatten().find_map(|port| {
        let target = port["targetPort"].as_i64().filter(|target| !declared.contains(target))?;
        (!declared.is_empty()).then_some(target)
    });
    let Some(target) = other else { return verdict };
    let declared: Vec<String> = declared.iter().map(i64::to_string).collect();
    verdict
        .because(format!(
            "Its targetPort {target} is none that they declare ({})",
            declared.join(", ")
        ))
        .mend("if connections are refused, make targetPort the port that the container listens at")
}

fn ports(pod: &Value) -> impl Iterator<Item = &Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let side = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers
        .chain(side.filter(|container| container["restartPolicy"] == "Always"))
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
}

/// Which values pods have of these labels.
fn have<'k>(keys: impl Iterator<Item = &'k String>, pods: &[Value]) -> String {
    if pods.is_empty() {
        return "There are no pods in its namespace".into();
    }
    let told: Vec<String> = keys
        .map(|key| {
            let values: BTreeSet<&str> =
                pods.iter().filter_map(|pod| pod["metadata"]["labels"][key].as_str()).collect();
            if values.is_empty() {
                return format!("No pod has a label {key}");
            }
            let values: Vec<&str> = values.into_iter().take(VALUES).collect();
            format!("Pods have {key}={}", values.join(&format!(", {key}=")))
        })
        .collect();
    told.join(". ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})
    }

    #[test]
    fn what_keeps_a_service_from_its_pods_is_named() {
        let pods = [json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}})];
        let to = |app: &str, target: Value| {
            service(
                json!({"selector": {"app": app}, "ports": [{"port": 80, "targetPort": target}]}),
            )
        };
        let cases = [
            (to("web", json!("http")), None),
            (to("web", json!(8080)), None),
            (
                to("wbe", json!("http")),
                Some("no pod has the labels that it selects, app=wbe. Pods have app=web"),
            ),
            (
                to("web", json!("https")),
                Some("its pods have no port named \"https\", its targetPort. They have http"),
            ),
            (
                service(json!({"ports": []})),
                Some(
                    "it selects no pods, and nobody has given it endpoints. It has no spec.selector",
                ),
            ),
            (service(json!({"type": "ExternalName", "externalName": "a.b"})), None),
        ];
        for (service, want) in cases {
            let verdict = explain(&service, &pods, &[]);
            let told = verdict.as_ref().map(|v| format!("{} {}", v.finding, v.evidence));
            assert_eq!(told.as_deref(), want, "{service}");
            assert!(verdict.is_none_or(|v| !v.remedy.is_empty()), "{service}");
        }
        let alone = explain(&to("web", json!(1)), &[], &[]).unwrap();
        assert_eq!(alone.evidence, "There are no pods in its namespace");
        let given = [json!({"endpoints": [{"addresses": ["10.0.0.1"]}]})];
        assert_eq!(explain(&service(json!({"ports": []})), &[], &given), None);
        let of = [&pods[0]];
        assert_eq!(well(&to("web", json!(8080)), &of).evidence, "");
        assert_eq!(
            well(&to("web", json!(80)), &of).evidence,
            "Its targetPort 80 is none that they declare (8080)"
        );
    }
}
