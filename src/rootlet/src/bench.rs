//! `rootlet bench`: nodes that only pretend to run pods, and how fast the scheduler and the controllers are
//! with them. Everything is said to the API alone, so the stock components are measured the same way.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Event, Selection, list_watch};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::paths::Paths;

/// Requests under way at once.
const CLIENTS: usize = 64;
/// How often a node's lease is renewed: well within the 50 s after which the node counts as lost.
const RENEWAL: Duration = Duration::from_secs(20);
/// The first time for which a scheduler lets a refused pod rest.
const BACK_OFF: Duration = Duration::from_secs(2);
/// After so long a measurement has failed.
const PATIENCE: Duration = Duration::from_mins(10);
const NAMESPACE: &str = "rootlet-bench";
const LEASES: &str = "kube-node-lease";

/// Carries out `rootlet bench`.
pub fn bench(command: &cli::args::Bench) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            cli::args::Bench::Nodes { target, count } => {
                let client = connect(target).await?;
                let nodes = Nodes::start(client, *count).await?;
                println!("{count} simulated nodes are Ready; interrupt to remove them");
                tokio::signal::ctrl_c().await?;
                nodes.remove().await
            }
            cli::args::Bench::Loops { target, nodes, pods, replicas, dependants, hold } => {
                let client = connect(target).await?;
                let simulated = Nodes::start(client.clone(), *nodes).await?;
                let sizes = Sizes {
                    pods: *pods,
                    replicas: *replicas,
                    dependants: *dependants,
                    hold: Duration::from_secs(*hold),
                };
                let outcome = measure(&client, &simulated, &sizes).await;
                simulated.remove().await?;
                outcome
            }
        }
    })
}

async fn connect(target: &cli::args::BenchTarget) -> anyhow::Result<Client> {
    match &target.kubeconfig {
        Some(file) => Ok(client::from_kubeconfig(Path::new(file), None).await?),
        None => crate::control::api(&Paths::of(&target.cluster.name)?).await,
    }
}

fn now() -> String {
    apimachinery::time::now()
}

fn node(index: usize) -> Value {
    let name = format!("simulated-{index}");
    let resources =
        json!({"cpu": "32", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "rootlet.io/simulated": "true",
            "topology.kubernetes.io/zone": format!("zone-{}", index % 3)}},
        "status": {
            "allocatable": resources, "capacity": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "simulated", "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
        },
    })
}

/// Simulated nodes, kept alive, with what becomes of the pods in view.
struct Nodes {
    client: Client,
    count: usize,
    tasks: JoinSet<()>,
    pods: watch::Receiver<Census>,
    /// Whether the nodes do what kubelets do; while pods are only placed that would be in the way.
    awake: Arc<AtomicBool>,
}

/// The pods of the measurements.
#[derive(Clone, Debug, Default)]
struct Census {
    /// Those there are.
    all: HashSet<String>,
    /// Those with a node.
    placed: HashSet<String>,
    /// Those that there was no node for.
    refused: HashSet<String>,
}

async fn in_parallel<T, F>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> F,
) -> Result<(), kube::Error>
where
    F: Future<Output = Result<(), kube::Error>>,
{
    futures::stream::iter(items.into_iter().map(work))
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

impl Nodes {
    async fn start(client: Client, count: usize) -> anyhow::Result<Self> {
        let nodes: Api<Node> = Api::all(client.clone());
        let parameters = PostParams::default();
        in_parallel(0..count, |index| {
            let (nodes, parameters) = (nodes.clone(), parameters.clone());
            async move {
                let wanted: Node =
                    serde_json::from_value(node(index)).map_err(kube::Error::SerdeError)?;
                match nodes.create(&parameters, &wanted).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    other => drop(other?),
                }
                // Only the status subresource takes the status, on API servers that are strict about it.
                let status = json!({"status": node(index)["status"]});
                let name = format!("simulated-{index}");
                nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                Ok(())
            }
        })
        .await
        .context("cannot register simulated nodes")?;
        renew_once(&client, count).await.context("cannot renew the nodes' leases")?;
        taken_in(&nodes).await?;
        let (told, pods) = watch::channel(Census::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(renew(client.clone(), count));
        let awake = Arc::new(AtomicBool::new(true));
        tasks.spawn(play(client.clone(), told, awake.clone()));
        Ok(Self { client, count, tasks, pods, awake })
    }

    /// Waits until `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&Census) -> bool) -> anyhow::Result<()> {
        let mut pods = self.pods.clone();
        let waiting = pods.wait_for(|census| holds(census));
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(outcome) => outcome.map(drop).context("the watch has ended"),
            Err(_) => bail!("{what}: not within {} s", PATIENCE.as_secs()),
        }
    }

    async fn remove(mut self) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        in_parallel(0..self.count, |index| {
            let (nodes, leases) = (nodes.clone(), leases.clone());
            async move {
                let name = format!("simulated-{index}");
                let _ = leases.delete(&name, &DeleteParams::default()).await;
                nodes.delete(&name, &DeleteParams::default()).await.map(drop)
            }
        })
        .await
        .context("cannot remove simulated nodes")
    }
}

