//! Cases of upstream's `merge` and `managedfields` tests, each with what upstream does.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::*;
use crate::schema;

struct Builtin {
    kind: &'static str,
}

impl Versions for Builtin {
    fn root(&self, api_version: &str) -> Option<Typed<'_>> {
        let (group, version) = meta::split_api_version(api_version);
        let schema = schema::builtin();
        Some(Typed::kind(schema, schema.kind(group, version, self.kind)?))
    }

    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Option<Cow<'v, Value>> {
        (meta::api_version(object) == api_version).then_some(Cow::Borrowed(object))
    }

    fn ignored(&self, _: &str) -> Option<&Set> {
        None
    }
}

struct Anything;

impl Versions for Anything {
    fn root(&self, _: &str) -> Option<Typed<'_>> {
        Some(Typed::deduced())
    }

    fn convert<'v>(&self, object: &'v Value, _: &str) -> Option<Cow<'v, Value>> {
        Some(Cow::Borrowed(object))
    }

    fn ignored(&self, _: &str) -> Option<&Set> {
        None
    }
}

fn by<'a>(manager: &'a str, api_version: &'a str) -> Operation<'a> {
    Operation { manager, api_version, subresource: "", now: "2026-01-01T00:00:00Z" }
}

fn applied(
    versions: &dyn Versions,
    manager: &str,
    live: &Value,
    config: &Value,
) -> Result<Value, Error> {
    apply(versions, by(manager, meta::api_version(config)), live, config, false)
}

fn stored(mut object: Value) -> Value {
    meta::set(&mut object, "uid", "u");
    object
}

fn fields(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries
        .into_iter()
        .find(|e| e["manager"] == manager)
        .map_or(Value::Null, |e| e["fieldsV1"].clone())
}

const DEPLOYMENT: Builtin = Builtin { kind: "Deployment" };
const CONFIG_MAP: Builtin = Builtin { kind: "ConfigMap" };

fn empty(api_version: &str, kind: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind})
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "d"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "d"}, "spec": spec})
}

#[test]
fn a_create_owns_what_it_sets() {
    let mut object = deployment(json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
            {"name": "n", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {}}]}}}));
    update(
        &DEPLOYMENT,
        by("kubectl-create", "apps/v1"),
        &empty("apps/v1", "Deployment"),
        &mut object,
    );
    // Atomic parts are one field; what is new as a whole is owned itself; Go's by-value structs are not new.
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {
                "f:replicas": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {
                    "k:{\"name\":\"n\"}": {".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                            {".": {}, "f:containerPort": {}, "f:protocol": {}}},
                        "f:resources": {}}}}}}}}])
    );
}

#[test]
fn objects_of_one_form_have_the_same_owners() {
    let kind = Builtin { kind: "Deployment" };
    let made = |name: &str, manager: &str, image: &str| {
        let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"creationTimestamp": null}, "spec": {"containers": [{"name": name, "image": image}]}}});
        let mut object = deployment(spec);
        meta::set(&mut object, "name", name);
        update(&kind, by(manager, "apps/v1"), &empty("apps/v1", "Deployment"), &mut object);
        meta::remove(&mut object, "managedFields").expect("owners")
    };
    let first = made("a", "one", "x");
    for _ in 0..3 {
        assert_eq!(made("a", "one", "x"), first);
        let other = made("b", "one", "x");
        assert_ne!(other[0]["fieldsV1"], first[0]["fieldsV1"]);
        let by_another = made("a", "two", "x");
        assert_eq!(
            (&by_another[0]["manager"], &by_another[0]["fieldsV1"]),
            (&json!("two"), &first[0]["fieldsV1"])
        );
    }
}

