//! Warnings of pods and pod templates.
//!
//! Source: `warningsForPodSpecAndMeta` of `pkg/api/pod/warnings.go`.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::Path;
use apimachinery::meta;
use serde_json::Value;

use super::{Texts, claim_spec, fraction, node_label, node_labels, node_term};
use crate::zero::Zero;

/// Volume sources that are deprecated, and since when.
pub const DEPRECATED_SOURCES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];
const DEPRECATED_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
const APPARMOR: &str = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// A pod, or the template of pods at `path`.
pub fn template(template: &Value, path: &Path, texts: &mut Texts) {
    let (spec, at) = (&template["spec"], path.child("spec"));
    scheduling(spec, &at, texts);
    annotations(template, path, texts);
    volumes(spec, &at, texts);
    lists(spec, &at, texts);
    for key in ["memory", "ephemeral-storage"] {
        fraction(&spec["overhead"][key], &at.child("overhead").key(key), texts);
    }
    for (list, container, at) in containers(spec, &at) {
        environment(container, &at, texts);
        // What is said of the debugging container's size is never used.
        if list != "ephemeralContainers" {
            for kind in ["limits", "requests"] {
                for key in ["memory", "ephemeral-storage"] {
                    let at = at.child("resources").child(kind).key(key);
                    fraction(&container["resources"][kind][key], &at, texts);
                }
            }
        }
    }
    ports(spec, &at, texts);
    if spec["terminationGracePeriodSeconds"].int() < 0 {
        texts.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            at.child("terminationGracePeriodSeconds")
        ));
    }
}

fn containers<'a>(
    spec: &'a Value,
    path: &'a Path,
) -> impl Iterator<Item = (&'static str, &'a Value, Path)> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| {
        let items = spec[list].items().iter().enumerate();
        items.map(move |(index, container)| (list, container, path.child(list).index(index)))
    })
}

fn scheduling(spec: &Value, path: &Path, texts: &mut Texts) {
    node_labels(&spec["nodeSelector"], &path.child("nodeSelector"), texts);
    let (affinity, at) = (&spec["affinity"], path.child("affinity"));
    let (required, preferred) = (
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    );
    let (node, node_at) = (&affinity["nodeAffinity"], at.child("nodeAffinity"));
    for (index, term) in node[required]["nodeSelectorTerms"].items().iter().enumerate() {
        let at = node_at.child(required).child("nodeSelectorTerms").index(index);
        node_term(term, &at, texts);
    }
    for (index, term) in node[preferred].items().iter().enumerate() {
        let at = node_at.child(preferred).index(index).child("preference");
        node_term(&term["preference"], &at, texts);
    }
    for (index, constraint) in spec["topologySpreadConstraints"].items().iter().enumerate() {
        let at = path.child("topologySpreadConstraints").index(index);
        let key = constraint["topologyKey"].text();
        let told = node_label(key);
        texts.extend(told.map(|told| format!("{}: {key} is {told}", at.child("topologyKey"))));
        if constraint["labelSelector"].is_null() {
            texts.push(format!("{}: {NO_SELECTOR}", at.child("labelSelector")));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (index, term) in affinity[kind][required].items().iter().enumerate() {
            if term["labelSelector"].is_null() {
                let at = at.child(kind).child(required).index(index).child("labelSelector");
                texts.push(format!("{at}: {NO_SELECTOR}"));
            }
        }
        for (index, term) in affinity[kind][preferred].items().iter().enumerate() {
            if term["podAffinityTerm"]["labelSelector"].is_null() {
                let at = at.child(kind).child(preferred).index(index);
                let at = at.child("podAffinityTerm").child("labelSelector");
                texts.push(format!("{at}: {NO_SELECTOR}"));
            }
        }
    }
}

fn annotations(template: &Value, path: &Path, texts: &mut Texts) {
    let at = path.child("metadata").child("annotations");
    let mut tell = |key: &str, told: &str| {
        if meta::annotation(template, key).is_some() {
            texts.push(format!("{}: {told}", at.key(key)));
        }
    };
    for (key, told) in DEPRECATED_ANNOTATIONS {
        tell(key, told);
    }
    let security = &template["spec"]["securityContext"];
    if security["seccompProfile"].is_null() {
        tell("seccomp.security.alpha.kubernetes.io/pod", SECCOMP);
    }
    for (_, container, _) in containers(&template["spec"], path) {
        let (name, own) = (container["name"].text(), &container["securityContext"]);
        if own["seccompProfile"].is_null() {
            tell(&format!("container.seccomp.security.alpha.kubernetes.io/{name}"), SECCOMP);
        }
        if own["appArmorProfile"].is_null() && security["appArmorProfile"].is_null() {
            tell(&format!("container.apparmor.security.beta.kubernetes.io/{name}"), APPARMOR);
        }
    }
}

fn volumes(spec: &Value, path: &Path, texts: &mut Texts) {
    for (index, volume) in spec["volumes"].items().iter().enumerate() {
        let at = path.child("volumes").index(index);
        for (source, since) in DEPRECATED_SOURCES {
            if volume[source].is_set() {
                texts.push(format!("{}: {since}", at.child(source)));
            }
        }
        let claim = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        let at = at.child("ephemeral").child("volumeClaimTemplate").child("spec");
        claim_spec(claim, &at, texts);
    }
}

fn lists(spec: &Value, path: &Path, texts: &mut Texts) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen = BTreeSet::new();
        for (index, item) in spec[list].items().iter().enumerate() {
            let (value, at) = (item[key].text(), path.child(list).index(index).child(key));
            if !seen.insert(value) {
                texts.push(format!("{at}: duplicate {key} {value:?}"));
            }
            if list == "imagePullSecrets" && value.is_empty() {
                texts.push(format!("{at}: invalid empty name {value:?}"));
            }
        }
    }
}

