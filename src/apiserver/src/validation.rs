//! The rules of the built-in kinds, worded as upstream words them.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/*/validation`. Types are right already: bodies are decoded by
//! the schema. What is checked here is what a schema cannot say.

mod addresses;
mod admission_policies;
mod affinity;
mod certificates;
mod container;
mod core;
mod cron;
mod csi;
mod devices;
mod flowcontrol;
mod ip;
mod job;
mod metadata;
mod network;
mod pod;
pub mod pod_annotations;
pub mod pod_resources;
mod pod_update;
mod policy;
mod projected;
mod quota;
mod registration;
mod restart;
pub mod security;
mod service;
mod status;
mod storage;
mod trust;
mod volume;
mod volume_source;
mod webhooks;
mod workload;

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::custom::definition;
use crate::zero::Zero;

pub use container::quantity;

/// The rules for a new object. Its name is checked here too.
pub fn validate_create(ctx: &RequestContext, object: &Value) -> ErrorList {
    let Some(resource) = &ctx.resource else { return ErrorList::new() };
    let mut errors = metadata::validate(resource, object);
    if let Some(custom) = &resource.custom {
        errors.extend(custom.validate(object, None, &ctx.warnings));
        return errors;
    }
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    match (group, plural) {
        ("", "pods") => pod::validate(object, &mut errors),
        ("", "services") => service::validate(object, None, &mut errors),
        ("", "configmaps") => core::config_map(object, &mut errors),
        ("", "secrets") => core::secret(object, &mut errors),
        ("", "nodes") => core::node(object, &mut errors),
        ("scheduling.k8s.io", "priorityclasses") => core::priority_class(object, &mut errors),
        ("rbac.authorization.k8s.io", _) => core::rbac(plural, object, &mut errors),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            errors.extend(definition::validate(object));
        }
        ("" | "events.k8s.io", "events") => {
            policy::event(object, ctx.group == "events.k8s.io", &mut errors);
        }
        _ => {
            workload::validate(group, plural, object, &mut errors);
            others(group, plural, object, None, &mut errors);
        }
    }
    errors
}

/// The rules of the kinds that are no workloads; of a changed object (`old` is given) also what may not
/// change.
fn others(group: &str, plural: &str, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    match (group, plural) {
        ("networking.k8s.io", "ingresses") => network::ingress(object, old, errors),
        ("networking.k8s.io", "ingressclasses") => network::ingress_class(object, old, errors),
        ("networking.k8s.io", "networkpolicies") => network::network_policy(object, old, errors),
        ("discovery.k8s.io", "endpointslices") => network::endpoint_slice(object, old, errors),
        ("", "persistentvolumeclaims") => {
            storage::claim_spec(&object["spec"], &Path::new("spec"), errors);
            if let Some(old) = old {
                storage::claim_update(object, old, errors);
            }
        }
        ("", "persistentvolumes") => {
            storage::volume(object, errors);
            if let Some(old) = old {
                storage::volume_update(object, old, errors);
            }
        }
        ("storage.k8s.io", "storageclasses") => {
            storage::class(object, errors);
            if let Some(old) = old {
                storage::class_update(object, old, errors);
            }
        }
        ("policy", "poddisruptionbudgets") => policy::budget(object, errors),
        ("autoscaling", "horizontalpodautoscalers") => policy::autoscaler(object, errors),
        ("", "limitranges") => policy::limit_range(object, errors),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations" | "validatingwebhookconfigurations",
        ) => webhooks::validate(object, errors),
        ("admissionregistration.k8s.io", _) => {
            admission_policies::validate(plural, object, errors);
            crate::admission::dynamic::check_policy(plural, object, errors);
        }
        ("node.k8s.io", "runtimeclasses") => policy::runtime_class(object, old, errors),
        ("coordination.k8s.io", "leases") => policy::lease(object, errors),
        ("batch", "jobs") => {
            job::job(object, errors);
            if let Some(old) = old {
                job::job_update(object, old, errors);
            }
        }
        ("batch", "cronjobs") => job::cron_job(object, old, errors),
        ("", "resourcequotas") => quota::quota(object, old, errors),
        ("", "endpoints") => addresses::endpoints(object, old, errors),
        ("networking.k8s.io", "ipaddresses") => addresses::ip_address(object, old, errors),
        ("networking.k8s.io", "servicecidrs") => addresses::service_cidr(object, old, errors),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::request(object, old, errors);
            if let Some(old) = old {
                certificates::update("", object, old, errors);
            }
        }
        ("certificates.k8s.io", "clustertrustbundles") => trust::bundle(object, old, errors),
        ("certificates.k8s.io", "podcertificaterequests") => {
            certificates::pod_request(object, old, errors);
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => flowcontrol::schema(object, errors),
        ("flowcontrol.apiserver.k8s.io", _) => flowcontrol::level(object, errors),
        ("resource.k8s.io", _) => devices::validate(plural, object, old, errors),
        ("storage.k8s.io", "volumeattachments") => csi::attachment(object, old, errors),
        ("storage.k8s.io", "csidrivers") => csi::driver(object, old, errors),
        ("storage.k8s.io", "csinodes") => csi::node(object, old, errors),
        ("storage.k8s.io", "csistoragecapacities") => csi::capacity(object, old, errors),
        ("storage.k8s.io", "volumeattributesclasses") => {
            csi::attributes_class(object, old, errors);
        }
        ("apps", "controllerrevisions") => workload::revision(object, old, errors),
        ("apiregistration.k8s.io", "apiservices") => registration::api_service(object, errors),
        _ => {}
    }
}

