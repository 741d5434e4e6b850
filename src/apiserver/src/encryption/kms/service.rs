//! The calls to a plugin, `v2.KeyManagementService`.
//!
//! Source: `k8s.io/kms/apis/v2`.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use plugin::{Plugin, Socket};
use prost::Message;

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

/// Reads an endpoint, `unix:///PATH` or `unix:///@NAME`.
pub fn socket(endpoint: &str) -> Result<Socket, String> {
    if endpoint.is_empty() {
        return Err("endpoint is a mandatory field for a kms".into());
    }
    let url = url::Url::parse(endpoint)
        .map_err(|error| format!("invalid endpoint for kms provider, error: {error}"))?;
    if url.scheme() != "unix" {
        return Err(format!(
            "unsupported scheme {:?} for KMS provider, only unix is supported",
            url.scheme()
        ));
    }
    Ok(match url.path().strip_prefix("/@") {
        Some(name) => Socket::Abstract(name.to_owned()),
        None => Socket::Path(url.path().into()),
    })
}

/// A plugin's socket; connected when it is needed, and again when it went away.
pub struct Service {
    socket: Socket,
    timeout: Duration,
    plugin: OnceLock<Plugin>,
}

impl Service {
    /// The service at `socket`, each of whose calls may take `timeout`.
    pub fn new(socket: Socket, timeout: Duration) -> Self {
        Self { socket, timeout, plugin: OnceLock::new() }
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

    async fn call<Request, Answer>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Answer, String>
    where
        Request: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let plugin = self.plugin.get_or_init(|| Plugin::lazily(self.socket.clone()));
        let call = async { plugin.call(method, request).await.map_err(|error| error.to_string()) };
        let late =
            |_| Err("rpc error: code = DeadlineExceeded desc = context deadline exceeded".into());
        tokio::time::timeout(self.timeout, call).await.unwrap_or_else(late)
    }
}

fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for (text, want) in [
            ("unix:///run/kms.sock", Ok(Socket::Path("/run/kms.sock".into()))),
            ("unix:///@kms", Ok(Socket::Abstract("kms".into()))),
            ("", Err("endpoint is a mandatory field for a kms".to_owned())),
            (
                "http://127.0.0.1:1",
                Err("unsupported scheme \"http\" for KMS provider, only unix is supported"
                    .to_owned()),
            ),
        ] {
            assert_eq!(socket(text), want, "{text}");
        }
    }
}
