//! A class' parameters: those with the prefix `csi.storage.k8s.io/` are for whoever provisions, the rest for the
//! driver.
//!
//! Source: `external-provisioner/pkg/controller/controller.go` (`removePrefixedParameters`, `getSecretReference`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, SecretReference};
use kube::ResourceExt;

const PREFIX: &str = "csi.storage.k8s.io/";

/// The secrets that a class can name, as its parameters call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Provision,
    Attach,
    Stage,
    Publish,
    Expand,
    NodeExpand,
}

const PURPOSES: [(&str, Purpose); 6] = [
    ("provisioner", Purpose::Provision),
    ("controller-publish", Purpose::Attach),
    ("node-stage", Purpose::Stage),
    ("node-publish", Purpose::Publish),
    ("controller-expand", Purpose::Expand),
    ("node-expand", Purpose::NodeExpand),
];

/// Why parameters cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("found unknown parameter key {0:?} with reserved namespace {PREFIX}")]
    Unknown(String),
    #[error("only the name or only the namespace of the {0} secret is specified: both are needed")]
    Half(&'static str),
    #[error("error resolving value {template:?}: invalid tokens: [{token:?}]")]
    Token { template: String, token: String },
    #[error("the {purpose} secret would be called {name:?} in {namespace:?}, which are no names")]
    Name { purpose: &'static str, name: String, namespace: String },
}

/// What a class says.
#[derive(Debug, Default, PartialEq)]
pub struct Parameters {
    /// For the driver.
    pub driver: BTreeMap<String, String>,
    /// The file system, where the class names one.
    pub fs_type: Option<String>,
    secrets: BTreeMap<Purpose, SecretReference>,
}

impl Parameters {
    /// The parameters of a class, for `claim` whose volume will be called `volume`.
    pub fn read(
        all: &BTreeMap<String, String>,
        claim: &PersistentVolumeClaim,
        volume: &str,
    ) -> Result<Self, Error> {
        let mut out = Self::default();
        let mut ours: BTreeMap<&str, &str> = BTreeMap::new();
        for (key, value) in all {
            match key.strip_prefix(PREFIX) {
                Some(rest) => drop(ours.insert(rest, value)),
                None if key == "fstype" => out.fs_type = Some(value.clone()),
                None => drop(out.driver.insert(key.clone(), value.clone())),
            }
        }
        if let Some(fs_type) = ours.remove("fstype") {
            out.fs_type = Some(fs_type.to_owned());
        }
        for (purpose, kind) in PURPOSES {
            let name = ours.remove(format!("{purpose}-secret-name").as_str());
            let namespace = ours.remove(format!("{purpose}-secret-namespace").as_str());
            let (name, namespace) = match (name, namespace) {
                (None, None) => continue,
                (Some(name), Some(namespace)) => (name, namespace),
                _ => return Err(Error::Half(purpose)),
            };
            // A volume is deleted when its claim, with its annotations, is gone.
            let annotations = kind != Purpose::Provision;
            let resolved = SecretReference {
                name: Some(resolve(name, claim, volume, Some(annotations))?),
                namespace: Some(resolve(namespace, claim, volume, None)?),
            };
            let named = |part: &Option<String>| {
                part.as_deref().is_some_and(|name| !name.is_empty() && !name.contains('/'))
            };
            if !(named(&resolved.name) && named(&resolved.namespace)) {
                let (name, namespace) = (resolved.name, resolved.namespace);
                return Err(Error::Name {
                    purpose,
                    name: name.unwrap_or_default(),
                    namespace: namespace.unwrap_or_default(),
                });
            }
            out.secrets.insert(kind, resolved);
        }
        match ours.keys().next() {
            Some(unknown) => Err(Error::Unknown(format!("{PREFIX}{unknown}"))),
            None => Ok(out),
        }
    }

    /// The secret for this purpose.
    pub fn secret(&self, purpose: Purpose) -> Option<SecretReference> {
        self.secrets.get(&purpose).cloned()
    }
}

/// Puts in what `${…}` stands for. `name` is none for namespaces; of names it says whether annotations may be used.
fn resolve(
    template: &str,
    claim: &PersistentVolumeClaim,
    volume: &str,
    name: Option<bool>,
) -> Result<String, Error> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let bad = |token: &str| Error::Token { template: template.into(), token: token.into() };
        let (token, after) = after.split_once('}').ok_or_else(|| bad(after))?;
        let annotation =
            token.strip_prefix("pvc.annotations['").and_then(|key| key.strip_suffix("']"));
        let value = match (token, annotation) {
            ("pv.name", _) => volume.to_owned(),
            ("pvc.namespace", _) => claim.namespace().unwrap_or_default(),
            ("pvc.name", _) if name.is_some() => claim.name_any(),
            (_, Some(key)) if name == Some(true) => {
                claim.annotations().get(key).cloned().ok_or_else(|| bad(token))?
            }
            _ => return Err(bad(token)),
        };
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(all: &[(&str, &str)]) -> Result<Parameters, Error> {
        let claim = serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n",
            "annotations": {"team": "blue"}}}))
        .expect("a claim");
        let all = all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Parameters::read(&all, &claim, "pvc-u")
    }

    #[test]
    fn the_driver_is_told_what_is_its() {
        let told = read(&[("tier", "fast"), ("csi.storage.k8s.io/fstype", "xfs")]).expect("good");
        assert_eq!(told.driver, [("tier".to_owned(), "fast".to_owned())].into());
        assert_eq!(told.fs_type.as_deref(), Some("xfs"));
        let error = read(&[("csi.storage.k8s.io/pvc/name", "x")]).expect_err("reserved");
        assert!(error.to_string().starts_with("found unknown parameter key"), "{error}");
    }

    #[test]
    fn secrets_are_named_by_templates() {
        let key = |purpose: &str, part: &str| format!("{PREFIX}{purpose}-secret-{part}");
        for (purpose, kind, name, namespace, want) in [
            ("provisioner", Purpose::Provision, "a", "b", Some(("a", "b"))),
            ("node-stage", Purpose::Stage, "${pvc.name}-x", "${pvc.namespace}", Some(("c-x", "n"))),
            ("node-publish", Purpose::Publish, "${pv.name}", "b", Some(("pvc-u", "b"))),
            (
                "node-expand",
                Purpose::NodeExpand,
                "${pvc.annotations['team']}",
                "b",
                Some(("blue", "b")),
            ),
            ("provisioner", Purpose::Provision, "${pvc.annotations['team']}", "b", None),
            ("controller-expand", Purpose::Expand, "${pvc.annotations['no']}", "b", None),
            ("controller-publish", Purpose::Attach, "a", "${pvc.name}", None),
            ("controller-publish", Purpose::Attach, "${pvc.name", "b", None),
            ("controller-publish", Purpose::Attach, "", "b", None),
        ] {
            let all = [(key(purpose, "name"), name), (key(purpose, "namespace"), namespace)];
            let all: Vec<(&str, &str)> = all.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            let told = read(&all).ok().and_then(|parameters| parameters.secret(kind));
            let want = want.map(|(name, namespace)| SecretReference {
                name: Some(name.into()),
                namespace: Some(namespace.into()),
            });
            assert_eq!(told, want, "{purpose} {name} {namespace}");
        }
        assert_eq!(read(&[(&key("node-stage", "name"), "a")]), Err(Error::Half("node-stage")));
    }
}