#[test]
fn an_update_takes_what_it_changes() {
    let mut object = stored(config_map(json!({"a": "1", "b": "1"})));
    let live = object.clone();
    meta::remove(&mut object, "uid");
    update(&CONFIG_MAP, by("one", "v1"), &empty("v1", "ConfigMap"), &mut object);
    let live = {
        let mut o = object;
        meta::set(&mut o, "uid", meta::uid(&live).to_owned());
        o
    };
    let mut new = live.clone();
    new["data"]["b"] = "2".into();
    update(&CONFIG_MAP, by("two", "v1"), &live, &mut new);
    assert_eq!(fields(&new, "one"), json!({"f:data": {".": {}, "f:a": {}}}));
    assert_eq!(fields(&new, "two"), json!({"f:data": {"f:b": {}}}));
    // The same again changes nothing, the time neither.
    let mut again = new.clone();
    update(
        &CONFIG_MAP,
        Operation { now: "2027-01-01T00:00:00Z", ..by("two", "v1") },
        &new,
        &mut again,
    );
    assert_eq!(again, new);
}

#[test]
fn conflicts_name_the_owner() {
    let live = stored(
        applied(
            &CONFIG_MAP,
            "one",
            &empty("v1", "ConfigMap"),
            &config_map(json!({"a": "1", "b": "1"})),
        )
        .unwrap(),
    );
    let error = applied(&CONFIG_MAP, "two", &live, &config_map(json!({"a": "2"}))).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"one\": .data.a");
    let error =
        applied(&CONFIG_MAP, "two", &live, &config_map(json!({"a": "2", "b": "2"}))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.a\n- .data.b"
    );
    // Equal values are owned together.
    let shared = applied(&CONFIG_MAP, "two", &live, &config_map(json!({"a": "1"}))).unwrap();
    assert_eq!(fields(&shared, "two"), json!({"f:data": {"f:a": {}}}));
    assert_eq!(fields(&shared, "one"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    // Force takes them.
    let forced =
        apply(&CONFIG_MAP, by("two", "v1"), &live, &config_map(json!({"a": "2"})), true).unwrap();
    assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
    assert_eq!(fields(&forced, "one"), json!({"f:data": {"f:b": {}}}));
}

#[test]
fn an_updater_is_named_with_its_version() {
    let mut live = config_map(json!({"a": "1"}));
    update(&CONFIG_MAP, by("kubectl-edit", "v1"), &empty("v1", "ConfigMap"), &mut live);
    let error =
        applied(&CONFIG_MAP, "two", &stored(live), &config_map(json!({"a": "2"}))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using v1: .data.a"
    );
}

#[test]
fn what_an_applier_drops_goes_unless_another_owns_it() {
    let first = config_map(json!({"a": "1", "b": "1"}));
    let live = stored(applied(&CONFIG_MAP, "one", &empty("v1", "ConfigMap"), &first).unwrap());
    let live = applied(&CONFIG_MAP, "two", &live, &config_map(json!({"b": "1"}))).unwrap();
    let left = applied(&CONFIG_MAP, "one", &live, &config_map(json!({"c": "1"}))).unwrap();
    assert_eq!(left["data"], json!({"b": "1", "c": "1"}));
    // Nothing applied any more: the owner is forgotten, and what only it owned.
    let mut bare = config_map(Value::Null);
    bare.as_object_mut().unwrap().remove("data");
    let left = applied(&CONFIG_MAP, "one", &left, &bare).unwrap();
    assert_eq!(left["data"], json!({"b": "1"}));
    assert_eq!(fields(&left, "one"), Value::Null);
}

#[test]
fn list_items_are_merged_by_their_keys() {
    let with =
        |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    let live = stored(
        applied(
            &DEPLOYMENT,
            "one",
            &empty("apps/v1", "Deployment"),
            &with(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
        )
        .unwrap(),
    );
    let live = applied(
        &DEPLOYMENT,
        "two",
        &live,
        &with(json!([{"name": "c", "image": "1", "env": [{"name": "X", "value": "1"}]}])),
    )
    .unwrap();
    let names = |o: &Value| -> Vec<String> {
        o["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&live), ["a", "b", "c"]);
    let left =
        applied(&DEPLOYMENT, "one", &live, &with(json!([{"name": "b", "image": "2"}]))).unwrap();
    assert_eq!(names(&left), ["b", "c"]);
    assert_eq!(left["spec"]["template"]["spec"]["containers"][0]["image"], "2");
    assert_eq!(
        fields(&left, "two")["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]
            ["f:env"],
        json!({"k:{\"name\":\"X\"}": {".": {}, "f:name": {}, "f:value": {}}})
    );
}

#[test]
fn ports_are_known_by_number_and_protocol() {
    let service = Builtin { kind: "Service" };
    let with = |ports: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}});
    let live = stored(
        applied(
            &service,
            "one",
            &empty("v1", "Service"),
            &with(json!([{"port": 53, "protocol": "UDP"}, {"port": 53}])),
        )
        .unwrap(),
    );
    assert_eq!(
        fields(&live, "one")["f:spec"]["f:ports"],
        json!({"k:{\"port\":53,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}},
            "k:{\"port\":53,\"protocol\":\"UDP\"}": {".": {}, "f:port": {}, "f:protocol": {}}})
    );
}

#[test]
fn atomic_parts_are_replaced() {
    let with = |labels: Value| deployment(json!({"selector": {"matchLabels": labels}}));
    let live = stored(
        applied(&DEPLOYMENT, "one", &empty("apps/v1", "Deployment"), &with(json!({"a": "1"})))
            .unwrap(),
    );
    let error = applied(&DEPLOYMENT, "two", &live, &with(json!({"b": "1"}))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.selector"
    );
    let live = applied(&DEPLOYMENT, "one", &live, &with(json!({"b": "1"}))).unwrap();
    assert_eq!(live["spec"]["selector"], json!({"matchLabels": {"b": "1"}}));
}

#[test]
fn sets_are_merged_by_value() {
    let with = |finalizers: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "finalizers": finalizers}});
    let live = stored(
        applied(&CONFIG_MAP, "one", &empty("v1", "ConfigMap"), &with(json!(["x/a", "x/b"])))
            .unwrap(),
    );
    let live = applied(&CONFIG_MAP, "two", &live, &with(json!(["x/c"]))).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x/a", "x/b", "x/c"]));
    let live = applied(&CONFIG_MAP, "one", &live, &with(json!(["x/b"]))).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x/b", "x/c"]));
    assert_eq!(fields(&live, "one"), json!({"f:metadata": {"f:finalizers": {"v:\"x/b\"": {}}}}));
}

