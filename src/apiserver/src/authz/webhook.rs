//! Decisions of another server, asked by SubjectAccessReview.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/authorizer/webhook`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use apimachinery::cel::{Named, Program, TOTAL_LIMIT, Type, Value as Cel};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};

use super::Decision;
use crate::attributes::RequestContext;
use crate::body::Body;
use crate::kubeconfig;
use crate::registry::Registry;
use crate::webhook::Target;
use crate::zero::Zero;

/// Decisions that are remembered at once.
const REMEMBERED: usize = 8192;
const ATTEMPTS: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(500);

/// An authoriser of type `Webhook`.
pub struct Webhook {
    name: String,
    server: String,
    tls: Arc<rustls::ClientConfig>,
    credentials: Option<String>,
    timeout: Duration,
    denies_on_failure: bool,
    conditions: Vec<(String, Program)>,
    allowed_ttl: Duration,
    denied_ttl: Duration,
    known: Mutex<HashMap<String, (Instant, Decision)>>,
}

impl Webhook {
    /// Reads the `webhook` part of an entry; relative paths in it begin at `base`.
    pub fn parse(name: &str, value: &Value, base: &Path) -> Result<Self, String> {
        let duration = |key: &str, default: Option<u64>| match (value[key].text(), default) {
            ("", Some(seconds)) => Ok(Duration::from_secs(seconds)),
            ("", None) => Err(format!("webhook.{key}: required")),
            (text, _) => seconds(text)
                .ok_or_else(|| format!("webhook.{key}: {text:?} is not a duration such as 3s")),
        };
        let timeout = duration("timeout", None)?;
        if timeout.is_zero() || timeout > Duration::from_secs(30) {
            return Err("webhook.timeout: must be greater than 0s and at most 30s".into());
        }
        let denies_on_failure = match value["failurePolicy"].text() {
            "NoOpinion" => false,
            "Deny" => true,
            other => {
                return Err(format!(
                    "webhook.failurePolicy: Unsupported value: {other:?}: supported values: \"NoOpinion\", \"Deny\""
                ));
            }
        };
        if value["subjectAccessReviewVersion"] != "v1" {
            return Err("webhook.subjectAccessReviewVersion: supported values: \"v1\"".into());
        }
        let connection = &value["connectionInfo"];
        if connection["type"] != "KubeConfigFile" {
            return Err("webhook.connectionInfo.type: supported values: \"KubeConfigFile\"".into());
        }
        let file = base.join(connection["kubeConfigFile"].text());
        let (server, tls, credentials) = kubeconfig::read(&file)?;
        let mut conditions = Vec::new();
        for (index, condition) in value["matchConditions"].items().iter().enumerate() {
            let text = condition["expression"].text();
            let program = Program::compile(text, vec![("request".into(), Type::Dyn)], None)
                .map_err(|error| format!("webhook.matchConditions[{index}].expression: {error}"))?;
            conditions.push((text.to_owned(), program));
        }
        let remembers = |key: &str| value[key].as_bool() != Some(false);
        let ttl = |key: &str, switch: &str, default| -> Result<Duration, String> {
            if remembers(switch) { duration(key, Some(default)) } else { Ok(Duration::ZERO) }
        };
        Ok(Self {
            name: name.to_owned(),
            server,
            tls: Arc::new(tls),
            credentials,
            timeout,
            denies_on_failure,
            conditions,
            allowed_ttl: ttl("authorizedTTL", "cacheAuthorizedRequests", 300)?,
            denied_ttl: ttl("unauthorizedTTL", "cacheUnauthorizedRequests", 30)?,
            known: Mutex::default(),
        })
    }

    /// What the other server says.
    pub async fn authorize(&self, registry: &Registry, ctx: &RequestContext) -> Decision {
        let spec = spec_of(ctx);
        match self.concerns(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion { reason: String::new() },
            Err(error) => return self.failed(&error),
        }
        let key = spec.to_string();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((until, decision)) = known
            && Instant::now() < until
        {
            return decision;
        }
        let status = match self.ask(registry, &spec).await {
            Ok(status) => status,
            Err(error) => {
                tracing::warn!(authorizer = self.name, error, "cannot ask the webhook authorizer");
                return self.failed(&error);
            }
        };
        let reason = status["reason"].text().to_owned();
        let decision = match (status["denied"].flag(), status["allowed"].flag()) {
            (true, true) => {
                return self
                    .failed("webhook subject access review returned both allow and deny response");
            }
            (true, false) => Decision::Deny { reason },
            (false, true) => Decision::Allow { reason },
            (false, false) => Decision::NoOpinion { reason },
        };
        let ttl = if decision.allowed() { self.allowed_ttl } else { self.denied_ttl };
        if !ttl.is_zero() {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED {
                let now = Instant::now();
                known.retain(|_, (until, _)| *until > now);
                if known.len() >= REMEMBERED {
                    known.clear();
                }
            }
            known.insert(key, (Instant::now() + ttl, decision.clone()));
        }
        decision
    }

    fn failed(&self, error: &str) -> Decision {
        let reason = error.to_owned();
        if self.denies_on_failure {
            Decision::Deny { reason }
        } else {
            Decision::NoOpinion { reason }
        }
    }

