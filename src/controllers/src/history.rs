//! ControllerRevisions: the templates a DaemonSet or StatefulSet has had.
//!
//! Source: `pkg/controller/history/controller_history.go`, `pkg/controller/daemon/update.go`.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use apimachinery::labels::Selector;
use client::Informer;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::queue::Failure;
use crate::{ownership, pods, unless_code};

/// The label that tells the pods of different revisions apart.
pub const HASH: &str = "controller-revision-hash";

/// A short name for a text: FNV-1a, in letters that spell no words.
pub fn hash(text: &str, collisions: i32) -> String {
    let mut sum: u32 = 0x811c_9dc5;
    for byte in text.bytes().chain(collisions.to_le_bytes()) {
        sum = (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    sum.to_string().bytes().map(|b| char::from(letters[usize::from(b) % letters.len()])).collect()
}

/// What a revision keeps: a patch that puts the template back as a whole.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template a revision keeps.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    if let Some(map) = template.as_object_mut() {
        map.remove("$patch");
    }
    serde_json::from_value(template).ok()
}

/// All revisions of an object, the one of its present template last.
#[derive(Clone, Debug)]
pub struct History {
    /// What the present template is kept as.
    pub current: Arc<ControllerRevision>,
    /// Earlier ones, oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
}

/// The state of the history after one look.
pub enum Outcome {
    /// It is as it should be.
    Known(History),
    /// Another template has the same hash; try again with one more collision.
    Collision,
}

/// Which revision keeps `wanted`, if one does, and the number it shall have.
fn place(
    found: &[Arc<ControllerRevision>],
    wanted: &Value,
) -> (Option<Arc<ControllerRevision>>, i64) {
    let newest = found.iter().map(|revision| revision.revision).max().unwrap_or(0);
    let equal = |revision: &&Arc<ControllerRevision>| {
        revision.data.as_ref().is_some_and(|data| data.0 == *wanted)
    };
    match found.iter().filter(equal).max_by_key(|revision| revision.revision) {
        Some(known) if known.revision == newest => (Some(known.clone()), newest),
        // An earlier template is wanted again: it becomes the newest.
        known => (known.cloned(), newest + 1),
    }
}

/// Finds or makes the revision of `owner`'s template; `picks` is the owner's selector.
pub async fn sync<O>(
    client: &Client,
    revisions: &Informer<ControllerRevision>,
    owner: &O,
    picks: &Selector,
    template: &PodTemplateSpec,
    collisions: i32,
) -> Result<Outcome, Failure>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let matches = |revision: &ControllerRevision| picks.matches(revision.labels());
    let all = revisions.store().state();
    let mut found = ownership::claim(client, owner, all, matches, |_| true, None).await?;
    found.sort_by_key(|revision| (revision.revision, revision.name_any()));
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &namespace);
    let wanted = data(template);
    let (known, number) = place(&found, &wanted);
    let changes = revisions.subscribe();
    let current = match known {
        Some(known) if known.revision == number => known,
        Some(known) => {
            let mut newest = ControllerRevision::clone(&known);
            newest.revision = number;
            Arc::new(api.replace(&known.name_any(), &PostParams::default(), &newest).await?)
        }
        None => {
            let made = new(owner, template, wanted.clone(), number, collisions);
            match api.create(&PostParams::default(), &made).await {
                Ok(made) => {
                    let uid = made.uid().unwrap_or_default();
                    pods::settle(revisions, changes, vec![uid], Vec::new()).await;
                    Arc::new(made)
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let taken = api.get_opt(&made.name_any()).await?;
                    let ours = |taken: &ControllerRevision| {
                        ownership::is_controlled_by(taken, owner)
                            && taken.data.as_ref().is_some_and(|data| data.0 == wanted)
                    };
                    match taken {
                        Some(taken) if ours(&taken) => Arc::new(taken),
                        Some(_) => return Ok(Outcome::Collision),
                        None => return Err("the revision is going, not gone".into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    let old = found.into_iter().filter(|revision| revision.uid() != current.uid()).collect();
    Ok(Outcome::Known(History { current, old }))
}

fn new<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    data: Value,
    number: i64,
    collisions: i32,
) -> ControllerRevision {
    let hash = hash(&data.to_string(), collisions);
    let mut labels: BTreeMap<String, String> =
        template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH.into(), hash.clone());
    let mut annotations = owner.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let name = owner.name_any();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", &name[..name.len().min(223)])),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![ownership::owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The hash by which the pods of a revision are known.
pub fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(HASH).cloned().unwrap_or_default()
}

/// Deletes the oldest revisions that no pod is of, beyond `limit` earlier ones. `live` names revisions
/// in use, by hash or by name.
pub async fn truncate(
    client: &Client,
    namespace: &str,
    history: &History,
    limit: i32,
    live: &HashSet<String>,
) -> Result<(), Failure> {
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    for name in outdated(history, limit, live) {
        unless_code(api.delete(&name, &DeleteParams::default()).await, 404)?;
    }
    Ok(())
}

fn outdated(history: &History, limit: i32, live: &HashSet<String>) -> Vec<String> {
    let used = |revision: &ControllerRevision| {
        live.contains(&hash_of(revision)) || live.contains(&revision.name_any())
    };
    let free: Vec<_> = history.old.iter().filter(|revision| !used(revision)).collect();
    let surplus = free.len().saturating_sub(limit.max(0) as usize);
    free[..surplus].iter().map(|revision| revision.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, number: i64, content: i32) -> Arc<ControllerRevision> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {HASH: name}},
                "data": {"x": content}, "revision": number}))
            .expect("a revision"),
        )
    }

    #[test]
    fn a_template_of_old_becomes_the_newest() {
        let found = [revision("a", 1, 1), revision("b", 2, 2)];
        let place = |content: i32| {
            let (known, number) = place(&found, &json!({"x": content}));
            (known.map(|known| known.name_any()), number)
        };
        assert_eq!(place(2), (Some("b".into()), 2));
        assert_eq!(place(1), (Some("a".into()), 3));
        assert_eq!(place(3), (None, 3));
    }

    #[test]
    fn revisions_in_use_stay() {
        let old = vec![revision("a", 1, 1), revision("b", 2, 2), revision("c", 3, 3)];
        let history = History { current: revision("d", 4, 4), old };
        assert_eq!(outdated(&history, 1, &HashSet::from(["a".to_owned()])), ["b"]);
        assert!(outdated(&history, 10, &HashSet::new()).is_empty());
    }

    #[test]
    fn templates_come_back_whole() {
        let template: PodTemplateSpec =
            serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}})).expect("one");
        let revision = ControllerRevision {
            data: Some(RawExtension(data(&template))),
            ..ControllerRevision::default()
        };
        assert_eq!(super::template(&revision), Some(template));
    }
}
