//! The type of an answer whose server does not name one: told from its first bytes, as the server library of the
//! stock API server does for whatever it passes on. Clients that choose a reader by the type fail without.
//!
//! Source: the MIME Sniffing Standard, as `DetectContentType` of Go's `net/http` implements it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::body::{Body, BoxError, Response};

/// Bytes that are looked at.
const LOOKED_AT: usize = 512;
/// An answer whose body does not begin in this time goes on without a type, as upstream's flush sends it.
const PATIENCE: Duration = Duration::from_millis(200);

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Tags that begin a page, in any case; a space or `>` follows.
const TAGS: [&str; 17] = [
    "<!DOCTYPE HTML",
    "<HTML",
    "<HEAD",
    "<SCRIPT",
    "<IFRAME",
    "<H1",
    "<DIV",
    "<FONT",
    "<TABLE",
    "<A",
    "<STYLE",
    "<TITLE",
    "<B",
    "<BODY",
    "<BR",
    "<P",
    "<!--",
];

/// First bytes, in the order in which they are tried; `None` stands for any byte. MP4 has no fixed ones.
const SIGNATURES: [(&[Option<u8>], &str); 32] = [
    (&exact(*b"%PDF-"), "application/pdf"),
    (&exact(*b"%!PS-Adobe-"), "application/postscript"),
    (&[Some(0xFE), Some(0xFF), None, None], "text/plain; charset=utf-16be"),
    (&[Some(0xFF), Some(0xFE), None, None], "text/plain; charset=utf-16le"),
    (&[Some(0xEF), Some(0xBB), Some(0xBF), None], TEXT),
    (&exact(*b"\0\0\x01\0"), "image/x-icon"),
    (&exact(*b"\0\0\x02\0"), "image/x-icon"),
    (&exact(*b"BM"), "image/bmp"),
    (&exact(*b"GIF87a"), "image/gif"),
    (&exact(*b"GIF89a"), "image/gif"),
    (&chunk::<14>(*b"RIFF", b"WEBPVP"), "image/webp"),
    (&exact(*b"\x89PNG\r\n\x1A\n"), "image/png"),
    (&exact(*b"\xFF\xD8\xFF"), "image/jpeg"),
    (&chunk::<12>(*b"FORM", b"AIFF"), "audio/aiff"),
    (&exact(*b"ID3"), "audio/mpeg"),
    (&exact(*b"OggS\0"), "application/ogg"),
    (&exact(*b"MThd\0\0\0\x06"), "audio/midi"),
    (&chunk::<12>(*b"RIFF", b"AVI "), "video/avi"),
    (&chunk::<12>(*b"RIFF", b"WAVE"), "audio/wave"),
    (&[], "video/mp4"),
    (&exact(*b"\x1A\x45\xDF\xA3"), "video/webm"),
    (&embedded_font(), "application/vnd.ms-fontobject"),
    (&exact(*b"\0\x01\0\0"), "font/ttf"),
    (&exact(*b"OTTO"), "font/otf"),
    (&exact(*b"ttcf"), "font/collection"),
    (&exact(*b"wOFF"), "font/woff"),
    (&exact(*b"wOF2"), "font/woff2"),
    (&exact(*b"\x1F\x8B\x08"), "application/x-gzip"),
    (&exact(*b"PK\x03\x04"), "application/zip"),
    (&exact(*b"Rar!\x1A\x07\0"), "application/x-rar-compressed"),
    (&exact(*b"Rar!\x1A\x07\x01\0"), "application/x-rar-compressed"),
    (&exact(*b"\0asm"), "application/wasm"),
];

const fn exact<const N: usize>(bytes: [u8; N]) -> [Option<u8>; N] {
    let mut pattern = [None; N];
    let mut at = 0;
    while at < N {
        pattern[at] = Some(bytes[at]);
        at += 1;
    }
    pattern
}

