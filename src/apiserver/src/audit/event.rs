//! `audit.k8s.io/v1` `Event`.

use apimachinery::{meta, time};
use http::header::USER_AGENT;
use serde_json::{Map, Value, json};

use super::{Level, Record, Stage, State};
use crate::attributes::RequestContext;
use crate::subresources::user_value;
use crate::zero::Zero;

/// What is known when a request comes.
pub fn head(ctx: &RequestContext, parts: &http::request::Parts, level: Level, id: &str) -> Value {
    let uri = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut head = json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": level.name(),
        "auditID": id,
        "stage": "",
        "requestURI": uri,
        "verb": ctx.verb,
        "user": user_value(&ctx.user),
        "sourceIPs": sources(parts),
        "requestReceivedTimestamp": time::now_micros(),
    });
    if let Some(agent) = parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()) {
        head["userAgent"] = agent.chars().take(1024).collect::<String>().into();
    }
    if ctx.is_resource_request() {
        let mut reference = Map::new();
        for (key, value) in [
            ("resource", &ctx.plural),
            ("namespace", &ctx.namespace),
            ("name", &ctx.name),
            ("apiGroup", &ctx.group),
            ("apiVersion", &ctx.version),
            ("subresource", &ctx.subresource),
        ] {
            if !value.is_empty() {
                reference.insert(key.into(), value.as_str().into());
            }
        }
        head["objectRef"] = reference.into();
    }
    head
}

/// The addresses that the request is said to come from, the nearest last.
fn sources(parts: &http::request::Parts) -> Vec<String> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let mut all: Vec<String> = header("x-forwarded-for")
        .or_else(|| header("x-real-ip"))
        .unwrap_or_default()
        .split(',')
        .map(|address| address.trim().to_owned())
        .filter(|address| address.parse::<std::net::IpAddr>().is_ok())
        .collect();
    if let Some(peer) = parts.extensions.get::<std::net::SocketAddr>() {
        all.push(peer.ip().to_string());
    }
    all
}

/// The event of one stage.
pub fn complete(record: &Record, state: &State, stage: Stage, code: Option<u16>) -> Value {
    let mut event = record.head.clone();
    event["stage"] = stage.name().into();
    event["stageTimestamp"] = time::now_micros().into();
    if let Some(user) = &state.impersonated {
        event["impersonatedUser"] = user.clone();
    }
    if let Some(code) = code {
        let mut status = json!({"metadata": {}, "code": code});
        if let Some(said) = state.response.as_ref().filter(|said| meta::kind(said) == "Status") {
            for key in ["status", "message", "reason", "details"] {
                if said[key].is_set() {
                    status[key] = said[key].clone();
                }
            }
        }
        event["responseStatus"] = status;
    }
    if let Some(object) = &state.request {
        event["requestObject"] = object.clone();
        complete_reference(&mut event["objectRef"], object);
    }
    if let Some(object) = state.response.as_ref().filter(|_| record.level >= Level::RequestResponse)
    {
        event["responseObject"] = object.clone();
        if event["objectRef"]["name"].is_null() && meta::kind(object) != "Status" {
            complete_reference(&mut event["objectRef"], object);
        }
    }
    if !state.annotations.is_empty() {
        event["annotations"] = json!(state.annotations);
    }
    event
}

/// Names the object of a create, whose URL does not.
fn complete_reference(reference: &mut Value, object: &Value) {
    if !reference.is_object() || !object["metadata"].is_object() {
        return;
    }
    for key in ["name", "uid", "resourceVersion"] {
        let value = object["metadata"][key].text();
        if reference[key].text().is_empty() && !value.is_empty() {
            reference[key] = value.into();
        }
    }
    if let Some(map) = reference.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}
