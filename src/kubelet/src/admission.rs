//! Whether the node takes a pod that was bound to it. Pure.
//!
//! Source of behaviour: `pkg/kubelet/lifecycle/predicate.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::status::Waiting;
use crate::{pod, quantity, resources};

/// What people have written on the node.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
}

/// The node as admission sees it.
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is written on it.
    pub marks: &'a Marks,
    /// What pods may use.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// Refuses `of` with the reason of its failure, given the pods the node runs already.
pub fn admit(of: &Pod, node: &Node<'_>, others: &[Arc<Pod>]) -> Result<(), Waiting> {
    fits(of, node.allocatable, others)?;
    selects(of, node, others)
}

/// Refuses `of` for what no room would change: the node's labels and taints, and ports that others have.
pub fn selects(of: &Pod, node: &Node<'_>, others: &[Arc<Pod>]) -> Result<(), Waiting> {
    let refuse = |reason: &str, message: String| Err(Waiting { reason: reason.into(), message });
    if !selected(of, node) {
        return refuse(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .into(),
        );
    }
    let wanted = host_ports(of);
    let taken = others
        .iter()
        .flat_map(|p| host_ports(p))
        .any(|other| wanted.iter().any(|w| clash(w, &other)));
    if taken {
        return refuse(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
        );
    }
    // Static pods are the node's own.
    if !pod::is_static(of) && !endures(of, &node.marks.taints) {
        return refuse(
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
                .into(),
        );
    }
    Ok(())
}

/// Whether a refusal is one for what is written on the node.
pub fn is_of_marks(refusal: &Waiting) -> bool {
    matches!(refusal.reason.as_str(), "NodeAffinity" | "TaintToleration")
}

/// Whether the pod may stay where these taints are.
fn endures(of: &Pod, taints: &[Taint]) -> bool {
    taints.iter().all(|taint| taint.effect != "NoExecute" || tolerates(of, taint))
}

/// Whether the pod tolerates the taint.
pub fn tolerates(of: &Pod, taint: &Taint) -> bool {
    let tolerations = of.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
    tolerations.unwrap_or_default().iter().any(|toleration| client::tolerates(toleration, taint))
}

/// A resource of which too little is left for a pod; amounts in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The resource.
    pub resource: String,
    requested: i128,
    used: i128,
    capacity: i128,
}

impl Shortage {
    /// What is missing.
    pub fn missing(&self) -> i128 {
        self.requested - (self.capacity - self.used)
    }

    fn refusal(&self) -> Waiting {
        let Self { resource, requested, used, capacity } = self;
        let unit = if resource == "cpu" { 1 } else { 1_000 };
        Waiting {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {}, used: {}, capacity: {}",
                requested / unit,
                used / unit,
                capacity / unit
            ),
        }
    }
}

/// What the node lacks for `of` beside the others, of all that it has at all.
pub fn shortages(
    of: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    others: &[Arc<Pod>],
) -> Vec<Shortage> {
    const FIRST: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
    let mut short = Vec::new();
    let mut compare = |resource: &str, requested: i128, used: i128, capacity: i128| {
        if requested > 0 && used + requested > capacity {
            short.push(Shortage { resource: resource.to_owned(), requested, used, capacity });
        }
    };
    let pods = allocatable.get("pods").and_then(quantity::milli).unwrap_or(110_000);
    compare("pods", 1_000, others.len() as i128 * 1_000, pods);
    let rest = allocatable.keys().map(String::as_str);
    let rest = rest.filter(|name| *name != "pods" && !FIRST.contains(name));
    for resource in FIRST.into_iter().chain(rest) {
        let Some(capacity) = allocatable.get(resource).and_then(quantity::milli) else {
            continue;
        };
        let used = others.iter().map(|p| resources::pod_request_milli(p, resource)).sum();
        compare(resource, resources::pod_request_milli(of, resource), used, capacity);
    }
    short
}

