//! The controls of the pod security standards, each with the release that began it.
//!
//! Source: `k8s.io/pod-security-admission/policy`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::zero::Zero;

/// What a control says against a pod: in short, and in detail.
pub type Violation = (String, String);

type Test = fn(&Value) -> Option<Violation>;

/// A control at one level: its name, the first minor release of 1 with this form of it, its test, and
/// the baseline control that it takes the place of.
struct Check {
    name: &'static str,
    since: u32,
    test: Test,
    replaces: &'static str,
}

const fn check(name: &'static str, since: u32, test: Test) -> Check {
    Check { name, since, test, replaces: "" }
}

/// In upstream's order, which is that of the names; later forms of one control come later.
const BASELINE: &[Check] = &[
    check("appArmorProfile", 0, app_armor),
    check("capabilities_baseline", 0, capabilities_baseline),
    check("hostNamespaces", 0, host_namespaces),
    check("hostPathVolumes", 0, host_path_volumes),
    check("hostPorts", 0, host_ports),
    check("hostProbesAndHostLifecycle", 34, host_probes),
    check("privileged", 0, privileged),
    check("procMount", 0, proc_mount),
    check("seLinuxOptions", 0, |pod| selinux(pod, &SELINUX_TYPES[..3])),
    check("seLinuxOptions", 31, |pod| selinux(pod, &SELINUX_TYPES)),
    check("seccompProfile_baseline", 19, seccomp_baseline),
    check("sysctls", 0, |pod| sysctls(pod, &SYSCTLS[..5])),
    check("sysctls", 27, |pod| sysctls(pod, &SYSCTLS[..6])),
    check("sysctls", 29, |pod| sysctls(pod, &SYSCTLS[..10])),
    check("sysctls", 32, |pod| sysctls(pod, &SYSCTLS)),
    check("windowsHostProcess", 0, host_process),
];

const RESTRICTED: &[Check] = &[
    check("allowPrivilegeEscalation", 8, escalation),
    check("allowPrivilegeEscalation", 25, |pod| unless_windows(pod, escalation)),
    Check {
        replaces: "capabilities_baseline",
        ..check("capabilities_restricted", 22, capabilities_restricted)
    },
    Check {
        replaces: "capabilities_baseline",
        ..check("capabilities_restricted", 25, |pod| unless_windows(pod, capabilities_restricted))
    },
    Check { replaces: "hostPathVolumes", ..check("restrictedVolumes", 0, restricted_volumes) },
    check("runAsNonRoot", 0, run_as_non_root),
    check("runAsUser", 23, run_as_user),
    Check {
        replaces: "seccompProfile_baseline",
        ..check("seccompProfile_restricted", 19, seccomp_restricted)
    },
    Check {
        replaces: "seccompProfile_baseline",
        ..check("seccompProfile_restricted", 25, |pod| unless_windows(pod, seccomp_restricted))
    },
];

/// The forms of `checks` that hold at `minor`, one of each control.
fn at(checks: &'static [Check], minor: u32) -> Vec<&'static Check> {
    let mut found: Vec<&Check> = Vec::new();
    for check in checks.iter().filter(|check| check.since <= minor) {
        match found.last_mut().filter(|last| last.name == check.name) {
            Some(last) => *last = check,
            None => found.push(check),
        }
    }
    found
}

/// What the standard `restricted`, or else `baseline`, of release 1.`minor` says against a pod.
pub fn violations(restricted: bool, minor: u32, pod: &Value) -> Vec<Violation> {
    let strict = if restricted { at(RESTRICTED, minor) } else { Vec::new() };
    at(BASELINE, minor)
        .into_iter()
        .filter(|check| !strict.iter().any(|other| other.replaces == check.name))
        .chain(strict.iter().copied())
        .filter_map(|check| (check.test)(pod))
        .collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| pod["spec"][list].items())
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

fn plural(count: usize, one: &str, many: &str) -> String {
    if count == 1 { one } else { many }.to_owned()
}

/// `container "a"` or `containers "a", "b"`.
fn told(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names.iter().copied()))
}

/// The names of the containers for which `test` holds.
fn named(pod: &Value, test: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(pod).filter(|container| test(container)).map(|c| c["name"].text()).collect()
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some((reason.to_owned(), detail))
}

fn unless_windows(pod: &Value, test: Test) -> Option<Violation> {
    if pod["spec"]["os"]["name"] == "windows" { None } else { test(pod) }
}

