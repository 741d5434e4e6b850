//! `grpc.health.v1.Health/Check`, whose two messages are small enough to write by hand.
//!
//! Source: the gRPC health checking protocol, <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

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
    match tokio::time::timeout(timeout, ask(context, address, service)).await {
        Ok(Ok(())) => Outcome::Success,
        Ok(Err(message)) => Outcome::Failure(message),
        Err(_) => Outcome::Failure(format!(
            "timeout: health rpc did not complete within {}s",
            timeout.as_secs()
        )),
    }
}

async fn ask(context: &Context, address: SocketAddr, service: &str) -> Result<(), String> {
    let stream = context.dialer.connect(address).await.map_err(|e| {
        format!(
            "timeout: failed to connect service {:?} within 1s: {}",
            address.to_string(),
            go_error(&e)
        )
    })?;
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
