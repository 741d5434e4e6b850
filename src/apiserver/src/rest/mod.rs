//! The verbs on resources.

mod create;
mod delete;
mod get;
pub mod list;
#[cfg(test)]
mod list_tests;
mod managed;
#[cfg(test)]
mod managed_tests;
pub mod patch;
pub mod scale;
mod update;
mod watch;

pub use list::answer as answer_list;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;

use crate::attributes::RequestContext;
use crate::body::{Body, Response};
use crate::custom::Custom;
use crate::negotiate::{self, Accepted, Format, Shape};
use crate::object::Object;
use crate::options::{Query, WriteOptions};
use crate::printers;
use crate::registry::UpdateRules;
use crate::resource::Resource;
use crate::selection::Selection;
use crate::server::Server;
use crate::subresources;
use crate::{conversion, policy, protobuf, respond};

/// Bodies may not be longer (`DefaultMaxRequestBodyBytes`).
pub const MAX_BODY_BYTES: usize = 3 << 20;

/// How long a client may take to send one (`--request-timeout`).
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// One request on a served resource.
pub struct Call {
    /// The server.
    pub server: Arc<Server>,
    /// Who wants what.
    pub ctx: RequestContext,
    /// The resource.
    pub resource: Arc<Resource>,
    /// Headers and URL.
    pub parts: Parts,
    /// Query parameters.
    pub query: Query,
    /// How to answer.
    pub accepted: Accepted,
    /// When it came, and was let in.
    pub times: crate::server::Times,
}

impl Call {
    /// Carries out the verb.
    pub async fn serve(mut self, body: Body) -> Result<Response, Status> {
        let verb = self.ctx.verb;
        let allowed = match self.ctx.subresource.as_str() {
            "" => self.resource.allows(verb),
            name => match self.resource.subresource(name) {
                Some(_) if name == "proxy" && verb.is_empty() => true,
                Some(subresource) => subresource.verbs.iter().any(|v| v == verb),
                None if self.resource.custom.is_some() => {
                    let (group, plural) = (&self.resource.group, &self.resource.plural);
                    return Err(Status::not_found(group, plural, &self.ctx.name));
                }
                None => return Err(not_found_path()),
            },
        };
        // Collections are posted to, and their items put and patched.
        let whole = self.ctx.subresource.is_empty() && self.ctx.name.is_empty();
        let misplaced = match verb {
            "create" => self.ctx.subresource.is_empty() && !whole,
            "update" | "patch" => whole,
            _ => false,
        };
        if !allowed || misplaced {
            return Err(method_not_allowed());
        }
        if subresources::handles(&self.ctx) {
            return Box::pin(subresources::serve(&mut self, body)).await;
        }
        if self.ctx.subresource == "scale" {
            return Box::pin(scale::serve(&mut self, body)).await;
        }
        // Boxed apart: what a read moves about is not to be as large as the largest of the writes.
        match verb {
            "get" => get::serve(&self).await,
            "list" => Box::pin(list::serve(&self)).await,
            "watch" => Box::pin(watch::serve(&mut self)).await,
            "create" => Box::pin(create::serve(&mut self, body)).await,
            "update" => Box::pin(update::serve(&mut self, body)).await,
            "patch" => Box::pin(patch::serve(&mut self, body)).await,
            "delete" => Box::pin(delete::serve(&mut self, body)).await,
            "deletecollection" => Box::pin(delete::collection(&mut self, body)).await,
            _ => Err(method_not_allowed()),
        }
    }

    /// The body, whole.
    pub async fn read(&self, body: Body) -> Result<Bytes, Status> {
        let bytes = read_body(body).await?;
        if let Some(record) = &self.ctx.audit {
            record.request(&bytes);
        }
        Ok(bytes)
    }

