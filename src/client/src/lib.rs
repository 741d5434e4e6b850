//! How every component reaches the API server: a [`kube::Client`] whose transport is either the API
//! server's own service in this process, or HTTPS. It holds no Kubernetes logic of its own; start at
//! [`in_process`] and [`Informers`].

mod connect;
mod discovery;
mod election;
mod informer;
mod list_watch;
mod recorder;
mod slice_owners;
mod taints;

pub use connect::{ConnectError, from_kubeconfig, in_process};
pub use discovery::{resources, versioned_resources};
pub use election::{Election, Term};
pub use informer::{Change, Informer, Informers, Key, Store, Watched, key};
pub use list_watch::{Event, Selection, list_watch};
pub use recorder::{Recorder, object_reference};
pub use slice_owners::{Move, SERVICE_NAME, SliceOwners};
pub use taints::{tolerates, tolerates_device};
