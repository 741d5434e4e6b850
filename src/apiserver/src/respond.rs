//! Answers: objects, lists and statuses in the form the client accepts.

use apimachinery::Status;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{HeaderName, StatusCode};
use serde_json::Value;

use crate::attributes::Warnings;
use crate::body::{Body, Response};
use crate::negotiate::{self, Accepted, Endpoint, Format};
use crate::protobuf;

const WARNING: HeaderName = http::header::WARNING;

/// JSON text as a body in the accepted format.
pub fn render(json: Bytes, accepted: Accepted) -> Bytes {
    if accepted.format == Format::Json && !accepted.pretty {
        return json;
    }
    let Ok(value) = serde_json::from_slice::<Value>(&json) else { return json };
    render_value(&value, accepted)
}

/// A value as a body in the accepted format.
pub fn render_value(value: &Value, accepted: Accepted) -> Bytes {
    match accepted.format {
        Format::Yaml => serde_saphyr::to_string(value).unwrap_or_default().into(),
        Format::Json if accepted.pretty => {
            let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
            text.push(b'\n');
            text.into()
        }
        // What has no protobuf form was not negotiated to be in it.
        Format::Protobuf => protobuf::value(value).unwrap_or_default(),
        Format::Json => serde_json::to_vec(value).unwrap_or_default().into(),
    }
}

/// An answer with a body.
pub fn answer(code: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON text in the accepted format.
pub fn json(code: StatusCode, text: Bytes, accepted: Accepted) -> Response {
    answer(code, accepted.content_type(), render(text, accepted))
}

/// A value in the accepted format.
pub fn value(code: StatusCode, value: &Value, accepted: Accepted) -> Response {
    answer(code, accepted.content_type(), render_value(value, accepted))
}

/// A failure in the accepted format.
pub fn failure(status: &Status, accepted: Accepted) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let value = serde_json::to_value(status).unwrap_or_default();
    let accepted = Accepted { shape: crate::negotiate::Shape::Object, ..accepted };
    let mut response = self::value(code, &value, accepted);
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

/// A failure in the first form that the client asks for and a failure has; otherwise in JSON for people.
///
/// Source: `WriteObjectNegotiated` and `WriteRawJSON` of apiserver's `responsewriters`.
pub fn refusal(status: &Status, asked: Option<&str>, pretty: bool) -> Response {
    if let Ok(accepted) = negotiate::accept(asked, Endpoint::PLAIN) {
        return failure(status, Accepted { pretty: accepted.pretty || pretty, ..accepted });
    }
    let mut response = failure(status, Accepted::default());
    *response.body_mut() = serde_json::to_vec_pretty(status).unwrap_or_default().into();
    response
}

/// Plain text, as health checks answer.
pub fn text(code: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = answer(code, "text/plain; charset=utf-8", text);
    response
        .headers_mut()
        .insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Adds the warnings as `Warning: 299 - "…"` headers.
pub fn add_warnings(response: &mut Response, warnings: &Warnings) {
    for text in warnings.list() {
        let mut quoted = String::with_capacity(text.len() + 10);
        quoted.push_str("299 - \"");
        for c in text.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
