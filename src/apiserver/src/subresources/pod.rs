//! Logs of pods, commands in them, their ports: located here, served by their kubelet.
//!
//! Source: `pkg/registry/core/pod/strategy.go` (`LogLocation`, `ExecLocation`, …).

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::{connect, sniff};
use crate::body::{Body, Response};
use crate::options::Query;
use crate::respond;
use crate::rest::Call;
use crate::websocket;
use crate::zero::Zero;

const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

fn find_pod(call: &Call) -> Result<Value, Status> {
    let (namespace, name) = (&call.ctx.namespace, &call.ctx.name);
    call.server
        .registry
        .get("", "pods", namespace, name)
        .map(|pod| pod.to_value())
        .ok_or_else(|| Status::not_found("", "pods", name))
}

/// The container that is meant: the named one, or the only one.
fn container(pod: &Value, wanted: &str) -> Result<String, Status> {
    let name = meta::name(pod);
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list].items().iter().map(|c| c["name"].text()).collect()
    };
    if !wanted.is_empty() {
        return if LISTS.iter().any(|list| names(list).contains(&wanted)) {
            Ok(wanted.to_owned())
        } else {
            Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}")))
        };
    }
    let containers = names("containers");
    if let [only] = containers.as_slice() {
        return Ok((*only).to_owned());
    }
    let mut message = format!("a container name must be specified for pod {name}");
    if !containers.is_empty() {
        message += &format!(", choose one of: [{}]", containers.join(" "));
        let init = names("initContainers");
        if !init.is_empty() {
            message += &format!(" or one of the init containers: [{}]", init.join(" "));
        }
    }
    Err(Status::bad_request(message))
}

fn node_of(pod: &Value) -> Result<&str, Status> {
    match pod["spec"]["nodeName"].text() {
        "" => Err(Status::bad_request(format!(
            "pod {} does not have a host assigned",
            meta::name(pod)
        ))),
        node => Ok(node),
    }
}

async fn relay(call: &mut Call, node: &str, path: &str, body: Body) -> Result<Response, Status> {
    let (empty, ()) = http::Request::new(()).into_parts();
    let parts = std::mem::replace(&mut call.parts, empty);
    call.server.kubelets.relay(node, path, parts, body).await
}

/// `pods/log`
pub async fn log(call: &mut Call, body: Body) -> Result<Response, Status> {
    drop(body);
    let errors = validate_log(&call.query);
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", &call.ctx.name, &errors));
    }
    let pod = find_pod(call)?;
    let container = container(&pod, call.query.get("container"))?;
    let Ok(node) = node_of(&pod) else {
        // What has no place has said nothing.
        return Ok(respond::text(StatusCode::OK, Body::Empty));
    };
    let path = kubelet_path("containerLogs", &pod, Some(&container), &log_query(&call.query));
    let mut client = call.parts.clone();
    call.parts.headers = HeaderMap::new();
    let mut response = relay(call, node, &path, Body::Empty).await?;
    if response.status() == StatusCode::OK {
        if websocket::is_asked(&client.headers) {
            let stopping = call.server.stopping.clone();
            return websocket::bytes(&mut client, response.into_body(), stopping);
        }
        let text = http::HeaderValue::from_static("text/plain");
        response.headers_mut().entry(http::header::CONTENT_TYPE).or_insert(text);
        return Ok(response);
    }
    Err(refusal(response).await)
}

/// A kubelet's refusal in plain text as a `Status`.
async fn refusal(response: Response) -> Status {
    const MAX_BYTES: usize = 4 << 10;
    let code = response.status().as_u16();
    let text = match response.into_body().read(MAX_BYTES).await {
        Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        _ => String::new(),
    };
    if let Ok(status) = serde_json::from_str::<Status>(&text) {
        return status;
    }
    match code {
        400 => Status::bad_request(text),
        404 => Status::failure(404, "NotFound", text),
        code => Status::failure(code.max(400), "InternalError", text),
    }
}

