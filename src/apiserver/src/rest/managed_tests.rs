//! Server-side apply and field owners through the whole server.

use http::Method;
use serde_json::{Value, json};

use crate::tests::{Answer, Fixture, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(f: &Fixture, path: &str, query: &str, body: &Value) -> Answer {
    let request = http::Request::patch(format!("{path}?{query}"))
        .header("content-type", "application/apply-patch+yaml");
    f.send(request, body.to_string()).await
}

fn owners(answer: &Answer) -> Vec<String> {
    let entries = answer.body["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|e| {
            format!("{} {} {}", text(e, "manager"), text(e, "operation"), text(e, "subresource"))
        })
        .collect()
}

fn deployment(replicas: i64) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn applying_creates_then_changes_then_does_nothing() {
    let f = Fixture::new().await;
    let path = format!("{MAPS}/a");
    // A manager has to be named.
    let refused = apply(&f, &path, "", &config_map("a")).await;
    assert_eq!(
        (refused.code.as_u16(), &refused.body["message"]),
        (
            422,
            &json!(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
            )
        )
    );
    let made = apply(&f, &path, "fieldManager=one", &config_map("a")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(owners(&made), ["one Apply "]);
    let again = apply(&f, &path, "fieldManager=one", &config_map("a")).await;
    assert_eq!((again.code.as_u16(), &again.body), (200, &made.body));
    let mut other = config_map("a");
    other["data"]["a"] = "c".into();
    let refused = apply(&f, &path, "fieldManager=two", &other).await;
    assert_eq!(refused.code, 409);
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.a"}])
    );
    let dry = apply(&f, &path, "fieldManager=two&force=true&dryRun=All", &other).await;
    assert_eq!(
        (&dry.body["data"]["a"], owners(&dry)),
        (&json!("c"), vec!["two Apply ".to_owned()])
    );
    let forced = apply(&f, &path, "fieldManager=two&force=true", &other).await;
    assert_eq!(forced.code, 200);
    assert_eq!(f.get(&path).await.body["data"], json!({"a": "c"}));
}

#[tokio::test]
async fn yaml_with_a_key_twice_is_told() {
    let f = Fixture::new().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: x}\ndata: {a: z}\n";
    let send = |query: &str| {
        let request = http::Request::patch(format!("{MAPS}/a?fieldManager=one&{query}"))
            .header("content-type", "application/apply-patch+yaml");
        f.send(request, yaml)
    };
    let refused = send("fieldValidation=Strict").await;
    assert_eq!(refused.code, 400);
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.starts_with("error strict decoding YAML: "), "{text}");
    assert_eq!(send("fieldValidation=Warn").await.code, 201);
}

#[tokio::test]
async fn every_write_is_tracked_under_its_manager() {
    let f = Fixture::new().await;
    let path = format!("{MAPS}/a");
    let made = f.post(&format!("{MAPS}?fieldManager=kubectl-create"), &config_map("a")).await;
    assert_eq!(owners(&made), ["kubectl-create Update "]);
    assert_eq!(
        made.body["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:a": {}}})
    );
    let mut changed = made.body.clone();
    changed["data"]["b"] = "c".into();
    let updated = f.request(Method::PUT, &format!("{path}?fieldManager=editor"), &changed).await;
    // The older entry comes first, and of the same second the lesser name.
    let mut both = owners(&updated);
    both.sort();
    assert_eq!(both, ["editor Update ", "kubectl-create Update "]);
    // Without a manager it is the user agent's first word.
    let request = http::Request::patch(&path)
        .header("content-type", "application/merge-patch+json")
        .header("user-agent", "curl/8.1 (linux)");
    let patched = f.send(request, json!({"data": {"a": "z"}}).to_string()).await;
    assert!(owners(&patched).contains(&"curl Update ".to_owned()), "{:?}", owners(&patched));
    let forbidden = f.patch(&format!("{path}?force=true"), "merge", &json!({})).await;
    assert_eq!(
        forbidden.body["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    // One empty entry gives all of it up.
    let reset = f.patch(&path, "merge", &json!({"metadata": {"managedFields": [{}]}})).await;
    assert_eq!(reset.body["metadata"].get("managedFields"), None, "{}", reset.body);
}

#[tokio::test]
async fn a_scale_is_owned_where_somebody_owned_it_before() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    let mut silent = deployment(2);
    silent["spec"].as_object_mut().expect("an object").remove("replicas");
    apply(&f, &path, "fieldManager=one", &silent).await;
    for (replicas, want) in [(3, vec!["one Apply "]), (4, vec!["one Apply ", "two Update scale"])] {
        let scale = json!({"spec": {"replicas": replicas}});
        f.patch(&format!("{path}/scale?fieldManager=two"), "merge", &scale).await;
        let now = f.get(&path).await;
        assert_eq!(
            (&now.body["spec"]["replicas"], owners(&now)),
            (&json!(replicas), want.iter().map(|o| (*o).to_owned()).collect())
        );
        let mut said = silent.clone();
        said["spec"]["replicas"] = json!(replicas);
        apply(&f, &path, "fieldManager=one", &said).await;
    }
}

