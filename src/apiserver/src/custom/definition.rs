//! `CustomResourceDefinition`s themselves: defaults, rules, and what the server writes into them.
//!
//! Source: `pkg/apis/apiextensions/validation/validation.go` and
//! `pkg/registry/customresourcedefinition` of apiextensions-apiserver.

use apimachinery::cel::rules;
use apimachinery::field::{Error, ErrorList, Path, ordered};
use apimachinery::json_path::JsonPath;
use apimachinery::{meta, names, schema, structural, time};
use serde_json::{Value, json};

use crate::zero::{Zero, default_to};

/// Holds a deleted definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const APPROVED: &str = "api-approved.kubernetes.io";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];

/// Default values.
pub fn set_defaults(crd: &mut Value) {
    let kind = crd["spec"]["names"]["kind"].text().to_owned();
    let Some(spec) = crd.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if spec["names"].is_object() {
        default_to(&mut spec["names"], "singular", || kind.to_lowercase().into());
        if !kind.is_empty() {
            default_to(&mut spec["names"], "listKind", || format!("{kind}List").into());
        }
    }
    default_to(spec, "conversion", || json!({"strategy": "None"}));
    let client = &mut spec["conversion"]["webhook"]["clientConfig"]["service"];
    if client.is_object() {
        default_to(client, "port", || 443.into());
    } else {
        // Looking must not leave traces.
        tidy(&mut spec["conversion"]);
    }
}

fn tidy(conversion: &mut Value) {
    let Some(map) = conversion.as_object_mut() else { return };
    if let Some(webhook) = map.get_mut("webhook")
        && let Some(client) = webhook.get_mut("clientConfig")
    {
        if client["service"].is_null()
            && let Some(client) = client.as_object_mut()
        {
            client.remove("service");
        }
        if client.as_object().is_none_or(serde_json::Map::is_empty)
            && webhook.get("conversionReviewVersions").is_none()
        {
            map.remove("webhook");
        }
    }
}

/// A new definition has no status but the version it stores.
pub fn prepare_for_create(crd: &mut Value) {
    crd["status"] = json!({
        "conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": null,
    });
    note_storage_version(crd);
}

/// The storage version is among those that objects may be stored at.
pub fn note_storage_version(crd: &mut Value) {
    let Some(storage) = crd["spec"]["versions"].items().iter().find(|v| v["storage"].flag()) else {
        return;
    };
    let name = storage["name"].clone();
    if !crd["status"].is_object() {
        crd["status"] = json!({});
    }
    let stored = &mut crd["status"]["storedVersions"];
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Some(list) = stored.as_array_mut()
        && !list.contains(&name)
    {
        list.push(name);
    }
}

/// What deletion begins with.
pub fn mark_for_cleanup(crd: &mut Value) {
    let mut finalizers: Vec<String> =
        meta::finalizers(crd).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    meta::set(crd, "finalizers", finalizers);
    set_condition(
        crd,
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
}

/// Whether a condition is `True`.
pub fn is_true(crd: &Value, kind: &str) -> bool {
    condition(crd, kind).is_some_and(|c| c["status"] == "True")
}

/// A condition.
pub fn condition<'v>(crd: &'v Value, kind: &str) -> Option<&'v Value> {
    crd["status"]["conditions"].items().iter().find(|c| c["type"] == kind)
}

