//! ValidatingAdmissionPolicy: CEL expressions that requests must satisfy.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/policy/validating`.

use std::collections::BTreeSet;

use apimachinery::cel::{self, Program, TOTAL_LIMIT};
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::labels::Selector;
use apimachinery::status::Cause;
use apimachinery::{Status, meta};
use serde_json::{Value, json};

use super::matching::{Condition, Matcher};
use super::variables::{NAMES, Variables, compile as compile_cel, request_value};
use super::webhooks::CONDITION_NAMES;
use super::{Asked, Dynamic};
use crate::zero::Zero;

/// As many conditions a policy or webhook may have.
const CONDITIONS_MAX: usize = 64;

/// One of `validations`.
pub struct Validation {
    expression: String,
    program: Result<Program, String>,
    message: String,
    message_expression: Option<Program>,
    reason: String,
}

/// A binding of a policy.
pub struct Binding {
    pub(super) name: String,
    matcher: Matcher,
    param_ref: Value,
    actions: Vec<String>,
}

/// A policy with its bindings.
pub struct Policy {
    pub(super) name: String,
    matcher: Matcher,
    conditions: Vec<Condition>,
    variables: Vec<(String, Result<Program, String>)>,
    validations: Vec<Validation>,
    /// Keys and values of annotations for the audit log.
    annotations: Vec<(String, Result<Program, String>)>,
    pub(super) mutations: Vec<Value>,
    pub(super) ignore_failure: bool,
    /// Whether it is asked again after later changes.
    pub(super) again: bool,
    param_kind: Value,
    pub(super) bindings: Vec<Binding>,
}

fn names() -> Vec<&'static str> {
    let mut names = NAMES.to_vec();
    names.push("variables");
    names
}

/// What the expression of a message may name: it asks nobody whether somebody may do something.
fn message_names() -> Vec<&'static str> {
    names().into_iter().filter(|name| *name != "authorizer").collect()
}

/// Compiles policies with the bindings that name them.
pub fn compile(policies: &[Value], bindings: &[Value]) -> Vec<Policy> {
    let names = names();
    policies
        .iter()
        .map(|policy| {
            let spec = &policy["spec"];
            let name = meta::name(policy).to_owned();
            Policy {
                matcher: Matcher::of_policy(&spec["matchConstraints"]),
                conditions: Condition::compile_all(&spec["matchConditions"], &names),
                variables: spec["variables"]
                    .items()
                    .iter()
                    .map(|v| {
                        (v["name"].text().to_owned(), compile_cel(v["expression"].text(), &names))
                    })
                    .collect(),
                validations: spec["validations"].items().iter().map(Validation::parse).collect(),
                annotations: spec["auditAnnotations"]
                    .items()
                    .iter()
                    .map(|a| {
                        let program = compile_cel(a["valueExpression"].text(), &names);
                        (a["key"].text().to_owned(), program)
                    })
                    .collect(),
                mutations: spec["mutations"].items().to_vec(),
                ignore_failure: spec["failurePolicy"] == "Ignore",
                again: spec["reinvocationPolicy"] == "IfNeeded",
                param_kind: spec["paramKind"].clone(),
                bindings: bindings
                    .iter()
                    .filter(|binding| binding["spec"]["policyName"] == name.as_str())
                    .map(Binding::parse)
                    .collect(),
                name,
            }
        })
        .collect()
}

impl Binding {
    fn parse(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: meta::name(binding).to_owned(),
            matcher: Matcher::of_policy(&spec["matchResources"]),
            param_ref: spec["paramRef"].clone(),
            actions: spec["validationActions"].texts().map(str::to_owned).collect(),
        }
    }
}

impl Validation {
    fn parse(validation: &Value) -> Self {
        let text = |key: &str| validation[key].text().to_owned();
        Self {
            expression: text("expression"),
            program: compile_cel(validation["expression"].text(), &names()),
            message: text("message"),
            message_expression: Some(validation["messageExpression"].text())
                .filter(|text| !text.is_empty())
                .and_then(|text| compile_cel(text, &message_names()).ok()),
            reason: text("reason"),
        }
    }

