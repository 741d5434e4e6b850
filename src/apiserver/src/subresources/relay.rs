//! Passing a request on over a connection, and its answer back; upgraded connections are spliced.

use apimachinery::Status;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::body::{Body, Response};

/// Bytes in flight of a spliced connection, each way.
const SPLICE_BYTES: usize = 64 << 10;
/// The client's credentials are for this server alone.
const NOT_FORWARDED: [&str; 8] = [
    "authorization",
    "host",
    "transfer-encoding",
    "te",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "trailer",
];

/// Sends a request for `path_and_query` over `stream` and relays the answer. When both sides switch
/// protocols, bytes flow between them until one ends. `failed` words a broken connection.
pub async fn relay<S>(
    stream: S,
    path_and_query: &str,
    host: &str,
    mut parts: http::request::Parts,
    body: Body,
    stopping: CancellationToken,
    failed: impl Fn(hyper::Error) -> Status,
) -> Result<Response, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(&failed)?;
    // The connection lives as long as the answer's body, or as the splice.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a relayed connection ended");
        }
    });
    let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let mut request = Request::builder().method(parts.method).uri(path_and_query);
    if let Some(headers) = request.headers_mut() {
        *headers = forwarded(parts.headers);
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(header::HOST, host);
        }
    }
    let request = request.body(body).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut response = sender.send_request(request).await.map_err(&failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let mut response = response.map(Body::wrap);
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        response.headers_mut().remove(header::CONNECTION);
        return Ok(response);
    }
    let Some(client) = client else {
        return Err(Status::bad_request(
            "Upgrade request required: the connection cannot switch protocols",
        ));
    };
    let other = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(client), Ok(other)) = (client.await, other.await) else { return };
        let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
        let splice = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut other,
            SPLICE_BYTES,
            SPLICE_BYTES,
        );
        tokio::select! {
            () = stopping.cancelled() => {}
            result = splice => {
                if let Err(error) = result {
                    tracing::debug!(%error, "spliced connection ended");
                }
            }
        }
    });
    Ok(response.map(|_| Body::Empty))
}

fn forwarded(mut headers: HeaderMap) -> HeaderMap {
    for name in NOT_FORWARDED {
        headers.remove(name);
    }
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "impersonate-user", "upgrade", "sec-websocket-key"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let left = forwarded(headers);
        assert_eq!(left.len(), 2);
        assert!(left.contains_key("upgrade") && left.contains_key("sec-websocket-key"));
    }
}