/// Sets a condition; the time changes with its status.
pub fn set_condition(crd: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let mut made = json!({"type": kind, "status": status, "reason": reason, "message": message});
    if !crd["status"].is_object() {
        crd["status"] = json!({});
    }
    let list = &mut crd["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let known = list.iter_mut().find(|c| c["type"] == kind);
    let now = time::now();
    if let Some(old) = known {
        let same = old["status"] == status;
        made["lastTransitionTime"] =
            if same { old["lastTransitionTime"].clone() } else { now.into() };
        *old = made;
    } else {
        made["lastTransitionTime"] = now.into();
        list.push(made);
    }
}

/// What users of a version are warned of.
pub fn deprecation(spec: &Value, version: &Value) -> Option<String> {
    if !version["deprecated"].flag() {
        return None;
    }
    let own = version["deprecationWarning"].text();
    if !own.is_empty() {
        return Some(own.to_owned());
    }
    let (group, kind, name) =
        (spec["group"].text(), spec["names"]["kind"].text(), version["name"].text());
    let better = spec["versions"]
        .items()
        .iter()
        .filter(|v| v["served"].flag() && !v["deprecated"].flag())
        .map(|v| v["name"].text())
        .filter(|other| schema::stability(other) > schema::stability(name))
        .max_by_key(|other| schema::stability(other));
    Some(match better {
        Some(better) => {
            format!("{group}/{name} {kind} is deprecated; use {group}/{better} {kind}")
        }
        None => format!("{group}/{name} {kind} is deprecated"),
    })
}

fn joined(errors: &mut ErrorList, path: &Path, value: &str, mistakes: &[String]) {
    if !mistakes.is_empty() {
        errors.push(Error::invalid(path, value, mistakes.join(",")));
    }
}

/// Whether only Kubernetes' own community may use the group.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")))
}

/// What a protected group's approval says: the annotation's text, if it is one.
pub fn approval(crd: &Value) -> Option<Result<&str, &str>> {
    match meta::annotation(crd, APPROVED)? {
        text if text.starts_with("https://") || text.starts_with("http://") => Some(Ok(text)),
        text => Some(Err(text)),
    }
}

