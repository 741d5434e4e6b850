//! Which pods may use which images. What the kubelet pulled with a pod's secret is for those who have that secret, or
//! can pull it themselves; what came otherwise is for everybody.
//!
//! Source of behaviour: `pkg/kubelet/images/pullmanager` (KEP 2535), with its policies. The files are upstream's: `image_manager/pulling` and `image_manager/pulled`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_cri::v1::AuthConfig;
use serde::{Deserialize, Serialize};

use crate::credentials::whole_name;
use crate::csi::place::hex;

/// Secrets and accounts remembered of one image.
const MOST: usize = 100;
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// Which images that are there may only be used by pods that have credentials for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verification {
    /// None.
    Never,
    /// Those that the kubelet pulled.
    #[default]
    Pulled,
    /// All but for these: names without tags, or their beginnings with `/*`.
    Others(Vec<String>),
    /// All.
    Always,
}

impl Verification {
    /// Of upstream's name and list.
    ///
    /// # Errors
    /// The name is of no policy, or the list not of this one.
    pub fn parse(policy: &str, allowed: &[String]) -> Result<Self, String> {
        let verification = match policy {
            "NeverVerify" => Self::Never,
            "" | "NeverVerifyPreloadedImages" => Self::Pulled,
            "NeverVerifyAllowlistedImages" => {
                allowed.iter().try_for_each(|pattern| check(pattern))?;
                Self::Others(allowed.to_vec())
            }
            "AlwaysVerify" => Self::Always,
            other => {
                return Err(format!(
                    "imagePullCredentialsVerificationPolicy {other:?} is not known"
                ));
            }
        };
        if !allowed.is_empty() && !matches!(verification, Self::Others(_)) {
            return Err("preloadedImagesVerificationAllowlist cannot be set unless imagePullCredentialsVerificationPolicy is \"NeverVerifyAllowlistedImages\"".into());
        }
        Ok(verification)
    }

    /// Upstream's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Never => "NeverVerify",
            Self::Pulled => "NeverVerifyPreloadedImages",
            Self::Others(_) => "NeverVerifyAllowlistedImages",
            Self::Always => "AlwaysVerify",
        }
    }

    /// Upstream's list.
    pub fn allowed(&self) -> &[String] {
        match self {
            Self::Others(allowed) => allowed,
            _ => &[],
        }
    }

    /// Whether the image is for everybody, whoever pulled it.
    fn opens(&self, image: &str) -> bool {
        let image = whole_name(image);
        let fits = |allowed: &String| match allowed.strip_suffix('*') {
            Some(beginning) => image.starts_with(beginning),
            None => image == *allowed,
        };
        *self == Self::Never || self.allowed().iter().any(fits)
    }
}

/// Refuses what is neither a whole name without tag and digest nor the beginning of one with `/*`.
fn check(pattern: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("preloadedImagesVerificationAllowlist: {why}: {pattern}"));
    if pattern != pattern.trim() {
        return wrong("leading/trailing spaces are not allowed");
    }
    let beginning = pattern.strip_suffix("/*");
    let name = beginning.unwrap_or(pattern);
    match (name, beginning) {
        ("", None) => wrong("the supplied pattern is too short"),
        ("", Some(_)) => wrong("at least registry hostname is required"),
        (name, _) if name.contains('*') => {
            wrong("not a valid wildcard pattern, only patterns ending with '/*' are allowed")
        }
        (name, None) if !is_name(name) => wrong("failed to parse as an image name"),
        (name, None) if name != whole_name(name) => {
            wrong("neither tag nor digest is accepted in an image reference")
        }
        _ => Ok(()),
    }
}

/// Whether these are the characters of an image's name; its registry's may be large.
fn is_name(name: &str) -> bool {
    let (host, path) = name.split_once('/').unwrap_or(("", name));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:@".contains(c);
    !path.is_empty()
        && !name.split('/').any(str::is_empty)
        && host.chars().all(|c| c.is_ascii_uppercase() || "[]".contains(c) || plain(c))
        && path.chars().all(plain)
}

