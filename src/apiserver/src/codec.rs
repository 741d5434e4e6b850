//! Request bodies to objects.

use std::num::IntErrorKind;

use apimachinery::field::{Error, Path};
use apimachinery::schema::{self, Schema, TypeId};
use apimachinery::{Status, decode, meta, protobuf};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::attributes::Warnings;
use crate::custom::Custom;
use crate::negotiate::Format;
use crate::options::FieldValidation;
use crate::resource::Resource;
use crate::strategy::TEMPLATE_GENERATION;

/// The kind a body must be of.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// The definition of a custom kind.
    pub custom: Option<&'a Custom>,
}

impl<'a> Expected<'a> {
    /// The kind of a resource.
    pub fn of(resource: &'a Resource) -> Self {
        Self {
            group: &resource.group,
            version: &resource.version,
            kind: &resource.kind,
            custom: resource.custom.as_deref(),
        }
    }

    /// A built-in kind.
    pub const fn builtin(group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self { group, version, kind, custom: None }
    }
}

impl Expected<'_> {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.into()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Parses JSON or YAML without looking at types.
pub fn parse(bytes: &Bytes, format: Format) -> Result<Value, Status> {
    if bytes.starts_with(protobuf::MAGIC) {
        return protobuf::decode(schema::builtin(), bytes)
            .map_err(|error| Status::bad_request(error.to_string()));
    }
    let parsed = match format {
        Format::Json | Format::Protobuf => decode::json_to_value(bytes),
        Format::Yaml => decode::yaml_to_value(text(bytes)?),
    };
    parsed.map_err(|error| Status::bad_request(error.to_string()))
}

/// A protobuf body as JSON, which takes the way of every other body from there.
fn from_protobuf(bytes: &Bytes) -> Result<Bytes, Status> {
    let value = protobuf::decode(schema::builtin(), bytes)
        .map_err(|error| Status::bad_request(error.to_string()))?;
    serde_json::to_vec(&value).map(Bytes::from).map_err(Status::internal)
}

fn text(bytes: &Bytes) -> Result<&str, Status> {
    std::str::from_utf8(bytes)
        .map_err(|_| Status::bad_request("error converting YAML to JSON: yaml: invalid UTF-8"))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    api_version: Value,
    kind: Value,
}

