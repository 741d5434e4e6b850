//! Webhooks and policies over requests.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use http::Method;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::tests::{Fixture, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const BASE: &str = "/apis/admissionregistration.k8s.io/v1";

/// What a webhook was asked, and where it listens.
struct Hook {
    url: String,
    ca: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

/// A webhook that answers with what `reply` makes of the request.
async fn hook(f: &Fixture, reply: fn(&Value) -> Value) -> Hook {
    let pki = f.api.pki();
    let pair = pki.serving(&["127.0.0.1".to_owned()]).expect("a certificate");
    let config = pki.server_config(&pair).expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}/hook", listener.local_addr().expect("an address"));
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), seen.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(
                    move |request: http::Request<hyper::body::Incoming>| {
                        let seen = seen.clone();
                        async move {
                            let bytes =
                                request.into_body().collect().await.expect("a body").to_bytes();
                            let review: Value = serde_json::from_slice(&bytes).expect("a review");
                            let mut response = reply(&review["request"]);
                            response["uid"] = review["request"]["uid"].clone();
                            seen.lock().expect("a lock").push(review["request"].clone());
                            let answer = json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response});
                            Ok::<_, hyper::Error>(http::Response::new(answer.to_string()))
                        }
                    },
                );
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let ca = base64::engine::general_purpose::STANDARD.encode(pki.ca_pem());
    Hook { url, ca, asked }
}

fn configuration(kind: &str, hook: &Hook, more: Value) -> Value {
    let mut webhook = json!({"name": "h.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": hook.url, "caBundle": hook.ca},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]});
    for (key, value) in more.as_object().expect("fields") {
        webhook[key] = value.clone();
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "h"}, "webhooks": [webhook]})
}

fn patched(changes: &Value) -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(changes.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": text, "warnings": ["changed"]})
}

#[tokio::test]
async fn a_mutating_webhook_changes_what_is_written() {
    let f = Fixture::new().await;
    let hook =
        hook(&f, |_| patched(&json!([{"op": "add", "path": "/data/added", "value": "x"}]))).await;
    let more = json!({"objectSelector": {"matchLabels": {"hook": "on"}}});
    let made = f
        .post(
            &format!("{BASE}/mutatingwebhookconfigurations"),
            &configuration("MutatingWebhookConfiguration", &hook, more),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let plain = f.post(MAPS, &config_map("a")).await;
    assert_eq!(plain.body["data"], json!({"a": "b"}));
    let mut labelled = config_map("b");
    labelled["metadata"]["labels"] = json!({"hook": "on"});
    let changed = f.post(MAPS, &labelled).await;
    assert_eq!(changed.body["data"], json!({"a": "b", "added": "x"}), "{}", changed.body);
    assert_eq!(changed.headers["warning"], "299 - \"changed\"");
    let asked = hook.asked.lock().expect("a lock").clone();
    assert_eq!(asked.len(), 1);
    assert_eq!((&asked[0]["operation"], &asked[0]["name"]), (&json!("CREATE"), &json!("b")));
    assert_eq!(asked[0]["userInfo"]["username"], "kubernetes-admin");
    assert_eq!(asked[0]["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(asked[0]["options"]["kind"], "CreateOptions");
}

#[tokio::test]
async fn a_validating_webhook_refuses() {
    let f = Fixture::new().await;
    let hook = hook(&f, |request| {
        json!({"allowed": request["object"]["data"]["a"] == "b", "status": {"message": "not b", "code": 403}})
    })
    .await;
    let more = json!({"matchConditions": [{"name": "not-exempt", "expression": "object.metadata.name != 'exempt'"}]});
    let path = format!("{BASE}/validatingwebhookconfigurations");
    let made = f.post(&path, &configuration("ValidatingWebhookConfiguration", &hook, more)).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(f.post(MAPS, &config_map("a")).await.code, 201);
    let refused = f.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"a": "c"}})).await;
    assert_eq!(
        (refused.code.as_u16(), &refused.body["message"]),
        (403, &json!("admission webhook \"h.example.com\" denied the request: not b"))
    );
    assert_eq!(hook.asked.lock().expect("a lock")[1]["oldObject"]["data"]["a"], "b");
    let mut exempt = config_map("exempt");
    exempt["data"]["a"] = "z".into();
    assert_eq!(f.post(MAPS, &exempt).await.code, 201);
}

