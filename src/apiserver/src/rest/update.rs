//! `update`: PUT of a whole object, or of its status.

use apimachinery::{Status, meta};
use http::StatusCode;

use super::Call;
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::negotiate;
use crate::options::WriteOptions;

/// Replaces the object.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let format = negotiate::body_format(&call.parts.headers)?;
    let options = WriteOptions::parse(&call.query, "UpdateOptions")?;
    call.ctx.dry_run = options.dry_run;
    call.managed_by(&options);
    let bytes = call.read(body).await?;
    let resource = call.resource.clone();
    let expected = Expected::of(&resource);
    let object =
        codec::decode(&bytes, format, expected, options.field_validation, &call.ctx.warnings)?;
    check_name(&object, &call.ctx.name)?;
    let object = call.accept(object);
    let rules = call.update_rules();
    let mut replace = |old: Option<&serde_json::Value>| {
        if old.is_none() {
            call.may_create()?;
        }
        let mut object = object.clone();
        call.track(old, &mut object);
        Ok(object)
    };
    let (object, created) = call
        .server
        .registry
        .update_through(&call.ctx, rules, call.server.gate(), &mut replace)
        .await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(call.object(code, &object))
}

/// The object's name must be the URL's.
pub fn check_name(object: &serde_json::Value, name: &str) -> Result<(), Status> {
    let found = meta::name(object);
    if found == name {
        return Ok(());
    }
    if found.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    Err(Status::bad_request(format!(
        "the name of the object ({found}) does not match the name on the URL ({name})"
    )))
}
