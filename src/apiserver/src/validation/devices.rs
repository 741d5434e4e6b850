//! Rules for device claims, classes and slices.
//!
//! Source: `pkg/apis/resource/validation/validation.go`.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::cel::{Program, Type};
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::core::immutable;
use super::csi::driver_name;
use super::{mistakes, one_of};
use crate::zero::Zero;

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const EXPRESSION_MAX_BYTES: usize = 10 * 1024;
const PARAMETERS_MAX_BYTES: usize = 10 * 1024;
const RESERVED_MAX: usize = 256;
const DEVICES_MAX: usize = 128;
const ATTRIBUTES_MAX: usize = 32;
const REFERENCE: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
const ONE_OF: &str = "exactly one of `exactly` or `firstAvailable` is required";

/// Requests by name, each with the names of its alternatives.
type Requests<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Any device kind, new (`old` is absent) or changed.
pub fn validate(plural: &str, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let path = Path::new("spec");
    match plural {
        "resourceclaims" => {
            if let Some(old) = old {
                immutable(&path, &object["spec"], &old["spec"], errors);
            } else {
                claim(&object["spec"]["devices"], &path.child("devices"), errors);
            }
        }
        "resourceclaimtemplates" => {
            if let Some(old) = old {
                immutable(&path, &object["spec"], &old["spec"], errors);
            } else {
                let at = path.child("spec").child("devices");
                claim(&object["spec"]["spec"]["devices"], &at, errors);
            }
        }
        "deviceclasses" => {
            selectors(&object["spec"]["selectors"], &path.child("selectors"), errors);
            for (index, config) in object["spec"]["config"].items().iter().enumerate() {
                configuration(config, &path.child("config").index(index), errors);
            }
        }
        "resourceslices" => slice(object, old, errors),
        _ => {}
    }
}

fn claim(devices: &Value, path: &Path, errors: &mut ErrorList) {
    let requests: Requests<'_> = devices["requests"]
        .items()
        .iter()
        .map(|request| {
            let alternatives = request["firstAvailable"].items().iter();
            (request["name"].text(), alternatives.map(|a| a["name"].text()).collect())
        })
        .collect();
    let at = path.child("requests");
    set(devices["requests"].items(), REQUESTS_MAX, |r| r["name"].text(), &at, errors);
    for (index, one) in devices["requests"].items().iter().enumerate() {
        request(one, &at.index(index), errors);
    }
    let at = path.child("constraints");
    too_many(devices["constraints"].items(), REQUESTS_MAX, &at, errors);
    for (index, constraint) in devices["constraints"].items().iter().enumerate() {
        let at = at.index(index);
        references(&constraint["requests"], &requests, &at.child("requests"), errors);
        let keys = ["matchAttribute", "distinctAttribute"];
        match keys.iter().find(|key| constraint[**key].is_set()) {
            Some(key) => qualified(constraint[*key].text(), &at.child(key), errors),
            None => errors.push(Error::required(&at.child("matchAttribute"), "")),
        }
    }
    let at = path.child("config");
    too_many(devices["config"].items(), REQUESTS_MAX, &at, errors);
    for (index, config) in devices["config"].items().iter().enumerate() {
        let at = at.index(index);
        references(&config["requests"], &requests, &at.child("requests"), errors);
        configuration(config, &at, errors);
    }
}

fn too_many(list: &[Value], most: usize, path: &Path, errors: &mut ErrorList) {
    if list.len() > most {
        errors.push(Error::too_many(path, list.len(), most));
    }
}

/// A list without equal keys, and not too long.
fn set<'a>(
    list: &'a [Value],
    most: usize,
    key: impl Fn(&'a Value) -> &'a str,
    path: &Path,
    errors: &mut ErrorList,
) {
    too_many(list, most, path, errors);
    let mut seen = BTreeSet::new();
    for (index, item) in list.iter().enumerate() {
        if !seen.insert(key(item)) {
            errors.push(Error::duplicate(&path.index(index), key(item)));
        }
    }
}

fn label(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    } else {
        mistakes(errors, path, name, names::dns_label(name));
    }
}

