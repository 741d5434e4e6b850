//! The pods of this node: who comes and goes, and which worker hears of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Change, Informer};
use futures::StreamExt;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::labels;
use crate::pod;
use crate::worker::{Handle, Update};

/// How often the runtime's whole list is compared with the workers.
const RELIST: Duration = Duration::from_secs(30);

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

    fn wake_all(&self) {
        for handle in self.lock().values() {
            handle.wake();
        }
    }

    /// The pods that have workers.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(Handle::pod).collect()
    }

    /// The pod with this name, if it has a worker.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods().into_iter().find(|p| pod::namespace(p) == namespace && pod::name(p) == name)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches pods and containers until `shutdown`; containers go on running.
pub async fn run(context: Arc<Context>, workers: Workers, shutdown: CancellationToken) {
    let api: Api<Pod> = Api::all(context.client.clone());
    let selected =
        watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    let (informer, watch) = Informer::spawn(api, selected);
    let _watch = tokio_util::task::AbortOnDropHandle::new(watch);
    let mut changes = Box::pin(informer.subscribe());
    let (done, mut gone) = mpsc::unbounded_channel();
    let mut events = Box::pin(container_events(context.clone()));
    let mut relist = tokio::time::interval_at(tokio::time::Instant::now() + RELIST, RELIST);
    let mut synced = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            change = changes.next() => match change {
                None => break,
                Some(Change::Applied(pod)) => apply(&context, &workers, pod, &done),
                Some(Change::Deleted(pod)) => remove(&workers, &pod),
                Some(Change::Synced) => {
                    synced = true;
                    let all = informer.store().state();
                    for pod in &all {
                        apply(&context, &workers, pod.clone(), &done);
                    }
                    for known in workers.pods() {
                        if !all.iter().any(|p| p.metadata.uid == known.metadata.uid) {
                            remove(&workers, &known);
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
                // A pod of the same uid cannot come back, but one that was re-created may wait for
                // the ports or resources this one held.
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

fn apply(
    context: &Arc<Context>,
    workers: &Workers,
    pod: Arc<Pod>,
    done: &mpsc::UnboundedSender<String>,
) {
    let mut workers = workers.lock();
    let update = Update { pod: pod.clone(), removed: false };
    if let Some(handle) = workers.get(pod::uid(&pod)) {
        handle.update(update);
    } else {
        let handle = Handle::spawn(context.clone(), update, done.clone());
        workers.insert(pod::uid(&pod).to_owned(), handle);
    }
}

fn remove(workers: &Workers, pod: &Arc<Pod>) {
    if let Some(handle) = workers.lock().get(pod::uid(pod)) {
        handle.update(Update { pod: pod.clone(), removed: true });
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
        let handle = Handle::spawn(context.clone(), Update { pod, removed: true }, done.clone());
        workers.insert(uid, handle);
    }
    clear_directories(context, workers, &known);
}

/// Directories of pods that neither the API nor the runtime has any more.
fn clear_directories(context: &Context, workers: &Workers, known: &[String]) {
    let Ok(entries) = std::fs::read_dir(context.root_dir.join("pods")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if known.contains(&name) || workers.lock().contains_key(&name) {
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
