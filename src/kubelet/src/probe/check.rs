//! One probe, made once.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{grpc, http};
use crate::backoff::go_duration;
use crate::context::Context;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Success,
    /// All is well as far as it was looked at; the text goes into an event.
    Warning(String),
    /// It is not; the text goes into the event.
    Failure(String),
    /// It could not be found out.
    Unknown(String),
}

/// Which container is probed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its id in the runtime.
    pub container_id: String,
    /// The pod's address.
    pub pod_ip: String,
}

/// Makes the probe.
pub async fn probe(
    context: &Context,
    container: &Container,
    probe: &Probe,
    target: &Target,
) -> Outcome {
    let timeout = Duration::from_secs(probe.timeout_seconds.filter(|s| *s > 0).unwrap_or(1) as u64);
    if let Some(action) = &probe.exec {
        return exec(context, target, action.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(action) = &probe.http_get {
        let Some(port) = port(&action.port, container) else {
            return Outcome::Unknown(no_port(&action.port));
        };
        return match http::get(context, action, &target.pod_ip, port, "kube-probe/1.36", timeout)
            .await
        {
            Ok(answer) => match answer.status {
                200..300 => Outcome::Success,
                300..400 => Outcome::Warning(format!(
                    "Probe terminated redirects, Response body: {}",
                    answer.body
                )),
                status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
            },
            Err(error) => Outcome::Failure(error.to_string()),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let Some(port) = port(&action.port, container) else {
            return Outcome::Unknown(no_port(&action.port));
        };
        let host =
            action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| target.pod_ip.clone());
        return tcp(context, &host, port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.clone().unwrap_or_default();
        return grpc::check(context, &target.pod_ip, action.port, &service, timeout).await;
    }
    Outcome::Unknown("missing probe handler".into())
}

fn no_port(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => format!("invalid port number: {number}"),
        IntOrString::String(name) => format!("couldn't find port: {name:?}"),
    }
}

/// A port by number, or by the name the container gives it.
pub fn port(wanted: &IntOrString, container: &Container) -> Option<u16> {
    let number = match wanted {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            if let Ok(number) = name.parse() {
                number
            } else {
                let ports = container.ports.as_deref().unwrap_or_default();
                ports.iter().find(|p| p.name.as_ref() == Some(name))?.container_port
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0)
}

async fn exec(
    context: &Context,
    target: &Target,
    command: Vec<String>,
    timeout: Duration,
) -> Outcome {
    let too_long = || {
        let (command, timeout) = (command.join(" "), go_duration(timeout));
        Outcome::Failure(format!("command timed out: {command:?} timed out after {timeout}"))
    };
    let request = cri::ExecSyncRequest {
        container_id: target.container_id.clone(),
        cmd: command.clone(),
        timeout: timeout.as_secs() as i64,
    };
    // The runtime keeps the time itself; this bound is for one that does not.
    let answer =
        tokio::time::timeout(timeout + Duration::from_secs(1), context.cri.exec_sync(request))
            .await;
    match answer {
        Err(_) => too_long(),
        Ok(Err(crate::cri::Error::Refused { status, .. }))
            if status.code() == tonic::Code::DeadlineExceeded =>
        {
            too_long()
        }
        Ok(Err(error)) => Outcome::Unknown(error.rpc_text()),
        Ok(Ok(answer)) if answer.exit_code == 0 => Outcome::Success,
        Ok(Ok(answer)) => {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(10 << 10);
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
    }
}

async fn tcp(context: &Context, host: &str, port: u16, timeout: Duration) -> Outcome {
    let Ok(ip) = host.parse() else {
        return Outcome::Failure(format!("dial tcp: lookup {host}: no such host"));
    };
    let address = SocketAddr::new(ip, port);
    match tokio::time::timeout(timeout, context.dialer.connect(address)).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => {
            Outcome::Failure(format!("dial tcp {address}: connect: {}", http::go_error(&error)))
        }
        Err(_) => Outcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}