/// The rules for a new definition.
pub fn validate(crd: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = &crd["spec"];
    let wanted = format!("{}.{}", spec["names"]["plural"].text(), spec["group"].text());
    if meta::name(crd) != wanted {
        errors.push(Error::invalid(
            &Path::new("metadata").child("name"),
            meta::name(crd),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    validate_spec(spec, None, &mut errors);
    if crd["status"]["storedVersions"].items().is_empty() {
        let path = Path::new("status").child("storedVersions");
        let detail = "must have at least one stored version";
        errors.push(Error::invalid(&path, Value::Null, detail));
    }
    if is_protected(spec["group"].text()) {
        let path = Path::new("metadata").child("annotations").key(APPROVED);
        let see = "see https://github.com/kubernetes/enhancements/pull/1111";
        match approval(crd) {
            None => errors.push(Error::required(
                &path,
                &format!("protected groups must have approval annotation {APPROVED:?}, {see}"),
            )),
            Some(Err(text)) if !text.starts_with("unapproved") => errors.push(Error::invalid(
                &path,
                text,
                format!("protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"),
            )),
            _ => {}
        }
    }
    errors
}

/// The rules for a changed definition, or its changed status.
pub fn validate_update(subresource: &str, crd: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = &crd["status"];
    let stored = Path::new("status").child("storedVersions");
    if subresource.is_empty() {
        let (spec, before) = (&crd["spec"], &old["spec"]);
        validate_spec(spec, Some(before), &mut errors);
        let path = Path::new("spec");
        let mut fixed = |path: Path, new: &Value, old: &Value| {
            if new != old {
                errors.push(Error::invalid(&path, new.clone(), "field is immutable"));
            }
        };
        if is_true(old, "Established") {
            fixed(path.child("scope"), &spec["scope"], &before["scope"]);
            let names = path.child("names");
            fixed(names.child("kind"), &spec["names"]["kind"], &before["names"]["kind"]);
        }
        fixed(path.child("group"), &spec["group"], &before["group"]);
        let plural = path.child("names").child("plural");
        fixed(plural, &spec["names"]["plural"], &before["names"]["plural"]);
    } else if status["storedVersions"].items().is_empty() {
        errors.push(Error::invalid(&stored, json!([]), "must have at least one stored version"));
    }
    for (index, name) in status["storedVersions"].items().iter().enumerate() {
        let known = crd["spec"]["versions"].items().iter().any(|v| v["name"] == *name);
        let message = "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions";
        if !known {
            let message = message.replace("v1", name.text());
            errors.push(Error::invalid(&stored.index(index), name.clone(), message));
        }
    }
    errors
}

fn validate_spec(spec: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let group = spec["group"].text();
    if group.is_empty() {
        errors.push(Error::required(&path.child("group"), ""));
    } else if !names::dns_subdomain(group).is_empty() {
        joined(errors, &path.child("group"), group, &names::dns_subdomain(group));
    } else if !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        errors.push(Error::invalid(&path.child("group"), group, detail));
    }
    match spec["scope"].text() {
        "" => errors.push(Error::required(&path.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(Error::not_supported(
            &path.child("scope"),
            other,
            &["Cluster", "Namespaced"],
        )),
    }
    if spec["preserveUnknownFields"].flag()
        && !old.is_some_and(|o| o["preserveUnknownFields"].flag())
    {
        errors.push(Error::invalid(
            &path.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    let shared = Shared::of(spec);
    validate_versions(spec, old, &shared, errors);
    let names = path.child("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        if spec["names"][key].text().is_empty() {
            errors.push(Error::required(&names.child(key), ""));
        }
    }
    validate_names(&spec["names"], &names, errors);
    shared.validate(spec, old, &path, errors);
    validate_conversion(&spec["conversion"], spec, &path.child("conversion"), errors);
}

/// What all versions have alike: upstream tells of it as if it stood once, above the versions.
struct Shared<'v> {
    parts: [(&'static str, Option<&'v Value>); 4],
}

impl<'v> Shared<'v> {
    fn of(spec: &'v Value) -> Self {
        let versions = spec["versions"].items();
        let part = |key: &'static str| {
            let same = versions.iter().all(|version| version[key] == versions[0][key]);
            (key, versions.first().filter(|_| same).map(|first| &first[key]))
        };
        let keys = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];
        Self { parts: keys.map(part) }
    }

    fn get(&self, key: &str) -> Option<&'v Value> {
        self.parts.iter().find(|(known, _)| *known == key).and_then(|(_, value)| *value)
    }

    fn validate(&self, spec: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
        let schema = self.get("schema").unwrap_or(&Value::Null);
        let unchanged =
            old.is_some_and(|old| Shared::of(old).get("schema").is_some_and(|old| old == schema));
        if !unchanged {
            validate_schema(schema, &path.child("validation"), errors);
        }
        if let Some(subresources) = self.get("subresources") {
            validate_subresources(subresources, &path.child("subresources"), errors);
        }
        if let Some(columns) = self.get("additionalPrinterColumns") {
            validate_columns(columns, &path.child("additionalPrinterColumns"), errors);
        }
        if let Some(fields) = self.get("selectableFields") {
            let path = path.child("selectableFields");
            // The versions may differ in their schemas: the fields must be in each.
            for version in
                spec["versions"].items().iter().take(if schema.is_null() { usize::MAX } else { 1 })
            {
                let schema = &version["schema"]["openAPIV3Schema"];
                validate_selectable(fields, schema, &path, errors);
            }
        }
    }
}

fn validate_schema(holder: &Value, path: &Path, errors: &mut ErrorList) {
    let schema = &holder["openAPIV3Schema"];
    if !schema.is_object() {
        return;
    }
    let path = path.child("openAPIV3Schema");
    if schema["nullable"].flag() {
        let detail = "nullable cannot be true at the root";
        errors.push(Error::forbidden(&path.child("nullable"), detail));
    }
    let found = structural::check(schema, &path);
    if found.is_empty() {
        let parsed = structural::Structural::parse(schema);
        errors.extend(rules::check(&parsed, &path));
    }
    errors.extend(found);
}

fn validate_columns(columns: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, column) in columns.items().iter().enumerate() {
        validate_column(column, &path.index(index), errors);
    }
}

fn validate_versions(
    spec: &Value,
    old: Option<&Value>,
    shared: &Shared<'_>,
    errors: &mut ErrorList,
) {
    let path = Path::new("spec").child("versions");
    let versions = spec["versions"].items();
    for (index, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            let path = path.index(index).child("schema").child("openAPIV3Schema");
            errors.push(Error::required(&path, ""));
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        let name = version["name"].text();
        unique &= !seen.contains(&name);
        seen.push(name);
        joined(errors, &path.child("name"), name, &names::dns_1035_label(name));
        let warning = version["deprecationWarning"].text();
        if version.get("deprecationWarning").is_some() && !version["deprecated"].flag() {
            let detail = "can only be set for deprecated versions";
            errors.push(Error::invalid(&path.child("deprecationWarning"), warning, detail));
        } else if warning.len() > 256 {
            errors.push(Error::too_long(&path.child("deprecationWarning"), 256));
        }
        let before = old.and_then(|old| {
            old["versions"].items().iter().find(|v| v["name"] == name).map(|v| &v["schema"])
        });
        let own = |key: &str| shared.get(key).is_none().then(|| (&version[key], path.child(key)));
        if let Some((holder, path)) = own("schema")
            && before.is_none_or(|before| before != holder)
        {
            validate_schema(holder, &path, errors);
        }
        if let Some((subresources, path)) = own("subresources") {
            validate_subresources(subresources, &path, errors);
        }
        if let Some((columns, path)) = own("additionalPrinterColumns") {
            validate_columns(columns, &path, errors);
        }
        if let Some((fields, path)) = own("selectableFields") {
            validate_selectable(fields, &version["schema"]["openAPIV3Schema"], &path, errors);
        }
    }
    let mut say = |detail: &str| {
        errors.push(Error::invalid_shown(&path, shown(spec, shared), detail));
    };
    if !unique {
        say("must contain unique version names");
    }
    if versions.iter().filter(|v| v["storage"].flag()).count() != 1 {
        say("must have exactly one version marked as storage version");
    }
    if let Some(first) = versions.first() {
        let name = first["name"].text();
        let path = Path::new("spec").child("version");
        joined(errors, &path, name, &names::dns_1035_label(name));
    }
}

/// The versions as Go holds them.
fn shown(spec: &Value, shared: &Shared<'_>) -> String {
    // No versions are as they came.
    if spec["versions"].items().is_empty() {
        return spec["versions"].to_string();
    }
    let version = |version: &Value| {
        let own = |key: &str| match shared.get(key) {
            Some(_) => Value::Null,
            None => version[key].clone(),
        };
        ordered(&[
            ("Name", version["name"].clone()),
            ("Served", version["served"].flag().into()),
            ("Storage", version["storage"].flag().into()),
            ("Deprecated", version["deprecated"].flag().into()),
            ("DeprecationWarning", version["deprecationWarning"].clone()),
            ("Schema", own("schema")),
            ("Subresources", own("subresources")),
            ("AdditionalPrinterColumns", own("additionalPrinterColumns")),
            ("SelectableFields", own("selectableFields")),
        ])
    };
    let versions: Vec<String> = spec["versions"].items().iter().map(version).collect();
    format!("[{}]", versions.join(","))
}

fn validate_names(found: &Value, path: &Path, errors: &mut ErrorList) {
    for key in ["plural", "singular"] {
        let text = found[key].text();
        if !text.is_empty() {
            joined(errors, &path.child(key), text, &names::dns_1035_label(text));
        }
    }
    for key in ["kind", "listKind"] {
        let text = found[key].text();
        let mistakes = names::dns_1035_label(&text.to_lowercase());
        if !text.is_empty() && !mistakes.is_empty() {
            let detail =
                format!("may have mixed case, but should otherwise match: {}", mistakes.join(","));
            errors.push(Error::invalid(&path.child(key), text, detail));
        }
    }
    for key in ["shortNames", "categories"] {
        for (index, text) in found[key].texts().enumerate() {
            joined(errors, &path.child(key).index(index), text, &names::dns_1035_label(text));
        }
    }
    let kind = found["kind"].text();
    if !kind.is_empty() && found["listKind"] == kind {
        let detail = "kind and listKind may not be the same";
        errors.push(Error::invalid(&path.child("listKind"), kind, detail));
    }
}

fn validate_conversion(conversion: &Value, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let webhook = &conversion["webhook"];
    let (client, versions) = (&webhook["clientConfig"], &webhook["conversionReviewVersions"]);
    // Upstream has the fields of the webhook one level higher.
    let client_path = path.child("webhookClientConfig");
    let versions_path = path.child("conversionReviewVersions");
    match conversion["strategy"].text() {
        "" => errors.push(Error::required(&path.child("strategy"), "")),
        "None" | "Webhook" => {}
        other => {
            errors.push(Error::not_supported(&path.child("strategy"), other, &["None", "Webhook"]));
        }
    }
    if conversion["strategy"] != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if client.entries().next().is_some() {
            errors.push(Error::forbidden(&client_path, detail));
        }
        if !versions.items().is_empty() {
            errors.push(Error::forbidden(&versions_path, detail));
        }
        return;
    }
    if spec["preserveUnknownFields"].flag() {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.push(Error::invalid(&path.child("strategy"), "Webhook", detail));
    }
    // Its defaults leave traces where there was none.
    if client.entries().next().is_some()
        || !webhook["conversionReviewVersions"].is_null() && client.is_object()
    {
        crate::webhook::validate_client(client, &client_path, errors);
    } else {
        errors.push(Error::required(&client_path, "required when strategy is set to Webhook"));
    }
    review_versions(versions, &versions_path, errors);
}