/// A container format: its name, a length of four bytes, and the kind of what it holds.
const fn chunk<const N: usize>(container: [u8; 4], kind: &[u8]) -> [Option<u8>; N] {
    let mut pattern = [None; N];
    let mut at = 0;
    while at < 4 {
        pattern[at] = Some(container[at]);
        at += 1;
    }
    at = 0;
    while at < kind.len() {
        pattern[8 + at] = Some(kind[at]);
        at += 1;
    }
    pattern
}

const fn embedded_font() -> [Option<u8>; 36] {
    let mut pattern = [None; 36];
    pattern[34] = Some(b'L');
    pattern[35] = Some(b'P');
    pattern
}

/// The type of what begins with `data`.
pub fn detect(data: &[u8]) -> &'static str {
    let data = &data[..data.len().min(LOOKED_AT)];
    let blank = |byte: &u8| matches!(byte, b'\t' | b'\n' | 0x0C | b'\r' | b' ');
    let text = &data[data.iter().take_while(|byte| blank(byte)).count()..];
    if TAGS.iter().any(|tag| begins_with_tag(text, tag.as_bytes())) {
        return HTML;
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    let fits = |pattern: &[Option<u8>]| {
        pattern.len() <= data.len()
            && pattern.iter().zip(data).all(|(want, byte)| want.is_none_or(|want| want == *byte))
    };
    for (pattern, kind) in SIGNATURES {
        let found = if pattern.is_empty() { is_mp4(data) } else { fits(pattern) };
        if found {
            return kind;
        }
    }
    let binary = |byte: &u8| matches!(byte, 0..=0x08 | 0x0B | 0x0E..=0x1A | 0x1C..=0x1F);
    if text.iter().any(binary) { "application/octet-stream" } else { TEXT }
}

fn begins_with_tag(text: &[u8], tag: &[u8]) -> bool {
    text.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag))
        && matches!(text.get(tag.len()), Some(b' ' | b'>'))
}

/// A box `ftyp` that names a brand of MP4; what stands at its third place is a version.
fn is_mp4(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk::<4>() else { return false };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(whole) = data.get(..length) else { return false };
    if data.len() < 12 || !length.is_multiple_of(4) || !rest.starts_with(b"ftyp") {
        return false;
    }
    let brands = whole.get(8..).unwrap_or_default().chunks(4);
    brands.enumerate().any(|(index, brand)| index != 1 && brand.starts_with(b"mp4"))
}