/// Waits until the control plane has taken the nodes in: until none has the taint any more that it came with.
async fn taken_in(nodes: &Api<Node>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let is_tainted = |node: &Node| {
        node.spec.as_ref().is_some_and(|spec| spec.taints.iter().flatten().next().is_some())
    };
    let simulated = ListParams::default().labels("rootlet.io/simulated=true");
    while nodes.list(&simulated).await?.iter().any(is_tainted) {
        if begin.elapsed() > PATIENCE {
            bail!("simulated nodes are tainted: do the controllers run?");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Renews the nodes' leases again and again.
async fn renew(client: Client, count: usize) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        if let Err(error) = renew_once(&client, count).await {
            eprintln!("warning: leases of simulated nodes: {error}");
        }
    }
}

async fn renew_once(client: &Client, count: usize) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASES);
    in_parallel(0..count, |index| {
        let leases = leases.clone();
        async move {
            let name = format!("simulated-{index}");
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
                    "renewTime": apimachinery::time::now_micros()}});
            let parameters = PatchParams::apply("rootlet-bench").force();
            leases.patch(&name, &parameters, &Patch::Apply(lease)).await.map(drop)
        }
    })
    .await
}

fn on_simulated(pod: &Pod) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.is_some_and(|node| node.starts_with("simulated-"))
}

fn was_refused(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "PodScheduled" && c.status == "False")
}

/// Does what kubelets would: tells that pods run, and lets those go that are asked to.
async fn play(client: Client, told: watch::Sender<Census>, awake: Arc<AtomicBool>) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut events = std::pin::pin!(list_watch(pods, Selection::default()));
    let mut work = JoinSet::new();
    let mut started: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        let pod = match event {
            Event::Apply(pod) | Event::InitApply(pod) => pod,
            Event::Delete(pod) => {
                let uid = pod.uid().unwrap_or_default();
                started.remove(&uid);
                told.send_modify(|census| {
                    census.all.remove(&uid);
                    census.placed.remove(&uid);
                    census.refused.remove(&uid);
                });
                continue;
            }
            Event::Init | Event::InitDone => continue,
        };
        let uid = pod.uid().unwrap_or_default();
        let placed = on_simulated(&pod);
        told.send_if_modified(|census| {
            let new = census.all.insert(uid.clone());
            let refused = was_refused(&pod) && census.refused.insert(uid.clone());
            (placed && census.placed.insert(uid.clone())) || new || refused
        });
        if !placed || !awake.load(Ordering::Relaxed) {
            continue;
        }
        let going = pod.metadata.deletion_timestamp.is_some();
        if going || started.insert(uid) {
            work.spawn(act(client.clone(), pod));
        }
        while work.len() >= CLIENTS || work.try_join_next().is_some() {
            if work.len() >= CLIENTS {
                work.join_next().await;
            }
        }
    }
}

async fn act(client: Client, pod: Pod) {
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        return;
    }
    let time = now();
    let containers: Vec<Value> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .map(|container| {
            json!({"name": container.name, "image": container.image, "imageID": "", "ready": true,
                "restartCount": 0, "started": true, "state": {"running": {"startedAt": time}}})
        })
        .collect();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": time});
    let status = json!({"status": {"phase": "Running", "startTime": time, "podIP": "10.200.0.1",
        "podIPs": [{"ip": "10.200.0.1"}], "containerStatuses": containers,
        "conditions": [condition("Initialized"), condition("ContainersReady"), condition("Ready")]}});
    // A pod that has gone meanwhile needs no status.
    let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
}

