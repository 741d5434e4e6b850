//! Passes requests on to the API server with the user's own credentials, as `kubectl proxy` does; what
//! becomes a WebSocket (exec, logs, watches) included.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{StatusCode, Uri};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kube::Client;

/// The API server takes no larger request.
const BODY_MAX: usize = 3 * 1024 * 1024;

/// Headers that concern one connection alone, as RFC 9110 names them.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Answers with what the API server says.
pub async fn forward(client: &Client, mut request: Request) -> Response {
    let upgrade = request.headers().get(UPGRADE).cloned();
    let browser = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "the request is too large\n").into_response();
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut outgoing = http::Request::new(kube::client::Body::from(body.to_vec()));
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = Uri::try_from(path).unwrap_or_default();
    *outgoing.headers_mut() = request_headers(parts.headers, upgrade);
    match client.send(outgoing).await {
        Ok(response) => answer(response, browser),
        Err(error) => {
            let mut text = format!("the API server does not answer: {error}\n");
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text.push_str(&format!("{error}\n"));
                source = error.source();
            }
            (StatusCode::BAD_GATEWAY, text).into_response()
        }
    }
}

/// What goes on: nothing of this server's own, and no credentials but the user's.
fn request_headers(mut headers: HeaderMap, upgrade: Option<HeaderValue>) -> HeaderMap {
    for name in HOP_BY_HOP.iter().chain([&HOST, &COOKIE, &AUTHORIZATION, &ORIGIN, &UPGRADE]) {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    headers
}

fn answer(mut response: Response<kube::client::Body>, browser: Option<OnUpgrade>) -> Response {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(browser) = browser else {
            return (StatusCode::BAD_GATEWAY, "the API server speaks of another protocol\n")
                .into_response();
        };
        tokio::spawn(tunnel(browser, hyper::upgrade::on(&mut response)));
        return response.map(|_| Body::empty());
    }
    let headers = response.headers_mut();
    for name in HOP_BY_HOP.iter().chain([&SET_COOKIE]) {
        headers.remove(name);
    }
    // A pod's page, seen through the API server's proxy, has this origin; it must not act as the user.
    headers
        .insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    response.map(Body::new)
}

async fn tunnel(browser: OnUpgrade, server: OnUpgrade) {
    match tokio::try_join!(browser, server) {
        Ok((browser, server)) => {
            let (mut browser, mut server) = (TokioIo::new(browser), TokioIo::new(server));
            // Either side may end it at any time.
            let _ = tokio::io::copy_bidirectional(&mut browser, &mut server).await;
        }
        Err(error) => tracing::debug!(%error, "a connection was not handed over"),
    }
}
