//! `rootlet why`: pods that do not run, each for another reason, and what is said of them.

use crate::harness::{Answer, BUSYBOX, Cluster, eventually, run};
use crate::registry::Registry;

const FAILING: &str = include_str!("strangers/failing.yaml");

/// Whom it is asked about, and words of the finding, the evidence and the remedy.
const CASES: [(&str, &[&str]); 54] = [
    (
        "no-image",
        &["\"localhost:5999/none:1\" of container c is not to be had", "refused", "registry runs"],
    ),
    ("badname", &["invalid reference format", "small letters"]),
    ("never-pull", &["policy of Never", "rootlet image load"]),
    (
        "crash",
        &[
            "ended with exit code 3",
            "Its last words:\n  no database",
            "kubectl logs -n default crash -c c",
        ],
    ),
    ("missing-cm", &["configmap \"none\" not found", "create what is missing"]),
    ("missing-key", &["couldn't find key nokey in ConfigMap", "create what is missing"]),
    (
        "missing-secret-volume",
        &["a volume cannot be mounted", "secret \"none\" not found", "optional"],
    ),
    (
        "missing-pvc",
        &["no node suits it", "persistentvolumeclaim \"none\" not found", "create the claim"],
    ),
    ("unbound-pvc", &["unbound immediate PersistentVolumeClaims", "describe pvc"]),
    ("too-big", &["Insufficient cpu", "lower resources.requests"]),
    ("selector", &["node affinity/selector", "label a node"]),
    ("nodename", &["bound to node elsewhere", "whether there is such a node"]),
    ("affinity", &["pod affinity rules", "start that pod first"]),
    ("spread", &["missing required label", "topologyKey"]),
    ("port2", &["free ports", "another pod has the host port"]),
    ("readiness", &["its readiness probe fails", "refused", "what the probe asks for"]),
    ("liveness", &["its liveness probe", "/none", "asks the right thing"]),
    ("startup", &["its startup probe", "failureThreshold"]),
    ("init", &["init container i ended with exit code 1", "kubectl logs -n default init -c i"]),
    ("init-waits", &["init container i runs still", "kubectl logs -n default init-waits -c i"]),
    ("gated", &["scheduling gates", "example.com/wait", "schedulingGates"]),
    ("readonly", &["Read-only file system", "emptyDir"]),
    ("not-found", &["executable file not found in $PATH", "sh -c"]),
    ("sh-not-found", &["exit code 127", "nothing-here: not found", "command was not found"]),
    ("no-permission", &["permission denied", "chmod +x"]),
    ("write-as-user", &["Permission denied", "runAsUser"]),
    ("nonroot", &["has runAsNonRoot", "securityContext.runAsUser"]),
    ("scheduler", &["scheduler \"mine\" has not looked at it", "spec.schedulerName"]),
    ("exits0", &["exit code 0", "make it a Job"]),
    ("subpath", &["/etc/passwd/x", "another mountPath"]),
    ("hostpath", &["hostPath type check failed", "OrCreate"]),
    ("gate", &["conditions that others set", "example.com/ok", "readinessGates"]),
    ("deadline", &["it has failed: DeadlineExceeded", "activeDeadlineSeconds"]),
    ("hook", &["postStart hook failed", "lifecycle.postStart"]),
    ("no-profile", &["none.json", "profile"]),
    ("done", &["nothing holds it: it has run to its end"]),
    ("port1", &["nothing holds it: it is Running and Ready"]),
    ("deployment/web -n q", &["ReplicaSet q/web-", "exceeded quota", "raise the ResourceQuota"]),
    ("deploy/web -n psa", &["violates PodSecurity", "pod-security.kubernetes.io/enforce"]),
    ("sts/nosa", &["serviceaccount \"none\" not found", "create the service account"]),
    ("job/hooked -n hookns", &["failed calling webhook", "webhook's service has running pods"]),
    ("ds/prio", &["no PriorityClass with name none", "create the priority class"]),
    ("deploy/big -n lim", &["maximum memory usage per Container", "LimitRange"]),
    ("foreign", &["exec /w/x: exec format error", "another architecture"]),
    ("no-interpreter", &["exec /w/x: no such file or directory", "first line"]),
    ("library", &["libssl.so.3", "a library that it needs is not in the image"]),
    ("names", &["NXDOMAIN", "see that the Service exists"]),
    ("inside", &["Address already in use", "two containers of the pod"]),
    ("svc/none", &["no pod has the labels that it selects, app=none", "make spec.selector"]),
    ("service/named", &["its pods have no port named \"htpp\"", "They have http"]),
    ("svc/crashing", &["by its Pod crash", "ended with exit code 3"]),
    ("pvc/alone", &["it waits for a pod that uses it", "create the pod"]),
    ("pvc/noclass", &["there is no storage class \"nothing\"", "kubectl get storageclass"]),
    ("deploy/absent", &["deployments.apps \"absent\" not found"]),
];

/// Asks about something until the answer has all parts.
fn told(cluster: &Cluster, of: &str, parts: &[&str]) {
    let ask = || -> Answer {
        let name = ["why", "--name", &cluster.name];
        run(cluster.command("rootlet").args(name).args(of.split(' ')))
    };
    eventually(of, || {
        let said = ask();
        let text = said.out + &said.err;
        match parts.iter().find(|part| !text.contains(**part)) {
            Some(part) => Err(format!("{part:?} is not in {text}")),
            None => Ok(()),
        }
    });
}

