//! APIServices.
//!
//! Source: `kube-aggregator/pkg/apis/apiregistration/validation`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use crate::zero::Zero;

/// The rules for an APIService.
pub fn api_service(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (group, version) = (spec["group"].text(), spec["version"].text());
    let wanted = format!("{version}.{group}");
    if meta::name(object) != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        let path = Path::new("metadata").child("name");
        errors.push(Error::invalid(&path, meta::name(object), detail));
    }
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.push(Error::required(&path.child("group"), detail));
    }
    if !group.is_empty() {
        for detail in names::dns_subdomain(group) {
            errors.push(Error::invalid(&path.child("group"), group, detail));
        }
    }
    for detail in names::dns_1035_label(version) {
        errors.push(Error::invalid(&path.child("version"), version, detail));
    }
    for (key, limit) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let value = spec[key].int();
        if value <= 0 || value > limit {
            let detail = format!("must be positive and less than {limit}");
            errors.push(Error::invalid(&path.child(key), value, detail));
        }
    }
    server(spec, &path, errors);
}

fn server(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (bundle, insecure) = (spec["caBundle"].text(), spec["insecureSkipTLSVerify"].flag());
    let service = &spec["service"];
    if !service.is_object() {
        if !bundle.is_empty() {
            let value = format!("{} bytes", bundle.len() / 4 * 3);
            let detail = "local APIServices may not have a caBundle";
            errors.push(Error::invalid(&path.child("caBundle"), value, detail));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
        }
        return;
    }
    for key in ["namespace", "name"] {
        if service[key].text().is_empty() {
            errors.push(Error::required(&path.child("service").child(key), ""));
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        let detail = format!("port is not valid: {}", wrong.join(", "));
        errors.push(Error::invalid(&path.child("service").child("port"), port, detail));
    }
    if insecure && !bundle.is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.push(Error::invalid(&path.child("insecureSkipTLSVerify"), true, detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn api_services_are_checked() {
        let good = json!({"metadata": {"name": "v1.a.io"}, "spec": {"group": "a.io", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"namespace": "n", "name": "s"}, "insecureSkipTLSVerify": true}});
        let with = |pointer: &str, value: Value| {
            let mut object = good.clone();
            *object.pointer_mut(pointer).expect("it is there") = value;
            object
        };
        let cases = [
            (good.clone(), ""),
            (with("/metadata/name", "x".into()), "metadata.name"),
            (with("/spec/versionPriority", 0.into()), "spec.versionPriority"),
            (with("/spec/service/name", "".into()), "spec.service.name"),
            (with("/spec/service", Value::Null), "spec.insecureSkipTLSVerify"),
        ];
        for (object, want) in cases {
            let mut errors = ErrorList::new();
            api_service(&object, &mut errors);
            let fields: Vec<String> = errors.iter().map(|error| error.field.to_string()).collect();
            assert_eq!(fields.join(","), want, "{object}");
        }
    }
}
