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

/// Puts the policy in force for config maps.
async fn enforce(f: &Fixture, kind: &str, spec: Value) {
    let plural = if kind.starts_with("Mutating") { "mutating" } else { "validating" };
    let made = f.post(&format!("{BASE}/{plural}admissionpolicies"), &policy(kind, spec)).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let mut binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    if plural == "validating" {
        binding["spec"]["validationActions"] = json!(["Deny"]);
    }
    let bound = f.post(&format!("{BASE}/{plural}admissionpolicybindings"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.body);
}

#[tokio::test]
async fn an_expression_that_fails_says_why() {
    let validation = |expression: &str| json!({"expression": expression, "reason": "Forbidden"});
    for (spec, code, want) in [
        (
            json!({"validations": [validation("object.data.a == 'x'")]}),
            403,
            "failed expression: object.data.a == 'x'",
        ),
        // The reason is that of a judgement, and this is none.
        (
            json!({"validations": [validation("object.data.z == 'x'")]}),
            422,
            "expression 'object.data.z == 'x'' resulted in error: no such key: z",
        ),
        (
            json!({"validations": [validation("variables.two == 1")], "variables": [
                {"name": "one", "expression": "object.data.z"},
                {"name": "two", "expression": "variables.one + 1"}]}),
            422,
            "expression 'variables.two == 1' resulted in error: composited variable \"two\" fails to evaluate: composited variable \"one\" fails to evaluate: no such key: z",
        ),
        (
            json!({"validations": [validation("true")], "matchConditions": [
                {"name": "c", "expression": "object.data.z == 'x'"}]}),
            422,
            "expression 'object.data.z == 'x'' resulted in error: no such key: z",
        ),
    ] {
        let f = Fixture::new().await;
        enforce(&f, "ValidatingAdmissionPolicy", spec).await;
        let refused = f.post(MAPS, &config_map("a")).await;
        let want = format!(
            "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {want}"
        );
        assert_eq!((refused.code.as_u16(), &refused.body["message"]), (code, &json!(want)));
    }
}

#[tokio::test]
async fn expressions_must_be_of_their_type() {
    let f = Fixture::new().await;
    let message =
        |text: &str| json!({"validations": [{"expression": "true", "messageExpression": text}]});
    for (spec, want) in [
        (json!({"validations": [{"expression": "object.data.a"}]}), Some("must evaluate to bool")),
        (json!({"validations": [{"expression": "object.data.a == 'b'"}]}), None),
        (message("object.data.a"), Some("must evaluate to string")),
        (message("'a ' + object.data.a"), None),
        (message("request.name"), None),
        (
            message("authorizer.path('/').check('get').reason()"),
            Some("undeclared reference to 'authorizer'"),
        ),
        (
            json!({"auditAnnotations": [{"key": "k", "valueExpression": "object.data.a"}]}),
            Some("must evaluate to one of [string null_type]"),
        ),
    ] {
        let path = format!("{BASE}/validatingadmissionpolicies?dryRun=All");
        let told = f.post(&path, &policy("ValidatingAdmissionPolicy", spec.clone())).await;
        match want {
            None => assert_eq!(told.code, 201, "{spec}: {}", told.body),
            Some(want) => {
                let text = told.body["message"].as_str().unwrap_or_default();
                assert!(told.code == 422 && text.contains(want), "{spec}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn what_a_policy_cannot_make_is_told() {
    let apply = |expression: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let patch = |expression: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}});
    for (mutation, want) in [
        (
            apply("Object{dota: {'x': 'y'}}"),
            Some(
                "error applying patch: failed to convert patch object to typed object: .dota: field not declared in schema",
            ),
        ),
        (
            apply("Object{metadata: Object.metadata{ownerReferences: 'x'}}"),
            Some(
                "error applying patch: failed to convert patch object to typed object: .metadata.ownerReferences: expected list, got &{x}",
            ),
        ),
        (
            apply("Object{data: {'x': object.data.z}}"),
            Some(
                "expression 'Object{data: {'x': object.data.z}}' resulted in error: no such key: z",
            ),
        ),
        (apply("'x'"), Some("must evaluate to Object but got string")),
        (
            patch("[JSONPatch{op: 'remove', path: '/data/z'}]"),
            Some(
                "JSON Patch: error in remove for path: '/data/z': unable to remove nonexistent key: z: missing value",
            ),
        ),
        (
            patch("[JSONPatch{op: 'zap', path: '/data/a'}]"),
            Some("JSON Patch: Unexpected kind: zap"),
        ),
        // What the patch tests decides whether it is made.
        (
            patch(
                "[JSONPatch{op: 'test', path: '/data/a', value: 'x'}, JSONPatch{op: 'remove', path: '/data/a'}]",
            ),
            None,
        ),
    ] {
        let f = Fixture::new().await;
        let spec = json!({"reinvocationPolicy": "Never", "mutations": [mutation]});
        enforce(&f, "MutatingAdmissionPolicy", spec).await;
        let told = f.post(MAPS, &config_map("a")).await;
        let Some(want) = want else {
            assert_eq!((told.code.as_u16(), &told.body["data"]), (201, &json!({"a": "b"})));
            continue;
        };
        let want = format!("policy 'p' with binding 'b' denied request: {want}");
        assert_eq!(
            (told.code.as_u16(), &told.body["reason"], &told.body["message"]),
            (403, &json!("Invalid"), &json!(want)),
            "{}",
            told.body
        );
        assert_eq!(told.body["details"]["causes"], json!([{"message": want}]));
    }
}

#[tokio::test]
async fn a_policy_does_not_merge_what_can_only_be_replaced() {
    let f = Fixture::new().await;
    let expression = "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{\
        containers: [Object.spec.template.spec.containers{name: 'c', args: ['x']}], nodeSelector: {'a': 'b'}}}}}";
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
    let mut made = policy("MutatingAdmissionPolicy", spec);
    let rule = &mut made["spec"]["matchConstraints"]["resourceRules"][0];
    rule["apiGroups"] = json!(["apps"]);
    rule["resources"] = json!(["deployments"]);
    let made = f.post(&format!("{BASE}/mutatingadmissionpolicies"), &made).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    f.post(&format!("{BASE}/mutatingadmissionpolicybindings"), &binding).await;
    let told = f.post("/apis/apps/v1/namespaces/default/deployments", &deployment()).await;
    assert_eq!(
        told.body["message"],
        "policy 'p' with binding 'b' denied request: error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.template.spec.containers[0].args, .spec.template.spec.nodeSelector"
    );
}

fn deployment() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn a_scale_is_admitted_as_a_scale() {
    let f = Fixture::new().await;
    let hook =
        hook(&f, |_| patched(&json!([{"op": "replace", "path": "/spec/replicas", "value": 7}])))
            .await;
    let rules = json!([{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments/scale"]}]);
    let made = f
        .post(
            &format!("{BASE}/mutatingwebhookconfigurations"),
            &configuration("MutatingWebhookConfiguration", &hook, json!({"rules": rules})),
        )
        .await;
    assert_eq!(made.code, 201, "{}", made.body);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(f.post(deployments, &deployment()).await.code, 201);
    let scale = json!({"spec": {"replicas": 3}});
    let scaled = f.patch(&format!("{deployments}/d/scale"), "merge", &scale).await;
    assert_eq!(scaled.body["spec"]["replicas"], 7, "{}", scaled.body);
    let asked = hook.asked.lock().expect("a lock")[0].clone();
    assert_eq!(asked["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(
        (&asked["subResource"], &asked["object"]["kind"], &asked["oldObject"]["spec"]["replicas"]),
        (&json!("scale"), &json!("Scale"), &json!(1))
    );
    assert_eq!(asked["options"]["kind"], "UpdateOptions", "patches are updates here");
}

#[tokio::test]
async fn invalid_answers_of_webhooks_are_told() {
    let cases: [(&str, fn(&Value) -> Value, &str); 4] = [
        (
            "Validating",
            |_| json!({"allowed": true, "patch": "e30=", "patchType": "JSONPatch"}),
            "received invalid webhook response: validating webhook may not return response.patch",
        ),
        (
            "Mutating",
            |_| json!({"allowed": true, "patch": "W10="}),
            "received invalid webhook response: webhook returned response.patch but not response.patchType",
        ),
        (
            "Mutating",
            |_| json!({"allowed": true, "patchType": "JSONPatch"}),
            "received invalid webhook response: webhook returned response.patchType but not response.patch",
        ),
        (
            "Mutating",
            |_| json!({"allowed": true, "patch": "eno=", "patchType": "JSONPatch"}),
            "received undecodable patch in webhook response: invalid character 'z' looking for beginning of value",
        ),
    ];
    for (kind, reply, want) in cases {
        let f = Fixture::new().await;
        let hook = hook(&f, reply).await;
        let plural = format!("{}webhookconfigurations", kind.to_lowercase());
        let kind = format!("{kind}WebhookConfiguration");
        let made =
            f.post(&format!("{BASE}/{plural}"), &configuration(&kind, &hook, json!({}))).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let refused = f.post(MAPS, &config_map("a")).await;
        let want =
            format!("Internal error occurred: failed calling webhook \"h.example.com\": {want}");
        assert_eq!((refused.code.as_u16(), &refused.body["message"]), (500, &json!(want)));
    }
}

#[tokio::test]
async fn a_deletion_cannot_be_changed() {
    let f = Fixture::new().await;
    let hook = hook(&f, |_| patched(&json!([{"op": "remove", "path": "/data"}]))).await;
    f.post(MAPS, &config_map("a")).await;
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"]}]);
    f.post(
        &format!("{BASE}/mutatingwebhookconfigurations"),
        &configuration("MutatingWebhookConfiguration", &hook, json!({"rules": rules})),
    )
    .await;
    let refused = f.request(Method::DELETE, &format!("{MAPS}/a"), &json!({})).await;
    assert_eq!(
        refused.body["message"],
        "Internal error occurred: admission webhook \"h.example.com\" attempted to modify the object, which is not supported for this operation"
    );
}
