//! Another API server on loopback, reached through this one.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::body::Body;
use crate::tests::{Answer, Fixture, https};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Serves `flunders` to callers with a certificate of the front proxy's authority; answers other paths
/// with the headers that say who asks. Returns its port and its certificate.
async fn wardle(front_proxy_ca: &str) -> (u16, String) {
    https::serve(Some(front_proxy_ca), |request, _| answer(request)).await
}

fn answer(request: &http::request::Parts) -> Value {
    let header = |name: &str| -> Vec<String> {
        let values = request.headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    match request.uri.path() {
        "/apis/wardle.example.com/v1alpha1" => {
            json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1alpha1", "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                    "verbs": ["get", "list"], "shortNames": ["fl"]},
                {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder",
                    "verbs": ["get"]}]})
        }
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => json!({"openapi": "3.0.0", "paths": {}}),
        "/openapi/v2" => json!({"paths": {"/apis/wardle.example.com/v1alpha1/flunders": {}},
            "definitions": {}}),
        path => json!({"path": path, "query": request.uri.query(),
            "user": header("x-remote-user"), "groups": header("x-remote-group"),
            "authorization": header("authorization")}),
    }
}

/// Asks until `done` holds.
async fn until(f: &Fixture, path: &str, done: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = f.get(path).await;
        if done(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "{path}: {} {}", answer.code, answer.body);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn condition(answer: &Answer) -> (&str, &str, &str) {
    let condition = &answer.body["status"]["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    (text("status"), text("reason"), text("message"))
}

fn api_service(port: u16, bundle: &str) -> Value {
    let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
    json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": {
        "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000,
        "versionPriority": 200, "caBundle": bundle,
        "service": {"namespace": "default", "name": "api", "port": port}}})
}

