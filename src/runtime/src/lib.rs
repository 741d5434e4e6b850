//! The container runtime: CRI v1 over an image store, a node network and libcontainer.
//!
//! Three roles of one executable share the work. The daemon holds [`Runtime`], which answers CRI
//! and keeps records. Each pod has a shim ([`shim_main`]), which holds the pod's namespaces, waits
//! for its containers, writes their logs, and outlives the daemon. Each start of a container or
//! exec is a short-lived process ([`container_main`]), the only one to use libcontainer.
//!
//! It is not a kubelet: it restarts nothing, rotates no logs, and knows nothing of the API.
//!
//! Start at [`Runtime`] in `runtime.rs`, then `sandbox.rs`, `container.rs`, `shim/pod.rs`, `oci/`.

mod apparmor;
mod backend;
mod capability;
mod cdi;
mod cgroup;
mod container;
mod error;
mod exec;
mod image_service;
mod link;
mod local;
mod metrics;
mod oci;
mod runtime;
mod sandbox;
mod seccomp;
mod serve;
mod service;
mod shim;
mod signal;
mod spec;
mod state;
mod stats;
mod streaming;
mod sys;
mod volume;
mod wire;

pub use backend::{Credentials, HostPort, Image, Images, Network, NetworkPod, Usage};
pub use error::Error;
pub use k8s_cri::v1::Protocol;
pub use oci::container_main;
pub use oci::launch::Root;
pub use runtime::{Config, HANDLER, Runtime};
pub use shim::shim_main;
