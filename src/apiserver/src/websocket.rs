//! Watches and logs over a WebSocket, for clients that ask for one, as browsers do.
//!
//! Source: `WatchServer.HandleWS` and `wsstream.Reader` of apiserver.

use apimachinery::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::StatusCode;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use crate::authn::TOKEN_PROTOCOL;
use crate::body::{Body, BoxError, Response};

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// The words of a header that is a list.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// Whether the client wants to go on with a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let has = |name, token: &str| words(headers, name).any(|w| w.eq_ignore_ascii_case(token));
    has(UPGRADE, "websocket")
        && has(CONNECTION, "upgrade")
        && headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// The subprotocols that the client offers; a token among them is none.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    words(headers, SEC_WEBSOCKET_PROTOCOL).filter(|word| !word.starts_with(TOKEN_PROTOCOL))
}

/// Answers with the events of a watch, one in each message. A chunk of `events` is of whole events.
pub fn watch<S>(
    parts: &mut http::request::Parts,
    protobuf: bool,
    events: S,
    stopping: CancellationToken,
) -> Result<Response, Status>
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    let protocol = offered(&parts.headers).next().unwrap_or_default().to_owned();
    let messages = events
        .take_while(|chunk| std::future::ready(chunk.is_ok()))
        .flat_map(move |chunk| futures::stream::iter(split(chunk.unwrap_or_default(), protobuf)));
    switch(parts, &protocol, messages, stopping)
}

/// Answers with a stream of bytes, in binary messages or in base64.
pub fn bytes(
    parts: &mut http::request::Parts,
    body: Body,
    stopping: CancellationToken,
) -> Result<Response, Status> {
    let protocol = match offered(&parts.headers).collect::<Vec<_>>().as_slice() {
        [] => "",
        all => *[BINARY, BASE64].iter().find(|served| all.contains(served)).ok_or_else(|| {
            Status::bad_request(format!("none of the subprotocols is served: {}", all.join(", ")))
        })?,
    };
    let message = move |bytes: Bytes| match protocol {
        BASE64 => Message::Text(STANDARD.encode(&bytes).into()),
        _ => Message::Binary(bytes),
    };
    // The first is empty: it tells that the stream has begun.
    let first = futures::stream::iter([message(Bytes::new())]);
    let rest = http_body_util::BodyDataStream::new(body)
        .take_while(|chunk| std::future::ready(chunk.is_ok()))
        .map(move |chunk| message(chunk.unwrap_or_default()));
    switch(parts, protocol, first.chain(rest), stopping)
}

/// The messages of a chunk: lines of JSON, or what follows the lengths of protobuf.
fn split(mut chunk: Bytes, protobuf: bool) -> Vec<Message> {
    let mut messages = Vec::new();
    while !chunk.is_empty() {
        if protobuf {
            let Some(length) = chunk.first_chunk::<4>().map(|b| u32::from_be_bytes(*b) as usize)
            else {
                break;
            };
            let _ = chunk.split_to(4);
            messages.push(Message::Binary(chunk.split_to(length.min(chunk.len()))));
        } else {
            let end = chunk.iter().position(|b| *b == b'\n').map_or(chunk.len(), |at| at + 1);
            messages.extend(Utf8Bytes::try_from(chunk.split_to(end)).map(Message::Text));
        }
    }
    messages
}

fn switch<S>(
    parts: &mut http::request::Parts,
    protocol: &str,
    messages: S,
    stopping: CancellationToken,
) -> Result<Response, Status>
where
    S: Stream<Item = Message> + Send + 'static,
{
    let Some(upgrade) = parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
        return Err(Status::bad_request("the connection cannot switch protocols"));
    };
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key)) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Ok(protocol) = HeaderValue::from_str(protocol)
        && !protocol.is_empty()
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                let stream = TokioIo::new(stream);
                let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = send(socket, messages) => {}
                }
            }
            Err(error) => tracing::debug!(%error, "the client left before its stream began"),
        }
    });
    Ok(response)
}

/// Sends messages until there are no more or the client closes.
async fn send<C, S>(socket: WebSocketStream<C>, messages: S)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    S: Stream<Item = Message>,
{
    let (mut sink, mut said) = socket.split();
    let mut messages = std::pin::pin!(messages);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { break };
                if sink.send(message).await.is_err() {
                    break;
                }
            }
            // Nothing is to be said but good-bye.
            said = said.next() => if !matches!(said, Some(Ok(ref m)) if !m.is_close()) {
                break;
            },
        }
    }
    let _ = sink.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.clone(), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn upgrades_to_a_websocket_are_told_from_others() {
        let key = (SEC_WEBSOCKET_KEY, "x");
        let cases = [
            (vec![(UPGRADE, "WebSocket"), (CONNECTION, "keep-alive, Upgrade"), key.clone()], true),
            (vec![(UPGRADE, "h2c"), (CONNECTION, "Upgrade"), key.clone()], false),
            (vec![(UPGRADE, "websocket"), (CONNECTION, "close"), key], false),
            (vec![(UPGRADE, "websocket"), (CONNECTION, "Upgrade")], false),
        ];
        for (pairs, want) in cases {
            assert_eq!(is_asked(&headers(&pairs)), want, "{pairs:?}");
        }
    }

    #[test]
    fn each_event_is_a_message() {
        let lines = split(Bytes::from_static(b"{\"a\":1}\n{\"b\":2}\n"), false);
        let texts: Vec<&str> = lines.iter().filter_map(|m| m.to_text().ok()).collect();
        assert_eq!(texts, ["{\"a\":1}\n", "{\"b\":2}\n"]);
        let frames = split(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"), true);
        let want: [&'static [u8]; 2] = [b"ab", b"c"];
        assert_eq!(frames, want.map(|b| Message::Binary(Bytes::from_static(b))));
    }

    #[tokio::test]
    async fn messages_arrive_until_the_client_closes() {
        let (client, server) = tokio::io::duplex(1024);
        let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let endless =
            futures::stream::iter([Message::Text("one".into())]).chain(futures::stream::pending());
        let task = tokio::spawn(send(server, endless));
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Text("one".into()));
        client.close(None).await.unwrap();
        task.await.unwrap();
    }
}
