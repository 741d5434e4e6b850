//! The RBAC roles and bindings that every cluster starts with, as a table. A rule is a line for
//! [`Rule::from_line`](crate::authz::rules::Rule::from_line).
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings>.

/// One role of the table.
pub struct Role {
    /// Its name.
    pub name: &'static str,
    /// The role into which its rules are aggregated, `admin`, `edit`, `view` or none.
    pub aggregate_to: &'static str,
    /// Its rules; a role that aggregates others has none of its own.
    pub rules: &'static [&'static str],
    /// Whom it is bound to: `user:NAME`, `group:NAME`, `sa:NAMESPACE/NAME`.
    pub subjects: &'static [&'static str],
}

const fn role(
    name: &'static str,
    subjects: &'static [&'static str],
    rules: &'static [&'static str],
) -> Role {
    Role { name, aggregate_to: "", rules, subjects }
}

const fn part(
    name: &'static str,
    aggregate_to: &'static str,
    rules: &'static [&'static str],
) -> Role {
    Role { name, aggregate_to, rules, subjects: &[] }
}

const EVENTS: &str = "create,patch,update -,events.k8s.io events";

/// Roles that gather the rules of those labelled `aggregate-to-NAME`.
pub const AGGREGATED: &[&str] = &["admin", "edit", "view"];

