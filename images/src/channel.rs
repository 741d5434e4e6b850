//! From asynchronous senders to a blocking reader.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Chunks on their way: enough to keep both sides busy, little enough to bound memory.
const CHUNKS: usize = 16;

pub(crate) type Chunk = io::Result<Bytes>;

/// A bounded pipe. Dropping the sender is the end of the stream.
pub(crate) fn pipe() -> (mpsc::Sender<Chunk>, Reader) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let reader = Reader { receiver, current: Bytes::new() };
    (sender, reader)
}

/// The blocking end; never read it on an asynchronous thread.
pub(crate) struct Reader {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let got = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..got]);
        Ok(got)
    }
}
