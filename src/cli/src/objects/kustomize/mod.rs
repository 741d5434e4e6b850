//! Kustomizations: manifests put together from folders, with names, labels, images and patches of one's own.
//!
//! A thin kustomize: everything below is done on this machine, nothing is fetched. What it does not know it
//! refuses. Start at [`build`].
//!
//! Source: `sigs.k8s.io/kustomize/api` (`internal/target/kusttarget.go`), and kubectl's answers.

mod entry;
mod file;
mod generate;
mod merge;
mod order;
mod patches;
mod path;
mod references;
mod replacements;
mod transform;

use std::fs;
use std::path::{Path, PathBuf};

use entry::Entry;
use file::Kustomization;

use super::error::Error;
use super::manifest::{self, Document};
use super::print::yaml;
use super::put;

/// What the file may be called.
const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// Everything that the kustomization in `folder` makes, in the order in which it is to be applied.
pub fn build(folder: &str) -> Result<Vec<Document>, Error> {
    if let Some(remote) = remote(folder) {
        return Err(remote);
    }
    let root = fs::canonicalize(folder).ok().filter(|path| path.is_dir()).ok_or_else(|| {
        Error::Wrong(format!("must build at directory: not a valid directory: {folder:?}"))
    })?;
    let mut stack = Vec::new();
    let layer = Layer::open(&root, &mut stack)?;
    let mut entries = layer.accumulate(Vec::new(), &mut stack)?;
    entry::add_hashes(&mut entries)?;
    references::mend(&mut entries)?;
    order::arrange(&mut entries, layer.kustomization.sort_options.as_ref())?;
    let source = folder.to_owned();
    Ok(entries
        .into_iter()
        .map(|entry| Document { source: source.clone(), value: entry.value })
        .collect())
}

/// Writes them to standard output.
pub fn print(documents: &[Document]) -> Result<(), Error> {
    let texts: Vec<String> = documents.iter().map(|document| yaml::text(&document.value)).collect();
    put(&texts.join("---\n"))
}

/// One folder with its kustomization.
struct Layer {
    root: PathBuf,
    kustomization: Kustomization,
}

impl Layer {
    /// Reads it; `stack` is the folders on the way here.
    fn open(root: &Path, stack: &mut Vec<PathBuf>) -> Result<Self, Error> {
        if stack.iter().any(|open| open == root) {
            return Err(Error::Wrong(format!(
                "cycle detected: candidate root {:?} contains visited root",
                root.display().to_string()
            )));
        }
        let found: Vec<PathBuf> =
            NAMES.iter().map(|name| root.join(name)).filter(|path| path.is_file()).collect();
        let path = match found.as_slice() {
            [] => {
                return Err(Error::Wrong(format!(
                    "unable to find one of 'kustomization.yaml', 'kustomization.yml' or 'Kustomization' in directory '{}'",
                    root.display()
                )));
            }
            [one] => one,
            _ => {
                return Err(Error::Wrong(format!(
                    "Found multiple kustomization files under: {}",
                    root.display()
                )));
            }
        };
        let text = read(path)?;
        let kustomization = Kustomization::parse(&text).map_err(|error| {
            Error::Wrong(format!("invalid Kustomization: {}: {error}", path.display()))
        })?;
        for word in kustomization.deprecated() {
            eprintln!(
                "# Warning: {word} Run 'kustomize edit fix' to update your Kustomization automatically."
            );
        }
        stack.push(root.to_owned());
        Ok(Self { root: root.to_owned(), kustomization })
    }

    /// Its resources, generated ones among them, after all it does to them. A component works on what its user
    /// has gathered: `entries`.
    fn accumulate(
        &self,
        mut entries: Vec<Entry>,
        stack: &mut Vec<PathBuf>,
    ) -> Result<Vec<Entry>, Error> {
        let of = &self.kustomization;
        for resource in of.resources.iter().chain(&of.bases) {
            for entry in self.resource(resource, stack)? {
                entry::add(&mut entries, entry)?;
            }
        }
        generate::run(self, &mut entries)?;
        for component in &of.components {
            let root = self.folder(component)?;
            let layer = Self::open(&root, stack)?;
            if !layer.kustomization.is_component() {
                return Err(Error::Wrong(format!(
                    "expected kind 'Component' for path '{component}' but got 'Kustomization'"
                )));
            }
            entries = layer.accumulate(entries, stack)?;
            stack.pop();
        }
        transform::run(self, &mut entries)?;
        Ok(entries)
    }

    fn resource(&self, name: &str, stack: &mut Vec<PathBuf>) -> Result<Vec<Entry>, Error> {
        let failed = |error: Error| {
            let text = error.text();
            let text = text.trim_start_matches("error: ").trim_end().to_owned();
            Error::Wrong(format!("accumulating resources from '{name}': {text}"))
        };
        if let Some(remote) = remote(name) {
            return Err(failed(remote));
        }
        if self.root.join(name).is_dir() {
            let root = self.folder(name)?;
            let layer = Self::open(&root, stack).map_err(failed)?;
            if layer.kustomization.is_component() {
                return Err(failed(Error::wrong(
                    "expected kind != 'Component'; name it in `components`",
                )));
            }
            let entries = layer.accumulate(Vec::new(), stack)?;
            stack.pop();
            return Ok(entries);
        }
        let text = self.read(name).map_err(failed)?;
        let documents = manifest::documents(name, &text).map_err(failed)?;
        documents.into_iter().map(|document| Entry::new(document.value).map_err(failed)).collect()
    }

    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        if let Some(remote) = remote(name) {
            return Err(remote);
        }
        fs::canonicalize(self.root.join(name))
            .map_err(|error| Error::Wrong(format!("cannot open {name}: {error}")))
    }

    /// A file of this folder or below it: others are not the kustomization's to read.
    fn read_bytes(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.root.join(name);
        let real = fs::canonicalize(&path).map_err(|_| {
            Error::Wrong(format!("open {}: no such file or directory", path.display()))
        })?;
        if !real.starts_with(&self.root) {
            return Err(Error::Wrong(format!(
                "security; file '{}' is not in or below '{}'",
                real.display(),
                self.root.display()
            )));
        }
        fs::read(&real).map_err(|error| Error::Wrong(format!("open {}: {error}", path.display())))
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        String::from_utf8(self.read_bytes(name)?)
            .map_err(|_| Error::Wrong(format!("{name} is not text in UTF-8")))
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|error| Error::Wrong(format!("open {}: {error}", path.display())))
}

/// That a base lies elsewhere, if it does: on a web server or in a Git repository.
fn remote(name: &str) -> Option<Error> {
    let schemes =
        ["http://", "https://", "git@", "ssh://", "git::", "file://", "github.com/", "github.com:"];
    (schemes.iter().any(|scheme| name.starts_with(scheme)) || name.contains("?ref=")).then(|| {
        Error::Wrong(format!(
            "{name:?} is remote, and kustomizations are built from local files alone; clone or download it and name the copy, or `kubectl kustomize DIR | rootlet apply -f -`"
        ))
    })
}

#[cfg(test)]
mod tests;
