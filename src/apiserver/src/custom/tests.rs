//! Custom resources over requests.

use http::Method;
use serde_json::{Value, json};

use crate::tests::Fixture;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

fn crd() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo", "shortNames": ["fo"], "categories": ["all"]},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["color"], "properties": {
                        "color": {"type": "string", "enum": ["red", "blue"]},
                        "replicas": {"type": "integer", "minimum": 0, "default": 1}}},
                    "status": {"type": "object", "properties": {
                        "replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}}}]}})
}

fn foo(name: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": {"color": "red"}})
}

/// Waits until the definition's condition is `True`.
pub async fn established(f: &Fixture, name: &str) {
    let path = format!("{CRDS}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut watch = f.watch(&path).await;
    while let Some(event) = watch.next().await {
        if super::definition::is_true(&event["object"], "Established") {
            return;
        }
    }
}

async fn fixture() -> Fixture {
    let f = Fixture::new().await;
    let made = f.post(CRDS, &crd()).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["status"]["storedVersions"], json!(["v1"]));
    established(&f, "foos.example.com").await;
    f
}

#[tokio::test]
async fn a_defined_kind_is_served() {
    let f = fixture().await;
    let made = f.post(FOOS, &foo("a")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["spec"], json!({"color": "red", "replicas": 1}));
    assert_eq!(made.body["metadata"]["generation"], 1);
    let listed = f.get(FOOS).await;
    assert_eq!(listed.body["kind"], "FooList");
    assert_eq!(listed.body["items"][0], made.body);
    let discovered = f.get("/apis/example.com/v1").await;
    let names: Vec<&str> = discovered.body["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(names, ["foos", "foos/scale", "foos/status"]);
    assert_eq!(discovered.body["resources"][0]["shortNames"], json!(["fo"]));
    let red = f.get(&format!("{FOOS}?fieldSelector=spec.color%3Dred")).await;
    assert_eq!(red.body["items"].as_array().map(Vec::len), Some(1));
    let blue = f.get(&format!("{FOOS}?fieldSelector=spec.color%3Dblue")).await;
    assert_eq!(blue.body["items"].as_array().map(Vec::len), Some(0));
    let mut watch = f.watch(&format!("{FOOS}?watch=true")).await;
    assert_eq!(watch.tell().await, "ADDED a");
    let patched = f.patch(&format!("{FOOS}/a"), "merge", &json!({"spec": {"color": "blue"}})).await;
    assert_eq!(patched.body["metadata"]["generation"], 2);
    assert_eq!(watch.tell().await, "MODIFIED a");
    let strategic = f.patch(&format!("{FOOS}/a"), "strategic-merge", &json!({})).await;
    assert_eq!(strategic.code, 415);
    let gone = f.request(Method::DELETE, &format!("{FOOS}/a"), &json!({})).await;
    assert_eq!(gone.code, 200);
    assert_eq!(watch.tell().await, "DELETED a");
}

#[tokio::test]
async fn objects_are_validated_and_pruned() {
    let f = fixture().await;
    let wrong = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"},
        "spec": {"color": "green", "replicas": -1}});
    let refused = f.post(FOOS, &wrong).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    assert_eq!(
        refused.body["message"],
        "Foo.example.com \"a\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0, .spec.replicas: Invalid value: -1: should be a non-negative integer]"
    );
    let mut odd = foo("a");
    odd["spec"]["extra"] = 1.into();
    let refused = f.post(&format!("{FOOS}?fieldValidation=Strict"), &odd).await;
    assert_eq!(
        refused.body["message"],
        "Foo in version \"v1\" cannot be handled as a Foo: strict decoding error: unknown field \"spec.extra\""
    );
    let warned = f.post(FOOS, &odd).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"spec.extra\\\"\"");
    assert!(warned.body["spec"].get("extra").is_none());
}

