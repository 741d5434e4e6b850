//! The garbage collector: objects go when their owners are gone.
//!
//! Source: `pkg/controller/garbagecollector` (`garbagecollector.go`, `graph_builder.go`). It watches the
//! metadata of every resource that can be listed, watched and deleted.

mod gone;
mod graph;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Change, Event, Informer, Informers, Recorder, Selection, list_watch};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::discovery::{ApiCapabilities, Discovery, Scope, verbs};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::gone::Gone;
use self::graph::{Action, Graph, Node};
use crate::queue::{self, Failure, Next};
use crate::unless_code;

/// How often new resources (from CustomResourceDefinitions) are looked for.
const DISCOVER: Duration = Duration::from_secs(30);
/// Changed objects that may wait for a worker.
const BACKLOG: usize = 1024;

/// Kinds of which controllers make many for one owner.
const MADE_BY_CONTROLLERS: &[(&str, &str)] = &[
    ("v1", "Pod"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "ControllerRevision"),
    ("batch/v1", "Job"),
];

/// A resource whose objects are in the graph.
#[derive(Clone, Debug)]
struct Watched {
    resource: ApiResource,
    namespaced: bool,
}

#[derive(Default)]
struct World {
    graph: Graph,
    /// Those that are watched, each at one version, by `apiVersion` and kind.
    kinds: BTreeMap<(String, String), Watched>,
    /// Those that are served, at all their versions: owner references may name any.
    served: BTreeMap<(String, String), Watched>,
    gone: Gone,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> std::sync::MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn api(client: &Client, of: &Watched, namespace: &str) -> Api<DynamicObject> {
    if of.namespaced {
        Api::namespaced_with(client.clone(), namespace, &of.resource)
    } else {
        Api::all_with(client.clone(), &of.resource)
    }
}

/// Keeps the objects of one resource in the graph and tells which ones to look at.
async fn follow(client: Client, of: Watched, world: Shared, changed: mpsc::Sender<Vec<String>>) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &of.resource);
    let mut events = std::pin::pin!(list_watch(api, Selection::default()));
    let kind = (of.resource.api_version.clone(), of.resource.kind.clone());
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        let touched = match event {
            Event::Apply(object) => lock(&world).graph.apply(Node::new(&kind, &object.metadata)),
            Event::InitApply(object) => {
                listed.extend(object.metadata.uid.clone());
                lock(&world).graph.apply(Node::new(&kind, &object.metadata))
            }
            Event::Delete(object) => {
                lock(&world).graph.remove(&object.metadata.uid.unwrap_or_default())
            }
            Event::Init => {
                listed.clear();
                continue;
            }
            Event::InitDone => lock(&world).graph.retain(&kind, &listed),
        };
        if !touched.is_empty() && changed.send(touched).await.is_err() {
            return;
        }
    }
}

/// The same for pods, of which there are most: the process has them already.
async fn follow_pods(pods: Informer<Pod>, world: Shared, changed: mpsc::Sender<Vec<String>>) {
    let kind = ("v1".to_owned(), "Pod".to_owned());
    let mut changes = std::pin::pin!(pods.subscribe());
    while let Some(change) = changes.next().await {
        let touched = match change {
            Change::Applied(pod) => lock(&world).graph.apply(Node::new(&kind, &pod.metadata)),
            Change::Deleted(pod) => {
                lock(&world).graph.remove(pod.metadata.uid.as_deref().unwrap_or_default())
            }
            Change::Synced => {
                let all = pods.store().state();
                let listed = all.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
                let graph = &mut lock(&world).graph;
                let mut touched = graph.retain(&kind, &listed);
                for pod in all {
                    touched.extend(graph.apply(Node::new(&kind, &pod.metadata)));
                }
                touched
            }
        };
        if !touched.is_empty() && changed.send(touched).await.is_err() {
            return;
        }
    }
}

/// Resources as owner references name them.
fn by_kind(
    resources: impl IntoIterator<Item = (ApiResource, ApiCapabilities)>,
) -> BTreeMap<(String, String), Watched> {
    let named = resources.into_iter().map(|(resource, capabilities)| {
        let key = (resource.api_version.clone(), resource.kind.clone());
        (key, Watched { resource, namespaced: capabilities.scope == Scope::Namespaced })
    });
    named.collect()
}

