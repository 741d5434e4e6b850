//! ResourceClaims: those that pods ask for by template are made, and devices are given back when nobody
//! needs them any more.
//!
//! Source: `pkg/controller/resourceclaim/controller.go`.

use std::sync::Arc;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate,
};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::ownership;
use crate::queue::{self, Failure, Next};
use crate::{pods, touched, unless_code};

/// Says for which of a pod's entries a claim was made.
const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Holds a claim while somebody has its devices.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// So many may have a claim's devices at once.
const USERS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(String, String),
    Claim(String, String),
}

/// A pod that will not use its claims any more, or never has.
fn is_done(pod: &Pod) -> bool {
    pods::is_finished(pod)
        || (pod.metadata.deletion_timestamp.is_some() && pods::node(pod).is_empty())
}

/// The claim for one of the pod's entries.
fn claim(pod: &Pod, entry: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM_NAME.into(), entry.to_owned());
    let name = pod.name_any();
    let mut prefix = format!("{name}-{entry}-");
    if prefix.len() > 63 - 5 {
        // Both parts stay recognisable.
        let half = (63 - 5 - 2) / 2;
        prefix = format!("{}-{}-", &name[..name.len().min(half)], &entry[..entry.len().min(half)]);
    }
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::owner_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// What is to become of a claim.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing.
    Leave,
    /// These users are left; whether the devices are given back is told.
    Free(Vec<ResourceClaimConsumerReference>, bool),
    /// It can go: nobody has its devices.
    Release,
    /// Its pod is done: it goes too.
    Delete,
}

/// Decides; `done` says whether a user is done, or gone.
fn decide(
    claim: &ResourceClaim,
    done: impl Fn(&ResourceClaimConsumerReference) -> bool,
    owner_done: bool,
) -> Step {
    let status = claim.status.clone().unwrap_or_default();
    let users = status.reserved_for.unwrap_or_default();
    let left: Vec<_> = users.iter().filter(|user| !done(user)).cloned().collect();
    let held = claim.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    if left.len() < users.len() || (left.is_empty() && status.allocation.is_some()) {
        let give_back = left.is_empty() && status.allocation.is_some();
        if left.len() < users.len() || give_back {
            return Step::Free(left, give_back);
        }
    }
    if left.is_empty() && owner_done && claim.metadata.deletion_timestamp.is_none() {
        return Step::Delete;
    }
    if left.is_empty() && status.allocation.is_none() && held {
        return Step::Release;
    }
    Step::Leave
}

/// Who has the claim's devices with the pod, if it shall have them too: one that was put on its node without the
/// scheduler, which would have seen to it.
fn reserved(claim: &ResourceClaim, pod: &Pod) -> Option<Vec<ResourceClaimConsumerReference>> {
    let status = claim.status.as_ref().filter(|status| status.allocation.is_some())?;
    let mut users = status.reserved_for.clone().unwrap_or_default();
    let known = users.iter().any(|user| Some(&user.uid) == pod.metadata.uid.as_ref());
    if known || users.len() >= USERS_MAX || claim.metadata.deletion_timestamp.is_some() {
        return None;
    }
    users.push(ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".into(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    });
    Some(users)
}

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    events: Recorder,
}

