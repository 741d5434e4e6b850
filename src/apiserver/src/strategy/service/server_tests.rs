//! Addresses of Services, their IPAddresses and ServiceCIDRs through the whole server.

use http::Method;
use serde_json::{Value, json};

use super::addresses::{FAMILY, MANAGED_BY};
use crate::tests::{Answer, Fixture};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["type"] != "ExternalName" {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn create(f: &Fixture, name: &str, spec: Value) -> Answer {
    f.post(SERVICES, &service(name, spec)).await
}

/// The IPAddress of an address: which Service it is of.
async fn owner(f: &Fixture, address: &str) -> Option<String> {
    let found = f.get(&format!("{ADDRESSES}/{address}")).await;
    let parent = &found.body["spec"]["parentRef"];
    (found.code == 200).then(|| format!("{}/{}", text(&parent["namespace"]), text(&parent["name"])))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

async fn range(f: &Fixture, name: &str, cidr: &str, ready: &str) {
    let made =
        f.post(RANGES, &json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}})).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready, "reason": "",
        "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let told = f.patch(&format!("{RANGES}/{name}/status"), "merge", &status).await;
    assert_eq!(told.code, 200, "{}", told.body);
}

/// Waits until `path` answers with `code`, and tells what.
async fn until(f: &Fixture, path: &str, code: u16) -> Value {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let answer = f.get(path).await;
        if answer.code == code {
            return answer.body;
        }
        assert!(tokio::time::Instant::now() < deadline, "{path} is {}", answer.code);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_ip_address_comes_and_goes_with_its_service() {
    let f = Fixture::new().await;
    assert_eq!(owner(&f, "10.43.0.1").await.as_deref(), Some("default/kubernetes"));
    let made = create(&f, "a", json!({})).await;
    let address = text(&made.body["spec"]["clusterIP"]).to_owned();
    let found = f.get(&format!("{ADDRESSES}/{address}")).await.body;
    let labels = json!({FAMILY: "IPv4", MANAGED_BY: "ipallocator.k8s.io"});
    assert_eq!(found["metadata"]["labels"], labels);
    let parent = json!({"resource": "services", "namespace": "default", "name": "a"});
    assert_eq!(found["spec"]["parentRef"], parent);
    // What has no address has no IPAddress.
    let before = f.get(ADDRESSES).await.body["items"].as_array().map(Vec::len);
    assert_eq!(create(&f, "headless", json!({"clusterIP": "None"})).await.code, 201);
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    assert_eq!(create(&f, "external", external).await.code, 201);
    assert_eq!(f.get(ADDRESSES).await.body["items"].as_array().map(Vec::len), before);
    // A change that does not touch the address leaves it alone, one of type takes it away or brings it.
    let path = format!("{SERVICES}/a");
    assert_eq!(
        f.patch(&path, "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await.code,
        200
    );
    assert_eq!(owner(&f, &address).await.as_deref(), Some("default/a"));
    let to_name = json!({"spec": {"type": "ExternalName", "externalName": "example.com",
        "clusterIP": "", "clusterIPs": null}});
    let named = f.patch(&path, "merge", &to_name).await;
    assert_eq!(
        (named.code.as_u16(), &named.body["spec"]["clusterIP"]),
        (200, &Value::Null),
        "{}",
        named.body
    );
    assert_eq!(owner(&f, &address).await, None);
    let back = f
        .patch(&path, "merge", &json!({"spec": {"type": "ClusterIP", "externalName": null}}))
        .await;
    let address = text(&back.body["spec"]["clusterIP"]).to_owned();
    assert_eq!(owner(&f, &address).await.as_deref(), Some("default/a"), "{}", back.body);
    assert_eq!(f.request(Method::DELETE, &path, &json!({})).await.code, 200);
    assert_eq!(owner(&f, &address).await, None);
    // One that finalizers hold keeps its address until it is gone.
    let mut held = service("held", json!({"clusterIP": address}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    assert_eq!(f.post(SERVICES, &held).await.code, 201);
    let path = format!("{SERVICES}/held");
    assert_eq!(f.request(Method::DELETE, &path, &json!({})).await.code, 200);
    assert_eq!(owner(&f, &address).await.as_deref(), Some("default/held"));
    assert_eq!(f.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await.code, 200);
    assert_eq!(owner(&f, &address).await, None);
    // A dry run reserves nothing.
    let dry = f
        .post(&format!("{SERVICES}?dryRun=All"), &service("dry", json!({"clusterIP": address})))
        .await;
    assert_eq!((dry.code.as_u16(), owner(&f, &address).await), (201, None));
}

#[tokio::test]
async fn addresses_come_from_every_range_that_is_ready() {
    let f = Fixture::new().await;
    let asked = |name: &'static str, address: &str| create(&f, name, json!({"clusterIP": address}));
    let refused = asked("a", "203.0.113.10").await;
    assert_eq!(
        refused.body["message"],
        r#"Service "a" is invalid: spec.clusterIPs: Invalid value: ["203.0.113.10"]: failed to allocate IP 203.0.113.10: the provided network does not match the current range"#
    );
    range(&f, "test-svc-cidr", "203.0.113.0/24", "True").await;
    assert_eq!(asked("a", "203.0.113.10").await.code, 201);
    assert_eq!(owner(&f, "203.0.113.10").await.as_deref(), Some("default/a"));
    let taken = asked("b", "203.0.113.10").await;
    assert!(text(&taken.body["message"]).ends_with("provided IP is already allocated"));
    range(&f, "not-ready", "198.51.100.0/24", "False").await;
    assert_eq!(asked("c", "198.51.100.7").await.code, 422);
    // What is being deleted gives nothing more.
    let hold = json!({"metadata": {"finalizers": ["example.com/held"]}});
    assert_eq!(f.patch(&format!("{RANGES}/test-svc-cidr"), "merge", &hold).await.code, 200);
    let ended = f.request(Method::DELETE, &format!("{RANGES}/test-svc-cidr"), &json!({})).await;
    assert_eq!(ended.code, 200);
    assert_eq!(asked("d", "203.0.113.11").await.code, 422);
    // A Service keeps an address that could no longer be had.
    let kept = f
        .patch(&format!("{SERVICES}/a"), "merge", &json!({"spec": {"sessionAffinity": "ClientIP"}}))
        .await;
    assert_eq!(kept.body["spec"]["clusterIP"], "203.0.113.10");
}

#[tokio::test]
async fn a_full_range_is_left_for_another() {
    let f = Fixture::new().await;
    // The range of the start is kept out of the way by calling it not ready.
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Test",
        "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let told = f.patch(&format!("{RANGES}/kubernetes/status"), "merge", &status).await;
    assert_eq!(told.code, 200, "{}", told.body);
    let full = create(&f, "none", json!({})).await;
    assert_eq!(
        (full.code.as_u16(), &full.body["message"]),
        (500, &json!("Internal error occurred: failed to allocate a serviceIP: range is full"))
    );
    range(&f, "a", "192.0.2.0/29", "True").await;
    range(&f, "b", "192.0.2.128/30", "True").await;
    for i in 0..8 {
        let made = create(&f, &format!("s{i}"), json!({})).await;
        assert_eq!(made.code, 201, "{i}: {}", made.body);
    }
    assert_eq!(create(&f, "one-more", json!({})).await.code, 500);
}

#[tokio::test]
async fn an_address_that_others_reserved_is_not_given() {
    let f = Fixture::new().await;
    let reserved = json!({"metadata": {"name": "10.43.7.7"},
        "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}});
    assert_eq!(f.post(ADDRESSES, &reserved).await.code, 201);
    let refused = create(&f, "a", json!({"clusterIP": "10.43.7.7"})).await;
    assert!(text(&refused.body["message"]).ends_with("provided IP is already allocated"));
}

#[tokio::test]
async fn what_people_break_is_repaired_and_told() {
    let f = Fixture::new().await;
    let made = create(&f, "a", json!({})).await;
    let address = text(&made.body["spec"]["clusterIP"]).to_owned();
    let path = format!("{ADDRESSES}/{address}");
    let uid = f.get(&path).await.body["metadata"]["uid"].clone();
    assert_eq!(f.request(Method::DELETE, &path, &json!({})).await.code, 200);
    let again = until(&f, &path, 200).await;
    assert_ne!(again["metadata"]["uid"], uid);
    let events = f
        .get("/api/v1/namespaces/default/events?fieldSelector=reason%3DClusterIPNotAllocated")
        .await;
    let want = format!("Cluster IP [IPv4]: {address} is not allocated; repairing");
    assert_eq!(events.body["items"][0]["message"], want);
    assert_eq!(events.body["items"][0]["involvedObject"]["name"], "a");
    // An address of ours that no Service has.
    let leaked = json!({"metadata": {"name": "10.43.9.9", "labels": {MANAGED_BY: "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "nobody"}}});
    assert_eq!(f.post(ADDRESSES, &leaked).await.code, 201);
    until(&f, &format!("{ADDRESSES}/10.43.9.9"), 404).await;
    assert_eq!(
        f.request(Method::DELETE, &format!("{RANGES}/kubernetes"), &json!({})).await.code,
        200
    );
    let default = until(&f, &format!("{RANGES}/kubernetes"), 200).await;
    assert_eq!(default["spec"]["cidrs"], json!(["10.43.0.0/16"]));
}
