//! PodSecurity: the namespace's label `pod-security.kubernetes.io/enforce` refuses pods that ask for
//! more than its level gives; `warn` only tells.
//!
//! Source: <https://kubernetes.io/docs/concepts/security/pod-security-standards/>.

use apimachinery::Status;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::zero::Zero;

const PREFIX: &str = "pod-security.kubernetes.io/";
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: [&str; 9] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_syncookies",
];
const RESTRICTED_VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Refuses a pod above the enforced level, and warns above the warned one.
pub fn validate(registry: &Registry, ctx: &RequestContext, pod: &Value) -> Result<(), Status> {
    let Some(namespace) = registry.get("", "namespaces", "", &ctx.namespace) else {
        return Ok(());
    };
    let label = |mode: &str| {
        let key = format!("{PREFIX}{mode}");
        let version = namespace.labels.get(&format!("{key}-version"));
        let level = namespace.labels.get(&key)?.as_str();
        Some((level.to_owned(), version.map_or("latest", String::as_str).to_owned()))
    };
    if let Some((level, version)) = label("enforce") {
        let violations = violations(&level, pod);
        if !violations.is_empty() {
            let why =
                format!("violates PodSecurity \"{level}:{version}\": {}", violations.join(", "));
            return Err(Status::forbidden("", "pods", pod["metadata"]["name"].text(), &why));
        }
    }
    if let Some((level, version)) = label("warn") {
        let violations = violations(&level, pod);
        if !violations.is_empty() {
            let text = violations.join(", ");
            ctx.warnings.add(format!("would violate PodSecurity \"{level}:{version}\": {text}"));
        }
    }
    Ok(())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].items())
}

fn violations(level: &str, pod: &Value) -> Vec<String> {
    let mut all = Vec::new();
    if matches!(level, "baseline" | "restricted") {
        baseline(pod, level == "restricted", &mut all);
    }
    if level == "restricted" {
        restricted(pod, &mut all);
    }
    all
}

/// `container "a"` or `containers "a", "b"`, of those for which `test` holds.
fn named(pod: &Value, test: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> = containers(pod)
        .filter(|container| test(container))
        .map(|container| format!("{:?}", container["name"].text()))
        .collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("container {one}")),
        _ => Some(format!("containers {}", names.join(", "))),
    }
}

fn baseline(pod: &Value, restricted: bool, all: &mut Vec<String>) {
    let spec = &pod["spec"];
    let flags: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|flag| spec[**flag].flag())
        .map(|flag| format!("{flag}=true"))
        .collect();
    if !flags.is_empty() {
        all.push(format!("host namespaces ({})", flags.join(", ")));
    }
    if let Some(names) = named(pod, |c| c["securityContext"]["privileged"].flag()) {
        all.push(format!("privileged ({names} must not set securityContext.privileged=true)"));
    }
    if !restricted {
        let added = |c: &Value| {
            c["securityContext"]["capabilities"]["add"]
                .texts()
                .any(|cap| !BASELINE_CAPABILITIES.contains(&cap.trim_start_matches("CAP_")))
        };
        if let Some(names) = named(pod, added) {
            all.push(format!("non-default capabilities ({names} must not include added capabilities in securityContext.capabilities.add)"));
        }
    }
    let volumes: Vec<String> = spec["volumes"]
        .items()
        .iter()
        .filter(|volume| volume["hostPath"].is_set())
        .map(|volume| format!("{:?}", volume["name"].text()))
        .collect();
    if !volumes.is_empty() && !restricted {
        let word = if volumes.len() == 1 { "volume" } else { "volumes" };
        all.push(format!("hostPath volumes ({word} {})", volumes.join(", ")));
    }
    let host_port = |c: &Value| c["ports"].items().iter().any(|port| port["hostPort"].int() != 0);
    if let Some(names) = named(pod, host_port) {
        all.push(format!("hostPort ({names} uses hostPort)"));
    }
    let unmasked = |c: &Value| c["securityContext"]["procMount"] == "Unmasked";
    if let Some(names) = named(pod, unmasked) {
        all.push(format!(
            "procMount ({names} must not set securityContext.procMount to \"Unmasked\")"
        ));
    }
    let unconfined = |context: &Value| context["seccompProfile"]["type"] == "Unconfined";
    if !restricted
        && (unconfined(&spec["securityContext"])
            || containers(pod).any(|c| unconfined(&c["securityContext"])))
    {
        all.push(
            "seccompProfile (must not set securityContext.seccompProfile.type to \"Unconfined\")"
                .into(),
        );
    }
    let sysctls: Vec<&str> = spec["securityContext"]["sysctls"]
        .items()
        .iter()
        .map(|sysctl| sysctl["name"].text())
        .filter(|name| !SAFE_SYSCTLS.contains(name))
        .collect();
    if !sysctls.is_empty() {
        all.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
}

