//! Bodies both ways.

use serde_json::{Value, json};

use super::*;
use crate::schema::{Shape, TypeId, builtin};

/// A length-delimited field.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag << 3 | 2, bytes.len() as u8][..], bytes].concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC, &field(1, &meta), &field(2, raw)].concat()
}

#[test]
fn maps_bytes_and_empty_times() {
    let metadata = [field(1, b"s"), field(2, b""), field(8, b"")].concat();
    let entry = [field(1, b"k"), field(2, &[0xff, 0x00])].concat();
    let raw = [field(1, &metadata), field(2, &entry), field(3, b"Opaque")].concat();
    assert_eq!(
        decode(builtin(), &body("v1", "Secret", &raw)).unwrap(),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
            "data": {"k": "/wA="}, "type": "Opaque"})
    );
}

#[test]
fn embedded_messages_are_inlined() {
    // Volume { name = "v", volumeSource = { emptyDir(2) = {} } } in PodSpec.volumes(1), Pod.spec(2).
    let volume = [field(1, b"v"), field(2, &field(2, b""))].concat();
    let raw = field(2, &field(1, &volume));
    let pod = decode(builtin(), &body("v1", "Pod", &raw)).unwrap();
    assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
}

#[test]
fn devices_configurations_are_inlined_in_every_version() {
    // DeviceClass.spec(2).config(2)[].deviceConfiguration(1).opaque(1).driver(1)
    let raw = field(2, &field(2, &field(1, &field(1, &field(1, b"d")))));
    for version in ["v1", "v1beta1", "v1beta2"] {
        let api_version = format!("resource.k8s.io/{version}");
        let class = decode(builtin(), &body(&api_version, "DeviceClass", &raw)).unwrap();
        assert_eq!(class["spec"]["config"][0]["opaque"]["driver"], "d", "{version}");
    }
}

#[test]
fn times_of_a_map_that_are_not_set_are_null() {
    // PodDisruptionBudget.status(3).disruptedPods(2)
    let raw = field(3, &field(2, &[field(1, b"a"), field(2, b"")].concat()));
    let budget = decode(builtin(), &body("policy/v1", "PodDisruptionBudget", &raw)).unwrap();
    assert_eq!(budget["status"]["disruptedPods"], json!({"a": null}));
}

#[test]
fn zero_is_kept_where_it_says_something() {
    // Deployment.spec(2).replicas(1) = 0, minReadySeconds(5) = 0.
    let raw = field(2, &[1 << 3, 0, 5 << 3, 0]);
    let deployment = decode(builtin(), &body("apps/v1", "Deployment", &raw)).unwrap();
    assert_eq!(deployment["spec"], json!({"replicas": 0}));
}

#[test]
fn evictions_of_the_older_version_are_read() {
    let raw = field(1, &field(1, b"web"));
    let eviction = decode(builtin(), &body("policy/v1beta1", "Eviction", &raw)).unwrap();
    assert_eq!(eviction["metadata"], json!({"name": "web"}));
    assert!(decode(builtin(), &body("policy/v1beta1", "PodDisruptionBudget", &raw)).is_err());
}

#[test]
fn broken_bytes_are_refused() {
    assert_eq!(decode(builtin(), b"{}"), Err(Error::Envelope));
    let whole = body("v1", "Secret", &field(1, &field(1, b"name")));
    for end in MAGIC.len() + 1..whole.len() {
        // Any prefix is an error or another message; none may panic.
        let _ = decode(builtin(), &whole[..end]);
    }
    assert!(decode(builtin(), &[MAGIC, &[0x0a, 0x7f]].concat()).is_err());
}

fn encoded(object: &Value) -> Vec<u8> {
    let (api_version, kind) = (crate::meta::api_version(object), crate::meta::kind(object));
    let (group, version) = crate::meta::split_api_version(api_version);
    let of = builtin().kind(group, version, kind).expect("a built-in kind");
    let mut out = Writer::default();
    from_value(builtin(), of, object, &mut out).expect("it fits");
    let mut text = Writer::default();
    from_json(builtin(), of, object.to_string().as_bytes(), &mut text).expect("it fits");
    let out = out.into_bytes();
    assert_eq!(out, text.into_bytes(), "text and value are written alike");
    envelope(api_version, kind, &out)
}

