//! Requests to an API server, with kubectl's words for what can go wrong on the way.

use std::collections::HashSet;
use std::sync::Mutex;

use bytes::Bytes;
use futures::{AsyncBufRead, AsyncReadExt, TryStreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::error::{Error, Refusal};

/// What objects are asked for as.
pub const JSON: &str = "application/json";
/// What lists for people are asked for as.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// A connection to an API server.
pub struct Api {
    client: kube::Client,
    /// `host:port`, for messages.
    server: String,
    warned: Mutex<HashSet<String>>,
}

/// A connection over which channels are carried.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

impl Api {
    /// Speaks through `client` with the server at `server`.
    pub fn new(client: kube::Client, server: String) -> Self {
        Self { client, server, warned: Mutex::default() }
    }

    /// What the requests go through.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// GET of an object or list.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(Method::GET, path, JSON, None).await
    }

    /// A request with a JSON body, or one without.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Value, Error> {
        let bytes = self.bytes(method, path, accept, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::wrong(format!("the server's answer is not JSON: {error}")))
    }

    /// As [`Self::json`], the answer as it comes.
    pub async fn bytes(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Bytes, Error> {
        let (kind, body) = body.map_or((None, Vec::new()), |(kind, body)| (Some(kind), body));
        let mut request =
            Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let response = self.send(request.body(body).map_err(unusable)?).await?;
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
        Ok(body.to_bytes())
    }

    /// The answer's body as it comes in.
    pub async fn stream(
        &self,
        path: &str,
        accept: &str,
    ) -> Result<impl AsyncBufRead + Unpin + Send + use<>, Error> {
        let request = Request::get(path).header(header::ACCEPT, accept);
        let response = self.send(request.body(Vec::new()).map_err(unusable)?).await?;
        let chunks = response.into_body().into_data_stream().map_err(std::io::Error::other);
        Ok(Box::pin(chunks).into_async_read())
    }

    /// A connection to a subresource that talks both ways, by one of `protocols`; tells which.
    pub async fn connect(
        &self,
        path: &str,
        protocols: &[&'static str],
    ) -> Result<(Socket, &'static str), Error> {
        let key = handshake::client::generate_key();
        let request = Request::get(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocols.join(", "))
            .body(Vec::new())
            .map_err(unusable)?;
        let response = self.send(request).await.map_err(|error| match error {
            // Not the API server's own words but the kubelet's.
            Error::Refused { refusal, .. } if refusal.body.is_some() => Error::Wrong(format!(
                "unable to upgrade connection: {}",
                refusal.body.unwrap_or_default()
            )),
            other => other,
        })?;
        let named = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
        let chosen = protocols.iter().find(|p| named.is_some_and(|n| n.as_bytes() == p.as_bytes()));
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let right = handshake::derive_accept_key(key.as_bytes());
        let (StatusCode::SWITCHING_PROTOCOLS, Some(chosen)) = (response.status(), chosen) else {
            return Err(Error::wrong(
                "unable to upgrade connection: the server speaks none of the protocols",
            ));
        };
        if accepted.map(HeaderValue::as_bytes) != Some(right.as_bytes()) {
            return Err(Error::wrong(
                "unable to upgrade connection: the server's answer is to another",
            ));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(&error))?;
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        Ok((socket, chosen))
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, Error> {
        let response =
            self.client.send(request.map(Body::from)).await.map_err(|error| self.failed(&error))?;
        self.warn(&response);
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(|error| self.broken(&error))?;
        let refusal = Box::new(Refusal::read(status.as_u16(), &body.to_bytes()));
        Err(Error::Refused { doing: String::new(), refusal })
    }

    /// Passes the server's warnings on, each once.
    fn warn(&self, response: &Response<Body>) {
        for value in response.headers().get_all(header::WARNING) {
            let Some(text) = value.to_str().ok().and_then(warning) else { continue };
            let new = self.warned.lock().is_ok_and(|mut told| told.insert(text.clone()));
            if new {
                eprintln!("Warning: {text}");
            }
        }
    }

    /// Tells what became of a request through [`Self::client`] as of those through this.
    pub fn failed(&self, error: &kube::Error) -> Error {
        if let kube::Error::Api(status) = error {
            let refusal = Refusal {
                code: status.code,
                reason: status.reason.clone(),
                message: status.message.clone(),
                details: serde_json::to_value(&status.details).unwrap_or_default(),
                body: None,
            };
            return Error::Refused { doing: String::new(), refusal: Box::new(refusal) };
        }
        unreached(error, &self.server, |deepest| {
            Error::Plain(format!("Unable to connect to the server: {deepest}"))
        })
    }

    fn broken(&self, error: &dyn std::error::Error) -> Error {
        let deepest = chain(error).last().cloned().unwrap_or_default();
        Error::wrong(format!("lost connection to the server {}: {deepest}", self.server))
    }
}

/// That nobody listens at `server`; else what `otherwise` makes of the deepest reason why it was not reached.
pub fn unreached(
    error: &dyn std::error::Error,
    server: &str,
    otherwise: impl FnOnce(String) -> Error,
) -> Error {
    let chain = chain(error);
    if chain.iter().any(|text| text.contains("onnection refused")) {
        return Error::Plain(format!(
            "The connection to the server {server} was refused - did you specify the right host or port?"
        ));
    }
    otherwise(chain.last().cloned().unwrap_or_default())
}

fn unusable(error: http::Error) -> Error {
    Error::wrong(error.to_string())
}

fn chain(error: &dyn std::error::Error) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        texts.push(error.to_string());
        next = error.source();
    }
    texts
}

/// The text of a warning header: `299 - "text"` (RFC 7234, section 5.5).
fn warning(value: &str) -> Option<String> {
    let quoted = value.strip_prefix("299 ")?.split_once('"')?.1;
    let mut text = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some(text),
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    None
}

/// Reads all that comes.
pub async fn whole(mut reader: impl AsyncBufRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_read() {
        let cases = [
            ("299 - \"old thing\"", Some("old thing")),
            (r#"299 - "say \"x\"" "#, Some("say \"x\"")),
            ("199 - \"other\"", None),
            ("299 - \"open", None),
        ];
        for (value, want) in cases {
            assert_eq!(warning(value).as_deref(), want, "{value}");
        }
    }
}
