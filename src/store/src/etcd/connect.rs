//! The connection: plain or TLS, to the first of the named members that answers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a member listens on when its address has no port.
const PORT: u16 = 2379;

/// Opens a connection to a host's port.
pub type Dial = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// Files for TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities that may vouch for the members; without it the connection is plain.
    pub ca: Option<PathBuf>,
    /// The client's certificate.
    pub cert: Option<PathBuf>,
    /// The certificate's key.
    pub key: Option<PathBuf>,
}

/// Where etcd is and which keys are ours.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Hosts and ports of the members.
    pub members: Vec<(String, u16)>,
    /// What all keys begin with.
    pub prefix: String,
    /// Files for TLS.
    pub tls: TlsFiles,
    /// How connections are opened; host names are resolved there.
    pub dial: Dial,
}

impl EtcdOptions {
    /// Reads `etcd://host:port,host:port/prefix`.
    ///
    /// # Errors
    /// [`Error::Address`] when the text is no such address.
    pub fn parse(text: &str, tls: TlsFiles, dial: Dial) -> Result<Self, Error> {
        let refused = || Error::Address { address: text.to_owned() };
        let rest = text.strip_prefix("etcd://").ok_or_else(refused)?;
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let members = hosts
            .split(',')
            .map(|host| {
                let uri: Uri = format!("http://{host}/").parse().ok()?;
                let name = uri.host()?.trim_matches(['[', ']']).to_owned();
                let authority = uri.authority()?.as_str();
                let after = authority.rsplit(']').next().unwrap_or(authority);
                let port = match after.split_once(':') {
                    Some((_, port)) => port.parse().ok()?,
                    None => PORT,
                };
                (!name.is_empty() && !authority.contains('@')).then_some((name, port))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(refused)?;
        let prefix = if prefix.is_empty() { "rootlet" } else { prefix };
        Ok(Self { members, prefix: format!("{}:", prefix.trim_matches('/')), tls, dial })
    }

    /// The members, for messages.
    pub(super) fn address(&self) -> String {
        let members: Vec<String> = self.members.iter().map(|(h, p)| format!("{h}:{p}")).collect();
        members.join(",")
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A channel that connects when it is first used, and again after a failure.
pub(super) fn channel(options: &EtcdOptions) -> Result<Channel, Error> {
    let tls = connector(&options.tls)?;
    let (members, dial) = (options.members.clone(), options.dial.clone());
    let connect = tower::service_fn(move |_: Uri| {
        let (members, dial, tls) = (members.clone(), dial.clone(), tls.clone());
        async move {
            let mut last = io::Error::other("no member is named");
            for (host, port) in members {
                match one(&host, port, &dial, tls.as_ref()).await {
                    Ok(stream) => return Ok(TokioIo::new(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    });
    // The connector decides where to and how; the address only fills the requests' headers.
    let endpoint = Endpoint::from_static("http://etcd")
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connect))
}

async fn one(
    host: &str,
    port: u16,
    dial: &Dial,
    tls: Option<&TlsConnector>,
) -> io::Result<Box<dyn Stream>> {
    let connecting = async {
        let stream = dial(host.to_owned(), port).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Box::new(stream) as Box<dyn Stream>) };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Stream>)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(io::Error::other)?
}

fn connector(files: &TlsFiles) -> Result<Option<TlsConnector>, Error> {
    let Some(ca) = &files.ca else { return Ok(None) };
    let bad = |path: &Path, error: &dyn std::fmt::Display| Error::Io {
        operation: "use the TLS file",
        path: path.to_owned(),
        source: io::Error::other(error.to_string()),
    };
    let read = |path: &Path| {
        let failed = |source| Error::Io { operation: "read", path: path.to_owned(), source };
        fs::read(path).map_err(failed)
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        let bytes = read(path)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        all.map_err(|error| bad(path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| bad(ca, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(ca, &error))?
        .with_root_certificates(roots);
    let mut config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| bad(key, &e))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .map_err(|error| bad(cert, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let dial: Dial = Arc::new(|host, port| {
            Box::pin(async move { TcpStream::connect((host.as_str(), port)).await })
        });
        let read = |text: &str| {
            let parsed = EtcdOptions::parse(text, TlsFiles::default(), dial.clone());
            parsed.map(|options| (options.address(), options.prefix)).ok()
        };
        for (text, want) in [
            ("etcd://127.0.0.1:2379", Some(("127.0.0.1:2379", "rootlet:"))),
            ("etcd://a,b:4001/team", Some(("a:2379,b:4001", "team:"))),
            ("etcd://[::1]:1/", Some(("::1:1", "rootlet:"))),
            ("http://a", None),
            ("etcd://", None),
            ("etcd://a b", None),
            ("etcd://a:99999", None),
            ("etcd://me@a", None),
        ] {
            let want = want.map(|(address, prefix)| (address.to_owned(), prefix.to_owned()));
            assert_eq!(read(text), want, "{text}");
        }
    }
}