#[test]
fn a_configuration_must_fit_the_schema() {
    let of = |spec: Value| {
        applied(&DEPLOYMENT, "one", &empty("apps/v1", "Deployment"), &deployment(spec))
            .unwrap_err()
            .to_string()
    };
    let prefix = "failed to create typed patch object (d/a; apps/v1, Kind=Deployment): ";
    for (spec, want) in [
        (json!({"foo": 1}), ".spec.foo: field not declared in schema"),
        (
            json!({"replicas": "1"}),
            ".spec.replicas: expected numeric (int or float), got value.valueUnstructured",
        ),
        (
            json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"template": {"spec": {"containers": [{"image": "a"}]}}}),
            ".spec.template.spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            json!({"template": {"spec": {"nodeName": 1}}}),
            ".spec.template.spec.nodeName: expected string, got &value.valueUnstructured{Value:1}",
        ),
        // Lists and objects that are owned as a whole are looked into as well.
        (
            json!({"template": {"spec": {"tolerations": [{"key": "a"}, {"kay": "b"}]}}}),
            ".spec.template.spec.tolerations[1].kay: field not declared in schema",
        ),
        (
            json!({"selector": {"matchLabels": {"a": 1}, "matchExpressions": [3]}}),
            "errors:\n  .spec.selector.matchExpressions[0]: expected map, got &{3}\n  .spec.selector.matchLabels.a: expected string, got &value.valueUnstructured{Value:1}",
        ),
    ] {
        assert_eq!(of(spec), format!("{prefix}{want}"));
    }
    let mut other = deployment(json!({}));
    other["apiVersion"] = "apps/v2".into();
    let error =
        apply(&DEPLOYMENT, by("one", "apps/v1"), &empty("apps/v1", "Deployment"), &other, false)
            .unwrap_err();
    assert_eq!(error, Error::BadRequest("Incorrect version specified in apply patch. Specified patch version: apps/v2, expected: apps/v1".into()));
    let mut owners = deployment(json!({}));
    owners["metadata"]["managedFields"] = json!([]);
    let error = applied(&DEPLOYMENT, "one", &empty("apps/v1", "Deployment"), &owners).unwrap_err();
    assert_eq!(error, Error::BadRequest("metadata.managedFields must be nil".into()));
}

