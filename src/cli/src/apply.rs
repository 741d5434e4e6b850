//! Applies manifests as `kubectl apply --server-side` does.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::objects::manifest::{is_manifest, parts};

/// Who owns the fields.
const MANAGER: &str = "rootlet";
/// How long a kind may take to be served after its definition was applied.
const KIND_PATIENCE: Duration = Duration::from_secs(10);
const KIND_POLL: Duration = Duration::from_millis(100);

/// Why manifests could not be applied. All but the first name the document, such as `app.yaml, document 2`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{at}: {problem}")]
    Invalid { at: String, problem: String },
    #[error("{at}: no matches for kind {kind:?} in version {version:?}")]
    NoKind { at: String, kind: String, version: String },
    #[error("{at}: {message}")]
    Refused { at: String, message: String },
}

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it stands, such as `app.yaml, document 2`.
    pub at: String,
    /// The object.
    pub value: Value,
}

impl Document {
    fn text(&self, pointer: &str) -> Result<&str, Error> {
        let found = self.value.pointer(pointer).and_then(Value::as_str).filter(|s| !s.is_empty());
        found.ok_or_else(|| Error::Invalid {
            at: self.at.clone(),
            problem: format!("{} is missing", pointer[1..].replace('/', ".")),
        })
    }
}

/// Applies every object of `files`, in their order; folders stand for the YAML and JSON files in them. Tells
/// `said` what was applied, as kubectl words it.
pub async fn apply(
    client: &Client,
    files: &[PathBuf],
    mut said: impl FnMut(String),
) -> Result<(), Error> {
    let mut kinds = Kinds::new(client, MANAGER);
    for file in files {
        for document in read(file)? {
            said(format!("{} serverside-applied", kinds.apply(&document).await?));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Document>, Error> {
    if !path.is_dir() {
        return read_file(path);
    }
    let mut all = Vec::new();
    for file in files(path)? {
        all.extend(read_file(&file)?);
    }
    Ok(all)
}

/// The objects of one file.
pub fn read_file(path: &Path) -> Result<Vec<Document>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    documents(&path.display().to_string(), &text)
}

/// The manifests in a folder, by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if is_manifest(&file) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The objects of a file; those of lists one by one.
fn documents(name: &str, text: &str) -> Result<Vec<Document>, Error> {
    let mut found = Vec::new();
    for (number, part) in parts(text) {
        let at = format!("{name}, document {number}");
        let (value, _) = apimachinery::decode::yaml_unstructured(&part)
            .map_err(|error| Error::Invalid { at: at.clone(), problem: error.to_string() })?;
        let list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
        match (value, list) {
            (Value::Null, _) => {}
            (Value::Object(mut object), true) if object.contains_key("items") => {
                let items = object.remove("items").and_then(|items| match items {
                    Value::Array(items) => Some(items),
                    _ => None,
                });
                let items = items.unwrap_or_default();
                found.extend(items.into_iter().map(|value| Document { at: at.clone(), value }));
            }
            (value @ Value::Object(_), _) => found.push(Document { at, value }),
            _ => return Err(Error::Invalid { at, problem: "it is not an object".into() }),
        }
    }
    Ok(found)
}

/// Where the objects of a kind are.
#[derive(Clone)]
struct Kind {
    plural: String,
    namespaced: bool,
}

/// Which object was applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `Deployment`.
    pub kind: String,
    /// Where objects of the kind are, such as `deployments`.
    pub resource: String,
    /// Its namespace, if its kind has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// As kubectl names it: `deployment.apps/web`.
impl std::fmt::Display for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let group = self
            .api_version
            .split_once('/')
            .map_or(String::new(), |(group, _)| format!(".{group}"));
        write!(f, "{}{group}/{}", self.kind.to_lowercase(), self.name)
    }
}

impl Applied {
    fn path(&self) -> String {
        let namespace = self.namespace.as_ref().map(|namespace| format!("/namespaces/{namespace}"));
        let (root, namespace) = (root(&self.api_version), namespace.unwrap_or_default());
        format!("{root}{namespace}/{}/{}", self.resource, self.name)
    }
}

/// Removes an object; it is no error if it, or its kind, is gone.
pub async fn delete(client: &Client, object: &Applied) -> Result<(), Error> {
    let refused = |message: String| Error::Refused { at: object.to_string(), message };
    let request = Request::delete(format!("{}?propagationPolicy=Background", object.path()))
        .body(Vec::new())
        .map_err(|error| refused(error.to_string()))?;
    match client.request::<Value>(request).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(refused(message(error))),
        Ok(_) => Ok(()),
    }
}