/// Who sets something bad: the pod itself, containers, or both.
fn setters(pod_sets: bool, names: &[&str]) -> Option<String> {
    let mut all = Vec::new();
    if pod_sets {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(told(names));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

fn app_armor(pod: &Value) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    fn bad(context: &Value) -> Option<&str> {
        let kind = context["appArmorProfile"]["type"].text();
        (!matches!(kind, "" | "RuntimeDefault" | "Localhost")).then_some(kind)
    }
    let own = bad(&pod["spec"]["securityContext"]);
    let names = named(pod, |c| bad(&c["securityContext"]).is_some());
    let values: BTreeSet<&str> =
        own.into_iter().chain(containers(pod).filter_map(|c| bad(&c["securityContext"]))).collect();
    let mut values: Vec<String> = values.into_iter().map(str::to_owned).collect();
    let mut annotations: Vec<String> = pod["metadata"]["annotations"]
        .entries()
        .filter(|(key, value)| {
            let value = value.text();
            let fine = matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
            key.starts_with(ANNOTATION) && !fine
        })
        .map(|(key, value)| format!("{key}={:?}", value.text()))
        .collect();
    annotations.sort();
    let mut who: Vec<String> = setters(own.is_some(), &names).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural(annotations.len(), "annotation", "annotations"));
        values.extend(annotations);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    let detail = format!(
        "{} must not set AppArmor profile type to {}",
        who.join(" and "),
        quoted(values.iter().map(String::as_str))
    );
    violation(&reason, detail)
}

const CAPABILITIES: [&str; 13] = [
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

fn added<'a>(container: &'a Value, allowed: &'static [&'static str]) -> Vec<&'a str> {
    container["securityContext"]["capabilities"]["add"]
        .texts()
        .filter(|capability| !allowed.contains(capability))
        .collect()
}

fn capabilities_beyond(pod: &Value, allowed: &'static [&'static str]) -> Option<String> {
    let names = named(pod, |c| !added(c, allowed).is_empty());
    let capabilities: BTreeSet<&str> = containers(pod).flat_map(|c| added(c, allowed)).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            told(&names),
            quoted(capabilities)
        )
    })
}

fn capabilities_baseline(pod: &Value) -> Option<Violation> {
    violation("non-default capabilities", capabilities_beyond(pod, &CAPABILITIES)?)
}

fn capabilities_restricted(pod: &Value) -> Option<Violation> {
    let keeps = |c: &Value| {
        !c["securityContext"]["capabilities"]["drop"].texts().any(|capability| capability == "ALL")
    };
    let names = named(pod, keeps);
    let mut details = Vec::new();
    if !names.is_empty() {
        details
            .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", told(&names)));
    }
    details.extend(capabilities_beyond(pod, &["NET_BIND_SERVICE"]));
    if details.is_empty() {
        return None;
    }
    violation("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Value) -> Option<Violation> {
    let flags: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|flag| pod["spec"][**flag].flag())
        .map(|flag| format!("{flag}=true"))
        .collect();
    if flags.is_empty() { None } else { violation("host namespaces", flags.join(", ")) }
}

fn host_path_volumes(pod: &Value) -> Option<Violation> {
    let names: Vec<&str> = pod["spec"]["volumes"]
        .items()
        .iter()
        .filter(|volume| volume["hostPath"].is_set())
        .map(|volume| volume["name"].text())
        .collect();
    if names.is_empty() {
        return None;
    }
    let word = plural(names.len(), "volume", "volumes");
    violation("hostPath volumes", format!("{word} {}", quoted(names)))
}

fn host_ports(pod: &Value) -> Option<Violation> {
    let ports = |c: &Value| -> Vec<i64> {
        let all = c["ports"].items().iter().map(|port| port["hostPort"].int());
        all.filter(|port| *port != 0).collect()
    };
    let names = named(pod, |c| !ports(c).is_empty());
    let all: BTreeSet<String> =
        containers(pod).flat_map(ports).map(|port| port.to_string()).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        told(&names),
        plural(names.len(), "uses", "use"),
        plural(all.len(), "hostPort", "hostPorts"),
        all.into_iter().collect::<Vec<_>>().join(", ")
    );
    violation("hostPort", detail)
}

fn host_probes(pod: &Value) -> Option<Violation> {
    let hosts = |c: &Value| -> Vec<String> {
        ["livenessProbe", "readinessProbe", "startupProbe"]
            .iter()
            .map(|probe| &c[*probe])
            .chain(["postStart", "preStop"].iter().map(|hook| &c["lifecycle"][*hook]))
            .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
            .map(|host| host.text().to_owned())
            .filter(|host| !host.is_empty())
            .collect()
    };
    let names = named(pod, |c| !hosts(c).is_empty());
    let all: BTreeSet<String> = containers(pod).flat_map(hosts).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        told(&names),
        plural(names.len(), "uses", "use"),
        plural(all.len(), "probe or lifecycle host", "probe or lifecycle hosts"),
        quoted(all.iter().map(String::as_str))
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Value) -> Option<Violation> {
    let names = named(pod, |c| c["securityContext"]["privileged"].flag());
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.privileged=true", told(&names));
    violation("privileged", detail)
}

