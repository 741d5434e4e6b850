//! The daemon's side.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Segments, Query, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use client::Informers;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Checked, ImageLine, Progress, Pruned, Restored, Status};
use crate::manifests::Kept;
use crate::tracer::Tracer;

/// Progress lines that may wait for a slow reader.
const LINES: usize = 256;

/// What the handlers need.
pub struct State {
    /// When the daemon started.
    pub started: Instant,
    /// The node's images; `None` where another process has them.
    pub images: Option<images::Store>,
    /// The cluster; `None` where only the runtime runs.
    pub cluster: Option<Cluster>,
    /// Sent once to ask for the end; the inner sender is told when the pods are stopped.
    pub down: mpsc::Sender<oneshot::Sender<()>>,
}

/// What is known of the cluster.
pub struct Cluster {
    /// Address of the API server.
    pub server: String,
    /// Name of the node.
    pub node: String,
    /// The process' caches.
    pub informers: Informers,
    /// The cluster's objects.
    pub store: store::Store,
    /// Recorded steps.
    pub tracer: Tracer,
    /// Whether the state is in memory alone.
    pub ephemeral: bool,
    /// Where node ports are offered.
    pub publish: Vec<IpAddr>,
    /// How the manifests' folder is.
    pub manifests: Option<Arc<Mutex<Kept>>>,
}

/// Serves `socket` until `shutdown`.
pub async fn serve(
    socket: &Path,
    state: State,
    shutdown: CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    // What is there belongs to a daemon that has ended: its lock is ours.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let router = Router::new()
        .route("/status", get(status))
        .route("/down", post(down))
        .route("/trace/{namespace}/{name}", get(trace))
        .route("/images", get(list).delete(remove))
        .route("/images/pin", post(pin))
        .route("/images/pull", post(pull))
        .route("/images/load", post(load))
        .route("/images/save", get(save))
        .route("/images/prune", post(prune))
        .route("/images/fsck", post(fsck))
        .route("/snapshot", get(save_snapshot).post(restore_snapshot))
        .with_state(Arc::new(state));
    Ok(tokio::spawn(async move {
        let ended =
            axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = ended.await {
            tracing::error!(%error, "the control socket is closed");
        }
    }))
}

type Shared = Extract<Arc<State>>;

fn no_images() -> Response {
    let text = "the images of this node are another runtime's: ask that one";
    (StatusCode::NOT_FOUND, text).into_response()
}

fn no_cluster() -> Response {
    (StatusCode::NOT_FOUND, "only the container runtime runs here").into_response()
}

async fn status(Extract(state): Shared) -> Response {
    let Some(cluster) = &state.cluster else { return no_cluster() };
    let mut pods: BTreeMap<String, usize> = BTreeMap::new();
    for pod in cluster.informers.get::<Pod>().store().state() {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
        *pods.entry(phase.unwrap_or_else(|| "Unknown".into())).or_default() += 1;
    }
    let node = cluster.informers.get::<Node>().get("", &cluster.node);
    axum::Json(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        server: cluster.server.clone(),
        node: cluster.node.clone(),
        node_ready: node.as_deref().is_some_and(is_ready),
        pods,
        uptime_s: state.started.elapsed().as_secs(),
        ephemeral: cluster.ephemeral,
        publish: cluster.publish.clone(),
        manifests: cluster
            .manifests
            .as_ref()
            .map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner).clone()),
    })
    .into_response()
}

/// Whether the node's condition `Ready` is true.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

async fn down(Extract(state): Shared) -> Response {
    let (done, stopped) = oneshot::channel();
    if state.down.send(done).await.is_err() {
        return (StatusCode::CONFLICT, "the daemon is stopping already").into_response();
    }
    match stopped.await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(_) => (StatusCode::CONFLICT, "the daemon is stopping already").into_response(),
    }
}

