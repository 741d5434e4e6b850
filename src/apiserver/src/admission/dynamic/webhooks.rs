//! Mutating and validating webhooks.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go`.

use std::time::Duration;

use apimachinery::{Status, decode, meta, patch};
use base64::Engine as _;
use serde_json::{Value, json};
use uuid::Uuid;

use super::matching::{Condition, Matcher};
use super::variables::{Variables, request_value};
use super::{Asked, Dynamic, reshape};
use crate::attributes::RequestContext;
use crate::gate::Operation;
use crate::resource::Resource;
use crate::zero::Zero;

const DEFAULT_TIMEOUT_SECONDS: u64 = 10;
/// What the conditions of webhooks may name.
pub const CONDITION_NAMES: [&str; 4] = ["object", "oldObject", "request", "authorizer"];

/// One webhook of one configuration.
#[derive(Debug)]
pub struct Hook {
    name: String,
    configuration: String,
    client: Value,
    matcher: Matcher,
    conditions: Vec<Condition>,
    ignore_failure: bool,
    timeout: Duration,
    dry_run: bool,
    again: bool,
    /// The version of reviews that it is sent.
    review: &'static str,
}

/// What is wrong with a review that was answered; `uid` is that of the request.
///
/// Source: `VerifyAdmissionResponse` of `k8s.io/apiserver/pkg/admission/plugin/webhook/request`.
fn verified(mut answer: Value, sent: &str, uid: &str, mutates: bool) -> Result<Value, String> {
    let (kind, version) =
        (answer["kind"].text().to_owned(), answer["apiVersion"].text().to_owned());
    let sent_version = format!("admission.k8s.io/{sent}");
    if !kind.is_empty() && kind != "AdmissionReview" {
        return Err(format!(
            "failed to call webhook: no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apiserver/pkg/util/webhook/client.go:71\""
        ));
    }
    if !version.is_empty() && version != sent_version {
        let got = version.rsplit('/').next().unwrap_or(&version);
        return Err(format!(
            "failed to call webhook: converting ({got}.AdmissionReview) to ({sent}.AdmissionReview): unknown conversion"
        ));
    }
    let response = answer["response"].take();
    let invalid = |why: String| Err(format!("received invalid webhook response: {why}"));
    if !response.is_object() {
        return invalid("webhook response was absent".into());
    }
    // The older version asked for less.
    if sent == "v1beta1" {
        return Ok(response);
    }
    if response["uid"] != uid {
        let got = response["uid"].text();
        return invalid(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    if kind.is_empty() || version.is_empty() {
        let (group, number) = version.split_once('/').unwrap_or(("", &version));
        return invalid(format!(
            "expected webhook response of {sent_version}, Kind=AdmissionReview, got {group}/{number}, Kind={kind}"
        ));
    }
    let (patch, form) = (!response["patch"].text().is_empty(), response["patchType"].as_str());
    let why = match (mutates, patch, form) {
        (false, true, _) => "validating webhook may not return response.patch",
        (false, _, Some(_)) => "validating webhook may not return response.patchType",
        (true, true, None) => "webhook returned response.patch but not response.patchType",
        (true, false, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, true, Some("")) => "webhook returned invalid response.patchType of \"\"",
        (true, true, Some(other)) if other != "JSONPatch" => {
            return Err(format!("unsupported patch type {other:?}"));
        }
        _ => return Ok(response),
    };
    invalid(why.into())
}

/// All webhooks of the configurations, in the order in which they are called.
pub fn compile(configurations: &[Value]) -> Vec<Hook> {
    let mut sorted: Vec<&Value> = configurations.iter().collect();
    sorted.sort_by_key(|configuration| meta::name(configuration).to_owned());
    sorted
        .iter()
        .flat_map(|c| c["webhooks"].items().iter().map(|hook| Hook::parse(meta::name(c), hook)))
        .collect()
}

impl Hook {
    fn parse(configuration: &str, hook: &Value) -> Self {
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT_SECONDS);
        Self {
            name: hook["name"].text().to_owned(),
            configuration: configuration.to_owned(),
            client: hook["clientConfig"].clone(),
            matcher: Matcher::of_webhook(hook),
            conditions: Condition::compile_all(&hook["matchConditions"], &CONDITION_NAMES),
            ignore_failure: hook["failurePolicy"] == "Ignore",
            timeout: Duration::from_secs(seconds),
            dry_run: matches!(hook["sideEffects"].text(), "None" | "NoneOnDryRun"),
            again: hook["reinvocationPolicy"] == "IfNeeded",
            review: hook["admissionReviewVersions"]
                .texts()
                .find_map(|version| ["v1", "v1beta1"].into_iter().find(|known| *known == version))
                .unwrap_or("v1"),
        }
    }

    /// Asks the webhook; `None` when the request is none of its business or its failure is ignored.
    async fn ask(
        &self,
        dynamic: &Dynamic,
        asked: &Asked<'_>,
        mutates: bool,
    ) -> Result<Option<(Value, String)>, Status> {
        let Some(at) = self.matcher.matches(dynamic, asked) else { return Ok(None) };
        let uid = Uuid::new_v4().to_string();
        let mut request = request_value(asked, &at, &uid);
        if !self.conditions.is_empty() {
            let variables = Variables::new(dynamic, asked, &request, None, None);
            match Condition::all(&self.conditions, &variables) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if self.ignore_failure => return Ok(None),
                Err(error) => {
                    let ctx = asked.ctx;
                    let name = request["name"].text();
                    return Err(Status::forbidden(&ctx.group, &ctx.plural, name, &error));
                }
            }
        }
        if asked.ctx.dry_run && !self.dry_run {
            let text = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Status::bad_request(text));
        }
        for (key, object) in [("object", asked.object), ("oldObject", asked.old)] {
            if let Some(object) = object {
                request[key] = self.at_version(dynamic, asked.ctx, object, &at).await?;
            }
        }
        let review = json!({
            "kind": "AdmissionReview",
            "apiVersion": format!("admission.k8s.io/{}", self.review),
            "request": request,
        });
        let answer = dynamic
            .registry
            .webhooks()
            .call(&dynamic.registry, &self.client, &review, self.timeout)
            .await;
        let answer = answer
            .map_err(|error| format!("failed to call webhook: {error}"))
            .and_then(|answer| verified(answer, self.review, &uid, mutates));
        match answer {
            Ok(response) => {
                for warning in response["warnings"].texts() {
                    asked.ctx.warnings.add(warning);
                }
                for (key, value) in response["auditAnnotations"].entries() {
                    asked.ctx.annotate(&format!("{}/{key}", self.name), value.text());
                }
                Ok(Some((response, at.version.clone())))
            }
            Err(error) if self.ignore_failure => {
                let key = format!("failed-open.webhook.admission.k8s.io/{}", self.configuration);
                asked.ctx.annotate(&key, self.name.as_str());
                tracing::warn!(webhook = self.name, error, "a failing webhook is ignored");
                Ok(None)
            }
            Err(error) => {
                Err(Status::internal(format!("failed calling webhook {:?}: {error}", self.name)))
            }
        }
    }

    /// The object at the version the webhook asked for.
    async fn at_version(
        &self,
        dynamic: &Dynamic,
        ctx: &RequestContext,
        object: &Value,
        at: &Resource,
    ) -> Result<Value, Status> {
        // A scale is of its own group, whatever version the workload is of.
        let own = ctx.resource.as_deref().filter(|_| ctx.subresource != "scale");
        match own.and_then(|own| own.custom.as_ref().filter(|_| own.version != at.version)) {
            Some(custom) => {
                custom.convert_value(&dynamic.registry, object.clone(), &at.api_version()).await
            }
            None if own.is_some_and(|own| own.version != at.version) => {
                let mut object = object.clone();
                crate::conversion::to_served(at, &mut object);
                Ok(object)
            }
            None => Ok(object.clone()),
        }
    }

    /// The refusal in an answer.
    fn refusal(&self, response: &Value) -> Option<Status> {
        if response["allowed"].flag() {
            return None;
        }
        let result = &response["status"];
        let denied = format!("admission webhook {:?} denied the request", self.name);
        let message = match (result["message"].text(), result["reason"].text()) {
            ("", "") => format!("{denied} without explanation"),
            ("", reason) => format!("{denied}: {reason}"),
            (message, _) => format!("{denied}: {message}"),
        };
        let code = result["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(0);
        let mut status = Status::failure(code.max(400), result["reason"].text(), message);
        status.details = serde_json::from_value(result["details"].clone()).ok();
        Some(status)
    }

    /// Asks and applies what the answer changes; `place` is the hook's among all, in this round.
    async fn change(
        &self,
        dynamic: &Dynamic,
        ctx: &RequestContext,
        operation: Operation,
        object: Option<&mut Value>,
        old: Option<&Value>,
        (round, place): (usize, usize),
    ) -> Result<(), Status> {
        let asked = Asked { ctx, operation, object: object.as_deref(), old };
        let Some((response, version)) = self.ask(dynamic, &asked, true).await? else {
            return Ok(());
        };
        if let Some(status) = self.refusal(&response) {
            return Err(status);
        }
        let text = response["patch"].text();
        let Some(object) = object else {
            if text.is_empty() {
                return Ok(());
            }
            return Err(Status::internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                self.name
            )));
        };
        let said = |mutated: bool| {
            let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{place}");
            let value = json!({"configuration": self.configuration, "webhook": self.name,
                "mutated": mutated});
            ctx.annotate(&key, value.to_string());
        };
        if text.is_empty() {
            said(false);
            return Ok(());
        }
        let failed = |error: String| {
            Status::internal(format!("failed calling webhook {:?}: {error}", self.name))
        };
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(|error| failed(error.to_string()))?;
        if let Err(error) = decode::json_to_value(&bytes) {
            return Err(failed(format!("received undecodable patch in webhook response: {error}")));
        }
        let own = ctx.resource.as_ref().map(|r| r.version.clone()).unwrap_or_default();
        let mut seen = object.clone();
        let custom = ctx.resource.as_ref().and_then(|r| r.custom.clone());
        let foreign = version != own && ctx.subresource != "scale";
        let group = ctx.group.clone();
        if let (true, Some(custom)) = (foreign, &custom) {
            let wanted = format!("{group}/{version}");
            seen = custom.convert_value(&dynamic.registry, seen, &wanted).await?;
        }
        let mut patched =
            patch::json(&seen, &bytes).map_err(|error| Status::internal(error.to_string()))?;
        if let (true, Some(custom)) = (foreign, &custom) {
            let wanted = format!("{group}/{own}");
            patched = custom.convert_value(&dynamic.registry, patched, &wanted).await?;
        }
        said(patched != *object);
        *object = patched;
        reshape(ctx, object)
    }
}

