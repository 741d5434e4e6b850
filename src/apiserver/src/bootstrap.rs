//! What every cluster starts with: system namespaces, default roles and bindings, priority classes and
//! the `kubernetes` Service. Run at each start: it adds what is missing and leaves people's additions.

pub mod roles;

use std::net::{IpAddr, SocketAddr};

use apimachinery::{Status, meta};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::authz::rules::Rule;
use crate::registry::Registry;
use roles::{AGGREGATED, CLUSTER_ROLES, CONTROLLERS, NAMESPACED, Role};

const RBAC: &str = "rbac.authorization.k8s.io";
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What the objects depend on.
#[derive(Clone, Debug)]
pub struct Options {
    /// The range of cluster addresses, such as `10.43.0.0/16`.
    pub service_cidr: String,
    /// The address of the `kubernetes` Service, the first of that range.
    pub service_ip: IpAddr,
    /// Where this server is reached from the pod network.
    pub advertise: SocketAddr,
    /// The CA certificate, for extension API servers.
    pub ca_pem: String,
    /// The CA of the proxies that they believe.
    pub front_proxy_ca_pem: String,
}

/// Makes or mends everything.
pub async fn run(registry: &Registry, options: &Options) -> Result<(), Status> {
    for name in NAMESPACES {
        ensure(registry, "", "namespaces", namespace(name), keep).await?;
    }
    for class in priority_classes() {
        ensure(registry, "scheduling.k8s.io", "priorityclasses", class, keep).await?;
    }
    for class in storage_classes() {
        ensure(registry, "storage.k8s.io", "storageclasses", class, keep).await?;
    }
    for (plural, object) in rbac_objects() {
        let mend = if plural.ends_with("bindings") { mend_binding } else { mend_role };
        ensure(registry, RBAC, plural, object, mend).await?;
    }
    keep_range(registry, options).await?;
    for (group, plural, object) in network_objects(options) {
        ensure(registry, group, plural, object, replace_content).await?;
    }
    // Since when the use of tokens in Secrets is watched, so that unused ones can be told.
    let since = apimachinery::time::now();
    let tracking = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "kube-apiserver-legacy-service-account-token-tracking",
            "namespace": "kube-system"},
        "data": {"since": since.split('T').next()},
    });
    ensure(registry, "", "configmaps", tracking, keep).await?;
    let trust = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": options.ca_pem,
            "requestheader-allowed-names": json!([crate::pki::FRONT_PROXY]).to_string(),
            "requestheader-client-ca-file": options.front_proxy_ca_pem,
            "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
            "requestheader-group-headers": r#"["X-Remote-Group"]"#,
            "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
            "requestheader-username-headers": r#"["X-Remote-User"]"#,
        },
    });
    ensure(registry, "", "configmaps", trust, replace_content).await?;
    ensure(registry, "", "configmaps", cluster_info(options), merge_data).await
}

/// Makes the ServiceCIDR of the addresses that the server was started with, gives it a second family that
/// came later, and calls it ready where nobody has said anything of it yet.
pub async fn keep_range(registry: &Registry, options: &Options) -> Result<(), Status> {
    const GROUP: &str = "networking.k8s.io";
    let cidrs: Vec<&str> = options.service_cidr.split(',').collect();
    let wanted = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs},
    });
    ensure(registry, GROUP, "servicecidrs", wanted.clone(), add_family).await?;
    let Some(found) = registry.get(GROUP, "servicecidrs", "", "kubernetes") else { return Ok(()) };
    let found = found.value();
    let told = found["status"]["conditions"].as_array().into_iter().flatten();
    let known = told.into_iter().any(|condition| condition["type"] == "Ready");
    let Some(resource) = registry.resource(GROUP, "servicecidrs") else { return Ok(()) };
    if known || found["spec"] != wanted["spec"] || meta::deletion_timestamp(&found).is_some() {
        return Ok(());
    }
    let mut ctx = RequestContext::internal("update", &resource, "", "kubernetes");
    ctx.subresource = "status".into();
    let change = |object: &mut Value| {
        object["status"]["conditions"] = json!([{
            "type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": apimachinery::time::now(),
        }]);
        Ok(())
    };
    registry.update_with(&ctx, &change).await.map(drop)
}

