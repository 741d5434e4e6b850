//! Which files a configMap, secret, downwardAPI or projected volume consists of. Pure.
//!
//! Source of behaviour: `pkg/volume/{configmap,secret,downwardapi,projected}`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use super::atomic::{Payload, Projected};
use crate::fields::{self, Facts};

/// Why a volume's files cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An item names a key the object has not.
    #[error("references non-existent config key: {0}")]
    ConfigKey(String),
    /// An item names a key the secret has not.
    #[error("references non-existent secret key: {0}")]
    SecretKey(String),
    /// A downward API field cannot be read.
    #[error(transparent)]
    Field(#[from] fields::Error),
}

/// The files of a config map; an absent one gives none.
pub fn config_map(
    object: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, Error> {
    let mut data: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    if let Some(object) = object {
        data.extend(
            object.data.iter().flatten().map(|(k, v)| (k.as_str(), v.clone().into_bytes())),
        );
        data.extend(object.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.clone())));
    }
    pick(&data, items, mode, optional).map_err(Error::ConfigKey)
}

/// The files of a secret; an absent one gives none.
pub fn secret(
    object: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, Error> {
    let data: BTreeMap<&str, Vec<u8>> = object
        .and_then(|o| o.data.as_ref())
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.0.clone()))
        .collect();
    pick(&data, items, mode, optional).map_err(Error::SecretKey)
}

fn pick(
    data: &BTreeMap<&str, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        let file = |v: &Vec<u8>| Projected { data: v.clone(), mode: mode as u32 };
        return Ok(data.iter().map(|(k, v)| ((*k).to_owned(), file(v))).collect());
    }
    let mut out = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(content) => {
                let mode = item.mode.unwrap_or(mode) as u32;
                out.insert(item.path.clone(), Projected { data: content.clone(), mode });
            }
            None if optional => {}
            None => return Err(item.key.clone()),
        }
    }
    Ok(out)
}

/// The files of a downward API volume.
pub fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    facts: &Facts,
) -> Result<Payload, Error> {
    let mut out = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(pod, &field.field_path, facts)?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(pod, resource, "", facts)?
        } else {
            continue;
        };
        let mode = item.mode.unwrap_or(mode) as u32;
        out.insert(item.path.clone(), Projected { data: text.into_bytes(), mode });
    }
    Ok(out)
}
