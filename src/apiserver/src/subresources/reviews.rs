//! Questions that are answered and not stored: who is it, may they, what may they.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta, time};
use serde_json::{Value, json};

use super::{created, read};
use crate::attributes::{RequestContext, UserInfo};
use crate::authz::Decision;
use crate::body::{Body, Response};
use crate::codec::Expected;
use crate::rest::Call;
use crate::zero::Zero;

/// Answers the review in the body.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let resource = call.resource.clone();
    let expected = Expected::of(&resource);
    let mut review = read(call, body, expected).await?;
    let status = match resource.kind.as_str() {
        "TokenReview" => token_review(call, &review).await?,
        "SelfSubjectReview" => json!({"userInfo": user_value(&call.ctx.user)}),
        "SelfSubjectRulesReview" => rules_review(call, &review)?,
        kind => access_review(call, &review, kind).await?,
    };
    review["status"] = status;
    if kind_is_stamped(&resource.kind) {
        meta::set(&mut review, "creationTimestamp", time::now());
    }
    Ok(created(call, &review))
}

fn kind_is_stamped(kind: &str) -> bool {
    kind == "SelfSubjectReview"
}

/// A user as `authentication.k8s.io` `UserInfo`.
pub fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.clone().into();
    }
    if !user.groups.is_empty() {
        value["groups"] = user.groups.clone().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

async fn token_review(call: &Call, review: &Value) -> Result<Value, Status> {
    let token = review["spec"]["token"].text();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = review["spec"]["audiences"].texts().map(str::to_owned).collect();
    Ok(match call.server.authenticator.authenticate_token(token, &audiences).await {
        Ok(authenticated) => json!({
            "authenticated": true,
            "user": user_value(&authenticated.user),
            "audiences": authenticated.audiences,
        }),
        Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
    })
}

async fn access_review(call: &Call, review: &Value, kind: &str) -> Result<Value, Status> {
    let spec = &review["spec"];
    let own = kind == "SelfSubjectAccessReview";
    let errors = validate_access(review, &call.ctx.namespace, kind);
    if !errors.is_empty() {
        return Err(Status::invalid("authorization.k8s.io", kind, "", &errors));
    }
    let user = if own { call.ctx.user.clone() } else { Arc::new(subject(spec)) };
    let decision = call.server.authorizer.decide(&asked(user, spec)).await;
    let mut status = json!({"allowed": decision.allowed()});
    if matches!(decision, Decision::Deny { .. }) {
        status["denied"] = true.into();
    }
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    Ok(status)
}

fn validate_access(review: &Value, namespace: &str, kind: &str) -> Vec<Error> {
    let (spec, path) = (&review["spec"], Path::new("spec"));
    let mut errors = Vec::new();
    let (resource, other) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == other.is_object() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let field =
            if resource.is_object() { "nonResourceAttributes" } else { "resourceAttributes" };
        let value = if resource.is_object() { other.clone() } else { Value::Null };
        errors.push(Error::invalid(&path.child(field), value, detail));
    }
    if kind != "SelfSubjectAccessReview"
        && spec["user"].text().is_empty()
        && spec["groups"].items().is_empty()
    {
        errors.push(Error::invalid(
            &path.child("user"),
            "",
            "at least one of user or group must be specified",
        ));
    }
    if kind == "LocalSubjectAccessReview" {
        let field = path.child("resourceAttributes").child("namespace");
        if resource.is_object() && resource["namespace"].text() != namespace {
            errors.push(Error::invalid(
                &field,
                resource["namespace"].text(),
                "must match metadata.namespace",
            ));
        }
        if other.is_object() {
            errors.push(Error::invalid(
                &path.child("nonResourceAttributes"),
                other.clone(),
                "disallowed on this kind of request",
            ));
        }
    }
    errors
}

fn subject(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .entries()
        .map(|(key, values)| (key.to_lowercase(), values.texts().map(str::to_owned).collect()))
        .collect();
    UserInfo {
        name: spec["user"].text().to_owned(),
        uid: spec["uid"].text().to_owned(),
        groups: spec["groups"].texts().map(str::to_owned).collect(),
        extra,
    }
}

/// Verbs that rules name beyond the API's own are kept as long as the server runs, but not more than so
/// many, nor longer ones: who reviews nonsense gets the answer for nonsense.
const OTHER_VERBS: usize = 1024;
const VERB_BYTES: usize = 64;

/// A verb as the request context keeps it.
pub fn verb_of(text: &str) -> &'static str {
    const VERBS: [&str; 22] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "use",
        "bind",
        "escalate",
        "impersonate",
        "approve",
        "sign",
        "attest",
        "proxy",
        "post",
        "put",
        "head",
        "options",
        "connect",
        "*",
    ];
    static OTHERS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if let Some(verb) = VERBS.into_iter().find(|verb| *verb == text) {
        return verb;
    }
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(verb) = others.get(text) {
        return verb;
    }
    if text.len() > VERB_BYTES || others.len() >= OTHER_VERBS {
        return "<unknown>";
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    others.insert(kept);
    kept
}

fn asked(user: Arc<UserInfo>, spec: &Value) -> RequestContext {
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let other = &spec["nonResourceAttributes"];
        return RequestContext {
            user,
            verb: verb_of(other["verb"].text()),
            path: other["path"].text().to_owned(),
            ..RequestContext::default()
        };
    }
    let text = |key: &str| resource[key].text().to_owned();
    RequestContext {
        user,
        verb: verb_of(resource["verb"].text()),
        group: text("group"),
        version: text("version"),
        // An empty resource would make it a question about a path.
        plural: if text("resource").is_empty() { "<none>".into() } else { text("resource") },
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
        ..RequestContext::default()
    }
}

fn rules_review(call: &Call, review: &Value) -> Result<Value, Status> {
    let namespace = review["spec"]["namespace"].text();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, errors) = call.server.authorizer.rules_for(&call.ctx.user, namespace);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            let mut value = json!({
                "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
            });
            if !rule.resource_names.is_empty() {
                value["resourceNames"] = rule.resource_names.into();
            }
            resources.push(value);
        } else if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": false,
    });
    if !call.server.authorizer.lists_all_rules() {
        let text = "webhook authorizer does not support user rule resolution";
        status["evaluationError"] = text.into();
        status["incomplete"] = true.into();
    }
    if !errors.is_empty() {
        status["evaluationError"] = errors.join(", ").into();
        status["incomplete"] = true.into();
    }
    Ok(status)
}
