//! Frames of a WebSocket, and what the messages in them say on the channels of a remote command. The first
//! byte chooses the subprotocol.

#![no_main]
#![allow(dead_code)]

use std::io::{self, Cursor, Read, Write};

use libfuzzer_sys::fuzz_target;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

#[path = "../../../src/runtime/src/streaming/message.rs"]
mod message;

struct Client(Cursor<Vec<u8>>);

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io", ""];

fuzz_target!(|data: &[u8]| {
    let Some((which, frames)) = data.split_first() else { return };
    let form = message::Form::of(PROTOCOLS[usize::from(which & 3)]);
    let client = Client(Cursor::new(frames.to_vec()));
    let mut socket = WebSocket::from_raw_socket(client, Role::Server, None);
    while let Ok(message) = socket.read() {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => continue,
        };
        let Some((channel, said)) = form.parse(bytes) else { continue };
        let again = form.message(channel, &said);
        // A digit stands for a channel; numbers beyond it are nobody's.
        if !form.base64 || channel < 10 {
            assert_eq!(form.parse(again.into_data()), Some((channel, said.clone())));
        }
        let _ = message::meaning(channel, said);
    }
});
