//! The API server: the only user of the store and the only HTTP server of the API.
//!
//! A request enters by `serve` (TLS, HTTP) or `in_process`, walks `server` (authenticate, authorise,
//! dispatch), a verb in `rest/`, `registry` (admission, strategy, validation, store), and is answered
//! from bytes. Reads come from `cache`, which one store watch keeps current. It knows nothing of
//! scheduling or running pods.

mod access;
mod admission;
mod aggregation;
pub mod attributes;
mod audit;
pub mod authn;
pub mod authz;
#[cfg(test)]
mod bad_input_tests;
pub mod body;
pub mod bootstrap;
mod cache;
mod caches;
mod codec;
mod continue_token;
mod conversion;
mod custom;
pub mod defaults;
mod deletion;
mod discovery;
mod encryption;
mod expiry;
mod fields;
mod flow;
mod gate;
mod gzip;
mod health;
mod identity;
mod in_process;
mod items;
mod json;
mod kubeconfig;
mod leftover;
mod members;
mod metadata;
mod metrics;
mod negotiate;
pub mod object;
mod openapi;
mod options;
mod paths;
pub mod pki;
mod policy;
mod printers;
mod protobuf;
pub mod registry;
mod request_info;
pub mod resource;
mod respond;
mod rest;
mod selection;
mod serve;
mod served;
mod server;
mod start;
mod statusz;
mod strategy;
mod subresources;
#[cfg(test)]
mod tests;
mod texts;
mod validation;
mod version;
mod warnings;
pub mod webhook;
mod websocket;
mod zero;

pub use access::Access;
pub use attributes::{RequestContext, UserInfo};
pub use audit::{
    BatchOptions as AuditBatchOptions, Mode as AuditMode, Options as AuditOptions,
    Throttle as AuditThrottle, TruncateOptions as AuditTruncateOptions,
    WebhookOptions as AuditWebhookOptions,
};
pub use authz::modes::Modes;
pub use gate::{Gate, Operation};
pub use in_process::InProcess;
pub use object::Object;
pub use registry::Registry;
pub use resource::{Resource, ResourceRef};
pub use start::{ApiServer, Config, Error, KubeletAddress, NodeAddress};