/// Cluster roles for people, components and delegation.
#[rustfmt::skip]
pub const CLUSTER_ROLES: &[Role] = &[
    role("cluster-admin", &["group:system:masters"], &["* * *", "* url *"]),
    role("admin", &[], &[]),
    part("edit", "admin", &[]),
    part("view", "edit", &[]),
    part("system:aggregate-to-admin", "admin", &[
        "create authorization.k8s.io localsubjectaccessreviews",
        "read,write rbac.authorization.k8s.io rolebindings,roles",
    ]),
    part("system:aggregate-to-edit", "edit", &[
        "read - pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
        "impersonate - serviceaccounts",
        "write - pods,pods/attach,pods/exec,pods/portforward,pods/proxy",
        "create - pods/eviction",
        "write - configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy",
        "create - serviceaccounts/token",
        "write apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale",
        "write autoscaling horizontalpodautoscalers",
        "write batch cronjobs,jobs",
        "write extensions daemonsets,deployments,deployments/rollback,deployments/scale,ingresses,networkpolicies,replicasets,replicasets/scale,replicationcontrollers/scale",
        "write policy poddisruptionbudgets",
        "write networking.k8s.io ingresses,networkpolicies",
        "read,write coordination.k8s.io leases",
        "write resource.k8s.io resourceclaims,resourceclaimtemplates",
    ]),
    part("system:aggregate-to-view", "view", &[
        "read - configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
        "read - bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status",
        "read - namespaces",
        "read discovery.k8s.io endpointslices",
        "read apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
        "read autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status",
        "read batch cronjobs,cronjobs/status,jobs,jobs/status",
        "read extensions daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,networkpolicies,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale",
        "read policy poddisruptionbudgets,poddisruptionbudgets/status",
        "read networking.k8s.io ingresses,ingresses/status,networkpolicies",
        "read resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates",
    ]),
    role("system:discovery", &["group:system:authenticated"], &[
        "get url /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
    ]),
    role("system:public-info-viewer", &["group:system:authenticated", "group:system:unauthenticated"], &[
        "get url /healthz,/livez,/readyz,/version,/version/",
    ]),
    role("system:basic-user", &["group:system:authenticated"], &[
        "create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews",
        "create authentication.k8s.io selfsubjectreviews",
    ]),
    role("system:monitoring", &["group:system:monitoring"], &[
        "get url /flagz,/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*,/statusz",
    ]),
    role("system:service-account-issuer-discovery", &["group:system:serviceaccounts"], &[
        "get url /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
    ]),
    role("system:node", &[], crate::authz::node::RULES),
    role("system:node-problem-detector", &[], &["get - nodes", "patch - nodes/status", EVENTS]),
    role("system:kubelet-api-admin", &[], &[
        "read - nodes",
        "proxy - nodes",
        "* - nodes/checkpoint,nodes/configz,nodes/healthz,nodes/log,nodes/metrics,nodes/pods,nodes/proxy,nodes/stats",
    ]),
    role("system:node-bootstrapper", &[], &["create,get,list,watch certificates.k8s.io certificatesigningrequests"]),
    role("system:auth-delegator", &[], &[
        "create authentication.k8s.io tokenreviews",
        "create authorization.k8s.io subjectaccessreviews",
    ]),
    role("system:kube-aggregator", &[], &["read - endpoints,services"]),
    role("system:kube-controller-manager", &["user:system:kube-controller-manager"], &[
        EVENTS,
        "create coordination.k8s.io leases",
        "get,update coordination.k8s.io leases kube-controller-manager",
        "create - secrets,serviceaccounts",
        "delete - secrets",
        "get - configmaps,namespaces,secrets,serviceaccounts",
        "update - secrets,serviceaccounts",
        "create authentication.k8s.io tokenreviews",
        "create authorization.k8s.io subjectaccessreviews",
        "list,watch * *",
        "create - serviceaccounts/token",
    ]),
    role("system:kube-scheduler", &["user:system:kube-scheduler"], &[
        EVENTS,
        "create coordination.k8s.io leases",
        "get,list,update,watch coordination.k8s.io leases kube-scheduler",
        "read - nodes",
        "delete,get,list,watch - pods",
        "create - bindings,pods/binding",
        "patch,update - pods/status",
        "read - replicationcontrollers,services",
        "read apps,extensions replicasets",
        "read apps statefulsets",
        "read policy poddisruptionbudgets",
        "read - persistentvolumeclaims,persistentvolumes",
        "create authentication.k8s.io tokenreviews",
        "create authorization.k8s.io subjectaccessreviews",
        "read storage.k8s.io csinodes",
        "read - namespaces",
        "read storage.k8s.io csidrivers",
        "read storage.k8s.io csistoragecapacities",
        "read storage.k8s.io volumeattachments",
        "create,delete,get,list,patch,update,watch resource.k8s.io resourceclaims",
        "patch,update resource.k8s.io resourceclaims/status",
        "read resource.k8s.io deviceclasses,devicetaintrules,resourceslices",
    ]),
    // Keeps the DNS Service and its endpoints, which stock clusters get from a manifest.
    role("system:coredns", &["sa:kube-system/coredns"], &[
        "create,list,watch - services",
        "create,list,watch discovery.k8s.io endpointslices",
    ]),
    // Makes, attaches and enlarges volumes of the CSI drivers that name their node for it.
    role("system:csi-controller", &["sa:kube-system/csi-controller"], &[
        "create,delete,get,list,patch,update,watch - persistentvolumes",
        "get,list,patch,update,watch - persistentvolumeclaims",
        "patch,update - persistentvolumeclaims/status",
        "get - secrets",
        "read - nodes",
        "read storage.k8s.io csidrivers,csinodes,storageclasses",
        "get,list,patch,update,watch storage.k8s.io volumeattachments",
        "patch,update storage.k8s.io volumeattachments/status",
        "create,delete,get,list,patch,update,watch storage.k8s.io csistoragecapacities",
        EVENTS,
    ]),
    // Serves Ingresses, where that is asked for.
    role("system:ingress", &["sa:kube-system/ingress-controller"], &[
        "read - secrets,services",
        "read discovery.k8s.io endpointslices",
        "read networking.k8s.io ingresses",
        "create,get,list,watch networking.k8s.io ingressclasses",
        "patch,update networking.k8s.io ingresses/status",
        EVENTS,
    ]),
    role("system:kube-dns", &["sa:kube-system/kube-dns"], &["list,watch - endpoints,services"]),
    role("system:persistent-volume-provisioner", &[], &[
        "create,delete,get,list,watch - persistentvolumes",
        "get,list,update,watch - persistentvolumeclaims",
        "read storage.k8s.io storageclasses",
        "watch - events",
        EVENTS,
    ]),
    role("system:volume-scheduler", &["user:system:kube-scheduler"], &[
        "get,list,patch,update,watch - persistentvolumes",
        "read storage.k8s.io storageclasses",
        "get,list,patch,update,watch - persistentvolumeclaims",
    ]),
    role("system:node-proxier", &["user:system:kube-proxy"], &[
        "list,watch - endpoints,services",
        "read - nodes",
        EVENTS,
        "list,watch discovery.k8s.io endpointslices",
        "list,watch networking.k8s.io servicecidrs",
    ]),
    role("system:heapster", &[], &["read - events,namespaces,nodes,pods", "read extensions deployments"]),
    role("system:cluster-trust-bundle-discovery", &["group:system:serviceaccounts"], &[
        "read certificates.k8s.io clustertrustbundles",
    ]),
    role("system:certificates.k8s.io:certificatesigningrequests:nodeclient", &[], &[
        "create certificates.k8s.io certificatesigningrequests/nodeclient",
    ]),
    role("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", &[], &[
        "create certificates.k8s.io certificatesigningrequests/selfnodeclient",
    ]),
    role("system:certificates.k8s.io:kube-apiserver-client-approver", &[], &[
        "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client",
    ]),
    role("system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", &[], &[
        "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet",
    ]),
    role("system:certificates.k8s.io:kubelet-serving-approver", &[], &[
        "approve certificates.k8s.io signers kubernetes.io/kubelet-serving",
    ]),
    role("system:certificates.k8s.io:legacy-unknown-approver", &[], &[
        "approve certificates.k8s.io signers kubernetes.io/legacy-unknown",
    ]),
];

