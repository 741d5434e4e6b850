//! Rules for containers: images, ports, environment, probes, mounts, resources, security.

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::volume::Volumes;
use super::{mistakes, non_negative, one_of, required_one_of, restart};
use crate::zero::Zero;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// What containers of one pod share.
pub struct Pod<'a> {
    /// Its volumes.
    pub volumes: &'a Volumes,
    /// Whether it is in the node's network.
    pub host_network: bool,
    /// Its `restartPolicy`.
    pub restart_policy: &'a str,
    /// Whether its users are the node's.
    pub host_users: bool,
    /// The names of its `resourceClaims`.
    pub claims: &'a [&'a str],
    /// Its `os.name`, or nothing.
    pub os: &'a str,
    /// Its `terminationGracePeriodSeconds`; none where that is missing, which is told elsewhere.
    pub grace_seconds: Option<i64>,
}

/// Which of the three lists a container is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// `containers`
    Main,
    /// `initContainers`
    Init,
    /// `ephemeralContainers`
    Ephemeral,
}

/// All containers of one list; `names` holds those of the lists before.
pub fn validate_list(
    containers: &Value,
    path: &Path,
    list: List,
    pod: &Pod<'_>,
    seen: &mut HashSet<String>,
    errors: &mut ErrorList,
) {
    if list == List::Main && containers.items().is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let others = if list == List::Ephemeral { seen.clone() } else { HashSet::new() };
    for (index, container) in containers.items().iter().enumerate() {
        let path = path.index(index);
        let name = container["name"].text();
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else {
            mistakes(errors, &path.child("name"), name, names::dns_label(name));
            if !seen.insert(name.to_owned()) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
        }
        common(container, &path, pod, errors);
        match list {
            List::Main => main_only(container, &path, pod, errors),
            List::Init => init_only(container, &path, pod, errors),
            List::Ephemeral => ephemeral_only(container, &path, &others, errors),
        }
    }
    match list {
        List::Main => host_ports(containers.items(), path, errors),
        // They run one by one; upstream counts each as the first.
        List::Init => {
            for container in containers.items() {
                host_ports(std::slice::from_ref(container), path, errors);
            }
        }
        List::Ephemeral => {}
    }
}

fn common(container: &Value, path: &Path, pod: &Pod<'_>, errors: &mut ErrorList) {
    let image = container["image"].text();
    if image.is_empty() {
        errors.push(Error::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(Error::invalid(&path.child("image"), image, detail));
    }
    let policy = container["terminationMessagePolicy"].text();
    required_one_of(
        errors,
        &path.child("terminationMessagePolicy"),
        policy,
        &["File", "FallbackToLogsOnError"],
    );
    ports(container["ports"].items(), &path.child("ports"), errors);
    environment(container["env"].items(), &path.child("env"), pod.volumes, errors);
    environment_from(container["envFrom"].items(), &path.child("envFrom"), errors);
    pod.volumes.validate_mounts(container, path, errors);
    required_one_of(
        errors,
        &path.child("imagePullPolicy"),
        container["imagePullPolicy"].text(),
        &PULL_POLICIES,
    );
    resources(&container["resources"], &path.child("resources"), errors);
    super::security::container(
        &container["securityContext"],
        &path.child("securityContext"),
        pod.host_users,
        errors,
    );
    restart::claims(container, &path.child("resources").child("claims"), pod.claims, errors);
    restart::resize_policy(container, &path.child("resizePolicy"), pod.restart_policy, errors);
    restart::rules(container, path, errors);
    if pod.host_network {
        for (index, port) in container["ports"].items().iter().enumerate() {
            if port["hostPort"].int() != port["containerPort"].int() {
                errors.push(Error::invalid(
                    &path.child("ports").index(index).child("hostPort"),
                    port["hostPort"].int(),
                    "must match `containerPort` when `hostNetwork` is true",
                ));
            }
        }
    }
}

fn main_only(container: &Value, path: &Path, pod: &Pod<'_>, errors: &mut ErrorList) {
    lifecycle(&container["lifecycle"], &path.child("lifecycle"), pod, errors);
    probes(container, path, errors);
}

fn probes(container: &Value, path: &Path, errors: &mut ErrorList) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(&container[name], &path.child(name), errors);
        readiness_grace(container, path, name, errors);
        let threshold = &container[name]["successThreshold"];
        if name != "readinessProbe" && threshold.is_set() && threshold.int() != 1 {
            let path = path.child(name).child("successThreshold");
            errors.push(Error::invalid(&path, threshold.int(), "must be 1"));
        }
    }
}

