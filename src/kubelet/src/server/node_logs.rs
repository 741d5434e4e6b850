//! `/logs/`: the node's logs as files, and as answers to a query.
//!
//! Upstream serves `/var/log`, which belongs to the machine. Here there is in its place what the node itself
//! writes: `pods/` with the containers' logs, and `kubelet.log`.
//!
//! Source of behaviour: `pkg/kubelet/kubelet_server_journal.go`, `net/http.FileServer` of Go; the log query
//! section of the system logs page of the Kubernetes documentation.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::path::{Component, Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use regex::Regex;
use tokio_util::io::ReaderStream;

use super::{Shared, refuse};
use crate::context::Context;

/// The kubelet's own log among the node's.
const OWN: &str = "kubelet.log";
/// The folder of the pods' logs.
const PODS: &str = "pods";

/// Where a path among the node's logs leads.
enum Place {
    Root,
    Path(PathBuf),
}

/// Answers with a file, a folder's list, or what was queried.
pub async fn serve(State(shared): State<Shared>, uri: Uri, RawQuery(query): RawQuery) -> Response {
    let path = super::streaming::decode(uri.path().strip_prefix("/logs/").unwrap_or_default());
    let pairs = super::streaming::pairs(query.as_deref().unwrap_or_default());
    if path.is_empty() && pairs.iter().any(|(name, _)| name == "query") {
        let context = shared.context.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&context, &pairs)).await;
        return answer.unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, ""));
    }
    let Some(place) = locate(&shared.context, &path) else { return not_found() };
    let found = match place {
        Place::Root => return list(root_names(&shared.context)),
        Place::Path(found) => found,
    };
    let Ok(meta) = tokio::fs::metadata(&found).await else { return not_found() };
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match (meta.is_dir(), path.ends_with('/')) {
        (true, false) => moved(&format!("{last}/")),
        (true, true) => match names(&found) {
            Ok(names) => list(names),
            Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "Error reading directory\n"),
        },
        (false, true) => moved(&format!("../{last}")),
        (false, false) => match tokio::fs::File::open(&found).await {
            Ok(file) => {
                let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
                (kind, Body::from_stream(ReaderStream::new(file))).into_response()
            }
            Err(_) => not_found(),
        },
    }
}

/// Follows `path` without leaving the node's logs, not even by a link.
fn locate(context: &Context, path: &str) -> Option<Place> {
    let path = FilePath::new(path.trim_matches('/'));
    let mut parts = path.components();
    let Some(first) = parts.next() else { return Some(Place::Root) };
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let rest = parts.as_path();
    if first.as_os_str() == OWN {
        let own = context.own_log.clone().filter(|_| rest.as_os_str().is_empty());
        return own.map(Place::Path);
    }
    if first.as_os_str() != PODS {
        return None;
    }
    let root = context.pod_log_dir.canonicalize().ok()?;
    let found = root.join(rest).canonicalize().ok()?;
    found.starts_with(&root).then_some(Place::Path(found))
}

fn root_names(context: &Context) -> Vec<String> {
    let own = context.own_log.is_some().then(|| OWN.to_owned());
    own.into_iter().chain([format!("{PODS}/")]).collect()
}

fn names(folder: &FilePath) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let slash = if entry.path().is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(names)
}

fn list(names: Vec<String>) -> Response {
    let escaped = |text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        text.replace('"', "&#34;").replace('\'', "&#39;")
    };
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n"
            .to_owned();
    for name in names {
        let link = name.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
        page += &format!("<a href=\"{}\">{}</a>\n", escaped(&link), escaped(&name));
    }
    page += "</pre>\n";
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn moved(to: &str) -> Response {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, to)]).into_response()
}

fn not_found() -> Response {
    refuse(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Answers a query: the log of a service or of a file, its last lines, or those that match.
fn ask(context: &Context, pairs: &[(String, String)]) -> Response {
    let all =
        |name: &'static str| pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str());
    let wrong = |message: &str| refuse(StatusCode::BAD_REQUEST, format!("{message}\n"));
    let tail = match all("tailLines").next().map(str::parse::<usize>) {
        Some(Ok(lines)) if lines <= 100_000 => Some(lines),
        Some(_) => return wrong("tailLines: Invalid value: must be between 0 and 100000"),
        None => None,
    };
    let pattern = match all("pattern").next().filter(|text| !text.is_empty()).map(Regex::new) {
        Some(Ok(pattern)) => Some(pattern),
        Some(Err(error)) => return wrong(&format!("pattern: Invalid value: {error}")),
        None => None,
    };
    let mut out = String::new();
    for query in all("query") {
        let path = if query == "kubelet" { OWN } else { query.trim_start_matches('/') };
        let file = match locate(context, path) {
            Some(Place::Path(found)) if found.is_file() => found,
            _ => {
                let message = format!("unable to find a log of {query:?}\n");
                return refuse(StatusCode::NOT_FOUND, message);
            }
        };
        let mut kept: VecDeque<String> = VecDeque::new();
        let Ok(file) = std::fs::File::open(file) else { return not_found() };
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
        for line in lines.map(|line| String::from_utf8_lossy(&line).into_owned()) {
            if pattern.as_ref().is_some_and(|pattern| !pattern.is_match(&line)) {
                continue;
            }
            kept.push_back(line);
            if tail.is_some_and(|tail| kept.len() > tail) {
                kept.pop_front();
            }
        }
        for line in kept {
            out += &line;
            out.push('\n');
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], out).into_response()
}