/// The version and kind that a body says to be of; `None` for a body that is null.
///
/// Source: `SimpleMetaFactory.Interpret` of apimachinery's JSON serializer, whose words the error has.
fn read_head(bytes: &Bytes, format: Format) -> Result<Option<Head>, String> {
    const UNKNOWN: &str = "couldn't get version/kind; json parse error";
    const HEAD: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    let mismatch = |value: &Value, place: &str| {
        let kind = match value {
            Value::Array(_) => "array",
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        Err(format!("{UNKNOWN}: json: cannot unmarshal {kind} into Go {place}"))
    };
    let whole = || match format {
        Format::Json | Format::Protobuf => {
            decode::json_to_value(bytes).map_err(|error| format!("{UNKNOWN}: {error}"))
        }
        Format::Yaml => {
            let text = text(bytes).map_err(|status| status.message)?;
            decode::yaml_to_value(text).map_err(|error| error.to_string())
        }
    };
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    let head = match serde_json::from_slice::<Head>(bytes) {
        Ok(head) if is_object && format != Format::Yaml => head,
        _ => match whole()? {
            Value::Null => return Ok(None),
            Value::Object(mut map) => {
                let mut take = |key: &str| map.remove(key).unwrap_or_default();
                Head { api_version: take("apiVersion"), kind: take("kind") }
            }
            other => return mismatch(&other, &format!("value of type {HEAD}")),
        },
    };
    for (name, value) in [("apiVersion", &head.api_version), ("kind", &head.kind)] {
        if !value.is_string() && !value.is_null() {
            return mismatch(value, &format!("struct field .{name} of type string"));
        }
    }
    Ok(Some(head))
}

/// Decodes a body that must be of the `expected` kind; its own kind may be left out.
pub fn decode(
    bytes: &Bytes,
    format: Format,
    expected: Expected<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let converted;
    let bytes = if bytes.starts_with(protobuf::MAGIC) {
        converted = from_protobuf(bytes)?;
        &converted
    } else {
        bytes
    };
    if let Some(decoded) = plain(bytes, format, expected, validation) {
        return Ok(finish(Ok(decoded), expected, warnings)?);
    }
    let unrecognized = |error: &dyn std::fmt::Display| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {error} ({})",
            expected.kind,
            summary(bytes)
        ))
    };
    let Some(head) = read_head(bytes, format).map_err(|error| unrecognized(&error))? else {
        // Nothing at all is an object of which everything is left out.
        return decode(&Bytes::from_static(b"{}"), Format::Json, expected, validation, warnings);
    };
    let (api_version, kind) =
        (head.api_version.as_str().unwrap_or_default(), head.kind.as_str().unwrap_or_default());
    if expected.custom.is_some() {
        if kind.is_empty() {
            let body = String::from_utf8_lossy(bytes);
            return Err(unrecognized(&format!("Object 'Kind' is missing in '{body}'")));
        }
        if api_version != expected.api_version() {
            return Err(other_version(api_version, expected));
        }
        if kind != expected.kind {
            let value = parse(bytes, format)?;
            return Err(other_kind(&value, expected));
        }
    }
    check_head(api_version, kind, expected)?;
    if let Some(custom) = expected.custom {
        let decoded = match format {
            Format::Json | Format::Protobuf => decode::json_unstructured(bytes),
            Format::Yaml => decode::yaml_unstructured(text(bytes)?),
        };
        let decoded =
            decoded.and_then(|(value, strict)| custom.shape(value, strict, validation.into()));
        return Ok(finish(decoded, expected, warnings)?);
    }
    let Some((schema, of)) = type_of(expected) else { return parse(bytes, format) };
    let decoded = match format {
        Format::Json | Format::Protobuf => decode::from_json(schema, of, bytes, validation.into()),
        Format::Yaml => decode::from_yaml(schema, of, text(bytes)?, validation.into()),
    };
    Ok(finish(decoded, expected, warnings)?)
}

/// What a body is that begins with its kind, as clients write it, and of which there is nothing to be said: it is read
/// once. Whatever else it may be takes the longer way.
fn plain(
    bytes: &[u8],
    format: Format,
    expected: Expected<'_>,
    validation: FieldValidation,
) -> Option<decode::Decoded> {
    // Where nothing is told of fields that are there twice, this could be one of them.
    let tells = validation != FieldValidation::Ignore;
    if format == Format::Yaml || expected.custom.is_some() || !tells {
        return None;
    }
    let (schema, of) = type_of(expected)?;
    let version = [b"\"apiVersion\":\"", expected.api_version().as_bytes(), b"\""].concat();
    let kind = [b"\"kind\":\"", expected.kind.as_bytes(), b"\""].concat();
    let rest = bytes.strip_prefix(b"{")?;
    let begins = |first: &[u8], second: &[u8]| {
        let rest = rest.strip_prefix(first)?.strip_prefix(b",")?.strip_prefix(second)?;
        rest.first().filter(|next| matches!(next, b',' | b'}'))
    };
    begins(&version, &kind).or_else(|| begins(&kind, &version))?;
    let decoded = decode::from_json(schema, of, bytes, validation.into()).ok()?;
    decoded.warnings.is_empty().then_some(decoded)
}

/// Whether [`reshape`] would leave an edited object as it is.
pub fn is_shaped(value: &Value, expected: Expected<'_>) -> bool {
    expected.custom.is_none()
        && meta::kind(value) == expected.kind
        && meta::api_version(value) == expected.api_version()
        && type_of(expected).is_some_and(|(schema, of)| decode::is_settled(schema, of, value))
        && inconvertible(value, expected).is_none()
}