fn request(request: &Value, path: &Path, errors: &mut ErrorList) {
    label(request["name"].text(), &path.child("name"), errors);
    let alternatives = request["firstAvailable"].items();
    match (request["exactly"].is_set(), !alternatives.is_empty()) {
        (false, false) => errors.push(Error::required(path, ONE_OF)),
        (true, true) => {
            let detail = format!("{ONE_OF}, but multiple fields are set");
            errors.push(Error::invalid(path, Value::Null, detail));
        }
        (true, false) => wanted(&request["exactly"], &path.child("exactly"), errors),
        (false, true) => {
            let at = path.child("firstAvailable");
            set(alternatives, ALTERNATIVES_MAX, |a| a["name"].text(), &at, errors);
            for (index, alternative) in alternatives.iter().enumerate() {
                label(alternative["name"].text(), &at.index(index).child("name"), errors);
                wanted(alternative, &at.index(index), errors);
            }
        }
    }
}

/// The devices that a request or an alternative of it wants.
fn wanted(request: &Value, path: &Path, errors: &mut ErrorList) {
    let (class, at) = (request["deviceClassName"].text(), path.child("deviceClassName"));
    if class.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        mistakes(errors, &at, class, names::dns_subdomain(class));
    }
    selectors(&request["selectors"], &path.child("selectors"), errors);
    let (mode, count) = (request["allocationMode"].text(), request["count"].int());
    match mode {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(Error::invalid(&path.child("count"), count, detail));
        }
        "ExactCount" if count <= 0 => {
            errors.push(Error::invalid(&path.child("count"), count, "must be greater than zero"));
        }
        _ => one_of(errors, &path.child("allocationMode"), mode, &["All", "ExactCount"]),
    }
    for (index, toleration) in request["tolerations"].items().iter().enumerate() {
        device_toleration(toleration, &path.child("tolerations").index(index), errors);
    }
}

fn device_toleration(toleration: &Value, path: &Path, errors: &mut ErrorList) {
    let (key, operator) = (toleration["key"].text(), toleration["operator"].text());
    if !key.is_empty() {
        mistakes(errors, &path.child("key"), key, names::qualified_name(key));
    }
    one_of(errors, &path.child("operator"), operator, &["Equal", "Exists"]);
    let value = toleration["value"].text();
    match operator {
        "Exists" if !value.is_empty() => {
            let detail = "must be empty for operator `Exists`";
            errors.push(Error::invalid(&path.child("value"), value, detail));
        }
        "Equal" => mistakes(errors, &path.child("value"), value, names::label_value(value)),
        _ => {}
    }
    let effect = toleration["effect"].text();
    if !effect.is_empty() {
        one_of(errors, &path.child("effect"), effect, &["NoExecute", "NoSchedule", "None"]);
    }
}

fn selectors(selectors: &Value, path: &Path, errors: &mut ErrorList) {
    too_many(selectors.items(), SELECTORS_MAX, path, errors);
    for (index, selector) in selectors.items().iter().enumerate() {
        let at = path.index(index).child("cel");
        if selector["cel"].is_null() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let (text, at) = (selector["cel"]["expression"].text(), at.child("expression"));
        if text.len() > EXPRESSION_MAX_BYTES {
            errors.push(Error::too_long(&at, EXPRESSION_MAX_BYTES));
        } else if text.trim().is_empty() {
            errors.push(Error::required(&at, "must not be empty"));
        } else {
            chooses(text, &at, errors);
        }
    }
}

/// An expression says of a `device` whether it is taken.
fn chooses(text: &str, path: &Path, errors: &mut ErrorList) {
    match Program::compile(text, vec![("device".into(), Type::Dyn)], None) {
        Err(why) => {
            errors.push(Error::invalid(path, text, format!("compilation failed: {why}")));
        }
        Ok(program) if !matches!(program.result(), "bool" | "dyn") => {
            let detail =
                format!("must evaluate to bool or the unknown type, not {}", program.result());
            errors.push(Error::invalid(path, text, detail));
        }
        Ok(_) => {}
    }
}

