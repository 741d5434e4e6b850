//! Directories a layer has without naming them.
//!
//! An archive may hold `usr/bin/x` and no entry for `usr/bin`. On its own the layer gets a plain directory
//! there, and overlayfs would show that one's attributes instead of those a lower layer gave. Layers are
//! unpacked without knowing what they will lie on, so this is mended per image: a snapshot's upper
//! directory gets such directories with the attributes of the topmost layer that names them.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::durable;
use crate::error::Error;
use crate::unpack::OPAQUE_XATTR;

/// A layer as needed here: its directory, and what it has without naming.
pub(crate) struct Level<'a> {
    pub root: PathBuf,
    pub implied: &'a [String],
}

/// A directory to be made in upper directories, and where its attributes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mend {
    pub path: PathBuf,
    pub like: PathBuf,
}

/// What one layer says of a path.
enum Word {
    /// Nothing: what is below shows.
    Nothing,
    /// It is removed, replaced, or under an opaque directory that lacks it.
    Hidden,
    Directory {
        /// What is below does not merge into it.
        opaque: bool,
    },
}

/// The directories to mend in an image of `levels`, topmost first; parents before children.
pub(crate) fn mends(levels: &[Level<'_>]) -> Vec<Mend> {
    let mut wanted = BTreeSet::new();
    let candidates: BTreeSet<&Path> = levels
        .iter()
        .flat_map(|level| level.implied.iter().map(Path::new))
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    for path in candidates {
        if let Some((shown, meant)) = shown_and_meant(levels, path)
            && differ(&shown, &meant)
        {
            wanted.extend(path.ancestors().filter(|path| !path.as_os_str().is_empty()));
        }
    }
    wanted
        .into_iter()
        .filter_map(|path| {
            let (_, like) = shown_and_meant(levels, path)?;
            Some(Mend { path: path.to_owned(), like })
        })
        .collect()
}

/// Makes the directories below `upper`.
pub(crate) fn apply(upper: &Path, mends: &[Mend]) -> Result<(), Error> {
    for mend in mends {
        let path = upper.join(&mend.path);
        std::fs::create_dir(&path).map_err(|error| Error::io("create", &path, error))?;
    }
    // Children first, so that a parent's time stays.
    for mend in mends.iter().rev() {
        copy_attributes(&mend.like, &upper.join(&mend.path))?;
    }
    Ok(())
}

/// Gives directory `to` the owner, mode, time and extended attributes of `from`.
pub(crate) fn copy_attributes(from: &Path, to: &Path) -> Result<(), Error> {
    let look =
        |path: &Path| std::fs::metadata(path).map_err(|error| Error::io("look up", path, error));
    let (wanted, own) = (look(from)?, look(to)?);
    if owner(&wanted) != owner(&own) {
        std::os::unix::fs::chown(to, Some(wanted.uid()), Some(wanted.gid()))
            .map_err(|error| Error::io("set the owner of", to, error))?;
    }
    let names =
        xattr::list(from).map_err(|error| Error::io("list the attributes of", from, error))?;
    for name in names.filter(|name| !name.to_string_lossy().starts_with("user.overlay.")) {
        if let Ok(Some(value)) = xattr::get(from, &name) {
            // Like unpacking: what cannot be kept here is left out.
            let _ = xattr::set(to, &name, &value);
        }
    }
    durable::set_mode(to, wanted.permissions().mode() & 0o7777)?;
    wanted
        .modified()
        .and_then(|time| std::fs::File::open(to)?.set_modified(time))
        .map_err(|error| Error::io("set the time of", to, error))
}

fn owner(metadata: &Metadata) -> (u32, u32) {
    (metadata.uid(), metadata.gid())
}

fn differ(one: &Path, other: &Path) -> bool {
    let look = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((owner(&metadata), metadata.permissions().mode()))
    };
    one != other && look(one) != look(other)
}

/// The directory overlayfs takes the attributes of `path` from, and the one it should; `None` if the
/// image has no such directory.
fn shown_and_meant(levels: &[Level<'_>], path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut shown = None;
    for level in levels {
        match word(&level.root, path) {
            Word::Nothing => {}
            Word::Hidden => break,
            Word::Directory { opaque } => {
                let here = level.root.join(path);
                let named = !level.implied.iter().any(|implied| Path::new(implied) == path);
                let first = shown.get_or_insert_with(|| here.clone()).clone();
                if named {
                    return Some((first, here));
                }
                if opaque {
                    break;
                }
            }
        }
    }
    shown.map(|path: PathBuf| (path.clone(), path))
}

fn word(root: &Path, path: &Path) -> Word {
    let mut here = root.to_owned();
    let mut opaque = is_opaque(&here);
    for component in path {
        here.push(component);
        match std::fs::symlink_metadata(&here) {
            Err(_) if opaque => return Word::Hidden,
            Err(_) => return Word::Nothing,
            Ok(metadata) if metadata.is_dir() => opaque |= is_opaque(&here),
            // A whiteout, or a file in its place.
            Ok(_) => return Word::Hidden,
        }
    }
    Word::Directory { opaque }
}

fn is_opaque(directory: &Path) -> bool {
    matches!(xattr::get(directory, OPAQUE_XATTR), Ok(Some(value)) if value == b"y")
}