#[tokio::test]
async fn a_failing_webhook_fails_or_is_ignored() {
    let f = Fixture::new().await;
    let mut hook = hook(&f, |_| json!({"allowed": true})).await;
    hook.url = "https://127.0.0.1:1/hook".into();
    let path = format!("{BASE}/validatingwebhookconfigurations");
    f.post(&path, &configuration("ValidatingWebhookConfiguration", &hook, json!({}))).await;
    let refused = f.post(MAPS, &config_map("a")).await;
    assert_eq!(refused.code, 500);
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.starts_with("Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/hook?timeout=10s\": dial tcp"), "{text}");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    let mended = f.patch(&format!("{path}/h"), "json", &ignore).await;
    assert_eq!(mended.code, 200, "{}", mended.body);
    assert_eq!(f.post(MAPS, &config_map("a")).await.code, 201);
    f.request(Method::DELETE, &format!("{path}/h"), &json!({})).await;
    // Since v1 no webhook may be configured that could not be asked in a dry run.
    let unsafe_dry = json!({"sideEffects": "Some"});
    let refused =
        f.post(&path, &configuration("ValidatingWebhookConfiguration", &hook, unsafe_dry)).await;
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.contains("webhooks[0].sideEffects: Unsupported value: \"Some\""), "{text}");
}

fn policy(kind: &str, spec: Value) -> Value {
    let mut policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "p"}, "spec": spec});
    policy["spec"]["matchConstraints"] = json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}]});
    policy
}

#[tokio::test]
async fn a_policy_judges_with_parameters() {
    let f = Fixture::new().await;
    let made = f
        .post(&format!("{BASE}/validatingadmissionpolicies"), &policy("ValidatingAdmissionPolicy", json!({
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "size", "expression": "has(object.data) ? size(object.data) : 0"}],
            "matchConditions": [{"name": "no-params", "expression": "object.metadata.name != 'params'"}],
            "validations": [
                {"expression": "variables.size <= int(params.data.max)", "messageExpression": "'at most ' + params.data.max"},
                {"expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed()"}]})))
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let params = json!({"metadata": {"name": "params"}, "data": {"max": "1"}});
    assert_eq!(f.post(MAPS, &params).await.code, 201);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"],
        "paramRef": {"name": "params", "namespace": "default", "parameterNotFoundAction": "Deny"}}});
    let bound = f.post(&format!("{BASE}/validatingadmissionpolicybindings"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    assert_eq!(f.post(MAPS, &config_map("small")).await.code, 201);
    let mut big = config_map("big");
    big["data"]["c"] = "d".into();
    let refused = f.post(MAPS, &big).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(
        refused.body["message"],
        "configmaps \"big\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: at most 1"
    );
    let warn = json!({"spec": {"validationActions": ["Warn"]}});
    f.patch(&format!("{BASE}/validatingadmissionpolicybindings/b"), "merge", &warn).await;
    let warned = f.post(MAPS, &big).await;
    assert_eq!(warned.code, 201);
    assert_eq!(
        warned.headers["warning"],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': at most 1\""
    );
}

#[tokio::test]
async fn a_policy_must_compile() {
    let f = Fixture::new().await;
    let spec = json!({"validations": [{"expression": "objct.data == null"}]});
    let refused = f
        .post(
            &format!("{BASE}/validatingadmissionpolicies"),
            &policy("ValidatingAdmissionPolicy", spec),
        )
        .await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.contains("spec.validations[0].expression: Invalid value: \"objct.data == null\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'objct'"), "{text}");
}

