//! Objects in files, folders, standard input and at URLs.
//!
//! Source: `k8s.io/cli-runtime/pkg/resource` (`builder.go`, `visitor.go`).

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;

use super::api::unreached;
use super::error::Error;
use super::kinds::Resource;
use super::session::Session;

/// How often an answer may send us elsewhere.
const REDIRECTS: usize = 10;

/// Where manifests are.
#[derive(Args, Clone, Debug, Default)]
pub struct Files {
    /// A manifest, a folder of them, a URL, or `-` for standard input; may be repeated.
    #[arg(short, long = "filename", value_name = "FILE", value_delimiter = ',')]
    pub filename: Vec<String>,
    /// A folder with a kustomization.
    #[arg(short = 'k', long, value_name = "DIR", conflicts_with_all = ["filename", "recursive"])]
    pub kustomize: Option<String>,
    /// Folders with all that is below them.
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// File, URL or `STDIN`.
    pub source: String,
    /// The object.
    pub value: Value,
}

impl Document {
    /// Text at a pointer such as `/metadata/name`; empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The name, which the object must have.
    pub fn name(&self) -> Result<&str, Error> {
        match self.text("/metadata/name") {
            "" => Err(Error::wrong("resource name may not be empty")),
            name => Ok(name),
        }
    }

    /// The resource that serves the object.
    pub async fn resource<'s>(&self, session: &'s Session) -> Result<&'s Resource, Error> {
        let (version, kind) = (self.text("/apiVersion"), self.text("/kind"));
        session.kinds().await?.of(version, kind).ok_or_else(|| self.unknown())
    }

    /// Why no resource serves the object.
    pub fn unknown(&self) -> Error {
        let (version, kind) = (self.text("/apiVersion"), self.text("/kind"));
        Error::Wrong(format!(
            "resource mapping not found for name: {:?} namespace: {:?} from {:?}: no matches for kind {kind:?} in version {version:?}\nensure CRDs are installed first",
            self.text("/metadata/name"),
            self.text("/metadata/namespace"),
            self.source,
        ))
    }

    /// The object's namespace, which is then also written into it; `None` where it has none by its kind.
    pub fn settle(
        &mut self,
        resource: &Resource,
        session: &Session,
    ) -> Result<Option<String>, Error> {
        if !resource.namespaced {
            return Ok(None);
        }
        let own = self.text("/metadata/namespace").to_owned();
        if own.is_empty() {
            self.value["metadata"]["namespace"] = session.namespace.clone().into();
            return Ok(Some(session.namespace.clone()));
        }
        if session.namespace_given && own != session.namespace {
            return Err(Error::Wrong(format!(
                "the namespace from the provided object {own:?} does not match the namespace {:?}. You must pass '--namespace={own}' to perform this operation.",
                session.namespace
            )));
        }
        Ok(Some(own))
    }
}

impl Files {
    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.filename.is_empty() && self.kustomize.is_none()
    }

    /// All objects, in order; those of lists one by one. Files that cannot be read come as errors of their own.
    pub async fn read(&self) -> Result<(Vec<Document>, Vec<Error>), Error> {
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        if let Some(folder) = &self.kustomize {
            found = super::kustomize::build(folder)?;
        }
        for name in &self.filename {
            for (source, text) in self.texts(name).await? {
                match documents(&source, &text) {
                    Ok(more) => found.extend(more),
                    Err(error) => errors.push(error),
                }
            }
        }
        Ok((found, errors))
    }

    async fn texts(&self, name: &str) -> Result<Vec<(String, String)>, Error> {
        if name == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Error::Wrong(format!("cannot read standard input: {error}")))?;
            return Ok(vec![("STDIN".into(), text)]);
        }
        if name.starts_with("http://") || name.starts_with("https://") {
            return Ok(vec![(name.to_owned(), fetch(name).await?)]);
        }
        let mut texts = Vec::new();
        for path in self.paths(Path::new(name))? {
            let text = fs::read_to_string(&path)
                .map_err(|error| Error::Wrong(format!("open {}: {error}", path.display())))?;
            texts.push((path.display().to_string(), text));
        }
        Ok(texts)
    }

    fn paths(&self, path: &Path) -> Result<Vec<PathBuf>, Error> {
        if !path.exists() {
            return Err(Error::Wrong(format!(
                "the path {:?} does not exist",
                path.display().to_string()
            )));
        }
        if !path.is_dir() {
            return Ok(vec![path.to_owned()]);
        }
        let mut found = Vec::new();
        walk(path, self.recursive, &mut found)
            .map_err(|error| Error::Wrong(format!("cannot read {}: {error}", path.display())))?;
        if found.is_empty() {
            return Err(Error::Wrong(format!(
                "error reading [{}]: recognized file extensions are [.json .yaml .yml]",
                path.display()
            )));
        }
        Ok(found)
    }
}

