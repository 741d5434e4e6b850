//! From one version of a custom resource to another: by changing the version's name alone, or by
//! asking the definition's webhook.
//!
//! Source: `pkg/apiserver/conversion` of apiextensions-apiserver.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Status, meta};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Custom;
use crate::fields;
use crate::object::{self, Object};
use crate::registry::Registry;
use crate::resource::Resource;
use crate::zero::Zero;

/// A conversion webhook answers within this time.
const TIMEOUT: Duration = Duration::from_secs(30);

/// `spec.conversion`
#[derive(Clone, Debug, Default)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    #[default]
    None,
    /// A webhook converts; its `clientConfig`.
    Webhook(Arc<Value>),
}

impl Conversion {
    /// Reads `spec.conversion`.
    pub fn parse(conversion: &Value) -> Self {
        if conversion["strategy"] == "Webhook" {
            Self::Webhook(Arc::new(conversion["webhook"]["clientConfig"].clone()))
        } else {
            Self::None
        }
    }

    /// Whether a webhook is asked.
    pub fn is_webhook(&self) -> bool {
        matches!(self, Self::Webhook(_))
    }
}

impl Custom {
    /// The object in the form in which it is stored.
    pub async fn to_storage(&self, registry: &Registry, object: Value) -> Result<Value, Status> {
        let (group, _) = meta::split_api_version(meta::api_version(&object));
        let wanted = format!("{group}/{}", self.storage_version);
        let mut objects = self.convert(registry, vec![object], &wanted).await?;
        Ok(objects.pop().unwrap_or_default())
    }

    /// A stored object at the version of `resource`.
    pub async fn serve(
        &self,
        registry: &Registry,
        resource: &Resource,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        if object.api_version() == resource.api_version() {
            return Ok(object);
        }
        let mut objects = self.serve_all(registry, resource, vec![object]).await?;
        objects.pop().ok_or_else(|| Status::internal("a converted object is missing"))
    }

    /// Stored objects at the version of `resource`, in the same order.
    pub async fn serve_all(
        &self,
        registry: &Registry,
        resource: &Resource,
        mut objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let wanted = resource.api_version();
        if !self.conversion.is_webhook() {
            for object in &mut objects {
                if object.api_version() != wanted {
                    *object = Arc::new(object.with_api_version(&wanted));
                }
            }
            return Ok(objects);
        }
        let others: Vec<usize> =
            (0..objects.len()).filter(|i| objects[*i].api_version() != wanted).collect();
        if others.is_empty() {
            return Ok(objects);
        }
        let values = others.iter().map(|i| objects[*i].to_value()).collect();
        let converted = self.convert(registry, values, &wanted).await?;
        for (index, value) in others.into_iter().zip(converted) {
            let revision = objects[index].revision;
            let (raw, _) = object::encode(&value);
            let made = Object::from_stored(raw, revision, &self.selectable);
            objects[index] = Arc::new(made.map_err(Status::internal)?);
        }
        Ok(objects)
    }

    /// Whether what field selectors of `resource` look at may differ from what is stored.
    pub fn is_viewed(&self, resource: &Resource) -> bool {
        resource.version != self.storage_version || self.conversion.is_webhook()
    }

    /// Stored objects as field selectors of this version see them: at the version of `resource`, with the
    /// values of its selectable fields.
    pub async fn select_all(
        &self,
        registry: &Registry,
        resource: &Resource,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let mut served = self.serve_all(registry, resource, objects).await?;
        for object in &mut served {
            let fields = fields::extract(&object.raw, &self.selectable);
            let fields = fields.map_err(Status::internal)?;
            *object = Arc::new(Object { fields, ..Object::clone(object) });
        }
        Ok(served)
    }

    /// One object at another version.
    pub async fn convert_value(
        &self,
        registry: &Registry,
        object: Value,
        wanted: &str,
    ) -> Result<Value, Status> {
        let mut objects = self.convert(registry, vec![object], wanted).await?;
        Ok(objects.pop().unwrap_or_default())
    }

    async fn convert(
        &self,
        registry: &Registry,
        mut objects: Vec<Value>,
        wanted: &str,
    ) -> Result<Vec<Value>, Status> {
        let Conversion::Webhook(client) = &self.conversion else {
            for object in &mut objects {
                object["apiVersion"] = wanted.into();
            }
            return Ok(objects);
        };
        let uid = Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": "apiextensions.k8s.io/v1",
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
        });
        let kind = objects.first().map(|o| meta::kind(o).to_owned()).unwrap_or_default();
        let from = objects.first().map(|o| meta::api_version(o).to_owned()).unwrap_or_default();
        let failed = |why: String| {
            Status::internal(format!("conversion webhook for {from}, Kind={kind} failed: {why}"))
        };
        let mut answer = registry
            .webhooks()
            .call(registry, client, &review, TIMEOUT)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let response = &mut answer["response"];
        if response["uid"] != uid.as_str() {
            return Err(failed(format!("expected response.uid={uid:?}, got {}", response["uid"])));
        }
        if response["result"]["status"] != "Success" {
            let text = match response["result"]["message"].text() {
                "" => "response.result.status was not \"Success\"",
                text => text,
            };
            return Err(failed(text.to_owned()));
        }
        let Value::Array(converted) = response["convertedObjects"].take() else {
            return Err(failed("response has no convertedObjects".into()));
        };
        if converted.len() != objects.len() {
            return Err(failed(format!(
                "webhook returned {} objects, expected {}",
                converted.len(),
                objects.len()
            )));
        }
        converted
            .into_iter()
            .zip(objects)
            .map(|(new, old)| settle(new, &old, wanted).map_err(&failed))
            .collect()
    }
}

/// A webhook may change labels and annotations, and nothing else of the metadata.
fn settle(mut new: Value, old: &Value, wanted: &str) -> Result<Value, String> {
    if meta::api_version(&new) != wanted {
        return Err(format!(
            "invalid converted object: expected apiVersion {wanted:?}, got {:?}",
            meta::api_version(&new)
        ));
    }
    if meta::kind(&new) != meta::kind(old) {
        return Err(format!("invalid converted object: kind changed to {:?}", meta::kind(&new)));
    }
    let mut metadata = meta::metadata(old).clone();
    for key in ["labels", "annotations"] {
        match meta::metadata(&new).get(key).cloned() {
            Some(value) => drop(metadata.insert(key.into(), value)),
            None => drop(metadata.remove(key)),
        }
    }
    new["metadata"] = metadata.into();
    Ok(new)
}