fn review_versions(versions: &Value, path: &Path, errors: &mut ErrorList) {
    let versions: Vec<&str> = versions.texts().collect();
    if versions.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if versions[..index].contains(version) {
            errors.push(Error::invalid(&path, *version, "duplicate version"));
            continue;
        }
        for mistake in names::dns_1035_label(version) {
            errors.push(Error::invalid(&path, *version, mistake));
        }
    }
    if !versions.contains(&"v1") && !versions.contains(&"v1beta1") {
        let detail = "must include at least one of v1, v1beta1";
        errors.push(Error::invalid(path, versions, detail));
    }
}

fn validate_simple_path(text: &str, prefixes: &[&str], path: &Path, errors: &mut ErrorList) {
    if text.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    if !text.starts_with('.') {
        errors.push(Error::invalid(path, text, "must be a simple json path starting with ."));
        return;
    }
    if !prefixes.is_empty() && !prefixes.iter().any(|prefix| text.starts_with(prefix)) {
        let detail = match prefixes {
            [one] => format!("should be a json path under {}", one.trim_end_matches('.')),
            _ => "should be a json path under either .spec or .status".into(),
        };
        errors.push(Error::invalid(path, text, detail));
    }
}

fn validate_subresources(subresources: &Value, path: &Path, errors: &mut ErrorList) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    let path = path.child("scale");
    let at = |key: &str| (scale[key].text(), path.child(key));
    let (text, field) = at("specReplicasPath");
    validate_simple_path(text, &[".spec."], &field, errors);
    let (text, field) = at("statusReplicasPath");
    validate_simple_path(text, &[".status."], &field, errors);
    let (text, field) = at("labelSelectorPath");
    if !text.is_empty() {
        validate_simple_path(text, &[".spec.", ".status."], &field, errors);
    }
}

