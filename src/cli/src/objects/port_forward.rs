//! `port-forward`: ports of this machine that lead into a pod.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/portforward/portforward.go`, `k8s.io/client-go/tools/portforward`. Each
//! connection has a WebSocket of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures::future::select_all;
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::error::Error;
use super::session::{Connection, Session};
use super::{pods, put, wait};

const DATA: u8 = 0;
const ERRORS: u8 = 1;
const READ_BYTES: usize = 32 * 1024;
/// After this side has said all, the pod may be silent for so long.
const SILENCE: Duration = Duration::from_mins(1);

/// Flags of `port-forward`.
#[derive(Args, Clone, Debug)]
pub struct PortForward {
    /// The pod, or something that has pods, such as service/web.
    #[arg(value_name = "TYPE/NAME", required = true)]
    pub target: String,
    /// Ports: here and there the same, `8080:80`, or `:80` for a free one here.
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<String>,
    /// Addresses of this machine to listen at.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "localhost")]
    pub address: Vec<String>,
    /// How long to wait for a pod to be there.
    #[arg(long, value_name = "DURATION", default_value = "1m0s")]
    pub pod_running_timeout: String,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Carries the command out, until it is interrupted.
pub async fn run(session: &Session, flags: &PortForward) -> Result<(), Error> {
    let patience = wait::timeout(&flags.pod_running_timeout)?.unwrap_or(Duration::ZERO);
    let word = &flags.target;
    let target = pods::object(session, word).await?;
    let pod = pods::find(session, word, patience, false).await?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        return Err(Error::Wrong(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    }
    let mut listeners = Vec::new();
    for port in &flags.ports {
        let (local, remote) = parse(port)?;
        let remote = resolve(&target, &pod, remote)?;
        // Where the same number is asked for, it is the one that the user named.
        let local = match local {
            Some(local) => local,
            None => parse(port)?.1.parse().unwrap_or(remote),
        };
        listeners.extend(listen(&flags.address, local, remote).await?);
    }
    let path = pods::path(&pod, "/portforward");
    let serving = listeners
        .into_iter()
        .map(|(listener, remote)| Box::pin(serve(session, &path, listener, remote)));
    select_all(serving).await.0
}

/// `8080:80` as the port here, nought for a free one, and the port there, which may be a name.
fn parse(text: &str) -> Result<(Option<u16>, &str), Error> {
    let wrong = || {
        Error::Wrong(format!(
            "error parsing local port {text:?}: it must be a number up to 65535, as in 8080:80"
        ))
    };
    match text.split_once(':') {
        Some(("", remote)) => Ok((Some(0), remote)),
        Some((local, remote)) => Ok((Some(local.parse().map_err(|_| wrong())?), remote)),
        None => Ok((None, text)),
    }
}

/// The pod's port: a service's number or name stands for the one it leads to.
fn resolve(target: &Value, pod: &Value, port: &str) -> Result<u16, Error> {
    let named = |name: &str| {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let mut ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        let found = ports.find(|p| p["name"] == name).and_then(|p| p["containerPort"].as_u64());
        found.map(|port| port as u16).ok_or_else(|| {
            Error::Wrong(format!(
                "Pod '{}' does not have a named port '{name}'",
                pods::meta(pod, "name")
            ))
        })
    };
    let number = port.parse::<u16>().ok();
    if target["kind"] != "Service" {
        return number.map_or_else(|| named(port), Ok);
    }
    let mut ports = target["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.find(|p| match number {
        Some(number) => p["port"] == number,
        None => p["name"] == port,
    });
    let Some(found) = found else {
        let name = pods::meta(target, "name");
        return Err(Error::Wrong(match number {
            Some(number) => format!("Service {name} does not have a service port {number}"),
            None => format!("Service '{name}' does not have a named port '{port}'"),
        }));
    };
    if target["spec"]["clusterIP"] == "None" && number.is_some() {
        return Ok(number.unwrap_or_default());
    }
    match &found["targetPort"] {
        Value::String(name) => named(name),
        Value::Number(port) if port.as_u64() != Some(0) => Ok(port.as_u64().unwrap_or(0) as u16),
        _ => Ok(found["port"].as_u64().unwrap_or(0) as u16),
    }
}

async fn listen(
    addresses: &[String],
    local: u16,
    remote: u16,
) -> Result<Vec<(TcpListener, u16)>, Error> {
    let mut listeners: Vec<(TcpListener, u16)> = Vec::new();
    let mut local = local;
    for address in addresses {
        let candidates: Vec<IpAddr> = match address.as_str() {
            "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            other => vec![
                other.parse().map_err(|_| Error::Wrong(format!("{other} is not a valid IP")))?,
            ],
        };
        let (mut got, mut problem) = (0, None);
        for ip in candidates {
            match TcpListener::bind(SocketAddr::new(ip, local)).await {
                Ok(listener) => {
                    let at =
                        listener.local_addr().map_err(|error| Error::wrong(error.to_string()))?;
                    // All addresses have the port that the first one got.
                    local = at.port();
                    put(&format!("Forwarding from {at} -> {remote}\n"))?;
                    listeners.push((listener, remote));
                    got += 1;
                }
                Err(error) => problem = Some(error),
            }
        }
        if let Some(problem) = problem.filter(|_| got == 0) {
            return Err(Error::Wrong(format!(
                "unable to listen on port {local}: {problem}; another program may have it: use another, or :{remote} for a free one"
            )));
        }
    }
    Ok(listeners)
}

