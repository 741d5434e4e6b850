//! exec, attach and portForward: the runtime gives a URL of its streaming server; the upgraded
//! connection of the client is spliced to it byte by byte, whatever protocol the two speak.
//!
//! Source of behaviour: `pkg/kubelet/server/server.go` (`getExec`, `proxyStream`).

use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::{Shared, refuse};
use crate::observe::{self, State as ContainerState};
use crate::pod;

/// Buffers of a spliced connection.
const BUFFER_BYTES: usize = 64 << 10;

/// Parts of the path of exec and attach; the uid is there only in upstream's longer form.
#[derive(serde::Deserialize)]
pub struct Target {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: Option<String>,
}

/// `/exec`.
pub async fn exec(
    State(shared): State<Shared>,
    Path(target): Path<Target>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let query = Query(pairs(query.as_deref().unwrap_or_default()));
    let container_id = match container(&shared, &target).await {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    let cmd = query.all("command");
    if cmd.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "you must specify at least one command\n");
    }
    let asked = cri::ExecRequest {
        container_id,
        cmd,
        tty: query.flag(&["tty"]),
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        stderr: query.flag(&["error", "stderr"]),
        ..Default::default()
    };
    // A terminal has one stream only.
    let asked = cri::ExecRequest { stderr: asked.stderr && !asked.tty, ..asked };
    if !asked.stdin && !asked.stdout && !asked.stderr {
        return refuse(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr\n",
        );
    }
    match shared.context.cri.exec(asked).await {
        Ok(answer) => splice(&answer.url, request).await,
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.rpc_text()),
    }
}

/// `/attach`.
pub async fn attach(
    State(shared): State<Shared>,
    Path(target): Path<Target>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let query = Query(pairs(query.as_deref().unwrap_or_default()));
    let container_id = match container(&shared, &target).await {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    // What the container was made with decides whether it has a terminal.
    let spec =
        find(&shared, &target).and_then(|p| pod::find_container(&p, target.container.as_deref()?));
    let tty = spec.is_some_and(|(_, c)| c.tty.unwrap_or(false));
    let asked = cri::AttachRequest {
        container_id,
        tty,
        stdin: query.flag(&["input", "stdin"]),
        stdout: query.flag(&["output", "stdout"]),
        stderr: query.flag(&["error", "stderr"]) && !tty,
        ..Default::default()
    };
    match shared.context.cri.attach(asked).await {
        Ok(answer) => splice(&answer.url, request).await,
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.rpc_text()),
    }
}

/// `/portForward`.
pub async fn port_forward(
    State(shared): State<Shared>,
    Path(target): Path<Target>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    let query = Query(pairs(query.as_deref().unwrap_or_default()));
    let Some(of) = find(&shared, &target) else { return no_pod(&target) };
    let mut known = std::collections::HashMap::new();
    let view = match observe::observe(&shared.context.cri, pod::uid(&of), &mut known).await {
        Ok(view) => view,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.rpc_text()),
    };
    let Some(sandbox) = view.ready_sandbox() else {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("pod {} has no running sandbox\n", target.pod),
        );
    };
    let port = query
        .all("port")
        .iter()
        .flat_map(|p| p.split(','))
        .filter_map(|p| p.parse().ok())
        .collect();
    let asked = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port };
    match shared.context.cri.port_forward(asked).await {
        Ok(answer) => splice(&answer.url, request).await,
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.rpc_text()),
    }
}

fn find(shared: &Shared, target: &Target) -> Option<std::sync::Arc<Pod>> {
    let found = shared.workers.find(&target.namespace, &target.pod)?;
    (target.uid.as_deref().is_none_or(|uid| uid == pod::uid(&found))).then_some(found)
}

fn no_pod(target: &Target) -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        format!("pod does not exist: {}/{}\n", target.namespace, target.pod),
    )
}

async fn container(shared: &Shared, target: &Target) -> Result<String, Response> {
    let of = find(shared, target).ok_or_else(|| no_pod(target))?;
    let mut known = std::collections::HashMap::new();
    let view = observe::observe(&shared.context.cri, pod::uid(&of), &mut known)
        .await
        .map_err(|e| refuse(StatusCode::INTERNAL_SERVER_ERROR, e.rpc_text()))?;
    let name = target.container.as_deref().unwrap_or_default();
    match view.latest(name) {
        Some(found) if found.state == ContainerState::Running => Ok(found.id.clone()),
        _ => Err(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("container not found ({name:?})"),
        )),
    }
}

/// The pairs of a query string, decoded.
pub fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (name, value) = p.split_once('=').unwrap_or((p, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// The text with its escapes resolved.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match (bytes[at], escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', None) => out.push(b' '),
            (byte, None) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

struct Query(Vec<(String, String)>);

impl Query {
    fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.clone()).collect()
    }

    fn flag(&self, names: &[&str]) -> bool {
        self.0
            .iter()
            .any(|(n, v)| names.contains(&n.as_str()) && matches!(v.as_str(), "1" | "true"))
    }
}

/// Sends the request on to the streaming server and, if that switches protocols, joins the two
/// connections.
async fn splice(url: &str, mut request: Request) -> Response {
    let failed = |what: String| refuse(StatusCode::BAD_GATEWAY, format!("{what}\n"));
    let Ok(uri) = url.parse::<Uri>() else { return failed(format!("bad streaming URL {url:?}")) };
    let Some(authority) = uri.authority().cloned() else {
        return failed(format!("streaming URL {url:?} has no address"));
    };
    let stream = match TcpStream::connect(authority.as_str()).await {
        Ok(stream) => stream,
        Err(error) => {
            return failed(format!("connect to the streaming server at {authority}: {error}"));
        }
    };
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
            Ok(pair) => pair,
            Err(error) => return failed(format!("speak to the streaming server: {error}")),
        };
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let client_side = hyper::upgrade::on(&mut request);
    let mut onward = http::Request::builder()
        .method(request.method().clone())
        .uri(uri.path_and_query().map_or("/", |p| p.as_str()));
    for (name, value) in request.headers() {
        if name != header::HOST && name != header::AUTHORIZATION {
            onward = onward.header(name, value);
        }
    }
    let onward = match onward.header(header::HOST, authority.as_str()).body(Body::empty()) {
        Ok(onward) => onward,
        Err(error) => return failed(error.to_string()),
    };
    let mut answer = match sender.send_request(onward).await {
        Ok(answer) => answer,
        Err(error) => return failed(format!("ask the streaming server: {error}")),
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return answer.map(Body::new);
    }
    let server_side = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (Ok(client), Ok(server)) = tokio::join!(client_side, server_side) else { return };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let _ = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut server,
            BUFFER_BYTES,
            BUFFER_BYTES,
        )
        .await;
    });
    answer.map(|_| Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let got = pairs("command=sh&command=-c&command=echo%20a%2Bb+c&input=1&x");
        let query = Query(got);
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(query.flag(&["input", "stdin"]) && !query.flag(&["tty"]));
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
