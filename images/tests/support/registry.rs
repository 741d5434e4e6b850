//! A registry in the test's own process, with every fault one can ask for.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use images::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What the registry does wrong.
#[derive(Clone, Default)]
pub struct Faults {
    /// Ends each blob's connection after so many bytes.
    pub break_after: Option<usize>,
    /// Sends everything whatever range is asked for.
    pub no_ranges: bool,
    /// Changes a byte of each blob.
    pub flip: bool,
    /// Says another digest for manifests.
    pub lie_about_manifests: bool,
    /// Answers so many requests with this status first.
    pub refuse: Option<(usize, StatusCode)>,
    /// Waits before each chunk of a blob.
    pub slow: Option<Duration>,
    /// Redirects blobs there.
    pub redirect_blobs: Option<String>,
}

/// How clients must identify themselves.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    #[default]
    Open,
    Basic,
    /// Anonymous tokens are given out.
    Token,
    /// Tokens only for the user.
    UserToken,
}

#[derive(Default)]
pub struct State {
    pub blobs: HashMap<String, Bytes>,
    /// By repository and tag.
    pub manifests: HashMap<String, (String, Bytes)>,
    pub faults: Faults,
    pub security: Security,
    /// Method and path of each request, with `Range` and whether it carried credentials.
    pub log: Vec<String>,
    refused: usize,
    tokens: usize,
}

#[derive(Clone)]
pub struct Registry {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

pub const USER: &str = "user";
pub const PASSWORD: &str = "secret:with colon";

impl Registry {
    pub async fn start() -> Self {
        let (registry, listener) = Self::bind().await;
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        registry
    }

    /// A registry that speaks TLS; returns the certificate it uses, its own authority.
    pub async fn start_tls() -> (Self, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(
            made.signing_key.serialize_der(),
        )
        .unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (registry, listener) = Self::bind().await;
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, serving) = (acceptor.clone(), serving.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serving.serve(stream).await;
                    }
                });
            }
        });
        (registry, made.cert.pem())
    }

    async fn bind() -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Self { address, state: Arc::default() }, listener)
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = hyper::service::service_fn(move |request| {
            let registry = self.clone();
            async move { Ok::<_, Infallible>(registry.answer(request)) }
        });
        // Clients that go away in the middle are part of the game.
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    pub fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub fn requests(&self, containing: &str) -> usize {
        self.with(|state| state.log.iter().filter(|line| line.contains(containing)).count())
    }

    pub fn blob(&self, bytes: Vec<u8>) -> serde_json::Value {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.with(|state| state.blobs.insert(digest.to_string(), bytes.into()));
        serde_json::json!({"digest": digest, "size": size})
    }

    pub fn manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        manifest: &serde_json::Value,
    ) -> Digest {
        let bytes = Bytes::from(manifest.to_string());
        let digest = Digest::of(&bytes);
        self.with(|state| {
            for name in [tag.to_owned(), digest.to_string()] {
                let entry = (media_type.to_owned(), bytes.clone());
                state.manifests.insert(format!("{repository}/{name}"), entry);
            }
        });
        digest
    }

    /// Stores an image of gzip layers; returns its manifest's digest.
    pub fn image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Digest {
        let mut config = self.blob(super::config(layers));
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let mut descriptor = self.blob(super::gzip(layer));
                descriptor["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip".into();
                descriptor
            })
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
        });
        self.manifest(repository, tag, media_type, &manifest)
    }

    fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut state = self.state.lock().unwrap();
        let header = |name: &str| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let path = request.uri().path().to_owned();
        let authorization = header("authorization").to_owned();
        let range = header("range").to_owned();
        state.log.push(format!(
            "{} {} {range}{}",
            request.method(),
            request.uri(),
            if authorization.is_empty() { "" } else { " authorized" }
        ));
        if let Some((times, status)) = state.faults.refuse
            && state.refused < times
        {
            state.refused += 1;
            return Response::builder()
                .status(status)
                .header("retry-after", "0")
                .body(full("busy"))
                .unwrap();
        }
        if path == "/token" {
            return Self::token(&mut state, request.uri().query().unwrap_or(""), &authorization);
        }
        if let Some(refusal) = self.refusal(&state, &path, &authorization) {
            return refusal;
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return not_found();
        };
        if let Some((repository, name)) = rest.split_once("/manifests/") {
            return manifest(&state, &format!("{repository}/{name}"));
        }
        match rest.split_once("/blobs/").and_then(|(_, digest)| state.blobs.get(digest)) {
            Some(_) if state.faults.redirect_blobs.is_some() => {
                let target = state.faults.redirect_blobs.clone().unwrap();
                let location = format!("{target}{path}");
                Response::builder().status(307).header("location", location).body(full("")).unwrap()
            }
            Some(bytes) => blob(&state.faults, bytes.clone(), &range),
            None => not_found(),
        }
    }

    fn refusal(&self, state: &State, path: &str, authorization: &str) -> Option<Response<Body>> {
        let challenge = match state.security {
            Security::Open => return None,
            Security::Basic if authorization == basic() => return None,
            Security::Basic => "Basic realm=\"test\"".to_owned(),
            Security::Token | Security::UserToken => {
                if authorization == format!("Bearer token-{}", state.tokens) {
                    return None;
                }
                let repository =
                    path.trim_start_matches("/v2/").split("/manifests/").next().unwrap();
                let repository = repository.split("/blobs/").next().unwrap();
                format!(
                    "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:{repository}:pull\"",
                    self.address
                )
            }
        };
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(
            Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", challenge)
                .body(full(body))
                .unwrap(),
        )
    }

    fn token(state: &mut State, query: &str, authorization: &str) -> Response<Body> {
        assert!(query.contains("service=test") && query.contains("scope=repository%3A"), "{query}");
        if state.security == Security::UserToken && authorization != basic() {
            return Response::builder().status(StatusCode::UNAUTHORIZED).body(full("")).unwrap();
        }
        state.tokens += 1;
        let body = format!(r#"{{"token":"token-{}","expires_in":300}}"#, state.tokens);
        Response::new(full(body))
    }
}

