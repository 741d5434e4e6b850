use serde_json::json;

use super::*;
use crate::eviction::threshold::{Least, Signal};

fn of(text: &str) -> Result<Configuration, String> {
    let value = document(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}"))?;
    Configuration::of(&value).map_err(|error| error.to_string())
}

/// As `kubeadm` writes it: zeros stand for defaults.
const KUBEADM: &str = "
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: ''
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging:
  flushFrequency: 0
  options: {json: {infoBufferSize: '0'}, text: {infoBufferSize: '0'}}
  verbosity: 0
memorySwap: {}
rotateCertificates: true
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
syncFrequency: 0s
";

#[test]
fn what_others_write_is_followed_as_far_as_it_says_something() {
    let read = of(KUBEADM).unwrap();
    let expected = Configuration {
        static_pods: Some("/etc/kubernetes/manifests".into()),
        cluster_dns: vec!["10.96.0.10".parse().unwrap()],
        cluster_domain: Some("cluster.local".into()),
        client_ca_file: Some("/etc/kubernetes/pki/ca.crt".into()),
        without_effect: vec!["cgroupDriver".into(), "rotateCertificates".into()],
        ..Configuration::default()
    };
    assert_eq!(read, expected);
}

#[test]
fn everything_that_is_followed_arrives() {
    let read = of("
maxPods: 40
podsPerCore: 10
podPidsLimit: 99
systemReserved: {cpu: 500m, memory: 1Gi}
kubeReserved: {cpu: 100m}
allowedUnsafeSysctls: ['kernel.msg*']
evictionHard: {memory.available: 5%, nodefs.available: 1Gi}
mergeDefaultEvictionSettings: true
evictionSoft: {memory.available: 1Gi}
evictionSoftGracePeriod: {memory.available: 1m30s}
evictionMaxPodGracePeriod: 20
evictionMinimumReclaim: {nodefs.available: 5%}
cpuCFSQuotaPeriod: 20ms
memorySwap: {swapBehavior: LimitedSwap}
singleProcessOOMKill: true
failSwapOn: true
providerID: here://this
imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages
preloadedImagesVerificationAllowlist: [reg.example/base, 'reg.example/own/*']
evictionPressureTransitionPeriod: 30s
serializeImagePulls: false
maxParallelImagePulls: 3
registryPullQPS: 7
imageGCHighThresholdPercent: 70
imageGCLowThresholdPercent: 60
imageMinimumGCAge: 1m
imageMaximumGCAge: 48h
containerLogMaxSize: 1Mi
containerLogMaxFiles: 3
containerLogMonitorInterval: 5s
crashLoopBackOff: {maxContainerRestartPeriod: 4s}
nodeStatusMaxImages: -1
resolvConf: /run/systemd/resolve/resolv.conf
registerWithTaints: [{key: a, effect: NoSchedule}]
shutdownGracePeriodByPodPriority: [{priority: 0, shutdownGracePeriodSeconds: 9}]
")
    .unwrap();
    let text = |text: &str| Some(text.to_owned());
    let limits = Limits {
        log_bytes: 1 << 20,
        log_files: 3,
        log_period: Duration::from_secs(5),
        images: ImageLimits {
            percent: (70, 60),
            free_bytes: None,
            minimum_age: Duration::from_mins(1),
            maximum_age: Some(Duration::from_hours(48)),
        },
        restart_pause: Duration::from_secs(4),
        pulls: Some((7, 10)),
        status_images: None,
        pressure: Duration::from_secs(30),
        merge_thresholds: true,
        soft: eviction::Soft {
            thresholds: BTreeMap::from([(
                Signal::Memory,
                (Least::Amount(1 << 30), Duration::from_secs(90)),
            )]),
            most_grace_seconds: 20,
            reclaim: BTreeMap::from([(Signal::NodeDisk, Least::Share(50))]),
        },
        terms: Terms {
            cpu_quotas: true,
            cpu_period_us: 20_000,
            swap: true,
            single_process_ends: true,
        },
        fail_swap_on: true,
        verification: Verification::Others(vec![
            "reg.example/base".to_owned(),
            "reg.example/own/*".to_owned(),
        ]),
        provider_id: text("here://this"),
        resolv_conf: "/run/systemd/resolve/resolv.conf".into(),
    };
    let expected = Configuration {
        max_pods: Some(40),
        pods_per_core: Some(10),
        pod_pids_limit: Some(99),
        system_reserved: text("cpu=500m,memory=1Gi"),
        kube_reserved: text("cpu=100m"),
        allowed_unsafe_sysctls: vec!["kernel.msg*".into()],
        eviction_hard: text("memory.available<5%,nodefs.available<1Gi"),
        max_parallel_image_pulls: Some(3),
        shutdown: (None, None, text("0=9")),
        taints: vec![serde_json::from_value(json!({"key": "a", "effect": "NoSchedule"})).unwrap()],
        limits,
        ..Configuration::default()
    };
    assert_eq!(read, expected);
}

#[test]
fn what_cannot_be_is_refused_with_the_fields_name() {
    let cases = [
        ("evictionHrad: {}", "strict decoding error: unknown field \"evictionHrad\""),
        ("authorization: {mod: a}", "unknown field \"authorization.mod\""),
        ("crashLoopBackOff: {max: 1s}", "unknown field `max`"),
        ("cpuManagerPolicy: static", "cpuManagerPolicy: \"static\" is not supported"),
        ("authentication: {anonymous: {enabled: true}}", "authentication.anonymous.enabled: true"),
        (
            "evictionSoft: {memory.available: 1Gi}",
            "grace period must be specified for the soft eviction threshold memory.available",
        ),
        ("evictionSoft: {memory.free: 1Gi}", "evictionSoft: unsupported eviction signal"),
        (
            "evictionMinimumReclaim: {memory.available: x}",
            "evictionMinimumReclaim: memory.available",
        ),
        ("evictionSoftGracePeriod: {memory.available: x}", "invalid duration \"x\""),
        ("cpuCFSQuotaPeriod: 2s", "must be between 1ms and 1sec, inclusive"),
        ("memorySwap: {swapBehavior: Much}", "memorySwap.swapBehavior \"Much\" must be one of"),
        ("imagePullCredentialsVerificationPolicy: Sometimes", "Sometimes"),
        ("preloadedImagesVerificationAllowlist: [a]", "preloadedImagesVerificationAllowlist"),
        ("maxPods: -1", "maxPods -1 must not be a negative number"),
        ("maxPods: many", "maxPods: invalid type"),
        ("evictionHard: {memory.free: 1Gi}", "unsupported eviction signal"),
        ("systemReserved: {cpu: much}", "systemReserved"),
        ("imageGCHighThresholdPercent: 101", "must be between 0 and 100, inclusive"),
        ("imageGCHighThresholdPercent: 80", "80 must be less than imageGCHighThresholdPercent 80"),
        ("imageMaximumGCAge: 1m", "imageMaximumGCAge must be greater than imageMinimumGCAge"),
        ("maxParallelImagePulls: 0", "maxParallelImagePulls 0 must be a positive number"),
        ("serializeImagePulls: true\nmaxParallelImagePulls: 2", "cannot be larger than 1"),
        ("containerLogMaxFiles: 1", "containerLogMaxFiles must be greater than 1"),
        ("containerLogMaxSize: '-1'", "containerLogMaxSize: \"-1\" is no size"),
        ("containerLogMonitorInterval: 1s", "greater than or equal to 3s"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 6m}", "between 1s and 5m0s"),
        ("shutdownGracePeriodCriticalPods: 1s", "shutdownGracePeriod"),
        ("nodeStatusMaxImages: -2", "nodeStatusMaxImages"),
        ("registryPullQPS: -1", "registryPullQPS -1 must not be a negative number"),
    ];
    for (text, want) in cases {
        let told = of(text).unwrap_err();
        assert!(told.contains(want), "{text}: {told}");
    }
}

#[test]
fn later_files_are_merged_into_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}\n");
        std::fs::write(&path, text).unwrap();
        path
    };
    let main =
        write("main.yaml", "maxPods: 1\npodPidsLimit: 5\nevictionHard: {memory.available: 1Gi}");
    write("20.conf", "maxPods: 3");
    write("10.conf", "maxPods: 2\nevictionHard: {nodefs.available: 5%}\npodPidsLimit: null");
    write("30.yaml", "maxPods: 9");
    let read = Configuration::of(&read(Some(&main), Some(folder.path())).unwrap()).unwrap();
    assert_eq!((read.max_pods, read.pod_pids_limit), (Some(3), None));
    assert_eq!(read.eviction_hard.unwrap(), "memory.available<1Gi,nodefs.available<5%");
    // None, not the defaults.
    assert_eq!(of("evictionHard: {}").unwrap().eviction_hard.unwrap(), "");
    // Names of files are relative to the file that has them.
    let main = write("main.yaml", "staticPodPath: pods\nresolvConf: /etc/resolv.conf");
    let read = super::read(Some(&main), None).unwrap();
    assert_eq!(read["staticPodPath"], folder.path().join("pods").to_str().unwrap());
    assert_eq!(read["resolvConf"], "/etc/resolv.conf");
    std::fs::write(folder.path().join("40.conf"), "maxPods: 3").unwrap();
    let error = super::read(None, Some(folder.path())).unwrap_err().to_string();
    assert!(error.contains("40.conf: no kind"), "{error}");
}

#[test]
fn a_field_is_of_one_sort() {
    let nested = NESTED.iter().map(|(name, _)| *name);
    let all: Vec<&str> = FOLLOWED
        .iter()
        .chain(&WITHOUT_EFFECT)
        .copied()
        .chain(FIXED.iter().map(|(name, _)| *name))
        .chain(nested)
        .collect();
    let distinct: std::collections::BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len());
}
