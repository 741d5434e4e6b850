//! Attaches volumes of CSI drivers to the nodes whose pods use them, and detaches them: the drivers'
//! attachers do the work, asked by VolumeAttachments.
//!
//! Source: `pkg/controller/volume/attachdetach`, `pkg/volume/csi/csi_attacher.go` (names).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    AttachedVolume, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::ownership;
use crate::queue::{self, Failure, Next};
use crate::{pods, touched, unless_code};

/// After so long a volume is detached although the node says that it is in use
/// (`maxWaitForUnmountDuration`).
const FORCE_AFTER: Duration = Duration::from_mins(6);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that a driver attaches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Volume {
    driver: String,
    handle: String,
    /// The PersistentVolume.
    name: String,
    /// Whether several nodes may have it at once.
    shared: bool,
}

impl Volume {
    /// `volume`, when a CSI driver has it.
    fn new(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let exclusive = ["ReadWriteOnce", "ReadWriteOncePod"];
        let shared =
            modes.is_empty() || modes.iter().any(|mode| !exclusive.contains(&mode.as_str()));
        Some(Self {
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            name: volume.name_any(),
            shared,
        })
    }

    /// What nodes call it.
    fn unique(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// The name of its attachment to `node`.
    fn attachment(&self, node: &str) -> String {
        let sum = Sha256::digest(format!("{}{}{node}", self.handle, self.driver));
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hex}")
    }
}

/// What is to be done about one node.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    attach: Vec<Volume>,
    /// Volumes that are to be had only when another node has let go, with that node.
    wait: Vec<(Volume, String)>,
    /// Attachments to delete.
    detach: Vec<String>,
    /// When to look again because the node still uses something.
    again: Option<Duration>,
}

/// What is known about one node.
struct View<'a> {
    name: &'a str,
    node: Option<&'a Node>,
    /// The attachments to it, and to all others.
    own: &'a [Arc<VolumeAttachment>],
    others: &'a [Arc<VolumeAttachment>],
    /// The volumes that its pods use.
    wanted: &'a BTreeSet<Volume>,
    now: Timestamp,
}

fn source(attachment: &VolumeAttachment) -> Option<&str> {
    attachment.spec.source.persistent_volume_name.as_deref()
}

