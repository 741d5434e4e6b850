//! A `default` ServiceAccount in every namespace.
//!
//! Source: `pkg/controller/serviceaccount/serviceaccounts_controller.go`.

use client::Informers;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, namespace_of, touched, unless_code};

/// The account that pods use when they name none.
const DEFAULT: &str = "default";

/// Whether the account is to be made.
fn is_missing(namespace: Option<&Namespace>, account: Option<&ServiceAccount>) -> bool {
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
        && account.is_none_or(|account| account.metadata.deletion_timestamp.is_some())
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let namespaces = informers.get::<Namespace>();
    let accounts = informers.get::<ServiceAccount>();
    accounts.ready().await;
    let changes = futures::stream::select(
        touched(&namespaces, name),
        touched(&accounts, |account| {
            if account.name_any() == DEFAULT { namespace_of(account) } else { Vec::new() }
        }),
    );
    queue::run("service-account", changes, shutdown, |namespace: String| {
        let missing = is_missing(
            namespaces.get("", &namespace).as_deref(),
            accounts.get(&namespace, DEFAULT).as_deref(),
        );
        let client = client.clone();
        Box::pin(async move {
            if missing {
                let account = ServiceAccount {
                    metadata: ObjectMeta { name: Some(DEFAULT.into()), ..ObjectMeta::default() },
                    ..ServiceAccount::default()
                };
                let api: Api<ServiceAccount> = Api::namespaced(client, &namespace);
                unless_code(api.create(&PostParams::default(), &account).await, 409)?;
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn only_living_namespaces_without_one_get_one() {
        let mut dying = Namespace::default();
        dying.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let (living, account) = (Namespace::default(), ServiceAccount::default());
        let cases = [
            (Some(&living), None, true),
            (Some(&living), Some(&account), false),
            (Some(&dying), None, false),
            (None, None, false),
        ];
        for (namespace, account, want) in cases {
            assert_eq!(is_missing(namespace, account), want);
        }
    }
}
