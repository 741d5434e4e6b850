//! What is said over the channels of a remote command, and how it is written into a WebSocket's messages.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;

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
    /// The channel named by the next byte is closed (WebSocket, version 5).
    pub const CLOSE: u8 = 255;
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

/// How channels are written into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The channel is a digit, and what follows is base64.
    pub base64: bool,
    /// The end is told as a `Status`; before version 4 a failure is told as text, and success not at all.
    pub status: bool,
}

impl Form {
    /// That of a subprotocol.
    pub fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), status: protocol.starts_with('v') }
    }

    /// The channel and what was sent on it; `None` for what is no message of this form.
    pub fn parse(self, message: Bytes) -> Option<(u8, Bytes)> {
        let (channel, data) = (*message.first()?, message.slice(1..));
        if !self.base64 {
            return Some((channel, data));
        }
        let data = STANDARD.decode(&data).ok()?;
        Some((channel.checked_sub(b'0')?, data.into()))
    }

    /// A message that says these bytes on a channel.
    pub fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let digit = char::from(b'0' + channel);
            return Message::text(format!("{digit}{}", STANDARD.encode(bytes)));
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(bytes);
        Message::Binary(message.freeze())
    }
}

/// What is said on a channel of a remote command.
pub fn meaning(channel: u8, data: Bytes) -> Incoming {
    match channel {
        channel::STDIN if !data.is_empty() => Incoming::Input(data),
        channel::RESIZE => serde_json::from_slice(&data).map_or(Incoming::Other, Incoming::Resize),
        channel::CLOSE if data.first() == Some(&channel::STDIN) => Incoming::InputEnd,
        _ => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_mean_what_their_channel_says() {
        let cases: [(&[u8], Option<Incoming>); 6] = [
            (b"\x00abc", Some(Incoming::Input(Bytes::from_static(b"abc")))),
            (b"\x00", Some(Incoming::Other)),
            (b"\xff\x00", Some(Incoming::InputEnd)),
            (
                b"\x04{\"Width\":80,\"Height\":24}",
                Some(Incoming::Resize(Size { width: 80, height: 24 })),
            ),
            (b"\x04nonsense", Some(Incoming::Other)),
            (b"", None),
        ];
        let form = Form::of("v5.channel.k8s.io");
        for (message, want) in cases {
            let got = form.parse(Bytes::from_static(message));
            assert_eq!(got.map(|(channel, data)| meaning(channel, data)), want);
        }
    }

    #[test]
    fn the_version_says_how_messages_are_written() {
        for (protocol, sent, status) in [
            ("v5.channel.k8s.io", Message::binary(&b"\x01abc"[..]), true),
            ("v4.base64.channel.k8s.io", Message::text("1YWJj"), true),
            ("base64.channel.k8s.io", Message::text("1YWJj"), false),
            ("channel.k8s.io", Message::binary(&b"\x01abc"[..]), false),
            ("", Message::binary(&b"\x01abc"[..]), false),
        ] {
            let form = Form::of(protocol);
            assert_eq!(form.status, status, "{protocol}");
            let message = form.message(channel::STDOUT, b"abc");
            assert_eq!(message, sent, "{protocol}");
            let parsed = form.parse(message.into_data());
            assert_eq!(parsed, Some((channel::STDOUT, Bytes::from_static(b"abc"))), "{protocol}");
        }
        let damaged = Form::of("base64.channel.k8s.io");
        assert_eq!(damaged.parse(Bytes::from_static(b"0%")), None);
        assert_eq!(damaged.parse(Bytes::from_static(b"\x00YQ==")), None);
    }
}
