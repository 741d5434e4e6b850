//! The `scale` subresource: replicas of a workload as `autoscaling/v1` `Scale`.
//!
//! Source: `ScaleREST` of the workloads' storage in `k8s.io/kubernetes/pkg/registry/apps`.

use apimachinery::labels::Selector;
use apimachinery::{Status, field, meta};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use http::StatusCode;
use serde_json::{Value, json};

use super::Call;
use crate::attributes::RequestContext;
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::custom::scale::Paths;
use crate::gate::{Gate, Operation};
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
        let scale = edit(scale_before(&resource, &old))?;
        let replicas = replicas_of(&scale);
        if replicas < 0 {
            let path = field::Path::new("spec").child("replicas");
            let error =
                field::Error::invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", meta::name(&scale), &[error]));
        }
        let mut object = old;
        set_replicas(&resource, &mut object, replicas);
        match meta::resource_version(&scale).to_owned() {
            version if version.is_empty() => {
                drop(meta::remove(&mut object, "resourceVersion"));
            }
            version => meta::set(&mut object, "resourceVersion", version),
        }
        if is_owned(&resource, before) {
            call.track(before, &mut object);
        }
        Ok(object)
    };
    write(call, &mut change).await
}

/// Whether anybody owns the number of replicas: otherwise nobody comes to own it by a change of the scale.
///
/// Source: `ScaleHandler` and `skipNonAppliedManager` of `managedfields`.
fn is_owned(resource: &Resource, object: Option<&Value>) -> bool {
    let custom = resource.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let pointer = custom.map_or_else(|| "/f:spec/f:replicas".to_owned(), Paths::owned_as);
    let entries = object.and_then(|object| meta::metadata(object).get("managedFields"));
    let entries = entries.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    entries.iter().any(|entry| entry["fieldsV1"].pointer(&pointer).is_some())
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
    let gate = ScaleGate { gate: call.server.gate(), resource: &call.resource };
    let (object, _): (std::sync::Arc<Object>, bool) =
        call.server.registry.update_through(&ctx, UpdateRules::default(), &gate, change).await?;
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

fn replicas_of(scale: &Value) -> i64 {
    scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0)
}

fn set_replicas(resource: &Resource, object: &mut Value, replicas: i64) {
    match resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(paths) => paths.set(object, replicas),
        None => {
            meta::child_mut(object, "spec").insert("replicas".into(), replicas.into());
        }
    }
}

/// Admission of a scale: it sees scales, and not the workloads that are written.
struct ScaleGate<'c> {
    gate: &'c dyn Gate,
    resource: &'c Resource,
}

impl ScaleGate<'_> {
    fn asked(ctx: &RequestContext) -> RequestContext {
        RequestContext { subresource: "scale".into(), ..ctx.clone() }
    }
}

impl Gate for ScaleGate<'_> {
    fn mutate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a mut Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let before = old.map(|old| scale_before(self.resource, old));
            let Some(object) = object else { return Ok(()) };
            let mut scale = scale_before(self.resource, object);
            let wanted = replicas_of(&scale);
            let ctx = Self::asked(ctx);
            self.gate.mutate(&ctx, operation, Some(&mut scale), before.as_ref()).await?;
            if replicas_of(&scale) != wanted {
                set_replicas(self.resource, object, replicas_of(&scale));
            }
            Ok(())
        }
        .boxed()
    }

    fn validate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let seen = |object: Option<&Value>| object.map(|o| scale_before(self.resource, o));
            let (object, old) = (seen(object), seen(old));
            let ctx = Self::asked(ctx);
            self.gate.validate(&ctx, operation, object.as_ref(), old.as_ref()).await
        }
        .boxed()
    }
}

fn scale_before(resource: &Resource, object: &Value) -> Value {
    match resource.custom.as_ref().and_then(|custom| custom.scale.as_ref()) {
        Some(paths) => paths.scale_before(object),
        None => workload_scale(object),
    }
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
