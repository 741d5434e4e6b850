//! Secrets of type `kubernetes.io/service-account-token`: they get a token of the account that they name,
//! and go with it.
//!
//! Source: `pkg/controller/serviceaccount/tokens_controller.go`. The token is asked of the API server, bound
//! to the Secret and good for as long as that asks for, so that nobody else need know the signing key.

use client::{Informer, Informers, Selection};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{touched, unless_code};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The longest that a token may be asked for.
const LASTS_S: i64 = 1 << 32;

/// What is to be done about a Secret.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// Its account is gone.
    Delete,
    /// It lacks a token, or what goes with one.
    Fill {
        token: bool,
    },
}

fn decide(secret: &Secret, account: Option<&ServiceAccount>, root_ca: &str) -> Step {
    if secret.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let uid = secret.annotations().get(ACCOUNT_UID).filter(|uid| !uid.is_empty());
    let same = |account: &&ServiceAccount| {
        uid.is_none_or(|uid| Some(uid) == account.metadata.uid.as_ref())
    };
    let Some(account) = account.filter(same) else { return Step::Delete };
    if account.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let has = |key: &str, want: Option<&str>| {
        let found = secret.data.as_ref().and_then(|data| data.get(key));
        found.is_some_and(|found| match want {
            Some(want) => found.0 == want.as_bytes(),
            None => !found.0.is_empty(),
        })
    };
    let namespace = secret.namespace().unwrap_or_default();
    let token = !has("token", None);
    let whole = !token
        && has("ca.crt", Some(root_ca))
        && has("namespace", Some(&namespace))
        && uid.is_some();
    if whole { Step::Nothing } else { Step::Fill { token } }
}

async fn token(client: &Client, account: &str, secret: &Secret) -> Result<String, Failure> {
    let namespace = secret.namespace().unwrap_or_default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: None,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            }),
            expiration_seconds: Some(LASTS_S),
        }),
        ..TokenRequest::default()
    };
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    made.status
        .and_then(|status| status.token)
        .ok_or_else(|| "the API server issued no token".into())
}

async fn sync(
    client: &Client,
    secret: &Secret,
    accounts: &Informer<ServiceAccount>,
    root_ca: &str,
) -> Result<Next, Failure> {
    let (namespace, name) = ownership::key(secret);
    let account = secret.annotations().get(ACCOUNT).cloned().unwrap_or_default();
    if account.is_empty() {
        return Ok(Next::Done);
    }
    let mut found = accounts.get(&namespace, &account);
    if decide(secret, found.as_deref(), root_ca) == Step::Delete {
        // The cache's word is not enough to delete by.
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        found = api.get_opt(&account).await?.map(std::sync::Arc::new);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    match decide(secret, found.as_deref(), root_ca) {
        Step::Nothing => {}
        Step::Delete => {
            let preconditions = Preconditions { uid: secret.uid(), ..Preconditions::default() };
            let parameters = DeleteParams::default().preconditions(preconditions);
            unless_code(api.delete(&name, &parameters).await, 404)?;
        }
        Step::Fill { token: missing } => {
            let mut filled = secret.clone();
            let uid = found.and_then(|account| account.metadata.uid.clone()).unwrap_or_default();
            filled.annotations_mut().insert(ACCOUNT_UID.into(), uid);
            let data = filled.data.get_or_insert_default();
            data.insert("ca.crt".into(), ByteString(root_ca.as_bytes().to_vec()));
            data.insert("namespace".into(), ByteString(namespace.into_bytes()));
            if missing {
                let token = token(client, &account, secret).await?;
                data.insert("token".into(), ByteString(token.into_bytes()));
            }
            unless_code(api.replace(&name, &PostParams::default(), &filled).await, 404)?;
        }
    }
    Ok(Next::Done)
}

/// Runs until `shutdown`.
pub async fn run(
    client: Client,
    informers: Informers,
    root_ca: String,
    shutdown: CancellationToken,
) {
    let accounts = informers.get::<ServiceAccount>();
    // Of all Secrets only those of this type are kept.
    let only = Selection::fields(format!("type={TYPE}"));
    let (secrets, watch) = Informer::<Secret>::spawn(Api::all(client.clone()), only);
    accounts.ready().await;
    let of_account = {
        let secrets = secrets.clone();
        move |account: &ServiceAccount| {
            let (namespace, name) = ownership::key(account);
            let own = secrets.store().state_filter(|secret| {
                secret.metadata.namespace.as_deref() == Some(&namespace)
                    && secret.annotations().get(ACCOUNT) == Some(&name)
            });
            own.iter().map(|secret| ownership::key(secret.as_ref())).collect::<Vec<Key>>()
        }
    };
    let changes = futures::stream::select(
        touched(&secrets, |secret| vec![ownership::key(secret)]),
        touched(&accounts, of_account),
    );
    queue::run("service-account-token", changes, shutdown, |key: Key| {
        let (client, accounts, root_ca) = (client.clone(), accounts.clone(), root_ca.clone());
        let secret = secrets.get(&key.0, &key.1);
        Box::pin(async move {
            match secret {
                Some(secret) => sync(&client, &secret, &accounts, &root_ca).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
    watch.abort();
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn secrets_get_their_accounts_token_and_go_with_it() {
        let secret = |uid: &str, data: Value| -> Secret {
            serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n",
                "annotations": {ACCOUNT: "a", ACCOUNT_UID: uid}}, "data": data}))
            .expect("a secret")
        };
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}}))
                .expect("an account");
        // "t", "ca" and "n".
        let whole = json!({"token": "dA==", "ca.crt": "Y2E=", "namespace": "bg=="});
        let stale = json!({"token": "dA==", "ca.crt": "b2xk", "namespace": "bg=="});
        for (secret, account, want) in [
            (secret("", json!({})), Some(&account), Step::Fill { token: true }),
            (secret("u", whole.clone()), Some(&account), Step::Nothing),
            (secret("", whole.clone()), Some(&account), Step::Fill { token: false }),
            (secret("u", stale), Some(&account), Step::Fill { token: false }),
            (secret("other", whole.clone()), Some(&account), Step::Delete),
            (secret("u", whole), None, Step::Delete),
        ] {
            assert_eq!(decide(&secret, account, "ca"), want);
        }
    }
}
