//! Compression of large answers, for clients that take gzip.
//!
//! Source: `negotiateContentEncoding` and `deferredResponseWriter` of
//! `k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/writers.go`.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::HeaderMap;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, VARY,
};

use crate::body::{Body, BoxError, Response};

/// Answers up to this size are sent as they are (`defaultGzipThresholdBytes`).
const THRESHOLD_BYTES: u64 = 128 << 10;
/// So much is compressed at a time, so that other requests get their turn.
const STEP_BYTES: usize = 64 << 10;

/// Whether a client takes gzip.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.split(';').next().is_some_and(|name| name.trim() == "gzip"))
}

/// Compresses an answer that is long enough, and is an object or document.
pub fn compress(response: &mut Response) {
    let headers = response.headers();
    let is_object = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/") && !kind.contains("stream=watch"));
    if !is_object || headers.contains_key(CONTENT_ENCODING) {
        return;
    }
    let mut chunks: Box<dyn Iterator<Item = Bytes> + Send> =
        match std::mem::take(response.body_mut()) {
            Body::Full(bytes) if bytes.len() as u64 > THRESHOLD_BYTES => {
                Box::new(pieces(bytes).into_iter())
            }
            Body::List(items) if items.left() > THRESHOLD_BYTES => Box::new(items.flat_map(pieces)),
            other => {
                *response.body_mut() = other;
                return;
            }
        };
    let mut encoder = Some(GzEncoder::new(Vec::new(), Compression::new(1)));
    let compressed = stream::iter(std::iter::from_fn(move || {
        let mut writer = encoder.take()?;
        let step = match chunks.next() {
            Some(chunk) => writer.write_all(&chunk).map(|()| {
                let ready = std::mem::take(writer.get_mut());
                encoder = Some(writer);
                ready
            }),
            None => writer.finish(),
        };
        Some(step.map(Bytes::from).map_err(BoxError::from))
    }));
    *response.body_mut() = Body::stream(compressed);
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn pieces(mut bytes: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(bytes.len() / STEP_BYTES + 1);
    while bytes.len() > STEP_BYTES {
        pieces.push(bytes.split_to(STEP_BYTES));
    }
    pieces.push(bytes);
    pieces
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::*;
    use crate::respond;

    #[tokio::test]
    async fn long_answers_are_compressed() {
        let text = "0123456789abcdef".repeat(20_000);
        let mut response = respond::answer(http::StatusCode::OK, "application/json", text.clone());
        compress(&mut response);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(bytes.len() < text.len() / 10);
        let mut back = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut back).expect("gzip");
        assert_eq!(back, text);
    }

    #[test]
    fn short_answers_and_streams_are_not() {
        let mut short = respond::answer(http::StatusCode::OK, "application/json", "{}");
        compress(&mut short);
        assert!(!short.headers().contains_key(CONTENT_ENCODING));
        let mut headers = HeaderMap::new();
        assert!(!is_wanted(&headers));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("deflate, gzip;q=1.0"));
        assert!(is_wanted(&headers));
    }
}
