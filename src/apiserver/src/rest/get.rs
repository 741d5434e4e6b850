//! `get`.

use apimachinery::Status;
use http::StatusCode;

use super::Call;
use crate::body::Response;
use crate::options::parse_resource_version;
use crate::registry::cache_key;

/// Answers with the object; with `resourceVersion=0` from the cache as it is,
/// with a greater one once the cache has come so far.
pub async fn serve(call: &Call) -> Result<Response, Status> {
    let registry = &call.server.registry;
    match call.query.get("resourceVersion") {
        "0" => {}
        "" => drop(registry.sync().await?),
        text => super::list::wait_for(call, parse_resource_version(text)?).await?,
    }
    let ctx = &call.ctx;
    let cache = registry.cache(&call.resource).ok_or_else(super::not_found_path)?;
    let object = cache
        .get(&cache_key(&call.resource, &ctx.namespace, &ctx.name))
        .ok_or_else(|| Status::not_found(&call.resource.group, &call.resource.plural, &ctx.name))?;
    let object = registry.at_version(&call.resource, object).await?;
    Ok(call.object(StatusCode::OK, &object))
}
