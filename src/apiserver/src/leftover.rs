//! What a handler leaves unread of a request's body.
//!
//! HTTP/1.1 can only go on after the whole body. A client sends it after the head, so a refusal is often written before the
//! body came: closing then would break the client's next request, which may already be on its way. So a little is read
//! and dropped, and of more the client is told that the connection ends. The limit is Go's.
//!
//! Source: `maxPostHandlerReadBytes` and `cw.writeHeader` in Go's `net/http/server.go`.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

const READ_BYTES: usize = 256 << 10;
const READ_FOR: Duration = Duration::from_secs(5);

/// A body that comes back when it is dropped before its end.
pub struct Lent<B: Body + Unpin> {
    body: Option<B>,
    back: Option<oneshot::Sender<B>>,
}

/// Lends `body`; the receiver gets what was not read of it.
pub fn lend<B: Body + Unpin>(body: B) -> (Lent<B>, oneshot::Receiver<B>) {
    let (back, left) = oneshot::channel();
    (Lent { body: Some(body), back: Some(back) }, left)
}

/// Reads the rest of `body`. False when it is too long, or too slow.
pub async fn discard<B: Body + Unpin>(mut body: B) -> bool {
    let read = async {
        let mut left = READ_BYTES;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let length = frame.data_ref().map_or(0, Buf::remaining);
            let Some(rest) = left.checked_sub(length) else { return false };
            left = rest;
        }
        true
    };
    tokio::time::timeout(READ_FOR, read).await.unwrap_or(false)
}

impl<B: Body + Unpin> Drop for Lent<B> {
    fn drop(&mut self) {
        let Some((body, back)) = self.body.take().zip(self.back.take()) else { return };
        if !body.is_end_stream() {
            // Nobody waits for it when the connection is gone.
            let _ = back.send(body);
        }
    }
}

impl<B: Body + Unpin> Body for Lent<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match &mut self.get_mut().body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;

    #[tokio::test]
    async fn what_is_left_comes_back() {
        let (lent, mut left) = lend(Full::new(Bytes::from_static(b"body")));
        assert!(left.try_recv().is_err(), "still lent");
        drop(lent);
        assert!(discard(left.try_recv().expect("what was left")).await);
        let (lent, mut left) = lend(Full::new(Bytes::from_static(b"body")));
        assert_eq!(lent.collect().await.expect("all of it").to_bytes(), "body");
        assert!(left.try_recv().is_err(), "nothing is left");
        assert!(!discard(Full::new(Bytes::from(vec![0; READ_BYTES + 1]))).await);
    }
}
