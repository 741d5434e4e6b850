//! Unconditional defaults as lines: a path and the JSON to put there when nothing is.

use serde_json::Value;

use crate::zero::default_to;

type Line = (&'static str, &'static str);

/// Group, plurals, lines. In a path `x[]` means every item of a list and `x!` an object that is made
/// when it is absent; other missing parents end the line.
#[rustfmt::skip]
pub const DEFAULTS: &[(&str, &[&str], &[Line])] = &[
    ("", &["secrets"], &[("type", r#""Opaque""#)]),
    ("", &["pods"], &[("spec.enableServiceLinks", "true")]),
    ("", &["persistentvolumeclaims"], &[
        ("status!.phase", r#""Pending""#),
        ("spec.volumeMode", r#""Filesystem""#),
    ]),
    ("", &["persistentvolumes"], &[
        ("status!.phase", r#""Pending""#),
        ("spec.persistentVolumeReclaimPolicy", r#""Retain""#),
        ("spec.volumeMode", r#""Filesystem""#),
        ("spec.hostPath.type", r#""""#),
    ]),
    ("", &["endpoints"], &[("subsets[].ports[].protocol", r#""TCP""#)]),
    ("", &["replicationcontrollers"], &[("spec.replicas", "1")]),
    ("discovery.k8s.io", &["endpointslices"], &[
        ("ports[].name", r#""""#),
        ("ports[].protocol", r#""TCP""#),
    ]),
    ("apps", &["deployments"], &[
        ("spec.replicas", "1"),
        ("spec.strategy!.type", r#""RollingUpdate""#),
        ("spec.revisionHistoryLimit", "10"),
        ("spec.progressDeadlineSeconds", "600"),
    ]),
    ("apps", &["replicasets"], &[("spec.replicas", "1")]),
    ("apps", &["statefulsets"], &[
        ("spec.podManagementPolicy", r#""OrderedReady""#),
        ("spec.updateStrategy!.type", r#""RollingUpdate""#),
        ("spec.persistentVolumeClaimRetentionPolicy!.whenDeleted", r#""Retain""#),
        ("spec.persistentVolumeClaimRetentionPolicy!.whenScaled", r#""Retain""#),
        ("spec.replicas", "1"),
        ("spec.revisionHistoryLimit", "10"),
        ("spec.volumeClaimTemplates[].apiVersion", r#""v1""#),
        ("spec.volumeClaimTemplates[].kind", r#""PersistentVolumeClaim""#),
        ("spec.volumeClaimTemplates[].status!.phase", r#""Pending""#),
        ("spec.volumeClaimTemplates[].spec.volumeMode", r#""Filesystem""#),
    ]),
    ("apps", &["daemonsets"], &[
        ("spec.updateStrategy!.type", r#""RollingUpdate""#),
        ("spec.revisionHistoryLimit", "10"),
    ]),
    ("batch", &["jobs"], &[
        ("spec.podFailurePolicy.rules[].onPodConditions[].status", r#""True""#),
    ]),
    ("batch", &["cronjobs"], &[
        ("spec.jobTemplate.spec.podFailurePolicy.rules[].onPodConditions[].status", r#""True""#),
        ("spec.concurrencyPolicy", r#""Allow""#),
        ("spec.suspend", "false"),
        ("spec.successfulJobsHistoryLimit", "3"),
        ("spec.failedJobsHistoryLimit", "1"),
    ]),
    ("autoscaling", &["horizontalpodautoscalers"], &[("spec.minReplicas", "1")]),
    ("scheduling.k8s.io", &["priorityclasses"], &[("preemptionPolicy", r#""PreemptLowerPriority""#)]),
    ("storage.k8s.io", &["storageclasses"], &[
        ("reclaimPolicy", r#""Delete""#),
        ("volumeBindingMode", r#""Immediate""#),
    ]),
    ("storage.k8s.io", &["csidrivers"], &[
        ("spec!.attachRequired", "true"),
        ("spec!.podInfoOnMount", "false"),
        ("spec!.storageCapacity", "false"),
        ("spec!.fsGroupPolicy", r#""ReadWriteOnceWithFSType""#),
        ("spec!.volumeLifecycleModes", r#"["Persistent"]"#),
        ("spec!.requiresRepublish", "false"),
        ("spec!.seLinuxMount", "false"),
    ]),
    ("networking.k8s.io", &["networkpolicies"], &[
        ("spec.ingress[].ports[].protocol", r#""TCP""#),
        ("spec.egress[].ports[].protocol", r#""TCP""#),
    ]),
    ("networking.k8s.io", &["ingressclasses"], &[("spec.parameters.scope", r#""Cluster""#)]),
    ("admissionregistration.k8s.io", &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"], &[
        ("webhooks[].failurePolicy", r#""Fail""#),
        ("webhooks[].matchPolicy", r#""Equivalent""#),
        ("webhooks[].namespaceSelector", "{}"),
        ("webhooks[].objectSelector", "{}"),
        ("webhooks[].timeoutSeconds", "10"),
        ("webhooks[].rules[].scope", r#""*""#),
        ("webhooks[].clientConfig.service.port", "443"),
    ]),
    ("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], &[
        ("webhooks[].reinvocationPolicy", r#""Never""#),
    ]),
    ("admissionregistration.k8s.io", &["validatingadmissionpolicies", "mutatingadmissionpolicies"], &[
        ("spec.failurePolicy", r#""Fail""#),
        ("spec.matchConstraints.matchPolicy", r#""Equivalent""#),
        ("spec.matchConstraints.namespaceSelector", "{}"),
        ("spec.matchConstraints.objectSelector", "{}"),
        ("spec.matchConstraints.resourceRules[].scope", r#""*""#),
        ("spec.matchConstraints.excludeResourceRules[].scope", r#""*""#),
    ]),
    ("admissionregistration.k8s.io", &["mutatingadmissionpolicies"], &[
        ("spec.reinvocationPolicy", r#""Never""#),
    ]),
    ("admissionregistration.k8s.io", &["validatingadmissionpolicybindings", "mutatingadmissionpolicybindings"], &[
        ("spec.matchResources.matchPolicy", r#""Equivalent""#),
        ("spec.matchResources.namespaceSelector", "{}"),
        ("spec.matchResources.objectSelector", "{}"),
        ("spec.matchResources.resourceRules[].scope", r#""*""#),
        ("spec.matchResources.excludeResourceRules[].scope", r#""*""#),
    ]),
    ("apiregistration.k8s.io", &["apiservices"], &[("spec.service.port", "443")]),
    ("flowcontrol.apiserver.k8s.io", &["prioritylevelconfigurations"], &[
        ("spec.limited.nominalConcurrencyShares", "30"),
        ("spec.limited.lendablePercent", "0"),
    ]),
    ("certificates.k8s.io", &["podcertificaterequests"], &[("spec.maxExpirationSeconds", "86400")]),
];

/// Defaults of a pod's spec, relative to it; `podSpec.containers` stands for all three lists.
#[rustfmt::skip]
pub const CONTAINER: &[Line] = &[
    ("terminationMessagePath", r#""/dev/termination-log""#),
    ("terminationMessagePolicy", r#""File""#),
    ("resources", "{}"),
    ("ports[].protocol", r#""TCP""#),
    ("env[].valueFrom.fieldRef.apiVersion", r#""v1""#),
    ("lifecycle.postStart.httpGet.path", r#""/""#),
    ("lifecycle.postStart.httpGet.scheme", r#""HTTP""#),
    ("lifecycle.preStop.httpGet.path", r#""/""#),
    ("lifecycle.preStop.httpGet.scheme", r#""HTTP""#),
];

/// Defaults of a probe.
#[rustfmt::skip]
pub const PROBE: &[Line] = &[
    ("timeoutSeconds", "1"),
    ("periodSeconds", "10"),
    ("successThreshold", "1"),
    ("failureThreshold", "3"),
    ("httpGet.path", r#""/""#),
    ("httpGet.scheme", r#""HTTP""#),
    ("grpc.service", r#""""#),
];

/// Defaults of a pod's spec.
#[rustfmt::skip]
pub const POD_SPEC: &[Line] = &[
    ("dnsPolicy", r#""ClusterFirst""#),
    ("restartPolicy", r#""Always""#),
    ("securityContext", "{}"),
    ("terminationGracePeriodSeconds", "30"),
    ("schedulerName", r#""default-scheduler""#),
    ("volumes[].secret.defaultMode", "420"),
    ("volumes[].configMap.defaultMode", "420"),
    ("volumes[].downwardAPI.defaultMode", "420"),
    ("volumes[].downwardAPI.items[].fieldRef.apiVersion", r#""v1""#),
    ("volumes[].projected.defaultMode", "420"),
    ("volumes[].projected.sources[].serviceAccountToken.expirationSeconds", "3600"),
    ("volumes[].projected.sources[].podCertificate.maxExpirationSeconds", "86400"),
    ("volumes[].projected.sources[].downwardAPI.items[].fieldRef.apiVersion", r#""v1""#),
    ("volumes[].hostPath.type", r#""""#),
    ("volumes[].iscsi.iscsiInterface", r#""default""#),
    ("volumes[].ephemeral.volumeClaimTemplate.spec.volumeMode", r#""Filesystem""#),
];

/// Puts the JSON `value` at `path` where nothing is.
pub fn apply(object: &mut Value, path: &str, value: &str) {
    let Some((head, rest)) = path.split_once('.') else {
        // The table's JSON is checked by a test.
        default_to(object, path, || serde_json::from_str(value).unwrap_or(Value::Null));
        return;
    };
    if let Some(list) = head.strip_suffix("[]") {
        if let Some(items) = object.get_mut(list).and_then(Value::as_array_mut) {
            for item in items {
                apply(item, rest, value);
            }
        }
    } else if let Some(made) = head.strip_suffix('!') {
        default_to(object, made, || Value::Object(serde_json::Map::new()));
        if let Some(child) = object.get_mut(made) {
            apply(child, rest, value);
        }
    } else if let Some(child) = object.get_mut(head).filter(|child| child.is_object()) {
        apply(child, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_json() {
        let lines = DEFAULTS.iter().flat_map(|(_, _, lines)| lines.iter());
        for (path, value) in lines.chain(CONTAINER).chain(PROBE).chain(POD_SPEC) {
            assert!(serde_json::from_str::<Value>(value).is_ok(), "{path}: {value}");
        }
    }
}