fn qualified(name: &str, path: &Path, errors: &mut ErrorList) {
    match name.split_once('/') {
        _ if name.is_empty() => errors.push(Error::required(path, "")),
        None => {
            let detail = "must be a fully qualified name (domain/identifier)";
            errors.push(Error::invalid(path, name, detail));
        }
        Some((domain, identifier)) => {
            driver_name(domain, path, errors);
            c_identifier(identifier, path, errors);
        }
    }
}

fn c_identifier(name: &str, path: &Path, errors: &mut ErrorList) {
    let start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let shaped = name.starts_with(start) && name.chars().all(|c| start(c) || c.is_ascii_digit());
    if !shaped {
        let detail = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
        errors.push(Error::invalid(path, name, detail));
    }
}

fn references(list: &Value, requests: &Requests<'_>, path: &Path, errors: &mut ErrorList) {
    set(list.items(), REQUESTS_MAX, Zero::text, path, errors);
    for (index, name) in list.texts().enumerate() {
        let known = match name.split_once('/') {
            None => requests.contains_key(name),
            Some((name, part)) => requests.get(name).is_some_and(|parts| parts.contains(&part)),
        };
        if !known {
            errors.push(Error::invalid(&path.index(index), name, REFERENCE));
        }
    }
}

fn configuration(config: &Value, path: &Path, errors: &mut ErrorList) {
    let (opaque, at) = (&config["opaque"], path.child("opaque"));
    if opaque.is_null() {
        errors.push(Error::required(&at, ""));
        return;
    }
    driver_name(opaque["driver"].text(), &at.child("driver"), errors);
    let (parameters, at) = (&opaque["parameters"], at.child("parameters"));
    if parameters.is_null() {
        errors.push(Error::required(&at, ""));
    } else if parameters.to_string().len() > PARAMETERS_MAX_BYTES {
        errors.push(Error::too_long(&at, PARAMETERS_MAX_BYTES));
    } else if !parameters.is_object() {
        let detail = "parameters must be a valid JSON object";
        errors.push(Error::invalid(&at, "<value omitted>", detail));
    }
}

fn slice(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    driver_name(spec["driver"].text(), &path.child("driver"), errors);
    let (pool, at) = (&spec["pool"], path.child("pool"));
    match pool["name"].text() {
        "" => errors.push(Error::required(&at.child("name"), "")),
        name => {
            for part in name.split('/') {
                mistakes(errors, &at.child("name"), part, names::dns_subdomain(part));
            }
        }
    }
    if pool["resourceSliceCount"].int() <= 0 {
        let value = pool["resourceSliceCount"].int();
        let detail = "must be greater than zero";
        errors.push(Error::invalid(&at.child("resourceSliceCount"), value, detail));
    }
    let keys = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let chosen = keys.iter().filter(|key| match &spec[**key] {
        Value::Bool(flag) => *flag,
        Value::String(text) => !text.is_empty(),
        value => value.is_set(),
    });
    let what = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match chosen.count() {
        0 => errors.push(Error::required(&path, what)),
        1 => {}
        _ => {
            let detail = format!("{what}, but multiple fields are set");
            errors.push(Error::invalid(&path, Value::Null, detail));
        }
    }
    let (devices, at) = (spec["devices"].items(), path.child("devices"));
    set(devices, DEVICES_MAX, |device| device["name"].text(), &at, errors);
    for (index, device) in devices.iter().enumerate() {
        let at = at.index(index);
        label(device["name"].text(), &at.child("name"), errors);
        let count = device["attributes"].entries().count() + device["capacity"].entries().count();
        if count > ATTRIBUTES_MAX {
            let detail = format!(
                "the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}"
            );
            errors.push(Error::invalid(&at, count, detail));
        }
        for key in ["attributes", "capacity"] {
            for (name, _) in device[key].entries() {
                let identifier = name.split_once('/').map_or(name.as_str(), |(_, id)| id);
                c_identifier(identifier, &at.child(key).key(name), errors);
            }
        }
    }
    if let Some(old) = old {
        immutable(&path.child("driver"), &spec["driver"], &old["spec"]["driver"], errors);
        let at = path.child("pool").child("name");
        immutable(&at, &pool["name"], &old["spec"]["pool"]["name"], errors);
        immutable(&path.child("nodeName"), &spec["nodeName"], &old["spec"]["nodeName"], errors);
    }
}

