//! Reads JSON and YAML into the shape the schema gives: unknown fields pruned (and told), wrong types
//! refused, quantities and times normalised.
//!
//! Source: the serializer of `k8s.io/apimachinery` over `sigs.k8s.io/json` and `sigs.k8s.io/yaml`; the
//! messages are theirs, Go's type names included, because scripts and people look for them.

mod go;
mod unstructured;
mod walk;
mod yaml;

use serde::de::DeserializeSeed;
use serde_json::Value;

use crate::schema::{Schema, Shape, TypeId};

pub use walk::kind as json_kind;
pub use yaml::{parse as yaml_with_duplicates, to_value as yaml_to_value};

/// At most so many strict errors are told.
const MAX_STRICT_ERRORS: usize = 100;

/// What to do about unknown and duplicate fields (`fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Refuse.
    Strict,
    /// Prune, and warn.
    #[default]
    Warn,
    /// Prune silently.
    Ignore,
}

/// An object in the schema's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object.
    pub value: Value,
    /// What was pruned, under [`Validation::Warn`].
    pub warnings: Vec<String>,
}

/// Why a body is not an object of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not JSON or YAML at all.
    #[error("{0}")]
    Syntax(String),
    /// A field has the wrong type or an unreadable value.
    #[error("{0}")]
    Type(String),
    /// There are unknown or duplicate fields.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