/// Brings what server-side apply made into its kind's shape.
pub fn reshape_applied(
    value: &Value,
    expected: Expected<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Mistake> {
    let Some(custom) = expected.custom else {
        return reshape(value, expected, validation, warnings);
    };
    check_custom(value, expected)?;
    finish(custom.shape_applied(value.clone(), validation.into()), expected, warnings)
}

/// Brings an edited object into its kind's shape.
pub fn reshape(
    value: &Value,
    expected: Expected<'_>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Mistake> {
    if let Some(custom) = expected.custom {
        check_custom(value, expected)?;
        let shaped = custom.shape(value.clone(), Vec::new(), validation.into());
        return finish(shaped, expected, warnings);
    }
    check_head(meta::api_version(value), meta::kind(value), expected)?;
    let Some((schema, of)) = type_of(expected) else { return Ok(value.clone()) };
    finish(decode::from_value(schema, of, value, validation.into()), expected, warnings)
}

/// A custom resource must say that it is what is expected.
fn check_custom(value: &Value, expected: Expected<'_>) -> Result<(), Mistake> {
    if meta::api_version(value) != expected.api_version() {
        let found = meta::api_version(value);
        let detail = format!("must be {}", expected.api_version());
        let error = Error::invalid(&Path::new("apiVersion"), found, detail);
        let group = found.split_once('/').map_or("", |(group, _)| group);
        let status = Status::invalid(group, meta::kind(value), meta::name(value), &[error]);
        return Err(Mistake::Other(status));
    }
    if meta::kind(value) != expected.kind {
        return Err(Mistake::Other(other_kind(value, expected)));
    }
    check_head(meta::api_version(value), meta::kind(value), expected)
}

/// The type of a kind, in the schema that has it.
pub fn type_of(expected: Expected<'_>) -> Option<(&Schema, TypeId)> {
    if let Some(custom) = expected.custom {
        return Some((&custom.types.schema, custom.types.of));
    }
    let schema = schema::builtin();
    Some((schema, schema.kind(expected.group, expected.version, expected.kind)?))
}

/// Why something is no object of the expected kind.
#[derive(Debug)]
pub enum Mistake {
    /// Its fields are not those of the kind, or it is of another.
    Shape {
        /// Its kind.
        kind: String,
        /// Its version.
        version: String,
        /// The expected kind.
        wanted: String,
        /// What is wrong.
        why: String,
    },
    /// Something that has its own answer.
    Other(Status),
}

impl From<Mistake> for Status {
    fn from(mistake: Mistake) -> Self {
        match mistake {
            Mistake::Shape { kind, version, wanted, why } => Self::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {wanted}: {why}"
            )),
            Mistake::Other(status) => status,
        }
    }
}

fn finish(
    decoded: Result<decode::Decoded, decode::Error>,
    expected: Expected<'_>,
    warnings: &Warnings,
) -> Result<Value, Mistake> {
    let decoded = decoded.map_err(|error| Mistake::Shape {
        kind: expected.kind.into(),
        version: expected.version.into(),
        wanted: expected.kind.into(),
        why: error.to_string(),
    })?;
    for warning in decoded.warnings {
        warnings.add(warning);
    }
    let mut value = decoded.value;
    meta::set_type(&mut value, &expected.api_version(), expected.kind);
    if let Some(why) = inconvertible(&value, expected) {
        let (kind, wanted) = (expected.kind.into(), expected.kind.into());
        return Err(Mistake::Shape { kind, version: expected.version.into(), wanted, why });
    }
    Ok(value)
}

/// Why upstream could not bring the object into its internal form.
///
/// Source: `Convert_v1_DaemonSet_To_apps_DaemonSet` of `k8s.io/kubernetes/pkg/apis/apps/v1/conversion.go`.
fn inconvertible(value: &Value, expected: Expected<'_>) -> Option<String> {
    if expected.kind != "DaemonSet" || expected.group != "apps" {
        return None;
    }
    let generation = meta::annotation(value, TEMPLATE_GENERATION)?;
    let error = generation.parse::<i64>().err()?;
    let why = match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    Some(format!("strconv.ParseInt: parsing {generation:?}: {why}"))
}