fn restricted(pod: &Value, all: &mut Vec<String>) {
    let spec = &pod["spec"];
    if let Some(names) =
        named(pod, |c| c["securityContext"]["allowPrivilegeEscalation"].as_bool() != Some(false))
    {
        all.push(format!("allowPrivilegeEscalation != false ({names} must set securityContext.allowPrivilegeEscalation=false)"));
    }
    let unlimited = |c: &Value| {
        let capabilities = &c["securityContext"]["capabilities"];
        !capabilities["drop"].texts().any(|cap| cap == "ALL")
            || capabilities["add"].texts().any(|cap| cap != "NET_BIND_SERVICE")
    };
    if let Some(names) = named(pod, unlimited) {
        all.push(format!("unrestricted capabilities ({names} must set securityContext.capabilities.drop=[\"ALL\"])"));
    }
    for volume in spec["volumes"].items() {
        let kind = volume.entries().find(|(key, value)| *key != "name" && value.is_set());
        if let Some((kind, _)) = kind.filter(|(k, _)| !RESTRICTED_VOLUMES.contains(&k.as_str())) {
            all.push(format!(
                "restricted volume types (volume {:?} uses restricted volume type {kind:?})",
                volume["name"].text()
            ));
        }
    }
    let context = &spec["securityContext"];
    let may_be_root = |c: &Value| {
        let own = c["securityContext"]["runAsNonRoot"].as_bool();
        own.or_else(|| context["runAsNonRoot"].as_bool()) != Some(true)
    };
    if let Some(names) = named(pod, may_be_root) {
        all.push(format!(
            "runAsNonRoot != true (pod or {names} must set securityContext.runAsNonRoot=true)"
        ));
    }
    if context["runAsUser"].as_i64() == Some(0) {
        all.push("runAsUser=0 (pod must not set runAsUser=0)".into());
    } else if let Some(names) =
        named(pod, |c| c["securityContext"]["runAsUser"].as_i64() == Some(0))
    {
        all.push(format!("runAsUser=0 ({names} must not set runAsUser=0)"));
    }
    let loose = |c: &Value| {
        let own = c["securityContext"]["seccompProfile"]["type"].text();
        let kind = if own.is_empty() { context["seccompProfile"]["type"].text() } else { own };
        !matches!(kind, "RuntimeDefault" | "Localhost")
    };
    if let Some(names) = named(pod, loose) {
        all.push(format!("seccompProfile (pod or {names} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_build_on_one_another() {
        let pod = |spec: Value| json!({"spec": spec});
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let strict = pod(json!({"containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}}]}));
        let root = pod(json!({"hostNetwork": true, "containers": [{"name": "c",
            "securityContext": {"privileged": true}}], "volumes": [{"name": "v", "hostPath": {}}]}));
        let cases = [
            ("privileged", &root, 0),
            ("baseline", &root, 3),
            ("baseline", &plain, 0),
            ("restricted", &plain, 4),
            ("restricted", &strict, 0),
        ];
        for (level, pod, want) in cases {
            assert_eq!(violations(level, pod).len(), want, "{level} {pod}");
        }
        assert_eq!(
            violations("baseline", &root)[1],
            "privileged (container \"c\" must not set securityContext.privileged=true)"
        );
    }
}
