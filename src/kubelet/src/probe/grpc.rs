//! `grpc.health.v1.Health/Check`, whose two messages are small enough to write by hand.
//!
//! Source: the gRPC health checking protocol, <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Outcome, http::go_error};
use crate::context::Context;

/// Longest service name that is asked for; its length is one byte of the message.
const MAX_NAME_BYTES: usize = 127;

/// Asks the server whether `service` serves.
pub async fn check(
    context: &Context,
    pod_ip: &str,
    port: i32,
    service: &str,
    timeout: Duration,
) -> Outcome {
    let (Ok(ip), Ok(port)) = (pod_ip.parse(), u16::try_from(port)) else {
        return Outcome::Unknown(format!("no address to ask: {pod_ip}:{port}"));
    };
    if service.len() > MAX_NAME_BYTES {
        return Outcome::Unknown(format!("service name {service:?} is too long"));
    }
    let address = SocketAddr::new(ip, port);
    let connect = async {
        context.dialer.connect(address).await.map_err(|error| {
            let place = address.to_string();
            let limit = timeout.as_secs();
            let reason = go_error(&error);
            format!("timeout: failed to connect service {place:?} within {limit}s: {reason}")
        })
    };
    let asked = async { ask(connect.await?, address, service).await };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(())) => Outcome::Success,
        Ok(Err(message)) => Outcome::Failure(message),
        Err(_) => Outcome::Failure(format!(
            "timeout: health rpc did not complete within {}s",
            timeout.as_secs()
        )),
    }
}

async fn ask<S>(stream: S, address: SocketAddr, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| e.to_string())?;
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    // Field 1, a string, in a length-prefixed frame.
    let mut message = Vec::new();
    if !service.is_empty() {
        message.extend([0x0a, service.len() as u8]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.append(&mut message);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(frame)))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let early = response.headers().get("grpc-status").cloned();
    let collected = response.into_body().collect().await.map_err(|e| e.to_string())?;
    let status = collected.trailers().and_then(|t| t.get("grpc-status").cloned()).or(early);
    let status = status.and_then(|s| s.to_str().ok().map(str::to_owned)).unwrap_or_default();
    if status == "12" {
        return Err(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                .into(),
        );
    }
    if status != "0" {
        return Err(format!("error: health rpc failed: rpc error: code = {status}"));
    }
    // An empty message is the enum's zero value, UNKNOWN; 1 is SERVING.
    let answer = match collected.to_bytes().get(5..) {
        Some([0x08, 1, ..]) => return Ok(()),
        Some([0x08, 2, ..]) => "NOT_SERVING",
        Some([0x08, 3, ..]) => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    Err(format!("service unhealthy (responded with {answer:?})"))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Request, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};

    use super::*;

    /// A server that answers each service as its name says: a byte, or a status.
    async fn answer(
        request: Request<Incoming>,
    ) -> Result<
        Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>,
        hyper::Error,
    > {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let asked = request.into_body().collect().await?.to_bytes();
        let name = String::from_utf8_lossy(asked.get(7..).unwrap_or_default()).into_owned();
        let (message, status) = match name.as_str() {
            "" | "up" => (Some(1), "0"),
            "down" => (Some(2), "0"),
            "strange" => (Some(3), "0"),
            "unimplemented" => (None, "12"),
            _ => (None, "5"),
        };
        let mut frames = Vec::new();
        if let Some(serving) = message {
            frames.push(Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, serving]))));
        }
        let status = HeaderMap::from_iter([(
            "grpc-status".parse().unwrap(),
            HeaderValue::from_static(status),
        )]);
        frames.push(Ok(Frame::trailers(status)));
        Ok(Response::new(StreamBody::new(futures::stream::iter(frames))))
    }

    #[tokio::test]
    async fn servers_say_whether_they_serve() {
        let address = "10.42.0.2:50051".parse().unwrap();
        for (service, want) in [
            ("", Ok(())),
            ("up", Ok(())),
            ("down", Err("service unhealthy (responded with \"NOT_SERVING\")")),
            ("strange", Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")")),
            (
                "unimplemented",
                Err(
                    "this server does not implement the grpc health protocol (grpc.health.v1.Health)",
                ),
            ),
            ("unknown", Err("error: health rpc failed: rpc error: code = 5")),
        ] {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let service_fn = hyper::service::service_fn(answer);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(theirs), service_fn);
            let server = tokio::spawn(server);
            let got = ask(ours, address, service).await;
            assert_eq!(got, want.map_err(str::to_owned), "{service}");
            server.abort();
        }
    }
}
