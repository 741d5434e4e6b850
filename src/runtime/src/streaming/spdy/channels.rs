//! Remote commands over SPDY, `v4.channel.k8s.io`: a stream per channel, named by its header
//! `streamType` (`k8s.io/kubelet/pkg/cri/streaming/remotecommand/httpstream.go`).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::super::socket::{Incoming, Size, channel};
use super::{Flush, Frame, Headers, Reader, Writer};

/// How long a client may take to open its streams, upstream's default.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The header with a stream's name.
const STREAM_TYPE: &str = "streamtype";
/// Longest description of a terminal's size that is waited for.
const MAX_SIZE_BYTES: usize = 1024;

/// The client's end of a session.
pub struct Channels {
    reader: Reader,
    writer: Writer,
    flush: Flush,
    /// Streams by the number of their channel.
    streams: HashMap<u8, u32>,
    /// What came while streams were still being opened.
    early: VecDeque<Incoming>,
    sizes: BytesMut,
}

/// The channel of a stream.
fn channel_of(headers: &Headers) -> Option<u8> {
    let (_, name) = headers.iter().find(|(name, _)| name == STREAM_TYPE)?;
    Some(match name.as_str() {
        "stdin" => channel::STDIN,
        "stdout" => channel::STDOUT,
        "stderr" => channel::STDERR,
        "error" => channel::ERROR,
        "resize" => channel::RESIZE,
        _ => return None,
    })
}

impl Channels {
    /// Over a connection whose streams are to be opened.
    pub fn new((reader, writer, flush): (Reader, Writer, Flush)) -> Self {
        Self {
            reader,
            writer,
            flush,
            streams: HashMap::new(),
            early: VecDeque::new(),
            sizes: BytesMut::new(),
        }
    }

    /// Waits until the client has opened these channels; false when it does not.
    pub async fn opened(&mut self, wanted: &[u8]) -> bool {
        let open = async {
            while !wanted.iter().all(|channel| self.streams.contains_key(channel)) {
                let Some(frame) = self.reader.next().await else { return false };
                match self.meaning(frame) {
                    Incoming::Other => {}
                    word => self.early.push_back(word),
                }
            }
            true
        };
        tokio::time::timeout(OPEN_TIMEOUT, open).await.unwrap_or(false)
    }

    fn meaning(&mut self, frame: Frame) -> Incoming {
        match frame {
            Frame::Open { stream, headers, .. } => {
                if let Some(channel) = channel_of(&headers) {
                    self.streams.insert(channel, stream);
                }
                Incoming::Other
            }
            Frame::Data { stream, bytes, fin } => {
                if self.streams.get(&channel::RESIZE) == Some(&stream) {
                    return self.size(&bytes).map_or(Incoming::Other, Incoming::Resize);
                }
                if self.streams.get(&channel::STDIN) != Some(&stream) {
                    return Incoming::Other;
                }
                if fin && !bytes.is_empty() {
                    // Both the last bytes and the end.
                    self.early.push_back(Incoming::InputEnd);
                }
                match (bytes.is_empty(), fin) {
                    (false, _) => Incoming::Input(bytes),
                    (true, true) => Incoming::InputEnd,
                    (true, false) => Incoming::Other,
                }
            }
            Frame::Reset { stream, .. } if self.streams.get(&channel::STDIN) == Some(&stream) => {
                Incoming::InputEnd
            }
            _ => Incoming::Other,
        }
    }

    /// The last complete size of what has come, which may be part of one or several.
    fn size(&mut self, bytes: &Bytes) -> Option<Size> {
        self.sizes.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.sizes).into_iter::<Size>();
        let mut last = None;
        let mut read = 0;
        while let Some(Ok(size)) = sizes.next() {
            last = Some(size);
            read = sizes.byte_offset();
        }
        drop(self.sizes.split_to(read));
        if self.sizes.len() > MAX_SIZE_BYTES {
            self.sizes.clear();
        }
        last
    }

    /// The next word of the client; `None` when it has gone. Safe to cancel.
    pub async fn next(&mut self) -> Option<Incoming> {
        if let Some(word) = self.early.pop_front() {
            return Some(word);
        }
        let frame = self.reader.next().await?;
        let word = self.meaning(frame);
        Some(word)
    }

    /// Sends bytes on a channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        match self.streams.get(&channel) {
            Some(stream) if !bytes.is_empty() => self.writer.data(*stream, bytes, false).await,
            _ => true,
        }
    }

    /// Ends all channels and says good-bye.
    pub async fn close(self) {
        let Self { reader, writer, flush, streams, .. } = self;
        let mut last = 0;
        for (channel, stream) in streams {
            last = last.max(stream);
            if channel != channel::STDIN && channel != channel::RESIZE {
                writer.data(stream, &[], true).await;
            }
        }
        writer.send(Frame::GoAway { last }).await;
        drop(writer);
        reader.finish(flush).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::*;

    #[tokio::test]
    async fn a_terminal_session_is_carried() {
        let (mut client, reader, writer, flush) = client::pair();
        let mut channels = Channels::new((reader, writer, flush));
        for (stream, name) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
            client.open(stream, &[("streamType", name)]).await;
        }
        assert!(channels.opened(&[channel::ERROR, channel::STDIN, channel::STDOUT]).await);
        let data = |stream, bytes: &'static str, fin| Frame::Data {
            stream,
            bytes: Bytes::from_static(bytes.as_bytes()),
            fin,
        };
        client.send(data(7, "{\"Width\":80,\"Hei", false)).await;
        client.send(data(7, "ght\":24}\n", false)).await;
        client.send(data(3, "ls", true)).await;
        let mut words = Vec::new();
        while words.len() < 3 {
            match channels.next().await.unwrap() {
                Incoming::Other => {}
                word => words.push(word),
            }
        }
        let size = Size { width: 80, height: 24 };
        let input = Incoming::Input(Bytes::from_static(b"ls"));
        assert_eq!(words, [Incoming::Resize(size), input, Incoming::InputEnd]);
        channels.send(channel::STDOUT, b"a\n").await;
        channels.send(channel::ERROR, b"{}").await;
        let (rest, ()) = tokio::join!(client.rest(), channels.close());
        assert_eq!(rest[&5], b"a\n");
        assert_eq!(rest[&1], b"{}");
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed() {
        let (client, reader, writer, flush) = client::pair();
        drop(client);
        assert!(!Channels::new((reader, writer, flush)).opened(&[channel::ERROR]).await);
    }
}
