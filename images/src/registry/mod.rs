//! The client of registries: OCI distribution spec, Docker Registry HTTP API v2.
//!
//! [`endpoint`] decides whom to ask, [`credentials`] as whom, [`client`] how, [`blob`] streams layers.

pub(crate) mod blob;
mod challenge;
pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod endpoint;
mod registries;
mod token;

pub use credentials::Auth;
