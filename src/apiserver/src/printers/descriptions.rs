//! What the columns of tables hold, for clients that explain them.

/// `metadata.name`, in the API's own words.
pub const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// `metadata.creationTimestamp`, in the API's own words.
pub const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// Kind, column, and what it holds; a kind of `*` is every other.
const TEXTS: &[(&str, &str, &str)] = &[
    ("*", "Name", NAME),
    ("*", "Age", CREATED),
    ("*", "Created At", CREATED),
    ("*", "Containers", "Names of each container in the template."),
    ("*", "Images", "Images referenced by each container in the template."),
    ("*", "Selector", "Labels of the pods that belong to it."),
    ("NodeMetrics", "cpu", "How much CPU the node uses."),
    ("NodeMetrics", "memory", "How much memory the node uses."),
    ("NodeMetrics", "Window", "How long that was measured."),
    ("PodMetrics", "cpu", "How much CPU the pod's containers use together."),
    ("PodMetrics", "memory", "How much memory the pod's containers use together."),
    ("PodMetrics", "Window", "How long that was measured."),
    // Pods and what makes them.
    ("Pod", "Ready", "How many of the pod's containers are ready, of how many."),
    ("Pod", "Status", "The state of the pod, summed up from its containers."),
    ("Pod", "Restarts", "How often its containers were restarted, and when the last one was."),
    ("Pod", "IP", "The address of the pod in the cluster."),
    ("Pod", "Node", "The node that runs the pod, or is to run it."),
    ("Pod", "Nominated Node", "The node on which room is being made for the pod."),
    (
        "Pod",
        "Readiness Gates",
        "How many of the conditions that the pod must meet to be ready hold.",
    ),
    ("PodTemplate", "Pod Labels", "The labels of the template."),
    ("Deployment", "Ready", "Number of ready pods, and of those that are wanted."),
    ("Deployment", "Up-to-date", "Number of pods that have the wanted template."),
    (
        "Deployment",
        "Available",
        "Number of pods that have been ready for at least minReadySeconds.",
    ),
    ("StatefulSet", "Ready", "Number of ready pods, and of those that are wanted."),
    ("DaemonSet", "Desired", "Number of nodes that should run the pod."),
    ("DaemonSet", "Current", "Number of nodes that run at least one pod and should."),
    ("DaemonSet", "Ready", "Number of nodes whose pod is ready."),
    ("DaemonSet", "Up-to-date", "Number of nodes that run the wanted template."),
    (
        "DaemonSet",
        "Available",
        "Number of nodes whose pod has been ready for at least minReadySeconds.",
    ),
    ("DaemonSet", "Node Selector", "Labels a node must have to run the pod."),
    ("*", "Desired", "Number of pods that are wanted."),
    ("*", "Current", "Number of pods that there are."),
    ("*", "Ready", "Number of pods that are ready."),
    ("Job", "Status", "Whether the job runs, is suspended, has failed or is complete."),
    ("Job", "Completions", "Number of pods that have succeeded, and of those that must."),
    ("Job", "Duration", "Time from its start to its end, or until now."),
    ("CronJob", "Schedule", "When jobs are made, in the format of cron."),
    (
        "CronJob",
        "Timezone",
        "The time zone of the schedule; that of the controller manager where none is given.",
    ),
    ("CronJob", "Suspend", "Whether no further jobs are made."),
    ("CronJob", "Active", "Number of its jobs that run."),
    ("CronJob", "Last Schedule", "When a job was made last."),
    ("ControllerRevision", "Controller", "The object that owns the revision."),
    ("ControllerRevision", "Revision", "Number of the state that is kept."),
    ("HorizontalPodAutoscaler", "Reference", "The object whose number of pods is changed."),
    ("HorizontalPodAutoscaler", "Targets", "What is measured, and what is wanted."),
    ("HorizontalPodAutoscaler", "MinPods", "The smallest number of pods that it sets."),
    ("HorizontalPodAutoscaler", "MaxPods", "The greatest number of pods that it sets."),
    ("HorizontalPodAutoscaler", "Replicas", "Number of pods as it saw it last."),
    ("PodDisruptionBudget", "Min Available", "The minimum number of pods that must be available."),
    (
        "PodDisruptionBudget",
        "Max Unavailable",
        "The maximum number of pods that may be unavailable.",
    ),
    ("PodDisruptionBudget", "Allowed Disruptions", "Number of pods that may be evicted now."),
    // Nodes and the cluster.
    ("Node", "Status", "Whether the node is ready, and whether pods may be scheduled to it."),
    ("Node", "Roles", "Its roles, by labels node-role.kubernetes.io/ROLE."),
    ("Node", "Version", "The version of its kubelet."),
    ("Node", "Internal-IP", "Its address within the cluster."),
    ("Node", "External-IP", "Its address for the outside."),
    ("Node", "OS-Image", "Its operating system, as /etc/os-release names it."),
    ("Node", "Kernel-Version", "Its kernel."),
    ("Node", "Container-Runtime", "Its container runtime, with the version."),
    ("Namespace", "Status", "Whether the namespace is in use or on its way out."),
    ("ConfigMap", "Data", "Number of entries."),
    ("Secret", "Type", "What the secret is for."),
    ("Secret", "Data", "Number of entries."),
    ("ServiceAccount", "Secrets", "Number of secrets that it names."),
    ("Event", "Last Seen", "When it happened last."),
    ("Event", "First Seen", "When it happened first."),
    ("Event", "Count", "How often it happened."),
    ("Event", "Type", "Normal or Warning."),
    ("Event", "Reason", "Why it happened, in one word for programs."),
    ("Event", "Object", "The object that it happened to."),
    ("Event", "Subobject", "The part of that object."),
    ("Event", "Source", "The component that tells of it."),
    ("Event", "Message", "What happened, in words for people."),
    ("ResourceQuota", "Request", "Requests of resources that are in use, and their limits."),
    ("ResourceQuota", "Limit", "Limits of resources that are in use, and what they may sum up to."),
    ("ComponentStatus", "Status", "Whether the component is healthy."),
    ("ComponentStatus", "Message", "What the component says."),
    ("ComponentStatus", "Error", "What went wrong when it was asked."),
    ("APIService", "Service", "The service behind which the group version is, or Local."),
    ("APIService", "Available", "Whether it answers, and if not, why."),
    ("Lease", "Holder", "Who holds the lease."),
    ("LeaseCandidate", "LeaseName", "The lease that it is a candidate for."),
    ("LeaseCandidate", "BinaryVersion", "Its version."),
    ("LeaseCandidate", "EmulationVersion", "The version that it behaves as."),
    ("PriorityClass", "Value", "The priority of pods of this class."),
    ("PriorityClass", "Global-Default", "Whether pods without a class have this one."),
    ("PriorityClass", "PreemptionPolicy", "Whether its pods may take the place of others."),
    ("RuntimeClass", "Handler", "The configuration of the container runtime that is used."),
    // Access.
    ("*", "Role", "The role that is granted."),
    ("*", "Users", "Users to whom the role is granted."),
    ("*", "Groups", "Groups to whom the role is granted."),
    ("*", "ServiceAccounts", "Service accounts to whom the role is granted."),
    ("CertificateSigningRequest", "SignerName", "The signer that is asked."),
    ("CertificateSigningRequest", "Requestor", "Who asks."),
    ("CertificateSigningRequest", "RequestedDuration", "How long the certificate is to be valid."),
    ("CertificateSigningRequest", "Condition", "Whether it was approved, denied, signed."),
    ("ClusterTrustBundle", "SignerName", "The signer whose anchors these are."),
    ("*", "Webhooks", "Number of webhooks."),
    ("*", "Validations", "Number of expressions that must hold."),
    ("*", "Mutations", "Number of changes that are made."),
    ("*", "ParamKind", "The kind of its parameters."),
    ("*", "PolicyName", "The policy that is bound."),
    ("*", "ParamRef", "The parameters that the policy is bound with."),
    ("FlowSchema", "PriorityLevel", "The priority level of its requests."),
    (
        "FlowSchema",
        "MatchingPrecedence",
        "Its place among the others: the smallest number is asked first.",
    ),
    ("FlowSchema", "DistinguisherMethod", "What makes flows of its requests."),
    ("FlowSchema", "MissingPL", "Whether its priority level is missing."),
    ("PriorityLevelConfiguration", "Type", "Whether its requests are limited."),
    (
        "PriorityLevelConfiguration",
        "NominalConcurrencyShares",
        "Its share of the requests that are served at once.",
    ),
    ("PriorityLevelConfiguration", "Queues", "Number of queues."),
    ("PriorityLevelConfiguration", "HandSize", "Number of queues that one flow may use."),
    (
        "PriorityLevelConfiguration",
        "QueueLengthLimit",
        "Number of requests that wait in one queue at most.",
    ),
    // The network.
    (
        "Service",
        "Type",
        "How the service is offered: ClusterIP, NodePort, LoadBalancer or ExternalName.",
    ),
    ("Service", "Cluster-IP", "Its address within the cluster."),
    ("Service", "External-IP", "Addresses or names by which it is reached from outside."),
    ("Service", "Port(s)", "Its ports, with their node ports."),
    ("Endpoints", "Endpoints", "Addresses and ports behind the service."),
    ("EndpointSlice", "AddressType", "Whether these are IPv4 or IPv6 addresses, or names."),
    ("EndpointSlice", "Ports", "Ports of all endpoints."),
    ("EndpointSlice", "Endpoints", "Addresses of the endpoints."),
    ("Ingress", "Class", "The class, and so the controller, of the ingress."),
    ("Ingress", "Hosts", "Hosts that incoming requests are matched against."),
    ("Ingress", "Address", "Addresses of the load balancer."),
    ("Ingress", "Ports", "Ports that are open: 443 where TLS is configured."),
    ("IngressClass", "Controller", "The controller of the class."),
    ("*", "Parameters", "The object that has further configuration."),
    ("NetworkPolicy", "Pod-Selector", "The pods that the policy is about."),
    ("ServiceCIDR", "CIDRs", "Ranges from which addresses are given to services."),
    ("IPAddress", "ParentRef", "The object that has the address."),
    // Storage.
    (
        "PersistentVolumeClaim",
        "Status",
        "Whether the claim waits, is bound or has lost its volume.",
    ),
    ("PersistentVolumeClaim", "Volume", "The volume that it is bound to."),
    ("PersistentVolume", "Status", "Whether the volume is available, bound, released or failed."),
    ("PersistentVolume", "Claim", "The claim that it is bound to."),
    ("PersistentVolume", "Reclaim Policy", "What becomes of it when its claim is gone."),
    ("PersistentVolume", "Reason", "Why it is in its state."),
    ("CSIStorageCapacity", "StorageClassName", "The class of volumes that there is room for."),
    ("*", "Capacity", "Its size."),
    (
        "*",
        "Access Modes",
        "How it can be mounted: by how many nodes or pods, and for writing or not.",
    ),
    ("*", "StorageClass", "The class of the volume."),
    ("*", "VolumeAttributesClass", "The class of the volume's attributes."),
    ("*", "VolumeMode", "Whether it is a file system or a block device."),
    ("StorageClass", "Provisioner", "Who makes volumes of this class."),
    ("StorageClass", "ReclaimPolicy", "What becomes of a volume when its claim is gone."),
    ("StorageClass", "VolumeBindingMode", "Whether volumes are made at once or for the first pod."),
    ("StorageClass", "AllowVolumeExpansion", "Whether its volumes can grow."),
    ("VolumeAttributesClass", "DriverName", "The driver that knows the attributes."),
    ("VolumeAttachment", "Attacher", "The driver that attaches the volume."),
    ("VolumeAttachment", "PV", "The volume."),
    ("VolumeAttachment", "Node", "The node that it is attached to."),
    ("VolumeAttachment", "Attached", "Whether it is attached."),
    ("CSINode", "Drivers", "Number of drivers on the node."),
    ("CSIDriver", "AttachRequired", "Whether volumes are attached before they are mounted."),
    ("CSIDriver", "PodInfoOnMount", "Whether the driver is told of the pod."),
    (
        "CSIDriver",
        "StorageCapacity",
        "Whether the room that the driver tells of counts for scheduling.",
    ),
    ("CSIDriver", "TokenRequests", "Audiences of the tokens that the driver is given."),
    ("CSIDriver", "RequiresRepublish", "Whether mounted volumes are published again and again."),
    ("CSIDriver", "Modes", "For which kinds of volumes the driver is."),
    // Devices.
    ("ResourceClaim", "State", "Whether devices are allocated and reserved."),
    ("ResourceSlice", "Node", "The node that has the devices."),
    ("ResourceSlice", "Driver", "The driver of the devices."),
    ("ResourceSlice", "Pool", "The pool of the devices."),
];

/// What `column` of `kind` holds.
pub fn of(kind: &str, column: &str) -> &'static str {
    let named = |wanted: &str| {
        TEXTS.iter().find(|(of, name, _)| *of == wanted && *name == column).map(|(.., text)| *text)
    };
    named(kind).or_else(|| named("*")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Served;

    #[test]
    fn every_column_is_described() {
        let mut used = std::collections::HashSet::new();
        for resource in Served::builtin().all() {
            for (column, ..) in super::super::printer(resource).columns {
                assert!(!of(&resource.kind, column).is_empty(), "{} {column}", resource.kind);
                used.insert((resource.kind.clone(), *column));
            }
        }
        let kinds: std::collections::HashSet<String> =
            used.iter().map(|(kind, _)| kind.clone()).collect();
        // Some kinds are not served by default.
        for (kind, column, _) in TEXTS.iter().filter(|(of, ..)| *of == "*" || kinds.contains(*of)) {
            let known =
                |(of, name): &(String, &str)| (*kind == "*" || of == kind) && name == column;
            assert!(used.iter().any(known), "{kind} has no column {column}");
        }
    }
}