    /// Whether all conditions hold: one that is false decides, even if others fail.
    fn concerns(&self, spec: &Value) -> Result<bool, String> {
        let mut failure = None;
        let mut budget = TOTAL_LIMIT;
        for (text, program) in &self.conditions {
            let variables = [("request", Cel::of(spec, None))];
            match program.run(&Named(&variables), &mut budget) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(error) => {
                    failure.get_or_insert_with(|| {
                        format!("expression '{text}' resulted in error: {error}")
                    });
                }
            }
        }
        failure.map_or(Ok(true), Err)
    }

    async fn ask(&self, registry: &Registry, spec: &Value) -> Result<Value, String> {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "metadata": {}, "spec": spec});
        let body = review.to_string();
        let target = Target::of_url(&self.server).map_err(|error| error.to_string())?;
        let mut attempt = 0;
        let work = async {
            loop {
                attempt += 1;
                let mut request = http::Request::post("/")
                    .header(CONTENT_TYPE, "application/json")
                    .header(ACCEPT, "application/json, */*");
                if let Some(credentials) = &self.credentials {
                    request = request.header(AUTHORIZATION, credentials);
                }
                let tls = rustls::ClientConfig::clone(&self.tls);
                let webhooks = registry.webhooks();
                let sent = webhooks
                    .send(&target, tls, request, Body::from(body.clone()), self.timeout)
                    .await;
                match sent {
                    Ok((code, bytes)) if code.is_success() => {
                        return serde_json::from_slice::<Value>(&bytes)
                            .map_err(|error| error.to_string());
                    }
                    Ok((code, bytes)) if !code.is_server_error() || attempt == ATTEMPTS => {
                        return Err(format!("{code}: {}", String::from_utf8_lossy(&bytes)));
                    }
                    Err(error) if attempt == ATTEMPTS => return Err(error.to_string()),
                    _ => tokio::time::sleep(BACKOFF).await,
                }
            }
        };
        let mut answer = tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| Err("context deadline exceeded".into()))?;
        Ok(answer["status"].take())
    }
}

/// `SubjectAccessReviewSpec`
fn spec_of(ctx: &RequestContext) -> Value {
    let mut spec = json!({"user": ctx.user.name});
    if !ctx.user.uid.is_empty() {
        spec["uid"] = ctx.user.uid.as_str().into();
    }
    if !ctx.user.groups.is_empty() {
        spec["groups"] = json!(ctx.user.groups);
    }
    if !ctx.user.extra.is_empty() {
        spec["extra"] = json!(ctx.user.extra);
    }
    if !ctx.is_resource_request() {
        spec["nonResourceAttributes"] = json!({"path": ctx.path, "verb": ctx.verb});
        return spec;
    }
    let mut attributes = json!({});
    for (key, value) in [
        ("namespace", ctx.namespace.as_str()),
        ("verb", ctx.verb),
        ("group", &ctx.group),
        ("version", &ctx.version),
        ("resource", &ctx.plural),
        ("subresource", &ctx.subresource),
        ("name", &ctx.name),
    ] {
        if !value.is_empty() {
            attributes[key] = value.into();
        }
    }
    spec["resourceAttributes"] = attributes;
    spec
}

/// A duration as Go writes it: `1h2m3.5s`, `500ms`.
pub fn seconds(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit =
            rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        total += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("3s", Some(3.0)),
            ("1m30s", Some(90.0)),
            ("500ms", Some(0.5)),
            ("1.5h", Some(5400.0)),
            ("", None),
            ("3", None),
            ("x", None),
        ];
        for (text, want) in cases {
            assert_eq!(seconds(text).map(|d| d.as_secs_f64()), want, "{text}");
        }
    }

    /// Lets `jane` list, refuses `eve` outright, and has no opinion of anybody else.
    fn answer(_: &http::request::Parts, body: &bytes::Bytes) -> Value {
        let review: Value = serde_json::from_slice(body).expect("a review");
        let status = match review["spec"]["user"].text() {
            "jane" if review["spec"]["resourceAttributes"]["verb"] == "list" => {
                json!({"allowed": true, "reason": "known"})
            }
            "eve" => json!({"allowed": false, "denied": true, "reason": "known too well"}),
            _ => json!({"allowed": false}),
        };
        json!({"status": status})
    }

    #[tokio::test]
    async fn another_server_decides_where_the_conditions_hold() {
        use crate::attributes::UserInfo;
        use crate::tests::{Fixture, https};

        let (port, ca) = https::serve(None, answer).await;
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: 'https://localhost:{port}/authorize', certificate-authority-data: {}}}}}]
users: [{{name: u, user: {{token: x}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
",
            STANDARD.encode(ca)
        );
        std::fs::write(dir.path().join("webhook.kubeconfig"), kubeconfig).expect("written");
        let file = dir.path().join("authorization.yaml");
        let text = "apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Webhook
  name: other
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: Deny
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: webhook.kubeconfig}
    matchConditions:
    - expression: has(request.resourceAttributes)
    - expression: request.resourceAttributes.namespace != 'kube-system'
- {type: RBAC, name: rbac}
";
        std::fs::write(&file, text).expect("written");
        let access = crate::Access { authorization: Some(file), ..crate::Access::default() };
        let mut f = Fixture::with_access(access).await;
        let cases = [
            ("jane", "/api/v1/namespaces/default/pods", 200, ""),
            ("jane", "/api/v1/namespaces/kube-system/pods", 403, "cannot list"),
            ("eve", "/api/v1/namespaces/default/pods", 403, "known too well"),
            ("eve", "/version", 200, ""),
            ("bob", "/api/v1/namespaces/default/pods", 403, "cannot list"),
        ];
        for (user, path, want, why) in cases {
            f = f.seen_by(UserInfo::new(user, &[]));
            let answer = f.get(path).await;
            assert_eq!(answer.code.as_u16(), want, "{user} {path}: {}", answer.body);
            assert!(answer.body["message"].text().contains(why), "{}", answer.body);
        }
    }
}