#[tokio::test]
async fn scale_and_status_have_entries_of_their_own() {
    let f = Fixture::new().await;
    let path = format!("{DEPLOYMENTS}/d");
    let made = apply(&f, &path, "fieldManager=one", &deployment(2)).await;
    assert_eq!(made.code, 201, "{}", made.body);
    // Defaults are nobody's.
    let fields = &made.body["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"];
    assert_eq!(fields.get("f:revisionHistoryLimit"), None);
    assert_eq!(made.body["spec"]["revisionHistoryLimit"], 10);
    let scaled = f
        .patch(
            &format!("{path}/scale?fieldManager=two"),
            "merge",
            &json!({"spec": {"replicas": 3}}),
        )
        .await;
    assert_eq!(scaled.body["spec"]["replicas"], 3, "{}", scaled.body);
    let now = f.get(&path).await;
    assert_eq!(owners(&now), ["one Apply ", "two Update scale"]);
    let refused = apply(&f, &path, "fieldManager=one", &deployment(2)).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"two\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let status = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 9}, "status": {"replicas": 1}});
    let told = apply(&f, &format!("{path}/status"), "fieldManager=three", &status).await;
    assert_eq!(told.code, 200, "{}", told.body);
    assert_eq!(
        (&told.body["spec"]["replicas"], &told.body["status"]["replicas"]),
        (&json!(3), &json!(1))
    );
    assert!(owners(&told).contains(&"three Apply status".to_owned()), "{:?}", owners(&told));
    // The status of the object itself is nobody's to set.
    let mut config = deployment(3);
    config["status"] = json!({"replicas": 7});
    let same = apply(&f, &path, "fieldManager=one", &config).await;
    assert_eq!(same.body["status"]["replicas"], 1);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 5}});
    let scaled = apply(&f, &format!("{path}/scale"), "fieldManager=four&force=true", &scale).await;
    assert_eq!(scaled.body["spec"]["replicas"], 5, "{}", scaled.body);
    assert!(owners(&f.get(&path).await).contains(&"four Apply scale".to_owned()));
}

#[tokio::test]
async fn what_does_not_fit_is_refused_as_upstream_does() {
    let f = Fixture::new().await;
    let mut odd = deployment(1);
    odd["spec"]["replica"] = 1.into();
    let refused = apply(&f, &format!("{DEPLOYMENTS}/d"), "fieldManager=one", &odd).await;
    assert_eq!(
        (refused.code.as_u16(), &refused.body["message"]),
        (
            500,
            &json!(
                "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema"
            )
        )
    );
    let unlike = apply(&f, &format!("{MAPS}/b"), "fieldManager=one", &config_map("a")).await;
    assert_eq!(unlike.code, 400, "{}", unlike.body);
    let mut known = config_map("a");
    known["metadata"]["uid"] = "x".into();
    let missing = apply(&f, &format!("{MAPS}/a"), "fieldManager=one", &known).await;
    assert_eq!(missing.code, 409, "{}", missing.body);
    let status =
        apply(&f, &format!("{DEPLOYMENTS}/none/status"), "fieldManager=one", &deployment(1)).await;
    assert_eq!(status.code, 404);
}

#[tokio::test]
async fn versions_own_fields_of_their_own() {
    let f = Fixture::new().await;
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/h";
    let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let made = apply(&f, path, "fieldManager=one", &v1).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let entry = &made.body["metadata"]["managedFields"][0];
    assert_eq!(entry["apiVersion"], "autoscaling/v1");
    assert_eq!(entry["fieldsV1"]["f:spec"]["f:targetCPUUtilizationPercentage"], json!({}));
    // The other version's maxReplicas is the same field.
    let other = path.replace("/v1/", "/v2/");
    let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 4}});
    let refused = apply(&f, &other, "fieldManager=two", &v2).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .spec.maxReplicas",
    );
}

