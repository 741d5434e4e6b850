//! `componentstatuses`: whether the store and the other parts of the control plane answer.
//!
//! Source: `pkg/registry/core/componentstatus`.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use http::StatusCode;
use http::header::ACCEPT;
use serde_json::{Value, json};

use crate::body::{Body, Response};
use crate::object::Object;
use crate::pki::tls::Anybody;
use crate::rest::{Call, list};
use crate::server::Server;
use crate::webhook::Target;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Name and port of the parts that may be other programs on this host.
const OTHERS: [(&str, u16); 2] = [("controller-manager", 10257), ("scheduler", 10259)];

/// Answers a list, or one of them.
pub async fn serve(call: &Call) -> Result<Response, Status> {
    let mut all = vec![status("etcd-0", store(&call.server).await)];
    for (name, port) in OTHERS {
        let health = if call.server.in_process.iter().any(|part| part == name) {
            // When a part of this process ends, the process does.
            Ok(())
        } else {
            other(&call.server, port).await
        };
        all.push(status(name, health));
    }
    all.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
    let name = call.ctx.name.as_str();
    if !name.is_empty() {
        all.retain(|status| status["metadata"]["name"] == name);
        if all.is_empty() {
            return Err(Status::not_found("", "componentstatuses", name));
        }
    }
    let objects = all
        .iter()
        .map(|status| {
            let bytes = serde_json::to_vec(status).map_err(Status::internal)?;
            Object::from_stored(bytes.into(), 0, &[]).map(Arc::new).map_err(Status::internal)
        })
        .collect::<Result<Vec<Arc<Object>>, Status>>()?;
    call.ctx.warnings.add("v1 ComponentStatus is deprecated in v1.19+");
    match (name, objects.as_slice()) {
        ("", _) => Ok(list::answer(call, objects, 0, None)),
        (_, [object, ..]) => Ok(call.object(StatusCode::OK, object)),
        (name, []) => Err(Status::not_found("", "componentstatuses", name)),
    }
}

async fn store(server: &Server) -> Result<(), String> {
    let revision = server.registry.store().revision();
    match tokio::time::timeout(TIMEOUT, revision).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("context deadline exceeded".into()),
    }
}

/// The health of another program on this host.
async fn other(server: &Server, port: u16) -> Result<(), String> {
    let target = Target::of_url(&format!("https://127.0.0.1:{port}/healthz"))
        .map_err(|error| error.to_string())?;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let request = http::Request::get("/").header(ACCEPT, "*/*");
    let webhooks = server.registry.webhooks();
    match webhooks.send(&target, tls, request, Body::Empty, TIMEOUT).await {
        Ok((code, _)) if code.is_success() => Ok(()),
        Ok((code, body)) => Err(format!("{code}: {}", String::from_utf8_lossy(&body))),
        Err(error) => Err(error.to_string()),
    }
}

fn status(name: &str, health: Result<(), String>) -> Value {
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => json!({"type": "Healthy", "status": "False", "message": error}),
    };
    json!({"metadata": {"name": name}, "conditions": [condition]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Fixture;

    #[tokio::test]
    async fn the_store_and_the_others_are_told_apart() {
        let f = Fixture::new().await;
        let list = f.get("/api/v1/componentstatuses").await;
        let told: Vec<(String, String)> = list.body["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|item| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&item["metadata"]["name"]), text(&item["conditions"][0]["status"]))
            })
            .collect();
        let want = [("controller-manager", "True"), ("etcd-0", "True"), ("scheduler", "False")];
        assert_eq!(told, want.map(|(a, b)| (a.to_owned(), b.to_owned())), "{}", list.body);
        assert_eq!(f.get("/api/v1/componentstatuses/etcd-0").await.code, 200);
        assert_eq!(f.get("/api/v1/componentstatuses/x").await.code, 404);
    }
}
