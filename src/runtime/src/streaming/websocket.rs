//! Channels over a WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! Each binary message begins with the number of its channel. Version 5 can close a single channel.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

/// Numbers of the channels.
pub mod channel {
    /// Standard input, from the client.
    pub const STDIN: u8 = 0;
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// How it ended, as a `Status`.
    pub const ERROR: u8 = 3;
    /// Sizes of the terminal, from the client.
    pub const RESIZE: u8 = 4;
    /// The channel named by the next byte is closed (version 5).
    pub const CLOSE: u8 = 255;
}

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `v5.channel.k8s.io`
    V5,
    /// `v4.channel.k8s.io`
    V4,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }
}

fn has_token(headers: &HeaderMap, name: http::header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The newest version that both sides speak, or what is wrong with the request.
pub fn negotiate(headers: &HeaderMap) -> Result<Protocol, String> {
    if !has_token(headers, UPGRADE, "websocket") || !headers.contains_key(SEC_WEBSOCKET_KEY) {
        let asked = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
        return Err(format!("only an upgrade to websocket is served, not to {asked}"));
    }
    [Protocol::V5, Protocol::V4]
        .into_iter()
        .find(|protocol| has_token(headers, SEC_WEBSOCKET_PROTOCOL, protocol.name()))
        .ok_or_else(|| {
            "none of the subprotocols is served: v5.channel.k8s.io, v4.channel.k8s.io".to_owned()
        })
}

/// The answer that switches protocols.
pub fn accept<B: Default>(headers: &HeaderMap, protocol: Protocol) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
    if let Ok(value) = HeaderValue::from_str(&derive_accept_key(key)) {
        answer.insert(SEC_WEBSOCKET_ACCEPT, value);
    }
    response
}

/// A size of the terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What the client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Input for the process.
    Input(Bytes),
    /// There is no more input.
    InputEnd,
    /// The terminal has another size.
    Resize(Size),
    /// Nothing that concerns the process.
    Other,
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

/// The client's end of a session.
pub struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
}

impl Socket {
    /// Over an upgraded connection.
    pub async fn new(stream: TokioIo<Upgraded>) -> Self {
        Self { stream: WebSocketStream::from_raw_socket(stream, Role::Server, None).await }
    }

    /// The next word of the client; `None` when it has gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Incoming> {
        loop {
            match self.stream.next().await? {
                Ok(Message::Binary(message)) => return Some(parse(message)),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends bytes on a channel. A client that has gone is noticed by [`Socket::next`].
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.stream.send(Message::Binary(message.into())).await.is_ok()
    }

    /// Says good-bye.
    pub async fn close(mut self) {
        // To kubectl any other code than 1000 is a broken connection, and the exit code is lost. The
        // client may have been quicker.
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.stream.close(Some(normal)).await;
    }
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
            ("v5.channel.k8s.io, v4.channel.k8s.io", Some(Protocol::V5)),
            ("v4.channel.k8s.io", Some(Protocol::V4)),
            ("channel.k8s.io", None),
        ];
        for (protocols, want) in cases {
            assert_eq!(negotiate(&headers(protocols)).ok(), want, "{protocols}");
        }
        let mut spdy = HeaderMap::new();
        spdy.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        assert!(negotiate(&spdy).unwrap_err().contains("SPDY/3.1"));
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
}