fn basic() -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    format!("Basic {text}")
}

fn manifest(state: &State, name: &str) -> Response<Body> {
    let Some((media_type, bytes)) = state.manifests.get(name) else {
        return not_found();
    };
    let digest =
        if state.faults.lie_about_manifests { Digest::of(b"lie") } else { Digest::of(bytes) };
    Response::builder()
        .header("content-type", media_type)
        .header("docker-content-digest", digest.to_string())
        .body(full(bytes.clone()))
        .unwrap()
}

fn blob(faults: &Faults, bytes: Bytes, range: &str) -> Response<Body> {
    let mut bytes = bytes;
    if faults.flip {
        let mut changed = bytes.to_vec();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        bytes = changed.into();
    }
    let total = bytes.len();
    let start = range
        .strip_prefix("bytes=")
        .and_then(|text| text.trim_end_matches('-').parse::<usize>().ok());
    let mut response = Response::builder();
    if let Some(start) = start.filter(|_| !faults.no_ranges) {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{total}", total - 1));
        bytes = bytes.slice(start..);
    }
    response = response.header("content-length", bytes.len());
    let end = faults.break_after.filter(|limit| *limit < bytes.len());
    let sent = bytes.slice(..end.unwrap_or(bytes.len()));
    let mut chunks: Vec<std::io::Result<Frame<Bytes>>> =
        sent.chunks(8192).map(|chunk| Ok(Frame::data(sent.slice_ref(chunk)))).collect();
    if end.is_some() {
        chunks.push(Err(std::io::Error::other("broken on purpose")));
    }
    let slow = faults.slow;
    let stream = futures::stream::iter(chunks).then(move |chunk| async move {
        // What was sent before a break must be on its way, or the server drops it with the connection.
        let delay = slow.or_else(|| chunk.is_err().then_some(Duration::from_millis(20)));
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        chunk
    });
    response.body(StreamBody::new(stream).boxed_unsync()).unwrap_or_else(|_| not_found())
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn not_found() -> Response<Body> {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
    Response::builder().status(StatusCode::NOT_FOUND).body(full(body)).unwrap()
}
