//! The calls to a plugin, `v2.KeyManagementService`.
//!
//! Source: `k8s.io/kms/apis/v2`.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::envelope::Envelope;

/// `StatusRequest`
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

/// `StatusResponse`
#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

/// `EncryptRequest`
#[derive(Clone, PartialEq, Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// `EncryptResponse`
#[derive(Clone, PartialEq, Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// `DecryptRequest`
#[derive(Clone, PartialEq, Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// `DecryptResponse`
#[derive(Clone, PartialEq, Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket's file.
    Path(PathBuf),
    /// Linux' abstract namespace, which has no files.
    Abstract(String),
}

impl Endpoint {
    /// Reads `unix:///PATH` or `unix:///@NAME`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("endpoint is a mandatory field for a kms".into());
        }
        let url = url::Url::parse(text)
            .map_err(|error| format!("invalid endpoint for kms provider, error: {error}"))?;
        if url.scheme() != "unix" {
            return Err(format!(
                "unsupported scheme {:?} for KMS provider, only unix is supported",
                url.scheme()
            ));
        }
        Ok(match url.path().strip_prefix("/@") {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(url.path().into()),
        })
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        match self {
            Self::Path(path) => UnixStream::connect(path).await,
            Self::Abstract(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream)
            }
        }
    }
}

/// A plugin's socket; connected when it is needed, and again when it went away.
pub struct Service {
    endpoint: Endpoint,
    timeout: Duration,
    channel: OnceCell<Channel>,
}

impl Service {
    /// The service at `endpoint`, each of whose calls may take `timeout`.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        Self { endpoint, timeout, channel: OnceCell::new() }
    }

    /// How the plugin is, and which key it has.
    pub async fn status(&self) -> Result<StatusResponse, String> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    /// Has `plaintext` encrypted.
    pub async fn encrypt(&self, plaintext: Vec<u8>) -> Result<EncryptResponse, String> {
        let request = EncryptRequest { plaintext, uid: new_uid() };
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    /// Has the source of an envelope decrypted.
    pub async fn decrypt(&self, header: &Envelope) -> Result<Vec<u8>, String> {
        let request = DecryptRequest {
            ciphertext: header.source.clone(),
            uid: new_uid(),
            key_id: header.key_id.clone(),
            annotations: header.annotations.clone(),
        };
        let response = self.call("/v2.KeyManagementService/Decrypt", request);
        response.await.map(|DecryptResponse { plaintext }| plaintext)
    }

    async fn channel(&self) -> Channel {
        let connect = async || {
            let at = self.endpoint.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let at = at.clone();
                async move { at.connect().await.map(TokioIo::new) }
            });
            tonic::transport::Endpoint::from_static("http://localhost")
                .connect_with_connector_lazy(connector)
        };
        self.channel.get_or_init(connect).await.clone()
    }

    async fn call<Request, Answer>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Answer, String>
    where
        Request: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let call = async {
            let mut client = tonic::client::Grpc::new(self.channel().await);
            client.ready().await.map_err(|error| cause(&error))?;
            let codec = ProstCodec::<Request, Answer>::default();
            let path = http::uri::PathAndQuery::from_static(method);
            let answer = client.unary(tonic::Request::new(request), path, codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| {
                format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
            })
        };
        let late =
            |_| Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into());
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(late)
    }
}

fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The innermost words of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    format!("rpc error: code = Unavailable desc = {innermost}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for (text, want) in [
            ("unix:///run/kms.sock", Ok(Endpoint::Path("/run/kms.sock".into()))),
            ("unix:///@kms", Ok(Endpoint::Abstract("kms".into()))),
            ("", Err("endpoint is a mandatory field for a kms".to_owned())),
            (
                "http://127.0.0.1:1",
                Err("unsupported scheme \"http\" for KMS provider, only unix is supported"
                    .to_owned()),
            ),
        ] {
            assert_eq!(Endpoint::parse(text), want, "{text}");
        }
    }
}
