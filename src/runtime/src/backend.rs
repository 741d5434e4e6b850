//! What the runtime needs of images and of the network, as traits, so that it can be tried
//! without a registry and without a node process.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_cri::v1;
use oci_spec::image::ImageConfiguration;

use crate::error::Error;
use crate::oci::launch::Root;

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// `repo:tag` names.
    pub tags: Vec<String>,
    /// `repo@sha256:…` names.
    pub digests: Vec<String>,
    /// Bytes.
    pub size_bytes: u64,
    /// Stays when room is made.
    pub pinned: bool,
    /// How to run it.
    pub config: Arc<ImageConfiguration>,
}

/// Credentials as CRI hands them over.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

/// Bytes and inodes in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The image store.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// All images.
    fn list(&self) -> Vec<Image>;
    /// The image of this reference, id or digest.
    fn get(&self, name: &str) -> Option<Image>;
    /// Fetches an image.
    async fn pull(&self, reference: &str, credentials: Option<Credentials>)
    -> Result<Image, Error>;
    /// How far the pull of a reference is, in bytes and of how many, if one goes on.
    fn pulling(&self, reference: &str) -> Option<(u64, u64)> {
        let _ = reference;
        None
    }
    /// Removes an image by reference or id.
    async fn remove(&self, name: &str) -> Result<(), Error>;
    /// Makes the writable layer `key` on an image and says how to mount it.
    async fn snapshot(&self, image_id: &str, key: &str) -> Result<Root, Error>;
    /// The keys of all writable layers.
    fn snapshots(&self) -> Vec<String>;
    /// Removes a writable layer; nothing when there is none.
    async fn remove_snapshot(&self, key: &str) -> Result<(), Error>;
    /// The directory of the store.
    fn root(&self) -> PathBuf;
    /// What the images take.
    fn usage(&self) -> Usage;
}

/// What the network has to know of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPod {
    /// Its namespace and name, as `namespace/name`, by which network policies know it.
    pub name: String,
    /// How fast it may receive, in bits a second.
    pub ingress_bps: Option<u64>,
    /// How fast it may send, in bits a second.
    pub egress_bps: Option<u64>,
    /// Ports of the host that lead into it.
    pub ports: Vec<HostPort>,
    /// What it resolves names by.
    pub dns: Option<v1::DnsConfig>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A port of the host that leads into a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address on the host; `None` leaves it to the network.
    pub host_ip: Option<IpAddr>,
    /// The port there.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// Of what.
    pub protocol: v1::Protocol,
}

/// The node's network.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Attaches the network namespace to the pod network; the same id gets the same addresses.
    async fn attach(
        &self,
        id: &str,
        pod: &NetworkPod,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<IpAddr>, Error>;
    /// Undoes it; nothing when it is not attached.
    async fn detach(&self, id: &str) -> Result<(), Error>;
    /// The node's own network namespace, for pods with `hostNetwork`; `None` when it is that of this
    /// process.
    async fn node_netns(&self) -> Result<Option<OwnedFd>, Error>;
    /// The network namespace from which pods are reached; `None` when it is that of this process.
    async fn pods_netns(&self) -> Result<Option<OwnedFd>, Error> {
        self.node_netns().await
    }
    /// Sets the addresses pods get.
    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error>;
    /// Whether a pod would be attached; an error says why not.
    async fn status(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Undoes what is left of attachments other than `valid`.
    async fn collect(&self, valid: &[String]) -> Result<(), Error> {
        let _ = valid;
        Ok(())
    }
}
