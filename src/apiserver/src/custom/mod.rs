//! Custom resources: what a `CustomResourceDefinition` makes of the server.
//!
//! `definition` checks and completes the definitions themselves, `controller` accepts their names and
//! publishes what they define, and this is one version of one of them, as requests on it see it.
//!
//! Source: `k8s.io/apiextensions-apiserver`.

pub mod controller;
mod convert;
pub mod definition;
pub mod openapi;
pub mod scale;
pub mod strategy;
pub mod table;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use apimachinery::cel::rules::Rules;
use apimachinery::decode::{self, Decoded, Validation};
use apimachinery::field::{self, ErrorList};
use apimachinery::schema::{self, TypeId};
use apimachinery::structural::{Compiled, Names, Structural};
use apimachinery::{Status, meta};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::attributes::Warnings;
use crate::fields::Selectable;
use crate::object;
use crate::resource::{Resource, ResourceRef, Subresource};
use crate::zero::Zero;

pub use convert::Conversion;
pub use definition::{condition, set_condition};

/// What a definition says of one version.
#[derive(Debug)]
pub struct Custom {
    /// The definition's uid.
    uid: String,
    /// And its generation: a changed definition is another one.
    generation: i64,
    /// The version that objects are stored at.
    pub storage_version: String,
    /// The schema of this version.
    pub schema: Structural,
    /// The same as it was written.
    pub source: Value,
    /// The schema as a type table.
    pub types: Compiled,
    /// `additionalPrinterColumns`, or what stands for them.
    pub columns: Vec<table::Column>,
    /// Whether there is a status subresource.
    pub status: bool,
    /// The scale subresource.
    pub scale: Option<scale::Paths>,
    /// `selectableFields`
    pub selectable: Arc<[Selectable]>,
    /// How objects come from one version to another.
    pub conversion: Conversion,
    /// The definition is being deleted.
    pub terminating: bool,
    /// What to tell users of a deprecated version.
    pub deprecated: Option<String>,
    /// The CEL rules of the schema.
    rules: Rules,
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        (&self.uid, self.generation, self.terminating)
            == (&other.uid, other.generation, other.terminating)
    }
}

impl Eq for Custom {}

/// 405 for a new object of a definition that is being deleted.
pub fn terminating() -> Status {
    Status::failure(
        405,
        "MethodNotAllowed",
        "create not allowed while custom resource definition is terminating",
    )
}

/// Types whose metadata stands for that of any object.
static ANY_OBJECT: LazyLock<TypeId> = LazyLock::new(|| {
    schema::builtin().kind("", "v1", "ConfigMap").expect("config maps are built in")
});

/// The versions a definition serves, and the one its objects are stored at.
pub fn resources(crd: &Value) -> (Vec<ResourceRef>, Option<ResourceRef>) {
    let (mut served, mut at_rest) = (Vec::new(), None);
    for version in crd["spec"]["versions"].items() {
        let is_storage = version["storage"].flag();
        if !version["served"].flag() && !is_storage {
            continue;
        }
        let resource = Arc::new(resource(crd, version));
        if is_storage {
            at_rest = Some(resource.clone());
        }
        if version["served"].flag() {
            served.push(resource);
        }
    }
    (served, at_rest)
}

