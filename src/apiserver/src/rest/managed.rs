//! Who owns which fields: tracking of creates, updates and patches, and server-side apply.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/handlers`: `create.go`, `update.go`, `patch.go`.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use apimachinery::apply::{self, Operation, Set, Typed, Versions};
use apimachinery::status::{Cause, Details};
use apimachinery::{Status, decode, meta, time};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value};

use super::Call;
use crate::body::Response;
use crate::codec::{self, Expected};
use crate::conversion;
use crate::options::{FieldValidation, WriteOptions};
use crate::registry::UpdateRules;
use crate::resource::Resource;
use crate::served::Served;

/// The content type of an applied configuration.
pub const CONTENT_TYPE: &str = "application/apply-patch+yaml";

/// The versions of the kind a request is about.
struct Kind<'a> {
    served: Arc<Served>,
    resource: &'a Resource,
    subresource: &'a str,
}

impl Kind<'_> {
    fn at(&self, api_version: &str) -> Option<&Resource> {
        let (group, version) = meta::split_api_version(api_version);
        self.served.at(group, version, &self.resource.plural).map(AsRef::as_ref)
    }
}

impl Versions for Kind<'_> {
    fn root(&self, api_version: &str) -> Option<Typed<'_>> {
        let resource = self.at(api_version)?;
        Some(match codec::type_of(Expected::of(resource)) {
            Some((schema, of)) => Typed::kind(schema, of),
            None => Typed::deduced(),
        })
    }

    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Option<Cow<'v, Value>> {
        if meta::api_version(object) == api_version {
            return Some(Cow::Borrowed(object));
        }
        let (from, to) = (self.at(meta::api_version(object))?, self.at(api_version)?);
        let mut object = object.clone();
        conversion::to_stored(from, &mut object);
        conversion::to_served(to, &mut object);
        meta::set_type(&mut object, api_version, &to.kind);
        Some(Cow::Owned(object))
    }

    /// The strategies' reset fields: the status of the object itself, everything else of its status.
    fn ignored(&self, _: &str) -> Option<&Set> {
        self.resource.subresource("status")?;
        match (self.subresource, &*self.resource.group, &*self.resource.plural) {
            ("", ..) => Some(&STATUS),
            ("status", "", "pods") => Some(&ALL_BUT_POD_STATUS),
            ("status", ..) if self.resource.custom.is_some() => Some(&ALL_BUT_CUSTOM_STATUS),
            ("status", "apps", _) => Some(&ALL_BUT_APP_STATUS),
            ("status", ..) => Some(&SPEC),
            _ => None,
        }
    }
}

static STATUS: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&["status"]));
static SPEC: LazyLock<Set> = LazyLock::new(|| Set::of_fields(&["spec"]));
static ALL_BUT_POD_STATUS: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"])
});
static ALL_BUT_CUSTOM_STATUS: LazyLock<Set> =
    LazyLock::new(|| Set::of_fields(&["apiVersion", "kind", "metadata", "spec"]));
static ALL_BUT_APP_STATUS: LazyLock<Set> =
    LazyLock::new(|| Set::of_fields(&["spec", "metadata.labels"]));

/// The object before it was made: its type only.
fn nothing(resource: &Resource) -> Value {
    let mut object = Value::Object(Map::new());
    meta::set_type(&mut object, &resource.api_version(), &resource.kind);
    object
}

