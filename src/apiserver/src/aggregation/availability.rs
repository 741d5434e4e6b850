//! Whether the server of an APIService answers.
//!
//! Source: `kube-aggregator/pkg/controllers/status/remote`.

use std::time::Duration;

use apimachinery::{Status, meta};
use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};
use serde_json::Value;

use super::proxy::identify;
use super::{Aggregator, Described, GROUP, PLURAL, Remote};
use crate::attributes::{RequestContext, UserInfo};
use crate::body::Body;
use crate::registry::Registry;
use crate::zero::Zero;

const TIMEOUT: Duration = Duration::from_secs(6);
/// Descriptions of a large server take longer to come.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// The condition `Available`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    fn no(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason, message }
    }

    fn passed() -> Self {
        Self { status: "True", reason: "Passed", message: "all checks passed".into() }
    }

    pub fn is_available(&self) -> bool {
        self.status == "True"
    }
}

/// What the Service and its endpoints say before the server is asked.
pub fn check_service(registry: &Registry, remote: &Remote) -> Option<Verdict> {
    let (namespace, name, port) = (&remote.namespace, &remote.service, remote.port);
    let Some(service) = registry.get("", "services", namespace, name) else {
        let text = format!("service/{name} in {namespace:?} is not present");
        return Some(Verdict::no("ServiceNotFound", text));
    };
    let service = service.to_value();
    if !matches!(service["spec"]["type"].text(), "" | "ClusterIP") {
        return None;
    }
    let Some(found) =
        service["spec"]["ports"].items().iter().find(|p| p["port"].as_u64() == Some(port))
    else {
        let text = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Verdict::no("ServicePortError", text));
    };
    let slices: Vec<Value> = registry
        .list("discovery.k8s.io", "endpointslices", Some(namespace))
        .iter()
        .filter(|s| s.labels.get("kubernetes.io/service-name").is_some_and(|n| n == name))
        .map(|slice| slice.to_value())
        .collect();
    if slices.is_empty() {
        let text = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Verdict::no("EndpointsNotFound", text));
    }
    let answers = slices.iter().any(|slice| {
        let named = slice["ports"].items().iter().any(|p| p["name"].text() == found["name"].text());
        named
            && slice["endpoints"].items().iter().any(|endpoint| {
                endpoint["conditions"]["ready"].as_bool() != Some(false)
                    && !endpoint["addresses"].items().is_empty()
            })
    });
    (!answers).then(|| {
        let text = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {:?}",
            found["name"].text()
        );
        Verdict::no("MissingEndpoints", text)
    })
}

/// Sets the condition, if it says something new.
pub async fn set_available(
    registry: &Registry,
    object: &Value,
    verdict: &Verdict,
) -> Result<(), Status> {
    let same = object["status"]["conditions"].items().iter().any(|condition| {
        condition["type"] == "Available"
            && condition["status"] == verdict.status
            && condition["reason"] == verdict.reason
            && condition["message"] == verdict.message.as_str()
    });
    if same {
        return Ok(());
    }
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return Ok(()) };
    let mut ctx = RequestContext::internal("update", &resource, "", meta::name(object));
    ctx.subresource = "status".into();
    let (status, reason, message) = (verdict.status, verdict.reason, verdict.message.clone());
    registry
        .update_with(&ctx, &move |object| {
            crate::custom::set_condition(object, "Available", status, reason, &message);
            Ok(())
        })
        .await
        .map(drop)
}

impl Aggregator {
    /// Asks the server for the resources of its group.
    pub async fn probe(&self, remote: &Remote) -> (Verdict, Option<Vec<Value>>) {
        if let Some(verdict) = check_service(&self.registry, remote) {
            return (verdict, None);
        }
        match self.fetch(remote, &remote.root(), "application/json", TIMEOUT).await {
            Ok(list) => (Verdict::passed(), Some(list["resources"].items().to_vec())),
            Err(why) => (Verdict::no("FailedDiscoveryCheck", why), None),
        }
    }

    /// The descriptions that the server gives of its group.
    pub async fn describe(&self, remote: &Remote, resources: Option<Vec<Value>>) -> Described {
        let path = format!("/openapi/v3{}", remote.root());
        let get = |path: String| async move {
            self.fetch(remote, &path, "application/json", DESCRIBE_TIMEOUT).await.ok()
        };
        let v3 = get(path).await;
        let v2 = get("/openapi/v2".into()).await;
        Described { resources, v2, v3 }
    }

    async fn fetch(
        &self,
        remote: &Remote,
        path: &str,
        accept: &str,
        timeout: Duration,
    ) -> Result<Value, String> {
        let target = remote.target(&self.registry, path).map_err(|error| error.to_string())?;
        let url = match &target.place {
            crate::webhook::Place::Pods(address) => format!("https://{address}{path}"),
            crate::webhook::Place::Host(host, port) => format!("https://{host}:{port}{path}"),
        };
        let failed = |error: crate::webhook::Error| match error {
            crate::webhook::Error::Timeout(_) => format!("timed out waiting for {url}"),
            error => format!("failing or missing response from {url}: {error}"),
        };
        let tls = self.tls(remote).map_err(failed)?;
        let mut headers = HeaderMap::new();
        let user = UserInfo {
            name: "system:kube-aggregator".into(),
            groups: vec!["system:masters".into()],
            ..UserInfo::default()
        };
        identify(&mut headers, &user);
        let mut request = http::Request::get("/")
            .header(ACCEPT, accept)
            .header(USER_AGENT, "kube-apiserver-aggregator");
        if let Some(map) = request.headers_mut() {
            map.extend(headers);
        }
        let (code, bytes) = self
            .registry
            .webhooks()
            .send(&target, tls, request, Body::Empty, timeout)
            .await
            .map_err(failed)?;
        if !code.is_success() {
            return Err(format!(
                "failing or missing response from {url}: bad status from {url}: {}",
                code.as_u16()
            ));
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| format!("failing or missing response from {url}: {error}"))
    }
}
