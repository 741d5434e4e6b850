//! The node's own image store and network behind the runtime's seams.

use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use async_trait::async_trait;
use images::ErrorKind;
use tonic::Code;

use crate::backend::{Credentials, Image, Images, Network, NetworkPod, Usage};
use crate::error::Error;
use crate::oci::launch::Root;

/// The interface's name in pods.
const INTERFACE: &str = "eth0";

impl From<images::Error> for Error {
    fn from(error: images::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Unauthorized => Code::PermissionDenied,
            ErrorKind::Unreachable => Code::Unavailable,
            ErrorKind::Invalid => Code::InvalidArgument,
            ErrorKind::TooLarge | ErrorKind::DiskFull => Code::ResourceExhausted,
            ErrorKind::Corrupt => Code::DataLoss,
            _ => Code::Unknown,
        };
        Self::Image { code, message: chain(&error) }
    }
}

impl From<netns::Error> for Error {
    fn from(error: netns::Error) -> Self {
        Self::Failed(chain(&error))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn image(image: images::Image) -> Image {
    Image {
        id: image.id,
        tags: image.tags,
        digests: image.digests,
        size_bytes: image.size_bytes,
        pinned: image.pinned,
        config: image.config,
    }
}

fn auth(credentials: Credentials) -> Option<images::Auth> {
    if !credentials.registry_token.is_empty() {
        return Some(images::Auth::RegistryToken(credentials.registry_token));
    }
    if !credentials.identity_token.is_empty() {
        return Some(images::Auth::IdentityToken(credentials.identity_token));
    }
    if credentials.username.is_empty() {
        return None;
    }
    let Credentials { username, password, .. } = credentials;
    Some(images::Auth::Basic { username, password })
}

/// Runs `work`, which waits for the disk, on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, images::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::Failed(error.to_string()))??)
}

#[async_trait]
impl Images for images::Store {
    fn list(&self) -> Vec<Image> {
        Self::list(self).into_iter().map(image).collect()
    }

    fn get(&self, name: &str) -> Option<Image> {
        Self::get(self, name).map(image)
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
    ) -> Result<Image, Error> {
        let options = images::PullOptions {
            auth: credentials.and_then(auth),
            ..images::PullOptions::default()
        };
        Ok(image(Self::pull(self, reference, options).await?))
    }

    fn pulling(&self, reference: &str) -> Option<(u64, u64)> {
        Self::pulling(self, reference).map(|state| (state.received_bytes, state.total_bytes))
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        let (store, name) = (self.clone(), name.to_owned());
        blocking(move || Self::remove(&store, &name)).await.map(drop)
    }

    async fn snapshot(&self, image_id: &str, key: &str) -> Result<Root, Error> {
        let (store, image_id, key) = (self.clone(), image_id.to_owned(), key.to_owned());
        let snapshot = blocking(move || Self::snapshot(&store, &image_id, &key)).await?;
        Ok(Root::Overlay {
            lower: snapshot.lower(),
            upper: snapshot.upper(),
            work: snapshot.work(),
        })
    }

    fn snapshots(&self) -> Vec<String> {
        Self::snapshots(self).into_iter().map(|(key, _)| key).collect()
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || Self::remove_snapshot(&store, &key)).await
    }

    fn root(&self) -> PathBuf {
        Self::root(self).to_owned()
    }

    fn usage(&self) -> Usage {
        let images::Usage { bytes, inodes } = Self::usage(self);
        Usage { bytes, inodes }
    }
}

#[async_trait]
impl Network for netns::Control {
    async fn attach(
        &self,
        id: &str,
        pod: &NetworkPod,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<IpAddr>, Error> {
        let request = netns::AttachRequest {
            id: id.to_owned(),
            ifname: INTERFACE.to_owned(),
            member: Some(pod.name.clone()),
            bandwidth: netns::Bandwidth {
                ingress_bps: pod.ingress_bps,
                egress_bps: pod.egress_bps,
            },
            address: None,
            anew: false,
        };
        let attachment = Self::attach(self, request, netns).await?;
        Ok([Some(attachment.address), attachment.address6].into_iter().flatten().collect())
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        Ok(Self::detach(self, id).await?)
    }

    async fn node_netns(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(Some(Self::node_netns(self).await?))
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        let own = self.pod_cidr().await?.to_string();
        if own == cidr {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!(
            "the node's network has the pod range {own}, and the API gives it {cidr}"
        )))
    }
}
