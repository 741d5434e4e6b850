//! `patch`: JSON patch, merge patch, strategic merge patch; apply is in `managed`.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/handlers/patch.go`.

use apimachinery::status::{Cause, Details};
use apimachinery::{Status, patch};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::{Call, managed};
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::conversion;
use crate::negotiate::{self, Format};
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
    let reshape = move |value: &Value| codec::reshape(value, expected, validation, &warnings);
    match negotiate::content_type(&call.parts.headers) {
        "application/json-patch+json" => {
            let bytes = bytes.clone();
            Ok(Box::new(move |old| reshape(&patch::json(&old, &bytes).map_err(refused)?)))
        }
        "application/merge-patch+json" => {
            let changes = codec::parse(bytes, Format::Json)?;
            Ok(Box::new(move |mut object| {
                patch::merge(&mut object, &changes);
                reshape(&object)
            }))
        }
        "application/strategic-merge-patch+json" => {
            let changes = codec::parse(bytes, Format::Json)?;
            let known = codec::type_of(expected).filter(|_| expected.custom.is_none());
            let Some((schema, of)) = known else {
                return Err(negotiate::unsupported(accepted));
            };
            Ok(Box::new(move |old| {
                reshape(&patch::strategic(schema, of, old, changes.clone()).map_err(refused)?)
            }))
        }
        _ => Err(negotiate::unsupported(accepted)),
    }
}

fn refused(error: patch::Error) -> Status {
    match error {
        patch::Error::Malformed(text) => Status::bad_request(text),
        patch::Error::TooManyOperations(_) => Status::too_large(error.to_string()),
        patch::Error::Inapplicable(text) => {
            let mut status = Status::failure(
                422,
                "Invalid",
                "the server rejected our request due to an error in our request",
            );
            let cause = Cause {
                reason: "UnexpectedServerResponse".into(),
                message: text,
                ..Cause::default()
            };
            status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
            status
        }
    }
}

/// Whether the body is a configuration to apply.
pub fn applies(call: &Call) -> bool {
    negotiate::content_type(&call.parts.headers) == managed::CONTENT_TYPE
}

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
    let mut change = |old: Option<&Value>| {
        let mut object = old.cloned().unwrap_or_default();
        conversion::to_served(&call.resource, &mut object);
        let mut object = call.accept(edit(object)?);
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
