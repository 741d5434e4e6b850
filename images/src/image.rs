//! An image as callers see it.

use std::sync::Arc;

use crate::digest::Digest;

/// An image in the store: its names, its configuration, its layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration, `sha256:…`.
    pub id: String,
    /// `domain/path:tag`, normalized.
    pub tags: Vec<String>,
    /// `domain/path@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes of manifest, configuration and layer blobs as transferred.
    pub size_bytes: u64,
    /// Stays when room is made.
    pub pinned: bool,
    /// What the image says about how to run it.
    pub config: Arc<oci_spec::image::ImageConfiguration>,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLayer {
    pub diff_id: Digest,
    /// Bytes its files take, unpacked.
    pub unpacked_bytes: u64,
}
