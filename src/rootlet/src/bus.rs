//! D-Bus, as much of it as is needed: calls to systemd and to logind, and the signals of the latter. The messages are
//! written by hand: a library would be larger than all of this crate.
//!
//! Source: the D-Bus specification (message protocol, EXTERNAL authentication).

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Whom a call is for.
pub struct Callee {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

const DAEMON: Callee = Callee {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection: to a bus, or to somebody alone.
pub struct Bus {
    stream: Stream,
    serial: u32,
    /// Signals that came while a call was answered.
    signals: VecDeque<Message>,
}

impl Bus {
    /// To somebody alone who listens at `socket`, with `timeout` for each answer.
    pub fn connect(socket: &Path, timeout: Duration) -> io::Result<Self> {
        let mut bus = Self::open(socket, timeout)?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|b| format!("{b:02x}")).collect();
        bus.say(&format!("\0AUTH EXTERNAL {hex}"), "OK ")?;
        bus.begin()
    }

    /// To the bus at `socket`, which may send descriptors.
    pub fn join(socket: &Path, timeout: Duration) -> io::Result<Self> {
        let mut bus = Self::open(socket, timeout)?;
        // Who we are is known from the socket; in a user namespace we could not say it ourselves.
        bus.say("\0AUTH EXTERNAL", "DATA")?;
        bus.say("DATA", "OK ")?;
        bus.say("NEGOTIATE_UNIX_FD", "AGREE_UNIX_FD")?;
        let mut bus = bus.begin()?;
        // Without a name of our own a bus carries nothing.
        bus.call(&DAEMON, "Hello", "", &Writer::default()).map_err(io::Error::other)?;
        Ok(bus)
    }

    fn open(socket: &Path, timeout: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let stream = Stream { socket: stream, descriptors: Vec::new() };
        Ok(Self { stream, serial: 0, signals: VecDeque::new() })
    }

    fn begin(mut self) -> io::Result<Self> {
        self.stream.socket.write_all(b"BEGIN\r\n")?;
        Ok(self)
    }

    /// Asks a bus for signals.
    pub fn subscribe(&mut self, rule: &str) -> Result<(), String> {
        let mut body = Writer::default();
        body.text(rule);
        self.call(&DAEMON, "AddMatch", "s", &body).map(drop)
    }

    fn say(&mut self, line: &str, wanted: &str) -> io::Result<()> {
        write!(self.stream.socket, "{line}\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.socket.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        if answer.starts_with(wanted.as_bytes()) {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&answer).trim().to_owned()))
    }

    /// Calls, and waits for the answer.
    pub fn call(
        &mut self,
        callee: &Callee,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<Message, String> {
        self.serial += 1;
        let message = message(self.serial, callee, member, signature, &body.0);
        self.stream.socket.write_all(&message).map_err(|e| e.to_string())?;
        loop {
            let mut answer = read(&mut self.stream).map_err(|e| e.to_string())?;
            answer.descriptors = std::mem::take(&mut self.stream.descriptors);
            if answer.reply_to == Some(self.serial) {
                return match answer.error {
                    None => Ok(answer),
                    Some(name) => Err(name),
                };
            }
            self.signals.push_back(answer);
        }
    }

    /// Waits for the next signal, however long that is.
    pub fn signal(&mut self) -> io::Result<Message> {
        if let Some(signal) = self.signals.pop_front() {
            return Ok(signal);
        }
        self.stream.socket.set_read_timeout(None)?;
        read(&mut self.stream)
    }
}

/// A socket on which descriptors may come beside the bytes.
struct Stream {
    socket: UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(got.bytes)
    }
}

fn message(serial: u32, callee: &Callee, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let Callee { destination, path, interface } = callee;
    let mut out = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    out.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.u32(serial);
    out.array(8, |fields| {
        for (code, kind, value) in
            [(1, "o", *path), (2, "s", *interface), (3, "s", member), (6, "s", *destination)]
        {
            fields.field(code, kind, |w| w.text(value));
        }
        if !signature.is_empty() {
            fields.field(8, "g", |w| w.signature(signature));
        }
    });
    out.align(8);
    out.0.extend_from_slice(body);
    out.0
}

/// Values in D-Bus' marshalling, little-endian.
#[derive(Default)]
pub struct Writer(Vec<u8>);

#[cfg(test)]
impl Writer {
    /// One that goes on after `bytes`.
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    pub fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend(text.bytes().chain([0]));
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.bytes().chain([0]));
    }

