//! `delete` and `deletecollection`.

use std::sync::Arc;

use apimachinery::Status;
use apimachinery::status::Details;
use futures::StreamExt;
use http::StatusCode;
use serde_json::Value;

use super::Call;
use crate::attributes::RequestContext;
use crate::body::{Body, Response};
use crate::codec;
use crate::fields;
use crate::negotiate;
use crate::object::Object;
use crate::options::{DeleteOptions, ListOptions, Propagation, Query};
use crate::registry::Deleted;
use crate::resource::Resource;
use crate::respond;
use crate::selection::Selection;

/// Objects of a collection that are deleted at the same time.
const DELETE_WORKERS: usize = 64;

async fn read_options(call: &Call, body: Body) -> Result<DeleteOptions, Status> {
    let bytes = call.read(body).await?;
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let format = negotiate::body_format(&call.parts.headers)?;
    let value: Value = codec::parse(&bytes, format)?;
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("DeleteOptions");
    if kind != "DeleteOptions" {
        return Err(Status::bad_request(format!(
            "decoded object cannot be converted to DeleteOptions: {kind}"
        )));
    }
    // The dry run may be asked for on the URL even when there is a body.
    let mut options = DeleteOptions::parse(&call.query, Some(&value))?;
    options.dry_run |= DeleteOptions::parse(&Query::default(), None)?.dry_run
        || call.query.all("dryRun").any(|v| v == "All");
    Ok(options)
}

/// Warns who deletes jobs and does not say what becomes of their pods (`jobstore.REST.Delete`).
fn warn(call: &Call, options: &DeleteOptions) {
    let silent = options.propagation.is_none() && options.orphan_dependents.is_none();
    if silent && call.resource.is("batch", "jobs") {
        call.ctx.warnings.add(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to \
             remove them or set propagationPolicy=Orphan to suppress this warning",
        );
    }
}

/// Deletes one object.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let options = read_options(call, body).await?;
    warn(call, &options);
    call.ctx.dry_run = options.dry_run;
    let deleted =
        call.server.registry.delete_through(&call.ctx, &options, call.server.gate()).await?;
    Ok(match deleted {
        Deleted::Now(object) if returns_object(&call.resource) => {
            call.object(StatusCode::OK, &object)
        }
        Deleted::Now(object) => {
            let status = Status::success(Details {
                name: object.name.clone(),
                group: call.resource.group.clone(),
                kind: call.resource.plural.clone(),
                uid: object.uid.clone(),
                ..Details::default()
            });
            let mut value = serde_json::to_value(status).unwrap_or_default();
            // Upstream leaves the code to HTTP here.
            if let Some(value) = value.as_object_mut() {
                value.remove("code");
            }
            respond::value(StatusCode::OK, &value, call.accepted)
        }
        Deleted::Later(object) => {
            let cascading = options.orphan_dependents == Some(false)
                || options.propagation == Some(Propagation::Foreground);
            call.object(if cascading { StatusCode::ACCEPTED } else { StatusCode::OK }, &object)
        }
    })
}

/// Kinds whose storage says `ReturnDeletedObject`.
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.plural.as_str(),
            "pods"
                | "podtemplates"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
        )
}

/// Deletes what the selectors choose, and answers with the list of it.
pub async fn collection(call: &mut Call, body: Body) -> Result<Response, Status> {
    let options = read_options(call, body).await?;
    warn(call, &options);
    call.ctx.dry_run = options.dry_run;
    let registry = call.server.registry.clone();
    registry.sync().await?;
    let cache = registry.cache(&call.resource).ok_or_else(super::not_found_path)?;
    let list = ListOptions::parse(&call.query, false)?;
    let selection = Selection::parse(
        &call.ctx.namespace,
        &list.label_selector,
        &list.field_selector,
        &fields::served(&call.resource, &cache.selectable),
        call.resource.namespaced,
    )?;
    let snapshot = registry.snapshot(&cache);
    let candidates = snapshot.select(&call.ctx.namespace, None);
    let mut candidates: Vec<Arc<Object>> = candidates.into_iter().map(|(_, o)| o.clone()).collect();
    if let Some(custom) = super::viewed(call, &selection) {
        candidates = custom.select_all(&registry, &call.resource, candidates).await?;
    }
    let chosen: Vec<(String, String)> = candidates
        .iter()
        .filter(|object| selection.matches(object))
        .map(|object| (object.namespace.clone(), object.name.clone()))
        .collect();
    let (registry, options, gate) = (&registry, &options, call.server.gate());
    let base = &call.ctx;
    // Side by side, so that the commits are shared.
    let mut results = futures::stream::iter(chosen)
        .map(|(namespace, name)| {
            let ctx = RequestContext { namespace, name, ..base.clone() };
            async move { registry.delete_through(&ctx, options, gate).await }
        })
        .buffered(DELETE_WORKERS);
    let mut deleted: Vec<Arc<Object>> = Vec::new();
    while let Some(result) = results.next().await {
        match result {
            Ok(Deleted::Now(object) | Deleted::Later(object)) => deleted.push(object),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    drop(results);
    Ok(super::list::answer(call, deleted, snapshot.revision, None))
}