    /// What it says against a request.
    fn judge(
        &self,
        policy: &Policy,
        variables: &Variables<'_>,
        budget: &mut u64,
    ) -> Option<Violation> {
        let outcome = match &self.program {
            Ok(program) => program.run(variables, budget),
            Err(error) => Err(format!("compilation error: {error}")),
        };
        match outcome {
            Ok(cel::Value::Bool(true)) => None,
            Ok(_) => {
                let made = self
                    .message_expression
                    .as_ref()
                    .and_then(|program| program.run(variables, budget).ok())
                    .map(|value| value.to_text().trim().to_owned())
                    .filter(|text| !text.is_empty() && !text.contains('\n'));
                let message = match made {
                    Some(text) => text,
                    None if !self.message.trim().is_empty() => self.message.trim().to_owned(),
                    None => format!("failed expression: {}", self.expression.trim()),
                };
                Some(Violation { message, reason: self.reason.clone(), index: 0 })
            }
            Err(_) if policy.ignore_failure => None,
            // The reason is that of a request which was judged.
            Err(error) => {
                Some(format!("expression '{}' resulted in error: {error}", self.expression).into())
            }
        }
    }
}

impl Policy {
    /// Whether policy and binding are about the request.
    pub(super) fn concerns(&self, binding: &Binding, dynamic: &Dynamic, asked: &Asked<'_>) -> bool {
        self.matcher.matches(dynamic, asked).is_some()
            && binding.matcher.matches(dynamic, asked).is_some()
    }

    /// The parameters a binding refers to; one absent one where the policy takes none.
    pub(super) fn params(
        &self,
        binding: &Binding,
        dynamic: &Dynamic,
        asked: &Asked<'_>,
    ) -> Result<Vec<Option<Value>>, String> {
        if !self.param_kind.is_object() || !binding.param_ref.is_object() {
            return Ok(vec![None]);
        }
        let (group, version) = meta::split_api_version(self.param_kind["apiVersion"].text());
        let kind = self.param_kind["kind"].text();
        let served = dynamic.registry.served();
        let Some(resource) = served.of_kind(group, version, kind) else {
            return Err(format!(
                "failed to configure policy: failed to find resource referenced by paramKind: '{}, Kind={kind}'",
                self.param_kind["apiVersion"].text()
            ));
        };
        let reference = &binding.param_ref;
        let namespace = match reference["namespace"].text() {
            _ if !resource.namespaced => "",
            "" => asked.ctx.namespace.as_str(),
            namespace => namespace,
        };
        let registry = &dynamic.registry;
        let found: Vec<Option<Value>> = match reference["name"].text() {
            "" => {
                let selector = Selector::from_label_selector(reference.get("selector"))
                    .map_err(|error| error.to_string())?;
                registry
                    .list(
                        &resource.group,
                        &resource.plural,
                        (!namespace.is_empty()).then_some(namespace),
                    )
                    .iter()
                    .filter(|object| selector.matches_by(|key| object.labels.get(key)))
                    .map(|object| Some(object.to_value()))
                    .collect()
            }
            name => registry
                .get(&resource.group, &resource.plural, namespace, name)
                .map(|object| Some(object.to_value()))
                .into_iter()
                .collect(),
        };
        if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
            return Err("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }

    /// Evaluates the policy's variables in their order.
    pub(super) fn fill(&self, variables: &mut Variables<'_>, budget: &mut u64) {
        for (name, program) in &self.variables {
            let value = match program {
                Ok(program) => program.run(variables, budget),
                Err(error) => Err(error.clone()),
            };
            let value = value.map_err(|error| {
                format!("composited variable {name:?} fails to evaluate: {error}")
            });
            variables.own.push((name.clone(), value));
        }
    }

    pub(super) fn meets_conditions(&self, variables: &Variables<'_>) -> Result<bool, String> {
        Condition::all(&self.conditions, variables)
    }
}

fn code_of(reason: &str) -> u16 {
    match reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    }
}

fn denial(asked: &Asked<'_>, message: &str, reason: &str) -> Status {
    let ctx = asked.ctx;
    let name = asked.object.or(asked.old).map_or(ctx.name.as_str(), meta::name);
    let mut status = Status::forbidden(&ctx.group, &ctx.plural, name, message);
    let reason = if reason.is_empty() { "Invalid" } else { reason };
    status.reason = reason.to_owned();
    status.code = code_of(reason);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message: message.to_owned(), ..Cause::default() });
    }
    status
}

/// What one validation, or the policy itself, says against a request.
struct Violation {
    message: String,
    reason: String,
    /// Which validation, where it is one.
    index: usize,
}

impl From<String> for Violation {
    fn from(message: String) -> Self {
        Self { message, reason: String::new(), index: 0 }
    }
}

/// What a policy found about one request.
#[derive(Default)]
struct Findings {
    violations: Vec<Violation>,
    annotations: Vec<(String, String)>,
}

