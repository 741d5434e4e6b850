//! Rules for pods and pod templates (`ValidatePodCreate`, `ValidatePodSpec`).

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::container::{self, List, Pod};
use super::security::{app_armor, id, seccomp};
use super::volume::Volumes;
use super::{
    affinity, ip, metadata, mistakes, pod_annotations, pod_resources, required_one_of, restart,
};
use crate::zero::Zero;

const DNS_POLICIES: [&str; 4] = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
/// The longest host name of Linux.
const HOSTNAME_MAX: usize = 64;
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// A new pod.
pub fn validate(pod: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    pod_annotations::validate(pod, &Path::new("metadata"), errors);
    spec(&pod["spec"], Some(meta::name(pod)), &path, errors);
    if !pod["spec"]["ephemeralContainers"].items().is_empty() {
        let detail = "cannot be set on create";
        errors.push(Error::forbidden(&path.child("ephemeralContainers"), detail));
    }
    let gated = !pod["spec"]["schedulingGates"].items().is_empty();
    if gated && !pod["spec"]["nodeName"].text().is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(Error::forbidden(&path.child("nodeName"), detail));
    }
    pod_annotations::match_fields(pod, &path, errors);
}

/// A template of pods; `restart_policies` are those that its workload can have.
pub fn template(template: &Value, path: &Path, restart_policies: &[&str], errors: &mut ErrorList) {
    // Upstream leaves the metadata out of the way to these.
    metadata::labels(&template["metadata"]["labels"], &path.child("labels"), errors);
    metadata::annotations(&template["metadata"]["annotations"], &path.child("annotations"), errors);
    pod_annotations::validate(template, path, errors);
    let at = path.child("spec");
    spec(&template["spec"], None, &at, errors);
    pod_annotations::match_fields(template, &at, errors);
    let policy = template["spec"]["restartPolicy"].text();
    if !policy.is_empty() && !restart_policies.contains(&policy) {
        errors.push(Error::not_supported(&at.child("restartPolicy"), policy, restart_policies));
    }
    if !template["spec"]["ephemeralContainers"].items().is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(Error::forbidden(&at.child("ephemeralContainers"), detail));
    }
}

