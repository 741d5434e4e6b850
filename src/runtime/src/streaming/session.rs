//! One session: bytes between the client's channels and the process' descriptors.

use std::os::fd::{AsFd, OwnedFd};

use bytes::{Bytes, BytesMut};
use k8s_cri::v1::{AttachRequest, ExecRequest};
use rustix::fs::OFlags;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::socket::{Incoming, Size, Socket, channel};
use crate::error::Error;
use crate::exec::{output, read_now};
use crate::runtime::Runtime;
use crate::shim::protocol::{Reply, Request};

/// Most bytes of one message.
const CHUNK_BYTES: usize = 32 * 1024;
/// Pieces of input that wait for the process.
const INPUT: usize = 16;

/// The daemon's ends of a process' streams.
#[derive(Default)]
struct Ends {
    input: Option<pipe::Sender>,
    output: Option<pipe::Receiver>,
    error: Option<pipe::Receiver>,
    /// For its size; input and output are others of its descriptors.
    terminal: Option<OwnedFd>,
}

fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    Error::io(step)
}

impl Ends {
    /// A terminal's master is input and output in one.
    fn terminal(master: OwnedFd, input: bool) -> Result<Self, Error> {
        let flags =
            rustix::fs::fcntl_getfl(&master).map_err(|e| failed("use the terminal")(e.into()))?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)
            .map_err(|e| failed("use the terminal")(e.into()))?;
        let copy = || master.try_clone().map_err(failed("use the terminal"));
        let sender = if input {
            let sender = pipe::Sender::from_owned_fd_unchecked(copy()?);
            Some(sender.map_err(failed("use the terminal"))?)
        } else {
            None
        };
        let receiver = pipe::Receiver::from_owned_fd_unchecked(copy()?);
        Ok(Self {
            input: sender,
            output: Some(receiver.map_err(failed("use the terminal"))?),
            error: None,
            terminal: Some(master),
        })
    }
}

/// A pipe whose writing end is ours.
fn input() -> Result<(pipe::Sender, OwnedFd), Error> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed("make a pipe")(error.into()))?;
    let write = pipe::Sender::from_owned_fd(write).map_err(failed("make a pipe"))?;
    Ok((write, read))
}

fn null() -> Result<OwnedFd, Error> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    Ok(file.map_err(failed("open /dev/null"))?.into())
}

/// What is to be run.
pub enum Command {
    /// A further process.
    Exec(ExecRequest),
    /// The container's own streams.
    Attach(AttachRequest),
}

impl Command {
    /// The channels that the client has to open first.
    fn channels(&self) -> Vec<u8> {
        let (stdin, stdout, stderr) = match self {
            Self::Exec(request) => (request.stdin, request.stdout, request.stderr && !request.tty),
            Self::Attach(request) => {
                (request.stdin, request.stdout, request.stderr && !request.tty)
            }
        };
        let asked = [(stdin, channel::STDIN), (stdout, channel::STDOUT), (stderr, channel::STDERR)];
        let asked = asked.into_iter().filter(|(asked, _)| *asked).map(|(_, channel)| channel);
        asked.chain([channel::ERROR]).collect()
    }
}

/// Runs a session to its end and tells the client how that was.
pub async fn run(runtime: &Runtime, command: Command, mut socket: Socket) {
    if !socket.opened(&command.channels()).await {
        tracing::debug!("the client did not open its streams");
        return;
    }
    let outcome = match command {
        Command::Exec(request) => exec(runtime, &request, &mut socket).await,
        Command::Attach(request) => attach(runtime, &request, &mut socket).await,
    };
    let Some(status) = outcome.map_or_else(|error| Some(failure(error)), |code| code.map(ended))
    else {
        // The client has gone; nobody is there to be told.
        return;
    };
    socket.end(&status).await;
    socket.close().await;
}

