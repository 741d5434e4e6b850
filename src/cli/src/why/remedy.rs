//! What a message contains, and what to do then. The first line that fits counts.

/// A part of a message, and the remedy.
type Table = &'static [(&'static str, &'static str)];

const CREDENTIALS: &str = "name credentials: imagePullSecrets, registries.yaml or `docker login`";
const WRITABLE: &str = "give it a volume to write to, such as an emptyDir at that path";
const OWNER: &str = "see as which user it runs (securityContext.runAsUser) and whose the path is; fsGroup makes volumes its own";
const NAMES: &str = "see that the Service exists; one of another namespace is NAME.NAMESPACE";
const RESOLVES: &str = "see that names resolve in the pod (kubectl exec … -- nslookup kubernetes.default), and that its dnsPolicy and network policies let it ask";
const LIBRARY: &str = "a library that it needs is not in the image: install it there, or build the program statically";
const FOREIGN: &str =
    "the program is for another architecture: build or choose an image for this machine's";
const ENDPOINTS: &str =
    "see that what it connects to runs and has endpoints: kubectl get endpointslices";

/// Why no node suits a pod: of each of the scheduler's plugins.
pub const UNSCHEDULED: Table = &[
    ("Insufficient ", "lower resources.requests, or end other pods"),
    ("Too many pods", "end other pods, or `rootlet up --max-pods N`"),
    ("disk-pressure", "free space on the disk that holds the cluster's data: rootlet image prune"),
    ("memory-pressure", "end what uses the memory: rootlet top pod -A --sort-by memory"),
    ("pid-pressure", "end what has so many processes"),
    (
        "node.kubernetes.io/not-ready",
        "the node is not Ready: rootlet status and rootlet logs say why",
    ),
    (
        "node.kubernetes.io/unreachable",
        "the node's kubelet does not report: rootlet status and rootlet logs say why",
    ),
    (
        "untolerated taint",
        "remove the taint (kubectl describe nodes shows it), or add a toleration",
    ),
    ("were unschedulable", "kubectl uncordon NODE"),
    ("node affinity/selector", "change nodeSelector or affinity, or label a node"),
    (
        "pod anti-affinity",
        "another pod keeps it away: change podAntiAffinity, end that pod, or prefer rather than require",
    ),
    (
        "pods anti-affinity",
        "another pod's podAntiAffinity keeps it away: end that pod, or change its rule",
    ),
    (
        "pod affinity",
        "no pod that it wants to be beside runs: change podAffinity, or start that pod first",
    ),
    (
        "missing required label",
        "nodes lack the label of topologySpreadConstraints.topologyKey: label them, or say ScheduleAnyway",
    ),
    ("topology spread", "its pods would be spread unevenly: raise maxSkew, or say ScheduleAnyway"),
    (
        "unbound immediate PersistentVolumeClaims",
        "see what its claims wait for: kubectl describe pvc",
    ),
    ("persistent volumes to bind", "see what its claims wait for: kubectl describe pvc"),
    (
        "volume node affinity",
        "its volume is on another node: the pod has to go there, or to use another claim",
    ),
    (
        "PersistentVolume's node affinity",
        "its volume is on another node: the pod has to go there, or to use another claim",
    ),
    ("persistentvolume \"", "its claim's volume is gone: restore it, or use another claim"),
    ("non-existent pv", "its claim's volume is gone: restore it, or use another claim"),
    (
        "declared features",
        "no node can do what it asks for: see status.declaredFeatures of nodes, or update them",
    ),
    ("storageclass", "name a storage class that is there: kubectl get storageclass"),
    ("StorageClass", "name a storage class that is there: kubectl get storageclass"),
    ("persistentvolumeclaim", "create the claim"),
    ("max volume count", "end pods that use volumes of that driver"),
    ("free ports", "another pod has the host port; take another, or end that pod"),
    ("resourceclaim", "create the resource claim: kubectl get resourceclaims"),
    ("resource claim", "see what its resource claims wait for: kubectl describe resourceclaim"),
    (
        "cannot allocate all claims",
        "no device suits its resource claims: kubectl get resourceslices",
    ),
];

