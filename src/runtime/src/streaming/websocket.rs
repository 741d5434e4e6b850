//! Channels over a WebSocket.
//!
//! Each message begins with the number of its channel. Version 5 can close a single channel; versions
//! before 4, a client that names none among them, learn of a failure as plain text; the base64 forms are for
//! clients that can only send text. The type of a message, binary or text, says nothing.
//!
//! Source: `k8s.io/apimachinery/pkg/util/httpstream/wsstream` (`conn.go`) and
//! `k8s.io/kubelet/pkg/cri/streaming/remotecommand` (`websocket.go`).

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::message::{Form, Incoming, channel, meaning};
use super::spdy::{ReadHalf, WriteHalf};

/// The versions of remote commands that are spoken; the last is that of a client that names none.
pub const CHANNELS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// Whether a list of words in a header has this one.
pub fn has_token(headers: &HeaderMap, name: http::header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The first of the client's subprotocols that is served, or what is wrong with the request. A client
/// may name none: that is the subprotocol `""`.
pub fn negotiate(headers: &HeaderMap, served: &[&'static str]) -> Result<&'static str, String> {
    if !has_token(headers, UPGRADE, "websocket") || !headers.contains_key(SEC_WEBSOCKET_KEY) {
        let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
        return Err(format!("only upgrades to websocket and SPDY/3.1 are served, not to {asked}"));
    }
    let mut asked = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    let none = asked.peek().is_none().then_some("");
    asked
        .chain(none)
        .find_map(|asked| served.iter().find(|name| **name == asked))
        .copied()
        .ok_or_else(|| format!("none of the subprotocols is served: {}", served.join(", ")))
}

/// The answer that switches protocols.
pub fn accept<B: Default>(headers: &HeaderMap, protocol: &'static str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if !protocol.is_empty() {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    if let Ok(value) = HeaderValue::from_str(&derive_accept_key(key)) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

/// The client's end of a session.
pub struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    form: Form,
}

impl Socket {
    /// Over an upgraded connection that speaks one of [`CHANNELS`].
    pub async fn new(stream: TokioIo<Upgraded>, protocol: &str) -> Self {
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        Self { stream, form: Form::of(protocol) }
    }

    /// The next message of the client, as its channel and bytes; `None` when it has gone. Safe to cancel.
    pub async fn next_message(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let message = match self.stream.next().await? {
                Ok(Message::Binary(message)) => message,
                Ok(Message::Text(message)) => message.into(),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => continue,
            };
            if let Some(parsed) = self.form.parse(message) {
                return Some(parsed);
            }
        }
    }

    /// The next word of the client; `None` when it has gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.next_message().await.map(|(channel, data)| meaning(channel, data))
    }

    /// Sends bytes on a channel. A client that has gone is noticed by [`Socket::next`].
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.stream.send(self.form.message(channel, bytes)).await.is_ok()
    }

    /// Tells how it ended: a `Status` where the version has it.
    pub async fn end(&mut self, status: &serde_json::Value) {
        if self.form.status {
            self.send(channel::ERROR, status.to_string().as_bytes()).await;
        } else if status["status"] != "Success" {
            let text = status["message"].as_str().unwrap_or_default();
            self.send(channel::ERROR, text.as_bytes()).await;
        }
    }

    /// Says good-bye.
    pub async fn close(mut self) {
        // To kubectl any other code than 1000 is a broken connection, and the exit code is lost. The
        // client may have been quicker.
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.stream.close(Some(normal)).await;
    }
}

/// A byte stream in the binary messages of a WebSocket.
pub async fn tunnel(stream: TokioIo<Upgraded>) -> (ReadHalf, WriteHalf) {
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (sink, stream) = socket.split();
    let bytes = stream
        .take_while(|message| std::future::ready(!matches!(message, Ok(Message::Close(_)))))
        .filter_map(|message| {
            std::future::ready(match message {
                Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
                Ok(_) => None,
                Err(error) => Some(Err(std::io::Error::other(error))),
            })
        });
    let sink = sink
        .sink_map_err(std::io::Error::other)
        .with(|bytes: Bytes| std::future::ready(std::io::Result::Ok(Message::Binary(bytes))));
    let write = SinkWriter::new(CopyToBytes::new(sink));
    (Box::new(StreamReader::new(bytes)), Box::new(write))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(protocols: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("x"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        headers
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let cases = [
            ("v5.channel.k8s.io, v4.channel.k8s.io", Some("v5.channel.k8s.io")),
            ("v4.channel.k8s.io", Some("v4.channel.k8s.io")),
            ("base64.channel.k8s.io, channel.k8s.io", Some("base64.channel.k8s.io")),
            ("v9.channel.k8s.io, channel.k8s.io", Some("channel.k8s.io")),
            ("v9.channel.k8s.io", None),
        ];
        for (protocols, want) in cases {
            assert_eq!(negotiate(&headers(protocols), &CHANNELS).ok(), want, "{protocols}");
        }
        let mut none = headers("");
        none.remove(SEC_WEBSOCKET_PROTOCOL);
        assert_eq!(negotiate(&none, &CHANNELS), Ok(""));
        let mut other = HeaderMap::new();
        other.insert(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(negotiate(&other, &CHANNELS).unwrap_err().contains("h2c"));
    }
}