/// The rules for a changed object.
pub fn validate_update(ctx: &RequestContext, object: &Value, old: &Value) -> ErrorList {
    let Some(resource) = &ctx.resource else { return ErrorList::new() };
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    let mut errors = metadata::validate_changed(object, old);
    if let Some(custom) = &resource.custom {
        errors.extend(custom.validate(object, Some(old), &ctx.warnings));
        return errors;
    }
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        errors.extend(definition::validate_update(&ctx.subresource, object, old));
        return errors;
    }
    match ctx.subresource.as_str() {
        "" => {}
        "ephemeralcontainers" => {
            pod_update::ephemeral_containers(object, old, &mut errors);
            return errors;
        }
        "resize" => {
            pod_update::resize(object, old, &mut errors);
            return errors;
        }
        "status" | "approval" => {
            status::validate(ctx, object, old, &mut errors);
            return errors;
        }
        _ => return errors,
    }
    match (group, plural) {
        ("", "pods") => pod_update::validate(object, old, &mut errors),
        ("", "services") => {
            service::validate(object, Some(old), &mut errors);
            service::validate_update(object, old, &mut errors);
        }
        ("", "configmaps") => {
            core::config_map(object, &mut errors);
            core::immutable_data(object, old, &mut errors);
        }
        ("", "secrets") => {
            core::secret(object, &mut errors);
            core::immutable(&Path::new("type"), &object["type"], &old["type"], &mut errors);
            core::immutable_data(object, old, &mut errors);
        }
        ("", "nodes") => core::node_update(object, old, &mut errors),
        ("scheduling.k8s.io", "priorityclasses") => {
            core::priority_class_update(object, old, &mut errors);
        }
        ("rbac.authorization.k8s.io", _) => {
            core::rbac(plural, object, &mut errors);
            if plural.ends_with("bindings") && object["roleRef"] != old["roleRef"] {
                let detail = "cannot change roleRef";
                let path = Path::new("roleRef");
                errors.push(Error::invalid(&path, object["roleRef"].clone(), detail));
            }
        }
        _ => {
            workload::validate(group, plural, object, &mut errors);
            workload::validate_update(group, plural, object, old, &mut errors);
            others(group, plural, object, Some(old), &mut errors);
        }
    }
    errors
}

/// Adds what is wrong with the text `value` at `path`, sentence by sentence.
fn mistakes(errors: &mut ErrorList, path: &Path, value: &str, sentences: Vec<String>) {
    errors.extend(sentences.into_iter().map(|sentence| Error::invalid(path, value, sentence)));
}

/// An error that shows no value.
fn omitted(path: &Path, detail: &str) -> Error {
    let mut error = Error::invalid(path, Value::Null, detail);
    error.value = None;
    error
}

/// `value` must not be negative.
fn non_negative(errors: &mut ErrorList, path: &Path, value: &Value) {
    if value.int() < 0 {
        errors.push(Error::invalid(path, value.int(), "must be greater than or equal to 0"));
    }
}

/// `value` must be one of `supported`.
fn one_of(errors: &mut ErrorList, path: &Path, value: &str, supported: &[&str]) {
    if !supported.contains(&value) {
        errors.push(Error::not_supported(path, value, supported));
    }
}

/// `value` must be set, and one of `supported`.
fn required_one_of(errors: &mut ErrorList, path: &Path, value: &str, supported: &[&str]) {
    if value.is_empty() {
        errors.push(Error::required(path, ""));
    } else {
        one_of(errors, path, value, supported);
    }
}

/// A label selector (`ValidateLabelSelector`).
fn label_selector(errors: &mut ErrorList, path: &Path, selector: &Value) {
    use apimachinery::names;
    let labels = path.child("matchLabels");
    for (key, value) in selector["matchLabels"].entries() {
        mistakes(errors, &labels, key, names::qualified_name(key));
        mistakes(errors, &labels.key(key), value.text(), names::label_value(value.text()));
    }
    for (index, item) in selector["matchExpressions"].items().iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = item["values"].items().len();
        match item["operator"].text() {
            "In" | "NotIn" if values == 0 => errors.push(Error::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => errors.push(Error::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = item["key"].text();
        mistakes(errors, &path.child("key"), key, names::qualified_name(key));
        for (index, value) in item["values"].texts().enumerate() {
            let path = path.child("values").index(index);
            mistakes(errors, &path, value, names::label_value(value));
        }
    }
}

#[cfg(test)]
fn told(validate: impl Fn(&mut ErrorList)) -> Vec<String> {
    let mut errors = ErrorList::new();
    validate(&mut errors);
    errors.iter().map(ToString::to_string).collect()
}
