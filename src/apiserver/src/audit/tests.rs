use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::tests::{Fixture, config_map};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
- level: RequestResponse
  resources: [{group: "", resources: [configmaps]}]
  omitManagedFields: true
- level: Request
  resources: [{group: "", resources: ["pods/*"], resourceNames: [a]}]
- level: Metadata
  namespaces: [kube-system]
  verbs: [delete]
- level: None
  nonResourceURLs: ["/healthz*"]
- level: Metadata
  nonResourceURLs: ["*"]
"#;

fn ctx(
    user: &str,
    verb: &'static str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> RequestContext {
    let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    RequestContext {
        user: Arc::new(UserInfo::new(user, &[])),
        verb,
        plural: plural.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..RequestContext::default()
    }
}

#[test]
fn the_first_rule_that_meets_a_request_decides() {
    let policy = Policy::parse(POLICY).expect("a policy");
    let path =
        |path: &str| RequestContext { path: path.into(), verb: "get", ..RequestContext::default() };
    let cases = [
        (ctx("system:kube-proxy", "get", "configmaps", "a", "b"), Level::None),
        (ctx("jane", "get", "configmaps", "a", "b"), Level::RequestResponse),
        (ctx("jane", "get", "pods/log", "a", "a"), Level::Request),
        (ctx("jane", "get", "pods/log", "a", "b"), Level::None),
        (ctx("jane", "delete", "secrets", "kube-system", "b"), Level::Metadata),
        (ctx("jane", "get", "secrets", "kube-system", "b"), Level::None),
        (path("/healthz/ping"), Level::None),
        (path("/version"), Level::Metadata),
    ];
    for (ctx, want) in cases {
        assert_eq!(policy.judge(&ctx).0, want, "{ctx:?}");
    }
}

#[test]
fn mistakes_in_policies_are_named() {
    let policy =
        |rule: &str| format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- {rule}\n");
    let cases = [
        (policy("level: All"), "rules[0]: \"All\" is no level"),
        (policy("{level: None, omitStages: [x]}"), "rules[0]: \"x\" is no stage"),
        (
            policy("{level: None, resources: [], nonResourceURLs: [\"/a\"]}"),
            "rules[0]: rules cannot apply to both regular resources and non-resource URLs",
        ),
        ("kind: Policy".into(), "want apiVersion audit.k8s.io/v1 and kind Policy"),
    ];
    for (text, want) in cases {
        assert_eq!(Policy::parse(&text).err().as_deref(), Some(want), "{text}");
    }
}

#[tokio::test]
async fn requests_are_logged_with_their_objects() {
    let dir = tempfile::tempdir().expect("a directory");
    let (policy, path) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&policy, POLICY).expect("written");
    let options = Options { policy: Some(policy), path: Some(path.clone()), ..Options::default() };
    let access = crate::Access { audit: options, ..crate::Access::default() };
    let f = Fixture::with_access(access).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    f.post(maps, &config_map("a")).await;
    f.post(maps, &config_map("a")).await;
    f.get("/healthz").await;
    let text = std::fs::read_to_string(&path).expect("a log");
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|event| event["user"]["username"] == "kubernetes-admin")
        .collect();
    assert_eq!(events.len(), 2, "{text}");
    let made = &events[0];
    for (pointer, want) in [
        ("/stage", json!("ResponseComplete")),
        ("/verb", json!("create")),
        ("/requestURI", json!(maps)),
        ("/objectRef/name", json!("a")),
        ("/objectRef/resource", json!("configmaps")),
        ("/responseStatus/code", json!(201)),
        ("/requestObject/data/a", json!("b")),
        ("/responseObject/data/a", json!("b")),
        ("/annotations/authorization.k8s.io~1decision", json!("allow")),
    ] {
        assert_eq!(made.pointer(pointer), Some(&want), "{pointer} {made}");
    }
    assert!(made["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(events[1]["responseStatus"]["reason"], "AlreadyExists");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_is_told_many_events_at_once() {
    use base64::Engine as _;

    use crate::tests::https;
    use crate::zero::Zero;

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (port, ca) = https::serve(None, move |parts, body| {
        let list: Value = serde_json::from_slice(body).expect("a list");
        assert_eq!(parts.uri.path(), "/audit");
        tell.send(list).expect("somebody listens");
        json!({})
    })
    .await;
    let dir = tempfile::tempdir().expect("a folder");
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let kubeconfig = dir.path().join("webhook.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'https://localhost:{port}/audit', certificate-authority-data: {ca}}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).expect("written");
    let batch =
        BatchOptions { max_wait: std::time::Duration::from_millis(200), ..BatchOptions::webhook() };
    let webhook = WebhookOptions { batch, ..WebhookOptions::new(kubeconfig) };
    let audit = Options { policy: Some(policy), webhook: Some(webhook), ..Options::default() };
    let f = Fixture::with_access(crate::Access { audit, ..crate::Access::default() }).await;
    let names = ["a", "b", "c"];
    let mut seen = Vec::new();
    let mut requests = 0;
    for name in names {
        f.post("/api/v1/namespaces/default/configmaps", &config_map(name)).await;
    }
    // What waits when the server stops is told as well.
    f.api.shutdown().await;
    while let Ok(list) = told.try_recv() {
        assert_eq!(
            (&list["kind"], &list["apiVersion"]),
            (&json!("EventList"), &json!("audit.k8s.io/v1"))
        );
        requests += 1;
        for event in list["items"].items() {
            assert_eq!(event["stage"], "ResponseComplete");
            seen.push(event["objectRef"]["name"].text().to_owned());
        }
    }
    assert!(requests <= 2, "{requests}");
    for name in names {
        assert!(seen.iter().any(|seen| seen == name), "{name} of {seen:?}");
    }
}