fn validate_log(query: &Query) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut at_least = |key: &str, least: i64, detail: &str| {
        let text = query.get(key);
        if let Ok(number) = text.parse::<i64>()
            && number < least
        {
            errors.push(Error::invalid(&Path::new(key), number, detail));
        }
    };
    at_least("tailLines", 0, "must be greater than or equal to 0");
    at_least("limitBytes", 1, "must be greater than 0");
    at_least("sinceSeconds", 1, "must be greater than 0");
    if !query.get("sinceSeconds").is_empty() && !query.get("sinceTime").is_empty() {
        errors.push(Error::forbidden(
            &Path::new(""),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    errors
}

/// The answer to a request to switch protocols. A kubelet's refusal in plain text goes through as it
/// is, because clients word it themselves; text that they would read as YAML is made a `Status`.
async fn upgraded(response: Response) -> Result<Response, Status> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let status = refusal(response).await;
    if status.message.contains(": ") || status.code < 400 {
        return Err(status);
    }
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok(respond::text(code, status.message))
}

/// `pods/exec` and `pods/attach`
pub async fn remote_command(call: &mut Call, body: Body) -> Result<Response, Status> {
    require_upgrade(call)?;
    let pod = find_pod(call)?;
    let container = container(&pod, call.query.get("container"))?;
    let node = node_of(&pod)?;
    connect::admit(call, "").await?;
    let verb = if call.ctx.subresource == "exec" { "exec" } else { "attach" };
    let path = kubelet_path(verb, &pod, Some(&container), &command_query(&call.query, verb));
    let node = node.to_owned();
    upgraded(relay(call, &node, &path, body).await?).await
}

/// `pods/portforward`
pub async fn port_forward(call: &mut Call, body: Body) -> Result<Response, Status> {
    require_upgrade(call)?;
    let pod = find_pod(call)?;
    let node = node_of(&pod)?;
    connect::admit(call, "").await?;
    let path = kubelet_path("portForward", &pod, None, &port_query(&call.query)?);
    let node = node.to_owned();
    upgraded(relay(call, &node, &path, body).await?).await
}

fn log_query(from: &Query) -> String {
    let mut query = Serializer::new(String::new());
    for flag in ["follow", "previous", "timestamps"] {
        if from.flag(flag) {
            query.append_pair(flag, "true");
        }
    }
    for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if !from.get(key).is_empty() {
            query.append_pair(key, from.get(key));
        }
    }
    query.finish()
}

fn command_query(from: &Query, verb: &str) -> String {
    let mut query = Serializer::new(String::new());
    for (flag, kubelets) in
        [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
    {
        if from.flag(flag) {
            query.append_pair(kubelets, "1");
        }
    }
    if verb == "exec" {
        for word in from.all("command") {
            query.append_pair("command", word);
        }
    }
    query.finish()
}

fn port_query(from: &Query) -> Result<String, Status> {
    let mut query = Serializer::new(String::new());
    for port in from.all("ports").flat_map(|ports| ports.split(',')) {
        if port.parse::<u16>().is_err() {
            return Err(Status::bad_request(format!("unable to parse {port:?} as a port")));
        }
        query.append_pair("port", port);
    }
    Ok(query.finish())
}

fn require_upgrade(call: &Call) -> Result<(), Status> {
    if call.parts.headers.contains_key(http::header::UPGRADE) {
        Ok(())
    } else {
        Err(Status::bad_request("Upgrade request required"))
    }
}

/// `nodes/proxy`: whatever the kubelet serves.
pub async fn node_proxy(call: &mut Call, body: Body) -> Result<Response, Status> {
    let marker = format!("/nodes/{}/proxy", call.ctx.name);
    let rest = call.ctx.path.split_once(marker.as_str()).map_or("", |(_, rest)| rest).to_owned();
    connect::admit(call, &rest).await?;
    let mut path = if rest.starts_with('/') { rest } else { format!("/{rest}") };
    if let Some(query) = call.parts.uri.query() {
        path = format!("{path}?{query}");
    }
    let node = call.ctx.name.split(':').next().unwrap_or_default().to_owned();
    Ok(sniff::named(relay(call, &node, &path, body).await?).await)
}

fn kubelet_path(verb: &str, pod: &Value, container: Option<&str>, query: &str) -> String {
    let (namespace, name) = (meta::namespace(pod), meta::name(pod));
    let mut path = format!("/{verb}/{namespace}/{name}");
    if let Some(container) = container {
        path = format!("{path}/{container}");
    }
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_found_or_asked_for() {
        let pod = |containers: &[&str], init: &[&str]| {
            let list =
                |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            json!({"metadata": {"name": "x"}, "spec": {
                "containers": list(containers), "initContainers": list(init)}})
        };
        let cases = [
            (pod(&["a"], &[]), "", Ok("a")),
            (pod(&["a"], &["i"]), "i", Ok("i")),
            (
                pod(&["a", "b"], &[]),
                "",
                Err("a container name must be specified for pod x, choose one of: [a b]"),
            ),
            (
                pod(&["a", "b"], &["i"]),
                "",
                Err(
                    "a container name must be specified for pod x, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
            (pod(&["a"], &[]), "c", Err("container c is not valid for pod x")),
        ];
        for (pod, wanted, want) in cases {
            let got = container(&pod, wanted).map_err(|status| status.message);
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
        }
    }

    #[test]
    fn paths_are_the_kubelets() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}});
        assert_eq!(kubelet_path("exec", &pod, Some("c"), "tty=1"), "/exec/n/p/c?tty=1");
        assert_eq!(kubelet_path("portForward", &pod, None, ""), "/portForward/n/p");
    }

    #[test]
    fn log_options_are_checked() {
        let errors = |query: &str| validate_log(&Query::parse(Some(query))).len();
        assert_eq!(errors("tailLines=0&limitBytes=1&sinceSeconds=1"), 0);
        assert_eq!(errors("tailLines=-1&limitBytes=0&sinceSeconds=0"), 3);
        assert_eq!(errors("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z"), 1);
    }
}
