//! Claims that look on at devices in use are only made in namespaces that are labelled for it.
//!
//! Source: `pkg/registry/resource/utils.go` (`AuthorizedForAdmin`).

use apimachinery::Status;
use apimachinery::field::{Error, Path};
use apimachinery::meta;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::zero::Zero;

const LABEL: &str = "resource.kubernetes.io/admin-access";

fn asks(claim_spec: &Value) -> bool {
    let requests = claim_spec["devices"]["requests"].items().iter();
    requests.into_iter().any(|request| request["exactly"]["adminAccess"].flag())
}

/// Refuses claims and templates with `adminAccess` elsewhere.
pub fn admit(registry: &Registry, ctx: &RequestContext, object: &Value) -> Result<(), Status> {
    let (kind, spec) = match ctx.plural.as_str() {
        "resourceclaims" => ("ResourceClaim", &object["spec"]),
        _ => ("ResourceClaimTemplate", &object["spec"]["spec"]),
    };
    if !asks(spec) {
        return Ok(());
    }
    let namespace = registry.get("", "namespaces", "", &ctx.namespace);
    if namespace.is_some_and(|n| n.labels.get(LABEL).is_some_and(|value| value == "true")) {
        return Ok(());
    }
    let detail = format!(
        "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
    );
    let error = Error::forbidden(&Path::new(""), &detail);
    Err(Status::invalid(&ctx.group, kind, meta::name(object), &[error]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tests::Fixture;

    #[tokio::test]
    async fn only_a_labelled_namespace_may_look_on() {
        let f = Fixture::new().await;
        let labels = json!({"resource.kubernetes.io/admin-access": "true"});
        for (namespace, labels) in [("plain", json!({})), ("admin", labels)] {
            let body = json!({"metadata": {"name": namespace, "labels": labels}});
            assert_eq!(f.post("/api/v1/namespaces", &body).await.code, 201);
        }
        for (namespace, admin, want) in
            [("plain", false, 201), ("plain", true, 422), ("admin", true, 201)]
        {
            let spec = json!({"devices": {"requests": [
                {"name": "r", "exactly": {"deviceClassName": "c", "adminAccess": admin}}]}});
            let base = format!("/apis/resource.k8s.io/v1/namespaces/{namespace}");
            for (plural, spec) in [
                ("resourceclaims", spec.clone()),
                ("resourceclaimtemplates", json!({"spec": spec})),
            ] {
                let body = json!({"metadata": {"generateName": "a-"}, "spec": spec});
                let answer = f.post(&format!("{base}/{plural}"), &body).await;
                assert_eq!(answer.code, want, "{namespace} {plural}: {}", answer.body);
                let told = answer.body["message"].as_str().unwrap_or_default();
                assert_eq!(told.contains("admin access to devices requires"), want == 422);
            }
        }
    }
}