#[test]
fn the_same_configuration_again_changes_nothing() {
    let config = deployment(
        json!({"replicas": 2, "template": {"spec": {"containers": [{"name": "a", "image": "1"}]}}}),
    );
    let live =
        stored(applied(&DEPLOYMENT, "one", &empty("apps/v1", "Deployment"), &config).unwrap());
    let later = Operation { now: "2027-01-01T00:00:00Z", ..by("one", "apps/v1") };
    assert_eq!(apply(&DEPLOYMENT, later, &live, &config, false).unwrap(), live);
}

#[test]
fn owners_can_be_reset_and_stay_so_until_an_apply() {
    let live = stored(
        applied(&CONFIG_MAP, "one", &empty("v1", "ConfigMap"), &config_map(json!({"a": "1"})))
            .unwrap(),
    );
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    update(&CONFIG_MAP, by("kubectl-patch", "v1"), &live, &mut new);
    assert_eq!(new["metadata"].get("managedFields"), None);
    let mut changed = new.clone();
    changed["data"]["a"] = "2".into();
    update(&CONFIG_MAP, by("kubectl-patch", "v1"), &new, &mut changed);
    assert_eq!(changed["metadata"].get("managedFields"), None);
    // What was there before the first apply is owned as such.
    let error = applied(&CONFIG_MAP, "two", &changed, &config_map(json!({"a": "3"}))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
}

#[test]
fn a_client_that_forgets_the_owners_keeps_them() {
    let live = stored(
        applied(&CONFIG_MAP, "one", &empty("v1", "ConfigMap"), &config_map(json!({"a": "1"})))
            .unwrap(),
    );
    for forgotten in [json!([]), Value::Null, json!([{"manager": "x"}])] {
        let mut new = live.clone();
        new["metadata"]["managedFields"] = forgotten;
        update(&CONFIG_MAP, by("old-client", "v1"), &live, &mut new);
        assert_eq!(new, live);
    }
}

#[test]
fn client_side_apply_is_taken_over_by_kubectl() {
    let config = config_map(json!({"a": "1"}));
    let mut live = config.clone();
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": config.to_string()});
    update(
        &CONFIG_MAP,
        by("kubectl-client-side-apply", "v1"),
        &empty("v1", "ConfigMap"),
        &mut live,
    );
    let live = stored(live);
    let new = config_map(json!({"a": "2"}));
    assert!(applied(&CONFIG_MAP, "somebody", &live, &new).is_err());
    let taken = applied(&CONFIG_MAP, "kubectl", &live, &new).unwrap();
    assert_eq!(taken["data"], json!({"a": "2"}));
    assert_eq!(
        taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"],
        format!("{new}\n")
    );
    // What another changed since then is not excused.
    let mut edited = live.clone();
    edited["data"]["a"] = "9".into();
    update(&CONFIG_MAP, by("editor", "v1"), &live, &mut edited);
    let error = applied(&CONFIG_MAP, "kubectl", &edited, &new).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"editor\" using v1: .data.a"
    );
}