/// The `Status` of a process that has ended (`remotecommand.NonZeroExitCodeReason`).
fn ended(code: i32) -> serde_json::Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(error: Error) -> serde_json::Value {
    // The message that CRI callers get: the error with its causes.
    let status = tonic::Status::from(error);
    let message = status.message();
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"),
        "details": {"causes": [{"message": message}]},
    })
}

async fn exec(
    runtime: &Runtime,
    request: &ExecRequest,
    socket: &mut Socket,
) -> Result<Option<i32>, Error> {
    let container = &request.container_id;
    let args = request.cmd.clone();
    if request.tty {
        let mut process = runtime.spawn_exec(container, args, true, &[]).await?;
        let master = process.terminal.take();
        let master = master.ok_or_else(|| Error::Failed("the shim gave no terminal".into()))?;
        let ends = Ends::terminal(master, request.stdin)?;
        return carry(socket, ends, false, process.wait()).await;
    }
    let mut ends = Ends::default();
    let mut stdio = Vec::with_capacity(3);
    if request.stdin {
        let (ours, theirs) = input()?;
        ends.input = Some(ours);
        stdio.push(theirs);
    } else {
        stdio.push(null()?);
    }
    for (asked, end) in [(request.stdout, &mut ends.output), (request.stderr, &mut ends.error)] {
        if asked {
            let (ours, theirs) = output()?;
            *end = Some(ours);
            stdio.push(theirs);
        } else {
            stdio.push(null()?);
        }
    }
    let process = runtime.spawn_exec(container, args, false, &stdio).await?;
    drop(stdio);
    carry(socket, ends, false, process.wait()).await
}

async fn attach(
    runtime: &Runtime,
    request: &AttachRequest,
    socket: &mut Socket,
) -> Result<Option<i32>, Error> {
    let record = runtime.state().container(&request.container_id)?.record();
    let shim = |source| Error::Shim { id: record.sandbox_id.clone(), source };
    let session = runtime.link(&record.sandbox_id).connect().map_err(shim)?;
    let mut ends = Ends::default();
    let (out, out_write) = output()?;
    let (err, err_write) = output()?;
    ends.output = request.stdout.then_some(out);
    ends.error = (request.stderr && !request.tty).then_some(err);
    let descriptors = [out_write.as_fd(), err_write.as_fd()];
    session
        .send(&Request::Attach { id: record.id.clone(), stdin: request.stdin }, &descriptors)
        .await
        .map_err(shim)?;
    drop((out_write, err_write));
    let (_, received) = session.expect().await.map_err(shim)?;
    if let Some(descriptor) = received.into_iter().next() {
        if request.tty {
            let Ends { input, terminal, .. } = Ends::terminal(descriptor, request.stdin)?;
            ends.input = input;
            ends.terminal = terminal;
        } else if request.stdin {
            let sender = pipe::Sender::from_owned_fd(descriptor);
            ends.input = Some(sender.map_err(failed("use the container's input"))?);
        }
    }
    let end = async {
        match session.expect().await {
            Ok((Reply::Exited { code }, _)) => Ok(code),
            Ok((other, _)) => {
                Err(Error::Failed(format!("unexpected answer of the shim: {other:?}")))
            }
            Err(error) => Err(shim(error)),
        }
    };
    // With an input that outlives the client's, the session is over when the client's is, as with containerd.
    let leaves = ends.input.is_some() && (request.tty || !record.config.stdin_once);
    // How the container ends is its own matter: attaching to it has succeeded.
    Ok(carry(socket, ends, leaves, end).await?.map(|_| 0))
}

/// Reads from an end that may not be there; an end that has failed or is over is dropped.
async fn read(end: &mut Option<pipe::Receiver>, buffer: &mut BytesMut) -> bool {
    let Some(pipe) = end else { return false };
    buffer.clear();
    buffer.reserve(CHUNK_BYTES);
    match pipe.read_buf(buffer).await {
        Ok(count) if count > 0 => true,
        // A terminal whose other side is closed answers with EIO.
        _ => {
            *end = None;
            false
        }
    }
}

