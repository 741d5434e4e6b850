//! Labels and annotations by which the kubelet finds its pods and containers again in the runtime.
//!
//! Source: `k8s.io/kubernetes/pkg/kubelet/types` and `kuberuntime/labels.go`; the words are upstream's,
//! so that `crictl` and log collectors know them.

use std::collections::HashMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod;

/// Pod name, on sandboxes and containers.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Pod namespace, on sandboxes and containers.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Pod uid, on sandboxes and containers.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Container name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Hash of the parts of the container's spec whose change restarts it.
pub const HASH: &str = "io.kubernetes.container.hash";
/// How often the container was restarted.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Where in the container the termination message is.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// `File` or `FallbackToLogsOnError`.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// The container's ports, as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// The preStop hook, as JSON: needed to stop an orphan whose pod is gone from the API.
pub const PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
/// Grace period of the pod.
pub const TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Grace period of a pod being deleted.
pub const DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";

/// The labels of a pod's sandbox: the pod's own and the identifying ones.
pub fn for_sandbox(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    identify(pod, &mut labels);
    labels
}

/// The annotations of a pod's sandbox.
pub fn sandbox_annotations(pod: &Pod) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> =
        pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
    annotations.insert("kubernetes.io/config.source".into(), "api".into());
    if let Some(created) = &pod.metadata.creation_timestamp {
        annotations.insert("kubernetes.io/config.seen".into(), created.0.to_string());
    }
    annotations
}

/// The labels of a container.
pub fn for_container(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut labels = HashMap::new();
    identify(pod, &mut labels);
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    labels
}

/// The annotations of a container that is started for the `restart_count`th time after the first.
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> HashMap<String, String> {
    let mut annotations = HashMap::new();
    annotations.insert(HASH.into(), hash(container));
    annotations.insert(RESTART_COUNT.into(), restart_count.to_string());
    annotations
        .insert(TERMINATION_MESSAGE_PATH.into(), pod::termination_message_path(container).into());
    annotations.insert(
        TERMINATION_MESSAGE_POLICY.into(),
        container.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
    );
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(DELETION_GRACE_PERIOD.into(), seconds.to_string());
    }
    annotations.insert(TERMINATION_GRACE_PERIOD.into(), pod::grace_period_seconds(pod).to_string());
    let hook = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(Ok(json)) = hook.map(serde_json::to_string) {
        annotations.insert(PRE_STOP_HANDLER.into(), json);
    }
    if let Some(Ok(json)) = container.ports.as_ref().map(serde_json::to_string) {
        annotations.insert(PORTS.into(), json);
    }
    annotations
}

/// The hash of the container's spec: FNV-1a over name and image, the fields whose change means a
/// restart (upstream's `pickFieldsToHash`).
pub fn hash(container: &Container) -> String {
    let mut fields = serde_json::Map::new();
    fields.insert("name".into(), container.name.clone().into());
    if let Some(image) = &container.image {
        fields.insert("image".into(), image.clone().into());
    }
    let text = serde_json::Value::Object(fields).to_string();
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let mut out = String::new();
    let _ = write!(out, "{hash:x}");
    out
}

fn identify(pod: &Pod, labels: &mut HashMap<String, String>) {
    labels.insert(POD_NAME.into(), pod::name(pod).into());
    labels.insert(POD_NAMESPACE.into(), pod::namespace(pod).into());
    labels.insert(POD_UID.into(), pod::uid(pod).into());
}
