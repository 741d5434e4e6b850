//! Paths that are not about objects: discovery, OpenAPI, health, version, metrics.

use std::sync::Arc;

use apimachinery::Status;
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::body::Response;
use crate::negotiate::{self, Endpoint};
use crate::options::Query;
use crate::pki::jwt;
use crate::server::Server;
use crate::zero::Zero;
use crate::{discovery, metrics, respond, rest, statusz, version};

/// Answers a path that is not about objects.
pub async fn serve(server: &Arc<Server>, parts: &Parts, query: &Query) -> Result<Response, Status> {
    let path = parts.uri.path();
    if let Some(response) = server.health.serve(path, query, &server.registry).await {
        return Ok(response);
    }
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(rest::method_not_allowed());
    }
    let trimmed = path.trim_matches('/');
    if trimmed == "metrics" {
        let text = server.metrics.text();
        return Ok(respond::answer(StatusCode::OK, metrics::CONTENT_TYPE, text));
    }
    if trimmed == "metrics/slis" {
        return Ok(respond::answer(StatusCode::OK, metrics::CONTENT_TYPE, server.health.slis()));
    }
    if trimmed == "statusz" {
        return statusz::serve(&server.health, &parts.headers);
    }
    if let Some(name) = trimmed.strip_prefix("debug/api_priority_and_fairness/")
        && let Some(text) = server.flow.dump(name)
    {
        return Ok(respond::answer(StatusCode::OK, "text/plain; charset=utf-8", text));
    }
    if trimmed == "api" || trimmed == "apis" {
        let served = server.registry.served();
        let legacy = trimmed == "api";
        if let Some(response) = server.aggregator.serve_aggregated(&served, &parts.headers, legacy)
        {
            return Ok(response);
        }
    }
    let served = server.registry.served();
    if let Some(response) = server.aggregator.openapi(&served, trimmed, &parts.headers) {
        return Ok(response);
    }
    let Some(value) = document(server, trimmed) else { return nothing(server, path) };
    let mut accepted = negotiate::accept(negotiate::asked(&parts.headers), Endpoint::PLAIN)?;
    accepted.pretty |= crate::server::wants_pretty(parts, query);
    Ok(discovery::answer(&value, accepted))
}

/// Answers a path at which nothing is: with a status beneath what the built-in groups' own router answers for,
/// with a bare page anywhere else, where custom resources are looked up last.
///
/// Source: `director.ServeHTTP` of `k8s.io/apiserver/pkg/server/handler.go`, and `notfoundhandler`.
pub fn nothing(server: &Server, path: &str) -> Result<Response, Status> {
    let mut segments = path.split('/').skip(1);
    let routed = match segments.next() {
        Some("api") => true,
        Some("apis") => segments.next().is_some_and(|group| {
            let served = server.registry.served();
            served.all().iter().any(|r| r.custom.is_none() && r.group == group)
        }),
        _ => false,
    };
    if routed {
        return Err(rest::not_found_path());
    }
    Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n"))
}

fn document(server: &Server, path: &str) -> Option<Value> {
    let served = &*server.registry.served();
    let segments: Vec<&str> = path.split('/').collect();
    match segments.as_slice() {
        [""] => Some(json!({"paths": root_paths(server)})),
        ["version"] => Some(version::info()),
        ["api"] => Some(discovery::legacy_versions(&server.advertise)),
        ["apis"] => Some(server.aggregator.groups(served)),
        ["api", version] => discovery::resources(served, "", version),
        ["apis", group] => server.aggregator.group(served, group),
        ["apis", group, version] => discovery::resources(served, group, version),
        [".well-known", "openid-configuration"] => {
            Some(jwt::openid_configuration(&server.advertise))
        }
        ["openid", "v1", "jwks"] => Some(server.jwks.clone()),
        _ => None,
    }
}

/// The list at `/`.
fn root_paths(server: &Server) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/statusz",
        "/version",
    ]
    .map(String::from)
    .to_vec();
    let groups = server.aggregator.groups(&server.registry.served());
    for group in groups["groups"].items() {
        paths.push(format!("/apis/{}", group["name"].text()));
        let versions = group["versions"].items().iter();
        paths.extend(versions.map(|v| format!("/apis/{}", v["groupVersion"].text())));
    }
    paths.sort();
    paths
}
