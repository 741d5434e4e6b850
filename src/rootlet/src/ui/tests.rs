//! The whole server, over sockets, before a made-up API server.

use std::path::Path;

use axum::body::Bytes;
use http::{HeaderMap, Method, Uri};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// Answers with what it was asked, and with what a stranger's page would like to do.
async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut told = format!("{method} {uri}\n");
    for (name, value) in &headers {
        told.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    told.push_str(&String::from_utf8_lossy(&body));
    (StatusCode::CONFLICT, [(SET_COOKIE, "stolen=1"), (CONTENT_TYPE, "text/html")], told)
        .into_response()
}

/// Switches to a protocol in which everything is said twice.
async fn twice(mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            stream.write_all(&[byte[0], byte[0]]).await.unwrap();
        }
    });
    let headers = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn api_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new()
        .route("/api/v1/namespaces/n/pods/p/exec", get(twice))
        .route("/port", get(move || async move { port.to_string() }))
        .fallback(echo);
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

fn write_kubeconfig(paths: &Paths, port: u16) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: c}}}}]\nusers: [{{name: c, user: {{token: mine}}}}]\n"
    );
    std::fs::write(paths.kubeconfig(), text).unwrap();
}

/// A server in `folder`; its port.
async fn server(folder: &Path, api_port: u16) -> (u16, Paths) {
    let paths = Paths { name: "t".into(), data: folder.to_owned(), run: folder.to_owned() };
    write_kubeconfig(&paths, api_port);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(listener, Door::new(port, "secret".into()), paths.clone()));
    (port, paths)
}

/// Sends a request by hand; returns the whole answer.
async fn send(port: u16, line: &str, more: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn cookie(port: u16) -> String {
    format!("cookie: rootlet-ui-{port}=secret\r\n")
}

#[tokio::test]
async fn the_secret_becomes_a_cookie_and_the_cookie_opens_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let (port, _) = server(folder.path(), 1).await;
    let refused = send(port, "GET /", "", "").await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let welcome = send(port, "GET /?token=secret", "", "").await;
    assert!(welcome.starts_with("HTTP/1.1 303"), "{welcome}");
    let set = format!("set-cookie: rootlet-ui-{port}=secret; Path=/; HttpOnly; SameSite=Strict");
    assert!(welcome.contains(&set) && welcome.contains("location: /\r\n"), "{welcome}");
    let page = send(port, "GET /", &cookie(port), "").await;
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let nonce = head.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(body.contains(&format!("<script nonce=\"{nonce}\">")), "the policy is of this page");
    assert!(
        head.contains("frame-ancestors 'none'") && head.contains("referrer-policy: no-referrer"),
        "{head}"
    );
    let again = send(port, "GET /", &cookie(port), "").await;
    assert!(!again.contains(nonce), "each page has a nonce of its own");
}

#[tokio::test]
async fn requests_go_on_with_the_users_credentials_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (port, _) = server(folder.path(), api_server().await).await;
    let headers = format!(
        "{}authorization: Bearer other\r\norigin: http://127.0.0.1:{port}\r\ncontent-type: application/yaml\r\n",
        cookie(port)
    );
    let answer = send(
        port,
        "PUT /apis/apps/v1/namespaces/n/deployments/d%20e?dryRun=All&a=%2F",
        &headers,
        "a: 1",
    )
    .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 409"), "{answer}");
    assert!(
        body.contains("PUT /apis/apps/v1/namespaces/n/deployments/d%20e?dryRun=All&a=%2F\n"),
        "{body}"
    );
    assert!(body.contains("content-type: application/yaml\n") && body.contains("a: 1"), "{body}");
    assert!(body.contains("authorization: Bearer mine\n"), "{body}");
    for kept in ["Bearer other", "secret", "origin:"] {
        assert!(!body.contains(kept), "{kept} went on: {body}");
    }
    assert!(!head.contains("stolen"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'; sandbox"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    let refused = send(port, "GET /api/v1/secrets", "", "").await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
}

#[tokio::test]
async fn connections_that_switch_protocols_are_passed_through() {
    let folder = tempfile::tempdir().unwrap();
    let (port, _) = server(folder.path(), api_server().await).await;
    let open = async |origin: String| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!(
            "GET /api/v1/namespaces/n/pods/p/exec?command=sh HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{}origin: {origin}\r\n\
             connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n",
            cookie(port)
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(head).unwrap())
    };
    let (mut stream, head) = open(format!("http://127.0.0.1:{port}")).await;
    assert!(
        head.starts_with("HTTP/1.1 101")
            && head.contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    stream.write_all(b"ab").await.unwrap();
    let mut said = [0; 4];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"aabb");
    let (_, head) = open("http://evil.example".into()).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
}

#[tokio::test]
async fn another_kubeconfig_leads_to_another_server() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (api_server().await, api_server().await);
    let (port, paths) = server(folder.path(), first).await;
    let ask = async || send(port, "GET /port", &cookie(port), "").await;
    assert!(ask().await.ends_with(&first.to_string()));
    write_kubeconfig(&paths, second);
    let later = SystemTime::now() + std::time::Duration::from_secs(2);
    let file = std::fs::File::options().append(true).open(paths.kubeconfig()).unwrap();
    file.set_modified(later).unwrap();
    assert!(ask().await.ends_with(&second.to_string()));
    std::fs::remove_file(paths.kubeconfig()).unwrap();
    let answer = ask().await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("is the cluster up?"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let (port, _) = server(folder.path(), 1).await;
    let answer = send(port, "GET /version", &cookie(port), "").await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("does not answer"), "{answer}");
}
