//! SPDY/3.1 connections from the server's side: what kubectl before 1.31 speaks for exec, attach and
//! port-forward, and what every kubectl speaks inside of a WebSocket for port-forward.

mod channels;
mod frame;
mod headers;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use channels::Channels;
pub use frame::{Error, Frame};
pub use headers::Headers;

use super::websocket::has_token;

/// The word in `Upgrade`.
pub const NAME: &str = "SPDY/3.1";
/// Where the client names the protocols it speaks on the streams.
const PROTOCOLS: &str = "x-stream-protocol-version";
/// Where a refusal names what would have been accepted.
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";
/// Frames that wait to be written.
const QUEUE: usize = 32;
/// Room for one read.
const READ_BYTES: usize = 32 * 1024;
/// How long a client may take to leave after the good-bye.
const LEAVE: Duration = Duration::from_secs(2);

/// The reading half of a connection.
pub type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half of a connection.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Whether a client asks to switch to SPDY.
pub fn asked(headers: &HeaderMap) -> bool {
    has_token(headers, UPGRADE, NAME)
}

/// The first protocol the client names that is served.
pub fn negotiate(headers: &HeaderMap, served: &[&'static str]) -> Option<&'static str> {
    let named = headers.get_all(PROTOCOLS).iter().filter_map(|value| value.to_str().ok());
    let mut named = named.flat_map(|value| value.split(',')).map(str::trim);
    named.find_map(|name| served.iter().find(|served| **served == name).copied())
}

/// The answer that switches protocols.
pub fn accept<B: Default>(protocol: &'static str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(NAME));
    headers.insert(PROTOCOLS, HeaderValue::from_static(protocol));
    response
}

/// Tells a client what would have been accepted.
pub fn name_served<B>(response: &mut Response<B>, served: &[&'static str]) {
    for name in served {
        response.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
    }
}

/// What a peer sends, with the answers that the protocol itself asks for taken care of.
pub struct Reader {
    io: ReadHalf,
    buffer: BytesMut,
    decoder: frame::Decoder,
    owed: VecDeque<Frame>,
    /// A frame that is told once what is owed for it is sent.
    read: Option<Frame>,
    writer: Writer,
}

/// Where frames are sent. Clones send over the same connection.
#[derive(Clone)]
pub struct Writer(mpsc::Sender<Frame>);

/// The task that writes. It ends when all writers are gone, or the peer is.
pub struct Flush(JoinHandle<()>);

/// A connection over two halves.
pub fn start(read: ReadHalf, mut write: WriteHalf) -> Result<(Reader, Writer, Flush), Error> {
    let (sender, mut frames) = mpsc::channel::<Frame>(QUEUE);
    let mut encoder = frame::Encoder::new()?;
    let task = tokio::spawn(async move {
        let mut out = Vec::new();
        while let Some(frame) = frames.recv().await {
            out.clear();
            if encoder.encode(&frame, &mut out).is_err()
                || write.write_all(&out).await.is_err()
                || (frames.is_empty() && write.flush().await.is_err())
            {
                return;
            }
        }
        // The peer may have been quicker.
        let _ = write.shutdown().await;
    });
    let writer = Writer(sender);
    let reader = Reader {
        io: read,
        buffer: BytesMut::new(),
        decoder: frame::Decoder::new(),
        owed: VecDeque::new(),
        read: None,
        writer: writer.clone(),
    };
    Ok((reader, writer, Flush(task)))
}

impl Reader {
    /// The next frame; `None` when the peer has gone or cannot be understood. Safe to cancel.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.owed.front() {
                let permit = self.writer.0.reserve().await.ok()?;
                permit.send(frame.clone());
                self.owed.pop_front();
            }
            if let Some(frame) = self.read.take() {
                return Some(frame);
            }
            match self.decoder.decode(&mut self.buffer) {
                Ok(Some(Frame::Ping(id))) => self.owed.push_back(Frame::Ping(id)),
                Ok(Some(frame)) => {
                    // Clients drop what comes on a stream before they know that it is accepted.
                    if let Frame::Open { stream, .. } = frame {
                        self.owed.push_back(Frame::Reply { stream });
                    }
                    self.read = Some(frame);
                }
                Ok(None) => {
                    self.buffer.reserve(READ_BYTES);
                    if !matches!(self.io.read_buf(&mut self.buffer).await, Ok(1..)) {
                        return None;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the client's SPDY cannot be understood");
                    return None;
                }
            }
        }
    }

    /// Waits until the peer has left, so that nothing it has yet to read is lost to a reset.
    pub async fn finish(self, flush: Flush) {
        let Self { mut io, mut buffer, writer, .. } = self;
        drop(writer);
        let leave = async {
            let _ = flush.0.await;
            loop {
                buffer.clear();
                buffer.reserve(READ_BYTES);
                if !matches!(io.read_buf(&mut buffer).await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LEAVE, leave).await;
    }
}

impl Writer {
    /// Sends a frame; false when the peer has gone.
    pub async fn send(&self, frame: Frame) -> bool {
        self.0.send(frame).await.is_ok()
    }

    /// Sends bytes on a stream.
    pub async fn data(&self, stream: u32, bytes: &[u8], fin: bool) -> bool {
        self.send(Frame::Data { stream, bytes: Bytes::copy_from_slice(bytes), fin }).await
    }
}

#[cfg(test)]
pub mod client {
    //! The other side, for tests.

    use super::*;

    /// A client's connection.
    pub struct Client {
        io: tokio::io::DuplexStream,
        encoder: frame::Encoder,
        decoder: frame::Decoder,
        buffer: BytesMut,
    }

    impl Client {
        pub fn new(io: tokio::io::DuplexStream) -> Self {
            let (encoder, decoder) = (frame::Encoder::new().unwrap(), frame::Decoder::new());
            Self { io, encoder, decoder, buffer: BytesMut::new() }
        }

        pub async fn send(&mut self, frame: Frame) {
            let mut out = Vec::new();
            self.encoder.encode(&frame, &mut out).unwrap();
            self.io.write_all(&out).await.unwrap();
        }

        pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            self.send(Frame::Open { stream, headers, fin: false }).await;
        }

        pub async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    return None;
                }
            }
        }

        /// The bytes of the streams until the server ends, by stream.
        pub async fn rest(mut self) -> std::collections::BTreeMap<u32, Vec<u8>> {
            let mut all = std::collections::BTreeMap::<u32, Vec<u8>>::new();
            while let Some(frame) = self.next().await {
                if let Frame::Data { stream, bytes, .. } = frame {
                    all.entry(stream).or_default().extend_from_slice(&bytes);
                }
            }
            all
        }
    }

    /// Both sides of one connection.
    pub fn pair() -> (Client, Reader, Writer, Flush) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (read, write) = tokio::io::split(theirs);
        let (reader, writer, flush) = start(Box::new(read), Box::new(write)).unwrap();
        (Client::new(ours), reader, writer, flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_that_is_served_wins() {
        let mut headers = HeaderMap::new();
        headers.append(PROTOCOLS, HeaderValue::from_static("v5.channel.k8s.io"));
        headers.append(PROTOCOLS, HeaderValue::from_static("v4.channel.k8s.io, v3.channel.k8s.io"));
        assert_eq!(negotiate(&headers, &["v4.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(negotiate(&headers, &["portforward.k8s.io"]), None);
    }

    #[tokio::test]
    async fn a_stream_is_accepted_before_anything_is_sent_on_it() {
        let (mut client, mut reader, writer, _flush) = client::pair();
        client.open(1, &[("streamType", "error")]).await;
        assert!(matches!(reader.next().await, Some(Frame::Open { stream: 1, .. })));
        writer.data(1, b"early", false).await;
        assert_eq!(client.next().await, Some(Frame::Reply { stream: 1 }));
        assert!(matches!(client.next().await, Some(Frame::Data { stream: 1, .. })));
    }

    #[tokio::test]
    async fn pings_and_openings_are_answered() {
        let (mut client, mut reader, _writer, _flush) = client::pair();
        client.send(Frame::Ping(7)).await;
        client.open(1, &[("streamType", "error")]).await;
        client.send(Frame::GoAway { last: 0 }).await;
        let opened = reader.next().await;
        let headers = vec![("streamtype".to_owned(), "error".to_owned())];
        assert_eq!(opened, Some(Frame::Open { stream: 1, headers, fin: false }));
        assert_eq!(reader.next().await, Some(Frame::GoAway { last: 0 }));
        assert_eq!(client.next().await, Some(Frame::Ping(7)));
        assert_eq!(client.next().await, Some(Frame::Reply { stream: 1 }));
    }
}