/// A pod's spec, with the pod's name if it is not a template's.
pub fn spec(spec: &Value, name: Option<&str>, path: &Path, errors: &mut ErrorList) {
    let volumes = Volumes::validate(&spec["volumes"], name, &path.child("volumes"), errors);
    let claims: Vec<&str> =
        spec["resourceClaims"].items().iter().map(|claim| claim["name"].text()).collect();
    restart::pod_claims(spec["resourceClaims"].items(), &path.child("resourceClaims"), errors);
    let pod = Pod {
        volumes: &volumes,
        host_users: spec["hostUsers"].as_bool() != Some(false),
        claims: &claims,
        os: spec["os"]["name"].text(),
        host_network: spec["hostNetwork"].flag(),
        restart_policy: spec["restartPolicy"].text(),
        grace_seconds: spec["terminationGracePeriodSeconds"].as_i64(),
    };
    let mut seen = HashSet::new();
    for (key, list) in [
        ("containers", List::Main),
        ("initContainers", List::Init),
        ("ephemeralContainers", List::Ephemeral),
    ] {
        let at = path.child(key);
        container::validate_list(&spec[key], &at, list, &pod, &mut seen, errors);
    }
    pod_resources::validate(spec, &path.child("resources"), errors);
    required_one_of(
        errors,
        &path.child("restartPolicy"),
        pod.restart_policy,
        &["Always", "Never", "OnFailure"],
    );
    dns(spec, path, errors);
    metadata::labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    security(spec, path, errors);
    affinity::validate(&spec["affinity"], &path.child("affinity"), errors);
    affinity::tolerations(spec["tolerations"].items(), &path.child("tolerations"), errors);
    affinity::spread(
        spec["topologySpreadConstraints"].items(),
        &path.child("topologySpreadConstraints"),
        errors,
    );
    identifiers(spec, path, errors);
    host_aliases(spec["hostAliases"].items(), &path.child("hostAliases"), errors);
    let grace = &spec["terminationGracePeriodSeconds"];
    if grace.is_null() {
        errors.push(Error::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.is_set() && !(1..=i64::from(i32::MAX)).contains(&deadline.int()) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(Error::invalid(&path.child("activeDeadlineSeconds"), deadline.int(), detail));
    }
    let preemption = spec["preemptionPolicy"].text();
    if !preemption.is_empty() {
        super::one_of(
            errors,
            &path.child("preemptionPolicy"),
            preemption,
            &["Never", "PreemptLowerPriority"],
        );
    }
    gates(spec, path, errors);
    super::security::os(spec, path, errors);
    overhead(spec, path, errors);
    hostname_override(spec, path, errors);
}

/// What the runtime takes for itself (`ValidateOverhead`).
fn overhead(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if spec["overhead"].is_set() {
        let limits = serde_json::json!({"limits": spec["overhead"]});
        container::resources(&limits, &path.child("overhead"), errors);
    }
}

/// A host name that is not the pod's, which no other name goes with.
fn hostname_override(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(name) = spec["hostnameOverride"].as_str() else { return };
    let at = path.child("hostnameOverride");
    mistakes(errors, &at, name, names::dns_subdomain(name));
    if name.len() > HOSTNAME_MAX {
        errors.push(Error::too_long(&at, HOSTNAME_MAX));
    }
    if spec["setHostnameAsFQDN"].flag() {
        let detail = "setHostnameAsFQDN must be false or unset if hostnameOverride is set";
        errors.push(Error::forbidden(&path.child("setHostnameAsFQDN"), detail));
    }
    if spec["hostNetwork"].flag() {
        let detail = "may not be specified when hostNetwork is true";
        errors.push(Error::forbidden(&at, detail));
    }
}

fn gates(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, gate) in spec["readinessGates"].items().iter().enumerate() {
        let at = path.child("readinessGates").index(index).child("conditionType");
        let kind = gate["conditionType"].text();
        mistakes(errors, &at, kind, names::qualified_name(kind));
    }
    let mut seen = HashSet::new();
    for (index, gate) in spec["schedulingGates"].items().iter().enumerate() {
        let at = path.child("schedulingGates").index(index);
        let name = gate["name"].text();
        mistakes(errors, &at, name, names::qualified_name(name));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at, name));
        }
    }
}

fn identifiers(spec: &Value, path: &Path, errors: &mut ErrorList) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 6] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ];
    for (key, rule) in rules {
        let text = spec[key].text();
        if !text.is_empty() {
            mistakes(errors, &path.child(key), text, rule(text));
        }
    }
}

fn security(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (context, at) = (&spec["securityContext"], path.child("securityContext"));
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context[key], &at.child(key), errors);
    }
    for (index, group) in context["supplementalGroups"].items().iter().enumerate() {
        id(group, &at.child("supplementalGroups").index(index), errors);
    }
    let change = context["fsGroupChangePolicy"].text();
    if !change.is_empty() {
        let known = ["Always", "OnRootMismatch"];
        super::one_of(errors, &at.child("fsGroupChangePolicy"), change, &known);
    }
    let groups = context["supplementalGroupsPolicy"].text();
    if !groups.is_empty() {
        let known = ["Merge", "Strict"];
        super::one_of(errors, &at.child("supplementalGroupsPolicy"), groups, &known);
    }
    let selinux = context["seLinuxChangePolicy"].text();
    if !selinux.is_empty() {
        let known = ["MountOption", "Recursive"];
        super::one_of(errors, &at.child("seLinuxChangePolicy"), selinux, &known);
    }
    seccomp(&context["seccompProfile"], &at.child("seccompProfile"), errors);
    app_armor(&context["appArmorProfile"], &at.child("appArmorProfile"), errors);
    sysctls(spec, &context["sysctls"], &at.child("sysctls"), errors);
    if spec["shareProcessNamespace"].flag() && spec["hostPID"].flag() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&at.child("shareProcessNamespace"), true, detail));
    }
    if spec["hostUsers"].as_bool() == Some(false) {
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            if spec[key].flag() {
                let detail = "when `hostUsers` is false";
                errors.push(Error::forbidden(&at.child(key), detail));
            }
        }
    }
}