impl Dynamic {
    /// Holds the request against every bound policy.
    pub(super) fn judge(&self, policies: &[Policy], asked: &Asked<'_>) -> Result<(), Status> {
        let mut denied = None;
        let mut failures = Vec::new();
        let mut annotations: Vec<(String, String)> = Vec::new();
        for policy in policies {
            for binding in &policy.bindings {
                if !policy.concerns(binding, self, asked) {
                    continue;
                }
                let findings = self.findings(policy, binding, asked);
                for violation in findings.violations {
                    let message = &violation.message;
                    let acts = |action: &str| binding.actions.iter().any(|a| a == action);
                    if acts("Deny") {
                        let text = format!(
                            "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {message}",
                            policy.name, binding.name
                        );
                        denied.get_or_insert_with(|| denial(asked, &text, &violation.reason));
                    }
                    if acts("Warn") {
                        asked.ctx.warnings.add(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                            policy.name, binding.name
                        ));
                    }
                    if acts("Audit") {
                        failures.push(json!({
                            "message": message, "policy": policy.name, "binding": binding.name,
                            "expressionIndex": violation.index, "validationActions": binding.actions,
                        }));
                    }
                }
                for (key, value) in findings.annotations {
                    match annotations.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, known)) if known.split(", ").any(|part| part == value) => {}
                        Some((_, known)) => known.push_str(&format!(", {value}")),
                        None => annotations.push((key, value)),
                    }
                }
            }
        }
        if !failures.is_empty() {
            let key = "validation.policy.admission.k8s.io/validation_failure";
            asked.ctx.annotate(key, Value::from(failures).to_string());
        }
        for (key, value) in annotations {
            asked.ctx.annotate(&key, value);
        }
        denied.map_or(Ok(()), Err)
    }

    /// What fails, and what is to be recorded.
    fn findings(&self, policy: &Policy, binding: &Binding, asked: &Asked<'_>) -> Findings {
        let mut found = Findings::default();
        let params = match policy.params(binding, self, asked) {
            Ok(params) => params,
            Err(_) if policy.ignore_failure => return found,
            Err(error) => {
                found.violations.push(error.into());
                return found;
            }
        };
        let Some(own) = asked.ctx.resource.clone() else { return found };
        let request = request_value(asked, &own, "");
        let namespace = self
            .registry
            .get("", "namespaces", "", &asked.ctx.namespace)
            .map(|namespace| namespace.to_value());
        for params in &params {
            let mut budget = TOTAL_LIMIT;
            let mut variables =
                Variables::new(self, asked, &request, namespace.as_ref(), params.as_ref());
            policy.fill(&mut variables, &mut budget);
            match policy.meets_conditions(&variables) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) if policy.ignore_failure => continue,
                Err(error) => {
                    found.violations.push(error.into());
                    continue;
                }
            }
            for (index, validation) in policy.validations.iter().enumerate() {
                if let Some(violation) = validation.judge(policy, &variables, &mut budget) {
                    found.violations.push(Violation { index, ..violation });
                }
            }
            policy.note(&variables, &mut budget, &mut found);
        }
        found
    }
}

impl Policy {
    /// Evaluates the annotations for the audit log; those that are null or empty are left out.
    fn note(&self, variables: &Variables<'_>, budget: &mut u64, found: &mut Findings) {
        for (key, program) in &self.annotations {
            let outcome = match program {
                Ok(program) => program.run(variables, budget),
                Err(error) => Err(error.clone()),
            };
            match outcome {
                Ok(cel::Value::Text(text)) if !text.trim().is_empty() => {
                    found
                        .annotations
                        .push((format!("{}/{key}", self.name), text.trim().to_owned()));
                }
                Ok(cel::Value::Text(_) | cel::Value::Null) => {}
                Ok(_) => found.violations.push("the annotation is not a string".to_owned().into()),
                Err(_) if self.ignore_failure => {}
                Err(error) => found.violations.push(error.into()),
            }
        }
    }
}