fn init_only(container: &Value, path: &Path, pod: &Pod<'_>, errors: &mut ErrorList) {
    if container["restartPolicy"] == "Always" {
        lifecycle(&container["lifecycle"], &path.child("lifecycle"), pod, errors);
        probes(container, path, errors);
        return;
    }
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if container[name].is_set() {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(Error::forbidden(&path.child(name), detail));
        }
    }
}

/// What ephemeral containers have beside what every container has.
const OF_EPHEMERAL: [&str; 17] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "name",
    "securityContext",
    "stdin",
    "stdinOnce",
    "targetContainerName",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

fn ephemeral_only(
    container: &Value,
    path: &Path,
    others: &HashSet<String>,
    errors: &mut ErrorList,
) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    let target = container["targetContainerName"].text();
    if !target.is_empty() && !others.contains(target) {
        errors.push(Error::not_found(&path.child("targetContainerName"), target));
    }
    for (key, value) in container.entries() {
        let is_empty = match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => key == "resources" && map.is_empty(),
            _ => false,
        };
        if !is_empty && !OF_EPHEMERAL.contains(&key.as_str()) {
            errors.push(Error::forbidden(&path.child(key), DETAIL));
        }
    }
    for (index, mount) in container["volumeMounts"].items().iter().enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if !mount[key].text().is_empty() {
                let at = path.child("volumeMounts").index(index).child(key);
                errors.push(Error::forbidden(&at, DETAIL));
            }
        }
    }
}

fn ports(ports: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port["name"].text();
        if !name.is_empty() {
            let sentences = names::port_name(name);
            if sentences.is_empty() && !seen.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            mistakes(errors, &path.child("name"), name, sentences);
        }
        let number = port["containerPort"].int();
        if number == 0 {
            errors.push(Error::required(&path.child("containerPort"), ""));
        } else {
            port_number(number, &path.child("containerPort"), errors);
        }
        if port["hostPort"].int() != 0 {
            port_number(port["hostPort"].int(), &path.child("hostPort"), errors);
        }
        required_one_of(errors, &path.child("protocol"), port["protocol"].text(), &PROTOCOLS);
    }
}

fn port_number(number: i64, path: &Path, errors: &mut ErrorList) {
    let sentences = names::port_number(number);
    errors.extend(sentences.into_iter().map(|detail| Error::invalid(path, number, detail)));
}

/// A port by number or by name.
pub fn port_reference(port: &Value, path: &Path, errors: &mut ErrorList) {
    match port {
        Value::String(name) => mistakes(errors, path, name, names::port_name(name)),
        other => port_number(other.int(), path, errors),
    }
}

fn host_ports(containers: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (at, port) in container["ports"].items().iter().enumerate() {
            let host = port["hostPort"].int();
            let key = format!("{}/{}/{host}", port["protocol"].text(), port["hostIP"].text());
            if host != 0 && !seen.insert(key.clone()) {
                let path = path.index(index).child("ports").index(at).child("hostPort");
                errors.push(Error::duplicate(&path, key));
            }
        }
    }
}

fn environment(env: &[Value], path: &Path, volumes: &Volumes, errors: &mut ErrorList) {
    for (index, variable) in env.iter().enumerate() {
        let path = path.index(index);
        let name = variable["name"].text();
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else {
            mistakes(errors, &path.child("name"), name, names::env_var_name(name));
        }
        let from = &variable["valueFrom"];
        if from.is_set() {
            value_from(variable, from, &path.child("valueFrom"), volumes, errors);
        }
    }
}