fn proc_mount(pod: &Value) -> Option<Violation> {
    let bad = |c: &Value| !matches!(c["securityContext"]["procMount"].text(), "" | "Default");
    let names = named(pod, bad);
    let values: BTreeSet<&str> = containers(pod)
        .filter(|c| bad(c))
        .map(|c| c["securityContext"]["procMount"].text())
        .collect();
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set securityContext.procMount to {}", told(&names), quoted(values));
    violation("procMount", detail)
}

const SELINUX_TYPES: [&str; 4] =
    ["container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn selinux(pod: &Value, types: &[&str]) -> Option<Violation> {
    let options = |context: &Value| context["seLinuxOptions"].clone();
    let bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        let kind = options["type"].text();
        !(kind.is_empty() || types.contains(&kind))
            || !options["user"].text().is_empty()
            || !options["role"].text().is_empty()
    };
    let own = bad(&pod["spec"]["securityContext"]);
    let names = named(pod, |c| bad(&c["securityContext"]));
    let who = setters(own, &names)?;
    let all: Vec<Value> = std::iter::once(options(&pod["spec"]["securityContext"]))
        .chain(containers(pod).map(|c| options(&c["securityContext"])))
        .collect();
    let bad_types: BTreeSet<&str> = all
        .iter()
        .map(|options| options["type"].text())
        .filter(|kind| !kind.is_empty() && !types.contains(kind))
        .collect();
    let mut said = Vec::new();
    if !bad_types.is_empty() {
        let word = plural(bad_types.len(), "type", "types");
        said.push(format!("{word} {}", quoted(bad_types)));
    }
    for key in ["user", "role"] {
        if all.iter().any(|options| !options[key].text().is_empty()) {
            said.push(format!("{key} may not be set"));
        }
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", said.join("; "));
    violation("seLinuxOptions", detail)
}

fn seccomp_type(context: &Value) -> Option<&str> {
    context["seccompProfile"].is_object().then(|| context["seccompProfile"]["type"].text())
}

/// Who sets a seccomp profile that is not `fine`.
fn bad_seccomp(pod: &Value, fine: fn(&str) -> bool) -> Option<Violation> {
    let bad = |context: &Value| seccomp_type(context).is_some_and(|kind| !fine(kind));
    let context = &pod["spec"]["securityContext"];
    let names = named(pod, |c| bad(&c["securityContext"]));
    let who = setters(bad(context), &names)?;
    let values: BTreeSet<&str> = std::iter::once(context)
        .chain(containers(pod).map(|c| &c["securityContext"]))
        .filter_map(seccomp_type)
        .filter(|kind| !fine(kind))
        .collect();
    let detail =
        format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
    violation("seccompProfile", detail)
}

fn confined(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

fn seccomp_baseline(pod: &Value) -> Option<Violation> {
    bad_seccomp(pod, |kind| kind.is_empty() || confined(kind))
}

fn seccomp_restricted(pod: &Value) -> Option<Violation> {
    if let Some(bad) = bad_seccomp(pod, confined) {
        return Some(bad);
    }
    if seccomp_type(&pod["spec"]["securityContext"]).is_some() {
        return None;
    }
    let names = named(pod, |c| seccomp_type(&c["securityContext"]).is_none());
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        told(&names)
    );
    violation("seccompProfile", detail)
}

/// In the order in which releases allowed them.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Value, allowed: &[&str]) -> Option<Violation> {
    let bad: Vec<&str> = pod["spec"]["securityContext"]["sysctls"]
        .items()
        .iter()
        .map(|sysctl| sysctl["name"].text())
        .filter(|name| !allowed.contains(name))
        .collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Value) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"].flag();
    let names = named(pod, |c| bad(&c["securityContext"]));
    let who = setters(bad(&pod["spec"]["securityContext"]), &names)?;
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    violation("hostProcess", detail)
}