fn resource(crd: &Value, version: &Value) -> Resource {
    let (spec, names) = (&crd["spec"], &crd["status"]["acceptedNames"]);
    let (group, name) = (spec["group"].text(), version["name"].text());
    let plural = names["plural"].text();
    let texts = |value: &Value| -> Vec<String> { value.texts().map(str::to_owned).collect() };
    let custom = Custom::new(crd, version);
    let mut subresources = Vec::new();
    let verbs = || ["get", "patch", "update"].map(str::to_owned).to_vec();
    if custom.scale.is_some() {
        subresources.push(Subresource {
            name: "scale".into(),
            verbs: verbs(),
            group: "autoscaling".into(),
            version: "v1".into(),
            kind: "Scale".into(),
            connect: false,
        });
    }
    if custom.status {
        subresources.push(Subresource {
            name: "status".into(),
            verbs: verbs(),
            group: group.into(),
            version: name.into(),
            kind: names["kind"].text().into(),
            connect: false,
        });
    }
    Resource {
        group: group.into(),
        version: name.into(),
        plural: plural.into(),
        singular: names["singular"].text().into(),
        kind: names["kind"].text().into(),
        list_kind: names["listKind"].text().into(),
        namespaced: spec["scope"] == "Namespaced",
        verbs: ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            .map(str::to_owned)
            .to_vec(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        subresources,
        key_prefix: format!("/registry/{group}/{plural}/"),
        custom: Some(Arc::new(custom)),
    }
}

impl Custom {
    fn new(crd: &Value, version: &Value) -> Self {
        let spec = &crd["spec"];
        let (group, kind) = (spec["group"].text(), spec["names"]["kind"].text());
        let source = version["schema"]["openAPIV3Schema"].clone();
        let mut schema = Structural::parse(&source);
        schema.preserve_unknown |= spec["preserveUnknownFields"].flag();
        let storage =
            spec["versions"].items().iter().find(|v| v["storage"].flag()).unwrap_or(version);
        let types = schema.compile(Names { group, version: version["name"].text(), kind });
        let deleted = meta::deletion_timestamp(crd).is_some();
        Self {
            uid: meta::uid(crd).to_owned(),
            generation: meta::generation(crd),
            storage_version: storage["name"].text().to_owned(),
            columns: table::columns(version),
            status: version["subresources"]["status"].is_object(),
            scale: scale::Paths::parse(&version["subresources"]["scale"]),
            selectable: version["selectableFields"]
                .items()
                .iter()
                .map(|field| Selectable::custom(field["jsonPath"].text()))
                .collect(),
            conversion: Conversion::parse(&spec["conversion"]),
            terminating: deleted,
            deprecated: definition::deprecation(spec, version),
            rules: Rules::compile(&schema),
            schema,
            source,
            types,
        }
    }

    /// Brings a body or the outcome of a patch into shape: metadata typed, unknown fields pruned (and
    /// told), defaults set. `strict` is what was found wrong before.
    pub fn shape(
        &self,
        value: Value,
        strict: Vec<String>,
        validation: Validation,
    ) -> Result<Decoded, decode::Error> {
        self.shape_with(Structural::set_defaults, value, strict, validation)
    }

    /// The same of what server-side apply made, which was not read from a body.
    pub fn shape_applied(
        &self,
        value: Value,
        validation: Validation,
    ) -> Result<Decoded, decode::Error> {
        self.shape_with(Structural::set_defaults_of_applied, value, Vec::new(), validation)
    }

    fn shape_with(
        &self,
        set_defaults: fn(&Structural, &mut Value),
        mut value: Value,
        mut strict: Vec<String>,
        validation: Validation,
    ) -> Result<Decoded, decode::Error> {
        if !value.is_object() {
            let text = "json: cannot unmarshal into Go value of type map[string]interface {}";
            return Err(decode::Error::Type(text.into()));
        }
        if let Some(metadata) = value.get_mut("metadata") {
            let head = json!({"metadata": metadata.take()});
            let facts = schema::builtin();
            let mut decoded = decode::from_value(facts, *ANY_OBJECT, &head, Validation::Warn)?;
            *metadata = decoded.value["metadata"].take();
            if metadata.is_null() {
                *metadata = json!({});
            }
            strict.extend(decoded.warnings);
        }
        let unknown = self.schema.prune(&mut value, true);
        strict.extend(unknown.into_iter().map(|path| format!("unknown field {path:?}")));
        set_defaults(&self.schema, &mut value);
        match validation {
            Validation::Strict if !strict.is_empty() => Err(decode::Error::Strict(strict)),
            Validation::Warn => Ok(Decoded { value, warnings: strict }),
            _ => Ok(Decoded { value, warnings: Vec::new() }),
        }
    }

    /// A stored object as the definition sees it today: what it no longer names is pruned, what it now
    /// defaults is set.
    pub fn refreshed(&self, raw: Bytes) -> Result<Bytes, serde_json::Error> {
        let mut value: Value = serde_json::from_slice(&raw)?;
        let before = value.clone();
        let (group, version) = meta::split_api_version(meta::api_version(&value));
        if version != self.storage_version {
            if self.conversion.is_webhook() {
                return Ok(raw);
            }
            let api_version = format!("{group}/{}", self.storage_version);
            value["apiVersion"] = api_version.into();
        }
        self.schema.prune(&mut value, true);
        self.schema.set_defaults(&mut value);
        Ok(if value == before { raw } else { object::encode(&value).0 })
    }

    /// What is wrong with an object; `old` is the one it replaces. What was as wrong in that one is only warned of.
    pub fn validate(&self, object: &Value, old: Option<&Value>, warnings: &Warnings) -> ErrorList {
        let mut errors = self.schema.validate(object, old);
        if let Some(scale) = &self.scale {
            errors.extend(scale.validate(object));
        }
        if self.rules.is_empty() {
            return errors;
        }
        use field::ErrorType::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
        let blocks = |error: &field::Error| {
            matches!(error.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
        };
        if errors.iter().any(blocks) {
            errors.push(field::Error::invalid(
                &field::Path::new("<nil>"),
                Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
        } else {
            let judged = self.rules.judge(&self.schema, object, old);
            errors.extend(judged.errors);
            judged.tolerated.iter().for_each(|error| warnings.add(error.to_string()));
        }
        errors
    }
}
