//! Links in what a proxied server answers are led through the proxy again.
//!
//! Source: `Transport` of `pkg/util/proxy` of apimachinery.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};
use futures::StreamExt;
use http::HeaderValue;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};

use super::html::Links;
use crate::body::{Body, BoxError, Response};

/// Whom the answers of this server may be shown to is not for what runs in the cluster to say.
const NOT_RETURNED: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// Where the proxied server's paths lie for the client.
#[derive(Clone, Debug)]
pub struct Places {
    /// The path of the proxy, before that of the server.
    pub prefix: String,
    /// The server as this process reaches it.
    pub server: String,
    /// The host that the client asked.
    pub asked: String,
}

impl Places {
    /// The reference as the client has to follow it.
    pub fn rewrite(&self, reference: &str) -> String {
        let (before, rest) =
            reference.split_at(reference.find(['?', '#']).unwrap_or(reference.len()));
        let (scheme, hierarchy) = scheme(before);
        let (host, path) = match hierarchy.strip_prefix("//") {
            Some(from_host) => from_host.split_at(from_host.find('/').unwrap_or(from_host.len())),
            None => ("", hierarchy),
        };
        let other = !host.is_empty() && host != self.server && host != self.asked;
        if other || !path.starts_with('/') {
            return reference.to_owned();
        }
        let origin = match scheme {
            _ if host.is_empty() || host != self.asked => String::new(),
            "" => format!("//{host}"),
            scheme => format!("{scheme}://{host}"),
        };
        if path.starts_with(&self.prefix) {
            return format!("{origin}{path}{rest}");
        }
        format!("{origin}{}{rest}", join(&self.prefix, path))
    }

    /// An answer with its links led through the proxy.
    pub fn answer(self, mut response: Response) -> Response {
        for name in NOT_RETURNED {
            response.headers_mut().remove(name);
        }
        if let Some(location) = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()) {
            if let Ok(location) = HeaderValue::from_str(&self.rewrite(location)) {
                response.headers_mut().insert(LOCATION, location);
            }
            return response;
        }
        let word = |name| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.and_then(|text| text.split(';').next()).unwrap_or_default().trim()
        };
        if word(CONTENT_TYPE) != "text/html" {
            return response;
        }
        let coding = match word(CONTENT_ENCODING) {
            "" | "identity" => Coding::Plain,
            "gzip" => {
                Coding::Gzip(GzDecoder::new(vec![]), GzEncoder::new(vec![], Compression::default()))
            }
            "deflate" => Coding::Deflate(
                DeflateDecoder::new(vec![]),
                DeflateEncoder::new(vec![], Compression::default()),
            ),
            other => {
                tracing::warn!(encoding = other, "links of a proxied page are left as they are");
                return response;
            }
        };
        response.headers_mut().remove(CONTENT_LENGTH);
        response.map(|body| rewritten(body, self, coding))
    }
}

/// A reference's scheme, empty for a relative one, and what follows its colon.
fn scheme(reference: &str) -> (&str, &str) {
    match reference.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) =>
        {
            (scheme, rest)
        }
        _ => ("", reference),
    }
}

/// The cleaned path below the prefix; a slash at its end stays.
fn join(prefix: &str, path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in prefix.split('/').chain(path.split('/')) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let slash = if path.ends_with('/') { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

/// How the page is packed.
enum Coding {
    Plain,
    Gzip(GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>, DeflateEncoder<Vec<u8>>),
}

impl Coding {
    /// The plain bytes of a chunk; without one, those still to come.
    fn unpack(&mut self, chunk: Option<&[u8]>) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(chunk.unwrap_or_default().to_vec()),
            Self::Gzip(decoder, _) => {
                match chunk {
                    Some(chunk) => decoder.write_all(chunk)?,
                    None => decoder.try_finish()?,
                }
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Deflate(decoder, _) => {
                match chunk {
                    Some(chunk) => decoder.write_all(chunk)?,
                    None => decoder.try_finish()?,
                }
                Ok(std::mem::take(decoder.get_mut()))
            }
        }
    }

    fn pack(&mut self, bytes: Vec<u8>, last: bool) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(bytes),
            Self::Gzip(_, encoder) => {
                encoder.write_all(&bytes)?;
                if last { encoder.try_finish() } else { encoder.flush() }?;
                Ok(std::mem::take(encoder.get_mut()))
            }
            Self::Deflate(_, encoder) => {
                encoder.write_all(&bytes)?;
                if last { encoder.try_finish() } else { encoder.flush() }?;
                Ok(std::mem::take(encoder.get_mut()))
            }
        }
    }
}