fn add_family(old: &mut Value, wanted: &Value) -> bool {
    let (had, wants) = (&old["spec"]["cidrs"], &wanted["spec"]["cidrs"]);
    let more = had.as_array().map(Vec::len) == Some(1) && wants.as_array().map(Vec::len) == Some(2);
    if !more || had[0] != wants[0] {
        return false;
    }
    old["spec"]["cidrs"] = wants.clone();
    true
}

/// Where the API is and who vouches for it, for machines that are to join.
fn cluster_info(options: &Options) -> Value {
    let authority = base64::engine::general_purpose::STANDARD.encode(&options.ca_pem);
    let server = format!("https://{}", options.advertise);
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\npreferences: {{}}\nusers: null\n"
    );
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": {"kubeconfig": kubeconfig},
    })
}

/// Sets the wanted keys of `data`; signatures of tokens beside them stay.
fn merge_data(old: &mut Value, wanted: &Value) -> bool {
    let mut changed = false;
    for (key, value) in wanted["data"].as_object().into_iter().flatten() {
        if old["data"][key] != *value {
            old["data"][key] = value.clone();
            changed = true;
        }
    }
    changed
}

/// Changes `old` towards `wanted`; says whether it did.
type Mend = fn(old: &mut Value, wanted: &Value) -> bool;

async fn ensure(
    registry: &Registry,
    group: &str,
    plural: &str,
    wanted: Value,
    mend: Mend,
) -> Result<(), Status> {
    let Some(resource) = registry.resource(group, plural) else {
        return Err(Status::internal(format!("the resource {plural}.{group} is not served")));
    };
    let (namespace, name) = (meta::namespace(&wanted).to_owned(), meta::name(&wanted).to_owned());
    let Some(old) = registry.get(group, plural, &namespace, &name) else {
        let ctx = RequestContext::internal("create", &resource, &namespace, &name);
        return match registry.create(&ctx, wanted).await {
            Ok(_) => Ok(()),
            // Another server on the same store was quicker: the name is taken, or what goes with it.
            Err(status) => {
                registry.sync().await?;
                let made = registry.get(group, plural, &namespace, &name).is_some();
                if made { Ok(()) } else { Err(status) }
            }
        };
    };
    if !mend(&mut old.to_value(), &wanted) {
        return Ok(());
    }
    let ctx = RequestContext::internal("update", &resource, &namespace, &name);
    let change = move |object: &mut Value| {
        mend(object, &wanted);
        Ok(())
    };
    registry.update_with(&ctx, &change).await.map(drop)
}

fn keep(_old: &mut Value, _wanted: &Value) -> bool {
    false
}

/// Sets all top-level fields but the metadata.
fn replace_content(old: &mut Value, wanted: &Value) -> bool {
    let mut changed = false;
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if key != "metadata" && old[key] != *value {
            old[key] = value.clone();
            changed = true;
        }
    }
    changed
}

fn locked(object: &Value) -> bool {
    meta::annotation(object, AUTO_UPDATE) == Some("false")
}

fn mend_role(old: &mut Value, wanted: &Value) -> bool {
    if locked(old) {
        return false;
    }
    let rules = |object: &Value| -> Vec<Rule> {
        serde_json::from_value(object["rules"].clone()).unwrap_or_default()
    };
    let have = rules(old);
    let missing: Vec<Value> = rules(wanted)
        .into_iter()
        .filter(|rule| !rule.split().iter().all(|part| have.iter().any(|h| h.covers(part))))
        .filter_map(|rule| serde_json::to_value(rule).ok())
        .collect();
    if missing.is_empty() {
        return false;
    }
    let mut all = old["rules"].as_array().cloned().unwrap_or_default();
    all.extend(missing);
    old["rules"] = all.into();
    true
}