impl Call {
    fn kind(&self) -> Kind<'_> {
        Kind {
            served: self.server.registry.served(),
            resource: &self.resource,
            subresource: &self.ctx.subresource,
        }
    }

    fn operation<'a>(&'a self, api_version: &'a str, now: &'a str) -> Operation<'a> {
        let subresource = self.ctx.subresource.as_str();
        Operation { manager: &self.ctx.field_manager, api_version, subresource, now }
    }

    /// Takes down who owns the fields of `new`, a stored object that this request makes of `old`.
    pub fn track(&self, old: Option<&Value>, new: &mut Value) {
        let (api_version, now) = (self.resource.api_version(), time::now());
        let operation = self.operation(&api_version, &now);
        let kind = self.kind();
        if !conversion::is_view(&self.resource) {
            let live = old.map_or_else(|| Cow::Owned(nothing(&self.resource)), Cow::Borrowed);
            apply::update(&kind, operation, &live, new);
            return;
        }
        let live = old.map_or_else(
            || nothing(&self.resource),
            |old| {
                let mut live = old.clone();
                conversion::to_served(&self.resource, &mut live);
                live
            },
        );
        let mut served = new.clone();
        conversion::to_served(&self.resource, &mut served);
        apply::update(&kind, operation, &live, &mut served);
        match meta::remove(&mut served, "managedFields") {
            Some(owners) => meta::set(new, "managedFields", owners),
            None => drop(meta::remove(new, "managedFields")),
        }
    }

    /// What applying `config` makes of a stored object.
    pub fn applied(
        &self,
        old: Option<&Value>,
        config: &Value,
        force: bool,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let (api_version, now) = (self.resource.api_version(), time::now());
        let live = match old {
            None => Cow::Owned(nothing(&self.resource)),
            Some(old) if !conversion::is_view(&self.resource) => Cow::Borrowed(old),
            Some(old) => {
                let mut live = old.clone();
                conversion::to_served(&self.resource, &mut live);
                Cow::Owned(live)
            }
        };
        let operation = self.operation(&api_version, &now);
        let object =
            apply::apply(&self.kind(), operation, &live, config, force).map_err(refused)?;
        if old.is_none() && !meta::uid(&object).is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                meta::uid(&object)
            );
            let (group, plural) = (&self.resource.group, &self.resource.plural);
            return Err(Status::conflict(group, plural, &self.ctx.name, &why));
        }
        let expected = Expected::of(&self.resource);
        let object = if codec::is_shaped(&object, expected) {
            object
        } else {
            codec::reshape_applied(&object, expected, validation, &self.ctx.warnings)?
        };
        super::update::check_name(&object, &self.ctx.name)?;
        Ok(self.accept(object))
    }

    /// Creating what an update or apply did not find takes the right to create.
    pub fn may_create(&self) -> Result<(), Status> {
        let mut ctx = self.ctx.clone();
        ctx.verb = "create";
        self.server.authorizer.require(&ctx)
    }
}

/// Reads an applied configuration; keys that are there twice are told as `fieldValidation` says.
pub fn configuration(
    call: &Call,
    bytes: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Status::bad_request("error decoding YAML: yaml: invalid UTF-8"))?;
    let (config, mut doubled) = decode::yaml_with_duplicates(text)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    if !config.is_object() {
        return Err(Status::bad_request(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal into Go value of type map[string]interface {}",
        ));
    }
    if let Some(error) = doubled.pop() {
        match validation {
            FieldValidation::Strict => {
                return Err(Status::bad_request(format!("error strict decoding YAML: {error}")));
            }
            FieldValidation::Warn => call.ctx.warnings.add(error),
            FieldValidation::Ignore => {}
        }
    }
    Ok(config)
}

/// The `Status` of an apply that failed.
pub fn refused(error: apply::Error) -> Status {
    match error {
        apply::Error::BadRequest(text) => Status::bad_request(text),
        apply::Error::Failed(text) => Status::failure(500, "", text),
        apply::Error::Conflicts(conflicts) => {
            let message = apply::conflict_message(&conflicts);
            let causes = conflicts
                .iter()
                .map(|conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: conflict.message(),
                    field: conflict.path.clone(),
                })
                .collect();
            let mut status = Status::failure(409, "Conflict", message);
            status.details = Some(Box::new(Details { causes, ..Details::default() }));
            status
        }
    }
}

/// Server-side apply: merges the configuration, and creates what is not there.
pub async fn serve(call: &Call, bytes: &Bytes, options: &WriteOptions) -> Result<Response, Status> {
    let config = configuration(call, bytes, options.field_validation)?;
    let force = options.force == Some(true);
    let mut change = |old: Option<&Value>| {
        if old.is_none() {
            call.may_create()?;
        }
        call.applied(old, &config, force, FieldValidation::Ignore)
    };
    let rules = UpdateRules { create: call.ctx.subresource.is_empty(), versioned: false };
    let (object, created) = call
        .server
        .registry
        .update_through(&call.ctx, rules, call.server.gate(), &mut change)
        .await?;
    Ok(call.object(if created { StatusCode::CREATED } else { StatusCode::OK }, &object))
}