/// Moves bytes until the process ends, or with `leaves` until the client's input does; `None` when the client
/// leaves first.
async fn carry(
    socket: &mut Socket,
    mut ends: Ends,
    leaves: bool,
    end: impl Future<Output = Result<i32, Error>>,
) -> Result<Option<i32>, Error> {
    // The client waits for a first message before it takes the session for begun.
    let first = match (&ends.output, &ends.error) {
        (Some(_), _) => channel::STDOUT,
        (None, Some(_)) => channel::STDERR,
        (None, None) => channel::ERROR,
    };
    socket.send(first, &[]).await;
    let (mut sender, receiver) = match ends.input.take() {
        Some(pipe) => {
            let (sender, receiver) = mpsc::channel(INPUT);
            (Some(sender), Some((pipe, receiver)))
        }
        None => (None, None),
    };
    let mut feeding = tokio::spawn(feed(receiver));
    let mut end = std::pin::pin!(end);
    let (mut out, mut err) = (BytesMut::new(), BytesMut::new());
    let code = loop {
        // Input that the process does not take holds the client back, and nothing else.
        let full =
            sender.as_ref().filter(|sender| sender.capacity() == 0 && !sender.is_closed()).cloned();
        tokio::select! {
            code = &mut end => break code,
            // All that the client had to say has reached the process.
            _ = &mut feeding, if leaves && sender.is_none() => break Ok(0),
            some = read(&mut ends.output, &mut out), if ends.output.is_some() => {
                if some { socket.send(channel::STDOUT, &out).await; }
            }
            some = read(&mut ends.error, &mut err), if ends.error.is_some() => {
                if some { socket.send(channel::STDERR, &err).await; }
            }
            () = room(full.as_ref()), if full.is_some() => {}
            word = socket.next(), if full.is_none() => match word {
                None => {
                    feeding.abort();
                    return Ok(None);
                }
                Some(Incoming::Input(bytes)) => {
                    if let Some(sender) = &sender {
                        // A process that has closed its input ignores what still comes.
                        let _ = sender.try_send(bytes);
                    }
                }
                Some(Incoming::InputEnd) => sender = None,
                Some(Incoming::Resize(size)) => resize(ends.terminal.as_ref(), size),
                Some(Incoming::Other) => {}
            },
        }
    };
    feeding.abort();
    // What the process wrote before its end is in the pipes by now; others may hold them open.
    for (end, number) in [(&mut ends.output, channel::STDOUT), (&mut ends.error, channel::STDERR)] {
        while let Some(pipe) = end {
            if read_now(pipe, &mut out, CHUNK_BYTES) {
                socket.send(number, &out).await;
            } else {
                *end = None;
            }
        }
    }
    code.map(Some)
}

/// Waits until the process has taken a piece of its input, or takes no more.
async fn room(full: Option<&mpsc::Sender<Bytes>>) {
    if let Some(sender) = full {
        let _ = sender.reserve().await;
    }
}

/// Writes input to the process as it takes it, and closes it after the last.
async fn feed(input: Option<(pipe::Sender, mpsc::Receiver<Bytes>)>) {
    let Some((mut pipe, mut pieces)) = input else { return };
    while let Some(piece) = pieces.recv().await {
        if pipe.write_all(&piece).await.is_err() {
            return;
        }
    }
}

fn resize(terminal: Option<&OwnedFd>, size: Size) {
    let Some(terminal) = terminal else { return };
    let size = rustix::termios::Winsize {
        ws_row: size.height,
        ws_col: size.width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if let Err(error) = rustix::termios::tcsetwinsize(terminal, size) {
        tracing::debug!(%error, "the terminal's size cannot be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_kubectl_reads_it() {
        assert_eq!(ended(0)["status"], "Success");
        let status = ended(3);
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