fn value_from(
    variable: &Value,
    from: &Value,
    path: &Path,
    volumes: &Volumes,
    errors: &mut ErrorList,
) {
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given = kinds.iter().filter(|kind| from[**kind].is_set()).count();
    for kind in kinds.iter().filter(|kind| from[**kind].is_set()) {
        let (reference, path) = (&from[*kind], path.child(kind));
        match *kind {
            "fieldRef" => field_reference(
                reference,
                &path,
                &[
                    "metadata.name",
                    "metadata.namespace",
                    "metadata.uid",
                    "spec.nodeName",
                    "spec.serviceAccountName",
                    "status.hostIP",
                    "status.hostIPs",
                    "status.podIP",
                    "status.podIPs",
                ],
                errors,
            ),
            "resourceFieldRef" => resource_reference(reference, &path, false, errors),
            "fileKeyRef" => volumes.validate_file_key(reference, &path, errors),
            _ => {
                let key = reference["key"].text();
                if reference["name"].text().is_empty() {
                    errors.push(Error::required(&path.child("name"), ""));
                }
                if key.is_empty() {
                    errors.push(Error::required(&path.child("key"), ""));
                } else {
                    mistakes(errors, &path.child("key"), key, names::config_map_key(key));
                }
            }
        }
    }
    if !variable["value"].text().is_empty() && given > 0 {
        let detail = "may not be specified when `value` is not empty";
        errors.push(Error::invalid(path, "", detail));
    } else if given == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(Error::invalid(path, "", detail));
    } else if given > 1 {
        let detail = "may not have more than one field specified at a time";
        errors.push(Error::invalid(path, "", detail));
    }
}

/// What a reference could name anywhere (`ConvertDownwardAPIFieldLabel`); each place takes some of them.
const REFERABLE: [&str; 15] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.host",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];

/// A reference to a field of the pod; subscripts go with labels and annotations.
pub fn field_reference(reference: &Value, path: &Path, known: &[&str], errors: &mut ErrorList) {
    let (version, field) = (reference["apiVersion"].text(), reference["fieldPath"].text());
    if version.is_empty() {
        errors.push(Error::required(&path.child("apiVersion"), ""));
        return;
    }
    let at = path.child("fieldPath");
    if field.is_empty() {
        errors.push(Error::required(&at, ""));
        return;
    }
    let unknown = |why: &str| {
        let detail = format!("error converting fieldPath: field label {why}: {field}");
        Error::invalid(&at, field, detail)
    };
    if version != "v1" {
        let detail = format!("error converting fieldPath: unsupported pod version: {version}");
        errors.push(Error::invalid(&at, field, detail));
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|field| field.split_once("['"));
    if let Some((parent, key)) = subscript.filter(|(parent, _)| !parent.is_empty()) {
        match parent {
            "metadata.annotations" => {
                mistakes(errors, path, key, names::qualified_name(&key.to_lowercase()));
            }
            "metadata.labels" => mistakes(errors, path, key, names::qualified_name(key)),
            _ => errors.push(unknown("does not support subscript")),
        }
        return;
    }
    if !REFERABLE.contains(&field) {
        errors.push(unknown("not supported"));
        return;
    }
    // An old name that is led to the new one.
    let field = if field == "spec.host" { "spec.nodeName" } else { field };
    if !known.contains(&field) {
        errors.push(Error::not_supported(&at, field, known));
    }
}

