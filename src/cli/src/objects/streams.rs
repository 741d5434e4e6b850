//! The streams of a command in a container, over a WebSocket: exec and attach.
//!
//! Source: `k8s.io/client-go/tools/remotecommand` (`websocket.go`, `v4.go`, `v5.go`).

use std::io::IsTerminal;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use rustix::termios::{self, OptionalActions, Termios};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::error::Error;
use super::session::Session;

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const STATUS: u8 = 3;
const SIZE: u8 = 4;
/// Closes the channel that the next byte names.
const CLOSE: u8 = 255;

const CLOSING: &str = "v5.channel.k8s.io";
const PLAIN: &str = "v4.channel.k8s.io";
/// Room for one read of the input.
const READ_BYTES: usize = 32 * 1024;

/// The caller's ends of the streams.
pub struct Ends<'a> {
    /// What the command reads.
    pub input: Option<Box<dyn AsyncRead + Unpin + Send + 'a>>,
    /// What it writes.
    pub output: Box<dyn FnMut(&[u8]) -> Result<(), Error> + Send + 'a>,
    /// What it writes to standard error.
    pub errors: Box<dyn FnMut(&[u8]) -> Result<(), Error> + Send + 'a>,
    /// Whether the command has a terminal, whose size is this process' terminal's.
    pub terminal: bool,
}

/// Carries the streams of the subresource at `path` until the command ends. An exit code other than 0 is an
/// [`Error::Exit`].
pub async fn carry(session: &Session, path: &str, ends: Ends<'_>) -> Result<(), Error> {
    let (socket, protocol) = session.api.connect(path, &[CLOSING, PLAIN]).await?;
    let (mut to, mut from) = socket.split();
    let (sender, mut queue) = mpsc::channel::<Message>(16);
    let Ends { input, mut output, mut errors, terminal } = ends;
    let sizes = sender.clone();
    let send = async {
        while let Some(message) = queue.recv().await {
            if to.send(message).await.is_err() {
                break;
            }
        }
        // The other side has gone; its last words are read all the same.
        std::future::pending::<Result<(), Error>>().await
    };
    let read = async {
        if let Some(input) = input {
            feed(input, &sender, protocol == CLOSING).await;
        }
        std::future::pending::<Result<(), Error>>().await
    };
    let resize = async {
        if terminal {
            tell_sizes(&sizes).await;
        }
        std::future::pending::<Result<(), Error>>().await
    };
    let receive = async {
        while let Some(message) = from.next().await {
            let bytes = match message {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => Bytes::from(text),
                Ok(Message::Close(_)) | Err(_) => break,
                Ok(_) => continue,
            };
            match bytes.split_first() {
                Some((&OUTPUT, rest)) => output(rest)?,
                Some((&ERRORS, rest)) => errors(rest)?,
                Some((&STATUS, rest)) if !rest.is_empty() => return verdict(rest),
                _ => {}
            }
        }
        Err(Error::wrong("lost connection to the container before the command ended"))
    };
    tokio::select! {
        outcome = receive => outcome,
        outcome = send => outcome,
        outcome = read => outcome,
        outcome = resize => outcome,
    }
}

/// Sends the input, and then that it has ended.
async fn feed(mut input: impl AsyncRead + Unpin, to: &mpsc::Sender<Message>, closing: bool) {
    let mut buffer = vec![0; READ_BYTES];
    buffer[0] = INPUT;
    loop {
        match input.read(&mut buffer[1..]).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let message = Bytes::copy_from_slice(&buffer[..=count]);
                if to.send(Message::Binary(message)).await.is_err() {
                    return;
                }
            }
        }
    }
    if closing {
        // The receiver may have gone, and then it does not matter.
        let _ = to.send(Message::Binary(Bytes::from_static(&[CLOSE, INPUT]))).await;
    }
}

async fn tell_sizes(to: &mpsc::Sender<Message>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = termios::tcgetwinsize(std::io::stdout()) {
            let text = json!({"Width": size.ws_col, "Height": size.ws_row}).to_string();
            let mut bytes = vec![SIZE];
            bytes.extend(text.as_bytes());
            if to.send(Message::Binary(bytes.into())).await.is_err() {
                return;
            }
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// How the command ended.
fn verdict(bytes: &[u8]) -> Result<(), Error> {
    let Ok(status) = serde_json::from_slice::<Value>(bytes) else {
        return Err(Error::Wrong(String::from_utf8_lossy(bytes).into_owned()));
    };
    if status["status"] == "Success" {
        return Ok(());
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes
        .filter(|cause| cause["reason"] == "ExitCode")
        .find_map(|cause| cause["message"].as_str()?.parse::<i32>().ok());
    match code {
        Some(code) if status["reason"] == "NonZeroExitCode" => Err(Error::Exit {
            code: code as u8,
            text: format!("command terminated with exit code {code}"),
        }),
        _ => Err(Error::wrong(status["message"].as_str().unwrap_or("the command failed"))),
    }
}

/// This process' terminal, passed through as it is while this lives.
pub struct Raw(Option<Termios>);

impl Raw {
    /// Whether standard input is a terminal.
    pub fn possible() -> bool {
        std::io::stdin().is_terminal()
    }

    /// Takes the terminal, if there is one.
    pub fn take() -> Self {
        let before = termios::tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            // It stays as it is where it cannot be changed.
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Writes to standard error.
pub fn complain(bytes: &[u8]) -> Result<(), Error> {
    use std::io::Write;
    // Nobody is left to tell that nobody reads it.
    let _ = std::io::stderr().write_all(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_kept() {
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "42"}]}, "message": "m"});
        let cases = [
            (json!({"status": "Success"}).to_string(), None),
            (failed.to_string(), Some((42, "command terminated with exit code 42\n"))),
            (json!({"status": "Failure", "reason": "InternalError", "message": "no such container"}).to_string(), Some((1, "error: no such container\n"))),
            ("odd".to_owned(), Some((1, "error: odd\n"))),
        ];
        for (text, want) in cases {
            let told = verdict(text.as_bytes()).err().map(|error| (error.code(), error.text()));
            assert_eq!(told, want.map(|(code, text)| (code, text.to_owned())), "{text}");
        }
    }
}