const SYSCTL_BYTES_MAX: usize = 253;
const SYSCTL_FORMAT: &str =
    "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// The names of kernel parameters, with dots or slashes between their parts; not those of a namespace
/// that is the host's (`validateSysctls`).
fn sysctls(spec: &Value, list: &Value, path: &Path, errors: &mut ErrorList) {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let edge =
            |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        let inner = |b: &u8| b.is_ascii_digit() || b.is_ascii_lowercase() || b"-_".contains(b);
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
    };
    let is_name =
        |name: &str| name.len() <= SYSCTL_BYTES_MAX && name.split(['.', '/']).all(is_part);
    let mut seen = HashSet::new();
    for (index, sysctl) in list.items().iter().enumerate() {
        let at = path.index(index).child("name");
        let name = sysctl["name"].text();
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if !is_name(name) {
            let detail = format!(
                "must have at most {SYSCTL_BYTES_MAX} characters and match regex {SYSCTL_FORMAT}"
            );
            errors.push(Error::invalid(&at, name, detail));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&at, name));
        }
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        for (key, concerned) in [("hostNetwork", dotted.starts_with("net.")), ("hostIPC", ipc)] {
            if concerned && spec[key].flag() {
                let detail = format!("may not be specified when '{key}' is true");
                errors.push(Error::invalid(&at, name, detail));
            }
        }
    }
}

