//! Default values of the built-in kinds, as the API server writes them into new and changed objects.
//!
//! Source: the `SetDefaults_*` functions of `k8s.io/kubernetes/pkg/apis/*/v1/defaults.go`. What needs
//! no condition stands in `table`.

mod pod;
mod rules;
mod service;
mod table;
mod workload;

use serde_json::Value;

use crate::resource::Resource;
use crate::zero::{Zero, default_to};

/// Fills in the kind's default values.
pub fn set_defaults(resource: &Resource, object: &mut Value) {
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    if let Some(path) = pod_spec_path(group, plural)
        && let Some(spec) = object.pointer_mut(path)
    {
        pod::set_defaults(spec, plural == "pods");
    }
    for (_, _, lines) in
        table::DEFAULTS.iter().filter(|(g, plurals, _)| *g == group && plurals.contains(&plural))
    {
        for (path, value) in *lines {
            table::apply(object, path, value);
        }
    }
    match (group, plural) {
        ("", "services") => service::set_defaults(object),
        ("", "namespaces") => {
            let name = object["metadata"]["name"].text().to_owned();
            if !name.is_empty() && object["metadata"].is_object() {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
            }
        }
        ("", "nodes")
            if object["status"].is_object() && object["status"]["capacity"].is_object() =>
        {
            let capacity = object["status"]["capacity"].clone();
            default_to(&mut object["status"], "allocatable", || capacity);
        }
        ("", "limitranges") => rules::limit_range(object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            crate::custom::definition::set_defaults(object);
        }
        ("networking.k8s.io", "networkpolicies") => rules::network_policy(object),
        ("resource.k8s.io", "resourceclaims") => {
            rules::device_claim(object, "/spec/devices/requests");
        }
        ("resource.k8s.io", "resourceclaimtemplates") => {
            rules::device_claim(object, "/spec/spec/devices/requests");
        }
        ("resource.k8s.io", "resourceslices") => rules::device_taints(object),
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => rules::flow_schema(object),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => {
            rules::priority_level(object);
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            rules::binding(object);
        }
        ("", "replicationcontrollers") => workload::replication_controller(object),
        ("apps", "deployments") => workload::deployment(object),
        ("apps", "statefulsets") => workload::stateful_set(object),
        ("apps", "daemonsets") => workload::daemon_set(object),
        ("batch", "jobs") => workload::job(object),
        ("autoscaling", "horizontalpodautoscalers") => workload::autoscaler(object),
        _ => {}
    }
}