fn mend_binding(old: &mut Value, wanted: &Value) -> bool {
    if locked(old) {
        return false;
    }
    let subjects = |object: &Value| object["subjects"].as_array().cloned().unwrap_or_default();
    let mut all = subjects(old);
    let before = all.len();
    for subject in subjects(wanted) {
        let same = |other: &Value| {
            ["kind", "name", "namespace"].iter().all(|key| other[key] == subject[key])
        };
        if !all.iter().any(same) {
            all.push(subject);
        }
    }
    let changed = all.len() != before;
    old["subjects"] = all.into();
    changed
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, what: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "preemptionPolicy": "PreemptLowerPriority",
            "description": format!("Used for system critical pods that {what}."),
        })
    };
    [
        class(
            "system-cluster-critical",
            2_000_000_000,
            "must run in the cluster, but can be moved to another node if necessary",
        ),
        class("system-node-critical", 2_000_001_000, "must not be moved from their current node"),
    ]
}

/// The classes of the built-in provisioner, under the names that k3s and kind have made usual.
fn storage_classes() -> [Value; 2] {
    let class = |name: &str, default: &str| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {
                "name": name,
                "annotations": {"storageclass.kubernetes.io/is-default-class": default},
            },
            "provisioner": "rootlet.dev/local-path",
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true,
        })
    };
    [class("local-path", "true"), class("standard", "false")]
}

fn role_metadata(name: &str, namespace: Option<&str>, aggregate_to: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    if !aggregate_to.is_empty() {
        metadata["labels"][format!("{RBAC}/aggregate-to-{aggregate_to}")] = "true".into();
    }
    metadata
}

fn rules(lines: &[&str]) -> Vec<Rule> {
    lines.iter().map(|line| Rule::from_line(line)).collect()
}

/// The rules of `name` and, if it aggregates others, theirs.
fn aggregated_rules(name: &str) -> Vec<Rule> {
    let own = CLUSTER_ROLES.iter().find(|role| role.name == name).map_or(&[][..], |r| r.rules);
    let mut all = rules(own);
    for role in CLUSTER_ROLES.iter().filter(|role| role.aggregate_to == name) {
        all.extend(aggregated_rules(role.name));
    }
    all
}

fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap_or(("user", text));
    match kind {
        "sa" => {
            let (namespace, name) = name.split_once('/').unwrap_or(("kube-system", name));
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        "group" => json!({"kind": "Group", "apiGroup": RBAC, "name": name}),
        _ => json!({"kind": "User", "apiGroup": RBAC, "name": name}),
    }
}

fn binding(role: &Role, namespace: Option<&str>) -> Value {
    let prefix = if namespace.is_some() { "" } else { "Cluster" };
    json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": format!("{prefix}RoleBinding"),
        "metadata": role_metadata(role.name, namespace, ""),
        "roleRef": {"apiGroup": RBAC, "kind": format!("{prefix}Role"), "name": role.name},
        "subjects": role.subjects.iter().map(|s| subject(s)).collect::<Vec<_>>(),
    })
}

