//! What is accepted and still told to the client, as `Warning` headers.
//!
//! Source: the `WarningsOnCreate` and `WarningsOnUpdate` of `pkg/registry/*/*/strategy.go`, the
//! `warnings.go` of `pkg/api`, and the life cycles of the API's types.

mod pod;

use std::net::IpAddr;

use apimachinery::field::Path;
use apimachinery::{meta, names, structural};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::defaults::pod_spec_path;
use crate::resource::Resource;
use crate::validation::quantity;
use crate::zero::Zero;

/// What using a built-in type at all is answered with: group, version, plural, text.
const DEPRECATED: [(&str, &str, &str, &str); 2] = [
    ("", "v1", "componentstatuses", "v1 ComponentStatus is deprecated in v1.19+"),
    (
        "",
        "v1",
        "endpoints",
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    ),
];
/// Deprecated labels of nodes, since when, and those in their place.
const NODE_LABELS: [(&str, &str, &str); 5] = [
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const INDEXED_COMPLETIONS_HIGH: i64 = 100_000;
const INDEXED_PARALLELISM_HIGH: i64 = 10_000;

type Texts = Vec<String>;

/// The warning for using the type of `resource`, if it is deprecated.
pub fn deprecated(resource: &Resource) -> Option<&str> {
    if let Some(custom) = &resource.custom {
        return custom.deprecated.as_deref();
    }
    let same = |(group, version, plural, _): &&(&str, &str, &str, &str)| {
        (*group, *version, *plural) == (&resource.group, &resource.version, &resource.plural)
    };
    DEPRECATED.iter().find(same).map(|(_, _, _, text)| *text)
}

/// Tells the client of what is odd in an object that was created, or changed from `old`.
pub fn warn(ctx: &RequestContext, object: &Value, old: Option<&Value>) {
    let Some(resource) = &ctx.resource else { return };
    if !ctx.subresource.is_empty() {
        return;
    }
    if resource.custom.is_some() {
        for text in finalizers(object, old) {
            ctx.warnings.add(text);
        }
        return;
    }
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    let mut texts = Texts::new();
    of_pods(group, plural, object, old, &mut texts);
    match (group, plural) {
        ("", "services") => service(object, &mut texts),
        ("", "nodes") => node(object, &mut texts),
        ("", "persistentvolumes") => volume(object, &mut texts),
        ("", "persistentvolumeclaims") => claim(object, &mut texts),
        ("apps", "statefulsets") => stateful_set(object, &mut texts),
        ("batch", "jobs") => job(&object["spec"], &mut texts),
        ("batch", "cronjobs") => cron_job(object, &mut texts),
        ("storage.k8s.io", "storageclasses") => topologies(object, &mut texts),
        ("networking.k8s.io", "ingresses") if old.is_none() => {
            let key = "kubernetes.io/ingress.class";
            if meta::annotation(object, key).is_some() {
                texts.push(format!(
                    "annotation {key:?} is deprecated, please use 'spec.ingressClassName' instead"
                ));
            }
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            let before = old.map(formats).unwrap_or_default();
            let new = formats(object).into_iter().filter(|format| !before.contains(format));
            texts.extend(new.map(|format| format!("unrecognized format {format:?}")));
        }
        ("networking.k8s.io", "networkpolicies") => policy(object, &mut texts),
        ("node.k8s.io", "runtimeclasses") => {
            let path = Path::new("scheduling").child("nodeSelector");
            node_labels(&object["scheduling"]["nodeSelector"], &path, &mut texts);
        }
        _ => {}
    }
    for text in texts {
        ctx.warnings.add(text);
    }
}

/// The formats in a definition's schemas that nobody checks.
fn formats(definition: &Value) -> Vec<&str> {
    let versions = definition["spec"]["versions"].items().iter();
    let schemas = versions.map(|version| &version["schema"]["openAPIV3Schema"]);
    schemas.flat_map(structural::unrecognized_formats).collect()
}

/// Finalizers of custom resources that others may use as well (`validateKubeFinalizerName`).
fn finalizers(object: &Value, old: Option<&Value>) -> Texts {
    const STANDARD: [&str; 3] = ["foregroundDeletion", "kubernetes", "orphan"];
    let before = old.map(meta::finalizers).unwrap_or_default();
    let mut added = meta::finalizers(object);
    added.retain(|name| !before.contains(name));
    added.sort_unstable();
    let mut texts = Texts::new();
    for name in added {
        let mut tell = |what: &str| texts.push(format!("metadata.finalizers: {name:?}: {what}"));
        for sentence in names::qualified_name(name) {
            tell(&sentence);
        }
        if !name.contains('/') && !STANDARD.contains(&name) {
            tell(
                "prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers",
            );
        }
    }
    texts
}

/// Warnings of pods and of templates of pods.
fn of_pods(group: &str, plural: &str, object: &Value, old: Option<&Value>, texts: &mut Texts) {
    let Some(pointer) = pod_spec_path(group, plural) else { return };
    let whole = plural == "pods";
    // Pods change often and by machines; a template is looked at when the spec has changed.
    if old.is_some_and(|old| whole || meta::generation(old) == meta::generation(object)) {
        return;
    }
    let mistakes = names::dns_label(meta::name(object));
    if old.is_none() && !mistakes.is_empty() && plural != "podtemplates" {
        let what = if whole { "the Pod's hostname" } else { "Pod names and hostnames" };
        texts.push(format!(
            "metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            mistakes.join(" ")
        ));
    }
    let pointer = pointer.trim_end_matches("/spec").trim_end_matches('/');
    let path = pointer.split('/').skip(1).fold(Path::default(), |path, key| path.child(key));
    if let Some(template) = object.pointer(pointer) {
        pod::template(template, &path, texts);
    }
}

/// The warning for a label of nodes that is deprecated.
fn node_label(key: &str) -> Option<String> {
    let (_, since, instead) = NODE_LABELS.iter().find(|(label, _, _)| *label == key)?;
    Some(format!("deprecated since {since}; use {instead:?} instead"))
}

fn node_labels(selector: &Value, path: &Path, texts: &mut Texts) {
    for (key, _) in selector.entries() {
        texts.extend(node_label(key).map(|told| format!("{}: {told}", path.key(key))));
    }
}

/// A term of a node selector.
fn node_term(term: &Value, path: &Path, texts: &mut Texts) {
    for (index, expression) in term["matchExpressions"].items().iter().enumerate() {
        let key = expression["key"].text();
        let at = path.child("matchExpressions").index(index).child("key");
        texts.extend(node_label(key).map(|told| format!("{at}: {key} is {told}")));
    }
}

/// An address that would be written otherwise.
fn address(text: &str, path: &Path, texts: &mut Texts) {
    if let Ok(IpAddr::V6(ip)) = text.parse()
        && ip.to_string() != text
    {
        let canonical = ip.to_string();
        texts.push(format!(
            "{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({canonical:?})"
        ));
    }
}

/// A range of addresses that would be written otherwise.
fn range(text: &str, path: &Path, texts: &mut Texts) {
    let Some((ip, bits)) = text.split_once('/') else { return };
    let (Ok(ip), Ok(bits)) = (ip.parse::<IpAddr>(), bits.parse::<u32>()) else { return };
    let masked: IpAddr = match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            std::net::Ipv4Addr::from(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            std::net::Ipv6Addr::from(v6.to_bits() & mask).into()
        }
    };
    if masked != ip {
        texts.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{masked}/{bits}\" or \"{ip}/{}\"?)",
            if ip.is_ipv4() { 32 } else { 128 }
        ));
    } else if ip.is_ipv6() && format!("{ip}/{bits}") != text {
        texts.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{ip}/{bits}\")"
        ));
    }
}