#[tokio::test]
async fn another_servers_group_is_served_here() {
    let f = Fixture::new().await;
    let map = f.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication");
    let ca =
        map.await.body["data"]["requestheader-client-ca-file"].as_str().expect("a CA").to_owned();
    let (port, bundle) = wardle(&ca).await;
    let made = f.post(API_SERVICES, &api_service(port, &bundle)).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let own = format!("{API_SERVICES}/v1alpha1.wardle.example.com");
    let missing = until(&f, &own, |answer| condition(answer).0 == "False").await;
    assert_eq!(
        condition(&missing),
        ("False", "ServiceNotFound", "service/api in \"default\" is not present")
    );
    let root = "/apis/wardle.example.com/v1alpha1";
    let refused = f.get(&format!("{root}/flunders")).await;
    assert_eq!((refused.code.as_u16(), &refused.body), (503, &json!("service unavailable\n")));

    let service = json!({"metadata": {"name": "api"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    assert_eq!(f.post("/api/v1/namespaces/default/services", &service).await.code, 201);
    let found = until(&f, &own, |answer| condition(answer).0 == "True").await;
    assert_eq!(condition(&found), ("True", "Passed", "all checks passed"));

    let path = format!("{root}/namespaces/default/flunders/a?x=y");
    let request = http::Request::get(path.as_str()).header("authorization", "Bearer secret");
    let answer = until(&f, &path, |answer| answer.code == 200).await;
    assert_eq!(answer.body["query"], "x=y");
    let answer = f.send(request, Body::Empty).await;
    assert_eq!(
        answer.body,
        json!({"path": format!("{root}/namespaces/default/flunders/a"), "query": "x=y",
            "user": ["kubernetes-admin"], "groups": ["system:masters", "system:authenticated"],
            "authorization": []})
    );
}

#[tokio::test]
async fn discovery_tells_of_other_servers() {
    let f = Fixture::new().await;
    let ca = f.api.pki().front_proxy_ca_pem().to_owned();
    let (port, bundle) = wardle(&ca).await;
    let service = json!({"metadata": {"name": "api"},
        "spec": {"type": "ExternalName", "externalName": "localhost"}});
    f.post("/api/v1/namespaces/default/services", &service).await;
    f.post(API_SERVICES, &api_service(port, &bundle)).await;
    let own = format!("{API_SERVICES}/v1alpha1.wardle.example.com");
    until(&f, &own, |answer| condition(answer).0 == "True").await;

    let listed = until(&f, "/apis/wardle.example.com", |answer| answer.code == 200).await;
    assert_eq!(
        listed.body["preferredVersion"],
        json!({"groupVersion": "wardle.example.com/v1alpha1", "version": "v1alpha1"})
    );
    let groups = f.get("/apis").await;
    let names: Vec<&str> = groups.body["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter_map(|group| group["name"].as_str())
        .collect();
    let place = |name: &str| names.iter().position(|known| *known == name).expect("it is listed");
    assert!(place("apps") < place("wardle.example.com"), "{names:?}");
    assert!(place("wardle.example.com") < place("metrics.k8s.io"), "{names:?}");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let version = loop {
        let request = http::Request::get("/apis").header("accept", accept);
        let document = f.send(request, Body::Empty).await.body;
        let mut items = document["items"].as_array().expect("items").iter();
        let item = items
            .find(|item| item["metadata"]["name"] == "wardle.example.com")
            .expect("it is listed");
        let version = item["versions"][0].clone();
        if version["freshness"] == "Current" && version["resources"].is_array() {
            break version;
        }
        assert!(tokio::time::Instant::now() < deadline, "{item}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        version["resources"],
        json!([{"resource": "flunders", "singularResource": "flunder", "scope": "Namespaced",
            "responseKind": {"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"},
            "verbs": ["get", "list"], "shortNames": ["fl"], "subresources": [{"subresource": "status",
                "responseKind": {"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"},
                "verbs": ["get"]}]}])
    );
    let index = f.get("/openapi/v3").await;
    assert!(index.body["paths"].get("apis/wardle.example.com/v1alpha1").is_some());
    let v2 = f.get("/openapi/v2").await;
    assert!(v2.body["paths"].get("/apis/wardle.example.com/v1alpha1/flunders").is_some());
    f.request(http::Method::DELETE, &own, &json!({})).await;
    until(&f, "/apis/wardle.example.com", |answer| answer.code == 404).await;
}

#[tokio::test]
async fn this_servers_own_groups_are_listed() {
    let f = Fixture::new().await;
    let apps = until(&f, &format!("{API_SERVICES}/v1.apps"), |a| condition(a).0 == "True").await;
    assert_eq!(condition(&apps), ("True", "Local", "Local APIServices are always available"));
    assert_eq!(apps.body["spec"]["groupPriorityMinimum"], 17800);
    let label = &apps.body["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"];
    assert_eq!(label, "onstart");
    // Another server of metrics that is taken away again leaves this one's in its place.
    let metrics = format!("{API_SERVICES}/v1beta1.metrics.k8s.io");
    let first = until(&f, &metrics, |a| condition(a).0 == "True").await;
    assert_eq!(f.request(http::Method::DELETE, &metrics, &json!({})).await.code, 200);
    let uid = |answer: &Answer| answer.body["metadata"]["uid"].clone();
    until(&f, &metrics, |a| condition(a).0 == "True" && uid(a) != uid(&first)).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_available() {
    let f = Fixture::new().await;
    let service = json!({"metadata": {"name": "api"},
        "spec": {"ports": [{"port": 443}], "selector": {"app": "none"}}});
    f.post("/api/v1/namespaces/default/services", &service).await;
    let mut made = api_service(443, "");
    made["spec"]["caBundle"] = Value::Null;
    made["spec"]["insecureSkipTLSVerify"] = true.into();
    assert_eq!(f.post(API_SERVICES, &made).await.code, 201);
    let own = format!("{API_SERVICES}/v1alpha1.wardle.example.com");
    let lost = until(&f, &own, |answer| condition(answer).0 == "False").await;
    assert_eq!(condition(&lost).1, "EndpointsNotFound");
    let slice = json!({"metadata": {"name": "api-1", "labels": {"kubernetes.io/service-name": "api"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 1}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(f.post(slices, &slice).await.code, 201);
    let lost = until(&f, &own, |answer| condition(answer).1 == "FailedDiscoveryCheck").await;
    let wanted = "failing or missing response from https://127.0.0.1:1/apis/wardle.example.com/v1alpha1: Get ";
    assert!(condition(&lost).2.starts_with(wanted), "{}", condition(&lost).2);
}