fn finish(
    walk: walk::Walk<'_>,
    value: Option<Value>,
    validation: Validation,
) -> Result<Decoded, Error> {
    if let Some(error) = walk.type_error {
        return Err(Error::Type(error));
    }
    let value = value.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    match validation {
        Validation::Strict if !walk.strict.is_empty() => Err(Error::Strict(walk.strict)),
        Validation::Warn => Ok(Decoded { value, warnings: walk.strict }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}

/// Decodes a JSON body as an object of type `of`.
pub fn from_json(
    schema: &Schema,
    of: TypeId,
    body: &[u8],
    validation: Validation,
) -> Result<Decoded, Error> {
    let mut walk = walk::Walk::new(schema);
    let shape = Shape::Object(of);
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = walk
        .node(&shape)
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|e| Error::Syntax(go::syntax(body, &e)))?;
    finish(walk, value, validation)
}

/// Decodes a YAML body as an object of type `of`.
pub fn from_yaml(
    schema: &Schema,
    of: TypeId,
    body: &str,
    validation: Validation,
) -> Result<Decoded, Error> {
    let (value, duplicates) = yaml::parse(body).map_err(Error::Syntax)?;
    let mut walk = walk::Walk::new(schema);
    walk.strict = duplicates;
    let shape = Shape::Object(of);
    let value = walk.node(&shape).deserialize(&value).map_err(|e| Error::Syntax(e.to_string()))?;
    finish(walk, value, validation)
}

/// Brings an object that is already parsed, such as the outcome of a patch, into the shape of `of`.
pub fn from_value(
    schema: &Schema,
    of: TypeId,
    value: &Value,
    validation: Validation,
) -> Result<Decoded, Error> {
    let mut walk = walk::Walk::new(schema);
    let shape = Shape::Object(of);
    let value = walk.node(&shape).deserialize(value).map_err(|e| Error::Syntax(e.to_string()))?;
    finish(walk, value, validation)
}

/// Whether [`from_value`] would find nothing to change and nothing to complain of, told without making anything. Where
/// that takes more to find out, the answer is no.
pub fn is_settled(schema: &Schema, of: TypeId, value: &Value) -> bool {
    walk::is_settled(schema, &Shape::Object(of), value, false)
}

/// Brings a built-in object that was changed since it was decoded into the form in which Go would write it:
/// without what `omitempty` leaves out, with the fields that are always there.
pub fn complete(schema: &Schema, of: TypeId, value: &mut Value) {
    walk::complete(schema, &Shape::Object(of), value);
}

/// Parses JSON without a schema; the second part tells duplicate fields.
pub fn json_unstructured(body: &[u8]) -> Result<(Value, Vec<String>), Error> {
    unstructured::parse(body).map_err(|e| Error::Syntax(go::syntax(body, &e)))
}

/// Parses YAML without a schema; the second part tells duplicate fields.
pub fn yaml_unstructured(body: &str) -> Result<(Value, Vec<String>), Error> {
    yaml::parse(body).map_err(Error::Syntax)
}

/// Parses JSON without a schema; the error is worded as Go words it.
pub fn json_to_value(body: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(body).map_err(|e| Error::Syntax(go::syntax(body, &e)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::builtin;

    fn of(group: &str, version: &str, kind: &str) -> TypeId {
        builtin().kind(group, version, kind).expect("a built-in kind")
    }

    fn pod(body: &str, validation: Validation) -> Result<Decoded, Error> {
        from_json(builtin(), of("", "v1", "Pod"), body.as_bytes(), validation)
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let body = r#"{"kind":"Pod","Spec":{},"spec":{"containers":[{"name":"a","foo":1,"name":"b"}],
            "nodeSelector":{"x":"1","x":"2"}}}"#;
        let wanted = [
            "unknown field \"Spec\"",
            "unknown field \"spec.containers[0].foo\"",
            "duplicate field \"spec.containers[0].name\"",
            "duplicate field \"spec.nodeSelector.x\"",
        ];
        let error = pod(body, Validation::Strict).expect_err("strict");
        assert_eq!(error.to_string(), format!("strict decoding error: {}", wanted.join(", ")));
        let warned = pod(body, Validation::Warn).expect("warnings only");
        assert_eq!(warned.warnings, wanted);
        let pruned = json!({"kind": "Pod", "metadata": {}, "status": {},
            "spec": {"containers": [{"name": "b", "resources": {}}], "nodeSelector": {"x": "2"}}});
        assert_eq!(warned.value, pruned);
        let ignored = pod(body, Validation::Ignore).expect("ignored");
        assert_eq!((ignored.value, ignored.warnings.len()), (pruned, 0));
    }

    #[test]
    fn wrong_types_are_told_in_gos_words() {
        let cases = [
            (
                r#"{"spec":{"containers":"a"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                r#"{"spec":{"containers":[{"ports":[{"containerPort":"80"}]}]}}"#,
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                r#"{"spec":{"containers":[{"command":[true]}]}}"#,
                "json: cannot unmarshal bool into Go struct field Container.spec.containers.command of type string",
            ),
            (
                r#"{"spec":[]}"#,
                "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec",
            ),
            (
                r#"{"spec":{"hostNetwork":"yes"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
            ),
            (
                r#"{"spec":{"priority":3000000000}}"#,
                "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                r#"{"spec":{"priority":1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
            ),
            (
                r#"{"spec":{"nodeSelector":[]}}"#,
                "json: cannot unmarshal array into Go struct field PodSpec.spec.nodeSelector of type map[string]string",
            ),
            (
                r#"{"spec":{"restartPolicy":1}}"#,
                "json: cannot unmarshal number into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (
                r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"1x"}}}]}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                r#"{"metadata":{"creationTimestamp":"now"}}"#,
                "parsing time \"now\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"now\" as \"2006\"",
            ),
            (r"[]", "json: cannot unmarshal array into Go value of type v1.Pod"),
        ];
        for (body, want) in cases {
            assert_eq!(
                pod(body, Validation::Warn).expect_err(body),
                Error::Type(want.into()),
                "{body}"
            );
        }
    }

    #[test]
    fn broken_json_is_told_in_gos_words() {
        for (body, want) in [
            ("", "unexpected end of JSON input"),
            (r#"{"a":1"#, "unexpected end of JSON input"),
            (r#"{"a":x}"#, "invalid character 'x' looking for beginning of value"),
            (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r"{a:1}", "invalid character 'a' looking for beginning of object key string"),
            (r#"{"a":[1 2]}"#, "invalid character '2' after array element"),
            (r"{} x", "invalid character 'x' after top-level value"),
        ] {
            assert_eq!(
                pod(body, Validation::Warn).expect_err(body),
                Error::Syntax(want.into()),
                "{body}"
            );
        }
    }

    #[test]
    fn values_are_normalised() {
        let body = r#"{"metadata":{"creationTimestamp":null,"labels":{},"annotations":{"a":null},
            "deletionTimestamp":"2026-01-01T01:00:00+01:00"},
            "spec":{"containers":[{"name":"a","env":[],"resources":{"limits":{"cpu":0.5,"memory":"1024Mi","x":"100u"}},
            "livenessProbe":{"httpGet":{"port":"http"}},"readinessProbe":{"httpGet":{"port":8080}}}],
            "volumes":[{"name":"v","emptyDir":{}}]}}"#;
        let decoded = pod(body, Validation::Strict).expect("valid");
        assert_eq!(
            decoded.value,
            json!({"metadata": {"annotations": {"a": ""}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "status": {},
                "spec": {"containers": [{"name": "a",
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi", "x": "1m"}},
                    "livenessProbe": {"httpGet": {"port": "http"}},
                    "readinessProbe": {"httpGet": {"port": 8080}}}],
                    "volumes": [{"name": "v", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn floats_are_gos() {
        let kind = of("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        for (written, want) in [
            ("1", "1"),
            ("1.0", "1"),
            ("0.5", "0.5"),
            ("-0.25", "-0.25"),
            ("9007199254740993", "9007199254740992"),
            ("9223372036854775807", "9223372036854776000"),
            ("1e18", "1000000000000000000"),
        ] {
            let body = format!(
                r#"{{"spec":{{"versions":[{{"name":"v1","schema":{{"openAPIV3Schema":{{"maximum":{written}}}}}}}]}}}}"#
            );
            let decoded = from_json(builtin(), kind, body.as_bytes(), Validation::Strict);
            let decoded = decoded.expect("valid").value;
            let found = &decoded["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["maximum"];
            assert_eq!(found.to_string(), want, "{written}");
        }
    }

    #[test]
    fn what_go_leaves_out_goes_and_what_it_always_writes_comes() {
        let cases = [
            (
                "",
                "v1",
                "Pod",
                json!({"spec": {"containers": null, "hostNetwork": false, "nodeName": "", "priority": 0,
                "automountServiceAccountToken": false, "tolerations": [], "nodeSelector": {},
                "securityContext": {"runAsUser": 0, "sysctls": []}, "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "v", "downwardAPI": {"items": [{"path": "p", "mode": 0,
                    "resourceFieldRef": {"resource": "limits.cpu"}}]}}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "c", "state": {"running": {}}}]}}),
                json!({"metadata": {}, "spec": {"containers": null, "priority": 0, "automountServiceAccountToken": false,
                "securityContext": {"runAsUser": 0}, "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "v", "downwardAPI": {"items": [{"path": "p", "mode": 0,
                    "resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}]}}]},
                "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}],
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"running": {"startedAt": null}}, "lastState": {}}]}}),
            ),
            (
                "apps",
                "v1",
                "Deployment",
                json!({"spec": {"replicas": 0, "minReadySeconds": 0, "paused": false}}),
                json!({"metadata": {}, "spec": {"replicas": 0, "strategy": {},
                "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}}),
            ),
            (
                "apps",
                "v1",
                "StatefulSet",
                json!({"spec": {"serviceName": ""}}),
                json!({"metadata": {}, "spec": {"serviceName": "", "updateStrategy": {},
                "template": {"metadata": {}, "spec": {"containers": null}}},
                "status": {"replicas": 0, "availableReplicas": 0}}),
            ),
            (
                "rbac.authorization.k8s.io",
                "v1",
                "ClusterRole",
                json!({"rules": []}),
                json!({"metadata": {}, "rules": null}),
            ),
            (
                "",
                "v1",
                "Event",
                json!({"count": 0, "involvedObject": {"name": "x", "uid": ""}}),
                json!({"metadata": {}, "involvedObject": {"name": "x"}, "source": {}, "firstTimestamp": null,
                "lastTimestamp": null, "eventTime": null, "reportingComponent": "", "reportingInstance": ""}),
            ),
            (
                "networking.k8s.io",
                "v1",
                "NetworkPolicy",
                json!({"spec": {"ingress": [], "egress": [{}]}}),
                json!({"metadata": {}, "spec": {"egress": [{}], "podSelector": {}}}),
            ),
            (
                "",
                "v1",
                "PersistentVolumeClaim",
                json!({"spec": {"storageClassName": "", "volumeName": "",
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}}),
                json!({"metadata": {}, "status": {}, "spec": {"storageClassName": "", "resources": {},
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "a", "apiGroup": null}}}),
            ),
        ];
        for (group, version, kind, sent, want) in cases {
            let of = of(group, version, kind);
            assert!(!is_settled(builtin(), of, &sent), "{kind}");
            let decoded = from_value(builtin(), of, &sent, Validation::Strict).expect(kind);
            assert_eq!(decoded.value, want, "{kind}");
            assert!(is_settled(builtin(), of, &want), "{kind}");
            // The same again, and the same of an object that is at hand.
            let again = from_value(builtin(), of, &want, Validation::Strict).expect(kind);
            assert_eq!(again.value, want, "{kind}");
            let mut at_hand = sent;
            complete(builtin(), of, &mut at_hand);
            assert_eq!(at_hand, want, "{kind}");
        }
    }

    #[test]
    fn what_a_walk_would_change_is_not_settled() {
        let of = of("", "v1", "Pod");
        let pod = |metadata: Value, container: Value| json!({"metadata": metadata, "status": {}, "spec": {"containers": [container]}});
        let settled = |value: &Value| {
            let told = is_settled(builtin(), of, value);
            let walked = from_value(builtin(), of, value, Validation::Strict);
            let same = walked.is_ok_and(|walked| walked.value == *value);
            assert!(same || !told, "{value}");
            told
        };
        let plain = json!({"name": "a", "resources": {}});
        let with = |key: &str, value: Value| {
            let mut container = plain.clone();
            container[key] = value;
            pod(json!({}), container)
        };
        for good in [
            pod(
                json!({"creationTimestamp": "2026-01-28T23:59:59Z", "labels": {"a": ""}}),
                plain.clone(),
            ),
            with("resources", json!({"limits": {"cpu": "500m", "memory": "1Gi"}})),
            with("livenessProbe", json!({"httpGet": {"port": "http"}, "periodSeconds": 10})),
            with("securityContext", json!({"runAsUser": 1, "privileged": false})),
            with("env", json!([{"name": "A", "value": "b"}])),
        ] {
            assert!(settled(&good), "{good}");
        }
        for bad in [
            pod(json!({"creationTimestamp": "2026-02-31T00:00:00Z"}), plain.clone()),
            pod(json!({"creationTimestamp": "2026-01-01T24:00:00Z"}), plain.clone()),
            pod(json!({"creationTimestamp": "2026-01-01T00:00:00+01:00"}), plain.clone()),
            pod(json!({"creationTimestamp": "2026-01-01T00:00:0éZ"}), plain.clone()),
            pod(json!({"creationTimestamp": null}), plain.clone()),
            pod(json!({"labels": {"a": null}}), plain.clone()),
            pod(json!({"labels": {}}), plain.clone()),
            with("resources", json!({"limits": {"cpu": "0.5"}})),
            with("resources", json!({"limits": {"cpu": 1}})),
            with("livenessProbe", json!({"httpGet": {"port": 3_000_000_000_u64}})),
            with("securityContext", json!({"runAsUser": 1.5})),
            with("env", json!([{"name": "A", "value": ""}])),
            with("env", json!([null])),
            with("command", json!(["a", null])),
            with("stdin", json!("yes")),
            with("unknown", json!(1)),
            json!({"metadata": {}, "spec": {"containers": []}}),
        ] {
            assert!(!settled(&bad), "{bad}");
        }
    }

    #[test]
    fn yaml_is_read_as_json_is() {
        let body = "kind: Pod\nmetadata:\n  name: a\n  annotations: {on: 'true'}\nspec:\n  hostNetwork: yes\n  priority: 010\n  containers:\n  - name: b\n    foo: 1\n    args: ['1', \"2\"]\n";
        let decoded =
            from_yaml(builtin(), of("", "v1", "Pod"), body, Validation::Warn).expect("valid");
        assert_eq!(decoded.warnings, ["unknown field \"spec.containers[0].foo\""]);
        assert_eq!(
            decoded.value,
            json!({"kind": "Pod", "metadata": {"name": "a", "annotations": {"true": "true"}}, "status": {},
                "spec": {"hostNetwork": true, "priority": 8,
                    "containers": [{"name": "b", "args": ["1", "2"], "resources": {}}]}})
        );
    }

    #[test]
    fn yaml_duplicates_name_the_line() {
        let body = "kind: Pod\nmetadata:\n  name: a\n  name: b\n";
        let error = from_yaml(builtin(), of("", "v1", "Pod"), body, Validation::Strict)
            .expect_err("duplicate");
        assert_eq!(
            error.to_string(),
            "strict decoding error: yaml: unmarshal errors:\n  line 4: key \"name\" already set in map"
        );
        assert!(from_yaml(builtin(), of("", "v1", "Pod"), "a: [", Validation::Warn).is_err());
    }
}