#[test]
fn a_subresource_has_its_own_entry() {
    let pod = Builtin { kind: "Pod" };
    let live = stored(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}}),
    );
    let mut live = {
        let mut o = live.clone();
        meta::remove(&mut o, "uid");
        o
    };
    update(&pod, by("kubelet", "v1"), &empty("v1", "Pod"), &mut live);
    let live = stored(live);
    let mut new = live.clone();
    new["status"] =
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    update(&pod, Operation { subresource: "status", ..by("kubelet", "v1") }, &live, &mut new);
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["subresource"], "status");
    assert_eq!(
        entries[1]["fieldsV1"],
        json!({"f:status": {"f:phase": {}, "f:conditions": {".": {},
        "k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}, "f:type": {}}}}})
    );
}

#[test]
fn what_nobody_described_is_granular_but_for_lists() {
    let object = |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let live = stored(
        applied(
            &Anything,
            "one",
            &empty("x/v1", "X"),
            &object(json!({"a": {"b": 1}, "l": [1, 2]})),
        )
        .unwrap(),
    );
    assert_eq!(
        fields(&live, "one"),
        json!({"f:spec": {".": {}, "f:a": {".": {}, "f:b": {}}, "f:l": {}}})
    );
    let live = applied(&Anything, "two", &live, &object(json!({"a": {"c": 1}}))).unwrap();
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 1}, "l": [1, 2]}));
    let error = applied(&Anything, "two", &live, &object(json!({"l": [3]}))).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"one\": .spec.l");
}

/// "Transferring ownership" of the documentation: a field that an autoscaler took is left to it by no longer
/// applying it.
#[test]
fn a_field_is_handed_over_by_leaving_it_out() {
    let config = |spec: Value| deployment(spec);
    let live = stored(
        applied(
            &DEPLOYMENT,
            "kubectl",
            &empty("apps/v1", "Deployment"),
            &config(json!({"replicas": 3, "paused": true})),
        )
        .unwrap(),
    );
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    let scale = Operation { subresource: "scale", ..by("autoscaler", "apps/v1") };
    update(&DEPLOYMENT, scale, &live, &mut scaled);
    assert_eq!(fields(&scaled, "autoscaler"), json!({"f:spec": {"f:replicas": {}}}));
    let again = applied(&DEPLOYMENT, "kubectl", &scaled, &config(json!({"replicas": 3})));
    assert_eq!(
        again.unwrap_err().to_string(),
        "Apply failed with 1 conflict: conflict with \"autoscaler\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let left = applied(&DEPLOYMENT, "kubectl", &scaled, &config(json!({"paused": true}))).unwrap();
    assert_eq!(left["spec"]["replicas"], 5);
    assert_eq!(fields(&left, "kubectl"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(fields(&left, "autoscaler"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn empty_structs_and_maps_are_owned_as_such() {
    let spec = json!({"template": {"metadata": {"annotations": {}}, "spec": {
        "containers": [{"name": "c", "resources": {}}], "volumes": [{"name": "v", "emptyDir": {}}]}}});
    let live =
        applied(&DEPLOYMENT, "one", &empty("apps/v1", "Deployment"), &deployment(spec)).unwrap();
    assert_eq!(
        fields(&live, "one"),
        json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {}}, "f:spec": {
            "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:resources": {}}},
            "f:volumes": {"k:{\"name\":\"v\"}": {".": {}, "f:emptyDir": {}, "f:name": {}}}}}}})
    );
}

/// Structs that Go holds by value are in every object, so that nobody becomes their owner by an update that
/// leaves them empty.
#[test]
fn an_update_owns_no_empty_struct_that_go_always_writes() {
    let statefulset = Builtin { kind: "StatefulSet" };
    let mut object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "s"},
        "spec": {"serviceName": "", "selector": {"matchLabels": {"a": "b"}}, "updateStrategy": {},
            "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {}}]}}},
        "status": {"replicas": 0, "availableReplicas": 0}});
    update(&statefulset, by("one", "apps/v1"), &empty("apps/v1", "StatefulSet"), &mut object);
    assert_eq!(
        fields(&object, "one"),
        json!({"f:spec": {"f:selector": {}, "f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:resources": {}}}}}}})
    );
}