/// A reference to a container's resources.
pub fn resource_reference(reference: &Value, path: &Path, in_volume: bool, errors: &mut ErrorList) {
    let resource = reference["resource"].text();
    if in_volume && reference["containerName"].text().is_empty() {
        errors.push(Error::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(Error::required(&path.child("resource"), ""));
    } else {
        let known = [
            "limits.cpu",
            "limits.ephemeral-storage",
            "limits.memory",
            "requests.cpu",
            "requests.ephemeral-storage",
            "requests.memory",
        ];
        let huge = resource.starts_with("limits.hugepages-")
            || resource.starts_with("requests.hugepages-");
        if !huge {
            one_of(errors, &path.child("resource"), resource, &known);
        }
    }
}

fn environment_from(sources: &[Value], path: &Path, errors: &mut ErrorList) {
    for (index, source) in sources.iter().enumerate() {
        let path = path.index(index);
        let prefix = source["prefix"].text();
        if !prefix.is_empty() {
            mistakes(errors, &path.child("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut given = 0;
        for kind in ["configMapRef", "secretRef"] {
            if source[kind].is_set() {
                given += 1;
                if source[kind]["name"].text().is_empty() {
                    errors.push(Error::required(&path.child(kind).child("name"), ""));
                }
            }
        }
        if given != 1 {
            let detail = if given == 0 {
                "must specify one of: `configMapRef` or `secretRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            errors.push(Error::invalid(&path, "", detail));
        }
    }
}

fn probe(probe: &Value, path: &Path, errors: &mut ErrorList) {
    if probe.is_null() {
        return;
    }
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    let numbers = [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ];
    for name in numbers {
        non_negative(errors, &path.child(name), &probe[name]);
    }
    let grace = &probe["terminationGracePeriodSeconds"];
    if grace.is_set() && grace.int() <= 0 {
        let path = path.child("terminationGracePeriodSeconds");
        errors.push(Error::invalid(&path, grace.int(), "must be greater than 0"));
    }
}

/// A readiness probe ends nothing, so it has no grace.
fn readiness_grace(container: &Value, path: &Path, probe: &str, errors: &mut ErrorList) {
    let grace = &container[probe]["terminationGracePeriodSeconds"];
    if probe == "readinessProbe" && grace.is_set() {
        let path = path.child(probe).child("terminationGracePeriodSeconds");
        errors.push(Error::invalid(&path, grace.int(), "must not be set for readinessProbes"));
    }
}

fn lifecycle(lifecycle: &Value, path: &Path, pod: &Pod<'_>, errors: &mut ErrorList) {
    if let Some(signal) = lifecycle["stopSignal"].as_str() {
        restart::stop_signal(signal, &path.child("stopSignal"), pod.os, errors);
    }
    for name in ["postStart", "preStop"] {
        if lifecycle[name].is_set() {
            let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
            let (hook, path) = (&lifecycle[name], path.child(name));
            handler(hook, &path, &kinds, errors);
            let seconds = hook["sleep"]["seconds"].int();
            if let Some(grace) = pod.grace_seconds
                && hook["sleep"].is_set()
                && !(0..=grace).contains(&seconds)
            {
                let detail = format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                );
                errors.push(Error::invalid(&path.child("sleep"), seconds, detail));
            }
        }
    }
}

fn handler(handler: &Value, path: &Path, kinds: &[&str], errors: &mut ErrorList) {
    let mut given = 0;
    for kind in kinds.iter().filter(|kind| handler[**kind].is_set()) {
        let (action, path) = (&handler[*kind], path.child(kind));
        if given > 0 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        given += 1;
        match *kind {
            "exec" if action["command"].items().is_empty() => {
                errors.push(Error::required(&path.child("command"), ""));
            }
            "httpGet" => {
                if action["path"].text().is_empty() {
                    errors.push(Error::required(&path.child("path"), ""));
                }
                port_reference(&action["port"], &path.child("port"), errors);
                one_of(errors, &path.child("scheme"), action["scheme"].text(), &["HTTP", "HTTPS"]);
                for header in action["httpHeaders"].items() {
                    let (name, at) = (header["name"].text(), path.child("httpHeaders"));
                    mistakes(errors, &at, name, names::http_header_name(name));
                }
            }
            "tcpSocket" => port_reference(&action["port"], &path.child("port"), errors),
            "grpc" => port_number(action["port"].int(), &path.child("port"), errors),
            _ => {}
        }
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}

/// A quantity of the schema's mixed type.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

const OF_CONTAINERS: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// Names without a prefix that mean a resource somewhere, be it in a quota alone.
const STANDARD: [&str; 17] = [
    "configmaps",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Whether a name is one of resources at all (`validateResourceName`).
pub fn any_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    let sentences = names::qualified_name(name);
    let known = OF_CONTAINERS.contains(&name) || STANDARD.contains(&name);
    if !sentences.is_empty() {
        mistakes(errors, path, name, sentences);
    } else if !name.contains('/') && !known && !name.starts_with("hugepages-") {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(Error::invalid(path, name, detail));
    }
}

fn resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    any_resource_name(name, path, errors);
    if !name.contains('/') && !OF_CONTAINERS.contains(&name) && !name.starts_with("hugepages-") {
        let detail = "must be a standard resource for containers";
        errors.push(Error::invalid(path, name, detail));
    }
}

/// Requests and limits (`ValidateContainerResourceRequirements`).
pub fn resources(resources: &Value, path: &Path, errors: &mut ErrorList) {
    amounts(resources, path, resource_name, errors);
}

/// Whether the resource comes in whole pieces: devices and the like, whose names have a domain.
pub(super) fn is_counted(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

/// Huge pages are given whole.
fn huge_pages(name: &str, amount: &Quantity, path: &Path, errors: &mut ErrorList) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    let Ok(size) = size.parse::<Quantity>() else { return };
    if !amount.is_multiple_of(&size) {
        let shown = amount.to_string();
        let detail = format!("{shown} is not positive integer multiple of {name}");
        errors.push(Error::invalid(path, shown, detail));
    }
}

/// Requests and limits, whose names `check_name` knows.
pub fn amounts(
    resources: &Value,
    path: &Path,
    check_name: fn(&str, &Path, &mut ErrorList),
    errors: &mut ErrorList,
) {
    let check = |kind: &str, errors: &mut ErrorList| {
        for (name, value) in resources[kind].entries() {
            let path = path.child(kind);
            check_name(name, &path.key(name), errors);
            let Some(amount) = quantity(value) else { continue };
            if amount.signum() < 0 {
                let detail = "must be greater than or equal to 0";
                errors.push(Error::invalid(&path.key(name), amount.to_string(), detail));
            }
            if is_counted(name) && !amount.is_whole() {
                let shown = amount.to_string();
                errors.push(Error::invalid(&path.key(name), shown, "must be an integer"));
            }
            huge_pages(name, &amount, &path.key(name), errors);
        }
    };
    check("limits", errors);
    check("requests", errors);
    let named = |wanted: fn(&str) -> bool| {
        let kinds = ["limits", "requests"];
        kinds.iter().any(|kind| resources[*kind].entries().any(|(name, _)| wanted(name)))
    };
    if named(|name| name.starts_with("hugepages-")) && !named(|n| matches!(n, "cpu" | "memory")) {
        errors.push(Error::forbidden(path, "HugePages require cpu or memory"));
    }
    for (name, request) in resources["requests"].entries() {
        let limit = quantity(&resources["limits"][name]);
        let Some(request) = quantity(request) else { continue };
        let at = path.child("requests");
        let exact = name.contains('/') || name.starts_with("hugepages-");
        match limit {
            Some(limit) if exact && request != limit => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.push(Error::invalid(&at, request.to_string(), detail));
            }
            Some(limit) if request > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(Error::invalid(&at, request.to_string(), detail));
            }
            None if exact => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(Error::required(&path.child("limits"), detail));
            }
            _ => {}
        }
    }
}

/// A path that stays where it is put.
pub fn local_path(text: &str, path: &Path, errors: &mut ErrorList) {
    if text.starts_with('/') {
        errors.push(Error::invalid(path, text, "must be a relative path"));
    }
    if text.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, text, "must not contain '..'"));
    }
}
