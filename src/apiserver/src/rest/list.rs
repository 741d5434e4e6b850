//! `list`: resource version semantics, chunking, and the answer from bytes.
//!
//! Source: "Resource Versions" and "Retrieving large results sets in chunks" of the API concepts page.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::status::Cause;
use http::StatusCode;
use serde_json::{Value, json};
use store::Range;

use super::Call;
use crate::body::{Body, Response};
use crate::cache::{Cache, Objects, Snapshot};
use crate::continue_token::Token;
use crate::conversion;
use crate::fields;
use crate::items::Items;
use crate::negotiate::{self, Format, Shape};
use crate::object::Object;
use crate::options::{ListOptions, Match};
use crate::printers;
use crate::protobuf;
use crate::registry::{TOO_OLD, store_failure};
use crate::respond;
use crate::selection::Selection;

/// How long a read waits for a revision that has not come yet.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

const EXPIRED_TOKEN: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// What comes after a chunk.
pub struct More {
    token: String,
    remaining: Option<usize>,
}

/// Answers with the chosen objects.
pub async fn serve(call: &Call) -> Result<Response, Status> {
    let options = ListOptions::parse(&call.query, false)?;
    if call.accepted.shape == Shape::Metadata {
        let list = super::go_type(&call.resource, "List");
        return Err(negotiate::unacceptable(format!(
            "you requested PartialObjectMetadata, but the requested object is a list ({list})"
        )));
    }
    let registry = &call.server.registry;
    let cache = registry.cache(&call.resource).ok_or_else(super::not_found_path)?;
    let selection = Selection::parse(
        &call.ctx.namespace,
        &options.label_selector,
        &options.field_selector,
        &fields::served(&call.resource, &cache.selectable),
        call.resource.namespaced,
    )?;
    let token = if options.token.is_empty() { None } else { Some(Token::decode(&options.token)?) };
    let snapshot = view(call, &cache, &options, token.as_ref()).await?;
    let after = token.as_ref().map(|t| t.after.as_str());
    let candidates = snapshot.select(&call.ctx.namespace, after);
    let mut chosen: Vec<&Arc<Object>> = Vec::with_capacity(candidates.len().min(4096));
    let mut more = None;
    let plain = selection.is_everything();
    let mut last_key = "";
    // Whatever state will do comes whole from the watch cache.
    let limit =
        if options.resource_version == Some(0) && token.is_none() { 0 } else { options.limit };
    let seen = match super::viewed(call, &selection) {
        Some(custom) => {
            let objects = candidates.iter().map(|(_, object)| Arc::clone(object)).collect();
            Some(custom.select_all(registry, &call.resource, objects).await?)
        }
        None => None,
    };
    for (index, (key, object)) in candidates.iter().enumerate() {
        let object = seen.as_ref().map_or(*object, |seen| &seen[index]);
        if !plain && !selection.matches(object) {
            continue;
        }
        if limit > 0 && chosen.len() == limit {
            let revision = Some(snapshot.revision);
            let token = Token { revision, after: last_key.to_owned() }.encode();
            let remaining = plain.then(|| candidates.len() - index);
            more = Some(More { token, remaining });
            cache.keep(&snapshot);
            break;
        }
        last_key = key;
        chosen.push(object);
    }
    if let Some(custom) = &call.resource.custom {
        let chosen = chosen.into_iter().cloned().collect();
        let served = custom.serve_all(registry, &call.resource, chosen).await?;
        return Ok(answer(call, served, snapshot.revision, more.as_ref()));
    }
    let chosen = chosen.into_iter().cloned().collect();
    Ok(answer(call, chosen, snapshot.revision, more.as_ref()))
}

/// The state that the request asks for.
async fn view(
    call: &Call,
    cache: &Arc<Cache>,
    options: &ListOptions,
    token: Option<&Token>,
) -> Result<Snapshot, Status> {
    let registry = &call.server.registry;
    if let Some(token) = token {
        let Some(revision) = token.revision else {
            registry.sync().await?;
            return Ok(registry.snapshot(cache));
        };
        return at_revision(call, cache, revision).await.map_err(|status| {
            if status.code != 410 {
                return status;
            }
            let mut status = Status::expired(EXPIRED_TOKEN);
            let token = Token { revision: None, after: token.after.clone() }.encode();
            status.metadata.insert("continue".into(), token.into());
            status
        });
    }
    match options.resource_version {
        None => {
            registry.sync().await?;
        }
        Some(0) => {}
        Some(revision) => {
            wait_for(call, revision).await?;
            let exact = options.matching == Some(Match::Exact)
                || (options.matching.is_none() && options.limit > 0);
            if exact {
                return at_revision(call, cache, revision).await;
            }
        }
    }
    Ok(registry.snapshot(cache))
}

