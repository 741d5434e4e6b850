//! The scale subresource of a custom resource, whose numbers are where its definition says.
//!
//! Source: `ScaleREST` of `pkg/registry/customresource/etcd.go`.

use apimachinery::Status;
use apimachinery::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use crate::resource::Resource;
use crate::rest::patch::go_text;
use crate::rest::scale::metadata_of;
use crate::zero::Zero;

/// Where a scale's parts are, as field names from the root.
#[derive(Debug)]
pub struct Paths {
    spec_replicas: Vec<String>,
    status_replicas: Vec<String>,
    selector: Option<Vec<String>>,
    spec_replicas_text: String,
}

fn fields(path: &str) -> Vec<String> {
    path.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

fn at<'v>(object: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(object, |value, name| value.get(name.as_str()))
}

/// The same, where a parent that is no object is a mistake.
fn lookup<'v>(object: &'v Value, path: &[String]) -> Result<Option<&'v Value>, String> {
    let mut value = object;
    for (index, name) in path.iter().enumerate() {
        match value {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get(name) {
                Some(below) => value = below,
                None => return Ok(None),
            },
            other => return Err(mismatch(&path[..=index], other, "map[string]interface{}")),
        }
    }
    Ok(Some(value))
}

/// In the words of Go's accessors of unstructured objects.
fn mismatch(path: &[String], value: &Value, wanted: &str) -> String {
    let found = match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    format!(
        ".{} accessor error: {} is of the type {found}, expected {wanted}",
        path.join("."),
        go_text(value)
    )
}

impl Paths {
    /// Reads `subresources.scale`.
    pub fn parse(scale: &Value) -> Option<Self> {
        scale.is_object().then(|| Self {
            spec_replicas: fields(scale["specReplicasPath"].text()),
            spec_replicas_text: scale["specReplicasPath"].text().to_owned(),
            status_replicas: fields(scale["statusReplicasPath"].text()),
            selector: Some(scale["labelSelectorPath"].text())
                .filter(|path| !path.is_empty())
                .map(fields),
        })
    }

    /// The number of replicas as a path into a set of owned fields.
    pub fn owned_as(&self) -> String {
        self.spec_replicas.iter().map(|name| format!("/f:{name}")).collect()
    }

    /// The `Scale` of an object.
    pub fn scale_of(&self, resource: &Resource, object: &Value) -> Result<Value, Status> {
        if at(object, &self.spec_replicas).and_then(Value::as_i64).is_none() {
            let text =
                format!("the spec replicas field {:?} does not exist", self.spec_replicas_text);
            let mut status = Status::internal(text);
            status.message = status
                .message
                .replace("does not exist", &format!("does not exist in {}", resource.qualified()));
            return Err(status);
        }
        Ok(self.scale_before(object))
    }

    /// The `Scale` of an object that is about to be scaled: what does not say how many there are to be has none so far.
    pub fn scale_before(&self, object: &Value) -> Value {
        let replicas = at(object, &self.spec_replicas).and_then(Value::as_i64).unwrap_or(0);
        let mut scale = json!({
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata_of(object),
            "spec": {},
            "status": {
                "replicas": at(object, &self.status_replicas).and_then(Value::as_i64).unwrap_or(0),
            },
        });
        if replicas != 0 {
            scale["spec"]["replicas"] = replicas.into();
        }
        let selector = self.selector.as_ref().and_then(|path| at(object, path));
        if let Some(text) = selector.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            scale["status"]["selector"] = text.into();
        }
        scale
    }

    /// What is wrong with what the paths lead to (`ValidateScaleSpec`, `ValidateScaleStatus`).
    pub fn validate(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for path in [&self.spec_replicas, &self.status_replicas] {
            let at = Path::new(&format!(".{}", path.join(".")));
            let number = match lookup(object, path) {
                Ok(None) => continue,
                Ok(Some(Value::Number(n))) if n.is_i64() => n.as_i64().unwrap_or_default(),
                Ok(Some(value)) => {
                    errors.push(Error::invalid(&at, 0, mismatch(path, value, "int64")));
                    continue;
                }
                Err(detail) => {
                    errors.push(Error::invalid(&at, 0, detail));
                    continue;
                }
            };
            if number < 0 {
                errors.push(Error::invalid(&at, number, "should be a non-negative integer"));
            } else if number > i64::from(i32::MAX) {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                errors.push(Error::invalid(&at, number, detail));
            }
        }
        if let Some(path) = &self.selector {
            let detail = match lookup(object, path) {
                Ok(None | Some(Value::String(_))) => return errors,
                Ok(Some(value)) => mismatch(path, value, "string"),
                Err(detail) => detail,
            };
            errors.push(Error::invalid(&Path::new(&format!(".{}", path.join("."))), "", detail));
        }
        errors
    }

    /// Writes the wanted number.
    pub fn set(&self, object: &mut Value, replicas: i64) {
        let Some((last, parents)) = self.spec_replicas.split_last() else { return };
        let mut place = object;
        for name in parents {
            if !place[name.as_str()].is_object() {
                place[name.as_str()] = json!({});
            }
            place = &mut place[name.as_str()];
        }
        place[last.as_str()] = replicas.into();
    }
}
