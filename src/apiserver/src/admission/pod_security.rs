//! PodSecurity: a namespace's labels say which standard its pods keep to, in which release's form, and
//! whether the others are refused, recorded or warned about.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/pod-security-admission/> and
//! `k8s.io/pod-security-admission/admission`.

mod checks;

use std::collections::BTreeMap;

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::gate::Operation;
use crate::registry::Registry;
use crate::zero::Zero;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// The release whose standards `latest` means.
const LATEST: u32 = 36;
/// So many pods are looked at when a namespace's level changes.
const EXISTING_PODS: usize = 3000;

/// A standard as labels name it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standard {
    level: String,
    version: String,
}

impl Standard {
    fn of<'a>(label: impl Fn(&str) -> Option<&'a str>, mode: &str) -> Self {
        let key = format!("{PREFIX}{mode}");
        let level = match label(&key) {
            None | Some("") => "privileged",
            Some(level @ ("privileged" | "baseline" | "restricted")) => level,
            // What cannot be read might have been meant to be strict.
            Some(_) => "restricted",
        };
        let version = label(&format!("{key}-version")).filter(|version| minor(version).is_some());
        Self { level: level.to_owned(), version: version.unwrap_or("latest").to_owned() }
    }

    fn violations(&self, pod: &Value) -> Vec<checks::Violation> {
        match self.level.as_str() {
            "privileged" => Vec::new(),
            level => checks::violations(
                level == "restricted",
                minor(&self.version).unwrap_or(LATEST),
                pod,
            ),
        }
    }
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

/// The minor release of `latest` or `v1.x`.
fn minor(version: &str) -> Option<u32> {
    if version == "latest" {
        return Some(LATEST);
    }
    let minor = version.strip_prefix("v1.")?;
    let plain = !minor.is_empty() && (minor == "0" || !minor.starts_with('0'));
    minor.parse().ok().filter(|_| plain && minor.bytes().all(|b| b.is_ascii_digit()))
}

fn detail(violations: &[checks::Violation]) -> String {
    violations
        .iter()
        .map(
            |(reason, detail)| {
                if detail.is_empty() { reason.clone() } else { format!("{reason} ({detail})") }
            },
        )
        .collect::<Vec<_>>()
        .join(", ")
}

/// The pod in an object that makes pods, and whether it is itself one.
fn pod_in<'a>(ctx: &RequestContext, object: &'a Value) -> Option<(&'a Value, bool)> {
    let template = |object: &'a Value| Some((object, false)).filter(|(o, _)| o["spec"].is_object());
    match (ctx.group.as_str(), ctx.plural.as_str()) {
        ("", "pods") => Some((object, true)),
        ("", "podtemplates") => template(&object["template"]),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => template(&object["spec"]["template"]),
        ("batch", "cronjobs") => template(&object["spec"]["jobTemplate"]["spec"]["template"]),
        _ => None,
    }
}

/// Whether the change of a pod could matter: other images, or other containers.
fn matters(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| -> Vec<(String, String)> {
        let all = pod["spec"][list].items().iter();
        all.map(|c| (c["name"].text().to_owned(), c["image"].text().to_owned())).collect()
    };
    new["spec"]["os"] != old["spec"]["os"]
        || ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .any(|list| images(new, list) != images(old, list))
}