async fn serve(
    session: &Session,
    path: &str,
    listener: TcpListener,
    remote: u16,
) -> Result<(), Error> {
    let local = listener.local_addr().map_or(0, |at| at.port());
    let mut connections = futures::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(|error| Error::wrong(error.to_string()))?;
                put(&format!("Handling connection for {local}\n"))?;
                connections.push(carry(session, path, stream, remote));
            }
            Some(outcome) = connections.next(), if !connections.is_empty() => {
                if let Err(error) = outcome {
                    let text = error.text();
                    let text = text.trim_start_matches("error: ").trim_end();
                    eprintln!("error: an error occurred forwarding {local} -> {remote}: {text}");
                }
            }
        }
    }
}

async fn carry(session: &Session, path: &str, stream: TcpStream, remote: u16) -> Result<(), Error> {
    let path = format!("{path}?ports={remote}");
    let (socket, _) = session.api.connect(&path, &["v4.channel.k8s.io"]).await?;
    let (mut to, mut from) = socket.split();
    let (mut reader, mut writer) = stream.into_split();
    let up = async {
        let mut buffer = vec![DATA; READ_BYTES];
        loop {
            let count = reader.read(&mut buffer[1..]).await.unwrap_or(0);
            if count == 0 {
                break;
            }
            let message = Message::Binary(Bytes::copy_from_slice(&buffer[..=count]));
            if to.send(message).await.is_err() {
                break;
            }
        }
        // Channels have no end of their own: the pod may still answer what it got.
        tokio::time::sleep(SILENCE).await;
        Ok(())
    };
    let down = async {
        let mut begun = [false, false];
        while let Some(Ok(message)) = from.next().await {
            let Message::Binary(bytes) = message else { continue };
            let Some((&channel @ (DATA | ERRORS), rest)) = bytes.split_first() else { continue };
            let begun = &mut begun[usize::from(channel)];
            if !std::mem::replace(begun, true) {
                // The first message of each names the port.
                continue;
            }
            if channel == ERRORS {
                return Err(Error::Wrong(String::from_utf8_lossy(rest).into_owned()));
            }
            if writer.write_all(rest).await.is_err() {
                break;
            }
        }
        // The reader may have gone.
        let _ = writer.shutdown().await;
        Ok(())
    };
    tokio::select! {
        outcome = up => outcome,
        outcome = down => outcome,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_read() {
        let cases = [
            ("80", Some((None, "80"))),
            ("8080:80", Some((Some(8080), "80"))),
            (":80", Some((Some(0), "80"))),
            ("x:80", None),
            ("70000:80", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn services_lead_to_their_pods_ports() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [
            {"name": "web", "port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 9000}, {"port": 82}]}});
        let cases = [
            (&service, "80", Ok(8080)),
            (&service, "web", Ok(8080)),
            (&service, "81", Ok(9000)),
            (&service, "82", Ok(82)),
            (&service, "99", Err("error: Service s does not have a service port 99\n")),
            (&pod, "http", Ok(8080)),
            (&pod, "99", Ok(99)),
            (&pod, "none", Err("error: Pod 'p' does not have a named port 'none'\n")),
        ];
        for (target, port, want) in cases {
            let got = resolve(target, &pod, port).map_err(|error| error.text());
            assert_eq!(got.as_ref().map_err(String::as_str).copied(), want, "{port}");
        }
    }
}