#[tokio::test]
async fn what_scales_must_be_numbers() {
    let f = fixture().await;
    for (replicas, why) in [
        (json!(-1), "should be a non-negative integer"),
        (json!(2.0), ".spec.replicas accessor error: 2 is of the type float64, expected int64"),
    ] {
        let mut body = foo("a");
        body["spec"]["replicas"] = replicas;
        let answer = f.post(FOOS, &body).await;
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert!(answer.code == 422 && message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn status_and_scale_are_written_apart() {
    let f = fixture().await;
    let mut with_status = foo("a");
    with_status["status"] = json!({"replicas": 9});
    let made = f.post(FOOS, &with_status).await;
    assert!(made.body.get("status").is_none(), "{}", made.body);
    let path = format!("{FOOS}/a/status");
    let body = json!({"status": {"replicas": 2, "selector": "x=y"}, "spec": {"color": "blue"},
        "metadata": {"labels": {"a": "b"}}});
    let patched = f.patch(&path, "merge", &body).await;
    assert_eq!(patched.code, 200, "{}", patched.body);
    assert_eq!(patched.body["status"]["replicas"], 2);
    assert_eq!(patched.body["spec"]["color"], "red");
    assert!(patched.body["metadata"].get("labels").is_none());
    assert_eq!(patched.body["metadata"]["generation"], 1);
    let scale = f.get(&format!("{FOOS}/a/scale")).await;
    assert_eq!(
        (&scale.body["spec"]["replicas"], &scale.body["status"]["selector"]),
        (&json!(1), &json!("x=y"))
    );
    let scaled =
        f.patch(&format!("{FOOS}/a/scale"), "merge", &json!({"spec": {"replicas": 5}})).await;
    assert_eq!((scaled.code.as_u16(), &scaled.body["spec"]["replicas"]), (200, &json!(5)));
    let now = f.get(&format!("{FOOS}/a")).await;
    assert_eq!(
        (&now.body["spec"]["replicas"], &now.body["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
}

#[tokio::test]
async fn columns_are_printed() {
    let f = fixture().await;
    f.post(FOOS, &foo("a")).await;
    let ask =
        http::Request::get(FOOS).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = f.send(ask, crate::body::Body::Empty).await;
    let cells = &table.body["rows"][0]["cells"];
    assert_eq!((&cells[0], &cells[1], &cells[2]), (&json!("a"), &json!("red"), &json!(1)));
    assert_eq!(table.body["columnDefinitions"][1]["name"], "Color");
}

#[tokio::test]
async fn versions_convert_by_name() {
    let f = fixture().await;
    f.post(FOOS, &foo("a")).await;
    let mut crd = f.get(&format!("{CRDS}/foos.example.com")).await.body;
    let mut second = crd["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    crd["spec"]["versions"][0]["storage"] = false.into();
    crd["spec"]["versions"][0]["deprecated"] = true.into();
    crd["spec"]["versions"].as_array_mut().expect("versions").push(second);
    let changed = f.request(Method::PUT, &format!("{CRDS}/foos.example.com"), &crd).await;
    assert_eq!(changed.code, 200, "{}", changed.body);
    assert_eq!(changed.body["status"]["storedVersions"], json!(["v1", "v2"]));
    let newer = FOOS.replace("/v1/", "/v2/");
    let mut found = f.get(&format!("{newer}/a")).await;
    for _ in 0..1000 {
        if found.code == 200 {
            break;
        }
        tokio::task::yield_now().await;
        found = f.get(&format!("{newer}/a")).await;
    }
    assert_eq!(found.body["apiVersion"], "example.com/v2", "{}", found.body);
    let older = f.get(&format!("{FOOS}/a")).await;
    assert_eq!(older.body["apiVersion"], "example.com/v1");
    assert_eq!(
        older.headers["warning"],
        "299 - \"example.com/v1 Foo is deprecated; use example.com/v2 Foo\""
    );
    let mut watch = f.watch(&format!("{FOOS}?watch=true")).await;
    let event = watch.next().await.expect("an event");
    assert_eq!(event["object"]["apiVersion"], "example.com/v1");
    let patched = f.patch(&format!("{newer}/a"), "merge", &json!({"spec": {"replicas": 3}})).await;
    assert_eq!(
        (&patched.body["apiVersion"], &patched.body["spec"]["replicas"]),
        (&json!("example.com/v2"), &json!(3))
    );
    assert_eq!(f.get(FOOS).await.body["items"][0]["apiVersion"], "example.com/v1");
}

#[tokio::test]
async fn each_version_has_its_selectable_fields() {
    let f = Fixture::new().await;
    let version = |name: &str, storage: bool, field: &str| {
        json!({"name": name, "served": true, "storage": storage,
            "selectableFields": [{"jsonPath": format!(".{field}")}],
            "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"host": {"type": "string"}, "port": {"type": "string"}}}}})
    };
    let mut definition = crd();
    definition["spec"]["versions"] =
        json!([version("v1", true, "host"), version("v2", false, "port")]);
    f.post(CRDS, &definition).await;
    established(&f, "foos.example.com").await;
    let later = FOOS.replace("v1", "v2");
    let made = |name: &str, port: &str| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "host": "h", "port": port});
    f.post(FOOS, &made("a", "80")).await;
    let mut watch = f.watch(&format!("{later}?watch=true&fieldSelector=port%3D80")).await;
    assert_eq!(watch.tell().await, "ADDED a");
    f.post(FOOS, &made("b", "81")).await;
    f.post(FOOS, &made("c", "80")).await;
    assert_eq!(watch.tell().await, "ADDED c");
    let change = json!({"port": "81"});
    f.patch(&format!("{FOOS}/a"), "merge", &change).await;
    assert_eq!(watch.tell().await, "DELETED a");
    for (path, found) in [
        (format!("{later}?fieldSelector=port%3D81"), Some(2)),
        (format!("{later}?fieldSelector=port!%3D81&limit=1"), Some(1)),
        (format!("{later}?fieldSelector=host%3Dh"), None),
        (format!("{FOOS}?fieldSelector=host%3Dh"), Some(3)),
        (format!("{FOOS}?fieldSelector=port%3D81"), None),
    ] {
        let answer = f.get(&path).await;
        let count = answer.body["items"].as_array().map(Vec::len);
        assert_eq!(count, found, "{path}: {}", answer.body);
    }
    f.request(Method::DELETE, &format!("{later}?fieldSelector=port%3D81"), &json!({})).await;
    assert_eq!(f.get(FOOS).await.body["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let f = fixture().await;
    let mut held = foo("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    f.post(FOOS, &held).await;
    f.post(FOOS, &foo("b")).await;
    let path = format!("{CRDS}/foos.example.com");
    let deleted = f.request(Method::DELETE, &path, &json!({})).await;
    assert_eq!(
        deleted.body["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let mut watch = f.watch(&format!("{FOOS}?watch=true&fieldSelector=metadata.name%3Da")).await;
    while let Some(event) = watch.next().await {
        if event["object"]["metadata"]["deletionTimestamp"].is_string() {
            break;
        }
    }
    let refused = f.post(FOOS, &foo("c")).await;
    assert_eq!(refused.code, 405, "{}", refused.body);
    let mut definitions = f.watch(&format!("{CRDS}?watch=true")).await;
    let freed =
        f.patch(&format!("{FOOS}/a"), "merge", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{}", freed.body);
    while definitions.next().await.expect("an event")["type"] != "DELETED" {}
    let mut gone = f.get(FOOS).await.code;
    for _ in 0..1000 {
        if gone == 404 {
            break;
        }
        tokio::task::yield_now().await;
        gone = f.get(FOOS).await.code;
    }
    assert_eq!(gone, 404);
}

#[tokio::test]
async fn a_custom_kind_is_described() {
    let f = fixture().await;
    let document = f.get("/openapi/v3/apis/example.com/v1").await;
    let schema = &document.body["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["default"], 1);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
    let old = f.get("/openapi/v2").await;
    assert!(old.body["definitions"]["com.example.v1.FooList"].is_object());
}

#[tokio::test]
async fn a_kind_open_to_all_fields_is_only_named_to_old_clients() {
    let f = Fixture::new().await;
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let crd = json!({"metadata": {"name": "opens.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "opens", "singular": "open", "kind": "Open", "listKind": "OpenList"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": schema}}]}});
    let made = f.post(CRDS, &crd).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let old = loop {
        let document = f.get("/openapi/v2").await.body;
        if document["definitions"]["com.example.v1.Open"].is_object() {
            break document;
        }
        tokio::task::yield_now().await;
    };
    let named = json!([{"group": "example.com", "version": "v1", "kind": "Open"}]);
    assert_eq!(
        old["definitions"]["com.example.v1.Open"],
        json!({"type": "object", "x-kubernetes-group-version-kind": named})
    );
}

#[tokio::test]
async fn custom_objects_are_applied_by_their_schema() {
    let f = fixture().await;
    let apply = async |manager: &str, spec: Value| {
        let request = http::Request::patch(format!("{FOOS}/a?fieldManager={manager}"))
            .header("content-type", "application/apply-patch+yaml");
        let body = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "a"}, "spec": spec});
        f.send(request, body.to_string()).await
    };
    let made = apply("one", json!({"color": "red", "replicas": 2})).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let conflict = apply("two", json!({"color": "blue"})).await;
    assert_eq!(conflict.code, 409, "{}", conflict.body);
    let shared = apply("two", json!({"color": "red"})).await;
    assert_eq!(shared.code, 200, "{}", shared.body);
    let given_up = apply("one", json!({"color": "red"})).await;
    assert_eq!(given_up.body["spec"], json!({"color": "red", "replicas": 1}));
}

#[tokio::test]
async fn rules_of_the_schema_are_kept() {
    let f = Fixture::new().await;
    let mut crd = crd();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = json!([
        {"rule": "self.color != 'blue' || self.replicas < 3", "message": "few are blue"},
        {"rule": "self.color == oldSelf.color", "message": "color is immutable"}]);
    let made = f.post(CRDS, &crd).await;
    assert_eq!(made.code, 201, "{}", made.body);
    established(&f, "foos.example.com").await;
    let mut many = foo("a");
    many["spec"] = json!({"color": "blue", "replicas": 5});
    let refused = f.post(FOOS, &many).await;
    assert_eq!(
        refused.body["message"],
        "Foo.example.com \"a\" is invalid: spec: Invalid value: few are blue"
    );
    f.post(FOOS, &foo("a")).await;
    let refused = f.patch(&format!("{FOOS}/a"), "merge", &json!({"spec": {"color": "blue"}})).await;
    assert_eq!(
        refused.body["message"],
        "Foo.example.com \"a\" is invalid: spec: Invalid value: color is immutable"
    );
    crd["metadata"]["name"] = "bars.example.com".into();
    crd["spec"]["names"] = json!({"plural": "bars", "kind": "Bar"});
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.colour == 'x'"}]);
    let refused = f.post(CRDS, &crd).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.contains("undefined field 'colour'"), "{text}");
}

#[tokio::test]
async fn nulls_that_are_applied_are_mistakes() {
    let f = fixture().await;
    let apply = async |spec: Value| {
        let mut config = foo("a");
        config["spec"] = spec;
        let request = http::Request::patch(format!("{FOOS}/a?fieldManager=m"))
            .header("content-type", "application/apply-patch+yaml");
        f.send(request, config.to_string()).await
    };
    let refused = apply(json!({"color": null})).await;
    assert_eq!(
        refused.body["message"],
        "Foo.example.com \"a\" is invalid: [spec.color: Invalid value: \"null\": spec.color in body must be of type string: \"null\", spec.color: Unsupported value: null: supported values: \"red\", \"blue\"]"
    );
    // What has a default gets it.
    let made = apply(json!({"color": "red", "replicas": null})).await;
    assert_eq!(made.body["spec"], json!({"color": "red", "replicas": 1}), "{}", made.body);
    // In a body they say nothing.
    let mut body = foo("b");
    body["spec"] = json!({"color": null});
    let refused = f.post(FOOS, &body).await;
    let text = refused.body["message"].as_str().expect("a message");
    assert!(text.contains("spec.color: Required value"), "{text}");
}

#[tokio::test]
async fn values_of_an_enum_are_told_in_its_order() {
    let f = fixture().await;
    let mut body = foo("a");
    body["spec"]["color"] = "green".into();
    let refused = f.post(FOOS, &body).await;
    let text = refused.body["message"].as_str().expect("a message");
    assert!(
        text.contains(r#"Unsupported value: "green": supported values: "red", "blue""#),
        "{text}"
    );
}

#[tokio::test]
async fn what_does_not_say_how_many_can_be_scaled() {
    let f = Fixture::new().await;
    let mut crd = crd();
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"]["replicas"].as_object_mut().expect("a schema").remove("default");
    f.post(CRDS, &crd).await;
    established(&f, "foos.example.com").await;
    f.post(FOOS, &foo("a")).await;
    let path = format!("{FOOS}/a/scale");
    let absent = f.get(&path).await;
    assert_eq!(absent.code, 500, "{}", absent.body);
    let scaled = f.patch(&path, "merge", &json!({"spec": {"replicas": 2}})).await;
    assert_eq!((scaled.code.as_u16(), &scaled.body["spec"]), (200, &json!({"replicas": 2})));
    assert_eq!(f.get(&format!("{FOOS}/a")).await.body["spec"]["replicas"], 2);
}

#[tokio::test]
async fn what_a_new_rule_says_against_old_values_is_a_warning() {
    let f = fixture().await;
    f.post(FOOS, &foo("a")).await;
    let path = format!("{CRDS}/foos.example.com");
    let rule = json!([{"op": "add",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations",
        "value": [{"rule": "self.color != 'red'", "message": "red is over"}]}]);
    let changed = f.patch(&path, "json", &rule).await;
    assert_eq!(changed.code, 200, "{}", changed.body);
    // The rule is in force once a new object is refused.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while f.post(&format!("{FOOS}?dryRun=All"), &foo("b")).await.code != 422 {
        assert!(tokio::time::Instant::now() < deadline, "the rule is not in force");
        tokio::task::yield_now().await;
    }
    let labelled =
        f.patch(&format!("{FOOS}/a"), "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(labelled.code, 200, "{}", labelled.body);
    assert_eq!(labelled.headers["warning"], "299 - \"spec: Invalid value: red is over\"");
    let refused = f.patch(&format!("{FOOS}/a"), "merge", &json!({"spec": {"replicas": 2}})).await;
    assert_eq!(refused.code, 422, "{}", refused.body);
}

#[tokio::test]
async fn all_versions_are_stored_in_one() {
    let f = Fixture::new().await;
    let mut crd = crd();
    let mut second = crd["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    crd["spec"]["versions"].as_array_mut().expect("a list").push(second);
    f.post(CRDS, &crd).await;
    established(&f, "foos.example.com").await;
    let hash = async |path: &str, plural: &str| {
        let list = f.get(path).await.body;
        let resources = list["resources"].as_array().cloned().unwrap_or_default();
        let found = resources.into_iter().find(|resource| resource["name"] == plural);
        found.map(|resource| resource["storageVersionHash"].clone())
    };
    let [one, other] = ["/apis/example.com/v1", "/apis/example.com/v2"];
    assert_eq!(hash(one, "foos").await, hash(other, "foos").await);
    assert_eq!(hash("/api/v1", "events").await, hash("/apis/events.k8s.io/v1", "events").await);
}
