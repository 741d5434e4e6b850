//! A request for another server: sent on with the user's name in headers that the front proxy's
//! certificate makes believable.

use std::time::Duration;

use apimachinery::Status;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;

use super::{Aggregator, Remote};
use crate::attributes::UserInfo;
use crate::body::{Body, Response};
use crate::respond;
use crate::subresources::{relay, sniff};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

impl Aggregator {
    /// Passes a request on and its answer back.
    pub async fn relay(
        &self,
        remote: &Remote,
        user: &UserInfo,
        mut parts: http::request::Parts,
        body: Body,
        stopping: CancellationToken,
    ) -> Result<Response, Status> {
        let unavailable =
            || respond::text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n");
        if !remote.available {
            return Ok(unavailable());
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let Ok(target) = remote.target(&self.registry, &path) else { return Ok(unavailable()) };
        let failed = |error: String| {
            let text = format!("error trying to reach service: {error}");
            respond::text(StatusCode::SERVICE_UNAVAILABLE, text)
        };
        let tls = match self.tls(remote) {
            Ok(tls) => tls,
            Err(error) => return Ok(failed(error.to_string())),
        };
        let connect = self.registry.webhooks().connect(&target, tls, "Get");
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Ok(failed(error.to_string())),
            Err(_) => return Ok(failed("i/o timeout".into())),
        };
        identify(&mut parts.headers, user);
        let broken = |error: hyper::Error| {
            Status::unavailable(format!("error trying to reach service: {error}"))
        };
        let answer =
            relay::relay(stream, &path, &target.host, parts, body, stopping, broken).await?;
        Ok(sniff::named(answer).await)
    }
}

/// Says in `headers` who asks, and drops what a client claims about it.
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        else {
            return;
        };
        headers.append(name, value);
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        for value in values {
            add(&name, value);
        }
    }
}

/// A key as part of a header's name: what may not stand there is percent-encoded.
fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes()
        .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_server_says_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        let mut user = UserInfo::new("jane", &["dev"]);
        user.extra.insert("acme.io/cost%".into(), vec!["1".into(), "2".into()]);
        identify(&mut headers, &user);
        assert_eq!(headers["x-remote-user"], "jane");
        let all = |name: &str| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-acme.io%2Fcost%25"), ["1", "2"]);
        assert!(!headers.contains_key("x-remote-extra-a"));
    }
}