/// The kind must be the expected one; what is absent is taken as such.
fn check_head(api_version: &str, kind: &str, expected: Expected<'_>) -> Result<(), Mistake> {
    let wanted = expected.api_version();
    // Evictions of the older version are the same, and still taken (`EvictionREST.AcceptsGroupVersion`).
    let older = expected.kind == "Eviction" && api_version == "policy/v1beta1";
    let found = if api_version.is_empty() { wanted.as_str() } else { api_version };
    let (group, version) = found.rsplit_once('/').unwrap_or(("", found));
    let refuse = |why: String| {
        let kind = if kind.is_empty() { expected.kind } else { kind };
        Err(Mistake::Shape {
            kind: kind.into(),
            version: version.into(),
            wanted: expected.kind.into(),
            why,
        })
    };
    let unknown = |kind: &str| {
        format!("no kind {kind:?} is registered for version {found:?} in scheme \"{SCHEME}\"")
    };
    if found != wanted && !older {
        // What was served once is known still.
        if expected.custom.is_none() && !FORMER.contains(&found) {
            let kind = if kind.is_empty() { expected.kind } else { kind };
            return refuse(unknown(kind));
        }
        return Err(Mistake::Other(other_version(api_version, expected)));
    }
    if !kind.is_empty() && kind != expected.kind {
        if schema::builtin().kind(group, version, kind).is_none() || expected.custom.is_some() {
            return refuse(unknown(kind));
        }
        return refuse(format!(
            "converting ({version}.{kind}) to ({}.{}): unknown conversion",
            if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) },
            expected.kind
        ));
    }
    Ok(())
}

fn other_version(api_version: &str, expected: Expected<'_>) -> Status {
    Status::bad_request(format!(
        "the API version in the data ({api_version}) does not match the expected API version ({})",
        expected.api_version()
    ))
}

/// A custom resource may have any kind until it is looked at as one.
fn other_kind(value: &Value, expected: Expected<'_>) -> Status {
    let kind = meta::kind(value);
    let detail = format!("must be {}", expected.kind);
    let error = Error::invalid(&Path::new("kind"), kind, detail);
    Status::invalid(expected.group, kind, meta::name(value), &[error])
}

/// Where upstream's types are registered, as its messages say.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";
/// Versions of built-in kinds that upstream knows and does not serve any more, or not as this one.
const FORMER: [&str; 34] = [
    "admissionregistration.k8s.io/v1alpha1",
    "admissionregistration.k8s.io/v1beta1",
    "apps/v1beta1",
    "apps/v1beta2",
    "authentication.k8s.io/v1alpha1",
    "authentication.k8s.io/v1beta1",
    "authorization.k8s.io/v1beta1",
    "autoscaling/v1",
    "autoscaling/v2",
    "autoscaling/v2beta1",
    "autoscaling/v2beta2",
    "batch/v1beta1",
    "certificates.k8s.io/v1alpha1",
    "certificates.k8s.io/v1beta1",
    "coordination.k8s.io/v1beta1",
    "discovery.k8s.io/v1beta1",
    "events.k8s.io/v1",
    "events.k8s.io/v1beta1",
    "extensions/v1beta1",
    "flowcontrol.apiserver.k8s.io/v1beta1",
    "flowcontrol.apiserver.k8s.io/v1beta2",
    "flowcontrol.apiserver.k8s.io/v1beta3",
    "networking.k8s.io/v1beta1",
    "node.k8s.io/v1alpha1",
    "node.k8s.io/v1beta1",
    "policy/v1beta1",
    "rbac.authorization.k8s.io/v1alpha1",
    "rbac.authorization.k8s.io/v1beta1",
    "resource.k8s.io/v1beta1",
    "resource.k8s.io/v1beta2",
    "scheduling.k8s.io/v1alpha1",
    "scheduling.k8s.io/v1beta1",
    "storage.k8s.io/v1alpha1",
    "storage.k8s.io/v1beta1",
];