fn dns(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let policy = spec["dnsPolicy"].text();
    required_one_of(errors, &path.child("dnsPolicy"), policy, &DNS_POLICIES);
    let (config, at) = (&spec["dnsConfig"], path.child("dnsConfig"));
    let servers = config["nameservers"].items();
    if policy == "None" {
        if config.is_null() {
            let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
            errors.push(Error::required(&at, detail));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(Error::required(&at.child("nameservers"), detail));
            return;
        }
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(Error::invalid(
            &at.child("nameservers"),
            config["nameservers"].clone(),
            detail,
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        ip::address(server.text(), &at.child("nameservers").index(index), errors);
    }
    let searches = config["searches"].items();
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(Error::invalid(&at.child("searches"), config["searches"].clone(), detail));
    }
    let bytes: usize = searches.iter().map(|search| search.text().len() + 1).sum();
    if bytes > MAX_SEARCH_BYTES + 1 {
        let detail = format!(
            "must not have more than {MAX_SEARCH_BYTES} characters (including spaces) in the search list"
        );
        errors.push(Error::invalid(&at.child("searches"), config["searches"].clone(), detail));
    }
    for (index, search) in searches.iter().enumerate() {
        let text = search.text();
        let name = text.strip_suffix('.').unwrap_or(text);
        if text != "." {
            let at = at.child("searches").index(index);
            mistakes(errors, &at, text, names::dns_subdomain(&name.replace('_', "-")));
        }
    }
    for (index, option) in config["options"].items().iter().enumerate() {
        if option["name"].text().is_empty() {
            let at = at.child("options").index(index);
            errors.push(Error::required(&at, "must not be empty"));
        }
    }
}

fn host_aliases(aliases: &[Value], path: &Path, errors: &mut ErrorList) {
    for (index, alias) in aliases.iter().enumerate() {
        ip::address(alias["ip"].text(), &path.index(index).child("ip"), errors);
        for (at, name) in alias["hostnames"].texts().enumerate() {
            let path = path.index(index).child("hostnames").index(at);
            mistakes(errors, &path, name, names::dns_subdomain(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    /// A pod with defaults, changed by `change`.
    fn errors_of(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "image": "busybox"}]}});
        change(&mut pod["spec"]);
        let resource = crate::registry::Registry::default().resource("", "pods").unwrap();
        crate::defaults::set_defaults(&resource, &mut pod);
        told(|errors| validate(&pod, errors))
    }

    #[test]
    fn a_plain_pod_is_fine() {
        assert_eq!(errors_of(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn volumes_bring_what_they_need() {
        let told = |volumes: Value| errors_of(|spec| spec["volumes"] = volumes.clone());
        let image = json!([{"name": "v", "image": {}}]);
        assert_eq!(told(image.clone()), ["spec.volumes[0].image.reference: Required value"]);
        let template =
            json!({"spec": {"containers": [{"name": "c", "image": "a"}], "volumes": image}});
        let told_of_template = crate::validation::told(|errors| {
            super::template(&template, &Path::new("template"), &["Always"], errors);
        });
        assert!(!told_of_template.iter().any(|told| told.contains("reference")));
        let claim = json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}});
        let both = json!([{"name": "v", "ephemeral": claim},
            {"name": "w", "persistentVolumeClaim": {"claimName": "p-v"}}]);
        assert_eq!(
            told(both),
            ["spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: \"p-v\": \
            must not reference a PVC that gets created for an ephemeral volume"]
        );
    }

    #[test]
    fn a_gated_pod_has_no_node() {
        let told = errors_of(|spec| {
            spec["schedulingGates"] = json!([{"name": "a"}]);
            spec["nodeName"] = "n".into();
        });
        let want =
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared";
        assert_eq!(told, [want]);
    }

    #[test]
    fn kernel_parameters_have_dots_or_slashes() {
        for name in ["kernel.shm_rmid_forced", "net/ipv4/ip_local_port_range", "safe-and-unsafe"] {
            let change = |s: &mut Value| {
                s["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            };
            assert_eq!(errors_of(change), Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        type Case = (fn(&mut Value), &'static str);
        let cases: &[Case] = &[
            (|s| s["containers"] = json!([]), "spec.containers: Required value"),
            (
                |s| s["containers"][0]["image"] = "".into(),
                "spec.containers[0].image: Required value",
            ),
            (
                |s| s["containers"][0]["name"] = "A".into(),
                "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must",
            ),
            (
                |s| {
                    s["containers"] =
                        json!([{"name": "c", "image": "a"}, {"name": "c", "image": "a"}]);
                },
                "spec.containers[1].name: Duplicate value: \"c\"",
            ),
            (
                |s| s["restartPolicy"] = "Sometimes".into(),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                |s| {
                    s["containers"][0]["lifecycle"] =
                        json!({"preStop": {"sleep": {"seconds": 31}}});
                },
                "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
            ),
            (
                |s| {
                    s["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80},
                        "terminationGracePeriodSeconds": 5});
                },
                "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
            ),
            (
                |s| s["securityContext"] = json!({"sysctls": [{"name": "foo-", "value": "1"}]}),
                "spec.securityContext.sysctls[0].name: Invalid value: \"foo-\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*",
            ),
            (
                |s| s["securityContext"] = json!({"sysctls": [{"name": "bar..", "value": "1"}]}),
                "spec.securityContext.sysctls[0].name: Invalid value: \"bar..\": must have",
            ),
            (
                |s| {
                    s["hostNetwork"] = true.into();
                    s["securityContext"] =
                        json!({"sysctls": [{"name": "net/core/somaxconn", "value": "1"}]});
                },
                "spec.securityContext.sysctls[0].name: Invalid value: \"net/core/somaxconn\": may not be specified when 'hostNetwork' is true",
            ),
            (
                |s| s["dnsPolicy"] = "None".into(),
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
            (
                |s| s["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                |s| {
                    s["volumes"] =
                        json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]);
                },
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                |s| {
                    s["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]);
                    s["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"fileKeyRef":
                        {"volumeName": "v", "path": "a.env", "key": "A"}}}]);
                },
                "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"v\": referenced volume must be of type emptyDir",
            ),
            (
                |s| {
                    s["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
                    s["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"fileKeyRef":
                        {"volumeName": "v", "path": "../a", "key": "A"}}}]);
                },
                "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"../a\": must not contain '..'",
            ),
            (
                |s| s["volumes"] = json!([{"name": "v", "hostPath": {"path": "/../etc"}}]),
                "spec.volumes[0].hostPath.path: Invalid value: \"/../etc\": must not contain '..'",
            ),
            (
                |s| s["containers"][0]["ports"] = json!([{"containerPort": 0}]),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                |s| s["containers"][0]["ports"] = json!([{"containerPort": 70000}]),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                |s| s["containers"][0]["env"] = json!([{"name": "a=b"}]),
                "spec.containers[0].env[0].name: Invalid value: \"a=b\"",
            ),
            (
                |s| s["containers"][0]["env"] = json!([{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                |s| {
                    s["containers"][0]["env"] =
                        json!([{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]);
                },
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
            ),
            (
                |s| s["containers"][0]["livenessProbe"] = json!({}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                |s| {
                    s["containers"][0]["resources"] =
                        json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
                },
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                |s| s["containers"][0]["resources"] = json!({"requests": {"memory": "-1"}}),
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                |s| s["containers"][0]["imagePullPolicy"] = "Often".into(),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                |s| s["securityContext"] = json!({"runAsUser": -1}),
                "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ),
            (
                |s| s["tolerations"] = json!([{"operator": "Equal"}]),
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty",
            ),
            (
                |s| s["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            ),
            (
                |s| s["activeDeadlineSeconds"] = 0.into(),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                |s| s["hostname"] = "a.b".into(),
                "spec.hostname: Invalid value: \"a.b\": must not contain dots",
            ),
            (
                |s| s["initContainers"] = json!([{"name": "i", "image": "a", "readinessProbe": {"exec": {"command": ["a"]}}}]),
                "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ),
            (
                |s| {
                    s["containers"][0]["resources"] = json!({"limits": {"e.com/gpu": "1500m"}, "requests": {"e.com/gpu": "1500m"}});
                },
                "spec.containers[0].resources.limits[e.com/gpu]: Invalid value: \"1500m\": must be an integer",
            ),
            (
                |s| {
                    s["containers"][0]["resources"] =
                        json!({"limits": {"hugepages-2Mi": "3Mi", "memory": "1Gi"}});
                },
                "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi",
            ),
            (
                |s| s["containers"][0]["resources"] = json!({"limits": {"hugepages-2Mi": "4Mi"}}),
                "spec.containers[0].resources: Forbidden: HugePages require cpu or memory",
            ),
            (
                |s| s["containers"][0]["resources"] = json!({"claims": [{"name": "a"}]}),
                "spec.containers[0].resources.claims[0].name: Not found: \"a\": must be one of the names in pod.spec.resourceClaims which is empty",
            ),
            (
                |s| s["resourceClaims"] = json!([{"name": "a"}]),
                "spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            (
                |s| {
                    s["containers"][0]["livenessProbe"] =
                        json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b"}]}});
                },
                "spec.containers[0].livenessProbe.httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must consist of alphanumeric characters or '-'",
            ),
            (
                |s| {
                    s["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
                    s["containers"][0]["volumeMounts"] =
                        json!([{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}]);
                },
                "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
            ),
            (
                |s| {
                    s["volumes"] = json!([{"name": "v", "ephemeral": {"volumeClaimTemplate": {
                        "metadata": {"name": "n"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1"}}}}}}]);
                },
                "spec.volumes[0].ephemeral.volumeClaimTemplate.metadata.name: Forbidden: cannot be set",
            ),
            (
                |s| s["hostnameOverride"] = "A".into(),
                "spec.hostnameOverride: Invalid value: \"A\": a lowercase RFC 1123 subdomain must",
            ),
            (
                |s| s["overhead"] = json!({"x": "1"}),
                "spec.overhead.limits[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
            ),
            (
                |s| {
                    s["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["a"]}]}]}}});
                },
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: \"metadata.uid\": not a valid field selector key",
            ),
            (
                |s| s["ephemeralContainers"] = json!([{"name": "e", "image": "a"}]),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
        ];
        for (change, want) in cases {
            let got = errors_of(change);
            assert!(got.first().is_some_and(|text| text.starts_with(want)), "{want}: {got:?}");
        }
    }
}