fn validate_column(column: &Value, path: &Path, errors: &mut ErrorList) {
    if column["name"].text().is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let kind = column["type"].text();
    if kind.is_empty() {
        let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
        errors.push(Error::required(&path.child("type"), &detail));
    } else if !COLUMN_TYPES.contains(&kind) {
        let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
        errors.push(Error::invalid(&path.child("type"), kind, detail));
    }
    const FORMATS: [&str; 8] =
        ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let format = column["format"].text();
    if !format.is_empty() && !FORMATS.contains(&format) {
        let detail = format!("must be one of {}", FORMATS.join(","));
        errors.push(Error::invalid(&path.child("format"), format, detail));
    }
    validate_simple_path(column["jsonPath"].text(), &[], &path.child("JSONPath"), errors);
}

fn validate_selectable(fields: &Value, schema: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen = Vec::new();
    for (index, field) in fields.items().iter().enumerate() {
        let text = field["jsonPath"].text();
        let path = path.index(index).child("jsonPath");
        if text.is_empty() {
            errors.push(Error::required(&path, ""));
            continue;
        }
        let found = match selected(text, schema) {
            Ok(found) => found,
            Err(problem) => {
                let detail = format!("is an invalid path: {problem}");
                errors.push(Error::invalid(&path, text, detail));
                continue;
            }
        };
        if text == ".metadata" || text.starts_with(".metadata.") {
            errors.push(Error::invalid(&path, text, "must not point to fields in metadata"));
        }
        if !matches!(found["type"].text(), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(Error::invalid(&path, text, detail));
        }
        if seen.contains(&text) {
            errors.push(Error::duplicate(&path, text));
        } else {
            seen.push(text);
        }
    }
    if seen.len() > 8 {
        errors.push(Error::too_many(path, seen.len(), 8));
    }
}

