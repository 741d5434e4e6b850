//! A connection that costs its user as little as can be, so that what is measured is the server: HTTP/1.1 over
//! TLS, one request at a time, answers counted and dropped.

use std::sync::Arc;

use apiserver::pki::tls::Anybody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What goes wrong here ends the measurement.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

const READ_BYTES: usize = 64 << 10;

/// Where the server is and who asks.
#[derive(Clone)]
pub struct Target {
    address: String,
    tls: TlsConnector,
    head: String,
}

impl Target {
    /// Of the first cluster and the first user of a kubeconfig.
    pub fn read(path: &str) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)?;
        let config: Value = serde_saphyr::from_str(&text)?;
        let user = &config["users"][0]["user"];
        let pem = |key: &str| STANDARD.decode(user[key].as_str().unwrap_or_default());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        let tls = if user["client-key-data"].is_string() {
            let chain = CertificateDer::pem_slice_iter(&pem("client-certificate-data")?)
                .collect::<Result<_, _>>()?;
            let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
            builder.with_client_auth_cert(chain, key)?
        } else {
            builder.with_no_client_auth()
        };
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
        let address = server.strip_prefix("https://").ok_or("the server is not https")?.to_owned();
        let mut head = format!("Host: {address}\r\nAccept: application/json\r\n");
        if let Some(token) = user["token"].as_str() {
            head.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        Ok(Self { address, tls: TlsConnector::from(Arc::new(tls)), head })
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (host, _) = self.address.rsplit_once(':').ok_or("the server has no port")?;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = self.tls.connect(name, stream).await?;
        Ok(Connection {
            stream,
            head: self.head.clone(),
            read: Vec::new(),
            at: 0,
            rest: Rest::Nothing,
        })
    }
}

/// What is still to come of an answer.
#[derive(Clone, Copy)]
enum Rest {
    Nothing,
    Bytes(usize),
    /// So much of a chunk; then a line break and the next.
    Chunk(usize),
    NextChunk,
}

/// A connection with at most one open request.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    head: String,
    read: Vec<u8>,
    /// So much of `read` was used.
    at: usize,
    rest: Rest,
}

impl Connection {
    /// Sends a request and reads the head of its answer, which is a failure unless its code is 2xx.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<(), Failure> {
        let head = &self.head;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{head}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let end = loop {
            let found = self.read[self.at..].windows(4).position(|w| w == b"\r\n\r\n");
            match found {
                Some(found) => break self.at + found + 4,
                None => self.fill().await?,
            }
        };
        let head = std::str::from_utf8(&self.read[self.at..end])?.to_ascii_lowercase();
        self.at = end;
        let mut lines = head.split("\r\n");
        let code = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        self.rest = Rest::Nothing;
        for line in lines {
            if let Some(length) = line.strip_prefix("content-length: ") {
                self.rest = Rest::Bytes(length.parse()?);
            } else if line == "transfer-encoding: chunked" {
                self.rest = Rest::NextChunk;
            }
        }
        if code.starts_with('2') {
            return Ok(());
        }
        let mut text = Vec::new();
        while let Some(piece) = self.piece().await? {
            text.extend_from_slice(piece);
        }
        Err(format!("{method} {path}: {code}: {}", String::from_utf8_lossy(&text)).into())
    }

    /// The next bytes of the answer's body; nothing at its end.
    pub async fn piece(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            match self.rest {
                Rest::Nothing | Rest::Bytes(0) => return Ok(None),
                Rest::Chunk(0) => {
                    self.line().await?;
                    self.rest = Rest::NextChunk;
                }
                Rest::NextChunk => {
                    let size = usize::from_str_radix(&self.line().await?, 16)?;
                    self.rest = Rest::Chunk(size);
                    if size == 0 {
                        self.line().await?;
                        self.rest = Rest::Nothing;
                    }
                }
                Rest::Bytes(left) | Rest::Chunk(left) => {
                    if self.at == self.read.len() {
                        self.fill().await?;
                    }
                    let from = self.at;
                    let taken = left.min(self.read.len() - from);
                    self.at += taken;
                    self.rest = match self.rest {
                        Rest::Chunk(_) => Rest::Chunk(left - taken),
                        _ => Rest::Bytes(left - taken),
                    };
                    return Ok(Some(&self.read[from..from + taken]));
                }
            }
        }
    }

    /// A request whose answer is read and dropped; how long it was.
    pub async fn done(
        &mut self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<usize, Failure> {
        self.send(method, path, kind, body).await?;
        let mut length = 0;
        while let Some(piece) = self.piece().await? {
            length += piece.len();
        }
        Ok(length)
    }

    async fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(length) = self.read[self.at..].windows(2).position(|w| w == b"\r\n") {
                let line = std::str::from_utf8(&self.read[self.at..self.at + length])?.to_owned();
                self.at += length + 2;
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.read.drain(..self.at);
        self.at = 0;
        self.read.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }
}
