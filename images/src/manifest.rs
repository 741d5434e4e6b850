//! Manifests and indexes, OCI and Docker schema 2, read leniently and checked strictly.
//!
//! Source: OCI image spec "Image Manifest" and "Image Index"; Docker "Image Manifest V 2, Schema 2".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A pointer to content: what it is, its digest, its size in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Build attestations sit in an index beside the images; they are not images.
    fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
    }
}

/// One image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Several images, one per platform, or indexes again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// What a reference may resolve to.
#[derive(Clone, Debug)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses `bytes`, called `what` in errors. The document's own shape decides, and its media type
    /// must agree with it, so that one blob cannot be read as two different things.
    pub fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        let corrupt = |error: serde_json::Error| Error::corrupt(what, error);
        let probe: Probe = serde_json::from_slice(bytes).map_err(corrupt)?;
        let media_type = probe.media_type.as_deref().unwrap_or_default();
        if probe.schema_version == Some(1) || probe.fs_layers.is_some() {
            return Err(Error::unsupported(
                what,
                "the image is in Docker's schema 1 format, which is no longer supported; push it again with a current tool",
            ));
        }
        let is_manifest = probe.config.is_some() && probe.layers.is_some();
        match (is_manifest, probe.manifests.is_some()) {
            (true, true) => Err(Error::corrupt(what, "it is a manifest and an index at once")),
            (true, false) if matches!(media_type, OCI_INDEX | DOCKER_LIST) => {
                Err(Error::corrupt(what, format!("a manifest calls itself {media_type}")))
            }
            (false, true) if matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) => {
                Err(Error::corrupt(what, format!("an index calls itself {media_type}")))
            }
            (true, false) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(corrupt)?;
                manifest.check_config(what, probe.artifact_type.as_deref())?;
                Ok(Self::Manifest(manifest))
            }
            (false, true) => Ok(Self::Index(serde_json::from_slice(bytes).map_err(corrupt)?)),
            (false, false) => Err(Error::corrupt(what, "it is neither a manifest nor an index")),
        }
    }
}

impl Manifest {
    fn check_config(&self, what: &str, artifact_type: Option<&str>) -> Result<(), Error> {
        match self.config.media_type.as_str() {
            // Some old builders leave it out or say octet-stream.
            OCI_CONFIG | DOCKER_CONFIG | "" | "application/octet-stream" => Ok(()),
            other => Err(Error::unsupported(
                what,
                format!("it is not a container image but {}", artifact_type.unwrap_or(other)),
            )),
        }
    }
}

impl Index {
    /// The entries that can run on `platform`, best first; without any, all that say nothing of theirs.
    pub fn choose(&self, what: &str, platform: &Platform) -> Result<&Descriptor, Error> {
        let images = || self.manifests.iter().filter(|d| !d.is_attestation());
        let best = images()
            .filter_map(|d| Some((platform.rank(d.platform.as_ref()?)?, d)))
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, descriptor)) = best {
            return Ok(descriptor);
        }
        if let Some(descriptor) = images().find(|d| d.platform.is_none()) {
            return Ok(descriptor);
        }
        let offered: Vec<String> =
            images().filter_map(|d| d.platform.as_ref()).map(ToString::to_string).collect();
        Err(Error::NotFound {
            what: format!(
                "{what}: no match for platform {platform} in manifest (it has {})",
                if offered.is_empty() { "none".to_owned() } else { offered.join(", ") }
            ),
        })
    }
}

/// Whether a layer of this media type can be unpacked. Its compression is told by its first bytes, as
/// containerd does: Docker's own `.tar` without suffix may be gzip all the same.
pub(crate) fn check_layer(descriptor: &Descriptor) -> Result<(), Error> {
    let media_type = descriptor.media_type.as_str();
    let suffix = [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        OCI_LAYER,
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ]
    .iter()
    .find_map(|base| media_type.strip_prefix(base));
    match suffix {
        Some("" | ".gzip" | "+gzip" | ".zstd" | "+zstd") => Ok(()),
        None if matches!(media_type, "" | "application/octet-stream") => Ok(()),
        _ => Err(Error::unsupported(
            format!("layer {}", descriptor.digest),
            format!("media type {media_type:?} is not a layer this store can unpack"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn refuses_schema_1_and_ambiguity() {
        for (text, want) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (r#"{"config":{},"layers":[],"manifests":[]}"#, "at once"),
            (r#"{"schemaVersion":2}"#, "neither"),
            ("[", "corrupt"),
            (
                r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
                "calls itself",
            ),
        ] {
            let error = Document::parse("it", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn refuses_artifacts() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{}","size":2}},"layers":[]}}"#,
            digest('a')
        );
        let error = Document::parse("chart", text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("helm"), "{error}");
    }

    #[test]
    fn chooses_the_platform_and_skips_attestations() {
        let text = format!(
            r#"{{"manifests":[
              {{"digest":"{a}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}},"annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}},
              {{"digest":"{b}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
              {{"digest":"{c}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            a = digest('a'),
            b = digest('b'),
            c = digest('c')
        );
        let Document::Index(index) = Document::parse("it", text.as_bytes()).unwrap() else {
            panic!("an index")
        };
        let amd64 = Platform::parse("linux/amd64").unwrap();
        assert_eq!(index.choose("it", &amd64).unwrap().digest.to_string(), digest('c'));
        let riscv = Platform::parse("linux/riscv64").unwrap();
        let error = index.choose("it", &riscv).unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8, linux/amd64"), "{error}");
    }
}