/// Applies documents one by one, and remembers where their kinds are served.
pub struct Kinds<'a> {
    client: &'a Client,
    manager: &'static str,
    known: HashMap<(String, String), Kind>,
}

impl<'a> Kinds<'a> {
    /// `manager` is who owns the fields.
    pub fn new(client: &'a Client, manager: &'static str) -> Self {
        Self { client, manager, known: HashMap::new() }
    }

    /// Makes the object what the document says.
    pub async fn apply(&mut self, document: &Document) -> Result<Applied, Error> {
        let api_version = document.text("/apiVersion")?.to_owned();
        let kind = document.text("/kind")?.to_owned();
        let name = document.text("/metadata/name")?.to_owned();
        let Kind { plural, namespaced } = self.kind(document, &api_version, &kind).await?;
        let namespace = document.value["metadata"]["namespace"].as_str().unwrap_or("default");
        let namespace = namespaced.then(|| namespace.to_owned());
        let applied = Applied { api_version, kind, resource: plural, namespace, name };
        let path = format!("{}?fieldManager={}&force=true", applied.path(), self.manager);
        let refused = |message: String| Error::Refused { at: document.at.clone(), message };
        let request = Request::patch(path)
            .header("content-type", "application/apply-patch+yaml")
            .body(document.value.to_string().into_bytes())
            .map_err(|error| refused(error.to_string()))?;
        self.client.request::<Value>(request).await.map_err(|error| refused(message(error)))?;
        Ok(applied)
    }

    async fn kind(&mut self, of: &Document, version: &str, kind: &str) -> Result<Kind, Error> {
        let key = (version.to_owned(), kind.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let deadline = tokio::time::Instant::now() + KIND_PATIENCE;
        loop {
            if let Some(found) = self.look(of, version, kind).await? {
                self.known.insert(key, found.clone());
                return Ok(found);
            }
            // Its definition may have been applied a moment ago.
            let defined = self.known.keys().any(|(_, kind)| kind == "CustomResourceDefinition");
            if !defined || tokio::time::Instant::now() > deadline {
                let (kind, version) = (kind.to_owned(), version.to_owned());
                return Err(Error::NoKind { at: of.at.clone(), kind, version });
            }
            tokio::time::sleep(KIND_POLL).await;
        }
    }

    async fn look(&self, of: &Document, version: &str, kind: &str) -> Result<Option<Kind>, Error> {
        let refused = |message: String| Error::Refused { at: of.at.clone(), message };
        let request = Request::get(root(version))
            .body(Vec::new())
            .map_err(|error| refused(error.to_string()))?;
        let list: Value = match self.client.request(request).await {
            Ok(list) => list,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(refused(message(error))),
        };
        let resources = list["resources"].as_array().into_iter().flatten();
        let found = resources.into_iter().find_map(|resource| {
            let plural = resource["name"].as_str().filter(|name| !name.contains('/'))?;
            let namespaced = resource["namespaced"].as_bool()?;
            (resource["kind"] == kind).then(|| Kind { plural: plural.to_owned(), namespaced })
        });
        Ok(found)
    }
}

fn root(version: &str) -> String {
    if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") }
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_documents_and_lists() {
        let text = "# nothing\n---\napiVersion: v1\nkind: A\n---\n\n--- # more\nkind: BList\nitems:\n- {kind: B, n: 1}\n- {kind: B, n: 2}\n";
        let found = documents("f.yaml", text).unwrap();
        let shown: Vec<String> =
            found.iter().map(|d| format!("{}: {}", d.at, d.value["kind"])).collect();
        assert_eq!(
            shown,
            ["f.yaml, document 2: \"A\"", "f.yaml, document 4: \"B\"", "f.yaml, document 4: \"B\""]
        );
    }

    #[test]
    fn mistakes_name_the_document() {
        for (text, want) in [
            ("kind: A\n---\n- 1\n", "f.yaml, document 2: it is not an object"),
            ("a: [1\n", "f.yaml, document 1: "),
        ] {
            let error = documents("f.yaml", text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
        let document =
            Document { at: "f, document 1".into(), value: serde_json::json!({"kind": "A"}) };
        let error = document.text("/metadata/name").unwrap_err().to_string();
        assert_eq!(error, "f, document 1: metadata.name is missing");
    }
}
