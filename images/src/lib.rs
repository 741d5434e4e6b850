//! Container images: fetched or loaded, verified, unpacked once, and mounted as overlays.
//!
//! What it is: a content store under one directory, a registry client, readers of image archives, and
//! snapshots for containers. What it is not: it knows nothing of Kubernetes, runs nothing, checks no
//! signatures, and builds no images.
//!
//! # What is kept
//! Manifests and configurations verbatim (`blobs/`), and each layer as an overlay directory (`layers/`),
//! shared by every image that has it. A layer is unpacked while it arrives, and its compressed blob is
//! never written to the disk: that halves both the disk use and the writing. Beside the directory lies the
//! archive's skeleton, its bytes without the files' content, from which the same archive is made again:
//! for [`Store::save`], and to check the files ([`Store::check`]).
//!
//! # What survives
//! Every file that counts is written under a temporary name and renamed; a layer appears by one rename of
//! a whole directory; `catalog.json` names the images, is replaced whole, and is synced. What is in
//! `tmp/` or not named by anything is swept at the next start. So a killed process leaves a good store.
//!
//! Against power cuts, layers and blobs are synced to the disk in the background. Until that is done, the
//! catalog says during which boot they were written; an image that was written during another boot and
//! not yet synced is dropped and pulled again. Blobs are checked against their digest whenever read.
//!
//! Start at [`Store`].

mod blob;
mod catalog;
mod channel;
mod decompress;
mod digest;
mod durable;
mod error;
mod image;
mod implied;
mod install;
mod layer;
mod limits;
mod load;
mod manifest;
mod pax;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod save;
mod skeleton;
mod snapshot;
mod source;
mod store;
mod tarball;
mod tree;
mod unpack;
mod upkeep;

pub use digest::{Algorithm, Digest, InvalidDigest};
pub use error::{Error, ErrorKind};
pub use image::{Image, ImageLayer};
pub use limits::Limits;
pub use platform::Platform;
pub use progress::{LayerEvent, Progress, Pulling};
pub use pull::PullOptions;
pub use reference::Reference;
pub use registry::Auth;
pub use snapshot::Snapshot;
pub use store::{Config, Store, Usage};
pub use unpack::Ownership;
pub use upkeep::{Checked, Damage, Pruned};