fn print(what: &str, value: f64, unit: &str) {
    println!("{what:58} {value:8.1} {unit}");
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "bench"}}, "spec": {"terminationGracePeriodSeconds": 0,
        "nodeSelector": {"rootlet.io/simulated": "true"}, "containers": [{"name": "c", "image": "bench",
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]}})
}

/// What is measured.
struct Sizes {
    pods: usize,
    replicas: i32,
    dependants: usize,
    /// How long the Deployment stays before it is rolled over.
    hold: Duration,
}

async fn measure(client: &Client, nodes: &Nodes, sizes: &Sizes) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    match namespaces.create(&PostParams::default(), &namespace).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(other.context("cannot make the namespace")?),
    }
    // Pods of a namespace are admitted when its account is there.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let begin = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        if begin.elapsed() > PATIENCE {
            bail!("namespace {NAMESPACE} has no service account: do the controllers run?");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if sizes.pods > 0 {
        scheduling(client, nodes, sizes.pods).await?;
        scheduling_alone(client, nodes, sizes.pods).await?;
    }
    if sizes.replicas > 0 {
        rollout(client, nodes, sizes).await?;
    }
    if sizes.dependants > 0 {
        collection(client, sizes.dependants).await?;
    }
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    // The next measurement starts with a namespace of its own.
    let begin = Instant::now();
    while namespaces.get_opt(NAMESPACE).await?.is_some() {
        if begin.elapsed() > PATIENCE {
            bail!("namespace {NAMESPACE} is still there after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Makes pods as fast as the API takes them, each with what `more` says in its specification.
async fn create(api: &Api<Pod>, count: usize, more: &Value) -> anyhow::Result<()> {
    let mut wanted = template();
    for (key, value) in more.as_object().into_iter().flatten() {
        wanted["spec"][key] = value.clone();
    }
    let wanted = Arc::new(wanted);
    let made = in_parallel(0..count, |index| {
        let (api, wanted) = (api.clone(), wanted.clone());
        async move {
            let mut pod = Value::clone(&wanted);
            pod["metadata"]["name"] = json!(format!("bench-{index}"));
            pod["metadata"]["labels"] = json!({"app": "single"});
            let pod: Pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &pod).await.map(drop)
        }
    });
    made.await.context("cannot make pods")
}

/// Removes the pods of a measurement.
async fn clear(api: &Api<Pod>, nodes: &Nodes) -> anyhow::Result<()> {
    let parameters = DeleteParams::default().grace_period(0);
    api.delete_collection(&parameters, &ListParams::default()).await?;
    nodes.awake.store(true, Ordering::Relaxed);
    nodes.until("the pods' end", |census| census.all.is_empty()).await
}

/// Pods that are all there and wait for a volume: from the moment when it is there until the last has a node.
async fn scheduling_alone(client: &Client, nodes: &Nodes, count: usize) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = json!({"accessModes": ["ReadWriteMany"], "storageClassName": "", "capacity": {"storage": "1Gi"},
        "hostPath": {"path": "/nowhere"}, "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": NAMESPACE, "namespace": NAMESPACE}});
    let volume = json!({"metadata": {"name": NAMESPACE}, "spec": spec});
    volumes.create(&PostParams::default(), &serde_json::from_value(volume)?).await?;
    nodes.awake.store(false, Ordering::Relaxed);
    let awaited =
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": NAMESPACE}}]});
    create(&api, count, &awaited).await?;
    let refused = "what the pods wait for";
    nodes.until(refused, |census| census.refused.len() >= count).await?;
    // Those that were refused last may be tried again when the shortest back-off is over.
    tokio::time::sleep(BACK_OFF).await;
    let spec = json!({"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": NAMESPACE,
        "resources": {"requests": {"storage": "1Gi"}}});
    let claim = json!({"metadata": {"name": NAMESPACE}, "spec": spec});
    let begin = Instant::now();
    claims.create(&PostParams::default(), &serde_json::from_value(claim)?).await?;
    nodes.until("scheduling alone", |census| census.placed.len() >= count).await?;
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    print(
        &format!("pods scheduled, {count} that were there, over {} nodes", nodes.count),
        rate,
        "/s",
    );
    clear(&api, nodes).await?;
    claims.delete(NAMESPACE, &DeleteParams::default()).await?;
    volumes.delete(NAMESPACE, &DeleteParams::default()).await?;
    Ok(())
}

