//! What hangs below objects and is more than a part of them: bindings, evictions, tokens, reviews, and
//! the connections that end at a kubelet.

mod binding;
mod component_status;
mod connect;
mod eviction;
mod html;
pub mod kubelet;
pub mod metrics;
mod pod;
mod proxy;
pub mod relay;
mod reviews;
mod rewrite;
pub mod sniff;
#[cfg(test)]
mod tests;
mod token;

pub use reviews::{user_value, verb_of};

use apimachinery::Status;
use http::StatusCode;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::negotiate;
use crate::options::WriteOptions;
use crate::respond;
use crate::rest::Call;

/// Whether the request is for this module.
pub fn handles(ctx: &RequestContext) -> bool {
    matches!(
        (ctx.group.as_str(), ctx.plural.as_str(), ctx.subresource.as_str()),
        ("", "pods", "binding" | "eviction" | "log" | "exec" | "attach" | "portforward" | "proxy",)
            | ("", "nodes" | "services", "proxy")
            | ("", "bindings" | "componentstatuses", "")
            | ("", "serviceaccounts", "token")
            | (metrics::GROUP | "authentication.k8s.io" | "authorization.k8s.io", _, "")
    )
}

/// Answers the request.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    match (call.ctx.group.as_str(), call.ctx.plural.as_str(), call.ctx.subresource.as_str()) {
        ("", "pods", "binding") | ("", "bindings", _) => binding::serve(call, body).await,
        ("", "componentstatuses", _) => component_status::serve(call).await,
        ("", "pods", "eviction") => eviction::serve(call, body).await,
        ("", "serviceaccounts", "token") => token::serve(call, body).await,
        ("", "pods", "log") => pod::log(call, body).await,
        ("", "pods", "exec" | "attach") => pod::remote_command(call, body).await,
        ("", "pods", "portforward") => pod::port_forward(call, body).await,
        ("", "pods" | "services", "proxy") => proxy::serve(call, body).await,
        ("", "nodes", "proxy") => pod::node_proxy(call, body).await,
        (metrics::GROUP, _, _) => metrics::serve(call).await,
        _ => reviews::serve(call, body).await,
    }
}

/// Reads the body of a create as the kind `expected`, and the options beside it.
async fn read(call: &mut Call, body: Body, expected: Expected<'_>) -> Result<Value, Status> {
    let format = negotiate::body_format(&call.parts.headers)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    call.ctx.dry_run = options.dry_run;
    let bytes = call.read(body).await?;
    codec::decode(&bytes, format, expected, options.field_validation, &call.ctx.warnings)
}

fn created(call: &Call, value: &Value) -> Response {
    respond::value(StatusCode::CREATED, value, call.accepted)
}

/// `Status` that says it is done, as writes without an object answer.
fn done(call: &Call) -> Response {
    let mut value = serde_json::to_value(Status::success(apimachinery::status::Details::default()))
        .unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.remove("details");
    }
    value["code"] = 201.into();
    created(call, &value)
}