fn environment(container: &Value, path: &Path, texts: &mut Texts) {
    let mut seen = BTreeSet::new();
    for (index, item) in container["env"].items().iter().enumerate() {
        let name = item["name"].text();
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let value = item["value"].text();
        // A value that builds on the earlier one is meant.
        if item["valueFrom"].is_set() || value == reference || !value.contains(&reference) {
            texts.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(index)
            ));
        }
    }
}

fn ports(spec: &Value, path: &Path, texts: &mut Texts) {
    let mut seen: BTreeMap<(i64, &str), Vec<(Path, &Value)>> = BTreeMap::new();
    for (_, container, at) in containers(spec, path) {
        for (index, port) in container["ports"].items().iter().enumerate() {
            let at = at.child("ports").index(index);
            let key = (port["containerPort"].int(), port["protocol"].text());
            let others = seen.entry(key).or_default();
            for (other_at, other) in others.iter() {
                let number = |port: &Value| port["hostPort"].int();
                let ip = |port: &'_ Value| port["hostIP"].text().to_owned();
                let how = if ip(port) == ip(other) && number(port) == number(other) {
                    "duplicate"
                } else if number(port) == 0 || number(other) == 0 {
                    "overlapping"
                } else if number(port) == number(other)
                    && ip(port).is_empty() != ip(other).is_empty()
                {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                texts.push(format!("{at}: {how} port definition with {other_at}"));
            }
            others.push((at, port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_looked_through() {
        let one = |spec: Value| {
            let mut texts = Texts::new();
            template(&json!({"spec": spec}), &Path::default(), &mut texts);
            texts.join("; ")
        };
        let container = |container: Value| one(json!({"containers": [container]}));
        for (got, want) in [
            (
                container(
                    json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]}),
                ),
                "",
            ),
            (
                container(json!({"resources": {"limits": {"memory": "100m"}}})),
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ),
            (
                container(
                    json!({"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]}),
                ),
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            ),
            (
                one(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}})),
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ),
            (
                one(json!({"terminationGracePeriodSeconds": -1})),
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ),
            (
                one(json!({"imagePullSecrets": [{}]})),
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
            ),
            (
                one(json!({"volumes": [{"name": "v", "rbd": {}}]})),
                "spec.volumes[0].rbd: deprecated in v1.28, non-functional in v1.31+",
            ),
            (
                one(json!({"topologySpreadConstraints": [{"topologyKey": "x"}]})),
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
            ),
        ] {
            assert_eq!(got, want);
        }
    }
}
