//! `create`.

use apimachinery::Status;
use http::StatusCode;

use super::Call;
use crate::body::{Body, Response};
use crate::codec::{self, Expected};
use crate::negotiate;
use crate::options::WriteOptions;

/// Decodes, defaults, admits, validates and stores a new object.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let format = negotiate::body_format(&call.parts.headers)?;
    let options = WriteOptions::parse(&call.query, "CreateOptions")?;
    call.ctx.dry_run = options.dry_run;
    call.managed_by(&options);
    let bytes = call.read(body).await?;
    let resource = call.resource.clone();
    let expected = Expected::of(&resource);
    let object =
        codec::decode(&bytes, format, expected, options.field_validation, &call.ctx.warnings)?;
    let mut object = call.accept(object);
    call.track(None, &mut object);
    let created =
        call.server.registry.create_through(&call.ctx, object, call.server.gate()).await?;
    call.server.trace_submission(&call.ctx, &created, &call.times);
    Ok(call.object(StatusCode::CREATED, &created))
}
