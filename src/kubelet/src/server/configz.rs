//! `/configz`: the configuration in force, in the shape of `KubeletConfiguration`.
//!
//! Source: `k8s.io/kubelet/config/v1beta1`.

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::{Shared, json as answer};

/// What of upstream's configuration this kubelet has, with its values.
pub async fn serve(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let pulls = context.images.most();
    let most = context.allocatable().get("pods").and_then(crate::quantity::value).unwrap_or(110);
    answer(&json!({"kubeletconfig": {
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
        "imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages",
        "evictionHard": crate::eviction::written(context),
        "evictionPressureTransitionPeriod": "5m0s",
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 5,
        "imageGCHighThresholdPercent": crate::eviction::IMAGES_HIGH_PERCENT,
        "imageGCLowThresholdPercent": crate::eviction::IMAGES_LOW_PERCENT,
        "imageMinimumGCAge": "2m0s",
        "failSwapOn": false,
        "enforceNodeAllocatable": ["pods"],
    }}))
}
