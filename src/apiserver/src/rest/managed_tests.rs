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
    assert_eq!(owners(&updated), ["editor Update ", "kubectl-create Update "]);
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
