//! `patch`: JSON patch, merge patch, strategic merge patch; apply is in `managed`.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

use apimachinery::field::{Error, Path};
use apimachinery::{Status, decode, meta, patch, protobuf};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::update::check_name;
use super::{Call, managed};
use crate::body::{Body, Response};
use crate::codec::{self, Expected, Mistake};
use crate::conversion;
use crate::negotiate;
use crate::options::{FieldValidation, WriteOptions};

const ACCEPTED_CUSTOM: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// What a patch makes of an object.
pub type Editor<'a> = Box<dyn Fn(Value) -> Result<Value, Status> + Send + Sync + 'a>;

/// Reads a patch of an object of kind `expected`.
pub fn editor<'a>(
    call: &Call,
    bytes: &Bytes,
    expected: Expected<'a>,
    validation: FieldValidation,
) -> Result<Editor<'a>, Status> {
    let warnings = call.ctx.warnings.clone();
    let accepted = if expected.custom.is_some() { ACCEPTED_CUSTOM } else { ACCEPTED };
    let reshape = move |value: Value, blame: &dyn Fn(&Value, Mistake) -> Status| {
        if codec::is_shaped(&value, expected) {
            return Ok(value);
        }
        codec::reshape(&value, expected, validation, &warnings).map_err(|told| blame(&value, told))
    };
    let whole = |object: &Value, mistake: Mistake| misshapen(&object.to_string(), mistake);
    match negotiate::content_type(&call.parts.headers) {
        "application/json-patch+json" => {
            let bytes = bytes.clone();
            Ok(Box::new(move |old| {
                let object = patch::json(&old, &bytes).map_err(refused)?;
                reshape(object, &whole)
            }))
        }
        "application/merge-patch+json" => {
            let changes = changes(bytes, "error decoding patch: ")?;
            Ok(Box::new(move |mut object| {
                patch::merge(&mut object, &changes);
                reshape(object, &whole)
            }))
        }
        "application/strategic-merge-patch+json" => {
            let changes = changes(bytes, "")?;
            let known = codec::type_of(expected).filter(|_| expected.custom.is_none());
            let Some((schema, of)) = known else {
                return Err(negotiate::unsupported(accepted));
            };
            Ok(Box::new(move |old| {
                let object = patch::strategic(schema, of, old, changes.clone()).map_err(refused)?;
                reshape(object, &|_, mistake| misshapen(&go_text(&changes), mistake))
            }))
        }
        _ => Err(negotiate::unsupported(accepted)),
    }
}

/// The changed fields of a merge patch; `prefix` stands before what is wrong with it.
fn changes(bytes: &Bytes, prefix: &str) -> Result<Value, Status> {
    let refuse = |why: &dyn std::fmt::Display| Status::bad_request(format!("{prefix}{why}"));
    match decode::json_to_value(bytes).map_err(|error| refuse(&error))? {
        Value::Null => Ok(Value::Object(serde_json::Map::new())),
        changes @ Value::Object(_) => Ok(changes),
        other => Err(refuse(&format_args!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            decode::json_kind(&other)
        ))),
    }
}

/// What a patch made is no object of its kind: the patch is to blame.
fn misshapen(shown: &str, mistake: Mistake) -> Status {
    match mistake {
        Mistake::Shape { why, .. } => {
            Status::invalid("", "", "", &[Error::invalid(&Path::new("patch"), shown, why)])
        }
        Mistake::Other(status) => status,
    }
}

/// A value as Go's `%+v` prints it.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::Number(n)
            if n.is_f64() && n.as_f64().is_some_and(|n| n.fract() == 0.0 && n.abs() < 1e21) =>
        {
            format!("{:.0}", n.as_f64().unwrap_or_default())
        }
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| format!("{key}:{}", go_text(value));
            format!("map[{}]", map.iter().map(entry).collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// The name is the URL's, and the identity is the object's.
fn check_identity(call: &Call, old: Option<&Value>, object: &Value) -> Result<(), Status> {
    check_name(object, &call.ctx.name)?;
    if old.is_some_and(|old| meta::uid(old) != meta::uid(object)) {
        let path = Path::new("metadata").child("uid");
        let error = Error::invalid(&path, meta::uid(object), "field is immutable");
        let (group, kind) = (&call.resource.group, &call.resource.kind);
        return Err(Status::invalid(group, kind, meta::name(object), &[error]));
    }
    Ok(())
}

fn refused(error: patch::Error) -> Status {
    match error {
        patch::Error::Malformed(text) => Status::bad_request(text),
        patch::Error::TooManyOperations(_) => Status::too_large(error.to_string()),
        patch::Error::Inapplicable(text) | patch::Error::TestFailed(text) => {
            // Upstream keeps to itself what was wrong.
            tracing::debug!(error = text, "a patch cannot be applied");
            let mut status = Status::failure(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            );
            status.details = Some(Box::default());
            status
        }
    }
}

/// Whether the body is a configuration to apply.
pub fn applies(call: &Call) -> bool {
    negotiate::content_type(&call.parts.headers) == managed::CONTENT_TYPE
}

/// Whether the patch is a merge that says nothing of the owners of fields.
fn spares_owners(call: &Call, bytes: &Bytes) -> bool {
    negotiate::content_type(&call.parts.headers) != "application/json-patch+json"
        && !bytes.starts_with(protobuf::MAGIC)
        && !bytes.windows(MANAGED.len()).any(|part| part == MANAGED)
        && !bytes.contains(&b'\\')
}

/// Their name in a patch; it might be spelled with escapes, too.
const MANAGED: &[u8] = b"managedFields";

/// Applies a patch to the object.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let options = WriteOptions::parse_patch(&call.query, applies(call))?;
    call.ctx.dry_run = options.dry_run;
    call.managed_by(&options);
    let bytes = call.read(body).await?;
    if applies(call) {
        return managed::serve(call, &bytes, &options).await;
    }
    let resource = call.resource.clone();
    let expected = Expected::of(&resource);
    let edit = editor(call, &bytes, expected, options.field_validation)?;
    let edit = |mut object: Value| {
        conversion::to_served(&call.resource, &mut object);
        edit(object)
    };
    let spares_owners = spares_owners(call, &bytes);
    let mut change = |old: Option<&Value>| {
        let whole = || old.cloned().unwrap_or_default();
        let edited = match old {
            // Who owns the fields is told by the object before; what goes wrong is told with all of it.
            Some(old) if spares_owners => {
                edit(meta::copy_without(old, "managedFields")).or_else(|_| edit(whole()))
            }
            _ => edit(whole()),
        }?;
        check_identity(call, old, &edited)?;
        let mut object = call.accept(edited);
        call.track(old, &mut object);
        Ok(object)
    };
    let rules = crate::registry::UpdateRules::default();
    let (object, _) = call
        .server
        .registry
        .update_through(&call.ctx, rules, call.server.gate(), &mut change)
        .await?;
    Ok(call.object(StatusCode::OK, &object))
}