/// Whether an expression compiles to one of the types `wanted`, or to any where none is named.
fn check_expression(
    text: &str,
    names: &[&str],
    wanted: &[&str],
    path: &Path,
    errors: &mut ErrorList,
) {
    if text.trim().is_empty() {
        errors.push(Error::required(path, "expression is not specified"));
        return;
    }
    match compile_cel(text, names) {
        Err(error) => {
            errors.push(Error::invalid(path, text, format!("compilation failed: {error}")));
        }
        Ok(program) => {
            // Upstream knows the types of these; what only the object says of itself is of no type for it either.
            let is_open = ["variables", "request", "namespaceObject", "authorizer"]
                .iter()
                .any(|name| program.names(name));
            if wanted.is_empty()
                || wanted.contains(&program.result())
                || program.result() == "dyn" && is_open
            {
                return;
            }
            let detail = match wanted {
                [one] => format!("must evaluate to {one}"),
                several => {
                    let names = several.iter().map(|name| match *name {
                        "null" => "null_type",
                        name => name,
                    });
                    format!("must evaluate to one of [{}]", names.collect::<Vec<_>>().join(" "))
                }
            };
            errors.push(Error::invalid(path, text, detail));
        }
    }
}

/// The rules for the `matchConditions` of a webhook.
pub fn check_webhook_conditions(conditions: &Value, path: &Path, errors: &mut ErrorList) {
    check_conditions(conditions, &CONDITION_NAMES, path, errors);
}

/// Conditions have names of their own and expressions that are true or false (`validateMatchConditions`).
fn check_conditions(conditions: &Value, names: &[&str], path: &Path, errors: &mut ErrorList) {
    let list = conditions.items();
    if list.len() > CONDITIONS_MAX {
        errors.push(Error::too_many(path, list.len(), CONDITIONS_MAX));
    }
    let mut seen = BTreeSet::new();
    for (index, condition) in list.iter().enumerate() {
        let at = path.index(index);
        check_expression(
            condition["expression"].text(),
            names,
            &["bool"],
            &at.child("expression"),
            errors,
        );
        let (name, at) = (condition["name"].text(), at.child("name"));
        if name.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let sentences = apimachinery::names::qualified_name(name);
        errors.extend(sentences.into_iter().map(|sentence| Error::invalid(&at, name, sentence)));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at, name));
        }
    }
}

/// The rules for policies themselves: what they need, and expressions that compile.
pub fn check_policy(plural: &str, object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let names = names();
    check_conditions(&spec["matchConditions"], &names, &path.child("matchConditions"), errors);
    let expression = |path: Path, value: &Value, wanted: &[&str], errors: &mut ErrorList| {
        check_expression(value.text(), &names, wanted, &path, errors);
    };
    let each = |key: &str| -> Vec<(Path, Value)> {
        let list = spec[key].items().iter().enumerate();
        list.map(|(i, v)| (path.child(key).index(i), v.clone())).collect()
    };
    for (path, variable) in each("variables") {
        expression(path.child("expression"), &variable["expression"], &[], errors);
    }
    match plural {
        "validatingadmissionpolicies" => {
            for (path, validation) in each("validations") {
                expression(path.child("expression"), &validation["expression"], &["bool"], errors);
                if validation["messageExpression"].is_set() {
                    check_expression(
                        validation["messageExpression"].text(),
                        &message_names(),
                        &["string"],
                        &path.child("messageExpression"),
                        errors,
                    );
                }
            }
            for (path, annotation) in each("auditAnnotations") {
                expression(
                    path.child("valueExpression"),
                    &annotation["valueExpression"],
                    &["string", "null"],
                    errors,
                );
            }
            if spec["validations"].items().is_empty() && spec["auditAnnotations"].items().is_empty()
            {
                let detail = "validations or auditAnnotations must be non-empty";
                errors.push(Error::required(&path.child("validations"), detail));
            }
        }
        "mutatingadmissionpolicies" => {
            for (path, mutation) in each("mutations") {
                let key = if mutation["patchType"] == "JSONPatch" {
                    "jsonPatch"
                } else {
                    "applyConfiguration"
                };
                let path = path.child(key).child("expression");
                expression(path, &mutation[key]["expression"], &[], errors);
            }
            if spec["mutations"].items().is_empty() {
                errors.push(Error::required(
                    &path.child("mutations"),
                    "mutations must contain at least one item",
                ));
            }
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            if spec["policyName"].text().is_empty() {
                errors.push(Error::required(&path.child("policyName"), ""));
            }
            if plural.starts_with("validating") && spec["validationActions"].items().is_empty() {
                errors.push(Error::required(
                    &path.child("validationActions"),
                    "at least one validation action is required",
                ));
            }
            return;
        }
        _ => return,
    }
    if !spec["matchConstraints"].is_object() {
        errors.push(Error::required(&path.child("matchConstraints"), ""));
    } else if spec["matchConstraints"]["resourceRules"].items().is_empty() {
        errors.push(Error::required(&path.child("matchConstraints").child("resourceRules"), ""));
    }
}