    /// An object in the accepted shape and format.
    pub fn object(&self, code: StatusCode, object: &Object) -> Response {
        match self.accepted.shape {
            Shape::Object if conversion::is_view(&self.resource) => {
                respond::value(code, &self.served_value(object), self.accepted)
            }
            Shape::Object if self.accepted.format == Format::Protobuf => {
                match protobuf::object(&self.resource, object) {
                    Ok(bytes) => respond::answer(code, self.accepted.content_type(), bytes),
                    Err(status) => respond::failure(&status, self.accepted),
                }
            }
            Shape::Object => respond::json(code, object.json(), self.accepted),
            Shape::MetadataList => {
                let status = negotiate::unacceptable(format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
                    go_type(&self.resource, "")
                ));
                let asked = negotiate::asked(&self.parts.headers);
                respond::refusal(&status, asked, self.accepted.pretty)
            }
            Shape::Metadata => {
                let value = partial_metadata(object, self.accepted.meta_version());
                respond::value(code, &value, self.accepted)
            }
            Shape::Table => {
                let table = printers::table(&self.resource, &[object], &self.query, self.accepted);
                respond::value(code, &table, self.accepted)
            }
        }
    }

    /// The object in the form of the served resource.
    pub fn served_value(&self, object: &Object) -> serde_json::Value {
        let mut value = object.to_value();
        conversion::to_served(&self.resource, &mut value);
        value
    }

    /// Brings a decoded object into the stored form, with the kind's defaults.
    pub fn accept(&self, mut object: serde_json::Value) -> serde_json::Value {
        conversion::to_stored(&self.resource, &mut object);
        let stored = self.ctx.resource.as_deref().unwrap_or(&self.resource);
        policy::set_defaults(stored, &mut object);
        object
    }

    /// Takes the field manager of the options, if they name one.
    pub fn managed_by(&mut self, options: &WriteOptions) {
        if !options.field_manager.is_empty() {
            self.ctx.field_manager.clone_from(&options.field_manager);
        }
    }

    /// What updates of this kind may do.
    pub fn update_rules(&self) -> UpdateRules {
        UpdateRules {
            create: self.ctx.subresource.is_empty() && creates_on_update(&self.resource),
            versioned: must_be_versioned(&self.resource),
        }
    }
}

/// Reads a body within the limit.
pub async fn read_body(body: Body) -> Result<Bytes, Status> {
    let read = tokio::time::timeout(BODY_TIMEOUT, body.read(MAX_BODY_BYTES)).await;
    let read = read
        .map_err(|_| Status::timeout("request did not complete within the allotted timeout", 0))?;
    match read {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            Err(Status::too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}")))
        }
        Err(error) => Err(Status::bad_request(format!("unable to read the request body: {error}"))),
    }
}

/// The type that upstream keeps an object in, or its list with `suffix` `List`, as its messages name it.
fn go_type(resource: &Resource, suffix: &str) -> String {
    if resource.custom.is_some() {
        return format!("*unstructured.Unstructured{suffix}");
    }
    let package = match resource.group.as_str() {
        "" | "events.k8s.io" => "core",
        "internal.apiserver.k8s.io" => "apiserverinternal",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("*{package}.{}{suffix}", resource.kind)
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Object, api_version: &str) -> serde_json::Value {
    let mut value = object.to_value();
    let metadata = value["metadata"].take();
    serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": api_version, "metadata": metadata})
}

/// The custom kind whose field selectors look at another version than the stored one, if the selection has such.
fn viewed<'a>(call: &'a Call, selection: &Selection) -> Option<&'a Custom> {
    let custom = call.resource.custom.as_deref()?;
    (selection.looks_at_fields() && custom.is_viewed(&call.resource)).then_some(custom)
}

/// 405 as upstream's mux answers.
pub fn method_not_allowed() -> Status {
    let mut status = Status::failure(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    );
    status.details = Some(Box::default());
    status
}

/// 404 for a path that is nothing.
pub fn not_found_path() -> Status {
    let mut status =
        Status::failure(404, "NotFound", "the server could not find the requested resource");
    status.details = Some(Box::default());
    status
}

/// Kinds whose strategies say `AllowCreateOnUpdate`.
fn creates_on_update(resource: &Resource) -> bool {
    let plural = resource.plural.as_str();
    match resource.group.as_str() {
        "" => matches!(plural, "endpoints" | "events" | "limitranges" | "services"),
        "rbac.authorization.k8s.io" => true,
        "coordination.k8s.io" => plural == "leases",
        "node.k8s.io" => plural == "runtimeclasses",
        _ => false,
    }
}

/// Kinds whose strategies say `!AllowUnconditionalUpdate`.
fn must_be_versioned(resource: &Resource) -> bool {
    match resource.group.as_str() {
        "coordination.k8s.io"
        | "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "node.k8s.io"
        | "policy" => true,
        "storage.k8s.io" => resource.plural != "storageclasses",
        _ => resource.custom.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_kinds_are_made_by_an_update() {
        let registry = crate::registry::Registry::default();
        for (group, plural, want) in [
            ("", "endpoints", true),
            ("", "services", true),
            ("", "configmaps", false),
            ("discovery.k8s.io", "endpointslices", false),
            ("node.k8s.io", "runtimeclasses", true),
            ("coordination.k8s.io", "leases", true),
        ] {
            let resource = registry.resource(group, plural).expect("a resource");
            assert_eq!(creates_on_update(&resource), want, "{plural}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let stalled = Body::stream(futures::stream::pending());
        let told = read_body(stalled).await.expect_err("nothing was sent");
        assert_eq!((told.code, told.reason.as_str()), (504, "Timeout"));
    }
}
