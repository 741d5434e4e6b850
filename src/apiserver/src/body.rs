//! The one body type of requests and responses: bytes, the items of a list, or a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use crate::items::Items;

/// What a stream may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or response's body.
#[derive(Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// All of it at once.
    Full(Bytes),
    /// A list, written while it is sent.
    List(Items),
    /// Unknown length: a watch, a log.
    Stream(BoxStream<'static, Result<Bytes, BoxError>>),
    /// Another library's body.
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

/// A request inside the server.
pub type Request = http::Request<Body>;
/// A response inside the server.
pub type Response = http::Response<Body>;

impl Body {
    /// A stream.
    pub fn stream<S>(stream: S) -> Self
    where
        S: futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    {
        Self::Stream(stream.boxed())
    }

    /// Wraps any body.
    pub fn wrap<B>(body: B) -> Self
    where
        B: HttpBody + Send + 'static,
        B::Data: Buf + Send,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Self::Empty;
        }
        let body = body
            .map_frame(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            .map_err(Into::into);
        Self::Boxed(body.boxed_unsync())
    }

    /// Reads it whole; `None` when it is longer than `limit` bytes.
    pub async fn read(self, limit: usize) -> Result<Option<Bytes>, BoxError> {
        let mut body = match self {
            Self::Empty => return Ok(Some(Bytes::new())),
            Self::Full(bytes) => return Ok((bytes.len() <= limit).then_some(bytes)),
            other => other,
        };
        if body.size_hint().lower() > limit as u64 {
            return Ok(None);
        }
        let mut first = Bytes::new();
        let mut more: Option<BytesMut> = None;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if first.len().max(more.as_ref().map_or(0, BytesMut::len)) + data.len() > limit {
                return Ok(None);
            }
            match &mut more {
                Some(buffer) => buffer.extend_from_slice(&data),
                None if first.is_empty() => first = data,
                None => {
                    let mut buffer = BytesMut::with_capacity(first.len() + data.len());
                    buffer.extend_from_slice(&first);
                    buffer.extend_from_slice(&data);
                    more = Some(buffer);
                }
            }
        }
        Ok(Some(more.map_or(first, BytesMut::freeze)))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::List(items) => Poll::Ready(items.next().map(|chunk| Ok(Frame::data(chunk)))),
            Self::Stream(stream) => {
                stream.poll_next_unpin(cx).map(|item| item.map(|result| result.map(Frame::data)))
            }
            Self::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::List(items) => items.left() == 0,
            Self::Stream(_) => false,
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::List(items) => SizeHint::with_exact(items.left()),
            Self::Stream(_) => SizeHint::default(),
            Self::Boxed(body) => body.size_hint(),
        }
    }
}