fn rbac_objects() -> Vec<(&'static str, Value)> {
    let api_version = format!("{RBAC}/v1");
    let mut objects = Vec::new();
    let cluster_role = |name: &str, aggregate_to: &str, rules: Vec<Rule>| {
        json!({
            "apiVersion": api_version, "kind": "ClusterRole",
            "metadata": role_metadata(name, None, aggregate_to), "rules": rules,
        })
    };
    for role in CLUSTER_ROLES {
        let mut object = cluster_role(role.name, role.aggregate_to, aggregated_rules(role.name));
        if AGGREGATED.contains(&role.name) {
            let label = format!("{RBAC}/aggregate-to-{}", role.name);
            object["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        objects.push(("clusterroles", object));
        if !role.subjects.is_empty() || role.name == "system:node" {
            objects.push(("clusterrolebindings", binding(role, None)));
        }
    }
    for (name, lines) in CONTROLLERS {
        let role_name = format!("system:controller:{name}");
        objects.push(("clusterroles", cluster_role(&role_name, "", rules(lines))));
        let mut bound = binding(&Role { name, aggregate_to: "", rules: &[], subjects: &[] }, None);
        bound["metadata"]["name"] = role_name.clone().into();
        bound["roleRef"]["name"] = role_name.into();
        bound["subjects"] = json!([subject(&format!("sa:kube-system/{name}"))]);
        objects.push(("clusterrolebindings", bound));
    }
    for (namespace, role) in NAMESPACED {
        let object = json!({
            "apiVersion": api_version, "kind": "Role",
            "metadata": role_metadata(role.name, Some(namespace), ""), "rules": rules(role.rules),
        });
        objects.push(("roles", object));
        objects.push(("rolebindings", binding(role, Some(namespace))));
    }
    objects
}

fn network_objects(options: &Options) -> Vec<(&'static str, &'static str, Value)> {
    let (service_ip, advertise) = (options.service_ip.to_string(), options.advertise);
    let family = if options.service_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let address_type = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    vec![
        (
            "",
            "services",
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
                "spec": {
                    "type": "ClusterIP", "clusterIP": service_ip, "clusterIPs": [service_ip],
                    "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
                    "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                    "ports": [{
                        "name": "https", "port": 443, "protocol": "TCP",
                        "targetPort": advertise.port(),
                    }],
                },
                "status": {"loadBalancer": {}},
            }),
        ),
        (
            "",
            "endpoints",
            json!({
                "apiVersion": "v1", "kind": "Endpoints",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
                },
                "subsets": [{
                    "addresses": [{"ip": advertise.ip().to_string()}],
                    "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
                }],
            }),
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": "kubernetes", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"},
                },
                "addressType": address_type,
                "endpoints": [{
                    "addresses": [advertise.ip().to_string()], "conditions": {"ready": true},
                }],
                "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_of_the_table_is_whole() {
        for (plural, object) in rbac_objects() {
            if !plural.ends_with("roles") {
                continue;
            }
            let rules: Vec<Rule> = serde_json::from_value(object["rules"].clone()).unwrap();
            assert!(!rules.is_empty(), "{object}");
            for rule in rules {
                assert!(!rule.verbs.is_empty(), "{object}");
                assert!(rule.resources.is_empty() != rule.non_resource_urls.is_empty(), "{object}");
                let spelled = rule.verbs.iter().chain(&rule.resources).all(|w| !w.contains(' '));
                assert!(spelled, "{object}");
            }
        }
    }

    #[test]
    fn admin_gathers_edit_and_view() {
        let rules = aggregated_rules("admin");
        let may = |line: &str| rules.iter().any(|rule| rule.covers(&Rule::from_line(line)));
        assert!(may("get - pods/log"), "from view");
        assert!(may("delete - pods"), "from edit");
        assert!(may("create rbac.authorization.k8s.io roles"), "its own");
        assert!(!may("delete - nodes"));
    }

    #[test]
    fn mending_adds_and_never_removes() {
        let wanted = json!({"rules": rules(&["get - pods", "get - nodes"])});
        let mut old = json!({"rules": rules(&["get - pods", "get - secrets"])});
        assert!(mend_role(&mut old, &wanted));
        assert_eq!(old["rules"].as_array().unwrap().len(), 3);
        assert!(!mend_role(&mut old, &wanted));
        let mut locked = json!({"metadata": {"annotations": {AUTO_UPDATE: "false"}}});
        assert!(!mend_role(&mut locked, &wanted));
        let mut bound = json!({"subjects": [subject("user:a")]});
        assert!(mend_binding(&mut bound, &json!({"subjects": [subject("group:b")]})));
        assert_eq!(bound["subjects"].as_array().unwrap().len(), 2);
    }
}