/// Waits until a definition is served.
async fn define(f: &Fixture, definition: &Value) {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = f.post(path, definition).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let mut watch = f.watch(&format!("{path}?watch=true")).await;
    loop {
        let event = watch.next().await.expect("an event");
        let conditions = event["object"]["status"]["conditions"].as_array().cloned();
        let done = |c: &Value| c["type"] == "Established" && c["status"] == "True";
        if conditions.is_some_and(|list| list.iter().any(done)) {
            return;
        }
    }
}

fn foo(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec})
}

const FOO: &str = "/apis/example.com/v1/namespaces/default/foos/a";

async fn with_foos() -> Fixture {
    let f = Fixture::new().await;
    let port = json!({"type": "object", "required": ["port"], "properties": {
        "port": {"type": "integer"}, "kind": {"type": "string", "default": "http"}, "note": {"type": "string"}}});
    let spec = json!({"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "kind"], "items": port},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "string"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic",
            "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}});
    define(&f, &json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [version]}})).await;
    f
}

#[tokio::test]
async fn custom_resources_are_applied_by_their_schema() {
    let f = with_foos().await;
    let first = foo(json!({"ports": [{"port": 80, "note": "x"}], "tags": ["a"], "list": ["x"],
        "whole": {"a": "b"}, "free": {"deep": {"er": 1}, "list": [1]}}));
    let made = apply(&f, FOO, "fieldManager=one", &first).await;
    assert_eq!(made.code, 201, "{}", made.body);
    // A key that the schema has a default for may be left out.
    let port = "k:{\"kind\":\"http\",\"port\":80}";
    assert_eq!(
        made.body["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"],
        json!({"f:ports": {port: {".": {}, "f:note": {}, "f:port": {}}},
            "f:tags": {"v:\"a\"": {}}, "f:list": {}, "f:whole": {},
            "f:free": {"f:deep": {".": {}, "f:er": {}}, "f:list": {}}})
    );
    // Another applier adds items and entries; what is atomic conflicts.
    let second =
        foo(json!({"ports": [{"port": 81}], "tags": ["b"], "free": {"deep": {"other": 2}}}));
    let merged = apply(&f, FOO, "fieldManager=two", &second).await;
    assert_eq!(merged.code, 200, "{}", merged.body);
    assert_eq!(merged.body["spec"]["tags"], json!(["a", "b"]));
    assert_eq!(merged.body["spec"]["ports"].as_array().map(Vec::len), Some(2));
    assert_eq!(merged.body["spec"]["free"]["deep"], json!({"er": 1, "other": 2}));
    let refused = apply(&f, FOO, "fieldManager=two", &foo(json!({"whole": {"c": "d"}}))).await;
    assert_eq!(
        refused.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .spec.whole"
    );
    // What the first drops goes, what the second owns stays.
    let left = apply(&f, FOO, "fieldManager=one", &foo(json!({"list": ["x"]}))).await;
    assert_eq!(left.code, 200, "{}", left.body);
    assert_eq!(left.body["spec"]["tags"], json!(["b"]));
    assert_eq!(left.body["spec"]["ports"], json!([{"port": 81, "kind": "http"}]));
    assert_eq!(left.body["spec"].get("whole"), None);
}

#[tokio::test]
async fn custom_resources_have_a_status_of_their_own() {
    let f = with_foos().await;
    apply(&f, FOO, "fieldManager=one", &foo(json!({"list": ["x"]}))).await;
    let odd = apply(&f, FOO, "fieldManager=one", &foo(json!({"unknown": 1}))).await;
    assert_eq!(
        odd.body["message"],
        "failed to create typed patch object (/a; example.com/v1, Kind=Foo): .spec.unknown: field not declared in schema"
    );
    // Nobody offers strategic patches of them, so that clients choose merge patches.
    let document = f.get("/openapi/v3/apis/example.com/v1").await.body;
    let patch =
        &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}"]["patch"];
    let kinds: Vec<&String> =
        patch["requestBody"]["content"].as_object().expect("bodies").keys().collect();
    assert_eq!(
        kinds,
        [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json"
        ]
    );
    assert_eq!(f.patch(FOO, "strategic-merge", &json!({})).await.code, 415);
    let status = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "status": {"n": 1}});
    let told = apply(&f, &format!("{FOO}/status"), "fieldManager=three", &status).await;
    assert_eq!((told.code.as_u16(), &told.body["status"]), (200, &json!({"n": 1})));
    assert!(owners(&told).contains(&"three Apply status".to_owned()), "{:?}", owners(&told));
}
