//! Admission of requests that open a connection: it sees their options as an object.
//!
//! Source: `ConnectResource` of apiserver, the options' kinds in `k8s.io/api/core/v1`.

use apimachinery::Status;
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::gate::Operation;
use crate::options::Query;
use crate::rest::Call;

/// Asks admission about the request; `path` is what is asked of a proxied server.
pub async fn admit(call: &Call, path: &str) -> Result<(), Status> {
    let mut options = options(&call.ctx, &call.query, path);
    let gate = call.server.gate();
    gate.mutate(&call.ctx, Operation::Connect, Some(&mut options), None).await?;
    gate.validate(&call.ctx, Operation::Connect, Some(&options), None).await
}

fn options(ctx: &RequestContext, query: &Query, path: &str) -> Value {
    let kind = match (ctx.plural.as_str(), ctx.subresource.as_str()) {
        (_, "exec") => "PodExecOptions",
        (_, "attach") => "PodAttachOptions",
        (_, "portforward") => "PodPortForwardOptions",
        ("pods", _) => "PodProxyOptions",
        ("services", _) => "ServiceProxyOptions",
        _ => "NodeProxyOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match ctx.subresource.as_str() {
        "exec" | "attach" => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(flag) {
                    options[flag] = true.into();
                }
            }
            if !query.get("container").is_empty() {
                options["container"] = query.get("container").into();
            }
            if ctx.subresource == "exec" {
                options["command"] = query.all("command").collect();
            }
        }
        "portforward" => {
            let ports = query.all("ports").flat_map(|ports| ports.split(','));
            let ports: Vec<u16> = ports.filter_map(|port| port.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = ports.into();
            }
        }
        _ if !path.is_empty() => options["path"] = path.into(),
        _ => {}
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_an_object() {
        let of = |plural: &str, subresource: &str, query: &str, path: &str| {
            let ctx = RequestContext {
                plural: plural.into(),
                subresource: subresource.into(),
                ..RequestContext::default()
            };
            options(&ctx, &Query::parse(Some(query)), path)
        };
        let v1 = "v1";
        for (got, want) in [
            (
                of("pods", "exec", "command=a&command=b&stdout=true&container=c", ""),
                json!({"kind": "PodExecOptions", "apiVersion": v1, "stdout": true, "container": "c", "command": ["a", "b"]}),
            ),
            (
                of("pods", "attach", "stdin=true&tty=false", ""),
                json!({"kind": "PodAttachOptions", "apiVersion": v1, "stdin": true}),
            ),
            (
                of("pods", "portforward", "ports=80,81", ""),
                json!({"kind": "PodPortForwardOptions", "apiVersion": v1, "ports": [80, 81]}),
            ),
            (
                of("services", "proxy", "a=b", "/x"),
                json!({"kind": "ServiceProxyOptions", "apiVersion": v1, "path": "/x"}),
            ),
        ] {
            assert_eq!(got, want);
        }
    }
}