/// The schema of the field that a plain path leads to.
fn selected<'v>(text: &str, schema: &'v Value) -> Result<&'v Value, String> {
    if !text.starts_with(['.', '[']) {
        let first = text.split(['.', '[']).next().unwrap_or_default();
        return Err(format!("expected [ or . but got: {first}"));
    }
    if text.contains('[') {
        return Err("array notation is not allowed".into());
    }
    let parsed = JsonPath::parse(text).ok();
    let names = parsed.as_ref().and_then(JsonPath::plain_fields);
    let step = |schema: &'v Value, name: &&str| schema["properties"].get(*name);
    let found = names.and_then(|names| names.iter().try_fold(schema, step));
    found.ok_or_else(|| "does not refer to a valid field".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd() -> Value {
        let mut crd = json!({"metadata": {"name": "foos.example.com"}, "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
        set_defaults(&mut crd);
        prepare_for_create(&mut crd);
        crd
    }

    fn told(path: &str, value: Value) -> Vec<String> {
        let mut crd = crd();
        *crd.pointer_mut(path).expect("a place in the definition") = value;
        validate(&crd).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_name_what_follows() {
        let crd = crd();
        assert_eq!(crd["spec"]["names"]["listKind"], "FooList");
        assert_eq!(crd["spec"]["names"]["singular"], "foo");
        assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
        assert!(validate(&crd).is_empty());
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let cases = [
            (
                "/metadata/name",
                json!("x"),
                r#"metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group"#,
            ),
            (
                "/spec/scope",
                json!("None"),
                r#"spec.scope: Unsupported value: "None": supported values: "Cluster", "Namespaced""#,
            ),
            (
                "/spec/names/listKind",
                json!("Foo"),
                r#"spec.names.listKind: Invalid value: "Foo": kind and listKind may not be the same"#,
            ),
            (
                "/spec/versions/0/schema",
                json!({}),
                "spec.versions[0].schema.openAPIV3Schema: Required value",
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema",
                json!({"type": "object", "properties": {"a": {}}}),
                "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
            ),
            (
                "/spec/conversion",
                json!({"strategy": "Webhook"}),
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            ),
        ];
        for (path, value, want) in cases {
            assert_eq!(told(path, value)[0], want, "{path}");
        }
        let both = told("/spec/versions/0/storage", json!(false));
        assert!(
            both[0].ends_with("must have exactly one version marked as storage version"),
            "{both:?}"
        );
    }

    #[test]
    fn a_protected_group_wants_approval() {
        let mut crd = crd();
        crd["spec"]["group"] = "x.k8s.io".into();
        crd["metadata"]["name"] = "foos.x.k8s.io".into();
        assert_eq!(
            validate(&crd)[0].to_string(),
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"
        );
        crd["metadata"]["annotations"] = json!({APPROVED: "unapproved, testing"});
        assert!(validate(&crd).is_empty());
    }

    #[test]
    fn what_is_stored_keeps_its_version() {
        let mut old = crd();
        prepare_for_create(&mut old);
        let mut new = old.clone();
        new["spec"]["versions"][0]["name"] = "v2".into();
        note_storage_version(&mut new);
        let errors = validate_update("", &new, &old);
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].field.as_str(), "status.storedVersions[0]");
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
    }
}
