//! Making a [`kube::Client`].

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::Service;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read, or names things it does not define.
    #[error("kubeconfig {path} cannot be used")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// The kubeconfig's cluster cannot be spoken to as it says.
    #[error("no client can be made from kubeconfig {path}")]
    Client {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::Error,
    },
}

/// A client whose requests go to `service` directly: no socket, no TLS. Identity, authorisation and
/// admission are the service's business.
pub fn in_process<S, B>(service: S) -> Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    Client::new(service, "default")
}

/// A client over HTTPS as `context` of the kubeconfig at `path` says; its current context when `None`.
pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Client, ConnectError> {
    let broken = |source| ConnectError::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(broken)?;
    let options =
        KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(broken)?;
    Client::try_from(config)
        .map_err(|source| ConnectError::Client { path: path.to_owned(), source })
}
