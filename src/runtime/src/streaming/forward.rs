//! Port forwarding: for each connection that the client accepts it opens a pair of SPDY streams, one
//! for the bytes and one for what goes wrong. Over plain WebSocket channels there is one such pair for
//! each port that the request names, once
//! (`k8s.io/kubelet/pkg/cri/streaming/portforward`: `httpstream.go`, `websocket.go`).

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use k8s_cri::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::spdy::{Flush, Frame, Headers, Reader, Writer};
use super::websocket::Socket;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::shim::protocol::{Reply, Request};

/// The protocol's name.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The WebSocket subprotocol that carries SPDY with it.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The WebSocket subprotocols served.
pub const WEB: [&str; 4] = [TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Pieces of one connection's input that wait for the pod.
const INPUT: usize = 16;
/// Room for one read.
const READ_BYTES: usize = 32 * 1024;
/// Status of a stream that is refused (SPDY draft, RST_STREAM).
const REFUSED: u32 = 3;

/// Where bytes for the client go.
#[derive(Clone)]
enum Outlet {
    Spdy { writer: Writer, stream: u32 },
    Web { messages: mpsc::Sender<(u8, Bytes)>, channel: u8 },
}

impl Outlet {
    /// False when the client has gone.
    async fn send(&self, bytes: Bytes) -> bool {
        match self {
            Self::Spdy { writer, stream } => {
                writer.send(Frame::Data { stream: *stream, bytes, fin: false }).await
            }
            Self::Web { messages, channel } => messages.send((*channel, bytes)).await.is_ok(),
        }
    }
}

/// What the client is told of a connection that failed.
fn told(port: u16, sandbox_id: &str, problem: &str) -> String {
    format!("error forwarding port {port} to pod {sandbox_id}, uid : {problem}")
}

/// Serves the ports of the request over channels: two for each, the first of which carries the bytes. Both
/// begin with the port, as two bytes, the lower first.
pub async fn run_channels(runtime: &Runtime, request: &v1::PortForwardRequest, mut socket: Socket) {
    // A channel's number is one byte, and 255 has a meaning of its own.
    let ports = request.port.iter().filter_map(|port| u16::try_from(*port).ok()).take(127);
    let (messages, mut outgoing) = mpsc::channel(INPUT);
    let (mut inputs, mut tasks) = (Vec::new(), JoinSet::new());
    for (port, data) in ports.zip((0..).step_by(2)) {
        for channel in [data, data + 1] {
            socket.send(channel, &port.to_le_bytes()).await;
        }
        let (sender, input) = mpsc::channel(INPUT);
        inputs.push(sender);
        let (runtime, messages) = (runtime.clone(), messages.clone());
        let sandbox_id = request.pod_sandbox_id.clone();
        tasks.spawn(async move {
            let outlet = Outlet::Web { messages: messages.clone(), channel: data };
            if let Err(problem) = carry(&runtime, &sandbox_id, port, input, &outlet).await {
                let told = told(port, &sandbox_id, &problem);
                let errors = Outlet::Web { messages, channel: data + 1 };
                errors.send(told.into()).await;
            }
        });
    }
    drop(messages);
    // Input that a pod does not take holds its client back, but never what is on its way to the client.
    let mut held: Option<(mpsc::Sender<Bytes>, Bytes)> = None;
    loop {
        let (sender, bytes) = held.take().unzip();
        tokio::select! {
            permit = room(sender.as_ref()), if sender.is_some() => {
                // A connection that is over takes nothing more.
                if let (Some(permit), Some(bytes)) = (permit, bytes) {
                    permit.send(bytes);
                }
            }
            message = socket.next_message(), if sender.is_none() => {
                let Some((channel, bytes)) = message else { break };
                let input = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
                held = input.map(|sender| (sender.clone(), bytes));
            }
            message = outgoing.recv() => {
                held = sender.clone().zip(bytes);
                match message {
                    Some((channel, bytes)) => {
                        socket.send(channel, &bytes).await;
                    }
                    // Every connection is over.
                    None => break socket.close().await,
                }
            }
        }
    }
}

async fn room(sender: Option<&mpsc::Sender<Bytes>>) -> Option<mpsc::Permit<'_, Bytes>> {
    sender?.reserve().await.ok()
}

/// The two streams of one connection.
#[derive(Default)]
struct Pair {
    data: Option<(u32, mpsc::Receiver<Bytes>)>,
    error: Option<u32>,
}

/// What a connection to the client holds.
struct Session<'a> {
    runtime: &'a Runtime,
    sandbox_id: &'a str,
    writer: Writer,
    /// Pairs of which one stream is still missing, by request.
    waiting: HashMap<String, Pair>,
    /// Where the bytes of a data stream go.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    running: HashMap<u32, AbortHandle>,
    tasks: JoinSet<u32>,
}