/// Why an image is not to be had: the registry's answer, or what prevents one.
pub const IMAGE: Table = &[
    (
        "toomanyrequests",
        "the registry limits pulls: name credentials or a mirror in registries.yaml, or load the image",
    ),
    (
        "429 Too Many Requests",
        "the registry limits pulls: name credentials or a mirror in registries.yaml, or load the image",
    ),
    ("401 Unauthorized", CREDENTIALS),
    ("403 Forbidden", CREDENTIALS),
    ("unauthorized", CREDENTIALS),
    ("authorization failed", CREDENTIALS),
    ("no basic auth credentials", CREDENTIALS),
    ("denied", CREDENTIALS),
    ("invalid reference format", "write it as registry/name:tag, the name in small letters"),
    (
        "no match for platform",
        "there is none for this machine's architecture: build or choose another",
    ),
    ("policy of Never", "rootlet image load FILE, or another imagePullPolicy"),
    (
        "not found",
        "see that image and tag are spelled right and were pushed; one of this machine's comes with `rootlet image load NAME`",
    ),
    ("refused", "see that the registry runs, and that its port is right"),
    ("certificate", "name the registry's CA in registries.yaml"),
    ("resolve", "see that the registry's name is right, and that this machine has a network"),
    ("dns error", "see that the registry's name is right, and that this machine has a network"),
    ("no space left", "free space on the disk that holds the cluster's data: rootlet image prune"),
    ("timed out", "see that this machine reaches the registry"),
    ("unreachable", "see that this machine reaches the registry"),
];

/// Why a volume cannot be mounted.
pub const VOLUME: Table = &[
    ("driver name", "install that CSI driver, or wait until its node plugin has registered"),
    ("references non-existent", "name a key that is there, or mark the volume `optional: true`"),
    ("not found", "create the object that is missing, or mark the volume `optional: true`"),
    (
        "hostPath type check failed",
        "make the path on this machine, or use type DirectoryOrCreate or FileOrCreate",
    ),
    ("ermission denied", "the user who runs rootlet may not read that path of this machine"),
    ("timed out", "see the volume's driver: kubectl get csinodes, and its pods' logs"),
];

/// Why a container cannot be configured or started.
pub const START: Table = &[
    (
        "has runAsNonRoot and image will run as root",
        "set securityContext.runAsUser to another user than 0, or have the image say one (USER)",
    ),
    ("non-numeric user", "say which user by number: securityContext.runAsUser"),
    ("not found in $PATH", "see that its command exists in the image; a shell line needs `sh -c`"),
    (
        "executable file not found",
        "see that its command exists in the image; a shell line needs `sh -c`",
    ),
    (
        "no such file or directory",
        "see that its command exists in the image, and what it names itself: a script's first line (`#!`), a program's dynamic loader (another libc?)",
    ),
    ("exec format error", "the image is for another architecture, or the script has no `#!` line"),
    (
        "permission denied",
        "its command is no program, or may not be executed: chmod +x in the image, or name its interpreter",
    ),
    (
        "openat2 subpath",
        "what a volume is mounted at lies within a file or a link of the image: choose another mountPath",
    ),
    (
        "failed to mount",
        "see its volumeMounts; `rootlet doctor` says what of it this machine, or the container it runs in, forbids",
    ),
    ("seccomp", "put the profile where the kubelet looks for it, or use RuntimeDefault"),
    ("not found", "create what is missing; the container then starts by itself"),
    ("couldn't find key", "create what is missing; the container then starts by itself"),
    ("address already in use", "this machine's port is taken: choose another hostPort"),
];

/// Why pods cannot be created for what wants them.
pub const CREATE: Table = &[
    ("exceeded quota", "raise the ResourceQuota, or end other pods: kubectl describe quota"),
    ("failed quota", "set the requests and limits that the ResourceQuota asks for"),
    (
        "violates PodSecurity",
        "change securityContext as it says, or the namespace's label pod-security.kubernetes.io/enforce",
    ),
    (
        "failed calling webhook",
        "see that the webhook's service has running pods, or remove its webhook configuration",
    ),
    ("denied the request", "a webhook or policy refuses it: change what it names"),
    ("ValidatingAdmissionPolicy", "a policy refuses it: change what it names"),
    ("serviceaccount", "create the service account"),
    ("no PriorityClass", "create the priority class: kubectl get priorityclasses"),
    ("per Container", "change resources, or the LimitRange: kubectl describe limitrange"),
    ("per Pod", "change resources, or the LimitRange: kubectl describe limitrange"),
    ("unable to ensure pod container exists", "rootlet doctor"),
    ("is invalid", "mend the pod template as it says"),
];

