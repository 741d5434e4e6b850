//! The Container Runtime Interface v1 as Rust types, clients and servers, generated from
//! `proto/v1.proto`; the level is Kubernetes 1.36.
//!
//! It holds no behaviour: `runtime` serves it and `kubelet` calls it.

/// `runtime.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
