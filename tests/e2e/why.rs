//! `rootlet why`: pods that do not run, each for another reason, and what is said of them.

use crate::harness::{Answer, Cluster, eventually, run};

const FAILING: &str = include_str!("strangers/failing.yaml");

/// Whom it is asked about, and words of the finding, the evidence and the remedy.
const CASES: [(&str, &[&str]); 44] = [
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
    ("deploy/absent", &["deployments.apps \"absent\" not found"]),
];

#[test]
fn what_holds_a_pod_is_named_with_its_remedy() {
    let cluster = Cluster::ephemeral();
    cluster.apply(FAILING);
    let ask = |words: &str| -> Answer {
        run(cluster
            .command("rootlet")
            .args(["why", "--name", &cluster.name])
            .args(words.split(' ')))
    };
    // Pods of no node are gone after a while: it comes first.
    let (first, rest): (Vec<_>, Vec<_>) = CASES.iter().partition(|(of, _)| *of == "nodename");
    for (of, parts) in first.into_iter().chain(rest) {
        eventually(of, || {
            let said = ask(of);
            let text = said.out + &said.err;
            match parts.iter().find(|part| !text.contains(**part)) {
                Some(part) => Err(format!("{part:?} is not in {text}")),
                None => Ok(()),
            }
        });
    }
}
