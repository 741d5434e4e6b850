//! The node in the API: registered once, its status told on change and every five minutes, its
//! lease renewed every ten seconds.
//!
//! Source of behaviour: `pkg/kubelet/kubelet_node_status.go`, `nodestatus/setters.go`, the node
//! reference page of the Kubernetes documentation.

mod lease;
pub mod machine;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::context::Context;

pub use status::is_extended;

/// How often the status is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is told although nothing changed.
const TELL: Duration = Duration::from_mins(5);
/// While the node is not Ready it is looked at this often.
const LOOK_SOON: Duration = Duration::from_millis(100);

/// Labels that are as the kubelet says.
const FIXED_LABELS: [&str; 4] =
    ["kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch"];

/// What of the node is configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Taints to register with.
    pub taints: Vec<Taint>,
    /// The port of the kubelet's server.
    pub port: u16,
    /// Most pods.
    pub max_pods: u32,
    /// The version the node tells.
    pub kubelet_version: String,
}

/// The labels a node has by itself.
pub fn well_known_labels(name: &str) -> BTreeMap<String, String> {
    let arch = machine::architecture();
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
        ("node.kubernetes.io/instance-type", "rootlet"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

/// Keeps the node's object and lease until `shutdown`.
pub async fn run(context: Arc<Context>, settings: Settings, shutdown: CancellationToken) {
    let node = tokio::select! {
        () = shutdown.cancelled() => return,
        node = register_until_done(&context, &settings) => node,
    };
    context.recorder.normal(context.own_reference(), "Starting", "Starting kubelet.");
    let lease =
        tokio::spawn(lease::run(context.clone(), node.metadata.uid.clone(), shutdown.clone()));
    let mut keeper =
        Keeper { context, settings, told: node, told_at: None, pod_cidr: None, introduced: false };
    let ending = keeper.context.ending.clone();
    let mut ended = false;
    loop {
        let ready = keeper.round().await;
        let wait = if ready || ended { LOOK } else { LOOK_SOON };
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = ending.asked(), if !ended => ended = true,
            () = keeper.context.node_changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    let _ = lease.await;
}

async fn register_until_done(context: &Context, settings: &Settings) -> Node {
    let mut delay = Duration::from_millis(100);
    loop {
        match register(context, settings).await {
            Ok(node) => return node,
            Err(error) => {
                tracing::warn!(node = context.node_name, %error, "cannot register the node, trying again");
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(7));
    }
}

async fn register(context: &Context, settings: &Settings) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(context.client.clone());
    let name = &context.node_name;
    let labels = &context.node_labels;
    let annotations = BTreeMap::from([(
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    )]);
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels.clone()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!settings.taints.is_empty()).then(|| settings.taints.clone()),
            provider_id: context.limits.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: Some(status::make(context, settings, None, &status::Seen::default())),
    };
    match api.create(&PostParams::default(), &node).await {
        Ok(node) => Ok(node),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // Known already: only what the kubelet owns is brought up to date.
            let body = json!({"metadata": {"labels": labels}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(body)).await
        }
        Err(error) => Err(error),
    }
}

struct Keeper {
    context: Arc<Context>,
    settings: Settings,
    told: Node,
    told_at: Option<tokio::time::Instant>,
    pod_cidr: Option<String>,
    /// Its conditions have been told in events once.
    introduced: bool,
}

impl Keeper {
    /// One look; true when the node is Ready and the API knows.
    async fn round(&mut self) -> bool {
        let api: Api<Node> = Api::all(self.context.client.clone());
        match api.get_opt(&self.context.node_name).await {
            Ok(Some(node)) => self.told = node,
            Ok(None) => {
                // Somebody deleted it; as long as this kubelet runs, the node exists.
                match register(&self.context, &self.settings).await {
                    Ok(node) => self.told = node,
                    Err(_) => return false,
                }
                self.told_at = None;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the node");
                return false;
            }
        }
        self.keep_labels(&api).await;
        self.configure_runtime().await;
        let seen = status::look(&self.context).await;
        let old = self.told.status.clone().unwrap_or_default();
        let new = status::make(&self.context, &self.settings, Some(&old), &seen);
        if let Some(allocatable) = &new.allocatable {
            *self.context.allocatable.write().unwrap_or_else(PoisonError::into_inner) =
                allocatable.clone();
        }
        let ready = status::is_ready(&new);
        let due = self.told_at.is_none_or(|at| at.elapsed() >= TELL);
        if !due && !status::differs(&old, &new) {
            return ready;
        }
        self.tell_of_changes(&old, &new);
        match self.tell(&api, &old, new).await {
            Ok(()) => {
                self.told_at = Some(tokio::time::Instant::now());
                ready
            }
            Err(error) => {
                tracing::warn!(node = self.context.node_name, %error, "cannot report the node's status");
                false
            }
        }
    }

    /// What the node is does not change because somebody writes otherwise.
    async fn keep_labels(&self, api: &Api<Node>) {
        let told = self.told.metadata.labels.clone().unwrap_or_default();
        let wrong: BTreeMap<&String, &String> = self
            .context
            .node_labels
            .iter()
            .filter(|(key, _)| FIXED_LABELS.contains(&key.as_str()))
            .filter(|(key, value)| told.get(*key) != Some(*value))
            .collect();
        if wrong.is_empty() {
            return;
        }
        let body = Patch::Merge(json!({"metadata": {"labels": wrong}}));
        let name = &self.context.node_name;
        if let Err(error) = api.patch(name, &PatchParams::default(), &body).await {
            tracing::debug!(%error, "the node's labels are not repaired");
        }
    }

    async fn tell(
        &self,
        api: &Api<Node>,
        old: &NodeStatus,
        new: NodeStatus,
    ) -> Result<(), kube::Error> {
        let mut body = json!({ "status": new });
        // What is no longer in the capacity cannot be used either, and a patch has to say so.
        let kept = new.allocatable.as_ref();
        for name in old.allocatable.iter().flatten().map(|(name, _)| name) {
            if status::is_extended(name) && kept.is_none_or(|kept| !kept.contains_key(name)) {
                body["status"]["allocatable"][name] = Value::Null;
            }
        }
        // Addresses merge by type; the list as a whole is the kubelet's. Where there is none, older servers
        // would take the directive for an address.
        let had = old.addresses.as_ref().is_some_and(|addresses| !addresses.is_empty());
        if had
            && old.addresses != new.addresses
            && let Some(addresses) = body["status"]["addresses"].as_array_mut()
        {
            addresses.push(json!({"$patch": "replace"}));
        }
        let name = &self.context.node_name;
        api.patch_status(name, &PatchParams::default(), &Patch::Strategic(body)).await.map(drop)
    }

    fn tell_of_changes(&mut self, old: &NodeStatus, new: &NodeStatus) {
        let name = &self.context.node_name;
        for reason in status::changes(old, new, !std::mem::replace(&mut self.introduced, true)) {
            let message = format!("Node {name} status is now: {reason}");
            self.context.recorder.normal(self.context.own_reference(), reason, message);
        }
        let boot = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone());
        if let (Some(before), Some(now)) = (boot(old), boot(new))
            && !before.is_empty()
            && before != now
        {
            let message = format!("Node {name} has been rebooted, boot id: {now}");
            self.context.recorder.warning(self.context.own_reference(), "Rebooted", message);
        }
    }

    /// Tells the runtime the node's pod addresses once the controller has given them.
    async fn configure_runtime(&mut self) {
        let cidr = self.told.spec.as_ref().and_then(|s| s.pod_cidr.clone());
        let Some(cidr) = cidr.filter(|c| self.pod_cidr.as_ref() != Some(c)) else { return };
        let config = cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig { pod_cidr: cidr.clone() }),
        };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        match self.context.cri.update_runtime_config(request).await {
            Ok(_) => self.pod_cidr = Some(cidr),
            Err(error) => {
                tracing::warn!(%error, cidr, "the runtime did not take the pod address range");
            }
        }
    }
}