/// Why no volume can be made for a claim.
pub const CLAIM: Table = &[
    ("exceeded quota", "raise the ResourceQuota, or delete other claims: kubectl describe quota"),
    ("no space left", "free space on the disk that holds the cluster's data: rootlet image prune"),
    (
        "external provisioner",
        "see that the driver that provisions for its storage class runs: kubectl get csidrivers, and its pods",
    ),
    ("not found", "create what is missing"),
    ("", "see the provisioner of its storage class: kubectl describe storageclass"),
];

/// What a container's last words mean.
pub const WORDS: Table = &[
    ("Read-only file system", WRITABLE),
    ("read-only file system", WRITABLE),
    ("EROFS", WRITABLE),
    ("ermission denied", OWNER),
    ("EACCES", OWNER),
    (
        "No space left on device",
        "free space: rootlet image prune; or raise the emptyDir's sizeLimit",
    ),
    ("ddress already in use", "two containers of the pod listen at one port: change one of them"),
    ("onnection refused", ENDPOINTS),
    ("ECONNREFUSED", ENDPOINTS),
    ("no such host", NAMES),
    ("ame or service not known", NAMES),
    ("bad address", NAMES),
    ("ENOTFOUND", NAMES),
    ("NXDOMAIN", NAMES),
    ("emporary failure in name resolution", RESOLVES),
    ("EAI_AGAIN", RESOLVES),
    ("no servers could be reached", RESOLVES),
    ("error while loading shared libraries", LIBRARY),
    ("cannot open shared object file", LIBRARY),
    ("Error loading shared library", LIBRARY),
    (
        "' not found (required by",
        "the image's C library is older than the one that the program was built with: build it in that image",
    ),
    ("xec format error", FOREIGN),
    ("cannot execute binary file", FOREIGN),
    (
        "syntax error: unexpected",
        "the shell reads a program that is none of its own: a binary for another architecture, or a script for another shell",
    ),
    (
        "llegal instruction",
        "it has instructions that this machine's processor lacks: build it for an older one",
    ),
    ("ModuleNotFoundError", "install that module in the image"),
    ("Cannot find module", "install that module in the image"),
    (
        "java.lang.OutOfMemoryError",
        "raise the heap (-XX:MaxRAMPercentage) and with it resources.limits.memory",
    ),
    (
        "heap out of memory",
        "raise the heap (--max-old-space-size) and with it resources.limits.memory",
    ),
    (
        "x509",
        "the other side's certificate is of an authority that the image does not know: mount the CA",
    ),
    ("Too many open files", "rootlet doctor prints the sysctl for inotify and open files"),
    ("is forbidden: User", "let its service account do that: kubectl create rolebinding"),
];