/// Waits until the caches have reached a revision that the client saw elsewhere.
pub async fn wait_for(call: &Call, revision: u64) -> Result<(), Status> {
    let caches = call.server.registry.caches();
    if tokio::time::timeout(FUTURE_WAIT, caches.reached(revision)).await.is_ok() {
        return Ok(());
    }
    let current = caches.applied();
    let message = format!("Too large resource version: {revision}, current: {current}");
    let mut status = Status::timeout(format!("Timeout: {message}"), 1);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
    }
    Err(status)
}

/// The state at exactly `revision`: the current one if nothing changed since, a kept one, or the
/// store's.
async fn at_revision(call: &Call, cache: &Arc<Cache>, revision: u64) -> Result<Snapshot, Status> {
    if call.server.registry.has_expired(revision) {
        return Err(Status::expired(TOO_OLD));
    }
    if let Some(snapshot) = cache.kept(revision) {
        return Ok(snapshot);
    }
    let current = cache.snapshot();
    if current.revision <= revision && revision <= call.server.registry.caches().applied() {
        return Ok(Snapshot { revision, ..current });
    }
    let mut range = Range::prefix(call.resource.key_prefix.as_bytes());
    range.at = Some(revision);
    let found = call.server.registry.store().range(range).await.map_err(store_failure)?;
    let mut objects = Objects::new_sync();
    for kv in found.kvs {
        let key = String::from_utf8_lossy(&kv.key[call.resource.key_prefix.len()..]).into_owned();
        let object = cache.decode(kv.value, kv.mod_revision).map_err(Status::internal)?;
        objects.insert_mut(Arc::from(key), Arc::new(object));
    }
    Ok(Snapshot { objects, revision })
}

/// A list in the accepted shape and format.
pub fn answer(
    call: &Call,
    objects: Vec<Arc<Object>>,
    revision: u64,
    more: Option<&More>,
) -> Response {
    let accepted = call.accepted;
    match accepted.shape {
        Shape::Object
            if accepted.format == Format::Json
                && !accepted.pretty
                && !conversion::is_view(&call.resource) =>
        {
            plain(call, objects, revision, more)
        }
        Shape::Object
            if accepted.format == Format::Protobuf && !conversion::is_view(&call.resource) =>
        {
            match protobuf::list(&call.resource, &list_metadata(revision, more), &objects) {
                Ok(bytes) => respond::answer(StatusCode::OK, accepted.content_type(), bytes),
                Err(status) => respond::failure(&status, accepted),
            }
        }
        Shape::Object => {
            let items: Vec<Value> = objects.iter().map(|o| call.served_value(o)).collect();
            let list = json!({
                "kind": call.resource.list_kind,
                "apiVersion": call.resource.api_version(),
                "metadata": list_metadata(revision, more),
                "items": items,
            });
            respond::value(StatusCode::OK, &list, accepted)
        }
        Shape::Metadata | Shape::MetadataList => {
            let version = accepted.meta_version();
            let items: Vec<Value> =
                objects.iter().map(|o| super::partial_metadata(o, version)).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": version,
                "metadata": list_metadata(revision, more),
                "items": items,
            });
            respond::value(StatusCode::OK, &list, accepted)
        }
        Shape::Table => {
            let mut table = printers::table(&call.resource, &objects, &call.query, accepted);
            table["metadata"] = list_metadata(revision, more);
            respond::value(StatusCode::OK, &table, accepted)
        }
    }
}

fn list_metadata(revision: u64, more: Option<&More>) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(more) = more {
        metadata["continue"] = more.token.as_str().into();
        if let Some(remaining) = more.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

/// The answer without parsing anything: bytes between bytes.
fn plain(call: &Call, objects: Vec<Arc<Object>>, revision: u64, more: Option<&More>) -> Response {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        call.resource.list_kind,
        call.resource.api_version(),
        list_metadata(revision, more),
    );
    // Custom objects tell their type even in a list.
    let items = Items::new(head, objects, call.resource.custom.is_some());
    respond::answer(StatusCode::OK, "application/json", Body::List(items))
}