/// Calls mutating webhooks one after another; those that want to see the others' changes twice.
pub async fn mutate(
    dynamic: &Dynamic,
    hooks: &[Hook],
    ctx: &RequestContext,
    operation: Operation,
    mut object: Option<&mut Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let mut seen: Vec<(usize, &Hook, Option<Value>)> = Vec::new();
    for (place, hook) in hooks.iter().enumerate() {
        hook.change(dynamic, ctx, operation, object.as_deref_mut(), old, (0, place)).await?;
        if hook.again {
            seen.push((place, hook, object.as_deref().cloned()));
        }
    }
    for (place, hook, after) in seen {
        if object.as_deref() != after.as_ref() {
            hook.change(dynamic, ctx, operation, object.as_deref_mut(), old, (1, place)).await?;
        }
    }
    Ok(())
}

/// Calls validating webhooks side by side; the first refusal in their order counts.
pub async fn validate(dynamic: &Dynamic, hooks: &[Hook], asked: &Asked<'_>) -> Result<(), Status> {
    let calls = hooks.iter().map(|hook| async move {
        match hook.ask(dynamic, asked, false).await? {
            Some((response, _)) => hook.refusal(&response).map_or(Ok(()), Err),
            None => Ok(()),
        }
    });
    futures::future::join_all(calls).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_verified() {
        let review = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        let fine = json!({"uid": "u", "allowed": true});
        let with = |patch: &str, kind: Value| {
            review(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": kind}))
        };
        let invalid = "received invalid webhook response: ";
        for (answer, mutates, want) in [
            (review(fine.clone()), true, ""),
            (review(fine.clone()), false, ""),
            (with("W10=", json!("JSONPatch")), true, ""),
            (with("W10=", json!("")), true, "webhook returned invalid response.patchType of \"\""),
            (
                with("W10=", Value::Null),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                with("", json!("JSONPatch")),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                with("W10=", json!("JSONPatch")),
                false,
                "validating webhook may not return response.patch",
            ),
            (review(json!({"uid": "v"})), true, "expected response.uid=\"u\", got \"v\""),
            (
                json!({"response": fine}),
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=",
            ),
            (review(Value::Null), true, "webhook response was absent"),
        ] {
            let told = verified(answer.clone(), "v1", "u", mutates).err().unwrap_or_default();
            assert_eq!(told.strip_prefix(invalid).unwrap_or_default(), want, "{answer}");
        }
        let other = verified(with("W10=", json!("Merge")), "v1", "u", true);
        assert_eq!(other, Err("unsupported patch type \"Merge\"".to_owned()));
        let older = verified(json!({"response": {"patch": "W10="}}), "v1beta1", "u", true);
        assert_eq!(older, Ok(json!({"patch": "W10="})));
    }
}