/// The rules of `system:controller:NAME`, bound to the service account NAME in kube-system.
#[rustfmt::skip]
pub const CONTROLLERS: &[(&str, &[&str])] = &[
    ("attachdetach-controller", &[
        "list,watch - persistentvolumeclaims,persistentvolumes",
        "read - nodes",
        "patch,update - nodes/status",
        "list,watch - pods",
        EVENTS,
        "create,delete,get,list,watch storage.k8s.io volumeattachments",
        "read storage.k8s.io csidrivers",
        "read storage.k8s.io csinodes",
    ]),
    ("certificate-controller", &[
        "delete,get,list,watch certificates.k8s.io certificatesigningrequests",
        "update certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status",
        "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet",
        "sign certificates.k8s.io signers kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown",
        "create authorization.k8s.io subjectaccessreviews",
        EVENTS,
    ]),
    ("clusterrole-aggregation-controller", &[
        "escalate,get,list,patch,update,watch rbac.authorization.k8s.io clusterroles",
    ]),
    ("cronjob-controller", &[
        "get,list,update,watch batch cronjobs",
        "create,delete,get,list,patch,update,watch batch jobs",
        "update batch cronjobs/status",
        "update batch cronjobs/finalizers",
        "delete,list,watch - pods",
        EVENTS,
    ]),
    ("daemon-set-controller", &[
        "read apps,extensions daemonsets",
        "update apps,extensions daemonsets/status",
        "update apps,extensions daemonsets/finalizers",
        "list,watch - nodes",
        "create,delete,list,patch,watch - pods",
        "create - pods/binding",
        "create,delete,get,list,patch,update,watch apps controllerrevisions",
        EVENTS,
    ]),
    ("deployment-controller", &[
        "get,list,update,watch apps,extensions deployments",
        "update apps,extensions deployments/status",
        "update apps,extensions deployments/finalizers",
        "create,delete,get,list,patch,update,watch apps,extensions replicasets",
        "get,list,update,watch - pods",
        EVENTS,
    ]),
    ("device-taint-eviction-controller", &[
        "delete,get,list,watch - pods",
        "patch,update - pods/status",
        "read resource.k8s.io deviceclasses,devicetaintrules,resourceclaims,resourceslices",
        EVENTS,
    ]),
    ("disruption-controller", &[
        "read apps,extensions deployments",
        "read apps,extensions replicasets",
        "read - replicationcontrollers",
        "read policy poddisruptionbudgets",
        "read apps statefulsets",
        "update policy poddisruptionbudgets/status",
        "patch,update - pods/status",
        "get * */scale",
        EVENTS,
    ]),
    ("endpoint-controller", &[
        "read - pods,services",
        "create,delete,get,list,update,watch - endpoints",
        "create - endpoints/restricted",
        EVENTS,
    ]),
    ("endpointslice-controller", &[
        "read - nodes,pods,services",
        "update - services/finalizers",
        "create,delete,get,list,update,watch discovery.k8s.io endpointslices",
        EVENTS,
    ]),
    ("endpointslicemirroring-controller", &[
        "read - endpoints,services",
        "update - services/finalizers",
        "update - endpoints/finalizers",
        "create,delete,get,list,update,watch discovery.k8s.io endpointslices",
        EVENTS,
    ]),
    ("ephemeral-volume-controller", &[
        "read - pods",
        "update - pods/finalizers",
        "create,get,list,watch - persistentvolumeclaims",
        EVENTS,
    ]),
    ("expand-controller", &[
        "get,list,patch,update,watch - persistentvolumes",
        "patch,update - persistentvolumeclaims/status",
        "read - persistentvolumeclaims",
        "get - services",
        EVENTS,
    ]),
    ("generic-garbage-collector", &["delete,get,list,patch,update,watch * *", EVENTS]),
    ("horizontal-pod-autoscaler", &[
        "read autoscaling horizontalpodautoscalers",
        "update autoscaling horizontalpodautoscalers/status",
        "get,update * */scale",
        "list,watch - pods",
        "list,watch metrics.k8s.io pods",
        "read custom.metrics.k8s.io *",
        "read external.metrics.k8s.io *",
        EVENTS,
    ]),
    ("job-controller", &[
        "get,list,patch,update,watch batch jobs",
        "update batch jobs/status",
        "update batch jobs/finalizers",
        "create,delete,list,patch,watch - pods",
        EVENTS,
    ]),
    ("kube-apiserver-serving-clustertrustbundle-publisher", &[
        "attest certificates.k8s.io signers kubernetes.io/kube-apiserver-serving",
        "create,delete,list,update,watch certificates.k8s.io clustertrustbundles",
        EVENTS,
    ]),
    ("legacy-service-account-token-cleaner", &[
        "get - configmaps kube-apiserver-legacy-service-account-token-tracking",
        "delete,patch - secrets",
    ]),
    ("namespace-controller", &[
        "delete,get,list,watch - namespaces",
        "update - namespaces/finalize,namespaces/status",
        "delete,deletecollection,get,list,watch * *",
    ]),
    ("node-controller", &[
        "delete,get,list,patch,update,watch - nodes",
        "patch,update - nodes/status",
        "patch,update - pods/status",
        "delete,get,list,watch - pods",
        EVENTS,
    ]),
    ("persistent-volume-binder", &[
        "create,delete,get,list,update,watch - persistentvolumes",
        "update - persistentvolumes/status",
        "get,list,update,watch - persistentvolumeclaims",
        "update - persistentvolumeclaims/status",
        "create,delete,get,list,watch - pods",
        "read storage.k8s.io storageclasses",
        "list,watch - nodes",
        "watch - events",
        "get - services",
        EVENTS,
    ]),
    ("pod-garbage-collector", &["delete,list,watch - pods", "read - nodes", "patch - pods/status"]),
    ("pv-protection-controller", &["get,list,update,watch - persistentvolumes", EVENTS]),
    ("pvc-protection-controller", &[
        "get,list,update,watch - persistentvolumeclaims",
        "read - pods",
        EVENTS,
    ]),
    ("replicaset-controller", &[
        "get,list,update,watch apps,extensions replicasets",
        "update apps,extensions replicasets/status",
        "update apps,extensions replicasets/finalizers",
        "create,delete,list,patch,watch - pods",
        EVENTS,
    ]),
    ("replication-controller", &[
        "get,list,update,watch - replicationcontrollers",
        "update - replicationcontrollers/status",
        "update - replicationcontrollers/finalizers",
        "create,delete,list,patch,watch - pods",
        EVENTS,
    ]),
    ("resource-claim-controller", &[
        "read - pods",
        "update - pods/finalizers",
        "create,delete,get,list,watch resource.k8s.io resourceclaims",
        "patch,update resource.k8s.io resourceclaims,resourceclaims/status",
        "patch,update - pods/status",
        EVENTS,
    ]),
    ("resourcequota-controller", &["list,watch * *", "update - resourcequotas/status", EVENTS]),
    ("root-ca-cert-publisher", &["create,update - configmaps", EVENTS]),
    ("route-controller", &["list,watch - nodes", "patch - nodes/status", EVENTS]),
    ("selinux-warning-controller", &[
        "read - persistentvolumeclaims,persistentvolumes,pods",
        "read storage.k8s.io csidrivers",
        EVENTS,
    ]),
    ("service-account-controller", &["create - serviceaccounts", EVENTS]),
    ("service-cidrs-controller", &[
        "get,list,patch,update,watch networking.k8s.io servicecidrs",
        "patch,update networking.k8s.io servicecidrs/finalizers",
        "patch,update networking.k8s.io servicecidrs/status",
        "read networking.k8s.io ipaddresses",
        EVENTS,
    ]),
    ("service-controller", &[
        "read - services",
        "patch,update - services/status",
        "list,watch - nodes",
        EVENTS,
    ]),
    ("statefulset-controller", &[
        "list,watch - pods",
        "read apps statefulsets",
        "update apps statefulsets/status",
        "update apps statefulsets/finalizers",
        "create,delete,get,patch,update - pods",
        "create,delete,get,list,patch,update,watch apps controllerrevisions",
        "create,get,list,watch - persistentvolumeclaims",
        "delete,update - persistentvolumeclaims",
        "update - pods/finalizers",
        EVENTS,
    ]),
    ("storage-version-migrator-controller", &[
        "get,list,patch,watch * *",
        "patch,update storagemigration.k8s.io storageversionmigrations/status",
        EVENTS,
    ]),
    ("ttl-after-finished-controller", &["delete,get,list,watch batch jobs", EVENTS]),
    ("ttl-controller", &["list,patch,update,watch - nodes", EVENTS]),
    ("validatingadmissionpolicy-status-controller", &[
        "read admissionregistration.k8s.io validatingadmissionpolicies",
        "get,patch,update admissionregistration.k8s.io validatingadmissionpolicies/status",
        EVENTS,
    ]),
    ("volumeattributesclass-protection-controller", &[
        "read - persistentvolumeclaims,persistentvolumes",
        "get,list,update,watch storage.k8s.io volumeattributesclasses",
        EVENTS,
    ]),
];

