//! The pods of this node: who comes and goes, and which worker hears of it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Change, Informer, Selection};
use futures::StreamExt;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::counters::Counters;
use crate::labels;
use crate::pod;
use crate::static_pods::{self, Mirrors, Name};
use crate::status::Waiting;
use crate::worker::{Handle, Standing, Update};

/// How often the runtime's whole list is compared with the workers.
const RELIST: Duration = Duration::from_secs(30);
/// How often the folder of static pods is read. A watch would cost one of the user's few inotify instances.
const READ_FOLDER: Duration = Duration::from_secs(2);

/// The workers, by uid.
#[derive(Clone, Default)]
pub struct Workers(Arc<Mutex<HashMap<String, Handle>>>);

impl Workers {
    /// Makes the pod's worker look again.
    pub fn wake(&self, uid: &str) {
        if let Some(handle) = self.lock().get(uid) {
            handle.wake();
        }
    }

    /// Ends the pod with this uid as failed.
    pub fn evict(&self, uid: &str, why: Waiting) {
        if let Some(handle) = self.lock().get(uid) {
            handle.evict(why, None);
        }
    }

    /// Ends the pod with this uid as failed, within so many seconds.
    pub fn evict_within(&self, uid: &str, why: Waiting, grace_seconds: i64) {
        if let Some(handle) = self.lock().get(uid) {
            handle.evict(why, Some(grace_seconds));
        }
    }

    /// Whether the API has heard of the end of all of these pods.
    pub fn told(&self, pods: &[Arc<Pod>]) -> bool {
        let known = self.pods();
        let uids: Vec<&str> = pods.iter().map(|of| pod::uid(of)).collect();
        known.iter().filter(|of| uids.contains(&pod::uid(of))).all(|of| pod::is_terminal(of))
    }

    /// Whether the pod with this uid has been told to end, or has ended.
    pub fn is_ending(&self, uid: &str) -> bool {
        self.lock().get(uid).is_none_or(Handle::is_ending)
    }

    fn wake_all(&self) {
        for handle in self.lock().values() {
            handle.wake();
        }
    }

    /// The pods that have workers.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(Handle::pod).collect()
    }

    /// The pods that have workers, with the status they now have.
    pub fn current(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(Handle::current).collect()
    }

    /// Whether a container of the pod with this uid runs, as far as was told.
    pub fn runs(&self, uid: &str) -> bool {
        let of = self.lock().get(uid).map(Handle::current);
        let Some(status) = of.and_then(|of| of.status.clone()) else { return false };
        let lists = [&status.init_container_statuses, &status.container_statuses];
        lists.into_iter().flatten().flatten().any(crate::status::is_running)
    }

    /// Where the volumes of the pod with this uid are, by name.
    pub fn volumes(&self, uid: &str) -> BTreeMap<String, PathBuf> {
        self.lock().get(uid).map(Handle::volumes).unwrap_or_default()
    }

    /// The pods, and where their volumes are.
    pub fn placed(&self) -> Vec<(Arc<Pod>, BTreeMap<String, PathBuf>)> {
        self.lock().values().map(|handle| (handle.pod(), handle.volumes())).collect()
    }

    /// How each of them stands.
    pub fn standing(&self) -> Vec<Standing> {
        self.lock().values().map(Handle::standing).collect()
    }

    /// The pod with this name, if it has a worker.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|p| pod::namespace(p) == namespace && pod::name(p) == name)
    }

    fn find_all(&self, (namespace, name): &Name) -> Vec<Arc<Pod>> {
        let mut all = self.pods();
        all.retain(|of| pod::namespace(of) == namespace && pod::name(of) == name);
        all
    }

    fn has(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches pods and containers until `shutdown`; containers go on running.
pub async fn run(context: Arc<Context>, workers: Workers, shutdown: CancellationToken) {
    let api: Api<Pod> = Api::all(context.client.clone());
    let selected = Selection::fields(format!("spec.nodeName={}", context.node_name));
    let (informer, watch) = Informer::spawn(api, selected);
    let _watch = tokio_util::task::AbortOnDropHandle::new(watch);
    let mut changes = Box::pin(informer.subscribe());
    let (done, mut gone) = mpsc::unbounded_channel();
    let mut events = Box::pin(container_events(context.clone()));
    let mut relist = tokio::time::interval_at(tokio::time::Instant::now() + RELIST, RELIST);
    let mut folder = tokio::time::interval(READ_FOLDER);
    let mut of_files = Static::default();
    let mut synced = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            change = changes.next() => match change {
                None => break,
                Some(Change::Applied(pod)) if pod::is_mirror(&pod) => {
                    let name = of_files.mirrors.seen(pod);
                    of_files.apply(&context, &workers, &name, &done);
                    folder.reset_immediately();
                }
                Some(Change::Applied(pod)) => apply(&context, &workers, Update::of(pod), &done),
                Some(Change::Deleted(pod)) if pod::is_mirror(&pod) => {
                    of_files.mirrors.gone(&pod);
                    folder.reset_immediately();
                }
                Some(Change::Deleted(pod)) => remove(&context, &workers, &pod),
                Some(Change::Synced) => {
                    synced = true;
                    let all = informer.store().state();
                    let (mirrors, own): (Vec<_>, Vec<_>) =
                        all.iter().cloned().partition(|pod| pod::is_mirror(pod));
                    of_files.mirrors = Mirrors::default();
                    for mirror in mirrors {
                        of_files.mirrors.seen(mirror);
                    }
                    for pod in own {
                        apply(&context, &workers, Update::of(pod), &done);
                    }
                    for known in workers.pods() {
                        if !pod::is_static(&known) && !all.iter().any(|p| p.metadata.uid == known.metadata.uid) {
                            remove(&context, &workers, &known);
                        }
                    }
                    adopt_orphans(&context, &workers, &done).await;
                }
            },
            Some(told) = events.next() => match told {
                Told::Pod(uid) => workers.wake(&uid),
                Told::Anew => workers.wake_all(),
            },
            Some(uid) = gone.recv() => {
                workers.lock().remove(&uid);
                context.forget(&uid);
                // A static pod may have come back with its uid, and one that was re-created may wait for
                // the ports or resources this one held.
                of_files.begin(&context, &workers, &done);
                if workers.has(&uid) {
                    Counters::add(&context.counters.restarted);
                }
                folder.reset_immediately();
            }
            _ = folder.tick(), if context.static_pods.is_some() => {
                of_files.read(&context, &workers, &done);
                if synced {
                    of_files.mirrors.reconcile(&context, &of_files.shown(&workers)).await;
                }
            }
            _ = relist.tick() => {
                workers.wake_all();
                if synced {
                    adopt_orphans(&context, &workers, &done).await;
                }
            }
        }
    }
    workers.lock().clear();
}

