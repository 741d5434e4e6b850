//! ServiceAccount: every pod runs as an account and finds its token, the CA and its namespace where
//! clients look for them.
//!
//! Source: `plugin/pkg/admission/serviceaccount`.

use apimachinery::Status;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::metadata;
use crate::object::Object;
use crate::registry::Registry;
use crate::zero::{Zero, default_to};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// One hour, and some minutes for a kubelet that comes late; upstream's number.
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Completes a new pod.
pub async fn admit(
    registry: &Registry,
    ctx: &RequestContext,
    pod: &mut Value,
) -> Result<(), Status> {
    let refused = |why: String| {
        let name = pod["metadata"]["name"].text();
        Err(Status::forbidden("", "pods", name, &why))
    };
    if pod["metadata"]["annotations"][MIRROR].is_string() {
        // Mirror pods run without the API: they may not refer to its objects.
        if !pod["spec"]["serviceAccountName"].text().is_empty() {
            return refused("a mirror pod may not reference service accounts".into());
        }
        let secret = |volume: &Value| volume["secret"].is_set();
        if pod["spec"]["volumes"].items().iter().any(secret) {
            return refused("a mirror pod may not reference secrets".into());
        }
        return Ok(());
    }
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let mut name = pod["spec"]["serviceAccountName"].text().to_owned();
    if name.is_empty() {
        "default".clone_into(&mut name);
    }
    let find = || registry.get("", "serviceaccounts", &ctx.namespace, &name);
    let mut account = find();
    if account.is_none() {
        // It may have been made a moment ago, by somebody who was told so.
        let _ = registry.sync().await;
        account = find();
    }
    let Some(account) = account else {
        return refused(format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            ctx.namespace
        ));
    };
    complete(pod, &name, &account);
    Ok(())
}

/// What is looked at for each pod.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Account {
    automount_service_account_token: Option<bool>,
    image_pull_secrets: Value,
}

fn complete(pod: &mut Value, name: &str, account: &Object) {
    let account: Account = account.parse().unwrap_or_default();
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = name.into();
    spec["serviceAccount"] = name.into();
    let wanted = spec["automountServiceAccountToken"]
        .as_bool()
        .or(account.automount_service_account_token)
        .unwrap_or(true);
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    if wanted {
        mount_token(spec);
    }
    if spec["imagePullSecrets"].items().is_empty() && !account.image_pull_secrets.items().is_empty()
    {
        spec["imagePullSecrets"] = account.image_pull_secrets;
    } else if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"]
        .items()
        .iter()
        .map(|volume| volume["name"].text())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let mut needed = false;
    let volume = existing.clone().unwrap_or_else(|| metadata::generate_name(VOLUME_PREFIX));
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounted = container["volumeMounts"]
                .items()
                .iter()
                .any(|mount| mount["mountPath"].text() == MOUNT_PATH);
            if mounted || !container.is_object() {
                continue;
            }
            needed = true;
            default_to(container, "volumeMounts", || json!([]));
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
            }
        }
    }
    if needed && existing.is_none() {
        default_to(spec, "volumes", || json!([]));
        if let Some(volumes) = spec["volumes"].as_array_mut() {
            volumes.push(token_volume(&volume));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {
            "name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}],
        }},
        {"downwardAPI": {"items": [{
            "path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
        }]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(body: &str) -> Object {
        let json = format!("{{\"metadata\":{{\"name\":\"a\"}}{body}}}");
        Object::from_stored(json.into(), 2, &[]).unwrap()
    }

    fn pod() -> Value {
        json!({"spec": {
            "containers": [{"name": "c"}, {"name": "d", "volumeMounts": [
                {"name": "own", "mountPath": MOUNT_PATH}]}],
        }})
    }

    #[test]
    fn containers_without_a_mount_of_their_own_get_the_token() {
        let mut pod = pod();
        complete(&mut pod, "a", &account(""));
        let spec = &pod["spec"];
        let name = spec["volumes"][0]["name"].text();
        assert!(name.starts_with(VOLUME_PREFIX) && name.len() == VOLUME_PREFIX.len() + 5);
        assert_eq!(
            spec["containers"][0]["volumeMounts"],
            json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}])
        );
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "own");
        assert_eq!(
            (&spec["serviceAccountName"], &spec["serviceAccount"]),
            (&json!("a"), &json!("a"))
        );
        assert!(spec.get("imagePullSecrets").is_none());
    }

    #[test]
    fn pod_before_account_says_whether() {
        let off = r#","automountServiceAccountToken":false"#;
        let cases = [
            (None, "", true),
            (None, off, false),
            (Some(true), off, true),
            (Some(false), "", false),
        ];
        for (wish, body, want) in cases {
            let mut pod = pod();
            if let Some(wish) = wish {
                pod["spec"]["automountServiceAccountToken"] = wish.into();
            }
            complete(&mut pod, "a", &account(body));
            assert_eq!(pod["spec"]["volumes"].is_array(), want, "{wish:?} {body}");
        }
    }

    #[test]
    fn pull_secrets_come_from_the_account() {
        let mut pod = pod();
        complete(&mut pod, "a", &account(r#","imagePullSecrets":[{"name":"s"}]"#));
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "s"}]));
    }
}