fn rewritten(body: Body, places: Places, coding: Coding) -> Body {
    let chunks = http_body_util::BodyDataStream::new(body);
    let state = Some((chunks, Links::default(), coding));
    Body::stream(futures::stream::unfold(state, move |state| {
        let places = places.clone();
        async move {
            let (mut chunks, mut links, mut coding) = state?;
            let chunk = match chunks.next().await {
                Some(Ok(chunk)) => Some(chunk),
                Some(Err(error)) => return Some((Err(error), None)),
                None => None,
            };
            let step = || -> std::io::Result<Vec<u8>> {
                let plain = coding.unpack(chunk.as_deref())?;
                let mut page = links.feed(&plain, |reference| places.rewrite(reference));
                if chunk.is_none() {
                    page.extend(links.rest());
                }
                coding.pack(page, chunk.is_none())
            };
            match { step }() {
                Ok(bytes) => {
                    let next = chunk.is_some().then_some((chunks, links, coding));
                    Some((Ok(Bytes::from(bytes)), next))
                }
                Err(error) => Some((Err(BoxError::from(error)), None)),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places {
            prefix: "/api/v1/namespaces/a/pods/b/proxy".into(),
            server: "10.42.0.2:80".into(),
            asked: "localhost:8001".into(),
        }
    }

    #[test]
    fn references_to_the_server_lead_through_the_proxy() {
        let p = places().prefix;
        for (reference, want) in [
            ("/x", format!("{p}/x")),
            ("/x/../y/?q=/z#/f", format!("{p}/y/?q=/z#/f")),
            ("/", format!("{p}/")),
            ("http://10.42.0.2:80/x", format!("{p}/x")),
            ("http://localhost:8001/x", format!("http://localhost:8001{p}/x")),
            ("x/y", "x/y".into()),
            ("http://example.com/x", "http://example.com/x".into()),
            ("//example.com/x", "//example.com/x".into()),
            ("mailto:a@b", "mailto:a@b".into()),
            ("#top", "#top".into()),
        ] {
            assert_eq!(places().rewrite(reference), want, "{reference}");
        }
        let again = format!("{p}/x");
        assert_eq!(places().rewrite(&again), again);
    }

    #[tokio::test]
    async fn packed_pages_are_packed_again() {
        let mut packed = GzEncoder::new(vec![], Compression::default());
        packed.write_all(b"<a href=\"/x\">x</a>").unwrap();
        let page = http::Response::builder()
            .header(CONTENT_TYPE, "text/html; charset=utf-8")
            .header(CONTENT_ENCODING, "gzip")
            .header("access-control-allow-origin", "*")
            .body(Body::from(packed.finish().unwrap()))
            .unwrap();
        let answer = places().answer(page);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
        let bytes = answer.into_body().read(1 << 20).await.unwrap().unwrap();
        let mut plain = GzDecoder::new(vec![]);
        plain.write_all(&bytes).unwrap();
        let plain = String::from_utf8(plain.finish().unwrap()).unwrap();
        assert_eq!(plain, format!("<a href=\"{}/x\">x</a>", places().prefix));
    }

    #[tokio::test]
    async fn other_answers_pass_as_they_are() {
        let text = http::Response::builder()
            .header(CONTENT_TYPE, "text/plain")
            .body(Body::from("<a href=\"/x\">"))
            .unwrap();
        let bytes = places().answer(text).into_body().read(1 << 10).await.unwrap().unwrap();
        assert_eq!(bytes, "<a href=\"/x\">");
    }
}
