//! Writes a set of files so that readers see either the old set or the new one: the files are in a
//! directory of their own, and one symlink, `..data`, is switched by a rename.
//!
//! Source of behaviour: `pkg/volume/util/atomic_writer.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

/// The link to the files.
pub const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by relative path.
pub type Payload = BTreeMap<String, Projected>;

/// Who owns the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Owning user, where it is not the kubelet's.
    pub uid: Option<u32>,
    /// The pod's fsGroup.
    pub gid: Option<u32>,
}

/// Makes `target` hold exactly `payload`. Returns whether anything changed.
pub fn write(target: &Path, payload: &Payload, owner: Owner, stamp: &str) -> io::Result<bool> {
    for path in payload.keys() {
        validate(path)?;
    }
    fs::create_dir_all(target)?;
    let current = fs::read_link(target.join(DATA)).ok();
    if let Some(current) = &current
        && same(&target.join(current), payload)?
    {
        return Ok(false);
    }
    let fresh = format!("..{stamp}");
    let directory = target.join(&fresh);
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = File::create(&path)?;
        out.write_all(&file.data)?;
        let mut mode = file.mode;
        if owner.uid.is_some() || owner.gid.is_some() {
            std::os::unix::fs::fchown(&out, owner.uid, owner.gid)?;
        }
        if owner.gid.is_some() {
            mode |= 0o440;
        }
        out.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    let new = target.join(DATA_NEW);
    let _ = fs::remove_file(&new);
    symlink(&fresh, &new)?;
    fs::rename(&new, target.join(DATA))?;
    links(target, payload)?;
    if let Some(old) = current {
        let _ = fs::remove_dir_all(target.join(old));
    }
    Ok(true)
}

fn validate(path: &str) -> io::Result<()> {
    let relative =
        !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if relative && !path.starts_with("..") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?} in a volume")))
}

/// The visible names are links through `..data`; names no longer in the set go.
fn links(target: &Path, payload: &Payload) -> io::Result<()> {
    let tops: BTreeSet<&str> = payload.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for top in &tops {
        let link = target.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !tops.contains(name) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    if !directory.is_dir() {
        return Ok(false);
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        for entry in fs::read_dir(directory.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
            } else {
                found.insert(path.to_string_lossy().into_owned());
            }
        }
    }
    if found.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        if !found.contains(path) || fs::read(directory.join(path))? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, d)| ((*p).to_owned(), Projected { data: d.as_bytes().to_vec(), mode: 0o644 }))
            .collect()
    }

    #[test]
    fn switches_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("v");
        let first = payload(&[("a", "1"), ("d/b", "2")]);
        assert!(write(&target, &first, Owner::default(), "one").unwrap());
        assert!(!write(&target, &first, Owner::default(), "two").unwrap());
        assert_eq!(fs::read_to_string(target.join("d/b")).unwrap(), "2");
        assert!(write(&target, &payload(&[("a", "3")]), Owner::default(), "three").unwrap());
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
        assert!(!target.join("d").exists());
        assert_eq!(fs::read_link(target.join("..data")).unwrap(), Path::new("..three"));
        assert!(!target.join("..one").exists());
    }

    #[test]
    fn refuses_paths_that_leave() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "", "..data"] {
            assert!(
                write(dir.path(), &payload(&[(path, "")]), Owner::default(), "s").is_err(),
                "{path}"
            );
        }
    }
}
