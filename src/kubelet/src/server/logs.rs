//! `/containerLogs`: a container's log, past and present.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;

use super::{Shared, refuse};
use crate::context::Context;
use crate::logs::read::{self, Options};
use crate::observe::{self, Observed, State as ContainerState};
use crate::pod;

/// Answers with the log.
pub async fn container_logs(
    State(shared): State<Shared>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = Query::parse(query.as_deref().unwrap_or_default());
    let options = match query.options(shared.context.clock.now()) {
        Ok(options) => options,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    let Some(of) = shared.workers.find(&namespace, &name) else {
        return refuse(StatusCode::NOT_FOUND, format!("pod {name:?} does not exist\n"));
    };
    if pod::find_container(&of, &container).is_none() {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("container {container:?} not found in pod {name:?}\n"),
        );
    }
    let previous = query.flag("previous");
    let found = match find(&shared.context, &of, &container, previous).await {
        Ok(found) => found,
        Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
    };
    stream(shared.context, found, options)
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        Self(super::streaming::pairs(text))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("invalid value for {name}: {text:?}\n"))
    }

    fn options(&self, now: Timestamp) -> Result<Options, String> {
        let seconds = self.number("sinceSeconds")?;
        let since = match (seconds, self.get("sinceTime")) {
            (Some(seconds), _) => Some(now - SignedDuration::from_secs(seconds)),
            (None, Some(text)) => {
                Some(text.parse().map_err(|_| format!("invalid value for sinceTime: {text:?}\n"))?)
            }
            (None, None) => None,
        };
        let stream = match self.get("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some("stdout".to_owned()),
            Some("Stderr") => Some("stderr".to_owned()),
            Some(other) => return Err(format!("invalid value for stream: {other:?}\n")),
        };
        let size = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok(Options {
            follow: self.flag("follow"),
            tail_lines: self.number("tailLines")?.map(size),
            since,
            timestamps: self.flag("timestamps"),
            limit_bytes: self.number("limitBytes")?.map(size),
            stream,
        })
    }
}

/// The container whose log is meant, or upstream's words for why there is none.
async fn find(context: &Context, of: &Pod, name: &str, previous: bool) -> Result<Observed, String> {
    let mut known = std::collections::HashMap::new();
    let view = observe::observe(&context.cri, pod::uid(of), &mut known)
        .await
        .map_err(|e| e.to_string())?;
    let mut all = view.containers.into_iter().filter(|c| c.name == name);
    let latest = all.next();
    if previous {
        // While it waits to be started again, the newest dead one is the previous one.
        let waits =
            status(of, name).is_some_and(|s| s.state.as_ref().is_some_and(|s| s.waiting.is_some()));
        let found = match latest {
            Some(latest) if waits && latest.state == ContainerState::Exited => Some(latest),
            _ => all.next(),
        };
        return found.ok_or_else(|| {
            format!("previous terminated container {name:?} in pod {:?} not found", pod::name(of))
        });
    }
    if let Some(found) = latest {
        return Ok(found);
    }
    let waiting = status(of, name).and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
    let pod = pod::name(of);
    Err(match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => {
            format!(
                "container {name:?} in pod {pod:?} is waiting to start: trying and failing to pull image"
            )
        }
        _ => format!("container {name:?} in pod {pod:?} is waiting to start: {reason}"),
    })
}

fn status<'a>(of: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = of.status.as_ref()?;
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().flatten().find(|s| s.name == name)
}

fn stream(context: Arc<Context>, container: Observed, options: Options) -> Response {
    let (out, mut lines) = mpsc::channel(8);
    let ended = Arc::new(AtomicBool::new(container.state != ContainerState::Running));
    let watcher = options.follow.then(|| {
        let (context, id, ended) = (context.clone(), container.id.clone(), ended.clone());
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(watch_end(context, id, ended)))
    });
    let path = PathBuf::from(&container.log_path);
    tokio::task::spawn_blocking(move || {
        let result = read::send(&path, &options, &out, || ended.load(Ordering::Acquire));
        if let Err(error) = result {
            let message =
                format!("failed to try resolving symlinks in path {:?}: {error}\n", path.display());
            let _ = out.blocking_send(Ok(bytes::Bytes::from(message)));
        }
    });
    let body = futures::stream::poll_fn(move |task| {
        let _keep = &watcher;
        lines.poll_recv(task)
    });
    ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(body)).into_response()
}

/// Sets `ended` once the container has stopped.
async fn watch_end(context: Arc<Context>, id: String, ended: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(250));
    loop {
        ticks.tick().await;
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let running = match context.cri.container_status(request).await {
            Ok(answer) => answer.status.is_some_and(|s| {
                matches!(
                    s.state(),
                    cri::ContainerState::ContainerRunning | cri::ContainerState::ContainerCreated
                )
            }),
            Err(error) => !error.is_not_found(),
        };
        if !running {
            ended.store(true, Ordering::Release);
            return;
        }
    }
}