async fn trace(
    Extract(state): Shared,
    Segments((namespace, name)): Segments<(String, String)>,
) -> Response {
    let Some(cluster) = &state.cluster else { return no_cluster() };
    let pod = cluster.informers.get::<Pod>().get(&namespace, &name);
    let Some(uid) = pod.and_then(|pod| pod.metadata.uid.clone()) else {
        let text = format!("pods \"{name}\" not found in namespace \"{namespace}\"");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let steps = cluster.tracer.steps(&uid);
    axum::Json(cli::trace::Trace { namespace, name, uid, steps }).into_response()
}

fn line(image: images::Image) -> ImageLine {
    ImageLine {
        id: image.id,
        tags: image.tags,
        digests: image.digests,
        size_bytes: image.size_bytes,
        pinned: image.pinned,
    }
}

async fn list(Extract(state): Shared) -> Response {
    let Some(images) = &state.images else { return no_images() };
    axum::Json(images.list().into_iter().map(line).collect::<Vec<_>>()).into_response()
}

#[derive(Deserialize)]
struct Named {
    reference: String,
}

async fn remove(Extract(state): Shared, Query(named): Query<Named>) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let removed = tokio::task::spawn_blocking(move || images.remove(&named.reference)).await;
    match removed {
        Ok(Ok(_)) => StatusCode::OK.into_response(),
        Ok(Err(error)) => (StatusCode::NOT_FOUND, chain(&error)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn pin(
    Extract(state): Shared,
    Query(named): Query<Named>,
    Query(pinned): Query<Flag>,
) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let done = tokio::task::spawn_blocking(move || images.pin(&named.reference, pinned.flag)).await;
    match done {
        Ok(Ok(())) => StatusCode::OK.into_response(),
        Ok(Err(error)) => (StatusCode::NOT_FOUND, chain(&error)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn pull(Extract(state): Shared, Query(named): Query<Named>) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    stream(move |lines| async move {
        let options = images::PullOptions {
            progress: Some(Arc::new(Lines(lines))),
            ..images::PullOptions::default()
        };
        images.pull(&named.reference, options).await.map(|image| vec![image])
    })
}

async fn load(Extract(state): Shared, body: Body) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let body = body.into_data_stream().map_err(std::io::Error::other);
    let mut body = tokio_util::io::StreamReader::new(body);
    let (mut writer, reader) = tokio::io::duplex(PIPE_BYTES);
    // What a failed load leaves unread is read all the same: a client listens only when it has sent everything.
    tokio::spawn(async move {
        if tokio::io::copy_buf(&mut body, &mut writer).await.is_err() {
            let _ = tokio::io::copy_buf(&mut body, &mut tokio::io::sink()).await;
        }
    });
    stream(move |_| async move { images.load(Box::pin(reader)).await })
}

/// The archive; a failure in its midst breaks the answer off, so the client sees that it is not whole.
async fn save(Extract(state): Shared, Query(named): Query<Vec<(String, String)>>) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let names: Vec<String> = named.into_iter().map(|(_, reference)| reference).collect();
    if let Some(missing) = names.iter().find(|name| images.get(name).is_none()) {
        return (StatusCode::NOT_FOUND, format!("image {missing:?} is not here")).into_response();
    }
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(LINES);
    tokio::task::spawn_blocking(move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let output = std::io::BufWriter::with_capacity(PIPE_BYTES, Chunks(sender.clone()));
        if let Err(error) = images.save(&names, output) {
            tracing::warn!(error = chain(&error), "an image cannot be saved");
            let _ = sender.blocking_send(Err(std::io::Error::other(chain(&error))));
        }
    });
    Response::new(Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

/// Sends what is written to it.
struct Chunks(mpsc::Sender<std::io::Result<Bytes>>);

impl std::io::Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// All objects; a failure in the midst breaks the answer off, so the client sees that it is not whole.
async fn save_snapshot(Extract(state): Shared) -> Response {
    let Some(cluster) = &state.cluster else { return no_cluster() };
    let chunks = store::snapshot::save(cluster.store.clone());
    Response::new(Body::from_stream(chunks.map_err(std::io::Error::other)))
}

async fn restore_snapshot(Extract(state): Shared, body: Body) -> Response {
    let Some(cluster) = &state.cluster else { return no_cluster() };
    let body = body.into_data_stream().map_err(std::io::Error::other);
    let mut body = tokio_util::io::StreamReader::new(body);
    let outcome = store::snapshot::restore(&cluster.store, &mut body).await;
    // A client listens only when it has sent everything.
    let _ = tokio::io::copy_buf(&mut body, &mut tokio::io::sink()).await;
    match outcome {
        Ok(done) => {
            axum::Json(Restored { written: done.written, removed: done.removed }).into_response()
        }
        Err(error @ store::snapshot::RestoreError::Store(_)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, chain(&error)).into_response(),
    }
}

#[derive(Deserialize)]
struct Flag {
    flag: bool,
}

async fn prune(Extract(state): Shared, Query(all): Query<Flag>) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let pruned = tokio::task::spawn_blocking(move || images.prune(all.flag)).await;
    answer(
        pruned.map(|done| done.map(|pruned| Pruned { images: pruned.images, bytes: pruned.bytes })),
    )
}

async fn fsck(Extract(state): Shared, Query(repair): Query<Flag>) -> Response {
    let Some(images) = state.images.clone() else { return no_images() };
    let checked = tokio::task::spawn_blocking(move || images.check(repair.flag)).await;
    answer(checked.map(|done| {
        done.map(|checked| Checked {
            images: checked.images,
            layers: checked.layers,
            uncheckable: checked.uncheckable.iter().map(ToString::to_string).collect(),
            damaged: checked
                .damaged
                .into_iter()
                .map(|damage| {
                    (damage.tags.first().unwrap_or(&damage.image_id).clone(), damage.reason)
                })
                .collect(),
        })
    }))
}

fn answer<T: serde::Serialize>(
    outcome: Result<Result<T, images::Error>, tokio::task::JoinError>,
) -> Response {
    match outcome {
        Ok(Ok(done)) => axum::Json(done).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Bytes of an archive that wait to be read.
const PIPE_BYTES: usize = 256 * 1024;

/// Answers with progress lines while `work` runs, and its outcome as the last line.
fn stream<W, F>(work: W) -> Response
where
    W: FnOnce(mpsc::Sender<Progress>) -> F,
    F: Future<Output = Result<Vec<images::Image>, images::Error>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(LINES);
    let work = work(sender.clone());
    tokio::spawn(async move {
        let last = match work.await {
            Ok(images) => Progress::Images { images: images.into_iter().map(line).collect() },
            Err(error) => Progress::Error { message: chain(&error) },
        };
        // The command may have gone; the work is done all the same.
        let _ = sender.send(last).await;
    });
    let lines = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let bytes = futures::StreamExt::map(lines, |line| {
        let mut text = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        text.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(text))
    });
    Response::new(Body::from_stream(bytes))
}

/// Sends what it is told as lines; a full queue drops them, as the next says more.
struct Lines(mpsc::Sender<Progress>);

impl images::Progress for Lines {
    fn layer(&self, layer: &images::Digest, event: images::LayerEvent) {
        let (done_bytes, total_bytes) = match event {
            images::LayerEvent::Queued { bytes } => (0, bytes),
            images::LayerEvent::Received { bytes, of } => (bytes, of),
            images::LayerEvent::Present { bytes } | images::LayerEvent::Done { bytes } => {
                (bytes, bytes)
            }
            images::LayerEvent::Resumed { .. } => return,
        };
        let _ =
            self.0.try_send(Progress::Layer { digest: layer.to_string(), done_bytes, total_bytes });
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