/// Refuses a pod below the enforced standard, records and warns of what is below the others.
pub fn validate(
    registry: &Registry,
    ctx: &RequestContext,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if !matches!(operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if ctx.is("", "namespaces") && ctx.subresource.is_empty() {
        return namespace(registry, ctx, object, old);
    }
    let looked_at = ctx.subresource.is_empty()
        || (ctx.is("", "pods") && ctx.subresource == "ephemeralcontainers");
    let Some((pod, itself)) = pod_in(ctx, object).filter(|_| looked_at) else { return Ok(()) };
    let Some(namespace) = registry.get("", "namespaces", "", &ctx.namespace) else {
        return Ok(());
    };
    if let Some(old) = old.filter(|_| itself)
        && !matters(object, old)
    {
        return Ok(());
    }
    let standard = |mode: &str| Standard::of(|key| namespace.labels.get(key), mode);
    if itself {
        let enforced = standard("enforce");
        ctx.annotate(&format!("{PREFIX}enforce-policy"), enforced.to_string());
        let violations = enforced.violations(pod);
        if !violations.is_empty() {
            let why = format!("violates PodSecurity \"{enforced}\": {}", detail(&violations));
            audit(ctx, &standard("audit"), pod);
            return Err(Status::forbidden("", "pods", meta::name(object), &why));
        }
    }
    audit(ctx, &standard("audit"), pod);
    let warned = standard("warn");
    let violations = warned.violations(pod);
    if !violations.is_empty() {
        let text = detail(&violations);
        ctx.warnings.add(format!("would violate PodSecurity \"{warned}\": {text}"));
    }
    Ok(())
}

fn audit(ctx: &RequestContext, standard: &Standard, pod: &Value) {
    let violations = standard.violations(pod);
    if !violations.is_empty() {
        let text = format!("would violate PodSecurity \"{standard}\": {}", detail(&violations));
        ctx.annotate(&format!("{PREFIX}audit-violations"), text);
    }
}

/// The labels must be right; when more is enforced than before, the pods that are there already are
/// told of.
fn namespace(
    registry: &Registry,
    ctx: &RequestContext,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let labels = meta::labels(object);
    let errors = mistakes(&labels);
    let before = old.map(meta::labels);
    // Who does not touch the labels is not held up by them.
    let ours = |labels: &BTreeMap<String, String>| -> Vec<(String, String)> {
        let all = labels.iter().filter(|(key, _)| key.starts_with(PREFIX));
        all.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let changed = before.as_ref().is_none_or(|before| ours(before) != ours(&labels));
    if !errors.is_empty() && changed {
        return Err(Status::invalid("", "Namespace", meta::name(object), &errors));
    }
    let Some(before) = before else { return Ok(()) };
    let (old, new) = (
        Standard::of(|key| before.get(key).map(String::as_str), "enforce"),
        Standard::of(|key| labels.get(key).map(String::as_str), "enforce"),
    );
    if old == new || new.level == "privileged" {
        return Ok(());
    }
    let loosened = old.version == new.version && old.level == "restricted";
    if loosened {
        return Ok(());
    }
    existing(registry, ctx, meta::name(object), &new);
    Ok(())
}

/// Warns of pods in the namespace that are below its new standard.
fn existing(registry: &Registry, ctx: &RequestContext, namespace: &str, standard: &Standard) {
    let pods = registry.list("", "pods", Some(namespace));
    // Pods of one controller are alike, so one of them speaks for all.
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().take(EXISTING_PODS) {
        let pod = pod.to_value();
        let reasons: Vec<String> =
            standard.violations(&pod).into_iter().map(|(reason, _)| reason).collect();
        if !reasons.is_empty() {
            found.entry(reasons.join(", ")).or_default().push(meta::name(&pod).to_owned());
        }
    }
    if found.is_empty() {
        return;
    }
    ctx.warnings.add(format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
    ));
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, mut names)| {
            names.sort();
            let others = match names.len() - 1 {
                0 => String::new(),
                1 => " (and 1 other pod)".into(),
                count => format!(" (and {count} other pods)"),
            };
            format!("{}{others}: {reasons}", names[0])
        })
        .collect();
    lines.sort();
    for line in lines {
        ctx.warnings.add(line);
    }
}

fn mistakes(labels: &BTreeMap<String, String>) -> Vec<Error> {
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("{PREFIX}{mode}");
        let path = |key: &str| Path::new("metadata").child("labels").key(key);
        if let Some(level) = labels.get(&key)
            && !matches!(level.as_str(), "privileged" | "baseline" | "restricted")
        {
            let detail = "must be one of privileged, baseline, restricted";
            errors.push(Error::invalid(&path(&key), level.as_str(), detail));
        }
        let key = format!("{key}-version");
        if let Some(version) = labels.get(&key).filter(|version| minor(version).is_none()) {
            let detail = "must be \"latest\" or \"v1.x\"";
            errors.push(Error::invalid(&path(&key), version.as_str(), detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tests::Fixture;

    #[test]
    fn versions_are_read() {
        let cases = [
            ("latest", Some(36)),
            ("v1.25", Some(25)),
            ("v1.99", Some(99)),
            ("1.25", None),
            ("v1.025", None),
            ("v2.0", None),
        ];
        for (version, want) in cases {
            assert_eq!(minor(version), want, "{version}");
        }
    }

    fn label(enforce: &str, warn: &str) -> Value {
        json!({"metadata": {"labels": {
            format!("{PREFIX}enforce"): enforce, format!("{PREFIX}warn"): warn}}})
    }

    #[tokio::test]
    async fn a_namespaces_labels_decide() {
        let f = Fixture::new().await;
        let account = json!({"metadata": {"name": "default"}});
        f.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        let own = "/api/v1/namespaces/default";
        let wrong = f.patch(own, "merge", &label("strict", "restricted")).await;
        assert_eq!(wrong.code, 422, "{}", wrong.body);
        assert_eq!(f.patch(own, "merge", &label("baseline", "restricted")).await.code, 200);
        let pod = |name: &str, host: bool| {
            json!({"metadata": {"name": name}, "spec": {"hostNetwork": host,
                "containers": [{"name": "c", "image": "x"}]}})
        };
        let pods = "/api/v1/namespaces/default/pods";
        let refused = f.post(pods, &pod("a", true)).await;
        assert_eq!(
            (refused.code.as_u16(), &refused.body["message"]),
            (
                403,
                &json!(
                    "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
                )
            )
        );
        let warned = f.post(pods, &pod("b", false)).await;
        assert_eq!(warned.code, 201, "{}", warned.body);
        let warning = warned.headers["warning"].to_str().expect("text");
        assert!(warning.starts_with("299 - \"would violate PodSecurity \\\"restricted:latest\\\": allowPrivilegeEscalation"), "{warning}");
        let deployment = json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        let made = f.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await;
        assert_eq!(made.code, 201, "{}", made.body);
        assert!(made.headers.contains_key("warning"));
        let tightened = f.patch(own, "merge", &label("restricted", "restricted")).await;
        let warnings: Vec<&str> = tightened
            .headers
            .get_all("warning")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        assert_eq!(
            warnings,
            [
                r#"299 - "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"restricted:latest\"""#,
                r#"299 - "b: allowPrivilegeEscalation != false, unrestricted capabilities, runAsNonRoot != true, seccompProfile""#,
            ]
        );
    }
}