/// Serves until the client leaves.
pub async fn run(
    runtime: &Runtime,
    request: &v1::PortForwardRequest,
    (mut reader, writer, flush): (Reader, Writer, Flush),
) {
    let mut session = Session {
        runtime,
        sandbox_id: &request.pod_sandbox_id,
        writer,
        waiting: HashMap::new(),
        inputs: HashMap::new(),
        running: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        tokio::select! {
            frame = reader.next() => match frame {
                Some(frame) => session.take(frame).await,
                None => break,
            },
            Some(Ok(stream)) = session.tasks.join_next() => {
                session.inputs.remove(&stream);
                session.running.remove(&stream);
            }
        }
    }
    drop(session);
    reader.finish(flush).await;
}

impl Session<'_> {
    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, .. } => {
                let opened = self.open(stream, &headers);
                if opened.is_none() {
                    self.writer.send(Frame::Reset { stream, status: REFUSED }).await;
                }
            }
            Frame::Data { stream, bytes, fin } => {
                if let Some(input) = self.inputs.get(&stream)
                    && !bytes.is_empty()
                {
                    // A connection that is over takes nothing more.
                    let _ = input.send(bytes).await;
                }
                if fin {
                    self.inputs.remove(&stream);
                }
            }
            Frame::Reset { stream, .. } => {
                self.inputs.remove(&stream);
                if let Some(task) = self.running.remove(&stream) {
                    task.abort();
                }
            }
            _ => {}
        }
    }

    /// Takes a new stream into its pair; `None` when it cannot be.
    fn open(&mut self, stream: u32, headers: &Headers) -> Option<()> {
        let header = |name: &str| {
            headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        };
        let port: u16 = header("port")?.parse().ok().filter(|port| *port != 0)?;
        let kind = header("streamtype")?;
        // Clients older than the header open the error stream first and the data stream next.
        let request = match (header("requestid"), kind) {
            (Some(request), _) => request.to_owned(),
            (None, "error") => stream.to_string(),
            (None, _) => stream.checked_sub(2)?.to_string(),
        };
        let pair = self.waiting.entry(request.clone()).or_default();
        match kind {
            "error" if pair.error.is_none() => pair.error = Some(stream),
            "data" if pair.data.is_none() => {
                let (sender, receiver) = mpsc::channel(INPUT);
                pair.data = Some((stream, receiver));
                self.inputs.insert(stream, sender);
            }
            _ => return None,
        }
        if let Pair { data: Some(_), error: Some(_) } = pair
            && let Some(Pair { data: Some((data, input)), error: Some(error) }) =
                self.waiting.remove(&request)
        {
            let (runtime, writer) = (self.runtime.clone(), self.writer.clone());
            let sandbox_id = self.sandbox_id.to_owned();
            let task = async move {
                let outlet = Outlet::Spdy { writer: writer.clone(), stream: data };
                let outcome = carry(&runtime, &sandbox_id, port, input, &outlet).await;
                if let Err(problem) = outcome {
                    let told = told(port, &sandbox_id, &problem);
                    writer.data(error, told.as_bytes(), false).await;
                }
                writer.data(data, &[], true).await;
                writer.data(error, &[], true).await;
                data
            };
            self.running.insert(data, self.tasks.spawn(task));
        }
        Some(())
    }
}

/// Moves bytes until the pod has no more to say.
async fn carry(
    runtime: &Runtime,
    sandbox_id: &str,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    outlet: &Outlet,
) -> Result<(), String> {
    let connection = runtime.dial(sandbox_id, port).await.map_err(|error| error.to_string())?;
    let (mut read, mut write) = connection.into_split();
    let up = async {
        while let Some(bytes) = input.recv().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            if read.read_buf(&mut buffer).await? == 0 {
                return std::io::Result::Ok(());
            }
            let bytes = buffer.split().freeze();
            if !outlet.send(bytes).await {
                return Ok(());
            }
        }
    };
    let up = async {
        if up.await.is_err() {
            tracing::debug!(port, "the pod takes no more bytes");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = down => outcome.map_err(|error| error.to_string()),
        () = up => Ok(()),
    }
}

impl Runtime {
    /// A connection to a port of the pod's localhost: over IPv4, or else IPv6.
    pub(crate) async fn dial(&self, sandbox_id: &str, port: u16) -> Result<TcpStream, Error> {
        let v4 = match self.dial_one(sandbox_id, port, false).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let v6 = match self.dial_one(sandbox_id, port, true).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let (v4, v6) = (reason(&v4), reason(&v6));
        Err(Error::Failed(format!(
            "failed to connect to localhost:{port} inside the pod's network namespace, IPv4: dial tcp4 127.0.0.1:{port}: {v4} IPv6: dial tcp6 [::1]:{port}: {v6}"
        )))
    }

    async fn dial_one(&self, sandbox_id: &str, port: u16, v6: bool) -> std::io::Result<TcpStream> {
        let (reply, descriptors) =
            self.link(sandbox_id).call(&Request::Dial { port, v6 }, &[]).await?;
        let (Reply::Done, Some(socket)) = (&reply, descriptors.into_iter().next()) else {
            return Err(std::io::Error::other(format!("unexpected answer of the shim: {reply:?}")));
        };
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// An error in the words of Go's dialler, which its users search for.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        _ => format!("connect: {error}"),
    }
}