impl Controller {
    async fn sync_pod(&self, pod: &Pod) -> Result<Next, Failure> {
        if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
            return Ok(Next::Done);
        }
        let namespace = pod.namespace().unwrap_or_default();
        let entries = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
        let told = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
        let told = told.unwrap_or_default();
        let mut made: Vec<Value> = Vec::new();
        for entry in entries {
            let Some(template) = &entry.resource_claim_template_name else { continue };
            if told.iter().any(|status| status.name == entry.name) {
                continue;
            }
            let name = match self.made(pod, &entry.name) {
                Some(known) => known,
                None => self.make(pod, &entry.name, template).await?,
            };
            made.push(json!({"name": entry.name, "resourceClaimName": name}));
        }
        self.reserve(pod).await?;
        if !made.is_empty() {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let patch = json!({"metadata": {"uid": pod.uid()},
                "status": {"resourceClaimStatuses": made}});
            let patch = Patch::Strategic(patch);
            unless_code(
                api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await,
                404,
            )?;
        }
        Ok(Next::Done)
    }

    /// Lets a pod that is on a node have the devices of its claims.
    async fn reserve(&self, pod: &Pod) -> Result<(), Failure> {
        if pods::node(pod).is_empty() {
            return Ok(());
        }
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &namespace);
        for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
            let made = || self.made(pod, &entry.name);
            let Some(name) = entry.resource_claim_name.clone().or_else(made) else { continue };
            let Some(claim) = self.claims.get(&namespace, &name) else { continue };
            let Some(users) = reserved(&claim, pod) else { continue };
            let patch = json!({"metadata": {"uid": claim.uid(),
                "resourceVersion": claim.resource_version()}, "status": {"reservedFor": users}});
            let patch = Patch::Merge(patch);
            unless_code(api.patch_status(&name, &PatchParams::default(), &patch).await, 404)?;
        }
        Ok(())
    }

    /// The claim made for the pod's entry, if there is one.
    fn made(&self, pod: &Pod, entry: &str) -> Option<String> {
        let found = self.claims.store().find(|claim| {
            claim.metadata.namespace == pod.metadata.namespace
                && claim.annotations().get(POD_CLAIM_NAME).is_some_and(|name| name == entry)
                && ownership::is_controlled_by(claim, pod)
        })?;
        Some(found.name_any())
    }

    async fn make(&self, pod: &Pod, entry: &str, template: &str) -> Result<String, Failure> {
        let namespace = pod.namespace().unwrap_or_default();
        let failed = |problem: String| {
            let message = format!("PodResourceClaim {entry}: {problem}");
            self.events.warning(object_reference(pod), "FailedResourceClaimCreation", &*message);
            Failure::from(message)
        };
        let Some(found) = self.templates.get(&namespace, template) else {
            return Err(failed(format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            )));
        };
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &namespace);
        let created = api.create(&PostParams::default(), &claim(pod, entry, &found)).await;
        let created = created.map_err(|error| failed(pods::text(&error)))?;
        Ok(created.name_any())
    }

    /// Whether a user of a claim is done with it. The cache's word is not enough for one that is gone.
    async fn is_user_done(
        &self,
        namespace: &str,
        user: &ResourceClaimConsumerReference,
    ) -> Result<bool, Failure> {
        if user.resource != "pods" || user.api_group.as_ref().is_some_and(|group| !group.is_empty())
        {
            return Ok(false);
        }
        let same = |pod: &Pod| pod.metadata.uid.as_ref() == Some(&user.uid);
        if let Some(pod) = self.pods.get(namespace, &user.name).filter(|pod| same(pod)) {
            return Ok(is_done(&pod));
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(&user.name).await?;
        Ok(found.filter(same).is_none_or(|pod| is_done(&pod)))
    }

    async fn sync_claim(&self, claim: &ResourceClaim) -> Result<Next, Failure> {
        let (namespace, name) = ownership::key(claim);
        let users = claim.status.as_ref().and_then(|status| status.reserved_for.clone());
        let mut done = Vec::new();
        for user in users.unwrap_or_default() {
            if self.is_user_done(&namespace, &user).await? {
                done.push(user.uid);
            }
        }
        let owner = ownership::controller_of(claim).filter(|owner| owner.kind == "Pod");
        let owner_done = owner.is_some_and(|owner| {
            let pod = self.pods.get(&namespace, &owner.name);
            pod.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&owner.uid) && is_done(&pod))
        });
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), &namespace);
        let same = json!({"uid": claim.uid(), "resourceVersion": claim.resource_version()});
        let parameters = PatchParams::default();
        match decide(claim, |user| done.contains(&user.uid), owner_done) {
            Step::Leave => {}
            Step::Free(left, give_back) => {
                let mut status = json!({"reservedFor": left});
                if give_back {
                    status["allocation"] = Value::Null;
                    status["devices"] = Value::Null;
                }
                let patch = json!({"metadata": same, "status": status});
                unless_code(api.patch_status(&name, &parameters, &Patch::Merge(patch)).await, 404)?;
            }
            Step::Release => {
                let left: Vec<&String> =
                    claim.finalizers().iter().filter(|held| *held != FINALIZER).collect();
                let mut metadata = same;
                metadata["finalizers"] = json!(left);
                let patch = Patch::Merge(json!({"metadata": metadata}));
                unless_code(api.patch(&name, &parameters, &patch).await, 404)?;
            }
            Step::Delete => {
                let preconditions = Preconditions { uid: claim.uid(), ..Preconditions::default() };
                let parameters = DeleteParams::default().preconditions(preconditions);
                unless_code(api.delete(&name, &parameters).await, 404)?;
            }
        }
        Ok(Next::Done)
    }
}