/// Refuses `of` if the node has not what it asks for beside the others.
pub fn fits(
    of: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    others: &[Arc<Pod>],
) -> Result<(), Waiting> {
    shortages(of, allocatable, others).first().map_or(Ok(()), |short| Err(short.refusal()))
}

/// Sysctls that a pod may set because they are its own alone
/// (`pkg/kubelet/sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [&str; 12] = [
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

/// The name of a sysctl with dots between its parts, as runtimes know it; one that was written as a path has slashes
/// there, and dots within its parts.
pub fn sysctl_name(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|at| name[at..].starts_with('.')) {
        return name.to_owned();
    }
    let swapped = name.chars().map(|letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    swapped.collect()
}

/// What the node can give of a security context.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Sysctls allowed beside the safe ones; a `*` at the end stands for anything.
    pub sysctls: Vec<String>,
    /// Whether the kernel has AppArmor on.
    pub apparmor: bool,
}

/// Refuses a pod for another system, or whose security context the node cannot give: nothing of it is ever left out silently.
pub fn secure(of: &Pod, can: &Security) -> Result<(), Waiting> {
    let refuse = |reason: &str, message: String| Err(Waiting { reason: reason.into(), message });
    let label = of.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let message =
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return refuse("PodOSSelectorNodeLabelDoesNotMatch", message.into());
    }
    let os = of.spec.as_ref().and_then(|spec| spec.os.as_ref());
    if os.is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", message.into());
    }
    let context = of.spec.as_ref().and_then(|s| s.security_context.as_ref());
    for sysctl in context.and_then(|c| c.sysctls.as_deref()).unwrap_or_default() {
        let name = sysctl_name(&sysctl.name);
        let listed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !can.sysctls.iter().any(listed) {
            let message = format!("forbidden sysctl: {:?} not allowlisted", sysctl.name);
            return refuse("SysctlForbidden", message);
        }
    }
    let of_pod = context.and_then(|c| c.app_armor_profile.clone());
    let containers = pod::all_containers(of);
    let profiles = containers.into_iter().map(|(_, c)| {
        let own = c.security_context.and_then(|s| s.app_armor_profile);
        own.or_else(|| of_pod.clone())
    });
    for profile in profiles.flatten().filter(|p| p.type_ != "Unconfined") {
        let why = if !can.apparmor {
            "AppArmor is not enabled on the host"
        } else if profile.type_ == "RuntimeDefault" {
            "the runtime's default profile is not loaded, which takes the host's root"
        } else {
            continue;
        };
        return refuse("AppArmor", format!("Cannot enforce AppArmor: {why}"));
    }
    Ok(())
}

fn host_ports(of: &Pod) -> Vec<(i32, String, String)> {
    let ports = pod::containers(of)
        .iter()
        .chain(pod::init_containers(of))
        .flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            let ip =
                p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            Some((port, protocol, ip))
        })
        .collect()
}

fn clash(a: &(i32, String, String), b: &(i32, String, String)) -> bool {
    a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2 == "0.0.0.0" || b.2 == "0.0.0.0")
}

fn selected(of: &Pod, node: &Node<'_>) -> bool {
    let Some(spec) = &of.spec else { return true };
    let simple =
        spec.node_selector.iter().flatten().all(|(k, v)| node.marks.labels.get(k) == Some(v));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required =
        affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    simple && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term(t, node)))
}

fn term(term: &NodeSelectorTerm, node: &Node<'_>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement(r, node.marks.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| requirement(r, (r.key == "metadata.name").then_some(node.name)))
}