/// Whose credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The node's own: every pod's.
    Node,
    /// Those of a pull secret.
    Secret(Owner),
    /// Those that a plugin gave for a pod's service account.
    Account(Owner),
}

/// An object that credentials came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Of the credentials; a secret given anew under another name is still the same secret.
    #[serde(default, skip_serializing_if = "String::is_empty", rename = "credentialHash")]
    pub hash: String,
}

impl Owner {
    fn is(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// What credentials are remembered by.
pub fn hash(auth: &AuthConfig) -> String {
    let parts =
        [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token];
    // Each with its length, so that no two sets of parts are the same bytes.
    hex(&parts.map(|part| [&(part.len() as u64).to_le_bytes(), part.as_bytes()].concat()))
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kind: String,
    api_version: String,
    last_updated_time: String,
    image_ref: String,
    /// By the image's name without tag and digest.
    #[serde(default)]
    credential_mapping: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Known {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<Owner>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<Owner>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

/// What a pod has to show for an image that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Open,
    /// Credentials that it was pulled with before.
    Private,
    /// That it can be pulled.
    Unknown,
}

#[derive(Default)]
struct State {
    /// By reference of the image.
    pulled: BTreeMap<String, Record>,
    /// Pulls by image; those of a killed kubelet among them.
    pulling: BTreeMap<String, usize>,
}

/// What the kubelet pulled, and with what.
pub struct Access {
    folder: PathBuf,
    verification: Verification,
    state: Mutex<State>,
}

impl Access {
    /// What an earlier kubelet left in `folder`.
    pub fn open(folder: PathBuf, verification: Verification) -> Self {
        let mut state = State::default();
        for record in read::<Record>(&folder.join("pulled")) {
            state.pulled.insert(record.image_ref.clone(), record);
        }
        for intent in read::<Intent>(&folder.join("pulling")) {
            state.pulling.insert(intent.image, 0);
        }
        Self { folder, verification, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pull of `image` begins. Should the kubelet end in it, the image is nobody's until it is pulled again.
    pub fn begin(&self, image: &str) {
        *self.state().pulling.entry(image.to_owned()).or_default() += 1;
        let intent = Intent {
            kind: "ImagePullIntent".into(),
            api_version: API_VERSION.into(),
            image: image.to_owned(),
        };
        write(&self.file("pulling", image), &intent);
    }

    /// A pull of `image` ended: as `image_ref`, with these credentials.
    pub fn end(&self, image: &str, pulled: Option<(&str, Origin)>) {
        let mut state = self.state();
        if let Some((image_ref, origin)) = pulled {
            let record = state.pulled.entry(image_ref.to_owned()).or_insert_with(|| Record {
                kind: "ImagePulledRecord".into(),
                api_version: API_VERSION.into(),
                image_ref: image_ref.to_owned(),
                ..Record::default()
            });
            let known = record.credential_mapping.entry(bare(image).to_owned()).or_default();
            if learn(known, origin) {
                record.last_updated_time = jiff::Timestamp::now().to_string();
                write(&self.file("pulled", image_ref), record);
            }
        }
        let others = state.pulling.get_mut(image).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if others == 0 {
            state.pulling.remove(image);
            remove(&self.file("pulling", image));
        }
    }

    /// What a pod has to show to use `image`, which is there as `image_ref`.
    pub fn verdict(&self, image: &str, image_ref: &str) -> Verdict {
        if self.verification.opens(image) {
            return Verdict::Open;
        }
        let state = self.state();
        let Some(record) = state.pulled.get(image_ref) else {
            // What the kubelet did not pull was brought for all pods, if nothing else is said.
            let brought =
                !state.pulling.contains_key(image) && self.verification == Verification::Pulled;
            return if brought { Verdict::Open } else { Verdict::Unknown };
        };
        match record.credential_mapping.get(bare(image)) {
            None => Verdict::Unknown,
            Some(known) if known.node_pods_accessible => Verdict::Open,
            Some(_) => Verdict::Private,
        }
    }

    /// Whether one of the pod's credentials pulled the image before.
    pub fn knows(&self, image: &str, image_ref: &str, origins: &[Origin]) -> bool {
        let mut state = self.state();
        let Some(record) = state.pulled.get_mut(image_ref) else { return false };
        let Some(known) = record.credential_mapping.get_mut(bare(image)) else { return false };
        let fits = origins.iter().find(|origin| match origin {
            Origin::Node => false,
            Origin::Secret(of) => known
                .kubernetes_secrets
                .iter()
                .any(|k| k.is(of) || (!of.hash.is_empty() && k.hash == of.hash)),
            Origin::Account(of) => known.kubernetes_service_accounts.iter().any(|k| k.is(of)),
        });
        let Some(fits) = fits.cloned() else { return false };
        if learn(known, fits) {
            write(&self.file("pulled", image_ref), record);
        }
        true
    }

    /// Forgets images other than these.
    pub fn retain(&self, present: &HashSet<&str>) {
        self.state().pulled.retain(|image_ref, _| {
            let stays = present.contains(image_ref.as_str());
            if !stays {
                remove(&self.file("pulled", image_ref));
            }
            stays
        });
    }

    fn file(&self, folder: &str, name: &str) -> PathBuf {
        let name = hex(&[name]);
        self.folder.join(folder).join(format!("sha256-{name}"))
    }
}

/// Adds what is new; whether anything was.
fn learn(known: &mut Known, origin: Origin) -> bool {
    let (list, owner) = match origin {
        Origin::Node => {
            // Everybody's: who else could is of no interest any more.
            let new = !known.node_pods_accessible;
            *known = Known { node_pods_accessible: true, ..Known::default() };
            return new;
        }
        Origin::Secret(owner) => (&mut known.kubernetes_secrets, owner),
        Origin::Account(owner) => (&mut known.kubernetes_service_accounts, owner),
    };
    if known.node_pods_accessible || list.contains(&owner) {
        return false;
    }
    list.retain(|other| !other.is(&owner));
    list.push(owner);
    let surplus = list.len().saturating_sub(MOST);
    list.drain(..surplus);
    true
}

/// The image's name without tag and digest.
fn bare(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn read<T: serde::de::DeserializeOwned>(folder: &Path) -> Vec<T> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let parse = |path: PathBuf| {
        let bytes = std::fs::read(&path).ok()?;
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "unreadable"))
            .ok()
    };
    entries.filter_map(|entry| parse(entry.path())).collect()
}

fn write(path: &Path, value: &impl Serialize) {
    let folder = path.parent().unwrap_or(path);
    let next = path.with_extension("new");
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&next, serde_json::to_vec(value)?))
        .and_then(|()| std::fs::rename(&next, path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot keep who may use an image");
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "reg.example:5000/team/app:1";

    fn secret(uid: &str, hash: &str) -> Origin {
        let owner =
            Owner { uid: uid.into(), namespace: "ns".into(), name: "s".into(), hash: hash.into() };
        Origin::Secret(owner)
    }

    #[test]
    fn names_without_tags() {
        for (image, expected) in [
            (IMAGE, "reg.example:5000/team/app"),
            ("reg.example:5000/app", "reg.example:5000/app"),
            ("app@sha256:00", "app"),
            ("app:1@sha256:00", "app"),
        ] {
            assert_eq!(bare(image), expected);
        }
    }

    #[test]
    fn a_private_image_is_for_those_who_can_pull_it() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::open(folder.path().into(), Verification::Pulled);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Open, "brought by somebody else");
        access.begin(IMAGE);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Unknown, "in the middle of a pull");
        access.end(IMAGE, Some(("i", secret("1", "h"))));
        // What follows holds for the next kubelet as well.
        let access = Access::open(folder.path().into(), Verification::Pulled);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Private);
        assert_eq!(access.verdict("other/name:1", "i"), Verdict::Unknown);
        for (origins, expected) in [
            (vec![], false),
            (vec![Origin::Node], false),
            (vec![secret("1", "rotated")], true),
            (vec![secret("2", "other")], false),
            (vec![secret("2", "rotated")], true),
            (vec![secret("2", "changed")], true),
        ] {
            assert_eq!(access.knows(IMAGE, "i", &origins), expected, "{origins:?}");
        }
        access.begin(IMAGE);
        access.end(IMAGE, Some(("i", Origin::Node)));
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Open, "everybody can pull it");
        access.retain(&HashSet::new());
        let access = Access::open(folder.path().into(), Verification::Pulled);
        assert!(access.state().pulled.is_empty());
    }

    #[test]
    fn policies_say_what_is_verified() {
        let folder = tempfile::tempdir().unwrap();
        let others = |allowed: &str| Verification::Others(vec![allowed.to_owned()]);
        let access = Access::open(folder.path().into(), Verification::Pulled);
        access.begin(IMAGE);
        access.end(IMAGE, Some(("pulled", secret("1", "h"))));
        for (verification, of_pulled, of_brought) in [
            (Verification::Never, Verdict::Open, Verdict::Open),
            (Verification::Pulled, Verdict::Private, Verdict::Open),
            (others("reg.example:5000/team/app"), Verdict::Open, Verdict::Open),
            (others("reg.example:5000/*"), Verdict::Open, Verdict::Open),
            (others("reg.example:5000/te/*"), Verdict::Private, Verdict::Unknown),
            (others("reg.example:5000/team"), Verdict::Private, Verdict::Unknown),
            (Verification::Always, Verdict::Private, Verdict::Unknown),
        ] {
            let access = Access::open(folder.path().into(), verification);
            let told = (access.verdict(IMAGE, "pulled"), access.verdict(IMAGE, "brought"));
            assert_eq!(told, (of_pulled, of_brought), "{:?}", access.verification);
        }
    }

    #[test]
    fn short_names_are_on_the_list_as_whole_ones() {
        let others = Verification::Others(vec!["docker.io/library/busybox".to_owned()]);
        assert!(others.opens("busybox:1") && others.opens("docker.io/library/busybox"));
        assert!(!others.opens("me/busybox"));
    }

    #[test]
    fn a_list_has_whole_names_and_their_beginnings() {
        for (pattern, expected) in [
            ("reg.example:5000/team/app", true),
            ("reg.example:5000/*", true),
            ("docker.io/library/a", true),
            ("", false),
            ("/*", false),
            ("*", false),
            ("a", false),
            ("team/app", false),
            (" reg.example/a", false),
            ("reg.example/a b", false),
            ("reg.example/te*", false),
            ("reg.example/*/a", false),
            ("reg.example/*/*", false),
            ("reg.example/a:1", false),
            ("reg.example/a@sha256:00", false),
            ("reg.example/A", false),
            ("reg.example//a", false),
        ] {
            let list = [pattern.to_owned()];
            let read = Verification::parse("NeverVerifyAllowlistedImages", &list);
            assert_eq!(read.is_ok(), expected, "{pattern:?}: {read:?}");
        }
    }

    #[test]
    fn a_kubelet_that_ended_in_a_pull_does_not_give_it_away() {
        let folder = tempfile::tempdir().unwrap();
        Access::open(folder.path().into(), Verification::Pulled).begin(IMAGE);
        let access = Access::open(folder.path().into(), Verification::Pulled);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Unknown);
        access.begin(IMAGE);
        access.begin(IMAGE);
        access.end(IMAGE, None);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Unknown, "another pull goes on");
        access.end(IMAGE, None);
        assert_eq!(access.verdict(IMAGE, "i"), Verdict::Open, "none brought it");
    }
}