/// Names the type of an answer that has a body and none of its own.
pub async fn named(mut response: Response) -> Response {
    let coded = response.headers().get(CONTENT_ENCODING).is_some_and(|coding| !coding.is_empty());
    let code = response.status();
    let bodiless = code.is_informational()
        || matches!(code, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if coded || bodiless || response.headers().contains_key(CONTENT_TYPE) {
        return response;
    }
    let mut body = std::mem::take(response.body_mut());
    let size = body.size_hint().exact();
    let first = match tokio::time::timeout(PATIENCE, first_bytes(&mut body)).await {
        Ok(Some(Ok(bytes))) => bytes,
        Ok(Some(Err(error))) => {
            *response.body_mut() =
                Body::stream(futures::stream::once(async move { Err::<Bytes, _>(error) }));
            return response;
        }
        Ok(None) => return response,
        Err(_) => {
            *response.body_mut() = body;
            return response;
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(detect(&first)));
    *response.body_mut() = if size == Some(first.len() as u64) {
        Body::Full(first)
    } else {
        let rest = http_body_util::BodyDataStream::new(body);
        Body::stream(futures::stream::once(async { Ok(first) }).chain(rest))
    };
    response
}

async fn first_bytes(body: &mut Body) -> Option<Result<Bytes, BoxError>> {
    loop {
        match body.frame().await? {
            Ok(frame) => match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                _ => {}
            },
            Err(error) => return Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_from_first_bytes() {
        for (data, want) in [
            (&b""[..], TEXT),
            (b"{\"a\": 1}", TEXT),
            (b"plain \x1B[1m text", TEXT),
            (b"\x01\x02\x03", "application/octet-stream"),
            (b"a\x0Bb", "application/octet-stream"),
            (b"<HtMl><bOdY>blah</body></html>", HTML),
            (b"  \n<!doctype html>", HTML),
            (b"<!DOCTYPE html lang=en>", HTML),
            (b"<!DOCTYPEHTML>", TEXT),
            (b"<HTML", TEXT),
            (b"<!-- a -->", HTML),
            (b"<p", TEXT),
            (b"<abc>", TEXT),
            (b"\n<?xml version=\"1.0\"?>", "text/xml; charset=utf-8"),
            (b"<?XML!", TEXT),
            (b"%PDF-1.7", "application/pdf"),
            (b"%!PS-Adobe-3.0", "application/postscript"),
            (b"\xFE\xFF\0t", "text/plain; charset=utf-16be"),
            (b"\xFF\xFEt\0", "text/plain; charset=utf-16le"),
            (b"\xEF\xBB\xBFa", TEXT),
            (b"\0\0\x01\0", "image/x-icon"),
            (b"BM...", "image/bmp"),
            (b"GIF89a...", "image/gif"),
            (b"\x89PNG\r\n\x1A\n", "image/png"),
            (b"\xFF\xD8\xFF\xE0", "image/jpeg"),
            (b"RIFFb\xB8\0\0WEBPVP", "image/webp"),
            (b"RIFFb\xB8\0\0WAVEfmt ", "audio/wave"),
            (b"RIFF,O\n\0AVI LIST", "video/avi"),
            (b"FORM\0\0\0\0AIFF", "audio/aiff"),
            (b"ID3\x03", "audio/mpeg"),
            (b"OggS\0", "application/ogg"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom<\x06t\xBF", "video/mp4"),
            (b"\0\0\0\x18ftypisom\0\0\0\0mp41isom<\x06t\xBF", "video/mp4"),
            (b"\0\0\0\x14ftypM4A mp41qt  ", "application/octet-stream"),
            (b"\x1A\x45\xDF\xA3", "video/webm"),
            (b"\0\x01\0\0", "font/ttf"),
            (b"wOF2", "font/woff2"),
            (b"\x1F\x8B\x08", "application/x-gzip"),
            (b"PK\x03\x04", "application/zip"),
            (b"Rar!\x1A\x07\x01\0", "application/x-rar-compressed"),
            (b"\0asm\x01", "application/wasm"),
        ] {
            assert_eq!(detect(data), want, "{:?}", String::from_utf8_lossy(data));
        }
        let mut late = vec![b'a'; LOOKED_AT];
        late.push(1);
        assert_eq!(detect(&late), TEXT);
    }

    #[tokio::test]
    async fn only_what_has_no_type_is_looked_at() {
        let page = || Body::from("<html>");
        for (name, value, want) in [
            ("x-a", "b", Some(HTML)),
            ("content-type", "a/b", Some("a/b")),
            ("content-type", "", Some("")),
            ("content-encoding", "gzip", None),
        ] {
            let response =
                http::Response::builder().header(name, value).body(page()).expect("an answer");
            let got = named(response).await;
            let kind = got.headers().get(CONTENT_TYPE).map(|v| v.to_str().expect("text"));
            assert_eq!(kind, want, "{name}: {value}");
            let bytes = got.into_body().read(100).await.expect("bytes").expect("few");
            assert_eq!(bytes, "<html>");
        }
        assert!(!named(Response::default()).await.headers().contains_key(CONTENT_TYPE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_late_is_not_waited_for() {
        let silent = Body::stream(futures::stream::pending());
        let response = Response::new(silent);
        let begun = tokio::time::Instant::now();
        assert!(!named(response).await.headers().contains_key(CONTENT_TYPE));
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test]
    async fn a_stream_stays_whole() {
        let chunks = ["", "a", "b"].map(|text| Ok(Bytes::from_static(text.as_bytes())));
        let got = named(Response::new(Body::stream(futures::stream::iter(chunks)))).await;
        assert_eq!(got.headers()[CONTENT_TYPE], TEXT);
        assert_eq!(got.into_body().read(9).await.expect("bytes").expect("few"), "ab");
    }
}