/// Where a kind keeps its pod spec, as a JSON pointer.
pub fn pod_spec_path(group: &str, plural: &str) -> Option<&'static str> {
    Some(match (group, plural) {
        ("", "pods") => "/spec",
        ("", "podtemplates") => "/template/spec",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template/spec",
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "/spec/template/spec",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn resource(group: &str, plural: &str) -> Resource {
        Resource {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            singular: String::new(),
            kind: String::new(),
            list_kind: String::new(),
            namespaced: true,
            verbs: Vec::new(),
            short_names: Vec::new(),
            categories: Vec::new(),
            subresources: Vec::new(),
            key_prefix: String::new(),
            custom: None,
        }
    }

    fn defaulted(group: &str, plural: &str, mut object: Value) -> Value {
        set_defaults(&resource(group, plural), &mut object);
        object
    }

    #[test]
    fn pods_with_limits_request_what_their_containers_do() {
        let pod = defaulted(
            "",
            "pods",
            json!({"spec": {"resources": {"limits": {"cpu": "4", "memory": "1Gi"}}, "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1"}}}]}}),
        );
        assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "1500m", "memory": "1Gi"}));
    }

    #[test]
    fn an_absent_spec_has_defaults_too() {
        let driver = defaulted("storage.k8s.io", "csidrivers", json!({}));
        assert_eq!(driver["spec"]["attachRequired"], true);
        assert_eq!(driver["spec"]["podInfoOnMount"], false);
        let policy = defaulted("networking.k8s.io", "networkpolicies", json!({}));
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn a_small_pod_becomes_upstreams() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{
            "name": "c", "image": "busybox",
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}},
            "readinessProbe": {"httpGet": {"port": 80}},
        }]}});
        assert_eq!(
            defaulted("", "pods", pod)["spec"],
            json!({
                "containers": [{
                    "name": "c", "image": "busybox", "imagePullPolicy": "Always",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "readinessProbe": {
                        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                        "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1,
                        "timeoutSeconds": 1,
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {},
                "terminationGracePeriodSeconds": 30,
            })
        );
    }

    #[test]
    fn image_pull_policy_follows_the_tag() {
        let cases = [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1.36", "IfNotPresent"),
            ("localhost:5000/busybox", "Always"),
            ("localhost:5000/busybox:1", "IfNotPresent"),
            ("busybox@sha256:abc", "IfNotPresent"),
            ("busybox:latest@sha256:abc", "Always"),
        ];
        for (image, want) in cases {
            assert_eq!(pod::pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn volumes_get_modes_and_a_source() {
        let pod = json!({"spec": {"containers": [], "volumes": [
            {"name": "a"},
            {"name": "b", "secret": {"secretName": "s"}},
            {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            {"name": "d", "hostPath": {"path": "/"}},
        ]}});
        assert_eq!(
            defaulted("", "pods", pod)["spec"]["volumes"],
            json!([
                {"name": "a", "emptyDir": {}},
                {"name": "b", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "c", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}},
                {"name": "d", "hostPath": {"path": "/", "type": ""}},
            ])
        );
    }

    #[test]
    fn workloads_and_services_get_theirs() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let deployment = defaulted("apps", "deployments", json!({"spec": {"template": template}}));
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(deployment["spec"]["template"]["spec"]["restartPolicy"], "Always");
        let recreate = json!({"spec": {"strategy": {"type": "Recreate"}, "template": template}});
        let recreate = defaulted("apps", "deployments", recreate);
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));

        let job =
            defaulted("batch", "jobs", json!({"metadata": {}, "spec": {"template": template}}));
        assert_eq!(
            (&job["spec"]["completions"], &job["spec"]["backoffLimit"]),
            (&json!(1), &json!(6))
        );
        assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));

        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        assert_eq!(
            defaulted("", "services", service)["spec"],
            json!({
                "type": "NodePort", "externalTrafficPolicy": "Cluster",
                "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            })
        );
    }

    #[test]
    fn claims_levels_and_jobs_get_theirs() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "c", "tolerations": [{"key": "k"}]}},
            {"name": "b", "firstAvailable": [{"name": "x", "allocationMode": "All"}]}]}}});
        let claim = defaulted("resource.k8s.io", "resourceclaims", claim);
        let requests = &claim["spec"]["devices"]["requests"];
        assert_eq!(
            requests[0]["exactly"],
            json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1,
                "tolerations": [{"key": "k", "operator": "Equal"}]})
        );
        assert_eq!(requests[1]["firstAvailable"][0], json!({"name": "x", "allocationMode": "All"}));
        let level = json!({"spec": {"type": "Exempt"}});
        let group = "flowcontrol.apiserver.k8s.io";
        let level = defaulted(group, "prioritylevelconfigurations", level);
        assert_eq!(
            level["spec"]["exempt"],
            json!({"nominalConcurrencyShares": 0, "lendablePercent": 0})
        );
        // Decoded numbers that are no pointers are there as zeros.
        let few = json!({"queues": 16, "handSize": 0, "queueLengthLimit": 0});
        let level =
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"queuing": few}}}});
        let level = defaulted(group, "prioritylevelconfigurations", level);
        assert_eq!(
            level["spec"]["limited"]["limitResponse"]["queuing"],
            json!({"queues": 16, "handSize": 8, "queueLengthLimit": 50})
        );
        let flow = defaulted(group, "flowschemas", json!({"spec": {"matchingPrecedence": 0}}));
        assert_eq!(flow["spec"]["matchingPrecedence"], 1000);
        let policy = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "X"}]}]});
        let job = json!({"spec": {"podFailurePolicy": policy, "template": {"spec": {}}}});
        let job = defaulted("batch", "jobs", job);
        let conditions = &job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"];
        assert_eq!(conditions[0]["status"], "True");
        let service = json!({"spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "h"}]}}});
        let service = defaulted("", "services", service);
        assert_eq!(
            service["status"]["loadBalancer"]["ingress"],
            json!([{"ip": "1.2.3.4", "ipMode": "VIP"}, {"hostname": "h"}])
        );
    }

    #[test]
    fn policies_and_bindings_get_theirs() {
        let policy = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
        assert_eq!(
            defaulted("networking.k8s.io", "networkpolicies", policy)["spec"],
            json!({
                "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
                "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}],
            })
        );
        let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        let group = "rbac.authorization.k8s.io";
        let binding = defaulted(group, "rolebindings", binding);
        assert_eq!(binding["roleRef"]["apiGroup"], group);
        assert_eq!(binding["subjects"][0]["apiGroup"], group);
        assert!(binding["subjects"][1].get("apiGroup").is_none());
        let secret = defaulted("", "secrets", json!({}));
        assert_eq!(secret["type"], "Opaque");
    }
}