fn walk(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if deep {
                walk(&path, deep, found)?;
            }
        } else if is_manifest(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// The objects of a file.
pub fn documents(source: &str, text: &str) -> Result<Vec<Document>, Error> {
    let mut found = Vec::new();
    for value in values(source, text)? {
        spread(source, value, &mut found)?;
    }
    Ok(found)
}

/// A list stands for its items.
fn spread(source: &str, mut value: Value, found: &mut Vec<Document>) -> Result<(), Error> {
    if value.is_null() {
        return Ok(());
    }
    for field in ["kind", "apiVersion"] {
        if value[field].as_str().is_none_or(str::is_empty) {
            let field = if field == "kind" { "Kind" } else { field };
            return Err(Error::Wrong(format!(
                "unable to decode {source:?}: Object '{field}' is missing in '{value}'"
            )));
        }
    }
    let list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match value["items"].take() {
        Value::Array(items) if list => {
            for item in items {
                spread(source, item, found)?;
            }
        }
        items => {
            if items.is_null() {
                if let Some(map) = value.as_object_mut() {
                    map.remove("items");
                }
            } else {
                value["items"] = items;
            }
            found.push(Document { source: source.to_owned(), value });
        }
    }
    Ok(())
}

fn values(source: &str, text: &str) -> Result<Vec<Value>, Error> {
    let failed = |problem: String| Error::Wrong(format!("error parsing {source}: {problem}"));
    if text.trim_start().starts_with('{') {
        let all: Result<Vec<Value>, _> =
            serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(all) = all {
            return Ok(all);
        }
    }
    let parsed = parts(text).map(|(_, part)| {
        apimachinery::decode::yaml_unstructured(&part)
            .map(|(value, _)| value)
            .map_err(|error| failed(error.to_string()))
    });
    parsed.collect()
}

/// The YAML documents of a text with their numbers, which begin with 1; those that say nothing are left out.
pub fn parts(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        let separator = line.strip_prefix("---").is_some_and(|rest| {
            rest.trim().is_empty() || rest.starts_with(' ') && rest.trim_start().starts_with('#')
        });
        if separator {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    let blank = |part: &str| {
        part.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    };
    (1..).zip(parts).filter(move |(_, part)| !blank(part))
}

/// Whether a file of a folder is a manifest, by its name.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml")
}

/// The text at a URL.
async fn fetch(url: &str) -> Result<String, Error> {
    let mut at = url.to_owned();
    for _ in 0..REDIRECTS {
        let failed =
            |problem: String| Error::Wrong(format!("unable to read URL {url:?}: {problem}"));
        let uri: http::Uri =
            at.parse().map_err(|e: http::uri::InvalidUri| failed(e.to_string()))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        let base = http::Uri::from_parts(parts).map_err(|e| failed(e.to_string()))?;
        let client =
            kube::Client::try_from(kube::Config::new(base)).map_err(|e| failed(e.to_string()))?;
        let request = http::Request::get(path).body(kube::client::Body::empty());
        let response = client.send(request.map_err(|e| failed(e.to_string()))?).await;
        let response = response.map_err(|error| {
            let host = uri.authority().map_or("", http::uri::Authority::as_str);
            unreached(&error, host, failed)
        })?;
        let status = response.status();
        if status.is_redirection()
            && let Some(to) = response.headers().get(http::header::LOCATION)
        {
            let to = to.to_str().map_err(|e| failed(e.to_string()))?;
            let base = url::Url::parse(&at).map_err(|e| failed(e.to_string()))?;
            at = base.join(to).map_err(|e| failed(e.to_string()))?.to_string();
            continue;
        }
        if !status.is_success() {
            return Err(failed(format!(
                "server reported {status}, status code={}",
                status.as_u16()
            )));
        }
        let body = response.into_body().collect().await.map_err(|e| failed(e.to_string()))?;
        return String::from_utf8(body.to_bytes().to_vec()).map_err(|e| failed(e.to_string()));
    }
    Err(Error::Wrong(format!("unable to read URL {url:?}: stopped after {REDIRECTS} redirects")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<Vec<String>, String> {
        let found = documents("f.yaml", text).map_err(|error| error.text())?;
        Ok(found
            .iter()
            .map(|d| format!("{} {}", d.text("/kind"), d.text("/metadata/name")))
            .collect())
    }

    #[test]
    fn files_hold_documents_lists_and_json() {
        let cases: [(&str, &[&str]); 4] = [
            (
                "# nothing\n---\napiVersion: v1\nkind: A\nmetadata: {name: x}\n---\n\n--- # more\napiVersion: v1\nkind: B\n",
                &["A x", "B "],
            ),
            (
                "apiVersion: v1\nkind: BList\nitems:\n- {apiVersion: v1, kind: B, metadata: {name: a}}\n- {apiVersion: v1, kind: B}\n",
                &["B a", "B "],
            ),
            (
                "{\"apiVersion\":\"v1\",\"kind\":\"A\"}\n{\"apiVersion\":\"v1\",\"kind\":\"B\"}",
                &["A ", "B "],
            ),
            ("", &[]),
        ];
        for (text, want) in cases {
            assert_eq!(shown(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn mistakes_name_the_file() {
        for (text, want) in [
            ("a: [1\n", "error: error parsing f.yaml: error converting YAML to JSON: yaml: "),
            (
                "apiVersion: v1\nname: x\n",
                "error: unable to decode \"f.yaml\": Object 'Kind' is missing in '{\"apiVersion\":\"v1\",\"name\":\"x\"}'\n",
            ),
        ] {
            let error = shown(text).unwrap_err();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn folders_are_walked_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        for name in ["b.yaml", "a.yml", "c.json", "d.txt", "deep/e.yaml"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names = |recursive| {
            let files = Files { recursive, ..Files::default() };
            let found = files.paths(folder.path()).unwrap();
            let names = found.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned());
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(false), "a.yml b.yaml c.json");
        assert_eq!(names(true), "a.yml b.yaml c.json e.yaml");
    }
}