/// Whether the attachment has a name as `Volume::attachment` makes them. What others made is theirs to delete.
fn is_ours(attachment: &VolumeAttachment) -> bool {
    let digest = attachment.metadata.name.as_deref().and_then(|name| name.strip_prefix("csi-"));
    digest.is_some_and(|digest| {
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// `unused` says since when an attachment has had no pod.
fn decide(
    view: &View<'_>,
    unique: &BTreeMap<String, String>,
    unused: &BTreeMap<String, Timestamp>,
) -> Plan {
    let mut plan = Plan::default();
    for volume in view.wanted {
        if view.own.iter().any(|attachment| attachment.name_any() == volume.attachment(view.name)) {
            continue;
        }
        let elsewhere = view.others.iter().find(|other| source(other) == Some(&volume.name));
        match elsewhere.filter(|_| !volume.shared) {
            Some(other) => plan.wait.push((volume.clone(), other.spec.node_name.clone())),
            None => plan.attach.push(volume.clone()),
        }
    }
    let in_use = view.node.iter().flat_map(|node| node.status.iter());
    let in_use: BTreeSet<&String> =
        in_use.flat_map(|status| status.volumes_in_use.iter().flatten()).collect();
    for attachment in view.own {
        let name = attachment.name_any();
        let wanted = view.wanted.iter().any(|volume| volume.attachment(view.name) == name);
        if wanted || !is_ours(attachment) || attachment.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let volume = source(attachment).and_then(|volume| unique.get(volume));
        let mounted = volume.is_some_and(|unique| in_use.contains(unique));
        let since = unused.get(&name).copied().unwrap_or(view.now);
        let waited = Duration::try_from(view.now.duration_since(since)).unwrap_or_default();
        let forced = view.node.is_none_or(|node| {
            is_out_of_service(node) || (!is_ready(node) && waited >= FORCE_AFTER)
        });
        if !mounted || forced {
            plan.detach.push(name);
        } else {
            let rest = FORCE_AFTER.saturating_sub(waited).max(Duration::from_secs(1));
            plan.again = Some(plan.again.map_or(rest, |known: Duration| known.min(rest)));
        }
    }
    plan
}

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    events: Recorder,
    /// Since when attachments have had no pod.
    unused: std::sync::Mutex<BTreeMap<String, Timestamp>>,
    /// Attachments whose success, or whose wait for another node, has been told.
    told: std::sync::Mutex<BTreeSet<String>>,
}

fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Controller {
    /// The volumes of the pod that are to be attached to its node.
    fn of_pod(&self, pod: &Pod) -> Vec<Volume> {
        let namespace = pod.namespace().unwrap_or_default();
        let claims = pods::claims(pod).filter_map(|name| self.claims.get(&namespace, &name));
        let names = claims.filter_map(|claim| claim.spec.as_ref()?.volume_name.clone());
        let volumes = names.filter_map(|name| self.volumes.get("", &name));
        let volumes = volumes.filter_map(|volume| Volume::new(&volume));
        volumes.filter(|volume| self.is_attached_by_driver(&volume.driver)).collect()
    }

    /// Drivers whose volumes need no attaching say so.
    fn is_attached_by_driver(&self, driver: &str) -> bool {
        let known = self.drivers.get("", driver);
        known.is_none_or(|driver| driver.spec.attach_required != Some(false))
    }

    async fn sync(&self, name: &str) -> Result<Next, Failure> {
        let node = self.nodes.get("", name);
        let here = self
            .pods
            .store()
            .state_filter(|pod| pods::node(pod) == name && !pods::is_finished(pod));
        let mut users: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        for pod in here {
            for volume in self.of_pod(&pod) {
                users.entry(volume.name.clone()).or_default().push(pod.clone());
                wanted.insert(volume);
            }
        }
        if node.is_none() {
            // Nothing is attached to a node that is not there.
            wanted.clear();
        }
        let (own, others): (Vec<_>, Vec<_>) = self
            .attachments
            .store()
            .state()
            .into_iter()
            .partition(|attachment| attachment.spec.node_name == name);
        if own.is_empty() && wanted.is_empty() {
            return self.tell_node(name, node.as_deref(), &own, &BTreeMap::new()).await;
        }
        let unique: BTreeMap<String, String> = own
            .iter()
            .filter_map(|attachment| {
                let volume = self.volumes.get("", source(attachment)?)?;
                Some((volume.name_any(), Volume::new(&volume)?.unique()))
            })
            .collect();
        let now = Timestamp::now();
        let unused = self.note_unused(name, &own, &wanted, now);
        let view =
            View { name, node: node.as_deref(), own: &own, others: &others, wanted: &wanted, now };
        let plan = decide(&view, &unique, &unused);
        self.tell_attached(&own, &users);
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        for volume in &plan.attach {
            let made = api.create(&PostParams::default(), &attachment(volume, name)).await;
            if let Err(error) = unless_code(made, 409) {
                let text = pods::text(&error);
                let message =
                    format!("AttachVolume.Attach failed for volume {:?} : {text}", volume.name);
                self.tell(&users, &volume.name, true, "FailedAttachVolume", &message);
                return Err(error.into());
            }
        }
        for (volume, elsewhere) in &plan.wait {
            let key = format!("{}/{elsewhere}/{name}", volume.name);
            if locked(&self.told).insert(key) {
                let others = self.users(elsewhere, volume);
                for pod in users.get(&volume.name).into_iter().flatten() {
                    let message = taken(volume, pod, &others);
                    let about = object_reference(pod.as_ref());
                    self.events.warning(about, "FailedAttachVolume", message);
                }
            }
        }
        for gone in &plan.detach {
            unless_code(api.delete(gone, &DeleteParams::default()).await, 404)?;
        }
        self.tell_node(name, node.as_deref(), &own, &unique).await?;
        // Another node may let go without anything here telling of it.
        let wait = (!plan.wait.is_empty()).then_some(Duration::from_secs(5));
        Ok(plan.again.into_iter().chain(wait).min().map_or(Next::Done, Next::After))
    }

    /// The pods on the node that use the volume.
    fn users(&self, node: &str, volume: &Volume) -> Vec<Arc<Pod>> {
        let here = self
            .pods
            .store()
            .state_filter(|pod| pods::node(pod) == node && !pods::is_finished(pod));
        here.into_iter().filter(|pod| self.of_pod(pod).contains(volume)).collect()
    }

    /// Remembers since when attachments to the node have had no pod.
    fn note_unused(
        &self,
        node: &str,
        own: &[Arc<VolumeAttachment>],
        wanted: &BTreeSet<Volume>,
        now: Timestamp,
    ) -> BTreeMap<String, Timestamp> {
        let mut unused = locked(&self.unused);
        for attachment in own {
            let name = attachment.name_any();
            if wanted.iter().any(|volume| volume.attachment(node) == name) {
                unused.remove(&name);
            } else {
                unused.entry(name).or_insert(now);
            }
        }
        unused.clone()
    }

    fn tell(
        &self,
        users: &BTreeMap<String, Vec<Arc<Pod>>>,
        volume: &str,
        warning: bool,
        reason: &str,
        message: &str,
    ) {
        for pod in users.get(volume).into_iter().flatten() {
            let about = object_reference(pod.as_ref());
            if warning {
                self.events.warning(about, reason, message);
            } else {
                self.events.normal(about, reason, message);
            }
        }
    }

    /// Tells the pods what has become of their volumes, once.
    fn tell_attached(
        &self,
        own: &[Arc<VolumeAttachment>],
        users: &BTreeMap<String, Vec<Arc<Pod>>>,
    ) {
        for attachment in own {
            let (Some(volume), Some(status)) = (source(attachment), &attachment.status) else {
                continue;
            };
            let name = attachment.name_any();
            let problem = status.attach_error.as_ref();
            let problem = problem.and_then(|error| error.message.clone());
            let key = format!("{name} {} {problem:?}", status.attached);
            if !(status.attached || problem.is_some()) || !locked(&self.told).insert(key) {
                continue;
            }
            if let Some(problem) = problem.filter(|_| !status.attached) {
                let message =
                    format!("AttachVolume.Attach failed for volume {volume:?} : {problem}");
                self.tell(users, volume, true, "FailedAttachVolume", &message);
            } else {
                let message = format!("AttachVolume.Attach succeeded for volume {volume:?} ");
                self.tell(users, volume, false, "SuccessfulAttachVolume", &message);
            }
        }
    }

    /// Writes down at the node what is attached to it.
    async fn tell_node(
        &self,
        name: &str,
        node: Option<&Node>,
        own: &[Arc<VolumeAttachment>],
        unique: &BTreeMap<String, String>,
    ) -> Result<Next, Failure> {
        let Some(node) = node else { return Ok(Next::Done) };
        let done = own.iter().filter(|attachment| {
            attachment.metadata.deletion_timestamp.is_none()
                && attachment.status.as_ref().is_some_and(|status| status.attached)
        });
        let mut attached: Vec<AttachedVolume> = done
            .filter_map(|attachment| unique.get(source(attachment)?))
            .map(|name| AttachedVolume { name: name.clone(), device_path: String::new() })
            .collect();
        attached.sort_by(|a, b| a.name.cmp(&b.name));
        let known = node.status.as_ref().and_then(|status| status.volumes_attached.clone());
        let mut known = known.unwrap_or_default();
        // What others have put there is theirs.
        let is_csi = |volume: &AttachedVolume| volume.name.starts_with("kubernetes.io/csi/");
        let mut all: Vec<AttachedVolume> =
            known.iter().filter(|volume| !is_csi(volume)).cloned().collect();
        all.extend(attached);
        known.sort_by(|a, b| (is_csi(a), &a.name).cmp(&(is_csi(b), &b.name)));
        if all != known {
            let api: Api<Node> = Api::all(self.client.clone());
            let patch = json!({"metadata": {"resourceVersion": node.resource_version()},
                "status": {"volumesAttached": all}});
            let parameters = PatchParams::default();
            unless_code(api.patch_status(name, &parameters, &Patch::Merge(patch)).await, 404)?;
        }
        Ok(Next::Done)
    }
}

/// Tells a pod who has its volume: those of its namespace by name, others by number (`reportMultiAttachError`).
fn taken(volume: &Volume, pod: &Pod, others: &[Arc<Pod>]) -> String {
    let (mut near, far): (Vec<&Arc<Pod>>, Vec<_>) =
        others.iter().partition(|other| other.namespace() == pod.namespace());
    near.sort_by_key(|other| other.name_any());
    let names: Vec<String> = near.iter().map(|other| other.name_any()).collect();
    let names = names.join(", ");
    let told = match (near.len(), far.len()) {
        (0, 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another"
                .to_owned()
        }
        (0, far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
        (_, 0) => format!("Volume is already used by pod(s) {names}"),
        (_, far) => {
            format!(
                "Volume is already used by pod(s) {names} and {far} pod(s) in different namespaces"
            )
        }
    };
    format!("Multi-Attach error for volume {:?} {told}", volume.name)
}

fn attachment(volume: &Volume, node: &str) -> VolumeAttachment {
    VolumeAttachment {
        metadata: ObjectMeta { name: Some(volume.attachment(node)), ..ObjectMeta::default() },
        spec: VolumeAttachmentSpec {
            attacher: volume.driver.clone(),
            node_name: node.to_owned(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(volume.name.clone()),
                ..VolumeAttachmentSource::default()
            },
        },
        status: None,
    }
}

/// Whether a driver may have to attach something for the pod: one of its claims has a CSI driver's volume, or
/// none that is known yet. `volume` says what a claim is bound to.
fn may_attach(pod: &Pod, volume: impl Fn(&str, &str) -> Option<Arc<PersistentVolume>>) -> bool {
    let namespace = pod.namespace().unwrap_or_default();
    pods::claims(pod)
        .any(|claim| volume(&namespace, &claim).is_none_or(|volume| Volume::new(&volume).is_some()))
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let controller = Arc::new(Controller {
        pods: informers.get(),
        nodes: informers.get(),
        claims: informers.get(),
        volumes: informers.get(),
        drivers: informers.get(),
        attachments: informers.get(),
        events: Recorder::new(client.clone(), "attachdetach-controller", ""),
        unused: std::sync::Mutex::default(),
        told: std::sync::Mutex::default(),
        client,
    });
    controller.pods.ready().await;
    controller.nodes.ready().await;
    controller.claims.ready().await;
    controller.volumes.ready().await;
    controller.drivers.ready().await;
    controller.attachments.ready().await;
    let of_pod = {
        let (claims, volumes) = (controller.claims.clone(), controller.volumes.clone());
        move |pod: &Pod| {
            let any = may_attach(pod, |namespace, name| {
                let claim = claims.get(namespace, name)?;
                volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?)
            });
            let node = Some(pods::node(pod).to_owned());
            node.filter(|node| any && !node.is_empty()).into_iter().collect()
        }
    };
    let of_claim = {
        let pods = controller.pods.clone();
        move |claim: &PersistentVolumeClaim| {
            let (namespace, name) = ownership::key(claim);
            let users = pods.store().state_filter(|pod| {
                pod.metadata.namespace.as_deref() == Some(&namespace)
                    && pods::claims(pod).any(|used| used == name)
            });
            let nodes = users.iter().map(|pod| pods::node(pod).to_owned());
            nodes.filter(|node| !node.is_empty()).collect::<Vec<String>>()
        }
    };
    let of_attachment = |attachment: &VolumeAttachment| vec![attachment.spec.node_name.clone()];
    let of_node = |node: &Node| vec![node.name_any()];
    let changes = futures::stream::select(
        touched(&controller.pods, of_pod),
        futures::stream::select(
            touched(&controller.claims, of_claim),
            futures::stream::select(
                touched(&controller.attachments, of_attachment),
                touched(&controller.nodes, of_node),
            ),
        ),
    );
    queue::run("attach-detach", changes.boxed(), shutdown, |node: String| {
        let controller = controller.clone();
        Box::pin(async move { controller.sync(&node).await })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn volume(name: &str, shared: bool) -> Volume {
        Volume { driver: "d".into(), handle: format!("h-{name}"), name: name.into(), shared }
    }

    fn node(ready: &str, in_use: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {
            "conditions": [{"type": "Ready", "status": ready}], "volumesInUse": in_use}}))
        .expect("a node")
    }

    #[test]
    fn a_pod_is_told_who_has_its_volume() {
        let pod = |namespace: &str, name: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}}))
                    .expect("a pod"),
            )
        };
        let volume = volume("v", false);
        let (a, b, far) = (pod("n", "a"), pod("n", "b"), pod("o", "c"));
        for (others, want) in [
            (vec![], "exclusively attached to one node and can't be attached to another"),
            (vec![&b, &a], "used by pod(s) a, b"),
            (vec![&far], "used by 1 pod(s) in different namespaces"),
            (vec![&a, &far], "used by pod(s) a and 1 pod(s) in different namespaces"),
        ] {
            let others: Vec<Arc<Pod>> = others.into_iter().cloned().collect();
            let want = format!("Multi-Attach error for volume \"v\" Volume is already {want}");
            assert_eq!(taken(&volume, &pod("n", "me"), &others), want);
        }
    }

    #[test]
    fn pods_without_volumes_of_drivers_need_no_look() {
        let volume = |name: &str| {
            let source = match name {
                "local" => json!({"hostPath": {"path": "/"}}),
                "csi" => json!({"csi": {"driver": "d", "volumeHandle": "h"}}),
                _ => return None,
            };
            let volume = json!({"metadata": {"name": name}, "spec": source});
            Some(Arc::new(serde_json::from_value(volume).expect("a volume")))
        };
        for (claims, want) in [
            (vec![], false),
            (vec!["local"], false),
            (vec!["csi"], true),
            (vec!["local", "csi"], true),
            (vec!["unknown"], true),
        ] {
            let volumes = claims
                .iter()
                .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}));
            let volumes: Vec<Value> = volumes.collect();
            let pod = json!({"metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": [], "volumes": volumes}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let told = may_attach(&pod, |namespace, name| {
                assert_eq!(namespace, "n");
                volume(name)
            });
            assert_eq!(told, want, "{claims:?}");
        }
    }

    #[test]
    fn volumes_follow_their_pods() {
        let (v, w, shared) = (volume("v", false), volume("w", false), volume("s", true));
        let at = |volume: &Volume, node: &str| Arc::new(attachment(volume, node));
        let unique = BTreeMap::from([("w".to_owned(), w.unique())]);
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        let long: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let since = |time| BTreeMap::from([(w.attachment("n"), time)]);
        let mut foreign = attachment(&w, "n");
        foreign.metadata.name = Some("somebodys".to_owned());
        let foreign = Arc::new(foreign);
        let busy = json!([w.unique()]);
        let run = |ready: &str,
                   in_use: &Value,
                   own: &[Arc<VolumeAttachment>],
                   others: &[Arc<VolumeAttachment>],
                   wanted: &[&Volume],
                   unused: Timestamp| {
            let wanted = wanted.iter().map(|volume| (*volume).clone()).collect();
            let node = node(ready, in_use.clone());
            let view = View { name: "n", node: Some(&node), own, others, wanted: &wanted, now };
            let plan = decide(&view, &unique, &since(unused));
            (plan.attach.len(), plan.wait.len(), plan.detach.len(), plan.again.is_some())
        };
        let free = json!([]);
        let cases = [
            (run("True", &free, &[], &[], &[&v], now), (1, 0, 0, false)),
            (run("True", &free, &[at(&v, "n")], &[], &[&v], now), (0, 0, 0, false)),
            (run("True", &free, &[], &[at(&v, "m")], &[&v], now), (0, 1, 0, false)),
            (run("True", &free, &[], &[at(&shared, "m")], &[&shared], now), (1, 0, 0, false)),
            (run("True", &free, &[at(&w, "n")], &[], &[], now), (0, 0, 1, false)),
            (run("True", &free, &[foreign], &[], &[], long), (0, 0, 0, false)),
            (run("True", &busy, &[at(&w, "n")], &[], &[], long), (0, 0, 0, true)),
            (run("Unknown", &busy, &[at(&w, "n")], &[], &[], now), (0, 0, 0, true)),
            (run("Unknown", &busy, &[at(&w, "n")], &[], &[], long), (0, 0, 1, false)),
        ];
        for (at, (got, want)) in cases.into_iter().enumerate() {
            assert_eq!(got, want, "case {at}");
        }
    }

    #[test]
    fn names_are_upstreams() {
        // The digest of handle, driver and node, as csi_attacher.go has it.
        assert_eq!(volume("v", false).attachment("n").len(), 4 + 64);
        assert_eq!(volume("v", false).unique(), "kubernetes.io/csi/d^h-v");
    }
}