/// The remedy for a message; empty where none is known.
pub fn find(table: Table, message: &str) -> &'static str {
    table.iter().find(|(part, _)| message.contains(part)).map_or("", |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_as_they_come_have_their_remedies() {
        let node = |why: &str| {
            format!(
                "0/1 nodes are available: 1 node(s) {why}. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
            )
        };
        let cases = [
            (UNSCHEDULED, "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.".into(), "requests"),
            (UNSCHEDULED, node("didn't match pod affinity rules"), "start that pod first"),
            (UNSCHEDULED, node("didn't match pod anti-affinity rules"), "podAntiAffinity"),
            (UNSCHEDULED, node("didn't satisfy existing pods anti-affinity rules"), "another pod's"),
            (UNSCHEDULED, node("didn't match pod topology spread constraints (missing required label)"), "topologyKey"),
            (UNSCHEDULED, node("didn't match pod topology spread constraints"), "maxSkew"),
            (UNSCHEDULED, node("had untolerated taint {node.kubernetes.io/not-ready: }"), "not Ready"),
            (UNSCHEDULED, node("had untolerated taint(s)"), "toleration"),
            (UNSCHEDULED, node("had untolerated taint {a: b}"), "toleration"),
            (UNSCHEDULED, node("were unschedulable"), "uncordon"),
            (UNSCHEDULED, node("didn't match Pod's node affinity/selector"), "label a node"),
            (UNSCHEDULED, node("didn't have free ports for the requested pod ports"), "host port"),
            (UNSCHEDULED, node("had volume node affinity conflict"), "another node"),
            (UNSCHEDULED, "0/1 nodes are available: persistentvolumeclaim \"none\" not found.".into(), "create the claim"),
            (UNSCHEDULED, "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.".into(), "describe pvc"),
            (IMAGE, "Failed to apply default image tag \"UPPER:::x\": couldn't parse image name \"UPPER:::x\": invalid reference format".into(), "small letters"),
            (IMAGE, "pull access denied".into(), "credentials"),
            (IMAGE, "failed to resolve reference \"x:1\": authorization failed: no basic auth credentials".into(), "credentials"),
            (IMAGE, "unexpected status from GET request to r.example.com: 429 Too Many Requests".into(), "mirror"),
            (IMAGE, "failed to do request: 127.0.0.1:42940: client error (Connect): invalid peer certificate: UnknownIssuer".into(), "CA in registries.yaml"),
            (VOLUME, "hostPath type check failed: /no/such is not a directory".into(), "OrCreate"),
            (VOLUME, "secret \"none\" not found".into(), "optional"),
            (VOLUME, "failed to get CSI client: driver name none.example.com not found in the list of registered CSI drivers".into(), "install that CSI driver"),
            (START, "container has runAsNonRoot and image will run as root (pod: \"nonroot_default(x)\", container: c)".into(), "runAsUser"),
            (START, "exec: \"nothing-here\": executable file not found in $PATH".into(), "sh -c"),
            (START, "exec: \"/etc/passwd\": permission denied".into(), "chmod +x"),
            (START, "configmap \"none\" not found".into(), "create what is missing"),
            (CREATE, "pods \"web\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0".into(), "ResourceQuota"),
            (CREATE, "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false".into(), "securityContext"),
            (CREATE, "Internal error occurred: failed calling webhook \"a\": failed to call webhook: service \"none\" not found".into(), "webhook"),
            (CREATE, "error looking up service account default/none: serviceaccount \"none\" not found".into(), "service account"),
            (CREATE, "maximum memory usage per Container is 10Mi, but limit is 1Gi".into(), "LimitRange"),
            (CREATE, "no PriorityClass with name none was found".into(), "priority class"),
            (WORDS, "sh: can't create /x: Read-only file system".into(), "emptyDir"),
            (WORDS, "sh: can't create /bin/x: Permission denied".into(), "runAsUser"),
            (WORDS, "dial tcp 10.43.0.9:5432: connect: connection refused".into(), "endpoints"),
            (WORDS, "wget: bad address 'db'".into(), "NAME.NAMESPACE"),
            (WORDS, "** server can't find db.default.svc.cluster.local: NXDOMAIN".into(), "NAME.NAMESPACE"),
            (WORDS, "curl: (6) Temporary failure in name resolution".into(), "dnsPolicy"),
            (WORDS, "/app: error while loading shared libraries: libssl.so.3: cannot open shared object file: No such file or directory".into(), "library"),
            (WORDS, "/app: /lib/libc.so.6: version `GLIBC_2.38' not found (required by /app)".into(), "C library"),
            (WORDS, "Error loading shared library libgcc_s.so.1: No such file or directory (needed by /app)".into(), "library"),
            (WORDS, "sh: /bin/x: Exec format error".into(), "architecture"),
            (WORDS, "/x: line 1: syntax error: unexpected word".into(), "another architecture"),
            (WORDS, "ModuleNotFoundError: No module named 'flask'".into(), "module"),
            (CLAIM, "storageclass.storage.k8s.io \"x\" not found".into(), "create what is missing"),
            (CLAIM, "odd".into(), "provisioner"),
        ];
        for (table, message, want) in cases {
            let found = find(table, &message);
            assert!(found.contains(want), "{message}: {found:?}");
        }
    }
}