    /// A field of a message's head.
    pub fn field(&mut self, code: u8, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        value(self);
    }

    /// An array whose items are aligned to `to`: its length does not count what aligns the first.
    pub fn array(&mut self, to: usize, items: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.align(to);
        let first = self.0.len();
        items(self);
        let bytes = u32::try_from(self.0.len() - first).unwrap_or(u32::MAX);
        self.0[length..length + 4].copy_from_slice(&bytes.to_le_bytes());
    }

    /// A structure of a name and a variant.
    pub fn property(&mut self, name: &str, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.text(name);
        self.signature(signature);
        value(self);
    }
}

/// What of a message matters.
#[derive(Debug, Default)]
pub struct Message {
    reply_to: Option<u32>,
    error: Option<String>,
    /// The name of a signal.
    pub member: String,
    pub body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The number at `at` of the body.
    pub fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.body.get(at..at + 4)?.try_into().ok()?))
    }

    /// The same of eight bytes.
    pub fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.body.get(at..at + 8)?.try_into().ok()?))
    }
}

fn read(stream: &mut impl Read) -> io::Result<Message> {
    const LARGEST: usize = 1 << 20;
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    let number = |at: usize| {
        u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
    };
    let (body, fields) = (number(4), number(12));
    if head[0] != b'l' || body > LARGEST || fields > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut rest = vec![0; fields.next_multiple_of(8) + body];
    stream.read_exact(&mut rest)?;
    let (fields, body) = rest.split_at(fields.next_multiple_of(8));
    let mut message = Message { body: body.to_vec(), ..Message::default() };
    let mut at = 0;
    while let Some(code) = fields.get(at).copied().filter(|code| *code != 0) {
        // Code, length of the signature, one letter, NUL; then the value.
        let kind = fields.get(at + 2).copied().unwrap_or_default();
        let value = (at + 4).next_multiple_of(if kind == b'g' { 1 } else { 4 });
        let word = fields.get(value..value + 4).and_then(|w| w.try_into().ok());
        let word = u32::from_le_bytes(word.unwrap_or_default());
        let length = match kind {
            b's' | b'o' => 4 + word as usize + 1,
            b'g' => fields.get(value).map_or(0, |l| usize::from(*l)) + 2,
            _ => 4,
        };
        let text = || {
            let bytes = fields.get(value + 4..value + length - 1).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        match code {
            3 => message.member = text(),
            4 => message.error = Some(text()),
            5 => message.reply_to = Some(word),
            _ => {}
        }
        at = (value + length).next_multiple_of(8);
    }
    if let (Some(error), Some(text)) = (&mut message.error, body.get(4..)) {
        let text = text.split(|b| *b == 0).next().unwrap_or_default();
        *error = format!("{error}: {}", String::from_utf8_lossy(text));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned() {
        let mut writer = Writer::default();
        writer.text("ab");
        writer.array(8, |w| w.property("n", "u", |w| w.u32(7)));
        let expected: Vec<u8> = [
            &[2, 0, 0, 0, b'a', b'b', 0, 0][..],
            &[16, 0, 0, 0, 0, 0, 0, 0][..4],
            &[0, 0, 0, 0][..],
            &[1, 0, 0, 0, b'n', 0, 1, b'u', 0, 0, 0, 0, 7, 0, 0, 0][..],
        ]
        .concat();
        assert_eq!(writer.0, expected);
    }

    #[test]
    fn a_refusal_is_read() {
        let mut out = Writer(vec![b'l', 3, 1, 1]);
        let mut body = Writer::default();
        body.text("Unit exists");
        out.u32(body.0.len() as u32);
        out.u32(9);
        out.array(8, |fields| {
            fields.0.push(5);
            fields.signature("u");
            fields.u32(3);
            fields.align(8);
            fields.0.push(4);
            fields.signature("s");
            fields.text("a.Error");
            fields.align(8);
            fields.0.push(8);
            fields.signature("g");
            fields.signature("s");
        });
        out.align(8);
        out.0.extend(body.0);
        let message = read(&mut out.0.as_slice()).unwrap();
        assert_eq!(message.reply_to, Some(3));
        assert_eq!(message.error.as_deref(), Some("a.Error: Unit exists"));
    }
}
