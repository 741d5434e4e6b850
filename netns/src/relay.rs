//! Bytes between two TCP connections, faithfully: half-close stays half-close, a reset a reset.

mod pipe;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::attention::stir;
use pipe::Pipe;

/// A datagram fits; of a stream, what is more goes through a [`Pipe`].
const BUFFER_BYTES: usize = 64 << 10;
/// Buffers kept by each thread.
const SPARE_BUFFERS: usize = 8;
/// From so much at once on, moving pages costs less than copying them twice.
const BULK_BYTES: usize = 16 << 10;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A large buffer, held only while data are in it: thousands of idle connections cost none.
pub(crate) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self(Some(spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())))
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        self.0.as_mut().expect("present until dropped")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_BUFFERS
                && let Some(buffer) = self.0.take()
            {
                spare.push(buffer);
            }
        });
    }
}

/// Makes closing send a reset instead of an orderly end.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Copies both ways until both directions have ended or one has failed. Both are to have `TCP_NODELAY`:
/// segments are passed on as they come; waiting for more would add the peer's delayed acknowledgement to
/// every exchange.
pub(crate) async fn relay(mut a: TcpStream, mut b: TcpStream) {
    let ((from_a, to_a), (from_b, to_b)) = (a.split(), b.split());
    let half = AtomicBool::new(false);
    if tokio::try_join!(pump(from_a, &to_b, &half), pump(from_b, &to_a, &half)).is_err() {
        reset_on_close(&a);
        reset_on_close(&b);
    }
}

/// `half` is whether the other direction has ended.
async fn pump(mut from: ReadHalf<'_>, to: &WriteHalf<'_>, half: &AtomicBool) -> io::Result<()> {
    let to = to.as_ref();
    let mut bulk = false;
    loop {
        let length = if bulk { splice(&mut from, to).await } else { copy(&mut from, to).await }?;
        if length == 0 {
            stir();
            if half.swap(true, Ordering::Relaxed) {
                // Both are closed now, which tells the same.
                return Ok(());
            }
            return SockRef::from(to).shutdown(std::net::Shutdown::Write);
        }
        bulk = length >= BULK_BYTES;
        if !bulk {
            // Where much is to be moved, those who send and receive it have use for the CPUs.
            stir();
        }
    }
}

/// Passes on what there is to read, once there is something, by a pipe if one is to be had; returns how much,
/// 0 at the end.
async fn splice(from: &mut ReadHalf<'_>, to: &TcpStream) -> io::Result<usize> {
    loop {
        from.readable().await?;
        let Some(pipe) = Pipe::take() else { return copy(from, to).await };
        let moved = pipe.carry(from.as_ref(), to).await;
        // One busy connection must not keep a thread from the others.
        tokio::task::coop::consume_budget().await;
        match moved {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            moved => return moved,
        }
    }
}

/// Passes on what there is to read, once there is something; returns how much, 0 at the end.
async fn copy(from: &mut ReadHalf<'_>, to: &TcpStream) -> io::Result<usize> {
    // Not `try_read`: after less than was asked for this one waits without asking the kernel again.
    let read = |context: &mut Context<'_>| {
        let mut buffer = Buffer::take();
        let mut target = ReadBuf::new(buffer.bytes());
        ready!(Pin::new(&mut *from).poll_read(context, &mut target))?;
        let length = target.filled().len();
        Poll::Ready(Ok::<_, io::Error>((buffer, length)))
    };
    let (mut buffer, length) = std::future::poll_fn(read).await?;
    let mut rest = &buffer.bytes()[..length];
    while !rest.is_empty() {
        match to.try_write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                to.ready(Interest::WRITABLE).await?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Bytes that say where they are.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length as u32 / 4).flat_map(u32::to_le_bytes).collect()
    }

    #[tokio::test]
    async fn what_is_sent_arrives_in_order_and_half_closes_stay_halves() {
        // Below and above what goes by a pipe, and more than pipe and socket buffers hold.
        for length in [0, 4, BULK_BYTES, 32 << 20] {
            let ((client, a), (b, mut server)) = (pair().await, pair().await);
            let relayed = tokio::spawn(relay(a, b));
            let sent = pattern(length);
            let (mut reader, mut writer) = client.into_split();
            let writing = tokio::spawn(async move {
                writer.write_all(&pattern(length)).await.unwrap();
                writer.shutdown().await.unwrap();
                writer
            });
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            assert!(received == sent, "{length} bytes: {} came", received.len());
            let mut back = Vec::new();
            let answer = async {
                server.write_all(&sent).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(reader.read_to_end(&mut back), answer);
            read.unwrap();
            assert!(back == sent, "{length} bytes: {} came back", back.len());
            drop(writing.await.unwrap());
            relayed.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_given_to_another() {
        let ((mut client, a), (b, server)) = (pair().await, pair().await);
        let relayed = tokio::spawn(relay(a, b));
        // Until everything on the way is full, the pipe too.
        let chunk = vec![1; 1 << 20];
        let patience = Duration::from_millis(200);
        while let Ok(written) = tokio::time::timeout(patience, client.write(&chunk)).await {
            written.unwrap();
        }
        relayed.abort();
        assert!(relayed.await.unwrap_err().is_cancelled());
        drop((client, server));
        let ((mut client, a), (b, mut server)) = (pair().await, pair().await);
        let relayed = tokio::spawn(relay(a, b));
        let sent = pattern(4 << 20);
        let copy = sent.clone();
        let writing = tokio::spawn(async move {
            client.write_all(&copy).await.unwrap();
            client
        });
        let mut received = vec![0; sent.len()];
        server.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        drop((writing.await.unwrap(), server));
        relayed.await.unwrap();
    }
}