/// The beginning of a body that nobody understands.
fn summary(bytes: &[u8]) -> String {
    const MAX: usize = 30;
    match bytes.first() {
        None => "<empty>".into(),
        Some(b'{') if bytes.len() > MAX => {
            format!("{} ...", String::from_utf8_lossy(&bytes[..MAX]))
        }
        Some(b'{') => String::from_utf8_lossy(bytes).into_owned(),
        Some(_) => {
            let hex: String = bytes.iter().take(MAX).map(|b| format!("{b:02x}")).collect();
            if bytes.len() > MAX { format!("{hex} ...") } else { hex }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_body_is_read_as_any_other() {
        let pods = Expected::builtin("", "v1", "Pod");
        let with = |body: &str, validation| {
            plain(body.as_bytes(), Format::Json, pods, validation).map(|decoded| decoded.value)
        };
        for (body, is_plain) in [
            (r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}"#, true),
            (r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#, true),
            (r#"{"kind":"Pod","apiVersion":"v1"}"#, true),
            (r#"{"kind": "Pod","apiVersion":"v1"}"#, false),
            (r#"{"kind":"Pods","apiVersion":"v1"}"#, false),
            (r#"{"kind":"Pod","apiVersion":"v1","kind":"Pod"}"#, false),
            (r#"{"kind":"Pod","apiVersion":"v1","x":1}"#, false),
            (r#"{"kind":"Pod","apiVersion":"v1","spec":1}"#, false),
            (r#"{"kind":"Pod","apiVersion":"v1""#, false),
            (r#"{"metadata":{}}"#, false),
        ] {
            let value = with(body, FieldValidation::Warn);
            assert_eq!(value.is_some(), is_plain, "{body}");
            assert_eq!(value, with(body, FieldValidation::Strict), "{body}");
            assert_eq!(with(body, FieldValidation::Ignore), None);
            if is_plain {
                let (bytes, warnings) = (Bytes::from(body.to_owned()), Warnings::default());
                let ignore = FieldValidation::Ignore;
                let longer = decode(&bytes, Format::Json, pods, ignore, &warnings).expect(body);
                let shorter = value.map(|value| {
                    let decoded = decode::Decoded { value, warnings: Vec::new() };
                    finish(Ok(decoded), pods, &warnings).expect(body)
                });
                assert_eq!(shorter, Some(longer), "{body}");
            }
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_told_as_such() {
        let pods = Expected::builtin("", "v1", "Pod");
        let go = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        for (body, format, want) in [
            ("[]", Format::Json, format!("json: cannot unmarshal array into Go value of type {go} (5b5d)")),
            ("1", Format::Json, format!("json: cannot unmarshal number into Go value of type {go} (31)")),
            (
                "{\"kind\": 1}",
                Format::Json,
                "json: cannot unmarshal number into Go struct field .kind of type string ({\"kind\": 1})".into(),
            ),
            ("- a", Format::Yaml, format!("json: cannot unmarshal array into Go value of type {go} (2d2061)")),
        ] {
            let bytes = Bytes::from(body.to_owned());
            let told = decode(&bytes, format, pods, FieldValidation::Strict, &Warnings::default());
            let want = format!(
                "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: {want}"
            );
            assert_eq!(told.expect_err(body).message, want);
        }
        let nothing = Bytes::from_static(b" null");
        let decoded =
            decode(&nothing, Format::Json, pods, FieldValidation::Strict, &Warnings::default());
        assert!(decoded.expect("a pod of nothing").is_object());
    }

    #[test]
    fn a_body_is_of_the_expected_kind() {
        let eviction = Expected::builtin("policy", "v1", "Eviction");
        let budget = Expected::builtin("policy", "v1", "PodDisruptionBudget");
        for (version, kind, expected, fits) in [
            ("policy/v1", "Eviction", eviction, true),
            ("", "", eviction, true),
            ("policy/v1beta1", "Eviction", eviction, true),
            ("policy/v2", "Eviction", eviction, false),
            ("policy/v1beta1", "PodDisruptionBudget", budget, false),
            ("policy/v1", "Eviction", budget, false),
        ] {
            assert_eq!(check_head(version, kind, expected).is_ok(), fits, "{version} {kind}");
        }
    }
}