/// In the order of `pkg/api/service/warnings.go`.
fn service(service: &Value, texts: &mut Texts) {
    let (spec, path) = (&service["spec"], Path::new("spec"));
    let (old, new) =
        ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode");
    if meta::annotation(service, old).is_some() {
        texts.push(format!("annotation {old} is deprecated, please use {new} instead"));
    }
    let (kind, external) = (spec["type"].text(), !spec["externalIPs"].items().is_empty());
    let headless = spec["clusterIP"] == "None";
    if headless {
        if !spec["loadBalancerIP"].text().is_empty() {
            texts.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if external {
            texts.push("spec.externalIPs is ignored for headless services".into());
        }
        if spec["sessionAffinity"] == "ClientIP" {
            texts.push("spec.SessionAffinity is ignored for headless services".into());
        }
    } else {
        for (index, ip) in spec["clusterIPs"].texts().enumerate() {
            address(ip, &path.child("clusterIPs").index(index), texts);
        }
    }
    for (index, ip) in spec["externalIPs"].texts().enumerate() {
        address(ip, &path.child("externalIPs").index(index), texts);
    }
    if external && !headless && kind != "ExternalName" {
        texts.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .into(),
        );
    }
    address(spec["loadBalancerIP"].text(), &path.child("loadBalancerIP"), texts);
    for (index, text) in spec["loadBalancerSourceRanges"].texts().enumerate() {
        range(text, &path.child("loadBalancerSourceRanges").index(index), texts);
    }
    if external && kind == "ExternalName" {
        texts.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if kind != "ExternalName" && !spec["externalName"].text().is_empty() {
        texts.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if spec["trafficDistribution"] == "PreferClose" {
        texts.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
                .into(),
        );
    }
}

fn node(node: &Value, texts: &mut Texts) {
    let spec = &node["spec"];
    if spec["configSource"].is_set() {
        texts.push("spec.configSource: the feature is removed".into());
    }
    if !spec["externalID"].text().is_empty() {
        texts.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
    }
    for (index, text) in spec["podCIDRs"].texts().enumerate() {
        range(text, &Path::new("spec").child("podCIDRs").index(index), texts);
    }
}

fn class_annotation(object: &Value, texts: &mut Texts) {
    if meta::annotation(object, CLASS_ANNOTATION).is_some() {
        let at = Path::new("metadata").child("annotations").key(CLASS_ANNOTATION);
        texts.push(format!(
            "{at}: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
}

fn volume(volume: &Value, texts: &mut Texts) {
    let (spec, path) = (&volume["spec"], Path::new("spec"));
    class_annotation(volume, texts);
    if spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        texts.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
    }
    let at = path.child("nodeAffinity").child("required").child("nodeSelectorTerms");
    let terms = spec["nodeAffinity"]["required"]["nodeSelectorTerms"].items();
    for (index, term) in terms.iter().enumerate() {
        node_term(term, &at.index(index), texts);
    }
    for (source, since) in pod::DEPRECATED_SOURCES {
        if spec[source].is_set() {
            texts.push(format!("{}: {since}", path.child(source)));
        }
    }
}

fn claim(claim: &Value, texts: &mut Texts) {
    class_annotation(claim, texts);
    claim_spec(&claim["spec"], &Path::new("spec"), texts);
}

fn claim_spec(spec: &Value, path: &Path, texts: &mut Texts) {
    for list in ["requests", "limits"] {
        let at = path.child("resources").child(list).key("storage");
        fraction(&spec["resources"][list]["storage"], &at, texts);
    }
}

/// A number of bytes that is not whole.
fn fraction(value: &Value, path: &Path, texts: &mut Texts) {
    if let Some(amount) = quantity(value).filter(|amount| amount.milli_value() % 1000 != 0) {
        let amount = amount.to_string();
        texts.push(format!(
            "{path}: fractional byte value {amount:?} is invalid, must be an integer"
        ));
    }
}

fn stateful_set(set: &Value, texts: &mut Texts) {
    let (spec, path) = (&set["spec"], Path::new("spec"));
    for (index, claim) in spec["volumeClaimTemplates"].items().iter().enumerate() {
        let at = path.child("volumeClaimTemplates").index(index).child("spec");
        claim_spec(&claim["spec"], &at, texts);
    }
    if spec["revisionHistoryLimit"].int() < 0 {
        texts.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
    }
}

fn job(spec: &Value, texts: &mut Texts) {
    if spec["completionMode"] == "Indexed"
        && spec["completions"].int() > INDEXED_COMPLETIONS_HIGH
        && spec["parallelism"].int() > INDEXED_PARALLELISM_HIGH
    {
        texts.push("In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail".into());
    }
}

fn cron_job(cron: &Value, texts: &mut Texts) {
    let spec = &cron["spec"];
    job(&spec["jobTemplate"]["spec"], texts);
    if spec["schedule"].text().contains("TZ") {
        texts.push("CRON_TZ or TZ used in spec.schedule is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".into());
    }
}

fn topologies(class: &Value, texts: &mut Texts) {
    for (index, term) in class["allowedTopologies"].items().iter().enumerate() {
        for (number, expression) in term["matchLabelExpressions"].items().iter().enumerate() {
            let key = expression["key"].text();
            let at = Path::new("allowedTopologies").index(index).child("matchLabelExpressions");
            let at = at.index(number).child("key");
            texts.extend(node_label(key).map(|told| format!("{at}: {told}")));
        }
    }
}

fn policy(policy: &Value, texts: &mut Texts) {
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in policy["spec"][direction].items().iter().enumerate() {
            for (number, peer) in rule[peers].items().iter().enumerate() {
                let at = Path::new("spec").child(direction).index(index).child(peers);
                let at = at.index(number).child("ipBlock");
                range(peer["ipBlock"]["cidr"].text(), &at.child("cidr"), texts);
                for (number, text) in peer["ipBlock"]["except"].texts().enumerate() {
                    range(text, &at.child("except").index(number), texts);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use serde_json::json;

    pub(crate) fn told(group: &str, plural: &str, object: &Value) -> Vec<String> {
        let resource = Registry::default().resource(group, plural).unwrap();
        let ctx = RequestContext::internal("create", &resource, "default", "a");
        warn(&ctx, object, None);
        ctx.warnings.list()
    }

    #[test]
    fn finalizers_that_others_may_use_are_told() {
        let with = |names: &[&str]| json!({"metadata": {"finalizers": names}});
        let old = with(&["known"]);
        assert_eq!(finalizers(&with(&["known", "e.com/a", "orphan"]), Some(&old)), Texts::new());
        assert_eq!(
            finalizers(&with(&["mine"]), None),
            [
                "metadata.finalizers: \"mine\": prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"
            ]
        );
    }

    #[test]
    fn old_ways_are_told() {
        let service =
            |spec: Value| told("", "services", &json!({"metadata": {"name": "s"}, "spec": spec}));
        assert_eq!(service(json!({"type": "ClusterIP"})), Vec::<String>::new());
        assert_eq!(
            service(json!({"type": "ClusterIP", "externalIPs": ["fd00:0::1"]})),
            [
                "spec.externalIPs[0]: IPv6 address \"fd00:0::1\" should be in RFC 5952 canonical format (\"fd00::1\")",
                "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
            ]
        );
        assert_eq!(
            service(json!({"type": "ExternalName", "externalIPs": ["192.0.2.1"]})),
            ["spec.externalIPs is ignored when spec.type is \"ExternalName\""]
        );
        assert_eq!(
            service(json!({"type": "ClusterIP", "trafficDistribution": "PreferClose"})),
            ["spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""]
        );
        assert_eq!(
            service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1/8"]})),
            [
                "spec.loadBalancerSourceRanges[0]: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)"
            ]
        );
        let ingress =
            json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "x"}}});
        assert_eq!(
            told("networking.k8s.io", "ingresses", &ingress),
            [
                "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
            ]
        );
        let registry = Registry::default();
        let endpoints = registry.resource("", "endpoints").unwrap();
        assert!(deprecated(&endpoints).is_some());
        assert!(deprecated(&registry.resource("", "pods").unwrap()).is_none());
    }

    #[test]
    fn templates_are_looked_at_where_they_are() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
        let spec = json!({"containers": [{"name": "c", "env": env}]});
        let template = json!({"template": {"spec": spec}});
        let pod = json!({"metadata": {"name": "a.b"}, "spec": spec});
        let hides = "containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply";
        let got = told("", "pods", &pod);
        assert!(got[0].starts_with("metadata.name: this is used in the Pod's hostname"), "{got:?}");
        assert_eq!(got[1], format!("spec.{hides}"));
        for (group, plural, spec, path) in [
            ("apps", "deployments", template.clone(), "spec.template.spec"),
            (
                "batch",
                "cronjobs",
                json!({"jobTemplate": {"spec": template}}),
                "spec.jobTemplate.spec.template.spec",
            ),
        ] {
            let object = json!({"metadata": {"name": "a"}, "spec": spec});
            assert_eq!(told(group, plural, &object), [format!("{path}.{hides}")]);
        }
    }
}