/// Roles within a namespace, with the namespace first.
#[rustfmt::skip]
pub const NAMESPACED: &[(&str, Role)] = &[
    ("kube-system", role(
        "extension-apiserver-authentication-reader",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler"],
        &["read - configmaps extension-apiserver-authentication"],
    )),
    ("kube-system", role(
        "system::leader-locking-kube-controller-manager",
        &["user:system:kube-controller-manager", "sa:kube-system/kube-controller-manager"],
        &["watch - configmaps", "get,update - configmaps kube-controller-manager"],
    )),
    ("kube-system", role(
        "system::leader-locking-kube-scheduler",
        &["user:system:kube-scheduler", "sa:kube-system/kube-scheduler"],
        &["watch - configmaps", "get,update - configmaps kube-scheduler"],
    )),
    ("kube-system", role(
        "system:controller:bootstrap-signer",
        &["sa:kube-system/bootstrap-signer"],
        &["read - secrets"],
    )),
    ("kube-system", role(
        "system:controller:cloud-provider",
        &["sa:kube-system/cloud-provider"],
        &["create,get,list,update,watch - configmaps"],
    )),
    ("kube-system", role(
        "system:controller:token-cleaner",
        &["sa:kube-system/token-cleaner"],
        &["delete,get,list,watch - secrets", EVENTS],
    )),
    ("kube-public", role(
        "system:controller:bootstrap-signer",
        &["sa:kube-system/bootstrap-signer"],
        &["read - configmaps", "update - configmaps cluster-info", EVENTS],
    )),
    // A machine that joins knows nothing yet but where the API is.
    ("kube-public", role(
        "kubeadm:bootstrap-signer-clusterinfo",
        &["user:system:anonymous"],
        &["get - configmaps cluster-info"],
    )),
];