/// Watches what discovery offers, and stops watching what it no longer does.
async fn discover(
    client: Client,
    pods: Informer<Pod>,
    world: Shared,
    changed: mpsc::Sender<Vec<String>>,
) {
    let mut watches: BTreeMap<(String, String), AbortHandle> = BTreeMap::new();
    // Dropping the set, when this task is aborted, ends the watches.
    let mut tasks = JoinSet::new();
    let mut tick = tokio::time::interval(DISCOVER);
    loop {
        tick.tick().await;
        let discovery = match Discovery::new(client.clone()).run_aggregated().await {
            Ok(discovery) => discovery,
            Err(error) => {
                tracing::debug!(%error, "the API's resources cannot be discovered");
                continue;
            }
        };
        let needed = [verbs::DELETE, verbs::LIST, verbs::WATCH];
        // Events are many, own nothing and expire by themselves.
        let found = client::resources(&discovery).into_iter().filter(|(resource, capabilities)| {
            needed.iter().all(|verb| capabilities.supports_operation(verb))
                && resource.plural != "events"
        });
        let found = by_kind(found);
        {
            let mut world = lock(&world);
            world.kinds = found.clone();
            world.served = by_kind(client::versioned_resources(&discovery));
        }
        watches.retain(|key, task| {
            let keep = found.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, of) in found {
            let is_pods = (key.0.as_str(), key.1.as_str()) == ("v1", "Pod");
            watches.entry(key).or_insert_with(|| {
                let (world, changed) = (world.clone(), changed.clone());
                if is_pods {
                    return tasks.spawn(follow_pods(pods.clone(), world, changed));
                }
                tasks.spawn(follow(client.clone(), of, world, changed))
            });
        }
    }
}

/// Whether the owner exists, asked of the API: the graph may not have it yet.
async fn exists(
    client: &Client,
    world: &Shared,
    events: &Recorder,
    node: &Node,
    owner: &OwnerReference,
) -> Result<bool, Failure> {
    let key = (owner.api_version.clone(), owner.kind.clone());
    let Some(of) = lock(world).served.get(&key).cloned() else {
        // Nothing is deleted for the sake of an owner whose kind cannot be asked for.
        return Ok(true);
    };
    if of.namespaced && node.namespace.is_empty() {
        // What is cluster-wide cannot belong to a namespace; upstream leaves it as well.
        tell_misplaced(events, node, owner, "is cluster-scoped, its owner is not");
        return Ok(true);
    }
    let found = api(client, &of, &node.namespace).get_metadata_opt(&owner.name).await?;
    let exists = found.is_some_and(|found| found.uid().as_deref() == Some(&owner.uid));
    if !exists {
        let mut world = lock(world);
        if world.graph.look(&owner.uid).is_some() {
            tell_misplaced(events, node, owner, "");
        } else {
            world.gone.note((node.namespace.clone(), owner.uid.clone()));
        }
    }
    Ok(exists)
}

/// Tells a dependent that its reference means an object of another namespace, or none.
fn tell_misplaced(events: &Recorder, node: &Node, owner: &OwnerReference, why: &str) {
    let about = ObjectReference {
        api_version: Some(node.kind.0.clone()),
        kind: Some(node.kind.1.clone()),
        name: Some(node.name.clone()),
        namespace: Some(node.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        uid: Some(node.uid.clone()),
        ..ObjectReference::default()
    };
    let reference =
        format!("[{}/{}, name: {}, uid: {}]", owner.api_version, owner.kind, owner.name, owner.uid);
    let message = if why.is_empty() {
        format!("ownerRef {reference} does not exist in namespace {:?}", node.namespace)
    } else {
        format!("ownerRef {reference} is invalid: the object {why}")
    };
    events.warning(about, "OwnerRefInvalidNamespace", message);
}

/// Boxed because it looks at dependents the same way.
fn process(
    client: Client,
    world: Shared,
    events: Recorder,
    uid: String,
) -> BoxFuture<'static, Result<Next, Failure>> {
    async move { handle(client, world, events, uid).await }.boxed()
}

async fn handle(
    client: Client,
    world: Shared,
    events: Recorder,
    uid: String,
) -> Result<Next, Failure> {
    let Some((node, unknown)) = lock(&world).graph.look(&uid) else { return Ok(Next::Done) };
    let Some(of) = lock(&world).kinds.get(&node.kind).cloned() else { return Ok(Next::Done) };
    let mut absent = HashSet::new();
    for owner in unknown {
        let gone = lock(&world).gone.has(&(node.namespace.clone(), owner.uid.clone()));
        if gone || !exists(&client, &world, &events, &node, &owner).await? {
            absent.insert(owner.uid);
        }
    }
    let action = lock(&world).graph.decide(&uid, &absent);
    let api = api(&client, &of, &node.namespace);
    let name = &node.name;
    match action {
        Action::Nothing => {}
        Action::Delete(policy) => delete(&api, name, uid, policy).await?,
        Action::DeleteUnblocked => {
            change_owners(&api, name, &uid, |owner| {
                Some(OwnerReference { block_owner_deletion: Some(false), ..owner })
            })
            .await?;
            delete(&api, name, uid, graph::Policy::Foreground).await?;
        }
        Action::DropOwners(owners) => drop_owners(&api, name, &uid, &owners).await?,
        Action::Orphan(known) => {
            for dependent in dependents(&client, &world, &node, known).await? {
                let Some(of) = lock(&world).kinds.get(&dependent.kind).cloned() else { continue };
                let api = self::api(&client, &of, &dependent.namespace);
                let owners = HashSet::from([uid.clone()]);
                drop_owners(&api, &dependent.name, &dependent.uid, &owners).await?;
            }
            remove_finalizer(&api, name, &uid, graph::ORPHAN).await?;
        }
        Action::Release => remove_finalizer(&api, name, &uid, graph::FOREGROUND).await?,
        Action::DeleteDependents(dependents) => {
            for dependent in dependents {
                process(client.clone(), world.clone(), events.clone(), dependent).await?;
            }
        }
    }
    Ok(Next::Done)
}

/// What an object owns, of those kinds that it is likely to own asked of the API: what the graph does not have
/// yet would be taken for a dependent of nobody, and go, once its owner is gone.
async fn dependents(
    client: &Client,
    world: &Shared,
    owner: &Node,
    known: Vec<Node>,
) -> Result<Vec<Node>, Failure> {
    if owner.namespace.is_empty() {
        return Ok(known);
    }
    let kinds: BTreeSet<(String, String)> = MADE_BY_CONTROLLERS
        .iter()
        .map(|(version, kind)| ((*version).to_owned(), (*kind).to_owned()))
        .chain(known.iter().map(|node| node.kind.clone()))
        .collect();
    let mut all = known;
    for kind in kinds {
        let Some(of) = lock(world).kinds.get(&kind).cloned() else { continue };
        let listed =
            api(client, &of, &owner.namespace).list_metadata(&ListParams::default()).await?;
        for object in listed {
            let owned = object.owner_references().iter().any(|o| o.uid == owner.uid);
            if owned && all.iter().all(|node| Some(&node.uid) != object.metadata.uid.as_ref()) {
                all.push(Node::new(&kind, &object.metadata));
            }
        }
    }
    Ok(all)
}

async fn delete(
    api: &Api<DynamicObject>,
    name: &str,
    uid: String,
    policy: graph::Policy,
) -> Result<(), Failure> {
    let policy = match policy {
        graph::Policy::Background => PropagationPolicy::Background,
        graph::Policy::Foreground => PropagationPolicy::Foreground,
        graph::Policy::Orphan => PropagationPolicy::Orphan,
    };
    let preconditions = Preconditions { uid: Some(uid), ..Preconditions::default() };
    let parameters = DeleteParams {
        propagation_policy: Some(policy),
        ..DeleteParams::default().preconditions(preconditions)
    };
    match api.delete(name, &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes owner references.
async fn drop_owners(
    api: &Api<DynamicObject>,
    name: &str,
    uid: &str,
    owners: &HashSet<String>,
) -> Result<(), Failure> {
    change_owners(api, name, uid, |owner| (!owners.contains(&owner.uid)).then_some(owner)).await
}

/// Changes owner references. The patch names the version it saw, so that a concurrent change is met by
/// a conflict and another try.
async fn change_owners(
    api: &Api<DynamicObject>,
    name: &str,
    uid: &str,
    change: impl Fn(OwnerReference) -> Option<OwnerReference>,
) -> Result<(), Failure> {
    let Some(found) = api.get_metadata_opt(name).await? else { return Ok(()) };
    if found.uid().as_deref() != Some(uid) {
        return Ok(());
    }
    let left: Vec<_> = found.owner_references().iter().cloned().filter_map(change).collect();
    let version = found.resource_version();
    let patch =
        json!({"metadata": {"uid": uid, "resourceVersion": version, "ownerReferences": left}});
    unless_code(
        api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await,
        404,
    )?;
    Ok(())
}

async fn remove_finalizer(
    api: &Api<DynamicObject>,
    name: &str,
    uid: &str,
    finalizer: &str,
) -> Result<(), Failure> {
    let Some(found) = api.get_metadata_opt(name).await? else { return Ok(()) };
    if found.uid().as_deref() != Some(uid) {
        return Ok(());
    }
    let left: Vec<_> = found.finalizers().iter().filter(|held| *held != finalizer).collect();
    let version = found.resource_version();
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": version, "finalizers": left}});
    unless_code(
        api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await,
        404,
    )?;
    Ok(())
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let world = Shared::default();
    let events = Recorder::new(client.clone(), "garbage-collector-controller", "");
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let mut discovery = JoinSet::new();
    discovery.spawn(discover(client.clone(), informers.get(), world.clone(), sender));
    let changes = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|keys| (keys, receiver))
    });
    queue::run("garbage-collector", changes, shutdown, |uid: String| {
        process(client.clone(), world.clone(), events.clone(), uid)
    })
    .await;
    discovery.shutdown().await;
}
