//! `/configz`: the configuration in force, in the shape of `KubeletConfiguration`.
//!
//! Source: `k8s.io/kubelet/config/v1beta1`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::{Shared, json as answer};
use crate::backoff::go_duration;
use crate::eviction::threshold::written;

/// Bytes as a quantity.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let unit = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// What of upstream's configuration this kubelet has, with its values.
pub async fn serve(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let (pulls, limits) = (context.images.most(), &context.limits);
    let thresholds = &limits.soft.thresholds;
    let soft = thresholds.iter().map(|(signal, (least, _))| (*signal, *least)).collect();
    let periods: BTreeMap<&str, String> =
        thresholds.iter().map(|(signal, (_, of))| (signal.name(), go_duration(*of))).collect();
    let most = context.allocatable().get("pods").and_then(crate::quantity::value).unwrap_or(110);
    let mut told = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": context.static_pods.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        "syncFrequency": "1m0s",
        "fileCheckFrequency": "2s",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
        "clusterDomain": context.cluster_domain,
        "clusterDNS": context.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "cgroupsPerQOS": true,
        "maxPods": most,
        "podPidsLimit": context.pod_pids_limit.map_or(-1, i64::from),
        "serializeImagePulls": pulls == Some(1),
        "maxParallelImagePulls": pulls,
        "imagePullCredentialsVerificationPolicy": limits.verification.name(),
        "evictionHard": written(&context.thresholds.hard),
        "evictionPressureTransitionPeriod": go_duration(limits.pressure),
        "containerLogMaxSize": size(limits.log_bytes),
        "containerLogMaxFiles": limits.log_files,
        "containerLogMonitorInterval": go_duration(limits.log_period),
        "imageGCHighThresholdPercent": limits.images.percent.0,
        "imageGCLowThresholdPercent": limits.images.percent.1,
        "imageMinimumGCAge": go_duration(limits.images.minimum_age),
        "imageMaximumGCAge": limits.images.maximum_age.map_or_else(|| "0s".into(), go_duration),
        "registryPullQPS": limits.pulls.map_or(0, |(a_second, _)| a_second),
        "registryBurst": limits.pulls.map(|(_, at_once)| at_once),
        "crashLoopBackOff": {"maxContainerRestartPeriod": go_duration(limits.restart_pause)},
        "nodeStatusMaxImages": limits.status_images.map_or(-1, |most| most as i64),
        "resolvConf": limits.resolv_conf.display().to_string(),
        "allowedUnsafeSysctls": context.security.sysctls,
        "failSwapOn": limits.fail_swap_on,
        "enforceNodeAllocatable": ["pods"],
    });
    let more = json!({
        "evictionSoft": written(&soft),
        "evictionSoftGracePeriod": periods,
        "evictionMinimumReclaim": written(&limits.soft.reclaim),
        "evictionMaxPodGracePeriod": limits.soft.most_grace_seconds,
        "cpuCFSQuota": limits.terms.cpu_quotas,
        "cpuCFSQuotaPeriod": go_duration(Duration::from_micros(limits.terms.cpu_period_us.unsigned_abs())),
        "preloadedImagesVerificationAllowlist": limits.verification.allowed(),
        "memorySwap": {"swapBehavior": if limits.terms.swap { "LimitedSwap" } else { "NoSwap" }},
        "singleProcessOOMKill": limits.terms.single_process_ends,
        "providerID": limits.provider_id.as_deref().unwrap_or_default(),
    });
    if let (Some(told), Value::Object(more)) = (told.as_object_mut(), more) {
        told.extend(more);
    }
    answer(&json!({ "kubeletconfig": told }))
}