fn requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|x| x == v));
    let compare = |f: fn(i64, i64) -> bool| {
        let left = value.and_then(|v| v.parse().ok());
        let right = values.first().and_then(|v| v.parse().ok());
        matches!((left, right), (Some(l), Some(r)) if f(l, r))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|l, r| l > r),
        "Lt" => compare(|l, r| l < r),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
    }

    fn cpu(amount: &str) -> Pod {
        pod(
            serde_json::json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]}),
        )
    }

    #[test]
    fn refusals_are_upstreams() {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("2".into()))]);
        let taint = |effect: &str| Taint {
            key: "k".into(),
            effect: effect.into(),
            value: Some("v".into()),
            ..Taint::default()
        };
        let mut marks = Marks { labels, taints: vec![taint("NoSchedule")] };
        let node = Node { name: "n", marks: &marks, allocatable: &allocatable };
        let port = |port: i32| {
            pod(
                serde_json::json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port}]}]}),
            )
        };
        let on = |value: &str| {
            pod(serde_json::json!({"containers": [], "nodeSelector": {"disk": value}}))
        };
        for (of, others, reason) in [
            (cpu("1"), vec![cpu("1")], None),
            (cpu("1500m"), vec![cpu("1")], Some("OutOfcpu")),
            (on("ssd"), vec![], None),
            (on("hdd"), vec![], Some("NodeAffinity")),
            (port(80), vec![port(81)], None),
            (port(80), vec![port(80)], Some("NodePorts")),
        ] {
            let others: Vec<Arc<Pod>> = others.into_iter().map(Arc::new).collect();
            let got = admit(&of, &node, &others);
            assert_eq!(got.as_ref().err().map(|w| w.reason.as_str()), reason);
            if reason == Some("OutOfcpu") {
                assert_eq!(
                    got.unwrap_err().message,
                    "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"
                );
            }
        }
        marks.taints.push(taint("NoExecute"));
        let node = Node { name: "n", marks: &marks, allocatable: &allocatable };
        let bears = |toleration: serde_json::Value| {
            pod(serde_json::json!({"containers": [], "tolerations": [toleration]}))
        };
        let mut own = bears(serde_json::json!({}));
        own.metadata.annotations =
            Some(BTreeMap::from([("kubernetes.io/config.source".to_owned(), "file".to_owned())]));
        assert!(admit(&own, &node, &[]).is_ok());
        for (toleration, taken) in [
            (serde_json::json!({"operator": "Exists"}), true),
            (serde_json::json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), true),
            (serde_json::json!({"key": "k", "value": "v"}), true),
            (serde_json::json!({"key": "k", "value": "w"}), false),
            (serde_json::json!({"key": "j", "operator": "Exists"}), false),
            (serde_json::json!({"operator": "Exists", "effect": "NoSchedule"}), false),
        ] {
            let of = bears(toleration);
            let refusal = admit(&of, &node, &[]).err().map(|why| why.reason);
            assert_eq!(refusal.is_none(), taken, "{of:?}");
            assert!(refusal.is_none_or(|reason| reason == "TaintToleration"));
        }
    }

    #[test]
    fn names_of_sysctls_have_dots() {
        for (name, want) in [
            ("kernel.shm_rmid_forced", "kernel.shm_rmid_forced"),
            ("kernel/shm_rmid_forced", "kernel.shm_rmid_forced"),
            ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
            ("odd", "odd"),
        ] {
            assert_eq!(sysctl_name(name), want);
        }
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let sysctl = |name: &str| {
            pod(
                serde_json::json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}),
            )
        };
        let profile = |kind: &str| {
            pod(
                serde_json::json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]}),
            )
        };
        let none = Security::default();
        let all = Security { sysctls: vec!["kernel.msg*".into()], apparmor: true };
        let refused = |of: Pod, can: &Security, message: Option<&str>| {
            assert_eq!(secure(&of, can).err().map(|w| w.message).as_deref(), message);
        };
        let windows = pod(serde_json::json!({"containers": [], "os": {"name": "windows"}}));
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        refused(windows, &none, Some(message));
        refused(sysctl("net.ipv4.tcp_syncookies"), &none, None);
        refused(sysctl("kernel/shm_rmid_forced"), &none, None);
        let message = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        refused(sysctl("kernel.msgmax"), &none, Some(message));
        refused(sysctl("kernel.msgmax"), &all, None);
        refused(profile("Unconfined"), &none, None);
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        refused(profile("Localhost"), &none, Some(message));
        refused(profile("Localhost"), &all, None);
    }
}