#[test]
fn objects_come_back_as_they_went() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b", "c": ""},
            "creationTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 0,
            "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {}}}],
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": false}]},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}},
                    {"name": "c", "configMap": {"name": "m", "defaultMode": 420}}],
                "containers": [{"name": "c", "image": "i", "args": ["", "-x"], "ports": [{"containerPort": 80}],
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                    "readinessProbe": {"tcpSocket": {"port": 80}},
                    "securityContext": {"privileged": false, "runAsUser": 0}}],
                "ephemeralContainers": [{"name": "e", "image": "i", "command": ["a", "b"], "targetContainerName": "c"}],
                "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": -1}],
                "terminationGracePeriodSeconds": 0}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "/wA="}, "type": "Opaque"}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {}, "spec": {"storageClassName": ""}}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
            "spec": {"renewTime": "2026-01-02T03:04:05.678901Z", "leaseTransitions": 0}}),
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {},
            "spec": {"request": "AA==", "signerName": "s", "extra": {"a": ["b", "c"]}}}),
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {}, "spec": {
            "group": "g", "scope": "Namespaced", "names": {"kind": "K", "plural": "k"}, "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                        "a": {"type": "array", "items": {"type": "string", "$ref": "#"}, "default": [1, "x"]},
                        "b": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0.5}},
                        "c": {"additionalProperties": true, "enum": ["x", null, 3],
                            "x-kubernetes-list-map-keys": ["k"],
                            "x-kubernetes-validations": [{"rule": "self > 1", "message": "m"}]}}}}}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {}, "spec": {"rules": [
            {"host": "h", "http": {"paths": [{"pathType": "Prefix", "path": "/", "backend":
                {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {}, "spec": {
            "hostPath": {"path": "/x", "type": ""}, "capacity": {"storage": "1Gi"}}}),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {},
            "webhooks": [{"name": "w", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"url": "u"},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]}),
    ];
    for object in objects {
        let decoded = decode(builtin(), &encoded(&object)).expect("it was written here");
        assert_eq!(decoded, object);
    }
}

#[test]
fn a_service_without_the_flag_does_not_get_it() {
    // publishNotReadyAddresses(13) = false is Go's zero value, which JSON leaves out.
    let raw = field(2, &[13 << 3, 0]);
    let service = decode(builtin(), &body("v1", "Service", &raw)).unwrap();
    assert_eq!(service["spec"], json!({}));
}

#[test]
fn long_messages_have_long_lengths() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"k": "x".repeat(70_000)}});
    assert_eq!(decode(builtin(), &encoded(&object)).unwrap(), object);
}

#[test]
fn a_frame_says_its_length() {
    let frame = watch_frame("ADDED", b"k8s\0...");
    assert_eq!(u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize, frame.len() - 4);
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
}

/// A value for every field of a type, a few levels deep.
fn filled(of: TypeId, depth: u32) -> Value {
    let of = builtin().get(of);
    let mut map = serde_json::Map::new();
    for field in &of.fields {
        if let Some(value) = sample(&field.shape, depth) {
            map.insert(field.name.to_string(), value);
        }
    }
    map.remove("apiVersion");
    map.remove("kind");
    map.into()
}

fn sample(shape: &Shape, depth: u32) -> Option<Value> {
    Some(match shape {
        Shape::String => "x".into(),
        Shape::Bytes => "eA==".into(),
        Shape::Int32 | Shape::Int64 => 7.into(),
        Shape::Double => 1.5.into(),
        Shape::Bool => true.into(),
        Shape::Quantity => "1".into(),
        Shape::IntOrString => "10%".into(),
        Shape::Time => "2026-01-02T03:04:05Z".into(),
        Shape::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Shape::Any => json!({"type": "x"}),
        Shape::List(item) => Value::Array(vec![sample(item, depth)?]),
        Shape::Map(item) => json!({"k": sample(item, depth)?}),
        Shape::Object(_) if depth == 0 => return None,
        Shape::Object(of) => filled(*of, depth - 1),
    })
}

#[test]
fn every_field_of_every_served_kind_survives() {
    for resource in builtin().resources().iter().filter(|resource| resource.enabled) {
        let (group, version, kind) = (&resource.group, &resource.version, &resource.kind);
        let of = builtin().kind(group, version, kind).expect("it has a type");
        let mut object = filled(of, 7);
        crate::meta::set_type(&mut object, &resource.api_version(), kind);
        let decoded = decode(builtin(), &encoded(&object)).expect("it was written here");
        assert_eq!(decoded, object, "{kind}");
    }
}