#[test]
fn what_holds_a_pod_is_named_with_its_remedy() {
    let cluster = Cluster::ephemeral();
    cluster.apply(FAILING);
    // Pods of no node are gone after a while: it comes first.
    let (first, rest): (Vec<_>, Vec<_>) = CASES.iter().partition(|(of, _)| *of == "nodename");
    for (of, parts) in first.into_iter().chain(rest) {
        told(&cluster, of, parts);
    }
    // A kubeconfig names a cluster as well as rootlet's own name of it does.
    let mut command = cluster.command("rootlet");
    command.env_remove("ROOTLET_NAME").env("KUBECONFIG", cluster.path("kubeconfig"));
    let said = run(command.args(["why", "done"]));
    assert!(said.out.contains("it has run to its end"), "{} {}", said.out, said.err);
}

#[test]
fn what_a_registry_denies_is_told() {
    let cluster = Cluster::ephemeral();
    let (users, (tls, _)) = (Registry::with_users(), Registry::with_tls());
    let foreign = Registry::plain();
    let digest = foreign.push("app:1", &[]);
    // An index that has the image for another machine only.
    let index = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{{\
         \"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"digest\":\"{digest}\",\
         \"size\":{},\"platform\":{{\"architecture\":\"s390x\",\"os\":\"linux\"}}}}]}}",
        foreign.manifest("app", &digest).len()
    );
    foreign.put_index("app", "foreign", &index);
    for (name, image) in [
        ("denied", users.image("app:1")),
        ("untrusted", tls.image("app:1")),
        ("foreign", foreign.image("app:foreign")),
    ] {
        cluster.kubectl_ok(&["run", name, "--image", &image]);
    }
    told(&cluster, "denied", &["is not to be had", "authorization failed", "imagePullSecrets"]);
    told(&cluster, "untrusted", &["is not to be had", "certificate", "CA in registries.yaml"]);
    told(&cluster, "foreign", &["is not to be had", "linux/amd64", "this machine's architecture"]);
}

/// What needs drivers, devices or somebody's leave.
const WAITING: &str = r#"
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: none.example.com}
spec: {attachRequired: false}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: driven}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: driven, csi: {driver: none.example.com, volumeHandle: x}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: driven}
spec: {storageClassName: driven, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: driver}
spec: {containers: [{name: c, image: "localhost/busybox:test"}], volumes: [{name: v, persistentVolumeClaim: {claimName: driven}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: gpu}
spec: {devices: {requests: [{name: r, exactly: {deviceClassName: gpu.example.com}}]}}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu.example.com}
spec: {}
---
apiVersion: v1
kind: Pod
metadata: {name: device}
spec: {resourceClaims: [{name: gpu, resourceClaimName: gpu}], containers: [{name: c, image: "localhost/busybox:test"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-claim}
spec: {resourceClaims: [{name: gpu, resourceClaimName: none}], containers: [{name: c, image: "localhost/busybox:test"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: kept, finalizers: [example.com/kept]}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "localhost/busybox:test", command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: evicted}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "localhost/busybox:test", command: [sh, -c, "head -c 9000000 /dev/zero > /v/x; sleep 1000"], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
"#;

#[test]
fn what_waits_for_others_is_told() {
    let cluster = Cluster::ephemeral();
    cluster.apply(WAITING);
    told(&cluster, "driver", &["a volume cannot be mounted", "none.example.com", "CSI driver"]);
    told(&cluster, "device", &["no node suits it", "cannot allocate all claims", "resourceslices"]);
    told(&cluster, "no-claim", &["resourceclaim \"none\" not found", "create the resource claim"]);
    told(&cluster, "kept", &["nothing holds it"]);
    cluster.kubectl_ok(&["delete", "pod", "kept", "--wait=false"]);
    told(&cluster, "kept", &["kept by its finalizers", "example.com/kept", "controller that set"]);
    cluster.kubectl_ok(&["patch", "pod", "kept", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    told(
        &cluster,
        "evicted",
        &["it has failed: Evicted", "EmptyDir volume \"v\"", "raise the limit"],
    );

    let node = cluster.kubectl_ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    cluster.kubectl_ok(&["taint", "node", &node, "example.com/only=gpus:NoSchedule"]);
    cluster.kubectl_ok(&["run", "tainted", "--image", BUSYBOX]);
    told(&cluster, "tainted", &["has example.com/only=gpus:NoSchedule", "remove the taint"]);
    cluster.kubectl_ok(&["taint", "node", &node, "example.com/only-"]);
    cluster.kubectl_ok(&["cordon", &node]);
    cluster.kubectl_ok(&["run", "cordoned", "--image", BUSYBOX]);
    told(&cluster, "cordoned", &["were unschedulable", "kubectl uncordon"]);
}

#[test]
fn a_silent_node_is_told() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--disable", "kubelet"]);
    cluster.apply("apiVersion: v1\nkind: Node\nmetadata: {name: silent}\n");
    cluster.kubectl_ok(&["run", "nowhere", "--image", BUSYBOX]);
    told(&cluster, "nowhere", &["Node silent has node.kubernetes.io/", "rootlet status"]);
}