/// What a change of the pod concerns: itself, and its claims, the one for its extended resources among them.
fn concerned(pod: &Pod) -> Vec<Key> {
    let entries = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let named = entries.filter_map(|entry| entry.resource_claim_name.clone());
    let told = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    let made = told.filter_map(|status| status.resource_claim_name.clone());
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let extended = extended.map(|status| status.resource_claim_name.clone());
    let (namespace, name) = ownership::key(pod);
    let claims = named.chain(made).chain(extended);
    let mut keys: Vec<Key> = claims.map(|claim| Key::Claim(namespace.clone(), claim)).collect();
    let entries = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_ref());
    if entries.is_some_and(|entries| !entries.is_empty()) {
        keys.push(Key::Pod(namespace, name));
    }
    keys
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let controller = Arc::new(Controller {
        pods: informers.get(),
        claims: informers.get(),
        templates: informers.get(),
        events: Recorder::new(client.clone(), "resource_claim", ""),
        client,
    });
    controller.pods.ready().await;
    controller.claims.ready().await;
    controller.templates.ready().await;
    let of_claim = |claim: &ResourceClaim| {
        let (namespace, name) = ownership::key(claim);
        vec![Key::Claim(namespace, name)]
    };
    let of_template = {
        let pods = controller.pods.clone();
        move |template: &ResourceClaimTemplate| {
            let (namespace, name) = ownership::key(template);
            let waiting = pods.store().state_filter(|pod| {
                let entries = pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten());
                pod.metadata.namespace.as_deref() == Some(&namespace)
                    && entries
                        .into_iter()
                        .any(|entry| entry.resource_claim_template_name.as_ref() == Some(&name))
            });
            let keys = waiting.iter().map(|pod| ownership::key(pod.as_ref()));
            keys.map(|(namespace, name)| Key::Pod(namespace, name)).collect::<Vec<_>>()
        }
    };
    let changes = futures::stream::select(
        touched(&controller.pods, concerned),
        futures::stream::select(
            touched(&controller.claims, of_claim),
            touched(&controller.templates, of_template),
        ),
    );
    queue::run("resource-claim", changes, shutdown, |key: Key| {
        let controller = controller.clone();
        Box::pin(async move {
            match key {
                Key::Pod(namespace, name) => match controller.pods.get(&namespace, &name) {
                    Some(pod) => controller.sync_pod(&pod).await,
                    None => Ok(Next::Done),
                },
                Key::Claim(namespace, name) => match controller.claims.get(&namespace, &name) {
                    Some(claim) => controller.sync_claim(&claim).await,
                    None => Ok(Next::Done),
                },
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_after_pod_and_entry() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .expect("a pod");
        let template: ResourceClaimTemplate = serde_json::from_value(json!({"spec": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"devices": {"requests": [{"name": "r"}]}}}}))
        .expect("a template");
        let made = claim(&pod, "gpu", &template);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("p-gpu-"));
        assert_eq!(made.annotations()[POD_CLAIM_NAME], "gpu");
        assert!(ownership::is_controlled_by(&made, &pod) && made.labels()["a"] == "b");
    }

    #[test]
    fn a_pod_that_is_on_a_node_has_its_devices() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}})).expect("a pod");
        let others = |count: usize| -> Vec<String> { (0..count).map(|n| n.to_string()).collect() };
        for (users, allocated, deleted, want) in [
            (vec![], true, false, Some(1)),
            (others(2), true, false, Some(3)),
            (vec!["u".to_owned()], true, false, None),
            (others(USERS_MAX), true, false, None),
            (vec![], false, false, None),
            (vec![], true, true, None),
        ] {
            let users: Vec<_> = users
                .iter()
                .map(|uid| json!({"resource": "pods", "name": uid, "uid": uid}))
                .collect();
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            let claim: ResourceClaim = serde_json::from_value(json!({"spec": {},
                "metadata": {"deletionTimestamp": deleted}, "status": {"reservedFor": users,
                    "allocation": allocated.then(|| json!({}))}}))
            .expect("a claim");
            let users = reserved(&claim, &pod);
            assert_eq!(users.as_ref().map(Vec::len), want);
            assert!(users.is_none_or(|users| users.iter().any(|user| user.uid == "u")));
        }
    }

    #[test]
    fn devices_go_back_when_nobody_needs_them() {
        let claim = |users: &[&str], allocated: bool, held: bool| -> ResourceClaim {
            let users: Vec<_> = users
                .iter()
                .map(|uid| json!({"resource": "pods", "name": uid, "uid": uid}))
                .collect();
            let allocation = allocated.then(|| json!({}));
            let finalizers = if held { vec![FINALIZER] } else { Vec::new() };
            serde_json::from_value(json!({"metadata": {"finalizers": finalizers}, "spec": {},
                "status": {"reservedFor": users, "allocation": allocation}}))
            .expect("a claim")
        };
        let run = |claim: ResourceClaim, owner_done| {
            let step = decide(&claim, |user| user.uid.starts_with("done"), owner_done);
            match step {
                Step::Free(left, give_back) => format!("free {} {give_back}", left.len()),
                other => format!("{other:?}"),
            }
        };
        for (claim, owner_done, want) in [
            (claim(&["a"], true, true), false, "Leave"),
            (claim(&["a", "done"], true, true), false, "free 1 false"),
            (claim(&["done"], true, true), true, "free 0 true"),
            (claim(&[], true, true), false, "free 0 true"),
            (claim(&[], false, true), false, "Release"),
            (claim(&[], false, true), true, "Delete"),
            (claim(&[], false, false), false, "Leave"),
        ] {
            assert_eq!(run(claim, owner_done), want);
        }
    }

    #[test]
    fn a_pod_concerns_all_its_claims() {
        let key = |name: &str| Key::Claim("n".into(), name.into());
        let itself = || Key::Pod("n".into(), "p".into());
        let extended = json!({"extendedResourceClaimStatus":
            {"resourceClaimName": "extended", "requestMappings": []}});
        let made = json!({"resourceClaimStatuses": [
            {"name": "b", "resourceClaimName": "made"}, {"name": "c"}]});
        let named = json!([{"name": "a", "resourceClaimName": "shared"},
            {"name": "b", "resourceClaimTemplateName": "t"}]);
        for (entries, status, want) in [
            (json!([]), json!({}), vec![]),
            (json!([]), extended, vec![key("extended")]),
            (named, made, vec![key("shared"), key("made"), itself()]),
        ] {
            let pod = json!({"metadata": {"namespace": "n", "name": "p"},
                "spec": {"containers": [], "resourceClaims": entries}, "status": status});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(concerned(&pod), want, "{entries} {status}");
        }
    }
}