/// The static pods of the folder, and their mirrors.
#[derive(Default)]
struct Static {
    pods: BTreeMap<Name, Arc<Pod>>,
    mirrors: Mirrors,
    wrong: static_pods::Wrong,
    /// The folder was read at least once: what of it runs and is not in it is not wanted.
    read: bool,
}

impl Static {
    /// Reads the folder; what is new starts, what is gone or has changed ends.
    fn read(
        &mut self,
        context: &Arc<Context>,
        workers: &Workers,
        done: &mpsc::UnboundedSender<String>,
    ) {
        let Some(folder) = &context.static_pods else { return };
        let mut found = static_pods::read(folder, &context.node_name, &mut self.wrong);
        for (name, pod) in &mut found {
            // The one that runs goes on unchanged, with the time at which it was first seen.
            if let Some(known) = self.pods.get(name).filter(|k| k.metadata.uid == pod.metadata.uid)
            {
                *pod = known.clone();
            }
        }
        let before = std::mem::replace(&mut self.pods, found);
        let first = !std::mem::replace(&mut self.read, true);
        for (name, pod) in &before {
            if self.pods.get(name).is_none_or(|now| now.metadata.uid != pod.metadata.uid) {
                remove(context, workers, pod);
            }
        }
        let fresh: Vec<Name> = self
            .pods
            .iter()
            .filter(|(name, pod)| {
                first || before.get(*name).is_none_or(|was| was.metadata.uid != pod.metadata.uid)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in fresh {
            self.apply(context, workers, &name, done);
        }
    }

    /// Begins those that had to wait for others of their names to end.
    fn begin(
        &self,
        context: &Arc<Context>,
        workers: &Workers,
        done: &mpsc::UnboundedSender<String>,
    ) {
        for (name, _) in self.pods.iter().filter(|(_, pod)| !workers.has(pod::uid(pod))) {
            self.apply(context, workers, name, done);
        }
    }

    /// The pods that mirrors are to show: those that are there, until they have ended, then those that are wanted.
    fn shown(&self, workers: &Workers) -> BTreeMap<Name, Arc<Pod>> {
        let mut shown = self.pods.clone();
        let there = workers.pods().into_iter().filter(|of| pod::is_static(of));
        shown.extend(there.map(|of| ((pod::namespace(&of).into(), pod::name(&of).into()), of)));
        shown
    }

    fn apply(
        &self,
        context: &Arc<Context>,
        workers: &Workers,
        name: &Name,
        done: &mpsc::UnboundedSender<String>,
    ) {
        let Some(pod) = self.pods.get(name).cloned() else { return };
        if workers.find_all(name).iter().any(|other| other.metadata.uid != pod.metadata.uid) {
            // What the manifest said before has to end first.
            return;
        }
        let hash = pod.metadata.uid.clone();
        let mirror = self.mirrors.get(name).filter(|m| {
            m.metadata.annotations.as_ref().and_then(|a| a.get(pod::CONFIG_MIRROR)).cloned() == hash
        });
        apply(context, workers, Update { mirror, ..Update::of(pod) }, done);
    }
}

fn apply(
    context: &Arc<Context>,
    workers: &Workers,
    update: Update,
    done: &mpsc::UnboundedSender<String>,
) {
    let mut workers = workers.lock();
    let uid = pod::uid(&update.pod).to_owned();
    if let Some(handle) = workers.get(&uid) {
        handle.update(update);
    } else {
        let handle = Handle::spawn(context.clone(), update, done.clone());
        workers.insert(uid, handle);
    }
}

/// A pod is no longer wanted. What the API does not know any more takes nothing from those that come, as the
/// scheduler has it: it may have given the pod's ports away already.
fn remove(context: &Context, workers: &Workers, pod: &Arc<Pod>) {
    context.release(pod::uid(pod));
    if let Some(handle) = workers.lock().get(pod::uid(pod)) {
        handle.update(Update::removed(pod.clone()));
    }
}

/// Pods the runtime has and the API has not are ended by workers of their own.
async fn adopt_orphans(
    context: &Arc<Context>,
    workers: &Workers,
    done: &mpsc::UnboundedSender<String>,
) {
    let listed = context.cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
    let sandboxes = match listed {
        Ok(response) => response.items,
        Err(error) => {
            tracing::warn!(%error, "cannot list the runtime's pods");
            return;
        }
    };
    let mut known: Vec<String> = Vec::new();
    for sandbox in sandboxes {
        let label = |key: &str| sandbox.labels.get(key).cloned();
        // What does not carry the kubelet's labels is not the kubelet's.
        let Some(uid) = label(labels::POD_UID) else { continue };
        known.push(uid.clone());
        let mut workers = workers.lock();
        if workers.contains_key(&uid) {
            continue;
        }
        let pod = Arc::new(Pod {
            metadata: ObjectMeta {
                name: label(labels::POD_NAME),
                namespace: label(labels::POD_NAMESPACE),
                uid: Some(uid.clone()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        });
        tracing::info!(pod = pod::full_name(&pod), "ending a pod the API no longer has");
        Counters::add(&context.counters.orphans);
        let handle = Handle::spawn(context.clone(), Update::removed(pod), done.clone());
        workers.insert(uid, handle);
    }
    clear_directories(context, workers, &known).await;
}

/// Directories of pods that neither the API nor the runtime has any more.
async fn clear_directories(context: &Context, workers: &Workers, known: &[String]) {
    let Ok(entries) = std::fs::read_dir(context.root_dir.join("pods")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if known.contains(&name) || workers.lock().contains_key(&name) {
            continue;
        }
        if crate::csi::holds(&context.root_dir, &name)
            && let Err(error) = crate::csi::give_back(context, &name).await
        {
            tracing::debug!(pod = name, %error, "a driver's volume is not given back yet");
            continue;
        }
        if let Err(error) = context.claims.give_back(&name).await {
            tracing::debug!(pod = name, error, "claimed devices are not given back yet");
            continue;
        }
        if let Err(error) = crate::volumes::tear_down(&context.root_dir, &name) {
            tracing::warn!(pod = name, %error, "cannot remove an orphaned pod's directory");
        }
    }
}

enum Told {
    /// Containers of the pod with this uid change.
    Pod(String),
    /// The stream begins anew: what happened in between is unknown.
    Anew,
}

/// Changes of containers, as the runtime tells them; reconnects for ever.
fn container_events(context: Arc<Context>) -> impl futures::Stream<Item = Told> + Send {
    let connections = futures::stream::unfold((context, true), |(context, first)| async move {
        if !first {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        match context.cri.container_events().await {
            Ok(events) => Some((Some(events), (context, false))),
            Err(error) => {
                tracing::debug!(%error, "no container events from the runtime");
                Some((None, (context, false)))
            }
        }
    });
    connections
        .filter_map(|events| async move { events })
        .map(|events| {
            let told = events.filter_map(|event| async move {
                let status = event.ok()?.pod_sandbox_status?;
                status.metadata.map(|m| Told::Pod(m.uid))
            });
            futures::stream::iter([Told::Anew]).chain(told)
        })
        .flatten()
}