fn escalation(pod: &Value) -> Option<Violation> {
    let names =
        named(pod, |c| c["securityContext"]["allowPrivilegeEscalation"].as_bool() != Some(false));
    if names.is_empty() {
        return None;
    }
    let detail =
        format!("{} must set securityContext.allowPrivilegeEscalation=false", told(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

fn restricted_volumes(pod: &Value) -> Option<Violation> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in pod["spec"]["volumes"].items() {
        let sources: Vec<&str> = volume
            .entries()
            .filter(|(key, value)| *key != "name" && value.is_set())
            .map(|(key, _)| key.as_str())
            .collect();
        if sources.iter().any(|source| ALLOWED.contains(source)) {
            continue;
        }
        names.push(volume["name"].text());
        kinds.insert(sources.first().copied().unwrap_or("unknown"));
    }
    if names.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural(names.len(), "volume", "volumes"),
        quoted(names.iter().copied()),
        plural(names.len(), "uses", "use"),
        plural(kinds.len(), "restricted volume type", "restricted volume types"),
        quoted(kinds)
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Value) -> Option<Violation> {
    let reason = "runAsNonRoot != true";
    let says = |context: &Value| context["runAsNonRoot"].as_bool();
    let own = says(&pod["spec"]["securityContext"]);
    let names = named(pod, |c| says(&c["securityContext"]) == Some(false));
    if let Some(who) = setters(own == Some(false), &names) {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return violation(reason, detail);
    }
    let silent = named(pod, |c| says(&c["securityContext"]).is_none());
    if own == Some(true) || silent.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", told(&silent));
    violation(reason, detail)
}

fn run_as_user(pod: &Value) -> Option<Violation> {
    let root = |context: &Value| context["runAsUser"].as_i64() == Some(0);
    let names = named(pod, |c| root(&c["securityContext"]));
    let who = setters(root(&pod["spec"]["securityContext"]), &names)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_control_speaks_as_upstreams() {
        let container =
            |context: Value| json!({"containers": [{"name": "a", "securityContext": context}]});
        #[rustfmt::skip]
        let cases = [
            (container(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}})),
                r#"non-default capabilities: container "a" must not include "SYS_ADMIN" in securityContext.capabilities.add"#),
            (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces: hostNetwork=true, hostIPC=true"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), r#"hostPath volumes: volume "v""#),
            (json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 81}]}]}),
                r#"hostPort: container "a" uses hostPorts 80, 81"#),
            (json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
                r#"probe or lifecycle host: container "a" uses probe or lifecycle host "h""#),
            (container(json!({"privileged": true})), r#"privileged: container "a" must not set securityContext.privileged=true"#),
            (container(json!({"procMount": "Unmasked"})),
                r#"procMount: container "a" must not set securityContext.procMount to "Unmasked""#),
            (container(json!({"seLinuxOptions": {"type": "x", "user": "u"}})),
                r#"seLinuxOptions: container "a" set forbidden securityContext.seLinuxOptions: type "x"; user may not be set"#),
            (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                r#"seccompProfile: pod must not set securityContext.seccompProfile.type to "Unconfined""#),
            (json!({"securityContext": {"sysctls": [{"name": "a"}, {"name": "net.ipv4.tcp_rmem"}]}}), "forbidden sysctls: a"),
            (json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                "hostProcess: pod must not set securityContext.windowsOptions.hostProcess=true"),
            (json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
                r#"forbidden AppArmor profile: pod must not set AppArmor profile type to "Unconfined""#),
        ];
        for (spec, want) in cases {
            let said: Vec<String> = violations(false, 36, &json!({"spec": spec}))
                .into_iter()
                .map(|(reason, detail)| format!("{reason}: {detail}"))
                .collect();
            assert_eq!(said, [want], "{spec}");
        }
    }

    #[test]
    fn the_restricted_standard_takes_the_place_of_the_baseline() {
        let plain = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "volumes": [{"name": "v", "hostPath": {}}]}});
        let said: Vec<String> = violations(true, 36, &plain)
            .into_iter()
            .map(|(reason, detail)| format!("{reason} ({detail})"))
            .collect();
        assert_eq!(
            said,
            [
                r#"allowPrivilegeEscalation != false (containers "a", "b" must set securityContext.allowPrivilegeEscalation=false)"#,
                r#"unrestricted capabilities (containers "a", "b" must set securityContext.capabilities.drop=["ALL"])"#,
                r#"restricted volume types (volume "v" uses restricted volume type "hostPath")"#,
                r#"runAsNonRoot != true (pod or containers "a", "b" must set securityContext.runAsNonRoot=true)"#,
                r#"seccompProfile (pod or containers "a", "b" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
            ]
        );
    }

    #[test]
    fn older_standards_ask_for_less() {
        let pod = json!({"spec": {"containers": [{"name": "a"}],
            "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}});
        let count = |restricted, minor| violations(restricted, minor, &pod).len();
        let cases = [
            (false, 36, 0),
            (false, 31, 1),
            (true, 36, 4),
            (true, 21, 4),
            (true, 18, 3),
            (true, 7, 2),
        ];
        for (restricted, minor, want) in cases {
            assert_eq!(count(restricted, minor), want, "{restricted} {minor}");
        }
    }
}
