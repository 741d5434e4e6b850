//! Port forwarding: for each connection that the client accepts it opens a pair of SPDY streams, one
//! for the bytes and one for what goes wrong
//! (`k8s.io/kubelet/pkg/cri/streaming/portforward/httpstream.go`).

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use k8s_cri::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::spdy::{Flush, Frame, Headers, Reader, Writer};
use crate::error::Error;
use crate::runtime::Runtime;
use crate::shim::protocol::{Reply, Request};

/// The protocol's name.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The WebSocket subprotocol that carries SPDY with it.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Pieces of one connection's input that wait for the pod.
const INPUT: usize = 16;
/// Room for one read.
const READ_BYTES: usize = 32 * 1024;
/// Status of a stream that is refused (SPDY draft, RST_STREAM).
const REFUSED: u32 = 3;

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
                let outcome = carry(&runtime, &sandbox_id, port, input, data, &writer).await;
                if let Err(problem) = outcome {
                    let told = format!(
                        "error forwarding port {port} to pod {sandbox_id}, uid : {problem}"
                    );
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
    stream: u32,
    writer: &Writer,
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
            if !writer.send(Frame::Data { stream, bytes, fin: false }).await {
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