/// Pods made as fast as the API takes them, until the last has a node.
async fn scheduling(client: &Client, nodes: &Nodes, count: usize) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let begin = Instant::now();
    nodes.awake.store(false, Ordering::Relaxed);
    let created = async {
        create(&api, count, &json!({})).await?;
        anyhow::Ok(begin.elapsed())
    };
    let placed = async {
        nodes.until("scheduling", |census| census.placed.len() >= count).await?;
        anyhow::Ok(begin.elapsed())
    };
    let (created, placed) = tokio::try_join!(created, placed)?;
    let rate = |time: Duration| count as f64 / time.as_secs_f64();
    print(&format!("pods created, {count}"), rate(created), "/s");
    let what = format!("pods created and scheduled, {count} over {} nodes", nodes.count);
    print(&what, rate(placed), "/s");
    clear(&api, nodes).await
}

async fn deployed(
    api: &Api<Deployment>,
    what: &str,
    holds: impl Fn(&Deployment) -> bool,
) -> anyhow::Result<()> {
    let selection = Selection::fields("metadata.name=bench");
    let mut events = std::pin::pin!(list_watch(api.clone(), selection));
    let waiting = async {
        while let Some(event) = events.next().await {
            if event.applied().is_some_and(|deployment| holds(&deployment)) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.with_context(|| format!("{what}: not in time"))
}

/// A Deployment that grows from nothing, and is rolled over.
async fn rollout(client: &Client, nodes: &Nodes, sizes: &Sizes) -> anyhow::Result<()> {
    let replicas = sizes.replicas;
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "bench"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "bench"}}, "template": template()},
    }))?;
    api.create(&PostParams::default(), &deployment).await?;
    deployed(&api, "the empty deployment", |d| {
        d.status.as_ref().is_some_and(|status| status.observed_generation.is_some())
    })
    .await?;
    let seconds = |begin: Instant| begin.elapsed().as_secs_f64() * 1000.0;
    let begin = Instant::now();
    let scale = json!({"spec": {"replicas": replicas}});
    api.patch("bench", &PatchParams::default(), &Patch::Merge(scale)).await?;
    nodes.until("creation", |census| census.all.len() >= replicas as usize).await?;
    print(&format!("Deployment 0 to {replicas}: all pods created"), seconds(begin), "ms");
    let full = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.observed_generation == deployment.metadata.generation
            && [status.replicas, status.updated_replicas, status.available_replicas]
                .iter()
                .all(|count| *count == Some(replicas))
    };
    deployed(&api, "the deployment's growth", full).await?;
    print(&format!("Deployment 0 to {replicas}: all available"), seconds(begin), "ms");
    tokio::time::sleep(sizes.hold).await;
    let begin = Instant::now();
    let again = json!({"spec": {"template": {"metadata": {"annotations": {"roll": "over"}}}}});
    api.patch("bench", &PatchParams::default(), &Patch::Merge(again)).await?;
    deployed(&api, "the rollout", full).await?;
    print(&format!("Deployment of {replicas} rolled over"), seconds(begin), "ms");
    let begin = Instant::now();
    api.delete("bench", &DeleteParams::background()).await?;
    nodes.until("the deployment's end", |census| census.all.is_empty()).await?;
    print(&format!("Deployment of {replicas} deleted, all pods gone"), seconds(begin), "ms");
    Ok(())
}

/// Objects that go with their owner.
async fn collection(client: &Client, count: usize) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let owner: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "owner"}}))?;
    let owner = api.create(&PostParams::default(), &owner).await?;
    let uid = owner.uid().context("objects have a uid")?;
    in_parallel(0..count, |index| {
        let (api, uid) = (api.clone(), uid.clone());
        async move {
            let object = json!({"metadata": {"name": format!("dependant-{index}"),
                "labels": {"bench": "dependant"}, "ownerReferences": [{"apiVersion": "v1",
                    "kind": "ConfigMap", "name": "owner", "uid": uid}]}});
            let object: ConfigMap =
                serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
            api.create(&PostParams::default(), &object).await.map(drop)
        }
    })
    .await
    .context("cannot make dependants")?;
    let begin = Instant::now();
    api.delete("owner", &DeleteParams::background()).await?;
    let some = ListParams::default().labels("bench=dependant").limit(1);
    while !api.list_metadata(&some).await?.items.is_empty() {
        if begin.elapsed() > PATIENCE {
            bail!("dependants are left after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    print(&format!("{count} dependants collected"), begin.elapsed().as_secs_f64() * 1000.0, "ms");
    Ok(())
}
