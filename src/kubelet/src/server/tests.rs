use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::fake::node::Node;
use crate::node::machine;

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    fn issue(&self, name: &str, group: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

struct Served {
    authority: Authority,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

fn serve(node: &Node, workers: Workers) -> Served {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("node", "nodes");
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls {
        cert_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        client_ca_pem: authority.pem.clone(),
    };
    let stop = CancellationToken::new();
    let listen = Listen::new(listener, &tls).unwrap();
    assert_eq!(listen.port(), address.port());
    tokio::spawn(run(node.context(machine::read()), workers, listen, stop.clone()));
    Served { authority, address, _stop: stop.drop_guard() }
}

impl Served {
    async fn connect(&self, user: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match user {
            None => builder.with_no_client_auth(),
            Some((name, group)) => {
                let (certificate, key) = self.authority.issue(name, group);
                let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn get(&self, user: Option<(&str, &str)>, path: &str) -> String {
        let mut stream = self.connect(user).await;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

const ADMIN: Option<(&str, &str)> = Some(("admin", "system:masters"));
const API_SERVER: Option<(&str, &str)> = Some(("kube-apiserver-kubelet-client", "system:none"));

#[tokio::test]
async fn callers_are_known_and_allowed() {
    let node = Node::new();
    let served = serve(&node, Workers::default());
    for (user, status) in [
        (None, "401 Unauthorized"),
        (ADMIN, "200 OK"),
        (API_SERVER, "200 OK"),
        // The API server's review, which here allows nothing, decides on others.
        (Some(("eve", "system:authenticated")), "403 Forbidden"),
    ] {
        let answer = served.get(user, "/healthz").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{user:?}: {answer}");
    }
    let answer = served.get(Some(("eve", "x")), "/pods").await;
    assert!(answer.ends_with(
        "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    ));
}

#[tokio::test]
async fn logs_are_told() {
    let node = Node::new();
    let (workers, kubelet) = node.start_with_workers();
    node.submit(json!({"containers": [{"name": "a", "image": "busybox"}]}));
    node.until("running", "/status/phase", "Running").await;
    let log = node.log_of("a");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout F two\n")
        .unwrap();
    let served = serve(&node, workers);
    for (path, expected) in [
        ("/containerLogs/ns/p/a?tailLines=1", "two\n"),
        ("/containerLogs/ns/p/a?timestamps=true&limitBytes=24", "2026-01-01T00:00:01Z one"),
        ("/containerLogs/ns/p/b", "container \"b\" not found in pod \"p\"\n"),
        ("/containerLogs/ns/q/a", "pod \"q\" does not exist\n"),
        ("/containerLogs/ns/p/a?tailLines=x", "invalid value for tailLines: \"x\"\n"),
        (
            "/containerLogs/ns/p/a?previous=true",
            "previous terminated container \"a\" in pod \"p\" not found",
        ),
    ] {
        let answer = served.get(API_SERVER, path).await;
        assert!(answer.contains(expected), "{path}: {answer}");
    }
    kubelet.stop().await;
}

#[tokio::test]
async fn the_nodes_logs_are_files() {
    let node = Node::new();
    let context = node.context(machine::read());
    let folder = context.pod_log_dir.join("ns_p_1/a");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0.log"), "from a pod\n").unwrap();
    std::fs::write(context.own_log.as_ref().unwrap(), "one\ntwo\nthree\n").unwrap();
    std::fs::write(context.pod_log_dir.join("../secret"), "hidden").unwrap();
    std::os::unix::fs::symlink("../secret", context.pod_log_dir.join("way-out")).unwrap();
    let served = serve(&node, Workers::default());
    for (path, code, expected) in [
        ("/logs/", 200, "<a href=\"kubelet.log\">kubelet.log</a>\n<a href=\"pods/\">pods/</a>\n"),
        ("/logs/kubelet.log", 200, "\r\n\r\none\ntwo\nthree\n"),
        ("/logs/pods", 301, "location: pods/\r\n"),
        ("/logs/pods/", 200, "<a href=\"ns_p_1/\">ns_p_1/</a>"),
        ("/logs/pods/ns_p_1/a/0.log", 200, "\r\n\r\nfrom a pod\n"),
        ("/logs/pods/ns_p_1/a/0.log/", 301, "location: ../0.log\r\n"),
        ("/logs/pods/none", 404, "404 page not found"),
        ("/logs/pods/way-out", 404, "404 page not found"),
        ("/logs/pods/../../secret", 404, "404 page not found"),
        ("/logs/pods/%2e%2e/secret", 404, "404 page not found"),
        ("/logs/?query=kubelet&tailLines=2", 200, "\r\n\r\ntwo\nthree\n"),
        ("/logs/?query=kubelet&pattern=o%24", 200, "\r\n\r\ntwo\n"),
        ("/logs/?query=/pods/ns_p_1/a/0.log", 200, "from a pod\n"),
        ("/logs/?query=other", 404, "unable to find a log of \"other\""),
        ("/logs/?query=kubelet&tailLines=-1", 400, "tailLines: Invalid value"),
        ("/logs/?query=kubelet&pattern=(", 400, "pattern: Invalid value"),
    ] {
        let answer = unchunked(served.get(API_SERVER, path).await);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {answer}");
        assert!(answer.contains(expected), "{path}: {answer}");
    }
}

/// The answer without the sizes of its chunks.
fn unchunked(answer: String) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if !head.contains("transfer-encoding: chunked") {
        return answer;
    }
    let chunks: String = body.split("\r\n").skip(1).step_by(2).collect();
    format!("{head}\r\n\r\n{chunks}")
}

/// A streaming server that switches protocols and sends back what it gets, in capitals.
async fn shouting_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("GET /exec/token HTTP/1.1\r\n"), "{request}");
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            buffer[..read].make_ascii_uppercase();
            stream.write_all(&buffer[..read]).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn an_upgraded_connection_is_spliced() {
    let node = Node::new();
    let (workers, kubelet) = node.start_with_workers();
    node.submit(json!({"containers": [{"name": "a", "image": "busybox"}]}));
    node.until("running", "/status/phase", "Running").await;
    let streaming = shouting_server().await;
    node.runtime.world.lock().unwrap().exec_url = format!("http://{streaming}/exec/token");
    let served = serve(&node, workers);
    let mut stream = served.connect(API_SERVER).await;
    let request = "GET /exec/ns/p/a?command=sh&input=1&output=1 HTTP/1.1\r\nHost: localhost\r\n\
        Connection: Upgrade\r\nUpgrade: test\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"HELLO");
    kubelet.stop().await;
}