/// The status of a claim: who uses it, and what it was given.
pub fn claim_status(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (status, path) = (&object["status"], Path::new("status"));
    let (reserved, at) = (status["reservedFor"].items(), path.child("reservedFor"));
    set(reserved, RESERVED_MAX, |consumer| consumer["uid"].text(), &at, errors);
    for (index, consumer) in reserved.iter().enumerate() {
        for key in ["resource", "name", "uid"] {
            if consumer[key].text().is_empty() {
                errors.push(Error::required(&at.index(index).child(key), ""));
            }
        }
    }
    if !reserved.is_empty() && status["allocation"].is_null() {
        let detail = "may not be specified when `allocated` is not set";
        errors.push(Error::forbidden(&at, detail));
    } else if object["metadata"]["deletionTimestamp"].is_set() {
        let before = old["status"]["reservedFor"].items();
        if reserved.iter().any(|consumer| !before.contains(consumer)) {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(Error::forbidden(&at, detail));
        }
    }
    let before = &old["status"]["allocation"];
    if before.is_set() && status["allocation"].is_set() {
        immutable(&path.child("allocation"), &status["allocation"], before, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn expressions_that_choose_devices_compile() {
        let of = |text: &str| {
            let list = json!([{"cel": {"expression": text}}]);
            told(|errors| selectors(&list, &Path::new("s"), errors))
        };
        assert_eq!(of("device.attributes['e.com'].size > 1"), Vec::<String>::new());
        assert!(of("device.driver ==")[0].starts_with(
            "s[0].cel.expression: Invalid value: \"device.driver ==\": compilation failed: ERROR"
        ));
        assert_eq!(
            of("'a' + 'b'"),
            [
                "s[0].cel.expression: Invalid value: \"'a' + 'b'\": must evaluate to bool or the unknown type, not string"
            ]
        );
    }

    #[test]
    fn claims_are_checked() {
        let exactly = json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1});
        let made = |devices: Value| json!({"spec": {"devices": devices}});
        let one = |request: Value| made(json!({"requests": [request]}));
        let at = "spec.devices.requests[0]";
        for (object, want) in [
            (one(json!({"name": "r", "exactly": exactly})), String::new()),
            (one(json!({"name": "r"})), format!("{at}: Required value: {ONE_OF}")),
            (
                one(
                    json!({"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "All", "count": 1}}),
                ),
                format!(
                    "{at}.exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'"
                ),
            ),
            (
                one(json!({"name": "r", "exactly": {"allocationMode": "ExactCount", "count": 1}})),
                format!("{at}.exactly.deviceClassName: Required value"),
            ),
            (
                made(
                    json!({"requests": [{"name": "r", "exactly": exactly}], "constraints": [{"requests": ["x"], "matchAttribute": "a.b/c"}]}),
                ),
                format!(
                    "spec.devices.constraints[0].requests[0]: Invalid value: \"x\": {REFERENCE}"
                ),
            ),
            (
                made(json!({"requests": [{"name": "r", "exactly": exactly}], "config": [{}]})),
                "spec.devices.config[0].opaque: Required value".into(),
            ),
        ] {
            assert_eq!(told(|e| validate("resourceclaims", &object, None, e)).join("; "), want);
        }
    }

    #[test]
    fn slices_belong_to_one_pool() {
        let made = |node: &str| {
            json!({"spec": {"driver": "a.b", "nodeName": node,
            "pool": {"name": "p", "resourceSliceCount": 1}, "devices": [{"name": "d"}]}})
        };
        assert_eq!(told(|e| slice(&made("n"), None, e)), Vec::<String>::new());
        assert_eq!(told(|e| slice(&made(""), None, e)).len(), 1);
        assert_eq!(
            told(|e| slice(&made("n"), Some(&made("m")), e)),
            ["spec.nodeName: Invalid value: \"n\": field is immutable"]
        );
    }
}
