//! Channels over a WebSocket: `v5.channel.k8s.io` and its predecessors.
//!
//! Each message begins with the number of its channel. Version 5 can close a single channel; before
//! version 4 a failure is told in plain words; the `base64` forms are of text, for browsers of old.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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

use super::socket::{Incoming, channel};
use super::spdy::{ReadHalf, WriteHalf};

/// The versions of remote commands that are spoken, newest first; the last is for clients which name none.
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

/// The first of the client's subprotocols that is served, or what is wrong with the request.
pub fn negotiate(headers: &HeaderMap, served: &[&'static str]) -> Result<&'static str, String> {
    if !has_token(headers, UPGRADE, "websocket") || !headers.contains_key(SEC_WEBSOCKET_KEY) {
        let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
        return Err(format!("only upgrades to websocket and SPDY/3.1 are served, not to {asked}"));
    }
    let mut spoken = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    let found = if spoken.peek().is_none() {
        served.iter().find(|name| name.is_empty())
    } else {
        spoken.find_map(|spoken| served.iter().find(|name| **name == spoken))
    };
    found
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

/// What a binary message means.
fn parse(message: Bytes) -> Incoming {
    match message.first() {
        Some(&channel::STDIN) if message.len() > 1 => Incoming::Input(message.slice(1..)),
        Some(&channel::RESIZE) => {
            serde_json::from_slice(&message[1..]).map_or(Incoming::Other, Incoming::Resize)
        }
        Some(&channel::CLOSE) if message.get(1) == Some(&channel::STDIN) => Incoming::InputEnd,
        _ => Incoming::Other,
    }
}

/// The binary form of a message of text: the channel as a digit, the rest in base64.
fn from_text(text: &str) -> Option<Bytes> {
    let channel = text.bytes().next()?.checked_sub(b'0')?;
    let mut message = vec![channel];
    STANDARD.decode_vec(text.get(1..)?, &mut message).ok()?;
    Some(message.into())
}

/// The message that carries bytes on a channel.
fn message(channel: u8, bytes: &[u8], text: bool) -> Message {
    if text {
        let mut message = char::from(b'0' + channel).to_string();
        STANDARD.encode_string(bytes, &mut message);
        return Message::Text(message.into());
    }
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// The client's end of a session.
pub struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    protocol: &'static str,
}

impl Socket {
    /// Over an upgraded connection, in one of [`CHANNELS`].
    pub async fn new(stream: TokioIo<Upgraded>, protocol: &'static str) -> Self {
        let stream = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        Self { stream, protocol }
    }

    /// Whether the client expects plain words of a failure, and nothing of a success.
    pub fn is_plain(&self) -> bool {
        !self.protocol.starts_with('v')
    }

    /// Tells the client that the session has begun.
    pub async fn greet(&mut self, channel: u8) {
        self.send(channel, b"").await;
    }

    /// The next word of the client; `None` when it has gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Binary(message)) => return Some(parse(message)),
                Ok(Message::Text(text)) => {
                    return Some(from_text(&text).map_or(Incoming::Other, parse));
                }
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends bytes on a channel. A client that has gone is noticed by [`Socket::next`].
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        let text = self.protocol.contains("base64");
        self.stream.send(message(channel, bytes, text)).await.is_ok()
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
    use super::super::socket::Size;
    use super::*;

    fn headers(protocols: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("x"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        headers
    }

    #[test]
    fn the_first_common_version_is_spoken() {
        let cases = [
            ("v5.channel.k8s.io, v4.channel.k8s.io", Some("v5.channel.k8s.io")),
            ("v4.channel.k8s.io", Some("v4.channel.k8s.io")),
            ("x,channel.k8s.io", Some("channel.k8s.io")),
            ("v9.channel.k8s.io", None),
        ];
        for (protocols, want) in cases {
            assert_eq!(negotiate(&headers(protocols), &CHANNELS).ok(), want, "{protocols}");
        }
        let mut silent = headers("");
        silent.remove(SEC_WEBSOCKET_PROTOCOL);
        assert_eq!(negotiate(&silent, &CHANNELS).ok(), Some(""));
        let mut other = HeaderMap::new();
        other.insert(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(negotiate(&other, &CHANNELS).unwrap_err().contains("h2c"));
    }

    #[test]
    fn messages_mean_what_their_channel_says() {
        let cases: [(&[u8], Incoming); 6] = [
            (b"\x00abc", Incoming::Input(Bytes::from_static(b"abc"))),
            (b"\x00", Incoming::Other),
            (b"\xff\x00", Incoming::InputEnd),
            (b"\x04{\"Width\":80,\"Height\":24}", Incoming::Resize(Size { width: 80, height: 24 })),
            (b"\x04nonsense", Incoming::Other),
            (b"", Incoming::Other),
        ];
        for (message, want) in cases {
            assert_eq!(parse(Bytes::from_static(message)), want);
        }
    }

    #[test]
    fn text_carries_what_binary_messages_do() {
        assert_eq!(message(1, b"hi", true), Message::Text("1aGk=".into()));
        assert_eq!(message(1, b"hi", false), Message::Binary(Bytes::from_static(b"\x01hi")));
        for (text, want) in [
            ("0aGk=", Some(&b"\x00hi"[..])),
            ("0", Some(b"\x00")),
            ("", None),
            ("0?", None),
            ("\u{e9}", None),
        ] {
            assert_eq!(from_text(text).as_deref(), want, "{text}");
        }
    }
}
