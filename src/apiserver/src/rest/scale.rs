//! The `scale` subresource: replicas of a workload as `autoscaling/v1` `Scale`.
//!
//! Source: `ScaleREST` of the workloads' storage in `k8s.io/kubernetes/pkg/registry/apps`.

use apimachinery::labels::Selector;
use apimachinery::{Status, field, meta};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::negotiate;
use crate::object::Object;
use crate::options::{FieldValidation, WriteOptions};
use crate::registry::{Change, UpdateRules};
use crate::resource::Resource;
use crate::respond;

const SCALE: Expected<'static> = Expected::builtin("autoscaling", "v1", "Scale");

/// `get`, `update` and `patch` of the scale.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let registry = call.server.registry.clone();
    let resource = call.resource.clone();
    if call.ctx.verb == "get" {
        registry.sync().await?;
        let object = registry
            .get(&resource.group, &resource.plural, &call.ctx.namespace, &call.ctx.name)
            .ok_or_else(|| absent(&resource, &call.ctx.name))?;
        let object = registry.at_version(&resource, object).await?;
        let scale = scale_of(&resource, &object.to_value())?;
        return Ok(respond::value(StatusCode::OK, &scale, call.accepted));
    }
    let applies = super::patch::applies(call);
    let options = if call.ctx.verb == "patch" {
        WriteOptions::parse_patch(&call.query, applies)?
    } else {
        WriteOptions::parse(&call.query, "UpdateOptions")?
    };
    call.ctx.dry_run = options.dry_run;
    call.managed_by(&options);
    let bytes = call.read(body).await?;
    if call.ctx.verb == "patch" && applies {
        return apply(call, &bytes, &options).await;
    }
    let edit: Box<dyn Fn(Value) -> Result<Value, Status> + Send + Sync> =
        if call.ctx.verb == "update" {
            let format = negotiate::body_format(&call.parts.headers)?;
            let scale =
                codec::decode(&bytes, format, SCALE, options.field_validation, &call.ctx.warnings)?;
            super::update::check_name(&scale, &call.ctx.name)?;
            Box::new(move |_| Ok(scale.clone()))
        } else {
            super::patch::editor(call, &bytes, SCALE, options.field_validation)?
        };
    let mut change = |old: Option<&Value>| {
        let before = old;
        let old = old.cloned().unwrap_or_default();
        let scale = edit(scale_of(&resource, &old)?)?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let path = field::Path::new("spec").child("replicas");
            let error =
                field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", meta::name(&scale), &[error]));
        }
        let mut object = old;
        match resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
            Some(paths) => paths.set(&mut object, replicas),
            None => {
                meta::child_mut(&mut object, "spec").insert("replicas".into(), replicas.into());
            }
        }
        match meta::resource_version(&scale).to_owned() {
            version if version.is_empty() => {
                drop(meta::remove(&mut object, "resourceVersion"));
            }
            version => meta::set(&mut object, "resourceVersion", version),
        }
        call.track(before, &mut object);
        Ok(object)
    };
    write(call, &mut change).await
}

/// That there is no such scale: upstream's own workloads speak of the subresource.
fn absent(resource: &Resource, name: &str) -> Status {
    let suffix = if resource.custom.is_some() { "" } else { "/scale" };
    Status::not_found(&resource.group, &format!("{}{suffix}", resource.plural), name)
}

/// Changes the workload and answers with its scale.
async fn write(call: &Call, change: &mut Change<'_>) -> Result<Response, Status> {
    let mut ctx = call.ctx.clone();
    // The workload's own strategy applies, not that of a status.
    ctx.subresource = String::new();
    let (object, _): (std::sync::Arc<Object>, bool) = call
        .server
        .registry
        .update_through(&ctx, UpdateRules::default(), call.server.gate(), change)
        .await?;
    let scale = scale_of(&call.resource, &object.to_value())?;
    Ok(respond::value(StatusCode::OK, &scale, call.accepted))
}

/// An applied scale is an applied workload that says nothing but its replicas.
async fn apply(call: &Call, bytes: &Bytes, options: &WriteOptions) -> Result<Response, Status> {
    let scale = super::managed::configuration(call, bytes, options.field_validation)?;
    let found = meta::api_version(&scale);
    if found != "autoscaling/v1" {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {found}, expected: autoscaling/v1"
        )));
    }
    let mut config = json!({
        "apiVersion": call.resource.api_version(),
        "kind": call.resource.kind,
        "metadata": {"name": call.ctx.name},
    });
    if let Some(replicas) = scale.pointer("/spec/replicas") {
        match call.resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
            Some(paths) => paths.set(&mut config, replicas.as_i64().unwrap_or(0)),
            None => config["spec"] = json!({"replicas": replicas}),
        }
    }
    let force = options.force == Some(true);
    let mut change =
        |old: Option<&Value>| call.applied(old, &config, force, FieldValidation::Ignore);
    write(call, &mut change).await
}

fn scale_of(resource: &Resource, object: &Value) -> Result<Value, Status> {
    if let Some(paths) = resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        return paths.scale_of(resource, object);
    }
    Ok(workload_scale(object))
}

/// What a scale has of its object's metadata.
pub fn metadata_of(object: &Value) -> serde_json::Map<String, Value> {
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::metadata(object).get(key) {
            metadata.insert(key.into(), value.clone());
        }
    }
    metadata
}

fn workload_scale(object: &Value) -> Value {
    let selector = object.pointer("/spec/selector");
    let text = match selector {
        // Replication controllers select by a plain map.
        Some(Value::Object(map))
            if !map.contains_key("matchLabels") && !map.contains_key("matchExpressions") =>
        {
            Selector::from_map(map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))))
                .to_string()
        }
        selector => {
            Selector::from_label_selector(selector).map(|s| s.to_string()).unwrap_or_default()
        }
    };
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let metadata = metadata_of(object);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": number("/status/replicas")},
    });
    if number("/spec/replicas") != 0 {
        scale["spec"]["replicas"] = number("/spec/replicas").into();
    }
    if !text.is_empty() {
        scale["status"]["selector"] = text.into();
    }
    scale
}
