//! `rootlet ui`: a page that shows the cluster, and the server that it speaks with.
//!
//! The server is this command's, not the daemon's: it has the user's rights because the user started it, and
//! it ends with the command.

mod door;
mod forward;
mod peer;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use self::door::{Door, Verdict};
use self::peer::Peer;
use crate::control;
use crate::paths::Paths;

/// Serves the page until it is told to end.
pub fn ui(arguments: &cli::args::Ui) -> anyhow::Result<ExitCode> {
    let paths = Paths::of(&arguments.cluster.name)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // Better told here, in words, than by an empty page.
        drop(control::api(&paths).await?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port.unwrap_or(0)));
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another --port"))?;
        let door = Door::new(listener.local_addr()?.port(), secret()?);
        let page = door.address();
        println!("Cluster {:?} is shown at\n\n  {page}\n\nuntil you press Ctrl-C.", paths.name);
        if !arguments.no_browser {
            open(&page);
        }
        let served = serve(listener, door, paths);
        tokio::select! {
            ended = served => ended.context("the server has ended")?,
            stopped = stop() => stopped?,
        }
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Returns when the user has had enough.
async fn stop() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminated.recv() => Ok(()),
    }
}

/// Shows the page to somebody who sits at this machine; others have its address.
fn open(page: &str) {
    let screen = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !screen("DISPLAY") && !screen("WAYLAND_DISPLAY") {
        return;
    }
    let mut browser = tokio::process::Command::new("xdg-open");
    browser.arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Without one the address is to be opened by hand.
    let _ = browser.spawn();
}

/// Random bits that go into an address, a cookie or an attribute as they are.
fn secret() -> std::io::Result<String> {
    let mut bytes = [0; 24];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

struct Server {
    door: Door,
    paths: Paths,
    api: Api,
}

type Shared = State<Arc<Server>>;

async fn serve(listener: TcpListener, door: Door, paths: Paths) -> std::io::Result<()> {
    let service = router(door, paths).into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).await
}

fn router(door: Door, paths: Paths) -> Router {
    let api = Api { file: paths.kubeconfig(), last: Mutex::default() };
    let server = Arc::new(Server { door, paths, api });
    Router::new()
        .route("/", get(page))
        .route("/ui/about", get(about))
        .route("/ui/trace/{namespace}/{name}", get(trace))
        .route("/ui/why/{kind}/{namespace}/{name}", get(why))
        .fallback(pass_on)
        .layer(axum::middleware::from_fn_with_state(server.clone(), guard))
        .with_state(server)
}

/// Lets in whom the door lets in, and tells browsers what they must not do with any answer.
async fn guard(State(server): Shared, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<Peer>>();
    let verdict = if peer.is_none_or(|ConnectInfo(peer)| peer.may_come_in()) {
        server.door.judge(&parts)
    } else {
        Verdict::Refused(StatusCode::FORBIDDEN, "this belongs to another user\n")
    };
    let mut response = match verdict {
        Verdict::Open => next.run(Request::from_parts(parts, body)).await,
        Verdict::Welcome => {
            let place = [(LOCATION, "/".to_owned()), (SET_COOKIE, server.door.cookie())];
            (StatusCode::SEE_OTHER, place).into_response()
        }
        Verdict::Refused(status, why) => (status, why).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(CONTENT_SECURITY_POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    }
    response
}

async fn page(State(server): Shared) -> Response {
    let Ok(nonce) = secret() else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "no random bits are to be had\n")
            .into_response();
    };
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, cli::page::policy(&nonce, server.door.port())),
    ];
    (headers, cli::page::html(&nonce)).into_response()
}

/// What the page cannot ask the API server.
async fn about(State(server): Shared) -> Response {
    axum::Json(serde_json::json!({
        "cluster": server.paths.name,
        "context": server.paths.context(),
        "version": crate::build::VERSION,
    }))
    .into_response()
}

async fn trace(State(server): Shared, Path((namespace, name)): Path<(String, String)>) -> Response {
    match control::Client::new(&server.paths).ask_trace(&namespace, &name).await {
        Ok(trace) => axum::Json(trace).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}\n")).into_response(),
    }
}

async fn why(
    State(server): Shared,
    Path((kind, namespace, name)): Path<(String, String, String)>,
) -> Response {
    let verdict = async {
        let client = server.api.client().await?;
        let kind = cli::report::kind_of(&kind).context("it makes no pods")?;
        anyhow::Ok(cli::report::why_not(&client, kind, &namespace, &name).await?.verdict)
    };
    match verdict.await {
        Ok(verdict) => axum::Json(verdict).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}\n")).into_response(),
    }
}

async fn pass_on(State(server): Shared, request: Request) -> Response {
    match server.api.client().await {
        Ok(client) => forward::forward(&client, request).await,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
    }
}

/// The API server as the kubeconfig tells it now: a cluster that was deleted and made anew has other
/// certificates, perhaps another port.
struct Api {
    file: PathBuf,
    last: Mutex<Option<(SystemTime, kube::Client)>>,
}

impl Api {
    async fn client(&self) -> anyhow::Result<kube::Client> {
        let missing = || format!("there is no {}; is the cluster up?", self.file.display());
        let written =
            std::fs::metadata(&self.file).and_then(|file| file.modified()).with_context(missing)?;
        let mut last = self.last.lock().await;
        if let Some((when, client)) = last.as_ref()
            && *when == written
        {
            return Ok(client.clone());
        }
        let client = client::from_kubeconfig(&self.file, None).await?;
        *last = Some((written, client.clone()));
        Ok(client)
    }
}

#[cfg(test)]
mod tests;
