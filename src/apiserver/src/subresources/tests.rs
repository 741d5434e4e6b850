//! A pod's way through admission, binding, tokens and logs, over requests.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::UserInfo;
use crate::tests::Fixture;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]}})
}

async fn with_account(f: &Fixture) {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let made = f.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
    assert_eq!(made.code, 201, "{}", made.body);
}

async fn bind(f: &Fixture, name: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    f.post("/api/v1/nodes", &node).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
        "target": {"kind": "Node", "name": "n"}});
    let bound = f.post(&format!("{PODS}/{name}/binding"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    assert_eq!(bound.body["status"], "Success");
}

#[tokio::test]
async fn a_pod_needs_an_account_and_gets_its_token() {
    let f = Fixture::new().await;
    let refused = f.post(PODS, &pod("a")).await;
    assert_eq!(
        refused.body["message"],
        r#"pods "a" is forbidden: error looking up service account default/default: serviceaccount "default" not found"#
    );
    with_account(&f).await;
    let made = f.post(PODS, &pod("a")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let spec = &made.body["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["path"],
        "token"
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!((&spec["priority"], &made.body["status"]["phase"]), (&json!(0), &json!("Pending")));
    assert_eq!(made.body["status"]["qosClass"], "BestEffort");

    bind(&f, "a").await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "a",
            "uid": made.body["metadata"]["uid"]}}});
    let issued = f.post("/api/v1/namespaces/default/serviceaccounts/default/token", &request).await;
    assert_eq!(issued.code, 201, "{}", issued.body);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": issued.body["status"]["token"]}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = f.post(reviews, &review).await;
    assert_eq!(answer.body["status"]["authenticated"], true, "{}", answer.body);
    let user = &answer.body["status"]["user"];
    assert_eq!(user["username"], "system:serviceaccount:default:default");
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n"]));

    let at_once = json!({"gracePeriodSeconds": 0});
    let path = format!("{PODS}/a");
    assert_eq!(f.request(http::Method::DELETE, &path, &at_once).await.code, 200);
    let answer = f.post(reviews, &review).await;
    assert_eq!(answer.body["status"]["authenticated"], Value::Null, "{}", answer.body);
}

#[tokio::test]
async fn roles_decide_and_reviews_tell() {
    let f = Fixture::new().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "bob", "resourceAttributes": {
            "namespace": "default", "verb": "list", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(f.post(path, &review).await.body["status"]["allowed"], false);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let made = f.post(bindings, &binding).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let answer = f.post(path, &review).await;
    assert_eq!(answer.body["status"]["allowed"], true, "{}", answer.body);
    assert_eq!(
        answer.body["status"]["reason"],
        r#"RBAC: allowed by RoleBinding "b/default" of ClusterRole "view" to User "bob""#
    );

    let bob = f.seen_by(UserInfo::new("bob", &[]));
    assert_eq!(bob.get(PODS).await.code, 200);
    let refused = bob.get("/api/v1/pods").await;
    assert_eq!(
        refused.body["message"],
        r#"pods is forbidden: User "bob" cannot list resource "pods" in API group "" at the cluster scope"#
    );
    let own = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = bob.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &own).await;
    assert_eq!(answer.body["status"]["userInfo"]["username"], "bob");
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"}});
    let answer = bob.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &rules).await;
    assert!(answer.body["status"]["resourceRules"].as_array().unwrap().len() > 5);
}

#[tokio::test]
async fn a_namespace_must_exist_and_stay() {
    let f = Fixture::new().await;
    let map = crate::tests::config_map("a");
    let refused = f.post("/api/v1/namespaces/nowhere/configmaps", &map).await;
    assert_eq!(refused.body["message"], r#"namespaces "nowhere" not found"#);
    let refused = f.request(http::Method::DELETE, "/api/v1/namespaces/default", &Value::Null).await;
    assert_eq!(
        refused.body["message"],
        r#"namespaces "default" is forbidden: this namespace may not be deleted"#
    );
}

/// A kubelet that answers one request with what it was asked for.
async fn kubelet(config: rustls::ServerConfig, listener: tokio::net::TcpListener) {
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (stream, _) = listener.accept().await.expect("a connection");
    let mut stream = tls.accept(stream).await.expect("a handshake");
    assert!(stream.get_ref().1.peer_certificates().is_some(), "a client certificate");
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).await.expect("a request");
    let text = String::from_utf8_lossy(&request[..length]).into_owned();
    let asked = text.lines().next().unwrap_or_default();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{asked}", asked.len());
    stream.write_all(answer.as_bytes()).await.expect("written");
    stream.flush().await.expect("sent");
    let _ = stream.read(&mut request).await;
}

#[tokio::test]
async fn logs_come_from_the_kubelet() {
    let address = Arc::new(OnceLock::new());
    let known = address.clone();
    let f = Fixture::with_kubelets(Arc::new(move |_, _| {
        known.get().map(|address| crate::KubeletAddress { address: *address, ours: true })
    }))
    .await;
    with_account(&f).await;
    f.post(PODS, &pod("a")).await;
    let log = format!("{PODS}/a/log");
    let nothing = f.get(&log).await;
    assert_eq!((nothing.code.as_u16(), &nothing.body), (200, &json!("")), "no place, no words");
    bind(&f, "a").await;
    assert_eq!(f.get(&log).await.code, 503, "no address");

    let pki = f.api.pki();
    let pair = pki.issue_server("system:node:n", &["n".into()]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    address.set(listener.local_addr().unwrap()).unwrap();
    let mut config = pki.server_config(&pair).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let kubelet = tokio::spawn(kubelet(config, listener));
    let answer = f.get(&format!("{log}?tailLines=3&timestamps=true")).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.body, "GET /containerLogs/default/a/c?timestamps=true&tailLines=3 HTTP/1.1");
    drop(f);
    kubelet.await.unwrap();
}