#[tokio::test]
async fn a_mutating_policy_changes_what_is_written() {
    let f = Fixture::new().await;
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{metadata: Object.metadata{labels: {'team': 'x'}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {
            "expression": "[JSONPatch{op: 'add', path: '/data/added', value: object.metadata.labels['team']}]"}}]});
    let made = f
        .post(
            &format!("{BASE}/mutatingadmissionpolicies"),
            &policy("MutatingAdmissionPolicy", spec),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    let bound = f.post(&format!("{BASE}/mutatingadmissionpolicybindings"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    let changed = f.post(MAPS, &config_map("a")).await;
    assert_eq!(changed.body["metadata"]["labels"], json!({"team": "x"}), "{}", changed.body);
    assert_eq!(changed.body["data"], json!({"a": "b", "added": "x"}));
}

#[tokio::test]
async fn a_mutating_policy_sees_what_comes_after_it() {
    let f = Fixture::new().await;
    let copy = "has(object.metadata.labels) ? [JSONPatch{op: 'add', path: '/data/team', value: object.metadata.labels['team']}] : []";
    let label = "Object{metadata: Object.metadata{labels: {'team': 'x'}}}";
    let mutations = [
        ("a", "IfNeeded", json!({"patchType": "JSONPatch", "jsonPatch": {"expression": copy}})),
        (
            "b",
            "Never",
            json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": label}}),
        ),
    ];
    for (name, again, mutation) in mutations {
        let spec = json!({"reinvocationPolicy": again, "mutations": [mutation]});
        let mut made = policy("MutatingAdmissionPolicy", spec);
        made["metadata"]["name"] = name.into();
        let made = f.post(&format!("{BASE}/mutatingadmissionpolicies"), &made).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        let bound = f.post(&format!("{BASE}/mutatingadmissionpolicybindings"), &binding).await;
        assert_eq!(bound.code, 201, "{}", bound.body);
    }
    let changed = f.post(MAPS, &config_map("a")).await;
    assert_eq!(changed.body["data"]["team"], "x", "{}", changed.body);
}

#[tokio::test]
async fn failures_are_recorded_and_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (rules, path) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata, resources: [{group: '', resources: [configmaps]}]}]\n";
    std::fs::write(&rules, text).expect("written");
    let audit =
        crate::AuditOptions { policy: Some(rules), path: Some(path.clone()), ..Default::default() };
    let f = Fixture::with_access(crate::Access { audit, ..Default::default() }).await;
    let spec = json!({
        "validations": [{"expression": "object.metadata.name != 'bad'", "message": "a bad name"}],
        "auditAnnotations": [{"key": "name", "valueExpression": "'named ' + object.metadata.name"}]});
    let made = policy("ValidatingAdmissionPolicy", spec);
    let made = f.post(&format!("{BASE}/validatingadmissionpolicies"), &made).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let binding = json!({"metadata": {"name": "b"},
        "spec": {"policyName": "p", "validationActions": ["Warn", "Audit"]}});
    let bound = f.post(&format!("{BASE}/validatingadmissionpolicybindings"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
    let made = f.post(MAPS, &config_map("bad")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let warning = made.headers["warning"].to_str().expect("text");
    assert!(warning.contains("with binding 'b': a bad name"), "{warning}");
    let log = std::fs::read_to_string(&path).expect("a log");
    let event: Value = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .find(|event| event["objectRef"]["namespace"] == "default" && event["verb"] == "create")
        .expect("it is recorded");
    let annotations = &event["annotations"];
    assert_eq!(annotations["p/name"], "named bad", "{event}");
    let failure = annotations["validation.policy.admission.k8s.io/validation_failure"].as_str();
    let failure: Value = serde_json::from_str(failure.expect("a failure")).expect("JSON");
    assert_eq!(
        failure,
        json!([{"message": "a bad name", "policy": "p", "binding": "b", "expressionIndex": 0,
            "validationActions": ["Warn", "Audit"]}])
    );
}
